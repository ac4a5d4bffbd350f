"""Runs a tile program on Intel's OpenCL runtime and interpreted, and compares the bits; builds it for the other vendors.

LLVM runs in the worker processes, so that a fatal error there fails one test.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from emit_harness import CANARY, bits

from tessera.ir import interpret_tile
from tessera.ir import tile as tile_ir
from tessera.ir.core import Function
from tessera.ir.text import parse_function
from tessera.machine import INTEL_CPU, SimtMachine
from tessera.runtime.llvm_workers import Request, workers
from tessera.targets.cpu import abi
from tessera.targets.intel.opencl import OpenCL, devices
from tessera.targets.simt.emit import Module, emit
from tessera.tiling.assign import assign_layouts
from tessera.tiling.copies import synchronous
from tessera.tiling.vmath import expand
from tessera.types.dims import evaluate, product

PTXAS = shutil.which("ptxas")


@lru_cache(maxsize=1)
def opencl() -> OpenCL | None:
    """The first of Intel's OpenCL devices, or None."""
    found = devices()
    return OpenCL(found[0]) if found else None


def lower(fn: Function | str, machine: SimtMachine) -> Function:
    fn = parse_function(fn) if isinstance(fn, str) else fn
    out = assign_layouts(expand(synchronous(fn)), machine)
    tile_ir.verify(out)
    return out


def compile_module(module: Module, machine: SimtMachine, kind: str = "obj") -> bytes:
    return workers().compile(Request(module.text, machine.triple, machine.cpu, machine.llvm_features, kind,
                                     machine.llvm_level, module.symbol))


def assemble(ptx: bytes, arch: str, folder: Path) -> str:
    """What ptxas says about a PTX module; fails where it refuses it."""
    assert PTXAS is not None
    path = folder / "kernel.ptx"
    path.write_bytes(ptx)
    done = subprocess.run([PTXAS, f"-arch={arch}", "-v", str(path), "-o", str(folder / "kernel.cubin")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


class Launched:
    """A tile program on the device."""

    def __init__(self, fn: Function | str, machine: SimtMachine = INTEL_CPU):
        self.device = opencl()
        assert self.device is not None
        self.fn, self.machine = lower(fn, machine), machine
        self.module = emit(self.fn, machine)
        self.kernel = self.device.load(compile_module(self.module, machine), self.module.symbol)

    def __call__(self, arrays: Sequence[np.ndarray], sizes: Mapping[str, int] | None = None) -> int:
        """Run the whole grid on copies of the arrays, which are changed in place; returns the status word."""
        d, env, m = self.device, dict(sizes or {}), self.module
        assert d is not None
        held = [d.allocate(a.nbytes + 2 * CANARY) for a in arrays]
        for b, a in zip(held, arrays, strict=True):
            d.write(b.address, np.full(a.nbytes + 2 * CANARY, 0xA5, np.uint8))
            d.write(b.address + CANARY, a)
        status = d.allocate(8)
        d.write(status.address, np.array([abi.STATUS_OK], np.uint64))
        blocks = evaluate(product(self.fn.attrs["grid"]), env)
        if m.scratch:
            blocks = min(blocks, self.machine.resident_blocks)
        scratch = d.allocate(m.scratch * blocks)
        if blocks:
            d.launch(self.kernel, blocks, m.threads, m.shared, [*(b.address + CANARY for b in held), status.address, scratch.address],
                     [env[s] for s in self.fn.attrs["sizes"]])
        for i, (b, a) in enumerate(zip(held, arrays, strict=True)):
            whole = np.empty(a.nbytes + 2 * CANARY, np.uint8)
            d.read(b.address, whole)
            assert (whole[:CANARY] == 0xA5).all() and (whole[CANARY + a.nbytes:] == 0xA5).all(), f"wrote outside buffer {i}"
            a[...] = whole[CANARY:CANARY + a.nbytes].view(a.dtype).reshape(a.shape)
        word = np.empty(1, np.uint64)
        d.read(status.address, word)
        return int(word[0])


def check(fn: Function | str, arrays: Sequence[np.ndarray], sizes: Mapping[str, int] | None = None,
          machine: Any = None) -> list[np.ndarray]:
    """Assert that the device changes the arrays as the interpreter does, and nothing beside them; returns them."""
    return compare(fn, arrays, sizes)[0]


def compare(fn: Function | str, arrays: Sequence[np.ndarray],
            sizes: Mapping[str, int] | None = None) -> tuple[list[np.ndarray], interpret_tile.Result]:
    """:func:`check`; what the device made of the arrays, and what the interpreter reports."""
    fn = parse_function(fn) if isinstance(fn, str) else fn
    want = [a.copy() for a in arrays]
    result = interpret_tile.run(fn, want, sizes, races=False)
    got = [a.copy() for a in arrays]
    word = Launched(fn)(got, sizes)
    for i, (g, expected) in enumerate(zip(got, want, strict=True)):
        same = bits(g) == bits(expected)
        if not same.all():
            bad = np.argwhere(~same.reshape(*g.shape, -1).all(-1))
            first = tuple(bad[0])
            raise AssertionError(f"{fn.name}: buffer {i} differs in {len(bad)} of {g.size} elements, first at {first}: "
                                 f"on the device {g[first]!r}, interpreted {expected[first]!r}")
    status = abi.status_of(word)
    assert (status is None) == (result.failure is None)
    if result.failure is not None and status is not None:
        assert status[0] == result.failure.site
    return got, result
