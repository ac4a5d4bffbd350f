"""A small expression language over Tile IR, in which the vector maths is written.

An :class:`E` is a scalar or tile value with Python's operators; :class:`V` makes constants and the ops that have no
operator.  Everything it builds is basic: bits do not depend on the target.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Union

from ..ir.core import Block, Builder, Loc, ScalarType, TileType, Type, Value
from ..types.dtypes import DType, bool_, f32, f64, int32, int64

Number = Union["E", float, int, bool]


class E:
    """One value under construction."""

    __slots__ = ("dtype", "v", "value")

    def __init__(self, v: V, value: Value, dtype: DType):
        self.v, self.value, self.dtype = v, value, dtype

    def _two(self, name: str, other: Number, swap: bool = False, to: DType | None = None) -> E:
        b = self.v.lift(other, self.dtype)
        return self.v.emit(name, (b, self) if swap else (self, b), to or self.dtype)

    def __add__(self, o: Number) -> E:
        return self._two("add", o)

    def __radd__(self, o: Number) -> E:
        return self._two("add", o)

    def __sub__(self, o: Number) -> E:
        return self._two("sub", o)

    def __rsub__(self, o: Number) -> E:
        return self._two("sub", o, True)

    def __mul__(self, o: Number) -> E:
        return self._two("mul", o)

    def __rmul__(self, o: Number) -> E:
        return self._two("mul", o)

    def __truediv__(self, o: Number) -> E:
        return self._two("div", o)

    def __rtruediv__(self, o: Number) -> E:
        return self._two("div", o, True)

    def __neg__(self) -> E:
        return self.v.emit("neg", (self,), self.dtype)

    def __lt__(self, o: Number) -> E:
        return self._two("lt", o, to=bool_)

    def __le__(self, o: Number) -> E:
        return self._two("le", o, to=bool_)

    def __gt__(self, o: Number) -> E:
        return self._two("gt", o, to=bool_)

    def __ge__(self, o: Number) -> E:
        return self._two("ge", o, to=bool_)

    def eq(self, o: Number) -> E:
        return self._two("eq", o, to=bool_)

    def ne(self, o: Number) -> E:
        return self._two("ne", o, to=bool_)

    def __and__(self, o: Number) -> E:
        return self._two("bitwise_and", o)

    def __or__(self, o: Number) -> E:
        return self._two("bitwise_or", o)

    def __xor__(self, o: Number) -> E:
        return self._two("bitwise_xor", o)

    def __invert__(self) -> E:
        return self.v.emit("bitwise_not", (self,), self.dtype)

    def __lshift__(self, o: Number) -> E:
        return self._two("shift_left", o)

    def __rshift__(self, o: Number) -> E:
        return self._two("shift_right", o)

    def to(self, dtype: DType) -> E:
        return self if dtype is self.dtype else self.v.emit("convert", (self,), dtype)

    @property
    def bits(self) -> E:
        """The bits of a float as an integer of its width."""
        return self.v.emit("bitcast", (self,), int32 if self.dtype is f32 else int64)

    @property
    def as_float(self) -> E:
        """The float with these bits."""
        return self.v.emit("bitcast", (self,), f32 if self.dtype is int32 else f64)


class V:
    """Where expressions are built: an insertion point and a shape (None for scalars)."""

    def __init__(self, builder: Builder, shape: tuple[int, ...] | None, layout: str | None = None, loc: Loc | None = None):
        self.builder, self.shape, self.layout, self.loc = builder, shape, layout, loc
        self._constants: dict[tuple[Any, ...], Value] = {}

    def type(self, dtype: DType) -> Type:
        return ScalarType(dtype) if self.shape is None else TileType(dtype, self.shape, self.layout)

    def emit(self, name: str, args: Sequence[E], dtype: DType) -> E:
        return E(self, self.builder.value(name, [a.value for a in args], self.type(dtype), loc=self.loc), dtype)

    def const(self, value: float | int | bool, dtype: DType) -> E:
        key = (id(self.builder.block), repr(value), dtype)
        made = self._constants.get(key)
        if made is None:
            op = "constant" if self.shape is None else "full"
            plain = float(value) if dtype.is_float else bool(value) if dtype is bool_ else int(value)
            made = self._constants[key] = self.builder.value(op, (), self.type(dtype), {"value": plain}, loc=self.loc)
        return E(self, made, dtype)

    def lift(self, x: Number, dtype: DType) -> E:
        return x if isinstance(x, E) else self.const(x, dtype)

    # -- ops without an operator -----------------------------------------------------------------------------------------
    def fma(self, a: E, b: Number, c: Number) -> E:
        return self.emit("fma", (a, self.lift(b, a.dtype), self.lift(c, a.dtype)), a.dtype)

    def select(self, p: E, a: Number, b: Number) -> E:
        dtype = a.dtype if isinstance(a, E) else b.dtype if isinstance(b, E) else f32
        return self.emit("select", (p, self.lift(a, dtype), self.lift(b, dtype)), dtype)

    def one(self, name: str, a: E) -> E:
        return self.emit(name, (a,), a.dtype)

    def abs(self, a: E) -> E:
        return self.one("abs", a)

    def sqrt(self, a: E) -> E:
        return self.one("sqrt", a)

    def round(self, a: E) -> E:
        return self.one("round", a)

    def floor(self, a: E) -> E:
        return self.one("floor", a)

    def copysign(self, a: Number, b: E) -> E:
        return self.emit("copysign", (self.lift(a, b.dtype), b), b.dtype)

    def isnan(self, a: E) -> E:
        return self.emit("isnan", (a,), bool_)

    def at_most(self, a: E, limit: Number) -> E:
        """``min(a, limit)`` for a limit that is a number; NaN stays."""
        bound = self.lift(limit, a.dtype)
        return self.select(bound < a, bound, a)

    def at_least(self, a: E, limit: Number) -> E:
        bound = self.lift(limit, a.dtype)
        return self.select(bound > a, bound, a)

    def poly(self, x: E, coefficients: Sequence[float]) -> E:
        """Horner's rule, lowest coefficient first."""
        out = self.const(coefficients[-1], x.dtype)
        for c in reversed(coefficients[:-1]):
            out = self.fma(x, out, c)
        return out

    # -- control flow ----------------------------------------------------------------------------------------------------
    def any(self, p: E) -> Value:
        """A bool scalar: does ``p`` hold in any lane?"""
        value, shape = p.value, self.shape or ()
        while shape:
            shape = shape[:-1]
            t: Type = TileType(bool_, shape) if shape else ScalarType(bool_)
            value = self.builder.value("reduce", (value,), t, {"axis": len(shape), "combine": "or"}, loc=self.loc)
        return value

    def where_any(self, p: E, rare: Callable[[], Sequence[E]], usual: Sequence[E]) -> list[E]:
        """``rare()`` in lanes where ``p`` holds, else ``usual``; ``rare`` is only computed when some lane needs it."""
        yes, no = Block(), Block()
        with self.builder.at(yes):
            made = [self.select(p, r, u) for r, u in zip(rare(), usual, strict=True)]
            self.builder.op("yield", [m.value for m in made])
        with self.builder.at(no):
            self.builder.op("yield", [u.value for u in usual])
        op = self.builder.op("if", (self.any(p),), [u.value.type for u in usual], blocks=(yes, no), loc=self.loc)
        return [E(self, r, u.dtype) for r, u in zip(op.results, usual, strict=True)]

    def repeat_while(self, state: Sequence[E], test: Callable[[Sequence[E]], E],
                     step: Callable[[Sequence[E]], Sequence[E]]) -> list[E]:
        """``while any(test(state)): state = step(state)``, lane by lane (``step`` keeps lanes that are done)."""
        types = [s.value.type for s in state]
        head, body = Block(types), Block(types)
        dtypes = [s.dtype for s in state]
        with self.builder.at(head):
            inside = [E(self, a, d) for a, d in zip(head.args, dtypes, strict=True)]
            self.builder.op("yield", [self.any(test(inside)), *head.args])
        with self.builder.at(body):
            inside = [E(self, a, d) for a, d in zip(body.args, dtypes, strict=True)]
            self.builder.op("yield", [s.value for s in step(inside)])
        op = self.builder.op("while", [s.value for s in state], types, blocks=(head, body), loc=self.loc)
        return [E(self, r, d) for r, d in zip(op.results, dtypes, strict=True)]
