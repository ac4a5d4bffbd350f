"""A learned model of performance, for tuners: Gaussian-process regression over the places of parameters in their lists.

The model of C. E. Rasmussen and C. K. I. Williams, *Gaussian Processes for Machine Learning* (2006), algorithm 2.1, with the
squared-exponential kernel; the length scale with the greatest marginal likelihood is taken from a grid.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from .autotune.space import Config
from .errors import ArgumentError

LENGTHS = (0.15, 0.25, 0.4, 0.65, 1.0, 1.6, 2.5)
NOISES = (1e-4, 1e-2, 1e-1)
MOST_SAMPLES = 512


class Features(NamedTuple):
    """Candidates and what the model sees of them: ``vectors`` [candidates, features], in [0, 1]."""

    configs: list[Config]
    vectors: np.ndarray[Any, Any]


class Predictions(NamedTuple):
    """``values`` [candidates]: the predicted metric (less is better); ``spread``: its standard deviation."""

    configs: list[Config]
    values: np.ndarray[Any, Any]
    spread: np.ndarray[Any, Any]


class PerformancePredictor:
    """Learns a metric as a function of a configuration.

    Before it has learnt anything, every candidate is predicted alike, with the same spread.
    """

    def __init__(self) -> None:
        self._x: np.ndarray[Any, Any] = np.zeros((0, 0))
        self._alpha: np.ndarray[Any, Any] = np.zeros(0)
        self._chol: np.ndarray[Any, Any] = np.zeros(0)
        self._length = 1.0
        self._mean, self._scale = 0.0, 1.0
        self._log = False
        self._features: dict[Config, np.ndarray[Any, Any]] = {}

    # -- using -------------------------------------------------------------------------------------------------------------
    def predict(self, features: Any) -> Predictions:
        """The metric of each candidate.

        Args:
            features: what :meth:`~tessera.autotune.Autotuner.extract_features` returns.
        """
        configs, vectors = features
        self._features.update(zip(configs, vectors, strict=True))
        if not len(self._alpha):
            return Predictions(list(configs), np.zeros(len(configs)), np.ones(len(configs)))
        k = _kernel(np.asarray(vectors), self._x, self._length)
        mean = k @ self._alpha
        v = np.linalg.solve(self._chol, k.T)
        spread = np.sqrt(np.maximum(1.0 - np.sum(v * v, 0), 1e-12))
        values = mean * self._scale + self._mean
        return Predictions(list(configs), np.exp(values) if self._log else values, spread * self._scale)

    @staticmethod
    def top_k_configs(predictions: Any, k: int = 10) -> list[Config]:
        """The ``k`` candidates with the least predicted metric, best first; equal ones in the order of the candidates.

        Raises:
            ArgumentError: ``k`` is not positive.
        """
        if k < 1:
            raise ArgumentError(f"k is at least 1, not {k}")
        order = np.argsort(predictions[1], kind="stable")[:k]
        return [predictions[0][i] for i in order]

    # -- learning ------------------------------------------------------------------------------------------------------------
    def retrain(self, history: Iterable[tuple[Any, float]]) -> None:
        """Fit to pairs (configuration, metric); failed candidates (not finite) are left out.  The latest 512 count.

        Raises:
            ArgumentError: a configuration was never among the candidates of :meth:`predict`.
        """
        pairs = [(Config(c), float(y)) for c, y in history if math.isfinite(y)][-MOST_SAMPLES:]
        if not pairs:
            return
        unknown = next((c for c, _ in pairs if c not in self._features), None)
        if unknown is not None:
            raise ArgumentError(f"{unknown!r} was never predicted, so its features are not known",
                                hints=["Call predict(features) on the space first", "Use fit(vectors, values)"])
        self.fit([self._features[c] for c, _ in pairs], [y for _, y in pairs])

    def fit(self, vectors: Sequence[Any], values: Sequence[float]) -> None:
        """Fit to feature vectors [n, features] and metrics [n]; positive metrics are learnt on a logarithmic scale."""
        x, y = np.asarray(vectors, np.float64), np.asarray(values, np.float64)
        self._log = bool((y > 0).all())
        y = np.log(y) if self._log else y
        self._mean, self._scale = float(y.mean()), float(y.std()) or 1.0
        y = (y - self._mean) / self._scale
        best = -math.inf
        for length in LENGTHS:
            gram = _kernel(x, x, length)
            for noise in NOISES:
                chol = np.linalg.cholesky(gram + (noise + 1e-8) * np.eye(len(y)))
                half = np.linalg.solve(chol, y)
                likelihood = -0.5 * float(half @ half) - float(np.log(np.diag(chol)).sum())
                if likelihood > best:
                    best, self._length, self._chol = likelihood, length, chol
                    self._alpha = np.linalg.solve(chol.T, half)
        self._x = x


def _kernel(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], length: float) -> np.ndarray[Any, Any]:
    d = ((a[:, None, :] - b[None, :, :]) ** 2).sum(-1)
    out: np.ndarray[Any, Any] = np.exp(-d / (2 * length * length))
    return out


__all__ = ["Features", "PerformancePredictor", "Predictions"]
