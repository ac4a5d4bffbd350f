"""``ts.vmap`` as users call it: equal to stacking the function's results, in every form of its arguments."""

# ruff: noqa: F821  (names of sizes in annotations)


from typing import Any

import numpy as np
import pytest

import tessera as ts
from tessera import tile
from tessera.errors import ArgumentError, IndexOutOfRangeError, ShapeError, TesseraError, TracingError
from tessera.tiling.frontend import Tile, kernel
from tessera.types.dtypes import f32


def rand(*shape: int, seed: int = 0) -> ts.Tensor:
    return ts.tensor(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def close(got: Any, want: Any, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(got), np.asarray(want), rtol=tolerance, atol=tolerance)


X, W = rand(4, 3), rand(3, 5, seed=1)


# -- arguments and results -------------------------------------------------------------------------------------------------
def test_equals_stacking() -> None:
    f = lambda x: ts.softmax(x @ W) * 2
    close(ts.vmap(f)(X), np.stack([f(X[i]) for i in range(4)]))


@pytest.mark.parametrize("dim", [0, 1, -1, -2])
def test_mapped_dimension(dim: int) -> None:
    want = [ts.cumsum(ts.take(X, i, axis=dim), axis=0) for i in range(X.shape[dim])]
    close(ts.vmap(lambda x: ts.cumsum(x, axis=0), in_dims=dim)(X), np.stack(want))
    close(ts.vmap(lambda x: ts.cumsum(x, axis=0), in_dims=dim, out_dims=dim)(X), np.stack(want, axis=dim))


def test_two_arguments_and_what_they_share() -> None:
    y = rand(4, 5, seed=2)
    f = lambda x, w, y: (x @ w) * y
    close(ts.vmap(f, in_dims=(0, None, 0))(X, W, y), (X.numpy() @ W.numpy()) * y.numpy())
    ws = rand(3, 5, 4, seed=3)
    close(ts.vmap(f, in_dims=(None, -1, 0))(X[0], ws, y), np.stack([f(X[0], ws[:, :, i], y[i]) for i in range(4)]))


def test_trees() -> None:
    f = lambda pair, p: {"sum": pair[0] + p["w"], "both": (pair[1], pair[0] * p["s"])}
    a, b, s = rand(4, 3), rand(2, 4, seed=4), rand(4, seed=5)
    out = ts.vmap(f, in_dims=((0, 1), {"w": None, "s": 0}), out_dims={"sum": 1, "both": (0, -1)})((a, b), {"w": W[:, 0], "s": s})
    close(out["sum"], (a.numpy() + W.numpy()[:, 0]).T)
    close(out["both"][0], b.numpy().T)
    close(out["both"][1], (a.numpy() * s.numpy()[:, None]).T)


def test_an_integer_maps_tensors_and_leaves_parameters() -> None:
    """Per-example functions of (parameters, x, y), as the programming guide writes them."""
    class Net(ts.nn.Module):
        def __init__(self) -> None:
            self.w = W

        def forward(self, x: Any) -> Any:
            return x @ self.w

    @ts.vmap(in_dims=0, out_dims=0)
    def loss(params: Any, x: Any, y: Any) -> Any:
        return ((x @ params["w"] - y) ** 2).sum()

    y = rand(4, 5, seed=2)
    want = ((X.numpy() @ W.numpy() - y.numpy()) ** 2).sum(1)
    close(loss({"w": W}, X, y), want)
    close(ts.vmap(lambda net, x, y: ((net(x) - y) ** 2).sum())(Net(), X, y), want)
    close(ts.vmap(lambda ws, x, y: ((x @ ws[0] - y) ** 2).sum())([W], X, y), want)
    close(ts.vmap(lambda x, scale: x * scale)(X, 2.0), X.numpy() * 2)


def test_keywords() -> None:
    close(ts.vmap(lambda x, y: x - y)(X, y=X * 2), -X.numpy())
    close(ts.vmap(lambda x, y: x - y, in_dims=(0,))(X, y=X[0]), X.numpy() - X.numpy()[0])


def test_results_that_do_not_depend_on_the_example() -> None:
    same, own, number = ts.vmap(lambda x: (W.sum(), x.sum(), 3), out_dims=(None, 0, 0))(X)
    assert same.shape == () and own.shape == (4,)
    np.testing.assert_array_equal(number.numpy(), [3, 3, 3, 3])
    assert ts.vmap(lambda x: (W, None))(X)[0].shape == (4, 3, 5)
    assert ts.vmap(lambda x: W, out_dims=1)(X).shape == (3, 4, 5)


def test_numpy_arrays_scalars_and_empty_batches() -> None:
    close(ts.vmap(lambda x: x + 1)(X.numpy()), X.numpy() + 1)
    close(ts.vmap(lambda x: x * x)(ts.arange(4)), np.arange(4) ** 2)
    assert ts.vmap(lambda x: x @ W)(ts.zeros(0, 3)).shape == (0, 5)
    close(ts.vmap(lambda: ts.axis_index("i") * 2, axis_size=3, axis_name="i")(), [0, 2, 4])


def test_decorator_and_method() -> None:
    class Scaler:
        factor = 3.0

        @ts.vmap
        def scaled(self, x: Any) -> Any:
            return x * self.factor

    close(Scaler().scaled(X), X.numpy() * 3)


# -- with the other transformations -----------------------------------------------------------------------------------------
def test_nested() -> None:
    a, b = rand(3, 4), rand(5, 4, seed=1)
    outer = ts.vmap(ts.vmap(lambda x, y: x @ y, in_dims=(None, 0)), in_dims=(0, None))
    close(outer(a, b), a.numpy() @ b.numpy().T)
    close(ts.vmap(ts.vmap(ts.vmap(lambda x: x.exp())))(rand(2, 3, 4)), np.exp(rand(2, 3, 4).numpy()))


def test_a_direct_call_is_traced_once() -> None:
    traces = []

    @ts.vmap
    def f(x: Any) -> Any:
        traces.append(1)
        return x * 2

    f(X)
    f(X)
    f(rand(4, 3, seed=9))
    assert len(traces) == 1
    f(rand(7, 3))
    assert len(traces) == 2


def test_under_jit_and_over_jit() -> None:
    inner = ts.jit(lambda x: ts.gelu(x) @ W)
    want = np.stack([inner(X[i]) for i in range(4)])
    close(ts.vmap(inner)(X), want)
    close(ts.jit(ts.vmap(inner))(X), want)
    np.testing.assert_array_equal(ts.jit(ts.vmap(inner))(X).numpy(), ts.vmap(ts.jit(inner))(X).numpy())


def test_a_symbolic_batch_stays_symbolic() -> None:
    @ts.function
    def f(xs: ts.Tensor["B", 3], w: ts.Tensor[3, 5]) -> ts.Tensor["B", 5]:
        return ts.vmap(lambda x: ts.layer_norm(ts.tanh(x @ w)))(xs)

    for n in (1, 4, 9):
        x = rand(n, 3, seed=n)
        close(f(x, W), ts.layer_norm(ts.tanh(x @ W)))
    assert len(f.programs) == 1 + 1 * any(1 in t.shape for p in f.programs for t in [a.type for a in p.graph.args])


def test_captured_tensors_are_read_anew() -> None:
    w = rand(3)
    f = ts.vmap(lambda x: x * w)
    close(f(X), X.numpy() * w.numpy())
    w[0] = 100.0
    close(f(X), X.numpy() * w.numpy())


def test_one_program_whatever_the_size() -> None:
    """The number of kernels does not grow with the batch."""
    f = ts.vmap(lambda x: ts.softmax(ts.relu(x @ W) @ W.T))
    counts = set()
    for n in (2, 64):
        f(rand(n, 3))
        counts.add(len(f.program.kernels))
    assert len(counts) == 1


def test_composites_stay_whole() -> None:
    q = rand(2, 6, 4)
    f = ts.vmap(lambda q, k, m: ts.layer_norm(ts.attention(q, k, k, m)), in_dims=(0, None, None))
    f(q, q[0], ts.ones(6, 6) > 0)
    names = [op.name for op in f.program._latest().graph.body.ops]
    assert "attention" in names and "layer_norm" in names and "softmax" not in names
    keys = next(op for op in f.program._latest().graph.body.ops if op.name == "attention").operands[1]
    assert keys.type.shape == (1, 6, 4)  # what all examples share is not repeated


def test_what_examples_share_is_computed_once() -> None:
    f = ts.vmap(lambda x: x + ts.exp(W).sum())
    f(X)
    exp = [op for op in f.program._latest().graph.walk() if op.name == "exp"]
    assert [op.results[0].type.shape for op in exp] == [(3, 5)]


# -- control flow -------------------------------------------------------------------------------------------------------------
def steps(n: Any) -> Any:
    return ts.while_loop(lambda i, total: i < n, lambda i, total: (i + 1, total + i * i), (0, 0))[1]


def test_loops_of_their_own_length() -> None:
    n = ts.tensor([3, 0, 10, 1])
    np.testing.assert_array_equal(ts.vmap(steps)(n).numpy(), [sum(i * i for i in range(k)) for k in (3, 0, 10, 1)])


def test_a_shared_loop_has_one_condition() -> None:
    f = ts.vmap(lambda x: ts.while_loop(lambda i, v: i < 5, lambda i, v: (i + 1, v * 1.5 + i), (0, x))[1])
    want = X.numpy()
    for i in range(5):
        want = want * 1.5 + i
    close(f(X), want)
    loop = next(op for op in f.program._latest().graph.walk() if op.name == "while")
    assert "reduce_any" not in [o.name for o in loop.blocks[0].ops]


def test_branches() -> None:
    f = lambda x: ts.cond(x.sum() > 0, lambda v: v.exp(), lambda v: (v * 0 + W[:, 0]), x)
    close(ts.vmap(f)(X), np.stack([f(X[i]) for i in range(4)]))
    flag = ts.tensor(True)
    g = ts.vmap(lambda x, p: ts.cond(p, lambda: x * 2, lambda: W[:, 1]), in_dims=(0, None))
    close(g(X, flag), X.numpy() * 2)
    assert "cond" in [op.name for op in g.program._latest().graph.body.ops]


def test_scans() -> None:
    def cell(c: Any, x: Any) -> Any:
        c = ts.tanh(c * 0.5 + x)
        return c, (c * 2, W.sum())

    xs = rand(4, 6, 3)
    f = lambda x: ts.scan(cell, ts.zeros(3), x)
    got, want = ts.vmap(f)(xs), [f(xs[i]) for i in range(4)]
    close(got[0], np.stack([w[0] for w in want]))
    close(got[1][0], np.stack([w[1][0] for w in want]))
    close(got[1][1], np.stack([w[1][1] for w in want]))
    shared = ts.vmap(lambda c: ts.scan(cell, c, xs[0], reverse=True), in_dims=0)(X)
    close(shared[0], np.stack([ts.scan(cell, X[i], xs[0], reverse=True)[0] for i in range(4)]))


def test_checks_ignore_examples_that_do_not_take_part() -> None:
    """Both branches run for all examples, but an index that only the other branch would use raises nothing."""
    i = ts.tensor([0, 7, 2, 9])
    table = ts.tensor([1.0, 2.0, 3.0])
    f = ts.vmap(lambda k: ts.cond(k < 3, lambda: table[k], lambda: ts.tensor(-1.0)))
    np.testing.assert_array_equal(f(i).numpy(), [1, -1, 3, -1])
    g = ts.vmap(lambda a, b: ts.cond(b != 0, lambda: a // b, lambda: a))
    np.testing.assert_array_equal(g(ts.tensor([7, 8, 9]), ts.tensor([2, 0, 4])).numpy(), [3, 8, 2])
    with pytest.raises(IndexOutOfRangeError, match="index 7"):
        ts.vmap(lambda k: table[k])(i)


def test_a_loop_that_leaves_its_table() -> None:
    table = ts.tensor([2, 0, 1])

    def walk(n: Any) -> Any:
        """Follow the table n steps; the counter of a finished example is not used as an index."""
        return ts.while_loop(lambda i, at: i < n, lambda i, at: (i + 1, table[i]), (0, -1))[1]

    np.testing.assert_array_equal(ts.vmap(walk)(ts.tensor([1, 3, 0])).numpy(), [2, 1, -1])


def test_kernels_get_a_grid_axis() -> None:
    @kernel
    def affine(x: Tile["N", f32], w: Tile["N", f32], y: Tile["N", f32]):
        for i in tile.range(0, 100, 32):
            tile.store(y[i:i + 32], tile.load(x[i:i + 32]) * tile.load(w[i:i + 32]) + 1)

    def f(x: Any, w: Any) -> Any:
        y = ts.zeros(100)
        affine(x, w, y)
        return y * 2

    x, w = rand(5, 100), rand(100, seed=1)
    g = ts.vmap(f, in_dims=(0, None))
    close(g(x, w), (x.numpy() * w.numpy() + 1) * 2)
    graph = g.program._latest().graph
    assert [op.name for op in graph.walk()].count("kernel_call") == 1 and "scan" not in [op.name for op in graph.walk()]
    (fn,) = graph.functions.values()
    assert fn.attrs["grid"][0] == 5

    @ts.function
    def symbolic(x: ts.Tensor["B", 100], w: ts.Tensor[100]) -> ts.Tensor["B", 100]:
        return ts.vmap(f, in_dims=(0, None))(x, w)

    for n in (2, 5):
        close(symbolic(x[:n], w), (x.numpy()[:n] * w.numpy() + 1) * 2)
    close(ts.vmap(ts.vmap(f, in_dims=(0, None)), in_dims=(None, 0))(x, rand(3, 100, seed=2)).shape, (3, 5, 100))


# -- random numbers -------------------------------------------------------------------------------------------------------------
def test_draws_are_independent() -> None:
    ts.manual_seed(3)
    f = ts.vmap(lambda x: (x + ts.randn(1000), ts.dropout(ts.ones(1000), 0.5)))
    noise, kept = (t.numpy() for t in f(ts.zeros(4)))
    assert np.abs(np.corrcoef(noise) - np.eye(4)).max() < 0.15
    assert np.abs(np.corrcoef(kept) - np.eye(4)).max() < 0.15
    assert not np.array_equal(f(ts.zeros(4))[0].numpy(), noise)  # each call draws anew
    nested = ts.vmap(ts.vmap(lambda x: x + ts.randn(200)))(ts.zeros(2, 3)).numpy().reshape(6, 200)
    assert np.abs(np.corrcoef(nested) - np.eye(6)).max() < 0.35


def test_explicit_keys_are_functions_of_the_key() -> None:
    key = ts.random.key(5)
    draw = lambda k: ts.randn(7, key=k)
    same = ts.vmap(lambda x: x + draw(key))(ts.zeros(3)).numpy()
    np.testing.assert_array_equal(same, np.stack([draw(key)] * 3))
    keys = ts.stack(ts.random.split(key, 3))
    np.testing.assert_array_equal(ts.vmap(draw)(keys).numpy(), np.stack([draw(keys[i]) for i in range(3)]))
    folded = ts.vmap(lambda i: ts.random.uniform(4, key=ts.random.fold_in(key, i)))(ts.arange(3)).numpy()
    np.testing.assert_array_equal(folded, np.stack([ts.random.uniform(4, key=ts.random.fold_in(key, i)) for i in range(3)]))


def test_draws_in_loops_are_independent() -> None:
    def walk(n: Any) -> Any:
        return ts.while_loop(lambda i, x: i < n, lambda i, x: (i + 1, x + ts.randn(500)), (0, ts.zeros(500)))[1]

    x = ts.vmap(walk)(ts.tensor([1, 1, 4, 0])).numpy()
    assert np.abs(np.corrcoef(x[:3]) - np.eye(3)).max() < 0.2 and not x[3].any()
    ys = ts.vmap(lambda a: ts.scan(lambda c, _: (c, ts.randn(300)), a, length=3)[1])(ts.zeros(2)).numpy().reshape(6, 300)
    assert np.abs(np.corrcoef(ys) - np.eye(6)).max() < 0.3


def test_the_program_still_counts_its_draws() -> None:
    ts.manual_seed(1)

    @ts.jit
    def f(x: Any) -> Any:
        a = ts.randn(3)
        return a, ts.vmap(lambda v: v + ts.randn(3))(x), ts.randn(3)

    a, b, c = (t.numpy() for t in f(ts.zeros(2)))
    rows = [a, *b, c]
    assert len({r.tobytes() for r in rows}) == 4


# -- collectives ----------------------------------------------------------------------------------------------------------------
def test_collectives() -> None:
    f = lambda x: (ts.all_reduce(x, "sum", axis="i"), ts.psum(x, "i"), ts.pmean(x, "i"), ts.pmax(x, "i"), ts.pmin(x, "i"))
    x = X.numpy()
    for got, want in zip(ts.vmap(f, axis_name="i", out_dims=None)(X), (x.sum(0), x.sum(0), x.mean(0), x.max(0), x.min(0)), strict=True):
        close(got, want)
    close(ts.vmap(lambda x: ts.all_reduce(x, "prod"), axis_name="i", out_dims=None)(X), x.prod(0))
    close(ts.vmap(lambda x: (x - ts.pmean(x)) / ts.axis_size(), axis_name="i")(X), (x - x.mean(0)) / 4)
    close(ts.vmap(lambda x: ts.all_gather(x), axis_name="i", out_dims=None)(X), x.reshape(-1))
    close(ts.vmap(lambda x: ts.all_gather(x, stack=True)[ts.axis_index() - 1], axis_name="i")(X), np.roll(x, 1, 0))
    tree = ts.vmap(lambda x: ts.psum({"a": x, "b": (x.sum(),)}), axis_name="i", out_dims=None)(X)
    close(tree["b"][0], x.sum())


def test_collectives_of_two_axes() -> None:
    x = rand(2, 3, 4)
    f = lambda v: ts.psum(v, "rows") - ts.pmax(v, "columns") * ts.axis_index("rows")
    both = ts.vmap(ts.vmap(f, axis_name="columns"), axis_name="rows")
    a = x.numpy()
    close(both(x), a.sum(0)[None] - a.max(1)[:, None] * np.arange(2)[:, None, None])
    gathered = ts.vmap(ts.vmap(lambda v: ts.all_gather(v, "rows", stack=True), axis_name="columns"), axis_name="rows")(x)
    close(gathered, np.broadcast_to(np.moveaxis(a, 0, 1)[None], (2, 3, 2, 4)))


# -- errors ---------------------------------------------------------------------------------------------------------------------
def message(call: Any, kind: type[TesseraError] = ArgumentError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


def test_sizes_that_disagree() -> None:
    text = message(lambda: ts.vmap(lambda x, y: x + y)(X, rand(5, 3)), ShapeError)
    assert "maps sizes that disagree: 4 (dimension 0 of argument 'x') vs 5 (dimension 0 of argument 'y')" in text
    assert "ts.vmap(lambda x, y: x + y)(X, rand(5, 3))" in text and "test_vmap.py" in text and "transforms/vmap.py" not in text


def test_in_dims_that_do_not_fit() -> None:
    f = lambda x, y: x
    assert "in_dims has 3 entries for 2 positional arguments" in message(lambda: ts.vmap(f, in_dims=(0, 0, 0))(X, X))
    assert "in_dims maps dimension 2 of argument 'x', which has dimensions 0 to 1" in message(
        lambda: ts.vmap(f, in_dims=(2, None))(X, X), IndexOutOfRangeError)
    assert "which has none" in message(lambda: ts.vmap(f)(X, ts.tensor(1.0)), IndexOutOfRangeError)
    assert "which is a float" in message(lambda: ts.vmap(f, in_dims=(0, 0))(X, 2.0))
    assert "maps nothing" in message(lambda: ts.vmap(f, in_dims=None)(X, X))
    assert "maps nothing" in message(lambda: ts.vmap(lambda p: p["x"])({"x": X}))
    assert "another structure" in message(lambda: ts.vmap(f, in_dims=({"a": 0}, None))({"b": X}, X))
    assert "holds a str" in message(lambda: ts.vmap(f, in_dims="rows"))
    assert "takes a function first" in message(lambda: ts.vmap(0))
    assert "maps a function, not a Tensor" in message(lambda: ts.vmap(X))


def test_out_dims_that_do_not_fit() -> None:
    assert "at dimension 2 of a result with 2 dimensions" in message(lambda: ts.vmap(lambda x: x, out_dims=2)(X), IndexOutOfRangeError)
    assert "differs between examples" in message(lambda: ts.vmap(lambda x: x, out_dims=None)(X))
    assert "another structure" in message(lambda: ts.vmap(lambda x: (x, x), out_dims=(0, 0, 0))(X))
    assert "the result of" in message(lambda: ts.vmap(lambda x: object())(X), TracingError)


def test_unbound_names() -> None:
    assert "which nothing has bound" in message(lambda: ts.psum(X, "i"))
    assert "did you mean 'batch'?" in message(lambda: ts.vmap(lambda x: ts.psum(x, "bach"), axis_name="batch")(X))
    assert "combines with" in message(lambda: ts.vmap(lambda x: ts.all_reduce(x, "som"), axis_name="i")(X))


def test_values_are_not_there_while_tracing() -> None:
    assert "ts.where" in message(lambda: ts.vmap(lambda x: x if x.sum() > 0 else -x)(X), TracingError)


# -- derivatives ------------------------------------------------------------------------------------------------------------------
def loss(w: Any, x: Any) -> Any:
    return (ts.softmax(ts.tanh(x @ w)) ** 2).sum()


def test_gradients_of_examples() -> None:
    """Per-example gradients equal a loop of single ones; their sum is the gradient of the batch's loss, under jit too."""
    want = np.stack([ts.grad(loss)(W, X[i]) for i in range(4)])
    close(ts.vmap(ts.grad(loss), in_dims=(None, 0))(W, X), want)
    total = lambda w: ts.vmap(lambda x: loss(w, x))(X).sum()
    for g in (ts.grad(total), ts.jit(ts.grad(total)), ts.grad(ts.jit(total))):
        close(g(W), want.sum(0))
    close(ts.jit(ts.vmap(ts.grad(loss), in_dims=(None, 0)))(W, X), want)
    second = ts.vmap(ts.vmap(ts.grad(ts.grad(lambda t: ts.sin(t) * t))))(X).numpy()
    close(second, 2 * np.cos(X.numpy()) - X.numpy() * np.sin(X.numpy()), 1e-4)


def test_gradients_of_composites() -> None:
    q = rand(2, 6, 4)
    f = lambda q: (ts.layer_norm(ts.attention(q, q, q, causal=True)) * ts.gelu(q)).sum()
    close(ts.vmap(ts.grad(f))(q), np.stack([ts.grad(f)(q[i]) for i in range(2)]), 1e-4)


def test_gradients_through_collectives() -> None:
    """Of the sum of what all examples compute."""
    x = X.numpy()
    mean = ts.vmap(lambda a: ts.grad(lambda a: (ts.pmean(a, "i") * a).sum())(a), axis_name="i")(X)
    close(mean, np.broadcast_to(2 * x.mean(0), x.shape))
    top = ts.vmap(lambda a: ts.grad(lambda a: ts.pmax(a, "i").sum())(a), axis_name="i")(X)
    close(top, 4.0 * (x == x.max(0)))
    gathered = ts.vmap(lambda a: ts.grad(lambda a: (ts.all_gather(a, "i", stack=True) ** 2).sum())(a), axis_name="i")(X)
    close(gathered, 4 * 2 * x)
