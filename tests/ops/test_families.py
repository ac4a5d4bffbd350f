"""Convolution, Fourier transforms, linear algebra and random numbers, interpreted and compiled."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from ways import WAYS, Way

import tessera as ts
import tessera.ops as o
from tessera.ops import convolution_rules, fft, linalg, random
from tessera.tracing.recorder import bind
from tessera.types import dtypes as dt

RNG = np.random.default_rng(5)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture(params=sorted(WAYS))
def way(request: pytest.FixtureRequest) -> Way:
    return WAYS[request.param]


def close(got: Any, want: Any, tol: float = 1e-4) -> None:
    want = np.asarray(want)
    assert got.shape == want.shape and got.dtype.kind == want.dtype.kind
    np.testing.assert_allclose(got, want, rtol=tol, atol=tol)


# -- convolution -------------------------------------------------------------------------------------------------------------
def _conv(x: np.ndarray, w: np.ndarray, stride: tuple[int, ...], pads: tuple[tuple[int, int], ...], dilation: tuple[int, ...],
          groups: int = 1) -> np.ndarray:
    """The definition: one sum an output."""
    x = np.pad(x.astype(np.float64), [(0, 0), (0, 0), *pads])
    n, o_, per = x.shape[0], w.shape[0], w.shape[1]
    spans = [(k - 1) * d + 1 for k, d in zip(w.shape[2:], dilation, strict=True)]
    out = np.zeros((n, o_, *[(s - span) // t + 1 for s, span, t in zip(x.shape[2:], spans, stride, strict=True)]))
    for at in np.ndindex(out.shape):
        g = at[1] // (o_ // groups)
        window = tuple(slice(i * t, i * t + span, d) for i, t, span, d in zip(at[2:], stride, spans, dilation, strict=True))
        out[at] = (x[(at[0], slice(g * per, (g + 1) * per), *window)] * w[at[1]]).sum()
    return out


def test_convolution(way: Way) -> None:
    x, w, b = f32(2, 4, 7, 6), f32(6, 2, 3, 2), f32(6)
    want = _conv(x, w, (2, 1), ((1, 1), (0, 0)), (1, 2), 2)
    close(way(lambda x, w: o.conv(x, w, None, (2, 1), (1, 0), (1, 2), 2), x, w), want)
    close(way(lambda x, w, b: o.conv(x, w, b, (2, 1), (1, 0), (1, 2), 2), x, w, b), want + b[:, None, None])
    last = way(lambda x, w: o.conv(x, w, None, (2, 1), (1, 0), (1, 2), 2, layout="NHWC"), np.moveaxis(x, 1, -1), w)
    close(last, np.moveaxis(want, 1, -1))
    line = f32(3, 2, 9), f32(4, 2, 3)
    close(way(lambda x, w: o.conv(x, w, padding="same"), *line), _conv(*line, (1,), ((1, 1),), (1,)))


def test_transposed_convolution(way: Way) -> None:
    """It is the transpose of the linear map: <conv(x), y> == <x, conv_transpose(y)>."""
    x, w = f32(1, 4, 7), f32(6, 4, 3)
    y = f32(1, 6, 4)
    forward = way(lambda x, w: o.conv(x, w, stride=2, padding=1), x, w)
    back = way(lambda y, w: o.conv_transpose(y, w, stride=2, padding=1), y, w)
    assert forward.shape == y.shape and back.shape == x.shape
    np.testing.assert_allclose((forward * y).sum(), (x * back).sum(), rtol=1e-4)


def test_pooling(way: Way) -> None:
    x = f32(2, 3, 6, 8)
    blocks = x.reshape(2, 3, 3, 2, 4, 2)
    close(way(lambda x: o.max_pool(x, 2), x), blocks.max((3, 5)))
    close(way(lambda x: o.avg_pool(x, 2), x), blocks.mean((3, 5)))
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)], constant_values=-np.inf)
    view = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3)).max((-1, -2))
    close(way(lambda x: o.max_pool(x, 3, 1, 1), x), view)


# -- Fourier transforms --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("n", [None, 7, 16])
@pytest.mark.parametrize("norm", [None, "ortho", "forward"])
def test_fourier(n: int | None, norm: str | None, way: Way) -> None:
    x = f32(3, 10)
    z = (x + 1j * f32(3, 10)).astype(np.complex64)
    close(way(lambda x: fft.fft(x, n, norm=norm), x), np.fft.fft(x, n, norm=norm))
    close(way(lambda z: fft.ifft(z, n, 0, norm), z), np.fft.ifft(z, n, 0, norm))
    close(way(lambda x: fft.rfft(x, n, norm=norm), x), np.fft.rfft(x, n, norm=norm))
    close(way(lambda z: fft.irfft(z, n, norm=norm), z), np.fft.irfft(z, n, norm=norm))


@pytest.mark.parametrize("n", [4099, 32770, 65537, 19 * 13 ** 3, 1 << 19])
def test_fourier_of_long_rows(n: int) -> None:
    """Lengths that are cut up: as a matrix, by a chirp, real ones of even and odd length."""
    x = np.random.default_rng(n).normal(size=n)
    z = x + 1j * np.random.default_rng(n + 1).normal(size=n)
    half = np.fft.rfft(x)
    for got, want in ((fft.fft(ts.tensor(z)), np.fft.fft(z)), (fft.ifft(ts.tensor(z)), np.fft.ifft(z)), (fft.rfft(ts.tensor(x)), half),
                      (fft.irfft(ts.tensor(half + 1j * (np.arange(half.size) == 0)), n), x)):
        assert np.abs(got.numpy() - want).max() <= 1e-14 * np.abs(want).max() * np.log2(n)
    narrow = fft.rfft(ts.tensor(x.astype(np.float32))).numpy()
    assert narrow.dtype == np.complex64 and np.abs(narrow - half).max() <= 1e-6 * np.abs(half).max()


def test_a_long_transform_is_the_same_on_any_number_of_threads_and_has_a_derivative() -> None:
    x = ts.tensor(f32(40000))
    bits = set()
    for threads in (1, 2, 3):
        ts.runtime.set_num_threads(threads)
        bits.add(fft.rfft(x).numpy().tobytes())
    ts.runtime.set_num_threads(2)
    assert len(bits) == 1
    got = ts.grad(lambda v: (ts.abs(fft.rfft(v)) ** 2).sum())(x)  # Parseval, with weights 1 at the ends and 1/2 between
    spectrum = np.fft.rfft(x.numpy().astype(np.float64))
    want = 2 * 40000 * np.fft.irfft(spectrum * np.where(np.isin(np.arange(20001), (0, 20000)), 1, 0.5), 40000)
    assert np.abs(got.numpy() - want).max() <= 1e-5 * np.abs(want).max()


def test_fourier_of_an_open_length_has_a_program_a_length() -> None:
    @ts.function
    def smooth(x: ts.Tensor[B, N]) -> ts.Tensor[B, N]:  # noqa: F821
        return fft.irfft(fft.rfft(x) * 2, x.shape[-1])

    for shape in ((2, 64), (5, 64), (3, 17)):
        x = f32(*shape)
        close(smooth(ts.tensor(x)).numpy(), 2 * x)
    assert [str(p.graph.args[0].type) for p in smooth.programs] == ["f32[B, 64]", "f32[B, 17]"]


def test_fourier_in_several_axes(way: Way) -> None:
    x = f32(4, 5, 6)
    close(way(lambda x: fft.fftn(x), x), np.fft.fftn(x))
    close(way(lambda x: fft.ifft2(fft.fft2(x)), x), x.astype(np.complex64))
    close(way(lambda x: fft.fftshift(x), x), np.fft.fftshift(x))
    close(way(lambda x: fft.ifftshift(fft.fftshift(x, 1), 1), x), x)
    close(way(lambda x: o.add(fft.fftfreq(6, 0.5), o.mul(x, 0)), x)[0, 0], np.fft.fftfreq(6, 0.5))


# -- linear algebra ------------------------------------------------------------------------------------------------------------
A, RHS, TALL = f32(2, 5, 5), f32(2, 5, 3), f32(2, 6, 4)
SPD = A @ A.swapaxes(-1, -2) + 5 * np.eye(5, dtype=np.float32)


def test_factorisations(way: Way) -> None:
    low = way(linalg.cholesky, SPD)
    close(low @ low.swapaxes(-1, -2), SPD)
    assert not np.triu(low, 1).any()
    assert np.isnan(way(lambda x: bind("cholesky", x, checked=False), -SPD)).all()
    p, lower, upper = way(linalg.lu, A)
    close(p @ lower @ upper, A)
    assert (np.abs(lower) <= 1 + 1e-6).all() and not np.tril(upper, -1).any()


@pytest.mark.parametrize("lower", [True, False])
@pytest.mark.parametrize("transpose", [True, False])
def test_triangular_solve(lower: bool, transpose: bool, way: Way) -> None:
    t = np.tril(SPD) if lower else np.triu(SPD)
    want = np.linalg.solve(t.swapaxes(-1, -2) if transpose else t, RHS)
    close(way(lambda a, b: linalg.solve_triangular(a, b, lower, transpose), SPD, RHS), want)


def test_systems(way: Way) -> None:
    close(way(linalg.solve, SPD, RHS), np.linalg.solve(SPD, RHS))
    close(way(linalg.solve, SPD, RHS[0, :, 0].copy()), np.linalg.solve(SPD, RHS[0, :, :1])[..., 0])
    close(way(linalg.inv, SPD), np.linalg.inv(SPD))
    close(way(linalg.det, A), np.linalg.det(A), 1e-3)
    for got, want in zip(way(linalg.slogdet, A), np.linalg.slogdet(A), strict=True):
        close(got, want, 1e-3)
    close(way(lambda a: linalg.matrix_power(a, 3), A), np.linalg.matrix_power(A, 3), 1e-3)
    close(way(lambda a: linalg.matrix_power(a, 0), A), np.linalg.matrix_power(A, 0))


def test_decompositions(way: Way) -> None:
    q, r = way(linalg.qr, TALL)
    close(q @ r, TALL)
    close(q.swapaxes(-1, -2) @ q, np.broadcast_to(np.eye(4, dtype=np.float32), (2, 4, 4)))
    u, s, vt = way(linalg.svd, TALL)
    assert u.shape == (2, 6, 6)
    close(u[..., :4] * s[:, None] @ vt, TALL)
    close(s, np.linalg.svd(TALL)[1])
    w, v = way(linalg.eigh, SPD)
    close(SPD @ v, v * w[:, None], 1e-3)
    close(w, np.linalg.eigvalsh(SPD), 1e-3)
    values, vectors = way(linalg.eig, A)
    close(A.astype(np.complex64) @ vectors, vectors * values[:, None], 1e-3)


def test_built_on_decompositions(way: Way) -> None:
    close(way(linalg.pinv, TALL), np.linalg.pinv(TALL))
    assert way(linalg.matrix_rank, np.stack([np.eye(4, dtype=np.float32), np.diag([1, 1, 0, 0]).astype(np.float32)])).tolist() == [4, 2]
    b = f32(6, 2)
    close(way(linalg.lstsq, TALL, b), np.stack([np.linalg.lstsq(t, b, rcond=None)[0] for t in TALL]), 1e-3)
    for kind in ("fro", "nuc", 1, -1, 2, -2, np.inf, -np.inf):
        close(way(lambda m, kind=kind: linalg.matrix_norm(m, kind), TALL), np.stack([np.linalg.norm(t, kind) for t in TALL]), 1e-3)


# -- random numbers ------------------------------------------------------------------------------------------------------------
KEY = np.array([42, 7], np.uint64)


@pytest.mark.parametrize(("counter", "key", "words"), [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    ((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0), (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1)),
])
def test_philox_known_answers(counter: tuple[int, ...], key: tuple[int, int], words: tuple[int, ...]) -> None:
    """The generator's published test vectors."""
    assert tuple(int(w[0]) for w in random.philox([np.array([c], np.uint64) for c in counter], key)) == words


