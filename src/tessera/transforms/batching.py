"""The batching engine: a Graph function of one example, recorded anew over a batch of them.

An analysis finds which values differ between examples; only those carry the batch, as axis 0, so what all examples share is
computed once.  Ops follow the rule in their stanza; without one, a pointwise op broadcasts, a composite is written out, and any
other op runs example by example in a ``scan``.

Control flow: a predicate that all examples share stays a branch; one of their own runs both branches and selects.  A loop whose
condition differs runs until the last example is done, and keeps the others as they are.  Where an example does not take part,
run-time checks see harmless operands.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from ..errors import UnsupportedError
from ..ir.core import Block, Function, Op, TensorType, Value
from ..ops import batch_rules as br
from ..ops.random import fold_in
from ..ops.table import OPS, Applied
from ..tracing.recorder import STATE, Trace, bind
from ..tracing.tensor import Tensor
from ..types.dims import DimLike
from .batch_kernel import batch_kernel
from .expand import definition
from .regions import add_call, region_of
from .replay import record_body

Flags = tuple[bool, ...]
Outcome = tuple[list[Any], list[bool]]


# -- which values differ between examples ------------------------------------------------------------------------------------
class Flow:
    """What a batch does to the values of one function.

    Attributes:
        mapped: values that differ between examples.
        drawn: values that come from the hidden stream of random keys: bits drawn with them differ, too.
    """

    def __init__(self, fn: Function, mapped: Sequence[bool], drawn: Sequence[bool], axis: str | None):
        self.functions, self.axis = fn.functions, axis
        self.mapped = {a for a, m in zip(fn.args, mapped, strict=True) if m}
        self.drawn = {a for a, d in zip(fn.args, drawn, strict=True) if d}
        self.block(fn.body)

    def block(self, block: Block) -> None:
        for op in block.ops:
            rule = _FLOWS.get(op.name)
            if rule is not None:
                rule(self, op)
            else:
                self.primitive(op)

    def meet(self, targets: Sequence[Value], sources: Sequence[Value]) -> None:
        """Each target is at least what its source is."""
        for t, s in zip(targets, sources, strict=True):
            if s in self.mapped:
                self.mapped.add(t)
            if s in self.drawn:
                self.drawn.add(t)

    def primitive(self, op: Op) -> None:
        mapped = any(v in self.mapped for v in op.operands)
        drawn = any(v in self.drawn for v in op.operands)
        if op.name == "random_bits":
            mapped = mapped or drawn
        elif "within" in _facts(op) and op.attrs.get("axis") == self.axis:
            mapped = not op.operands  # a member's own number differs; what all members were told does not
        if mapped:
            self.mapped.update(op.results)
        if drawn:
            self.drawn.update(op.results)

    def cond(self, op: Op) -> None:
        for b in op.blocks:
            self.meet(b.args, op.operands[1:])
            self.block(b)
            self.meet(op.results, b.terminator.operands)
        if op.operands[0] in self.mapped:
            self.mapped.update(op.results)

    def loop(self, op: Op) -> None:
        test, step = op.blocks
        self.meet(step.args, op.operands)
        while True:
            before = len(self.mapped), len(self.drawn)
            self.meet(test.args, step.args)
            self.block(test)
            if test.terminator.operands[0] in self.mapped:
                self.mapped.update(step.args)
            self.block(step)
            self.meet(step.args, step.terminator.operands)
            if before == (len(self.mapped), len(self.drawn)):
                break
        self.meet(op.results, step.args)

    def scan(self, op: Op) -> None:
        (block,), n = op.blocks, op.attrs["carry"]
        self.meet(block.args, op.operands)
        while True:
            before = len(self.mapped), len(self.drawn)
            self.block(block)
            self.meet(block.args[:n], block.terminator.operands[:n])
            if before == (len(self.mapped), len(self.drawn)):
                break
        self.meet(op.results, [*block.args[:n], *block.terminator.operands[n:]])

    def call(self, op: Op) -> None:
        inner = Flow(_callee(self.functions, op), [v in self.mapped for v in op.operands], [v in self.drawn for v in op.operands],
                     self.axis)
        returned = _callee(self.functions, op).returns
        self.mapped.update(r for r, v in zip(op.results, returned, strict=True) if v in inner.mapped)
        self.drawn.update(r for r, v in zip(op.results, returned, strict=True) if v in inner.drawn)


_FLOWS: dict[str, Callable[[Flow, Op], None]] = {"cond": Flow.cond, "while": Flow.loop, "scan": Flow.scan, "call": Flow.call}


def _facts(op: Op) -> Any:
    rule = OPS.get(op.name)
    return rule.facts if rule is not None else {}


def _callee(functions: dict[str, Function], op: Op) -> Function:
    fn = functions[op.attrs["callee"]]
    return fn if fn.functions else Function(fn.name, fn.level, fn.body, fn.attrs, functions)


# -- recording -----------------------------------------------------------------------------------------------------------
class Batch:
    """One function being recorded over a batch, into the ambient trace."""

    def __init__(self, trace: Trace, fn: Function, mapped: Flags, drawn: Flags, size: DimLike, axis: str | None, mask: Any = None):
        self.trace, self.fn, self.size, self.axis = trace, fn, size, axis
        self.flow = Flow(fn, mapped, drawn, axis)
        self.env: dict[Value, Any] = {}
        self.mask = mask  # bool [size]: the examples that take part here; None: all

    def run(self, args: Sequence[Any]) -> Outcome:
        self.env.update(zip(self.fn.args, args, strict=True))
        self.ops(self.fn.body)
        returned = self.fn.returns
        return [self.env[v] for v in returned], [v in self.flow.mapped for v in returned]

    def ops(self, block: Block) -> None:
        builder = self.trace.builder
        for op in block.ops[:-1]:
            first = len(builder.block.ops)
            xs = [self.env[v] for v in op.operands]
            flags = tuple([v in self.flow.mapped for v in op.operands])
            structure = _STRUCTURES.get(op.name)
            outs = structure(self, op, xs, flags) if structure is not None else self.primitive(op, xs, flags)
            for made in builder.block.ops[first:]:
                made.loc = op.loc
            for r, t in zip(op.results, outs, strict=True):
                self.env[r] = t

    def block(self, block: Block, args: Sequence[Any], wanted: Sequence[Value]) -> list[Any]:
        """A nested block in place: what it yields, with the batch where the value in ``wanted`` has it."""
        self.env.update(zip(block.args, args, strict=True))
        self.ops(block)
        return self.carrying(block.terminator.operands, wanted)

    def carrying(self, values: Sequence[Value], wanted: Sequence[Value]) -> list[Any]:
        """The tensors of ``values``, stretched where only the value in ``wanted`` has the batch."""
        return [br.stretched(self.env[v], self.size) if w in self.flow.mapped and v not in self.flow.mapped else self.env[v]
                for v, w in zip(values, wanted, strict=True)]

    @contextmanager
    def only(self, lanes: Any) -> Iterator[None]:
        """Inside the block only the examples in ``lanes`` take part."""
        saved = self.mask
        self.mask = lanes if saved is None else bind("logical_and", saved, lanes)
        try:
            yield
        finally:
            self.mask = saved

    def lanes(self, p: Any, like: Any) -> Any:
        """A bool of each example, over all its elements."""
        shape = like.type.shape
        return bind("broadcast_to", br.reshaped(p, (self.size, *(1,) * (len(shape) - 1))), shape=shape)

    def choose(self, p: Any, yes: Sequence[Any], no: Sequence[Any]) -> list[Any]:
        return [bind("select", self.lanes(p, a), a, b) for a, b in zip(yes, no, strict=True)]

    # -- ops -----------------------------------------------------------------------------------------------------------------
    def primitive(self, op: Op, xs: list[Any], flags: Flags) -> list[Any]:
        rule = OPS.get(op.name)
        if rule is None:
            raise UnsupportedError(f"vmap does not know the op {op.name!r}", loc=op.loc)
        drawn = op.name == "random_bits" and op.operands[0] in self.flow.drawn
        if drawn and (flags[0] or len(xs[0].type.shape) > 1):
            xs, flags = [self.own_keys(xs[0], flags[0])], (True,)
        if self.mask is not None and "checked" in rule.facts.get("attrs", ()) and op.attrs.get("checked", True):
            xs = self.harmless(op.name, xs, flags)
        x = Applied(op.name, op.attrs, xs)
        if "within" in rule.facts and op.attrs["axis"] == self.axis:
            return rule.facts["within"](x, flags, self.size)[0]  # type: ignore[no-any-return]
        if not any(flags) and not drawn:
            return br.again(x, *xs)
        if rule.pointwise:
            return br.leading(x, flags, self.size)
        outs = rule.batch(x, flags, self.size) if rule.batch is not None else None
        if outs is not None:
            return outs
        if rule.expand is not None:
            return self.inlined(definition(op.name, tuple([v.type for v in op.operands]), op.attrs), op, xs, flags)
        return self.one_by_one(op, xs, flags)

    def own_keys(self, key: Any, mapped: bool) -> Any:
        """The stream's key for each example."""
        key = key if mapped else br.stretched(key, self.size)
        return fold_in(key, br.example_numbers(key.type.shape[:-1]))

    def harmless(self, name: str, xs: list[Any], flags: Flags) -> list[Any]:
        """Operands that checks look at (indices, divisors), replaced where an example does not take part."""
        safe = 1 if name in ("floor_div", "mod") else 0
        out = xs[:1]
        for t, m in zip(xs[1:], flags[1:], strict=True):
            if t.dtype.is_integer or name in ("floor_div", "mod"):
                there = self.lanes(self.mask, t) if m else br.reshaped(bind("reduce_any", self.mask, axes=(0,)), (1,) * len(t.type.shape))
                there = bind("broadcast_to", there, shape=t.type.shape)
                t = bind("select", there, t, bind("full", shape=t.type.shape, value=safe, dtype=t.dtype))
            out.append(t)
        return out

    def inlined(self, fn: Function, op: Op, xs: list[Any], flags: Flags) -> list[Any]:
        drawn = tuple([v in self.flow.drawn for v in op.operands])
        outs, mapped = Batch(self.trace, fn, flags, drawn, self.size, self.axis, self.mask).run(xs)
        return [br.stretched(t, self.size) if r in self.flow.mapped and not m else t
                for r, t, m in zip(op.results, outs, mapped, strict=True)]

    def one_by_one(self, op: Op, xs: list[Any], flags: Flags) -> list[Any]:
        """The op on one example after another."""
        streams = [t for t, m in zip(xs, flags, strict=True) if m]
        block, slices = self.trace.block([t.type.with_shape(t.type.shape[1:]) for t in streams])
        with self.trace.builder.at(block):
            inner = iter(slices)
            operands = [next(inner) if m else t for t, m in zip(xs, flags, strict=True)]
            if op.name in OPS:
                outs = br.as_list(bind(op.name, *operands, **op.attrs))
            else:
                outs = self.launch(self.fn.functions[op.attrs["callee"]], op, operands, [r.type for r in op.results])
        self.trace.terminate(block, outs)
        types = [t.type.with_shape((self.size, *t.type.shape)) for t in outs]
        return list(self.trace.structured("scan", streams, types, {"carry": 0, "length": self.size, "reverse": False}, [block]))

    # -- structure -------------------------------------------------------------------------------------------------------------
    def call(self, op: Op, xs: list[Any], flags: Flags) -> list[Any]:
        fn, region = _callee(self.fn.functions, op), region_of(op)
        if region is None or not any(flags):
            return self.inlined(fn, op, xs, flags)
        made = region.batched(flags, self.size, [r in self.flow.mapped for r in op.results])
        if made is None:
            return self.inlined(fn, op, xs, flags)
        body = record_body(op.attrs["callee"], lambda args: self.inlined(fn, op, args, flags), xs, raised=False)
        return add_call(op.attrs["callee"], made, body.graph, [*xs, *body.given])

    def cond(self, op: Op, xs: list[Any], flags: Flags) -> list[Any]:
        p, *operands = xs
        if flags[0]:
            with self.only(p):
                yes = self.block(op.blocks[0], operands, op.results)
            with self.only(bind("logical_not", p)):
                no = self.block(op.blocks[1], operands, op.results)
            return self.choose(p, yes, no)
        blocks = []
        for source in op.blocks:
            block, args = self.trace.block([t.type for t in operands])
            with self.trace.builder.at(block):
                outs = self.block(source, args, op.results)
            self.trace.terminate(block, outs)
            blocks.append(block)
        return self.trace.structured("cond", xs, [t.type for t in outs], {}, blocks)

    def loop(self, op: Op, xs: list[Any], flags: Flags) -> list[Any]:
        test, step = op.blocks
        start = self.carrying(op.operands, step.args)
        if test.terminator.operands[0] in self.flow.mapped:
            return self.masked_loop(test, step, start)
        types = [t.type for t in start]
        new_test, test_args = self.trace.block(types)
        with self.trace.builder.at(new_test):
            p = self.block(test, test_args, test.terminator.operands)[0]
            if self.mask is not None:
                p = bind("logical_and", p, bind("reduce_any", self.mask, axes=(0,)))
        self.trace.terminate(new_test, [p])
        new_step, step_args = self.trace.block(types)
        with self.trace.builder.at(new_step):
            outs = self.block(step, step_args, step.args)
        self.trace.terminate(new_step, outs)
        return self.trace.structured("while", start, types, {}, [new_test, new_step])

    def masked_loop(self, test: Block, step: Block, start: list[Any]) -> list[Any]:
        """Examples leave the loop one by one; whether each goes on is a carry of its own."""
        def goes_on(carry: Sequence[Any]) -> Any:
            p = self.block(test, carry, test.terminator.operands)[0]
            return p if self.mask is None else bind("logical_and", self.mask, p)

        first = [*start, goes_on(start)]
        types = [t.type for t in first]
        new_test, test_args = self.trace.block(types)
        with self.trace.builder.at(new_test):
            p = bind("reduce_any", test_args[-1], axes=(0,))
        self.trace.terminate(new_test, [p])
        new_step, (*carry, going) = self.trace.block(types)
        with self.trace.builder.at(new_step), self.only(going):
            moved = self.choose(going, self.block(step, carry, step.args), carry)
            outs = [*moved, goes_on(moved)]
        self.trace.terminate(new_step, outs)
        return self.trace.structured("while", first, types, {}, [new_test, new_step])[:-1]

    def scan(self, op: Op, xs: list[Any], flags: Flags) -> list[Any]:
        """The scanned axis comes first, the batch second."""
        (source,), n = op.blocks, op.attrs["carry"]
        start = self.carrying(op.operands[:n], source.args[:n])
        streams = [br.moved(t, 1, 0) if m else t for t, m in zip(xs[n:], flags[n:], strict=True)]
        slices = [TensorType(t.dtype, t.type.shape[1:]) for t in streams]
        block, args = self.trace.block([*[t.type for t in start], *slices])
        wanted = [*source.args[:n], *source.terminator.operands[n:]]
        with self.trace.builder.at(block):
            outs = self.block(source, args, wanted)
        self.trace.terminate(block, outs)
        types = [*[t.type for t in start], *[t.type.with_shape((op.attrs["length"], *t.type.shape)) for t in outs[n:]]]
        made = self.trace.structured("scan", [*start, *streams], types, dict(op.attrs), [block])
        return [*made[:n], *[br.moved(t, 1, 0) if w in self.flow.mapped else t for t, w in zip(made[n:], wanted[n:], strict=True)]]

    def kernel_call(self, op: Op, xs: list[Any], flags: Flags) -> list[Any]:
        fn = self.fn.functions[op.attrs["callee"]]
        if not any(flags):
            return self.launch(fn, op, xs, [r.type for r in op.results])
        # What a kernel writes is each example's own.
        own = [m or i in op.attrs["writes"] for i, m in enumerate(flags)]
        batched = batch_kernel(fn, own, self.size)
        if batched is None:
            return self.one_by_one(op, xs, flags)
        xs = [br.stretched(t, self.size) if o and not m else t for t, m, o in zip(xs, flags, own, strict=True)]
        return self.launch(batched, op, xs, [xs[i].type for i in op.attrs["writes"]])

    def launch(self, fn: Function, op: Op, xs: list[Any], types: Sequence[TensorType]) -> list[Any]:
        return self.trace.structured("kernel_call", xs, types, {**op.attrs, "callee": self.adopt(fn.name, fn)}, ())

    def adopt(self, name: str, fn: Function) -> str:
        """Keep a tile function beside the program; another one may have its name."""
        functions = self.trace.function.functions
        free, k = name, 0
        while functions.get(free, fn) is not fn and str(functions[free]) != str(fn):
            k += 1
            free = f"{name}_{k}"
        functions.setdefault(free, fn)
        return free


