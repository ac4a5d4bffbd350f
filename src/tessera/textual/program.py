"""Programs: parsed text with bindings, carried out by public ops, at once or compiled."""

from __future__ import annotations

import inspect
import itertools
import linecache
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import tessera as ts

from ..errors import suggest
from ..errors.frames import Site
from . import syntax as sx
from .tile_ops import OPS

_numbers = itertools.count(1)


class Program:
    """A textual program; ``str(program)`` prints it back.

    Attributes:
        lines: comments, declarations and statements, in order.
        inputs: the names that the text reads and does not make, in order of first use (declared ones first).
        outputs: the names that statements make, in order.
    """

    def __init__(self, lines: Sequence[sx.Line], file: str):
        self.lines, self.file = tuple(lines), file
        self.statements = [s for s in self.lines if isinstance(s, sx.Statement)]
        self.declared = {d.name.key: d for d in self.lines if isinstance(d, sx.Declaration)}
        self.outputs = tuple(dict.fromkeys(t.key for s in self.statements for t in s.targets))
        self.inputs = tuple(self._free())

    def __str__(self) -> str:
        return "\n".join(map(sx.print_line, self.lines))

    def __repr__(self) -> str:
        return f"<textual program: ({', '.join(self.inputs)}) → ({', '.join(self.outputs)})>"

    def _free(self) -> list[str]:
        seen = dict.fromkeys(self.declared)
        made: set[str] = set()
        for s in self.statements:
            for name in _names(s.value, made):
                if name.key not in made:
                    seen[name.key] = None
            made.update(t.key for t in s.targets)
            if isinstance(s.value, sx.TileOp) and s.value.parts:
                made.update(i.key for i in s.value.parts.items if isinstance(i, sx.Name))
        return list(seen)

    def _implied(self, bound: Mapping[str, Any]) -> list[str]:
        """``tile.ppo`` of a function reads the actions that were taken."""
        ops = [s.value for s in self.statements if isinstance(s.value, sx.TileOp) and s.value.op == "ppo" and s.value.operands]
        first = [t.operands[0] for t in ops]
        return ["actions"] if any(isinstance(n, sx.Name) and callable(bound.get(n.key)) for n in first) else []

    def run(self, bindings: Mapping[str, Any] | None = None, /, **named: Any) -> dict[str, Any]:
        """Carry the statements out; every name that they make, by name (without ``%``).

        Args:
            bindings, named: tensors, functions (models, experts), and lists of them; a dict holds names with primes.

        Raises:
            TextError: a name is not bound, an op or attribute does not exist, a declared shape does not hold.
            Errors of the ops (``ShapeError`` …) pass unchanged.
        """
        env = {k.lstrip("%"): v if callable(v) or isinstance(v, (list, tuple)) else ts.asarray(v)
               for k, v in {**(bindings or {}), **named}.items()}
        _check_shapes(self, env)
        made: dict[str, Any] = {}
        for s in self.statements:
            value = _Line(self, s, env).value()
            values = [value] if len(s.targets) == 1 else list(value) if isinstance(value, (tuple, list)) else [value]
            if len(values) != len(s.targets):
                raise _error(self, s.line, f"{len(s.targets)} names for {len(values)} results")
            made.update(zip((t.key for t in s.targets), values, strict=True))
            env.update(made)
        return made

    def jit(self, outputs: str | Sequence[str] | None = None, **bound: Any) -> Any:
        """A compiled function of the inputs that ``bound`` does not name, in the order of ``inputs``.

        Args:
            outputs: a name, or several; default: what the last statement makes.
            bound: functions, lists, and tensors that stay as they are.

        Returns:
            a ``ts.jit`` function (``graph_ir``, ``tile_ir`` … after the first call); a tensor, or a tuple where ``outputs`` is several.
        """
        if not self.statements:
            raise _error(self, 1, "A program without statements has no result")
        last = tuple(t.key for t in self.statements[-1].targets)
        wanted: str | tuple[str, ...] = (last[0] if len(last) == 1 else last) if outputs is None else \
            outputs if isinstance(outputs, str) else tuple(outputs)
        for name in (wanted,) if isinstance(wanted, str) else wanted:
            if name not in self.outputs:
                raise _error(self, self.statements[-1].line, f"No statement makes {name!r}{suggest(name, self.outputs)}")
        free = [n for n in [*self.inputs, *self._implied(bound)] if n not in bound]

        def program(*tensors: Any) -> Any:
            made = self.run({**bound, **dict(zip(free, tensors, strict=True))})
            return made[wanted] if isinstance(wanted, str) else tuple(made[n] for n in wanted)

        names = [n.replace("'", "_") for n in free]
        kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
        program.__signature__ = inspect.Signature([inspect.Parameter(n, kind) for n in names])  # type: ignore[attr-defined]
        program.__name__ = "program"
        return ts.jit(program)


