"""The memory plan: where each temporary of a Schedule program lies in the arena.

Lifetimes are intervals over the launches in program order; what a loop carries from one iteration to the next lives as long
as the loop.  A launch that reads an element only where it writes the same element may write in place: the result then takes
over the memory of an operand that dies there.  Offsets are multiples of 64 bytes.  Temporaries of static size are packed
largest first; those of symbolic size share slots whose capacity is provably enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..ir.core import Block, Function, Op, Value
from ..types.dims import Dim, DimLike, ceildiv, dim_max, evaluate, known_nonnegative, mod, substitute
from .indexing import typical

ALIGN = 64
LAUNCH = ("kernel", "template", "external", "launch", "call", "cond", "yield")
OWN_READS = {"matmul": 2, "attention": 3, "attention_backward": 6, "conv": 2}  # operands that a template reads through its index maps


@dataclass
class Life:
    """A region of the arena: the allocs (or the call) that use it, its size, and from which launch to which."""

    ops: list[Op]
    size: DimLike
    start: int
    end: int
    offset: DimLike = 0

    def meets(self, other: Life) -> bool:
        return self.start <= other.end and other.start <= self.end


@dataclass
class _Accesses:
    """Where a temporary is used: (position, writes first, loops around it)."""

    at: list[tuple[int, bool, tuple[Op, ...]]] = field(default_factory=list)


def aligned(size: DimLike) -> DimLike:
    """``size`` rounded up to a multiple of 64."""
    return size if mod(size, ALIGN) == 0 else ceildiv(size, ALIGN) * ALIGN


def base(v: Value) -> Value:
    """The buffer that a view looks at."""
    while v.op is not None and v.op.name == "view":
        v = v.op.operands[0]
    return v


def plan_memory(fn: Function) -> Function:
    """Give every ``alloc`` (and every ``call`` with temporaries) its ``offset``; sets the attribute ``arena``.

    The functions that ``fn`` calls are planned already.  Changes ``fn`` and returns it.
    """
    lives = share_in_place(fn, lifetimes(fn))
    used = {op for x in lives for op in x.ops}
    fn.body.ops = [op for op in fn.body.ops if op.name != "alloc" or op in used]
    static = [x for x in lives if isinstance(x.size, int)]
    total: DimLike = _pack(static)
    total = _slots([x for x in lives if not isinstance(x.size, int)], total)
    for x in lives:
        for op in x.ops:
            op.attrs["offset"] = x.offset
    fn.attrs["arena"] = total
    return fn


# -- lifetimes -------------------------------------------------------------------------------------------------------------
def lifetimes(fn: Function) -> list[Life]:
    """One interval for each temporary, in order of first use."""
    table: dict[Value, _Accesses] = {}
    spans: dict[Op, tuple[int, int]] = {}
    calls: list[Life] = []
    for position, (op, loops) in enumerate(_launches(fn.body, ())):
        outs = op.attrs.get("outs", ())
        for i, v in enumerate(op.operands):
            b = base(v)
            if b.op is not None and b.op.name == "alloc":
                table.setdefault(b, _Accesses()).at.append((position, i in outs, loops))
        for loop in loops:
            first, _ = spans.get(loop, (position, position))
            spans[loop] = (first, position)
        if op.name == "call":
            size = _callee_arena(fn, op)
            if size != 0:
                calls.append(Life([op], aligned(size), position, position))
    return [_life(v, a, spans) for v, a in table.items()] + calls


def _launches(block: Block, loops: tuple[Op, ...]) -> Iterator[tuple[Op, tuple[Op, ...]]]:
    for op in block.ops:
        if op.name in LAUNCH:
            yield op, loops
        inner = (*loops, op) if op.name in ("while", "loop") else loops
        if op.name in ("while", "loop", "cond"):
            for b in op.blocks:
                yield from _launches(b, inner)


def _life(v: Value, accesses: _Accesses, spans: Mapping[Op, tuple[int, int]]) -> Life:
    start, end = accesses.at[0][0], accesses.at[-1][0]
    for loop in {loop for _, _, loops in accesses.at for loop in loops}:
        inside = [a for a in accesses.at if loop in a[2]]
        if len(inside) < len(accesses.at) or not inside[0][1]:
            first, last = spans[loop]
            start, end = min(start, first), max(end, last)
    assert v.op is not None
    return Life([v.op], aligned(v.type.nbytes), start, end)


def _callee_arena(fn: Function, op: Op) -> DimLike:
    callee = fn.functions[op.attrs["callee"]]
    size: DimLike = callee.attrs.get("arena", 0)
    env: dict[str, DimLike] = {}
    for p, v in zip(callee.args, op.operands, strict=True):
        for d, given in zip(p.type.shape, v.type.shape, strict=True):
            if isinstance(d, Dim) and d.is_name:
                env.setdefault(str(d), given)
    return substitute(size, env)


# -- in place --------------------------------------------------------------------------------------------------------------
def share_in_place(fn: Function, lives: list[Life]) -> list[Life]:
    """Merge the life of a result into that of an operand that dies in the launch, where the launch allows it."""
    of = {op.results[0]: x for x in lives for op in x.ops if op.name == "alloc"}
    for position, (op, _) in enumerate(_launches(fn.body, ())):
        if op.name not in ("kernel", "template"):
            continue
        for j in op.attrs["outs"]:
            made = of.get(base(op.operands[j]))
            if made is None or made.start != position:
                continue
            dying = next((i for i in range(len(op.operands)) if _dies(op, i, j, of, position)), None)
            if dying is None:
                continue
            old = of[base(op.operands[dying])]
            old.ops += made.ops
            old.end = made.end
            lives.remove(made)
            for o in made.ops:
                of[o.results[0]] = old
    return lives


def _dies(op: Op, i: int, j: int, of: Mapping[Value, Life], position: int) -> bool:
    b, out = base(op.operands[i]), base(op.operands[j])
    life = of.get(b)
    if life is None or i in op.attrs["outs"] or life.end != position or life.start == position or life is of.get(out):
        return False
    if sum(base(v) is b or of.get(base(v)) is life for v in op.operands) != 1 or b.type.nbytes != out.type.nbytes:
        return False
    return op.operands[i].type.size == b.type.size and op.operands[j].type.size == out.type.size \
        and pointwise_safe(op, i, j)


def pointwise_safe(op: Op, i: int, j: int) -> bool:
    """True when operands ``i`` (read) and ``j`` (written) may be one memory: every element of ``i`` is read only by the
    point that writes that element, before it writes."""
    a, b = op.operands[i].type, op.operands[j].type
    if a.dtype.itemsize != b.dtype.itemsize or a.shape != b.shape:
        return False
    if op.name == "template" and op.attrs["template"] == "scatter":
        return i == 0 and j == 3  # each element is copied, then combined, by the one block that owns its column
    if op.name == "template" and i < OWN_READS.get(op.attrs["template"], len(op.operands)):
        return False
    if op.name == "template" and "blocks" not in op.attrs:
        return False
    return all(_block_safe(outer, outer.args[i], outer.args[j]) for outer in op.blocks)


def _block_safe(outer: Block, source: Value, target: Value) -> bool:
    home: Block | None = None
    stores: list[tuple[Any, ...]] = []
    loads: list[tuple[Block, tuple[Any, ...]]] = []
    for block in _blocks(outer):
        for o in block.ops:
            if o.name == "load" and o.operands[0] is target:
                return False
            if o.name == "load" and o.operands[0] is source:
                if stores:
                    return False
                loads.append((block, o.attrs["index"]))
            if o.name == "store" and o.operands[0] is target:
                stores.append(o.attrs["index"])
                home = block
            if o.attrs.get("dyn") and o.operands[0] in (source, target):
                return False
    if not loads:
        return True
    return len(stores) == 1 and all(b is home and index == stores[0] for b, index in loads)


def _blocks(block: Block) -> Iterator[Block]:
    yield block
    for op in block.ops:
        for b in op.blocks:
            yield from _blocks(b)


# -- donated parameters ------------------------------------------------------------------------------------------------------
def reuse_donated(fn: Function, donated: Sequence[int]) -> None:
    """Let results take the memory of donated parameters that die where the result is made; extends ``aliases``.

    The result's own buffer then does not occur in the program any more.
    """
    inputs = fn.attrs["inputs"]
    pairs: list[tuple[int, int]] = list(fn.attrs.get("aliases", ()))
    for i in donated:
        if i in [p for _, p in pairs]:
            continue
        for k in range(fn.attrs["outputs"]):
            if k not in [r for r, _ in pairs] and fn.args[inputs + k].type == fn.args[i].type \
                    and _takes_over(fn, fn.args[i], fn.args[inputs + k]):
                pairs.append((k, i))
                break
    if pairs:
        fn.attrs["aliases"] = tuple(sorted(pairs))


def _takes_over(fn: Function, old: Value, new: Value) -> bool:
    """Replace ``new`` by ``old`` where one launch outside all loops makes ``new`` and nothing reads ``old`` afterwards."""
    every = list(_launches(fn.body, ()))
    writes = [k for k, (op, _) in enumerate(every) if any(base(op.operands[i]) is new for i in op.attrs.get("outs", ()))]
    reads = [k for k, (op, _) in enumerate(every) if any(base(v) is old for v in op.operands)]
    if len(writes) != 1 or (reads and reads[-1] > writes[0]):
        return False
    op, loops = every[writes[0]]
    if loops or op not in fn.body.ops or op.name not in ("kernel", "template"):
        return False
    into = next(i for i in op.attrs["outs"] if base(op.operands[i]) is new)
    source = [i for i, v in enumerate(op.operands) if base(v) is old]
    if len(source) > 1 or sum(base(v) is new for v in op.operands) != 1:
        return False
    if source and (source[0] in op.attrs["outs"] or not pointwise_safe(op, source[0], into)):
        return False
    for o in fn.walk():
        o.operands = [old if v is new else v for v in o.operands]
    return True


# -- placing ---------------------------------------------------------------------------------------------------------------
def _pack(lives: Sequence[Life]) -> int:
    """Offsets for static sizes: largest first, each at the lowest place that is free as long as it lives."""
    placed: list[Life] = []
    total = 0
    for x in sorted(lives, key=lambda x: (-_int(x.size), x.start)):
        offset = 0
        for y in sorted((y for y in placed if y.meets(x)), key=lambda y: _int(y.offset)):
            if offset + _int(x.size) <= _int(y.offset):
                break
            offset = max(offset, _int(y.offset) + _int(y.size))
        x.offset = offset
        placed.append(x)
        total = max(total, offset + _int(x.size))
    return total


def _int(d: DimLike) -> int:
    assert isinstance(d, int)
    return d


@dataclass
class _Slot:
    capacity: DimLike
    lives: list[Life]


def _slots(lives: Sequence[Life], start: DimLike) -> DimLike:
    """Offsets for symbolic sizes, behind ``start``; the end of the arena."""
    slots: list[_Slot] = []
    for x in sorted(lives, key=lambda x: (-typical(x.size), x.start)):
        for s in slots:
            if known_nonnegative(s.capacity - x.size) and not any(x.meets(y) for y in s.lives):
                s.lives.append(x)
                break
        else:
            slots.append(_Slot(x.size, [x]))
    offset = start
    for s in slots:
        for x in s.lives:
            x.offset = offset
        offset = offset + s.capacity
    return offset


# -- reports ---------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class MemoryReport:
    """Bytes: of the arena, of all temporaries without reuse, and the most that is live at one launch."""

    arena: DimLike
    without_reuse: DimLike
    peak: DimLike

    def at(self, sizes: Mapping[str, int]) -> tuple[int, int, int]:
        """The three figures for given sizes."""
        return tuple(evaluate(substitute(d, sizes), sizes) for d in (self.arena, self.without_reuse, self.peak))  # type: ignore[return-value]


def memory_report(fn: Function) -> MemoryReport:
    """What the plan of ``fn`` (a planned Schedule function) needs."""
    lives = lifetimes(fn)
    total: DimLike = 0
    for x in lives:
        total = total + x.size
    peak: DimLike = 0
    for position in {x.start for x in lives}:
        here: DimLike = 0
        for region in {str(x.ops[0].attrs["offset"]): x for x in lives if x.start <= position <= x.end}.values():
            here = here + region.size
        peak = dim_max(peak, here)
    return MemoryReport(fn.attrs["arena"], total, peak)