_STRUCTURES = {"call": Batch.call, "cond": Batch.cond, "while": Batch.loop, "scan": Batch.scan, "kernel_call": Batch.kernel_call}


@contextmanager
def replaying() -> Iterator[Trace]:
    """Ops are recorded as they were: no ambient policy is applied a second time, no check is dropped."""
    trace, saved = STATE.trace, (STATE.policy, STATE.unchecked)
    assert trace is not None
    STATE.policy, STATE.unchecked = None, False
    try:
        yield trace
    finally:
        STATE.policy, STATE.unchecked = saved


def batch_function(fn: Function, args: Sequence[Tensor], mapped: Sequence[bool], drawn: Sequence[bool], size: DimLike,
                   axis: str | None = None) -> Outcome:
    """Record ``fn``, a function of one example, over a batch into the ambient trace.

    Args:
        args: its arguments; the ``mapped`` ones carry the batch as axis 0.
        drawn: which arguments are keys of the hidden random stream.
        axis: the name by which collectives in ``fn`` know the batch.

    Returns:
        The results, and which of them carry the batch (as axis 0).
    """
    with replaying() as trace:
        return Batch(trace, fn, tuple(mapped), tuple(drawn), size, axis).run(args)


__all__ = ["Batch", "Flow", "batch_function", "replaying"]
