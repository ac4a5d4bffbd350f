"""The library's product built for AMD GPUs: matrix instructions fed by wide accesses to LDS, no scratch.  Read, not run."""

import re
import sys
from pathlib import Path

import pytest
from test_kernels import compiled

import tessera as ts
from tessera.kernels.simt.matmul import product_program
from tessera.machine import AMD_GFX942, AMD_GFX950
from tessera.runtime.build import lower_launch
from tessera.scheduling import schedule
from tessera.targets.amd import code_object
from tessera.targets.amd.build import code_object as build
from tessera.transforms.pipeline import optimize
from tessera.types.dims import name
from tessera.types.dtypes import bf16, f16, f32, fp8_e4m3, int8, int32

sys.path.insert(0, str(Path(__file__).parents[2] / "kernels"))
from products import product_op

INTEGERS = {"accumulate": int32, "out": int32}


def assembly(machine, sizes, **kinds):
    """(assembly, facts of the kernel) of a product."""
    binary, module = build(product_program(product_op(*sizes, **kinds), machine, "kernel"), machine, compiled)
    (k,) = code_object.kernels(binary)
    return compiled(module, machine, "asm").decode(), k


@pytest.mark.parametrize("machine, kinds, instruction, count", [
    (AMD_GFX942, {"dtype": bf16}, "v_mfma_f32_32x32x8_bf16", 32), (AMD_GFX942, {"dtype": f16, "rhs_t": True}, "v_mfma_f32_32x32x8_f16", 32),
    (AMD_GFX942, {"dtype": bf16, "lhs_t": True}, "v_mfma_f32_32x32x8_bf16", 32),
    (AMD_GFX942, {"dtype": int8, **INTEGERS}, "v_mfma_i32_32x32x16_i8", 32), (AMD_GFX950, {"dtype": bf16}, "v_mfma_f32_32x32x16_bf16", 16),
    (AMD_GFX950, {"dtype": f16, "lhs_t": True, "rhs_t": True}, "v_mfma_f32_32x32x16_f16", 16),
    (AMD_GFX950, {"dtype": fp8_e4m3, "out": f32, "rhs_t": True}, "v_mfma_f32_32x32x16_fp8_fp8", 32),
    (AMD_GFX950, {"dtype": int8, **INTEGERS}, "v_mfma_i32_32x32x32_i8", 16)], ids=lambda v: str(getattr(v, "cpu", v)))
def test_products_by_matrix_instructions(machine, kinds, instruction, count):
    asm, k = assembly(machine, (4096, 4096, 4096), **kinds)
    # 256 threads are 4 waves, each of 64 x 64 results, that is 2 x 2 of the instruction's; a slice has 128 bytes along k
    assert len(re.findall(rf"\t{instruction}\w*\s", asm)) == count
    assert set(re.findall(r"\tds_read\w*", asm)) <= {"\tds_read_b64", "\tds_read_b128"}
    assert set(re.findall(r"\tds_write\w*", asm)) <= {"\tds_write_b64", "\tds_write_b128"}
    assert "\tglobal_load_dwordx4" in asm or kinds["dtype"].itemsize == 1
    assert asm.count("\ts_barrier") <= 3 and "scratch_" not in asm
    assert k.private_bytes == 0 and k.shared_bytes == 32768 and k.registers <= 256  # two waves to each SIMD unit


@pytest.mark.parametrize("machine", [AMD_GFX942, AMD_GFX950], ids=lambda m: m.cpu)
def test_symbolic_and_small_products(machine):
    asm, k = assembly(machine, (name("M"), 512, name("K")), dtype=bf16, batch=(("b0", name("B")),))
    assert "v_mfma_f32_32x32" in asm and k.private_bytes == 0
    asm, k = assembly(machine, (16, 16, 64), dtype=bf16)
    assert "v_mfma_f32_16x16" in asm and k.private_bytes == 0


def test_products_by_fma():
    asm, k = assembly(AMD_GFX942, (1024, 1024, 1024), dtype=f32)
    assert "v_mfma" not in asm and re.search(r"v_(pk_)?fma", asm) and "\tds_read_b128" in asm and "\tds_read_b32" not in asm
    assert k.private_bytes == 0 and k.registers <= 128


def test_an_epilogue_that_computes():
    """A part of the tile at a time: its code stands there once, its operands and results move 16 bytes at a time, nothing spills."""
    def layer(x: ts.Tensor[2048, 1024, ts.bf16], w: ts.Tensor[1024, 2048, ts.bf16], b: ts.Tensor[2048, ts.bf16],
              r: ts.Tensor[2048, 2048, ts.bf16]) -> ts.Tensor[2048, 2048, ts.bf16]:
        return ts.gelu(x @ w + b) + r

    program = schedule(optimize(ts.jit(layer).trace(), AMD_GFX942), AMD_GFX942)
    (op,) = (o for o in program.walk() if o.name == "template")
    binary, module = build(lower_launch(program, op, AMD_GFX942, ()), AMD_GFX942, compiled)
    (k,) = code_object.kernels(binary)
    asm = compiled(module, AMD_GFX942, "asm").decode()
    assert k.private_bytes == 0 and k.shared_bytes == 32768 and k.registers <= 512
    assert asm.count("\tglobal_store_dwordx4") == 2 and "\tglobal_store_short" not in asm and asm.count("v_mfma_f32_32x32x8_bf16") == 32
