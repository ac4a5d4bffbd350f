"""``ts.fold``: a fixed balanced tree."""

import subprocess
import sys

import numpy as np
import pytest

import tessera as ts
from tessera.errors import ArgumentError, DTypeError, ShapeError, TracingError
from tessera.transforms.folding import pairings


@ts.fold
def total(x, y):
    return x + y


def test_pairings_are_balanced_and_keep_the_order():
    for n in (0, 1, 2, 3, 7, 8, 1000):
        levels = pairings(n)
        assert len(levels) == max(n - 1, 0).bit_length()
        assert sum(len(level) for level in levels) == max(n - 1, 0)
        for (_, middle), (start, _) in (pair for level in levels for pair in level):
            assert middle == start
    assert pairings(5) == total.pairings(5) == [[((0, 1), (1, 2)), ((2, 3), (3, 4))], [((0, 2), (2, 4))], [((0, 4), (4, 5))]]


@pytest.mark.parametrize("n", [1, 2, 3, 5, 8, 13, 100])
def test_tensors_follow_the_pairings(n):
    """The order of a function that does not commute shows the tree: spans meet, and each is as long as the log says."""
    def join(a, b):
        return {"start": a["start"], "end": b["end"], "ok": a["ok"] & b["ok"] & (a["end"] == b["start"]),
                "depth": ts.maximum(a["depth"], b["depth"]) + 1}

    i = ts.arange(n)
    out = ts.fold(join, {"start": i, "end": i + 1, "ok": i >= 0, "depth": i * 0})
    assert (int(out["start"]), int(out["end"]), bool(out["ok"])) == (0, n, True)
    assert int(out["depth"]) == (n - 1).bit_length()


def test_lists_are_combined_in_the_same_tree():
    assert ts.fold(lambda a, b: f"({a}{b})", list("abcde")) == "(((ab)(cd))e)"
    log = []
    ts.fold(lambda a, b: (log.append((a, b)), (a[0], b[1]))[1], [(i, i + 1) for i in range(11)])
    assert log == [pair for level in pairings(11) for pair in level]
    assert ts.fold(lambda a, b: a + b, [], init=3) == 3


def test_matrices_and_axes():
    ms = ts.randn(9, 3, 3)
    want = np.linalg.multi_dot(list(ms.numpy().astype(np.float64)))
    np.testing.assert_allclose(ts.fold(lambda a, b: a @ b, ms).numpy(), want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ts.fold(lambda a, b: a @ b, ts.moveaxis(ms, 0, 2), axis=-1).numpy(), want, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(ts.fold(ts.maximum, ms, axis=1, init=ts.full((9, 3), 5.0)).numpy(), np.full((9, 3), 5.0))


def test_it_is_more_accurate_than_a_loop():
    x = np.random.default_rng(0).uniform(0, 1, 1_000_000).astype(np.float32)
    exact = np.sum(x.astype(np.float64))
    loop = np.cumsum(x, dtype=np.float32)[-1]
    assert abs(float(total(ts.tensor(x))) - exact) < abs(loop - exact) / 20


def test_under_jit_with_a_symbolic_size():
    @ts.function
    def f(x: ts.Tensor["N", 2]):  # noqa: F821
        return total(x) * 2

    for n in (1, 4, 7):
        x = ts.randn(n, 2)
        np.testing.assert_allclose(f(x).numpy(), x.numpy().sum(0) * 2, rtol=1e-5)
    np.testing.assert_allclose(ts.vmap(total)(ts.ones(3, 5)).numpy(), [5, 5, 5])


def test_bits_do_not_depend_on_threads():
    code = ("import tessera as ts, numpy as np, sys; ts.set_num_threads(int(sys.argv[1]));"
            "x = ts.tensor(np.random.default_rng(1).standard_normal(300_007).astype(np.float32));"
            "print(ts.fold(lambda a, b: a + b, x).numpy().tobytes().hex())")
    outs = {subprocess.run([sys.executable, "-c", code, str(n)], capture_output=True, text=True, check=True).stdout for n in (1, 2, 4)}
    assert len(outs) == 1


def test_errors():
    with pytest.raises(ShapeError, match="no elements"):
        total(ts.zeros(0, 3))
    with pytest.raises(ShapeError, match="a scalar has none"):
        total(ts.tensor(1.0))
    with pytest.raises(ShapeError, match=r"makes f32\[3, 1\] of two f32\[3\]"):
        ts.fold(lambda a, b: (a + b).reshape(3, 1), ts.ones(4, 3))
    with pytest.raises(DTypeError, match=r"makes bool\[3\]"):
        ts.fold(lambda a, b: a > b, ts.ones(4, 3))
    with pytest.raises(TracingError, match="structure"):
        ts.fold(lambda a, b: (a, b), ts.ones(4, 3))
    with pytest.raises(ShapeError, match="unequal lengths"):
        ts.fold(lambda a, b: a, (ts.ones(4), ts.ones(5)))
    with pytest.raises(ArgumentError, match="binary function"):
        ts.fold(3, ts.ones(3))
