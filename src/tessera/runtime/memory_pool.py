"""``ts.memory.Pool``: tensors of a block of code in memory of their own, with a limit.

A pool reserves segments from the system, grows them geometrically, and gives out pieces by best fit; pieces that come back join their
free neighbours.  Live tensors never move.  When the free pieces are too small for a request that the limit would allow, the pool
defragments: the whole pages of its free pieces go back to the system, and as much is reserved anew in one piece.
"""

from __future__ import annotations

import bisect
import ctypes
import mmap
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import ArgumentError, OutOfMemoryError
from .allocator import ALLOCATOR, map_pages, unmap_pages

PAGE = mmap.PAGESIZE
UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def bytes_of(size: Any) -> int:
    """``"8GB"``, ``"64 MB"``, ``"512K"`` (powers of 1024) or a number of bytes.

    Raises:
        ArgumentError: it is none of these, or not positive.
    """
    number, unit = size, 1
    if isinstance(size, str):
        text = size.strip().upper().removesuffix("B").removesuffix("I").strip()
        unit = UNITS.get(text[-1:], 1)
        try:
            number = float(text[:-1] if unit > 1 else text)
        except ValueError:
            number = -1
    if isinstance(number, bool) or not isinstance(number, int | float) or not 0 < number * unit < 1 << 46:
        raise ArgumentError(f"{size!r} is no size of memory", expected='"8GB", "64MB", or a number of bytes', received=repr(size))
    return int(number * unit)


