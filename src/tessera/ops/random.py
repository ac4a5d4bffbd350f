"""Random bits: Philox4x32-10, a pure function of (seed, call counter, site, element).

The same definition stands here twice: in numpy (the reference) and as integer ops on scalars (the element rule), so that
compiled code gives the same bits whatever the number of threads.  A block's four counter words are the element's number
(two words) and the call counter plus the site (two words): site n of one program draws what the n-th of as many eager
calls draws.  The key is the seed.  32-bit results are word 0, 64-bit ones words 0 and 1.

The distributions are built on the bits by ordinary ops; ``ts.random`` (which owns keys and sites) calls them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DTypeError, ShapeError
from ..ir.core import Op, TensorType, Value
from ..tracing.recorder import bind
from ..types import dtypes as dt
from ..types.dims import DimLike
from ..types.dtypes import DType, as_dtype
from ..types.shapes import contiguous_strides, format_shape
from . import batch_rules as br
from . import pointwise as pw
from . import reduction as rd
from . import shaping as sh
from . import sorting as so
from .operands import as_tensor, axis_of, convert, shape_of
from .rules import Array, expect_operands
from .table import Attrs, ElementBuilder, primitive

M0, M1 = 0xD2511F53, 0xCD9E8D57
W0, W1 = 0x9E3779B9, 0xBB67AE85
ROUNDS = 10
LOW32 = 0xFFFFFFFF


# -- the generator, in numpy -----------------------------------------------------------------------------------------------
def philox(counter: Sequence[Array], key: tuple[int, int]) -> list[Array]:
    """Philox4x32-10: four uint32 arrays of counter words and two key words to four arrays of random words."""
    c0, c1, c2, c3 = (np.asarray(c, np.uint64) & np.uint64(LOW32) for c in counter)
    k0, k1 = key
    for _ in range(ROUNDS):
        p0, p1 = np.uint64(M0) * c0, np.uint64(M1) * c2
        c0, c1, c2, c3 = ((p1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0), p1 & np.uint64(LOW32),
                          (p0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1), p0 & np.uint64(LOW32))
        k0, k1 = (k0 + W0) & LOW32, (k1 + W1) & LOW32
    return [c.astype(np.uint32) for c in (c0, c1, c2, c3)]


def _reference(key: Array, shape: Any, site: int, dtype: DType, stream: int = 0) -> Array:
    if key.ndim > 1:  # a key for each example: each counts its own elements
        lead = key.shape[:-1]
        own = [_reference(k, shape[len(lead):], site, dtype, stream) for k in key.reshape(-1, 2)]
        return np.stack(own).reshape(shape) if own else np.zeros(shape, dtype.np)
    seed, call = int(key[0]), (int(key[1]) + site) % 2 ** 64
    number = np.arange(int(np.prod(shape, dtype=np.int64)), dtype=np.uint64)
    words = philox((number, number >> np.uint64(32), np.full_like(number, call & LOW32),
                    np.full_like(number, call >> 32)), (seed & LOW32, (seed >> 32) ^ (stream * W0 & LOW32)))
    out = words[0] if dtype is dt.uint32 else words[0].astype(np.uint64) | (words[1].astype(np.uint64) << np.uint64(32))
    return out.reshape(shape)


# -- the same on scalars -----------------------------------------------------------------------------------------------------
class _Words:
    """uint32 arithmetic for one element."""

    def __init__(self, e: ElementBuilder):
        self.e = e

    def const(self, value: int, dtype: DType = dt.uint32) -> Value:
        return self.e.const(value, dtype)

    def op(self, name: str, a: Value, b: Value) -> Value:
        return self.e.emit(name, a, b, dtype=a.type.dtype)

    def low(self, wide: Value) -> Value:
        return self.e.emit("convert", wide, dtype=dt.uint32)  # integers wrap

    def high(self, wide: Value) -> Value:
        return self.low(self.op("shift_right", wide, self.const(32, dt.uint64)))

    def wide(self, word: Value) -> Value:
        return self.e.emit("convert", word, dtype=dt.uint64)

    def product(self, factor: int, word: Value) -> tuple[Value, Value]:
        """(high, low) words of a 32 by 32 bit product."""
        wide = self.op("mul", self.wide(word), self.const(factor, dt.uint64))
        return self.high(wide), self.low(wide)

    def xor(self, *words: Value) -> Value:
        out = words[0]
        for w in words[1:]:
            out = self.op("bitwise_xor", out, w)
        return out


def _element(e: ElementBuilder, op: Op, index: Sequence[DimLike], r: int) -> Value:
    w = _Words(e)
    number: DimLike = 0
    lead = op.operands[0].type.rank - 1
    example = index[:lead]
    for i, stride in zip(index[lead:], contiguous_strides(op.results[0].type.shape[lead:]), strict=True):
        number = number + i * stride
    at = e.emit("convert", e.index(number), dtype=dt.uint64)
    seed = e.operand(0, (*example, 0))
    call = w.op("add", e.operand(0, (*example, 1)), w.const(op.attrs["site"], dt.uint64))
    c0, c1, c2, c3 = w.low(at), w.high(at), w.low(call), w.high(call)
    k0, k1 = w.low(seed), w.xor(w.high(seed), w.const(op.attrs.get("stream", 0) * W0 & LOW32))
    for n in range(ROUNDS):
        if n:
            k0, k1 = w.op("add", k0, w.const(W0)), w.op("add", k1, w.const(W1))
        (h0, l0), (h1, l1) = w.product(M0, c0), w.product(M1, c2)
        c0, c1, c2, c3 = w.xor(h1, c1, k0), l1, w.xor(h0, c3, k1), l0
    if op.attrs["dtype"] is dt.uint32:
        return c0
    return w.op("bitwise_or", w.wide(c0), w.op("shift_left", w.wide(c1), w.const(32, dt.uint64)))


def _infer(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    expect_operands("random_bits", types, 1)
    key, shape = types[0], tuple(attrs["shape"])
    if key.dtype is not dt.uint64 or key.rank == 0 or key.shape[-1] != 2:
        raise ShapeError("'random_bits' takes a key uint64[2]: seed and call counter", received=str(key))
    if key.shape[:-1] != shape[:key.rank - 1]:
        raise ShapeError(f"keys for {format_shape(key.shape[:-1])} examples, and random bits of the shape {format_shape(shape)}",
                         sentence="With a key for each example, the examples come first in the shape.", received=str(key))
    if attrs["dtype"] not in (dt.uint32, dt.uint64):
        raise ShapeError(f"'random_bits' gives uint32 or uint64, not {attrs['dtype']}")
    return (TensorType(attrs["dtype"], shape),)


primitive("random_bits", family="random", infer=_infer, reference=_reference, dtypes=(dt.uint64,), element=_element,
          batch=br.random_bits,
          doc="Random words of ``dtype`` (uint32, uint64): element i depends on the key (seed, call counter), ``site``, "
              "``stream`` and i alone.  Keys uint64[L…, 2] for a shape [L…, …]: each example draws with its own.",
          facts={"attrs": ("shape", "site", "dtype", "stream")})


def random_bits(key: Any, site: int, shape: Sequence[Any], dtype: Any = dt.uint32, stream: int = 0) -> Any:
    """Random words; see the primitive."""
    extra = {"stream": stream} if stream else {}
    return bind("random_bits", key, shape=shape_of((tuple(shape),)), site=int(site), dtype=as_dtype(dtype), **extra)


def words(key: Any, site: int, shape: Sequence[Any]) -> Any:
    """uint32 words."""
    return random_bits(key, site, shape)


def fold_in(key: Any, number: Any) -> Any:
    """Another key: the call counter mixed with an integer (a loop's iteration, an example's index), or one for each key."""
    key = as_tensor(key)
    n = convert(as_tensor(number), dt.uint64)
    z = pw.add(sh.slice_axis(key, -1, 1, 2), pw.mul(pw.add(sh.reshape(n, (*n.type.shape, 1)), 1), 0x9E3779B97F4A7C15))
    z = pw.mul(pw.bitwise_xor(z, pw.shift_right(z, 30)), 0xBF58476D1CE4E5B9)
    z = pw.mul(pw.bitwise_xor(z, pw.shift_right(z, 27)), 0x94D049BB133111EB)
    return sh.concat([sh.slice_axis(key, -1, 0, 1), pw.bitwise_xor(z, pw.shift_right(z, 31))], -1)


# -- distributions: (key, site, shape, …) ------------------------------------------------------------------------------------
_DIGITS = {dt.f16: 11, dt.bf16: 8, dt.f32: 24, dt.f64: 53}


def _float(dtype: Any) -> DType:
    kind = as_dtype(dtype)
    if kind not in _DIGITS:
        raise DTypeError(f"random numbers are drawn in f16, bf16, f32 or f64, not {kind}",
                         hints=["Draw in f32 and convert: x.to(...)"])
    return kind


def _unit(key: Any, site: int, shape: Sequence[Any], kind: DType, stream: int = 0) -> Any:
    """Uniform in [0, 1): every multiple of 2**-p below 1 (p: the format's digits) has the same chance."""
    digits = _DIGITS[kind]
    wide = dt.f64 if kind is dt.f64 else dt.f32
    words = random_bits(key, site, shape, dt.uint64 if digits > 32 else dt.uint32, stream)
    drawn = pw.shift_right(words, (64 if digits > 32 else 32) - digits)
    return pw.mul(convert(drawn, wide), 2.0 ** -digits)


def uniform(key: Any, site: int, shape: Sequence[Any], dtype: Any = dt.f32, low: Any = 0.0, high: Any = 1.0) -> Any:
    """Uniform in [low, high)."""
    kind = _float(dtype)
    u = _unit(key, site, shape, kind)
    if not (isinstance(low, int | float) and isinstance(high, int | float) and (low, high) == (0, 1)):
        u = pw.add(pw.mul(u, pw.sub(high, low) if hasattr(low, "dtype") or hasattr(high, "dtype") else high - low), low)
    return convert(u, kind)


def normal(key: Any, site: int, shape: Sequence[Any], dtype: Any = dt.f32, mean: Any = 0.0, std: Any = 1.0) -> Any:
    """Normal numbers by Box and Muller's method: two uniform ones give one."""
    kind = _float(dtype)
    wide = dt.f64 if kind is dt.f64 else dt.f32
    u, v = _unit(key, site, shape, wide), _unit(key, site, shape, wide, 1)
    z = pw.mul(pw.sqrt(pw.mul(pw.log(pw.sub(1.0, u)), -2.0)), pw.cos(pw.mul(v, 2 * math.pi)))
    if not (isinstance(std, int | float) and std == 1):
        z = pw.mul(z, std)
    if not (isinstance(mean, int | float) and mean == 0):
        z = pw.add(z, mean)
    return convert(z, kind)


def randint(key: Any, site: int, shape: Sequence[Any], low: int, high: int, dtype: Any = dt.int32) -> Any:
    """Integers in [low, high), by a 32 (or 64) bit fraction of the range: a value's chance is off by at most range/2**32
    (range/2**64 for ranges above 2**32) of itself.

    Raises:
        ShapeError: the range is empty.
    """
    kind, span = as_dtype(dtype), int(high) - int(low)
    if span < 1:
        raise ShapeError(f"randint has no number in [{low}, {high})")
    if span <= 2 ** 32:
        wide = convert(random_bits(key, site, shape, dt.uint32), dt.uint64)
        drawn = pw.shift_right(pw.mul(wide, span), 32)
    else:
        drawn = random_bits(key, site, shape, dt.uint64)
        drawn = drawn if span >= 2 ** 64 else bind("mod", *_pair(drawn, span), checked=False)
    return convert(pw.add(convert(drawn, dt.int64), int(low)), kind) if low else convert(drawn, kind)


def _pair(x: Any, n: int) -> tuple[Any, Any]:
    return x, bind("full", shape=x.type.shape, value=n, dtype=x.dtype)


def bernoulli(key: Any, site: int, shape: Sequence[Any], p: Any = 0.5) -> Any:
    """True with probability ``p`` (a number, or a tensor that broadcasts to ``shape``)."""
    return pw.lt(_unit(key, site, shape, dt.f32), p)


def exponential(key: Any, site: int, shape: Sequence[Any], dtype: Any = dt.f32) -> Any:
    """Exponential numbers of mean 1."""
    kind = _float(dtype)
    wide = dt.f64 if kind is dt.f64 else dt.f32
    return convert(pw.neg(pw.log(pw.sub(1.0, _unit(key, site, shape, wide)))), kind)


def gumbel(key: Any, site: int, shape: Sequence[Any], dtype: Any = dt.f32) -> Any:
    """Gumbel numbers: -log of exponential ones."""
    kind = _float(dtype)
    wide = dt.f64 if kind is dt.f64 else dt.f32
    u = pw.add(_unit(key, site, shape, wide), 2.0 ** -(_DIGITS[wide] + 1))
    return convert(pw.neg(pw.log(pw.neg(pw.log(u)))), kind)


def categorical(key: Any, site: int, logits: Any, shape: Sequence[Any] = ()) -> Any:
    """int64 class numbers drawn with the probabilities softmax(logits) over the last axis; ``shape`` goes in front."""
    logits = as_tensor(logits)
    full = (*shape, *logits.type.shape)
    return rd.argmax(pw.add(convert(logits, dt.f32), gumbel(key, site, full)), -1)


def permutation(key: Any, site: int, n: Any) -> Any:
    """The numbers 0 … n-1 in random order, as int64."""
    return so.argsort(words(key, site, (n,)), 0)


def shuffle(key: Any, site: int, x: Any, axis: int = 0) -> Any:
    """``x`` with its slices along ``axis`` in random order."""
    x = as_tensor(x)
    axis = axis_of("shuffle", x, axis)
    return bind("gather", x, permutation(key, site, x.type.shape[axis]), axes=(axis,), checked=False)


def truncated_normal(key: Any, site: int, shape: Sequence[Any], dtype: Any = dt.f32, low: float = -2.0, high: float = 2.0) -> Any:
    """Normal numbers within [low, high], by inverting the distribution function."""
    kind = _float(dtype)
    wide = dt.f64 if kind is dt.f64 else dt.f32
    a, b = math.erf(low / math.sqrt(2)), math.erf(high / math.sqrt(2))
    z = pw.mul(pw.erfinv(pw.add(pw.mul(_unit(key, site, shape, wide), b - a), a)), math.sqrt(2))
    return convert(pw.clip(z, low, high), kind)
