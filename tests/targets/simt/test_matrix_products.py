"""The library's product by AMD's and Intel's matrix instructions on emulated machines; the SPIR-V of Intel's, read word by word."""

import struct
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from emulated_vendors import SubGroup, Wave
from simt_harness import compile_module

from tessera.kernels.simt.matmul import product_program
from tessera.machine import AMD_GFX942, AMD_GFX950, INTEL_CPU, INTEL_XE, INTEL_XE_HPC
from tessera.targets.amd.build import lower as lower_amd
from tessera.targets.intel.emit import lower as lower_intel
from tessera.targets.intel.opencl import machine_of
from tessera.tiling.assign import assign_layouts
from tessera.types.dims import evaluate, name, product
from tessera.types.dtypes import bf16, f16, f32, fp8_e4m3, int8, int32, uint8

sys.path.insert(0, str(Path(__file__).parents[2] / "kernels"))
from products import product_op
from test_simt_matmul import arrays, want

INTEGERS = {"accumulate": int32, "out": int32}


def module_of(fn, machine):
    return lower_amd(fn, machine) if machine.vendor == "amd" else lower_intel(assign_layouts(fn, machine), machine)


@pytest.mark.parametrize("machine, sizes, kinds", [
    (AMD_GFX942, (20, 40, 72), {"dtype": bf16}), (AMD_GFX942, (32, 32, 64), {"dtype": f16, "rhs_t": True, "out": f32}),
    (AMD_GFX942, (16, 16, 160), {"dtype": int8, **INTEGERS}), (AMD_GFX950, (32, 32, 64), {"dtype": bf16, "lhs_t": True}),
    (AMD_GFX950, (16, 24, 128), {"dtype": fp8_e4m3, "out": f32}), (INTEL_XE_HPC, (24, 40, 72), {"dtype": bf16}),
    (INTEL_XE_HPC, (16, 16, 35), {"dtype": f16, "lhs_t": True, "rhs_t": True, "out": f32}),
    (INTEL_XE_HPC, (16, 32, 96), {"dtype": int8, **INTEGERS}), (INTEL_XE_HPC, (16, 16, 64), {"dtype": uint8, "rhs_t": True, **INTEGERS})],
    ids=lambda v: str(getattr(v, "name", v)))
def test_products_on_emulated_machines(machine, sizes, kinds):
    fn = product_program(product_op(*sizes, **kinds, flat=False), machine, "kernel")
    data = arrays(fn, {})
    if kinds["dtype"] is uint8:
        data[:2] = [np.abs(a.astype(np.int8)).astype(np.uint8) for a in data[:2]]
    module = module_of(fn, machine)
    assert ("mfma" if machine.vendor == "amd" else "MatrixMultiplyAccumulateINTEL") in module.text
    (Wave if machine.vendor == "amd" else SubGroup)(module, data, []).run(int(evaluate(product(fn.attrs["grid"]), {})))
    turned = {x: kinds.get(x, False) for x in ("lhs_t", "rhs_t")}
    np.testing.assert_array_equal(data[2].astype(np.float64), want(data[0], data[1], *sizes, **turned)[0].astype(data[2].dtype))


# -- SPIR-V ----------------------------------------------------------------------------------------------------------------------
CAPABILITY, EXTENSION, MULTIPLY = 17, 10, 6237  # opcodes
MATRIX_CAPABILITY = 6236  # SubgroupMatrixMultiplyAccumulateINTEL


def read(code):
    """(capabilities, extensions, how often each opcode stands there, the last operands of MULTIPLY) of a SPIR-V module."""
    words = struct.unpack(f"<{len(code) // 4}I", code)
    assert words[0] == 0x07230203
    capabilities, extensions, count, flags, at = set(), set(), Counter(), set(), 5
    while at < len(words):
        length, opcode = words[at] >> 16, words[at] & 0xFFFF
        count[opcode] += 1
        if opcode == CAPABILITY:
            capabilities.add(words[at + 1])
        elif opcode == EXTENSION:
            extensions.add(struct.pack(f"<{length - 1}I", *words[at + 1:at + length]).split(b"\0")[0].decode())
        elif opcode == MULTIPLY:
            flags.add(words[at + length - 1])
        at += length
    return capabilities, extensions, count, flags


@pytest.mark.parametrize("kinds, flags", [({"dtype": bf16}, 0x3000), ({"dtype": f16, "rhs_t": True}, 0xC00),
                                          ({"dtype": int8, **INTEGERS}, 0x33)], ids=str)
def test_the_module_says_what_it_needs(kinds, flags):
    fn = product_program(product_op(1024, name("N"), 1024, **kinds), INTEL_XE_HPC, "kernel")
    capabilities, extensions, count, found = read(compile_module(module_of(fn, INTEL_XE_HPC), INTEL_XE_HPC))
    assert MATRIX_CAPABILITY in capabilities and extensions == {"SPV_INTEL_subgroup_matrix_multiply_accumulate"} and found == {flags}
    # 256 threads are 16 sub-groups, each with 4 of the instruction's results; a slice is two instructions deep
    assert count[MULTIPLY] == 8


@pytest.mark.parametrize("machine", [INTEL_XE, INTEL_CPU], ids=lambda m: m.name)
def test_machines_without_the_instruction_use_fma(machine):
    fn = product_program(product_op(64, 64, 64, dtype=bf16), machine, "kernel")
    capabilities, extensions, count, _ = read(compile_module(module_of(fn, machine), machine))
    assert MATRIX_CAPABILITY not in capabilities and not extensions and not count[MULTIPLY]


def test_the_loader_tells_devices_apart():
    class Device:
        def __init__(self, *extensions):
            self.extensions = " ".join(("cl_khr_fp64", *extensions))

    matrix, blocks = "cl_intel_subgroup_matrix_multiply_accumulate", "cl_intel_subgroup_2d_block_io"
    assert machine_of(Device(matrix, blocks), True) is INTEL_XE_HPC
    assert machine_of(Device(matrix), True) is INTEL_XE and machine_of(Device(), True) is INTEL_XE  # Xe-HPG: sub-groups of 8
    assert machine_of(Device(matrix, blocks), False) is INTEL_CPU


def test_fragments_of_dpas():
    """Every element of each operand is held once, where the extension's tables say."""
    for unit in INTEL_XE_HPC.instructions:
        f = INTEL_XE_HPC.fragments_of(unit)
        for steps, shape in ((f.lhs, (unit.m, unit.k)), (f.rhs, (unit.k, unit.n)), (f.result, (unit.m, unit.n))):
            held = set()
            for lane in range(16):
                for reg in range(1 << len(steps[0])):
                    taken = [s for i, s in enumerate(steps[0]) if reg >> i & 1] + [s for i, s in enumerate(steps[1]) if lane >> i & 1]
                    held.add((sum(s[0] for s in taken), sum(s[1] for s in taken)))
            assert held == {(r, c) for r in range(shape[0]) for c in range(shape[1])}
