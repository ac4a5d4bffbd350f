"""The product of SIMT machines: the program of each machine in the interpreter, which reports races, beside numpy."""

import numpy as np
import pytest
from products import product_op

from tessera.ir import interpret_tile
from tessera.ir.core import BufferType, Builder, ScalarType
from tessera.ir.tile import verify
from tessera.kernels.simt.matmul import product_program
from tessera.kernels.simt.plan import plan_product
from tessera.machine import AMD_GFX942, AMD_GFX950, INTEL_CPU, INTEL_XE, INTEL_XE_HPC, NVIDIA_SM80, NVIDIA_SM89
from tessera.tiling.copies import pipelined, synchronous
from tessera.types.dims import evaluate, name
from tessera.types.dtypes import bf16, f16, f32, f64, fp8_e4m3, int8, int32

MACHINES = [INTEL_CPU, INTEL_XE, INTEL_XE_HPC, AMD_GFX942, AMD_GFX950, NVIDIA_SM80, NVIDIA_SM89]
BY_CPU = {"ids": lambda v: str(getattr(v, "name", v))}


def program(op, machine):
    fn = product_program(op, machine, "k")
    assert fn is not None
    verify(fn)
    return fn


def arrays(fn, env, seed=0):
    """Small whole numbers, whose sums are exact in any order; the result full of rubbish."""
    rng = np.random.default_rng(seed)
    made = []
    for i, a in enumerate(fn.args[:len(fn.args) - len(fn.attrs["sizes"])]):
        shape = [int(evaluate(d, env)) for d in a.type.shape]
        written = i in fn.attrs["writes"]
        made.append(np.full(shape, 77, a.type.dtype.np) if written else rng.integers(-3, 4, shape).astype(a.type.dtype.np))
    return made


def want(a, b, m, n, k, lhs_t=False, rhs_t=False, batch=1):
    left = a.astype(np.float64).reshape(-1, *((k, m) if lhs_t else (m, k)))
    right = b.astype(np.float64).reshape(-1, *((n, k) if rhs_t else (k, n)))
    return (left.swapaxes(-1, -2) if lhs_t else left) @ (right.swapaxes(-1, -2) if rhs_t else right)


CASES = [
    ({"dtype": f32}, (70, 45, 37)), ({"dtype": f32, "lhs_t": True, "rhs_t": True}, (33, 70, 40)), ({"dtype": f64}, (40, 33, 21)),
    ({"dtype": bf16}, (72, 136, 80)), ({"dtype": bf16, "rhs_t": True}, (40, 72, 136)), ({"dtype": f16, "lhs_t": True}, (64, 40, 72)),
    ({"dtype": int8, "accumulate": int32, "out": int32}, (48, 80, 96)), ({"dtype": bf16}, (33, 41, 35)),
]


@pytest.mark.parametrize("machine", [INTEL_CPU, AMD_GFX942, NVIDIA_SM80], **BY_CPU)
@pytest.mark.parametrize("kinds, sizes", CASES, ids=str)
@pytest.mark.parametrize("symbolic", [False, True])
def test_products(machine, kinds, sizes, symbolic):
    m, n, k = sizes
    fn = program(product_op(*(map(name, "MNK") if symbolic else sizes), **kinds, flat=False), machine)
    env = {"M": m, "N": n, "K": k} if symbolic else {}
    data = arrays(fn, env)
    interpret_tile.run(fn, data, env, seed=1)
    turned = {x: kinds.get(x, False) for x in ("lhs_t", "rhs_t")}
    np.testing.assert_array_equal(data[2].astype(np.float64), want(data[0], data[1], m, n, k, **turned)[0].astype(data[2].dtype))


@pytest.mark.parametrize("machine", [INTEL_CPU, AMD_GFX950, NVIDIA_SM89], **BY_CPU)
@pytest.mark.parametrize("flat", [False, True])
def test_batches(machine, flat):
    m, n, k = 40, 24, 36
    for batched in (True, False):
        op = product_op(m, n, k, batch=(("b0", 2), ("b1", name("B"))), dtype=bf16, rhs_batched=batched, rhs_t=True, flat=flat)
        fn = program(op, machine)
        data = arrays(fn, {"B": 3})
        interpret_tile.run(fn, data, {"B": 3}, seed=1)
        expected = want(data[0], data[1], m, n, k, rhs_t=True)
        np.testing.assert_array_equal(data[2].astype(np.float64).reshape(6, m, n), expected.astype(data[2].dtype))


@pytest.mark.parametrize("sizes, tiles", [((40, 56, 32), ()), ((64, 192, 32), (("tile_m", 128), ("tile_n", 128))),
                                          (("M", 200, 40), (("tile_m", 64), ("tile_n", 128)))], ids=str)