def parse(text: str) -> Program:
    """Read a program: declarations ``x: Tensor[B, D]`` and statements, one a line (docs/textual.md has the grammar).

    Raises:
        TextError: with the line and a mark under what does not fit.
    """
    file = f"<textual {next(_numbers)}>"
    return Program(sx.parse_lines(text, file), file)


def _names(e: Any, known: Collection[str] = ()) -> list[sx.Name]:
    """The names an expression reads; families (``wi`` under Σ, ``... En``) by their stems."""
    match e:
        case sx.Name():
            return [e]
        case sx.Listing(items):
            rest = next((i for i in items if isinstance(i, sx.Rest) and i.last), None)
            if rest is not None and rest.last is not None:
                return [sx.Name(rest.last.key[:-1])]
            return [n for i in items for n in _names(i, known)]
        case sx.Group(body) | sx.Negative(body) | sx.Transposed(body, _):
            return _names(body, known)
        case sx.Sum(_, index, body):
            mark = index or "i"
            return [sx.Name(n.text[:-len(mark)]) if _of_family(n, mark) and n.key not in known else n for n in _names(body, known)]
        case sx.Call(callee, args):
            own = [] if isinstance(callee, sx.Name) and _public(callee) else _names(callee, known)
            return [*own, *(n for a in args for n in _names(a, known))]
        case sx.Infix(_, left, right):
            return [*_names(left, known), *_names(right, known)]
        case sx.TileOp():
            implied = {"gate": ["gate"] if len(e.operands) == 1 else [], "reward_model": ["reward_model"]}.get(e.op, [])
            return [*(n for o in e.operands for n in _names(o, known)), *map(sx.Name, implied)]
    return []


def _of_family(name: sx.Name, mark: str) -> bool:
    return name.key.endswith(mark) and len(name.key) > len(mark)


def _public(name: sx.Name) -> bool:
    return not name.text.startswith("%") and callable(getattr(ts, name.text, None))


def _error(program: Program, line: int, message: str, hint: str = "") -> sx.TextError:
    made = sx.TextError(message, hints=[hint] if hint else [])
    text = linecache.getline(program.file, line).rstrip("\n")
    made.frames = (Site(program.file, line, "program", (line, line, 0, len(text.encode()))), *made.frames)
    return made


def _check_shapes(program: Program, env: dict[str, Any]) -> None:
    sizes: dict[str, tuple[Any, str]] = {}
    for key, d in program.declared.items():
        if key not in env:
            raise _error(program, d.line, f"{key!r} is declared and not bound", f"Give it: run({key}=…)")
        shape = tuple(env[key].shape)
        if len(shape) != len(d.sizes):
            raise _error(program, d.line, f"{key!r} has {len(shape)} dimensions, declared are {len(d.sizes)}")
        for name, size in zip(d.sizes, shape, strict=True):
            wanted, origin = (int(name), "the declaration") if name.isdigit() else sizes.setdefault(name, (size, repr(key)))
            if size != wanted:
                raise _error(program, d.line, f"{name} is {wanted} by {origin} and {size} in {key!r}")


