"""Named composites: ops that carry their definition in other ops (``expand``) and that a scheduler may recognise whole.

Definitions on 16-bit floats run in f32 and round once.  Activations that are one line of arithmetic are plain functions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import ArgumentError, DTypeError, ShapeError
from ..ir.core import TensorType
from ..tracing.recorder import bind
from ..types import dtypes as dt
from ..types.dims import format_dim, mod
from ..types.dtypes import as_dtype
from ..types.promotion import accumulator, to_inexact
from . import attention_rules as at
from . import batch_rules as br
from . import formulas
from . import meaning as m
from . import pointwise as pw
from . import reduction as rd
from . import shaping as sh
from .derivatives import onward, plus, reverse
from .operands import as_tensor, axis_of, broadcast_to, convert, one_of, promoted
from .rules import FLOATS, INTS, LOW, Array, accept, check_axis, equal_sizes, expect_operands, lifted, same_dtype
from .table import Applied, Attrs, Bound, primitive

Types = Sequence[TensorType]
Fn = Callable[..., Any]


def _in_wide(fn: Fn) -> Fn:
    """A definition evaluated in the accumulator's dtype and rounded once to the operands'."""

    def expand(*xs: Any, **attrs: Any) -> Any:
        out = next(x.dtype for x in xs if x.dtype.is_float)
        wide = accumulator(out)
        return convert(fn(*[convert(x, wide) if x.dtype is out else x for x in xs], **attrs), out)

    return expand


def _same_type(name: str, arity: int) -> Fn:
    def infer(types: Types, attrs: Attrs) -> Types:
        expect_operands(name, types, arity)
        accept(name, types, FLOATS)
        if "axis" in attrs:
            check_axis(name, attrs["axis"], types[0].rank)
        return (types[0],)

    return infer


def _axis_terms(types: Types, attrs: Attrs) -> float:
    n = types[0].shape[attrs.get("axis", types[0].rank - 1)]
    return 4.0 * n if isinstance(n, int) else 4096.0


# -- softmax -------------------------------------------------------------------------------------------------------------
def _softmax_reference(x: Array, axis: int) -> Array:
    if x.size == 0:
        return x.copy()
    e = np.exp(x - np.max(x, axis, keepdims=True))
    return np.asarray(e / np.sum(e, axis, keepdims=True))


def _softmax_expand(x: Any, axis: int) -> Any:
    e = pw.exp(pw.sub(x, rd.max(x, axis, True)))
    return pw.mul(e, pw.reciprocal(rd.sum(e, axis, True)))  # one division a row: the sum is at least 1


def _log_softmax_reference(x: Array, axis: int) -> Array:
    if x.size == 0:
        return x.copy()
    d = x - np.max(x, axis, keepdims=True)
    return np.asarray(d - np.log(np.sum(np.exp(d), axis, keepdims=True)))


def _log_softmax_expand(x: Any, axis: int) -> Any:
    d = pw.sub(x, rd.max(x, axis, True))
    return pw.sub(d, pw.log(rd.sum(pw.exp(d), axis, True)))


def _softmax_change(x: Applied, t: Any) -> Any:
    """y * (t - sum(y * t)): the Jacobian is symmetric, so this is the jvp and the vjp."""
    y, axis = x.out, x.attrs["axis"]
    wide = accumulator(y.dtype)
    w, t = convert(y, wide), convert(t, wide)
    return convert(pw.mul(w, pw.sub(t, rd.sum(pw.mul(w, t), axis, True))), y.dtype)


def _probabilities(x: Applied) -> Any:
    """softmax of the operand of a log_softmax, in the accumulator's dtype."""
    wide = accumulator(x.out.dtype)
    return pw.exp(x.out) if wide is x.out.dtype else bind("softmax", convert(x.operands[0], wide), axis=x.attrs["axis"])


def _log_softmax_jvp(x: Applied, t: Any) -> Any:
    p = _probabilities(x)
    wide = convert(t, p.dtype)
    return convert(pw.sub(wide, rd.sum(pw.mul(p, wide), x.attrs["axis"], True)), t.dtype)


def _log_softmax_back(x: Applied, g: Any) -> Any:
    p = _probabilities(x)
    wide = convert(g, p.dtype)
    return convert(pw.sub(wide, pw.mul(p, rd.sum(wide, x.attrs["axis"], True))), g.dtype)


