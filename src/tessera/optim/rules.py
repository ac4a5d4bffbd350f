"""Update rules: pure functions of (parameters, gradients, state) that give (parameters, state).

    rule = ts.optim.adam(lr=1e-3)
    state = rule.init(params)
    params, state = rule.update(params, grads, state)

Parameters are any tree of tensors.  Updates are computed in f32 (f64 for f64): a parameter in a smaller format has a master copy in f32
in the state, and is what that copy rounds to.  A gradient of None, and a parameter that is no real number, leave things as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import optree

import tessera as ts

Slots = dict[str, Any]


@dataclass(frozen=True)
class Rule:
    """How parameters follow their gradients.

    Attributes:
        name: of the method.
        lr: the learning rate, unless ``update`` is told another.
        slots: what the state holds for one parameter, given that in f32 (or f64).
        step: (parameter, gradient, slots, learning rate) of one parameter, all in f32 (or f64), to (parameter, slots).
    """

    name: str
    lr: float
    slots: Callable[[Any], Slots]
    step: Callable[[Any, Any, Slots, Any], tuple[Any, Slots]]

    def init(self, params: Any) -> list[Slots]:
        """The state before the first step: a dict for each leaf of ``params``, in optree's order; empty for one that is not trained."""
        return [self._fresh(p) for p in optree.tree_leaves(params)]

    def update(self, params: Any, grads: Any, state: list[Slots], lr: Any = None) -> tuple[Any, list[Slots]]:
        """One step.

        Args:
            params: a tree of tensors.
            grads: the same tree of gradients, of the parameters' shapes; None where there is none.
            state: from :meth:`init` or the step before.
            lr: another learning rate: a number or a scalar tensor (which can change without a new program).

        Raises:
            ShapeError: a gradient has not its parameter's shape.
            ArgumentError: the trees differ.
        """
        leaves, tree = optree.tree_flatten(params)
        try:
            given = tree.flatten_up_to(grads)
        except (ValueError, TypeError) as e:
            raise ts.errors.ArgumentError("the gradients are not a tree like the parameters", expected=str(tree), sentence=str(e)) from None
        if len(state) != len(leaves):
            raise ts.errors.ArgumentError(f"the state is of {len(state)} parameters, and there are {len(leaves)}",
                                          hints=["Start with state = rule.init(params)"])
        rate = self.lr if lr is None else lr
        moved = [self._moved(p, g, s, rate) for p, g, s in zip(leaves, given, state, strict=True)]
        return optree.tree_unflatten(tree, [p for p, _ in moved]), [s for _, s in moved]

    def _fresh(self, p: Any) -> Slots:
        if not trained(p):
            return {}
        wide = p.to(precision(p))
        return ({} if wide.dtype is p.dtype else {"master": wide}) | self.slots(wide)

    def _moved(self, p: Any, g: Any, slots: Slots, lr: Any) -> tuple[Any, Slots]:
        if g is None or not slots_of(p, slots):
            return p, slots
        wide = precision(p)
        g = ts.asarray(g)
        if tuple(g.shape) != tuple(p.shape):
            raise ts.errors.ShapeError("a gradient has not its parameter's shape", expected=str(list(p.shape)),
                                       received=str(list(g.shape)))
        rest = {k: v for k, v in slots.items() if k != "master"}
        rate = lr.to(wide) if isinstance(lr, ts.Tensor) else lr
        before = p
        if "master" in slots:  # unless the parameter was given another value since, such as a loaded one
            before = ts.where(slots["master"].to(p.dtype) == p, slots["master"], p.to(wide))
        new, rest = self.step(before, g.to(wide), rest, rate)
        return new.to(p.dtype), ({"master": new} if "master" in slots else {}) | rest


def trained(p: Any) -> bool:
    """Whether an optimiser moves ``p``: a tensor of real floating-point numbers."""
    return isinstance(p, ts.Tensor) and bool(p.dtype.is_float)