class _Line:
    """One statement being carried out."""

    def __init__(self, program: Program, statement: sx.Statement, env: dict[str, Any]):
        self.program, self.statement, self.env = program, statement, env

    def fail(self, message: str, hint: str = "") -> sx.TextError:
        return _error(self.program, self.statement.line, message, hint)

    def value(self) -> Any:
        v = self.statement.value
        return self.tile(v) if isinstance(v, sx.TileOp) else self.of(v)

    def tile(self, t: sx.TileOp) -> Any:
        op = OPS.get(t.op)
        if op is None:
            raise self.fail(f"No tile op is called {t.op!r}{suggest(t.op, OPS)}", f"Tile ops: {', '.join(sorted(OPS))}")
        operands = [self.of(o) for o in t.operands]
        if t.op == "gate" and len(operands) == 1:
            operands.append(self.bound("gate"))
        elif t.op == "reward_model":
            operands.append(self.bound("reward_model"))
        elif t.op == "ppo" and operands and callable(operands[0]):
            operands[0] = self.log_probabilities(operands[0])
            if len(operands) == 2 and "old" in self.env:
                operands.append(self.env["old"])
        attrs = {("lambda_" if k == "lambda" else k): _literal(v) for k, v in t.attrs}
        try:
            inspect.signature(op).bind(*operands, **attrs)
        except TypeError as e:
            takes = str(inspect.signature(op)).replace(": 'Any'", "").replace("lambda_", "lambda").partition(" ->")[0]
            raise self.fail(f"tile.{t.op}: {e}", f"tile.{t.op} takes {takes}") from None
        made = op(*operands, **attrs)
        if t.parts is not None:
            self.name_parts(t.parts, made)
        return made

    def log_probabilities(self, policy: Callable[[Any], Any]) -> Any:
        logits = policy(self.bound("x"))
        actions = ts.expand_dims(self.bound("actions"), -1)
        return ts.squeeze(ts.take_along_axis(ts.log_softmax(logits, axis=-1), actions, axis=-1), -1)

    def name_parts(self, parts: sx.Listing, value: Any) -> None:
        """``→ [p1, p2, ...]`` names the entries along the last axis; without dots, all of them."""
        names = [i for i in parts.items if isinstance(i, sx.Name)]
        if len(names) + any(isinstance(i, sx.Rest) for i in parts.items) != len(parts.items):
            raise self.fail("After an arrow stand names, and perhaps '...'")
        size = value.shape[-1]
        if len(names) > size or (len(names) == len(parts.items) and len(names) != size):
            raise self.fail(f"{len(names)} names for {size} parts", "End the list with ... to leave parts unnamed")
        for i, n in enumerate(names):
            self.env[n.key] = value[..., i]

    def bound(self, key: str) -> Any:
        if key not in self.env:
            raise self.fail(f"{key!r} is not bound{suggest(key, self.env)}", f"Give it: run({key}=…)")
        return self.env[key]

    def of(self, e: sx.Expr) -> Any:
        match e:
            case sx.Name():
                return self.bound(e.key)
            case sx.Number(text):
                return _literal(text)
            case sx.Group(body):
                return self.of(body)
            case sx.Negative(body):
                return -self.of(body)
            case sx.Transposed(body, mark):
                return ts.matrix_transpose(self.of(body)) if mark == "^T" else ts.adjoint(self.of(body))
            case sx.Call(callee, args):
                return self.callee(callee)(*(self.of(a) for a in args))
            case sx.Infix(op, left, right):
                return _INFIX[op](self.of(left), self.of(right))
            case sx.Sum():
                return self.sum(e)
            case sx.Listing(items):
                return self.listing(items)

    def callee(self, e: sx.Expr) -> Callable[..., Any]:
        if isinstance(e, sx.Name) and e.key not in self.env and _public(e):
            return getattr(ts, e.text)  # type: ignore[no-any-return]
        made = self.of(e)
        if not callable(made):
            raise self.fail(f"{sx.print_expr(e)} is not a function", "Bind a function or a module to this name")
        return made  # type: ignore[no-any-return]

    def listing(self, items: tuple[Any, ...]) -> list[Any]:
        rest = next((i for i in items if isinstance(i, sx.Rest)), None)
        if rest is None:
            return [self.of(i) for i in items]
        if rest.last is None or items[-1] is not rest:
            raise self.fail("In an operand, '...' ends the list and names its last member: [E1, ... En]")
        return self.family(rest.last.key[:-1])

    def family(self, stem: str) -> list[Any]:
        """All members: a list or tensor called ``stem``, or ``stem1``, ``stem2`` …"""
        if stem in self.env:
            whole = self.env[stem]
            if callable(whole) and not isinstance(whole, (list, tuple)):
                raise self.fail(f"{stem!r} is one function, not several", f"Give a list: run({stem}=[…])")
            return list(whole) if isinstance(whole, (list, tuple)) else [whole[i] for i in range(whole.shape[0])]
        numbered = list(itertools.takewhile(lambda k: k in self.env, (f"{stem}{i}" for i in itertools.count(1))))
        if not numbered:
            raise self.fail(f"{stem!r} is not bound{suggest(stem, self.env)}", f"Give its members: run({stem}=[…])")
        return [self.env[k] for k in numbered]

    def sum(self, e: sx.Sum) -> Any:
        mark = e.index or "i"
        members = {n.key: self.family(n.key[:-len(mark)]) for n in _names(e.body) if _of_family(n, mark) and n.key not in self.env}
        counts = {k: len(v) for k, v in members.items()}
        if len(set(counts.values())) != 1 or 0 in counts.values():
            raise self.fail(f"{e.token} needs members of one number, received {counts or 'none'}",
                            f"Names of its terms end in the index {mark!r}: w{mark} * f{mark}(x)")
        total: Any = None
        for each in range(next(iter(counts.values()))):
            env = {**self.env, **{k: v[each] for k, v in members.items()}}
            term = _Line(self.program, self.statement, env).of(e.body)
            total = term if total is None else total + term
        return total


_INFIX: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b, "@": lambda a, b: a @ b}




def _literal(text: str) -> Any:
    if text in ("true", "false"):
        return text == "true"
    if text.startswith('"'):
        return text[1:-1]
    try:
        return int(text)
    except ValueError:
        return float(text)
