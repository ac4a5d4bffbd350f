"""The library's product for NVIDIA GPUs without warp groups: right on an emulated warp machine, and nothing slow in its PTX."""

import sys
from pathlib import Path

import numpy as np
import pytest
from emulated import Emulated
from test_emit import assemble, ptx

from tessera.kernels.simt.matmul import product_program
from tessera.machine import NVIDIA_SM80, NVIDIA_SM89
from tessera.targets.nvidia import kernels
from tessera.types.dims import evaluate, name, product
from tessera.types.dtypes import bf16, f16, f32, f64, fp8_e4m3, int8, int32

sys.path.insert(0, str(Path(__file__).parents[2] / "kernels"))
from products import product_op
from test_simt_matmul import arrays, want

INTEGERS = {"accumulate": int32, "out": int32}


@pytest.mark.parametrize("machine, sizes, kinds", [
    (NVIDIA_SM80, (24, 24, 72), {"dtype": bf16}), (NVIDIA_SM80, (17, 19, 37), {"dtype": f16, "out": f32}),
    (NVIDIA_SM80, (16, 32, 64), {"dtype": bf16, "lhs_t": True, "rhs_t": True}), (NVIDIA_SM80, (16, 16, 80), {"dtype": int8, **INTEGERS}),
    (NVIDIA_SM89, (16, 16, 96), {"dtype": fp8_e4m3, "out": f32, "rhs_t": True}), (NVIDIA_SM80, (16, 17, 19), {"dtype": f32})],
    ids=lambda v: str(getattr(v, "cpu", v)))
def test_products_on_an_emulated_machine(machine, sizes, kinds):
    fn = product_program(product_op(*sizes, **kinds, flat=False), machine, "kernel")
    data = arrays(fn, {})
    module = kernels.lower(fn, machine)
    assert ("mma.sync" in module.text) == (kinds["dtype"] is not f32)
    Emulated(module, data, []).run(int(evaluate(product(fn.attrs["grid"]), {})))
    turned = {x: kinds.get(x, False) for x in ("lhs_t", "rhs_t")}
    np.testing.assert_array_equal(data[2].astype(np.float64), want(data[0], data[1], *sizes, **turned)[0].astype(data[2].dtype))


@pytest.mark.parametrize("machine, sizes, kinds", [
    (NVIDIA_SM80, (4096,) * 3, {"dtype": bf16}), (NVIDIA_SM80, (4096,) * 3, {"dtype": f16, "rhs_t": True}),
    (NVIDIA_SM80, (1024,) * 3, {"dtype": bf16, "lhs_t": True, "batch": (("b0", 8),)}),
    (NVIDIA_SM80, (4096,) * 3, {"dtype": int8, "rhs_t": True, **INTEGERS}), (NVIDIA_SM89, (4096,) * 3, {"dtype": fp8_e4m3, "rhs_t": True}),
    (NVIDIA_SM89, tuple(map(name, "MNK")), {"dtype": bf16}), (NVIDIA_SM80, (2048,) * 3, {"dtype": f32}),
    (NVIDIA_SM80, (1024,) * 3, {"dtype": f64})], ids=lambda v: str(getattr(v, "cpu", v)))
def test_the_assembler_finds_nothing_slow(machine, sizes, kinds, tmp_path):
    _, text = ptx(product_program(product_op(*sizes, **kinds), machine, "kernel"), machine)
    if kinds["dtype"] in (f32, f64):
        assert "mma.sync" not in text and "fma.rn" in text and "ld.shared.v" in text
    else:
        assert text.count("mma.sync.aligned") == 32 and "ldmatrix.sync.aligned.m8n8.x4" in text
        assert "cp.async.cg.shared.global" in text and "ld.shared" not in text
    assert "st.local" not in text
    assert not kernels.complaints(assemble(text, tmp_path, machine.cpu))
