"""Graph IR: what is computed.

Pure SSA over tensors.  Values have :class:`~tessera.ir.core.TensorType`; sizes may be symbolic.  The ops are the
entries of the op table (``tessera.ops``), each with its own shape and dtype rule, and these structural ops:

=================  ===============================================================================================
``return(v…)``     ends the function
``yield(v…)``      ends a nested block
``call(v…)``       ``{callee = "name"}``: another Graph function in ``functions`` (outlined layers)
``cond(p, v…)``    two blocks over ``v…``; both yield the same types
``while(v…)``      two blocks over the carry: the first yields one ``bool[]``, the second the next carry
``scan(c…, x…)``   ``{carry = n, length = <L>, reverse = false}``: one block over carry and slices of ``x`` (axis 0);
                   yields carry and slices of the stacked results
``kernel_call``    ``{callee = "name", writes = (…)}``: a Tile function in ``functions``; results replace what it writes
=================  ===============================================================================================

Function attributes: ``effects`` (tuple of names), ``sizes`` (names of symbolic sizes, in order of first appearance),
``captured`` (how many trailing parameters are captured tensors), ``constraints`` (texts).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..types.dims import Dim, DimLike, substitute
from ..types.dtypes import DType, bool_
from .core import Block, Function, Op, TensorType, Type, Value

InferRule = Callable[[Sequence[TensorType], dict[str, Any]], Sequence[TensorType]]

# Filled by the op table when the package is assembled: name -> shape and dtype rule.
OP_RULES: dict[str, InferRule] = {}

STRUCTURAL = frozenset({"return", "yield", "call", "cond", "while", "scan", "kernel_call"})


class GrammarError(ValueError):
    """A function is not a well-formed program of its level."""


def require(condition: bool, op: Op, message: str) -> None:
    if not condition:
        raise GrammarError(f"{op.name}: {message}" + (f" ({op.loc})" if op.loc else ""))


# -- the grammar, executable ---------------------------------------------------------------------------------------------
def verify(fn: Function) -> None:
    """Check that ``fn``, and every Graph function it calls, is a program of this level.

    Values are defined once and before their use; ops are known and their stated types are what their rules infer;
    attributes are plain values; blocks and structural ops have the form that the table above gives.

    Raises:
        GrammarError: naming the op, what is wrong with it, and its place in the user's program.
    """
    _Verifier(fn, {}).function()


class _Verifier:
    """One function's check; ``done`` are the functions that need no second one."""

    def __init__(self, fn: Function, done: dict[str, Function]):
        self.fn, self.done = fn, done
        self.names = {n for a in fn.args if isinstance(a.type, TensorType) for n in names_of(a.type)}
        self.defined: set[Value] = set()

    def function(self) -> None:
        fn = self.fn
        if fn.level != "graph":
            raise GrammarError(f"@{fn.name} is a {fn.level} function, not a graph function")
        for a in fn.args:
            if not isinstance(a.type, TensorType):
                raise GrammarError(f"@{fn.name}: the parameter %{a.name or a.index} has the type {a.type}, not a tensor type")
        self.block(fn.body, "return", None)
        for name, callee in fn.functions.items():
            if callee.level == "graph" and self.done.get(name) is not callee:
                self.done[name] = callee
                shared = callee if callee.functions else Function(callee.name, callee.level, callee.body, callee.attrs,
                                                                  fn.functions)
                _Verifier(shared, self.done).function()

    def block(self, block: Block, terminator: str, owner: Op | None) -> list[Any]:
        """Check a block; returns the types that it yields."""
        where = f"@{self.fn.name}" if owner is None else owner.name
        if not block.ops or block.ops[-1].name != terminator:
            raise GrammarError(f"{where}: a block must end in {terminator!r}")
        self.define(block.args, owner)
        for op in block.ops[:-1]:
            require(op.name not in ("return", "yield"), op, "stands in the middle of a block")
            self.op(op)
        self.uses(block.ops[-1])
        require(not block.ops[-1].results, block.ops[-1], "has results")
        return [v.type for v in block.ops[-1].operands]

    def define(self, values: Sequence[Value], owner: Op | None) -> None:
        for v in values:
            if v in self.defined:
                raise GrammarError(f"{owner.name if owner else '@' + self.fn.name}: the value {v!r} is defined twice")
            self.defined.add(v)

    def uses(self, op: Op) -> None:
        for i, v in enumerate(op.operands):
            require(v in self.defined, op, f"operand {i} ({v!r}) is used before it is defined, or outside its block")

    def op(self, op: Op) -> None:
        self.uses(op)
        for key, value in op.attrs.items():
            require(plain_value(value), op, f"the attribute {key} is a {type(value).__name__}, not a plain value")
        for r in op.results:
            require(isinstance(r.type, TensorType), op, f"the result type {r.type} is not a tensor type")
            require(r.owner is op, op, "has a result that belongs to another op")
            unknown = names_of(r.type) - self.names
            require(not unknown, op, f"the result type {r.type} names the size {next(iter(unknown), '')!r}, which no "
                                     "parameter has")
        rule = _FORMS.get(op.name)
        if rule is not None:
            rule(self, op)
        else:
            self.primitive(op)
        self.define(op.results, op)

    def primitive(self, op: Op) -> None:
        rule = OP_RULES.get(op.name)
        require(rule is not None, op, "there is no such op in Graph IR")
        assert rule is not None
        require(not op.blocks, op, "has a nested block")
        if op.name == "constant" and not isinstance(op.attrs.get("value"), np.ndarray | np.generic):
            require(len(op.results) == 1 and op.results[0].type.shape == (), op, "a number is a scalar")
            return
        try:
            inferred = list(rule([v.type for v in op.operands], op.attrs))
        except GrammarError:
            raise
        except KeyError as e:
            raise GrammarError(f"{op.name}: the attribute {e} is missing" + _at(op)) from None
        except (ValueError, TypeError, IndexError) as e:
            message = getattr(e, "message", None) or str(e)
            raise GrammarError(f"{op.name}: {message}" + _at(op)) from None
        stated = [r.type for r in op.results]
        require(stated == inferred, op, f"states {_types(stated)}, its rule infers {_types(inferred)}")

    # -- structural ops --------------------------------------------------------------------------------------------------
    def nested(self, op: Op, n: int, args: Sequence[TensorType], count: int) -> list[Any]:
        """Check block ``n`` of ``count``, whose arguments must have the types ``args``."""
        require(len(op.blocks) == count, op, f"has {len(op.blocks)} blocks, not {count}")
        have = [a.type for a in op.blocks[n].args]
        require(have == list(args), op, f"block {n} takes {_types(have)}, not {_types(args)}")
        outside = set(self.defined)
        out = self.block(op.blocks[n], "yield", op)
        self.defined = outside
        return out

    def callee(self, op: Op, level: str) -> Function:
        fn = self.fn.functions.get(op.attrs.get("callee", ""))
        require(fn is not None, op, f"@{self.fn.name} has no function {op.attrs.get('callee')!r}")
        assert fn is not None
        require(fn.level == level, op, f"@{fn.name} is a {fn.level} function, not a {level} function")
        return fn

    def call(self, op: Op) -> None:
        fn = self.callee(op, "graph")
        require(len(fn.args) == len(op.operands), op, f"@{fn.name} takes {len(fn.args)} operands, not {len(op.operands)}")
        env: dict[str, DimLike] = {}
        pairs = [(p.type, v.type) for p, v in zip(fn.args, op.operands, strict=True)]
        for _ in range(2):  # a name may be bound by a later parameter than a compound size that mentions it
            for want, have in pairs:
                require(want.dtype is have.dtype and want.rank == have.rank, op, f"passes {have} for {want} of @{fn.name}")
                for d, actual in zip(want.shape, have.shape, strict=True):
                    if isinstance(d, Dim) and d.is_name:
                        env.setdefault(str(d), actual)
        for want, have in pairs:
            bound = want.with_shape(substitute(d, env) for d in want.shape)
            require(bound == have, op, f"passes {have} for {bound} of @{fn.name}")
        results = [t.with_shape(substitute(d, env) for d in t.shape) for t in fn.result_types]
        require([r.type for r in op.results] == results, op, f"@{fn.name} returns {_types(results)}")

    def cond(self, op: Op) -> None:
        require(bool(op.operands) and op.operands[0].type == TensorType(bool_, ()), op, "the predicate is not a bool[]")
        args = [v.type for v in op.operands[1:]]
        results = [r.type for r in op.results]
        for n in (0, 1):
            out = self.nested(op, n, args, 2)
            require(out == results, op, f"block {n} yields {_types(out)}, the op states {_types(results)}")

    def loop(self, op: Op) -> None:
        carry = [v.type for v in op.operands]
        require([r.type for r in op.results] == carry, op, "the results do not have the carry's types")
        test = self.nested(op, 0, carry, 2)
        require(test == [TensorType(bool_, ())], op, f"the condition yields {_types(test)}, not bool[]")
        out = self.nested(op, 1, carry, 2)
        require(out == carry, op, f"the body yields {_types(out)}, the carry is {_types(carry)}")

    def scan(self, op: Op) -> None:
        n, length = op.attrs.get("carry"), op.attrs.get("length")
        require(isinstance(n, int) and 0 <= n <= len(op.operands), op, f"carry = {n} is not a number of operands")
        require(isinstance(length, int | Dim), op, f"length = {length} is not a size")
        assert isinstance(n, int) and isinstance(length, int | Dim)
        carry, streams = [v.type for v in op.operands[:n]], [v.type for v in op.operands[n:]]
        for t in streams:
            require(t.rank > 0 and t.shape[0] == length, op, f"the operand {t} does not have {length} slices")
        out = self.nested(op, 0, [*carry, *[t.with_shape(t.shape[1:]) for t in streams]], 1)
        require(out[:n] == carry, op, f"the body yields {_types(out[:n])}, the carry is {_types(carry)}")
        results = [*carry, *[t.with_shape((length, *t.shape)) for t in out[n:]]]
        require([r.type for r in op.results] == results, op, f"the results are {_types(results)}")

    def kernel_call(self, op: Op) -> None:
        self.callee(op, "tile")
        writes = op.attrs.get("writes", ())
        require(all(isinstance(i, int) and 0 <= i < len(op.operands) for i in writes), op, f"writes = {writes} does not "
                "name operands")
        results = [op.operands[i].type for i in writes]
        require([r.type for r in op.results] == results, op, f"the results are {_types(results)}")


