"""Tile functions for OpenCL devices: the shared emitter as it is."""

from __future__ import annotations

from ...ir.core import Function
from ...machine.simt import SimtMachine
from ...tiling.copies import synchronous
from ..simt.emit import emit


def prepared(fn: Function, machine: SimtMachine) -> Function:
    """A tile function with what the target has, before tiles get layouts."""
    return synchronous(fn)


def module_text(fn: Function, machine: SimtMachine) -> str:
    """The LLVM IR of a tile function with layouts."""
    return emit(fn, machine).text


__all__ = ["module_text", "prepared"]
