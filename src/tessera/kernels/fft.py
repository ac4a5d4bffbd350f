"""Fourier transforms of the last axis, any length.

The core is Stockham's algorithm on scratch memory with the *lanes side by side*: ``width`` independent transforms of one
length lie interleaved, so every load and store is whole vectors and every twiddle factor is a scalar.  Where the lanes come
from:

* rows: a batch of rows, transposed on the way in and out (short rows);
* columns: one row of length n1*n2 as a matrix: transform its columns, multiply by the roots of n, transform its rows
  (the four-step form); what lies between the steps rests in the result;
* lengths with a prime factor above 13 become a convolution with a chirp, of a power of two (Bluestein).

Rows too long for a block come here in pieces (``ops/fft_long.py``).

Complex buffers are seen as pairs of reals.  Inverse transforms are forward ones with real and imaginary parts exchanged.
Roots of unity are computed in f64 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, cast

from ..errors import UnsupportedError
from ..ir.core import BufferType, Function, Op
from ..ops.fft_long import factors, split
from ..tiling import dsl as tile
from ..tiling.templates import register
from ..types.dims import Dim, DimLike, ceildiv, format_dim, product
from ..types.dtypes import DType, f64, int64

Pair = tuple[tile.TileValue, tile.TileValue]
Read = Callable[[Any, int], Pair]  # elements j … j+lanes-1 of the input: real and imaginary parts
Write = Callable[[Any, Pair, Any], None]  # elements k …, under a mask or None

SCRATCH_BYTES = 640 << 10  # of one block
SHORT = 64  # rows shorter than this are transformed side by side


# -- roots of unity ------------------------------------------------------------------------------------------------------
def root(t: tile.TileValue, n: int) -> Pair:
    """exp(-2 pi i t / n) in f64, for integers 0 <= t*n < 2**50.

    The nearest quarter turn is taken off exactly, in integers; what is left is at most an eighth of a turn.
    """
    whole = t.to(f64) * 4.0
    turns = tile.round(whole * (1.0 / n))
    x = tile.fma(-turns, tile.full(t.shape, float(n), f64), whole) * (math.pi / (2 * n))
    quarter = turns - tile.floor(turns * 0.25) * 4.0
    square = x * x
    sine = x * _series(square, [(-1) ** k / math.factorial(2 * k + 1) for k in range(8)])
    cosine = _series(square, [(-1) ** k / math.factorial(2 * k) for k in range(9)])
    first, second, third = quarter == 1.0, quarter == 2.0, quarter == 3.0
    odd = tile.logical_or(first, third)
    re, im = tile.where(odd, sine, cosine), tile.where(odd, cosine, sine)
    re = tile.where(tile.logical_or(first, second), -re, re)
    return re, tile.where(tile.logical_or(second, third), im, -im)


def _series(x: tile.TileValue, terms: list[float]) -> tile.TileValue:
    total = tile.full(x.shape, terms[-1], f64)
    for c in reversed(terms[:-1]):
        total = tile.fma(total, x, tile.full(x.shape, c, f64))
    return total


def times(a: Pair, b: Pair) -> Pair:
    """The complex product."""
    return tile.fma(-a[1], b[1], a[0] * b[0]), tile.fma(a[1], b[0], a[0] * b[1])


# -- the core ------------------------------------------------------------------------------------------------------------
class Core:
    """``width`` transforms of length ``n`` side by side: element j of transform q at ``j*width + q`` of two planes."""

    def __init__(self, n: int, width: int, dtype: DType):
        self.n, self.width, self.dtype = n, width, dtype
        radices = factors(n)
        assert radices is not None
        self.radices = radices
        self.planes = [[tile.alloc((n * width,), dtype) for _ in range(2)] for _ in range(2 if radices else 1)]
        self.table = [tile.alloc((n,), dtype) for _ in range(2)]
        self._fill_table()

    @staticmethod
    def nbytes(n: int, width: int, dtype: DType) -> int:
        return (4 * n * width + 2 * n) * dtype.itemsize

    def _fill_table(self) -> None:
        lanes = min(self.width, 1 << (self.n - 1).bit_length())

        def fill(t: Any, _: Any) -> tuple[()]:
            at = tile.iota((lanes,)) + t
            for plane, part in zip(self.table, root(at, self.n), strict=True):
                tile.store(plane, (t,), part.to(self.dtype), check=(0,))
            return ()

        tile.for_loop((0, self.n, lanes), (), fill)

    def put(self, j: Any, value: Pair) -> None:
        for plane, part in zip(self.planes[0], value, strict=True):
            tile.store(plane, (j * self.width,), part)

    def get(self, k: Any) -> Pair:
        """Element k of the result; after :meth:`run`."""
        re, im = (tile.load(p, (k * self.width,), (self.width,)) for p in self.planes[len(self.radices) % 2])
        return re, im

    def run(self) -> None:
        length, stride = self.n, 1
        for i, r in enumerate(self.radices):
            self._pass(self.planes[i % 2], self.planes[1 - i % 2], r, length, stride)
            length, stride = length // r, stride * r

    def _pass(self, source: list[tile.Buffer], target: list[tile.Buffer], r: int, length: int, stride: int) -> None:
        m, w = length // r, self.width

        def group(p: Any, _: Any) -> tuple[()]:
            roots = [self._twiddle(p, k, length) for k in range(1, r)] if m > 1 else []

            def one(q: Any, _: Any) -> tuple[()]:
                parts = []
                for k in range(r):
                    at = ((p + k * m) * stride + q) * w
                    parts.append((tile.load(source[0], (at,), (w,)), tile.load(source[1], (at,), (w,))))
                for k, b in enumerate(butterfly(parts)):
                    b = times(b, roots[k - 1]) if k and roots else b
                    at = ((p * r + k) * stride + q) * w
                    tile.store(target[0], (at,), b[0])
                    tile.store(target[1], (at,), b[1])
                return ()

            tile.for_loop((0, stride, 1), (), one)
            return ()

        tile.for_loop((0, m, 1), (), group)

    def _twiddle(self, p: Any, k: int, length: int) -> Pair:
        at = p * (k * (self.n // length))
        re, im = (tile.splat(tile.load(t, (at,)), (self.width,)) for t in self.table)
        return re, im


def butterfly(a: list[Pair]) -> list[Pair]:
    """The transform of a few elements."""
    r = len(a)
    if r == 2:
        return [_add(a[0], a[1]), _sub(a[0], a[1])]
    if r == 4:
        s, d = _add(a[0], a[2]), _sub(a[0], a[2])
        t, e = _add(a[1], a[3]), _sub(a[1], a[3])
        return [_add(s, t), (d[0] + e[1], d[1] - e[0]), _sub(s, t), (d[0] - e[1], d[1] + e[0])]
    half = r // 2
    sums = [_add(a[j], a[r - j]) for j in range(1, half + 1)]
    gaps = [_sub(a[j], a[r - j]) for j in range(1, half + 1)]
    total = a[0]
    for pair in sums:
        total = _add(total, pair)
    out: list[Pair] = [total] * r
    for k in range(1, half + 1):
        even, odd = a[0], cast("Pair | None", None)
        for j in range(1, half + 1):
            cosine, sine = (f(2 * math.pi * (j * k % r) / r) for f in (math.cos, math.sin))
            even = (_fma(sums[j - 1][0], cosine, even[0]), _fma(sums[j - 1][1], cosine, even[1]))
            gap = gaps[j - 1]
            odd = (gap[0] * sine, gap[1] * sine) if odd is None else (_fma(gap[0], sine, odd[0]), _fma(gap[1], sine, odd[1]))
        assert odd is not None
        out[k] = (even[0] + odd[1], even[1] - odd[0])
        out[r - k] = (even[0] - odd[1], even[1] + odd[0])
    return out


def _add(a: Pair, b: Pair) -> Pair:
    return a[0] + b[0], a[1] + b[1]


def _sub(a: Pair, b: Pair) -> Pair:
    return a[0] - b[0], a[1] - b[1]


def _fma(x: tile.TileValue, c: float, acc: tile.TileValue) -> tile.TileValue:
    return tile.fma(x, tile.full(x.shape, c, x.dtype), acc)


# -- interleaved memory ----------------------------------------------------------------------------------------------------
def load_pairs(memory: tile.Buffer, at: Any, lanes: int, mask: Any = None) -> Pair:
    """``lanes`` complex elements from complex offset ``at`` of a flat buffer of pairs."""
    wide = None if mask is None else tile.reshape(tile.broadcast_to(tile.reshape(mask, (lanes, 1)), (lanes, 2)), (2 * lanes,))
    both = tile.reshape(tile.load(memory, (at * 2,), (2 * lanes,), mask=wide), (lanes, 2))
    return both[:, 0], both[:, 1]


def store_pairs(memory: tile.Buffer, at: Any, value: Pair, mask: Any = None) -> None:
    lanes = value[0].shape[0]
    wide = None if mask is None else tile.reshape(tile.broadcast_to(tile.reshape(mask, (lanes, 1)), (lanes, 2)), (2 * lanes,))
    both = tile.concat([tile.reshape(v, (lanes, 1)) for v in value], axis=1)
    tile.store(memory, (at * 2,), tile.reshape(both, (2 * lanes,)), mask=wide)


def _inside(first: Any, lanes: int, n: int) -> Any:
    """The mask of lanes below ``n``; None where all are."""
    if n % lanes == 0:
        return None
    return tile.iota((lanes,)) + first < n


# -- one row as a matrix ---------------------------------------------------------------------------------------------------
class FourStep:
    """Transforms of one length, each as n1 x n2."""

    def __init__(self, n: int, lanes: int, dtype: DType):
        self.n, self.lanes, self.dtype = n, lanes, dtype
        self.n1, self.n2 = split(n)
        self.columns = Core(self.n1, lanes, dtype)
        self.rows = self.columns if self.n1 == self.n2 else Core(self.n2, lanes, dtype)

    @staticmethod
    def nbytes(n: int, lanes: int, dtype: DType) -> int:
        return sum(Core.nbytes(k, lanes, dtype) for k in set(split(n)))

    def run(self, read: Read, memory: tile.Buffer, base: Any, write: Write) -> None:
        """``memory`` from complex offset ``base`` holds what lies between the steps; ``write`` may go there too."""
        n1, n2, lanes = self.n1, self.n2, self.lanes

        def first(j2: Any, _: Any) -> tuple[()]:
            def fetch(j1: Any, _: Any) -> tuple[()]:
                self.columns.put(j1, read(j1 * n2 + j2, lanes))
                return ()

            tile.for_loop((0, n1, 1), (), fetch)
            self.columns.run()
            self._rest(memory, base, j2)
            return ()

        def second(k1: Any, _: Any) -> tuple[()]:
            mask = _inside(k1, lanes, n1)

            def fetch(j2: Any, _: Any) -> tuple[()]:
                self.rows.put(j2, load_pairs(memory, base + j2 * n1 + k1, lanes, mask))
                return ()

            def leave(k2: Any, _: Any) -> tuple[()]:
                write(k2 * n1 + k1, self.rows.get(k2), mask)
                return ()

            tile.for_loop((0, n2, 1), (), fetch)
            self.rows.run()
            tile.for_loop((0, n2, 1), (), leave)
            return ()

        tile.for_loop((0, n2, lanes), (), first)
        tile.for_loop((0, n1, lanes), (), second)

    def _rest(self, memory: tile.Buffer, base: Any, j2: Any) -> None:
        """Columns j2 … times the roots of n, each to a line of its own: element k1 of column j2 at j2*n1 + k1."""
        n1, lanes = self.n1, self.lanes
        column = tile.iota((lanes,)) + j2
        step = root(column, self.n)
        line = column * n1
        inside = _inside(j2, lanes, self.n2)
        chunk = 16  # the powers of ``step`` are multiplied up from a fresh root every so often

        def strip(k: Any, _: Any) -> tuple[()]:
            def one(k1: Any, now: Pair) -> Pair:
                value = times(self.columns.get(k1), (now[0].to(self.dtype), now[1].to(self.dtype)))
                for i in range(2):
                    tile.scatter(memory, (line + base + k1) * 2 + i, value[i], mask=inside)
                return times(now, step)

            stop = tile.minimum(k + chunk, tile.constant(n1, int64))
            tile.for_loop((k, stop, 1), root(column * k, self.n), one)
            return ()

        tile.for_loop((0, n1, chunk), (), strip)


class Chirp:
    """Bluestein: a transform of any length n through transforms of a power of two above 2n."""

    def __init__(self, n: int, lanes: int, dtype: DType):
        self.n, self.lanes, self.dtype = n, lanes, dtype
        self.m = self.length(n)
        self.inner = FourStep(self.m, lanes, dtype)
        self.filter, self.signal, self.product = (tile.alloc((2 * self.m,), dtype) for _ in range(3))
        self.inner.run(self._filter, self.filter, 0, lambda k, v, mask: store_pairs(self.filter, k, v, mask))

    @staticmethod
    def length(n: int) -> int:
        return max(64, 1 << (2 * n - 2).bit_length())

    @staticmethod
    def nbytes(n: int, lanes: int, dtype: DType) -> int:
        m = Chirp.length(n)
        return 6 * m * dtype.itemsize + FourStep.nbytes(m, lanes, dtype)

    def _chirp(self, j: Any) -> Pair:
        """exp(-pi i j^2 / n)."""
        re, im = root(j * j, 2 * self.n)
        return re.to(self.dtype), im.to(self.dtype)

    def _filter(self, j: Any, lanes: int) -> Pair:
        at = tile.iota((lanes,)) + j
        near = tile.minimum(at, self.m - at)
        re, im = self._chirp(near)
        inside = near < self.n
        return tile.where(inside, re, 0), tile.where(inside, -im, 0)

    def run(self, read: Read, memory: tile.Buffer, base: Any, write: Write) -> None:
        def signal(j: Any, lanes: int) -> Pair:
            at = tile.iota((lanes,)) + j
            re, im = times(read(j, lanes), self._chirp(tile.minimum(at, self.n)))
            return tile.where(at < self.n, re, 0), tile.where(at < self.n, im, 0)

        def product_(j: Any, lanes: int) -> Pair:
            inside = tile.iota((lanes,)) + j < self.m
            re, im = times(load_pairs(self.signal, j, lanes, inside), load_pairs(self.filter, j, lanes, inside))
            return im, re  # exchanged: the way back

        def finish(k: Any, value: Pair, mask: Any) -> None:
            at = tile.iota((self.lanes,)) + k
            scale = 1.0 / self.m
            out = times((value[1] * scale, value[0] * scale), self._chirp(tile.minimum(at, self.n)))
            inside = at < self.n
            write(k, out, inside if mask is None else tile.logical_and(inside, mask))

        self.inner.run(signal, self.signal, 0, lambda k, v, mask: store_pairs(self.signal, k, v, mask))
        self.inner.run(product_, self.product, 0, finish)


# -- the template ----------------------------------------------------------------------------------------------------------
@register("fft")
def fft(op: Op, machine: Any, name: str) -> Function:
    """Operands: x, out; attribute ``op``: fft ifft rfft irfft.  The last axis, of a length known when compiling.

    Raises:
        UnsupportedError: the length is symbolic.
    """
    x, out = (v.type for v in op.operands)
    n = out.shape[-1] if op.attrs["op"] == "irfft" else x.shape[-1]
    if isinstance(n, Dim):
        raise UnsupportedError(f"the Fourier transform of an axis of symbolic size {format_dim(n)}", loc=op.loc,
                               hints=["give the axis a size that is known when the function is compiled"])
    real = out.dtype.real
    lanes = machine.vector_lanes(real)
    rows = product(x.shape[:-1])
    side_by_side = factors(n) is not None and (n < SHORT or _prime(n)) and Core.nbytes(n, lanes, real) <= SCRATCH_BYTES
    per_block: DimLike = lanes * max(1, 4096 // (n * lanes)) if side_by_side else max(1, 16384 // n)
    types = [(v.name or f"b{i}", BufferType(real, (product(v.type.shape) * (2 if v.type.dtype.is_complex else 1),)))
             for i, v in enumerate(op.operands)]
    sizes = tuple(sorted({s for v in op.operands for d in v.type.shape if isinstance(d, Dim) for s in d.names}))
    program = tile.TileProgram(name, types, sizes, grid=(ceildiv(rows, per_block),), loc=op.loc)
    form = _Form(op.attrs["op"], n, x.shape[-1], out.shape[-1], real, lanes)

    def body(source: tile.Buffer, target: tile.Buffer) -> None:
        first = tile.program_id(0) * per_block
        last = tile.minimum(first + per_block, tile.size(rows))
        if side_by_side:
            form.many_rows(source, target, first, last)
        else:
            form.single_rows(source, target, first, last)

    return tile.build(program, body)


def _prime(n: int) -> bool:
    return split(n)[0] == 1


class _Form:
    """How the four ops read their input and write their result."""

    def __init__(self, kind: str, n: int, given: int, wanted: int, dtype: DType, lanes: int):
        self.kind, self.n, self.given, self.wanted, self.dtype, self.lanes = kind, n, given, wanted, dtype, lanes
        self.inverse = kind in ("ifft", "irfft")

    def _engine(self) -> FourStep | Chirp:
        form = Chirp if factors(self.n) is None or _prime(self.n) else FourStep
        assert form.nbytes(self.n, self.lanes, self.dtype) <= SCRATCH_BYTES, "ops/fft_long.py cuts up what does not fit"
        return form(self.n, self.lanes, self.dtype)

    def single_rows(self, source: tile.Buffer, target: tile.Buffer, first: Any, last: Any) -> None:
        engine = self._engine()
        own = self.kind in ("rfft", "irfft") and isinstance(engine, FourStep)
        between = tile.alloc((2 * self.n,), self.dtype) if own else target

        def row(r: Any, _: Any) -> tuple[()]:
            def read(j: Any, lanes: int) -> Pair:
                return self._read(source, r * self.given, j, tile.iota((lanes,)) + j < self.n)

            def write(k: Any, value: Pair, mask: Any) -> None:
                self._write(target, r * self.wanted, k, value, mask)

            engine.run(read, between, 0 if own else r * self.wanted, write)
            return ()

        tile.for_loop((first, last, 1), (), row)

    def _read(self, source: tile.Buffer, base: Any, j: Any, mask: tile.TileValue) -> Pair:
        lanes = mask.shape[0]
        if self.kind == "rfft":
            re = tile.load(source, (base + j,), (lanes,), mask=mask)
            return re, tile.full((lanes,), 0, self.dtype)
        if self.kind == "irfft":
            return self._read_half(source, base, tile.iota((lanes,)) + j, mask)
        re, im = load_pairs(source, base + j, lanes, mask)
        return (im, re) if self.inverse else (re, im)

    def _read_half(self, source: tile.Buffer, base: Any, at: tile.TileValue, mask: tile.TileValue) -> Pair:
        """Of a transform of reals the second half mirrors the first; exchanged for the way back."""
        upper = at >= self.given
        where = (tile.where(upper, self.n - at, at) + base) * 2
        re, im = tile.gather(source, where, mask=mask), tile.gather(source, where + 1, mask=mask)
        im = tile.where(upper, -im, im)
        ends = at == 0
        if self.n % 2 == 0:
            ends = tile.logical_or(ends, at == self.n // 2)
        return tile.where(ends, 0, im), re

    def _write(self, target: tile.Buffer, base: Any, k: Any, value: Pair, mask: Any) -> None:
        lanes = value[0].shape[0]
        if self.inverse:
            scale = tile.full((lanes,), 1.0 / self.n, self.dtype)
            value = (value[1] * scale, value[0] * scale)
        if self.wanted < self.n:
            inside = tile.iota((lanes,)) + k < self.wanted
            mask = inside if mask is None else tile.logical_and(mask, inside)
        if self.kind == "irfft":
            tile.store(target, (base + k,), value[0], mask=mask)
        else:
            store_pairs(target, base + k, value, mask)

    def many_rows(self, source: tile.Buffer, target: tile.Buffer, first: Any, last: Any) -> None:
        """Lanes are rows: gathered element by element, since rows are short and stay in the first cache."""
        core = Core(self.n, self.lanes, self.dtype)
        lanes = self.lanes

        def batch(r: Any, _: Any) -> tuple[()]:
            row = tile.iota((lanes,)) + r
            inside = row < last

            def fetch(j: Any, _: Any) -> tuple[()]:
                core.put(j, self._read_lanes(source, row * self.given, j, inside))
                return ()

            def leave(k: Any, _: Any) -> tuple[()]:
                self._write_lanes(target, row * self.wanted + k, core.get(k), inside)
                return ()

            tile.for_loop((0, self.n, 1), (), fetch)
            core.run()
            tile.for_loop((0, self.wanted, 1), (), leave)
            return ()

        tile.for_loop((first, last, lanes), (), batch)

    def _read_lanes(self, source: tile.Buffer, base: tile.TileValue, j: Any, mask: tile.TileValue) -> Pair:
        if self.kind == "rfft":
            return tile.gather(source, base + j, mask=mask), tile.full((self.lanes,), 0, self.dtype)
        at = tile.full((self.lanes,), j, int64)
        if self.kind == "irfft":
            return self._read_half(source, base, at, mask)
        where = (base + at) * 2
        re, im = tile.gather(source, where, mask=mask), tile.gather(source, where + 1, mask=mask)
        return (im, re) if self.inverse else (re, im)

    def _write_lanes(self, target: tile.Buffer, at: tile.TileValue, value: Pair, mask: tile.TileValue) -> None:
        if self.inverse:
            scale = tile.full((self.lanes,), 1.0 / self.n, self.dtype)
            value = (value[1] * scale, value[0] * scale)
        if self.kind == "irfft":
            tile.scatter(target, at, value[0], mask=mask)
            return
        for i in range(2):
            tile.scatter(target, at * 2 + i, value[i], mask=mask)
