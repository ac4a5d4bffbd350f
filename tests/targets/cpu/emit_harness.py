"""Runs a tile program compiled and interpreted, and compares the bits.

LLVM runs in the worker processes, so that a fatal error there fails one test.
"""

from __future__ import annotations

import ctypes
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from tessera.ir import interpret_tile
from tessera.ir.core import BufferType, Function
from tessera.ir.text import parse_function
from tessera.machine import CpuMachine, host_cpu
from tessera.runtime.llvm_workers import Request, workers
from tessera.targets.cpu import abi
from tessera.targets.cpu.emit import emit
from tessera.targets.cpu.loader import load
from tessera.types.dims import evaluate
from tessera.types.dtypes import as_dtype

CANARY = 64


def build(fn: Function, machine: CpuMachine | None = None, emit_kind: str = "obj") -> bytes:
    machine = machine or host_cpu()
    return workers().compile(Request(emit(fn, machine), machine.triple, machine.cpu, machine.llvm_features, emit_kind,
                                     name=fn.name))


class Compiled:
    """A loaded kernel."""

    def __init__(self, fn: Function, machine: CpuMachine | None = None):
        self.fn = fn
        self.image = load([build(fn, machine)])
        self.buffers = [a for a in fn.args if isinstance(a.type, BufferType)]
        self.sizes = tuple(fn.attrs.get("sizes", ()))
        kinds = [ctypes.c_void_p] * len(self.buffers) + [ctypes.c_int64] * len(self.sizes)
        self.call = self.image.function(fn.name, ctypes.CFUNCTYPE(None, *kinds, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64))

    def __call__(self, arrays: Sequence[np.ndarray], sizes: Mapping[str, int] | None = None) -> int:
        """Run the whole grid; returns the status word."""
        env = dict(sizes or {})
        raw = np.zeros(abi.CONTEXT_BYTES + 64, np.uint8)
        at = -raw.ctypes.data % 64
        raw[at:at + 8].view(np.uint64)[0] = abi.STATUS_OK
        blocks = prod(evaluate(g, env) for g in self.fn.attrs["grid"])
        self.call(*(a.ctypes.data for a in arrays), *(env[s] for s in self.sizes), raw.ctypes.data + at, 0, blocks)
        return int(raw[at:at + 8].view(np.uint64)[0])


def guarded(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A copy of ``a`` with canary bytes around it: (the copy, all bytes)."""
    whole = np.full(a.nbytes + 2 * CANARY, 0xA5, np.uint8)
    inner = whole[CANARY:CANARY + a.nbytes].view(a.dtype).reshape(a.shape)
    inner[...] = a
    return inner, whole


def bits(a: np.ndarray) -> np.ndarray:
    """The bytes, with every NaN the same."""
    d = as_dtype(a.dtype)
    if d.is_float:
        nan = a != a
        flat = np.ascontiguousarray(a).view(np.uint8).reshape(*a.shape, a.dtype.itemsize).copy()
        flat[nan] = 0xFF
        return flat
    return np.ascontiguousarray(a).view(np.uint8)


def check(fn: Function | str, arrays: Sequence[np.ndarray], sizes: Mapping[str, int] | None = None,
          machine: CpuMachine | None = None) -> list[np.ndarray]:
    """Assert that compiled code changes the arrays as the interpreter does, and nothing beside them; returns them."""
    fn = parse_function(fn) if isinstance(fn, str) else fn
    want = [a.copy() for a in arrays]
    result = interpret_tile.run(fn, want, sizes, races=False)
    got = [guarded(a) for a in arrays]
    word = Compiled(fn, machine)([g for g, _ in got], sizes)
    for i, ((g, whole), expected) in enumerate(zip(got, want, strict=True)):
        assert (whole[:CANARY] == 0xA5).all() and (whole[CANARY + g.nbytes:] == 0xA5).all(), f"wrote outside buffer {i}"
        same = bits(g) == bits(expected)
        if not same.all():
            bad = np.argwhere(~same.reshape(*g.shape, -1).all(-1))
            first = tuple(bad[0])
            raise AssertionError(f"{fn.name}: buffer {i} differs in {len(bad)} of {g.size} elements, first at {first}: "
                                 f"compiled {g[first]!r}, interpreted {expected[first]!r}")
    failure = result.failure
    status = abi.status_of(word)
    assert (status is None) == (failure is None)
    if failure is not None and status is not None:
        assert status[0] == failure.site
    return want


def values(dtype: Any, shape: Any, rng: np.random.Generator) -> np.ndarray:
    """Values of a dtype that include its special ones."""
    d = as_dtype(dtype)
    n = int(np.prod(shape))
    if d.kind == "bool":
        return (rng.integers(0, 2, n) != 0).reshape(shape)
    if d.is_integer:
        lo, hi = int(d.iinfo.min), int(d.iinfo.max)
        x = rng.integers(lo, hi, n, dtype=np.int64 if d.kind == "int" else np.uint64, endpoint=True)
        special = np.array([lo, hi, 0, 1, hi - 1, lo + 1, 2, 3], x.dtype)
        where = rng.random(n) < 0.3
        x[where] = rng.choice(special, n)[where]
        return x.astype(np.int8 if d.bits == 4 and d.kind == "int" else np.uint8 if d.bits == 4 else d.np).astype(d.np).reshape(shape)
    x = rng.standard_normal(n) * 10.0 ** rng.integers(-3, 3, n)
    special = np.array([0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 0.5, 1.5, 2.5, 3e38, 1e-40, 65504.0, 448.0, 1e-8])
    where = rng.random(n) < 0.25
    x[where] = rng.choice(special, n)[where]
    with np.errstate(over="ignore"):
        return x.astype(np.float32).astype(d.np).reshape(shape) if d.bits < 64 else x.reshape(shape)
