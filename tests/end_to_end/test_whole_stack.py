"""Random programs through all levels to machine code: against the Graph interpreter, across threads, eager and compiled."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from random_graphs import graphs

import tessera as ts
from tessera.ir.core import Function
from tessera.ir.interpret_graph import interpret
from tessera.runtime import get_num_threads, host_compiler, set_num_threads
from tessera.types.dims import Dim, evaluate

COMMON = settings(derandomize=True, deadline=None, database=None,
                  suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much])


def arguments(fn: Function, env: dict[str, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.standard_normal([evaluate(d, env) for d in a.type.shape]).astype(a.type.dtype.np) for a in fn.args]


@settings(COMMON, max_examples=25)
@given(graphs())
def test_machine_code_means_what_the_graph_means(fn: Function) -> None:
    """One compiled program, three sizes of the symbolic axis."""
    fn.attrs["sizes"] = tuple(sorted({n for a in fn.args for d in a.type.shape if isinstance(d, Dim) for n in d.names}))
    program = host_compiler().compile(fn)
    for b in (1, 4, 19):
        xs = arguments(fn, {"B": b})
        for e, g in zip(interpret(fn, xs, {"B": b}), program(xs), strict=True):
            scale = max(1.0, float(np.max(np.abs(e[np.isfinite(e)]), initial=0)))
            np.testing.assert_allclose(g, e, rtol=2e-4, atol=2e-4 * scale)


@pytest.fixture
def threads():
    saved = get_num_threads()
    yield set_num_threads
    set_num_threads(saved)


def test_bits_do_not_depend_on_threads(threads) -> None:
    rng = np.random.default_rng(1)
    x, w = ts.tensor(rng.standard_normal((203, 514)).astype(np.float32)), ts.tensor(rng.standard_normal((514, 130)).astype(np.float32))
    q = ts.tensor(rng.standard_normal((2, 3, 131, 64)).astype(np.float32))

    @ts.jit
    def program(x, w, q):
        h = ts.gelu(x @ w)
        return h, ts.softmax(h, dim=-1), x.sum(), x.mean(dim=0), ts.attention(q, q, q, causal=True), ts.cumsum(x, dim=1), ts.sort(x, dim=1)

    results = []
    for n in (1, 2, 3, 7, 2):
        threads(n)
        results.append([np.asarray(t).tobytes() for t in program(x, w, q)])
    assert all(r == results[0] for r in results[1:])


UNARY = {"neg": lambda t: -t, "exp": ts.exp, "tanh": ts.tanh, "abs": ts.abs, "sqrt_abs": lambda t: ts.sqrt(ts.abs(t)), "sin": ts.sin,
         "round": ts.round, "erf": ts.erf, "half": lambda t: t.to(ts.bf16).to(t.dtype)}
BINARY = {"add": lambda a, b: a + b, "mul": lambda a, b: a * b, "max": ts.maximum, "div": lambda a, b: a / (abs(b) + 1),
          "where": lambda a, b: ts.where(a > b, a, b * 2)}


@settings(COMMON, max_examples=12)
@given(st.lists(st.tuples(st.sampled_from(sorted(UNARY)), st.sampled_from(sorted(BINARY))), min_size=1, max_size=5),
       st.sampled_from([ts.f32, ts.f64, ts.bf16, ts.f16]))
def test_eager_and_compiled_pointwise_programs_agree_bit_for_bit(chain, dtype) -> None:
    def program(a, b):
        for u, v in chain:
            a, b = BINARY[v](UNARY[u](a), b), a
        return a, b

    rng = np.random.default_rng(2)
    a, b = (ts.tensor(rng.standard_normal((5, 37))).to(dtype) for _ in range(2))
    for e, c in zip(program(a, b), ts.jit(program)(a, b), strict=True):
        assert e.dtype == c.dtype and np.asarray(e).tobytes() == np.asarray(c).tobytes()


def test_one_program_serves_every_size() -> None:
    @ts.function
    def mlp(x: ts.Tensor[B, S, 24], w: ts.Tensor[24, 40]) -> ts.Tensor[B, S, 40]:  # noqa: F821
        return ts.softmax(ts.gelu(x @ w), dim=-1)

    ts.manual_seed(0)
    w = ts.randn(24, 40)
    for shape in ((1, 1), (1, 7), (3, 64), (5, 129)):
        x = ts.randn(*shape, 24)
        h = np.asarray(x, np.float64) @ np.asarray(w, np.float64)
        from math import erf
        g = h * 0.5 * (1 + np.vectorize(erf)(h / np.sqrt(2)))
        e = np.exp(g - g.max(-1, keepdims=True))
        np.testing.assert_allclose(np.asarray(mlp(x, w)), e / e.sum(-1, keepdims=True), atol=4e-6)  # logits reach 20: 20 eps
    assert "programs: 1" in mlp.explain()


def test_captured_tensors_are_read_at_each_call() -> None:
    w = ts.ones(3)
    program = ts.jit(lambda x: x * w)
    x = ts.tensor([1.0, 2.0, 3.0])
    assert np.asarray(program(x)).tolist() == [1, 2, 3]
    w[1] = 5.0
    assert np.asarray(program(x)).tolist() == [1, 10, 3]
