"""cond, while_loop, scan and fori_loop, eager and traced."""
# ruff: noqa: F821  (sizes in annotations)

import numpy as np
import pytest

import tessera as ts
from tessera import errors


def both(f, *args):
    """The eager and the traced result as arrays; they must be equal."""
    eager, traced = f(*args), ts.jit(f)(*args)
    import optree
    a, b = optree.tree_leaves(eager), optree.tree_leaves(traced)
    for x, y in zip(a, b, strict=True):
        assert np.array_equal(np.asarray(x), np.asarray(y))
    return traced


def test_cond_chooses_and_captures():
    w = ts.tensor([10.0, 20.0])
    f = lambda p, x: ts.cond(p > 0, lambda x: x + w, lambda x: x * 2, x)
    assert both(f, ts.tensor(1.0), ts.ones(2)).tolist() == [11, 21]
    assert both(f, ts.tensor(-1.0), ts.ones(2)).tolist() == [2, 2]
    g = ts.jit(lambda p, x: ts.cond(p, lambda: {"a": x, "b": 1}, lambda: {"a": -x, "b": 2}))
    assert g(ts.tensor(False), ts.ones(1))["b"].item() == 2
    text = str(g.programs[0].graph)
    assert text.count("cond(") == 1 and text.count("yield(") == 2


def test_cond_numbers_take_the_other_branch_s_dtype():
    f = ts.jit(lambda p, x: ts.cond(p, lambda: x, lambda: 0))
    assert f(ts.tensor(False), ts.ones((), dtype=ts.bf16)).dtype is ts.bf16


def test_while_loop_unpacks_and_returns_the_carry():
    f = lambda x: ts.while_loop(cond=lambda x, i: i < 5, body=lambda x, i: (x * 2, i + 1), init=(x, 0))
    x, i = both(f, ts.ones(2))
    assert x.tolist() == [32, 32] and i.item() == 5
    g = lambda n: ts.while_loop(lambda v: v < 100, lambda v: v * 3, n)
    assert both(g, ts.tensor(2)).item() == 162
    assert str(ts.jit(f).trace(ts.ones(2))).count("while(") == 1


def test_nested_loops_and_captured_values():
    w = ts.tensor([1.0, 2.0])

    def f(n):
        inner = lambda a: ts.while_loop(lambda a, j: j < n, lambda a, j: (a + w, j + 1), (a, ts.tensor(0)))[0]
        return ts.while_loop(lambda a, i: i < n, lambda a, i: (inner(a), i + 1), (w * 0, ts.tensor(0)))[0]

    assert both(f, ts.tensor(3)).tolist() == [9, 18]


def test_iterative_refinement_runs_as_written():
    @ts.while_loop
    def refine(x, condition, max_iters=100):
        @ts.jit
        def body(x, i):
            return x / 2, i + 1

        return ts.while_loop(cond=lambda x, i: condition(x) and i < max_iters, body=body, init=(x, 0))[0]

    assert refine(ts.tensor(64.0), lambda x: x > 1).item() == 1
    assert refine(ts.tensor(64.0), lambda x: x > 1, max_iters=3).item() == 8


def test_scan_function_and_decorator():
    xs = ts.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    step = lambda c, x: (c + x.sum(), (c, x * 2))
    carry, (before, doubled) = both(lambda xs: ts.scan(step, 0.0, xs), xs)
    assert carry.item() == 21 and before.tolist() == [0, 3, 10] and doubled.tolist() == [[2, 4], [6, 8], [10, 12]]

    @ts.scan
    def cell(carry, x):
        return carry * 0.5 + x, carry

    last, ys = cell(ts.zeros(2), xs)
    assert last.tolist() == [6.75, 8.5] and ys.shape == (3, 2)


def test_scan_reverse_length_and_trees():
    f = lambda xs: ts.scan(lambda c, x: (c + x["a"] * x["b"], c), ts.tensor(0), xs, reverse=True)
    carry, ys = both(f, {"a": ts.arange(4), "b": ts.arange(4)})
    assert carry.item() == 14 and ys.tolist() == [14, 13, 9, 0]  # before each step, from the end
    carry, ys = both(lambda c: ts.scan(lambda c, _: (c * 2, c), c, length=4), ts.tensor(1))
    assert carry.item() == 16 and ys.tolist() == [1, 2, 4, 8]
    carry, ys = ts.scan(lambda c, x: (c + x, x), ts.tensor(0.0), ts.zeros(0))
    assert carry.item() == 0 and ys.shape == (0,)


def test_one_scan_program_for_every_length():
    @ts.function
    def f(xs: ts.Tensor["T", "D"]):
        return ts.scan(lambda c, x: (c + x, c), xs[0] * 0, xs)

    for t in (1, 3, 8):
        c, ys = f(ts.ones(t, 2))
        assert c.tolist() == [t, t] and ys.shape == (t, 2)
    assert len(f.programs) == 1


def test_fori_loop():
    f = lambda x: ts.fori_loop(0, 4, lambda i, c: {"x": c["x"] + i}, {"x": x})
    assert both(f, ts.ones(2))["x"].tolist() == [7, 7]


@pytest.mark.parametrize("body, kind, text", [
    (lambda p, x: ts.cond(p, lambda: x, lambda: x[:1]), errors.ShapeError, r"f32\[2\] for value 0, the second f32\[1\]"),
    (lambda p, x: ts.cond(p, lambda: x, lambda: x.to(ts.f64)), errors.DTypeError, r"f64\[2\]"),
    (lambda p, x: ts.cond(p, lambda: x, lambda: (x, x)), errors.TracingError, "different structures"),
    (lambda p, x: ts.cond(x, lambda: x, lambda: x), errors.ShapeError, r"condition of cond\(\) has shape \[2\]"),
    (lambda p, x: ts.cond(p, x, x), errors.ArgumentError, "two functions"),
    (lambda p, x: ts.cond(p, lambda: x, lambda: "a"), errors.TracingError, "holds a str"),
    (lambda p, x: ts.while_loop(lambda c: p, lambda c: ts.concat([c, c]), x), errors.ShapeError, r"from f32\[2\] to f32\[4\]"),
    (lambda p, x: ts.while_loop(lambda c: p, lambda c: c.to(ts.f64), x), errors.DTypeError, "from f32 to f64"),
    (lambda p, x: ts.while_loop(lambda a, b: p, lambda a, b: (a, b, a), (x, x)), errors.TracingError, "structure"),
    (lambda p, x: ts.while_loop(lambda c: c, lambda c: c, x), errors.ShapeError, "condition of while_loop"),
    (lambda p, x: ts.while_loop(1, 2, 3), errors.ArgumentError, "two functions"),
    (lambda p, x: ts.scan(lambda c, y: c, x, x), errors.TracingError, "must return"),
    (lambda p, x: ts.scan(lambda c, y: (c.sum(), y), x, x), errors.ShapeError, r"from f32\[2\] to f32\[\]"),
    (lambda p, x: ts.scan(lambda c, y: (c, y), x, (x, ts.ones(3))), errors.ShapeError, "unequal lengths: 2 and 3"),
    (lambda p, x: ts.scan(lambda c, y: (c, y), x, ts.tensor(1)), errors.ShapeError, "scalar"),
])
def test_errors(body, kind, text):
    with pytest.raises(kind, match=text):
        ts.jit(body)(ts.tensor(True), ts.ones(2))


def test_where_is_elementwise():
    f = lambda x: ts.where(x > 0, x, 0)
    assert both(f, ts.tensor([-1.0, 2.0])).tolist() == [0, 2]
