"""Numerical policies in scope: ``with ts.numerics(policy):`` and ``with ts.precision("mixed"):``.

Inside such a block ops over floats read their operands in the policy's ``compute`` format, sum in its ``accumulate`` format, round and
saturate as it says, and store results in its ``storage`` format where it names one; ``tracing/policies.py`` says how, op by op.  A
function whose declared argument type would refuse an implicit conversion accepts it there.  Scopes nest and belong to a thread; a
traced function is traced once for each policy it is called under.  The module is callable: ``ts.numerics(...)``.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import sys
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any

from .errors import ArgumentError, DTypeError, suggest
from .tracing.policies import InForce
from .tracing.recorder import STATE
from .types.dtypes import DType, bf16, f16, f32, f64, fp8_e4m3, tf32
from .types.policy import NumericalPolicy, RoundingMode

_FIELDS = ("storage", "compute", "accumulate", "rounding", "saturate", "denorm_mode")
_KNOWN = (*_FIELDS, "store", "round", "fast_math_functions")
_NAMED: dict[str, NumericalPolicy] = {}
LOG = logging.getLogger("tessera.numerics")

PRESETS = {
    "mixed": NumericalPolicy(compute=bf16, accumulate=f32),
    "mixed_fp16": NumericalPolicy(compute=f16, accumulate=f32),
    "bf16": NumericalPolicy(compute=bf16, accumulate=f32),
    "tf32": NumericalPolicy(compute=tf32, accumulate=f32),
    "full": NumericalPolicy(compute=f32, accumulate=f32),
    "double": NumericalPolicy(compute=f64, accumulate=f64),
}
"""``ts.precision(name)``: mixed computes in bf16, which every target has, and sums in f32; mixed_fp16 in f16 (whose gradients want a
loss scale: ``ts.GradScaler``), tf32 likewise; full and double keep one format.

