"""Random numbers by counter (Philox4x32-10): same seed, same bits, whatever the number of threads.

Without ``key=`` the numbers come from one stream: a seed and a counter that every draw advances.  A traced function takes
(seed, counter) as a hidden input, its draws are numbered in program order, and each call advances the counter by their
number; so a function draws the same numbers eagerly and compiled.  Inside ``scan`` and ``while_loop`` the iteration's number is
folded in.  With an explicit ``key=`` (:func:`key`, :func:`split`, :func:`fold_in`) a draw is a pure function of the key.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from .device import placing
from .errors import ArgumentError, DTypeError, ShapeError, unknown_keyword
from .errors.boundary import describe, guard_names
from .ir.core import TensorType
from .ops import argsort, take, where
from .ops import random as _ops
from .tracing import eager
from .tracing.creation import shape_from, zeros_like
from .tracing.home import keep_home
from .tracing.placed import beside
from .tracing.recorder import STATE, Hidden, Trace, check_effects, lift, tracing, without_policies
from .tracing.tensor import Tensor, Traced, make
from .types import dims
from .types import dtypes as dt

_KEY = TensorType(dt.uint64, (2,))
_RANDOM = frozenset({"random"})


class _Stream:
    """The seed and how many draws were made from it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.seed = 0
        self.counter = 0

    def take(self, n: int) -> np.ndarray[Any, Any]:
        """The key for the next ``n`` draws."""
        with self.lock:
            out = np.array([self.seed, self.counter], np.uint64)
            self.counter = (self.counter + n) % 2**64
        return out


_stream = _Stream()
_hidden = Hidden(_KEY, _stream.take)


