"""The library's kernels of the explicit level: right in the interpreter, without races, at ragged sizes too."""

import math

import ml_dtypes
import numpy as np
import pytest

from tessera.ir import interpret_tile, text, tile
from tessera.ir.core import BufferType
from tessera.kernels.hopper import approximate, attention, matmul
from tessera.tiling import dsl
from tessera.types.dims import name
from tessera.types.dtypes import f32

BF16 = ml_dtypes.bfloat16
SMALL = matmul.Config(n=128, stages=2, blocks=4)


def random(rng, *shape):
    return rng.standard_normal(shape).astype(BF16)


@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("seed", [None, 3])
def test_product(transposed, seed):
    rng = np.random.default_rng(0)
    m, n, k = 136, 152, 136
    fn = matmul.matmul_program(*(name(x) for x in "MNK"), transposed=transposed, config=SMALL)
    a, b, c = random(rng, m, k), random(rng, *((n, k) if transposed else (k, n))), np.full((m, n), np.nan, BF16)
    interpret_tile.run(fn, [a, b, c], {"M": m, "N": n, "K": k}, seed=seed)
    want = a.astype(np.float64) @ (b.T if transposed else b).astype(np.float64)
    assert np.abs(c.astype(np.float64) - want).max() < 2**-8 * np.abs(want).max()


@pytest.mark.parametrize("m, n, k", [(136, 151, 136), (65, 333, 64)])
def test_product_whose_rows_the_threads_store(m, n, k):
    rng = np.random.default_rng(5)
    fn = matmul.matmul_program(*(name(x) for x in "MNK"), config=matmul.Config(n=128, stages=2, blocks=2, direct=True))
    a, b, c = random(rng, m, k), random(rng, n, k), np.full((m, n), np.nan, BF16)
    interpret_tile.run(fn, [a, b, c], {"M": m, "N": n, "K": k}, seed=2)
    want = a.astype(np.float64) @ b.T.astype(np.float64)
    assert np.abs(c.astype(np.float64) - want).max() < 2**-7 * np.abs(want).max()


@pytest.mark.parametrize("m, n, k", [(136, 152, 136), (600, 136, 320), (72, 128, 128)])
def test_product_that_is_stored_beside_the_next(m, n, k):
    rng = np.random.default_rng(4)
    fn = matmul.matmul_program(*(name(x) for x in "MNK"), config=matmul.Config(n=128, stages=2, blocks=2, spread=2))
    a, b, c = random(rng, m, k), random(rng, n, k), np.full((m, n), np.nan, BF16)
    interpret_tile.run(fn, [a, b, c], {"M": m, "N": n, "K": k}, seed=2)
    want = a.astype(np.float64) @ b.T.astype(np.float64)
    assert np.abs(c.astype(np.float64) - want).max() < 2**-8 * np.abs(want).max()


EXACT = {"exp": np.exp, "sigmoid": lambda x: 1 / (1 + np.exp(-x)), "tanh": np.tanh, "erf": np.vectorize(math.erf)}


@pytest.mark.parametrize("function", approximate.FUNCTIONS)
def test_functions_for_results_of_16_bits(function):
    program = dsl.TileProgram("f", [("x", BufferType(f32, (1024,))), ("y", BufferType(f32, (1024,)))], (), grid=(1,))
    fn = dsl.build(program, lambda x, y: dsl.store(y, (0,), approximate.FUNCTIONS[function](dsl.load(x, (0,), (1024,)))))
    x = np.concatenate([np.linspace(-20, 20, 512), np.geomspace(1e-6, 9, 256), -np.geomspace(1e-6, 9, 256)]).astype(np.float32)
    y = np.full_like(x, np.nan)
    interpret_tile.run(fn, [x, y], {})
    want = EXACT[function](x.astype(np.float64))
    assert (np.abs(y - want) <= 4e-6 * np.abs(want)).all()


def test_product_with_an_epilogue():
    rng = np.random.default_rng(1)
    fn = matmul.matmul_program(64, 128, 64, config=matmul.Config(n=128, stages=2, blocks=2, groups=1),
                               epilogue=lambda v, row, column, *buffers: dsl.maximum(v * 2.0, 0.0))
    a, b, c = random(rng, 64, 64), random(rng, 128, 64), np.full((64, 128), np.nan, BF16)
    interpret_tile.run(fn, [a, b, c], {})
    want = np.maximum(2 * (a.astype(np.float64) @ b.T.astype(np.float64)), 0)
    assert np.abs(c.astype(np.float64) - want).max() < 2**-8 * np.abs(want).max()


@pytest.mark.parametrize("causal, queries, keys, groups", [
    (False, 72, 200, 2), (True, 200, 200, 2), (False, 100, 130, 1), (False, 72, 200, 3), (True, 500, 500, 3), (True, 90, 90, 3)])
def test_attention(causal, queries, keys, groups):
    rng = np.random.default_rng(2)
    fn = attention.attention_program(name("H"), name("S"), name("S") if causal else name("T"), 64, causal=causal,
                                     config=attention.Config(groups=groups))
    q, k, v = random(rng, 1, queries, 64), random(rng, 1, keys, 64), random(rng, 1, keys, 64)
    o, lse = np.full(q.shape, np.nan, BF16), np.full((1, queries), np.nan, np.float32)
    interpret_tile.run(fn, [q, k, v, o, lse], {"H": 1, "S": queries, "T": keys}, seed=1)
    scores = q.astype(np.float64) @ k.astype(np.float64).transpose(0, 2, 1) / 8
    if causal:
        scores = np.where(np.tril(np.ones((queries, keys), bool)), scores, -np.inf)
    total = np.log(np.exp(scores).sum(-1))
    want = np.exp(scores - total[..., None]) @ v.astype(np.float64)
    assert np.abs(o.astype(np.float64) - want).max() < 2e-2
    assert np.abs(lse - total).max() < 1e-5


def test_programs_print_and_parse_back():
    fn = attention.attention_program(name("H"), name("S"), name("S"), 64, causal=True)
    again = text.parse_function(str(fn))
    tile.verify(again)
    assert str(again) == str(fn)
