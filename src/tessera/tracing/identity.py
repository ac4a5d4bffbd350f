"""When two Python functions are the same computation: a key, or None where that cannot be told.

Eager loops (:func:`tessera.scan`) compile their step.  The lambda in ``ts.scan(lambda c, x: (c + x, c), …)`` is a new object at
every call, so its program is kept under what it is made of: code, and the values that it can see.
"""

from __future__ import annotations

from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

from ..types.dtypes import DType
from .tensor import Tensor

_STEADY = ("tessera", "numpy", "math", "operator", "builtins")  # modules whose attributes nobody rebinds
_PLAIN = (bool, int, str, bytes, complex, type(None), DType)


class _Unknown(Exception):
    """A value that may change without another identity."""


def identity(f: Any) -> tuple[Any, list[Any]] | None:
    """A key that is equal for functions that compute alike, and what must stay alive while the key is in use."""
    kept: list[Any] = []
    try:
        return _function(f, kept, 0), kept
    except _Unknown:
        return None


def _function(f: Any, kept: list[Any], depth: int) -> Any:
    if not isinstance(f, FunctionType) or depth > 6:
        raise _Unknown
    if _steady(f.__module__):
        return _object(f, kept)
    try:
        cells = [c.cell_contents for c in f.__closure__ or ()]
    except ValueError:  # a cell without contents yet
        raise _Unknown from None
    seen = [f.__globals__[n] for n in _names(f.__code__) if n in f.__globals__]
    values = [*cells, *seen, *(f.__defaults__ or ()), *(f.__kwdefaults__ or {}).values()]
    kept.append(f.__code__)
    return (f.__code__, len(cells), *[_value(v, kept, depth + 1) for v in values])


def _names(code: CodeType) -> list[str]:
    """Names that the code, or code inside it, may look up globally."""
    out = list(code.co_names)
    for c in code.co_consts:
        if isinstance(c, CodeType):
            out += _names(c)
    return out


def _value(v: Any, kept: list[Any], depth: int) -> Any:
    if isinstance(v, _PLAIN):
        return type(v), v
    if isinstance(v, float):
        return float, v.hex()
    if isinstance(v, Tensor | BuiltinFunctionType):
        return _object(v, kept)
    if isinstance(v, tuple):
        return (tuple, *[_value(x, kept, depth) for x in v])
    if isinstance(v, ModuleType | type) and _steady(v.__name__ if isinstance(v, ModuleType) else v.__module__):
        return _object(v, kept)
    return _function(v, kept, depth)


def _steady(module: str | None) -> bool:
    return module is not None and module.partition(".")[0] in _STEADY


def _object(v: Any, kept: list[Any]) -> Any:
    kept.append(v)
    return "object", id(v)


__all__ = ["identity"]
