"""What an op's ``element`` rule does, found by running it once on symbols: which elements of its operands it reads,
whether it reduces, and what it costs.  Fusion decides from these summaries alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..ir.core import Block, Op, ScalarType, Value
from ..ops.table import OPS
from ..types.dims import Dim, DimLike, bounds, known_less, known_nonnegative, product
from ..types.dims import name as dim_name
from ..types.dtypes import DType, bool_, int64
from .indexing import Index, simplify

Lanes = Callable[[Op, Sequence[DimLike]], int]

# Cycles a lane, roughly; everything else counts 1.
COST = {"div": 5, "sqrt": 5, "reciprocal": 5, "mod": 5, "floor_div": 5, "rsqrt": 8, "pow": 40}
COST |= dict.fromkeys(
    ("exp", "exp2", "expm1", "log", "log2", "log1p", "log10", "sin", "cos", "tan", "asin", "acos", "atan", "atan2", "sinh",
     "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "erfc", "erfinv", "sigmoid", "cbrt", "hypot", "lgamma", "digamma",
     "logaddexp"), 20)
EXPENSIVE = 15


@dataclass(frozen=True)
class Access:
    """One operand read: ``index`` over ``$0 … $n`` (the result's axes) and the loops of the op's own reductions."""

    operand: int
    index: Index
    reduced: bool
    guarded: bool
    dynamic: bool


@dataclass
class Summary:
    """See the module's text.  ``ranges`` has the extents of the reductions' loops."""

    accesses: list[Access] = field(default_factory=list)
    ranges: dict[str, DimLike] = field(default_factory=dict)
    cost: int = 0
    reduces: bool = False

    @property
    def movement(self) -> bool:
        """The result's elements are elements of the one operand, unchanged."""
        return self.cost == 0 and not self.reduces and len(self.accesses) == 1 and not self.accesses[0].guarded \
            and not self.accesses[0].dynamic


def axis_name(k: int) -> str:
    return f"${k}"


class _Probe:
    """An ElementBuilder that only takes notes."""

    def __init__(self, op: Op):
        self.op = op
        self.out = Summary()
        self.owner = Block()
        self.reducing = self.guarding = 0
        result = op.results[0].type.shape if op.results else ()
        self.ranges: dict[str, DimLike] = {axis_name(k): e for k, e in enumerate(result)}
        self.dynamics: set[str] = set()

    def scalar(self, dtype: DType) -> Value:
        return Value(ScalarType(dtype), self.owner)

    def operand(self, i: int, index: Sequence[DimLike]) -> Value:
        index = tuple(simplify(e, self.ranges) for e in index)
        dynamic = any(isinstance(e, Dim) and e.names & self.dynamics for e in index)
        got = Access(i, index, bool(self.reducing), bool(self.guarding), dynamic)
        if got not in self.out.accesses:
            self.out.accesses.append(got)
        return self.scalar(self.op.operands[i].type.dtype)

    def emit(self, name: str, *values: Value, dtype: DType, **attrs: Any) -> Value:
        self.out.cost += COST.get(name, 1)
        return self.scalar(dtype)

    def const(self, value: Any, dtype: DType) -> Value:
        return self.scalar(dtype)

    def index(self, expr: DimLike) -> Value:
        self.out.cost += 1
        return self.scalar(int64)

    def dynamic(self, value: Value, extent: DimLike) -> DimLike:
        made = f"$g{len(self.dynamics)}"
        self.dynamics.add(made)
        self.ranges[made] = self.out.ranges[made] = extent
        return dim_name(made)

    def inside(self, expr: DimLike, low: DimLike, high: DimLike) -> Value | None:
        expr = simplify(expr, self.ranges)
        least, _ = bounds(expr - low, self.ranges)
        if least is not None and known_nonnegative(least) and known_less(expr, high, self.ranges):
            return None
        self.out.cost += 2
        return self.scalar(bool_)

    def guarded(self, predicate: Value, make: Callable[[], Value], other: Any) -> Value:
        self.guarding += 1
        value = make()
        self.guarding -= 1
        return self.scalar(value.type.dtype)

    def reduce(self, combine: str, extents: Sequence[DimLike], make: Callable[[Sequence[DimLike]], Any]) -> Any:
        self.out.reduces = True
        loops = []
        for k, e in enumerate(extents):
            n = f"$r{k}:{e}"
            self.ranges[n] = self.out.ranges[n] = e
            loops.append(dim_name(n))
        self.reducing += 1
        made = make(loops)
        self.reducing -= 1
        return self.scalar(int64 if combine in ("argmax", "argmin") else made.type.dtype)

    def check(self, ok: Value, value: Value, message: str) -> None:
        self.out.cost += 1


def summarize(op: Op) -> Summary:
    """The summary of an op that has an element rule (or is pointwise)."""
    rule = OPS[op.name]
    if rule.element is None:
        shape = op.results[0].type.shape
        index = tuple(dim_name(axis_name(k)) if e != 1 else 0 for k, e in enumerate(shape))
        return Summary([Access(i, index, False, False, False) for i in range(len(op.operands))], {},
                       COST.get(op.name, 1))
    probe = _Probe(op)
    for r, result in enumerate(op.results):
        index = tuple(dim_name(axis_name(k)) if e != 1 else 0 for k, e in enumerate(result.type.shape))
        rule.element(probe, op, index, r)
    return probe.out


class Summaries:
    """Summaries by op, shared between ops of one form."""

    def __init__(self) -> None:
        self.by_op: dict[Op, Summary] = {}
        self.by_form: dict[Any, Summary] = {}

    def __getitem__(self, op: Op) -> Summary:
        got = self.by_op.get(op)
        if got is None:
            form = _form(op)
            got = self.by_form.get(form) if form is not None else None
            if got is None:
                got = summarize(op)
                if form is not None:
                    self.by_form[form] = got
            self.by_op[op] = got
        return got

    def lanes(self, machine: Any) -> Lanes:
        """The rule for the number of accumulators: several where the reduction runs along contiguous memory."""

        def of(op: Op, extents: Sequence[DimLike]) -> int:
            count = product(extents)
            last = [next((e for e in reversed(a.index) if e != 0), 0) for a in self[op].accesses if a.reduced]
            if not all(isinstance(e, Dim) and any(n.startswith("$r") for n in e.names) for e in last):
                return 1
            lanes: int = machine.reduction_lanes(op.operands[0].type.dtype)
            while isinstance(count, int) and lanes > 1 and lanes > count:
                lanes //= 2
            return lanes

        return of


def _form(op: Op) -> Any:
    attrs = []
    for k, v in op.attrs.items():
        if isinstance(v, np.ndarray):
            return None
        attrs.append((k, v))
    try:
        form = (op.name, tuple(v.type for v in op.operands), tuple(r.type for r in op.results), tuple(attrs))
        hash(form)
    except TypeError:
        return None
    return form
