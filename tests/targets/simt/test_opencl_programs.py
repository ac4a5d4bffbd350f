"""Whole programs on Intel's OpenCL runtime: control flow, routines of the host, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ways
from simt_harness import opencl

import tessera as ts

pytestmark = pytest.mark.skipif(opencl() is None, reason="Intel's OpenCL runtime is not installed")


def compiler() -> Any:
    from tessera.runtime import opencl as programs
    return programs.compiler("intel:0")


RNG = np.random.default_rng(11)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def check(fn: Any, *arrays: np.ndarray, tolerance: float = 1e-5) -> Any:
    """Run on the device and on the CPU: close to each other, and on the device the same bits twice.  Returns the program."""
    graph, _ = ways.traced(fn, arrays)
    run = compiler().compile(graph)
    first, again = run(list(arrays)), run(list(arrays))
    expected = ways.host_compiler().compile(graph)(list(arrays))
    assert len(first) == len(expected)
    for a, b, e in zip(first, again, expected, strict=True):
        assert a.tobytes() == b.tobytes() and a.dtype == e.dtype and a.shape == e.shape
        if e.dtype.kind in "fc" or (e.dtype.itemsize == 2 and e.dtype.kind == "V"):
            np.testing.assert_allclose(a.astype(np.complex128), e.astype(np.complex128), atol=tolerance * (1 + np.abs(e).max(initial=0)))
        else:
            np.testing.assert_array_equal(a, e)
    return run


@pytest.mark.parametrize("m,k,n", [(1, 64, 64), (33, 64, 48), (130, 70, 90), (4, 1, 5)])
def test_products(m: int, k: int, n: int) -> None:
    check(lambda a, b: a @ b, f32(m, k), f32(k, n))


def test_products_of_narrow_types_and_batches() -> None:
    check(lambda a, b: (a @ b).to(ts.f32), f32(20, 30).astype(ts.bf16.np), f32(30, 40).astype(ts.bf16.np))
    check(lambda a, b: a @ b, f32(3, 20, 30), f32(3, 30, 10))


def test_a_layer_with_its_epilogue() -> None:
    check(lambda x, w, b: ts.gelu(x @ w + b), f32(50, 64), f32(64, 128), f32(128))


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal: bool) -> None:
    check(lambda q, k, v: ts.attention(q, k, v, causal=causal), *(f32(1, 2, 40, 16) for _ in range(3)))


def test_rows() -> None:
    check(lambda x: ts.softmax(x, -1), f32(37, 300))
    check(lambda x, w, b: ts.layer_norm(x, w, b), f32(30, 257), f32(257), f32(257))
    check(lambda x: ts.cross_entropy(x, ts.tensor([1, 2, 3, 0])), f32(4, 50))


def test_the_programs_of_the_tile_language() -> None:
    check(lambda x: ts.cumsum(x, -1), f32(5, 1000), tolerance=1e-4)
    check(lambda x: ts.sort(x, -1), f32(3, 200))
    check(lambda x: ts.fft.fft(x), f32(4, 64))
    check(lambda x, w: ts.conv2d(x, w), f32(2, 3, 12, 12), f32(4, 3, 3, 3))


def test_linear_algebra_on_the_device_and_on_the_host() -> None:
    check(lambda x: ts.linalg.cholesky(x @ x.T + 30 * ts.eye(20)), f32(20, 20), tolerance=1e-4)
    check(lambda a, b: ts.linalg.solve(a + 10 * ts.eye(12), b), f32(12, 12), f32(12, 3), tolerance=1e-4)
    check(lambda x: ts.linalg.eigh(x + x.T)[0], f32(8, 8), tolerance=1e-4)  # LAPACK: copied to the host and back


def test_integers_of_four_bits_lie_in_bytes() -> None:
    x = np.array([-8, -1, 0, 7], np.int8).astype(ts.int4.np)
    check(lambda v: v.to(ts.int8) * 2, x)
    check(lambda v: v.to(ts.int8) + ts.tensor(x).to(ts.int8), x)


def test_control_flow() -> None:
    run = check(lambda x: ts.while_loop(lambda i, y: i < 5, lambda i, y: (i + 1, y * 1.5), (np.int64(0), x)), f32(10))
    assert any(op.name == "while" for op in run.sched.walk())
    check(lambda x: ts.cond(x.sum() > 0, lambda y: y * 2, lambda y: y - 1, x), f32(10))
    check(lambda x: ts.scan(lambda c, a: (c + a, c * 2), np.float32(0), x), f32(9))


def test_nothing_at_all() -> None:
    check(lambda x: x.sum(0) + 1, f32(0, 5))
    check(lambda x: x * 2, f32(0))


def test_one_program_serves_all_sizes() -> None:
    n = ts.sym("N")
    graph, _ = ways.traced(lambda x: ts.softmax(x * 2, -1), (f32(4, 8),), [(n, 8)])
    run = compiler().compile(graph)
    for rows in (1, 7, 300):
        x = f32(rows, 8)
        e = np.exp(2 * x - (2 * x).max(-1, keepdims=True))
        np.testing.assert_allclose(run([x])[0], e / e.sum(-1, keepdims=True), atol=1e-6)
    with pytest.raises(ts.ShapeError, match="has another shape"):
        run([f32(4, 9)])
    with pytest.raises(ts.DTypeError, match="another element type"):
        run([np.zeros((4, 8))])


def test_checks_raise_with_the_users_line() -> None:
    graph, _ = ways.traced(lambda x, i: x[i], (f32(5), np.array([0, 4, 2])))
    run = compiler().compile(graph)
    assert run([f32(5), np.array([0, 4, 2])])[0].shape == (3,)
    with pytest.raises(ts.errors.IndexOutOfRangeError, match="7") as e:
        run([f32(5), np.array([0, 7, 2])])
    assert "test_opencl_programs.py" in str(e.value)
    assert run([f32(5), np.array([0, 1, 2])])[0].shape == (3,)  # the next call is clean


def test_machine_code_outlives_the_process(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a second process would do: a compiler of its own reads the device's code, and the driver compiles nothing."""
    from tessera.runtime.cache import DiskCache
    from tessera.runtime.opencl import IntelCompiler
    cache = DiskCache(tmp_path / "cache", 1 << 28)
    monkeypatch.setattr(type(ways.host_compiler()), "cache", cache)
    x = f32(5, 70)
    graph, _ = ways.traced(lambda v: ts.softmax(v * 3, -1), (x,))
    fresh, second, third = IntelCompiler(), IntelCompiler(), IntelCompiler()
    made: list[str] = []
    for c in (fresh, second, third):
        build = c.device.build
        monkeypatch.setattr(c.device, "build", lambda code, symbol, build=build: made.append(symbol) or build(code, symbol))
    first = fresh.compile(graph)([x])[0]
    assert made
    made.clear()
    assert second.compile(graph)([x])[0].tobytes() == first.tobytes() and not made
    get, spirv = cache.get, b"\3\2\x23\7"

    def of_another_driver(tier: str, key: str) -> bytes | None:
        got = get(tier, key)
        return got if got is None or got[:4] == spirv else b"another driver's"

    monkeypatch.setattr(cache, "get", of_another_driver)
    assert third.compile(graph)([x])[0].tobytes() == first.tobytes() and made


