"""Composition, optional values, memoisation."""

import numpy as np
import pytest

import tessera as ts
from tessera import errors
from tessera.functional import compose, curry, normalize, pipe, scale


def test_composition_order_and_tracing():
    double, inc = lambda x: x * 2, lambda x: x + 1
    x = ts.ones(2)
    assert compose(double, inc)(x).tolist() == [4, 4] and pipe(double, inc)(x).tolist() == [3, 3]
    f = ts.jit(compose(double, inc))
    assert f(x).tolist() == [4, 4] and len(f.programs) == 1 and pipe()(x) is x
    assert curry(ts.softmax, axis=0)(x).tolist() == [0.5, 0.5]
    with pytest.raises(errors.ArgumentError, match="takes functions"):
        compose(double, 3)


def test_constructors_of_operators():
    x = ts.randn(4, 8)
    f = compose(scale(factor=2.0), normalize(method="layer"))
    np.testing.assert_array_equal(f(x).numpy(), scale(2.0)(normalize(x)).numpy())
    jitted = ts.jit(f)
    np.testing.assert_allclose(jitted(x).numpy(), f(x).numpy(), rtol=1e-6)
    assert len(jitted.programs) == 1
    np.testing.assert_allclose(normalize(method="batch")(x).numpy().mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(normalize(method="rms")(x).numpy(), ts.rms_norm(x, eps=1e-5).numpy(), rtol=1e-6)
    with pytest.raises(errors.ArgumentError, match="did you mean 'layer'"):
        normalize(method="layers")


def test_pipelines_mix_host_and_device_stages():
    order = []
    stage = lambda name: lambda v: (order.append(name), v)[1]
    run = pipe(lambda path: [1.0, 2.0, float(len(path))], stage("loaded"), ts.tensor, stage("moved"), ts.jit(pipe(scale(3.0), ts.exp)))
    np.testing.assert_allclose(run("abc").numpy(), np.exp([3, 6, 9]), rtol=1e-5)
    assert order == ["loaded", "moved"]
    fused = ts.jit(pipe(scale(3.0), ts.exp, scale(0.5), ts.tanh))
    fused(ts.ones(1000))
    assert [op.name for op in fused.programs[0].graph.body.ops if op.name in ("mul", "exp", "tanh")] == ["mul", "exp", "mul", "tanh"]


def test_curry_shows_what_remains():
    import inspect

    def attend(q, k, v, dim, heads=1):
        return ts.attention(q.reshape(heads, -1, dim), k.reshape(heads, -1, dim), v.reshape(heads, -1, dim))

    short = curry(attend, dim=8, heads=2)
    free = [p for p in inspect.signature(short).parameters.values() if p.default is p.empty]
    assert [p.name for p in free] == ["q", "k", "v"]
    with pytest.raises(errors.ArgumentError, match="did you mean 'heads'"):
        curry(attend, head=2)
    with pytest.raises(errors.ArgumentError, match="too many positional"):
        curry(attend, 1, 2, 3, 4, 5, 6)
    q = ts.randn(6, 16)
    assert short(q, q, q).shape == (2, 6, 8) and ts.jit(short)(q, q, q).shape == (2, 6, 8)


def test_callables_are_static_arguments():
    """Another condition is another program; the same one hits the cache."""
    traces = []

    @ts.jit
    def refine(x, keep_going, limit: int = 100):
        traces.append(1)
        return ts.while_loop(cond=lambda x, i: ts.logical_and(keep_going(x), i < limit), body=lambda x, i: (x * 0.5, i + 1), init=(x, 0))[0]

    small, smaller = (lambda x: x.max() > 0.1), (lambda x: x.max() > 0.01)
    x = ts.tensor([1.0, 0.3])
    assert refine(x, small).numpy()[0] == 0.0625 and refine(x, small).numpy()[0] == 0.0625 and len(traces) == 1
    assert refine(x, smaller).numpy()[0] == 0.0078125 and len(traces) == 2


def test_while_loop_marks_a_routine():
    @ts.while_loop
    def iterative_refinement(x, condition, max_iters=100):
        @ts.jit
        def body(x, i):
            return x / 2, i + 1

        return ts.while_loop(cond=lambda x, i: condition(x) and i < max_iters, body=body, init=(x, 0))[0]

    assert float(iterative_refinement(ts.tensor(1.0), lambda x: x > 0.2)) == 0.125
    assert float(iterative_refinement(ts.tensor(1.0), lambda x: x > 0.0, max_iters=2)) == 0.25


def test_maybe():
    @ts.maybe
    def safe_divide(x, y):
        if (y == 0).any():
            return ts.Nothing()
        return ts.Just(x / y)

    ok = safe_divide(ts.ones(2), ts.tensor([1.0, 2.0])).map(lambda z: z + 1).unwrap_or(None)
    assert ok.tolist() == [2, 1.5]
    assert safe_divide(ts.ones(2), ts.zeros(2)).map(lambda z: z + 1).unwrap_or("default") == "default"
    assert ts.maybe(lambda: 1 // 0)() == ts.Nothing() and ts.maybe(lambda: 5)() == ts.Just(5)
    assert isinstance(ts.Just(1), ts.Maybe) and ts.Just(ts.ones(2)) == ts.Just(ts.ones(2)) and ts.Just(1) != ts.Just(2)
    with pytest.raises(errors.ShapeError):
        ts.maybe(lambda: ts.ones(2) + ts.ones(3))()
    assert ts.Just(2).and_then(lambda v: ts.Nothing()) == ts.Nothing()


def test_memoize_by_content():
    calls = []

    @ts.memoize(maxsize=2, typed=True)
    def f(x, k=1):
        calls.append(1)
        return x * k

    a = f(ts.ones(3))
    again = f(ts.ones(3))
    assert again.tolist() == a.tolist() and len(calls) == 1
    a[0] = 7  # writing into a result changes that tensor alone
    assert again.tolist() == f(ts.ones(3)).tolist() == [1, 1, 1] and len(calls) == 1
    x = ts.ones(3)
    x[0] = 5
    assert f(x).tolist() == [5, 1, 1] and f(ts.ones(3, dtype=ts.f64)).dtype is ts.f64 and len(calls) == 3
    f(ts.ones(3))
    assert len(calls) == 4 and f.cache_info()["size"] == 2  # the least recently used was dropped
    f.cache_clear()
    assert f.cache_info()["size"] == 0
