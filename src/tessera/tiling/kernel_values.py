"""What the body of a kernel handles besides tiles: parameters, windows into them, shared memory and registers.

All of these turn into a tile where one is needed (``__tile__``), so they take part in arithmetic.  A tile knows which of
its lanes are data (:class:`~tessera.tiling.values.Meta`): at a ragged edge of a tensor loads give 0 in the other lanes,
reductions and products leave them out, and stores skip them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from ..ir.core import BufferType, ScalarType, Value
from ..ir.tile import WRITES, written
from ..types.dims import Dim, DimLike, ceildiv, format_dim
from ..types.dtypes import DType, int64
from ..types.shapes import divisible
from . import dsl
from .edges import masked, plain, valid_lanes
from .tile_types import Bound
from .values import (
    _HOOKS,
    Buffer,
    Edge,
    Meta,
    Operators,
    TileProgram,
    TileValue,
    as_value,
    current,
    fail,
    internal,
    size,
)

internal(__file__)
A = TypeVar("A")


class Demand(Exception):
    """The kernel needs this size as a number: it is built again with the axis fixed."""

    def __init__(self, key: str):
        super().__init__(key)
        self.key = key


class Volatile(Exception):
    """A loop or conditional changes how much of this shared memory is data: the kernel is built again to keep count."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class Extent(int):
    """A static size of a parameter's axis; knows which axis, so that a loop over it can be spread over the grid."""

    key: str

    def __new__(cls, n: int, key: str) -> Extent:
        made = super().__new__(cls, n)
        made.key = key
        return made


class SizeValue(TileValue):
    """A symbolic size of a parameter's axis, as an int64 scalar."""

    __slots__ = ("key",)

    def __init__(self, of: TileValue, key: str):
        super().__init__(of.value, of.const, of.dim, of.meta)
        self.key = key

    def __index__(self) -> int:
        raise Demand(self.key)


class KernelProgram(TileProgram):
    """A kernel under construction.

    Attributes:
        grid_keys: axis key -> grid axis, for grid axes and for axes that the grid walks in windows.
        windows: axis key -> extent of one program's window along it.
        spans: grid axis -> (size of the axis, extent of a window), for axes walked in windows.
        registers: every register allocated so far.
        tiles: the extents that ``tile.context()`` reports.
        spread: the loops that the grid replaces, outermost first.
    """

    def __init__(self, name: str, bound: dict[str, Bound], sizes: Sequence[str], tiles: dict[str, int], serial: frozenset[int],
                 volatile: frozenset[int] = frozenset()):
        super().__init__(name, [(n, BufferType(b.type.dtype, b.type.shape)) for n, b in bound.items()], sizes, grid=())
        self.grid_keys: dict[str, int] = {}
        self.windows: dict[str, int] = {}
        self.spans: dict[int, tuple[DimLike, int]] = {}
        self.registers: list[Register] = []
        self.tiles = tiles
        self.serial = serial  # ordinals of loops over an axis that must not be spread over the grid
        self.volatile = volatile  # ordinals of shared memories whose valid extents live in memory
        self.shared = 0
        self.loops = 0
        self.spread: list[Spread] = []
        self.active: list[Any] = []
        self.multiples: dict[Value, tuple[int, DimLike]] = {}  # loop variable -> (step, end): a multiple of step below end
        self.params = {n: Param(b, v) for (n, b), v in zip(bound.items(), self.buffers, strict=True)}
        for p in self.params.values():
            for axis in p.bound.grid:
                self.grid_axis(p.bound.keys[axis], p.buffer.shape[axis])

    def loop_position(self, number: int, total: DimLike, step: int) -> tuple[int, TileValue]:
        """(grid axis, offset) of this program in a loop inside the one that the grid replaces."""
        axis = self.grid_axis(f"loop {number}", ceildiv(total, step))
        self.spans[axis] = total, step
        with self.before():
            offset = dsl.program_id(axis) * step
        self.multiples[offset.value] = step, total
        return axis, offset

    def grid_axis(self, key: str, extent: DimLike) -> int:
        """The grid axis for ``key``, made on first use."""
        if key not in self.grid_keys:
            self.grid_keys[key] = len(self.grid_keys)
            self.fn.attrs["grid"] = (*self.fn.attrs["grid"], extent)
        return self.grid_keys[key]

    def window(self, key: str, total: DimLike, extent: int) -> TileValue:
        """The offset of this program's window along an axis, which the grid walks in steps of ``extent``."""
        known = self.windows.setdefault(key, extent)
        if known != extent:
            fail(f"the axis {plain(key)} is walked in windows of {known} and of {extent}; a program has one window",
                 hints=["use equal extents along equal axes", "give an explicit position: tile.load(A, (i, j), shape=…)"])
        axis = self.grid_axis(key, ceildiv(total, extent))
        self.spans[axis] = total, extent
        with self.before():
            offset = self.memo(("window", key), lambda: dsl.program_id(axis) * extent)
        self.multiples.setdefault(offset.value, (extent, total))
        return offset


