"""SSA in a few small classes, shared by all levels.

A :class:`Function` owns one :class:`Block`; a block owns ops in order; an op has operands, results, attributes and
nested blocks (structured control flow only, so there are no branches and no phis).  A block ends in a ``yield`` (or
``return`` at the top).  Values know their type and the op or block that defines them.

Building an op costs about a microsecond: types are interned tuples of Python objects, attributes are plain Python
values (``int float bool str None tuple DType Dim`` and, for small constants, ``numpy.ndarray``).  What an op may look
like is not written here but in each level's grammar (``ir/graph.py``, ``ir/sched.py``, ``ir/tile.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors.frames import span_of
from ..types.dims import DimLike, format_dim, product
from ..types.dtypes import DType, int64
from ..types.shapes import Shape, is_static


# -- types -----------------------------------------------------------------------------------------------------------
class Type:
    """Base of the IR's types; immutable, compared by value."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class TensorType(Type):
    """Graph IR: a value of ``shape`` (sizes may be symbolic).  Text: ``f32[B, 768]``; a scalar is ``f32[]``."""

    dtype: DType
    shape: Shape

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> DimLike:
        return product(self.shape)

    @property
    def static(self) -> bool:
        return is_static(self.shape)

    def with_shape(self, shape: Iterable[DimLike]) -> TensorType:
        return TensorType(self.dtype, tuple(shape))

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(dtype, self.shape)

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(format_dim(d) for d in self.shape)}]"


@dataclass(frozen=True, slots=True)
class ScalarType(Type):
    """Schedule and Tile IR: one element.  Text: ``f32``; 64-bit index arithmetic is ``int64``."""

    dtype: DType

    def __str__(self) -> str:
        return str(self.dtype)


@dataclass(frozen=True, slots=True)
class BufferType(Type):
    """Schedule and Tile IR: dense row-major memory.  Text: ``buf<f32[B, 768]>`` or ``buf<f32[64, 64], shared>``."""

    dtype: DType
    shape: Shape
    space: str = "global"

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> DimLike:
        return product(self.shape)

    @property
    def nbytes(self) -> DimLike:
        return product(self.shape) * self.dtype.itemsize

    def __str__(self) -> str:
        where = "" if self.space == "global" else f", {self.space}"
        return f"buf<{self.dtype}[{', '.join(format_dim(d) for d in self.shape)}]{where}>"


@dataclass(frozen=True, slots=True)
class TileType(Type):
    """Tile IR: a block of elements held in registers; extents are static integers.  Text: ``tile<f32[4, 16]>``.

    ``layout`` belongs to the target (None: the target's default).
    """

    dtype: DType
    shape: tuple[int, ...]
    layout: str | None = None

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        n = 1
        for d in self.shape:
            n *= d
        return n

    def __str__(self) -> str:
        lay = f", {self.layout}" if self.layout else ""
        return f"tile<{self.dtype}[{', '.join(map(str, self.shape))}]{lay}>"


INDEX = ScalarType(int64)


# -- locations -------------------------------------------------------------------------------------------------------
class Loc:
    """Where in the user's program an op came from; columns are looked up only when an error is shown."""

    __slots__ = ("code", "instruction", "line")

    def __init__(self, code: Any, instruction: int, line: int):
        self.code, self.instruction, self.line = code, instruction, line

    @property
    def file(self) -> str:
        return self.code if isinstance(self.code, str) else self.code.co_filename

    @property
    def function(self) -> str:
        return "" if isinstance(self.code, str) else self.code.co_name

    @property
    def span(self) -> tuple[int, int, int, int] | None:
        """(line, end line, column, end column), 0-based columns, where Python recorded them."""
        return None if isinstance(self.code, str) else span_of(self.code, self.instruction)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"

    __repr__ = __str__


