"""Quantised training and inference: ``@ts.quantization_aware(weights=ts.int8, activations=ts.int8)``, calibration, integer products.

In training mode the operands of every product are rounded to the grid of their integer format and stay floats (``fake_quantize``:
the gradient passes straight through).  In inference mode they become integers: int8 by int8 products sum in int32, exactly, and one
multiplication by the scales gives the floats back.  Both modes give the same values up to the rounding of floats, because both
compute on the same grid.  (A jitted function that calls a quantised one keeps the mode in which it was traced.)

Activations have one scale each; a matrix of weights has one for each column (output).  Scales are taken from the data at hand, or from
calibration: ``with f.calibration(): f(batch)`` collects the range of each product's activations, and inference then uses those.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .errors import ArgumentError, DTypeError, TracingError
from .numerics import Scope
from .ops import pointwise as pw
from .ops import reduction as rd
from .ops.operands import as_tensor, broadcast_to, convert
from .ops.quantize import fake_quantize, grid, parameters
from .scoped import Scoped
from .tracing import policies
from .tracing.function import TracedFunction
from .tracing.recorder import bind
from .tracing.tensor import Tensor
from .types import dtypes as dt
from .types.dtypes import DType, as_dtype


# -- tensors ---------------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Quantized:
    """Integers and the scale of one step: ``values * scale`` is what they stand for."""

    values: Tensor
    scale: Tensor

    def dequantize(self) -> Any:
        """The f32 tensor."""
        return pw.mul(convert(self.values, dt.f32), self.scale)

    @property
    def shape(self) -> tuple[Any, ...]:
        return self.values.shape


def quantize(x: Any, dtype: Any = dt.int8, *, axis: Any = None, scale: Any = None) -> Quantized:
    """``x`` as integers of ``dtype``, to nearest even, symmetric about 0.

    Args:
        axis: one scale for each index along this axis (default: one for all).
        scale: the size of a step (default: from the greatest magnitude).

    Raises:
        DTypeError: not a signed integer type of at most 16 bits.
    """
    kind = _integer(dtype, "quantize")
    x = convert(as_tensor(x), dt.f32)
    if scale is None:
        over = tuple(i for i in range(len(x.type.shape)) if axis is None or i != axis % len(x.type.shape))
        scale = parameters(rd.min(x, over, True), rd.max(x, over, True), kind.bits, True)[0]
    return Quantized(_integers(x, as_tensor(scale), kind), as_tensor(scale))


def _integer(d: Any, what: str) -> DType:
    kind = as_dtype(d)
    if kind.kind != "int" or kind.bits > 16:
        raise DTypeError(f"{what} takes a signed integer format of 4 to 16 bits, not {kind}", hints=["Use ts.int8"])
    return kind


def _integers(x: Any, scale: Any, kind: DType) -> Any:
    low, high = grid(kind.bits, True)
    steps = pw.clip(pw.round(pw.div(x, broadcast_to(scale, x.type.shape))), float(low), float(high))
    return convert(steps, kind)


# -- the engine ------------------------------------------------------------------------------------------------------------------
@dataclass
class Settings:
    """What one quantised function does to its products.

    Attributes:
        ranges: for each product, in program order, the (least, greatest) activation that calibration saw.
    """

    weights: DType
    activations: DType
    accumulate: DType
    mode: str = "train"
    percentile: float | None = None
    ranges: dict[int, tuple[float, float]] = field(default_factory=dict)
    version: int = 0

    def key(self) -> tuple[Any, ...]:
        """What a trace under these settings depends on."""
        return (id(self), self.mode, self.version)


class _Site(threading.local):
    settings: Settings | None = None
    number = 0


_site = _Site()


def product(name: str, operands: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """A product of floats as the settings in force want it (called from ``tracing/policies.py``)."""
    s = _site.settings
    x, w = operands
    if s is None or name != "dot_general" or not (x.dtype.is_float and w.dtype.is_float):
        return bind(name, x, w, **attrs)
    number, _site.number = _site.number, _site.number + 1
    if s.mode == "calibrate":
        _observe(s, number, x)
        return bind(name, x, w, **attrs)
    scale_x = _activation_scale(s, number, x)
    scale_w = parameters(*_column_limits(w, attrs), s.weights.bits, True)[0]
    if s.mode == "train":
        low = fake_quantize(x, s.activations.bits, scale=scale_x)
        return bind(name, low, fake_quantize(w, s.weights.bits, scale=scale_w), **attrs)
    return _integer_product(s, x, w, scale_x, scale_w, attrs)


def _column_limits(w: Any, attrs: dict[str, Any]) -> tuple[Any, Any]:
    """Limits over the summed axes, so that the scale can be taken out of the sum."""
    over = tuple(attrs["rhs_contract"])
    w = convert(w, dt.f32)
    return (rd.min(w, over, True), rd.max(w, over, True)) if over else (w, w)


def _activation_scale(s: Settings, number: int, x: Any) -> Any:
    known = s.ranges.get(number)
    if known is not None:
        low, high = (as_tensor(np.float32(v)) for v in known)
    else:
        wide = convert(x, dt.f32)
        low, high = rd.min(wide), rd.max(wide)
    return parameters(low, high, s.activations.bits, True)[0]


def _observe(s: Settings, number: int, x: Any) -> None:
    if x.is_traced:
        raise TracingError("calibration looks at values, and the function is being traced", hints=[
            "Calibrate the function itself, not a jitted one that calls it"])
    a = np.asarray(x).astype(np.float32).ravel()
    if not a.size:
        return
    if s.percentile is None:
        low, high = float(a.min()), float(a.max())
    else:
        low, high = (float(v) for v in np.percentile(a, [100 - s.percentile, s.percentile]))
    before = s.ranges.get(number)
    s.ranges[number] = (low, high) if before is None else (min(low, before[0]), max(high, before[1]))


def _integer_product(s: Settings, x: Any, w: Any, scale_x: Any, scale_w: Any, attrs: dict[str, Any]) -> Any:
    """Integers, their exact product, and the scales put back."""
    out = attrs.get("dtype") or x.dtype
    a, b = _integers(convert(x, dt.f32), scale_x, s.activations), _integers(convert(w, dt.f32), scale_w, s.weights)
    if a.dtype is not b.dtype:
        wide = a.dtype if a.dtype.bits > b.dtype.bits else b.dtype
        a, b = convert(a, wide), convert(b, wide)
    attrs = {**attrs, "accumulate": s.accumulate, "dtype": s.accumulate}
    total = convert(bind("dot_general", a, b, **attrs), dt.f32)
    return convert(pw.mul(total, pw.mul(_columns(scale_w, x, w, attrs, total), scale_x)), out)


def _columns(scale_w: Any, x: Any, w: Any, attrs: dict[str, Any], total: Any) -> Any:
    """The scales of the columns, laid along the result's axes: batch, free of the first, free of the second."""
    batch, contract = attrs["rhs_batch"], attrs["rhs_contract"]
    free = [i for i in range(len(w.type.shape)) if i not in (*batch, *contract)]
    moved = bind("transpose", scale_w, perm=(*batch, *free, *contract))
    sizes = moved.type.shape
    between = len(total.type.shape) - len(batch) - len(free)
    shape = (*sizes[:len(batch)], *[1] * between, *sizes[len(batch):len(batch) + len(free)])
    return broadcast_to(bind("reshape", moved, shape=shape), total.type.shape)


