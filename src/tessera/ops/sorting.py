"""Sorting, searching, and the ops whose result's size depends on values (they take ``size=`` in traced code)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import ArgumentError, ShapeError, TracingError
from ..ir.core import TensorType
from ..tracing.placed import beside
from ..tracing.recorder import STATE, bind
from ..tracing.tensor import Traced
from ..types import dtypes as dt
from ..types.dims import Dim, DimLike, product
from . import batch_rules as br
from . import indexing as ix
from . import pointwise as pw
from . import reduction as rd
from . import shaping as sh
from .derivatives import onward, reverse
from .indexing import along_back
from .operands import as_tensor, axis_of, convert, one_of, promoted, scalar
from .rules import BOOL, LOW, REAL, Array, accept, check_axis, expect_operands, same_dtype
from .table import Applied, Attrs, primitive

Types = Sequence[TensorType]


# -- sort ----------------------------------------------------------------------------------------------------------------
def order(x: Array, axis: int, descending: bool) -> Array:
    """The stable order; a NaN is greater than every number, so it comes last, or first when descending."""
    wide = x.astype(np.float32) if x.dtype in LOW else x.astype(np.int8) if x.dtype == np.bool_ else x
    if not descending:
        return np.argsort(wide, axis, kind="stable")
    n = x.shape[axis]
    back = np.argsort(np.flip(wide, axis), axis, kind="stable")
    return np.ascontiguousarray(np.flip(n - 1 - back, axis))


def _sort_infer(name: str) -> Callable[[Types, Attrs], Types]:
    def infer(types: Types, attrs: Attrs) -> Types:
        expect_operands(name, types, 1)
        accept(name, types, REAL + BOOL)
        check_axis(name, attrs["axis"], types[0].rank)
        return (types[0] if name == "sort" else types[0].with_dtype(dt.int64),)

    return infer


def _sort_forward(x: Applied) -> tuple[list[Any], Any]:
    """Reverse mode sorts positions, which are the residual, and takes the values by them."""
    v, axis = x.operands[0], x.attrs["axis"]
    order = bind("argsort", v, **x.attrs)
    return [bind("take_along_axis", v, order, axis=axis, checked=False)], order


def _sort_jvp(x: Applied, t: Any) -> Any:
    return bind("take_along_axis", t, bind("argsort", x.operands[0], **x.attrs), axis=x.attrs["axis"], checked=False)


def _sort_back(x: Applied, g: Any) -> Any:
    return along_back(g, x.residuals, x.attrs["axis"], x.operands[0].type)


def _argsort_by_halves(x: Any, axis: int, descending: bool = False) -> Any:
    """Positions of 64-bit keys: by their low halves, then, stably, by their high ones.  The kernel packs a key of 32 bits and its
    position into one word."""
    key = _key(x)
    if descending:
        key = pw.bitwise_not(key)
    low = convert(pw.bitwise_and(key, 2 ** 32 - 1), dt.uint32)
    high = convert(pw.shift_right(key, 32), dt.int32)
    first = bind("argsort", low, axis=axis)
    second = bind("argsort", bind("take_along_axis", high, first, axis=axis, checked=False), axis=axis)
    return bind("take_along_axis", first, second, axis=axis, checked=False)


def _key(x: Any) -> Any:
    """Signed integers in the order of 64-bit values: NaN last, -0 equal to 0."""
    if x.dtype is dt.int64:
        return x
    bits = pw.bitcast(x, dt.int64)
    least = scalar(-2 ** 63, dt.int64)
    if x.dtype is dt.uint64:
        return pw.bitwise_xor(bits, least)
    key = pw.where(pw.lt(bits, 0), pw.bitwise_xor(bits, 2 ** 63 - 1), bits)
    return pw.where(pw.isnan(x), 2 ** 63 - 1, pw.where(pw.eq(x, 0), 0, key))


primitive("sort", family="sorting", infer=_sort_infer("sort"), dtypes=REAL + BOOL, template="sort",
          batch=br.shifting("axis"),
          jvp=onward(_sort_jvp), forward=_sort_forward, vjp=reverse(_sort_back),
          reference=lambda x, axis, descending=False: np.take_along_axis(x, order(x, axis, descending), axis),
          doc="Sorted along ``axis``; NaN counts as the greatest.", facts={"attrs": ("axis", "descending")})
primitive("argsort", family="sorting", infer=_sort_infer("argsort"), dtypes=REAL + BOOL, template="sort",
          batch=br.shifting("axis"),
          reference=lambda x, axis, descending=False: order(x, axis, descending).astype(np.int64),
          doc="The stable order that sorts along ``axis``, as int64 indices.",
          facts={"attrs": ("axis", "descending"), "expands": lambda attrs, types: types[0].dtype.bits == 64, "written": _argsort_by_halves})


# Beyond, the whole row is sorted: what topk collects would be as long.
MOST, SHARE = 2048, 4


def _argtopk_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("argtopk", types, 1)
    accept("argtopk", types, NARROW)
    check_axis("argtopk", attrs["axis"], types[0].rank)
    shape = list(types[0].shape)
    shape[attrs["axis"]] = attrs["k"]
    return (TensorType(dt.int64, tuple(shape)),)


def _argtopk_reference(x: Array, axis: int, k: int, largest: bool) -> Array:
    return np.take(order(x, axis, largest), np.arange(k), axis).astype(np.int64)


NARROW = tuple(d for d in REAL + BOOL if d.bits <= 32)
primitive("argtopk", family="sorting", infer=_argtopk_infer, dtypes=NARROW, template="topk", batch=br.shifting("axis"),
          reference=_argtopk_reference, facts={"attrs": ("axis", "k", "largest")},
          doc="The positions of the ``k`` greatest (or least) elements along ``axis``, in stable order, as int64 indices.")


def _sorting(name: str) -> Callable[..., Any]:
    def function(x: Any, axis: int | None = None, descending: bool = False, *, dim: int | None = None, stable: bool = True
                 ) -> Any:
        x = as_tensor(x)
        axis = axis_of(name, x, one_of(name, axis, dim, "axis", "dim", -1))
        return bind(name, x, axis=axis, descending=True) if descending else bind(name, x, axis=axis)

    what = "Values sorted" if name == "sort" else "int64 indices that sort"
    return pw.named(function, name, f"{what} along ``axis`` (the last); always stable, NaN counts as the greatest.")


sort, argsort = _sorting("sort"), _sorting("argsort")


def topk(x: Any, k: int, axis: int | None = None, largest: bool = True, *, dim: int | None = None) -> tuple[Any, Any]:
    """The ``k`` greatest (or least) elements along ``axis`` (the last) in order, and their int64 indices.

    Raises:
        ShapeError: the axis has fewer than ``k`` elements.
    """
    x = as_tensor(x)
    axis = axis_of("topk", x, one_of("topk", axis, dim, "axis", "dim", -1))
    n = x.type.shape[axis]
    if not isinstance(k, int | np.integer | Dim):
        raise ArgumentError("topk() takes a number of elements", expected="k: an integer or a size", received=repr(k))
    if isinstance(n, int) and not 0 <= k <= n:
        raise ShapeError(f"topk asks for {k} of {n} elements", received=str(x.type))
    if isinstance(n, int) and isinstance(k, int | np.integer) and 0 < k <= min(MOST, n // SHARE) and x.dtype in NARROW:
        i = bind("argtopk", x, axis=axis, k=int(k), largest=bool(largest))
    else:
        i = sh.slice_axis(argsort(x, axis, largest), axis, 0, k)
    return bind("take_along_axis", x, i, axis=axis, checked=False), i


# -- search --------------------------------------------------------------------------------------------------------------
def _search_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("searchsorted", types, 2)
    accept("searchsorted", types, REAL)
    same_dtype("searchsorted", types)
    if types[0].rank != 1:
        raise ShapeError(f"'searchsorted' looks into a sorted vector, not {types[0]}")
    return (types[1].with_dtype(dt.int64),)


def _search_reference(a: Array, v: Array, side: str) -> Array:
    wide: list[Any] = [x.astype(np.float32) if x.dtype in LOW else x for x in (a, v)]
    return np.asarray(np.searchsorted(wide[0], wide[1], "right" if side == "right" else "left"), np.int64)


def _search_expand(a: Any, v: Any, side: str) -> Any:
    """Binary search, all steps written out; a symbolic size takes as many as an int64 can need."""
    n = a.type.shape[0]
    below = pw.lt if side == "left" else pw.le
    last = pw.isnan(v) if v.dtype.is_float else None
    at = bind("full", shape=v.type.shape, value=0, dtype=dt.int64)
    if n == 0:
        return at
    size = scalar(n, dt.int64) if isinstance(n, int) else as_tensor(n)
    for bit in reversed(range(n.bit_length() if isinstance(n, int) else 48)):
        probe = pw.add(at, (1 << bit) - 1)
        found = bind("gather", a, pw.minimum(probe, pw.sub(size, 1)), axes=(0,), checked=False)
        before = below(found, v)
        if last is not None:
            before = pw.logical_or(before, last if side == "right" else pw.logical_and(last, pw.logical_not(pw.isnan(found))))
        at = pw.where(pw.logical_and(pw.lt(probe, size), before), pw.add(at, 1 << bit), at)
    return at


primitive("searchsorted", family="sorting", infer=_search_infer, reference=_search_reference, dtypes=REAL, expand=_search_expand,
          batch=br.searchsorted,
          doc="Where each value would be put into a sorted vector: before equal elements (``side`` = left) or after.",
          facts={"attrs": ("side",)})


def searchsorted(sorted: Any, values: Any, side: str = "left", right: bool = False) -> Any:
    """int64 positions at which ``values`` keep the vector ``sorted`` in order: before equal elements, or after ("right").

    Raises:
        ValueError: another ``side``.
    """
    if side not in ("left", "right"):
        raise ValueError(f"side is 'left' or 'right', not {side!r}")
    a, v = promoted("searchsorted", sorted, values)
    return bind("searchsorted", a, v, side="right" if right else side)


# -- results whose size depends on values ------------------------------------------------------------------------------------
def _values(name: str, x: Any) -> Array:
    """The array of a concrete tensor.

    Raises:
        TracingError: it is traced, or its program is.
    """
    if type(x._p) is Traced or STATE.trace is not None:
        raise TracingError(
            f"the size of {name}'s result depends on values", received=f"traced {x.type}",
            sentence="Shapes are fixed before a traced function runs.",
            hints=[f"Ask for a fixed number of results: ts.{name}(x, size=n, fill_value=0)",
                   "Keep the shape and choose elementwise: ts.where(condition, x, y)",
                   f"Call {name} outside the traced function"])
    return np.asarray(x._concrete(name))


def _compact(keep: Any, values: Any, size: DimLike, fill: Any) -> Any:
    """The values where ``keep`` holds, in order, in a vector of ``size`` padded with ``fill``; what does not fit is dropped."""
    place = pw.sub(rd.cumsum(keep, 0), 1)
    spare = scalar(size, dt.int64) if isinstance(size, int) else as_tensor(size)
    place = pw.where(pw.logical_and(keep, pw.lt(place, spare)), place, spare)
    out = bind("full", shape=(size + 1,), value=fill, dtype=values.dtype)
    return sh.slice_axis(ix.scatter(out, place, values), 0, 0, size)


def nonzero(x: Any, size: Any = None, fill_value: int = 0) -> tuple[Any, ...]:
    """For each axis the int64 indices of the elements that are not zero, in row-major order.

    Args:
        size: how many are returned (needed in traced code): the first ones, padded with ``fill_value``.

    Raises:
        TracingError: a traced tensor without ``size``.
    """
    x = as_tensor(x)
    if size is None:
        return tuple(beside(x, i.astype(np.int64)) for i in np.nonzero(_values("nonzero", x)))
    shape = x.type.shape
    n = product(shape)
    keep = sh.reshape(convert(x, dt.bool_), (n,))
    flat = _compact(keep, bind("iota", shape=(n,), axis=0, dtype=dt.int64), size, -1)
    missing = pw.lt(flat, 0)
    out = []
    for a in range(len(shape)):
        after, here = product(shape[a + 1:]), shape[a]
        i = pw.mod(pw.floor_div(flat, as_tensor(after)), as_tensor(here)) if n != 0 else flat
        out.append(pw.where(missing, fill_value, i))
    return tuple(out)


def argwhere(x: Any, size: Any = None, fill_value: int = 0) -> Any:
    """The indices of the elements that are not zero as rows of a matrix."""
    return sh.stack(list(nonzero(x, size, fill_value)), -1)


def unique(x: Any, size: Any = None, fill_value: Any = None, return_counts: bool = False, return_inverse: bool = False) -> Any:
    """The different values, sorted; on request how often each occurs, and for each element which one it is.

    0 and -0 are one value, shown as the first of them; all NaN are one.

    Args:
        size: how many are returned (needed in traced code): the least ones, padded with ``fill_value`` (the least value).

    Raises:
        TracingError: a traced tensor without ``size``.
    """
    x = as_tensor(x)
    if size is None:
        a = _values("unique", x)
        wide = a.astype(np.float32) if a.dtype in LOW else a
        values, _, inverse, counts = np.unique(wide, return_index=True, return_inverse=True, return_counts=True)  # the first of equal ones
        out = [beside(x, values.astype(a.dtype))]
        out += [beside(x, inverse.reshape(a.shape).astype(np.int64))] if return_inverse else []
        out += [beside(x, counts.astype(np.int64))] if return_counts else []
        return out[0] if len(out) == 1 else tuple(out)
    flat = sh.ravel(x)
    n = flat.type.shape[0]
    if n == 0:
        raise ShapeError("unique with size= needs at least one element", received=str(x.type))
    perm = argsort(flat)
    ordered = bind("gather", flat, perm, axes=(0,), checked=False)
    before = sh.roll(ordered, 1, 0)
    new = pw.ne(ordered, before)
    if flat.dtype.is_float:
        new = pw.logical_and(new, pw.logical_not(pw.logical_and(pw.isnan(ordered), pw.isnan(before))))
    new = pw.logical_or(new, pw.eq(bind("iota", shape=(n,), axis=0, dtype=dt.int64), 0))
    rank = pw.sub(rd.cumsum(new, 0), 1)
    values = _compact(new, ordered, size, 0)
    spare = scalar(size, dt.int64) if isinstance(size, int) else as_tensor(size)
    there = pw.lt(bind("iota", shape=(size,), axis=0, dtype=dt.int64), pw.minimum(rd.sum(new), spare))
    least = sh.reshape(sh.slice_axis(ordered, 0, 0, 1), ())
    values = pw.where(there, values, least if fill_value is None else scalar(fill_value, flat.dtype))
    out = [values]
    if return_inverse:
        out.append(sh.reshape(ix.scatter(bind("full", shape=(n,), value=0, dtype=dt.int64), perm, rank), x.type.shape))
    if return_counts:
        zeros = bind("full", shape=(size + 1,), value=0, dtype=dt.int64)
        out.append(sh.slice_axis(ix.scatter(zeros, pw.minimum(rank, spare), 1, mode="add"), 0, 0, size))
    return out[0] if len(out) == 1 else tuple(out)


def bincount(x: Any, size: Any = None) -> Any:
    """How often each of the numbers 0 … size-1 occurs among non-negative integers; without ``size``, up to the greatest."""
    x = sh.ravel(as_tensor(x))
    if size is None:
        return beside(x, np.bincount(_values("bincount", x)).astype(np.int64))
    return ix.scatter(bind("full", shape=(size,), value=0, dtype=dt.int64), x, 1, mode="add")


def median(x: Any, axis: int | None = None, keepdims: bool = False, *, dim: int | None = None) -> Any:
    """The middle value along ``axis`` (None: of all elements); the mean of the two middle ones where the number is even."""
    x = as_tensor(x)
    axis = one_of("median", axis, dim, "axis", "dim")
    shape = x.type.shape
    y = sh.ravel(x) if axis is None else x
    a = 0 if axis is None else axis_of("median", x, axis)
    n = y.type.shape[a]
    if not isinstance(n, int) or n == 0:
        raise ShapeError("median needs an axis of a known size above 0", received=str(x.type))
    s = sort(y, a)
    middle = sh.slice_axis(s, a, (n - 1) // 2, n // 2 + 1)
    out = rd.mean(middle, a, keepdims and axis is not None)
    return sh.reshape(out, (1,) * len(shape)) if keepdims and axis is None else out
