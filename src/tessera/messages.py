"""``ts.log("loss", loss)``: values written to Python's logger ``tessera``, once a call and in program order, compiled or not.

The name is shared with the natural logarithm.  A call whose first argument is text is a message; so is any call with several
values or with keywords.  One tensor or number alone is the logarithm's argument, and in a function that declares the effect
``io`` its value is logged as well.
"""

from __future__ import annotations

import logging
import sys
from typing import Any

import numpy as np

from . import ops
from .errors import ArgumentError, TracingError
from .ops.message import LOGGER, emit
from .tracing.recorder import STATE, bind, check_effects, lift
from .tracing.tensor import Tensor

_IO = frozenset({"io"})


class _Value:
    """A value that a program returns to its caller for a message; ``message`` is emitted after its last one."""

    def __init__(self, value: Tensor, message: Message, last: bool):
        self.value, self.message, self.last = value, message, last
        self.array: Any = None

    def commit(self, array: Any) -> None:
        self.array = array
        if self.last:
            self.message.emit([v.array for v in self.message.values])


class Message:
    """Texts, and values behind those at ``places``, in order."""

    def __init__(self, parts: list[str], places: list[int], values: list[Tensor]):
        self.parts, self.places = parts, places
        self.values = [_Value(v, self, i == len(values) - 1) for i, v in enumerate(values)]

    def emit(self, arrays: list[Any]) -> None:
        emit(self.parts, self.places, arrays)


def log(*args: Any, **kwargs: Any) -> Any:
    """``log(x)`` is the natural logarithm; ``log("text", x, …, name=y)`` writes a message (effect ``io``).

    The message goes to ``logging.getLogger("tessera")`` at level INFO (to stderr where no handler is set up).  Inside a compiled
    function its tensors are results that are written when the call is done, in program order; inside a branch or loop of one the
    program writes them, in order too, whenever it comes there: before the messages that stand outside of it.

    Raises:
        EffectError: the surrounding function may not have the effect ``io``.
        TracingError: inside a function that a transformation works on.
        ArgumentError: there is nothing to log.
    """
    if not args and not kwargs:
        raise ArgumentError("log() has nothing to log", expected='log(x), or log("text", x, …, name=y)', received="log()")
    if len(args) == 1 and not kwargs and not isinstance(args[0], str):
        if _declared():
            _write(args, {})
        return ops.log(args[0])
    _write(args, kwargs)
    return None


def _declared() -> bool:
    """True where the innermost function or block that speaks of effects names ``io``."""
    return bool(STATE.allowed) and all(allowed >= _IO for allowed, _ in STATE.allowed)


def _write(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    check_effects(_IO, "log")
    parts: list[str] = []
    places: list[int] = []
    values: list[Tensor] = []
    for name, x in [("", a) for a in args] + [(f"{k}=", v) for k, v in kwargs.items()]:
        if isinstance(x, Tensor | np.ndarray):
            values.append(lift(x))
            places.append(len(parts))
            parts.append(name)
        else:
            parts.append(f"{name}{x}")
    _prepare_logger()
    trace = STATE.trace
    if trace is None:
        emit(parts, places, [v._concrete("log") for v in values])
        return
    trace.effects |= _IO
    if trace.transformed:
        raise TracingError("log() inside a function that grad, vmap, checkpoint or another transformation works on",
                           sentence="The transformation makes another function of it, in which the message has no place.",
                           hints=["Return the value beside the result (has_aux=True) and log it outside"])
    if trace.builder.block is not trace.function.body:
        bind("message", *values, parts=tuple(parts), places=tuple(places))
        return
    if not values:  # a text alone is tied to the call by a value that nobody reads
        trace.messages.append(_Value(ops.full((), 0, "int8"), Message(parts, [], []), True))
        return
    trace.messages.extend(Message(parts, places, values).values)


def _prepare_logger() -> None:
    """Messages are shown where nobody has said otherwise."""
    if not LOGGER.hasHandlers() and LOGGER.level == logging.NOTSET:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        LOGGER.addHandler(handler)
        LOGGER.setLevel(logging.INFO)


__all__ = ["LOGGER", "log"]
