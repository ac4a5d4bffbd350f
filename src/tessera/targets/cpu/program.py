"""A whole Schedule program as one native function that every participating thread runs.

``void NAME(ptr ctx, i64 tid)``: the threads walk through the same launches; the blocks of a launch are shared out by
``ts_claim``; where a launch depends on an earlier one they meet at ``ts_barrier``.  A launch with little work is run by
thread 0 alone, and between such launches nobody waits.  Control flow is native too: its flags lie in buffers, thread 0
reads them and all others follow its decision.  A host routine (``external``) is called by thread 0 through the frame's
``HOST`` pointer while the others wait.

Two variables a thread keeps say what has happened since the last meeting: ``dirty`` (a shared launch has run, so
dependent work must meet first) and ``pending`` (a meeting between small launches was skipped, so the next shared launch
must meet first).  All threads compute them alike.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from ...errors import CompileError
from ...ir.core import Block, Function, Op, Value
from ...types.dims import Dim, DimLike, dim_max, dim_min, product, substitute
from . import abi, frame, pool_ir
from .cost import tile_work
from .hazards import Accesses
from .program_sizes import SizeWriter

SERIAL_WORK = 1 << 18  # element operations below which a launch is not shared: some microseconds, a few meetings
SHARES = 8  # chunks that a thread's share of a launch is cut into
POLL_EVERY = 64  # rounds of a while loop between looks for an interrupt


@dataclass(frozen=True)
class Kernel:
    """A compiled launch: its symbol and the tile function behind it."""

    symbol: str
    tile: Function

    @property
    def work(self) -> DimLike:
        return tile_work(self.tile)


def arena_bytes(fn: Function) -> DimLike:
    """Bytes of temporaries of ``fn``, with the largest of those callees behind its own that have no place in it."""
    own: DimLike = fn.attrs.get("arena", 0)
    inner: DimLike = 0
    for op in fn.walk():
        if op.name == "call" and "offset" not in op.attrs:
            callee = _callee(fn, op)
            inner = dim_max(inner, substitute(arena_bytes(callee), _callee_sizes(callee, op)))
    return own + inner


def external_calls(fn: Function) -> list[Op]:
    """The host routines of ``fn`` and its callees, in the order of the numbers that native code uses for them."""
    functions = reachable(fn)
    return [op for f in functions for op in f.walk() if op.name == "external"]


def launch_work(fn: Function, kernels: Mapping[Op, Kernel]) -> list[DimLike]:
    """The distinct amounts of work that the program's launches could share out, in element operations, over the
    program's own sizes."""
    found: dict[DimLike, None] = {}

    def visit(f: Function, env: Mapping[str, DimLike]) -> None:
        for op in f.walk():
            if op in kernels:
                found[substitute(_shared_work(op, kernels[op]), env)] = None
            elif op.name == "call":
                callee = _callee(f, op)
                visit(callee, {n: substitute(d, env) for n, d in _callee_sizes(callee, op).items()})

    visit(fn, {})
    return list(found)


def _work(op: Op, kernel: Kernel) -> DimLike:
    """A launch's element operations over the sizes of the program around it."""
    return substitute(kernel.work, _callee_sizes(kernel.tile, op)) if op.name == "launch" else kernel.work


def _shared_work(op: Op, kernel: Kernel) -> DimLike:
    """A launch's work, or 0 where it is a single block and there is nothing to share."""
    blocks = product(kernel.tile.attrs["grid"])
    if op.name == "launch":
        blocks = substitute(blocks, _callee_sizes(kernel.tile, op))
    return dim_min(blocks - 1, 1) * _work(op, kernel)


def _callee(fn: Function, op: Op) -> Function:
    name = op.attrs["callee"]
    if name not in fn.functions:
        raise CompileError(f"the program calls {name!r}, which it does not define", loc=op.loc)
    return fn.functions[name]


def _callee_sizes(callee: Function, op: Op) -> dict[str, DimLike]:
    """What the callee's sizes are in the caller: read off the shapes of what is passed."""
    out: dict[str, DimLike] = {}
    for parameter, passed in zip(callee.args, op.operands, strict=False):  # a tile function has its sizes behind them
        for d, given in zip(parameter.type.shape, passed.type.shape, strict=True):
            if isinstance(d, Dim) and d.is_name:
                out.setdefault(next(iter(d.names)), given)
    return out


def reachable(fn: Function) -> list[Function]:
    """``fn`` and every Schedule function it calls, each once."""
    out: dict[int, Function] = {}

    def visit(f: Function) -> None:
        if id(f) in out:
            return
        out[id(f)] = f
        for op in f.walk():
            if op.name == "call":
                visit(_callee(f, op))

    visit(fn)
    return list(out.values())


