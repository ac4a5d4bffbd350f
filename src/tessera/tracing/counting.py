"""Functions whose result's size depends on values: ``nonzero``, ``unique``, ``masked_select``.

Eagerly they count, allocate and fill.  In a traced function they need ``size=`` (and take ``fill_value=``), because shapes are
fixed before the program runs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import ShapeError, TracingError
from ..types import dtypes as dt
from ..types.dims import product
from .creation import shape_from
from .methods import function
from .recorder import STATE, bind, lift
from .tensor import Tensor, Traced, make


def _needs_size(name: str, x: Tensor) -> TracingError:
    return TracingError(
        f"the size of {name}() of a traced tensor depends on its values", received=f"traced {x.type}",
        sentence="Shapes are fixed before the program runs.",
        hints=[f"Ask for a fixed number of results: ts.{name}(x, size=n, fill_value=0)",
               "Keep the shape and choose elementwise: ts.where(mask, x, other)", f"Call {name}() outside the traced function"])


def _is_traced(x: Tensor) -> bool:
    return type(x._p) is Traced or STATE.trace is not None


def _length(size: Any) -> int:
    (n,) = shape_from(((size,),), "size")
    if not isinstance(n, int):
        raise ShapeError(f"size= must be a number here, not {n}")
    return n


def nonzero(x: Any, *, size: int | None = None, fill_value: int = 0, as_tuple: bool = True) -> Any:
    """Indices of the elements that are not zero, in row-major order: a tuple of int64 tensors, one for each axis.

    Args:
        size: give exactly this many, cutting off or filling with ``fill_value`` (needed in a traced function).
        as_tuple: False gives one tensor [n, axes].
    """
    x = lift(x)
    if not _is_traced(x):
        found = np.nonzero(np.atleast_1d(x._concrete("nonzero()")).astype(bool))
        parts = [make(_sized(a.astype(np.int64), size, fill_value)) for a in found]
    elif size is None:
        raise _needs_size("nonzero", x)
    else:
        flat = _first_true(_truth(x).reshape(-1), _length(size))
        parts, rest = [], flat
        for n in reversed(x.type.shape or (1,)):
            extent = n if isinstance(n, int) else lift(n)
            parts.insert(0, function("where")(flat < 0, fill_value, rest % extent))
            rest = rest // extent
    return tuple(parts) if as_tuple else function("stack")(parts, axis=-1)


def _truth(x: Tensor) -> Tensor:
    return x if x.dtype is dt.bool_ else x != 0


def _sized(a: np.ndarray[Any, Any], size: int | None, fill: Any) -> np.ndarray[Any, Any]:
    if size is None:
        return a
    out = np.full((_length(size), *a.shape[1:]), fill, a.dtype)
    out[:len(a)] = a[:size]
    return out


def _first_true(mask: Tensor, n: int) -> Tensor:
    """Positions of the first ``n`` true elements, -1 where there are fewer."""
    total = product(mask.type.shape)
    where = function("where")
    rank = function("cumsum")(mask.to(dt.int64), axis=0) - 1
    target = where(mask & (rank < n), rank, n)
    slots = bind("full", shape=(n + 1,), value=-1, dtype=dt.int64)
    numbers = bind("iota", shape=(total,), axis=0, dtype=dt.int64)
    return function("scatter")(slots, target, numbers)[:n]  # type: ignore[no-any-return]


def argwhere(x: Any, *, size: int | None = None, fill_value: int = 0) -> Tensor:
    """Indices of the elements that are not zero, as [n, axes]."""
    return nonzero(x, size=size, fill_value=fill_value, as_tuple=False)  # type: ignore[no-any-return]


def masked_select(x: Any, mask: Any, *, size: int | None = None, fill_value: Any = 0) -> Tensor:
    """The elements of ``x`` where ``mask`` holds, in row-major order; ``size`` as in :func:`nonzero`."""
    x, mask = lift(x), lift(mask)
    if not _is_traced(x) and not _is_traced(mask):
        a, m = np.broadcast_arrays(x._concrete("masked_select()"), mask._concrete("masked_select()"))
        return make(_sized(a[m.astype(bool)], size, fill_value))
    if size is None:
        raise _needs_size("masked_select", mask)
    x, mask = function("broadcast_arrays")(x, mask)
    at = _first_true(_truth(mask).reshape(-1), _length(size))
    return function("where")(at < 0, fill_value, function("take")(x.reshape(-1), function("maximum")(at, 0), axis=0))  # type: ignore[no-any-return]


def unique(x: Any, *, size: int | None = None, fill_value: Any = None, return_counts: bool = False,
           return_inverse: bool = False) -> Any:
    """The distinct values in ascending order; with ``size``, exactly that many (filled with ``fill_value`` or the least).

    Returns:
        The values, then inverse indices and counts where asked for.
    """
    x = lift(x)
    if not _is_traced(x):
        values, inverse, counts = np.unique(x._concrete("unique()"), return_inverse=True, return_counts=True)
        fill = fill_value if fill_value is not None else (values[0] if len(values) else 0)
        out = [make(_sized(values, size, fill))]
        if return_inverse:
            out.append(make(inverse.astype(np.int64).reshape(x.shape)))
        if return_counts:
            out.append(make(_sized(counts.astype(np.int64), size, 0)))
        return out[0] if len(out) == 1 else tuple(out)
    if size is None:
        raise _needs_size("unique", x)
    return _unique_sized(x, _length(size), fill_value, return_inverse, return_counts)


def _unique_sized(x: Tensor, n: int, fill: Any, want_inverse: bool, want_counts: bool) -> Any:
    where, take = function("where"), function("take")
    flat = x.reshape(-1)
    ordered = function("sort")(flat)
    total = lift(product(flat.type.shape)) if not flat.type.static else flat.shape[0]
    index = bind("iota", shape=tuple(flat.type.shape), axis=0, dtype=dt.int64)
    previous = take(ordered, function("maximum")(index - 1, 0), axis=0)
    first = (index == 0) | (ordered != previous)
    at = _first_true(first, n)
    present = at >= 0
    values = take(ordered, function("maximum")(at, 0), axis=0)
    out = [where(present, values, ordered[0] if fill is None else fill)]
    if want_inverse:
        out.append((flat.unsqueeze(1) > out[0].unsqueeze(0)).to(dt.int64).sum(axis=1).reshape(*x.shape))
    if want_counts:
        following = function("concat")([at[1:], lift(np.asarray([-1], np.int64))], axis=0)
        following = where(following < 0, total, following)
        out.append(where(present, following - at, 0))
    return out[0] if len(out) == 1 else tuple(out)


def install() -> None:
    """Attach the functions to ``Tensor``."""
    Tensor.nonzero = nonzero
    Tensor.unique = unique
    Tensor.masked_select = masked_select