_EMPTY = ("alloc", "constant", "full")


class Spread:
    """A loop that the grid replaces: its ordinal among the kernel's loops, its grid axis, and which ops of the body are its own."""

    __slots__ = ("axis", "carries", "first", "last", "number")

    def __init__(self, number: int, axis: int, first: int):
        self.number, self.axis, self.first = number, axis, first
        self.last: int | None = None  # None while its body runs
        self.carries = False  # an iteration reads what the one before it wrote

    def holds_nothing_yet(self, prog: KernelProgram) -> bool:
        """True while its body runs and has computed no more than positions: then a loop directly in it may be spread as well."""
        return self.last is None and all(
            op.name in _EMPTY or (op.results and all(isinstance(r.type, ScalarType) for r in op.results))
            for op in prog.fn.body.ops[self.first:])

    def stores_all(self, prog: KernelProgram) -> bool:
        """True when every store to a parameter stands in the loop."""
        ops, params = prog.fn.body.ops, {p.buffer.value for p in prog.params.values()}
        return not any(o.name in WRITES and written(o) in params for op in (*ops[:self.first], *ops[self.last:]) for o in op.walk())

    def leaves_out_effects(self, prog: KernelProgram) -> bool:
        """True when what must happen once stands outside the loop; every program would do it."""
        ops = prog.fn.body.ops
        return any(o.name == "atomic" for op in (*ops[:self.first], *ops[self.last:]) for o in op.walk())


def program() -> KernelProgram:
    """The kernel being built.

    Raises:
        KernelError: there is none.
    """
    prog = current()
    if not isinstance(prog, KernelProgram):
        fail("this operation belongs to @ts.kernel functions")
    return prog


# -- memory objects ----------------------------------------------------------------------------------------------------
class Param(Operators):
    """A tensor parameter.  ``p[a:b]`` is a window along the first axis the body sees; ``shape`` has the full rank."""

    __slots__ = ("bound", "buffer", "inner")

    def __init__(self, bound: Bound, buffer: Buffer):
        self.bound, self.buffer = bound, buffer
        self.inner = tuple(a for a in range(bound.type.rank) if a not in bound.grid)

    @property
    def name(self) -> str:
        return self.bound.name

    @property
    def dtype(self) -> DType:
        return self.buffer.dtype

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(Extent(n, self.key(a)) if isinstance(n, int) else SizeValue(as_value(size(n)), self.key(a))
                     for a, n in enumerate(self.buffer.shape))

    @property
    def ndim(self) -> int:
        return self.buffer.rank

    def key(self, axis: int) -> str:
        """What an axis is called; further axes of equal name are told apart: ``N``, ``N'``."""
        key = self.bound.keys[axis]
        return key + "'" * sum(self.bound.keys[a] == key for a in self.inner if a < axis)

    def outer(self) -> list[tuple[int, TileValue]]:
        """(buffer axis, position) along the grid axes."""
        prog = program()
        return [(a, dsl.program_id(prog.grid_axis(self.bound.keys[a], self.buffer.shape[a]))) for a in self.bound.grid]

    def whole(self) -> Window:
        return Window(self, [Part(a, None, None) for a in self.inner])

    def __getitem__(self, index: Any) -> Window:
        return self.whole()[index]

    def __setitem__(self, index: Any, value: Any) -> None:
        _HOOKS["kernel_store"](self[index], value)

    def __tile__(self) -> TileValue:
        return self.whole().__tile__()

    def __repr__(self) -> str:
        return f"<{self.name}: {self.bound.type}>"


