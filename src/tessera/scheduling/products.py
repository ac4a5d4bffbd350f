"""Matrix products as ``template`` ops: operands as they lie in memory, and what follows as the epilogue."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..ir.core import Block, Op, ScalarType, Value
from ..ops.table import OPS
from ..types import dtypes as dt
from ..types.dims import DimLike, product, substitute
from ..types.dims import name as dim_name
from ..types.promotion import accumulator
from .elements import Stop, Tracer
from .fusion import BY_ELEMENT, Materialise
from .indexing import Index, Names, ravel, replace, simplify, typical, unravel
from .kernels import written
from .program import BlockScheduler, launches
from .summary import axis_name
from .templates import Loop, affine

TINY = 32768  # multiply-adds below which a product is a plain kernel
CHAIN = 24  # ops of the longest epilogue
PROLOGUE = 3  # cycles an element that an operand may cost as it is read


# -- operands ------------------------------------------------------------------------------------------------------------
def resolve(bs: BlockScheduler, v: Value, index: Sequence[DimLike], ranges: dict[str, DimLike],
            linear: Sequence[str]) -> tuple[Value, DimLike]:
    """(flat buffer, offset in it) of element ``index`` of ``v``, seen through ops that only move elements.

    The offset is affine in the loops ``linear``; ``v`` itself is put into memory where nothing else makes it so.
    """
    at, source = tuple(index), v
    best: tuple[Value, Index] | None = None
    while True:
        if affine(simplify(ravel(at, source.type.shape), ranges), linear) is not None:
            best = source, at
        if bs.ready(source) or source.op is None or not bs.fusion.fusable(source.op) or source.op.name == "constant":
            break
        s = bs.program.summaries[source.op]
        if not s.movement:
            break
        env = {axis_name(k): e for k, e in enumerate(at)}
        access = s.accesses[0]
        at = tuple(replace(e, env, ranges) for e in access.index)
        source = source.op.operands[access.operand]
    source, at = best if best is not None else (v, tuple(index))
    buffer = bs.demand(source)
    return bs.flat(buffer), simplify(ravel(at, source.type.shape), ranges)


def prologue(bs: BlockScheduler, op: Op, v: Value) -> Value | None:
    """The buffer that ``v`` is computed from, where ``v`` is cheap enough to be computed as the product reads it."""
    loads, cost = bs.fusion.weight(v)
    if bs.ready(v) or v.op is None or v.op not in bs.order or set(bs.users.get(v, ())) != {op} or not 0 < cost <= PROLOGUE:
        return None
    if loads > 2 or not bs.fusion.fusable(v.op) or bs.program.summaries[v.op].reduces:
        return None
    for _ in range(16):
        try:
            plan = bs.fusion.plan([v])
        except Materialise as m:
            if m.value.op is None or m.value.op not in bs.order or bs.order[m.value.op] > bs.order[op]:
                return None
            bs.demand(m.value)
            continue
        if plan.rows or plan.side or not plan.leaves:
            return None
        main = max(plan.leaves, key=lambda x: typical(x.type.size))
        source = bs.buffer(main)
        return bs.flat(source) if source is not None and main.type.size == v.type.size else None
    return None


# -- epilogues -----------------------------------------------------------------------------------------------------------
def _forward(op: Op, value: Value, index: Index, ranges: dict[str, DimLike]) -> Index | None:
    """Where an element of ``value`` stands in the result of ``op``; None where it is not in exactly one place."""
    result = op.results[0].type.shape
    if op.name == "reshape":
        return unravel(simplify(ravel(index, value.type.shape), ranges), result, ranges)
    if op.name == "transpose":
        return tuple(index[p] for p in op.attrs["perm"])
    if op.name == "broadcast_to":
        return (0,) * (len(result) - len(index)) + tuple(index)
    return index if result == value.type.shape else None


class Epilogue:
    """The longest chain of ops after ``v`` that can be done where ``v`` is produced.

    Args:
        index: the index of ``v`` over the template's loops.
        ranges: those loops, the contiguous one last.
    """

    def __init__(self, bs: BlockScheduler, op: Op, v: Value, index: Index, ranges: dict[str, DimLike]):
        self.bs, self.op, self.v, self.ranges = bs, op, v, ranges
        self.steps: list[tuple[Value, Index]] = [(v, index)]
        while len(self.steps) < CHAIN and self._extend():
            pass
        self._strip()

    def _extend(self) -> bool:
        value, index = self.steps[-1]
        users = set(self.bs.users.get(value, ()))
        if len(users) > 1:
            return self._extend_over(value, index)
        if not users:
            return False
        (user,) = users
        if user not in self.bs.order or not self.bs.fusion.fusable(user) or len(user.results) != 1:
            return False
        s = self.bs.program.summaries[user]
        result = user.results[0]
        if s.reduces or result.type.size != value.type.size or result.type.dtype.is_complex:  # templates hold real numbers
            return False
        if any((a.guarded or a.dynamic) and user.operands[a.operand] is value for a in s.accesses):
            return False
        at = _forward(user, value, index, self.ranges)
        if at is None or not self._available(result):
            return False
        self.steps.append((result, at))
        return True

    def _extend_over(self, value: Value, index: Index) -> bool:
        """Past several users that come together again in one value (gelu uses its operand three times)."""
        bs = self.bs
        live, members = {value}, set[Op]()
        while len(members) < CHAIN:
            waiting = [u for v in live for u in bs.users.get(v, ()) if u not in members]
            if not waiting or any(u not in bs.order for u in waiting):
                return False
            user = min(waiting, key=bs.order.__getitem__)
            if not bs.fusion.fusable(user) or len(user.results) != 1 or bs.program.summaries[user].reduces:
                return False
            result = user.results[0]
            if result.type.shape != value.type.shape or not OPS[user.name].pointwise or result.type.dtype.is_complex:
                return False
            members.add(user)
            live.add(result)
            live = {v for v in live if v in bs.homes or not all(u in members for u in bs.users.get(v, ()))}
            if live == {result}:
                if not self._available(result):
                    return False
                self.steps.append((result, index))
                return True
        return False

    def _available(self, root: Value) -> bool:
        """True when everything else that ``root`` needs is in memory before the launch, or cheap to compute."""
        bs = self.bs
        for _ in range(64):
            bs.pretended.add(self.v)
            try:
                plan = bs.fusion.plan([root])
            except Materialise as m:
                wanted = m.value
            else:
                if plan.rows:
                    return False
                if not plan.side:
                    return len(plan.leaves) <= 8 and not any(v.type.dtype.is_complex for v in plan.leaves)
                wanted = plan.side[0]
            finally:
                bs.pretended.discard(self.v)
            if wanted.op is None or wanted.op not in bs.order or bs.order[wanted.op] > bs.order[self.op]:
                return False
            bs.demand(wanted)
        return False

    def _strip(self) -> None:
        """Drop movement at the end that would scatter the stores: the next reader can look through it."""
        while len(self.steps) > 1:
            last, at = self.steps[-1]
            assert last.op is not None
            if last in self.bs.homes or not self.bs.program.summaries[last.op].movement:
                return
            lane = list(self.ranges)[-1]
            strides = affine(simplify(ravel(at, last.type.shape), self.ranges), self.ranges)
            if strides is not None and strides[1][lane] in (0, 1):
                return
            self.steps.pop()

    def build(self, operands: Sequence[Value], accumulate: dt.DType, names: Names,
              before: Sequence[Body] = ()) -> tuple[list[Value], list[Block], tuple[int, ...], Value]:
        """(all operands, blocks, outs, the value stored); falls back to shorter chains where indices do not fit.

        Args:
            operands: those that the template itself reads.
            before: further blocks, which come before the epilogue.
        """
        while True:
            value, at = self.steps[-1]
            target = self.bs.place(value)
            bodies = [*before, self._epilogue(accumulate, value, at, target)]
            try:
                operands, blocks = trace_blocks(self.bs, operands, bodies, names, {self.v})
            except Stop:
                self.steps.pop()
                continue
            self.bs.buffers[value] = target
            return operands, blocks, written(blocks[-1]), value

    def _epilogue(self, accumulate: dt.DType, value: Value, at: Index, target: Value) -> Body:
        def body(tracer: Tracer, acc: Value) -> None:
            result = self.v.type.dtype
            scalar = acc if accumulate is result else tracer.emit("convert", (acc,), result, {})
            tracer.seeds[self.v] = (self.steps[0][1], scalar)
            tracer.store(target, at, scalar if value is self.v else tracer.value(value, at))

        return Body(self.ranges, accumulate, "acc", body)


@dataclass(frozen=True)
class Body:
    """One block of a template: its loops, the scalar it receives (dtype None: none), and what it does; it yields what
    ``make`` returns."""

    ranges: Mapping[str, DimLike]
    dtype: dt.DType | None
    name: str
    make: Callable[[Tracer, Value], Value | None]


def trace_blocks(bs: BlockScheduler, operands: Sequence[Value], bodies: Sequence[Body], names: Names,
                 hidden: set[Value]) -> tuple[list[Value], list[Block]]:
    """The blocks of a template.  All of them get all operands: those given, then what the bodies load and store."""
    p = bs.program
    tracers: list[Tracer] = []
    outer = dict.fromkeys(operands)
    yields: list[list[Value]] = []
    scalars: list[Value] = []
    for body in bodies:
        buffer = lambda v: None if v in hidden else bs.buffer(v)
        tracer = Tracer(Block(), names, body.ranges, buffer, p.summaries.lanes(p.machine), p.site)
        tracer.flat, tracer.always_flat = bs.flat, True
        scalar = Value(ScalarType(body.dtype or dt.f32), tracer.root.block, 0, body.name)
        tracer.depth_of[scalar] = 0
        made = body.make(tracer, scalar)
        yields.append([made] if made is not None else [])
        scalars.append(scalar)
        tracers.append(tracer)
        outer.update(dict.fromkeys(tracer.operands))
    for body, tracer, scalar, given in zip(bodies, tracers, scalars, yields, strict=True):
        block = tracer.root.block
        args = [tracer.argument(x) for x in outer]
        block.args = [*args, scalar] if body.dtype is not None else args
        for i, a in enumerate(block.args):
            a.index = i
        block.ops.append(Op("yield", given))
    return list(outer), [t.root.block for t in tracers]


# -- dot_general ----------------------------------------------------------------------------------------------------------
class Roles:
    """The loops of a product: batch, m, n, k, merged where both the operand and the result allow it."""

    def __init__(self, op: Op, sizes: Sequence[str]):
        self.op, self.names = op, Names(sizes)
        x, y = (v.type for v in op.operands)
        a = op.attrs
        self.ranges: dict[str, DimLike] = {}
        self.batch = [self._loop("b", x.shape[i]) for i in a["lhs_batch"]]
        free_x = [i for i in range(x.rank) if i not in (*a["lhs_batch"], *a["lhs_contract"])]
        free_y = [i for i in range(y.rank) if i not in (*a["rhs_batch"], *a["rhs_contract"])]
        self.m = [self._loop("m", x.shape[i]) for i in free_x]
        self.n = [self._loop("n", y.shape[i]) for i in free_y]
        self.k = [self._loop("k", x.shape[i]) for i in a["lhs_contract"]]

        def place(axes: Sequence[int], loops: Sequence[Loop]) -> dict[int, DimLike]:
            return {i: self._index(at) for i, at in zip(axes, loops, strict=True)}

        left = {**place(a["lhs_batch"], self.batch), **place(free_x, self.m), **place(a["lhs_contract"], self.k)}
        right = {**place(a["rhs_batch"], self.batch), **place(free_y, self.n), **place(a["rhs_contract"], self.k)}
        self.lhs = tuple(left[i] for i in range(x.rank))
        self.rhs = tuple(right[i] for i in range(y.rank))
        self.result = tuple(self._index(at) for at in (*self.batch, *self.m, *self.n))

    def _loop(self, stem: str, extent: DimLike) -> Loop:
        n = self.names.fresh(stem)
        self.ranges[n] = extent
        return n, extent

    def _index(self, loop: Loop) -> DimLike:
        return 0 if loop[1] == 1 else dim_name(loop[0])

    @property
    def linear(self) -> list[str]:
        return [n for n, _ in (*self.m, *self.n, *self.k)]

    def merge(self, loops: list[Loop], stem: str, offsets: Sequence[DimLike]) -> tuple[list[Loop], dict[str, DimLike]]:
        """Fold loops that all ``offsets`` walk through in one stride; what each old name becomes."""
        loops = [at for at in loops if at[1] != 1]
        env: dict[str, DimLike] = {}
        while len(loops) > 1:
            (a, ea), (b, eb) = loops[-2:]
            strides = [affine(o, (a, b)) for o in offsets]
            if any(s is None or s[1][a] != s[1][b] * eb for s in strides):
                break
            merged = self._loop(stem, ea * eb)
            here = {a: dim_name(merged[0]) // eb, b: dim_name(merged[0]) % eb}
            env = {**{k: substitute(v, here, self.ranges) for k, v in env.items()}, **here}
            offsets = [replace(o, here, self.ranges) for o in offsets]
            loops = [*loops[:-2], merged]
        return loops, env


@launches("dot_general")
def dot_general(bs: BlockScheduler, op: Op) -> None:
    """A product of floats: the ``matmul`` template."""
    roles = Roles(op, bs.program.sizes)
    a, lhs, early_a = _operand(bs, op, 0, roles.lhs, roles)
    b, rhs, early_b = _operand(bs, op, 1, roles.rhs, roles)
    out = simplify(ravel(roles.result, op.result.type.shape), roles.ranges)
    m, env_m = roles.merge(roles.m, "m", (lhs, out))
    n, env_n = roles.merge(roles.n, "n", (rhs, out))
    k, env_k = roles.merge(roles.k, "k", (lhs, rhs))
    if len(k) > 1:  # operands whose summed axes lie apart: put one after the other into memory, or compute by elements
        by_element(bs, op)
        return
    env = {**env_m, **env_n, **env_k}
    index, left, right = (tuple(replace(e, env, roles.ranges) for e in group) for group in (roles.result, (lhs,), (rhs,)))
    batch = [at for at in (*roles.batch, *m[:-1], *n[:-1]) if at[1] != 1]
    one = {r: (loops[-1] if loops else roles._loop(r, 1)) for r, loops in (("m", m), ("n", n), ("k", k))}
    if a is b:
        view = Op("view", (b,), (b.type,), {"offset": 0})
        bs.emit(view)
        b = view.results[0]
    accumulate = op.attrs.get("accumulate") or accumulator(op.operands[0].type.dtype)
    chain = Epilogue(bs, op, op.result, index, dict((*batch, one["m"], one["n"])))
    before: dict[str, Body] = {}
    for role, early, own, at, v in (("lhs", early_a, one["m"], roles.lhs, op.operands[0]),
                                    ("rhs", early_b, one["n"], roles.rhs, op.operands[1])):
        if early:
            where = tuple(replace(e, env, roles.ranges) for e in at)
            before[role] = Body(dict((*batch, own, one["k"])), None, role, _element(v, where))
    operands, blocks, outs, value = chain.build((a, b), accumulate, roles.names, tuple(before.values()))
    attrs: dict[str, Any] = {"template": "matmul", "name": bs.program.label("matmul"), "outs": outs,
                             "blocks": (*before, "epilogue"), "batch": tuple(batch), **one,
                             **{role: at for role, at in (("lhs", left), ("rhs", right)) if role not in before},
                             "accumulate": accumulate}
    if op.attrs.get("schedule"):
        attrs["schedule"] = op.attrs["schedule"]
    bs.append(Op("template", operands, (), attrs, blocks, op.loc), (value,), (bs.buffers[value],))


def _element(v: Value, at: Index) -> Callable[[Tracer, Value], Value]:
    return lambda tracer, _: tracer.value(v, at)


def _operand(bs: BlockScheduler, op: Op, i: int, index: Index, roles: Roles) -> tuple[Value, DimLike, bool]:
    """(buffer, offset of an element, whether a prologue computes it) of one operand."""
    v = op.operands[i]
    source = prologue(bs, op, v)
    if source is not None:
        return source, simplify(ravel(index, v.type.shape), roles.ranges), True
    return (*resolve(bs, v, index, roles.ranges, roles.linear), False)


def by_element(bs: BlockScheduler, op: Op) -> None:
    """Compute a product by its element rule after all, into memory."""
    bs.program.elementwise.add(op)
    bs.done.discard(op)
    for r in op.results:
        bs.demand(r)


def _small_or_thin(op: Op) -> bool:
    """Whether a product is not worth a template: exact types, vectors, and a handful of elements."""
    x, y = (v.type for v in op.operands)
    eights = x.dtype is dt.int8 and op.attrs.get("accumulate", op.attrs.get("dtype")) is dt.int32
    if x.dtype not in (dt.f32, dt.f64, dt.bf16, dt.f16, dt.fp8_e4m3, dt.fp8_e5m2) and not eights:
        return True
    a = op.attrs
    m = product(s for i, s in enumerate(x.shape) if i not in (*a["lhs_batch"], *a["lhs_contract"]))
    n = product(s for i, s in enumerate(y.shape) if i not in (*a["rhs_batch"], *a["rhs_contract"]))
    if m == 1 or n == 1 or all(x.shape[i] == 1 for i in a["lhs_contract"]):
        return True  # a vector, or an outer product: as many multiplications as results
    work = x.size * n
    return isinstance(work, int) and work <= TINY


BY_ELEMENT["dot_general"] = _small_or_thin
