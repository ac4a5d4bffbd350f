"""Caches of keys and values: ring buffers, page tables, eviction, and :class:`KVCache` for decoding.

    class MyCache(ts.Cache):
        @ts.cache.eviction_policy("lru")
        def get(self, position): …

        @ts.cache.write_through
        def update(self, position, k, v): …
"""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from enum import StrEnum
from typing import Any

from .errors import ArgumentError, IndexOutOfRangeError, ShapeError, TesseraError, suggest
from .ops import concat
from .tracing.creation import zeros
from .tracing.recorder import lift
from .tracing.tensor import Tensor
from .types import dtypes as dt


class EvictionPolicy(StrEnum):
    """Which entry goes first: the least recently used, the first in, or the least frequently used."""

    LRU = "lru"
    FIFO = "fifo"
    LFU = "lfu"

    @classmethod
    def of(cls, name: Any) -> EvictionPolicy:
        """From a name.

        Raises:
            ArgumentError: there is no such policy.
        """
        names = [p.value for p in cls]
        if isinstance(name, cls):
            return name
        if name not in names:
            raise ArgumentError(f"there is no eviction policy {name!r}{suggest(str(name), names)}", expected=", ".join(names))
        return cls(name)


class PageFault(TesseraError, KeyError):
    """A position has no page."""

    title, code = "Page fault", "E_PAGE_FAULT"
    __str__ = TesseraError.__str__


class OutOfPages(TesseraError, MemoryError):
    """No page is free."""

    title, code = "Out of pages", "E_OUT_OF_PAGES"


# -- eviction ----------------------------------------------------------------------------------------------------------------
class Order:
    """Keys in the order in which a policy gives them up."""

    def __init__(self, policy: Any = EvictionPolicy.LRU):
        self.policy = EvictionPolicy.of(policy)
        self._uses: OrderedDict[Any, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._uses)

    def __contains__(self, key: Any) -> bool:
        return key in self._uses

    def add(self, key: Any) -> None:
        """A key comes in, or is written again."""
        if key in self._uses:
            self.touch(key)
        else:
            self._uses[key] = 1

    def touch(self, key: Any) -> None:
        """A key is used."""
        if key not in self._uses:
            return
        self._uses[key] += 1
        if self.policy is not EvictionPolicy.FIFO:
            self._uses.move_to_end(key)

    def discard(self, key: Any) -> None:
        self._uses.pop(key, None)

    def clear(self) -> None:
        self._uses.clear()

    def victim(self) -> Any:
        """The key that goes next.

        Raises:
            KeyError: there is none.
        """
        if not self._uses:
            raise KeyError("nothing to evict")
        if self.policy is EvictionPolicy.LFU:
            return min(self._uses, key=self._uses.__getitem__)  # of equally many uses the one used longest ago
        return next(iter(self._uses))


# -- pages ---------------------------------------------------------------------------------------------------------------------
class Page(int):
    """A page's number, together with the place of one position: ``slot`` is ``number * page_size + offset``."""

    slot: int
    logical: int

    def __new__(cls, number: int, offset: int, page_size: int, logical: int) -> Page:
        self = super().__new__(cls, number)
        self.slot, self.logical = number * page_size + offset, logical
        return self


class PageTable:
    """A mapping from positions to pages of ``page_size`` positions, of which there are ``num_pages``.

    Raises:
        ArgumentError: sizes below 1.
    """

    def __init__(self, page_size: int, num_pages: int):
        if page_size < 1 or num_pages < 1:
            raise ArgumentError("a page table has at least one page of at least one position",
                                received=f"page_size={page_size}, num_pages={num_pages}",
                                hints=["num_pages = max_seq // page_size is 0 where max_seq is smaller than a page"])
        self.page_size, self.num_pages = page_size, num_pages
        self._pages: dict[int, int] = {}
        self._free = list(range(num_pages - 1, -1, -1))

    @property
    def free_pages(self) -> list[int]:
        """The numbers of the pages that are free; the next one to be given out first."""
        return list(reversed(self._free))

    @property
    def used_pages(self) -> list[int]:
        """The numbers of the pages in use, in the order of positions."""
        return [self._pages[k] for k in sorted(self._pages)]

    def __contains__(self, position: int) -> bool:
        return position // self.page_size in self._pages

    def _split(self, position: int) -> tuple[int, int]:
        if not hasattr(position, "__index__") or position < 0:
            raise IndexOutOfRangeError(f"{position!r} is no position", expected="an integer from 0")
        return divmod(int(position), self.page_size)

    def get_page(self, position: int) -> Page:
        """The page of a position.

        Raises:
            PageFault: none is allocated.
        """
        logical, offset = self._split(position)
        if logical not in self._pages:
            raise PageFault(f"position {position} has no page", hints=["Allocate it first: table.allocate_page(position)"])
        return Page(self._pages[logical], offset, self.page_size, logical)

    def allocate_page(self, position: int) -> Page:
        """The page of a position, taken from the free ones where it has none yet.

        Raises:
            OutOfPages: none is free.
        """
        logical, offset = self._split(position)
        if logical not in self._pages:
            if not self._free:
                raise OutOfPages(f"all {self.num_pages} pages are in use", hints=["Free one: table.free_page(position)",
                                 "Mark get() with @ts.cache.eviction_policy(...), so that the cache evicts"])
            self._pages[logical] = self._free.pop()
        return Page(self._pages[logical], offset, self.page_size, logical)

    def free_page(self, position: int) -> None:
        """Give the page of a position back.

        Raises:
            PageFault: it has none (any more).
        """
        logical, _ = self._split(position)
        if logical not in self._pages:
            raise PageFault(f"the page of position {position} is free already", sentence="A page can be freed once.")
        self._free.append(self._pages.pop(logical))

    def clear(self) -> None:
        """Free every page."""
        self._pages.clear()
        self._free = list(range(self.num_pages - 1, -1, -1))


