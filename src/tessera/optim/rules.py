"""Update rules: pure functions of (parameters, gradients, state) that give (parameters, state).

    rule = ts.optim.adam(lr=1e-3)
    state = rule.init(params)
    params, state = rule.update(params, grads, state)

Parameters are any tree of tensors.  Updates are computed in f32 (f64 for f64): a parameter in a smaller format has a master copy in f32
in the state, and is what that copy rounds to.  A complex number moves as the pair of its parts, down the slope of a real loss.  A gradient
of None leaves its parameter as it is.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import optree

import tessera as ts
from tessera.errors.boundary import describe

Slots = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """How parameters follow their gradients.

    Attributes:
        name: of the method.
        lr: the learning rate, unless ``update`` is told another.
        slots: what the state holds for one parameter, given that in f32 (or f64).
        step: (parameter, gradient, slots, learning rate) of one parameter, all in f32 (or f64), to (parameter, slots).
        holds: the names in ``slots``, by which a state of another rule is recognised; None: anything.
    """

    name: str
    lr: float
    slots: Callable[[Any], Slots]
    step: Callable[[Any, Any, Slots, Any], tuple[Any, Slots]]
    holds: tuple[str, ...] | None = None

    def init(self, params: Any) -> list[Slots]:
        """The state before the first step: a dict for each leaf of ``params``, in optree's order; empty for one that is not trained."""
        return [self.fresh(p) for p in optree.tree_leaves(params)]

    def update(self, params: Any, grads: Any, state: list[Slots], lr: Any = None) -> tuple[Any, list[Slots]]:
        """One step.

        Args:
            params: a tree of tensors.
            grads: the same tree of gradients, of the parameters' shapes; None where there is none.
            state: from :meth:`init` or the step before.
            lr: another learning rate: a number or a scalar tensor (which can change without a new program).

        Raises:
            ShapeError: a gradient has not its parameter's shape; the learning rate is no scalar.
            DTypeError: a gradient for a parameter of integers, or a complex one for real numbers.
            ArgumentError: the trees differ; the state is not of this rule and these parameters; a learning rate below 0.
        """
        leaves, tree = optree.tree_flatten(params)
        try:
            given = tree.flatten_up_to(grads)
        except (ValueError, TypeError) as e:
            raise ts.errors.ArgumentError(
                "the gradients are not a tree like the parameters", expected=str(tree), sentence=str(e),
                hints=["Give None for a parameter that stays as it is"]) from None
        if not isinstance(state, list | tuple) or len(state) != len(leaves):
            what = f"of {len(state)} parameters" if isinstance(state, list | tuple) else f"a {type(state).__name__}"
            raise ts.errors.ArgumentError(f"the state is {what}, and there are {len(leaves)} parameters",
                                          hints=["Start with state = rule.init(params)"])
        rate = self.lr if lr is None else rate_of(lr)
        moved = [self._moved(p, g, s, rate) for p, g, s in zip(leaves, given, state, strict=True)]
        return optree.tree_unflatten(tree, [p for p, _ in moved]), [s for _, s in moved]

    def fresh(self, p: Any) -> Slots:
        """The state of one parameter before the first step."""
        if not trained(p):
            return {}
        p = ts.asarray(p)
        wide = parts(p)
        return ({} if wide.dtype is p.dtype.real else {"master": wide}) | self.slots(wide)

    def _moved(self, p: Any, g: Any, slots: Slots, lr: Any) -> tuple[Any, Slots]:
        if g is None:
            return p, slots
        g = _gradient(p, g)
        p = ts.asarray(p)
        wide, kind = precision(p), p.dtype.real
        self._check_state(p, slots)
        rest = {k: v.to(wide) if v.dtype.is_float else v for k, v in slots.items() if k != "master"}
        rate = lr.to(wide) if isinstance(lr, ts.Tensor) else lr
        before = parts(p)
        if "master" in slots:  # unless the parameter was given another value since, such as a loaded one
            before = ts.where(slots["master"].to(kind) == before.to(kind), slots["master"].to(wide), before)
        new, rest = self.step(before, parts(ts.conj(g) if p.dtype.is_complex else g, wide), rest, rate)
        out = ts.view_as_complex(new) if p.dtype.is_complex else new.to(p.dtype)
        return out, ({} if kind is wide else {"master": new}) | rest

    def _check_state(self, p: Any, slots: Any) -> None:
        hints = ["Start with state = rule.init(params)"]
        if not isinstance(slots, dict) or not slots:
            raise ts.errors.ArgumentError("a parameter has no state", expected="a dict from rule.init(params)",
                                          received=f"{type(slots).__name__} for {p.dtype}{list(p.shape)}", hints=hints)
        if self.holds is not None and set(slots) - {"master"} != set(self.holds):
            raise ts.errors.ArgumentError(f"the state is not one of {self.name}", expected=", ".join(self.holds),
                                          received=", ".join(map(str, slots)), hints=hints)


