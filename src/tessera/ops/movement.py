"""Ops that move elements without computing: one stanza each, and how an index of the result maps to the operand's.

All sizes in attributes may be symbolic.  The user's functions on top of these are in :mod:`tessera.ops.shaping`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import DTypeError, ShapeError
from ..ir.core import Op, TensorType, Value
from ..tracing.recorder import bind
from ..types import dtypes as dt
from ..types.dims import DimLike, ceildiv, dim_max, format_dim, known_less, product
from ..types.dtypes import DType, as_dtype
from ..types.shapes import Shape, contiguous_strides, format_shape
from . import batch_rules as br
from .derivatives import onward, reverse
from .rules import COMPLEX, EVERY, INTS, Array, accept, check_axis, equal_sizes, expect_operands
from .table import Applied, Attrs, ElementBuilder, primitive

Index = Sequence[DimLike]
Types = Sequence[TensorType]


def _not_negative(shape: Shape) -> list[tuple[DimLike, str, DimLike]]:
    return [(n, ">=", 0) for n in shape]


# -- reshape -----------------------------------------------------------------------------------------------------------
def _reshape_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("reshape", types, 1)
    shape = tuple(attrs["shape"])
    if product(shape) != types[0].size:
        raise ShapeError(
            f"Cannot reshape {format_shape(types[0].shape)} to {format_shape(shape)}: "
            f"{format_dim(types[0].size)} elements vs {format_dim(product(shape))}",
            expected=f"a shape of {format_dim(types[0].size)} elements", received=format_shape(shape),
            hints=["Give one size as -1 to have it computed"])
    return (types[0].with_shape(shape),)


def regroup(src: Shape, dst: Shape) -> list[tuple[range, range]]:
    """The finest split of two shapes of one size into runs of axes with equal products."""
    groups = []
    i = j = 0
    while i < len(src) or j < len(dst):
        for total in range(1, len(src) - i + len(dst) - j + 1):
            found = next(((a, total - a) for a in range(total + 1)
                          if i + a <= len(src) and j + total - a <= len(dst)
                          and product(src[i:i + a]) == product(dst[j:j + total - a])), None)
            if found:
                break
        else:
            found = (len(src) - i, len(dst) - j)
        groups.append((range(i, i + found[0]), range(j, j + found[1])))
        i, j = i + found[0], j + found[1]
    return groups


def reshape_index(index: Index, src: Shape, dst: Shape) -> list[DimLike]:
    """The index in ``src`` of the element at ``index`` in ``dst``; axes that do not change pass straight through."""
    out: list[DimLike] = []
    for s, d in regroup(src, dst):
        sizes = [dst[k] for k in d]
        flat: DimLike = 0
        for k, stride in zip(d, contiguous_strides(sizes), strict=True):
            flat = flat + index[k] * stride
        wanted = [src[k] for k in s]
        for n, (size, stride) in enumerate(zip(wanted, contiguous_strides(wanted), strict=True)):
            if size in (0, 1) or stride == 0:
                out.append(0)
                continue
            step = flat if stride == 1 else flat // stride
            out.append(step if n == 0 else step % size)
    return out


def _reshape_element(e: ElementBuilder, op: Op, index: Index, r: int) -> Value:
    return e.operand(0, reshape_index(index, op.operands[0].type.shape, op.results[0].type.shape))


primitive("reshape", family="movement", infer=_reshape_infer, reference=lambda x, shape: x.reshape(shape), dtypes=EVERY,
          batch=br.reshape,
          element=_reshape_element, linear=True, vjp=reverse(lambda x, g: bind("reshape", g, shape=x.operands[0].type.shape)),
          doc="The same elements in row-major order under another shape.")


# -- transpose, broadcast_to, flip ----------------------------------------------------------------------------------------
def _transpose_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("transpose", types, 1)
    perm, rank = tuple(attrs["perm"]), types[0].rank
    if sorted(perm) != list(range(rank)):
        raise ShapeError(f"{perm} is not a permutation of the {rank} axes of {types[0]}",
                         hints=["Name each axis once, from 0"])
    return (types[0].with_shape(types[0].shape[p] for p in perm),)


def _transpose_element(e: ElementBuilder, op: Op, index: Index, r: int) -> Value:
    src: list[DimLike] = [0] * len(index)
    for out_axis, in_axis in enumerate(op.attrs["perm"]):
        src[in_axis] = index[out_axis]
    return e.operand(0, src)


def _transpose_back(x: Applied, g: Any) -> Any:
    perm = x.attrs["perm"]
    return bind("transpose", g, perm=tuple(perm.index(i) for i in range(len(perm))))


primitive("transpose", family="movement", infer=_transpose_infer,
          batch=br.transpose,
          reference=lambda x, perm: np.ascontiguousarray(np.transpose(x, perm)).reshape([x.shape[p] for p in perm]),
          dtypes=EVERY, element=_transpose_element, linear=True, vjp=reverse(_transpose_back),
          doc="Axis i of the result is axis perm[i] of the operand.")


def _broadcast_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("broadcast_to", types, 1)
    shape, src = tuple(attrs["shape"]), types[0].shape
    lead = len(shape) - len(src)
    if lead < 0:
        raise ShapeError(f"Cannot broadcast {types[0]} to {format_shape(shape)}: it has fewer axes",
                         expected=format_shape(shape), received=format_shape(src))
    for i, n in enumerate(src):
        if n != 1 and n != shape[lead + i]:
            raise ShapeError(
                f"Cannot broadcast {format_dim(n)} with {format_dim(shape[lead + i])}: shape mismatch in dimension "
                f"{lead + i}: {format_dim(n)} vs {format_dim(shape[lead + i])}",
                expected=format_shape(shape), received=format_shape(src),
                sentence="A size stretches only where it is 1.", hints=["Reshape the operand so that its sizes agree"])
    return (types[0].with_shape(shape),)


def _broadcast_element(e: ElementBuilder, op: Op, index: Index, r: int) -> Value:
    src = op.operands[0].type.shape
    lead = len(index) - len(src)
    return e.operand(0, [0 if n == 1 else index[lead + i] for i, n in enumerate(src)])


def _broadcast_back(x: Applied, g: Any) -> Any:
    """The sum over the axes that were stretched."""
    src, dst = x.operands[0].type.shape, g.type.shape
    lead = len(dst) - len(src)
    axes = tuple(i for i, n in enumerate(dst) if i < lead or (src[i - lead] == 1 and n != 1))
    total = bind("reduce_sum", g, axes=axes) if axes else g
    return total if total.type.shape == src else bind("reshape", total, shape=src)


primitive("broadcast_to", family="movement", infer=_broadcast_infer,
          batch=br.broadcast_to,
          reference=lambda x, shape: np.ascontiguousarray(np.broadcast_to(x, shape)).reshape(shape), dtypes=EVERY,
          element=_broadcast_element, linear=True, vjp=reverse(_broadcast_back), doc="The operand stretched to a shape by NumPy's rule.")


def _flip_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("flip", types, 1)
    for a in attrs["axes"]:
        check_axis("flip", a, types[0].rank)
    return (types[0],)


def _flip_element(e: ElementBuilder, op: Op, index: Index, r: int) -> Value:
    shape, axes = op.operands[0].type.shape, op.attrs["axes"]
    return e.operand(0, [shape[i] - 1 - x if i in axes else x for i, x in enumerate(index)])


primitive("flip", family="movement", infer=_flip_infer, reference=lambda x, axes: np.flip(x, axes).copy(), dtypes=EVERY,
          batch=br.shifting("axes"),
          element=_flip_element, linear=True, vjp=reverse(lambda x, g: bind("flip", g, axes=x.attrs["axes"])),
          doc="The order reversed along each of ``axes``.")


# -- slice, pad, concat --------------------------------------------------------------------------------------------------
def _slice_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("slice", types, 1)
    shape = types[0].shape
    parts = [tuple(attrs[k]) for k in ("start", "limit", "stride")]
    if any(len(p) != len(shape) for p in parts):
        raise ShapeError(f"'slice' of {types[0]} needs a start, a limit and a stride for each axis")
    out = []
    for i, (n, a, b, s) in enumerate(zip(shape, *parts, strict=True)):
        if isinstance(s, int) and s < 1:
            raise ShapeError(f"the stride {s} in dimension {i} is not positive", hints=["Reverse an axis with flip"])
        if known_less(b, a, {}) or known_less(n, b, {}) or known_less(a, 0, {}):
            raise ShapeError(f"the slice {format_dim(a)}:{format_dim(b)} leaves dimension {i} of size {format_dim(n)}",
                             received=str(types[0]))
        out.append(ceildiv(b - a, s))
    return (types[0].with_shape(out),)


def _slice_requires(types: Types, attrs: Attrs) -> list[tuple[DimLike, str, DimLike]]:
    bounds = zip(types[0].shape, attrs["start"], attrs["limit"], strict=True)
    return [fact for n, a, b in bounds for fact in ((a, ">=", 0), (b, ">=", a), (n, ">=", b))]


def _slice_reference(x: Array, start: Any, limit: Any, stride: Any) -> Array:
    return x[tuple(slice(a, b, s) for a, b, s in zip(start, limit, stride, strict=True))].copy()


def _slice_element(e: ElementBuilder, op: Op, index: Index, r: int) -> Value:
    return e.operand(0, [a + x * s for x, a, s in zip(index, op.attrs["start"], op.attrs["stride"], strict=True)])


def _slice_back(x: Applied, g: Any) -> Any:
    """The cotangent put where the slice was taken, among zeros."""
    start, stride = x.attrs["start"], x.attrs["stride"]
    after = [n - a - m - (dim_max(m - 1, 0) * (s - 1) if s != 1 else 0)
             for n, a, m, s in zip(x.operands[0].type.shape, start, g.type.shape, stride, strict=True)]
    return bind("pad", g, low=tuple(start), high=tuple(after), interior=tuple(s - 1 for s in stride), value=0)


primitive("slice", family="movement", infer=_slice_infer, reference=_slice_reference, dtypes=EVERY, element=_slice_element,
          batch=br.prefixing(start=0, limit="size", stride=1),
          linear=True, vjp=reverse(_slice_back), doc="Elements start, start + stride … below limit along each axis; strides are positive.",
          facts={"requires": _slice_requires})


def _padding(attrs: Attrs, rank: int) -> tuple[Shape, Shape, Shape]:
    return tuple(attrs["low"]), tuple(attrs["high"]), tuple(attrs.get("interior") or (0,) * rank)


def _pad_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("pad", types, 1)
    low, high, interior = _padding(attrs, types[0].rank)
    if not len(low) == len(high) == len(interior) == types[0].rank:
        raise ShapeError(f"'pad' of {types[0]} needs a low and a high amount for each of its {types[0].rank} axes")
    out: list[DimLike] = []
    for i, (n, a, b, s) in enumerate(zip(types[0].shape, low, high, interior, strict=True)):
        gaps = dim_max(n - 1, 0) * s if s != 0 else 0
        size = n + a + b + gaps
        if isinstance(size, int) and size < 0:
            raise ShapeError(f"'pad' cuts more than dimension {i} has: {format_dim(n)} with {a} and {b}")
        out.append(size)
    return (types[0].with_shape(out),)


def _pad_reference(x: Array, low: Any, high: Any, value: Any = 0, interior: Any = None) -> Array:
    gaps = interior or (0,) * x.ndim
    shape = [n + a + b + max(n - 1, 0) * s for n, a, b, s in zip(x.shape, low, high, gaps, strict=True)]
    out = np.full(shape, value, x.dtype)
    into, frm = [], []
    for n, size, a, s in zip(x.shape, shape, low, gaps, strict=True):
        places = np.arange(n) * (s + 1) + a
        keep = (places >= 0) & (places < size)
        into.append(places[keep])
        frm.append(np.flatnonzero(keep))
    if x.ndim == 0:
        return x.copy()
    out[np.ix_(*into)] = x[np.ix_(*frm)]
    return out


def _pad_element(e: ElementBuilder, op: Op, index: Index, r: int) -> Value:
    t = op.operands[0].type
    low, _, interior = _padding(op.attrs, t.rank)
    tests: list[Value] = []
    src: list[DimLike] = []
    for x, n, a, gap in zip(index, t.shape, low, interior, strict=True):
        at = x - a
        if gap != 0:
            on_grid = e.emit("eq", e.index(at % (gap + 1)), e.const(0, dt.int64), dtype=dt.bool_)
            tests.append(on_grid)
            inside = e.inside(at, 0, (n - 1) * (gap + 1) + 1)
            at = at // (gap + 1)
        else:
            inside = e.inside(at, 0, n)
        if inside is not None:
            tests.append(inside)
        src.append(at)
    if not tests:
        return e.operand(0, src)
    hit = tests[0]
    for test in tests[1:]:
        hit = e.emit("logical_and", hit, test, dtype=dt.bool_)
    return e.guarded(hit, lambda: e.operand(0, src), op.attrs.get("value", 0))


def _pad_back(x: Applied, g: Any) -> Any:
    """The elements that were not padding; those that were cut get 0."""
    shape = x.operands[0].type.shape
    low, _, interior = _padding(x.attrs, len(shape))
    whole = tuple(n * (gap + 1) for n, gap in zip(shape, interior, strict=True))
    after = tuple(w - m + a for w, m, a in zip(whole, g.type.shape, low, strict=True))
    g = bind("pad", g, low=tuple(-a for a in low), high=after, value=0)
    if all(gap == 0 for gap in interior):
        return g
    return bind("slice", g, start=(0,) * len(shape), limit=whole, stride=tuple(gap + 1 for gap in interior))


def _pad_jvp(x: Applied, t: Any) -> Any:
    return bind("pad", t, **{**x.attrs, "value": 0})


primitive("pad", family="movement", infer=_pad_infer, reference=_pad_reference, dtypes=EVERY, element=_pad_element,
          batch=br.prefixing(low=0, high=0, interior=0),
          jvp=onward(_pad_jvp), vjp=reverse(_pad_back),
          doc="``value`` put ``low`` before, ``high`` after and ``interior`` between the elements; negative amounts cut.",
          facts={"requires": lambda types, attrs: _not_negative(_pad_infer(types, attrs)[0].shape)})


def _concat_infer(types: Types, attrs: Attrs) -> Types:
    if not types:
        raise ShapeError("'concat' needs at least one operand")
    first, axis = types[0], check_axis("concat", attrs["axis"], types[0].rank)
    total: DimLike = 0
    for t in types:
        if t.rank != first.rank:
            raise ShapeError(f"'concat' joins tensors of one rank, not {first.rank} and {t.rank}", expected=str(first),
                             received=str(t))
        if t.dtype is not first.dtype:
            raise DTypeError(f"'concat' joins tensors of one dtype, not {first.dtype} and {t.dtype}")
        equal_sizes("concat", (*first.shape[:axis], 0, *first.shape[axis + 1:]), (*t.shape[:axis], 0, *t.shape[axis + 1:]),
                    str(first), str(t))
        total = total + t.shape[axis]
    return (first.with_shape((*first.shape[:axis], total, *first.shape[axis + 1:])),)


def _concat_element(e: ElementBuilder, op: Op, index: Index, r: int) -> Value:
    axis, kind = op.attrs["axis"], op.results[0].type.dtype
    start: DimLike = 0
    out: Value | None = None
    for i, v in enumerate(op.operands):
        size = v.type.shape[axis]
        if size == 0:
            continue
        at = [*index[:axis], index[axis] - start, *index[axis + 1:]]
        inside = e.inside(index[axis], start, start + size)
        if inside is None:
            return e.operand(i, at)
        piece = e.guarded(inside, lambda i=i, at=at: e.operand(i, at), 0)  # type: ignore[misc]
        out = piece if out is None else e.emit("select", inside, piece, out, dtype=kind)
        start = start + size
    return out if out is not None else e.const(0, kind)


def _concat_back(x: Applied, gs: Sequence[Any]) -> list[Any]:
    axis, start = x.attrs["axis"], 0
    out: list[Any] = []
    for t, wanted in zip(x.operands, x.wanted, strict=True):
        low: list[DimLike] = [0] * t.type.rank
        high = list(t.type.shape)
        low[axis], high[axis] = start, start + high[axis]
        out.append(bind("slice", gs[0], start=tuple(low), limit=tuple(high), stride=(1,) * len(low)) if wanted else None)
        start = high[axis]
    return out


primitive("concat", family="movement", infer=_concat_infer, reference=lambda *xs, axis: np.concatenate(xs, axis),
          batch=br.shifting("axis"),
          dtypes=EVERY, element=_concat_element, linear=True, vjp=_concat_back,
          doc="Operands joined along ``axis``.", facts={"variadic": True})


# -- complex memory as pairs ------------------------------------------------------------------------------------------------
def _as_real_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("view_as_real", types, 1)
    accept("view_as_real", types, COMPLEX)
    return (TensorType(types[0].dtype.real, (*types[0].shape, 2)),)


def _as_complex_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("view_as_complex", types, 1)
    accept("view_as_complex", types, (dt.f32, dt.f64))
    t = types[0]
    if t.rank == 0 or t.shape[-1] != 2:
        raise ShapeError("'view_as_complex' takes pairs: a last axis of size 2", received=str(t))
    return (TensorType(dt.complex128 if t.dtype is dt.f64 else dt.complex64, t.shape[:-1]),)


def _as_complex_reference(x: Array) -> Array:
    kind = {4: np.complex64, 8: np.complex128}.get(x.dtype.itemsize, np.clongdouble)
    return np.ascontiguousarray(x).view(kind).reshape(x.shape[:-1])


def _conjugate(z: Any) -> Any:
    return bind("complex", bind("real", z), bind("neg", bind("imag", z)))


primitive("view_as_real", family="movement", infer=_as_real_infer, dtypes=COMPLEX, external="view",
          batch=br.leading,
          linear=True, vjp=reverse(lambda x, g: _conjugate(bind("view_as_complex", g))),
          reference=lambda x: np.stack([x.real, x.imag], -1), doc="Complex elements as pairs along a new last axis: the same "
          "memory.", facts={"view": True})
primitive("view_as_complex", family="movement", infer=_as_complex_infer, dtypes=(dt.f32, dt.f64), external="view",
          batch=br.leading,
          linear=True, vjp=reverse(lambda x, g: bind("view_as_real", _conjugate(g))), reference=_as_complex_reference,
          doc="Pairs along the last axis as complex elements: the same memory.",
          facts={"view": True})


# -- values from nothing ---------------------------------------------------------------------------------------------------
def _full_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("full", types, 0)
    return (TensorType(attrs["dtype"], tuple(attrs["shape"])),)


primitive("full", family="movement", infer=_full_infer,
          reference=lambda shape, value, dtype: np.full(shape, np.asarray(value).astype(dtype.np), dtype.np), dtypes=EVERY,
          element=lambda e, op, index, r: e.const(op.attrs["value"], op.attrs["dtype"]), doc="One value everywhere.",
          facts={"requires": lambda types, attrs: _not_negative(attrs["shape"])})


def _iota_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("iota", types, 0)
    shape = tuple(attrs["shape"])
    check_axis("iota", attrs["axis"], len(shape))
    if attrs["dtype"] not in (*INTS, dt.f16, dt.bf16, dt.f32, dt.f64):
        raise DTypeError(f"'iota' does not count in {attrs['dtype']}", expected="an integer or float dtype")
    return (TensorType(attrs["dtype"], shape),)


def _iota_reference(shape: Any, axis: int, dtype: DType) -> Array:
    line = np.arange(shape[axis]).astype(dtype.np).reshape([-1 if i == axis else 1 for i in range(len(shape))])
    return np.ascontiguousarray(np.broadcast_to(line, shape))


def _iota_element(e: ElementBuilder, op: Op, index: Index, r: int) -> Value:
    value = e.index(index[op.attrs["axis"]])
    kind = op.attrs["dtype"]
    return value if kind is dt.int64 else e.emit("convert", value, dtype=kind)


primitive("iota", family="movement", infer=_iota_infer, reference=_iota_reference, dtypes=INTS, element=_iota_element,
          doc="Each element is its own index along ``axis``.",
          facts={"requires": lambda types, attrs: _not_negative(attrs["shape"])})


def _constant_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("constant", types, 0)
    value = attrs["value"]
    if isinstance(value, np.ndarray | np.generic):
        return (TensorType(as_dtype(value.dtype), value.shape),)
    return (TensorType(attrs.get("dtype") or as_dtype(type(value)), ()),)


def _constant_reference(value: Any, dtype: DType | None = None) -> Array:
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    return np.asarray(value).astype((dtype or as_dtype(type(value))).np)


def is_uniform(constant: Op) -> bool:
    """Whether all elements of a ``constant`` op have the same bits: then it is a literal, else a buffer."""
    value = np.asarray(constant.attrs["value"])
    return value.size == 0 or value.tobytes() == value.flat[0].tobytes() * value.size


def _constant_element(e: ElementBuilder, op: Op, index: Index, r: int) -> Value:
    """Uniform constants are literals; the scheduler puts the others into buffers before it asks for elements."""
    value, kind = np.asarray(op.attrs["value"]), op.results[0].type.dtype
    if is_uniform(op):
        return e.const(value.flat[0].item() if value.size else 0, kind)
    raise ValueError("a constant array has no element rule: it is a buffer")


primitive("constant", family="movement", infer=_constant_infer, reference=_constant_reference, dtypes=EVERY,
          element=_constant_element, doc="A literal: an array, or a number with ``dtype``.")


def _size_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("size", types, 0)
    return (TensorType(dt.int64, ()),)


primitive("size", family="movement", infer=_size_infer, reference=lambda value: np.asarray(value, np.int64),
          dtypes=(dt.int64,), element=lambda e, op, index, r: e.index(op.attrs["value"]),
          doc="A size expression as an int64 number.")