class RingBuffer:
    """The last ``max_seq`` entries of each of ``max_batch`` sequences, of ``dim`` numbers each, in memory that never grows.

    ``buffer.append(x)`` writes the next entry [max_batch, dim], or several [max_batch, n, dim]; ``buffer.last(n)`` reads the latest in
    order; ``buffer[i]`` is the entry at slot ``i`` (modulo the size), or at the slot of a :class:`Page`.

    Raises:
        ArgumentError: sizes below 1.
    """

    def __init__(self, max_batch: int, max_seq: int, dim: int, dtype: Any = dt.f32):
        if min(max_batch, max_seq, dim) < 1:
            raise ArgumentError("a ring buffer holds at least one entry", received=f"({max_batch}, {max_seq}, {dim})")
        self.max_batch, self.max_seq, self.dim = max_batch, max_seq, dim
        self.data = zeros(max_batch, max_seq, dim, dtype=dtype)
        self.written = 0  # entries written by append in all

    def __len__(self) -> int:
        return min(self.written, self.max_seq)

    @property
    def nbytes(self) -> int:
        """Bytes of the buffer."""
        return self.data.nbytes

    def _slot(self, i: Any) -> int:
        return (i.slot if isinstance(i, Page) else int(i)) % self.max_seq

    def __getitem__(self, i: Any) -> Tensor:
        if isinstance(i, slice):
            return self.data[:, i]
        return self.data[:, self._slot(i)]

    def __setitem__(self, i: Any, value: Any) -> None:
        if isinstance(i, slice):
            self.data[:, i] = value
        else:
            self.data[:, self._slot(i)] = value

    def append(self, x: Any) -> None:
        """Write the next entry, or several; the oldest are overwritten.

        Raises:
            ShapeError: not [max_batch, dim] or [max_batch, n, dim].
        """
        t = lift(x)
        if len(t.shape) == 2:
            t = t.reshape(t.shape[0], 1, t.shape[1])
        if len(t.shape) != 3 or (t.shape[0], t.shape[2]) != (self.max_batch, self.dim):
            raise ShapeError("these are no entries of the buffer", expected=f"[{self.max_batch}, {self.dim}] or "
                             f"[{self.max_batch}, n, {self.dim}]", received=str(lift(x).type))
        n = int(t.shape[1])
        keep = min(n, self.max_seq)
        start = (self.written + n - keep) % self.max_seq
        first = min(keep, self.max_seq - start)
        self.data[:, start:start + first] = t[:, n - keep:n - keep + first]
        if keep > first:
            self.data[:, :keep - first] = t[:, n - keep + first:]
        self.written += n

    def last(self, n: int | None = None) -> Tensor:
        """The latest ``n`` entries (all that are there), oldest first: [max_batch, n, dim]."""
        n = len(self) if n is None else min(int(n), len(self))
        end = self.written % self.max_seq
        if n <= end or n == 0:
            return self.data[:, end - n:end]
        if self.written < self.max_seq or end == 0:
            stop = end or self.max_seq
            return self.data[:, stop - n:stop]
        wrapped: Tensor = concat([self.data[:, self.max_seq - (n - end):], self.data[:, :end]], 1)
        return wrapped

    def clear(self) -> None:
        """Forget every entry."""
        self.written = 0
        self.data[:] = 0


