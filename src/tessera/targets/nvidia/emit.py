"""Tile IR with ops of the explicit level to the LLVM IR of one thread: the shared SIMT emitter and the ops of ``ir/tile_explicit.py``.

A program without warp groups may copy asynchronously into swizzled shared memory; all else about it is the shared emitter's.  In a
program with roles a tile belongs to a warp group of 128 threads; which group a thread is in decides the role that it runs.
Shared memory is one array that the launch sizes: swizzled matrices first, barriers last.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from ...errors import CompileError
from ...ir.core import BufferType, Function, Op, TileType, Value
from ...ir.tile_explicit import GROUP, is_explicit_program
from ...machine.simt import SimtMachine
from ...types.dtypes import DType
from ..cpu.emit_pointwise import unrounded
from ..simt.emit import Emitter, Handler
from ..simt.order import Order
from ..simt.values import EXCHANGE, Memory, Regs
from ..simt.vendors import Kernel
from ..simt.writer import SHARED
from .fragments import Panels, shared_bytes

I = "call {} @llvm.nvvm."
REGISTER_FILE = 65536
_PAIRS = {"bf16": ("ff2bf16x2.rn", "<2 x bfloat>"), "f16": ("ff2f16x2.rn", "<2 x half>")}  # f32 to two 16-bit floats


@dataclass(frozen=True)
class TensorMap:
    """A parameter that the launch fills: how the copy engine sees a buffer.

    Attributes:
        buffer: number of the buffer parameter.
        box: extents of one copy along the buffer's last two axes.
        swizzle: bytes, 0 to 128.
    """

    buffer: int
    box: tuple[int, int]
    swizzle: int


@dataclass(frozen=True)
class NvModule:
    """A kernel's LLVM IR and how it is launched: buffers, sizes, status word, scratch memory, then a tensor map for each of ``maps``."""

    text: str
    symbol: str
    threads: int
    shared: int
    scratch: int
    cluster: int = 1
    maps: tuple[TensorMap, ...] = ()
    explicit: bool = False


class GroupOrder(Order):
    """Inside roles the program says itself when groups meet."""

    def touch(self, place: Any, write: bool, key: Any = None) -> None:
        if place is EXCHANGE:
            raise CompileError("this would pass elements between the threads of a role through memory", hints=(
                "keep tiles in the layout of accumulators: reduce along rows, avoid transposes and reshapes across columns",))

    def barrier(self) -> None:
        """None is implied."""


