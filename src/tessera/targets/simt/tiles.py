"""Tiles in registers: constants, moves, reductions, products."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ...errors import CompileError
from ...ir.core import Op, ScalarType, TileType
from ...tiling.assign import produced, sliced
from ...tiling.layouts import PLACES, Layout, contiguous, factors_of, movement, solve, swizzle
from ...types.dtypes import DType
from ..cpu.emit_pointwise import pointwise
from ..cpu.emit_writer import constant_bits, literal, memory_type, representation, splat_literal
from .memory import element_number, read, read_vector, write, write_vector
from .values import EXCHANGE, Regs, layout_of, strides
from .writer import SHARED

if TYPE_CHECKING:
    from .emit import Emitter, Handler

COMBINE = {"add": "add", "mul": "mul", "max": "maximum", "min": "minimum", "and": "bitwise_and", "or": "bitwise_or", "xor": "bitwise_xor"}


# -- made from nothing ---------------------------------------------------------------------------------------------------------
def _constant(e: Emitter, op: Op) -> None:
    t, value = op.result.type, op.attrs["value"]
    rep = representation(t.dtype)
    if isinstance(value, np.ndarray) and value.size == 1:
        value = value.reshape(())[()]
    if isinstance(t, ScalarType):
        e.values[op.result] = splat_literal(rep, constant_bits(t.dtype, value), 1)
        return
    layout = layout_of(t)
    n = 1 << len(layout.bases("reg"))
    if not isinstance(value, np.ndarray):
        e.define(op, [splat_literal(rep, constant_bits(t.dtype, value), 1)] * n)
        return
    flat = [literal(rep, constant_bits(t.dtype, x)) for x in np.broadcast_to(value, t.shape).reshape(-1)]
    table = f"@table{e.w.count}"
    element = "i8" if rep == "i1" else rep
    items = ", ".join(f"{element} {int(x == 'true') if rep == 'i1' else x}" for x in flat)
    e.w.count += 1
    e.w.declare(f"{table} = internal addrspace(1) constant [{len(flat)} x {element}] [{items}], align 16")
    names = []
    for r in range(n):
        test = e.inside(layout, t.shape, r)
        at = element_number(e, layout, t.shape, r) if test is None else "0" if test == "false" else e.w.select(
            test, "i64", 1, element_number(e, layout, t.shape, r), "0")
        names.append(read(e, t.dtype, 1, e.w.address(element, 1, table, at)))
    e.define(op, names)


def _splat(e: Emitter, op: Op) -> None:
    n = 1 << len(layout_of(op.result.type).bases("reg"))
    e.define(op, [e.scalar(op.operands[0])] * n)


def _iota(e: Emitter, op: Op) -> None:
    t, axis = op.result.type, int(op.attrs.get("axis", 0))
    layout = layout_of(t)
    steps = [1 if a == axis else 0 for a in range(t.rank)]
    e.define(op, [element_number(e, layout, t.shape, r, steps) for r in range(1 << len(layout.bases("reg")))])


def _program_id(e: Emitter, op: Op) -> None:
    e.values[op.result] = e.pids[int(op.attrs.get("axis", 0))]


def _size(e: Emitter, op: Op) -> None:
    e.values[op.result] = e.w.dim(op.attrs["value"])


# -- moves -----------------------------------------------------------------------------------------------------------------------
def _broadcast(e: Emitter, op: Op) -> None:
    """Registers along stretched axes share a value.  The operand has the result's layout without those axes."""
    t, src = op.result.type, e.tile(op.operands[0])
    layout = layout_of(t)
    bits = tuple(0 if n == 1 else b for n, b in zip(src.shape, layout.bits, strict=True))
    have = {src.layout.element(reg=r): name for r, name in enumerate(src.names)}
    thin = layout.clipped(bits)
    if any(thin.bases(p) != src.layout.bases(p) for p in ("lane", "warp")):
        raise CompileError(f"broadcast: {src.layout} is not {layout} without its stretched axes", loc=op.loc)
    e.define(op, [have[thin.element(reg=r)] for r in range(1 << len(layout.bases("reg")))])


def _relayout(e: Emitter, op: Op) -> None:
    e.define(op, convert(e, e.tile(op.operands[0]), layout_of(op.result.type)).names)


