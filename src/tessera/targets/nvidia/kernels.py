"""Kernels on a device: from a module's PTX to launches."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

from ...errors import CompileError
from ...ir.core import BufferType, Function
from ...ir.tile_explicit import is_explicit_program
from ...machine.simt import SimtMachine
from ...tiling.assign import assign_layouts
from ...tiling.copies import by_copy_engine, pipelined
from ...tiling.vmath import APPROXIMATE, expand
from ...types.dims import evaluate
from . import driver
from .emit import NvEmitter, NvModule
from .explicit import BLOCK_HANDLERS, HANDLERS


def lower(fn: Function, machine: SimtMachine, aligned: bool = True) -> NvModule:
    """LLVM IR of a tile function for an NVIDIA device.

    Args:
        aligned: the buffers begin at multiples of 16 bytes (explicit programs need that).

    Raises:
        CompileError: the function does not fit the machine.
    """
    return _emitted(assign_layouts(expand(prepared(fn, machine), APPROXIMATE), machine), machine, aligned)


def _emitted(fn: Function, machine: SimtMachine, aligned: bool) -> NvModule:
    """LLVM IR of a kernel whose tiles have layouts.

    Raises:
        CompileError: the program asks for more shared memory than a block has, or for what this machine lacks.
    """
    grouped = is_explicit_program(fn)
    if grouped and not machine.has_warp_groups:
        raise CompileError(f"{machine.name} has no warp-group matrix unit and no copy engine",
                           hints=("write the kernel on the tile level",))
    return NvEmitter(fn, machine, HANDLERS if grouped else BLOCK_HANDLERS, aligned or grouped).build()


def prepared(fn: Function, machine: SimtMachine) -> Function:
    """A tile function whose copies run ahead of their use, before tiles get layouts; programs of warp groups say so themselves."""
    return fn if is_explicit_program(fn) else pipelined(by_copy_engine(fn, machine), machine)


def module_text(fn: Function, machine: SimtMachine) -> str:
    """The LLVM IR of a tile function with layouts."""
    return _emitted(fn, machine, True).text


def complaints(log: str) -> list[str]:
    """What an assembler says of slow code: spills, and messages such as C7508 (a register budget ignored)."""
    out = [line.strip() for line in log.splitlines() if "C75" in line]
    for line in log.splitlines():
        if "spill" in line and not re.search(r"\b0 bytes spill stores, 0 bytes spill loads", line):
            out.append(line.strip())
    return out


def grid_blocks(fn: Function, env: Mapping[str, int]) -> int:
    """How many blocks the grid of a tile function has."""
    n = 1
    for g in fn.attrs["grid"]:
        n *= int(evaluate(g, dict(env)))
    return n


class Kernel:
    """A loaded kernel."""

    def __init__(self, fn: Function, module: NvModule, ptx: bytes):
        self.fn, self.module = fn, module
        self.code = driver.Code(ptx)
        self.function = self.code.function(module.symbol, module.shared)
        self.buffers = [a.type for a in fn.args if isinstance(a.type, BufferType)]
        self.sizes: tuple[str, ...] = tuple(fn.attrs.get("sizes", ()))

    def parameters(self, pointers: Sequence[int], env: Mapping[str, int], status: int = 0, scratch: int = 0) -> driver.Parameters:
        """The arguments of a launch on these buffers.

        Raises:
            CudaError: a buffer does not suit the copy engine.
        """
        words = [*pointers, *(env[n] for n in self.sizes), status, scratch]
        return driver.Parameters(words, [_map(pointers[m.buffer], self.buffers[m.buffer], tuple(env.items()), m.box, m.swizzle)
                                         for m in self.module.maps])

    def launch(self, stream: driver.Stream, parameters: driver.Parameters, blocks: int) -> None:
        if blocks:
            driver.launch(self.function, blocks, self.module.threads, self.module.shared, stream, parameters)


@functools.lru_cache(maxsize=4096)
def _map(pointer: int, t: BufferType, env: tuple[tuple[str, int], ...], box: tuple[int, int], swizzle: int) -> bytes:
    shape = tuple(int(evaluate(d, dict(env))) for d in t.shape)
    return driver.map_bytes(driver.tensor_map(pointer, t.dtype, shape, box, swizzle))


def check_log(name: str, log: str) -> None:
    """Refuse code that the assembler says is slow.

    Raises:
        CompileError: it spills registers or serialises the matrix unit.
    """
    wrong = complaints(log)
    if wrong:
        raise CompileError(f"{name}: the assembler complains: {'; '.join(wrong[:3])}")


__all__ = ["Kernel", "check_log", "complaints", "grid_blocks", "lower", "module_text", "prepared"]