primitive("softmax", family="composite", infer=_same_type("softmax", 1), reference=lifted(_softmax_reference), dtypes=FLOATS,
          batch=br.shifting("axis"),
          expand=_in_wide(_softmax_expand), bound=Bound(4, _axis_terms), facts={"attrs": ("axis",)},
          jvp=onward(_softmax_change), vjp=reverse(_softmax_change),
          doc="exp(x) / sum(exp(x)) along ``axis``, without overflow.")
primitive("log_softmax", family="composite", infer=_same_type("log_softmax", 1), reference=lifted(_log_softmax_reference),
          batch=br.shifting("axis"),
          dtypes=FLOATS, expand=_in_wide(_log_softmax_expand), bound=Bound(4, _axis_terms), facts={"attrs": ("axis",)},
          jvp=onward(_log_softmax_jvp), vjp=reverse(_log_softmax_back),
          doc="log(softmax(x)) along ``axis``.")


def _normalising(name: str) -> Fn:
    def function(x: Any, axis: int | None = None, *, dim: int | None = None) -> Any:
        x = as_tensor(x)
        x = convert(x, to_inexact(x.dtype))
        axis = axis_of(name, x, one_of(name, axis, dim, "axis", "dim", -1))
        if x.type.shape[axis] == 0:
            raise ShapeError(f"{name!r} over dimension {axis} of size 0", received=str(x.type))
        return bind(name, x, axis=axis)

    return pw.named(function, name, f"``{name}`` along ``axis`` (the last).")


softmax, log_softmax = _normalising("softmax"), _normalising("log_softmax")


# -- norms ---------------------------------------------------------------------------------------------------------------
def _norm_infer(name: str, most: int) -> Fn:
    def infer(types: Types, attrs: Attrs) -> Types:
        if not 1 <= len(types) <= most:
            raise ShapeError(f"{name!r} takes 1 to {most} operands, not {len(types)}")
        accept(name, types, FLOATS)
        same_dtype(name, types)
        if types[0].rank == 0:
            raise ShapeError(f"{name!r} needs an axis to normalise", received=str(types[0]))
        for t in types[1:]:
            if t.rank != 1 or t.shape[0] != types[0].shape[-1]:
                last = types[0].rank - 1
                found = format_dim(t.shape[0]) if t.rank else "no axes"
                raise ShapeError(
                    f"Shape mismatch in dimension {last}: {format_dim(types[0].shape[-1])} vs {found}",
                    expected=f"{t.dtype}[{format_dim(types[0].shape[-1])}]", received=str(t),
                    sentence=f"The weight and bias of {name!r} have one element for each place of the last axis.")
        return (types[0],)

    return infer


def _layer_norm_reference(x: Array, *affine: Array, eps: float) -> Array:
    d = x - np.mean(x, -1, keepdims=True)
    y = d / np.sqrt(np.mean(d * d, -1, keepdims=True) + x.dtype.type(eps))
    for fn, a in zip((np.multiply, np.add), affine, strict=False):
        y = fn(y, a)
    return np.asarray(y)


def _affine(y: Any, affine: Sequence[Any]) -> Any:
    for fn, a in zip((pw.mul, pw.add), affine, strict=False):
        y = fn(y, a)
    return y


def _layer_norm_expand(x: Any, *affine: Any, eps: float) -> Any:
    d = pw.sub(x, rd.mean(x, -1, True))
    variance = rd.mean(pw.square(d), -1, True)
    return _affine(pw.mul(d, pw.rsqrt(pw.add(variance, eps))), affine)


def _rms_norm_reference(x: Array, *affine: Array, eps: float) -> Array:
    y = x / np.sqrt(np.mean(x * x, -1, keepdims=True) + x.dtype.type(eps))
    return np.asarray(y * affine[0] if affine else y)


def _rms_norm_expand(x: Any, *affine: Any, eps: float) -> Any:
    return _affine(pw.mul(x, pw.rsqrt(pw.add(rd.mean(pw.square(x), -1, True), eps))), affine)


