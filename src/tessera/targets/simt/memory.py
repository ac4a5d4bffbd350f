"""Loads and stores, gathers and scatters, scratch memory, run-time checks."""

from __future__ import annotations

from collections.abc import Sequence
from math import gcd, prod
from typing import TYPE_CHECKING, Any

from ...errors import CompileError
from ...ir.core import Op, ScalarType, Value
from ...ir.tile import root, tile_axes
from ...tiling.layouts import Layout, free_bits
from ...types.dims import product
from ...types.dtypes import DType, int64
from ..cpu import abi
from ..cpu.emit_pointwise import pointwise
from ..cpu.emit_writer import constant_bits, memory_type, representation, splat_literal
from .values import EXCHANGE, Memory, Regs, dim_divisor, divisor, layout_of, strides
from .writer import GLOBAL, SHARED

if TYPE_CHECKING:
    from .emit import Emitter, Handler


# -- one element -------------------------------------------------------------------------------------------------------------
def read(e: Emitter, dtype: DType, space: int, pointer: str) -> str:
    """The element at an address, as it is held in registers."""
    element = memory_type(dtype)
    got = e.w.let(f"load {element}, ptr addrspace({space}) {pointer}, align {max(1, dtype.itemsize)}")
    return e.w.let(f"icmp ne i8 {got}, 0") if dtype.kind == "bool" else got


def write(e: Emitter, dtype: DType, space: int, pointer: str, value: str) -> None:
    """Put an element at an address."""
    if dtype.kind == "bool":
        value = e.w.let(f"zext i1 {value} to i8")
    e.w.line(f"store {memory_type(dtype)} {value}, ptr addrspace({space}) {pointer}, align {max(1, dtype.itemsize)}")


def read_vector(e: Emitter, dtype: DType, space: int, pointer: str, n: int) -> list[str]:
    """``n`` elements at an address that is a multiple of their size."""
    if n == 1:
        return [read(e, dtype, space, pointer)]
    w, element = e.w, memory_type(dtype)
    t = f"<{n} x {element}>"
    got = w.let(f"load {t}, ptr addrspace({space}) {pointer}, align {n * dtype.itemsize}")
    parts = [w.let(f"extractelement {t} {got}, i32 {i}") for i in range(n)]
    return [w.let(f"icmp ne i8 {p}, 0") for p in parts] if dtype.kind == "bool" else parts


def write_vector(e: Emitter, dtype: DType, space: int, pointer: str, values: Sequence[str]) -> None:
    """Put elements at an address that is a multiple of their size."""
    if len(values) == 1:
        write(e, dtype, space, pointer, values[0])
        return
    w, element = e.w, memory_type(dtype)
    t, made = f"<{len(values)} x {element}>", "poison"
    for i, v in enumerate(values):
        v = w.let(f"zext i1 {v} to i8") if dtype.kind == "bool" else v
        made = w.let(f"insertelement {t} {made}, {element} {v}, i32 {i}")
    w.line(f"store {t} {made}, ptr addrspace({space}) {pointer}, align {len(values) * dtype.itemsize}")


def fill_of(op: Op, dtype: DType) -> str:
    """What a lane outside gets."""
    rep = representation(dtype)
    return splat_literal(rep, constant_bits(dtype, op.attrs.get("fill", 0)), 1)


