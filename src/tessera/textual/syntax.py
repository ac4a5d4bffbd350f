"""Text → statements → text.

One form an idea; what can be spelled in two ways (``→`` and ``->``, ``Σ`` and ``sum``) keeps the spelling it was written
in, so that a text with single spaces prints back exactly.

    program   := { comment | declaration | statement }          one a line
    declaration := NAME ":" "Tensor" "[" size { "," size } "]"
    statement := NAME { "," NAME } "=" ( tile | expr )
    tile      := "tile." IDENT [ expr { "," expr } ] [ ("→" | "->") list ] [ "{" IDENT "=" value { "," … } "}" ]
    expr      := product { ("+" | "-") product }
    product   := unary { ("*" | "/" | "@") unary }
    unary     := ("Σ" | "sum") [ "_" IDENT ] product | "-" unary | postfix
    postfix   := atom { "^T" | "^H" | "(" arguments ")" }
    atom      := NUMBER | NAME | list | "(" expr ")"
    list      := "[" element { "," element } "]"                element := expr | "..." [ NAME ]
    NAME      := [ "%" ] IDENT { "'" }
"""

from __future__ import annotations

import linecache
import re
from dataclasses import dataclass
from typing import TypeAlias

from ..errors import TesseraError
from ..errors.frames import Site


class TextError(TesseraError, ValueError):
    """A text is not a program; or one of its lines cannot be carried out."""

    title, code = "Textual program", "E_TEXT"


@dataclass(frozen=True)
class Name:
    text: str

    @property
    def key(self) -> str:
        """The name in bindings, without the sigil."""
        return self.text.lstrip("%")


@dataclass(frozen=True)
class Number:
    text: str


@dataclass(frozen=True)
class Rest:
    """``...`` in a list; ``... En`` names the last element."""

    last: Name | None


@dataclass(frozen=True)
class Listing:
    items: tuple[Expr | Rest, ...]


@dataclass(frozen=True)
class Group:
    body: Expr


@dataclass(frozen=True)
class Call:
    callee: Expr
    args: tuple[Expr, ...]


@dataclass(frozen=True)
class Transposed:
    body: Expr
    mark: str


@dataclass(frozen=True)
class Negative:
    body: Expr


@dataclass(frozen=True)
class Infix:
    op: str
    left: Expr
    right: Expr


@dataclass(frozen=True)
class Sum:
    """``Σ wi * fi(x)``: over the index that ends the names of its terms."""

    token: str
    index: str
    body: Expr


Expr: TypeAlias = Name | Number | Listing | Group | Call | Transposed | Negative | Infix | Sum
Value: TypeAlias = int | float | str | bool


@dataclass(frozen=True)
class TileOp:
    op: str
    operands: tuple[Expr, ...]
    arrow: str
    parts: Listing | None
    attrs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Comment:
    text: str
    line: int


@dataclass(frozen=True)
class Declaration:
    name: Name
    sizes: tuple[str, ...]
    line: int


@dataclass(frozen=True)
class Statement:
    targets: tuple[Name, ...]
    value: TileOp | Expr
    line: int


Line: TypeAlias = Comment | Declaration | Statement

_IDENT = r"[^\W\d]\w*"
_TOKEN = re.compile(rf"(?P<tile>tile\.{_IDENT})|(?P<sum>Σ(?:_{_IDENT})?|sum(?:_{_IDENT})?(?=\s+[\w%]))|(?P<name>%?{_IDENT}'*|%\d+'*)"
                    r"|(?P<number>(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|(?P<string>\"[^\"]*\")|(?P<mark>\.\.\.|\^[TH]\b|->|→|[-+*/@=:,()\[\]{}])")


