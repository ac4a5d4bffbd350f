"""``ts.explain(fn, *args)``: what each op of a function works in: formats, device, mesh axis, and why a conversion is there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import optree

from .device import current_device, device_of
from .errors import ArgumentError
from .ir.core import Block, Op, TensorType
from .tracing.function import TracedFunction
from .tracing.program import Program
from .tracing.tensor import Tensor
from .types.promotion import accumulator

_SUMS = frozenset({"dot_general", "conv", "reduce_sum", "reduce_prod", "cumsum", "cumprod"})


@dataclass(frozen=True)
class OpReport:
    """One op.

    Attributes:
        name: the op's name.
        type: of its (first) result.
        accumulate: the dtype in which it sums; None: it does not.
        device: where it runs.
        mesh_axis: the axis of the mesh over which it is spread; None outside a mesh.
        reason: for a conversion, why it is there.
        where: the user's line.
    """

    name: str
    type: TensorType
    accumulate: str | None
    device: str
    mesh_axis: str | None
    reason: str | None
    where: str | None

    @property
    def dtype(self) -> str:
        """The element type of the result."""
        return str(self.type.dtype)

    def __str__(self) -> str:
        form = self.dtype if self.accumulate is None else f"{self.dtype} @ accum({self.accumulate})"
        why = f"  # {self.reason}" if self.reason else ""
        return f"{self.name:<16} {self.type!s:<24} {form:<22} {self.device:<8} mesh axis {self.mesh_axis or '-'}{why}"


@dataclass(frozen=True)
class Explanation:
    """The ops of a function in order, also those of its loops and branches; prints one a line."""

    name: str
    ops: tuple[OpReport, ...]

    def __iter__(self) -> Iterator[OpReport]:
        return iter(self.ops)

    def __len__(self) -> int:
        return len(self.ops)

    def __str__(self) -> str:
        return "\n".join([f"{self.name}: {len(self.ops)} ops", *(f"  {op}" for op in self.ops)])


def explain(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Explanation:
    """The formats, device and mesh axis of each op of ``fn``, as it is traced: of these arguments, else of its declared types or its
    latest call.

    Raises:
        ArgumentError: ``fn`` is not a function.
        TracingError: there are no arguments, and its types are not declared.
    """
    if not callable(fn):
        raise ArgumentError("explain() takes a function", received=repr(fn)[:60])
    traced = fn if isinstance(fn, TracedFunction) else TracedFunction(fn)
    program = traced.program(*args, **kwargs) if args or kwargs else traced._latest()
    return Explanation(traced.__name__, tuple(_reports(program, _device(args, kwargs, program))))


def _device(args: Any, kwargs: Any, program: Program) -> str:
    given: Any = (args, kwargs)
    leaves: list[Any] = optree.tree_leaves(given)
    tensors = [t for t in (*leaves, *program.captured) if isinstance(t, Tensor)]
    return next((str(device_of(t)) for t in tensors if device_of(t) != "cpu"), "cpu" if tensors else str(current_device()))


def _reports(program: Program, device: str) -> Iterator[OpReport]:
    def walk(block: Block) -> Iterator[OpReport]:
        for op in block.ops:
            if op.results and isinstance(op.results[0].type, TensorType):
                reason = program.reasons.get(op.results[0], "part of an op's definition") if op.name == "convert" else None
                yield OpReport(op.name, op.results[0].type, _accumulate(op), device, None, reason, str(op.loc) if op.loc else None)
            for inner in op.blocks:
                yield from walk(inner)

    yield from walk(program.graph.body)


def _accumulate(op: Op) -> str | None:
    if op.name not in _SUMS:
        return None
    named = op.attrs.get("accumulate")
    return str(named if named is not None else accumulator(op.operands[0].type.dtype))


__all__ = ["Explanation", "OpReport", "explain"]
