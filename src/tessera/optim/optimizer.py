"""Optimisers: objects that hold a rule, its state, and the parameters that they move.

    optimizer = ts.optim.Adam(model, lr=1e-3)
    optimizer.step(grads)

The parameters stay the tensors that they are and take new values, so functions that captured them need no new program.  ``step`` works
eagerly (one compiled program for all parameters) and inside a traced function, whose effect ``state`` it is.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import optree

import tessera as ts
from tessera.errors.boundary import describe
from tessera.tracing.state import convert

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
        if not isinstance(rule, Rule):
            raise ts.errors.ArgumentError(
                f"an optimiser follows a rule, not {describe(rule)}", expected="Optimizer(model, ts.optim.adam(1e-3))",
                received=describe(rule), hints=["Use ts.optim.Adam(model, lr=1e-3)"])
        self.rule = rule
        self._tree: Any = None
        if callable(getattr(params, "named_parameters", None)):
            named = dict(params.named_parameters())
        else:
            params = list(params) if isinstance(params, Iterator) else params
            if isinstance(params, list) and any(isinstance(g, dict) and "params" in g and len(g) > 1 for g in params):
                raise ts.errors.ArgumentError("an optimiser has one rule, and these are groups of parameters with options of their own",
                                              received=describe(params), hints=["Make an optimiser for each group"])
            paths, leaves, self._tree = optree.tree_flatten_with_path(params)
            named = {".".join(map(str, path)) or "params": leaf for path, leaf in zip(paths, leaves, strict=True)}
        self._tensors = {n: p for n, p in named.items() if isinstance(p, ts.Tensor)}
        self._names = list(named)
        self._ties = _ties(named, of_module=self._tree is None)
        self.params: dict[str, Any] = {n: p for n, p in self._tensors.items() if rules.trained(p) and n not in self._ties}
        if not self.params:
            raise ts.errors.ArgumentError("the optimiser finds no parameters to train", received=type(params).__name__,
                                          hints=["Pass a module, or a list or dict of floating-point tensors"])
        self.state: dict[str, dict[str, Any]] = {n: rule.fresh(p) for n, p in self.params.items()}
        self._lr = ts.tensor(rule.lr, dtype=ts.f64)
        self._compile()

    def _compile(self) -> None:
        self._step = ts.jit(self._moved)

    def __getstate__(self) -> dict[str, Any]:
        """Pickled without its compiled step, together with the parameters that it moves."""
        return {k: v for k, v in vars(self).items() if k != "_step"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._compile()

    @property
    def lr(self) -> float:
        """The learning rate; it can be set, and needs no new program."""
        return float(self._lr)

    @lr.setter
    def lr(self, value: float) -> None:
        ts.assign(self._lr, rules.number(self.rule.name, "lr", value, 0, math.inf))

    def step(self, grads: Any, where: Any = None) -> None:
        """Move the parameters by their gradients, computed in f32 whatever policy is in force.

        Args:
            grads: a dict by name, which may leave parameters out; or a tree like the one that the optimiser was given.
            where: a boolean scalar: where it is false nothing moves and no state changes.  Unless given, in a ``mixed_precision``
                function: whether the gradients that ``ts.unscale_grads`` saw last were finite.

        Raises:
            ArgumentError: the gradients are not of these parameters; ``where`` is no truth value.
            ShapeError: a gradient has not its parameter's shape.
            DTypeError: a gradient for a parameter of integers, or a complex one for real numbers.
        """
        given = self._named(grads)
        for n in given:
            self._follow(n)
        params = {n: self.params[n] for n in given}
        state = {n: self.state[n] for n in given}
        where = _condition(ts.amp.finite() if where is None else where)
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

    def _follow(self, name: str) -> None:
        """Bring a parameter's state to the dtype and the device that it has taken since (``model.to(…)``)."""
        p, state = self.params[name], self.state[name]
        narrow = rules.precision(p) is not p.dtype.real
        wanted = {k: _like(v, p) for k, v in state.items() if k != "master" or narrow}
        if narrow and "master" not in state:
            wanted["master"] = rules.parts(p)
        if wanted.keys() == state.keys() and all(wanted[k] is v for k, v in state.items()):
            return
        if any(isinstance(v, ts.Tensor) and v.is_traced for v in wanted.values()):
            raise ts.errors.TracingError(
                f"the parameter {name!r} was converted, and its optimiser has not followed yet", received=str(p.type),
                sentence="The state's tensors take another type, which a traced function cannot do.",
                hints=["Make one eager step, or call optimizer.follow(), after model.to(…)"])
        for k, v in wanted.items():
            if k in state and v is not state[k]:
                convert(state[k], v)
        self.state[name] = {k: state.get(k, v) for k, v in wanted.items()}

    def follow(self) -> None:
        """Bring the state to the dtypes and devices that the parameters have taken (``model.to(…)``); an eager step does so by itself."""
        for n in self.params:
            self._follow(n)

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
        out: dict[str, Any] = {}
        for n, g in found.items():
            if g is not None and (n in self.params or n in self._ties):
                out.setdefault(self._ties.get(n, n), g)  # grad() gives a tied tensor's whole gradient under each name
            elif g is not None:
                self._refuse(n, g)
        return out

    def _refuse(self, name: str, g: Any) -> None:
        kind = describe(self._tensors[name]) if name in self._tensors else "no tensor"
        raise ts.errors.DTypeError(f"a gradient for {name!r}, which is not trained", expected="a floating-point or complex tensor",
                                   received=kind, hints=["Give None in place of this gradient, or leave it out"])

    # -- saving ------------------------------------------------------------------------------------------------------------
    def state_dict(self) -> dict[str, Any]:
        """The state as tensors by name (``"w.mean"``), and the learning rate as ``"lr"``."""
        flat = {f"{n}.{k}": v.clone() for n, slots in self.state.items() for k, v in slots.items()}
        return {"lr": self._lr.clone(), **flat}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what :meth:`state_dict` gave.

        Raises:
            ArgumentError: a name is missing or unknown, or the learning rate is none.
            ShapeError, DTypeError: a tensor has another type.  Nothing is changed in these cases.
        """
        if not isinstance(state, Mapping):
            raise ts.errors.ArgumentError(f"the state is a dict of tensors by name, not {describe(state)}",
                                          expected="optimizer.state_dict()", received=describe(state))
        self.follow()
        own = {f"{n}.{k}": v for n, slots in self.state.items() for k, v in slots.items()}
        wrong = sorted(map(str, {"lr", *own} ^ state.keys()))
        if wrong:
            raise ts.errors.ArgumentError("the state does not fit the optimiser", received=", ".join(wrong[:6]),
                                          sentence="These names are on one side only.", hints=["Make the optimiser with the same rule "
                                                                                              "and model"])
        lr = rules.number(self.rule.name, "lr", _scalar(state["lr"]), 0, math.inf)
        new = {n: _loaded(n, t, state[n]) for n, t in own.items()}
        ts.assign(self._lr, lr)
        for n, t in own.items():
            ts.assign(t, new[n])

    def __repr__(self) -> str:
        return f"<{self.rule.name} of {len(self.params)} parameters, lr={self.lr:g}>"


def _ties(named: Mapping[str, Any], of_module: bool) -> dict[str, str]:
    """Names of tensors that have another name before.

    Raises:
        ArgumentError: in a tree that is no module: whether its gradients are parts or the whole cannot be known.
    """
    first: dict[int, str] = {}
    ties = {n: first[id(p)] for n, p in named.items() if first.setdefault(id(p), n) != n and isinstance(p, ts.Tensor)}
    if ties and not of_module:
        a, b = next(iter(ties.items()))
        raise ts.errors.ArgumentError(f"one tensor stands at {b!r} and at {a!r}", expected="each parameter once",
                                      sentence="An optimiser moves a tensor once, by one gradient.",
                                      hints=["Put it into the tree once, and use it twice in the loss",
                                             "Pass the module itself, not a list of its tensors"])
    return ties


def _like(value: Any, p: Any) -> Any:
    """A tensor of the state in the precision and on the device of parameter ``p``; itself where it is so."""
    out = value.to(rules.precision(p)) if value.dtype.is_float and value.dtype is not rules.precision(p) else value
    stays = out.device == p.device or (not out.shape and out.device == "cpu")  # a number of the host goes along with any device
    return out if stays else out.to(p.device)


def _condition(where: Any) -> Any:
    """Whether a step is made: True, or a scalar truth value.

    Raises:
        ArgumentError: something else.
    """
    if where is None or where is True:
        return True
    if isinstance(where, ts.Tensor | np.ndarray | np.generic | bool):
        t = ts.asarray(where)
        if t.dtype is ts.bool_ and not tuple(t.shape):
            return t
    raise ts.errors.ArgumentError("where= is one truth value", expected="bool[]", received=describe(where),
                                  hints=["Reduce a tensor of them: where=flags.all()"])


def _scalar(x: Any) -> Any:
    return np.asarray(x).item() if isinstance(x, ts.Tensor | np.ndarray) and np.size(x) == 1 else x


def _loaded(name: str, own: Any, given: Any) -> Any:
    """A saved tensor as one of the state: of its type, where it lives.

    Raises:
        ShapeError, DTypeError: it is none.
    """
    t = ts.asarray(given)
    if tuple(t.shape) != tuple(own.shape):
        raise ts.errors.ShapeError(f"the saved {name!r} has another shape", expected=str(list(own.shape)), received=str(list(t.shape)))
    if t.dtype.is_complex or (own.dtype.is_integer and not t.dtype.is_integer):
        raise ts.errors.DTypeError(f"the saved {name!r} has another type", expected=str(own.dtype), received=str(t.dtype))
    return ts.tensor(t, dtype=own.dtype).to(own.device)


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
