"""Graph IR to Schedule IR: fusion, buffers, choice of templates, memory plan."""

from __future__ import annotations

from . import attention, checked, controlflow, convolution, products, program, rows, updates  # noqa: F401 (they enter their launches)
from .program import schedule

program.IN_PLACE.update(updates.IN_PLACE)

__all__ = ["schedule"]
