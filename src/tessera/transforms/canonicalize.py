"""One form for each expression.  Every rule is exact: the bits of the result do not change, NaN and signed zeros included."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..ir.core import Copier, Function, Op, TensorType, Value, rewrite
from ..types.dtypes import DType, bool_
from ..types.promotion import widens
from .rewriting import everywhere, producer

RULES: dict[str, list[Callable[[Copier, Op, list[Value]], Value | None]]] = {}
"""Rules by op name: (copier, op, new operands) -> the value that replaces the op's result, or None."""

Rule = Callable[[Copier, Op, "list[Value]"], "Value | None"]


def rule(*names: str) -> Callable[[Rule], Rule]:
    def enter(fn: Rule) -> Rule:
        for n in names:
            RULES.setdefault(n, []).append(fn)
        return fn
    return enter


def canonicalize(fn: Function) -> Function:
    """Apply :data:`RULES` from the parameters to the results; one sweep, since each op sees rewritten operands."""
    return everywhere(fn, lambda f: rewrite(f, _apply))


def _apply(c: Copier, op: Op) -> list[Value] | None:
    if op.name == "scan" and op.attrs["length"] == 0:
        return _no_steps(c, op)
    rules = RULES.get(op.name)
    if rules is None:
        return None
    operands = c.operands(op)
    for r in rules:
        made = r(c, op, operands)
        if made is not None:
            return [made]
    return None


def _no_steps(c: Copier, op: Op) -> list[Value]:
    """What a loop of no steps gives: the carries that it starts from, and stacks of nothing."""
    n = op.attrs["carry"]
    return [*c.operands(op)[:n], *(_filled(c, op, 0, r.type) for r in op.results[n:])]


# -- constants -----------------------------------------------------------------------------------------------------------
def uniform(v: Value) -> Any:
    """The number that every element of ``v`` is, where that is a literal; else None."""
    op = v.op
    while op is not None and op.name in ("broadcast_to", "reshape", "transpose"):
        op = op.operands[0].op
    if op is None:
        return None
    if op.name == "full":
        return _number(op.attrs["value"])
    if op.name == "constant":
        value = np.asarray(op.attrs["value"])
        if value.size and (value.size == 1 or value.tobytes() == value.flat[0].tobytes() * value.size):
            return _number(value.flat[0].item())
    return None


def _number(x: Any) -> Any:
    return x if isinstance(x, int | float | complex) else None


def _filled(c: Copier, op: Op, value: Any, t: TensorType) -> Value:
    return c.builder.value("full", (), t, {"shape": t.shape, "value": value, "dtype": t.dtype}, (), op.loc)


def _positive_zero(x: Any) -> bool:
    return bool(x == 0) and math.copysign(1.0, x) > 0