# -- caches ---------------------------------------------------------------------------------------------------------------------
class Cache:
    """Base class of caches: ``get`` and ``update`` are the subclass's; hits and misses are counted, pages evicted.

    A ``get`` marked ``@ts.cache.eviction_policy(...)`` counts as a hit, or as a miss where it raises :class:`PageFault`.  An ``update``
    that runs out of pages evicts by that policy and runs again.  One marked ``@ts.cache.write_through`` has also written to
    :attr:`backing` (a mapping, or anything with ``write(key, value)``) when it returns.
    """

    backing: Any = None

    @property
    def _stats(self) -> dict[str, int]:
        found: dict[str, int] = self.__dict__.setdefault("_counts", {"hits": 0, "misses": 0, "evictions": 0, "writes": 0})
        return found

    @property
    def hits(self) -> int:
        """How often ``get`` found its entry."""
        return self._stats["hits"]

    @property
    def misses(self) -> int:
        """How often it did not."""
        return self._stats["misses"]

    @property
    def evictions(self) -> int:
        """How many entries were evicted."""
        return self._stats["evictions"]

    def stats(self) -> dict[str, int]:
        """Hits, misses, evictions and writes."""
        return dict(self._stats)

    @property
    def _order(self) -> Order:
        found = self.__dict__.get("_eviction")
        if found is None:
            methods = [m for c in type(self).__mro__ for m in vars(c).values()]
            policy = next((m.__eviction_policy__ for m in methods if hasattr(m, "__eviction_policy__")), EvictionPolicy.LRU)
            found = self.__dict__["_eviction"] = Order(policy)
        return found

    def _key(self, position: Any) -> Any:
        """What is evicted as one: the page of a position where there is a page table."""
        table = self.__dict__.get("page_table")
        return position // table.page_size if isinstance(table, PageTable) else position

    def get(self, position: Any) -> Any:
        """The entry of a position; subclasses define it."""
        raise TypeError(f"{type(self).__name__} defines no get(...)")

    def update(self, position: Any, *values: Any) -> Any:
        """Write an entry; subclasses define it."""
        raise TypeError(f"{type(self).__name__} defines no update(...)")

    def evict(self, key: Any = None) -> Any:
        """Give up one entry (a page, where there is a page table): the one that the policy names, or ``key``.

        Returns:
            The key that was evicted.

        Raises:
            KeyError: nothing is cached.
        """
        key = self._order.victim() if key is None else key
        table = self.__dict__.get("page_table")
        if isinstance(table, PageTable):
            table.free_page(key * table.page_size)
        self._order.discard(key)
        self._stats["evictions"] += 1
        return key

    def clear(self) -> int:
        """Drop every entry; returns the bytes of the tensors that it held."""
        held = [v for v in vars(self).values() if isinstance(v, RingBuffer | PageTable)]
        for v in held:
            v.clear()
        self._order.clear()
        return sum(v.nbytes for v in held if isinstance(v, RingBuffer))


