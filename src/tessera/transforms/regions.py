"""Regions: calls of a Graph function that carry more than their body: a derivative rule of the user's, or a wish to be recomputed.

A region is recorded as a ``call`` whose attribute ``region`` numbers a :class:`Region` of this process.  Transformations ask
it; what is left of regions when a program is compiled is written out in place (:func:`inline_regions`).
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from ..ir.core import Copier, Function, Op, TensorType, Value, rewrite
from ..ir.graph import walk_functions
from ..tracing.tensor import Tensor
from .replay import ambient, record_body
from .rewriting import everywhere

_numbers = itertools.count()
_REGIONS: weakref.WeakValueDictionary[int, Region] = weakref.WeakValueDictionary()


class Region:
    """What a call of a function means to transformations.

    Attributes:
        has_forward: it has a say in forward mode; else its body is differentiated.
    """

    has_forward = False

    def __init__(self) -> None:
        self.number = next(_numbers)
        _REGIONS[self.number] = self

    def reverse(self, r: Any, op: Op, fn: Function, wanted: Sequence[bool]) -> Any:
        """Replay the call in the reverse engine ``r``; returns its pullback."""
        return r.inlined(op, fn, wanted)

    def forward(self, f: Any, op: Op, fn: Function, ts: Sequence[Tensor | None]) -> None:
        """Replay the call in the forward engine ``f``."""
        f.inlined(op, fn, ts)

    def batched(self, flags: Sequence[bool], size: Any, results: Sequence[bool]) -> Region | None:
        """The region of the call over a batch (``flags``: which operands carry it, ``results``: which results do)."""
        return None


def region_of(op: Op) -> Region | None:
    """The region of a call; None for a plain one."""
    number = op.attrs.get("region")
    return None if number is None else _REGIONS.get(number)


def record_region(name: str, region: Region, call: Callable[[list[Tensor]], Any], inputs: Sequence[Tensor]) -> Any:
    """Record ``call(inputs)`` as a region into the ambient trace; returns what it returned."""
    body = record_body(name, call, inputs)
    outs = add_call(name, region, body.graph, [*inputs, *body.given])
    return body.result(outs)


def add_call(name: str, region: Region, fn: Function, operands: Sequence[Tensor]) -> list[Tensor]:
    """Append the call of a region."""
    trace = ambient()
    trace._keep.append(region)
    functions = trace.function.functions
    label = name = "".join(c if c.isalnum() or c == "_" else "_" for c in name) or "region"
    k = 0
    while label in functions and functions[label] is not fn:
        k += 1
        label = f"{name}{k}"
    functions[label] = fn
    types: list[TensorType] = fn.result_types
    return trace.structured("call", operands, types, {"callee": label, "region": region.number}, ())


# -- what the compiler sees --------------------------------------------------------------------------------------------------------
def inline_regions(fn: Function) -> Function:
    """``fn`` with every region written out in place."""
    if not any("region" in op.attrs for f in walk_functions(fn) if f.level == "graph" for op in f.walk()):
        return fn
    out = everywhere(fn, _inline)
    called = {op.attrs.get("callee") for f in walk_functions(out) if f.level == "graph" for op in f.walk()}
    out.functions = {n: f for n, f in out.functions.items() if n in called}
    return out


def _inline(fn: Function) -> Function:
    def rule(c: Copier, op: Op) -> list[Value] | None:
        if "region" not in op.attrs:
            return None
        body = fn.functions[op.attrs["callee"]]
        inner = Copier(c.builder, rule_of(body, fn))
        inner.map.update(zip(body.args, c.operands(op), strict=True))
        inner.run(body.body.ops[:-1])
        more.update(body.functions)
        return [inner[v] for v in body.returns]

    more: dict[str, Function] = {}
    new = rewrite(fn, rule)
    new.functions = {**more, **new.functions}
    return new


def rule_of(body: Function, outer: Function) -> Any:
    """The rule for regions inside a region's body."""

    def rule(c: Copier, op: Op) -> list[Value] | None:
        if "region" not in op.attrs:
            return None
        inner_body = (body.functions or outer.functions)[op.attrs["callee"]]
        inner = Copier(c.builder, rule_of(inner_body, body))
        inner.map.update(zip(inner_body.args, c.operands(op), strict=True))
        inner.run(inner_body.body.ops[:-1])
        return [inner[v] for v in inner_body.returns]

    return rule


__all__ = ["Region", "add_call", "inline_regions", "record_region", "region_of"]
