# ruff: noqa: UP037
"""Group I of the inventory: the levels of IR, passes, and one program for several machines (other rows: rows/I.toml)."""

from __future__ import annotations

import importlib.util
import logging
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import golden
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from random_graphs import graphs

import tessera
import tessera as ts
from tessera import Schedule
from tessera.codegen import Driver
from tessera.compiler import GraphIR, GraphPass, KernelSchedule
from tessera.errors import CompileError
from tessera.ir import graph, sched, tile
from tessera.ir.core import Function
from tessera.ir.text import parse_functions, print_function
from tessera.machine import AMD_GFX942, BY_NAME, INTEL_XE, NVIDIA_SM80, NVIDIA_SM90, X86_AVX2, X86_AVX512, machine
from tessera.runtime.compiler import Compiler
from tessera.runtime.stages import STAGES
from tessera.transforms.hashing import graph_hash
from tessera.transforms.pipeline import USER_PASSES, optimize

VERIFY = {"graph": graph.verify, "sched": sched.verify, "tile": tile.verify}


# -- levels ------------------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", golden.PROGRAMS)
def test_i001_golden_dumps(name: str) -> None:
    """After a change that is meant: `python tests/inventory/golden.py`, and read the difference."""
    for level, text in golden.dumps(name):
        assert text == (golden.FOLDER / f"{name}.{level}").read_text(), f"{name}.{level} is no longer what is kept"
        if level in VERIFY:
            for fn in parse_functions(text):
                VERIFY[level](fn)


BREAKS = {  # an operand of another type, a value before its definition, a result that is not there, an attribute that is missing
    "graph": [("%w: f32[16, 24]", "%w: f32[15, 24]"), ("rhs_contract = (0,)", "rhs_contract = (2,)"), (": f32[M, 24]", ": f64[M, 24]"),
              ("return(%0)", "return(%1)"), ("= dot_general(", "= dot_generl(")],
    "sched": [("store(%5, %acc)", "store(%3, %acc)"), ("outs = (2,), ", ""),
              ("m = (\"m0\", <M>)", "m = (\"m0\", <Z>)"), ("%2 = view(%out)", "%2 = view(%0)")],
    "tile": [("= program_id() {axis = 0} : int64", "= program_id() {axis = 7} : int64"), (" : tile<f32[", " : tile<f64["),
             ("return()", "return(%0)"), ("= mul(%", "= mull(%")],
}


@pytest.mark.parametrize("level", BREAKS)
def test_i001_hand_broken_programs_are_refused_at_each_level(level: str) -> None:
    text = (golden.FOLDER / f"matmul.{level}").read_text()
    for old, new in BREAKS[level]:
        assert old in text, old
        with pytest.raises((ValueError, CompileError)) as e:
            for fn in parse_functions(text.replace(old, new, 1)):
                VERIFY[level](fn)
        assert str(e.value)


def test_i001_llvm_ir_that_is_broken_is_refused() -> None:
    text = Compiler(X86_AVX2).show(golden.graph("softmax"), "ll")
    for old, new in (("fadd", "fad"), ("ret void", "ret i32 0")):
        with pytest.raises(CompileError, match="LLVM refuses"):
            Driver().codegen(text.replace(old, new, 1), ts.Target("cpu"))


@settings(derandomize=True, deadline=None, database=None, max_examples=50,
          suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much])
@given(graphs())
def test_i039_print_parse_print_is_a_fixpoint_at_each_level(fn: Function) -> None:
    compiler = Compiler(X86_AVX512)
    for level in ("graph", "sched", "tile"):
        text = compiler.show(fn, level)
        functions = parse_functions(text)
        for f in functions:
            VERIFY[level](f)
        once = "\n".join(print_function(f) for f in functions)
        assert "\n".join(print_function(f) for f in parse_functions(once)) == once
        assert once.split() == text.split()


@settings(derandomize=True, deadline=None, database=None, max_examples=50,
          suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much])
@given(graphs())
def test_i039_llvm_ir_reads_back(fn: Function) -> None:
    import llvmlite.binding as llvm
    for module in Compiler(X86_AVX2).show(fn, "ll").split("; ==== module ")[1:]:
        first = str(llvm.parse_assembly(module.partition("\n")[2]))
        assert str(llvm.parse_assembly(first)) == first