def convert(e: Emitter, t: Regs, target: Layout) -> Regs:
    """A tile in another layout: renamed registers, shuffles, or through shared memory, as :func:`movement` says."""
    how = movement(t.layout, target)
    if how.kind == "none":
        return t
    if how.kind == "registers":
        return Regs(t.dtype, t.shape, target, [t.names[r] for r in how.registers])
    if how.kind == "shuffle":
        return Regs(t.dtype, t.shape, target, _shuffled(e, t, how.registers, how.lanes, how.lane_map))
    return through_shared(e, [(t, target)])[0]


def _shuffled(e: Emitter, t: Regs, registers: Sequence[int], lanes: Sequence[int], lane_map: Sequence[int]) -> list[str]:
    w = e.w
    straight = all(x == 1 << i for i, x in enumerate(lane_map))
    base = w.lane_id() if straight else w.selected((("lane", tuple(lane_map)),))
    senders = [base if not flip else w.once(("lane of", base, flip), lambda f=flip: w.let(f"xor i32 {base}, {f}")) for flip in lanes]
    moving = [i for i, flip in enumerate(lanes) if flip or not straight]
    out = [t.names[r] for r in registers]
    if not e.machine.has_shuffles:
        names = _through_memory(e, t.dtype, [out[i] for i in moving], [senders[i] for i in moving])
    elif straight:
        names = [shuffle_xor(e, t.dtype, out[i], lanes[i]) for i in moving]
    else:
        names = [_by_words(e, t.dtype, out[i], lambda v, n=senders[i]: e.vendor.shuffle(w, v, n)) for i in moving]
    for i, name in zip(moving, names, strict=True):
        out[i] = name
    return out


def shuffle_xor(e: Emitter, dtype: DType, value: str, mask: int) -> str:
    """The value of the lane whose number differs in ``mask``."""
    return shuffles_xor(e, dtype, [value], mask)[0]


def shuffles_xor(e: Emitter, dtype: DType, values: Sequence[str], mask: int) -> list[str]:
    """The values of the lane whose number differs in ``mask``."""
    w = e.w
    if e.machine.has_shuffles:
        return [_by_words(e, dtype, value, lambda v: e.vendor.shuffle_xor(w, v, mask)) for value in values]
    sender = w.once(("lane of", w.lane_id(), mask), lambda: w.let(f"xor i32 {w.lane_id()}, {mask}"))
    return _through_memory(e, dtype, values, [sender] * len(values))


def _through_memory(e: Emitter, dtype: DType, values: Sequence[str], senders: Sequence[str]) -> list[str]:
    """Value i as the lane ``senders[i]`` of the same warp has it, through shared memory: all values at once, 32 bits at least each."""
    if not values:
        return []
    w, rep, threads = e.w, representation(dtype), e.threads
    narrow = rep not in ("i32", "float", "i64", "double")
    element = "i32" if narrow else rep
    slots = {v: i for i, v in enumerate(dict.fromkeys(values))}
    base = e.exchange(len(slots) * threads * (8 if element in ("i64", "double") else 4))
    own = w.once(("slot", element, w.thread_id()), lambda: w.address(element, SHARED, base, w.wide(w.thread_id())))
    e.order.touch(EXCHANGE, True)
    for v, i in slots.items():
        word = w.let(f"zext {rep} {v} to i32") if narrow else v
        w.line(f"store {element} {word}, ptr addrspace({SHARED}) {w.address(element, SHARED, own, str(i * threads))}")
    e.order.touch(EXCHANGE, False)
    out = []
    for v, sender in zip(values, senders, strict=True):
        thread = _in_warp(e, sender)
        there = w.once(("slot", element, thread), lambda t=thread: w.address(element, SHARED, base, w.wide(t)))
        at = w.address(element, SHARED, there, str(slots[v] * threads))
        got = w.let(f"load {element}, ptr addrspace({SHARED}) {at}")
        out.append(got if not narrow else w.let(f"icmp ne i32 {got}, 0") if rep == "i1" else w.let(f"trunc i32 {got} to {rep}"))
    return out


