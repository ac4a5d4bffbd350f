"""The interpreter of Graph IR: control flow, symbolic sizes, calls; the ops are tested in tests/ops."""

from __future__ import annotations

import numpy as np
import pytest
from test_graph import program

import tessera.ops  # noqa: F401
from tessera.ir.graph import GrammarError
from tessera.ir.interpret_graph import interpret
from tessera.ir.text import parse_function


def test_control_flow() -> None:
    x, w = np.arange(8, dtype=np.float32).reshape(2, 4), np.ones((4, 3), np.float32)
    for n, sign, doublings in ((3, 1, 3), (-1, -1, 0), (0, 1, 0)):
        v, k, rows = interpret(program(), [x, w, np.asarray(n)])
        np.testing.assert_array_equal(v, sign * (x @ w + 0.5) * 2 ** doublings)
        assert int(k) == n * 4
        np.testing.assert_array_equal(rows, x * x)


SCAN = """
graph @f(%c: int64[], %x: int64[T, 2]) {
  %n, %y = scan(%c, %x) {carry = 1, length = <T>, reverse = REVERSE} do(%a: int64[], %row: int64[2]) {
    %s = reduce_sum(%row) {axes = (0,)} : int64[]
    %b = add(%a, %s) : int64[]
    yield(%b, %b)
  } : int64[], int64[T]
  return(%n, %y)
}
"""


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("t", [1, 4])
def test_scan_order(reverse: bool, t: int) -> None:
    x = np.arange(2 * t).reshape(t, 2) + 1
    n, y = interpret(parse_function(SCAN.replace("REVERSE", str(reverse).lower())), [np.asarray(10), x])
    rows = x.sum(1)
    want = 10 + (np.cumsum(rows[::-1])[::-1] if reverse else np.cumsum(rows))
    np.testing.assert_array_equal(y, want)
    assert n == 10 + rows.sum()


def test_compound_sizes_are_solved() -> None:
    fn = parse_function("""
graph @f(%x: f32[2*B, S], %y: f32[B]) {
  %n = size() {value = <B*S+1>} : int64[]
  %r = reshape(%x) {shape = (<B>, <2*S>)} : f32[B, 2*S]
  return(%n, %r)
}""")
    n, r = interpret(fn, [np.zeros((6, 5), np.float32), np.zeros(3, np.float32)])
    assert n == 16 and r.shape == (3, 10)


@pytest.mark.parametrize(("arrays", "message"), [
    ([np.zeros((2, 3), np.float64), np.zeros(2, np.float32)], "parameter 0 of @f is f32"),
    ([np.zeros((2, 3), np.float32), np.zeros(3, np.float32)], "parameter 1 of @f is f32\\[B\\]; the array has the shape \\[3\\]"),
    ([np.zeros((2, 3), np.float32)], "@f takes 2 arrays, not 1"),
])
def test_arrays_that_do_not_fit(arrays: list[np.ndarray], message: str) -> None:
    fn = parse_function("graph @f(%x: f32[B, 3], %y: f32[B]) {\n  return(%x)\n}")
    with pytest.raises(ValueError, match=message):
        interpret(fn, arrays)


def test_a_meaning_that_contradicts_its_type_is_noticed() -> None:
    fn = parse_function("graph @f(%x: f32[3]) {\n  %y = neg(%x) : f64[3]\n  return(%y)\n}")
    with pytest.raises(GrammarError, match="the numpy meaning gives float32"):
        interpret(fn, [np.zeros(3, np.float32)])


def test_unknown_op() -> None:
    with pytest.raises(GrammarError, match="there is no op 'frobnicate'"):
        interpret(parse_function("graph @f(%x: f32[3]) {\n  %y = frobnicate(%x) : f32[3]\n  return(%y)\n}"), [np.zeros(3, np.float32)])
