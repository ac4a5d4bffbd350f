"""``@tile_function``: natural Python loops and conditionals in functions that build tile programs.

The function's source is rewritten once.  A loop or conditional becomes a nested function over the variables that it
assigns (``nonlocal``, so closures keep working) and a call of the machinery below, which decides at build time: over
static values it runs as plain Python; over traced ones it becomes an op whose carried variables are those that were
defined before and that the rest of the program may still read.

    for i in tile.range(n):        →     def __tile_body_1(__tile_item):
        acc = acc + f(i)                     nonlocal acc, i
                                             i = __tile_item
                                             acc = acc + f(i)
                                         __tile__.loop(tile.range(n), __tile_body_1, ('acc',), ('acc', 'i'))

Line numbers and columns stay those of the user's file.
"""

from __future__ import annotations

import ast
import functools
import inspect
import operator
import types
from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any, TypeVar

from ..errors import KernelError
from ..ir.core import Block, Loc
from ..types.dims import Dim
from .control import TileRange, branches, cond, for_loop, merge, predicate, while_loop
from .liveness import Liveness, assigned, escapes, walk_scope
from .values import TileValue, as_value, binary, current, fail, internal, tracing

internal(__file__)
F = TypeVar("F", bound=Callable[..., Any])
_RT = "__tile__"
_DEFINED = "__tile_defined__"
_ORDER = {"lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge}


# -- run time ----------------------------------------------------------------------------------------------------------
class Unset:
    """A variable that has no value here: assigned only inside a loop or one branch."""

    def __init__(self, name: str, why: str):
        self.__dict__["_why"] = f"{name} {why}"

    def _fail(self, *_: Any, **__: Any) -> Any:
        fail(self.__dict__["_why"], hints=["give it a value before the loop or conditional"])

    __getattr__ = __call__ = __getitem__ = __setitem__ = __bool__ = __iter__ = __len__ = __index__ = _fail
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __truediv__ = __rtruediv__ = __neg__ = _fail
    __floordiv__ = __rfloordiv__ = __mod__ = __rmod__ = __lt__ = __le__ = __gt__ = __ge__ = __matmul__ = _fail

    @property
    def __tile__(self) -> Any:
        return self._fail()


class Cells:
    """The variables of the enclosing function that a nested body shares with it."""

    def __init__(self, *bodies: Callable[..., Any]):
        self.cells: dict[str, Any] = {}
        for b in bodies:
            self.cells.update(zip(b.__code__.co_freevars, b.__closure__ or (), strict=True))

    def get(self, name: str) -> Any:
        try:
            return self.cells[name].cell_contents
        except (KeyError, ValueError):
            return Unset(name, "has no value here")

    def put(self, name: str, value: Any) -> None:
        if name in self.cells:
            self.cells[name].cell_contents = value


class State:
    """What a loop or branch may change: variables of the enclosing function, and registers (objects with ``value``)."""

    def __init__(self, cells: Cells, live: tuple[str, ...], names: tuple[str, ...], registers: Sequence[Any]):
        self.cells, self.all = cells, names
        self.registers = list(registers)
        for n in live:  # a variable that is rebound holds values from here on
            v = cells.get(n)
            if any(v is r for r in self.registers) and v.value is not None:
                cells.put(n, v.value)
        self.names = [n for n in live if not isinstance(cells.get(n), Unset)]
        self.live = [r for r in self.registers if r.value is not None]

    def get(self) -> tuple[Any, ...]:
        return (*(_content(self.cells.get(n)) for n in self.names), *(r.value for r in self.live))

    def put(self, values: Sequence[Any]) -> None:
        for n, v in zip(self.names, values, strict=False):
            self.cells.put(n, v)
        for r, v in zip(self.live, values[len(self.names):], strict=True):
            r.value = v

    def labels(self) -> list[str]:
        return [*self.names, *("a register" for _ in self.live)]

    def leave(self, values: Sequence[Any], why: str) -> None:
        """After the loop: carried variables have values, those assigned only inside have none."""
        for n in self.all:
            if n not in self.names:
                self.cells.put(n, Unset(n, why))
        for r in self.registers:
            if not any(r is x for x in self.live):
                r.value = None
        self.put(values)


class Carried:
    """Whether something goes from one iteration of a loop to the next: compares variables and registers before its body and after."""

    def __init__(self, cells: Cells, live: tuple[str, ...], registers: Sequence[Any]):
        self.cells = cells
        self.names = {n: _content(cells.get(n)) for n in live if not isinstance(cells.get(n), Unset)}
        self.registers = [(r, r.value) for r in registers if r.value is not None]

    def goes_on(self, read: Container[Any]) -> bool:
        """True when a variable that the next iteration needs has changed, or a register one of whose old values is in ``read``."""
        return any(_content(self.cells.get(n)) is not v for n, v in self.names.items()) or \
            any(r.value is not old and old.value in read for r, old in self.registers)


def _content(v: Any) -> Any:
    """A register that a variable holds counts as its value."""
    return v.value if not isinstance(v, Unset) and getattr(v, "is_register", False) and v.value is not None else v


_ONLY_INSIDE = "is assigned only inside the loop, which may not run at all"


class Machinery:
    """What rewritten code calls; its only name there is ``__tile__``."""

    @classmethod
    def registers(cls) -> Sequence[Any]:
        """Objects whose ``value`` changes in place and that loops carry."""
        return ()

    @classmethod
    def loop(cls, items: Any, body: Callable[[Any], None], live: tuple[str, ...], names: tuple[str, ...], index: str | None) -> None:
        if isinstance(items, TileRange):
            cls.traced_loop(items, body, body, live, names, index)
            return
        _check_iterable(items)
        for item in items:
            body(item)

    @classmethod
    def traced_loop(cls, items: TileRange, body: Callable[[Any], None], run: Callable[[Any], None], live: tuple[str, ...],
                    names: tuple[str, ...], index: str | None) -> None:
        """A ``for`` op; ``run`` is ``body``, perhaps with another view of the loop variable."""
        state = State(Cells(body), live, names, cls.registers())

        def step(i: TileValue, values: Any) -> Any:
            state.put(values)
            run(i)
            return state.get()

        out = for_loop(items, state.get(), step, state.labels(), index)
        state.leave(out, _ONLY_INSIDE)

    @classmethod
    def while_(cls, test: Callable[[], Any], body: Callable[[], None], live: tuple[str, ...], names: tuple[str, ...]) -> None:
        go_on, traced = _try(test)
        if not traced:
            while go_on:
                body()
                go_on = test()
            return
        state = State(Cells(body, test), live, names, cls.registers())

        def go(values: Any) -> Any:
            state.put(values)
            return test()

        def step(values: Any) -> Any:
            state.put(values)
            body()
            return state.get()

        out = while_loop(go, step, state.get(), state.labels())
        state.leave(out, _ONLY_INSIDE)

    @classmethod
    def if_(cls, test: Any, then: Callable[[], None], otherwise: Callable[[], None], live: tuple[str, ...], names: tuple[str, ...]) -> None:
        if not isinstance(test, TileValue) or test.const is not None:
            (then if (test.const if isinstance(test, TileValue) else test) else otherwise)()
            return
        test = predicate(test)
        cells, registers = Cells(then, otherwise), list(cls.registers())
        before = {n: cells.get(n) for n in names}
        values = [r.value for r in registers]

        def restore() -> None:
            for n, v in before.items():
                cells.put(n, v)
            for r, v in zip(registers, values, strict=True):
                r.value = v

        def run(branch: Callable[[], None]) -> tuple[dict[str, Any], list[Any]]:
            restore()
            branch()
            return {n: _content(cells.get(n)) for n in live}, [r.value for r in registers]

        blocks, after = branches((lambda: run(then), lambda: run(otherwise)))
        restore()
        unset = {n for variables, _ in after for n, v in variables.items() if isinstance(v, Unset)}
        both = [n for n in live if n not in unset]
        filled = [k for k in range(len(registers)) if all(regs[k] is not None for _, regs in after)]
        merged = merge(test, blocks, [(*(v[n] for n in both), *(regs[k] for k in filled)) for v, regs in after],
                       [*both, *("a register" for _ in filled)])
        for n in unset:
            cells.put(n, Unset(n, "is assigned in one branch of the `if` only"))
        for n, v in zip(both, merged, strict=False):
            cells.put(n, v)
        for k, v in zip(filled, merged[len(both):], strict=True):
            registers[k].value = v

    @staticmethod
    def static(test: Any, what: str) -> Any:
        """The condition of an ``if`` that leaves its block: it must be known when the kernel is built."""
        if isinstance(test, TileValue) and test.const is None:
            fail(f"`{what}` under a condition that is known only when the kernel runs", hints=[
                "assign to a variable in both branches and use it after the `if`", "use tile.where for values"])
        return test.const if isinstance(test, TileValue) else test

    @staticmethod
    def leaving(items: Any, what: str) -> Any:
        """The iterable of a loop that ``break`` or ``return`` leaves: it must be static."""
        if isinstance(items, TileRange):
            fail(f"`{what}` inside a loop over tile.range is not supported", hints=[
                "use `while` with a condition", "put the rest of the body under an `if`"])
        _check_iterable(items)
        return items

    @staticmethod
    def ifexp(test: Any, then: Callable[[], Any], otherwise: Callable[[], Any]) -> Any:
        if isinstance(test, TileValue) and test.const is None:
            return cond(test, then, otherwise)
        return then() if (test.const if isinstance(test, TileValue) else test) else otherwise()

    @staticmethod
    def compare(name: str, a: Any, b: Any) -> Any:
        if isinstance(a, Dim) or isinstance(b, Dim):
            return binary(name, as_value(a), as_value(b))
        return _ORDER[name](a, b)

    @staticmethod
    def not_(x: Any) -> Any:
        return ~_truth(x) if isinstance(x, TileValue) else not x

    @staticmethod
    def both(first: Any, *rest: Callable[[], Any]) -> Any:
        """``and``: Python's on static values, ``logical_and`` from the first traced one on."""
        return _chain("logical_and", True, first, rest)

    @staticmethod
    def either(first: Any, *rest: Callable[[], Any]) -> Any:
        return _chain("logical_or", False, first, rest)


def _truth(x: Any) -> TileValue:
    v = as_value(x)
    return v if v.dtype.kind == "bool" else binary("ne", v, 0)


def _chain(op: str, go_on: bool, first: Any, rest: tuple[Callable[[], Any], ...]) -> Any:
    value = first
    for nxt in rest:
        if not isinstance(value, TileValue):
            if bool(value) is not go_on:
                return value
            value = nxt()
            continue
        following = nxt()
        if not isinstance(following, TileValue) and bool(following) is go_on:
            continue
        value = binary(op, _truth(value), _truth(following))
    return value


def _check_iterable(items: Any) -> None:
    if isinstance(items, range | list | tuple | dict | set | str) or hasattr(items, "__iter__") or hasattr(items, "__getitem__"):
        return
    fail(f"cannot loop over a {type(items).__name__}", hints=["use tile.range(n) or Python's range"])


def _try(test: Callable[[], Any]) -> tuple[Any, bool]:
    """A loop's condition, evaluated into a block that is thrown away, and whether it depends on traced values."""
    if not tracing():
        return test(), False
    with current().block(Block()):
        value = test()
    if not isinstance(value, TileValue):
        return value, False
    return value.const, value.const is None


# -- rewriting ---------------------------------------------------------------------------------------------------------
class _Rewriter(ast.NodeTransformer):
    """Rewrites one function's statements; nested functions are rewritten with their own analysis."""

    def __init__(self, fn: ast.FunctionDef, file: str, calls: bool):
        self.file, self.calls, self.count = file, calls, 0
        self.live = Liveness(fn)
        args = fn.args
        params = {a.arg for a in [*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))]}
        self.locals = params | assigned(fn.body, containers=False)
        self.moved: set[str] = set()

    def fail(self, node: ast.AST, message: str, **details: Any) -> None:
        raise KernelError(message, loc=Loc(self.file, 0, getattr(node, "lineno", 0)), **details)

    def body(self, statements: list[ast.stmt]) -> list[ast.stmt]:
        out: list[ast.stmt] = []
        for s in statements:
            got = self.visit(s)
            out += got if isinstance(got, list) else [got]
        return out

    def fresh(self, kind: str) -> str:
        self.count += 1
        return f"__tile_{kind}_{self.count}"

    def function(self, name: str, body: list[ast.stmt], shared: set[str], at: ast.stmt, item: bool = False) -> ast.FunctionDef:
        self.moved |= shared
        head: list[ast.stmt] = [ast.Nonlocal(sorted(shared))] if shared else []
        arguments = ast.arguments([], [ast.arg("__tile_item")] if item else [], None, [], [], None, [])
        return _at(ast.FunctionDef(name, arguments, [*head, *(body or [ast.Pass()])], [], None), at)

    def call(self, what: str, args: list[ast.expr], at: ast.AST) -> ast.Call:
        return _at(ast.Call(ast.Attribute(ast.Name(_RT, ast.Load()), what, ast.Load()), args, []), at)

    # statements
    def visit_For(self, s: ast.For) -> Any:
        leaves = escapes(s.body) if not s.orelse else "else"
        shared = assigned([*s.body, s.target]) & self.locals
        live = sorted(shared & (self.live.after[s] | self.live.head[s]))
        items = self.visit(s.iter)
        body = self.body(s.body)
        if leaves:
            s.iter, s.body, s.orelse = self.call("leaving", [items, ast.Constant(leaves)], s.iter), body, self.body(s.orelse)
            return s
        name = self.fresh("body")
        target = _at(ast.Assign([s.target], ast.Name("__tile_item", ast.Load())), s.target)
        fn = self.function(name, [target, *body], shared, s, item=True)
        index = ast.Constant(s.target.id if isinstance(s.target, ast.Name) else None)
        call = self.call("loop", [items, ast.Name(name, ast.Load()), _names(live), _names(sorted(shared)), index], s)
        return [fn, _at(ast.Expr(call), s)]

    def visit_While(self, s: ast.While) -> Any:
        leaves = escapes(s.body) if not s.orelse else "else"
        if any(isinstance(n, ast.NamedExpr) for n in walk_scope(s.test)):
            self.fail(s, "`:=` in the condition of a while loop is not supported in a kernel", hints=["assign before and inside the loop"])
        shared = assigned(s.body) & self.locals
        live = sorted(shared & (self.live.after[s] | self.live.head[s]))
        test = self.visit(s.test)
        body = self.body(s.body)
        if leaves:
            s.test, s.body, s.orelse = self.call("static", [test, ast.Constant(leaves)], s.test), body, self.body(s.orelse)
            return s
        names = self.fresh("test"), self.fresh("body")
        self.moved |= shared
        head = _at(ast.Lambda(ast.arguments([], [], None, [], [], None, []), test), s.test)
        head_fn = _at(ast.Assign([ast.Name(names[0], ast.Store())], head), s.test)
        fn = self.function(names[1], body, shared, s)
        call = self.call("while_", [*(ast.Name(n, ast.Load()) for n in names), _names(live), _names(sorted(shared))], s)
        return [head_fn, fn, _at(ast.Expr(call), s)]

    def visit_If(self, s: ast.If) -> Any:
        leaves = escapes(s.body) or escapes(s.orelse)
        shared = assigned([*s.body, *s.orelse]) & self.locals
        live = sorted(shared & self.live.after[s])
        test = self.visit(s.test)
        then, otherwise = self.body(s.body), self.body(s.orelse)
        if leaves:
            s.test, s.body, s.orelse = self.call("static", [test, ast.Constant(leaves)], s.test), then, otherwise
            return s
        names = self.fresh("then"), self.fresh("else")
        fns = [self.function(n, b, shared, s) for n, b in zip(names, (then, otherwise), strict=True)]
        call = self.call("if_", [test, *(ast.Name(n, ast.Load()) for n in names), _names(live), _names(sorted(shared))], s)
        return [*fns, _at(ast.Expr(call), s)]

    def visit_FunctionDef(self, s: ast.FunctionDef) -> Any:
        return rewrite_function(s, self.file, self.calls)

    def visit_Global(self, s: ast.Global) -> Any:
        self.fail(s, "`global` is not supported in a kernel", hints=["return the value, or pass it as an argument"])

    def visit_Nonlocal(self, s: ast.Nonlocal) -> Any:
        self.fail(s, "`nonlocal` is not supported in a kernel", hints=["return the value, or pass it as an argument"])

    def visit_AsyncFunctionDef(self, s: ast.AsyncFunctionDef) -> Any:
        self.fail(s, "`async` is not supported in a kernel")

    def visit_Yield(self, e: ast.Yield) -> Any:
        self.fail(e, "`yield` is not supported in a kernel", hints=["store results with tile.store"])

    visit_YieldFrom = visit_Await = visit_Yield  # type: ignore[assignment]

    def visit_ClassDef(self, s: ast.ClassDef) -> Any:
        return self._python_only(s, "class", False)

    def visit_Try(self, s: ast.Try) -> Any:
        return self._python_only(s, "try", True)

    visit_TryStar = visit_Try  # type: ignore[assignment]

    def visit_With(self, s: ast.With) -> Any:
        called = [i.context_expr.func for i in s.items if isinstance(i.context_expr, ast.Call)]
        if len(called) == len(s.items) and all(getattr(f, "attr", getattr(f, "id", "")) == "role" for f in called):
            return self.generic_visit(s)  # a part of the kernel: tile.role(…)
        return self._python_only(s, "with", True)

    def visit_Import(self, s: ast.Import | ast.ImportFrom) -> Any:
        return self._python_only(s, "import", False)

    visit_ImportFrom = visit_Import  # type: ignore[assignment]

    def _python_only(self, s: ast.stmt, what: str, inside: bool) -> Any:
        """Statements that metaprograms may use, but users' kernels not: they would run once, while the kernel is built."""
        if self.calls:
            self.fail(s, f"`{what}` is not supported in a kernel", hints=["move it out of the kernel"])
        return self.generic_visit(s) if inside else s

    # expressions
    def visit_BoolOp(self, e: ast.BoolOp) -> Any:
        first, *rest = [self.visit(v) for v in e.values]
        return self.call("both" if isinstance(e.op, ast.And) else "either", [first, *(_thunk(r) for r in rest)], e)

    def visit_UnaryOp(self, e: ast.UnaryOp) -> Any:
        self.generic_visit(e)
        return self.call("not_", [e.operand], e) if isinstance(e.op, ast.Not) else e

    def visit_IfExp(self, e: ast.IfExp) -> Any:
        self.generic_visit(e)
        return self.call("ifexp", [e.test, _thunk(e.body), _thunk(e.orelse)], e)

    def visit_Compare(self, e: ast.Compare) -> Any:
        self.generic_visit(e)
        sides = [e.left, *e.comparators]
        links = [self.link(a, op, b, e) for a, op, b in zip(sides, e.ops, sides[1:], strict=False)]
        return links[0] if len(links) == 1 else self.call("both", [links[0], *(_thunk(x) for x in links[1:])], e)

    def link(self, a: ast.expr, op: ast.cmpop, b: ast.expr, e: ast.Compare) -> ast.expr:
        """One comparison; orderings may meet sizes, which Python cannot order."""
        name = {ast.Lt: "lt", ast.LtE: "le", ast.Gt: "gt", ast.GtE: "ge"}.get(type(op))
        if name is None:
            return _at(ast.Compare(a, [op], [b]), e)
        return self.call("compare", [ast.Constant(name), a, b], e)

    def visit_Call(self, e: ast.Call) -> Any:
        self.generic_visit(e)
        if self.calls and not (isinstance(e.func, ast.Attribute) and isinstance(e.func.value, ast.Name) and e.func.value.id == _RT):
            e.func = self.call("callee", [e.func], e.func)
        return e


