"""Derivatives of structure: calls, branches and loops.

A trace's size does not depend on how often a loop runs.  In forward mode carries get tangents beside them.  In reverse mode a
branch is computed again from its inputs; a scan stacks what its backward step reads (and nothing else), and runs backwards over
it; a loop with ``max_iterations`` is such a scan, and one without has no reverse mode.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import DerivativeError
from ..ir.core import Block, Builder, Copier, Function, Op, TensorType, Value, free_values
from ..ops.table import OPS
from ..tracing.tensor import Tensor, Traced
from . import forward, reverse
from .forward import Forward
from .regions import region_of
from .replay import Replay, ambient, plus, record_body, zeros
from .reverse import Cotangent, Cotangents, Pull, Reverse, carries, missing


def callee(functions: Mapping[str, Function], op: Op) -> Function:
    """The function that a call names, with the functions that it may call."""
    fn = functions[op.attrs["callee"]]
    return fn if fn.functions else Function(fn.name, fn.level, fn.body, fn.attrs, dict(functions))


# -- which values depend on active ones ------------------------------------------------------------------------------------------
def spread(ops: Sequence[Op], active: set[Value], functions: Mapping[str, Function]) -> None:
    """Add to ``active`` the results of ``ops`` that depend on active values and may have a derivative by them."""
    for op in ops:
        wanted = [v in active for v in op.operands]
        if op.name == "cond":
            for b in op.blocks:
                meet(b.args, op.operands[1:], active)
                spread(b.ops[:-1], active, functions)
                meet(op.results, b.terminator.operands, active)
        elif op.name in ("scan", "while"):
            loop_activity(op, active, functions)
        elif op.name == "call":
            fn = callee(functions, op)
            inner = {a for a, w in zip(fn.args, wanted, strict=True) if w}
            spread(fn.body.ops[:-1], inner, fn.functions)
            active.update(r for r, v in zip(op.results, fn.returns, strict=True) if v in inner)
        elif any(wanted) and (op.name not in OPS or carries(OPS[op.name], op, wanted)):
            active.update(r for r in op.results if r.type.dtype.is_inexact)


def meet(targets: Sequence[Value], sources: Sequence[Value], active: set[Value]) -> None:
    active.update(t for t, s in zip(targets, sources, strict=True) if s in active)


def loop_activity(op: Op, active: set[Value], functions: Mapping[str, Function]) -> list[bool]:
    """Spread through a ``scan`` or ``while`` until nothing changes; returns which carries are active."""
    block = op.blocks[-1]
    n = op.attrs.get("carry", len(op.operands))
    meet(block.args, op.operands, active)
    while True:
        before = len(active)
        spread(block.ops[:-1], active, functions)
        meet(block.args[:n], block.terminator.operands[:n], active)
        if len(active) == before:
            break
    meet(op.results, [*block.args[:n], *block.terminator.operands[n:]], active)
    return [a in active for a in block.args[:n]]


# -- forward mode ----------------------------------------------------------------------------------------------------------------
def _call_forward(f: Forward, op: Op) -> None:
    fn = callee(f.functions, op)
    ts = [f.tangents.get(v) for v in op.operands]
    region = region_of(op)
    if region is not None and all(t is None for t in ts):
        f.again(op)
    elif region is not None and region.has_forward:
        region.forward(f, op, fn, ts)
    else:
        f.inlined(op, fn, ts)


def _cond_forward(f: Forward, op: Op) -> None:
    trace = ambient()
    active = set(f.tangents)
    spread([op], active, f.functions)
    at = [i for i, r in enumerate(op.results) if r in active]
    blocks = []
    for source in op.blocks:
        block, args = trace.block([a.type for a in source.args])
        with trace.builder.at(block):
            inner = Forward(f.functions, dict(f.env), dict(f.tangents))
            inner.env.update(zip(source.args, args, strict=True))
            inner.tangents.update((a, f.tangents[v]) for a, v in zip(source.args, op.operands[1:], strict=True) if v in f.tangents)
            inner.forward(source.ops[:-1])
            outs = [inner.env[v] for v in source.terminator.operands]
            outs += [_or_zero(inner.tangents.get(source.terminator.operands[i]), op.results[i].type) for i in at]
        trace.terminate(block, outs)
        blocks.append(block)
    with f.at(op.loc):
        made = trace.structured("cond", [f.env[v] for v in op.operands], [t.type for t in outs], op.attrs, blocks)
    _arrive(f, op, made, at)


def _or_zero(t: Tensor | None, like: TensorType) -> Tensor:
    return zeros(like) if t is None else t


def _arrive(f: Forward, op: Op, made: Sequence[Tensor], at: Sequence[int]) -> None:
    n = len(op.results)
    f.env.update(zip(op.results, made[:n], strict=True))
    f.tangents.update((op.results[i], t) for i, t in zip(at, made[n:], strict=True))


def _while_forward(f: Forward, op: Op) -> None:
    trace, (test, step) = ambient(), op.blocks
    active = set(f.tangents)
    at = [i for i, a in enumerate(loop_activity(op, active, f.functions)) if a]
    start = [f.env[v] for v in op.operands]
    with f.at(op.loc):
        tangents = [_or_zero(f.tangents.get(op.operands[i]), op.operands[i].type) for i in at]
    n, types = len(start), [t.type for t in [*start, *tangents]]
    new_test, args = trace.block(types)
    with trace.builder.at(new_test):
        inner: Any = Replay(f.functions, dict(f.env))
        inner.env.update(zip(test.args, args[:n], strict=True))
        for o in test.ops[:-1]:
            inner.again(o)
    trace.terminate(new_test, [inner.env[test.terminator.operands[0]]])
    new_step, args = trace.block(types)
    with trace.builder.at(new_step):
        inner = Forward(f.functions, dict(f.env), dict(f.tangents))
        inner.env.update(zip(step.args, args[:n], strict=True))
        inner.tangents.update((step.args[i], t) for i, t in zip(at, args[n:], strict=True))
        inner.forward(step.ops[:-1])
        results = step.terminator.operands
        outs = [inner.env[v] for v in results] + [_or_zero(inner.tangents.get(results[i]), results[i].type) for i in at]
    trace.terminate(new_step, outs)
    with f.at(op.loc):
        _arrive(f, op, trace.structured("while", [*start, *tangents], types, op.attrs, [new_test, new_step]), at)


def _scan_forward(f: Forward, op: Op) -> None:
    trace, (source,), n = ambient(), op.blocks, op.attrs["carry"]
    active = set(f.tangents)
    carried = [i for i, a in enumerate(loop_activity(op, active, f.functions)) if a]
    streamed = [i for i, v in enumerate(op.operands) if i >= n and v in f.tangents]
    stacked = [i for i, v in enumerate(source.terminator.operands) if i >= n and v in active]
    with f.at(op.loc):
        tangents = [_or_zero(f.tangents.get(op.operands[i]), op.operands[i].type) for i in carried]
    operands = [*[f.env[v] for v in op.operands[:n]], *tangents, *[f.env[v] for v in op.operands[n:]],
                *[f.tangents[op.operands[i]] for i in streamed]]
    c, m = len(carried), len(op.operands)
    types = [t.type if i < n + c else t.type.with_shape(t.type.shape[1:]) for i, t in enumerate(operands)]
    block, args = trace.block(types)
    with trace.builder.at(block):
        inner = Forward(f.functions, dict(f.env), dict(f.tangents))
        inner.env.update(zip(source.args, [*args[:n], *args[n + c:c + m]], strict=True))
        inner.tangents.update((source.args[i], t) for i, t in zip(carried, args[n:n + c], strict=True))
        inner.tangents.update((source.args[i], t) for i, t in zip(streamed, args[c + m:], strict=True))
        inner.forward(source.ops[:-1])
        results = source.terminator.operands
        primal = [inner.env[v] for v in results]
        moved = {i: _or_zero(inner.tangents.get(results[i]), results[i].type) for i in [*carried, *stacked]}
        outs = [*primal[:n], *[moved[i] for i in carried], *primal[n:], *[moved[i] for i in stacked]]
    trace.terminate(block, outs)
    length = op.attrs["length"]
    types = [t.type if i < n + c else t.type.with_shape((length, *t.type.shape)) for i, t in enumerate(outs)]
    with f.at(op.loc):
        made = trace.structured("scan", operands, types, {**op.attrs, "carry": n + c}, [block])
    k = len(results)
    _arrive(f, op, [*made[:n], *made[n + c:c + k], *made[n:n + c], *made[c + k:]], [*carried, *stacked])


def _kernel_forward(f: Forward, op: Op) -> None:
    if any(v in f.tangents for v in op.operands):
        raise missing(op)
    f.again(op)


forward.STRUCTURES.update({"call": _call_forward, "cond": _cond_forward, "while": _while_forward, "scan": _scan_forward,
                           "kernel_call": _kernel_forward})


# -- reverse mode ----------------------------------------------------------------------------------------------------------------
def _depends(r: Reverse, op: Op) -> bool:
    return any(v in r.active for v in op.operands) or (bool(op.blocks) and any(v in r.active for v in free_values(op.blocks)))


def _call_reverse(r: Reverse, op: Op) -> Pull | None:
    fn = callee(r.functions, op)
    wanted = [v in r.active for v in op.operands]
    if not any(wanted):
        r.again(op)
        return None
    region = region_of(op)
    return r.inlined(op, fn, wanted) if region is None else region.reverse(r, op, fn, wanted)


def _cond_reverse(r: Reverse, op: Op) -> Pull | None:
    r.again(op)
    if not _depends(r, op):
        return None
    env, active, functions = r.env, set(r.active), r.functions
    outer = [v for v in dict.fromkeys([*op.operands[1:], *free_values(op.blocks)]) if v in active]

    def pull(gs: list[Cotangent], cts: Cotangents) -> Sequence[Cotangent]:
        trace, blocks = ambient(), []
        for source in op.blocks:
            block, _ = trace.block([])
            with trace.builder.at(block):
                inner = Reverse(functions, dict(env), set(active))
                inner.env.update(zip(source.args, [env[v] for v in op.operands[1:]], strict=True))
                inner.active.update(a for a, v in zip(source.args, op.operands[1:], strict=True) if v in active)
                inner.forward(source.ops[:-1])
                own = Cotangents()
                for v, g in zip(source.terminator.operands, gs, strict=True):
                    if v in inner.active:
                        own.add(v, g)
                inner.backward(own)
                for a, v in zip(source.args, op.operands[1:], strict=True):
                    own.add(v, own.pop(a, None))
                outs = [_or_zero(own.get(v), v.type) for v in outer]
            trace.terminate(block, outs)
            blocks.append(block)
        made = trace.structured("cond", [env[op.operands[0]]], [v.type for v in outer], {}, blocks)
        for v, t in zip(outer, made, strict=True):
            cts.add(v, t)
        return [None] * len(op.operands)

    return pull


def _while_reverse(r: Reverse, op: Op) -> Pull | None:
    if not _depends(r, op):
        r.again(op)
        return None
    if "max_iterations" in op.attrs:
        made = bounded(op)
        pull = _scan_reverse(r, made)
        r.env.update(zip(op.results, [r.env[v] for v in made.results], strict=True))
        return pull
    r.again(op)

    def refuse(gs: list[Cotangent], cts: Cotangents) -> Sequence[Cotangent]:
        raise DerivativeError(
            "reverse mode through while_loop(), whose number of iterations is not bounded", loc=op.loc,
            sentence="The backward pass needs every iteration's values, and their number must be known before the program runs.",
            hints=["Bound it: ts.while_loop(cond, body, init, max_iterations=100)", "Use ts.scan or ts.fori_loop with a known length",
                   "Use forward mode: ts.jvp, ts.jacfwd", "Differentiate a fixed point by the implicit function theorem: "
                   "@ts.implicit_diff"])

    return refuse


def bounded(op: Op) -> Op:
    """A ``while`` of at most ``max_iterations`` as a ``scan`` that stands still when it is done."""
    test, step = op.blocks
    types = [v.type for v in op.operands]
    block = Block(types)
    b = Builder(block, op.loc)
    c = Copier(b)
    c.map.update(zip(test.args, block.args, strict=True))
    c.run(test.ops[:-1])
    yes, no = Block(), Block()
    with b.at(yes):
        inner = Copier(b)
        inner.map.update(zip(step.args, block.args, strict=True))
        inner.run(step.ops)
    with b.at(no):
        b.op("yield", block.args)
    moved = b.op("cond", [c[test.terminator.operands[0]]], types, {}, [yes, no])
    b.op("yield", moved.results)
    attrs = {"carry": len(types), "length": op.attrs["max_iterations"], "reverse": False}
    return Op("scan", op.operands, types, attrs, [block], op.loc)


class _Back:
    """The backward step of one scan, recorded with its forward step.

    Attributes:
        body: (cotangents of carries, sums for outer values, cotangents of stacked results, residuals) -> the same without the last
            two, then cotangents of slices.
        carried, outer, stacked, streamed: the active carries, outer values, results and operands.
    """

    def __init__(self, r: Reverse, op: Op, fwd: Block, args: Sequence[Tensor]):
        (source,), n = op.blocks, op.attrs["carry"]
        active = set(r.active)
        self.op, self.n = op, n
        self.carried = [i for i, a in enumerate(loop_activity(op, active, r.functions)) if a]
        self.outer = [v for v in free_values(op.blocks) if v in r.active]
        self.stacked = [i for i, v in enumerate(source.terminator.operands) if i >= n and v in active]
        self.streamed = [i for i, v in enumerate(op.operands) if i >= n and v in r.active]
        inner = Reverse(r.functions, dict(r.env), set(r.active))
        inner.env.update(zip(source.args, args, strict=True))
        inner.active.update(source.args[i] for i in [*self.carried, *self.streamed])
        inner.forward(source.ops[:-1])
        ends = source.terminator.operands
        self.outs = [inner.env[v] for v in ends]
        c, o = len(self.carried), len(self.outer)

        def back(leaves: list[Tensor]) -> list[Tensor]:
            cts = Cotangents()
            for i, g in zip([*self.carried, *self.stacked], [*leaves[:c], *leaves[c + o:]], strict=True):
                if ends[i] in inner.active:
                    cts.add(ends[i], g)
            inner.backward(cts)
            found = [_or_zero(cts.get(source.args[i]), source.args[i].type) for i in self.carried]
            found += [plus(total, cts.get(v)) for v, total in zip(self.outer, leaves[c:c + o], strict=True)]  # type: ignore[misc]
            return found + [_or_zero(cts.get(source.args[i]), source.args[i].type) for i in self.streamed]

        templates = [*[args[i] for i in self.carried], *[r.env[v] for v in self.outer], *[self.outs[i] for i in self.stacked]]
        self.body = record_body("scan_backward", back, templates)
        self._sort(fwd, [*args], len(templates))

    def _sort(self, fwd: Block, args: Sequence[Tensor], inputs: int) -> None:
        """What the backward step reads: slices of the scan's operands, values of the forward step to be stacked, outer values."""
        made = {v for o in fwd.ops for v in o.results} | set(fwd.args)
        own = {a: i for i, a in enumerate(fwd.args)}
        read = {v for o in self.body.graph.walk() for v in o.operands}
        self.slices: list[tuple[Value, int]] = []
        self.residuals: list[tuple[Value, Tensor]] = []
        self.invariant: list[tuple[Value, Tensor]] = []
        self.constant: list[tuple[Value, Value]] = []  # computed in the step from nothing that changes: made again outside the loop
        self.remade = _constant_ops(fwd)
        constant = {v for o in self.remade for v in o.results}
        for a, t in zip(self.body.graph.args[inputs:], self.body.given, strict=True):
            if a not in read:
                continue
            v = t._p.value if type(t._p) is Traced else None
            if v not in made:
                self.invariant.append((a, t))
            elif v in constant:
                self.constant.append((a, v))
            elif own.get(v, -1) >= self.n:
                self.slices.append((a, own[v]))
            else:
                self.residuals.append((a, t))


