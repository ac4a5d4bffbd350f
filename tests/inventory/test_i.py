"""Group I of the inventory, rows I013–I021: code generators of one's own and drivers for several targets."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import tessera as ts
from tessera.codegen import Driver, TileOp, generator_for

N = ts.sym("N")


class PTXCodeGen(ts.CodeGenerator):
    """The specification's class, word for word but for its name of a target."""

    target = "ptx"

    def generate(self, tile_ir: ts.TileIR) -> str:
        ptx = []
        ptx.append(self.gen_signature(tile_ir))
        regs = self.allocate_registers(tile_ir)
        ptx.append(self.gen_register_decls(regs))
        for op in tile_ir.operations:
            if op.type == "load":
                ptx.append(self.gen_load(op, regs))
            elif op.type == "compute":
                ptx.append(self.gen_compute(op, regs))
            elif op.type == "store":
                ptx.append(self.gen_store(op, regs))
        return "\n".join(ptx)

    def gen_compute(self, op: Any, regs: Any) -> str:
        if op.is_tensor_core:
            return f"mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 " \
                   f"{{{regs[op.output]}}}, " \
                   f"{{{regs[op.input_a]}}}, " \
                   f"{{{regs[op.input_b]}}}, " \
                   f"{{{regs[op.input_c]}}};"
        return self.gen_regular_compute(op, regs)


def assemble(text: str, arch: str, tmp_path: Path) -> None:
    ptxas = shutil.which("ptxas")
    if ptxas is None:
        pytest.skip("no ptxas here")
    (tmp_path / "k.ptx").write_text(text)
    done = subprocess.run([ptxas, f"-arch={arch}", "k.ptx", "-o", "k.cubin"], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "k.cubin").read_bytes()[:4] == b"\x7fELF"


@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
def test_i014_i016_the_specification_s_generator_assembles(arch: str, tmp_path: Path) -> None:
    generator = PTXCodeGen()
    generator.arch = arch
    text = generator.generate(ts.TileIR.mma())
    regs = generator.allocate_registers(ts.TileIR.mma())
    assert [len(regs[v].split(", ")) for v in ("sum", "a_frag", "b_frag", "acc")] == [4, 4, 2, 4]
    assert "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32" in text and f".target {arch}" in text
    assemble(text, arch, tmp_path)


def test_i014_regular_instructions(tmp_path: Path) -> None:
    steps = [("mul", "p", ("x", "y")), ("fma", "q", ("p", "y", "x")), ("max", "r", ("q", "p")), ("min", "r2", ("r", "x")),
             ("div", "s", ("r2", "y")), ("abs", "t", ("s",)), ("sqrt", "u", ("t",)),
             ("neg", "v", ("u",)), ("sub", "w", ("v", "x")), ("add", "z", ("w", "y"))]
    assemble(ts.CodeGenerator().generate(ts.TileIR.pointwise("chain", ("x", "y"), steps, "z")), "sm_80", tmp_path)
    with pytest.raises(ts.UnsupportedError, match="no instruction computes 'mull'; did you mean 'mul'"):
        ts.CodeGenerator().generate(ts.TileIR.pointwise("k", ("x",), [("mull", "y", ("x", "x"))], "y"))


def test_i013_generators_are_found_by_target() -> None:
    assert type(generator_for("cuda")) is PTXCodeGen and type(generator_for("nvidia")) is PTXCodeGen
    with pytest.raises(ts.errors.ArgumentError, match="no code generator is registered for 'tpu'"):
        generator_for("tpu")


def test_i015_every_operation_answers() -> None:
    for op in ts.TileIR.mma().operations:
        assert op.type in ("load", "compute", "store") and isinstance(op.is_tensor_core, bool) and op.output
        assert (op.input_a, op.input_b, op.input_c) == (("a_frag", "b_frag", "acc") if op.is_tensor_core else (None, None, None))
    assert TileOp("compute", "add", "z", ("x", "y")).input_b == "y"


