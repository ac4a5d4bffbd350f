"""Convolution and pooling over any number of spatial axes.

Operands are [N, C, *spatial] and [O, C/groups, *kernel]; like everybody's "convolution" it is a cross-correlation: the
kernel is not flipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import ArgumentError, ShapeError
from ..ir.core import Op, TensorType, Value
from ..tracing.recorder import bind
from ..types import dtypes as dt
from ..types.dims import DimLike, format_dim, known_nonnegative, product
from ..types.dtypes import DType, as_dtype
from . import batch_rules as br
from . import pointwise as pw
from . import shaping as sh
from .contraction import dot_accumulate, product_jvp
from .convolution_rules import conv_vjp, spread_conv
from .movement import _pad_reference
from .operands import as_tensor, convert, one_of, promoted
from .reduction_rules import window_back, window_jvp
from .rules import LOW, REAL, Array, accept, expect_operands, same_dtype
from .table import Attrs, Bound, ElementBuilder, primitive

Types = Sequence[TensorType]
Pairs = tuple[tuple[int, int], ...]


# -- windows -------------------------------------------------------------------------------------------------------------
def window_size(n: DimLike, window: DimLike, stride: int, pads: tuple[int, int], dilation: int, spread: int = 1) -> DimLike:
    """How many places a (dilated) window takes along a padded axis whose elements stand ``spread`` apart."""
    wide = (n - 1) * spread + 1
    return (wide + pads[0] + pads[1] - ((window - 1) * dilation + 1)) // stride + 1


def _spatial(name: str, t: TensorType, window: Sequence[DimLike], attrs: Attrs) -> list[DimLike]:
    n = len(window)
    keys = ("strides", "padding", "dilation")
    parts = [tuple(attrs[k]) for k in keys]
    spread = tuple(attrs.get("input_dilation") or (1,) * n)
    for key, part in zip((*keys, "input_dilation"), (*parts, spread), strict=True):
        if len(part) != n:
            raise ShapeError(f"{name!r} has {n} spatial axes and {len(part)} {key}", received=str(t))
    out = []
    for i, (size, w, s, p, d, g) in enumerate(zip(t.shape[2:], window, *parts, spread, strict=True)):
        if s < 1 or d < 1 or g < 1:
            raise ShapeError(f"the strides and dilations of {name!r} are at least 1")
        m = window_size(size, w, s, p, d, g)
        if isinstance(m, int) and m < 1 and not known_nonnegative(m - 1):
            raise ShapeError(f"the window of {name!r} does not fit dimension {i + 2}: size {format_dim(size)} padded by "
                             f"{p[0]} and {p[1]}, window {format_dim(w)}", received=str(t),
                             hints=["Add padding, or use a smaller window"])
        out.append(m)
    return out


def _windows(x: Array, window: Sequence[int], strides: Sequence[int], padding: Pairs, dilation: Sequence[int], fill: Any,
             spread: Sequence[int] | None = None) -> Array:
    """[N, C, *out, *window] of a padded input."""
    gaps = tuple(s - 1 for s in spread) if spread else (0,) * len(window)
    x = _pad_reference(x, (0, 0, *[p[0] for p in padding]), (0, 0, *[p[1] for p in padding]), fill, (0, 0, *gaps))
    spans = [(w - 1) * d + 1 for w, d in zip(window, dilation, strict=True)]
    axes = tuple(range(2, x.ndim))
    view = np.lib.stride_tricks.sliding_window_view(x, spans, axes)
    steps = (slice(None), slice(None), *[slice(None, None, s) for s in strides], *[slice(None, None, d) for d in dilation])
    return view[steps]


def _source(e: ElementBuilder, place: DimLike, size: DimLike, pad: int, spread: int) -> tuple[DimLike, list[Value]]:
    """The input's index behind a padded, spread place, and the tests that it exists."""
    at = place - pad
    tests: list[Value] = []
    if spread > 1:
        inside = e.inside(at, 0, (size - 1) * spread + 1)
        tests.append(e.emit("eq", e.index(at % spread), e.const(0, dt.int64), dtype=dt.bool_))
        at = at // spread
    else:
        inside = e.inside(at, 0, size)
    return at, tests if inside is None else [*tests, inside]


def _all(e: ElementBuilder, tests: Sequence[Value]) -> Value | None:
    hit: Value | None = None
    for t in tests:
        hit = t if hit is None else e.emit("logical_and", hit, t, dtype=dt.bool_)
    return hit


