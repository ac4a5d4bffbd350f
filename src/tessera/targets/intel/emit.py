"""Tile functions for OpenCL devices: the shared emitter, with matrix instructions where the device has them."""

from __future__ import annotations

from ...ir.core import Function
from ...machine.simt import SimtMachine
from ...tiling.copies import synchronous
from ..simt.emit import Module, emit
from .dpas import HANDLERS


def prepared(fn: Function, machine: SimtMachine) -> Function:
    """A tile function with what the target has, before tiles get layouts."""
    return synchronous(fn)


def lower(fn: Function, machine: SimtMachine, aligned: bool = True) -> Module:
    """The LLVM IR of one thread of a tile function with layouts, and how it is launched.

    Raises:
        CompileError: the function needs something that the target does not have.
    """
    return emit(fn, machine, HANDLERS if machine.instructions else None, aligned=aligned)


def module_text(fn: Function, machine: SimtMachine) -> str:
    """The LLVM IR of a tile function with layouts."""
    return lower(fn, machine).text


__all__ = ["lower", "module_text", "prepared"]
