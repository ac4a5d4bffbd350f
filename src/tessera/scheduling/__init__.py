"""Graph IR to Schedule IR: fusion, buffers, choice of templates, memory plan."""

from __future__ import annotations

from .program import schedule

__all__ = ["schedule"]
