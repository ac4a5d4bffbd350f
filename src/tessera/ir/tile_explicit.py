"""The explicit level of Tile IR: one block's program as its warp groups run it.

A program that says everything has *roles*: parts that run at the same time, each on its own warp groups (128 threads), and
that meet through barriers.  A tile inside a role belongs to one warp group; each group of a role runs the role's whole part.
Blocks may form *clusters* (the function's attribute ``cluster``) whose members reach each other's shared memory.

Structure::

    roles() {groups = (1, 2), registers = (40, 232), threads = (1, 128)} do() {… yield()} do() {… yield()}
    %g = group_id() : int64                     which warp group of its role is running
    %r = cluster_rank() : int64                 which block of its cluster
    cluster_sync()                              all threads of the cluster meet

``registers`` are the budgets of each role's threads (0: as launched); a role of ``threads = 1`` is run by one thread.

Shared memory::

    %s = alloc() {swizzle = 128} : buf<bf16[4, 128, 64], shared>

``swizzle`` bytes (0, 32, 64, 128): the last two axes are a matrix that lies in panels of that many bytes of columns, one
panel after the other; within a panel the 16-byte chunks of row ``r`` are permuted by XOR with ``r``.  It changes no value.

Barriers::

    %b = mbarriers() {arrivals = 1} : buf<int64[4], barrier>     each completes a phase after so many arrivals and all bytes
    mbarrier_expect(%b, %i) {bytes}             one arrival that announces bytes which copies will bring
    mbarrier_arrive(%b, %i) {cluster}           one arrival of this group (``cluster``: at every block of the cluster)
    mbarrier_arrive(%b, %i, %when) {cluster}    the same where ``when`` holds
    mbarrier_wait(%b, %i, %phase)               until the phase of this parity (0, then 1, 0 …) is complete
    barrier_sync(%id) {threads}                 named barrier: so many threads meet
    barrier_arrive(%id) {threads}               counted there, without waiting

Waiting for parity 1 on a fresh barrier does not wait: the phase "before the first" counts as complete.

Asynchronous copies (of boxes that lie in a buffer along its trailing axes; lanes outside load as 0 and are not stored)::

    tma_load(%global, %o…, %shared, %p…, %b, %i) {box = (128, 64), multicast = 0}      adds its bytes to barrier i
    tma_store(%shared, %p…, %global, %o…) {box}      tma_commit()      tma_wait() {pending = 0, read = false}
    copy_async(%global, %o…, %shared, %p…) {box}     copy_commit()     copy_wait() {pending = 0}

A ``store`` in shared memory with ``async = true`` is under way in the same way until its group is waited for.  Outside roles these
copies, commits and waits are the whole block's, on any machine: where threads have no asynchronous copies, each is done at once.

``multicast`` is a mask of the cluster's blocks, all of which receive the box at the same place and at their own barrier.
``tma_wait`` with ``read`` waits until the shared memory has been read, else until the stores are done.
What threads write is seen by ``tma_store`` and ``mma_async`` only after::

    fence_async()

Products on a warp group's matrix unit::

    %d = mma_async(%acc, %go, %a, %p…, %b, %q…) {k = 64, a_t = false, b_t = true} : tile<f32[64, N]>     a in shared memory
    %d = mma_async(%acc, %go, %a, %b, %q…) {k = 64, b_t = false} : tile<f32[64, N]>                      a is a tile
    mma_commit()      %d… = mma_wait(%acc…) {pending = 0} : types

``d = a @ b + (acc if go else 0)``; a is ``[64, k]`` (``a_t``: stored ``[k, 64]``), b ``[k, N]`` (``b_t``: stored ``[N, k]``).
Until a wait has returned them, accumulators take part in ``mma_async`` alone, and the operands in memory must not change.
``uninitialized() : tile`` is an accumulator of no value yet.

Approximations of the special-function unit, pointwise: ``exp2_approx``, ``log2_approx``, ``reciprocal_approx``; their error is
the target's (the interpreter has the exact function's).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..types.dtypes import DType, bool_, f32
from .core import INDEX, BufferType, Function, Op, TileType
from .expectations import expect_buffer, expect_counts, expect_result, expect_scalar, expect_tile
from .graph import require

SWIZZLES = (0, 32, 64, 128)
GROUP = 128
"""Threads of a warp group."""

ASYNC_OPERANDS = {"mma_async", "mma_wait", "for", "yield"}
"""Ops that may hold an accumulator whose products are under way."""


def _shared(op: Op, index: int) -> BufferType:
    t = expect_buffer(op, index)
    require(t.space == "shared", op, f"operand {index} is shared memory, not {t}")
    return t


def _offsets(op: Op, first: int, count: int) -> None:
    require(len(op.operands) >= first + count, op, f"an offset is missing after operand {first - 1}")
    for k in range(first, first + count):
        expect_scalar(op, op.operands[k], f"operand {k}", INDEX.dtype)


def _barrier(op: Op, index: int) -> None:
    t = expect_buffer(op, index)
    require(t.space == "barrier", op, f"operand {index} is a row of barriers, not {t}")
    _offsets(op, index + 1, 1)


def _box(op: Op, shared: BufferType, other: BufferType) -> None:
    box = op.attrs.get("box", ())
    good = isinstance(box, tuple) and len(box) == 2 and all(isinstance(n, int) and n > 0 for n in box)
    require(good, op, f"the box is two positive extents, not {box!r}")
    require(shared.dtype is other.dtype, op, f"{shared} and {other} hold different types")
    require(shared.rank >= 2 and other.rank >= 2, op, f"a box of two axes does not lie in {shared} and {other}")
    require(all(isinstance(n, int) and b <= n for b, n in zip(box, shared.shape[-2:], strict=True)), op,
            f"the box {list(box)} does not fit {shared}")


def _load(op: Op) -> None:
    src = expect_buffer(op)
    _offsets(op, 1, src.rank)
    at = 1 + src.rank
    dst = _shared(op, at)
    _offsets(op, at + 1, dst.rank)
    _box(op, dst, src)
    end = at + 1 + dst.rank
    if op.name == "tma_load":
        _barrier(op, end)
        end += 2
    require(len(op.operands) == end and not op.results, op, f"takes {end} operands and has no result")
    require(isinstance(op.attrs.get("multicast", 0), int), op, "multicast is a mask of blocks")


def _store(op: Op) -> None:
    src = _shared(op, 0)
    _offsets(op, 1, src.rank)
    at = 1 + src.rank
    dst = expect_buffer(op, at)
    _offsets(op, at + 1, dst.rank)
    _box(op, src, dst)
    require(len(op.operands) == at + 1 + dst.rank and not op.results, op, "takes shared memory, places, a buffer and offsets")


def _mbarriers(op: Op) -> None:
    expect_counts(op, 0, 1)
    t, n = op.results[0].type, op.attrs.get("arrivals")
    require(isinstance(t, BufferType) and t.space == "barrier" and t.rank == 1 and isinstance(t.size, int), op,
            f"the result is a row of barriers, not {t}")
    require(isinstance(n, int) and n > 0, op, f"arrivals is a positive number, not {n!r}")


def _expect(op: Op) -> None:
    _barrier(op, 0)
    expect_counts(op, 2, 0)
    require(isinstance(op.attrs.get("bytes"), int) and op.attrs["bytes"] > 0, op, "bytes is a positive number")


def _arrive(op: Op) -> None:
    _barrier(op, 0)
    require(len(op.operands) in (2, 3) and not op.results, op, "takes barriers, an index and perhaps a condition")
    if len(op.operands) == 3:
        expect_scalar(op, op.operands[2], "the condition", bool_)


def _wait(op: Op) -> None:
    _barrier(op, 0)
    expect_counts(op, 3, 0)
    _offsets(op, 2, 1)


def _named(op: Op) -> None:
    expect_counts(op, 1, 0)
    _offsets(op, 0, 1)
    n = op.attrs.get("threads")
    require(isinstance(n, int) and n > 0 and n % 32 == 0, op, f"threads is a multiple of 32, not {n!r}")


def _pending(op: Op) -> None:
    n = op.attrs.get("pending", 0)
    require(isinstance(n, int) and n >= 0, op, f"pending is a number of groups, not {n!r}")


def _plain(op: Op) -> None:
    expect_counts(op, 0, 0)
    _pending(op)


def _number(op: Op) -> None:
    expect_counts(op, 0, 1)
    expect_result(op, INDEX)


def matrix_problem(a: DType, b: DType, acc: DType, shape: tuple[int, ...], k: int) -> str | None:
    """Why no matrix instruction of a warp group forms this product; None where one does."""
    if acc is not f32 or a is not b or a.name not in ("bf16", "f16"):
        return f"the matrix unit multiplies bf16 or f16 into f32, not {a} by {b} into {acc}"
    if len(shape) != 2 or shape[0] != 64 or shape[1] % 8 or not 8 <= shape[1] <= 256:
        return f"a warp group's product is 64 rows by 8 to 256 columns in steps of 8, not {list(shape)}"
    return None if k % 16 == 0 and k > 0 else f"k is a multiple of 16, not {k}"


def mma_parts(op: Op) -> tuple[Any, Any]:
    """The operands of ``mma_async``: (a, its places or None), (b, its places)."""
    a = op.operands[2]
    if isinstance(a.type, BufferType):
        at = 3 + a.type.rank
        return (a, op.operands[3:at]), (op.operands[at], op.operands[at + 1:])
    return (a, None), (op.operands[3], op.operands[4:])


def _mma(op: Op) -> None:
    require(len(op.operands) >= 4, op, "takes an accumulator, a condition, a and b")
    acc = expect_tile(op)
    expect_scalar(op, op.operands[1], "the condition", bool_)
    k = op.attrs.get("k", 0)
    (a, places), (b, _) = mma_parts(op)
    at = 2
    if places is not None:
        _shared(op, 2)
        _offsets(op, 3, a.type.rank)
        at = 2 + a.type.rank
    else:
        t = expect_tile(op, 2)
        require(t.shape == (64, k), op, f"a is a tile of 64 rows and {k} columns, not {t}")
    _shared(op, at + 1)
    _offsets(op, at + 2, b.type.rank)
    require(len(op.operands) == at + 2 + b.type.rank, op, "has operands too many")
    problem = matrix_problem(a.type.dtype, b.type.dtype, acc.dtype, acc.shape, k)
    require(problem is None, op, str(problem))
    expect_result(op, TileType(acc.dtype, acc.shape))


def _mma_wait(op: Op) -> None:
    _pending(op)
    require(len(op.operands) == len(op.results), op, "returns what it is given")
    for v, r in zip(op.operands, op.results, strict=True):
        require(isinstance(v.type, TileType) and (v.type.dtype, v.type.shape) == (r.type.dtype, r.type.shape), op,
                f"returns {v.type} as {r.type}")


def _uninitialized(op: Op) -> None:
    expect_counts(op, 0, 1)
    require(isinstance(op.results[0].type, TileType), op, f"the result is a tile, not {op.results[0].type}")


RULES: dict[str, Callable[[Op], None]] = {
    "mbarriers": _mbarriers, "mbarrier_expect": _expect, "mbarrier_arrive": _arrive, "mbarrier_wait": _wait,
    "barrier_sync": _named, "barrier_arrive": _named, "group_id": _number, "cluster_rank": _number, "cluster_sync": _plain,
    "tma_load": _load, "tma_store": _store, "tma_commit": _plain, "tma_wait": _plain, "copy_async": _load, "copy_commit": _plain,
    "copy_wait": _plain, "fence_async": _plain, "mma_async": _mma, "mma_commit": _plain, "mma_wait": _mma_wait,
    "uninitialized": _uninitialized,
}


def check_roles(op: Op) -> None:
    """The attributes of ``roles``: one entry for each part."""
    require(not op.operands and not op.results and bool(op.blocks), op, "has one block for each role, no operands and no results")
    for name in ("groups", "registers", "threads"):
        got = op.attrs.get(name)
        require(isinstance(got, tuple) and len(got) == len(op.blocks) and all(isinstance(n, int) for n in got), op,
                f"{name} has one number for each role, not {got!r}")
    require(all(g > 0 for g in op.attrs["groups"]), op, "each role has a warp group at least")
    require(all(t in (1, GROUP) for t in op.attrs["threads"]), op, f"a role is run by 1 or by {GROUP} threads of each group")
    require(all(r == 0 or (24 <= r <= 256 and r % 8 == 0) for r in op.attrs["registers"]), op,
            "a register budget is a multiple of 8 from 24 to 256, or 0")


BLOCK_OPS = frozenset({"copy_async", "copy_commit", "copy_wait"})
"""Ops that blocks without warp groups have as well: there they are the whole block's."""


def is_explicit(op: Op) -> bool:
    """True for the ops of this level."""
    return op.name in RULES or op.name == "roles"


def of_groups(op: Op) -> bool:
    """True for ops of programs that are written for warp groups."""
    return is_explicit(op) and op.name not in BLOCK_OPS


def is_explicit_program(fn: Function) -> bool:
    """True for programs that are written for warp groups."""
    return any(of_groups(op) for op in fn.walk())


__all__ = ["BLOCK_OPS", "GROUP", "RULES", "SWIZZLES", "check_roles", "is_explicit", "is_explicit_program", "matrix_problem",
           "mma_parts", "of_groups"]
