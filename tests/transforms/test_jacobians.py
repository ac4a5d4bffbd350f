"""Jacobians, Hessians, linearize, per-example gradients, implicit derivatives, the value form."""

import numpy as np
import pytest

import tessera as ts

X = np.array([1.2, -0.7, 0.4])


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def hessian_of_rosenbrock(x):
    h = np.diag(np.r_[1200 * x[:-1] ** 2 - 400 * x[1:] + 2, 0] + np.r_[0, np.full(x.size - 1, 200.0)])
    return h + np.diag(-400 * x[:-1], 1) + np.diag(-400 * x[:-1], -1)


@pytest.mark.parametrize("way", [
    ts.hessian, lambda f: ts.jacfwd(ts.grad(f)), lambda f: ts.jacrev(ts.grad(f)), lambda f: ts.grad(ts.grad(f))])
def test_every_way_to_the_hessian(way):
    assert np.allclose(way(rosenbrock)(ts.tensor(X)).numpy(), hessian_of_rosenbrock(X), rtol=1e-12)


def test_jacobians_of_trees():
    p = {"w": ts.tensor(X), "b": ts.tensor(np.float64(2.0))}
    f = lambda p: {"a": ts.sin(p["w"]) * p["b"], "s": p["w"].sum()}
    for jac in (ts.jacfwd, ts.jacrev):
        j = jac(f)(p)
        assert np.allclose(j["a"]["w"].numpy(), np.diag(2 * np.cos(X))) and np.allclose(j["a"]["b"].numpy(), np.sin(X))
        assert np.array_equal(j["s"]["w"].numpy(), np.ones(3)) and float(j["s"]["b"]) == 0


def test_linearize():
    x = ts.tensor(X)
    y, push = ts.linearize(lambda x: ts.exp(x) * ts.sin(x), x)
    d = np.exp(X) * (np.sin(X) + np.cos(X))
    assert np.allclose(y.numpy(), np.exp(X) * np.sin(X)) and np.allclose(push(x).numpy(), d * X)
    assert np.allclose(push(2 * x).numpy(), 2 * d * X)
    assert np.allclose(ts.jit(lambda x: ts.linearize(ts.sin, x)[1](x))(x).numpy(), np.cos(X) * X)


def test_per_example_gradients_and_the_gradient_penalty():
    rng = np.random.default_rng(0)
    w, x, y = rng.normal(size=(5,)), rng.normal(size=(7, 5)), rng.normal(size=7)
    g = ts.per_example_grad(lambda w, x, y: (x @ w - y) ** 2)(ts.tensor(w), ts.tensor(x), ts.tensor(y))
    assert np.allclose(g.numpy(), 2 * (x @ w - y)[:, None] * x)
    real, fake, alpha = rng.normal(size=(4, 5)), rng.normal(size=(4, 5)), rng.uniform(size=(4, 1))
    d = lambda x: ts.tanh(x @ ts.tensor(w))

    def penalty(r):
        return ts.gradient_penalty(d, r, ts.tensor(fake), alpha=ts.tensor(alpha))

    mixed = alpha * real + (1 - alpha) * fake
    slope = (1 - np.tanh(mixed @ w) ** 2)[:, None] * w
    assert abs(float(penalty(ts.tensor(real))) - 10 * np.mean((np.linalg.norm(slope, axis=1) - 1) ** 2)) < 1e-10
    e = 1e-6 * np.eye(20)[3].reshape(4, 5)
    fd = (float(penalty(ts.tensor(real + e))) - float(penalty(ts.tensor(real - e)))) / 2e-6
    assert abs(ts.grad(penalty)(ts.tensor(real)).numpy()[0, 3] - fd) < 1e-6


@ts.implicit_diff
def fixed_point(f, x0, max_iters=200):
    x = x0
    for _ in range(max_iters):
        new = f(x)
        if ts.allclose(x, new, rtol=1e-12, atol=1e-14):
            break
        x = new
    return x


def test_a_fixed_point_by_the_implicit_function_theorem():
    a = np.array([0.5, 0.8, 0.3])
    solve = lambda a: fixed_point(lambda x: ts.cos(a * x), ts.ones(3, dtype=ts.f64)).sum()
    x = np.ones(3)
    for _ in range(300):
        x = np.cos(a * x)
    want = -np.sin(a * x) * x / (1 + a * np.sin(a * x))
    assert np.abs(ts.grad(solve)(ts.tensor(a)).numpy() - want).max() < 1e-5
    assert abs(float(solve(ts.tensor(a))) - x.sum()) < 1e-9


