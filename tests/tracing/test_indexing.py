"""Indexing and assignment by NumPy's rules, eager and traced."""
# ruff: noqa: F821  (sizes in annotations)

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import tessera as ts
from tessera import errors

I = np.array([2, 0, 1])
J = np.array([[0, 3], [1, -1]])
READS = {
    "integer": np.s_[1],
    "negative": np.s_[-1],
    "slice": np.s_[1:],
    "empty slice": np.s_[2:1],
    "beyond": np.s_[0:99],
    "step": np.s_[::2],
    "negative step": np.s_[::-1],
    "negative step with bounds": np.s_[2:0:-1, 3::-2],
    "two": np.s_[1, 2],
    "ellipsis": np.s_[..., 0],
    "none": np.s_[None, :, None],
    "all": np.s_[()],
    "mixed": np.s_[0, ..., None, ::-1],
    "integers": np.s_[I],
    "list": np.s_[[0, 2]],
    "second axis": np.s_[:, J],
    "points": np.s_[I, np.array([0, 1, 2])],
    "broadcast points": np.s_[I[:, None], np.array([0, 3])],
    "apart": np.s_[I, :, np.array([0, 1, 1])],
    "integer beside tensor": np.s_[0, :, np.array([0, 1])],
    "neighbours at the end": np.s_[:, np.array([0, 1]), np.array([1, 0])],
    "slice and tensor": np.s_[1:, I[:2], ::-1],
    "none and tensor": np.s_[None, I, ..., 0],
}


def array():
    return np.arange(24, dtype=np.float32).reshape(3, 4, 2)


def key(index):
    """The same index with tensors for arrays."""
    one = lambda i: ts.tensor(i) if isinstance(i, np.ndarray) else i
    return tuple(one(i) for i in index) if isinstance(index, tuple) else one(index)


@pytest.mark.parametrize("index", READS.values(), ids=READS)
def test_reading(index):
    a = array()
    want = a[index]
    for got in (ts.tensor(a)[index], ts.tensor(a)[key(index)], ts.jit(lambda x: x[key(index)])(ts.tensor(a))):
        assert got.shape == want.shape and np.array_equal(got, want)


@pytest.mark.parametrize("index", READS.values(), ids=READS)
def test_writing(index):
    a = array()
    value = np.arange(a[index].size, dtype=np.float32).reshape(a[index].shape) + 100

    def write(x, v):
        y = x.clone()
        y[key(index)] = v
        return y

    for v in (value, np.float32(7)):
        want = a.copy()
        want[index] = v
        assert np.array_equal(write(ts.tensor(a), ts.tensor(v)), want)
        assert np.array_equal(ts.jit(write)(ts.tensor(a), ts.tensor(v)), want)


slices = st.builds(slice, st.none() | st.integers(-6, 6), st.none() | st.integers(-6, 6),
                   st.none() | st.integers(-3, 3).filter(bool))
items = st.lists(st.one_of(slices, st.integers(-3, 2), st.none()), max_size=3).map(tuple)


@settings(max_examples=60, deadline=None)
@given(items)
def test_basic_indices_agree_with_numpy(index):
    a = np.arange(27, dtype=np.int64).reshape(3, 3, 3)
    want = a[index]
    got = ts.jit(lambda x: x[index])(ts.tensor(a))
    assert got.shape == want.shape and np.array_equal(got, want)
    assert np.array_equal(ts.tensor(a)[index], want)


def test_boolean_masks():
    a = array()
    x = ts.tensor(a)
    assert np.array_equal(x[x > 5], a[a > 5]) and np.array_equal(x[ts.tensor([True, False, True])], a[[0, 2]])
    x[x > 5] = 0
    assert np.array_equal(x, np.where(a > 5, 0, a))
    y = ts.jit(lambda x: _masked(x))(ts.tensor(a))
    assert np.array_equal(y, np.where(a > 5, -1, a))


