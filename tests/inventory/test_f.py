"""Group F of the inventory, row by row: derivatives as the specification spells them (tests/transforms has the rest)."""

from __future__ import annotations

import logging
from collections import Counter

import numpy as np
import pytest

import tessera as ts
from tessera import op

RNG = np.random.default_rng(0)
X, V = RNG.normal(size=6), RNG.normal(size=6)
x, v = ts.tensor(X), ts.tensor(V)
N = ts.sym("N")


def ops_of(fn, *args):
    """How often each op stands in the program of a call."""
    return Counter(o.name for o in ts.jit(fn).trace(*args).walk())


def differences(f, at=X, eps=1e-6):
    return np.array([(float(f(ts.tensor(at + e))) - float(f(ts.tensor(at - e)))) / (2 * eps) for e in eps * np.eye(at.size)])


def loss_fn(w, x, y):
    return ((ts.tanh(x @ w) - y) ** 2).mean()


def test_f001_f010_gradients_of_pytrees_against_differences():
    p = {"a": x, "b": [v]}
    g = ts.grad(lambda p: (ts.sin(p["a"]) * p["b"][0]).sum(), argnums=0)(p)
    assert np.abs(g["a"].numpy() - differences(lambda a: (ts.sin(a) * v).sum())).max() < 1e-6
    assert np.allclose(g["b"][0].numpy(), np.sin(X))


def test_f002_a_gradient_of_a_gradient_is_the_hessian():
    f = lambda x: (x ** 3).sum() + x[0] * x[1]
    h = ts.grad(ts.grad(f))(x).numpy()
    want = np.diag(6 * X)
    want[0, 1] = want[1, 0] = 1
    assert np.allclose(h, want) and abs(float(ts.grad(ts.grad(ts.sin))(1.0)) + np.sin(1)) < 1e-6


def test_f003_value_and_grad_runs_one_forward():
    data = ts.tensor(RNG.normal(size=(4, 6))), ts.tensor(RNG.normal(size=4))
    forward = ops_of(loss_fn, x, *data)
    both = ops_of(lambda w, *d: ts.value_and_grad(loss_fn)(w, *d), x, *data)
    assert forward["tanh"] == both["tanh"] == 1 and both["dot_general"] == forward["dot_general"] + 1
    value, g = ts.value_and_grad(loss_fn)(x, *data)
    assert float(value) == float(ts.jit(loss_fn)(x, *data)) and g.tolist() == ts.grad(loss_fn)(x, *data).tolist()


def test_f004_a_missing_rule_raises_on_grad_not_on_call():
    @ts.custom_vjp
    def f(x):
        return x * 2

    assert f(x).tolist() == (2 * X).tolist()
    with pytest.raises(ts.errors.DerivativeError):
        ts.grad(lambda x: f(x).sum())(x)


def test_f005_the_example_s_rule_with_one_cotangent():
    @ts.custom_vjp
    def log1p(x):
        return ts.log(1 + x)

    log1p.defvjp(lambda x: (ts.log(1 + x), x), lambda x, g: g / (1 + x))
    at = ts.tensor(np.abs(X))
    want = 1 / (1 + np.abs(X))
    g = ts.grad(lambda x: log1p(x).sum())
    assert np.allclose(g(at).numpy(), want) and np.allclose(ts.jit(g)(at).numpy(), want)
    assert np.allclose(ts.vmap(ts.grad(log1p))(at).numpy(), want)


def test_f007_f019_selective_checkpoints_log_their_recomputation(caplog):
    def f(x):
        return ts.sin(ts.exp(ts.checkpoint_here(ts.tanh(x))))

    by_keyword, by_attribute = ts.checkpoint(policy="selective")(f), ts.checkpoint.policy("selective")(f)
    assert type(by_keyword) is type(by_attribute) and by_keyword.policy_name == by_attribute.policy_name
    with caplog.at_level(logging.INFO, logger="tessera.checkpoint"):
        g = ts.grad(lambda x: by_keyword(x).sum())(x)
    assert g.tolist() == ts.grad(lambda x: f(x).sum())(x).tolist()
    assert "ops recomputed, 1 values kept" in caplog.text and len(by_keyword.saved) == 1  # F008


def test_f009_f012_directional_derivatives():
    f = lambda x: (ts.exp(x) * x).sum()
    y, dy = ts.jvp(f, (x,), (v,))
    assert abs(float(dy) - (float(f(x + 1e-6 * v)) - float(f(x - 1e-6 * v))) / 2e-6) < 1e-6
    assert abs(float(dy) - float((ts.grad(f)(x) * v).sum())) < 1e-12 and float(y) == float(ts.jit(f)(x))