class Part:
    """A window along one axis: start and static extent.  No start: not placed yet; a start without extent: the whole axis."""

    __slots__ = ("axis", "extent", "key", "single", "start")

    def __init__(self, axis: int, start: Any, extent: int | None, single: bool = False, key: str | None = None):
        self.axis, self.start, self.extent, self.single, self.key = axis, start, extent, single, key


class Window(Operators):
    """A rectangle of a parameter.  Axes that are not placed follow the program's window, or are walked by ``mma``.

    A window is a place: each use reads it.  ``deferred`` is False, or (for what ``tile.load`` gave) None or what was read; ``given``:
    ``tile.load`` was told what lanes outside hold.
    """

    __slots__ = ("deferred", "given", "param", "parts")

    def __init__(self, param: Param, parts: Sequence[Part]):
        self.param, self.parts = param, list(parts)
        self.deferred: tuple[Any, TileValue] | bool | None = False
        self.given = False

    @property
    def dtype(self) -> DType:
        return self.param.dtype

    @property
    def shape(self) -> tuple[Any, ...]:
        return tuple(p.extent if p.extent is not None else self.param.shape[p.axis] for p in self.parts if not p.single)

    def total(self, part: Part) -> DimLike:
        return self.param.buffer.shape[part.axis]

    def whole(self, part: Part) -> int:
        """The size of an axis that is taken as a whole; it must be a number."""
        total = self.total(part)
        if not isinstance(total, int):
            raise Demand(self.param.key(part.axis))
        return total

    def __getitem__(self, index: Any) -> Window:
        items = list(index) if isinstance(index, tuple) else [index]
        open_ = [k for k, p in enumerate(self.parts) if not p.single]
        if len(items) > len(open_):
            fail(f"too many indices for {self.param.name!r}: its window has {len(open_)} axes", sentence=(
                "Grid axes of a Tile type are dropped inside the kernel." if self.param.bound.grid else None))
        parts = list(self.parts)
        for k in open_:
            item = items.pop(0) if items else slice(None)
            parts[k] = self._index(self.parts[k], item)
        return Window(self.param, parts)

    def _index(self, part: Part, item: Any) -> Part:
        base = 0 if part.start is None else part.start
        end = part.extent if part.extent is not None else self.param.shape[part.axis]
        if isinstance(item, slice) and item.stop is None and isinstance(item.start, int) and item.start < 0:
            item = slice(end + item.start, end, item.step)  # as Python counts, from the end
        elif isinstance(item, int) and item < 0:
            item = end + item
        if not isinstance(item, slice):
            return Part(part.axis, base + item if part.start is not None else item, 1, True)
        if item.step not in (None, 1):
            fail("windows have step 1", hints=["load a larger window and select from it"])
        if item.start is None and item.stop is None:
            return part if part.start is not None else Part(part.axis, 0, None)
        start = 0 if item.start is None else item.start
        stop = item.stop
        if stop is None:
            stop = part.extent if part.extent is not None else self.whole(part)
        extent = _distance(start, stop)
        if extent is None:
            fail("the extent of a window must be static", expected="a slice such as Q[q:q + 128]",
                 received=f"{self.param.name}[… : …] whose ends differ by a value computed in the kernel")
        if extent < 1:
            fail(f"the window {self.param.name}[…] has extent {extent}; it must be positive")
        return Part(part.axis, start if part.start is None else base + start, extent)

    def __setitem__(self, index: Any, value: Any) -> None:
        _HOOKS["kernel_store"](self[index], value)

    def __tile__(self) -> TileValue:
        if self.deferred is False:
            return self.load()
        scopes = program().scopes  # what tile.load gave is read once in each scope
        if not isinstance(self.deferred, tuple) or not any(s is self.deferred[0] for s in scopes):
            self.deferred = (scopes[-1], self.load())
        return self.deferred[1]

    # -- placing -------------------------------------------------------------------------------------------------------
    def placed(self, extents: Sequence[int | None] | None = None) -> list[tuple[Part, Any, int]]:
        """(axis, offset, extent) for each axis; ``extents`` are wishes for axes that have none of their own."""
        out = []
        wishes = iter(extents if extents is not None else ())
        for k, part in enumerate(self.parts):
            wish = next(wishes, None) if not part.single else None
            out.append((part, *self._place(part, wish, k)))
        return out

    def _place(self, part: Part, wish: int | None, position: int) -> tuple[Any, int]:
        if part.start is not None:
            return part.start, part.extent if part.extent is not None else self.whole(part)
        prog, total = program(), self.total(part)
        key = self.key(part)
        extent = part.extent or prog.windows.get(key) or wish
        if extent is None and isinstance(total, int) and key not in prog.tiles:
            extent = total
        if extent is None:
            extent = prog.tiles.get(key) or default_extent(prog, position, len(self.parts))
        if isinstance(total, int) and total <= extent and key not in prog.windows:
            return 0, extent
        return prog.window(key, total, extent), extent

    def key(self, part: Part) -> str:
        return part.key or self.param.key(part.axis)

    def extent_along(self, k: int) -> int:
        """The extent of the window along its k-th axis."""
        part = [p for p in self.parts if not p.single][k]
        return self._place(part, None, self.parts.index(part))[1]

    def replaced(self, part: Part, new: Part) -> Window:
        """The same window with another part."""
        made = Window(self.param, [new if p is part else p for p in self.parts])
        made.deferred = None if self.deferred is not False else False
        made.given = self.given
        return made

    def fits(self, part: Part) -> bool:
        """True when one tile certainly covers the whole axis."""
        total = self.total(part)
        return isinstance(total, int) and (part.extent is None or total <= part.extent)

    def load(self, extents: Sequence[int | None] | None = None, fill: Any = 0, mask: Any = None) -> TileValue:
        """The window as a tile; lanes outside the tensor are ``fill``."""
        out: TileValue = self._access(self.placed(extents), lambda off, shape, axes, check: dsl.load(
            self.param.buffer, off, shape, axes=axes, check=check, fill=fill, mask=mask), zero=not fill)
        return out

    def store(self, value: TileValue, mask: Any = None) -> None:
        """Write a tile; lanes outside the tensor are skipped."""
        open_ = [p for p in self.parts if not p.single]
        value = _fit(value, [p.extent if p.start is not None else None for p in open_], repr(self))
        placed = self.placed(value.shape)
        for axis, part in enumerate(open_):
            here = value.meta.walks.get(axis) if value.meta is not None else None
            if here is not None and part.start is None and here != self.key(part):
                fail(f"axis {axis} of the tile follows {plain(here)}, and of {self.param.name!r} it follows {plain(self.key(part))}",
                     sentence="Each program would write its tile to the place of another.",
                     hints=["transpose the tile", "give explicit positions: tile.load(A, (i, j), shape=…)"])
        self._access(placed, lambda off, shape, axes, check: dsl.store(
            self.param.buffer, off, _same_shape(value, shape, repr(self)), axes=axes, check=check, mask=mask))

    def elements(self, value: TileValue) -> tuple[TileValue, TileValue, TileValue | None]:
        """For each element of the window: its row-major offset in the tensor (clamped to it), the tile's lane for it, and whether it is
        inside."""
        open_ = [p for p in self.parts if not p.single]
        value = _fit(value, [p.extent if p.start is not None else None for p in open_], repr(self))
        placed = self.placed(value.shape)
        shape = tuple(extent for part, _, extent in placed if not part.single)
        value = _same_shape(value, shape, repr(self))
        at: dict[int, Any] = dict(self.param.outer())
        inside = valid_lanes(value)
        axis = 0
        for part, start, extent in placed:
            here, total = as_value(start), size(self.total(part))
            seen: TileValue | None = None
            if not part.single:
                here = dsl.iota((extent,)) + here
            if not _inside(start, extent, self.total(part)):
                seen = (here >= 0) & (here < total)
                here = dsl.maximum(dsl.minimum(here, total - 1), 0)
            if not part.single:
                line = [1] * len(shape)
                line[axis] = extent
                here = dsl.broadcast_to(dsl.reshape(here, line), shape)
                seen = None if seen is None else dsl.broadcast_to(dsl.reshape(seen, line), shape)
                axis += 1
            at[part.axis] = here
            inside = seen if inside is None else inside if seen is None else inside & seen
        flat: Any = 0
        for k, n in enumerate(self.param.buffer.shape):
            flat = flat * size(n) + at[k]
        return dsl.broadcast_to(as_value(flat), shape), value, inside

    def _access(self, placed: list[tuple[Part, Any, int]], emit: Any, zero: bool = False) -> Any:
        offsets: list[Any] = [0] * self.param.buffer.rank
        for a, at in self.param.outer():
            offsets[a] = at
        shape: list[int] = []
        axes: list[int] = []
        check: list[int] = []
        edges: dict[int, Edge] = {}
        walks: dict[int, str] = {}
        for part, start, extent in placed:
            offsets[part.axis] = start
            total = self.total(part)
            beyond = not _inside(start, extent, total)
            if beyond:
                check.append(part.axis)
            if part.single:
                continue
            if part.start is None and self.key(part) in program().windows:
                walks[len(shape)] = self.key(part)
            if beyond:
                edges[len(shape)] = Edge(total, start, zero, self.given)
            shape.append(extent)
            axes.append(part.axis)
        out = emit(offsets, tuple(shape), tuple(axes), tuple(check))
        if isinstance(out, TileValue) and (edges or walks):
            out.meta = Meta(edges, walks=walks)
        return out

    def __repr__(self) -> str:
        def text(p: Part) -> str:
            return f"{p.extent}" if p.extent is not None else f"{format_dim(self.total(p))}"
        return f"<window [{', '.join(text(p) for p in self.parts if not p.single)}] of {self.param.name}>"