# -- values, ops, blocks -----------------------------------------------------------------------------------------------
class Value:
    """One SSA value: the result of an op, or the argument of a block."""

    __slots__ = ("index", "name", "owner", "type")

    def __init__(self, type: Any, owner: Op | Block, index: int = 0, name: str | None = None):
        self.type, self.owner, self.index, self.name = type, owner, index, name

    @property
    def op(self) -> Op | None:
        """The defining op; None for a block argument."""
        return self.owner if isinstance(self.owner, Op) else None

    def __repr__(self) -> str:
        what = self.owner.name if isinstance(self.owner, Op) else "argument"
        return f"<{what}#{self.index}: {self.type}>"


class Op:
    """An operation.  ``name`` selects its rules in the level's grammar; ``attrs`` are plain values."""

    __slots__ = ("attrs", "blocks", "loc", "name", "operands", "results")

    def __init__(self, name: str, operands: Sequence[Value] = (), result_types: Sequence[Type] = (),
                 attrs: Mapping[str, Any] | None = None, blocks: Sequence[Block] = (), loc: Loc | None = None):
        self.name = name
        self.operands = list(operands)
        self.attrs: dict[str, Any] = dict(attrs) if attrs else {}
        self.blocks = list(blocks)
        self.loc = loc
        self.results = [Value(t, self, i) for i, t in enumerate(result_types)]

    @property
    def result(self) -> Value:
        """The only result."""
        if len(self.results) != 1:
            raise ValueError(f"{self.name} has {len(self.results)} results")
        return self.results[0]

    def walk(self) -> Iterator[Op]:
        """This op and every op nested in it, outermost first."""
        yield self
        for b in self.blocks:
            yield from b.walk()

    def __repr__(self) -> str:
        return f"<op {self.name} {self.attrs}>"


class Block:
    """Arguments and a list of ops."""

    __slots__ = ("args", "ops")

    def __init__(self, arg_types: Sequence[Type] = (), names: Sequence[str | None] = ()):
        self.args = [Value(t, self, i, names[i] if i < len(names) else None) for i, t in enumerate(arg_types)]
        self.ops: list[Op] = []

    def add_arg(self, type: Type, name: str | None = None) -> Value:
        self.args.append(Value(type, self, len(self.args), name))
        return self.args[-1]

    @property
    def terminator(self) -> Op:
        return self.ops[-1]

    def walk(self) -> Iterator[Op]:
        for op in self.ops:
            yield from op.walk()


@dataclass(eq=False)
class Function:
    """A named program of one level.

    Attributes:
        level: ``"graph"``, ``"sched"`` or ``"tile"``: which grammar applies.
        body: its block; the arguments are the function's parameters, the terminator is ``return``.
        attrs: facts about the whole function, plain values (printed).
        functions: other functions of the same level that this one calls by name (outlined layers, kernels).
    """

    name: str
    level: str
    body: Block = field(default_factory=Block)
    attrs: dict[str, Any] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)

    @property
    def args(self) -> list[Value]:
        return self.body.args

    @property
    def returns(self) -> list[Value]:
        return self.body.terminator.operands

    @property
    def result_types(self) -> list[Any]:
        return [v.type for v in self.returns]

    def walk(self) -> Iterator[Op]:
        return self.body.walk()

    def __str__(self) -> str:
        from .text import print_function
        return print_function(self)


# -- building --------------------------------------------------------------------------------------------------------
class Builder:
    """Appends ops to a block.  ``with b.at(block):`` moves the insertion point for nested bodies."""

    def __init__(self, block: Block, loc: Loc | None = None):
        self.block = block
        self.loc = loc

    def op(self, name: str, operands: Sequence[Value] = (), result_types: Sequence[Type] = (),
           attrs: Mapping[str, Any] | None = None, blocks: Sequence[Block] = (), loc: Loc | None = None) -> Op:
        made = Op(name, operands, result_types, attrs, blocks, loc or self.loc)
        self.block.ops.append(made)
        return made

    def value(self, name: str, operands: Sequence[Value], result_type: Type,
              attrs: Mapping[str, Any] | None = None, blocks: Sequence[Block] = (), loc: Loc | None = None) -> Value:
        """Append a one-result op and return the result."""
        return self.op(name, operands, (result_type,), attrs, blocks, loc).results[0]

    @contextmanager
    def at(self, block: Block) -> Iterator[Block]:
        saved, self.block = self.block, block
        try:
            yield block
        finally:
            self.block = saved


