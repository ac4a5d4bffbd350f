"""Passes of your own: classes that see a program's graph, or the decisions on its kernels, while it is compiled.

    from tessera.compiler import GraphIR, GraphPass, graph_pass

    @graph_pass
    class FuseLinear(GraphPass):
        def run(self, graph: GraphIR) -> GraphIR:
            return self.replace_pattern(graph, ["matmul", "add", "relu"], my_linear_relu)

A registered pass runs on every program compiled afterwards, on the cleaned graph, before layers are outlined and composites
expanded; :func:`unregister` takes it out again.  Programs made with passes of your own are not kept in the disk cache.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from types import ModuleType
from typing import Any, TypeVar

import numpy as np

from .errors import CompileError
from .ir.core import Block, Builder, Copier, Function, Op, TensorType, Value, rewrite, uses
from .ir.graph import verify
from .ops.table import OPS
from .tracing.recorder import Trace, tracing
from .transforms import pipeline
from .transforms.cleanup import eliminate_dead_code, fold_constants
from .transforms.matching import literal
from .transforms.pipeline import Pass
from .transforms.raising import raise_composites
from .transforms.rewriting import has_effects

Node = Op

# The names under which people know ops -> the op and what else must hold.
_RELU = (lambda op: op.name == "maximum" and any(literal(v) == 0.0 for v in op.operands))
PATTERN_NAMES: dict[str, Callable[[Op], bool]] = {
    "relu": _RELU,
    **{alias: (lambda op, wanted=wanted: op.name == wanted) for alias, wanted in {  # type: ignore[misc]
        "matmul": "dot_general", "linear": "dot_general", "layernorm": "layer_norm", "rmsnorm": "rms_norm",
        "sum": "reduce_sum", "max": "reduce_max", "min": "reduce_min", "flash_attention": "attention"}.items()},
}


def matches(op: Op, name: str) -> bool:
    """True when ``op`` is what people call ``name``: an op's own name, or one such as "matmul", "relu", "layernorm"."""
    test = PATTERN_NAMES.get(name)
    return test(op) if test is not None else op.name == name


class GraphIR:
    """A program's graph, to be looked at and edited.

    Args:
        function: a Graph function; it is copied, so that edits stay in this object.
    """

    def __init__(self, function: Function):
        self.function = rewrite(function, None)

    @property
    def nodes(self) -> list[Node]:
        """The ops in an order in which operands come before their users, ``return`` aside."""
        return [op for op in self.function.body.ops if op.name != "return"]

    @property
    def results(self) -> list[Value]:
        return list(self.function.returns)

    def users(self, node: Node) -> list[Node]:
        """The ops that use a result of ``node``; ``return`` is one of them."""
        table = uses(self.function.body)
        return list(dict.fromkeys(op for r in node.results for op, _ in table.get(r, ())))

    def replace_with_constant(self, node: Node, result: Any) -> None:
        """Put the number or array ``result`` in place of ``node``.

        Raises:
            CompileError: the node has several results, or the value does not have its type.
        """
        if len(node.results) != 1:
            raise CompileError(f"{node.name!r} has {len(node.results)} results; a constant stands for one", loc=node.loc)
        t: TensorType = node.results[0].type
        value = np.array(result, t.dtype.np, order="C")
        if value.shape != t.shape:
            raise CompileError(f"the constant has the shape {list(value.shape)}", expected=str(t), loc=node.loc)
        made = Op("constant", (), (t,), {"value": value}, (), node.loc)
        self._replace(node, [made], made.results)

    def keep_only(self, used: Iterable[Node]) -> GraphIR:
        """A graph with the nodes ``used`` alone.

        Raises:
            CompileError: a node that is kept needs one that is not.
        """
        kept = set(used)
        for op in self.function.body.ops:
            if op in kept or op.name == "return":
                missing = [v.op for v in op.operands if v.op is not None and v.op not in kept]
                if missing:
                    raise CompileError(f"{op.name!r} needs {missing[0].name!r}, which would be dropped", loc=op.loc)
        out = GraphIR(self.function)
        position = [op in kept or op.name == "return" for op in self.function.body.ops]
        out.function.body.ops = [op for op, stays in zip(out.function.body.ops, position, strict=True) if stays]
        return out

    def verify(self) -> None:
        """Check the graph.

        Raises:
            GrammarError: it is not well-formed.
        """
        verify(self.function)

    def _replace(self, node: Node, made: Sequence[Op], results: Sequence[Value]) -> None:
        ops = self.function.body.ops
        at = ops.index(node)
        ops[at:at + 1] = made
        new = dict(zip(node.results, results, strict=True))
        for op in self.function.walk():
            if op not in made:
                op.operands = [new.get(v, v) for v in op.operands]

    def __str__(self) -> str:
        return str(self.function)


