"""The vector maths: accuracy against f64 and mpmath, special values, and equal bits compiled and interpreted."""

from __future__ import annotations

import sys
from math import inf, nan
from pathlib import Path

import mpmath
import numpy as np
import pytest

from tessera.ir import tile as tile_ir
from tessera.ir.text import parse_function
from tessera.targets.cpu.emit_pointwise import BASIC
from tessera.tiling.vmath import EXPANSIONS, expand
from tessera.types.dtypes import as_dtype

sys.path.insert(0, str(Path(__file__).parent.parent / "targets" / "cpu"))
sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))
import accuracy
from emit_harness import Compiled, check

# Largest error allowed, in ulp: (f32, f64).  Everything else: (2, 2).
BOUNDS = {"exp": (1, 1), "log": (1, 1), "tanh": (1, 2), "erf": (1, 1), "sin": (1, 1), "cos": (1, 1), "erfc": (2, 3)}
# Loss of digits that the operation itself has: results that cancel to nearly 0.
CANCELS = {"logaddexp": 12, "digamma": 40, "lgamma": 40}


def program(name: str, dtype: str, n: int, operands: int) -> str:
    xs = ", ".join(f"%x{i}: buf<{dtype}[{n}]>" for i in range(operands))
    loads = "\n".join(f"%t{i} = load(%x{i}, %o) : tile<{dtype}[{n}]>" for i in range(operands))
    return f"""tile @{name}({xs}, %y: buf<{dtype}[{n}]>) with {{grid = (), sizes = (), writes = ({operands},)}} {{
      %o = constant() {{value = 0}} : int64
      {loads}
      %r = {name}({", ".join(f"%t{i}" for i in range(operands))}) : tile<{dtype}[{n}]>
      store(%y, %o, %r)
      return()
    }}"""


def evaluate(name: str, dtype: str, *args: list[float]) -> np.ndarray:
    arrays = [np.asarray(a, np.float64).astype(as_dtype(dtype).np) for a in args]
    out = np.zeros_like(arrays[0])
    fn = expand(parse_function(program(name, dtype, len(out), len(arrays))))
    Compiled(fn)([*arrays, out])
    return out


def test_every_transcendental_of_the_vocabulary_expands_into_basic_ops() -> None:
    missing = [n for n in tile_ir.POINTWISE if n not in BASIC and n not in EXPANSIONS]
    assert not missing
    for name in EXPANSIONS:
        operands = tile_ir.POINTWISE[name][0]
        for dtype in ("f32", "f64", "bf16"):
            fn = expand(parse_function(program(name, dtype, 20, operands)))
            tile_ir.verify(fn)
            left = {op.name for op in fn.walk() if op.name in tile_ir.POINTWISE} - BASIC
            assert not left, (name, dtype, left)


@pytest.mark.parametrize("name", sorted(accuracy.EXACT))
def test_accuracy(name: str) -> None:
    bounds = BOUNDS.get(name, (2, 2))
    n = 25 if name in ("lgamma", "digamma", "erfinv") else 60
    for dtype, bound in zip((np.float32, np.float64), bounds, strict=True):
        error, where = accuracy.measure(name, dtype, n)
        if dtype is np.float64:
            bound = CANCELS.get(name, bound)
        assert error <= bound, (name, dtype, error, where)


@pytest.mark.parametrize("name", sorted(EXPANSIONS))
def test_compiled_equals_interpreted(name: str) -> None:
    operands = tile_ir.POINTWISE[name][0]
    rng = np.random.default_rng(5)
    special = [0.0, -0.0, 1.0, -1.0, inf, -inf, nan, 1e-40, 5e-324, 0.5, 2.0, -3.0, 1e30, 88.7, -103.5, 709.5]
    for dtype in ("f32", "f64"):
        n = 48
        xs = [np.concatenate([rng.permutation(special), rng.standard_normal(n - 16) * 3]).astype(as_dtype(dtype).np)
              for _ in range(operands)]
        check(expand(parse_function(program(name, dtype, n, operands))), [*xs, np.zeros(n, as_dtype(dtype).np)])