# -- attributes --------------------------------------------------------------------------------------------------------
def value_key(v: Any) -> Any:
    """An attribute's value as a key: equal for equal bits, so that 0.0 and -0.0 differ, and 1, 1.0 and True too."""
    if isinstance(v, np.ndarray | np.generic):
        return (str(v.dtype), v.shape, v.tobytes())
    if isinstance(v, float):
        return ("float", v.hex())
    if isinstance(v, tuple | list):
        return (type(v).__name__, *[value_key(x) for x in v])
    if isinstance(v, bool | int):
        return (type(v).__name__, v)
    return v


# -- queries and rewriting ---------------------------------------------------------------------------------------------
def uses(block: Block) -> dict[Value, list[tuple[Op, int]]]:
    """Every use, also in nested blocks, as (op, operand index)."""
    table: dict[Value, list[tuple[Op, int]]] = {}
    for op in block.walk():
        for i, v in enumerate(op.operands):
            table.setdefault(v, []).append((op, i))
    return table


def free_values(blocks: Sequence[Block]) -> list[Value]:
    """Values used inside ``blocks`` but defined outside them, in order of first use."""
    inside: set[Value] = set()
    out: dict[Value, None] = {}

    def visit(b: Block) -> None:
        inside.update(b.args)
        for op in b.ops:
            for v in op.operands:
                if v not in inside:
                    out[v] = None
            for nested in op.blocks:
                visit(nested)
            inside.update(op.results)

    for b in blocks:
        visit(b)
    return list(out)


Rewrite = Callable[["Copier", Op], "Sequence[Value] | None"]


class Copier:
    """Builds a new block from an old one, op by op; passes never edit in place.

    ``rule(copier, op)`` may build a replacement with ``copier.builder`` and return its values, or return None to have
    the op copied.  ``copier[v]`` is the new value of an old one.
    """

    def __init__(self, builder: Builder, rule: Rewrite | None = None):
        self.builder, self.rule = builder, rule
        self.map: dict[Value, Value] = {}

    def __getitem__(self, v: Value) -> Value:
        return self.map.get(v, v)

    def operands(self, op: Op) -> list[Value]:
        get = self.map.get
        return [get(v, v) for v in op.operands]

    def copy(self, op: Op) -> Op:
        """Copy one op (and, through the rule, what it nests) to the insertion point."""
        blocks = [self.copy_block(b) for b in op.blocks]
        new = self.builder.op(op.name, self.operands(op), [r.type for r in op.results], op.attrs, blocks, op.loc)
        for old, fresh in zip(op.results, new.results, strict=True):
            fresh.name = old.name
            self.map[old] = fresh
        return new

    def copy_block(self, block: Block) -> Block:
        new = Block([a.type for a in block.args], [a.name for a in block.args])
        self.map.update(zip(block.args, new.args, strict=True))
        with self.builder.at(new):
            self.run(block.ops)
        return new

    def run(self, ops: Iterable[Op]) -> None:
        for op in ops:
            values = self.rule(self, op) if self.rule else None
            if values is None:
                self.copy(op)
            else:
                self.map.update(zip(op.results, values, strict=True))


def rewrite(fn: Function, rule: Rewrite | None = None) -> Function:
    """A new function with ``rule`` applied to every op, outermost blocks first."""
    new = Function(fn.name, fn.level, Block([a.type for a in fn.args], [a.name for a in fn.args]), dict(fn.attrs),
                   dict(fn.functions))
    c = Copier(Builder(new.body), rule)
    c.map.update(zip(fn.args, new.args, strict=True))
    c.run(fn.body.ops)
    return new
