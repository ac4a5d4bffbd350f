"""The tile language: how kernels and lowerings write Tile IR in Python.

    from tessera.tiling import dsl as tile

    @tile.tile_function
    def row_sum(x, o, n):
        i = tile.program_id(0)
        acc = tile.full((16,), 0.0, f32)
        for j in tile.range(0, n, 16):
            acc = acc + tile.load(x, (i, j), (16,), check=(1,))
        tile.store(o, (i,), tile.sum(acc))

    program = tile.TileProgram("row_sum", [("x", BufferType(f32, (B, N))), ("o", BufferType(f32, (B,)))], ["B", "N"], grid=(B,))
    fn = tile.build(program, row_sum, N)

A body runs once, as Python, and the operations it calls build the program (so helper functions, closures, Python lists
of tiles and loops over static values need no special form).  :func:`tile_function` rewrites ``for`` over
:func:`range`, ``while`` and ``if`` on traced scalars into :func:`for_loop`, :func:`while_loop` and :func:`cond`; these
can also be called directly.
"""

from __future__ import annotations

import builtins
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from ..ir.core import INDEX, BufferType, Function, ScalarType, TileType
from ..ir.tile import ATOMICS, COMBINES, dot_problem, element, root
from ..types.dims import Dim, DimLike, ceildiv, substitute
from ..types.dtypes import DType, as_dtype, bool_, int64
from ..types.promotion import accumulator
from .control import TileRange, cond, for_loop, while_loop
from .rewrite import tile_function
from .values import (
    _HOOKS,
    POINTWISE,
    Buffer,
    Number,
    TileProgram,
    TileValue,
    agree,
    as_value,
    binary,
    broadcast_to,
    conform,
    constant,
    current,
    fail,
    index_value,
    internal,
    literal,
    location,
    normal_axis,
    pointwise,
    reshape,
    size,
    static_shape,
    tracing,
    transpose,
    typed,
    unary,
)

internal(__file__)


def build(program: TileProgram, body: Callable[..., Any] | None = None, *args: Any, **kwargs: Any) -> Function:
    """Run ``body(*buffers, *args, **kwargs)`` in ``program`` and return the verified Tile function.

    Raises:
        KernelError: the body is not a valid tile program.
    """
    if body is not None:
        with program:
            body(*program.buffers, *args, **kwargs)
    return program.finish()


# -- the grid and index arithmetic -------------------------------------------------------------------------------------
def program_id(axis: int) -> TileValue:
    """The block's position along a grid axis."""
    prog = current()
    grid = prog.fn.attrs["grid"]
    if not 0 <= axis < len(grid):
        fail(f"program_id({axis}): the grid has {len(grid)} axes",
             hints=["the outermost loops over tile.range make the grid: for i in tile.range(X.shape[0], step=64)"])
    with prog.before():
        return prog.memo(("program_id", axis), lambda: prog.emit("program_id", (), INDEX, {"axis": axis}))


def evaluate(expr: DimLike, env: dict[str, Any]) -> Any:
    """A size expression whose loop names are bound to traced integers (``env``); the rest are sizes.

    Gives a number where it is one, else an int64 scalar.
    """
    if isinstance(expr, int):
        return expr
    known = {n: v for n, v in env.items() if isinstance(v, int | Dim)}
    expr = substitute(expr, known) if known else expr
    if isinstance(expr, int) or not expr.names & env.keys():
        return size(expr)
    apply = {"floordiv": "floor_div", "mod": "mod", "max": "maximum", "min": "minimum"}
    total: Any = 0
    static: DimLike = 0
    for mono, coefficient in expr.terms:
        names = Dim(((mono, 1),)).names if mono else frozenset()
        if not names & env.keys():
            static = static + (Dim(((mono, coefficient),)) if mono else coefficient)
            continue
        term: Any = 1
        fixed: DimLike = coefficient
        for a, power in mono:
            if isinstance(a, str):
                factor = env.get(a)
                if factor is None:
                    fixed = fixed * Dim((((((a, power),)), 1),))
                    continue
            else:
                factor = binary(apply[a[0]], index_value(evaluate(a[1], env)), index_value(evaluate(a[2], env)))
            for _ in builtins.range(power):
                term = factor * term
        total = total + term * fixed
    return total + static if static != 0 else total


def cdiv(a: Any, b: Any) -> Any:
    """``a / b`` rounded up, on numbers, sizes and integer scalars."""
    if isinstance(a, int | Dim) and isinstance(b, int | Dim):
        return ceildiv(a, b)
    return (a + (b - 1)) // b