def _in_warp(e: Emitter, lane: str) -> str:
    """The thread that is a lane of this thread's warp."""
    w = e.w
    if e.threads <= e.machine.lanes:
        return lane
    first = w.once("warp's first", lambda: w.let(f"and i32 {w.thread_id()}, {-e.machine.lanes}"))
    return w.once(("in warp", lane), lambda: w.let(f"or i32 {first}, {lane}"))


def _by_words(e: Emitter, dtype: DType, value: str, move: object) -> str:
    """Apply ``move`` to a value's 32-bit words."""
    w, rep = e.w, representation(dtype)
    assert callable(move)
    if rep in ("i64", "double"):
        bits = value if rep == "i64" else w.let(f"bitcast double {value} to i64")
        low = move(w.let(f"trunc i64 {bits} to i32"))
        high = move(w.let(f"trunc i64 {w.let(f'lshr i64 {bits}, 32')} to i32"))
        up = w.let(f"shl i64 {w.let(f'zext i32 {high} to i64')}, 32")
        whole = w.let(f"or i64 {w.let(f'zext i32 {low} to i64')}, {up}")
        return whole if rep == "i64" else w.let(f"bitcast i64 {whole} to double")
    if rep == "float":
        return w.let(f"bitcast i32 {move(w.let(f'bitcast float {value} to i32'))} to float")
    if rep == "i32":
        return str(move(value))
    if rep == "i1":
        return w.let(f"icmp ne i32 {move(w.let(f'zext i1 {value} to i32'))}, 0")
    return w.let(f"trunc i32 {move(w.let(f'zext {rep} {value} to i32'))} to {rep}")


