"""Reverse mode: a Graph function is replayed, and a tape of pullbacks kept; then cotangents run back along it.

Only ops on a path from the inputs that are asked for stand on the tape.  A pullback records what its op's ``vjp`` writes, in
the user's own ops, so that derivatives of derivatives need nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..errors import DerivativeError
from ..ir.core import Function, Op, Value
from ..ops.table import OPS, Applied, OpDef
from ..tracing.tensor import Tensor
from .expand import definition
from .replay import Replay, plus, record_body, scaled, zeros

Cotangent = Tensor | None
Pull = Callable[[list[Cotangent], "Cotangents"], Sequence[Cotangent]]


class Cotangents(dict[Value, Tensor]):
    """Cotangents by the value they belong to; what arrives twice is added."""

    def add(self, v: Value, g: Cotangent) -> None:
        if g is not None:
            old = self.get(v)
            self[v] = g if old is None else plus(old, g)  # type: ignore[assignment]


class Reverse(Replay):
    """The replay of one function or block with a tape.

    Attributes:
        active: values that depend on an input whose cotangent is wanted, and have a derivative by it.
    """

    def __init__(self, functions: Any, env: dict[Value, Tensor] | None = None, active: set[Value] | None = None):
        super().__init__(functions, env)
        self.active: set[Value] = set() if active is None else active
        self.tape: list[tuple[Op, Pull]] = []

    # -- forwards ----------------------------------------------------------------------------------------------------------
    def forward(self, ops: Sequence[Op]) -> None:
        for op in ops:
            self.step(op)

    def step(self, op: Op) -> None:
        structure = STRUCTURES.get(op.name)
        if structure is not None:
            pull = structure(self, op)
        elif any(v in self.active for v in op.operands):
            pull = self.primitive(op)
        else:
            pull = None
            self.again(op)
        if pull is not None:
            self.tape.append((op, pull))
            self.active.update(r for r in op.results if r.type.dtype.is_inexact)

    def primitive(self, op: Op) -> Pull | None:
        rule = OPS[op.name]
        wanted = tuple([v in self.active for v in op.operands])
        if not carries(rule, op, wanted):
            self.again(op)
            return None
        if rule.vjp is None and rule.partials is None and rule.jvp is None and rule.linear is None and rule.expand is not None:
            return self.expanded(op, wanted)
        xs = [self.env[v] for v in op.operands]
        x = Applied(op.name, op.attrs, xs, [], None, wanted)
        if rule.forward is not None:
            with self.at(op.loc):
                x.results, x.residuals = rule.forward(x)
            self.env.update(zip(op.results, x.results, strict=True))
        else:
            x.results = self.again(op)

        def pull(gs: list[Cotangent], cts: Cotangents) -> Sequence[Cotangent]:
            return cotangents_of(rule, x, gs, op)

        return pull

    def expanded(self, op: Op, wanted: Sequence[bool]) -> Pull:
        """A composite without a rule: its definition is differentiated."""
        body = definition(op.name, tuple([v.type for v in op.operands]), op.attrs)
        return self.inlined(op, body, wanted)

    def inlined(self, op: Op, body: Function, wanted: Sequence[bool]) -> Pull:
        """The ops of ``body`` in place of ``op``."""
        inner = Reverse(body.functions or self.functions)
        with self.at(op.loc):
            outs = inner.run(body, [self.env[v] for v in op.operands], wanted)
        self.env.update(zip(op.results, outs, strict=True))
        return lambda gs, cts: inner.pull(body, gs)

    def run(self, fn: Function, args: Sequence[Tensor], wanted: Sequence[bool]) -> list[Tensor]:
        """Replay a function; returns its results."""
        self.env.update(zip(fn.args, args, strict=True))
        self.active.update(a for a, w in zip(fn.args, wanted, strict=True) if w)
        self.forward(fn.body.ops[:-1])
        return [self.env[v] for v in fn.returns]

    # -- backwards ---------------------------------------------------------------------------------------------------------
    def pull(self, fn: Function, gs: Sequence[Cotangent]) -> list[Cotangent]:
        """Cotangents of the arguments of a function that was run, from those of its results."""
        cts = Cotangents()
        for v, g in zip(fn.returns, gs, strict=True):
            if v in self.active:
                cts.add(v, g)
        self.backward(cts)
        return [cts.get(a) for a in fn.args]

    def backward(self, cts: Cotangents) -> None:
        """Run the tape; afterwards ``cts`` holds the cotangents of what the replayed ops did not make."""
        for op, pull in reversed(self.tape):
            gs = [cts.pop(r, None) for r in op.results]
            if all(g is None for g in gs):
                continue
            with self.at(op.loc):
                back = pull(gs, cts)
                for v, g in zip(op.operands, back, strict=True):
                    if g is not None and v in self.active:
                        cts.add(v, fitting(g, v, op))


# Ops with nested blocks, calls and the like: (engine, op) -> pullback, or None where nothing depends on the inputs.
STRUCTURES: dict[str, Callable[[Reverse, Op], Pull | None]] = {}


def carries(rule: OpDef, op: Op, wanted: Sequence[bool]) -> bool:
    """Whether any of the ``wanted`` operands has a derivative that need not be zero."""
    if not any(r.type.dtype.is_inexact for r in op.results):
        return False
    if rule.partials is not None and rule.jvp is None and rule.vjp is None:
        return any(w and p is not None for w, p in zip(wanted, rule.partials, strict=True))
    if rule.linear is not None and not isinstance(rule.linear, bool):
        return any(wanted[i] for i in rule.linear if i < len(wanted))
    return True


def cotangents_of(rule: OpDef, x: Applied, gs: list[Cotangent], op: Op) -> Sequence[Cotangent]:
    """What the rule makes of the results' cotangents."""
    if rule.vjp is not None:
        return rule.vjp(x, gs)
    if rule.partials is not None:
        (g,) = gs
        assert g is not None
        out: list[Cotangent] = []
        for w, p in zip(x.wanted, rule.partials, strict=True):
            out.append(scaled(g, p(x)) if w and p is not None else None)
        return out
    if rule.jvp is not None:
        return transposed(lambda ts: rule.jvp(x, ts), x.operands, x.wanted, gs)  # type: ignore[misc]
    raise missing(op)


