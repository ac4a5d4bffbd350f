"""Running compiled programs: compilation in worker processes, the caches, memory, threads.

Importing this room loads neither LLVM nor the console library; :func:`install` only enters the compiler into the
registry of eager and traced execution.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np

from ..settings import THREADS
from ..targets.cpu.pool import get_num_threads, set_num_threads
from .allocator import ALLOCATOR
from .checks import unchecked

if TYPE_CHECKING:
    from ..ir.core import Function
    from .compiler import Compiler
    from .executable import Executable

_compiler: Compiler | None = None


def host_compiler() -> Compiler:
    """The process's compiler for this computer."""
    global _compiler
    if _compiler is None:
        from .compiler import Compiler
        _compiler = Compiler()
    return _compiler


class _AtFirstUse:
    """Stands in the registry until something is compiled: the compiler's own modules are loaded then."""

    reuses_donated = True  # results are returned in the memory of donated arguments where the schedule says so

    def __init__(self) -> None:
        self._launches: WeakKeyDictionary[Function, Executable] = WeakKeyDictionary()

    def compile(self, fn: Function) -> Executable:
        """An executable for a Graph function."""
        return host_compiler().compile(fn)

    def launch(self, fn: Function, buffers: Sequence[np.ndarray[Any, Any]]) -> None:
        """Run a Tile function on dense arrays, in place."""
        run = self._launches.get(fn)
        if run is None:
            run = self._launches[fn] = host_compiler().compile(fn)
        run(buffers)


class _PlacedLaunches:
    """Tile functions run on arrays of one device, in place: a program for each function and device."""

    def __init__(self) -> None:
        self._programs: WeakKeyDictionary[Function, dict[str, Any]] = WeakKeyDictionary()

    def __call__(self, fn: Function, buffers: Sequence[Any]) -> None:
        from ..tracing import eager
        device = str(buffers[0].dtype.device)
        of_fn = self._programs.setdefault(fn, {})
        run = of_fn.get(device)
        if run is None:
            run = of_fn[device] = eager.compile_graph(fn, device)
        run(list(buffers))


def _gpu_compiler(name: str) -> Any:
    from .gpu import compiler
    return compiler(name)


def _to_gpu(a: np.ndarray[Any, Any], name: str) -> Any:
    from ..targets.nvidia import driver
    from ..types.dtypes import as_dtype
    from .gpu import upload
    return upload(driver.gpu(int(name.partition(":")[2] or 0)), a, as_dtype(a.dtype))


def _intel_compiler(name: str) -> Any:
    from .opencl import compiler
    return compiler(name)


def _to_intel(a: np.ndarray[Any, Any], name: str) -> Any:
    from .opencl import upload
    return upload(a, name)


def _simulated_compiler(name: str) -> Any:
    from .simulated import compiler
    return compiler(name)


def _to_simulated(a: np.ndarray[Any, Any], name: str) -> Any:
    from .simulated import upload
    return upload(a, name)


def _from_dlpack(x: Any) -> Any:
    from .dlpack import taken
    return taken(x)


def _lent_by_host(a: np.ndarray[Any, Any], dtype: Any) -> Any:
    from .capsules import lent_array
    return lent_array(a, dtype)


def _taken_by_host(x: Any) -> np.ndarray[Any, Any]:
    from .capsules import taken_array
    return taken_array(x)


def install() -> None:
    """Enter the compiler into the registry through which tensors and traced functions execute."""
    from ..tracing import eager, placed, tensor
    eager.COMPILER = _AtFirstUse()
    eager.DEVICES["gpu"] = _gpu_compiler
    placed.MOVE["gpu"] = _to_gpu
    eager.DEVICES["intel"] = _intel_compiler
    placed.MOVE["intel"] = _to_intel
    eager.DEVICES["simulated"] = _simulated_compiler
    placed.MOVE["simulated"] = _to_simulated
    placed.LAUNCH.update(dict.fromkeys(("gpu", "intel", "simulated"), _PlacedLaunches()))
    placed.TAKE, placed.TAKE_ON_HOST = _from_dlpack, _taken_by_host
    tensor.LEND = _lent_by_host
    threads = THREADS.get()
    if threads is not None:
        set_num_threads(threads)


def synchronize() -> None:
    """Wait for what this thread launched on devices; calls on the CPU have finished when they return."""
    gpus = sys.modules.get(f"{__name__}.gpu")
    for gpu in gpus.OPENED.values() if gpus is not None else ():
        gpu.enter()
        gpu.stream.synchronize()


def _after_fork() -> None:
    if _compiler is not None:
        _compiler.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def memory_usage() -> dict[str, int]:
    """Host memory of tensors: bytes ``in_use``, ``cached`` for reuse, ``peak``; ``hits`` and ``misses`` of the cache."""
    return ALLOCATOR.usage()


def release_cached_memory() -> None:
    """Give memory that is kept for reuse back to the system."""
    ALLOCATOR.trim(0)


__all__ = ["get_num_threads", "host_compiler", "install", "memory_usage", "release_cached_memory", "set_num_threads",
           "synchronize", "unchecked"]
