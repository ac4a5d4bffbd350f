"""Gathers and scatters.

An index counts from the end when it is negative, as in NumPy.  One outside its axis is a run-time error; the op itself
clamps it, so that nothing outside a buffer is ever touched, with ``ts.unchecked()`` too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DTypeError, ShapeError
from ..ir.core import Op, TensorType, Value
from ..tracing.creation import shape_from
from ..tracing.recorder import bind, lift
from ..types import dtypes as dt
from ..types.constraints import plain
from ..types.dims import Dim, DimLike, as_dim, format_dim, known_less, product
from ..types.dtypes import as_dtype
from ..types.shapes import format_shape
from . import batch_rules as br
from . import pointwise as pw
from . import shaping as sh
from .derivatives import again, kept, plus, reverse, stretched, zeros
from .operands import as_tensor, axis_of, broadcast_to, convert, one_of, promoted, scalar, spread
from .rules import EVERY, INTS, LOW, REAL, Array, accept, check_axis, equal_sizes, expect_operands
from .table import Applied, Attrs, Bound, ElementBuilder, primitive

Types = Sequence[TensorType]
Index = Sequence[DimLike]


def positions(i: Array, n: int) -> Array:
    """Indices as the op uses them: negative ones counted from the end, all clamped into the axis."""
    counted = i.dtype.kind == "i"
    i = i.astype(np.int64)
    return np.clip(np.where((i < 0) & counted, i + n, i), 0, max(n - 1, 0))


def _position(e: ElementBuilder, op: Op, v: Value, n: DimLike, axis: int) -> DimLike:
    """The checked and clamped index that scalar ``v`` names along an axis of size ``n``."""
    signed = v.type.dtype.kind == "int"
    at = v if v.type.dtype is dt.int64 else e.emit("convert", v, dtype=dt.int64)
    zero, size = e.const(0, dt.int64), e.index(n)
    where = at
    if signed:
        negative = e.emit("lt", at, zero, dtype=dt.bool_)
        where = e.emit("select", negative, e.emit("add", at, size, dtype=dt.int64), at, dtype=dt.int64)
    if op.attrs.get("checked", True):
        ok = e.emit("logical_and", e.emit("ge", where, zero, dtype=dt.bool_), e.emit("lt", where, size, dtype=dt.bool_),
                    dtype=dt.bool_)
        e.check(ok, at, f"index {{value}} is out of bounds for axis {axis} with size {format_dim(n)}")
    return e.dynamic(where, n)


def _no_source(name: str, axis: int, t: TensorType, wanted: DimLike) -> None:
    if t.shape[axis] == 0 and wanted != 0:
        raise ShapeError(f"{name!r} reads from dimension {axis} of size 0", received=str(t))


# -- gather --------------------------------------------------------------------------------------------------------------
def _place(axes: Sequence[int]) -> int:
    """Where the indices' axes stand in the result: at the first axis if the axes are neighbours, else in front."""
    return axes[0] if list(axes) == list(range(axes[0], axes[0] + len(axes))) else 0


def _gather_infer(types: Types, attrs: Attrs) -> Types:
    axes = tuple(attrs["axes"])
    expect_operands("gather", types, 1 + len(axes))
    x, rest = types[0], types[1:]
    accept("gather", rest, INTS)
    if not axes or list(axes) != sorted(set(axes)):
        raise ShapeError(f"'gather' takes different axes in ascending order, not {axes}")
    for a in axes:
        check_axis("gather", a, x.rank)
        _no_source("gather", a, x, rest[0].size)
    for t in rest[1:]:
        if t.shape != rest[0].shape:
            raise ShapeError(f"the indices of 'gather' have the shapes {format_shape(rest[0].shape)} and "
                             f"{format_shape(t.shape)}", expected=str(rest[0]), received=str(t))
    kept = [n for i, n in enumerate(x.shape) if i not in axes]
    at = _place(axes)
    return (x.with_shape((*kept[:at], *rest[0].shape, *kept[at:])),)


def _gather_reference(x: Array, *indices: Array, axes: Any, checked: bool = True) -> Array:
    where: list[Any] = [slice(None)] * x.ndim
    for a, i in zip(axes, indices, strict=True):
        where[a] = positions(i, x.shape[a])
    if len(axes) == 1:
        return np.asarray(np.take(x, where[axes[0]], axis=axes[0]))
    out = x[tuple(where)]
    return np.ascontiguousarray(out).reshape(out.shape)


