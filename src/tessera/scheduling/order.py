"""Less memory at once: launches that end the life of something large come soon, and temporaries settle where results will lie."""

from __future__ import annotations

from collections.abc import Iterator

from ..ir.core import Function, Op, Value
from ..types.dims import DimLike
from .memory import base, pointwise_safe

LARGE = 1 << 20  # bytes of a buffer for whose sake a launch is moved


def launch_sooner(fn: Function) -> None:
    """Move a launch that is the last to read a large temporary, and makes little, to right behind what it waits for.

    A value that only the result shows (the loss of a training step) would else be computed last, and keep what it is made of
    alive until then.
    """
    ops = fn.body.ops
    last: dict[Value, Op] = {}
    for op in ops:
        for v in _operands(op):
            last[base(v)] = op
    for op in [o for o in ops if o.name == "kernel"]:
        ends = [b for b in {base(v) for v in op.operands} if last[b] is op and b.op is not None and b.op.name == "alloc"]
        if sum(_bytes(b) for b in ends) < LARGE + sum(_bytes(op.operands[i]) for i in op.attrs["outs"]) \
                or any(o.name == "check" for o in op.walk()):
            continue
        at = ops.index(op)
        to = at
        while to > 0 and not _before(ops[to - 1], op):
            to -= 1
        ops.insert(to, ops.pop(at))


def settle_in_results(fn: Function) -> None:
    """A temporary that dies where a result is made of it, element by element, lives in the result's memory from the beginning."""
    results = set(fn.args[fn.attrs["inputs"]:])
    users: dict[Value, list[Op]] = {}
    for op in fn.body.ops:
        for v in _operands(op):
            found = users.setdefault(base(v), [])
            if not found or found[-1] is not op:
                found.append(op)
    for op in fn.body.ops:
        if op.name not in ("kernel", "template"):
            continue
        for j in op.attrs["outs"]:
            into = base(op.operands[j])
            if into not in results or users[into][0] is not op or sum(base(v) is into for v in op.operands) != 1:
                continue
            for i, v in enumerate(op.operands):
                b = base(v)
                if b.op is not None and b.op.name == "alloc" and b.type == into.type and users[b][-1] is op \
                        and i not in op.attrs["outs"] and sum(base(x) is b for x in op.operands) == 1 \
                        and op.operands[j].type.size == into.type.size == v.type.size and pointwise_safe(op, i, j):
                    _replace(fn, b, into)
                    users[into] = users.pop(b) + users[into][1:]
                    break


def _replace(fn: Function, old: Value, new: Value) -> None:
    for op in fn.body.walk():
        op.operands = [new if v is old else v for v in op.operands]
    fn.body.ops = [op for op in fn.body.ops if old not in op.results]


def _operands(op: Op) -> Iterator[Value]:
    """What a top-level op, with all that it nests, reads and writes (views only pass on)."""
    for o in op.walk():
        if o.name != "view":
            yield from o.operands


def _before(first: Op, op: Op) -> bool:
    """True when ``op`` must stay behind ``first``: it is defined there, or they touch memory that one of them writes."""
    if any(r in op.operands for r in first.results) or first.name == "return":
        return True
    if first.name in ("view", "alloc", "constant"):
        return False
    writes = {base(op.operands[i]) for i in op.attrs["outs"]}
    reads = {base(v) for v in op.operands}
    theirs = {base(v) for v in _operands(first)}
    made = theirs if first.name not in ("kernel", "template", "call") else {base(first.operands[i]) for i in first.attrs["outs"]}
    return bool(writes & theirs or reads & made)


def _bytes(v: Value) -> int:
    size: DimLike = v.type.nbytes
    return size if isinstance(size, int) else 0


__all__ = ["launch_sooner", "settle_in_results"]
