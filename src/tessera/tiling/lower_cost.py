"""What accesses and arithmetic cost on a vector CPU: which loop becomes the lanes, how much work a block is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from ..ir.core import Op
from ..types.dims import Dim, DimLike, floordiv
from ..types.dtypes import DType, bool_, f32, int64
from .lower_analysis import Kernel, Loop, coefficient, dynamic_operands
from .lower_emit import scalar_of

# Vector instructions after expansion, about.
_HEAVY = {"exp": 12, "exp2": 10, "expm1": 20, "log": 16, "log2": 16, "log1p": 20, "log10": 18, "sin": 24, "cos": 24,
          "tan": 36, "asin": 24, "acos": 24, "atan": 20, "atan2": 30, "sinh": 24, "cosh": 24, "tanh": 18, "asinh": 30,
          "acosh": 30, "atanh": 24, "erf": 24, "erfc": 30, "erfinv": 30, "sigmoid": 16, "rsqrt": 6, "cbrt": 20,
          "pow": 40, "hypot": 8, "lgamma": 60, "digamma": 60, "logaddexp": 34, "div": 6, "sqrt": 6, "floor_div": 12,
          "mod": 14}
_FREE = frozenset({"constant", "index", "yield", "guard", "reduce", "for"})

UNKNOWN_EXTENT = 256  # what a symbolic size is taken to be when work is estimated


def op_weight(op: Op) -> int:
    return 0 if op.name in _FREE else _HEAVY.get(op.name, 1)


def expensive(op: Op) -> bool:
    """Worth keeping rather than computing twice."""
    return op_weight(op) >= 10


def extent_guess(extent: DimLike) -> int:
    return extent if isinstance(extent, int) else UNKNOWN_EXTENT


def at_least_one(budget: int, work: DimLike) -> DimLike:
    """About ``budget / work``, and never 0; a symbolic ``work`` may turn out to be 0."""
    if isinstance(work, int):
        return max(1, budget // max(1, work))
    return 1 + floordiv(budget, work + 1)


def widest(op: Op) -> DType:
    """The widest element type that the lanes of ``op`` hold (index arithmetic aside)."""
    best: DType | None = None
    for o in op.walk():
        for v in (*o.results, *(o.operands[1:2] if o.name == "store" else ())):
            d = scalar_of(v.type)
            if d is bool_ or (d is int64 and o.name in ("index", "constant", "convert", "add", "mul", "floor_div", "mod")):
                continue
            if best is None or d.itemsize > best.itemsize:
                best = d
    return best or f32


def access_cost(k: Kernel, op: Op, lane: Loop) -> float:
    """Of one element of one access, when ``lane`` runs along the lanes."""
    e = k.expr[op]
    c = coefficient(e, lane.name)
    moved = any(v.op is not None and lane.name in k.depends(v.op) for v in dynamic_operands(op).values())
    if moved or c is None or (isinstance(c, Dim) and lane.name in c.names):
        cost = 12.0
    elif c == 1:
        cost = 1.0
    elif c == 0:
        cost = 0.25
    elif isinstance(c, int) and 2 <= c <= 4:
        cost = 3.0
    else:
        cost = 10.0
    return cost * (1.5 if op.name == "store" and cost > 1 else 1.0)


def lane_cost(k: Kernel, ops: Iterable[Op], lane: Loop, machine: Any) -> float:
    """Of all accesses among ``ops``, those in inner loops counting for more, when ``lane`` runs along the lanes."""
    total = 0.0
    for op in ops:
        if op.name in ("load", "store"):
            total += access_cost(k, op, lane)
        elif op.name in ("reduce", "for"):
            total += 3 * lane_cost(k, op.blocks[0].ops, lane, machine)
        elif op.name == "guard":
            total += lane_cost(k, op.blocks[0].ops, lane, machine)
    full = machine.vector_lanes(f32)
    short = extent_guess(lane.extent)
    return total * (full / max(short, 1) if short < full else 1.0)


def best_lane(k: Kernel, ops: Sequence[Op], loops: Sequence[Loop], machine: Any) -> tuple[Loop, float]:
    """The cheapest loop to put on lanes; the innermost of equals."""
    costs = [(lane_cost(k, _outermost(ops), loop, machine), -i, loop) for i, loop in enumerate(loops)]
    cost, _, loop = min(costs, key=lambda c: (c[0], c[1]))
    return loop, cost


def _outermost(ops: Sequence[Op]) -> list[Op]:
    """``ops`` without those nested in others of them."""
    nested = {inner for op in ops for b in op.blocks for inner in b.walk()}
    return [op for op in ops if op not in nested]
