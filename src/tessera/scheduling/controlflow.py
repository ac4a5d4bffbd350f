"""Control flow over buffers: ``cond``, ``while``, ``scan``, calls, and launches of users' tile functions.

A loop's carry lives in buffers of its own.  The body computes the next carry beside it and copies it over, except where a
kernel may write straight into the carry (``coalesce``).
"""

from __future__ import annotations

from collections.abc import Sequence

from ..ir.core import Block, BufferType, Op, Value, free_values
from ..types.dims import DimLike, product
from ..types.dims import name as dim_name
from .copies import fold_copies
from .elements import buffer_of
from .indexing import Names
from .memory import pointwise_safe
from .packing import pack_operands
from .program import BlockScheduler, base_of, launches


def _prepare(bs: BlockScheduler, op: Op) -> None:
    """What the blocks use from outside has to be in memory, literals aside."""
    for v in free_values(op.blocks):
        if v.op is not None and v.op.name in ("constant", "full", "iota", "size"):
            continue
        bs.demand(v)


def _nested(bs: BlockScheduler, block: Block, args: Sequence[Value], targets: Sequence[Value | None],
            donated: Sequence[Value] = ()) -> tuple[Block, BlockScheduler]:
    """Schedule a Graph block with its arguments in ``args``; what it yields goes to ``targets`` (None: anywhere)."""
    out = Block()
    yields = block.terminator.operands
    homes: dict[Value, Value] = {}
    for v, t in zip(yields, targets, strict=True):
        if t is not None and v.op is not None:
            homes.setdefault(v, t)
    inner = BlockScheduler(bs.program, block, out, dict(zip(block.args, args, strict=True)), homes, bs)
    inner.donated.update(donated)
    inner.run(block.ops)
    inner.finish([(v, t) for v, t in zip(yields, targets, strict=True)])
    return out, inner


@launches("cond")
def cond(bs: BlockScheduler, op: Op) -> None:
    _prepare(bs, op)
    flag, *args = [bs.demand(v) for v in op.operands]
    results = [bs.place(r) for r in op.results]
    blocks = []
    for b in op.blocks:
        out, _ = _nested(bs, b, args, results)
        out.ops.append(Op("yield"))
        blocks.append(out)
    bs.append(Op("cond", (flag,), (), {}, blocks, op.loc), op.results, results)


def _state(bs: BlockScheduler, v: Value, result: Value) -> Value:
    """A buffer for one value of a loop's carry, holding its initial value."""
    state = bs.place(result)
    fresh = v.op is not None and not bs.ready(v) and v.op in bs.order and v not in bs.homes and len(bs.users[v]) == 1 \
        and v.op.name != "reshape"
    if fresh:
        bs.homes[v] = state
    bs.demand(v)
    if base_of(bs.buffer(v)) is not base_of(state):
        bs.copy(v, state)
    return state


def _advance(inner: BlockScheduler, out: Block, block: Block, state: Sequence[Value], following: Sequence[Value | None]) -> None:
    """Copy the next carry over the present one."""
    for k, (v, now, temporary) in enumerate(zip(block.terminator.operands, state, following, strict=False)):
        if temporary is None or (v in block.args and block.args.index(v) == k):
            continue
        if coalesce(out, temporary, now):
            continue
        inner.buffers[v] = temporary
        inner.copy(v, now)
        inner.flush()


def _following(bs: BlockScheduler, block: Block, state: Sequence[Value]) -> list[Value | None]:
    """Buffers for the next carry: none where the value does not change, or is updated in place."""
    out: list[Value | None] = []
    for k, s in enumerate(state):
        v = block.terminator.operands[k]
        unchanged = v is block.args[k]
        out.append(None if unchanged or _updates(v, block.args[k]) else bs.alloc(s.type))
    return out


def _updates(v: Value, carry: Value) -> bool:
    """True when ``v`` is ``carry`` after updates that happen in place."""
    while v.op is not None and v.op.name == "dynamic_update_slice":
        v = v.op.operands[0]
    return v is carry


@launches("while")
def while_loop(bs: BlockScheduler, op: Op) -> None:
    _prepare(bs, op)
    state = [_state(bs, v, r) for v, r in zip(op.operands, op.results, strict=True)]
    flag = bs.alloc(buffer_of(op.blocks[0].terminator.operands[0].type))
    test, _ = _nested(bs, op.blocks[0], state, [flag])
    test.ops.append(Op("yield", (flag,)))
    following = _following(bs, op.blocks[1], state)
    body, inner = _nested(bs, op.blocks[1], state, following, op.blocks[1].args)
    _land(inner, op.blocks[1], state, following)
    _advance(inner, body, op.blocks[1], state, following)
    fold_copies(body, [t for t in following if t is not None])
    body.ops.append(Op("yield"))
    bs.append(Op("while", (), (), {}, (test, body), op.loc), op.results, state)


def _land(inner: BlockScheduler, block: Block, state: Sequence[Value], following: Sequence[Value | None]) -> None:
    """Carries that were to be updated in place and were not after all are copied."""
    for k, v in enumerate(block.terminator.operands[:len(state)]):
        if following[k] is None and v is not block.args[k]:
            inner.demand(v)
            inner.flush()
            if base_of(inner.buffer(v)) is not base_of(state[k]):
                inner.copy(v, state[k])
                inner.flush()


