"""One text form for all levels: what is printed parses back to the same function, locations aside.

    graph @mlp(%x: f32[B, 768], %w: f32[768, 3072]) with {effects = ()} {
      %0 = dot(%x, %w) {accumulate = f32} : f32[B, 3072]
      %1 = gelu(%0) : f32[B, 3072]
      return(%1)
    }

Grammar::

    function := LEVEL "@" name "(" params ")" ["with" attrs] "{" op* "}"
    params   := ["%" name ":" type ("," "%" name ":" type)*]
    op       := [results "="] name "(" ["%" name ("," "%" name)*] ")" attrs? block* [":" type ("," type)*]
    block    := "do" "(" params ")" "{" op* "}"
    attrs    := "{" key "=" value ("," key "=" value)* "}"
    value    := int | float | "string" | true | false | none | dtype | size | "(" value,* ")" | dense
    size     := "<" expression over names ">"         dense := "dense<" dtype "[" sizes "]" ":" hex bytes ">"
    type     := dtype "[" sizes "]" | dtype | "buf<" … ">" | "tile<" … ">"

A function that calls others is printed after them; all stand in one text.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..types.dims import Dim, DimLike, format_dim, parse_dim
from ..types.dtypes import ALIASES, DType, as_dtype
from .core import Block, BufferType, Function, Op, ScalarType, TensorType, TileType, Type, Value


# -- printing --------------------------------------------------------------------------------------------------------
def format_attr(v: Any) -> str:
    if v is None:
        return "none"
    if isinstance(v, bool | np.bool_):
        return "true" if v else "false"
    if isinstance(v, int | np.integer):
        return str(int(v))
    if isinstance(v, float | np.floating):
        return _format_float(float(v))
    if isinstance(v, complex | np.complexfloating):
        return f"complex({_format_float(float(v.real))}, {_format_float(float(v.imag))})"
    if isinstance(v, str):
        escaped = v.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'
    if isinstance(v, DType):
        return v.name
    if isinstance(v, Dim):
        return f"<{format_dim(v)}>"
    if isinstance(v, tuple | list):
        inner = ", ".join(format_attr(x) for x in v)
        return f"({inner},)" if len(v) == 1 else f"({inner})"
    if isinstance(v, np.ndarray):
        shape = ", ".join(map(str, v.shape))
        return f"dense<{as_dtype(v.dtype)}[{shape}]: {np.ascontiguousarray(v).tobytes().hex()}>"
    if isinstance(v, Type):
        return f"type {v}"
    raise TypeError(f"an attribute cannot be a {type(v).__name__}: {v!r}")


def _format_float(x: float) -> str:
    if math.isnan(x):
        return "nan"
    if math.isinf(x):
        return "inf" if x > 0 else "-inf"
    s = repr(x)
    return s if any(c in s for c in ".en") else s + ".0"


class _Names:
    """SSA names: a value's own name where it is free, else numbers in order."""

    def __init__(self) -> None:
        self.of: dict[Value, str] = {}
        self.taken: set[str] = set()
        self.next = 0

    def define(self, v: Value) -> str:
        n = v.name if v.name and v.name not in self.taken and _NAME.fullmatch(v.name) else None
        if n is None:
            while str(self.next) in self.taken:
                self.next += 1
            n = str(self.next)
            self.next += 1
        self.taken.add(n)
        self.of[v] = n
        return f"%{n}"

    def use(self, v: Value) -> str:
        return f"%{self.of[v]}" if v in self.of else f"%<undefined {v!r}>"


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.']*")


def print_function(fn: Function, locations: bool = False) -> str:
    """The text of ``fn`` (preceded by the functions it calls); with ``locations``, each op's source line follows it."""
    parts = [print_function(f, locations) for f in fn.functions.values()]
    names = _Names()
    params = ", ".join(f"{names.define(a)}: {a.type}" for a in fn.args)
    head = f"{fn.level} @{fn.name}({params}){' with' + _attrs(fn.attrs) if fn.attrs else ''} {{"
    lines = [head, *_print_ops(fn.body, names, 1, locations), "}"]
    return "\n".join([*parts, "\n".join(lines)])


def _attrs(attrs: dict[str, Any]) -> str:
    if not attrs:
        return ""
    return " {" + ", ".join(f"{k} = {format_attr(v)}" for k, v in attrs.items()) + "}"


