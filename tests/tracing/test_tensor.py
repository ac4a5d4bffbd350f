"""Concrete tensors: creation, conversion, printing, exchange with other libraries."""

import copy
import pickle
import re

import ml_dtypes
import numpy as np
import pytest

import tessera as ts
from tessera import errors
from tessera.types import dtypes as dt


@pytest.mark.parametrize("make, shape, dtype", [
    (lambda: ts.zeros(3), (3,), ts.f32),
    (lambda: ts.zeros(2, 3), (2, 3), ts.f32),
    (lambda: ts.zeros((2, 3)), (2, 3), ts.f32),
    (lambda: ts.zeros([2, 3], dtype=ts.bf16), (2, 3), ts.bf16),
    (lambda: ts.zeros(), (), ts.f32),
    (lambda: ts.ones(2, 0, 3), (2, 0, 3), ts.f32),
    (lambda: ts.ones(shape=(4,)), (4,), ts.f32),
    (lambda: ts.empty((2, 2), dtype="int8"), (2, 2), ts.int8),
    (lambda: ts.full((2,), 7), (2,), ts.int64),
    (lambda: ts.full(3, 7.5), (3,), ts.f32),
    (lambda: ts.full((2,), True), (2,), ts.bool_),
    (lambda: ts.arange(5), (5,), ts.int64),
    (lambda: ts.arange(1, 2, 0.25), (4,), ts.f32),
    (lambda: ts.linspace(0, 1, 5), (5,), ts.f32),
    (lambda: ts.eye(3), (3, 3), ts.f32),
    (lambda: ts.tensor([[1, 2], [3, 4]]), (2, 2), ts.int64),
    (lambda: ts.tensor(1.5), (), ts.f32),
    (lambda: ts.tensor(np.float64(1.5)), (), ts.f64),
    (lambda: ts.tensor(np.ones(3, np.float16)), (3,), ts.f16),
    (lambda: ts.tensor([]), (0,), ts.f32),
    (lambda: ts.tensor(1 + 2j), (), ts.complex64),
    (lambda: ts.Tensor([1.0]), (1,), ts.f32),
    (lambda: ts.tensor([1, 2], dtype=ts.fp8_e4m3), (2,), ts.fp8_e4m3),
])
def test_creation_gives_shape_and_default_dtype(make, shape, dtype):
    t = make()
    assert t.shape == shape and t.dtype is dtype and t.ndim == len(shape)
    assert t.size == int(np.prod(shape)) and t.nbytes == t.size * dtype.itemsize


def test_creation_values():
    assert ts.arange(2, 8, 2).tolist() == [2, 4, 6]
    assert ts.arange(5, 0, -2).tolist() == [5, 3, 1]
    assert ts.arange(3, 3).tolist() == []
    assert ts.linspace(0, 1, 3).tolist() == [0, 0.5, 1]
    assert ts.eye(2, 3, 1).tolist() == [[0, 1, 0], [0, 0, 1]]
    assert ts.full((2,), 2.5, dtype=ts.bf16).tolist() == [2.5, 2.5]
    a, b = ts.meshgrid(ts.arange(2), ts.arange(3), indexing="ij")
    assert a.tolist() == [[0, 0, 0], [1, 1, 1]] and b.tolist() == [[0, 1, 2], [0, 1, 2]]
    xs, ys = ts.meshgrid(ts.arange(2), ts.arange(3))
    want = np.meshgrid(np.arange(2), np.arange(3))
    assert np.array_equal(xs, want[0]) and np.array_equal(ys, want[1])
    x = ts.ones(2, 2, dtype=ts.f64)
    assert ts.zeros_like(x).dtype is ts.f64 and ts.full_like(x, 3).tolist() == [[3, 3], [3, 3]]
    assert ts.ones_like(x, dtype=ts.int32).dtype is ts.int32 and ts.empty_like(x).shape == (2, 2)


def test_conversion_to_small_integers_saturates():
    assert ts.tensor([1e9, -1e9, float("nan"), 3.7], dtype=ts.int8).tolist() == [127, -128, 0, 3]
    assert ts.tensor([1e30, -1e30], dtype=ts.int64).tolist() == [2**63 - 1, -2**63]


