"""How a numerical policy reaches an op: through conversions and attributes that are recorded beside it.

A policy holds because ``with ts.numerics(...)`` put it in force, or because the declared type of an argument names it and the op's
operands come from that argument.  Either way the IR carries it in full (nothing later consults the scope):

* a pointwise op or composite reads its float operands in ``compute`` and works there;
* a product or convolution reads them in ``compute`` and sums in ``accumulate`` (attribute);
* a sum, product, mean or cumulative op reads them in ``compute``, and sums in ``accumulate``;
* the result is stored as ``storage`` where the policy names one, else in the dtype that it has without a policy;
* a rounding mode other than nearest: the op itself works in a wider format (f32, for f32 in f64), so that the one rounding that counts
  is the policy's.  f64 has no wider format and rounds to nearest;
* ``denorm_mode="flush"``: subnormal operands and results of arithmetic are zero.

Ops that only move, compare or choose elements are recorded as they stand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UnsupportedError
from ..types import dtypes as dt
from ..types.dtypes import DType
from ..types.policy import NumericalPolicy, RoundingMode, join
from . import recorder
from .recorder import STATE, because, lift, plain_bind
from .tensor import Tensor, Traced

KINDS: dict[str, str] = {}
"""``pointwise``, ``product``, ``sum`` or ``choice`` (max, min) for ops that compute; filled when the package is assembled."""

FAST = frozenset({"exp", "exp2", "log", "log2", "log10", "sigmoid", "tanh", "pow", "sin", "cos"})
"""Functions that have a faster, less exact form (``tiling/vmath_fast.py``), asked for by the attribute ``fast``."""

NONDETERMINISTIC: dict[str, str] = {}
"""Ops whose results may differ from run to run, and why; filled from the facts ``nondeterministic`` of the op table."""

ACCUMULATES = frozenset({"attention"})
"""Composites with accumulators of their own, which the policy may make smaller."""

SUMS = frozenset({"reduce_sum"})


@dataclass(frozen=True)
class InForce:
    """What ``with`` blocks have put in force; part of the key of every trace.

    Attributes:
        policy: the formats; None: each op's own.
        store: the dtype of results; None: the dtype that they have without a policy.
        products_only: only products compute in the policy's format (``autocast``).
        summation: ``"kahan"`` or ``"pairwise"``: how sums run.
        fast: use the faster forms of functions.
        quantized: identifies the settings of a quantised function (``tessera.quantization``), whose products are its own.
        deterministic: ops that say they are not deterministic are refused.
        rounding: how results are rounded to the dtype that they have without a policy; where a policy is given, it says.
    """

    policy: NumericalPolicy | None = None
    store: DType | None = None
    products_only: bool = False
    summation: str | None = None
    fast: bool = False
    rounding: RoundingMode | None = None
    deterministic: bool = False
    quantized: tuple[Any, ...] | None = None


def of(t: Any) -> NumericalPolicy | None:
    """The policy that a traced tensor carries."""
    p = t._p if type(t) is Tensor else None
    return p.trace.policies.get(p.value) if type(p) is Traced else None


def attach(t: Tensor, policy: NumericalPolicy | None) -> None:
    """Let ``t`` and what is computed from it follow ``policy``."""
    p = t._p
    if type(p) is Traced and policy is not None:
        p.trace.policies[p.value] = policy


def meeting(xs: Sequence[Any]) -> DType | None:
    """The dtype in which tensors meet whose dtypes do not mix by themselves; None where no declared policy allows it."""
    found = [of(x) for x in xs]
    if not any(found):
        return None
    joined = _joined([x for x in xs if isinstance(x, Tensor)])
    return joined.compute


def _joined(tensors: Sequence[Tensor]) -> NumericalPolicy:
    policies = [of(t) or NumericalPolicy(storage=t.dtype) for t in tensors if t.dtype.is_float]
    out = policies[0]
    for p in policies[1:]:
        out = join(out, p)
    return out


# -- binding ---------------------------------------------------------------------------------------------------------------
def bind(name: str, operands: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """An op under the policies of its operands and of the scope; the declared types' come first."""
    tensors = [lift(t) for t in operands]
    force = STATE.policy or InForce()
    carried: NumericalPolicy | None = None
    if STATE.trace is not None and STATE.trace.policies and any(of(t) for t in tensors):
        carried = _joined(tensors)
        force = InForce(carried, carried.storage, summation=force.summation, fast=force.fast)
    saved, STATE.policy = STATE.policy, None
    hidden: dict[Any, Any] = {}
    if STATE.trace is not None:
        hidden, STATE.trace.policies = STATE.trace.policies, {}
    try:
        out = _bound(force, name, tensors, attrs)
    finally:
        STATE.policy = saved
        if STATE.trace is not None:
            STATE.trace.policies = hidden
    if carried is not None:
        for t in out if isinstance(out, tuple) else (out,):
            if t.dtype.is_float:
                attach(t, carried if t.dtype is carried.storage else carried.replace(storage=t.dtype))
    return out


