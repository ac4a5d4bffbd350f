"""Attention's reverse pass: compiled against the interpreter bit for bit, against f64, and the same however it is cut."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from products import check

from tessera.ir.core import Function, Op, TensorType
from tessera.kernels.attention_backward import attention_backward
from tessera.machine import host_cpu
from tessera.ops.table import OPS
from tessera.runtime import host_compiler
from tessera.scheduling import schedule
from tessera.tracing.recorder import Trace, bind, tracing
from tessera.types import dtypes as dt
from tessera.types.dims import name
from tessera.types.dtypes import as_dtype

CASES = {  # batch and heads of queries, of keys, S, T, D, E, causal, mask
    "plain": ((2, 3), (2, 3), 33, 40, 16, 16, False, None), "causal": ((4,), (4,), 50, 50, 8, 8, True, None),
    "grouped": ((1, 4), (1, 2), 21, 70, 20, 12, True, None), "one key head": ((3,), (1,), 9, 17, 5, 7, False, None),
    "bool mask": ((2, 2), (2, 2), 19, 23, 8, 8, False, "bool"), "float mask": ((2, 2), (2, 2), 30, 30, 8, 8, True, "float"),
    "more queries": ((2,), (2,), 60, 20, 8, 8, True, None), "no batch": ((), (), 12, 15, 4, 4, False, None),
    "one row": ((2,), (2,), 1, 33, 8, 8, True, None), "blocks": ((1,), (1,), 210, 300, 64, 72, True, None),
}


def operands(case: str, dtype: Any = np.float32) -> tuple[list[np.ndarray], dict[str, Any]]:
    lead, shared, s, t, d, e, causal, mask = CASES[case]
    rng = np.random.default_rng(len(case))
    draw = lambda *shape: rng.standard_normal(shape).astype(dtype)
    q, k, v, g = draw(*lead, s, d), draw(*shared, t, d), draw(*shared, t, e), draw(*lead, s, e)
    masks: list[np.ndarray] = []
    if mask == "bool":
        masks = [rng.random((lead[0], 1, s, t)) < 0.6]
        masks[0][0, 0, 3] = False  # a row that sees nothing
    elif mask == "float":
        masks = [draw(1, lead[1], 1, t)]
    attrs = {"scale": d ** -0.5, "causal": causal}
    out, lse = OPS["attention_forward"].reference(q, k, v, *masks, **attrs)
    wide = lse.dtype
    return [q, k, v, g, lse, np.sum(out.astype(wide) * g.astype(wide), -1), *masks], attrs


def graph(arrays: list[np.ndarray], attrs: dict[str, Any], shapes: Any = None) -> Function:
    trace = Trace("f")
    with tracing(trace):
        types = [TensorType(as_dtype(a.dtype), shapes[i] if shapes else a.shape) for i, a in enumerate(arrays)]
        return trace.finish(list(bind("attention_backward", *[trace.parameter(t) for t in types], **attrs)))


def templates(fn: Function, threads: int) -> list[Op]:
    machine = replace(host_cpu(), threads=threads)
    return [op for op in schedule(fn, machine).walk() if op.name == "template"]


def exact(arrays: list[np.ndarray], attrs: dict[str, Any]) -> tuple[np.ndarray, ...]:
    return OPS["attention_backward"].reference(*[a.astype(np.float64) if a.dtype.kind == "f" else a for a in arrays], **attrs)


@pytest.mark.parametrize("threads", [1, 64])
@pytest.mark.parametrize("case", ["grouped", "bool mask", "more queries", "one row"])
def test_matches_interpreter(case: str, threads: int) -> None:
    arrays, attrs = operands(case)
    want = exact(arrays, attrs)
    ops = templates(graph(arrays, attrs), threads)
    assert [op.attrs["writes"] for op in ops] == ([("dq", "dk", "dv")] if threads == 1 else [("dq",), ("dk", "dv")])
    for op in ops:
        n = len(op.attrs["writes"])
        results = [want[("dq", "dk", "dv").index(r)] for r in op.attrs["writes"]]
        given = [a.ravel() for a in arrays[:4]] + arrays[4:6] + [np.full(r.shape, np.nan, np.float32) for r in results]
        given += [a.ravel() for a in arrays[6:]]
        tile = attention_backward(op, host_cpu(), "attention_backward")
        shaped = [a.reshape([int(d) for d in p.type.shape]) for a, p in zip(given, tile.args, strict=True)]
        for got, r in zip(check(tile, shaped)[6:6 + n], results, strict=True):
            assert np.abs(got.reshape(r.shape) - r).max(initial=0) <= 1e-5


@pytest.mark.parametrize("case", CASES)
def test_against_f64(case: str) -> None:
    arrays, attrs = operands(case)
    for got, want in zip(host_compiler().compile(graph(arrays, attrs))(arrays), exact(arrays, attrs), strict=True):
        assert np.abs(np.asarray(got) - want).max() <= 2e-5


@pytest.mark.parametrize("case", ["grouped", "causal", "blocks"])
def test_f64_and_symbolic_sizes(case: str) -> None:
    arrays, attrs = operands(case, np.float64)
    s, t = name("S"), name("T") if arrays[0].shape[-2] != arrays[1].shape[-2] else name("S")
    rows = [s, t, t, s]
    shapes = [(*a.shape[:-2], n, a.shape[-1]) for a, n in zip(arrays[:4], rows, strict=False)] + [(*a.shape[:-1], s) for a in arrays[4:6]]
    for got, want in zip(host_compiler().compile(graph(arrays, attrs, shapes))(arrays), exact(arrays, attrs), strict=True):
        np.testing.assert_allclose(np.asarray(got), want, rtol=1e-11, atol=1e-12)


def test_small_floats_are_summed_in_f32() -> None:
    arrays, attrs = operands("grouped")
    low = [a.astype(dt.bf16.np) if i < 4 else a for i, a in enumerate(arrays)]
    for got, want in zip(host_compiler().compile(graph(low, attrs))(low), exact([a.astype(np.float32) for a in low], attrs), strict=True):
        assert np.asarray(got).dtype == np.float32
        assert np.abs(np.asarray(got) - want).max() <= 2e-5


@pytest.mark.parametrize("s, t", [(0, 4), (4, 0)])
def test_nothing_to_do(s: int, t: int) -> None:
    arrays = [np.ones((2, n, 3), np.float32) for n in (s, t, t, s)] + [np.zeros((2, s), np.float32)] * 2
    for got, n in zip(host_compiler().compile(graph(arrays, {"scale": 1.0, "causal": False}))(arrays), (s, t, t), strict=True):
        np.testing.assert_array_equal(np.asarray(got), np.zeros((2, n, 3)))


@pytest.mark.parametrize("case", ["grouped", "blocks", "float mask"])
def test_log_sum_exp(case: str) -> None:
    """The forward pass with its residual gives the bits of the one without."""
    arrays, attrs = operands(case)
    q, k, v, masks = *arrays[:3], arrays[6:]
    trace = Trace("f")
    with tracing(trace):
        given = [trace.parameter(TensorType(as_dtype(a.dtype), a.shape)) for a in (q, k, v, *masks)]
        fn = trace.finish([*bind("attention_forward", *given, **attrs), bind("attention", *given, **attrs)])
    out, lse, plain = (np.asarray(a) for a in host_compiler().compile(fn)([q, k, v, *masks]))
    np.testing.assert_array_equal(out, plain)
    np.testing.assert_allclose(lse, arrays[4], rtol=2e-6, atol=2e-6)


def test_memory_grows_with_the_sequence_not_its_square() -> None:
    """The temporaries of value and gradient, by the memory plan: far less than one matrix of scores."""
    import tessera as ts
    from tessera.transforms.pipeline import optimize
    sizes = {}
    for n in (1024, 2048):
        trace = Trace("f")
        with tracing(trace):
            q, k, v = (trace.parameter(TensorType(dt.f32, (2, n, 16))) for _ in range(3))
            fn = trace.finish(list(ts.grad(lambda q, k, v: (ts.attention(q, k, v, causal=True) ** 2).sum(), argnums=(0, 1, 2))(q, k, v)))
        sizes[n] = schedule(optimize(fn), host_cpu()).attrs["arena"]
    assert sizes[1024] < 1024 * 1024 and sizes[2048] <= 2 * sizes[1024] + 4096, sizes
