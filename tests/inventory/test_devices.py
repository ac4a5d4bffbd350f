"""Rows A011–A015 and B005, B006: where tensors live, requests to move them, functions for experts, variants by device."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest

import tessera as ts

N = ts.sym("N")


@pytest.fixture
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_SIM_DEVICES", "A100,H100")


def test_names_of_devices(simulated: None) -> None:
    assert [str(d) for d in ts.get_devices()] == ["cpu", "gpu:0", "gpu:1"]
    a, h = ts.device("gpu:0"), ts.device("H100")
    assert a == "gpu:0" and a == "cuda:0" and a == "A100" and a == 0 and a == "gpu" and a != "H100" and a != "cpu" and a != 1
    assert h.number == 1 and h.simulated and h == ts.device("cuda:1") and hash(h) == hash("gpu:1") and ts.device(h) is h
    assert ts.current_device() == "cpu" and ts.current_device() != 0 and repr(a) == "device('gpu:0')"


def test_a011_tensors_made_inside_report_the_device(simulated: None) -> None:
    with ts.device("gpu:1"):
        x, k = ts.zeros(3), ts.random.uniform(2)
        with ts.device("cpu"):
            inner = ts.ones(1)
        assert ts.current_device() == "H100"
    assert x.device == "gpu:1" and k.device == "H100" and inner.device == "cpu" and ts.zeros(3).device == "cpu"
    assert ts.ones(2, device="gpu:0").device == "A100" and (x + 1).tolist() == [1, 1, 1] and ts.current_device() == "cpu"


def test_a011_back_to_the_cpu(simulated: None) -> None:
    x = ts.ones(2, device="gpu:0")
    y = x.to("cpu")
    assert (x.device, y.device) == ("gpu:0", "cpu") and y.tolist() == [1, 1] and x.to("gpu:0") is x


def test_a011_a_missing_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TESSERA_SIM_DEVICES", raising=False)
    with pytest.raises(ts.DeviceError, match="there is no device 'gpu:0' here") as e:
        ts.device("gpu:0")
    assert e.value.expected == "cpu" and "TESSERA_SIM_DEVICES=1" in str(e.value)
    with pytest.raises(ts.DeviceError):
        ts.zeros(3, device="cuda")
    for bad in ("gpo:0", "gpu:x", 1.5, None, True):
        with pytest.raises(ts.errors.ArgumentError):
            ts.device(bad)
    monkeypatch.setenv("TESSERA_SIM_DEVICES", "1")
    assert ts.device("gpu:0").simulated
    with pytest.raises(ts.DeviceError, match="gpu:1"):
        ts.device("gpu:1")


def test_a012_prefetch_records_and_changes_nothing() -> None:
    w = ts.randn(64, 64)
    before = w.numpy().tobytes()
    ts.memory.MOVEMENTS.clear()
    with ts.device("cpu"), ts.prefetch(w, "L2_cache") as same:
        assert same is w
    with ts.memory.prefetch({"w": w, "b": ts.ones(3)}, to="shared"):
        pass
    assert [(m.what, m.level) for m in ts.memory.MOVEMENTS] == [("f32[64, 64]", "L2"), ("f32[3]", "shared"), ("f32[64, 64]", "shared")]
    assert "test_devices.py" in ts.memory.MOVEMENTS[0].where and w.numpy().tobytes() == before
    with pytest.raises(ts.errors.ArgumentError, match="no memory space 'L9'"):
        ts.prefetch(w, "L9")
    with pytest.raises(ts.errors.ArgumentError, match="takes tensors"):
        ts.prefetch(3)


def test_a042_the_effect_memory_is_inferred_and_declared() -> None:
    @ts.jit
    def prefetch_weights(w: Any) -> Any:
        ts.memory.prefetch_to_l2(w)
        return w + 1

    assert prefetch_weights(ts.ones(2)).tolist() == [2, 2] and prefetch_weights.effects == {"memory"}

    @ts.pure
    def pure(w: Any) -> Any:
        ts.memory.prefetch_to_l2(w)
        return w

    with pytest.raises(ts.EffectError, match="'prefetch' has the effect memory"):
        pure(ts.ones(2))


def test_a015_custom_functions_open_expert_scopes() -> None:
    @ts.custom
    def expert(x: ts.Tensor[N]) -> Any:
        with ts.numerics(ts.Policy(storage=ts.f32, accumulate=ts.f32)):
            return ts.sum(x * 3.0) + ts.random.uniform(()) * 0

    assert float(expert(ts.ones(4))) == 12 and expert.effects == {"random"} and isinstance(expert, type(ts.jit(lambda x: x)))
    assert ts.custom(where=[N % 2 == 0])(lambda x: x)(ts.ones(2)).tolist() == [1, 1]


def test_b005_one_variant_a_model(simulated: None) -> None:
    @ts.specialize_for("A100", "H100")
    def scaled(x: ts.Tensor[N]) -> ts.Tensor[N]:
        if ts.current_device() == "A100":
            return x * 2
        if ts.current_device() == "H100":
            return x * 3
        return x

    x = ts.ones(2)
    assert list(scaled.variants) == ["A100", "H100"] and scaled(x).tolist() == [1, 1]
    with ts.device("gpu:0"):
        assert scaled(x).tolist() == [2, 2]
    with ts.device("gpu:1"):
        assert scaled(x).tolist() == [3, 3]
    for model in ("A100", "H100"):
        assert "cond" not in scaled.variants[model].graph_ir and scaled.variants[model].graph_ir.count("mul(") == 1
    assert "mul(" not in scaled.general.graph_ir and scaled.__name__ == "scaled"
    with pytest.raises(ts.errors.ArgumentError, match="names of device models"):
        ts.specialize_for()


# -- where results live: simulated devices hold data as real ones do -----------------------------------------------------------
def test_a011_results_stay_on_the_device_of_their_operands(simulated: None) -> None:
    x, w = ts.randn(4, 6), ts.randn(6, 5)
    a, b = x.to("gpu:1"), w.to("gpu:1")
    results: dict[str, Any] = {
        "number": a + 1, "reflected": 2 - a, "pair": a * a, "product": a @ b, "sum": a.sum(), "where": ts.where(a > 0, a, -a),
        "row": a[1], "mask": a[:, 1:3], "T": a.T, "reshape": a.reshape(24), "cast": a.to(ts.bf16), "like": ts.zeros_like(a),
        "softmax": ts.softmax(a), "split": ts.split(a, dim=-1, sections=3)[0], "scalar tensor": a * ts.tensor(2.0), "clone": a.clone(),
        "copy": copy.deepcopy(a),
        "rows by array": a[np.array([0, 1])], "chosen": a[a > 0], "dropout": ts.dropout(a, 0.5), "unique": ts.unique(a),
        "places": ts.nonzero(a > 0)[1], "gradient": ts.grad(lambda v: (v * v).sum())(a), "mapped": ts.vmap(lambda r: r.sum())(a)}
    assert {n: str(t.device) for n, t in results.items()} == dict.fromkeys(results, "gpu:1")
    assert results["product"].numpy().tobytes() == (x @ w).numpy().tobytes() and a.device == "H100" and a.cpu().device == "cpu"
    with ts.device("gpu:0"):
        assert ts.ones_like(a).device == "gpu:1" and ts.ones_like([1]).device == "gpu:0"
        assert ts.full_like(a, 2, device="cpu").device == "cpu"
    assert repr(a[0, :1]).endswith("f32[1], gpu:1)") and results["chosen"].tolist() == x[x > 0].tolist()
    assert results["row"].tolist() == x[1].tolist() and results["like"].tolist() == [[0] * 6] * 4


def test_a011_functions_run_where_their_arguments_are(simulated: None) -> None:
    @ts.function
    def layer(x: ts.Tensor[N, 6]) -> Any:
        return ts.gelu(ts.linear(x, 3)), {"norm": ts.layer_norm(x)}

    x = ts.randn(4, 6)
    for device in ("cpu", "gpu:0", "gpu:1", "gpu:0"):
        y, rest = layer(x.to(device))
        assert y.device == device and rest["norm"].device == device and y.numpy().tobytes() == layer(x)[0].numpy().tobytes()
    assert len(layer.programs) == 1
    with ts.device("gpu:0"):
        made = ts.jit(lambda v: v + 1)(ts.ones(3))
    assert made.device == "gpu:0"
    kept = ts.jit(lambda v: v * 2, donate_argnums=0)(ts.ones(3).to("gpu:0"))
    assert kept.device == "gpu:0" and kept.tolist() == [2, 2, 2]


def test_a011_devices_do_not_mix(simulated: None) -> None:
    a, h, c = ts.ones(3).to("gpu:0"), ts.ones(3).to("gpu:1"), ts.ones(3)
    captured = ts.jit(lambda v: v + a)
    attempts: list[Any] = [lambda: a + h, lambda: a + c, lambda: ts.jit(lambda u, v: u @ v)(a, h), lambda: captured(h),
                           lambda: captured(c), lambda: ts.where(a > 0, h, a), lambda: a.__setitem__(slice(0, 3), h)]
    for attempt in attempts:
        with pytest.raises(ts.DeviceError, match="operands live on different devices: ") as e:
            attempt()
        assert "gpu:0" in str(e.value) and "x.to(" in str(e.value) and "simulated" not in str(e.value)
    assert captured(a).device == "gpu:0" and captured(ts.tensor(1.0)).tolist() == [2, 2, 2]


def test_a011_assignment_on_a_device(simulated: None) -> None:
    a = ts.zeros(2, 3).to("gpu:0")
    other = a.reshape(6)
    a[0] = 1.0
    a[1, 2] = ts.tensor(5.0)
    assert a.device == "gpu:0" and a.tolist() == [[1, 1, 1], [0, 0, 5]] and other.tolist() == [0] * 6
    a[np.array([1])] = 3.0
    a[a > 2] = ts.tensor([9.0, 8.0, 7.0]).to("gpu:0")
    assert a.device == "gpu:0" and a.tolist() == [[1, 1, 1], [9, 8, 7]]
    with pytest.raises(ts.ShapeError, match="Cannot write"):
        a[a > 2] = ts.zeros(2).to("gpu:0")
    ts.assign(a, ts.ones(2, 3).to("gpu:0"))
    assert a.device == "gpu:0" and a.tolist() == [[1] * 3] * 2
    with pytest.raises(ts.DeviceError, match="different devices"):
        ts.assign(a, ts.ones(2, 3))
    a[...] = 7.0
    a += 1
    assert a.device == "gpu:0" and a.tolist() == [[8] * 3] * 2

    @ts.kernel
    def double(x, y):  # type: ignore[no-untyped-def]
        ts.tile.store(y, ts.tile.load(x) * 2)

    out = ts.zeros(2, 3).to("gpu:0")
    double(a, out)
    assert out.device == "gpu:0" and out.tolist() == [[16] * 3] * 2


def test_a_device_and_a_dtype_in_one_move(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_SIM_DEVICES", "1")
    moved = ts.ones(3).to("gpu:0", ts.f64)
    assert moved.dtype is ts.f64 and moved.device == "gpu:0"
