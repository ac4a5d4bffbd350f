"""Tile programs built for AMD GPUs: code objects with the right instructions, and matrix products' layouts against an emulated MFMA.

No AMD device is at hand: instructions and descriptors are read, nothing is executed.
"""

# ruff: noqa: F821  (names of sizes in annotations)
import re

import numpy as np
import pytest
from attentions import attention_op
from test_simt_attention_backward import programs

import tessera as ts
from tessera import tile
from tessera.kernels.simt.attention import attention_program
from tessera.machine import AMD_GFX942, AMD_GFX950
from tessera.runtime.llvm_workers import Request, workers
from tessera.targets.amd import code_object
from tessera.targets.amd.build import code_object as build
from tessera.targets.amd.build import lower
from tessera.tiling.layouts import of_fragments, warps_of_product

MACHINES = [AMD_GFX942, AMD_GFX950]
IDS = [m.cpu for m in MACHINES]


def compiled(module, machine, kind):
    request = Request(module.text, machine.triple, machine.cpu, machine.llvm_features, kind, machine.llvm_level, module.symbol)
    return workers().compile(request)


def function(kernel, *args):
    tensors, static = kernel._arguments(args, {})
    return kernel.build({n: t.type for n, t in tensors.items()}, static, specialize=False).function


@ts.kernel
def add(A: ts.Tile["N", ts.f32], B: ts.Tile["N", ts.f32], C: ts.Tile["N", ts.f32]):
    tile.store(C, A + B)


@ts.kernel
def softmax(X: ts.Tile["M", "N", ts.f32], Y: ts.Tile["M", "N", ts.f32]):
    for i in tile.range(X.shape[0], step=4):
        x = tile.load(X[i:i + 4], (0, 0), shape=(4, 128), fill=-float("inf"))
        e = tile.exp(x - tile.max(x, axis=1, keepdims=True))
        tile.store(Y[i:i + 4, 0:128], e / tile.sum(e, axis=1, keepdims=True))


def product(kind, out=ts.f32, m=64, n=64, k=64):
    @ts.kernel
    def matmul(A: ts.Tile["M", "K", kind], B: ts.Tile["K", "N", kind], C: ts.Tile["M", "N", out]):
        for i in tile.range(A.shape[0], step=m):
            for j in tile.range(B.shape[1], step=n):
                acc = tile.alloc_register(m, n, dtype=out)
                tile.fill(acc, 0)
                for l in tile.range(A.shape[1], step=k):
                    acc = tile.mma(A[i:i + m, l:l + k], B[l:l + k, j:j + n], acc)
                tile.store(C[i:i + m, j:j + n], acc)

    return function(matmul, ts.zeros(128, 128, dtype=kind), ts.zeros(128, 128, dtype=kind), ts.zeros(128, 128, dtype=out))


@pytest.mark.parametrize("machine", MACHINES, ids=IDS)
def test_simple_kernels_become_code_objects(machine):
    x = ts.zeros(1000)
    rows = ts.zeros(40, 128)
    for fn, wanted in ((function(add, x, x, x), [r"v_add_f32|v_pk_add_f32", r"global_load_dword"]),
                       (function(softmax, rows, rows), [r"v_fma_f32|v_fmac_f32|v_pk_fma_f32", r"ds_bpermute|v_mov_b32_dpp"])):
        binary, module = build(fn, machine, compiled)
        (k,) = code_object.kernels(binary)
        assert k.name == module.symbol and k.wave == 64 and k.private_bytes == 0 and k.shared_bytes == module.shared
        asm = compiled(module, machine, "asm").decode()
        for pattern in wanted:
            assert re.search(pattern, asm), f"{fn.name}: no {pattern}"
        assert "s_endpgm" in asm and f'"amdgcn-amd-amdhsa--{machine.cpu}' in asm


@pytest.mark.parametrize("machine, kind, out, instruction", [
    (AMD_GFX942, ts.bf16, ts.f32, "v_mfma_f32_32x32x8_bf16"), (AMD_GFX942, ts.f16, ts.f32, "v_mfma_f32_32x32x8_f16"),
    (AMD_GFX942, ts.int8, ts.int32, "v_mfma_i32_32x32x16_i8"), (AMD_GFX950, ts.bf16, ts.f32, "v_mfma_f32_32x32x16_bf16"),
    (AMD_GFX950, ts.f16, ts.f32, "v_mfma_f32_32x32x16_f16"), (AMD_GFX950, ts.fp8_e4m3, ts.f32, "v_mfma_f32_32x32x16_fp8_fp8"),
    (AMD_GFX950, ts.int8, ts.int32, "v_mfma_i32_32x32x32_i8")], ids=str)
