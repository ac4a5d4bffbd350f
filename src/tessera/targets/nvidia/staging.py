"""Tiles in swizzled shared memory: copies of threads into it, and loads and stores, by matrices where the layout allows."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

from ...errors import CompileError
from ...ir.core import Op, ScalarType, Value
from ...ir.tile import root
from ...tiling.divisors import dim_divisor, divisor
from ...tiling.layouts import Layout
from ...types.dtypes import DType
from ..cpu.emit_writer import memory_type, representation, splat_literal
from ..simt import memory as simt_memory
from ..simt.emit import Emitter, Handler
from ..simt.memory import read, read_vector, write_vector
from ..simt.values import Memory, layout_of, strides
from ..simt.writer import SHARED
from .emit import NvEmitter, pack
from .fragments import Panels
from .mma import word


def _nv(e: Emitter) -> NvEmitter:
    assert isinstance(e, NvEmitter)
    return e


# -- copies --------------------------------------------------------------------------------------------------------------
def _copy_async(e: Emitter, op: Op) -> None:
    """16 bytes a thread at a time; what lies outside the buffer is filled with zeros."""
    x = _nv(e)
    source = op.operands[0]
    shared = op.operands[1 + source.type.rank]
    p, (_, columns) = Panels.of(shared), op.attrs["box"]
    if columns % (16 // p.itemsize):
        raise CompileError(f"copy_async moves 16 bytes at a time; a row of the box has {columns * p.itemsize}", loc=op.loc)
    if not x.grouped:
        x.order.meet_before_write(root(shared))
    pitch = source.type.shape[-1]
    if x.grouped or not x.aligned or dim_divisor(pitch) * p.itemsize % 16 == 0:
        _copy_chunks(x, op, x.aligned)
        return
    # Rows of this size may not begin at multiples of 16 bytes: the block asks once.
    w = x.w
    rest = w.let(f"and i64 {w.let(f'mul i64 {w.dim(pitch)}, {p.itemsize}')}, 15")
    chunks, single, done = w.new_label("chunks"), w.new_label("elements"), w.new_label("copied")
    w.branch_if(w.let(f"icmp eq i64 {rest}, 0"), chunks, single)
    for label, engine in ((chunks, True), (single, False)):
        w.start(label)
        _copy_chunks(x, op, engine)
        w.branch(done)
    w.start(done)


def _copy_chunks(x: NvEmitter, op: Op, engine: bool) -> None:
    """A box in chunks of 16 bytes: by ``cp.async``, or element by element where rows do not begin at multiples of that."""
    rows, columns = op.attrs["box"]
    chunks, threads = rows * (columns * op.operands[0].type.dtype.itemsize // 16), x.threads
    place = _Box(x, op)
    if engine:
        for first in range(0, chunks, threads):
            number = x.add(x.w.thread_id(), str(first))
            at = place.chunk(number)
            if first + threads <= chunks:
                place.by_engine(*at)
            else:
                x.where(x.w.let(f"icmp ult i32 {number}, {chunks}"), functools.partial(place.by_engine, *at))
        return
    # a loop, since it is long
    w = x.w
    own, before = w.thread_id(), w.label
    head, body, done = w.new_label("elements"), w.new_label("element"), w.new_label("elements.end")
    w.branch(head)
    w.start(head)
    phi, number = x.reserve(), w.fresh()
    w.branch_if(w.let(f"icmp ult i32 {number}, {chunks}"), body, done)
    w.start(body)
    place.by_elements(*place.chunk(number))
    following = w.let(f"add i32 {number}, {threads}")
    x.write_phis(phi, [(number, "i32")], [([own], before), ([following], w.label)])
    w.branch(head)
    w.start(done)


class _Box:
    """Where the chunks of a ``copy_async`` come from and go to."""

    def __init__(self, x: NvEmitter, op: Op):
        self.x, w, source = x, x.w, op.operands[0]
        rank = source.type.rank
        shared = op.operands[1 + rank]
        self.p, self.dtype = Panels.of(shared), source.type.dtype
        self.each = 16 // self.p.itemsize
        self.across = op.attrs["box"][1] // self.each
        self.base = x.matrix_at(shared, list(op.operands[2 + rank:]))
        self.memory: Memory = x.memory(source)
        steps = [w.dim(d) for d in strides(source.type.shape)]
        *leading, self.row, self.column = (x.scalar(v) for v in op.operands[1:1 + rank])
        self.height, self.width, self.pitch = w.dim(source.type.shape[-2]), w.dim(source.type.shape[-1]), steps[-2]
        self.outer = "0"
        for o, s in zip(leading, steps[:-2], strict=True):
            self.outer = w.let(f"add i64 {self.outer}, {w.let(f'mul i64 {o}, {s}')}")

    def chunk(self, number: str) -> tuple[str, str, str]:
        """(pointer into shared memory, first element of the source, how many of them exist) of a chunk."""
        x, w, p = self.x, self.x.w, self.p
        row, chunk = w.let(f"udiv i32 {number}, {self.across}"), w.let(f"urem i32 {number}, {self.across}")
        pointer = x.shared_at(x.add(self.base, chunk_offset(x, p, row, chunk)))
        r = w.let(f"add i64 {self.row}, {w.let(f'zext i32 {row} to i64')}")
        c = w.let(f"add i64 {self.column}, {w.let(f'zext i32 {x.times(chunk, self.each)} to i64')}")
        inside = x.both(w.let(f"icmp ult i64 {r}, {self.height}"), w.let(f"icmp ult i64 {c}, {self.width}"))
        left = w.let(f"sub i64 {self.width}, {c}")
        here = w.let(f"call i64 @llvm.smin.i64(i64 {left}, i64 {self.each})")
        here = w.let(f"select i1 {inside}, i64 {here}, i64 0")
        line = w.let(f"mul i64 {r}, {self.pitch}")
        at = w.let(f"add i64 {self.outer}, {w.let(f'add i64 {line}, {c}')}")
        return pointer, w.let(f"select i1 {inside}, i64 {at}, i64 0"), here

    def by_engine(self, pointer: str, at: str, count: str) -> None:
        w = self.x.w
        from_ = w.address(memory_type(self.dtype), self.memory.space, self.memory.pointer, at)
        nbytes = w.let(f"trunc i64 {w.let(f'mul i64 {count}, {self.p.itemsize}')} to i32")
        self.x.call("cp.async.cg.shared.global.16.s", f"ptr addrspace(3) {pointer}", f"ptr addrspace(1) {from_}", f"i32 {nbytes}")

    def by_elements(self, pointer: str, at: str, count: str) -> None:
        """By loads, each where there is an element, and one store of 16 bytes."""
        x, w, dtype = self.x, self.x.w, self.dtype
        rep, names = representation(dtype), []
        for i in range(self.each):
            exists = w.let(f"icmp sgt i64 {count}, {i}")
            place = w.let(f"select i1 {exists}, i64 {w.let(f'add i64 {at}, {i}')}, i64 0")
            got = read(x, dtype, self.memory.space, w.address(memory_type(dtype), self.memory.space, self.memory.pointer, place))
            names.append(w.select(exists, rep, 1, got, splat_literal(rep, 0, 1)))
        write_vector(x, dtype, SHARED, pointer, names)


def chunk_offset(x: NvEmitter, p: Panels, row: str, chunk: str) -> str:
    """Bytes from a matrix's start to a 16-byte chunk, permuted by its row."""
    w, per = x.w, p.span // 16
    panel, inner = w.let(f"udiv i32 {chunk}, {per}"), w.let(f"urem i32 {chunk}, {per}")
    if p.mask:
        phase = row if p.swizzle == 128 else w.let(f"lshr i32 {row}, {1 if p.swizzle == 64 else 2}")
        inner = w.let(f"xor i32 {inner}, {w.let(f'and i32 {phase}, {p.mask}')}")
    return x.add(x.times(panel, p.panel), x.times(row, p.span), x.times(inner, 16))