def _print_ops(block: Block, names: _Names, depth: int, locations: bool) -> Iterable[str]:
    pad = "  " * depth
    for op in block.ops:
        args = ", ".join(names.use(v) for v in op.operands)
        results = ", ".join(names.define(r) for r in op.results)
        opening = f"{op.name}({args}){_attrs(op.attrs)}"
        body: list[str] = []
        for b in op.blocks:
            params = ", ".join(f"{names.define(a)}: {a.type}" for a in b.args)
            inner = list(_print_ops(b, names, depth + 1, locations))
            head = f" do({params}) {{"
            if body:
                body[-1] += head
            else:
                opening += head
            body += [*inner, f"{pad}}}"]
        types = " : " + ", ".join(str(r.type) for r in op.results) if op.results else ""
        opening = f"{pad}{results} = {opening}" if results else f"{pad}{opening}"
        where = f"  // {op.loc}" if locations and op.loc else ""
        if body:
            yield opening
            yield from body[:-1]
            yield f"{body[-1]}{types}{where}"
        else:
            yield f"{opening}{types}{where}"


# -- parsing ---------------------------------------------------------------------------------------------------------
class ParseError(ValueError):
    """The text is not IR.  ``line`` and ``column`` are 1-based."""

    def __init__(self, message: str, text: str, pos: int):
        self.line = text.count("\n", 0, pos) + 1
        self.column = pos - (text.rfind("\n", 0, pos) + 1) + 1
        src = text.splitlines()[self.line - 1] if text.splitlines() else ""
        super().__init__(f"{message} at line {self.line}, column {self.column}\n    {src}\n    {' ' * (self.column - 1)}^")


_WS = re.compile(r"(?:\s+|//[^\n]*)*")
_IDENT = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_VALUE = re.compile(r"%([A-Za-z0-9_.']+)")
_NUMBER = re.compile(r"-?(?:inf\b|nan\b|\d+\.?\d*(?:e[-+]?\d+)?)")
_DO = re.compile(r"do\s*\(")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')


