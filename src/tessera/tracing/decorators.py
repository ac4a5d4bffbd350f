"""Which of Tessera's decorators stand above a function, and in which order they were applied."""

from __future__ import annotations

import warnings
from typing import Any

from ..errors.frames import user_frames

ORDER = ("function", "distribute", "checkpoint", "compile")
"""From the ``def`` upwards: first a Tessera function, last compiled."""


class DecoratorOrderWarning(UserWarning):
    """Decorators stand in an order in which one of them has no effect of its own."""


def applied(fn: Any) -> tuple[str, ...]:
    """The decorators of ``fn`` from the innermost outwards."""
    return tuple(getattr(fn, "decorators", ()))


def apply(name: str, fn: Any) -> tuple[str, ...]:
    """The decorators of what ``name`` makes of ``fn``.  Warns where one that belongs above ``name`` stands below it."""
    below = applied(fn)
    if name in below:
        return below
    wrong = [n for n in below if ORDER.index(n) > ORDER.index(name)]
    if wrong:
        right = ", ".join(f"@ts.{n}" for n in sorted((*below, name), key=ORDER.index, reverse=True))
        place = next((f" at {frame}" for frame in user_frames()), "")
        warnings.warn(f"@ts.{name} stands above @ts.{wrong[-1]}{place}; from top to bottom the order is {right}", DecoratorOrderWarning,
                      stacklevel=4)
    return (*below, name)


__all__ = ["ORDER", "DecoratorOrderWarning", "applied", "apply"]