def test_products_use_matrix_instructions(machine, kind, out, instruction):
    binary, module = build(product(kind, out), machine, compiled)
    asm = compiled(module, machine, "asm").decode()
    # 256 threads are 4 waves, one 32 x 32 block of the result each; the loop over k holds 64 / k of the instruction.
    assert len(re.findall(instruction, asm)) == 64 // int(re.search(r"x(\d+)_", instruction[12:]).group(1))
    (k,) = code_object.kernels(binary)
    assert k.private_bytes == 0 and 0 < k.shared_bytes <= machine.shared_bytes and k.registers <= 512


def test_small_and_ragged_products():
    asm = compiled(lower(product(ts.bf16, m=16, n=16, k=16), AMD_GFX942), AMD_GFX942, "asm").decode()
    assert "v_mfma_f32_16x16x16_bf16" in asm
    for extents in ({"m": 24}, {"k": 12, "m": 32, "n": 32}):
        asm = compiled(lower(product(ts.bf16, **extents), AMD_GFX942), AMD_GFX942, "asm").decode()
        assert "v_mfma" not in asm and re.search("v_fma|v_pk_fma", asm)
    assert "v_mfma" not in compiled(lower(product(ts.f32), AMD_GFX942), AMD_GFX942, "asm").decode()  # f32 sums keep their order


@pytest.mark.parametrize("machine", MACHINES, ids=IDS)
def test_fragments_multiply(machine):
    """Emulates each instruction from where its lanes hold elements: every pair of operands must meet exactly once."""
    for unit in machine.instructions:
        f = machine.fragments_of(unit)
        a, b, c = (place(steps, 64) for steps in (f.lhs, f.rhs, f.result))
        assert sorted(a) == sorted((r, k) for r in range(unit.m) for k in range(unit.k))
        assert sorted(b) == sorted((k, n) for k in range(unit.k) for n in range(unit.n))
        assert sorted(c) == sorted((r, n) for r in range(unit.m) for n in range(unit.n))
        each = unit.k // (64 // unit.m)
        assert [k for _, k in a[:each]] == list(range(each))  # neighbouring k of one lane are one operand register's bytes


def place(steps, lanes):
    """(row, column) of every (lane, register)."""
    registers, of_lane = steps
    out = []
    for lane in range(lanes):
        for reg in range(1 << len(registers)):
            taken = [s for i, s in enumerate(registers) if reg >> i & 1] + [s for i, s in enumerate(of_lane) if lane >> i & 1]
            out.append((sum(s[0] for s in taken), sum(s[1] for s in taken)))
    return out


@pytest.mark.parametrize("warps", [1, 2, 4, 8])
@pytest.mark.parametrize("shape", [(32, 32, 8), (64, 64, 16), (128, 32, 64), (32, 128, 8)])
def test_the_layouts_of_a_product_agree(shape, warps):
    """numpy forms the product as the emitter does: register blocks of lhs, rhs and the result, warp by warp."""
    m, n, k = shape
    unit = AMD_GFX942.instructions[0]
    f = AMD_GFX942.fragments_of(unit)
    taken = warps_of_product(m, n, (32, 32), warps)
    at_a = of_fragments((m, k), (32, 8), f.lhs, [s if s[0] else (0, 0) for s in taken])
    at_b = of_fragments((k, n), (8, 32), f.rhs, [s if s[1] else (0, 0) for s in taken])
    at_c = of_fragments((m, n), (32, 32), f.result, taken)
    rng = np.random.default_rng(0)
    a, b = rng.integers(-9, 9, (m, k)), rng.integers(-9, 9, (k, n))
    got = np.full((m, n), 10**6)
    frag_a, frag_b, frag_c = (place(s, 64) for s in (f.lhs, f.rhs, f.result))
    regs = [1 << len(x.bases("reg")) for x in (at_a, at_b, at_c)]
    depth = k // 8
    down, across = regs[0] // 4 // depth, regs[1] // 4 // depth
    for warp in range(warps):
        held = [[[x.index(x.element(reg=r, lane=lane, warp=warp)) for r in range(count)] for lane in range(64)]
                for x, count in zip((at_a, at_b, at_c), regs)]
        for row in range(down):
            for column in range(across):
                total = np.zeros((32, 32), int)
                for s in range(depth):
                    left, right = np.zeros((32, 8), int), np.zeros((8, 32), int)
                    for lane in range(64):
                        for j in range(4):
                            left[frag_a[lane * 4 + j]] = a[held[0][lane][(row + down * s) * 4 + j]]
                            right[frag_b[lane * 4 + j]] = b[held[1][lane][(s + depth * column) * 4 + j]]
                    total += left @ right
                for lane in range(64):
                    for j in range(16):
                        got[held[2][lane][(row + down * column) * 16 + j]] = total[frag_c[lane * 16 + j]]
    np.testing.assert_array_equal(got, a @ b)


