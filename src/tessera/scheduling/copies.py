"""Copies that need no kernel of their own: what makes a value stores it to both places.

The body of a loop ends with copies: the next carry goes over the present one, a step's result into its row of the stack.  Where
a kernel made the value, it can store it there too, and where nobody reads the first place any more, only there.
"""

from __future__ import annotations

from collections.abc import Collection

from ..ir.core import Block, Op, Value, uses


def fold_copies(block: Block, temporaries: Collection[Value]) -> None:
    """Let kernels store into the targets of copies that follow them in ``block``; ``temporaries`` are used nowhere else."""
    _early(block)
    at = 0
    while at < len(block.ops):
        op = block.ops[at]
        if _is_copy(op) and _fold(block, at):
            del block.ops[at]
        else:
            at += 1
    _drop_unread(block, temporaries)


def _early(block: Block) -> None:
    """Copies of what was there before the step (a carry that is stacked) come first: then the carry may be written where it lies."""
    for op in [o for o in block.ops if _is_copy(o)]:
        source, target = op.operands
        at = block.ops.index(op)
        if any(_touches(o, source, writing=True) or _touches(o, target) for o in block.ops[:at]):
            continue
        block.ops.remove(op)
        block.ops.insert(max((block.ops.index(v.op) + 1 for v in op.operands if v.op in block.ops), default=0), op)


def _is_copy(op: Op) -> bool:
    """A kernel that does nothing but store what it loads, at the same index."""
    if op.name != "kernel" or len(op.operands) != 2 or op.operands[0].type != op.operands[1].type:
        return False
    ops = op.blocks[0].ops
    return [o.name for o in ops] == ["load", "store", "yield"] and ops[0].operands[0] is op.blocks[0].args[0] \
        and ops[1].operands[1] is ops[0].results[0] and ops[0].attrs["index"] == ops[1].attrs["index"] \
        and not ops[0].attrs.get("dyn") and not ops[1].attrs.get("dyn")


def _fold(block: Block, at: int) -> bool:
    source, target = block.ops[at].operands
    maker = next((i for i in range(at - 1, -1, -1) if _touches(block.ops[i], source, writing=True)), None)
    if maker is None:
        return False
    op = block.ops[maker]
    if op.name != "kernel" or source not in op.operands or _touches(op, target):
        return False
    if any(_touches(o, target) for o in block.ops[maker + 1:at]) or not _made_before(target, block, maker):
        return False
    body = op.blocks[0]
    argument = body.args[op.operands.index(source)]
    stores = [o for o in body.walk() if o.name == "store" and o.operands[0] is argument]
    if len(stores) != 1 or stores[0] not in body.ops or stores[0].attrs.get("dyn"):
        return False
    op.operands.append(target)
    op.attrs["outs"] = (*op.attrs["outs"], len(op.operands) - 1)
    also = Op("store", (body.add_arg(target.type), stores[0].operands[1]), (), dict(stores[0].attrs), (), stores[0].loc)
    body.ops.insert(body.ops.index(stores[0]) + 1, also)
    return True


def _touches(op: Op, buffer: Value, writing: bool = False) -> bool:
    """True when ``op``, or a launch that it nests, uses the memory behind ``buffer``; ``writing``: when it may write it."""
    base = _root(buffer)
    for o in op.walk():
        if o.name != "view":
            outs = o.attrs["outs"] if writing and o.name in ("kernel", "template") else range(len(o.operands))
            if any(_root(o.operands[i]) is base for i in outs):
                return True
    return False


def _root(v: Value) -> Value:
    while v.op is not None and v.op.name == "view":
        v = v.op.operands[0]
    return v


def _made_before(v: Value, block: Block, at: int) -> bool:
    return v.op is None or v.op not in block.ops or block.ops.index(v.op) < at


def _drop_unread(block: Block, temporaries: Collection[Value]) -> None:
    """Remove stores of kernels into temporaries that nothing reads."""
    table = uses(block)
    for op in block.ops:
        if op.name != "kernel":
            continue
        for i in reversed(range(len(op.operands))):
            v, body = op.operands[i], op.blocks[0]
            if v not in temporaries or i not in op.attrs["outs"] or len(op.attrs["outs"]) == 1 or len(table[v]) != 1:
                continue
            stores = [o for o in body.walk() if body.args[i] in o.operands]
            if any(o.name != "store" or o not in body.ops for o in stores):
                continue
            body.ops[:] = [o for o in body.ops if o not in stores]
            del op.operands[i], body.args[i]
            op.attrs["outs"] = tuple(k - (k > i) for k in op.attrs["outs"] if k != i)
            for k, a in enumerate(body.args):
                a.index = k


__all__ = ["fold_copies"]
