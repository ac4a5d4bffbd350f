"""Functions that always run inside some scope: what the decorators of numerics, summation, rounding and the like return."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from .errors import ArgumentError
from .tracing.function import TracedFunction


class Scoped:
    """``fn`` run inside ``scope()`` at every call; everything else (``graph_ir``, ``trace`` …) is the function's own."""

    def __init__(self, fn: Callable[..., Any], scope: Callable[[], Any]):
        if not callable(fn):
            raise ArgumentError(f"this decorates a function, not a {type(fn).__name__}", received=repr(fn)[:80])
        functools.update_wrapper(self, fn)
        self._fn, self._scope = fn, scope

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with self._scope():
            return self._fn(*args, **kwargs)

    def trace(self, *args: Any, **kwargs: Any) -> Any:
        """The Graph function for these arguments, inside the scope (see ``ts.function``)."""
        fn = self._fn if isinstance(self._fn, TracedFunction) else TracedFunction(self._fn)
        with self._scope():
            return fn.trace(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._fn, name)

    def __repr__(self) -> str:
        return f"<{getattr(self, '__name__', 'function')} in {getattr(self._scope, '__name__', 'a scope')}>"


def rebuilt(fn: Callable[..., Any], change: Callable[[Any], Any]) -> Callable[..., Any]:
    """A traced function around ``change(its Python function)``; ``change(fn)`` for a plain one."""
    if not isinstance(fn, TracedFunction):
        return change(fn)  # type: ignore[no-any-return]
    return TracedFunction(change(fn.fn), where=fn._where, effects=fn.allowed, static_argnames=tuple(fn.static_names), kind=fn.kind)


__all__ = ["Scoped", "rebuilt"]
