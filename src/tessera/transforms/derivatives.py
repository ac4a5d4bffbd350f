"""``grad``, ``value_and_grad``, ``jvp``, ``vjp``: derivatives of Python functions, as users call them.

What these return is a :class:`~tessera.tracing.function.TracedFunction`: a direct call compiles one program and keeps it; inside a
traced function (or another transformation) the derivative is recorded in place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optree

from ..errors import ArgumentError, DerivativeError, ShapeError
from ..ir.core import TensorType
from ..tracing.annotations import Declared
from ..tracing.function import TracedFunction
from ..tracing.recorder import STATE, bind, lift
from ..tracing.tensor import Tensor, Traced
from ..types import dtypes as dt
from . import structures  # noqa: F401  enters the rules of calls, branches and loops
from .forward import Forward
from .replay import Body, as_recorded, ones, record_body, zeros
from .reverse import Cotangent, Reverse

_NUMERIC = (Tensor, np.ndarray, np.generic, int, float, complex)


# -- functions made of functions -----------------------------------------------------------------------------------------
class Derived(TracedFunction):
    """A function that a transformation made of another: its arguments are the other's, its result is not."""

    @property
    def declared(self) -> Declared:
        if self._declared is None:
            self._declared = dataclasses.replace(super().declared, result=None)
        return self._declared


def derived(fn: Callable[..., Any], call: Callable[..., Any], kind: str) -> Derived:
    """``call`` as a function with the parameters, sizes and static arguments of ``fn``."""
    call.__name__ = f"{kind}_{getattr(fn, '__name__', type(fn).__name__)}".replace("<lambda>", "f")
    call.__doc__ = f"{kind} of {getattr(fn, '__name__', type(fn).__name__)}."
    call.__wrapped__ = fn  # type: ignore[attr-defined]
    if isinstance(fn, TracedFunction):
        return Derived(call, static_argnames=sorted(fn.static_names), where=fn._where, static_sizes=sorted(fn._static_sizes),
                       kind=kind)
    return Derived(call, kind=kind)


def name_of(fn: Any) -> str:
    return str(getattr(fn, "__name__", type(fn).__name__))


def needs_function(what: str, fn: Any) -> None:
    if not callable(fn):
        raise ArgumentError(f"{what}() takes a function first, not a {type(fn).__name__}", expected=f"{what}(f)", received=repr(fn)[:80])


# -- what is differentiated ------------------------------------------------------------------------------------------------
class Inputs:
    """The tensors by which a call is differentiated, among its arguments.

    ``argnums`` names positional arguments; each is a tensor, a number, a tree of them, or an object with parameters (a
    module: its derivatives are a dict by parameter name).
    """

    def __init__(self, what: str, name: str, args: Sequence[Any], argnums: Any):
        self.what, self.args, self.single = what, list(args), isinstance(argnums, int)
        self.leaves: list[Tensor] = []
        self.held: list[Tensor] = []  # parameters of modules: tensors that the function captures
        self.pieces: list[tuple[int, Any, list[str] | None, int]] = []  # (argument, tree, parameter names, number of leaves)
        for i in _numbers(what, name, argnums, len(args)):
            self._enter(i, args[i], f"argument {i} of {name!r}")

    def _enter(self, i: int, value: Any, where: str) -> None:
        if callable(getattr(value, "named_parameters", None)) and not isinstance(value, Tensor):
            named = [(n, t) for n, t in value.named_parameters() if t.dtype.is_inexact]
            self.pieces.append((i, None, [n for n, _ in named], len(named)))
            self.held += [t for _, t in named]
            return
        leaves, tree = optree.tree_flatten(value)
        for leaf in leaves:
            self.leaves.append(inexact(self.what, leaf, where))
        if not leaves:
            raise DerivativeError(f"{where} holds no tensor", received=repr(value)[:80],
                                  hints=["Name another argument: argnums=…"])
        self.pieces.append((i, tree, None, len(leaves)))

    def rebuild(self, leaves: Sequence[Tensor]) -> list[Any]:
        """The arguments with other leaves."""
        out, it = list(self.args), iter(leaves)
        for i, tree, names, n in self.pieces:
            if names is None:
                out[i] = optree.tree_unflatten(tree, [next(it) for _ in range(n)])
        return out

    def shaped(self, of_leaves: Sequence[Any], of_held: Sequence[Any]) -> Any:
        """One value for each input, in the form of the arguments."""
        one, two = iter(of_leaves), iter(of_held)
        out: list[Any] = []
        for _, tree, names, n in self.pieces:
            if names is None:
                out.append(optree.tree_unflatten(tree, [next(one) for _ in range(n)]))
            else:
                out.append({k: next(two) for k in names})
        return out[0] if self.single else tuple(out)


