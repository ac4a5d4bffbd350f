"""``x[…]`` and ``x[…] = v`` by NumPy's rules.

On concrete tensors, basic indices are views and advanced ones copies made by the host.  In a traced function, basic
indices become ``slice`` / ``flip`` / ``reshape``, integer tensors become one gather, and assignment rebinds the tensor to
an updated value.  Boolean masks have a result whose size depends on values, so a traced one is refused.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import DTypeError, IndexOutOfRangeError, ShapeError, TracingError
from ..errors.boundary import guarded
from ..ir.core import TensorType
from ..types import dtypes as dt
from ..types.constraints import SCOPE, SizeConstraint
from ..types.dims import Dim, DimLike, as_dim, ceildiv, known_nonnegative, product
from ..types.promotion import promote_weak, widens
from .home import at_home_of
from .methods import function
from .placed import DeviceArray, beside, returned, where
from .recorder import STATE, as_array, bind, lift
from .tensor import Tensor, Traced, make, ndarray

_BASIC = (int, slice, type(None), type(Ellipsis), np.integer)
_MASK_HINTS = (
    "Keep the shape and choose elementwise: ts.where(mask, x, other)",
    "Ask for a fixed number of results: ts.nonzero(mask, size=n, fill_value=0)",
    "Index outside the traced function, where the values are known",
)


# -- reading -------------------------------------------------------------------------------------------------------------
def getitem(x: Tensor, index: Any) -> Tensor:
    """``x[index]``.

    Raises:
        IndexOutOfRangeError: too many indices, or an integer outside its axis.
        TracingError: a traced boolean mask.
        DTypeError: an index that is neither an integer, a slice, None, ``...`` nor a tensor of integers or bools.
    """
    a = x._p
    if type(a) is ndarray and STATE.trace is None:
        return make(_read(x, a, _host_index(index)))
    if isinstance(a, DeviceArray) and _through_host(index):
        return beside(x, _read(x, x._concrete("indexing"), _host_index(index)))
    items = index if isinstance(index, tuple) else (index,)
    if isinstance(a, DeviceArray):
        with at_home_of(x):
            return _traced(x, items)
    return _traced(x, items)


def _through_host(index: Any) -> bool:
    """Whether an index into a device's memory is resolved on the host: masks, whose results have no size before, and arrays from there."""
    items = index if isinstance(index, tuple) else (index,)
    return STATE.trace is None and not all(
        isinstance(i, _BASIC) or (isinstance(i, Tensor) and isinstance(i._p, DeviceArray) and i.dtype is not dt.bool_) for i in items)


def _read(x: Tensor, a: np.ndarray[Any, Any], index: Any) -> np.ndarray[Any, Any]:
    try:
        out = a[index]
    except IndexError as e:
        raise _out_of_range(x, str(e)) from None
    except (TypeError, ValueError) as e:  # a slice of floats, or with the step 0
        raise _bad_slice(x, str(e)) from None
    return out if type(out) is ndarray else np.asarray(out)


def _bad_slice(x: Tensor, message: str) -> IndexOutOfRangeError:
    return IndexOutOfRangeError(message, received=f"an index of {x.type}", expected="start:stop:step of integers, the step not 0",
                                hints=["Round the bounds: int(n)", "Leave the step out: x[a:b]"])


def _out_of_range(x: Tensor, message: str) -> IndexOutOfRangeError:
    text = message.replace("array", "tensor")
    return IndexOutOfRangeError(text, received=str(x.type), sentence="Indices of an axis of size n run from -n to n - 1.",
                                hints=["Check the index against x.shape"])


def _host_index(index: Any) -> Any:
    """The index with tensors as arrays."""
    if isinstance(index, tuple):
        return tuple([i if isinstance(i, _BASIC) else _host_item(i) for i in index])
    return index if isinstance(index, _BASIC) else _host_item(index)


def _host_item(i: Any) -> Any:
    if isinstance(i, Tensor):
        a = i._concrete("an index outside the traced function")
    elif isinstance(i, range):
        return np.arange(i.start, i.stop, i.step, dtype=np.int64)
    elif isinstance(i, list | np.ndarray | bool | np.bool_):
        try:
            a = np.asarray(i) if not isinstance(i, list) or i else np.zeros(0, np.int64)
        except ValueError:  # rows of different lengths
            raise _bad_index(i) from None
    elif hasattr(i, "__index__"):
        return int(i)
    else:
        raise _bad_index(i)
    if a.dtype.kind not in "iub":
        raise _bad_index(i)
    return a


