"""Complex numbers as pairs of reals, before anything else is decided about a kernel.

Code generators know real elements only.  A complex buffer becomes a real one with a last axis of 2, a complex scalar two
scalars.  A product is the textbook formula, as in the interpreters; quotients and functions have been written in functions of the
parts before (``ops/complex_functions.py``).  A store keeps both parts together (``parts = 2``), so that they can be interleaved in
registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import UnsupportedError
from ..ir.core import Block, BufferType, Builder, Op, ScalarType, Value
from ..types.dtypes import DType, bool_

Parts = tuple[Value, ...]  # one scalar, or the real and the imaginary part


def has_complex(op: Op) -> bool:
    """True when a kernel touches complex buffers or computes complex scalars."""
    return any(v.type.dtype.is_complex for v in op.blocks[0].args) or any(
        r.type.dtype.is_complex for o in op.walk() for r in o.results)


def split_complex(op: Op) -> Op:
    """The same kernel on pairs of reals.

    Raises:
        UnsupportedError: an op that has no complex form here.
    """
    block = Block([_buffer(a.type) for a in op.blocks[0].args], [a.name for a in op.blocks[0].args])
    split = _Split(Builder(block))
    split.map.update({old: (new,) for old, new in zip(op.blocks[0].args, block.args, strict=True)})
    split.run(op.blocks[0])
    return Op(op.name, op.operands, (), op.attrs, (block,), op.loc)


def _buffer(t: BufferType) -> BufferType:
    return BufferType(t.dtype.real, (*t.shape, 2), t.space) if t.dtype.is_complex else t


def _dtype(v: Value) -> DType:
    return v.type.dtype  # type: ignore[no-any-return]


class _Split:
    def __init__(self, builder: Builder):
        self.b = builder
        self.map: dict[Value, Parts] = {}
        self.stores = True  # off in the second copy of a reduction

    def run(self, block: Block) -> None:
        for op in block.ops:
            rule = getattr(self, f"_{op.name}", None)
            if rule is not None:
                rule(op)
            elif any(_dtype(v).is_complex for v in (*op.operands, *op.results)):
                self.map[op.result] = self._arithmetic(op, [self.map[v] for v in op.operands])
            else:
                self._copy(op)

    def _copy(self, op: Op) -> None:
        new = self.b.op(op.name, [v for o in op.operands for v in self.map[o]], [r.type for r in op.results], op.attrs, (), op.loc)
        self.map.update({old: (fresh,) for old, fresh in zip(op.results, new.results, strict=True)})

    def nested(self, block: Block) -> Block:
        new = Block([a.type for a in block.args])
        with self.b.at(new):
            self.run(block)
        return new

    # -- memory ----------------------------------------------------------------------------------------------------------
    def _load(self, op: Op) -> None:
        if not _dtype(op.result).is_complex:
            self._copy(op)
            return
        operands = [v for o in op.operands for v in self.map[o]]
        t = ScalarType(_dtype(op.result).real)
        self.map[op.result] = tuple(
            self.b.value("load", operands, t, {**op.attrs, "index": (*op.attrs["index"], part)}, (), op.loc) for part in range(2))

    def _store(self, op: Op) -> None:
        if not self.stores:
            return
        attrs = dict(op.attrs)
        if _dtype(op.operands[1]).is_complex:
            attrs |= {"index": (*attrs["index"], 0), "parts": 2}
        self.b.op("store", [v for o in op.operands for v in self.map[o]], (), attrs, (), op.loc)

    # -- structure -------------------------------------------------------------------------------------------------------
    def _yield(self, op: Op) -> None:
        self.b.op("yield", [v for o in op.operands for v in self.map[o]])

    def _for(self, op: Op) -> None:
        self.b.op("for", (), (), op.attrs, (self.nested(op.blocks[0]),), op.loc)

    def _guard(self, op: Op) -> None:
        block = self.nested(op.blocks[0])
        types = [v.type for v in block.terminator.operands]
        attrs = dict(op.attrs)
        if len(types) == 2:
            other = complex(attrs.get("other", 0))
            attrs["other"] = (other.real, other.imag)
        new = self.b.op("guard", self.map[op.operands[0]], types, attrs, (block,), op.loc)
        self.map[op.result] = tuple(new.results)

    def _reduce(self, op: Op) -> None:
        """A complex sum is two sums; they walk together again when the passes over the loops are chosen."""
        if not _dtype(op.results[0]).is_complex:
            new = self.b.op("reduce", (), [r.type for r in op.results], op.attrs, (self.nested(op.blocks[0]),), op.loc)
            self.map.update({old: (fresh,) for old, fresh in zip(op.results, new.results, strict=True)})
            return
        if op.attrs["combine"] != "add":
            raise UnsupportedError(f"a reduction by {op.attrs['combine']!r} of complex numbers", loc=op.loc)
        parts = []
        for part in range(2):
            saved, self.stores = self.stores, self.stores and part == 0
            block = self.nested(op.blocks[0])
            self.stores = saved
            block.terminator.operands = [block.terminator.operands[part]]
            parts.append(self.b.value("reduce", (), ScalarType(_dtype(op.results[0]).real), op.attrs, (block,), op.loc))
        self.map[op.results[0]] = tuple(parts)

    # -- arithmetic ------------------------------------------------------------------------------------------------------
    def emit(self, name: str, *values: Value, dtype: DType | None = None) -> Value:
        return self.b.value(name, values, ScalarType(dtype or _dtype(values[-1])))

    def constant(self, value: Any, dtype: DType) -> Value:
        return self.b.value("constant", (), ScalarType(dtype), {"value": float(value)})

    def _constant(self, op: Op) -> None:
        if not _dtype(op.result).is_complex:
            self._copy(op)
            return
        value, real = complex(op.attrs["value"]), _dtype(op.result).real
        self.map[op.result] = (self.constant(value.real, real), self.constant(value.imag, real))

    def _arithmetic(self, op: Op, x: Sequence[Parts]) -> Parts:
        name, e = op.name, self.emit
        if name in ("add", "sub"):
            return tuple(e(name, a, b) for a, b in zip(*x, strict=True))
        if name == "neg":
            return tuple(e("neg", a) for a in x[0])
        if name == "select":
            return tuple(e("select", x[0][0], a, b) for a, b in zip(x[1], x[2], strict=True))
        if name in ("eq", "ne"):
            tests = [e(name, a, b, dtype=bool_) for a, b in zip(*x, strict=True)]
            return (e("logical_and" if name == "eq" else "logical_or", *tests, dtype=bool_),)
        if name in ("real", "imag"):
            return (x[0][name == "imag"],)
        if name == "complex":
            return (x[0][0], x[1][0])
        if name == "convert":
            return self._converted(x[0], _dtype(op.result))
        if name == "mul":
            return self._product(x[0], x[1])
        raise UnsupportedError(f"{name!r} of complex numbers", loc=op.loc,
                               hints=["take the parts with ts.real and ts.imag, and put them together with ts.complex_"])

    def _converted(self, x: Parts, dtype: DType) -> Parts:
        if not dtype.is_complex:
            if dtype is bool_:
                zero = self.constant(0.0, _dtype(x[0]))
                return (self.emit("logical_or", *(self.emit("ne", v, zero, dtype=bool_) for v in x), dtype=bool_),)
            return (self.emit("convert", x[0], dtype=dtype),)
        parts = [v if _dtype(v) is dtype.real else self.emit("convert", v, dtype=dtype.real) for v in x]
        return (parts[0], parts[1] if len(parts) == 2 else self.constant(0.0, dtype.real))

    def _product(self, a: Parts, b: Parts) -> Parts:
        e = self.emit
        return (e("sub", e("mul", a[0], b[0]), e("mul", a[1], b[1])), e("add", e("mul", a[0], b[1]), e("mul", a[1], b[0])))
