"""The tuning loop, and functions and kernels that tune themselves."""

from __future__ import annotations

import functools
import inspect
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import numpy as np
import optree

from ..errors import ArgumentError, TesseraError
from ..ir.core import Function
from ..runtime.cache import key_of, open_cache, source_hash
from ..scheduling.decisions import FIELDS, Schedule, named
from ..tiling.frontend import Kernel
from ..tracing.function import TracedFunction
from ..tracing.recorder import STATE
from ..tracing.tensor import Tensor
from ..types.dtypes import as_dtype
from .measure import metric as metric_of
from .space import Config, SearchSpace
from .tuners import Autotuner

TIER = "tuning"


@dataclass(frozen=True)
class Trial:
    """One configuration that was tried: its metric (infinite where it failed) and why it failed."""

    config: Config
    value: float
    error: str = ""


@dataclass
class Result:
    """What a search found.

    Attributes:
        best: the configuration with the least metric; None where none was valid (the compiler decides then).
        trials: everything that was tried, in order; empty where the answer came from the cache.
        cached: the answer came from the cache on disk.
    """

    best: Config | None
    value: float = math.inf
    trials: list[Trial] = field(default_factory=list)
    cached: bool = False

    def __str__(self) -> str:
        best = dict(self.best) if self.best is not None else "none"
        lines = [f"best: {best} ({self.value:.4g})" + (" from the cache" if self.cached else "")]
        lines += [f"  {t.value:10.4g}  {dict(t.config)}" + (f"  ({t.error})" if t.error else "") for t in self.trials]
        return "\n".join(lines)


def _names(space: Any) -> list[str]:
    return list(space.parameters if isinstance(space, SearchSpace) else dict.fromkeys(n for c in space for n in c))


def _traced(fn: Callable[..., Any], space: Any) -> TracedFunction:
    """A plain function as a program; arguments that the space decides on are static."""
    own = inspect.signature(fn).parameters
    return TracedFunction(fn, kind="jit", static_argnames=[n for n in _names(space) if n in own])


def _check_names(target: Any, space: Any) -> None:
    """Refuse parameters that nothing would read, before anything is measured."""
    own = () if isinstance(target, Kernel) else tuple(target.signature.parameters)
    named({n: None for n in _names(space) if n not in own})


# -- one candidate ---------------------------------------------------------------------------------------------------------
def variant(target: Any, config: Config) -> Callable[..., Any]:
    """``target`` under a configuration: decisions of a schedule, and keyword arguments of a function for everything else.

    Raises:
        ArgumentError: a parameter is neither.
    """
    if isinstance(target, Kernel):
        return target._under(config.schedule())
    own = set(inspect.signature(target).parameters)
    keywords = {n: v for n, v in config.items() if n in own}
    decided = Schedule(**{n: v for n, v in config.items() if n not in own})

    def run(*args: Any, **kwargs: Any) -> Any:
        outer = STATE.schedule
        STATE.schedule = decided if outer is None else outer | decided
        try:
            return target(*args, **{**keywords, **kwargs})
        finally:
            STATE.schedule = outer

    return run


def _copies(tree: Any) -> Any:
    """Arguments of their own for a measurement: kernels write into theirs."""
    def copy(x: Any) -> Any:
        if isinstance(x, Tensor):
            return x.clone()
        return x.copy() if isinstance(x, np.ndarray) else x

    return optree.tree_map(copy, tree)


def _bits(*trees: Any) -> list[np.ndarray[Any, Any]]:
    leaves = [leaf for tree in trees for leaf in optree.tree_leaves(tree, none_is_leaf=True)]
    return [np.array(x.numpy() if isinstance(x, Tensor) else x) for x in leaves if isinstance(x, Tensor | np.ndarray)]


def _differs(a: Sequence[np.ndarray[Any, Any]], b: Sequence[np.ndarray[Any, Any]], numerics: str) -> str:
    """Why the results of a candidate are not those of the first; empty where they are."""
    if len(a) != len(b) or any(x.shape != y.shape or x.dtype != y.dtype for x, y in zip(a, b)):
        return "its results have other types"
    if numerics == "exact":
        same = all(x.tobytes() == y.tobytes() for x, y in zip(a, b, strict=True))
        return "" if same else 'other bits than the default configuration (numerics="fast" would allow it)'
    for x, y in zip(a, b, strict=True):
        kind = as_dtype(x.dtype)
        wide = np.complex128 if kind.is_complex else np.float64
        tolerance = 64 * float(kind.finfo.eps) if kind.is_inexact else 0.0
        scale = float(np.nanmax(np.abs(x.astype(wide)), initial=0)) if x.size and kind.is_inexact else 0.0
        if not np.allclose(x.astype(wide), y.astype(wide), rtol=tolerance, atol=tolerance * scale, equal_nan=True):
            return "results outside the tolerance of its dtype"
    return ""


