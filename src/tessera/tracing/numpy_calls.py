"""``np.sin(tensor)``, ``array + tensor``: NumPy's elementwise functions on tensors give tensors.

A function that Tessera has too is Tessera's, with its promotion, and works on traced tensors; another runs in NumPy on the
values of concrete ones.
"""

from __future__ import annotations

from typing import Any

from . import methods
from .recorder import lift
from .tensor import Tensor

NAMES = {
    "subtract": "sub", "multiply": "mul", "divide": "div", "true_divide": "div", "negative": "neg", "absolute": "abs", "power": "pow",
    "equal": "eq", "not_equal": "ne", "less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge", "remainder": "mod",
    "floor_divide": "floor_div", "arcsin": "asin", "arccos": "acos", "arctan": "atan", "arctan2": "atan2", "arcsinh": "asinh",
    "arccosh": "acosh", "arctanh": "atanh", "invert": "bitwise_not", "left_shift": "shift_left", "right_shift": "shift_right",
    "rint": "round", "conjugate": "conj",
}
SAME = frozenset(name for line in (
    "add exp exp2 expm1 log log2 log10 log1p logaddexp sin cos tan sinh cosh tanh sqrt square reciprocal sign floor ceil trunc",
    "maximum minimum bitwise_and bitwise_or bitwise_xor logical_and logical_or logical_xor logical_not isnan isinf isfinite",
    "copysign nextafter matmul",
) for name in line.split())


def array_ufunc(self: Tensor, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> Any:
    """NumPy's protocol ``__array_ufunc__``.

    Raises:
        TracingError: a traced tensor, in a function (or with an option) that only NumPy has.
    """
    name = ufunc.__name__
    ours = NAMES.get(name, name if name in SAME else None)
    out = kwargs.pop("out", None)
    in_place = out is not None and len(out) == 1 and out[0] is inputs[0]
    if ours is not None and method == "__call__" and not kwargs and (out is None or (in_place and _any_traced(inputs))):
        return methods.function(ours)(*inputs)
    arrays = [x._concrete(f"np.{name}") if isinstance(x, Tensor) else x for x in inputs]
    if out is not None:
        return getattr(ufunc, method)(*arrays, out=out, **kwargs)
    result = getattr(ufunc, method)(*arrays, **kwargs)
    return tuple(lift(r) for r in result) if isinstance(result, tuple) else lift(result)


def _any_traced(inputs: tuple[Any, ...]) -> bool:
    return any(isinstance(x, Tensor) and x.is_traced for x in inputs)


__all__ = ["array_ufunc"]
