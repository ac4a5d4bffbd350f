"""Attention's reverse pass for machines whose threads run in warps: both kernels in the interpreter, against f64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import templates
from test_attention_backward import exact, graph, operands

from tessera.ir.core import Function, Op
from tessera.ir.tile import verify
from tessera.kernels.simt.attention_backward import attention_backward_program
from tessera.kernels.simt.pieces import Cut
from tessera.machine import AMD_GFX942, INTEL_CPU, NVIDIA_SM80
from tessera.scheduling import schedule
from tessera.types import dtypes as dt
from tessera.types.dims import name


def programs(arrays: list[np.ndarray], attrs: dict[str, Any], machine: Any, shapes: Any = None) -> list[tuple[Op, Function]]:
    """The launches of a reverse pass, each with its tile program: one cuts the queries up, one the keys."""
    ops = [op for op in schedule(graph(arrays, attrs, shapes), machine).walk() if op.name == "template"]
    assert [op.attrs["writes"] for op in ops] == [("dq",), ("dk", "dv")]
    made = [(op, attention_backward_program(op, machine, "k")) for op in ops]
    for _, fn in made:
        assert fn is not None
        verify(fn)
    return made


def given(op: Op, arrays: list[np.ndarray], want: tuple[np.ndarray, ...]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """(the buffers of a launch, the results that it makes)."""
    results = [want[("dq", "dk", "dv").index(r)] for r in op.attrs["writes"]]
    blank = [np.full(r.shape, np.nan, op.attrs["compute"].np) for r in results]
    return [*[a.ravel() for a in arrays[:4]], *arrays[4:6], *blank, *[a.ravel() for a in arrays[6:]]], results


def worst(arrays: list[np.ndarray], attrs: dict[str, Any], machine: Any, shapes: Any = None, sizes: dict[str, int] | None = None) -> float:
    want = exact([a.astype(np.float32) if a.dtype.itemsize == 2 else a for a in arrays], attrs)
    found = []
    for op, fn in programs(arrays, attrs, machine, shapes):
        buffers, results = given(op, arrays, want)
        templates.run(fn, buffers, sizes)
        found += [np.abs(b.reshape(r.shape) - r).max(initial=0) for b, r in zip(buffers[6:], results, strict=False)]
    return float(max(found))


@pytest.mark.parametrize("machine", [NVIDIA_SM80, INTEL_CPU], ids=lambda m: m.vendor)
@pytest.mark.parametrize("case", ["causal", "grouped", "one key head", "bool mask", "float mask", "more queries", "no batch", "one row"])
def test_every_form(machine: Any, case: str) -> None:
    assert worst(*operands(case), machine) <= 2e-6


@pytest.mark.parametrize("machine", [NVIDIA_SM80, AMD_GFX942], ids=lambda m: m.vendor)
@pytest.mark.parametrize("case", ["grouped", "bool mask", "blocks"])
def test_by_matrix_instructions(machine: Any, case: str) -> None:
    """p and ds are rounded to 16 bits between products."""
    arrays, attrs = operands(case)
    assert worst([a.astype(dt.bf16.np) if i < 4 else a for i, a in enumerate(arrays)], attrs, machine) <= 3e-2


@pytest.mark.parametrize("machine", [NVIDIA_SM80, INTEL_CPU], ids=lambda m: m.vendor)
def test_f64_and_symbolic_sizes(machine: Any) -> None:
    arrays, attrs = operands("grouped", np.float64)
    rows = [name("S"), name("T"), name("T"), name("S")]
    shapes = [(*a.shape[:-2], n, a.shape[-1]) for a, n in zip(arrays[:4], rows, strict=False)]
    shapes += [(*a.shape[:-1], rows[0]) for a in arrays[4:6]]
    assert worst(arrays, attrs, machine, shapes, {"S": arrays[0].shape[-2], "T": arrays[1].shape[-2]}) <= 1e-12


def test_how_the_work_is_cut() -> None:
    assert Cut.backward(NVIDIA_SM80, dt.bf16, dt.f32, 1000, 128) == Cut(64, 32, 128, 64, 8, True)
    assert Cut.backward(NVIDIA_SM80, dt.bf16, dt.f32, 1000, 512).threads == 256  # two results of 256 columns each
    assert Cut.backward(AMD_GFX942, dt.bf16, dt.f32, 1000, 512).threads == 256   # whose threads have twice the registers
