"""Rules of the user's own, stop_gradient, straight_through."""

import numpy as np
import pytest
from derivative_checks import check

import tessera as ts

X = np.linspace(-1, 1.2, 6)


@ts.custom_vjp
def sine(x):
    return ts.sin(x)


sine.defvjp(lambda x: (ts.sin(x), x), lambda x, g: g * ts.cos(x))


@ts.custom_jvp
def stable_div(x, y):
    return x / y


def _div_rule(primals, tangents):
    (x, y), (dx, dy) = primals, tangents
    return x / y, (dx * y - x * dy) / (y * y)


stable_div.defjvp(_div_rule)

PROGRAMS = {
    "vjp": lambda x: (sine(x) * x).sum(),
    "vjp under vmap": lambda x: (ts.vmap(sine)(x) * x).sum(),
    "jvp": lambda x: (stable_div(x, x * x + 1) * x).sum(),
    "jvp under vmap": lambda x: (ts.vmap(stable_div, in_dims=(0, None))(x, x[0] * x[0] + 1) * x).sum(),
    "in a scan": lambda x: ts.scan(lambda h, t: (sine(h * t) + stable_div(t, h * h + 1), None), x[0], x)[0],
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_against_central_differences(name):
    check(PROGRAMS[name], X)


def test_the_rule_is_used_and_may_differ_from_the_derivative():
    @ts.custom_vjp
    def relu(x):
        return ts.maximum(x, 0)

    seen = []

    def fwd(x):
        return ts.maximum(x, 0), x > 0

    def bwd(mask, g):
        seen.append(mask.dtype)
        return g * mask * 10

    relu.defvjp(fwd, bwd)
    x = ts.tensor([-1.0, 2.0])
    assert ts.grad(lambda x: relu(x).sum())(x).tolist() == [0.0, 10.0] and seen == [ts.bool_]
    assert ts.jit(ts.grad(lambda x: relu(x).sum()))(x).tolist() == [0.0, 10.0]
    assert ts.vmap(ts.grad(relu))(x).tolist() == [0.0, 10.0]
    assert ts.grad(lambda x: ts.vmap(relu)(x).sum())(x).tolist() == [0.0, 10.0]
    assert relu(x).tolist() == [0.0, 2.0]


def test_what_all_examples_share_gets_the_sum():
    @ts.custom_vjp
    def product(x, w):
        return x * w

    product.defvjp(lambda x, w: (x * w, (x, w)), lambda r, g: (g * r[1], g * r[0]))
    x, w = ts.tensor([1.0, 2.0, 3.0]), ts.tensor(4.0)
    gx, gw = ts.grad(lambda x, w: ts.vmap(product, in_dims=(0, None))(x, w).sum(), (0, 1))(x, w)
    assert gx.tolist() == [4.0] * 3 and float(gw) == 6.0


def test_a_missing_rule_raises_on_grad_and_not_on_call():
    @ts.custom_vjp
    def f(x):
        return x * 2

    @ts.custom_jvp
    def h(x):
        return x * 2

    for g in (f, h):
        assert float(g(ts.tensor(1.0))) == float(ts.jit(g)(1.0)) == 2.0
        with pytest.raises(ts.errors.DerivativeError, match="without a rule"):
            ts.grad(lambda x, g=g: g(x))(1.0)


def test_errors_of_rules():
    @ts.custom_vjp
    def f(x, y):
        return x * y

    f.defvjp(lambda x, y: (x * y, None), lambda r, g: g)
    with pytest.raises(ts.errors.DerivativeError, match="a cotangent for each argument"):
        ts.grad(lambda x: f(x, x))(1.0)
    f.defvjp(lambda x, y: x * y, lambda r, g: (g, g))
    with pytest.raises(ts.errors.DerivativeError, match="must return \\(result, residuals\\)"):
        ts.grad(lambda x: f(x, x))(1.0)
    f.defvjp(lambda x, y: (x[None], None), lambda r, g: (g, g))
    with pytest.raises(ts.errors.DerivativeError, match="another result than the function"):
        ts.grad(lambda x: f(x, x))(1.0)
    with pytest.raises(ts.errors.ArgumentError, match="two functions"):
        f.defvjp(1, 2)


def test_stop_gradient_and_straight_through():
    x = ts.tensor(X)
    assert np.array_equal(ts.grad(lambda x: (ts.stop_gradient(x) * x).sum())(x).numpy(), X)
    assert ts.grad(lambda x: ts.straight_through(ts.round)(x).sum())(x).tolist() == [1.0] * 6
    y, back = ts.vjp(lambda x: ts.stop_gradient(ts.exp(x)), x)
    assert np.allclose(y.numpy(), np.exp(X)) and back(y)[0].tolist() == [0.0] * 6


def test_a_kernel_with_and_without_a_rule():
    @ts.kernel
    def double(A: ts.Tile["N", ts.f32], B: ts.Tile["N", ts.f32]):  # noqa: F821
        ts.tile.store(B, A + A)

    f = lambda x: (double(x, ts.zeros_like(x)) * x).sum()
    x = ts.tensor([1.0, 2.0, 3.0])
    with pytest.raises(ts.errors.DerivativeError, match="the kernel 'double' has no derivative rule") as e:
        ts.grad(f)(x)
    assert "kernel.defvjp(fwd, bwd)" in str(e.value)
    double.defvjp(lambda a, b: (a + a, None), lambda residuals, g: (2 * g, None))
    assert ts.grad(f)(x).tolist() == [4.0, 8.0, 12.0] and float(f(x)) == 28.0


def test_a_missing_rule_names_the_op_and_the_line():
    from tessera.ops.table import OPS, primitive
    from tessera.tracing.recorder import bind

    if "no_rule" not in OPS:
        primitive("no_rule", family="movement", infer=lambda types, attrs: types, reference=lambda x: x.copy(), dtypes=(ts.f32,),
                  element=lambda e, op, index, r: e.operand(0, index), doc="A test's op without a rule.")
    try:
        f = lambda x: bind("no_rule", x).sum()
        for way in (lambda: ts.grad(f)(ts.ones(2)), lambda: ts.jvp(f, (ts.ones(2),), (ts.ones(2),))):
            with pytest.raises(ts.errors.DerivativeError, match="'no_rule' has no derivative rule") as e:
                way()
            assert 'f = lambda x: bind("no_rule", x).sum()' in str(e.value) and "@ts.custom_vjp" in str(e.value)
    finally:
        del OPS["no_rule"]


def test_a_side_effect_that_leaks_a_value_is_an_error_where_it_is_used():
    kept = []

    def f(x):
        kept.append(x * 2)
        return x.sum()

    ts.grad(f)(ts.ones(2))
    with pytest.raises(ts.errors.TracingError) as e:
        kept[0] + 1
    assert "kept[0] + 1" in str(e.value)
    with pytest.raises(ts.errors.TracingError, match="used outside the function that made it"):
        ts.grad(lambda x: (x * kept[0]).sum())(ts.ones(2))
