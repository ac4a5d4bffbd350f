"""Direct convolution against a loop over the window in numpy."""

from __future__ import annotations

import itertools
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from templates import build, run

from tessera.ir.core import Block, BufferType, Builder, Op, ScalarType
from tessera.kernels import conv  # noqa: F401
from tessera.machine import cpu
from tessera.types.dims import name, sym
from tessera.types.dtypes import as_dtype, f32

RNG = np.random.default_rng(5)


def reference(x: np.ndarray, w: np.ndarray, strides: Any, padding: Any, dilation: Any, groups: int) -> np.ndarray:
    x = np.pad(x, ((0, 0), (0, 0), *padding)).astype(np.float64)
    kernel = w.shape[2:]
    out = [(n - (k - 1) * d - 1) // s + 1 for n, k, s, d in zip(x.shape[2:], kernel, strides, dilation, strict=True)]
    y = np.zeros((x.shape[0], w.shape[0], *out))
    per, depth = w.shape[0] // groups, w.shape[1]
    for k in itertools.product(*map(range, kernel)):
        where = tuple(slice(j * d, j * d + (n - 1) * s + 1, s) for j, d, n, s in zip(k, dilation, out, strides, strict=True))
        for g in range(groups):
            part = x[:, g * depth:(g + 1) * depth][(slice(None), slice(None), *where)]
            y[:, g * per:(g + 1) * per] += np.einsum("nc...,oc->no...", part, w[(slice(g * per, (g + 1) * per), slice(None), *k)])
    return y


def convolved(x: np.ndarray, w: np.ndarray, strides: Any, padding: Any, dilation: Any, groups: int = 1, symbolic: bool = False,
              machine: Any = cpu.X86_AVX512) -> np.ndarray:
    shape = reference(x, w, strides, padding, dilation, groups).shape
    batch = sym("B") if symbolic else x.shape[0]
    types = [BufferType(as_dtype(a.dtype), s) for a, s in ((x, (batch, *x.shape[1:])), (w, w.shape), (x, (batch, *shape[1:])))]
    loops = [("n", batch), ("c", shape[1]), *((f"o{i}", e) for i, e in enumerate(shape[2:]))]
    body = Block([*types, ScalarType(f32)])
    b = Builder(body)
    b.op("store", [body.args[2], b.value("convert", [body.args[3]], ScalarType(types[2].dtype))], (),
         {"index": tuple(0 if e == 1 else name(n) for n, e in loops)})
    b.op("yield")
    op = Op("template", Block(types, ["x", "w", "y"]).args, (), {
        "template": "conv", "outs": (2,), "blocks": ("epilogue",), "batch": (loops[0],), "channel": loops[1],
        "spatial": tuple(loops[2:]), "strides": strides, "padding": padding, "dilation": dilation, "groups": groups,
        "accumulate": f32}, (body,))
    out = np.zeros(shape, x.dtype)
    run(build(op, machine), [x, w, out], {"B": x.shape[0]} if symbolic else {})
    return out


def randn(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("x, w, strides, padding, dilation, groups", [
    ((2, 3, 9, 11), (4, 3, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    ((1, 2, 8, 40), (5, 2, 3, 2), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((1, 4, 10, 33), (6, 2, 3, 3), (2, 2), ((1, 0), (0, 2)), (1, 1), 2),
    ((1, 3, 12, 12), (2, 3, 2, 3), (1, 3), ((2, 2), (1, 1)), (2, 2), 1),
    ((2, 8, 7, 7), (20, 8, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    ((1, 6, 5, 6), (6, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 6),
    ((2, 3, 50), (4, 3, 5), (2,), ((2, 2),), (1,), 1),
    ((1, 2, 5, 6, 7), (3, 2, 2, 3, 2), (1, 2, 1), ((0, 1), (1, 1), (0, 0)), (1, 1, 2), 1),
])
def test_forms(x: Any, w: Any, strides: Any, padding: Any, dilation: Any, groups: int) -> None:
    a, b = randn(*x), randn(*w)
    expected = reference(a, b, strides, padding, dilation, groups)
    for machine in (cpu.X86_AVX512, cpu.X86_AVX2):
        assert np.allclose(convolved(a, b, strides, padding, dilation, groups, machine=machine), expected, atol=1e-4)


def test_symbolic_batch_and_half_precision() -> None:
    a, b = randn(3, 4, 6, 18).astype(np.float16), randn(4, 4, 3, 3).astype(np.float16)
    got = convolved(a, b, (1, 1), ((1, 1), (1, 1)), (1, 1), symbolic=True)
    assert np.allclose(got, reference(a, b, (1, 1), ((1, 1), (1, 1)), (1, 1), 1), atol=0.02, rtol=0.01)
