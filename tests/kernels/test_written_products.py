
"""Products in users' kernels as programs of warp groups: the same meaning, without races; what does not fit stays as it is."""

import shutil
import subprocess

import ml_dtypes
import numpy as np
import pytest

import tessera as ts
from tessera import tile
from tessera.ir import interpret_tile
from tessera.kernels.hopper.written import product_of_groups
from tessera.machine import NVIDIA_SM80, NVIDIA_SM90
from tessera.runtime.llvm_workers import Request, workers
from tessera.targets.nvidia import kernels


@ts.kernel
def product(A: ts.Tile["M", "K", ts.bf16], B: ts.Tile["K", "N", ts.bf16], C: ts.Tile["M", "N", ts.bf16]):
    for i in tile.range(A.shape[0], step=128):
        for j in tile.range(B.shape[1], step=128):
            acc = tile.alloc_register(128, 128, dtype=ts.f32)
            tile.fill(acc, 0.0)
            for k in tile.range(A.shape[1], step=64):
                acc = tile.mma(A[i:i + 128, k:k + 64], B[k:k + 64, j:j + 128], acc)
            tile.store(C[i:i + 128, j:j + 128], acc)


@ts.kernel
def linear(A: ts.Tile["M", "K", ts.bf16], B: ts.Tile["N", "K", ts.bf16], Bias: ts.Tile["N", ts.bf16], R: ts.Tile["M", "N", ts.f32],
           C: ts.Tile["M", "N", ts.f32]):
    for i in tile.range(A.shape[0], step=128):
        for j in tile.range(B.shape[0], step=64):
            acc = tile.alloc_register(128, 64, dtype=ts.f32)
            tile.fill(acc, 0.0)
            for k in tile.range(A.shape[1], step=64):
                acc = tile.mma(A[i:i + 128, k:k + 64], tile.load(B[j:j + 64, k:k + 64]).T, acc)
            tile.store(C[i:i + 128, j:j + 64], tile.maximum(acc + Bias[j:j + 64].to(ts.f32) * 2.0 + R[i:i + 128, j:j + 64], 0.0))


@ts.kernel
def of_rows(A: ts.Tile["M", "K", ts.bf16], B: ts.Tile["K", "N", ts.bf16], C: ts.Tile["M", ts.f32]):
    for i in tile.range(A.shape[0], step=128):
        acc = tile.alloc_register(128, 128, dtype=ts.f32)
        tile.fill(acc, 0.0)
        for k in tile.range(A.shape[1], step=64):
            acc = tile.mma(A[i:i + 128, k:k + 64], B[k:k + 64, 0:128], acc)
        tile.store(C[i:i + 128], tile.sum(acc, 1))


M, N, K = 200, 152, 136
SIZES = {"M": M, "N": N, "K": K}


def built(k, **shapes):
    types = {n: ts.zeros(*s).to(ts.f32 if n in "RC" and k is not product else ts.bf16).type for n, s in shapes.items()}
    return k.build(types, {}).function


def drawn(*shape, dtype=ml_dtypes.bfloat16):
    return np.random.default_rng(sum(shape)).standard_normal(shape).astype(dtype)


def test_a_product_in_a_loop():
    fn = product_of_groups(built(product, A=(M, K), B=(K, N), C=(M, N)), NVIDIA_SM90, SIZES)
    a, b, c = drawn(M, K), drawn(K, N), np.full((M, N), np.nan, ml_dtypes.bfloat16)
    interpret_tile.run(fn, [a, b, c], SIZES, seed=2)
    want = a.astype(np.float64) @ b.astype(np.float64)
    assert np.abs(c.astype(np.float64) - want).max() < 2**-8 * np.abs(want).max()


def test_what_follows_a_product(tmp_path):
    fn = product_of_groups(built(linear, A=(M, K), B=(N, K), Bias=(N,), R=(M, N), C=(M, N)), NVIDIA_SM90, SIZES)
    a, b, bias, r = drawn(M, K), drawn(N, K), drawn(N), drawn(M, N, dtype=np.float32)
    c = np.full((M, N), np.nan, np.float32)
    interpret_tile.run(fn, [a, b, bias, r, c], SIZES, seed=2)
    want = np.maximum(a.astype(np.float64) @ b.astype(np.float64).T + 2 * bias.astype(np.float64) + r, 0)
    assert np.abs(c - want).max() < 1e-5 * np.abs(want).max()
    module = kernels.lower(fn, NVIDIA_SM90)
    text = workers().compile(Request(module.text, "nvptx64-nvidia-cuda", "sm_90a", NVIDIA_SM90.llvm_features, "asm", name="k")).decode()
    assert module.explicit and "wgmma.mma_async.sync.aligned.m64n64k16" in text
    if shutil.which("ptxas") is None:
        pytest.skip("no ptxas here")
    (tmp_path / "k.ptx").write_text(text)
    done = subprocess.run(["ptxas", "-arch=sm_90a", "-v", "k.ptx", "-o", "k.cubin"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and not kernels.complaints(done.stderr), done.stderr


def test_what_does_not_fit_stays_as_it_is():
    fn = built(product, A=(M, K), B=(K, N), C=(M, N))
    assert product_of_groups(fn, NVIDIA_SM80, SIZES) is None  # no warp groups
    assert product_of_groups(fn, NVIDIA_SM90, {**SIZES, "K": 137}) is None  # rows of no whole 16 bytes
    assert product_of_groups(fn, NVIDIA_SM90, {**SIZES, "K": 0}) is None  # nothing to sum
    rows = built(of_rows, A=(M, K), B=(K, 128), C=(M,))
    assert product_of_groups(rows, NVIDIA_SM90, {"M": M, "N": 128, "K": K}) is None  # rows are summed
