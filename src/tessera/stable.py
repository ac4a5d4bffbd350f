"""Functions that stay finite and exact where the textbook formula does not.

``from tessera.stable import *`` brings in what ``__all__`` lists; none of it hides a Python builtin.  Most are the library's own functions,
which are stable as they are; ``mean`` and ``variance`` (over the last axis unless ``dim`` says otherwise) are Welford's,
``scaled_dot_product_attention`` takes a temperature and can normalise in log space.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from .errors import ArgumentError, ShapeError
from .errors.boundary import guard_names
from .ops import (
    cross_entropy,
    expm1,
    gelu,
    hypot,
    log1p,
    log_sigmoid,
    log_softmax,
    logaddexp,
    logsumexp,
    sigmoid,
    softmax,
    softplus,
)
from .ops import operands as _operands
from .ops import pointwise as pw
from .ops import reduction as rd
from .ops import summation as _summation
from .ops.contraction import matmul
from .scoped import rebuilt
from .tracing.function import TracedFunction
from .tracing.recorder import STATE, bind
from .tracing.tensor import Tensor
from .transforms.stabilize import Rewrite, stabilize
from .types import dtypes as dt
from .types.promotion import accumulator

stable_gelu = gelu


def _axis(axis: Any, dim: Any, name: str) -> Any:
    return _operands.one_of(name, axis, dim, "axis", "dim", -1)


def mean(x: Any, axis: Any = None, keepdims: bool = False, *, dim: Any = None, keepdim: Any = None) -> Any:
    """The mean over ``axis`` (the last), by Welford's method."""
    keep = bool(_operands.one_of("mean", keepdims or None, keepdim, "keepdims", "keepdim", False))
    return _summation.welford(x, _axis(axis, dim, "mean"), keep)[0]


def variance(x: Any, mean: Any = None, axis: Any = None, keepdims: bool = False, *, dim: Any = None, keepdim: Any = None,
             correction: int = 0) -> Any:
    """The variance over ``axis`` (the last), by Welford's method.

    Args:
        mean: the mean, where it is known already: then the squared deviations from it are averaged, less the square of the mean
            deviation, so that the rounding of ``mean`` itself does no harm.
    """
    keep = bool(_operands.one_of("variance", keepdims or None, keepdim, "keepdims", "keepdim", False))
    at = _axis(axis, dim, "variance")
    if mean is None:
        return _summation.welford(x, at, keep, correction=correction)[1]
    x = _operands.as_tensor(x)
    axes = _operands.axes_of("variance", x, at)
    m = _operands.as_tensor(mean)
    kept = tuple(1 if i in axes else n for i, n in enumerate(x.type.shape))
    reduced = tuple(n for i, n in enumerate(x.type.shape) if i not in axes)
    if m.type.shape not in (kept, reduced):
        raise ShapeError(f"the mean of variance() has not the shape of the mean over {at}", expected=str(x.type.with_shape(kept)),
                         received=str(m.type), hints=["Take it over the same axis: ts.stable.mean(x, axis)"])
    wide = accumulator(x.dtype if x.dtype.is_float else dt.f32)
    off = pw.sub(_operands.convert(x, wide), _operands.convert(m.reshape(kept), wide))
    off_mean = rd.mean(off, axes, True)
    total = rd.sum(pw.square(pw.sub(off, off_mean)), axes, keep)
    n = rd.count(x, axes, wide)
    return _operands.convert(pw.div(total, pw.sub(n, correction) if correction else n), x.dtype if x.dtype.is_float else dt.f32)


var = variance


def std(x: Any, axis: Any = None, keepdims: bool = False, *, dim: Any = None, keepdim: Any = None, correction: int = 0) -> Any:
    """The standard deviation over ``axis`` (the last), by Welford's method."""
    return pw.sqrt(variance(x, None, axis, keepdims, dim=dim, keepdim=keepdim, correction=correction))


def norm(x: Any, axis: Any = None, keepdims: bool = False, *, dim: Any = None, keepdim: Any = None) -> Any:
    """The Euclidean norm over ``axis`` (all), scaled by the greatest magnitude: neither squares overflow nor vanish."""
    x = _operands.as_tensor(x)
    keep = bool(_operands.one_of("norm", keepdims or None, keepdim, "keepdims", "keepdim", False))
    axes = _operands.axes_of("norm", x, _operands.one_of("norm", axis, dim, "axis", "dim"))
    top = rd.max(pw.abs(x), axes, True)
    safe = pw.where(pw.logical_and(pw.gt(top, 0), pw.isfinite(top)), top, 1.0)
    y = pw.mul(rd.norm(pw.div(x, safe), 2, axes, True), safe)
    return y if keep else y.reshape(tuple(n for i, n in enumerate(x.type.shape) if i not in axes))


