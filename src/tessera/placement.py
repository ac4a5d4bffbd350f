"""Memory as part of types, and movement that overlaps with work; reached through ``ts.memory``."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import ArgumentError
from .tracing.annotations import TensorSpec
from .tracing.recorder import STATE, lift
from .tracing.tensor import Tensor, make
from .types import dtypes as dt


@dataclass(frozen=True)
class Placed:
    """``Tensor["128", f32] @ memory("register")``: a tensor type and the memory space that it lives in."""

    spec: TensorSpec
    space: str

    def __str__(self) -> str:
        return f"{self.spec} @ memory({str(self.space)!r})"

    __repr__ = __str__


def placed(what: Any, space: str) -> Placed:
    """The type of a tensor in a memory space.

    Raises:
        ArgumentError: ``what`` is no tensor type.
    """
    if what is Tensor:
        what = TensorSpec(None)
    if not isinstance(what, TensorSpec):
        raise ArgumentError(f"memory({str(space)!r}) places a tensor type, not a {type(what).__name__}",
                            expected='Tensor["128", f32] @ memory("shared")', received=repr(what)[:80])
    return Placed(what, space)


def plan_of(cls: type) -> dict[str, tuple[str, int | None]]:
    """The fields of a class of placed tensors: name -> (space, bytes; None where the type has no fixed size)."""
    out: dict[str, tuple[str, int | None]] = {}
    for name, value in vars(cls).get("__annotations__", {}).items():
        if isinstance(value, Placed):
            spec, nbytes = value.spec, (value.spec.dtype or dt.f32).itemsize
            sizes = spec.dims
            if sizes is None or not all(isinstance(d, int) for d in sizes):
                out[name] = (str(value.space), None)
                continue
            for d in sizes:
                nbytes *= d
            out[name] = (str(value.space), nbytes)
    return out


class Future:
    """A copy that is under way; :meth:`wait` gives its tensor."""

    def __init__(self, work: Callable[[], Any]):
        self._result: Any = None
        self._error: BaseException | None = None

        def run() -> None:
            try:
                self._result = work()
            except BaseException as e:
                self._error = e

        self._thread = threading.Thread(target=run, daemon=True, name="tessera-copy")
        self._thread.start()

    def done(self) -> bool:
        """Whether the copy has ended."""
        return not self._thread.is_alive()

    def wait(self) -> Any:
        """Block until the copy has ended; its tensor.  Calling again gives the same; an error of the copy is raised here."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result


def async_copy(x: Any, to: str = "global", *, copier: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] | None = None) -> Future:
    """Start copying ``x`` to another memory space; returns at once.

    In a traced function the copy is the program's own affair: the future is over, and its tensor is ``x``.

    Args:
        copier: what copies an array (``numpy.copy``).
    """
    t = lift(x)
    if STATE.trace is not None:
        return Future(lambda: t)
    array = t._concrete("async_copy()")
    copy = copier or np.copy
    return Future(lambda: make(np.asarray(copy(array))))


def store(path: Any, x: Any) -> Tensor:
    """Write a tensor to a file and return it mapped from there (see :func:`mapped`)."""
    a = lift(x)._concrete("store()")
    if a.dtype.kind not in "biufc":
        raise ArgumentError(f"files of mapped tensors hold NumPy's own dtypes, not {a.dtype}", hints=["Convert it first: x.to(ts.f32)"])
    with open(path, "wb") as f:
        np.save(f, a)
    return mapped(path)


def mapped(path: Any) -> Tensor:
    """The tensor in a file that :func:`store` (or ``numpy.save``) wrote: pages are read when they are used.

    Writing into it changes the tensor, never the file.
    """
    return make(np.asarray(np.load(path, mmap_mode="r")))


__all__ = ["Future", "Placed", "async_copy", "mapped", "placed", "plan_of", "store"]
