"""Every function of the op namespace, eagerly, on tensors of a device: what it makes for itself goes where its operands live.

A simulated device computes with the CPU's bits, so results are equal to the CPU's; OpenCL's are near (a few in the fast suite).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from types import CodeType
from typing import Any

import numpy as np
import optree
import pytest
import test_functions

import tessera as ts
import tessera.ops as o

RNG = np.random.default_rng(11)
A = (RNG.uniform(0.1, 0.9, (4, 4)) + 2 * np.eye(4)).astype(np.float32)
P = RNG.uniform(0.1, 0.9, (4, 6)).astype(np.float32)
S = (A @ A.T).astype(np.float32)
K = RNG.integers(0, 4, (4, 6))
IMAGE = RNG.standard_normal((1, 2, 6, 6)).astype(np.float32)
WEIGHT = RNG.standard_normal((2, 2, 3, 3)).astype(np.float32)
HEADS = RNG.standard_normal((1, 5, 2, 8)).astype(np.float32)

def _listed(names: str) -> list[str]:
    return names.split()


OF_ONE = _listed(  # functions of one tensor, of numbers that all of them take
    "acos amax amin angle argwhere asin asinh atan atanh cbrt ceil compensated_sum cos cosh cummin cumprod digamma elu erf erfc erfinv "
    "exp2 expm1 fake_quantize flush_subnormals gelu hardtanh isfinite isinf isnan layer_norm layernorm leaky_relu lgamma log log10 log1p "
    "log2 log_sigmoid log_softmax neg nonzero pairwise_sum ravel reciprocal relu relu6 rms_norm rmsnorm round rsqrt sign silu sin sinh "
    "softmax softplus softsign sqrt square swish tan tanh trunc unique welford matrix_transpose stop_gradient checkpoint_here")
OF_TWO = _listed("allclose atan2 copysign eq ge gt hypot l1_loss le logaddexp logical_and logical_or logical_xor lt minimum mse_loss ne "
                 "nextafter floor_div broadcast_arrays")
OF_INTEGERS = _listed("bitwise_and bitwise_or bitwise_xor shift_left shift_right")

Call = tuple[Callable[..., Any], tuple[np.ndarray, ...]]
CALLS: dict[str, Call] = {
    **{n: (getattr(o, n), (P,)) for n in OF_ONE}, **{n: (getattr(o, n), (P, P[::-1].copy())) for n in OF_TWO},
    **{n: (getattr(o, n), (K, K)) for n in OF_INTEGERS}, "acosh": (lambda x: o.acosh(o.add(x, 1)), (P,)),
    "views": (lambda x: (o.swapaxes(x, 0, 1), o.expand_dims(x, 0), o.broadcast_to(x, (2, 4, 6)), o.view_as_complex(o.reshape(x, 4, 3, 2)),
                         o.view_as_real(o.complex_(x, x)), o.bitcast(x, ts.int32), o.cast(x, ts.bf16)), (P,)),
    "joins": (lambda x: (o.cat([x, x]), o.concatenate([x, x], 1), o.full((2,), o.sum(x))), (P,)),
    "list": (lambda x: (o.add(x, [1.0] * 6), o.where(o.gt(x, 0.5), [[1.0]] * 4, x), o.take(x, [1, 0])), (P,)),
    "array": (lambda x: (o.add(x, P[0]), o.matmul(x, P.T)), (P,)),
    "rounding": (lambda x: (o.reduce_precision(x, 5, 10), o.fma(x, x, x), o.cast(x, ts.int8, True)), (P,)),
    "attention": (lambda q: (o.attention(q, q, q, causal=True), o.scaled_dot_product_attention(q, q, q)), (HEADS,)),
    "pools": (lambda x: (o.avg_pool(x, 2), o.avg_pool2d(x, 2), o.max_pool(x, 2), o.max_pool2d(x, 2)), (IMAGE,)),
    "convs": (lambda x, w: (o.conv(x, w), o.conv2d(x, w, padding=1), o.conv1d(x[:, :, 0], w[:, :, 0]), o.conv_transpose(x, w, stride=2),
                            o.conv3d(x[:, :, None], w[:, :, None])), (IMAGE, WEIGHT)),
    "cross_entropy": (lambda x, k: (o.cross_entropy(x, k[:, 0]), o.cross_entropy(x, k[:, 0], label_smoothing=0.1)), (P, K)),
    "writes": (lambda x, k: (o.scatter(x, k[0], 2.0), o.index_put(x, (k[0], k[1]), 7.0), o.put_along_axis(x, k, x, 0),
                             o.dynamic_update_slice(x, x[:2, :2], (1, k[0, 0])), o.embedding(x, k)), (P, K)),
    "products": (lambda x: (o.dot_general(x, x, ((1,), (1,))), o.einsum("ij,kj->ik", x, x), o.einsum("ij->j", x)), (P,)),
    "random_bits": (lambda k: o.random_bits(k, 0, (5,)), (np.array([3, 4], np.uint64),)),
    "fft": (lambda x: o.fft(x), (P,)),
    "transforms": (lambda x: (o.fft.fft2(x), o.fft.fftn(x), o.fft.ifft(o.fft(x)), o.fft.ifft2(x), o.fft.ifftn(x), o.rfft(x), o.irfft(x),
                       o.fft.fft(x, 7), o.fft.fftshift(x), o.fft.ifftshift(x), o.ifft(x)), (P,)),
    "linalg": (lambda a, s, b: (o.linalg.inv(a), o.linalg.det(a), o.linalg.lu(a), o.linalg.lu_factor(a), o.linalg.slogdet(a),
                                o.linalg.solve(a, b), o.linalg.cholesky(s), o.linalg.qr(a), o.linalg.solve_triangular(a, b),
                                o.linalg.matrix_power(a, 3), o.linalg.matrix_power(a, 0), o.linalg.matrix_norm(a), o.linalg.adjoint(a),
                                o.linalg.triangular_solve(a, b, lower=False)), (A, S, P)),
    "decompositions": (lambda a, s, b: (o.abs(o.linalg.eigvalsh(s)), o.linalg.svdvals(a), o.linalg.pinv(a), o.linalg.lstsq(a, b),
                                        o.linalg.matrix_rank(a), o.abs(o.linalg.eigh(s)[1]), o.abs(o.linalg.eig(s)[1]),
                                        o.abs(o.linalg.svd(a)[0])), (A, S, P)),
    "indexing": (lambda x, k: (x[::2], x[::-1, 1:5:2], x[k[0], k[1]], x[[0, 2]], x[x > 0.5], x[..., None], x[np.array([1])]), (P, K)),
    "assignment": (lambda x, k: [_written(x, i, v) for i, v in (
        (slice(None, None, 2), 3.0), ((1, slice(None, None, -1)), x[0]), (k[0], 2.0), ([0, 2], x[:2]), (x > 0.5, 0.0),
        ((..., 1), [1.0, 2.0, 3.0, 4.0]))], (P, K)),
    "random": (lambda x: [(ts.manual_seed(3), f())[1] for f in (
        lambda: ts.random.permutation(x), lambda: ts.dropout(x, 0.3), lambda: ts.bernoulli(x), lambda: ts.random.categorical(x),
        lambda: ts.random.permutation(x, key=ts.random.key(1)), lambda: ts.random.normal(4, 6, mean=x),
        lambda: ts.random.shuffle(x))], (P,)),
}
NAMED = {  # functions that the calls above or those of test_functions make under another name, or that take no tensor
    "iota", "positions", "order", "all_gather", "all_reduce", "axis_index", "axis_size", "pmax", "pmean", "pmin", "psum"}


def _written(x: Any, index: Any, value: Any) -> Any:
    y = x.clone()
    y[index] = value
    return y


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_SIM_DEVICES", "2")


def _all() -> Iterator[tuple[str, Callable[..., Any], tuple[np.ndarray, ...]]]:
    yield from ((n, f, arrays) for n, (f, arrays) in CALLS.items())
    yield from ((n, f, arrays) for n, (f, _, arrays) in test_functions.CASES.items() if n != "eye")  # it makes a CPU tensor itself


def _differences(device: str, calls: Any, near: float = 0.0) -> list[str]:
    out = []
    for name, f, arrays in calls:
        xs = [ts.tensor(a) for a in arrays]
        want, got = (optree.tree_leaves(f(*[x.to(d) for x in xs])) for d in ("cpu", device))
        for g, w in zip(got, want, strict=True):
            if not isinstance(g, ts.Tensor):
                continue
            a, b = g.numpy(), w.numpy()
            if g.device != device:
                out.append(f"{name}: a result on {g.device}")
            if a.dtype != b.dtype or a.shape != b.shape or not (a.tobytes() == b.tobytes() or (near and np.allclose(
                    a.astype(complex), b.astype(complex), rtol=near, atol=near, equal_nan=True))):
                out.append(f"{name}: {a!r} instead of {b!r}")
    return out


def test_every_function_is_called() -> None:
    def names(code: CodeType) -> set[str]:
        return set(code.co_names).union(*(names(c) for c in code.co_consts if isinstance(c, CodeType)))

    called = set(NAMED)
    for n, f, _ in _all():
        called |= {n, f.__name__} | (names(f.__code__) if f.__name__ == "<lambda>" else set())
    missing = set(o.__all__) - called
    for module in (o.fft, o.linalg):
        missing |= {n for n, f in vars(module).items() if n[0] != "_" and getattr(f, "__module__", "") == module.__name__} - called
    assert missing <= {"fftfreq", "eye"}


def test_functions_compute_where_their_operands_live() -> None:
    assert not _differences("gpu:1", _all())


FEW = ("triangles", "one_hot", "fft", "assignment")


@pytest.mark.parametrize("every", [False, pytest.param(True, marks=[pytest.mark.slow, pytest.mark.timeout(900)])])
def test_functions_on_opencl(every: bool) -> None:
    pytest.importorskip("pyopencl")
    assert not _differences("intel:0", [c for c in _all() if every or c[0] in FEW], near=1e-4)


def test_tensors_of_two_devices_are_still_refused() -> None:
    x, y = ts.ones(4, 4).to("gpu:0"), ts.ones(4, 4)
    attempts: list[Callable[[], Any]] = [
        lambda: ts.concat([x, y]), lambda: ts.where(x > 0, x, y), lambda: ts.linalg.solve(x, y), lambda: ts.take(x, ts.tensor([0, 1])),
        lambda: ts.clip(x, y, 2.0), lambda: ts.einsum("ij,jk->ik", x, y.to("gpu:1")), lambda: ts.random.normal(4, 4, mean=x, std=y),
        lambda: x.__setitem__(slice(0, 4, 2), y[:2])]
    for attempt in attempts:
        with pytest.raises(ts.DeviceError, match="operands live on different devices: "):
            attempt()
    assert ts.tril(y).device == "cpu" and ts.tril(x).device == "gpu:0"  # nothing of the calls above is left