def test_a_minimiser_and_its_derivative():
    q = np.array([[3.0, 1, 0], [1, 2, 0.5], [0, 0.5, 4]])
    assert np.allclose(ts.optimize(rosenbrock, init=ts.zeros(3, dtype=ts.f64)).numpy(), 1, atol=1e-8)

    @ts.diff_through_opt
    def argmin(x):
        return ts.optimize(lambda y: 0.5 * (y @ (ts.tensor(q) @ y)) - (x * x * y).sum(), init=ts.zeros_like(x))

    for jac in (ts.jacrev, ts.jacfwd):
        assert np.abs(jac(argmin)(ts.tensor(X)).numpy() - np.linalg.solve(q, np.diag(2 * X))).max() < 1e-10


class Affine(ts.nn.Module):
    def __init__(self):
        self.w = ts.nn.Parameter(np.arange(8.0).reshape(4, 2))
        self.b = ts.nn.Parameter(np.ones(2))

    def forward(self, x):
        return x @ self.w + self.b


def test_the_value_form_and_modules():
    m, x = Affine(), ts.tensor(np.linspace(-1, 1, 12).reshape(3, 4))

    @ts.jit
    def step(x):
        h = m(x)
        loss = (h * h).mean()
        return ts.grad(loss, m), ts.graph.backward(loss), ts.grad(loss, h)

    by_module, by_scope, by_h = step(x)
    functional = ts.grad(lambda m, x: (m(x) ** 2).mean())(m, x)
    assert sorted(by_scope) == ["b", "w"]
    for k in ("w", "b"):
        assert np.allclose(by_module[k].numpy(), functional[k].numpy(), rtol=1e-14)
        assert np.allclose(by_module[k].numpy(), by_scope[k].numpy(), rtol=1e-14)
    assert np.allclose(by_h.numpy(), 2 * m(x).numpy() / 6)


def test_gradients_in_scope_are_named_as_the_model_names_its_parameters():
    class Two(ts.nn.Module):
        def __init__(self):
            self.first, self.second = Affine(), Affine()
            self.unused = ts.nn.Parameter(np.ones(2))

        def forward(self, x):
            return self.first(x) @ ts.ones(2, 4, dtype=ts.f64) + self.second(x) @ ts.ones(2, 4, dtype=ts.f64)

        @ts.jit
        def step(self, x):
            return ts.grad((self(x) ** 2).sum())

    model, scale, x = Two(), ts.tensor(2.0), ts.tensor(np.ones((3, 4)))
    names = [n for n, _ in model.named_parameters()]
    want = ts.grad(lambda m, x: (m(x) ** 2).sum())(model, x)
    grads = ts.jit(lambda x: ts.grad((model(x) ** 2).sum()))(x)
    assert sorted(grads) == sorted(set(names) - {"unused"})
    assert all(np.array_equal(grads[n].numpy(), want[n].numpy()) for n in grads)
    assert sorted(ts.jit(lambda x: ts.grad((model(x) * scale).sum()))(x)) == ["captured0", *sorted(grads)]
    other = Affine()
    both = ts.jit(lambda x: ts.grad((model.first(x) * other(x)).sum()))(x)
    assert sorted(both) == ["b", "first.b", "first.w", "w"]
    rival = Affine()
    assert sorted(ts.jit(lambda x: ts.grad((rival(x) * other(x)).sum()))(x)) == ["other.b", "other.w", "rival.b", "rival.w"]


def test_parameters_that_the_function_owns():
    @ts.function
    def f(x: ts.Tensor["B", 4]):  # noqa: F821
        loss = (ts.linear(x, 2) ** 2).sum()
        return loss, ts.grad(loss)

    _, grads = f(ts.ones(3, 4))
    assert sorted(grads) == sorted(f.named_parameters())


