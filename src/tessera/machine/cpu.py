"""Vector CPUs: what the code generator may assume of one, as plain data and questions."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ..types.dims import DimLike
from ..types.dtypes import DType, bf16, f32, int8, int32


@dataclass(frozen=True)
class MatrixInstruction:
    """One instruction that multiplies small matrices.

    Attributes:
        name: as it stands in a ``dot``'s ``unit`` attribute.
        feature: the LLVM feature it needs.
        lhs, rhs, accumulate: element types.
        m, n, k: the extents of one instruction.
        rounding: how a product is added to the accumulator, exactly; the interpreter follows it.
        flushes_subnormals: subnormal inputs count as zero and subnormal results become zero.
    """

    name: str
    feature: str
    lhs: DType
    rhs: DType
    accumulate: DType
    m: int
    n: int
    k: int
    rounding: str
    flushes_subnormals: bool

    def accepts(self, lhs: DType, rhs: DType, accumulate: DType) -> bool:
        return (self.lhs, self.rhs, self.accumulate) == (lhs, rhs, accumulate)


_PAIRS = "the products of a pair (odd k, then even) are added one after the other to the sum by fma"
_TWO_SUMS = "even and odd k have a sum each inside one instruction, by fma from zero; acc + (even + odd)"
_EXACT = "exact: products and sums of integers"

MATRIX_INSTRUCTIONS: tuple[MatrixInstruction, ...] = (
    MatrixInstruction("amx_bf16", "amx-bf16", bf16, bf16, f32, 16, 16, 32, _TWO_SUMS, True),
    MatrixInstruction("amx_int8", "amx-int8", int8, int8, int32, 16, 16, 64, _EXACT, False),
    MatrixInstruction("dpbf16", "avx512bf16", bf16, bf16, f32, 1, 16, 2, _PAIRS, True),
    # (The instruction reads its left operand as unsigned; the code generator moves signed ones by 128 and takes that out again.)
    MatrixInstruction("vnni", "avx512vnni", int8, int8, int32, 1, 16, 4, _EXACT, False),
)


@dataclass(frozen=True)
class Cache:
    """One level of data cache: bytes, ways, bytes of a line, and how many hardware threads share it."""

    level: int
    size: int
    ways: int = 8
    line: int = 64
    sharers: int = 1


@dataclass(frozen=True)
class CpuMachine:
    """A vector CPU.

    Attributes:
        name: how people call it, for messages and file names.
        triple, cpu, tune, features: LLVM's names.  ``cpu`` is an architecture level, so code needs exactly what
            ``features`` lists beyond it; ``tune`` selects the scheduling model only.
        vector_bits: width of a vector register.
        registers: how many of them.
        caches: data caches, nearest first.
        threads: hardware threads this process may use.
    """

    name: str
    triple: str
    cpu: str
    tune: str
    features: tuple[str, ...]
    vector_bits: int
    registers: int
    caches: tuple[Cache, ...]
    threads: int = 1

    kind = "cpu"
    map_unroll = 4  # vectors of a tile in an elementwise loop: several in flight
    has_async_copies = False
    tile_elements = 256  # of a tile that stays in registers
    unrolls_products = True
    llvm_level = 2  # how hard LLVM optimises
    block_work = 262144  # vector instructions of one block: enough to hide what starting it costs

    def block_elements(self, total: DimLike) -> int:
        """Elements of one block of a memory-bound kernel, of ``total``: 64 KiB of f32 stay in the first caches."""
        return 16384

    # -- instructions ------------------------------------------------------------------------------------------------
    def has(self, feature: str) -> bool:
        """True when the CPU has LLVM's ``feature``."""
        return feature in self.features

    @property
    def llvm_features(self) -> str:
        """The features as LLVM's target machine takes them."""
        return ",".join("+" + f for f in self.features)

    @property
    def has_half_conversion(self) -> bool:
        """f16 <-> f32 is one instruction."""
        return self.has("f16c") or self.has("avx512f") or self.triple.startswith("aarch64")

    @property
    def matrix_instructions(self) -> tuple[MatrixInstruction, ...]:
        return tuple(m for m in MATRIX_INSTRUCTIONS if self.has(m.feature))

    def matrix_instruction(self, name: str) -> MatrixInstruction | None:
        """The matrix instruction called ``name``, where this CPU has it."""
        return next((m for m in self.matrix_instructions if m.name == name), None)

    def product_instruction(self, lhs: DType, rhs: DType, accumulate: DType,
                            emitted: Collection[str] | None = None) -> MatrixInstruction | None:
        """The matrix instruction that multiplies these dtypes faster than fma in f32 does, where there is one.

        Args:
            emitted: consider only these instructions, which the code generator knows how to use (default: all).

        Intel's cores run ``dpbf16`` at half rate, so that it gains nothing there; AMD's run it at full rate.
        """
        for m in self.matrix_instructions:
            slow = m.name == "dpbf16" and not self._amd
            if m.accepts(lhs, rhs, accumulate) and not slow and (emitted is None or m.name in emitted):
                return m
        return None

    # -- numeric parameters: they fix the bits of a result, so they depend on dtype and target alone -------------------
    def vector_lanes(self, dtype: DType) -> int:
        """Elements of ``dtype`` in one register."""
        return max(1, self.vector_bits // (8 * dtype.itemsize))

    def access_elements(self, dtype: DType) -> int:
        """Registers of a map's tile along memory that one access takes: a register is an access."""
        return 1

    @property
    def tile_lanes(self) -> int:
        """Lanes of one piece of a tile's last axis, whatever its dtype: one register of 32-bit elements."""
        return self.vector_bits // 32

    def reduction_lanes(self, dtype: DType) -> int:
        """Accumulators of a reduction along contiguous memory: four registers hide the latency of an add."""
        return 4 * self.vector_lanes(self._accumulator(dtype))

    def reduction_split(self, dtype: DType, along: bool) -> tuple[int, int]:
        """(few, chunk): reductions to fewer results are cut into chunks for the threads, of 64 KiB, a fixed number whatever the thread
        count.

        Args:
            along: the reduced axes are the last, contiguous ones.
        """
        return 64, max(4096, 65536 // self._accumulator(dtype).itemsize)

    @property
    def product_tile(self) -> tuple[int, int]:
        """(MR, NV): rows, and vectors a row, of the register tile of a matrix product, whatever its dtype.

        The accumulators, the vectors of one row of the right operand and one broadcast fill the registers.  AMD's cores
        are a few per cent faster where some registers stay free for the broadcasts to come.
        """
        if self.registers < 32:
            return (6, 2)
        return (12, 2) if self._amd else (14, 2)

    @property
    def _amd(self) -> bool:
        return self.tune.startswith("znver")

    @staticmethod
    def _accumulator(dtype: DType) -> DType:
        return f32 if dtype.is_float and dtype.bits < 32 else dtype

    def key(self) -> str:
        """What compiled code depends on: it enters cache keys."""
        return f"{self.triple} {self.cpu} {self.tune} {','.join(self.features)} {self.vector_bits}"


AVX2_FEATURES = ("sse3", "ssse3", "sse4.1", "sse4.2", "popcnt", "cx16", "avx", "f16c", "avx2", "bmi", "bmi2", "lzcnt",
                 "movbe", "fma")
AVX512_FEATURES = (*AVX2_FEATURES, "avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl")
_DESKTOP = (Cache(1, 32768), Cache(2, 524288), Cache(3, 16 << 20, sharers=8))
_SERVER = (Cache(1, 49152, 12), Cache(2, 2 << 20, 16), Cache(3, 32 << 20, 16, sharers=16))
_LINUX = "x86_64-unknown-linux-gnu"

X86_AVX2 = CpuMachine("x86-64 with AVX2", _LINUX, "x86-64-v3", "haswell", AVX2_FEATURES, 256, 16, _DESKTOP)
X86_AVX512 = CpuMachine("x86-64 with AVX-512", _LINUX, "x86-64-v4", "icelake-server", AVX512_FEATURES, 512, 32, _SERVER)
X86_AMX = CpuMachine(
    "x86-64 with AMX", _LINUX, "x86-64-v4", "sapphirerapids",
    (*AVX512_FEATURES, "avx512bf16", "avx512fp16", "avx512vnni", "avx512vbmi", "avx512vbmi2", "amx-tile", "amx-bf16",
     "amx-int8"), 512, 32, _SERVER)
AARCH64_NEON = CpuMachine("AArch64 with NEON", "aarch64-unknown-linux-gnu", "generic", "generic", ("neon", "fp-armv8"),
                          128, 32, (Cache(1, 65536, 4), Cache(2, 1 << 20), Cache(3, 32 << 20, 16, sharers=16)))

__all__ = ["AARCH64_NEON", "MATRIX_INSTRUCTIONS", "X86_AMX", "X86_AVX2", "X86_AVX512", "Cache", "CpuMachine",
           "MatrixInstruction"]
