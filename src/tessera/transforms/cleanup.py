"""Passes that make a graph smaller without looking at what it is for: dead code, common subexpressions, constants."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ir.core import Block, Copier, Function, Op, TensorType, Value, rewrite
from ..ops.table import OPS
from ..types.dims import Dim
from .rewriting import everywhere, has_effects, key_of, mergeable

FOLD_LIMIT = 1024  # elements of a folded constant


def eliminate_dead_code(fn: Function) -> Function:
    """Drop ops whose results nobody uses; effects stay."""
    return everywhere(fn, _eliminate)


def _eliminate(fn: Function) -> Function:
    live: set[Value] = set()
    keep: set[Op] = set()
    _mark(fn.body, live, keep)
    return rewrite(fn, lambda c, op: None if op in keep else [c[r] for r in op.results])


def _mark(block: Block, live: set[Value], keep: set[Op]) -> None:
    for op in reversed(block.ops):
        if op.name in ("return", "yield") or has_effects(op) or any(r in live for r in op.results):
            keep.add(op)
            live.update(op.operands)
            for b in op.blocks:
                _mark(b, live, keep)


def merge_common_subexpressions(fn: Function) -> Function:
    """Compute equal things once; two random sites are never equal."""
    return everywhere(fn, _merge)


def _merge(fn: Function) -> Function:
    seen: dict[Any, list[Value]] = {}

    def rule(c: Copier, op: Op) -> list[Value] | None:
        if not mergeable(op):
            return None
        key = (id(c.builder.block), op.name, tuple(map(id, c.operands(op))), tuple(r.type for r in op.results),
               key_of(op.attrs))
        got = seen.get(key)
        if got is None:
            got = seen[key] = c.copy(op).results
        return got

    return rewrite(fn, rule)


def fold_constants(fn: Function) -> Function:
    """Evaluate exact ops on constants: what is folded has the bits that the program would have computed."""
    return everywhere(fn, _fold)


def _fold(fn: Function) -> Function:
    known: dict[Value, np.ndarray[Any, Any]] = {}

    def rule(c: Copier, op: Op) -> list[Value] | None:
        if op.name == "constant" and isinstance(op.attrs["value"], np.ndarray | np.generic):
            made = c.copy(op)
            known[made.results[0]] = np.asarray(op.attrs["value"])
            return made.results
        operands = c.operands(op)
        if not operands or not all(v in known for v in operands) or not _foldable(op):
            return None
        value = np.asarray(OPS[op.name].reference(*[known[v] for v in operands], **op.attrs))
        t = op.results[0].type
        if value.dtype != t.dtype.np or value.shape != t.shape:
            return None
        made = c.builder.op("constant", (), (t,), {"value": np.ascontiguousarray(value).reshape(t.shape)}, (), op.loc)
        known[made.results[0]] = made.attrs["value"]
        return made.results

    return rewrite(fn, rule)


def _foldable(op: Op) -> bool:
    rule = OPS.get(op.name)
    if rule is None or rule.effects or len(op.results) != 1 or op.name in CHECKED:
        return False
    exact = rule.bound.ulp == 0 and (rule.pointwise or rule.family == "movement")
    t: TensorType = op.results[0].type
    if not exact or any(v.type.dtype.is_complex for v in op.operands):
        return False
    size = t.size
    return isinstance(size, int) and size <= FOLD_LIMIT and not _mentions_sizes(op.attrs)


CHECKED = ("floor_div", "mod", "gather", "take", "take_along_axis", "scatter", "cholesky")


def _mentions_sizes(attrs: Any) -> bool:
    values = attrs.values() if isinstance(attrs, dict) else attrs
    return any(isinstance(v, Dim) or (isinstance(v, tuple) and _mentions_sizes(v)) for v in values)