def emit_program(fn: Function, kernels: Mapping[Op, Kernel], name: str = "program") -> str:
    """LLVM IR of the native function ``name`` for a Schedule program.

    Args:
        fn: level ``sched``, with its memory planned (every ``alloc`` has its ``offset``).
        kernels: the compiled kernel of every ``kernel`` and ``template`` op, callees included.

    Raises:
        CompileError: an op has no kernel, a size no value, or an ``alloc`` no offset.
    """
    functions = reachable(fn)
    names = {id(f): f"{name}.{i}.{f.name}" if f is not fn else name for i, f in enumerate(functions)}
    calls = {op: i for i, op in enumerate(external_calls(fn))}
    shared = _Shared(kernels, names, calls)
    bodies = [_Emitter(shared, f, main=f is fn).text() for f in functions]
    declarations = {f"declare void @{k.symbol}({_kernel_types(k)})" for k in kernels.values()}
    return "\n".join([_PREAMBLE, *sorted(declarations), *shared.constants, *bodies])


_PREAMBLE = """declare {i64, i64} @ts_claim(ptr, i64, i64, i64, i64, i64, i64) nounwind
declare void @ts_barrier(ptr, i64, i64) nounwind
declare void @ts_poll(ptr) nounwind"""


def _kernel_types(k: Kernel) -> str:
    sizes = len(k.tile.attrs["sizes"])
    buffers = len(k.tile.args) - sizes
    return ", ".join(["ptr"] * buffers + ["i64"] * sizes + ["ptr", "i64", "i64"])


@dataclass
class _Shared:
    kernels: Mapping[Op, Kernel]
    names: dict[int, str]
    calls: dict[Op, int]

    def __post_init__(self) -> None:
        self.constants: list[str] = []