def _bad_index(i: Any) -> DTypeError:
    what = f"a {i.dtype} tensor" if isinstance(i, Tensor) else repr(i)[:60]
    return DTypeError(f"{what} is not an index", expected="an integer, a slice, None, '...', or a tensor of integers or bools",
                      received=str(getattr(i, "type", type(i).__name__)),
                      hints=["Convert it: x[i.to(ts.int64)]"] if hasattr(i, "dtype") else [])


# -- traced reading --------------------------------------------------------------------------------------------------------
class _Plan:
    """A full index: one item an axis of ``x`` after ellipsis and None are taken out."""

    def __init__(self, x: Tensor, items: Sequence[Any]):
        shape = x.type.shape
        consuming = [i for i in items if i is not None and i is not Ellipsis]
        count = sum(_rank_of(i) for i in consuming)
        if count > len(shape):
            raise _out_of_range(x, f"too many indices: the tensor has {len(shape)} axes, but {count} were indexed")
        if sum(i is Ellipsis for i in items) > 1:
            raise _out_of_range(x, "an index can have only one '...'")
        filled: list[Any] = []
        for i in items:
            if i is Ellipsis:
                filled += [slice(None)] * (len(shape) - count)
            else:
                filled.append(i)
        if not any(i is Ellipsis for i in items):
            filled += [slice(None)] * (len(shape) - count)
        self.items = filled


def _rank_of(i: Any) -> int:
    return i.ndim if hasattr(i, "dtype") and hasattr(i, "ndim") and i.dtype in (dt.bool_, np.bool_) else 1


def _is_advanced(i: Any) -> bool:
    return not isinstance(i, _BASIC) and not (isinstance(i, Dim))


def _traced(x: Tensor, items: Sequence[Any]) -> Tensor:
    plan = _Plan(x, [_host_item(i) if isinstance(i, list | range) else i for i in items]).items
    for i in plan:
        if isinstance(i, bool | np.bool_) or (hasattr(i, "dtype") and i.dtype in (dt.bool_, np.bool_)):
            raise TracingError(
                "indexing a traced tensor with a boolean mask", received=f"mask {getattr(i, 'type', 'bool')}",
                sentence="How many elements a mask selects is known only when the program runs, and shapes are fixed before.",
                hints=_MASK_HINTS)
    if any(_is_advanced(i) for i in plan):  # beside index tensors, NumPy takes an integer as one of them
        plan = [_as_index(x, i, axis) if isinstance(i, int | np.integer) else i for i, axis in _with_axes(plan)]
    y, advanced = _basic(x, plan)
    return _gather(y, advanced) if advanced else y


def _with_axes(plan: Sequence[Any]) -> list[tuple[Any, int]]:
    """Each item with the axis of the tensor it stands for (None stands for none)."""
    out, axis = [], 0
    for i in plan:
        out.append((i, axis))
        axis += i is not None
    return out


def _as_index(x: Tensor, i: Any, axis: int) -> np.ndarray[Any, Any]:
    _position(x, int(i), x.type.shape[axis], axis)
    return np.asarray(i, np.int64)


def _basic(x: Tensor, plan: Sequence[Any]) -> tuple[Tensor, list[tuple[int, Tensor]]]:
    """Slices, integers and None applied; returns the tensor and its advanced axes with their indices."""
    shape = x.type.shape
    start: list[DimLike] = []
    limit: list[DimLike] = []
    stride: list[int] = []
    flips: list[int] = []
    final: list[DimLike] = []
    advanced: list[tuple[int, Tensor]] = []
    axis = 0
    for i in plan:
        if i is None:
            final.append(1)
            continue
        n = shape[axis]
        if isinstance(i, slice):
            a, b, step, flip, size = _bounds(x, i, n, axis)
            if flip:
                flips.append(axis)
            final.append(size)
        elif _is_advanced(i):
            a, b, step = 0, n, 1
            advanced.append((len(final), _index_tensor(i)))
            final.append(n)
        else:
            a = _position(x, as_dim(i), n, axis)
            b, step = a + 1, 1
        start.append(a)
        limit.append(b)
        stride.append(step)
        axis += 1
    out = x
    if tuple(start) != (0,) * len(shape) or tuple(limit) != tuple(shape) or any(s != 1 for s in stride):
        out = bind("slice", out, start=tuple(start), limit=tuple(limit), stride=tuple(stride))
    if flips:
        out = bind("flip", out, axes=tuple(flips))
    if tuple(final) != tuple(out.type.shape):
        out = bind("reshape", out, shape=tuple(final))
    return out, advanced


