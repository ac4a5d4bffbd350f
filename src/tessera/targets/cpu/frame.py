"""The frame of a call: the call context (``abi.py``) and, behind it, what the native entry needs to run a program.

One frame serves one call at a time.  It is prepared once for a program and a binding of its sizes; a call then passes
its address and the tuple of arrays, and native code does the rest: it checks each array against what was compiled for,
takes its data pointer, and runs the program alone or with the pool.

The entry reads the data pointer, rank, sizes and flags straight from ``PyArrayObject``, whose layout is part of numpy's
C interface (its macros inline it into every extension).  :func:`layout_is_known` verifies the layout of this
interpreter once; where it differs (free-threaded builds), :class:`~tessera.runtime.executable.Executable` fills in the
pointers from Python.
"""

from __future__ import annotations

import ctypes
import struct
import sys

import numpy as np

from . import abi

# in the context, behind what kernels know about
TEAM = 288  # ptr: the pool's state while it runs this call; null when the caller is alone
HOST = 296  # ptr: void(i64 handle, i64 call, ptr pointers): runs a host routine
HANDLE = 304  # i64: which call, for the host routine
STOP = 312  # i64: not 0: loops end at the next test, see below
# behind the context
PROGRAM = abi.CONTEXT_BYTES  # ptr: void(ptr ctx, i64 thread)
POOL_CELL = PROGRAM + 8  # ptr to a ptr: the process's pool, or null
PARALLEL = PROGRAM + 16  # i64: 1 where the work is worth the pool
COUNT = PROGRAM + 24  # i64: how many arrays
EXPECT = PROGRAM + 32  # ptr: an Expect for each array
ARRAY_TYPE = PROGRAM + 40  # ptr: numpy.ndarray
MISMATCH = PROGRAM + 48  # i64: the first array that is not as expected
ERROR = PROGRAM + 56  # 3 ptr: the exception that a signal handler raised (type, value, traceback)
PATIENCE = PROGRAM + 80  # i64: how many pauses the caller waits at its first meeting for threads that have not joined
FRAME_BYTES = PROGRAM + 128

# values of STOP
INTERRUPTED, IN_HOST, HOST_FAILED = 1, 2, 3

# Expect: ptr dtype object | i64 rank | i64 flags that must be set | ptr sizes
EXPECT_DTYPE, EXPECT_RANK, EXPECT_FLAGS, EXPECT_SIZES, EXPECT_BYTES = 0, 8, 16, 24, 32
C_CONTIGUOUS, ALIGNED, WRITEABLE = 0x1, 0x100, 0x400

# CPython's and numpy's objects
OBJECT_TYPE = 8
TUPLE_ITEMS = 24
ARRAY_DATA, ARRAY_RANK, ARRAY_SIZES, ARRAY_DTYPE, ARRAY_FLAGS = 16, 24, 32, 56, 64

# what the native entry returns
DONE, WRONG_ARRAY, CHECK_FAILED = 0, 1, 2


def layout_is_known() -> bool:
    """True when tuples and arrays lie in memory as the native entry reads them."""
    if sys.implementation.name != "cpython" or getattr(sys, "_is_gil_enabled", lambda: True)() is False:
        return False
    a = np.arange(6, dtype=np.float32).reshape(2, 3)

    def word(obj: object, offset: int, fmt: str = "q") -> int:
        raw = ctypes.string_at(id(obj) + offset, struct.calcsize(fmt))
        return int(struct.unpack(fmt, raw)[0])

    if (np.ndarray.__basicsize__ < ARRAY_FLAGS + 4 or word(a, OBJECT_TYPE) != id(np.ndarray)
            or tuple.__basicsize__ != TUPLE_ITEMS or word((a, None), TUPLE_ITEMS) != id(a)):
        return False
    if word(a, ARRAY_RANK, "i") != 2 or word(a, ARRAY_DATA) != a.__array_interface__["data"][0]:
        return False
    sizes = struct.unpack("2q", ctypes.string_at(word(a, ARRAY_SIZES), 16))
    flags = word(a, ARRAY_FLAGS, "i")
    needed = C_CONTIGUOUS | ALIGNED | WRITEABLE
    return sizes == (2, 3) and word(a, ARRAY_DTYPE) == id(a.dtype) and flags & needed == needed
