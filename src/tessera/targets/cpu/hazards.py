"""Which launches must wait for which: memory that one writes and another touches."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from ...ir.core import Op, Value
from ...types.dims import DimLike, known_nonnegative


@dataclass(frozen=True)
class Region:
    """Memory behind a buffer: a parameter (its position) or a range of the arena."""

    root: Any
    start: DimLike = 0
    end: DimLike = 0

    def overlaps(self, other: Region) -> bool:
        if self.root != other.root:
            return False
        if self.root != "arena":
            return True
        return not (known_nonnegative(other.start - self.end) or known_nonnegative(self.start - other.end))


def region_of(v: Value) -> Region | None:
    """The memory of a buffer; None for constants, which nothing writes."""
    while v.op is not None and v.op.name == "view":
        v = v.op.operands[0]
    if v.op is None:
        return Region(v)
    if v.op.name == "alloc":
        start = v.op.attrs["offset"]
        return Region("arena", start, start + v.type.nbytes)
    return None


@dataclass
class Accesses:
    """What launches since the last meeting point read and write."""

    reads: list[Region] = field(default_factory=list)
    writes: list[Region] = field(default_factory=list)
    everything: bool = False

    def add(self, op: Op) -> None:
        reads, writes = accesses(op)
        self.reads += reads
        self.writes += writes

    def conflicts(self, op: Op) -> bool:
        """True when ``op`` must not run beside them."""
        if self.everything:
            return True
        reads, writes = accesses(op)
        return _any_overlap(self.writes, reads) or _any_overlap(self.writes, writes) or _any_overlap(self.reads, writes)


def accesses(op: Op) -> tuple[list[Region], list[Region]]:
    """(reads, writes) of a launch; an operand that it writes may be read too, which makes no difference to waiting."""
    outs = set(op.attrs.get("outs", ()))
    reads: list[Region] = []
    writes: list[Region] = []
    for i, v in enumerate(op.operands):
        region = region_of(v)
        if region is not None:
            (writes if i in outs else reads).append(region)
    return reads, writes


def _any_overlap(a: Iterable[Region], b: Iterable[Region]) -> bool:
    b = list(b)
    return any(x.overlaps(y) for x in a for y in b)