@pytest.mark.parametrize("mask", [True, False, np.True_])
def test_a_single_truth_value_is_a_mask(mask):
    def write(x):
        x = x.clone()
        x[mask] = 7.0
        return x

    a = np.arange(6.0).reshape(2, 3)
    want = np.full_like(a, 7.0) if mask else a
    np.testing.assert_array_equal(np.asarray(write(ts.tensor(a))), want)
    np.testing.assert_array_equal(np.asarray(ts.jit(write)(ts.tensor(a))), want)


def test_an_empty_list_selects_nothing():
    x = ts.tensor(np.arange(6.0).reshape(2, 3))
    assert ts.jit(lambda x: x[[]])(x).shape == x[[]].shape == (0, 3)
    assert ts.jit(lambda x: x[:, []])(x).shape == x[:, []].shape == (2, 0)


def _masked(x):
    x[x > 5] = -1
    return x


@pytest.mark.parametrize("body", [lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: ts.unique(x), lambda x: x.masked_select(x > 0)])
def test_traced_masks_name_the_way_out(body):
    with pytest.raises(errors.TracingError) as e:
        ts.jit(body)(ts.ones(3))
    assert "where" in str(e.value) and "size=" in str(e.value) and "fill_value=" in str(e.value)


def test_sized_forms_under_trace(rng):
    a = (rng.normal(size=(5, 3)) > 0.3).astype(np.float32)
    x = ts.tensor(a)
    got = ts.jit(lambda x: ts.nonzero(x, size=20, fill_value=-1))(x)
    for g, w in zip(got, np.nonzero(a)):
        assert g.tolist() == [*w, *[-1] * (20 - len(w))]
    v = ts.tensor([3, 1, 3, 2, 1])
    assert ts.jit(lambda v: ts.unique(v, size=4, fill_value=9))(v).tolist() == [1, 2, 3, 9]
    assert ts.jit(lambda v: v.masked_select(v > 1, size=4, fill_value=0))(v).tolist() == [3, 3, 2, 0]


@pytest.mark.parametrize("traced", [False, True])
@pytest.mark.parametrize("index, text", [
    (np.s_[3], "index 3 is out of bounds for axis 0 with size 3"),
    (np.s_[0, -5], "index -5 is out of bounds for axis 1 with size 4"),
    (np.s_[0, 0, 0, 0], "too many indices"),
])
def test_indices_out_of_range(traced, index, text):
    read = lambda x: x[index]
    with pytest.raises(IndexError, match=text) as e:
        (ts.jit(read) if traced else read)(ts.tensor(array()))
    assert "f32[3, 4, 2]" in str(e.value)


def test_bad_indices():
    x = ts.ones(3)
    for bad in (1.5, "a", ts.ones(2), [0.5], {}):
        with pytest.raises(errors.DTypeError, match="not an index"):
            x[bad]
        with pytest.raises(errors.DTypeError, match="not an index"):
            ts.jit(lambda x: x[bad])(x)  # noqa: B023
    with pytest.raises(errors.TracingError, match="dynamic_slice"):
        ts.jit(lambda x, n: x[:n])(x, ts.tensor(2))


# -- values, not references ----------------------------------------------------------------------------------------------
def test_assignment_never_reaches_other_tensors():
    x = ts.zeros(4)
    view, same, column = x[1:], x.reshape(2, 2), x.reshape(2, 2).T[0]
    x[1] = 5
    assert view.tolist() == [0, 0, 0] and same.tolist() == [[0, 0], [0, 0]] and column.tolist() == [0, 0]
    view[0] = 7
    assert x.tolist() == [0, 5, 0, 0] and view.tolist() == [7, 0, 0]


def test_assignment_never_reaches_borrowed_memory():
    a = np.zeros(3, np.float32)
    t = ts.from_numpy(a)
    t[0] = 1
    assert a.tolist() == [0, 0, 0] and t.tolist() == [1, 0, 0]
    seen = np.asarray(t)
    t[1] = 2
    assert seen.tolist() == [1, 0, 0] and t.tolist() == [1, 2, 0]