def _gather_element(e: ElementBuilder, op: Op, index: Index, r: int) -> Value:
    x, axes = op.operands[0].type, op.attrs["axes"]
    at, rank = _place(axes), op.operands[1].type.rank
    inner, outer = index[at:at + rank], iter([*index[:at], *index[at + rank:]])
    found = {a: _position(e, op, e.operand(1 + k, inner), x.shape[a], a) for k, a in enumerate(axes)}
    return e.operand(0, [found[a] if a in found else next(outer) for a in range(x.rank)])


def _clamped(i: Any, n: DimLike) -> Any:
    """An index as the ops use it: counted from the start and limited to the axis."""
    size = as_tensor(n)
    i = convert(i, dt.int64)
    return pw.minimum(pw.maximum(pw.where(pw.lt(i, 0), pw.add(i, size), i), 0), pw.sub(size, 1))


def _number(shape: Sequence[DimLike], parts: Sequence[Any]) -> Any:
    """The row-major number of the point that clamped indices name in ``shape``."""
    total = parts[0]
    for n, i in zip(shape[1:], parts[1:], strict=True):
        total = pw.add(pw.mul(total, as_tensor(n)), i)
    return total


def along_back(g: Any, i: Any, axis: int, to: TensorType) -> Any:
    """The transpose of ``take_along_axis``: cotangents added up where they were taken from, in zeros of the type ``to``."""
    parts = [_clamped(i, n) if a == axis else bind("iota", shape=i.type.shape, axis=a, dtype=dt.int64)
             for a, n in enumerate(to.shape)]
    at = bind("reshape", _number(to.shape, parts), shape=(product(i.type.shape),))
    flat = _scatter_rows(zeros(TensorType(to.dtype, (product(to.shape),))), at, sh.reshape(g, at.type.shape), "add", False)
    return sh.reshape(flat, to.shape)


def _gather_back(x: Applied, g: Any) -> Any:
    """Cotangents added up at the places that were read."""
    t, many = x.operands[0].type, x.operands[1].type.shape
    axes = x.attrs["axes"]
    at, k = _place(axes), len(many)
    rest = [n for i, n in enumerate(t.shape) if i not in axes]
    rows = product(many)
    if at:  # the indices' axes in front
        g = sh.moveaxis(g, tuple(range(at, at + k)), tuple(range(k)))
    u = bind("reshape", g, shape=(rows, *rest))
    front = tuple(t.shape[a] for a in axes)
    if len(axes) == 1:
        i = bind("reshape", x.operands[1], shape=(rows,))
    else:
        i = _number(front, [_clamped(i, n) for i, n in zip(x.operands[1:], front, strict=True)])
        i = bind("reshape", i, shape=(rows,))
    out = _scatter_rows(zeros(t.with_shape((product(front), *rest))), i, u, "add", False)
    out = out if len(axes) == 1 else bind("reshape", out, shape=(*front, *rest))
    return out if axes == tuple(range(len(axes))) else sh.moveaxis(out, tuple(range(len(axes))), axes)


primitive("gather", family="indexing", infer=_gather_infer, reference=_gather_reference, dtypes=EVERY, element=_gather_element,
          batch=br.gather,
          linear=(0,), vjp=reverse(_gather_back),
          doc="Operand x and one index tensor for each of ``axes`` (all of one shape): the indices' axes replace the axes they "
              "index, in front if those are not neighbours.", facts={"attrs": ("axes", "checked"), "mixed": ("T", "int")})


def _along_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("take_along_axis", types, 2)
    x, i = types
    axis = check_axis("take_along_axis", attrs["axis"], x.rank)
    accept("take_along_axis", (i,), INTS)
    if i.rank != x.rank:
        raise ShapeError(f"'take_along_axis' takes operands of one rank, not {x.rank} and {i.rank}", received=f"{x}, {i}")
    equal_sizes("take_along_axis", (*x.shape[:axis], 0, *x.shape[axis + 1:]), (*i.shape[:axis], 0, *i.shape[axis + 1:]),
                str(x), str(i))
    _no_source("take_along_axis", axis, x, i.size)
    return (x.with_shape(i.shape),)