@launches("scan")
def scan(bs: BlockScheduler, op: Op) -> None:
    _prepare(bs, op)
    n = op.attrs["carry"]
    length: DimLike = op.attrs["length"]
    block = op.blocks[0]
    state = [_state(bs, v, r) for v, r in zip(op.operands[:n], op.results[:n], strict=True)]
    streams = [bs.demand(v) for v in op.operands[n:]]
    stacks = [bs.place(r) for r in op.results[n:]]
    loop = Names(bs.program.sizes).fresh(f"t{len(bs.program.loops)}", plain=True)
    bs.program.loops.append(loop)
    at: DimLike = length - 1 - dim_name(loop) if op.attrs.get("reverse") else dim_name(loop)
    head = Block()

    def row(buffer: Value) -> Value:
        shape = buffer.type.shape[1:]
        view = Op("view", (buffer,), (BufferType(buffer.type.dtype, shape),), {"offset": at * product(shape)})
        head.ops.append(view)
        return view.results[0]

    args = [*state, *[row(b) for b in streams]]
    targets = [row(b) for b in stacks]
    following = _following(bs, block, state)
    body, inner = _nested(bs, block, args, [*following, *targets], block.args[:n])
    _land(inner, block, state, following)
    _advance(inner, body, block, state, following)
    body.ops[:0] = head.ops
    fold_copies(body, [t for t in following if t is not None])
    body.ops.append(Op("yield"))
    for made in pack_operands(body, length, bs.alloc, bs.program.label, [base_of(b) or b for b in (*state, *stacks)]):
        bs.append(made)
    bs.append(Op("loop", (), (), {"over": (loop, length)}, (body,), op.loc), op.results, [*state, *stacks])


def coalesce(block: Block, temporary: Value, state: Value) -> bool:
    """Let the kernel that computes the next carry write it in place, where nothing reads the present one afterwards.

    True when ``temporary`` is not needed any more.
    """
    where = [i for i, op in enumerate(block.ops) if temporary in op.operands]
    everywhere = sum(temporary in op.operands for op in block.walk())  # an inner loop may work on it too
    if len(where) != 1 or everywhere != 1:
        return False
    op = block.ops[where[0]]
    if op.name == "view":
        return _coalesce_view(block, where[0], state)
    if op.name != "kernel":
        return False
    later = any(state in o.operands or _behind(o, state) for late in block.ops[where[0] + 1:] for o in late.walk())
    if later or any(_behind(o, state) and o.name != "kernel" for o in op.walk()):
        return False
    if state in op.operands and not pointwise_safe(op, op.operands.index(state), op.operands.index(temporary)):
        return False
    op.operands[op.operands.index(temporary)] = state
    return True


def _coalesce_view(block: Block, at: int, state: Value) -> bool:
    """The same where a template writes the next carry, which it sees as flat memory, and reads nothing of the present one."""
    view = block.ops[at]
    users = [i for i, op in enumerate(block.ops) if view.results[0] in op.operands]
    if len(users) != 1 or view.attrs["offset"] != 0 or sum(view.results[0] in op.operands for op in block.walk()) != 1:
        return False
    op = block.ops[users[0]]
    if op.name != "template" or any(base_of(v) is state for v in op.operands):
        return False
    if op.operands.index(view.results[0]) not in op.attrs["outs"]:
        return False
    if any(base_of(v) is state for late in block.ops[users[0] + 1:] for o in late.walk() if o.name != "view" for v in o.operands):
        return False
    view.operands[0] = state
    return True


def _behind(op: Op, state: Value) -> bool:
    return op.name == "view" and base_of(op.operands[0]) is state


@launches("call")
def call(bs: BlockScheduler, op: Op) -> None:
    operands = [bs.demand(v) for v in op.operands]
    results = [bs.place(r) for r in op.results]
    bs.append(Op("call", [*operands, *results], (), {
        "callee": op.attrs["callee"], "outs": tuple(range(len(operands), len(operands) + len(results)))}, (), op.loc),
        op.results, results)


@launches("kernel_call")
def kernel_call(bs: BlockScheduler, op: Op) -> None:
    """A tile function writes copies of the operands that it names: results of their own."""
    fn = bs.program.functions[op.attrs["callee"]]
    writes = tuple(op.attrs.get("writes", ()))
    operands: list[Value] = [*op.operands]
    results: list[Value] = []
    for r, i in zip(op.results, writes, strict=True):
        read = any(o.name in ("load", "gather") and o.operands[0] is fn.args[i] for o in fn.walk())
        results.append(_state(bs, op.operands[i], r) if read or not _writes_all(fn.attrs) else bs.place(r))
    buffers = [results[writes.index(i)] if i in writes else bs.demand(v) for i, v in enumerate(operands)]
    bs.append(Op("launch", buffers, (), {"callee": op.attrs["callee"], "outs": writes}, (), op.loc), op.results, results)


def _writes_all(attrs: dict[str, object]) -> bool:
    """True when the tile function says that it writes every element of its outputs."""
    return bool(attrs.get("complete", False))
