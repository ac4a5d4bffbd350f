"""Element types.  One :class:`DType` instance a format; every spelling is an alias of it (one table, below)."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np

if TYPE_CHECKING:
    from .policy import Accum, NumericalPolicy


class DType:
    """A storage format: ``f32``, ``bf16``, ``int8`` …

    Attributes:
        name: the canonical spelling, as printed in IR.
        kind: ``"bool" | "int" | "uint" | "float" | "complex"``.
        bits: bits of one element.  Formats under 8 bits occupy one byte an element in host memory.
        np: the numpy (or ml_dtypes) dtype that holds it on the host.
    """

    __slots__ = ("__dict__", "bits", "kind", "name", "np")

    def __init__(self, name: str, kind: str, bits: int, np_dtype: Any):
        self.name, self.kind, self.bits = name, kind, bits
        self.np: np.dtype[Any] = np.dtype(np_dtype)

    @property
    def itemsize(self) -> int:
        """Bytes of one element in memory."""
        return self.np.itemsize

    @property
    def is_float(self) -> bool:
        return self.kind == "float"

    @property
    def is_complex(self) -> bool:
        return self.kind == "complex"

    @property
    def is_inexact(self) -> bool:
        return self.kind in ("float", "complex")

    @property
    def is_integer(self) -> bool:
        return self.kind in ("int", "uint")

    @property
    def is_small_float(self) -> bool:
        """fp8, fp6, fp4: formats that never convert without an explicit ``.to(...)``."""
        return self.kind == "float" and self.bits <= 8

    @cached_property
    def finfo(self) -> Any:
        """Machine limits of a float format (``eps``, ``max``, ``tiny`` …)."""
        return ml_dtypes.finfo(self.np)  # type: ignore[no-untyped-call]

    @property
    def has_infinity(self) -> bool:
        """Whether a float format has infinities: the finite ``fn`` formats of 8 bits and fewer have none."""
        return self.bits > 8 or self.name == "fp8_e5m2"

    @cached_property
    def iinfo(self) -> Any:
        """Limits of an integer format (``min``, ``max``)."""
        return ml_dtypes.iinfo(self.np)  # type: ignore[no-untyped-call]

    @property
    def min(self) -> Any:
        """The smallest value (``-inf`` for a float that has it): the identity of ``max``."""
        if self.kind == "bool":
            return False
        if self.is_integer:
            return int(self.iinfo.min)
        return -np.inf if self.has_infinity else float(self.finfo.min)

    @property
    def max(self) -> Any:
        """The largest value (``inf`` for a float that has it): the identity of ``min``."""
        if self.kind == "bool":
            return True
        if self.is_integer:
            return int(self.iinfo.max)
        return np.inf if self.has_infinity else float(self.finfo.max)

    @property
    def real(self) -> DType:
        """The component type of a complex format; itself otherwise."""
        return {"complex64": f32, "complex128": f64}.get(self.name, self)

    def __matmul__(self, other: Accum | NumericalPolicy) -> NumericalPolicy:
        """``bf16 @ accum(f32)``: this storage with that accumulation."""
        from .policy import Accum, NumericalPolicy
        if isinstance(other, Accum):
            return NumericalPolicy(storage=self, accumulate=other.dtype)
        return NotImplemented

    def __repr__(self) -> str:
        return f"tessera.{self.name}"

    def __str__(self) -> str:
        return self.name

    def __reduce__(self) -> tuple[Any, ...]:
        return as_dtype, (self.name,)

    def __hash__(self) -> int:
        return hash(self.name)

    def __eq__(self, other: object) -> bool:
        return self is other


bool_ = DType("bool", "bool", 8, np.bool_)
int4 = DType("int4", "int", 4, ml_dtypes.int4)
int8 = DType("int8", "int", 8, np.int8)
int16 = DType("int16", "int", 16, np.int16)
int32 = DType("int32", "int", 32, np.int32)
int64 = DType("int64", "int", 64, np.int64)
uint4 = DType("uint4", "uint", 4, ml_dtypes.uint4)
uint8 = DType("uint8", "uint", 8, np.uint8)
uint16 = DType("uint16", "uint", 16, np.uint16)
uint32 = DType("uint32", "uint", 32, np.uint32)
uint64 = DType("uint64", "uint", 64, np.uint64)
f16 = DType("f16", "float", 16, np.float16)
bf16 = DType("bf16", "float", 16, ml_dtypes.bfloat16)
f32 = DType("f32", "float", 32, np.float32)
f64 = DType("f64", "float", 64, np.float64)
fp8_e4m3 = DType("fp8_e4m3", "float", 8, ml_dtypes.float8_e4m3fn)
fp8_e5m2 = DType("fp8_e5m2", "float", 8, ml_dtypes.float8_e5m2)
fp6_e2m3 = DType("fp6_e2m3", "float", 6, ml_dtypes.float6_e2m3fn)
fp6_e3m2 = DType("fp6_e3m2", "float", 6, ml_dtypes.float6_e3m2fn)
fp4_e2m1 = DType("fp4_e2m1", "float", 4, ml_dtypes.float4_e2m1fn)
complex64 = DType("complex64", "complex", 64, np.complex64)
complex128 = DType("complex128", "complex", 128, np.complex128)

tf32 = DType("tf32", "float", 32, np.float32)
"""A format of arithmetic alone (8 exponent bits, 10 of fraction): tensors are stored as f32 and read in it by a policy's ``compute``."""

