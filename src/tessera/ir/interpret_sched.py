"""What Schedule IR means, in numpy.

Kernels are evaluated for all points of the grid at once: a scalar is an array with one axis for each loop around it.
Reductions follow the order that ``ir/sched.py`` fixes, operation by operation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .core import Function
from .interpret_templates import TEMPLATES
from .sched_machine import Array, Interpreter


class CheckFailed(ArithmeticError):
    """The first run-time check that failed, in program order."""

    def __init__(self, site: int, value: Any, message: str):
        super().__init__(message.replace("{value}", str(value)))
        self.site, self.value = site, value


def interpret(fn: Function, arrays: Sequence[Array], sizes: Mapping[str, int] | None = None) -> None:
    """Run ``fn`` on ``arrays`` (inputs, then outputs, which are written).

    Raises:
        CheckFailed: a run-time check failed; everything was computed nevertheless.
        IndexError: a load or store leaves its buffer.
        ValueError: the wrong number of arrays, or a wrong shape.
    """
    it = Interpreter(fn, dict(sizes or {}), TEMPLATES)
    it.run_function(fn, list(arrays))
    if it.failures:
        site, value = min(it.failures, key=lambda f: f[0])
        raise CheckFailed(site, value, it.message(site))


__all__ = ["CheckFailed", "interpret"]
