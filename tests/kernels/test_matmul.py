"""The product's tile program: compiled against the interpreter bit for bit, and against f64."""

from __future__ import annotations

import numpy as np
import pytest
from products import Compiled, check, matmul_function

from tessera.ir.core import BufferType, ScalarType
from tessera.machine import X86_AVX2, host_cpu
from tessera.types.dims import name
from tessera.types.dtypes import bf16, f16, f32, f64


def arrays(rng: np.random.Generator, dtype, *shapes):
    return [np.ravel(rng.standard_normal(s).astype(dtype.np)) for s in shapes]


def reference(a, b, m, n, k, lhs_t=False, rhs_t=False):
    x, y = a.astype(np.float64), b.astype(np.float64)
    x = x.reshape(k, m).T if lhs_t else x.reshape(m, k)
    y = y.reshape(n, k).T if rhs_t else y.reshape(k, n)
    return x @ y


@pytest.mark.parametrize("m, n, k", [(5, 7, 3), (15, 33, 17), (29, 31, 64), (14, 32, 16), (1, 40, 9), (3, 17, 35), (16, 48, 1),
                                     (30, 65, 20)])
@pytest.mark.parametrize("lhs_t, rhs_t", [(False, False), (False, True), (True, False), (True, True)])
def test_matches_interpreter(m, n, k, lhs_t, rhs_t):
    rng = np.random.default_rng(m * n + k)
    a, b = arrays(rng, f32, (m, k), (k, n))
    got = check(matmul_function(m, n, k, lhs_t=lhs_t, rhs_t=rhs_t), [a, b, np.zeros(m * n, np.float32)])[2]
    want = reference(a, b, m, n, k, lhs_t, rhs_t)
    assert np.abs(got.reshape(m, n) - want).max() <= 1e-5 * max(1, k)


@pytest.mark.parametrize("dtype", [f64, bf16, f16])
def test_dtypes(dtype):
    m, n, k = 17, 35, 21
    a, b = arrays(np.random.default_rng(1), dtype, (m, k), (k, n))
    got = check(matmul_function(m, n, k, dtype=dtype), [a, b, np.zeros(m * n, dtype.np)])[2]
    tolerance = {"f64": 1e-13, "bf16": 2e-2, "f16": 2e-3}[dtype.name]
    want = reference(a, b, m, n, k)
    assert np.abs(got.astype(np.float64).reshape(m, n) - want).max() <= tolerance * np.abs(want).max()


def test_depths_chain_through_the_result():
    """k is longer than a depth: the sums rest in the result, and every element is still one chain."""
    m, n, k = 15, 40, 600
    a, b = arrays(np.random.default_rng(2), f32, (m, k), (k, n))
    got = check(matmul_function(m, n, k), [a, b, np.zeros(m * n, np.float32)])[2]
    assert np.abs(got.reshape(m, n) - reference(a, b, m, n, k)).max() <= 1e-3


def test_depths_chain_through_scratch():
    """As above where the result cannot hold the sums: it is bf16, or the epilogue computes."""
    m, n, k = 15, 40, 530
    a, b = arrays(np.random.default_rng(3), f32, (m, k), (k, n))
    got = check(matmul_function(m, n, k, epilogue=_twice), [a, b, np.zeros(m * n, np.float32)])[2]
    assert np.abs(got.reshape(m, n) - 2 * reference(a, b, m, n, k)).max() <= 2e-3
    plain = check(matmul_function(m, n, k), [a, b, np.zeros(m * n, np.float32)])[2]
    assert np.array_equal(got, plain * 2)


def _twice(builder, operands, acc):
    return builder.value("add", (acc, acc), acc.type)


def _bias_relu_residual(builder, operands, acc):
    bias = builder.value("load", (operands[2],), ScalarType(f32), {"index": (name("n"),)})
    rest = builder.value("load", (operands[3],), ScalarType(f32), {"index": (name("m") * 37 + name("n"),)})
    zero = builder.value("constant", (), ScalarType(f32), {"value": 0.0})
    total = builder.value("add", (acc, bias), acc.type)
    return builder.value("add", (builder.value("maximum", (total, zero), acc.type), rest), acc.type)


def test_epilogue():
    m, n, k = 31, 37, 20
    rng = np.random.default_rng(4)
    a, b, bias, rest = arrays(rng, f32, (m, k), (k, n), (n,), (m, n))
    extra = [BufferType(f32, (n,)), BufferType(f32, (m * n,))]
    fn = matmul_function(m, n, k, extra=extra, epilogue=_bias_relu_residual)
    got = check(fn, [a, b, bias, rest, np.zeros(m * n, np.float32)])[4].reshape(m, n)
    want = np.maximum(reference(a, b, m, n, k) + bias, 0) + rest.reshape(m, n)
    assert np.abs(got - want).max() <= 1e-4


@pytest.mark.parametrize("rhs_batched", [False, True])
def test_batch(rhs_batched):
    batch, m, n, k = 3, 9, 20, 12
    rng = np.random.default_rng(5)
    a, b = arrays(rng, f32, (batch, m, k), (batch if rhs_batched else 1, k, n))
    fn = matmul_function(m, n, k, batch=(("b0", batch),), rhs_batched=rhs_batched)
    got = check(fn, [a, b, np.zeros(batch * m * n, np.float32)])[2].reshape(batch, m, n)
    want = a.reshape(batch, m, k).astype(np.float64) @ b.reshape(-1, k, n)
    assert np.abs(got - want).max() <= 1e-4


