"""Rows A011–A015 and B005, B006: where tensors live, requests to move them, functions for experts, variants by device."""

from __future__ import annotations

from typing import Any

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
