"""Unstable formulas become stable ones, in the ops that a stretch of a trace has recorded.

Unlike raising, which finds the composites in formulas that people write with care, these rules change what is computed where the formula as
written overflows or cancels.  They are used where somebody asks for it (``@ts.numerically_stable``), and each use is reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..ir.core import Op, Value
from ..ops import composites, pointwise, reduction
from ..tracing.recorder import Trace
from ..tracing.tensor import Traced, make
from .matching import is_literal, literal, row_value, same, unbroadcast
from .rewriting import producer


@dataclass(frozen=True)
class Rewrite:
    """One formula that was replaced: what was written, what it is now, and where."""

    written: str
    now: str
    where: str

    def __str__(self) -> str:
        return f"{self.where}: {self.written} is computed as {self.now}"


Build = Callable[[], Any]
Rule = Callable[["_Stretch", Op], "tuple[str, str, Build] | None"]
RULES: dict[str, list[Rule]] = {}


def _rule(*names: str) -> Callable[[Rule], Rule]:
    def enter(fn: Rule) -> Rule:
        for n in names:
            RULES.setdefault(n, []).append(fn)
        return fn
    return enter


class _Stretch:
    """The ops of a trace that are looked at."""

    def __init__(self, trace: Trace):
        self.trace = trace

    def tensor(self, v: Value) -> Any:
        return make(Traced(self.trace, v))


def stabilize(trace: Trace, start: int) -> list[Rewrite]:
    """Replace unstable formulas among the ops of the current block from number ``start`` on; what was replaced, in order."""
    ops, found, at = trace.builder.block.ops, [], start
    stretch = _Stretch(trace)
    while at < len(ops):
        op = ops[at]
        real = not any(v.type.dtype.is_complex for v in op.operands)  # the stable forms are functions of real numbers
        for rule in RULES.get(op.name, ()) if real else ():
            got = rule(stretch, op)
            if got is not None:
                written, now, build = got
                end = len(ops)
                value = build()._p.value
                new = ops[end:]
                del ops[end:]
                ops[at:at] = new
                at += len(new)
                op.name, op.operands, op.attrs = "reshape", [value], {"shape": op.result.type.shape}
                found.append(Rewrite(written, now, str(op.loc) if op.loc is not None else "?"))
                break
        at += 1
    return found


def _keeps(total: Value, red: Op) -> bool:
    return bool(total.type.rank == red.operands[0].type.rank)


# -- exponentials ---------------------------------------------------------------------------------------------------------------
@_rule("div")
def _softmax(s: _Stretch, op: Op) -> tuple[str, str, Build] | None:
    e, total = op.operands
    exp, found = producer(e, "exp"), row_value(total, e)
    whole = producer(unbroadcast(total), "reduce_sum")
    if found is None and whole is not None and e.type.rank == 1 and tuple(whole.attrs["axes"]) == (0,):
        found = whole, 0  # a vector by its whole sum
    if exp is None or found is None or found[0].name != "reduce_sum" or not same(found[0].operands[0], e):
        return None
    x = exp.operands[0]
    return "exp(x) / sum(exp(x))", "softmax(x)", lambda: composites.softmax(s.tensor(x), found[1])


def _exp_sum(v: Value) -> tuple[Op, Value] | None:
    """``sum(exp(x))``, perhaps with its axes put back: (the sum, x)."""
    inner = producer(v, "reshape")
    red = producer(inner.operands[0] if inner is not None else v, "reduce_sum")
    exp = producer(red.operands[0], "exp") if red is not None else None
    return (red, exp.operands[0]) if red is not None and exp is not None else None


@_rule("log")
def _logsumexp(s: _Stretch, op: Op) -> tuple[str, str, Build] | None:
    found = _exp_sum(op.operands[0])
    if found is None:
        return None
    red, x = found
    return "log(sum(exp(x)))", "logsumexp(x)", lambda: reduction.logsumexp(
        s.tensor(x), red.attrs["axes"], _keeps(op.operands[0], red))


@_rule("log")
def _log_softmax(s: _Stretch, op: Op) -> tuple[str, str, Build] | None:
    inner = op.operands[0].op
    if inner is None:
        return None
    if inner.name == "reshape" and inner.operands[0].op is not None and inner.operands[0].op.name == "softmax":
        inner = inner.operands[0].op  # (that this pass has made)
    if inner.name == "softmax":
        return "log(softmax(x))", "log_softmax(x)", lambda: composites.log_softmax(s.tensor(inner.operands[0]), inner.attrs["axis"])
    if inner.name == "sigmoid":
        return "log(sigmoid(x))", "log_sigmoid(x)", lambda: composites.log_sigmoid(s.tensor(inner.operands[0]))
    return None


@_rule("log")
def _log1p(s: _Stretch, op: Op) -> tuple[str, str, Build] | None:
    inner = producer(op.operands[0], "add")
    if inner is None:
        return None
    for one, x in (inner.operands, inner.operands[::-1]):
        if is_literal(one, 1.0):
            exp = producer(x, "exp")
            if exp is not None:
                return "log(1 + exp(x))", "softplus(x)", lambda v=exp.operands[0]: composites.softplus(s.tensor(v))
            return "log(1 + x)", "log1p(x)", lambda v=x: pointwise.log1p(s.tensor(v))
    return None


@_rule("sub")
def _expm1(s: _Stretch, op: Op) -> tuple[str, str, Build] | None:
    exp = producer(op.operands[0], "exp")
    if exp is None or not is_literal(op.operands[1], 1.0):
        return None
    return "exp(x) - 1", "expm1(x)", lambda: pointwise.expm1(s.tensor(exp.operands[0]))


# -- squares ---------------------------------------------------------------------------------------------------------------------
def _square_of(v: Value) -> Value | None:
    op = producer(v, "mul")
    return op.operands[0] if op is not None and same(op.operands[0], op.operands[1]) else None


def _mean_of(v: Value) -> tuple[Value, tuple[int, ...], bool] | None:
    """A mean: (of what, axes, whether they are kept)."""
    op = producer(v, "div")
    if op is None:
        return None
    total = op.operands[0]
    inner = producer(total, "reshape")
    red = producer(inner.operands[0] if inner is not None else total, "reduce_sum")
    if red is None:
        return None
    x, axes = red.operands[0], tuple(red.attrs["axes"])
    n = literal(op.operands[1])
    size: Any = 1
    for a in axes:
        size = size * x.type.shape[a]
    counted = n == size if isinstance(size, int) else producer(unbroadcast(op.operands[1]), "size") is not None or any(
        o.name == "size" for o in _behind(op.operands[1]))
    return (x, axes, _keeps(v, red)) if counted else None


def _behind(v: Value) -> Sequence[Op]:
    out = []
    while v.op is not None and v.op.name in ("convert", "broadcast_to", "reshape", "size"):
        out.append(v.op)
        if not v.op.operands:
            break
        v = v.op.operands[0]
    return out


@_rule("sub")
def _variance(s: _Stretch, op: Op) -> tuple[str, str, Build] | None:
    """mean(x * x) - mean(x) ** 2, which cancels."""
    first, second = _mean_of(op.operands[0]), _square_of(op.operands[1])
    if first is None or second is None:
        return None
    x, mean = _square_of(first[0]), _mean_of(second)
    if x is None or mean is None or not same(mean[0], x) or first[1:] != mean[1:]:
        return None
    return "mean(x * x) - mean(x) ** 2", "var(x)", lambda: reduction.var(s.tensor(x), first[1], first[2])


@_rule("sqrt")
def _hypot(s: _Stretch, op: Op) -> tuple[str, str, Build] | None:
    both = producer(op.operands[0], "add")
    if both is None:
        return None
    a, b = (_square_of(v) for v in both.operands)
    if a is None or b is None:
        return None
    return "sqrt(x * x + y * y)", "hypot(x, y)", lambda: pointwise.hypot(s.tensor(a), s.tensor(b))


__all__ = ["Rewrite", "stabilize"]