@pytest.mark.parametrize("rhs_t", [False, True])
def test_symbolic_sizes(rhs_t):
    """One program for every size: empty, a row, odd, more than a depth."""
    fn = matmul_function(name("M"), name("N"), name("K"), rhs_t=rhs_t)
    rng = np.random.default_rng(6)
    compiled = Compiled(fn)
    for m, n, k in [(1, 37, 40), (1, 16, 1), (13, 50, 19), (40, 33, 300), (0, 4, 4), (4, 0, 3), (3, 5, 0)]:
        a, b = arrays(rng, f32, (m, k), (k, n))
        out = np.full(m * n, np.nan, np.float32)
        compiled([a, b, out], {"M": m, "N": n, "K": k})
        want = reference(a, b, m, n, k, rhs_t=rhs_t)
        assert np.abs(out.reshape(m, n) - want).max(initial=0.0) <= 1e-3, (m, n, k)
    a, b = arrays(rng, f32, (16, 21), (21, 35))
    check(fn, [a, b, np.zeros(16 * 35, np.float32)], {"M": 16, "N": 35, "K": 21})


def test_bits_do_not_depend_on_blocks_or_form():
    """The same rows, alone (streamed) and as part of a larger product (blocked), for two machines."""
    n, k = 70, 333
    rng = np.random.default_rng(7)
    a, b = arrays(rng, f32, (40, k), (k, n))
    whole = np.zeros(40 * n, np.float32)
    Compiled(matmul_function(40, n, k))([a, b, whole])
    one = np.zeros(n, np.float32)
    Compiled(matmul_function(1, n, k))([a[:k].copy(), b, one])
    assert np.array_equal(whole[:n], one)
    if "avx2" in host_cpu().features:
        other = np.zeros(40 * n, np.float32)
        Compiled(matmul_function(40, n, k, machine=X86_AVX2), X86_AVX2)([a, b, other])
        assert np.array_equal(whole, other)


def test_store_that_splits_heads():
    """out[h, m, d] for n = h * 32 + d: the tile never crosses a head, so its stores stay whole."""
    m, heads, d, k = 18, 3, 32, 24
    fn = _split_heads(m, heads, d, k)
    assert "scatter" not in str(fn)
    a, b = arrays(np.random.default_rng(8), f32, (m, k), (k, heads * d))
    got = check(fn, [a, b, np.zeros(m * heads * d, np.float32)])[2].reshape(heads, m, d)
    want = reference(a, b, m, heads * d, k).reshape(m, heads, d).transpose(1, 0, 2)
    assert np.abs(got - want).max() <= 1e-4


def _split_heads(m, heads, d, k):
    from products import product_op

    from tessera.kernels.matmul import matmul
    op = product_op(m, heads * d, k)
    store = next(o for o in op.blocks[0].ops if o.name == "store")
    store.attrs["index"] = ((name("n") // d) * (m * d) + name("m") * d + name("n") % d,)
    return matmul(op, host_cpu(), "matmul")


@pytest.mark.parametrize("m, n, k, lhs_t, rhs_t", [(32, 32, 32, False, False), (50, 70, 300, False, False), (33, 35, 37, True, False),
                                                   (20, 64, 530, False, True)])
def test_bf16_in_blocks(m, n, k, lhs_t, rhs_t):
    """On a machine with a matrix unit this is its order and rounding; the interpreter follows it bit for bit."""
    a, b = arrays(np.random.default_rng(9), bf16, (m, k), (k, n))
    got = check(matmul_function(m, n, k, dtype=bf16, lhs_t=lhs_t, rhs_t=rhs_t), [a, b, np.zeros(m * n, bf16.np)])[2]
    want = reference(a, b, m, n, k, lhs_t, rhs_t)
    assert np.abs(got.astype(np.float64).reshape(m, n) - want).max() <= 1e-2 * np.abs(want).max()


def _shifted(builder, operands, acc):
    bias = builder.value("load", (operands[2],), ScalarType(f32), {"index": (name("n"),)})
    return builder.value("add", (acc, bias), acc.type)


def test_sums_rest_in_the_result_under_an_epilogue():
    """The epilogue changes the sum, so it may run only after the last depth, wherever the sums rested before."""
    m, n, k = 31, 45, 600
    a, b, bias = arrays(np.random.default_rng(10), f32, (m, k), (k, n), (n,))
    fn = matmul_function(m, n, k, extra=[BufferType(f32, (n,))], epilogue=_shifted)
    got = check(fn, [a, b, bias, np.zeros(m * n, np.float32)])[3].reshape(m, n)
    plain = check(matmul_function(m, n, k), [a, b, np.zeros(m * n, np.float32)])[2].reshape(m, n)
    assert np.array_equal(got, plain + bias)


def test_a_residual_may_be_the_result_s_own_memory():
    """A memory plan may put the result where an operand of the epilogue was: partial sums must not rest there."""
    m, n, k = 20, 33, 300
    a, b, rest = arrays(np.random.default_rng(11), f32, (m, k), (k, n), (m, n))

    def add(builder, operands, acc):
        old = builder.value("load", (operands[2],), ScalarType(f32), {"index": (name("m") * n + name("n"),)})
        return builder.value("add", (acc, old), acc.type)

    out = rest.copy()
    Compiled(matmul_function(m, n, k, extra=[BufferType(f32, (m * n,))], epilogue=add))([a, b, out, out])
    assert np.abs(out.reshape(m, n) - reference(a, b, m, n, k) - rest.reshape(m, n)).max() <= 1e-3
