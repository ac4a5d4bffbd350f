"""Fields: derivatives along coordinates against closed forms."""

import numpy as np
import pytest

import tessera as ts
from tessera import op

P = np.random.default_rng(0).uniform(0.1, 0.9, (20, 2))
X, Y = P.T


def test_derivatives_of_a_closed_form():
    psi = op.field(lambda p: ts.sin(p[:, 0]) * ts.cos(p[:, 1]))
    p = ts.tensor(P)
    assert np.abs(op.grad(psi, wrt="y")(p).numpy() + np.sin(X) * np.sin(Y)).max() < 1e-10
    assert np.abs(op.grad(psi, "x")(p).numpy() - np.cos(X) * np.cos(Y)).max() < 1e-10
    xy, yx = op.grad(op.grad(psi, axis="x"), axis="y")(p), op.grad(op.grad(psi, x="y"), "x")(p)
    assert np.abs(xy.numpy() - yx.numpy()).max() < 1e-14


def test_the_laplacian_of_a_harmonic_field_is_zero():
    psi = op.field(lambda p: ts.exp(p[:, 0]) * ts.sin(p[:, 1]))
    assert np.abs(op.laplacian(psi)(ts.tensor(P)).numpy()).max() < 1e-8


def test_a_residual_as_it_is_written():
    psi = op.mlp(in_dim=2, hidden=[8, 8], out_dim=1, dtype=ts.f64)
    u, v = op.grad(psi, wrt="y"), -op.grad(psi, wrt="x")
    residual, incomp = op.laplacian(psi) - 1.0, op.grad(u, "x") + op.grad(v, "y")
    with op.domain(ts.tensor(P)):
        loss = op.reduce_sum(residual**2 + incomp**2, stable=True)
    want = (op.laplacian(psi)(ts.tensor(P)).numpy() - 1) ** 2
    assert abs(float(loss) - want.sum()) < 1e-9 and np.abs(incomp(ts.tensor(P)).numpy()).max() < 1e-12
    g = ts.grad(lambda m, p: ((op.laplacian(m) - 1.0) ** 2)(p).sum())(psi, ts.tensor(P))
    w = psi.parameters["weight0"].numpy().copy()
    assert g["weight0"].shape == w.shape and float(ts.abs(g["weight0"]).max()) > 0
    assert op.reduce_sum(ts.ones(3)).item() == 3


def test_errors():
    psi = op.field(lambda p: p[:, 0])
    with pytest.raises(ts.errors.DerivativeError, match="has no coordinate 'z'"):
        op.grad(psi, "z")
    with pytest.raises(ts.errors.ArgumentError, match="takes points"):
        psi(ts.ones(3))
    with pytest.raises(ts.errors.ArgumentError, match="a field is a scalar"):
        op.mlp(in_dim=2, out_dim=3)
