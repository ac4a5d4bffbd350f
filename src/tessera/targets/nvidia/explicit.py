"""The ops of the explicit level: one function an op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import CompileError
from ...ir.core import Op, ScalarType, Value
from ...ir.tile import root
from ...ir.tile_explicit import mma_parts
from ...tiling.layouts import Layout, fragment
from ...types.dtypes import f32
from ..cpu.emit_writer import memory_type, representation
from ..simt import memory as simt_memory
from ..simt import tiles as simt_tiles
from ..simt.emit import Emitter, Handler, layout_of
from ..simt.memory import read, write
from ..simt.values import Memory, Regs, strides
from ..simt.writer import SHARED
from .emit import REGISTER_FILE, NvEmitter, pack
from .fragments import Panels

_SUFFIX = {"bf16": ("ff2bf16x2.rn", "<2 x bfloat>"), "f16": ("ff2f16x2.rn", "<2 x half>")}


def _nv(e: Emitter) -> NvEmitter:
    assert isinstance(e, NvEmitter)
    return e


# -- shared memory and barriers ------------------------------------------------------------------------------------------
def _alloc(e: Emitter, op: Op) -> None:
    x = _nv(e)
    e.values[op.result] = Memory(e.w.once(("alloc", op.result), lambda: x.shared_at(str(e.places[op.result][1]))), SHARED, op.result.type)


def _mbarriers(e: Emitter, op: Op) -> None:
    """One thread makes the barriers; ``roles`` lets the others see them."""
    x = _nv(e)
    e.values[op.result] = Memory(f"barriers {x.places[op.result][1]}", SHARED, op.result.type)
    first = e.w.once("first of all", lambda: e.w.let(f"icmp eq i32 {e.w.once('tid', str)}, 0"))

    def make() -> None:
        for i in range(op.result.type.shape[0]):
            at = x.shared_at(str(x.places[op.result][1] + 8 * i))
            x.call("mbarrier.init.shared", f"ptr addrspace(3) {at}", f"i32 {op.attrs['arrivals']}")
        x.call("fence.mbarrier_init.release.cluster")

    x.where(first, make)
    if x.roles is None:
        x.call("barrier.cta.sync.aligned.all", "i32 0")


def _meet(x: NvEmitter, relaxed: bool) -> None:
    if x.cluster > 1:
        x.call(f"barrier.cluster.arrive{'.relaxed' if relaxed else ''}")
        x.call("barrier.cluster.wait")
    else:
        x.call("barrier.cta.sync.aligned.all", "i32 0")


def _cluster_sync(e: Emitter, op: Op) -> None:
    _meet(_nv(e), False)


def _roles(e: Emitter, op: Op) -> None:
    """Each warp group branches to its role; every thread comes to the end."""
    x, w = _nv(e), e.w
    _meet(x, True)
    group = w.once("group", str)
    launched = min(255, REGISTER_FILE // x.total) // 8 * 8
    done = w.new_label("roles.done")
    first = 0
    for body, n, registers, threads in zip(op.blocks, op.attrs["groups"], op.attrs["registers"], op.attrs["threads"], strict=True):
        last = first + n
        if last * 128 < x.total:
            here, after = w.new_label("role"), w.new_label("other")
            w.branch_if(w.let(f"icmp ult i32 {group}, {last}"), here, after)
            w.start(here)
        if registers:
            x.call(f"setmaxnreg.{'inc' if registers > launched else 'dec'}.sync.aligned.u32", f"i32 {registers}")
        if threads == 1:
            _elect(x, done)
        with x.role(first, threads == 1):
            e.block(body)
        w.branch(done)
        if last * 128 < x.total:
            w.start(after)
        first = last
    w.start(done)
    if x.cluster > 1:
        _meet(x, False)


def _elect(x: NvEmitter, done: str) -> None:
    """Go on with one thread of the group's first warp; the others go to ``done``."""
    w = x.w
    warp, one = w.new_label("warp"), w.new_label("elected")
    w.branch_if(w.let(f"icmp eq i32 {w.warp_id()}, 0"), warp, done)
    w.start(warp)
    elected = x.call("elect.sync", "i32 -1", result="{i32, i1}")
    w.branch_if(w.let(f"extractvalue {{i32, i1}} {elected}, 1"), one, done)
    w.start(one)