A = TypeVar("A", bound=ast.AST)


def _at(node: A, where: ast.AST) -> A:
    """``node`` with the position of ``where``, also on new children without one."""
    place = ast.copy_location(ast.Pass(), where)
    last = where.iter if isinstance(where, ast.For) else where.test if isinstance(where, ast.While | ast.If) else None
    if last is not None:  # a compound statement stands for its first line
        place.end_lineno, place.end_col_offset = getattr(last, "end_lineno", None), getattr(last, "end_col_offset", None)
    for child in ast.walk(node):
        if child is node or ("lineno" in child._attributes and not hasattr(child, "lineno")):
            ast.copy_location(child, place)
    return node


def _thunk(e: ast.expr) -> ast.expr:
    return _at(ast.Lambda(ast.arguments([], [], None, [], [], None, []), e), e)


def _names(names: list[str]) -> ast.expr:
    return ast.Tuple([ast.Constant(n) for n in names], ast.Load())


def rewrite_function(fn: ast.FunctionDef, file: str, calls: bool) -> ast.FunctionDef:
    """The rewritten definition, without decorators."""
    r = _Rewriter(fn, file, calls)
    body = r.body(fn.body)
    moved = sorted(r.moved)
    if moved:  # a binding that never runs: the names stay variables of this function although bodies moved out
        bind = ast.Assign([ast.Name(n, ast.Store()) for n in moved], ast.Constant(None))
        doc = 1 if ast.get_docstring(fn, clean=False) is not None else 0
        body.insert(doc, _at(ast.If(ast.Constant(False), [bind], []), fn))
    fn.body = body
    return fn


