"""Every way to a derivative of one function, against central differences in f64."""

import numpy as np

import tessera as ts


def check(f, x, eps=1e-6, tol=1e-6):
    """grad, jvp, forward over reverse and reverse over reverse of a scalar function of one f64 vector."""
    x = np.asarray(x, np.float64)
    v = np.random.default_rng(0).normal(size=x.shape)
    run, gradient = ts.jit(f), ts.grad(f)
    g = gradient(ts.tensor(x)).numpy()
    steps = [eps * e for e in np.eye(x.size).reshape(-1, *x.shape)]
    fd = np.reshape([(float(run(ts.tensor(x + e))) - float(run(ts.tensor(x - e)))) / (2 * eps) for e in steps], x.shape)
    assert np.abs(g - fd).max() < tol, (g, fd)
    assert abs(float(ts.jvp(f, (ts.tensor(x),), (ts.tensor(v),))[1]) - (g * v).sum()) < 1e-9
    h = ts.jvp(gradient, (ts.tensor(x),), (ts.tensor(v),))[1].numpy()
    fd = (gradient(ts.tensor(x + eps * v)).numpy() - gradient(ts.tensor(x - eps * v)).numpy()) / (2 * eps)
    assert np.abs(h - fd).max() < 10 * tol
    hr = ts.grad(lambda y: (gradient(y) * ts.tensor(v)).sum())(ts.tensor(x)).numpy()
    assert np.abs(h - hr).max() < 1e-9
    jitted = ts.jit(gradient)(ts.tensor(x)).numpy()
    assert jitted.tobytes() == ts.grad(run)(ts.tensor(x)).numpy().tobytes() == g.tobytes()
