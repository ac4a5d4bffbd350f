"""Checkpointing: a region whose inner values are computed again in the backward pass instead of being kept.

The recomputation reads the region's inputs through ``barrier`` ops, so that no pass merges it with the forward computation; the last
Graph pass drops them.  Random ops keep their sites, so that a recomputed dropout mask is the same.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

from ..errors import ArgumentError, suggest
from ..ir.core import Copier, Function, Op, TensorType, Value, rewrite
from ..tracing import decorators
from ..tracing.recorder import STATE, bind
from ..tracing.tensor import Tensor
from .custom import Arguments
from .regions import Region, record_region
from .replay import Replay
from .reverse import Cotangent, Cotangents, Pull, Reverse
from .rewriting import everywhere

POLICIES = ("full", "selective")
LOG = logging.getLogger("tessera.checkpoint")


class Checkpointed:
    """A function whose backward pass computes its inner values again; made by :func:`checkpoint`.

    Attributes:
        saved: types of the inner values that the latest recorded backward pass kept.
        recomputed: how many ops it computed again.
        decorators: which of Tessera's decorators were applied, from the innermost outwards.
    """

    def __init__(self, fn: Callable[..., Any], policy: str):
        functools.update_wrapper(self, fn, updated=())
        self.fn, self.policy_name = fn, policy
        self.decorators = decorators.apply("checkpoint", fn)
        self.__name__ = str(getattr(fn, "__name__", type(fn).__name__))
        self.saved: list[TensorType] = []
        self.recomputed = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if STATE.trace is None:
            return self.fn(*args, **kwargs)
        call = Arguments([args, kwargs])
        fixed = _Inner(call)

        def body(ts: list[Tensor]) -> Any:
            inner_args, inner_kwargs = fixed.rebuild(ts)
            return self.fn(*inner_args, **inner_kwargs)

        return record_region(self.__name__, _Rematerialised(self), body, call.tensors)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __repr__(self) -> str:
        return f"<checkpoint of {self.__name__}, policy={self.policy_name!r}>"


class _Inner:
    def __init__(self, call: Arguments):
        self.rebuild = call.rebuild


class _Rematerialised(Region):
    def __init__(self, owner: Checkpointed):
        super().__init__()
        self.owner = owner

    def reverse(self, r: Any, op: Op, fn: Function, wanted: Sequence[bool]) -> Pull:
        keep = kept_values(fn, self.owner.policy_name)
        forward = Replay(fn.functions or r.functions)
        xs = [r.env[v] for v in op.operands]
        forward.env.update(zip(fn.args, xs, strict=True))
        for o in fn.body.ops[:-1]:
            forward.again(o)
        r.env.update(zip(op.results, [forward.env[v] for v in fn.returns], strict=True))
        saved = {v: forward.env[v] for v in keep}
        functions = forward.functions

        def pull(gs: list[Cotangent], cts: Cotangents) -> Sequence[Cotangent]:
            inner = _Recompute(functions, saved)
            inner.run(fn, [bind("barrier", x) for x in xs], wanted)
            back = inner.pull(fn, gs)
            self.owner.saved = [v.type for v in keep]
            self.owner.recomputed = inner.count
            LOG.info("%s: %d of %d ops recomputed, %d values kept", self.owner.__name__, inner.count, len(fn.body.ops) - 1, len(keep))
            return back

        return pull

    def batched(self, flags: Sequence[bool], size: Any, results: Sequence[bool]) -> Region | None:
        return _Rematerialised(self.owner)


class _Recompute(Reverse):
    """The forward computation once more, with the values that were saved."""

    def __init__(self, functions: Any, saved: dict[Value, Tensor]):
        super().__init__(functions)
        self.saved = saved
        self.count = 0

    def step(self, op: Op) -> None:
        if len(op.results) != 1 or op.results[0] not in self.saved:
            self.count += 1
            super().step(op)
            return
        super().step(op)  # its pullback may read its operands; what only led to its value is dead
        self.env[op.results[0]] = self.saved[op.results[0]]


def kept_values(fn: Function, policy: str) -> list[Value]:
    """The inner values that a region keeps: none (``full``); the marked ones, or, where nothing is marked, the small ones.

    Small is a result with at most a quarter of the elements of the region's largest value.
    """
    if policy == "full":
        return []
    ops = fn.body.ops[:-1]
    marked = [op.results[0] for op in ops if op.name == "checkpoint_here"]
    if marked:
        return marked
    values = [op.results[0] for op in ops if len(op.results) == 1 and op.name not in ("constant", "full", "iota", "size")]
    sizes = {v: v.type.size for v in values}
    largest = max((n for n in sizes.values() if isinstance(n, int)), default=0)
    used_within = {v for op in ops for v in op.operands}
    return [v for v in values if v in used_within and isinstance(sizes[v], int) and 4 * sizes[v] <= largest]


def checkpoint(fn: Any = None, *, policy: str = "full") -> Any:
    """``@ts.checkpoint``: the function's inner values are not kept for the backward pass but computed again.

    Args:
        policy: ``"full"``: only the arguments are kept.  ``"selective"``: what ``ts.checkpoint_here`` marks is kept too; where
            nothing is marked, the small values are.

    Raises:
        ArgumentError: there is no such policy, or ``fn`` is no function.
    """
    if policy not in POLICIES:
        raise ArgumentError(f"checkpoint has no policy {policy!r}{suggest(str(policy), POLICIES)}", expected=", ".join(POLICIES),
                            received=repr(policy))
    if fn is None:
        return functools.partial(checkpoint, policy=policy)
    if not callable(fn):
        raise ArgumentError(f"checkpoint decorates a function, not a {type(fn).__name__}", hints=["Write @ts.checkpoint(policy=…)"])
    return Checkpointed(fn, policy)


PASSED = frozenset({"barrier", "prefetch", "release"})


# -- the last pass -------------------------------------------------------------------------------------------------------------------
def drop_barriers(fn: Function) -> Function:
    """Barriers have done their work, and requests to move data were for people and passes to read: their results are their operands."""
    def rule(c: Copier, op: Op) -> list[Value] | None:
        return c.operands(op) if op.name in PASSED else None

    return everywhere(fn, lambda f: rewrite(f, rule) if any(op.name in PASSED for op in f.walk()) else f)


__all__ = ["POLICIES", "Checkpointed", "checkpoint", "drop_barriers", "kept_values"]
