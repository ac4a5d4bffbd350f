"""Loads and stores of tiles and scalars: addresses, lane masks, gathers.

A buffer is dense row-major memory.  A tile whose last axis runs along the buffer's contiguous axis is read in vectors;
one whose other axis does is read so and transposed in registers; else it is gathered with a stride.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

import numpy as np

from ...errors import CompileError
from ...ir.core import BufferType, Op, ScalarType, TileType, Value
from ...types.dims import known_nonnegative
from ...types.dtypes import DType
from ...types.shapes import contiguous_strides
from .emit_convert import normalize
from .emit_tiles import Geometry, Piece, Tile, geometry
from .emit_writer import Writer, constant_bits, memory_type, representation, splat_literal, suffix, vector, vector_literal


def nonnegative(v: Value, indices: Container[Value], depth: int = 8) -> bool:
    """True when an index is certainly >= 0, judged from how it is computed; ``indices``: loop variables that are."""
    op = v.op
    if op is None:
        return v in indices
    if depth == 0:
        return False
    if op.name == "program_id":
        return True
    if op.name == "size":
        return known_nonnegative(op.attrs["value"])
    if op.name in ("constant", "full"):
        return bool(np.asarray(op.attrs["value"]).item() >= 0) if np.ndim(op.attrs["value"]) == 0 else False
    if op.name in ("add", "mul", "minimum", "floor_div", "mod"):
        return all(nonnegative(x, indices, depth - 1) for x in op.operands)
    if op.name == "maximum":
        return any(nonnegative(x, indices, depth - 1) for x in op.operands)
    return False


def from_memory(w: Writer, value: str, dtype: DType, width: int) -> str:
    """What was loaded, as it is computed with."""
    if dtype.kind == "bool":
        return w.let(f"icmp ne {vector('i8', width)} {value}, {splat_literal('i8', 0, width)}")
    return normalize(w, value, dtype, width)


def to_memory(w: Writer, value: str, dtype: DType, width: int) -> str:
    if dtype.kind == "bool":
        return w.cast("zext", "i1", "i8", width, value)
    if dtype.name == "int4":  # the upper bits of a 4-bit integer's byte are zero
        return w.binary("and", "i8", width, value, splat_literal("i8", 15, width))
    return value


def lane_bound(w: Writer, bound: str, width: int) -> str:
    """A bound of lane numbers in the form in which it is compared: 32 bits, in every lane."""
    if width == 1:
        return bound
    cut = w.intrinsic("smax", "i64", 1, w.intrinsic("smin", "i64", 1, bound, str(2**31 - 1)), "0")
    return w.splat("i32", width, w.cast("trunc", "i64", "i32", 1, cut))


def lane_mask(w: Writer, piece: Piece, low: str | None, high: str | None) -> str | None:
    """Which lanes of a piece are valid: ``low <= lane < high`` (lanes counted along the tile's axis) and inside the tile;
    None: all of them.  ``low``, ``high`` come from :func:`lane_bound` of the piece's width."""
    width = piece.width
    mask = None if piece.valid == width else vector_literal("i1", [i < piece.valid for i in range(width)])
    element = "i64" if width == 1 else "i32"
    lanes = vector_literal(element, range(piece.start, piece.start + width))
    for bound, predicate in ((high, "slt"), (low, "sge")):
        if bound is not None:
            test = w.let(f"icmp {predicate} {vector(element, width)} {lanes}, {bound}")
            mask = test if mask is None else w.binary("and", "i1", width, mask, test)
    return mask


class Access:
    """The addresses and bounds of one load or store of a tile (or scalar: shape ``()``).

    Args:
        shape: the tile's shape.
        axes: the buffer axis along which each tile axis lies.
        check: buffer axes along which lanes may lie outside.
    """

    def __init__(self, w: Writer, buffer: str, btype: BufferType, offsets: Sequence[str], values: Sequence[Value],
                 shape: tuple[int, ...], axes: Sequence[int], check: Sequence[int]):
        self.w, self.shape, self.axes = w, shape, tuple(axes)
        self.element = memory_type(btype.dtype)
        self.dtype = btype.dtype
        strides = contiguous_strides(btype.shape)
        self.strides = [strides[a] for a in self.axes]
        flat = "0"
        for o, s in zip(offsets, strides, strict=True):
            if o != "0" and s != 0:
                term = o if s == 1 else w.binary("mul", "i64", 1, o, w.dim(s))
                flat = term if flat == "0" else w.binary("add", "i64", 1, flat, term)
        self.base = w.gep(self.element, buffer, flat)
        self.geo = geometry(shape, w.lanes)
        self._rows: dict[int, tuple[str, str | None, str | None]] = {}
        self._bounds: dict[tuple[str, int], str] = {}
        # Bounds of each checked tile axis, relative to the tile; of checked axes without a tile axis: one condition.
        self.bounds: list[tuple[str | None, str] | None] = [None] * len(shape)
        self.inside: str | None = None
        for a in check:
            low = None if nonnegative(values[a], w.indices) else w.binary("sub", "i64", 1, "0", offsets[a])
            high = w.binary("sub", "i64", 1, w.dim(btype.shape[a]), offsets[a])
            if a in self.axes:
                self.bounds[self.axes.index(a)] = (low, high)
            else:
                self._require(w.let(f"icmp sgt i64 {high}, 0"))
                if low is not None:
                    self._require(w.let(f"icmp sle i64 {low}, 0"))

    def _require(self, condition: str) -> None:
        self.inside = condition if self.inside is None else self.w.binary("and", "i1", 1, self.inside, condition)

    @property
    def contiguous(self) -> bool:
        return not self.shape or self.strides[-1] == 1 or self.shape[-1] == 1

    @property
    def checked(self) -> bool:
        return self.inside is not None or any(b is not None for b in self.bounds)

    def row(self, r: int) -> tuple[str, str | None, str | None]:
        """(address of its first lane, low bound or None, high bound or None) of row ``r``; an invalid row has high 0."""
        if r not in self._rows:
            self._rows[r] = self._row(r)
        return self._rows[r]

    def _row(self, r: int) -> tuple[str, str | None, str | None]:
        w, pointer, fixed = self.w, self.base, 0
        index = np.unravel_index(r, self.shape[:-1]) if len(self.shape) > 1 else ()
        ok = self.inside
        for i, (x, stride) in enumerate(zip(index, self.strides, strict=False)):
            k = int(x)
            if isinstance(stride, int):
                fixed += k * stride
            elif k:
                step = w.dim(stride * k)
                pointer = w.gep(self.element, pointer, step)
            got = self.bounds[i]
            if got is not None:
                test = w.let(f"icmp slt i64 {k}, {got[1]}")
                if got[0] is not None:
                    test = w.binary("and", "i1", 1, test, w.let(f"icmp sge i64 {k}, {got[0]}"))
                ok = test if ok is None else w.binary("and", "i1", 1, ok, test)
        pointer = w.gep(self.element, pointer, str(fixed))
        last = self.bounds[-1] if self.bounds else None
        low, high = last if last is not None else (None, None)
        if ok is not None:
            high = w.select(ok, "i64", 1, high if high is not None else str(self.geo.last), "0")
            # No lane of a row outside is touched, but a masked access to a page that is not mapped costs a fault that the
            # CPU swallows: hundreds of cycles each.
            pointer = w.let(f"select i1 {ok}, ptr {pointer}, ptr {w.scratch()}")
        return pointer, low, high

    def mask(self, piece: Piece, low: str | None, high: str | None) -> str | None:
        """The lane mask of a piece in a row with these bounds."""
        ready: list[str | None] = []
        for bound in (low, high):
            if bound is not None and (bound, piece.width) not in self._bounds:
                self._bounds[bound, piece.width] = lane_bound(self.w, bound, piece.width)
            ready.append(None if bound is None else self._bounds[bound, piece.width])
        return lane_mask(self.w, piece, ready[0], ready[1])

    def at(self, i: int) -> tuple[str, Piece, str | None]:
        """(address, piece, lane mask or None) of piece ``i`` of a contiguous access."""
        r, p = divmod(i, len(self.geo.pieces))
        pointer, low, high = self.row(r)
        piece = self.geo.pieces[p]
        return self.w.gep(self.element, pointer, str(piece.start)), piece, self.mask(piece, low, high)

    def strided(self, i: int) -> tuple[str, Piece, str]:
        """(vector of addresses, piece, mask) of piece ``i`` of an access with a stride along the lanes."""
        w = self.w
        r, p = divmod(i, len(self.geo.pieces))
        pointer, low, high = self.row(r)
        piece = self.geo.pieces[p]
        width = piece.width
        lanes = vector_literal("i64", range(piece.start, piece.start + width))
        stride = w.splat("i64", width, w.dim(self.strides[-1]))
        offsets = w.binary("mul", "i64", width, lanes, stride)
        pointers = w.let(f"getelementptr {self.element}, ptr {pointer}, {vector('i64', width)} {offsets}")
        mask = self.mask(piece, low, high)
        return pointers, piece, mask or splat_literal("i1", True, width)


# -- pieces ------------------------------------------------------------------------------------------------------------
def load_piece(w: Writer, dtype: DType, pointer: str, width: int, mask: str | None, fill: Any, align: int = 0) -> str:
    element = memory_type(dtype)
    align = align or dtype.itemsize
    t = vector(element, width)
    if mask is None:
        return from_memory(w, w.let(f"load {t}, ptr {pointer}, align {align}"), dtype, width)
    other = splat_literal(element, constant_bits(dtype, fill), width)
    if width == 1:
        safe = w.let(f"select i1 {mask}, ptr {pointer}, ptr {w.scratch()}")
        loaded = w.let(f"load {t}, ptr {safe}, align {align}")
        return from_memory(w, w.select(mask, element, 1, loaded, other), dtype, 1)
    loaded = w.let(f"call {t} @llvm.masked.load.{suffix(element, width)}.p0(ptr align {align} {pointer}, "
                   f"{vector('i1', width)} {mask}, {t} {other})")
    return from_memory(w, loaded, dtype, width)


def store_piece(w: Writer, dtype: DType, pointer: str, width: int, mask: str | None, value: str, align: int = 0) -> None:
    element = memory_type(dtype)
    align = align or dtype.itemsize
    t = vector(element, width)
    stored = to_memory(w, value, dtype, width)
    if mask is None:
        w.line(f"store {t} {stored}, ptr {pointer}, align {align}")
    elif width == 1:
        safe = w.let(f"select i1 {mask}, ptr {pointer}, ptr {w.scratch()}")
        w.line(f"store {t} {stored}, ptr {safe}, align {align}")
    else:
        if dtype.itemsize < 4:
            # LLVM 22 turns a constant mask of a single lane into a store of the *promoted* scalar: four bytes where one or
            # two were meant.  It must not see that the mask is constant.
            bits = vector("i1", width)
            one = w.let(f"insertelement {bits} poison, i1 {w.surely()}, i32 0")
            every = w.let(f"shufflevector {bits} {one}, {bits} poison, {vector('i32', width)} zeroinitializer")
            mask = w.let(f"and {bits} {mask}, {every}")
        w.line(f"call void @llvm.masked.store.{suffix(element, width)}.p0({t} {stored}, ptr align {align} {pointer}, "
               f"{vector('i1', width)} {mask})")


def gather_piece(w: Writer, dtype: DType, pointers: str, width: int, mask: str, fill: Any) -> str:
    if width == 1:
        return load_piece(w, dtype, pointers, 1, None if mask == "true" else mask, fill)
    element = memory_type(dtype)
    t = vector(element, width)
    loaded = w.let(f"call {t} @llvm.masked.gather.{suffix(element, width)}.v{width}p0({vector('ptr', width)} "
                   f"align {dtype.itemsize} {pointers}, {vector('i1', width)} {mask}, "
                   f"{t} {splat_literal(element, constant_bits(dtype, fill), width)})")
    return from_memory(w, loaded, dtype, width)


def scatter_piece(w: Writer, dtype: DType, pointers: str, width: int, mask: str, value: str) -> None:
    if width == 1:
        store_piece(w, dtype, pointers, 1, None if mask == "true" else mask, value)
        return
    element = memory_type(dtype)
    stored = to_memory(w, value, dtype, width)
    w.line(f"call void @llvm.masked.scatter.{suffix(element, width)}.v{width}p0({vector(element, width)} {stored}, "
           f"{vector('ptr', width)} align {dtype.itemsize} {pointers}, {vector('i1', width)} {mask})")


def atomic_piece(w: Writer, dtype: DType, base: str, at: str, width: int, value: str, combine: str) -> None:
    """One ``atomicrmw`` a lane, in order; combining integers in any order gives the same bits, so no ordering is asked for."""
    element = memory_type(dtype)
    unsigned = "u" if combine in ("max", "min") and dtype.kind == "uint" else ""
    for i in range(width):
        offset = at if width == 1 else w.let(f"extractelement {vector('i64', width)} {at}, i32 {i}")
        lane = value if width == 1 else w.let(f"extractelement {vector(element, width)} {value}, i32 {i}")
        w.let(f"atomicrmw {unsigned}{combine} ptr {w.gep(element, base, offset)}, {element} {lane} monotonic, align {dtype.itemsize}")


# -- access patterns ---------------------------------------------------------------------------------------------------
def tile_axes(op: Op, rank: int, buffer_rank: int) -> tuple[int, ...]:
    axes = op.attrs.get("axes")
    return tuple(axes) if axes is not None else tuple(range(buffer_rank - rank, buffer_rank))


def swapped_axis(axes: Sequence[int], shape: Sequence[int], btype: BufferType) -> int | None:
    """The tile axis that runs along contiguous memory, where that is not the last one and worth a transposition."""
    if not axes or shape[-1] == 1:
        return None
    strides = contiguous_strides(btype.shape)
    if strides[axes[-1]] == 1:
        return None
    found = [i for i, a in enumerate(axes) if strides[a] == 1 and shape[i] > 1]
    return found[0] if found else None


def piece_masks(w: Writer, mask: Tile | None, i: int, piece: Piece, bounds: str | None) -> str | None:
    """The lane mask of a piece: bounds and the program's own mask."""
    if mask is None:
        return bounds
    own = mask.piece(i)
    return own if bounds is None else w.binary("and", "i1", piece.width, own, bounds)


def operand_shape(t: Any) -> tuple[int, ...]:
    return t.shape if isinstance(t, TileType) else ()


def element_type(t: Any) -> DType:
    assert isinstance(t, TileType | ScalarType)
    return t.dtype


def check_buffer(v: Value, op: Op) -> BufferType:
    if not isinstance(v.type, BufferType):
        raise CompileError(f"{op.name}: the first operand is {v.type}, not a buffer", loc=op.loc)
    return v.type


__all__ = ["Access", "Geometry", "atomic_piece", "check_buffer", "element_type", "from_memory", "gather_piece", "load_piece", "nonnegative",
           "operand_shape", "piece_masks", "representation", "scatter_piece", "store_piece", "swapped_axis", "tile_axes"]