def _constant_ops(block: Block) -> list[Op]:
    """The ops of a block that compute from nothing but each other."""
    known: set[Value] = set()
    out = []
    for op in block.ops:
        if op.name in OPS and not OPS[op.name].effects and not op.blocks and all(v in known for v in op.operands):
            out.append(op)
            known.update(op.results)
    return out


def _scan_reverse(r: Reverse, op: Op) -> Pull | None:
    if not _depends(r, op):
        r.again(op)
        return None
    trace, n, length = ambient(), op.attrs["carry"], op.attrs["length"]
    (source,) = op.blocks
    fwd, args = trace.block([a.type for a in source.args])
    with trace.builder.at(fwd):
        back = _Back(r, op, fwd, args)
    stacks = [t for _, t in back.residuals]
    trace.terminate(fwd, [*back.outs, *stacks])
    types = [t.type if i < n else t.type.with_shape((length, *t.type.shape)) for i, t in enumerate([*back.outs, *stacks])]
    with r.at(op.loc):
        made = trace.structured("scan", [r.env[v] for v in op.operands], types, op.attrs, [fwd])
    k = len(op.results)
    r.env.update(zip(op.results, made[:k], strict=True))
    operands = [r.env[v] for v in op.operands]
    return lambda gs, cts: _pull_scan(back, operands, made[k:], gs, cts)