def _demand(size_: Dim) -> None:
    """A tile shape needs this size: build the kernel again with an axis that it comes from as a number."""
    prog = current()
    if isinstance(prog, KernelProgram):
        for p in prog.params.values():
            for axis, n in enumerate(p.buffer.shape):
                if isinstance(n, Dim) and n.names & size_.names:
                    raise Demand(p.bound.keys[axis])


def default_extent(prog: KernelProgram, position: int, rank: int) -> int:
    return prog.tiles["N" if position == rank - 1 else "M"]


def _fit(value: TileValue, extents: Sequence[int | None], what: str) -> TileValue:
    """A value broadcast to the extents that are fixed already."""
    if value.rank == 0:
        known = [e for e in extents if e is not None]
        return dsl.broadcast_to(value, known) if len(known) == len(extents) else value
    if value.rank != len(extents):
        fail(f"cannot store a tile of rank {value.rank} to {what} of rank {len(extents)}",
             expected=f"a tile of rank {len(extents)}", received=str(value.type))
    return value


def _same_shape(value: TileValue, shape: tuple[int, ...], what: str) -> TileValue:
    if value.shape != shape and value.rank:
        fail(f"a tile of shape {list(value.shape)} does not match the window {list(shape)} of {what}",
             expected=f"a tile of shape {list(shape)}", received=str(value.type),
             hints=["slice the destination to the tile's extent: C[i:i + 64]", "reshape or broadcast the tile"])
    return value if value.shape == shape else dsl.broadcast_to(value, shape)