class _Parser:
    def __init__(self, text: str):
        self.text, self.pos = text, 0
        self.values: dict[str, Value] = {}

    # tokens
    def skip(self) -> None:
        m = _WS.match(self.text, self.pos)
        if m:
            self.pos = m.end()

    def fail(self, message: str) -> ParseError:
        return ParseError(message, self.text, self.pos)

    def peek(self, s: str) -> bool:
        self.skip()
        return self.text.startswith(s, self.pos)

    def accept(self, s: str) -> bool:
        if self.peek(s):
            self.pos += len(s)
            return True
        return False

    def expect(self, s: str) -> None:
        if not self.accept(s):
            raise self.fail(f"expected {s!r}")

    def match(self, pattern: re.Pattern[str], what: str) -> re.Match[str]:
        self.skip()
        m = pattern.match(self.text, self.pos)
        if not m:
            raise self.fail(f"expected {what}")
        self.pos = m.end()
        return m

    def ident(self, what: str = "a name") -> str:
        return self.match(_IDENT, what).group()

    def comma_list(self, close: str, item: Callable[[], Any]) -> list[Any]:
        out: list[Any] = []
        while not self.accept(close):
            out.append(item())
            if not self.accept(","):
                self.expect(close)
                break
        return out

    # sizes, types, attributes
    def size(self, stops: str) -> DimLike:
        self.skip()
        start, depth = self.pos, 0
        while self.pos < len(self.text):
            c = self.text[self.pos]
            if c == "(":
                depth += 1
            elif c == ")" and depth:
                depth -= 1
            elif depth == 0 and c in stops:
                break
            self.pos += 1
        try:
            return parse_dim(self.text[start:self.pos])
        except ValueError as e:
            self.pos = start
            raise self.fail(str(e)) from None

    def shape(self) -> tuple[DimLike, ...]:
        self.expect("[")
        return tuple(self.comma_list("]", lambda: self.size(",]")))

    def dtype(self) -> DType:
        n = self.ident("a dtype")
        if n not in ALIASES:
            self.pos -= len(n)
            raise self.fail(f"no dtype is called {n!r}")
        return ALIASES[n]

    def type(self) -> Type:
        if self.accept("buf<"):
            d, s = self.dtype(), self.shape()
            space = self.ident() if self.accept(",") else "global"
            self.expect(">")
            return BufferType(d, s, space)
        if self.accept("tile<"):
            d, s = self.dtype(), self.shape()
            layout = self.ident() if self.accept(",") else None
            self.expect(">")
            if not all(isinstance(x, int) for x in s):
                raise self.fail("a tile's extents are static integers")
            return TileType(d, s, layout)  # type: ignore[arg-type]
        d = self.dtype()
        if self.text.startswith("[", self.pos):
            return TensorType(d, self.shape())
        return ScalarType(d)

    def attrs(self) -> dict[str, Any]:
        out: dict[str, Any] = {}
        if not self.accept("{"):
            return out

        def item() -> None:
            key = self.ident("an attribute name")
            self.expect("=")
            out[key] = self.attr_value()

        self.comma_list("}", item)
        return out

    def attr_value(self) -> Any:
        self.skip()
        c = self.text[self.pos:self.pos + 1]
        if c == '"':
            s = self.match(_STRING, "a string").group(1)
            return re.sub(r"\\(.)", lambda m: "\n" if m.group(1) == "n" else m.group(1), s)
        if c == "(":
            self.pos += 1
            return tuple(self.comma_list(")", self.attr_value))
        if c == "<":
            self.pos += 1
            d = self.size(">")
            self.expect(">")
            return d
        if self.accept("dense<"):
            dtype, shape = self.dtype(), self.shape()
            self.expect(":")
            data = bytes.fromhex(self.match(re.compile(r"[0-9a-f]*"), "hex bytes").group())
            self.expect(">")
            return np.frombuffer(data, dtype.np).reshape([int(n) for n in shape])
        if self.accept("complex("):
            re_, im = self.comma_list(")", self.attr_value)
            return complex(re_, im)
        if self.accept("type "):
            return self.type()
        m = _NUMBER.match(self.text, self.pos)
        if m and (c.isdigit() or c == "-" or m.group() in ("inf", "nan")):
            self.pos = m.end()
            t = m.group()
            return float(t) if any(x in t for x in ".en") else int(t)
        word = self.ident("a value")
        words = {"true": True, "false": False, "none": None}
        if word in words:
            return words[word]
        if word in ALIASES:
            return ALIASES[word]
        self.pos -= len(word)
        raise self.fail(f"{word!r} is not an attribute value")

    # structure
    def param(self) -> tuple[str, Type]:
        n = self.match(_VALUE, "a value such as %x").group(1)
        self.expect(":")
        return n, self.type()

    def define(self, n: str, v: Value, at: int | None = None) -> None:
        if n in self.values:
            self.pos = self.pos if at is None else at
            raise self.fail(f"%{n} is defined twice")
        self.values[n] = v
        if not n[0].isdigit():
            v.name = n

    def use(self) -> Value:
        n = self.match(_VALUE, "a value such as %x").group(1)
        if n not in self.values:
            self.pos -= len(n) + 1
            raise self.fail(f"%{n} is not defined")
        return self.values[n]

    def block(self) -> Block:
        self.expect("(")
        params = self.comma_list(")", self.param)
        b = Block([t for _, t in params])
        for (n, _), a in zip(params, b.args, strict=True):
            self.define(n, a)
        self.expect("{")
        while not self.accept("}"):
            b.ops.append(self.op())
        return b

    def op(self) -> Op:
        results: list[str] = []
        self.skip()
        first = self.pos
        if self.peek("%"):
            results.append(self.match(_VALUE, "a value").group(1))
            while self.accept(","):
                results.append(self.match(_VALUE, "a value").group(1))
            self.expect("=")
        start = self.pos
        opname = self.ident("an op")
        self.expect("(")
        operands = self.comma_list(")", self.use)
        attrs = self.attrs()
        blocks = []
        while self.peek("do") and _DO.match(self.text, self.pos):
            self.pos += 2
            blocks.append(self.block())
        types: list[Type] = []
        if self.accept(":"):
            types.append(self.type())
            while self.accept(","):
                types.append(self.type())
        if len(types) != len(results):
            self.pos = start
            raise self.fail(f"{opname} names {len(results)} results but gives {len(types)} types")
        op = Op(opname, operands, types, attrs, blocks)
        for n, r in zip(results, op.results, strict=True):
            self.define(n, r, first)
        return op

    def function(self) -> Function:
        level = self.ident("graph, sched or tile")
        if level not in ("graph", "sched", "tile"):
            raise self.fail(f"{level!r} is not a level; the levels are graph, sched and tile")
        self.expect("@")
        fname = self.ident()
        self.values = {}
        self.expect("(")
        params = self.comma_list(")", self.param)
        fn = Function(fname, level, Block([t for _, t in params]))
        for (n, _), a in zip(params, fn.args, strict=True):
            self.define(n, a)
        if self.accept("with"):
            fn.attrs = self.attrs()
        self.expect("{")
        while not self.accept("}"):
            fn.body.ops.append(self.op())
        return fn


def parse_functions(text: str) -> list[Function]:
    """Every function in ``text``, in order.

    Raises:
        ParseError: with line, column and the offending line.
    """
    p = _Parser(text)
    out = []
    p.skip()
    while p.pos < len(text):
        out.append(p.function())
        p.skip()
    return out


def parse_function(text: str) -> Function:
    """The last function of ``text``; the ones before it become its ``functions``.

    Raises:
        ParseError: the text is not IR, or holds no function.
    """
    fns = parse_functions(text)
    if not fns:
        raise ParseError("expected a function", text, 0)
    main = fns[-1]
    main.functions = {f.name: f for f in fns[:-1]}
    return main


