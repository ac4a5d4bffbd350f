"""Which launches of a schedule have a tile program of their own on SIMT machines; the others take the general one of ``kernels/``."""

from __future__ import annotations

from collections.abc import Callable

from ...ir.core import Function, Op
from ...machine.simt import SimtMachine
from . import matmul
from .attention import attention_program
from .attention_backward import attention_backward_program
from .scatter import scatter_program

Rule = Callable[[Op, SimtMachine, str], Function | None]
"""(template op, machine, the program's name) -> the program, or None where the general one has to do."""

RULES: dict[str, Rule] = {
    "attention": attention_program, "attention_backward": attention_backward_program, "matmul": matmul.product_program,
    "scatter": scatter_program}
"""Template name -> rule."""


def simt_program(op: Op, machine: SimtMachine, name: str) -> Function | None:
    """The program for a ``template`` op, or None where the general one has to do."""
    rule = RULES.get(op.attrs["template"])
    return None if rule is None else rule(op, machine, name)


__all__ = ["RULES", "Rule", "simt_program"]
