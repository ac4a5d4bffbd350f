"""Lowering of sched kernels: bit-equal to the sched interpreter on every kind of access and reduction."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))
from lowering import check, lowered, sched

RNG = np.random.default_rng(7)


def randn(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def zeros(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


ADD = """sched @f(%x: buf<f32[B, {n}]>, %y: buf<f32[{n}]>, %o: buf<f32[B, {n}]>) with {{sizes = ("B",)}} {{
  kernel(%x, %y, %o) {{grid = (("i", <B>), ("j", {n})), outs = (2,)}} do(%a: buf<f32[B, {n}]>, %b: buf<f32[{n}]>, %c: buf<f32[B, {n}]>) {{
    %0 = load(%a) {{index = (<i>, <j>)}} : f32
    %1 = load(%b) {{index = (<j>,)}} : f32
    %2 = add(%0, %1) : f32
    store(%c, %2) {{index = (<i>, <j>)}}
    yield()
  }}
  return()
}}"""


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 33, 64, 65, 100])
@pytest.mark.parametrize("b", [0, 1, 5])
def test_broadcast_add(n: int, b: int) -> None:
    x, y = randn(b, n), randn(n)
    assert np.array_equal(check(ADD.format(n=n), [x, y, zeros(b, n)], {"B": b})[2], x + y)


def test_one_loop_when_all_accesses_walk_together() -> None:
    text = """sched @f(%x: buf<f32[B, S, 7]>, %o: buf<f32[B, S, 7]>) with {sizes = ("B", "S")} {
      kernel(%x, %o) {grid = (("i", <B>), ("j", <S>), ("k", 7)), outs = (1,)} do(%a: buf<f32[B, S, 7]>, %c: buf<f32[B, S, 7]>) {
        %0 = load(%a) {index = (<i>, <j>, <k>)} : f32
        %1 = mul(%0, %0) : f32
        store(%c, %1) {index = (<i>, <j>, <k>)}
        yield()
      }
      return()
    }"""
    assert str(lowered(sched(text)).attrs["grid"][0]).count("B*S") == 1
    for b, s in ((1, 1), (3, 5), (2, 90)):
        x = randn(b, s, 7)
        assert np.array_equal(check(text, [x, zeros(b, s, 7)], {"B": b, "S": s})[1], x * x)


SOFTMAX = """sched @f(%x: buf<f32[B, {n}]>, %o: buf<f32[B, {n}]>) with {{sizes = ({sizes})}} {{
  kernel(%x, %o) {{grid = (("i", <B>),), outs = (1,)}} do(%a: buf<f32[B, {n}]>, %c: buf<f32[B, {n}]>) {{
    %m = reduce() {{over = (("j", {n}),), combine = "max", lanes = {lanes}}} do() {{
      %0 = load(%a) {{index = (<i>, <j>)}} : f32
      yield(%0)
    }} : f32
    %s = reduce() {{over = (("k", {n}),), combine = "add", lanes = {lanes}}} do() {{
      %1 = load(%a) {{index = (<i>, <k>)}} : f32
      %2 = sub(%1, %m) : f32
      %3 = exp(%2) : f32
      store(%c, %3) {{index = (<i>, <k>)}}
      yield(%3)
    }} : f32
    for() {{over = (("l", {n}),)}} do() {{
      %4 = load(%c) {{index = (<i>, <l>)}} : f32
      %5 = div(%4, %s) : f32
      store(%c, %5) {{index = (<i>, <l>)}}
      yield()
    }}
    yield()
  }}
  return()
}}"""


@pytest.mark.parametrize("n", [1, 3, 16, 64, 65, 130, 257])
@pytest.mark.parametrize("lanes", [1, 16, 64])
def test_softmax(n: int, lanes: int) -> None:
    x = randn(3, n)
    got = check(SOFTMAX.format(n=n, lanes=lanes, sizes='"B",'), [x, zeros(3, n)], {"B": 3})[1]
    e = np.exp(x - x.max(1, keepdims=True))
    assert np.allclose(got, e / e.sum(1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("n", [0, 1, 63, 64, 200, 30000])
def test_softmax_with_symbolic_rows(n: int) -> None:
    check(SOFTMAX.format(n="<S>", lanes=64, sizes='"B", "S"').replace("[B, <S>]", "[B, S]"),
          [randn(4, n), zeros(4, n)], {"B": 4, "S": n})


MOMENTS = """sched @f(%x: buf<f32[B, 100]>, %o: buf<f32[B]>, %p: buf<f32[B]>) with {sizes = ("B",)} {
  kernel(%x, %o, %p) {grid = (("i", <B>),), outs = (1, 2)} do(%a: buf<f32[B, 100]>, %c: buf<f32[B]>, %d: buf<f32[B]>) {
    %s = reduce() {over = (("j", 100),), combine = "add", lanes = 64} do() {
      %0 = load(%a) {index = (<i>, <j>)} : f32
      yield(%0)
    } : f32
    %q = reduce() {over = (("k", 100),), combine = "add", lanes = 64} do() {
      %1 = load(%a) {index = (<i>, <k>)} : f32
      %2 = mul(%1, %1) : f32
      yield(%2)
    } : f32
    store(%c, %s) {index = (<i>,)}
    store(%d, %q) {index = (<i>,)}
    yield()
  }
  return()
}"""


def test_first_pass_over_a_long_row_asks_for_lines_ahead() -> None:
    program = str(lowered(sched(SOFTMAX.format(n=4096, lanes=64, sizes='"B",'))))
    assert program.count("prefetch(") == 4  # the maximum's loop; the row is in the cache afterwards
    assert "prefetch(" not in str(lowered(sched(SOFTMAX.format(n=128, lanes=64, sizes='"B",'))))


def test_independent_reductions_share_one_pass() -> None:
    assert str(lowered(sched(MOMENTS))).count("load(") == 2  # one whole tile, one masked
    x = randn(5, 100)
    got = check(MOMENTS, [x, zeros(5), zeros(5)], {"B": 5})
    assert np.allclose(got[2], (x * x).sum(1), rtol=1e-5)


REDUCE = """sched @f(%x: buf<{t}[{m}, {n}]>, %o: buf<{t}[{out}]>) {{
  kernel(%x, %o) {{grid = (("i", {out}),), outs = (1,)}} do(%a: buf<{t}[{m}, {n}]>, %c: buf<{t}[{out}]>) {{
    %s = reduce() {{over = (("j", {k}),), combine = "{combine}", lanes = {lanes}}} do() {{
      %0 = load(%a) {{index = ({index})}} : {t}
      yield(%0)
    }} : {t}
    store(%c, %s) {{index = (<i>,)}}
    yield()
  }}
  return()
}}"""


@pytest.mark.parametrize("combine", ["add", "mul", "max", "min"])
@pytest.mark.parametrize("n", [0, 1, 5, 64, 131])
@pytest.mark.parametrize("lanes", [1, 4, 64])
@pytest.mark.parametrize("axis", [0, 1])
def test_reductions_of_a_matrix(combine: str, n: int, lanes: int, axis: int) -> None:
    m, cols, out, index = (n, 19, 19, "<j>, <i>") if axis == 0 else (4, n, 4, "<i>, <j>")
    text = REDUCE.format(t="f32", m=m, n=cols, k=n, out=out, combine=combine, lanes=lanes, index=index)
    check(text, [randn(m, cols), zeros(out)])


@pytest.mark.parametrize("combine", ["add", "mul", "max", "min", "and", "or", "xor"])
def test_integer_reductions(combine: str) -> None:
    x = RNG.integers(-99, 99, (3, 77)).astype(np.int32)
    text = REDUCE.format(t="int32", m=3, n=77, k=77, out=3, combine=combine, lanes=64, index="<i>, <j>")
    check(text, [x, np.zeros(3, np.int32)])


def test_nan_wins_a_maximum() -> None:
    x = randn(4, 77)
    x[1, 5] = x[2, 76] = np.nan
    text = REDUCE.format(t="f32", m=4, n=77, k=77, out=4, combine="max", lanes=64, index="<i>, <j>")
    assert np.array_equal(np.isnan(check(text, [x, zeros(4)])[1]), [False, True, True, False])


ARG = """sched @f(%x: buf<f32[{m}, {n}]>, %o: buf<int64[{out}]>) {{
  kernel(%x, %o) {{grid = (("i", {out}),), outs = (1,)}} do(%a: buf<f32[{m}, {n}]>, %c: buf<int64[{out}]>) {{
    %s, %q = reduce() {{over = (("j", {k}),), combine = "{combine}", lanes = {lanes}}} do() {{
      %0 = load(%a) {{index = ({index})}} : f32
      %1 = index() {{value = <j>}} : int64
      yield(%0, %1)
    }} : f32, int64
    store(%c, %q) {{index = (<i>,)}}
    yield()
  }}
  return()
}}"""


@pytest.mark.parametrize("combine", ["argmax", "argmin"])
@pytest.mark.parametrize("n", [1, 2, 30, 64, 150])
@pytest.mark.parametrize("axis", [0, 1])
def test_arg_reductions(combine: str, n: int, axis: int) -> None:
    x = RNG.integers(0, 4, (n, 9) if axis == 0 else (9, n)).astype(np.float32)
    if n > 2:
        x[tuple([(n // 2, 3), (3, n // 2)][axis])] = np.nan
        x[tuple([(n - 1, 3), (3, n - 1)][axis])] = np.nan
        x[(slice(None), 5) if axis == 0 else (5, slice(None))] = -np.inf if combine == "argmax" else np.inf
    index = "<j>, <i>" if axis == 0 else "<i>, <j>"
    text = ARG.format(m=x.shape[0], n=x.shape[1], k=n, out=9, combine=combine, lanes=64 if axis else 1, index=index)
    got = check(text, [x, np.zeros(9, np.int64)])[1]
    assert np.array_equal(got, getattr(np, combine)(x, axis=axis))


@pytest.mark.parametrize("n", [1, 3, 20, 32, 50, 64, 100, 131])
@pytest.mark.parametrize("lanes", [16, 64])
@pytest.mark.parametrize("symbolic", [False, True])
def test_reduction_over_two_loops_that_do_not_merge(n: int, lanes: int, symbolic: bool) -> None:
    s = "S" if symbolic else n
    text = f"""sched @f(%x: buf<f32[4, 3, {s}]>, %o: buf<f32[3]>) with {{sizes = ({'"S",' if symbolic else ''})}} {{
      kernel(%x, %o) {{grid = (("c", 3),), outs = (1,)}} do(%a: buf<f32[4, 3, {s}]>, %d: buf<f32[3]>) {{
        %s = reduce() {{over = (("i", 4), ("j", <{s}>)), combine = "add", lanes = {lanes}}} do() {{
          %0 = load(%a) {{index = (<i>, <c>, <j>)}} : f32
          yield(%0)
        }} : f32
        store(%d, %s) {{index = (<c>,)}}
        yield()
      }}
      return()
    }}"""
    x = randn(4, 3, n)
    assert np.allclose(check(text, [x, zeros(3)], {"S": n})[1], x.sum((0, 2)), rtol=1e-3, atol=1e-4)


def test_reduction_of_everything() -> None:
    text = """sched @f(%x: buf<f32[B, S]>, %o: buf<f32[]>) with {sizes = ("B", "S")} {
      kernel(%x, %o) {grid = (), outs = (1,)} do(%a: buf<f32[B, S]>, %d: buf<f32[]>) {
        %s = reduce() {over = (("i", <B>), ("j", <S>)), combine = "add", lanes = 64} do() {
          %0 = load(%a) {index = (<i>, <j>)} : f32
          yield(%0)
        } : f32
        store(%d, %s) {index = ()}
        yield()
      }
      return()
    }"""
    for b, s in ((1, 1), (3, 50), (7, 64)):
        check(text, [randn(b, s), np.zeros((), np.float32)], {"B": b, "S": s})


TRANSPOSE = """sched @f(%x: buf<f32[{m}, {n}]>, %y: buf<f32[{n}, {m}]>, %o: buf<f32[{n}, {m}]>) {{
  kernel(%x, %y, %o) {{grid = (("i", {n}), ("j", {m})), outs = (2,)}} do(
      %a: buf<f32[{m}, {n}]>, %b: buf<f32[{n}, {m}]>, %c: buf<f32[{n}, {m}]>) {{
    %0 = load(%a) {{index = (<j>, <i>)}} : f32
    %1 = load(%b) {{index = (<i>, <j>)}} : f32
    %2 = add(%0, %1) : f32
    store(%c, %2) {{index = (<i>, <j>)}}
    yield()
  }}
  return()
}}"""


@pytest.mark.parametrize("m, n", [(1, 5), (16, 16), (17, 40), (33, 130)])
def test_transposed_operand(m: int, n: int) -> None:
    x, y = randn(m, n), randn(n, m)
    assert np.array_equal(check(TRANSPOSE.format(m=m, n=n), [x, y, zeros(n, m)])[2], x.T + y)


def test_transposition_moves_whole_tiles() -> None:
    program = str(lowered(sched(TRANSPOSE.format(m=64, n=64))))
    assert "transpose(" in program
    assert "gather(" not in program


@pytest.mark.parametrize("index, fn", [
    ("<99-i>", lambda x: x[:100][::-1]),
    ("<2*i>", lambda x: x[::2]),
    ("<2*i+1>", lambda x: x[1::2]),
    ("<i//3>", lambda x: np.repeat(x, 3)[:100]),
    ("<i%7>", lambda x: np.tile(x[:7], 15)[:100]),
    ("<(i%10)*10+i//10>", lambda x: x[:100].reshape(10, 10).T.ravel()),
])
def test_index_expressions(index: str, fn: object) -> None:
    text = f"""sched @f(%x: buf<f32[200]>, %o: buf<f32[100]>) {{
      kernel(%x, %o) {{grid = (("i", 100),), outs = (1,)}} do(%a: buf<f32[200]>, %c: buf<f32[100]>) {{
        %0 = load(%a) {{index = ({index},)}} : f32
        store(%c, %0) {{index = (<i>,)}}
        yield()
      }}
      return()
    }}"""
    x = randn(200)
    assert np.array_equal(check(text, [x, zeros(100)])[1], fn(x))  # type: ignore[operator]


def test_gathered_rows() -> None:
    text = """sched @f(%t: buf<f32[50, 20]>, %k: buf<int64[B]>, %o: buf<f32[B, 20]>) with {sizes = ("B",)} {
      kernel(%t, %k, %o) {grid = (("i", <B>), ("j", 20)), outs = (2,)} do(%a: buf<f32[50, 20]>, %b: buf<int64[B]>, %c: buf<f32[B, 20]>) {
        %0 = load(%b) {index = (<i>,)} : int64
        %1 = load(%a, %0) {index = (<g0>, <j>), dyn = ("g0",)} : f32
        store(%c, %1) {index = (<i>, <j>)}
        yield()
      }
      return()
    }"""
    table, rows = randn(50, 20), RNG.integers(0, 50, 13)
    assert np.array_equal(check(text, [table, rows, zeros(13, 20)], {"B": 13})[2], table[rows])
    assert "gather(" not in str(lowered(sched(text)))  # a row is contiguous


def test_gathered_elements() -> None:
    text = """sched @f(%t: buf<f32[50, 20]>, %k: buf<int64[B]>, %o: buf<f32[B]>) with {sizes = ("B",)} {
      kernel(%t, %k, %o) {grid = (("i", <B>),), outs = (2,)} do(%a: buf<f32[50, 20]>, %b: buf<int64[B]>, %c: buf<f32[B]>) {
        %0 = load(%b) {index = (<i>,)} : int64
        %1 = load(%a, %0) {index = (<g0>, 3), dyn = ("g0",)} : f32
        store(%c, %1) {index = (<i>,)}
        yield()
      }
      return()
    }"""
    table, rows = randn(50, 20), RNG.integers(0, 50, 37)
    assert np.array_equal(check(text, [table, rows, zeros(37)], {"B": 37})[2], table[rows, 3])


def test_padding_is_a_guard() -> None:
    text = """sched @f(%x: buf<f32[B]>, %o: buf<f32[B+5]>) with {sizes = ("B",)} {
      kernel(%x, %o) {grid = (("i", <B+5>),), outs = (1,)} do(%a: buf<f32[B]>, %c: buf<f32[B+5]>) {
        %0 = index() {value = <i>} : int64
        %1 = constant() {value = 2} : int64
        %2 = ge(%0, %1) : bool
        %3 = index() {value = <B+2>} : int64
        %4 = lt(%0, %3) : bool
        %5 = logical_and(%2, %4) : bool
        %6 = guard(%5) {other = -1.0} do() {
          %7 = load(%a) {index = (<i-2>,)} : f32
          yield(%7)
        } : f32
        store(%c, %6) {index = (<i>,)}
        yield()
      }
      return()
    }"""
    for b in (1, 16, 61, 200):
        x = randn(b)
        assert np.array_equal(check(text, [x, zeros(b + 5)], {"B": b})[1], np.pad(x, (2, 3), constant_values=-1))


def test_guard_on_a_row() -> None:
    text = """sched @f(%x: buf<f32[4, 30]>, %y: buf<f32[3, 30]>, %o: buf<f32[7, 30]>) {
      kernel(%x, %y, %o) {grid = (("i", 7), ("j", 30)), outs = (2,)} do(%a: buf<f32[4, 30]>, %b: buf<f32[3, 30]>, %c: buf<f32[7, 30]>) {
        %0 = index() {value = <i>} : int64
        %1 = constant() {value = 4} : int64
        %2 = lt(%0, %1) : bool
        %3 = logical_not(%2) : bool
        %4 = guard(%2) {other = 0.0} do() {
          %5 = load(%a) {index = (<i>, <j>)} : f32
          yield(%5)
        } : f32
        %6 = guard(%3) {other = 0.0} do() {
          %7 = load(%b) {index = (<i-4>, <j>)} : f32
          yield(%7)
        } : f32
        %8 = select(%2, %4, %6) : f32
        store(%c, %8) {index = (<i>, <j>)}
        yield()
      }
      return()
    }"""
    x, y = randn(4, 30), randn(3, 30)
    assert np.array_equal(check(text, [x, y, zeros(7, 30)])[2], np.concatenate([x, y]))


def test_low_precision_and_bool() -> None:
    text = """sched @f(%x: buf<f16[70]>, %o: buf<bool[70]>) {
      kernel(%x, %o) {grid = (("i", 70),), outs = (1,)} do(%a: buf<f16[70]>, %c: buf<bool[70]>) {
        %0 = load(%a) {index = (<i>,)} : f16
        %1 = convert(%0) : f32
        %2 = constant() {value = 0.5} : f32
        %3 = gt(%1, %2) : bool
        store(%c, %3) {index = (<i>,)}
        yield()
      }
      return()
    }"""
    x = randn(70).astype(np.float16)
    assert np.array_equal(check(text, [x, np.zeros(70, bool)])[1], x > 0.5)


@pytest.mark.parametrize("tile", [16, 100, 5000])
def test_block_size_does_not_change_bits(tile: int) -> None:
    x = randn(9, 130)
    text = SOFTMAX.format(n=130, lanes=64, sizes='"B",')
    whole = check(text, [x, zeros(9, 130)], {"B": 9})[1]
    assert np.array_equal(whole, check(text, [x, zeros(9, 130)], {"B": 9}, tile=(tile,))[1])


def test_small_product_keeps_rows_of_lanes() -> None:
    text = """sched @f(%x: buf<f32[6, 10]>, %y: buf<f32[10, 35]>, %o: buf<f32[6, 35]>) {
      kernel(%x, %y, %o) {grid = (("i", 6), ("j", 35)), outs = (2,)} do(%a: buf<f32[6, 10]>, %b: buf<f32[10, 35]>, %c: buf<f32[6, 35]>) {
        %s = reduce() {over = (("k", 10),), combine = "add", lanes = 1} do() {
          %0 = load(%a) {index = (<i>, <k>)} : f32
          %1 = load(%b) {index = (<k>, <j>)} : f32
          %2 = mul(%0, %1) : f32
          yield(%2)
        } : f32
        store(%c, %s) {index = (<i>, <j>)}
        yield()
      }
      return()
    }"""
    x, y = randn(6, 10), randn(10, 35)
    assert np.allclose(check(text, [x, y, zeros(6, 35)])[2], x @ y, atol=1e-5)


COMPLEX = """sched @f(
    %x: buf<complex64[B, 7]>, %y: buf<complex64[B, 7]>, %o: buf<complex64[B, 7]>, %p: buf<f32[B, 7]>) with {sizes = ("B",)} {
  kernel(%x, %y, %o, %p) {grid = (("i", <B>), ("j", 7)), outs = (2, 3)} do(
      %a: buf<complex64[B, 7]>, %b: buf<complex64[B, 7]>, %c: buf<complex64[B, 7]>, %d: buf<f32[B, 7]>) {
    %0 = load(%a) {index = (<i>, <j>)} : complex64
    %1 = load(%b) {index = (<i>, <6-j>)} : complex64
    %2 = mul(%0, %1) : complex64
    %3 = constant() {value = complex(0.5, -2.0)} : complex64
    %4 = add(%2, %3) : complex64
    %5 = sub(%4, %1) : complex64
    store(%c, %5) {index = (<i>, <j>)}
    %6 = ne(%0, %1) : bool
    %7 = select(%6, %4, %0) : complex64
    store(%d, %8) {index = (<i>, <j>)}
    yield()
  }
  return()
}"""


def randc(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) + 1j * RNG.standard_normal(shape)).astype(np.complex64)


@pytest.mark.parametrize("b", [1, 5, 40])
def test_complex_numbers_are_pairs(b: int) -> None:
    text = COMPLEX.replace("store(%d, %8)", "%8 = convert(%7) : f32\n    store(%d, %8)")
    x, y = randc(b, 7), randc(b, 7)
    got = check(text, [x, y, np.zeros_like(x), zeros(b, 7)], {"B": b})
    other = y[:, ::-1]
    assert np.allclose(got[2], x * other + (0.5 - 2j) - other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("n", [1, 31, 64, 100])
def test_complex_sum(n: int) -> None:
    text = REDUCE.format(t="complex64", m=3, n=n, k=n, out=3, combine="add", lanes=16, index="<i>, <j>")
    x = randc(3, n)
    assert np.allclose(check(text, [x, np.zeros(3, np.complex64)])[1], x.sum(1), atol=1e-4)
    program = str(lowered(sched(text)))
    assert "gather(" not in program
