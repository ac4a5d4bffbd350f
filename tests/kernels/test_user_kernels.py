"""Kernels as their users write them, from other languages' habits: each on the interpreter, the CPU and Intel's OpenCL, against numpy."""

# ruff: noqa: F821  (names of sizes in annotations)
import numpy as np
import pytest
from one_source import built
from simt_harness import opencl

import tessera as ts
from tessera import tile
from tessera.ir import interpret_tile

INF = float("inf")
MACHINES = ["interpreter", "cpu",
            pytest.param("intel:0", marks=pytest.mark.skipif(opencl() is None, reason="Intel's OpenCL runtime is not installed"))]


@pytest.fixture(params=MACHINES)
def run(request):
    """``run(kernel, arrays, **static)``: the arrays as the kernel leaves them."""
    def on(kernel, *arrays, **static):
        if request.param == "interpreter":
            fn, sizes = built(kernel, *arrays, **static)
            buffers = [a.copy() for a in arrays]
            interpret_tile.run(fn, buffers, sizes)
            return buffers
        tensors = [ts.tensor(a, device=request.param) for a in arrays]
        kernel(*tensors, **static)
        return [t.numpy() for t in tensors]
    return on


def normal(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def integers(seed, low, high, shape, dtype=np.int32):
    return np.random.default_rng(seed).integers(low, high, shape).astype(dtype)


# -- atomics ---------------------------------------------------------------------------------------------------------------
@ts.kernel
def split_k(A: ts.Tile["M", "K", ts.int8], B: ts.Tile["K", "N", ts.int8], C: ts.Tile["M", "N", ts.int32]):
    for k in tile.range(A.shape[1], step=16):
        for i in tile.range(A.shape[0], step=8, parallel=False):
            for j in tile.range(B.shape[1], step=8, parallel=False):
                part = tile.mma(A[i:i + 8, k:k + 16], B[k:k + 16, j:j + 8])
                tile.atomic_add(C[i:i + 8, j:j + 8], part)


def test_programs_add_their_part_of_a_product_to_a_window(run):
    a, b, c = integers(0, -9, 9, (11, 50), np.int8), integers(1, -9, 9, (50, 13), np.int8), integers(2, -9, 9, (11, 13))
    np.testing.assert_array_equal(run(split_k, a, b, c)[2], c + a.astype(np.int32) @ b.astype(np.int32))


@ts.kernel
def private_histogram(X: ts.Tile["N", ts.int32], Counts: ts.Tile["B", ts.int32], bins: int):
    own = tile.alloc_shared(bins, dtype=ts.int32)
    tile.fill(own, 0)
    for i in tile.range(X.shape[0], step=64):
        tile.atomic_add(own, X[i:i + 64], 1)
    tile.barrier()
    tile.atomic_add(Counts[0:bins], own)


def test_a_histogram_in_shared_memory(run):
    x = integers(0, 0, 20, 300)                              # bins beyond the 16th are skipped
    np.testing.assert_array_equal(run(private_histogram, x, np.zeros(16, np.int32), bins=16)[1], np.bincount(x, minlength=20)[:16])


@ts.kernel
def rows_added(Ids: ts.Tile["T", ts.int32], G: ts.Tile["T", "D", ts.int32], W: ts.Tile["V", "D", ts.int32]):
    for t in tile.range(Ids.shape[0], step=1):
        tile.atomic_add(W[tile.load(Ids[t]), 0:8], G[t, 0:8])


@ts.kernel
def least(X: ts.Tile["N", ts.int32], At: ts.Tile["N", ts.int32], M: ts.Tile["B", ts.int32]):
    tile.atomic_min(M, tile.load(At), tile.load(X))


def test_rows_of_a_table_by_number(run):
    ids, g, want = integers(0, 0, 5, 20), integers(1, -9, 9, (20, 7)), np.zeros((5, 7), np.int32)
    np.add.at(want, ids, g)
    np.testing.assert_array_equal(run(rows_added, ids, g, np.zeros((5, 7), np.int32))[2], want)


def test_lanes_without_data_combine_nothing(run):
    """100 elements in tiles of 64: the lanes beyond hold 0, which is less than all of them."""
    x, at, want = integers(0, 5, 99, 100), integers(1, 0, 4, 100), np.full(4, 1000, np.int32)
    np.minimum.at(want, at, x)
    np.testing.assert_array_equal(run(least, x, at, np.full(4, 1000, np.int32))[2], want)


@ts.kernel
def permuted(X: ts.Tile["N", ts.f32], At: ts.Tile["N", ts.int32], Y: ts.Tile["N", ts.f32]):
    tile.scatter(Y, tile.load(At), tile.load(X))


def test_lanes_without_data_are_not_scattered(run):
    x, at = normal(0, 100), np.random.default_rng(1).permutation(100).astype(np.int32)
    want = np.zeros(100, np.float32)
    want[at] = x
    np.testing.assert_array_equal(run(permuted, x, at, np.zeros(100, np.float32))[2], want)


@ts.kernel
def compact(X: ts.Tile["N", ts.int32], Y: ts.Tile["N", ts.int32], Count: ts.Tile[1, ts.int32]):
    n = 0
    for i in tile.range(X.shape[0], step=64, parallel=False):
        x = tile.load(X[i:i + 64])
        kept = (x > 0).to(ts.int32)
        tile.scatter(Y, tile.where(x > 0, tile.cumsum(kept) - 1 + n, -1), x)
        n = n + tile.sum(kept)
    tile.store(Count[0], n)


def test_the_positive_elements_one_behind_the_other(run):
    x = integers(0, -9, 9, 150)
    _, y, count = run(compact, x, np.zeros(150, np.int32), np.zeros(1, np.int32))
    assert count[0] == (x > 0).sum()
    np.testing.assert_array_equal(y[:count[0]], x[x > 0])


# -- shapes of tiles with ragged edges ---------------------------------------------------------------------------------------
@ts.kernel
def rotary(X: ts.Tile["S", "D", ts.f32], C: ts.Tile["S", "H", ts.f32], S: ts.Tile["S", "H", ts.f32], Y: ts.Tile["S", "D", ts.f32],
           half: int):
    for i in tile.range(X.shape[0], step=8):
        x = tile.reshape(tile.load(X[i:i + 8, 0:2 * half], fill=0), (8, half, 2))     # neighbours are pairs
        a, b, c, s = x[:, :, 0], x[:, :, 1], C[i:i + 8, 0:half], S[i:i + 8, 0:half]
        y = tile.concat([tile.reshape(a * c - b * s, (8, half, 1)), tile.reshape(b * c + a * s, (8, half, 1))], 2)
        tile.store(Y[i:i + 8, 0:2 * half], tile.reshape(y, (8, 2 * half)))


def test_pairs_of_a_row_with_a_ragged_edge(run):
    x, t = normal(0, 21, 24), normal(1, 21, 12)
    z = (x[:, ::2] + 1j * x[:, 1::2]) * np.exp(1j * t.astype(np.float64))
    want = np.stack([z.real, z.imag], -1).reshape(x.shape)
    np.testing.assert_allclose(run(rotary, x, np.cos(t), np.sin(t), np.zeros_like(x), half=16)[3], want, atol=1e-6)


@ts.kernel
def int4_product(A: ts.Tile["M", "K", ts.f32], Q: ts.Tile["L", "N", ts.uint8], S: ts.Tile["N", ts.f32], C: ts.Tile["M", "N", ts.f32]):
    def signed(x):
        return tile.reshape(x.to(ts.int32) - 8, (8, 1, 16))

    for i in tile.range(A.shape[0], step=8):
        for j in tile.range(Q.shape[1], step=16):
            acc = tile.zeros((8, 16), ts.f32)
            for k in tile.range(Q.shape[0], step=8):
                q = tile.load(Q[k:k + 8, j:j + 16])
                w = tile.reshape(tile.concat([signed(q & 15), signed(q >> 4)], 1), (16, 16))     # the edge follows: 2 rows for each of q's
                acc = tile.mma(tile.load(A, (i, 2 * k), shape=(8, 16)), w.to(ts.f32), acc)
            tile.store(C[i:i + 8, j:j + 16], acc * S[j:j + 16])


def test_weights_of_four_bits(run):
    a, w, s = normal(0, 11, 36), integers(1, -8, 8, (36, 21)), np.abs(normal(2, 21))
    u = (w + 8).astype(np.uint8)
    got = run(int4_product, a, (u[::2] | u[1::2] << 4).astype(np.uint8), s, np.zeros((11, 21), np.float32))[3]
    np.testing.assert_allclose(got, (a.astype(np.float64) @ w) * s, rtol=1e-4, atol=1e-4)


@ts.kernel
def bitonic(X: ts.Tile["N", ts.f32], Y: ts.Tile["N", ts.f32], n: int):
    x = tile.load(X, (0,), shape=(n,), fill=INF)
    at = tile.arange(n)
    k = 2
    while k <= n:
        j = k // 2
        while j > 0:
            pairs = tile.reshape(x, (n // (2 * j), 2, j))
            other = tile.reshape(tile.concat([pairs[:, 1:2, :], pairs[:, 0:1, :]], 1), (n,))
            x = tile.where(((at & k) == 0) == ((at & j) == 0), tile.minimum(x, other), tile.maximum(x, other))
            j //= 2
        k *= 2
    tile.store(Y[0:n], x)


def test_a_sorting_network_by_hand(run):
    x = normal(0, 13)
    np.testing.assert_array_equal(run(bitonic, x, np.zeros(13, np.float32), n=16)[1], np.sort(x))


@ts.kernel
def overlaps(B: ts.Tile["N", 4, ts.f32], Iou: ts.Tile["N", "N", ts.f32]):
    area = lambda z: (z[:, 2:3] - z[:, 0:1]) * (z[:, 3:4] - z[:, 1:2])
    for i in tile.range(B.shape[0], step=8):
        for j in tile.range(0, B.shape[0], step=8):
            a, b = tile.load(B[i:i + 8]), tile.load(B[j:j + 8])
            low = [tile.maximum(a[:, k:k + 1], b[:, k:k + 1].T) for k in (0, 1)]
            high = [tile.minimum(a[:, k:k + 1], b[:, k:k + 1].T) for k in (2, 3)]
            inter = tile.maximum(high[0] - low[0], 0.0) * tile.maximum(high[1] - low[1], 0.0)
            tile.store(Iou[i:i + 8, j:j + 8], inter / (area(a) + area(b).T - inter))


def test_lambdas_are_helpers_too(run):
    low = np.random.default_rng(0).random((11, 2))
    b = np.concatenate([low, low + 0.1 + np.random.default_rng(1).random((11, 2))], 1).astype(np.float32)
    inter = np.clip(np.minimum(b[:, None, 2:], b[None, :, 2:]) - np.maximum(b[:, None, :2], b[None, :, :2]), 0, None).prod(-1)
    area = (b[:, 2:] - b[:, :2]).prod(1)
    got = run(overlaps, b, np.zeros((11, 11), np.float32))[1]
    np.testing.assert_allclose(got, inter / (area[:, None] + area - inter), atol=1e-5)


# -- what is carried from tile to tile ---------------------------------------------------------------------------------------
@ts.kernel
def paged_attention(Q: ts.Tile["R", "D", ts.f32], K: ts.Tile["P", "D", ts.f32], V: ts.Tile["P", "D", ts.f32],
                    Pages: ts.Tile["R", "L", ts.int32], Length: ts.Tile["R", ts.int32], O: ts.Tile["R", "D", ts.f32], page: int):
    for r in tile.range(Q.shape[0], step=1):
        m, l = tile.alloc_register(1, dtype=ts.f32), tile.alloc_register(1, dtype=ts.f32)
        acc = tile.alloc_register(1, Q.shape[1], dtype=ts.f32)
        tile.fill(m, -INF)
        tile.fill(l, 0.0)
        tile.fill(acc, 0.0)
        n = tile.load(Length[r])
        for j in tile.range(0, n, step=page):
            at = tile.load(Pages[r, j // page]) * page
            k, v = (tile.load(x, (at, 0), shape=(page, Q.shape[1])) for x in (K, V))
            scores = tile.where(tile.iota((1, page), 1) + j < n, tile.matmul(Q[r:r + 1], k.T), -INF)
            m_new, l_new, p = tile.online_softmax(scores, m, l)
            tile.update_accumulator(acc, tile.matmul(p, v), m, m_new)
            m = m_new
            l = l_new
        tile.store(O[r:r + 1], acc / tile.reshape(l, (1, 1)))


def test_attention_over_pages(run):
    q, k, v = normal(0, 2, 8), normal(1, 24, 8), normal(2, 24, 8)
    pages, length = np.array([[3, 1, 0], [2, 5, 4]], np.int32), np.array([9, 5], np.int32)
    want = []
    for row, at, n in zip(q, pages, length):
        rows = (at[:, None] * 4 + np.arange(4)).ravel()[:n]
        p = np.exp(k[rows] @ row)
        want.append(p / p.sum() @ v[rows])
    np.testing.assert_allclose(run(paged_attention, q, k, v, pages, length, np.zeros_like(q), page=4)[5], want, rtol=1e-5, atol=1e-5)


@ts.kernel
def welford(X: ts.Tile["M", "N", ts.f32], Mean: ts.Tile["M", ts.f32], Var: ts.Tile["M", ts.f32]):
    for i in tile.range(X.shape[0], step=4):
        count = 0
        mean, m2 = tile.zeros((4, 1), ts.f32), tile.zeros((4, 1), ts.f32)
        for j in tile.range(X.shape[1], step=16):
            n = tile.minimum(X.shape[1] - j, 16)
            x = tile.load(X[i:i + 4, j:j + 16])
            here = tile.sum(x, axis=1, keepdims=True) / n
            d = tile.where(tile.iota((4, 16), 1) < n, x - here, 0.0)
            delta, total = here - mean, count + n
            mean = mean + delta * n / total
            m2 = m2 + tile.sum(d * d, axis=1, keepdims=True) + delta * delta * count * n / total
            count = total
        tile.store(Mean[i:i + 4], tile.reshape(mean, (4,)))
        tile.store(Var[i:i + 4], tile.reshape(m2 / count, (4,)))


def test_mean_and_variance_in_one_pass(run):
    x = normal(0, 6, 70) * 3 + 100
    _, mean, var = run(welford, x, np.zeros(6, np.float32), np.zeros(6, np.float32))
    np.testing.assert_allclose(mean, x.astype(np.float64).mean(1), rtol=1e-6)
    np.testing.assert_allclose(var, x.astype(np.float64).var(1), rtol=1e-5)


@ts.kernel
def recurrent(X: ts.Tile["T", "D", ts.f32], W: ts.Tile["D", "D", ts.f32], H: ts.Tile["T", "D", ts.f32], width: int):
    h, w = tile.zeros((1, width), ts.f32), tile.load(W, (0, 0), shape=(width, width))
    for t in tile.range(X.shape[0], step=1, parallel=False):
        h = tile.tanh(tile.load(X, (t, 0), shape=(1, width)) + tile.matmul(h, w))
        tile.store(H[t:t + 1, 0:width], h)


def test_a_recurrent_cell(run):
    x, w = normal(0, 9, 12), normal(1, 12, 12) * 0.3
    want, h = [], np.zeros(12)
    for row in x.astype(np.float64):
        h = np.tanh(row + h @ w)
        want.append(h)
    np.testing.assert_allclose(run(recurrent, x, w, np.zeros_like(x), width=16)[2], want, atol=1e-5)


@ts.kernel
def transposed(X: ts.Tile["M", "N", ts.f32], Y: ts.Tile["N", "M", ts.f32]):
    held = tile.alloc_shared(16, 16, dtype=ts.f32, swizzle="xor")
    for i in tile.range(X.shape[0], step=16):
        for j in tile.range(X.shape[1], step=16):
            tile.load_async(held, X[i:i + 16, j:j + 16])
            tile.barrier()
            tile.store(Y[j:j + 16, i:i + 16], held.T)


def test_a_transpose_through_shared_memory(run):
    x = normal(0, 21, 37)
    np.testing.assert_array_equal(run(transposed, x, np.zeros((37, 21), np.float32))[1], x.T)


@ts.kernel
def cross_entropy(L: ts.Tile["M", "N", ts.f32], Y: ts.Tile["M", ts.int32], Loss: ts.Tile["M", ts.f32], D: ts.Tile["M", "N", ts.f32]):
    for i in tile.range(L.shape[0], step=4):
        m, s = tile.full((4, 1), -INF, ts.f32), tile.zeros((4, 1), ts.f32)
        for j in tile.range(L.shape[1], step=32):
            x = tile.load(L[i:i + 4, j:j + 32], fill=-INF)
            new = tile.maximum(m, tile.max(x, axis=1, keepdims=True))
            s = s * tile.exp(m - new) + tile.sum(tile.exp(x - new), axis=1, keepdims=True)
            m = new
        lse, y = m + tile.log(s), tile.reshape(tile.load(Y[i:i + 4]), (4, 1))
        picked = tile.zeros((4, 1), ts.f32)
        for j in tile.range(L.shape[1], step=32):
            x = tile.load(L[i:i + 4, j:j + 32])
            hit = tile.iota((4, 32), 1) + j == y
            picked = picked + tile.sum(tile.where(hit, x, 0.0), axis=1, keepdims=True)
            tile.store(D[i:i + 4, j:j + 32], tile.exp(x - lse) - hit.to(ts.f32))
        tile.store(Loss[i:i + 4], tile.reshape(lse - picked, (4,)))


def test_cross_entropy_and_its_gradient(run):
    x, y = normal(0, 7, 70), integers(1, 0, 70, 7)
    p = np.exp(x.astype(np.float64))
    p /= p.sum(1, keepdims=True)
    _, _, loss, d = run(cross_entropy, x, y, np.zeros(7, np.float32), np.zeros_like(x))
    np.testing.assert_allclose(loss, -np.log(p[np.arange(7), y]), rtol=1e-5)
    p[np.arange(7), y] -= 1
    np.testing.assert_allclose(d, p, atol=1e-6)


# -- places that may lie outside ----------------------------------------------------------------------------------------------
@ts.kernel
def row_by_row(X: ts.Tile["M", "N", ts.f32], Y: ts.Tile["M", "N", ts.f32], S: ts.Tile["M", ts.f32]):
    for i in tile.range(X.shape[0], step=4):
        for k in tile.static_range(4):
            tile.store(Y[i + k, 0:8], X[i + k, 0:8] * 2.0)
            tile.store(S[i + k], tile.sum(X[i + k, 0:8]) + tile.load(X[i + k, 0]))


@ts.kernel
def looked_up(Ids: ts.Tile["T", ts.int32], W: ts.Tile["V", "D", ts.f32], Y: ts.Tile["T", "D", ts.f32]):
    for t in tile.range(Ids.shape[0], step=1):
        tile.store(Y[t, 0:8], W[tile.load(Ids[t]), 0:8] + W[-1, 0:8])


def test_single_positions_are_masked_like_windows(run):
    """Two of the second program's four rows do not exist."""
    x = normal(0, 6, 7)
    _, y, s = run(row_by_row, x, np.zeros_like(x), np.zeros(6, np.float32))
    np.testing.assert_array_equal(y, 2 * x)
    np.testing.assert_allclose(s, x.sum(1) + x[:, 0], rtol=1e-5)


def test_rows_that_data_name_and_the_last_row(run):
    w = normal(0, 6, 7)
    got = run(looked_up, np.array([1, -3, 100, 2], np.int32), w, np.ones((4, 7), np.float32))[2]
    np.testing.assert_array_equal(got, np.stack([w[1], 0 * w[0], 0 * w[0], w[2]]) + w[-1])


# -- in programs ----------------------------------------------------------------------------------------------------------------
@ts.kernel
def scaled(X: ts.Tile["M", "N", ts.f32], W: ts.Tile["N", ts.f32], Y: ts.Tile["M", "N", ts.f32]):
    for i in tile.range(X.shape[0], step=8):
        for j in tile.range(X.shape[1], step=32):
            tile.store(Y[i:i + 8, j:j + 32], X[i:i + 8, j:j + 32] * W[j:j + 32])


@pytest.mark.parametrize("device", MACHINES[1:])
def test_kernels_in_functions_of_a_device(device):
    """Symbolic and empty sizes, derivatives, batches, schedules and the tuner: where the tensors live."""
    x, w = (ts.tensor(normal(k, *s), device=device) for k, s in enumerate([(21, 50), (50,)]))
    xn, wn = x.numpy(), w.numpy()

    @ts.custom_vjp
    def product(x, w):
        return scaled(x, w, ts.zeros_like(x))

    product.defvjp(lambda x, w: (product(x, w), (x, w)), lambda kept, g: (g * kept[1], ts.sum(g * kept[0], 0)))
    dx, dw = ts.grad(lambda x, w: ts.sum(ts.sin(product(x, w))), argnums=(0, 1))(x, w)
    np.testing.assert_allclose(dx.numpy(), np.cos(xn * wn) * wn, atol=1e-6)
    np.testing.assert_allclose(dw.numpy(), (np.cos(xn * wn) * xn).sum(0), rtol=1e-5, atol=1e-5)

    @ts.function
    def twice(x: ts.Tensor["M", "N"], w: ts.Tensor["N"]) -> ts.Tensor["M", "N"]:
        return scaled(scaled(x, w, ts.zeros_like(x)), w, ts.zeros_like(x))

    for m, n in ((21, 50), (8, 7), (0, 5), (5, 0)):
        got = twice(x[:m, :n], w[:n])
        assert got.device == device
        np.testing.assert_array_equal(got.numpy(), xn[:m, :n] * wn[:n] * wn[:n])
    both = ts.vmap(lambda x, w: scaled(x, w, ts.zeros_like(x)))(ts.stack([x, x + 1]), ts.stack([w, -w]))
    np.testing.assert_array_equal(both.numpy(), np.stack([xn * wn, (xn + 1) * -wn]))
    assert {dx.device, dw.device, both.device} == {device}