def _numbers(what: str, name: str, argnums: Any, count: int) -> list[int]:
    given = (argnums,) if isinstance(argnums, int) and not isinstance(argnums, bool) else argnums
    if not isinstance(given, tuple | list) or not all(isinstance(i, int) and not isinstance(i, bool) for i in given) or not given:
        raise ArgumentError(f"argnums of {what}() is an integer or a tuple of them", received=repr(argnums)[:80])
    out = []
    for i in given:
        if not -count <= i < count:
            raise ArgumentError(f"{what}() differentiates by argument {i} of {name!r}, which got {count} positional "
                                f"argument{'s' * (count != 1)}", received=repr(argnums),
                                hints=[f"Choose argnums from 0 to {count - 1}" if count else "Pass the argument by position"])
        out.append(i % count)
    if len(set(out)) != len(out):
        raise ArgumentError(f"argnums of {what}() names an argument twice", received=repr(argnums))
    return out


def inexact(what: str, leaf: Any, where: str) -> Tensor:
    """A leaf as a tensor that has a derivative.

    Raises:
        DerivativeError: integers, truth values, anything that is no tensor.
    """
    if not isinstance(leaf, _NUMERIC):
        raise DerivativeError(f"{what}() differentiates by {where}, which holds a {type(leaf).__name__}", received=repr(leaf)[:80],
                              hints=["Name the arguments that are tensors: argnums=…"])
    t = lift(leaf)
    if not t.dtype.is_inexact:
        raise DerivativeError(
            f"{what}() differentiates by {where}, which is {t.type}", expected="a tensor of floating-point or complex numbers",
            received=str(t.type), sentence="Functions of integers and truth values have no derivative.",
            hints=["Convert it first: x.to(ts.f32)", "Name another argument: argnums=…"])
    return t


# -- reverse mode ------------------------------------------------------------------------------------------------------------
class Pulled:
    """A call recorded with its tape: ``outs`` (a tree's leaves), and :meth:`back` for cotangents of them."""

    def __init__(self, name: str, call: Callable[[list[Tensor]], Any], inputs: Sequence[Tensor], held: Sequence[Tensor] = ()):
        self.body: Body = record_body(name, call, inputs)
        self.count = len(inputs)
        given = self.body.given
        self.places = [next((i for i, s in enumerate(self.body.sources) if s is t), None) for t in held]
        self.held = held
        wanted = [True] * self.count + [i in self.places for i in range(len(given))]
        with as_recorded():
            self.engine = Reverse(self.body.graph.functions)
            self.outs = self.engine.run(self.body.graph, [*inputs, *given], wanted)
        self.inputs = inputs

    def back(self, gs: Sequence[Cotangent]) -> tuple[list[Tensor], list[Tensor]]:
        """Cotangents of the inputs and of the held tensors; zeros where nothing depends on them."""
        with as_recorded():
            found = self.engine.pull(self.body.graph, gs)
            own = [zeros(t.type) if g is None else g for g, t in zip(found, self.inputs)]
            rest = found[self.count:]
            held = [zeros(t.type) if i is None or rest[i] is None else rest[i] for i, t in zip(self.places, self.held, strict=True)]
        return own, held  # type: ignore[return-value]

    def tree(self, leaves: Sequence[Any]) -> Any:
        """The function's result, or something of its form."""
        return self.body.result(leaves)