@pytest.mark.parametrize("kind", [dt.uint32, dt.uint64])
def test_compiled_bits_are_the_reference(kind: dt.DType) -> None:
    draw = lambda k: random.random_bits(k, 3, (5, 41), kind)
    np.testing.assert_array_equal(WAYS["compiled"](draw, KEY), WAYS["interpreted"](draw, KEY))


def test_bits_depend_on_key_counter_site_and_stream() -> None:
    draw = lambda key, site=0, stream=0: WAYS["interpreted"](lambda k: random.random_bits(k, site, (64,), stream=stream), key)
    first = draw(KEY)
    others = [draw(np.array([43, 7], np.uint64)), draw(np.array([42, 8], np.uint64)), draw(np.array([42, 7 + 2 ** 32], np.uint64)),
              draw(np.array([42 + 2 ** 32, 7], np.uint64)), draw(KEY, 1), draw(KEY, 0, 1)]
    assert all((first != x).mean() > 0.9 for x in others)
    np.testing.assert_array_equal(first[:10], WAYS["interpreted"](lambda k: random.random_bits(k, 0, (10,)), KEY))


def test_distributions(way: Way) -> None:
    n = 40000
    u = way(lambda k: random.uniform(k, 0, (n,)), KEY)
    assert u.min() >= 0 and u.max() < 1 and abs(u.mean() - 0.5) < 0.01 and abs(u.var() - 1 / 12) < 0.003
    z = way(lambda k: random.normal(k, 1, (n,), dt.f32, 2.0, 3.0), KEY)
    assert abs(z.mean() - 2) < 0.06 and abs(z.std() - 3) < 0.05 and abs((((z - 2) / 3) ** 4).mean() - 3) < 0.2
    k = way(lambda k: random.randint(k, 2, (n,), -3, 5), KEY)
    assert k.dtype == np.int32 and set(k.tolist()) == set(range(-3, 5)) and np.bincount(k + 3).min() > n / 8 * 0.9
    b = way(lambda k: random.bernoulli(k, 3, (n,), 0.3), KEY)
    assert b.dtype == bool and abs(b.mean() - 0.3) < 0.01
    order = way(lambda k: random.permutation(k, 4, 100), KEY)
    assert sorted(order.tolist()) == list(range(100)) and (order != np.arange(100)).any()
    c = way(lambda k: random.categorical(k, 5, np.log(np.array([0.1, 0.2, 0.7], np.float32)), (n,)), KEY)
    assert np.abs(np.bincount(c) / n - [0.1, 0.2, 0.7]).max() < 0.01
    t = way(lambda k: random.truncated_normal(k, 6, (n,)), KEY)
    assert np.abs(t).max() <= 2 and abs(t.std() - 0.8796) < 0.01
    e = way(lambda k: random.exponential(k, 7, (n,)), KEY)
    assert e.min() >= 0 and abs(e.mean() - 1) < 0.02
    wide = way(lambda k: random.randint(k, 8, (100,), 0, 2 ** 62, dt.int64), KEY)
    assert wide.min() >= 0 and wide.max() < 2 ** 62 and wide.max() > 2 ** 60
    keys = [way(lambda k, i=i: random.fold_in(k, i), KEY) for i in range(3)]
    assert len({tuple(k.tolist()) for k in keys}) == 3 and all(k[0] == 42 for k in keys)


