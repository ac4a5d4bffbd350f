"""Kernels that every machine gets from one source, with what they should compute; tests of single machines import them from here."""

# ruff: noqa: F821  (names of sizes in annotations)
import numpy as np

import tessera as ts
from tessera import tile
from tessera.types.shapes import unify


@ts.kernel
def product(A: ts.Tile["M", "K"], B: ts.Tile["K", "N"], C: ts.Tile["M", "N"], m: int = 32, n: int = 32, k: int = 32):
    """C = A @ B, in tiles of m x n and steps of k; sums in the dtype of C."""
    for i in tile.range(A.shape[0], step=m):
        for j in tile.range(B.shape[1], step=n, parallel=False):
            acc = tile.zeros((m, n), C.dtype)
            for l in tile.range(A.shape[1], step=k):
                acc = tile.mma(A[i:i + m, l:l + k], B[l:l + k, j:j + n], acc)
            tile.store(C[i:i + m, j:j + n], acc)


@ts.kernel
def product_nt(A: ts.Tile["M", "K"], B: ts.Tile["N", "K"], C: ts.Tile["M", "N"], m: int = 32, n: int = 32, k: int = 32):
    """C = A @ B.T."""
    for i in tile.range(A.shape[0], step=m):
        for j in tile.range(B.shape[0], step=n, parallel=False):
            acc = tile.zeros((m, n), C.dtype)
            for l in tile.range(A.shape[1], step=k):
                acc = tile.mma(A[i:i + m, l:l + k], tile.load(B[j:j + n, l:l + k]).T, acc)
            tile.store(C[i:i + m, j:j + n], acc)


@ts.kernel
def attention(Q: ts.Tile["B*H", "S", "D"], K: ts.Tile["B*H", "T", "D"], V: ts.Tile["B*H", "T", "D"], O: ts.Tile["B*H", "S", "D"],
              scale: float, block: int = 64, width: int = 64, wait: bool = True):
    """The specification's kernel (004, example 3) with its sizes as arguments; without ``wait`` the copies race with what reads them."""
    q, k, v = (tile.alloc_shared(block, width, dtype=Q.dtype) for _ in range(3))
    m, l = tile.alloc_register(block, dtype=ts.f32), tile.alloc_register(block, dtype=ts.f32)
    acc = tile.alloc_register(block, width, dtype=ts.f32)
    tile.fill(m, -float("inf"))
    tile.fill(l, 0.0)
    tile.fill(acc, 0.0)
    for i in tile.range(Q.shape[1], step=block):
        tile.load_async(q, Q[i:i + block])
        for j in tile.range(K.shape[1], step=block):
            tile.load_async(k, K[j:j + block])
            tile.load_async(v, V[j:j + block])
            if wait:
                tile.barrier()
            m_new, l_new, p = tile.online_softmax(tile.matmul(q, k.T) * scale, m, l)
            tile.update_accumulator(acc, tile.matmul(p.to(V.dtype), v), m, m_new, l, l_new)
            m = m_new
            l = l_new
    tile.store(O, acc / l)


@ts.kernel
def layer_norm(X: ts.Tile["M", "N"], W: ts.Tile["N", ts.f32], B: ts.Tile["N", ts.f32], Y: ts.Tile["M", "N"], width: int, eps: float):
    """Rows of at most ``width`` elements."""
    for i in tile.range(X.shape[0], step=4):
        x = tile.load(X[i:i + 4], (0, 0), shape=(4, width)).to(ts.f32)
        mean = tile.sum(x, axis=1, keepdims=True) / X.shape[1]
        centred = tile.where(tile.iota((4, width), 1) < X.shape[1], x - mean, 0.0)
        rstd = tile.rsqrt(tile.sum(centred * centred, axis=1, keepdims=True) / X.shape[1] + eps)
        y = centred * rstd * tile.load(W, (0,), shape=(width,)) + tile.load(B, (0,), shape=(width,))
        tile.store(Y[i:i + 4, 0:width], y)


@ts.kernel
def stencil(X: ts.Tile["H", "W"], Y: ts.Tile["H", "W"], weights: tuple):
    """A 3 x 3 stencil; zeros outside."""
    for i in tile.range(X.shape[0], step=8):
        for j in tile.range(0, X.shape[1], step=16):
            acc = tile.zeros((8, 16), X.dtype)
            for di in tile.static_range(3):
                for dj in tile.static_range(3):
                    acc = acc + tile.load(X, (i + (di - 1), j + (dj - 1)), shape=(8, 16)) * weights[di][dj]
            tile.store(Y[i:i + 8, j:j + 16], acc)


def exact_attention(q, k, v, scale):
    """In f64."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    scores = q @ k.swapaxes(-1, -2) * scale
    p = np.exp(scores - scores.max(-1, keepdims=True))
    return p / p.sum(-1, keepdims=True) @ v


def exact_layer_norm(x, w, b, eps):
    """In f64."""
    x = x.astype(np.float64)
    centred = x - x.mean(1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(1, keepdims=True) + eps) * w + b


def exact_stencil(x, weights):
    """In f64."""
    h, w = x.shape
    padded = np.pad(x.astype(np.float64), 1)
    return sum(weights[i][j] * padded[i:i + h, j:j + w] for i in range(3) for j in range(3))


def built(kernel, *arrays, specialize=True, **static):
    """(tile function, sizes) of a kernel for arrays."""
    b = kernel.build({n: ts.Tensor(a).type for n, a in zip(kernel.declared.specs, arrays, strict=True)}, static, specialize=specialize)
    env = {}
    for p, a in zip(b.params.values(), arrays, strict=True):
        unify(p.type.shape, a.shape, env)
    return b.function, env