class Shared(Operators):
    """Memory of the program that its parts share: written by copies, read as a tile.

    It knows how many lanes the last copy filled with data.  Usually that is known where the memory is read; where a loop
    or conditional decides which copy came last (:class:`Volatile`), the extents are kept in memory beside it.
    """

    __slots__ = ("_reads", "_written", "buffer", "edges", "number", "valid")

    def __init__(self, buffer: Buffer):
        prog = program()
        self.buffer, self.number = buffer, prog.shared
        prog.shared += 1
        self.edges: dict[int, Edge] = {}
        self.valid: dict[int, Buffer] = {}
        self._written = list(prog.scopes)
        self._reads: list[tuple[list[Any], list[Any]]] = []  # (blocks open at a read, blocks open at the write it saw)

    @property
    def dtype(self) -> DType:
        return self.buffer.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.buffer.shape  # type: ignore[return-value]

    def __tile__(self) -> TileValue:
        out = dsl.load(self.buffer, None, self.shape)
        prog = program()
        if self.number in prog.volatile:
            edges = {a: Edge(dsl.load(b, (0,), ()), 0, True) for a, b in self.valid.items()}
        else:
            if not _open(self._written[-1], prog.scopes):
                raise Volatile(self.number)
            self._reads.append((list(prog.scopes), self._written))
            edges = self.edges
        if edges:
            out.meta = Meta(edges)
        return out

    def fill(self, value: Any) -> None:
        self.write(dsl.full(self.shape, value, self.dtype))

    def write(self, value: TileValue, pending: bool = False) -> None:
        """Replace the contents; a smaller tile goes to the corner, the rest becomes 0.

        Args:
            pending: the tile is there after a wait alone.
        """
        value = as_value(value)
        if value.rank != len(self.shape) or any(a > b for a, b in zip(value.shape, self.shape, strict=True)):
            fail(f"a tile of shape {list(value.shape)} does not fit shared memory of shape {list(self.shape)}",
                 expected=f"at most {list(self.shape)}", received=str(value.type))
        if value.shape != self.shape:
            dsl.store(self.buffer, None, dsl.zeros(self.shape, self.dtype))
        edges = dict(value.meta.edges) if value.meta is not None else {}
        beyond = tuple(a for a, e in edges.items() if not e.zero)
        if beyond:
            value = masked(value, 0, beyond)
        dsl.store(self.buffer, None, value, pending=pending)
        for axis, (n, whole) in enumerate(zip(value.shape, self.shape, strict=True)):
            if n != whole:
                edges.setdefault(axis, Edge(n))
        self._note({a: Edge(e.total, e.start, True) for a, e in edges.items()})

    def _note(self, edges: dict[int, Edge]) -> None:
        prog = program()
        if self.number in prog.volatile:
            for axis in range(len(self.shape)):
                limit = dsl.minimum(edges[axis].limit(), self.shape[axis]) if axis in edges else self.shape[axis]
                dsl.store(self._valid(axis), (0,), limit)
            return
        for read, write in self._reads:
            if any(_open(s, prog.scopes) and not _open(s, write) for s in read):
                raise Volatile(self.number)  # a loop reads first and writes later: its next iteration sees this write
        self.edges, self._written = edges, list(prog.scopes)

    def _valid(self, axis: int) -> Buffer:
        """The memory of the valid extent along an axis: allocated in the prologue, full until a copy changes it."""
        if axis not in self.valid:
            prog = program()
            with prog.before():
                self.valid[axis] = dsl.alloc((1,), int64)
                dsl.store(self.valid[axis], (0,), self.shape[axis])
        return self.valid[axis]

    def __repr__(self) -> str:
        return f"<shared memory {self.dtype}{list(self.shape)}>"


