"""Functions of complex numbers against mpmath, at the places where a plain formula would lose them, and their derivatives."""

from __future__ import annotations

from typing import Any

import mpmath
import numpy as np
import pytest
from sweep import rng_for
from ways import host_compiler, traced

import tessera as ts
from tessera.errors import DTypeError
from tessera.ir.interpret_graph import interpret
from tessera.ops.complex_functions import FUNCTIONS
from tessera.transforms.expand import expand_composites

EXACT: dict[str, Any] = {
    **{n: getattr(mpmath, n) for n in ("exp", "sin", "cos", "tan", "sinh", "cosh", "tanh", "log", "sqrt")},
    **{n: getattr(mpmath, n) for n in ("asin", "acos", "atan", "asinh", "acosh", "atanh", "expm1")},
    "exp2": lambda z: mpmath.mpf(2) ** z, "log1p": mpmath.log1p, "sigmoid": lambda z: 1 / (1 + mpmath.exp(-z)),
    "log2": lambda z: mpmath.log(z) / mpmath.log(2), "log10": lambda z: mpmath.log(z) / mpmath.log(10),
    "reciprocal": lambda z: 1 / z, "rsqrt": lambda z: 1 / mpmath.sqrt(z),
}
ULP = {np.complex64: 0.75, np.complex128: 5.0}  # in units in the last place of |f(z)|


def points(kind: Any) -> np.ndarray:
    """Over all sizes and angles; next to |z| = 1, to poles and zeros, and to overflow."""
    rng, n = rng_for("complex", kind), 60
    turn = lambda: np.exp(1j * rng.uniform(-np.pi, np.pi, n))
    off = lambda: 1e-3 * (rng.standard_normal(n) + 1j * rng.standard_normal(n))
    half = lambda: (rng.integers(-3, 4, n) + 0.5) * np.pi
    wide, end = (37, 88) if kind is np.complex64 else (307, 710.2)
    parts = [off() * 1e3, turn(), turn() + 1e-6 * off(), 10.0 ** rng.uniform(-wide, wide, n) * turn(), half() + off(), 1j * half() + off(),
             rng.uniform(-end, end, n) + 1j * rng.uniform(-50, 50, n), rng.uniform(-50, 50, n) + 1j * rng.uniform(-end, end, n)]
    return np.concatenate(parts).astype(kind)


@pytest.mark.parametrize("kind", [np.complex64, np.complex128], ids=lambda k: k.__name__)
def test_accuracy(kind: Any) -> None:
    z, info = points(kind), np.finfo(kind)
    graph, _ = traced(lambda z: [getattr(ts, name)(z) for name in EXACT], (z,))
    for (name, exact), got in zip(EXACT.items(), host_compiler().compile(graph)([z]), strict=True):
        for at, value in zip(z.tolist(), np.asarray(got).tolist(), strict=True):
            with mpmath.workprec(140 if abs(at) > 1e-20 else 2200):  # so much that 1 + z is exact
                want = exact(mpmath.mpc(at))
                size = abs(want)
                if 4 * float(info.tiny) < size < float(info.max) / 2:
                    unit = mpmath.mpf(2) ** mpmath.floor(mpmath.log(size, 2)) * float(info.eps)
                    assert np.isfinite(value) and abs(mpmath.mpc(value) - want) <= ULP[kind] * unit, (name, at, value)


def test_every_function_is_measured() -> None:
    assert set(EXACT) | {"pow", "div"} == set(FUNCTIONS)


def quotients(kind: Any) -> tuple[np.ndarray, np.ndarray]:
    """Numerators and denominators of all sizes that the format holds, subnormal ones too: each part of its own size, or both of one."""
    rng, n, info = rng_for("quotients", kind), 150, np.finfo(kind)
    low, high = np.log10(float(info.smallest_subnormal)) + 1, np.log10(float(info.max))
    size = lambda: 10.0 ** rng.uniform(low, high, n)

    def numbers() -> np.ndarray:
        z, one = np.empty(2 * n, kind), size()
        z.real[:n], z.imag[:n] = size() * rng.choice([-1, 1], n), size() * rng.choice([-1, 1], n)
        z.real[n:], z.imag[n:] = one * rng.uniform(-1, 1, n), one * rng.uniform(-1, 1, n)
        return z
    return numbers(), numbers()