def scaled_dot_product_attention(q: Any, k: Any, v: Any, mask: Any = None, *, temperature: Any = 1.0, causal: bool = False,
                                 scale: float | None = None, use_log_space: bool = False) -> Any:
    """softmax(q k^T * scale / temperature [+ mask]) v over operands [..., S, D].

    Queries and keys are brought to magnitudes near 1 before they meet and the scale put back into the scores in f32, so that no
    product overflows in a 16-bit format.  A row that sees no key gives zeros.

    Args:
        temperature: a positive number, or a tensor that broadcasts to the scores.
        scale: 1/sqrt(D) unless given.
        use_log_space: normalise the logarithms of the weights (log-sum-exp) before they are exponentiated.

    Raises:
        ArgumentError: the temperature is not positive.
        ShapeError: the operands' sizes do not fit.
    """
    q, k, v = _operands.promoted("scaled_dot_product_attention", q, k, v)
    if isinstance(temperature, int | float) and not temperature > 0:
        raise ArgumentError(f"a temperature is positive, and {temperature} is not")
    if scale is None:
        width = q.type.shape[-1]
        if not isinstance(width, int):
            raise ShapeError("the scale 1/sqrt(D) is not known: the last axis is symbolic", hints=["Pass scale="])
        scale = 1.0 / math.sqrt(width) if width else 1.0
    wide = accumulator(q.dtype)
    factor, q = _reduced(_operands.convert(q, wide))
    other, k = _reduced(_operands.convert(k, wide))
    scores = pw.mul(matmul(q, k.mT), pw.mul(pw.mul(factor, other.mT), scale))
    scores = pw.div(scores, _operands.convert(temperature, wide) if isinstance(temperature, Tensor) else float(temperature))
    scores = _masked(scores, mask, causal, wide)
    values = _operands.convert(v, wide)
    if use_log_space:
        total = logsumexp(scores, -1, True)
        weights = pw.exp(pw.sub(scores, pw.where(pw.isfinite(total), total, 0.0)))
    else:
        top = rd.max(scores, -1, True)
        e = pw.exp(pw.sub(scores, pw.where(pw.isfinite(top), top, 0.0)))
        sums = rd.sum(e, -1, True)
        weights = pw.div(e, pw.where(pw.eq(sums, 0), 1.0, sums))
    return _operands.convert(matmul(weights, values), v.dtype)


def _reduced(x: Any) -> tuple[Any, Any]:
    """(row magnitudes, rows of magnitude 1): their products cannot overflow."""
    top = rd.max(pw.abs(x), -1, True)
    safe = pw.where(pw.logical_and(pw.gt(top, 0), pw.isfinite(top)), top, 1.0)
    return safe, pw.div(x, safe)


def _masked(scores: Any, mask: Any, causal: bool, wide: Any) -> Any:
    if mask is not None:
        mask = _operands.as_tensor(mask)
        scores = pw.where(mask, scores, -math.inf) if mask.dtype is dt.bool_ else pw.add(scores, _operands.convert(mask, wide))
    if causal:
        rows, cols = scores.type.shape[-2:]
        i, j = (bind("iota", shape=(rows, cols), axis=a, dtype=dt.int64) for a in (0, 1))
        scores = pw.where(pw.le(j, pw.add(i, _operands.as_tensor(cols - rows))), scores, -math.inf)
    return scores


def attention(fn: Callable[..., Any] | None = None, /, *rest: Any, **options: Any) -> Any:
    """``@ts.stable.attention``: a function whose attention is stable; ``ts.stable.attention(q, k, v)`` is the attention itself.

    The decorated function is traced, and unstable formulas in it are replaced (:func:`numerically_stable`): a softmax written without
    its shift, a logarithm of a sum of exponentials, a variance by the difference of squares.
    """
    if isinstance(fn, Tensor) or (fn is not None and not callable(fn)):
        return scaled_dot_product_attention(fn, *rest, **options)
    return functools.partial(attention, **options) if fn is None else numerically_stable(fn)


class StableFunction:
    """A traced function in which unstable formulas are replaced.

    Attributes:
        rewrites: what was replaced at the latest trace: formula as written, formula as computed, line.
    """

    def __init__(self, fn: Callable[..., Any]):
        functools.update_wrapper(self, fn)
        self._given = fn.fn if isinstance(fn, TracedFunction) else fn
        self.rewrites: tuple[Rewrite, ...] = ()

        def body(given: Any) -> Any:
            @functools.wraps(given)
            def stabilized(*args: Any, **kwargs: Any) -> Any:
                return self._stabilized(given, args, kwargs)
            return stabilized

        self._inner = body(self._given)
        self._traced = rebuilt(fn, body) if isinstance(fn, TracedFunction) else TracedFunction(self._inner)

    def _stabilized(self, given: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        trace = STATE.trace
        if trace is None:  # (inside a block that suspends tracing)
            return given(*args, **kwargs)
        start = len(trace.builder.block.ops)
        out = given(*args, **kwargs)
        self.rewrites = tuple(stabilize(trace, start))
        return out

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._traced(*args, **kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._traced, name)


def numerically_stable(fn: Callable[..., Any]) -> StableFunction:
    """``@ts.numerically_stable``: trace ``fn`` and replace formulas that overflow or cancel by ones that do not.

    Replaced are exp(x) / sum(exp(x)), log(sum(exp(x))), log(softmax(x)), log(sigmoid(x)), log(1 + x), log(1 + exp(x)), exp(x) - 1,
    mean(x*x) - mean(x)**2 and sqrt(x*x + y*y); ``fn.rewrites`` lists what was, with the lines.

    Raises:
        ArgumentError: ``fn`` is no function.
    """
    if not callable(fn):
        raise ArgumentError(f"@numerically_stable decorates a function, not a {type(fn).__name__}", received=repr(fn)[:80])
    return StableFunction(fn)


__all__ = ["cross_entropy", "expm1", "gelu", "hypot", "log1p", "log_sigmoid", "log_softmax", "logaddexp", "logsumexp", "mean", "norm",
           "scaled_dot_product_attention", "sigmoid", "softmax", "softplus", "stable_gelu", "std", "variance"]

guard_names(globals(), __all__, "stable.")
