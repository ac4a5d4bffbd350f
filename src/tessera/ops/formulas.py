"""A pointwise formula of one tensor as data, for composites that keep the roundings of the formula they were raised from.

``"x"`` is the operand, a number is a constant of its dtype, and ``("op", a, b …)`` is a pointwise op on formulas.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import DTypeError
from ..tracing.recorder import bind
from ..types.dtypes import DType
from .operands import broadcast_to, scalar
from .table import OPS

Formula = Any  # "x" | int | float | tuple[str, Formula, ...]


def build(formula: Formula, x: Any) -> Any:
    """The formula of tensor ``x``, op by op."""
    if formula == "x":
        return x
    if isinstance(formula, int | float):
        return broadcast_to(scalar(formula, x.dtype), x.type.shape)
    return bind(formula[0], *[build(f, x) for f in formula[1:]])


def evaluate(formula: Formula, x: Any) -> Any:
    """The formula of numpy array ``x``."""
    if isinstance(formula, str):
        return x
    if isinstance(formula, int | float):
        return np.full(x.shape, formula, x.dtype)
    return OPS[formula[0]].reference(*[evaluate(f, x) for f in formula[1:]])


def check(name: str, attrs: Mapping[str, Any], dtype: DType) -> None:
    """Raises DTypeError where the attribute ``formula`` is none for operands of ``dtype``."""
    def sound(f: Any) -> bool:
        if isinstance(f, str):
            return f == "x"
        if isinstance(f, int | float):
            return not isinstance(f, bool)
        if not isinstance(f, Sequence) or not f or not isinstance(f[0], str):
            return False
        rule = OPS.get(f[0])
        return rule is not None and rule.pointwise and dtype in rule.dtypes and all(sound(a) for a in f[1:])

    formula = attrs.get("formula")
    if formula is not None and not sound(formula):
        raise DTypeError(f"the attribute 'formula' of {name!r} is not a formula of \"x\"", received=str(formula))


def canonical(formula: Formula) -> Formula:
    """The formula with the operands of sums and products in a fixed order: equal for equal roundings."""
    if not isinstance(formula, tuple):
        return float(formula) if isinstance(formula, int | float) else formula
    parts = [canonical(f) for f in formula[1:]]
    return (formula[0], *(sorted(parts, key=repr) if formula[0] in ("add", "mul") else parts))
