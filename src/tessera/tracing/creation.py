"""Tensors from nothing, from Python and from other libraries.

Defaults: f32, int64 for integers, bool.  Sizes are given one by one or as a tuple.  Inside a traced function sizes may
be symbolic, and the tensor is made by the program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import ArgumentError, DTypeError, ShapeError, unknown_keyword
from ..settings import DEBUG_EMPTY
from ..types import dtypes as dt
from ..types.constraints import Size, plain
from ..types.dims import Dim, DimLike, as_dim
from ..types.dtypes import DType, as_dtype
from . import placed
from .recorder import STATE, as_array, bind, convert_array, lift
from .tensor import Tensor, Traced, make

MAX_ELEMENTS = 2**48

EMPTY: Callable[[tuple[int, ...], Any], np.ndarray[Any, Any]] = np.empty
"""Allocates results of creation functions: (shape, numpy dtype) -> array; the runtime's allocator replaces it."""


# -- arguments -----------------------------------------------------------------------------------------------------------
def shape_from(dims: Sequence[Any], name: str = "shape") -> tuple[DimLike, ...]:
    """``f(2, 3)``, ``f((2, 3))`` and ``f([2, 3])`` alike: a checked shape.

    Raises:
        ShapeError: a size is negative, NaN, not an integer, or there are too many elements.
    """
    if len(dims) == 1 and isinstance(dims[0], list | tuple):
        dims = dims[0]
    out = tuple([d if type(d) is int and d >= 0 else _size(d, name) for d in dims])
    n = 1
    for d in out:
        n = n * d  # type: ignore[assignment]
    if isinstance(n, int) and n > MAX_ELEMENTS:
        raise ShapeError(f"a tensor of shape {list(out)} has {n} elements", expected=f"at most {MAX_ELEMENTS} elements",
                         received=f"{n}", sentence="No memory holds that many.")
    return out


def _size(d: Any, name: str) -> DimLike:
    if isinstance(d, float) and not math.isfinite(d):
        raise ShapeError(f"{d} is not a size", received=f"{name} with {d}", sentence="Sizes are integers from 0.")
    if isinstance(d, float) and not isinstance(d, bool):
        raise ShapeError(f"the size {d} is not an integer", received=f"{name} with {d}",
                         hints=["Use integer division: n // 2", f"Write {int(d)}"])
    try:
        out = plain(as_dim(d))
    except (TypeError, ValueError) as e:
        raise ShapeError(str(e), received=repr(d)[:80], sentence=f"In {name}.") from None
    if isinstance(out, int) and out < 0:
        raise ShapeError(f"the size {out} is negative", received=repr(out), sentence="Sizes are integers from 0.")
    if isinstance(out, Dim) and STATE.trace is None:
        raise ShapeError(f"the size {out} is symbolic", sentence="Outside a traced function a size needs a number.")
    return out


def _no_more(function: str, extra: dict[str, Any], known: Sequence[str]) -> None:
    for k in extra:
        raise unknown_keyword(function, k, known)


def _dtype(x: Any, default: DType) -> DType:
    if x is None:
        return default
    try:
        return as_dtype(x)
    except TypeError as e:
        raise DTypeError(str(e)) from None


def _filled(shape: tuple[DimLike, ...], value: Any, dtype: DType) -> Tensor:
    if STATE.trace is not None:
        out: Tensor = bind("full", shape=shape, value=value, dtype=dtype)
        return out
    a = EMPTY(shape, dtype.np)  # type: ignore[arg-type]
    a.fill(np.asarray(value).astype(dtype.np))
    return make(a)


# -- one value -----------------------------------------------------------------------------------------------------------
def zeros(*shape: Any, dtype: Any = None, **extra: Any) -> Tensor:
    """Zeros of ``shape`` (default f32)."""
    return _like_full("zeros", shape, 0, dtype, extra)


def ones(*shape: Any, dtype: Any = None, **extra: Any) -> Tensor:
    """Ones of ``shape`` (default f32)."""
    return _like_full("ones", shape, 1, dtype, extra)


def _like_full(name: str, shape: Sequence[Any], value: Any, dtype: Any, extra: dict[str, Any]) -> Tensor:
    if "shape" in extra:
        shape = (extra.pop("shape"),)
    extra.pop("device", None)
    _no_more(name, extra, ("shape", "dtype", "device"))
    if not shape:
        shape = ((),)
    return _filled(shape_from(shape, name), value, _dtype(dtype, dt.f32))


def full(shape: Any, value: Any, dtype: Any = None) -> Tensor:
    """``value`` everywhere; the dtype follows the value (int64, f32, bool) unless given."""
    dims = shape_from((shape,) if isinstance(shape, list | tuple) else ((shape,),), "full")
    if isinstance(value, Tensor):
        from .methods import function
        t: Tensor = function("broadcast_to")(value if dtype is None else value.to(dtype), dims)
        return t
    if not isinstance(value, bool | int | float | complex | np.generic):
        raise DTypeError(f"full() fills with one number, not with a {type(value).__name__}", received=repr(value)[:80])
    kind = _dtype(dtype, as_dtype(value.dtype) if isinstance(value, np.generic) else as_dtype(type(value)))
    return _filled(dims, value if not isinstance(value, np.generic) else value.item(), kind)


