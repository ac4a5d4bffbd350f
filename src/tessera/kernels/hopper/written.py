"""Products in kernels that users wrote at the tile level: one loop over a contraction, then what is done to its sums, run by warp groups.

One thread copies the operands ahead through a ring of stages; each warp group multiplies 64 rows of the tile, and finishes them.  The
kernel's meaning is as before; where this form does not fit, its general one stays.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...ir.core import BufferType, Copier, Function, Op, TileType, Value, uses
from ...ir.tile import POINTWISE, tile_axes
from ...ir.tile_explicit import matrix_problem
from ...tiling import dsl
from ...tiling import explicit as tile
from ...tiling.dsl import Buffer, TileValue, tile_function
from ...types.dims import evaluate
from ...types.dtypes import f32

REGISTERS = {1: (56, 256), 2: (40, 232)}
LEAST = 128 * 64
"""Elements of a tile below which several small blocks on a multiprocessor serve better."""


@dataclass(frozen=True)
class _Product:
    """What such a kernel is made of."""

    fn: Function
    loop: Op
    left: Op
    right: Op
    turned: bool  # the right operand is stored [n, k]
    before: tuple[Op, ...]  # scalars
    after: tuple[Op, ...]

    @property
    def shape(self) -> tuple[int, int]:
        m, n = self.loop.result.type.shape
        return int(m), int(n)

    @property
    def depth(self) -> int:
        return int(self.left.result.type.shape[1])


def product_of_groups(fn: Function, machine: Any, env: Mapping[str, int]) -> Function | None:
    """The program of warp groups for a kernel whose work is one product; None: it is something else, or does not fit the machine.

    Args:
        env: the sizes; they decide (the copy engine wants rows of whole 16 bytes).
    """
    p = _found(fn) if machine.has_warp_groups else None
    if p is None or not _copied(p, env) or not all(_follows(op, p) and (op.name != "store" or _boxed(op, env)) for op in p.after):
        return None
    groups, stages = p.shape[0] // 64, _stages(p, machine)
    if stages < 2:
        return None
    buffers = [(a.name or f"b{i}", a.type) for i, a in enumerate(fn.args) if isinstance(a.type, BufferType)]
    program = dsl.TileProgram(fn.name, buffers, fn.attrs["sizes"], fn.attrs["grid"], fn.attrs["writes"])
    made = dsl.build(program, lambda *given: _emit(p, program, groups, stages))
    made.attrs.update({k: v for k, v in fn.attrs.items() if k not in made.attrs})
    return made


# -- what fits -------------------------------------------------------------------------------------------------------------
def _found(fn: Function) -> _Product | None:
    loops = [op for op in fn.body.ops if op.blocks]
    if len(loops) != 1 or loops[0].name != "for" or len(loops[0].results) != 1:
        return None
    (loop,) = loops
    body, start, users = loop.blocks[0], loop.operands[3].op, uses(fn.body)
    tiles = [op for op in body.ops[:-1] if any(isinstance(r.type, TileType) for r in op.results)]
    dots = [op for op in tiles if op.name == "dot"]
    if len(dots) != 1 or start is None or start.name != "full" or start.attrs["value"] != 0 or body.terminator.operands != [dots[0].result]:
        return None
    left, right = dots[0].operands[0].op, dots[0].operands[1].op
    turned = right is not None and right.name == "transpose"
    right = right.operands[0].op if right is not None and turned else right
    if left is None or right is None or {left.name, right.name} != {"load"}:
        return None
    if len(tiles) != 3 + turned or dots[0].operands[2] is not body.args[1]:
        return None
    if not all(_scalar(op) for op in body.ops[:-1] if op not in tiles):
        return None
    at = fn.body.ops.index(loop)
    before, after = fn.body.ops[:at], [op for op in fn.body.ops[at + 1:] if op.name != "return"]
    lonely = len(users[start.result]) == 1
    held = [op for op in before if not _scalar(op) and not (op is start and lonely)]
    p = _Product(fn, loop, left, right, turned, tuple(op for op in before if _scalar(op)), (*held, *after))
    return p if _shapes_fit(p) else None


def _scalar(op: Op) -> bool:
    return (op.name in POINTWISE or op.name in ("constant", "size", "program_id")) and \
        not any(isinstance(v.type, TileType) for v in (*op.results, *op.operands))


def _shapes_fit(p: _Product) -> bool:
    (m, n), k, dtype = p.shape, p.depth, p.left.result.type.dtype
    problem = matrix_problem(dtype, p.right.result.type.dtype, p.loop.result.type.dtype, (64, n), k)
    return problem is None and m in (64, 128) and m * n >= LEAST and k % 64 == 0 and n % 64 == 0


def _copied(p: _Product, env: Mapping[str, int]) -> bool:
    """Whether the copy engine brings the operands, and there are any."""
    start, end, step = (v.op for v in p.loop.operands[:3])
    if start is None or end is None or step is None or {start.name, end.name, step.name} - {"constant", "size"}:
        return False
    first, last, by = (int(evaluate(op.attrs["value"], dict(env))) for op in (start, end, step))
    return by == p.depth and first < last and all(_boxed(op, env) and not op.attrs.get("fill", 0) for op in (p.left, p.right))


def _boxed(op: Op, env: Mapping[str, int]) -> bool:
    """Whether a load or store is a box along a parameter's last axes, in rows of whole 16 bytes."""
    memory = op.operands[0]
    rank = memory.type.rank
    if memory.op is not None or op.attrs.get("masked") or rank < 2 or tile_axes(op) != (rank - 2, rank - 1):
        return False
    return bool(int(evaluate(memory.type.shape[-1], dict(env))) * memory.type.dtype.itemsize % 16 == 0)


