"""Tile functions to AMD code objects: layouts, LLVM IR of one thread, LLVM, the linker."""

from __future__ import annotations

from collections.abc import Callable

from ...ir.core import Function
from ...machine import AMD_GFX942, AMD_GFX950, SimtMachine
from ...tiling.assign import assign_layouts
from ...tiling.copies import synchronous
from ...tiling.vmath import expand
from ..simt.emit import Module, emit
from .link import link
from .mfma import HANDLERS

MACHINES: dict[str, SimtMachine] = {m.cpu: m for m in (AMD_GFX942, AMD_GFX950)}


def lower(fn: Function, machine: SimtMachine = AMD_GFX942) -> Module:
    """The LLVM IR of one thread of a tile function, and how it is launched.

    Raises:
        CompileError: the function needs something that the target does not have.
    """
    return emit(assign_layouts(expand(prepared(fn, machine)), machine), machine, HANDLERS)


def prepared(fn: Function, machine: SimtMachine) -> Function:
    """A tile function with what the target has, before tiles get layouts."""
    return synchronous(fn)


def module_text(fn: Function, machine: SimtMachine) -> str:
    """The LLVM IR of a tile function with layouts."""
    return emit(fn, machine, HANDLERS).text


Compile = Callable[[Module, SimtMachine, str], bytes]
"""(module, machine, "obj" or "asm") → what LLVM makes of it; the runtime's worker processes do it."""


def code_object(fn: Function, machine: SimtMachine, compile_module: Compile) -> tuple[bytes, Module]:
    """(the loadable code object, how its kernel is launched) of a tile function.

    Raises:
        CompileError: the function needs something that the target does not have, or LLVM refuses it.
    """
    module = lower(fn, machine)
    return link(compile_module(module, machine, "obj")), module


__all__ = ["MACHINES", "Compile", "code_object", "lower", "module_text", "prepared"]