def _bound(force: InForce, name: str, tensors: list[Tensor], attrs: dict[str, Any]) -> Any:
    if force.deterministic and name in NONDETERMINISTIC:
        raise UnsupportedError(f"{name!r} is not deterministic, and a deterministic block is in force", sentence=NONDETERMINISTIC[name])
    if force.fast and name in FAST and not tensors[0].dtype.is_complex:
        attrs = {**attrs, "fast": True}
    policy = force.policy
    if policy is None and force.rounding not in (None, RoundingMode.NEAREST):
        kinds = [t.dtype for t in tensors if t.dtype.is_float]
        if kinds:  # each op in the format of its operands
            own = max(kinds, key=lambda d: d.bits)
            policy = NumericalPolicy(storage=own, compute=own, accumulate=_sums_of(own), rounding=force.rounding)
    if name == "convert":
        return _conversion(policy, tensors, attrs)
    kind = KINDS.get(name)
    if force.quantized is not None and kind == "product":
        return QUANTIZED(name, tensors, attrs)
    floats = [t.dtype for t in tensors if t.dtype.is_float]
    if force.summation is not None and name in SUMS and floats:
        return _compensated(force, tensors[0], attrs)
    if policy is None or kind is None or not floats or not policy.compute.is_float or (force.products_only and kind != "product"):
        return plain_bind(name, _alike(name, tensors), attrs)
    natural = attrs.get("dtype") or floats[0]
    store = force.store or natural
    if kind == "product":
        return _product(policy, name, tensors, attrs, store)
    if kind == "sum":
        return _sum(policy, name, tensors, attrs, store)
    if kind == "choice":
        return _stored(policy, plain_bind(name, [_computed(policy, t) for t in tensors], attrs), store)
    return _pointwise(policy, name, tensors, attrs, store)


def _alike(name: str, tensors: list[Tensor]) -> list[Tensor]:
    """Operands of a pointwise op whose float dtypes a policy has set apart, in the wider one."""
    floats = {t.dtype for t in tensors if t.dtype.is_float}
    if len(floats) < 2 or (KINDS.get(name) is None and name != "select"):
        return tensors
    wide = max(floats, key=lambda d: (d.bits, d is dt.f32))
    return [_to(t, wide) if t.dtype.is_float else t for t in tensors]


def _to(t: Tensor, dtype: DType) -> Tensor:
    return t if t.dtype is dtype else because(plain_bind("convert", (t,), {"dtype": dtype}), "operands meet here under a numerical policy")


def _rounded(policy: NumericalPolicy, t: Tensor, dtype: DType) -> Tensor:
    """``t`` in ``dtype``, narrowed as the policy says."""
    if t.dtype is dtype:
        return t
    if dtype is dt.tf32:
        return plain_bind("reduce_precision", (_to(t, dt.f32),), {"exponent_bits": 8, "mantissa_bits": 10})  # type: ignore[no-any-return]
    attrs: dict[str, Any] = {"dtype": dtype}
    operands: list[Any] = [t]
    if t.dtype.is_float and dtype.is_float and dtype.bits < t.dtype.bits:
        if policy.saturate:
            attrs["saturate"] = True
        if policy.rounding is not RoundingMode.NEAREST:
            attrs["rounding"] = str(policy.rounding)
            if policy.rounding is RoundingMode.STOCHASTIC:
                operands.append(recorder.RANDOM_WORDS(t.type.shape, None))
    return because(plain_bind("convert", operands, attrs), f"the numerical policy {policy}")


def _flushed(policy: NumericalPolicy, t: Tensor) -> Tensor:
    if policy.denorm_mode == "flush" and t.dtype.is_float and t.dtype.bits >= 16:
        return plain_bind("flush_subnormals", (t,), {})  # type: ignore[no-any-return]
    return t


def _computed(policy: NumericalPolicy, t: Tensor) -> Tensor:
    """A float operand as the op reads it."""
    return _flushed(policy, _rounded(policy, t, policy.compute)) if t.dtype.is_float else t


