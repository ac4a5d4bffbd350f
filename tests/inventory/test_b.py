"""Group B of the inventory, rows B017–B028: control flow and jit as the specification spells them (B027 needs a mesh, B029–B030 stand
elsewhere)."""

from __future__ import annotations

import time

import numpy as np

import tessera as ts

RNG = np.random.default_rng(0)


def test_b017_b018_scan_as_decorator_and_function():
    w = ts.tensor(RNG.normal(size=(4, 4)) * 0.3)

    @ts.scan
    def cell(carry, x):
        carry = ts.tanh(carry @ w + x)
        return carry, carry * 2

    def step(carry, x):
        carry = ts.tanh(carry @ w + x)
        return carry, carry * 2

    xs, start = RNG.normal(size=(9, 4)), ts.zeros(4, dtype=ts.f64)
    final, outs = ts.scan(step, start, ts.tensor(xs))
    same = cell(start, ts.tensor(xs))
    assert np.array_equal(same[0].numpy(), final.numpy()) and np.array_equal(same[1].numpy(), outs.numpy())
    c = np.zeros(4)
    for x, y in zip(xs, outs.numpy(), strict=True):
        c = np.tanh(c @ w.numpy() + x)
        assert np.allclose(y, 2 * c, rtol=1e-13)

    def unrolled(xs):
        c, total = start, 0.0
        for k in range(9):
            c, y = step(c, xs[k])
            total = total + y.sum()
        return total

    g = ts.grad(lambda xs: ts.scan(step, start, xs)[1].sum())(ts.tensor(xs))
    assert np.allclose(g.numpy(), ts.grad(unrolled)(ts.tensor(xs)).numpy(), rtol=1e-12)
    sizes = [sum(1 for _ in ts.jit(lambda xs: ts.scan(step, start, xs)).trace(ts.zeros(n, 4, dtype=ts.f64)).walk()) for n in (3, 300)]
    assert sizes[0] == sizes[1]


def test_b019_b020_fold_is_a_balanced_tree_on_any_number_of_threads():
    @ts.fold
    def tree_reduce(x, y):
        return x + y

    values = RNG.uniform(size=1_000_000).astype(np.float32)
    exact = values.astype(np.float64).sum()
    naive = float(np.cumsum(values, dtype=np.float32)[-1])
    threads, found = ts.get_num_threads(), set()
    try:
        for n in (1, 2, 4):
            ts.set_num_threads(n)
            found.add(float(tree_reduce(ts.tensor(values))))
    finally:
        ts.set_num_threads(threads)
    (total,) = found
    assert abs(total - exact) < abs(naive - exact) / 10 and abs(total / exact - 1) < 1e-6


def test_b021_b023_a_routine_with_a_condition_from_outside():
    @ts.while_loop
    def refine(x, condition, max_iters: int = 100):
        @ts.jit
        def body(x, i):
            return x / 2, i + 1

        return ts.while_loop(cond=lambda x, i: condition(x) and i < max_iters, body=body, init=(x, 0))[0]

    large = lambda x: x > 0.2
    assert float(refine(ts.tensor(1.0), large)) == 0.125 and float(refine(ts.tensor(1.0), large, max_iters=2)) == 0.25

    f = ts.jit(lambda x, condition: ts.while_loop(condition, lambda x: x / 2, x))
    other = lambda x: x > 0.6
    assert [float(f(ts.tensor(1.0), c)) for c in (large, large, other)] == [0.125, 0.125, 0.5] and len(f.programs) == 2


def test_b022_a_while_loop_has_one_body_and_forward_mode():
    def root(a):  # Newton's iteration for the square root
        go_on = lambda x, i: ts.logical_and(ts.abs(x * x - a) > 1e-12, i < 50)
        return ts.while_loop(cond=go_on, body=lambda x, i: (0.5 * (x + a / x), i + 1), init=(a, 0))[0]

    y, dy = ts.jvp(root, (ts.tensor(2.0, dtype=ts.f64),), (ts.tensor(1.0, dtype=ts.f64),))
    assert abs(float(y) - 2 ** 0.5) < 1e-12 and abs(float(dy) - 0.5 / 2 ** 0.5) < 1e-12
    graph = ts.jit(root).trace(ts.tensor(2.0, dtype=ts.f64))
    assert sum(op.name == "while" for op in graph.walk()) == 1 and sum(op.name == "div" for op in graph.walk()) == 1
    capped = ts.while_loop(lambda x, i: i < 7, lambda x, i: (x + 1, i + 1), (ts.tensor(0.0), 0))
    assert float(capped[0]) == 7


def test_b024_an_inner_jit_is_part_of_the_outer_program():
    traced = []

    @ts.jit
    def outer(x):
        @ts.jit
        def inner(x):
            traced.append(1)
            return x * 2

        return inner(x) + 1

    assert [float(outer(ts.tensor(float(k)))) for k in range(3)] == [1, 3, 5] and len(traced) == 1 and len(outer.programs) == 1


def test_b025_b028_static_arguments_and_open_sizes():
    @ts.jit(static_argnums=(1,))
    def init(x, hidden_size):
        return x.sum() * ts.ones(hidden_size)

    assert [init(ts.ones(3), n).shape for n in (4, 4, 5)] == [(4,), (4,), (5,)] and len(init.programs) == 2

    @ts.jit
    def dynamic(x: ts.Tensor["?", "?"]):  # noqa: F722
        return ts.softmax(x, -1)

    for shape in ((2, 3), (4, 5), (2, 3)):
        assert np.allclose(dynamic(ts.ones(*shape)).numpy(), 1 / shape[1])
    assert len(dynamic.programs) <= 2


def test_b026_a_call_after_the_first_does_not_compile():
    def f(x):
        return ts.tanh(ts.sin(x) * 1.2345678) @ ts.ones(8)

    x, run = ts.randn(4, 8), ts.jit(f)
    start = time.perf_counter()
    first = run(x)
    middle = time.perf_counter()
    assert np.array_equal(run(x).numpy(), first.numpy())
    assert middle - start > 5 * (time.perf_counter() - middle) and len(run.programs) == 1
    assert np.allclose(first.numpy(), f(x).numpy(), rtol=1e-6)
