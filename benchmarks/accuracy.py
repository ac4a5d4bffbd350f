"""How far the vector maths lies from the exact result, in units in the last place.

    python benchmarks/accuracy.py                 a sample of every function, f32 and f64, against mpmath
    python benchmarks/accuracy.py --full exp log  every f32, and a million f64, merged into benchmarks/results/accuracy.json
    python benchmarks/accuracy.py --stale         functions whose code has changed since they were measured in full
    python benchmarks/accuracy.py --speed         nanoseconds an element, accurate beside fast
    python benchmarks/accuracy.py --write         renew docs/accuracy.md from the results

``--full`` compares f32 with an evaluation in f64 by other people's code (numpy, torch), which is itself checked against mpmath
first; the worst arguments, and all whose exact result lies so near a tie that f64 cannot tell which way it rounds, are then
decided by mpmath.  f64 is compared with 80-bit long double where numpy has the function, checked in the same way, else with
mpmath alone.  Functions of two operands, whose pairs nobody can exhaust, meet 2^26 pairs in f32.  Compiled code is measured, and
it equals the interpreter's bits.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import json
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mpmath
import numpy as np
from mpmath import mp, mpf

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "src"))

from tessera.ir.core import Function
from tessera.ir.text import parse_function
from tessera.machine import host_cpu
from tessera.runtime.llvm_workers import Request, workers
from tessera.targets.cpu.emit import emit
from tessera.targets.cpu.loader import load
from tessera.tiling.vmath import EXPANSIONS, FAST, expand

mp.prec = 200
Array = np.ndarray[Any, Any]


def program(name: str, operands: int, dtype: str, fast: bool = False) -> Function:
    """A tile program that applies the function, not expanded."""
    xs = ", ".join(f"%x{i}: buf<{dtype}[N]>" for i in range(operands))
    loads = "\n".join(f"%t{i} = load(%x{i}, %o) : tile<{dtype}[32]>" for i in range(operands))
    fn = parse_function(f"""tile @{name}({xs}, %y: buf<{dtype}[N]>, %N: int64) with {{grid = (<N//32>,), sizes = ("N",),
      writes = ({operands},)}} {{
      %p = program_id() {{axis = 0}} : int64
      %c = constant() {{value = 32}} : int64
      %o = mul(%p, %c) : int64
      {loads}
      %r = {name}({", ".join(f"%t{i}" for i in range(operands))}) {"{fast = true} " if fast else ""}: tile<{dtype}[32]>
      store(%y, %o, %r)
      return()
    }}""")
    return fn


def compiled(name: str, operands: int, dtype: str, fast: bool = False) -> Callable[..., Array]:
    """``f(*arrays) -> array``."""
    machine = host_cpu()
    text = emit(expand(program(name, operands, dtype, fast)), machine)
    code = workers().compile(Request(text, machine.triple, machine.cpu, machine.llvm_features, name=name))
    image = load([code])
    kinds = [ctypes.c_void_p] * (operands + 1) + [ctypes.c_int64, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64]
    call = image.function(name, ctypes.CFUNCTYPE(None, *kinds))
    context = np.zeros(64, np.uint64)

    def run(*arrays: Array) -> Array:
        n = len(arrays[0])
        m = -(-n // 32) * 32
        padded = [np.concatenate([a, np.ones(m - n, a.dtype)]) for a in arrays] if m != n else arrays
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


# -- other people's evaluations --------------------------------------------------------------------------------------------
def _torch(name: str) -> Callable[[Array], Array]:
    def evaluate(x: Array) -> Array:
        import torch
        torch.set_num_threads(1)
        return np.asarray(getattr(torch.special, name)(torch.from_numpy(x.astype(np.float64))).numpy())

    return evaluate


NUMPY: dict[str, Callable[..., Array]] = {
    "exp": np.exp, "exp2": np.exp2, "expm1": np.expm1, "log": np.log, "log2": np.log2, "log10": np.log10, "log1p": np.log1p,
    "tanh": np.tanh, "sinh": np.sinh, "cosh": np.cosh, "asinh": np.arcsinh, "acosh": np.arccosh, "atanh": np.arctanh,
    "sin": np.sin, "cos": np.cos, "tan": np.tan, "asin": np.arcsin, "acos": np.arccos, "atan": np.arctan, "cbrt": np.cbrt,
    "rsqrt": lambda x: 1 / np.sqrt(x), "reciprocal": lambda x: 1 / x, "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "pow": np.power, "atan2": np.arctan2, "hypot": np.hypot, "logaddexp": np.logaddexp,
}
TORCH = {"erf": _torch("erf"), "erfc": _torch("erfc"), "erfinv": _torch("erfinv"), "lgamma": _torch("gammaln"),
         "digamma": _torch("digamma")}
CANDIDATES = 48     # the worst arguments, which mpmath decides
NEAR_TIE = 2.0**-24  # in ulp of f32: so near a tie f64 may not know which way to round


def strata(n: int, dtype: Any, rng: np.random.Generator) -> Array:
    """``n`` finite numbers, equally many in every binade of either sign, subnormal ones included."""
    bits, mantissa = (32, 23) if dtype == np.float32 else (64, 52)
    unsigned = np.uint32 if bits == 32 else np.uint64
    top = (1 << (bits - 1 - mantissa)) - 1
    exponent = np.arange(n, dtype=np.uint64) // 2 % top
    sign = np.arange(n, dtype=np.uint64) % 2
    code = (sign << np.uint64(bits - 1)) | (exponent << np.uint64(mantissa)) | rng.integers(0, 1 << mantissa, n, dtype=np.uint64)
    return rng.permutation(code.astype(unsigned).view(dtype))


def stratified(name: str, dtype: Any, n: int) -> list[Array]:
    """Half of the arguments over all binades, half over the function's ranges."""
    rng = np.random.default_rng(2)
    out = []
    for _ in range(1 + (name in TWO)):
        spread = strata(n // 2, dtype, rng)
        if name in LIMITED:
            spread = np.abs(spread[np.abs(spread) < 1e4]) if name != "erfinv" else spread[np.abs(spread) < 1]
        ranges = EXACT[name][1]
        parts = [rng.uniform(a, b, -(-n // (2 * len(ranges)))).astype(dtype) for a, b in ranges]
        out.append(rng.permutation(np.concatenate([*parts, np.resize(spread, n // 2)]))[:n])
    return out


def units(exact: Array, mantissa: int, least: int) -> Array:
    """The unit in the last place of each value (of the least subnormal below the normal range)."""
    if exact.dtype == np.float64:
        power = (exact.view(np.uint64) & np.uint64(0x7FF0000000000000)).view(np.float64)
        return np.maximum(power * 2.0**-mantissa, 2.0**least)
    return np.exp2(np.maximum(np.frexp(exact)[1] - mantissa - 1, least).astype(np.longdouble))


class Worst:
    """The arguments with the largest errors so far."""

    def __init__(self) -> None:
        self.error = np.zeros(0)
        self.where: list[tuple[float, ...]] = []

    def take(self, errors: Array, args: Sequence[Array]) -> None:
        floor = self.error[-1] if len(self.error) == CANDIDATES else 0.0
        at = np.flatnonzero(errors > floor)
        if len(at) > CANDIDATES:
            at = at[np.argpartition(errors[at], -CANDIDATES)[-CANDIDATES:]]
        if not len(at):
            return
        where = self.where + [tuple(float(a[i]) for a in args) for i in at]
        error = np.concatenate([self.error, errors[at].astype(np.float64)])
        order = np.argsort(-error, kind="stable")[:CANDIDATES]
        self.error, self.where = error[order], [where[i] for i in order]

    def confirmed(self, name: str, run: Callable[..., Array], dtype: Any) -> tuple[float, tuple[float, ...]]:
        """The largest error by mpmath among them."""
        if not self.where:
            return 0.0, ()
        args = [np.array([w[i] for w in self.where], dtype) for i in range(len(self.where[0]))]
        errors = ulp_errors(run(*args), [exact_value(name, w) for w in self.where], dtype)
        worst = int(np.argmax(errors))
        return float(errors[worst]), self.where[worst]


def validated(name: str, evaluate: Callable[..., Array], dtype: Any, digits: int) -> float:
    """The largest error of an evaluation on 4000 stratified arguments, in its own units of ``digits`` digits."""
    args = stratified(name, dtype, 4000)
    with np.errstate(all="ignore"):
        got = evaluate(*(a.astype(np.float64 if digits == 53 else np.longdouble) for a in args))
    worst = 0.0
    for g, xs in zip(got, zip(*(a.tolist() for a in args), strict=True), strict=True):
        exact = exact_value(name, xs)
        if exact is None or not np.isfinite(g) or exact == 0 or abs(exact) < 2.0**-1000:
            continue
        high = float(g)  # a long double is the sum of two doubles
        value = mpf(high) + mpf(float(g - np.longdouble(high))) if digits == 64 else mpf(high)
        worst = max(worst, float(abs(value - exact) / mpf(2) ** (mp.frexp(exact)[1] - digits)))
    return worst


def every_f32(name: str) -> Iterator[list[Array]]:
    """All finite f32 in blocks; for two operands 2^26 stratified pairs."""
    if name in TWO:
        rng = np.random.default_rng(3)
        for _ in range(64):
            yield [strata(1 << 20, np.float32, rng) if i else rng.permutation(np.concatenate(
                [strata(1 << 19, np.float32, rng), rng.uniform(*EXACT[name][1][0], 1 << 19).astype(np.float32)])) for i in range(2)]
        return
    for start in range(0, 1 << 32, 1 << 18):
        x = np.arange(start, start + (1 << 18), dtype=np.uint64).astype(np.uint32).view(np.float32)
        if np.isfinite(x[0]):
            yield [x]


def measure_f32(name: str) -> dict[str, Any]:
    """Every f32: the largest error, where, and how many results are not the nearest f32."""
    evaluate = TORCH.get(name) or NUMPY[name]
    trust = validated(name, evaluate, np.float32, 53)
    run, worst, count, wrong, ties = compiled(name, 1 + (name in TWO), "f32"), Worst(), 0, 0, []
    with np.errstate(all="ignore"):
        for args in every_f32(name):
            got, exact = run(*args), evaluate(*(a.astype(np.float64) for a in args))
            keep = np.abs(exact) < 3.4028235677973366e38
            if not keep.any():
                continue
            unit = units(exact, 23, -149)
            error = np.where(keep, np.abs(got.astype(np.float64) - exact) / unit, 0.0)
            error = np.where(keep & ~np.isfinite(got), np.inf, error)
            worst.take(error, args)
            count += int(keep.sum())
            nearest = exact.astype(np.float32)
            near = keep & (np.abs(np.abs(exact - nearest) / unit - 0.5) < NEAR_TIE)
            wrong += int((keep & ~near & (got != nearest)).sum())
            ties += [(*(float(a[i]) for a in args), float(got[i])) for i in np.flatnonzero(near)]
    undecided = ties[:20000]
    for *xs, g in undecided:
        exact_one = exact_value(name, tuple(xs))
        wrong += exact_one is not None and float(np.float32(_odd(exact_one))) != g
    error_max, where = worst.confirmed(name, run, np.float32)
    return {"ulp": round(error_max, 4), "at": list(where), "arguments": count, "every": name not in TWO, "not_nearest": wrong,
            "near_ties": len(ties), "reference_ulp64": round(trust, 3)}


def _odd(x: Any) -> float:
    """An exact value as f64 rounded to odd, so that rounding it again to f32 rounds once."""
    near = float(x)
    if mpf(near) == x or not np.isfinite(near):
        return near
    toward = near if abs(mpf(near)) < abs(x) else float(np.nextafter(near, 0.0))
    bits = np.float64(toward).view(np.uint64) | np.uint64(1)
    return float(bits.view(np.float64))


def measure_f64(name: str, n: int) -> dict[str, Any]:
    """``n`` stratified f64: the largest error and where."""
    args = stratified(name, np.float64, n if name not in LIMITED else n // 20)
    run, worst, trust = compiled(name, len(args), "f64"), Worst(), 0.0
    if name in NUMPY:
        trust = validated(name, NUMPY[name], np.float64, 64)
    for start in range(0, len(args[0]), 1 << 14):
        part = [a[start:start + (1 << 14)] for a in args]
        with np.errstate(all="ignore"):
            got = run(*part)
            if name in NUMPY:
                exact = NUMPY[name](*(a.astype(np.longdouble) for a in part))
                keep = np.abs(exact) < np.longdouble(np.finfo(np.float64).max)
                error = np.where(keep, np.abs(got.astype(np.longdouble) - exact) / units(np.where(keep, exact, 1), 52, -1074), 0)
                error = np.where(keep & ~np.isfinite(got), np.inf, error).astype(np.float64)
            else:
                error = ulp_errors(got, [exact_value(name, xs) for xs in zip(*(a.tolist() for a in part), strict=True)], np.float64)
        worst.take(error, part)
    error_max, where = worst.confirmed(name, run, np.float64)
    return {"ulp": round(error_max, 4), "at": list(where), "arguments": len(args[0]), "reference_ulp80": round(trust, 3)}


# -- results -----------------------------------------------------------------------------------------------------------------
ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "accuracy.json"


def fingerprint(name: str, dtype: str, fast: bool = False) -> str:
    """What the function's code is, before any target has seen it."""
    return hashlib.sha256(str(expand(program(name, 1 + (name in TWO), dtype, fast))).encode()).hexdigest()[:16]


def load_results() -> dict[str, Any]:
    return json.loads(RESULTS.read_text()) if RESULTS.exists() else {"functions": {}}


def merge(name: str, dtype: str, measured: dict[str, Any]) -> None:
    """Enter one function's measurement."""
    results = load_results()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    measured |= {"code": fingerprint(name, dtype), "commit": commit, "machine": host_cpu().name, "numpy": np.__version__,
                 "python": platform.python_version()}
    results["functions"].setdefault(name, {})[dtype] = measured
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")


def stale() -> list[tuple[str, str]]:
    """(function, dtype) without a measurement of the code as it is."""
    known = load_results()["functions"]
    return [(n, d) for n in sorted(EXACT) for d in ("f32", "f64") if known.get(n, {}).get(d, {}).get("code") != fingerprint(n, d)]


def speed(name: str, fast: bool) -> float:
    """Nanoseconds an element, f32, on 65536 arguments in the cache: the least of many runs."""
    run = compiled(name, 1 + (name in TWO), "f32", fast)
    low, high = EXACT[name][1][0]
    args = [np.random.default_rng(4).uniform(max(low, -80), min(high, 80), 65536).astype(np.float32) for _ in range(1 + (name in TWO))]
    best = np.inf
    for _ in range(400):
        start = time.perf_counter()
        run(*args)
        best = min(best, time.perf_counter() - start)
    return best / 65536 * 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=sorted(EXACT))
    parser.add_argument("--full", action="store_true", help="every f32 and a million f64; merges into the results")
    parser.add_argument("--only", choices=("f32", "f64"), help="with --full: one dtype")
    parser.add_argument("--stale", action="store_true", help="list what --full has not measured as it is; with --full: measure that")
    parser.add_argument("--speed", action="store_true", help="time the functions")
    parser.add_argument("--samples", type=int, default=1500, help="per range, without --full")
    parser.add_argument("--write", action="store_true", help="renew docs/accuracy.md")
    args = parser.parse_args()
    unknown = [n for n in args.names if n not in EXPANSIONS or n not in EXACT]
    if unknown:
        parser.error(f"no such function: {', '.join(unknown)}")
    todo = [(n, d) for n in args.names for d in ("f32", "f64") if args.only in (None, d)]
    if args.stale:
        left = set(stale())
        todo = [t for t in todo if t in left]
    if args.full:
        for name, dtype in todo:
            began = time.time()
            measured = measure_f32(name) if dtype == "f32" else measure_f64(name, 1_000_000)
            merge(name, dtype, measured)
            print(f"{name:10} {dtype} {measured['ulp']:8.3f} ulp at {measured['at']}  ({time.time() - began:.0f} s)", flush=True)
    elif args.stale:
        print("\n".join(f"{n} {d}" for n, d in todo))
    elif args.speed:
        for name in args.names:
            report_speed(name)
    elif args.write:
        (ROOT / "docs" / "accuracy.md").write_text(document())
    else:
        for name in args.names:
            (e32, at32), (e64, at64) = measure(name, np.float32, args.samples), measure(name, np.float64, args.samples)
            print(f"{name:12} f32 {e32:8.3f} at {at32}   f64 {e64:8.3f} at {at64}", flush=True)


def measure_fast(name: str) -> dict[str, Any]:
    """The fast form over its usual ranges: how far off, relatively and absolutely, and nanoseconds beside the exact form."""
    args = [a[(np.abs(a) < 1e4) & (np.abs(a) > 2.0**-100)] for a in sample(name, np.float32, 200_000, np.random.default_rng(5))]
    args = [a[:min(map(len, args))] for a in args]
    evaluate, run = NUMPY[name], compiled(name, len(args), "f32", True)
    with np.errstate(all="ignore"):
        got, exact = run(*args).astype(np.float64), evaluate(*(a.astype(np.float64) for a in args))
        keep = np.isfinite(exact) & (np.abs(exact) > 2.0**-120) & (np.abs(exact) < 2.0**120)
        error = np.abs(got - exact)[keep]
        relative = error / np.abs(exact[keep])
    return {"relative": float(relative.max()), "absolute": float(error.max()), "ns": round(speed(name, True), 3),
            "ns_exact": round(speed(name, False), 3), "code": fingerprint(name, "f32", True)}


def report_speed(name: str) -> None:
    plain = speed(name, False)
    print(f"{name:10} {plain:6.3f} ns an element", end="", flush=True)
    if name in FAST:
        m = measure_fast(name)
        results = load_results()
        results["functions"].setdefault(name, {})["fast"] = m
        RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
        print(f", fast {m['ns']:6.3f}; error {m['relative']:.1e} of the result, {m['absolute']:.1e} in all", end="")
    print(flush=True)


def document() -> str:
    known = load_results()["functions"]
    lines = ["# Accuracy of the vector maths", "",
             "The largest error, in units in the last place of the exact result (0.5 is correct rounding). f32: over *every* f32;",
             "f64: over a million arguments, half of them spread over all binades, half over the usual range (for `digamma`, `erfinv`",
             "and `lgamma` 50,000). Functions of two operands: over 2^26 pairs in f32. `python benchmarks/accuracy.py --full --stale`",
             "measures what has changed and `--write` renews this table; how it is measured stands at the head of that script.", "",
             "*Not nearest* counts the results in f32 that are not the f32 nearest to the exact one.", "",
             "f16, bf16 and smaller formats are computed in f32 and rounded once. In f64, `digamma`, `lgamma` and `logaddexp` lose",
             "digits where their result passes through zero (in f32 they do not: they are computed in f64). A dash: not measured in",
             "full since its code last changed; `python benchmarks/accuracy.py NAME` samples it.", "",
             "| function | f32 | not nearest | f64 |", "|---|---|---|---|"]
    for n in sorted(known):
        a, b = known[n].get("f32"), known[n].get("f64")
        share = f"{a['not_nearest'] / max(a['arguments'], 1):.2%}" if a else ""
        f32, f64 = (f"{m['ulp']:.2f}" if m else "-" for m in (a, b))
        lines.append(f"| `{n}` | {f32} | {share} | {f64} |")
    lines += ["", "## The faster forms", "",
              "`ts.numerics(fast_math_functions=True)` uses them in f32 and smaller formats. Errors are the largest over the usual range",
              "of each function (arguments below 10^4, results between 2^-120 and 2^120), relative to the result and in absolute terms;",
              f"times are nanoseconds an element on 65536 numbers in the cache, one thread, {known['exp']['f32']['machine']}.", "",
              "| function | exact, ns | fast, ns | relative error | absolute error |", "|---|---|---|---|---|"]
    for n in sorted(known):
        m = known[n].get("fast")
        if m:
            lines.append(f"| `{n}` | {m['ns_exact']:.2f} | {m['ns']:.2f} | {m['relative']:.1e} | {m['absolute']:.1e} |")
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
