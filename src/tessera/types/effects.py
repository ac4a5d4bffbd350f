"""Effects: what a function does besides computing its results.

The lattice is the set of subsets of :data:`EFFECTS`; ``"all"`` is its top.  Effects are inferred by union over
the ops and calls of a function's body.
"""

from __future__ import annotations

from collections.abc import Iterable

EFFECTS = ("random", "io", "memory", "state", "collective")
PURE: frozenset[str] = frozenset()


def as_effects(names: str | Iterable[str]) -> frozenset[str]:
    """``"io"``, ``["random", "io"]`` or ``"all"`` as a set of effects.

    Raises:
        ValueError: an effect has no such name.
    """
    parts = [names] if isinstance(names, str) else list(names)
    if "all" in parts:
        return frozenset(EFFECTS)
    for p in parts:
        if p not in EFFECTS:
            raise ValueError(f"no effect is called {p!r}; there are {', '.join(EFFECTS)} and 'all'")
    return frozenset(parts)


def format_effects(effects: Iterable[str]) -> str:
    s = sorted(effects)
    return "pure" if not s else ", ".join(s)