# -- passes ------------------------------------------------------------------------------------------------------------------------
@pytest.fixture
def own_passes() -> Iterator[None]:
    saved = list(USER_PASSES)
    yield
    USER_PASSES[:] = saved


def fused_linear_relu(x: Any, w: Any, b: Any) -> Any:
    return ts.relu(ts.matmul(x, w) + b)


def fused_norm_gelu(x: Any) -> Any:
    return ts.gelu(ts.layer_norm(x))


def test_i004_i006_the_specification_s_graph_passes_run(own_passes: None) -> None:
    calls: list[str] = []

    x, w, b = ts.randn(4, 6), ts.randn(6, 5), ts.randn(5)
    wanted = ts.gelu(ts.layer_norm(ts.relu(x @ w + b))).numpy() * 5

    @tessera.compiler.graph_pass
    class OperatorFusion(GraphPass):
        """Fuse compatible operations"""

        def run(self, graph: GraphIR) -> GraphIR:
            calls.append("fusion")
            # Pattern matching
            patterns = [
                # Fuse matmul + bias + activation
                (["matmul", "add", "relu"], fused_linear_relu),
                # Fuse normalization + activation
                (["layernorm", "gelu"], fused_norm_gelu),
            ]

            for pattern, replacement in patterns:
                graph = self.replace_pattern(graph, pattern, replacement)

            return graph

    @tessera.compiler.graph_pass
    class ConstantFolding(GraphPass):
        """Evaluate constants at compile time"""

        def run(self, graph: GraphIR) -> GraphIR:
            calls.append("folding")
            for node in graph.nodes:
                if self.all_inputs_constant(node):
                    # Compute at compile time
                    result = self.evaluate(node)
                    graph.replace_with_constant(node, result)

            return graph

    @tessera.compiler.graph_pass
    class DeadCodeElimination(GraphPass):
        """Remove unused operations"""

        def run(self, graph: GraphIR) -> GraphIR:
            calls.append("dead code")
            used = self.find_used_nodes(graph)
            return graph.keep_only(used)

    listed = [p.name for p in tessera.compiler.passes()]
    assert [n for n in listed if n[0].isupper()] == ["OperatorFusion", "ConstantFolding", "DeadCodeElimination"]

    @ts.jit
    def f(x: Any, w: Any, b: Any) -> Any:
        return ts.gelu(ts.layer_norm(ts.relu(x @ w + b))) * (ts.tensor(2.0) + ts.tensor(3.0))

    got = f(x, w, b).numpy()
    assert calls == ["fusion", "folding", "dead code"]
    assert np.allclose(got, wanted, rtol=1e-4, atol=1e-5)


def test_i009_dead_code_goes_and_effects_stay(caplog: pytest.LogCaptureFixture) -> None:
    def f(x: Any) -> Any:
        ts.exp(x)
        ts.log("said")
        return x * 2

    before, helper = GraphIR(ts.jit(f).trace(ts.Tensor[4])), GraphPass()
    after = before.keep_only(helper.find_used_nodes(before))
    after.verify()
    names = [n.name for n in before.nodes], [n.name for n in after.nodes]
    assert "exp" in names[0] and "exp" not in names[1] and "mul" in names[1]

    class Counter(ts.Stateful):
        def __init__(self) -> None:
            self.count = ts.zeros(())

        @ts.stateful
        def step(self, x: Any) -> Any:
            self.count = self.count + x.sum()  # the result does not depend on it
            return f(x)

    counter = Counter()
    step = ts.jit(counter.step)
    with caplog.at_level(logging.INFO, "tessera"):
        assert step(ts.ones(4)).tolist() == step(ts.ones(4)).tolist() == [2] * 4
    assert float(counter.count) == 8 and caplog.messages == ["said", "said"]


STEPS = ("tile_loops", "unroll_loops", "vectorize", "optimize_data_layout", "insert_prefetching", "parallelize")
SHOWN = {"tile_loops": "tile = (13, 300)", "unroll_loops": "unroll = 4", "vectorize": 'lane = "i1"',
         "optimize_data_layout": 'layout = "row"',
         "insert_prefetching": "prefetch = 1", "parallelize": 'parallel = "i0"'}


