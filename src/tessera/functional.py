"""Functions of functions: composition, partial application, optional values, memoisation."""

from __future__ import annotations

import functools
import hashlib
import inspect
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import numpy as np
import optree

from .errors import ArgumentError, TesseraError, suggest, unknown_keyword
from .ops import add, layer_norm, mean, mul, rms_norm, rsqrt, square, sub
from .tracing.recorder import STATE
from .tracing.tensor import Tensor, make

T = TypeVar("T")
U = TypeVar("U")


# -- composition -----------------------------------------------------------------------------------------------------------
def _callables(fs: tuple[Any, ...], what: str) -> None:
    for f in fs:
        if not callable(f):
            raise ArgumentError(f"{what}() takes functions, not a {type(f).__name__}", received=repr(f)[:80])


def compose(*fs: Callable[..., Any]) -> Callable[..., Any]:
    """``compose(f, g)(x) == f(g(x))``: the last function takes the arguments."""
    _callables(fs, "compose")
    return pipe(*reversed(fs))


def pipe(*fs: Callable[..., Any]) -> Callable[..., Any]:
    """``pipe(f, g)(x) == g(f(x))``: the first function takes the arguments; without functions, the identity."""
    _callables(fs, "pipe")

    def piped(*args: Any, **kwargs: Any) -> Any:
        if not fs:
            if len(args) != 1 or kwargs:
                raise ArgumentError("an empty composition takes one argument")
            return args[0]
        out = fs[0](*args, **kwargs)
        for f in fs[1:]:
            out = f(out)
        return out

    piped.__name__ = "_then_".join(getattr(f, "__name__", type(f).__name__).strip("<>") for f in fs) or "identity"
    return piped


def curry(f: Callable[..., Any], *args: Any, **kwargs: Any) -> Callable[..., Any]:
    """``f`` with some arguments fixed: constants of every program it becomes part of; its signature shows the remaining ones.

    Raises:
        ArgumentError: ``f`` has no such parameter.
    """
    _callables((f,), "curry")
    bound = functools.partial(f, *args, **kwargs)
    try:
        signature = inspect.signature(f)
    except ValueError:  # a builtin that has none
        return bound
    try:
        signature.bind_partial(*args, **kwargs)
    except TypeError as e:
        names = list(signature.parameters)
        wrong = next((k for k in kwargs if k not in names), None)
        if wrong is not None:
            raise unknown_keyword(getattr(f, "__name__", "curry"), wrong, names) from None
        raise ArgumentError(f"curry(): {e}", expected=f"{getattr(f, '__name__', 'f')}{signature}") from None
    parameters = inspect.signature(bound).parameters.values()

    def curried(*more: Any, **named: Any) -> Any:
        return bound(*more, **named)

    curried.__name__ = getattr(f, "__name__", type(f).__name__)
    curried.__signature__ = inspect.Signature([p for p in parameters if p.name not in kwargs])  # type: ignore[attr-defined]
    return curried


def scale(factor: Any = 1.0) -> Callable[[Any], Any]:
    """A function that multiplies by ``factor``."""
    def scaled(x: Any) -> Any:
        return mul(x, factor)

    scaled.__name__ = "scale"
    return scaled


NORMALIZATIONS = ("layer", "batch", "rms")


def normalize(x: Any = None, *, method: str = "layer", eps: float = 1e-5) -> Any:
    """A function that normalises: over the last axis ("layer", "rms") or over the first ("batch").

    ``normalize(x)`` applies it at once, so that the name itself can stand in a pipeline.

    Raises:
        ArgumentError: another ``method``.
    """
    if method not in NORMALIZATIONS:
        raise ArgumentError(f"normalize() knows the methods {', '.join(NORMALIZATIONS)}, not {method!r}"
                            f"{suggest(str(method), NORMALIZATIONS)}", expected=", ".join(NORMALIZATIONS), received=repr(method))

    def normalized(v: Any) -> Any:
        if method == "layer":
            return layer_norm(v, eps=eps)
        if method == "rms":
            return rms_norm(v, eps=eps)
        centred = sub(v, mean(v, 0, True))
        return mul(centred, rsqrt(add(mean(square(centred), 0, True), eps)))

    normalized.__name__ = f"normalize_{method}"
    return normalized if x is None else normalized(x)


# -- optional values -------------------------------------------------------------------------------------------------------
class Maybe(Generic[T]):
    """A value that may be missing: :class:`Just` or :class:`Nothing`."""

    def map(self, f: Callable[[T], U]) -> Maybe[U]:
        """``f`` of the value; nothing stays nothing."""
        raise TypeError("Maybe has no value of its own: use Just or Nothing")

    def and_then(self, f: Callable[[T], Maybe[U]]) -> Maybe[U]:
        """``f`` of the value, which may give nothing."""
        raise TypeError("Maybe has no value of its own: use Just or Nothing")

    def unwrap_or(self, default: T) -> T:
        """The value, or ``default``."""
        raise TypeError("Maybe has no value of its own: use Just or Nothing")