def _scalar_output(what: str, name: str, pulled: Pulled, holomorphic: bool, inputs: Sequence[Tensor]) -> Tensor:
    body = pulled.body
    out = pulled.outs[0] if pulled.outs else None
    if out is None or body.tree is not None:
        n = len(pulled.outs)
        raise DerivativeError(
            f"{what}() of {name!r}, which returns " + (f"a structure with {n} tensors" if n else "no tensor"),
            expected="one tensor", received=str(body.tree) if body.tree is not None else "nothing",
            hints=["Return the loss alone", f"Return (loss, anything else) and say {what}(f, has_aux=True)", "Use ts.vjp or ts.jacrev"])
    if holomorphic and not (out.dtype.is_complex and all(t.dtype.is_complex for t in inputs)):
        raise DerivativeError(
            f"{what}(holomorphic=True) of {name!r} takes complex numbers to complex numbers", expected="complex arguments and result",
            received=f"{', '.join(str(t.type) for t in inputs)} -> {out.type}",
            hints=["Leave holomorphic out: derivatives of real functions need no word", "Convert the argument: x.to(ts.complex64)"])
    if not out.dtype.is_inexact or (out.dtype.is_complex and not holomorphic):
        raise DerivativeError(
            f"{what}() of {name!r}, which returns {out.type}", expected="floating-point numbers", received=str(out.type),
            hints=["Say so if the function is holomorphic: holomorphic=True"] if out.dtype.is_complex else
            ["Functions with integer results have no derivative; return a floating-point value"])
    return out


def value_and_gradient(what: str, fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], argnums: Any, has_aux: bool,
                       batched: bool | None, holomorphic: bool) -> tuple[Any, Any, Any]:
    """Record a call and its gradient: (value, aux, gradient)."""
    name = name_of(fn)
    inputs = Inputs(what, name, args, argnums)
    aux: list[Any] = []

    def call(leaves: list[Tensor]) -> Any:
        out = fn(*inputs.rebuild(leaves), **kwargs)
        if not has_aux:
            return lift(out) if type(out) in (int, float, complex) else out  # a constant function
        if not isinstance(out, tuple) or len(out) != 2:
            raise DerivativeError(f"{what}(has_aux=True) of {name!r}, which returns a {type(out).__name__}", expected="(loss, aux)",
                                  received=repr(type(out).__name__), hints=["Return a pair, or leave has_aux out"])
        leaves, tree = optree.tree_flatten(out[1])
        tensors = [isinstance(x, (Tensor, np.ndarray, np.generic)) for x in leaves]
        aux[:] = [leaves, tree, tensors]
        return out[0], [x for x, t in zip(leaves, tensors, strict=True) if t]

    pulled = Pulled(name, call, inputs.leaves, inputs.held)
    if has_aux:
        extra = pulled.outs[1:]
        pulled.outs = pulled.outs[:1]
        if not pulled.body.tree.children()[0].is_leaf():
            raise DerivativeError(f"{what}(has_aux=True) of {name!r}: the first result is not one tensor",
                                  received=str(pulled.body.tree.children()[0]))
        pulled.body.tree = None
    out = _scalar_output(what, name, pulled, holomorphic, inputs.leaves)
    tail: list[Cotangent] = [None] * (len(pulled.body.graph.returns) - 1)
    if out.type.shape == () or sums_rows(fn, out, inputs, batched):
        found = pulled.back([ones(out.type), *tail])
        gradient = inputs.shaped(*found)
    elif batched is False or batched is None:
        gradient = jacobian(pulled, inputs, out, tail)
    made = None
    if has_aux:
        leaves, tree, tensors = aux
        it = iter(extra)
        made = optree.tree_unflatten(tree, [next(it) if t else x for x, t in zip(leaves, tensors, strict=True)])
    return out, made, gradient


def sums_rows(fn: Any, out: Tensor, inputs: Inputs, batched: bool | None) -> bool:
    """Whether a result that is not a scalar is summed first: ``batched=True``, or one score for each row of an input.

    A score for each row is a result ``[B]`` or ``[B, 1]`` beside an input ``[B, …]`` of rank 2 or more and another shape; a gradient
    is never summed, so that the gradient of a gradient is the Hessian.
    """
    if batched is not None:
        return batched
    shape = out.type.shape
    if isinstance(fn, Derived) or not inputs.leaves or len(shape) > 2 or (len(shape) == 2 and shape[1] != 1):
        return False
    of = inputs.leaves[0].type.shape
    return len(of) >= 2 and of[0] == shape[0] and of != shape


