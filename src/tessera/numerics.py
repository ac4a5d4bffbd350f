"""Numerical policies in scope: ``with ts.numerics(policy):`` and ``with ts.precision("mixed"):``.

Inside such a block matrix products and convolutions over floats read their operands in the policy's ``compute`` format and
sum in its ``accumulate`` format; results keep the dtype that they have outside.  A function whose declared argument type would
refuse an implicit conversion accepts it there.  Scopes nest and belong to a thread; a traced function is traced once for each
policy it is called under.  The module is callable: ``ts.numerics(...)``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from types import ModuleType, TracebackType
from typing import Any

from .errors import ArgumentError, DTypeError, suggest
from .tracing.recorder import STATE
from .types.dtypes import bf16, f16, f32, f64, fp8_e4m3
from .types.policy import NumericalPolicy

_FIELDS = ("storage", "compute", "accumulate", "rounding", "saturate", "denorm_mode")
_NAMED: dict[str, NumericalPolicy] = {}

PRESETS = {
    "mixed": NumericalPolicy(storage=f32, compute=f16, accumulate=f32),
    "bf16": NumericalPolicy(storage=f32, compute=bf16, accumulate=f32),
    "full": NumericalPolicy(storage=f32, compute=f32, accumulate=f32),
    "double": NumericalPolicy(storage=f64, compute=f64, accumulate=f64),
}
"""``ts.precision(name)``: mixed computes in f16 and sums in f32; bf16 likewise; full and double keep one format."""


def as_policy(p: Any) -> NumericalPolicy:
    """A policy from an instance, a class with the fields as attributes, a registered name or a dtype.

    Raises:
        ArgumentError: it is none of these.
    """
    if isinstance(p, NumericalPolicy):
        return p
    if isinstance(p, type):
        return NumericalPolicy(**{f: getattr(p, f) for f in _FIELDS if hasattr(p, f)})
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


def policy(name: str) -> Callable[[type], type]:
    """``@ts.numerics.policy("training")``: register the class's fields under a name."""
    def register(cls: type) -> type:
        _NAMED[name] = as_policy(cls)
        return cls

    return register


class Scope:
    """A policy as a context manager and as a decorator."""

    def __init__(self, chosen: NumericalPolicy):
        self.policy = chosen
        self._outer: list[Any] = []

    def __enter__(self) -> NumericalPolicy:
        self._outer.append(STATE.policy)
        STATE.policy = self.policy
        return self.policy

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        STATE.policy = self._outer.pop()

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(fn)
        def under_policy(*args: Any, **kwargs: Any) -> Any:
            with Scope(self.policy):
                return fn(*args, **kwargs)

        return under_policy


def scope(chosen: Any = None, **fields: Any) -> Scope:
    """``ts.numerics(policy)`` or ``ts.numerics(accumulate=ts.f32, compute=ts.bf16)``.

    Raises:
        ArgumentError: an unknown field or name.
        DTypeError: a field is no element type.
    """
    try:
        if chosen is None:
            return Scope(NumericalPolicy(**fields))
        return Scope(as_policy(chosen).replace(**fields) if fields else as_policy(chosen))
    except TypeError as e:
        if isinstance(e, ArgumentError):
            raise
        wrong = next((k for k in fields if k not in (*_FIELDS, "store", "round")), None)
        if wrong is not None:
            raise ArgumentError(f"a numerical policy has no field {wrong!r}{suggest(wrong, (*_FIELDS, 'store', 'round'))}",
                                expected=", ".join(_FIELDS), received=wrong) from None
        raise DTypeError(str(e)) from None
    except ValueError as e:
        raise ArgumentError(str(e)) from None


def precision(preset: str | None = None, **fields: Any) -> Scope:
    """``ts.precision("mixed")`` (a preset) or ``ts.precision(compute=ts.bf16, accumulate=ts.f32)``."""
    return scope(preset, **fields)


def current() -> NumericalPolicy | None:
    """The policy in scope, or None."""
    found: NumericalPolicy | None = STATE.policy
    return found


@policy("training")
class TrainingPolicy(NumericalPolicy):
    """Standard mixed precision training."""

    storage = bf16
    compute = bf16
    accumulate = f32


@policy("inference")
class InferencePolicy(NumericalPolicy):
    """8-bit storage and arithmetic, saturating."""

    storage = fp8_e4m3
    compute = fp8_e4m3
    accumulate = f32
    saturate = True


class _Callable(ModuleType):
    def __call__(self, chosen: Any = None, **fields: Any) -> Scope:
        return scope(chosen, **fields)


sys.modules[__name__].__class__ = _Callable

__all__ = ["PRESETS", "InferencePolicy", "NumericalPolicy", "Scope", "TrainingPolicy", "as_policy", "current", "get", "policy",
           "precision", "scope"]
