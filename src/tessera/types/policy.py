"""Numerical policies: how a value is stored, computed, accumulated and rounded."""

from __future__ import annotations

import dataclasses
import enum
from dataclasses import dataclass
from typing import Any

from .dtypes import DType, as_dtype, f32, f64


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


@dataclass(frozen=True)
class Accum:
    """The right-hand side of ``bf16 @ accum(f32)``."""

    dtype: DType


def accum(dtype: object) -> Accum:
    """``bf16 @ accum(f32)``: accumulate in ``dtype``."""
    return Accum(as_dtype(dtype))


@dataclass(frozen=True, init=False)
class NumericalPolicy:
    """Complete numeric behaviour as a value.

    Args:
        storage: the format in memory.
        compute: the format of arithmetic (default: ``storage``).
        accumulate: the format of sums inside products and reductions (default: f32, or ``storage`` if wider).
        rounding: a :class:`RoundingMode` or its name.
        saturate: clamp to the largest finite value instead of overflowing.
        denorm_mode: ``"preserve"`` or ``"flush"`` subnormal numbers.

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

    def __init__(self, storage: object = None, compute: object = None, accumulate: object = None,
                 rounding: object = "nearest", saturate: bool = False, denorm_mode: str = "preserve", **aliases: Any):
        if "store" in aliases:
            storage = aliases.pop("store")
        if "round" in aliases:
            rounding = aliases.pop("round")
        if aliases:
            known = [f.name for f in dataclasses.fields(self)] + ["store", "round"]
            raise TypeError(f"a numerical policy has no field {next(iter(aliases))!r}; it has {', '.join(known)}")
        store = f32 if storage is None else as_dtype(storage)
        if denorm_mode not in ("preserve", "flush"):
            raise ValueError(f"denorm_mode is 'preserve' or 'flush', not {denorm_mode!r}")
        put = object.__setattr__
        put(self, "storage", store)
        put(self, "compute", store if compute is None else as_dtype(compute))
        put(self, "accumulate", (f64 if store is f64 else f32) if accumulate is None else as_dtype(accumulate))
        put(self, "rounding", RoundingMode(str(rounding)))
        put(self, "saturate", bool(saturate))
        put(self, "denorm_mode", denorm_mode)

    def replace(self, **changes: Any) -> NumericalPolicy:
        """A copy with some fields changed."""
        return NumericalPolicy(**{**{f.name: getattr(self, f.name) for f in dataclasses.fields(self)}, **changes})

    def __str__(self) -> str:
        plain = NumericalPolicy(storage=self.storage, accumulate=self.accumulate)
        if self == plain:
            return f"{self.storage} @ accum({self.accumulate})"
        fields = ((f.name, getattr(self, f.name)) for f in dataclasses.fields(self))
        return "Policy(" + ", ".join(f"{k}={v}" for k, v in fields) + ")"


Policy = NumericalPolicy
