"""What a traced function read of Python objects: a program is valid while that is as it was.

``f(x, config)``, methods and functions around a model read attributes while they are traced, and the program has their values.  Reading is
watched meanwhile: the classes of the objects that a function can reach (its arguments, what it closes over, the globals that it names,
and what it finds in those) get a ``__getattribute__`` that takes notes.  Later calls compare the attributes that were read, and only
those, so a counter or a history that the body never looks at costs no new program.  Tensors are compared by identity, because programs
read their values anew; so are functions, and objects of the standard library.
"""

from __future__ import annotations

import functools
import sys
import threading
import types
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..ir.core import value_key
from .tensor import Tensor

MOST = 1000  # elements of a container that are compared one by one
SMALL = 1024  # elements of an array that a trace takes as a constant
_PLAIN = (int, float, complex, str, bytes, bool, type(None))
_HEAP = 1 << 9  # Py_TPFLAGS_HEAPTYPE: a class made by a class statement
_LOCK = threading.Lock()
_PATCHED: dict[type, tuple[int, Any]] = {}  # class -> (how many watch it, its own __getattribute__ before, if any)


class _Notes(threading.local):
    active: tuple[Reads, ...] = ()


_NOTES = _Notes()


class Same:
    """An object as part of a key: equal to itself alone."""

    __slots__ = ("value",)

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and other.value is self.value

    def __hash__(self) -> int:
        return id(self.value)


def snapshot(value: Any) -> Any:
    """A value as a key that changes when a program that read it would be another one."""
    if isinstance(value, _PLAIN):
        return type(value), value_key(value)
    if isinstance(value, list | tuple) and len(value) <= MOST:
        return type(value), tuple([snapshot(v) for v in value])
    if type(value) is dict and len(value) <= MOST:
        return dict, tuple([(snapshot(k), snapshot(v)) for k, v in value.items()])
    if isinstance(value, set | frozenset) and len(value) <= MOST:
        return type(value), frozenset([snapshot(v) for v in value])
    if isinstance(value, np.ndarray) and value.dtype != object and value.size <= SMALL:
        return value_key(value)
    return Same(value)


class Reads:
    """The attributes that a trace has read: (object, name, value then, its snapshot where identity does not decide)."""

    def __init__(self) -> None:
        self.found: dict[tuple[int, str], tuple[Any, str, Any, Any]] = {}
        self.classes: list[type] = []

    def reach(self, value: Any) -> None:
        """Watch the class of an object, and of those in a container."""
        kind = type(value)
        if isinstance(value, list | tuple | set) and len(value) <= MOST:
            for v in value:
                self.reach(v)
        elif kind is dict and len(value) <= MOST:
            for v in value.values():
                self.reach(v)
        elif kind not in self.classes and _watchable(kind):
            self.classes.append(kind)
            _patch(kind)

    def note(self, obj: Any, name: str, value: Any) -> None:
        if (id(obj), name) not in self.found and _is_data(obj, name):
            self.reach(value)
            alone = isinstance(value, Tensor) or isinstance(shot := snapshot(value), Same)
            self.found[id(obj), name] = obj, name, value, None if alone else shot

    def settled(self) -> list[tuple[Any, str, Any, Any]]:
        """What was read and has not changed since: what tracing itself changes is a side effect that no call can repeat."""
        return [r for r in self.found.values() if unchanged([r])]


def unchanged(reads: Sequence[tuple[Any, str, Any, Any]]) -> bool:
    """Whether the attributes are as they were read."""
    for obj, name, value, shot in reads:
        now = getattr(obj, name, reads)
        if now is value and (shot is None or type(now) in _PLAIN):
            continue
        if shot is None or snapshot(now) != shot:
            return False
    return True


