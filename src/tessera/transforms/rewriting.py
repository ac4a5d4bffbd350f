"""What Graph passes are made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..ir.core import Function, Op, Value, value_key
from ..ops.table import OPS


def everywhere(fn: Function, one: Callable[[Function], Function]) -> Function:
    """``one`` applied to ``fn`` and to every Graph function it calls."""
    functions = {n: everywhere(f, one) if f.level == "graph" else f for n, f in fn.functions.items()}
    new = one(fn)
    new.functions = {**functions, **{n: f for n, f in new.functions.items() if n not in functions}}
    return new


def has_effects(op: Op) -> bool:
    """True for ops that must stay although nobody uses their results."""
    rule = OPS.get(op.name)
    if rule is not None and rule.effects:
        return not rule.effects <= {"random"}
    return any(has_effects(o) for b in op.blocks for o in b.ops)


def mergeable(op: Op) -> bool:
    """True for ops of which two with equal operands and attributes compute the same."""
    rule = OPS.get(op.name)
    return rule is not None and not rule.effects and not op.blocks and "site" not in op.attrs


def producer(v: Value, name: str) -> Op | None:
    """The op behind ``v`` where it is called ``name``."""
    op = v.op
    return op if op is not None and op.name == name else None


def key_of(attrs: Mapping[str, Any]) -> Any:
    """Attributes as something hashable: equal for equal attributes."""
    return tuple((k, value_key(v)) for k, v in sorted(attrs.items()))