class NvEmitter(Emitter):
    """One kernel: of warp groups, or of one block that acts together."""

    def __init__(self, fn: Function, machine: SimtMachine, handlers: Mapping[str, Handler], aligned: bool = True):
        self.grouped = is_explicit_program(fn)
        self.roles = next((op for op in fn.walk() if op.name == "roles"), None)
        self.cluster = int(fn.attrs.get("cluster", 1))
        super().__init__(fn, machine, handlers, aligned)
        self.total = GROUP * sum(self.roles.attrs["groups"]) if self.roles is not None else self.threads
        if self.grouped or any(op.name == "copy_async" for op in fn.walk()):
            self.vendor = replace(self.vendor, after=self._attributes)
            self.w.vendor = self.vendor
        if self.grouped:
            self.order = GroupOrder(self)
        self.maps: dict[TensorMap, str] = {}
        self.packed: dict[tuple[str, ...], str] = {}  # the elements of words of 32 bits -> the word
        self.joined: dict[tuple[str, str, str], str] = {}  # the same within one block of LLVM's
        self.single = False  # one thread runs this part
        self.group: tuple[str, int] = ("0", 0)  # the warp group's number in the block, and of the role's first

    def pointwise(self, op: Op) -> None:
        """Results in 16-bit floats are rounded two at a time (NaN becomes the hardware's own); neighbours stay packed for the matrix
        unit and for stores."""
        t = op.result.type
        if isinstance(t, TileType) and t.dtype.name in _PAIRS:
            dtypes = [v.type.dtype for v in op.operands]
            rows = list(zip(*(self.tile(v).names for v in op.operands), strict=True))
            if len(rows) % 2 == 0:
                wide = [unrounded(self.w, op.name, row, dtypes, t.dtype, 1) for row in rows]
                if None not in wide:
                    self.define(op, self._rounded([x for x in wide if x is not None], t.dtype))
                    return
        super().pointwise(op)

    def _rounded(self, wide: list[str], dtype: DType) -> list[str]:
        w, (intrinsic, pair) = self.w, _PAIRS[dtype.name]
        names: list[str] = []
        for low, high in zip(wide[::2], wide[1::2], strict=True):
            word = w.let(f"bitcast {pair} {w.let(f'call {pair} @llvm.nvvm.{intrinsic}(float {high}, float {low})')} to i32")
            both = w.let(f"trunc i32 {word} to i16"), w.let(f"trunc i32 {w.let(f'lshr i32 {word}, 16')} to i16")
            self.packed[both] = word
            names += both
        return names

    def _attributes(self, k: Kernel) -> str:
        cluster = f' "nvvm.cluster_dim"="{self.cluster},1,1"' if self.cluster > 1 else ""
        # one block to a multiprocessor will do: registers before occupancy
        return f' nounwind "nvvm.maxntid"="{self.total}" "nvvm.minctasm"="1"{cluster}'

    def alignment(self, op: Op) -> int:
        return 1024 if "swizzle" in op.attrs else super().alignment(op)

    def _place_allocs(self) -> tuple[dict[Value, tuple[int, int]], int, int]:
        if not self.grouped:
            return super()._place_allocs()
        places: dict[Value, tuple[int, int]] = {}
        at = 0
        for wanted in ("alloc", "mbarriers"):
            for op in self.fn.walk():
                if op.name == wanted:
                    places[op.result] = (SHARED, at)
                    at += shared_bytes(op.result.type) if wanted == "alloc" else int(op.result.type.nbytes)
        return places, at, 0

    def build(self) -> NvModule:
        if not self.grouped:
            m = self.module()
            return NvModule(m.text, m.symbol, m.threads, m.shared, m.scratch)
        self._threads()
        made = self.module()
        return NvModule(made.text, made.symbol, self.total, made.shared, 0, self.cluster, tuple(self.maps), True)

    def _threads(self) -> None:
        """A thread's number counts within its warp group; the group's number is the same for all lanes of a warp."""
        w = self.w
        tid = w.once("tid", lambda: w.let(f"{I.format('i32')}read.ptx.sreg.tid.x()"))

        def uniform() -> str:
            warp = w.let(f"lshr i32 {tid}, 5")
            return w.let(f"{I.format('i32')}shfl.sync.idx.i32(i32 -1, i32 {warp}, i32 0, i32 31)")

        w.once("uniform warp", uniform)
        w.once("thread", lambda: w.let(f"and i32 {tid}, {GROUP - 1}"))
        w.once("warp", lambda: w.let(f"and i32 {self.uniform_warp}, 3"))
        w.once("group", lambda: w.let(f"lshr i32 {self.uniform_warp}, 2"))

    @property
    def uniform_warp(self) -> str:
        return self.w.once("uniform warp", lambda: "")

    # -- expressions -------------------------------------------------------------------------------------------------------
    def call(self, name: str, *args: str, result: str = "void") -> str:
        """Call an intrinsic of NVIDIA's; the value where it has one."""
        text = f"{I.format(result)}{name}({', '.join(args)})"
        if result == "void":
            self.w.line(text)
            return ""
        return self.w.let(text)

    def i32(self, v: Value) -> str:
        """An int64 scalar as an i32."""
        name = self.scalar(v)
        return name if not name.startswith("%") else self.w.let(f"trunc i64 {name} to i32")

    def shared_base(self) -> str:
        return self.w.once("shared base", lambda: self.w.let("ptrtoint ptr addrspace(3) @shared to i32"))

    def shared_at(self, offset: str) -> str:
        """A pointer ``offset`` (an i32, or a number) bytes into shared memory."""
        if offset == "0":
            return "@shared"
        return self.w.let(f"getelementptr i8, ptr addrspace(3) @shared, i32 {offset}")

    def add(self, *terms: str) -> str:
        """A sum of i32 values and numbers."""
        fixed = sum(int(t) for t in terms if not t.startswith("%"))
        out = ""
        for t in terms:
            if t.startswith("%"):
                out = t if not out else self.w.let(f"add i32 {out}, {t}")
        if not out:
            return str(fixed)
        return out if fixed == 0 else self.w.let(f"add i32 {out}, {fixed}")

    def times(self, a: str, n: int) -> str:
        if not a.startswith("%"):
            return str(int(a) * n)
        if n & (n - 1) == 0:
            return a if n == 1 else self.w.let(f"shl i32 {a}, {n.bit_length() - 1}")
        return self.w.let(f"mul i32 {a}, {n}")

    def barrier_at(self, barriers: Value, index: Value) -> str:
        """The address of one mbarrier."""
        return self.shared_at(self.add(self.times(self.i32(index), 8), str(self.places[barriers][1])))

    def matrix_at(self, buffer: Value, places: list[Value]) -> str:
        """Bytes from the start of shared memory to a matrix that begins at these places: whole panels, rows in eights."""
        p = Panels.of(buffer)
        at = [str(self.places[buffer][1])]
        size = p.matrix
        for v, n in zip(reversed(places[:-2]), reversed(buffer.type.shape[:-2]), strict=True):
            at.append(self.times(self.i32(v), size))
            size *= int(n)
        at.append(self.times(self.i32(places[-2]), p.span))
        column = self.i32(places[-1])
        if column.startswith("%"):
            panel = self.w.let(f"sdiv i32 {column}, {p.width}")
            at.append(self.times(panel, p.panel))
        else:
            at += [str(int(column) // p.width * p.panel), str(int(column) % p.width * p.itemsize)]
        return self.add(*at)

    def map_of(self, buffer: Value, box: tuple[int, int], swizzle: int) -> str:
        """The parameter that describes a buffer to the copy engine."""
        number = self.fn.args.index(buffer)
        key = TensorMap(number, box, swizzle)
        if key not in self.maps:
            self.maps[key] = f"%map{len(self.maps)}"
            self.parameters.append(f'ptr byval([128 x i8]) align 64 "nvvm.grid_constant" {self.maps[key]}')
        return self.maps[key]

    # -- values across blocks ------------------------------------------------------------------------------------------------
    def flat(self, values: Sequence[Any]) -> list[str]:
        """As words of 32 bits: pairs of 16-bit elements stay packed from one block to the next."""
        out: list[str] = []
        for v in values:
            if isinstance(v, Regs) and _in_pairs(v.dtype, len(v.names)):
                out += [pack(self, v.names[i], v.names[i + 1]) for i in range(0, len(v.names), 2)]
            else:
                out += super().flat([v])
        return out

    def phis(self, values: Sequence[Value]) -> tuple[list[Any], list[tuple[str, str]]]:
        made: list[Any] = []
        phis: list[tuple[str, str]] = []
        for v in values:
            (one,), lines = super().phis([v])
            if isinstance(one, Regs) and _in_pairs(one.dtype, len(one.names)):
                words = [self.w.fresh() for _ in range(len(one.names) // 2)]
                lines = [(w, "i32") for w in words]
                one = Regs(one.dtype, one.shape, one.layout, [n for w in words for n in self.unpack(w)])
            made.append(one)
            phis += lines
        return made, phis

    def unpack(self, word: str) -> tuple[str, str]:
        """The two 16-bit values of an i32."""
        w = self.w
        low, high = w.let(f"trunc i32 {word} to i16"), w.let(f"trunc i32 {w.let(f'lshr i32 {word}, 16')} to i16")
        self.packed[low, high] = word
        return low, high

    # -- who acts ----------------------------------------------------------------------------------------------------------
    def lead(self, act: Callable[[], None]) -> None:
        """One thread of the group acts."""
        if self.single:
            act()
            return
        first = self.w.once("lead", lambda: self.w.let(f"icmp eq i32 {self.w.thread_id()}, 0"))
        self.where(first, act)

    def where(self, test: str, act: Callable[[], None]) -> None:
        then, done = self.w.new_label("one"), self.w.new_label("all")
        self.w.branch_if(test, then, done)
        self.w.start(then)
        act()
        self.w.branch(done)
        self.w.start(done)

    @contextmanager
    def role(self, first: int, single: bool) -> Any:
        saved = self.group, self.single
        self.group, self.single = (self.w.once("group", lambda: ""), first), single
        yield
        self.group, self.single = saved


def _in_pairs(dtype: DType, count: int) -> bool:
    return dtype.itemsize == 2 and count % 2 == 0


def pack(x: NvEmitter, low: str, high: str) -> str:
    """Two 16-bit values as an i32."""
    found = x.packed.get((low, high)) or x.joined.get((x.w.label, low, high))
    if found is None:
        w = x.w
        if low == high == "undef":
            return "undef"
        wide = w.let(f"zext i16 {low} to i32")
        up = w.let(f"shl i32 {w.let(f'zext i16 {high} to i32')}, 16")
        found = w.let(f"or i32 {wide}, {up}")
        if low.startswith("%") and high.startswith("%"):
            if x.grouped:
                x.packed[low, high] = found
            else:  # other blocks need not have come this way
                x.joined[x.w.label, low, high] = found
    return found


def shared_of(fn: Function) -> int:
    """Bytes of shared memory that a program's ``alloc`` ops take."""
    return sum(shared_bytes(op.result.type) for op in fn.walk() if op.name == "alloc" and isinstance(op.result.type, BufferType))


__all__ = ["Memory", "NvEmitter", "NvModule", "TensorMap", "pack", "shared_of"]
