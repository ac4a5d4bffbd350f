"""Passes of users: the protocol, the helpers, the listing."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from trace_cases import agree, names, traced

import tessera as ts
import tessera.compiler as compiler
from tessera.compiler import ConstantFolding, DeadCodeElimination, GraphIR, GraphPass, OperatorFusion
from tessera.errors import CompileError
from tessera.ir import sched
from tessera.machine import X86_AVX512
from tessera.scheduling import schedule
from tessera.transforms.pipeline import GRAPH_PASSES, USER_PASSES, optimize


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    saved = list(USER_PASSES)
    yield
    USER_PASSES[:] = saved


def linear_relu(x: Any, w: Any, b: Any) -> Any:
    return ts.relu(ts.linear(x, w) + b)


class Swap(GraphPass):
    """relu of a sum becomes a composite chain."""

    def run(self, graph: GraphIR) -> GraphIR:
        return self.replace_pattern(graph, ["add", "relu"], lambda x, y: ts.silu(x + y))


def test_a_registered_pass_runs_in_its_place() -> None:
    compiler.graph_pass(Swap)
    assert "Swap" in [p.name for p in compiler.passes()]
    order = [p.name for p in compiler.passes()]
    assert order.index("dead_code") < order.index("Swap") < order.index("expand_composites")
    fn = traced(lambda x, y: ts.relu(x + y), (4,), (4,))
    assert "maximum" not in names(optimize(fn)) and "sigmoid" in names(optimize(fn))
    compiler.unregister(Swap)
    assert "maximum" in names(optimize(fn))
    with pytest.raises(ValueError, match="Swap"):
        compiler.unregister(Swap)


def test_a_pattern_of_three() -> None:
    fn = traced(lambda x, w, b: ts.relu(x @ w + b), (4, 8), (8, 3), (3,))
    seen: list[Any] = []

    def replacement(x: Any, w: Any, b: Any) -> Any:
        seen.append((x.shape, w.shape, b.shape))
        return ts.relu(x @ w + b)

    out = GraphPass().replace_pattern(GraphIR(fn), ["matmul", "add", "relu"], replacement)
    out.verify()
    agree(fn, out.function)
    assert seen == [((4, 8), (8, 3), (4, 3))]


def test_norm_and_activation() -> None:
    fn = traced(lambda x: ts.gelu(ts.layer_norm(x)), (4, 8))
    out = GraphPass().replace_pattern(GraphIR(fn), ["layernorm", "gelu"], lambda x: ts.tanh(x))
    assert names(out.function) == ["tanh"] and len(out.nodes) < len(GraphIR(fn).nodes)


def test_an_intermediate_with_a_second_user_is_not_fused() -> None:
    fn = traced(lambda x, y: (ts.relu(x + y), (x + y) * 2.0), (4,), (4,))
    merged = optimize(fn)
    graph = GraphIR(merged)
    assert GraphPass().replace_pattern(graph, ["add", "relu"], lambda x, y: ts.silu(x + y)) is graph


def test_a_replacement_of_another_type_is_refused() -> None:
    fn = traced(lambda x, y: ts.relu(x + y), (4,), (4,))
    with pytest.raises(CompileError, match="add -> maximum"):
        GraphPass().replace_pattern(GraphIR(fn), ["add", "relu"], lambda x, y: ts.sum(x + y))


def test_folding_by_hand() -> None:
    fn = traced(lambda x: x + (ts.tensor(2.0) + ts.tensor(3.0)), (4,))
    graph, helper = GraphIR(fn), GraphPass()
    for node in graph.nodes:
        if helper.all_inputs_constant(node):
            graph.replace_with_constant(node, helper.evaluate(node))
            graph.verify()
    graph = graph.keep_only(helper.find_used_nodes(graph))
    graph.verify()
    agree(fn, graph.function)
    assert [n for n in names(graph.function) if n == "add"] == ["add"]
    values = [op.attrs["value"] for op in graph.nodes if op.name == "constant"]
    assert any(np.all(v == 5.0) for v in values)


def test_what_is_needed_cannot_be_dropped() -> None:
    graph = GraphIR(traced(lambda x: ts.exp(ts.sin(x)), (4,)))
    with pytest.raises(CompileError, match="'exp' needs 'sin'"):
        graph.keep_only([n for n in graph.nodes if n.name == "exp"])


def test_a_constant_has_the_type_of_what_it_replaces() -> None:
    graph = GraphIR(traced(lambda x: ts.exp(x), (4,)))
    with pytest.raises(CompileError, match=r"the shape \[3\]"):
        graph.replace_with_constant(graph.nodes[0], np.zeros(3))


def test_edits_stay_in_the_copy() -> None:
    fn = traced(lambda x: ts.exp(x), (4,))
    graph = GraphIR(fn)
    graph.replace_with_constant(graph.nodes[0], np.zeros(4))
    assert names(fn) == ["exp"] and names(graph.function) == ["constant"]


@pytest.mark.parametrize("cls", [OperatorFusion, ConstantFolding, DeadCodeElimination])
def test_built_in_passes(cls: type[GraphPass]) -> None:
    fn = traced(lambda x: ts.exp(x - x.max(-1, keepdims=True)) / ts.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True), (4, 8))
    out = cls().run(GraphIR(fn))
    out.verify()
    agree(fn, out.function, 1e-6)
    assert {"raise_composites", "fold_constants", "dead_code"} <= {p.name for p in GRAPH_PASSES}


class Everything:
    """All six transformations."""

    def optimize(self, schedule: Any, kernel: Any) -> Any:
        schedule = self.tile_loops(schedule)  # type: ignore[attr-defined]
        schedule = self.unroll_loops(schedule)  # type: ignore[attr-defined]
        schedule = self.vectorize(schedule)  # type: ignore[attr-defined]
        schedule = self.optimize_data_layout(schedule)  # type: ignore[attr-defined]
        schedule = self.insert_prefetching(schedule)  # type: ignore[attr-defined]
        return self.parallelize(schedule)  # type: ignore[attr-defined]


def test_schedule_passes_decide_on_kernels() -> None:
    fn = traced(lambda x: ts.exp(x) + 1.0, (64, 300))
    plain = schedule(optimize(fn), X86_AVX512)
    compiler.schedule_pass(Everything)
    out = schedule(optimize(fn), X86_AVX512)
    sched.verify(out)
    (kernel,) = [op for op in out.body.ops if op.name == "kernel"]
    assert kernel.attrs["tile"] == (13, 300) and kernel.attrs["unroll"] == 4 and kernel.attrs["prefetch"] == 1
    assert kernel.attrs["parallel"] == "i0" and kernel.attrs["layout"] == "row" and kernel.attrs["lane"] == "i1"
    bare = {"tile", "unroll", "prefetch", "parallel", "layout", "lane"}
    before = next(op for op in plain.body.ops if op.name == "kernel")
    assert {k: v for k, v in kernel.attrs.items() if k not in bare} == {k: v for k, v in before.attrs.items() if k not in bare}


def test_what_is_no_pass_is_refused() -> None:
    with pytest.raises(TypeError, match="it has no run"):
        compiler.graph_pass(type("Nothing", (), {}))
    with pytest.raises(TypeError, match="it has no optimize"):
        compiler.schedule_pass(type("Nothing", (), {}))

    class Wrong(GraphPass):
        def run(self, graph: GraphIR) -> Any:
            return None

    compiler.graph_pass(Wrong)
    with pytest.raises(CompileError, match=r"Wrong.run returned a NoneType"):
        optimize(traced(lambda x: ts.exp(x), (4,)))