class _Norm:
    """A norm's application in the accumulator's dtype: the normalised operand ``y`` and the reciprocal deviation ``r``."""

    def __init__(self, x: Applied):
        self.out = x.operands[0].dtype
        self.wide = accumulator(self.out)
        v, *affine = (convert(t, self.wide) for t in x.operands)
        self.centred = x.name == "layer_norm"
        d = pw.sub(v, rd.mean(v, -1, True)) if self.centred else v
        self.r = pw.rsqrt(pw.add(rd.mean(pw.square(d), -1, True), x.attrs["eps"]))
        self.y = pw.mul(d, self.r)
        self.weight = affine[0] if affine else None

    def project(self, t: Any) -> Any:
        """The derivative of the normalisation on ``t``: symmetric but for the factor ``r``."""
        along = pw.mul(self.y, rd.mean(pw.mul(t, self.y), -1, True))
        out = pw.sub(pw.sub(t, rd.mean(t, -1, True)), along) if self.centred else pw.sub(t, along)
        return pw.mul(out, self.r)

    def scaled(self, t: Any) -> Any:
        return t if self.weight is None else pw.mul(t, self.weight)


def _norm_jvp(x: Applied, ts: Sequence[Any]) -> list[Any]:
    n = _Norm(x)
    t, *affine = (None if t is None else convert(t, n.wide) for t in (*ts, None, None))
    parts = [None if t is None else n.scaled(n.project(t)), None if affine[0] is None else pw.mul(n.y, affine[0])]
    total = plus(*parts, None if affine[1] is None else broadcast_to(affine[1], n.y.type.shape))
    return [convert(total, n.out)]


def _norm_vjp(x: Applied, gs: Sequence[Any]) -> list[Any]:
    """The means of a row run with its normalisation; those over rows are sums of what the row's kernel leaves."""
    n = _Norm(x)
    g = convert(gs[0], n.wide)
    lead = tuple(range(g.type.rank - 1))
    out = [n.project(n.scaled(g)) if x.wanted[0] else None]
    out += [rd.apply("reduce_sum", pw.mul(g, n.y) if k == 0 else g, lead, False) if wanted else None
            for k, wanted in enumerate(x.wanted[1:])]
    return [None if t is None else convert(t, n.out) for t in out]


primitive("layer_norm", family="composite", infer=_norm_infer("layer_norm", 3), reference=lifted(_layer_norm_reference),
          batch=br.norm(("mul", "add")),
          jvp=_norm_jvp, vjp=_norm_vjp, dtypes=FLOATS, expand=_in_wide(_layer_norm_expand), bound=Bound(8, _axis_terms),
          facts={"attrs": ("eps",)},
          doc="(x - mean) / sqrt(var + eps) * weight + bias over the last axis, with the biased variance.")
primitive("rms_norm", family="composite", infer=_norm_infer("rms_norm", 2), reference=lifted(_rms_norm_reference),
          batch=br.norm(("mul",)),
          jvp=_norm_jvp, vjp=_norm_vjp, dtypes=FLOATS, expand=_in_wide(_rms_norm_expand), bound=Bound(8, _axis_terms),
          facts={"attrs": ("eps",)},
          doc="x / sqrt(mean(x*x) + eps) * weight over the last axis.")


def _like(x: Any, a: Any, name: str) -> Any:
    """A weight in the dtype of ``x``, where that widens it; 16-bit activations may meet f32 weights."""
    a = as_tensor(a)
    return a if a.dtype is x.dtype else convert(a, x.dtype)


def layer_norm(x: Any, weight: Any = None, bias: Any = None, eps: float = 1e-5) -> Any:
    """(x - mean) / sqrt(var + eps) * weight + bias over the last axis (biased variance).

    Raises:
        ShapeError: weight or bias is not a vector of the last axis's size.
        ArgumentError: ``weight`` is a size.
    """
    x = as_tensor(x)
    if isinstance(weight, int | tuple | list) and not isinstance(weight, bool):
        raise ArgumentError("layer_norm() takes the weight as its second argument; it always normalises the last axis",
                            expected="layer_norm(x, weight, bias, eps)", received=f"layer_norm({x.type}, {weight}, …)",
                            hints=["Leave the size out: ts.layer_norm(x, weight, bias)"])
    x = convert(x, to_inexact(x.dtype))
    if weight is None and bias is not None:
        weight = sh.full(x.type.shape[-1:], 1.0, x.dtype)
    affine = [_like(x, a, "layer_norm") for a in (weight, bias) if a is not None]
    return bind("layer_norm", x, *affine, eps=float(eps))


layernorm = layer_norm


def rms_norm(x: Any, weight: Any = None, eps: float = 1e-6) -> Any:
    """x / sqrt(mean(x*x) + eps) * weight over the last axis."""
    x = as_tensor(x)
    x = convert(x, to_inexact(x.dtype))
    return bind("rms_norm", x, *([] if weight is None else [_like(x, weight, "rms_norm")]), eps=float(eps))