def test_unshared_memory_is_written_in_place():
    x = ts.zeros(1000)
    x[0] = 1
    address = x._p.__array_interface__["data"][0]
    for i in range(5):
        x[i] = i
    assert x._p.__array_interface__["data"][0] == address


def test_in_place_operators_rebind():
    x = ts.ones(2)
    y = x
    x += 1
    assert x.tolist() == [2, 2] and y.tolist() == [1, 1]

    @ts.jit
    def f(x):
        x += 1
        x[0] *= 10
        return x

    z = ts.ones(2)
    assert f(z).tolist() == [20, 2] and z.tolist() == [1, 1]


def test_values_are_not_narrowed():
    x = ts.zeros(2)
    with pytest.raises(errors.DTypeError, match="Cannot implicitly convert from f64 to f32"):
        x[0] = ts.tensor(np.float64(1))
    with pytest.raises(errors.DTypeError, match="does not fit"):
        ts.tensor([1, 2])[0] = 1.5
    with pytest.raises(errors.DTypeError, match="does not fit"):
        ts.zeros(2, dtype=ts.int8)[0] = 1000
    x[0] = ts.tensor(1.0, dtype=ts.f16)
    assert x.tolist() == [1, 0]
    with pytest.raises(errors.ShapeError, match=r"Cannot write a value of shape \[3\] into \[2\]"):
        x[:] = ts.ones(3)


def test_captured_tensors_cannot_be_assigned():
    w = ts.zeros(2)

    @ts.jit
    def f(x):
        w[0] = 1
        return x

    with pytest.raises(errors.TracingError, match="outside the traced function"):
        f(ts.ones(2))
    assert w.tolist() == [0, 0]


def test_symbolic_sizes():
    @ts.function
    def f(x: ts.Tensor["B", "S"]):
        _B, S = x.shape
        return x[:, -1], x[:, 1:], x[:, ::-1], x[:1], x[..., None, :], x[:, : S // 2]

    for shape in [(2, 4), (3, 7), (1, 2)]:
        a = np.arange(shape[0] * shape[1], dtype=np.float32).reshape(shape)
        want = a[:, -1], a[:, 1:], a[:, ::-1], a[:1], a[..., None, :], a[:, : shape[1] // 2]
        for g, w in zip(f(ts.tensor(a)), want):
            assert np.array_equal(g, w) and g.shape == w.shape
    assert len(f.programs) == 1


@pytest.mark.parametrize("ahead", [False, True], ids=["called", "traced first"])
@pytest.mark.parametrize("n", [1, 3, 5, 20])
def test_bounds_of_symbolic_sizes(n, ahead):
    """As NumPy cuts slices; nothing outside the axis is ever read."""
    cases = [lambda x: x[:10], lambda x: x[2:], lambda x: x[-4:], lambda x: x[:-3], lambda x: x[1:4], lambda x: x[-5:3]]
    values = np.arange(n, dtype=np.float32)
    for body in cases:
        def f(x: ts.Tensor["S", ts.f32], body=body):
            return body(x)

        g = ts.function(f)
        if ahead:
            g.trace()
        assert g(ts.tensor(values)).tolist() == body(values).tolist()


@pytest.mark.parametrize("body, least", [
    (lambda x: x[5], 6), (lambda x: x[-5], 5), (lambda x: ts.topk(x, 7)[0], 7), (lambda x: ts.dynamic_slice(x, (2,), (4,)), 6),
    (lambda x: ts.dynamic_update_slice(x, ts.ones(3), (4,)), 7), (lambda x: ts.pad(x, (-5, 0)), 5),
    (lambda x: ts.zeros((x.shape[0] - 5,)).sum() + x, 5), (lambda x: ts.arange(x.shape[0] - 5), 5),
])
def test_what_must_lie_inside_a_symbolic_size_is_checked(body, least):
    def f(x: ts.Tensor["S", ts.f32]):
        return body(x)

    g = ts.function(f)
    g(ts.arange(least).to(ts.f32))
    with pytest.raises(errors.ConstraintError, match="does not hold"):
        g(ts.arange(least - 1).to(ts.f32))
