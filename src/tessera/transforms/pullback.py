"""``vjp``: a value and its pullback, which may be called later and often.

Outside a trace there are two programs: one computes the value and what the pullback reads (residuals), the other takes residuals
and cotangents.  Inside one, both are recorded where they are called.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optree

from ..errors import DerivativeError
from ..ir.core import Function
from ..tracing.function import TracedFunction
from ..tracing.recorder import STATE, lift
from ..tracing.tensor import Tensor
from .derivatives import Pulled, beside, name_of, needs_function, tangent_for
from .replay import Body, Replay, as_recorded, record_body, zeros


class Form:
    """The primals and the result of one call of ``vjp``."""

    def __init__(self, fn: Callable[..., Any], primals: Sequence[Any], has_aux: bool):
        whole: Any = tuple(primals)
        leaves, self.tree = optree.tree_flatten(whole)
        self.tensors = [lift(x) for x in leaves]
        self.inexact = [t.dtype.is_inexact for t in self.tensors]
        if not any(self.inexact):
            raise DerivativeError(f"vjp() of {name_of(fn)!r} at primals without a floating-point or complex tensor",
                                  received=", ".join(str(t.type) for t in self.tensors) or "nothing",
                                  hints=["Convert it first: x.to(ts.f32)"])
        self.aux: Any = None
        self.results = 0

        def call(inputs: list[Tensor]) -> Any:
            it = iter(inputs)
            whole = [next(it) if k else t for k, t in zip(self.inexact, self.tensors, strict=True)]
            out = fn(*optree.tree_unflatten(self.tree, whole))
            if has_aux:
                if not isinstance(out, tuple) or len(out) != 2:
                    raise DerivativeError(f"vjp(has_aux=True) of {name_of(fn)!r}, which returns a {type(out).__name__}",
                                          expected="(result, aux)", received=type(out).__name__)
                out, self.aux = out
            leaves, self.out_tree = optree.tree_flatten(out)
            self.results = len(leaves)
            extra, self.aux_tree = optree.tree_flatten(self.aux)
            self.numeric = [isinstance(x, (Tensor, np.ndarray, np.generic)) for x in extra]
            self.extra = extra
            return [lift(x) for x in leaves] + [lift(x) for x, n in zip(extra, self.numeric, strict=True) if n]

        self.pulled = Pulled(name_of(fn), call, [t for t, k in zip(self.tensors, self.inexact, strict=True) if k])
        self.types = [t.type for t in self.pulled.outs[:self.results]]

    def value(self, outs: Sequence[Tensor]) -> Any:
        return optree.tree_unflatten(self.out_tree, list(outs[:self.results]))

    def extras(self, outs: Sequence[Tensor]) -> Any:
        it = iter(outs[self.results:])
        return optree.tree_unflatten(self.aux_tree, [next(it) if n else x for x, n in zip(self.extra, self.numeric, strict=True)])

    def cotangents(self, g: Any, outs: Sequence[Tensor]) -> list[Tensor | None]:
        """Leaves of a cotangent, checked against the result.

        Raises:
            DerivativeError, ShapeError: it does not have the result's form.
        """
        leaves = beside(self.out_tree, g)
        if leaves is None:
            raise DerivativeError("the pullback takes a cotangent of the result's structure", expected=str(self.out_tree),
                                  received=str(optree.tree_structure(g)))
        return [tangent_for("pullback", o, x, i, "cotangent", "result") for i, (x, o) in enumerate(zip(leaves, outs, strict=False))]

    def shaped(self, found: Sequence[Tensor]) -> Any:
        it = iter(found)
        return optree.tree_unflatten(self.tree, [next(it) if k else None for k in self.inexact])

    def back(self, gs: Sequence[Tensor | None]) -> list[Tensor]:
        return self.pulled.back([*gs, *[None] * (len(self.pulled.outs) - self.results)])[0]


def recorded(fn: Callable[..., Any], primals: Sequence[Any], has_aux: bool) -> Any:
    """Value and pullback inside a trace."""
    form = Form(fn, primals, has_aux)
    outs = form.pulled.outs

    def pullback(g: Any) -> Any:
        return form.shaped(form.back(form.cotangents(g, outs)))

    value = form.value(outs)
    return (value, pullback, form.extras(outs)) if has_aux else (value, pullback)


def split(fn: Callable[..., Any], primals: Sequence[Any], has_aux: bool) -> Any:
    """Value and pullback of concrete primals, as two programs."""
    made: list[Any] = []

    def forward(*primals: Any) -> Any:
        form = Form(fn, primals, has_aux)
        outs = form.pulled.outs
        at = [i for i, t in enumerate(form.types) if t.dtype.is_inexact]

        def back(gs: list[Tensor]) -> Any:
            whole: list[Tensor | None] = [None] * form.results
            for i, g in zip(at, gs, strict=True):
                whole[i] = g
            return form.back(whole)

        body, residuals = residual_body("pullback", back, [outs[i] for i in at])
        made[:] = [form, body, at]
        return list(outs), residuals

    forward.__name__ = f"vjp_{name_of(fn)}".replace("<lambda>", "f")
    outs, residuals = TracedFunction(forward, kind="vjp")(*primals)
    form, body, at = made

    def backward(gs: list[Tensor], residuals: list[Tensor]) -> Any:
        return replayed(body, [*gs, *residuals])

    program = TracedFunction(backward, kind="vjp")

    def pullback(g: Any) -> Any:
        gs = form.cotangents(g, outs)
        return form.shaped(program([zeros(outs[i].type) if gs[i] is None else gs[i] for i in at], residuals))

    value = form.value(outs)
    return (value, pullback, form.extras(outs)) if has_aux else (value, pullback)


def residual_body(name: str, call: Callable[[list[Tensor]], Any], inputs: Sequence[Tensor]) -> tuple[Function, list[Tensor]]:
    """A function of ``inputs`` and of the residuals that it reads from the ambient trace; and those residuals."""
    body: Body = record_body(name, call, inputs)
    fn, n = body.graph, len(inputs)
    used = set(free_values_of(fn))
    keep = [i for i, a in enumerate(fn.args[n:]) if a in used]
    fn.body.args = [*fn.args[:n], *[fn.args[n + i] for i in keep]]
    return fn, [body.given[i] for i in keep]


def free_values_of(fn: Function) -> list[Any]:
    """The parameters that a function reads."""
    read = set(fn.returns)
    for op in fn.body.walk():
        read.update(op.operands)
    return [a for a in fn.args if a in read]


def replayed(fn: Function, args: Sequence[Tensor]) -> list[Tensor]:
    """A Graph function recorded into the ambient trace."""
    with as_recorded():
        engine = Replay(fn.functions)
        engine.env.update(zip(fn.args, args, strict=True))
        for op in fn.body.ops[:-1]:
            engine.again(op)
        return [engine.env[v] for v in fn.returns]


def vjp(fn: Callable[..., Any], *primals: Any, has_aux: bool = False) -> Any:
    """``(f(*primals), pullback)``: the pullback takes cotangents of the result's form to a tuple, one for each primal.

    Integers among the primals have None for a cotangent.  With ``has_aux``, ``fn`` returns ``(result, anything)`` and ``vjp`` a third
    value.
    """
    needs_function("vjp", fn)
    return recorded(fn, primals, has_aux) if STATE.trace is not None else split(fn, primals, has_aux)


__all__ = ["Form", "recorded", "replayed", "residual_body", "split", "vjp"]