rmsnorm = rms_norm


# -- gelu and its kin ------------------------------------------------------------------------------------------------------
def _as_written(fn: Fn) -> Fn:
    """A definition that gives way to the formula that the composite was raised from."""

    def expand(x: Any, formula: Any = None, **attrs: Any) -> Any:
        return formulas.build(formula, x) if formula is not None else fn(x, **attrs)

    return expand


def _reads_formula(fn: Fn) -> Fn:
    def reference(x: Array, formula: Any = None, **attrs: Any) -> Array:
        return np.asarray(formulas.evaluate(formula, x) if formula is not None else fn(x, **attrs))

    return reference


def _activation_infer(name: str) -> Fn:
    plain = _same_type(name, 1)

    def infer(types: Types, attrs: Attrs) -> Types:
        out: Types = plain(types, attrs)
        formulas.check(name, attrs, types[0].dtype)
        return out

    return infer


def _gelu_reference(x: Array, approximate: str = "none") -> Array:
    if approximate == "tanh":
        c = math.sqrt(2 / math.pi)
        return np.asarray(0.5 * x * (1 + np.tanh(c * (x + 0.044715 * x * x * x)))).astype(x.dtype)
    return np.asarray(0.5 * x * m.erfc(-x / np.sqrt(np.asarray(2, x.dtype)))).astype(x.dtype)


def _gelu_expand(x: Any, approximate: str = "none") -> Any:
    if approximate == "tanh":
        inner = pw.mul(pw.add(x, pw.mul(pw.mul(pw.square(x), x), 0.044715)), math.sqrt(2 / math.pi))
        return pw.mul(pw.mul(x, 0.5), pw.add(pw.tanh(inner), 1.0))
    return pw.mul(pw.mul(x, 0.5), pw.add(pw.erf(pw.mul(x, math.sqrt(0.5))), 1.0))


def _absolute_terms(types: Types, attrs: Attrs) -> float:
    return 4.0  # near the negative tail 1 + erf cancels: the error is absolute in units of |x|


def _slope(fn: Fn) -> dict[str, Any]:
    """The rules of an elementwise composite with the derivative ``fn``, evaluated in the accumulator's dtype."""

    def change(x: Applied, t: Any) -> Any:
        wide = accumulator(t.dtype)
        attrs = {k: v for k, v in x.attrs.items() if k != "formula"}  # however it was written, the slope is one
        return convert(pw.mul(fn(convert(x.operands[0], wide), **attrs), convert(t, wide)), t.dtype)

    return {"jvp": onward(change), "vjp": reverse(change)}


def _gelu_slope(x: Any, approximate: str = "none") -> Any:
    if approximate == "tanh":
        c = math.sqrt(2 / math.pi)
        square = pw.square(x)
        th = pw.tanh(pw.mul(pw.mul(x, pw.add(pw.mul(square, 0.044715), 1.0)), c))
        inner = pw.mul(pw.mul(x, pw.add(pw.mul(square, 3 * 0.044715 * c), c)), pw.sub(1.0, pw.square(th)))
        return pw.mul(pw.add(pw.add(th, 1.0), inner), 0.5)
    density = pw.mul(pw.exp(pw.mul(pw.square(x), -0.5)), 1 / math.sqrt(2 * math.pi))
    return pw.add(pw.mul(pw.add(pw.erf(pw.mul(x, math.sqrt(0.5))), 1.0), 0.5), pw.mul(x, density))


def _silu_slope(x: Any) -> Any:
    s = pw.sigmoid(x)
    return pw.mul(s, pw.add(pw.mul(x, pw.sub(1.0, s)), 1.0))


primitive("gelu", family="composite", infer=_activation_infer("gelu"), reference=_reads_formula(lifted(_gelu_reference)),
          batch=br.leading, dtypes=FLOATS, expand=_as_written(_in_wide(_gelu_expand)), bound=Bound(8, _absolute_terms),
          **_slope(_gelu_slope), facts={"domain": (-4.0, 4.0), "attrs": ("approximate",)},
          doc="x * Phi(x): exact with ``approximate = \"none\"``, or the tanh form.  ``formula``: how it was written by hand.")