def _open(scope: Any, scopes: Sequence[Any]) -> bool:
    return any(s is scope for s in scopes)


class Register(Operators):
    """A variable of the kernel that operations change in place; loops carry it."""

    __slots__ = ("dtype", "shape", "value")
    is_register = True

    def __init__(self, shape: tuple[int, ...], dtype: DType):
        self.shape, self.dtype = shape, dtype
        self.value: TileValue | None = None

    def __tile__(self) -> TileValue:
        if self.value is None:
            fail(f"a register of shape {list(self.shape)} is read before it is filled", hints=["tile.fill(register, 0.0)"])
        return self.value

    def write(self, value: Any) -> None:
        v = as_value(value, self.dtype if isinstance(value, int | float) else None).to(self.dtype)
        if v.shape not in (self.shape, ()):
            fail(f"a tile of shape {list(v.shape)} does not fit a register of shape {list(self.shape)}",
                 expected=f"a tile of shape {list(self.shape)}", received=str(v.type))
        v = dsl.broadcast_to(v, self.shape)
        meta = v.meta or Meta()
        self.value = TileValue(v.value, v.const, v.dim, Meta(meta.edges, len(self.shape) == 1, meta.walks))

    def __repr__(self) -> str:
        return f"<register {self.dtype}{list(self.shape)}>"