def _stored(policy: NumericalPolicy, out: Any, store: DType) -> Any:
    """A result as it is stored."""
    if isinstance(out, tuple):
        return tuple(_stored(policy, t, store) for t in out)
    return _rounded(policy, _flushed(policy, out), store) if out.dtype.is_float else out


def _wider(d: DType) -> DType:
    return dt.f32 if d.bits < 32 else dt.f64


def _pointwise(policy: NumericalPolicy, name: str, tensors: list[Tensor], attrs: dict[str, Any], store: DType) -> Any:
    inputs = [_computed(policy, t) for t in tensors]
    total = _accumulator(policy)
    if name in ACCUMULATES and "accumulate" not in attrs and 16 <= total.bits < 32:
        attrs = attrs | {"accumulate": total}
    if policy.rounding is RoundingMode.NEAREST or policy.compute is dt.f64:
        return _stored(policy, plain_bind(name, inputs, attrs), store)
    narrow = policy.compute if policy.compute.bits <= store.bits else store
    wide = _wider(policy.compute)
    out = plain_bind(name, [_to(t, wide) if t.dtype.is_float else t for t in inputs], attrs)
    if isinstance(out, tuple) or not out.dtype.is_float:
        return _stored(policy, out, store)
    return _to(_rounded(policy, _flushed(policy, out), narrow), store)


def _sums_of(d: DType) -> DType:
    """Where sums over ``d`` run so that there is something to round: f32 for smaller formats, f64 for f32."""
    return dt.f32 if d.bits < 32 else dt.f64


def _accumulator(policy: NumericalPolicy) -> DType:
    """Sums in tf32 are sums in f32: that is what the hardware does (and products read operands in tf32: :func:`_product`)."""
    return dt.f32 if policy.accumulate is dt.tf32 else policy.accumulate


def _product(policy: NumericalPolicy, name: str, tensors: list[Tensor], attrs: dict[str, Any], store: DType) -> Any:
    if policy.accumulate is dt.tf32 and policy.compute is dt.f32:
        policy = policy.replace(compute=dt.tf32)
    inputs = [_computed(policy, t) for t in tensors]
    total = _accumulator(policy)
    if name != "dot_general":
        out = plain_bind(name, inputs, attrs)
    elif policy.rounding is RoundingMode.NEAREST and not policy.saturate and policy.denorm_mode == "preserve":
        return plain_bind(name, inputs, {"accumulate": total, "dtype": store, **{k: v for k, v in attrs.items() if k != "dtype"}})
    else:
        wide = total if total.bits >= store.bits else store
        out = plain_bind(name, inputs, {"accumulate": total} | attrs | {"dtype": wide})
    return _stored(policy, out, store)


def _sum(policy: NumericalPolicy, name: str, tensors: list[Tensor], attrs: dict[str, Any], store: DType) -> Any:
    total = attrs.get("accumulate") or _accumulator(policy)
    inputs = [_rounded(policy, _computed(policy, t), total) if t.dtype.is_float else t for t in tensors]
    extra = {"accumulate": total} if name in ("reduce_sum", "reduce_prod") else {}
    return _stored(policy, plain_bind(name, inputs, attrs | extra), store)


def _conversion(policy: NumericalPolicy | None, tensors: list[Tensor], attrs: dict[str, Any]) -> Any:
    """A conversion that somebody asked for: narrowing it follows the policy's rounding."""
    if policy is None or len(tensors) > 1 or "rounding" in attrs or not attrs["dtype"].is_float:
        return plain_bind("convert", tensors, attrs)
    return _rounded(policy if not attrs.get("saturate") else policy.replace(saturate=True), tensors[0], attrs["dtype"])


def _compensated(force: InForce, t: Tensor, attrs: dict[str, Any]) -> Any:
    """A sum by the method in force."""
    policy = force.policy
    store = force.store or t.dtype
    total = attrs.get("accumulate") or (_accumulator(policy) if policy else dt.f32)
    total = dt.f64 if dt.f64 in (total, t.dtype) else dt.f32
    x = _to(_computed(policy, t) if policy else t, total)
    out = COMPENSATED("compensated_sum" if force.summation == "kahan" else "pairwise_sum", x, attrs["axes"])
    return _stored(policy, out, store) if policy else _to(out, store)


QUANTIZED: Any = None
"""A product inside a quantised function; set by ``tessera.quantization``."""

COMPENSATED: Any = None
"""A sum over any axes by another op (``ops.summation.over_axes``); set when the package is assembled."""

recorder.POLICIES = bind

__all__ = ["FAST", "KINDS", "InForce", "attach", "bind", "meeting", "of"]
