"""The structural hash of a function: equal for equal programs, whatever their values are called and wherever they stand."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from ..ir.core import Block, Function, Type, Value
from ..ir.text import format_attr


class _Writer:
    """Writes a function as a line an op, values as numbers."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.numbers: dict[Value, int] = {}
        self.types: dict[Type, str] = {}
        self.attributes: dict[Any, str] = {}
        self.bytes = hashlib.blake2b(digest_size=16)

    def type(self, t: Type) -> str:
        got = self.types.get(t)
        if got is None:
            got = self.types[t] = str(t)
        return got

    def attribute(self, v: Any) -> str:
        if isinstance(v, np.ndarray):
            self.bytes.update(np.ascontiguousarray(v).tobytes())
            return f"dense {v.dtype}{v.shape}"
        if isinstance(v, tuple | list):
            return "(" + ",".join([self.attribute(x) for x in v]) + ")"
        if isinstance(v, int | str):
            return repr(v)
        return format_attr(v)

    def define(self, v: Value) -> str:
        n = self.numbers[v] = len(self.numbers)
        return f"%{n}:{self.type(v.type)}"

    def block(self, block: Block) -> None:
        number = self.numbers
        self.lines.append("do " + " ".join([self.define(a) for a in block.args]))
        for op in block.ops:
            attrs = "".join([f" {k}={self.attribute(op.attrs[k])}" for k in sorted(op.attrs)]) if op.attrs else ""
            operands = " ".join([f"%{number[v]}" if v in number else "%?" for v in op.operands])
            self.lines.append(f"{op.name} {operands}{attrs}")
            for b in op.blocks:
                self.block(b)
            if op.results:
                self.lines.append(" ".join([self.define(r) for r in op.results]))
        self.lines.append("end")


def graph_hash(fn: Function) -> str:
    """A hexadecimal digest of ``fn`` and the functions it calls: ops, types, attributes, constants and wiring.

    Names of functions' values, the function's own name and source locations do not enter.
    """
    w = _Writer()
    for name in sorted(fn.functions):
        w.lines.append(f"function {name} {graph_hash(fn.functions[name])}")
    w.lines.append(fn.level + "".join([f" {k}={w.attribute(fn.attrs[k])}" for k in sorted(fn.attrs)]))
    w.block(fn.body)
    w.bytes.update("\n".join(w.lines).encode())
    return w.bytes.hexdigest()
