"""The value form of ``grad``: the gradient of a tensor by tensors, inside the function that computes it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import optree

from ..errors import DerivativeError
from ..errors.frames import GENERATED, PACKAGE
from ..ir.core import Op, Value, free_values
from ..tracing.function import TracedFunction
from ..tracing.parameters import owned_parameters
from ..tracing.recorder import STATE, Trace
from ..tracing.tensor import Tensor, Traced, make
from .replay import as_recorded, ones, zeros
from .reverse import Cotangents, Reverse


def gradient_of(loss: Tensor, wrt: Any = None) -> Any:
    """The gradient of ``loss`` by ``wrt``: a tensor, a tree of them, a module (a dict by parameter name), or None: all parameters in
    scope, by name (those that the function owns; those of modules that the calling code names, under the modules' own names; other
    captured tensors).

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
    met: dict[int, Tensor] = {}
    inner: Trace | None = trace
    while inner is not None:
        met.update((id(t), t) for t in inner.captured if isinstance(t, Tensor) and id(t) not in taken and t.dtype.is_inexact
                   and type(t._p) is not Traced)
        inner = inner.parent
    modules = _modules()
    held = [(who, dict(module.named_parameters())) for who, module in modules]
    held = [(who, parameters) for who, parameters in held if any(id(t) in met for t in parameters.values())]
    names = [n for _, parameters in held for n in parameters]
    for who, parameters in held:
        unique = all(names.count(n) == 1 and n not in named for n in parameters)
        for n, t in parameters.items():
            if met.pop(id(t), None) is not None:
                named[n if unique else f"{who}.{n}"] = t
    named.update({f"captured{i}": t for i, t in enumerate(met.values())})
    return named


def _modules() -> list[tuple[str, Any]]:
    """(name, module) of the modules that the user's frames name; one that is part of another is left to it."""
    found: dict[int, tuple[str, Any]] = {}
    frame: Any = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        if not code.co_filename.startswith((PACKAGE, GENERATED)) and code.co_name != "<module>":
            used = {n: frame.f_globals[n] for n in code.co_names if n in frame.f_globals}
            for name, value in [*frame.f_locals.items(), *used.items()]:
                if callable(getattr(type(value), "named_parameters", None)) and not isinstance(value, TracedFunction):
                    found.setdefault(id(value), (name, value))
        frame = frame.f_back
    held = [{id(t) for _, t in m.named_parameters()} for _, m in found.values()]
    part = [any(mine < other or (mine == other and j < i) for j, other in enumerate(held)) for i, mine in enumerate(held)]
    return [pair for pair, inside in zip(found.values(), part, strict=True) if not inside]


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