def _copy_commit(e: Emitter, op: Op) -> None:
    _nv(e).call("cp.async.commit.group")


def _copy_wait(e: Emitter, op: Op) -> None:
    x = _nv(e)
    x.call("cp.async.wait.group", f"i32 {op.attrs.get('pending', 0)}")
    if not x.grouped:
        x.order.barrier()  # each thread waited for its own copies


# -- matrices ------------------------------------------------------------------------------------------------------------
@functools.lru_cache(maxsize=1024)
def matrix_form(layout: Layout, itemsize: int) -> bool | None:
    """How ``ldmatrix`` fills a tile in this layout, four 8 x 8 matrices of 16-bit words a time: False by rows, True transposed, None not.

    Source: PTX ISA 9.0, "Warp-level matrix load instruction: ldmatrix".
    """
    reg, lane = layout.bases("reg"), layout.bases("lane")
    words = {1: 2, 2: 1}.get(itemsize, 0)  # register bits within a word of 32 bits
    if len(layout.bits) != 2 or not words or len(reg) < words + 2 or len(lane) != 5:
        return None
    row, each = 1 << layout.bits[1], 1 << words

    def whole(c: int) -> bool:
        return c % (8 * row) == 0 if c >= row else c % (4 * each) == 0

    if not all(whole(c) for c in (*reg[words:], *layout.bases("warp"))):
        return None
    if reg[:words] == tuple(1 << i for i in range(words)) and lane == (each, 2 * each, row, 2 * row, 4 * row):
        return False
    return True if itemsize == 2 and reg[0] == row and lane == (2 * row, 4 * row, 1, 2, 4) else None


