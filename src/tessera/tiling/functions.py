"""Functions of tiles that are written in other functions of tiles, under the names by which users know them."""

from __future__ import annotations

import builtins
import functools
from collections.abc import Callable
from typing import Any

from . import dsl
from .edges import masked
from .kernel_ops import max as greatest
from .kernel_ops import sum as total
from .kernel_values import Param, Window
from .values import Operators, TileValue, as_value, fail, internal

internal(__file__)


def zeros_like(x: Any) -> TileValue:
    """Zeros of a tile's shape and dtype."""
    v = as_value(x)
    return dsl.zeros(v.shape, v.dtype)


def expand_dims(x: Any, axis: int) -> TileValue:
    """The tile with an axis of extent 1 put in at ``axis`` (from the end, if negative): ``x[:, None]`` for ``axis=1``.

    Raises:
        KernelError: the result has no such axis.
    """
    v = as_value(x)
    if not -v.rank - 1 <= axis <= v.rank:
        fail(f"expand_dims: a tile of rank {v.rank} has no place for axis {axis}", expected=f"{-v.rank - 1} … {v.rank}")
    at = axis % (v.rank + 1)
    return dsl.reshape(v, (*v.shape[:at], 1, *v.shape[at:]))


def clamp(x: Any, low: Any, high: Any) -> TileValue:
    """``minimum(maximum(x, low), high)``, in the dtype of x."""
    return as_value(dsl.minimum(dsl.maximum(as_value(x), low), high))


def relu(x: Any) -> TileValue:
    """``maximum(x, 0)``."""
    return as_value(dsl.maximum(as_value(x), 0))


def silu(x: Any) -> TileValue:
    """``x * sigmoid(x)``."""
    v = as_value(x)
    return v * dsl.sigmoid(v)


def gelu(x: Any) -> TileValue:
    """``x * (1 + erf(x / sqrt(2))) / 2``."""
    v = as_value(x)
    return v * (dsl.erf(v * 0.7071067811865476) + 1.0) * 0.5


def softmax(x: Any, axis: int = -1) -> TileValue:
    """``exp(x - max) / sum`` along an axis of the tile; lanes that are no data take no part."""
    v = as_value(x)
    k = dsl.normal_axis(axis, v.rank)
    v = masked(v, float("-inf"), (k,))
    e = dsl.exp(v - greatest(v, k, keepdims=True))
    return e / total(e, k, keepdims=True)


# -- Python's own --------------------------------------------------------------------------------------------------------
def _extremum(name: str, own: Callable[..., Any], of_tiles: Callable[..., TileValue]) -> Callable[..., Any]:
    def op(*args: Any, **options: Any) -> Any:
        values = args[0] if len(args) == 1 and isinstance(args[0], tuple | list) else args
        if not builtins.any(isinstance(v, Operators) for v in values):
            return own(*args, **options)
        if len(values) == 1:
            fail(f"{name} of one tile", hints=[f"the {name} of its elements: tile.{name}(x)"])
        return functools.reduce(of_tiles, values)

    return op


def _length(x: Any) -> Any:
    return x.shape[0] if isinstance(x, Param | Window | TileValue) and x.shape else len(x)


BUILTINS: dict[Any, Callable[..., Any]] = {
    builtins.max: _extremum("max", builtins.max, dsl.maximum), builtins.min: _extremum("min", builtins.min, dsl.minimum), len: _length}
"""Python's functions -> what stands for them in a kernel, where they may meet tiles."""

NAMES = ("clamp", "expand_dims", "gelu", "relu", "silu", "softmax", "zeros_like")

__all__ = [*NAMES, "BUILTINS"]