def _along_element(e: ElementBuilder, op: Op, index: Index, r: int) -> Value:
    axis = op.attrs["axis"]
    at = _position(e, op, e.operand(1, index), op.operands[0].type.shape[axis], axis)
    return e.operand(0, [*index[:axis], at, *index[axis + 1:]])


primitive("take_along_axis", family="indexing", infer=_along_infer, dtypes=EVERY, element=_along_element, linear=(0,),
          batch=br.shifting("axis"),
          vjp=reverse(lambda x, g: along_back(g, x.operands[1], x.attrs["axis"], x.operands[0].type)),
          reference=lambda x, i, axis, checked=True: np.take_along_axis(x, positions(i, x.shape[axis]), axis),
          doc="out[.., j, ..] = x[.., i[.., j, ..], ..] along ``axis``.",
          facts={"attrs": ("axis", "checked"), "mixed": ("T", "int")})


# -- scatter -------------------------------------------------------------------------------------------------------------
MODES = {"set": None, "add": np.add, "mul": np.multiply, "max": np.maximum, "min": np.minimum}


def _scatter_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("scatter", types, 3)
    x, i, u = types
    accept("scatter", (x,), tuple(d for d in EVERY if not d.is_complex))
    accept("scatter", (i,), INTS)
    mode = attrs["mode"]
    if mode not in MODES:
        raise ShapeError(f"'scatter' writes with {', '.join(MODES)}, not {mode!r}")
    if mode != "set":
        accept("scatter", (x,), REAL)
    if u.dtype is not x.dtype:
        raise DTypeError(f"'scatter' writes {u.dtype} into {x.dtype}", expected=str(x.dtype), received=str(u))
    if i.rank != 1 or x.rank < 1:
        raise ShapeError(f"'scatter' takes x [N, …], index [M] and updates [M, …], not {x}, {i}, {u}")
    wanted = (i.shape[0], *x.shape[1:])
    if u.rank != len(wanted):
        raise ShapeError(f"the updates of 'scatter' have rank {u.rank}, not {len(wanted)}",
                         expected=str(u.with_shape(wanted)), received=str(u))
    equal_sizes("scatter", wanted, u.shape, str(u.with_shape(wanted)), str(u))
    _no_source("scatter", 0, x, i.size)
    return (x,)


def _scatter_reference(x: Array, i: Array, u: Array, mode: str, checked: bool = True) -> Array:
    low = x.dtype in LOW and mode != "set"
    out = x.astype(np.float32) if low else x.copy()
    at = positions(i, x.shape[0])
    with np.errstate(all="ignore"):
        if mode == "set":
            out[at] = u  # of equal indices the last one wins
        else:
            MODES[mode].at(out, at, u.astype(out.dtype))  # type: ignore[union-attr]
    return out.astype(x.dtype)


def _scatter_terms(types: Types, attrs: Attrs) -> float:
    m = types[1].shape[0]
    return (float(m) if isinstance(m, int) else 1024.0) if attrs["mode"] in ("add", "mul") else 0.0


def _rows(t: Any, i: Any) -> Any:
    return bind("gather", t, i, axes=(0,), checked=False)


def _into(x: Applied, to: Any, updates: Any, mode: str = "add") -> Any:
    return bind("scatter", to, x.operands[1], updates, mode=mode, checked=False)


def _last_writers(x: Applied) -> Any:
    """Which updates of mode "set" are there in the end, as a mask of the updates' shape."""
    i, u = x.operands[1:]
    m = i.type.shape[0]
    number = bind("iota", shape=(m,), axis=0, dtype=dt.int64)
    n = x.operands[0].type.shape[0]
    owner = bind("scatter", bind("full", shape=(n,), value=-1, dtype=dt.int64), i, number, mode="set", checked=False)
    return stretched(pw.eq(_rows(owner, i), number), tuple(range(1, u.type.rank)), u.type.shape)


def _factors(x: Applied) -> tuple[Any, Any]:
    """Of mode "mul": the product of all updates of each row, and for each update what it is multiplied by.

    No division by zero: zeros are counted, and a product without one of them is that of the others.
    """
    v, i, u = x.operands
    zero = pw.eq(u, 0)
    safe = pw.where(zero, 1, u)
    others = _into(x, bind("full", shape=v.type.shape, value=1, dtype=v.dtype), safe, "mul")
    count = _into(x, zeros(v.type), convert(zero, v.dtype))
    left = pw.sub(_rows(count, i), convert(zero, v.dtype))
    beside = kept(pw.eq(left, 0), pw.mul(_rows(pw.mul(v, others), i), pw.div(1, safe)))
    return kept(pw.eq(count, 0), others), beside


