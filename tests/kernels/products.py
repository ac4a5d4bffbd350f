"""Builds ``matmul`` template ops by hand and runs their tile programs, interpreted and compiled."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tessera.ir.core import Block, BufferType, Builder, Function, Op, ScalarType, Value
from tessera.kernels.matmul import matmul
from tessera.machine import CpuMachine, host_cpu
from tessera.scheduling.templates import flat_index
from tessera.types.dims import DimLike, name, product
from tessera.types.dtypes import DType, f32

sys.path.insert(0, str(Path(__file__).parents[1] / "targets" / "cpu"))
from emit_harness import Compiled, check

__all__ = ["Compiled", "check", "matmul_function", "product_op"]

Epilogue = Callable[[Builder, list[Value], Value], Value]


def product_op(m: DimLike, n: DimLike, k: DimLike, *, batch: Sequence[tuple[str, DimLike]] = (), dtype: DType = f32,
               accumulate: DType | None = None, out: DType | None = None, lhs_t: bool = False, rhs_t: bool = False,
               lhs_batched: bool = True, rhs_batched: bool = True, extra: Sequence[BufferType] = (),
               epilogue: Epilogue | None = None, flat: bool = True) -> Op:
    """``out = epilogue(lhs @ rhs)``; ``lhs_t`` / ``rhs_t``: the operand lies transposed in memory."""
    accumulate, out = accumulate or (f32 if dtype.bits < 32 and dtype.is_float else dtype), out or dtype
    b = tuple(e for _, e in batch)
    at = tuple(name(x) for x, _ in batch)
    im, in_, ik = name("m") if m != 1 else 0, name("n") if n != 1 else 0, name("k") if k != 1 else 0

    def operand(batched: bool, shape: tuple[Any, Any], index: tuple[Any, Any], swap: bool) -> tuple[Any, Any]:
        shape, index = (shape[::-1], index[::-1]) if swap else (shape, index)
        return ((*b, *shape), (*at, *index)) if batched else (shape, index)

    ls, li = operand(lhs_batched, (m, k), (im, ik), lhs_t)
    rs, ri = operand(rhs_batched, (k, n), (ik, in_), rhs_t)
    os_, oi = (*b, m, n), (*at, im, in_)

    def buffer(d: DType, shape: Any) -> BufferType:
        return BufferType(d, (product(shape),) if flat else tuple(shape))

    def index(i: Any, shape: Any) -> Any:
        return (flat_index(i, shape),) if flat else tuple(i)

    types = [buffer(dtype, ls), buffer(dtype, rs), *extra, buffer(out, os_)]
    names = ["lhs", "rhs", *(f"x{i}" for i in range(len(extra))), "out"]
    body = Block([*types, ScalarType(accumulate)], [*names, "acc"])
    builder = Builder(body)
    value = body.args[-1]
    if epilogue is not None:
        value = epilogue(builder, body.args[:-1], value)
    if value.type.dtype is not out:
        value = builder.value("convert", (value,), ScalarType(out))
    builder.op("store", (body.args[-2], value), (), {"index": index(oi, os_)})
    builder.op("yield")
    outer = Block(types, names)
    return Op("template", outer.args, (), {
        "template": "matmul", "name": "matmul", "outs": (len(types) - 1,), "blocks": ("epilogue",), "batch": tuple(batch),
        "m": ("m", m), "n": ("n", n), "k": ("k", k), "lhs": index(li, ls), "rhs": index(ri, rs), "accumulate": accumulate}, [body])


def matmul_function(*args: Any, machine: CpuMachine | None = None, **kwargs: Any) -> Function:
    """The tile program of a product."""
    return matmul(product_op(*args, **kwargs), machine or host_cpu(), "matmul")
