"""What user-level functions do to their arguments before they bind a primitive: lift, promote, convert, broadcast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ArgumentError, DTypeError, IndexOutOfRangeError, ShapeError, suggest
from ..tracing import policies, recorder
from ..tracing.recorder import because, bind
from ..tracing.tensor import Tensor, Traced, make
from ..types import dtypes as dt
from ..types.constraints import plain
from ..types.dims import DimLike
from ..types.dtypes import DType, as_dtype
from ..types.policy import RoundingMode
from ..types.promotion import PromotionError, promote, promote_weak
from ..types.shapes import as_shape, format_shape, normalize_axes, normalize_axis
from .rules import broadcast_shapes

SCALARS = (bool, int, float, complex)
_DEFAULT = {bool: dt.bool_, int: dt.int64, float: dt.f32, complex: dt.complex64}


def _kind(x: Any) -> type:
    """Which of the four Python numbers ``x`` is (``numpy.float64`` is a float)."""
    return next(k for k in SCALARS if isinstance(x, k))


def weak_type(x: Any) -> type | None:
    """The Python number type whose promotion ``x`` follows: a number's own, or that of a number given to ``jit``."""
    if isinstance(x, SCALARS):
        return _kind(x)
    return x._p.weak if type(x._p) is Traced else None


def scalar(value: Any, dtype: DType) -> Tensor:
    """A Python number as a 0-d tensor of ``dtype``.

    Raises:
        DTypeError: an integer that ``dtype`` cannot hold.
    """
    if dtype.is_integer and not dtype.iinfo.min <= value <= dtype.iinfo.max:
        raise DTypeError(f"the number {value} does not fit into {dtype}", sentence=(
            "A Python number takes the dtype of the tensor it meets."), hints=["Convert the tensor to a wider dtype first"])
    array = np.asarray(value).astype(dtype.np)
    return make(array) if recorder.STATE.trace is None else bind("constant", value=array)


def as_tensor(x: Any, dtype: DType | None = None) -> Tensor:
    """A tensor, number, size, array or nested list as a tensor (numbers: int64, f32, bool, complex64 unless ``dtype``)."""
    if isinstance(x, Tensor):
        return x
    if isinstance(x, SCALARS):
        return scalar(x, dtype or _DEFAULT[_kind(x)])
    return recorder.lift(x)


def common_dtype(name: str, xs: Sequence[Any]) -> DType:
    """The promoted dtype of tensors, sizes and (weak) Python numbers.

    Raises:
        DTypeError: two of them mix only through an explicit conversion.
    """
    kind: DType | None = None
    for x in xs:
        if weak_type(x) is None:
            d = x.dtype
            try:
                kind = d if kind is None else promote(kind, d)
            except PromotionError as e:
                meeting = policies.meeting(items) if (items := [y for y in xs if isinstance(y, Tensor)]) else None
                if meeting is not None:  # the declared policies say in which format they meet
                    return dt.f32 if meeting is dt.tf32 else meeting
                raise DTypeError(f"Cannot implicitly convert between {e.a} and {e.b}", sentence=f"In {name!r}: {e.why}.",
                                 hints=[f"Convert one operand: x.to({e.a}) or y.to({e.b})"]) from None
    for x in xs:
        weak = weak_type(x)
        if weak is not None:
            kind = _DEFAULT[weak] if kind is None else promote_weak(kind, weak)
    assert kind is not None
    return kind


def promoted(name: str, *xs: Any) -> list[Tensor]:
    """All operands as tensors of their common dtype."""
    if all(type(x) is Tensor for x in xs) and all(x.dtype is xs[0].dtype for x in xs):  # the eager path, kept short
        return list(xs)
    items = [x if isinstance(x, (Tensor, *SCALARS)) else as_tensor(x) for x in xs]
    kind = common_dtype(name, items)
    return [scalar(x, kind) if isinstance(x, SCALARS) else convert(x, kind) for x in items]


def spread(name: str, *xs: Tensor) -> list[Tensor]:
    """All operands broadcast to their common shape.

    Raises:
        ShapeError: "Cannot broadcast S with K: …".
    """
    first = xs[0].shape
    if all(x.shape == first for x in xs):
        return list(xs)
    shape = broadcast_shapes(name, [x.type for x in xs])
    return [broadcast_to(x, shape) for x in xs]


def aligned(name: str, *xs: Any) -> list[Tensor]:
    """Operands of a pointwise op: one dtype, one shape."""
    if len(xs) == 2:  # the eager path of two like tensors, kept short
        x, y = xs
        if isinstance(x, Tensor) and isinstance(y, Tensor) and x.dtype is y.dtype and x.shape == y.shape:
            return [x, y]
    return spread(name, *promoted(name, *xs))