primitive("silu", family="composite", infer=_activation_infer("silu"),
          reference=_reads_formula(lifted(lambda x: x * m.sigmoid(x))), batch=br.leading, dtypes=FLOATS,
          expand=_as_written(_in_wide(lambda x: pw.mul(x, pw.sigmoid(x)))), bound=Bound(6), **_slope(_silu_slope),
          facts={"domain": (-10.0, 10.0)}, doc="x * sigmoid(x).  ``formula``: how it was written by hand.")


def gelu(x: Any, approximate: Any = "none") -> Any:
    """x * Phi(x).  ``approximate``: "none" (or "exact", False) for erf, "tanh" (or True) for the tanh form.

    Raises:
        ValueError: another value of ``approximate``.
    """
    form = {"none": "none", "exact": "none", False: "none", "tanh": "tanh", True: "tanh"}.get(approximate)
    if form is None:
        raise ValueError(f"gelu knows the forms 'none' and 'tanh', not {approximate!r}")
    x = as_tensor(x)
    return bind("gelu", convert(x, to_inexact(x.dtype)), approximate=form)


def silu(x: Any) -> Any:
    """x * sigmoid(x)."""
    x = as_tensor(x)
    return bind("silu", convert(x, to_inexact(x.dtype)))


swish = silu


def relu(x: Any) -> Any:
    """max(x, 0)."""
    return pw.maximum(x, 0)


def relu6(x: Any) -> Any:
    """min(max(x, 0), 6)."""
    return pw.clip(x, 0, 6)


def leaky_relu(x: Any, slope: float = 0.01) -> Any:
    """x where positive, else slope * x."""
    x = as_tensor(x)
    return pw.where(pw.gt(x, 0), x, pw.mul(x, slope))


def elu(x: Any, alpha: float = 1.0) -> Any:
    """x where positive, else alpha * (exp(x) - 1)."""
    x = as_tensor(x)
    return pw.where(pw.gt(x, 0), x, pw.mul(pw.expm1(pw.minimum(x, 0)), alpha))


def softplus(x: Any) -> Any:
    """log(1 + exp(x)) without overflow."""
    return pw.logaddexp(x, 0)


def log_sigmoid(x: Any) -> Any:
    """log(sigmoid(x)) without overflow."""
    return pw.neg(softplus(pw.neg(x)))


def hardtanh(x: Any, low: float = -1.0, high: float = 1.0) -> Any:
    """x limited to [low, high]."""
    return pw.clip(x, low, high)


def softsign(x: Any) -> Any:
    """x / (1 + |x|)."""
    x = as_tensor(x)
    return pw.div(x, pw.add(pw.abs(x), 1))


# -- attention -------------------------------------------------------------------------------------------------------------
def _attention_infer(types: Types, attrs: Attrs) -> Types:
    if len(types) not in (3, 4):
        raise ShapeError(f"'attention' takes queries, keys, values and perhaps a mask, not {len(types)} operands")
    q, k, v = types[:3]
    accept("attention", types[:3], FLOATS)
    same_dtype("attention", types[:3])
    if q.rank < 2 or k.rank != q.rank or v.rank != q.rank:
        raise ShapeError(f"'attention' takes operands [..., S, D] of one rank, not {q.rank}, {k.rank} and {v.rank}",
                         received=f"{q}, {k}, {v}")
    equal_sizes("attention", (*k.shape[:-1],), (*v.shape[:-1],), str(k), str(v))
    equal_sizes("attention", (*[0] * (q.rank - 1), q.shape[-1]), (*[0] * (q.rank - 1), k.shape[-1]), str(q), str(k))
    for i, (a, b) in enumerate(zip(q.shape[:-2], k.shape[:-2], strict=True)):
        grouped = i == q.rank - 3 and b != 0 and mod(a, b) == 0
        if a != b and not grouped:
            raise ShapeError(f"Shape mismatch in dimension {i}: {format_dim(a)} vs {format_dim(b)}", expected=str(q),
                             received=str(k), sentence="Queries and keys of 'attention' have equal leading sizes; the number "
                             "of query heads may be a multiple of the number of key heads.")
    if len(types) == 4:
        mask, scores = types[3], (*q.shape[:-1], k.shape[-2])
        if mask.dtype is not dt.bool_:
            accept("attention", (mask,), (q.dtype, dt.f32))
        if mask.rank != q.rank or any(a not in (1, b) for a, b in zip(mask.shape, scores, strict=True)):
            raise ShapeError(f"the mask of 'attention' does not broadcast to {TensorType(mask.dtype, scores)}",
                             expected=str(TensorType(mask.dtype, scores)), received=str(mask),
                             hints=["Each size of the mask is that of the scores [..., S, T], or 1"])
    return (q.with_shape((*q.shape[:-1], v.shape[-1])),)


