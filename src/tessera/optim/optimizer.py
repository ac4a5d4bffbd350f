"""Optimisers: objects that hold a rule, its state, and the parameters that they move.

    optimizer = ts.optim.Adam(model, lr=1e-3)
    optimizer.step(grads)

The parameters stay the tensors that they are and take new values, so functions that captured them need no new program.  ``step`` works
eagerly (one compiled program for all parameters) and inside a traced function, whose effect ``state`` it is.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

import optree

import tessera as ts

from . import rules
from .rules import Rule


class Optimizer:
    """A rule at work on a model's parameters.

    Args:
        params: a module, or a tree of tensors.
        rule: from ``ts.optim.adam(...)`` and the like.

    Attributes:
        params: the parameters that are trained, by name: a module's own names, or paths in the tree (``"layers.0.w"``).
        state: for each of them what the rule keeps, by name.

    Raises:
        ArgumentError: there is nothing to train.
    """

    def __init__(self, params: Any, rule: Rule):
        self.rule = rule
        self._tree: Any = None
        if callable(getattr(params, "named_parameters", None)):
            named = dict(params.named_parameters())
        else:
            paths, leaves, self._tree = optree.tree_flatten_with_path(params)
            named = {".".join(map(str, path)) or "params": leaf for path, leaf in zip(paths, leaves, strict=True)}
        self._names = list(named)
        self.params: dict[str, Any] = {n: p for n, p in named.items() if rules.trained(p)}
        if not self.params:
            raise ts.errors.ArgumentError("the optimiser finds no parameters to train", received=type(params).__name__,
                                          hints=["Pass a module, or a list or dict of floating-point tensors"])
        self.state: dict[str, dict[str, Any]] = {n: rule.init([p])[0] for n, p in self.params.items()}
        self._lr = ts.tensor(rule.lr, dtype=ts.f64)
        self._step = ts.jit(self._moved)

    @property
    def lr(self) -> float:
        """The learning rate; it can be set, and needs no new program."""
        return float(self._lr)

    @lr.setter
    def lr(self, value: float) -> None:
        ts.assign(self._lr, float(value))

    def step(self, grads: Any, where: Any = None) -> None:
        """Move the parameters by their gradients, computed in f32 whatever policy is in force.

        Args:
            grads: a dict by name, which may leave parameters out; or a tree like the one that the optimiser was given.
            where: a boolean scalar: where it is false nothing moves and no state changes.  Unless given, in a ``mixed_precision``
                function: whether the gradients that ``ts.unscale_grads`` saw last were finite.

        Raises:
            ArgumentError: the gradients are not of these parameters.
            ShapeError: a gradient has not its parameter's shape.
        """
        given = self._named(grads)
        params = {n: self.params[n] for n in given}
        state = {n: self.state[n] for n in given}
        where = ts.amp.finite() if where is None else where
        where = True if where is None else where
        tracing = any(isinstance(x, ts.Tensor) and x.is_traced for x in [*given.values(), where])
        with ts.autocast(enabled=False):  # no policy has a say in the update
            new, kept = (self._moved if tracing else self._step)(params, given, state, self._lr, where)
        for n in given:
            ts.assign(self.params[n], new[n])
            for k, v in kept[n].items():
                ts.assign(self.state[n][k], v)

    def _moved(self, params: Any, grads: Any, state: Any, lr: Any, where: Any) -> Any:
        names = list(params)
        new, kept = self.rule.update([params[n] for n in names], [grads[n] for n in names], [state[n] for n in names], lr)
        if where is True:
            return dict(zip(names, new, strict=True)), dict(zip(names, kept, strict=True))
        def taken(a: Any, b: Any) -> Any:
            return ts.where(where, a, b)

        return ({n: taken(p, params[n]) for n, p in zip(names, new, strict=True)},
                {n: {k: taken(v, state[n][k]) for k, v in s.items()} for n, s in zip(names, kept, strict=True)})

    def _named(self, grads: Any) -> dict[str, Any]:
        if isinstance(grads, Mapping) and (self._tree is None or set(map(str, grads)) <= set(self._names)):
            found = dict(grads)
        elif self._tree is None:
            raise ts.errors.ArgumentError("the gradients of a module are a dict by parameter name", received=type(grads).__name__,
                                          hints=["Take them as ts.grad(loss)(model, …) or, inside the function, ts.grad(loss, model)"])
        else:
            try:
                found = dict(zip(self._names, self._tree.flatten_up_to(grads), strict=True))
            except (ValueError, TypeError) as e:
                raise ts.errors.ArgumentError("the gradients are not a tree like the parameters", expected=str(self._tree),
                                              sentence=str(e)) from None
        unknown = next((n for n in found if n not in self._names), None)
        if unknown is not None:
            close = difflib.get_close_matches(str(unknown), self._names, 1)
            meant = f"; did you mean {close[0]!r}?" if close else ""
            raise ts.errors.ArgumentError(f"the optimiser has no parameter {unknown!r}{meant}",
                                          expected=", ".join(self._names[:8]),
                                          hints=["Name the model whose gradients you take: ts.grad(loss, model)"])
        return {n: g for n, g in found.items() if g is not None and n in self.params}

    # -- saving ------------------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """The state as tensors by name (``"w.mean"``), and the learning rate as ``"lr"``."""
        flat = {f"{n}.{k}": v.clone() for n, slots in self.state.items() for k, v in slots.items()}
        return {"lr": self._lr.clone(), **flat}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave.

        Raises:
            ArgumentError: a name is missing or unknown; nothing is changed then.
            ShapeError, DTypeError: a tensor has another type.
        """
        own = {"lr": self._lr, **{f"{n}.{k}": v for n, slots in self.state.items() for k, v in slots.items()}}
        wrong = sorted(own.keys() ^ state.keys())
        if wrong:
            raise ts.errors.ArgumentError("the state does not fit the optimiser", received=", ".join(wrong[:6]),
                                          sentence="These names are on one side only.", hints=["Make the optimiser with the same rule "
                                                                                              "and model"])
        for n, t in own.items():
            ts.assign(t, ts.tensor(state[n], dtype=t.dtype))

    def __repr__(self) -> str:
        return f"<{self.rule.name} of {len(self.params)} parameters, lr={self.lr:g}>"


class SGD(Optimizer):
    """:func:`~tessera.optim.sgd` on a model's parameters; ``options`` are the rule's."""

    def __init__(self, params: Any, lr: float = 1e-2, **options: Any):
        super().__init__(params, rules.sgd(lr, **options))


class Adam(Optimizer):
    """:func:`~tessera.optim.adam` on a model's parameters; ``options`` are the rule's."""

    def __init__(self, params: Any, lr: float = 1e-3, **options: Any):
        super().__init__(params, rules.adam(lr, **options))


class AdamW(Optimizer):
    """:func:`~tessera.optim.adamw` on a model's parameters; ``options`` are the rule's."""

    def __init__(self, params: Any, lr: float = 1e-3, **options: Any):
        super().__init__(params, rules.adamw(lr, **options))


__all__ = ["SGD", "Adam", "AdamW", "Optimizer"]