def convert(x: Tensor, dtype: DType, saturate: bool = False) -> Tensor:
    """``x`` in another dtype; the same tensor where nothing changes."""
    if x.dtype is dtype:
        return x
    out: Tensor = bind("convert", x, dtype=dtype, saturate=True) if saturate else bind("convert", x, dtype=dtype)
    because(out, f"operands meet in {dtype}")
    policies.attach(out, policies.of(x))
    return out


def cast(x: Any, dtype: Any, saturate: bool = False, rounding: Any = None, key: Any = None) -> Tensor:
    """``x.to(dtype)``: an explicit conversion, rounding to nearest even.

    Args:
        saturate: clamp to the largest finite value of ``dtype`` instead of overflowing.
        rounding: "nearest", "toward_zero", "up", "down" or "stochastic" (:class:`RoundingMode`); integers are truncated unless it
            is given.
        key: the key of the random words of stochastic rounding (default: the next of the random stream).

    Raises:
        ArgumentError: no rounding mode is called that, or a key is given to another mode.
    """
    t = as_tensor(x)
    if rounding is None and key is None:
        if t.dtype is as_dtype(dtype):
            return t
        return because(bind("convert", t, dtype=as_dtype(dtype), **({"saturate": True} if saturate else {})), "written")
    try:
        mode = RoundingMode(str(rounding))
    except ValueError:
        raise ArgumentError(f"there is no rounding mode {rounding!r}{suggest(str(rounding), list(RoundingMode))}",
                            expected=", ".join(RoundingMode)) from None
    if key is not None and mode is not RoundingMode.STOCHASTIC:
        raise ArgumentError(f"rounding {mode} draws no random numbers, so it takes no key")
    return convert_rounded(t, as_dtype(dtype), mode, saturate, key)


def convert_rounded(x: Tensor, dtype: DType, mode: RoundingMode, saturate: bool = False, key: Any = None) -> Tensor:
    """``x`` in another dtype by a rounding mode; the same tensor where nothing changes."""
    if x.dtype is dtype:
        return x
    attrs: dict[str, Any] = {"dtype": dtype} | ({"saturate": True} if saturate else {})
    if mode is RoundingMode.NEAREST and not dtype.is_integer:
        return bind("convert", x, **attrs)  # type: ignore[no-any-return]
    extra: list[Tensor] = [recorder.RANDOM_WORDS(x.type.shape, key)] if mode is RoundingMode.STOCHASTIC else []
    return bind("convert", x, *extra, **attrs, rounding=str(mode))  # type: ignore[no-any-return]


def broadcast_to(x: Any, shape: Sequence[Any]) -> Tensor:
    """``x`` stretched to ``shape`` by NumPy's rule.

    Raises:
        ShapeError: a size is neither equal nor 1, or negative.
    """
    t = as_tensor(x)
    wanted = shape_of((tuple(shape),))
    if t.type.shape == wanted:
        return t
    if any(isinstance(n, int) and n < 0 for n in wanted):
        raise ShapeError(f"Cannot stretch a tensor to {format_shape(wanted)}: a size is negative", received=str(t.type))
    out: Tensor = bind("broadcast_to", t, shape=wanted)
    return out


# -- arguments ---------------------------------------------------------------------------------------------------------
def one_of(name: str, first: Any, second: Any, a: str, b: str, default: Any = None) -> Any:
    """One argument with two spellings (``axis`` / ``dim``).

    Raises:
        TypeError: both are given.
    """
    if first is not None and second is not None:
        raise TypeError(f"{name}() got both {a!r} and {b!r}: they are two spellings of one argument")
    return first if first is not None else second if second is not None else default


def axis_of(name: str, x: Tensor, axis: int) -> int:
    """A non-negative axis of ``x``.

    Raises:
        IndexOutOfRangeError: there is no such axis.
    """
    try:
        return normalize_axis(int(axis), len(x.shape))
    except IndexError as e:
        raise IndexOutOfRangeError(str(e), received=str(x.type), sentence=f"In {name!r}.") from None


def axes_of(name: str, x: Tensor, axes: Any) -> tuple[int, ...]:
    """Sorted non-negative axes of ``x``; None means all.

    Raises:
        IndexOutOfRangeError: there is no such axis.
        ShapeError: an axis is named twice.
    """
    try:
        return normalize_axes(axes if axes is None or isinstance(axes, int) else tuple(axes), len(x.shape))
    except IndexError as e:
        raise IndexOutOfRangeError(str(e), received=str(x.type), sentence=f"In {name!r}.") from None
    except ValueError as e:
        raise ShapeError(str(e), received=str(x.type), sentence=f"In {name!r}.") from None


def shape_of(dims: Sequence[Any]) -> tuple[DimLike, ...]:
    """``f(2, 3)`` and ``f((2, 3))`` alike."""
    if len(dims) == 1 and isinstance(dims[0], list | tuple):
        dims = dims[0]
    return tuple(plain(d) for d in as_shape(dims))