@pytest.mark.parametrize("machine", MACHINES, ids=IDS)
def test_fragments_become_mfma(machine):
    @ts.kernel
    def fragments(A: ts.Tile["M", "K", ts.bf16], B: ts.Tile["K", "N", ts.bf16], C: ts.Tile["M", "N", ts.f32]):
        a, b, c = tile.fragment.a((16, 32), ts.bf16), tile.fragment.b((32, 16), ts.bf16), tile.fragment.c((16, 16), ts.f32)
        held = tile.alloc_shared(16, 32, dtype=ts.bf16)
        tile.load_async(held, A[0:16, 0:32])
        tile.barrier()
        tile.load_matrix(a, held)
        tile.load_matrix(b, B[0:32, 0:16])
        tile.mma(c, a, b, c)
        tile.store_matrix(C[0:16, 0:16], c)

    fn = function(fragments, ts.zeros(16, 32, dtype=ts.bf16), ts.zeros(32, 16, dtype=ts.bf16), ts.zeros(16, 16))
    binary, module = build(fn, machine, compiled)
    asm = compiled(module, machine, "asm").decode()
    assert asm.count("v_mfma_f32_16x16x16_bf16") == 2 or asm.count("v_mfma_f32_16x16x32_bf16") == 1
    assert "ds_read" in asm and code_object.kernels(binary)[0].private_bytes == 0


@pytest.mark.parametrize("machine, kind, d, instruction", [
    (AMD_GFX942, ts.bf16, 64, "v_mfma_f32_32x32x8_bf16"), (AMD_GFX942, ts.f16, 128, "v_mfma_f32_32x32x8_f16"),
    (AMD_GFX950, ts.bf16, 128, "v_mfma_f32_32x32x16_bf16"), (AMD_GFX950, ts.f16, 64, "v_mfma_f32_32x32x16_f16")],
    ids=lambda x: getattr(x, "cpu", str(x)))
def test_attention_uses_matrix_instructions(machine, kind, d, instruction):
    fn = attention_program(attention_op(4, 1000, 1000, d, dtype=kind, causal=True), machine, "k")
    binary, module = build(fn, machine, compiled)
    asm = compiled(module, machine, "asm").decode()
    keys, depth = 64 if d == 64 else 32, int(re.search(r"x(\d+)_", instruction[12:]).group(1))
    assert len(re.findall(instruction, asm)) == 2 * (keys // 32) * (d // depth)  # scores and values of 32 queries a wave
    (k,) = code_object.kernels(binary)
    assert k.private_bytes == 0 and k.shared_bytes <= 24576 and k.registers <= 512  # both operands pass through memory together


@pytest.mark.parametrize("machine", MACHINES, ids=IDS)
def test_the_reverse_of_attention_uses_matrix_instructions(machine):
    arrays = [np.zeros((4, 200, 128), ts.bf16.np) for _ in range(4)] + [np.zeros((4, 200), np.float32)] * 2
    for op, fn in programs(arrays, {"scale": 0.1, "causal": True}, machine):
        binary, module = build(fn, machine, compiled)
        products = 3 if op.attrs["writes"] == ("dq",) else 4
        depth = 8 if machine is AMD_GFX942 else 16
        assert len(re.findall(f"v_mfma_f32_32x32x{depth}_bf16", compiled(module, machine, "asm").decode())) == products * 128 // depth
        (k,) = code_object.kernels(binary)
        assert k.private_bytes == 0 and k.registers <= 512