def test_errors_of_the_value_form():
    x = ts.ones(3)
    with pytest.raises(ts.errors.DerivativeError, match="outside a function that records it") as e:
        ts.grad(x.sum(), x)
    assert "ts.grad(x.sum(), x)" in str(e.value)
    with pytest.raises(ts.errors.DerivativeError, match="needs a scalar"):
        ts.jit(lambda x: ts.grad(x * 2, x))(x)
    with pytest.raises(ts.errors.DerivativeError, match="takes a tensor"):
        ts.graph.backward(3)


def test_the_graph_of_a_gradient_prints_and_adjoint():
    @ts.function
    def f(x: ts.Tensor["B", 4]):  # noqa: F821
        return ts.sin(x).sum()

    assert "cos(%x)" in f.grad_ir and "f32[B, 4]" in f.grad_ir
    z = ts.tensor(np.array([[1 + 2j, 3], [4, 5 - 1j]]))
    assert np.array_equal(ts.adjoint(z).numpy(), z.numpy().conj().T)


def test_a_fixed_point_under_other_transformations():
    a = np.array([0.5, 0.8, 0.3])
    f = lambda a: fixed_point(lambda x: ts.cos(a * x), ts.ones(3, dtype=ts.f64)).sum()
    g = ts.grad(f)
    found = g(ts.tensor(a)).numpy()
    for way in (ts.jacfwd(f), ts.jit(g), ts.grad(ts.checkpoint(f))):
        assert np.allclose(way(ts.tensor(a)).numpy(), found, rtol=1e-12)
    batch = ts.tensor(np.stack([a, a / 2]))
    single = np.stack([found, g(ts.tensor(a / 2)).numpy()])
    assert np.allclose(ts.vmap(g)(batch).numpy(), single, rtol=1e-12)
    assert np.allclose(ts.grad(lambda b: ts.vmap(f)(b).sum())(batch).numpy(), single, rtol=1e-12)
    steps = 1e-5 * np.eye(3)
    slope = lambda f, e: (f(ts.tensor(a + e)).numpy() - f(ts.tensor(a - e)).numpy()) / 2e-5
    assert np.abs(ts.hessian(f)(ts.tensor(a)).numpy() - np.stack([slope(g, e) for e in steps])).max() < 1e-7
    second = ts.grad(lambda a: g(a).sum())
    third = ts.grad(lambda a: second(a).sum())(ts.tensor(a)).numpy()
    assert np.abs(third - [slope(second, e).sum() for e in steps]).max() < 1e-6


def test_the_value_form_sees_values_of_the_blocks_around():
    xs = np.linspace(0.5, 1.5, 4)

    @ts.jit
    def f(x):
        def outer(c, r):
            y = ts.sin(x) * r
            return ts.scan(lambda a, s: (a + ts.grad((y * y * s).sum(), y).sum(), a), c, x)[0], c

        return ts.scan(outer, ts.tensor(0.0, dtype=ts.f64), x)[0]

    want = sum(2 * np.sin(xs).sum() * r * s for r in xs for s in xs)
    assert abs(float(f(ts.tensor(xs))) - want) < 1e-10


@pytest.mark.parametrize("jacobian", [ts.jacrev, ts.jacfwd])
def test_jacobians_of_holomorphic_functions(jacobian):
    z, x = ts.tensor([1 + 2j, 0.5 - 1j]), ts.ones(2)
    found = jacobian(lambda z: z * z, holomorphic=True)(z)
    assert np.allclose(found.numpy(), np.diag(2 * z.numpy()))
    with pytest.raises(ts.errors.TesseraError, match="takes complex numbers to complex numbers"):
        jacobian(lambda z: z * z, holomorphic=True)(x)
    with pytest.raises(ts.errors.TesseraError, match=r"has complex (arguments|results)") as e:
        jacobian(lambda z: z * z)(z)
    assert "holomorphic=True" in str(e.value)


def test_half_complex_jacobians_and_hessians():
    z, x = ts.tensor([1 + 2j, 0.5 - 1j]), ts.tensor([1.0, 2.0])
    assert np.allclose(ts.jacrev(lambda z: ts.abs(z) ** 2)(z).numpy(), np.diag(2 * z.numpy().conj()))
    assert np.allclose(ts.jacfwd(lambda x: ts.complex_(x, x * x))(x).numpy(), np.diag([1 + 2j, 1 + 4j]))
    assert np.allclose(ts.hessian(lambda z: (z * z * z).sum(), holomorphic=True)(z).numpy(), np.diag(6 * z.numpy()))
