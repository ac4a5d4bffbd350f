"""The op table: what an op *is*, in one stanza.

Everything the system knows about a primitive stands in one call of :func:`primitive` (or of a family helper that fills
most of it in): its shape and dtype rule, its numpy meaning with an error bound, and how one element of its result is
computed from elements of its operands.  The Graph grammar, the eager executor, the scheduler, the interpreters and the
test sweep read this table and no other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..ir.core import Function, Op, TensorType, Value
from ..ir.graph import OP_RULES
from ..ir.interpret_graph import REFERENCES
from ..types.dims import DimLike
from ..types.dtypes import DType
from ..types.effects import PURE

Attrs = Mapping[str, Any]
Infer = Callable[[Sequence[TensorType], Attrs], Sequence[TensorType]]
Reference = Callable[..., Any]  # reference(*arrays, **attrs) -> array or tuple of arrays


class ElementBuilder(Protocol):
    """What an ``element`` rule may use; Schedule IR is built behind it."""

    def operand(self, i: int, index: Sequence[DimLike]) -> Value:
        """The scalar of operand ``i`` at ``index``: a load, or the producer's own element rule where it is fused."""

    def emit(self, name: str, *values: Value, dtype: DType, **attrs: Any) -> Value:
        """A pointwise op of the table on scalars."""

    def const(self, value: Any, dtype: DType) -> Value: ...

    def index(self, expr: DimLike) -> Value:
        """An index expression as an int64 scalar."""

    def dynamic(self, value: Value, extent: DimLike) -> DimLike:
        """An int64 scalar as an index, clamped into [0, extent)."""

    def inside(self, expr: DimLike, low: DimLike, high: DimLike) -> Value | None:
        """A bool scalar for ``low <= expr < high``; None where that is certain."""

    def guarded(self, predicate: Value, make: Callable[[], Value], other: Any) -> Value:
        """``make()`` where the predicate holds, else ``other``; loads inside happen only there."""

    def reduce(self, combine: str, extents: Sequence[DimLike], make: Callable[[Sequence[DimLike]], Value]) -> Value:
        """A reduction over fresh loops; ``make`` receives their variables.

        ``argmax`` and ``argmin`` give the row-major position (int64) of the first extremum; a NaN counts as one.
        """

    def check(self, ok: Value, value: Value, message: str) -> None:
        """A run-time check; ``message`` may name ``{value}``."""


Element = Callable[[ElementBuilder, Op, Sequence[DimLike], int], Value]


@dataclass(frozen=True)
class Bound:
    """How far a compiled result may lie from the numpy meaning evaluated in higher precision.

    The allowed error of one element is ``ulp`` units in the last place of the result's dtype, plus ``terms(types, attrs)``
    times the accumulator's epsilon times the sum of the magnitudes that were added (for reductions and products).
    """

    ulp: float = 0.0
    terms: Callable[[Sequence[TensorType], Attrs], float] | None = None


EXACT = Bound()


@dataclass(slots=True)
class Applied:
    """One application of an op, as derivative and batching rules see it.

    Attributes:
        operands, results: tensors of the trace that is being recorded; ``out`` is the only result.
        residuals: what a ``forward`` rule returned beside the results.
        wanted: reverse mode: for each operand, whether it needs a cotangent; forward mode: whether it has a tangent.
    """

    name: str
    attrs: Attrs
    operands: list[Any]
    results: list[Any] = field(default_factory=list)
    residuals: Any = None
    wanted: tuple[bool, ...] = ()

    @property
    def out(self) -> Any:
        """The only result."""
        (result,) = self.results
        return result


