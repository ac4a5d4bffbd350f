"""The emulated warp machine with AMD's and Intel's intrinsics; where lanes hold elements stands here as the vendors' tables tell it."""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path

import numpy as np

from tessera.types.dtypes import as_dtype

sys.path.insert(0, str(Path(__file__).parents[1] / "nvidia"))
from emulated import FORMATS, Emulated, Thread, split


class VendorThread(Thread):
    def plain(self, text):
        return None if text.startswith("fence") else super().plain(text)

    def call(self, text):
        name = re.search(r"@([\w.]+)\(", text)[1]
        args = split(text[text.index(name) + len(name) + 1:text.rindex(")")])
        if name in ("_Z12get_local_idj", "llvm.amdgcn.workitem.id.x"):
            return self.number
        if name in ("_Z12get_group_idj", "llvm.amdgcn.workgroup.id.x"):
            return self.block
        if name in ("_Z7barrierj", "llvm.amdgcn.s.barrier"):
            return (yield ("barrier",))
        if "mfma" in name:
            return (yield ("mfma", name, [packed(a, self.typed(a)) for a in args[:2]], self.typed(args[2])))
        if "SubgroupMatrixMultiplyAccumulate" in name:
            k, flags = (self.typed(args[i]) for i in (0, 4))
            return (yield ("dpas", (k, flags), [packed(a, self.typed(a)) for a in args[1:3]], self.typed(args[3])))
        return (yield from super().call(text))


def packed(argument, value):
    """The bytes of a lane's operand."""
    kind = argument.rpartition(" ")[0]
    m = re.match(r"<(\d+) x (\w+)>", kind)
    return struct.pack(f"<{m[1]}{FORMATS[m[2]]}", *value) if m else struct.pack(f"<{FORMATS[kind]}", value)


def numbers(operands, which, dtype):
    """[lane, element] of an operand."""
    return np.array([np.frombuffer(w[2][which], dtype.np).astype(np.float64) for w in operands])


def results(warp, total, place):
    """What each lane gets: its accumulators plus the elements of the product that it holds."""
    out = []
    for lane, w in enumerate(warp):
        sums = [(c, total[place(lane, r)]) for r, c in enumerate(w[3])]
        out.append([float(np.float32(c + t)) if total.dtype == np.float64 else int(c + t) % (1 << 32) for c, t in sums])
    return out


class Wave(Emulated):
    """CDNA: waves of 64; AMD's matrix instruction calculator."""

    warp, thread = 64, VendorThread

    def mfma(self, warp):
        kind, edge, depth, name = re.search(r"mfma\.(\w)\d+\.(\d+)x\d+x(\d+)\.?(bf16|f16|i8|fp8)", warp[0][1]).groups()
        edge, depth = int(edge), int(depth)
        dtype = as_dtype({"i8": "int8", "fp8": "fp8_e4m3"}.get(name, name))
        a, b = numbers(warp, 0, dtype), numbers(warp, 1, dtype)
        each = depth // (64 // edge)
        left, right = np.full((edge, depth), np.nan), np.full((depth, edge), np.nan)
        for lane in range(64):
            for j in range(each):
                left[lane % edge, each * (lane // edge) + j] = a[lane, j]
                right[each * (lane // edge) + j, lane % edge] = b[lane, j]
        total = (left @ right).astype(np.int64 if kind == "i" else np.float64)
        groups = 64 // edge
        return results(warp, total, lambda lane, r: (4 * groups * (r // 4) + 4 * (lane // edge) + r % 4, lane % edge))


class SubGroup(Emulated):
    """Xe-HPC: sub-groups of 16; SPV_INTEL_subgroup_matrix_multiply_accumulate."""

    warp, thread = 16, VendorThread

    def dpas(self, warp):
        k, flags = warp[0][1]
        dtype = as_dtype({0x3000: "bf16", 0xC00: "f16", 0x33: "int8", 0x30: "uint8"}[flags])
        a, b = numbers(warp, 0, dtype), numbers(warp, 1, dtype)
        each = 2 // dtype.itemsize
        left, right = np.full((8, k), np.nan), np.full((k, 16), np.nan)
        for lane in range(16):
            left[:, lane * each:(lane + 1) * each] = a[lane].reshape(8, each)
            right[:, lane] = b[lane]
        total = (left @ right).astype(np.float64 if dtype.is_float else np.int64)
        return results(warp, total, lambda lane, r: (r, lane))