class GraphPass:
    """Base of graph passes: override :meth:`run`; the other methods help."""

    def run(self, graph: GraphIR) -> GraphIR:
        """The graph after the pass (which may edit and return the one it gets)."""
        return graph

    def replace_pattern(self, graph: GraphIR, pattern: Sequence[str], replacement: Callable[..., Any]) -> GraphIR:
        """Replace chains of ops, each the only user of the one before, by a call of ``replacement``.

        Args:
            pattern: names of ops, the first one first.
            replacement: a function of tensors: it gets what the chain takes from outside, in order (literals aside), and
                returns a tensor of the last op's type.

        Raises:
            CompileError: the replacement returns another type.
        """
        out = GraphIR(graph.function)
        users = {v: [op for op, _ in at] for v, at in uses(out.function.body).items()}
        done: set[Op] = set()
        for node in out.nodes:
            chain = _chain(node, pattern, users)
            if chain is not None and not done & set(chain):
                done.update(chain)
                self._substitute(out, chain, replacement)
        return GraphIR(eliminate_dead_code(out.function)) if done else graph

    def _substitute(self, graph: GraphIR, chain: Sequence[Op], replacement: Callable[..., Any]) -> None:
        inside = {r for op in chain for r in op.results}
        outer: dict[Value, None] = {}
        for op in chain:
            outer.update((v, None) for v in op.operands if v not in inside and literal(v) is None)
        trace = Trace(getattr(replacement, "__name__", "replacement"))
        with tracing(trace):
            made = replacement(*[trace.parameter(v.type) for v in outer])
            body = trace.finish([made])
        last = chain[-1]
        if body.result_types != [r.type for r in last.results] or trace.captured:
            received = ", ".join(map(str, body.result_types)) + (" and captured tensors" if trace.captured else "")
            raise CompileError(f"the replacement of {' -> '.join(o.name for o in chain)} does not fit",
                               expected=str(last.results[0].type), received=received, loc=last.loc)
        block = Block()
        c = Copier(Builder(block))
        c.map.update(zip(body.args, outer, strict=True))
        c.run(body.body.ops[:-1])
        graph.function.functions.update(body.functions)
        graph._replace(last, block.ops, [c[v] for v in body.returns])

    def all_inputs_constant(self, node: Node) -> bool:
        """True when ``node`` computes something from constants alone (a constant itself computes nothing)."""
        rule = OPS.get(node.name)
        if rule is None or rule.effects or not node.operands or len(node.results) != 1 or "site" in node.attrs or \
                not node.results[0].type.static:
            return False
        return all(v.op is not None and _constant(v.op) is not None for v in node.operands)

    def evaluate(self, node: Node) -> Any:
        """The value of a node whose inputs are constant, as an array."""
        values = [_constant(v.op) for v in node.operands if v.op is not None]
        return np.asarray(OPS[node.name].reference(*values, **node.attrs))

    def find_used_nodes(self, graph: GraphIR) -> set[Node]:
        """The nodes that results or effects depend on."""
        used: set[Op] = set()
        live: set[Value] = set(graph.results)
        for op in reversed(graph.nodes):
            if has_effects(op) or any(r in live for r in op.results):
                used.add(op)
                live.update(v for o in op.walk() for v in o.operands)
        return used


