"""Memory as part of types, and movement that overlaps with work; reached through ``ts.memory``."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import ArgumentError
from .errors.boundary import describe
from .tracing.annotations import TensorSpec, _evaluated, _Names
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


def plan_of(cls: type, target: str | None = None) -> dict[str, tuple[str, int | None]]:
    """The fields of a class of placed tensors: name -> (space, bytes; None where the type has no fixed size).

    Args:
        target: a machine by name (``"sm_90"``) on which one block is to hold all fields in registers and in shared memory.

    Raises:
        ArgumentError: there is no such machine, or the fields are too large for it.
    """
    out = _fields(cls)
    if target is not None:
        from .machine import machine
        m = machine(target)
        limits = {"register": m.register_bytes, "shared": m.shared_bytes} if m.kind == "simt" else {}
        for space, limit in limits.items():
            mine = {n: size for n, (s, size) in out.items() if s == space and size is not None}
            if sum(mine.values()) > limit:
                raise ArgumentError(f"{cls.__name__} needs {sum(mine.values())} bytes of {space} memory; a block of {m.name} has {limit}",
                                    expected=f"at most {limit} bytes", received=", ".join(f"{n}: {size}" for n, size in mine.items()),
                                    hints=["Use smaller tiles", 'Place a field in memory("global")'])
    return out


def placed_fields(cls: type) -> dict[str, Placed]:
    """The fields of a class that are placed tensors; annotations that are text are read where the class was defined."""
    names = _Names([vars(sys.modules[cls.__module__])] if cls.__module__ in sys.modules else [])
    read = {n: _evaluated(a, names, n) for n, a in vars(cls).get("__annotations__", {}).items()}
    return {n: a for n, a in read.items() if isinstance(a, Placed)}


def _fields(cls: type) -> dict[str, tuple[str, int | None]]:
    out: dict[str, tuple[str, int | None]] = {}
    for name, value in placed_fields(cls).items():
        spec, nbytes = value.spec, (value.spec.dtype or dt.f32).itemsize
        sizes = spec.dims
        if sizes is None or not all(isinstance(d, int) for d in sizes):
            out[name] = (str(value.space), None)
            continue
        for d in sizes:
            nbytes *= d
        out[name] = (str(value.space), nbytes)
    return out


# -- parameters ------------------------------------------------------------------------------------------------------------------
def settle(arguments: list[Any], spaces: Sequence[str | None], names: Sequence[str | None], function: str,
           moved: Callable[[Tensor, str], None]) -> None:
    """Bring the tensors among ``arguments`` to where their parameters are declared to be.

    The device is that of the first argument that lives on an accelerator, else the current one.  ``"global"`` is its memory, ``"host"``
    the memory of the CPU, from which the device fetches what it computes with; ``"disk"`` is a file (:func:`mapped`).  What is elsewhere
    is moved, which ``moved(tensor, space)`` is told.

    Raises:
        ArgumentError: a tensor that is declared to lie in a file does not.
    """
    from .device import CPU, current_device, device_of, to
    tensors = [x for x in arguments if isinstance(x, Tensor)]
    device = next((d for d in map(device_of, tensors) if d != CPU), current_device())
    for i, (x, space) in enumerate(zip(arguments, spaces, strict=True)):
        if space is None or not isinstance(x, Tensor):
            continue
        if space == "disk" and not _is_mapped(x):
            raise ArgumentError(f"{function}() takes {names[i]!r} from a file", expected='memory("disk")', received=f"{x.type} in memory",
                                hints=[f"Write it there first: {names[i]} = ts.memory.store(path, {names[i]})"])
        if space == "host" and device_of(x) != CPU:
            x = to(x, CPU)
            moved(x, "host")
        if (space in ("global", "host") and device != device_of(x)) or (space == "global" and _is_mapped(x)):
            x = to(x, device) if device != CPU else make(np.array(x._concrete(function)))
            moved(x, "global")
        elif space not in ("global", "host", "disk"):
            moved(x, space)
        arguments[i] = x


def _is_mapped(x: Tensor) -> bool:
    a: Any = x._p
    while a is not None:
        if isinstance(a, np.memmap):
            return True
        a = getattr(a, "base", None)
    return False


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

    def wait(self, timeout: float | None = None) -> Any:
        """Block until the copy has ended; its tensor.  Calling again gives the same; an error of the copy is raised here.

        Raises:
            TimeoutError: it has not ended after ``timeout`` seconds, and goes on.
        """
        self._thread.join(timeout)
        if self._thread.is_alive():
            raise TimeoutError(f"the copy has not ended after {timeout} s")
        if self._error is not None:
            raise self._error
        return self._result

    result = wait

    def __repr__(self) -> str:
        state = "under way" if not self.done() else "failed" if self._error is not None else "done"
        return f"<copy, {state}>"


def async_copy(x: Any, to: Any = "global", *, copier: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]] | None = None) -> Future:
    """Start copying ``x`` to other memory; returns at once.  The copy is of the values at the call: what is written to ``x`` later is not
    in it.

    In a traced function the copy is the program's own affair: the future is over, and its tensor is ``x``.

    Args:
        to: ``"global"``, the memory of the tensor's device; ``"host"``; or a device (``"gpu:0"``).
        copier: what copies an array of the host (``numpy.copy``).

    Raises:
        ArgumentError: there is no such memory, or ``copier`` cannot be called.
        DeviceError: there is no such device here; in a traced function, it is not where that runs.
    """
    from .device import CPU, device_of, find, names_device
    from .device import to as moved
    t = lift(x)
    if copier is not None and not callable(copier):
        raise ArgumentError(f"async_copy(copier=…) is a function of an array, not {describe(copier)}", received=describe(copier))
    if to in ("global", "host"):
        target = CPU if to == "host" else device_of(t)
    elif names_device(to):
        target = find(to)
    else:
        raise ArgumentError(f"async_copy() copies to no memory {to!r}", expected='"global", "host", or a device such as "gpu:0"',
                            received=repr(to)[:60], hints=['Ask for a cache with ts.prefetch(x, "L2_cache")'])
    if STATE.trace is not None:
        t = t if to == "global" else moved(t, target)
        return Future(lambda: t)
    held = make(t._p)  # what is written to ``x`` meanwhile goes to other memory
    held._concrete("async_copy()") if not held._placed else None

    def work() -> Tensor:
        copied = np.asarray((copier or np.copy)(held._concrete("async_copy()")))
        if copied.shape != held.shape or copied.dtype != held.dtype.np:
            raise ArgumentError("async_copy(copier=…) gave another type", expected=str(held.type),
                                received=f"{copied.dtype}{list(copied.shape)}")
        return moved(make(copied), target)

    return Future(work)


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


__all__ = ["Future", "Placed", "async_copy", "mapped", "placed", "placed_fields", "plan_of", "settle", "store"]
