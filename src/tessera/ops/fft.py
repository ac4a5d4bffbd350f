"""Discrete Fourier transforms of any length.

The primitives transform the last axis; ``ifft`` and ``irfft`` divide by the length.  Functions take any axis, pad or cut
to ``n``, and scale by ``norm``: "backward" (the inverse divides by n), "ortho" (both by its root), "forward" (the forward
transform divides).
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

import numpy as np

from ..errors import ShapeError
from ..ir.core import TensorType
from ..tracing.recorder import bind
from ..types import dtypes as dt
from ..types.constraints import SCOPE
from ..types.dims import Dim, format_dim
from ..types.dtypes import DType
from ..types.promotion import to_inexact
from . import batch_rules as br
from . import fft_long
from . import pointwise as pw
from . import shaping as sh
from .derivatives import reverse
from .operands import as_tensor, axis_of, convert, scalar
from .rules import COMPLEX, Array, accept, expect_operands
from .table import Applied, Attrs, Bound, primitive

Types = Sequence[TensorType]
_REAL = (dt.f32, dt.f64)


def _complex_of(d: DType) -> DType:
    return dt.complex128 if d in (dt.f64, dt.complex128) else dt.complex64


def _check(name: str, types: Types, dtypes: Sequence[DType]) -> TensorType:
    expect_operands(name, types, 1)
    accept(name, types, dtypes)
    t = types[0]
    if t.rank == 0 or t.shape[-1] == 0:
        raise ShapeError(f"{name!r} transforms a last axis of at least one element", received=str(t))
    return t


def _terms(types: Types, attrs: Attrs) -> float:
    """Against the magnitudes that are summed, an FFT's error grows with the logarithm of the length."""
    n = types[0].shape[-1]
    return 4.0 * math.log2(n + 1) + 4 if isinstance(n, int) else 64.0


def _fft_reference(x: Array) -> Array:
    return np.asarray(np.fft.fft(x.astype(np.complex128))).astype(x.dtype)


def _ifft_reference(x: Array) -> Array:
    return np.asarray(np.fft.ifft(x.astype(np.complex128))).astype(x.dtype)


def _rfft_reference(x: Array) -> Array:
    return np.asarray(np.fft.rfft(x.astype(np.float64))).astype(np.complex64 if x.dtype == np.float32 else np.complex128)


def _irfft_reference(x: Array, n: int) -> Array:
    return np.asarray(np.fft.irfft(x.astype(np.complex128), n)).astype(np.float32 if x.dtype == np.complex64 else np.float64)