@pytest.mark.parametrize("kind", [dt.f16, dt.bf16])
def test_small_uniform_numbers_stay_below_one(kind: dt.DType) -> None:
    u = WAYS["interpreted"](lambda k: random.uniform(k, 0, (20000,), kind), KEY).astype(np.float32)
    assert u.max() < 1 and u.min() == 0


# -- derivatives of convolution ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stride, padding, dilation, groups, size, window", [
    (1, 1, 1, 1, (7, 6), (3, 3)), (2, 1, 1, 1, (8, 7), (3, 2)), (2, 3, 1, 1, (11, 11), (7, 7)), (1, 0, 2, 2, (7, 7), (3, 3)),
    (3, 0, 1, 4, (7, 8), (2, 2)), (1, 0, 1, 1, (5, 5), (1, 1)), (2, 0, 1, 1, (9,), (3,)), (1, 1, 1, 1, (3, 4, 5), (2, 3, 2)),
])
def test_the_derivatives_of_a_convolution_are_those_of_its_linear_maps(stride, padding, dilation, groups, size, window):
    """<conv(x, v), g> = <v, kernel's cotangent> and <conv(u, w), g> = <u, data's cotangent>, for any u and v."""
    x, u = ts.randn(3, 4, *size, dtype=ts.f64), ts.randn(3, 4, *size, dtype=ts.f64)
    w, v = ts.randn(8, 4 // groups, *window, dtype=ts.f64), ts.randn(8, 4 // groups, *window, dtype=ts.f64)

    def f(x, w):
        return ts.conv(x, w, stride=stride, padding=padding, dilation=dilation, groups=groups)

    y, back = ts.vjp(f, x, w)
    g = ts.randn(*y.shape, dtype=ts.f64)
    of_x, of_w = back(g)
    assert of_x.shape == x.shape and of_w.shape == w.shape
    np.testing.assert_allclose(float((of_w * v).sum()), float((f(x, v) * g).sum()), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(float((of_x * u).sum()), float((f(u, w) * g).sum()), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("limit", ["_TOGETHER", "_MOST"])
def test_a_kernels_derivative_is_the_same_however_its_window_is_split(limit, monkeypatch):
    """Large windows go row by row, very large ones by a convolution."""
    x, w = ts.randn(2, 3, 8, 7), ts.randn(4, 3, 3, 2)

    def of_w():
        return ts.grad(lambda w: (ts.conv(x, w, stride=2, padding=1) ** 2).sum())(w)

    whole = of_w()
    monkeypatch.setattr(convolution_rules, limit, 1)
    np.testing.assert_allclose(of_w(), whole, rtol=1e-4, atol=1e-4)


def test_a_kernels_derivative_in_16_bits_sums_in_32():
    x, w = ts.ones(64, 1, 8, 8, dtype=ts.bf16), ts.zeros(1, 1, 1, 1, dtype=ts.bf16)
    of_w = ts.grad(lambda w: ts.conv(x, w).sum())(w)
    assert of_w.dtype is ts.bf16 and float(of_w.reshape(())) == 4096


def test_pooling_by_torchs_keyword():
    x = ts.randn(1, 2, 6, 6)
    np.testing.assert_array_equal(ts.max_pool2d(x, kernel_size=3, stride=1), ts.max_pool2d(x, 3, 1))
    np.testing.assert_array_equal(ts.avg_pool2d(x, kernel_size=2), ts.avg_pool2d(x, 2))
    with pytest.raises(ts.errors.ArgumentError, match="max_pool\\(\\) needs a window"):
        ts.max_pool2d(x)


@pytest.mark.parametrize("window, stride, padding, size", [(2, None, 0, (8, 6)), ((2, 3), None, 0, (4, 9)), (2, None, 0, (7, 6)),
                                                           (3, 2, 1, (8, 8)), (1, None, 0, (3, 2))])
def test_the_derivative_of_max_pool_goes_to_the_greatest(window, stride, padding, size):
    torch = pytest.importorskip("torch")
    x = np.random.default_rng(1).permutation(2 * 3 * size[0] * size[1]).reshape(2, 3, *size).astype(np.float32)
    there = torch.tensor(x, requires_grad=True)
    y = torch.nn.functional.max_pool2d(there, window, stride, padding)
    g = np.arange(y.numel(), dtype=np.float32).reshape(y.shape)
    y.backward(torch.tensor(g))
    got = ts.grad(lambda x: (ts.max_pool2d(x, window, stride, padding) * g).sum())(ts.tensor(x))
    np.testing.assert_allclose(got, there.grad.numpy(), rtol=1e-6)


def test_equal_elements_of_a_window_share_its_derivative():
    x = ts.tensor([[[[1.0, 1.0, 2.0, 0.0], [0.0, 1.0, 0.0, 0.0]]]])
    got = ts.grad(lambda x: (ts.max_pool2d(x, 2) * ts.tensor([[[[6.0, 4.0]]]])).sum())(x)
    assert got.tolist() == [[[[2.0, 2.0, 4.0, 0.0], [0.0, 2.0, 0.0, 0.0]]]]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_decompositions_of_stacks(kind: type) -> None:
    """In the operand's own precision, empty stacks and matrices too; one without a decomposition is NaN and leaves the others alone."""
    for shape in ((3, 5, 5), (2, 7, 4), (2, 4, 7), (0, 3, 3), (2, 0, 3), (1, 1), (2, 40, 40)):
        a = RNG.standard_normal(shape).astype(kind)
        few, size = min(shape[-2:]), 64 * max(shape) * np.finfo(kind).eps
        for full in (True, False):
            u, s, v = (t.numpy() for t in ts.linalg.svd(ts.tensor(a), full))
            assert u.dtype == s.dtype == v.dtype == kind
            np.testing.assert_allclose((u[..., :few] * s[..., None, :]) @ v[..., :few, :], a, atol=size)
            np.testing.assert_allclose(s, np.linalg.svd(a.astype(np.float64), full)[1], atol=size)
        if shape[-1] == shape[-2]:
            h = a + np.swapaxes(a, -1, -2)
            w, v = (t.numpy() for t in ts.linalg.eigh(ts.tensor(h)))
            assert w.dtype == v.dtype == kind
            np.testing.assert_allclose(h @ v, v * w[..., None, :], atol=4 * size)
    a = RNG.standard_normal((2, 4, 4)).astype(kind)
    a[1, 0, 0] = np.nan
    for f in (lambda x: ts.linalg.svd(x)[1], lambda x: ts.linalg.eigh(x)[0], lambda x: ts.linalg.qr(x)[1]):
        got = f(ts.tensor(a)).numpy()
        assert np.isfinite(got[0]).all() and np.isnan(got[1]).any()
