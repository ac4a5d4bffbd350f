"""Elements that change places by bits of their numbers: on the CPU, and between registers, lanes and warps on Intel's OpenCL runtime."""

from __future__ import annotations

from dataclasses import replace

import emit_harness
import numpy as np
import pytest
from simt_harness import Launched, opencl

from tessera.ir.core import BufferType, Function
from tessera.machine import INTEL_CPU
from tessera.tiling import dsl as tile
from tessera.types.dtypes import as_dtype

SHAPES = [((128,), 0), ((6, 32), 1), ((8, 6), 0), ((4, 4), 1)]


def program(shape: tuple[int, ...], axis: int, dtype: np.dtype) -> tuple[Function, np.ndarray, np.ndarray]:
    """Every exchange along an axis by a mask of one bit, by all bits below one, and by some others, one after the other."""
    n = shape[axis]
    masks = sorted({m for b in range(n.bit_length()) for m in (1 << b, (2 << b) - 1, 5 << b) if n % (1 << m.bit_length()) == 0})

    def body(x: tile.Buffer, out: tile.Buffer) -> None:
        held = tile.load(x, (0,) * len(shape), shape)
        for i, m in enumerate(masks):
            held = tile.exchange(held, m, axis)
            tile.store(out, (i, *[0] * len(shape)), tile.reshape(held, (1, *shape)))

    kind = as_dtype(dtype)
    buffers = [("x", BufferType(kind, shape)), ("out", BufferType(kind, (len(masks), *shape)))]
    fn = tile.build(tile.TileProgram("k", buffers), body)
    x = np.arange(np.prod(shape)).reshape(shape).astype(dtype)
    want, held = [], x
    for m in masks:
        held = np.take(held, np.arange(shape[axis]) ^ m, axis)
        want.append(held)
    return fn, x, np.stack(want)


@pytest.mark.parametrize("shape, axis", SHAPES)
def test_on_the_cpu(shape: tuple[int, ...], axis: int) -> None:
    fn, x, want = program(shape, axis, np.dtype(np.int32))
    got = emit_harness.check(fn, [x, np.zeros_like(want)])  # against the interpreter
    np.testing.assert_array_equal(got[1], want)


@pytest.mark.skipif(opencl() is None, reason="Intel's OpenCL runtime is not installed")
@pytest.mark.parametrize("dtype", [np.int8, np.float64])
@pytest.mark.parametrize("threads", [16, 64])
@pytest.mark.parametrize("shape, axis", SHAPES)
def test_between_registers_lanes_and_warps(shape: tuple[int, ...], axis: int, threads: int, dtype: type) -> None:
    fn, x, want = program(shape, axis, np.dtype(dtype))
    got = [x, np.zeros_like(want)]
    Launched(fn, replace(INTEL_CPU, block_threads=threads))(got)
    np.testing.assert_array_equal(got[1], want)