def _group_id(e: Emitter, op: Op) -> None:
    group, first = _nv(e).group
    at = group if first == 0 else e.w.let(f"sub i32 {group}, {first}")
    e.values[op.result] = e.w.let(f"zext i32 {at} to i64")


def _cluster_rank(e: Emitter, op: Op) -> None:
    x = _nv(e)
    rank = e.w.once("rank", lambda: x.call("read.ptx.sreg.cluster.ctarank", result="i32"))
    e.values[op.result] = e.w.once("wide rank", lambda: e.w.let(f"zext i32 {rank} to i64"))


def _expect(e: Emitter, op: Op) -> None:
    x = _nv(e)
    at = x.barrier_at(op.operands[0], op.operands[1])
    x.lead(lambda: (x.call("mbarrier.arrive.expect.tx.scope.cta.space.cta", f"ptr addrspace(3) {at}", f"i32 {op.attrs['bytes']}",
                           result="i64"), None)[1])


def _arrive(e: Emitter, op: Op) -> None:
    """With ``cluster``, thread i of the group arrives at block i's barrier: the scope is the block's, which costs no fence."""
    x, w = _nv(e), e.w
    when = e.scalar(op.operands[2]) if len(op.operands) == 3 else None
    test: str | None
    if op.attrs.get("cluster") and x.cluster > 1:
        test = w.once("peers", lambda: w.let(f"icmp ult i32 {w.thread_id()}, {x.cluster}"))
        base = w.once("remote", lambda: x.call("mapa.shared.cluster", "ptr addrspace(3) @shared", f"i32 {w.thread_id()}",
                                               result="ptr addrspace(7)"))
        offset = x.add(x.times(x.i32(op.operands[1]), 8), str(x.places[op.operands[0]][1]))

        def act() -> None:
            at = w.let(f"getelementptr i8, ptr addrspace(7) {base}, i32 {offset}")
            x.call("mbarrier.arrive.scope.cta.space.cluster", f"ptr addrspace(7) {at}", "i32 1")
    else:
        test = None if x.single else w.once("lead", lambda: w.let(f"icmp eq i32 {w.thread_id()}, 0"))
        local = x.barrier_at(op.operands[0], op.operands[1])

        def act() -> None:
            x.call("mbarrier.arrive.scope.cta.space.cta", f"ptr addrspace(3) {local}", "i32 1", result="i64")
    both = e.both(test, when)
    if both is None:
        act()
    else:
        x.where(both, act)


def _wait(e: Emitter, op: Op) -> None:
    x, w = _nv(e), e.w
    at, parity = x.barrier_at(op.operands[0], op.operands[1]), x.i32(op.operands[2])
    spin, go = w.new_label("spin"), w.new_label("go")
    w.branch(spin)
    w.start(spin)
    ok = x.call("mbarrier.try.wait.parity.scope.cta.space.cta", f"ptr addrspace(3) {at}", f"i32 {parity}", result="i1")
    w.branch_if(ok, go, spin)
    w.start(go)


def _named(e: Emitter, op: Op) -> None:
    how = "sync" if op.name == "barrier_sync" else "arrive"
    x = _nv(e)
    x.call(f"barrier.cta.{how}.aligned.count", f"i32 {x.i32(op.operands[0])}", f"i32 {op.attrs['threads']}")


def _fence(e: Emitter, op: Op) -> None:
    _nv(e).call("fence.proxy.async.shared_cta")


