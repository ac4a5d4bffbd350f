"""Matrix product with everything said: ``C[m, n] = epilogue(A[m, k] @ B)``, B stored ``[n, k]`` or ``[k, n]``, 16-bit in and out.

One warp group's single thread feeds a ring of shared-memory stages through the copy engine; two warp groups multiply, each
64 rows of a 128 x 256 tile, and store through the copy engine too.  Blocks stay resident and walk the tiles of C; pairs of blocks
(a cluster) share B: each loads half of it and multicasts it to both.

The protocol of a stage ``s``: ``full[s]`` completes when its bytes have come, ``empty[s]`` when all readers of both blocks have
released it.  The i-th use of the ring is stage ``i % stages`` in phase ``i // stages % 2``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ...ir.core import BufferType, Function
from ...tiling import dsl
from ...tiling import explicit as tile
from ...tiling.dsl import Buffer, TileValue, tile_function
from ...tiling.values import as_value
from ...types.dims import Dim, DimLike
from ...types.dtypes import DType, bf16
from ..programs import in_bands

Epilogue = Callable[..., Any]
"""(values [64, columns] in f32, first row, first column, the program's buffers …) -> what is stored."""


@dataclass(frozen=True)
class Config:
    """How the work is cut.

    Attributes:
        n: columns of a tile of C (its rows are 64 for each of the ``groups``).
        k: of a stage.
        stages: of the ring, a power of two.
        groups: warp groups that multiply.
        cluster: blocks that share B.
        blocks: resident blocks.
        raster: rows of tiles that are walked together, so that A and B stay in the second-level cache.
        spread: pieces in which a tile is stored beside the first products of the next (a piece beside a stage; there is no epilogue, and C
            has 16-bit elements), or 0: each tile is stored before the next begins.
        direct: rows of C are no multiples of 16 bytes, as the copy engine wants them: the threads store (sizes are numbers: else
            places spill).
    """

    n: int = 256
    k: int = 64
    stages: int = 4
    groups: int = 2
    cluster: int = 2
    blocks: int = 132
    raster: int = 8
    spread: int = 0
    direct: bool = False

    @property
    def m(self) -> int:
        return 64 * self.groups


def matmul_program(m: DimLike, n: DimLike, k: DimLike, *, dtype: DType = bf16, out: DType | None = None, transposed: bool = True,
                   epilogue: Epilogue | None = None, extra: tuple[tuple[str, BufferType], ...] = (), before: int = 0,
                   config: Config | None = None, name: str = "matmul") -> Function:
    """The tile program of one product.

    Args:
        transposed: B is stored ``[n, k]``, else ``[k, n]``.
        epilogue: what becomes of each piece of C before it is stored; it may load from the buffers: it is called with all of
            them, in order, as further arguments.
        extra: buffers beside A, B and C, which stand after B; ``before`` of them come before C.
    """
    c = config or Config()
    result = out or dtype
    buffers = [("a", BufferType(dtype, (m, k))), ("b", BufferType(dtype, (n, k) if transposed else (k, n))),
               *extra[:before], ("c", BufferType(result, (m, n))), *extra[before:]]
    sizes: dict[str, None] = {}
    for _, t in buffers:
        for d in t.shape:
            if isinstance(d, Dim):
                sizes.update(dict.fromkeys(sorted(d.names)))
    program = dsl.TileProgram(name, buffers, tuple(sizes), grid=(c.blocks,))
    return dsl.build(program, _matmul, c, (m, n, k), transposed, epilogue, before)


class _Block:
    """What the roles of a block share: the product, its ring of stages, the boxes that C leaves in."""

    def __init__(self, buffers: Sequence[Buffer], cfg: Config, sizes: tuple[DimLike, DimLike, DimLike], transposed: bool,
                 epilogue: Epilogue | None, before: int):
        a, b, *others = self.buffers = buffers
        self.a, self.b, self.c, self.cfg, self.transposed, self.epilogue = a, b, others[before], cfg, transposed, epilogue
        self.m, self.n, self.k = sizes
        self.ring_a = tile.alloc_tiles(cfg.stages, cfg.m, cfg.k, dtype=a.dtype)
        self.ring_b = tile.alloc_tiles(cfg.stages, *((cfg.n, cfg.k) if transposed else (cfg.k, cfg.n)), dtype=b.dtype)
        size = self.c.dtype.itemsize
        self.piece = cfg.n // cfg.spread if cfg.spread else 128 // size  # columns of C that leave together
        self.outbox = tile.alloc_tiles(2 * cfg.groups, 64, self.piece, dtype=self.c.dtype, swizzle=min(128, self.piece * size))
        self.full, self.empty = tile.mbarriers(cfg.stages), tile.mbarriers(cfg.stages, arrivals=cfg.groups * cfg.cluster)
        self.rank = tile.cluster(cfg.cluster)
        rows, columns = dsl.cdiv(self.m, cfg.m * cfg.cluster), dsl.cdiv(self.n, cfg.n)
        self.tiles, self.rows, self.columns = dsl.size(rows * columns), dsl.size(rows), dsl.size(columns)
        self.start, self.step = dsl.program_id(0) // cfg.cluster, cfg.blocks // cfg.cluster

    def place(self, t: Any) -> tuple[Any, Any]:
        """Where tile number ``t`` of this block begins in C."""
        row, column = in_bands(t, self.rows, self.columns, self.cfg.raster)
        return (row * self.cfg.cluster + self.rank) * self.cfg.m, column * self.cfg.n

    def stage(self, use: Any) -> tuple[Any, Any]:
        """(stage, phase) of a use of the ring."""
        return use & (self.cfg.stages - 1), use >> (self.cfg.stages.bit_length() - 1) & 1

    def multiply(self, acc: TileValue, g: Any, use: Any, accumulate: Any) -> TileValue:
        """Start the products of a stage."""
        s, phase = self.stage(use)
        self.full.wait(s, phase)
        acc = tile.wgmma(acc, self.ring_a[s, g * 64:g * 64 + 64], self.ring_b[s].T if self.transposed else self.ring_b[s],
                         accumulate=accumulate)
        tile.wgmma_commit()
        return acc

    def free(self, use: Any, when: Any = None) -> None:
        """All but the last products are over: the stage before is free."""
        self.empty.arrive((use - 1) & (self.cfg.stages - 1), when=when, cluster=True)

    def send(self, values: TileValue, g: Any, i: int, y: Any, x: Any) -> None:
        """Piece ``i`` of a group's part of C."""
        if self.epilogue is not None:
            values = self.epilogue(values, y, x + i * self.piece, *self.buffers)
        box = self.outbox[g * 2 + i % 2]
        if not self.cfg.direct:
            tile.tma_wait(pending=1, read=True)  # the store before last has left this buffer
        tile.barrier_sync(g + 1, 128)
        box.store(values)
        if self.cfg.direct:
            tile.barrier_sync(g + 1, 128)
            dsl.store(self.c, (y, x + i * self.piece), box.load(), check=True)
            return
        tile.fence_async()
        tile.barrier_sync(g + 1, 128)
        tile.tma_store(self.c, (y, x + i * self.piece), box)
        tile.tma_commit()

    def part(self, values: TileValue, i: int) -> TileValue:
        return dsl.slice(values, (0, i * self.piece), (64, i * self.piece + self.piece))


@tile_function
def _copy(p: _Block) -> None:
    """One thread's part: A and this block's share of B, as stages become free."""
    cfg, share = p.cfg, p.cfg.n // p.cfg.cluster
    half = p.rank * share  # where this block's part of B begins
    everyone = (1 << cfg.cluster) - 1 if cfg.cluster > 1 else 0
    use = 0
    for t in dsl.range(p.start, p.tiles, p.step):
        y, x = p.place(t)
        for at in dsl.range(0, dsl.size(p.k), cfg.k):
            s, phase = p.stage(use)
            p.empty.wait(s, phase ^ 1)
            p.full.expect(s, p.ring_a[s].nbytes + p.ring_b[s].nbytes)
            tile.tma_load(p.ring_a[s], p.a, (y, at), p.full[s])
            if p.transposed:
                tile.tma_load(p.ring_b[s, half:half + share], p.b, (x + half, at), p.full[s], multicast=everyone)
            else:
                tile.tma_load(p.ring_b[s, :, half:half + share], p.b, (at, x + half), p.full[s], multicast=everyone)
            use = use + 1


@tile_function
def _multiply(p: _Block, g: Any) -> None:
    """One warp group's part, tile after tile."""
    cfg = p.cfg
    use = 0
    for t in dsl.range(p.start, p.tiles, p.step):
        y, x = p.place(t)
        acc = tile.uninitialized((64, cfg.n))
        for at in dsl.range(0, dsl.size(p.k), cfg.k):
            acc = p.multiply(acc, g, use, at > 0)
            tile.wgmma_wait(pending=1)
            p.free(use, at > 0)
            use = use + 1
        acc = tile.wgmma_wait(acc)
        p.free(use)
        for i in range(cfg.n // p.piece):
            p.send(p.part(acc, i), g, i, y + g * 64, x)
    tile.tma_wait()


@tile_function
def _multiply_ahead(p: _Block, g: Any) -> None:
    """The same, where a piece of the tile before is stored beside each of the first stages' products: it waits in 16-bit numbers, so that
    there are registers for both."""
    cfg = p.cfg
    use = 0
    last = dsl.full((64, cfg.n), 0.0, p.c.dtype)
    last_y, last_x = p.rows * (cfg.m * cfg.cluster), as_value(dsl.size(0))  # outside of C: nothing of it is stored
    for t in dsl.range(p.start, p.tiles, p.step):
        acc = tile.uninitialized((64, cfg.n))
        for i in range(cfg.spread):
            acc = p.multiply(acc, g, use, i > 0)
            p.send(p.part(last, i), g, i, last_y, last_x)
            if i:
                tile.wgmma_wait(pending=1)
                p.free(use)
            use = use + 1
        for _ in dsl.range(cfg.spread * cfg.k, dsl.size(p.k), cfg.k):
            acc = p.multiply(acc, g, use, True)
            tile.wgmma_wait(pending=1)
            p.free(use)
            use = use + 1
        acc = tile.wgmma_wait(acc)
        p.free(use)
        last = acc.to(p.c.dtype)
        y, last_x = p.place(t)
        last_y = y + g * 64
    for i in range(cfg.spread):
        p.send(p.part(last, i), g, i, last_y, last_x)
    tile.tma_wait()


def _matmul(*given: Any) -> None:
    *buffers, cfg, sizes, transposed, epilogue, before = given
    p = _Block(buffers, cfg, sizes, transposed, epilogue, before)
    with tile.role(registers=24 if cfg.spread else 40, threads=1):
        _copy(p)
    with tile.role(groups=cfg.groups, registers=240 if cfg.spread else 232) as g:
        if cfg.spread:
            _multiply_ahead(p, g)
        else:
            _multiply(p, g)


__all__ = ["Config", "Epilogue", "matmul_program"]
