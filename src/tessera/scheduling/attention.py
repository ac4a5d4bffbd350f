"""Attention as a ``template`` op: heads split and masks applied where the template reads, heads joined where it stores."""

from __future__ import annotations

import math
from typing import Any

from ..ir.core import Op, Value
from ..types import dtypes as dt
from ..types.dims import DimLike, product
from ..types.dims import name as dim_name
from .elements import Tracer
from .fusion import Materialise
from .indexing import Index, Names
from .products import Body, Epilogue, resolve, trace_blocks
from .program import BlockScheduler, launches
from .templates import Loop


def key_block(d: DimLike) -> int:
    """Numeric parameter: keys of one step of the online softmax; their copies fill a part of the second-level cache."""
    return 512 if isinstance(d, int) and d <= 64 else 256 if isinstance(d, int) and d <= 128 else 128


class Heads:
    """The loops of an attention op and its operands' indices over them."""

    def __init__(self, op: Op, sizes: tuple[str, ...]):
        q, k, v = (x.type for x in op.operands[:3])
        self.names = Names(sizes)
        self.batch: list[Loop] = [self._loop("b", n) for n in q.shape[:-2]]
        self.q, self.t = self._loop("q", q.shape[-2]), self._loop("t", k.shape[-2])
        self.d, self.e = self._loop("d", q.shape[-1]), self._loop("e", v.shape[-1])
        self.ranges: dict[str, DimLike] = dict([*self.batch, self.q, self.t, self.d, self.e])
        lead = [self._at(b) for b in self.batch]
        shared = list(lead)
        for i, (own, other) in enumerate(zip(q.shape[:-2], k.shape[:-2], strict=True)):
            if own != other:
                shared[i] = 0 if other == 1 else lead[i] // (own // other)
        self.query = (*lead, self._at(self.q), self._at(self.d))
        self.key = (*shared, self._at(self.t), self._at(self.d))
        self.value = (*shared, self._at(self.t), self._at(self.e))
        self.result: Index = (*lead, self._at(self.q), self._at(self.e))
        self.score: Index = (*lead, self._at(self.q), self._at(self.t))

    def _loop(self, stem: str, extent: DimLike) -> Loop:
        return self.names.fresh(stem, plain=stem != "b"), extent

    @staticmethod
    def _at(loop: Loop) -> DimLike:
        return 0 if loop[1] == 1 else dim_name(loop[0])


@launches("attention", "attention_forward")
def attention(bs: BlockScheduler, op: Op) -> None:
    """softmax(scale * q k^T, masked) v, and perhaps the log-sum-exp of each row."""
    h = Heads(op, bs.program.sizes)
    operands, maps = _read(bs, op, h, {"query": h.query, "key": h.key, "value": h.value})
    compute = dt.f64 if op.operands[0].type.dtype is dt.f64 else dt.f32
    before = [_score(bs, op.operands[3], h, compute)] if len(op.operands) > 3 else []
    chain = Epilogue(bs, op, op.results[0], h.result, dict([*h.batch, h.q, h.e]))
    sums = [bs.place(r) for r in op.results[1:]]
    all_operands, blocks, outs, value = chain.build([*operands, *sums], compute, h.names, before)
    attrs: dict[str, Any] = {
        "template": "attention", "name": bs.program.label("attention"), "outs": (*((3,) if sums else ()), *outs),
        "blocks": ("score", "epilogue") if before else ("epilogue",), **_problem(op, h, maps), "key_block": key_block(h.d[1]),
        "compute": compute, **({"sums": 3} if sums else {}), **({"schedule": op.attrs["schedule"]} if op.attrs.get("schedule") else {})}
    bs.append(Op("template", all_operands, (), attrs, blocks, op.loc), (value, *op.results[1:]), (bs.buffers[value], *sums))


