"""Where a user's call enters the package: plain Python errors from inside become errors of Tessera's form.

An op's implementation says what *it* knows to be wrong.  What it does not foresee (an argument of a strange kind, one too
many, a number that no machine word holds) surfaces as some TypeError or AttributeError deep inside; :func:`guarded`
says instead which function was called, with what, and what it takes.  Errors of the user's own code (a callback, an
``__array__`` method) stay as they are.
"""

from __future__ import annotations

import functools
import inspect
import os
import re
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any

from . import ArgumentError, ArgumentValueError, IndexOutOfRangeError, OutOfMemoryError, TesseraError, unknown_keyword
from .frames import LIBRARIES, is_internal

PLAIN = (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, MemoryError)
PACKAGES = f"{os.sep}site-packages{os.sep}"
BENEATH = tuple(n + os.sep for n in ("numpy", "ml_dtypes", "optree", "llvmlite"))
LONGEST = 60  # characters of an argument's repr that a message shows


def guarded(f: Callable[..., Any], name: str | None = None) -> Callable[..., Any]:
    """``f`` as users call it: an error that is none of Tessera's becomes one, unless it comes from the user's code."""
    called = name or f.__name__

    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return f(*args, **kwargs)
        except PLAIN as e:
            if type(e).__module__.startswith("tessera") or from_user(e.__traceback__):
                raise
            raise translated(called, f, e, args, kwargs) from e

    functools.update_wrapper(call, f)
    return call


def guard_names(namespace: dict[str, Any], names: Iterable[str], prefix: str = "") -> None:
    """Guard the functions of a module that go by these names."""
    for n in names:
        f = namespace.get(n)
        if inspect.isfunction(f):
            namespace[n] = guarded(f, prefix + f.__name__)


def from_user(tb: TracebackType | None) -> bool:
    """True when a frame of the user's code lies between the caught call and the place that raised."""
    tb = tb.tb_next if tb is not None else None
    while tb is not None:
        if not is_explained_here(tb.tb_frame.f_code.co_filename):
            return True
        tb = tb.tb_next
    return False


def is_explained_here(file: str) -> bool:
    """True for the files of this package and of those beneath it, whose errors a user should not see as they are."""
    return is_internal(file) or file.startswith("<") or _is_ours_to_explain(file)


def _is_ours_to_explain(file: str) -> bool:
    """True for the standard library and for the packages that this one is built on."""
    at = file.rfind(PACKAGES)
    if at >= 0:
        return file[at + len(PACKAGES):].startswith(BENEATH)
    return file.startswith(LIBRARIES)


def translated(name: str, f: Callable[..., Any], e: BaseException, args: tuple[Any, ...], kwargs: dict[str, Any]) -> TesseraError:
    """The error to raise in place of ``e``, which ``f(*args, **kwargs)`` raised."""
    signature = _signature(f)
    if signature is not None and next(iter(signature.parameters), "") == "self":  # a method: the object goes without saying
        signature, args = signature.replace(parameters=list(signature.parameters.values())[1:]), args[1:]
    if signature is not None and isinstance(e, TypeError):
        takes = list(signature.parameters.values())
        found = re.search(r"unexpected keyword argument '(\w+)'", str(e))
        if found and found.group(1) in kwargs:
            return unknown_keyword(name, found.group(1), [p.name for p in takes if p.kind is not p.VAR_KEYWORD])
        try:
            signature.bind(*args, **kwargs)
        except TypeError as wrong:
            return ArgumentError(f"{name}(): {wrong}", expected=f"{name}{_shown(signature)}", received=_call(name, args, kwargs))
    kind: type[TesseraError] = ArgumentError if isinstance(e, TypeError | AttributeError) else ArgumentValueError
    if isinstance(e, MemoryError):
        kind = OutOfMemoryError
    elif isinstance(e, IndexError):
        kind = IndexOutOfRangeError
    reason = _reason(e)
    return kind(f"{name}() cannot work with these arguments: {reason}" if reason else f"{name}() cannot work with these arguments",
                expected=f"{name}{_shown(signature)}" if signature is not None else None, received=_call(name, args, kwargs))


def _reason(e: BaseException) -> str:
    text = str(e).strip().partition("\n")[0][:200]
    if isinstance(e, MemoryError):
        return text or "there is not enough memory"
    if isinstance(e, KeyError):
        return f"there is no {text}"
    if isinstance(e, AttributeError):  # it would speak of the implementation
        return ""
    return text


def _signature(f: Callable[..., Any]) -> inspect.Signature | None:
    try:
        return inspect.signature(f)
    except (TypeError, ValueError):
        return None


def _shown(signature: inspect.Signature) -> str:
    parts = [p.replace(annotation=p.empty) for p in signature.parameters.values()]
    return str(signature.replace(parameters=parts, return_annotation=inspect.Signature.empty))


def _call(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    shown = [describe(a) for a in args] + [f"{k}={describe(v)}" for k, v in kwargs.items()]
    return f"{name}({', '.join(shown)})"


def describe(x: Any) -> str:
    """An argument in a few characters: a tensor as its type, a short plain value as itself, anything else as its kind."""
    t = getattr(x, "type", None) if hasattr(type(x), "is_traced") else None
    if t is not None:
        return str(t)
    if x is None or isinstance(x, int | float | complex | str | bytes | list | tuple | range | slice):
        text = _repr(x)
        return text if len(text) <= LONGEST else text[:LONGEST - 1] + "…"
    shape = getattr(x, "shape", None)
    kind = type(x).__name__
    return f"<{kind} {x.dtype}{list(shape)}>" if isinstance(shape, tuple) and hasattr(x, "dtype") else f"<{kind}>"


def _repr(x: Any) -> str:
    if isinstance(x, int) and x.bit_length() > 256:
        return f"an integer of {x.bit_length()} bits"
    try:
        if isinstance(x, list | tuple):
            inner = [describe(v) for v in x[:8]] + ["…"] * (len(x) > 8)
            return f"[{', '.join(inner)}]" if isinstance(x, list) else f"({', '.join(inner)}{',' * (len(inner) == 1)})"
        return repr(x)
    except Exception:  # a broken __repr__ must not hide the error that is being reported
        return f"<{type(x).__name__}>"


__all__ = ["describe", "from_user", "guard_names", "guarded", "translated"]