@pytest.mark.parametrize("kind", [np.complex64, np.complex128], ids=lambda k: k.__name__)
def test_quotients(kind: Any) -> None:
    """Each part to a few units in its last place; the definition by parts gives the same bits interpreted."""
    (a, b), info = quotients(kind), np.finfo(kind)
    graph, _ = traced(lambda a, b: a / b, (a, b))
    got = np.asarray(host_compiler().compile(graph)([a, b])[0])
    np.testing.assert_array_equal(got, interpret(expand_composites(graph), (a, b))[0])
    checked = 0
    with mpmath.workprec(2400):
        for x, y, value in zip(a.tolist(), b.tolist(), got.tolist(), strict=True):
            want = mpmath.mpc(x) / mpmath.mpc(y)
            if abs(want) < float(info.max) / 4:
                for part, exact in ((value.real, want.real), (value.imag, want.imag)):
                    if abs(exact) > abs(want) * mpmath.mpf(2) ** -960:
                        last = mpmath.mpf(2) ** mpmath.floor(mpmath.log(abs(exact), 2)) * float(info.eps)
                        unit = max(last, float(info.smallest_subnormal))
                        assert abs(part - exact) <= (0.6 if kind is np.complex64 else 3.0) * unit, (x, y, value)
                        checked += 1
    assert checked > 300


@pytest.mark.parametrize("kind", [np.complex64, np.complex128], ids=lambda k: k.__name__)
def test_unusual_quotients(kind: Any) -> None:
    """C99, G.5.1: by zero, of and by infinities."""
    inf, nan = np.inf, np.nan
    cases = [
        ((1, 1), (0, 0), (inf, inf)), ((1, 0), (0, 0), (inf, nan)), ((1, -1), (-0.0, 0), (-inf, inf)), ((0, 0), (0, 0), (nan, nan)),
        ((1, 1), (inf, 0), (0, 0)), ((3, -2), (inf, inf), (0, -0.0)), ((inf, 1), (1, 1), (inf, -inf)), ((inf, nan), (2, 1), (inf, -inf)),
        ((inf, 0), (inf, 0), (nan, nan)), ((nan, 1), (1, 1), (nan, nan)), ((1, -0.0), (1, 0), (1, -0.0)), ((1, nan), (0, 0), (inf, nan)),
    ]
    x, y, want = (np.array([complex(*c[i]) for c in cases], kind) for i in range(3))
    for got in ((ts.tensor(x) / ts.tensor(y)).numpy(), interpret(traced(lambda a, b: a / b, (x, y))[0], (x, y))[0]):
        np.testing.assert_array_equal(got.real, want.real)
        np.testing.assert_array_equal(got.imag, want.imag)
    big = np.array([complex(2e38, 2e38) if kind is np.complex64 else complex(1e308, 1e308)], kind)
    assert (ts.tensor(big) / ts.tensor(big)).numpy()[0] == 1 and abs(ts.reciprocal(ts.tensor(big)).numpy()[0]) > 0
    np.testing.assert_allclose(ts.abs(ts.tensor(big / 2)).numpy(), [float(big[0].real) / np.sqrt(2)], rtol=1e-6)  # no square overflows


INVERSES = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "asinh": "arcsinh", "acosh": "arccosh", "atanh": "arctanh"}


@pytest.mark.parametrize("name", INVERSES)
def test_cuts_of_inverse_functions(name: str) -> None:
    """Which side of a cut, by the sign of zero, poles, and infinite parts: as numpy."""
    parts = [0.0, -0.0, 0.5, -0.5, 1.0, -1.0, 2.0, -2.0, np.inf, -np.inf, 1e300, -1e-300]
    z = np.array([complex(x, y) for x in parts for y in parts])
    with np.errstate(all="ignore"):
        want = getattr(np, INVERSES[name])(z)
    got = getattr(ts, name)(ts.tensor(z)).numpy()
    for a, b in ((got.real, want.real), (got.imag, want.imag)):
        np.testing.assert_allclose(a, b, rtol=1e-15)
        np.testing.assert_array_equal(np.signbit(a) | np.isnan(a), np.signbit(b) | np.isnan(b))


@pytest.mark.parametrize("name", [*INVERSES, "exp2", "expm1", "log1p", "sigmoid"])
def test_slopes(name: str) -> None:
    """f' to the left and right of both axes, and its derivative."""
    z = np.array([0.3 + 0.4j, -1.7 + 0.6j, -0.4 - 2.1j, 2.5 - 0.2j])
    once = ts.grad(lambda z: getattr(ts, name)(z).sum(), holomorphic=True)
    twice = ts.grad(lambda z: once(z).sum(), holomorphic=True)
    with mpmath.workdps(40):
        first, second = ([complex(mpmath.diff(EXACT[name], mpmath.mpc(at), n)) for at in z.tolist()] for n in (1, 2))
    np.testing.assert_allclose(once(ts.tensor(z)).numpy(), first, rtol=1e-13)
    np.testing.assert_allclose(twice(ts.tensor(z)).numpy(), second, rtol=1e-12)