def test_f014_a_saved_mask_is_a_byte_an_element():
    seen = []

    @ts.custom_vjp
    def relu(x):
        return ts.relu(x)

    def fwd(x):
        mask = x > 0
        return ts.where(mask, x, 0.0), mask

    def bwd(mask, g):
        seen.append(mask.dtype)
        return ts.where(mask, g, 0.0)

    relu.defvjp(fwd, bwd)
    g = ts.grad(lambda x: (relu(x) * v).sum())(x)
    assert np.array_equal(g.numpy(), (X > 0) * V) and set(seen) == {ts.bool_} and ts.bool_.itemsize == 1


def test_f015_stable_division_by_a_forward_rule():
    @ts.custom_jvp
    def stable_div(a, b):
        return a / b

    @stable_div.defjvp
    def rule(primals, tangents):
        (a, b), (da, db) = primals, tangents
        z = a / b
        return z, (da - z * db) / b

    ga, gb = ts.grad(lambda a, b: stable_div(a, b).sum(), argnums=(0, 1))(x, v)
    assert np.allclose(ga.numpy(), 1 / V) and np.allclose(gb.numpy(), -X / V ** 2)
    assert np.allclose(ts.jvp(stable_div, (x, v), (v, x))[1].numpy(), 1 - X ** 2 / V ** 2)


def test_f016_what_is_held_constant_has_no_backward_pass():
    f = lambda x: (ts.stop_gradient(ts.exp(ts.sin(x))) * x).sum()
    assert np.allclose(ts.grad(f)(x).numpy(), np.exp(np.sin(X)))
    assert ops_of(lambda x: ts.grad(f)(x), x)["cos"] == 0


def test_f017_f018_f020_a_checkpoint_costs_one_more_forward_and_halves_the_activations():
    def layer(h, w):
        return ts.tanh(ts.gelu(h @ w) + ts.sin(h))

    def loss(layer):
        def run(h, ws):
            for w in ws:
                h = layer(h, w)
            return (h * h).sum()
        return run

    ws, h = [ts.randn(32, 32) for _ in range(12)], ts.randn(256, 32)
    lean_layer = ts.checkpoint(layer)
    plain, lean = ts.grad(loss(layer), argnums=1), ts.grad(loss(lean_layer), argnums=1)
    for a, b in zip(plain(h, ws), lean(h, ws), strict=True):
        assert a.numpy().tobytes() == b.numpy().tobytes()
    assert lean_layer.saved == []  # nothing inside: the region's inputs alone
    products = [ops_of(f, h, ws)["dot_general"] for f in (loss(layer), plain, lean)]
    assert products[2] - products[1] <= products[0]  # at most one more forward
    count = [ops_of(f, h, ws)["sin"] for f in (loss(layer), plain, lean)]
    assert count[1] == count[0] and count[2] <= 2 * count[0]
    assert lean.programs[0].executable.arena < 0.7 * plain.programs[0].executable.arena


@ts.implicit_diff
def iterate(f, x0, max_iters=100):
    for _ in range(max_iters):
        new = f(x0)
        if ts.max(ts.abs(new - x0)) < 1e-14:
            break
        x0 = new
    return x0


def test_f021_f022_a_fixed_point_with_an_early_break():
    solve = lambda a: iterate(lambda y: ts.cos(a * y), ts.tensor(1.0, dtype=ts.f64))
    calls = []

    def counting(y):
        calls.append(1)
        return ts.cos(0.5 * y)

    y = float(iterate(counting, ts.tensor(1.0, dtype=ts.f64)))
    assert abs(y - np.cos(0.5 * y)) < 1e-13 and len(calls) < 60  # the solver's own Python, with its break
    a = 0.5
    first = lambda a: -np.sin(a * y) * y / (1 + a * np.sin(a * y))
    assert abs(float(ts.grad(solve)(ts.tensor(a, dtype=ts.f64))) - first(a)) < 1e-12
    g = ts.grad(solve)
    second = float(ts.grad(g)(ts.tensor(a, dtype=ts.f64)))
    fd = (float(g(ts.tensor(a + 1e-5, dtype=ts.f64))) - float(g(ts.tensor(a - 1e-5, dtype=ts.f64)))) / 2e-5
    assert abs(second - fd) < 1e-8
    few = ts.jit(lambda a: iterate(lambda y: ts.cos(a * y), ts.tensor(1.0, dtype=ts.f64), max_iters=3))
    assert abs(float(few(ts.tensor(a, dtype=ts.f64))) - np.cos(a * np.cos(a * np.cos(a)))) < 1e-2  # three iterations, not more


