"""What native code and its callers agree on: the call context, the status word, the entry of a kernel.

A kernel named ``NAME`` is

    ``void NAME(ptr buffer…, i64 size…, ptr ctx, i64 begin, i64 end)``

and runs the blocks of its grid whose row-major number ``n`` satisfies ``begin <= n < end``.

``ctx`` points at ``CONTEXT_BYTES`` bytes, 64-byte aligned.  Words that several threads write lie on cache lines of
their own.  A kernel touches the status word only; the rest belongs to the program and the pool.
"""

from __future__ import annotations

STATUS = 0  # u64: the first failed check, see below
ARRIVED = 64  # u32: threads that have reached the barrier
GENERATION = 128  # u32: barriers passed
NEXT_BLOCK = 192  # u64: the next block of the running launch
THREADS = 256  # u64: participating threads
ARENA = 264  # ptr: temporaries of this call
BUFFERS = 272  # ptr: array of the program's buffer pointers
SIZES = 280  # ptr: array of the program's i64 sizes
CONTEXT_BYTES = 320

# A failed check is one number, ``site << 48 | value mod 2**48``, kept by an atomic minimum: the first site in program
# order wins, and among its failures the least value, so the report does not depend on the threads' timing.
STATUS_OK = 2**64 - 1
VALUE_BITS = 48
MAX_SITE = 2**16 - 2


def status_of(word: int) -> tuple[int, int] | None:
    """The (site, value) of a status word, or None where every check held."""
    if word == STATUS_OK:
        return None
    value = word & (2**VALUE_BITS - 1)
    return word >> VALUE_BITS, value - (value >> (VALUE_BITS - 1) << VALUE_BITS)