def _ties(x: Applied) -> tuple[Any, Any, Any]:
    """Of modes "max" and "min": where the operand and the updates are the result, and how many of them are."""
    v, i, u = x.operands
    of_x, of_u = pw.eq(v, x.out), pw.eq(u, _rows(x.out, i))
    return of_x, of_u, pw.add(convert(of_x, v.dtype), _into(x, zeros(v.type), convert(of_u, v.dtype)))


def _scatter_jvp(x: Applied, ts: Sequence[Any]) -> list[Any]:
    v, i, u = x.operands
    mode, t = x.attrs["mode"], ts[0]
    change = zeros(u.type) if ts[2] is None else ts[2]
    if mode in ("set", "add"):
        return [again(x, zeros(v.type) if t is None else t, i, change)]
    if mode == "mul":
        product_of, beside = _factors(x)
        grown = None if ts[2] is None else _into(x, zeros(v.type), pw.mul(beside, change))
        return [plus(None if t is None else pw.mul(product_of, t), grown)]
    of_x, of_u, count = _ties(x)
    total = _into(x, zeros(v.type) if t is None else kept(of_x, t), kept(of_u, change))
    return [pw.div(total, count)]


def _scatter_vjp(x: Applied, gs: Sequence[Any]) -> list[Any]:
    i, u = x.operands[1:]
    g, mode = gs[0], x.attrs["mode"]
    to_x, to_u = x.wanted[0], x.wanted[2]
    if mode == "set":
        return [_into(x, g, zeros(u.type), "set") if to_x else None, None,
                kept(_last_writers(x), _rows(g, i)) if to_u else None]
    if mode == "add":
        return [g if to_x else None, None, _rows(g, i) if to_u else None]
    if mode == "mul":
        product_of, beside = _factors(x)
        return [pw.mul(g, product_of) if to_x else None, None, pw.mul(_rows(g, i), beside) if to_u else None]
    of_x, of_u, count = _ties(x)
    share = pw.div(g, count)
    return [kept(of_x, share) if to_x else None, None, kept(of_u, _rows(share, i)) if to_u else None]


primitive("scatter", family="indexing", infer=_scatter_infer, reference=_scatter_reference, template="scatter",
          batch=br.scatter,
          jvp=_scatter_jvp, vjp=_scatter_vjp,
          dtypes=tuple(d for d in EVERY if not d.is_complex),
          bound=Bound(1, _scatter_terms),
          doc="x [N, …] with row index[m] replaced by, or combined with (``mode``: set add mul max min), updates[m]; updates "
              "are taken in order, so of equal indices the last one wins.",
          facts={"attrs": ("mode", "checked"), "mixed": ("T", "int", "T")})


# -- slices at positions that are values -----------------------------------------------------------------------------------
def _starts(name: str, types: Types, attrs: Attrs, first: int, shape: Sequence[DimLike], sizes: Sequence[DimLike]) -> None:
    """Check ``starts`` (a size, or None for a position taken from the next scalar operand) against the axes."""
    starts = attrs["starts"]
    if len(starts) != len(shape) or len(sizes) != len(shape):
        raise ShapeError(f"{name!r} needs a start and a size for each of {len(shape)} axes")
    expect_operands(name, types, first + sum(s is None for s in starts))
    accept(name, types[first:], INTS)
    for t in types[first:]:
        if t.rank:
            raise ShapeError(f"a start of {name!r} is a scalar, not {t}")
    for axis, (n, size, s) in enumerate(zip(shape, sizes, starts, strict=True)):
        if known_less(n, size, {}) or (s is not None and known_less(n, s + size, {})):
            raise ShapeError(f"the slice of {format_dim(size)} at {'a position' if s is None else format_dim(s)} leaves "
                             f"dimension {axis} of size {format_dim(n)}", received=str(types[0]))