def precision(p: Any) -> Any:
    """The format in which the updates of ``p`` are computed."""
    return ts.f64 if p.dtype is ts.f64 else ts.f32


def slots_of(p: Any, slots: Slots) -> bool:
    """Whether the state of ``p`` lets it move.

    Raises:
        ArgumentError: the parameter is trained and its state is missing.
    """
    if trained(p) and not slots:
        raise ts.errors.ArgumentError("a parameter has no state", received=f"{p.dtype}{list(p.shape)}",
                                      hints=["Start with state = rule.init(params), after parameters change their dtype"])
    return trained(p)


def _check(name: str, **values: tuple[float, float, float]) -> None:
    for what, (value, low, high) in values.items():
        if not low <= value < high:
            bound = f"at least {low:g}" if math.isinf(high) else f"between {low:g} and {high:g}, which it is less than"
            raise ts.errors.ArgumentError(f"{name}({what}={value!r})", expected=f"{what} is {bound}", received=repr(value))


# -- the methods ---------------------------------------------------------------------------------------------------------------
def sgd(lr: float = 1e-2, *, momentum: float = 0.0, nesterov: bool = False, weight_decay: float = 0.0) -> Rule:
    """Gradient descent: p - lr * g; with momentum v = momentum * v + g, and p - lr * v.

    Args:
        nesterov: move by g + momentum * v (Y. Nesterov, 1983).
        weight_decay: added to the gradient: g + weight_decay * p.

    Raises:
        ArgumentError: a number out of its range; nesterov without momentum.
    """
    _check("sgd", lr=(lr, 0, math.inf), momentum=(momentum, 0, 1), weight_decay=(weight_decay, 0, math.inf))
    if nesterov and not momentum:
        raise ts.errors.ArgumentError("nesterov goes with a momentum", hints=["sgd(lr, momentum=0.9, nesterov=True)"])

    def step(p: Any, g: Any, slots: Slots, lr: Any) -> tuple[Any, Slots]:
        if weight_decay:
            g = g + weight_decay * p
        if not momentum:
            return p - lr * g, {"step": slots["step"] + 1}
        v = momentum * slots["velocity"] + g
        return p - lr * (g + momentum * v if nesterov else v), {"step": slots["step"] + 1, "velocity": v}

    return Rule("sgd", lr, lambda p: _counted(velocity=ts.zeros_like(p)) if momentum else _counted(), step)


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
    first, second = betas
    _check(name, lr=(lr, 0, math.inf), beta1=(first, 0, 1), beta2=(second, 0, 1), eps=(eps, 0, math.inf),
           weight_decay=(weight_decay, 0, math.inf))

    def step(p: Any, g: Any, slots: Slots, lr: Any) -> tuple[Any, Slots]:
        if weight_decay and decoupled:
            p = p * (1 - lr * weight_decay)
        elif weight_decay:
            g = g + weight_decay * p
        n = slots["step"] + 1
        m = first * slots["mean"] + (1 - first) * g
        v = second * slots["square"] + (1 - second) * g * g
        size = ts.sqrt(v / _share(second, n, p.dtype)) + eps
        return p - lr / _share(first, n, p.dtype) * (m / size), {"step": n, "mean": m, "square": v}

    return Rule(name, lr, lambda p: _counted(mean=ts.zeros_like(p), square=ts.zeros_like(p)), step)


def _share(beta: float, n: Any, dtype: Any) -> Any:
    """1 - beta**n, exact for beta near 1 too: what an average that started at 0 has seen after ``n`` steps."""
    return 1.0 if beta == 0 else -ts.expm1(n.to(dtype) * math.log(beta))


def _counted(**slots: Any) -> Slots:
    return {"step": ts.tensor(0, dtype=ts.int32), **slots}


__all__ = ["Rule", "adam", "adamw", "momentum", "sgd"]
