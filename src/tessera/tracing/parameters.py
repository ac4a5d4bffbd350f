"""Parameters that a function owns: ``linear(x, 128)`` inside ``@ts.function`` makes its weight once and keeps it."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import ShapeError, TracingError
from ..ir.core import TensorType
from ..types import dtypes as dt
from ..types.constraints import plain
from ..types.dims import Dim, DimLike
from ..types.dtypes import DType
from .methods import function
from .recorder import STATE, Hidden, Trace, lift, no_value, suspended
from .tensor import Tensor, Traced, make


class _Owner(threading.local):
    stack: tuple[tuple[Any, dict[str, int]], ...] = ()


_OWNER = _Owner()


@contextmanager
def owning(fn: Any) -> Iterator[None]:
    """Inside the block, new parameters belong to ``fn`` (the outermost function that is being traced)."""
    saved = _OWNER.stack
    _OWNER.stack = (*saved, (fn, {}))
    try:
        yield
    finally:
        _OWNER.stack = saved


def owned_parameters() -> dict[str, Tensor]:
    """The parameters of the function being traced, by name."""
    return dict(_OWNER.stack[-1][0].parameters_owned) if _OWNER.stack else {}


def parameter(kind: str, shape: tuple[int, ...], dtype: DType = dt.f32, bound: float = 0.0) -> Tensor:
    """A tensor owned by the function being traced, the same one at every trace and call.

    Its name is ``kind`` and the number of calls of that kind before it; values are uniform in [-bound, bound), from the
    function's name and the parameter's, so that they are reproducible.

    Raises:
        TracingError: no function is being traced.
        ShapeError: an existing parameter of that place has another shape.
    """
    owner, name = _next(kind)
    found = owner.parameters_owned.get(name)
    if found is None:
        with suspended():
            rng = np.random.Generator(np.random.Philox(key=[0, _digest(f"{owner.__name__}.{name}")]))
            values = rng.uniform(-bound, bound, shape) if bound else np.zeros(shape)
            found = owner.parameters_owned[name] = make(values.astype(dtype.np))
    elif found.shape != shape:
        raise ShapeError(f"the parameter {name!r} of {owner.__name__!r} has shape {list(found.shape)}", expected=str(list(shape)),
                         received=str(list(found.shape)), sentence="A function's parameters are made at its first call.",
                         hints=["Use one feature size for every call, or pass weights explicitly"])
    return found  # type: ignore[no-any-return]


def _next(kind: str) -> tuple[Any, str]:
    """The function that owns the next parameter of a kind, and that parameter's name."""
    if not _OWNER.stack:
        raise TracingError(
            f"{kind} with an implicit weight outside a function", sentence="An implicit parameter belongs to the function "
            "that uses it.", hints=["Decorate the function with @ts.function", "Pass a weight tensor: linear(x, w)"])
    owner, counts = _OWNER.stack[-1]
    n = counts.get(kind, 0)
    counts[kind] = n + 1
    return owner, f"{kind}{n}"


def _digest(text: str) -> int:
    import hashlib
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little")


def _outlined(kind: str, trace: Trace, type: TensorType) -> Tensor:
    """A parameter in a graph of declared types alone, whose shape depends on a symbolic size: it is made at the first call."""
    _next(kind)
    return make(Traced(trace, trace.capture(Hidden(type, no_value))))


def _known(x: Tensor, features: DimLike, out: Any) -> bool:
    """Whether the sizes of a weight are numbers, or have values in the call that is being traced."""
    try:
        return isinstance(features, int) or (int(x.shape[-1]) >= 0 and int(out) >= 0)
    except TypeError:
        return False


def linear(x: Any, weight: Any = None, bias: Any = None, *, out_dim: Any = None) -> Tensor:
    """``x @ weight + bias`` over the last axis.

    ``weight`` is a tensor [in, out], or the size ``out``: then the function being traced owns a weight and a bias.

    Raises:
        ShapeError: the sizes do not fit, or the feature size of ``x`` is symbolic.
    """
    if out_dim is not None:
        weight = out_dim
    if not isinstance(weight, int | Dim) or isinstance(weight, bool):
        return function("linear")(x, weight, bias)  # type: ignore[no-any-return]
    x = lift(x)
    features, out = x.type.shape[-1], plain(weight)
    trace = STATE.trace
    if trace is not None and (trace.outlined or not _known(x, features, weight)):
        trace.outlined = True
        kind = x.dtype if x.dtype.is_float else dt.f32
        w = _outlined("linear.weight", trace, TensorType(kind, (features, out)))
        b = _outlined("linear.bias", trace, TensorType(kind, (out,))) if bias is not False else None
        return function("linear")(x, w, b if bias is None or bias is True else bias or None)  # type: ignore[no-any-return]
    if not isinstance(features, int) or not isinstance(out, int):
        features, out = int(x.shape[-1]), int(weight)  # the function is traced again with these sizes as numbers
    bound = 1 / math.sqrt(max(1, features))
    kind = x.dtype if x.dtype.is_float else dt.f32
    w = parameter("linear.weight", (features, out), kind, bound)
    b = parameter("linear.bias", (out,), kind) if bias is not False else None
    return function("linear")(x, w, b if bias is None or bias is True else bias or None)  # type: ignore[no-any-return]