def _layer(x: Any, w: Any) -> Any:
    return ts.exp(ts.sin(x) * 0.5) + w


def test_i011_the_specification_s_schedule_optimizer_runs(own_passes: None) -> None:
    x, w = ts.randn(64, 300), ts.randn(300)
    plain = ts.jit(_layer)(x, w).numpy()

    @tessera.compiler.schedule_pass
    class ScheduleOptimizer:
        """Optimize existing schedules"""

        def optimize(self, schedule: Schedule, kernel: ts.Kernel) -> Schedule:
            # Loop transformations
            schedule = self.tile_loops(schedule)  # type: ignore[attr-defined]
            schedule = self.unroll_loops(schedule)  # type: ignore[attr-defined]
            schedule = self.vectorize(schedule)  # type: ignore[attr-defined]

            # Memory optimizations
            schedule = self.optimize_data_layout(schedule)  # type: ignore[attr-defined]
            schedule = self.insert_prefetching(schedule)  # type: ignore[attr-defined]

            # Parallelization
            schedule = self.parallelize(schedule)  # type: ignore[attr-defined]

            return schedule

    f = ts.jit(lambda x, w: _layer(x, w))
    assert np.array_equal(f(x, w).numpy(), plain)
    assert all(text in f.schedule_ir for text in SHOWN.values())


@pytest.mark.parametrize("step", STEPS)
def test_i012_each_transformation_is_visible_and_keeps_values(step: str, own_passes: None) -> None:
    x, w = ts.randn(64, 300), ts.randn(300)
    plain = ts.jit(_layer)
    expected, before = plain(x, w).numpy(), plain.schedule_ir

    class One:
        """One transformation."""

        def optimize(self, schedule: KernelSchedule, kernel: Any) -> KernelSchedule:
            return getattr(self, step)(schedule)  # type: ignore[no-any-return]

    tessera.compiler.schedule_pass(One)
    f = ts.jit(lambda x, w: _layer(x, w))
    assert np.array_equal(f(x, w).numpy(), expected)
    assert SHOWN[step] in f.schedule_ir and (SHOWN[step] not in before or step == "vectorize")


# -- machines ---------------------------------------------------------------------------------------------------------------------
def test_i031_attention_by_hand_is_one_kernel() -> None:
    q, k, v = (ts.randn(2, 3, 40, 16) for _ in range(3))
    mask = ts.randn(1, 1, 40, 40)
    spelled = {
        "plain": lambda q, k, v, m: ts.softmax(q @ k.mT, -1) @ v,
        "scaled": lambda q, k, v, m: ts.softmax(q @ k.mT * 0.25, -1) @ v,
        "masked": lambda q, k, v, m: ts.softmax(q @ k.mT * 0.25 + m, -1) @ v,
    }
    for name, f in spelled.items():
        compiled = ts.jit(f)
        got = compiled(q, k, v, mask).numpy()
        s = q.numpy() @ k.numpy().swapaxes(-1, -2) * (1 if name == "plain" else 0.25) + (mask.numpy() if name == "masked" else 0)
        e = np.exp(s - s.max(-1, keepdims=True))
        assert np.allclose(got, e / e.sum(-1, keepdims=True) @ v.numpy(), atol=1e-5)
        assert len(compiled.kernels) == 1 and compiled.kernels[0].startswith("attention"), name


def test_i034_a_table_of_variants_one_for_each_model() -> None:
    @ts.specialize_for("A100", "H100")
    def f(x: ts.Tensor[4]) -> Any:
        return x * (2 if ts.current_device() == "A100" else 3)

    assert list(f.variants) == ["A100", "H100"]
    for model, factor in (("NVIDIA A100-SXM4-40GB", 2), ("NVIDIA H100 PCIe", 3), ("NVIDIA H200", 3), ("NVIDIA L4", 3)):
        fake = ts.Device("gpu:0", model, simulated=True)
        with fake:
            assert f(ts.ones(4)).tolist() == [factor] * 4
        assert f.select(fake) is (f.general if "L4" in model else f.variants["A100" if factor == 2 else "H100"])