def _dynamic_starts(e: ElementBuilder, op: Op, first: int, shape: Sequence[DimLike], sizes: Sequence[DimLike]) -> list[DimLike]:
    out: list[DimLike] = []
    k = first
    for axis, (n, size, s) in enumerate(zip(shape, sizes, op.attrs["starts"], strict=True)):
        if s is not None:
            out.append(s)
            continue
        v = e.operand(k, ())
        k += 1
        at = v if v.type.dtype is dt.int64 else e.emit("convert", v, dtype=dt.int64)
        room = n - size
        if op.attrs.get("checked", True):
            ok = e.emit("logical_and", e.emit("ge", at, e.const(0, dt.int64), dtype=dt.bool_),
                        e.emit("le", at, e.index(room), dtype=dt.bool_), dtype=dt.bool_)
            e.check(ok, at, f"a slice of {format_dim(size)} at {{value}} leaves axis {axis} with size {format_dim(n)}")
        out.append(e.dynamic(at, room + 1))
    return out


def _begin(starts: Any, scalars: Sequence[Array], shape: Sequence[int], sizes: Sequence[int]) -> list[int]:
    values = iter(scalars)
    return [int(np.clip(int(next(values)) if s is None else s, 0, n - size))
            for s, n, size in zip(starts, shape, sizes, strict=True)]


def _requires(shape: Sequence[DimLike], sizes: Sequence[DimLike], starts: Any) -> list[tuple[DimLike, str, DimLike]]:
    return [(n, ">=", size + (s or 0)) for n, size, s in zip(shape, sizes, starts, strict=True)]


def _dynamic_slice_infer(types: Types, attrs: Attrs) -> Types:
    _starts("dynamic_slice", types, attrs, 1, types[0].shape, attrs["sizes"])
    return (types[0].with_shape(attrs["sizes"]),)


def _dynamic_slice_reference(x: Array, *scalars: Array, starts: Any, sizes: Any, checked: bool = True) -> Array:
    begin = _begin(starts, scalars, x.shape, sizes)
    return np.asarray(x[tuple(slice(b, b + s) for b, s in zip(begin, sizes, strict=True))]).copy()


def _dynamic_slice_element(e: ElementBuilder, op: Op, index: Index, r: int) -> Value:
    begin = _dynamic_starts(e, op, 1, op.operands[0].type.shape, op.attrs["sizes"])
    return e.operand(0, [b + i for b, i in zip(begin, index, strict=True)])


def _dynamic_slice_back(x: Applied, g: Any) -> Any:
    starts = {k: v for k, v in x.attrs.items() if k != "sizes"}
    return bind("dynamic_update_slice", zeros(x.operands[0].type), g, *x.operands[1:], **starts)


primitive("dynamic_slice", family="indexing", infer=_dynamic_slice_infer, reference=_dynamic_slice_reference, dtypes=EVERY,
          batch=br.dynamic_slice,
          element=_dynamic_slice_element, linear=(0,), vjp=reverse(_dynamic_slice_back),
          facts={"attrs": ("starts", "sizes", "checked"), "mixed": ("T", "int"),
                                          "requires": lambda types, attrs: _requires(types[0].shape, attrs["sizes"], attrs["starts"])},
          doc="``sizes`` elements from ``starts`` on: a size, or None for a position that the next scalar operand gives.")


def _update_infer(types: Types, attrs: Attrs) -> Types:
    if len(types) < 2:
        raise ShapeError("'dynamic_update_slice' takes a tensor, an update and starts")
    x, u = types[:2]
    if u.dtype is not x.dtype:
        raise DTypeError(f"'dynamic_update_slice' writes {u.dtype} into {x.dtype}", expected=str(x.dtype), received=str(u))
    if u.rank != x.rank:
        raise ShapeError(f"'dynamic_update_slice' writes a piece of rank {u.rank} into a tensor of rank {x.rank}",
                         expected=f"rank {x.rank}", received=str(u))
    _starts("dynamic_update_slice", types, attrs, 2, x.shape, u.shape)
    return (x,)


def _update_reference(x: Array, u: Array, *scalars: Array, starts: Any, checked: bool = True) -> Array:
    out = x.copy()
    begin = _begin(starts, scalars, x.shape, u.shape)
    out[tuple(slice(b, b + s) for b, s in zip(begin, u.shape, strict=True))] = u
    return out


