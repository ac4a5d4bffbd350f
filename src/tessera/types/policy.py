"""Numerical policies: how a value is stored, computed, accumulated and rounded."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import Any

from .dtypes import DType, as_dtype, f32, f64, tf32


class RoundingMode(enum.StrEnum):
    """How a result that lies between two representable values is rounded."""

    NEAREST = "nearest"  # to nearest, ties to even
    STOCHASTIC = "stochastic"
    TOWARD_ZERO = "toward_zero"
    UP = "up"
    DOWN = "down"

    @classmethod
    def _missing_(cls, value: object) -> RoundingMode | None:
        return _ROUNDING_ALIASES.get(str(value))

    def __str__(self) -> str:
        return self.value


_ROUNDING_ALIASES = {
    "rte": RoundingMode.NEAREST, "rne": RoundingMode.NEAREST, "nearest_even": RoundingMode.NEAREST,
    "rtz": RoundingMode.TOWARD_ZERO, "rtp": RoundingMode.UP, "rtn": RoundingMode.DOWN,
}


_FIELDS = ("storage", "compute", "accumulate", "rounding", "saturate", "denorm_mode")


@dataclass(frozen=True)
class Accum:
    """The right-hand side of ``bf16 @ accum(f32)``."""

    dtype: DType


def accum(dtype: object) -> Accum:
    """``bf16 @ accum(f32)``: accumulate in ``dtype``."""
    return Accum(as_dtype(dtype))


@dataclass(frozen=True, init=False, eq=False)
class NumericalPolicy:
    """Complete numeric behaviour as a value.

    Args:
        storage: the format in memory.
        compute: the format of arithmetic (default: ``storage``).
        accumulate: the format of sums inside products and reductions (default: f32, or ``storage`` if wider).
        rounding: a :class:`RoundingMode` or its name.
        saturate: clamp to the largest finite value instead of overflowing.
        denorm_mode: ``"preserve"`` or ``"flush"`` subnormal numbers.

    Policies are equal when these fields are, whatever class states them.  ``names_storage`` says whether ``storage`` was given: only
    then does a scope change the dtype in which results are stored.
    ``store``, ``round`` are accepted for ``storage``, ``rounding``.

    Raises:
        TypeError: an unknown keyword or dtype.
        ValueError: an unknown rounding or denorm mode.
    """

    storage: DType
    compute: DType
    accumulate: DType
    rounding: RoundingMode
    saturate: bool
    denorm_mode: str
    names_storage: bool = dataclasses.field(default=False, compare=False, repr=False)

    def __init__(self, storage: object = None, compute: object = None, accumulate: object = None,
                 rounding: object = None, saturate: bool | None = None, denorm_mode: str | None = None, **aliases: Any):
        if "store" in aliases:
            storage = aliases.pop("store")
        if "round" in aliases:
            rounding = aliases.pop("round")
        if aliases:
            known = [*_FIELDS, "store", "round"]
            raise TypeError(f"a numerical policy has no field {next(iter(aliases))!r}; it has {', '.join(known)}")

        def stated(name: str, value: Any, default: Any = None) -> Any:
            return getattr(type(self), name, default) if value is None else value

        storage, compute, accumulate = stated("storage", storage), stated("compute", compute), stated("accumulate", accumulate)
        rounding, saturate = stated("rounding", rounding, "nearest"), stated("saturate", saturate, False)
        denorm_mode = stated("denorm_mode", denorm_mode, "preserve")
        store = f32 if storage is None else as_dtype(storage)
        if denorm_mode not in ("preserve", "flush"):
            raise ValueError(f"denorm_mode is 'preserve' or 'flush', not {denorm_mode!r}")
        put = object.__setattr__
        if store is tf32:
            raise ValueError("tf32 is a format of arithmetic (compute=, accumulate=); tensors are stored as f32")
        put(self, "storage", store)
        put(self, "compute", store if compute is None else as_dtype(compute))
        put(self, "accumulate", (f64 if store is f64 else f32) if accumulate is None else as_dtype(accumulate))
        put(self, "rounding", RoundingMode(str(rounding)))
        put(self, "saturate", bool(saturate))
        put(self, "denorm_mode", denorm_mode)
        put(self, "names_storage", storage is not None)

    @property
    def accum(self) -> DType:
        """``accumulate`` by the name that it has in ``bf16 @ accum(f32)``."""
        return self.accumulate

    def _fields(self) -> tuple[Any, ...]:
        return tuple(getattr(self, f) for f in _FIELDS)

    def __eq__(self, other: object) -> bool:
        return self._fields() == other._fields() if isinstance(other, NumericalPolicy) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._fields())

    @classmethod
    def from_class(cls) -> NumericalPolicy:
        """The policy that a class states by its attributes (``class Mine(ts.TrainingPolicy): accumulate = ts.f64``)."""
        return NumericalPolicy(**{f: getattr(cls, f) for f in _FIELDS if hasattr(cls, f)})

    def replace(self, **changes: Any) -> NumericalPolicy:
        """A copy with some fields changed."""
        same = {k: getattr(self, k) for k in _FIELDS if k != "storage" or self.names_storage}
        return NumericalPolicy(**{**same, **changes})

    def __str__(self) -> str:
        plain = NumericalPolicy(storage=self.storage, accumulate=self.accumulate)
        if self == plain:
            return f"{self.storage} @ accum({self.accumulate})"
        return "Policy(" + ", ".join(f"{k}={getattr(self, k)}" for k in _FIELDS) + ")"


def wider(a: DType, b: DType) -> DType:
    """The format of two that holds more: f32 for f16 with bf16 and for two formats of 8 bits; policies may mix all floats."""
    if a is b or b is tf32:
        return a
    if a is tf32:
        return b
    return f32 if a.bits == b.bits and a.bits <= 16 else max((a, b), key=lambda d: d.bits)


def join(a: NumericalPolicy, b: NumericalPolicy) -> NumericalPolicy:
    """The policy of an op whose operands follow ``a`` and ``b``: the wider formats, the less usual modes."""
    rounding = a.rounding if a.rounding is not RoundingMode.NEAREST else b.rounding
    return NumericalPolicy(storage=wider(a.storage, b.storage), compute=wider(a.compute, b.compute),
                           accumulate=wider(a.accumulate, b.accumulate), rounding=rounding, saturate=a.saturate or b.saturate,
                           denorm_mode="flush" if "flush" in (a.denorm_mode, b.denorm_mode) else "preserve")


Policy = NumericalPolicy
