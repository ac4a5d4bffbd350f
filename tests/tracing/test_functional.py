"""Composition, optional values, memoisation."""

import pytest

import tessera as ts
from tessera import errors
from tessera.functional import compose, curry, pipe


def test_composition_order_and_tracing():
    double, inc = lambda x: x * 2, lambda x: x + 1
    x = ts.ones(2)
    assert compose(double, inc)(x).tolist() == [4, 4] and pipe(double, inc)(x).tolist() == [3, 3]
    f = ts.jit(compose(double, inc))
    assert f(x).tolist() == [4, 4] and len(f.programs) == 1 and pipe()(x) is x
    assert curry(ts.softmax, axis=0)(x).tolist() == [0.5, 0.5]
    with pytest.raises(errors.ArgumentError, match="takes functions"):
        compose(double, 3)


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
    assert f(ts.ones(3)) is a and len(calls) == 1
    x = ts.ones(3)
    x[0] = 5
    assert f(x).tolist() == [5, 1, 1] and f(ts.ones(3, dtype=ts.f64)).dtype is ts.f64 and len(calls) == 3
    f(ts.ones(3))
    assert len(calls) == 4 and f.cache_info()["size"] == 2  # the least recently used was dropped
    f.cache_clear()
    assert f.cache_info()["size"] == 0