class _Reader:
    """One line's tokens, read once from left to right."""

    def __init__(self, text: str, line: int, file: str):
        self.text, self.line, self.file = text, line, file
        self.tokens: list[tuple[str, str, int]] = []
        self.at = 0
        position = 0
        while position < len(text):
            if text[position].isspace():
                position += 1
                continue
            m = _TOKEN.match(text, position)
            if m is None:
                raise self.error(f"{text[position]!r} cannot stand here", position, position + 1)
            self.tokens.append((str(m.lastgroup), m.group(), position))
            position = m.end()

    def error(self, message: str, start: int, end: int) -> TextError:
        made = TextError(message, sentence="The text is read line by line: declarations `x: Tensor[B, D]`, statements `name = …`.",
                         hints=["See docs/textual.md for the grammar."])
        span = (self.line, self.line, len(self.text[:start].encode()), len(self.text[:end].encode()))
        made.frames = (Site(self.file, self.line, "program", span), *made.frames)
        return made

    def expected(self, what: str) -> TextError:
        if self.at == len(self.tokens):
            return self.error(f"Expected {what}, the line ends", max(0, len(self.text) - 1), len(self.text))
        _, text, start = self.tokens[self.at]
        return self.error(f"Expected {what}, found {text!r}", start, start + len(text))

    def peek(self, ahead: int = 0) -> tuple[str, str]:
        return self.tokens[self.at + ahead][:2] if self.at + ahead < len(self.tokens) else ("end", "")

    def accept(self, *marks: str) -> str:
        kind, text = self.peek()
        if text in marks and kind != "string":
            self.at += 1
            return text
        return ""

    def need(self, mark: str) -> None:
        if not self.accept(mark):
            raise self.expected(f"{mark!r}")

    def kind(self, kind: str, what: str) -> str:
        found, text = self.peek()
        if found != kind:
            raise self.expected(what)
        self.at += 1
        return text

    # -- lines -----------------------------------------------------------------------------------------------------
    def whole(self) -> Declaration | Statement:
        first = Name(self.kind("name", "a name"))
        made = self.declaration(first) if self.accept(":") else self.statement(first)
        if self.at < len(self.tokens):
            raise self.expected("the end of the line")
        return made

    def declaration(self, name: Name) -> Declaration:
        if self.peek() != ("name", "Tensor"):
            raise self.expected("'Tensor[…]'")
        self.at += 1
        self.need("[")
        sizes: list[str] = []
        while not self.accept("]"):
            if sizes:
                self.need(",")
            kind, text = self.peek()
            if kind not in ("name", "number") or text.startswith("%") or not (kind == "name" or text.isdigit()):
                raise self.expected("a size: a name or a whole number")
            self.at += 1
            sizes.append(text)
        return Declaration(name, tuple(sizes), self.line)

    def statement(self, first: Name) -> Statement:
        targets = [first]
        while self.accept(","):
            targets.append(Name(self.kind("name", "a name")))
        self.need("=")
        value: TileOp | Expr = self.tile() if self.peek()[0] == "tile" else self.expression()
        return Statement(tuple(targets), value, self.line)

    def tile(self) -> TileOp:
        op = self.kind("tile", "a tile op")[len("tile."):]
        operands: list[Expr] = []
        while self.peek()[0] != "end" and self.peek()[1] not in ("{", "→", "->"):
            if operands:
                self.need(",")
            operands.append(self.expression())
        arrow = self.accept("→", "->")
        parts = self.listing() if arrow else None
        attrs: list[tuple[str, str]] = []
        if self.accept("{"):
            while not self.accept("}"):
                if attrs:
                    self.need(",")
                attrs.append((self.kind("name", "an attribute's name"), self.attribute()))
        return TileOp(op, tuple(operands), arrow, parts, tuple(attrs))

    def attribute(self) -> str:
        self.need("=")
        sign = self.accept("-")
        kind, text = self.peek()
        if kind not in ("number", "string", "name") or (sign and kind != "number") or (kind == "name" and text not in ("true", "false")):
            raise self.expected('a number, "text", true or false')
        self.at += 1
        return sign + text

    # -- expressions -----------------------------------------------------------------------------------------------
    def expression(self) -> Expr:
        left = self.product()
        while op := self.accept("+", "-"):
            left = Infix(op, left, self.product())
        return left

    def product(self) -> Expr:
        left = self.unary()
        while op := self.accept("*", "/", "@"):
            left = Infix(op, left, self.unary())
        return left

    def unary(self) -> Expr:
        if self.peek()[0] == "sum":
            token, _, index = self.kind("sum", "Σ").partition("_")
            return Sum(token, index, self.product())
        return Negative(self.unary()) if self.accept("-") else self.postfix()

    def postfix(self) -> Expr:
        made = self.atom()
        while True:
            if mark := self.accept("^T", "^H"):
                made = Transposed(made, mark)
            elif self.accept("("):
                made = Call(made, self.arguments())
            else:
                return made

    def arguments(self) -> tuple[Expr, ...]:
        args: list[Expr] = []
        while not self.accept(")"):
            if args:
                self.need(",")
            args.append(self.expression())
        return tuple(args)

    def atom(self) -> Expr:
        kind, text = self.peek()
        if kind in ("name", "number"):
            self.at += 1
            return Name(text) if kind == "name" else Number(text)
        if self.accept("("):
            body = self.expression()
            self.need(")")
            return Group(body)
        if text == "[":
            return self.listing()
        raise self.expected("a value")

    def listing(self) -> Listing:
        self.need("[")
        items: list[Expr | Rest] = []
        while not self.accept("]"):
            if items:
                self.need(",")
            if self.accept("..."):
                items.append(Rest(Name(self.kind("name", "a name")) if self.peek()[0] == "name" else None))
            else:
                items.append(self.expression())
        return Listing(tuple(items))