def eviction_policy(name: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """``@ts.cache.eviction_policy("lru")`` on ``get``: "lru", "fifo" or "lfu".

    Raises:
        ArgumentError: there is no such policy.
    """
    policy = EvictionPolicy.of(name)

    def decorate(method: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(method)
        def get(self: Any, position: Any, *args: Any, **kwargs: Any) -> Any:
            try:
                out = method(self, position, *args, **kwargs)
            except KeyError:
                self._stats["misses"] += 1
                raise
            self._stats["hits"] += 1
            self._order.touch(self._key(position))
            return out

        get.__eviction_policy__ = policy  # type: ignore[attr-defined]
        return get

    return decorate


def write_through(method: Callable[..., Any]) -> Callable[..., Any]:
    """``@ts.cache.write_through`` on ``update``: the backing store has the entry before the call returns."""
    @functools.wraps(method)
    def update(self: Any, position: Any, *values: Any, **kwargs: Any) -> Any:
        while True:
            try:
                out = method(self, position, *values, **kwargs)
                break
            except OutOfPages:
                if not len(self._order):
                    raise
                self.evict()
        self._order.add(self._key(position))
        self._stats["writes"] += 1
        store = self.backing
        if isinstance(store, MutableMapping):
            store[position] = values
        elif store is not None:
            store.write(position, values)
        return out

    return update


class KVCache(Cache):
    """Keys and values of attention while a sequence grows: [batch, (heads,) sequence, dim].

    ``keys, values = cache.update(k, v)`` adds entries along the sequence axis and returns all that attention may see.  The memory
    is allocated once, in the sizes given or, where they are left out, by the first update (room then grows by doubling).  With
    ``max_seq`` the cache is a window: the latest ``max_seq`` entries remain.

    Raises:
        ShapeError: entries that do not fit the cache.
    """

    def __init__(self, max_batch: int | None = None, max_seq: int | None = None, dim: int | None = None, heads: int | None = None,
                 dtype: Any = None):
        self.max_batch, self.max_seq, self.dim, self.heads, self.dtype = max_batch, max_seq, dim, heads, dtype
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.length = 0  # entries that are there
        self.position = 0  # entries written in all: the position of the next one

    def __len__(self) -> int:
        return self.length

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return sum(t.nbytes for t in (self.keys, self.values) if t is not None)

    def _fit(self, name: str, t: Tensor) -> None:
        if len(t.shape) not in (3, 4):
            raise ShapeError(f"KVCache takes {name} [batch, (heads,) sequence, dim]", received=str(t.type))
        for what, want, got in (("batch", self.max_batch, t.shape[0]), ("dim", self.dim, t.shape[-1]),
                                ("heads", self.heads, t.shape[1] if len(t.shape) == 4 else 1)):
            if want is not None and got != want and not (what == "batch" and got < want):
                raise ShapeError(f"the {name} of a KVCache with {what} {want} have {what} {got}", received=str(t.type))

    def update(self, k: Any, v: Any) -> tuple[Tensor, Tensor]:
        """Add entries; returns the keys and values that are there, oldest first."""
        k, v = lift(k), lift(v)
        for name, t in (("keys", k), ("values", v)):
            self._fit(name, t)
        if k.shape[:-1] != v.shape[:-1]:
            raise ShapeError("keys and values have unequal leading sizes", expected=str(k.type), received=str(v.type))
        if self.keys is not None and (k.shape[:-2] != self.keys.shape[:-2] or k.shape[-1] != self.keys.shape[-1]):
            raise ShapeError("these keys do not fit those in the cache", expected=str(self.keys.type), received=str(k.type),
                             hints=["Start a new sequence: cache.clear()"])
        n = int(k.shape[-2])
        self.position += n
        if self.max_seq is not None and n > self.max_seq:
            k, v, n = k[..., n - self.max_seq:, :], v[..., n - self.max_seq:, :], self.max_seq
        self.keys, self.values = self._room(self.keys, k, n), self._room(self.values, v, n)
        drop = 0 if self.max_seq is None else max(self.length + n - self.max_seq, 0)
        if drop:  # the window moves on
            for t in (self.keys, self.values):
                t[..., :self.length - drop, :] = t[..., drop:self.length, :].clone()
            self.length -= drop
        for t, new in ((self.keys, k), (self.values, v)):
            t[..., self.length:self.length + n, :] = new
        self.length += n
        self._stats["writes"] += 1
        return self.get()

    def _room(self, t: Tensor | None, new: Tensor, n: int) -> Tensor:
        """The buffer, with place for ``n`` more entries."""
        have = 0 if t is None else int(t.shape[-2])
        need = self.length + n if self.max_seq is None else self.max_seq
        if t is not None and have >= min(need, self.length + n):
            return t
        size = self.max_seq if self.max_seq is not None else max(64, 1 << (need - 1).bit_length())
        out = zeros(*new.shape[:-2], size, new.shape[-1], dtype=self.dtype or new.dtype)
        if t is not None and self.length:
            out[..., :self.length, :] = t[..., :self.length, :]
        return out

    def get(self, position: Any = None) -> tuple[Tensor, Tensor]:
        """The keys and values that are there, oldest first; of one ``position`` alone, counted from the first that was written.

        Raises:
            PageFault: nothing has been written.
        """
        if self.keys is None or self.values is None:
            self._stats["misses"] += 1
            raise PageFault("the cache is empty", hints=["Write first: cache.update(k, v)"])
        if position is not None:
            at = int(position) - (self.position - self.length)
            if not 0 <= at < self.length:
                self._stats["misses"] += 1
                raise PageFault(f"position {position} is not in the cache",
                                expected=f"{self.position - self.length} to {self.position - 1}")
            self._stats["hits"] += 1
            return self.keys[..., at, :], self.values[..., at, :]
        self._stats["hits"] += 1
        return self.keys[..., :self.length, :], self.values[..., :self.length, :]

    def clear(self) -> int:
        """Start over; returns the bytes that were released."""
        released = self.nbytes
        self.keys = self.values = None
        self.length = self.position = 0
        return released


__all__ = ["Cache", "EvictionPolicy", "KVCache", "OutOfPages", "Page", "PageFault", "PageTable", "RingBuffer", "eviction_policy",
           "write_through"]