def test_numpy_shares_memory_both_ways():
    a = np.arange(6, dtype=np.float32)
    t = ts.from_numpy(a)
    assert np.shares_memory(np.asarray(t), a)
    assert t.numpy().__array_interface__["data"][0] == a.__array_interface__["data"][0]
    assert not np.asarray(t).flags.writeable
    assert not np.shares_memory(np.asarray(ts.tensor(a)), a)
    assert np.asarray(t, np.float64).dtype == np.float64
    assert not np.shares_memory(np.array(t), a)


def test_byte_order_is_normalised():
    t = ts.from_numpy(np.array([1.0, 2.0], ">f4"))
    assert t.dtype is ts.f32 and t.tolist() == [1, 2]


def test_bf16_is_an_ml_dtypes_array():
    t = ts.tensor([1.0, 2.0], dtype=ts.bf16)
    assert np.asarray(t).dtype == ml_dtypes.bfloat16
    assert ts.from_numpy(np.ones(2, ml_dtypes.float8_e5m2)).dtype is ts.fp8_e5m2


def test_dlpack_both_ways():
    t = ts.tensor([[1.0, 2.0], [3.0, 4.0]])
    a = np.from_dlpack(t)
    assert np.array_equal(a, t) and np.shares_memory(a, t._p)
    back = ts.from_dlpack(np.arange(4.0))
    assert back.dtype is ts.f64 and back.tolist() == [0, 1, 2, 3]
    with pytest.raises(errors.ArgumentError, match="__dlpack__"):
        ts.from_dlpack([1, 2])


def test_dlpack_with_torch():
    torch = pytest.importorskip("torch")
    source = torch.arange(4, dtype=torch.float32)
    t = ts.from_dlpack(source)
    source[0] = 9
    assert t.tolist() == [9, 1, 2, 3]
    assert torch.from_dlpack(ts.ones(3)).tolist() == [1, 1, 1]


def test_scalars_convert_and_format():
    t = ts.tensor(2.34567)
    assert f"{t:.2f}" == "2.35" and float(t) == pytest.approx(2.34567) and int(ts.tensor(7)) == 7
    assert isinstance(ts.tensor(True).item(), bool) and isinstance(ts.tensor(3, dtype=ts.bf16).item(), float)
    assert complex(ts.tensor(1 + 2j)) == 1 + 2j and [10, 20, 30][ts.tensor(1)] == 20
    assert bool(ts.tensor([1])) and not ts.tensor(0.0)
    with pytest.raises(errors.ShapeError, match="ambiguous"):
        bool(ts.ones(2))
    with pytest.raises(errors.ShapeError, match="one element"):
        ts.ones(2).item()
    with pytest.raises(TypeError, match="index"):
        [1, 2][ts.tensor(1.0)]


def test_len_and_iteration():
    t = ts.tensor([[1, 2], [3, 4], [5, 6]])
    assert len(t) == 3 and [r.tolist() for r in t] == [[1, 2], [3, 4], [5, 6]]
    _a, _b, c = t
    assert c.tolist() == [5, 6] and 4 in t and 9 not in t
    with pytest.raises(TypeError):
        len(ts.tensor(1))
    with pytest.raises(TypeError):
        iter(ts.tensor(1))


def test_printing():
    assert repr(ts.tensor([1.0, 2.0])) == "Tensor([1., 2.], f32[2])"
    assert repr(ts.tensor(3)) == "Tensor(3, int64[])"
    assert repr(ts.zeros(2, 0)) == "Tensor([], f32[2, 0])"
    assert repr(ts.tensor([1.5], dtype=ts.bf16)) == "Tensor([1.5], bf16[1])"
    assert "..." in repr(ts.zeros(1000))
    seen = []
    ts.jit(lambda x: (seen.append(repr(x)), seen.append(repr(x + 1)), x)[2])(ts.ones(2))
    assert seen == ["Tensor(traced f32[2] = x)", "Tensor(traced f32[2] = add)"]