# -- copies ----------------------------------------------------------------------------------------------------------------
def _boxes(x: NvEmitter, shared: Value, places: Sequence[Value], box: tuple[int, int]) -> list[tuple[str, int, tuple[int, int]]]:
    """A box as whole panels: (pointer into shared memory, first column, extents)."""
    p = Panels.of(shared)
    at = x.matrix_at(shared, list(places))
    width = min(p.width, box[1])
    return [(x.shared_at(x.add(at, str(c // p.width * p.panel))), c, (box[0], width)) for c in range(0, box[1], width)]


def _coordinates(x: NvEmitter, offsets: Sequence[Value], column: int) -> list[str]:
    """Innermost first, as the copy engine takes them."""
    at = [x.i32(v) for v in offsets]
    at[-1] = x.add(at[-1], str(column))
    return [f"i32 {a}" for a in reversed(at)]


def _tma_load(e: Emitter, op: Op) -> None:
    x, w = _nv(e), e.w
    source = op.operands[0]
    rank = source.type.rank
    shared = op.operands[1 + rank]
    end = 2 + rank + shared.type.rank
    bar = x.barrier_at(op.operands[end], op.operands[end + 1])
    mask = int(op.attrs.get("multicast", 0)) if x.cluster > 1 else 0
    swizzle = Panels.of(shared).swizzle

    def start() -> None:
        for pointer, column, box in _boxes(x, shared, op.operands[2 + rank:end], op.attrs["box"]):
            where = _coordinates(x, op.operands[1:1 + rank], column)
            tensor = f"ptr {x.map_of(source, box, swizzle)}"
            if not mask:
                x.call(f"cp.async.bulk.tensor.g2s.cta.tile.{rank}d", f"ptr addrspace(3) {pointer}", f"ptr addrspace(3) {bar}", tensor,
                       *where, "i64 0", "i1 false")
                continue
            far = w.let(f"addrspacecast ptr addrspace(3) {pointer} to ptr")
            far = w.let(f"addrspacecast ptr {far} to ptr addrspace(7)")
            x.call(f"cp.async.bulk.tensor.g2s.tile.{rank}d", f"ptr addrspace(7) {far}", f"ptr addrspace(3) {bar}", tensor, *where,
                   f"i16 {mask}", "i64 0", "i1 true", "i1 false", "i32 0")

    x.lead(start)


def _tma_store(e: Emitter, op: Op) -> None:
    x = _nv(e)
    shared = op.operands[0]
    rank = shared.type.rank
    target = op.operands[1 + rank]
    swizzle = Panels.of(shared).swizzle

    def start() -> None:
        for pointer, column, box in _boxes(x, shared, op.operands[1:1 + rank], op.attrs["box"]):
            x.call(f"cp.async.bulk.tensor.s2g.tile.{target.type.rank}d", f"ptr addrspace(3) {pointer}",
                   f"ptr {x.map_of(target, box, swizzle)}", *_coordinates(x, op.operands[2 + rank:], column), "i64 0", "i1 false")

    x.lead(start)


def _tma_commit(e: Emitter, op: Op) -> None:
    x = _nv(e)
    x.lead(lambda: (x.call("cp.async.bulk.commit.group"), None)[1])


def _tma_wait(e: Emitter, op: Op) -> None:
    x = _nv(e)
    read_ = ".read" if op.attrs.get("read") else ""
    x.lead(lambda: (x.call(f"cp.async.bulk.wait.group{read_}", f"i32 {op.attrs.get('pending', 0)}"), None)[1])


def _copy_async(e: Emitter, op: Op) -> None:
    """16 bytes a thread at a time; what lies outside the buffer is filled with zeros."""
    x, w = _nv(e), e.w
    source = op.operands[0]
    rank = source.type.rank
    shared = op.operands[1 + rank]
    p, (rows, columns) = Panels.of(shared), op.attrs["box"]
    each = 16 // p.itemsize
    if columns % each:
        raise CompileError(f"copy_async moves 16 bytes at a time; a row of the box has {columns * p.itemsize}", loc=op.loc)
    base = x.matrix_at(shared, list(op.operands[2 + rank:]))
    threads, across = 128, columns // each
    memory: Memory = e.memory(source)
    steps = [w.dim(d) for d in strides(source.type.shape)]
    offsets = [e.scalar(v) for v in op.operands[1:1 + rank]]
    outer = "0"
    for o, s in zip(offsets[:-2], steps[:-2], strict=True):
        outer = w.let(f"add i64 {outer}, {w.let(f'mul i64 {o}, {s}')}")
    for first in range(0, rows * across, threads):
        number = x.add(w.thread_id(), str(first))
        row, chunk = w.let(f"udiv i32 {number}, {across}"), w.let(f"urem i32 {number}, {across}")
        pointer = x.shared_at(x.add(base, _chunk_offset(x, p, row, chunk)))
        r = w.let(f"add i64 {offsets[-2]}, {w.let(f'zext i32 {row} to i64')}")
        c = w.let(f"add i64 {offsets[-1]}, {w.let(f'zext i32 {x.times(chunk, each)} to i64')}")
        inside = e.both(w.let(f"icmp ult i64 {r}, {w.dim(source.type.shape[-2])}"),
                        w.let(f"icmp slt i64 {c}, {w.dim(source.type.shape[-1])}"))
        left = w.let(f"sub i64 {w.dim(source.type.shape[-1])}, {c}")
        here = w.let(f"call i64 @llvm.smin.i64(i64 {left}, i64 {each})")
        nbytes = w.let(f"mul i64 {here}, {p.itemsize}")
        nbytes = w.let(f"select i1 {inside}, i64 {nbytes}, i64 0")
        line = w.let(f"mul i64 {r}, {steps[-2]}")
        at = w.let(f"add i64 {outer}, {w.let(f'add i64 {line}, {c}')}")
        at = w.let(f"select i1 {inside}, i64 {at}, i64 0")
        from_ = w.address(memory_type(source.type.dtype), memory.space, memory.pointer, at)
        count = w.let(f"trunc i64 {nbytes} to i32")

        def copy(pointer: str = pointer, from_: str = from_, count: str = count) -> None:
            x.call("cp.async.cg.shared.global.16.s", f"ptr addrspace(3) {pointer}", f"ptr addrspace(1) {from_}", f"i32 {count}")

        if first + threads <= rows * across:
            copy()
        else:
            x.where(w.let(f"icmp ult i32 {number}, {rows * across}"), copy)


def _chunk_offset(x: NvEmitter, p: Panels, row: str, chunk: str) -> str:
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
    _nv(e).call("cp.async.wait.group", f"i32 {op.attrs.get('pending', 0)}")


# -- products ----------------------------------------------------------------------------------------------------------------
def _uninitialized(e: Emitter, op: Op) -> None:
    e.define(op, ["undef"] * (1 << len(layout_of(op.result.type).bases("reg"))))


def _descriptor(x: NvEmitter, buffer: Value, places: Sequence[Value], across: bool) -> str:
    w = x.w
    at = x.add(x.shared_base(), x.matrix_at(buffer, list(places)))
    low = w.let(f"and i32 {w.let(f'lshr i32 {at}, 4')}, 16383")
    fixed = Panels.of(buffer).descriptor(across)
    fixed -= (1 << 64) if fixed >> 63 else 0
    return w.let(f"or disjoint i64 {w.let(f'zext i32 {low} to i64')}, {fixed}")


def _stepped(x: NvEmitter, descriptor: str, buffer: Value, j: int, across: bool) -> str:
    step = Panels.of(buffer).step(j, across) >> 4
    return x.w.let(f"add i64 {descriptor}, {step}") if step else descriptor


def wgmma_asm(n: int, dtype: str, registers: bool, a_t: int, b_t: int) -> tuple[str, str, str]:
    """(instruction, constraints, result type) of one 64 x n x 16 product, its accumulator tied to its results."""
    count = n // 2
    acc = ",".join(f"${i}" for i in range(count))
    left = "{" + ",".join(f"${count + i}" for i in range(4)) + "}" if registers else f"${count}"
    right = count + (4 if registers else 1)
    trans = f"{b_t}" if registers else f"{a_t}, {b_t}"
    asm = f"wgmma.mma_async.sync.aligned.m64n{n}k16.f32.{dtype}.{dtype} {{{acc}}}, {left}, ${right}, ${right + 1}, 1, 1, {trans};"
    constraints = ",".join(["=&f"] * count + (["r"] * 4 if registers else ["l"]) + ["l", "b"] + [str(i) for i in range(count)])
    return asm, constraints, "{" + ",".join(["float"] * count) + "}"


def _mma_async(e: Emitter, op: Op) -> None:
    x, w = _nv(e), e.w
    (a, a_places), (b, b_places) = mma_parts(op)
    acc = e.tile(op.operands[0])
    k, n, dtype = op.attrs["k"], acc.shape[1], b.type.dtype
    a_t, b_t = bool(op.attrs.get("a_t")), bool(op.attrs.get("b_t"))
    go = e.scalar(op.operands[1])
    asm, constraints, result = wgmma_asm(n, dtype.name, a_places is None, int(a_t), int(not b_t))
    right = _descriptor(x, b, b_places, not b_t)
    if a_places is not None:
        left = _descriptor(x, a, a_places, a_t)
    else:
        held = e.tile(a)
        words = [pack(x, held.names[i], held.names[i + 1]) for i in range(0, len(held.names), 2)]
    x.call("wgmma.fence.sync.aligned")
    now = acc.names[:n // 2]
    for j in range(k // 16):
        args = [f"i64 {_stepped(x, left, a, j, a_t)}"] if a_places is not None else [f"i32 {v}" for v in words[4 * j:4 * j + 4]]
        args += [f"i64 {_stepped(x, right, b, j, not b_t)}", f"i1 {go if j == 0 else 'true'}", *(f"float {c}" for c in now)]
        made = w.let(f'call {result} asm sideeffect "{asm}", "{constraints}"({", ".join(args)}) #1')
        now = [w.let(f"extractvalue {result} {made}, {i}") for i in range(n // 2)]
    e.define(op, now + ["undef"] * (len(acc.names) - n // 2))
    _convergent(x)


def _convergent(x: NvEmitter) -> None:
    line = "attributes #1 = { convergent nounwind }"
    if line not in x.tail:
        x.tail.append(line)


def _mma_commit(e: Emitter, op: Op) -> None:
    _nv(e).call("wgmma.commit_group.sync.aligned")


def _mma_wait(e: Emitter, op: Op) -> None:
    """The values pass through the wait, so that nothing that uses them can come before it."""
    x, w = _nv(e), e.w
    pending = int(op.attrs.get("pending", 0))
    tiles = [e.tile(v) for v in op.operands]
    names = [n for t in tiles for n in t.names]
    tied = [n for n in dict.fromkeys(names) if n.startswith("%")]
    if not tied:
        x.call("wgmma.wait_group.sync.aligned", f"i64 {pending}")
    else:
        if any(t.dtype is not f32 for t in tiles):
            raise CompileError("mma_wait returns accumulators, which are f32", loc=op.loc)
        result = "{" + ",".join(["float"] * len(tied)) + "}"
        constraints = ",".join(["=f"] * len(tied) + [str(i) for i in range(len(tied))])
        made = w.let(f'call {result} asm sideeffect "wgmma.wait_group.sync.aligned {pending};", "{constraints}"'
                     f'({", ".join(f"float {n}" for n in tied)}) #1')
        new = {n: w.let(f"extractvalue {result} {made}, {i}") for i, n in enumerate(tied)}
        _convergent(x)
        tiles = [Regs(t.dtype, t.shape, t.layout, [new.get(n, n) for n in t.names]) for t in tiles]
    for r, t in zip(op.results, tiles, strict=True):
        e.values[r] = t


# -- tiles in swizzled memory ------------------------------------------------------------------------------------------------
def _swizzled(e: Emitter, buffer: Value) -> bool:
    return buffer.type.space == "shared" and root(buffer) in e.places


def _fragment_rows(e: Emitter, buffer: Value, places: Sequence[Value], shape: tuple[int, ...], layout: Layout, axes: Any) -> str | None:
    """The byte offset of this lane's row for ``stmatrix`` and ``ldmatrix``; None where the tile is no fragment of 16-bit values."""
    p = Panels.of(buffer)
    rank = buffer.type.rank
    if p.itemsize != 2 or p.swizzle != 128 or tuple(axes) != (rank - 2, rank - 1) or len(shape) != 2 or shape[0] != 64 or \
            shape[1] % 16 or layout != fragment(shape):
        return None
    x, w = _nv(e), e.w

    def lane() -> str:
        low = w.let(f"and i32 {w.lane_id()}, 7")
        row = x.add(w.let(f"and i32 {w.lane_id()}, 15"), x.times(w.warp_id(), 16))
        chunk = w.let(f"xor i32 {w.let(f'lshr i32 {w.lane_id()}, 4')}, {low}")
        return x.add(x.times(row, 128), x.times(chunk, 16))

    return x.add(x.matrix_at(buffer, list(places)), "0") + "|" + w.once("matrix row", lane)


def _matrix_pointers(e: Emitter, where: str, buffer: Value, columns: int) -> list[str]:
    """A pointer for each 16 columns."""
    x, w = _nv(e), e.w
    base, row = where.split("|")
    p = Panels.of(buffer)
    out = []
    for j in range(columns // 16):
        turn = row if j % 4 == 0 else w.once(("matrix chunk", j % 4), lambda j=j: w.let(f"xor i32 {row}, {32 * (j % 4)}"))
        out.append(x.shared_at(x.add(base, turn, str(j // 4 * p.panel))))
    return out


def _store(e: Emitter, op: Op) -> None:
    buffer = op.operands[0]
    value = op.operands[1 + buffer.type.rank]
    if not _swizzled(e, buffer) or isinstance(value.type, ScalarType):
        simt_memory.HANDLERS["store"](e, op)
        return
    x, t, places = _nv(e), e.tile(value), op.operands[1:1 + buffer.type.rank]
    where = _fragment_rows(e, buffer, places, t.shape, t.layout, op.attrs["axes"])
    if where is None:
        pointers = _element_pointers(e, buffer, places, t.shape, t.layout, op.attrs["axes"])
        owner = e.owner(t.layout)
        e.guarded([e.both(owner, e.inside(t.layout, t.shape, r)) for r in range(len(t.names))],
                  lambda r: write(e, t.dtype, SHARED, pointers[r], t.names[r]))
        return
    for j, pointer in enumerate(_matrix_pointers(e, where, buffer, t.shape[1])):
        words = [pack(x, t.names[8 * j + 2 * i], t.names[8 * j + 2 * i + 1]) for i in range(4)]
        x.call("stmatrix.sync.aligned.m8n8.x4.b16.p3", f"ptr addrspace(3) {pointer}", *(f"i32 {v}" for v in words))


def _load(e: Emitter, op: Op) -> None:
    buffer, out = op.operands[0], op.result.type
    if not _swizzled(e, buffer) or isinstance(out, ScalarType):
        simt_memory.HANDLERS["load"](e, op)
        return
    x, w, layout, places = _nv(e), e.w, layout_of(out), op.operands[1:1 + buffer.type.rank]
    where = _fragment_rows(e, buffer, places, out.shape, layout, op.attrs["axes"])
    if where is None:
        e.define(op, [read(e, out.dtype, SHARED, p) for p in _element_pointers(e, buffer, places, out.shape, layout, op.attrs["axes"])])
        return
    names: list[str] = []
    for pointer in _matrix_pointers(e, where, buffer, out.shape[1]):
        got = x.call("ldmatrix.sync.aligned.m8n8.x4.b16.p3", f"ptr addrspace(3) {pointer}", result="{i32, i32, i32, i32}")
        for i in range(4):
            names += x.unpack(w.let(f"extractvalue {{i32, i32, i32, i32}} {got}, {i}"))
    e.define(op, names)


def _element_pointers(e: Emitter, buffer: Value, places: Sequence[Value], shape: tuple[int, ...], layout: Layout, axes: Any) -> list[str]:
    """Where each register's element lies, one by one."""
    x, w, p, rank = _nv(e), e.w, Panels.of(buffer), buffer.type.rank
    out = []
    for r in range(1 << len(layout.bases("reg"))):
        index = layout.index(layout.element(reg=r))
        at = [x.i32(v) for v in places]
        for t, axis in enumerate(axes):
            low = layout.shift(t)
            at[axis] = x.add(at[axis], w.thread_part(layout, low, low + layout.bits[t]), str(min(index[t], shape[t] - 1)))
        each = 16 // p.itemsize
        column = x.add(at[rank - 1], "0")
        column = column if column.startswith("%") else w.let(f"add i32 {column}, 0")
        row = at[rank - 2] if at[rank - 2].startswith("%") else w.let(f"add i32 {at[rank - 2]}, 0")
        offset = _chunk_offset(x, p, row, w.let(f"udiv i32 {column}, {each}"))
        size, terms = p.matrix, [str(e.places[buffer][1]), offset, x.times(w.let(f"urem i32 {column}, {each}"), p.itemsize)]
        for a in range(rank - 3, -1, -1):
            terms.append(x.times(at[a], size))
            size *= int(buffer.type.shape[a])
        out.append(x.shared_at(x.add(*terms)))
    return out


# -- arithmetic that the hardware has ------------------------------------------------------------------------------------------
def _convert(e: Emitter, op: Op) -> None:
    """f32 to 16-bit floats two at a time (NaN becomes the hardware's own); neighbours stay packed for the matrix unit."""
    t, source = op.result.type, op.operands[0].type
    kind = _SUFFIX.get(t.dtype.name)
    held = [] if isinstance(t, ScalarType) else e.tile(op.operands[0]).names
    if not held or source.dtype is not f32 or kind is None or len(held) % 2:
        e.pointwise(op)
        return
    w, names = e.w, []
    for i in range(0, len(held), 2):
        pair = w.let(f"call {kind[1]} @llvm.nvvm.{kind[0]}(float {held[i + 1]}, float {held[i]})")
        word = w.let(f"bitcast {kind[1]} {pair} to i32")
        low, high = w.let(f"trunc i32 {word} to i16"), w.let(f"trunc i32 {w.let(f'lshr i32 {word}, 16')} to i16")
        if isinstance(e, NvEmitter):
            e.packed[low, high] = word
        names += [low, high]
    e.define(op, names)


_UNITS = {"exp2_approx": "ex2.approx.ftz.f", "log2_approx": "lg2.approx.ftz.f", "reciprocal_approx": "rcp.approx.ftz.f"}


def _unit(e: Emitter, op: Op) -> None:
    """The special-function unit."""
    v = op.operands[0]
    name = _UNITS[op.name] + ("32" if op.name == "exp2_approx" else "")

    def one(x: str) -> str:
        return e.w.let(f"call float @llvm.nvvm.{name}(float {x})")

    if isinstance(v.type, ScalarType):
        e.values[op.result] = one(e.scalar(v))
    else:
        e.define(op, [one(n) for n in e.tile(v).names])


def _reduce(e: Emitter, op: Op) -> None:
    """A maximum or minimum is the same in any order: registers first, so that fewest values go between lanes."""
    t = op.operands[0].type
    if op.attrs["combine"] not in ("max", "min") or t.rank != 2 or op.attrs["axis"] != 1 or layout_of(t) != fragment(t.shape) \
            or t.dtype is not f32:
        simt_tiles.HANDLERS["reduce"](e, op)
        return
    w = e.w
    name = "maximum" if op.attrs["combine"] == "max" else "minimum"
    rows: dict[int, list[str]] = {0: [], 1: []}
    for r, v in enumerate(e.tile(op.operands[0]).names[:t.shape[1] // 2]):
        rows[r >> 1 & 1].append(v)
    out = []
    for values in rows.values():
        while len(values) > 1:
            values = [w.intrinsic(name, "float", 1, values[i], values[i + 1]) if i + 1 < len(values) else values[i]
                      for i in range(0, len(values), 2)]
        best = values[0]
        for lanes in (1, 2):
            best = w.intrinsic(name, "float", 1, best, simt_tiles.shuffle_xor(e, f32, best, lanes))
        out.append(best)
    e.define(op, out)


assert representation(f32) == "float"

TILE_HANDLERS: dict[str, Handler] = {"convert": _convert, **dict.fromkeys(_UNITS, _unit)}
"""What programs of the tile level gain on this machine."""

HANDLERS: dict[str, Handler] = {
    **TILE_HANDLERS, "alloc": _alloc, "mbarriers": _mbarriers, "roles": _roles, "group_id": _group_id, "cluster_rank": _cluster_rank,
    "cluster_sync": _cluster_sync, "mbarrier_expect": _expect, "mbarrier_arrive": _arrive, "mbarrier_wait": _wait, "barrier_sync": _named,
    "barrier_arrive": _named, "fence_async": _fence, "tma_load": _tma_load, "tma_store": _tma_store, "tma_commit": _tma_commit,
    "tma_wait": _tma_wait, "copy_async": _copy_async, "copy_commit": _copy_commit, "copy_wait": _copy_wait,
    "uninitialized": _uninitialized, "mma_async": _mma_async, "mma_commit": _mma_commit, "mma_wait": _mma_wait, "store": _store,
    "load": _load, "reduce": _reduce,
}

__all__ = ["HANDLERS", "TILE_HANDLERS", "pack", "wgmma_asm"]
