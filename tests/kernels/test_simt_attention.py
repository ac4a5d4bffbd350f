"""Attention for machines whose threads run in warps: what its tile program computes, whichever machine it is cut for."""

import numpy as np
import pytest
from attentions import attention_op
from templates import run
from test_attention import _keep, draw, reference

from tessera.ir import text
from tessera.ir.core import BufferType
from tessera.ir.tile import verify
from tessera.kernels.simt.attention import attention_program
from tessera.kernels.simt.pieces import Cut
from tessera.machine import AMD_GFX942, AMD_GFX950, INTEL_CPU, NVIDIA_SM80, NVIDIA_SM86
from tessera.types.dims import name
from tessera.types.dtypes import bf16, bool_, f16, f32, f64


def attended(machine, heads, q, t, d, e=None, *, groups=1, dtype=f32, joined=False, sizes=None, mask=None, **kw):
    """(result, operands) of a program that is run on random operands; ``sizes``: what symbolic lengths are."""
    e = e or d
    fn = attention_program(attention_op(heads, q, t, d, e, groups=groups, dtype=dtype, joined=joined, **kw), machine, "k")
    verify(fn)
    rows, keys = (sizes or {}).get("Q", q), (sizes or {}).get("T", t)
    a, b, c = draw(np.random.default_rng(7), (heads, rows, d), (heads // groups, keys, d), (heads // groups, keys, e), dtype=dtype)
    out = np.full(heads * rows * e, np.nan, dtype.np)
    held = [(x.transpose(1, 0, 2).copy() if joined else x).ravel() for x in (a, b, c)]
    run(fn, [*held, *([] if mask is None else [mask]), out], sizes)
    got = out.reshape(rows, heads, e).transpose(1, 0, 2) if joined else out.reshape(heads, rows, e)
    return got.astype(np.float64), (a, b, c)


@pytest.mark.parametrize("machine", [NVIDIA_SM80, INTEL_CPU], ids=lambda m: m.vendor)
@pytest.mark.parametrize("heads, q, t, d, e, groups, causal, joined", [
    (2, 5, 7, 4, 4, 1, False, False), (2, 30, 70, 20, 40, 2, False, False), (1, 33, 33, 16, 16, 1, True, False),
    (2, 1, 90, 8, 8, 1, True, False), (1, 20, 50, 16, 33, 1, True, True), (1, 70, 9, 8, 8, 1, True, False),
    (3, 1, 1, 3, 1, 3, False, False), (2, 40, 80, 96, 256, 1, False, True), (1, 3, 0, 8, 8, 1, False, False)])
def test_every_form(machine, heads, q, t, d, e, groups, causal, joined):
    """Widths that are no powers of two, heads that share keys, heads side by side, rows that see nothing."""
    got, operands = attended(machine, heads, q, t, d, e, groups=groups, causal=causal, joined=joined)
    assert np.abs(got - reference(*operands, causal, groups)).max() <= 2e-6


@pytest.mark.parametrize("machine", [NVIDIA_SM80, AMD_GFX942, AMD_GFX950, INTEL_CPU], ids=lambda m: m.cpu or m.vendor)
@pytest.mark.parametrize("dtype, d, bound", [(bf16, 64, 1e-2), (f16, 80, 1e-3), (f64, 24, 1e-14)])
def test_dtypes(machine, dtype, d, bound):
    got, operands = attended(machine, 2, 70, 100, d, dtype=dtype, causal=True)
    assert np.abs(got - reference(*operands, True)).max() <= bound


@pytest.mark.parametrize("machine, causal", [(NVIDIA_SM80, False), (NVIDIA_SM80, True), (INTEL_CPU, True)],
                         ids=lambda x: getattr(x, "vendor", x))
def test_symbolic_lengths(machine, causal):
    """One program for every length, of no queries and of no keys too."""
    for q, t in ((1, 1), (1, 130), (70, 70), (50, 300), (0, 4), (5, 0)):
        got, operands = attended(machine, 2, name("Q"), name("T"), 16, causal=causal, sizes={"Q": q, "T": t})
        assert not got.size or np.abs(got - reference(*operands, causal)).max() <= 3e-6, (q, t)


@pytest.mark.parametrize("machine", [NVIDIA_SM80, INTEL_CPU], ids=lambda m: m.vendor)
@pytest.mark.parametrize("dtype, bound", [(f32, 2e-6), (bf16, 1e-2)])
def test_masks(machine, dtype, bound):
    """A mask over the keys; rows that see nothing give 0."""
    mask = np.random.default_rng(3).random(37) < 0.5
    mask[:4] = False
    got, operands = attended(machine, 2, 37, 37, 16, dtype=dtype, causal=True, extra=[BufferType(bool_, (37,))], score=_keep, mask=mask)
    assert np.abs(got - reference(*operands, True, mask=mask)).max() <= bound
    assert np.all(got[:, :4] == 0)


@pytest.mark.parametrize("machine", [NVIDIA_SM80, INTEL_CPU], ids=lambda m: m.vendor)
def test_scores_far_apart(machine):
    """The running maximum keeps every exponent at or below zero, however large the scores; a NaN stays in its row."""
    fn = attention_program(attention_op(1, 150, 150, 8), machine, "k")
    a, b, c = draw(np.random.default_rng(6), *[(1, 150, 8)] * 3)
    a *= 300
    a[0, 3] = np.nan
    out = np.zeros(150 * 8, np.float32)
    run(fn, [a.ravel(), b.ravel(), c.ravel(), out])
    rows = np.arange(150) != 3
    assert np.abs(out.reshape(1, 150, 8) - reference(a, b, c))[:, rows].max() <= 2e-3
    assert np.isnan(out.reshape(150, 8)[3]).all()


def test_how_the_work_is_cut():
    assert Cut.of(NVIDIA_SM80, bf16, f32, 1000, 64) == Cut(64, 64, 128, 64, 8, True)
    assert Cut.of(NVIDIA_SM80, bf16, f32, 1, 64).threads == 32        # one query: one warp
    assert Cut.of(NVIDIA_SM80, bf16, f32, 1000, 256).keys == 16       # a wide head leaves scores few registers
    assert Cut.of(NVIDIA_SM86, bf16, f32, 1000, 128).keys == 32       # two stages of keys and values in less shared memory
    assert Cut.of(AMD_GFX942, f16, f32, 1000, 128) == Cut(128, 32, 256, 64, 32, True)
    assert not Cut.of(NVIDIA_SM80, f32, f32, 1000, 64).unit
    assert [Cut.of(NVIDIA_SM80, f32, f32, q, 64, 16).rows for q in (1, 9, 1000)] == [1, 16, 16]
    assert Cut.of(NVIDIA_SM80, bf16, f32, 1000, 64).pieces(80) == ((0, 64), (64, 16))
    assert Cut.of(NVIDIA_SM80, bf16, f32, 1000, 64).pieces(37) == ((0, 32), (32, 16))


def test_programs_print_and_parse_back():
    fn = attention_program(attention_op(2, name("Q"), name("T"), 64, dtype=bf16, causal=True), NVIDIA_SM80, "k")
    again = text.parse_function(str(fn))
    verify(again)
    assert str(again) == str(fn) and again.attrs["warps"] == "rows"
