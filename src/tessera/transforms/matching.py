"""Looking through a graph for known formulas: constants, broadcasts, products of factors, statistics of rows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..ir.core import Op, Value
from ..ops.table import OPS
from ..types.dims import Dim, DimLike, name
from .canonicalize import uniform
from .rewriting import key_of, producer

CLOSE = 1e-3  # relative: how closely a written constant has to agree with the formula's (bf16 has 8 bits)


def literal(v: Value) -> float | None:
    """The number that every element of ``v`` is, where that is a literal (seen through broadcasts and converts)."""
    op = v.op
    while op is not None and op.name in ("broadcast_to", "reshape", "convert", "transpose"):
        op = op.operands[0].op
    if op is None:
        return None
    if op.name == "full":
        x: Any = op.attrs["value"]
    elif op.name == "constant":
        a = np.asarray(op.attrs["value"])
        if a.size == 0 or a.tobytes() != a.flat[0].tobytes() * a.size:
            return None
        x = a.flat[0].item()
    else:
        return None
    return float(x) if isinstance(x, int | float) else None


def is_literal(v: Value, x: float) -> bool:
    got = literal(v)
    return got is not None and (got == x or abs(got - x) <= CLOSE * abs(x))


def unbroadcast(v: Value) -> Value:
    """What was stretched to ``v``."""
    op = producer(v, "broadcast_to")
    return op.operands[0] if op is not None else v


def same(a: Value, b: Value, depth: int = 12) -> bool:
    """True when two values are computed alike from the same values."""
    if a is b:
        return True
    x, y = a.op, b.op
    if x is None or y is None or depth == 0 or x.name != y.name or a.index != b.index or x.blocks or "site" in x.attrs:
        return False
    return len(x.operands) == len(y.operands) and key_of(x.attrs) == key_of(y.attrs) and a.type == b.type \
        and all(same(p, q, depth - 1) for p, q in zip(x.operands, y.operands, strict=True))


def either(op: Op) -> Iterator[tuple[Value, Value]]:
    """The operands of a commutative op in both orders."""
    a, b = op.operands
    yield a, b
    yield b, a


def row_value(v: Value, x: Value) -> tuple[Op, int] | None:
    """Where ``v`` has the shape of ``x`` and repeats a reduction of ``x``'s shape along one axis: (reduction, axis)."""
    inner = unbroadcast(v)
    op = producer(inner, "reshape")
    core = op.operands[0] if op is not None else inner
    red = core.op
    if red is None or "axes" not in red.attrs or len(red.attrs["axes"]) != 1:
        return None
    (axis,) = red.attrs["axes"]
    shape = red.operands[0].type.shape
    kept = tuple(1 if i == axis else n for i, n in enumerate(shape))
    if shape != x.type.shape or tuple(inner.type.shape) != kept:
        return None
    return red, axis


def factors(v: Value, depth: int = 6) -> tuple[float, list[Value]]:
    """``v`` as a literal times values: products, quotients by literals, negations, squares and cubes.

    No formula has more than ``depth`` of them inside each other; a long chain of squares would have 2**n factors.
    """
    op = v.op
    x = literal(v)
    if x is not None:
        return x, []
    if op is None or depth == 0:
        return 1.0, [v]
    if op.name == "mul":
        (a, left), (b, right) = factors(op.operands[0], depth - 1), factors(op.operands[1], depth - 1)
        return a * b, left + right
    if op.name == "div":
        d = literal(op.operands[1])
        if d:
            a, left = factors(op.operands[0], depth - 1)
            return a / d, left
    if op.name == "neg":
        a, left = factors(op.operands[0], depth - 1)
        return -a, left
    if op.name == "pow":
        n = literal(op.operands[1])
        if n in (2.0, 3.0):
            a, left = factors(op.operands[0], depth - 1)
            return a ** int(n), left * int(n)
    return 1.0, [v]


def formula_of(op: Op, x: Value, depth: int = 12) -> Any:
    """``op`` as a formula of ``x`` (``ops/formulas.py``): pointwise ops and constants alone; None where it is more."""
    if not OPS[op.name].pointwise or op.attrs or op.results[0].type.dtype is not x.type.dtype or depth == 0:
        return None
    parts = []
    for v in op.operands:
        number = uniform(v)
        part = "x" if same(v, x) else number if number is not None else \
            formula_of(v.op, x, depth - 1) if v.op is not None and v.op.name in OPS else None
        if part is None:
            return None
        parts.append(part)
    return (op.name, *parts)


