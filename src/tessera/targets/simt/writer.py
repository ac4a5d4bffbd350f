"""Lines of LLVM IR for one thread: the CPU's writer at width 1, with address spaces and the vendor's intrinsics."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ...machine.simt import SimtMachine
from ...tiling.layouts import Layout, log2_up
from ..cpu.emit_writer import Writer
from .vendors import Vendor

GLOBAL, SHARED = 1, 3


class ThreadWriter(Writer):
    """Writes one kernel.  What depends on the thread alone (its lane, where its elements lie) stands at the entry."""

    def __init__(self, machine: SimtMachine, vendor: Vendor, threads: int):
        super().__init__(machine)  # type: ignore[arg-type]  # it asks for lanes and features alone
        self.vendor, self.threads, self.warp_lanes = vendor, threads, machine.lanes
        self.narrowing = vendor.narrowing
        self.declarations: set[str] = set()
        self.widened: dict[str, str] = {}  # an i32 of the thread -> the i64 that it was made of
        self._once: dict[Any, str] = {}

    def declare(self, line: str) -> None:
        """A declaration that the module needs."""
        self.declarations.add(line)

    @contextmanager
    def at_entry(self) -> Iterator[None]:
        """What is written inside stands before all blocks."""
        saved, self._in_entry = self._in_entry, True
        yield
        self._in_entry = saved

    def intrinsic(self, name: str, element: str, width: int, *args: str) -> str:
        rule = self.vendor.intrinsics.get(name)
        if rule is not None and element in ("float", "double"):
            return rule(self, element, args)
        return super().intrinsic(name, element, width, *args)

    def select(self, condition: str, element: str, width: int, yes: str, no: str) -> str:
        if element != "i1":
            return super().select(condition, element, width, yes, no)
        # of truth values by logic: Intel's CPU compiler refuses some selects of them
        first = condition if yes == "true" else self.let(f"and i1 {condition}, {yes}")
        if no == "false":
            return first
        other = self.let(f"and i1 {self.let(f'xor i1 {condition}, true')}, {no}")
        return self.let(f"or i1 {first}, {other}")

    # -- the thread --------------------------------------------------------------------------------------------------------
    def once(self, key: Any, make: Any) -> str:
        """A value of the thread, computed at the entry."""
        if key not in self._once:
            with self.at_entry():
                self._once[key] = make()
        return self._once[key]

    def thread_id(self) -> str:
        return self.once("thread", lambda: self.vendor.thread_id(self))

    def lane_id(self) -> str:
        if self.threads <= self.warp_lanes:  # a CPU's compiler sees then which lanes are neighbours
            return self.thread_id()
        return self.once("lane", lambda: self.let(f"and i32 {self.thread_id()}, {self.warp_lanes - 1}"))

    def warp_id(self) -> str:
        return self.once("warp", lambda: self.let(f"lshr i32 {self.thread_id()}, {log2_up(self.warp_lanes)}"))

    def selected(self, columns: tuple[tuple[str, tuple[int, ...]], ...]) -> str:
        """The XOR of the numbers that the thread's lane and warp bits select, as an i32; "0" where all are 0."""
        return self.once(("selected", columns), lambda: self._selected(columns))

    def _selected(self, columns: tuple[tuple[str, tuple[int, ...]], ...]) -> str:
        total, used = "0", 0
        for place, numbers in columns:
            source = self.lane_id() if place == "lane" else self.warp_id()
            for first, run, unit in _runs(numbers):
                part = source if first == 0 else self.let(f"lshr i32 {source}, {first}")
                if run == 1 and unit & (unit - 1):  # several bits at once: a swizzle
                    part = self.let(f"mul i32 {self.let(f'and i32 {part}, 1')}, {unit}")
                else:
                    if source != self.lane_id() or first + run < log2_up(self.warp_lanes):
                        part = self.let(f"and i32 {part}, {(1 << run) - 1}")
                    part = part if unit == 1 else self.let(f"shl i32 {part}, {log2_up(unit)}")
                bits = unit if run == 1 else ((1 << run) - 1) * unit
                total = part if total == "0" else self.let(f"{'xor' if used & bits else 'or'} i32 {total}, {part}")
                used |= bits
        return total

    def thread_part(self, layout: Layout, low: int = 0, high: int | None = None) -> str:
        """What lane and warp contribute to bits ``low`` … ``high - 1`` of element numbers under a layout."""
        top = layout.dim if high is None else high
        mask = (1 << (top - low)) - 1
        return self.selected(tuple((p, tuple(c >> low & mask for c in layout.bases(p))) for p in ("lane", "warp")))

    def wide(self, value: str) -> str:
        """An unsigned i32 of the thread as an i64."""
        if not value.startswith("%") or value in self.widened:
            return self.widened.get(value, value)
        return self.once(("wide", value), lambda: self.let(f"zext i32 {value} to i64"))

    # -- memory ------------------------------------------------------------------------------------------------------------
    def address(self, element: str, space: int, pointer: str, offset: str) -> str:
        """The address ``offset`` (an i64, or a number) elements on."""
        if offset == "0":
            return pointer
        return self.let(f"getelementptr {element}, ptr addrspace({space}) {pointer}, i64 {offset}")

    def barrier(self) -> None:
        """All threads of the block meet; a block of one warp needs it as well, since lanes need not run in step."""
        self.vendor.barrier(self)


def _runs(numbers: tuple[int, ...]) -> Iterator[tuple[int, int, int]]:
    """(first bit, how many, its number) of runs in which every number is twice the one before."""
    i = 0
    while i < len(numbers):
        unit, n = numbers[i], 1
        if unit == 0:
            i += 1
            continue
        while unit & (unit - 1) == 0 and i + n < len(numbers) and numbers[i + n] == unit << n:
            n += 1
        yield i, n, unit
        i += n


__all__ = ["GLOBAL", "SHARED", "ThreadWriter"]
