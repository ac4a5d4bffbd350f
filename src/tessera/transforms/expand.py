"""Composites written out in the ops that define them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..ir.core import Copier, Function, Op, TensorType, Value, rewrite
from ..ops.table import OPS, OpDef
from ..tracing.recorder import Trace, tracing, without_policies
from ..types.dtypes import DType, f32
from .rewriting import everywhere, key_of

FEW_UPDATES = 16  # scattered rows for which the kernel's own search is cheaper than a copy in f32
_DEFINITIONS: dict[Any, Function] = {}


def definition(name: str, types: tuple[TensorType, ...], attrs: dict[str, Any]) -> Function:
    """What a composite means on operands of ``types``: a Graph function of ops that are no composites themselves."""
    key = (name, types, key_of(attrs))
    fn = _DEFINITIONS.get(key)
    if fn is None:
        trace = Trace(name)
        with tracing(trace), without_policies():  # kept for every later use
            given = [trace.parameter(t) for t in types]
            made = _written(OPS[name], attrs, types)(*given, **attrs)  # type: ignore[misc]
            fn = trace.finish(list(made) if isinstance(made, tuple | list) else [made])
        if len(_DEFINITIONS) > 4096:
            _DEFINITIONS.clear()
        fn = _DEFINITIONS[key] = _expand(fn)
    return fn


def _written(rule: OpDef, attrs: Mapping[str, Any], types: Sequence[TensorType]) -> Callable[..., Any] | None:
    """How an op is written in others: a composite's definition, or what attributes and operands ask for (fact ``expands``)."""
    asked = rule.facts.get("expands")
    if asked is not None:
        return rule.facts["written"] if asked(attrs, types) else None
    return rule.expand


def scheduled_whole(op: Op) -> bool:
    """True for composites that a template computes: attention only where the extents of a head are numbers."""
    facts = OPS[op.name].facts
    if facts.get("heads") and not all(isinstance(x.type.shape[-1], int) for x in op.operands[:3]):
        return False
    return facts.get("template") is not None


def expand_composites(fn: Function, keep: Callable[[Op], bool] | None = None) -> Function:
    """Replace every composite by its definition, except those that a template computes as a whole, and those to ``keep``."""
    return everywhere(fn, _expand if keep is None else lambda f: _expand(f, keep))


def _expand(fn: Function, keep: Callable[[Op], bool] | None = None) -> Function:
    def rule(c: Copier, op: Op) -> list[Value] | None:
        if keep is not None and keep(op):
            return None
        if op.name == "scatter":
            return _wide_scatter(c, op)
        rule = OPS.get(op.name)
        types = tuple([v.type for v in op.operands])
        if rule is None or _written(rule, op.attrs, types) is None or scheduled_whole(op):
            return None
        return inline(c, op, definition(op.name, types, op.attrs))

    return rewrite(fn, rule)


def _wide_scatter(c: Copier, op: Op) -> list[Value] | None:
    """Many sums (or products) into rows of narrow floats are taken in f32, and each row rounds once at the end.

    That is what the kernel computes too, by looking for the other updates of each row, which for few of them is less work.
    """
    t, m = op.results[0].type, op.operands[1].type.shape[0]
    if not (t.dtype.is_float and t.dtype.bits < 32 and op.attrs["mode"] in ("add", "mul")) or (isinstance(m, int) and m <= FEW_UPDATES):
        return None

    def convert(v: Value, dtype: DType) -> Value:
        return c.builder.value("convert", (v,), TensorType(dtype, v.type.shape), {"dtype": dtype}, (), op.loc)

    x, index, updates = c.operands(op)
    wide = c.builder.value("scatter", (convert(x, f32), index, convert(updates, f32)), TensorType(f32, t.shape), op.attrs, (), op.loc)
    return [convert(wide, t.dtype)]


def inline(c: Copier, op: Op, body: Function) -> list[Value]:
    """Copy ``body`` to where ``op`` stands; the new ops point at ``op``'s place in the source."""
    env = dict(zip(body.args, c.operands(op), strict=True))
    for o in body.body.ops[:-1]:
        new = c.builder.op(o.name, [env[v] for v in o.operands], [r.type for r in o.results], o.attrs, o.blocks, op.loc)
        env.update(zip(o.results, new.results, strict=True))
    return [env[v] for v in body.returns]
