"""The operations of ``@ts.kernel`` bodies: the functions of the public ``tile`` namespace.

They accept parameters, windows, shared memory, registers and tiles alike.  Pointwise functions come from ``dsl.py``.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable
from typing import Any

from ..ir.tile import COMBINES
from ..types.dims import ceildiv
from ..types.dtypes import as_dtype
from ..types.promotion import accumulator
from . import dsl
from .control import TileRange
from .dsl import where
from .edges import masked, plain, valid_lanes
from .kernel_values import KernelProgram, Param, Part, Register, Shared, Window, program
from .values import _HOOKS, Buffer, Edge, Meta, TileValue, as_value, current, fail, internal, static_shape

internal(__file__)


# -- configuration -----------------------------------------------------------------------------------------------------
class Context:
    """The configuration of the running kernel: ``ctx.M``, ``ctx.N``, ``ctx.K`` are the extents of its tiles."""

    def __init__(self, prog: KernelProgram):
        self._prog = prog

    def __getattr__(self, name: str) -> int:
        tiles = self._prog.tiles
        if name in tiles:
            return tiles[name]
        if name in {plain(k) for p in self._prog.params.values() for k in p.bound.keys}:
            return tiles["N"]
        from ..errors import suggest
        fail(f"tile.context() has no {name!r}{suggest(name, tiles)}", expected=", ".join(tiles))

    def __repr__(self) -> str:
        return f"<tile context {self._prog.tiles}>"


def context() -> Context:
    """The tile configuration: ``M``, ``N``, ``K``, or any named size of the kernel's parameters."""
    return Context(program())


# -- loops -------------------------------------------------------------------------------------------------------------
class KernelRange(TileRange):
    """``tile.range``: the outermost one over a parameter's axis is spread over the grid (see :class:`Kernel`)."""

    def __init__(self, lo: Any, hi: Any, step: Any, attrs: dict[str, Any], key: str | None):
        super().__init__(lo, hi, step, attrs)
        self.key = key

    def item(self, i: TileValue) -> Any:
        """What the loop variable stands for."""
        return i


class SplitRange(KernelRange):
    """``tile.split``: one iteration for each block of a window."""

    def __init__(self, window: Window, extents: tuple[int, ...]):
        self.window, self.extents = window, extents
        open_ = [p for p in window.parts if not p.single]
        self.counts = [ceildiv(p.extent if p.extent is not None else window.total(p), e) for p, e in zip(open_, extents, strict=True)]
        total: Any = 1
        for n in self.counts:
            total = total * n
        super().__init__(0, total, 1, {}, None)

    def item(self, i: TileValue) -> Window:
        at: list[Any] = []
        rest: Any = i
        for n in reversed(self.counts):
            at.append(rest % n)
            rest = rest // n
        where_ = iter(zip(reversed(at), self.extents, strict=True))
        parts = []
        for p in self.window.parts:
            if p.single:
                parts.append(p)
                continue
            k, e = next(where_)
            parts.append(Part(p.axis, k * e if p.start is None else p.start + k * e, e))
        return Window(self.window.param, parts)


def range(*bounds: Any, step: Any = None, **attrs: Any) -> KernelRange:
    """``tile.range(stop)``, ``tile.range(start, stop, step)``: a loop over positions of tiles.

    The outermost loop over an axis of a parameter (``tile.range(Q.shape[1], step=128)``), and loops that stand directly in it, run
    their iterations as separate programs, if each store depends on them and nothing goes from one iteration to the next; other
    loops, and those with ``parallel=False``, are sequential.
    """
    parallel = attrs.pop("parallel", True)
    plain = dsl.range(*bounds, step=step, **attrs)
    key = getattr(plain.hi, "key", None)
    whole = isinstance(plain.lo, int) and plain.lo == 0 and isinstance(plain.step, int)
    return KernelRange(plain.lo, plain.hi, plain.step, plain.attrs, key if parallel and whole else None)


_LEVELS = {"L2": (128, 256), "L1": (32, 64), "register": (4, 16)}


