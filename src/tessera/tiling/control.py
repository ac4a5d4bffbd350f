"""Control flow of the tile language: loops and conditionals that become ``for``, ``while`` and ``if`` ops.

Carried values are Python structures (tuples, lists, dicts) of tiles, scalars and numbers.  A number becomes a constant
of the type it has at the end of the body; anything else in a structure is static and may not change.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ..ir.core import INDEX, Block, Op, Value
from ..types.dims import Dim
from ..types.dtypes import bool_, f32, int64
from .values import (
    _HOOKS,
    Buffer,
    Meta,
    Number,
    Operators,
    TileProgram,
    TileValue,
    as_value,
    broadcast_to,
    constant,
    current,
    fail,
    index_value,
    internal,
    location,
)

internal(__file__)


class TileRange:
    """What ``tile.range`` gives: the bounds of a sequential loop, for ``for`` in a tile function."""

    def __init__(self, lo: Any, hi: Any, step: Any, attrs: dict[str, Any] | None = None):
        self.lo, self.hi, self.step, self.attrs = lo, hi, step, attrs or {}

    def __iter__(self) -> Iterator[Any]:
        fail("a loop over tile.range is not possible here", hints=[
            "decorate the function that holds the loop with @tile_function (kernels are rewritten by @ts.kernel)",
            "`break`, `continue` and `return` inside such a loop are not supported: use `if` or `while`",
            "use tile.static_range in a comprehension"])


# -- structures --------------------------------------------------------------------------------------------------------
def flatten(x: Any, out: list[Any]) -> Any:
    """Append the leaves of a structure to ``out``; returns a function that rebuilds it from an iterator of leaves."""
    if isinstance(x, tuple | list):
        parts = [flatten(v, out) for v in x]
        if isinstance(x, tuple) and hasattr(x, "_fields"):
            kind = type(x)
            return lambda it: kind(*(p(it) for p in parts))
        seq = tuple if isinstance(x, tuple) else list
        return lambda it: seq(p(it) for p in parts)
    if isinstance(x, dict):
        items = {k: flatten(v, out) for k, v in x.items()}
        return lambda it: {k: p(it) for k, p in items.items()}
    out.append(x)
    return next


def structure(x: Any) -> Any:
    """The shape of a structure, for comparison."""
    if isinstance(x, tuple | list):
        return (type(x).__name__, tuple(structure(v) for v in x))
    if isinstance(x, dict):
        return ("dict", tuple((k, structure(v)) for k, v in x.items()))
    return "leaf"


def _dynamic(leaf: Any) -> bool:
    return isinstance(leaf, TileValue | Dim | Number)


def _default_type(leaf: Any) -> Any:
    if isinstance(leaf, TileValue):
        return leaf.type
    d = bool_ if isinstance(leaf, bool) else f32 if isinstance(leaf, float) else int64
    return constant(0, d).type


def cast(leaf: Any, want: Any, name: str, what: str) -> TileValue:
    """``leaf`` as a value of exactly the type ``want``: numbers become constants; tiles must match.

    Raises:
        KernelError: a tile or scalar has another type.
    """
    shape = getattr(want, "shape", ())
    if not isinstance(leaf, TileValue):
        v = as_value(leaf, want.dtype) if isinstance(leaf, Number) else as_value(leaf)
        return broadcast_to(v if v.dtype is want.dtype else v.to(want.dtype), shape)
    if leaf.type != want:
        hints = ["give it its final shape and dtype before"]
        if leaf.shape == shape:
            hints.insert(0, f"convert it where it is set: {name} = (…).to(ts.{want.dtype})")
        fail(f"{name} changes its type {what}: from {want} to {leaf.type}", expected=str(want), received=str(leaf.type), hints=hints)
    return leaf


class Carry:
    """The leaves of a structure of carried values, with the types they have in the loop."""

    def __init__(self, init: Any, names: Sequence[str] | None):
        self.init: list[Any] = []
        self.rebuild = flatten(init, self.init)
        self.shape = structure(init)
        self.names = self._names(init, names)
        self.dynamic = [i for i, leaf in enumerate(self.init) if _dynamic(leaf)]
        self.types = [_default_type(self.init[i]) for i in self.dynamic]
        self.metas = [leaf.meta if isinstance(leaf, TileValue) else None for leaf in (self.init[i] for i in self.dynamic)]

    def _names(self, init: Any, names: Sequence[str] | None) -> list[str]:
        if names is None or not isinstance(init, tuple) or len(names) != len(init):
            return [f"carried value {i}" for i in range(len(self.init))]
        out: list[str] = []
        for n, v in zip(names, init, strict=True):
            leaves: list[Any] = []
            flatten(v, leaves)
            out += [n] * len(leaves)
        return out

    def value_names(self) -> list[str | None]:
        return [self.names[i] if self.names[i].isidentifier() else None for i in self.dynamic]

    def inside(self, values: Sequence[Value]) -> Any:
        """The structure rebuilt around block arguments (or results)."""
        leaves = list(self.init)
        for i, v, meta in zip(self.dynamic, values, self.metas, strict=True):
            leaves[i] = TileValue(v, meta=meta)
        return self.rebuild(iter(leaves))

    def settle(self, after: Any, what: str, block: Block) -> list[TileValue] | None:
        """The leaves after the body, as values of the carried types.

        None when the body has to be built again: a number's type had to be corrected, or a carried tile turned out to
        have a ragged edge.
        """
        if structure(after) != self.shape:
            fail(f"the structure of the carried values changes {what}: from {self.shape} to {structure(after)}")
        leaves: list[Any] = []
        flatten(after, leaves)
        again = False
        for k, i in enumerate(self.dynamic):
            got = leaves[i]
            if isinstance(got, TileValue) and got.type != self.types[k] and not isinstance(self.init[i], TileValue):
                self.types[k], again = got.type, True
            elif isinstance(got, TileValue) and got.meta is not None and not got.meta.same(self.metas[k]):
                again = self._edge(k, i, leaves, block) or again
        for i, (old, new) in enumerate(zip(self.init, leaves, strict=True)):
            if i not in self.dynamic and not _same(old, new):
                fail(f"{self.names[i]} changes {what}, but it is a {type(old).__name__}, which only Python knows",
                     hints=["carry tiles, scalars and numbers", "unroll the loop with tile.static_range"])
        if again:
            return None
        return [cast(leaves[i], t, self.names[i], what) for i, t in zip(self.dynamic, self.types, strict=True)]

    def _edge(self, k: int, i: int, leaves: list[Any], block: Block) -> bool:
        """A carried tile whose edges differ from before: True when the loop is to carry them.

        Where the edge moves with the loop, the lanes outside keep what they had, as if they did not take part.
        """
        got: TileValue = leaves[i]
        made = {v for op in block.walk() for v in [*op.results, *(a for b in op.blocks for a in b.args)]} | set(block.args)
        assert got.meta is not None
        moving = {a: e for a, e in got.meta.edges.items() if made.intersection(e.key())}
        if moving:
            old = cast(TileValue(block.args[len(block.args) - len(self.dynamic) + k], meta=self.metas[k]), got.type, self.names[i], "")
            leaves[i] = _HOOKS["keep"](got, old, tuple(moving))
        edges = {a: e.unknown() for a, e in got.meta.edges.items() if a not in moving}
        meta = Meta({**(self.metas[k].edges if self.metas[k] else {}), **edges}, got.meta.rows, got.meta.walks)  # type: ignore[union-attr]
        if meta.same(self.metas[k]) or (not meta.edges and not meta.rows):
            return False
        self.metas[k] = meta
        return True

    def operands(self) -> list[TileValue]:
        return [cast(self.init[i], t, self.names[i], "in the loop") for i, t in zip(self.dynamic, self.types, strict=True)]


# -- loops -------------------------------------------------------------------------------------------------------------
def for_loop(bounds: Any, init: Any, body: Callable[[TileValue, Any], Any], names: Sequence[str] | None = None,
             index_name: str | None = None) -> Any:
    """``for i in bounds: carry = body(i, carry)``, as a loop of the program; returns the last carry.

    Args:
        bounds: a TileRange, or (low, high, step).
        init: a structure of tiles, scalars and numbers.

    Raises:
        KernelError: a carried value changes its type or structure.
    """
    r = bounds if isinstance(bounds, TileRange) else TileRange(*bounds)
    prog = current()
    limits = [index_value(x) for x in (r.lo, r.hi, r.step)]
    carry = Carry(init, names)
    what = "in the loop"
    for _ in range(4):
        block = Block([INDEX, *carry.types], [index_name, *carry.value_names()])
        with prog.block(block):
            after = carry.settle(body(TileValue(block.args[0]), carry.inside(block.args[1:])), what, block)
            if after is not None:
                prog.builder.op("yield", [v.value for v in after])
        if after is not None:
            break
    else:
        fail("the types of the loop's carried values do not settle")
    return _close(prog, "for", limits, carry, [block], r.attrs)


def while_loop(condition: Callable[[Any], Any], body: Callable[[Any], Any], init: Any, names: Sequence[str] | None = None) -> Any:
    """``while condition(carry): carry = body(carry)``, as a loop of the program; returns the last carry.

    Raises:
        KernelError: the condition is not a bool scalar, or a carried value changes its type or structure.
    """
    prog = current()
    carry = Carry(init, names)
    for _ in range(4):
        head = Block(carry.types, carry.value_names())
        with prog.block(head):
            go = as_value(condition(carry.inside(head.args)))
            if go.shape or go.dtype is not bool_:
                fail(f"the condition of a while loop is a bool scalar, not {go.type}")
            prog.builder.op("yield", [go.value, *head.args])
        block = Block(carry.types, carry.value_names())
        with prog.block(block):
            after = carry.settle(body(carry.inside(block.args)), "in the loop", block)
            if after is not None:
                prog.builder.op("yield", [v.value for v in after])
        if after is not None:
            break
    else:
        fail("the types of the loop's carried values do not settle")
    return _close(prog, "while", [], carry, [head, block], {})


def _close(prog: TileProgram, name: str, limits: list[TileValue], carry: Carry, blocks: list[Block], attrs: dict[str, Any]) -> Any:
    """Append the loop op, without the carried values that the body leaves alone."""
    operands = carry.operands()
    first = len(blocks[-1].args) - len(operands)
    yielded = blocks[-1].terminator.operands
    kept = [k for k in range(len(operands)) if yielded[k] is not blocks[-1].args[first + k]]
    values: list[Value] = [v.value for v in operands]
    for k, v in enumerate(operands):
        if k not in kept:
            for b in blocks:
                _replace(b, b.args[len(b.args) - len(operands) + k], v.value)
    for b in blocks:
        skip = len(b.args) - len(operands)
        b.args = [*b.args[:skip], *(b.args[skip + k] for k in kept)]
        for i, a in enumerate(b.args):
            a.index = i
        lead = len(b.terminator.operands) - len(operands)
        b.terminator.operands = [*b.terminator.operands[:lead], *(b.terminator.operands[lead + k] for k in kept)]
    op = _append(prog, name, [*limits, *(operands[k] for k in kept)], blocks, [carry.types[k] for k in kept], attrs)
    for k, r in zip(kept, op.results, strict=True):
        r.name = carry.value_names()[k]
        values[k] = r
    return carry.inside(values)


def _append(prog: TileProgram, name: str, operands: Sequence[TileValue], blocks: Sequence[Block], types: Sequence[Any],
            attrs: dict[str, Any]) -> Op:
    return prog.builder.op(name, [v.value for v in operands], types, attrs, blocks, prog.builder.loc or location())


def _replace(block: Block, old: Value, new: Value) -> None:
    for op in block.walk():
        if old in op.operands:
            op.operands = [new if v is old else v for v in op.operands]


# -- conditionals ------------------------------------------------------------------------------------------------------
def cond(condition: Any, then: Callable[[], Any], otherwise: Callable[[], Any], names: Sequence[str] | None = None) -> Any:
    """``then()`` if ``condition`` (a bool scalar) else ``otherwise()``; both give structures of equal types.

    Raises:
        KernelError: the condition is a tile, or the branches give different types.
    """
    p = predicate(condition)
    blocks, results = branches((then, otherwise))
    return merge(p, blocks, results, names)


def predicate(x: Any) -> TileValue:
    """The condition of an ``if``.

    Raises:
        KernelError: it is not a bool scalar.
    """
    p = as_value(x)
    if p.shape or p.dtype is not bool_:
        fail(f"the condition of an `if` is a bool scalar, not {p.type}",
             hints=["compare: `if n > 0`", "use tile.where(condition, a, b) to choose lane by lane"])
    return p


def branches(bodies: Sequence[Callable[[], Any]]) -> tuple[list[Block], list[Any]]:
    """Run each body into a block of its own; the blocks lack their terminators."""
    prog = current()
    blocks, results = [], []
    for body in bodies:
        block = Block()
        with prog.block(block):
            results.append(body())
        blocks.append(block)
    return blocks, results


def merge(p: TileValue, blocks: list[Block], results: Sequence[Any], names: Sequence[str] | None) -> Any:
    """End the blocks of an ``if`` with the values on which they differ, append it, and return the merged structure."""
    prog = current()
    a, b = Carry(results[0], names), Carry(results[1], names)
    if a.shape != b.shape:
        fail(f"the branches of the `if` give different structures: {a.shape} and {b.shape}")
    types: dict[int, Any] = {}
    for i, (x, y) in enumerate(zip(a.init, b.init, strict=True)):
        if _same(x, y):
            continue
        if not (_dynamic(x) and _dynamic(y)):
            fail(f"{a.names[i]} differs between the branches of the `if`: {x!r} and {y!r} are known only to Python")
        either_float = isinstance(x, float) or isinstance(y, float)
        types[i] = x.type if isinstance(x, TileValue) else y.type if isinstance(y, TileValue) else \
            _default_type(1.0 if either_float else x)
    metas = {i: _branch_meta(blocks, a.init[i], b.init[i]) for i in types}
    for block, c in zip(blocks, (a, b), strict=True):
        with prog.block(block):
            out = [cast(c.init[i], t, c.names[i], "between the branches of the `if`") for i, t in types.items()]
            out = [_HOOKS["keep"](v, None, tuple(a for a in v.meta.edges if (known := metas[i]) is None or a not in known.edges))
                   if v.meta is not None and v.meta.edges else v for i, v in zip(types, out, strict=True)]
            prog.builder.op("yield", [v.value for v in out])
    op = _append(prog, "if", [p], blocks, list(types.values()), {})
    leaves = list(a.init)
    for i, r in zip(types, op.results, strict=True):
        r.name = a.names[i] if a.names[i].isidentifier() else None
        leaves[i] = TileValue(r, meta=metas[i])
    return a.rebuild(iter(leaves))


def _branch_meta(blocks: list[Block], x: Any, y: Any) -> Meta | None:
    """What is known of a value that the branches of an ``if`` agree on: edges that were known before the ``if``."""
    made = {v for block in blocks for op in block.walk() for v in [*op.results, *(a for b in op.blocks for a in b.args)]}
    found = [v.meta for v in (x, y) if isinstance(v, TileValue) and v.meta is not None]
    edges = {a: e.unknown() for m in found for a, e in m.edges.items() if not made.intersection(e.key())}
    rows = any(m.rows for m in found)
    return Meta(edges, rows) if edges or rows else None


def _same(x: Any, y: Any) -> bool:
    if x is y:
        return True
    if isinstance(x, Operators | Buffer) or isinstance(y, Operators | Buffer):
        return False
    if type(x) is not type(y):
        return False
    try:
        return bool(x == y)
    except (ValueError, TypeError):  # arrays: equal only if the same object
        return False