def _attention_reference(q: Array, k: Array, v: Array, mask: Array | None = None, *, schedule: Any = None, **attrs: Any) -> Array:
    return at.forward_reference(q, k, v, mask, **attrs)[0]


def _attention_terms(types: Types, attrs: Attrs) -> float:
    """Sums in the accumulator's format of what may have been rounded to the operands', as matrix instructions take it."""
    given, total = types[0].dtype, attrs.get("accumulate")
    sizes = [n if isinstance(n, int) else 1024 for n in (types[0].shape[-1], types[1].shape[-2])]
    wide = float(accumulator(given).finfo.eps)
    return 8.0 * sum(sizes) * (1.0 if total is None else max(1.0, float(total.finfo.eps) / wide)) + float(given.finfo.eps) / wide


primitive("attention", family="composite", infer=_attention_infer, reference=_attention_reference, dtypes=FLOATS,
          batch=br.attention,
          expand=at.attention_expand, forward=at.attention_forward, vjp=at.attention_back,
          bound=Bound(8, _attention_terms),
          facts={"attrs": ("scale", "causal", "accumulate", "schedule"), "template": "attention", "heads": True},
          doc="softmax(scale * q k^T [+ mask]) v over operands [..., S, D].  A bool mask keeps where it is true.  ``causal``: "
              "query i sees keys up to i + (T - S).  Query heads (axis -3) may be a multiple of key heads.  A row that sees "
              "no key gives zeros.  ``accumulate``: the format of smaller accumulators: scores are rounded to it, and the weighted "
              "sum of values after each block of keys.  ``schedule`` holds decisions for its kernel.")


def attention(q: Any, k: Any, v: Any, mask: Any = None, *, scale: float | None = None, causal: bool = False,
              accumulate: Any = None) -> Any:
    """softmax(scale * q @ k^T [+ mask]) @ v over operands [..., S, D].

    Args:
        mask: bool (true: keep) or a float added to the scores; each size is that of the scores [..., S, T], or 1, and
            missing leading axes count as 1.
        scale: 1/sqrt(D) unless given.
        causal: query i sees keys up to i + (T - S), so that with a cache of keys the last query sees all of them.
        accumulate: the format of the accumulators (default: f32, f64 for f64).  In a smaller one scores are rounded to it, and the
            weighted sum of values after each block of keys; maxima and sums of weights stay wide, so the softmax stays stable.
            An f16 accumulator overflows beyond 65504.

    Raises:
        ShapeError: the operands' sizes do not fit.
        DTypeError: ``accumulate`` is no float format of 16 bits or more.
    """
    q, k, v = promoted("attention", q, k, v)
    total = _attention_accumulator(q, accumulate)
    if total is dt.f64 and q.dtype is not dt.f64:
        wide = attention(convert(q, dt.f64), convert(k, dt.f64), convert(v, dt.f64), mask, scale=scale, causal=causal)
        return convert(wide, q.dtype)
    if scale is None:
        width = q.type.shape[-1]
        if isinstance(width, int):
            scale = 1.0 / math.sqrt(width) if width else 1.0
        else:  # known when the program runs: the queries are scaled
            q, scale = pw.mul(q, convert(pw.rsqrt(rd.count(q, (-1,), accumulator(q.dtype))), q.dtype)), 1.0
    extra = []
    if mask is not None:
        mask = as_tensor(mask)
        mask = mask if mask.dtype is dt.bool_ else convert(mask, q.dtype if mask.dtype in (q.dtype, *INTS) else dt.f32)
        missing = len(q.type.shape) - len(mask.type.shape)
        extra = [sh.reshape(mask, (1,) * missing + mask.type.shape) if missing > 0 else mask]
    held = {} if total is None else {"accumulate": total}
    return bind("attention", q, k, v, *extra, scale=float(scale), causal=bool(causal), **held)


def _attention_accumulator(q: Any, accumulate: Any) -> Any:
    """The format of the accumulators; None for the usual one."""
    if accumulate is None:
        return None
    total = as_dtype(accumulate)
    if not total.is_float or total.bits < 16 or total is dt.tf32:
        raise DTypeError(f"attention accumulates in a float format of 16 bits or more, not {total}",
                         hints=["accumulate=ts.f32, ts.bf16 or ts.f16"])
    return None if total is accumulator(q.dtype) else total