# -- functions -------------------------------------------------------------------------------------------------------------------
class QuantizedFunction(Scoped):
    """A function whose products are quantised; ``train()`` and ``eval()`` choose how, ``calibration()`` collects ranges."""

    def __init__(self, fn: Callable[..., Any], settings: Settings):
        functools.update_wrapper(self, fn)
        self._fn, self.settings = fn, settings

    @property
    def mode(self) -> str:
        """"train" (fake quantisation), "eval" (integers) or "calibrate"."""
        return self.settings.mode

    def train(self, training: bool = True) -> QuantizedFunction:
        """Fake quantisation; ``train(False)`` is ``eval()``."""
        self.settings.mode = "train" if training else "eval"
        return self

    def eval(self) -> QuantizedFunction:
        """Integer arithmetic."""
        return self.train(False)

    @contextmanager
    def calibration(self, percentile: float | None = None) -> Iterator[QuantizedFunction]:
        """Calls inside run in floats and widen each product's range of activations.

        Args:
            percentile: take the range between these percentiles of a batch (99.9) rather than the extremes.
        """
        if percentile is not None and not 50 < percentile <= 100:
            raise ArgumentError(f"a percentile of a range lies between 50 and 100, and {percentile} does not")
        saved = self.settings.mode
        self.settings.mode, self.settings.percentile = "calibrate", percentile
        try:
            yield self
        finally:
            self.settings.mode = saved
            self.settings.version += 1

    @contextmanager
    def _scope(self) -> Iterator[None]:
        saved = _site.settings, _site.number
        _site.settings, _site.number = self.settings, 0
        try:
            with Scope(quantized=self.settings.key()):
                yield
        finally:
            _site.settings, _site.number = saved

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        fn = self._fn
        if self.settings.mode == "calibrate" and isinstance(fn, TracedFunction):
            fn = fn.fn
        with self._scope():
            return fn(*args, **kwargs)


def aware(fn: Callable[..., Any] | None = None, *, weights: Any = dt.int8, activations: Any = dt.int8, accumulate: Any = dt.int32,
          calibrate: bool = False) -> Any:
    """``@ts.quantization.aware(weights=ts.int8, activations=ts.int8)``: train on the integers' grid, infer in integers.

    Args:
        weights, activations: signed integer formats of the right and left operand of each product.
        accumulate: in which integer products are summed.
        calibrate: start in calibration: calls collect ranges until ``train()`` or ``eval()``.

    Raises:
        DTypeError: another format.
    """
    total = as_dtype(accumulate)
    if total not in (dt.int32, dt.int64):
        raise DTypeError(f"integer products sum in int32 or int64, not {total}")
    formats = _integer(weights, "weights"), _integer(activations, "activations")

    def decorate(f: Callable[..., Any]) -> QuantizedFunction:
        return QuantizedFunction(f, Settings(*formats, total, "calibrate" if calibrate else "train"))

    return decorate if fn is None else decorate(fn)


quantization_aware = aware
policies.QUANTIZED = product

__all__ = ["Quantized", "QuantizedFunction", "Settings", "aware", "fake_quantize", "quantization_aware", "quantize"]
