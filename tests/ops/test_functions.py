"""The functions that users call against NumPy's, interpreted and compiled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ways import WAYS, Way

import tessera as ts
import tessera.ops as o
from tessera.errors import ArgumentError, IndexOutOfRangeError, ShapeError
from tessera.ops import sorting
from tessera.types import dtypes as dt

RNG = np.random.default_rng(7)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture(params=sorted(WAYS))
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


def same(got: Any, want: Any, tol: float = 1e-5) -> None:
    want = np.asarray(want)
    assert got.dtype == want.dtype and got.shape == want.shape, (got.dtype, got.shape, want.dtype, want.shape)
    np.testing.assert_allclose(got.astype(np.float64) if got.dtype.kind == "f" else got, want, rtol=tol, atol=tol)


def _group_norm(x: np.ndarray, groups: int, w: np.ndarray) -> np.ndarray:
    y = x.reshape(len(x), groups, -1)
    y = (y - y.mean(-1, keepdims=True)) / np.sqrt(y.var(-1, keepdims=True) + 1e-5)
    return np.asarray(y.reshape(x.shape) * w[:, None] + w[:, None], np.float32)


def _entropy(z: np.ndarray) -> np.ndarray:
    p = 1 / (1 + np.exp(-z.astype(np.float64)))
    return np.float32(np.mean(-p * np.log(p) - (1 - p) * np.log1p(-p)))


X = f32(3, 4, 5)
V = f32(7)
M = f32(4, 6)
I = np.array([[3, -7, 0], [12, 5, -1]])
B = np.array([[True, False, True], [False, False, True]])
Case = tuple[Callable[..., Any], Callable[..., Any], tuple[np.ndarray, ...]]
CASES: dict[str, Case] = {
    # pointwise: promotion, broadcasting, numbers
    "add scalar": (lambda x: o.add(x, 1), lambda x: x + np.float32(1), (X,)),
    "int and float": (lambda i, x: o.mul(i, x), lambda i, x: i.astype(np.float32) * x, (I, f32(2, 3))),
    "int8 and uint8": (o.add, lambda a, b: a.astype(np.int16) + b.astype(np.int16), (I.astype(np.int8), I.astype(np.uint8))),
    "array constant": (lambda x: o.add(o.mul(x, np.arange(5, dtype=np.float32)), np.float32(2)),
                       lambda x: x * np.arange(5, dtype=np.float32) + np.float32(2), (X,)),
    "division of ints": (o.div, lambda a, b: a.astype(np.float32) / b.astype(np.float32), (I, I + 20)),
    "bool and int": (lambda b, i: o.add(b, i), lambda b, i: b + i, (B, I)),
    "bools": (lambda b: (o.add(b, b), o.mul(b, o.logical_not(b))), lambda b: (b | b, b & ~b), (B,)),
    "broadcast": (lambda x, y: o.sub(x, y), lambda x, y: x - y, (f32(3, 1, 5), f32(4, 1))),
    "where": (lambda b, i: o.where(b, i, 0), lambda b, i: np.where(b, i, 0), (B, I)),
    "clip": (lambda x: o.clip(x, -1, 1), lambda x: np.clip(x, -1, 1), (X,)),
    "maximum with number": (lambda x: o.maximum(x, 0), lambda x: np.maximum(x, 0), (X,)),
    "square by pow": (lambda x: o.pow(x, 2), lambda x: x * x, (X,)),
    "integer pow": (lambda i: o.pow(i, 5), lambda i: i ** 5, (I,)),
    "pow by tensor": (lambda i, e: o.pow(i, e), lambda i, e: i ** e, (I, abs(I) % 4)),
    "exp of ints": (o.exp, lambda i: np.exp(i.astype(np.float32)), (I // 4,)),
    "floor of ints": (o.floor, lambda i: i, (I,)),
    "mod": (lambda i: o.mod(i, 4), lambda i: i % 4, (I,)),
    "bitwise_not": (lambda i, b: (o.bitwise_not(i), o.bitwise_not(b)), lambda i, b: (~i, ~b), (I, B)),
    "isclose": (lambda x: o.isclose(x, o.add(x, 1e-7)), lambda x: np.ones_like(x, bool), (np.abs(X) + 1,)),
    "complex parts": (lambda a, b: (o.real(o.mul(o.complex_(a, b), o.complex_(b, a))), o.imag(o.conj(o.complex_(a, b)))),
                      lambda a, b: (((a + 1j * b) * (b + 1j * a)).real.astype(np.float32), -b), (V, V[::-1].copy())),
    "complex magnitude": (lambda a, b: o.abs(o.complex_(a, b)), lambda a, b: np.hypot(a, b), (V, V[::-1].copy())),
    # reductions
    "sum": (lambda x: o.sum(x, 1), lambda x: x.sum(1), (X,)),
    "sum of int8": (lambda i: o.sum(i, dim=0, keepdim=True), lambda i: i.sum(0, keepdims=True), (I.astype(np.int8),)),
    "sum of bools": (o.sum, lambda b: b.sum(), (B,)),
    "prod": (lambda x: o.prod(x, -1), lambda x: x.prod(-1), (X,)),
    "max": (lambda x: o.max(x, (0, 2)), lambda x: x.max((0, 2)), (X,)),
    "min of bools": (lambda b: o.min(b, 1), lambda b: b.min(1), (B,)),
    "any and all": (lambda i: (o.any(i, 0), o.all(i)), lambda i: (i.any(0), i.all()), (I,)),
    "mean of ints": (lambda i: o.mean(i, 1), lambda i: i.mean(1).astype(np.float32), (I,)),
    "mean": (o.mean, lambda x: x.mean(), (X,)),
    "var": (lambda x: o.var(x, (0, 2), keepdims=True), lambda x: x.var((0, 2), keepdims=True), (X,)),
    "std with correction": (lambda x: o.std(x, 1, correction=1), lambda x: x.std(1, ddof=1), (X,)),
    "norm": (lambda x: o.norm(x, dim=[1, 2]), lambda x: np.sqrt((x * x).sum((1, 2))), (X,)),
    "norm 3": (lambda x: o.norm(x, 3, 0), lambda x: (np.abs(x) ** 3).sum(0) ** np.float32(1 / 3), (X,)),
    "norm inf": (lambda x: o.norm(x, np.inf), lambda x: np.abs(x).max(), (X,)),
    "logsumexp": (lambda x: o.logsumexp(x, -1), lambda x: np.log(np.exp(x).sum(-1)), (X,)),
    "logsumexp of -inf": (lambda x: o.logsumexp(x, 0), lambda x: np.full((), -np.inf, np.float32), (np.full(3, -np.inf, np.float32),)),
    "argmax": (lambda x: (o.argmax(x, 1), o.argmax(x), o.argmin(x, 0, True)),
               lambda x: (x.argmax(1), x.argmax(), x.argmin(0, keepdims=True)), (X,)),
    "cumsum": (lambda x: o.cumsum(x, 1), lambda x: x.cumsum(1), (X,)),
    "cumsum of bools": (lambda b: o.cumsum(b, 1), lambda b: b.cumsum(1), (B,)),
    "cummax reversed": (lambda x: o.cummax(x, 1, reverse=True), lambda x: np.maximum.accumulate(x[:, ::-1], 1)[:, ::-1], (X,)),
    "count_nonzero": (lambda i: o.count_nonzero(i, 1), lambda i: np.count_nonzero(i, 1), (I,)),
    "median": (lambda x: (o.median(x, 1), o.median(x)), lambda x: (np.median(x, 1), np.median(x)), (X,)),
    # shapes
    "reshape": (lambda x: o.reshape(x, 5, -1), lambda x: x.reshape(5, -1), (X,)),
    "flatten": (lambda x: o.flatten(x, 1), lambda x: x.reshape(3, 20), (X,)),
    "transpose": (lambda x: (o.transpose(x), o.transpose(x, 0, 2), o.permute(x, 1, 2, 0)),
                  lambda x: (x.T, x.swapaxes(0, 2), x.transpose(1, 2, 0)), (X,)),
    "moveaxis": (lambda x: o.moveaxis(x, (0, 1), (-1, 0)), lambda x: np.moveaxis(x, (0, 1), (-1, 0)), (X,)),
    "squeeze": (lambda x: o.squeeze(o.unsqueeze(x, (0, -1)), 0), lambda x: x[..., None], (X,)),
    "expand": (lambda x: o.expand(x, 2, -1, 4), lambda x: np.broadcast_to(x, (2, 3, 4)), (f32(3, 1),)),
    "flip": (lambda x: o.flip(x, 1), lambda x: x[:, ::-1], (X,)),
    "roll": (lambda x: (o.roll(x, 2, 1), o.roll(x, -3), o.roll(x, (1, 2), (0, 2))),
             lambda x: (np.roll(x, 2, 1), np.roll(x, -3), np.roll(x, (1, 2), (0, 2))), (X,)),
    "concat": (lambda x, i: o.concat([x, i], 1), lambda x, i: np.concatenate([x, i.astype(np.float32)], 1), (f32(2, 2), I)),
    "stack": (lambda x: o.stack([x, x], -1), lambda x: np.stack([x, x], -1), (X,)),
    "split": (lambda x: o.split(x, 2, dim=1), lambda x: np.split(x, 2, 1), (X,)),
    "split by sizes": (lambda x: o.split(x, [1, 0, 4], 2), lambda x: [x[..., :1], x[..., :0], x[..., 1:]], (X,)),
    "chunk": (lambda x: o.chunk(x, 2, 2), lambda x: [x[..., :3], x[..., 3:]], (X,)),
    "tile": (lambda x: o.tile(x, 2, 1, 3), lambda x: np.tile(x, (2, 1, 3)), (X,)),
    "repeat": (lambda x: (o.repeat(x, 3, 1), o.repeat(x, 2)), lambda x: (np.repeat(x, 3, 1), np.repeat(x, 2)), (X,)),
    "pad": (lambda x: o.pad(x, [(1, 2), (0, 0), (2, 1)], 7.0), lambda x: np.pad(x, [(1, 2), (0, 0), (2, 1)], constant_values=7), (X,)),
    "triangles": (lambda m: (o.tril(m, 1), o.triu(m, -1)), lambda m: (np.tril(m, 1), np.triu(m, -1)), (M,)),
    "eye": (lambda m: o.mul(o.eye(4, 6), m), lambda m: np.eye(4, 6, dtype=np.float32) * m, (M,)),
    # indexing
    "take": (lambda x, i: (o.take(x, i, 1), o.take(x, i)), lambda x, i: (np.take(x, i, 1), np.take(x, i)),
             (X, np.array([[0, -1], [2, 1]]))),
    "gather points": (lambda x, i, j: o.gather(x, [i, j], [0, 2]), lambda x, i, j: x[i, :, j],
                      (X, np.array([0, -1, 2]), np.array([4, 0, -2]))),
    "take_along_axis": (lambda x, i: o.take_along_axis(x, i, 1), lambda x, i: np.take_along_axis(x, i, 1),
                        (X, RNG.integers(-4, 4, (3, 2, 5)))),
    "one_hot": (lambda i: o.one_hot(i, 4), lambda i: (i[..., None] == np.arange(4)).astype(np.float32), (I,)),
    "masked_fill": (lambda i, b: o.masked_fill(i, b, -1), lambda i, b: np.where(b, -1, i), (I, B)),
    "dynamic_slice": (lambda x, k: o.dynamic_slice(x, (1, k, 0), (2, 2, 5)), lambda x, k: x[1:3, k:k + 2], (X, np.array(2))),
    "sort": (lambda x: (o.sort(x, 1), o.sort(x, 2, descending=True)), lambda x: (np.sort(x, 1), -np.sort(-x, 2)), (X,)),
    "argsort": (o.argsort, lambda x: np.argsort(x, kind="stable"), (X,)),
    "topk": (lambda x: o.topk(x, 2), lambda x: (-np.sort(-x)[..., :2], np.argsort(-x)[..., :2]), (X,)),
    "searchsorted": (lambda a, v: o.searchsorted(a, v, "right"), lambda a, v: np.searchsorted(a, v, "right"), (np.sort(V), f32(2, 3))),
    "bincount": (lambda i: o.bincount(i, 5), lambda i: np.bincount(i, minlength=5), (np.array([1, 3, 1, 0]),)),
    # products
    "matmul": (o.matmul, np.matmul, (f32(2, 3, 4), f32(4, 5))),
    "matmul of vectors": (lambda a, b: (o.matmul(a, a), o.matmul(b, a), o.matmul(a, b.T if hasattr(b, "T") else b)),
                          lambda a, b: (a @ a, b @ a, a @ b.T), (f32(4), f32(3, 4))),
    "matmul with broadcast": (o.matmul, np.matmul, (f32(5, 1, 2, 3), f32(4, 3, 2))),
    "matrix and batch": (o.matmul, np.matmul, (f32(2, 3), f32(5, 3, 4))),
    "int8 matmul in int32": (lambda a, b: o.matmul(a, b, dtype=dt.int32), lambda a, b: a.astype(np.int32) @ b.astype(np.int32),
                             (RNG.integers(-99, 99, (3, 4)).astype(np.int8), RNG.integers(-99, 99, (4, 2)).astype(np.int8))),
    "dot": (o.dot, np.dot, (f32(2, 3, 4), f32(5, 4, 2))),
    "tensordot": (lambda a, b: o.tensordot(a, b, ([1], [0])), lambda a, b: np.tensordot(a, b, ([1], [0])), (f32(2, 3), f32(3, 4))),
    "outer and inner": (lambda a: (o.outer(a, a), o.inner(a, a)), lambda a: (np.outer(a, a), np.inner(a, a)), (V,)),
    "linear": (lambda x, w, b: o.linear(x, w, b), lambda x, w, b: x @ w + b, (f32(2, 3, 4), M, f32(6))),
    "diagonal": (lambda x: (o.diagonal(x, 0, 2), o.trace(x[0] if False else o.take(x, 0, 0))),
                 lambda x: (np.diagonal(x, 0, 0, 2), np.trace(x[0])), (X,)),
    # what others have
    "diag": (lambda v, m, i: [o.diag(a, k) for k in (-2, -1, 0, 1, 3) for a in (v, m, i)],
             lambda v, m, i: [np.diag(a, k) for k in (-2, -1, 0, 1, 3) for a in (v, m, i)], (V, M, I[0])),
    "unbind": (lambda x: o.unbind(x, 1), lambda x: [x[:, i] for i in range(4)], (X,)),
    "diff": (lambda x, b: (o.diff(x), o.diff(x, 2, 0), o.diff(b, axis=0), o.diff(x, 0)),
             lambda x, b: (np.diff(x), np.diff(x, 2, 0), np.diff(b, axis=0), x), (X, B)),
    "kron": (lambda x, v: (o.kron(x, v), o.kron(v, x), o.kron(v, v)), lambda x, v: (np.kron(x, v), np.kron(v, x), np.kron(v, v)), (M, V)),
    "stacks": (lambda x, v: (o.vstack([v, v]), o.hstack([x, x]), o.hstack([v, v]), o.vstack([x, x])),
               lambda x, v: (np.vstack([v, v]), np.hstack([x, x]), np.hstack([v, v]), np.vstack([x, x])), (M, V)),
    "lerp": (lambda x: o.lerp(x, o.mul(x, 3), 0.25), lambda x: x * np.float32(1.5), (X,)),
    "index_select": (lambda x, i: o.index_select(x, 1, i), lambda x, i: x[:, i], (X, np.array([3, 0]))),
    "nan_to_num": (lambda x: (o.nan_to_num(x), o.nan_to_num(x, 1, 2, 3)), lambda x: (np.nan_to_num(x), np.nan_to_num(x, True, 1, 2, 3)),
                   (np.array([np.nan, np.inf, -np.inf, 1], np.float32),)),
    "group_norm": (lambda x, w: o.group_norm(x, 2, w, w), lambda x, w: _group_norm(x, 2, w), (X, f32(4))),
    "losses": (lambda z: (o.binary_cross_entropy_with_logits(z, o.sigmoid(z)), o.huber_loss(z, 0, "sum", 0.5)),
               lambda z: (_entropy(z), np.where(abs(z) <= 0.5, z * z / 2, (abs(z) - 0.25) * 0.5).sum(dtype=np.float32)), (X,)),
    "cosine": (lambda x: o.cosine_similarity(x, o.abs(x), 1),
               lambda x: (x * abs(x)).sum(1) / (np.linalg.norm(x, axis=1) ** 2), (X,)),
}


@pytest.mark.parametrize(("call", "error", "message"), [
    (lambda x: o.diag(x), ShapeError, "takes a vector or a matrix"), (lambda x: o.unbind(x, 5), IndexOutOfRangeError, "axis 5"),
    (lambda x: o.group_norm(x, 3), ShapeError, "cannot split 4 channels into 3 groups"),
    (lambda x: o.diff(x, -1), ArgumentError, "0 times or more"),
    (lambda x: o.index_select(x, 1), ArgumentError, "needs the slices' numbers"),
    (lambda x: o.binary_cross_entropy_with_logits(x, x[0]), ShapeError, "another shape"),
    (lambda x: o.huber_loss(x, x, "men"), ArgumentError, "not 'men'"),
])
def test_what_familiar_functions_refuse(call: Callable[..., Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call(o.add(X, 0))


def test_extreme_logits_have_finite_losses() -> None:
    loss = o.binary_cross_entropy_with_logits(np.array([1e4, -1e4, 1e4], np.float32), np.array([1, 0, 0], np.float32), "none")
    assert np.asarray(loss).tolist() == [0, 0, 1e4]


@pytest.mark.parametrize("name", CASES)
def test_function(name: str, way: Way) -> None:
    fn, numpy_fn, arrays = CASES[name]
    got, want = way(fn, *arrays), numpy_fn(*arrays)
    if not isinstance(want, tuple | list):
        got, want = [got], [want]
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        same(g, w)


@pytest.mark.parametrize(("equation", "shapes"), [
    ("ij,jk->ik", ((2, 3), (3, 4))), ("bshd,bthd->bhst", ((2, 3, 4, 5), (2, 6, 4, 5))), ("ii->i", ((3, 3),)), ("ii", ((3, 3),)),
    ("ij->", ((2, 3),)), ("...ij,...jk->...ik", ((5, 2, 3), (5, 3, 4))), ("i,j->ij", ((2,), (3,))),
    ("ijk,jl,kl->il", ((2, 3, 4), (3, 5), (4, 5))), ("ba", ((2, 3),)), ("bij,k->bi", ((2, 3, 4), (5,))), ("...i->...", ((2, 3, 4),)),
])
def test_einsum(equation: str, shapes: tuple[tuple[int, ...], ...], way: Way) -> None:
    arrays = [f32(*s) for s in shapes]
    same(way(lambda *xs: o.einsum(equation, *xs), *arrays), np.einsum(equation, *arrays), 1e-4)


def test_writes(way: Way) -> None:
    x, i = f32(4, 3, 5), np.array([[0, -1], [2, 1]])
    want = x.copy()
    want[:, i] = 2.0
    same(way(lambda x, i: o.scatter(x, i, 2.0, 1), x, i), want)
    u = f32(4, 2, 2, 5)
    want = x.copy()
    np.add.at(want, (slice(None), i), u)
    same(way(lambda x, i, u: o.scatter(x, i, u, 1, "add"), x, i, u), want)
    want = x.copy()
    want[i, i] = 7.0
    same(way(lambda x, i: o.index_put(x, (i, i), 7.0), x, i), want)
    j = np.argsort(f32(4, 2, 5), 1)
    v = f32(4, 2, 5)
    want = x.copy()
    np.put_along_axis(want, j, v, 1)
    same(way(lambda x, j, v: o.put_along_axis(x, j, v, 1), x, j, v), want)
    want = x.copy()
    want[1:3, 1:3] = 9.0
    piece = np.full((2, 2, 5), 9.0, np.float32)
    same(way(lambda x, p, k: o.dynamic_update_slice(x, p, (k, 1, 0)), x, piece, np.array(1)), want)
    z = (x + 1j * x).astype(np.complex64)
    want = z.copy()
    want[[2, 0]] = 1j
    same(np.abs(way(lambda z, w: o.scatter(z, [2, 0], w), z, np.asarray(1j, np.complex64))), np.abs(want))


def test_results_of_a_chosen_size(way: Way) -> None:
    m = X > 0.5
    for got, want in zip(way(lambda m: o.nonzero(m, size=25, fill_value=-5), m), np.nonzero(m), strict=True):
        np.testing.assert_array_equal(got, np.concatenate([want, np.full(25, -5)])[:25])
    for got, want in zip(way(lambda m: o.nonzero(m, size=3), m), np.nonzero(m), strict=True):
        np.testing.assert_array_equal(got, want[:3])
    q = np.array([3, 1, 3, 2, 2, 9])
    values, inverse, counts = way(lambda q: o.unique(q, size=5, return_counts=True, return_inverse=True), q)
    assert values.tolist() == [1, 2, 3, 9, 1] and inverse.tolist() == [2, 0, 2, 1, 1, 3] and counts.tolist() == [1, 2, 2, 1, 0]
    assert way(lambda q: o.unique(q, size=2, fill_value=-1), q).tolist() == [1, 2]


def test_symbolic_sizes(way: Way) -> None:
    """The same functions on names: shapes are computed, not looked up."""
    from tessera.types.dims import sym
    b, s = sym("B S")
    x, y = f32(3, 8), f32(3, 8)

    def fn(x: Any, y: Any) -> Any:
        z = o.concat([x, y], 1)
        parts = o.split(z, 2, axis=1)
        rolled = o.roll(parts[0], 3, 1)
        return o.mean(z, 1), o.reshape(z, -1, 4) if False else o.reshape(z, 2 * x.shape[0], -1), rolled, o.tril(o.matmul(x, o.transpose(y)))

    mean, halves, rolled, low = way(fn, x, y, shapes=((b, s), (b, s)))
    z = np.concatenate([x, y], 1)
    same(mean, z.mean(1))
    same(halves, z.reshape(6, -1))
    same(rolled, np.roll(x, 3, 1))
    same(low, np.tril(x @ y.T))


def test_parts_and_questions_of_special_complex_numbers(way: Way) -> None:
    z = np.array([complex(1, np.inf), complex(np.nan, 0), 2 + 3j], np.complex64)
    for name in ("isfinite", "isinf", "isnan"):
        assert np.array_equal(way(getattr(o, name), z), getattr(np, name)(z))
    assert np.array_equal(way(lambda z: o.pow(z, 0), z), np.ones(3, np.complex64))
    assert np.array_equal(way(o.imag, np.array([np.inf, 1], np.float32)), np.zeros(2, np.float32))
    assert not way(lambda x, y: o.isclose(x, y), np.array([2 + 3j], np.complex64), z[:1])[0]


def test_variance_of_complex_numbers_is_real(way: Way) -> None:
    z = np.array([[1 + 2j, 3 - 1j, 0.5j], [2, 2j, -2]], np.complex64)
    same(way(lambda z: o.var(z, 1), z), np.var(z, 1))
    same(way(lambda z: o.std(z), z), np.std(z))


@pytest.mark.parametrize("dtype", [np.float64, np.int64, np.uint64])
@pytest.mark.parametrize("descending", [False, True])
def test_positions_of_64_bit_keys(dtype: type, descending: bool) -> None:
    rng = np.random.default_rng(0)
    if dtype is np.float64:
        x = (rng.normal(size=(3, 500)) * 3).round(1)  # many ties
        x[0, :40], x[1, ::7], x[1, 1::7], x[2, :3] = np.nan, -0.0, 0.0, (np.inf, -np.inf, 5e-324)
    else:
        x = rng.integers(0, 50, (3, 500)).astype(dtype)
        x[0, :4] = np.iinfo(dtype).max, np.iinfo(dtype).min, 0, 1
        x[1, ::2] <<= dtype(33)
        x[2, ::2] |= dtype(1) << dtype(62)
    for axis in (0, 1):
        assert np.array_equal(o.argsort(ts.tensor(x), axis, descending).numpy(), sorting.order(x, axis, descending))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("descending", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_zeros_of_both_signs_stay_in_order(dtype: type, descending: bool, axis: int) -> None:
    x = np.random.default_rng(1).choice([0.0, -0.0, 1, -1, np.nan], (90, 300)).astype(dtype)
    got = o.sort(ts.tensor(x), axis, descending).numpy()
    want = np.take_along_axis(x, sorting.order(x, axis, descending), axis)
    np.testing.assert_array_equal(got, want)
    assert np.array_equal(np.signbit(got) | np.isnan(got), np.signbit(want) | np.isnan(want))


def test_unique_values_among_zeros_and_nan() -> None:
    x = ts.tensor(np.array([np.nan, 0.0, 2, -0.0, np.nan, 2, -np.nan], np.float32))
    fixed = ts.unique(x, 3, return_inverse=True, return_counts=True)
    for values, inverse, counts in (ts.unique(x, return_inverse=True, return_counts=True), fixed):
        np.testing.assert_array_equal(values.numpy(), [0, 2, np.nan])
        assert not np.signbit(values.numpy()[0])
        assert inverse.tolist() == [2, 0, 1, 0, 2, 1, 2] and counts.tolist() == [2, 2, 3]


def test_searching_for_nan() -> None:
    line, keys = np.array([1, 2, 3, np.nan, np.nan], np.float32), np.array([np.nan, 2, np.inf], np.float32)
    for side in ("left", "right"):
        want = np.searchsorted(line, keys, side)
        assert np.array_equal(ts.jit(lambda a, v, side=side: ts.searchsorted(a, v, side))(ts.tensor(line), ts.tensor(keys)).numpy(), want)


@pytest.mark.parametrize("largest", [True, False])
def test_topk_of_long_rows(largest: bool) -> None:
    """Ties in stable order, NaN as the greatest, a collection that is cut many times, an inner axis."""
    rng = np.random.default_rng(2)
    rising = np.arange(3000, dtype=np.float32)[None] * (1 if largest else -1)
    ties = rng.integers(0, 5, (3, 700)).astype(np.float16)
    ties[0, [5, 9, 600]] = np.nan, -0.0, np.inf
    for x, k, axis in ((rising, 20, 1), (ties, 33, 1), (rng.standard_normal((900, 3)).astype(np.float32), 200, 0), (ties[:1], 1, 1)):
        values, where = ts.jit(lambda x, k=k, axis=axis: ts.topk(x, k, axis, largest))(ts.tensor(x))
        want = np.take(sorting.order(x, axis, largest), np.arange(k), axis)
        np.testing.assert_array_equal(where.numpy(), want)
        np.testing.assert_array_equal(values.numpy(), np.take_along_axis(x, want, axis))
    each = ts.vmap(lambda x: ts.topk(x, 3)[1])(ts.tensor(ties))
    assert np.array_equal(each.numpy(), sorting.order(ties, 1, True)[:, :3])
    slope = ts.grad(lambda x: (ts.topk(x, 3, largest=largest)[0] * ts.tensor([1.0, 2, 3])).sum())(ts.tensor(rising)).numpy()
    assert np.array_equal(np.nonzero(slope[0])[0], [2997, 2998, 2999]) and slope[0, -3:].tolist() == [3, 2, 1]