def _position(x: Tensor, i: DimLike, n: DimLike, axis: int) -> DimLike:
    if isinstance(i, int) and isinstance(n, int) and not -n <= i < n:
        raise _out_of_range(x, f"index {i} is out of bounds for axis {axis} with size {n}")
    return i + n if isinstance(i, int) and i < 0 else i


def _bounds(x: Tensor, s: slice, n: DimLike, axis: int) -> tuple[DimLike, DimLike, int, bool, DimLike]:
    """(start, limit, stride, reversed?, size) of a slice along an axis of size ``n``; the stride is positive."""
    for v in (s.start, s.stop, s.step):
        if isinstance(v, Tensor) and v.is_traced:
            raise TracingError(
                "a slice bound is a traced tensor", received=f"traced {v.type}",
                sentence="The size of a slice must be known before the program runs.",
                hints=["Slice a fixed size from a traced position: ts.dynamic_slice(x, starts, sizes)",
                       "Write to a traced position: ts.dynamic_update_slice(x, value, starts)"])
        if v is not None and not isinstance(v, Dim) and not hasattr(v, "__index__"):
            raise _bad_slice(x, f"slice indices must be integers, not {type(v).__name__}")
    step = 1 if s.step is None else operator.index(s.step)
    if step == 0:
        raise _bad_slice(x, "slice step cannot be zero")
    if isinstance(n, int) and not any(isinstance(v, Dim) for v in (s.start, s.stop)):
        a, b, step = s.indices(n)
        size: DimLike = len(range(a, b, step))
        if size == 0:
            return 0, 0, 1, False, 0
        if step > 0:
            return a, min(b, n), step, False, size
        last = a + (size - 1) * step
        return last, a + 1, -step, True, size
    if step < 0:
        if s.start is not None or s.stop is not None:
            raise ShapeError("a slice of a symbolic size with a negative step takes no bounds", received=str(x.type),
                             hints=["Slice first, then reverse: x[a:b][::-1]"])
        size = ceildiv(n, -step)
        return n - 1 - (size - 1) * -step, n, -step, True, size
    low = 0 if s.start is None else _clamped(as_dim(s.start), n)
    high = n if s.stop is None else _clamped(as_dim(s.stop), n)
    ordered = known_nonnegative(high - low) or _holds(high, low)
    if ordered is False:
        return 0, 0, 1, False, 0
    if ordered is None:
        raise ShapeError(f"the slice {low}:{high} of a size {n} may be empty or reversed", received=str(x.type),
                         sentence=f"Nothing is known about how {high} compares with {low}.",
                         hints=["Declare the sizes so that they compare, e.g. \"S+1\"", "Use ts.dynamic_slice(x, starts, sizes)"])
    return low, high, step, False, ceildiv(high - low, step)


def _clamped(i: DimLike, n: DimLike) -> DimLike:
    """The bound ``i`` of a slice, cut to the axis as NumPy does."""
    if isinstance(i, int) and i < 0:
        return 0 if _holds(n, -i) is False else n + i
    return n if isinstance(i, int) and _holds(n, i) is False else i


def _holds(a: DimLike, b: DimLike) -> bool | None:
    """Whether ``a >= b``, by the sizes of the call that is traced for; without a call it is assumed, and the program is for
    sizes of which it holds.  None where nobody asks later."""
    c = SizeConstraint(a, ">=", b)
    certain = c.decide()
    if certain is not None or SCOPE.decide is None:
        return certain
    try:
        return SCOPE.decide(c)
    except TypeError:
        if STATE.trace is not None:
            STATE.trace.guards.append((c, True))
        return True


def _index_tensor(i: Any) -> Tensor:
    t = lift(i)
    if not t.dtype.is_integer:
        raise _bad_index(t)
    return t if t.dtype is dt.int64 else t.to(dt.int64)


def _gather(x: Tensor, advanced: list[tuple[int, Tensor]]) -> Tensor:
    """One gather reads the points that the index tensors name along their axes."""
    return function("gather")(x, [t for _, t in advanced], axis=[a for a, _ in advanced])  # type: ignore[no-any-return]