def close(a: float, b: float) -> bool:
    return math.isfinite(a) and abs(a - b) <= CLOSE * abs(b)


def mean_of(v: Value, x: Value) -> Value | None:
    """Where ``v`` (with ``x``'s last axis kept as 1, or stretched) is a mean over the last axis: what it is the mean of."""
    v = unbroadcast(v)
    op = v.op
    if op is None:
        return None
    if op.name == "reshape":  # the quotient may have been taken before the axis was put back
        inner = op.operands[0].op
        if inner is not None and inner.name in ("div", "mul"):
            op = inner
    if op.name not in ("div", "mul"):
        return None
    total, count = op.operands
    red = _last_axis_sum(total, x)
    if red is None and op.name == "mul":
        total, count = count, total
        red = _last_axis_sum(total, x)
    if red is None:
        return None
    n = x.type.shape[-1]
    value = literal(count)
    if op.name == "mul":
        good = value is not None and isinstance(n, int) and n > 0 and close(value, 1.0 / n)
    else:
        good = (value is not None and value == n) or _is_size(count, n)
    return red.operands[0] if good else None


def _last_axis_sum(v: Value, x: Value) -> Op | None:
    v = unbroadcast(v)
    op = producer(v, "reshape")
    red = producer(op.operands[0] if op is not None else v, "reduce_sum")
    if red is None or tuple(red.attrs["axes"]) != (x.type.rank - 1,) or red.operands[0].type.shape != x.type.shape:
        return None
    return red


def _is_size(v: Value, n: DimLike) -> bool:
    op = v.op
    while op is not None and op.name in ("convert", "broadcast_to", "reshape"):
        op = op.operands[0].op
    return op is not None and op.name == "size" and op.attrs["value"] == n


def position(v: Value, axes: tuple[str, ...]) -> DimLike | None:
    """An integer tensor as an expression over its own index ``axes``; None where it is none."""
    op = v.op
    if op is None:
        return None
    x = literal(v)
    if x is not None and x == int(x):
        return int(x)
    if op.name == "iota":
        return name(axes[op.attrs["axis"]])
    if op.name == "size":
        size: DimLike = op.attrs["value"]
        return size
    if op.name == "convert" and v.type.dtype.is_integer:
        return position(op.operands[0], axes)
    if op.name == "broadcast_to":
        return position(op.operands[0], axes[len(axes) - op.operands[0].type.rank:])
    if op.name == "reshape":
        wide = [a for a, n in zip(axes, v.type.shape, strict=True) if n != 1]
        source = op.operands[0].type.shape
        if len(wide) != sum(n != 1 for n in source):
            return None
        it = iter(wide)
        return position(op.operands[0], tuple(next(it) if n != 1 else "$one" for n in source))
    if op.name in ("add", "sub"):
        a, b = (position(o, axes) for o in op.operands)
        if a is None or b is None:
            return None
        return a + b if op.name == "add" else a - b
    return None


def lower_triangle(mask: Value) -> DimLike | None:
    """Where ``mask`` is ``t <= q + offset`` over its last two axes (q, t): the offset."""
    op = _condition(mask).op
    while op is not None and op.name == "reshape" and unbroadcast(op.operands[0]).type.rank >= 2:
        if tuple(n for n in op.operands[0].type.shape if n != 1) != tuple(n for n in op.results[0].type.shape if n != 1):
            return None
        op = _condition(op.operands[0]).op
    if op is None or op.name not in ("le", "lt", "ge", "gt"):
        return None
    rank = op.operands[0].type.rank
    axes = tuple(f"${k}" for k in range(rank))
    a, b = (position(v, axes) for v in op.operands)
    if a is None or b is None or rank < 2:
        return None
    if op.name in ("ge", "gt"):
        a, b = b, a
    room = b - a if op.name in ("le", "ge") else b - a - 1  # room >= 0
    offset = room - name(axes[-2]) + name(axes[-1])
    clean = not isinstance(offset, Dim) or not any(n.startswith("$") for n in offset.names)
    return offset if clean else None


def _condition(v: Value) -> Value:
    """``v`` without broadcasts and without the detour over numbers that ``tril(ones)`` takes."""
    for _ in range(6):
        v = unbroadcast(v)
        op = v.op
        if op is not None and op.name == "convert":
            pass
        elif op is None or op.name != "select" or literal(op.operands[2]) != 0.0 or not literal(op.operands[1]):
            break
        v = op.operands[0]
    return v