def trained(p: Any) -> bool:
    """Whether an optimiser moves ``p``: a tensor, an array or a number that is floating-point or complex."""
    if isinstance(p, ts.Tensor):
        return bool(p.dtype.is_float or p.dtype.is_complex)
    if isinstance(p, np.ndarray | np.generic):
        return trained(ts.from_numpy(np.asarray(p))) if p.dtype.kind not in "OSUMmV" or p.dtype.isbuiltin == 2 else False
    return isinstance(p, float | complex)


def precision(p: Any) -> Any:
    """The format in which the updates of ``p`` are computed."""
    return ts.f64 if p.dtype.real is ts.f64 else ts.f32


def parts(p: Any, wide: Any = None) -> Any:
    """``p`` in the precision of its updates; of complex numbers the two parts, along a last axis of 2."""
    return (ts.view_as_real(p) if p.dtype.is_complex else p).to(wide or precision(p))


def _gradient(p: Any, g: Any) -> Any:
    """The gradient of ``p`` as a tensor that can move it."""
    g, kind = ts.asarray(g), ts.asarray(p).dtype
    if not trained(p):
        raise ts.errors.DTypeError(f"a gradient for a parameter of {kind} numbers", expected="a floating-point or complex parameter",
                                   received=f"{kind}{list(np.shape(p))}", hints=["Give None in place of this gradient",
                                                                                 "Keep what is not trained out of the parameters"])
    if tuple(g.shape) != tuple(np.shape(p)):
        raise ts.errors.ShapeError("a gradient has not its parameter's shape", expected=str(list(np.shape(p))), received=str(list(g.shape)))
    if g.dtype.is_complex and not kind.is_complex:
        raise ts.errors.DTypeError(f"a complex gradient for a parameter of {kind} numbers", expected=str(kind), received=str(g.dtype),
                                   hints=["The gradient of a real loss is real: take ts.real(gradient)"])
    return g if not kind.is_complex or g.dtype.is_complex else g.to(kind)


def rate_of(lr: Any) -> Any:
    """A learning rate: a checked number, or a scalar tensor as it is.

    Raises:
        ArgumentError: no number, or one below 0 or without end.
        ShapeError: a tensor of several numbers.
    """
    if not isinstance(lr, ts.Tensor):
        return number("update", "lr", lr, 0, math.inf)
    if tuple(lr.shape):
        raise ts.errors.ShapeError("a learning rate is one number", expected="[]", received=str(list(lr.shape)),
                                   hints=["Take several steps with rules of their own, one a group of parameters"])
    return lr if lr.is_traced else number("update", "lr", lr, 0, math.inf) and lr


def number(name: str, what: str, value: Any, low: float, high: float) -> float:
    """A real number of a rule within [low, high).

    Raises:
        ArgumentError: it is none, or outside.
    """
    real = isinstance(value, int | float | np.floating | np.integer) and not isinstance(value, bool)
    if isinstance(value, ts.Tensor) and not value.is_traced and value.size == 1 and not value.dtype.is_complex:
        real = True
    bound = f"at least {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}, which it is less than"
    if not real:
        later = isinstance(value, ts.Tensor) and value.is_traced
        raise ts.errors.ArgumentError(f"{name}({what}=…) is a number, not {describe(value)}", expected=f"{what} is {bound}",
                                      received=describe(value), hints=["Give it to the step: rule.update(params, grads, state, lr=lr)"]
                                      if later and what == "lr" else [])
    if not low <= float(value) < high:
        raise ts.errors.ArgumentError(f"{name}({what}={value!r})", expected=f"{what} is {bound}", received=repr(value))
    return float(value)


