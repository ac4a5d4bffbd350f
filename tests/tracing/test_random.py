"""Random streams: reproducible, equal eagerly and compiled, explicit keys, distributions."""

import numpy as np
import pytest

import tessera as ts
from tessera import errors


def draws():
    return [ts.random.uniform((5,)), ts.randn(2, 3), ts.randint(-3, 9, (4,)), ts.random.bernoulli(0.25, (8,)),
            ts.random.permutation(6), ts.random.normal(3, mean=2.0, std=0.5), ts.dropout(ts.ones(6), 0.5)]


def test_same_seed_same_bits():
    ts.random.seed(7)
    a = draws()
    ts.random.seed(7)
    b = draws()
    c = draws()
    assert all(np.array_equal(x, y) for x, y in zip(a, b)) and not np.array_equal(b[0], c[0])


def test_eager_equals_traced_and_each_call_advances():
    f = ts.jit(draws)
    ts.random.seed(3)
    eager = [draws(), draws()]
    ts.random.seed(3)
    traced = [f(), f()]
    assert len(f.programs) == 1
    for one, other in zip(eager, traced):
        for x, y in zip(one, other, strict=True):
            assert np.array_equal(x, y)
    assert not np.array_equal(traced[0][0], traced[1][0])


def test_nested_functions_continue_the_numbering():
    inner = ts.jit(lambda: ts.random.uniform(3))
    f = ts.jit(lambda: (inner(), ts.random.uniform(3), inner()))
    ts.random.seed(1)
    a = f()
    ts.random.seed(1)
    assert all(np.array_equal(x, ts.random.uniform(3)) for x in a)


def test_loops_fold_in_the_iteration():
    f = ts.jit(lambda: ts.scan(lambda c, _: (c, ts.random.uniform(4)), ts.tensor(0), length=5)[1])
    rows = np.asarray(f())
    assert len({r.tobytes() for r in rows}) == 5
    g = ts.jit(lambda: ts.while_loop(lambda x, i: i < 3, lambda x, i: (x.to(ts.f32) * 2 + ts.random.uniform(2), i + 1),
                                     (ts.zeros(2), 0))[0])
    x = np.asarray(g())
    assert x.shape == (2,) and len(set(x.tolist())) == 2


def test_explicit_keys_are_pure():
    k = ts.random.key(5)
    assert np.array_equal(ts.random.uniform(4, key=k), ts.random.uniform(4, key=k))
    a, b = ts.random.split(k)
    assert not np.array_equal(ts.random.uniform(4, key=a), ts.random.uniform(4, key=b))
    assert np.array_equal(ts.random.fold_in(k, 3), ts.random.fold_in(5, 3))
    state = ts.random.get_state()
    ts.random.normal(3, key=9)
    assert ts.random.get_state() == state
    f = ts.jit(lambda k: ts.random.uniform(4, key=k))
    assert np.array_equal(f(k), ts.random.uniform(4, key=k)) and f.effects == frozenset()
    with pytest.raises(errors.DTypeError, match="not a key"):
        ts.random.uniform(3, key=ts.ones(2))


def test_state_can_be_saved():
    ts.random.seed(2)
    ts.random.uniform(3)
    state = ts.random.get_state()
    a = ts.random.uniform(3)
    ts.random.set_state(state)
    assert np.array_equal(a, ts.random.uniform(3))


def test_distributions():
    ts.random.seed(0)
    n = 100_000
    u = np.asarray(ts.random.uniform((n,)))
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 3 * np.sqrt(1 / 12 / n)
    z = np.asarray(ts.random.normal((n,)))
    assert abs(z.mean()) < 4 / np.sqrt(n) and abs(z.std() - 1) < 0.01
    b = np.asarray(ts.random.bernoulli(0.3, (n,)))
    assert b.dtype == bool and abs(b.mean() - 0.3) < 3 * np.sqrt(0.21 / n)
    i = np.asarray(ts.randint(5, 15, (n,)))
    assert i.dtype == np.int32 and i.min() == 5 and i.max() == 14 and abs(np.bincount(i)[5:] - n / 10).max() < 5 * np.sqrt(n / 10)
    assert sorted(ts.random.permutation(50).tolist()) == list(range(50))
    rows = ts.random.permutation(ts.tensor([[1, 1], [2, 2], [3, 3]]))
    assert sorted(rows.tolist()) == [[1, 1], [2, 2], [3, 3]]
    d = np.asarray(ts.dropout(ts.ones(1000), 0.25))
    assert set(np.unique(d)) == {0, np.float32(1) / np.float32(0.75)} and 150 < (d == 0).sum() < 350
    assert ts.randn(2, 3, dtype=ts.bf16).dtype is ts.bf16 and ts.randint(10, (3,)).shape == (3,)
    assert ts.dropout(ts.ones(3), 0.5, training=False).tolist() == [1, 1, 1] and ts.dropout(ts.ones(2), 1.0).tolist() == [0, 0]


@pytest.mark.parametrize("call, kind, text", [
    (lambda: ts.random.bernoulli(1.5, (3,)), errors.ArgumentError, "probability"),
    (lambda: ts.dropout(ts.ones(2), -1), errors.ArgumentError, "probability"),
    (lambda: ts.randint(5, 5, (3,)), errors.ShapeError, r"\[5, 5\)"),
    (lambda: ts.randint(0, 300, (3,), dtype=ts.int8), errors.DTypeError, "does not fit"),
    (lambda: ts.randint(0, 3, (3,), dtype=ts.f32), errors.DTypeError, "integers"),
    (lambda: ts.random.uniform((-1,)), errors.ShapeError, "negative"),
    (lambda: ts.random.uniform(3, dtyp=ts.f32), errors.ArgumentError, "did you mean 'dtype'"),
    (lambda: ts.random.uniform(3, dtype=ts.int8), errors.DTypeError, "int8"),
    (lambda: ts.random.seed(1.5), errors.ArgumentError, "integer"),
    (lambda: ts.random.permutation(ts.tensor(3)), errors.ShapeError, "scalar"),
])
def test_bad_arguments(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


def test_shapes_of_no_axes_and_dropping_everything():
    assert ts.random.uniform(shape=()).shape == () and ts.random.normal(size=()).shape == ()
    assert ts.dropout(ts.tensor([float("inf"), 1.0]), 1.0).tolist() == [0, 0]
