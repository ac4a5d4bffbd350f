"""The tests of the library's kernels, for modules of tests that run them on Intel's OpenCL runtime: each program as that machine gets
it, its bits beside the interpreter's.

A module takes ``on_the_device`` and puts ``of_kernels(…)`` among its names.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import templates
import test_attention
import test_attention_backward
import test_conv
import test_fft
import test_linalg
import test_matmul
import test_scan
import test_scatter
import test_sort
from simt_harness import check, compare, opencl

from tessera.ir import interpret_tile
from tessera.ir.core import Function, Op
from tessera.machine import INTEL_CPU
from tessera.types.dims import evaluate

needs_opencl = pytest.mark.skipif(opencl() is None, reason="Intel's OpenCL runtime is not installed")
MODULES = (test_attention, test_attention_backward, test_conv, test_fft, test_linalg, test_matmul, test_scan, test_scatter, test_sort)
OF_OTHER_MACHINES = {  # what a test says about one CPU's program, or of no program at all
    (test_matmul, "test_narrow_vectors"), (test_matmul, "test_bits_do_not_depend_on_blocks_or_form"),
    (test_matmul, "test_depths_chain_through_scratch"), (test_matmul, "test_what_is_not_cut_up_fits_a_blocks_scratch"),
    (test_attention_backward, "test_matches_interpreter"), (test_attention_backward, "test_memory_grows_with_the_sequence_not_its_square")}


def build_here(op: Op, machine: Any = None) -> Function:
    """The program that this machine gets, whichever the test names."""
    return templates.build(op, INTEL_CPU)


def run_here(fn: Function, arrays: Sequence[np.ndarray], sizes: dict[str, int] | None = None,
             seed: int | None = None) -> interpret_tile.Result:
    """As ``templates.run``, on the device: the arrays hold what it computed."""
    seen = [a.reshape([evaluate(d, sizes or {}) for d in p.type.shape]) for p, a in zip(fn.args, arrays, strict=False)]
    got, result = compare(fn, seen, sizes)
    for a, g in zip(seen, got, strict=True):
        a[...] = g
    return result


def check_here(fn: Function, arrays: Sequence[np.ndarray], sizes: dict[str, int] | None = None, machine: Any = None) -> list[np.ndarray]:
    """As ``products.check``, on the device, each array seen in the shape that the program gives its buffer."""
    got = check(fn, [a.reshape([evaluate(d, sizes or {}) for d in p.type.shape]) for p, a in zip(fn.args, arrays, strict=False)], sizes)
    return [g.reshape(a.shape) for g, a in zip(got, arrays, strict=True)]


def compiler_here() -> Any:
    from tessera.runtime.opencl import compiler
    return compiler("intel:0")


@pytest.fixture
def on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in MODULES:
        for name, here in (("build", build_here), ("run", run_here), ("check", check_here), ("host_compiler", compiler_here)):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, here)
        for name in ("matmul_function", "attention_function"):
            if hasattr(module, name):
                monkeypatch.setattr(module, name, partial(getattr(module, name), machine=INTEL_CPU))


def of_kernels(*modules: ModuleType) -> dict[str, Callable[..., None]]:
    """The tests of modules, under names that say whose they are."""
    assert set(modules) <= set(MODULES)
    return {f"test_{module.__name__.removeprefix('test_')}_{name.removeprefix('test_')}": f for module in modules
            for name, f in vars(module).items() if name.startswith("test_") and callable(f) and (module, name) not in OF_OTHER_MACHINES}