scaled_dot_product_attention = attention


def _attention_forward_infer(types: Types, attrs: Attrs) -> Types:
    (out,) = _attention_infer(types, attrs)
    return (out, TensorType(accumulator(out.dtype), out.shape[:-1]))


def _attention_backward_infer(types: Types, attrs: Attrs) -> Types:
    if len(types) not in (6, 7):
        raise ShapeError(f"'attention_backward' takes 6 operands and perhaps a mask, not {len(types)}")
    q, k, v, g, lse, delta, *mask = types
    out, sums = _attention_forward_infer((q, k, v, *mask), attrs)
    for want, have in ((out, g), (sums, lse), (sums, delta)):
        if want != have:
            raise ShapeError("an operand of 'attention_backward' has another type than the forward pass gives",
                             expected=str(want), received=str(have))
    return (*(t.with_dtype(sums.dtype) for t in (q, k, v)),)


primitive("attention_forward", family="composite", infer=_attention_forward_infer, reference=at.forward_reference, dtypes=FLOATS,
          expand=at.forward_expand, batch=br.attention, vjp=at.forward_back, bound=Bound(8, _attention_terms),
          facts={"attrs": ("scale", "causal", "accumulate"), "template": "attention", "heads": True},
          doc="``attention``, and of each query the log-sum-exp of its scores (-inf where it sees no key) in the accumulator's "
              "dtype: what the reverse pass keeps.")
primitive("attention_backward", family="composite", infer=_attention_backward_infer, reference=at.backward_reference, dtypes=FLOATS,
          expand=at.backward_expand, batch=br.attention_backward, bound=Bound(8, _attention_terms),
          facts={"attrs": ("scale", "causal", "accumulate"), "template": "attention_backward", "heads": True},
          doc="The cotangents of queries, keys and values, in the accumulator's dtype, from those three, the result's cotangent, the "
              "log-sum-exp and delta = sum(cotangent * result) of each query, and perhaps a mask.  Weights and slopes may be rounded to "
              "the operands' format, which matrix instructions take.")


# -- cross entropy -----------------------------------------------------------------------------------------------------------
def _cross_entropy_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("cross_entropy", types, 2)
    accept("cross_entropy", types[:1], FLOATS)
    accept("cross_entropy", types[1:], INTS)
    logits, targets = types
    if logits.rank != targets.rank + 1:
        raise ShapeError(f"'cross_entropy' takes logits [..., C] and targets [...], not ranks {logits.rank} and {targets.rank}",
                         expected=str(targets.with_shape(logits.shape[:-1])), received=str(targets))
    equal_sizes("cross_entropy", logits.shape[:-1], targets.shape, str(logits), str(targets))
    return (logits.with_shape(targets.shape),)


def _cross_entropy_reference(x: Array, t: Array, checked: bool = True) -> Array:
    wide = x.astype(np.float32) if x.dtype in LOW else x
    at = np.clip(t.astype(np.int64), 0, max(x.shape[-1] - 1, 0))[..., None]
    return np.asarray(-np.take_along_axis(_log_softmax_reference(wide, -1), at, -1)[..., 0]).astype(x.dtype)


def _cross_entropy_expand(x: Any, t: Any, checked: bool = True) -> Any:
    chosen = bind("take_along_axis", x, sh.unsqueeze(t, -1), axis=len(x.type.shape) - 1, checked=checked)
    return pw.sub(rd.logsumexp(x, -1), sh.squeeze(chosen, -1))


def _class_mask(x: Applied, shape: Sequence[Any]) -> Any:
    """True at each target's class; a kernel compares positions, no one-hot tensor is in memory."""
    t = convert(x.operands[1], dt.int64)
    n = as_tensor(shape[-1])
    t = pw.minimum(pw.maximum(pw.where(pw.lt(t, 0), pw.add(t, n), t), 0), pw.sub(n, 1))
    line = bind("iota", shape=tuple(shape), axis=len(shape) - 1, dtype=dt.int64)
    return pw.eq(line, sh.unsqueeze(t, -1))


