"""The Graph passes, in order, each with the reason for its place."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from ..ir.core import Function, Op
from .canonicalize import canonicalize
from .cleanup import eliminate_dead_code, fold_constants, merge_common_subexpressions
from .expand import expand_composites
from .loops import hoist_products, sink_sums
from .outlining import outline_layers
from .products import contract_as_it_lies, turn_products
from .raising import raise_composites
from .rematerialise import drop_barriers

GraphTransform = Callable[[Function], Function]


class Pass(NamedTuple):
    """One line of the pass list.  ``decide``: changes the decisions on a Schedule kernel (passes of users alone)."""

    name: str
    run: GraphTransform
    reason: str
    decide: Callable[[Op], None] | None = None


GRAPH_PASSES: tuple[Pass, ...] = (
    Pass("raise_composites", raise_composites, "before any transformation changes what people wrote"),
    Pass("canonicalize", canonicalize, "early, so that all later passes meet one form of each expression"),
    Pass("fold_constants", fold_constants, "after canonicalize, which brings constants together"),
    Pass("merge", merge_common_subexpressions, "on canonical forms more is equal"),
    Pass("turn_products", turn_products, "transposes have been brought together; the products turned round leave dead ones behind"),
    Pass("contract_as_it_lies", contract_as_it_lies, "products have their final way round; leaves dead transposes behind"),
    Pass("dead_code", eliminate_dead_code, "drops what the passes above made unused"),
    Pass("sink_sums", sink_sums, "before the loop is cut into groups; what leaves it is a product like any other"),
    Pass("hoist_products", hoist_products, "loops are now small; what leaves them is a product like any other to the passes below"),
    Pass("outline_layers", outline_layers, "while layers are short and equal; all that follows runs once a distinct layer"),
    Pass("expand_composites", expand_composites, "last but for tidying: everything above knows composites by name"),
    Pass("canonicalize_expanded", canonicalize, "definitions are general; here they meet their operands"),
    Pass("fold_expanded", fold_constants, "as above, for the definitions"),
    Pass("merge_expanded", merge_common_subexpressions, "definitions of two composites often share their beginning"),
    Pass("dead_code_expanded", eliminate_dead_code, "the scheduler must not compute what nobody reads"),
    Pass("drop_barriers", drop_barriers, "last: nothing is merged any more, so that recomputation stays recomputation"),
)


def optimize(fn: Function, machine: Any = None, keep: Callable[[Op], bool] | None = None) -> Function:
    """Run every Graph pass.

    Args:
        fn: a Graph function; it is not changed.
        machine: the target's description (no pass asks it anything so far; passes registered by users may).
        keep: composites that the target's programs compute whole.
    """
    for p in passes():
        fn = expand_composites(fn, keep) if p.run is expand_composites and keep is not None else p.run(fn)
    return fn


USER_PASSES: list[Pass] = []
"""Passes entered through ``tessera.compiler.graph_pass``; they run on the cleaned graph, before layers are outlined."""


def passes() -> tuple[Pass, ...]:
    """The built-in passes with the user's in their place."""
    at = next(i for i, p in enumerate(GRAPH_PASSES) if p.name == "outline_layers")
    return (*GRAPH_PASSES[:at], *USER_PASSES, *GRAPH_PASSES[at:])
