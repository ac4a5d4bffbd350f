"""The thread pool: Python daemon threads parked in native code, shared by every program of the process.

The pool starts with the first program that has enough work for it.  It belongs to the process that started it: a forked
child begins without one.  Native code finds the pool through one word of memory, the *cell* (0: no pool), so replacing
the pool never touches a compiled program.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field

from ...errors import CompileError
from ...machine import cpu_limit
from . import pool_ir
from .loader import Image, load

STOP_SECONDS = 2.0  # how long a shutdown waits for a call that is under way in another thread

_PYTHON = ("PyGILState_Ensure", "PyGILState_Release", "PyErr_CheckSignals", "PyErr_Fetch")
_CALL = (ctypes.c_int32, ctypes.c_void_p, ctypes.py_object)


class Native:
    """The loaded pool code: ``call`` releases the interpreter's lock, ``quick`` keeps it (for programs of microseconds)."""

    def __init__(self, object_file: bytes):
        python = {n: ctypes.cast(getattr(ctypes.pythonapi, n), ctypes.c_void_p).value or 0 for n in _PYTHON}
        self.image: Image = load([object_file], python)
        at = self.image.symbols
        self.symbols = {n: at[n] for n in ("ts_claim", "ts_barrier", "ts_poll")}
        self.call = ctypes.CFUNCTYPE(*_CALL)(at["ts_call"])
        self.quick = ctypes.PYFUNCTYPE(*_CALL)(at["ts_call"])
        self.run = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(at["ts_run"])
        self.worker = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int32)(at["ts_worker"])
        self.stop = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p)(at["ts_stop"])


def aligned_bytes(n: int, align: int = 64) -> tuple[ctypes.Array[ctypes.c_char], int]:
    """Zeroed memory and an aligned address in it; the memory lives as long as the first."""
    raw = ctypes.create_string_buffer(n + align)
    return raw, -(-ctypes.addressof(raw) // align) * align


@dataclass(eq=False)
class Pool:
    """Parked threads.  ``threads`` counts the caller too."""

    native: Native
    threads: int
    address: int = 0
    memory: object = None
    workers: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        self.memory, self.address = aligned_bytes(pool_ir.pool_bytes(self.threads))
        ctypes.c_int64.from_address(self.address + pool_ir.THREADS).value = self.threads
        for tid in range(1, self.threads):
            t = threading.Thread(target=self._work, args=(tid,), name=f"tessera-{tid}", daemon=True)
            self.workers.append(t)
            t.start()

    def _work(self, tid: int) -> None:
        with suppress(AttributeError, ValueError):
            signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # signals are for the user's threads
        self.native.worker(self.address, tid, 0)

    def stop(self, seconds: float | None = None) -> bool:
        """Send the workers home and wait for them; False when a call did not end in time (they stay, harmless)."""
        end = None if seconds is None else time.monotonic() + seconds
        while not self.native.stop(self.address):
            if end is not None and time.monotonic() > end:
                return False
            time.sleep(0.001)
        for t in self.workers:
            t.join(seconds)
        return True


class _State:
    """The process's pool and how many threads it may have."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.cell = ctypes.c_uint64(0)
        self.native: Native | None = None
        self.pool: Pool | None = None
        self.wanted: int | None = None
        self.closing = False  # the interpreter is going: it starts no more threads (an error from Python 3.12 on)
        self.retired: list[Pool] = []  # a caller may still look at a stopped pool's owner word: its memory stays


_state = _State()


def install(object_file: bytes) -> Native:
    """Load the pool's code, once a process."""
    with _state.lock:
        if _state.native is None:
            _state.native = Native(object_file)
        return _state.native


def installed() -> Native | None:
    """The pool's code, if it is loaded."""
    return _state.native


def cell_address() -> int:
    """Where native code finds the pool."""
    return ctypes.addressof(_state.cell)


def ensure_started() -> None:
    """Start the pool if more than one thread may be used and it is not running; at the interpreter's end the caller is alone.

    Raises:
        CompileError: the pool's code is not installed.
    """
    if _state.pool is not None or get_num_threads() == 1:
        return
    with _state.lock:
        if _state.pool is not None or _state.closing:
            return
        if _state.native is None:
            raise CompileError("the thread pool's code is not loaded")
        pool = Pool(_state.native, get_num_threads())
        pool.start()
        _state.pool = pool
        _state.cell.value = pool.address


def get_num_threads() -> int:
    """How many threads a program may use: what ``set_num_threads`` said, else what affinity and cgroups allow."""
    if _state.wanted is None:
        _state.wanted = cpu_limit()
    return _state.wanted


def set_num_threads(n: int) -> None:
    """Let programs use ``n`` threads, the caller's included.  Results do not depend on it.

    Raises:
        ValueError: ``n`` is not an integer of at least 1.
    """
    if isinstance(n, bool) or not isinstance(n, int) or not 1 <= n <= 1024:
        raise ValueError(f"the number of threads is an integer from 1 to 1024, not {n!r}")
    if n == _state.wanted:
        return
    _retire(None)
    _state.wanted = n


def _retire(seconds: float | None) -> None:
    with _state.lock:
        pool, _state.pool = _state.pool, None
        _state.cell.value = 0
    if pool is not None:
        pool.stop(seconds)
        _state.retired.append(pool)


def _after_fork() -> None:
    _state.lock = threading.Lock()
    _state.cell.value = 0
    _state.pool = None  # its threads live in the parent alone


def _at_exit() -> None:
    with _state.lock:
        _state.closing = True
    _retire(STOP_SECONDS)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