def _constant(op: Op) -> Any:
    """The array behind a constant or a small ``full``; None for anything else."""
    if op.name == "constant":
        return np.asarray(op.attrs["value"])
    t = op.results[0].type if op.results else None
    if op.name == "full" and t is not None and t.static and t.size <= 4096:
        return np.full(t.shape, np.asarray(op.attrs["value"]).astype(t.dtype.np), t.dtype.np)
    return None


def _chain(last: Op, pattern: Sequence[str], users: Mapping[Value, Sequence[Op]]) -> list[Op] | None:
    """The chain that ends in ``last``."""
    chain: list[Op] = []
    node: Op | None = last
    for k, name in enumerate(reversed(pattern)):
        if node is None or not matches(node, name) or len(node.results) != 1:
            return None
        chain.insert(0, node)
        if k + 1 < len(pattern):
            wanted = pattern[len(pattern) - k - 2]
            node = next((v.op for v in node.operands
                         if v.op is not None and matches(v.op, wanted) and set(users.get(v, ())) == {chain[0]}), None)
    return chain


# -- the passes that are always there ---------------------------------------------------------------------------------------
class OperatorFusion(GraphPass):
    """Formulas written by hand become the composites they are (the pass ``raise_composites``)."""

    def run(self, graph: GraphIR) -> GraphIR:
        return GraphIR(raise_composites(graph.function))


class ConstantFolding(GraphPass):
    """Exact ops on constants are computed at compile time (the pass ``fold_constants``)."""

    def run(self, graph: GraphIR) -> GraphIR:
        return GraphIR(fold_constants(graph.function))


class DeadCodeElimination(GraphPass):
    """Ops that nothing depends on are dropped (the pass ``dead_code``)."""

    def run(self, graph: GraphIR) -> GraphIR:
        return GraphIR(eliminate_dead_code(graph.function))


# -- registration -----------------------------------------------------------------------------------------------------------
C = TypeVar("C", bound=type)


def graph_pass(cls: C) -> C:
    """Class decorator: run the pass on every program compiled from now on, after those registered before it.

    Raises:
        TypeError: the class has no ``run``, or needs arguments.
    """
    if not callable(getattr(cls, "run", None)):
        raise TypeError(f"{cls.__name__} is no graph pass: it has no run(self, graph)")
    instance = cls()

    def run(fn: Function) -> Function:
        out = instance.run(GraphIR(fn))
        if not isinstance(out, GraphIR):
            raise CompileError(f"the pass {cls.__name__}.run returned a {type(out).__name__}, not the graph")
        out.verify()
        return out.function

    pipeline.USER_PASSES.append(Pass(cls.__name__, run, (cls.__doc__ or "registered by the user").strip().splitlines()[0]))
    return cls


def unregister(cls: type) -> None:
    """Take a registered graph or schedule pass out again.

    Raises:
        ValueError: no such pass is registered.
    """
    for k, p in enumerate(pipeline.USER_PASSES):
        if p.name == cls.__name__:
            del pipeline.USER_PASSES[k]
            return
    raise ValueError(f"no pass called {cls.__name__!r} is registered")


def passes() -> tuple[Pass, ...]:
    """The pipeline as it stands: name, function and reason of each pass, in order."""
    return pipeline.passes()


# -- schedules ----------------------------------------------------------------------------------------------------------------
class KernelSchedule:
    """The decisions on one kernel; changing them never changes what it computes.

    Attributes:
        decisions: by name, as they stand in Schedule IR (``tile``, ``lane``, ``unroll``, ``prefetch``, ``layout``, ``parallel``).
        grid: the kernel's parallel loops, names and extents.
    """

    def __init__(self, decisions: Mapping[str, Any], grid: tuple[tuple[str, Any], ...]):
        self.decisions = dict(decisions)
        self.grid = grid

    def replace(self, **changes: Any) -> KernelSchedule:
        """A copy with some decisions changed."""
        return KernelSchedule({**self.decisions, **changes}, self.grid)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, KernelSchedule) and (self.decisions, self.grid) == (other.decisions, other.grid)

    def __hash__(self) -> int:
        return hash((tuple(sorted(self.decisions.items())), self.grid))


