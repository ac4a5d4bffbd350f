"""The value form of ``grad``: the gradient of a tensor by tensors, inside the function that computes it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import optree

from ..errors import DerivativeError
from ..ir.core import Op, Value, free_values
from ..tracing.parameters import owned_parameters
from ..tracing.recorder import STATE, Trace
from ..tracing.tensor import Tensor, Traced, make
from .replay import as_recorded, ones, zeros
from .reverse import Cotangents, Reverse


def gradient_of(loss: Tensor, wrt: Any = None) -> Any:
    """The gradient of ``loss`` by ``wrt``: a tensor, a tree of them, a module (a dict by parameter name), or None: all parameters in
    scope, by name (those that the function owns, then other captured tensors).

    Raises:
        DerivativeError: outside a traced function; of a tensor that is no floating-point scalar; by integers.
    """
    trace = STATE.trace
    if trace is None or type(loss._p) is not Traced:
        raise DerivativeError(
            "grad(loss, x) of a computed value, outside a function that records it", received=str(loss.type),
            sentence="A concrete tensor does not know what it was computed from.",
            hints=["Differentiate the function: ts.grad(f)(x)", "Put this line inside a function under @ts.jit or @ts.function"])
    if loss.type.shape != () or not loss.dtype.is_float:
        raise DerivativeError("grad(loss, x) needs a scalar", expected="one floating-point number", received=str(loss.type),
                              hints=["Reduce it: loss.mean() or loss.sum()", "Use ts.jacrev(f) for all elements"])
    leaves, build = _inputs(trace, wrt)
    values = [trace.lower(t) for t in leaves]
    for t in leaves:
        if not t.dtype.is_inexact:
            raise DerivativeError(f"grad(loss, x) by a tensor of {t.dtype}", expected="floating-point numbers", received=str(t.type),
                                  hints=["Convert it before it is used: x.to(ts.f32)"])
    with as_recorded():
        found = _pull(trace, trace.lower(loss), values)
        grads = [zeros(t.type) if g is None else g for t, g in zip(leaves, found, strict=True)]
    return build(grads)


def _inputs(trace: Trace, wrt: Any) -> tuple[list[Tensor], Any]:
    """The tensors, and what puts their gradients into the form of ``wrt``."""
    if wrt is None:
        named = _in_scope(trace)
        if not named:
            raise DerivativeError("grad(loss) finds no parameters in scope", hints=["Name the tensors: ts.grad(loss, x)"])
        return list(named.values()), lambda gs: dict(zip(named, gs, strict=True))
    if callable(getattr(wrt, "named_parameters", None)) and not isinstance(wrt, Tensor):
        held = dict(wrt.named_parameters())
        held = {n: t for n, t in held.items() if t.dtype.is_inexact}
        return list(held.values()), lambda gs: dict(zip(held, gs, strict=True))
    leaves, tree = optree.tree_flatten(wrt)
    for x in leaves:
        if not isinstance(x, Tensor):
            raise DerivativeError(f"grad(loss, x) by a {type(x).__name__}", expected="tensors", received=repr(x)[:80])
    return list(leaves), lambda gs: optree.tree_unflatten(tree, gs)


def _in_scope(trace: Trace) -> dict[str, Tensor]:
    named = {n: t for n, t in owned_parameters().items() if t.dtype.is_inexact}
    taken = {id(t) for t in named.values()}
    others = [t for t in trace.captured if isinstance(t, Tensor) and id(t) not in taken and t.dtype.is_inexact]
    named.update({f"captured{i}": t for i, t in enumerate(others)})
    return named


def _visible(trace: Trace) -> list[Op]:
    """The ops recorded so far that may be used here, in order."""
    here = trace.builder.block
    chain = [trace.function.body] if here is trace.function.body else [trace.function.body, here]
    return [op for block in chain for op in block.ops]


def _pull(trace: Trace, loss: Value, values: Sequence[Value]) -> list[Tensor | None]:
    ops = _visible(trace)
    needed, use = {loss}, []
    for op in reversed(ops):
        if any(r in needed for r in op.results):
            use.append(op)
            needed.update(op.operands)
            needed.update(free_values(op.blocks))
    engine = Reverse(trace.function.functions)
    for v in needed:
        engine.env[v] = make(Traced(trace, v))
    engine.active.update(values)
    stop = set(values)
    for op in reversed(use):
        if any(r in stop for r in op.results):
            continue
        if any(v in engine.active for v in [*op.operands, *free_values(op.blocks)]):
            engine.step(op)
    cts = Cotangents()
    cts.add(loss, ones(loss.type))
    engine.backward(cts)
    return [cts.get(v) for v in values]


__all__ = ["gradient_of"]
