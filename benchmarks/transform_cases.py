"""The cases of ``benchmarks/transforms.py``: derivatives, batching and loops, as training uses them."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
from cases import GPT2, Arrays, Case, gpt2_weights

HIDDEN = 256          # of the LSTM, and of its input
STEPS, STREAMS = 512, 16


def _gpt2() -> Arrays:
    ids = np.random.default_rng(1).integers(0, GPT2["vocab_size"], (1, 257))
    return {"ids": ids[:, :-1].copy(), "targets": ids[:, 1:].copy(), "weights": gpt2_weights(), "config": GPT2}


def _dense(rng: np.random.Generator, *sizes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    def normal(scale: float, *shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(scale)
    return [(normal(a ** -0.5, a, b), normal(0.1, b)) for a, b in pairwise(sizes)]


def _hessian() -> Arrays:
    """35 inputs, 27 hidden units, one output: 35 x 27 + 27 + 27 + 1 = 1000 parameters, in one vector."""
    rng = np.random.default_rng(2)
    flat = np.concatenate([part.ravel() for layer in _dense(rng, 35, 27, 1) for part in layer])
    return {"theta": flat, "x": rng.standard_normal((64, 35), dtype=np.float32), "y": rng.standard_normal(64, dtype=np.float32)}


def _per_example() -> Arrays:
    rng = np.random.default_rng(3)
    return {"layers": _dense(rng, 64, 256, 256, 10), "x": rng.standard_normal((256, 64), dtype=np.float32),
            "y": rng.integers(0, 10, 256)}


def _lstm() -> Arrays:
    rng = np.random.default_rng(4)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape, dtype=np.float32)

    scale = np.float32(1 / np.sqrt(HIDDEN))
    return {"wx": normal(HIDDEN, 4 * HIDDEN) * scale, "wh": normal(HIDDEN, 4 * HIDDEN) * scale, "b": normal(4 * HIDDEN) * scale,
            "xs": normal(STEPS, STREAMS, HIDDEN)}


def _pool() -> Arrays:
    """The first pooling of a ResNet: 3 x 3 windows, 2 apart, and a cotangent of the result."""
    rng = np.random.default_rng(5)
    return {"x": rng.standard_normal((8, 64, 112, 112), dtype=np.float32), "g": rng.standard_normal((8, 64, 56, 56), dtype=np.float32)}


def _stem() -> Arrays:
    """The first convolution of a ResNet: 7 x 7 windows, 2 apart."""
    rng = np.random.default_rng(6)
    return {"x": rng.standard_normal((8, 3, 224, 224), dtype=np.float32), "w": rng.standard_normal((64, 3, 7, 7), dtype=np.float32),
            "g": rng.standard_normal((8, 64, 112, 112), dtype=np.float32)}


_FORWARD = 2.0 * 256 * (12 * 12 * 768 * 768 + 768 * 50257) + 12 * 2.0 * 256 * 256 * 768
_LSTM = 2.0 * STEPS * STREAMS * 2 * HIDDEN * 4 * HIDDEN

CASES: dict[str, Case] = {
    "gpt2_grad": Case("GPT-2 small, loss and gradient of every parameter, B1 S256", _gpt2, 3 * _FORWARD, group=True),
    "hessian": Case("Hessian of an MLP 35-27-1 (1,000 parameters), squared error of 64 examples", _hessian, group=True),
    "per_example": Case("gradients of each of 256 examples, MLP 64-256-256-10, cross entropy", _per_example, group=True),
    "lstm": Case("scan of an LSTM over 512 steps, 16 streams, 256 units", _lstm, _LSTM, group=True),
    "lstm_grad": Case("the same, with the gradients of its weights (sum of squares of all states)", _lstm, 3 * _LSTM, group=True),
    "pool_grad": Case("derivative of max pooling 3 x 3 / 2, 8 x 64 x 112 x 112, distinct numbers", _pool),
    "stem_grad": Case("derivative by the kernel of a convolution 7 x 7 / 2, 8 x 3 x 224 x 224 to 64 channels", _stem,
                      2.0 * 8 * 64 * 112 * 112 * 3 * 49),
}


def gradients(arrays: Any) -> np.ndarray:
    """What a peer returns, as one vector, so that results can be compared: trees in the order of their leaves."""
    return np.concatenate([np.ravel(np.asarray(a, np.float32)) for a in arrays])