def test_scalars_and_narrow_formats() -> None:
    text = """tile @scalars(%x: buf<f32[4]>, %h: buf<bf16[20]>) with {grid = (4,), sizes = (), writes = (0, 1)} {
      %p = program_id() {axis = 0} : int64
      %z = constant() {value = 0} : int64
      %s = load(%x, %p) : f32
      %e = exp(%s) : f32
      %c = cos(%e) : f32
      %l = log(%e) : f32
      %m = fma(%c, %l, %e) : f32
      store(%x, %p, %m)
      %first = eq(%p, %z) : bool
      if(%first) do() {
        %t = load(%h, %z) : tile<bf16[20]>
        %u = tanh(%t) : tile<bf16[20]>
        %w = sin(%u) : tile<bf16[20]>
        store(%h, %z, %w)
        yield()
      } do() {
        yield()
      }
      return()
    }"""
    h = np.linspace(-3, 3, 20).astype(np.float32).astype(as_dtype("bf16").np)
    check(expand(parse_function(text)), [np.array([0.5, 1e9, -2, 88], np.float32), h])


SPECIAL: list[tuple[str, list[float], list[float]]] = [
    ("exp", [0.0, inf, -inf, nan, 1000.0, -1000.0, -0.0], [1.0, inf, 0.0, nan, inf, 0.0, 1.0]),
    ("exp2", [0.0, inf, -inf, nan, 3.0, -2000.0], [1.0, inf, 0.0, nan, 8.0, 0.0]),
    ("expm1", [0.0, -0.0, inf, -inf, nan, 2000.0], [0.0, -0.0, inf, -1.0, nan, inf]),
    ("log", [1.0, 0.0, -0.0, inf, -1.0, nan, -inf], [0.0, -inf, -inf, inf, nan, nan, nan]),
    ("log2", [1.0, 8.0, 0.0, inf, -1.0, 0.25], [0.0, 3.0, -inf, inf, nan, -2.0]),
    ("log10", [1.0, 1000.0, 0.0, inf, -1.0], [0.0, 3.0, -inf, inf, nan]),
    ("log1p", [0.0, -0.0, -1.0, inf, -2.0, nan], [0.0, -0.0, -inf, inf, nan, nan]),
    ("tanh", [0.0, -0.0, inf, -inf, nan, 100.0], [0.0, -0.0, 1.0, -1.0, nan, 1.0]),
    ("sigmoid", [0.0, inf, -inf, nan], [0.5, 1.0, 0.0, nan]),
    ("erf", [0.0, -0.0, inf, -inf, nan], [0.0, -0.0, 1.0, -1.0, nan]), ("erfc", [0.0, inf, -inf, nan], [1.0, 0.0, 2.0, nan]),
    ("erfinv", [0.0, -0.0, 1.0, -1.0, 2.0, nan], [0.0, -0.0, inf, -inf, nan, nan]),
    ("sin", [0.0, -0.0, inf, -inf, nan], [0.0, -0.0, nan, nan, nan]), ("cos", [0.0, inf, nan], [1.0, nan, nan]),
    ("tan", [0.0, -0.0, inf, nan], [0.0, -0.0, nan, nan]), ("asin", [0.0, -0.0, 2.0, nan], [0.0, -0.0, nan, nan]),
    ("acos", [1.0, 2.0, -2.0, nan], [0.0, nan, nan, nan]), ("sinh", [0.0, -0.0, inf, -inf, nan], [0.0, -0.0, inf, -inf, nan]),
    ("cosh", [0.0, inf, -inf, nan], [1.0, inf, inf, nan]), ("asinh", [0.0, -0.0, inf, -inf, nan], [0.0, -0.0, inf, -inf, nan]),
    ("acosh", [1.0, inf, 0.5, nan], [0.0, inf, nan, nan]), ("atanh", [0.0, -0.0, 1.0, -1.0, 2.0, nan], [0.0, -0.0, inf, -inf, nan, nan]),
    ("cbrt", [0.0, -0.0, 27.0, -8.0, inf, -inf, nan], [0.0, -0.0, 3.0, -2.0, inf, -inf, nan]),
    ("rsqrt", [4.0, 0.0, inf, -1.0, nan], [0.5, inf, 0.0, nan, nan]),
    ("lgamma", [1.0, 2.0, inf, -inf, 0.0, -1.0, nan], [0.0, 0.0, inf, inf, inf, inf, nan]),
    ("digamma", [0.0, -1.0, inf, nan], [-inf, nan, inf, nan]),
]