def _update_element(e: ElementBuilder, op: Op, index: Index, r: int) -> Value:
    x, u = op.operands[0].type, op.operands[1].type
    if u.size == 0:
        return e.operand(0, index)
    begin = _dynamic_starts(e, op, 2, x.shape, u.shape)
    src = [i - b for i, b in zip(index, begin, strict=True)]
    hit: Value | None = None
    for s, n in zip(src, u.shape, strict=True):
        inside = e.inside(s, 0, n)
        if inside is not None:
            hit = inside if hit is None else e.emit("logical_and", hit, inside, dtype=dt.bool_)
    if hit is None:
        return e.operand(1, src)
    return e.emit("select", hit, e.guarded(hit, lambda: e.operand(1, src), 0), e.operand(0, index), dtype=x.dtype)


def _update_back(x: Applied, gs: Sequence[Any]) -> list[Any]:
    u, starts = x.operands[1], x.operands[2:]
    whole = again(x, gs[0], zeros(u.type), *starts) if x.wanted[0] else None
    piece = bind("dynamic_slice", gs[0], *starts, sizes=u.type.shape, **x.attrs) if x.wanted[1] else None
    return [whole, piece, *[None] * len(starts)]


primitive("dynamic_update_slice", family="indexing", infer=_update_infer, reference=_update_reference, dtypes=EVERY,
          batch=br.dynamic_update_slice,
          element=_update_element, linear=(0, 1), vjp=_update_back,
          facts={"attrs": ("starts", "checked"), "mixed": ("T", "T", "int"), "in_place": 0,
                                   "requires": lambda types, attrs: _requires(types[0].shape, types[1].shape, attrs["starts"])},
          doc="x with the second operand written at ``starts`` (see dynamic_slice).")


# -- the user's functions --------------------------------------------------------------------------------------------------
def _index(i: Any) -> Any:
    """An index tensor.

    Raises:
        DTypeError: it does not hold integers.
    """
    t = lift(i)
    if not t.dtype.is_integer or t.dtype.bits == 4:
        raise DTypeError(f"an index holds integers, not {t.dtype}", received=str(t.type), hints=["Convert it: i.to(int64)"])
    return t


def take(x: Any, indices: Any, axis: int | None = None, *, dim: int | None = None) -> Any:
    """The slices of ``x`` that integer ``indices`` name along ``axis`` (None: elements of the flattened tensor).

    Raises:
        IndexOutOfRangeError: when it runs, for an index outside [-n, n).
    """
    x = as_tensor(x)
    axis = one_of("take", axis, dim, "axis", "dim")
    if axis is None:
        x, axis = sh.ravel(x), 0
    return bind("gather", x, _index(indices), axes=(axis_of("take", x, axis),))


def embedding(weight: Any, ids: Any) -> Any:
    """Rows of ``weight`` [V, D] named by integer ``ids`` [...]: [..., D].

    Raises:
        DTypeError: ``ids`` are no integers.
    """
    ids = lift(ids)
    if not ids.dtype.is_integer:
        raise DTypeError(f"embedding() takes ids of integers, not of {ids.dtype}", expected="embedding(weight, ids)",
                         received=str(ids.type), hints=["The table comes first: ts.embedding(weight, ids)"])
    return take(weight, ids, 0)


def gather(x: Any, indices: Any, axis: Any = 0, *, dim: Any = None) -> Any:
    """One index tensor of ``x``'s rank: :func:`take_along_axis`.  A list of them for as many ``axis``: the points they name."""
    x = as_tensor(x)
    axis = dim if dim is not None else axis
    if isinstance(indices, list | tuple):
        axes = list(range(len(indices))) if isinstance(axis, int) else [axis_of("gather", x, a) for a in axis]
        parts = spread("gather", *[_index(i) for i in indices])
        order = sorted(range(len(axes)), key=axes.__getitem__)
        return bind("gather", x, *[parts[k] for k in order], axes=tuple(axes[k] for k in order))
    return take_along_axis(x, indices, axis)


def take_along_axis(x: Any, indices: Any, axis: int = -1, *, dim: int | None = None) -> Any:
    """out[.., j, ..] = x[.., indices[.., j, ..], ..] along ``axis``; the other sizes broadcast."""
    x, i = as_tensor(x), _index(indices)
    axis = axis_of("take_along_axis", x, dim if dim is not None else axis)
    if len(i.type.shape) != len(x.type.shape):
        raise ShapeError(f"take_along_axis takes tensors of one rank, not {len(x.type.shape)} and {len(i.type.shape)}",
                         received=f"{x.type}, {i.type}", hints=["Use take for indices of another rank"])
    xs, js = list(x.type.shape), list(i.type.shape)
    n, m = xs[axis], js[axis]
    for a in range(len(xs)):
        if a != axis and xs[a] != js[a]:
            xs[a] = js[a] = js[a] if xs[a] == 1 else xs[a]
    xs[axis], js[axis] = n, m
    return bind("take_along_axis", broadcast_to(x, xs), broadcast_to(i, js), axis=axis)