def split(x: Any, level: str = "L1", shape: Any = None) -> SplitRange:
    """The blocks of a parameter or window, sized for a memory level (``"L2"``, ``"L1"``, ``"register"``) or by ``shape``."""
    window = _window(x, "split")
    rank = builtins.sum(not p.single for p in window.parts)
    if shape is None:
        if level not in _LEVELS:
            from ..errors import suggest
            fail(f"split has no level {level!r}{suggest(level, _LEVELS)}", expected=", ".join(_LEVELS))
        shape = (1,) * (rank - 2) + _LEVELS[level][-rank:] if rank else ()
    extents = static_shape(shape)
    if len(extents) != rank:
        fail(f"split: blocks of rank {len(extents)} do not divide {window!r}")
    own = [p.extent for p in window.parts if not p.single]
    return SplitRange(window, tuple(e if o is None else builtins.min(e, o) for e, o in zip(extents, own, strict=True)))


# -- memory ------------------------------------------------------------------------------------------------------------
def _window(x: Any, what: str) -> Window:
    if isinstance(x, Param):
        return x.whole()
    if isinstance(x, Window):
        return x
    fail(f"{what} takes a parameter of the kernel or a window of it, not {x!r}")


def _given_shape(shape: tuple[Any, ...], keyword: Any) -> tuple[int, ...]:
    dims = keyword if keyword is not None else shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape
    return static_shape(dims, "tile shape")


def load(x: Any, offsets: Any = None, shape: Any = None, *, fill: Any = None, mask: Any = None) -> Any:
    """A tile of a parameter or window; lanes outside the tensor give ``fill``, and reductions and products leave them out.

    Args:
        offsets: a position for each axis that the body sees; without it, the program's own window.
        shape: the tile's static extents; without it, the window's, or the configuration's.
        fill: 0 if not given.  Where it is given, the tile may take any shape: a reshape makes data of the lanes outside.

    An axis that is loaded in pieces and that the kernel does not write along is walked by ``mma`` and ``matmul``.

    Raises:
        KernelError: the shape is not static, or its rank does not fit.
    """
    if isinstance(x, Shared | Register | TileValue):
        return as_value(x)
    window = _window(x, "load")
    open_ = [k for k, p in enumerate(window.parts) if not p.single]
    parts = list(window.parts)
    extents = None if shape is None else _given_shape((), shape)
    if extents is not None and len(extents) != len(open_):
        fail(f"load: a tile of rank {len(extents)} from {window!r} of rank {len(open_)}",
             expected=f"a shape of {len(open_)} extents", received=str(list(extents)))
    where_ = None if offsets is None else tuple(offsets) if isinstance(offsets, tuple | list) else (offsets,)
    if where_ is not None and (len(where_) != len(open_) or extents is None):
        fail(f"load: {window!r} takes {len(open_)} offsets together with a shape")
    for n, k in enumerate(open_):
        p = parts[k]
        start = p.start if where_ is None else where_[n] if p.start is None else p.start + where_[n]
        extent = extents[n] if extents is not None else p.extent
        if p.extent is not None and extent is not None and extent > p.extent and where_ is None:
            fail(f"load: a tile of extent {extent} does not fit {window!r}")
        parts[k] = Part(p.axis, start, extent) if start is not None or extent is not None else p
    made = Window(window.param, parts)
    made.given, fill = fill is not None, 0 if fill is None else fill
    if mask is None and not fill and builtins.any(p.start is None and not made.fits(p) for p in parts):
        made.deferred = None
        return made
    return made.load(fill=fill, mask=mask)


def store(x: Any, value: Any, mask: Any = None) -> None:
    """Write a tile to a window, or to the program's own window of a parameter; lanes outside the tensor are skipped.

    Raises:
        KernelError: the tile's shape does not match the window.
    """
    v = as_value(value)
    if isinstance(x, Register | Shared):
        x.write(v)
        return
    window = _window(x, "store")
    window.store(v, mask)


def _flat(x: Any, index: Any, what: str) -> tuple[Buffer, TileValue, TileValue]:
    """The memory, row-major offsets of an index along the only axis that the body sees, clamped, and which are inside it and data."""
    i = as_value(index).to("int64")
    outer: dict[int, TileValue] = {}
    if isinstance(x, Shared) and len(x.shape) == 1:
        buffer, total = x.buffer, as_value(x.shape[0])
    elif isinstance(x, Param) and len(x.inner) == 1:
        buffer, total, outer = x.buffer, as_value(dsl.size(x.buffer.shape[x.inner[0]])), dict(x.outer())
    else:
        name = getattr(x, "name", "X")
        fail(f"{what} takes a parameter with one axis inside the kernel, or shared memory with one, not {x!r}",
             hints=[f"a window with a tile of its shape: {what}({name}[i:i + 16, j:j + 16], tile)"] if what.startswith("atomic") else
             [f"load or store a window: {name}[i:i + 16, j:j + 16]"])
    flat: Any = 0
    for axis, n in enumerate(buffer.shape):
        flat = flat * dsl.size(n) + (outer[axis] if axis in outer else dsl.maximum(dsl.minimum(i, total - 1), 0))
    return buffer, flat, (i >= 0) & (i < total)


