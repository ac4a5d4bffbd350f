"""The explicit level of the tile language: roles, shared memory with a chosen swizzle, barriers, asynchronous copies and products.

    full, empty = tile.mbarriers(4), tile.mbarriers(4, arrivals=2)
    with tile.role(registers=40, threads=1):            # one thread keeps the copy engine busy
        for k in tile.range(0, steps, parallel=False):
            empty.wait(k & 3, (k >> 2 & 1) ^ 1)
            full.expect(k & 3, a[k & 3].nbytes)
            tile.tma_load(a[k & 3], A, (m, k * 64), full[k & 3])
    with tile.role(groups=2, registers=232):            # two warp groups multiply
        ...

Meanings, barriers' phases and races are those of ``ir/tile_explicit.py``; the interpreter runs all of it and reports a race with
the kernel's line.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..ir.core import INDEX, Block, BufferType, Op, TileType
from ..ir.tile import root
from ..ir.tile_explicit import GROUP, SWIZZLES, matrix_problem
from ..types.dtypes import DType, as_dtype, bool_, f32, int64
from . import dsl
from .kernel_values import Param, _distance
from .values import Buffer, TileValue, as_value, binary, current, fail, index_value, internal, location, static_shape

internal(__file__)
internal(contextlib.__file__)  # what stands between `with tile.role()` and the role

SHARED_LIMIT = 232448
"""Bytes of shared memory that a block of the largest target has."""


def _emit(name: str, operands: Sequence[Any], results: Sequence[Any] = (), attrs: dict[str, Any] | None = None) -> Op:
    prog = current()
    return prog.builder.op(name, [o.value for o in operands], results, attrs, (), prog.builder.loc or location())


# -- shared memory -----------------------------------------------------------------------------------------------------
class SharedTile:
    """A matrix in shared memory, or a row of them: ``x[stage]``, ``x[stage, r:r + 64]``, ``x.T``.

    ``places`` holds an offset for each axis of the buffer; ``shape`` the extents of the axes still open.
    """

    __slots__ = ("buffer", "places", "shape", "single", "transposed")

    def __init__(self, buffer: Buffer, places: Sequence[Any], shape: tuple[int, ...], single: tuple[bool, ...],
                 transposed: bool = False):
        self.buffer, self.places, self.shape, self.single, self.transposed = buffer, tuple(places), shape, single, transposed

    @property
    def dtype(self) -> DType:
        return self.buffer.dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        n = self.dtype.itemsize
        for d in self.shape:
            n *= d
        return n

    @property
    def T(self) -> SharedTile:
        """The matrix transposed: for products; nothing moves."""
        if len(self.shape) != 2:
            fail(f"T transposes matrices; this is {self!r}", hints=["choose a stage first: x[stage].T"])
        return SharedTile(self.buffer, self.places, self.shape[::-1], self.single, not self.transposed)

    def __getitem__(self, index: Any) -> SharedTile:
        if self.transposed:
            fail("index a matrix before it is transposed", hints=["x[stage, a:b].T"])
        items = list(index) if isinstance(index, tuple) else [index]
        open_ = [k for k, s in enumerate(self.single) if not s]
        if len(items) > len(open_):
            fail(f"too many indices: {self!r} has {len(open_)} axes")
        places, single, shape = list(self.places), list(self.single), list(self.shape)
        for n, (k, item) in enumerate(zip(open_, items, strict=False)):
            if not isinstance(item, slice):
                places[k], single[k], shape[n] = binary("add", places[k], item), True, 0
            elif item.start is not None or item.stop is not None:
                start = 0 if item.start is None else item.start
                stop = shape[n] if item.stop is None else item.stop
                extent = _distance(start, stop)
                if extent is None or extent < 1 or item.step not in (None, 1):
                    fail("a part of shared memory has a static extent", expected="a slice such as x[stage, r:r + 64]")
                places[k], shape[n] = binary("add", places[k], start), extent
        return SharedTile(self.buffer, places, tuple(n for n in shape if n), tuple(single))

    def load(self) -> TileValue:
        """The contents, as a tile of the running warp group."""
        axes = [k for k, s in enumerate(self.single) if not s]
        t = dsl.load(self.buffer, self.places, self.shape[::-1] if self.transposed else self.shape, axes=axes)
        return t.T if self.transposed else t

    __tile__ = load

    def store(self, value: Any) -> None:
        """Replace the contents by a tile (converted to the element type)."""
        v = as_value(value).to(self.dtype)
        if v.shape != self.shape or self.transposed:
            fail(f"a tile of shape {list(v.shape)} does not fit {self!r}", expected=f"a tile of shape {list(self.shape)}",
                 received=str(v.type))
        dsl.store(self.buffer, self.places, v, axes=[k for k, s in enumerate(self.single) if not s])

    def __repr__(self) -> str:
        return f"<shared memory {self.dtype}{list(self.shape)}{' transposed' if self.transposed else ''}>"


def alloc_tiles(*shape: Any, dtype: object, swizzle: int = 128) -> SharedTile:
    """Shared memory for matrices, ``alloc_tiles(stages, rows, columns, dtype=ts.bf16)``.

    Args:
        swizzle: 128, 64, 32 or 0: columns lie in panels of so many bytes, whose 16-byte chunks are permuted row by row so that
            copies, ``ldmatrix`` and the matrix unit meet no bank conflicts.

    Raises:
        KernelError: the columns are no whole panels, or no block has so much shared memory.
    """
    extents = static_shape(shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape)
    d = as_dtype(dtype)
    if swizzle not in SWIZZLES:
        fail(f"there is no swizzle of {swizzle} bytes", expected=", ".join(map(str, SWIZZLES)))
    if len(extents) < 2 or (swizzle and extents[-1] * d.itemsize % swizzle):
        fail(f"a swizzle of {swizzle} bytes takes matrices whose rows are multiples of it", received=f"{d}{list(extents)}",
             hints=[f"make the columns a multiple of {max(1, swizzle // d.itemsize)}", "swizzle=0"])
    t = BufferType(d, extents, "shared")
    if t.nbytes > SHARED_LIMIT:  # type: ignore[operator]
        fail(f"{d}{list(extents)} takes {t.nbytes} bytes of shared memory; a block of an H100 has {SHARED_LIMIT}",
             hints=["fewer stages or smaller tiles"])
    op = _emit("alloc", (), (t,), {"swizzle": swizzle})
    return SharedTile(Buffer(op.result), (0,) * len(extents), extents, (False,) * len(extents))


def _place(x: SharedTile) -> list[TileValue]:
    return [index_value(p) for p in x.places]


# -- roles and clusters ------------------------------------------------------------------------------------------------
@contextmanager
def role(groups: int = 1, registers: int = 0, threads: int = GROUP) -> Iterator[TileValue]:
    """A part of the program that runs beside the roles that follow it directly; gives the number of the running group.

    Args:
        groups: warp groups (128 threads each) that run the part.
        registers: the budget of each thread (24 to 256, in steps of 8); 0: as launched.
        threads: 1: one thread of the group runs it (loops that only start copies).

    What a role computes stays in it: roles meet through barriers and memory.
    """
    prog = current()
    if prog.nested:
        fail("roles stand at the outermost level of a kernel")
    last = prog.builder.block.ops[-1] if prog.builder.block.ops else None
    if last is None or last.name != "roles":
        last = _emit("roles", (), (), {"groups": (), "registers": (), "threads": ()})
    body = Block()
    with prog.block(body):
        yield TileValue(_emit("group_id", (), (INDEX,)).result)
        prog.builder.op("yield")
    last.blocks.append(body)
    last.attrs |= {"groups": (*last.attrs["groups"], groups), "registers": (*last.attrs["registers"], registers),
                   "threads": (*last.attrs["threads"], threads)}


def cluster(size: int) -> TileValue | int:
    """Blocks run in clusters of ``size`` neighbours; gives the block's number in its cluster."""
    if not isinstance(size, int) or size not in (1, 2, 4, 8):
        fail(f"a cluster has 1, 2, 4 or 8 blocks, not {size!r}")
    if size == 1:
        return 0
    current().fn.attrs["cluster"] = size
    return TileValue(_emit("cluster_rank", (), (INDEX,)).result)


