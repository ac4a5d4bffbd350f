"""Control flow: uniform over the block, since its conditions are scalars."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ...ir.core import Op

if TYPE_CHECKING:
    from .emit import Emitter, Handler


def _for(e: Emitter, op: Op) -> None:
    w, body = e.w, op.blocks[0]
    lo, hi, step = (e.scalar(v) for v in op.operands[:3])
    first = e.flat([e.values[v] for v in op.operands[3:]])
    e.order.before_loop(op)
    before_order = e.order.snapshot()
    e.order.enter_loop(op.blocks, op)
    before, loop, done = w.label, w.new_label("loop"), w.new_label("done")
    w.branch_if(w.let(f"icmp slt i64 {lo}, {hi}"), loop, done)
    w.start(loop)
    at, index = e.reserve(), w.fresh()
    carried, phis = e.phis(body.args[1:])
    e.values[body.args[0]] = index
    e.loops[body.args[0]] = op
    e.values.update(zip(body.args[1:], carried, strict=True))
    after = e.flat(e.block(body))
    following = w.let(f"add nsw i64 {index}, {step}")
    last = w.label
    w.branch_if(w.let(f"icmp slt i64 {following}, {hi}"), loop, done)
    e.write_phis(at, [(index, "i64"), *phis], [([lo, *first], before), ([following, *after], last)])
    w.start(done)
    e.order.merge(before_order)
    at = e.reserve()
    results, out = e.phis(op.results)
    e.write_phis(at, out, [(first, before), (after, last)])
    e.values.update(zip(op.results, results, strict=True))


def _while(e: Emitter, op: Op) -> None:
    w = e.w
    test, body = op.blocks
    first = e.flat([e.values[v] for v in op.operands])
    e.order.enter_loop(op.blocks)
    before, head, loop, done = w.label, w.new_label("while"), w.new_label("body"), w.new_label("done")
    w.branch(head)
    w.start(head)
    at = e.reserve()
    carried, phis = e.phis(test.args)
    e.values.update(zip(test.args, carried, strict=True))
    go, *passed = e.block(test)
    tested = e.order.snapshot()
    w.branch_if(go, loop, done)
    w.start(loop)
    e.values.update(zip(body.args, passed, strict=True))
    after = e.flat(e.block(body))
    w.branch(head)
    e.write_phis(at, phis, [(first, before), (after, w.label)])
    w.start(done)
    e.order.pending.clear()
    e.order.merge(tested)
    e.values.update(zip(op.results, passed, strict=True))


def _if(e: Emitter, op: Op) -> None:
    w, condition = e.w, e.scalar(op.operands[0])
    yes, no, done = w.new_label("then"), w.new_label("else"), w.new_label("done")
    w.branch_if(condition, yes, no)
    start = e.order.snapshot()
    incoming, ends = [], []
    for label, block in zip((yes, no), op.blocks, strict=True):
        w.start(label)
        e.order.pending.clear()
        e.order.merge(start)
        names = e.flat(e.block(block))
        ends.append(e.order.snapshot())
        incoming.append((names, w.label))
        w.branch(done)
    w.start(done)
    e.order.merge(ends[0])
    at = e.reserve()
    results, phis = e.phis(op.results)
    e.write_phis(at, phis, incoming)
    e.values.update(zip(op.results, results, strict=True))


HANDLERS: dict[str, Handler] = {"for": _for, "while": _while, "if": _if}
