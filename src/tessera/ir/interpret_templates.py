"""What the templates with blocks mean, in numpy (see :mod:`tessera.scheduling.templates`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..types.dims import DimLike
from ..types.dtypes import DType, f32
from .core import Block, Op
from .interpret_graph import REFERENCES
from .sched_machine import Frame, Interpreter, Template, size_value

Array = np.ndarray[Any, Any]
Loops = Sequence[tuple[str, DimLike]]


def _block(op: Op, name: str) -> Block | None:
    names = op.attrs["blocks"]
    return op.blocks[names.index(name)] if name in names else None


def _grid(it: Interpreter, loops: Loops) -> tuple[dict[str, Any], tuple[int, ...]]:
    """Index arrays for loops, one axis each, and the extents."""
    shape = it.shape([e for _, e in loops])
    env: dict[str, Any] = {**it.sizes, **it.loops}
    for k, (n, _) in enumerate(loops):
        env[n] = np.arange(shape[k]).reshape([-1 if i == k else 1 for i in range(len(loops))])
    return env, shape


def _gathered(it: Interpreter, op: Op, role: str, position: int, arrays: list[Array], loops: Loops, wide: DType) -> Array:
    """Operand ``role`` as a dense array over ``loops``, by its index map or its prologue."""
    env, shape = _grid(it, loops)
    if 0 in shape:
        return np.zeros(shape, wide.np)
    body = _block(op, role)
    if body is not None:
        frame = Frame(env, len(loops), dict(zip(body.args, arrays, strict=False)))
        (v,) = it.body(body, frame)
        return np.broadcast_to(frame.values[v], shape).astype(wide.np)
    index = tuple(np.broadcast_to(size_value(e, env), shape) for e in op.attrs[role])
    return np.asarray(arrays[position][index].astype(wide.np))


def _store(it: Interpreter, op: Op, arrays: list[Array], loops: Loops, acc: Array) -> None:
    """Run the epilogue over ``loops`` on ``acc``."""
    env, shape = _grid(it, loops)
    if 0 in shape:
        return
    body = _block(op, "epilogue")
    assert body is not None
    values: dict[Any, Any] = dict(zip(body.args, [*arrays, acc.reshape(shape)], strict=True))
    it.body(body, Frame(env, len(loops), values))


def multiply_add(a: Array, b: Array, acc: Array) -> Array:
    """``fma``: for f32 one rounding to f64 and one to f32, which differs from one rounding only in rare ties."""
    if acc.dtype == np.float32:
        return (a.astype(np.float64) * b.astype(np.float64) + acc.astype(np.float64)).astype(np.float32)
    return np.asarray(a * b + acc)


def matmul(it: Interpreter, op: Op, arrays: list[Array]) -> None:
    a = op.attrs
    batch, m, n, k, wide = a["batch"], a["m"], a["n"], a["k"], a["accumulate"]
    lhs = _gathered(it, op, "lhs", 0, arrays, (*batch, m, k), wide)
    rhs = _gathered(it, op, "rhs", 1, arrays, (*batch, k, n), wide)
    acc = np.zeros(it.shape([e for _, e in (*batch, m, n)]), wide.np)
    with np.errstate(all="ignore"):
        for i in range(it.size(k[1])):
            acc = multiply_add(lhs[..., :, i, None], rhs[..., i, None, :], acc)
    _store(it, op, arrays, (*batch, m, n), acc)


def attention(it: Interpreter, op: Op, arrays: list[Array]) -> None:
    a = op.attrs
    batch, q, t, d, e = a["batch"], a["q"], a["t"], a["d"], a["e"]
    wide: DType = a.get("compute", f32)
    query = _gathered(it, op, "query", 0, arrays, (*batch, q, d), wide)
    key = _gathered(it, op, "key", 1, arrays, (*batch, t, d), wide)
    value = _gathered(it, op, "value", 2, arrays, (*batch, t, e), wide)
    with np.errstate(all="ignore"):
        s = _scores(it, op, arrays, query, key)
        top = np.max(s, -1, keepdims=True, initial=-np.inf)
        base = np.where(np.isfinite(top), top, 0)
        p = np.exp(s - base).astype(wide.np)
        total = p.sum(-1, keepdims=True)
        acc = _held(op, np.matmul(p, value)) / np.where(total == 0, 1, total)
        if "sums" in a:
            arrays[a["sums"]][...] = (np.log(total) + base).reshape(arrays[a["sums"]].shape)
    _store(it, op, arrays, (*batch, q, e), acc.astype(wide.np))


def _held(op: Op, x: Any) -> Array:
    """What the accumulators of an attention op hold of ``x``."""
    total: DType | None = op.attrs.get("accumulate")
    return np.asarray(x) if total is None else np.asarray(x).astype(total.np).astype(x.dtype)


def _scores(it: Interpreter, op: Op, arrays: list[Array], query: Array, key: Array) -> Array:
    """scale * query key^T through the ``score`` block and the causal mask."""
    a = op.attrs
    q, t = a["q"], a["t"]
    env, shape = _grid(it, (*a["batch"], q, t))
    s = _held(op, np.matmul(query, np.swapaxes(key, -1, -2)) * query.dtype.type(a["scale"]))
    body = _block(op, "score")
    if body is not None and 0 not in shape:
        frame = Frame(env, len(shape), dict(zip(body.args, [*arrays, s], strict=True)))
        (v,) = it.body(body, frame)
        s = np.broadcast_to(frame.values[v], shape)
    return np.where(env[t[0]] <= env[q[0]] + it.size(a["causal_offset"]), s, -np.inf) if a.get("causal") else s


def attention_backward(it: Interpreter, op: Op, arrays: list[Array]) -> None:
    a = op.attrs
    batch, q, t, d, e = a["batch"], a["q"], a["t"], a["d"], a["e"]
    wide: DType = a["compute"]
    query = _gathered(it, op, "query", 0, arrays, (*batch, q, d), wide)
    key = _gathered(it, op, "key", 1, arrays, (*batch, t, d), wide)
    value = _gathered(it, op, "value", 2, arrays, (*batch, t, e), wide)
    g = _gathered(it, op, "cotangent", 3, arrays, (*batch, q, e), wide)
    lse, delta = (arrays[i].reshape(*query.shape[:-1], 1) for i in (4, 5))
    with np.errstate(all="ignore"):
        p = np.exp(_scores(it, op, arrays, query, key) - np.where(np.isfinite(lse), lse, 0)).astype(wide.np)
        ds = p * (np.matmul(g, np.swapaxes(value, -1, -2)) - delta) * wide.np.type(a["scale"])
        made = {"dq": np.matmul(ds, key), "dk": np.matmul(np.swapaxes(ds, -1, -2), query), "dv": np.matmul(np.swapaxes(p, -1, -2), g)}
    for role, out in zip(a["writes"], arrays[6:], strict=False):
        x = made[role]
        if role != "dq" and batch:
            heads = it.size(a["key_heads"])
            x = x.reshape(*x.shape[:-3], heads, x.shape[-3] // heads if heads else 0, *x.shape[-2:]).sum(-3)
        out[...] = x.reshape(out.shape)


def conv(it: Interpreter, op: Op, arrays: list[Array]) -> None:
    a = op.attrs
    wide: DType = a["accumulate"]
    attrs = {k: a[k] for k in ("strides", "padding", "dilation", "groups") if k in a}
    acc = REFERENCES["conv"](arrays[0].astype(wide.np), arrays[1].astype(wide.np), **attrs)
    _store(it, op, arrays, (*a["batch"], a["channel"], *a["spatial"]), np.asarray(acc))


TEMPLATES: dict[str, Template] = {"matmul": matmul, "attention": attention, "attention_backward": attention_backward, "conv": conv}