def range(*bounds: Any, step: Any = None, **attrs: Any) -> TileRange:
    """``range(stop)``, ``range(start, stop, step)``: a sequential loop of the kernel, for ``for`` in a tile function.

    Bounds are numbers, sizes or integer scalars; other keywords (``unroll=4``) become attributes of the loop.
    """
    if not 1 <= len(bounds) <= 3:
        fail(f"range takes 1 to 3 bounds, got {len(bounds)}")
    lo, hi = (0, bounds[0]) if len(bounds) == 1 else bounds[:2]
    by = bounds[2] if len(bounds) == 3 else 1 if step is None else step
    if isinstance(by, int) and by <= 0:
        fail(f"the step of a range is positive, not {by}")
    return TileRange(lo, hi, by, attrs)


def static_range(*bounds: int) -> builtins.range:
    """A Python ``range``: the loop is unrolled while the kernel is built.

    Raises:
        KernelError: a bound is not static.
    """
    for b in bounds:
        if isinstance(b, TileValue | Dim) and not isinstance(getattr(b, "const", None), int):
            fail("the bounds of static_range are numbers known when the kernel is built", hints=["use tile.range"])
    return builtins.range(*bounds)


# -- memory ------------------------------------------------------------------------------------------------------------
def _offsets(buffer: Buffer, offsets: Any) -> list[TileValue]:
    given = (0,) * buffer.rank if offsets is None else tuple(offsets) if isinstance(offsets, tuple | list) else (offsets,)
    if len(given) != buffer.rank:
        fail(f"{buffer.type} takes {buffer.rank} offsets, got {len(given)}")
    return [index_value(o) for o in given]


def _buffer(x: Any, what: str) -> Buffer:
    if not isinstance(x, Buffer):
        fail(f"{what} takes a buffer, not {x!r}")
    return x


def _where(buffer: Buffer, shape: tuple[int, ...], axes: Sequence[int] | None, check: Iterable[int] | bool) -> dict[str, Any]:
    """The attributes ``axes`` and ``check``, validated."""
    if len(shape) > buffer.rank:
        fail(f"a tile of rank {len(shape)} does not lie in {buffer.type}")
    trailing = builtins.range(buffer.rank - len(shape), buffer.rank)
    along = tuple(normal_axis(a, buffer.rank) for a in (trailing if axes is None else axes))
    if len(along) != len(shape) or len(set(along)) != len(along):
        fail(f"axes {along} do not place a tile of shape {list(shape)} in {buffer.type}")
    where: dict[str, Any] = {"axes": along}
    checked = along if check is True else () if check is False else tuple(sorted({normal_axis(a, buffer.rank) for a in check}))
    if checked:
        where["check"] = checked
    return where


def _mask(mask: Any, shape: tuple[int, ...]) -> TileValue:
    m = as_value(mask)
    if m.dtype is not bool_:
        fail(f"a mask is bool, not {m.dtype}", hints=["compare: mask=x > 0"])
    return broadcast_to(m, shape)


def load(buffer: Buffer, offsets: Any = None, shape: Any = (), *, axes: Sequence[int] | None = None,
         check: Iterable[int] | bool = (), fill: Any = 0, mask: Any = None) -> TileValue:
    """A tile of ``shape`` at ``offsets`` (one for each buffer axis); the empty shape loads one element.

    Args:
        axes: the buffer axes along which the tile lies (default: the trailing ones).
        check: axes along which lanes may fall outside and then give ``fill``; True: all of the tile's axes.
        mask: a bool tile; lanes where it is false give ``fill`` and read nothing.

    Raises:
        KernelError: ranks, dtypes or axes do not fit, or the shape is not static.
    """
    buffer = _buffer(buffer, "load")
    extents = static_shape(shape)
    attrs = _where(buffer, extents, axes, check)
    operands: list[Any] = [buffer, *_offsets(buffer, offsets)]
    if mask is not None:
        operands.append(_mask(mask, extents))
        attrs["masked"] = True
    if "check" in attrs or mask is not None:
        attrs["fill"] = literal(fill, buffer.dtype)
    current().read.add(root(buffer.value))
    return current().emit("load", operands, element(buffer.dtype, extents), attrs)