def _cross_entropy_forward(x: Applied) -> tuple[list[Any], Any]:
    """The residual is the log-sum-exp of each row, in the accumulator's dtype: probabilities are made where they are used."""
    logits = x.operands[0]
    wide = convert(logits, accumulator(logits.dtype))
    total = rd.logsumexp(wide, -1)
    last = len(logits.type.shape) - 1
    chosen = bind("take_along_axis", wide, sh.unsqueeze(x.operands[1], -1), axis=last, checked=x.attrs.get("checked", True))
    return [convert(pw.sub(total, sh.squeeze(chosen, -1)), logits.dtype)], total


def _cross_entropy_back(x: Applied, g: Any) -> Any:
    logits, total = x.operands[0], sh.unsqueeze(x.residuals, -1)
    p = pw.exp(pw.sub(convert(logits, total.dtype), total))
    hit = _class_mask(x, logits.type.shape)
    d = pw.sub(p, convert(hit, p.dtype))
    return convert(pw.mul(d, sh.unsqueeze(convert(g, p.dtype), -1)), logits.dtype)


def _cross_entropy_jvp(x: Applied, t: Any) -> Any:
    wide = convert(x.operands[0], accumulator(t.dtype))
    p = bind("softmax", wide, axis=len(t.type.shape) - 1)
    d = pw.sub(p, convert(_class_mask(x, t.type.shape), p.dtype))
    return convert(rd.sum(pw.mul(d, convert(t, p.dtype)), -1), t.dtype)


primitive("cross_entropy", family="composite", infer=_cross_entropy_infer, reference=_cross_entropy_reference, dtypes=FLOATS,
          batch=br.leading,
          expand=_in_wide(_cross_entropy_expand), bound=Bound(8, _axis_terms), facts={"mixed": ("T", "int"), "attrs": ("checked",)},
          forward=_cross_entropy_forward, jvp=onward(_cross_entropy_jvp), vjp=reverse(_cross_entropy_back),
          doc="-log_softmax(logits)[target] over the last axis of the logits, one value a target.")


def cross_entropy(logits: Any, targets: Any, reduction: str = "mean", ignore_index: int | None = None,
                  label_smoothing: float = 0.0) -> Any:
    """The cross entropy of ``logits`` [..., C] with class numbers ``targets`` [...] or probabilities [..., C].

    Args:
        reduction: "mean", "sum" or "none".
        ignore_index: targets of this number count for nothing (and not in the mean).

    Raises:
        ShapeError: the leading sizes differ; probabilities need the shape of the logits.
        ValueError: an unknown ``reduction``.
    """
    if reduction not in ("mean", "sum", "none"):
        raise ValueError(f"reduction is 'mean', 'sum' or 'none', not {reduction!r}")
    logits, targets = as_tensor(logits), as_tensor(targets)
    logits = convert(logits, to_inexact(logits.dtype))
    kept = None
    if targets.dtype.is_inexact:
        if targets.type.shape != logits.type.shape:  # broadcasting would hide a forgotten axis
            raise ShapeError("the probabilities of 'cross_entropy' have another shape than its logits",
                             expected=str(logits.type), received=str(targets.type))
        loss = pw.neg(rd.sum(pw.mul(targets, log_softmax(logits, -1)), -1))
    else:
        kept = None if ignore_index is None else pw.ne(targets, ignore_index)
        loss = bind("cross_entropy", logits, targets if kept is None else pw.where(kept, targets, 0))
    if label_smoothing:
        flat = pw.sub(rd.logsumexp(logits, -1), rd.mean(logits, -1))
        loss = pw.add(pw.mul(loss, 1.0 - label_smoothing), pw.mul(flat, label_smoothing))
    return _reduced(loss if kept is None else pw.where(kept, loss, 0.0), reduction, kept)


def _reduced(loss: Any, reduction: str, kept: Any) -> Any:
    if reduction == "none":
        return loss
    if reduction == "sum":
        return rd.sum(loss)
    return rd.mean(loss) if kept is None else pw.div(rd.sum(loss), convert(rd.sum(kept), loss.dtype))


def mse_loss(x: Any, y: Any, reduction: str = "mean") -> Any:
    """The squared difference, reduced by "mean", "sum" or "none"."""
    return _reduced(pw.square(pw.sub(x, y)), reduction, None)


def l1_loss(x: Any, y: Any, reduction: str = "mean") -> Any:
    """The absolute difference, reduced by "mean", "sum" or "none"."""
    return _reduced(pw.abs(pw.sub(x, y)), reduction, None)
