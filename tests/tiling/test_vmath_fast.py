"""The faster forms: how far off they may be, and that a policy reaches them everywhere."""

import numpy as np
import pytest

import tessera as ts
from tessera.tiling.vmath import FAST
from tessera.tracing import policies

RELATIVE = {"exp": (np.exp, -85, 85, 2e-6), "exp2": (np.exp2, -120, 120, 1e-6), "log": (np.log, 1e-6, 1e6, 4e-6),
            "log2": (np.log2, 1e-6, 1e6, 4e-6), "log10": (np.log10, 1e-6, 1e6, 4e-6),
            "sigmoid": (lambda x: 1 / (1 + np.exp(-x)), -80, 80, 2e-6)}
ABSOLUTE = {"tanh": (np.tanh, -12, 12, 5e-7), "sin": (np.sin, -1e4, 1e4, 2e-6), "cos": (np.cos, -1e4, 1e4, 2e-6)}


def test_the_table_of_fast_forms_is_the_one_that_policies_know():
    assert frozenset(FAST) == policies.FAST


@pytest.mark.parametrize("name", sorted(RELATIVE | ABSOLUTE))
def test_errors_stay_small(name):
    fn, low, high, bound = (RELATIVE | ABSOLUTE)[name]
    x = np.random.default_rng(0).uniform(low, high, 20_000).astype(np.float32)
    with ts.numerics(fast_math_functions=True):
        got = np.asarray(getattr(ts, name)(ts.tensor(x))).astype(np.float64)
    exact = fn(x.astype(np.float64))
    error = np.abs(got - exact) / (np.maximum(np.abs(exact), 1e-3) if name in RELATIVE else 1)
    assert error.max() < bound
    assert not np.array_equal(got, np.asarray(getattr(ts, name)(ts.tensor(x))).astype(np.float64))


def test_powers_and_special_values():
    with ts.numerics(fast_math_functions=True):
        x = ts.tensor([2.0, -2.0, 0.0, 4.0, 9.0])
        np.testing.assert_allclose(ts.pow(x, ts.tensor([3.5, 3.0, 2.0, 0.0, 0.25])), [2**3.5, -8, 0, 1, 9**0.25], rtol=2e-5)
        special = ts.tensor([np.inf, -np.inf, np.nan, 200.0, -200.0])
        np.testing.assert_array_equal(ts.exp(special), [np.inf, 0, np.nan, np.inf, 0])
        np.testing.assert_array_equal(ts.tanh(special), [1, -1, np.nan, 1, -1])
        np.testing.assert_array_equal(ts.log(ts.tensor([0.0, -1.0, np.inf, np.nan])), [-np.inf, np.nan, np.inf, np.nan])


def test_bits_do_not_depend_on_fusion():
    """Also in the epilogue of a product."""
    rng = np.random.default_rng(1)
    a, b = (ts.tensor(rng.normal(size=(64, 64)).astype(np.float32)) for _ in range(2))
    with ts.numerics(fast_math_functions=True):
        apart = ts.tanh(a @ b)
        together = ts.jit(lambda a, b: ts.tanh(a @ b))(a, b)
    assert np.array_equal(apart, together)
    assert not np.array_equal(together, ts.tanh(a @ b))
