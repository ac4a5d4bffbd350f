"""The library's attention for sm_80 and later: on the emulated warp machine, and through a PTX assembler where one is at hand."""

import re

import numpy as np
import pytest
from attentions import attention_op
from emulated import Emulated
from test_attention import draw, reference
from test_attention_backward import exact
from test_emit import assemble, ptx
from test_simt_attention_backward import given, programs

from tessera.kernels.simt.attention import attention_program
from tessera.machine import NVIDIA_SM80, NVIDIA_SM90
from tessera.ops.table import OPS
from tessera.targets.nvidia import kernels
from tessera.types.dtypes import bf16, f16


@pytest.mark.parametrize("heads, q, t, d, causal, joined, dtype", [
    (1, 20, 70, 16, True, False, bf16), (2, 17, 33, 24, False, True, f16)])
def test_emulated(heads, q, t, d, causal, joined, dtype):
    """Fragments, stages that run ahead, and weights that pass from one product to the next in registers."""
    operands = draw(np.random.default_rng(0), (heads, q, d), *[(heads, t, d)] * 2, dtype=dtype)
    fn = attention_program(attention_op(heads, q, t, d, dtype=dtype, causal=causal, joined=joined), NVIDIA_SM80, "k")
    module = kernels.lower(fn, NVIDIA_SM80)
    assert "mma.sync" in module.text and "cp.async.cg" in module.text and module.threads == 64
    arrays = [(x.transpose(1, 0, 2) if joined else x).ravel().copy() for x in operands] + [np.zeros(heads * q * d, dtype.np)]
    Emulated(module, arrays).run(heads)
    got = arrays[3].reshape(q, heads, d).transpose(1, 0, 2) if joined else arrays[3].reshape(heads, q, d)
    assert np.abs(got.astype(np.float64) - reference(*operands, causal)).max() < 2**-6


@pytest.mark.parametrize("machine, d, kw", [
    (NVIDIA_SM80, 64, {"causal": True}), (NVIDIA_SM80, 128, {}), (NVIDIA_SM80, 256, {}), (NVIDIA_SM90, 96, {"joined": True})],
    ids=lambda x: getattr(x, "cpu", str(x)))
def test_assembled(machine, d, kw, tmp_path):
    """Products by mma.sync from ldmatrix and cp.async, weights that never leave their registers, nothing spilled."""
    fn = attention_program(attention_op(4, 1000, 1000, d, dtype=bf16, **kw), machine, "k")
    _, text = ptx(fn, machine)
    keys = 16 if d == 256 else 64
    assert text.count("mma.sync.") == 2 * (keys // 8) * (d // 16)
    assert "ldmatrix" in text and "cp.async.cg" in text and "ex2.approx" in text and ".local" not in text
    loop = max(re.split(r"\n\$L\w+:", text), key=lambda part: part.count("mma.sync"))
    assert "st.shared" not in loop and "bar.sync" in text
    assert not kernels.complaints(assemble(text, tmp_path, machine.cpu))


def reverse(d, s, t, dtype, causal, machine=NVIDIA_SM80, heads=1):
    """(operands, their attributes, launches with programs) of a reverse pass."""
    rng = np.random.default_rng(3)
    q, k, v, g = (rng.standard_normal((heads, n, d)).astype(dtype.np) for n in (s, t, t, s))
    wide = [x.astype(np.float32) for x in (q, k, v, g)]
    attrs = {"scale": d ** -0.5, "causal": causal}
    out, lse = OPS["attention_forward"].reference(*wide[:3], **attrs)
    arrays = [q, k, v, g, lse.astype(np.float32), np.sum(out * wide[3], -1).astype(np.float32)]
    return arrays, attrs, programs(arrays, attrs, machine)


def test_reverse_emulated():
    """Stages that two products read in two ways, p and ds as left operands from the registers where they were made."""
    arrays, attrs, made = reverse(16, 20, 40, bf16, True)
    want = exact([a.astype(np.float32) for a in arrays], attrs)
    for op, fn in made:
        module = kernels.lower(fn, NVIDIA_SM80)
        assert "mma.sync" in module.text and "cp.async.cg" in module.text
        buffers, results = given(op, arrays, want)
        Emulated(module, buffers).run(1)
        for b, r in zip(buffers[6:], results, strict=True):
            assert np.abs(b.reshape(r.shape) - r).max() < 3e-2


@pytest.mark.parametrize("machine, d", [(NVIDIA_SM80, 64), (NVIDIA_SM80, 128), (NVIDIA_SM80, 256), (NVIDIA_SM90, 64)],
                         ids=lambda x: getattr(x, "cpu", str(x)))
def test_reverse_assembled(machine, d, tmp_path):
    for op, fn in reverse(d, 200, 200, bf16, True, machine)[2]:
        _, text = ptx(fn, machine)
        assert "mma.sync" in text and "ldmatrix" in text and "cp.async.cg" in text and ".local" not in text
        assert not kernels.complaints(assemble(text, tmp_path, machine.cpu)), op.attrs["writes"]
