"""Promotion: the dtype of a result from the dtypes of its operands.  One table for the whole language.

* Python scalars are weak: they take the tensor's dtype (a float literal with an integer tensor gives f32).
* ``int`` with ``float`` gives the float's dtype.
* signed with unsigned widens to the signed type that holds both; ``uint64`` with a signed type is an error.
* ``f16`` with ``bf16`` gives ``f32``; floats widen f16/bf16 -> f32 -> f64.
* fp8, fp6, fp4 and 4-bit integers never convert without ``.to(...)``.
"""

from __future__ import annotations

from functools import cache

from . import dtypes as dt
from .dtypes import DType

_SIGNED = {8: dt.int8, 16: dt.int16, 32: dt.int32, 64: dt.int64}


class PromotionError(TypeError):
    """Two dtypes have no common type without an explicit conversion.  ``fix`` is the suggestion."""

    def __init__(self, a: DType, b: DType, why: str):
        super().__init__(f"{a} and {b} do not mix: {why}")
        self.a, self.b, self.why = a, b, why


@cache
def promote(a: DType, b: DType) -> DType:
    """The common dtype of two operands.

    Raises:
        PromotionError: they mix only through an explicit ``.to(...)``.
    """
    if a is b:
        return a
    for x in (a, b):
        if x.is_small_float or x.bits == 4:
            raise PromotionError(a, b, f"{x} never converts implicitly; write .to(...)")
    if a.kind == "bool":
        return b
    if b.kind == "bool":
        return a
    if a.is_complex or b.is_complex:
        wide = max(a.real.bits if a.is_inexact else 0, b.real.bits if b.is_inexact else 0)
        return dt.complex128 if wide > 32 else dt.complex64
    if a.is_float and b.is_float:
        return dt.f32 if a.bits == b.bits else max((a, b), key=lambda d: d.bits)
    if a.is_float or b.is_float:
        return a if a.is_float else b
    if a.kind == b.kind:
        return max((a, b), key=lambda d: d.bits)
    signed, unsigned = (a, b) if a.kind == "int" else (b, a)
    if unsigned.bits == 64:
        raise PromotionError(a, b, "no integer type holds both; convert one with .to(int64) or .to(uint64)")
    return _SIGNED[max(signed.bits, 2 * unsigned.bits)]


def promote_weak(a: DType, scalar: type) -> DType:
    """The common dtype of a tensor of dtype ``a`` and a Python scalar of type ``scalar`` (bool, int, float, complex)."""
    if scalar is bool:
        return a
    if scalar is int:
        return dt.int64 if a.kind == "bool" else a
    if scalar is float:
        return a if a.is_inexact else dt.f32
    if scalar is complex:
        return a if a.is_complex else dt.complex128 if a is dt.f64 else dt.complex64
    raise TypeError(f"{scalar.__name__} is not a number that mixes with tensors")


def widens(src: DType, dst: DType) -> bool:
    """True when ``src`` converts to ``dst`` without loss and without being asked."""
    if src is dst:
        return True
    try:
        return promote(src, dst) is dst
    except PromotionError:
        return False


def accumulator(d: DType) -> DType:
    """The dtype in which sums over ``d`` run: f32 for 16-bit and smaller floats, 64-bit integers for integers."""
    if d.kind in ("int", "bool"):
        return dt.int64
    if d.kind == "uint":
        return dt.uint64
    return dt.f32 if d.is_float and d.bits < 32 else d


def to_inexact(d: DType) -> DType:
    """The dtype of ``mean``, true division and the transcendental functions of ``d``: integers give f32."""
    return d if d.is_inexact else dt.f32