class Just(Maybe[T]):
    """A value that is there."""

    __match_args__ = ("value",)

    def __init__(self, value: T):
        self.value = value

    def map(self, f: Callable[[T], U]) -> Maybe[U]:
        return Just(f(self.value))

    def and_then(self, f: Callable[[T], Maybe[U]]) -> Maybe[U]:
        return f(self.value)

    def unwrap_or(self, default: T) -> T:
        return self.value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Just):
            return False
        a, b = self.value, other.value
        return bool(np.array_equal(np.asarray(a), np.asarray(b))) if isinstance(a, Tensor) or isinstance(b, Tensor) else bool(a == b)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Just({self.value!r})"


class Nothing(Maybe[Any]):
    """No value."""

    def map(self, f: Callable[[Any], U]) -> Maybe[U]:
        return self

    def and_then(self, f: Callable[[Any], Maybe[U]]) -> Maybe[U]:
        return self

    def unwrap_or(self, default: Any) -> Any:
        return default

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Nothing)

    def __hash__(self) -> int:
        return hash(Nothing)

    def __repr__(self) -> str:
        return "Nothing()"


def maybe(f: Callable[..., Any] | None = None, *, catch: tuple[type[BaseException], ...] = (ArithmeticError, LookupError)) -> Any:
    """A function whose result is a :class:`Maybe`: plain results become ``Just``, exceptions of ``catch`` become ``Nothing``.

    Mistakes in the program (shapes, dtypes, tracing) are never caught.
    """
    if f is None:
        return functools.partial(maybe, catch=catch)

    @functools.wraps(f)
    def optional(*args: Any, **kwargs: Any) -> Maybe[Any]:
        try:
            out = f(*args, **kwargs)
        except catch as e:
            if isinstance(e, TesseraError) and not isinstance(e, ArithmeticError):
                raise
            return Nothing()
        return out if isinstance(out, Maybe) else Just(out)

    return optional


# -- memoisation -----------------------------------------------------------------------------------------------------------
def memoize(f: Callable[..., Any] | None = None, *, maxsize: int | None = 128, typed: bool = False) -> Any:
    """Keep results by the *content* of the arguments (tensors by their bytes); the least recently used are dropped.

    Args:
        maxsize: how many results are kept; None: all.
        typed: arguments of different dtypes or types are different even where they compare equal.

    The result has ``cache_clear()`` and ``cache_info()`` (hits, misses, maxsize, size).
    """
    if f is None:
        return functools.partial(memoize, maxsize=maxsize, typed=typed)
    kept: OrderedDict[Any, Any] = OrderedDict()
    counts = [0, 0]
    lock = threading.Lock()

    @functools.wraps(f)
    def remembered(*args: Any, **kwargs: Any) -> Any:
        if STATE.trace is not None:
            return f(*args, **kwargs)
        key = _content((args, kwargs), typed)
        with lock:
            if key in kept:
                counts[0] += 1
                kept.move_to_end(key)
                return _handed_out(kept[key])
            counts[1] += 1
        out = f(*args, **kwargs)
        with lock:
            kept[key] = _handed_out(out)
            while maxsize is not None and len(kept) > maxsize:
                kept.popitem(last=False)
        return out

    def cache_info() -> dict[str, Any]:
        return {"hits": counts[0], "misses": counts[1], "maxsize": maxsize, "size": len(kept)}

    remembered.cache_clear = kept.clear  # type: ignore[attr-defined]
    remembered.cache_info = cache_info  # type: ignore[attr-defined]
    return remembered


def _handed_out(out: Any) -> Any:
    """A result whose tensors share memory with the kept ones: writing into one copies, so the other never changes."""
    return optree.tree_map(lambda t: make(t._p) if isinstance(t, Tensor) else t, out)


def _content(tree: Any, typed: bool) -> Any:
    leaves, structure = optree.tree_flatten(tree)
    return structure, tuple(_leaf(x, typed) for x in leaves)


def _leaf(x: Any, typed: bool) -> Any:
    if isinstance(x, Tensor | np.ndarray):
        a = np.ascontiguousarray(x)
        if not typed and a.dtype.kind in "iufb":
            a = a.astype(np.float64) if a.dtype.kind == "f" else a
        return "tensor", a.shape, str(a.dtype) if typed else "", hashlib.sha256(a.tobytes()).digest()
    return (type(x), x) if typed else x


__all__ = ["Just", "Maybe", "Nothing", "compose", "curry", "maybe", "memoize", "normalize", "pipe", "scale"]
