"""Diagnostics: one class an error, one text form for all of them.

Every error says what was expected and received, shows the user's line with the failing expression underlined, gives the
cause in a plain sentence, numbers the possible fixes and lists the user's own frames (never the compiler's)::

    Error: Shape mismatch in function 'block' at line 42

        Cannot broadcast 768 with 512: shape mismatch in dimension 2: 768 vs 512
        Expected: f32[B, S, 768]
        Received: f32[B, S, 512]

        41 | def block(x):
        42 |     return x + attention(x)  # ← Error here
           |            ~~~~~~~~~~~~~~~~
        43 |

    The two operands of 'add' must have equal sizes, or 1, along each axis.

    Possible fixes:
    1. …

    Stack trace:
      File "model.py", line 42, in block
        D = 768 from the annotation of 'w'
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .frames import Site, excerpt, is_internal, user_frames

if TYPE_CHECKING:
    from ..ir.core import Loc


class TesseraError(Exception):
    """The base of every error that Tessera raises on purpose.

    Args:
        message: what went wrong, in one line.
        loc: where in the user's program (default: the innermost user frame).
        expected, received: the two sides of a mismatch.
        sentence: the cause in plain language.
        hints: possible fixes; they are numbered.
        origins: where the sizes or dtypes involved came from.

    Attributes:
        code: a stable identifier, ``E_SHAPE`` …
        where: the place as ``Loc`` or ``Site`` (``file``, ``line``, ``function``, ``span``), or None.
        frames: the user's frames, innermost first.
    """

    title = "Error"
    code = "E_TESSERA"

    def __init__(self, message: str, *, loc: Loc | None = None, expected: str | None = None,
                 received: str | None = None, sentence: str | None = None, hints: Sequence[str] = (),
                 origins: Sequence[str] = ()):
        super().__init__(message)
        self.message = message
        self.loc = loc
        self.expected, self.received, self.sentence = expected, received, sentence
        self.hints, self.origins = tuple(hints), tuple(origins)
        self.frames: tuple[Site, ...] = user_frames(sys._getframe(1))
        _install_hook()

    @property
    def where(self) -> Loc | Site | None:
        return self.loc if self.loc is not None else self.frames[0] if self.frames else None

    def __str__(self) -> str:
        return render(self)

    def __reduce__(self) -> tuple[Any, ...]:
        state = {k: v for k, v in self.__dict__.items() if k != "loc"}
        if self.loc is not None:
            place = Site(self.loc.file, self.loc.line, self.loc.function, self.loc.span)
            state["frames"] = (place, *(f for f in self.frames if (f.file, f.line) != (place.file, place.line)))
        return _rebuild, (type(self), self.message, state)


def _rebuild(kind: type[TesseraError], message: str, state: dict[str, Any]) -> TesseraError:
    made = kind(message)
    made.__dict__.update(state)
    return made


class CompileError(TesseraError):
    """A program is refused before anything runs: the kind of its subclasses, or what a stage of the compiler says."""

    title, code = "Compilation failed", "E_COMPILE"


class ShapeError(CompileError, ValueError):
    """Sizes do not fit, or a shape is not a shape."""

    title, code = "Shape mismatch", "E_SHAPE"


class ConstraintError(ShapeError):
    """A declared fact about sizes does not hold."""

    title, code = "Constraint violated", "E_CONSTRAINT"


class DTypeError(CompileError, TypeError):
    """Element types do not mix, or an op does not accept one."""

    title, code = "Numerical type mismatch", "E_DTYPE"


class ArgumentError(TesseraError, TypeError):
    """A call has an unknown keyword, lacks an argument, has one too many, or one of the wrong type."""

    title, code = "Wrong argument", "E_ARGUMENT"


class ArgumentValueError(ArgumentError, ValueError):
    """An argument is of the right kind, and its value is impossible."""


class EffectError(CompileError):
    """A function has an effect that it may not have."""

    title, code = "Effect not allowed", "E_EFFECT"


class TracingError(CompileError):
    """Python asked a traced tensor for something that only a concrete one has."""

    title, code = "Traced value used as a concrete one", "E_TRACING"


class DonationError(TesseraError, RuntimeError):
    """A tensor was used after it was donated, or cannot be donated."""

    title, code = "Donated tensor used", "E_DONATION"


class IndexOutOfRangeError(TesseraError, IndexError):
    """An index lies outside its axis, or there is no such axis."""

    title, code = "Index out of range", "E_INDEX"


class DeviceError(TesseraError):
    """A device is missing, or operands live on different ones."""

    title, code = "Device error", "E_DEVICE"


class OutOfMemoryError(TesseraError, MemoryError):
    """No memory is left for a tensor of this size."""

    title, code = "Out of memory", "E_MEMORY"


class NumericalError(TesseraError, ArithmeticError):
    """A run-time check on values failed: division by zero, NaN where it is refused."""

    title, code = "Numerical error", "E_NUMERICAL"


NumericsError = NumericalError


class KernelError(TesseraError):
    """A tile kernel is malformed."""

    title, code = "Kernel error", "E_KERNEL"


class CheckpointError(TesseraError):
    """A checkpoint file is unreadable, truncated or hostile."""

    title, code = "Checkpoint error", "E_CHECKPOINT"


class DerivativeError(TesseraError):
    """A derivative was asked for that does not exist, or that no rule gives."""

    title, code = "No derivative", "E_DERIVATIVE"


class UnsupportedError(TesseraError):
    """The request is meaningful but not available here."""

    title, code = "Not supported", "E_UNSUPPORTED"


# -- text --------------------------------------------------------------------------------------------------------------
def render(e: TesseraError) -> str:
    """The full text of an error, as in the module's docstring."""
    parts = [_header(e), _facts(e)]
    place = e.where
    if place is not None:
        lines = excerpt(place.file, place.line, place.span)
        if lines:
            parts.append("\n".join("    " + x for x in lines))
    if e.sentence:
        parts.append(e.sentence)
    if e.hints:
        parts.append("Possible fixes:\n" + "\n".join(f"{i}. {h}" for i, h in enumerate(e.hints, 1)))
    trace = _stack(e)
    if trace:
        parts.append("Stack trace:\n" + "\n".join(trace))
    return "\n\n".join(p for p in parts if p)


