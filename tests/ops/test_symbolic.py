"""Functions on symbolic sizes: one program serves every size, and shapes come out as expressions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from ways import host_compiler, traced

import tessera.ops as o
from tessera.types.dims import format_dim, sym

B, S, N = sym("B S N")
Program = tuple[Callable[..., Any], Callable[..., Any], tuple[tuple[Any, ...], ...], str]
PROGRAMS: dict[str, Program] = {
    "add": (o.add, np.add, ((B, S), (B, S)), "[B, S]"),
    "broadcast": (o.mul, np.multiply, ((B, S), (S,)), "[B, S]"),
    "sum": (lambda x: o.sum(x, 1), lambda x: x.sum(1), ((B, S),), "[B]"),
    "mean of all": (o.mean, np.mean, ((B, S),), "[]"),
    "softmax": (o.softmax, lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True), ((B, S),), "[B, S]"),
    "layer_norm": (o.layer_norm, lambda x: (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5),
          ((B, S, 8),), "[B, S, 8]"),
    "matmul": (o.matmul, np.matmul, ((B, S), (S, N)), "[B, N]"),
    "batched matmul": (o.matmul, np.matmul, ((B, S, 8), (B, 8, N)), "[B, S, N]"),
    "attention": (lambda q, k: o.attention(q, k, k, scale=0.5, causal=True), None, ((B, 2, S, 8), (B, 2, S, 8)), "[B, 2, S, 8]"),
    "heads": (lambda x: o.swapaxes(o.reshape(x, x.shape[0], x.shape[1], 4, -1), 1, 2),
              lambda x: x.reshape(*x.shape[:2], 4, -1).swapaxes(1, 2), ((B, S, 12),), "[B, 4, S, 3]"),
    "flatten": (lambda x: o.flatten(x), lambda x: x.reshape(-1), ((B, S),), "[B*S]"),
    "concat": (lambda x, y: o.concat([x, y], 1), lambda x, y: np.concatenate([x, y], 1), ((B, S), (B, N)), "[B, N+S]"),
    "split": (lambda x: o.split(x, 2, 0)[1], lambda x: x[len(x) // 2:], ((2 * B, S),), "[B, S]"),
    "pad": (lambda x: o.pad(x, [(1, 2), (0, 3)], 5.0), lambda x: np.pad(x, [(1, 2), (0, 3)], constant_values=5), ((B, S),), "[B+3, S+3]"),
    "flip": (lambda x: o.flip(x, 1), lambda x: x[:, ::-1], ((B, S),), "[B, S]"),
    "roll": (lambda x: o.roll(x, 3, 1), lambda x: np.roll(x, 3, 1), ((B, S),), "[B, S]"),
    "tril": (o.tril, np.tril, ((B, S),), "[B, S]"),
    "tile": (lambda x: o.tile(x, 2, 3), lambda x: np.tile(x, (2, 3)), ((B, S),), "[2*B, 3*S]"),
    "repeat": (lambda x: o.repeat(x, 2, 1), lambda x: np.repeat(x, 2, 1), ((B, S),), "[B, 2*S]"),
    "outer": (o.outer, np.outer, ((B,), (S,)), "[B, S]"),
    "einsum": (lambda x, y: o.einsum("bi,si->bs", x, y), lambda x, y: x @ y.T, ((B, N), (S, N)), "[B, S]"),
    "cumsum": (lambda x: o.cumsum(x, 1), lambda x: x.cumsum(1), ((B, S),), "[B, S]"),
    "argmax": (lambda x: o.argmax(x, 1), lambda x: x.argmax(1), ((B, S),), "[B]"),
    "sort": (lambda x: o.sort(x, 1), lambda x: np.sort(x, 1), ((B, S),), "[B, S]"),
    "take the last": (lambda x: o.take(x, -1, 1), lambda x: x[:, -1], ((B, S),), "[B]"),
    "take": (lambda x, y: o.take(x, o.argmax(y, 1), 0), lambda x, y: x[y.argmax(1)], ((S, 8), (B, S)), "[B, 8]"),
    "std": (lambda x: o.std(x, 0), lambda x: x.std(0), ((B, S),), "[S]"),
    "logsumexp": (lambda x: o.logsumexp(x, 0), lambda x: np.log(np.exp(x).sum(0)), ((B, S),), "[S]"),
    "conv": (lambda x, w: o.conv(x, w, padding=1), None, ((B, 3, S), (4, 3, 3)), "[B, 4, S]"),
    "one_hot": (lambda x: o.one_hot(o.argmax(x, 1), 7), lambda x: (x.argmax(1)[:, None] == np.arange(7)).astype(np.float32),
          ((B, S),), "[B, 7]"),
    "eye": (lambda x: o.sub(x, o.eye(x.shape[0], x.shape[1])), lambda x: x - np.eye(*x.shape, dtype=np.float32), ((B, S),), "[B, S]"),
    "update": (lambda x, y: o.dynamic_update_slice(x, y, (1, 0)), lambda x, y: np.concatenate([x[:1], y, x[1 + len(y):]]),
          ((B + 1, S), (B, S)), "[B+1, S]"),
}
SIZES = ({"B": 3, "S": 17, "N": 5}, {"B": 1, "S": 1, "N": 1}, {"B": 2, "S": 64, "N": 33})


@pytest.mark.parametrize("name", PROGRAMS)
def test_one_program_for_every_size(name: str) -> None:
    from tessera.ir.interpret_graph import interpret
    from tessera.types.dims import evaluate
    fn, numpy_fn, shapes, want = PROGRAMS[name]
    graph, _ = traced(fn, (np.zeros((), np.float32),) * len(shapes), shapes)
    (result,) = graph.result_types
    assert "[" + ", ".join(format_dim(d) for d in result.shape) + "]" == want
    run = host_compiler().compile(graph)
    for i, env in enumerate(SIZES):
        rng = np.random.default_rng(i)
        arrays = [rng.standard_normal([evaluate(d, env) for d in s]).astype(np.float32) for s in shapes]
        (got,) = (np.asarray(a) for a in run(list(arrays)))
        reference = numpy_fn(*arrays) if numpy_fn else interpret(graph, arrays)[0]
        assert got.shape == np.shape(reference)
        np.testing.assert_allclose(got, reference, rtol=2e-5, atol=2e-5, err_msg=str(env))
