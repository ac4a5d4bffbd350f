"""Mixed precision: ``@ts.mixed_precision(...)``, ``with ts.autocast():``, the scale of losses, and precision that follows gradients.

Small formats lose small gradients: in f16 everything below 6e-8 is zero.  So the loss is multiplied by a scale before it is differentiated
and the gradients are divided by it, in f32.  A *dynamic* scale halves when gradients overflow and doubles after a run of steps in which
they did not.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import optree

from .errors import ArgumentError, DTypeError, TracingError
from .numerics import Scope
from .ops import pointwise as pw
from .ops import reduction as rd
from .ops.operands import as_tensor, convert
from .scoped import Scoped
from .tracing.tensor import Tensor
from .types import dtypes as dt
from .types.dtypes import DType, as_dtype
from .types.policy import NumericalPolicy


# -- loss scale ------------------------------------------------------------------------------------------------------------------
class GradScaler:
    """The scale of a loss: fixed, or dynamic.

    Args:
        scale: the scale, or where a dynamic one starts.
        dynamic: halve it when gradients overflow, and double it after ``growth_interval`` steps in which they did not.

    ``value`` is an f32 tensor; a traced function that uses it reads it anew at each call, so a changed scale needs no new program.

    Raises:
        ArgumentError: the scale is not positive and finite.
    """

    def __init__(self, scale: float = 65536.0, *, dynamic: bool = True, growth_factor: float = 2.0, backoff_factor: float = 0.5,
                 growth_interval: int = 2000):
        if not 0 < float(scale) < float("inf"):
            raise ArgumentError(f"the scale of a loss is a positive number, not {scale!r}")
        self.dynamic = dynamic
        self.growth_factor, self.backoff_factor, self.growth_interval = growth_factor, backoff_factor, growth_interval
        self.value = as_tensor(np.float32(scale))
        self.good_steps = 0
        self.overflowed = False  # in the latest step that was told

    @property
    def scale(self) -> float:
        """The scale as a number."""
        return float(self.value)

    def scaled(self, loss: Any) -> Any:
        """``loss`` times the scale, in f32."""
        loss = as_tensor(loss)
        wide = dt.f64 if loss.dtype is dt.f64 else dt.f32
        return pw.mul(convert(loss, wide), convert(self.value, wide))

    def unscaled(self, grads: Any) -> tuple[Any, Any]:
        """(gradients divided by the scale, in f32; a bool tensor: all of them are finite).  Pure: it also works in a traced function."""
        leaves, tree = optree.tree_flatten(grads)
        out, finite = [], None
        for g in leaves:
            t = as_tensor(g)
            wide = convert(t, dt.f64 if t.dtype is dt.f64 else dt.f32)
            ok = rd.all(pw.isfinite(wide))
            finite = ok if finite is None else pw.logical_and(finite, ok)
            out.append(pw.div(wide, convert(self.value, wide.dtype)))
        return optree.tree_unflatten(tree, out), as_tensor(True) if finite is None else finite

    def update(self, finite: Any) -> None:
        """Tell whether the latest gradients were finite.

        Raises:
            TracingError: inside a traced function, where it is not known yet.
        """
        if isinstance(finite, Tensor) and finite.is_traced:
            raise TracingError("whether gradients overflowed is not known while a function is traced", hints=[
                "Return the flag from the function and call scaler.update(flag) outside"])
        self.overflowed = not bool(finite)
        if not self.dynamic:
            return
        if self.overflowed:
            self._set(max(self.scale * self.backoff_factor, 2.0**-24))
            return
        self.good_steps += 1
        if self.good_steps >= self.growth_interval:
            self._set(min(self.scale * self.growth_factor, 2.0**120))

    def _set(self, scale: float) -> None:
        self.value._p = np.asarray(scale, np.float32)  # the tensor stays the one that programs have captured
        self.good_steps = 0

    def step(self, optimizer: Any, grads: Any) -> Any:
        """Unscale, and ``optimizer.step(grads)`` where all are finite; whether the step was taken.

        In a traced function that is ``optimizer.step(grads, where=flag)``; return the flag and call :meth:`update` with it outside.
        """
        out, finite = self.unscaled(grads)
        if finite.is_traced:
            optimizer.step(out, where=finite)
            return finite
        self.update(finite)
        if not self.overflowed:
            optimizer.step(out)
        return not self.overflowed


class _State(threading.local):
    scaler: GradScaler | None = None
    finite: Any = None
    compute: DType = dt.bf16
    accumulate: DType = dt.f32


_state = _State()


def grad_scale() -> Any:
    """The scale of losses in force: an f32 tensor (1 outside mixed precision)."""
    return _state.scaler.value if _state.scaler is not None else as_tensor(np.float32(1.0))


def unscale_grads(grads: Any, scaler: GradScaler | None = None) -> Any:
    """Gradients divided by the scale, in f32.  Where one of them has overflowed all become 0, so that a plain update changes nothing,
    ``ts.amp.last_overflowed()`` says so, and the optimisers of ``ts.optim`` leave their step out; a dynamic scale is halved.

    In a traced function the gradients are zeroed in the same way, and the scale stays as it is: return the flag of
    :meth:`GradScaler.unscaled` and update outside.
    """
    s = scaler or _state.scaler
    if s is None:
        return grads
    out, finite = s.unscaled(grads)
    kept = optree.tree_map(lambda g: pw.where(finite, g, 0.0), out)
    if s is _state.scaler:
        _state.finite = finite
    if not finite.is_traced:
        s.update(finite)
    return kept


def finite() -> Any:
    """Whether the gradients that the surrounding ``mixed_precision`` function unscaled last were finite, as a boolean tensor; None where
    it unscaled none yet."""
    return _state.finite


def last_overflowed(scaler: GradScaler | None = None) -> bool:
    """Whether the latest gradients that were unscaled had overflowed."""
    s = scaler or _state.scaler
    return s is not None and s.overflowed


# -- formats ---------------------------------------------------------------------------------------------------------------------
def _float(d: Any, what: str) -> DType:
    try:
        kind = as_dtype(d)
    except TypeError as e:
        raise DTypeError(str(e)) from None
    if not kind.is_float:
        raise DTypeError(f"mixed precision has a float {what} format, not {kind}", hints=[f"{what}=ts.bf16"])
    return kind


def autocast(compute: Any = None, accumulate: Any = None, *, enabled: bool = True, storage: Any = None) -> Scope:
    """``with ts.autocast():`` products and convolutions read their operands in ``compute`` and sum in ``accumulate``; everything else
    (softmax, norms, losses) stays as it is.

    Args:
        compute, accumulate: default: those of the surrounding ``mixed_precision``, else bf16 and f32.
        storage: the dtype of the products' results (default: the dtype that they have without autocast).
        enabled: False: an inner block without it.
    """
    if not enabled:
        return Scope(policy=None, store=None, products_only=False)
    policy = NumericalPolicy(compute=_float(compute or _state.compute, "compute"),
                             accumulate=_float(accumulate or _state.accumulate, "accumulate"))
    return Scope(policy=policy, store=None if storage is None else _float(storage, "storage"), products_only=True)


def mixed_precision(fn: Callable[..., Any] | None = None, *, compute: Any = dt.bf16, accumulate: Any = dt.f32,
                    grad_scale: Any = "dynamic") -> Any:
    """``@ts.mixed_precision(compute=ts.bf16, accumulate=ts.f32, grad_scale=1024)``: what ``autocast``, ``grad_scale`` and
    ``unscale_grads`` mean inside the function.

    Args:
        grad_scale: a number (a fixed scale), "dynamic", or a :class:`GradScaler`.

    The decorated function's ``scaler`` is the GradScaler.

    Raises:
        ArgumentError: another ``grad_scale``.
        DTypeError: a format that is no float.
    """
    formats = _float(compute, "compute"), _float(accumulate, "accumulate")
    if isinstance(grad_scale, GradScaler):
        scaler = grad_scale
    elif grad_scale == "dynamic":
        scaler = GradScaler()
    elif isinstance(grad_scale, int | float) and not isinstance(grad_scale, bool):
        scaler = GradScaler(grad_scale, dynamic=False)
    else:
        raise ArgumentError(f"grad_scale is a number, 'dynamic' or a GradScaler, not {grad_scale!r}")

    def decorate(f: Callable[..., Any]) -> Any:
        @contextmanager
        def scope() -> Iterator[None]:
            saved = _state.scaler, _state.compute, _state.accumulate, _state.finite
            _state.scaler, (_state.compute, _state.accumulate), _state.finite = scaler, formats, None
            try:
                yield
            finally:
                _state.scaler, _state.compute, _state.accumulate, _state.finite = saved

        made = Scoped(f, scope)
        made.scaler = scaler  # type: ignore[attr-defined]
        return made

    return decorate if fn is None else decorate(fn)


# -- precision that follows gradients -----------------------------------------------------------------------------------------------
class PrecisionPolicy:
    """Chooses a dtype for each tensor at each step; subclass it and define :meth:`select_precision`."""

    def select_precision(self, tensor: Any, grad_scale: float) -> DType:
        """The dtype in which ``tensor`` is read at this step; ``grad_scale``: the magnitude of the latest gradients."""
        raise TypeError(f"{type(self).__name__} does not define select_precision(tensor, grad_scale)")


@dataclass(frozen=True)
class Choice:
    """What was chosen for one tensor: the number of the step and of the tensor, the gradients' magnitude, the dtype."""

    step: int
    tensor: int
    grad_scale: float
    dtype: DType