def test_f023_f024_a_minimum_and_its_second_derivative():
    cubic = lambda t: ts.optimize(lambda y: y ** 4 / 4 - t * y, init=ts.ones_like(t))  # y = t**(1/3)
    t = ts.tensor(2.0, dtype=ts.f64)
    assert abs(float(ts.grad(cubic)(t)) - 2 ** (-2 / 3) / 3) < 1e-9
    assert abs(float(ts.grad(ts.grad(cubic))(t)) + 2 / 9 * 2 ** (-5 / 3)) < 1e-8
    q = ts.tensor(np.diag([2.0, 3.0]))
    argmin = ts.diff_through_opt(lambda t: ts.optimize(lambda y: 0.5 * (y @ (q @ y)) - (t ** 3 * y).sum(), init=ts.zeros(2, dtype=ts.f64)))
    t = ts.tensor(np.array([1.5, 0.5]))
    assert np.allclose(ts.jacrev(argmin)(t).numpy(), np.diag(3 * np.array([1.5, 0.5]) ** 2 / [2, 3]))
    h = ts.hessian(lambda t: argmin(t).sum())(t).numpy()
    assert np.allclose(h, np.diag(6 * np.array([1.5, 0.5]) / [2, 3]))


def test_f025_straight_through():
    quantize = ts.straight_through(lambda x: ts.round(x * 4) / 4)
    assert ts.grad(lambda x: quantize(x).sum())(x).tolist() == [1] * 6
    assert quantize(x).tolist() == (np.rint(X * 4) / 4).tolist()


def test_f027_f028_scores_of_a_batch_and_the_value_form():
    data, w = ts.tensor(RNG.normal(size=(3, 6))), x
    per = ts.grad(lambda d: ts.tanh(d @ w))(data).numpy()
    assert np.allclose(per, np.stack([ts.grad(lambda r: ts.tanh(r @ w))(data[i]).numpy() for i in range(3)]))
    f = ts.jit(lambda w: ts.grad(loss_fn(w, data, ts.zeros(3, dtype=ts.f64)), w))
    assert np.array_equal(f(w).numpy(), ts.grad(loss_fn)(w, data, ts.zeros(3, dtype=ts.f64)).numpy())


def test_f030_backward_over_the_graph():
    f = ts.jit(lambda x: ts.graph.backward((ts.sin(x) * x).sum(), wrt=x))
    assert np.allclose(f(x).numpy(), np.cos(X) * X + np.sin(X))


def test_f031_f032_fields():
    points = ts.tensor(RNG.normal(size=(9, 2)))
    a, b = points.numpy().T
    u = op.field(lambda p: ts.sin(p[:, 0]) * ts.cos(p[:, 1]))
    assert np.abs(op.grad(u, "x")(points).numpy() - np.cos(a) * np.cos(b)).max() < 1e-10
    xy, yx = op.grad(op.grad(u, wrt="x"), wrt="y"), op.grad(op.grad(u, wrt="y"), wrt="x")
    assert np.abs(xy(points).numpy() - yx(points).numpy()).max() < 1e-14
    harmonic = op.field(lambda p: ts.exp(p[:, 0]) * ts.sin(p[:, 1]))
    assert float(ts.max(ts.abs(op.laplacian(harmonic)(points)))) < 1e-8


def test_f034_f035_adjoints_and_the_graph_of_a_gradient():
    z = ts.tensor(RNG.normal(size=(2, 3)) + 1j * RNG.normal(size=(2, 3)))
    assert np.array_equal(ts.adjoint(ts.adjoint(z)).numpy(), z.numpy())

    @ts.function
    def f(x: ts.Tensor[N]):
        return ts.sin(x).sum()

    assert "cos(%x)" in f.grad_ir


def test_f006_the_prelude_s_mean_squared_error():
    space = {}
    exec("from tessera import *", space)
    assert abs(float(space["mse"](x, v)) - np.mean((X - V) ** 2)) < 1e-15
    assert np.allclose(ts.grad(ts.mse)(x, v).numpy(), 2 * (X - V) / X.size)


def test_f011_the_hessian_of_rosenbrocks_function():
    f = lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2
    a, b = 0.7, -0.4
    want = np.array([[2 - 400 * (b - 3 * a * a), -400 * a], [-400 * a, 200]])
    at = ts.tensor(np.array([a, b]))
    for h in (ts.jacfwd(ts.grad(f))(at).numpy(), ts.jacrev(ts.grad(f))(at).numpy()):
        assert np.allclose(h, want, rtol=1e-12) and np.allclose(h, h.T, rtol=1e-13)


