"""The ops of the explicit level: one function an op."""

from __future__ import annotations

from collections.abc import Sequence

from ...errors import CompileError
from ...ir.core import Op, ScalarType, Value
from ...ir.tile_explicit import mma_parts
from ...tiling.layouts import fragment
from ...types.dtypes import f32
from ..cpu.emit_writer import representation
from ..simt import tiles as simt_tiles
from ..simt.emit import Emitter, Handler
from ..simt.values import Memory, Regs, layout_of
from ..simt.writer import SHARED
from .emit import REGISTER_FILE, NvEmitter, pack
from .fragments import Panels
from .mma import HANDLERS as MMA
from .staging import HANDLERS as STAGING


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


# -- arithmetic that the hardware has ------------------------------------------------------------------------------------------
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

TILE_HANDLERS: dict[str, Handler] = dict.fromkeys(_UNITS, _unit)
"""What programs of the tile level gain on this machine."""

HANDLERS: dict[str, Handler] = {
    **TILE_HANDLERS, "alloc": _alloc, "mbarriers": _mbarriers, "roles": _roles, "group_id": _group_id, "cluster_rank": _cluster_rank,
    "cluster_sync": _cluster_sync, "mbarrier_expect": _expect, "mbarrier_arrive": _arrive, "mbarrier_wait": _wait, "barrier_sync": _named,
    "barrier_arrive": _named, "fence_async": _fence, "tma_load": _tma_load, "tma_store": _tma_store, "tma_commit": _tma_commit,
    "tma_wait": _tma_wait,
    "uninitialized": _uninitialized, "mma_async": _mma_async, "mma_commit": _mma_commit, "mma_wait": _mma_wait,
    "reduce": _reduce, **STAGING, **MMA,
}

BLOCK_HANDLERS: dict[str, Handler] = {**TILE_HANDLERS, **STAGING, **MMA}
"""Programs of blocks that act together."""

__all__ = ["BLOCK_HANDLERS", "HANDLERS", "TILE_HANDLERS", "pack", "wgmma_asm"]