def empty(*shape: Any, dtype: Any = None, **extra: Any) -> Tensor:
    """A tensor of ``shape`` whose values are whatever the memory holds (inside a traced function: zeros).

    With ``TESSERA_DEBUG_EMPTY=1`` they are NaN (the lowest value of an integer dtype, True), traced or not.
    """
    if DEBUG_EMPTY.get():
        kind = _dtype(dtype, dt.f32)
        fill = math.nan if kind.is_inexact else True if kind is dt.bool_ else kind.iinfo.min
        return _like_full("empty", shape, fill, dtype, extra)
    if STATE.trace is not None:
        return _like_full("empty", shape, 0, dtype, extra)
    if "shape" in extra:
        shape = (extra.pop("shape"),)
    extra.pop("device", None)
    _no_more("empty", extra, ("shape", "dtype", "device"))
    return make(EMPTY(shape_from(shape or ((),), "empty"), _dtype(dtype, dt.f32).np))  # type: ignore[arg-type]


def zeros_like(x: Any, dtype: Any = None) -> Tensor:
    """Zeros with the shape, dtype and device of ``x``."""
    x = lift(x)
    return placed.beside(x, _filled(tuple(x.type.shape), 0, _dtype(dtype, x.dtype)))


def ones_like(x: Any, dtype: Any = None) -> Tensor:
    """Ones with the shape, dtype and device of ``x``."""
    x = lift(x)
    return placed.beside(x, _filled(tuple(x.type.shape), 1, _dtype(dtype, x.dtype)))


def full_like(x: Any, value: Any, dtype: Any = None) -> Tensor:
    """``value`` everywhere, with the shape, dtype and device of ``x``."""
    x = lift(x)
    return placed.beside(x, full(tuple(x.type.shape), value, _dtype(dtype, x.dtype)))


def empty_like(x: Any, dtype: Any = None) -> Tensor:
    """An uninitialised tensor with the shape, dtype and device of ``x``."""
    x = lift(x)
    return placed.beside(x, empty(tuple(x.type.shape), dtype=_dtype(dtype, x.dtype)))


