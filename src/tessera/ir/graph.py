"""Graph IR: what is computed.

Pure SSA over tensors.  Values have :class:`~tessera.ir.core.TensorType`; sizes may be symbolic.  The ops are the
entries of the op table (``tessera.ops``), each with its own shape and dtype rule, and these structural ops:

=================  ===============================================================================================
``return(v…)``     ends the function
``yield(v…)``      ends a nested block
``call(v…)``       ``{callee = "name"}``: another Graph function in ``functions`` (outlined layers)
``cond(p, v…)``    two blocks over ``v…``; both yield the same types
``while(v…)``      two blocks over the carry: the first yields one ``bool[]``, the second the next carry
``scan(c…, x…)``   ``{carry = n, length = <L>, reverse = false}``: one block over carry and slices of ``x`` (axis 0);
                   yields carry and slices of the stacked results
``kernel_call``    ``{callee = "name", writes = (…)}``: a Tile function in ``functions``; results replace what it writes
=================  ===============================================================================================

Function attributes: ``effects`` (tuple of names), ``sizes`` (names of symbolic sizes, in order of first appearance),
``captured`` (how many trailing parameters are captured tensors), ``constraints`` (texts).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from .core import Block, Function, Op, TensorType, Value

InferRule = Callable[[Sequence[TensorType], dict[str, Any]], Sequence[TensorType]]

# Filled by the op table when the package is assembled: name -> shape and dtype rule.
OP_RULES: dict[str, InferRule] = {}

STRUCTURAL = frozenset({"return", "yield", "call", "cond", "while", "scan", "kernel_call"})


class GrammarError(ValueError):
    """A function is not a well-formed program of its level."""


def require(condition: bool, op: Op, message: str) -> None:
    if not condition:
        raise GrammarError(f"{op.name}: {message}" + (f" ({op.loc})" if op.loc else ""))


__all__ = ["OP_RULES", "STRUCTURAL", "Block", "Function", "GrammarError", "InferRule", "Op", "Value", "require"]