def gather(x: Param | Shared, index: Any, fill: Any = 0) -> TileValue:
    """The elements of a parameter (or of shared memory) at the positions ``index`` (an integer tile); positions outside give ``fill``."""
    buffer, flat, inside = _flat(x, index, "gather")
    return dsl.gather(buffer, flat, mask=inside, fill=fill)


def scatter(x: Param | Shared, index: Any, value: Any) -> None:
    """Write ``value`` to the positions ``index``; positions outside and lanes that are no data are skipped, of equal ones the last lane
    wins."""
    buffer, flat, inside = _flat(x, index, "scatter")
    v = as_value(value)
    dsl.scatter(buffer, flat, v, mask=data_lanes(inside, as_value(index), v))


def data_lanes(inside: TileValue, *tiles: TileValue) -> TileValue:
    """``inside``, but for the lanes in which one of the tiles has no data."""
    for t in tiles:
        seen = valid_lanes(t)
        inside = inside if seen is None else inside & (dsl.broadcast_to(seen, inside.shape) if seen.shape != inside.shape else seen)
    return inside


def alloc_shared(*shape: Any, dtype: object = None, **options: Any) -> Shared:
    """Memory shared by the parts of a program: ``alloc_shared(64, 64, dtype=ts.bf16)`` or ``shape=(64, 64)``.

    ``swizzle=`` is a placement hint for targets with banked memory.
    """
    extents = _given_shape(shape, options.pop("shape", None))
    options.pop("swizzle", None)
    _no_more("alloc_shared", options, ("shape", "dtype", "swizzle"))
    return Shared(dsl.alloc(extents, _dtype(dtype, "alloc_shared"), "shared"))


def alloc(placed: Any) -> Shared | Register:
    """Memory for a type with its place: ``tile.alloc(Tensor["64", ts.f32] @ memory("shared"))``, or a field of a ``@ts.memory`` class.

    Raises:
        KernelError: it is no placed type, has no dtype or no fixed sizes, or its space is not the block's own.
    """
    space, spec = getattr(placed, "space", None), getattr(placed, "spec", None)
    if spec is None:
        fail("alloc() takes a tensor type with its place", hints=['tile.alloc(Tensor["64", ts.f32] @ memory("shared"))'])
    make = {"shared": alloc_shared, "register": alloc_register}.get(str(space))
    if make is None:
        fail(f"a block cannot allocate memory({str(space)!r}): it has registers and shared memory",
             hints=["take tensors elsewhere as parameters of the kernel"])
    made: Shared | Register = make(shape=spec.dims or (), dtype=spec.dtype)  # type: ignore[assignment]
    return made


def alloc_register(*shape: Any, dtype: object = None, **options: Any) -> Register:
    """A variable for a tile: ``alloc_register(128, dtype=ts.f32)`` holds one value for each row."""
    extents = _given_shape(shape, options.pop("shape", None))
    _no_more("alloc_register", options, ("shape", "dtype"))
    made = Register(extents, as_dtype(_dtype(dtype, "alloc_register")))
    program().registers.append(made)
    return made


def _dtype(dtype: object, what: str) -> object:
    if dtype is None:
        fail(f"{what} needs a dtype", hints=["dtype=ts.f32"])
    return dtype


def _no_more(what: str, options: dict[str, Any], known: tuple[str, ...]) -> None:
    if options:
        from ..errors import suggest
        name = next(iter(options))
        fail(f"{what} has no argument {name!r}{suggest(name, known)}", expected=", ".join(known))


def fill(x: Any, value: Any) -> None:
    """Set every element of a register or of shared memory."""
    if isinstance(x, Register):
        x.write(value)
    elif isinstance(x, Shared):
        x.fill(value)
    else:
        fail(f"fill sets registers and shared memory, not {x!r}", hints=["for a new tile: tile.full(shape, value, dtype)"])