def parse_lines(text: str, file: str) -> tuple[Line, ...]:
    """The lines of a program; ``file`` is what errors call it.

    Raises:
        TextError: with the line, its number and a mark under the token that does not fit.
    """
    rows = text.strip("\n").split("\n") if text.strip() else []
    linecache.cache[file] = (len(text), None, [row + "\n" for row in rows], file)
    made: list[Line] = []
    for number, row in enumerate(rows, 1):
        if not row.strip() or row.lstrip().startswith(("#", "//")):
            made.append(Comment(row.strip(), number))
        else:
            made.append(_Reader(row.rstrip(), number, file).whole())
    return tuple(made)


# -- printing ----------------------------------------------------------------------------------------------------------
def print_line(line: Line) -> str:
    if isinstance(line, Comment):
        return line.text
    if isinstance(line, Declaration):
        return f"{line.name.text}: Tensor[{', '.join(line.sizes)}]"
    value = _print_tile(line.value) if isinstance(line.value, TileOp) else print_expr(line.value)
    return f"{', '.join(t.text for t in line.targets)} = {value}"


def _print_tile(t: TileOp) -> str:
    parts = [f"tile.{t.op}"]
    if t.operands:
        parts.append(", ".join(map(print_expr, t.operands)))
    if t.parts is not None:
        parts += [t.arrow, print_expr(t.parts)]
    if t.attrs:
        parts.append("{" + ", ".join(f"{k}={v}" for k, v in t.attrs) + "}")
    return " ".join(parts)


def print_expr(e: Expr | Rest) -> str:
    match e:
        case Name(text) | Number(text):
            return text
        case Rest(last):
            return "..." if last is None else f"... {last.text}"
        case Listing(items):
            # The last name belongs to the dots: `[E1, E2, ... En]`.
            return "[" + ", ".join(map(print_expr, items)) + "]"
        case Group(body):
            return f"({print_expr(body)})"
        case Call(callee, args):
            return f"{print_expr(callee)}({', '.join(map(print_expr, args))})"
        case Transposed(body, mark):
            return print_expr(body) + mark
        case Negative(body):
            return "-" + print_expr(body)
        case Infix(op, left, right):
            return f"{print_expr(left)} {op} {print_expr(right)}"
        case Sum(token, index, body):
            return f"{token}{'_' + index if index else ''} {print_expr(body)}"
