"""Group A of the inventory, language and types: one check a row, where no other test is it."""

from __future__ import annotations

import gc
import logging
from typing import Any

import numpy as np
import pytest

import tessera as ts
from tessera.tracing.identity import identity

N = ts.sym("N")


# -- A020 … A033: sizes ------------------------------------------------------------------------------------------------------
def test_a023_numeric_strings_are_literal_sizes() -> None:
    @ts.function
    def f(x: ts.Tensor["1", "N"]) -> Any:  # noqa: UP037
        return x

    assert f(ts.ones(1, 5)).shape == (1, 5)
    with pytest.raises(ts.ShapeError, match="dimension 0"):
        f(ts.ones(2, 5))


def test_a026_linear_takes_a_weight_or_a_size() -> None:
    x, w = ts.randn(3, 4), ts.randn(4, 5)
    assert ts.linear(x, w).numpy().tobytes() == (x @ w).numpy().tobytes()

    @ts.function
    def layer(x: ts.Tensor[N, 4]) -> Any:
        return ts.linear(x, 5)

    first, second = layer(x).numpy(), layer(x).numpy()
    assert first.shape == (3, 5) and first.tobytes() == second.tobytes() and len(layer.parameters()) >= 1


def test_a029_python_asserts_on_unsubscripted_tensors() -> None:
    @ts.function
    def f(x: ts.Tensor) -> Any:
        assert x.shape[-1] == 768, f"expected 768, got {x.shape[-1]}"
        return x

    assert f(ts.ones(2, 768)).shape == (2, 768)
    with pytest.raises(AssertionError, match="expected 768, got 767"):
        f(ts.ones(2, 767))


def test_a033_sizes_with_suffixes() -> None:
    assert ts.Tensor["1M"].shape == (1 << 20,) and ts.Tensor["4K"].shape == (4096,) and ts.Tensor["1G"].shape == (1 << 30,)


# -- A040 … A049: effects ----------------------------------------------------------------------------------------------------
def test_a040_pure_functions_refuse_effects_by_name() -> None:
    @ts.pure
    def noisy(x: Any) -> Any:
        return x + ts.random.uniform((2,))

    @ts.pure
    def chatty(x: Any) -> Any:
        ts.log("x is", x)
        return x

    @ts.pure
    def logarithm(x: Any) -> Any:
        return ts.log(x)

    with pytest.raises(ts.EffectError, match="uniform"):
        noisy(ts.ones(2))
    with pytest.raises(ts.EffectError, match="'log' has the effect io"):
        chatty(ts.ones(2))
    assert logarithm(ts.ones(2)).tolist() == [0, 0] and logarithm.effects == frozenset()


def test_a044_suspended_effects(caplog: pytest.LogCaptureFixture) -> None:
    def quiet() -> None:
        with ts.effects.suspend("io"):
            ts.log("never")

    with pytest.raises(ts.EffectError, match="suspend"):
        quiet()
    with caplog.at_level(logging.INFO, "tessera"):
        ts.log("after")
    assert caplog.messages == ["after"]


def test_a045_messages_once_a_call_and_in_order(caplog: pytest.LogCaptureFixture) -> None:
    def step(x: Any) -> Any:
        y = x * 2
        ts.log("sum", y.sum(), step=3)
        ts.log("text alone")
        ts.log("pair", x[0], y.to(ts.int32))
        return y + 1

    compiled = ts.jit(step)
    with caplog.at_level(logging.INFO, "tessera"):
        for f in (step, compiled, compiled, ts.jit(lambda x: compiled(x) * 2)):
            caplog.clear()
            f(ts.tensor([1.5, 2.0]))
            assert caplog.messages == ["sum 7 step=3", "text alone", "pair 1.5 Tensor([3, 4], int32[2])"]
    assert compiled.effects == {"io"} and len(compiled.programs) == 1


def test_a045_a_value_in_a_function_with_io(caplog: pytest.LogCaptureFixture) -> None:
    @ts.effects(["all"])
    def training_step(x: Any) -> Any:
        with ts.effects.suspend("io"):
            loss = ts.log(x).sum()  # the logarithm: nothing is written here
        ts.log(loss)
        return loss

    with caplog.at_level(logging.INFO, "tessera"):
        assert float(training_step(ts.ones(3))) == 0
    assert caplog.messages == ["0"]


def test_a045_what_log_refuses() -> None:
    with pytest.raises(ts.errors.ArgumentError, match="nothing to log"):
        ts.log()
    with pytest.raises(ts.TracingError, match="a function that grad, vmap"):
        ts.grad(lambda x: ts.scan(lambda c, v: (ts.log("c", c), (c + v, v))[1], ts.tensor(0.0), x)[0])(ts.ones(3))
    assert float(ts.log(1.0)) == 0 and ts.log([1.0, 1.0]).tolist() == [0, 0]


def test_a046_composed_functions_have_the_effects_of_their_parts() -> None:
    @ts.jit
    def composed(x: Any) -> Any:
        return ts.dropout(x + x, 0.5)

    composed(ts.ones(4))
    assert composed.effects == {"random"}


