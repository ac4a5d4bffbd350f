"""What a loop need not do in each of its steps.

A product of a loop's *input* (a row of a scanned sequence) with something that does not change is the same work whether it is
done step by step, a few rows at a time, or for all steps at once before the loop: but all at once it runs at full speed, and the
loop is left with what really waits for the step before.  Every element is the same chain over k, so its bits are the same.
"""

from __future__ import annotations

from ..ir.core import Block, Copier, Function, Op, TensorType, Value, rewrite
from ..ops.table import OPS
from ..types.dims import DimLike, known_nonnegative, product
from .cleanup import CHECKED
from .rewriting import everywhere, mergeable

FEW_ROWS = 256   # a product of more rows than this runs at full speed inside the loop too
WIDER = 8        # a stack of results may be so many times as large as the stack of inputs that it comes from


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
        self.own = set(self.block.ops)
        self._fixed: dict[Value, bool] = {}

    def rebuilt(self) -> list[Value] | None:
        """The results of the new scan; None where nothing leaves the loop."""
        once: dict[Value, Value] = {}
        stacks: dict[Value, Value] = {}
        for o in self.block.ops:
            if o.name != "dot_general":
                continue
            v = o.results[0]
            if self.fixed(v):
                once[v] = self.before(v)
            elif self.worth_stacking(o):
                stacks[v] = self.stack(v)
        return self._build(once, stacks) if once or stacks else None

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

    def stack(self, v: Value) -> Value:
        if v in self.streams:
            return self.c[self.streams[v]]
        o = v.op
        assert o is not None
        t = TensorType(v.type.dtype, (self.length, *v.type.shape))
        if o.name == "dot_general":
            operands = [self.stack(o.operands[0]), self.before(o.operands[1])]
            attrs = {**o.attrs, "lhs_contract": tuple(i + 1 for i in o.attrs["lhs_contract"])}
            return self.c.builder.value(o.name, operands, t, attrs, (), o.loc)
        return self.c.builder.value(o.name, [self.stack(x) for x in o.operands], t, o.attrs, (), o.loc)

    # -- the loop that is left -----------------------------------------------------------------------------------------------------
    def _build(self, once: dict[Value, Value], stacks: dict[Value, Value]) -> list[Value]:
        c, n = self.c, self.carry
        gone = {v.op for v in (*once, *stacks)}
        read = {x for o in _live(self.block, gone) for x in o.operands}
        kept = [a for a in self.streams if a in read]
        old = [*self.block.args[:n], *kept, *stacks]
        new = Block([a.type for a in old], [a.name for a in old])
        operands = [*(c[x] for x in self.op.operands[:n]), *(c[self.streams[a]] for a in kept), *stacks.values()]
        c.map.update(once)
        c.map.update(zip(old, new.args, strict=True))
        with c.builder.at(new):
            c.run(o for o in self.block.ops if o not in gone)
        made = c.builder.op("scan", operands, [r.type for r in self.op.results], self.op.attrs, [new], self.op.loc)
        return made.results


def _live(block: Block, gone: set[Op | None]) -> list[Op]:
    """The ops of a block (nested ones too) that are needed when the results of ``gone`` come from elsewhere."""
    wanted: set[Value] = set()
    out: list[Op] = []
    for o in reversed(block.ops):
        if o in gone:
            continue
        if o.name == "yield" or not mergeable(o) or any(r in wanted for r in o.results):
            inner = list(o.walk())
            out += inner
            wanted.update(x for i in inner for x in i.operands)
    return out


def _movable(o: Op) -> bool:
    """True for ops that may be done elsewhere, and more often: nothing but their result comes of them."""
    rule = OPS.get(o.name)
    if rule is None or not mergeable(o) or len(o.results) != 1 or o.name in CHECKED:
        return False
    return o.name == "dot_general" or rule.pointwise or rule.family == "movement"


__all__ = ["hoist_products"]
