"""Derivatives through cond, scan, loops: against central differences, to second order, in programs whose size ignores the length."""

import numpy as np
import pytest
from derivative_checks import check

import tessera as ts

X = np.linspace(-1, 1.2, 6)
C = ts.tensor(np.arange(6.0) / 3)


def cell(x):
    def step(h, xt):
        h = ts.tanh(h * x[0] + xt * C[1])
        return h, h * h * x[1]

    h, ys = ts.scan(step, x[2], x)
    return (ys * ys).sum() + h


def nested(x):
    def step(h, t):
        return ts.cond(t > 0, lambda: h * ts.sin(t * x[0]), lambda: ts.fori_loop(0, 3, lambda i, v: v * t + h, h)), None

    return ts.scan(step, x[1], x, reverse=True)[0]


def bounded(x):
    return ts.while_loop(lambda v, k: k < 4, lambda v, k: (ts.sin(v) * x, k + 1), (x, 0), max_iterations=7)[0].sum()


PROGRAMS = {
    "cond on operands": lambda x: ts.cond(x.sum() > 0, lambda x: (x**3 * C).sum(), lambda x: (x * C).sum(), x),
    "cond on captured": lambda x: ts.cond(x.sum() < 0, lambda: (x**3 * C).sum(), lambda: ts.sin(x * C).sum()),
    "scan": cell, "nested": nested, "bounded while": bounded,
    "fori": lambda x: ts.fori_loop(0, 5, lambda i, v: ts.sin(v) * x + i, x).sum(),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_against_central_differences(name):
    check(PROGRAMS[name], X)


def test_forward_mode_of_an_unbounded_loop():
    f = lambda x: ts.while_loop(lambda v: v < 100.0, lambda v: v * v * x, x)
    x, eps = 2.0, 1e-6
    up, down = (float(f(ts.tensor(np.float64(x + s * eps)))) for s in (1, -1))
    assert abs(float(ts.jvp(f, (ts.tensor(np.float64(x)),), (ts.tensor(np.float64(1.0)),))[1]) / ((up - down) / (2 * eps)) - 1) < 1e-6


def test_reverse_mode_of_an_unbounded_loop_is_an_error_at_the_loop():
    def f(x):
        return ts.while_loop(lambda v: v < 100.0, lambda v: v * v, x)

    with pytest.raises(ts.errors.DerivativeError, match="not bounded") as e:
        ts.grad(f)(2.0)
    assert "max_iterations=100" in str(e.value) and "return ts.while_loop(lambda v: v < 100.0" in str(e.value)


def test_max_iterations_stops_the_loop_eager_and_traced():
    f = lambda x: ts.while_loop(lambda v: v < 1e9, lambda v: v * 2, x, max_iterations=3)
    assert float(f(ts.tensor(1.0))) == float(ts.jit(f)(1.0)) == 8.0
    with pytest.raises(ts.errors.ArgumentError, match="number of iterations"):
        ts.while_loop(lambda v: v < 1, lambda v: v, 0.0, max_iterations=-1)


def test_a_long_scan_makes_no_longer_program():
    def loss(x):
        return ts.scan(lambda h, t: (ts.tanh(h * t), None), x[0], x)[0]

    sizes = set()
    for n in (4, 400):
        g = ts.grad(loss)
        g(ts.tensor(np.linspace(0.1, 0.9, n)))
        sizes.add(sum(1 for _ in g.programs[0].graph.walk()))
    assert len(sizes) == 1


def test_a_scan_stacks_only_what_its_backward_step_reads():
    def loss(x):
        return ts.scan(lambda h, t: (h + ts.exp(t) * 3.0, None), x[0], x)[0]

    g = ts.grad(loss)
    g(ts.tensor(X))
    scans = [op for op in g.programs[0].graph.walk() if op.name == "scan"]
    assert len(scans) == 2 and len(scans[0].results) <= 2  # the carry, and exp(t)


def test_symbolic_length():
    @ts.function
    def loss(x: ts.Tensor["N"]):  # noqa: F821
        return ts.scan(lambda h, t: (ts.tanh(h * t), h), ts.sum(x), x)[1].sum()

    g = ts.grad(loss)
    for n in (3, 5):
        x = np.linspace(0.1, 0.9, n).astype(np.float32)
        eps = 1e-3
        fd = [(float(loss(ts.tensor(x + eps * e))) - float(loss(ts.tensor(x - eps * e)))) / (2 * eps) for e in np.eye(n, dtype=np.float32)]
        assert np.allclose(g(ts.tensor(x)).numpy(), fd, atol=2e-3)
    assert len(g.programs) == 1