# -- writing -------------------------------------------------------------------------------------------------------------
def setitem(x: Tensor, index: Any, value: Any) -> None:
    """``x[index] = value``: this tensor changes, tensors that share its memory do not.

    Raises:
        DTypeError: the value would be narrowed.
        ShapeError: the value does not broadcast to what is written.
        TracingError: inside a traced function, to a tensor from outside it.
    """
    if STATE.trace is not None:
        if type(x._p) is not Traced or x._p.trace is not STATE.trace:
            raise TracingError(
                "assignment to a tensor from outside the traced function", received=str(x.type),
                sentence="A traced function computes new values; it cannot change a tensor that it captured.",
                hints=["Pass the tensor as an argument and return the new value", "Assign to a copy: y = x.clone() inside "
                       "the function, then y[…] = …"])
        items = index if isinstance(index, tuple) else (index,)
        x._p = _updated(x, items, _fitting(x, value))._p
        return
    if isinstance(x._p, DeviceArray):
        fitting = _fitting(x, value)
        with at_home_of(x):
            x._p = _assigned_there(x, index, fitting if isinstance(value, Tensor) else beside(x, fitting))
        return
    x._concrete("assignment")
    host = _host_index(index)
    new = _fitting(x, value)._concrete("assignment")
    if not owned(x):
        x._p = x._p.copy()
    a = x._p
    try:
        a[host] = new
    except IndexError as e:
        raise _out_of_range(x, str(e)) from None
    except ValueError:
        into = TensorType(x.dtype, a[host].shape)
        raise ShapeError(f"Cannot write a value of shape {list(new.shape)} into {list(into.shape)}", expected=str(into),
                         received=str(TensorType(x.dtype, new.shape)),
                         sentence="The value broadcasts to the selected elements.") from None


def _assigned_there(x: Tensor, index: Any, value: Tensor) -> DeviceArray:
    """The payload of ``x``, which lives on a device, with ``value`` written at ``index``."""
    where([x._p, value._p])
    if not _through_host(index):
        return returned(_updated(x, index if isinstance(index, tuple) else (index,), value)._p, x._p)
    host = make(x._concrete("assignment"))
    setitem(host, index, make(value._concrete("assignment")))
    return returned(host._p, x._p)


def owned(x: Tensor) -> bool:
    """True when no other tensor or array can see the memory of ``x``."""
    a = x._p
    if not a.flags.writeable:
        return False
    base = a.base
    if sys.getrefcount(a) > 3:  # the tensor's field, ``a`` here, and the call: nobody else
        return False
    if type(base) is ndarray:
        base, alone = base.base, sys.getrefcount(base) <= 3
        if not alone:
            return False
    return base is None or is_block(base)


def _fitting(x: Tensor, value: Any) -> Tensor:
    """``value`` in the dtype of ``x``; numbers follow it, other tensors must widen to it."""
    if isinstance(value, bool | int | float | complex):
        kind = promote_weak(x.dtype, type(value)) if x.dtype is not dt.bool_ or not isinstance(value, bool) else dt.bool_
        if kind is not x.dtype or (x.dtype.is_integer and not x.dtype.iinfo.min <= value <= x.dtype.iinfo.max):
            raise DTypeError(f"the number {value} does not fit into {x.dtype}", expected=str(x.dtype), received=repr(value),
                             hints=[f"Convert the tensor first: x.to({kind})"])
        return lift(as_array(value, x.dtype))
    t = lift(value)
    if t.dtype is x.dtype:
        return t
    if not widens(t.dtype, x.dtype) and not (isinstance(value, list | tuple) and t.dtype.is_float == x.dtype.is_float):
        raise DTypeError(f"Cannot implicitly convert from {t.dtype} to {x.dtype}", expected=str(x.dtype), received=str(t.type),
                         sentence="Assignment keeps the tensor's dtype, and nothing is narrowed unless you say so.",
                         hints=[f"Convert the value: v.to({x.dtype})"])
    if isinstance(value, list | tuple) and t.dtype.is_float:
        return lift(as_array(value, x.dtype))  # Python's numbers, rounded once
    return t.to(x.dtype)