def _parse(fn: types.FunctionType) -> tuple[ast.FunctionDef, str]:
    file = fn.__code__.co_filename
    try:
        lines, first = inspect.getsourcelines(fn)
    except (OSError, TypeError):
        raise KernelError(f"the source of {fn.__name__} is not available, and kernels are rewritten from source",
                          hints=["define the kernel in a file or a notebook cell"]) from None
    source = "".join(lines)
    if source[:1].isspace():
        tree = ast.parse("if 1:\n" + source)
        node = tree.body[0].body[0]  # type: ignore[attr-defined]
        ast.increment_lineno(tree, first - 2)
    else:
        tree = ast.parse(source)
        node = tree.body[0]
        ast.increment_lineno(tree, first - 1)
    if not isinstance(node, ast.FunctionDef):
        kind = "an async function" if isinstance(node, ast.AsyncFunctionDef) else "a lambda or expression"
        raise KernelError(f"a kernel is a plain `def` function, not {kind}", loc=Loc(file, 0, first))
    return node, file


def _compile(fn: types.FunctionType, calls: bool) -> types.CodeType:
    """The code object of the rewritten function; its free variables are the original's and ``__tile__``."""
    node, file = _parse(fn)
    node.decorator_list = []
    node = rewrite_function(node, file, calls)
    node.name = _DEFINED  # not its own name, which inside the body means the original
    _strip_annotations(node)
    free = [*fn.__code__.co_freevars, _RT]
    factory = ast.FunctionDef("__tile_factory__", ast.arguments([], [ast.arg(n) for n in free], None, [], [], None, []), [node], [], None)
    module = ast.Module([ast.fix_missing_locations(_at(factory, node))], [])
    code = compile(module, file, "exec", dont_inherit=True)
    outer = next(c for c in code.co_consts if isinstance(c, types.CodeType))
    inner = next(c for c in outer.co_consts if isinstance(c, types.CodeType) and c.co_name == _DEFINED)
    made = _rename(inner, fn.__name__, fn.__qualname__)
    _INNER.update(_nested(made))
    return made


