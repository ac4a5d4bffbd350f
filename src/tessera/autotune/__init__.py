"""Autotuning: measure configurations of a kernel or function and keep the best.

    @ts.autotune(configs=[{"tile_m": 64, "tile_n": 64}, {"tile_m": 128, "tile_n": 128}], metric="latency")
    def product(a, b):
        return a @ b

The module is callable: as a decorator (``configs=`` or ``tuner=``), or as a function (``ts.autotune(kernel, shapes=[…])`` tunes now and
returns the :class:`Result`).  ``search_space`` and ``evolutionary`` are further decorators.  Tuning changes no bit of a result, unless
``numerics="fast"`` allows it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

from ..errors import ArgumentError, unknown_keyword
from .measure import METRICS, time
from .measure import metric as metric_of
from .models import EmpiricalModel, PerformanceModel, RooflineModel, ScheduleGenerator
from .space import Config, Constraint, SearchSpace, space_of
from .tuners import Autotuner, Evolutionary, ModelGuided
from .tuning import DEFAULT_SPACE, Result, Trial, Tuned, tune

_OPTIONS = ("metric", "tuner", "numerics", "trials", "cache")


def autotune(target: Any = None, *, configs: Iterable[Mapping[str, Any]] | None = None, space: Any = None,
             shapes: Iterable[Sequence[int]] | None = None, dtype: Any = None, tuner: Any = None, **options: Any) -> Any:
    """Decorator, or (with ``shapes``) a search that runs now.

    Args:
        target: a kernel or a function.
        configs: configurations to try, in order: mappings or schedules.
        space: name → values, or a :class:`SearchSpace`; without either, some common tiles are tried.
        shapes: of every tensor argument, for a search on random tensors of ``dtype`` (f32).
        tuner: an :class:`Autotuner`, its class, or a function that makes one: the strategy (default: try everything).
        metric: "latency", "throughput", "memory", "energy", or a function of a call whose result is to be least.
        numerics: "exact" (default) skips candidates that give other bits than the default configuration, "fast" only those outside
            the dtype's tolerance.
        trials: candidates at most.
        cache: keep what is found on disk.

    Returns:
        A :class:`Tuned`, a decorator that makes one, or a :class:`Result`.

    Raises:
        ArgumentError: no such metric, option or parameter; both ``configs`` and ``space``.
    """
    for name in options:
        if name not in _OPTIONS:
            raise unknown_keyword("autotune", name, ["configs", "space", "shapes", "dtype", *_OPTIONS])
    if configs is not None and space is not None:
        raise ArgumentError("autotune() takes configs= or space=, not both")
    metric_of(options.get("metric", "latency"))
    chosen = space_of(configs) if configs is not None else _as_space(DEFAULT_SPACE if space is None else space)
    options = {"space": chosen, "tuner": _strategy(tuner), **options}
    if shapes is not None:
        if target is None:
            raise ArgumentError("autotune(shapes=…) needs the kernel: autotune(kernel, shapes=…)")
        return tune(target, shapes, **({} if dtype is None else {"dtype": dtype}), **options)
    return (lambda f: Tuned(f, **options)) if target is None else Tuned(target, **options)


def _as_space(space: Any) -> Any:
    if isinstance(space, Mapping):
        return SearchSpace(space)
    return space if isinstance(space, SearchSpace) else space_of(space)


def _strategy(tuner: Any) -> Callable[[], Autotuner]:
    if tuner is None:
        return Autotuner
    if isinstance(tuner, type) or not hasattr(tuner, "suggest_configs"):
        if not callable(tuner):
            raise ArgumentError(f"a tuner has suggest_configs() and update(); {tuner!r} has not", expected="a ts.Autotuner")
        return tuner  # type: ignore[no-any-return]
    return lambda: tuner


def search_space(constraints: Iterable[Constraint] = (), *, tuner: Any = None, metric: Any = "latency", numerics: str = "exact",
                 trials: int | None = None, cache: bool = True, **parameters: Sequence[Any]) -> Callable[[Any], Tuned]:
    """``@ts.autotune.search_space(tile_m=[64, 128], warps=[4, 8], constraints=[lambda c: …])``: every allowed combination.

    Raises:
        ArgumentError: a parameter without values.
    """
    space = SearchSpace(parameters, constraints)
    return lambda f: Tuned(f, space, metric=metric, tuner=_strategy(tuner), numerics=numerics, trials=trials, cache=cache)


def evolutionary(population_size: int = 50, generations: int = 20, mutation_rate: float = 0.1, crossover_rate: float = 0.7, *,
                 seed: int = 0, space: Any = None, metric: Any = "latency", numerics: str = "exact", trials: int | None = None,
                 cache: bool = True) -> Callable[[Any], Tuned]:
    """``@ts.autotune.evolutionary(population_size=50, generations=20)``: a genetic search (see :class:`Evolutionary`)."""
    def make() -> Autotuner:
        return Evolutionary(population_size, generations, mutation_rate, crossover_rate, seed)

    make()  # refuse bad rates here
    make.__name__ = f"evolutionary{(population_size, generations, mutation_rate, crossover_rate, seed)}"
    chosen = _as_space(DEFAULT_SPACE if space is None else space)
    return lambda f: Tuned(f, chosen, metric=metric, tuner=make, numerics=numerics, trials=trials, cache=cache)


class _Callable(ModuleType):
    def __call__(self, target: Any = None, **options: Any) -> Any:
        return autotune(target, **options)


sys.modules[__name__].__class__ = _Callable

__all__ = ["METRICS", "Autotuner", "Config", "EmpiricalModel", "Evolutionary", "ModelGuided", "PerformanceModel", "Result", "RooflineModel",
           "ScheduleGenerator", "SearchSpace", "Trial", "Tuned", "evolutionary", "search_space", "time"]