def _mode(mode: Any) -> str:
    found = {"set": "set", "add": "add", "sum": "add", "mul": "mul", "multiply": "mul", "prod": "mul", "max": "max",
             "amax": "max", "min": "min", "amin": "min", None: "set"}.get(mode)
    if found is None:
        raise ValueError(f"scatter's mode is set, add, mul, max or min, not {mode!r}")
    return found


def _fit(x: Any, updates: Any, shape: Sequence[DimLike]) -> Any:
    """Updates in the dtype of ``x``, broadcast to ``shape``."""
    if isinstance(updates, bool | int | float | complex):
        updates = scalar(updates, x.dtype)
    u = as_tensor(updates)
    if u.dtype is not x.dtype:
        u = promoted("scatter", u, x)[0]
        if u.dtype is not x.dtype:
            raise DTypeError(f"Cannot implicitly convert from {u.dtype} to {x.dtype}", received=str(u.type),
                             hints=[f"Convert the updates: u.to({x.dtype})"])
    return broadcast_to(u, shape)


def scatter(x: Any, index: Any, updates: Any, axis: int = 0, mode: str = "set", *, dim: int | None = None) -> Any:
    """``x`` with its slices ``index`` along ``axis`` replaced by (or combined with) ``updates``.

    Args:
        index: integers of any shape [I…].
        updates: broadcast to [.., I…, ..]: the shape of ``take(x, index, axis)``.
        mode: "set" (of equal indices the last wins), "add", "mul", "max" or "min".
    """
    x, i = as_tensor(x), _index(index)
    axis = axis_of("scatter", x, dim if dim is not None else axis)
    shape, many = x.type.shape, i.type.shape
    u = _fit(x, updates, (*shape[:axis], *many, *shape[axis + 1:]))
    rest = (*shape[:axis], *shape[axis + 1:])
    if axis:
        x = sh.moveaxis(x, axis, 0)
        u = sh.moveaxis(u, tuple(range(axis, axis + len(many))), tuple(range(len(many))))
    out = _scatter_rows(x, sh.reshape(i, (product(many),)), sh.reshape(u, (product(many), *rest)), _mode(mode))
    return sh.moveaxis(out, 0, axis) if axis else out


def _scatter_rows(x: Any, i: Any, u: Any, mode: str, checked: bool = True) -> Any:
    """The primitive; complex elements are written as pairs.

    Raises:
        DTypeError: complex elements and a mode that does not work on their parts.
    """
    extra = {} if checked else {"checked": False}
    if not x.dtype.is_complex:
        return bind("scatter", x, i, u, mode=mode, **extra)
    if mode not in ("set", "add"):
        raise DTypeError(f"scatter with {mode!r} does not take {x.dtype}", received=str(x.type), hints=["Use 'set' or 'add'"])
    return bind("view_as_complex", bind("scatter", bind("view_as_real", x), i, bind("view_as_real", u), mode=mode, **extra))


def _flat(shape: Sequence[DimLike], axes: Sequence[int], parts: Sequence[Any]) -> Any:
    """The row-major number of the point that index tensors name along ``axes``; an impossible one where one is outside."""
    total: Any = None
    good: Any = None
    for a, t in zip(axes, parts, strict=True):
        n = as_tensor(shape[a]) if not isinstance(shape[a], int) else scalar(shape[a], dt.int64)
        i = convert(t, dt.int64)
        i = pw.where(pw.lt(i, 0), pw.add(i, n), i)
        ok = pw.logical_and(pw.ge(i, 0), pw.lt(i, n))
        total, good = (i, ok) if total is None else (pw.add(pw.mul(total, n), i), pw.logical_and(good, ok))
    limit = product(shape[a] for a in axes)
    return pw.where(good, total, as_tensor(limit))


