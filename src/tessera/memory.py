"""Memory: how much is in use, and named memory spaces.

The module is callable: ``memory("global")`` is a :class:`MemorySpace`.
"""

from __future__ import annotations

import functools
import gc
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import optree

from .errors import ArgumentError, DeviceError, suggest
from .errors.boundary import describe, guard_names
from .errors.frames import user_frames
from .placement import Future, Placed, async_copy, mapped, placed, placed_fields, plan_of, settle, store
from .runtime.memory_pool import Pool as HostPool
from .runtime.memory_pool import use_pool
from .tracing.recorder import STATE, bind, check_effects
from .tracing.tensor import Tensor

_MEMORY = frozenset({"memory"})
SPACES = ("register", "shared", "global", "host", "disk", "local", "L1", "L2", "texture", "constant")


class MemorySpace(str):
    """A place in the memory hierarchy, by name."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"memory({str.__repr__(self)})"

    def __rmatmul__(self, what: Any) -> Any:
        """``Tensor["128", f32] @ memory("register")``."""
        return placed(what, self)


def space(name: str) -> MemorySpace:
    """The memory space called ``name``.

    Raises:
        ArgumentError: there is none.
    """
    if not isinstance(name, str) or name not in SPACES:
        near = suggest(name, SPACES) if isinstance(name, str) else ""
        raise ArgumentError(f"there is no memory space {name!r}{near}", expected=", ".join(SPACES), received=describe(name))
    return MemorySpace(name)


global_ = MemorySpace("global")


# -- how much ----------------------------------------------------------------------------------------------------------------------
class Pool(HostPool):
    """``ts.memory.Pool(size="8GB", device="gpu:0", growth_factor=1.5)``: memory for the tensors of ``with ts.memory.use_pool(pool):``.

    Pools hold memory of the host, where simulated devices have theirs too.  Its counters are :class:`~tessera.runtime.memory_pool.Pool`'s.

    Raises:
        ArgumentError: a size that is none, a factor that does not grow, a first reservation beyond the limit.
        DeviceError: there is no such device, or it is a real accelerator: its driver pools the memory of a stream by itself.
    """

    def __init__(self, size: Any, device: Any = "cpu", growth_factor: float = 1.5, *, initial: Any = None):
        from .device import CPU, find
        where = find(device)
        if where != CPU and not where.simulated:
            raise DeviceError(f"a pool holds memory of the host, and {where} is an accelerator", expected="cpu", received=str(where),
                              sentence="Tensors there come from the driver's own pool, a piece a stream, which keeps what is freed.",
                              hints=['Leave the pool away on this device', 'ts.memory.Pool(size, device="cpu") for tensors of the host'])
        super().__init__(size, where, growth_factor, initial=initial)


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


# -- movement --------------------------------------------------------------------------------------------------------------------
class Movement(NamedTuple):
    """One request to bring a tensor closer: its type, the level, and where it was asked for."""

    what: str
    level: MemorySpace
    where: str


MOVEMENTS: deque[Movement] = deque(maxlen=1024)
"""The latest requests, oldest first."""
_LEVELS = {"L1_cache": "L1", "L2_cache": "L2", "l1": "L1", "l2": "L2", "smem": "shared", "hbm": "global"}
_MOST = 64 << 20  # bytes that any cache holds


class Prefetch:
    """A request for some tensors, as a context manager that gives them back; in a compiled function the end of its block stands in the
    program too, as ``release``."""

    def __init__(self, given: Any, traced: Sequence[Tensor], level: MemorySpace):
        self._given, self._traced, self._level = given, traced, level

    def __enter__(self) -> Any:
        return self._given

    def __exit__(self, kind: type[BaseException] | None, *exc: object) -> None:
        if kind is None and STATE.trace is not None:
            for t in self._traced:
                bind("release", t, to=str(self._level))


def prefetch(x: Any, to: str = "L2_cache") -> Prefetch:
    """Ask for the tensors in ``x`` (a tree) to be brought into a memory level; their values do not change (effect ``memory``).

    ``with ts.prefetch(weights, "L2_cache"): …``.  On a CPU the lines of concrete tensors that fit are read once, which is what
    brings them into its caches; in a compiled function the request is recorded, and the machine fetches as it computes.

    Raises:
        ArgumentError: there is no such level, or nothing in ``x`` is a tensor.
        EffectError: the surrounding function may not have the effect ``memory``.
    """
    level = space(_LEVELS.get(to, to) if isinstance(to, str) else to)
    tensors = [t for t in optree.tree_leaves(x) if isinstance(t, Tensor)]
    if not tensors:
        raise ArgumentError("prefetch() takes tensors", expected="a tensor, or a tree of tensors", received=describe(x))
    check_effects(_MEMORY, "prefetch")
    if STATE.trace is not None:
        STATE.trace.effects |= _MEMORY
    frames = user_frames()
    for t in tensors:
        MOVEMENTS.append(Movement(str(t.type), level, str(frames[0]) if frames else ""))
        if isinstance(t._p, np.ndarray) and level in ("L1", "L2") and 0 < t.nbytes <= _MOST:
            a = t._p
            if a.flags.c_contiguous:
                a.reshape(-1).view(np.uint8)[::64].max()
    traced = [t for t in tensors if t.is_traced]
    for t in traced:
        bind("prefetch", t, to=str(level))
    return Prefetch(x, traced, level)


def prefetch_to_l2(x: Any) -> None:
    """``prefetch(x, "L2_cache")``."""
    prefetch(x, "L2_cache")


def plan(cls: type) -> type:
    """``@ts.memory`` on a class of placed tensors: ``cls.plan()`` gives (space, bytes) of each field, and ``cls.field`` its placed type,
    which ``tile.alloc`` takes inside a kernel.  ``cls.plan("sm_90")`` refuses what a block of that machine cannot hold."""
    if not isinstance(cls, type):
        raise ArgumentError(f"memory.plan() decorates a class of placed tensors, not {describe(cls)}", received=describe(cls))
    cls.plan = staticmethod(functools.partial(plan_of, cls))  # type: ignore[attr-defined]
    for name, value in placed_fields(cls).items():
        setattr(cls, name, value)
    return cls


def settle_arguments(call: Any, spaces: Mapping[str, str], function: str) -> None:
    """Bring a call's tensors to where its parameters are declared to be; what moves is noted in :data:`MOVEMENTS`."""
    frames = user_frames()

    def moved(x: Tensor, space: str) -> None:
        MOVEMENTS.append(Movement(str(x.type), MemorySpace(space), str(frames[0]) if frames else ""))

    settle(call.arrays, [spaces.get(n) if n else None for n in call.owners], call.owners, function, moved)


class _Callable(ModuleType):
    def __call__(self, what: Any) -> Any:
        return plan(what) if isinstance(what, type) else space(what)


sys.modules[__name__].__class__ = _Callable

__all__ = ["MOVEMENTS", "Future", "MemorySpace", "Movement", "Placed", "Pool", "async_copy", "empty_cache",
           "get_memory_usage", "get_peak_memory_usage", "global_",
           "mapped", "plan", "prefetch", "prefetch_to_l2", "reset_peak", "space", "stats", "store", "use_pool"]

guard_names(globals(), __all__, "memory.")