def test_powers() -> None:
    bases, exponents = np.array([1, -1, 1j, 2 - 1j, -3 + 0.1j, 1e-3j, 5.5]), np.array([1, -1, 0.5, 2 + 1j, -2.3 + 0.7j, 3])
    z, w = (a.ravel() for a in np.meshgrid(bases, exponents))
    np.testing.assert_allclose(ts.pow(ts.tensor(z), ts.tensor(w)).numpy(), np.power(z, w), rtol=1e-13, atol=1e-15)
    zero = ts.tensor(np.zeros(3, np.complex128))
    got = (zero ** ts.tensor(np.array([0, 2 + 1j, -1 + 0j]))).numpy()
    assert got[0] == 1 and got[1] == 0 and np.isnan(got[2])
    np.testing.assert_array_equal((ts.tensor(np.array([-4 + 0j, 2j])) ** 0.5).numpy(), ts.sqrt(ts.tensor(np.array([-4 + 0j, 2j]))).numpy())


def test_infinities_and_cuts() -> None:
    """C99, annex G: results of infinite parts, and the side of a cut that the sign of zero names."""
    inf = np.inf
    z = ts.tensor(np.array([complex(-1, 0.0), complex(-1, -0.0)]))
    np.testing.assert_array_equal(ts.log(z).numpy().imag, [np.pi, -np.pi])
    np.testing.assert_array_equal(ts.sqrt(z).numpy().imag, [1, -1])
    edge = np.array([complex(inf, 0), complex(-inf, 0), complex(-inf, inf), complex(0, inf), complex(inf, inf)])
    for name in ("exp", "log", "sqrt", "tanh", "cosh"):
        with np.errstate(all="ignore"):
            want = getattr(np, name)(edge)
        got = getattr(ts, name)(ts.tensor(edge)).numpy()
        same = lambda a, b: (a == b) | (np.isnan(a) & np.isnan(b)) | (np.abs(a - b) < 1e-15)
        with np.errstate(all="ignore"):
            assert same(got.real, want.real).all() and same(got.imag, want.imag).all(), (name, got, want)


def test_holomorphic_derivatives() -> None:
    f = lambda z: ts.exp(ts.sin(z) * z) / ts.sqrt(z) + ts.tanh(z) ** ts.log(z)
    with mpmath.workdps(40):
        exact = lambda z: mpmath.exp(mpmath.sin(z) * z) / mpmath.sqrt(z) + mpmath.tanh(z) ** mpmath.log(z)
        first, second = (complex(mpmath.diff(exact, mpmath.mpc(0.3, 0.4), n)) for n in (1, 2))
    z = ts.tensor(np.complex128(0.3 + 0.4j))
    once = ts.grad(f, holomorphic=True)
    np.testing.assert_allclose(ts.jit(once)(z).numpy(), first, rtol=1e-13)
    np.testing.assert_allclose(ts.grad(once, holomorphic=True)(z).numpy(), second, rtol=1e-12)
    with pytest.raises(ts.errors.TesseraError, match="holomorphic"):
        ts.grad(ts.exp)(z)


def test_angles_and_magnitudes() -> None:
    z = np.array([3 + 4j, -1, -2j, 0], np.complex64)
    np.testing.assert_allclose(ts.angle(ts.tensor(z)).numpy(), np.angle(z), rtol=1e-6)
    assert ts.angle(ts.tensor(z)).dtype is ts.f32
    np.testing.assert_array_equal(ts.angle(ts.tensor([2, -2])).numpy(), np.array([0, np.pi], np.float32))
    slope = ts.grad(lambda z: (ts.abs(z) + ts.angle(z)).sum())(ts.tensor(z[:3])).numpy()
    h = 1e-3
    value = lambda z: np.abs(z) + np.angle(z)
    wide = z[:3].astype(np.complex128) + 1e-9j  # off the cut
    real, imag = ((value(wide + s) - value(wide - s)) / (2 * h) for s in (h, 1j * h))
    np.testing.assert_allclose(slope[[0, 2]], (real - 1j * imag)[[0, 2]], atol=1e-3)  # the pairing has no conjugate


def test_stable_forms_are_for_real_numbers() -> None:
    """log(sum(exp(z))) stays what was written: there is no largest complex number to subtract."""
    z = np.array([[1 + 1j, 2 - 1j, 0.5]], np.complex64)
    f = ts.stable.numerically_stable(lambda z: ts.log(ts.exp(z).sum(1)))
    np.testing.assert_allclose(f(ts.tensor(z)).numpy(), np.log(np.exp(z).sum(1)), rtol=1e-6)
    assert not f.rewrites


def test_functions_without_a_complex_meaning_refuse() -> None:
    with pytest.raises(DTypeError, match="'erf' does not accept complex64"):
        ts.erf(ts.tensor(np.ones(2, np.complex64)))
