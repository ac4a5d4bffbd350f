"""A kernel's body that calls the tile language wrongly: Python's own errors become errors of the kernel's line.

An operation says what it knows to be wrong.  An argument too many, one that lacks, or one of a kind that nobody foresaw surfaces as some
TypeError or AttributeError inside; the kernel then says which operation was called, and what it takes.  Errors of the user's own code stay
as they are.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from types import TracebackType
from typing import Any

from ..errors import KernelError, suggest
from ..errors.boundary import PLAIN, is_explained_here
from ..ir.core import Loc

_BINDING = re.compile(r"^((?:[\w<>]+\.)*\w+)\(\) (?:missing|takes|got an unexpected|got some positional|got multiple)")


def explained(e: BaseException, operations: Callable[[str], tuple[str, Any] | None]) -> KernelError | None:
    """The error to raise in place of ``e``, which a kernel's body raised; None where it is the user's own.

    Args:
        operations: from Python's name for a function to that of the operation (``warp.shuffle``) and the operation itself, or None.
    """
    if not isinstance(e, PLAIN) or type(e).__module__.startswith("tessera"):
        return None
    at, inside = _places(e.__traceback__)
    if at is None:
        return None
    loc = Loc(at.tb_frame.f_code, at.tb_lasti, at.tb_lineno)
    if isinstance(e, AttributeError) and type(e.obj).__module__.startswith("tessera.tiling"):
        known = [n for n in dir(e.obj) if n[0] != "_"]
        kind = type(e.obj).__name__.lower()
        return KernelError(f"a {kind} of a kernel has no attribute {e.name!r}{suggest(str(e.name), known)}", loc=loc,
                           hints=["Use the operations of tile: tile.exp, tile.sum …"])
    found = _BINDING.match(str(e)) if isinstance(e, TypeError) else None
    called = found.group(1) if found else inside
    name, operation = (operations(called) if called else None) or (None, None)
    if inside is None and operation is None:
        return None
    signature = _signature(operation)
    shown = f"tile.{name}{signature}" if signature is not None else None
    wrong = re.search(r"unexpected keyword argument '(\w+)'", str(e))
    if found and wrong:
        known = list(signature.parameters) if signature is not None else []
        return KernelError(f"tile.{name}() has no argument {wrong.group(1)!r}{suggest(wrong.group(1), known)}", expected=shown, loc=loc)
    what = f"tile.{name}()" if operation is not None else "this"
    reason = str(e).partition("\n")[0][:200] if not isinstance(e, AttributeError) else ""
    if found and operation is not None:
        return KernelError(f"{what} {reason.partition('() ')[2]}", expected=shown, loc=loc)
    return KernelError(f"{what} cannot work with these arguments{f': {reason}' if reason else ''}", expected=shown, loc=loc)


def _places(tb: TracebackType | None) -> tuple[TracebackType | None, str | None]:
    """The innermost frame of the user's, and the function of the tile language that it called; None: the error is of the frame itself."""
    at, inside = None, None
    while tb is not None:
        if not is_explained_here(tb.tb_frame.f_code.co_filename):
            at, inside = tb, None
        elif at is not None and (inside is None or inside.startswith("_")):
            inside = tb.tb_frame.f_code.co_name
        tb = tb.tb_next
    return at, inside


def _signature(operation: Any) -> inspect.Signature | None:
    try:
        found = inspect.signature(operation) if callable(operation) else None
    except (TypeError, ValueError):
        return None
    if found is None:
        return None
    parts = [p.replace(annotation=p.empty) for p in found.parameters.values()]
    return found.replace(parameters=parts, return_annotation=inspect.Signature.empty)


__all__ = ["explained"]
