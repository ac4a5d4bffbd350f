"""Makes ``src/tessera/tiling/vmath_tables.py``: the polynomials of the vector maths.

    python tools/vmath_coefficients.py > src/tessera/tiling/vmath_tables.py

Each polynomial is a weighted least-squares fit in 60 digits on Chebyshev nodes, which lies within a small factor of
the best possible.  Coefficients are rounded to the working precision one by one, lowest first, and the others are
fitted again after each rounding.  The printed comment gives the largest weighted error that remains.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any

from mpmath import mp, mpf

mp.dps = 60
Fn = Callable[[Any], Any]


def to_precision(x: Any, bits: int) -> Any:
    """``x`` rounded to f32 or f64."""
    if bits == 32:
        return mpf(struct.unpack("<f", struct.pack("<f", float(x)))[0])
    return mpf(float(x))


def nodes(a: Any, b: Any, n: int) -> list[Any]:
    return [(a + b) / 2 + (b - a) / 2 * mp.cos(mp.pi * (2 * k + 1) / (2 * n)) for k in range(n)]


def fit(g: Fn, w: Fn, interval: tuple[Any, Any], degree: int, bits: int, fixed: dict[int, Any] | None = None) -> tuple[list[Any], Any]:
    """(coefficients lowest first, largest weighted error) of ``P ~ g`` under weight ``w``."""
    a, b = mpf(interval[0]), mpf(interval[1])
    ts = nodes(a, b, 6 * (degree + 1))
    gs, ws = [g(t) for t in ts], [w(t) for t in ts]
    known = {k: mpf(v) for k, v in (fixed or {}).items()}
    for k in range(degree + 1):
        if k not in known:
            solved = _least_squares(ts, gs, ws, degree, known)
            known[k] = to_precision(solved[k], bits)
    c = [known[k] for k in range(degree + 1)]
    check = nodes(a, b, 400)
    return c, max(abs((mp.polyval(c[::-1], t) - g(t)) * w(t)) for t in check)


def _least_squares(ts: list[Any], gs: list[Any], ws: list[Any], degree: int, known: dict[int, Any]) -> dict[int, Any]:
    free = [k for k in range(degree + 1) if k not in known]
    rest = [(g - sum(v * t**k for k, v in known.items())) * w for t, g, w in zip(ts, gs, ws, strict=True)]
    rows = [[w * t**k for k in free] for t, w in zip(ts, ws, strict=True)]
    n = len(free)
    normal = mp.matrix(n, n)
    right = mp.matrix(n, 1)
    for i in range(n):
        for j in range(i, n):
            normal[i, j] = normal[j, i] = mp.fsum(r[i] * r[j] for r in rows)
        right[i] = mp.fsum(r[i] * y for r, y in zip(rows, rest, strict=True))
    solution = mp.lu_solve(normal, right)
    return {k: solution[i] for i, k in enumerate(free)}


def series(f: Fn, at_zero: Any, small: float = 1e-12) -> Fn:
    """A quotient with its limit at 0."""
    return lambda t: at_zero if abs(t) < small else f(t)


LN2 = mp.log(2)
HALF = LN2 / 2 * mpf("1.0001")


def exp_tail(t: Any) -> Any:  # e^t = 1 + t + t^2 * this
    return mpf(1) / 2 + t / 6 + t * t / 24 + t**3 / 120 + t**4 / 720 if abs(t) < 1e-9 else (mp.exp(t) - 1 - t) / t**2


def exp2_tail(t: Any) -> Any:  # 2^t = 1 + t * this
    return LN2 + LN2**2 * t / 2 + LN2**3 * t * t / 6 if abs(t) < 1e-12 else (mp.power(2, t) - 1) / t


def log_tail(t: Any) -> Any:  # log(1 + t) = t + t^2 * this
    return mpf(-1) / 2 + t / 3 - t * t / 4 + t**3 / 5 if abs(t) < 1e-9 else (mp.log1p(t) - t) / t**2


def log2_tail(t: Any) -> Any:  # log2(1 + t) = t * this
    return (1 - t / 2 + t * t / 3) / LN2 if abs(t) < 1e-12 else mp.log1p(t) / (LN2 * t)


def atanh_tail(z: Any) -> Any:  # 2 atanh(s) = 2 s + s z * this, z = s^2
    s = mp.sqrt(z)
    return mpf(2) / 3 + 2 * z / 5 + 2 * z * z / 7 if z < 1e-10 else (2 * mp.atanh(s) - 2 * s) / (s * z)


def odd_tail(f: Fn, first: Any, second: Any) -> Fn:
    """f(x) = first*x + x z * this(z), z = x^2, for an odd f with x^3 coefficient ``second``."""
    def tail(z: Any) -> Any:
        x = mp.sqrt(z)
        return second if z < 1e-24 else (f(x) - first * x) / (x * z)
    return tail


def cos_tail(z: Any) -> Any:  # cos x = 1 - z/2 + z^2 * this
    return mpf(1) / 24 - z / 720 if z < 1e-10 else (mp.cos(mp.sqrt(z)) - 1 + z / 2) / z**2


def erf_factor(z: Any) -> Any:  # erf x = x + x * this(z)
    x = mp.sqrt(z)
    return 2 / mp.sqrt(mp.pi) * (1 - z / 3) - 1 if z < 1e-24 else mp.erf(x) / x - 1


def erf_exponent(t: Any) -> Any:  # log(1 - erf t) = -t + t * this
    return mp.log(mp.erfc(t)) / t + 1


def erfcx_mapped(q: Any) -> Any:  # erfcx(x) * (1 + 2x) with q = (x - 4) / (x + 4)
    if q > 1 - mpf("1e-25"):
        return 2 / mp.sqrt(mp.pi)
    x = 4 * (1 + q) / (1 - q)
    if x > 40:  # the asymptotic series: exp(x^2) would need too many digits
        total, term = mpf(1), mpf(1)
        for k in range(1, 30):
            term *= -(2 * k - 1) / (2 * x * x)
            if abs(term) < mpf(10) ** -45:
                break
            total += term
        return total / (x * mp.sqrt(mp.pi)) * (1 + 2 * x)
    with mp.workdps(60 + int(x * x / 2)):
        return mp.exp(x * x) * mp.erfc(x) * (1 + 2 * x)


def stirling(u: Any) -> Any:  # lgamma(x) = (x - 1/2) log x - x + log(2 pi)/2 + this(1/x^2)/x
    if u < mpf("1e-6"):
        return mpf(1) / 12 - u / 360 + u**2 / 1260 - u**3 / 1680
    x = 1 / mp.sqrt(u)
    return (mp.loggamma(x) - ((x - mpf(1) / 2) * mp.log(x) - x + mp.log(2 * mp.pi) / 2)) * x


def lgamma_near_two(t: Any) -> Any:  # lgamma(2 + t) = t * (1 - euler) + t^2 * this
    return (mp.zeta(2) - 1) / 2 - t * (mp.zeta(3) - 1) / 3 if abs(t) < 1e-10 else \
        (mp.loggamma(2 + t) - t * (1 - mp.euler)) / t**2


def digamma_tail(u: Any) -> Any:  # digamma(x) = log x - 1/(2x) - u * this(u), u = 1/x^2
    if u < mpf("1e-6"):
        return mpf(1) / 12 - u / 120 + u**2 / 252 - u**3 / 240
    x = 1 / mp.sqrt(u)
    return (mp.log(x) - 1 / (2 * x) - mp.digamma(x)) / u


DIGAMMA_ROOT = mp.findroot(mp.digamma, mpf("1.4616321449683623"))


def digamma_near_root(t: Any) -> Any:  # digamma(root + t) = t * this
    return mp.polygamma(1, DIGAMMA_ROOT) + t * mp.polygamma(2, DIGAMMA_ROOT) / 2 if abs(t) < 1e-20 else mp.digamma(DIGAMMA_ROOT + t) / t


ONE: Fn = lambda t: mpf(1)
QUARTER_PI = mp.pi / 4 * mpf("1.0001")
ROOT = mp.sqrt(2)
S_MAX = ((ROOT - 1) / (ROOT + 1)) ** 2 * mpf("1.001")
TAN_PI_8 = mp.tan(mp.pi / 8) * mpf("1.0001")

# name: (function, weight, interval, degree, bits, fixed coefficients)
TABLES: dict[str, tuple[Fn, Fn, tuple[Any, Any], int, int, dict[int, Any]]] = {
    "EXP_F32": (exp_tail, lambda t: t * t * mp.exp(-t) + mpf("1e-9"), (-HALF, HALF), 4, 32, {}),
    "EXP_F64": (exp_tail, lambda t: t * t * mp.exp(-t) + mpf("1e-9"), (-HALF, HALF), 9, 64, {}),
    "EXP2_F32": (exp2_tail, lambda t: t + mpf("1e-6"), (mpf(-1) / 2, mpf(1) / 2), 5, 32, {}),
    "EXP2_F64": (exp2_tail, lambda t: t + mpf("1e-6"), (mpf(-1) / 2, mpf(1) / 2), 11, 64, {}),
    "EXP2_NARROW": (exp2_tail, lambda t: t + mpf("1e-6"), (mpf(-1) / 2, mpf(1) / 2), 6, 64, {}),
    "LOG_F32": (log_tail, lambda t: t + mpf("1e-6"), (1 / ROOT - 1, ROOT - 1), 8, 32, {}),
    "LOG2_F32": (log2_tail, ONE, (1 / ROOT - 1, ROOT - 1), 10, 32, {}),
    "LOG_F64": (atanh_tail, lambda z: z + mpf("1e-6"), (mpf(0), S_MAX), 6, 64, {}),
    "LOG_NARROW": (atanh_tail, lambda z: z + mpf("1e-6"), (mpf(0), S_MAX), 3, 64, {}),
    "LOG_WIDE": (lambda z: mpf(2) / 5 if z < 1e-10 else (atanh_tail(z) - mpf(2) / 3) / z, lambda z: z * z + mpf("1e-9"),
                 (mpf(0), S_MAX), 7, 64, {}),
    "TANH_F32": (odd_tail(mp.tanh, 1, -mpf(1) / 3), lambda z: z + mpf("1e-6"), (mpf(0), mpf(1)), 6, 32, {}),
    "TANH_F64": (odd_tail(mp.tanh, 1, -mpf(1) / 3), lambda z: z + mpf("1e-6"), (mpf(0), mpf("0.3")), 10, 64, {}),
    "ERF_SMALL_F32": (erf_factor, ONE, (mpf(0), mpf("1.11")), 7, 32, {}),
    "ERF_LARGE_F32": (erf_exponent, lambda t: t * mp.erfc(t) + mpf("1e-12"), (mpf("0.92"), mpf("4.0")), 6, 32, {}),
    "ERF_F64": (erf_factor, ONE, (mpf(0), mpf("1.01")), 14, 64, {}),
    "ERFCX_F64": (erfcx_mapped, ONE, (mpf("-0.78"), mpf(1)), 23, 64, {}),
    "SIN_F64": (odd_tail(mp.sin, 1, -mpf(1) / 6), lambda z: z + mpf("1e-6"), (mpf(0), QUARTER_PI**2), 6, 64, {}),
    "COS_F64": (cos_tail, lambda z: z * z + mpf("1e-6"), (mpf(0), QUARTER_PI**2), 6, 64, {}),
    "SIN_NARROW": (odd_tail(mp.sin, 1, -mpf(1) / 6), lambda z: z + mpf("1e-6"), (mpf(0), QUARTER_PI**2), 3, 64, {}),
    "COS_NARROW": (cos_tail, lambda z: z * z + mpf("1e-6"), (mpf(0), QUARTER_PI**2), 3, 64, {}),
    "ATAN_F64": (odd_tail(mp.atan, 1, -mpf(1) / 3), lambda z: z + mpf("1e-6"), (mpf(0), TAN_PI_8**2), 10, 64, {}),
    "ASIN_F64": (odd_tail(mp.asin, 1, mpf(1) / 6), lambda z: z + mpf("1e-6"), (mpf(0), mpf("0.2501")), 12, 64, {}),
    "EXP_FAST": (exp_tail, lambda t: t * t * mp.exp(-t) + mpf("1e-9"), (-HALF, HALF), 3, 32, {}),
    "EXP2_FAST": (exp2_tail, lambda t: t + mpf("1e-6"), (mpf(-1) / 2, mpf(1) / 2), 4, 32, {}),
    "LOG_FAST": (log_tail, lambda t: t + mpf("1e-6"), (1 / ROOT - 1, ROOT - 1), 5, 32, {}),
    "LOG2_FAST": (log2_tail, ONE, (1 / ROOT - 1, ROOT - 1), 6, 32, {}),
    "SIN_FAST": (odd_tail(mp.sin, 1, -mpf(1) / 6), lambda z: z + mpf("1e-6"), (mpf(0), QUARTER_PI**2), 2, 32, {}),
    "COS_FAST": (cos_tail, lambda z: z * z + mpf("1e-6"), (mpf(0), QUARTER_PI**2), 2, 32, {}),
    "STIRLING_F64": (stirling, ONE, (mpf(0), mpf(1) / 64), 7, 64, {}),
    "LGAMMA_TWO_F64": (lgamma_near_two, ONE, (mpf("-0.5"), mpf("0.5")), 24, 64, {}),
    "DIGAMMA_ROOT_F64": (digamma_near_root, ONE, (mpf("-0.465"), mpf("0.465")), 27, 64, {}),
    "DIGAMMA_F64": (digamma_tail, ONE, (mpf(0), mpf(1) / 64), 9, 64, {}),
}


def parts(x: Any, bits: tuple[int, ...]) -> list[Any]:
    """``x`` as a sum of numbers with the given precisions, each rounded from what the ones before leave."""
    out = []
    for b in bits:
        e = mp.floor(mp.log(abs(x), 2)) + 1
        scale = mpf(2) ** (b - e)
        out.append(mp.nint(x * scale) / scale)
        x -= out[-1]
    return out


CONSTANTS: dict[str, list[Any]] = {
    "LN2_F32": parts(LN2, (15, 24)), "LN2_F64": parts(LN2, (40, 53)), "LN2_LONG": parts(LN2, (40, 53, 53)),
    "HALF_PI_FAST": parts(mp.pi / 2, (11, 12, 24)), "HALF_PI_F64": parts(mp.pi / 2, (53, 53, 53)), "TWO_OVER_PI": parts(2 / mp.pi, (53,)),
    "LOG2E_F64": parts(1 / LN2, (53, 53)), "LOG10E_F64": parts(1 / mp.log(10), (53, 53)),
    "DIGAMMA_ZERO": parts(DIGAMMA_ROOT, (53, 53)), "LOG10_2_F64": parts(mp.log10(2), (40, 53)),
}


def main() -> None:
    print('"""Coefficients of the vector maths, lowest power first.  Made by ``tools/vmath_coefficients.py``: do not edit."""')
    for name, (g, w, interval, degree, bits, fixed) in TABLES.items():
        c, error = fit(g, w, interval, degree, bits, fixed)
        print(f"\n{name} = (  # largest error {mp.nstr(error, 3)} = 2**{mp.nstr(mp.log(error, 2), 4)}")
        for x in c:
            print(f"    {float(x)!r},")
        print(")")
    for name, values in CONSTANTS.items():
        print(f"\n{name} = ({', '.join(repr(float(v)) for v in values)},)")
    with mp.workdps(500):
        words = [int(mp.floor(2 / mp.pi * mpf(2) ** (32 * (i + 1)))) & 0xFFFFFFFF for i in range(40)]
    print("\n# The binary digits of 2/pi after the point, 32 a word.\nTWO_OVER_PI_WORDS = (")
    for i in range(0, 40, 8):
        print("    " + " ".join(f"0x{x:08X}," for x in words[i:i + 8]))
    print(")")


if __name__ == "__main__":
    main()