def _read(bs: BlockScheduler, op: Op, h: Heads, roles: dict[str, Index]) -> tuple[list[Value], dict[str, Index]]:
    """The buffers of the operands in ``roles`` and how the loops find their elements there."""
    operands: list[Value] = []
    maps: dict[str, Index] = {}
    for (role, index), v in zip(roles.items(), op.operands, strict=False):
        buffer, at = resolve(bs, v, index, h.ranges, [h.q[0], h.t[0], h.d[0], h.e[0]])
        if buffer in operands:  # one tensor in two roles: an operand each
            view = Op("view", (buffer,), (buffer.type,), {"offset": 0})
            bs.emit(view)
            buffer = view.results[0]
        operands.append(buffer)
        maps[role] = (at,)
    return operands, maps


def _problem(op: Op, h: Heads, maps: dict[str, Index]) -> dict[str, Any]:
    """Loops, index maps, scale and mask: what both directions of attention are told."""
    return {"batch": tuple(h.batch), "q": h.q, "t": h.t, "d": h.d, "e": h.e, **maps, "scale": float(op.attrs["scale"]),
            "causal": bool(op.attrs.get("causal", False)), "causal_offset": h.t[1] - h.q[1],
            **({"accumulate": op.attrs["accumulate"]} if "accumulate" in op.attrs else {})}


@launches("attention_backward")
def attention_backward(bs: BlockScheduler, op: Op) -> None:
    """The cotangents of queries, keys and values.

    One launch computes all three, a head of the keys after the other; where that leaves threads without work, and on machines whose
    blocks hold sums in registers, one cuts the queries up and one the keys.  Each sum runs in the same order either way.
    """
    h = Heads(op, bs.program.sizes)
    k = op.operands[1].type.shape
    operands, maps = _read(bs, op, h, {"query": h.query, "key": h.key, "value": h.value, "cotangent": h.result})
    operands += [bs.demand(v) for v in op.operands[4:6]]
    compute = op.results[0].type.dtype
    before = [_score(bs, op.operands[6], h, compute)] if len(op.operands) > 6 else []
    heads = product(k[:-2])
    machine = bs.program.machine
    whole = machine.kind != "simt" and isinstance(heads, int) and heads >= machine.threads
    made = [bs.place(r) for r in op.results]
    roles = ("dq", "dk", "dv")
    for cut, written in ((None, roles),) if whole else (("q", roles[:1]), ("t", roles[1:])):
        targets = [made[roles.index(r)] for r in written]
        every, blocks = trace_blocks(bs, [*operands, *targets], before, h.names, set())
        attrs: dict[str, Any] = {
            "template": "attention_backward", "name": bs.program.label("attention_backward"),
            "outs": tuple(range(6, 6 + len(targets))), "blocks": ("score",) if before else (), **_problem(op, h, maps),
            "key_heads": k[-3] if len(k) > 2 else 1, "cut": cut, "writes": written, "compute": compute}
        results = [r for r, role in zip(op.results, roles, strict=True) if role in written]
        bs.append(Op("template", every, (), attrs, blocks, op.loc), results, targets)


def _score(bs: BlockScheduler, mask: Value, h: Heads, compute: dt.DType) -> Body:
    """Keep a score where a bool mask is true; add any other mask."""
    _prepare(bs, mask)
    index = tuple(0 if n == 1 else e for n, e in zip(mask.type.shape, h.score, strict=True))

    def body(tracer: Tracer, score: Value) -> Value:
        m = tracer.value(mask, index)
        if mask.type.dtype is dt.bool_:
            return tracer.emit("select", (m, score, tracer.const(-math.inf, compute)), compute, {})
        if mask.type.dtype is not compute:
            m = tracer.emit("convert", (m,), compute, {})
        return tracer.emit("add", (score, m), compute, {})

    return Body(dict([*h.batch, h.q, h.t]), compute, "score", body)


def _prepare(bs: BlockScheduler, mask: Value) -> None:
    """Put into memory what the mask needs: all of it, unless it is cheap to compute where it is used."""
    while not bs.ready(mask):
        try:
            plan = bs.fusion.plan([mask])
        except Materialise as m:
            if m.value is mask:
                break
            bs.demand(m.value)
            continue
        if plan.rows or plan.side or not bs.fusion.light(mask):
            break
        return
    bs.demand(mask)
