"""What hostile users of derivatives do: orders of transformations, structures with holes, no elements, constants."""

import itertools

import numpy as np
import pytest

import tessera as ts

X = np.random.default_rng(0).normal(size=3)


def scalar(f):
    return lambda x: f(x).sum()


WRAPS = {"grad": lambda f: ts.grad(scalar(f)), "value_and_grad": lambda f: lambda x: ts.value_and_grad(scalar(f))(x)[1],
         "jacfwd": ts.jacfwd, "jacrev": ts.jacrev, "checkpoint": ts.checkpoint, "jit": ts.jit, "vmap": ts.vmap}


@pytest.mark.parametrize("order", list(itertools.product(WRAPS, repeat=2)), ids=" ".join)
def test_transformations_of_a_gradient_in_any_order(order):
    """Of a sum over elements all derivatives are diagonal, so that every order reduces to a power of d/dx, elementwise."""
    f = lambda x: ts.sin(x) * ts.exp(x)  # the nth derivative is 2**(n/2) exp(x) sin(x + n pi/4)
    g = ts.grad(scalar(f))
    depth = 1
    batched = "vmap" in order
    for name in order:
        g = WRAPS[name](g)
        depth += name not in ("checkpoint", "jit", "vmap")
    x = ts.tensor(X)
    for _ in range(order.count("vmap")):
        x = ts.stack([x, 2 * x])
    got = g(x).numpy()
    want = 2 ** (depth / 2) * np.exp(x.numpy()) * np.sin(x.numpy() + depth * np.pi / 4)
    if batched:  # the axes of Jacobians stand where the batch puts them
        assert abs(got.sum() - want.sum()) < 1e-9 * abs(want).sum()
    else:
        axes = got.ndim - 1
        assert np.allclose(got.sum(tuple(range(axes))), want, rtol=1e-10) and abs(got.sum() - want.sum()) < 1e-9 * abs(want).sum()


def test_values_that_a_full_sum_and_a_later_kernel_read():
    """A row vector under a sum over both axes is met more often than once: the kernel of the sum cannot store it."""
    h = ts.jacfwd(ts.grad(lambda x: (ts.sin(x) * ts.exp(x)).sum()))
    x = ts.tensor(X)
    by_value = ts.value_and_grad(lambda x: h(x).sum())(x)[1]
    assert np.allclose(by_value.numpy(), ts.grad(lambda x: h(x).sum())(x).numpy(), rtol=1e-12)
    assert np.allclose(by_value.numpy(), 2 * np.exp(X) * (np.cos(X) - np.sin(X)), rtol=1e-12)


@pytest.mark.parametrize("f", [lambda x: ts.softmax(x, -1).sum(), lambda x: ts.max(x, 1).sum(), lambda x: ts.cumsum(x, 0).sum(),
                               lambda x: (x.T @ x).sum(), lambda x: ts.sort(x, 0).sum()])
def test_no_elements(f):
    z = ts.zeros(0, 3, dtype=ts.f64)
    assert float(ts.jit(f)(z)) == 0 and ts.grad(f)(z).shape == (0, 3) and float(ts.jvp(f, (z,), (z,))[1]) == 0
    assert ts.hessian(f)(z).shape == (0, 3, 0, 3) and ts.vmap(ts.grad(lambda r: f(r[None])))(z).shape == (0, 3)


def test_none_stands_for_a_zero_tangent_or_cotangent():
    x, i = ts.tensor(X), ts.tensor(np.array([2, 0, 1]))
    f = lambda x, i, p: (x[i] * p["k"]).sum()
    y, t = ts.jvp(f, (x, i, {"k": x, "n": None}), (x, None, {"k": None, "n": None}))
    assert float(t) == float(y)
    (total, _), pull = ts.vjp(lambda x: (x.sum(), ts.argmax(x)), x)
    assert pull((ts.ones((), dtype=ts.f64), None))[0].tolist() == [1, 1, 1] and float(total) == X.sum()
    _, pull = ts.vjp(lambda x: (x.sum(), 2 * x), x)
    assert pull((None, x))[0].tolist() == (2 * X).tolist() and pull((None, None))[0].tolist() == [0, 0, 0]
    with pytest.raises(ts.errors.DerivativeError, match="structure of primals"):
        ts.jvp(lambda x, y: x, (x, x), (x, (x, x)))
    with pytest.raises(ts.errors.DerivativeError, match="the result's structure"):
        pull((x,))


def test_the_gradient_of_a_number_is_zero():
    assert float(ts.grad(lambda x: 3.0)(2.0)) == 0 and ts.grad(lambda x: 1.5)(ts.tensor(X)).tolist() == [0, 0, 0]
    with pytest.raises(ts.errors.DerivativeError, match="returns int64"):
        ts.grad(lambda x: 3)(2.0)


def test_powers_by_both_arguments_where_the_exponent_is_zero():
    f = lambda a, b: (a ** b).sum()
    (aa, ab), (ba, bb) = ts.hessian(f, argnums=(0, 1))(ts.tensor(np.array([2.0])), ts.tensor(np.array([0.0])))
    assert float(aa.sum()) == 0 and float(ab.sum()) == 0.5 == float(ba.sum()) and abs(float(bb.sum()) - np.log(2) ** 2) < 1e-12
    assert ts.grad(f)(ts.tensor(np.zeros(1)), ts.tensor(np.zeros(1))).tolist() == [0]


def test_numbers_of_a_named_dtype_are_rounded_once():
    """A gradient's error in f64 must not be that of a constant that went through f32."""
    made = [ts.tensor(0.3, dtype=ts.f64), ts.jit(lambda: ts.tensor(0.3, dtype=ts.f64))(), ts.tensor([[0.3]], dtype=ts.f64)[0, 0],
            ts.asarray(0.3, dtype=ts.f64), ts.grad(lambda x: (x * ts.tensor(0.3, dtype=ts.f64)).sum())(ts.ones(1, dtype=ts.f64))[0]]
    assert [float(t) for t in made] == [0.3] * 5
    assert complex(ts.tensor(0.1 + 0.2j, dtype=ts.c128).numpy()) == 0.1 + 0.2j
    assert ts.tensor(0.3).dtype is ts.f32 and ts.tensor([1, 2], dtype=ts.int8).dtype is ts.int8
    assert ts.tensor(1 + 2.0 ** -9, dtype=ts.bf16).tolist() == ts.tensor(1 + 2.0 ** -9).to(ts.bf16).tolist()


@pytest.mark.parametrize("way", [lambda f: ts.grad(f), lambda f: ts.vmap(f), lambda f: ts.jit(ts.checkpoint(f)), ts.hessian,
                                 lambda f: lambda x: ts.jvp(f, (x,), (x,)), lambda f: lambda x: ts.vjp(f, x)])
def test_a_message_inside_a_transformed_function_is_refused_not_lost(way):
    def f(x):
        y = x.sum()
        ts.log("inside", y)
        return y

    with pytest.raises(ts.errors.TracingError, match="log\\(\\) inside a function that grad") as e:
        way(f)(ts.ones(2, 3))
    assert 'ts.log("inside", y)' in str(e.value) and "has_aux=True" in str(e.value)