def jacobian(pulled: Pulled, inputs: Inputs, out: Tensor, tail: list[Cotangent]) -> Any:
    """The derivative of each element of ``out``: result shape, then input shape."""
    from .vmap import vmap
    shape = out.type.shape

    def rows(g: Tensor) -> Any:
        own, held = pulled.back([g, *tail])
        return [*own, *held]

    found = [bind("reshape", t, shape=(*shape, *t.type.shape[1:])) for t in vmap(rows)(basis(out.type))]
    return inputs.shaped(found[:len(inputs.leaves)], found[len(inputs.leaves):])


def basis(t: TensorType) -> Tensor:
    """The unit vectors of a type, stacked along a new first axis."""
    n: Any = t.size
    row = bind("iota", shape=(n, n), axis=0, dtype=dt.int32)
    column = bind("iota", shape=(n, n), axis=1, dtype=dt.int32)
    out: Tensor = bind("reshape", bind("convert", bind("eq", row, column), dtype=t.dtype), shape=(n, *t.shape))
    return out





def grad(fn: Any = None, argnums: Any = None, *, has_aux: bool = False, batched: bool | None = None,
         holomorphic: bool = False) -> Any:
    """``grad(f)`` is the gradient of ``f``: a function of the same arguments.

    ``grad(loss, x)`` of a tensor that a traced function has computed is its gradient by the tensor, tree or module ``x`` (or by all
    parameters in scope, as a dict, without ``x``).

    Args:
        fn: a function whose result is one tensor.
        argnums: by which positional arguments; an integer (0), or a tuple (then the result is a tuple).  An argument may be a tree of
            tensors, or a module (its gradient is a dict by parameter name).
        has_aux: ``fn`` returns ``(result, anything)``, and ``grad`` ``(gradient, anything)``.
        batched: what happens to a result that is not a scalar.  False: its Jacobian, of shape result + input, so that
            ``grad(grad(f))`` is the Hessian.  True: its elements are summed first.  None: one score for each row (a result ``[B]``
            or ``[B, 1]`` beside an input ``[B, …]`` of rank 2 or more) is summed, since rows are independent; anything else gives
            the Jacobian.
        holomorphic: ``fn`` is a holomorphic function of complex numbers; the gradient is its complex derivative.

    Raises:
        DerivativeError: by integers, of a structure, or through an op without a derivative.
    """
    if isinstance(fn, Tensor):
        from .in_scope import gradient_of
        return gradient_of(fn, argnums)
    argnums = 0 if argnums is None else argnums
    if fn is None:
        return lambda f: grad(f, argnums, has_aux=has_aux, batched=batched, holomorphic=holomorphic)
    needs_function("grad", fn)

    def call(*args: Any, **kwargs: Any) -> Any:
        _, aux, gradient = value_and_gradient("grad", fn, args, kwargs, argnums, has_aux, batched, holomorphic)
        return (gradient, aux) if has_aux else gradient

    return derived(fn, call, "grad")


def value_and_grad(fn: Callable[..., Any] | None = None, argnums: Any = 0, *, has_aux: bool = False, batched: bool | None = None,
                   holomorphic: bool = False) -> Any:
    """Like :func:`grad`, with the value: ``(value, gradient)``, or ``((value, aux), gradient)``, in one pass."""
    if fn is None:
        return lambda f: value_and_grad(f, argnums, has_aux=has_aux, batched=batched, holomorphic=holomorphic)
    needs_function("value_and_grad", fn)

    def call(*args: Any, **kwargs: Any) -> Any:
        value, aux, gradient = value_and_gradient("value_and_grad", fn, args, kwargs, argnums, has_aux, batched, holomorphic)
        return ((value, aux) if has_aux else value), gradient

    return derived(fn, call, "value_and_grad")


