"""Schedules in scope: ``with ts.schedule(tile_size=128, warps=8):``.

Inside such a block the kernels of matrix products are cut up as the schedule says; what it leaves open, and what a target has no use
for (warps on a CPU), the compiler decides as it does outside.  No bit of a result depends on it.  The module is callable, and serves
as a decorator too; scopes nest, and the inner decisions win.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any

from .scheduling.decisions import Schedule, as_schedule
from .tracing.recorder import STATE


def checked(chosen: Any = None, **fields: Any) -> Schedule:
    """A schedule from a schedule, a mapping, or fields and aliases; the fields win.

    Raises:
        ArgumentError: an unknown field (with a suggestion), or a value out of range.
    """
    base = Schedule() if chosen is None else as_schedule(chosen)
    return base | Schedule(**fields) if fields else base


class Scope:
    """A schedule as a context manager and as a decorator."""

    def __init__(self, chosen: Schedule):
        self.schedule = chosen
        self._outer: list[Schedule | None] = []

    def __enter__(self) -> Schedule:
        outer = STATE.schedule
        self._outer.append(outer)
        STATE.schedule = self.schedule if outer is None else outer | self.schedule
        return STATE.schedule  # type: ignore[no-any-return]

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        STATE.schedule = self._outer.pop()

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fn)
        def scheduled(*args: Any, **kwargs: Any) -> Any:
            with Scope(self.schedule):
                return fn(*args, **kwargs)

        return scheduled


def current() -> Schedule | None:
    """The schedule in scope, or None."""
    found: Schedule | None = STATE.schedule
    return found


def tile(m: int | tuple[int, int, int] | None = None, n: int | None = None, k: int | None = None) -> Scope:
    """``ts.schedule.tile((128, 128, 32))``: a scope that decides the tile."""
    if isinstance(m, tuple):
        m, n, k = m
    return Scope(checked(tile_m=m, tile_n=n, tile_k=k))


class _Callable(ModuleType):
    def __call__(self, chosen: Any = None, **fields: Any) -> Scope:
        return Scope(checked(chosen, **fields))


sys.modules[__name__].__class__ = _Callable

__all__ = ["Schedule", "Scope", "checked", "current", "tile"]
