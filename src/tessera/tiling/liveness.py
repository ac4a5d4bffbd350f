"""Which names a piece of Python assigns, and which it needs: the analysis behind the rewriting of tile functions."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.ClassDef, ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def loads(node: ast.AST | None) -> set[str]:
    """Names read anywhere in ``node``, nested functions included."""
    if node is None:
        return set()
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)}


def base_name(node: ast.expr) -> str | None:
    """``a`` for ``a[i][j]``: whose container a subscript store changes."""
    while isinstance(node, ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else None


def assigned(nodes: Iterable[ast.AST], containers: bool = True) -> set[str]:
    """Names that statements bind in their own scope; with ``containers``, also those whose elements they set."""
    out: set[str] = set()
    stack: list[ast.AST] = list(nodes)
    while stack:
        n = stack.pop()
        if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            out.add(n.name)
            continue
        if isinstance(n, _SCOPES):
            stack += [w for w in ast.walk(n) if isinstance(w, ast.NamedExpr)] if not isinstance(n, ast.Lambda) else []
            continue
        if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store):
            out.add(n.id)
        elif containers and isinstance(n, ast.Subscript) and isinstance(n.ctx, ast.Store):
            base = base_name(n)
            if base is not None:
                out.add(base)
        elif isinstance(n, ast.ExceptHandler) and n.name:
            out.add(n.name)
        elif isinstance(n, ast.alias):
            out.add((n.asname or n.name).split(".")[0])
        elif isinstance(n, ast.MatchAs | ast.MatchStar) and n.name:
            out.add(n.name)
        stack += list(ast.iter_child_nodes(n))
    return out


def escapes(nodes: Sequence[ast.stmt]) -> str | None:
    """``break``, ``continue`` or ``return`` where it would leave these statements; None where nothing does."""
    for n in nodes:
        if isinstance(n, ast.Return):
            return "return"
        if isinstance(n, ast.Break | ast.Continue):
            return type(n).__name__.lower()
        if isinstance(n, ast.For | ast.While):
            inner = [w for b in (n.body, n.orelse) for w in b]
            if any(isinstance(w, ast.Return) for s in inner for w in walk_scope(s)):
                return "return"
            continue
        if isinstance(n, ast.FunctionDef | ast.ClassDef):
            continue
        for field in ("body", "orelse", "finalbody"):
            found = escapes(getattr(n, field, None) or [])
            if found:
                return found
        for part in [*getattr(n, "handlers", []), *getattr(n, "cases", [])]:
            found = escapes(part.body)
            if found:
                return found
    return None


def walk_scope(node: ast.AST) -> Iterable[ast.AST]:
    """``ast.walk`` without nested functions and classes."""
    yield node
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Lambda):
        return
    for child in ast.iter_child_nodes(node):
        yield from walk_scope(child)


class Liveness:
    """Names live before each statement of a function, computed backwards; ``before[stmt]`` and ``after[stmt]``."""

    def __init__(self, fn: ast.FunctionDef):
        # what nested functions read may be read whenever they are called
        self.always = {n for w in ast.walk(fn) if w is not fn and isinstance(w, ast.FunctionDef | ast.Lambda) for n in loads(w)}
        self.after: dict[ast.stmt, set[str]] = {}
        self.head: dict[ast.stmt, set[str]] = {}  # loops: live at the start of an iteration's test
        self.block(fn.body, set(), set(), set())

    def block(self, body: Sequence[ast.stmt], out: set[str], brk: set[str], cont: set[str]) -> set[str]:
        for s in reversed(body):
            self.after[s] = out | self.always
            out = self.before(s, out, brk, cont)
        return out

    def before(self, s: ast.stmt, out: set[str], brk: set[str], cont: set[str]) -> set[str]:
        if isinstance(s, ast.Assign | ast.AnnAssign | ast.AugAssign):
            return self._assign(s, out)
        if isinstance(s, ast.For | ast.While):
            return self._loop(s, out, brk, cont)
        if isinstance(s, ast.If):
            return loads(s.test) | self.block(s.body, out, brk, cont) | self.block(s.orelse, out, brk, cont)
        if isinstance(s, ast.Break):
            return brk | self.always
        if isinstance(s, ast.Continue):
            return cont | self.always
        if isinstance(s, ast.Return | ast.Raise):
            return loads(s) | self.always
        if isinstance(s, ast.With):
            inner = self.block(s.body, out, brk, cont)
            return loads(ast.Tuple([i.context_expr for i in s.items], ast.Load())) | inner
        if isinstance(s, ast.FunctionDef | ast.ClassDef):
            return (out - {s.name}) | loads(s)
        if isinstance(s, ast.Try | ast.Match):
            return self._branches(s, out, brk, cont)
        return out | loads(s)

    def _assign(self, s: ast.Assign | ast.AnnAssign | ast.AugAssign, out: set[str]) -> set[str]:
        targets = s.targets if isinstance(s, ast.Assign) else [s.target]
        if isinstance(s, ast.AugAssign):
            names = {s.target.id} if isinstance(s.target, ast.Name) else set()
            return out | names | loads(s)
        if s.value is None:
            return out
        killed = assigned(targets, containers=False)
        return (out - killed) | loads(s.value) | {n for t in targets for n in loads(t)}

    def _loop(self, s: ast.For | ast.While, out: set[str], brk: set[str], cont: set[str]) -> set[str]:
        done = self.block(s.orelse, out, brk, cont) if s.orelse else out
        test = loads(s.test) if isinstance(s, ast.While) else set()
        target = assigned([s.target], containers=False) if isinstance(s, ast.For) else set()
        head = done | test
        while True:
            self.head[s] = head | self.always
            grown = done | test | (self.block(s.body, head, out, head) - target)
            if grown <= head:
                break
            head = head | grown
        return head | (loads(s.iter) if isinstance(s, ast.For) else set())

    def _branches(self, s: ast.Try | ast.Match, out: set[str], brk: set[str], cont: set[str]) -> set[str]:
        live = out | loads(s)
        parts = [c.body for c in s.cases] if isinstance(s, ast.Match) else \
            [s.body, *(h.body for h in s.handlers), s.orelse, s.finalbody]
        for body in parts:
            live |= self.block(body, out | loads(s), brk, cont)
        return live