def test_a047_bernoulli_of_a_shape() -> None:
    ts.manual_seed(3)
    a = ts.random.bernoulli(0.25, (1000, 1000))
    assert abs(float(a.to(ts.f32).mean()) - 0.25) < 3 * (0.25 * 0.75 / 1e6) ** 0.5
    ts.manual_seed(3)
    assert a.numpy().tobytes() == ts.random.bernoulli(0.25, (1000, 1000)).numpy().tobytes()


# -- A056: empty -------------------------------------------------------------------------------------------------------------
def test_a056_empty_shows_what_nobody_wrote(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_DEBUG_EMPTY", "1")
    assert np.isnan(ts.empty((2, 3)).numpy()).all() and np.isnan(ts.jit(lambda: ts.empty(4))().numpy()).all()
    assert ts.empty(2, dtype=ts.int32).tolist() == [-(2**31)] * 2 and ts.empty(1, dtype=ts.bool_).tolist() == [True]
    assert np.isnan(np.float32(ts.empty(1, dtype=ts.bf16).numpy()[0]))
    monkeypatch.setenv("TESSERA_DEBUG_EMPTY", "0")
    assert ts.empty((2, 3)).shape == (2, 3)


# -- A065: containers in results -----------------------------------------------------------------------------------------------
def test_a065_declared_containers() -> None:
    @ts.function
    def good(x: ts.Tensor[N]) -> ts.Dict[str, ts.Tensor]:
        return {"a": x, "b": x + 1}

    @ts.function
    def keys(x: ts.Tensor[N]) -> ts.Dict[str, ts.Tensor]:
        return {1: x}

    @ts.function
    def other(x: ts.Tensor[N]) -> ts.Dict[str, ts.Tensor]:
        return [x]

    @ts.function
    def short(x: ts.Tensor[N]) -> ts.Tuple[ts.Tensor, ts.Tensor]:
        return (x,)

    assert good(ts.ones(2))["b"].tolist() == [2, 2]
    with pytest.raises(ts.DTypeError, match="the key 1 of 'keys's result is a int, not a str"):
        keys(ts.ones(2))
    with pytest.raises(ts.DTypeError, match="'other' returns a list, not a dict"):
        other(ts.ones(2))
    with pytest.raises(ts.ShapeError, match="'short' returns 1 values, not 2"):
        short(ts.ones(2))


def test_a066_scalars_format() -> None:
    t = ts.tensor(1.23456)
    assert f"{t:.4f}" == "1.2346" and float(t) == pytest.approx(1.23456)


# -- eager scan: one compilation for lambdas that are alike ----------------------------------------------------------------------
FACTOR = 2.0


def running(x: Any) -> Any:
    return ts.scan(lambda c, v: (c + v * FACTOR, c), ts.tensor(0.0), x)[0]


def test_eager_scans_are_kept_and_see_new_values() -> None:
    global FACTOR
    from tessera.tracing import control
    x, w = ts.ones(3), ts.tensor(1.0)
    control._scans.clear()
    FACTOR = 2.0
    assert float(running(x)) == 6 and float(running(x)) == 6 and len(control._scans) == 1
    FACTOR = 3.0
    assert float(running(x)) == 9 and len(control._scans) == 2

    def captured(k: Any) -> float:
        return float(ts.scan(lambda c, v: (c + v * w * k, c), ts.tensor(0.0), x)[0])

    assert captured(2.0) == 6 and captured(-0.0) == 0
    w[...] = 5.0  # in place: the captured tensor is read at each call
    assert captured(2.0) == 30
    holder = type("Holder", (), {"k": 1.0})()
    assert identity(lambda c, v: (c + holder.k, v)) is None  # an object's attribute may change
    assert identity(ts.exp) is not None and identity(len) is None
    gc.collect()


# -- A002, A053: graphs without data where a division must be exact ----------------------------------------------------------------
def test_a053_exact_divisions_without_data() -> None:
    S, D, H = ts.sym("S D H")

    @ts.function
    def heads(x: ts.Tensor[N, S, D], w: ts.Tensor[D, D], h: ts.Tensor[H]) -> ts.Tensor[N, S, D]:
        n, s, d = x.shape
        q = (x @ w).reshape(n, s, h.shape[0], d // h.shape[0]).transpose(1, 2)
        return q.transpose(1, 2).reshape(n, s, d)

    @ts.function
    def four(x: ts.Tensor[N, D]) -> Any:
        return x.reshape(x.shape[0], 4, x.shape[1] // 4)

    assert "%1 = reshape(%0) {shape = (<N>, <S>, <H>, <D_part>)}" in heads.graph_ir and "f32[N, S, D_part*H]" in heads.graph_ir
    assert "f32[N, 4, D_part]" in four.graph_ir and "4*D_part" in four.graph_ir
    x = ts.randn(2, 3, 8)
    assert heads(x, ts.eye(8), ts.zeros(2)).numpy().tobytes() == x.numpy().tobytes()
    assert four(ts.ones(3, 8)).shape == (3, 4, 2)
    with pytest.raises(ts.ShapeError, match="Cannot reshape"):
        four(ts.ones(3, 7))

    @ts.function
    def wrong(x: ts.Tensor[N, D]) -> ts.Tensor[N, 4, D]:
        return x.reshape(x.shape[0], 4, x.shape[1] // 4)

    with pytest.raises(ts.ShapeError, match="D_part"):
        wrong.trace()
