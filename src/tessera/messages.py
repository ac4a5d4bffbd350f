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
from .tracing.recorder import STATE, check_effects, lift
from .tracing.tensor import Tensor, make

LOGGER = logging.getLogger("tessera")
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
    """Texts and places for values, in order."""

    def __init__(self, parts: list[Any], values: list[Tensor]):
        self.parts = parts
        self.values = [_Value(v, self, i == len(values) - 1) for i, v in enumerate(values)]

    def emit(self, arrays: list[Any]) -> None:
        given = iter(arrays)
        LOGGER.info("%s", " ".join(t for t in (p if isinstance(p, str) else p(_shown(next(given))) for p in self.parts) if t))


def _shown(array: Any) -> str:
    a = np.asarray(array)
    return f"{a.item():.6g}" if a.ndim == 0 and a.dtype.kind not in "bOiu" and not np.iscomplexobj(a) else \
        str(a.item()) if a.ndim == 0 else str(make(a))


def log(*args: Any, **kwargs: Any) -> Any:
    """``log(x)`` is the natural logarithm; ``log("text", x, …, name=y)`` writes a message (effect ``io``).

    The message goes to ``logging.getLogger("tessera")`` at level INFO (to stderr where no handler is set up).  Inside a compiled
    function its tensors are results that are written when the call is done, in program order.

    Raises:
        EffectError: the surrounding function may not have the effect ``io``.
        TracingError: inside a branch or loop of a compiled function, whose values leave it as results only.
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
    parts: list[Any] = []
    values: list[Tensor] = []
    for name, x in [("", a) for a in args] + [(f"{k}=", v) for k, v in kwargs.items()]:
        if isinstance(x, Tensor | np.ndarray):
            values.append(lift(x))
            parts.append(lambda text, name=name: name + text)
        else:
            parts.append(f"{name}{x}")
    _prepare_logger()
    trace = STATE.trace
    if trace is None:
        Message(parts, values).emit([v._concrete("log") for v in values])
        return
    trace.effects |= _IO
    if not values:  # a text alone is tied to the call by a value that nobody reads
        values.append(ops.full((), 0, "int8"))
        parts.append(lambda text: "")
    if trace.builder.block is not trace.function.body:
        raise TracingError("log() inside cond(), while_loop() or scan()",
                           sentence="What a branch or a loop computes leaves it as a result.",
                           hints=["Return the value from the loop and log it afterwards", "Run the loop in Python, outside ts.jit"])
    if trace.transformed:
        raise TracingError("log() inside a function that grad, vmap, checkpoint or another transformation works on",
                           sentence="The transformation makes another function of it, in which the message has no place.",
                           hints=["Return the value beside the result (has_aux=True) and log it outside"])
    trace.messages.extend(Message(parts, values).values)


def _prepare_logger() -> None:
    """Messages are shown where nobody has said otherwise."""
    if not LOGGER.hasHandlers() and LOGGER.level == logging.NOTSET:
        handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(logging.Formatter("%(message)s"))
        LOGGER.addHandler(handler)
        LOGGER.setLevel(logging.INFO)


__all__ = ["LOGGER", "log"]