@pytest.mark.parametrize("arch", ["sm_80", "sm_86", "sm_89", "sm_90"])
def test_i035_several_generations_of_one_vendor(arch: str, tmp_path: Path) -> None:
    text = Compiler(machine(arch)).show(golden.graph("attention"), "asm")
    assert f".target {arch}" in text
    page = (Path(__file__).parents[2] / "docs" / "simt.md").read_text()
    assert "`sm_86` is the GeForce RTX 30 series and A10, `sm_89` the GeForce RTX 40 series and L4" in page
    if shutil.which("ptxas") is None:
        pytest.skip("no ptxas here")
    for i, module in enumerate(text.split("# ==== module ")[1:]):
        (tmp_path / f"{i}.ptx").write_text(module.partition("\n")[2])
        done = subprocess.run(["ptxas", f"-arch={arch}", f"{i}.ptx", "-o", f"{i}.cubin"], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_i036_the_graph_is_the_same_for_every_machine() -> None:
    for name in golden.PROGRAMS:
        hashes = {graph_hash(optimize(golden.graph(name), m)) for m in BY_NAME.values()}
        assert len(hashes) == 1 and graph_hash(golden.graph(name)) == graph_hash(golden.graph(name))
    dumps = {Compiler(m).show(golden.graph("softmax"), "graph") for m in (X86_AVX2, NVIDIA_SM80, NVIDIA_SM90, AMD_GFX942, INTEL_XE)}
    assert len(dumps) == 1


def test_i038_tiles_are_the_compiler_s_choice() -> None:
    def layer(x: ts.Tensor["B", 64], w: ts.Tensor[64, "H"]) -> ts.Tensor["B", "H"]:  # noqa: F821
        return ts.relu(x @ w)

    fn = ts.jit(layer).trace()
    assert "tile" not in Compiler(X86_AVX2).show(fn, "graph")
    tiles = [Compiler(m).show(fn, "tile") for m in (X86_AVX2, X86_AVX512, NVIDIA_SM80)]
    assert all("tile<f32[" in t for t in tiles) and len(set(tiles)) == 3


def _pixels(data: bytes) -> np.ndarray:
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", data[16:24])
    at, packed = 8, b""
    while at < len(data):
        (n,) = struct.unpack(">I", data[at:at + 4])
        packed += data[at + 8:at + 8 + n] if data[at + 4:at + 8] == b"IDAT" else b""
        at += n + 12
    return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(height, 1 + 3 * width)[:, 1:].reshape(height, width, 3)


@pytest.mark.parametrize("name", ["tessera_overview.png", "tessera_hierarchy.png"])
def test_i032_i033_pictures_are_drawn_from_the_levels_there_are(name: str) -> None:
    """After a change that is meant: `python tools/diagrams.py`."""
    root = Path(__file__).parents[2]
    spec = importlib.util.spec_from_file_location("diagrams", root / "tools" / "diagrams.py")
    assert spec is not None and spec.loader is not None
    diagrams = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(diagrams)
    kept = (root / "docs" / "overview" / name).read_bytes()
    assert np.array_equal(_pixels(kept), diagrams.PICTURES[name]())
    assert np.array_equal(_pixels(diagrams.png(diagrams.hierarchy())), diagrams.hierarchy())
    assert [stage for stage, _, _ in diagrams.levels()] == [s.name for s in STAGES]
    assert f"overview/{name}" in (root / "docs" / "layout.md").read_text()


def test_i030_the_examples_of_the_page_at_the_tile_level() -> None:
    """Beside the Graph IR that the page shows (textual/test_program.py): each example's Tile IR is made, reads back and is well-formed."""
    page = (Path(__file__).parents[2] / "docs" / "textual.md").read_text()
    namespace: dict[str, Any] = {}
    made = 0
    for code in re.findall(r"^```python\n(.*?)^```\n\n```graph\n", page, re.S | re.M):
        exec(code, namespace)
        text = Compiler(X86_AVX2).show(namespace["compiled"].programs[-1].graph, "tile")
        functions = parse_functions(text)
        for fn in functions:
            tile.verify(fn)
        assert functions and "\n\n".join(print_function(f) for f in functions) == text
        made += 1
    assert made == 7