def seed(value: int) -> None:
    """Start the stream anew.

    Raises:
        ArgumentError: not an integer.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ArgumentError(f"a seed is an integer, not {value!r}")
    with _stream.lock:
        _stream.seed, _stream.counter = int(value) % 2**64, 0


def get_state() -> tuple[int, int]:
    """The seed and the counter of the stream."""
    return _stream.seed, _stream.counter


def set_state(state: tuple[int, int]) -> None:
    """Continue from an earlier :func:`get_state`."""
    with _stream.lock:
        _stream.seed, _stream.counter = int(state[0]) % 2**64, int(state[1]) % 2**64


# -- keys ----------------------------------------------------------------------------------------------------------------
def key(value: int) -> Tensor:
    """An explicit key: uint64[2]."""
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise ArgumentError(f"a key is made from an integer, not {value!r}")
    return lift(np.array([int(value) % 2**64, 0], np.uint64))


def fold_in(key: Any, number: Any) -> Tensor:
    """Another key, from a key and an integer (a step, a layer's index)."""
    return _ops.fold_in(_as_key(key), number)  # type: ignore[no-any-return]


def split(key: Any, n: int = 2) -> list[Tensor]:
    """``n`` different keys from one.

    Raises:
        ArgumentError: ``n`` is no integer from 0 to 2**20; fold larger numbers in where they are used.
    """
    if not hasattr(n, "__index__") or not 0 <= n <= 2**20:
        raise ArgumentError(f"random.split() makes 0 to {2**20} keys, not {describe(n)}", hints=["Use ts.random.fold_in(key, i)"])
    return [fold_in(key, i) for i in range(n)]


def _as_key(k: Any) -> Tensor:
    t = key(k) if isinstance(k, int) else lift(k)
    if t.type != _KEY:
        raise DTypeError("this is not a key", expected=str(_KEY), received=str(t.type),
                         hints=["Make one: ts.random.key(seed)", "Derive one: ts.random.fold_in(key, i)"])
    return t


def _next(explicit: Any, what: str) -> tuple[Tensor, int]:
    """The key of a draw and its site."""
    if explicit is not None:
        return _as_key(explicit), 0
    check_effects(_RANDOM, f"random.{what}")
    trace = STATE.trace
    if trace is None:
        return make(_stream.take(1)), 0
    trace.effects.add("random")
    site, trace.sites = trace.sites, trace.sites + 1
    k = make(Traced(trace, trace.capture(_hidden)))
    for number in trace.iterations:
        k = _ops.fold_in(k, number)
    return k, site


# -- distributions ---------------------------------------------------------------------------------------------------------
_programs: dict[Any, Any] = {}


def _draw(what: str, shape: tuple[Any, ...], explicit: Any, *static: Any, called: str = "") -> Tensor:
    """A draw of ``ops.random.<what>(key, site, shape, *static)``.

    Eagerly, one program for each distribution serves every shape: it fills a vector, whose length it takes from an argument
    that it does not read.
    """
    draw = getattr(_ops, what)
    k, site = _next(explicit, called or what)
    if STATE.trace is not None or k.is_traced or 0 in shape:
        with without_policies():
            return draw(k, site, shape, *static)  # type: ignore[no-any-return]
    name = (eager.COMPILER, what, *static)
    run = _programs.get(name)
    if run is None:
        trace = Trace(f"random_{what}")
        key_in = trace.parameter(_KEY, "key")
        length = trace.parameter(TensorType(dt.uint8, (dims.name("n"),)), "like")
        with tracing(trace), without_policies():
            out = draw(key_in, 0, length.type.shape, *static)
        run = _programs[name] = eager.compile_graph(trace.finish([out]))
    n = math.prod(shape)
    return make(run([k._p, np.empty(n, np.uint8)])[0].reshape(shape))


def _wide(dtype: Any, what: str) -> tuple[dt.DType, dt.DType]:
    """The dtype asked for and the one to draw in.

    Raises:
        DTypeError: not a float that numbers can be drawn in.
    """
    try:
        kind = dt.as_dtype(dtype)
    except TypeError as e:
        raise DTypeError(str(e)) from None
    if kind not in (dt.f16, dt.bf16, dt.f32, dt.f64):
        raise DTypeError(f"random.{what} draws f16, bf16, f32 or f64, not {kind}",
                         hints=["Draw in f32 and convert: x.to(...)", "Use ts.randint for integers"])
    return kind, dt.f64 if kind is dt.f64 else dt.f32


def _shape(shape: Sequence[Any], extra: dict[str, Any], what: str, known: Sequence[str]) -> tuple[Any, ...]:
    for k in ("shape", "size"):
        if k in extra:
            shape = (extra.pop(k),)
    for k in extra:
        raise unknown_keyword(f"random.{what}", k, ["shape", *known])
    return shape_from(shape or ((),), what)


def _scaled(x: Tensor, factor: Any, offset: Any, kind: dt.DType) -> Tensor:
    """``x * factor + offset`` in ``kind``."""
    if isinstance(factor, Tensor) or factor != 1:
        x = x * factor
    if isinstance(offset, Tensor) or offset != 0:
        x = x + offset
    return x if x.dtype is kind else x.to(kind)


def uniform(*shape: Any, low: Any = 0.0, high: Any = 1.0, dtype: Any = dt.f32, key: Any = None, **extra: Any) -> Tensor:
    """Uniform in [low, high): ``uniform((2, 3))`` or ``uniform(2, 3)``."""
    sizes = _shape(shape, extra, "uniform", ("low", "high", "dtype", "key"))
    kind, wide = _wide(dtype, "uniform")
    if kind is not wide and not isinstance(low, Tensor) and not isinstance(high, Tensor) and (low, high) == (0, 1):
        return _draw("uniform", sizes, key, kind)  # in its own digits, so that 1 is never reached by rounding
    return _scaled(_draw("uniform", sizes, key, wide), high - low, low, kind)


rand = uniform


def words(shape: Any, *, key: Any = None) -> Tensor:
    """uint32 words with all bits random."""
    return _draw("words", shape_from((tuple(shape),), "words"), key, called="words")


def normal(*shape: Any, mean: Any = 0.0, std: Any = 1.0, dtype: Any = dt.f32, key: Any = None, **extra: Any) -> Tensor:
    """Normal numbers: ``normal((2, 3))`` or ``normal(2, 3)``."""
    sizes = _shape(shape, extra, "normal", ("mean", "std", "dtype", "key"))
    kind, wide = _wide(dtype, "normal")
    return _scaled(_draw("normal", sizes, key, wide), std, mean, kind)


def randn(*shape: Any, dtype: Any = dt.f32, key: Any = None, **extra: Any) -> Tensor:
    """Standard normal numbers of a shape given as varargs or a tuple."""
    sizes = _shape(shape, extra, "randn", ("dtype", "key"))
    return normal(sizes, dtype=dtype, key=key)


def randint(low: int, high: Any = None, shape: Any = (), *, dtype: Any = dt.int32, key: Any = None, size: Any = None) -> Tensor:
    """Integers in [low, high) (int32); ``randint(high, shape=…)`` starts at 0.

    Raises:
        ShapeError: the range is empty.
        DTypeError: the range does not fit into the dtype, or that is no integer type.
    """
    if high is None or isinstance(high, tuple | list):
        low, high, shape = 0, low, shape if high is None else high
    if size is not None:
        shape = size
    sizes = shape_from((shape,) if isinstance(shape, list | tuple) else ((shape,),), "randint")
    kind = dt.as_dtype(dtype)
    if not kind.is_integer:
        raise DTypeError(f"randint() draws integers, not {kind}", hints=["Use ts.random.uniform for floats"])
    if int(high) - 1 > kind.iinfo.max or int(low) < kind.iinfo.min:
        raise DTypeError(f"the range [{low}, {high}) does not fit into {kind}", hints=["Pass dtype=ts.int64"])
    return _draw("randint", sizes, key, int(low), int(high), kind)


def bernoulli(p: Any = 0.5, shape: Any = None, *, key: Any = None) -> Tensor:
    """True with probability ``p`` (a number, or a tensor whose shape is the default)."""
    if shape is None:
        shape = tuple(p.type.shape) if isinstance(p, Tensor) else ()
    if isinstance(p, int | float) and not 0 <= p <= 1:
        raise ArgumentError(f"a probability lies in [0, 1], and {p} does not")
    sizes = shape_from((shape,) if isinstance(shape, list | tuple) else ((shape,),), "bernoulli")
    return _draw("uniform", sizes, key, dt.f32, called="bernoulli") < p  # type: ignore[no-any-return]


def exponential(*shape: Any, dtype: Any = dt.f32, key: Any = None, **extra: Any) -> Tensor:
    """Exponential numbers of mean 1."""
    sizes = _shape(shape, extra, "exponential", ("dtype", "key"))
    return _draw("exponential", sizes, key, _wide(dtype, "exponential")[0])


def truncated_normal(*shape: Any, low: float = -2.0, high: float = 2.0, dtype: Any = dt.f32, key: Any = None,
                     **extra: Any) -> Tensor:
    """Normal numbers within [low, high]."""
    sizes = _shape(shape, extra, "truncated_normal", ("low", "high", "dtype", "key"))
    return _draw("truncated_normal", sizes, key, _wide(dtype, "truncated_normal")[0], float(low), float(high))


def categorical(logits: Any, shape: Any = (), *, key: Any = None) -> Tensor:
    """Class numbers (int64) with probabilities softmax(logits) over the last axis; ``shape`` goes in front."""
    dims = shape_from((shape,) if isinstance(shape, list | tuple) else ((shape,),), "categorical")
    k, site = _next(key, "categorical")
    return _ops.categorical(k, site, lift(logits), dims)  # type: ignore[no-any-return]


def permutation(x: Any, *, key: Any = None) -> Tensor:
    """The numbers 0 … n-1 in random order, or a tensor's slices along axis 0 in random order."""
    if isinstance(x, Tensor | np.ndarray | list):
        t = lift(x)
        if not t.type.shape:
            raise ShapeError("a scalar has no order to permute", hints=["Pass an integer: ts.random.permutation(n)"])
        return take(t, permutation(t.type.shape[0], key=key), axis=0)  # type: ignore[no-any-return]
    sizes = shape_from(((x,),), "permutation")
    return argsort(_draw("words", sizes, key, called="permutation"), axis=0)  # type: ignore[no-any-return]


shuffle = permutation


def dropout(x: Any, p: float = 0.5, training: bool = True, *, key: Any = None) -> Tensor:
    """``x`` with elements set to 0 with probability ``p`` and the others divided by ``1 - p``.

    Raises:
        ArgumentError: ``p`` is not in [0, 1].
    """
    x = lift(x)
    if not 0 <= p <= 1:
        raise ArgumentError(f"a probability lies in [0, 1], and {p} does not")
    if not training or p == 0:
        return x  # type: ignore[no-any-return]
    if p == 1:
        return zeros_like(x)
    keep = beside(x, bernoulli(1 - p, tuple(x.type.shape), key=key))
    return where(keep, x / (1 - p), 0)  # type: ignore[no-any-return]


__all__ = ["bernoulli", "categorical", "dropout", "exponential", "fold_in", "get_state", "key", "normal", "permutation",
           "rand", "randint", "randn", "seed", "set_state", "shuffle", "split", "truncated_normal", "uniform", "words"]

keep_home(globals(), __all__, frozenset({"key"}))
guard_names(globals(), __all__, "random.")
for _name in ("bernoulli", "categorical", "exponential", "normal", "permutation", "rand", "randint", "randn", "truncated_normal",
              "uniform"):
    globals()[_name] = placing(globals()[_name])
