"""Matrix product with everything said: ``C[m, n] = epilogue(A[m, k] @ B)``, B stored ``[n, k]`` or ``[k, n]``, 16-bit in and out.

One warp group's single thread feeds a ring of shared-memory stages through the copy engine; two warp groups multiply, each
64 rows of a 128 x 256 tile, and store through the copy engine too.  Blocks stay resident and walk the tiles of C; pairs of blocks
(a cluster) share B: each loads half of it and multicasts it to both.

The protocol of a stage ``s``: ``full[s]`` completes when its bytes have come, ``empty[s]`` when all readers of both blocks have
released it.  The i-th use of the ring is stage ``i % stages`` in phase ``i // stages % 2``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...ir.core import BufferType, Function
from ...tiling import dsl
from ...tiling import explicit as tile
from ...tiling.dsl import Buffer, tile_function
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
    """

    n: int = 256
    k: int = 64
    stages: int = 4
    groups: int = 2
    cluster: int = 2
    blocks: int = 132
    raster: int = 8

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


@tile_function
def _matmul(a: Buffer, b: Buffer, *rest: Any) -> None:
    *others, cfg, (m, n, k), transposed, epilogue, before = rest
    c = others[before]
    stages, share = cfg.stages, cfg.n // cfg.cluster
    ring_a = tile.alloc_tiles(stages, cfg.m, cfg.k, dtype=a.dtype)
    ring_b = tile.alloc_tiles(stages, *((cfg.n, cfg.k) if transposed else (cfg.k, cfg.n)), dtype=b.dtype)
    piece = 128 // c.dtype.itemsize  # columns of C that one swizzled panel holds
    outbox = tile.alloc_tiles(2 * cfg.groups, 64, piece, dtype=c.dtype)
    full, empty = tile.mbarriers(stages), tile.mbarriers(stages, arrivals=cfg.groups * cfg.cluster)
    rank = tile.cluster(cfg.cluster)
    half = rank * share  # where this block's part of B begins
    everyone = (1 << cfg.cluster) - 1 if cfg.cluster > 1 else 0
    rows, columns = dsl.cdiv(m, cfg.m * cfg.cluster), dsl.cdiv(n, cfg.n)
    tiles = dsl.size(rows * columns)
    start, step = dsl.program_id(0) // cfg.cluster, cfg.blocks // cfg.cluster
    wrap = stages.bit_length() - 1

    with tile.role(registers=40, threads=1):
        use = 0
        for t in dsl.range(start, tiles, step):
            row, column = in_bands(t, dsl.size(rows), dsl.size(columns), cfg.raster)
            y = (row * cfg.cluster + rank) * cfg.m
            x = column * cfg.n + half
            for at in dsl.range(0, dsl.size(k), cfg.k):
                s = use & (stages - 1)
                empty.wait(s, (use >> wrap & 1) ^ 1)
                full.expect(s, ring_a[s].nbytes + ring_b[s].nbytes)
                tile.tma_load(ring_a[s], a, (y, at), full[s])
                if transposed:
                    tile.tma_load(ring_b[s, half:half + share], b, (x, at), full[s], multicast=everyone)
                else:
                    tile.tma_load(ring_b[s, :, half:half + share], b, (at, x), full[s], multicast=everyone)
                use = use + 1

    with tile.role(groups=cfg.groups, registers=232) as g:
        use = 0
        for t in dsl.range(start, tiles, step):
            row, column = in_bands(t, dsl.size(rows), dsl.size(columns), cfg.raster)
            y = (row * cfg.cluster + rank) * cfg.m + g * 64
            x = column * cfg.n
            acc = tile.uninitialized((64, cfg.n))
            for at in dsl.range(0, dsl.size(k), cfg.k):
                s = use & (stages - 1)
                full.wait(s, use >> wrap & 1)
                left = ring_a[s, g * 64:g * 64 + 64]
                right = ring_b[s].T if transposed else ring_b[s]
                acc = tile.wgmma(acc, left, right, accumulate=at > 0)
                tile.wgmma_commit()
                tile.wgmma_wait(pending=1)  # all but this stage's products are over: the stage before is free
                empty.arrive((use - 1) & (stages - 1), when=at > 0, cluster=True)
                use = use + 1
            acc = tile.wgmma_wait(acc)
            empty.arrive((use - 1) & (stages - 1), cluster=True)
            for i in range(cfg.n // piece):
                values = dsl.slice(acc, (0, i * piece), (64, i * piece + piece))
                if epilogue is not None:
                    values = epilogue(values, y, x + i * piece, a, b, *others)
                box = outbox[g * 2 + i % 2]
                tile.tma_wait(pending=1, read=True)  # the store before last has left this buffer
                tile.barrier_sync(g + 1, 128)
                box.store(values)
                tile.fence_async()
                tile.barrier_sync(g + 1, 128)
                tile.tma_store(c, (y, x + i * piece), box)
                tile.tma_commit()
        tile.tma_wait()


__all__ = ["Config", "Epilogue", "matmul_program"]
