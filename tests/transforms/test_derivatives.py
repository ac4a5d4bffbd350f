"""grad, value_and_grad, jvp, vjp against central differences in f64 and closed forms."""

import numpy as np
import pytest

import tessera as ts


def central(f, x, eps=1e-6):
    """The gradient of a scalar function of one f64 array by central differences."""
    x = np.asarray(x, np.float64)
    out = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        hi, lo = x.copy(), x.copy()
        hi[i] += eps
        lo[i] -= eps
        out[i] = (float(f(ts.tensor(hi))) - float(f(ts.tensor(lo)))) / (2 * eps)
    return out


def wave(x):
    return (ts.sin(x) * x**3 / (1 + ts.exp(x))).sum()


X = np.linspace(-1, 1, 7)


def test_grad_is_the_central_difference():
    assert np.allclose(ts.grad(wave)(ts.tensor(X)).numpy(), central(wave, X), rtol=0, atol=1e-8)


def test_a_second_call_runs_the_same_program():
    g = ts.grad(wave)
    g(ts.tensor(X))
    g(ts.tensor(X + 1))
    assert len(g.programs) == 1


def test_grad_and_jit_commute_bit_for_bit():
    x = ts.tensor(X)
    a, b, c = ts.jit(ts.grad(wave))(x), ts.grad(ts.jit(wave))(x), ts.grad(wave)(x)
    assert a.numpy().tobytes() == b.numpy().tobytes() == c.numpy().tobytes()


def test_trees_argnums_and_aux():
    def f(params, x):
        y = x @ params["w"] + params["b"]
        return (y * y).sum(), {"y": y, "name": "out"}

    params = {"w": ts.tensor(np.ones((3, 2))), "b": ts.tensor(np.zeros(2))}
    x = ts.tensor(np.arange(6.0).reshape(2, 3))
    (value, aux), (gp, gx) = ts.value_and_grad(f, argnums=(0, 1), has_aux=True)(params, x)
    y = x.numpy() @ np.ones((3, 2))
    assert float(value) == (y * y).sum() and aux["name"] == "out" and np.array_equal(aux["y"].numpy(), y)
    assert np.allclose(gp["w"].numpy(), x.numpy().T @ (2 * y)) and np.allclose(gp["b"].numpy(), 2 * y.sum(0))
    assert np.allclose(gx.numpy(), 2 * y @ np.ones((3, 2)).T)
    assert np.allclose(ts.grad(f, has_aux=True)(params, x)[0]["b"].numpy(), 2 * y.sum(0))


def test_grad_of_grad_is_the_hessian():
    def f(x):
        return (x**3).sum() * x[0]

    x = np.array([1.0, 2.0, 3.0])
    h = ts.grad(ts.grad(f))(ts.tensor(x)).numpy()
    g = ts.grad(f)
    fd = np.stack([(g(ts.tensor(x + e)).numpy() - g(ts.tensor(x - e)).numpy()) / 2e-6 for e in 1e-6 * np.eye(3)])
    assert h.shape == (3, 3) and np.allclose(h, fd, atol=1e-6) and np.allclose(h, h.T)


def test_third_derivative():
    third = ts.grad(ts.grad(ts.grad(ts.sin)))
    assert abs(float(third(ts.tensor(np.float64(0.3)))) + np.cos(0.3)) < 1e-14


def test_scores_of_rows_are_summed_and_batched_false_is_the_jacobian():
    w = ts.tensor([1.0, 2.0, 3.0])
    x = ts.tensor(np.ones((2, 3), np.float32))
    assert np.array_equal(ts.grad(lambda x: x @ w)(x).numpy(), np.tile([1, 2, 3], (2, 1)))
    j = ts.grad(lambda x: x @ w, batched=False)(x)
    assert j.shape == (2, 2, 3) and np.array_equal(j.numpy()[0, 1], np.zeros(3)) and np.array_equal(j.numpy()[1, 1], [1, 2, 3])


def test_forward_and_reverse_agree():
    x, v = ts.tensor(X), ts.tensor(np.arange(7.0))
    y, dy = ts.jvp(wave, (x,), (v,))
    assert float(y) == float(wave(x)) or abs(float(y) - float(wave(x))) < 1e-15
    assert abs(float(dy) - float((ts.grad(wave)(x) * v).sum())) < 1e-12


