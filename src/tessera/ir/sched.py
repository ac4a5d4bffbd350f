"""Schedule IR: how the work is cut up.

A ``sched`` function is a sequence of launches over explicit, mutable, dense row-major buffers.  Its parameters are
the program's inputs, captured tensors and outputs (buffers).  Function attributes: ``inputs`` / ``outputs`` (how many),
``sizes`` (names of the symbolic sizes, passed to the program as int64), ``arena`` (bytes of the temporaries, a size).

Top level::

    %t = alloc() {offset = <bytes>} : buf<f32[B, 768]>      a temporary; ``offset`` in the arena after memory planning
    %c = constant() {value = dense<…>} : buf<f32[3]>          a small constant
    %v = view(%t) {offset = <elements>} : buf<f32[B*768]>    the same memory under another dense shape
    kernel(%x, %o) {…} do(%x, %o) { … }                       one launch: a nest of loops (below)
    template(%a, %b, %o) {template = "matmul", …} do(…) {…}   one launch: a tile program from ``kernels/``; attributes and
                                                              blocks as :mod:`tessera.scheduling.templates` says
    launch(%a, %o) {callee = "mine", outs = (1,)}             one launch: a user's Tile function in ``functions``
    external(%a, %o) {function = "…", …}                      a host routine (LAPACK)
    cond(%p) do() {…} do() {…}                                launches under control flow; state lives in buffers
    while() do() {… yield(%flag)} do() {…}                    ``%flag``: buf<bool[]>
    loop() {over = ("t", <L>)} do() {…}                       a sequential loop of launches; ``t`` may occur in view offsets
    call(%bufs…) {callee = "layer", outs}                     an outlined Schedule function
    return()

A ``kernel`` computes with *scalars*.  Its block's arguments are its buffers, in operand order.  Loop variables are
names in the algebra of sizes, so an index is a size expression: ``load(%x) {index = (<i>, <4*j+k>)}``.

=============  =====================================================================================================
attributes     ``name``; ``grid = (("i", <B>), ("j", 768), …)``: the parallel loops, outermost first;
               ``outs = (1, …)``: which operands are written; decisions on top: ``lane`` (the vectorised loop's name),
               ``tile`` (elements of each parallel loop one block covers), ``unroll`` …;
               ``multiples = (("D", 8),)``: sizes known to be multiples of a number, so that vectors of it need no masks
``load``       ``(%buf, dyn…) {index = (…), dyn = ("g0", …)}`` -> scalar.  ``dyn`` names int64 operands used in ``index``
               (gathers).  A load never leaves its buffer, whatever its index: guards are explicit
``store``      ``(%buf, %value, dyn…) {index = (…), dyn = (…)}``
``index``      ``(dyn…) {value = <expr>, dyn = (…)} : int64``: an index expression as a number
``constant``   ``() {value = 1.5} : f32``
``guard``      ``(%p) do() {… yield(%v)} {…} : T`` with ``other`` attribute: evaluates the block where ``p`` holds, else gives ``other``
``reduce``     ``() {over = (("k", 768), …), combine = "add"} do() {… yield(%v)} : T``.  ``combine``: add mul max min and or
               xor; ``argmax argmin`` (yields value, int64 index; results the same).  Order: fixed, see below
``for``        ``() {over = (("j", 768),)} do() {…}``: an inner parallel loop whose body stores
``check``      ``(%ok, %value) {site = n}``: records the first failing (site, value) in the status word
pointwise ops  the names of the op table on scalars: ``add mul exp select convert …``
``yield``      ends a nested block
=============  =====================================================================================================

**Order inside a kernel.**  Points of the grid run in any order and never read what another point stores.  Within a point the
ops run in order, each ``reduce`` and ``for`` to its end before the next op: a load sees what this point stored before.  The body of
a ``reduce`` may store too (softmax stores ``exp(x - max)`` while it sums, and a ``for`` then scales what it stored).

Values defined directly in the kernel's block (loads, reductions, arithmetic) are per point of the grid; values defined
inside ``reduce`` / ``for`` are per point of the inner loops too.  So softmax over the last axis is one kernel with grid
``i``, two reductions over ``j`` and one ``for`` over ``j``.

**Order of reductions** (numeric parameter ``lanes``, an attribute of ``reduce``, fixed by dtype and target): iterations of
the row-major linearised ``over`` loops go round-robin to ``lanes`` accumulators, each summed in order; the lanes are
combined by halving (lane l with lane l + n/2, repeatedly).  Accumulators start from the identity (0, 1, the least or greatest
value), which is also the result of a reduction over nothing.  ``lanes = 1`` is the plain loop.  Splitting a long
reduction into chunks is two kernels, so it is visible here.

Function attributes, further: ``sites`` (the message of each ``check`` site; ``{value}`` stands for the value), ``aliases``
(pairs (result, parameter): that result lies in the memory of a donated parameter, and its own buffer is not written).
A ``call``'s temporaries lie at its ``offset`` in the caller's arena.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..types.dims import Dim, DimLike, known_less
from ..types.dtypes import bool_, int64
from .core import Block, BufferType, Function, Op, ScalarType, Value
from .graph import GrammarError, require

COMBINES = ("add", "mul", "max", "min", "and", "or", "xor", "argmax", "argmin")

# Scalar ops with rules of their own; every other name is a pointwise op: scalars in, one scalar out.
_SCALAR: dict[str, Callable[[_Body, Op], None]] = {}
_TOP: dict[str, Callable[[_Verifier, Op], None]] = {}


def verify(fn: Function) -> None:
    """Check that ``fn`` and what it calls are well-formed Schedule programs.

    Raises:
        GrammarError: naming the op and what is wrong with it.
    """
    for f in fn.functions.values():
        if f.level == "sched":
            verify(f)
    if fn.level != "sched":
        raise GrammarError(f"@{fn.name} is a {fn.level} function, not a sched function")
    _Verifier(fn).run()


def names_of(*exprs: Any) -> set[str]:
    """The names in size expressions."""
    return {n for e in exprs if isinstance(e, Dim) for n in e.names}


class _Verifier:
    """Walks the launches of one function."""

    def __init__(self, fn: Function):
        self.fn = fn
        self.defined: set[Value] = set()
        self.names: set[str] = set(fn.attrs.get("sizes", ()))

    def run(self) -> None:
        for a in self.fn.args:
            if not isinstance(a.type, BufferType):
                raise GrammarError(f"@{self.fn.name}: the parameter {a!r} is not a buffer")
            self.known(a.type.shape, f"@{self.fn.name}: the parameter {a.type}")
        self.defined.update(self.fn.args)
        ops = self.fn.body.ops
        if not ops or ops[-1].name != "return":
            raise GrammarError(f"@{self.fn.name} does not end in return")
        self.block(self.fn.body, "return")

    def known(self, exprs: Sequence[DimLike], where: str) -> None:
        unknown = names_of(*exprs) - self.names
        if unknown:
            raise GrammarError(f"{where} mentions {min(unknown)!r}, which is neither a size nor a loop around it")

    def block(self, block: Block, end: str) -> list[Value]:
        for op in block.ops[:-1]:
            require(op.name in _TOP, op, "there is no such launch in Schedule IR")
            self.uses(op)
            _TOP[op.name](self, op)
            self.defined.update(op.results)
        last = block.ops[-1] if block.ops else None
        if last is None or last.name != end:
            raise GrammarError(f"a block of @{self.fn.name} does not end in {end}")
        self.uses(last)
        return last.operands

    def uses(self, op: Op) -> None:
        for i, v in enumerate(op.operands):
            require(v in self.defined, op, f"operand {i} is used before it is defined, or outside its block")
            require(isinstance(v.type, BufferType), op, f"operand {i} is not a buffer")

    def result(self, op: Op) -> BufferType:
        require(len(op.results) == 1 and isinstance(op.results[0].type, BufferType), op, "gives one buffer")
        t: BufferType = op.results[0].type
        self.known(t.shape, op.name)
        return t

    def nested(self, op: Op, n: int) -> list[list[Value]]:
        require(len(op.blocks) == n, op, f"has {len(op.blocks)} blocks, not {n}")
        out = []
        for b in op.blocks:
            require(not b.args, op, "its blocks take no arguments")
            saved = set(self.defined)
            out.append(self.block(b, "yield"))
            self.defined = saved
        return out

    def outs(self, op: Op) -> None:
        outs = op.attrs.get("outs")
        require(isinstance(outs, tuple) and all(isinstance(i, int) and 0 <= i < len(op.operands) for i in outs), op,
                f"outs = {outs} does not name operands")

    def loops(self, op: Op, loops: Any) -> dict[str, DimLike]:
        out: dict[str, DimLike] = {}
        require(isinstance(loops, tuple), op, f"{loops!r} are not loops")
        for loop in loops:
            require(isinstance(loop, tuple) and len(loop) == 2 and isinstance(loop[0], str), op, f"{loop!r} is not a loop")
            require(loop[0] not in self.names and loop[0] not in out, op, f"the loop {loop[0]!r} takes a name in use")
            self.known((loop[1],), op.name)
            out[loop[0]] = loop[1]
        return out


def _top(*names: str) -> Callable[[Callable[[_Verifier, Op], None]], Callable[[_Verifier, Op], None]]:
    def enter(rule: Callable[[_Verifier, Op], None]) -> Callable[[_Verifier, Op], None]:
        _TOP.update(dict.fromkeys(names, rule))
        return rule
    return enter


@_top("alloc")
def _alloc(v: _Verifier, op: Op) -> None:
    require(not op.operands, op, "takes no operands")
    v.result(op)
    v.known((op.attrs.get("offset", 0),), "alloc")


@_top("constant")
def _constant(v: _Verifier, op: Op) -> None:
    t, value = v.result(op), op.attrs.get("value")
    require(isinstance(value, np.ndarray) and value.shape == t.shape and value.dtype == t.dtype.np, op,
            f"the value does not have the type {t}")


@_top("view")
def _view(v: _Verifier, op: Op) -> None:
    require(len(op.operands) == 1, op, "looks at one buffer")
    t, source = v.result(op), op.operands[0].type
    require(t.dtype.real is source.dtype.real, op, f"changes the dtype from {source.dtype} to {t.dtype}")
    if t.dtype is not source.dtype:  # complex elements as pairs, or back
        require(t.nbytes == source.nbytes and op.attrs.get("offset", 0) == 0, op, "reads complex elements as pairs in part")
        return
    v.known((op.attrs.get("offset", 0),), "view")
    offset = op.attrs["offset"]
    if isinstance(offset, int):
        require(offset >= 0 and not known_less(source.size, offset + t.size, {}), op, "leaves the buffer")


@_top("kernel")
def _kernel(v: _Verifier, op: Op) -> None:
    v.outs(op)
    grid = v.loops(op, op.attrs.get("grid"))
    require(len(op.blocks) == 1, op, "has one block")
    require([a.type for a in op.blocks[0].args] == [x.type for x in op.operands], op,
            "the block's arguments are not the operands")
    lane = op.attrs.get("lane")
    require(lane is None or lane in grid, op, f"lane = {lane!r} is not a loop of the grid")
    written = _Body(v, op, grid).run(op.blocks[0], 0)
    positions = {op.blocks[0].args.index(a) for a in written}
    require(positions == set(op.attrs["outs"]), op, f"outs = {op.attrs['outs']}, but it stores to {sorted(positions)}")


@_top("template")
def _template(v: _Verifier, op: Op) -> None:
    v.outs(op)
    require(isinstance(op.attrs.get("template"), str), op, "names no template")
    names = op.attrs.get("blocks", ())
    require(len(names) == len(op.blocks), op, f"names {len(names)} blocks and has {len(op.blocks)}")
    loops: dict[str, DimLike] = {}
    for value in op.attrs.values():
        pairs = (value,) if isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) else value
        for pair in pairs if isinstance(pairs, tuple) else ():
            if isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], str):
                loops.update(v.loops(op, (pair,)))
    for name, block in zip(names, op.blocks, strict=True):
        types = [a.type for a in block.args]
        require(types[:len(op.operands)] == [x.type for x in op.operands], op, f"{name}: the arguments are not the operands")
        require(all(isinstance(t, ScalarType) for t in types[len(op.operands):]), op, f"{name}: scalars follow the buffers")
        written = {block.args.index(a) for a in _Body(v, op, loops).run(block, 0 if name == "epilogue" else 1)}
        require(written <= set(op.attrs["outs"]), op, f"{name}: outs = {op.attrs['outs']}, but it stores to {sorted(written)}")


@_top("external", "launch", "call")
def _outside(v: _Verifier, op: Op) -> None:
    v.outs(op)
    if op.name != "external":
        callee = v.fn.functions.get(op.attrs.get("callee", ""))
        require(callee is not None, op, f"@{v.fn.name} has no function {op.attrs.get('callee')!r}")
        assert callee is not None
        level = "sched" if op.name == "call" else "tile"
        require(callee.level == level, op, f"@{callee.name} is a {callee.level} function, not a {level} function")
        require(op.name == "launch" or len(callee.args) == len(op.operands), op,
                f"@{callee.name} takes {len(callee.args)} buffers, not {len(op.operands)}")


def _flag(op: Op, values: Sequence[Value]) -> None:
    require(len(values) == 1 and values[0].type == BufferType(bool_, ()), op, "needs one buffer of a bool[]")


@_top("cond")
def _cond(v: _Verifier, op: Op) -> None:
    _flag(op, op.operands)
    v.nested(op, 2)


@_top("while")
def _while(v: _Verifier, op: Op) -> None:
    test, _ = v.nested(op, 2)
    _flag(op, test)


@_top("loop")
def _loop(v: _Verifier, op: Op) -> None:
    loops = v.loops(op, (op.attrs.get("over"),))
    v.names |= loops.keys()
    v.nested(op, 1)
    v.names -= loops.keys()


class _Body:
    """Checks the scalar ops of one kernel (or template block)."""

    def __init__(self, outer: _Verifier, op: Op, loops: dict[str, DimLike]):
        self.outer, self.op = outer, op
        self.names = outer.names | loops.keys()
        self.defined: set[Value] = set()
        self.written: set[Value] = set()

    def run(self, block: Block, yields: int) -> set[Value]:
        """Check the block; the buffers that it stores to."""
        self.defined.update(block.args)
        self.block(block, yields)
        return self.written

    def block(self, block: Block, yields: int) -> list[Value]:
        require(bool(block.ops) and block.ops[-1].name == "yield", self.op, "a block does not end in yield")
        saved = set(self.defined)
        for op in block.ops[:-1]:
            self.uses(op)
            _SCALAR.get(op.name, _pointwise)(self, op)
            self.defined.update(op.results)
        last = block.ops[-1]
        self.uses(last)
        require(len(last.operands) == yields, self.op, f"a block yields {len(last.operands)} values, not {yields}")
        self.defined = saved
        return last.operands

    def uses(self, op: Op) -> None:
        for i, v in enumerate(op.operands):
            require(v in self.defined, op, f"operand {i} is used before it is defined, or outside its block")

    def index(self, op: Op, exprs: Sequence[DimLike], dynamics: Sequence[Value]) -> None:
        names = op.attrs.get("dyn", ())
        require(len(names) == len(dynamics), op, f"dyn names {len(names)} operands, there are {len(dynamics)}")
        require(all(d.type == ScalarType(int64) for d in dynamics), op, "an index that is a value is an int64")
        unknown = names_of(*exprs) - self.names - set(names)
        require(not unknown, op, f"the index mentions {min(unknown, default='')!r}, which is no loop around it")

    def scalar(self, op: Op) -> Any:
        require(len(op.results) == 1 and isinstance(op.results[0].type, ScalarType), op, "gives one scalar")
        return op.results[0].type


def _scalar(*names: str) -> Callable[[Callable[[_Body, Op], None]], Callable[[_Body, Op], None]]:
    def enter(rule: Callable[[_Body, Op], None]) -> Callable[[_Body, Op], None]:
        _SCALAR.update(dict.fromkeys(names, rule))
        return rule
    return enter


def _pointwise(b: _Body, op: Op) -> None:
    b.scalar(op)
    require(not op.blocks, op, "has a nested block")
    require(all(isinstance(v.type, ScalarType) for v in op.operands), op, "works on scalars")


@_scalar("load")
def _load(b: _Body, op: Op) -> None:
    t = op.operands[0].type
    require(isinstance(t, BufferType), op, "loads from a buffer")
    require(b.scalar(op) == ScalarType(t.dtype), op, f"gives {op.results[0].type} from {t}")
    _place(b, op, t, op.operands[1:])


@_scalar("store")
def _store(b: _Body, op: Op) -> None:
    t = op.operands[0].type
    require(isinstance(t, BufferType) and not op.results, op, "stores to a buffer and gives nothing")
    require(op.operands[1].type == ScalarType(t.dtype), op, f"stores {op.operands[1].type} to {t}")
    _place(b, op, t, op.operands[2:])
    b.written.add(op.operands[0])


def _place(b: _Body, op: Op, t: BufferType, dynamics: Sequence[Value]) -> None:
    index = op.attrs.get("index")
    require(isinstance(index, tuple) and len(index) == t.rank, op, f"the index {index} does not fit {t}")
    b.index(op, index, dynamics)  # type: ignore[arg-type]


@_scalar("index")
def _index(b: _Body, op: Op) -> None:
    require(b.scalar(op) == ScalarType(int64), op, "gives an int64")
    b.index(op, (op.attrs["value"],), op.operands)


@_scalar("constant")
def _number(b: _Body, op: Op) -> None:
    b.scalar(op)
    require(isinstance(op.attrs.get("value"), bool | int | float | complex), op, "the value is not a number")


@_scalar("guard")
def _guard(b: _Body, op: Op) -> None:
    require([v.type for v in op.operands] == [ScalarType(bool_)], op, "needs one bool")
    require("other" in op.attrs and len(op.blocks) == 1, op, "needs one block and the attribute other")
    (v,) = b.block(op.blocks[0], 1)
    require(v.type == b.scalar(op), op, f"gives {op.results[0].type}, its block yields {v.type}")


@_scalar("check")
def _check(b: _Body, op: Op) -> None:
    require(len(op.operands) == 2 and op.operands[0].type == ScalarType(bool_), op, "needs a bool and a value")
    require(isinstance(op.attrs.get("site"), int), op, "has no site")


@_scalar("reduce")
def _reduce(b: _Body, op: Op) -> None:
    combine, lanes = op.attrs.get("combine"), op.attrs.get("lanes", 1)
    require(combine in COMBINES, op, f"combines with {', '.join(COMBINES)}, not {combine!r}")
    require(isinstance(lanes, int) and lanes > 0 and lanes & (lanes - 1) == 0, op, f"lanes = {lanes} is no power of two")
    count = 2 if combine in ("argmax", "argmin") else 1
    require(len(op.results) == count and len(op.blocks) == 1, op, f"has one block and {count} results")
    values = _inner(b, op, count)
    require([v.type for v in values] == [r.type for r in op.results], op, "yields other types than it gives")


@_scalar("for")
def _for(b: _Body, op: Op) -> None:
    require(not op.results and len(op.blocks) == 1, op, "has one block and no results")
    _inner(b, op, 0)


def _inner(b: _Body, op: Op, yields: int) -> list[Value]:
    b.outer.names, saved = b.names, b.outer.names
    loops = b.outer.loops(op, op.attrs.get("over"))
    b.outer.names = saved
    b.names = b.names | loops.keys()
    out = b.block(op.blocks[0], yields)
    b.names = b.names - loops.keys()
    return out