@pytest.mark.parametrize("dtype", dt.ALL, ids=str)
def test_pickling_by_value(dtype):
    t = ts.tensor(np.zeros((2, 3), dtype.np))[:, ::2]
    back = pickle.loads(pickle.dumps(t))
    assert back.dtype is dtype and back.shape == (2, 2)
    assert np.asarray(back).tobytes() == np.ascontiguousarray(t).tobytes()
    assert copy.deepcopy(t).dtype is dtype and copy.copy(t).shape == (2, 2)


def test_operators_against_numpy(rng):
    a, b = rng.normal(size=(3, 4)).astype(np.float32), rng.normal(size=(4,)).astype(np.float32)
    x, y = ts.tensor(a), ts.tensor(b)
    for got, want in [(x + y, a + b), (x - y, a - b), (x * y, a * b), (x / y, a / b), (2 - x, 2 - a), (1 / x, 1 / a), (-x, -a),
                      (abs(x), abs(a)), (x < y, a < b), (x >= 0, a >= 0), (x == x, a == a), (x != 0, a != 0), (x @ x.T, a @ a.T),
                      (x.sum(dim=1, keepdim=True), a.sum(1, keepdims=True)), (x.mean(), a.mean()), (x ** 2, a ** 2),
                      (x.max(axis=0), a.max(0)), (x.transpose(0, 1), a.T), (x.T, a.T), (x.reshape(2, -1), a.reshape(2, -1)),
                      (a + y, a + b), (b * x, b * a), (np.float32(2) * x, 2 * a)]:
        assert isinstance(got, ts.Tensor) and got.shape == want.shape
        np.testing.assert_allclose(np.asarray(got), want, rtol=2e-6)
    i, j = ts.tensor([7, -7]), ts.tensor([2, 2])
    assert (i // j).tolist() == [3, -4] and (i % j).tolist() == [1, 1] and (i & 3).tolist() == [3, 1]
    assert (i << 1).tolist() == [14, -14] and (~i).tolist() == [-8, 6] and (+i).tolist() == [7, -7]
    assert (ts.tensor([True, False]) | ts.tensor([False, False])).tolist() == [True, False]


def test_python_numbers_are_weak():
    assert (ts.ones(2, dtype=ts.bf16) * 2.5).dtype is ts.bf16
    assert (ts.tensor([1, 2]) * 0.5).dtype is ts.f32
    assert (ts.tensor([1, 2], dtype=ts.int8) + 1).dtype is ts.int8
    assert (ts.tensor([True]) + 1).dtype is ts.int64
    with pytest.raises(errors.DTypeError, match="300"):
        ts.tensor([1], dtype=ts.int8) + 300


def test_operator_results_follow_new_shapes_and_views():
    for shape in [(3,), (4,), (2, 3), (3, 2), (1, 5), (0,), (2, 0), ()]:
        a = np.arange(int(np.prod(shape)), dtype=np.float32).reshape(shape)
        x = ts.tensor(a)
        assert np.array_equal(x + x, a + a) and np.array_equal(x * 3, a * 3) and (x + x).shape == shape
    a = np.arange(12, dtype=np.float32).reshape(3, 4)
    x = ts.tensor(a)
    assert np.array_equal(x.T + x.T, a.T + a.T) and np.array_equal(x[:, ::-2] + 1, a[:, ::-2] + 1)


def test_comparison_with_foreign_objects():
    x = ts.ones(2)
    assert (x == None) is False and (x != "a") is True  # noqa: E711
    assert x in [x] and hash(x) == hash(x)
    with pytest.raises(TypeError):
        x + "a"
    with pytest.raises(TypeError):
        x + object()


def test_allclose_is_exact_at_zero_tolerance():
    a = ts.tensor([1.0])
    assert ts.allclose(a, a, rtol=0, atol=0)
    assert not ts.allclose(a, ts.tensor(np.nextafter(np.float32([1]), np.float32(2))), rtol=0, atol=0)


def test_any_in_if():
    assert (ts.tensor([0, 1]) == 1).any()
    assert not (ts.tensor([0, 1]) == 2).any()


def test_methods_of_shape(rng):
    a = rng.normal(size=(2, 6)).astype(np.float32)
    x = ts.tensor(a)
    assert np.shares_memory(x.reshape(3, 4)._p, x._p) and np.shares_memory(x.T._p, x._p)
    assert np.shares_memory(x.expand(3, 2, 6)._p, x._p)
    _q, k, _v = ts.split(x, dim=-1, sections=3)
    assert np.array_equal(k, a[:, 2:4])
    B, S = x.shape
    assert (B, S) == (2, 6) and x.flatten().shape == (12,) and x.unsqueeze(0).shape == (1, 2, 6)
    assert x.to(ts.f64).dtype is ts.f64 and x.astype("int32").dtype is ts.int32
    assert not x.T.is_contiguous() and x.T.contiguous().is_contiguous()
    assert x.clone()._p is not x._p and x.detach().shape == x.shape and x.cpu() is x and x.device == "cpu"


def test_import_surface():
    import tessera
    from tessera import op, ops
    assert tessera.op is tessera.ops and op is ops and tessera.fp8 is tessera.fp8_e4m3
    assert ts.float32 is ts.f32 and ts.Float32 is ts.f32 and ts.Dict is not None
    scope: dict = {}
    exec("from tessera import *", scope)
    for name in ("Tensor", "softmax", "relu", "linear", "gelu", "matmul", "bf16", "exp", "sqrt", "tanh", "sum", "zeros", "jit"):
        assert name in scope, name
    assert scope.get("max", max) is max
    with pytest.raises(AttributeError, match="did you mean 'softmax'"):
        ts.sofmax  # noqa: B018
    assert ts.bool is ts.bool_ and "bool" not in scope
    assert "softmax" in dir(ts)


def test_memory_usage_and_spaces():
    assert ts.memory("global") == "global" and ts.memory.global_ == "global"
    assert ts.memory.get_memory_usage() >= 0
    with pytest.raises(errors.ArgumentError, match="did you mean 'shared'"):
        ts.memory("sharde")


def test_memory_usage_follows_allocations():
    before = ts.memory.get_memory_usage()
    x = ts.zeros(10_000_000)
    assert 0.039 < ts.memory.get_memory_usage() - before < 0.05
    y = ts.tensor(np.ones(10_000_000, np.float32))
    assert ts.memory.get_memory_usage() - before > 0.078
    x[0] = 1
    assert ts.memory.get_memory_usage() - before < 0.1  # in place: a block of the allocator belongs to its array
    del x, y
    assert ts.memory.get_memory_usage() - before < 0.001


@pytest.mark.parametrize("name, text", [
    ("backward", r"ts\.grad\(loss_fn\)\(params\)"), ("cuda", r'x\.to\("gpu:0"\)'), ("half", r"x\.to\(ts\.f16\)"),
    ("add_", r"in place: x\[\.\.\.\] = x\.add\(\.\.\.\)"), ("hypot", r"there is a function: ts\.hypot\(x\)"),
    ("hypot_", r"in place: x\[\.\.\.\] = ts\.hypot\(x, \.\.\.\)"), ("reshap", "did you mean 'reshape'"), ("qqqq", "no attribute 'qqqq'$")])
def test_a_missing_attribute_says_what_to_write(name, text):
    with pytest.raises(AttributeError, match=text):
        getattr(ts.ones(2), name)
    assert not hasattr(ts.ones(2), name) and not hasattr(ts.ones(2), "_nothing")


def test_what_stands_in_for_foreign_names_exists():
    from tessera.tracing.foreign import INSTEAD
    for name, instead in INSTEAD.items():
        assert not hasattr(ts.Tensor, name), name
        for path in re.findall(r"\bts\.([a-z_.0-9]+)", instead):
            found = ts
            for part in path.split("."):
                found = getattr(found, part)


@pytest.mark.parametrize(("args", "named", "text"), [
    ((), {}, "missing a required argument: 'data'"), ((1, 2, 3), {}, "too many positional"), ((1,), {"bogus": 1}, "no argument 'bogus'"),
    ((None,), {}, "a NoneType is not a tensor"), ((1, "q"), {}, "no dtype is called 'q'")])
def test_a_tensor_made_wrongly(args, named, text):
    with pytest.raises(errors.TesseraError, match=text):
        ts.Tensor(*args, **named)
