"""What differs between the vendors of SIMT machines: names of intrinsics, calling conventions, attributes.

A :class:`Vendor` is a table; the emitter asks it and never compares names.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .writer import ThreadWriter


@dataclass(frozen=True)
class Kernel:
    """What a kernel's definition depends on: threads of a block, lanes of a warp, bytes of shared memory."""

    threads: int
    lanes: int
    shared: int


@dataclass(frozen=True)
class Vendor:
    """One vendor's spelling.

    Attributes:
        name: as in a machine's ``vendor``.
        convention: LLVM's calling convention of a kernel.
        thread_id, block_id, blocks: (writer) -> the thread's number in its block (i32), the block's in the grid, and how many
            blocks the grid has (i64).
        barrier: (writer): all threads of the block meet, and see what each other wrote to shared and global memory.
        shuffle: (writer, value as i32, lane as i32) -> the value that this lane of the warp passes.
        shuffle_xor: (writer, value as i32, mask): the same for the lane whose number differs in the mask's bits.
        shared_memory: (bytes) -> the module's line that defines ``@shared``.
        after: (kernel) -> what follows the parameters in the definition.
        tail: (kernel) -> lines at the module's end.
        scope: synchronisation scope of atomics on global memory that the host sees.
        intrinsics: names of overloaded intrinsics -> (writer, element, operands) -> value, where LLVM's own does not do.
        dynamic_shared: shared memory is sized by the launch, not by the module.
        carries_words: numbers of 8 and 16 bits go from block to block in words of 32, since each would take a register of that size.
        narrowing: 16-bit floats -> (writer, f32) -> the rounded value's bits, where one instruction does it (NaN is then the machine's).
    """

    name: str
    convention: str
    thread_id: Callable[[ThreadWriter], str]
    block_id: Callable[[ThreadWriter], str]
    blocks: Callable[[ThreadWriter], str]
    barrier: Callable[[ThreadWriter], None]
    shuffle: Callable[[ThreadWriter, str, str], str]
    shuffle_xor: Callable[[ThreadWriter, str, int], str]
    shared_memory: Callable[[int], str]
    after: Callable[[Kernel], str]
    tail: Callable[[Kernel], list[str]]
    scope: str
    intrinsics: dict[str, Callable[[ThreadWriter, str, tuple[str, ...]], str]] = field(default_factory=dict)
    dynamic_shared: bool = False
    carries_words: bool = False
    narrowing: dict[str, Callable[[ThreadWriter, str], str]] = field(default_factory=dict)


# -- where LLVM's own intrinsic does not do ---------------------------------------------------------------------------------
def _extremum(name: str) -> Callable[[ThreadWriter, str, tuple[str, ...]], str]:
    """IEEE 754-2019 maximum and minimum from comparisons: NaN where either is NaN, and -0 below +0."""
    predicate, join = ("ogt", "and") if name == "maximum" else ("olt", "or")

    def rule(w: ThreadWriter, element: str, args: tuple[str, ...]) -> str:
        a, b = args
        bits = "i32" if element == "float" else "i64"
        best = w.select(w.let(f"fcmp {predicate} {element} {a}, {b}"), element, 1, a, b)
        both = w.binary(join, bits, 1, w.cast("bitcast", element, bits, 1, a), w.cast("bitcast", element, bits, 1, b))
        zero = w.cast("bitcast", bits, element, 1, both)  # equal numbers have equal bits, zeros of two signs aside
        best = w.select(w.let(f"fcmp oeq {element} {a}, {b}"), element, 1, zero, best)
        return w.select(w.let(f"fcmp uno {element} {a}, {b}"), element, 1, w.binary("fadd", element, 1, a, b), best)

    return rule


_EXTREMA = {n: _extremum(n) for n in ("maximum", "minimum")}


# -- Intel: SPIR-V kernels of OpenCL ------------------------------------------------------------------------------------------
def _opencl_number(name: str) -> Callable[[ThreadWriter], str]:
    symbol = f"_Z{len(name)}{name}j"

    def rule(w: ThreadWriter) -> str:
        w.declare(f"declare spir_func i64 @{symbol}(i32)")
        return w.let(f"call spir_func i64 @{symbol}(i32 0)")

    return rule


def _opencl_thread(w: ThreadWriter) -> str:
    wide = _opencl_number("get_local_id")(w)
    number = w.let(f"trunc i64 {wide} to i32")
    w.widened[number] = wide
    return number


def _opencl_barrier(w: ThreadWriter) -> None:
    """A block of one sub-group needs that sub-group's barrier alone."""
    name = "_Z7barrierj" if w.threads > w.warp_lanes else "_Z17sub_group_barrierj"
    w.declare(f"declare spir_func void @{name}(i32) convergent")
    w.line(f"call spir_func void @{name}(i32 3)")


def _opencl_shuffle(w: ThreadWriter, value: str, lane: str) -> str:
    w.declare("declare spir_func i32 @_Z17sub_group_shuffleij(i32, i32) convergent")
    return w.let(f"call spir_func i32 @_Z17sub_group_shuffleij(i32 {value}, i32 {lane})")