def store(buffer: Buffer, offsets: Any, value: Any, *, axes: Sequence[int] | None = None,
          check: Iterable[int] | bool = (), mask: Any = None, pending: bool = False) -> None:
    """Write a tile or scalar (converted to the buffer's dtype) at ``offsets``; keywords as in :func:`load`.

    Args:
        pending: it is written after the next ``copy_wait`` for its group alone (shared memory).

    Raises:
        KernelError: ranks, dtypes or axes do not fit.
    """
    buffer = _buffer(buffer, "store")
    v = as_value(value, buffer.dtype if isinstance(value, Number) else None).to(buffer.dtype)
    attrs = _where(buffer, v.shape, axes, check)
    operands: list[Any] = [buffer, *_offsets(buffer, offsets), v]
    if mask is not None:
        operands.append(_mask(mask, v.shape))
        attrs["masked"] = True
    if pending:
        attrs["async"] = True
    current().written.add(root(buffer.value))
    current().emit("store", operands, None, attrs)


def prefetch(buffer: Buffer, offsets: Any) -> None:
    """A hint that the element at ``offsets`` is read soon; it may lie outside the buffer, and nothing depends on it."""
    buffer = _buffer(buffer, "prefetch")
    current().emit("prefetch", [buffer, *_offsets(buffer, offsets)])


def gather(buffer: Buffer, flat: Any, *, mask: Any = None, fill: Any = 0) -> TileValue:
    """The elements at row-major offsets ``flat`` (an integer tile)."""
    buffer = _buffer(buffer, "gather")
    where = as_value(flat).to(int64)
    operands: list[Any] = [buffer, where]
    attrs: dict[str, Any] = {}
    if mask is not None:
        operands.append(_mask(mask, where.shape))
        attrs = {"masked": True, "fill": literal(fill, buffer.dtype)}
    current().read.add(root(buffer.value))
    return current().emit("gather", operands, element(buffer.dtype, where.shape), attrs)


def scatter(buffer: Buffer, flat: Any, value: Any, *, mask: Any = None) -> None:
    """Write ``value`` to row-major offsets ``flat``; of equal offsets in one tile the last lane wins."""
    buffer = _buffer(buffer, "scatter")
    where = as_value(flat).to(int64)
    v = broadcast_to(as_value(value, buffer.dtype if isinstance(value, Number) else None).to(buffer.dtype), where.shape)
    operands: list[Any] = [buffer, where, v]
    attrs: dict[str, Any] = {}
    if mask is not None:
        operands.append(_mask(mask, where.shape))
        attrs["masked"] = True
    current().written.add(root(buffer.value))
    current().emit("scatter", operands, None, attrs)


def atomic(buffer: Buffer, flat: Any, value: Any, combine: str = "add") -> None:
    """Combine ``value`` into the elements at row-major offsets ``flat``, whatever other blocks do to them meanwhile.

    Only integers of 32 and 64 bits: for them the order in which blocks come changes nothing.
    """
    buffer = _buffer(buffer, "atomic")
    if not buffer.dtype.is_integer or buffer.dtype.bits < 32:
        fail(f"atomics work on integers of 32 or 64 bits, not on {buffer.dtype}",
             sentence="The order in which blocks come would change the bits of a floating-point sum.",
             hints=["scale to integers first", "give every block an element of its own and reduce afterwards"])
    if combine not in ATOMICS:
        from ..errors import suggest
        fail(f"no atomic is called {combine!r}{suggest(combine, ATOMICS)}", expected=", ".join(ATOMICS))
    where = as_value(flat).to(int64)
    v = broadcast_to(as_value(value, buffer.dtype if isinstance(value, Number) else None).to(buffer.dtype), where.shape)
    current().written.add(root(buffer.value))
    current().read.add(root(buffer.value))
    current().emit("atomic", [buffer, where, v], None, {"combine": combine})


def alloc(shape: Any, dtype: object, space: str = "local") -> Buffer:
    """Scratch memory of the block; undefined until written."""
    prog = current()
    op = prog.builder.op("alloc", (), (BufferType(as_dtype(dtype), static_shape(shape, "allocation"), space),),
                         loc=prog.builder.loc or location())
    return Buffer(op.result)


