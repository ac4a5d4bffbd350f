"""How sums run: ``@ts.summation.kahan``, ``@ts.summation.pairwise`` (decorators and, called without a function, context managers).

Inside, every sum of floats (``x.sum()``, ``ts.sum``, means and norms, Python's ``sum(x)`` in a decorated function) carries the rounding
errors of its additions along (kahan) or runs by halves (pairwise).  Products of matrices keep their own chains.
"""

from __future__ import annotations

import builtins
import types
from collections.abc import Callable
from typing import Any

from .numerics import Scope
from .ops import reduction
from .scoped import Scoped, rebuilt
from .tracing.tensor import Tensor


def _sum(x: Any, /, start: Any = 0) -> Any:
    """Python's ``sum``; over a tensor, one reduction along its first axis."""
    if isinstance(x, Tensor):
        total = reduction.sum(x, 0)
        return total if type(start) is int and start == 0 else total + start
    return builtins.sum(x, start)


def with_tensor_sum(fn: Any) -> Any:
    """``fn`` with :func:`_sum` for Python's ``sum``; a function whose globals have a ``sum`` of their own keeps that."""
    if not isinstance(fn, types.FunctionType):
        return fn
    names = fn.__globals__
    own = names.get("__builtins__", builtins)
    # A function finds its builtins where its globals name them when it is made; the globals themselves stay the module's.
    names["__builtins__"] = {**(own if isinstance(own, dict) else vars(own)), "sum": _sum}
    try:
        new = types.FunctionType(fn.__code__, names, fn.__name__, fn.__defaults__, fn.__closure__)
    finally:
        names["__builtins__"] = own
    new.__kwdefaults__, new.__annotations__, new.__doc__ = fn.__kwdefaults__, fn.__annotations__, fn.__doc__
    new.__qualname__, new.__module__ = fn.__qualname__, fn.__module__
    new.__dict__.update(fn.__dict__)
    return new


def _by(method: str) -> Callable[..., Any]:
    def decorate(fn: Any = None) -> Any:
        def scope() -> Scope:
            return Scope(summation=method)

        scope.__name__ = f"summation.{method}"
        return scope() if fn is None else Scoped(rebuilt(fn, with_tensor_sum), scope)

    decorate.__name__ = decorate.__qualname__ = method
    return decorate


kahan = _by("kahan")
kahan.__doc__ = "Sums inside are compensated: about as exact as with twice the digits. ``with kahan():`` is the block form."
pairwise = _by("pairwise")
pairwise.__doc__ = "Sums inside run by halves: the error grows with the logarithm of the length. ``with pairwise():`` is the block form."
kahan_sum = kahan

__all__ = ["kahan", "kahan_sum", "pairwise"]