def cluster_sync() -> None:
    """All blocks of the cluster meet."""
    _emit("cluster_sync", ())


# -- barriers ----------------------------------------------------------------------------------------------------------
class Barriers:
    """A row of mbarriers in shared memory; ``b[i]`` names one for a copy."""

    __slots__ = ("buffer",)

    def __init__(self, buffer: Buffer):
        self.buffer = buffer

    def __getitem__(self, i: Any) -> tuple[Barriers, Any]:
        return self, i

    def _check(self, i: Any, what: str) -> None:
        (n,) = self.buffer.value.type.shape
        if isinstance(i, int) and not 0 <= i < n:
            fail(f"{what}: there is no barrier {i}; there are {n}", expected=f"0 … {int(n) - 1}", received=str(i))

    def expect(self, i: Any, nbytes: int) -> None:
        """Arrive, and announce bytes that copies will bring: the phase also waits for them."""
        self._check(i, "expect")
        if isinstance(nbytes, bool) or not isinstance(nbytes, int) or nbytes < 1:
            fail(f"expect announces a number of bytes, not {nbytes!r}", hints=["the size of what is copied: x[stage].nbytes"])
        _emit("mbarrier_expect", (self.buffer, index_value(i)), (), {"bytes": int(nbytes)})

    def arrive(self, i: Any, when: Any = None, cluster: bool = False) -> None:
        """One arrival of the running warp group: here, or at this barrier of every block of the cluster."""
        self._check(i, "arrive")
        operands = [self.buffer, index_value(i)]
        if when is not None:
            operands.append(_condition(when))
        _emit("mbarrier_arrive", operands, (), {"cluster": True} if cluster else None)

    def wait(self, i: Any, phase: Any) -> None:
        """Until the phase of this parity (0, 1, 0 …) is complete; parity 1 is complete on a fresh barrier."""
        self._check(i, "wait")
        if isinstance(phase, int) and phase not in (0, 1):
            fail(f"wait: a phase has parity 0 or 1, not {phase}", expected="0 or 1", received=str(phase),
                 hints=["of the k-th phase: k & 1"])
        _emit("mbarrier_wait", (self.buffer, index_value(i), index_value(phase)))