def copy(src: Any, dst: Any) -> None:
    """Copy a window, shared memory or a tile to another place; a smaller source leaves zeros around it."""
    _copy(src, dst, False)


def _copy(src: Any, dst: Any, pending: bool) -> None:
    """``pending``: what goes to shared memory is there after a wait, and forms a group."""
    if isinstance(dst, Shared):
        value = _window(src, "copy").load(dst.shape) if isinstance(src, Param | Window) else as_value(src)
        dst.write(value.to(dst.dtype), pending)
        if pending:
            current().emit("copy_commit", (), None, {})
    elif isinstance(dst, Register):
        dst.write(src)
    else:
        store(dst, src)


def load_async(dst: Any, src: Any) -> None:
    """Start a copy into shared memory or a register; complete after :func:`barrier`."""
    _copy(src, dst, True)


def async_copy(src: Any, dst: Any, size: Any = None, stage: int = 0) -> None:
    """Start a copy in either direction; complete after :func:`wait_async` or :func:`barrier`.

    Each copy into shared memory is a group of its own.  Reading the memory before its group was waited for is a race, which the
    interpreter reports.
    """
    if size is not None and isinstance(src, Param | Window):
        src = load(src, shape=size)
    _copy(src, dst, True)


def wait_async(stage: int = 0) -> None:
    """Wait until at most ``stage`` groups of copies into shared memory, the latest, are pending."""
    if not isinstance(stage, int) or isinstance(stage, bool) or stage < 0:
        fail(f"wait_async: stage is a number of copies that may pend, not {stage!r}", expected="0, 1, 2, …")
    current().emit("copy_wait", (), None, {"pending": stage})


def barrier() -> None:
    """Wait for all copies and for every part of the program."""
    current().emit("copy_wait", (), None, {"pending": 0})


def load_shared(x: Shared) -> TileValue:
    """The contents of shared memory as a tile."""
    return as_value(x)


def store_shared(x: Shared, value: Any) -> None:
    """Write a tile to shared memory."""
    if not isinstance(x, Shared):
        fail(f"store_shared writes shared memory, not {x!r}")
    x.write(as_value(value).to(x.dtype))


# -- products ----------------------------------------------------------------------------------------------------------
def _dot(a: TileValue, b: TileValue, acc: TileValue | None) -> TileValue:
    """A product in which lanes without data along the contraction contribute nothing."""
    return dsl.dot(_zero_beyond(a, 1), _zero_beyond(b, 0), acc)


def _zero_beyond(x: TileValue, axis: int) -> TileValue:
    edge = x.meta.edges.get(axis) if x.meta is not None else None
    return x if edge is None or edge.zero else masked(x, 0, (axis,))


def _open(x: Any, k: int) -> Part | None:
    """The k-th axis of a matrix that ``load`` left unplaced, or None."""
    if not isinstance(x, Window) or x.deferred is False:
        return None
    part = [p for p in x.parts if not p.single][k]
    return part if part.start is None else None


def _placed(a: Any, b: Any) -> tuple[Any, Any, tuple[Part, Part] | None]:
    """Operands of a product with their unplaced axes resolved, and the contraction axes if they are longer than a tile.

    Rows of ``a`` and columns of ``b`` follow the program's windows, also where both axes have the same name; the
    contraction never does.
    """
    row, column = _open(a, 0), _open(b, 1)
    if row is not None and column is not None and a.key(row) == b.key(column):
        b = b.replaced(column, Part(column.axis, None, column.extent, key=b.key(column) + "'"))
    pa, pb = _open(a, 1), _open(b, 0)
    long_a, long_b = pa is not None and not a.fits(pa), pb is not None and not b.fits(pb)
    if long_a and long_b:
        assert pa is not None and pb is not None
        return a, b, (pa, pb)
    if long_a or long_b:
        fail("mma: one operand is loaded in pieces along the contraction, the other is not", received=f"{a!r} by {b!r}",
             hints=["load both with equal extents along it", "loop over it with tile.range"])
    a = a if pa is None else a.replaced(pa, Part(pa.axis, 0, pa.extent))
    b = b if pb is None else b.replaced(pb, Part(pb.axis, 0, pb.extent))
    return a, b, None