def _nested(code: types.CodeType) -> Iterator[types.CodeType]:
    """The functions and lambdas written in a body, at any depth."""
    for c in code.co_consts:
        if isinstance(c, types.CodeType):
            yield c
            yield from _nested(c)


_INNER: set[types.CodeType] = set()


def written_inside(fn: types.FunctionType) -> bool:
    """True for a function or lambda that a rewritten body defines: it was rewritten with that body."""
    return fn.__code__ in _INNER


def _strip_annotations(node: ast.FunctionDef) -> None:
    """Annotations and defaults were evaluated when the original was defined."""
    args = node.args
    for a in [*args.posonlyargs, *args.args, *args.kwonlyargs, *filter(None, (args.vararg, args.kwarg))]:
        a.annotation = None
    node.returns = None
    args.defaults = [ast.copy_location(ast.Constant(None), d) for d in args.defaults]
    args.kw_defaults = [None if d is None else ast.copy_location(ast.Constant(None), d) for d in args.kw_defaults]


def _rename(code: types.CodeType, name: str, qualname: str) -> types.CodeType:
    """Nested bodies carry the user's function name, which errors and stack traces show."""
    consts = tuple(_rename(c, name, qualname) if isinstance(c, types.CodeType) and c.co_name.startswith(("__tile_", "<lambda"))
                   else c for c in code.co_consts)
    return code.replace(co_name=name, co_qualname=qualname, co_consts=consts)


