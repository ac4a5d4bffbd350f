"""Whole programs: the Hessian of an MLP, MAML's second-order step, composition with vmap and jit."""

import numpy as np

import tessera as ts


def mlp(w, x):
    a, b = w[:32].reshape(4, 8), w[32:40]
    return (ts.tanh(x @ a) @ b).sum()


RNG = np.random.default_rng(0)
W, XS = RNG.normal(size=40) * 0.5, RNG.normal(size=(6, 4))


def test_the_hessian_of_an_mlp():
    x = ts.tensor(XS)
    h = ts.hessian(mlp)(ts.tensor(W), x).numpy()
    g = ts.grad(mlp)
    fd = np.stack([(g(ts.tensor(W + e), x).numpy() - g(ts.tensor(W - e), x).numpy()) / 2e-6 for e in 1e-6 * np.eye(40)])
    assert np.abs(h - fd).max() < 1e-7 and np.abs(h - h.T).max() < 1e-12


def test_a_second_order_step_of_maml():
    def task(w, x):
        return (mlp(w, x) - 1) ** 2

    def meta(w):
        adapted = lambda x: task(w - 0.01 * ts.grad(task)(w, x), x)
        return ts.vmap(adapted)(ts.tensor(XS.reshape(3, 2, 4))).mean()

    g = ts.jit(ts.grad(meta))(ts.tensor(W)).numpy()
    for i in (0, 17, 39):
        e = 1e-6 * np.eye(40)[i]
        fd = (float(ts.jit(meta)(ts.tensor(W + e))) - float(ts.jit(meta)(ts.tensor(W - e)))) / 2e-6
        assert abs(g[i] - fd) < 1e-6


def test_per_example_gradients_are_those_of_single_examples():
    g = ts.per_example_grad(mlp)(ts.tensor(W), ts.tensor(XS[:, None]))
    single = ts.grad(mlp)
    for i in range(6):
        assert np.allclose(g.numpy()[i], single(ts.tensor(W), ts.tensor(XS[i:i + 1])).numpy(), rtol=1e-12, atol=1e-14)
