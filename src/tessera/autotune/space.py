"""What a tuner searches: configurations, and spaces of them with constraints."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from ..errors import ArgumentError
from ..scheduling.decisions import Schedule


class Config(Mapping[str, Any]):
    """One choice of parameters; ``c.tile_m`` and ``c["tile_m"]`` are the same.  Immutable and hashable."""

    __slots__ = ("_hash", "_values")

    def __init__(self, values: Mapping[str, Any] = {}, /, **more: Any):
        self._values = {**values, **more}
        self._hash = hash(tuple(sorted(self._values.items())))

    def __getitem__(self, name: str) -> Any:
        return self._values[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name in Config.__slots__:
            raise AttributeError(name)
        try:
            return self._values[name]
        except KeyError:
            raise AttributeError(f"the configuration has no parameter {name!r}; it has {', '.join(self._values)}") from None

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Mapping) and self._values == dict(other)

    def __repr__(self) -> str:
        return "Config(" + ", ".join(f"{k}={v!r}" for k, v in self._values.items()) + ")"

    def __reduce__(self) -> tuple[Any, ...]:
        return Config, (self._values,)

    def schedule(self) -> Schedule:
        """The configuration as a schedule.

        Raises:
            ArgumentError: a parameter is no decision of a schedule.
        """
        return Schedule(**self._values)


Constraint = Callable[[Config], bool]


class SearchSpace:
    """Every combination of some values that keeps the constraints.

    Args:
        parameters: name → the values it may take, in order (for numbers: ascending, so that neighbours are alike).
        constraints: each takes a :class:`Config` and says whether it may be tried.

    Raises:
        ArgumentError: no parameter, or a parameter without values.
    """

    def __init__(self, parameters: Mapping[str, Sequence[Any]], constraints: Iterable[Constraint] = ()):
        if not parameters:
            raise ArgumentError("a search space needs at least one parameter", expected="tile_m=[32, 64], …")
        for name, values in parameters.items():
            if isinstance(values, str | Mapping) or not isinstance(values, Iterable):
                raise ArgumentError(f"the parameter {name!r} needs a list of values", received=repr(values)[:60])
        self.parameters = {n: tuple(v) for n, v in parameters.items()}
        for name, values in self.parameters.items():
            if not values:
                raise ArgumentError(f"the parameter {name!r} has no values")
        self.constraints = tuple(constraints)

    @property
    def size(self) -> int:
        """The number of combinations before constraints."""
        return math.prod(len(v) for v in self.parameters.values())

    def allows(self, config: Config) -> bool:
        """True when every constraint holds."""
        return all(c(config) for c in self.constraints)

    def __iter__(self) -> Iterator[Config]:
        for values in itertools.product(*self.parameters.values()):
            config = Config(dict(zip(self.parameters, values, strict=True)))
            if self.allows(config):
                yield config

    def points(self) -> list[Config]:
        """Every allowed configuration, in the order of the lists."""
        return list(self)

    def sample(self, rng: random.Random, tries: int = 1000) -> Config | None:
        """A random allowed configuration; None when ``tries`` draws found none."""
        for _ in range(tries):
            config = Config({n: rng.choice(v) for n, v in self.parameters.items()})
            if self.allows(config):
                return config
        return None

    def mutate(self, config: Config, rng: random.Random, rate: float) -> Config:
        """``config`` with each parameter, with probability ``rate``, moved to a neighbouring value (one time in four: to any)."""
        out = dict(config)
        for name, values in self.parameters.items():
            if rng.random() >= rate:
                continue
            at = values.index(out[name])
            step = rng.choice((-1, 1))
            out[name] = rng.choice(values) if rng.random() < 0.25 else values[max(0, min(len(values) - 1, at + step))]
        return Config(out)

    def cross(self, a: Config, b: Config, rng: random.Random) -> Config:
        """Each parameter from one of two configurations."""
        return Config({n: (a if rng.random() < 0.5 else b)[n] for n in self.parameters})

    def position(self, config: Config) -> list[float]:
        """The configuration as numbers in [0, 1]: the place of each value in its list."""
        return [self.parameters[n].index(config[n]) / max(1, len(self.parameters[n]) - 1) for n in self.parameters]


def space_of(configs: Iterable[Mapping[str, Any]]) -> list[Config]:
    """Configurations from mappings, each once.

    Raises:
        ArgumentError: none, or something that is no mapping.
    """
    out: dict[Config, None] = {}
    for c in configs:
        if isinstance(c, Schedule):
            c = c.decisions
        if not isinstance(c, Mapping):
            raise ArgumentError(f"a configuration is a mapping, not a {type(c).__name__}", expected='{"tile_m": 64, "warps": 4}')
        out[Config(c)] = None
    if not out:
        raise ArgumentError("autotune() needs at least one configuration", expected='configs=[{"tile_m": 64}, …]')
    return list(out)


__all__ = ["Config", "Constraint", "SearchSpace", "space_of"]