def view(buffer: Buffer, shape: Sequence[DimLike]) -> Buffer:
    """The first elements of ``buffer`` under another dense shape (sizes may be symbolic).

    Raises:
        KernelError: the shape has more elements than the buffer.
    """
    buffer = _buffer(buffer, "view")
    t = BufferType(buffer.dtype, tuple(shape), buffer.type.space)
    if t == buffer.type:
        return buffer
    if isinstance(t.size, int) and isinstance(buffer.type.size, int) and t.size > buffer.type.size:
        fail(f"{t} is larger than {buffer.type}")
    prog = current()

    def make() -> Any:
        return Buffer(prog.builder.value("view", (buffer.value,), t, loc=prog.builder.loc or location()))

    if buffer.value.op is None:  # of a parameter: one for the whole program
        with prog.before():
            return prog.memo(("view", buffer.value, t.shape), make)  # type: ignore[return-value]
    return prog.memo(("view", buffer.value, t.shape), make)  # type: ignore[return-value]


def check(ok: Any, value: Any = None, site: int = 0) -> None:
    """Record the first lane where ``ok`` is false, with ``value``, under ``site`` (a run-time error)."""
    p = as_value(ok)
    v = as_value(value) if value is not None else p.to(int64)
    current().emit("check", conform([p, v]), None, {"site": site})


# -- tiles -------------------------------------------------------------------------------------------------------------
def full(shape: Any, value: Any, dtype: object = None) -> TileValue:
    """A tile (or, for the empty shape, a scalar) of one value: a number or a scalar."""
    d = as_dtype(dtype) if dtype is not None else value.dtype if isinstance(value, TileValue) else None
    v = as_value(value, d)
    return broadcast_to(v if d is None else v.to(d), static_shape(shape))


def zeros(shape: Any, dtype: object) -> TileValue:
    return full(shape, 0, dtype)


def splat(value: Any, shape: Any) -> TileValue:
    """A scalar in every lane."""
    return full(shape, value)


def iota(shape: Any, axis: int = 0) -> TileValue:
    """A tile of int64 that counts along ``axis``."""
    extents = static_shape(shape)
    return current().emit("iota", (), TileType(int64, extents), {"axis": normal_axis(axis, len(extents))})


arange = iota


def slice(x: TileValue, starts: Sequence[int], limits: Sequence[int]) -> TileValue:
    """The part ``starts[k] <= index k < limits[k]``.

    Raises:
        KernelError: it does not lie in the tile.
    """
    starts, limits = tuple(starts), tuple(limits)
    inside = len(starts) == len(limits) == x.rank and \
        builtins.all(0 <= s < e <= n for s, e, n in zip(starts, limits, x.shape, strict=True))
    if not inside:
        fail(f"the slice {starts} to {limits} does not lie in {x.type}")
    shape = tuple(e - s for s, e in zip(starts, limits, strict=True))
    if shape == x.shape:
        return x
    return current().emit("slice", (x,), TileType(x.dtype, shape), {"starts": starts, "limits": limits})


def extract(x: TileValue, index: Any) -> TileValue:
    """One element, at a static index, as a scalar."""
    at = tuple(index) if isinstance(index, tuple | list) else (index,)
    if len(at) != x.rank or not builtins.all(0 <= i < n for i, n in zip(at, x.shape, strict=True)):
        fail(f"{at} is not an index of {x.type}")
    return current().emit("extract", (x,), ScalarType(x.dtype), {"index": at})


def concat(parts: Sequence[TileValue], axis: int = 0) -> TileValue:
    """Tiles joined along an axis."""
    if not parts:
        fail("concat takes at least one tile")
    first = parts[0]
    k = normal_axis(axis, first.rank)
    for p in parts:
        same = p.rank == first.rank and p.dtype is first.dtype
        if not same or p.shape[:k] + p.shape[k + 1:] != first.shape[:k] + first.shape[k + 1:]:
            fail(f"{p.type} does not join {first.type} along axis {k}")
    if len(parts) == 1:
        return first
    shape = (*first.shape[:k], builtins.sum(p.shape[k] for p in parts), *first.shape[k + 1:])
    return current().emit("concat", parts, TileType(first.dtype, shape), {"axis": k})


def exchange(x: TileValue, mask: int, axis: int = 0) -> TileValue:
    """Element ``i ^ mask`` at each ``i`` along an axis: one stage of a butterfly.  Lanes of a warp pass it on in one shuffle.

    Raises:
        KernelError: the extent is no multiple of the power of two above ``mask``.
    """
    k = normal_axis(axis, x.rank)
    if mask == 0:
        return x
    if mask < 0 or x.shape[k] % (1 << mask.bit_length()):
        fail(f"exchange by {mask} leaves axis {k} of {x.type}", expected=f"an extent that {1 << mask.bit_length()} divides",
             received=str(x.shape[k]))
    return current().emit("exchange", (x,), TileType(x.dtype, x.shape), {"axis": k, "mask": mask})