def _header(e: TesseraError) -> str:
    place = e.where
    if place is None:
        return f"Error: {e.title}"
    if not place.function or place.function == "<module>":
        return f"Error: {e.title} in '{place.file.rpartition('/')[2]}' at line {place.line}"
    return f"Error: {e.title} in function '{place.function}' at line {place.line}"


def _facts(e: TesseraError) -> str:
    facts = [e.message]
    if e.expected is not None:
        facts.append(f"Expected: {e.expected}")
    if e.received is not None:
        facts.append(f"Received: {e.received}")
    return "\n".join("    " + line for f in facts for line in f.splitlines())


def _stack(e: TesseraError) -> list[str]:
    frames: list[Loc | Site] = list(e.frames)
    if e.loc is not None and not any((f.file, f.line) == (e.loc.file, e.loc.line) for f in frames):
        frames.insert(0, e.loc)
    out = [f'  File "{f.file}", line {f.line}, in {f.function or "<module>"}' for f in frames]
    return [*out, *(f"    {o}" for o in e.origins)]


# -- suggestions -------------------------------------------------------------------------------------------------------
def suggestions(name: str, known: Iterable[str], n: int = 3) -> list[str]:
    """The names in ``known`` that look like ``name``, best first."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=n, cutoff=0.6)
    return near or [k for k in names if k.lower() == name.lower()][:n]


def suggest(name: str, known: Iterable[str]) -> str:
    """``"; did you mean 'keepdim'?"`` for appending to a message, or ``""`` when nothing is near."""
    near = suggestions(name, known)
    return f"; did you mean {' or '.join(repr(x) for x in near)}?" if near else ""


def unknown_keyword(function: str, name: str, known: Iterable[str]) -> ArgumentError:
    """The error for a keyword that ``function`` does not have."""
    names = list(known)
    return ArgumentError(f"{function}() has no argument {name!r}{suggest(name, names)}",
                         expected=", ".join(names) or "no keyword arguments", received=name)


# -- uncaught errors ---------------------------------------------------------------------------------------------------
_previous_hook: Any = None


def _install_hook() -> None:
    """Show an uncaught error without the compiler's frames; leaves a hook that someone else installed alone."""
    global _previous_hook
    if _previous_hook is None and sys.excepthook is sys.__excepthook__:
        _previous_hook = sys.excepthook
        sys.excepthook = _show


def _show(kind: type[BaseException], e: BaseException, tb: TracebackType | None) -> None:
    if isinstance(e, TesseraError) and not is_internal(e.frames[-1].file if e.frames else ""):
        print(f"{kind.__module__.partition('.')[0]}.{kind.__name__}\n\n{e}", file=sys.stderr)
    else:
        _previous_hook(kind, e, tb)


__all__ = [
    "ArgumentError", "ArgumentValueError", "CheckpointError", "CompileError", "ConstraintError", "DTypeError",
    "DerivativeError", "DeviceError", "DonationError", "EffectError", "IndexOutOfRangeError", "KernelError", "NumericalError",
    "NumericsError", "OutOfMemoryError", "ShapeError", "Site", "TesseraError", "TracingError", "UnsupportedError",
    "render", "suggest", "suggestions", "unknown_keyword",
]
