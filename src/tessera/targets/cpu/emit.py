"""Tile IR to LLVM IR for vector CPUs.

One tile function becomes one LLVM function that runs a range of its grid's blocks (``abi``).  Scalars are LLVM scalars;
tiles are vectors, see ``emit_tiles``.  Control flow is structured in Tile IR, so the basic blocks and phis are written
directly, loops in the form in which LLVM wants them (guarded, test at the bottom).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ...errors import CompileError
from ...ir.core import Block, BufferType, Function, Op, ScalarType, Value
from ...ir.tile import WRITES, root
from ...machine.cpu import CpuMachine
from ...types.dims import DimLike
from ...types.dtypes import DType
from . import abi, emit_amx, emit_memory, emit_move, emit_pairs
from .emit_amx import Held
from .emit_dot import dot
from .emit_memory import Access, check_buffer, element_type, gather_piece, load_piece, nonnegative, scatter_piece, store_piece
from .emit_move import broadcast, concat, exchange, move, reshape, slice_tile, transpose
from .emit_pairs import dot_groups
from .emit_pointwise import BASIC, pointwise
from .emit_reduce import COMBINE, reduce_tile
from .emit_tiles import Tile, geometry, made_tile
from .emit_writer import Writer, constant_bits, memory_type, representation, splat_literal, vector, vector_literal

MAX_TILE_PIECES = 4096
MAX_STACK_BYTES = 2 << 20
_ATTRIBUTES = 'nounwind "no-builtins" "frame-pointer"="none" "tune-cpu"="{tune}" "prefer-vector-width"="{bits}"'


def emit(fn: Function, machine: CpuMachine) -> str:
    """LLVM IR text of one kernel: ``void @NAME(ptr buffer…, i64 size…, ptr ctx, i64 begin, i64 end)``.

    Raises:
        CompileError: the function is not a tile program that this target can run (an unexpanded transcendental, a
            dtype without code, a tile too large to unroll); LLVM never sees it.
    """
    if fn.level != "tile":
        raise CompileError(f"the CPU code generator takes tile functions; {fn.name} is a {fn.level} function")
    if "fma" not in machine.features and not machine.triple.startswith("aarch64"):
        raise CompileError(f"{machine.name} has no fused multiply-add, which every numeric definition here relies on",
                           hints=("Tessera needs AVX2 (x86-64-v3) or NEON",))
    return _Kernel(fn, machine).text()


class _Kernel:
    """One function under construction: what each value of Tile IR is in LLVM IR."""

    def __init__(self, fn: Function, machine: CpuMachine):
        self.fn, self.machine = fn, machine
        self.w = Writer(machine)
        self.values: dict[Value, Any] = {}
        self.pending: list[Tile] = []
        self.loads: list[tuple[Value, tuple[Any, ...], Tile]] = []
        self.in_memory: list[tuple[Value, Tile]] = []  # tiles whose elements may be read from a buffer again
        self.stack_bytes = 0
        self.pids: list[str] = []
        self.metadata: list[str] = []
        self.parameters: list[str] = []
        self.matrices = emit_amx.find(fn, machine)

    # -- the frame ---------------------------------------------------------------------------------------------------
    def text(self) -> str:
        w, fn = self.w, self.fn
        self._parameters()
        w.body.append("start:")
        head = len(w.body)
        grid: tuple[DimLike, ...] = tuple(fn.attrs.get("grid", ()))
        for d in grid:
            w.dim(d)
        w.body.append("  %any = icmp slt i64 %begin, %end")
        w.body.append("  br i1 %any, label %block, label %done")
        w.start("block")
        phi = len(w.body)
        w.body.append("")
        self.pids = self._program_ids(grid)
        self._block(fn.body)
        self.loads.clear()
        self.pending.clear()
        w.body.append("  %next = add nsw i64 %n, 1")
        w.body.append("  %more = icmp slt i64 %next, %end")
        w.body.append(f"  br i1 %more, label %block, label %done{self._loop_metadata(None)}")
        w.body[phi] = f"  %n = phi i64 [ %begin, %start ], [ %next, %{w.label} ]"
        w.body += ["done:", "  ret void", "}"]
        w.body[head:head] = w.entry
        attributes = _ATTRIBUTES.format(tune=self.machine.tune, bits=self.machine.vector_bits)
        define = f"define void @{_name(fn.name)}({', '.join(self.parameters)}) {attributes} {{"
        return "\n".join([define, *w.body, *self.metadata, ""])

    def _parameters(self) -> None:
        exclusive = " noalias" if self.fn.attrs.get("noalias") is True else ""
        writes = set(self.fn.attrs.get("writes", ()))
        buffers = [a for a in self.fn.args if isinstance(a.type, BufferType)]
        names = tuple(self.fn.attrs.get("sizes", ()))
        rest = [a for a in self.fn.args if not isinstance(a.type, BufferType)]
        if len(rest) not in (0, len(names)):
            raise CompileError(f"{self.fn.name}: {len(rest)} size parameters for the sizes {names}")
        for i, a in enumerate(buffers):
            readonly = " readonly" if writes and i not in writes else ""
            self.parameters.append(f"ptr{exclusive}{readonly} %b{i}")
            self.values[a] = f"%b{i}"
        for i, n in enumerate(names):
            self.parameters.append(f"i64 %size{i}")
            self.w.sizes[n] = f"%size{i}"
        for a, n in zip(rest, names, strict=False):
            self.values[a] = self.w.sizes[n]
        self.parameters += ["ptr noalias %ctx", "i64 %begin", "i64 %end"]

    def _program_ids(self, grid: Sequence[DimLike]) -> list[str]:
        """The block's coordinates from its row-major number."""
        w, rest, out = self.w, "%n", []
        for d in reversed(grid[1:]):
            extent = w.dim(d)
            quotient = w.let(f"udiv i64 {rest}, {extent}")
            out.append(w.binary("sub", "i64", 1, rest, w.binary("mul", "i64", 1, quotient, extent)))
            rest = quotient
        return [rest, *reversed(out)]

    def _loop_metadata(self, unroll: int | bool | None) -> str:
        """Loops are unrolled where the program says so (a count, or True for all of it) and nowhere else."""
        n = len(self.metadata)
        if unroll is True:
            what = '!{!"llvm.loop.unroll.full"}'
        else:
            what = f'!{{!"llvm.loop.unroll.count", i32 {unroll}}}' if unroll else '!{!"llvm.loop.unroll.disable"}'
        self.metadata += [f"!{n} = distinct !{{!{n}, !{n + 1}}}", f"!{n + 1} = {what}"]
        return f", !llvm.loop !{n}"

    # -- blocks ------------------------------------------------------------------------------------------------------
    def _block(self, block: Block) -> list[Any]:
        """Emit a block's ops; returns what its terminator carries, made."""
        for op in block.ops:
            if op.name in ("yield", "return"):
                carried = [self.values[v] for v in op.operands]
                self._make_all([c for c in carried if isinstance(c, Tile)])
                return carried
            try:
                self._op(op)
            except CompileError as e:
                e.loc = e.loc or op.loc
                raise
        return []

    def _op(self, op: Op) -> None:
        if op in self.matrices.unmade:
            return
        handler = _HANDLERS.get(op.name)
        if handler is not None:
            handler(self, op)
        elif op.name in BASIC:
            self._pointwise(op)
        else:
            raise CompileError(f"the CPU code generator has no op {op.name!r}; transcendental ops are expanded by "
                               "tiling.vmath before emission", loc=op.loc)

    @staticmethod
    def _make_all(tiles: Sequence[Tile]) -> None:
        """Make every piece: last tile first, piece by piece, so that chains run depth first."""
        for t in reversed(tiles):
            t.force()

    def _flush(self, blocks: Sequence[Block] = ()) -> None:
        """Make whatever is pending, before control flow; what ``blocks`` store to is not read again from memory."""
        self._make_all(self.pending)
        self.pending.clear()
        self.loads.clear()
        for block in blocks:
            for op in block.walk():
                if op.name in WRITES:
                    self._changed(op.operands[0])

    def _changed(self, buffer: Value) -> None:
        """``buffer`` is written: tiles loaded from it live in registers from now on."""
        target, kept = root(buffer), []
        for source, t in self.in_memory:
            if source is target:
                t.element = None
            else:
                kept.append((source, t))
        self.in_memory = kept

    def _loaded(self, buffer: Value, key: tuple[Any, ...], t: Tile) -> None:
        self.loads.append((buffer, key, t))
        if t.element is not None:
            self.in_memory.append((root(buffer), t))

    def tile(self, v: Value) -> Tile:
        got = self.values[v]
        if isinstance(got, Held):
            return self._released(got)
        assert isinstance(got, Tile), v
        return got

    def scalar(self, v: Value) -> str:
        got = self.values[v]
        assert isinstance(got, str), v
        return got

    def define(self, op: Op, value: Any) -> None:
        if isinstance(value, Tile) and op.result in self.matrices.held:
            value = self._held(op, value)
        self.values[op.result] = value
        if isinstance(value, Tile) and not value.complete:
            if value.geo.count > MAX_TILE_PIECES:
                raise CompileError(f"a tile of shape {value.shape} is too large to hold in registers", loc=op.loc,
                                   hints=("use smaller tiles and a loop",))
            self.pending.append(value)

    def geo(self, t: Any) -> Any:
        if any(d < 1 for d in t.shape):
            raise CompileError(f"a tile's extents are positive; {t} is empty")
        return geometry(tuple(t.shape), self.w.lanes)

    # -- pointwise -----------------------------------------------------------------------------------------------------
    def _pointwise(self, op: Op) -> None:
        w, out = self.w, op.result.type
        dtypes = [element_type(v.type) for v in op.operands]
        if isinstance(out, ScalarType):
            self.define(op, pointwise(w, op.name, [self.scalar(v) for v in op.operands], dtypes, out.dtype, 1))
            return
        parts = [self.tile(v) for v in op.operands]
        geo = self.geo(out)
        for p in parts:
            if p.shape != out.shape:
                raise CompileError(f"{op.name}: operands of shapes {[q.shape for q in parts]} and a result of {out.shape}")

        def make(i: int) -> str:
            return pointwise(w, op.name, [p.piece(i) for p in parts], dtypes, out.dtype, geo.piece(i).width)

        self.define(op, Tile(out.dtype, geo, make, parts=parts))

    # -- constants -----------------------------------------------------------------------------------------------------
    def _constant(self, op: Op) -> None:
        t, value = op.result.type, op.attrs["value"]
        if isinstance(value, np.ndarray) and value.size == 1:
            value = value.reshape(())[()]
        if isinstance(t, ScalarType):
            rep = representation(t.dtype)
            self.define(op, splat_literal(rep, constant_bits(t.dtype, value), 1))
            return
        geo, rep = self.geo(t), representation(t.dtype)
        if isinstance(value, np.ndarray):
            flat = [constant_bits(t.dtype, x) for x in np.broadcast_to(value, t.shape).reshape(-1)]

            def make(i: int) -> str:
                p = geo.piece(i)
                start = i // len(geo.pieces) * geo.last + p.start
                return vector_literal(rep, flat[start:start + p.valid] + [flat[start]] * (p.width - p.valid))

            self.define(op, Tile(t.dtype, geo, make, element=lambda i: splat_literal(rep, flat[i], 1)))
            return
        bits = constant_bits(t.dtype, value)
        self.define(op, Tile(t.dtype, geo, lambda i: splat_literal(rep, bits, geo.piece(i).width),
                             element=lambda i: splat_literal(rep, bits, 1)))

    def _splat(self, op: Op) -> None:
        t, value = op.result.type, self.scalar(op.operands[0])
        geo, rep, w = self.geo(t), representation(t.dtype), self.w
        made: dict[int, str] = {}

        def make(i: int) -> str:
            width = geo.piece(i).width
            if width not in made:
                made[width] = w.splat(rep, width, value)
            return made[width]

        self.define(op, Tile(t.dtype, geo, make, element=lambda i: value))

    def _iota(self, op: Op) -> None:
        t, axis = op.result.type, int(op.attrs.get("axis", 0))
        geo, rep = self.geo(t), representation(t.dtype)
        index = np.broadcast_to(np.arange(t.shape[axis]).reshape([-1 if a == axis else 1 for a in range(t.rank)]), t.shape)
        flat = index.reshape(-1)

        def make(i: int) -> str:
            p = geo.piece(i)
            start = i // len(geo.pieces) * geo.last + p.start
            numbers = [int(x) for x in flat[start:start + p.valid]]
            return vector_literal(rep, [constant_bits(t.dtype, x) for x in numbers + [0] * (p.width - p.valid)])

        self.define(op, Tile(t.dtype, geo, make))

    def _program_id(self, op: Op) -> None:
        axis = int(op.attrs.get("axis", 0))
        if axis >= len(self.pids):
            raise CompileError(f"program_id of axis {axis} in a grid of {len(self.pids)} axes", loc=op.loc)
        self.define(op, self.pids[axis])

    def _size(self, op: Op) -> None:
        self.define(op, self.w.dim(op.attrs["value"]))

    # -- moves -------------------------------------------------------------------------------------------------------
    def _move(self, op: Op) -> None:
        w, t, shape = self.w, self.tile(op.operands[0]), tuple(op.result.type.shape)
        self.geo(op.result.type)
        if op.name == "reshape":
            made = reshape(w, t, shape)
        elif op.name == "transpose":
            made = transpose(w, t, op.attrs["perm"], shape)
        elif op.name == "slice":
            made = slice_tile(w, t, op.attrs["starts"], op.attrs["limits"], shape)
        elif op.name == "broadcast":
            made = broadcast(w, t, shape)
        elif op.name == "exchange":
            made = exchange(w, t, int(op.attrs.get("axis", 0)), int(op.attrs["mask"]))
        else:
            made = concat(w, [self.tile(v) for v in op.operands], int(op.attrs.get("axis", 0)), shape)
        if made.geo.count > MAX_TILE_PIECES:
            raise CompileError(f"a tile of shape {shape} is too large to hold in registers", loc=op.loc)
        self.define(op, made)

    def _extract(self, op: Op) -> None:
        t = self.tile(op.operands[0])
        flat = int(np.ravel_multi_index(tuple(op.attrs["index"]), t.shape)) if t.shape else 0
        number, lane = t.geo.locate(flat)
        self.define(op, self.w.extract(representation(t.dtype), t.geo.piece(number).width, t.piece(number), lane))

    def _reduce(self, op: Op) -> None:
        t, combine = self.tile(op.operands[0]), op.attrs["combine"]
        if combine not in COMBINE:
            raise CompileError(f"reduce: no combine is called {combine!r}; there are {', '.join(COMBINE)}", loc=op.loc)
        out = op.result.type
        shape = tuple(d for a, d in enumerate(t.shape) if a != op.attrs["axis"])
        made = reduce_tile(self.w, t, int(op.attrs["axis"]), combine, geometry(shape, self.w.lanes))
        self.define(op, made.piece(0) if isinstance(out, ScalarType) else made)

    def _dot(self, op: Op) -> None:
        if op in self.matrices.left:
            acc = self.values[op.operands[2]]
            assert isinstance(acc, Held)
            operands = [self._rows_in_memory(m[op]) for m in (self.matrices.left, self.matrices.right)]
            self.define(op, emit_amx.dot(self.w, acc, op.operands[0].type.shape[1], operands[0], operands[1]))
            return
        a, b, acc = (self.tile(v) for v in op.operands)
        self.define(op, (dot_groups if op.attrs.get("unit") in emit_pairs.UNITS else dot)(self.w, op, a, b, acc))

    # -- matrices in the matrix unit's registers ---------------------------------------------------------------------------
    def _rows_in_memory(self, op: Op) -> tuple[str, str]:
        """(pointer, bytes from row to row) of what a plain load or store of a matrix touches."""
        buffer, rank = op.operands[0], check_buffer(op.operands[0], op).rank
        t = op.result.type if op.results else op.operands[1 + rank].type
        axes = emit_memory.tile_axes(op, len(t.shape), rank)
        access = self._access(op, buffer, op.operands[1:1 + rank], tuple(t.shape), axes)
        if len(t.shape) != 2 or not access.contiguous:
            raise CompileError(f"{op.name}: the rows of a matrix in the matrix unit are contiguous", loc=op.loc)
        return access.base, self.w.dim(access.strides[0] * t.dtype.itemsize)

    def _held(self, op: Op, value: Tile) -> Held:
        """A tile as it enters the matrix unit: zeros, a plain load, or by way of the stack."""
        plain = not op.attrs.get("check") and not op.attrs.get("masked")
        if op.name == "full" and op.attrs["value"] == 0:
            return emit_amx.zeros(self.w, value.shape)
        if op.name == "load" and plain:
            return emit_amx.read(self.w, value.shape, *self._rows_in_memory(op))
        slot, per_row = self.w.alloca("float", value.geo.rows * value.geo.last), len(value.geo.pieces)
        for i in range(value.geo.count):
            row, piece = i // per_row, value.geo.piece(i)
            store_piece(self.w, value.dtype, self.w.gep("float", slot, str(row * value.geo.last + piece.start)), piece.width, None,
                        value.piece(i))
        return emit_amx.read(self.w, value.shape, slot, str(4 * value.geo.last))

    def _released(self, held: Held) -> Tile:
        """A matrix of the unit as a tile of vectors, by way of the stack."""
        from ...types.dtypes import f32
        geo = geometry(held.shape, self.w.lanes)
        slot = self.w.alloca("float", geo.rows * geo.last)
        emit_amx.write(self.w, held, slot, str(4 * geo.last))
        places = [(divmod(i, len(geo.pieces))[0] * geo.last + geo.piece(i).start, geo.piece(i).width) for i in range(geo.count)]
        return made_tile(f32, geo, [load_piece(self.w, f32, self.w.gep("float", slot, str(at)), n, None, 0) for at, n in places])

    # -- memory --------------------------------------------------------------------------------------------------------
    def _alloc(self, op: Op) -> None:
        t = op.result.type
        if not isinstance(t, BufferType) or not isinstance(t.size, int):
            raise CompileError(f"alloc: {t} has no static size", loc=op.loc)
        self.stack_bytes += t.size * t.dtype.itemsize
        if self.stack_bytes > MAX_STACK_BYTES:
            raise CompileError(f"the scratch buffers of {self.fn.name} take more than {MAX_STACK_BYTES} bytes", loc=op.loc)
        self.define(op, self.w.alloca(memory_type(t.dtype), max(1, t.size)))

    def _view(self, op: Op) -> None:
        self.define(op, self.values[op.operands[0]])

    def _prefetch(self, op: Op) -> None:
        buffer = op.operands[0]
        access = self._access(op, buffer, op.operands[1:], (), ())
        self.w.line(f"call void @llvm.prefetch.p0(ptr {access.base}, i32 0, i32 3, i32 1)")

    def _access(self, op: Op, buffer: Value, offsets: Sequence[Value], shape: tuple[int, ...],
                axes: Sequence[int]) -> Access:
        btype = check_buffer(buffer, op)
        if len(offsets) != btype.rank:
            raise CompileError(f"{op.name}: {len(offsets)} offsets into {btype}", loc=op.loc)
        return Access(self.w, self.values[buffer], btype, [self.scalar(o) for o in offsets], offsets, shape, axes,
                      tuple(op.attrs.get("check", ())))

    def _load(self, op: Op) -> None:
        buffer, out = op.operands[0], op.result.type
        btype = check_buffer(buffer, op)
        offsets = op.operands[1:1 + btype.rank]
        mask = op.operands[1 + btype.rank] if op.attrs.get("masked") else None
        fill, w, dtype = op.attrs.get("fill", 0), self.w, btype.dtype
        if isinstance(out, ScalarType):
            access = self._access(op, buffer, offsets, (), ())
            condition = access.inside
            if mask is not None:
                own = self.scalar(mask)
                condition = own if condition is None else w.binary("and", "i1", 1, own, condition)
            self.define(op, load_piece(w, dtype, access.base, 1, condition, fill))
            return
        shape = tuple(out.shape)
        self.geo(out)
        axes = emit_memory.tile_axes(op, len(shape), btype.rank)
        swap = emit_memory.swapped_axis(axes, shape, btype)
        key = (buffer, tuple(offsets), axes, shape)
        if swap is not None:
            perm = [*(i for i in range(len(shape)) if i != swap), swap]
            access = self._access(op, buffer, offsets, tuple(shape[p] for p in perm), [axes[p] for p in perm])
            turned = transpose(w, self.tile(mask), perm, access.shape) if mask is not None else None
            source = self._load_tile(access, turned, fill)
            self._loaded(buffer, key, source)
            back = [perm.index(i) for i in range(len(shape))]
            self.define(op, transpose(w, source, back, shape))
            return
        access = self._access(op, buffer, offsets, shape, axes)
        made = self._load_tile(access, self.tile(mask) if mask is not None else None, fill)
        self._loaded(buffer, key, made)
        self.define(op, made)

    def _load_tile(self, access: Access, mask: Tile | None, fill: Any) -> Tile:
        w, dtype, geo = self.w, access.dtype, access.geo
        if access.contiguous:
            def make(i: int) -> str:
                pointer, piece, bounds = access.at(i)
                return load_piece(w, dtype, pointer, piece.width, emit_memory.piece_masks(w, mask, i, piece, bounds), fill)
        else:
            def make(i: int) -> str:
                pointers, piece, bounds = access.strided(i)
                own = emit_memory.piece_masks(w, mask, i, piece, bounds)
                assert own is not None
                return gather_piece(w, dtype, pointers, piece.width, own, fill)
        known: dict[int, str] = {}

        def element(i: int) -> str:
            if i not in known:
                row, column = divmod(i, geo.last)
                step = self.w.dim(access.strides[-1] * column) if access.strides else "0"
                known[i] = load_piece(w, dtype, w.gep(access.element, access.row(row)[0], step), 1, None, fill)
            return known[i]

        plain = mask is None and not access.checked
        return Tile(dtype, geo, make, parts=(mask,) if mask is not None else (), element=element if plain else None,
                    origin=access if plain else None)

    def _store(self, op: Op) -> None:
        buffer, w = op.operands[0], self.w
        btype = check_buffer(buffer, op)
        offsets = op.operands[1:1 + btype.rank]
        value = op.operands[1 + btype.rank]
        mask = op.operands[2 + btype.rank] if op.attrs.get("masked") else None
        if isinstance(value.type, ScalarType):
            self._loads_before(buffer, None)
            access = self._access(op, buffer, offsets, (), ())
            condition = access.inside
            if mask is not None:
                own = self.scalar(mask)
                condition = own if condition is None else w.binary("and", "i1", 1, own, condition)
            store_piece(w, btype.dtype, access.base, 1, condition, self.scalar(value))
            return
        if isinstance(self.values[value], Held) and mask is None and not op.attrs.get("check") and len(value.type.shape) == 2:
            self._loads_before(buffer, None)
            emit_amx.write(w, self.values[value], *self._rows_in_memory(op))
            return
        t, lanes = self.tile(value), self.tile(mask) if mask is not None else None
        shape = t.shape
        axes = emit_memory.tile_axes(op, len(shape), btype.rank)
        swap = emit_memory.swapped_axis(axes, shape, btype)
        key = (buffer, tuple(offsets), axes, shape)
        if swap is not None:
            perm = [*(i for i in range(len(shape)) if i != swap), swap]
            shape, axes = tuple(shape[p] for p in perm), tuple(axes[p] for p in perm)
            t = transpose(w, t, perm, shape)
            lanes = transpose(w, lanes, perm, shape) if lanes is not None else None
            key = (buffer, tuple(offsets), axes, shape)
        access = self._access(op, buffer, offsets, shape, axes)
        self._loads_before(buffer, key)
        beside = [l for _, k, l in self.loads if k[1:] == key[1:]]
        for i in range(access.geo.count):
            for l in beside:  # a load of the same elements, perhaps through another name of the same memory
                l.piece(i)
            made = t.piece(i)
            if access.contiguous:
                pointer, piece, bounds = access.at(i)
                store_piece(w, btype.dtype, pointer, piece.width,
                            emit_memory.piece_masks(w, lanes, i, piece, bounds), made)
            else:
                pointers, piece, within = access.strided(i)
                mask_ = emit_memory.piece_masks(w, lanes, i, piece, within)
                assert mask_ is not None
                if piece.valid < piece.width or mask_ != within or access.checked or lanes is not None:
                    scatter_piece(w, btype.dtype, pointers, piece.width, mask_, made)
                else:
                    self._store_lanes(access, i, made)

    def _store_lanes(self, access: Access, i: int, value: str) -> None:
        """A strided store, lane by lane: quicker than a scatter."""
        w, geo = self.w, access.geo
        row, p = divmod(i, len(geo.pieces))
        piece, rep = geo.pieces[p], representation(access.dtype)
        for lane in range(piece.valid):
            pointer = w.gep(access.element, access.row(row)[0], w.dim(access.strides[-1] * (piece.start + lane)))
            store_piece(w, access.dtype, pointer, 1, None, w.extract(rep, piece.width, value, lane))

    def _loads_before(self, buffer: Value, key: tuple[Any, ...] | None) -> None:
        """Make pending loads that a store to ``buffer`` could change, unless it writes just what they read."""
        self._changed(buffer)
        kept, target = [], root(buffer)
        for source, k, tile in self.loads:
            if root(source) is target and k != key:
                tile.force()
            if not tile.complete:
                kept.append((source, k, tile))
        self.loads = kept

    def _gather(self, op: Op) -> None:
        buffer, where = op.operands[0], op.operands[1]
        btype, w, out = check_buffer(buffer, op), self.w, op.result.type
        mask = op.operands[2] if op.attrs.get("masked") else None
        fill, element = op.attrs.get("fill", 0), memory_type(btype.dtype)
        base = self.values[buffer]
        if isinstance(out, ScalarType):
            pointer = w.gep(element, base, self.scalar(where))
            self.define(op, load_piece(w, btype.dtype, pointer, 1, self.scalar(mask) if mask is not None else None, fill))
            return
        index, geo = self.tile(where), self.geo(out)
        lanes = self.tile(mask) if mask is not None else None

        def make(i: int) -> str:
            piece = geo.piece(i)
            own = emit_memory.piece_masks(w, lanes, i, piece, emit_memory.lane_mask(w, piece, None, None))
            pointers = w.let(f"getelementptr {element}, ptr {base}, {vector('i64', piece.width)} {index.piece(i)}")
            return gather_piece(w, btype.dtype, pointers, piece.width, own or splat_literal("i1", True, piece.width), fill)

        made = Tile(btype.dtype, geo, make, parts=(index,) if lanes is None else (index, lanes))
        self.loads.append((buffer, (buffer, "gather", where), made))
        self.define(op, made)

    def _scatter(self, op: Op) -> None:
        buffer, where, value = op.operands[:3]
        btype, w = check_buffer(buffer, op), self.w
        element, base = memory_type(btype.dtype), self.values[buffer]
        self._loads_before(buffer, None)
        mask = op.operands[3] if op.attrs.get("masked") else None
        if isinstance(value.type, ScalarType):
            pointer = w.gep(element, base, self.scalar(where))
            store_piece(w, btype.dtype, pointer, 1, self.scalar(mask) if mask is not None else None, self.scalar(value))
            return
        index, t = self.tile(where), self.tile(value)
        lanes = self.tile(mask) if mask is not None else None
        self._make_all([tile for _, _, tile in self.loads])  # its offsets are not known: anything may change
        for i in range(t.geo.count):
            piece = t.geo.piece(i)
            own = emit_memory.piece_masks(w, lanes, i, piece, emit_memory.lane_mask(w, piece, None, None))
            made = t.piece(i)
            pointers = w.let(f"getelementptr {element}, ptr {base}, {vector('i64', piece.width)} {index.piece(i)}")
            scatter_piece(w, btype.dtype, pointers, piece.width, own or splat_literal("i1", True, piece.width), made)

    def _atomic(self, op: Op) -> None:
        buffer, where, value = op.operands
        btype = check_buffer(buffer, op)
        self._loads_before(buffer, None)
        if isinstance(value.type, ScalarType):
            lanes = [(self.scalar(where), self.scalar(value), 1)]
        else:
            index, t = self.tile(where), self.tile(value)
            self._make_all([tile for _, _, tile in self.loads])
            lanes = [(index.piece(i), t.piece(i), t.geo.piece(i).width) for i in range(t.geo.count)]
        for at, made, width in lanes:
            emit_memory.atomic_piece(self.w, btype.dtype, self.values[buffer], at, width, made, op.attrs["combine"])

    # -- control flow --------------------------------------------------------------------------------------------------
    def _phis(self, values: Sequence[Value]) -> tuple[list[Any], list[tuple[str, str]]]:
        """Fresh names for values that a block receives: (the values, (name, LLVM type) of each phi)."""
        made: list[Any] = []
        phis: list[tuple[str, str]] = []
        for v in values:
            rep = representation(element_type(v.type))
            if isinstance(v.type, ScalarType):
                phis.append((self.w.fresh(), rep))
                made.append(phis[-1][0])
            elif v in self.matrices.held:
                registers = [self.w.fresh() for _ in range(v.type.size // (emit_amx.ROWS * emit_amx.COLUMNS))]
                phis += [(n, "x86_amx") for n in registers]
                made.append(Held(tuple(v.type.shape), registers))
            else:
                geo = self.geo(v.type)
                names = [(self.w.fresh(), vector(rep, geo.piece(i).width)) for i in range(geo.count)]
                phis += names
                made.append(made_tile(v.type.dtype, geo, [n for n, _ in names]))
        return made, phis

    @staticmethod
    def _names(values: Sequence[Any]) -> list[str]:
        """The LLVM values of scalars and made tiles, flat."""
        out: list[str] = []
        for v in values:
            if isinstance(v, Tile):
                out += [v.piece(i) for i in range(v.geo.count)]
            elif isinstance(v, Held):
                out += v.names
            else:
                out.append(v)
        return out

    def _write_phis(self, at: int, phis: Sequence[tuple[str, str]], incoming: Sequence[tuple[Sequence[str], str]]) -> None:
        """Put phi lines at a reserved line."""
        lines = []
        for i, (name, t) in enumerate(phis):
            pairs = ", ".join(f"[ {names[i]}, %{label} ]" for names, label in incoming)
            lines.append(f"  {name} = phi {t} {pairs}")
        self.w.body[at] = "\n".join(lines)

    def _reserve(self) -> int:
        self.w.body.append("")
        return len(self.w.body) - 1

    def _enter(self, op: Op) -> None:
        self._flush(op.blocks)

    def _leave(self) -> None:
        self.pending.clear()
        self.loads.clear()

    def _for(self, op: Op) -> None:
        w = self.w
        lo, hi, step = (self.scalar(v) for v in op.operands[:3])
        body, initial = op.blocks[0], [self.values[v] for v in op.operands[3:]]
        self._enter(op)
        first = self._names(initial)
        before, loop, done = w.label, w.new_label("loop"), w.new_label("done")
        runs = _is_int(lo) and _is_int(hi) and int(lo) < int(hi)
        if runs:
            w.branch(loop)
        else:
            w.branch_if(w.let(f"icmp slt i64 {lo}, {hi}"), loop, done)
        w.start(loop)
        at = self._reserve()
        index = w.fresh()
        carried, phis = self._phis(body.args[1:])
        self.values[body.args[0]] = index
        if nonnegative(op.operands[0], w.indices):
            w.indices.add(body.args[0])
        self.values.update(zip(body.args[1:], carried, strict=True))
        after = self._names(self._block(body))
        self._leave()
        following = w.let(f"add nsw i64 {index}, {step}")
        more = w.let(f"icmp slt i64 {following}, {hi}")
        last = w.label
        unroll = op.attrs.get("unroll")
        w.line(f"br i1 {more}, label %{loop}, label %{done}{self._loop_metadata(unroll)}")
        self._write_phis(at, [(index, "i64"), *phis], [([lo, *first], before), ([following, *after], last)])
        w.start(done)
        at = self._reserve()
        results, out = self._phis(op.results)
        self._write_phis(at, out, [(after, last)] if runs else [(first, before), (after, last)])
        self.values.update(zip(op.results, results, strict=True))

    def _while(self, op: Op) -> None:
        w = self.w
        test, body = op.blocks
        initial = [self.values[v] for v in op.operands]
        self._enter(op)
        first = self._names(initial)
        before, head, loop, done = w.label, w.new_label("while"), w.new_label("body"), w.new_label("done")
        w.branch(head)
        w.start(head)
        at = self._reserve()
        carried, phis = self._phis(test.args)
        self.values.update(zip(test.args, carried, strict=True))
        go, *passed = self._block(test)
        self._leave()
        w.branch_if(go, loop, done)
        w.start(loop)
        self.values.update(zip(body.args, passed, strict=True))
        after = self._names(self._block(body))
        self._leave()
        w.line(f"br label %{head}{self._loop_metadata(None)}")
        self._write_phis(at, phis, [(first, before), (after, w.label)])
        w.start(done)
        self.values.update(zip(op.results, passed, strict=True))

    def _if(self, op: Op) -> None:
        w, condition = self.w, self.scalar(op.operands[0])
        self._enter(op)
        yes, no, done = w.new_label("then"), w.new_label("else"), w.new_label("done")
        w.branch_if(condition, yes, no)
        incoming = []
        for label, block in zip((yes, no), [*op.blocks, Block()][:2], strict=True):
            w.start(label)
            names = self._names(self._block(block))
            self._leave()
            incoming.append((names, w.label))
            w.branch(done)
        w.start(done)
        at = self._reserve()
        results, phis = self._phis(op.results)
        self._write_phis(at, phis, incoming)
        self.values.update(zip(op.results, results, strict=True))

    # -- checks --------------------------------------------------------------------------------------------------------
    def _check(self, op: Op) -> None:
        """Failures are rare: the lanes' worst value is computed in a block of its own."""
        w, site = self.w, int(op.attrs["site"])
        if not 0 <= site <= abi.MAX_SITE:
            raise CompileError(f"check: site {site} does not fit the status word", loc=op.loc)
        ok, value = (self.values[v] for v in op.operands)
        oks, values = self._names([ok]), self._names([value])
        dtype = element_type(op.operands[1].type)
        rep = representation(dtype)
        pieces = [ok.geo.piece(i) for i in range(ok.geo.count)] if isinstance(ok, Tile) else [None]
        good: str | None = None
        for name, piece in zip(oks, pieces, strict=True):
            one = name
            if piece is not None and piece.width > 1:
                if piece.valid < piece.width:
                    outside = vector_literal("i1", [i >= piece.valid for i in range(piece.width)])
                    one = w.binary("or", "i1", piece.width, one, outside)
                one = w.let(f"call i1 @llvm.vector.reduce.and.v{piece.width}i1({vector('i1', piece.width)} {one})")
            good = one if good is None else w.binary("and", "i1", 1, good, one)
        self._flush()
        fail, done = w.new_label("failed"), w.new_label("checked")
        w.line(f"br i1 {good}, label %{done}, label %{fail}, !prof !{self._likely()}")
        w.start(fail)
        for name, number, piece in zip(oks, values, pieces, strict=True):
            width = piece.width if piece is not None else 1
            for lane in range(piece.valid if piece is not None else 1):
                held = w.extract("i1", width, name, lane)
                self._report(site, held, self._as_i64(w.extract(rep, width, number, lane), dtype))
        w.branch(done)
        w.start(done)

    def _as_i64(self, value: str, dtype: DType) -> str:
        from ...types.dtypes import int64
        return pointwise(self.w, "convert", (value,), (dtype,), int64, 1)

    def _report(self, site: int, ok: str, value: str) -> None:
        w = self.w
        low = w.binary("and", "i64", 1, value, str((1 << abi.VALUE_BITS) - 1))
        word = w.binary("or", "i64", 1, low, str(_signed(site << abi.VALUE_BITS)))
        kept = w.select(ok, "i64", 1, "-1", word)
        pointer = w.gep("i8", "%ctx", str(abi.STATUS))
        w.let(f"atomicrmw umin ptr {pointer}, i64 {kept} monotonic, align 8")

    def _likely(self) -> int:
        n = len(self.metadata)
        self.metadata.append(f'!{n} = !{{!"branch_weights", i32 1000000, i32 1}}')
        return n


def _signed(x: int) -> int:
    return x - (1 << 64) if x >> 63 else x


def _is_int(text: str) -> bool:
    return text.lstrip("-").isdigit()


def _name(name: str) -> str:
    return name if name.replace("_", "a").replace(".", "a").isalnum() else '"' + name.replace('"', "'") + '"'


_HANDLERS: dict[str, Callable[[_Kernel, Op], None]] = {
    "constant": _Kernel._constant, "full": _Kernel._constant, "splat": _Kernel._splat, "iota": _Kernel._iota,
    "program_id": _Kernel._program_id, "size": _Kernel._size, "reshape": _Kernel._move, "transpose": _Kernel._move,
    "slice": _Kernel._move, "broadcast": _Kernel._move, "concat": _Kernel._move, "exchange": _Kernel._move, "extract": _Kernel._extract,
    "reduce": _Kernel._reduce, "dot": _Kernel._dot, "alloc": _Kernel._alloc, "view": _Kernel._view, "prefetch": _Kernel._prefetch,
    "load": _Kernel._load,
    "store": _Kernel._store, "gather": _Kernel._gather, "scatter": _Kernel._scatter, "atomic": _Kernel._atomic, "for": _Kernel._for,
    "while": _Kernel._while, "if": _Kernel._if, "check": _Kernel._check,
}

__all__ = ["emit", "emit_move", "move"]
