"""Memory of tensors on the host: a caching allocator.

Small arrays are numpy's own.  From :data:`LARGE` bytes on, an array lies in a block of a size class (eight classes an
octave, so at most 1/8 is lost); a block returns to the cache when the last array over it is gone, and the next output of that
class reuses its warm pages.  Blocks come from 2 MiB-aligned mappings that ask for huge pages.  Page faults on fresh
memory cost more than most kernels; this is what avoids them.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
import weakref
from collections import OrderedDict
from typing import Any

import numpy as np

from ..settings import MEMORY_LIMIT

LARGE = 1 << 16
HUGE_PAGE = 2 << 20
MOST = 1 << 46  # bytes; beyond any machine's memory, and far from where sizes wrap around
_MADV_HUGEPAGE = 14

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


def size_class(nbytes: int) -> int:
    """The size of the block that holds ``nbytes`` (at least :data:`LARGE`): a multiple of an eighth of its octave."""
    n = max(nbytes, LARGE)
    step = 1 << max(12, n.bit_length() - 4)
    return -(-n // step) * step


def map_pages(size: int) -> int | None:
    """The address of fresh memory; None where the system has none."""
    got: int | None = _libc.mmap(None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    return None if got is None or got == ctypes.c_void_p(-1).value else got


def unmap_pages(start: int, end: int) -> None:
    """Give memory back to the system."""
    if end > start:
        _libc.munmap(start, end - start)


class _Pools(threading.local):
    """The pool in which a thread's arrays lie instead (``runtime/memory_pool.py``)."""

    current: Any = None


class Allocator:
    """Blocks by size class.  Thread safe.

    Attributes:
        limit: bytes of free blocks that are kept; the least recently freed go first.
    """

    def __init__(self, limit: int):
        self.limit = limit
        self.pools = _Pools()
        self.every_pool: weakref.WeakSet[Any] = weakref.WeakSet()
        self._lock = threading.RLock()  # a block's finaliser may run inside any of these methods
        self._free: OrderedDict[int, list[int]] = OrderedDict()  # class -> addresses, latest freed last
        self._types: dict[int, type[Any]] = {}
        self._mappings: dict[int, tuple[int, int]] = {}  # block address -> its own mapping
        self.in_use = self.cached = self.peak = 0
        self.hits = self.misses = 0

    # -- arrays --------------------------------------------------------------------------------------------------------
    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any], nbytes: int) -> np.ndarray[Any, Any]:
        """An uninitialised array; ``nbytes`` is its size.

        Raises:
            MemoryError: the system has no memory.
        """
        if nbytes < LARGE:
            return np.empty(shape, dtype)
        if self.pools.current is not None:
            return self.pools.current.empty(shape, dtype, nbytes)  # type: ignore[no-any-return]
        return np.ndarray(shape, dtype, self.block(nbytes))

    def block(self, nbytes: int) -> Any:
        """A block of at least ``nbytes`` as a ctypes array; it returns to the cache when nobody refers to it.

        Raises:
            MemoryError: the system has no memory.
        """
        if nbytes > MOST:
            raise MemoryError(f"no memory for {nbytes} bytes")
        size = size_class(nbytes)
        with self._lock:
            addresses = self._free.get(size)
            if addresses:
                address = addresses.pop()
                self.cached -= size
                self.hits += 1
            else:
                address = self._map(size)
                self.misses += 1
            self.in_use += size
            self.peak = max(self.peak, self.in_use)
            kind = self._types.get(size) or self._make_type(size)
        return kind.from_address(address)

    def _make_type(self, size: int) -> type[Any]:
        """A ctypes array type for the class, whose instances hand their block back."""
        def give_back(block: Any, allocator: Allocator = self, size: int = size,
                      address_of: Any = ctypes.addressof) -> None:
            allocator._release(address_of(block), size)

        kind = type(f"Block{size}", (ctypes.c_char * size,), {"__del__": give_back, "owns_its_memory": True})
        self._types[size] = kind
        return kind

    def _release(self, address: int, size: int) -> None:
        with self._lock:
            self.in_use -= size
            self.cached += size
            self._free.setdefault(size, []).append(address)
            self._free.move_to_end(size)
            if self.cached > self.limit:
                self._trim(self.limit)

    # -- memory from the system ------------------------------------------------------------------------------------------
    def _map(self, size: int) -> int:
        span = size + HUGE_PAGE if size >= HUGE_PAGE else size
        start = map_pages(span)
        if start is None:
            self._trim(0)
            start = map_pages(span)
        if start is None:
            raise MemoryError(f"no memory for {size} bytes")
        address = start
        if size >= HUGE_PAGE:
            address = -(-start // HUGE_PAGE) * HUGE_PAGE
            unmap_pages(start, address)
            unmap_pages(address + size, start + span)
            _libc.madvise(address, size, _MADV_HUGEPAGE)
        self._mappings[address] = (address, size)
        return address

    def _trim(self, keep: int) -> None:
        for size in list(self._free):
            addresses = self._free[size]
            while addresses and self.cached > keep:
                address = addresses.pop(0)
                self.cached -= size
                _libc.munmap(*self._mappings.pop(address))
            if not addresses:
                del self._free[size]

    def trim(self, keep: int = 0) -> None:
        """Give free blocks back to the system until at most ``keep`` bytes of them are left."""
        with self._lock:
            self._trim(keep)

    def usage(self) -> dict[str, int]:
        """Bytes in use and cached, those of pools included, and at the peak; how many requests the cache met."""
        pools = list(self.every_pool)
        used, free = sum(p.in_use for p in pools), sum(p.reserved - p.in_use for p in pools)
        with self._lock:
            return {"in_use": self.in_use + used, "cached": self.cached + free, "peak": max(self.peak, self.in_use + used),
                    "hits": self.hits, "misses": self.misses}

    def reset_peak(self) -> None:
        """The peak starts over from what is in use now."""
        with self._lock:
            self.peak = self.in_use

    def _after_fork(self) -> None:
        self._lock = threading.RLock()


ALLOCATOR = Allocator(MEMORY_LIMIT.get())
os.register_at_fork(after_in_child=ALLOCATOR._after_fork)