ALL: tuple[DType, ...] = (
    bool_, int4, int8, int16, int32, int64, uint4, uint8, uint16, uint32, uint64, f16, bf16, f32, f64,
    fp8_e4m3, fp8_e5m2, fp6_e2m3, fp6_e3m2, fp4_e2m1, complex64, complex128,
)

# The one table of spellings.
ALIASES: dict[str, DType] = {
    **{d.name: d for d in ALL},
    "bool_": bool_, "i1": bool_, "Bool": bool_,
    "i4": int4, "i8": int8, "i16": int16, "i32": int32, "i64": int64,
    "u4": uint4, "u8": uint8, "u16": uint16, "u32": uint32, "u64": uint64,
    "Int4": int4, "Int8": int8, "Int16": int16, "Int32": int32, "Int64": int64,
    "UInt8": uint8, "UInt16": uint16, "UInt32": uint32, "UInt64": uint64,
    "float16": f16, "fp16": f16, "Float16": f16, "half": f16,
    "bfloat16": bf16, "BFloat16": bf16,
    "float32": f32, "fp32": f32, "Float32": f32, "float": f32,
    "float64": f64, "fp64": f64, "Float64": f64, "double": f64,
    "fp8": fp8_e4m3, "float8_e4m3fn": fp8_e4m3, "float8_e5m2": fp8_e5m2,
    "fp4": fp4_e2m1, "float4_e2m1fn": fp4_e2m1, "fp6": fp6_e3m2,
    "float6_e2m3fn": fp6_e2m3, "float6_e3m2fn": fp6_e3m2,
    "tf32": tf32, "Complex64": complex64, "Complex128": complex128, "c64": complex64, "c128": complex128,
}
_BY_NP: dict[np.dtype[Any], DType] = {d.np: d for d in ALL}
_BY_PY: dict[type, DType] = {bool: bool_, int: int64, float: f32, complex: complex64}


def as_dtype(x: object) -> DType:
    """A DType from any spelling: a DType, a policy (its storage), a name, a numpy or torch dtype, or a Python scalar type.

    Raises:
        TypeError: no element type is called that.
    """
    if isinstance(x, DType):
        return x
    if x is None:  # NumPy would take it for float64
        raise TypeError("None is no element type")
    if isinstance(x, str):
        if x in ALIASES:
            return ALIASES[x]
        import difflib
        near = difflib.get_close_matches(x, ALIASES, n=3)
        raise TypeError(f"no dtype is called {x!r}" + (f"; did you mean {' or '.join(near)}?" if near else ""))
    if isinstance(x, type) and x in _BY_PY:
        return _BY_PY[x]
    storage = getattr(x, "storage", None)
    if isinstance(storage, DType):
        return storage
    library, _, called = str(x).partition(".")
    try:
        found = ALIASES.get(called) if library == "torch" else _BY_NP.get(np.dtype(x))  # type: ignore[call-overload]
    except TypeError:
        found = None
    if found is None:
        raise TypeError(f"tessera has no dtype for {x!r}")
    return found
