"""Random compositions of the functions that users call: interpreted and compiled results agree."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ways import host_compiler, interpret, traced

import tessera.ops as o
from tessera.types import dtypes as dt

Rng = np.random.Generator
Step = Callable[[Any, Any, Rng], Any]


def _axis(x: Any, r: Rng) -> int:
    return int(r.integers(len(x.type.shape)))


def _ints(x: Any) -> Any:
    """Small non-negative int64 numbers made from any tensor."""
    return o.mod(o.floor(o.mul(o.abs(o.tanh(x)), 50.0)).to(dt.int64), 3)


# each takes a tensor of rank 2, another one, and random numbers; gives a tensor of rank 2
STEPS: dict[str, Step] = {
    "add": lambda x, y, r: o.add(x, o.mean(y)),
    "mul": lambda x, y, r: o.mul(x, o.tanh(o.sum(y, 0, True)) if y.shape[1] == x.shape[1] else 0.5),
    "maximum": lambda x, y, r: o.maximum(x, o.neg(x)),
    "where": lambda x, y, r: o.where(o.gt(x, 0.1), x, o.mul(x, x)),
    "exp": lambda x, y, r: o.exp(o.clip(x, -3, 1)),
    "sqrt": lambda x, y, r: o.sqrt(o.add(o.abs(x), 0.5)),
    "sin": lambda x, y, r: o.sin(x),
    "erf": lambda x, y, r: o.erf(x),
    "div": lambda x, y, r: o.div(x, o.add(o.abs(x), 1.0)),
    "half": lambda x, y, r: o.cast(o.cast(x, dt.bf16), dt.f32),
    "transpose": lambda x, y, r: o.transpose(x),
    "flip": lambda x, y, r: o.flip(x, _axis(x, r)),
    "roll": lambda x, y, r: o.roll(x, int(r.integers(-4, 5)), _axis(x, r)),
    "reshape": lambda x, y, r: o.reshape(x, -1, x.shape[0]),
    "pad": lambda x, y, r: o.pad(x, [(1, 0), (0, 2)], 0.5),
    "concat": lambda x, y, r: o.concat([x, o.mul(x, 2.0)], _axis(x, r)),
    "stack": lambda x, y, r: o.reshape(o.stack([x, o.neg(x)], -1), x.shape[0], -1),
    "split": lambda x, y, r: o.sub(*o.split(o.concat([x, o.flip(x, 1)], 1), 2, 1)),
    "triu": lambda x, y, r: o.triu(x, int(r.integers(-2, 3))),
    "repeat": lambda x, y, r: o.repeat(x, 2, _axis(x, r)),
    "softmax": lambda x, y, r: o.softmax(x, _axis(x, r)),
    "layer_norm": lambda x, y, r: o.layer_norm(x),
    "sum": lambda x, y, r: o.sub(x, o.mean(x, _axis(x, r), True)),
    "max": lambda x, y, r: o.sub(x, o.max(x, _axis(x, r), True)),
    "cumsum": lambda x, y, r: o.mul(o.cumsum(x, _axis(x, r)), 0.2),
    "sort": lambda x, y, r: o.sort(x, _axis(x, r)),
    "matmul": lambda x, y, r: o.tanh(o.matmul(x, o.transpose(x))),
    "gelu": lambda x, y, r: o.gelu(x),
    "take": lambda x, y, r: o.take(x, o.argmax(x, _axis(x, r)) if x.shape[0] == x.shape[1] else [0, -1, 0], 0),
    "along": lambda x, y, r: o.take_along_axis(x, o.argsort(x, 1), 1),
    "one_hot": lambda x, y, r: o.one_hot(o.reshape(_ints(x), -1), 3),
    "scatter": lambda x, y, r: o.scatter(x, [0, 0], o.mul(o.take(x, [0, -1], 0), 2.0), 0, "add"),
    "update": lambda x, y, r: o.dynamic_update_slice(x, o.full((1, x.shape[1]), 0.25), (o.reshape(o.take(_ints(x), 0),
        ()) if x.shape[0] > 2 else 0, 0)),
    "ints": lambda x, y, r: o.cast(o.add(o.shift_left(_ints(x), 2), o.bitwise_xor(_ints(x), 5)), dt.f32),
    "outer": lambda x, y, r: o.tanh(o.outer(o.take(x, 0, 0), o.take(x, -1, 0))),
}


def build(seed: int, length: int) -> Callable[..., Any]:
    """A function of two matrices that applies ``length`` random steps and returns the last values."""
    def function(x: Any, y: Any) -> Any:
        r = np.random.default_rng(seed)
        values = [x, y]
        for name in r.choice(list(STEPS), length):
            chosen = values[int(r.integers(max(len(values) - 3, 0), len(values)))]
            made = STEPS[name](chosen, values[int(r.integers(len(values)))], r)
            if math.prod(made.shape) <= 600:
                values.append(made)
        return values[-3:]
    return function


def check(seed: int, length: int) -> None:
    r = np.random.default_rng(seed + 1000)
    shape = [tuple(int(n) for n in r.integers(1, 9, 2)) for _ in range(2)]
    arrays = [r.standard_normal(s).astype(np.float32) for s in shape]
    graph, _ = traced(build(seed, length), tuple(arrays))
    want = interpret(graph, arrays)
    got = host_compiler().compile(graph)(list(arrays))
    for g, w in zip(got, want, strict=True):
        np.testing.assert_allclose(np.asarray(g), w, rtol=2e-3, atol=2e-3, err_msg=str(graph))


@pytest.mark.parametrize("seed", range(12))
def test_random_functions(seed: int) -> None:
    check(seed, 8)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12, 150))
def test_many_random_functions(seed: int) -> None:
    check(seed, 14)


def test_a_result_that_an_earlier_kernel_computes_for_itself() -> None:
    """The product recomputes the flipped rows; that they get a buffer later, as a result, must not change that."""
    def function(x: Any) -> Any:
        z = o.flip(x, 1)
        t = o.transpose(z)
        return o.matmul(z, t), t

    x = np.random.default_rng(0).standard_normal((4, 6)).astype(np.float32)
    graph, _ = traced(function, (x,))
    product, other = host_compiler().compile(graph)([x])
    np.testing.assert_allclose(np.asarray(product), x[:, ::-1] @ x[:, ::-1].T, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(np.asarray(other), x[:, ::-1].T)


def test_lanes_that_only_an_index_depends_on() -> None:
    """A column number inside the loops after a full reduction."""
    def function(x: Any) -> Any:
        y = o.sqrt(x)
        return o.triu(o.add(y, o.mean(y)), -2)

    x = np.random.default_rng(0).uniform(1, 2, (6, 6)).astype(np.float32)
    graph, _ = traced(function, (x,))
    (got,) = host_compiler().compile(graph)([x])
    np.testing.assert_allclose(np.asarray(got), np.triu(np.sqrt(x) + np.sqrt(x).mean(), -2), rtol=1e-5)
