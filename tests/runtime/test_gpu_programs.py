# ruff: noqa: F821  (names of sizes in annotations)
"""Programs on ``gpu:0``: the runtime as it is, on a simulated device whose launches the tile interpreter runs."""

import sys
from pathlib import Path

import numpy as np
import pytest

import tessera as ts
from tessera.errors import DeviceError
from tessera.runtime import gpu as runtime
from tessera.tracing import eager, methods

sys.path.append(str(Path(__file__).parents[1] / "targets" / "nvidia"))
import attention_forms
import simulated


@pytest.fixture
def device(monkeypatch):
    forget()
    yield simulated.install(monkeypatch)
    forget()


def forget():
    """Programs that were compiled for an earlier device."""
    runtime.compiler.cache_clear()
    eager.clear()
    methods.clear()


def test_tensors_move_and_say_where_they_are(device):
    x = ts.randn(4, 5)
    g = x.to("gpu:0")
    assert (g.device, g.shape, g.dtype) == ("gpu:0", (4, 5), ts.f32)
    assert np.array_equal(g.numpy(), x.numpy())
    assert g.to("gpu:0") is g and g.cpu().device == "cpu"
    assert g.to(ts.bf16).device == "gpu:0" and g.to(ts.bf16).dtype is ts.bf16
    with ts.device("gpu:0"):
        assert ts.zeros(3).device == "gpu:0"
    assert [str(d) for d in ts.get_devices()] == ["cpu", "gpu:0"]


@ts.kernel
def doubled(X: ts.Tile["M", 8], O: ts.Tile["M", 8]):
    for i in ts.tile.range(X.shape[0], step=2):
        ts.tile.store(O[i:i + 2], ts.tile.load(X[i:i + 2]) * 2.0)


def test_kernels_run_where_their_tensors_are(device, monkeypatch):
    x, out = ts.randn(6, 8), ts.zeros(6, 8).to("gpu:0")
    g, place = x.to("gpu:0"), out._p.pointer
    with monkeypatch.context() as m:
        m.setattr(runtime.GpuArray, "to_host", None)
        made = doubled(g, out)
    assert made is out and out._p.pointer == place
    assert np.array_equal(out._p.to_host(), 2 * x.numpy())


def test_kernels_refuse_arguments_of_several_places(device):
    with pytest.raises(ts.errors.DeviceError, match="different devices"):
        doubled(ts.randn(6, 8), ts.zeros(6, 8).to("gpu:0"))


def test_eager_operators_and_reductions(device):
    x, y = ts.randn(6, 7), ts.randn(6, 7)
    a, b = x.to("gpu:0"), y.to("gpu:0")
    for f in (lambda u, v: u * v + 1.0, lambda u, v: 2 - u / v, lambda u, v: ts.where(u > v, u, v), lambda u, v: (u @ v.T).sum(0)):
        got, want = f(a, b), f(x, y)
        assert got.device == "gpu:0"
        np.testing.assert_allclose(got.numpy(), want.numpy(), rtol=1e-5, atol=1e-5)
    assert abs(a.sum().item() - x.sum().item()) < 1e-4
    assert bool((a == a).all())


def test_functions_use_one_program_a_device(device):
    @ts.function
    def layer(x: ts.Tensor["B", "K"], w: ts.Tensor["K", "N"], b: ts.Tensor["N"]):
        return ts.layer_norm(ts.gelu(x @ w + b))

    for rows in (3, 8):
        x, w, b = ts.randn(rows, 16), ts.randn(16, 24), ts.randn(24)
        got = layer(*(t.to("gpu:0") for t in (x, w, b)))
        assert got.device == "gpu:0"
        np.testing.assert_allclose(got.numpy(), layer(x, w, b).numpy(), rtol=1e-4, atol=1e-5)
    assert len(layer.programs) == 1


def test_devices_do_not_mix(device):
    g = ts.randn(3, 3).to("gpu:0")
    with pytest.raises(DeviceError, match="operands live on different devices: cpu and gpu:0") as e:
        g + ts.randn(3, 3)
    assert 'x.to("gpu:0")' in str(e.value)
    assert (g + ts.tensor(2.0)).device == "gpu:0"  # a 0-d tensor goes along

    @ts.function
    def f(x, y):
        return x + y
    with pytest.raises(DeviceError, match="different devices"):
        f(g, ts.randn(3, 3))