_CODE: dict[tuple[types.CodeType, bool], types.CodeType] = {}


def rewritten(fn: types.FunctionType, machinery: type[Machinery] = Machinery, calls: bool = False) -> types.FunctionType:
    """``fn`` with its loops and conditionals rewritten; closures and globals are shared with the original.

    Raises:
        KernelError: no source, or a construct that kernels do not have.
    """
    key = fn.__code__, calls
    code = _CODE.get(key)
    if code is None:
        code = _CODE[key] = _compile(fn, calls)
    cells = dict(zip(fn.__code__.co_freevars, fn.__closure__ or (), strict=True))
    cells[_RT] = types.CellType(machinery)
    made = types.FunctionType(code, fn.__globals__, fn.__name__, fn.__defaults__, tuple(cells[n] for n in code.co_freevars))
    made.__kwdefaults__ = fn.__kwdefaults__
    made.__qualname__, made.__module__, made.__doc__ = fn.__qualname__, fn.__module__, fn.__doc__
    return made


def tile_function(fn: F) -> F:
    """Decorator: a function that builds tile code with Python ``for``, ``while`` and ``if`` on traced values.

    Raises:
        KernelError: at the first call: no source, or a construct that kernels do not have.
    """
    made: list[types.FunctionType] = []

    @functools.wraps(fn)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not made:
            made.append(rewritten(fn))  # type: ignore[arg-type]
        return made[0](*args, **kwargs)

    return run  # type: ignore[return-value]