def _matrix_rows(e: Emitter, op: Op, shape: tuple[int, ...], layout: Layout) -> tuple[list[str], bool] | None:
    """This lane's row for each ``ldmatrix`` or ``stmatrix`` of four matrices: (pointers, transposed); None: no such form."""
    x, w, buffer = _nv(e), e.w, op.operands[0]
    p, rank = Panels.of(buffer), buffer.type.rank
    places = op.operands[1:1 + rank]
    form = matrix_form(layout, p.itemsize)
    if form is None or tuple(op.attrs["axes"]) != (rank - 2, rank - 1) or shape != tuple(1 << b for b in layout.bits) or p.span % 16:
        return None
    if divisor(places[-2], e.loops) % 8 or divisor(places[-1], e.loops) % p.width:
        return None
    words, reg, columns = 1 if p.itemsize == 2 else 2, layout.bases("reg"), layout.bits[1]
    row = 1 << columns
    address = Layout(layout.bits, (("lane", (row, 2 * row, 4 * row, *reg[words:words + 2])), ("warp", layout.bases("warp"))))

    def lane() -> str:
        own_row, column = w.thread_part(address, columns, columns + layout.bits[0]), w.thread_part(address, 0, columns)
        chunk = w.let(f"udiv i32 {column}, {16 // p.itemsize}")
        return chunk_offset(x, p, own_row, chunk)

    thread = w.once(("matrix row", address, p), lane)
    base = x.matrix_at(buffer, list(places))
    pointers = []
    for r in range(0, 1 << len(reg), 1 << (words + 2)):
        down, along = layout.index(layout.element(reg=r))
        inside, turn = along % p.width * p.itemsize, thread
        if inside and p.swizzle:
            turn = w.once(("matrix chunk", thread, inside), functools.partial(_flipped, w, thread, inside))
            inside = 0
        pointers.append(x.shared_at(x.add(base, turn, str(down * p.span + along // p.width * p.panel + inside))))
    return pointers, form


def _flipped(w: Any, value: str, bits: int) -> str:
    return str(w.let(f"xor i32 {value}, {bits}"))


def _in_panels(e: Emitter, op: Op, value: Any) -> bool:
    """Whether an access goes to shared memory that lies in panels; other memory is the shared emitter's."""
    buffer = op.operands[0]
    made = root(buffer).op
    if buffer.type.space != "shared" or isinstance(value, ScalarType) or made is None or root(buffer) not in e.places:
        return False
    return _nv(e).grouped or "swizzle" in made.attrs


def _store(e: Emitter, op: Op) -> None:
    buffer = op.operands[0]
    value = op.operands[1 + buffer.type.rank]
    if not _in_panels(e, op, value.type):
        simt_memory.HANDLERS["store"](e, op)
        return
    x, t = _nv(e), e.tile(value)
    e.order.touch(root(buffer), True)
    rows = _matrix_rows(e, op, t.shape, t.layout) if e.machine.has_warp_groups else None
    if rows is None:
        pointers, n = _pointers(e, op, t.shape, t.layout)
        owner = e.owner(t.layout)
        e.guarded([e.both(owner, e.inside(t.layout, t.shape, r * n)) for r in range(len(pointers))],
                  lambda r: write_vector(e, t.dtype, SHARED, pointers[r], t.names[r * n:(r + 1) * n]))
        return
    each = 4 // t.dtype.itemsize
    for i, pointer in enumerate(rows[0]):
        names = t.names[4 * each * i:4 * each * (i + 1)]
        words = [_packed(x, t.dtype, names[j:j + each]) for j in range(0, len(names), each)]
        x.call(f"stmatrix.sync.aligned.m8n8.x4{'.trans' if rows[1] else ''}.b16.p3", f"ptr addrspace(3) {pointer}",
               *(f"i32 {v}" for v in words))


def _load(e: Emitter, op: Op) -> None:
    buffer, out = op.operands[0], op.result.type
    if not _in_panels(e, op, out):
        simt_memory.HANDLERS["load"](e, op)
        return
    x, w, layout = _nv(e), e.w, layout_of(out)
    e.order.touch(root(buffer), False)
    rows = _matrix_rows(e, op, out.shape, layout)
    if rows is None:
        pointers, n = _pointers(e, op, out.shape, layout)
        e.define(op, [v for p in pointers for v in read_vector(e, out.dtype, SHARED, p, n)])
        return
    names: list[str] = []
    for pointer in rows[0]:
        got = x.call(f"ldmatrix.sync.aligned.m8n8.x4{'.trans' if rows[1] else ''}.b16.p3", f"ptr addrspace(3) {pointer}",
                     result="{i32, i32, i32, i32}")
        for i in range(4):
            names += _unpacked(x, out.dtype, w.let(f"extractvalue {{i32, i32, i32, i32}} {got}, {i}"))
    e.define(op, names)


def _packed(x: NvEmitter, dtype: DType, names: Sequence[str]) -> str:
    return pack(x, names[0], names[1]) if dtype.itemsize == 2 else word(x, dtype, names)


def _unpacked(x: NvEmitter, dtype: DType, value: str) -> Sequence[str]:
    """The elements of a word, which is remembered as what they pack to."""
    if dtype.itemsize == 2:
        return x.unpack(value)
    kind = "<4 x i8>"
    parts = x.w.let(f"bitcast i32 {value} to {kind}")
    names = [x.w.let(f"extractelement {kind} {parts}, i32 {i}") for i in range(4)]
    x.packed[tuple(names)] = value
    return names


def _pointers(e: Emitter, op: Op, shape: tuple[int, ...], layout: Layout) -> tuple[list[str], int]:
    """Where each vector of registers lies, and how many registers a vector has: neighbours within a chunk of 16 bytes."""
    x, w, buffer = _nv(e), e.w, op.operands[0]
    p, rank, axes = Panels.of(buffer), buffer.type.rank, op.attrs["axes"]
    places = op.operands[1:1 + rank]
    n = 1
    if axes and axes[-1] == rank - 1:
        for i, c in enumerate(layout.bases("reg")):
            n *= 2 if c == 1 << i and i < layout.bits[-1] and 2 * n * p.itemsize <= 16 and shape[-1] % (2 * n) == 0 else 1
            if n != 2 << i:
                break
        while divisor(places[-1], e.loops) % n:
            n //= 2
    each, out = 16 // p.itemsize, []
    for r in range(0, 1 << len(layout.bases("reg")), n):
        index = layout.index(layout.element(reg=r))
        at, fixed = [x.i32(v) for v in places], [0] * rank
        for t, axis in enumerate(axes):
            low = layout.shift(t)
            part = w.thread_part(layout, low, low + layout.bits[t])
            fixed[axis] = min(index[t], shape[t] - 1)
            at[axis] = x.add(at[axis], part) if part != "0" or at[axis] != "0" else "0"
        if not p.swizzle:  # the fixed part becomes the access's own
            constant = sum(int(t) for t in _linear(x, p, buffer, [str(f) for f in fixed]))
            out.append(x.shared_at(x.add(*_linear(x, p, buffer, at), str(e.places[buffer][1] + constant))))
            continue
        at = [x.add(a, str(f)) for a, f in zip(at, fixed, strict=True)]
        column, row = (v if v.startswith("%") else w.let(f"add i32 {v}, 0") for v in (at[rank - 1], at[rank - 2]))
        offset = chunk_offset(x, p, row, w.let(f"udiv i32 {column}, {each}"))
        size, terms = p.matrix, [str(e.places[buffer][1]), offset, x.times(w.let(f"urem i32 {column}, {each}"), p.itemsize)]
        for a in range(rank - 3, -1, -1):
            terms.append(x.times(at[a], size))
            size *= int(buffer.type.shape[a])
        out.append(x.shared_at(x.add(*terms)))
    return out, n


def _linear(x: NvEmitter, p: Panels, buffer: Value, at: Sequence[str]) -> list[str]:
    """The terms of a row-major place, in bytes."""
    size, terms = p.itemsize, []
    for i, n in zip(reversed(at), reversed(buffer.type.shape), strict=True):
        terms.append(x.times(i, size))
        size *= int(n)
    return terms


HANDLERS: dict[str, Handler] = {"copy_async": _copy_async, "copy_commit": _copy_commit, "copy_wait": _copy_wait, "load": _load,
                                "store": _store}

__all__ = ["HANDLERS", "chunk_offset", "matrix_form"]
