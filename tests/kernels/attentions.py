"""Builds ``attention`` template ops by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from tessera.ir.core import Block, BufferType, Builder, Function, Op, ScalarType, Value
from tessera.kernels.attention import attention
from tessera.kernels.simt.attention import attention_program
from tessera.machine import CpuMachine, SimtMachine, host_cpu
from tessera.scheduling.templates import flat_index
from tessera.types.dims import DimLike, name, product
from tessera.types.dtypes import DType, f32, f64

Score = Callable[[Builder, list[Value], Value], Value]


def attention_op(heads: int, q: DimLike, t: DimLike, d: int, e: int | None = None, *, groups: int = 1, causal: bool = False,
                 key_block: int = 64, dtype: DType = f32, joined: bool = False, extra: Sequence[BufferType] = (),
                 score: Score | None = None) -> Op:
    """``heads`` query heads, each ``groups`` of which share a key head; ``joined``: all operands are [s, h * d] in memory."""
    e, compute = d if e is None else e, f64 if dtype is f64 else f32
    kv = heads // groups
    h, iq, it, id_, ie = (name(x) for x in ("b0", "q", "t", "d", "e"))
    q_at, t_at = (iq if q != 1 else 0), (it if t != 1 else 0)

    def operand(count: int, rows: DimLike, width: int, at: Any) -> tuple[BufferType, Any]:
        head, row, col = at
        shape = (rows, count, width) if joined else (count, rows, width)
        index = (row, head, col) if joined else (head, row, col)
        return BufferType(dtype, (product(shape),)), (flat_index(index, shape),)

    shared = h // groups if groups > 1 else h
    tq, xq = operand(heads, q, d, (h, q_at, id_))
    tk, xk = operand(kv, t, d, (shared, t_at, id_))
    tv, xv = operand(kv, t, e, (shared, t_at, ie))
    to, xo = operand(heads, q, e, (h, q_at, ie))
    types, names = [tq, tk, tv, *extra, to], ["query", "key", "value", *(f"x{i}" for i in range(len(extra))), "out"]
    outer = Block(types, names)
    blocks = []
    if score is not None:
        body = Block([*types, ScalarType(compute)], [*names, "score"])
        b = Builder(body)
        b.op("yield", [score(b, body.args[:-1], body.args[-1])])
        blocks.append(body)
    body = Block([*types, ScalarType(compute)], [*names, "acc"])
    b = Builder(body)
    value = body.args[-1]
    if dtype is not compute:
        value = b.value("convert", (value,), ScalarType(dtype))
    b.op("store", (body.args[-2], value), (), {"index": xo})
    b.op("yield")
    blocks.append(body)
    return Op("template", outer.args, (), {
        "template": "attention", "name": "attention", "outs": (len(types) - 1,),
        "blocks": ("score", "epilogue") if score is not None else ("epilogue",), "batch": (("b0", heads),),
        "q": ("q", q), "t": ("t", t), "d": ("d", d), "e": ("e", e), "query": xq, "key": xk, "value": xv, "scale": d ** -0.5,
        "causal": causal, "causal_offset": t - q, "key_block": key_block, "compute": compute}, blocks)


def attention_function(*args: Any, machine: CpuMachine | SimtMachine | None = None, **kwargs: Any) -> Function:
    op = attention_op(*args, **kwargs)
    if isinstance(machine, SimtMachine):
        return attention_program(op, machine, "attention")
    return attention(op, machine or host_cpu(), "attention")
