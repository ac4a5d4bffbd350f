"""NumPy's functions on tiles: a NumPy scalar beside a tile is a number, and anything else says what to write instead."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .values import POINTWISE, TileValue, fail, internal

internal(__file__)

_OPERATORS: dict[str, Callable[..., Any]] = {
    "add": operator.add, "subtract": operator.sub, "multiply": operator.mul, "divide": operator.truediv,
    "floor_divide": operator.floordiv, "remainder": operator.mod, "less": operator.lt, "less_equal": operator.le,
    "greater": operator.gt, "greater_equal": operator.ge, "equal": operator.eq, "not_equal": operator.ne,
}
_NAMES = {"absolute": "abs", "negative": "neg", "power": "pow", "rint": "round", "arcsin": "asin", "arccos": "acos", "arctan": "atan",
          "arctan2": "atan2", "conjugate": "conj"}


def numpy_call(ufunc: Any, method: str, inputs: Sequence[Any], kwargs: Mapping[str, Any]) -> TileValue:
    """``np.float32(2) * tile`` is ``2.0 * tile``.

    Raises:
        KernelError: another of NumPy's functions, or an array.
    """
    act = _OPERATORS.get(ufunc.__name__)
    if act is not None and method == "__call__" and not kwargs and not any(isinstance(x, np.ndarray) for x in inputs):
        return act(*[x.item() if isinstance(x, np.generic) else x for x in inputs])  # type: ignore[no-any-return]
    name = _NAMES.get(ufunc.__name__, ufunc.__name__)
    fail(f"np.{ufunc.__name__} does not work on tiles", sentence="A tile has no values while its kernel is built.",
         hints=[f"use tile.{name}" if name in POINTWISE else "the operations are listed in ts.tile.__all__"])