None names a storage format, so results keep the dtypes that they have without a policy."""


def as_policy(p: Any) -> NumericalPolicy:
    """A policy from an instance, a class with the fields as attributes, a registered name or a dtype.

    Raises:
        ArgumentError: it is none of these.
    """
    if isinstance(p, NumericalPolicy):
        return p
    if isinstance(p, type):
        return NumericalPolicy(**{f: getattr(p, f) for f in _FIELDS if hasattr(p, f)})
    if isinstance(p, DType):
        return NumericalPolicy(storage=p)
    if isinstance(p, str):
        return get(p)
    raise ArgumentError(f"{p!r} is not a numerical policy", hints=["Pass ts.Policy(storage=ts.bf16), a class of that kind, or a name"])


def get(name: str) -> NumericalPolicy:
    """The policy called ``name``: registered with :func:`policy`, or a preset.

    Raises:
        ArgumentError: there is none.
    """
    known = PRESETS | _NAMED
    if name not in known:
        raise ArgumentError(f"no numerical policy is called {name!r}{suggest(name, known)}", expected=", ".join(sorted(known)))
    return known[name]


class NamedPolicy:
    """``ts.numerics.policy("training")``: as a class decorator it registers the class's fields under the name; as a context manager it
    puts the policy of that name in force."""

    def __init__(self, name: str):
        self.name = name
        self._scopes: list[Scope] = []

    def __call__(self, cls: type) -> type:
        if not isinstance(cls, type):
            raise ArgumentError(f"@numerics.policy({self.name!r}) decorates a class, not {cls!r}", hints=[
                f"Put the policy in force around a function: @ts.numerics({self.name!r})"])
        _NAMED[self.name] = as_policy(cls)
        return cls

    def __enter__(self) -> NumericalPolicy | None:
        self._scopes.append(scope(get(self.name)))
        return self._scopes[-1].__enter__()

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self._scopes.pop().__exit__(kind, e, tb)


def policy(name: str) -> NamedPolicy:
    """``@ts.numerics.policy("training")`` on a class, or ``with ts.numerics.policy("training"):``."""
    return NamedPolicy(name)


class Scope:
    """What a ``with`` block puts in force; also a decorator.  ``changes`` name fields of :class:`InForce`."""

    def __init__(self, **changes: Any):
        self.changes = changes
        self._outer: list[Any] = []

    @property
    def policy(self) -> NumericalPolicy | None:
        """The policy that the block puts in force; None: that of the blocks around it."""
        found: NumericalPolicy | None = self.changes.get("policy")
        return found

    def __enter__(self) -> NumericalPolicy | None:
        self._outer.append(STATE.policy)
        STATE.policy = dataclasses.replace(STATE.policy or InForce(), **self.changes)
        return current()

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        STATE.policy = self._outer.pop()

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fn)
        def under_policy(*args: Any, **kwargs: Any) -> Any:
            with Scope(**self.changes):
                return fn(*args, **kwargs)

        return under_policy


def _in_force(p: NumericalPolicy) -> dict[str, Any]:
    return {"policy": p, "store": p.storage if p.names_storage else None, "products_only": False}


def scope(chosen: Any = None, *, fast_math_functions: bool | None = None, **fields: Any) -> Scope:
    """``ts.numerics(policy)`` or ``ts.numerics(accumulate=ts.f32, compute=ts.bf16)``.

    Args:
        chosen: a policy: an instance, a class, a registered name, or a dtype (its storage).
        fast_math_functions: use the faster forms of exp, log, tanh and the like (``docs/numerics.md`` says what they cost).
        fields: of :class:`NumericalPolicy`; they change ``chosen`` where both are given.

    Raises:
        ArgumentError: an unknown field or name.
        DTypeError: a field is no element type.
    """
    changes: dict[str, Any] = {} if fast_math_functions is None else {"fast": bool(fast_math_functions)}
    try:
        if chosen is None and not fields:
            return Scope(**(changes or _in_force(NumericalPolicy())))
        p = NumericalPolicy(**fields) if chosen is None else as_policy(chosen).replace(**fields) if fields else as_policy(chosen)
        if p.accumulate is tf32:
            LOG.info("accumulate=tf32: no machine sums in tf32; products read their operands in tf32 and sum in f32")
        return Scope(**changes, **_in_force(p))
    except TypeError as e:
        if isinstance(e, ArgumentError):
            raise
        wrong = next((k for k in fields if k not in _KNOWN), None)
        if wrong is not None:
            raise ArgumentError(f"a numerical policy has no field {wrong!r}{suggest(wrong, _KNOWN)}",
                                expected=", ".join(_FIELDS), received=wrong) from None
        raise DTypeError(str(e)) from None
    except ValueError as e:
        raise ArgumentError(str(e)) from None


def precision(preset: str | None = None, **fields: Any) -> Scope:
    """``ts.precision("mixed")`` (a preset) or ``ts.precision(compute=ts.bf16, accumulate=ts.f32)``."""
    return scope(preset, **fields)


def current() -> NumericalPolicy | None:
    """The policy in scope, or None."""
    force = STATE.policy
    return force.policy if force is not None else None


@policy("training")
class TrainingPolicy(NumericalPolicy):
    """Standard mixed precision training."""

    storage = bf16
    compute = bf16
    accumulate = f32


@policy("inference")
class InferencePolicy(NumericalPolicy):
    """8-bit storage and arithmetic, stochastically rounded and saturating; sums in bf16."""

    storage = fp8_e4m3
    compute = fp8_e4m3
    accumulate = bf16
    rounding = RoundingMode.STOCHASTIC
    saturate = True


class _Callable(ModuleType):
    def __call__(self, chosen: Any = None, **fields: Any) -> Scope:
        return scope(chosen, **fields)


sys.modules[__name__].__class__ = _Callable

__all__ = ["PRESETS", "InferencePolicy", "NamedPolicy", "NumericalPolicy", "Scope", "TrainingPolicy", "as_policy", "current", "get",
           "policy", "precision", "scope"]
