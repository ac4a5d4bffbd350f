"""Tile IR to the LLVM IR of one thread of a SIMT machine.

A block of the grid is a block of threads.  Scalars are computed by every thread alike, so control flow is uniform; a tile
with its layout is a handful of registers in each thread.  ``HANDLERS`` is the table of ops: a target adds ops of its own by
passing a table to :func:`emit`.

Order in memory: threads meet (``barrier``) between two accesses of the same memory, one of which writes, unless every
element is touched by the same thread both times.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import CompileError
from ...ir.core import Block, BufferType, Function, Op, ScalarType, TileType, Value
from ...machine.simt import SimtMachine
from ...tiling.layouts import Layout
from ...types.dims import product
from ...types.dtypes import DType
from ..cpu.emit_pointwise import BASIC, pointwise
from ..cpu.emit_writer import representation
from .order import Order
from .values import Memory, Regs, layout_of
from .vendors import VENDORS, Kernel, Vendor
from .writer import GLOBAL, SHARED, ThreadWriter

Handler = Callable[["Emitter", Op], None]


@dataclass(frozen=True)
class Module:
    """One kernel's LLVM IR and how it is launched.

    Its parameters are the buffers (pointers to global memory), the sizes (i64), the status word and the scratch memory.

    Attributes:
        text: the module.
        symbol: the kernel.
        threads: of a block.
        shared: bytes of shared memory of a block.
        scratch: bytes of global memory that each block at work needs for itself; 0: the grid has a block for each block of
            the tile program, else at most the machine's ``resident_blocks``, which take one after the other.
    """

    text: str
    symbol: str
    threads: int
    shared: int
    scratch: int


def emit(fn: Function, machine: SimtMachine, handlers: Mapping[str, Handler] | None = None, *, aligned: bool = True) -> Module:
    """LLVM IR of one kernel.

    Args:
        fn: a tile function with layouts (``tiling.assign``).
        machine: the target.
        handlers: ops of the target's own, and its own way with others: they come before ``HANDLERS``.
        aligned: the buffers begin at multiples of 16 bytes.

    Raises:
        CompileError: the function is not a tile program that this target can run: an unexpanded transcendental, a tile
            without a layout, more shared memory than a block has.
    """
    if fn.level != "tile":
        raise CompileError(f"the SIMT code generator takes tile functions; {fn.name} is a {fn.level} function")
    return Emitter(fn, machine, handlers or {}, aligned).module()


class Emitter:
    """One kernel under construction."""

    def __init__(self, fn: Function, machine: SimtMachine, handlers: Mapping[str, Handler], aligned: bool):
        self.fn, self.machine, self.aligned = fn, machine, aligned
        self.vendor: Vendor = VENDORS[machine.vendor]
        self.handlers = {**HANDLERS, **handlers}
        self.threads = int(fn.attrs["threads"])
        self.w = ThreadWriter(machine, self.vendor, self.threads)
        self.values: dict[Value, Any] = {}
        self.loops: dict[Value, Op] = {}
        self.order = Order(self)
        self.exchange_bytes = 0
        self.places, self.alloc_bytes, self.scratch_bytes = self._place_allocs()
        self.pids: list[str] = []
        self.parameters: list[str] = []
        self.tail: list[str] = []

    # -- the frame ---------------------------------------------------------------------------------------------------------
    def module(self) -> Module:
        w, fn = self.w, self.fn
        self._parameters()
        w.body.append("start:")
        head = len(w.body)
        grid = tuple(fn.attrs.get("grid", ()))
        number = w.once("block", lambda: self.vendor.block_id(w))
        for d in grid:
            w.dim(d)
        if self.scratch_bytes:
            self._blocks_in_turn(number, w.dim(product(grid)))
        else:
            self.pids = self._program_ids(number, grid)
            self.block(fn.body)
        w.body += ["  ret void", "}"]
        w.body[head:head] = w.entry
        shared = self.alloc_bytes + self.exchange_bytes
        if shared > self.machine.shared_bytes:
            allocs = [op for op in fn.walk() if op.name == "alloc"]
            largest = max(allocs, key=lambda op: (op.result.type.space == "shared", int(op.result.type.nbytes))).loc if allocs else None
            who = "the kernel" if fn.name == "kernel" else fn.name  # programs call each of theirs so
            raise CompileError(f"{who} needs {shared} bytes of shared memory; a block of {self.machine.name} has "
                               f"{self.machine.shared_bytes}", loc=largest,
                               expected=f"at most {self.machine.shared_bytes} bytes", received=f"{shared} bytes",
                               hints=("use smaller tiles", "use fewer stages"))
        facts = Kernel(self.threads, self.machine.lanes, shared)
        lines = [self.vendor.shared_memory(max(16, shared)), *sorted(w.declarations)]
        define = (f"define {self.vendor.convention} void @{fn.name}({', '.join(self.parameters)})"
                  f"{self.vendor.after(facts)} {{")
        text = "\n".join([*lines, define, *w.body, *self.vendor.tail(facts), *self.tail, ""])
        return Module(text, fn.name, self.threads, shared, self.scratch_bytes)

    def _parameters(self) -> None:
        align = " align 16" if self.aligned else ""
        buffers = [a for a in self.fn.args if isinstance(a.type, BufferType)]
        for i, a in enumerate(buffers):
            self.parameters.append(f"ptr addrspace(1){align} %b{i}")
            self.values[a] = Memory(f"%b{i}", GLOBAL, a.type)
        for i, n in enumerate(self.fn.attrs.get("sizes", ())):
            self.parameters.append(f"i64 %size{i}")
            self.w.sizes[n] = f"%size{i}"
        for a, n in zip(self.fn.args[len(buffers):], self.fn.attrs.get("sizes", ()), strict=False):
            self.values[a] = self.w.sizes[n]
        self.parameters += ["ptr addrspace(1) align 16 %status", "ptr addrspace(1) align 16 %scratch"]

    def _place_allocs(self) -> tuple[dict[Value, tuple[int, int]], int, int]:
        """Where scratch memory lies: (value -> (space, offset), bytes of shared memory, bytes of global memory a block).

        The smallest come first into shared memory, half of which stays free for passing elements between threads."""
        found: list[tuple[int, int, Value]] = []
        for i, op in enumerate(self.fn.walk()):
            if op.name == "alloc":
                unit = self.alignment(op)
                found.append((-(-op.result.type.nbytes // unit) * unit, i, op.result))
        places: dict[Value, tuple[int, int]] = {}
        shared = far = 0
        for nbytes, _, v in sorted(found, key=lambda f: f[:2]):
            assert v.op is not None
            shared = -(-shared // self.alignment(v.op)) * self.alignment(v.op)
            if shared + nbytes <= self.machine.shared_bytes // 2 or v.type.space == "shared":
                places[v] = (SHARED, shared)
                shared += nbytes
            else:
                places[v] = (GLOBAL, far)
                far += nbytes
        return places, shared, far

    def alignment(self, op: Op) -> int:
        """Of what an ``alloc`` makes, in bytes."""
        return 64

    def _program_ids(self, number: str, grid: Sequence[Any]) -> list[str]:
        """The block's coordinates from its row-major number."""
        w, rest, out = self.w, number, []
        for d in reversed(grid[1:]):
            extent = w.dim(d)
            quotient = w.let(f"udiv i64 {rest}, {extent}")
            out.append(w.binary("sub", "i64", 1, rest, w.binary("mul", "i64", 1, quotient, extent)))
            rest = quotient
        return [rest, *reversed(out)]

    def _blocks_in_turn(self, first: str, count: str) -> None:
        """A block of threads runs every n-th block of the program, n blocks being at work."""
        w = self.w
        step = w.once("blocks", lambda: self.vendor.blocks(w))
        with w.at_entry():
            at = w.let(f"mul i64 {first}, {self.scratch_bytes}")
            w.line(f"%mine = getelementptr i8, ptr addrspace(1) %scratch, i64 {at}")
        head, body, done = w.new_label("blocks"), w.new_label("block"), w.new_label("finished")
        before = w.label
        w.branch(head)
        w.start(head)
        phi = self.reserve()
        w.branch_if(w.let(f"icmp ult i64 %n, {count}"), body, done)
        w.start(body)
        self.pids = self._program_ids("%n", tuple(self.fn.attrs.get("grid", ())))
        self.block(self.fn.body)
        w.barrier()
        following = w.let(f"add i64 %n, {step}")
        w.body[phi] = f"  %n = phi i64 [ {first}, %{before} ], [ {following}, %{w.label} ]"
        w.branch(head)
        w.start(done)

    # -- blocks ------------------------------------------------------------------------------------------------------------
    def block(self, block: Block) -> list[Any]:
        """Emit a block's ops; what its terminator carries."""
        for op in block.ops:
            if op.name in ("yield", "return"):
                return [self.values[v] for v in op.operands]
            try:
                self.op(op)
            except CompileError as e:
                e.loc = e.loc or op.loc
                raise
        return []

    def op(self, op: Op) -> None:
        handler = self.handlers.get(op.name)
        if handler is not None:
            handler(self, op)
        elif op.name in BASIC:
            self.pointwise(op)
        else:
            raise CompileError(f"the SIMT code generator has no op {op.name!r}; transcendental ops are expanded by "
                               "tiling.vmath before emission", loc=op.loc)

    def pointwise(self, op: Op) -> None:
        out = op.result.type
        dtypes = [v.type.dtype for v in op.operands]
        if isinstance(out, ScalarType):
            self.values[op.result] = pointwise(self.w, op.name, [self.scalar(v) for v in op.operands], dtypes, out.dtype, 1)
            return
        parts = [self.tile(v) for v in op.operands]
        layout = layout_of(out)
        names = [pointwise(self.w, op.name, row, dtypes, out.dtype, 1) for row in zip(*(p.names for p in parts), strict=True)]
        self.values[op.result] = Regs(out.dtype, out.shape, layout, names)

    # -- values ------------------------------------------------------------------------------------------------------------
    def tile(self, v: Value) -> Regs:
        got = self.values[v]
        assert isinstance(got, Regs), v
        return got

    def scalar(self, v: Value) -> str:
        got = self.values[v]
        assert isinstance(got, str), v
        return got

    def memory(self, v: Value) -> Memory:
        got = self.values[v]
        assert isinstance(got, Memory), v
        return got

    def define(self, op: Op, names: list[str]) -> None:
        """The result of an op, as the registers of its layout."""
        t = op.result.type
        self.values[op.result] = Regs(t.dtype, t.shape, layout_of(t), names)

    # -- where elements are ------------------------------------------------------------------------------------------------
    def inside(self, layout: Layout, shape: Sequence[int], register: int) -> str | None:
        """Whether a register's element lies within the tile's extents: an i1, "false", or None for always."""
        w, element = self.w, layout.index(layout.element(reg=register))
        found: str | None = None
        for axis, (n, at) in enumerate(zip(shape, element, strict=True)):
            low, bits = layout.shift(axis), layout.bits[axis]
            reach = 0
            for place in ("lane", "warp"):
                for c in layout.bases(place):
                    reach |= c >> low & ((1 << bits) - 1)
            if at | reach < n:
                continue
            if at >= n:
                return "false"
            here = w.thread_part(layout, low, low + bits)
            test = w.once(("inside", here, at, n), lambda h=here, a=at, n=n: w.let(f"icmp ult i32 {h}, {n - a}"))
            found = test if found is None else w.once(("and", found, test), lambda f=found, t=test: w.let(f"and i1 {f}, {t}"))
        return found

    def owner(self, layout: Layout) -> str | None:
        """Whether this thread is the first of those that hold the same elements; None: nothing is held twice."""
        from ...tiling.layouts import free_bits
        w, tests = self.w, []
        for place, free in free_bits(layout).items():
            mask = sum(1 << i for i in free)
            if mask:
                source = w.lane_id() if place == "lane" else w.warp_id()
                tests.append(w.once((place, "owner", mask), lambda s=source, m=mask: w.let(
                    f"icmp eq i32 {w.let(f'and i32 {s}, {m}')}, 0")))
        if len(tests) == 2:
            return w.once(("and", *tests), lambda: w.let(f"and i1 {tests[0]}, {tests[1]}"))
        return tests[0] if tests else None

    def both(self, *tests: str | None) -> str | None:
        """The conjunction of tests; None stands for true."""
        real = [t for t in dict.fromkeys(tests) if t is not None and t != "true"]
        if "false" in real:
            return "false"
        out: str | None = None
        for t in real:
            out = t if out is None else self.w.let(f"and i1 {out}, {t}")
        return out

    def guarded(self, tests: Sequence[str | None], act: Callable[[int], None]) -> None:
        """``act(i)`` where test ``i`` holds; neighbours with the same test share a branch."""
        w, i = self.w, 0
        while i < len(tests):
            j = i
            while j < len(tests) and tests[j] == tests[i]:
                j += 1
            test = tests[i]
            if test != "false":
                done = ""
                if test is not None:
                    then, done = w.new_label("then"), w.new_label("skip")
                    w.branch_if(test, then, done)
                    w.start(then)
                for k in range(i, j):
                    act(k)
                if test is not None:
                    w.branch(done)
                    w.start(done)
            i = j

    # -- passing elements through shared memory ------------------------------------------------------------------------------
    def exchange(self, nbytes: int) -> str:
        """The exchange memory, at least ``nbytes`` of it."""
        self.exchange_bytes = max(self.exchange_bytes, -(-nbytes // 16) * 16)
        w, at = self.w, self.alloc_bytes
        return w.once("exchange", lambda: w.address("i8", SHARED, "@shared", str(at)))

    # -- structured control flow -----------------------------------------------------------------------------------------------
    def reserve(self) -> int:
        self.w.body.append("")
        return len(self.w.body) - 1

    def phis(self, values: Sequence[Value]) -> tuple[list[Any], list[tuple[str, str]]]:
        """Fresh names for values that a block receives: (the values, (name, LLVM type) of each phi, whose line is reserved before)."""
        made: list[Any] = []
        phis: list[tuple[str, str]] = []
        for v in values:
            rep = representation(v.type.dtype)
            if isinstance(v.type, TileType):
                layout = layout_of(v.type)
                n = 1 << len(layout.bases("reg"))
                each = self._in_word(v.type.dtype, n)
                words = [(self.w.fresh(), "i32" if each > 1 else rep) for _ in range(n // each)]
                phis += words
                names = [part for word, _ in words for part in (self._parts(rep, word, each) if each > 1 else [word])]
                made.append(Regs(v.type.dtype, v.type.shape, layout, names))
            else:
                phis.append((self.w.fresh(), rep))
                made.append(phis[-1][0])
        return made, phis

    def flat(self, values: Sequence[Any]) -> list[str]:
        """The LLVM values of scalars and tiles, as :meth:`phis` receives them."""
        return [n for v in values for n in (self._words(v) if isinstance(v, Regs) else [v])]

    def _in_word(self, dtype: DType, n: int) -> int:
        """How many elements of a tile of ``n`` a thread go from block to block in one register of 32 bits."""
        each = 4 // dtype.itemsize if dtype.itemsize < 4 and dtype.kind != "bool" else 1
        return each if self.vendor.carries_words and n % each == 0 else 1

    def _words(self, t: Regs) -> list[str]:
        rep, each = representation(t.dtype), self._in_word(t.dtype, len(t.names))
        if each == 1:
            return t.names
        kind, out = f"<{each} x {rep}>", []
        for first in range(0, len(t.names), each):
            made = "poison"
            for i, name in enumerate(t.names[first:first + each]):
                made = self.w.let(f"insertelement {kind} {made}, {rep} {name}, i32 {i}")
            out.append(self.w.let(f"bitcast {kind} {made} to i32"))
        return out

    def _parts(self, rep: str, word: str, each: int) -> list[str]:
        kind = f"<{each} x {rep}>"
        whole = self.w.let(f"bitcast i32 {word} to {kind}")
        return [self.w.let(f"extractelement {kind} {whole}, i32 {i}") for i in range(each)]

    def write_phis(self, at: int, phis: Sequence[tuple[str, str]], incoming: Sequence[tuple[Sequence[str], str]]) -> None:
        """Put phi lines at a reserved line."""
        self.w.body[at] = "\n".join(
            f"  {name} = phi {t} " + ", ".join(f"[ {names[i]}, %{label} ]" for names, label in incoming)
            for i, (name, t) in enumerate(phis))


from . import control, memory, tiles  # noqa: E402  (they need the class above)

HANDLERS: dict[str, Handler] = {**tiles.HANDLERS, **memory.HANDLERS, **control.HANDLERS}

__all__ = ["HANDLERS", "Emitter", "Handler", "Module", "emit"]