@ts.function
def demo(x: ts.Tensor[N], y: ts.Tensor[N]) -> ts.Tensor[N]:
    return ts.where(x > y, x * y + 1.5, ts.sqrt(ts.abs(y)) / 3 - x)


@ts.compiler
class UniversalCompiler:
    """The specification's class, word for word."""

    def compile(self, graph: Any, targets: list[ts.Target]) -> dict[ts.Target, ts.Binary]:
        binaries = {}
        for target in targets:
            optimized = self.optimize_for_target(graph, target)
            schedule = self.generate_schedule(optimized, target)
            if target.type == "cuda":
                target_ir = self.lower_to_ptx(optimized, schedule)
            elif target.type == "rocm":
                target_ir = self.lower_to_gcn(optimized, schedule)
            elif target.type == "cpu":
                target_ir = self.lower_to_llvm(optimized, schedule)
            binaries[target] = self.codegen(target_ir, target)
        return binaries


TARGETS = [ts.Target("cuda"), ts.Target("rocm"), ts.Target("cpu")]


def test_i017_i021_one_graph_for_three_targets(tmp_path: Path) -> None:
    graph = ts.GraphIR(demo.trace())
    made = UniversalCompiler().compile(graph, TARGETS)
    assert list(made) == TARGETS and len({b.hash for b in made.values()}) == 3
    assert [b.format for b in made.values()] == ["ptx", "elf", "elf"]
    assert made[TARGETS[1]].data[:4] == made[TARGETS[2]].data[:4] == b"\x7fELF"
    assert made[TARGETS[1]].data[18:20] == b"\xe0\x00"  # EM_AMDGPU
    assemble(made[TARGETS[0]].data.decode(), "sm_80", tmp_path)
    again = Driver().compile(graph, TARGETS)
    assert {t: b.hash for t, b in again.items()} == {t: b.hash for t, b in made.items()}


def test_i020_gcn_assembles_with_another_llvm(tmp_path: Path) -> None:
    llc = shutil.which("llc-14")
    if llc is None:
        pytest.skip("no llc-14 here")
    steps = Driver()
    text = steps.lower_to_gcn(steps.optimize_for_target(ts.GraphIR(demo.trace()), ts.Target("amd")), {})
    (tmp_path / "k.ll").write_text(text)
    done = subprocess.run([llc, "-opaque-pointers", "-mcpu=gfx90a", "-filetype=obj", "k.ll", "-o", "k.o"], cwd=tmp_path,
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_i018_i019_targets() -> None:
    assert ts.Target("nvidia") == ts.Target("cuda") and ts.Target("amd").type == "rocm" and ts.Target("x86").type == "cpu"
    assert hash(ts.Target("ptx")) == hash(ts.Target("cuda", "sm_80")) and ts.Target("cuda", "sm_90").arch == "sm_90"
    with pytest.raises(ts.errors.ArgumentError, match="no target is called 'cudda'; did you mean 'cuda'"):
        ts.Target("cudda")


def test_what_the_gpu_lowering_refuses() -> None:
    steps = Driver()

    def lower(f: Any, *types: Any) -> str:
        return steps.lower_to_ptx(steps.optimize_for_target(ts.jit(f).trace(*types), ts.Target("cuda")), {})

    for f in (lambda x: x.sum(), lambda x: ts.exp(x), lambda x: x[::-1]):
        with pytest.raises(ts.UnsupportedError, match="pointwise arithmetic"):
            lower(f, ts.Tensor["N"])
    with pytest.raises(ts.UnsupportedError, match="have no bf16"):
        lower(lambda x: x + 1, ts.Tensor["N", ts.bf16])
    with pytest.raises(ts.errors.ArgumentError, match="a driver compiles a graph"):
        steps.compile(3, TARGETS)
    with pytest.raises(ts.CompileError, match="LLVM refuses"):
        steps.codegen("define nonsense", ts.Target("rocm"))
    with pytest.raises(ts.errors.ArgumentError, match="decorates a class"):
        ts.compiler(3)