def _walk(a: Window, b: Window, pa: Part, pb: Part, acc: TileValue | None) -> TileValue:
    """The product of two windows along an axis that is longer than one tile: a loop over its pieces."""
    step = pa.extent
    if step != pb.extent or step is None:
        fail(f"mma: the contraction is loaded in pieces of {step} and of {pb.extent}", expected="equal extents",
             received=f"{a!r} by {b!r}")
    total, other = a.total(pa), b.total(pb)
    if total != other:
        fail(f"mma: inner sizes differ: {total} vs {other}", received=f"{a!r} by {b!r}")
    shape = a.extent_along(0), b.extent_along(1)
    start = acc if acc is not None else dsl.zeros(shape, dsl._dot_dtype(a.dtype, b.dtype))

    def add(k: TileValue, c: Any) -> Any:
        program().multiples[k.value] = (step, total)
        return _dot(a.replaced(pa, Part(pa.axis, k, step)).load(), b.replaced(pb, Part(pb.axis, k, step)).load(), c)

    return dsl.for_loop((0, dsl.size(total), step), start, add, index_name="k")  # type: ignore[no-any-return]


def dot(a: Any, b: Any, acc: Any = None) -> TileValue:
    """``acc + a @ b`` of matrices, in the accumulator's dtype (f32 for 16-bit and smaller floats).

    Raises:
        KernelError: the shapes do not fit, or the dtypes have no product.
    """
    tiles = program().tiles
    if isinstance(a, Param):
        a = load(a, shape=(tiles["M"], tiles["K"]))
    if isinstance(b, Param):
        b = load(b, shape=(tiles["K"], tiles["N"]))
    start = None if acc is None else as_value(acc)
    for x in (a, b):
        if builtins.len(x.shape) != 2:
            fail(f"a product takes matrices, not {x!r}")
    a, b, walk = _placed(a, b)
    return _walk(a, b, *walk, start) if walk is not None else _dot(as_value(a), as_value(b), start)


def mma(*args: Any) -> TileValue:
    """``mma(a, b)``, ``mma(a, b, c)``: the product (plus c).  ``mma(d, a, b, c)`` puts it into the register ``d``."""
    if len(args) == 4:
        d, a, b, c = args
        if not isinstance(d, Register | Shared):
            fail(f"mma(d, a, b, c) writes a register, not {d!r}")
        from .fragments import check_sides
        check_sides(d, a, b, c)
        out = dot(a, b, c)
        d.write(out)
        return out
    if len(args) not in (2, 3):
        fail(f"mma takes 2 to 4 operands, got {len(args)}", expected="mma(a, b), mma(a, b, c) or mma(d, a, b, c)")
    return dot(*args)


def matmul(a: Any, b: Any, out: Any = None) -> Any:
    """``a @ b``; with a third operand the product is written there, and that operand is returned."""
    product = dot(a, b)
    if out is None:
        return product
    store(out, product)
    return out


# -- reductions --------------------------------------------------------------------------------------------------------
def _identity(combine: str, x: TileValue) -> Any:
    nothing = False if x.dtype.kind == "bool" else 0
    return {"add": 0, "mul": 1, "max": x.dtype.min, "min": x.dtype.max, "and": True if x.dtype.kind == "bool" else -1, "or": nothing,
            "xor": nothing}[combine]


def reduce(x: Any, axis: int, combine: str = "add", keepdims: bool = False) -> TileValue:
    """Reduce an axis (``combine``: add mul max min and or xor); lanes outside the data take no part.

    Reducing the last axis of a matrix gives one value for each row, which broadcasts along rows again.
    """
    v = as_value(x)
    if combine not in COMBINES:
        from ..errors import suggest
        fail(f"no reduction is called {combine!r}{suggest(combine, COMBINES)}", expected=" ".join(COMBINES))
    if combine in ("add", "mul"):
        v = v.to(accumulator(v.dtype))
    k = dsl.normal_axis(axis, v.rank)
    if v.meta is not None and k in v.meta.edges and not (combine == "add" and v.meta.edges[k].zero):
        v = masked(v, _identity(combine, v), (k,))
    out = dsl.reduce(v, k, combine, keepdims)
    if out.rank == 1 and v.rank == 2 and k == 1:
        out.meta = Meta(out.meta.edges if out.meta else None, True, out.meta.walks if out.meta else None)
    return out


def _axes(v: TileValue, axis: Any) -> list[int]:
    """The axes that a reduction takes, last first."""
    given = builtins.range(v.rank) if axis is None else axis if isinstance(axis, tuple | list) else (axis,)
    return sorted({dsl.normal_axis(a, v.rank) for a in given}, reverse=True)


