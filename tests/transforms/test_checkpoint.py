"""Recomputation: the same bits, less memory, what is kept."""

import numpy as np
import pytest
from derivative_checks import check

import tessera as ts

X = np.linspace(-1, 1.2, 6)


def deep(x):
    return ts.sin(ts.exp(ts.tanh(x)))


def arena(g):
    return g.programs[0].executable.arena


@pytest.mark.parametrize("wrap", [ts.checkpoint, ts.remat, ts.checkpoint(policy="selective"), ts.checkpoint.policy("selective"),
                                  lambda f: ts.vmap(ts.checkpoint(f))])
def test_derivatives_are_those_without(wrap):
    check(lambda x: wrap(deep)(x).sum(), X)


def test_a_deep_network_needs_less_memory_and_has_the_same_bits():
    def layer(x, w):
        return ts.tanh(ts.gelu(x @ w) + ts.sin(x))

    def loss(layer):
        def run(x, ws):
            for w in ws:
                x = layer(x, w)
            return (x * x).sum()
        return run

    ws, x = [ts.randn(32, 32) for _ in range(10)], ts.randn(128, 32)
    plain, lean = ts.grad(loss(layer), argnums=1), ts.grad(loss(ts.checkpoint(layer)), argnums=1)
    for a, b in zip(plain(x, ws), lean(x, ws), strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes()
    assert arena(lean) < 0.7 * arena(plain)


def test_nothing_but_the_marked_values_is_kept():
    @ts.checkpoint(policy="selective")
    def f(x):
        return ts.cos(ts.checkpoint_here(ts.exp(ts.sin(x))))

    ts.grad(lambda x: f(x).sum())(ts.tensor(X))
    assert [str(t) for t in f.saved] == ["f64[6]"] and f.recomputed > 0
    whole = ts.checkpoint(deep)
    ts.grad(lambda x: whole(x).sum())(ts.tensor(X))
    assert whole.saved == [] and whole.recomputed == 3


def test_without_marks_the_small_values_are_kept():
    @ts.checkpoint.policy("selective")
    def f(x):
        return ts.sin(ts.exp(x).sum(0))

    ts.grad(lambda x: f(x).sum())(ts.ones(16, 4))
    assert [str(t) for t in f.saved] == ["f32[4]"]


def test_dropout_is_drawn_once():
    def f(x):
        return ts.dropout(ts.sin(x), 0.5)

    found = []
    for wrap in (lambda f: f, ts.checkpoint):
        ts.manual_seed(3)
        y, g = ts.value_and_grad(lambda x, wrap=wrap: wrap(f)(x).sum())(ts.tensor(X))
        found.append((float(y), g.tolist()))
    assert found[0] == found[1] and 0 < found[0][1].count(0.0) < 6


def test_errors():
    with pytest.raises(ts.errors.ArgumentError, match="no policy 'selectiv'; did you mean 'selective'"):
        ts.checkpoint(policy="selectiv")
    with pytest.raises(ts.errors.ArgumentError, match="decorates a function"):
        ts.checkpoint(3)