# -- sequences -----------------------------------------------------------------------------------------------------------
def arange(start: Any, stop: Any = None, step: Any = 1, dtype: Any = None) -> Tensor:
    """``start, start + step, …`` below ``stop``; ``arange(n)`` counts from 0.  int64, or f32 when an argument is a float.

    Raises:
        ShapeError: the step is 0 or an end is not finite.
    """
    if stop is None:
        start, stop = 0, start
    start, stop, step = (x.item() if isinstance(x, np.generic) else x for x in (start, stop, step))
    if any(isinstance(x, Tensor) and x.is_traced for x in (start, stop, step)):
        raise ShapeError("the length of arange() depends on a traced tensor",
                         hints=["Pass the length as a Python integer or a size of a tensor: x.shape[0]",
                                "Make a longest arange and compare: ts.arange(limit) < n"])
    start, stop, step = (x.item() if isinstance(x, Tensor) else x for x in (start, stop, step))
    if step == 0:
        raise ShapeError("the step of arange() is 0")
    symbolic = any(isinstance(x, Size | Dim) for x in (start, stop, step))
    floating = any(isinstance(x, float) for x in (start, stop, step))
    kind = _dtype(dtype, dt.f32 if floating else dt.int64)
    if not symbolic:
        if not all(math.isfinite(x) for x in (start, stop, step)):
            raise ShapeError(f"arange({start}, {stop}, {step}) never ends")
        n: DimLike = max(0, math.ceil((stop - start) / step))
    else:
        if floating or not isinstance(step, int):
            raise ShapeError("arange() over symbolic sizes takes integers")
        n = plain((stop - start + (step - 1)) // step if step > 0 else (start - stop - step - 1) // -step)
    (n,) = shape_from(((n,),), "arange")
    if STATE.trace is None:
        exact = np.float64 if floating else np.int64
        return make(convert_array(np.arange(int(n), dtype=exact) * step + start, kind))
    index = bind("iota", shape=(n,), axis=0, dtype=kind if kind.bits > 8 else dt.int64)
    if not (isinstance(start, int) and start == 0 and step == 1):
        index = index * step + start
    return index if index.dtype is kind else index.to(kind)  # type: ignore[no-any-return]


def linspace(start: float, stop: float, num: int = 50, endpoint: bool = True, dtype: Any = None) -> Tensor:
    """``num`` evenly spaced numbers from ``start`` to ``stop`` (f32)."""
    (n,) = shape_from(((num,),), "linspace")
    return lift(convert_array(np.linspace(float(start), float(stop), int(n), endpoint=endpoint), _dtype(dtype, dt.f32)))


def eye(n: Any, m: Any = None, k: int = 0, dtype: Any = None) -> Tensor:
    """Ones on the ``k``-th diagonal of an [n, m] matrix (f32)."""
    rows, cols = shape_from(((n, n if m is None else m),), "eye")
    kind = _dtype(dtype, dt.f32)
    if isinstance(rows, int) and isinstance(cols, int) and STATE.trace is None:
        return make(np.eye(rows, cols, k).astype(kind.np))
    i, j = (bind("iota", shape=(rows, cols), axis=a, dtype=dt.int64) for a in (0, 1))
    return (j == i + k).to(kind)  # type: ignore[no-any-return]


def meshgrid(*xs: Any, indexing: str = "xy") -> list[Tensor]:
    """Coordinate grids of 1-D tensors, as NumPy's."""
    if indexing not in ("xy", "ij"):
        raise ArgumentError(f"indexing is 'xy' or 'ij', not {indexing!r}")
    from .methods import function
    ts = [lift(x).reshape(-1) for x in xs]
    order = list(range(len(ts)))
    if indexing == "xy" and len(ts) > 1:
        order[0], order[1] = 1, 0
    shape = tuple(ts[i].type.shape[0] for i in order)
    out = []
    for i, t in enumerate(ts):
        place = [1] * len(ts)
        place[order.index(i)] = t.shape[0]
        out.append(function("broadcast_to")(t.reshape(tuple(place)), shape))
    return out


# -- from Python and other libraries ---------------------------------------------------------------------------------------
def tensor(data: Any, dtype: Any = None) -> Tensor:
    """A tensor of its own memory from numbers, nested lists, arrays or a tensor.

    Python numbers give int64, f32, bool or complex64; NumPy arrays keep their dtype.

    Raises:
        DTypeError: not numbers.
        ShapeError: nested lists of unequal lengths.
    """
    if isinstance(data, Tensor):
        return data.clone() if dtype is None else data.to(dtype).clone()
    want = None if dtype is None else _dtype(dtype, dt.f32)
    if STATE.trace is not None and isinstance(data, list | tuple) and _holds_traced(data):
        return _stack_nested(data, want)
    if STATE.trace is not None:
        if isinstance(data, Dim):
            return lift(data)
        a = as_array(data, want)
        return lift(a if a.size <= 1024 else a.copy())
    a = as_array(data, want)
    return make(a if isinstance(data, list | tuple | bool | int | float | complex) else copied(a))


def copied(a: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The array, row-major in memory of its own."""
    out = EMPTY(a.shape, a.dtype)
    out[...] = a
    return out


def _holds_traced(x: Any) -> bool:
    if isinstance(x, list | tuple):
        return any(_holds_traced(v) for v in x)
    return isinstance(x, Tensor) and type(x._p) is Traced


def _stack_nested(x: Any, want: DType | None) -> Tensor:
    from .methods import function
    parts = [_stack_nested(v, want) if isinstance(v, list | tuple) else lift(v) if want is None else lift(v).to(want)
             for v in x]
    out: Tensor = function("stack")(parts)
    return out


def asarray(data: Any, dtype: Any = None) -> Tensor:
    """``data`` as a tensor; shares memory where it can."""
    if dtype is not None and isinstance(data, bool | int | float | complex | list | tuple):
        return tensor(data, dtype)
    t = lift(data)
    return t if dtype is None else t.to(dtype)


def from_numpy(array: Any) -> Tensor:
    """A tensor on the array's own memory; writing to the tensor copies first, so the array never changes.

    Raises:
        DTypeError: Tessera has no such dtype.
    """
    if not isinstance(array, np.ndarray | np.generic):
        raise ArgumentError(f"from_numpy() takes a NumPy array, not a {type(array).__name__}",
                            hints=["Use ts.tensor(data) for lists and numbers"])
    return make(as_array(array))


def from_dlpack(x: Any) -> Tensor:
    """A tensor on the memory of another library's tensor, on the CPU or on a CUDA device, through DLPack.

    Raises:
        ArgumentError: the object does not speak DLPack.
        DTypeError, DeviceError: its dtype or device is not available here.
    """
    if not hasattr(x, "__dlpack__"):
        raise ArgumentError(f"a {type(x).__name__} has no __dlpack__", hints=["Use ts.tensor(data)"])
    from ..errors import DeviceError
    device = x.__dlpack_device__() if hasattr(x, "__dlpack_device__") else (1, 0)
    if device[0] != 1:
        if placed.TAKE is None:
            raise DeviceError(f"the tensor lives on DLPack device {tuple(device)}, not on the CPU", hints=["Move it to the CPU first"])
        return make(placed.TAKE(x))
    return make(as_array(placed.from_foreign(x)))
