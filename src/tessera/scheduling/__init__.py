"""Graph IR to Schedule IR: fusion, buffers, choice of templates, memory plan."""

from __future__ import annotations

from . import attention, convolution, products  # noqa: F401: they enter their launches
from .program import schedule

__all__ = ["schedule"]