# -- tiles in memory -----------------------------------------------------------------------------------------------------------
class Access:
    """Where the elements of a load's or store's tile lie in its buffer."""

    def __init__(self, e: Emitter, op: Op, layout: Layout, shape: tuple[int, ...]):
        self.e, self.op, self.layout, self.shape = e, op, layout, shape
        self.buffer = op.operands[0]
        self.memory: Memory = e.memory(self.buffer)
        self.rank = self.memory.type.rank
        self.offsets = list(op.operands[1:1 + self.rank])
        self.axes = tile_axes(op)
        self.strides = strides(self.memory.type.shape)
        self.checked = tuple(op.attrs.get("check", ()))
        self.element = memory_type(self.memory.type.dtype)
        self._first: str | None = None
        self._base: str | None = None
        self._tests: dict[Any, str | None] = {}

    @property
    def key(self) -> Any:
        """Equal keys touch the same elements with the same threads; None where threads hold copies."""
        if any(free_bits(self.layout).values()):
            return None
        return (tuple(self.e.scalar(v) for v in self.offsets), self.axes, self.shape, self.layout, self.memory.type.shape)

    # -- addresses ---------------------------------------------------------------------------------------------------------
    def first(self) -> str:
        """The offset of the thread's first element, in elements."""
        if self._first is None:
            w, at = self.e.w, "0"
            for v, s in zip(self.offsets, self.strides, strict=True):
                at = _sum(w, at, _product(w, self.e.scalar(v), w.dim(s)))
            for t, axis in enumerate(self.axes):
                low = self.layout.shift(t)
                own = w.wide(w.thread_part(self.layout, low, low + self.layout.bits[t]))
                at = _sum(w, at, _product(w, own, w.dim(self.strides[axis])))
            self._first = at
        return self._first

    def base(self) -> str:
        """The address of the thread's first element."""
        if self._base is None:
            self._base = self.e.w.address(self.element, self.memory.space, self.memory.pointer, self.first())
        return self._base

    def _further(self, register: int) -> str:
        """How many elements a register's lies behind the first."""
        index = self.layout.index(self.layout.element(reg=register))
        at: Any = 0
        for t, axis in enumerate(self.axes):
            at = at + index[t] * self.strides[axis]
        return self.e.w.dim(at)

    def address(self, register: int, test: str | None = None, width: int = 1) -> str:
        """The address of a register's element; where the test fails, of some ``width`` elements of the buffer that may be read."""
        w, further = self.e.w, self._further(register)
        if test is None:
            return w.address(self.element, self.memory.space, self.base(), further)
        at = within(self.e, self.memory, _sum(w, self.first(), further), width)
        return w.address(self.element, self.memory.space, self.memory.pointer, at)

    # -- tests -------------------------------------------------------------------------------------------------------------
    def test(self, register: int) -> str | None:
        """Whether a register's element takes part: within the tile and, along checked axes, within the buffer."""
        index = self.layout.index(self.layout.element(reg=register))
        tests = [self.e.inside(self.layout, self.shape, register)]
        for axis in self.checked:
            t = self.axes.index(axis) if axis in self.axes else None
            tests.append(self._bound(axis, t, index[t] if t is not None else 0))
        key = tuple(tests)
        if key not in self._tests:
            self._tests[key] = self.e.both(*tests)
        return self._tests[key]

    def _bound(self, axis: int, t: int | None, own: int) -> str | None:
        key = (axis, own)
        if key not in self._tests:
            w, at = self.e.w, self.e.scalar(self.offsets[axis])
            if t is not None:
                low = self.layout.shift(t)
                at = _sum(w, at, w.wide(w.thread_part(self.layout, low, low + self.layout.bits[t])))
                at = _sum(w, at, str(own))
            n = w.dim(self.memory.type.shape[axis])
            self._tests[key] = w.let(f"icmp ult i64 {at}, {n}")
        return self._tests[key]

    # -- vectors -----------------------------------------------------------------------------------------------------------
    def vector(self, masked: bool) -> int:
        """Registers that one access moves: neighbours in memory, at an address that is a multiple of their size, inside or
        outside together."""
        last = self.rank - 1
        if masked or last not in self.axes or not (self.e.aligned or self.memory.space == SHARED):
            return 1
        t = self.axes.index(last)
        low, n = self.layout.shift(t), 0
        for i, c in enumerate(self.layout.bases("reg")):
            if c != 1 << (low + i) or i >= self.layout.bits[t]:
                break
            n += 1
        width = min(1 << n, max(1, 16 // self.memory.type.dtype.itemsize))
        while width > 1 and not self._fits(width, t, last):
            width //= 2
        return width

    def _fits(self, width: int, t: int, last: int) -> bool:
        whole = 0
        for v, s in zip(self.offsets, self.strides, strict=True):
            whole = gcd(whole, divisor(v, self.e.loops) * dim_divisor(s))
        for axis in self.axes:
            if axis != last:
                whole = gcd(whole, dim_divisor(self.strides[axis]))
        if whole % width or self.shape[t] % width:
            return False
        return last not in self.checked or (
            dim_divisor(self.memory.type.shape[last]) % width == 0 and divisor(self.offsets[last], self.e.loops) % width == 0)


def within(e: Emitter, memory: Memory, offset: str, width: int = 1) -> str:
    """The offset, or that of the buffer's last ``width`` elements where it lies outside: what may be read, whatever a test says.
    (A ``select`` by the test would say the same; Intel's CPU compiler gets some of those wrong.)"""
    w = e.w
    total = w.dim(product(memory.type.shape))
    last = w.once(("last", total, width), lambda: str(max(width, int(total)) - width) if not total.startswith("%") else w.let(
        f"sub i64 {w.intrinsic('umax', 'i64', 1, total, str(width))}, {width}"))
    return w.intrinsic("umin", "i64", 1, offset, last)


def _sum(w: Any, a: str, b: str) -> str:
    return b if a == "0" else a if b == "0" else str(w.let(f"add i64 {a}, {b}"))


def _product(w: Any, a: str, b: str) -> str:
    if "0" in (a, b):
        return "0"
    return a if b == "1" else b if a == "1" else str(w.let(f"mul i64 {a}, {b}"))


def _load(e: Emitter, op: Op) -> None:
    out = op.result.type
    mask = op.operands[-1] if op.attrs.get("masked") else None
    if isinstance(out, ScalarType):
        _load_scalar(e, op, out.dtype, mask)
        return
    layout = layout_of(out)
    access = Access(e, op, layout, out.shape)
    e.order.touch(root(access.buffer), False, access.key)
    lanes = e.tile(mask).names if mask is not None else None
    width, fill = access.vector(mask is not None), fill_of(op, out.dtype)
    names: list[str] = []
    for r in range(0, 1 << len(layout.bases("reg")), width):
        test = e.both(access.test(r), lanes[r] if lanes is not None else None)
        if test == "false":
            names += [fill] * width
            continue
        got = read_vector(e, out.dtype, access.memory.space, access.address(r, test, width), width)
        rep = representation(out.dtype)
        names += got if test is None else [e.w.select(test, rep, 1, g, fill) for g in got]
    e.define(op, names)


def _scalar_access(e: Emitter, op: Op, mask: Value | None) -> tuple[Memory, str, str | None]:
    """(memory, address, test) of a load or store of one element; where the test fails the address may still be read."""
    memory, w = e.memory(op.operands[0]), e.w
    at, tests = "0", [e.scalar(mask) if mask is not None else None]
    for k, s in enumerate(strides(memory.type.shape)):
        v = e.scalar(op.operands[1 + k])
        if k in op.attrs.get("check", ()):
            tests.append(w.let(f"icmp ult i64 {v}, {w.dim(memory.type.shape[k])}"))
        at = _sum(w, at, _product(w, v, w.dim(s)))
    test = e.both(*tests)
    at = at if test is None else within(e, memory, at)
    return memory, w.address(memory_type(memory.type.dtype), memory.space, memory.pointer, at), test


def _load_scalar(e: Emitter, op: Op, dtype: DType, mask: Value | None) -> None:
    e.order.touch(root(op.operands[0]), False)
    memory, pointer, test = _scalar_access(e, op, mask)
    got = read(e, dtype, memory.space, pointer)
    e.values[op.result] = got if test is None else e.w.select(test, representation(dtype), 1, got, fill_of(op, dtype))


def _first_thread(e: Emitter) -> str:
    return e.w.once("first", lambda: e.w.let(f"icmp eq i32 {e.w.thread_id()}, 0"))


def _store(e: Emitter, op: Op) -> None:
    rank = op.operands[0].type.rank
    value, mask = op.operands[1 + rank], op.operands[-1] if op.attrs.get("masked") else None
    if isinstance(value.type, ScalarType):
        e.order.touch(root(op.operands[0]), True)
        memory, pointer, test = _scalar_access(e, op, mask)
        e.guarded([e.both(_first_thread(e), test)],
                  lambda _: write(e, memory.type.dtype, memory.space, pointer, e.scalar(value)))
        return
    t = e.tile(value)
    access = Access(e, op, t.layout, t.shape)
    e.order.touch(root(access.buffer), True, access.key)
    lanes = e.tile(mask).names if mask is not None else None
    width, owner = access.vector(mask is not None), e.owner(t.layout)
    starts = range(0, len(t.names), width)
    access.base()
    tests = [e.both(owner, access.test(r), lanes[r] if lanes is not None else None) for r in starts]

    def put(i: int) -> None:
        r = starts[i]
        write_vector(e, t.dtype, access.memory.space, access.address(r), t.names[r:r + width])

    e.guarded(tests, put)


# -- single elements at computed places ------------------------------------------------------------------------------------------
def _gather(e: Emitter, op: Op) -> None:
    buffer, where, out = op.operands[0], op.operands[1], op.result.type
    memory, w = e.memory(buffer), e.w
    mask = op.operands[2] if op.attrs.get("masked") else None
    element, fill = memory_type(out.dtype), fill_of(op, out.dtype)
    e.order.touch(root(buffer), False)

    def one(at: str, test: str | None) -> str:
        if test == "false":
            return fill
        at = at if test is None else within(e, memory, at)
        got = read(e, out.dtype, memory.space, w.address(element, memory.space, memory.pointer, at))
        return got if test is None else w.select(test, representation(out.dtype), 1, got, fill)

    if isinstance(out, ScalarType):
        e.values[op.result] = one(e.scalar(where), e.scalar(mask) if mask is not None else None)
        return
    index = e.tile(where)
    lanes = e.tile(mask).names if mask is not None else [None] * len(index.names)
    e.define(op, [one(at, e.both(e.inside(index.layout, index.shape, r), m))
                  for r, (at, m) in enumerate(zip(index.names, lanes, strict=True))])


def _scatter(e: Emitter, op: Op) -> None:
    buffer, where, value = op.operands[:3]
    memory, w = e.memory(buffer), e.w
    mask = op.operands[3] if op.attrs.get("masked") else None
    element = memory_type(value.type.dtype)
    if isinstance(value.type, ScalarType):
        e.order.touch(root(buffer), True)
        test = e.both(_first_thread(e), e.scalar(mask) if mask is not None else None)
        pointer = w.address(element, memory.space, memory.pointer, e.scalar(where))
        e.guarded([test], lambda _: write(e, value.type.dtype, memory.space, pointer, e.scalar(value)))
        return
    index, t = e.tile(where), e.tile(value)
    lanes = e.tile(mask).names if mask is not None else [None] * len(index.names)
    tests = [e.both(e.inside(t.layout, t.shape, r), m) for r, m in enumerate(lanes)]
    last = tests if op.attrs.get("distinct") else _last_of_equals(e, index, tests)
    e.order.touch(root(buffer), True)
    owner = e.owner(t.layout)

    def put(r: int) -> None:
        pointer = w.address(element, memory.space, memory.pointer, index.names[r])
        write(e, t.dtype, memory.space, pointer, t.names[r])

    e.guarded([e.both(owner, x) for x in last], put)


def _last_of_equals(e: Emitter, index: Regs, tests: Sequence[str | None]) -> list[str | None]:
    """Of the lanes that write one element, only the last does: each compares its offset with those of all later lanes."""
    w, n = e.w, prod(index.shape)
    numbers = [element_number(e, index.layout, index.shape, r) for r in range(len(index.names))]
    base = e.exchange(8 * n)
    e.order.touch(EXCHANGE, True)

    def put(r: int) -> None:
        test, at = tests[r], index.names[r]
        if test is not None:
            at = w.select(test, "i64", 1, at, "-1")
        write(e, int64, SHARED, w.address("i64", SHARED, base, numbers[r]), at)

    e.guarded([e.inside(index.layout, index.shape, r) for r in range(len(numbers))], put)
    e.order.touch(EXCHANGE, False)
    before, loop, done = w.label, w.new_label("later"), w.new_label("known")
    w.branch(loop)
    w.start(loop)
    at = e.reserve()
    j, kept = w.fresh(), [w.fresh() for _ in numbers]
    other = read(e, int64, SHARED, w.address("i64", SHARED, base, j))
    after = []
    for own, number, k in zip(index.names, numbers, kept, strict=True):
        later = w.let(f"icmp ugt i64 {j}, {number}")
        same = w.let(f"icmp eq i64 {other}, {own}")
        beaten = w.let(f"and i1 {later}, {same}")
        after.append(w.select(beaten, "i1", 1, "false", k))
    following = w.let(f"add i64 {j}, 1")
    e.write_phis(at, [(j, "i64"), *((k, "i1") for k in kept)],
                 [(["0", *["true"] * len(kept)], before), ([following, *after], w.label)])
    w.branch_if(w.let(f"icmp ult i64 {following}, {n}"), loop, done)
    w.start(done)
    return [e.both(t, k) for t, k in zip(tests, after, strict=True)]


def _atomic(e: Emitter, op: Op) -> None:
    """Integers combined in memory; the order of threads does not change the result."""
    buffer, where, value = op.operands
    memory, w = e.memory(buffer), e.w
    dtype, element = value.type.dtype, memory_type(value.type.dtype)
    combine = op.attrs["combine"]
    unsigned = "u" if combine in ("max", "min") and dtype.kind == "uint" else ""
    e.order.touch(root(buffer), False, "atomic")
    e.order.touch(root(buffer), True, "atomic")

    def one(at: str, number: str) -> None:
        pointer = w.address(element, memory.space, memory.pointer, at)
        w.let(f"atomicrmw {unsigned}{combine} ptr addrspace({memory.space}) {pointer}, {element} {number} {e.vendor.scope}monotonic, "
              f"align {dtype.itemsize}")

    if isinstance(value.type, ScalarType):
        e.guarded([_first_thread(e)], lambda _: one(e.scalar(where), e.scalar(value)))
        return
    index, t = e.tile(where), e.tile(value)
    owner = e.owner(t.layout)
    e.guarded([e.both(owner, e.inside(t.layout, t.shape, r)) for r in range(len(t.names))], lambda r: one(index.names[r], t.names[r]))


def element_number(e: Emitter, layout: Layout, shape: Sequence[int], register: int, steps: Sequence[int] | None = None) -> str:
    """A register's element as a row-major number over the tile's own extents (or other strides), an i64."""
    w, steps = e.w, list(steps) if steps is not None else [int(s) for s in strides(tuple(shape))]
    index = layout.index(layout.element(reg=register))
    own = w.once(("number", layout, tuple(steps)), lambda: _thread_number(e, layout, steps))
    fixed = sum(i * s for i, s in zip(index, steps, strict=True))
    if own == "0":
        return str(fixed)
    return own if fixed == 0 else w.once(("number", own, fixed), lambda: w.let(f"add i64 {own}, {fixed}"))


def _thread_number(e: Emitter, layout: Layout, steps: Sequence[int]) -> str:
    w, total = e.w, "0"
    for axis, s in enumerate(steps):
        low = layout.shift(axis)
        total = _sum(w, total, _product(w, w.wide(w.thread_part(layout, low, low + layout.bits[axis])), str(s)))
    return total


# -- scratch -------------------------------------------------------------------------------------------------------------------
def _alloc(e: Emitter, op: Op) -> None:
    space, at = e.places[op.result]
    w = e.w
    pointer = w.once(("alloc", op.result), lambda: w.address("i8", space, "@shared" if space == SHARED else "%mine", str(at)))
    e.values[op.result] = Memory(pointer, space, op.result.type)


def _view(e: Emitter, op: Op) -> None:
    source = e.memory(op.operands[0])
    e.values[op.result] = Memory(source.pointer, source.space, op.result.type)


def _prefetch(e: Emitter, op: Op) -> None:
    """A hint, which other threads at work make needless."""


# -- checks --------------------------------------------------------------------------------------------------------------------
def _check(e: Emitter, op: Op) -> None:
    """Record the least (site, value) of the checks that failed."""
    w, site = e.w, int(op.attrs["site"])
    if not 0 <= site <= abi.MAX_SITE:
        raise CompileError(f"check: site {site} does not fit the status word", loc=op.loc)
    ok, value = (e.values[v] for v in op.operands)
    dtype = op.operands[1].type.dtype
    oks, values = (v.names if isinstance(v, Regs) else [v] for v in (ok, value))
    failed = []
    for r, held in enumerate(oks):
        inside = e.inside(ok.layout, ok.shape, r) if isinstance(ok, Regs) else None
        failed.append(e.both(inside, w.let(f"xor i1 {held}, true")))

    def report(r: int) -> None:
        wide = pointwise(w, "convert", (values[r],), (dtype,), int64, 1)
        low = w.let(f"and i64 {wide}, {(1 << abi.VALUE_BITS) - 1}")
        word = site << abi.VALUE_BITS
        word -= (1 << 64) if word >> 63 else 0
        w.let(f"atomicrmw umin ptr addrspace({GLOBAL}) %status, i64 {w.let(f'or i64 {low}, {word}')} "
              f"{e.vendor.scope}monotonic, align 8")

    e.guarded(failed, report)


HANDLERS: dict[str, Handler] = {
    "load": _load, "store": _store, "gather": _gather, "scatter": _scatter, "atomic": _atomic, "alloc": _alloc, "view": _view,
    "prefetch": _prefetch, "check": _check,
}

__all__ = ["HANDLERS", "Access", "element_number", "read", "read_vector", "write", "write_vector"]