def _updated(x: Tensor, items: Sequence[Any], value: Tensor) -> Tensor:
    """``x`` with ``value`` written at ``items``, in the program."""
    plan = _Plan(x, [_host_item(i) if isinstance(i, list | bool) else i for i in items]).items
    masks = [i for i in plan if hasattr(i, "dtype") and i.dtype in (dt.bool_, np.bool_)]
    if masks:
        return _masked_update(x, plan, masks, value)
    if any(_is_advanced(i) for i in plan):
        return _scattered(x, plan, value)
    shape = x.type.shape
    starts: list[DimLike] = []
    sizes: list[DimLike] = []
    selected: list[DimLike] = []
    for i, axis in _with_axes(plan):
        if i is None:
            selected.append(1)
            continue
        n = shape[axis]
        if isinstance(i, slice):
            a, _, step, flip, size = _bounds(x, i, n, axis)
            if step != 1 or flip:
                return _scattered(x, plan, value)
            selected.append(size)
        else:
            a, size = _position(x, as_dim(i), n, axis), 1
        starts.append(a)
        sizes.append(size)
    piece = function("broadcast_to")(value, tuple(selected))
    if tuple(starts) == (0,) * len(shape) and tuple(sizes) == tuple(shape):
        return bind("reshape", piece, shape=tuple(shape)) if piece.type.shape != tuple(shape) else piece  # type: ignore[no-any-return]
    piece = bind("reshape", piece, shape=tuple(sizes)) if tuple(sizes) != tuple(piece.type.shape) else piece
    return function("dynamic_update_slice")(x, piece, tuple(starts))  # type: ignore[no-any-return]


def _masked_update(x: Tensor, plan: Sequence[Any], masks: Sequence[Any], value: Tensor) -> Tensor:
    """``x[mask] = scalar`` keeps the shape, so it is a choice between the two."""
    mask = lift(masks[0])
    whole = [i for i in plan if not (isinstance(i, slice) and i == slice(None))]
    if len(whole) != 1 or value.ndim != 0:
        raise TracingError(
            "assignment of several values through a traced mask", received=f"mask {mask.type}",
            sentence="Which value goes where depends on how many elements the mask selects.",
            hints=["Write one number: x[mask] = 0", *_MASK_HINTS[:1]])
    while mask.ndim < x.ndim:
        mask = function("unsqueeze")(mask, -1)
    return function("where")(mask, value, x)  # type: ignore[no-any-return]


def _scattered(x: Tensor, plan: Sequence[Any], value: Tensor) -> Tensor:
    """Any other index: number the elements of ``x``, index the numbers, and scatter to those places."""
    shape = x.type.shape
    numbers = bind("reshape", bind("iota", shape=(product(shape),), axis=0, dtype=dt.int64), shape=tuple(shape))
    places = _traced(numbers, plan)
    piece = function("broadcast_to")(value, tuple(places.type.shape))
    flat = bind("reshape", x, shape=(product(shape),))
    out = function("scatter")(flat, places.reshape(-1), piece.reshape(-1))
    return bind("reshape", out, shape=tuple(shape))  # type: ignore[no-any-return]


def masked_select(x: Any, mask: Any, size: Any = None, fill_value: Any = 0) -> Tensor:
    """The elements of ``x`` where ``mask`` holds, in row-major order.

    Args:
        size: how many are returned (needed in traced code): the first ones, padded with ``fill_value``.

    Raises:
        TracingError: a traced tensor without ``size``.
    """
    x, mask = function("broadcast_arrays")(x, mask)
    if size is None:
        return getitem(x, mask)
    (at,) = function("nonzero")(mask.reshape(-1), size=size, fill_value=-1)
    chosen = function("take")(x.reshape(-1), function("maximum")(at, 0), axis=0)
    return function("where")(at < 0, fill_value, chosen)  # type: ignore[no-any-return]


def _no_block(base: Any) -> bool:
    return False


is_block: Callable[[Any], bool] = _no_block
"""Whether an array's base is a block of the runtime's allocator, which belongs to that array; set at assembly."""


def install() -> None:
    """Attach indexing to ``Tensor``."""
    setattr(Tensor, "masked_select", masked_select)  # noqa: B010
    Tensor.__getitem__ = guarded(getitem)  # type: ignore[method-assign]
    Tensor.__setitem__ = guarded(setitem)  # type: ignore[method-assign]


__all__ = ["getitem", "install", "masked_select", "owned", "setitem"]
