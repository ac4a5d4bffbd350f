"""Strategies: which configurations to try next, given what has been measured."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from ..errors import ArgumentError
from .space import Config, SearchSpace


class Autotuner:
    """The protocol of strategies; subclass it for your own.

    The loop asks :meth:`suggest_configs` for candidates until it returns none that is new (or the budget is spent), and reports
    each measurement to :meth:`update`.  The base class tries every configuration, in order.

    Attributes:
        space: the candidates, set by the loop: a :class:`SearchSpace` or a list of configurations.
    """

    space: Any = ()

    def candidates(self) -> list[Config]:
        """Every allowed configuration."""
        return list(self.space)

    def suggest_configs(self, kernel: Any, input_shapes: Sequence[tuple[int, ...]]) -> Iterable[Config]:
        """Configurations to try next."""
        return self.candidates()

    def update(self, config: Config, performance: float) -> None:
        """Learn that ``config`` measured ``performance`` (less is better; infinite: it failed)."""

    def extract_features(self, kernel: Any, input_shapes: Sequence[tuple[int, ...]]) -> Any:
        """The candidates and, for each, the place of every parameter in its list and of every size on a logarithmic scale.

        Returns:
            (configurations, float64 [configurations, parameters + sizes]).
        """
        from ..ml import Features
        configs = self.candidates()
        space = self.space if isinstance(self.space, SearchSpace) else _box(configs)
        sizes = [math.log2(n + 1) / 32 for shape in input_shapes for n in shape]
        return Features(configs, np.asarray([[*space.position(c), *sizes] for c in configs], np.float64))


def _box(configs: Sequence[Config]) -> SearchSpace:
    """The smallest space that holds some configurations."""
    names = dict.fromkeys(n for c in configs for n in c)
    if any(n not in c for c in configs for n in names):
        raise ArgumentError("configurations with different parameters have no common features")
    return SearchSpace({n: sorted({c[n] for c in configs}, key=lambda v: (str(type(v)), v)) for n in names})


class Evolutionary(Autotuner):
    """A genetic search: tournament selection, uniform crossover, mutation to neighbouring values, the best kept.

    Args:
        population_size: configurations of a generation.
        generations: how many; the first is random.
        mutation_rate: probability that a parameter changes.
        crossover_rate: probability that a child has two parents.
        seed: of the random choices; equal seeds and measurements give equal searches.

    Raises:
        ArgumentError: a size below 2, no generation, or a rate outside [0, 1].
    """

    def __init__(self, population_size: int = 50, generations: int = 20, mutation_rate: float = 0.1, crossover_rate: float = 0.7,
                 seed: int = 0):
        if population_size < 2 or generations < 1:
            raise ArgumentError("an evolutionary search needs at least 2 configurations and 1 generation",
                                received=f"population_size={population_size}, generations={generations}")
        for what, rate in (("mutation_rate", mutation_rate), ("crossover_rate", crossover_rate)):
            if not 0 <= rate <= 1:
                raise ArgumentError(f"{what} is a probability, not {rate}")
        self.population_size, self.generations = population_size, generations
        self.mutation_rate, self.crossover_rate = mutation_rate, crossover_rate
        self.rng = random.Random(seed)
        self.measured: dict[Config, float] = {}
        self.generation = 0

    def suggest_configs(self, kernel: Any, input_shapes: Sequence[tuple[int, ...]]) -> list[Config]:
        if not isinstance(self.space, SearchSpace):
            self.space = _box(list(self.space))
        if self.generation >= self.generations:
            return []
        self.generation += 1
        if not self.measured:
            drawn = (self.space.sample(self.rng) for _ in range(self.population_size))
            return list(dict.fromkeys(c for c in drawn if c is not None))
        fittest = sorted(self.measured, key=self.measured.__getitem__)[:self.population_size]
        children: dict[Config, None] = {}
        for _ in range(20 * self.population_size):
            if len(children) == self.population_size:
                break
            child = self._parent(fittest)
            if self.rng.random() < self.crossover_rate:
                child = self.space.cross(child, self._parent(fittest), self.rng)
            child = self.space.mutate(child, self.rng, self.mutation_rate)
            if child not in self.measured and self.space.allows(child):
                children[child] = None
        return list(children)

    def _parent(self, fittest: Sequence[Config]) -> Config:
        """The best of three of the fittest configurations so far."""
        return fittest[min(self.rng.randrange(len(fittest)) for _ in range(3))]

    def update(self, config: Config, performance: float) -> None:
        self.measured[config] = performance


class ModelGuided(Autotuner):
    """Search by a learned model: some random configurations first, then those that promise most (lower confidence bound).

    Args:
        initial: random configurations before the first fit.
        batch: configurations between fits.
        trials: measurements in all.
        caution: how many standard deviations of hope the model gives to what it has not seen.
        seed: of the random choices.
    """

    def __init__(self, initial: int = 8, batch: int = 4, trials: int = 40, caution: float = 1.0, seed: int = 0):
        from ..ml import PerformancePredictor
        self.initial, self.batch, self.trials, self.caution = initial, batch, trials, caution
        self.rng = random.Random(seed)
        self.model = PerformancePredictor()
        self.history: list[tuple[Config, float]] = []

    def suggest_configs(self, kernel: Any, input_shapes: Sequence[tuple[int, ...]]) -> list[Config]:
        left = self.trials - len(self.history)
        if left <= 0:
            return []
        seen = {c for c, _ in self.history}
        features = self.extract_features(kernel, input_shapes)
        new = [c for c in features.configs if c not in seen]
        if not seen:
            self.rng.shuffle(new)
            return new[:min(self.initial, left)]
        predictions = self.model.predict(features)
        self.model.retrain(self.history)
        predictions = self.model.predict(features)
        scale = np.abs(predictions.values) if self.model._log else 1.0
        hope = predictions.values - self.caution * predictions.spread * scale
        order = sorted((i for i, c in enumerate(features.configs) if c not in seen), key=lambda i: hope[i])
        return [features.configs[i] for i in order[:min(self.batch, left)]]

    def update(self, config: Config, performance: float) -> None:
        self.history.append((config, performance))


__all__ = ["Autotuner", "Evolutionary", "ModelGuided"]
