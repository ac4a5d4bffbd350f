"""Groups of lanes (``tile.warp``, ``tile.block``, ``tile.cooperative_group``), scans, sorting, atomics, random numbers, access forms.

The lanes of a tile are its elements in row-major order; a warp is 32 of them, a block is all of them.  What a group computes stands in
every one of its lanes, so a result has its operand's shape.  All of this is written in ordinary tile operations: every target and the
interpreter give the same values, and a SIMT target makes shuffles of it where its layout puts a group into a warp.
"""

from __future__ import annotations

import builtins
import math
from collections.abc import Callable
from typing import Any

from ..types import dtypes as dt
from . import dsl
from .edges import masked, valid_lanes
from .kernel_ops import _flat, _identity, _window, data_lanes, load
from .kernel_values import Param, Shared, Window, program
from .values import Buffer, Edge, Meta, TileValue, as_value, fail, internal

internal(__file__)

WARP = 32
_OPS = {"sum": "add", "add": "add", "max": "max", "min": "min", "prod": "mul", "mul": "mul", "and": "and", "or": "or", "xor": "xor"}


# -- groups ------------------------------------------------------------------------------------------------------------------
def _lanes(x: Any, size: int, what: str) -> tuple[TileValue, TileValue]:
    """(the tile, its lanes as [groups, size])."""
    v = as_value(x)
    total = math.prod(v.shape)
    if not v.rank or total % size:
        fail(f"{what} takes tiles of a multiple of {size} elements, not {v.type}",
             hints=[f"use a tile of {-(-max(total, 1) // size) * size}"])
    return v, dsl.reshape(_bare(v), (total // size, size))


def _bare(v: TileValue) -> TileValue:
    """The tile without what is known of its edges."""
    return TileValue(v.value, v.const, v.dim, None)


def _like(v: TileValue, like: TileValue) -> TileValue:
    """``v`` in the shape of ``like``; data where that has data."""
    out = dsl.reshape(v, like.shape)
    if like.meta is not None:
        out.meta = Meta({a: Edge(e.total, e.start, given=e.given) for a, e in like.meta.edges.items()}, like.meta.rows, like.meta.walks)
    return out


def _spread(of_group: TileValue, like: TileValue, size: int) -> TileValue:
    """[groups, 1] in every lane of its group, in the shape of ``like``."""
    return _like(dsl.broadcast_to(of_group, (of_group.shape[0], size)), like)


class Group:
    """Neighbouring lanes that compute together; ``tile.cooperative_group(size=64)``.

    Attributes:
        size: lanes of a group.
    """

    def __init__(self, size: int, name: str = ""):
        if not isinstance(size, int) or isinstance(size, bool) or size < 1 or size & (size - 1):
            fail(f"the size of a cooperative group is a power of two, not {size!r}")
        self.size, self._name = size, name or f"tile.cooperative_group(size={size})"

    def reduce(self, x: Any, op: str = "sum") -> TileValue:
        """``op`` ("sum", "max", "min", "prod", "and", "or", "xor") over each group by the fixed tree; lanes outside the data take no part.

        Raises:
            KernelError: the tile is no multiple of the group, or there is no such op.
        """
        if op not in _OPS:
            from ..errors import suggest
            fail(f"no reduction is called {op!r}{suggest(op, _OPS)}", expected=", ".join(_OPS))
        v = as_value(x)
        v = masked(v, _identity(_OPS[op], v))
        v, lanes = _lanes(v, self.size, f"{self._name}.reduce")
        return _spread(dsl.reduce(lanes, 1, _OPS[op], True), v, self.size)

    def shuffle(self, x: Any, lane_id: int) -> TileValue:
        """What lane ``lane_id`` of each group holds."""
        v, lanes = _lanes(x, self.size, f"{self._name}.shuffle")
        at = self._lane(lane_id)
        return _spread(dsl.slice(lanes, (0, at), (lanes.shape[0], at + 1)), v, self.size)

    broadcast = shuffle

    def butterfly(self, x: Any, mask: int) -> TileValue:
        """Lane i receives what lane ``i ^ mask`` of its group holds."""
        v, lanes = _lanes(x, self.size, f"{self._name}.butterfly")
        self._lane(mask)
        bit = 1
        while bit < self.size:
            if mask & bit:
                pairs = dsl.reshape(lanes, (math.prod(v.shape) // (2 * bit), 2, bit))
                low, high = (dsl.slice(pairs, (0, k, 0), (pairs.shape[0], k + 1, bit)) for k in (0, 1))
                lanes = dsl.concat([high, low], 1)
            bit *= 2
        return _like(lanes, v)

    def all(self, p: Any) -> TileValue:
        """True in every lane of a group in which ``p`` holds everywhere."""
        return self.reduce(_truth(p), "and")

    def any(self, p: Any) -> TileValue:
        """True in every lane of a group in which ``p`` holds somewhere."""
        return self.reduce(_truth(p), "or")

    def sync(self) -> None:
        """Wait for the group; what was written before is seen after."""
        from .kernel_ops import barrier
        barrier()

    def _lane(self, lane: int) -> int:
        if not isinstance(lane, int) or isinstance(lane, bool) or not 0 <= lane < self.size:
            fail(f"{self._name} has the lanes 0 … {self.size - 1}, not {lane!r}")
        return lane


def _truth(p: Any) -> TileValue:
    v = as_value(p)
    return v if v.dtype is dt.bool_ else v != 0


def _reductions(group: type) -> None:
    for name in ("sum", "max", "min", "prod"):
        def method(self: Any, x: Any, _op: str = name) -> TileValue:
            return self.reduce(x, _op)  # type: ignore[no-any-return]

        method.__name__, method.__doc__ = f"reduce_{name}", f"The {name} of each group, in every one of its lanes."
        method.__qualname__ = f"{group.__name__}.{method.__name__}"
        setattr(group, method.__name__, method)


_reductions(Group)


class Warp(Group):
    """``tile.warp``: groups of 32 lanes."""

    def __init__(self) -> None:
        super().__init__(WARP, "tile.warp")

    def match(self, x: Any) -> TileValue:
        """A uint32 mask of the lanes of the warp that hold the same value (bit i: lane i); NaN matches nothing."""
        v, lanes = _lanes(x, WARP, "tile.warp.match")
        groups = lanes.shape[0]
        one = dsl.broadcast_to(dsl.reshape(lanes, (groups, WARP, 1)), (groups, WARP, WARP))
        other = dsl.broadcast_to(dsl.reshape(lanes, (groups, 1, WARP)), (groups, WARP, WARP))
        bits = dsl.iota((groups, WARP, WARP), 2).to(dt.uint32)
        bit = dsl.full((groups, WARP, WARP), 1, dt.uint32) << bits
        return _like(dsl.reduce(dsl.where(one == other, bit, dsl.zeros(bit.shape, dt.uint32)), 2, "or"), v)


class Block:
    """``tile.block``: all lanes of a tile."""

    @staticmethod
    def sync() -> None:
        """Wait for the whole block; what was written before is seen after."""
        from .kernel_ops import barrier
        barrier()

    @staticmethod
    def reduce(x: Any, op: str = "sum") -> TileValue:
        """``op`` over the whole tile by a fixed tree, as a scalar; lanes outside the data take no part."""
        from .kernel_ops import reduce
        if op not in _OPS:
            from ..errors import suggest
            fail(f"no reduction is called {op!r}{suggest(op, _OPS)}", expected=", ".join(_OPS))
        v = as_value(x)
        while v.rank:
            v = reduce(v, v.rank - 1, _OPS[op])
        return v

    @staticmethod
    def broadcast(x: Any, src_thread: int = 0) -> TileValue:
        """What lane ``src_thread`` holds, in every lane."""
        v = as_value(x)
        if not isinstance(src_thread, int) or not 0 <= src_thread < math.prod(v.shape):
            fail(f"{v.type} has the lanes 0 … {math.prod(v.shape) - 1}, not {src_thread!r}")
        return _like(dsl.broadcast_to(dsl.extract(dsl.reshape(_bare(v), (math.prod(v.shape),)), src_thread), v.shape), v)


class _BlockReductions(Block):
    def reduce_sum(self, x: Any) -> TileValue:
        """The sum of the tile, as a scalar."""
        return self.reduce(x, "sum")

    def reduce_max(self, x: Any) -> TileValue:
        """The greatest element, as a scalar."""
        return self.reduce(x, "max")

    def reduce_min(self, x: Any) -> TileValue:
        """The least element, as a scalar."""
        return self.reduce(x, "min")


warp = Warp()
block = _BlockReductions()


def cooperative_group(size: int) -> Group:
    """Groups of ``size`` neighbouring lanes (a power of two).

    Raises:
        KernelError: another size.
    """
    return Group(size)


# -- scans, extrema, sorting -----------------------------------------------------------------------------------------------
def _part(x: TileValue, axis: int, start: int, stop: int) -> TileValue:
    starts, limits = [0] * x.rank, list(x.shape)
    starts[axis], limits[axis] = start, stop
    return dsl.slice(x, starts, limits)


def _scan(combine: str, x: Any, axis: int, reverse: bool) -> TileValue:
    v = as_value(x)
    k = dsl.normal_axis(axis, v.rank)
    given = v
    v = _bare(masked(v, _identity(combine, v), (k,)))
    fold: Callable[..., TileValue] = {"add": dsl.add, "mul": dsl.mul, "max": dsl.maximum, "min": dsl.minimum}[combine]
    n, step = v.shape[k], 1
    while step < n:
        shape = list(v.shape)
        shape[k] = step
        fill = dsl.full(shape, _identity(combine, v), v.dtype)
        moved = [_part(v, k, step, n), fill] if reverse else [fill, _part(v, k, 0, n - step)]
        v = fold(dsl.concat(moved, k), v)
        step *= 2
    return _like(v, given)


def _scans(name: str, combine: str) -> Callable[..., TileValue]:
    def op(x: Any, axis: int = -1, reverse: bool = False) -> TileValue:
        return _scan(combine, x, axis, reverse)

    op.__name__ = op.__qualname__ = name
    op.__doc__ = f"The running ``{combine}`` along an axis of the tile, in log2 steps of a fixed order; lanes outside the data add nothing."
    return op


cumsum, cumprod, cummax, cummin = (_scans(n, c) for n, c in (("cumsum", "add"), ("cumprod", "mul"), ("cummax", "max"), ("cummin", "min")))


def _first_extremum(name: str, combine: str) -> Callable[..., TileValue]:
    def op(x: Any, axis: int = -1) -> TileValue:
        v = as_value(x)
        k = dsl.normal_axis(axis, v.rank)
        v = _bare(masked(v, _identity(combine, v), (k,)))
        best = dsl.reduce(v, k, combine, True)
        here = dsl.iota(v.shape, k)
        return dsl.reduce(dsl.where(v == dsl.broadcast_to(best, v.shape), here, dsl.full(v.shape, v.shape[k], dt.int64)), k, "min")

    op.__name__ = op.__qualname__ = name
    op.__doc__ = f"The position (int64) of the first {combine}imum along an axis of the tile."
    return op


argmax, argmin = _first_extremum("argmax", "max"), _first_extremum("argmin", "min")


def sort(x: Any, descending: bool = False) -> TileValue:
    """The last axis sorted, by a bitonic network (K. Batcher, AFIPS 1968); its extent is a power of two.

    Lanes outside the data go to the end.  NaNs have no place in the order: a tile with one is sorted anyhow.

    Raises:
        KernelError: the extent is no power of two.
    """
    v = as_value(x)
    n = v.shape[-1] if v.rank else 0
    if n < 1 or n & (n - 1):
        fail(f"tile.sort takes tiles whose last axis is a power of two, not {v.type}")
    given = v
    v = _bare(masked(v, _identity("max" if descending else "min", v)))
    rows = math.prod(v.shape) // n
    span = 2
    while span <= n:
        step = span // 2
        while step:
            v = _exchange(v, rows, n, span, step, descending)
            step //= 2
        span *= 2
    return _like(v, given)


def _exchange(v: TileValue, rows: int, n: int, span: int, step: int, descending: bool) -> TileValue:
    """Compare lanes ``step`` apart; blocks of ``span`` lanes run up and down in turn."""
    pairs = dsl.reshape(v, (rows * n // (2 * step), 2, step))
    a, b = (_part(pairs, 1, k, k + 1) for k in (0, 1))
    low, high = dsl.minimum(a, b), dsl.maximum(a, b)
    if descending:
        low, high = high, low
    if span < n:
        block_of_pair = dsl.iota(low.shape, 0) * (2 * step) % n // span
        up = block_of_pair % 2 == 0
        low, high = dsl.where(up, low, high), dsl.where(up, high, low)
    return dsl.reshape(dsl.concat([low, high], 1), (rows, n))


# -- atomics ---------------------------------------------------------------------------------------------------------------
def _atomic(name: str, combine: str) -> Callable[..., None]:
    def op(x: Any, index: Any, value: Any = None) -> None:
        if value is None:
            _combine(_whole(x) if isinstance(x, Shared) else _window(x, f"atomic_{name}"), index, combine)
            return
        buffer, flat, inside = _flat(x, index, f"atomic_{name}")
        v = as_value(value, buffer.dtype if not isinstance(value, TileValue) and isinstance(value, int) else None)
        inside = data_lanes(inside, as_value(index), v)
        v = dsl.broadcast_to(v.to(buffer.dtype), inside.shape)
        dsl.atomic(buffer, flat, dsl.where(inside, v, _identity(combine, v)), combine)

    op.__name__ = op.__qualname__ = f"atomic_{name}"
    op.__doc__ = f"""``atomic_{name}(x, index, value)``: ``x[index] = {combine}(x[index], value)``, lane by lane, whatever other programs
    do; positions outside are skipped.  ``atomic_{name}(C[i:i + 16, j:j + 16], tile)`` combines a tile into a window.

    Args:
        x: a parameter with one axis inside the kernel, shared memory, or a window.

    Only integers of 32 and 64 bits: for them no order of the programs changes the result.

    Raises:
        KernelError: another dtype.
    """
    return op


def _whole(x: Shared) -> tuple[Buffer, TileValue]:
    """Shared memory and the offsets of its elements."""
    return x.buffer, dsl.reshape(dsl.iota((math.prod(x.shape),)), x.shape)


def _combine(place: Window | tuple[Buffer, TileValue], value: Any, combine: str) -> None:
    """Combine a tile into a window or into shared memory."""
    v = as_value(value, dt.int64 if isinstance(value, int) else None)
    if isinstance(place, Window):
        buffer = place.param.buffer
        flat, v, inside = place.elements(v)
    else:
        buffer, flat = place
        v = dsl.broadcast_to(v, flat.shape)
        inside = valid_lanes(v)
    v = v.to(buffer.dtype)
    dsl.atomic(buffer, flat, v if inside is None else dsl.where(inside, v, _identity(combine, v)), combine)


atomic_add, atomic_max, atomic_min, atomic_and, atomic_or, atomic_xor = (
    _atomic(n, n) for n in ("add", "max", "min", "and", "or", "xor"))


# -- random numbers ----------------------------------------------------------------------------------------------------------
def random_bits(seed: Any, offset: Any) -> TileValue:
    """uint32 words by Philox4x32-10 (J. Salmon et al., SC 2011): a pure function of ``seed`` and ``offset``, lane by lane.

    Args:
        seed: an integer, or an integer scalar of the kernel.
        offset: an integer tile; equal offsets give equal words.
    """
    at = as_value(offset).to(dt.uint64)

    def low(x: TileValue) -> TileValue:
        return x.to(dt.uint32)

    def high(x: TileValue) -> TileValue:
        return (x >> dsl.full(at.shape, 32, dt.uint64)).to(dt.uint32)

    def word(n: int) -> TileValue:
        return dsl.full(at.shape, n, dt.uint32)

    key = dsl.broadcast_to(as_value(seed, dt.uint64 if isinstance(seed, int) else None).to(dt.uint64), at.shape)
    c0, c1, c2, c3, k0, k1 = low(at), high(at), word(0), word(0), low(key), high(key)
    for n in builtins.range(10):
        if n:
            k0, k1 = k0 + word(0x9E3779B9), k1 + word(0xBB67AE85)
        p0 = c0.to(dt.uint64) * dsl.full(at.shape, 0xD2511F53, dt.uint64)
        p1 = c2.to(dt.uint64) * dsl.full(at.shape, 0xCD9E8D57, dt.uint64)
        c0, c1, c2, c3 = high(p1) ^ c1 ^ k0, low(p1), high(p0) ^ c3 ^ k1, low(p0)
    return c0


def rand(seed: Any, offset: Any) -> TileValue:
    """Uniform f32 in [0, 1) with 24 random bits; see :func:`random_bits`."""
    bits = random_bits(seed, offset)
    return (bits >> dsl.full(bits.shape, 8, dt.uint32)).to(dt.f32) * 2.0**-24


# -- forms of access ---------------------------------------------------------------------------------------------------------
def load_coalesced(x: Any, threads: int = WARP) -> Any:
    """A load whose neighbouring lanes read neighbouring elements, ``threads`` of them at a time.

    Raises:
        KernelError: the window does not run along its tensor's last axis, or is no multiple of ``threads``.
    """
    window = _window(x, "load_coalesced")
    made = load(window)
    v = as_value(made)
    last = window.parts[-1]
    if last.single or v.shape[-1] % threads:
        n = v.shape[-1] if not last.single else 1
        fail(f"load_coalesced: {window!r} has rows of {n} elements, which {threads} threads do not share",
             hints=["let the last axis of the window be a multiple of the threads"])
    return made


def load_strided(x: Any, stride: int) -> TileValue:
    """Every ``stride``-th element of the program's window along one axis: what lane i reads lies i * stride elements along.

    Raises:
        KernelError: the window is no multiple of the stride.
    """
    window = _window(x, "load_strided")
    open_ = [p for p in window.placed() if not p[0].single]
    if len(open_) != 1:
        fail(f"load_strided takes a window along one axis, not {window!r}")
    (_, start, n), = open_
    if not isinstance(stride, int) or isinstance(stride, bool) or stride < 1 or n % stride:
        fail(f"load_strided: a window of {n} elements has no stride {stride}")
    return load_gather(window.param, dsl.iota((n // stride,)) * stride + start)


def load_gather(x: Param, index: Any, fill: Any = 0, check: bool = False) -> TileValue:
    """``x[index]`` for an integer tile, from anywhere; positions outside give ``fill``.

    Args:
        check: a position outside is an error of the run, which names it; for finding mistakes.
    """
    buffer, flat, inside = _flat(x, index, "load_gather")
    if check:
        i = as_value(index).to("int64")
        data = valid_lanes(i)
        prog = program()
        sites = tuple(prog.fn.attrs.get("sites", ()))
        prog.fn.attrs["sites"] = (*sites, f"load_gather: index {{value}} is out of range of {x.name!r}")
        dsl.check(inside if data is None else inside | ~data, i, len(sites))
    return dsl.gather(buffer, flat, mask=inside, fill=fill)


def load_broadcast(x: Any, shape: Any = None) -> TileValue:
    """One element, read once for all lanes: a scalar, or (with ``shape``) a tile of it.

    Raises:
        KernelError: the window holds more than one element.
    """
    v = as_value(x if isinstance(x, TileValue) else load(_window(x, "load_broadcast")) if isinstance(x, Param | Window) else x)
    if math.prod(v.shape) != 1:
        fail(f"load_broadcast takes one element, not {v.type}", hints=["select it: X[i]"])
    one = dsl.reshape(v, ()) if v.rank else v
    return one if shape is None else dsl.broadcast_to(one, tuple(shape))


def mma_mixed(a: Any, b: Any, accumulate: Any = dt.f32, saturate: bool = False, rounding: str = "rte") -> TileValue:
    """``a @ b`` of two formats (fp8 e4m3 by e5m2, …), summed in ``accumulate``.

    Args:
        saturate: results beyond the finite range of ``accumulate`` become its ends.
        rounding: "rte": to nearest, ties to even; the only one that sums have.

    Raises:
        KernelError: another rounding, or operands that do not convert exactly to ``accumulate``.
    """
    from .kernel_ops import dot
    kind = dt.as_dtype(accumulate)
    if rounding not in ("rte", "nearest"):
        fail(f"mma_mixed sums round to nearest even, not {rounding!r}", expected='"rte"')
    out: TileValue = dot(a, b) if kind is dt.f32 else dot(as_value(load(a)).to(kind), as_value(load(b)).to(kind))
    if not saturate or not kind.is_float:
        return out
    limited: TileValue = dsl.minimum(dsl.maximum(out, float(kind.finfo.min)), float(kind.finfo.max))
    return limited


NAMES = ("argmax", "argmin", "atomic_add", "atomic_and", "atomic_max", "atomic_min", "atomic_or", "atomic_xor", "block",
         "cooperative_group", "cummax", "cummin", "cumprod", "cumsum", "load_broadcast", "load_coalesced", "load_gather", "load_strided",
         "mma_mixed", "rand", "random_bits", "sort", "warp")

__all__ = list(NAMES)