def test_f013_per_example_gradients_as_the_chapter_writes_them():
    model = lambda p, x: ts.tanh(x @ p["w"]) + p["b"]
    params = {"w": ts.tensor(RNG.normal(size=(6,))), "b": ts.tensor(0.3, dtype=ts.f64)}
    xs, ys = ts.tensor(RNG.normal(size=(5, 6))), ts.tensor(RNG.normal(size=5))

    @ts.vmap(in_dims=0, out_dims=0)
    def per_example_grad(params, x, y):
        def loss(params, x, y):
            return ts.mse(model(params, x), y)
        return ts.grad(loss)(params, x, y)

    class Model(ts.nn.Module):
        def __init__(self):
            self.w, self.b = params["w"], params["b"]

        def forward(self, x):
            return ts.tanh(x @ self.w) + self.b

    by_dims = ts.vmap(lambda p, x, y: ts.grad(lambda p: ts.mse(model(p, x), y))(p), in_dims=(None, 0, 0))(params, xs, ys)
    m = Model()
    model_of = model
    model = lambda p, x: p(x)
    by_seed = per_example_grad(m, xs, ys)  # the parameters of a module are not mapped
    for i in range(5):
        one = ts.grad(lambda p, i=i: ts.mse(model_of(p, xs[i]), ys[i]))(params)
        for k in ("w", "b"):
            assert np.allclose(by_dims[k].numpy()[i], one[k].numpy(), rtol=1e-13)
            assert np.allclose(by_seed[k].numpy()[i], one[k].numpy(), rtol=1e-13)


def test_f024_the_minimum_of_rosenbrocks_function():
    found = ts.optimize(lambda p: (1 - p[0]) ** 2 + 100 * (p[1] - p[0] ** 2) ** 2, init=ts.tensor(np.array([-1.2, 1.0])))
    assert np.abs(found.numpy() - 1).max() < 1e-6
    q = np.diag([1.0, 5.0, 9.0])
    found = ts.optimize(lambda y: 0.5 * (y @ (ts.tensor(q) @ y)) - y.sum(), init=ts.zeros(3, dtype=ts.f64))
    assert np.allclose(found.numpy(), 1 / np.diag(q), atol=1e-9)


def test_f026_a_gradient_penalty_on_images():
    w = ts.tensor(RNG.normal(size=(2, 3, 3)))
    real, fake = (ts.tensor(RNG.normal(size=(3, 2, 3, 3))) for _ in range(2))
    alpha = ts.tensor(RNG.uniform(size=(3, 1, 1, 1)))

    def penalty(w, lambda_gp=10):
        discriminator = lambda images: ts.tanh((images * w).sum(dim=[1, 2, 3]))
        interpolated = alpha * real + (1 - alpha) * fake
        grad = ts.grad(discriminator, argnums=0)(interpolated)
        return lambda_gp * ((ts.norm(grad, dim=[1, 2, 3]) - 1) ** 2).mean()

    g = ts.grad(penalty)(w).numpy()
    for i in ((0, 0, 0), (1, 2, 1)):
        e = np.zeros((2, 3, 3))
        e[i] = 1e-6
        fd = (float(penalty(ts.tensor(w.numpy() + e))) - float(penalty(ts.tensor(w.numpy() - e)))) / 2e-6
        assert abs(g[i] - fd) < 1e-6


def test_f034_real_adjoints():
    a = ts.tensor(RNG.normal(size=(2, 3, 4)))
    z = ts.tensor(RNG.normal(size=(3, 2)) + 1j * RNG.normal(size=(3, 2)))
    assert np.array_equal(ts.adjoint(a).numpy(), np.swapaxes(a.numpy(), -1, -2))
    assert np.array_equal(ts.adjoint(z).numpy(), z.numpy().conj().T)


def test_f035_a_transform_and_its_inverse_are_rewritten():
    from tessera.compiler import GraphIR, GraphPass
    z = ts.tensor(RNG.normal(size=8) + 1j * RNG.normal(size=8))
    graph = ts.jit(lambda z: ts.ifft(ts.fft(z)) * 2).trace(z)
    names = [o.name for o in graph.body.ops]
    out = GraphPass().replace_pattern(GraphIR(graph), ["fft", "ifft"], lambda z: z)
    left = [o.name for o in out.function.body.ops]
    assert any("fft" in n for n in names) and not any("fft" in n for n in left)
    from tessera.ir.interpret_graph import interpret
    assert np.array_equal(interpret(out.function, [z.numpy()])[0], 2 * z.numpy())