# -- forward mode --------------------------------------------------------------------------------------------------------------
def as_tuple(what: str, values: Any, kind: str) -> tuple[Any, ...]:
    if not isinstance(values, tuple | list):
        raise ArgumentError(f"{what}() takes {kind} as a tuple, one for each argument", received=type(values).__name__,
                            hints=["Write (x,) for a function of one argument"])
    return tuple(values)


def matched(what: str, primals: Any, tangents: Any) -> tuple[list[Tensor], list[Tensor | None], Any]:
    """Leaves of primals and of tangents, which must have one structure, equal shapes and dtypes.

    Raises:
        DerivativeError, ShapeError: they do not match.
    """
    leaves, tree = optree.tree_flatten(primals)
    others = beside(tree, tangents)
    if others is None:
        raise DerivativeError(f"{what}(): tangents do not have the structure of primals", expected=str(tree),
                              received=str(optree.tree_structure(tangents)))
    xs, ts = [], []
    for i, (x, t) in enumerate(zip(leaves, others, strict=True)):
        xs.append(lift(x))
        ts.append(tangent_for(what, xs[-1], t, i))
    return xs, ts, tree


def beside(tree: Any, values: Any) -> list[Any] | None:
    """The leaves of ``values`` in the places of a tree's leaves, where None stands for a zero; None if the structures differ."""
    try:
        found: list[Any] = tree.flatten_up_to(values)
    except ValueError:
        return None
    return found if all(v is None or optree.tree_is_leaf(v) for v in found) else None


def tangent_for(what: str, x: Tensor, t: Any, i: int, kind: str = "tangent", of: str = "primal") -> Tensor | None:
    """A tangent in its primal's dtype; None for what has none (an integer's), or is given none."""
    if t is None or not x.dtype.is_inexact:
        return None
    made = lift(t)
    if made.type.shape != x.type.shape:
        raise ShapeError(f"{what}(): {kind} {i} has another shape than its {of}", expected=str(x.type), received=str(made.type))
    weak = made._p.weak if type(made._p) is Traced else isinstance(t, int | float)
    if made.dtype is not x.dtype and not weak:
        raise DerivativeError(f"{what}(): {kind} {i} has another dtype than its {of}", expected=str(x.type), received=str(made.type),
                              hints=[f"Convert it: v.to({x.dtype})"])
    return made.to(x.dtype)


class Pushed:
    """A call recorded with tangents: ``outs`` and ``tangents``, leaves of a tree."""

    def __init__(self, name: str, call: Callable[[list[Tensor]], Any], xs: Sequence[Tensor], ts: Sequence[Tensor | None]):
        self.body = record_body(name, call, xs)
        with as_recorded():
            engine = Forward(self.body.graph.functions)
            self.outs, found = engine.run(self.body.graph, [*xs, *self.body.given], [*ts, *[None] * len(self.body.given)])
            self.tangents = [zeros(o.type) if t is None else t for o, t in zip(self.outs, found, strict=True)]

    def tree(self, leaves: Sequence[Any]) -> Any:
        """The function's result, or something of its form."""
        return self.body.result(leaves)


def jvp(fn: Callable[..., Any], primals: Any, tangents: Any) -> Any:
    """``f(*primals)``, and its derivative in the direction of ``tangents`` (one for each primal, of its form; None for a zero).

    Raises:
        DerivativeError, ShapeError: primals and tangents do not match.
    """
    needs_function("jvp", fn)
    primals, tangents = as_tuple("jvp", primals, "primals"), as_tuple("jvp", tangents, "tangents")

    def call(primals: Any, tangents: Any) -> Any:
        xs, ts, tree = matched("jvp", tuple(primals), tuple(tangents))
        pushed = Pushed(name_of(fn), lambda leaves: fn(*optree.tree_unflatten(tree, leaves)), xs, ts)
        return pushed.tree(pushed.outs), pushed.tree(pushed.tangents)

    if STATE.trace is not None:
        return call(primals, tangents)
    call.__name__ = f"jvp_{name_of(fn)}".replace("<lambda>", "f")
    return TracedFunction(call, kind="jvp")(primals, tangents)


__all__ = ["Derived", "Inputs", "Pulled", "Pushed", "derived", "grad", "inexact", "jacobian", "jvp", "matched", "value_and_grad"]