def _opencl_shuffle_xor(w: ThreadWriter, value: str, mask: int) -> str:
    w.declare("declare spir_func i32 @_Z21sub_group_shuffle_xorij(i32, i32) convergent")
    return w.let(f"call spir_func i32 @_Z21sub_group_shuffle_xorij(i32 {value}, i32 {mask})")


INTEL = Vendor(
    "intel", "spir_kernel", _opencl_thread, _opencl_number("get_group_id"), _opencl_number("get_num_groups"), _opencl_barrier,
    _opencl_shuffle, _opencl_shuffle_xor,
    shared_memory=lambda n: f"@shared = internal addrspace(3) global [{n} x i8] undef, align 64",
    after=lambda k: " !reqd_work_group_size !0 !intel_reqd_sub_group_size !1",
    tail=lambda k: [f"!0 = !{{i32 {k.threads}, i32 1, i32 1}}", f"!1 = !{{i32 {k.lanes}}}"],
    scope='syncscope("device") ', intrinsics=_EXTREMA)


# -- NVIDIA: PTX ------------------------------------------------------------------------------------------------------------
def _special_register(name: str, wide: bool) -> Callable[[ThreadWriter], str]:
    def rule(w: ThreadWriter) -> str:
        got = w.let(f"call i32 @llvm.nvvm.read.ptx.sreg.{name}()")
        return w.let(f"zext i32 {got} to i64") if wide else got

    return rule


def _ptx_barrier(w: ThreadWriter) -> None:
    w.line("call void @llvm.nvvm.barrier.cta.sync.aligned.all(i32 0)")


def _ptx_narrow(name: str, instruction: str) -> Callable[[ThreadWriter, str], str]:
    def rule(w: ThreadWriter, value: str) -> str:
        return w.let(f"bitcast {name} {w.let(instruction.format(value))} to i16")

    return rule


NVIDIA = Vendor(
    "nvidia", "ptx_kernel", _special_register("tid.x", False), _special_register("ctaid.x", True),
    _special_register("nctaid.x", True), _ptx_barrier,
    lambda w, v, lane: w.let(f"call i32 @llvm.nvvm.shfl.sync.idx.i32(i32 -1, i32 {v}, i32 {lane}, i32 31)"),
    lambda w, v, mask: w.let(f"call i32 @llvm.nvvm.shfl.sync.bfly.i32(i32 -1, i32 {v}, i32 {mask}, i32 31)"),
    shared_memory=lambda n: "@shared = external addrspace(3) global [0 x i8], align 1024",
    after=lambda k: f' nounwind "nvvm.reqntid"="{k.threads}"', tail=lambda k: [], scope="", dynamic_shared=True,
    narrowing={"bf16": _ptx_narrow("bfloat", "call bfloat @llvm.nvvm.f2bf16.rn(float {})"),
               "f16": lambda w, v: w.let(f"call i16 @llvm.nvvm.f2h.rn(float {v})")})


# -- AMD: code objects of ROCm ------------------------------------------------------------------------------------------------
def _gcn_number(name: str, wide: bool) -> Callable[[ThreadWriter], str]:
    def rule(w: ThreadWriter) -> str:
        got = w.let(f"call i32 @llvm.amdgcn.{name}()")
        return w.let(f"zext i32 {got} to i64") if wide else got

    return rule


def _gcn_blocks(w: ThreadWriter) -> str:
    """The hidden argument ``hidden_block_count_x`` comes first among the implicit arguments (code object version 5)."""
    p = w.let("call ptr addrspace(4) @llvm.amdgcn.implicitarg.ptr()")
    return w.let(f"zext i32 {w.let(f'load i32, ptr addrspace(4) {p}, align 4')} to i64")


def _gcn_barrier(w: ThreadWriter) -> None:
    w.line('fence syncscope("workgroup") release')
    w.line("call void @llvm.amdgcn.s.barrier()")
    w.line('fence syncscope("workgroup") acquire')


def _gcn_shuffle(w: ThreadWriter, value: str, lane: str) -> str:
    at = w.let(f"shl i32 {lane}, 2")
    return w.let(f"call i32 @llvm.amdgcn.ds.bpermute(i32 {at}, i32 {value})")


def _gcn_shuffle_xor(w: ThreadWriter, value: str, mask: int) -> str:
    return _gcn_shuffle(w, value, w.let(f"xor i32 {w.lane_id()}, {mask}"))


AMD = Vendor(
    "amd", "amdgpu_kernel", _gcn_number("workitem.id.x", False), _gcn_number("workgroup.id.x", True), _gcn_blocks, _gcn_barrier,
    _gcn_shuffle, _gcn_shuffle_xor,
    shared_memory=lambda n: f"@shared = internal addrspace(3) global [{n} x i8] poison, align 64",
    after=lambda k: f' nounwind "amdgpu-flat-work-group-size"="{k.threads},{k.threads}" "uniform-work-group-size"="true"',
    tail=lambda k: ['!llvm.module.flags = !{!0}', '!0 = !{i32 1, !"amdhsa_code_object_version", i32 500}'],
    scope='syncscope("agent") ', carries_words=True)

VENDORS: dict[str, Vendor] = {v.name: v for v in (INTEL, NVIDIA, AMD)}

__all__ = ["AMD", "INTEL", "NVIDIA", "VENDORS", "Kernel", "Vendor"]