def _rfft_infer(types: Types, attrs: Attrs) -> Types:
    t = _check("rfft", types, _REAL)
    return (TensorType(_complex_of(t.dtype), (*t.shape[:-1], t.shape[-1] // 2 + 1)),)


def _irfft_infer(types: Types, attrs: Attrs) -> Types:
    t = _check("irfft", types, COMPLEX)
    n = attrs["n"]
    if n // 2 + 1 != t.shape[-1]:
        raise ShapeError(f"'irfft' to {format_dim(n)} elements needs {format_dim(n // 2 + 1)} coefficients, not "
                         f"{format_dim(t.shape[-1])}", received=str(t))
    return (TensorType(t.dtype.real, (*t.shape[:-1], n)),)


# A transform is a symmetric matrix, so it is its own transpose.  Of the real ones, coefficients that stand for two count twice.
def _weights(y: Any, n: Any, inner: float) -> Any:
    """1 for the coefficients that stand for themselves alone (0 and n/2), else ``inner``; in the shape of ``y``."""
    k = bind("iota", shape=y.type.shape, axis=y.type.rank - 1, dtype=dt.int64)
    alone = pw.logical_or(pw.eq(k, 0), pw.eq(pw.mul(k, 2), n if isinstance(n, int) else as_tensor(n)))
    kind = y.dtype.real
    return pw.where(alone, scalar(1.0, kind), scalar(inner, kind))


def _times(z: Any, w: Any) -> Any:
    return pw.complex_(pw.mul(pw.real(z), w), pw.mul(pw.imag(z), w))


def _count(n: Any, kind: DType) -> Any:
    return scalar(n, kind) if isinstance(n, int) else convert(as_tensor(n), kind)


def _rfft_back(x: Applied, g: Any) -> Any:
    n = x.operands[0].type.shape[-1]
    return pw.mul(bind("irfft", _times(pw.conj(g), _weights(g, n, 0.5)), n=n), _count(n, g.dtype.real))


def _irfft_back(x: Applied, g: Any) -> Any:
    n = x.attrs["n"]
    y = pw.conj(bind("rfft", g))
    return _times(y, pw.div(_weights(y, n, 2.0), _count(n, g.dtype)))


primitive("fft", family="fft", infer=lambda types, attrs: (_check("fft", types, COMPLEX),), reference=_fft_reference,
          batch=br.leading,
          dtypes=COMPLEX, template="fft", bound=Bound(2, _terms), linear=True, vjp=reverse(lambda x, g: bind("fft", g)),
          facts={"expands": fft_long.is_long, "written": fft_long.fft},
          doc="The Fourier transform of the last axis.")
primitive("ifft", family="fft", infer=lambda types, attrs: (_check("ifft", types, COMPLEX),), reference=_ifft_reference,
          batch=br.leading,
          dtypes=COMPLEX, template="fft", bound=Bound(2, _terms), linear=True, vjp=reverse(lambda x, g: bind("ifft", g)),
          facts={"expands": fft_long.is_long, "written": fft_long.ifft},
          doc="The inverse transform, divided by the length.")
primitive("rfft", family="fft", infer=_rfft_infer, reference=_rfft_reference, dtypes=_REAL, template="fft",
          batch=br.leading,
          bound=Bound(2, _terms), linear=True, vjp=reverse(_rfft_back), facts={"expands": fft_long.is_long, "written": fft_long.rfft},
          doc="The first n//2 + 1 coefficients of the transform of a real last axis.")
primitive("irfft", family="fft", infer=_irfft_infer, reference=_irfft_reference, dtypes=COMPLEX, template="fft",
          batch=br.leading,
          bound=Bound(2, _terms), linear=True, vjp=reverse(_irfft_back),
          doc="The real inverse of ``rfft``, of ``n`` elements; imaginary parts of the ends are ignored.",
          facts={"attrs": ("n",), "expands": fft_long.is_long, "written": fft_long.irfft})


# -- the user's functions --------------------------------------------------------------------------------------------------
def _resized(x: Any, n: Any) -> Any:
    """The last axis cut to ``n``, or padded with zeros."""
    have = x.type.shape[-1]
    if n is None or n == have:
        return x
    if not isinstance(n, int) or n < 1:
        raise ShapeError(f"a Fourier transform has at least one element, not {n}")
    if not isinstance(have, int):
        raise ShapeError(f"n={n} for an axis of the symbolic size {format_dim(have)}", hints=["Pad or slice the axis first"])
    if n < have:
        return sh.slice_axis(x, len(x.type.shape) - 1, 0, n)
    return sh.pad(x, [*[(0, 0)] * (len(x.type.shape) - 1), (0, n - have)])


def _with_length(y: Any) -> Any:
    """``y``; where its last axis is a symbol, the function is traced again for the length of the call at hand: the factors of the
    length are the program."""
    n = y.type.shape[-1] if y.type.shape else 1
    if isinstance(n, Dim) and SCOPE.demand is not None:
        with suppress(TypeError):  # there is no call: the graph alone is asked for
            SCOPE.demand(n)
    return y


def _scaled(y: Any, n: Any, inverse: bool, norm: str | None) -> Any:
    """The primitive's scale (1, or 1/n inverse) turned into that of ``norm``."""
    if norm not in (None, "backward", "ortho", "forward"):
        raise ValueError(f"norm is 'backward', 'ortho' or 'forward', not {norm!r}")
    if norm in (None, "backward"):
        return y
    real = y.dtype.real
    size = scalar(n, real) if isinstance(n, int) else convert(as_tensor(n), real)
    root = pw.sqrt(size) if norm == "ortho" else size
    if y.dtype.is_complex:
        factor = root if inverse else pw.div(1, root)
        return pw.complex_(pw.mul(pw.real(y), factor), pw.mul(pw.imag(y), factor))
    return pw.mul(y, root) if inverse else pw.div(y, root)


def _along(name: str, x: Any, axis: int, run: Callable[[Any], Any]) -> Any:
    axis = axis_of(name, x, axis)
    last = len(x.type.shape) - 1
    return run(x) if axis == last else sh.moveaxis(run(sh.moveaxis(x, axis, -1)), -1, axis)


def _as_complex(x: Any) -> Any:
    x = as_tensor(x)
    if x.dtype.is_complex:
        return x
    wide = dt.f64 if x.dtype is dt.f64 else dt.f32
    re = convert(x, wide)
    return pw.complex_(re, bind("full", shape=x.type.shape, value=0.0, dtype=wide))


def fft(x: Any, n: int | None = None, axis: int = -1, norm: str | None = None) -> Any:
    """The Fourier transform along ``axis``, cut or padded to ``n``; complex64, or complex128 for 64-bit input."""
    def run(y: Any) -> Any:
        y = _resized(_with_length(y), n)
        return _scaled(bind("fft", y), y.type.shape[-1], False, norm)

    return _along("fft", _as_complex(x), axis, run)


def ifft(x: Any, n: int | None = None, axis: int = -1, norm: str | None = None) -> Any:
    """The inverse of :func:`fft`."""
    def run(y: Any) -> Any:
        y = _resized(_with_length(y), n)
        return _scaled(bind("ifft", y), y.type.shape[-1], True, norm)

    return _along("ifft", _as_complex(x), axis, run)


def rfft(x: Any, n: int | None = None, axis: int = -1, norm: str | None = None) -> Any:
    """The first n//2 + 1 coefficients of the transform of a real tensor."""
    x = as_tensor(x)
    x = convert(x, dt.f64 if x.dtype is dt.f64 else dt.f32) if to_inexact(x.dtype).is_float else x

    def run(y: Any) -> Any:
        y = _resized(_with_length(y), n)
        return _scaled(bind("rfft", y), y.type.shape[-1], False, norm)

    return _along("rfft", x, axis, run)


def irfft(x: Any, n: int | None = None, axis: int = -1, norm: str | None = None) -> Any:
    """The real inverse of :func:`rfft`, of ``n`` elements (2*(m - 1) for m coefficients)."""
    def run(y: Any) -> Any:
        y = _with_length(y)
        size = 2 * (y.type.shape[-1] - 1) if n is None else n
        return _scaled(bind("irfft", _resized(y, size // 2 + 1), n=size), size, True, norm)

    return _along("irfft", _as_complex(x), axis, run)


def _over(fn: Callable[..., Any], x: Any, s: Sequence[int] | None, axes: Sequence[int] | None, norm: str | None) -> Any:
    x = as_tensor(x)
    if axes is None:
        axes = range(-len(s), 0) if s is not None else range(len(x.type.shape))
    for k, a in enumerate(axes):
        x = fn(x, None if s is None else s[k], a, norm)
    return x


def fftn(x: Any, s: Sequence[int] | None = None, axes: Sequence[int] | None = None, norm: str | None = None) -> Any:
    """The transform along several axes (all), of sizes ``s``."""
    return _over(fft, x, s, axes, norm)


def ifftn(x: Any, s: Sequence[int] | None = None, axes: Sequence[int] | None = None, norm: str | None = None) -> Any:
    """The inverse of :func:`fftn`."""
    return _over(ifft, x, s, axes, norm)


def fft2(x: Any, s: Sequence[int] | None = None, axes: Sequence[int] = (-2, -1), norm: str | None = None) -> Any:
    """The transform along two axes (the last two)."""
    return _over(fft, x, s, axes, norm)


def ifft2(x: Any, s: Sequence[int] | None = None, axes: Sequence[int] = (-2, -1), norm: str | None = None) -> Any:
    """The inverse of :func:`fft2`."""
    return _over(ifft, x, s, axes, norm)


def fftfreq(n: int, d: float = 1.0) -> Any:
    """The frequencies of the coefficients of a transform of ``n`` samples ``d`` apart, as f32."""
    i = bind("iota", shape=(n,), axis=0, dtype=dt.int64)
    return pw.div(convert(pw.where(pw.lt(i, (n + 1) // 2), i, pw.sub(i, n)), dt.f32), n * d)


def fftshift(x: Any, axes: Any = None) -> Any:
    """The zero frequency moved to the middle."""
    return _shift(x, axes, lambda n: n // 2)


def ifftshift(x: Any, axes: Any = None) -> Any:
    """The inverse of :func:`fftshift`."""
    return _shift(x, axes, lambda n: -(n // 2))


def _shift(x: Any, axes: Any, by: Callable[[Any], Any]) -> Any:
    x = as_tensor(x)
    for a in range(len(x.type.shape)) if axes is None else [axes] if isinstance(axes, int) else axes:
        x = sh.roll(x, by(x.type.shape[a]), a)
    return x


class _Callable(ModuleType):
    def __call__(self, x: Any, n: int | None = None, axis: int = -1, norm: str | None = None) -> Any:
        """``op.fft(x)``: the transform that gives the module its name."""
        return vars(self)["fft"](x, n, axis, norm)


sys.modules[__name__].__class__ = _Callable
