"""The reference interpreter of Graph IR: every op by the numpy meaning in its stanza.  Slow; it *is* the definition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..types.dims import Dim, evaluate, substitute
from ..types.shapes import format_shape, unify
from .core import Block, Function, Op, TensorType, Value
from .graph import GrammarError

Array = np.ndarray[Any, Any]
Reference = Callable[..., Any]

# Filled by the op table when the package is assembled: name -> numpy meaning.
REFERENCES: dict[str, Reference] = {}

# Runs a Tile function on arrays, some of which it writes; filled by the tile level's interpreter.
KERNEL: Callable[[Function, list[Array]], None] | None = None


def interpret(fn: Function, arrays: Sequence[Any], sizes: Mapping[str, int] | None = None) -> list[Array]:
    """Run a Graph function on arrays.

    Symbolic sizes take the values that the arrays' shapes give them; ``sizes`` may name more.

    Raises:
        ValueError: the arrays do not fit the parameters.
        GrammarError: an op has no meaning.
    """
    env = dict(sizes or {})
    given = [np.asarray(a) for a in arrays]
    if len(given) != len(fn.args):
        raise ValueError(f"@{fn.name} takes {len(fn.args)} arrays, not {len(given)}")
    for i, (p, a) in enumerate(zip(fn.args, given, strict=True)):
        _bind(fn, i, p.type, a, env)
    for i, (p, a) in enumerate(zip(fn.args, given, strict=True)):  # sizes such as 2*B bind once their names are known
        _bind(fn, i, p.type, a, env)
    return _Frame(fn, env).block(fn.body, given)


def _bind(fn: Function, i: int, t: TensorType, a: Array, env: dict[str, int]) -> None:
    if a.dtype != t.dtype.np:
        raise ValueError(f"parameter {i} of @{fn.name} is {t}; the array is {a.dtype}")
    if a.ndim != t.rank or unify(t.shape, a.shape, env) is not None:
        raise ValueError(f"parameter {i} of @{fn.name} is {t}; the array has the shape {format_shape(a.shape)}")


class _Frame:
    """The values of one call."""

    def __init__(self, fn: Function, env: dict[str, int]):
        self.fn, self.env = fn, env
        self.values: dict[Value, Array] = {}

    def block(self, block: Block, args: Sequence[Array]) -> list[Array]:
        self.values.update(zip(block.args, args, strict=True))
        for op in block.ops:
            if op.name in ("return", "yield"):
                return [self.values[v] for v in op.operands]
            xs = [self.values[v] for v in op.operands]
            rule = _STRUCTURAL.get(op.name)
            out = rule(self, op, xs) if rule else self.primitive(op, xs)
            self.values.update(zip(op.results, out, strict=True))
        raise GrammarError(f"a block of @{self.fn.name} does not end in return or yield")

    def primitive(self, op: Op, xs: list[Array]) -> list[Array]:
        reference = REFERENCES.get(op.name)
        if reference is None:
            raise GrammarError(f"there is no op {op.name!r}" + (f" ({op.loc})" if op.loc else ""))
        out = reference(*xs, **{k: self.attribute(v) for k, v in op.attrs.items()})
        out = list(out) if isinstance(out, tuple | list) else [out]
        return [self.conform(op, np.asarray(a), r.type) for a, r in zip(out, op.results, strict=True)]

    def attribute(self, v: Any) -> Any:
        """Symbolic sizes in attributes become numbers."""
        if isinstance(v, Dim):
            return evaluate(v, self.env)
        return tuple(self.attribute(x) for x in v) if isinstance(v, tuple | list) else v

    def conform(self, op: Op, a: Array, t: TensorType) -> Array:
        """The meaning must agree with the stated type, or one of the two is wrong."""
        shape = tuple(substitute(d, self.env) for d in t.shape)
        if a.dtype != t.dtype.np or a.shape != shape:
            raise GrammarError(f"{op.name}: the numpy meaning gives {a.dtype}{list(a.shape)}, the type says "
                               f"{t.dtype}{format_shape(shape)}" + (f" ({op.loc})" if op.loc else ""))
        return a

    # -- structure -----------------------------------------------------------------------------------------------------
    def call(self, op: Op, xs: list[Array]) -> list[Array]:
        fn = self.callee(op)
        if not fn.functions:
            fn = Function(fn.name, fn.level, fn.body, fn.attrs, self.fn.functions)
        return interpret(fn, xs)

    def callee(self, op: Op) -> Function:
        fn = self.fn.functions.get(op.attrs["callee"])
        if fn is None:
            raise GrammarError(f"{op.name}: @{self.fn.name} has no function {op.attrs['callee']!r}")
        return fn

    def cond(self, op: Op, xs: list[Array]) -> list[Array]:
        return self.block(op.blocks[0 if bool(xs[0]) else 1], xs[1:])

    def loop(self, op: Op, xs: list[Array]) -> list[Array]:
        while bool(self.block(op.blocks[0], xs)[0]):
            xs = self.block(op.blocks[1], xs)
        return xs

    def scan(self, op: Op, xs: list[Array]) -> list[Array]:
        n = op.attrs["carry"]
        length = evaluate(op.attrs["length"], self.env)
        carry, streams = xs[:n], xs[n:]
        order = range(length)
        rows: list[list[Array]] = []
        for i in reversed(order) if op.attrs.get("reverse") else order:
            out = self.block(op.blocks[0], [*carry, *[s[i] for s in streams]])
            carry = out[:n]
            rows.append(out[n:])
        if op.attrs.get("reverse"):
            rows.reverse()
        stacked = []
        for j, r in enumerate(op.results[n:]):
            shape = tuple(evaluate(d, self.env) for d in r.type.shape)
            column = [row[j] for row in rows]
            stacked.append(np.stack(column) if column else np.empty(shape, r.type.dtype.np))
        return [*carry, *stacked]

    def kernel_call(self, op: Op, xs: list[Array]) -> list[Array]:
        if KERNEL is None:
            raise GrammarError("kernel_call: the tile interpreter is not registered")
        fn = self.callee(op)
        writes = op.attrs.get("writes", ())
        buffers = [x.copy() if i in writes else x for i, x in enumerate(xs)]
        KERNEL(fn, buffers)
        return [buffers[i] for i in writes]


_STRUCTURAL: dict[str, Callable[[_Frame, Op, list[Array]], list[Array]]] = {
    "call": _Frame.call, "cond": _Frame.cond, "while": _Frame.loop, "scan": _Frame.scan, "kernel_call": _Frame.kernel_call,
}
