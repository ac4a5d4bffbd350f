"""The three intermediate representations above LLVM: one SSA core, one text form, one dialect a level.

In processing order: ``graph`` (what is computed), ``sched`` (how the work is cut up), ``tile`` (one block's program).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

EXPAND_TILE: Callable[[Any], Any] | None = None
"""Rewrites the transcendental ops of a Tile function into basic ones; filled when the package is assembled."""
