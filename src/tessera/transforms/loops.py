"""What a loop need not do in each of its steps.

A product of a loop's *input* (a row of a scanned sequence) with something that does not change is the same work whether it is
done step by step, a few rows at a time, or for many steps at once before them: but at once it runs at full speed, and the loop is
left with what really waits for the step before.  Every element is the same chain over k, so its bits are the same (a product so
tiny that it is no template's is summed in lanes; whether it is tiny is judged where it ends up).

Where the products of all steps would not stay in the caches, the loop is cut in two: an outer one over groups of steps makes the
products of a group, then an inner one takes its steps.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from ..ir.core import Block, Copier, Function, Op, TensorType, Value, rewrite, uses
from ..ops.table import OPS
from ..types.dims import DimLike, known_nonnegative, product
from .cleanup import CHECKED
from .rewriting import everywhere, mergeable

FEW_ROWS = 256   # a product of more rows than this runs at full speed inside the loop too
GROUP = 1 << 20  # elements of the products of one group of steps: 4 MiB of f32
WIDER = 8        # a stack of results may be so many times as large as the stack of inputs that it comes from


def sink_sums(fn: Function) -> Function:
    """Sums that the steps of a ``scan`` only add to (a gradient of weights: the products of every step's rows) are taken once,
    after the loop, over the stacks of all steps: as one product, or one reduction."""
    return everywhere(fn, lambda f: rewrite(f, lambda c, op: _Sums(c, op).rebuilt() if op.name == "scan" else None))


def hoist_products(fn: Function) -> Function:
    """Products in the body of a ``scan`` that need nothing from the step before are done for all steps at once, before the loop;
    products that do not depend on the step at all are done once."""
    return everywhere(fn, _hoist)


def _hoist(fn: Function) -> Function:
    return rewrite(fn, lambda c, op: _Scan(c, op).rebuilt() if op.name == "scan" else None)


class _Scan:
    """One ``scan``: which values of its body can be had before the loop, and the scan without them."""

    def __init__(self, c: Copier, op: Op):
        self.c, self.op = c, op
        self.block = op.blocks[0]
        self.carry: int = op.attrs["carry"]
        self.length: DimLike = op.attrs["length"]
        self.streams = dict(zip(self.block.args[self.carry:], op.operands[self.carry:], strict=True))
        self.rows = {a: c[v] for a, v in self.streams.items()}   # what the loop to be built runs over
        self.own = set(self.block.ops)
        self._fixed: dict[Value, bool] = {}

    def rebuilt(self) -> list[Value] | None:
        """The results of the new scan; None where nothing leaves the loop."""
        dots = [o for o in self.block.ops if o.name == "dot_general"]
        once = {o.results[0] for o in dots if self.fixed(o.results[0])}
        stacks = [o.results[0] for o in dots if o.results[0] not in once and self.worth_stacking(o)]
        if not once and not stacks:
            return None
        fixed = {v: self.before(v) for v in once}
        steps = self.group(stacks)
        if steps is not None:
            return self.outer(fixed, stacks, steps)
        return self.inner(fixed, stacks, self.length, [self.c[v] for v in self.op.operands[:self.carry]])

    def group(self, stacks: Sequence[Value]) -> int | None:
        """How many steps make a group; None where the loop is better left whole."""
        each = sum((v.type.size for v in stacks), 0)
        if not isinstance(self.length, int) or not isinstance(each, int) or self.length * each <= GROUP:
            return None
        fitting = [g for g in range(1, self.length) if self.length % g == 0 and g * each <= GROUP]
        return fitting[-1] if fitting and fitting[-1] > 8 else None

    # -- what does not depend on the step --------------------------------------------------------------------------------------
    def fixed(self, v: Value) -> bool:
        """True when ``v`` is the same in every step, and can be computed before the first."""
        if v not in self._fixed:
            o = v.op
            if o is None or o not in self.own:
                self._fixed[v] = v not in self.block.args
            else:
                self._fixed[v] = _movable(o) and all(self.fixed(x) for x in o.operands)
        return self._fixed[v]

    def before(self, v: Value) -> Value:
        """A fixed value, in the block around the loop."""
        o = v.op
        if o is None or o not in self.own:
            return self.c[v]
        return self.c.builder.op(o.name, [self.before(x) for x in o.operands], [r.type for r in o.results], o.attrs, (), o.loc).results[0]

    # -- what depends on the loop's inputs alone ---------------------------------------------------------------------------------
    def stackable(self, v: Value) -> bool:
        """True when the values of all steps can be had before the loop, one below the other along a new first axis."""
        if v in self.streams:
            return True
        o = v.op
        if o is None or o not in self.own or not _movable(o):
            return False
        if o.name == "dot_general":
            return not o.attrs["lhs_batch"] and self.stackable(o.operands[0]) and self.fixed(o.operands[1])
        return OPS[o.name].pointwise and all(x.type.shape == v.type.shape and self.stackable(x) for x in o.operands)

    def worth_stacking(self, o: Op) -> bool:
        if not self.stackable(o.results[0]):
            return False
        x, out = o.operands[0].type, o.results[0].type
        rows = product(s for i, s in enumerate(x.shape) if i not in o.attrs["lhs_contract"])
        return isinstance(rows, int) and rows <= FEW_ROWS and known_nonnegative(WIDER * x.size - out.size)

    def stack(self, v: Value, length: DimLike) -> Value:
        """The values of all steps (of a group), in the block around the loop."""
        if v in self.streams:
            return self.rows[v]
        o = v.op
        assert o is not None
        t = TensorType(v.type.dtype, (length, *v.type.shape))
        if o.name == "dot_general":
            operands = [self.stack(o.operands[0], length), self.before(o.operands[1])]
            attrs = {**o.attrs, "lhs_contract": tuple(i + 1 for i in o.attrs["lhs_contract"])}
            return self.c.builder.value(o.name, operands, t, attrs, (), o.loc)
        return self.c.builder.value(o.name, [self.stack(x, length) for x in o.operands], t, o.attrs, (), o.loc)

    # -- the loop that is left -----------------------------------------------------------------------------------------------------
    def inner(self, fixed: dict[Value, Value], stacks: Sequence[Value], length: DimLike, start: Sequence[Value]) -> list[Value]:
        """The products, and the scan over ``length`` steps from ``start`` that finds them ready."""
        c, n = self.c, self.carry
        made = {v: self.stack(v, length) for v in stacks}
        gone = {v.op for v in (*fixed, *stacks)}
        left = _live(self.block, gone)
        read = {x for o in left for i in o.walk() for x in i.operands}
        kept = [a for a in self.streams if a in read]
        old = [*self.block.args[:n], *kept, *stacks]
        new = Block([a.type for a in old], [a.name for a in old])
        operands = [*start, *(self.rows[a] for a in kept), *made.values()]
        c.map.update(fixed)
        c.map.update(zip(old, new.args, strict=True))
        with c.builder.at(new):
            c.run(left)
        types = [*(r.type for r in self.op.results[:n]),
                 *(TensorType(r.type.dtype, (length, *r.type.shape[1:])) for r in self.op.results[n:])]
        return c.builder.op("scan", operands, types, {**self.op.attrs, "length": length}, [new], self.op.loc).results

    def outer(self, fixed: dict[Value, Value], stacks: Sequence[Value], steps: int) -> list[Value]:
        """A scan over groups of ``steps`` steps."""
        c, n, op = self.c, self.carry, self.op
        assert isinstance(self.length, int)
        groups = self.length // steps
        operands = [c[x] if i < n else self._reshaped(c[x], (groups, steps, *x.type.shape[1:])) for i, x in enumerate(op.operands)]
        block = Block([v.type if i < n else TensorType(v.type.dtype, v.type.shape[1:]) for i, v in enumerate(operands)])
        self.rows = dict(zip(self.streams, block.args[n:], strict=True))
        with c.builder.at(block):
            c.builder.op("yield", self.inner(fixed, stacks, steps, block.args[:n]))
        types = [*(r.type for r in op.results[:n]),
                 *(TensorType(r.type.dtype, (groups, steps, *r.type.shape[1:])) for r in op.results[n:])]
        made = c.builder.op("scan", operands, types, {**op.attrs, "length": groups}, [block], op.loc).results
        return [*made[:n], *(self._reshaped(v, r.type.shape) for v, r in zip(made[n:], op.results[n:], strict=True))]

    def _reshaped(self, v: Value, shape: tuple[DimLike, ...]) -> Value:
        return self.c.builder.value("reshape", [v], TensorType(v.type.dtype, shape), {"shape": shape}, (), self.op.loc)


class _Sums:
    """One ``scan``: which of its carries are sums of terms that nothing in the loop reads."""

    def __init__(self, c: Copier, op: Op):
        self.c, self.op = c, op
        self.block = op.blocks[0]
        self.carry: int = op.attrs["carry"]
        self.table = uses(self.block)

    def rebuilt(self) -> list[Value] | None:
        """The results of the new scan; None where there is no such sum."""
        terms = {i: t for i in range(self.carry) if (t := self.term(i)) is not None}
        if not terms:
            return None
        c, op, n, ends = self.c, self.op, self.carry, self.block.terminator.operands
        kept = [i for i in range(len(ends)) if i not in terms]
        streams = self.block.args[n:]
        wanted = list(dict.fromkeys(x for t in terms.values() for x in t.operands))
        inside = [v for v in wanted if v not in streams and v not in ends[n:]]
        old = [a for i, a in enumerate(self.block.args) if i not in terms]
        new = Block([a.type for a in old], [a.name for a in old])
        c.map.update(zip(old, new.args, strict=True))
        gone = {*(t for t in terms.values()), *(ends[i].op for i in terms)}
        with c.builder.at(new):
            c.run(o for o in self.block.ops[:-1] if o not in gone)
            c.builder.op("yield", [c[v] for v in [*(ends[i] for i in kept), *inside]])
        length = op.attrs["length"]
        types = [*(op.results[i].type for i in kept), *(TensorType(v.type.dtype, (length, *v.type.shape)) for v in inside)]
        made = c.builder.op("scan", [c[v] for i, v in enumerate(op.operands) if i not in terms], types,
                            {**op.attrs, "carry": n - len(terms)}, [new], op.loc).results
        results = dict(zip(kept, made, strict=False))
        stacks = dict(zip(inside, made[len(kept):], strict=True))
        stacks |= {v: c[op.operands[n + i]] for i, v in enumerate(streams) if v in wanted}
        stacks |= {v: results[n + ends[n:].index(v)] for v in wanted if v not in stacks}
        for i, t in terms.items():
            results[i] = c.builder.value("add", [c[op.operands[i]], self.total(t, stacks)], op.results[i].type, {}, (), t.loc)
        return [results[i] for i in range(len(ends))]

    def term(self, i: int) -> Op | None:
        """What is added to carry ``i`` in each step: a product of values of the step, or a reduction of one."""
        carry, end = self.block.args[i], self.block.terminator.operands[i]
        if end.op is None or end.op.name != "add" or end.op not in self.block.ops or len(self.table.get(carry, ())) != 1:
            return None
        if not end.type.dtype.is_inexact or len(self.table[end]) != 1 or carry not in end.op.operands:
            return None
        v = end.op.operands[1 - end.op.operands.index(carry)]
        t = v.op
        if t is None or t not in self.block.ops or v is carry or len(self.table[v]) != 1 or v.type != carry.type:
            return None
        if t.name == "reduce_sum":
            return t if self.small(t.operands) else None
        plain = t.name == "dot_general" and not t.attrs["lhs_batch"] and t.attrs.get("dtype") is None
        own = all(x in self.block.args or (x.op is not None and x.op in self.block.ops) for x in t.operands)
        return t if plain and own and self.small(t.operands) else None

    def small(self, operands: Sequence[Value]) -> bool:
        """Whether the stacks are worth their memory: they hold no more than some rows for each row of the sum."""
        return all(isinstance(v.type.size, int) and v.type.size <= GROUP // 16 for v in operands)

    def total(self, t: Op, stacks: dict[Value, Value]) -> Value:
        """The terms of all steps together."""
        operands = [stacks[v] for v in t.operands]
        if t.name == "reduce_sum":
            attrs = {**t.attrs, "axes": (0, *(a + 1 for a in t.attrs["axes"]))}
        else:
            attrs = {**t.attrs, **{k: (0, *(a + 1 for a in t.attrs[k])) for k in ("lhs_contract", "rhs_contract")}}
        return self.c.builder.value(t.name, operands, t.results[0].type, attrs, (), t.loc)


def _live(block: Block, gone: Collection[Op | None]) -> list[Op]:
    """The ops of a block that are needed when the results of ``gone`` come from elsewhere, in order."""
    wanted: set[Value] = set()
    out: list[Op] = []
    for o in reversed(block.ops):
        if o not in gone and (o.name == "yield" or not mergeable(o) or any(r in wanted for r in o.results)):
            out.append(o)
            wanted.update(x for i in o.walk() for x in i.operands)
    return out[::-1]


def _movable(o: Op) -> bool:
    """True for ops that may be done elsewhere, and more often: nothing but their result comes of them."""
    rule = OPS.get(o.name)
    if rule is None or not mergeable(o) or len(o.results) != 1 or o.name in CHECKED:
        return False
    return o.name == "dot_general" or rule.pointwise or rule.family == "movement"


__all__ = ["hoist_products", "sink_sums"]