def through_shared(e: Emitter, moves: Sequence[tuple[Regs, Layout]]) -> list[Regs]:
    """Tiles in other layouts, written and read at swizzled offsets, all before the threads meet and all after."""
    found, at = [], 0
    for t, target in moves:
        offsets = swizzle(t.layout, target, 8 * t.dtype.itemsize, e.machine.banks)
        found.append((t, target, offsets, at))
        at += -(-(t.dtype.itemsize << t.layout.dim) // 128) * 128  # whole rows of banks
    base = e.exchange(at)
    e.order.touch(EXCHANGE, True)
    for t, _, offsets, start in found:
        most = max(1, 16 // t.dtype.itemsize)
        source, order = _by_offset(t.layout, offsets)
        names, put = [t.names[r] for r in order], min(contiguous(source, offsets), most)
        places = _offset_addresses(e, t.dtype, _behind(e, base, start), source, offsets.inverse(), put)
        e.guarded([e.owner(t.layout)] * len(places), _vector_putter(e, t.dtype, places, names, put))
    e.order.touch(EXCHANGE, False)
    out = []
    for t, target, offsets, start in found:
        sorted_, order = _by_offset(target, offsets)
        get = min(contiguous(sorted_, offsets), max(1, 16 // t.dtype.itemsize))
        places = _offset_addresses(e, t.dtype, _behind(e, base, start), sorted_, offsets.inverse(), get)
        names = [v for p in places for v in read_vector(e, t.dtype, SHARED, p, get)]
        back = dict(zip(order, names, strict=True))
        out.append(Regs(t.dtype, t.shape, target, [back[r] for r in range(len(names))]))
    return out


def _behind(e: Emitter, base: str, nbytes: int) -> str:
    return base if not nbytes else e.w.once(("exchange", base, nbytes), lambda: e.w.address("i8", SHARED, base, str(nbytes)))


def _vector_putter(e: Emitter, dtype: DType, places: Sequence[str], names: Sequence[str], n: int) -> Callable[[int], None]:
    return lambda i: write_vector(e, dtype, SHARED, places[i], names[i * n:(i + 1) * n])


def _by_offset(layout: Layout, offsets: Layout) -> tuple[Layout, list[int]]:
    """The layout with the registers in front that lie side by side in memory, and the old register of each."""
    there = layout.compose(offsets.inverse()).bases("reg")
    bits = sorted(range(len(there)), key=lambda i: (there[i] & (there[i] - 1) != 0, there[i]))
    regs = layout.bases("reg")
    made = Layout(layout.bits, tuple((p, tuple(regs[i] for i in bits) if p == "reg" else cs) for p, cs in layout.places))
    return made, [sum(1 << i for j, i in enumerate(bits) if r >> j & 1) for r in range(1 << len(bits))]


def _offset_addresses(e: Emitter, dtype: DType, base: str, layout: Layout, back: Layout, step: int) -> list[str]:
    """The address of every ``step``-th register's element."""
    w, element = e.w, memory_type(dtype)
    there = layout.compose(back)
    own = w.thread_part(there)
    out = []
    for r in range(0, 1 << len(layout.bases("reg")), step):
        fixed = there.element(reg=r)
        at = str(fixed) if own == "0" else own if not fixed else w.once(
            ("xor", own, fixed), lambda f=fixed: w.let(f"xor i32 {own}, {f}"))
        out.append(w.address(element, SHARED, base, w.wide(at)))
    return out


def _move(e: Emitter, op: Op) -> None:
    """Reshape, transpose, slice: other names for the same registers, or through shared memory."""
    src, t = e.tile(op.operands[0]), op.result.type
    target = layout_of(t)
    if op.name == "slice":
        cut = sliced(src.layout, src.shape, op.attrs["starts"], op.attrs["limits"])
        if cut is not None:
            e.values[op.result] = convert(e, Regs(t.dtype, t.shape, cut[0], [src.names[r] for r in cut[1]]), target)
            return
        steps = [int(s) for s in strides(src.shape)]
        start = sum(a * s for a, s in zip(op.attrs["starts"], steps, strict=True))
        e.define(op, rearranged(e, [(src, steps, 0)], t, target, steps, start))
        return
    made = produced(op, src.layout)
    if made is not None:
        e.values[op.result] = convert(e, Regs(t.dtype, t.shape, made, src.names), target)
        return
    e.define(op, rearranged(e, [(src, _steps(src.shape), 0)], t, target, _steps(t.shape), 0))


def _steps(shape: Sequence[int]) -> list[int]:
    return [int(s) for s in strides(tuple(shape))]


def _concat(e: Emitter, op: Op) -> None:
    t, axis = op.result.type, int(op.attrs.get("axis", 0))
    steps, at, parts = _steps(t.shape), 0, []
    for v in op.operands:
        part = e.tile(v)
        parts.append((part, steps, at * steps[axis]))
        at += part.shape[axis]
    e.define(op, rearranged(e, parts, t, layout_of(t), steps, 0))


def _exchange(e: Emitter, op: Op) -> None:
    """Lanes and registers whose numbers differ in some bits change places; what lies in another warp comes through shared memory."""
    t, axis = e.tile(op.operands[0]), int(op.attrs.get("axis", 0))
    layout = t.layout
    mask = int(op.attrs["mask"]) << layout.shift(axis)
    registers, lanes = layout.bases("reg"), layout.bases("lane")
    place = solve([*registers, *lanes], mask)
    if place is None:
        e.define(op, _exchanged_in_memory(e, t, mask))
        return
    register, lane = place & ((1 << len(registers)) - 1), place >> len(registers)
    moved = shuffles_xor(e, t.dtype, t.names, lane) if lane else t.names
    e.define(op, [moved[r ^ register] for r in range(len(moved))])


def _exchanged_in_memory(e: Emitter, t: Regs, mask: int) -> list[str]:
    w, element = e.w, memory_type(t.dtype)
    base = e.exchange((1 << t.layout.dim) * t.dtype.itemsize)
    steps = [1 << t.layout.shift(a) for a in range(len(t.shape))]
    numbers = [element_number(e, t.layout, t.shape, r, steps) for r in range(len(t.names))]
    e.order.touch(EXCHANGE, True)
    places = [w.address(element, SHARED, base, n) for n in numbers]
    e.guarded([e.owner(t.layout)] * len(places), _putter(e, t.dtype, places, t.names))
    e.order.touch(EXCHANGE, False)
    return [read(e, t.dtype, SHARED, w.address(element, SHARED, base, w.let(f"xor i64 {n}, {mask}"))) for n in numbers]


def rearranged(e: Emitter, parts: Sequence[tuple[Regs, Sequence[int], int]], t: TileType, target: Layout, steps: Sequence[int],
               start: int) -> list[str]:
    """Tiles written to shared memory at (strides, first place) each and read back as a tile at other ones."""
    w, element = e.w, memory_type(t.dtype)
    size = start + sum((n - 1) * s for n, s in zip(_padded(target), steps, strict=True)) + 1
    size = max([size, *(at + sum((n - 1) * s for n, s in zip(p.shape, own, strict=True)) + 1 for p, own, at in parts)])
    base = e.exchange(size * t.dtype.itemsize)
    e.order.touch(EXCHANGE, True)
    for part, own, first in parts:
        addresses = [w.address(element, SHARED, base, _plus(e, element_number(e, part.layout, part.shape, r, own), first))
                     for r in range(len(part.names))]
        owner = e.owner(part.layout)
        e.guarded([e.both(owner, e.inside(part.layout, part.shape, r)) for r in range(len(part.names))],
                  _putter(e, t.dtype, addresses, part.names))
    e.order.touch(EXCHANGE, False)
    return [read(e, t.dtype, SHARED, w.address(element, SHARED, base, _plus(e, element_number(e, target, t.shape, r, steps), start)))
            for r in range(1 << len(target.bases("reg")))]


def _putter(e: Emitter, dtype: DType, places: Sequence[str], values: Sequence[str]) -> Callable[[int], None]:
    """What stores value ``r`` at address ``r`` of shared memory."""
    return lambda r: write(e, dtype, SHARED, places[r], values[r])


def _padded(layout: Layout) -> list[int]:
    return [1 << b for b in layout.bits]


def _plus(e: Emitter, number: str, more: int) -> str:
    if more == 0:
        return number
    if not number.startswith("%"):
        return str(int(number) + more)
    return e.w.once(("plus", number, more), lambda: e.w.let(f"add i64 {number}, {more}"))


def _extract(e: Emitter, op: Op) -> None:
    """One element, for all threads."""
    src, w = e.tile(op.operands[0]), e.w
    layout, flat = src.layout, 0
    for axis, i in enumerate(op.attrs["index"]):
        flat |= int(i) << layout.shift(axis)
    place = layout.inverse().element(element=flat)
    at = []
    for name in PLACES:
        n = len(layout.bases(name))
        at.append(place & ((1 << n) - 1))
        place >>= n
    register, lane, warp = at
    base = e.exchange(16)
    e.order.touch(EXCHANGE, True)
    number = warp * e.machine.lanes + lane
    here = w.once(("thread is", number), lambda: w.let(f"icmp eq i32 {w.thread_id()}, {number}"))
    e.guarded([here], lambda _: write(e, src.dtype, SHARED, base, src.names[register]))
    e.order.touch(EXCHANGE, False)
    e.values[op.result] = read(e, src.dtype, SHARED, base)


# -- reductions --------------------------------------------------------------------------------------------------------------------
def _reduce(e: Emitter, op: Op) -> None:
    """The halving tree, from the axis's highest bit down: between registers, then lanes; warps pass through shared memory."""
    t, out, axis = e.tile(op.operands[0]), op.result.type, int(op.attrs["axis"])
    n, name = t.shape[axis], COMBINE[op.attrs["combine"]]
    while n > 1:
        bit = (n - 1).bit_length() - 1
        unit = 1 << (t.layout.shift(axis) + bit)
        if unit in t.layout.bases("warp"):
            t = convert(e, t, _warps_freed(t.layout))
        names = _fold(e, t, axis, bit, unit, n, name)
        n = 1 << bit
        shape = (*t.shape[:axis], n, *t.shape[axis + 1:])
        bits = (*t.layout.bits[:axis], bit, *t.layout.bits[axis + 1:])
        thin = t.layout.clipped(bits)
        kept = [i for i, c in enumerate(thin.bases("reg")) if c]
        t = Regs(t.dtype, shape, thin.compact(),
                 [names[sum(1 << i for j, i in enumerate(kept) if r >> j & 1)] for r in range(1 << len(kept))])
    if isinstance(out, ScalarType):
        e.values[op.result] = t.names[0]
        return
    made = t.layout.without(axis).compact()
    e.values[op.result] = convert(e, Regs(out.dtype, out.shape, made, t.names), layout_of(out))


def _warps_freed(layout: Layout) -> Layout:
    """The layout with every warp holding everything: what warps held apart lies in more registers."""
    held = [c for c in layout.bases("warp") if c]
    return Layout(layout.bits, tuple((p, (*cs, *held) if p == "reg" else (0,) * len(cs) if p == "warp" else cs)
                                     for p, cs in layout.places))


def _fold(e: Emitter, t: Regs, axis: int, bit: int, unit: int, n: int, name: str) -> list[str]:
    """Element ``i`` takes in element ``i + 2**bit`` along the axis where that is below ``n``."""
    w, layout, rep = e.w, t.layout, representation(t.dtype)
    regs, lanes = layout.bases("reg"), layout.bases("lane")
    out = list(t.names)

    def combine(a: str, b: str) -> str:
        return pointwise(w, name, (a, b), (t.dtype, t.dtype), t.dtype, 1)

    if unit in regs:
        step = 1 << regs.index(unit)
        for r in range(len(out)):
            if not r & step:
                exists = e.inside(layout, _with(t.shape, axis, n), r | step)
                if exists != "false":
                    both = combine(t.names[r], t.names[r | step])
                    out[r] = both if exists is None else w.select(exists, rep, 1, both, t.names[r])
        return out
    step = 1 << lanes.index(unit)
    upper = w.once(("upper", step), lambda: w.let(f"icmp ne i32 {w.let(f'and i32 {w.lane_id()}, {step}')}, 0"))
    whole = n == 2 << bit
    for r, (own, other) in enumerate(zip(t.names, shuffles_xor(e, t.dtype, t.names, step), strict=True)):
        if whole:
            out[r] = combine(own, other)
            continue
        low, high = w.select(upper, rep, 1, other, own), w.select(upper, rep, 1, own, other)
        exists = _partner_exists(e, layout, axis, bit, n, r)
        both = combine(low, high)
        out[r] = both if exists is None else low if exists == "false" else w.select(exists, rep, 1, both, low)
    return out


def _with(shape: Sequence[int], axis: int, n: int) -> tuple[int, ...]:
    """A shape of no bound but along one axis."""
    return tuple(n if a == axis else 1 << 62 for a in range(len(shape)))


def _partner_exists(e: Emitter, layout: Layout, axis: int, bit: int, n: int, register: int) -> str | None:
    """Whether the register's element with ``bit`` of the axis's index set is below ``n``, for both lanes of a pair."""
    w, low = e.w, layout.shift(axis)
    own = layout.index(layout.element(reg=register))[axis]
    rest = w.thread_part(layout, low, low + bit)
    if rest == "0":
        return None if own + (1 << bit) < n else "false"
    limit = n - (1 << bit) - own
    return "false" if limit <= 0 else w.once(("partner", rest, limit), lambda: w.let(f"icmp ult i32 {rest}, {limit}"))


# -- products ------------------------------------------------------------------------------------------------------------------------
UNROLLED = 8  # steps of k that are written out


def _dot(e: Emitter, op: Op) -> None:
    """Each thread goes through k in order, one fma a step: over its own registers where they hold all that its part of the result is
    made of, else both operands lie in shared memory in the accumulator's dtype."""
    if op.attrs.get("unit") is not None:
        raise CompileError(f"{e.machine.name} has no matrix instruction {op.attrs['unit']!r}", loc=op.loc)
    a, b, acc = (e.tile(v) for v in op.operands)
    if (a.layout, b.layout) == factors_of(acc.layout, a.shape[1]):
        e.define(op, _chains(e, a, b, acc))
        return
    w, dtype = e.w, acc.dtype
    element = memory_type(dtype)
    rows, columns = (1 << x for x in acc.layout.bits)
    k = a.shape[1]
    pitch = k | 1  # odd: rows lie in different banks
    split = -(-rows * pitch // 4) * 4
    base = e.exchange((split + k * columns) * dtype.itemsize)
    e.order.touch(EXCHANGE, True)
    for t, steps, first in ((a, (pitch, 1), 0), (b, (columns, 1), split)):
        owner = e.owner(t.layout)
        values = [pointwise(w, "convert", (n,), (t.dtype,), dtype, 1) for n in t.names]
        places = [w.address(element, SHARED, base, _plus(e, element_number(e, t.layout, t.shape, r, steps), first))
                  for r in range(len(values))]
        e.guarded([e.both(owner, e.inside(t.layout, t.shape, r)) for r in range(len(values))], _putter(e, dtype, places, values))
    e.order.touch(EXCHANGE, False)
    e.define(op, _accumulate(e, acc, base, split, pitch, columns, k))


def _chains(e: Emitter, a: Regs, b: Regs, acc: Regs) -> list[str]:
    """Products and sums of what the thread holds."""
    w, dtype = e.w, acc.dtype

    def held(t: Regs) -> dict[tuple[int, ...], str]:
        return {t.layout.index(t.layout.element(reg=r)): pointwise(w, "convert", (n,), (t.dtype,), dtype, 1) for r, n in enumerate(t.names)}

    left, right, names = held(a), held(b), list(acc.names)
    index = [acc.layout.index(acc.layout.element(reg=r)) for r in range(len(names))]
    for k in range(a.shape[1]):
        names = [pointwise(w, "fma", (left[i, k], right[k, j], c), (dtype,) * 3, dtype, 1) for (i, j), c in zip(index, names, strict=True)]
    return names


def _accumulate(e: Emitter, acc: Regs, base: str, split: int, pitch: int, columns: int, k: int) -> list[str]:
    """The chain of fmas over all k."""
    w, dtype, layout = e.w, acc.dtype, acc.layout
    element, rep = memory_type(dtype), representation(dtype)
    index = [layout.index(layout.element(reg=r)) for r in range(len(acc.names))]
    row0 = element_number(e, layout, acc.shape, 0, (pitch, 0))
    column0 = element_number(e, layout, acc.shape, 0, (0, 1))
    a0 = w.address(element, SHARED, base, row0)
    b0 = w.address(element, SHARED, w.address(element, SHARED, base, str(split)), column0)

    def step(names: Sequence[str], a_at: str, b_at: str, offset: int) -> list[str]:
        left = {i: read(e, dtype, SHARED, w.address(element, SHARED, a_at, str(i * pitch + offset))) for i in sorted({x[0] for x in index})}
        right = {j: read(e, dtype, SHARED, w.address(element, SHARED, b_at, str(j + offset * columns)))
                 for j in sorted({x[1] for x in index})}
        return [pointwise(w, "fma", (left[i], right[j], c), (dtype,) * 3, dtype, 1) for (i, j), c in zip(index, names, strict=True)]

    names = list(acc.names)
    whole = k // UNROLLED if k > 2 * UNROLLED else 0
    if whole:
        before, loop, done = w.label, w.new_label("k"), w.new_label("k.end")
        w.branch(loop)
        w.start(loop)
        at = e.reserve()
        i, held = w.fresh(), [w.fresh() for _ in names]
        a_at = w.address(element, SHARED, a0, i)
        b_at = w.address(element, SHARED, b0, w.let(f"mul i64 {i}, {columns}"))
        new: list[str] = list(held)
        for u in range(UNROLLED):
            new = step(new, a_at, b_at, u)
        following = w.let(f"add i64 {i}, {UNROLLED}")
        e.write_phis(at, [(i, "i64"), *((h, rep) for h in held)], [(["0", *names], before), ([following, *new], w.label)])
        w.branch_if(w.let(f"icmp ult i64 {following}, {whole * UNROLLED}"), loop, done)
        w.start(done)
        names = new
    for u in range(whole * UNROLLED, k):
        names = step(names, a0, b0, u)
    return names


HANDLERS: dict[str, Handler] = {
    "constant": _constant, "full": _constant, "splat": _splat, "iota": _iota, "program_id": _program_id, "size": _size,
    "broadcast": _broadcast, "relayout": _relayout, "reshape": _move, "transpose": _move, "slice": _move, "concat": _concat,
    "exchange": _exchange,
    "extract": _extract, "reduce": _reduce, "dot": _dot,
}

__all__ = ["COMBINE", "HANDLERS", "convert", "rearranged", "shuffle_xor", "through_shared"]