def test_a_missing_device() -> None:
    from tessera.runtime import opencl as programs
    with pytest.raises(ts.DeviceError, match="there is no device 'intel:99' here"):
        programs.compiler("intel:99")


def test_tensors_live_on_the_device() -> None:
    @ts.jit
    def f(x: Any) -> Any:
        return ts.softmax(x * 2, -1)

    x = ts.tensor(f32(4, 6))
    with ts.device("intel:0") as d:
        assert d == "intel:0" and ts.current_device() == "intel:0" and ts.zeros(3).device == "intel:0"
    y = x.to("intel:0")
    assert y.device == "intel:0" and x.device == "cpu" and y.to("intel:0") is y and y.cpu().tolist() == x.tolist()
    there = f(y)
    assert there.device == "intel:0" and (y + 1).device == "intel:0"
    np.testing.assert_allclose(there.numpy(), f(x).numpy(), atol=1e-6)
    assert (y + 1).tolist() == (x + 1).tolist() and (y[1:3].sum() * 2).device == "intel:0" and y.T.shape == (6, 4)
    with pytest.raises(ts.DeviceError, match="different devices"):
        x + y


@pytest.mark.parametrize("shape", [(4, 9), (36,), (33,), (3, 3)])
def test_reductions_to_a_number(shape: tuple[int, ...]) -> None:
    """Their kernels pass values between lanes and do hardly anything else."""
    check(lambda v: (v.sum(), v.max(), v.prod()), f32(*shape))