def test_vjp_outside_and_inside_a_trace():
    a, b = np.arange(6.0).reshape(2, 3), np.arange(12.0).reshape(3, 4)
    y, back = ts.vjp(lambda p: {"r": p[0] @ p[1]}, (ts.tensor(a), ts.tensor(b)))
    ((ga, gb),) = back({"r": ts.ones(2, 4, dtype=ts.f64)})
    assert np.array_equal(y["r"].numpy(), a @ b)
    assert np.array_equal(ga.numpy(), np.ones((2, 4)) @ b.T) and np.array_equal(gb.numpy(), a.T @ np.ones((2, 4)))

    @ts.jit
    def inside(x, n):
        y, back = ts.vjp(lambda x, n: x * n, x, n)
        return (*back(y), *back(2 * y)[:1])

    g, none, twice = inside(ts.tensor([2.0, 3.0]), ts.tensor([1, 4]))
    assert g.tolist() == [2.0, 48.0] and twice.tolist() == [4.0, 96.0] and none is None


def test_one_program_serves_two_batch_sizes():
    @ts.function
    def loss(x: ts.Tensor["B", 4], w: ts.Tensor[4]):  # noqa: F821
        return ((x @ w) ** 2).mean()

    g = ts.grad(loss, argnums=(0, 1))
    for n in (3, 5):
        x, w = np.random.default_rng(n).normal(size=(n, 4)).astype(np.float32), np.ones(4, np.float32)
        gx, gw = g(ts.tensor(x), ts.tensor(w))
        assert np.allclose(gw.numpy(), 2 * x.T @ (x @ w) / n, rtol=1e-5, atol=1e-5)
        assert np.allclose(gx.numpy(), 2 * np.outer(x @ w, w) / n, rtol=1e-5, atol=1e-5)
    assert len(g.programs) == 1


def test_ties_of_maximum():
    one = ts.tensor([0.0])
    assert ts.grad(lambda x: ts.relu(x).sum())(one).tolist() == [0.0]
    assert [g.tolist() for g in ts.grad(lambda a, b: ts.maximum(a, b).sum(), (0, 1))(one, one)] == [[0.5], [0.5]]


def test_complex_holomorphic():
    z = ts.tensor(np.array(0.3 + 0.4j))
    assert abs(complex(ts.grad(lambda z: z * z / (1 + z), holomorphic=True)(z)) -
               ((2 * z.item() * (1 + z.item()) - z.item() ** 2) / (1 + z.item()) ** 2)) < 1e-12


# -- errors -------------------------------------------------------------------------------------------------------------------
def test_errors_name_what_is_wrong_and_the_line():
    with pytest.raises(ts.errors.DerivativeError, match="argument 0 of 'loss', which is int64") as e:
        def loss(n):
            return (n * 2.0).sum()
        ts.grad(loss)(ts.tensor([1, 2]))
    assert "x.to(ts.f32)" in str(e.value) and "ts.grad(loss)(ts.tensor([1, 2]))" in str(e.value)
    with pytest.raises(ts.errors.DerivativeError, match="returns a structure with 2 tensors"):
        ts.grad(lambda x: (x, x))(ts.ones(2))
    with pytest.raises(ts.errors.DerivativeError, match="which returns int64"):
        ts.grad(lambda x: ts.argmax(x))(ts.ones(2))
    with pytest.raises(ts.errors.DerivativeError, match="holomorphic=True"):
        ts.grad(lambda z: z * z)(ts.tensor(1 + 2j))
    with pytest.raises(ts.errors.ArgumentError, match="differentiates by argument 3"):
        ts.grad(lambda x: x, argnums=3)(1.0)
    with pytest.raises(ts.errors.ArgumentError, match="takes a function first"):
        ts.value_and_grad(3)
    with pytest.raises(ts.errors.DerivativeError, match="do not have the structure of primals"):
        ts.jvp(lambda x, y: x, (1.0, 2.0), (1.0,))
    with pytest.raises(ts.errors.ShapeError, match="tangent 0 has another shape"):
        ts.jvp(lambda x: x, (ts.ones(2),), (ts.ones(3),))


def test_holomorphic_functions_take_complex_numbers_to_complex_numbers():
    z = ts.tensor(np.array(1 + 2j, np.complex64))
    assert ts.grad(lambda v: v * v, holomorphic=True)(z).item() == 2 + 4j
    for f, x in ((lambda v: v * 1j, ts.tensor(2.0)), (ts.abs, z)):
        with pytest.raises(ts.errors.DerivativeError, match=r"holomorphic=True.*takes complex numbers to complex numbers"):
            ts.grad(f, holomorphic=True)(x)