def getitem(x: TileValue, index: Any) -> TileValue:
    """``x[1:3, None, 0]`` with static bounds: a slice, then axes removed and added."""
    items = list(index) if isinstance(index, tuple) else [index]
    if Ellipsis in [i for i in items if i is Ellipsis]:
        at = next(k for k, i in enumerate(items) if i is Ellipsis)
        used = builtins.sum(i is not None for i in items) - 1
        items[at:at + 1] = [builtins.slice(None)] * (x.rank - used)
    items += [builtins.slice(None)] * (x.rank - builtins.sum(i is not None for i in items))
    if builtins.sum(i is not None for i in items) > x.rank:
        fail(f"too many indices for {x.type}")
    starts, limits, shape = [], [], []
    axis = 0
    for item in items:
        if item is None:
            shape.append(1)
            continue
        n = x.shape[axis]
        if isinstance(item, builtins.slice):
            if item.step not in (None, 1):
                fail("slices of a tile have step 1")
            lo, hi, _ = item.indices(n)
            if lo >= hi:
                fail(f"the slice {item.start}:{item.stop} of axis {axis} of {x.type} is empty")
            shape.append(hi - lo)
        else:
            k = item.__index__()
            if not -n <= k < n:
                fail(f"index {k} is out of range for axis {axis} of {x.type}")
            lo, hi = k % n, k % n + 1
        starts.append(lo)
        limits.append(hi)
        axis += 1
    return reshape(slice(x, starts, limits), shape)


def reduce(x: TileValue, axis: int, combine: str, keepdims: bool = False) -> TileValue:
    """Reduce an axis by the fixed tree of Tile IR; ``combine``: add mul max min and or xor."""
    if combine not in COMBINES:
        from ..errors import suggest
        fail(f"no reduction is called {combine!r}{suggest(combine, COMBINES)}", expected=" ".join(COMBINES))
    k = normal_axis(axis, x.rank)
    shape = (*x.shape[:k], *x.shape[k + 1:])
    out = current().emit("reduce", (x,), element(x.dtype, shape), {"axis": k, "combine": combine})
    return reshape(out, (*shape[:k], 1, *shape[k:])) if keepdims else out


def _fold_axes(x: TileValue, axis: int | None, keepdims: bool, combine: str) -> TileValue:
    x = as_value(x)
    if axis is not None:
        return reduce(x, axis, combine, keepdims)
    for _ in builtins.range(x.rank):
        x = reduce(x, x.rank - 1, combine)
    return x


def sum(x: TileValue, axis: int | None = None, keepdims: bool = False) -> TileValue:
    """Sum along an axis (None: all, from the last to the first), in the tile's dtype."""
    return _fold_axes(x, axis, keepdims, "add")


def prod(x: TileValue, axis: int | None = None, keepdims: bool = False) -> TileValue:
    return _fold_axes(x, axis, keepdims, "mul")


def max(x: TileValue, axis: int | None = None, keepdims: bool = False) -> TileValue:
    return _fold_axes(x, axis, keepdims, "max")


def min(x: TileValue, axis: int | None = None, keepdims: bool = False) -> TileValue:
    return _fold_axes(x, axis, keepdims, "min")


def any(x: TileValue, axis: int | None = None, keepdims: bool = False) -> TileValue:
    return _fold_axes(x, axis, keepdims, "or")


def all(x: TileValue, axis: int | None = None, keepdims: bool = False) -> TileValue:
    return _fold_axes(x, axis, keepdims, "and")