def _reduction(name: str, combine: str) -> Callable[..., TileValue]:
    def op(x: Any, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> TileValue:
        v = as_value(x)
        for k in _axes(v, axis):
            v = reduce(v, k, combine, keepdims)
        return v

    op.__name__ = op.__qualname__ = name
    op.__doc__ = f"``{combine}`` along an axis or several (None: all); sums of small floats run in f32, of integers in 64 bits."
    return op


sum = _reduction("sum", "add")
prod = _reduction("prod", "mul")
max = _reduction("max", "max")
min = _reduction("min", "min")
any = _reduction("any", "or")
all = _reduction("all", "and")


def mean(x: Any, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> TileValue:
    """The mean along an axis or several (None: all), over the lanes that are data."""
    v = as_value(x)
    axes = _axes(v, axis)
    static, computed = 1, None  # type: tuple[int, TileValue | None]
    for k in axes:
        if v.meta is not None and k in v.meta.edges:
            here = dsl.minimum(v.meta.edges[k].limit(), v.shape[k])
            computed = here if computed is None else computed * here
        else:
            static *= v.shape[k]
    total: TileValue = sum(v, tuple(axes), keepdims)
    if computed is None:
        return total / static
    return total / (computed * static).to(total.dtype if total.dtype.is_float else "f32")


# -- softmax -----------------------------------------------------------------------------------------------------------
def _decay(old: TileValue, new: TileValue) -> TileValue:
    """``exp(old - new)``, 0 where nothing has been seen yet."""
    return where(old == float("-inf"), 0.0, dsl.exp(old - where(new == float("-inf"), 0.0, new)))


def _rows(x: Any) -> TileValue:
    """A rank-1 tile that stands for the rows of a matrix."""
    v = as_value(x)
    return TileValue(v.value, v.const, v.dim, Meta(v.meta.edges if v.meta else None, True, v.meta.walks if v.meta else None))


def online_softmax(scores: Any, m: Any, l: Any) -> tuple[TileValue, TileValue, TileValue]:
    """One step of a softmax over rows that arrive in pieces.

    Args:
        scores: the piece, ``[rows, columns]``; columns outside the data count as -inf.
        m, l: each row's running maximum (from -inf) and running sum (from 0).

    Returns:
        The new maximum, the new sum, and ``exp(scores - new maximum)``.
    """
    s, old, total = masked(as_value(scores), float("-inf"), (1,)), _rows(m), _rows(l)
    new = dsl.maximum(old, _rows(dsl.reduce(s, 1, "max")))
    p = dsl.exp(s - where(new == float("-inf"), 0.0, new))
    if p.meta is not None:  # exp(-inf) is 0
        p.meta = Meta({a: Edge(e.total, e.start, a == 1, e.given) for a, e in p.meta.edges.items()}, walks=p.meta.walks)
    out = total * _decay(old, new) + dsl.reduce(p, 1, "add")
    return _rows(new), _rows(out), p


def update_accumulator(acc: Any, update: Any, m_old: Any, m_new: Any, l_old: Any = None, l_new: Any = None) -> TileValue:
    """``acc = acc * exp(m_old - m_new) + update``: rescale what was summed under the old maximum, and add.

    Changes the register ``acc`` and returns its new value.
    """
    out = as_value(acc) * _decay(_rows(m_old), _rows(m_new)) + as_value(update)
    if isinstance(acc, Register):
        acc.write(out)
    return out


_HOOKS["kernel_store"] = store

# -- the namespace -----------------------------------------------------------------------------------------------------
POINTWISE_NAMES = tuple(sorted(n for n in dsl.POINTWISE if n not in ("convert", "bitcast")))
NAMES = (
    "alloc", "alloc_register", "alloc_shared", "async_copy", "barrier", "context", "copy", "dot", "fill", "gather", "load", "load_async",
    "load_shared", "matmul", "mma", "online_softmax", "range", "reduce", "scatter", "split", "store", "store_shared",
    "update_accumulator", "wait_async", "sum", "prod", "max", "min", "any", "all", "mean",
)
FROM_DSL = ("broadcast_to", "cdiv", "concat", "constant", "extract", "full", "iota", "arange", "program_id", "reshape",
            "static_range", "transpose", "where", "zeros", "convert", "bitcast", "tile_function")