@contextmanager
def reading(fn: Callable[..., Any], objects: Iterable[Any]) -> Iterator[Reads]:
    """Inside the block, on this thread, attributes of ``objects`` and of what ``fn`` reaches are noted when they are read."""
    notes, saved = Reads(), _NOTES.active
    try:
        for o in (*objects, *[r for f in (fn, *objects) for r in _reached(f)]):
            notes.reach(o)
        _NOTES.active = (*saved, notes)
        yield notes
    finally:
        _NOTES.active = saved
        for kind in notes.classes:
            _restore(kind)


def _reached(fn: Any) -> Iterator[Any]:
    """What a function may read: the object of a method, cells of closures, the globals that it names; of the functions among them too."""
    left: list[Any] = [fn]
    seen: set[int] = set()
    while left and len(seen) < MOST:
        f = left.pop()
        if id(f) in seen:
            continue
        seen.add(id(f))
        if isinstance(f, types.MethodType):
            left += [f.__func__, f.__self__]
        elif isinstance(f, functools.partial):
            left += [f.func, *f.args, *f.keywords.values()]
        elif isinstance(f, types.FunctionType):
            if hasattr(f, "__wrapped__"):
                left.append(f.__wrapped__)
            left += [c for cell in f.__closure__ or () for c in _content(cell)]
            if _is_users(f.__module__):
                left += [f.__globals__[n] for n in f.__code__.co_names if n in f.__globals__]
        elif not isinstance(f, type | types.ModuleType):
            yield f
            inner = [getattr(f, n, None) for n in ("__wrapped__", "fn")] if type(f).__module__.startswith("tessera.") else []
            left += [v for v in inner if callable(v)]  # what a transformation or a decorator holds


def _content(cell: Any) -> list[Any]:
    try:
        return [cell.cell_contents]
    except ValueError:  # not filled yet
        return []


def _is_users(module: str | None) -> bool:
    top, _, rest = (module or "").partition(".")
    if top == "tessera":
        return rest.partition(".")[0] in ("nn", "models")
    return top == "__main__" or (top not in sys.stdlib_module_names and top not in ("numpy", "optree", "ml_dtypes"))


def _watchable(kind: type) -> bool:
    """Whether instances of a class are the user's: of a class statement outside the standard library, NumPy and this package's core."""
    ours = bool(kind.__flags__ & _HEAP) and not issubclass(kind, type | BaseException | threading.Thread)
    return ours and _is_users(kind.__module__)


def _is_data(obj: Any, name: str) -> bool:
    """Whether an attribute is a value that was set, not a method or a property, whose own reads are noted."""
    if name in getattr(obj, "__dict__", ()):
        return True
    for kind in type(obj).__mro__:
        if name in vars(kind):
            raw = vars(kind)[name]
            return isinstance(raw, types.MemberDescriptorType) or not (hasattr(type(raw), "__get__") or callable(raw))
    return False


def _patch(kind: type) -> None:
    with _LOCK:
        count, own = _PATCHED.get(kind, (0, vars(kind).get("__getattribute__")))
        if count == 0:
            plain: Any = kind.__getattribute__

            def __getattribute__(self: Any, name: str) -> Any:
                value = plain(self, name)
                if _NOTES.active and not name.startswith("__"):
                    _noted(self, name, value)
                return value

            try:
                setattr(kind, "__getattribute__", __getattribute__)  # noqa: B010
            except TypeError:  # a class that takes no attributes
                return
        _PATCHED[kind] = count + 1, own


def _noted(obj: Any, name: str, value: Any) -> None:
    active, _NOTES.active = _NOTES.active, ()  # what looking at it reads is no read of the function
    try:
        for notes in active:
            notes.note(obj, name, value)
    finally:
        _NOTES.active = active


def _restore(kind: type) -> None:
    with _LOCK:
        if kind not in _PATCHED:
            return
        count, own = _PATCHED[kind]
        if count > 1:
            _PATCHED[kind] = count - 1, own
            return
        del _PATCHED[kind]
        if own is None:
            del kind.__getattribute__
        else:
            setattr(kind, "__getattribute__", own)  # noqa: B010


__all__ = ["Reads", "Same", "reading", "snapshot", "unchanged"]
