"""The op sweep through the levels: the Graph interpreter always, the compiled path as one batch of programs."""

from __future__ import annotations

import importlib
import itertools
from typing import Any

import numpy as np
import pytest
import sweep

from tessera.ir import interpret_sched
from tessera.ir.graph import verify
from tessera.ir.interpret_graph import interpret
from tessera.machine import host_cpu
from tessera.scheduling import schedule
from tessera.transforms.pipeline import optimize

CASES = sweep.cases()
BATCHES = list(sweep.batches(CASES, 200))


@pytest.mark.parametrize("group", BATCHES, ids=lambda g: f"{g[0].op}..{g[-1].op}")
def test_graph_interpreter(group: Any) -> None:
    fn, arrays = sweep.program(group)
    verify(fn)
    assert not sweep.failures(group, interpret(fn, arrays))


def test_cover_is_a_cover() -> None:
    seen = {(c.op, c.dtype) for c in CASES}
    for name, op in sweep.OPS.items():
        if name not in (*sweep.NOT_UNIQUE, "bitcast"):
            assert {d for o, d in seen if o == name} == set(op.dtypes), name
    shapes = {(c.op, c.label) for c in CASES if sweep.OPS[c.op].pointwise}
    for name in {o for o, _ in shapes} - {"convert", "bitcast"}:
        assert {s for o, s in shapes if o == name} == set(sweep.SHAPES), name
    both = {(c.dtype, c.label) for c in CASES if sweep.OPS[c.op].pointwise}
    assert not set(itertools.product(sweep.dt.ALL, sweep.SHAPES)) - both


def test_every_case_is_its_own_oracle() -> None:
    """A wrong result is noticed: the same results, each moved by more than its bound, fail for every case that has any."""
    for c in CASES[::7]:
        good = [r.astype(t.dtype.np) for r, t in zip(c.reference(c.arrays), sweep.OPS[c.op].infer(c.types, c.attrs), strict=True)]
        assert c.check(good) is None, c.check(good)
        moved = [np.where(r == 0, r + r.dtype.type(1), -r) if r.dtype.kind in "fi" and r.dtype not in sweep.LOW else None
                 for r in good]
        for i, bad in enumerate(moved):
            if bad is not None and bad.size and not np.isnan(bad).all() and (good[i] != bad).any():
                assert c.check([*good[:i], bad.astype(good[i].dtype), *good[i + 1:]]) is not None, c.id


COMPILED = list(sweep.batches(CASES, 90))


@pytest.mark.parametrize("group", COMPILED, ids=lambda g: f"{g[0].op}..{g[-1].op}")
def test_compiled(group: Any) -> None:
    """Many ops in one program: the whole way to machine code."""
    fn, arrays = sweep.program(group)
    assert not sweep.failures(group, compiler().compile(fn)(arrays))


@pytest.mark.slow
@pytest.mark.parametrize("op", sorted({c.op for c in CASES}))
def test_compiled_in_full(op: str) -> None:
    """The whole product of op, dtype and shape."""
    for group in sweep.batches([c for c in sweep.cases(full=True) if c.op == op], 90):
        fn, arrays = sweep.program(group)
        assert not sweep.failures(group, compiler().compile(fn)(arrays))


def compiler() -> Any:
    return importlib.import_module("tessera.runtime").host_compiler()


def test_guards_inside_guards() -> None:
    """A uniform guard inside one that depends on lanes: its loads are masked, so its value has lanes too."""
    import tessera as ts

    @ts.jit
    def twice(x: Any) -> Any:
        return ts.stack([ts.concat([x, x], 0), ts.pad(x, [(2, 0), (0, 0)], 1.0)], -1)

    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    np.testing.assert_array_equal(twice(x).numpy(), np.stack([np.concatenate([x, x]), np.pad(x, [(2, 0), (0, 0)], constant_values=1)], -1))


@pytest.mark.parametrize("group", BATCHES, ids=lambda g: f"{g[0].op}..{g[-1].op}")
def test_schedule_interpreter(group: Any) -> None:
    """After the Graph passes and the scheduler, before any code is generated."""
    machine = host_cpu()
    fn, arrays = sweep.program(group)
    program = schedule(optimize(fn, machine), machine)
    results = [np.zeros(t.shape, t.dtype.np) for t in fn.result_types]
    interpret_sched.interpret(program, [np.ascontiguousarray(a).reshape(a.shape) for a in arrays] + results)
    assert not sweep.failures(group, results)
