"""Memory: how much is in use, and named memory spaces.

The module is callable: ``memory("global")`` is a :class:`MemorySpace`.
"""

from __future__ import annotations

import gc
import sys
from types import ModuleType
from typing import Any

from .errors import ArgumentError, suggest

SPACES = ("register", "shared", "global", "host", "local", "L1", "L2", "texture", "constant")


class MemorySpace(str):
    """A place in the memory hierarchy, by name."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"memory({str.__repr__(self)})"


def space(name: str) -> MemorySpace:
    """The memory space called ``name``.

    Raises:
        ArgumentError: there is none.
    """
    if name not in SPACES:
        raise ArgumentError(f"there is no memory space {name!r}{suggest(name, SPACES)}", expected=", ".join(SPACES))
    return MemorySpace(name)


global_ = MemorySpace("global")


def _usage() -> dict[str, int]:
    from .runtime.allocator import ALLOCATOR
    usage: dict[str, int] = ALLOCATOR.usage()
    return usage


def get_memory_usage() -> float:
    """GB (10**9 bytes) of tensor memory in use."""
    return _usage()["in_use"] / 1e9


def get_peak_memory_usage() -> float:
    """GB of tensor memory in use at the peak since the start or :func:`reset_peak`."""
    return _usage()["peak"] / 1e9


def reset_peak() -> None:
    """Let the peak start over from what is in use now."""
    from .runtime.allocator import ALLOCATOR
    ALLOCATOR.reset_peak()


def stats() -> dict[str, int]:
    """Bytes in use, cached and at the peak, and how often the cache served a request."""
    return _usage()


def empty_cache() -> None:
    """Hand free blocks back to the system."""
    from .runtime.allocator import ALLOCATOR
    gc.collect()
    ALLOCATOR.trim()


class _Callable(ModuleType):
    def __call__(self, name: str) -> Any:
        return space(name)


sys.modules[__name__].__class__ = _Callable

__all__ = ["MemorySpace", "empty_cache", "get_memory_usage", "get_peak_memory_usage", "global_", "reset_peak", "space", "stats"]
