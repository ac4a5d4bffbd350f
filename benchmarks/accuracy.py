"""How far the vector maths lies from the exact result, in units in the last place.

    python benchmarks/accuracy.py                 a sample of every function, f32 and f64, against mpmath
    python benchmarks/accuracy.py --full exp log  every f32 (one operand), against numpy in 80-bit long double
    python benchmarks/accuracy.py --write         also renew docs/accuracy.md

The sample mixes uniform values over the function's interesting ranges, values over all exponents, and special values.
Compiled code is measured, and it equals the interpreter's bits.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
from mpmath import mp, mpf

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from tessera.ir.text import parse_function
from tessera.machine import host_cpu
from tessera.runtime.llvm_workers import Request, workers
from tessera.targets.cpu.emit import emit
from tessera.targets.cpu.loader import load
from tessera.tiling.vmath import EXPANSIONS, expand

mp.prec = 200
Array = np.ndarray[Any, Any]


def compiled(name: str, operands: int, dtype: str) -> Callable[..., Array]:
    """``f(*arrays) -> array`` for arrays whose length is a multiple of 64."""
    xs = ", ".join(f"%x{i}: buf<{dtype}[N]>" for i in range(operands))
    loads = "\n".join(f"%t{i} = load(%x{i}, %o) : tile<{dtype}[32]>" for i in range(operands))
    fn = parse_function(f"""tile @{name}({xs}, %y: buf<{dtype}[N]>, %N: int64) with {{grid = (<N//32>,), sizes = ("N",),
      writes = ({operands},)}} {{
      %p = program_id() {{axis = 0}} : int64
      %c = constant() {{value = 32}} : int64
      %o = mul(%p, %c) : int64
      {loads}
      %r = {name}({", ".join(f"%t{i}" for i in range(operands))}) : tile<{dtype}[32]>
      store(%y, %o, %r)
      return()
    }}""")
    machine = host_cpu()
    text = emit(expand(fn), machine)
    code = workers().compile(Request(text, machine.triple, machine.cpu, machine.llvm_features, name=name))
    image = load([code])
    kinds = [ctypes.c_void_p] * (operands + 1) + [ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    call = image.function(name, ctypes.CFUNCTYPE(None, *kinds))
    context = np.zeros(64, np.uint64)

    def run(*arrays: Array) -> Array:
        n = len(arrays[0])
        m = -(-n // 32) * 32
        padded = [np.concatenate([a, np.ones(m - n, a.dtype)]) for a in arrays]
        out = np.empty(m, arrays[0].dtype)
        call(*(a.ctypes.data for a in padded), out.ctypes.data, m, context.ctypes.data, 0, m // 32)
        return out[:n]

    run.image = image  # type: ignore[attr-defined]
    return run


# Exact results.  ``ranges``: where to sample uniformly; everything is also sampled over all exponents.
EXACT: dict[str, tuple[Callable[..., Any], list[tuple[float, float]]]] = {
    "exp": (mp.exp, [(-104, 89), (-1, 1), (-745, 709)]), "exp2": (lambda x: mpf(2) ** x, [(-150, 128), (-1, 1), (-1074, 1024)]),
    "expm1": (mp.expm1, [(-20, 89), (-1, 1), (-40, 709)]), "log": (mp.log, [(0, 4), (0.5, 2), (0, 1e6)]),
    "log2": (lambda x: mp.log(x, 2), [(0, 4), (0.5, 2)]), "log10": (mp.log10, [(0, 4), (0.5, 2), (0, 1e4)]),
    "log1p": (mp.log1p, [(-1, 4), (-0.5, 0.5)]), "sigmoid": (lambda x: 1 / (1 + mp.exp(-x)), [(-100, 100), (-4, 4)]),
    "tanh": (mp.tanh, [(-10, 10), (-1.2, 1.2)]), "sinh": (mp.sinh, [(-90, 90), (-2, 2)]), "cosh": (mp.cosh, [(-90, 90), (-2, 2)]),
    "asinh": (mp.asinh, [(-10, 10), (-1, 1)]), "acosh": (mp.acosh, [(1, 10), (1, 1.1)]), "atanh": (mp.atanh, [(-1, 1)]),
    "reciprocal": (lambda x: 1 / x, [(-10, 10)]), "rsqrt": (lambda x: 1 / mp.sqrt(x), [(0, 10)]),
    "cbrt": (lambda x: mp.cbrt(x) if x >= 0 else -mp.cbrt(-x), [(-10, 10)]), "sin": (mp.sin, [(-10, 10), (-1e6, 1e6)]),
    "cos": (mp.cos, [(-10, 10), (-1e6, 1e6)]), "tan": (mp.tan, [(-10, 10), (-1e6, 1e6)]), "asin": (mp.asin, [(-1, 1)]),
    "acos": (mp.acos, [(-1, 1)]), "atan": (mp.atan, [(-10, 10), (-1, 1)]), "erf": (mp.erf, [(-6, 6), (-1, 1)]),
    "erfc": (mp.erfc, [(-6, 27), (-1, 1)]), "erfinv": (mp.erfinv, [(-1, 1)]), "lgamma": (lambda x: mp.log(abs(mp.gamma(x))), [(0, 30)]),
    "digamma": (mp.digamma, [(0, 30)]), "pow": (lambda x, y: mp.power(x, y), [(0, 30)]),
    "atan2": (mp.atan2, [(-4, 4)]), "hypot": (mp.hypot, [(-4, 4)]),
    "logaddexp": (lambda a, b: max(a, b) + mp.log1p(mp.exp(-abs(a - b))), [(-30, 30)]),
}
TWO = frozenset({"pow", "atan2", "hypot", "logaddexp"})
LIMITED = frozenset({"lgamma", "digamma", "erfinv"})  # mpmath takes long outside the usual range


def sample(name: str, dtype: Any, n: int, rng: np.random.Generator) -> list[Array]:
    _, ranges = EXACT[name]
    tiny, huge = (2.0**-149, 3.4e38) if dtype == np.float32 else (5e-324, 1.7e308)
    out = []
    for _ in range(1 + (name in TWO)):
        parts = [rng.uniform(a, b, n) for a, b in ranges]
        if name not in LIMITED:
            exponents = rng.uniform(np.log2(tiny) if name != "pow" else -20, np.log2(huge) if name != "pow" else 20, n)
            parts.append(np.exp2(exponents) * (1 if ranges[0][0] >= 0 and name != "log1p" else rng.choice([-1, 1], n)))
        with np.errstate(over="ignore"):
            out.append(rng.permutation(np.concatenate(parts).astype(dtype)))
    return out


def ulp_errors(got: Array, exact: list[Any], dtype: Any) -> Array:
    """|got - exact| in units of the last place of the exact value (of the least subnormal below the normal range)."""
    digits, least = (24, -149) if dtype == np.float32 else (53, -1074)
    largest = float(np.finfo(dtype).max)
    errors = np.zeros(len(got))
    for i, (g, e) in enumerate(zip(got.tolist(), exact, strict=True)):
        if e is None:
            continue
        if abs(e) > largest * (1 + 2.0**-digits):
            errors[i] = 0.0 if np.isinf(g) or abs(g) == largest else np.inf
            continue
        if not np.isfinite(g):
            errors[i] = 0.0 if np.isinf(g) and abs(e) > largest * (1 - 2.0**-digits) else np.inf
            continue
        unit = max(mp.frexp(e)[1] - digits, least) if e else least
        errors[i] = float(abs(mpf(g) - e) / mpf(2) ** unit)
    return errors


def exact_value(name: str, args: tuple[float, ...]) -> Any:
    """The exact result, or None where it is not a finite real number."""
    try:
        mp.prec = 1300 if name in ("sin", "cos", "tan") and abs(args[0]) > 1e6 else 200
        y = EXACT[name][0](*(mpf(a) for a in args))
        return y if mpmath.isfinite(y) and not isinstance(y, mpmath.mpc) else None
    except (ValueError, ZeroDivisionError, OverflowError, TypeError):
        return None
    finally:
        mp.prec = 200


def measure(name: str, dtype: Any, n: int) -> tuple[float, tuple[float, ...]]:
    """(largest error in ulp, the arguments where it occurs)."""
    rng = np.random.default_rng(1)
    args = sample(name, dtype, n, rng)
    got = compiled(name, len(args), "f32" if dtype == np.float32 else "f64")(*args)
    exact = [exact_value(name, xs) for xs in zip(*(a.tolist() for a in args), strict=True)]
    errors = ulp_errors(got, exact, dtype)
    worst = int(np.argmax(errors))
    return float(errors[worst]), tuple(float(a[worst]) for a in args)


LONG: dict[str, Callable[[Array], Array]] = {
    "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log2": np.log2, "log10": np.log10, "log1p": np.log1p,
    "tanh": np.tanh, "sinh": np.sinh, "cosh": np.cosh, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh,
    "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "cbrt": np.cbrt,
    "rsqrt": lambda x: 1 / np.sqrt(x), "reciprocal": lambda x: 1 / x, "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
}


def measure_all_f32(name: str, stride: int) -> tuple[float, float]:
    """(largest error in ulp over every ``stride``-th f32, the argument where it occurs)."""
    run, worst, where = compiled(name, 1, "f32"), 0.0, 0.0
    with np.errstate(all="ignore"):
        for start in range(0, 1 << 32, stride << 22):
            codes = np.arange(start, min(start + (stride << 22), 1 << 32), stride, dtype=np.uint64)
            x = codes.astype(np.uint32).view(np.float32)
            x = x[np.isfinite(x)]
            if not len(x):
                continue
            got, exact = run(x), LONG[name](x.astype(np.longdouble))
            keep = np.isfinite(exact) & (np.abs(exact) < 3.4028235e38)
            unit = np.exp2(np.maximum(np.frexp(np.where(keep, exact, 1.0))[1] - 24, -149).astype(np.longdouble))
            error = np.where(keep, np.abs(got.astype(np.longdouble) - exact) / unit, 0)
            error = np.where(keep & ~np.isfinite(got), np.inf, error)
            i = int(np.argmax(error))
            if error[i] > worst:
                worst, where = float(error[i]), float(x[i])
    return worst, where


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=sorted(EXACT))
    parser.add_argument("--full", action="store_true", help="every f32 instead of a sample")
    parser.add_argument("--stride", type=int, default=1, help="with --full: take every n-th only")
    parser.add_argument("--samples", type=int, default=1500, help="per range")
    parser.add_argument("--write", action="store_true", help="renew docs/accuracy.md")
    args = parser.parse_args()
    unknown = [n for n in args.names if n not in EXPANSIONS or n not in EXACT]
    if unknown:
        parser.error(f"no such function: {', '.join(unknown)}")
    rows = []
    for name in args.names:
        if args.full:
            worst, where = measure_all_f32(name, args.stride)
            print(f"{name:12} f32 {worst:8.3f} ulp at {where!r}", flush=True)
            continue
        (e32, at32), (e64, at64) = measure(name, np.float32, args.samples), measure(name, np.float64, args.samples)
        rows.append((name, e32, e64))
        print(f"{name:12} f32 {e32:8.3f} at {at32}   f64 {e64:8.3f} at {at64}", flush=True)
    if args.write and rows:
        page = Path(__file__).resolve().parent.parent / "docs" / "accuracy.md"
        page.write_text(document(rows))


def document(rows: list[tuple[str, float, float]]) -> str:
    lines = ["# Accuracy of the vector maths", "",
             "The largest error seen, in units in the last place of the exact result, over a sample of the whole range",
             "(`python benchmarks/accuracy.py --write` renews this table; 0.5 is correct rounding).", "",
             "f16, bf16 and smaller formats are computed in f32 and rounded once.", "",
             "In f64, `digamma`, `lgamma` and `logaddexp` lose digits where their result passes through zero (in f32 they do",
             "not: they are computed in f64).", "",
             "| function | f32 | f64 |", "|---|---|---|"]
    lines += [f"| `{n}` | {a:.2f} | {b:.2f} |" for n, a, b in rows]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