def dot(a: TileValue, b: TileValue, acc: TileValue | None = None, accumulate: object = None, unit: str | None = None) -> TileValue:
    """``acc + a @ b``; without ``acc`` from zero, in the accumulator dtype of the operands.

    ``unit`` names a matrix instruction of the machine, which decides order and rounding.

    Raises:
        KernelError: the shapes do not fit, or the dtypes have no dot.
    """
    a, b = as_value(a), as_value(b)
    for t in (a, b):
        if t.rank != 2:
            fail(f"dot multiplies matrices, got {t!r}")
    if a.shape[1] != b.shape[0]:
        fail(f"dot: {a.type} by {b.type}: inner extents differ, {a.shape[1]} vs {b.shape[0]}",
             expected=f"b of shape [{a.shape[1]}, n]", received=str(b.type), hints=["transpose an operand: b.T"])
    shape = (a.shape[0], b.shape[1])
    if acc is None:
        d = as_dtype(accumulate) if accumulate is not None else _dot_dtype(a.dtype, b.dtype)
        problem = dot_problem(a.dtype, b.dtype, d)
        if problem:
            fail(f"dot has no form for {a.dtype} and {b.dtype}: {problem}")
        acc = full(shape, 0, d)
    if acc.shape != shape:
        fail(f"dot: {a.type} by {b.type} gives {list(shape)}, the accumulator is {acc.type}")
    problem = dot_problem(a.dtype, b.dtype, acc.dtype)
    if problem:
        fail(f"dot has no form for {a.dtype} by {b.dtype} into {acc.dtype}: {problem}")
    return current().emit("dot", (a, b, acc), TileType(acc.dtype, shape), {"unit": unit} if unit else None)


def _dot_dtype(a: DType, b: DType) -> DType:
    da, db = accumulator(a), accumulator(b)
    if "bool" in (a.kind, b.kind):
        return da
    return da if da is db else builtins.max(da, db, key=lambda d: (d.is_float, d.is_complex, d.bits))


# -- pointwise ---------------------------------------------------------------------------------------------------------
def where(p: Any, a: Any, b: Any) -> TileValue:
    """``a`` where ``p`` holds, else ``b``."""
    c = as_value(p)
    if c.dtype is not bool_:
        fail(f"the condition is bool, not {c.dtype}")
    return typed("select", conform([c, *agree([a, b])]))


select = where


def convert(x: Any, dtype: object) -> TileValue:
    """``x`` in another dtype (see :meth:`TileValue.to`)."""
    return as_value(x, as_dtype(dtype) if isinstance(x, Number) else None).to(dtype)


def bitcast(x: TileValue, dtype: object) -> TileValue:
    """The same bits read as another dtype of equal width."""
    return typed("bitcast", [x], element(as_dtype(dtype), x.shape))


def _static(*values: Any) -> bool:
    return builtins.all(isinstance(v, int | Dim) and not isinstance(v, bool) for v in values)


def minimum(a: Any, b: Any) -> Any:
    """The smaller (NaN if either is); numbers and sizes stay numbers and sizes."""
    if _static(a, b):
        from ..types.dims import dim_min
        return dim_min(a, b)
    return binary("minimum", a, b)


def maximum(a: Any, b: Any) -> Any:
    """The larger (NaN if either is); numbers and sizes stay numbers and sizes."""
    if _static(a, b):
        from ..types.dims import dim_max
        return dim_max(a, b)
    return binary("maximum", a, b)


def _named(name: str) -> Callable[..., TileValue]:
    count = POINTWISE[name][0]

    def op(*operands: Any) -> TileValue:
        if len(operands) != count:
            fail(f"{name} takes {count} operand{'s' * (count > 1)}, got {len(operands)}")
        if count == 1:
            return unary(name, operands[0])
        return binary(name, *operands) if count == 2 else pointwise(name, *operands)

    op.__name__ = op.__qualname__ = name
    op.__doc__ = f"The pointwise op ``{name}`` of the op table on tiles, scalars and numbers."
    return op


if TYPE_CHECKING:
    def __getattr__(name: str) -> Callable[..., TileValue]:
        """The pointwise ops that the loop below enters."""

for _name in POINTWISE:
    if _name not in globals():
        globals()[_name] = _named(_name)

_HOOKS.update(dot=dot, sum=sum, max=max, min=min, getitem=getitem)

__all__ = [
    "POINTWISE", "Buffer", "TileProgram", "TileRange", "TileValue", "all", "alloc", "any", "arange", "atomic", "bitcast", "broadcast_to",
    "build", "cdiv", "check", "concat", "cond", "constant", "convert", "current", "dot", "evaluate", "exchange", "extract", "for_loop",
    "full", "gather", "iota", "load", "max", "maximum", "min", "minimum", "normal_axis", "prefetch", "prod", "program_id",
    "range", "reduce", "reshape", "scatter", "select", "size", "slice", "splat", "static_range", "store", "sum", "tile_function",
    "tracing", "transpose", "view", "where", "while_loop", "zeros",
    *sorted(n for n in POINTWISE if n not in ("select", "convert", "bitcast", "minimum", "maximum")),
]