def _misplaced(v: _Verifier, op: Op) -> None:
    require(False, op, "stands in the middle of a block")


_FORMS: dict[str, Callable[[_Verifier, Op], None]] = {
    "call": _Verifier.call, "cond": _Verifier.cond, "while": _Verifier.loop, "scan": _Verifier.scan,
    "kernel_call": _Verifier.kernel_call, "return": _misplaced, "yield": _misplaced,
}


def _at(op: Op) -> str:
    return f" ({op.loc})" if op.loc else ""


def _types(types: Sequence[Any]) -> str:
    return "(" + ", ".join(map(str, types)) + ")"


def names_of(t: TensorType) -> set[str]:
    """The names of symbolic sizes in a type."""
    return {n for d in t.shape if isinstance(d, Dim) for n in d.names}


def plain_value(v: Any) -> bool:
    """Whether ``v`` may stand in an attribute (see ``ir/core.py``)."""
    if isinstance(v, tuple):
        return all(plain_value(x) for x in v)
    return v is None or isinstance(v, bool | int | float | complex | str | DType | Dim | Type | np.ndarray | np.generic)


def walk_functions(fn: Function) -> Iterator[Function]:
    """``fn`` and every function it holds, innermost first, each once."""
    seen: set[int] = set()

    def visit(f: Function) -> Iterator[Function]:
        if id(f) not in seen:
            seen.add(id(f))
            for g in f.functions.values():
                yield from visit(g)
            yield f

    yield from visit(fn)


__all__ = ["OP_RULES", "STRUCTURAL", "Block", "Function", "GrammarError", "InferRule", "Op", "Value", "names_of",
           "plain_value", "require", "verify", "walk_functions"]