# -- the loop ----------------------------------------------------------------------------------------------------------------
def search(target: Any, args: Sequence[Any], kwargs: Mapping[str, Any], space: Any, tuner: Autotuner, metric: Any,
           numerics: str = "exact", trials: int | None = None) -> Result:
    """Try what the tuner suggests until it has nothing new; a candidate that fails, or computes something else, is skipped.

    Args:
        space: a :class:`SearchSpace` or a list of configurations.
        numerics: "exact": a candidate must give the bits of the default configuration; "fast": its results to within a tolerance.
        trials: candidates at most.
    """
    measure = metric_of(metric)
    tuner.space = space
    both: Any = tuple(args), dict(kwargs)
    shapes = [tuple(x.shape) for x in optree.tree_leaves(both) if isinstance(x, Tensor | np.ndarray)]
    seen: dict[Config, Trial] = {}
    own, own_kw = _copies((tuple(args), dict(kwargs)))
    expected = _bits(target(*own, **own_kw), own, own_kw)
    while trials is None or len(seen) < trials:
        new = [c for c in (Config(c) for c in tuner.suggest_configs(target, shapes)) if c not in seen]
        if not new:
            break
        for config in list(dict.fromkeys(new))[:None if trials is None else trials - len(seen)]:
            seen[config] = trial = _try(target, config, args, kwargs, measure, expected, numerics)
            tuner.update(config, trial.value)
    valid = [t for t in seen.values() if math.isfinite(t.value)]
    best = min(valid, key=lambda t: t.value) if valid else None
    return Result(best.config if best else None, best.value if best else math.inf, list(seen.values()))


def _try(target: Any, config: Config, args: Sequence[Any], kwargs: Mapping[str, Any], measure: Callable[[Callable[[], Any]], float],
         expected: Sequence[np.ndarray[Any, Any]], numerics: str) -> Trial:
    own, own_kw = _copies((tuple(args), dict(kwargs)))
    try:
        run = variant(target, config)
        wrong = _differs(expected, _bits(run(*own, **own_kw), own, own_kw), numerics)
        if wrong:
            return Trial(config, math.inf, wrong)
        return Trial(config, float(measure(lambda: run(*own, **own_kw))))
    except TesseraError as e:
        return Trial(config, math.inf, e.message)


