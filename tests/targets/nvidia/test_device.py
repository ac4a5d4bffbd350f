"""On an NVIDIA device: ``pytest -m gpu``.  Everywhere else these tests are left out."""

import importlib.util

import attention_forms
import numpy as np
import pytest
import sweep

import tessera as ts
from tessera.runtime import gpu as runtime
from tessera.targets.nvidia import driver, kernels

HERE = importlib.util.find_spec("cuda") is not None and driver.count() > 0
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not HERE, reason="no NVIDIA device")]
CASES = sweep.cases()


def close(got, want, tolerance):
    got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
    assert np.isfinite(got).all()
    assert np.linalg.norm(got - want) <= tolerance * np.linalg.norm(want)


@pytest.mark.parametrize("m, n, k", [(64, 64, 64), (300, 264, 328), (1000, 520, 1096), (129, 72, 72), (2048, 1024, 512)])
@pytest.mark.parametrize("turned", [False, True])
def test_product(m, n, k, turned):
    a, b = ts.randn(m, k).to(ts.bf16), ts.randn(*((n, k) if turned else (k, n))).to(ts.bf16)
    right = b.to("gpu:0")
    got = a.to("gpu:0") @ (right.T if turned else right)
    wide = b.numpy().astype(np.float64)
    close(got.numpy(), a.numpy().astype(np.float64) @ (wide.T if turned else wide), 5e-3)


@pytest.mark.parametrize("act", [None, ts.relu])
@pytest.mark.parametrize("m, n, k", [(300, 257, 128), (1000, 2049, 520), (64, 50257, 72)])
def test_product_whose_rows_are_not_aligned(m, n, k, act):
    a, b = ts.randn(m, k).to(ts.bf16), ts.randn(n, k).to(ts.bf16)
    f = ts.jit(lambda a, b: (a @ b.T) if act is None else act(a @ b.T))
    close(f(a.to("gpu:0"), b.to("gpu:0")).to(ts.f32).numpy(), f(a.to(ts.f32), b.to(ts.f32)).numpy(), 1e-2)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length, width", [(200, 64), (450, 64), (1024, 64), (256, 128), (1000, 128)])
def test_attention(causal, length, width):
    q, k, v = (ts.randn(2, 3, length, width).to(ts.bf16) for _ in range(3))
    got = ts.attention(*(x.to("gpu:0") for x in (q, k, v)), causal=causal)
    close(got.numpy(), ts.attention(*(x.to(ts.f32) for x in (q, k, v)), causal=causal).numpy(), 1e-2)


@pytest.mark.parametrize("form", attention_forms.FORMS)
def test_attention_in_all_its_forms(form):
    attention_forms.check(form)


@pytest.mark.parametrize("n", [1, 100, 4096, 5000, 40000])
@pytest.mark.parametrize("dtype", [ts.f32, ts.bf16])
def test_rows(n, dtype):
    x = (ts.randn(37, n) * 3.0).to(dtype)
    wide, g = x.to(ts.f64), x.to("gpu:0")
    tolerance = 1e-5 if dtype is ts.f32 else 5e-3
    for f in (ts.softmax, ts.rms_norm, ts.layer_norm):
        if f is ts.layer_norm and n == 1:
            continue  # zero over the square root of eps
        close(f(g).numpy(), f(wide).numpy(), tolerance)


@pytest.mark.parametrize("m, n", [(300, 264), (129, 72), (1024, 1024)])
@pytest.mark.parametrize("dtype", [ts.bf16, ts.f16])
def test_epilogues_are_part_of_the_product(m, n, dtype):
    x, w, b, r = (ts.randn(*s).to(dtype) for s in ((m, 328), (328, n), (n,), (m, n)))
    for f, inputs in ((lambda x, w, b: ts.gelu(x @ w + b), (x, w, b)), (lambda x, w, r: x @ w * 0.5 + r, (x, w, r)),
                      (lambda x, w, b: ts.silu((x @ w).to(ts.f32) + b.to(ts.f32)), (x, w, b))):
        fn = ts.function(f)
        close(fn(*(i.to("gpu:0") for i in inputs)).numpy(), f(*(i.to(ts.f64) for i in inputs)).numpy(), 1e-2)
        program = fn.program(*inputs).executable_on("gpu:0")
        assert [k.fn.name for p in program.plans.values() for k in p.kernels] == ["matmul"]


