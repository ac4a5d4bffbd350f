"""Long reductions to few results in two steps: which are cut, by the machine."""

import numpy as np
import pytest

import tessera as ts
from tessera.ir import interpret_sched
from tessera.machine import NVIDIA_SM90, X86_AVX512
from tessera.scheduling import schedule
from tessera.transforms.pipeline import optimize


def scheduled(shape, axis, machine, dtype=ts.f32):
    f = ts.function(lambda x: x.sum(axis))
    return schedule(optimize(f.program(ts.zeros(*shape, dtype=dtype)).graph, machine), machine)


def kernels(fn):
    return sum(op.name == "kernel" for op in fn.body.ops)


@pytest.mark.parametrize("shape, axis, cpu, gpu", [
    ((2048, 768), 0, 1, 2),          # the gradient of a bias: columns too few for a GPU's threads
    ((4, 512, 768), (0, 1), 1, 2),
    ((100, 768), 0, 1, 1),           # short
    ((2048, 1 << 16), 0, 1, 1),      # columns enough
    ((2048, 768), 1, 1, 1),          # rows: a block each
    ((1 << 20,), 0, 2, 2),
])
def test_what_is_cut(shape, axis, cpu, gpu):
    assert kernels(scheduled(shape, axis, X86_AVX512)) == cpu and kernels(scheduled(shape, axis, NVIDIA_SM90)) == gpu


@pytest.mark.parametrize("rows", [128, 1000, 2048, 9001])
def test_columns_summed_in_pieces(rows):
    x = np.random.default_rng(rows).standard_normal((rows, 40)).astype(np.float32)
    out = np.zeros(40, np.float32)
    fn = scheduled(x.shape, 0, NVIDIA_SM90)
    assert kernels(fn) >= 2
    interpret_sched.interpret(fn, [x, out])
    np.testing.assert_allclose(out, x.astype(np.float64).sum(0), rtol=1e-5, atol=1e-4)
