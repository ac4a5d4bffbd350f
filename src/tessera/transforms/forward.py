"""Forward mode: a Graph function is replayed, and beside each value its tangent is recorded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..ir.core import Function, Op, Value
from ..ops.table import OPS, Applied, OpDef
from ..tracing.recorder import bind
from ..tracing.tensor import Tensor
from .expand import definition
from .replay import Replay, as_list, plus, scaled, zeros
from .reverse import carries, cotangents_of, missing, transposed

Tangent = Tensor | None


class Forward(Replay):
    """The replay of one function or block with tangents.

    Attributes:
        tangents: by value; what is missing has none (a zero).
    """

    def __init__(self, functions: Any, env: dict[Value, Tensor] | None = None,
                 tangents: dict[Value, Tensor] | None = None):
        super().__init__(functions, env)
        self.tangents: dict[Value, Tensor] = {} if tangents is None else tangents

    def forward(self, ops: Sequence[Op]) -> None:
        for op in ops:
            structure = STRUCTURES.get(op.name)
            if structure is not None:
                structure(self, op)
            elif any(v in self.tangents for v in op.operands):
                self.primitive(op)
            else:
                self.again(op)

    def primitive(self, op: Op) -> None:
        rule = OPS[op.name]
        ts: list[Tangent] = [self.tangents.get(v) for v in op.operands]
        wanted = tuple([t is not None for t in ts])
        if not carries(rule, op, wanted):
            self.again(op)
            return
        if rule.expand is not None and rule.jvp is None and rule.partials is None and rule.linear is None:
            body = definition(op.name, tuple([v.type for v in op.operands]), op.attrs)
            self.inlined(op, body, ts)
            return
        x = Applied(op.name, op.attrs, [self.env[v] for v in op.operands], [], None, wanted)
        x.results = self.again(op)
        with self.at(op.loc):
            self.arrive(op, tangents_of(rule, x, ts, op))

    def inlined(self, op: Op, body: Function, ts: Sequence[Tangent]) -> None:
        """The ops of ``body`` in place of ``op``."""
        inner = Forward(body.functions or self.functions)
        with self.at(op.loc):
            outs, made = inner.run(body, [self.env[v] for v in op.operands], ts)
        self.env.update(zip(op.results, outs, strict=True))
        self.arrive(op, made)

    def arrive(self, op: Op, made: Sequence[Tangent]) -> None:
        """Enter the tangents of an op's results."""
        for r, t in zip(op.results, made, strict=True):
            if t is not None and r.type.dtype.is_inexact:
                self.tangents[r] = t if t.dtype is r.type.dtype else t.to(r.type.dtype)

    def run(self, fn: Function, args: Sequence[Tensor], ts: Sequence[Tangent]) -> tuple[list[Tensor], list[Tangent]]:
        """Replay a function; returns its results and their tangents."""
        self.env.update(zip(fn.args, args, strict=True))
        self.tangents.update((a, t) for a, t in zip(fn.args, ts, strict=True) if t is not None)
        self.forward(fn.body.ops[:-1])
        return [self.env[v] for v in fn.returns], [self.tangents.get(v) for v in fn.returns]


# Ops with nested blocks, calls and the like.
STRUCTURES: dict[str, Callable[[Forward, Op], None]] = {}


def tangents_of(rule: OpDef, x: Applied, ts: list[Tangent], op: Op) -> Sequence[Tangent]:
    """What the rule makes of the operands' tangents."""
    if rule.jvp is not None:
        return rule.jvp(x, ts)
    if rule.partials is not None:
        total: Tangent = None
        for t, p in zip(ts, rule.partials, strict=True):
            if t is not None and p is not None:
                total = plus(total, scaled(t, p(x)))
        return [total]
    if rule.linear is not None:
        positions = range(len(ts)) if rule.linear is True else rule.linear or ()
        operands = [(zeros(o.type) if t is None else t) if i in positions else o
                    for i, (o, t) in enumerate(zip(x.operands, ts, strict=True))]
        return as_list(bind(x.name, *operands, **x.attrs))
    if rule.vjp is not None:
        return twice_transposed(rule, x, ts, op)
    raise missing(op)


def twice_transposed(rule: OpDef, x: Applied, ts: list[Tangent], op: Op) -> list[Tangent]:
    """Tangents from a ``vjp`` alone: it is linear in the cotangents, and its transpose takes tangents forwards."""
    if rule.forward is not None:
        x.results, x.residuals = rule.forward(x)

    def back(gs: list[Tangent]) -> Sequence[Tangent]:
        return cotangents_of(rule, x, gs, op)

    results = list(x.results)
    return transposed(back, results, [r.dtype.is_inexact for r in results], ts)


__all__ = ["STRUCTURES", "Forward", "tangents_of"]
