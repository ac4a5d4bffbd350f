"""Schedule a Graph function and compare its interpretation with the Graph interpreter's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import tessera  # noqa: F401  (assembles the package)
from tessera import ops  # noqa: F401
from tessera.ir import sched
from tessera.ir.core import Function
from tessera.ir.interpret_graph import REFERENCES
from tessera.ir.interpret_graph import interpret as run_graph
from tessera.ir.interpret_sched import interpret as run_sched
from tessera.ir.text import parse_function
from tessera.machine import X86_AVX512
from tessera.ops.table import OPS
from tessera.scheduling import schedule
from tessera.scheduling.memory import lifetimes, memory_report
from tessera.transforms.pipeline import optimize
from tessera.types.dims import evaluate, substitute

REFERENCES.update({n: d.reference for n, d in OPS.items()})
LAUNCH = ("kernel", "template", "external", "launch", "call")


def lower(graph: str | Function, optimise: bool = True) -> Function:
    """The verified Schedule program of a graph; its text reads back to the same program."""
    fn = parse_function(graph) if isinstance(graph, str) else graph
    out = schedule(optimize(fn, X86_AVX512) if optimise else fn, X86_AVX512)
    sched.verify(out)
    text = str(out)
    again = parse_function(text)
    sched.verify(again)
    assert str(again) == text
    return out


def launches(fn: Function) -> list[str]:
    """Kinds of the launches at the top level, templates by name."""
    return [op.attrs["template"] if op.name == "template" else op.name for op in fn.body.ops if op.name in LAUNCH]


def arguments(fn: Function, sizes: Mapping[str, int], seed: int = 0) -> list[Any]:
    """Random inputs for a Graph function."""
    rng = np.random.default_rng(seed)
    out = []
    for a in fn.args:
        shape = [evaluate(d, sizes) for d in a.type.shape]
        d = a.type.dtype
        x = rng.standard_normal(shape) if d.is_inexact else rng.integers(0, 2, shape)
        out.append(np.asarray(x).astype(d.np))
    return out


def check(graph: str | Function, sizes: Mapping[str, int] | None = None, tolerance: float = 2e-6, inputs: Any = None,
          optimise: bool = True, sums: bool = False) -> Function:
    """Lower, run both interpreters on random inputs, compare; the Schedule program is returned.

    ``sums``: a program of sums and products alone, whose errors are measured against the same program on the inputs'
    magnitudes (terms that cancel leave an error of their own size, in whatever order they are added).
    """
    fn = parse_function(graph) if isinstance(graph, str) else graph
    out = lower(fn, optimise)
    sizes = dict(sizes or {})
    xs = inputs if inputs is not None else arguments(fn, sizes)
    expected = run_graph(fn, xs, sizes)
    got = [np.full_like(r, 7 if r.dtype != np.bool_ else True) for r in expected]
    given = [x.copy() for x in xs]
    run_sched(out, [*given, *got], sizes)
    for k, i in out.attrs.get("aliases", ()):  # a result in a donated parameter's memory
        got[k] = given[i]
    magnitudes = run_graph(fn, [np.abs(x) for x in xs], sizes) if sums else [None] * len(expected)
    for e, g, size_of in zip(expected, got, magnitudes, strict=True):
        if e.dtype.kind in "biu":
            assert np.array_equal(e, g)
        elif size_of is not None:
            error = np.abs(g.astype(np.float64) - e.astype(np.float64))
            assert np.all(error <= tolerance * size_of), f"{np.max(error / size_of)} of the terms' sizes"
        else:
            wide = np.complex128 if e.dtype.kind == "c" else np.float64
            np.testing.assert_allclose(g.astype(wide), e.astype(wide), rtol=tolerance, atol=tolerance)
    return out


def size(d: Any, env: Mapping[str, int]) -> int:
    return evaluate(substitute(d, env), env)


def check_memory(program: Function, env: Mapping[str, int]) -> None:
    """Temporaries that live at the same time lie apart, inside the arena, on multiples of 64 bytes."""
    lives = lifetimes(program)
    arena = size(program.attrs["arena"], env)
    places = []
    for x in lives:
        start = size(x.ops[0].attrs["offset"], env)
        assert start % 64 == 0 and start + size(x.size, env) <= arena
        places.append((start, start + size(x.size, env), x))
    for i, (a0, a1, x) in enumerate(places):
        for b0, b1, y in places[i + 1:]:
            handed_over = x.end == y.start or y.end == x.start  # in place: one dies in the launch that makes the other
            if x.start <= y.end and y.start <= x.end and a0 < b1 and b0 < a1:
                assert handed_over and (a0, a1) == (b0, b1)
    used, without, peak = memory_report(program).at(env)
    assert peak <= used <= without
