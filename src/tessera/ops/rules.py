"""What the stanzas share: groups of dtypes, shape and dtype checks with their error texts, numpy helpers."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import DTypeError, ShapeError
from ..ir.core import TensorType
from ..types import dtypes as dt
from ..types.dims import DimLike, format_dim
from ..types.dtypes import DType
from ..types.shapes import ShapeMismatch, broadcast, format_shape

Array = NDArray[Any]

# -- groups of dtypes --------------------------------------------------------------------------------------------------
BOOL = (dt.bool_,)
SIGNED = (dt.int8, dt.int16, dt.int32, dt.int64)
UNSIGNED = (dt.uint8, dt.uint16, dt.uint32, dt.uint64)
INTS = SIGNED + UNSIGNED
FLOATS = (dt.f16, dt.bf16, dt.f32, dt.f64)
FP8 = (dt.fp8_e4m3, dt.fp8_e5m2)
SUB8 = (dt.fp6_e2m3, dt.fp6_e3m2, dt.fp4_e2m1)
COMPLEX = (dt.complex64, dt.complex128)
REAL = INTS + FLOATS + FP8
NUMBERS = REAL + COMPLEX
EVERY = dt.ALL

# numpy dtypes whose arithmetic runs in f32 and is rounded once.
LOW: frozenset[Any] = frozenset(d.np for d in (dt.f16, dt.bf16, *FP8, *SUB8))


def is_float(x: Array) -> bool:
    """True for any floating-point array, the ml_dtypes formats included."""
    return x.dtype.kind == "f" or x.dtype in LOW


def lifted(fn: Callable[..., Any]) -> Callable[..., Any]:
    """``fn`` on 16-bit and smaller floats: evaluated in f32, rounded once to nearest even."""

    def reference(*xs: Array, checked: bool = True, fast: bool = False, **attrs: Any) -> Array:
        with np.errstate(all="ignore"):
            narrow = next((x.dtype for x in xs if x.dtype in LOW), None)
            if narrow is None:
                return np.asarray(fn(*xs, **attrs))
            out = np.asarray(fn(*[x.astype(np.float32) if x.dtype in LOW else x for x in xs], **attrs))
            return out.astype(narrow) if out.dtype == np.float32 else out

    reference.__name__ = getattr(fn, "__name__", "reference")
    return reference


# -- checks ------------------------------------------------------------------------------------------------------------
def ordinal(i: int) -> str:
    return ("first", "second", "third", "fourth")[i] if i < 4 else f"{i + 1}th"


def expect_operands(name: str, types: Sequence[TensorType], count: int) -> None:
    if len(types) != count:
        raise ShapeError(f"{name!r} takes {count} operand{'s' * (count != 1)}, not {len(types)}")


def accept(name: str, types: Iterable[TensorType], dtypes: Sequence[DType]) -> None:
    """Refuse a dtype that the op does not take.

    Raises:
        DTypeError: naming the operand, its type and the accepted dtypes.
    """
    for i, t in enumerate(types):
        if t.dtype not in dtypes:
            raise DTypeError(
                f"{name!r} does not accept {t.dtype}", expected="one of " + ", ".join(d.name for d in dtypes),
                received=str(t), sentence=f"The {ordinal(i)} operand of {name!r} has type {t}.",
                hints=[f"Convert it first: x.to({_suggest(t.dtype, dtypes)})"])


def _suggest(d: DType, dtypes: Sequence[DType]) -> str:
    for wanted in (d, dt.f32, dt.int64, dt.int32, dt.bool_, dt.uint32):
        if wanted in dtypes:
            return wanted.name
    return dtypes[0].name


def same_dtype(name: str, types: Sequence[TensorType]) -> DType:
    """The one dtype of all operands.

    Raises:
        DTypeError: they differ.
    """
    first = types[0].dtype
    for i, t in enumerate(types):
        if t.dtype is not first:
            raise DTypeError(
                f"the operands of {name!r} have the dtypes {first} and {t.dtype}", expected=str(types[0]), received=str(t),
                sentence=f"The primitive {name!r} works on equal dtypes; the function of that name promotes them first.",
                hints=[f"Convert the {ordinal(i)} operand: x.to({first})"])
    return first


def same_shape(name: str, types: Sequence[TensorType]) -> tuple[DimLike, ...]:
    """The one shape of all operands.

    Raises:
        ShapeError: "Shape mismatch in dimension 1: S vs K".
    """
    first = types[0].shape
    for t in types[1:]:
        if t.shape == first:
            continue
        if len(t.shape) != len(first):
            raise ShapeError(f"the operands of {name!r} have the ranks {len(first)} and {len(t.shape)}",
                             expected=str(types[0]), received=str(t))
        equal_sizes(name, first, t.shape, str(types[0]), str(t))
    return first


def equal_sizes(name: str, a: Sequence[DimLike], b: Sequence[DimLike], expected: str | None = None,
                received: str | None = None) -> None:
    """Raise "Shape mismatch in dimension i: a vs b" for the first axis in which two shapes of one rank differ."""
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        if x != y:
            raise ShapeError(
                f"Shape mismatch in dimension {i}: {format_dim(x)} vs {format_dim(y)}",
                expected=expected or format_shape(a), received=received or format_shape(b),
                sentence=f"The operands of {name!r} must have equal sizes along each axis.",
                hints=[f"Make dimension {i} equal in both operands"])


def broadcast_shapes(name: str, types: Sequence[TensorType]) -> tuple[DimLike, ...]:
    """The broadcast of the operands' shapes.

    Raises:
        ShapeError: "Cannot broadcast S with K: shape mismatch in dimension 1: S vs K".
    """
    try:
        return broadcast(*[t.shape for t in types])
    except ShapeMismatch as e:
        a, b = _pair_in_conflict(types, e)
        raise ShapeError(
            str(e), expected=str(a), received=str(b),
            sentence=f"The operands of {name!r} must have equal sizes, or 1, along each axis.",
            hints=["Reshape, expand or slice one operand so that the sizes agree",
                   "If the two symbols always have one size, give them one name in the annotation"]) from None


def _pair_in_conflict(types: Sequence[TensorType], e: ShapeMismatch) -> tuple[TensorType, TensorType]:
    rank = max(len(t.shape) for t in types)

    def size(t: TensorType) -> DimLike:
        i = (e.axis or 0) - (rank - len(t.shape))
        return t.shape[i] if i >= 0 else 1

    a = next(t for t in types if size(t) == e.a)
    return a, next(t for t in types if size(t) == e.b)


def check_axis(name: str, axis: int, rank: int) -> int:
    """An axis attribute of a primitive, which is never negative.

    Raises:
        ShapeError: there is no such axis.
    """
    if not 0 <= axis < rank:
        raise ShapeError(f"{name!r} names axis {axis} of a tensor of rank {rank}",
                         hints=[f"Axes run from 0 to {rank - 1}" if rank else "A scalar has no axes"])
    return axis
