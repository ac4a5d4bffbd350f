"""Runs a hand-written sched kernel through both interpreters: as it stands, and lowered to a tile program."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tessera import ir as registry
from tessera.ir import interpret_sched, interpret_tile
from tessera.ir.core import Function
from tessera.ir.text import parse_function
from tessera.ir.tile import verify
from tessera.machine import cpu
from tessera.tiling.lower import lower_kernel
from tessera.types.dims import evaluate

MACHINES = (cpu.X86_AVX512, cpu.X86_AVX2, cpu.AARCH64_NEON)


def sched(text: str) -> Function:
    return parse_function(text)


def lowered(fn: Function, machine: Any = cpu.X86_AVX512, **decisions: Any) -> Function:
    op = fn.body.ops[0]
    op.attrs |= decisions
    made = lower_kernel(op, machine, "k", fn.attrs.get("sizes", ()))
    verify(made)
    return made


def same(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal bits, any NaN counting as any other."""
    if a.dtype.kind == "f" and bool(np.isnan(a).any()):
        return bool((np.isnan(a) == np.isnan(b)).all()) and same(np.nan_to_num(a), np.nan_to_num(b))
    return a.shape == b.shape and a.tobytes() == b.tobytes()


def run_unexpanded(fn: Function, arrays: Sequence[np.ndarray], sizes: dict[str, int]) -> None:
    """Run a tile program with transcendentals as the sched interpreter has them: lowering must not change a bit."""
    saved, registry.EXPAND_TILE = registry.EXPAND_TILE, None
    try:
        interpret_tile.run(fn, arrays, sizes, seed=1)
    finally:
        registry.EXPAND_TILE = saved


def check(text: str, arrays: Sequence[np.ndarray], sizes: dict[str, int] | None = None,
          machines: Sequence[Any] = MACHINES, **decisions: Any) -> list[np.ndarray]:
    """Run ``text`` (one kernel) on copies of ``arrays``; the arrays afterwards, equal in both interpreters."""
    expected = [a.copy() for a in arrays]
    interpret_sched.interpret(sched(text), expected, sizes or {})
    for machine in machines:
        made = lowered(sched(text), machine, **decisions)
        got = [a.copy() for a in arrays]
        flat = [g.reshape(-1) for g in got]
        flat = [g.view(g.real.dtype) if g.dtype.kind == "c" else g for g in flat]
        for p, g in zip(made.args, flat, strict=False):
            assert evaluate(p.type.shape[0], sizes or {}) == g.size
        run_unexpanded(made, flat, sizes or {})
        for i, (e, g) in enumerate(zip(expected, got, strict=True)):
            assert same(e, g), f"{machine.name}: operand {i} differs: expected {e.ravel()[:8]}, got {g.ravel()[:8]}\n{made}"
    return expected
