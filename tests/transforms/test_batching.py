"""The batching engine over the op table: ``vmap`` of every op equals stacking."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "ops"))
sys.path.insert(0, str(Path(__file__).parents[1] / "scheduling"))
import sweep
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from random_graphs import graphs
from ways import host_compiler

from tessera.ir.core import TensorType
from tessera.ir.graph import verify
from tessera.ir.interpret_graph import interpret
from tessera.ops.table import OPS
from tessera.tracing.recorder import Trace, bind, tracing
from tessera.transforms.batching import batch_function
from tessera.types import dims
from tessera.types.dtypes import as_dtype

SIZE = 3


@dataclass
class Mapped:
    """One op over a batch: a case for each example, and which operands are mapped."""

    examples: list[sweep.Case]
    flags: tuple[bool, ...]

    @property
    def first(self) -> sweep.Case:
        return self.examples[0]

    @property
    def id(self) -> str:
        return f"{self.first.id}-{''.join('01'[m] for m in self.flags)}"

    def arrays(self) -> list[np.ndarray]:
        return [np.stack([c.arrays[i] for c in self.examples]) if m else self.first.arrays[i] for i, m in enumerate(self.flags)]

    def one(self) -> Any:
        """The Graph of one example."""
        trace = Trace(self.first.op)
        with tracing(trace):
            made = bind(self.first.op, *[trace.parameter(t) for t in self.first.types], **self.first.attrs)
            return trace.finish(list(made) if isinstance(made, tuple) else [made])


def example(name: str, dtype: Any, k: int, b: int) -> tuple[list[np.ndarray], dict[str, Any]]:
    if OPS[name].pointwise:
        arrays, attrs = sweep.pointwise(name, dtype, sweep.SHAPES[k])
        return [np.roll(a.ravel(), b).reshape(a.shape) for a in arrays], attrs
    return sweep.MAKERS[name][1](dtype, k, sweep.rng_for(name, dtype, k, b))


def mapped_cases() -> Iterator[Mapped]:
    """Every op on every sample of its kind, in a dtype of its own for each; all operands mapped, and each alone."""
    for n, (name, op) in enumerate(OPS.items()):
        if name in (*sweep.NOT_UNIQUE, "convert", "bitcast"):
            continue
        count = 2 if op.pointwise else sweep.MAKERS[name][0]
        for k in range(count):
            floats = [d for d in op.dtypes if d.is_float] or list(op.dtypes)
            dtype = floats[(n + k) % len(floats)]
            label = sweep.SHAPES[(n + k) % len(sweep.SHAPES)] if op.pointwise else f"s{k}"
            at = (n + k) % len(sweep.SHAPES) if op.pointwise else k
            made = [example(name, dtype, at, b) for b in range(SIZE)]
            arity = len(made[0][0])
            masks = {tuple(m) for m in [[True] * arity, *[[i == j for j in range(arity)] for i in range(arity)]] if any(m)}
            for flags in sorted(masks):
                cases = [sweep.Case(name, dtype, label, [a if m else first for a, first, m in zip(arrays, made[0][0], flags, strict=True)],
                                    attrs) for arrays, attrs in made]
                yield Mapped(cases, flags)


CASES = list(mapped_cases())
GROUPS = [list(g) for _, g in itertools.groupby(CASES, key=lambda c: OPS[c.first.op].family)]


def program(group: list[Mapped], size: Any = SIZE) -> tuple[Any, list[np.ndarray]]:
    trace, arrays, results = Trace("batched"), [], []
    with tracing(trace):
        for c in group:
            types = [TensorType(as_dtype(a.dtype), ((size, *a.shape[1:]) if m else a.shape))
                     for a, m in zip(c.arrays(), c.flags, strict=True)]
            args = [trace.parameter(t) for t in types]
            outs, mapped = batch_function(c.one(), args, c.flags, [False] * len(args), size)
            assert all(mapped)
            results += outs
            arrays += c.arrays()
        fn = trace.finish(results)
    verify(fn)
    return fn, arrays


def failures(group: list[Mapped], results: list[np.ndarray]) -> list[str]:
    out, at = [], 0
    for c in group:
        n = len(OPS[c.first.op].infer(c.first.types, c.first.attrs))
        for b, one in enumerate(c.examples):
            wrong = one.check([np.asarray(r)[b] for r in results[at:at + n]])
            if wrong:
                out.append(f"{c.id}, example {b}: {wrong}")
        at += n
    return out


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: OPS[g[0].first.op].family)
def test_every_op_equals_stacking(group: list[Mapped]) -> None:
    fn, arrays = program(group)
    assert not failures(group, interpret(fn, arrays))


@pytest.mark.parametrize("group", GROUPS, ids=lambda g: OPS[g[0].first.op].family)
def test_symbolic_batch(group: list[Mapped]) -> None:
    """No rule needs the number of examples."""
    fn, arrays = program(group, dims.name("B"))
    assert not failures(group, interpret(fn, arrays))


COMPILED = [CASES[i:i + 80] for i in range(0, len(CASES), 80)]


@pytest.mark.parametrize("group", COMPILED, ids=lambda g: f"{g[0].id}..{g[-1].id}")
def test_compiled(group: list[Mapped]) -> None:
    fn, arrays = program(group)
    assert not failures(group, host_compiler().compile(fn)(arrays))


def test_every_op_has_a_way() -> None:
    """A rule, or elementwise, or a definition; ops without operands have nothing to map."""
    for name, op in OPS.items():
        alone = name in sweep.MAKERS and not sweep.MAKERS[name][1](op.dtypes[0], 0, sweep.rng_for(name))[0]
        assert op.batch is not None or op.pointwise or op.expand is not None or alone or name == "message", name
    # ts.log() inside what a transformation works on is refused where it is called
    assert {c.first.op for c in CASES} | set(sweep.NOT_UNIQUE) | {"convert", "bitcast", "message"} | {
        "full", "iota", "constant", "size", "axis_index"} == set(OPS)


@pytest.mark.parametrize("name", sorted(sweep.NOT_UNIQUE))
def test_decompositions_one_by_one(name: str) -> None:
    """Each matrix of a batch is decomposed as it is alone, bit for bit."""
    x = np.random.default_rng(3).standard_normal((SIZE, 4, 4)).astype(np.float32)
    x = x + np.swapaxes(x, 1, 2)
    attrs: dict[str, Any] = {"qr": {"complete": False}, "svd": {"full": True}}.get(name, {})
    trace = Trace(name)
    with tracing(trace):
        one = trace.finish(list(bind(name, trace.parameter(TensorType(as_dtype(x.dtype), (4, 4))), **attrs)))
    trace = Trace("batched")
    with tracing(trace):
        outs, _ = batch_function(one, [trace.parameter(TensorType(as_dtype(x.dtype), x.shape))], (True,), (False,), SIZE)
        fn = trace.finish(outs)
    compile_: Callable[..., Any] = host_compiler().compile
    got, alone = compile_(fn)([x]), [compile_(one)([m]) for m in x]
    for k, g in enumerate(got):
        np.testing.assert_array_equal(np.asarray(g), np.stack([np.asarray(a[k]) for a in alone]))


@settings(max_examples=150, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(graphs(symbolic=False), st.data())
def test_random_programs(fn: Any, data: Any) -> None:
    """A batch of a random program equals its examples stacked, whichever of its parameters are mapped."""
    assume(fn.args and "floor" not in {op.name for op in fn.walk()})
    flags = tuple(data.draw(st.lists(st.booleans(), min_size=len(fn.args), max_size=len(fn.args))))
    assume(any(flags))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    arrays = [rng.standard_normal((SIZE, *a.type.shape) if m else a.type.shape).astype(np.float32)
              for a, m in zip(fn.args, flags, strict=True)]
    trace = Trace("batched")
    with tracing(trace):
        args = [trace.parameter(TensorType(as_dtype(a.dtype), a.shape)) for a in arrays]
        outs, mapped = batch_function(fn, args, flags, [False] * len(args), SIZE)
        batched = trace.finish(outs)
    verify(batched)
    got = interpret(batched, arrays)
    for b in range(SIZE):
        want = interpret(fn, [a[b] if m else a for a, m in zip(arrays, flags, strict=True)])
        for g, w, m in zip(got, want, mapped, strict=True):
            mine = g[b] if m else g
            scale = np.max(np.abs(w[np.isfinite(w)]), initial=1.0)
            np.testing.assert_allclose(mine, w, rtol=1e-4, atol=1e-4 * scale)