# -- the methods ---------------------------------------------------------------------------------------------------------------
def sgd(lr: float = 1e-2, *, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0) -> Rule:
    """Gradient descent: p - lr * g; with momentum v = momentum * v + g, and p - lr * v.

    Args:
        nesterov: move by g + momentum * v (Y. Nesterov, 1983).
        weight_decay: added to the gradient: g + weight_decay * p.

    Raises:
        ArgumentError: a number out of its range; nesterov without momentum.
    """
    lr, momentum = number("sgd", "lr", lr, 0, math.inf), number("sgd", "momentum", momentum, 0, 1)
    decay = number("sgd", "weight_decay", weight_decay, 0, math.inf)
    if nesterov and not momentum:
        raise ts.errors.ArgumentError("nesterov goes with a momentum", hints=["sgd(lr, momentum=0.9, nesterov=True)"])
    names = ("velocity",) if momentum else ()
    return Rule("sgd", lr, partial(_counted, names), partial(_sgd_step, momentum=momentum, nesterov=bool(nesterov), decay=decay),
                ("step", *names))


def _sgd_step(p: Any, g: Any, slots: Slots, lr: Any, *, momentum: float, nesterov: bool, decay: float) -> tuple[Any, Slots]:
    if decay:
        g = g + decay * p
    if not momentum:
        return p - lr * g, {"step": slots["step"] + 1}
    v = momentum * slots["velocity"] + g
    return p - lr * (g + momentum * v if nesterov else v), {"step": slots["step"] + 1, "velocity": v}


def momentum(lr: float = 1e-2, beta: float = 0.9, *, nesterov: bool = False, weight_decay: float = 0.0) -> Rule:
    """:func:`sgd` with a momentum of ``beta``."""
    return sgd(lr, momentum=beta, nesterov=nesterov, weight_decay=weight_decay)


def adam(lr: float = 1e-3, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 0.0) -> Rule:
    """Adam (D. Kingma, J. Ba, arXiv:1412.6980, algorithm 1): p - lr * m / (sqrt(v) + eps), moments corrected for their start.

    Args:
        betas: how much of the first and second moment is kept at each step.
        weight_decay: added to the gradient; :func:`adamw` decays the parameter itself.

    Raises:
        ArgumentError: a number out of its range.
    """
    return _adam("adam", lr, betas, eps, weight_decay, decoupled=False)


def adamw(lr: float = 1e-3, *, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8, weight_decay: float = 1e-2) -> Rule:
    """Adam with decoupled decay: p * (1 - lr * weight_decay) before the step (I. Loshchilov, F. Hutter, arXiv:1711.05101).

    Raises:
        ArgumentError: a number out of its range.
    """
    return _adam("adamw", lr, betas, eps, weight_decay, decoupled=True)


def _adam(name: str, lr: float, betas: tuple[float, float], eps: float, weight_decay: float, decoupled: bool) -> Rule:
    if not isinstance(betas, list | tuple) or len(betas) != 2:
        raise ts.errors.ArgumentError(f"{name}(betas=…) is a pair of numbers, not {describe(betas)}", expected="betas=(0.9, 0.999)",
                                      received=describe(betas))
    first, second = (number(name, f"beta{i + 1}", b, 0, 1) for i, b in enumerate(betas))
    step = partial(_adam_step, first=first, second=second, eps=number(name, "eps", eps, 0, math.inf),
                   decay=number(name, "weight_decay", weight_decay, 0, math.inf), decoupled=decoupled)
    return Rule(name, number(name, "lr", lr, 0, math.inf), partial(_counted, ("mean", "square")), step, ("step", "mean", "square"))


def _adam_step(p: Any, g: Any, slots: Slots, lr: Any, *, first: float, second: float, eps: float, decay: float,
               decoupled: bool) -> tuple[Any, Slots]:
    if decay and decoupled:
        p = p * (1 - lr * decay)
    elif decay:
        g = g + decay * p
    n = slots["step"] + 1
    m = first * slots["mean"] + (1 - first) * g
    v = second * slots["square"] + (1 - second) * g * g
    size = ts.sqrt(v / _share(second, n, p.dtype)) + eps
    return p - lr / _share(first, n, p.dtype) * (m / size), {"step": n, "mean": m, "square": v}


def _share(beta: float, n: Any, dtype: Any) -> Any:
    """1 - beta**n, exact for beta near 1 too: what an average that started at 0 has seen after ``n`` steps."""
    return 1.0 if beta == 0 else -ts.expm1(n.to(dtype) * math.log(beta))


def _counted(names: tuple[str, ...], p: Any) -> Slots:
    return {"step": ts.tensor(0, dtype=ts.int32), **{n: ts.zeros_like(p) for n in names}}


__all__ = ["Rule", "adam", "adamw", "momentum", "sgd"]
