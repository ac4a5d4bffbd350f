"""``Schedule``: how a kernel is cut up, as a value.

A schedule never says *what* is computed: blocks, stages, vector widths and prefetch distances change no bit of a result.  It can be
stored, compared, merged and searched over; kernels, ops in a ``with ts.schedule(...)`` block and the autotuner all take it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

from ..errors import ArgumentError, suggest

SWIZZLES = ("none", "xor", "pad")
ALIASES: dict[str, tuple[str, ...]] = {
    "BM": ("tile_m",), "BN": ("tile_n",), "BK": ("tile_k",), "tile_size": ("tile_m", "tile_n", "tile_k"), "num_warps": ("warps",),
    "num_stages": ("stages",), "unroll": ("unroll_factor",), "prefetch": ("prefetch_distance",), "swizzle": ("swizzle_pattern",),
}
"""Other spellings of fields; one name may set several."""


@dataclass(frozen=True, init=False)
class Schedule:
    """Decisions on one kernel; None leaves a decision to the compiler.

    Attributes:
        tile_m, tile_n, tile_k: rows, columns and depth of the tile that one step works on, in elements.
        block_m, block_n: rows and columns of a thread block's tile where it holds several such tiles (default: equal to them).
        warps: warps of a thread block.
        stages: stages of the software pipeline between memories.
        vector_width: elements of one memory access.
        unroll_factor: how often inner loops are unrolled.
        prefetch_distance: steps between fetching and using a piece of data.
        swizzle_pattern: how rows lie in shared memory: "none", "xor" or "pad".

    Keywords may also be aliases: ``BM``, ``BN``, ``BK``, ``tile_size`` (all three), ``num_warps`` …

    Raises:
        ArgumentError: an unknown field (similar names are suggested), a number that is no positive integer (``stages`` and
            ``prefetch_distance`` may be 0), or an unknown swizzle.
    """

    tile_m: int | None = None
    tile_n: int | None = None
    tile_k: int | None = None
    block_m: int | None = None
    block_n: int | None = None
    warps: int | None = None
    stages: int | None = None
    vector_width: int | None = None
    unroll_factor: int | None = None
    prefetch_distance: int | None = None
    swizzle_pattern: str | None = None

    def __init__(self, **values: Any):
        for f in fields(self):
            object.__setattr__(self, f.name, None)
        for name, value in named(values).items():
            object.__setattr__(self, name, _checked(name, value))

    # -- other schedules -------------------------------------------------------------------------------------------------
    def derive(self, **changes: Any) -> Schedule:
        """A copy with some decisions replaced (None gives one back to the compiler).

        Raises:
            ArgumentError: an unknown field, or a value out of range.
        """
        return Schedule(**{**self.decisions, **named(changes)})

    def __or__(self, other: Any) -> Schedule:
        """Both schedules' decisions; where both decide, ``other``, on the right, wins."""
        if isinstance(other, Mapping):
            other = Schedule(**other)
        if not isinstance(other, Schedule):
            return NotImplemented
        return Schedule(**{**self.decisions, **other.decisions})

    def __ror__(self, other: Any) -> Schedule:
        return Schedule(**other) | self if isinstance(other, Mapping) else NotImplemented

    # -- as data -----------------------------------------------------------------------------------------------------------
    @property
    def decisions(self) -> dict[str, Any]:
        """The fields that are decided, by name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    @property
    def items(self) -> tuple[tuple[str, Any], ...]:
        """The decisions as an attribute of an op."""
        return tuple(self.decisions.items())

    def __getitem__(self, name: str) -> Any:
        if name not in FIELDS:
            raise KeyError(name)
        return getattr(self, name)

    def get(self, name: str, default: Any = None) -> Any:
        """The decision called ``name``, or ``default`` where there is none."""
        return self.decisions.get(name, default)

    def __iter__(self) -> Iterator[str]:
        return iter(self.decisions)

    def to_json(self) -> str:
        """The decisions as a JSON object, sorted by name."""
        return json.dumps(self.decisions, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> Schedule:
        """The schedule that :meth:`to_json` wrote.

        Raises:
            ArgumentError: the text is no JSON object, has an unknown field, or a value is out of range.
        """
        try:
            data = json.loads(text)
        except ValueError:
            data = None
        if not isinstance(data, dict):
            raise ArgumentError("a schedule is written as a JSON object", received=repr(text[:40]))
        return cls(**data)

    def __repr__(self) -> str:
        return "Schedule(" + ", ".join(f"{k}={v!r}" for k, v in self.decisions.items()) + ")"


FIELDS: tuple[str, ...] = tuple(f.name for f in fields(Schedule))


def _checked(name: str, value: Any) -> Any:
    if value is None:
        return None
    if name == "swizzle_pattern":
        if value not in SWIZZLES:
            raise ArgumentError(f"there is no swizzle pattern {value!r}{suggest(str(value), SWIZZLES)}", expected=", ".join(SWIZZLES))
        return value
    least = 0 if name in ("stages", "prefetch_distance") else 1
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ArgumentError(f"{name} is a whole number of at least {least}", received=repr(value))
    return value


def named(values: Mapping[str, Any]) -> dict[str, Any]:
    """``values`` with aliases replaced by the fields that they set; a field's own name beats an alias.

    Raises:
        ArgumentError: an unknown name.
    """
    out: dict[str, Any] = {}
    for name in values:
        if name not in FIELDS and name not in ALIASES:
            raise ArgumentError(f"a schedule has no field {name!r}{suggest(str(name), (*FIELDS, *ALIASES))}",
                                expected=", ".join(FIELDS), received=str(name))
        out.update(dict.fromkeys(ALIASES.get(name, ()), values[name]))
    return {**out, **{n: v for n, v in values.items() if n in FIELDS}}


def as_schedule(x: Any) -> Schedule:
    """A schedule from a schedule, a mapping or an object with the fields as attributes.

    Raises:
        ArgumentError: it is none of these, or a value is out of range.
    """
    if isinstance(x, Schedule):
        return x
    if isinstance(x, Mapping):
        return Schedule(**x)
    found = {n: getattr(x, n) for n in (*FIELDS, *ALIASES) if getattr(x, n, None) is not None}
    if not found:
        raise ArgumentError(f"a {type(x).__name__} is no schedule", hints=["Pass ts.Schedule(tile_m=128, …) or a mapping"])
    return Schedule(**found)


__all__ = ["ALIASES", "FIELDS", "Schedule", "as_schedule", "named"]
