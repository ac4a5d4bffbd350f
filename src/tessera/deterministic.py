"""Reproducible runs: ``@ts.deterministic(seed=42)``, ``with ts.deterministic(seed=0):``, ``ts.verify_determinism(fn, x)``.

Everything that Tessera compiles gives the same bits for the same inputs, whatever the number of threads; what is left to fix is
the random stream.  ``deterministic(seed=)`` starts it at the seed and puts it back where it was afterwards, so equal calls draw equal
numbers, in this process and in the next.  The module is callable.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType, TracebackType
from typing import Any

import numpy as np
import optree

from . import random
from .errors import ArgumentError, NumericalError
from .ops import collectives
from .ops import pointwise as pw
from .tracing.policies import InForce
from .tracing.recorder import STATE, lift


class Deterministic:
    """A seed in force: a decorator and a context manager."""

    def __init__(self, seed: int | None = None):
        if seed is not None and (isinstance(seed, bool) or not hasattr(seed, "__index__")):
            raise ArgumentError(f"a seed is an integer, not {seed!r}", hints=["@ts.deterministic(seed=42)"])
        self.seed = seed
        self._outer: list[tuple[Any, Any]] = []

    def __enter__(self) -> Deterministic:
        self._outer.append((random.get_state(), STATE.policy))
        STATE.policy = dataclasses.replace(STATE.policy or InForce(), deterministic=True)
        if self.seed is not None:
            random.seed(self.seed)
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        state, STATE.policy = self._outer.pop()
        if self.seed is not None:
            random.set_state(state)

    def __call__(self, fn: Callable[..., Any]) -> Callable[..., Any]:
        if not callable(fn):
            raise ArgumentError(f"@deterministic decorates a function, not a {type(fn).__name__}")

        @functools.wraps(fn)
        def reproducible(*args: Any, **kwargs: Any) -> Any:
            with Deterministic(self.seed):
                return fn(*args, **kwargs)

        return reproducible


def scope() -> Deterministic:
    """``with ts.deterministic.scope():`` a region that must be deterministic, with the stream as it stands.

    Ops that declare themselves not deterministic (fact ``nondeterministic`` of the op table) are refused inside.
    """
    return Deterministic()


def active() -> bool:
    """Whether a deterministic block is in force."""
    force = STATE.policy
    return bool(force is not None and force.deterministic)


def all_reduce(x: Any, op: str = "sum", axis: str | None = None) -> Any:
    """One value out of many, joined in a fixed order.

    Args:
        x: a tensor (joined over the named axis ``axis`` of a ``vmap`` or mesh; without one, it is the only member), or the members'
            contributions as a list, in the order of their ranks: whatever order they arrived in, they are joined two and two by rank.
        op: "sum", "mean", "max" or "min".

    Raises:
        ArgumentError: no such operation, or an empty list.
    """
    joins = {"sum": pw.add, "mean": pw.add, "max": pw.maximum, "min": pw.minimum}
    if op not in joins:
        raise ArgumentError(f"all_reduce has no operation {op!r}", expected=", ".join(joins))
    if isinstance(x, list | tuple):
        if not x:
            raise ArgumentError("all_reduce of no contributions")
        return _tree([lift(v) for v in x], joins[op], len(x) if op == "mean" else 1)
    if axis is None and not collectives.BOUND.axes:
        return lift(x)
    return collectives.all_reduce(x, op, axis)


def _tree(members: list[Any], join: Callable[[Any, Any], Any], divide: int) -> Any:
    while len(members) > 1:
        pairs = [join(a, b) for a, b in zip(members[::2], members[1::2], strict=False)]
        members = pairs + members[len(pairs) * 2:]
    return pw.div(members[0], divide) if divide > 1 else members[0]


def dropout(x: Any, p: float = 0.5, training: bool = True, *, key: Any = None) -> Any:
    """Dropout whose mask depends on the seed, the call and each element's place alone, never on threads or devices."""
    return random.dropout(x, p, training, key=key)


# -- verification ----------------------------------------------------------------------------------------------------------------
@contextmanager
def _threads(n: int) -> Iterator[None]:
    from . import runtime
    before = runtime.get_num_threads()
    runtime.set_num_threads(n)
    try:
        yield
    finally:
        runtime.set_num_threads(before)


def digest(out: Any) -> str:
    """SHA-256 over the bits, dtypes and shapes of every array in a result."""
    h = hashlib.sha256()
    for leaf in optree.tree_leaves(out):
        a = np.ascontiguousarray(leaf)
        h.update(f"{a.dtype}{a.shape}".encode())
        h.update(a.tobytes())
    return h.hexdigest()


def verify_determinism(fn: Callable[..., Any], *inputs: Any, num_runs: int = 10, seed: int = 0, threads: Sequence[int] = (1, 2),
                       verbose: bool = True) -> bool:
    """Run ``fn(*inputs)`` again and again, from one seed, with different numbers of threads, and compare all bits.

    Raises:
        NumericalError: two runs differ; it says which, by how much, and, for what Tessera compiles, the op, kernel and line.
        ArgumentError: fewer than two runs.
    """
    if num_runs < 2:
        raise ArgumentError("to verify determinism takes at least two runs", received=f"num_runs={num_runs}")
    first: Any = None
    for i in range(num_runs):
        with Deterministic(seed), _threads(threads[i % len(threads)] if threads else 1):
            out = fn(*inputs)
        if i == 0:
            first = out
        elif digest(out) != digest(first):
            from .debug import find_nondeterminism
            report = find_nondeterminism(fn, *inputs, seed=seed)
            raise NumericalError(
                f"run {i + 1} of {getattr(fn, '__name__', 'the function')} gives other bits than run 1", sentence=_apart(first, out),
                hints=[str(report)] if report is not None else ["Draw random numbers from tessera.random, which follows the seed"])
    if verbose:
        print("✓ Function is deterministic")
    return True


def _apart(a: Any, b: Any) -> str:
    x, y = optree.tree_leaves(a), optree.tree_leaves(b)
    if len(x) != len(y):
        return f"The results have {len(x)} and {len(y)} arrays."
    for i, (p, q) in enumerate(zip(map(np.asarray, x), map(np.asarray, y), strict=True)):
        if p.shape != q.shape or p.dtype != q.dtype:
            return f"Result {i} has the types {p.dtype}{list(p.shape)} and {q.dtype}{list(q.shape)}."
        if p.tobytes() != q.tobytes():
            other = p.view(np.uint8).reshape(*p.shape, -1) != q.view(np.uint8).reshape(*q.shape, -1) if p.ndim else np.array([[True]])
            where = np.argwhere(other.any(-1))
            at = tuple(int(n) for n in where[0]) if p.ndim else ()
            return f"Result {i} differs in {len(where)} of {p.size} elements, first at {list(at)}: {p[at]} and {q[at]}."
    return "The results differ."


class _Callable(ModuleType):
    def __call__(self, seed: int | None = None) -> Any:
        if callable(seed):
            return Deterministic(0)(seed)
        return Deterministic(seed)


sys.modules[__name__].__class__ = _Callable

__all__ = ["Deterministic", "active", "all_reduce", "digest", "dropout", "scope", "verify_determinism"]
