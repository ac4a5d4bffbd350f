"""A product and an attention in Triton, in the manner of its tutorials, with a few configurations to choose from."""

import functools

import torch
import triton
import triton.language as tl


@triton.autotune([triton.Config({"BM": bm, "BN": bn, "BK": 64, "G": 8}, num_stages=s, num_warps=w)
                  for bm, bn, s, w in ((128, 256, 3, 8), (128, 256, 4, 8), (128, 128, 4, 4), (128, 128, 3, 8))], ["M", "N", "K"])
@triton.jit
def _product(a, b, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, G: tl.constexpr):
    pid = tl.program_id(0)
    rows, columns = tl.cdiv(M, BM), tl.cdiv(N, BN)
    band = pid // (G * columns)
    height = min(rows - band * G, G)
    i, j = (band * G + pid % (G * columns) % height) * BM, pid % (G * columns) // height * BN
    down, along, deep = i + tl.arange(0, BM), j + tl.arange(0, BN), tl.arange(0, BK)
    pa, pb = a + down[:, None] * K + deep[None, :], b + deep[:, None] * N + along[None, :]
    acc = tl.zeros((BM, BN), tl.float32)
    for _ in range(0, K, BK):
        acc = tl.dot(tl.load(pa), tl.load(pb), acc)
        pa += BK
        pb += BK * N
    tl.store(c + down[:, None] * N + along[None, :], acc.to(tl.bfloat16))


def product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a @ b for sizes that are multiples of the tiles."""
    (m, k), n = a.shape, b.shape[1]
    c = torch.empty(m, n, device="cuda", dtype=a.dtype)
    _product[lambda meta: (triton.cdiv(m, meta["BM"]) * triton.cdiv(n, meta["BN"]),)](a, b, c, m, n, k)
    return c


@triton.autotune([triton.Config({"BQ": bq, "BT": bt}, num_stages=s, num_warps=w)
                  for bq, bt, s, w in ((128, 64, 3, 8), (128, 64, 3, 4), (128, 128, 2, 8), (64, 64, 3, 4))], ["S", "D"])
@triton.jit
def _attention(q, k, v, o, S, scale, D: tl.constexpr, BQ: tl.constexpr, BT: tl.constexpr):
    base = tl.program_id(1).to(tl.int64) * S * D
    rows, columns, wide = tl.program_id(0) * BQ + tl.arange(0, BQ), tl.arange(0, BT), tl.arange(0, D)
    query = tl.load(q + base + rows[:, None] * D + wide[None, :])
    pk, pv = k + base + wide[:, None] + columns[None, :] * D, v + base + columns[:, None] * D + wide[None, :]
    top, total = tl.full((BQ,), float("-inf"), tl.float32), tl.zeros((BQ,), tl.float32)
    acc = tl.zeros((BQ, D), tl.float32)
    for _ in range(0, S, BT):
        s = tl.dot(query, tl.load(pk)) * scale
        higher = tl.maximum(top, tl.max(s, 1))
        p, decay = tl.exp2(s - higher[:, None]), tl.exp2(top - higher)
        total = total * decay + tl.sum(p, 1)
        acc = tl.dot(p.to(tl.bfloat16), tl.load(pv), acc * decay[:, None])
        top = higher
        pk += BT * D
        pv += BT * D
    tl.store(o + base + rows[:, None] * D + wide[None, :], (acc / total[:, None]).to(tl.bfloat16))


@functools.cache
def _out(shape: torch.Size) -> torch.Tensor:
    return torch.empty(shape, device="cuda", dtype=torch.bfloat16)


def attention(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """softmax(q k^T / sqrt(D)) v over [heads, length, D], for lengths that are multiples of the tiles."""
    o = _out(q.shape)
    h, s, d = q.shape
    _attention[lambda meta: (s // meta["BQ"], h)](q, k, v, o, s, d**-0.5 * 1.4426950408889634, d)
    return o
