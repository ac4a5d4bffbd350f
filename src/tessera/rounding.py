"""How results are rounded: ``@ts.rounding.stochastic`` and its kin (decorators and, called without a function, context managers).

``stochastic``: every op rounds its result to its dtype up or down with the probability that its place between the two
neighbours gives; f16 and bf16 ops work in f32 for that, f32 ops in f64.  The random words come from the stream of ``ts.manual_seed``,
by counter: the same seed gives the same bits, whatever the number of threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .numerics import Scope
from .scoped import Scoped
from .tracing.policies import InForce
from .tracing.recorder import STATE
from .types.policy import RoundingMode


def _scope(mode: RoundingMode) -> Scope:
    outer = STATE.policy or InForce()
    if outer.policy is not None:
        return Scope(policy=outer.policy.replace(rounding=mode))
    return Scope(rounding=mode)


def _by(mode: RoundingMode) -> Callable[..., Any]:
    def decorate(fn: Any = None) -> Any:
        def scope() -> Scope:
            return _scope(mode)

        scope.__name__ = f"rounding.{mode}"
        return scope() if fn is None else Scoped(fn, scope)

    decorate.__name__ = decorate.__qualname__ = str(mode)
    decorate.__doc__ = f"Results inside are rounded {mode}; ``with {mode}():`` is the block form."
    return decorate


stochastic = _by(RoundingMode.STOCHASTIC)
nearest = _by(RoundingMode.NEAREST)
toward_zero = _by(RoundingMode.TOWARD_ZERO)
up = _by(RoundingMode.UP)
down = _by(RoundingMode.DOWN)

__all__ = ["RoundingMode", "down", "nearest", "stochastic", "toward_zero", "up"]
