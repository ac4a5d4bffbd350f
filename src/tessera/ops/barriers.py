"""Ops that are the identity on values and mean something to transformations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optree

from ..ir.core import Op, TensorType, Value
from ..tracing.recorder import bind, lift
from ..tracing.tensor import Tensor
from . import batch_rules as br
from .rules import EVERY, Array, expect_operands
from .table import Attrs, ElementBuilder, primitive


def _infer(name: str) -> Any:
    def infer(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
        expect_operands(name, types, 1)
        return (types[0],)

    return infer


def _same(x: Array) -> Array:
    return x.copy()


def _element(e: ElementBuilder, op: Op, index: Any, r: int) -> Value:
    return e.operand(0, index)


primitive("stop_gradient", family="barrier", infer=_infer("stop_gradient"), reference=_same, dtypes=EVERY, linear=(), expand=lambda x: x,
          batch=br.leading, doc="The value; its derivative is zero.")
primitive("checkpoint_here", family="barrier", infer=_infer("checkpoint_here"), reference=_same, dtypes=EVERY, linear=True,
          vjp=lambda x, gs: gs, expand=lambda x: x, batch=br.leading,
          doc="The value; a checkpointed region keeps it for its backward pass.")
primitive("barrier", family="barrier", infer=_infer("barrier"), reference=_same, dtypes=EVERY, linear=True, vjp=lambda x, gs: gs,
          element=_element, batch=br.leading,
          doc="The value, which passes take for another one than the operand: what is computed from it is not merged with what is "
              "computed from the operand.  The last Graph pass drops it.")
for _name, _doc in (("prefetch", "Asks for the operand to be brought into the memory level ``to``"),
                    ("release", "Says that the operand is needed in the memory level ``to`` no longer")):
    primitive(_name, family="barrier", infer=_infer(_name), reference=lambda x, to: x.copy(), dtypes=EVERY, linear=True,
              vjp=lambda x, gs: gs, element=_element, batch=br.leading, effects=frozenset({"memory"}), facts={"attrs": ("to",)},
              doc=f"{_doc}; the result, which nothing needs, is the operand.  The last Graph pass drops it.")


def stop_gradient(x: Any) -> Any:
    """``x`` (a tensor or a tree of them), held constant by derivatives.  Nothing is stored for the backward pass."""
    return _on_tensors("stop_gradient", x)


def checkpoint_here(x: Any) -> Any:
    """``x`` (a tensor or a tree of them), kept for the backward pass by the ``ts.checkpoint(policy="selective")`` around it."""
    return _on_tensors("checkpoint_here", x)


def _on_tensors(name: str, x: Any) -> Any:
    if isinstance(x, Tensor):
        return bind(name, x)
    return optree.tree_map(lambda t: bind(name, lift(t)) if not isinstance(t, str | bool) else t, x)


__all__ = ["checkpoint_here", "stop_gradient"]