# -- conv ----------------------------------------------------------------------------------------------------------------
def _conv_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("conv", types, 2)
    accept("conv", types, REAL)
    kind = same_dtype("conv", types)
    x, w = types
    groups = attrs["groups"]
    if x.rank < 3 or w.rank != x.rank:
        raise ShapeError(f"'conv' takes [N, C, *spatial] and [O, C/groups, *kernel], not ranks {x.rank} and {w.rank}",
                         received=f"{x}, {w}")
    if x.shape[1] != w.shape[1] * groups:
        raise ShapeError(f"Shape mismatch in dimension 1: {format_dim(x.shape[1])} vs {format_dim(w.shape[1] * groups)}",
                         expected=f"{format_dim(w.shape[1] * groups)} input channels", received=str(x),
                         sentence=f"The kernel {w} in {groups} group{'s' * (groups != 1)} takes {w.shape[1] * groups} channels.")
    if isinstance(w.shape[0], int) and w.shape[0] % groups:
        raise ShapeError(f"'conv' cannot split {w.shape[0]} output channels into {groups} groups")
    out = attrs.get("dtype") or kind
    return (TensorType(out, (x.shape[0], w.shape[0], *_spatial("conv", x, w.shape[2:], attrs))),)


def _conv_reference(x: Array, w: Array, strides: Any, padding: Any, dilation: Any, groups: int = 1,
                    input_dilation: Any = None, accumulate: DType | None = None, dtype: DType | None = None) -> Array:
    out = dtype.np if dtype is not None else x.dtype
    wide = accumulate.np if accumulate is not None else np.dtype(np.float32) if x.dtype in LOW else x.dtype
    if x.dtype.kind in "iu":
        wide = out
    o, c = w.shape[:2]
    n = w.ndim - 2
    view = _windows(x.astype(wide), w.shape[2:], strides, padding, dilation, 0, input_dilation)
    shape = (x.shape[0], o, *view.shape[2:2 + n])
    result = np.zeros(shape, wide)
    for g in range(groups):
        part = view[:, g * c:(g + 1) * c]
        kernel = w[g * (o // groups):(g + 1) * (o // groups)].astype(wide)
        axes = ([1, *range(2 + n, 2 + 2 * n)], [1, *range(2, 2 + n)])
        done = np.tensordot(part, kernel, axes)  # [N, *out, O/groups]
        result[:, g * (o // groups):(g + 1) * (o // groups)] = np.moveaxis(done, -1, 1)
    return result.astype(out)


def _conv_element(e: ElementBuilder, op: Op, index: Sequence[DimLike], r: int) -> Value:
    types = [v.type for v in op.operands]
    x, w = types
    a, out = op.attrs, op.results[0].type.dtype
    run_in = dot_accumulate(types, a)
    per_group = w.shape[0] // a["groups"]
    spread = a.get("input_dilation") or (1,) * (x.rank - 2)
    first_channel = (index[1] // per_group) * w.shape[1] if a["groups"] > 1 else 0

    def make(inner: Sequence[DimLike]) -> Value:
        src: list[DimLike] = [index[0], first_channel + inner[0]]
        tests: list[Value] = []
        for i in range(x.rank - 2):
            place = index[2 + i] * a["strides"][i] + inner[1 + i] * a["dilation"][i]
            at, found = _source(e, place, x.shape[2 + i], a["padding"][i][0], spread[i])
            src.append(at)
            tests += found
        hit = _all(e, tests)
        v = e.operand(0, src) if hit is None else e.guarded(hit, lambda: e.operand(0, src), 0)
        k = e.operand(1, [index[1], *inner])
        if run_in is not x.dtype:
            v, k = e.emit("convert", v, dtype=run_in), e.emit("convert", k, dtype=run_in)
        return e.emit("mul", v, k, dtype=run_in)

    total = e.reduce("add", list(w.shape[1:]), make)
    return total if run_in is out else e.emit("convert", total, dtype=out)


def _conv_terms(types: Types, attrs: Attrs) -> float:
    n = product(types[1].shape[1:])
    return float(n) + 1 if isinstance(n, int) else 1024.0


primitive("conv", family="contraction", infer=_conv_infer, reference=_conv_reference, dtypes=REAL, element=_conv_element,
          batch=br.conv,
          template="conv", jvp=product_jvp, vjp=conv_vjp, bound=Bound(1, _conv_terms),
          doc="Cross-correlation of [N, C, *spatial] with [O, C/groups, *kernel]; ``input_dilation`` spreads the input.",
          facts={"prefer": "template", "attrs": ("strides", "padding", "dilation", "groups", "input_dilation", "accumulate",
                                                 "dtype")})


def _each(value: Any, n: int) -> tuple[int, ...]:
    return (value,) * n if isinstance(value, int) else tuple(int(v) for v in value)


def _pads(padding: Any, n: int, sizes: Sequence[DimLike], window: Sequence[DimLike], strides: Sequence[int],
          dilation: Sequence[int]) -> Pairs:
    """"valid", "same", one amount, an amount an axis, or a (before, after) pair an axis."""
    if isinstance(padding, str):
        if padding.lower() == "valid":
            return ((0, 0),) * n
        if padding.lower() != "same":
            raise ValueError(f"padding is 'same', 'valid' or numbers, not {padding!r}")
        return tuple(_same(*at) for at in zip(sizes, window, strides, dilation, strict=True))
    return tuple((p, p) if isinstance(p, int) else (int(p[0]), int(p[1])) for p in (
        (padding,) * n if isinstance(padding, int) else padding))


def _same(size: DimLike, window: DimLike, stride: int, dilation: int) -> tuple[int, int]:
    """Padding that makes the result's size the input's, divided by the stride and rounded up."""
    if not isinstance(window, int) or not (isinstance(size, int) or stride == 1):
        raise ShapeError("padding 'same' needs a known window, and with a stride a known size",
                         hints=["Give the padding as numbers"])
    span = (window - 1) * dilation + 1
    total = max((-(-size // stride) - 1) * stride + span - size, 0) if isinstance(size, int) else span - 1
    return total // 2, total - total // 2


def conv(x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1,
         layout: str = "NCHW", accumulate: Any = None) -> Any:
    """Convolution over the spatial axes of ``x`` [N, C, *spatial] with ``weight`` [O, C/groups, *kernel].

    Args:
        padding: "same", "valid", one amount, an amount an axis, or (before, after) pairs.
        layout: "NCHW", or "NHWC" for channels last (``weight`` keeps its axes).

    Raises:
        ShapeError: channels do not agree or the kernel does not fit.
    """
    x, weight = promoted("conv", x, weight)
    last = layout.upper().endswith("C")
    if last:
        x = sh.moveaxis(x, -1, 1)
    n = len(x.type.shape) - 2
    if n < 1:
        raise ShapeError(f"conv takes [N, C, *spatial], not a tensor of rank {n + 2}", received=str(x.type))
    strides, spread = _each(stride, n), _each(dilation, n)
    pads = _pads(padding, n, x.type.shape[2:], weight.type.shape[2:], strides, spread)
    extra = {} if accumulate is None else {"accumulate": as_dtype(accumulate)}
    y = bind("conv", x, weight, strides=strides, padding=pads, dilation=spread, groups=groups, **extra)
    if bias is not None:
        y = pw.add(y, sh.reshape(as_tensor(bias), (-1, *[1] * n)))
    return sh.moveaxis(y, 1, -1) if last else y


conv1d = conv2d = conv3d = conv


def conv_transpose(x: Any, weight: Any, bias: Any = None, stride: Any = 1, padding: Any = 0, output_padding: Any = 0,
                   dilation: Any = 1, groups: int = 1) -> Any:
    """The transpose of :func:`conv`: ``weight`` is [C, O/groups, *kernel], the input is spread by ``stride``."""
    x, weight = promoted("conv_transpose", x, weight)
    n = len(x.type.shape) - 2
    strides, spread = _each(stride, n), _each(dilation, n)
    pads, extra = _each(padding, n), _each(output_padding, n)
    c, per_group, *window = weight.type.shape
    kernel = sh.flip(weight, tuple(range(2, n + 2)))
    kernel = sh.reshape(kernel, (groups, c // groups, per_group, *window))
    kernel = sh.reshape(sh.swapaxes(kernel, 1, 2), (groups * per_group, c // groups, *window))
    around = tuple(((w - 1) * d - p, (w - 1) * d - p + e) for w, d, p, e in zip(window, spread, pads, extra, strict=True))
    y = spread_conv(x, kernel, strides, strides=(1,) * n, padding=around, dilation=spread, groups=groups)
    return y if bias is None else pw.add(y, sh.reshape(as_tensor(bias), (-1, *[1] * n)))


# -- pooling -------------------------------------------------------------------------------------------------------------
_POOL: dict[str, tuple[Callable[..., Any], str]] = {"add": (np.sum, "zero"), "max": (np.max, "min"), "min": (np.min, "max")}


def _identity(combine: str, kind: DType) -> Any:
    return {"add": 0, "max": kind.min, "min": kind.max}[combine]


def _pool_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("reduce_window", types, 1)
    accept("reduce_window", types, REAL)
    if attrs["combine"] not in _POOL:
        raise ShapeError(f"'reduce_window' combines with add, max or min, not {attrs['combine']!r}")
    x, window = types[0], tuple(attrs["window"])
    if x.rank != len(window) + 2:
        raise ShapeError(f"'reduce_window' takes [N, C, *spatial] with {len(window)} spatial axes, not rank {x.rank}")
    return (x.with_shape((*x.shape[:2], *_spatial("reduce_window", x, window, attrs))),)


def _pool_reference(x: Array, window: Any, strides: Any, padding: Any, dilation: Any, combine: str) -> Array:
    wide = x.astype(np.float32) if x.dtype in LOW else x
    kind = dt.f64 if x.dtype == np.longdouble else as_dtype(x.dtype)
    fill = np.asarray(_identity(combine, kind)).astype(wide.dtype)
    view = _windows(wide, window, strides, padding, dilation, fill)
    axes = tuple(range(2 + len(window), 2 + 2 * len(window)))
    with np.errstate(all="ignore"):
        extra = {"dtype": wide.dtype} if combine == "add" else {}
        return np.asarray(_POOL[combine][0](view, axis=axes, **extra)).astype(x.dtype)


def _pool_element(e: ElementBuilder, op: Op, index: Sequence[DimLike], r: int) -> Value:
    x, a = op.operands[0].type, op.attrs
    run_in = dt.f32 if x.dtype.is_float and x.dtype.bits < 32 and a["combine"] == "add" else x.dtype

    def make(inner: Sequence[DimLike]) -> Value:
        src: list[DimLike] = list(index[:2])
        tests: list[Value] = []
        for i, k in enumerate(inner):
            place = index[2 + i] * a["strides"][i] + k * a["dilation"][i]
            at, found = _source(e, place, x.shape[2 + i], a["padding"][i][0], 1)
            src.append(at)
            tests += found
        hit = _all(e, tests)
        v = e.operand(0, src) if hit is None else e.guarded(hit, lambda: e.operand(0, src), _identity(a["combine"], x.dtype))
        return v if run_in is x.dtype else e.emit("convert", v, dtype=run_in)

    total = e.reduce(a["combine"], list(a["window"]), make)
    return total if run_in is x.dtype else e.emit("convert", total, dtype=x.dtype)


def _pool_terms(types: Types, attrs: Attrs) -> float:
    return float(math.prod(attrs["window"])) if attrs["combine"] == "add" else 0.0


primitive("reduce_window", family="reduction", infer=_pool_infer, reference=_pool_reference, dtypes=REAL,
          batch=br.folding,
          element=_pool_element, bound=Bound(1, _pool_terms), jvp=window_jvp, vjp=window_back,
          doc="``combine`` (add, max, min) over a window that moves along the spatial axes of [N, C, *spatial].",
          facts={"attrs": ("window", "strides", "padding", "dilation", "combine")})


def _one_window(name: str, window: Any, kernel_size: Any) -> Any:
    window = one_of(name, window, kernel_size, "window", "kernel_size")
    if window is None:
        raise ArgumentError(f"{name}() needs a window", expected=f"{name}(x, window, stride, padding)")
    return window


def _pool(name: str, x: Any, window: Any, stride: Any, padding: Any, combine: str) -> tuple[Any, tuple[int, ...]]:
    x = as_tensor(x)
    n = len(x.type.shape) - 2
    if n < 1:
        raise ShapeError(f"{name} takes [N, C, *spatial], not a tensor of rank {n + 2}", received=str(x.type))
    sizes = _each(window, n)
    strides = sizes if stride is None else _each(stride, n)
    pads = _pads(padding, n, x.type.shape[2:], sizes, strides, (1,) * n)
    return bind("reduce_window", x, window=sizes, strides=strides, padding=pads, dilation=(1,) * n, combine=combine), sizes


def max_pool(x: Any, window: Any = None, stride: Any = None, padding: Any = 0, *, kernel_size: Any = None) -> Any:
    """The maximum over windows of [N, C, *spatial]; the stride is the window unless given.  Equal elements share its derivative.

    Args:
        window: one size, or a size an axis; ``kernel_size`` is another spelling.

    Raises:
        ShapeError: the window does not fit.
    """
    return _pool("max_pool", x, _one_window("max_pool", window, kernel_size), stride, padding, "max")[0]


def avg_pool(x: Any, window: Any = None, stride: Any = None, padding: Any = 0, *, kernel_size: Any = None) -> Any:
    """The mean over windows of [N, C, *spatial]; padding counts as zeros.  Arguments and errors as for :func:`max_pool`."""
    x, window = as_tensor(x), _one_window("avg_pool", window, kernel_size)
    wide = convert(x, dt.f32) if not x.dtype.is_float or x.dtype.bits < 32 else x
    total, sizes = _pool("avg_pool", wide, window, stride, padding, "add")
    mean = pw.div(total, float(math.prod(sizes)))
    return convert(mean, x.dtype) if x.dtype.is_float else mean


max_pool2d, avg_pool2d = max_pool, avg_pool
