"""Effects as a user declares them.

The module is callable: ``@ts.effects(["random", "io"])`` names the effects a function may have, ``@ts.pure`` none;
``with ts.effects.suspend("io"):`` forbids one inside a block.  Undeclared functions have the effects of their body.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from .errors import EffectError, suggest
from .tracing.function import TracedFunction, function
from .tracing.recorder import allowing
from .types.effects import EFFECTS, as_effects


def _checked(names: str | Iterable[str]) -> frozenset[str]:
    parts = [names] if isinstance(names, str) else list(names)
    for p in parts:
        if p not in (*EFFECTS, "all"):
            raise EffectError(f"no effect is called {p!r}{suggest(str(p), (*EFFECTS, 'all'))}",
                              expected=", ".join((*EFFECTS, "all")), received=str(p))
    return as_effects(parts)


def declare(names: str | Iterable[str]) -> Callable[[Callable[..., Any]], TracedFunction]:
    """``@ts.effects([...])``: the effects that the function's body may have; any other is an :class:`EffectError`."""
    allowed = sorted(_checked(names))

    def decorate(fn: Callable[..., Any]) -> TracedFunction:
        if isinstance(fn, TracedFunction):
            return TracedFunction(fn.fn, where=fn._where, effects=frozenset(allowed), static_argnames=tuple(fn.static_names))
        return function(fn, effects=allowed)

    return decorate


def pure(fn: Callable[..., Any]) -> TracedFunction:
    """``@ts.pure``: a function without effects; a random or io call in its body is an :class:`EffectError`."""
    return declare([])(fn)


@contextmanager
def suspend(*names: str) -> Iterator[None]:
    """Forbid effects inside the block.

    Raises:
        EffectError: an op inside has one of them.
    """
    forbidden = _checked(names)
    with allowing(frozenset(EFFECTS) - forbidden, f"effects.suspend({', '.join(map(repr, names))})"):
        yield


class _Callable(ModuleType):
    def __call__(self, names: str | Iterable[str]) -> Callable[[Callable[..., Any]], TracedFunction]:
        return declare(names)


sys.modules[__name__].__class__ = _Callable

__all__ = ["EFFECTS", "declare", "pure", "suspend"]