def _follows(op: Op, p: _Product) -> bool:
    """Whether a warp group can do this to its rows without the others."""
    if op.name == "store":
        memory = op.operands[0]
        return bool(op.operands[1 + memory.type.rank].type.shape == p.shape and not op.attrs.get("masked") and
                    memory.op is None and memory.type.rank >= 2 and tile_axes(op) == _last_axes(op))
    if _scalar(op):
        return True
    if len(op.results) != 1 or not isinstance(op.result.type, TileType):
        return False
    shape, n = op.result.type.shape, p.shape[1]
    if op.name == "load":
        whole = shape == p.shape and tile_axes(op) == _last_axes(op)
        vector = shape == (n,) and op.operands[0].type.rank == 1
        return bool(not op.attrs.get("masked") and op.operands[0].op is None and (whole or vector))
    if op.name in ("reshape", "broadcast"):
        return op.operands[0].type.shape in ((n,), (1, n)) and shape in ((1, n), p.shape)
    return shape in ((n,), (1, n), p.shape) and (op.name in POINTWISE or op.name in ("full", "splat"))


def _last_axes(op: Op) -> tuple[int, int]:
    rank = op.operands[0].type.rank
    return rank - 2, rank - 1


def _stages(p: _Product, machine: Any) -> int:
    """A power of two, at most 4."""
    (m, n), size = p.shape, p.left.result.type.dtype.itemsize
    left = int(machine.shared_bytes) - 2048 - sum(2 * 8192 * (m // 64) for _ in _dtypes(p))
    found = left // (p.depth * (m + n) * size)
    return 4 if found >= 4 else 2 if found >= 2 else 0


def _dtypes(p: _Product) -> list[Any]:
    """The element types of what is stored."""
    return list(dict.fromkeys(op.operands[0].type.dtype for op in p.after if op.name == "store"))


# -- the program -----------------------------------------------------------------------------------------------------------
class _Block:
    """What the roles share."""

    def __init__(self, p: _Product, program: dsl.TileProgram, groups: int, stages: int):
        self.p, self.stages, self.groups = p, stages, groups
        self.c = Copier(program.builder)
        fresh = [b.value for b in program.buffers] + list(program.fn.args[len(program.buffers):])
        self.c.map.update(zip(p.fn.args, fresh, strict=True))
        self.c.run(p.before)
        (m, n), dtype = p.shape, p.left.result.type.dtype
        self.ring_a = tile.alloc_tiles(stages, m, p.depth, dtype=dtype)
        self.ring_b = tile.alloc_tiles(stages, *((n, p.depth) if p.turned else (p.depth, n)), dtype=dtype)
        self.outbox = {d: tile.alloc_tiles(2 * groups, 64, 128 // d.itemsize, dtype=d) for d in _dtypes(p)}
        self.full, self.empty = tile.mbarriers(stages), tile.mbarriers(stages, arrivals=groups)
        self.lo, self.hi, self.step = (TileValue(self.c[v]) for v in p.loop.operands[:3])

    def stage(self, use: Any) -> tuple[Any, Any]:
        """(stage, phase) of a use of the ring."""
        return use & (self.stages - 1), use >> (self.stages.bit_length() - 1) & 1

    def fetch(self, k: Any, use: Any) -> None:
        """Start the copies of an iteration."""
        s, phase = self.stage(use)
        body = self.p.loop.blocks[0]
        self.c.map[body.args[0]] = k.value
        self.c.run([op for op in body.ops[:-1] if _scalar(op)])
        self.empty.wait(s, phase ^ 1)
        self.full.expect(s, self.ring_a[s].nbytes + self.ring_b[s].nbytes)
        for ring, load in ((self.ring_a, self.p.left), (self.ring_b, self.p.right)):
            memory, *offsets = self.c.operands(load)[:1 + load.operands[0].type.rank]
            tile.tma_load(ring[s], Buffer(memory), [TileValue(o) for o in offsets], self.full[s])

    def finish(self, g: Any, acc: TileValue) -> None:
        """What is done to a group's rows of the sums."""
        self.c.map[self.p.loop.result] = acc.value
        for op in self.p.after:
            made = self._after(op, g)
            if op.results and made is not None:
                self.c.map[op.result] = made

    @property
    def rows(self) -> tuple[int, int]:
        """The shape of a group's part."""
        return 64, self.p.shape[1]

    def _after(self, op: Op, g: Any) -> Value | None:
        if _scalar(op):
            self.c.copy(op)
            return None
        if op.name == "store":
            self._store(op, g)
            return None
        if op.name == "load":
            return self._load(op, g) if op.operands[0].type.rank > 1 else self._columns(op)
        if op.name in ("reshape", "broadcast"):
            return self.c[op.operands[0]]
        return self.c.builder.value(op.name, self.c.operands(op), TileType(op.result.type.dtype, self.rows), op.attrs, (), op.loc)

    def _places(self, op: Op, g: Any) -> list[TileValue]:
        """The offsets of this group's rows."""
        rank = op.operands[0].type.rank
        at = [TileValue(v) for v in self.c.operands(op)[1:1 + rank]]
        at[rank - 2] = at[rank - 2] + g * 64
        return at

    def _load(self, op: Op, g: Any) -> Value:
        at = self._places(op, g)
        return dsl.load(Buffer(self.c[op.operands[0]]), at, self.rows, axes=tile_axes(op), check=op.attrs.get("check", ())).value

    def _columns(self, op: Op) -> Value:
        """One number for each column, which each thread loads for its own: what is derived of it has all the rows, too."""
        memory, at = self.c.operands(op)[:2]
        flat = dsl.iota(self.rows, 1) + TileValue(at)
        mask = flat < dsl.size(op.operands[0].type.shape[0]) if op.attrs.get("check") else None
        return dsl.gather(Buffer(memory), flat, mask=mask).value

    def _store(self, op: Op, g: Any) -> None:
        target, at = Buffer(self.c[op.operands[0]]), self._places(op, g)
        values = TileValue(self.c[op.operands[1 + target.rank]])
        piece = 128 // target.dtype.itemsize
        for i in range(self.p.shape[1] // piece):
            box = self.outbox[target.dtype][g * 2 + i % 2]
            tile.tma_wait(pending=1, read=True)  # the store before last has left this box
            tile.barrier_sync(g + 1, 128)
            box.store(dsl.slice(values, (0, i * piece), (64, i * piece + piece)))
            tile.fence_async()
            tile.barrier_sync(g + 1, 128)
            tile.tma_store(target, [*at[:-1], at[-1] + i * piece], box)
            tile.tma_commit()


@tile_function
def _feed(b: _Block) -> None:
    """One thread's part."""
    use = 0
    for k in dsl.range(b.lo, b.hi, b.step):
        b.fetch(k, use)
        use = use + 1


@tile_function
def _multiply(b: _Block, g: Any) -> None:
    """One warp group's part."""
    use = 0
    acc = tile.uninitialized((64, b.p.shape[1]), f32)
    for _ in dsl.range(b.lo, b.hi, b.step):
        s, phase = b.stage(use)
        b.full.wait(s, phase)
        acc = tile.wgmma(acc, b.ring_a[s, g * 64:g * 64 + 64], b.ring_b[s].T if b.p.turned else b.ring_b[s], accumulate=use > 0)
        tile.wgmma_commit()
        tile.wgmma_wait(pending=1)  # all but this stage's products are over: the stage before is free
        b.empty.arrive((use - 1) & (b.stages - 1), when=use > 0)
        use = use + 1
    b.finish(g, tile.wgmma_wait(acc))
    tile.tma_wait()


def _emit(p: _Product, program: dsl.TileProgram, groups: int, stages: int) -> None:
    b = _Block(p, program, groups, stages)
    few, many = REGISTERS[groups]
    with tile.role(registers=few, threads=1):
        _feed(b)
    with tile.role(groups=groups, registers=many) as g:
        _multiply(b, g)


__all__ = ["product_of_groups"]