@pytest.mark.parametrize("dtype", ["f32", "f64"])
@pytest.mark.parametrize("name,x,want", SPECIAL, ids=[s[0] for s in SPECIAL])
def test_special_values(name: str, x: list[float], want: list[float], dtype: str) -> None:
    got = evaluate(name, dtype, x)
    np.testing.assert_array_equal(got, np.array(want, got.dtype))
    keep = ~np.isnan(got)
    assert (np.signbit(got) == np.signbit(np.array(want)))[keep].all()


def test_powers_of_special_operands() -> None:
    x = [0.0, -0.0, inf, -inf, 1.0, -1.0, 2.0, -2.0, -2.0, nan, 0.5, -8.0, 3.0]
    for dtype in ("f32", "f64"):
        t = as_dtype(dtype).np
        a, b = (m.ravel().astype(t) for m in np.meshgrid(np.array(x), np.array([*x, 1e300 if dtype == "f64" else 1e30, 7.0, -7.0])))
        got = evaluate("pow", dtype, list(a), list(b))
        with np.errstate(all="ignore"):
            want = np.power(a, b)
        np.testing.assert_array_max_ulp(got[np.isfinite(want)], want[np.isfinite(want)], 2)
        np.testing.assert_array_equal(got[~np.isfinite(want)], want[~np.isfinite(want)])
        assert (np.signbit(got) == np.signbit(want))[~np.isnan(want)].all()


def test_angles_of_axes() -> None:
    x = np.array([0.0, -0.0, 1.0, -1.0, inf, -inf, 1e-310, 1e308])
    y, x = (m.ravel() for m in np.meshgrid(x, x))
    got = evaluate("atan2", "f64", list(y), list(x))
    want = np.arctan2(y, x)
    np.testing.assert_array_max_ulp(got, want, 2)
    assert (np.signbit(got) == np.signbit(want)).all()


def test_huge_angles() -> None:
    x = np.array([1e22, 2.0**1000, 1.7976931348623157e308, 6381956970095103.0 * 2.0**797, 1e10, 134217728.0, -134217727.5])
    with mpmath.workprec(1400):
        want = np.array([float(mpmath.sin(mpmath.mpf(v))) for v in x.tolist()])
    np.testing.assert_array_max_ulp(evaluate("sin", "f64", list(x)), want, 1)


def test_remainders_are_exact() -> None:
    rng = np.random.default_rng(3)
    for dtype in ("f32", "f64"):
        t = as_dtype(dtype).np
        a = (rng.standard_normal(64) * 10.0 ** rng.integers(-20, 20, 64)).astype(t)
        b = (rng.standard_normal(64) * 10.0 ** rng.integers(-20, 20, 64)).astype(t)
        a[:10], b[:10] = [5, -5, 5, -5, 0, -0.0, inf, 1, 1, nan], [3, 3, -3, -3, 2, 2, 2, inf, 0, 1]
        a[10:13], b[10:13] = [6, -6, 7.5], [3, 3, 2.5]
        got = evaluate("mod", dtype, list(a), list(b))
        with np.errstate(all="ignore"):
            want = np.fmod(a, b)
            want = np.where((want != 0) & ((want < 0) != (b < 0)), want + b, want)
        np.testing.assert_array_equal(got, want)
        quotient = evaluate("floor_div", dtype, list(a), list(b))
        small = np.isfinite(a) & np.isfinite(b) & (b != 0) & (np.abs(a / np.where(b == 0, 1, b)) < 2**20)
        np.testing.assert_array_equal(quotient[small], np.floor_divide(a[small], b[small]))


@pytest.mark.parametrize("dtype", ["f32", "f64"])
def test_floor_division_by_infinity(dtype: str) -> None:
    a, b = [-1.0, 1.0, -3.0, 5.0, 0.0, inf, nan], [inf, inf, -inf, -inf, -inf, inf, inf]
    np.testing.assert_array_equal(evaluate("floor_div", dtype, a, b), [-1, 0, 0, -1, 0, nan, nan])


def test_next_floats() -> None:
    x = np.array([1.0, 1.0, 0.0, -0.0, 0.0, 1e-45, -1.0, inf, 3.4028235e38, nan, 2.0], np.float32)
    y = np.array([2.0, 0.0, 1.0, 1.0, -1.0, 0.0, 0.0, 0.0, inf, 1.0, 2.0], np.float32)
    got = evaluate("nextafter", "f32", list(x), list(y))
    np.testing.assert_array_equal(got.view(np.uint32)[:9], np.nextafter(x, y).view(np.uint32)[:9])
    assert np.isnan(got[9]) and got[10] == 2.0