class SchedulePass:
    """Helpers for schedule passes; each returns the schedule with one decision changed."""

    def tile_loops(self, schedule: KernelSchedule, elements: int = 4096) -> KernelSchedule:
        """Cut the parallel loops into blocks of at most ``elements`` points, the innermost loop first."""
        left = max(1, elements)
        tile: list[int] = []
        for _, extent in reversed(schedule.grid):
            here = max(1, min(left, extent) if isinstance(extent, int) else left)
            tile.insert(0, here)
            left = max(1, left // here)
        return schedule.replace(tile=tuple(tile))

    def unroll_loops(self, schedule: KernelSchedule, factor: int = 4) -> KernelSchedule:
        """Ask for inner loops to be unrolled ``factor`` times."""
        return schedule.replace(unroll=factor)

    def vectorize(self, schedule: KernelSchedule) -> KernelSchedule:
        """Put the vector lanes along the innermost parallel loop, where no inner loop has them."""
        if not schedule.grid or "lane" not in schedule.decisions:
            return schedule
        return schedule.replace(lane=schedule.grid[-1][0])

    def optimize_data_layout(self, schedule: KernelSchedule) -> KernelSchedule:
        """State that buffers are read along their rows."""
        return schedule.replace(layout="row")

    def insert_prefetching(self, schedule: KernelSchedule, distance: int = 1) -> KernelSchedule:
        """Ask for the next ``distance`` blocks' data to be fetched ahead."""
        return schedule.replace(prefetch=distance)

    def parallelize(self, schedule: KernelSchedule) -> KernelSchedule:
        """Share the blocks of the outermost parallel loop among threads."""
        return schedule.replace(parallel=schedule.grid[0][0]) if schedule.grid else schedule


def schedule_pass(cls: C) -> C:
    """Class decorator: ``optimize(schedule, kernel)`` decides on every kernel of programs compiled from now on.

    The class gets the helpers of :class:`SchedulePass`.  ``kernel`` is the Schedule IR op.

    Raises:
        TypeError: the class has no ``optimize``.
    """
    if not callable(getattr(cls, "optimize", None)):
        raise TypeError(f"{cls.__name__} is no schedule pass: it has no optimize(self, schedule, kernel)")
    full = cls if issubclass(cls, SchedulePass) else type(cls.__name__, (cls, SchedulePass), {"__doc__": cls.__doc__})
    instance = full()

    def decide(kernel: Op) -> None:
        own = {k: v for k, v in kernel.attrs.items() if k not in ("name", "grid", "outs")}
        made = instance.optimize(KernelSchedule(own, kernel.attrs["grid"]), kernel)
        if not isinstance(made, KernelSchedule):
            raise CompileError(f"the pass {cls.__name__}.optimize returned a {type(made).__name__}, not the schedule")
        kernel.attrs = {k: kernel.attrs[k] for k in ("name", "grid", "outs")} | made.decisions

    reason = (cls.__doc__ or "registered by the user").strip().splitlines()[0]
    pipeline.USER_PASSES.append(Pass(cls.__name__, _same, reason, decide))
    return full  # type: ignore[return-value]


def _same(fn: Function) -> Function:
    return fn


# -- drivers ------------------------------------------------------------------------------------------------------------------
class _Callable(ModuleType):
    def __call__(self, cls: Any) -> Any:
        """``@tessera.compiler``: a class with ``compile(graph, targets)`` as a driver (``tessera.codegen``)."""
        return import_module("tessera.codegen").driver(cls)


sys.modules[__name__].__class__ = _Callable
