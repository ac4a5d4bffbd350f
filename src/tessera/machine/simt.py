"""SIMT machines (GPUs, and CPUs that run GPU programs): what the code generator may assume of one, as data and questions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ..types.dims import DimLike
from ..types.dtypes import DType
from .cpu import MatrixInstruction


@dataclass(frozen=True)
class Fragments:
    """Where the lanes of a warp hold the operands and the result of a matrix instruction: a linear layout each.

    Every bit of a register number or lane stands for a step (rows, columns); the element at a place is the sum of the steps of the
    bits that are set.

    Attributes:
        name: of the instruction.
        lhs, rhs, result: (steps of the register bits, steps of the lane bits), the lowest bit first.
    """

    name: str
    lhs: tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]
    rhs: tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]
    result: tuple[tuple[tuple[int, int], ...], tuple[tuple[int, int], ...]]


@dataclass(frozen=True)
class SimtMachine:
    """A machine whose programs are written for one thread of many.

    Attributes:
        name: how people call it.
        vendor: whose table of intrinsics the emitter uses: ``"intel"``, ``"nvidia"`` or ``"amd"``.
        triple, cpu, features: LLVM's names.
        lanes: threads of a warp (a sub-group, a wave).
        block_threads: threads of a block that kernels are made for unless they say otherwise.
        max_threads: the most threads of a block.
        shared_bytes: shared memory that one block may use.
        register_bytes: registers that the threads of one block may have together.
        banks: of shared memory, 32 bits each.
        units: multiprocessors (cores, compute units).
        resident_blocks: blocks that are at work at a time where each has scratch memory of its own in global memory.
        global_bandwidth: bytes a second, for cost estimates.
        instructions: matrix instructions; the vendor's emitter knows those by name.
        block_work: vector instructions of one block of a kernel made from loops; blocks are started by hardware, so few do.
        map_unroll: vectors of a tile in an elementwise loop: 1 where the vendor's compiler is slow and threads are wide vectors anyway.
        llvm_level: how hard LLVM optimises: 0 where the vendor's own compiler does it again.
        fragments: how lanes hold their operands, for those that tiles of a product are given to.
        has_warp_groups: groups of 128 threads share a matrix unit that reads shared memory, beside a copy engine with barriers in
            shared memory: what ``ir/tile_explicit.py`` is about.
        has_async_copies: threads copy into shared memory without waiting (``copy_async``).
        has_special_functions: one instruction gives powers of two, logarithms and reciprocals of f32 to about 22 bits.
        registers: 32-bit registers of one thread that a tile program may count on.
        has_shuffles: lanes of a warp read each other's registers; without, values pass through shared memory.
        tile_elements: elements of a tile of a user's kernel that stays in the registers of a block; larger ones go to memory.
    """

    name: str
    vendor: str
    triple: str
    cpu: str
    features: tuple[str, ...]
    lanes: int
    block_threads: int
    max_threads: int
    shared_bytes: int
    banks: int = 32
    units: int = 64
    resident_blocks: int = 256
    global_bandwidth: float = 1e12
    instructions: tuple[MatrixInstruction, ...] = ()
    block_work: int = 64
    map_unroll: int = 4
    llvm_level: int = 2
    fragments: tuple[Fragments, ...] = ()
    has_warp_groups: bool = False
    register_bytes: int = 256 << 10
    has_async_copies: bool = False
    has_special_functions: bool = False
    tile_elements: int = 256
    registers: int = 64
    has_shuffles: bool = True

    kind = "simt"
    unrolls_products = False  # products of tiles are loops
    has_half_conversion = False  # small floats are converted by integer arithmetic, alike everywhere
    caches = ()

    def has(self, feature: str) -> bool:
        """True when the machine has LLVM's ``feature``."""
        return feature in self.features

    @property
    def llvm_features(self) -> str:
        """The features as LLVM's target machine takes them."""
        return ",".join("+" + f for f in self.features)

    @property
    def threads(self) -> int:
        """How many blocks are worth having at least."""
        return self.units

    def block_elements(self, total: DimLike) -> int:
        """Elements of one block of a memory-bound kernel, of ``total``: four blocks for each unit, as far as threads have something to
        do; no more than keep a block at work for long."""
        if not isinstance(total, int):
            return 16384
        shared_out = total // (4 * self.units)
        return max(4 * self.block_threads, self.block_work // 4, min(16384, 1 << max(0, shared_out.bit_length() - 1)))

    @property
    def matrix_instructions(self) -> tuple[MatrixInstruction, ...]:
        return self.instructions

    def matrix_instruction(self, name: str) -> MatrixInstruction | None:
        """The matrix instruction called ``name``, where this machine has it."""
        return next((m for m in self.instructions if m.name == name), None)

    def product_instruction(self, lhs: DType, rhs: DType, accumulate: DType,
                            emitted: Collection[str] | None = None) -> MatrixInstruction | None:
        """None: plain products are formed by fma; kernels that use matrix instructions ask for them by name."""
        return None

    def tile_instruction(self, lhs: DType, rhs: DType, accumulate: DType, m: int, n: int, k: int) -> MatrixInstruction | None:
        """The first matrix instruction for a product of an [m, k] and a [k, n] tile that it divides, where lanes can be given its
        fragments; None: the product is formed by fma."""
        known = {f.name for f in self.fragments}
        return next((i for i in self.instructions if i.name in known and i.accepts(lhs, rhs, accumulate)
                     and m % i.m == 0 and n % i.n == 0 and k % i.k == 0), None)

    def fragments_of(self, instruction: MatrixInstruction) -> Fragments:
        """How lanes hold the operands of an instruction that :meth:`tile_instruction` gave."""
        return next(f for f in self.fragments if f.name == instruction.name)

    # -- numeric parameters: they fix the bits of a result, so they depend on dtype and target alone ---------------------
    def vector_lanes(self, dtype: DType) -> int:
        """Elements of a tile along which a block works at once: one for each thread."""
        return self.block_threads

    def access_elements(self, dtype: DType) -> int:
        """Neighbours that a thread of a map takes: 16 bytes of them, by one access (8 at most: they are computed in f32)."""
        return 1 if self.map_unroll == 1 else max(1, min(8, 16 // dtype.itemsize))

    @property
    def tile_lanes(self) -> int:
        """What extents of product tiles are multiples of."""
        return 16

    def reduction_lanes(self, dtype: DType) -> int:
        """Accumulators of a reduction along contiguous memory."""
        return self.block_threads

    def reduction_split(self, dtype: DType, along: bool) -> tuple[int, int]:
        """(few, chunk): reductions to fewer results are cut into chunks that run beside one another.

        Args:
            along: the reduced axes are the last, contiguous ones: a block reduces them together.  Otherwise a thread has a column of
                its own, and columns too few for the machine's threads are cut into short pieces.
        """
        itemsize = 4 if dtype.is_float and dtype.bits < 32 else dtype.itemsize
        return (64, max(4096, 65536 // itemsize)) if along else (self.units * self.block_threads, 64)

    @property
    def product_tile(self) -> tuple[int, int]:
        """(rows, vectors of ``tile_lanes`` columns) of the tile of a matrix product that one block holds."""
        return (32, 4)

    def key(self) -> str:
        """What compiled code depends on: it enters cache keys."""
        return (f"{self.vendor} {self.triple} {self.cpu} {','.join(self.features)} {self.lanes} {self.block_threads} "
                f"{self.max_threads} {self.map_unroll} {self.has_shuffles} {self.shared_bytes} {self.banks} {self.resident_blocks} "
                f"{','.join(f.name for f in self.fragments)}")


__all__ = ["Fragments", "SimtMachine"]