# -- what tunes itself ---------------------------------------------------------------------------------------------------------
class Tuned:
    """A function or kernel that is tuned at its first call for each class of shapes; made by ``ts.autotune``.

    Sizes between two powers of two share a class.  Results are kept on disk by kernel, shape class, dtype, target and policy: another
    process measures nothing.  Inside a traced function what is known already is used, and nothing is measured.

    Attributes:
        results: what was found, by class.
    """

    def __init__(self, target: Any, space: Any, *, metric: Any = "latency", tuner: Callable[[], Autotuner] = Autotuner,
                 numerics: str = "exact", trials: int | None = None, cache: bool = True):
        if numerics not in ("exact", "fast"):
            raise ArgumentError(f"numerics is 'exact' or 'fast', not {numerics!r}")
        metric_of(metric)
        if isinstance(target, Tuned):
            target = target.target
        if not callable(target):
            raise ArgumentError(f"autotune() takes a function or a kernel, not a {type(target).__name__}")
        self.target: Any = target if isinstance(target, Kernel | TracedFunction) else _traced(target, space)
        _check_names(self.target, space)
        self.space, self.metric, self.tuner = space, metric, tuner
        self.numerics, self.trials, self.cache = numerics, trials, cache
        self.results: dict[Any, Result] = {}
        functools.update_wrapper(self, target)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self.tune(*args, **kwargs) if STATE.trace is None else self.results.get(self._class(args, kwargs))
        if result is None or result.best is None:
            return self.target(*args, **kwargs)
        return variant(self.target, result.best)(*args, **kwargs)

    def tune(self, *args: Any, **kwargs: Any) -> Result:
        """The best configuration for these arguments: known, read from the cache, or measured now."""
        key = self._class(args, kwargs)
        found = self.results.get(key)
        if found is None:
            found = self._from_disk(key)
            if found is None:
                found = search(self.target, args, kwargs, self.space, self.tuner(), self.metric, self.numerics, self.trials)
                self._to_disk(key, found)
            self.results[key] = found
        return found

    def best_config(self, *args: Any, **kwargs: Any) -> Config | None:
        """The configuration that a call with these arguments runs under."""
        return self.tune(*args, **kwargs).best

    def _class(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What of the arguments a result holds for: dtypes, sizes up to the next power of two, and other values."""
        both: Any = tuple(args), dict(kwargs)
        leaves, tree = optree.tree_flatten(both, none_is_leaf=True)
        parts: list[Any] = [str(tree)]
        for x in leaves:
            if isinstance(x, Tensor | np.ndarray):
                shape = x.type.shape if isinstance(x, Tensor) else x.shape
                sizes = [n if not isinstance(n, int) else 1 << max(0, n - 1).bit_length() if n else 0 for n in shape]
                parts.append((str(as_dtype(x.dtype)), tuple(map(str, sizes))))
            else:
                parts.append(repr(x))
        return (*parts, repr(STATE.policy))

    # -- on disk -----------------------------------------------------------------------------------------------------------
    @functools.cached_property
    def _fingerprint(self) -> str:
        """What is tuned, among what, for which computer, by which compiler."""
        from ..runtime import host_compiler
        points = [sorted(c.items()) for c in self.space] if not isinstance(self.space, SearchSpace) else \
            [self.space.parameters.items(), *[_code(c) for c in self.space.constraints]]
        function = self.target.function if isinstance(self.target, Kernel) else self.target.fn
        made = repr(self.target.schedule) if isinstance(self.target, Kernel) else ""
        return key_of(source_hash(), host_compiler().target, _code(function), made, repr(points), repr(self.metric), self.numerics,
                      repr(self.trials), self.tuner.__name__ if hasattr(self.tuner, "__name__") else type(self.tuner).__name__)

    def _from_disk(self, key: Any) -> Result | None:
        if not self.cache:
            return None
        payload = open_cache().get(TIER, key_of(self._fingerprint, repr(key)))
        if payload is None:
            return None
        try:
            data = json.loads(payload)
            best = None if data["config"] is None else Config(data["config"])
            return Result(best, float(data["value"]), cached=True)
        except (ValueError, KeyError, TypeError):
            return None  # written by something else: measured anew

    def _to_disk(self, key: Any, found: Result) -> None:
        if self.cache:
            data = {"config": dict(found.best) if found.best is not None else None, "value": found.value}
            try:
                payload = json.dumps(data).encode()
            except TypeError:
                return  # a parameter that JSON does not have: kept in this process alone
            open_cache().put(TIER, key_of(self._fingerprint, repr(key)), payload)

    def __repr__(self) -> str:
        return f"<autotuned {self.target!r}>"


def _code(f: Any) -> str:
    """The text of a function's code: the instructions, names and constants, and the values of what it closes over."""
    f = inspect.unwrap(f) if not isinstance(f, TracedFunction) else f.fn
    code = getattr(f, "__code__", None)
    if code is None:
        return repr(f)
    cells = [_value(c.cell_contents) for c in f.__closure__ or ()]
    globals_ = [(n, _value(f.__globals__[n])) for n in code.co_names if n in f.__globals__]
    return repr((_instructions(code), f.__defaults__, cells, globals_))


def _instructions(code: Any) -> Any:
    consts = [_instructions(c) if hasattr(c, "co_code") else repr(c) for c in code.co_consts]
    return code.co_code.hex(), code.co_names, code.co_varnames, consts


def _value(v: Any) -> str:
    if isinstance(v, Kernel):
        return _code(v.function) + repr(v.schedule)
    if isinstance(v, Tensor | np.ndarray | ModuleType | Function):
        return type(v).__name__
    if hasattr(v, "__code__"):
        return repr(_instructions(v.__code__))
    return repr(v) if isinstance(v, int | float | str | bool | tuple | frozenset | None.__class__) else type(v).__name__


def tune(target: Any, shapes: Iterable[Sequence[int]], dtype: Any = "f32", **options: Any) -> Result:
    """``autotune(kernel, shapes=[(M, K), (K, N), (M, N)], configs=…)``: tune on random tensors of these shapes, now.

    Raises:
        ArgumentError: no shapes, or an unknown option.
    """
    from ..random import randn
    made = [tuple(s) for s in shapes]
    if not made:
        raise ArgumentError("autotune(kernel, shapes=…) needs the shape of every tensor argument")
    return Tuned(target, **options).tune(*[randn(s, dtype="f32").to(dtype) for s in made])


DEFAULT_SPACE: dict[str, Sequence[int]] = {"tile_m": (32, 64, 128, 256), "tile_n": (32, 64, 128, 256), "tile_k": (32, 64, 128)}
"""What is searched where nothing is given."""

assert set(DEFAULT_SPACE) <= set(FIELDS)

__all__ = ["DEFAULT_SPACE", "Result", "Trial", "Tuned", "search", "tune", "variant"]