def transposed(linear: Callable[[list[Tensor | None]], Sequence[Tensor | None]], operands: Sequence[Tensor],
               wanted: Sequence[bool], gs: Sequence[Cotangent]) -> list[Cotangent]:
    """The transpose of a linear function of tangents, applied to cotangents of its results."""
    at = [i for i, w in enumerate(wanted) if w]
    which: list[int] = []

    def call(ts: list[Tensor]) -> list[Tensor]:
        tangents: list[Tensor | None] = [None] * len(operands)
        for i, t in zip(at, ts, strict=True):
            tangents[i] = t
        outs = linear(tangents)
        which[:] = [k for k, t in enumerate(outs) if t is not None]
        return [outs[k] for k in which]  # type: ignore[misc]

    dummies = [zeros(operands[i].type) for i in at]
    body = record_body("linear", call, dummies, raised=False)
    engine = Reverse(body.graph.functions)
    engine.run(body.graph, [*dummies, *body.given], [True] * len(at) + [False] * len(body.given))
    back = engine.pull(body.graph, [gs[k] for k in which])
    out: list[Cotangent] = [None] * len(operands)
    for i, g in zip(at, back[:len(at)], strict=True):
        out[i] = g
    return out


def fitting(g: Tensor, v: Value, op: Op) -> Tensor:
    """A cotangent in its value's dtype.

    Raises:
        DerivativeError: a rule gave one of another shape.
    """
    if g.type == v.type:
        return g
    if g.type.shape != v.type.shape:
        raise DerivativeError(f"the derivative rule of {op.name!r} gives a cotangent of another shape", expected=str(v.type),
                              received=str(g.type), loc=op.loc)
    return g.to(v.type.dtype)


def missing(op: Op) -> DerivativeError:
    """The error for an op without a rule."""
    return DerivativeError(
        f"{op.name!r} has no derivative rule", loc=op.loc, received=", ".join(str(v.type) for v in op.operands),
        sentence="A derivative was asked for that runs through this op.",
        hints=["Hold the value constant: ts.stop_gradient(x)", "Give your function a rule of its own: @ts.custom_vjp"])
