"""Graph IR to Schedule IR: one launch after the other.

:class:`BlockScheduler` walks the ops of one Graph block in order.  Pointwise, movement and reduction ops wait until somebody
needs them in memory and then become kernels (``fusion``); every other op is a launch of its own, made by the function that
:data:`LAUNCHES` has for it, which may fold neighbouring ops in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import CompileError, UnsupportedError
from ..ir.core import Block, BufferType, Function, Op, TensorType, Value, uses
from ..ops.movement import is_uniform
from ..ops.table import OPS
from ..transforms.pipeline import USER_PASSES
from ..types.dims import Dim, DimLike
from .elements import buffer_of
from .fusion import Fusion, Materialise, Plan
from .kernels import KernelBuilder
from .memory import plan_memory, reuse_donated
from .order import launch_sooner, settle_in_results
from .split import split_reductions
from .summary import Summaries

Launch = Callable[["BlockScheduler", Op], None]

MERGED = 80  # values of a kernel that computes several roots

# Graph op -> how it becomes launches; ops that are not here follow their stanza (template, external, element).
LAUNCHES: dict[str, Launch] = {}

# Graph op -> tries to write into an operand's memory; false where that is not allowed.
IN_PLACE: dict[str, Callable[[BlockScheduler, Op], bool]] = {}


# Graph ops whose result is their operand's memory.
VIEWS = frozenset({"reshape", "view_as_real", "view_as_complex"})


def launches(*names: str) -> Callable[[Launch], Launch]:
    def enter(fn: Launch) -> Launch:
        LAUNCHES.update(dict.fromkeys(names, fn))
        return fn
    return enter


@dataclass
class Entry:
    """One launch: a plan that may still take in roots, or a finished op."""

    plan: Plan | None = None
    op: Op | None = None


@dataclass
class Program:
    """What all blocks of one scheduled function share."""

    machine: Any
    sizes: tuple[str, ...]
    summaries: Summaries = field(default_factory=Summaries)
    sites: dict[tuple[Op, str], int] = field(default_factory=dict)
    functions: dict[str, Function] = field(default_factory=dict)
    elementwise: set[Op] = field(default_factory=set)
    loops: list[str] = field(default_factory=list)
    weights: dict[Value, tuple[int, int]] = field(default_factory=dict)
    counter: int = 0

    def site(self, op: Op, message: str) -> int:
        return self.sites.setdefault((op, message), len(self.sites))

    def label(self, stem: str) -> str:
        self.counter += 1
        return f"{stem}_{self.counter - 1}"


class BlockScheduler:
    """Schedules the ops of one Graph block into one Schedule block.

    Args:
        homes: buffers that given values have to end up in (the program's results, a loop's next state).
        outer: the scheduler of the block around this one.
    """

    def __init__(self, program: Program, block: Block, out: Block, buffers: dict[Value, Value],
                 homes: dict[Value, Value], outer: BlockScheduler | None = None):
        self.program, self.block, self.out, self.outer = program, block, out, outer
        self.buffers = buffers
        self.homes = homes
        self.entries: list[Entry] = []
        self.position: dict[Value, int] = {}
        self.hidden: set[Value] = set()
        self.views: dict[tuple[Value, BufferType, DimLike], Value] = {}
        self.pretended: set[Value] = set()
        self.users = {v: [op for op, _ in at] for v, at in uses(block).items()}
        self.done: set[Op] = set()
        self.donated: set[Value] = set()  # parameters whose memory may be overwritten
        self.order = {op: k for k, op in enumerate(block.ops)}
        self.fusion = Fusion(self.users, self.ready, program.summaries, program.elementwise, program.weights)
        for op in block.ops:  # operands first, so that the weights of long chains need no recursion
            if op.results and self.fusion.fusable(op):
                self.fusion.weight(op.results[0])
        self._spread_homes()

    # -- memory --------------------------------------------------------------------------------------------------------
    def ready(self, v: Value) -> bool:
        """True when ``v`` is in memory where the next launch runs."""
        if v in self.hidden:
            return False
        return v in self.buffers or v in self.pretended or (self.outer is not None and self.outer.ready(v))

    def buffer(self, v: Value) -> Value | None:
        got = self.buffers.get(v)
        if got is None and self.outer is not None:
            return self.outer.buffer(v)
        return got

    def emit(self, op: Op) -> None:
        self.out.ops.append(op)

    def alloc(self, t: BufferType) -> Value:
        """A temporary of the whole program, wherever it is used."""
        if self.outer is not None:
            return self.outer.alloc(t)
        op = Op("alloc", (), (t,))
        self.emit(op)
        return op.results[0]

    def view(self, buffer: Value, t: BufferType, offset: DimLike = 0) -> Value:
        """The same memory under another dense shape."""
        whole = base_of(buffer)
        buffer = whole if whole is not None else buffer
        if buffer.type == t and offset == 0:
            return buffer
        key = (buffer, t, offset)
        if key not in self.views:
            op = Op("view", (buffer,), (t,), {"offset": offset})
            self.emit(op)
            self.views[key] = op.results[0]
        return self.views[key]

    def flat(self, buffer: Value) -> Value:
        """The buffer with one axis."""
        return self.view(buffer, BufferType(buffer.type.dtype, (buffer.type.size,)))

    def place(self, v: Value) -> Value:
        """A buffer for ``v`` to be written into: its home, or a new temporary."""
        home = self.homes.get(v)
        if home is None:
            return self.alloc(buffer_of(v.type))
        return self.view(home, buffer_of(v.type))

    def _spread_homes(self) -> None:
        """A reshape shares memory with its operand, so the operand may be computed straight into the home."""
        for v, home in list(self.homes.items()):
            while v.op is not None and v.op.name in VIEWS:
                v = v.op.operands[0]
                if v in self.homes or v.op not in self.order:
                    break
                self.homes[v] = home

    # -- demand ----------------------------------------------------------------------------------------------------------
    def demand(self, v: Value) -> Value:
        """The buffer of ``v``, computing it if it is not in memory yet."""
        while not self.ready(v):
            op = v.op
            if op is None:
                raise CompileError(f"the value {v!r} has no buffer")
            if op.name == "constant" and not is_uniform(op):
                self._constant(v)
            elif op.name in VIEWS:
                self.look(op)
            elif op not in self.done and not self.fusion.fusable(op):
                self.launch(op)
            else:
                self._kernel(v)
        got = self.buffer(v)
        assert got is not None
        return got

    def look(self, op: Op) -> None:
        """The result of an op in :data:`VIEWS`."""
        v = op.results[0]
        self.buffers[v] = self.view(self.demand(op.operands[0]), buffer_of(v.type))
        self.position[v] = self.position.get(op.operands[0], -1)

    def _constant(self, v: Value) -> None:
        assert v.op is not None
        value = np.ascontiguousarray(v.op.attrs["value"])
        op = Op("constant", (), (buffer_of(v.type),), {"value": value}, (), v.op.loc)
        self.emit(op)
        self.buffers[v] = op.results[0]
        self.position[v] = -1

    def _plan(self, roots: Sequence[Value]) -> Plan:
        for _ in range(1000):
            try:
                return self.fusion.plan(roots)
            except Materialise as m:
                if m.value in roots:
                    raise CompileError(f"no kernel computes {m.value!r}") from m
                self.demand(m.value)
        raise CompileError(f"the fusion of {roots[0]!r} does not settle")

    def _kernel(self, v: Value) -> None:
        if v.type.size == 0:  # nothing to compute
            self.buffers[v] = self.place(v)
            self.position[v] = -1
            return
        plan = self._plan([v])
        if self.ready(v):  # a kernel made for a dependency stored it on the side
            return
        merged = self._merge(plan, v)
        if merged is None:
            self.entries.append(Entry(plan=plan))
            at = len(self.entries) - 1
        else:
            at, plan = merged
            self.entries[at].plan = plan
        for r in (*plan.roots, *plan.side):
            if r not in self.buffers:
                self.buffers[r] = self.place(r)
            self.position[r] = at

    def _merge(self, plan: Plan, v: Value) -> tuple[int, Plan] | None:
        """An earlier kernel of the same shape that can compute ``v`` too."""
        for at in range(len(self.entries) - 1, max(-1, len(self.entries) - 5), -1):
            old = self.entries[at].plan
            if old is None:
                continue
            if old.shape != plan.shape or not self._related(old, plan):
                continue
            outputs = {*old.roots, *old.side}
            self.hidden |= outputs
            try:
                both = self.fusion.plan([*old.roots, v])
            except Materialise:
                continue
            finally:
                self.hidden -= outputs
            if any(self.position.get(x, -1) >= at for x in both.leaves) or not outputs <= {*both.roots, *both.side}:
                continue
            if len(both.leaves) + len(both.roots) + len(both.side) <= 12 and len(both.visits) <= MERGED:
                return at, both
        return None

    def _related(self, old: Plan, new: Plan) -> bool:
        outputs = {*old.roots, *old.side}
        return any(x in outputs or x in old.leaves for x in new.leaves) or (not old.leaves and not new.leaves)

    # -- launches --------------------------------------------------------------------------------------------------------
    def append(self, op: Op, results: Sequence[Value] = (), buffers: Sequence[Value] = ()) -> None:
        """A finished launch that writes ``results`` into ``buffers``."""
        self.entries.append(Entry(op=op))
        for v, b in zip(results, buffers, strict=True):
            self.buffers[v] = b
            self.position[v] = len(self.entries) - 1

    def launch(self, op: Op) -> None:
        """Make the launch of an op that is not fused."""
        self.done.add(op)
        rule = OPS.get(op.name)
        special = LAUNCHES.get(op.name)
        if special is not None:
            special(self, op)
        elif op.name in VIEWS:
            self.look(op)
        elif rule is not None and rule.template is not None:
            self.plain(op, "template", {"template": rule.template, "op": op.name,
                                            "name": self.program.label(op.name)})
        elif rule is not None and rule.external is not None:
            self.plain(op, "external", {"function": rule.external, "op": op.name})
        else:
            raise UnsupportedError(f"{op.name!r} cannot be scheduled: its stanza names no element rule, template or routine",
                                   loc=op.loc)

    def plain(self, op: Op, kind: str, attrs: dict[str, Any]) -> None:
        """Operands then results, whole buffers each."""
        operands = [self.demand(v) for v in op.operands]
        results = [self.place(r) for r in op.results]
        outs = tuple(range(len(operands), len(operands) + len(results)))
        self.append(Op(kind, [*operands, *results], (), {**op.attrs, **attrs, "outs": outs}, (), op.loc), op.results, results)

    def run(self, ops: Iterable[Op]) -> None:
        """Launch everything that is not fusable, in order."""
        for op in ops:
            if op.name in ("return", "yield"):
                break
            if op in self.done or op.name == "constant":
                continue
            in_place = IN_PLACE.get(op.name)
            if in_place is not None and in_place(self, op):
                continue
            if self.fusion.fusable(op):
                continue
            self.launch(op)

    def finish(self, results: Sequence[tuple[Value, Value | None]]) -> None:
        """Bring each value into the buffer where it belongs (None: anywhere), and write all launches out."""
        for v, home in results:
            self.demand(v)
            if home is not None and base_of(self.buffers.get(v)) is not base_of(home):
                self.copy(v, home)
        self.flush()

    def alias_donated(self, results: Sequence[tuple[Value, Value]]) -> tuple[tuple[int, int], ...]:
        """(result, parameter) pairs: results that were made in the memory of a donated parameter."""
        out: list[tuple[int, int]] = []
        for k, (v, _) in enumerate(results):
            if v.op is None:
                continue
            where = base_of(self.buffers.get(v))
            for i, a in enumerate(self.block.args):
                if a in self.donated and where is self.buffers[a] and i not in [p for _, p in out]:
                    out.append((k, i))
        return tuple(out)

    def copy(self, v: Value, home: Value) -> None:
        source = self.buffer(v)
        assert source is not None
        copy = Value(v.type, Block())
        plan = Plan([copy], tuple(v.type.shape), tuple(k for k, e in enumerate(v.type.shape) if e != 1))
        plan.leaves[copy] = None
        plan.ranges = {f"${k}": e for k, e in enumerate(plan.shape)}
        self.buffers[copy] = source
        op = self.builder().build(plan, {copy: home}, self.program.label("copy"))
        self.append(op)

    def builder(self) -> KernelBuilder:
        p = self.program
        return KernelBuilder(p.machine, p.sizes, self.buffer, p.summaries.lanes(p.machine), p.site, self.flat)

    def flush(self) -> None:
        """Write the launches collected so far into the Schedule block, in order."""
        builder = self.builder()
        for e in self.entries:
            if e.plan is not None:
                e.op = builder.build(e.plan, self.buffers, self.program.label(_stem(e.plan)))
            assert e.op is not None
            self.emit(e.op)
        self.entries.clear()


def base_of(buffer: Value | None) -> Value | None:
    """The buffer behind whole views."""
    while buffer is not None and buffer.op is not None and buffer.op.name == "view" and buffer.op.attrs["offset"] == 0:
        buffer = buffer.op.operands[0]
    return buffer


def _stem(plan: Plan) -> str:
    op = plan.roots[-1].op
    return op.name if op is not None else "copy"


Sites = dict[tuple[Op, str], int]


def schedule(fn: Function, machine: Any) -> Function:
    """The Schedule program of a Graph function: parameters, then results, as buffers.

    Parameters in the Graph attribute ``donated`` (their positions) may be overwritten.  A result that then lies in a
    parameter's memory is listed in ``aliases`` as (result, parameter): its own buffer is not written.

    Raises:
        UnsupportedError: an op has no way to be computed on this level.
    """
    sites: Sites = {}
    out = _schedule(fn, machine, sites)
    if sites:
        out.attrs["sites"] = tuple(message for _, message in sites)
    _note_multiples(out, fn.attrs.get("constraints", ()))
    for p in USER_PASSES:
        if p.decide is not None:
            _decide(out, p.decide)
    return out


def _note_multiples(fn: Function, constraints: Sequence[str]) -> None:
    """Give kernels the sizes that are known to be multiples (``D%8 == 0``), so that their vectors need no masks."""
    found = [m for m in map(re.compile(r"(\w+)%(\d+) == 0").fullmatch, constraints) if m is not None]
    for op in fn.walk() if found else ():
        if op.name == "kernel":
            named = {n for _, extent in op.attrs["grid"] if isinstance(extent, Dim) for n in extent.names}
            own = tuple((m[1], int(m[2])) for m in found if m[1] in named)
            if own:
                op.attrs["multiples"] = own


def _decide(fn: Function, decide: Callable[[Op], None]) -> None:
    for f in fn.functions.values():
        if f.level == "sched":
            _decide(f, decide)
    for op in fn.walk():
        if op.name == "kernel":
            decide(op)


def _schedule(fn: Function, machine: Any, sites: Sites) -> Function:
    """As :func:`schedule`; run-time checks of the function and its callees share one numbering."""
    fn = split_reductions(fn, machine)
    sizes = tuple(fn.attrs.get("sizes", ())) or size_names(fn)
    program = Program(machine, sizes, sites=sites)
    out = Function(fn.name, "sched")
    buffers: dict[Value, Value] = {}
    for a in fn.args:
        buffers[a] = out.body.add_arg(buffer_of(a.type), a.name)
    homes: dict[Value, Value] = {}
    results: list[tuple[Value, Value]] = []
    for k, v in enumerate(fn.returns):
        home = out.body.add_arg(buffer_of(v.type), f"out{k}" if len(fn.returns) > 1 else "out")
        results.append((v, home))
        if v.op is not None:
            homes.setdefault(v, home)
    program.functions = {n: _schedule(f, machine, sites) for n, f in fn.functions.items() if f.level == "graph"}
    program.functions |= {n: f for n, f in fn.functions.items() if f.level == "tile"}
    top = BlockScheduler(program, fn.body, out.body, buffers, homes)
    top.donated.update(fn.args[i] for i in fn.attrs.get("donated", ()))
    top.run(fn.body.ops)
    aliases = top.alias_donated(results)
    top.finish([pair for k, pair in enumerate(results) if k not in dict(aliases)])
    out.body.ops.append(Op("return"))
    out.functions = program.functions
    out.attrs = {"inputs": len(fn.args), "outputs": len(results), "sizes": sizes}
    if aliases:
        out.attrs["aliases"] = aliases
    reuse_donated(out, fn.attrs.get("donated", ()))
    launch_sooner(out)
    settle_in_results(out)
    return plan_memory(out)


def size_names(fn: Function) -> tuple[str, ...]:
    """The symbolic sizes of a Graph function, in order of first appearance."""
    seen: dict[str, None] = {}
    for t in [a.type for a in fn.args] + [r.type for op in fn.walk() for r in op.results]:
        if isinstance(t, TensorType):
            for d in t.shape:
                if isinstance(d, Dim):
                    seen.update(dict.fromkeys(sorted(d.names)))
    return tuple(seen)