@pytest.mark.parametrize("machine", MACHINES, **BY_CPU)
def test_an_epilogue(machine, sizes, tiles):
    """relu(acc + bias) + residual, of tiles whose parts may lie beyond the result."""
    m, n, k = (name(d) if isinstance(d, str) else d for d in sizes)

    def epilogue(b: Builder, buffers, acc):
        def load(buffer, *index):
            return b.value("load", (buffer,), ScalarType(f32), {"index": index})
        one = b.value("add", (acc, load(buffers[2], name("n"))), ScalarType(f32))
        zero = b.value("constant", (), ScalarType(f32), {"value": 0.0})
        return b.value("add", (b.value("maximum", (one, zero), ScalarType(f32)), load(buffers[3], name("m"), name("n"))), ScalarType(f32))

    op = product_op(m, n, k, dtype=f16, out=f32, extra=[BufferType(f32, (n,)), BufferType(f32, (m, n))], epilogue=epilogue, flat=False)
    op.attrs["schedule"] = tiles
    fn = program(op, machine)
    env = {} if isinstance(m, int) else {"M": 70}
    data = arrays(fn, env)
    interpret_tile.run(fn, data, env, seed=1)
    a, b, bias, residual, out = data
    np.testing.assert_array_equal(out, np.maximum(want(a, b, *out.shape, k)[0] + bias, 0) + residual)


def test_what_each_machine_multiplies_with():
    def unit(machine, dtype, **kinds):
        found = plan_product(product_op(1024, 1024, 1024, dtype=dtype, **kinds), machine)
        return found.unit and found.unit.name
    assert unit(AMD_GFX942, bf16) == "mfma_32x32x8_bf16" and unit(AMD_GFX950, f16) == "mfma_32x32x16_f16"
    assert unit(AMD_GFX950, fp8_e4m3, out=f32) == "mfma_32x32x16_fp8_e4m3" and unit(AMD_GFX942, fp8_e4m3, out=f32) is None
    assert unit(AMD_GFX942, int8, accumulate=int32, out=int32) == "mfma_32x32x16_int8"
    assert unit(NVIDIA_SM80, bf16) == "mma_16x8x16_bf16" and unit(NVIDIA_SM89, fp8_e4m3, out=f32) == "mma_16x8x32_fp8_e4m3"
    assert unit(NVIDIA_SM80, f32) is None and unit(AMD_GFX942, f64) is None and unit(INTEL_CPU, bf16) is None


def test_tiles_follow_the_machine_and_the_size():
    def plan(machine, *sizes, **kinds):
        return plan_product(product_op(*sizes, **kinds), machine)
    large, small = (plan(AMD_GFX942, n, n, 512, dtype=bf16) for n in (8192, 512))
    assert (large.rows, large.columns, large.threads) == (128, 128, 256)
    assert small.rows * small.columns < large.rows * large.columns  # more blocks than a few multiprocessors would take
    assert plan(NVIDIA_SM80, 16, 4096, 512, dtype=bf16).rows == 16
    assert plan(NVIDIA_SM80, 4, 4096, 512, dtype=bf16) is None and plan(AMD_GFX942, 512, 1, 512) is None  # streamed
    assert plan(AMD_GFX942, 64, 64, 0) is None
    cpu = plan(INTEL_CPU, 1024, 1024, 1024)
    assert cpu.columns == 2 * INTEL_CPU.lanes and cpu.strips > 1 and cpu.threads == INTEL_CPU.lanes


def test_a_schedule_decides():
    op = product_op(1024, 1024, 1024, dtype=bf16)
    op.attrs["schedule"] = (("tile_m", 64), ("tile_n", 32), ("tile_k", 64), ("warps", 2))
    plan = plan_product(op, AMD_GFX942)
    assert (plan.rows, plan.columns, plan.depth, plan.threads) == (64, 32, 64, 128)
    op.attrs["schedule"] = (("tile_m", 1024), ("tile_k", 1024))
    cpu = plan_product(op, INTEL_CPU)  # what shared memory holds
    assert 4 * (cpu.block_rows * cpu.depth + cpu.columns * (cpu.block_rows + cpu.depth)) <= INTEL_CPU.shared_bytes
    op.attrs["schedule"] = (("tile_m", 48), ("tile_k", 4096))
    assert plan_product(op, NVIDIA_SM80).rows == 32
    for machine in (AMD_GFX942, NVIDIA_SM80, NVIDIA_SM89, INTEL_XE_HPC):
        op.attrs["schedule"] = (("tile_m", 512), ("tile_n", 512), ("tile_k", 1024))  # the nearest that registers and shared memory hold
        plan = plan_product(op, machine)
        assert plan.rows * plan.columns == (8192 if machine is INTEL_XE_HPC else 16384)
        assert 2 * (plan.rows + plan.columns) * plan.depth <= machine.shared_bytes // 2


def test_slices_are_fetched_ahead_where_the_machine_copies_asynchronously():
    m, n, k = 72, 64, 136
    op = product_op(m, n, k, batch=(("b0", 2),), dtype=bf16, flat=True)
    fn = program(op, NVIDIA_SM80)
    staged = pipelined(fn, NVIDIA_SM80)
    assert sum(o.name == "copy_async" for o in staged.walk()) >= 4
    one = arrays(fn, {})
    two, three = ([a.copy() for a in one] for _ in range(2))
    interpret_tile.run(fn, one, {}, seed=1)
    interpret_tile.run(staged, two, {}, seed=1)
    interpret_tile.run(synchronous(staged), three, {})
    assert one[2].tobytes() == two[2].tobytes() == three[2].tobytes()
