"""Attention on Intel's OpenCL runtime: the bits of the interpreter, twice the same, near f64; programs that its compiler takes quickly."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from attentions import attention_function, attention_op
from kernels_on_opencl import check_here
from simt_harness import compile_module, lower, opencl
from test_attention import _keep, draw, reference
from test_attention_backward import exact, operands
from test_simt_attention_backward import given, programs

from tessera.ir.core import BufferType
from tessera.kernels.simt.attention import attention_program
from tessera.machine import INTEL_CPU, INTEL_XE
from tessera.targets.simt.emit import emit
from tessera.types.dims import name
from tessera.types.dtypes import bf16, bool_, f16, f32

pytestmark = pytest.mark.skipif(opencl() is None, reason="Intel's OpenCL runtime is not installed")


@pytest.mark.parametrize("heads, q, t, d, e, dtype, bound, kw", [
    (4, 37, 50, 20, 40, f32, 2e-6, {"groups": 2, "causal": True, "joined": True}),
    (2, 33, 33, 32, 32, bf16, 2e-2, {"causal": True, "extra": [BufferType(bool_, (33,))], "score": _keep}),
    (1, name("Q"), name("T"), 64, 64, f16, 1e-3, {})], ids=["shared keys", "mask", "symbolic"])
def test_bits_of_the_interpreter(heads: int, q: Any, t: Any, d: int, e: int, dtype: Any, bound: float, kw: dict[str, Any]) -> None:
    sizes = {"Q": 40, "T": 70} if not isinstance(q, int) else {}
    rows, keys, groups, joined = sizes.get("Q", q), sizes.get("T", t), kw.get("groups", 1), kw.get("joined", False)
    operands = draw(np.random.default_rng(1), (heads, rows, d), (heads // groups, keys, d), (heads // groups, keys, e), dtype=dtype)
    mask = np.arange(keys) % 3 != 1 if "score" in kw else None
    fn = attention_function(heads, q, t, d, e, dtype=dtype, machine=INTEL_CPU, **kw)
    arrays = [(x.transpose(1, 0, 2) if joined else x).ravel().copy() for x in operands]
    arrays += [*([] if mask is None else [mask]), np.zeros(heads * rows * e, dtype.np)]
    out = check_here(fn, arrays, sizes)[-1]
    got = (out.reshape(rows, heads, e).transpose(1, 0, 2) if joined else out.reshape(heads, rows, e)).astype(np.float64)
    assert np.abs(got - reference(*operands, kw.get("causal", False), groups, mask)).max() <= bound


def test_reverse() -> None:
    """Both kernels: heads that share keys, causal, widths that are no powers of two."""
    arrays, attrs = operands("grouped")
    want = exact(arrays, attrs)
    for op, fn in programs(arrays, attrs, INTEL_CPU):
        buffers, results = given(op, arrays, want)
        for got, r in zip(check_here(fn, buffers)[6:], results, strict=True):
            assert np.abs(got.reshape(r.shape) - r).max() <= 2e-6


def test_the_program_is_short_and_meets_seldom() -> None:
    """Intel's compiler takes its time by the length of a program and for values that live across barriers of a block."""
    fn = attention_program(attention_op(2, 1000, 1000, 256, dtype=bf16, causal=True), INTEL_CPU, "k")
    text = emit(lower(fn, INTEL_CPU), INTEL_CPU).text
    assert text.count("\n") < 3500 and "shuffle" not in text and "_Z7barrierj" not in text
    assert text.count("call spir_func void @_Z17sub_group_barrierj") <= 12


def test_a_gpus_program_is_built() -> None:
    """Intel's GPUs have threads of their own: the form of registers (built, not run here)."""
    module = emit(lower(attention_program(attention_op(2, 1000, 1000, 64, causal=True), INTEL_XE, "k"), INTEL_XE), INTEL_XE)
    assert compile_module(module, INTEL_XE)[:4] == b"\x03\x02\x23\x07" and module.threads == 128 and module.shared <= INTEL_XE.shared_bytes
