"""Complex values as pairs of real ones: below Graph IR only the Fourier transforms and LAPACK know complex numbers.

A complex tensor is its real and imaginary part, two tensors of their own, so every fusion and every kernel sees real
arithmetic.  Where memory holds complex elements (the program's parameters and results, operands of ``fft``), ``view_as_real`` and
``view_as_complex`` read it as pairs and back without a copy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..ir.core import Block, Builder, Function, Op, TensorType, Value
from ..ir.graph import OP_RULES
from ..ops.table import OPS
from ..types import dtypes as dt
from ..types.dtypes import DType

Pair = tuple[Value, Value]


def split_complex(fn: Function) -> Function:
    """``fn`` with complex arithmetic done on pairs; the same function where there is none."""
    if not _has_complex(fn):
        return fn
    return _Splitter(fn, True).run()


def _has_complex(fn: Function) -> bool:
    values = [*fn.args, *(r for op in fn.walk() for r in op.results)]
    return any(_is_complex(v) for v in values) or any(f.level == "graph" and _has_complex(f) for f in fn.functions.values())


def _is_complex(v: Value) -> bool:
    return isinstance(v.type, TensorType) and v.type.dtype.is_complex


def _halves(types: Sequence[TensorType]) -> list[TensorType]:
    """Types with each complex one replaced by two real ones."""
    return [t.with_dtype(t.dtype.real) for t in types for _ in range(1 + t.dtype.is_complex)]


class _Splitter:
    """Rebuilds one function.  ``entry``: its parameters and results stay complex; called functions pass pairs."""

    def __init__(self, fn: Function, entry: bool):
        self.fn, self.entry = fn, entry
        types = [a.type for a in fn.args] if entry else _halves([a.type for a in fn.args])
        self.new = Function(fn.name, fn.level, Block(types), dict(fn.attrs))
        self.builder = Builder(self.new.body)
        self.map: dict[Value, Value] = {}
        self.pairs: dict[Value, Pair] = {}

    def run(self) -> Function:
        fn = self.fn
        self.new.functions = {n: _Splitter(f, False).run() if f.level == "graph" else f for n, f in fn.functions.items()}
        if self.entry:
            self.map.update(zip(fn.args, self.new.args, strict=True))
            for old, made in zip(fn.args, self.new.args, strict=True):
                made.name = old.name
        else:
            self.bind(fn.args, self.new.args)
        for op in fn.body.ops[:-1]:
            self.op(op)
        out = [self.result(v) for v in fn.returns] if self.entry else self.flat(fn.returns)
        self.builder.op("return", out)
        return self.new

    # -- values ----------------------------------------------------------------------------------------------------------
    def emit(self, name: str, *operands: Value, **attrs: Any) -> Value:
        (t,) = OP_RULES[name]([v.type for v in operands], attrs)
        return self.builder.value(name, operands, t, attrs)

    def pair(self, v: Value) -> Pair:
        """The parts of a complex value."""
        got = self.pairs.get(v)
        if got is None:
            both = self.emit("view_as_real", self.map[v])
            got = self.pairs[v] = (self._part(both, 0), self._part(both, 1))
        return got

    def _part(self, both: Value, k: int) -> Value:
        shape = both.type.shape
        piece = self.emit("slice", both, start=(*[0] * (len(shape) - 1), k), limit=(*shape[:-1], k + 1), stride=(1,) * len(shape))
        return self.emit("reshape", piece, shape=shape[:-1])

    def whole(self, v: Value) -> Value:
        """A complex value as complex memory."""
        got = self.map.get(v)
        return self._join(self.pairs[v]) if got is None else got

    def _join(self, pair: Pair) -> Value:
        columns = [self.emit("reshape", p, shape=(*p.type.shape, 1)) for p in pair]
        return self.emit("view_as_complex", self.emit("concat", *columns, axis=len(pair[0].type.shape)))

    def result(self, v: Value) -> Value:
        """A value as the program returns it; a parameter is copied through its parts."""
        if not _is_complex(v):
            return self.map[v]
        native = self.map.get(v)
        return native if native is not None and native.op is not None else self._join(self.pair(v))

    def flat(self, values: Sequence[Value]) -> list[Value]:
        """Values with each complex one as two."""
        return [part for v in values for part in (self.pair(v) if _is_complex(v) else (self.map[v],))]

    def bind(self, old: Sequence[Value], new: Sequence[Value]) -> None:
        """The reverse of :meth:`flat`."""
        at = iter(new)
        for v in old:
            if _is_complex(v):
                self.pairs[v] = (next(at), next(at))
            else:
                self.map[v] = next(at)

    # -- ops -------------------------------------------------------------------------------------------------------------
    def op(self, op: Op) -> None:
        self.builder.loc = op.loc
        involved = any(_is_complex(v) for v in (*op.operands, *op.results))
        if op.blocks or op.name == "call":
            self.structural(op)
        elif not involved:
            made = self.builder.op(op.name, [self.map[v] for v in op.operands], [r.type for r in op.results], op.attrs)
            self.map.update(zip(op.results, made.results, strict=True))
        elif op.name in _KEPT or OPS[op.name].template == "fft" or OPS[op.name].external is not None:
            operands = [self.whole(v) if _is_complex(v) else self.map[v] for v in op.operands]
            made = self.builder.op(op.name, operands, [r.type for r in op.results], op.attrs)
            self.map.update(zip(op.results, made.results, strict=True))
        else:
            rule = _RULES.get(op.name, _each_part)
            out = rule(self, op)
            if _is_complex(op.result):
                assert isinstance(out, tuple)
                self.pairs[op.result] = out
            else:
                assert isinstance(out, Value)
                self.map[op.result] = out

    def structural(self, op: Op) -> None:
        """Control flow and calls pass pairs."""
        operands = self.flat(op.operands)
        attrs = dict(op.attrs)
        if op.name == "scan":
            attrs["carry"] = len(_halves([v.type for v in op.operands[:attrs["carry"]]]))
        blocks = [self.block(b) for b in op.blocks]
        made = self.builder.op(op.name, operands, _halves([r.type for r in op.results]), attrs, blocks, op.loc)
        self.bind(op.results, made.results)

    def block(self, block: Block) -> Block:
        new = Block(_halves([a.type for a in block.args]))
        outside = dict(self.pairs)  # parts that are computed inside do not exist outside
        self.bind(block.args, new.args)
        with self.builder.at(new):
            for op in block.ops[:-1]:
                self.op(op)
            self.builder.op("yield", self.flat(block.terminator.operands))
        self.pairs = outside
        return new


_KEPT = frozenset({"view_as_real", "view_as_complex", "kernel_call"})
Rule = Callable[[_Splitter, Op], "Pair | Value"]


# -- rules -----------------------------------------------------------------------------------------------------------------
def _part_of(value: Any, k: int) -> Any:
    if isinstance(value, np.ndarray | np.generic) and value.dtype.kind == "c":
        return np.array(value.imag if k else value.real, order="C")
    if isinstance(value, complex):
        return value.imag if k else value.real
    if isinstance(value, DType):
        return value.real
    return (0 if k else value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _each_part(s: _Splitter, op: Op) -> Pair:
    """Linear ops and movement: the same on both parts."""
    out = []
    for k in (0, 1):
        operands = [s.pair(v)[k] if _is_complex(v) else s.map[v] for v in op.operands]
        attrs = {n: _part_of(v, k) if n in ("value", "dtype", "accumulate") else v for n, v in op.attrs.items()}
        out.append(s.emit(op.name, *operands, **attrs))
    return out[0], out[1]


def _mul(s: _Splitter, op: Op) -> Pair:
    (a, b), (c, d) = s.pair(op.operands[0]), s.pair(op.operands[1])
    e = s.emit
    return e("sub", e("mul", a, c), e("mul", b, d)), e("add", e("mul", a, d), e("mul", b, c))


def _div(s: _Splitter, op: Op) -> Pair:
    """Smith's method: divide by the greater part of the divisor first, so that no square overflows."""
    (a, b), (c, d) = s.pair(op.operands[0]), s.pair(op.operands[1])
    e = s.emit
    first = e("ge", e("abs", c), e("abs", d))
    big, small = e("select", first, c, d), e("select", first, d, c)
    p, q = e("select", first, a, b), e("select", first, b, a)
    ratio = e("div", small, big)
    below = e("add", big, e("mul", small, ratio))
    re = e("div", e("add", p, e("mul", q, ratio)), below)
    im = e("div", e("sub", q, e("mul", p, ratio)), below)
    return re, e("select", first, im, e("neg", im))