# -- extents -----------------------------------------------------------------------------------------------------------
def _linear(x: Any) -> tuple[dict[Any, int], int]:
    """An index as a sum of integer multiples of values plus a number."""
    if isinstance(x, int):
        return {}, int(x)
    if isinstance(x, Dim):
        return {x: 1}, 0
    v = as_value(x)
    if isinstance(v.const, int):
        return {}, v.const
    if v.dim is not None:
        return {v.dim: 1}, 0
    return _linear_of(v.value)


def _linear_of(v: Value) -> tuple[dict[Any, int], int]:
    op = v.op
    if op is None:
        return {v: 1}, 0
    if op.name == "constant":
        return {}, int(op.attrs["value"])
    if op.name in ("add", "sub"):
        (a, ca), (b, cb) = _linear_of(op.operands[0]), _linear_of(op.operands[1])
        sign = 1 if op.name == "add" else -1
        terms = dict(a)
        for k, n in b.items():
            terms[k] = terms.get(k, 0) + sign * n
        return {k: n for k, n in terms.items() if n}, ca + sign * cb
    if op.name == "mul":
        for x, y in (op.operands, op.operands[::-1]):
            if y.op is not None and y.op.name == "constant":
                a, ca = _linear_of(x)
                by = int(y.op.attrs["value"])
                return {k: n * by for k, n in a.items() if by}, ca * by
    return {v: 1}, 0


def _distance(start: Any, stop: Any) -> int | None:
    """``stop - start`` where it is static."""
    (a, ca), (b, cb) = _linear(start), _linear(stop)
    return cb - ca if a == b else None


def _inside(start: Any, extent: int, total: DimLike) -> bool:
    """True when the window certainly lies inside the axis."""
    terms, offset = _linear(start)
    if not terms:
        return isinstance(total, int) and offset >= 0 and offset + extent <= total
    if offset == 0 and len(terms) == 1:
        (v, n), = terms.items()
        known = program().multiples.get(v) if isinstance(v, Value) else None
        return known is not None and n == 1 and known[1] == total and extent <= known[0] and divisible(total, known[0])
    return False


_HOOKS["demand"] = _demand

__all__ = ["Demand", "Extent", "KernelProgram", "Param", "Part", "Register", "Shared", "SizeValue", "Volatile", "Window", "program"]
