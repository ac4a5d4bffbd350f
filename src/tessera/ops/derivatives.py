"""What derivative rules share: zeros, sums of cotangents, and rules of ops with one operand and one result.

A rule receives an :class:`~tessera.ops.table.Applied` and tangents (of its operands) or cotangents (of its results), where
None is a zero.  The pairing of complex numbers is bilinear and real: ``Re(sum(cotangent * tangent))``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..ir.core import TensorType
from ..tracing.recorder import bind
from ..types.dims import DimLike
from .table import Applied

Tangent = Any  # a Tensor, or None for a zero
Rule = Callable[[Applied, Sequence[Tangent]], list[Tangent]]


def zeros(t: TensorType) -> Any:
    """Zeros of a type."""
    return bind("full", shape=t.shape, value=0, dtype=t.dtype)


def plus(*terms: Tangent) -> Tangent:
    """The sum of the terms that are not zero."""
    total = None
    for t in terms:
        if t is not None:
            total = t if total is None else bind("add", total, t)
    return total


def kept(mask: Any, x: Any) -> Any:
    """``x`` where the mask holds, else 0."""
    return bind("select", mask, x, zeros(x.type))


def stretched(small: Any, axes: Sequence[int], shape: Sequence[DimLike]) -> Any:
    """A reduction's result over ``axes`` (without them) repeated along them, to ``shape``."""
    spaced = tuple(1 if i in axes else n for i, n in enumerate(shape))
    if small.type.shape != spaced:
        small = bind("reshape", small, shape=spaced)
    return small if spaced == tuple(shape) else bind("broadcast_to", small, shape=tuple(shape))


def again(x: Applied, *operands: Any, **changes: Any) -> Any:
    """The op of ``x`` on other operands."""
    return bind(x.name, *operands, **{**x.attrs, **changes})


def reverse(fn: Callable[[Applied, Any], Any]) -> Rule:
    """A vjp of an op with one result whose first operand alone has a derivative: ``fn(applied, cotangent)``."""
    return lambda x, gs: [fn(x, gs[0]), *[None] * (len(x.operands) - 1)]


def onward(fn: Callable[[Applied, Any], Any]) -> Rule:
    """A jvp of an op with one result whose first operand alone has a derivative: ``fn(applied, tangent)``."""
    return lambda x, ts: [None if ts[0] is None else fn(x, ts[0])]