def _pull_scan(back: _Back, operands: Sequence[Tensor], residuals: Sequence[Tensor], gs: list[Cotangent],
               cts: Cotangents) -> list[Cotangent]:
    """The reversed scan."""
    op, trace = back.op, ambient()
    length = op.attrs["length"]
    start = [_or_zero(gs[i], op.results[i].type) for i in back.carried] + [zeros(v.type) for v in back.outer]
    streams = [_or_zero(gs[i], op.results[i].type) for i in back.stacked]
    streams += [*residuals, *[operands[i] for _, i in back.slices]]
    block, args = trace.block([*[t.type for t in start], *[t.type.with_shape(t.type.shape[1:]) for t in streams]])
    graph = back.body.graph
    again = Replay({})
    if back.constant:
        for o in back.remade:
            again.again(o)
    inputs = len(start) + len(back.stacked)
    with trace.builder.at(block):
        inner = Replay(graph.functions)
        inner.env.update(zip(graph.args[:inputs], args[:inputs], strict=True))
        inner.env.update(zip([a for a, _ in [*back.residuals, *back.slices]], args[inputs:], strict=True))
        inner.env.update(back.invariant)
        inner.env.update((a, again.env[v]) for a, v in back.constant)
        for o in graph.body.ops[:-1]:
            inner.again(o)
        outs = [inner.env[v] for v in graph.returns]
    trace.terminate(block, outs)
    m = len(start)
    types = [t.type if i < m else t.type.with_shape((length, *t.type.shape)) for i, t in enumerate(outs)]
    attrs = {"carry": m, "length": length, "reverse": not op.attrs["reverse"]}
    made = trace.structured("scan", [*start, *streams], types, attrs, [block])
    found: list[Cotangent] = [None] * len(operands)
    for i, t in zip([*back.carried, *back.streamed], [*made[:len(back.carried)], *made[m:]], strict=True):
        found[i] = t
    for v, t in zip(back.outer, made[len(back.carried):m], strict=True):
        cts.add(v, t)
    return found


def _kernel_reverse(r: Reverse, op: Op) -> Pull | None:
    r.again(op)
    if not any(v in r.active for v in op.operands):
        return None

    def refuse(gs: list[Cotangent], cts: Cotangents) -> Sequence[Cotangent]:
        e = missing(op)
        e.message = f"the kernel {op.attrs.get('callee')!r} has no derivative rule"
        e.hints = ("Give it one: kernel.defvjp(fwd, bwd)", *e.hints[:1])
        raise e

    return refuse


reverse.STRUCTURES.update({"call": _call_reverse, "cond": _cond_reverse, "while": _while_reverse, "scan": _scan_reverse,
                           "kernel_call": _kernel_reverse})

__all__ = ["bounded", "callee", "spread"]