@ts.kernel
def scaled_sum(X: ts.Tile["M", "N"], Y: ts.Tile["M", "N"], O: ts.Tile["M", "N"]):  # noqa: F821
    for i in ts.tile.range(X.shape[0], step=8):
        ts.tile.store(O[i:i + 8], ts.tile.load(X[i:i + 8]) * 2.0 + ts.tile.load(Y[i:i + 8]))


def test_kernels_run_on_tensors_of_the_device_where_they_are():
    x, y = ts.randn(40, 64), ts.randn(40, 64)
    out = ts.zeros(40, 64).to("gpu:0")
    place = out._p.pointer
    scaled_sum(x.to("gpu:0"), y.to("gpu:0"), out)
    assert out.device == "gpu:0" and out._p.pointer == place
    close(out.numpy(), 2.0 * x.numpy() + y.numpy(), 1e-6)


@pytest.mark.parametrize("dtype", [ts.bf16, ts.f16])
@pytest.mark.parametrize("n", [1, 1000, 5003])
def test_sums_and_products_of_small_floats_have_the_bits_of_the_cpu(dtype, n):
    def f(x, y):
        return ((((x * y + 1.0) * 0.5 - y) * x + 2.0) * y).abs()
    x, y = ts.randn(n).to(dtype), ts.randn(n).to(dtype)
    assert np.array_equal(ts.function(f)(x.to("gpu:0"), y.to("gpu:0")).numpy(), ts.function(f)(x, y).numpy())


def test_a_program_replays_as_a_graph_with_other_pointers():
    @ts.function
    def f(x: ts.Tensor["B", 64], w: ts.Tensor[64, 64]):  # noqa: F821
        y = ts.tanh(x @ w)
        return ts.softmax(y @ w) + y

    w = ts.randn(64, 64)
    for _ in range(6):
        x = ts.randn(32, 64)
        close(f(x.to("gpu:0"), w.to("gpu:0")).numpy(), f(x, w).numpy(), 1e-5)


def test_same_bits_every_time():
    x = ts.randn(1000, 777).to("gpu:0")
    first = ts.layer_norm(ts.gelu(x)).sum().numpy()
    assert all(ts.layer_norm(ts.gelu(x)).sum().numpy().tobytes() == first.tobytes() for _ in range(5))


def test_exchange_with_torch():
    torch = pytest.importorskip("torch")
    t = torch.randn(5, 7, device="cuda")
    mine = ts.from_dlpack(t)
    assert mine.device == "gpu:0"
    mine.numpy()
    np.testing.assert_array_equal(mine.numpy(), t.cpu().numpy())
    back = torch.from_dlpack(mine * 2.0)
    np.testing.assert_array_equal(back.cpu().numpy(), 2 * t.cpu().numpy())
    np.testing.assert_array_equal(torch.as_tensor(mine * 3.0, device="cuda").cpu().numpy(), 3 * t.cpu().numpy())
    half = torch.randn(4, 8, device="cuda").bfloat16()
    np.testing.assert_array_equal(ts.from_dlpack(half).numpy().astype(np.float32), half.float().cpu().numpy())


def test_checks_are_raised_at_the_next_read():
    table = ts.randn(10, 4).to("gpu:0")
    index = ts.tensor([1, 12], dtype=ts.int64).to("gpu:0")
    out = table[index]
    with pytest.raises(ts.TesseraError, match="12"):
        out.numpy()


def test_kernels_of_the_explicit_level_have_no_complaints():
    compiler = runtime.compiler("gpu:0")
    q = ts.randn(1, 2, 256, 128).to(ts.bf16).to("gpu:0")
    ts.attention(q, q, q, causal=True).numpy()
    a = ts.randn(256, 256).to(ts.bf16).to("gpu:0")
    (a @ a).numpy()
    logs = {k.fn.name: k.code.log for k in compiler.kernels.values() if k.module.explicit}
    assert set(logs) >= {"attention", "matmul"}
    assert not {n: kernels.complaints(log) for n, log in logs.items() if kernels.complaints(log)}


@pytest.mark.parametrize("group", list(sweep.batches(CASES, 30)), ids=lambda g: f"{g[0].op}..{g[-1].op}")
def test_op_sweep(group):
    """The cover of the op sweep, compiled for the device."""
    compiler = runtime.compiler("gpu:0")
    fn, arrays = sweep.program(group)
    types = [a.type.dtype for a in fn.args]
    out = compiler.compile(fn)([runtime.upload(compiler.gpu, np.ascontiguousarray(a).reshape(a.shape), t)
                                for a, t in zip(arrays, types, strict=True)])
    assert not sweep.failures(group, [o.to_host() for o in out])