Partial = Callable[[Applied], Any]  # the derivative of the result by one operand, elementwise: a tensor or a number
JvpRule = Callable[[Applied, list[Any]], list[Any]]  # tangents of operands -> tangents of results; None is a zero
VjpRule = Callable[[Applied, list[Any]], list[Any]]  # cotangents of results -> cotangents of operands; None is a zero
ForwardRule = Callable[[Applied], tuple[list[Any], Any]]  # -> results and residuals
# (application, which operands are mapped, batch size) -> results.  Mapped operands carry the batch as axis 0, and so do all
# results.  None: the op has no better way than its definition (``expand``).
BatchRule = Callable[[Applied, tuple[bool, ...], DimLike], "list[Any] | None"]


@dataclass(frozen=True)
class OpDef:
    """One op.  Exactly one of ``element``, ``template``, ``expand``, ``external`` says how it is computed.

    Attributes:
        name: as printed in IR.
        family: the file it stands in (``pointwise``, ``reduction``, ``movement`` …).
        infer: result types from operand types and attributes; raises the errors of ``tessera.errors``.
        reference: its meaning in numpy.
        bound: how closely compiled code follows the meaning.
        pointwise: element ``index`` of the result depends only on elements ``index`` of the operands, which all have
            the result's shape; the op then also exists on scalars and tiles under the same name.
        element: one element of result ``r`` at ``index``.
        template: the name of a tile program in ``kernels/`` (with ``element`` also given: the scheduler chooses).
        expand: builds the same value from other ops; named composites have it, and it is applied last.
        external: a host routine.
        partials: pointwise ops: for each operand the derivative of the result by it; None: it is zero everywhere.
        linear: the operands (True: all) in which the op is jointly linear; the others carry no derivative.  Its ``jvp`` is the
            op itself on tangents, ``vjp`` is the transpose.
        jvp, vjp: derivative rules, written in the ops that users call.
        forward: reverse mode: computes the results together with what ``vjp`` wants to keep (``residuals``).
        batch: the op over a batch of examples (pointwise ops and composites do without).
        effects: ``random``, ``io`` …
        dtypes: the operand dtypes it accepts (after promotion).
        facts: what particular readers ask for: ``domain`` (where the sweep samples operands), ``attrs`` (names of the
            attributes), ``requires`` (types and attributes to what must hold of sizes, as (lhs, op, rhs): checked by each call
            where it is not certain), ``expands`` and ``written`` (an op that some attributes or operand types
            make more than basic: the test of attributes and types, and the op written in others), ``mixed`` (operand dtypes that
            differ), ``combine`` (of reductions and scans), ``prefer`` ("template": a launch of its own although it has an element rule),
            ``heads`` (its template wants the last axis of its first three operands as numbers),
            ``no_derivative`` (why an op that could have a derivative has none), ``derivative`` ("straight-through": it rounds,
            and its derivative is declared that of the identity).
        doc: what it computes, in a line.
    """

    name: str
    family: str
    infer: Infer
    reference: Reference
    dtypes: tuple[DType, ...]
    bound: Bound = EXACT
    pointwise: bool = False
    element: Element | None = None
    template: str | None = None
    expand: Callable[..., Any] | None = None
    external: str | None = None
    partials: tuple[Partial | None, ...] | None = None
    linear: tuple[int, ...] | bool | None = None
    jvp: JvpRule | None = None
    vjp: VjpRule | None = None
    forward: ForwardRule | None = None
    batch: BatchRule | None = None
    effects: frozenset[str] = PURE
    doc: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)


OPS: dict[str, OpDef] = {}


def primitive(name: str, **facets: Any) -> OpDef:
    """Enter an op into the table.

    Raises:
        ValueError: the name is taken.
    """
    if name in OPS:
        raise ValueError(f"the op {name!r} is declared twice")
    op = OpDef(name=name, **facets)
    OPS[name] = op
    OP_RULES[name] = lambda types, attrs: op.infer(types, attrs)
    REFERENCES[name] = op.reference
    return op


__all__ = ["EXACT", "OPS", "Applied", "Attrs", "BatchRule", "Bound", "Element", "ElementBuilder", "ForwardRule", "Function", "Infer",
           "JvpRule", "OpDef", "Partial", "Reference", "VjpRule", "primitive"]