def _condition(x: Any) -> TileValue:
    v = as_value(x)
    if v.shape or v.dtype is not bool_:
        fail(f"a condition is a bool scalar, not {v.type}", hints=["compare: when=k > 0"])
    return v


def mbarriers(n: int, arrivals: int = 1) -> Barriers:
    """``n`` barriers in shared memory, each of whose phases takes ``arrivals`` arrivals (and the bytes announced)."""
    for what, value in (("n", n), ("arrivals", arrivals)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            fail(f"mbarriers: {what} is a positive number, not {value!r}")
    op = _emit("mbarriers", (), (BufferType(int64, (n,), "barrier"),), {"arrivals": arrivals})
    return Barriers(Buffer(op.result))


def _check_named(i: Any, threads: Any, what: str) -> None:
    if isinstance(i, int) and not 0 <= i < 16:
        fail(f"{what}: there is no named barrier {i}", expected="0 … 15", received=str(i))
    if not isinstance(threads, int) or threads < 32 or threads % 32:
        fail(f"{what}: whole warps come to a barrier, not {threads!r} threads", expected="a multiple of 32", received=repr(threads))


def barrier_sync(i: Any, threads: int) -> None:
    """Named barrier ``i`` (0 to 15): wait until ``threads`` threads have come."""
    _check_named(i, threads, "barrier_sync")
    _emit("barrier_sync", (index_value(i),), (), {"threads": threads})


def barrier_arrive(i: Any, threads: int) -> None:
    """Come to named barrier ``i`` without waiting."""
    _check_named(i, threads, "barrier_arrive")
    _emit("barrier_arrive", (index_value(i),), (), {"threads": threads})


# -- copies ------------------------------------------------------------------------------------------------------------
def _target(x: Any, offsets: Any, what: str) -> tuple[Buffer, list[TileValue]]:
    """A buffer and an offset for each of its axes."""
    given = list(offsets) if isinstance(offsets, tuple | list) else [offsets]
    if isinstance(x, Param):
        outer = dict(x.outer())
        if len(given) != len(x.inner):
            fail(f"{what}: {x.name!r} takes {len(x.inner)} offsets, got {len(given)}")
        inner = iter(given)
        return x.buffer, [index_value(outer[a] if a in outer else next(inner)) for a in range(x.buffer.rank)]
    if not isinstance(x, Buffer):
        fail(f"{what} takes a parameter of the kernel, not {x!r}")
    if len(given) != x.rank:
        fail(f"{what}: {x.type} takes {x.rank} offsets, got {len(given)}")
    return x, [index_value(o) for o in given]


def _matrix(x: Any, what: str) -> SharedTile:
    if not isinstance(x, SharedTile) or len(x.shape) != 2:
        fail(f"{what} takes a matrix in shared memory, not {x!r}", hints=["make it with tile.alloc_tiles and choose a stage"])
    return x


def tma_load(dst: SharedTile, src: Any, offsets: Any, barrier: tuple[Barriers, Any], multicast: int = 0) -> None:
    """Start a copy of ``src`` at ``offsets`` into ``dst``; its bytes count for ``barrier`` (``full[stage]``).

    Args:
        multicast: a mask of blocks of the cluster that all receive it, at the same place and at their own barrier.
    """
    d = _matrix(dst, "tma_load")
    buffer, at = _target(src, offsets, "tma_load")
    current().read.add(root(buffer.value))
    _emit("tma_load", (buffer, *at, d.buffer, *_place(d), barrier[0].buffer, index_value(barrier[1])), (),
          {"box": d.shape, **({"multicast": multicast} if multicast else {})})


def tma_store(dst: Any, offsets: Any, src: SharedTile) -> None:
    """Start a copy of shared memory to ``dst`` at ``offsets``; what lies outside is skipped."""
    s = _matrix(src, "tma_store")
    buffer, at = _target(dst, offsets, "tma_store")
    current().written.add(root(buffer.value))
    _emit("tma_store", (s.buffer, *_place(s), buffer, *at), (), {"box": s.shape})


def tma_commit() -> None:
    """The stores since the last commit form a group."""
    _emit("tma_commit", ())


def tma_wait(pending: int = 0, read: bool = False) -> None:
    """Until at most ``pending`` groups of stores are under way (``read``: still read shared memory)."""
    _emit("tma_wait", (), (), {"pending": pending, "read": read})


def copy_async(dst: SharedTile, src: Any, offsets: Any) -> None:
    """Start a copy by threads (``cp.async``) of ``src`` at ``offsets`` into ``dst``."""
    d = _matrix(dst, "copy_async")
    buffer, at = _target(src, offsets, "copy_async")
    current().read.add(root(buffer.value))
    _emit("copy_async", (buffer, *at, d.buffer, *_place(d)), (), {"box": d.shape})


def copy_commit() -> None:
    """The copies since the last commit form a group."""
    _emit("copy_commit", ())


def copy_wait(pending: int = 0) -> None:
    """Until at most ``pending`` groups of copies are under way."""
    _emit("copy_wait", (), (), {"pending": pending})


def fence_async() -> None:
    """What this group's threads wrote to shared memory is seen by the copy engine and the matrix unit."""
    _emit("fence_async", ())


# -- products ----------------------------------------------------------------------------------------------------------
def uninitialized(shape: Any, dtype: object = f32) -> TileValue:
    """An accumulator without a value: for ``wgmma(…, accumulate=False)`` first."""
    return TileValue(_emit("uninitialized", (), (TileType(as_dtype(dtype), static_shape(shape)),)).result)


def wgmma(acc: TileValue, a: Any, b: SharedTile, accumulate: Any = True) -> TileValue:
    """Start ``a @ b + (acc if accumulate else 0)`` on the warp group's matrix unit; 64 rows.

    Args:
        a: ``[64, k]`` in shared memory (or ``.T`` of ``[k, 64]``), or a tile of the group.
        b: ``[k, N]`` in shared memory, or ``.T`` of ``[N, k]``.

    The result may be used after :func:`wgmma_wait` has returned it.

    Raises:
        KernelError: shapes do not fit, or the matrix unit lacks these types.
    """
    right = _matrix(b, "wgmma")
    k = right.shape[0]
    left = _matrix(a, "wgmma") if isinstance(a, SharedTile) else as_value(a)
    if tuple(left.shape) != (64, k) or acc.shape != (64, right.shape[1]):
        fail(f"wgmma: {list(left.shape)} by {list(right.shape)} does not give {list(acc.shape)}",
             sentence="A warp group multiplies 64 rows.", expected=f"[64, {k}] by [{k}, N] into [64, N]")
    problem = matrix_problem(left.dtype, right.dtype, acc.dtype, acc.shape, k)
    if problem is not None:
        fail(f"wgmma: {problem}")
    operands: list[Any] = [acc, _condition(accumulate if isinstance(accumulate, TileValue) else as_value(bool(accumulate)))]
    attrs: dict[str, Any] = {"k": k, "b_t": right.transposed}
    if isinstance(left, SharedTile):
        operands += [left.buffer, *_place(left)]
        attrs["a_t"] = left.transposed
    else:
        operands.append(left)
    op = _emit("mma_async", [*operands, right.buffer, *_place(right)], (TileType(acc.dtype, acc.shape),), attrs)
    return TileValue(op.result)


def wgmma_commit() -> None:
    """The products since the last commit form a group."""
    _emit("mma_commit", ())


def wgmma_wait(*values: Any, pending: int = 0) -> Any:
    """Until at most ``pending`` groups of products are under way; returns the tiles it is given (if any), to be used from here on."""
    if any(not isinstance(v, TileValue) for v in values):
        fail("wgmma_wait takes accumulators; how many groups may be under way is a keyword",
             hints=["acc = tile.wgmma_wait(acc, pending=1)"])
    tiles = [as_value(v) for v in values]
    op = _emit("mma_wait", tiles, [v.type for v in tiles], {"pending": pending})
    out = [TileValue(r) for r in op.results]
    return out[0] if len(out) == 1 else tuple(out) or None


NAMES = ("alloc_tiles", "barrier_arrive", "barrier_sync", "cluster", "cluster_sync", "copy_async", "copy_commit", "copy_wait",
         "fence_async", "mbarriers", "role", "tma_commit", "tma_load", "tma_store", "tma_wait", "uninitialized", "wgmma",
         "wgmma_commit", "wgmma_wait")

__all__ = [*NAMES, "Barriers", "SharedTile"]