def _compare(combine: str) -> Rule:
    def rule(s: _Splitter, op: Op) -> Value:
        x, y = s.pair(op.operands[0]), s.pair(op.operands[1])
        return s.emit(combine, *[s.emit(op.name, a, b) for a, b in zip(x, y, strict=True)])

    return rule


def _zeros(s: _Splitter, like: Value) -> Value:
    return s.emit("full", shape=like.type.shape, value=0, dtype=like.type.dtype)


def _convert(s: _Splitter, op: Op) -> Pair | Value:
    (x,) = op.operands
    to: DType = op.attrs["dtype"]
    if not _is_complex(x):
        re = s.map[x] if x.type.dtype is to.real else s.emit("convert", s.map[x], dtype=to.real)
        return re, _zeros(s, re)
    re, im = s.pair(x)
    if to.is_complex:
        return (re, im) if re.type.dtype is to.real else (s.emit("convert", re, dtype=to.real), s.emit("convert", im, dtype=to.real))
    if to is dt.bool_:
        return s.emit("logical_or", s.emit("convert", re, dtype=to), s.emit("convert", im, dtype=to))
    return re if re.type.dtype is to else s.emit("convert", re, dtype=to)


def _dot_general(s: _Splitter, op: Op) -> Pair:
    (a, b), (c, d) = s.pair(op.operands[0]), s.pair(op.operands[1])
    attrs = {n: _part_of(v, 0) if n in ("dtype", "accumulate") else v for n, v in op.attrs.items()}
    dot = lambda x, y: s.emit("dot_general", x, y, **attrs)
    return s.emit("sub", dot(a, c), dot(b, d)), s.emit("add", dot(a, d), dot(b, c))


_RULES: dict[str, Rule] = {
    "mul": _mul, "div": _div, "eq": _compare("logical_and"), "ne": _compare("logical_or"), "convert": _convert,
    "real": lambda s, op: s.pair(op.operands[0])[0], "imag": lambda s, op: s.pair(op.operands[0])[1],
    "complex": lambda s, op: (s.map[op.operands[0]], s.map[op.operands[1]]), "dot_general": _dot_general,
}