class _Emitter:
    """Writes one Schedule function."""

    def __init__(self, shared: _Shared, fn: Function, main: bool):
        self.shared, self.fn, self.main = shared, fn, main
        self.lines: list[str] = []
        self.variables = {"%dirty": "i1", "%pending": "i1"}
        self.counter = 0
        self.pointers: dict[Value, str] = {}
        self.names: dict[str, str] = {}
        self.sizes = SizeWriter(self.line, self.fresh, self.names)
        self.group = Accesses(everything=not main)
        self.slot = 0

    # -- writing -------------------------------------------------------------------------------------------------------
    def line(self, text: str) -> None:
        self.lines.append("  " + text)

    def fresh(self) -> str:
        self.counter += 1
        return f"%v{self.counter}"

    def label(self, stem: str) -> str:
        self.counter += 1
        return f"{stem}{self.counter}"

    def start(self, label: str) -> None:
        self.lines.append(f"{label}:")

    def jump(self, label: str) -> None:
        self.line(f"br label %{label}")

    def branch(self, condition: str, yes: str, no: str) -> None:
        self.line(f"br i1 {condition}, label %{yes}, label %{no}")

    def field(self, offset: int, type: str) -> str:
        """A word of the context."""
        p, v = self.fresh(), self.fresh()
        self.line(f"{p} = getelementptr i8, ptr %ctx, i64 {offset}")
        self.line(f"{v} = load {type}, ptr {p}")
        return v

    def text(self) -> str:
        self.line(f"store i1 {'false' if self.main else 'true'}, ptr %dirty")
        self.line("store i1 false, ptr %pending")
        head = self._main_head() if self.main else self._callee_head()
        self.block(self.fn.body)
        self.line("ret void")
        variables = [f"  {name} = alloca {type}" for name, type in self.variables.items()]
        return "\n".join([head + " nounwind {", "entry:", *variables, *self.lines, "}"])

    def variable(self, type: str) -> str:
        """A stack slot, made once however often the code around it runs."""
        name = self.fresh()
        self.variables[name] = type
        return name

    def _main_head(self) -> str:
        self.line(f"%threads.p = getelementptr i8, ptr %ctx, i64 {abi.THREADS}")
        self.line("%threads = load i64, ptr %threads.p")
        arena, table = self.field(abi.ARENA, "ptr"), self.field(abi.BUFFERS, "ptr")
        self.line(f"%arena = getelementptr i8, ptr {arena}, i64 0")
        for i, a in enumerate(self.fn.args):
            self.pointers[a] = self._load(table, i, "ptr")
        names = self.fn.attrs.get("sizes", ())
        if names:
            sizes = self.field(abi.SIZES, "ptr")
            self.names.update({n: self._load(sizes, i, "i64") for i, n in enumerate(names)})
        return f"define void @{self.shared.names[id(self.fn)]}(ptr %ctx, i64 %tid)"

    def _callee_head(self) -> str:
        params = ["ptr %ctx", "i64 %tid", "i64 %threads", "ptr %arena"]
        for i, a in enumerate(self.fn.args):
            self.pointers[a] = f"%b{i}"
            params.append(f"ptr %b{i}")
        for i, n in enumerate(self.fn.attrs.get("sizes", ())):
            self.names[n] = f"%s{i}"
            params.append(f"i64 %s{i}")
        return f"define internal void @\"{self.shared.names[id(self.fn)]}\"({', '.join(params)}) noinline"

    def _load(self, table: str, i: int, type: str) -> str:
        p, v = self.fresh(), self.fresh()
        self.line(f"{p} = getelementptr {type}, ptr {table}, i64 {i}")
        self.line(f"{v} = load {type}, ptr {p}")
        return v

    # -- ops -----------------------------------------------------------------------------------------------------------
    def block(self, block: Block) -> None:
        for op in block.ops:
            if op.name in ("return", "yield"):
                return
            rule = getattr(self, f"_op_{op.name}", None)
            if rule is None:
                raise CompileError(f"a program cannot contain {op.name!r}", loc=op.loc)
            rule(op)

    def _op_alloc(self, op: Op) -> None:
        if "offset" not in op.attrs:
            raise CompileError("a temporary has no place in the arena: the memory plan is missing", loc=op.loc)
        self.pointers[op.result] = self._offset("%arena", op.attrs["offset"])

    def _op_view(self, op: Op) -> None:
        nbytes = op.attrs.get("offset", 0) * op.result.type.dtype.itemsize
        self.pointers[op.result] = self._offset(self.pointers[op.operands[0]], nbytes)

    def _offset(self, pointer: str, nbytes: DimLike) -> str:
        if nbytes == 0:
            return pointer
        at = self.sizes.value(nbytes)
        out = self.fresh()
        self.line(f"{out} = getelementptr i8, ptr {pointer}, i64 {at}")
        return out

    def _op_constant(self, op: Op) -> None:
        data = np.ascontiguousarray(op.attrs["value"]).tobytes()
        name = f"@const.{len(self.shared.constants)}"
        text = "".join(f"\\{b:02X}" for b in data)
        self.shared.constants.append(f'{name} = private constant [{len(data)} x i8] c"{text}", align 64')
        self.pointers[op.result] = name

    def _op_kernel(self, op: Op) -> None:
        kernel = self.shared.kernels.get(op)
        if kernel is None:
            raise CompileError(f"the launch {op.attrs.get('name', op.name)!r} has no kernel", loc=op.loc)
        names = self.names if op.name != "launch" else self.names | {
            n: self.sizes.value(d) for n, d in _callee_sizes(kernel.tile, op).items()}
        count = SizeWriter(self.line, self.fresh, names).value(product(kernel.tile.attrs["grid"]))
        serial = self._serial(op, kernel)
        self._meet_if_needed(op, serial)
        self._share_out(op, kernel, names, count, serial)
        self.group.add(op)

    _op_template = _op_launch = _op_kernel

    def _serial(self, op: Op, kernel: Kernel) -> str:
        work = _work(op, kernel)
        if isinstance(work, int):
            return "true" if work < SERIAL_WORK else "false"
        out = self.fresh()
        self.line(f"{out} = icmp slt i64 {self.sizes.value(work)}, {SERIAL_WORK}")
        return out

    def _meet_if_needed(self, op: Op, serial: str) -> None:
        depends = self.group.conflicts(op) or self.slot >= pool_ir.SLOTS
        state = self.fresh()
        self.line(f"{state} = load i1, ptr {'%dirty' if depends else '%pending'}")
        shared, need = self.fresh(), self.fresh()
        self.line(f"{shared} = xor i1 {serial}, true")
        self.line(f"{need} = {'or' if depends else 'and'} i1 {state}, {shared}")
        meet, skip, on = self.label("meet"), self.label("skip"), self.label("on")
        self.branch(need, meet, skip)
        self.start(meet)
        self._barrier()
        self.jump(on)
        self.start(skip)
        if depends:
            self.line("store i1 true, ptr %pending")
        self.jump(on)
        self.start(on)
        if depends:
            self.group, self.slot = Accesses(), 0

    def _barrier(self) -> None:
        self.line("call void @ts_barrier(ptr %ctx, i64 %tid, i64 %threads)")
        self.line("store i1 false, ptr %dirty")
        self.line("store i1 false, ptr %pending")

    def _meet(self) -> None:
        """An unconditional meeting: whatever ran before is visible to every thread."""
        self._barrier()
        self.group, self.slot = Accesses(), 0

    def _share_out(self, op: Op, kernel: Kernel, values: Mapping[str, str], count: str, serial: str) -> None:
        """The loop in which a thread claims blocks of one launch and runs them."""
        names = kernel.tile.attrs["sizes"]
        missing = [n for n in names if n not in values]
        if missing:
            raise CompileError(f"the kernel {kernel.symbol} needs the size {missing[0]!r}", loc=op.loc)
        args = [f"ptr {self.pointers[v]}" for v in op.operands] + [f"i64 {values[n]}" for n in names]
        team, chunk = self.fresh(), self._chunk(count)
        self.line(f"{team} = select i1 {serial}, i64 1, i64 %threads")
        before, claim, run, done = (self.label(s) for s in ("before", "claim", "run", "done"))
        self.jump(before)
        self.start(before)
        self.jump(claim)
        self.start(claim)
        last, got, b, e, more = (self.fresh() for _ in range(5))
        self.line(f"{last} = phi i64 [0, %{before}], [{e}, %{run}]")
        self.line(f"{got} = call {{i64, i64}} @ts_claim(ptr %ctx, i64 %tid, i64 {team}, i64 {self.slot}, i64 {count}, "
                  f"i64 {chunk}, i64 {last})")
        self.line(f"{b} = extractvalue {{i64, i64}} {got}, 0")
        self.line(f"{e} = extractvalue {{i64, i64}} {got}, 1")
        self.line(f"{more} = icmp ult i64 {b}, {e}")
        self.branch(more, run, done)
        self.start(run)
        self.line(f"call void @{kernel.symbol}({', '.join([*args, 'ptr %ctx', f'i64 {b}', f'i64 {e}'])})")
        self.jump(claim)
        self.start(done)
        dirty, shared, now = self.fresh(), self.fresh(), self.fresh()
        self.line(f"{dirty} = load i1, ptr %dirty")
        self.line(f"{shared} = xor i1 {serial}, true")
        self.line(f"{now} = or i1 {dirty}, {shared}")
        self.line(f"store i1 {now}, ptr %dirty")
        self.slot += 1

    def _chunk(self, count: str) -> str:
        parts, each, out = self.fresh(), self.fresh(), self.fresh()
        self.line(f"{parts} = mul i64 %threads, {SHARES}")
        self.line(f"{each} = udiv i64 {count}, {parts}")
        self.line(f"{out} = call i64 @llvm.umax.i64(i64 {each}, i64 1)")
        return out

    def _op_call(self, op: Op) -> None:
        callee = _callee(self.fn, op)
        arena = self._offset("%arena", op.attrs.get("offset", self.fn.attrs.get("arena", 0)))
        given = _callee_sizes(callee, op)
        sizes = [self.sizes.value(given[n]) if n in given else self._size(n) for n in callee.attrs.get("sizes", ())]
        args = ["ptr %ctx", "i64 %tid", "i64 %threads", f"ptr {arena}",
                *[f"ptr {self.pointers[v]}" for v in op.operands], *[f"i64 {s}" for s in sizes]]
        self.line(f"call void @\"{self.shared.names[id(callee)]}\"({', '.join(args)})")
        self.line("store i1 true, ptr %dirty")
        self._forget()

    def _size(self, name: str) -> str:
        if name not in self.names:
            raise CompileError(f"the size {name!r} has no value in this program")
        return self.names[name]

    def _forget(self) -> None:
        """Behind control flow, every earlier launch may still be running."""
        self.group = Accesses(everything=True)

    # -- host routines ---------------------------------------------------------------------------------------------------
    def _op_external(self, op: Op) -> None:
        self._meet()
        n = len(op.operands)
        with self._thread_zero():
            table = self.variable(f"[{max(n, 1)} x ptr]")
            for i, v in enumerate(op.operands):
                p = self.fresh()
                self.line(f"{p} = getelementptr ptr, ptr {table}, i64 {i}")
                self.line(f"store ptr {self.pointers[v]}, ptr {p}")
            self._call_host(self.shared.calls[op], table)
        self._meet()

    def _call_host(self, call: int, table: str) -> None:
        host, handle, stop = self.field(frame.HOST, "ptr"), self.field(frame.HANDLE, "i64"), self.fresh()
        self.line(f"{stop} = getelementptr i8, ptr %ctx, i64 {frame.STOP}")
        self.line(f"store i64 {frame.IN_HOST}, ptr {stop}")
        self.line(f"call void {host}(i64 {handle}, i64 {call}, ptr {table})")

    @contextmanager
    def _thread_zero(self) -> Iterator[None]:
        zero, there, on = self.fresh(), self.label("zero"), self.label("on")
        self.line(f"{zero} = icmp eq i64 %tid, 0")
        self.branch(zero, there, on)
        self.start(there)
        yield
        self.jump(on)
        self.start(on)

    # -- control flow ------------------------------------------------------------------------------------------------------
    def _decide(self, flag: Value, poll: str | None = None) -> str:
        """The value of a flag buffer, the same for all threads: thread 0 reads it between two meetings."""
        self._meet()
        word = self.fresh()
        self.line(f"{word} = getelementptr i8, ptr %ctx, i64 {abi.NEXT_BLOCK}")
        with self._thread_zero():
            if poll is not None:
                self._poll(poll)
            raw, on, going, both, wide = (self.fresh() for _ in range(5))
            self.line(f"{raw} = load i8, ptr {self.pointers[flag]}")
            self.line(f"{on} = icmp ne i8 {raw}, 0")
            stop = self.field(frame.STOP, "i64")
            self.line(f"{going} = icmp eq i64 {stop}, 0")
            self.line(f"{both} = and i1 {on}, {going if poll is not None else 'true'}")
            self.line(f"{wide} = zext i1 {both} to i64")
            self.line(f"store i64 {wide}, ptr {word}")
        self._meet()
        got, out = self.fresh(), self.fresh()
        self.line(f"{got} = load i64, ptr {word}")
        self.line(f"{out} = icmp ne i64 {got}, 0")
        return out

    def _poll(self, round_: str) -> None:
        """Every so often let Python look for an interrupt; it sets the frame's STOP."""
        low, due = self.fresh(), self.fresh()
        self.line(f"{low} = and i64 {round_}, {POLL_EVERY - 1}")
        self.line(f"{due} = icmp eq i64 {low}, {POLL_EVERY - 1}")
        ask, on = self.label("ask"), self.label("on")
        self.branch(due, ask, on)
        self.start(ask)
        self.line("call void @ts_poll(ptr %ctx)")
        self.jump(on)
        self.start(on)

    def _op_cond(self, op: Op) -> None:
        yes, no, end = self.label("yes"), self.label("no"), self.label("end")
        self.branch(self._decide(op.operands[0]), yes, no)
        for label, block in zip((yes, no), op.blocks, strict=True):
            self.start(label)
            self._forget()
            self.block(block)
            self.jump(end)
        self.start(end)
        self._forget()

    def _op_while(self, op: Op) -> None:
        before, head, body, end = (self.label(s) for s in ("before", "while", "body", "end"))
        self.jump(before)
        self.start(before)
        counter = self.variable("i64")
        self.line(f"store i64 0, ptr {counter}")
        self.jump(head)
        self.start(head)
        self._forget()
        test, work = op.blocks
        self.block(test)
        n, n1 = self.fresh(), self.fresh()
        self.line(f"{n} = load i64, ptr {counter}")
        self.line(f"{n1} = add i64 {n}, 1")
        self.line(f"store i64 {n1}, ptr {counter}")
        self.branch(self._decide(test.terminator.operands[0], n), body, end)
        self.start(body)
        self._forget()
        self.block(work)
        self.jump(head)
        self.start(end)
        self._forget()

    def _op_loop(self, op: Op) -> None:
        name, extent = op.attrs["over"]
        if name in self.names:
            raise CompileError(f"the loop variable {name!r} is in use already", loc=op.loc)
        count = self.sizes.value(extent)
        before, head, body, end = (self.label(s) for s in ("before", "loop", "body", "end"))
        self.jump(before)
        self.start(before)
        var = self.variable("i64")
        t, more, t1 = (self.fresh() for _ in range(3))
        self.line(f"store i64 0, ptr {var}")
        self.jump(head)
        self.start(head)
        self.line(f"{t} = load i64, ptr {var}")
        self.line(f"{more} = icmp slt i64 {t}, {count}")
        self.branch(more, body, end)
        self.start(body)
        self._forget()
        self.names[name] = t
        self.block(op.blocks[0])
        del self.names[name]
        self.line(f"{t1} = add i64 {t}, 1")
        self.line(f"store i64 {t1}, ptr {var}")
        self.jump(head)
        self.start(end)
        self._forget()


__all__ = ["SERIAL_WORK", "Kernel", "arena_bytes", "emit_program", "external_calls", "launch_work"]

