"""Products leave loops: which do, which do not, and that nothing else changes."""

from __future__ import annotations

import numpy as np
import pytest
from trace_cases import agree

import tessera as ts
from tessera.ir.core import Function, TensorType
from tessera.ir.graph import verify
from tessera.tracing.recorder import Trace, tracing
from tessera.transforms import loops
from tessera.transforms.loops import hoist_products
from tessera.types.dtypes import f32

RNG = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def recurrent(w, u, h, xs, reverse=False):
    def step(h, x):
        h = ts.tanh((ts.abs(x) @ w + h @ u) * 0.1)
        return h, h * 2
    return ts.scan(step, h, xs, reverse=reverse)


def products(fn: Function) -> list[int]:
    """How deep in loops each product stands."""
    out: list[int] = []

    def visit(block, depth):
        for op in block.ops:
            out.extend([depth] * (op.name == "dot_general"))
            for b in op.blocks:
                visit(b, depth + 1)
    visit(fn.body, 0)
    return out


def traced(f, *shapes) -> Function:
    trace = Trace("f")
    with tracing(trace):
        given = [trace.parameter(TensorType(f32, s)) for s in shapes]
        made = f(*given)
        leaves = [made[0], made[1]] if isinstance(made, tuple) else [made]
        return trace.finish(leaves)


SHAPES = ((3, 4), (4, 4), (2, 4), (6, 2, 3))


@pytest.mark.parametrize("reverse", [False, True])
def test_products_of_inputs_are_made_at_once(reverse: bool) -> None:
    fn = traced(lambda w, u, h, xs: recurrent(w, u, h, xs, reverse), *SHAPES)
    out = hoist_products(fn)
    verify(out)
    assert sorted(products(fn)) == [1, 1] and sorted(products(out)) == [0, 1]
    agree(fn, out)


@pytest.mark.parametrize("reverse", [False, True])
def test_long_loops_go_by_groups(reverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "GROUP", 100)
    fn = traced(lambda w, u, h, xs: recurrent(w, u, h, xs, reverse), (3, 4), (4, 4), (2, 4), (36, 2, 3))
    out = hoist_products(fn)
    verify(out)
    assert sorted(products(out)) == [1, 2], "the products of a group stand in the outer loop"
    agree(fn, out)


def test_loops_with_two_carries_of_one_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both carries start as the same value, both loops read the same inputs, and the program goes on with them afterwards."""
    def f(w, u, xs):
        def step(carry, x):
            h, s = carry
            return (ts.tanh(x @ w + h @ u), s + h), s

        zero = ts.zeros(2, 4)
        (h, s), ys = ts.scan(step, (zero, zero), xs)
        (k, r), zs = ts.scan(step, (zero, h), xs, reverse=True)
        return h + s + k + r + zero + xs.sum(0)[:, :1], ys + zs

    fn = traced(f, (3, 4), (4, 4), (36, 2, 3))
    for size in (1 << 20, 100):
        monkeypatch.setattr(loops, "GROUP", size)
        out = hoist_products(fn)
        verify(out)
        agree(fn, out)


def test_a_length_without_fitting_divisors_stays_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loops, "GROUP", 100)
    fn = traced(recurrent, (3, 4), (4, 4), (2, 4), (37, 2, 3))
    out = hoist_products(fn)
    assert sorted(products(out)) == [0, 1]
    agree(fn, out)


def test_fixed_products_are_made_once() -> None:
    fn = traced(lambda a, b, h, xs: ts.scan(lambda h, x: (h + x, (a @ b) * x), h, xs), (4, 4), (4, 4), (4, 4), (5, 4, 4))
    out = hoist_products(fn)
    verify(out)
    assert products(out) == [0]
    agree(fn, out)


def test_what_depends_on_the_step_before_stays() -> None:
    fn = traced(lambda u, h, xs: ts.scan(lambda h, x: ((h + x) @ u, h), h, xs), (4, 4), (2, 4), (5, 2, 4))
    assert products(hoist_products(fn)) == [1]


def test_tall_products_stay() -> None:
    fn = traced(lambda w, h, xs: ts.scan(lambda h, x: (h + x @ w, h), h, xs), (2, 2), (300, 2), (3, 300, 2))
    assert products(hoist_products(fn)) == [1]


def test_results_that_would_grow_too_much_stay() -> None:
    fn = traced(lambda w, h, xs: ts.scan(lambda h, x: (h + x @ w, h), h, xs), (1, 64), (2, 64), (3, 2, 1))
    assert products(hoist_products(fn)) == [1]


def test_the_bits_of_a_compiled_recurrence_do_not_change(monkeypatch: pytest.MonkeyPatch) -> None:
    # No tiny products: those are summed in lanes.
    w, u, h, xs = (ts.tensor(normal(*s)) for s in ((64, 128), (128, 128), (8, 128), (24, 8, 64)))
    whole = [np.asarray(t) for t in ts.jit(recurrent)(w, u, h, xs)]
    monkeypatch.setattr(loops, "GROUP", 12 * 8 * 128)
    grouped = [np.asarray(t) for t in ts.jit(lambda *a: recurrent(*a))(w, u, h, xs)]
    monkeypatch.setattr(loops, "FEW_ROWS", 0)
    stepwise = [np.asarray(t) for t in ts.jit(lambda *a: recurrent(*a))(w, u, h, xs)]
    for a, b, c in zip(whole, grouped, stepwise, strict=True):
        assert np.array_equal(a, b) and np.array_equal(a, c)
    want, x = np.asarray(h, np.float64), np.asarray(xs, np.float64)
    for t in range(24):
        want = np.tanh((np.abs(x[t]) @ np.asarray(w, np.float64) + want @ np.asarray(u, np.float64)) * 0.1)
    assert np.abs(whole[0] - want).max() < 1e-3


def test_a_sum_in_a_loop_whose_carry_is_not_read() -> None:
    fn = traced(lambda a, xs: ts.scan(lambda c, x: (a + x.sum(), None), a, xs)[0], (3,), (4, 5))
    agree(fn, loops.sink_sums(fn))