class Pool:
    """Memory for tensors, up to a limit.  Thread safe.

    Args:
        size: the most that it holds: ``"8GB"`` or a number of bytes.
        device: whose memory, for messages (``ts.memory.Pool`` looks it up).
        growth_factor: what is reserved grows by this factor when it is used up.
        initial: what is reserved first (an eighth of ``size``).

    Attributes:
        size, growth_factor: as given.
        reserved, in_use, peak: bytes taken from the system, bytes of live tensors, and their most so far.
        grows: how often it grew.
        defragmentations: how often free pages were traded for one piece.
        system_calls: how often it asked the system for memory, or gave some back.

    Raises:
        ArgumentError: a size that is none, a factor that does not grow, a first reservation beyond the limit.
    """

    def __init__(self, size: Any, device: Any = "cpu", growth_factor: float = 1.5, *, initial: Any = None):
        self.size = bytes_of(size)
        if isinstance(growth_factor, bool) or not isinstance(growth_factor, int | float) or not growth_factor > 1:
            raise ArgumentError("a pool grows by a factor above 1", expected="growth_factor > 1", received=repr(growth_factor))
        self.growth_factor = float(growth_factor)
        self.device = device
        first = max(PAGE, self.size // 8) if initial is None else bytes_of(initial)
        if first > self.size:
            raise ArgumentError(f"the first reservation of {first} bytes is more than the pool may hold", expected=f"at most {self.size}")
        self._first = _pages(first) if first < self.size else self.size // PAGE * PAGE or PAGE
        self._lock = threading.RLock()  # a block's finaliser may run inside any of these methods
        self._starts: list[int] = []  # of the free pieces, in order
        self._free: dict[int, int] = {}  # start -> bytes
        self._types: dict[int, type[Any]] = {}
        self.reserved = self.in_use = self.peak = 0
        self.grows = self.defragmentations = self.system_calls = 0
        ALLOCATOR.every_pool.add(self)

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], nbytes: int) -> np.ndarray[Any, Any]:
        """An uninitialised array of ``nbytes`` bytes.

        Raises:
            OutOfMemoryError: the pool's limit does not allow it.
        """
        return np.ndarray(shape, dtype, self.block(nbytes))

    def block(self, nbytes: int) -> Any:
        """Memory as a ctypes array, which comes back to the pool when nobody refers to it."""
        n = -(-max(nbytes, 1) // 64) * 64
        with self._lock:
            start = self._take(n)
            if start is None:
                self._reserve(n)
                start = self._take(n)
            assert start is not None
            self.in_use += n
            self.peak = max(self.peak, self.in_use)
            kind = self._types.get(n) or self._make_type(n)
        return kind.from_address(start)

    def stats(self) -> dict[str, int]:
        """The counters."""
        return {n: getattr(self, n) for n in ("size", "reserved", "in_use", "peak", "grows", "defragmentations", "system_calls")}

    def trim(self) -> int:
        """Give free pages back to the system; how many bytes."""
        with self._lock:
            return self._give_back()

    # -- pieces --------------------------------------------------------------------------------------------------------
    def _take(self, n: int) -> int | None:
        """The start of ``n`` bytes cut from the smallest free piece that holds them."""
        fits = [(size, start) for start, size in self._free.items() if size >= n]
        if not fits:
            return None
        size, start = min(fits)
        self._remove(start)
        if size > n:
            self._insert(start + n, size - n)
        return start

    def _release(self, start: int, n: int) -> None:
        with self._lock:
            self.in_use -= n
            at = bisect.bisect(self._starts, start)
            if at < len(self._starts) and self._starts[at] == start + n:
                after = self._starts[at]
                n += self._free[after]
                self._remove(after)
            if at > 0 and self._starts[at - 1] + self._free[self._starts[at - 1]] == start:
                before = self._starts[at - 1]
                n += self._free[before]
                start = before
                self._remove(before)
            self._insert(start, n)

    def _insert(self, start: int, n: int) -> None:
        bisect.insort(self._starts, start)
        self._free[start] = n

    def _remove(self, start: int) -> None:
        del self._free[start]
        self._starts.pop(bisect.bisect_left(self._starts, start))

    # -- the system ----------------------------------------------------------------------------------------------------
    def _reserve(self, n: int) -> None:
        """Make one free piece of ``n`` bytes: by growing, or by giving free pages back first."""
        need, room = _pages(n), self.size - self.reserved
        if need > room:
            if self._give_back() and need <= self.size - self.reserved:
                self.defragmentations += 1
            room = self.size - self.reserved
        if need > room:
            raise OutOfMemoryError(f"the pool has no room for {n} bytes: {self.in_use} of {self.size} are in use",
                                   expected=f"at most {max(0, room)} bytes", received=f"{n} bytes",
                                   hints=["Let go of tensors that are no longer needed", "Give the pool more: ts.memory.Pool(size=…)"])
        wanted = self._first if self.reserved == 0 else _pages(int(self.reserved * (self.growth_factor - 1)))
        got = max(need, min(wanted, room // PAGE * PAGE))
        start = map_pages(got)
        if start is None:
            raise OutOfMemoryError(f"the system has no memory for a pool's {got} bytes", hints=["Make the pool smaller"])
        self.grows += self.reserved > 0
        self.system_calls += 1
        self.reserved += got
        self._insert(start, got)

    def _give_back(self) -> int:
        """Unmap the whole pages of the free pieces."""
        total = 0
        for start in list(self._starts):
            end = start + self._free[start]
            low, high = _pages(start), end // PAGE * PAGE
            if high <= low:
                continue
            self._remove(start)
            if low > start:
                self._insert(start, low - start)
            if end > high:
                self._insert(high, end - high)
            unmap_pages(low, high)
            self.system_calls += 1
            total += high - low
        self.reserved -= total
        return total

    def _make_type(self, n: int) -> type[Any]:
        def give_back(block: Any, pool: Pool = self, n: int = n, address_of: Any = ctypes.addressof) -> None:
            pool._release(address_of(block), n)

        kind = type(f"PoolBlock{n}", (ctypes.c_char * n,), {"__del__": give_back, "owns_its_memory": True})
        self._types[n] = kind
        return kind

    def __del__(self) -> None:
        if hasattr(self, "_starts"):  # every block is gone: they hold the pool
            self._give_back()

    def __repr__(self) -> str:
        return f"<pool of {self.size} bytes on {self.device}: {self.in_use} in use, {self.reserved} reserved>"


def _pages(n: int) -> int:
    return -(-n // PAGE) * PAGE


@contextmanager
def use_pool(pool: Pool) -> Iterator[Pool]:
    """Inside the block, tensors of 64 KiB and more that this thread makes lie in the pool; smaller ones are numpy's own.

    Raises:
        ArgumentError: it is no pool.
    """
    if not isinstance(pool, Pool):
        raise ArgumentError("use_pool() takes a pool", expected='ts.memory.Pool(size="64MB")', received=type(pool).__name__)
    outer = ALLOCATOR.pools.current
    ALLOCATOR.pools.current = pool
    try:
        yield pool
    finally:
        ALLOCATOR.pools.current = outer


__all__ = ["Pool", "bytes_of", "use_pool"]
