"""Replaying: a Graph function recorded anew, op by op, into the ambient trace.

Every transformation of functions works so: the user's function is recorded (:func:`record_body`), its formulas are raised to
composites, and a subclass of :class:`Replay` walks the result, recording for each op whatever its rule makes of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import optree

from ..errors import TracingError
from ..ir.core import Block, Function, Loc, Op, TensorType, Value
from ..tracing.program import flatten_results
from ..tracing.recorder import STATE, Hidden, Trace, bind, tracing
from ..tracing.state import refuse_state
from ..tracing.tensor import Tensor, Traced, make
from .raising import raise_composites


def ambient() -> Trace:
    """The trace that is being recorded.

    Raises:
        TracingError: there is none.
    """
    trace = STATE.trace
    if trace is None:
        raise TracingError("a transformation works inside a traced function", hints=["Call it inside @ts.jit or @ts.function"])
    return trace


# -- recording a Python function -----------------------------------------------------------------------------------------
class Body:
    """A Python function as a Graph function of its arguments' tensors and of what it captured.

    Attributes:
        graph: the Graph function, with composites raised.
        given: what stands behind the trailing parameters, as tensors of the ambient trace.
        tree, statics: the form of the result, see :func:`tessera.tracing.program.flatten_results`.
    """

    def __init__(self, graph: Function, given: list[Tensor], sources: list[Any], tree: Any, statics: list[Any]):
        self.graph, self.given, self.sources = graph, given, sources
        self.tree, self.statics = tree, statics

    def result(self, leaves: Sequence[Any]) -> Any:
        """The function's result, or something of its form, from one leaf for each tensor."""
        if self.tree is None:
            return leaves[0]
        it = iter(leaves)
        return optree.tree_unflatten(self.tree, [next(it) if s is None else s[0] for s in self.statics])


def record_body(name: str, call: Callable[[list[Tensor]], Any], inputs: Sequence[Tensor], *, raised: bool = True) -> Body:
    """Record ``call`` on parameters like ``inputs`` in a trace of its own, inside the ambient one."""
    outer = ambient()
    inner = Trace(name.replace("<lambda>", "f"), outer)
    inner.sites, inner.iterations, inner.transformed = outer.sites, outer.iterations, True
    params = [inner.parameter(t.type, None, _weak(t)) for t in inputs]
    for p, t in zip(params, inputs, strict=True):
        if type(t._p) is Traced and t._p.value in outer.policies:
            inner.policies[p._p.value] = outer.policies[t._p.value]
    unchecked = STATE.unchecked
    with tracing(inner):
        STATE.unchecked = unchecked
        leaves, tree, statics = flatten_results(call(params))
        refuse_state(inner)
        graph = inner.finish(leaves)
    outer.sites = inner.sites
    outer.effects |= inner.effects
    outer.constraints += [c for c in inner.constraints if c not in outer.constraints]
    outer._keep += inner._keep
    given = [make(Traced(outer, outer.capture(c))) if isinstance(c, Hidden) else c for c in inner.captured]
    return Body(raise_composites(graph) if raised else graph, given, list(inner.captured), tree, statics)


def _weak(t: Tensor) -> type | None:
    return t._p.weak if type(t._p) is Traced else None


# -- replaying -----------------------------------------------------------------------------------------------------------
@contextmanager
def as_recorded() -> Iterator[Trace]:
    """Ops are recorded as rules write them: no ambient policy is applied a second time, no check is dropped."""
    trace, saved = ambient(), (STATE.policy, STATE.unchecked)
    place, policies = trace.place, trace.policies
    STATE.policy, STATE.unchecked, trace.policies = None, False, {}
    try:
        yield trace
    finally:
        STATE.policy, STATE.unchecked = saved
        trace.place, trace.policies = place, policies


class Replay:
    """One Graph function (or block) being recorded anew.

    Attributes:
        env: old values and their tensors.
        functions: what calls name.
        trace: the trace that is being recorded now; a pullback may run inside another one than the forward pass.
    """

    def __init__(self, functions: Mapping[str, Function], env: dict[Value, Tensor] | None = None):
        self.functions = functions
        self.env: dict[Value, Tensor] = {} if env is None else env

    @property
    def trace(self) -> Trace:
        return ambient()

    def again(self, op: Op) -> list[Tensor]:
        """``op`` as it is, on the new operands."""
        trace, env = self.trace, self.env
        blocks = [self.block_again(b) for b in op.blocks]
        attrs = self.adopted(op) if "callee" in op.attrs else op.attrs
        new = Op(op.name, [trace.lower(env[v]) for v in op.operands], [r.type for r in op.results], attrs, blocks, op.loc)
        trace.builder.block.ops.append(new)
        outs = [make(Traced(trace, r)) for r in new.results]
        env.update(zip(op.results, outs, strict=True))
        return outs

    def block_again(self, block: Block) -> Block:
        new, args = self.trace.block([a.type for a in block.args])
        inner = Replay(self.functions, dict(self.env))
        inner.env.update(zip(block.args, args, strict=True))
        with self.trace.builder.at(new):
            for op in block.ops[:-1]:
                inner.again(op)
        self.trace.terminate(new, [inner.env[v] for v in block.terminator.operands])
        return new

    def adopted(self, op: Op) -> dict[str, Any]:
        """The attributes of a call, after its function was handed over to the ambient trace (under a free name)."""
        name = label = op.attrs["callee"]
        fn = self.functions.get(name)
        if fn is None:
            return op.attrs
        if fn.level == "graph" and not fn.functions and len(self.functions) > 1:
            called = {o.attrs["callee"] for o in fn.walk() if "callee" in o.attrs}
            fn = Function(fn.name, fn.level, fn.body, fn.attrs, {n: self.functions[n] for n in called if n in self.functions})
        have, k = self.trace.function.functions, 0
        while label in have and have[label].body is not fn.body:
            k += 1
            label = f"{name}{k}"
        have[label] = fn
        return {**op.attrs, "callee": label}

    @contextmanager
    def at(self, loc: Loc | None) -> Iterator[None]:
        """Ops recorded inside come from ``loc``."""
        trace = ambient()
        saved, trace.place = trace.place, loc or trace.place
        try:
            yield
        finally:
            trace.place = saved


def zeros(t: TensorType) -> Tensor:
    """Zeros of a type."""
    out: Tensor = bind("full", shape=t.shape, value=0, dtype=t.dtype)
    return out


def ones(t: TensorType) -> Tensor:
    """Ones of a type."""
    out: Tensor = bind("full", shape=t.shape, value=1, dtype=t.dtype)
    return out


def plus(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum, where None is a zero."""
    if a is None or b is None:
        return b if a is None else a
    out: Tensor = bind("add", a, b)
    return out


def scaled(t: Tensor, by: Any) -> Tensor:
    """``t`` times a partial derivative: a tensor or a number."""
    if isinstance(by, Tensor):
        out: Tensor = bind("mul", t, by)
        return out
    if by == 1:
        return t
    out = bind("neg", t) if by == -1 else t * by
    return out


def as_list(made: Any) -> list[Any]:
    """What ``bind`` or a definition gives, as a list."""
    return list(made) if isinstance(made, tuple | list) else [made]
