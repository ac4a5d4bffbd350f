"""Reductions and cumulative ops.

The primitives drop the axes they reduce and return the operand's dtype; sums and products of 16-bit and smaller floats
run in f32.  The user's functions keep axes on request, widen integers to 64 bits and know both spellings
(``axis``/``dim``, ``keepdims``/``keepdim``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import ShapeError
from ..ir.core import Op, TensorType, Value
from ..tracing.recorder import bind
from ..types import dtypes as dt
from ..types.dims import DimLike, product
from ..types.dtypes import DType, as_dtype
from ..types.promotion import accumulator, to_inexact
from . import batch_rules as br
from . import pointwise as pw
from . import reduction_rules as rules
from .operands import as_tensor, axes_of, axis_of, convert, one_of, scalar
from .rules import BOOL, COMPLEX, FLOATS, LOW, REAL, Array, accept, check_axis, expect_operands
from .table import Attrs, Bound, ElementBuilder, primitive

Types = Sequence[TensorType]
Fn = Callable[..., Any]


def reduced(types: Types, attrs: Attrs) -> float:
    """How many elements one result element takes in; symbolic sizes count as 1024."""
    n = product(types[0].shape[a] for a in attrs["axes"])
    return float(n) if isinstance(n, int) else 1024.0


def accumulate_in(t: TensorType, attrs: Attrs) -> DType:
    """The dtype in which a sum over ``t`` runs: the attribute's, else f32 for small floats, else the operand's own."""
    chosen = attrs.get("accumulate")
    return chosen if chosen is not None else accumulator(t.dtype) if t.dtype.is_float else t.dtype


def _infer(name: str, dtypes: Sequence[DType], empty: bool) -> Fn:
    def infer(types: Types, attrs: Attrs) -> Types:
        expect_operands(name, types, 1)
        accept(name, types, dtypes)
        t, axes = types[0], attrs["axes"]
        for a in axes:
            check_axis(name, a, t.rank)
            if t.shape[a] == 0 and not empty:
                raise ShapeError(f"{name!r} over dimension {a} of size 0: there is no element to return", received=str(t),
                                 hints=["Check the size first, or give the tensor at least one element"])
        return (t.with_shape(n for i, n in enumerate(t.shape) if i not in axes),)

    return infer


def _element(combine: str, sums: bool) -> Fn:
    def element(e: ElementBuilder, op: Op, index: Sequence[DimLike], r: int) -> Value:
        t, axes = op.operands[0].type, op.attrs["axes"]
        run_in = accumulate_in(t, op.attrs) if sums else t.dtype

        def make(inner: Sequence[DimLike]) -> Value:
            outer, inside = iter(index), iter(inner)
            v = e.operand(0, [next(inside) if i in axes else next(outer) for i in range(t.rank)])
            return v if run_in is t.dtype else e.emit("convert", v, dtype=run_in)

        total = e.reduce(combine, [t.shape[a] for a in axes], make)
        return total if run_in is t.dtype else e.emit("convert", total, dtype=t.dtype)

    return element


def _summing(fn: Fn) -> Fn:
    def reference(x: Array, axes: Any, accumulate: DType | None = None) -> Array:
        with np.errstate(all="ignore"):
            wide = accumulate.np if accumulate is not None else np.float32 if x.dtype in LOW else x.dtype
            return np.asarray(fn(x.astype(wide), axis=tuple(axes))).astype(x.dtype)

    return reference


def _choosing(fn: Fn) -> Fn:
    def reference(x: Array, axes: Any) -> Array:
        wide = x.astype(np.float32) if x.dtype in LOW else x
        return np.asarray(fn(wide, axis=tuple(axes))).astype(x.dtype)

    return reference


def _reduction(name: str, combine: str, fn: Fn, dtypes: Sequence[DType], doc: str, sums: bool = False,
               empty: bool = True, **derivatives: Any) -> None:
    primitive(name, family="reduction", infer=_infer(name, dtypes, empty), dtypes=tuple(dtypes), doc=doc, **derivatives,
              batch=br.shifting("axes"),
              reference=_summing(fn) if sums else _choosing(fn), element=_element(combine, sums),
              bound=Bound(1, reduced) if sums else Bound(), facts={"combine": combine, "attrs": ("axes",)})


_reduction("reduce_sum", "add", np.sum, REAL + COMPLEX, "The sum over ``axes``.", sums=True, linear=True,
           vjp=rules.sum_back)
_reduction("reduce_prod", "mul", np.prod, REAL, "The product over ``axes``.", sums=True,
           jvp=rules.product_jvp, vjp=rules.product_back)
_reduction("reduce_max", "max", np.max, REAL, "The greatest element over ``axes``; NaN wins.", empty=False,
           jvp=rules.extremum_jvp, vjp=rules.extremum_back)
_reduction("reduce_min", "min", np.min, REAL, "The least element over ``axes``; NaN wins.", empty=False,
           jvp=rules.extremum_jvp, vjp=rules.extremum_back)
_reduction("reduce_any", "or", np.any, BOOL, "Whether any element over ``axes`` is true.")
_reduction("reduce_all", "and", np.all, BOOL, "Whether all elements over ``axes`` are true.")


def _arg(name: str, fn: Fn) -> None:
    def infer(types: Types, attrs: Attrs) -> Types:
        (out,) = _infer(name, REAL + BOOL, False)(types, {"axes": (attrs["axis"],)})
        return (out.with_dtype(dt.int64),)

    def reference(x: Array, axis: int) -> Array:
        return np.asarray(fn(x.astype(np.float32) if x.dtype in LOW else x, axis=axis), np.int64)

    def element(e: ElementBuilder, op: Op, index: Sequence[DimLike], r: int) -> Value:
        axis = op.attrs["axis"]
        return e.reduce(name, [op.operands[0].type.shape[axis]],
                        lambda inner: e.operand(0, [*index[:axis], inner[0], *index[axis:]]))

    primitive(name, family="reduction", infer=infer, reference=reference, element=element, dtypes=REAL + BOOL,
              batch=br.shifting("axis"),
              doc=f"Index of the first {name[3:]}imum along ``axis``; a NaN counts as the {name[3:]}imum.",
              facts={"attrs": ("axis",)})


_arg("argmax", np.argmax)
_arg("argmin", np.argmin)


# -- cumulative ----------------------------------------------------------------------------------------------------------
def _cumulative(name: str, combine: str, ufunc: np.ufunc, dtypes: Sequence[DType], **derivatives: Any) -> None:
    def infer(types: Types, attrs: Attrs) -> Types:
        expect_operands(name, types, 1)
        accept(name, types, dtypes)
        check_axis(name, attrs["axis"], types[0].rank)
        return (types[0],)

    def reference(x: Array, axis: int, reverse: bool = False) -> Array:
        with np.errstate(all="ignore"):
            wide = x.astype(np.float32) if x.dtype in LOW else x
            out = ufunc.accumulate(np.flip(wide, axis) if reverse else wide, axis=axis, dtype=wide.dtype)
            return np.ascontiguousarray(np.flip(out, axis) if reverse else out).astype(x.dtype)

    def terms(types: Types, attrs: Attrs) -> float:
        return reduced(types, {"axes": (attrs["axis"],)})

    primitive(name, family="reduction", infer=infer, reference=reference, template="scan", dtypes=tuple(dtypes),
              batch=br.shifting("axis"),
              bound=Bound(1, terms) if combine in ("add", "mul") else Bound(), **derivatives,
              doc=f"The running {combine} along ``axis``, from the end with ``reverse``.",
              facts={"combine": combine, "attrs": ("axis", "reverse")})


_cumulative("cumsum", "add", np.add, REAL, linear=True, vjp=rules.cumsum_back)
_cumulative("cumprod", "mul", np.multiply, REAL, jvp=rules.cumprod_jvp, vjp=rules.cumprod_back)
_cumulative("cummax", "max", np.maximum, REAL, jvp=rules.running_jvp, vjp=rules.running_back)
_cumulative("cummin", "min", np.minimum, REAL, jvp=rules.running_jvp, vjp=rules.running_back)


# -- the user's functions --------------------------------------------------------------------------------------------------
def keep(x: Any, axes: Sequence[int], out: Any) -> Any:
    """``out`` with the reduced axes put back as size 1."""
    return bind("reshape", out, shape=tuple(1 if i in axes else n for i, n in enumerate(x.type.shape)))


def apply(name: str, x: Any, axes: tuple[int, ...], keepdims: bool, **attrs: Any) -> Any:
    """Bind a reduction over non-negative axes."""
    if not axes:
        return x
    out = bind(name, x, axes=axes, **attrs)
    return keep(x, axes, out) if keepdims else out


def _arguments(name: str, x: Any, axis: Any, dim: Any, keepdims: Any, keepdim: Any) -> tuple[Any, tuple[int, ...], bool]:
    x = as_tensor(x)
    axes = axes_of(name, x, one_of(name, axis, dim, "axis", "dim"))
    return x, axes, bool(one_of(name, keepdims, keepdim, "keepdims", "keepdim", False))


def _widened(x: Any, dtype: Any) -> Any:
    if dtype is not None:
        return convert(x, as_dtype(dtype))
    return x if x.dtype.is_inexact else convert(x, accumulator(x.dtype))


def sum(x: Any, axis: Any = None, keepdims: Any = None, *, dim: Any = None, keepdim: Any = None, dtype: Any = None,
        accumulate: Any = None) -> Any:
    """The sum over ``axis`` (an int, several, or None for all).

    Integers and bools accumulate and return 64 bits; 16-bit and smaller floats accumulate in f32.
    """
    x, axes, keepdims = _arguments("sum", x, axis, dim, keepdims, keepdim)
    attrs = {} if accumulate is None else {"accumulate": as_dtype(accumulate)}
    return apply("reduce_sum", _widened(x, dtype), axes, keepdims, **attrs)


def prod(x: Any, axis: Any = None, keepdims: Any = None, *, dim: Any = None, keepdim: Any = None, dtype: Any = None) -> Any:
    """The product over ``axis``; dtypes as for :func:`sum`."""
    x, axes, keepdims = _arguments("prod", x, axis, dim, keepdims, keepdim)
    return apply("reduce_prod", _widened(x, dtype), axes, keepdims)


def _extremum(name: str, on_bool: str) -> Fn:
    def function(x: Any, axis: Any = None, keepdims: Any = None, *, dim: Any = None, keepdim: Any = None) -> Any:
        x, axes, keepdims = _arguments(name, x, axis, dim, keepdims, keepdim)
        return apply(on_bool if x.dtype is dt.bool_ else f"reduce_{name}", x, axes, keepdims)

    return pw.named(function, name, f"The {name}imum over ``axis``; NaN wins.  Equal elements share its derivative.\n\n"
                    "    Raises:\n        ShapeError: an axis "
                    "that is reduced has size 0.")


max = _extremum("max", "reduce_any")
min = _extremum("min", "reduce_all")
amax, amin = max, min


def any(x: Any, axis: Any = None, keepdims: Any = None, *, dim: Any = None, keepdim: Any = None) -> Any:
    """Whether any element over ``axis`` is true (not zero)."""
    x, axes, keepdims = _arguments("any", x, axis, dim, keepdims, keepdim)
    return apply("reduce_any", convert(x, dt.bool_), axes, keepdims)


def all(x: Any, axis: Any = None, keepdims: Any = None, *, dim: Any = None, keepdim: Any = None) -> Any:
    """Whether all elements over ``axis`` are true (not zero)."""
    x, axes, keepdims = _arguments("all", x, axis, dim, keepdims, keepdim)
    return apply("reduce_all", convert(x, dt.bool_), axes, keepdims)


def _argument(name: str) -> Fn:
    def function(x: Any, axis: int | None = None, keepdims: Any = None, *, dim: int | None = None, keepdim: Any = None) -> Any:
        x = as_tensor(x)
        axis = one_of(name, axis, dim, "axis", "dim")
        keepdims = bool(one_of(name, keepdims, keepdim, "keepdims", "keepdim", False))
        if axis is None:
            out = bind(name, bind("reshape", x, shape=(product(x.type.shape),)), axis=0)
            return bind("reshape", out, shape=(1,) * len(x.type.shape)) if keepdims else out
        axis = axis_of(name, x, axis)
        out = bind(name, x, axis=axis)
        return keep(x, (axis,), out) if keepdims else out

    return pw.named(function, name, f"int64 index of the first {name[3:]}imum along ``axis`` (None: in the flattened tensor).")


argmax, argmin = _argument("argmax"), _argument("argmin")


def count(x: Any, axes: Sequence[int], dtype: DType) -> Any:
    """How many elements ``axes`` have, as a number of ``dtype`` (a size op where it is symbolic)."""
    n = product(x.type.shape[a] for a in axes)
    return scalar(n, dtype) if isinstance(n, int) else convert(bind("size", value=n), dtype)


def _wide(x: Any) -> tuple[Any, DType]:
    """``x`` in the dtype in which statistics are computed, and the dtype of their result."""
    out = to_inexact(x.dtype)
    return convert(x, accumulator(out) if out.is_float else out), out


def mean(x: Any, axis: Any = None, keepdims: Any = None, *, dim: Any = None, keepdim: Any = None) -> Any:
    """The mean over ``axis``; integers give f32, small floats are averaged in f32 and rounded once."""
    x, axes, keepdims = _arguments("mean", x, axis, dim, keepdims, keepdim)
    wide, out = _wide(x)
    return convert(_mean(wide, axes, keepdims), out)


def _mean(x: Any, axes: tuple[int, ...], keepdims: bool) -> Any:
    return pw.div(apply("reduce_sum", x, axes, keepdims), count(x, axes, x.dtype.real))


def var(x: Any, axis: Any = None, keepdims: Any = None, *, dim: Any = None, keepdim: Any = None, correction: int = 0) -> Any:
    """The variance over ``axis``: squared deviations divided by n - ``correction`` (0, as in NumPy); real also of complex numbers."""
    x, axes, keepdims = _arguments("var", x, axis, dim, keepdims, keepdim)
    wide, out = _wide(x)
    return convert(_var(wide, axes, keepdims, correction), out.real)


def _var(x: Any, axes: tuple[int, ...], keepdims: bool, correction: int) -> Any:
    off = pw.sub(x, _mean(x, axes, True))
    squares = pw.add(pw.square(pw.real(off)), pw.square(pw.imag(off))) if x.dtype.is_complex else pw.square(off)
    total = apply("reduce_sum", squares, axes, keepdims)
    n = count(x, axes, squares.dtype)
    return pw.div(total, pw.sub(n, correction) if correction else n)


def std(x: Any, axis: Any = None, keepdims: Any = None, *, dim: Any = None, keepdim: Any = None, correction: int = 0) -> Any:
    """The standard deviation over ``axis``: the root of :func:`var`."""
    x, axes, keepdims = _arguments("std", x, axis, dim, keepdims, keepdim)
    wide, out = _wide(x)
    return convert(pw.sqrt(_var(wide, axes, keepdims, correction)), out.real)


def norm(x: Any, ord: Any = 2, axis: Any = None, keepdims: Any = None, *, dim: Any = None, keepdim: Any = None) -> Any:
    """The vector norm over ``axis`` (several axes are taken as one): ord 2, 1, 0, any p > 0, ``inf``, ``-inf`` or "fro"."""
    x, axes, keepdims = _arguments("norm", x, axis, dim, keepdims, keepdim)
    wide, out = _wide(pw.abs(x) if x.dtype.is_complex else x)
    if ord in (2, "fro", None):
        y = pw.sqrt(apply("reduce_sum", pw.square(wide), axes, keepdims))
    elif ord in (math.inf, -math.inf):
        y = apply("reduce_max" if ord > 0 else "reduce_min", pw.abs(wide), axes, keepdims)
    elif ord == 0:
        y = apply("reduce_sum", convert(pw.ne(wide, 0), wide.dtype), axes, keepdims)
    elif ord == 1:
        y = apply("reduce_sum", pw.abs(wide), axes, keepdims)
    else:
        y = pw.pow(apply("reduce_sum", pw.pow(pw.abs(wide), float(ord)), axes, keepdims), 1.0 / ord)
    return convert(y, out)


def _logsumexp_reference(x: Array, axes: Any) -> Array:
    wide = x.astype(np.float32) if x.dtype in LOW else x
    with np.errstate(all="ignore"):
        top = np.max(wide, tuple(axes), keepdims=True, initial=-np.inf)
        top = np.where(np.isfinite(top), top, 0)
        return np.asarray((np.log(np.sum(np.exp(wide - top), tuple(axes), keepdims=True)) + top).squeeze(tuple(axes))).astype(x.dtype)


def _logsumexp_expand(x: Any, axes: tuple[int, ...]) -> Any:
    wide = convert(x, accumulator(x.dtype))
    top = apply("reduce_max", wide, axes, True)
    top = pw.where(pw.isfinite(top), top, 0.0)
    y = pw.add(pw.log(apply("reduce_sum", pw.exp(pw.sub(wide, top)), axes, True)), top)
    return convert(bind("reshape", y, shape=tuple(n for i, n in enumerate(x.type.shape) if i not in axes)), x.dtype)


primitive("logsumexp", family="composite", infer=_infer("logsumexp", FLOATS, False), reference=_logsumexp_reference,
          dtypes=FLOATS, expand=_logsumexp_expand, bound=Bound(4, lambda types, attrs: 4 * reduced(types, attrs)),
          jvp=rules.logsumexp_jvp, forward=rules.logsumexp_forward, vjp=rules.logsumexp_back,
          doc="log(sum(exp(x))) over ``axes`` without overflow; -inf where all elements are -inf.", facts={"attrs": ("axes",)})


def logsumexp(x: Any, axis: Any = None, keepdims: Any = None, *, dim: Any = None, keepdim: Any = None) -> Any:
    """log(sum(exp(x))) over ``axis`` without overflow; -inf where all elements are -inf."""
    x, axes, keepdims = _arguments("logsumexp", x, axis, dim, keepdims, keepdim)
    return apply("logsumexp", convert(x, to_inexact(x.dtype)), axes, keepdims)


def count_nonzero(x: Any, axis: Any = None, keepdims: Any = None, *, dim: Any = None, keepdim: Any = None) -> Any:
    """How many elements over ``axis`` are not zero, as int64."""
    return sum(convert(as_tensor(x), dt.bool_), axis, keepdims, dim=dim, keepdim=keepdim)


def allclose(x: Any, y: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> Any:
    """A bool[] tensor: whether :func:`isclose` holds everywhere."""
    return all(pw.isclose(x, y, rtol, atol, equal_nan))


def _running(name: str, widens: bool) -> Fn:
    def function(x: Any, axis: int | None = None, *, dim: int | None = None, reverse: bool = False) -> Any:
        x = as_tensor(x)
        axis = one_of(name, axis, dim, "axis", "dim")
        if axis is None:
            x, axis = bind("reshape", x, shape=(product(x.type.shape),)), 0
        if widens or x.dtype is dt.bool_:
            x = _widened(x, None)
        axis = axis_of(name, x, axis)
        return bind(name, x, axis=axis, reverse=True) if reverse else bind(name, x, axis=axis)

    return pw.named(function, name, f"Running {name[3:]} along ``axis`` (None: of the flattened tensor), from the end with "
                    "``reverse``; " + ("integers accumulate in 64 bits." if widens else "NaN wins from where it stands."))


cumsum, cumprod = _running("cumsum", True), _running("cumprod", True)
cummax, cummin = _running("cummax", False), _running("cummin", False)
