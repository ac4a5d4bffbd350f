"""What a traced function promises, as an object that can be asked and printed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..types.effects import format_effects
from ..types.shapes import Constraint
from .annotations import TensorSpec

if TYPE_CHECKING:
    from .function import TracedFunction


class Contract:
    """What a function promises: argument and result types, constraints on sizes, effects."""

    def __init__(self, owner: TracedFunction):
        self.owner = owner

    @property
    def params(self) -> Mapping[str, TensorSpec]:
        """Tensor parameters and their declared types."""
        return self.owner.declared.params

    @property
    def where(self) -> tuple[Constraint, ...]:
        """Constraints on sizes."""
        return self.owner.declared.where

    @property
    def effects(self) -> frozenset[str]:
        """Declared effects, else the inferred ones."""
        return self.owner.effects

    @property
    def deterministic(self) -> bool:
        """True: equal inputs give equal bits, whatever the number of threads (random effects follow the seed)."""
        return True

    def __str__(self) -> str:
        o = self.owner
        params = ", ".join(f"{n}: {self.params[n]}" if n in self.params else n for n in o.signature.parameters)
        lines = [f"{o.__name__}({params}) -> {o.result_text()}"]
        if self.where:
            lines.append("  where " + ", ".join(str(c) for c in self.where))
        lines.append(f"  effects: {format_effects(self.effects)}")
        lines.append("  deterministic: bit-identical for equal inputs")
        return "\n".join(lines)

    __repr__ = __str__


__all__ = ["Contract"]