# -- arithmetic ------------------------------------------------------------------------------------------------------------
@rule("mul")
def _times_one(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    for a, b in ((0, 1), (1, 0)):
        k = uniform(xs[b])
        if k is not None and k == 1 and not xs[a].type.dtype.is_complex:  # (inf + i) * 1 has a NaN part
            return xs[a]
        if k is not None and k == 0 and xs[a].type.dtype.is_integer:
            return xs[b]
    return None


@rule("add")
def _plus_zero(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    for a, b in ((0, 1), (1, 0)):
        k = uniform(xs[b])
        if k is None or k != 0:
            continue
        if xs[a].type.dtype.is_integer or (isinstance(k, float) and not _positive_zero(k)):
            return xs[a]  # x + -0.0 is x; x + 0.0 turns -0.0 into 0.0
    return None


@rule("sub")
def _minus_zero(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    k = uniform(xs[1])
    if k is None or k != 0:
        return None
    if xs[0].type.dtype.is_integer or (isinstance(k, float | int) and _positive_zero(k)):
        return xs[0]
    return None


@rule("div")
def _by_power_of_two(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    k = uniform(xs[1])
    t = op.results[0].type
    if k is None or not t.dtype.is_float or not isinstance(k, float | int) or k == 0:
        return None
    if k == 1:
        return xs[0]
    if abs(math.frexp(float(k))[0]) == 0.5 and _normal(float(k), t.dtype) and _normal(1.0 / float(k), t.dtype):
        return c.builder.value("mul", (xs[0], _filled(c, op, 1.0 / float(k), t)), t, {}, (), op.loc)
    return None


def _normal(x: float, dtype: DType) -> bool:
    """True for powers of two that ``dtype`` holds with room to spare: neither infinite nor subnormal."""
    return float(dtype.finfo.tiny) <= abs(x) <= float(dtype.finfo.max)


@rule("neg")
def _twice_negated(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    inner = producer(xs[0], "neg")
    return inner.operands[0] if inner is not None else None


@rule("logical_not")
def _twice_denied(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    inner = producer(xs[0], "logical_not")
    return inner.operands[0] if inner is not None else None


@rule("maximum", "minimum", "logical_and", "logical_or", "bitwise_and", "bitwise_or")
def _with_itself(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    return xs[0] if xs[0] is xs[1] else None


@rule("select")
def _decided(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    p = uniform(xs[0])
    if p is not None:
        return xs[1] if p else xs[2]
    if xs[1].type.dtype is bool_ and uniform(xs[1]) is True and uniform(xs[2]) is False:
        return xs[0]
    return xs[1] if xs[1] is xs[2] else None


@rule("convert")
def _conversions(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    t = op.results[0].type
    if xs[0].type.dtype is t.dtype:
        return xs[0]
    inner = producer(xs[0], "convert")
    if inner is not None and op.attrs.keys() <= {"dtype"} and inner.attrs.keys() <= {"dtype"}:
        source = inner.operands[0]
        lossless = source.type.dtype is not bool_ and widens(source.type.dtype, inner.results[0].type.dtype) \
            and _holds(inner.results[0].type.dtype, source.type.dtype)
        if lossless and source.type.dtype is t.dtype:
            return source
    return None


def _holds(wide: DType, narrow: DType) -> bool:
    """True when ``wide`` represents every value of ``narrow``."""
    if wide.is_float and narrow.is_float:
        return wide.bits > narrow.bits
    if wide.is_float and narrow.is_integer:
        return narrow.bits < {64: 53, 32: 24}.get(wide.bits, 0)
    return wide.is_integer and narrow.is_integer and wide.bits > narrow.bits


# -- movement --------------------------------------------------------------------------------------------------------------
@rule("reshape")
def _reshapes(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    t = op.results[0].type
    if xs[0].type.shape == t.shape:
        return xs[0]
    inner = producer(xs[0], "reshape")
    if inner is None:
        return None
    source = inner.operands[0]
    return source if source.type.shape == t.shape else \
        c.builder.value("reshape", (source,), t, {"shape": t.shape}, (), op.loc)


@rule("transpose")
def _transposes(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    perm = tuple(op.attrs["perm"])
    inner = producer(xs[0], "transpose")
    if inner is not None:
        before = inner.attrs["perm"]
        perm = tuple(before[p] for p in perm)
        source = inner.operands[0]
    else:
        source = xs[0]
    if perm == tuple(range(len(perm))):
        return source
    if inner is None:
        return None
    return c.builder.value("transpose", (source,), op.results[0].type, {"perm": perm}, (), op.loc)


@rule("broadcast_to")
def _broadcasts(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    t = op.results[0].type
    if xs[0].type.shape == t.shape:
        return xs[0]
    inner = producer(xs[0], "broadcast_to")
    if inner is None:
        return None
    return c.builder.value("broadcast_to", (inner.operands[0],), t, {"shape": t.shape}, (), op.loc)


@rule("slice")
def _whole(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    same = xs[0].type.shape == op.results[0].type.shape
    return xs[0] if same and all(s == 1 for s in op.attrs["stride"]) and all(a == 0 for a in op.attrs["start"]) else None


@rule("pad")
def _unpadded(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    amounts: Sequence[Any] = (*op.attrs["low"], *op.attrs["high"], *(op.attrs.get("interior") or ()))
    return xs[0] if all(a == 0 for a in amounts) else None


@rule("concat")
def _single(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    return xs[0] if len(xs) == 1 else None


@rule("flip")
def _unflipped(c: Copier, op: Op, xs: list[Value]) -> Value | None:
    axes = op.attrs["axes"]
    if all(xs[0].type.shape[a] == 1 for a in axes):
        return xs[0]
    inner = producer(xs[0], "flip")
    return inner.operands[0] if inner is not None and set(inner.attrs["axes"]) == set(axes) else None
