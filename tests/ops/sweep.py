"""The op sweep: a cover of op, dtype and shape made from the op table.

Every op meets every dtype that it accepts and every shape of its kind (for pointwise ops: zero-size, scalar, broadcast,
non-contiguous, reversed, odd sizes around vector widths).  :func:`cases` gives the cover; ``full=True`` the whole product.
A :class:`Case` knows what its op must give, and how close a result has to be; :func:`program` puts many cases into one
Graph function, so that a compiled sweep needs few programs.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product as pairs
from typing import Any

import ml_dtypes
import numpy as np

from tessera.ops import table
from tessera.ops.meaning import widen
from tessera.ops.rules import LOW
from tessera.tracing.recorder import Trace, bind, tracing
from tessera.types import dtypes as dt
from tessera.types.dtypes import DType, as_dtype

Arrays = list[np.ndarray]
Sample = tuple[Arrays, dict[str, Any]]
OPS = table.OPS


# -- cases ---------------------------------------------------------------------------------------------------------------
@dataclass
class Case:
    """One op on concrete operands.  ``label`` names the shape; ``arrays`` may be views with any strides."""

    op: str
    dtype: DType
    label: str
    arrays: Arrays
    attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.op}-{self.dtype}-{self.label}"

    @property
    def types(self) -> list[Any]:
        from tessera.ir.core import TensorType
        return [TensorType(as_dtype(a.dtype), a.shape) for a in self.arrays]

    @property
    def is_complex(self) -> bool:
        return any(a.dtype.kind == "c" for a in (*self.arrays, *self.expected()))

    @property
    def exact(self) -> bool:
        bound = OPS[self.op].bound
        if bound.ulp == 0 and not (bound.terms and bound.terms(self.types, self.attrs)):
            return True
        return all(a.dtype.kind not in "fc" and a.dtype not in LOW for a in self.reference(self.arrays))

    def reference(self, arrays: Arrays, **attrs: Any) -> Arrays:
        out = OPS[self.op].reference(*arrays, **{**self.attrs, **attrs})
        return list(out) if isinstance(out, tuple | list) else [np.asarray(out)]

    def expected(self) -> Arrays:
        """The meaning: of exact ops in their own dtype, of others in higher precision."""
        if not hasattr(self, "_expected"):
            with np.errstate(all="ignore"):
                if self.exact:
                    self._expected = self.reference(self.arrays)
                else:
                    free = {k: None for k in ("accumulate",) if k in self.attrs}
                    self._expected = self.reference([widen(a) for a in self.arrays], **free)
        return self._expected

    def tolerance(self) -> list[np.ndarray | float]:
        """For each result the allowed absolute error, element by element."""
        if self.exact:
            return [0.0] * len(self.expected())
        op = OPS[self.op]
        terms = op.bound.terms(self.types, self.attrs) if op.bound.terms else 0.0
        out: list[np.ndarray | float] = []
        for t, want in zip(op.infer(self.types, self.attrs), self.expected(), strict=True):
            if not t.dtype.is_inexact:
                out.append(0.0)
                continue
            wide = as_dtype(np.complex128 if t.dtype.is_complex else np.float64).np
            with np.errstate(all="ignore"):
                size = np.abs(want.astype(wide))
                allowed = (op.bound.ulp + 0.5) * spacing(size, t.dtype.real)
                if terms:
                    eps = 2.0 ** -53 if t.dtype.real is dt.f64 else 2.0 ** -24
                    allowed = allowed + 2 * terms * eps * self.magnitude(size)
            out.append(allowed)
        return out

    def magnitude(self, size: np.ndarray) -> Any:
        """The sum of the magnitudes that go into each element of the result, or a bound of it."""
        family = OPS[self.op].family
        if family in ("reduction", "contraction", "indexing") and self.op != "gather":
            values = [np.abs(widen(a)) if a.dtype.kind in "fc" or a.dtype in LOW else a for a in self.arrays]
            return np.abs(self.reference(values)[0]).astype(np.float64)
        if family == "pointwise":
            most = np.maximum.reduce([np.abs(widen(a)).astype(np.float64) for a in self.arrays])
            return most + size if self.op == "logaddexp" else np.maximum(most * most, 1) * np.maximum(size, 1)
        if family == "fft":
            whole = np.sum(np.abs(widen(self.arrays[0])), -1, keepdims=True).astype(np.float64)
            n = self.attrs.get("n", self.arrays[0].shape[-1])
            return whole * 2 / n if self.op in ("ifft", "irfft") else whole
        finite = [np.abs(widen(a).astype(np.float64)) for a in (*self.arrays, size) if a.dtype.kind in "f" or a.dtype in LOW]
        return max([float(np.max(a[np.isfinite(a)], initial=0.0)) for a in finite], default=1.0) + 1.0

    def check(self, results: Sequence[np.ndarray]) -> str | None:
        """None, or what is wrong with a compiled or interpreted result."""
        types = OPS[self.op].infer(self.types, self.attrs)
        if len(results) != len(types):
            return f"{self.id}: {len(results)} results, not {len(types)}"
        for got, want, allowed, t in zip(results, self.expected(), self.tolerance(), types, strict=True):
            if got.dtype != t.dtype.np or got.shape != want.shape:
                return f"{self.id}: got {got.dtype}{list(got.shape)}, want {t}"
            bad = differs(got, want, allowed)
            if bad.any():
                at = tuple(int(i) for i in np.argwhere(bad)[0])
                return (f"{self.id} {self.attrs}: at {at} got {got[at]!r}, want {want[at]!r}, allowed error "
                        f"{np.broadcast_to(allowed, want.shape)[at]!r}; operands {[_at(a, at, want.shape) for a in self.arrays]}")
        return None


def _at(a: np.ndarray, at: tuple[int, ...], shape: tuple[int, ...]) -> Any:
    return a[at] if a.shape == shape else f"{a.dtype}{list(a.shape)}"


def differs(got: np.ndarray, want: np.ndarray, allowed: Any) -> np.ndarray:
    """Where ``got`` is neither equal (NaN to NaN, inf to inf) nor within the allowed error."""
    with np.errstate(all="ignore"):
        if got.dtype.kind in "biu" or "int4" in str(got.dtype):
            return np.asarray(got != want)
        kind = np.clongdouble if got.dtype.kind == "c" else np.longdouble
        g, w = got.astype(kind), want.astype(kind)
        same = (g == w) | (np.isnan(g) & np.isnan(w))
        limit = np.asarray(allowed, np.longdouble)
        overflow = ~np.isfinite(g) & (np.abs(w) >= _largest(got.dtype))  # inf, or NaN in formats that have no infinity
        return np.asarray(~(same | (np.abs(g - w) <= limit) | overflow))


def _largest(kind: np.dtype) -> float:
    d = as_dtype(kind).real
    return float(d.finfo.max) * (1 - float(d.finfo.eps))


def spacing(size: np.ndarray, d: DType) -> np.ndarray:
    """One unit in the last place of ``d`` at magnitudes ``size``."""
    info = ml_dtypes.finfo(d.np)
    tiny = float(info.smallest_normal)
    with np.errstate(all="ignore"):
        exponent = np.floor(np.log2(np.maximum(np.where(np.isfinite(size), size, 1.0), tiny)))
        return np.exp2(exponent) * float(info.eps)


# -- operands --------------------------------------------------------------------------------------------------------------
def rng_for(*key: object) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(repr([str(k) for k in key]).encode()))


SPECIAL = (0.0, -0.0, 1.0, -1.0, np.inf, -np.inf, np.nan, 0.5)


def values(shape: tuple[int, ...], d: DType, rng: np.random.Generator, domain: tuple[float, float] | None = None,
           special: bool = False) -> np.ndarray:
    """Operands: normal numbers (or uniform in ``domain``), integers of all sizes, fair bools."""
    n = int(np.prod(shape, dtype=np.int64))
    if d.kind == "bool":
        flat = rng.random(n) < 0.5
    elif d.is_integer:
        low, high = int(d.iinfo.min), int(d.iinfo.max)
        small = rng.integers(max(low, -9), min(high, 9) + 1, n)
        big = rng.integers(low, high, n, dtype=np.int64 if d.kind == "int" else np.uint64, endpoint=True)
        flat = np.where(rng.random(n) < 0.5, small.astype(big.dtype), big)
        if special:
            edge = [low, high, 0, 1][:n]
            flat[:len(edge)] = np.array(edge, dtype=object).astype(flat.dtype)
    elif d.is_complex:
        flat = rng.standard_normal(n) + 1j * rng.standard_normal(n)
    else:
        low, high = domain or (-8.0, 8.0)
        limit = float(d.finfo.max)
        low, high = max(low, -limit), min(high, limit)
        flat = rng.uniform(low, high, n) if domain else np.clip(rng.standard_normal(n) * 2, low, high)
        if special and n >= 4:
            chosen = np.array(SPECIAL if d.bits > 8 else SPECIAL[:4])
            rng.shuffle(chosen)
            flat[:min(n // 2, len(chosen))] = chosen[:min(n // 2, len(chosen))]
    with np.errstate(all="ignore"):
        return np.asarray(flat).astype(d.np).reshape(shape)


def _transposed(a: np.ndarray) -> np.ndarray:
    return np.asfortranarray(a) if a.ndim > 1 else np.stack([a, a], -1)[..., 0]


def _strided(a: np.ndarray) -> np.ndarray:
    wide = np.repeat(a, 2, -1)
    return wide[..., ::2]


def _reversed(a: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(a[..., ::-1])[..., ::-1]


def _broadcast(a: np.ndarray) -> np.ndarray:
    return np.broadcast_to(a[:1], a.shape)


LAYOUTS: dict[str, tuple[tuple[int, ...], Callable[[np.ndarray], np.ndarray]]] = {
    "scalar": ((), lambda a: a), "one": ((1,), lambda a: a), "empty": ((0,), lambda a: a), "empty2": ((3, 0, 2), lambda a: a),
    "v7": ((7,), lambda a: a), "v8": ((8,), lambda a: a), "v17": ((17,), lambda a: a), "v31": ((31,), lambda a: a),
    "v65": ((65,), lambda a: a), "m3x5": ((3, 5), lambda a: a), "c2x3x33": ((2, 3, 33), lambda a: a),
    "transposed": ((9, 16), _transposed), "strided": ((5, 15), _strided), "reversed": ((4, 19), _reversed),
    "broadcast": ((6, 17), _broadcast),
}
SHAPES = tuple(LAYOUTS)


def pointwise(name: str, d: DType, label: str) -> Sample:
    op = OPS[name]
    shape, layout = LAYOUTS[label]
    rng = rng_for(name, d, label)
    domain = op.facts.get("domain")
    attrs: dict[str, Any] = {}
    if name in ("convert", "bitcast"):
        raise AssertionError(name)
    if name == "select":
        kinds = [dt.bool_, d, d]
    else:
        kinds = [d] * arity(name)
    arrays = [values(shape, k, rng, domain, True) for k in kinds]
    if name in ("floor_div", "mod") and d.is_integer:
        arrays[1] = np.where(arrays[1] == 0, d.np.type(3), arrays[1]).astype(d.np)
    if name in ("floor_div", "mod") and d.is_float:
        arrays = [values(shape, d, rng), values(shape, d, rng, (0.5, 4.0))]
    if name in ("shift_left", "shift_right"):
        low = -2 if d.kind == "int" else 0
        arrays[1] = rng.integers(low, d.bits + 2, shape).astype(d.np)
    if name == "pow":
        arrays = [values(shape, d, rng, (0.1, 6.0)), values(shape, d, rng, (-3.0, 3.0))]
    return [layout(a) if a.ndim else a for a in arrays], attrs


ARITY = {"fma": 3, "select": 3}


def arity(name: str) -> int:
    """How many operands a pointwise op takes: as many as its rule lets pass."""
    if name in ARITY:
        return ARITY[name]
    from tessera.errors import TesseraError
    from tessera.ir.core import TensorType
    for n in (1, 2, 3):
        try:
            OPS[name].infer([TensorType(OPS[name].dtypes[0], ())] * n, {"dtype": dt.f32})
        except TesseraError:
            continue
        return n
    raise AssertionError(f"{name} takes neither one, two nor three operands")


# -- ops that are not pointwise: dtype, number of the sample, generator -> operands and attributes ----------------------------
Maker = Callable[[DType, int, np.random.Generator], Sample]
REDUCED = (((7,), (0,)), ((3, 33), (1,)), ((33, 5), (0,)), ((2, 17, 3), (0, 2)), ((4, 9), (0, 1)), ((5, 1), (1,)))
MAKERS: dict[str, tuple[int, Maker]] = {}


def maker(*names: str, count: int) -> Callable[[Maker], Maker]:
    def enter(fn: Maker) -> Maker:
        MAKERS.update(dict.fromkeys(names, (count, fn)))
        return fn
    return enter


@maker("reduce_sum", "reduce_any", "reduce_all", count=len(REDUCED) + 1)
def _reduce(d: DType, k: int, rng: np.random.Generator) -> Sample:
    shape, axes = (*REDUCED, ((4, 0), (1,)))[k]
    return [values(shape, d, rng)], {"axes": axes}


@maker("reduce_max", "reduce_min", count=len(REDUCED))
def _extremum(d: DType, k: int, rng: np.random.Generator) -> Sample:
    shape, axes = REDUCED[k]
    return [values(shape, d, rng, special=k == 2)], {"axes": axes}


@maker("logsumexp", count=len(REDUCED))
def _logsumexp(d: DType, k: int, rng: np.random.Generator) -> Sample:
    shape, axes = REDUCED[k]
    return [values(shape, d, rng)], {"axes": axes}


@maker("reduce_prod", count=len(REDUCED))
def _product(d: DType, k: int, rng: np.random.Generator) -> Sample:
    shape, axes = REDUCED[k]
    return [values(shape, d, rng, (0.6, 1.5))], {"axes": axes}


@maker("argmax", "argmin", count=4)
def _arg(d: DType, k: int, rng: np.random.Generator) -> Sample:
    shape, axis = (((9,), 0), ((3, 17), 1), ((17, 3), 0), ((2, 5, 3), 1))[k]
    return [values(shape, d, rng, special=k == 1)], {"axis": axis}


@maker("cumsum", "cummax", "cummin", count=5)
def _scan(d: DType, k: int, rng: np.random.Generator) -> Sample:
    shape, axis, reverse = (((9,), 0, False), ((3, 33), 1, True), ((33, 3), 0, False), ((2, 5, 3), 1, True), ((3, 0), 1, False))[k]
    return [values(shape, d, rng)], {"axis": axis, "reverse": reverse}


@maker("cumprod", count=3)
def _cumprod(d: DType, k: int, rng: np.random.Generator) -> Sample:
    shape, axis, reverse = (((9,), 0, False), ((3, 33), 1, True), ((33, 3), 0, False))[k]
    return [values(shape, d, rng, (0.6, 1.5))], {"axis": axis, "reverse": reverse}


@maker("reduce_window", count=4)
def _window(d: DType, k: int, rng: np.random.Generator) -> Sample:
    attrs = {"window": (2, 3), "strides": (2, 1), "padding": ((0, 0), (1, 1)), "dilation": (1, 1), "combine": "max"}
    change = ({}, {"combine": "add"}, {"combine": "min", "dilation": (2, 1)}, {"padding": ((1, 0), (0, 2))})[k]
    return [values((2, 3, 6, 7), d, rng)], {**attrs, **change}


SIZES = ((7,), (3, 5), (2, 3, 17), (1, 4), (0, 3), ())


@maker("reshape", count=6)
def _reshape(d: DType, k: int, rng: np.random.Generator) -> Sample:
    src, dst = (((6,), (2, 3)), ((2, 3, 4), (6, 4)), ((2, 12), (2, 3, 4)), ((1, 5), (5, 1, 1)), ((0, 3), (3, 0)), ((1,), ()))[k]
    return [values(src, d, rng)], {"shape": dst}


@maker("transpose", count=4)
def _transpose(d: DType, k: int, rng: np.random.Generator) -> Sample:
    shape, perm = (((3, 5), (1, 0)), ((2, 3, 17), (2, 0, 1)), ((4, 1, 9), (1, 2, 0)), ((0, 3), (1, 0)))[k]
    return [values(shape, d, rng)], {"perm": perm}


@maker("broadcast_to", count=4)
def _broadcast_to(d: DType, k: int, rng: np.random.Generator) -> Sample:
    src, dst = (((), (3, 5)), ((1, 5), (4, 5)), ((3, 1, 2), (2, 3, 7, 2)), ((1,), (0,)))[k]
    return [values(src, d, rng)], {"shape": dst}


def _identity(d: DType, k: int, rng: np.random.Generator) -> Sample:
    return [values(((7,), (3, 17), ())[k], d, rng)], {}


for _name in ("stop_gradient", "checkpoint_here", "barrier"):
    maker(_name, count=3)(_identity)
maker("message", count=3)(lambda d, k, rng: (_identity(d, k, rng)[0], {"parts": ("x =",), "places": (0,)}))
for _name in ("prefetch", "release"):
    maker(_name, count=3)(lambda d, k, rng: (_identity(d, k, rng)[0], {"to": "L2"}))


@maker("flip", count=3)
def _flip(d: DType, k: int, rng: np.random.Generator) -> Sample:
    shape, axes = (((7,), (0,)), ((3, 17), (0, 1)), ((2, 5, 3), (1,)))[k]
    return [values(shape, d, rng)], {"axes": axes}


@maker("slice", count=4)
def _slice(d: DType, k: int, rng: np.random.Generator) -> Sample:
    shape, start, limit, stride = (((9,), (2,), (8,), (1,)), ((9,), (0,), (9,), (4,)), ((5, 17), (1, 3), (5, 17), (2, 3)),
                                   ((4, 3), (2, 0), (2, 3), (1, 1)))[k]
    return [values(shape, d, rng)], {"start": start, "limit": limit, "stride": stride}


@maker("pad", count=4)
def _pad(d: DType, k: int, rng: np.random.Generator) -> Sample:
    shape, attrs = (((7,), {"low": (2,), "high": (3,), "value": 1}), ((3, 5), {"low": (0, 1), "high": (2, -1), "value": 0}),
                    ((4, 3), {"low": (-1, 0), "high": (1, 1), "value": 1, "interior": (1, 2)}),
                    ((0, 2), {"low": (1, 0), "high": (1, 0), "value": 1}))[k]
    return [values(shape, d, rng)], attrs


@maker("concat", count=3)
def _concat(d: DType, k: int, rng: np.random.Generator) -> Sample:
    shapes, axis = ((((3,), (5,)), 0), (((2, 3), (2, 0), (2, 17)), 1), (((1, 4), (2, 4)), 0))[k]
    return [values(s, d, rng) for s in shapes], {"axis": axis}


@maker("full", count=2)
def _full(d: DType, k: int, rng: np.random.Generator) -> Sample:
    value = True if d.kind == "bool" else 1 if d.is_integer else 0.5
    return [], {"shape": ((), (3, 5))[k], "value": value, "dtype": d}


@maker("iota", count=2)
def _iota(d: DType, k: int, rng: np.random.Generator) -> Sample:
    shape, axis = (((9,), 0), ((3, 5), 1))[k]
    return [], {"shape": shape, "axis": axis, "dtype": d}


@maker("constant", count=2)
def _constant(d: DType, k: int, rng: np.random.Generator) -> Sample:
    return [], {"value": values(((), (3, 5))[k], d, rng)}


@maker("size", count=1)
def _size(d: DType, k: int, rng: np.random.Generator) -> Sample:
    return [], {"value": 12}


DOT = (  # shapes, contract, batch
    ((3, 5), (5, 4), ((1,), (0,)), ((), ())), ((17,), (17,), ((0,), (0,)), ((), ())), ((2, 3, 5), (2, 5, 7), ((2,), (1,)), ((0,), (0,))),
    ((33, 9), (33, 17), ((0,), (0,)), ((), ())), ((2, 3, 4), (3, 4, 5), ((1, 2), (0, 1)), ((), ())), ((3,), (4,), ((), ()), ((), ())),
    ((1, 40), (40, 3), ((1,), (0,)), ((), ())), ((3, 0), (0, 2), ((1,), (0,)), ((), ())))


@maker("dot_general", count=len(DOT))
def _dot(d: DType, k: int, rng: np.random.Generator) -> Sample:
    x, y, contract, batch = DOT[k]
    return [values(x, d, rng), values(y, d, rng)], {
        "lhs_contract": contract[0], "rhs_contract": contract[1], "lhs_batch": batch[0], "rhs_batch": batch[1]}


@maker("conv", count=4)
def _conv(d: DType, k: int, rng: np.random.Generator) -> Sample:
    x, w, attrs = (
        ((2, 3, 9), (4, 3, 3), {"strides": (1,), "padding": ((1, 1),), "dilation": (1,), "groups": 1}),
        ((1, 4, 6, 7), (6, 2, 3, 2), {"strides": (2, 1), "padding": ((0, 1), (1, 0)), "dilation": (1, 2), "groups": 2}),
        ((1, 2, 5, 5), (2, 2, 1, 1), {"strides": (1, 1), "padding": ((0, 0), (0, 0)), "dilation": (1, 1), "groups": 1}),
        ((1, 2, 4), (3, 2, 3), {"strides": (1,), "padding": ((2, 2),), "dilation": (1,), "groups": 1, "input_dilation": (2,)}))[k]
    return [values(x, d, rng), values(w, d, rng)], attrs


@maker("softmax", "log_softmax", count=4)
def _softmax(d: DType, k: int, rng: np.random.Generator) -> Sample:
    shape, axis = (((7,), 0), ((3, 33), 1), ((17, 3), 0), ((2, 5, 4), 1))[k]
    return [values(shape, d, rng)], {"axis": axis}


@maker("layer_norm", count=3)
def _layer_norm(d: DType, k: int, rng: np.random.Generator) -> Sample:
    n = (7, 33, 16)[k]
    return [values((3, n), d, rng), values((n,), d, rng), values((n,), d, rng)][:1 + k], {"eps": 1e-5}


@maker("rms_norm", count=2)
def _rms_norm(d: DType, k: int, rng: np.random.Generator) -> Sample:
    n = (7, 33)[k]
    return [values((3, n), d, rng), values((n,), d, rng)][:1 + k], {"eps": 1e-6}


@maker("nextafter", count=2)
def _nextafter(d: DType, k: int, rng: np.random.Generator) -> Sample:
    x = values((33,), d, rng, special=True)
    y = values((33,), d, rng, special=True)
    return [x, np.where(np.arange(33) % 5 == 0, x, y).astype(d.np)], {}


@maker("integer_pow", count=2)
def _integer_pow(d: DType, k: int, rng: np.random.Generator) -> Sample:
    low = -2 if d.kind == "int" else 0
    return [values((17,), d, rng, special=True), rng.integers(low, (8, d.bits - 1)[k], 17).astype(d.np)], {}


@maker("gelu", count=2)
def _gelu(d: DType, k: int, rng: np.random.Generator) -> Sample:
    return [values((5, 9), d, rng, (-4, 4))], {"approximate": ("none", "tanh")[k]}


@maker("reduce_precision", count=3)
def _reduce_precision(d: DType, k: int, rng: np.random.Generator) -> Sample:
    exponent, mantissa = ((8, 10), (5, 2), (8 if d is dt.f32 else 11, 23))[k]
    return [values((47,), d, rng, special=True)], {"exponent_bits": exponent, "mantissa_bits": mantissa}


@maker("flush_subnormals", count=1)
def _flush_subnormals(d: DType, k: int, rng: np.random.Generator) -> Sample:
    tiny = values((20,), d, rng).astype(np.float64) * float(d.finfo.tiny)
    return [np.concatenate([tiny.astype(d.np), values((27,), d, rng, special=True)])], {}


@maker("compensated_sum", "pairwise_sum", "welford", count=3)
def _summation(d: DType, k: int, rng: np.random.Generator) -> Sample:
    shape = ((5, 1), (3, 700), (1, 2, 131))[k]
    return [values(shape, d, rng, (-4, 4))], {"axes": (len(shape) - 1,)}


@maker("fake_quantize", count=2)
def _fake_quantize(d: DType, k: int, rng: np.random.Generator) -> Sample:
    x = values((41,), d, rng, (-4, 4))
    scale = np.full(41, (0.0625, 0.5)[k]).astype(d.np)
    return [x, scale, np.full(41, 3 * k).astype(d.np)], {"low": (-127, 0)[k], "high": (127, 15)[k]}


@maker("silu", count=1)
def _silu(d: DType, k: int, rng: np.random.Generator) -> Sample:
    return [values((5, 9), d, rng, (-10, 10))], {}


@maker("attention", count=4)
def _attention(d: DType, k: int, rng: np.random.Generator) -> Sample:
    q, kv, causal = (((2, 3, 5, 8), (2, 3, 7, 8), False), ((2, 4, 6, 4), (2, 4, 6, 4), True), ((1, 4, 3, 8), (1, 2, 9, 8), True),
                     ((5, 4), (9, 4), False))[k]
    arrays = [values(q, d, rng), values(kv, d, rng), values(kv, d, rng)]
    if k == 0:
        arrays.append(rng.random((2, 1, 5, 7)) < 0.7)
    return arrays, {"scale": 0.25, "causal": causal}


@maker("attention_forward", count=4)
def _attention_forward(d: DType, k: int, rng: np.random.Generator) -> Sample:
    return _attention(d, k, rng)


@maker("attention_backward", count=4)
def _attention_backward(d: DType, k: int, rng: np.random.Generator) -> Sample:
    (q, key, v, *mask), attrs = _attention(d, k, rng)
    out, lse = OPS["attention_forward"].reference(q, key, v, *mask, **attrs)
    g = values(out.shape, d, rng)
    delta = np.sum(g.astype(lse.dtype) * out.astype(lse.dtype), -1)
    return [q, key, v, g, lse, delta, *mask], attrs


@maker("cross_entropy", count=2)
def _cross_entropy(d: DType, k: int, rng: np.random.Generator) -> Sample:
    shape = ((5, 9), (2, 3, 17))[k]
    return [values(shape, d, rng), rng.integers(0, shape[-1], shape[:-1])], {}


@maker("gather", count=4)
def _gather(d: DType, k: int, rng: np.random.Generator) -> Sample:
    shape, axes, many = (((9,), (0,), (4,)), ((5, 3, 4), (1,), (2, 3)), ((5, 3, 4), (0, 2), (6,)), ((5, 3, 4), (1, 2), (2, 2)))[k]
    kind = (np.int64, np.int32, np.int64, np.uint8)[k]
    low = 0 if k == 3 else -1
    return [values(shape, d, rng), *[rng.integers(low * shape[a], shape[a], many).astype(kind) for a in axes]], {"axes": axes}


@maker("take_along_axis", count=2)
def _along(d: DType, k: int, rng: np.random.Generator) -> Sample:
    shape, axis, many = (((5, 3), 0, (2, 3)), ((2, 3, 7), 2, (2, 3, 9)))[k]
    return [values(shape, d, rng), rng.integers(-shape[axis], shape[axis], many)], {"axis": axis}


@maker("scatter", count=5)
def _scatter(d: DType, k: int, rng: np.random.Generator) -> Sample:
    mode = ("set", "add", "max", "min", "mul")[k] if d.kind not in ("bool",) and d.bits not in (4, 6) else "set"
    shape, m = (((9,), 6), ((5, 3), 7), ((4, 2, 3), 3), ((6,), 9), ((3, 4), 4))[k]
    domain = (0.5, 1.5) if mode == "mul" else None
    return [values(shape, d, rng, domain), rng.integers(-shape[0], shape[0], m), values((m, *shape[1:]), d, rng, domain)], {"mode": mode}


@maker("dynamic_slice", count=2)
def _dynamic_slice(d: DType, k: int, rng: np.random.Generator) -> Sample:
    if k == 0:
        return [values((9,), d, rng), np.asarray(3)], {"starts": (None,), "sizes": (4,)}
    return [values((5, 7), d, rng), np.asarray(2, np.int32)], {"starts": (1, None), "sizes": (3, 4)}


@maker("dynamic_update_slice", count=2)
def _dynamic_update(d: DType, k: int, rng: np.random.Generator) -> Sample:
    if k == 0:
        return [values((9,), d, rng), values((4,), d, rng), np.asarray(3)], {"starts": (None,)}
    return [values((5, 7), d, rng), values((2, 7), d, rng), np.asarray(3, np.int32)], {"starts": (None, 0)}


@maker("sort", "argsort", count=4)
def _sort(d: DType, k: int, rng: np.random.Generator) -> Sample:
    shape, axis, descending = (((9,), 0, False), ((3, 33), 1, True), ((17, 3), 0, False), ((2, 5, 4), 1, True))[k]
    return [values(shape, d, rng, special=k == 1)], {"axis": axis, "descending": descending}


@maker("argtopk", count=4)
def _argtopk(d: DType, k: int, rng: np.random.Generator) -> Sample:
    shape, axis, most, largest = (((9,), 0, 2, False), ((3, 533), 1, 7, True), ((170, 3), 0, 40, False), ((2, 1, 4), 1, 1, True))[k]
    return [values(shape, d, rng, special=k == 1)], {"axis": axis, "k": most, "largest": largest}


@maker("searchsorted", count=3)
def _search(d: DType, k: int, rng: np.random.Generator) -> Sample:
    n = (9, 33, 1)[k]
    line = values((n,), d, rng)
    keys = np.concatenate([line[:3], values((4,), d, rng)])
    return [line[np.argsort(line.astype(np.float64) if line.dtype in LOW else line)], keys], {"side": ("left", "right", "left")[k]}


@maker("random_bits", count=4)
def _random(d: DType, k: int, rng: np.random.Generator) -> Sample:
    if k == 3:  # a key for each example
        return [rng.integers(0, 2 ** 63, (3, 2)).astype(np.uint64)], {"site": 1, "shape": (3, 7), "dtype": dt.uint64}
    attrs = ({"shape": (17,), "dtype": dt.uint32}, {"shape": (3, 5), "dtype": dt.uint64}, {"shape": (), "dtype": dt.uint32, "stream": 1})[k]
    return [rng.integers(0, 2 ** 63, 2).astype(np.uint64)], {"site": 3 + k, **attrs}


@maker("all_reduce", count=2)
def _all_reduce(d: DType, k: int, rng: np.random.Generator) -> Sample:
    return [values(((5,), (3, 7))[k], d, rng)], {"axis": "unbound", "combine": ("sum", "max")[k]}


@maker("all_gather", count=2)
def _all_gather(d: DType, k: int, rng: np.random.Generator) -> Sample:
    return [values(((5,), ())[k], d, rng)], {"axis": "unbound", "members": 1}


@maker("axis_index", count=1)
def _axis_index(d: DType, k: int, rng: np.random.Generator) -> Sample:
    return [], {"axis": "unbound"}


@maker("fft", "ifft", count=5)
def _fft(d: DType, k: int, rng: np.random.Generator) -> Sample:
    return [values(((8,), (3, 7), (2, 12), (1,), (30,))[k], d, rng)], {}


@maker("rfft", count=4)
def _rfft(d: DType, k: int, rng: np.random.Generator) -> Sample:
    return [values(((8,), (3, 7), (2, 12), (1,))[k], d, rng)], {}


@maker("irfft", count=3)
def _irfft(d: DType, k: int, rng: np.random.Generator) -> Sample:
    return [values(((5,), (3, 4), (2, 7))[k], d, rng)], {"n": (8, 7, 12)[k]}


def _positive(shape: tuple[int, ...], d: DType, rng: np.random.Generator) -> np.ndarray:
    a = rng.standard_normal(shape)
    return (a @ np.swapaxes(a, -1, -2) + shape[-1] * np.eye(shape[-1])).astype(d.np)


@maker("cholesky", count=3)
def _cholesky(d: DType, k: int, rng: np.random.Generator) -> Sample:
    return [_positive(((5, 5), (2, 17, 17), (1, 1))[k], d, rng)], {}


@maker("triangular_solve", count=4)
def _triangular(d: DType, k: int, rng: np.random.Generator) -> Sample:
    attrs = {"lower": k % 2 == 0, "transpose": k >= 2, "unit": False}
    return [_positive((2, 9, 9), d, rng), values((2, 9, 3), d, rng)], attrs


@maker("solve", count=2)
def _solve(d: DType, k: int, rng: np.random.Generator) -> Sample:
    n, lead = ((5, ()), (9, (2,)))[k]
    a = rng.standard_normal((*lead, n, n)) * 0.1 + np.eye(n)[rng.permutation(n)] * 4
    return [a.astype(d.np), values((*lead, n, 3), d, rng)], {}


@maker("lu", count=2)
def _lu(d: DType, k: int, rng: np.random.Generator) -> Sample:
    n = (5, 17)[k]
    # well separated pivots: a dominant entry in each column, at places that a permutation gives
    a = rng.standard_normal((n, n)) * 0.1 + np.eye(n)[rng.permutation(n)] * 4
    return [a.astype(d.np)], {}


@maker("view_as_real", count=2)
def _view_as_real(d: DType, k: int, rng: np.random.Generator) -> Sample:
    return [values(((5,), (3, 4))[k], d, rng)], {}


@maker("view_as_complex", count=2)
def _view_as_complex(d: DType, k: int, rng: np.random.Generator) -> Sample:
    return [values(((5, 2), (3, 4, 2))[k], d, rng)], {}


# Factors of these are unique only up to signs or the choice of a basis; tests/ops/test_linalg.py checks what defines them.
NOT_UNIQUE = frozenset({"qr", "svd", "eigh", "eig"})


# -- the cover -------------------------------------------------------------------------------------------------------------
def _converts(full: bool) -> Iterable[Case]:
    all_types = list(dt.ALL)
    for i, src in enumerate(all_types):
        for j, dst in enumerate(all_types):
            if full or (j - i) % len(all_types) in (1, 5, 8, 13, 18):
                rng = rng_for("convert", src, dst)
                x = values((33,), src, rng, special=True)
                yield Case("convert", src, f"to-{dst}", [x], {"dtype": dst})
        if src.is_float and src.bits > 8:
            yield Case("convert", src, "saturated", [values((17,), src, rng_for(src), (-1e4, 1e4))],
                       {"dtype": dt.fp8_e4m3, "saturate": True})
        if src.is_float and src.bits > 8:
            for dst in (dt.f16, dt.bf16, dt.fp8_e5m2, dt.int8):
                for mode in ("toward_zero", "up", "down", "stochastic", "nearest") if full else ("up", "stochastic"):
                    rng = rng_for("rounding", src, dst, mode)
                    words = [rng.integers(0, 1 << 32, 33, dtype=np.uint32)] if mode == "stochastic" else []
                    yield Case("convert", src, f"to-{dst}-{mode}", [values((33,), src, rng, (-1e5, 1e5), True), *words],
                               {"dtype": dst, "rounding": mode})
        same = [d for d in all_types if d.bits == src.bits and "bool" not in (d.kind, src.kind) and not (d.is_complex or src.is_complex)]
        for dst in same if full else same[i % max(len(same), 1):][:2]:
            yield Case("bitcast", src, f"to-{dst}", [values((17,), src, rng_for(src, dst))], {"dtype": dst})


def cases(full: bool = False) -> list[Case]:
    """The cover, or the whole product of op, dtype and shape."""
    out: list[Case] = []
    for n, (name, op) in enumerate(OPS.items()):
        if name in NOT_UNIQUE or name in ("convert", "bitcast"):
            continue
        if op.pointwise:
            count, labels = len(SHAPES), SHAPES
            make = lambda d, k, name=name: pointwise(name, d, SHAPES[k])
        else:
            count, fn = MAKERS[name]
            labels = tuple(f"s{k}" for k in range(count))
            make = lambda d, k, name=name, fn=fn: fn(d, k, rng_for(name, d, k))
        dtypes = op.dtypes
        if full:
            chosen = list(pairs(range(len(dtypes)), range(count)))
        else:
            rounds = max(len(dtypes), count)
            chosen = sorted({(i % len(dtypes), (i + n) % count) for i in range(rounds)})
        for i, k in chosen:
            arrays, attrs = make(dtypes[i], k)
            out.append(Case(name, dtypes[i], labels[k], arrays, attrs))
    met = {(c.dtype, c.label) for c in out}
    out += [Case("select", d, label, *pointwise("select", d, label)) for d, label in pairs(dt.ALL, SHAPES) if (d, label) not in met]
    return [*out, *_converts(full)]


def program(group: Sequence[Case], name: str = "sweep") -> tuple[Any, Arrays]:
    """One Graph function that computes all cases of ``group``, and its arguments."""
    trace = Trace(name)
    arrays: Arrays = []
    with tracing(trace):
        results = []
        for c in group:
            given = [trace.parameter(t) for t in c.types]
            arrays += c.arrays
            made = bind(c.op, *given, **c.attrs)
            results += list(made) if isinstance(made, tuple) else [made]
        fn = trace.finish(results)
    return fn, arrays


def failures(group: Sequence[Case], results: Sequence[np.ndarray]) -> list[str]:
    """What is wrong with the results of ``program(group)``."""
    out, at = [], 0
    for c in group:
        n = len(OPS[c.op].infer(c.types, c.attrs))
        wrong = c.check([np.asarray(r) for r in results[at:at + n]])
        at += n
        if wrong:
            out.append(wrong)
    return out


def batches(group: Sequence[Case], size: int = 60) -> Iterable[Sequence[Case]]:
    for i in range(0, len(group), size):
        yield group[i:i + size]