class AdaptiveFunction:
    """A function whose tensors are read in the precision that a :class:`PrecisionPolicy` chooses at each call.

    Attributes:
        grad_scale: the magnitude (largest absolute value) of the gradients that :meth:`observe` was shown last.
        log: every choice so far.
    """

    def __init__(self, fn: Callable[..., Any], policy: PrecisionPolicy, grad_scale: float = float("inf")):
        functools.update_wrapper(self, fn)
        self._fn, self.policy = fn, policy
        self.grad_scale, self.step = float(grad_scale), 0
        self.log: list[Choice] = []

    def observe(self, grads: Any) -> float:
        """Take note of gradients (any structure of tensors); their magnitude."""
        sizes = [float(np.max(np.abs(np.asarray(g).astype(np.float64)), initial=0.0)) for g in optree.tree_leaves(grads)]
        self.grad_scale = max(sizes, default=0.0)
        return self.grad_scale

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        chosen: list[DType] = []

        def read(leaf: Any) -> Any:
            if not isinstance(leaf, Tensor) or not leaf.dtype.is_float:
                return leaf
            kind = as_dtype(self.policy.select_precision(leaf, self.grad_scale))
            self.log.append(Choice(self.step, len(chosen), self.grad_scale, kind))
            chosen.append(kind)
            if kind is dt.tf32 or kind.bits >= leaf.dtype.bits:
                return leaf
            low = leaf.to(kind, saturate=True) if kind.is_small_float else leaf.to(kind)
            return low.to(leaf.dtype)

        given: Any = (args, kwargs)
        args, kwargs = optree.tree_map(read, given)  # type: ignore[assignment]
        self.step += 1
        wide = max(chosen, key=lambda d: d.bits, default=dt.f32)
        with Scope(policy=NumericalPolicy(compute=wide), store=None, products_only=True):
            return self._fn(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._fn, name)


def adaptive_precision(policy: Any, *, grad_scale: float = float("inf")) -> Callable[[Callable[..., Any]], AdaptiveFunction]:
    """``@ts.adaptive_precision(policy)``: read the function's tensor arguments, at each call, in the dtype that the policy chooses.

    The policy's ``select_precision(tensor, grad_scale)`` is asked for every float tensor at every call; products compute in the
    widest dtype chosen.  Show it gradients with
    ``fn.observe(grads)``; until then ``grad_scale`` holds (infinite: as precise as the policy knows).

    Raises:
        ArgumentError: ``policy`` has no select_precision.
    """
    made = policy() if isinstance(policy, type) else policy
    if not callable(getattr(made, "select_precision", None)):
        raise ArgumentError(f"{policy!r} chooses no precision", hints=["Pass an instance of a subclass of ts.PrecisionPolicy"])
    return lambda fn: AdaptiveFunction(fn, made, grad_scale)


__all__ = ["AdaptiveFunction", "Choice", "GradScaler", "PrecisionPolicy", "adaptive_precision", "autocast", "finite", "grad_scale",
           "last_overflowed", "mixed_precision", "unscale_grads"]