def test_control_flow_and_host_routines(device):
    @ts.function
    def collatz(n):
        return ts.while_loop(lambda v: (v != 1).any(), lambda v: ts.where(v % 2 == 0, v // 2, ts.where(v == 1, v, 3 * v + 1)), n)

    n = ts.tensor([6, 11, 1], dtype=ts.int64)
    assert collatz(n.to("gpu:0")).tolist() == [1, 1, 1]
    a = np.random.default_rng(0).standard_normal((5, 5)).astype(np.float32)
    spd = ts.tensor(a @ a.T + 5 * np.eye(5, dtype=np.float32))
    values = ts.linalg.eigvalsh(spd.to("gpu:0")) if hasattr(ts, "linalg") else None
    if values is not None:
        np.testing.assert_allclose(values.numpy(), np.linalg.eigvalsh(spd.numpy()), rtol=1e-4)


def test_failed_checks_are_raised_where_the_result_is_read(device):
    table, index = ts.randn(10, 4).to("gpu:0"), ts.tensor([1, 12], dtype=ts.int64).to("gpu:0")
    out = table[index]
    with pytest.raises(ts.TesseraError, match="12"):
        out.numpy()
    assert table[ts.tensor([2], dtype=ts.int64).to("gpu:0")].shape == (1, 4)


def test_memory_goes_back(device):
    x = ts.randn(100, 100).to("gpu:0")
    (x + 1.0).numpy()
    before = len(device.blocks)
    for _ in range(5):
        (x + 1.0).numpy()
    assert len(device.blocks) == before


@pytest.mark.parametrize("turned", [False, True])
def test_products_of_narrow_floats_take_the_explicit_program(device, turned):
    a, b = ts.randn(72, 64).to(ts.bf16), ts.randn(*((64, 64))).to(ts.bf16)
    g = b.to("gpu:0")
    got = a.to("gpu:0") @ (g.T if turned else g)
    want = a.numpy().astype(np.float64) @ (b.numpy().T if turned else b.numpy()).astype(np.float64)
    assert np.abs(got.numpy().astype(np.float64) - want).max() < 0.2
    assert any(k.module.explicit for k in runtime.compiler("gpu:0").kernels.values())


@pytest.mark.parametrize("form", attention_forms.FORMS)
def test_attention_in_all_its_forms_takes_the_explicit_program(device, form):
    attention_forms.check(form)


def test_attention_gives_its_sums_to_the_reverse_pass(device):
    q, k, v = (ts.randn(1, 2, 72, 64).to(ts.bf16) for _ in range(3))
    grads = ts.grad(lambda q, k, v: (ts.attention(q, k, v, causal=True).to(ts.f32) ** 2).sum(), argnums=(0, 1, 2))
    got, want = grads(*(x.to("gpu:0") for x in (q, k, v))), grads(*(x.to(ts.f32) for x in (q, k, v)))
    for a, b in zip(got, want, strict=True):
        assert np.abs(a.numpy().astype(np.float64) - b.numpy()).max() < 2e-2 * np.abs(b.numpy()).max()
    assert any(k.fn.name == "attention" and k.module.explicit for k in runtime.compiler("gpu:0").kernels.values())


def test_rows_are_read_once(device):
    x = ts.randn(3, 40) * 4.0
    for f in (ts.softmax, ts.layer_norm, ts.rms_norm):
        np.testing.assert_allclose(f(x.to("gpu:0")).numpy(), f(x).numpy(), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(ts.softmax(x.to("gpu:0"), 0).numpy(), ts.softmax(x, 0).numpy(), rtol=1e-5, atol=1e-6)


EPILOGUES = {
    "bias and gelu": (lambda x, w, b: ts.gelu(x @ w + b), [(72, 64), (64, 136), (136,)], ts.bf16),
    "residual and scale": (lambda x, w, r: x @ w * 0.5 + r, [(72, 64), (64, 136), (72, 136)], ts.f16),
    "by rows, f32": (lambda x, w, b: ts.silu((x @ w.T).to(ts.f32)) + b.to(ts.f32), [(72, 64), (136, 64), (72, 1)], ts.bf16),
}


@pytest.mark.parametrize("case", EPILOGUES)
def test_epilogues_are_part_of_the_product_that_the_copy_engine_stores(device, case):
    f, shapes, dtype = EPILOGUES[case]
    inputs = [ts.randn(*s).to(dtype) for s in shapes]
    fn = ts.function(f)
    got = fn(*(x.to("gpu:0") for x in inputs)).numpy()
    want = f(*(x.to(ts.f64) for x in inputs)).numpy()
    assert np.abs(got.astype(np.float64) - want).max() < 2e-2 * np.abs(want).max()
    program = fn.program(*inputs).executable_on("gpu:0")
    assert [k.fn.name for p in program.plans.values() for k in p.kernels] == ["matmul"]