def index_put(x: Any, indices: Any, values: Any, mode: str = "set") -> Any:
    """``x`` with ``values`` written (or combined, by ``mode``) at the points that a tuple of index tensors names along the
    leading axes."""
    x = as_tensor(x)
    parts = spread("index_put", *[_index(i) for i in (indices if isinstance(indices, list | tuple) else [indices])])
    k, shape = len(parts), x.type.shape
    if k > len(shape):
        raise ShapeError(f"index_put got {k} indices for a tensor of rank {len(shape)}", received=str(x.type))
    if k == 1:
        return scatter(x, parts[0], values, 0, mode)
    rows = sh.reshape(x, (product(shape[:k]), *shape[k:]))
    return sh.reshape(scatter(rows, _flat(shape, range(k), parts), values, 0, mode), shape)


def put_along_axis(x: Any, indices: Any, values: Any, axis: int = -1, mode: str = "set") -> Any:
    """``x`` with out[.., indices[.., j, ..], ..] = values[.., j, ..] along ``axis``."""
    x, i = as_tensor(x), _index(indices)
    axis = axis_of("put_along_axis", x, axis)
    shape, many = x.type.shape, i.type.shape
    if len(many) != len(shape):
        raise ShapeError(f"put_along_axis takes tensors of one rank, not {len(shape)} and {len(many)}")
    parts = [i if a == axis else bind("iota", shape=many, axis=a, dtype=dt.int64) for a in range(len(shape))]
    flat = scatter(sh.reshape(x, (product(shape),)), _flat(shape, range(len(shape)), parts), _fit(x, values, many), 0, mode)
    return sh.reshape(flat, shape)


def _split_starts(starts: Any, rank: int) -> tuple[tuple[Any, ...], list[Any]]:
    """Starts as the attribute (sizes, None for a value) and the scalar operands."""
    if hasattr(starts, "dtype"):
        t = lift(starts)
        starts = [t] if not t.type.shape else [sh.reshape(sh.slice_axis(t, 0, k, k + 1), ()) for k in range(rank)]
    if isinstance(starts, int | Dim):
        starts = [starts]
    fixed: list[Any] = []
    scalars = []
    for s in starts:
        if isinstance(s, Dim | int | np.integer) and not isinstance(s, bool):
            fixed.append(plain(as_dim(s)))
        else:
            fixed.append(None)
            scalars.append(sh.reshape(_index(s), ()))
    return tuple(fixed), scalars


def dynamic_slice(x: Any, starts: Any, sizes: Any) -> Any:
    """``sizes`` elements of ``x`` from ``starts`` (numbers, sizes or scalar integer tensors) on.

    Raises:
        ShapeError: the piece cannot fit.
        IndexOutOfRangeError: when it runs, for a piece that leaves ``x``.
    """
    x = as_tensor(x)
    fixed, scalars = _split_starts(starts, len(x.type.shape))
    extent = tuple(plain(as_dim(s)) for s in ([sizes] if isinstance(sizes, int | Dim) else sizes))
    return bind("dynamic_slice", x, *scalars, starts=fixed, sizes=extent)


def dynamic_update_slice(x: Any, update: Any, starts: Any) -> Any:
    """``x`` with ``update`` written at ``starts`` (numbers, sizes or scalar integer tensors)."""
    x = as_tensor(x)
    u = as_tensor(update)
    fixed, scalars = _split_starts(starts, len(x.type.shape))
    return bind("dynamic_update_slice", x, _fit(x, u, u.type.shape), *scalars, starts=fixed)


def one_hot(indices: Any, size: Any, dtype: Any = dt.f32, axis: int = -1) -> Any:
    """1 where the new axis (``axis``) of ``size`` equals the index, else 0; an index outside gives zeros.

    Raises:
        ShapeError: ``size`` is negative or no integer.
    """
    i = _index(indices)
    (n,) = shape_from(((size,),), "one_hot")
    wide = sh.unsqueeze(i, axis)
    axis = axis % len(wide.type.shape)
    shape = tuple(n if a == axis else d for a, d in enumerate(wide.type.shape))
    line = bind("iota", shape=shape, axis=axis, dtype=dt.int64)
    return convert(pw.eq(broadcast_to(convert(wide, dt.int64), shape), line), as_dtype(dtype))


def masked_fill(x: Any, mask: Any, value: Any) -> Any:
    """``value`` where ``mask`` is true, else ``x``; the dtype of ``x`` is kept."""
    x = as_tensor(x)
    v = scalar(value, x.dtype) if isinstance(value, bool | int | float) else convert(as_tensor(value), x.dtype)
    return pw.where(mask, v, x)
