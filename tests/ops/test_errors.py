"""What the rules refuse, and in which words; symbols are named as the user wrote them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ways import compiled, traced

import tessera.ops as o
from tessera.errors import ArgumentError, DTypeError, IndexOutOfRangeError, NumericalError, ShapeError, TesseraError, TracingError
from tessera.ops import fft, linalg
from tessera.types.dims import sym

B, S, K = sym("B S K")
F32, F64, I64, I8, BOOL = (np.zeros((), d) for d in (np.float32, np.float64, np.int64, np.int8, np.bool_))
U64 = np.zeros((), np.uint64)

# call, (dtype and shape of each operand), error, its first line, part of the rest
CASES: list[tuple[Callable[..., Any], list[tuple[Any, tuple[Any, ...]]], type[TesseraError], str, str]] = [
    (o.add, [(F32, (B, S)), (F32, (B, K))],
     ShapeError, "Cannot broadcast S with K: shape mismatch in dimension 1: S vs K", "Expected: f32[B, S]"),
    (o.add, [(F32, (2, 3)), (F32, (4,))],
     ShapeError, "Cannot broadcast 3 with 4: shape mismatch in dimension 1: 3 vs 4", "Received: f32[4]"),
    (o.where, [(BOOL, (S,)), (F32, (S,)), (F32, (K,))], ShapeError, "Cannot broadcast S with K", "'where' must have equal sizes"),
    (o.matmul, [(F32, (B, S)), (F32, (K, 4))],
     ShapeError, "Shape mismatch in dimension 1: S vs K", "pairs dimension 1 of the first operand"),
    (o.matmul, [(F32, (B, 3, 4)), (F32, (K, 4, 5))], ShapeError, "Cannot broadcast B with K", "leading axes"),
    (o.matmul, [(F32, ()), (F32, (4,))], ShapeError, "matmul needs tensors with at least one axis", "Multiply by a scalar with *"),
    (lambda x, y: o.einsum("ij,jk->ik", x, y), [(F32, (B, S)), (F32, (K, 4))],
     ShapeError, "Shape mismatch in dimension 0: S vs K", "'j' has two sizes"),
    (lambda x: o.einsum("ij->k", x), [(F32, (2, 3))], ShapeError, "the einsum result names 'k'", ""),
    (o.add, [(U64, (3,)), (I64, (3,))], DTypeError, "Cannot implicitly convert between uint64 and int64", "no integer type holds both"),
    (o.bitwise_and, [(F32, (3,)), (F32, (3,))], DTypeError, "'bitwise_and' does not accept f32", "x.to(int64)"),
    (lambda x: o.add(x, 300), [(I8, (3,))], DTypeError, "the number 300 does not fit into int8", "takes the dtype of the tensor"),
    (lambda x: o.bitcast(x, "int64"), [(F32, (3,))], DTypeError, "bitcast does not read f32 as int64", "32 bits"),
    (lambda x, y: o.tensordot(x, y, ([5], [0])), [(F32, (2, 3)), (F32, (3, 2))], IndexOutOfRangeError, "axis 5 does not exist", ""),
    (lambda i: o.one_hot(i, 3, axis=7), [(I64, (2,))], IndexOutOfRangeError, "axis 7 does not exist", ""),
    (lambda x: o.sum(x, 2), [(F32, (B, S))], IndexOutOfRangeError, "axis 2 does not exist in a tensor of rank 2", "In 'sum'"),
    (lambda x: o.sum(x, (0, -2)), [(F32, (B, S))], ShapeError, "axis 0 is named twice", "In 'sum'"),
    (o.max, [(F32, (0, 3))], ShapeError, "'reduce_max' over dimension 0 of size 0", "Check the size first"),
    (o.softmax, [(F32, (3, 0))], ShapeError, "'softmax' over dimension 1 of size 0", ""),
    (lambda x: o.reshape(x, 4, 2), [(F32, (2, 3))], ShapeError, "Cannot reshape [2, 3] to [4, 2]: 6 elements vs 8", "-1"),
    (lambda x: o.reshape(x, -1, 4), [(F32, (B, 3))], ShapeError, "Cannot reshape [B, 3] to [-1, 4]", "not a multiple of 4"),
    (lambda x: o.reshape(x, -1, -1), [(F32, (4,))], ShapeError, "only one size", ""),
    (lambda x: o.broadcast_to(x, (4, K)), [(F32, (S,))], ShapeError, "Cannot broadcast S with K", "stretches only where it is 1"),
    (lambda x: o.permute(x, 0, 0), [(F32, (2, 3))], ShapeError, "(0, 0) is not a permutation of the 2 axes", ""),
    (lambda x, y: o.concat([x, y], 1), [(F32, (B, 2)), (F32, (K, 2))], ShapeError, "Shape mismatch in dimension 0: B vs K", "'concat'"),
    (lambda x: o.split(x, 2), [(F32, (5,))], ShapeError, "Cannot split dimension 0 of size 5 into 2 equal parts", "chunk"),
    (lambda x: o.split(x, [2, 2]), [(F32, (5,))], ShapeError, "the sizes [2, 2] do not add up to dimension 0 of size 5", ""),
    (lambda x: o.squeeze(x, 0), [(F32, (B, 1))], ShapeError, "Cannot squeeze dimension 0: its size is B, not 1", ""),
    (lambda x: o.unsqueeze(x, 4), [(F32, (2, 3))], IndexOutOfRangeError, "axis 4 does not exist in a result of rank 3", ""),
    (lambda x: o.pad(x, [(1, 1)]), [(F32, (2, 3))], ShapeError, "pad got 1 pairs for a tensor of rank 2", ""),
    (lambda x: o.pad(x, [(-2, -2)]), [(F32, (3,))], ShapeError, "'pad' cuts more than dimension 0 has", ""),
    (lambda x: o.dynamic_slice(x, (0,), (9,)), [(F32, (4,))], ShapeError, "the slice of 9 at 0 leaves dimension 0 of size 4", ""),
    (lambda x, i: o.take(x, i, 0), [(F32, (3,)), (F32, (2,))], DTypeError, "an index holds integers, not f32", "i.to(int64)"),
    (lambda x, i: o.take(x, i, 0), [(F32, (0,)), (I64, (2,))], ShapeError, "'gather' reads from dimension 0 of size 0", ""),
    (lambda x, i, u: o.scatter(x, i, u), [(F32, (5, S)), (I64, (2,)), (F32, (2, K))], ShapeError, "Cannot broadcast K with S", ""),
    (lambda x, i, u: o.scatter(x, i, u), [(F32, (5,)), (I64, (2,)), (F64, (2,))],
     DTypeError, "Cannot implicitly convert from f64 to f32", "u.to(f32)"),
    (lambda x: o.topk(x, 9), [(F32, (4,))], ShapeError, "topk asks for 9 of 4 elements", ""),
    (lambda x: o.nonzero(x), [(F32, (4,))], TracingError, "the size of nonzero's result depends on values", "size=n"),
    (lambda x: o.unique(x), [(F32, (4,))], TracingError, "the size of unique's result depends on values", "where"),
    (lambda x, w: o.layer_norm(x, w), [(F32, (B, S)), (F32, (K,))],
     ShapeError, "Shape mismatch in dimension 1: S vs K", "one element for each place"),
    (o.attention, [(F32, (B, S, 8)), (F32, (B, K, 4)), (F32, (B, K, 4))],
     ShapeError, "Shape mismatch in dimension 2: 8 vs 4", "'attention'"),
    (o.attention, [(F32, (2, 3, S, 8)), (F32, (2, 2, K, 8)), (F32, (2, 2, K, 8))],
     ShapeError, "Shape mismatch in dimension 1: 3 vs 2", "multiple of the number of key heads"),
    (o.attention, [(F32, (2, 3, 8)), (F32, (2, 5, 8)), (F32, (2, 5, 8)), (BOOL, (3, 4))],
     ShapeError, "the mask of 'attention' does not broadcast to bool[2, 3, 5]", ""),
    (o.cross_entropy, [(F32, (B, 9)), (I64, (K,))], ShapeError, "Shape mismatch in dimension 0: B vs K", "'cross_entropy'"),
    (o.conv, [(F32, (1, 4, 9)), (F32, (2, 3, 3))], ShapeError, "Shape mismatch in dimension 1: 4 vs 3", "3 input channels"),
    (o.conv, [(F32, (1, 3, 2)), (F32, (2, 3, 3))], ShapeError, "the window of 'conv' does not fit dimension 2", "Add padding"),
    (linalg.cholesky, [(F32, (B, 3, 4))], ShapeError, "'cholesky' takes square matrices: Shape mismatch in dimension 2: 3 vs 4", ""),
    (linalg.solve, [(F32, (3, 3)), (F32, (4, 2))], ShapeError, "Shape mismatch in dimension 0: 3 vs 4", "'solve'"),
    (lambda x: fft.fft(x, 0), [(F32, (4,))], ShapeError, "a Fourier transform has at least one element", ""),
]


@pytest.mark.parametrize(("fn", "operands", "kind", "message", "rest"), CASES, ids=[f"{i}" for i in range(len(CASES))])
def test_refused(fn: Callable[..., Any], operands: list[tuple[Any, tuple[Any, ...]]], kind: type[TesseraError], message: str,
                 rest: str) -> None:
    with pytest.raises(kind) as caught:
        traced(fn, tuple(a for a, _ in operands), tuple(s for _, s in operands))
    error = caught.value
    assert message in error.message
    assert rest in str(error)
    assert error.loc is None or "tests" in error.loc.file  # never a line of the package


@pytest.mark.parametrize("call", [
    lambda: o.sum(np.zeros(3), axis=0, dim=0), lambda: o.logical_and(np.zeros(3)),
])
def test_wrong_calls(call: Callable[[], Any]) -> None:
    with pytest.raises(TypeError):
        call()


@pytest.mark.parametrize(("call", "kind", "message"), [
    (lambda: o.chunk(np.zeros(4), 0), ArgumentError, "at least one part"),
    (lambda: o.chunk(np.zeros(4), -2), ArgumentError, "at least one part"),
    (lambda: o.topk(np.zeros(4), 1.5), ArgumentError, "topk() takes a number of elements"),  # type: ignore[arg-type]
    (lambda: o.repeat(np.zeros((4, 3)), -1, 0), ShapeError, "a size is negative"),
    (lambda: o.tile(np.zeros(4), -1), ShapeError, "a size is negative"),
    (lambda: o.broadcast_to(np.zeros((1, 3)), (-2, 3)), ShapeError, "a size is negative"),
    (lambda: o.cross_entropy(np.zeros((4, 3)), np.zeros(3)), ShapeError, "another shape than its logits"),
])
def test_numbers_that_are_no_sizes(call: Callable[[], Any], kind: type[TesseraError], message: str) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert message in caught.value.message


@pytest.mark.parametrize("call", [
    lambda: o.gelu(np.zeros(3), "fast"), lambda: o.cross_entropy(np.zeros((2, 3)), np.zeros(2, np.int64), "middle"),
    lambda: o.pad(np.zeros(3), 1, mode="reflect"), lambda: o.searchsorted(np.zeros(3), np.zeros(2), "top"),
    lambda: o.scatter(np.zeros(3), [0], 1.0, mode="xor"), lambda: linalg.qr(np.zeros((2, 2)), "r"),
    lambda: fft.fft(np.zeros(3), norm="none"),
])
def test_wrong_values(call: Callable[[], Any]) -> None:
    with pytest.raises(ValueError):
        call()


X = np.arange(6, dtype=np.float32).reshape(2, 3)
RUNNING = [
    (lambda x, i: o.take(x, i, 0), (X, np.array([0, 5])), IndexOutOfRangeError, "index 5 is out of bounds for axis 0 with size 2"),
    (lambda x, i: o.take(x, i, 1), (X, np.array([-4])), IndexOutOfRangeError, "index -4 is out of bounds for axis 1 with size 3"),
    (lambda x, i: o.take_along_axis(x, i, 1), (X, np.array([[0], [3]])), IndexOutOfRangeError, "index 3 is out of bounds for axis 1"),
    (lambda x, i: o.scatter(x, i, 1.0), (X, np.array([2])), IndexOutOfRangeError, "index 2 is out of bounds"),
    (lambda x, i: o.index_put(x, (i, i), 1.0), (X, np.array([1, 2])), IndexOutOfRangeError, "out of bounds"),
    (lambda x, k: o.dynamic_slice(x, (0, k), (2, 2)), (X, np.array(2)),
     IndexOutOfRangeError, "a slice of 2 at 2 leaves axis 1 with size 3"),
    (lambda x, k: o.dynamic_update_slice(x, x, (k, 0)), (X, np.array(-1)), IndexOutOfRangeError, "at -1 leaves axis 0"),
    (o.floor_div, (np.array([1, 2]), np.array([1, 0])), NumericalError, "by zero"),
    (o.mod, (np.array([1, 2], np.uint8), np.array([1, 0], np.uint8)), NumericalError, "by zero"),
    (linalg.cholesky, (np.array([[1, 2], [2, 1]], np.float32),), NumericalError,
     "cholesky takes positive definite matrices; the leading minor of order 2 is not positive (or NaN)"),
    (linalg.cholesky, (np.array([np.eye(2), [[np.nan, 0], [0, 1]]], np.float64),), NumericalError, "minor of order 1"),
    (lambda x, t: o.cross_entropy(x, t), (X, np.array([0, 3])), IndexOutOfRangeError, "index 3 is out of bounds"),
]


@pytest.mark.parametrize(("fn", "arrays", "kind", "message"), RUNNING, ids=[f"{i}" for i in range(len(RUNNING))])
def test_checked_when_it_runs(fn: Callable[..., Any], arrays: tuple[np.ndarray, ...], kind: type[TesseraError], message: str) -> None:
    with pytest.raises(kind) as caught:
        compiled(fn, *arrays)
    assert message in str(caught.value)
