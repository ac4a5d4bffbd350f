"""Group E of the inventory, row by row, where no test elsewhere checks a row as it is written (tests/numerics has the rest)."""
# ruff: noqa: F821  (sizes in annotations)

import logging
import random
import re
import threading
import time
from typing import Any

import numpy as np
import pytest

import tessera as ts
from tessera.types.policy import NumericalPolicy, RoundingMode

RNG = np.random.default_rng(0)


def f32(x: Any) -> Any:
    return np.asarray(x).astype(np.float32)


def to(x: Any, d: Any) -> Any:
    return np.asarray(x, np.float32).astype(d.np).astype(np.float32)


# -- policies --------------------------------------------------------------------------------------------------------------------
def test_e001_fields_are_typed_default_compare_and_hash() -> None:
    p = NumericalPolicy(storage="bf16", rounding="stochastic")
    assert (p.storage, p.compute, p.accumulate) == (ts.bf16, ts.bf16, ts.f32) and isinstance(p.storage, ts.DType)
    assert p.rounding is RoundingMode.STOCHASTIC and p.saturate is False and p.denorm_mode == "preserve"
    plain = NumericalPolicy()
    assert (plain.storage, plain.compute, plain.accumulate, plain.rounding) == (ts.f32, ts.f32, ts.f32, RoundingMode.NEAREST)
    assert p == NumericalPolicy(storage=ts.bf16, rounding=RoundingMode.STOCHASTIC) and hash(p) == hash(p.replace())
    assert p != plain and len({p, plain, p.replace()}) == 2


def test_e002_spellings_are_one_enum() -> None:
    assert RoundingMode("nearest") is RoundingMode("rte") is RoundingMode("rne") is RoundingMode.NEAREST
    assert RoundingMode("stochastic") is RoundingMode.STOCHASTIC and RoundingMode("rtz") is RoundingMode.TOWARD_ZERO
    assert ts.dtype is ts.DType and NumericalPolicy(storage="float32").storage is ts.f32
    with pytest.raises(ValueError, match="odd"):
        RoundingMode("odd")


def test_e003_subnormals_are_flushed_in_the_program_itself() -> None:
    def program() -> str:
        return str(ts.jit(lambda x, y: x * y).trace(ts.ones(4), ts.ones(4)))

    kept = program()
    with ts.numerics(denorm_mode="flush"):
        assert program().count("flush_subnormals(") == 3 and "flush" not in kept  # two operands and the result
        assert float(ts.tensor(1e-40) * 1) == 0
    assert float(ts.tensor(1e-40) * 1) > 0


def test_e004_saturation_at_a_million() -> None:
    for saturate, want in ((True, 448.0), (False, np.nan)):
        with ts.numerics(storage=ts.fp8_e4m3, compute=ts.f32, saturate=saturate):
            assert np.array_equal(f32(ts.tensor([1e6]) * 1), [want], equal_nan=True)


EIGHT = ts.Policy(storage=ts.fp8_e4m3, compute=ts.bf16, accumulate=ts.f32)
SEED = ts.Policy(storage=ts.fp8_e4m3, compute=ts.bf16, accumulate=ts.f32, rounding="stochastic", saturate=True)


def test_e005_a_policy_is_the_last_item_of_a_type() -> None:
    @ts.function
    def f(x: ts.Tensor["B", "D", SEED]) -> Any:
        return x * 100, (x + 0.3) * 1

    assert ts.Policy is NumericalPolicy and ts.Tensor["B", "D", SEED].policy == SEED
    x = np.full((64, 100), 9.0, np.float32).astype(ts.fp8_e4m3.np)
    large, near = f(ts.tensor(x))
    assert large.dtype is near.dtype is ts.fp8_e4m3 and set(np.unique(f32(large))) == {448.0}  # 900 saturates
    assert set(np.unique(f32(near))) == {9.0, 10.0} and abs(f32(near).mean() - 9.3) < 0.05  # rounded by chance


def test_e006_eight_bits_in_memory_sixteen_at_work_thirty_two_in_sums() -> None:
    @ts.function
    def f(x: ts.Tensor["M", "K", EIGHT], w: ts.Tensor["K", "N", EIGHT]) -> Any:
        return x @ w, x * 1.3

    a, b = (RNG.integers(-3, 4, s).astype(ts.fp8_e4m3.np) for s in ((5, 64), (64, 7)))
    product, scaled = f(ts.tensor(a), ts.tensor(b))
    exact = f32(a) @ f32(b)  # whole numbers: every order of the sum gives these bits
    assert product.dtype is ts.fp8_e4m3 and product.nbytes == product.size and np.array_equal(f32(product), to(exact, ts.fp8_e4m3))
    assert np.array_equal(f32(scaled), to(to(f32(a) * to(1.3, ts.fp8_e4m3), ts.bf16), ts.fp8_e4m3))  # a number takes its tensor's dtype
    graph = str(f.trace(ts.tensor(a), ts.tensor(b)))
    assert "bf16[" in graph and "accumulate = f32" in graph


def test_e007_e008_registered_and_inherited_policies() -> None:
    assert ts.numerics.get("training") == ts.TrainingPolicy() and ts.numerics.get("inference") == ts.InferencePolicy()
    t, i = ts.TrainingPolicy(), ts.InferencePolicy()
    assert (t.storage, t.compute, t.accumulate, t.rounding, t.saturate) == (ts.bf16, ts.bf16, ts.f32, "nearest", False)
    assert (i.storage, i.compute, i.accumulate, i.rounding, i.saturate) == (ts.fp8_e4m3, ts.fp8_e4m3, ts.bf16, "stochastic", True)

    class Wide(ts.TrainingPolicy):
        accumulate = ts.f64

    assert (Wide().storage, Wide().accumulate) == (ts.bf16, ts.f64)
    with ts.numerics(Wide) as p:
        assert p.accumulate is ts.f64


def test_e010_e012_keywords_have_short_forms(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="tessera.numerics"), ts.numerics(accumulate=ts.tf32, round="stochastic") as p:
        assert p.rounding is RoundingMode.STOCHASTIC and p.accumulate is ts.tf32
    assert "no machine sums in tf32" in caplog.text
    x = ts.tensor([[1 + 2**-11 + 2**-20]])  # tf32 has ten bits of fraction
    with ts.numerics(accumulate=ts.tf32):
        assert float((x @ ts.ones(1, 1))[0, 0]) == 1 + 2**-10 and float((x * 1.0)[0, 0]) != 1 + 2**-10
    with ts.precision(compute=ts.bf16, accumulate=ts.f32, store=ts.fp8) as short:
        assert short == ts.Policy(storage=ts.fp8, compute=ts.bf16, accumulate=ts.f32) and (ts.ones(2) * 2).dtype is ts.fp8


def test_e011_the_preset_mixed() -> None:
    x = ts.tensor([[1 + 2**-8 + 2**-10]])
    for name, dtype in (("mixed", ts.bf16), ("mixed_fp16", ts.f16), ("bf16", ts.bf16)):
        with ts.precision(name) as p:
            assert (p.compute, p.accumulate) == (dtype, ts.f32)
            graph = str(ts.jit(lambda x: x @ x).trace(x))
            assert f"{dtype}[1, 1]" in graph and "accumulate = f32" in graph
            assert float((x @ ts.ones(1, 1))[0, 0]) == float(np.float32(x[0, 0]).astype(dtype.np))


def test_e016_inference_multiplies_integers() -> None:
    w = ts.tensor(RNG.normal(size=(256, 128)).astype(np.float32))
    model = ts.jit(ts.quantization_aware(lambda x, w: x @ w).eval())
    model(ts.ones(64, 256), w)
    kernels = model.schedule_ir
    assert re.search(r'template\(.*template = "matmul".*accumulate = int32', kernels)
    assert "buf<int8[256, 128]>" in kernels  # the weights, as the product reads them


# -- stability -------------------------------------------------------------------------------------------------------------------
def test_e017_e018_e019_the_chapters_examples_after_a_star_import() -> None:
    import builtins
    space: dict[str, Any] = {}
    exec("from tessera.stable import *", space)
    assert not set(space) & set(dir(builtins)) - {"__builtins__", "__name__", "__doc__"} and "logsumexp" in space
    exec("from tessera import *\n"
         "def stable_softmax(x):\n"
         "    x_max = x.max(dim=-1, keepdim=True)\n"
         "    exp_x = exp(x - x_max)\n"
         "    return exp_x / exp_x.sum(dim=-1, keepdim=True)\n"
         "def stable_logsumexp(x):\n"
         "    x_max = x.max()\n"
         "    return x_max + log(exp(x - x_max).sum())\n", space)
    import mpmath
    x = ts.tensor([1e4, 1e4 + 1])
    for f in (space["stable_softmax"], ts.jit(space["stable_softmax"])):
        np.testing.assert_allclose(f(x), [1 / (1 + np.e), np.e / (1 + np.e)], rtol=1e-6)
    values = RNG.normal(size=50) * 30
    exact = float(mpmath.log(mpmath.fsum(mpmath.exp(float(v)) for v in values)))
    for f in (space["stable_logsumexp"], ts.stable.logsumexp):
        assert abs(float(f(ts.tensor(values))) - exact) < 1e-6
    assert float(ts.stable.logsumexp(ts.tensor([-np.inf, 2.0]))) == 2 and float(ts.stable.logsumexp(ts.tensor([-np.inf] * 2))) == -np.inf


def test_e023_one_and_ten_million_small_terms() -> None:
    x = np.full(10_000_001, 1e-8, np.float32)
    x[0] = 1
    exact = x.sum(dtype=np.float64)
    got = float(ts.kahan_sum(lambda x: x.sum())(ts.tensor(x)))
    assert abs(got - exact) <= np.spacing(np.float32(exact)) and float(ts.summation.kahan(lambda x: sum(x))(ts.tensor(x))) == got
    assert ts.summation.kahan_sum is ts.summation.kahan  # E045


def test_e025_attention_over_eight_thousand_large_tokens() -> None:
    size = (1, 1, 8192, 16)
    q, k = (ts.tensor((RNG.normal(size=size) * 1e3).astype(np.float32)).to(ts.bf16) for _ in range(2))
    v = ts.tensor(RNG.normal(size=size).astype(np.float32)).to(ts.bf16)

    @ts.stable.attention
    def attend(q: Any, k: Any, v: Any) -> Any:
        return ts.stable.scaled_dot_product_attention(q, k, v)

    last = q[:, :, -64:]  # (the last 64 queries see all 8,192 keys)
    got = f32(attend(last, k, v)).astype(np.float64)[0, 0]
    wide = [np.asarray(t).astype(np.float64)[0, 0] for t in (last, k, v)]
    s = wide[0] @ wide[1].T / 4
    p = np.exp(s - s.max(-1, keepdims=True))
    assert np.isfinite(got).all()
    assert np.quantile(np.abs(got - p @ wide[2] / p.sum(-1, keepdims=True)), 0.99) < 2e-2


# -- determinism -----------------------------------------------------------------------------------------------------------------
def test_e029_ten_runs_one_and_two_threads() -> None:
    def f(x: Any, table: Any, index: Any) -> Any:
        h = ts.attention(x[None, None], x[None, None], x[None, None], causal=True)[0, 0]
        return x @ x.mT, h, ts.scatter(table, index, x, mode="add"), ts.dropout(x, 0.3)

    x, index = ts.randn(96, 64), ts.randint(0, 7, (96,))
    assert ts.verify_determinism(ts.jit(f), x, ts.zeros(7, 64), index, num_runs=10, threads=(1, 2), verbose=False)


def test_e031_any_order_of_arrival_gives_the_same_bits() -> None:
    values = [ts.tensor((RNG.normal(size=40) * 10.0**i).astype(np.float32)) for i in range(-4, 4)]
    seen = set()
    for _ in range(5):
        slots: list[Any] = [None] * 8
        order: list[int] = []

        def rank(i: int, slots: Any = slots, order: Any = order) -> None:
            time.sleep(random.random() * 5e-3)
            order.append(i)
            slots[i] = values[i] * 1

        threads = [threading.Thread(target=rank, args=(i,)) for i in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        seen.add(ts.deterministic.digest(ts.deterministic.all_reduce(slots)))
    assert len(seen) == 1


def split_over(monkeypatch: pytest.MonkeyPatch, n: int, f: Any, x: Any, first: Any) -> Any:
    """``f(rows, numbers of the rows)`` on ``n`` simulated devices, each with its share of the rows of x."""
    monkeypatch.setenv("TESSERA_SIM_DEVICES", str(n))
    share = x.shape[0] // n
    parts = []
    for i in range(n):
        with ts.device(f"gpu:{i}"):
            mine = ts.tensor(x.numpy()[i * share:(i + 1) * share])
            assert mine.device == f"gpu:{i}"
            parts.append(f(mine, first + i * share))
    return np.concatenate([np.asarray(p) for p in parts])


@pytest.mark.parametrize("draw", [lambda x, key: ts.deterministic.dropout(x, p=0.3, key=key),
                                  lambda x, key: ts.random.categorical(x, key=key)], ids=["E032 dropout", "E048 sampling"])
def test_e032_e048_draws_do_not_depend_on_the_number_of_devices(draw: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, key = ts.tensor(RNG.normal(size=(8, 50)).astype(np.float32)), ts.random.key(5)

    def of_rows(rows: Any, first: Any) -> Any:  # a draw belongs to its row's number in the whole batch
        numbers = ts.arange(rows.shape[0]) + first
        return ts.vmap(lambda row, n: draw(row, ts.random.fold_in(key, n)))(rows, numbers)

    found = {n: split_over(monkeypatch, n, ts.jit(of_rows), x, ts.tensor(0)) for n in (1, 2, 4)}
    assert np.array_equal(found[1], found[2]) and np.array_equal(found[1], found[4])
    assert len({row.tobytes() for row in np.atleast_2d(found[1])}) > 0 and not np.array_equal(
        found[1], split_over(monkeypatch, 1, ts.jit(of_rows), x, ts.tensor(8)))


def test_e047_equal_scores_choose_the_lowest_expert_on_any_number_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = ts.tensor(RNG.integers(0, 3, (16, 8)).astype(np.float32))  # full of ties
    want = np.argsort(-scores.numpy(), axis=-1, kind="stable")[:, :2]
    gate = ts.jit(lambda rows, first: ts.topk(rows, 2)[1])
    for n in (1, 2, 4):
        assert np.array_equal(split_over(monkeypatch, n, gate, scores, ts.tensor(0)), want)


def test_e033_the_chapters_verification_runs(capsys: pytest.CaptureFixture[str]) -> None:
    space: dict[str, Any] = {"tessera": ts}
    exec('''
def verify_determinism(fn, input, num_runs=10):
    results = []
    for i in range(num_runs):
        with tessera.deterministic(seed=0):
            results.append(fn(input))
    for i in range(1, num_runs):
        assert tessera.allclose(results[0], results[i], rtol=0, atol=0)
    print("✓ Function is deterministic")
''', space)
    space["verify_determinism"](lambda x: ts.dropout(ts.softmax(x @ x, -1), 0.2), ts.randn(20, 20))
    assert "✓ Function is deterministic" in capsys.readouterr().out
    with pytest.raises(AssertionError):
        space["verify_determinism"](lambda x: x * np.random.default_rng().random(), ts.ones(3))


# -- mixed precision -------------------------------------------------------------------------------------------------------------
def test_e036_a_scale_rescues_what_f16_loses() -> None:
    def gradient(scale: float) -> Any:
        @ts.mixed_precision(compute=ts.f16, grad_scale=scale)
        def step(x: Any) -> Any:
            def loss(x: Any) -> Any:
                with ts.autocast(storage=ts.f16):
                    return (x.to(ts.f16)[None] @ ts.full((4, 1), 2e-4, dtype=ts.f16)).to(ts.f32).sum() * 1e-4 * ts.grad_scale()
            return ts.unscale_grads(ts.grad(loss)(x))
        return np.asarray(step(ts.ones(4)))

    assert (gradient(1.0) == 0).all()
    np.testing.assert_allclose(gradient(2.0**14), 2e-8, rtol=2e-3)


class Net(ts.nn.Module):
    def __init__(self, dtype: Any = ts.f32):
        self.first, self.second = ts.nn.Linear(6, 16, dtype=dtype), ts.nn.Linear(16, 1, dtype=dtype)

    def forward(self, x: Any) -> Any:
        return self.second(ts.tanh(self.first(x)))


def test_e036_e039_e040_the_chapters_training_step() -> None:
    x = RNG.normal(size=(64, 6)).astype(np.float32)
    data, target = ts.tensor(x), ts.tensor(np.sin(x[:, :1]) + 0.5 * x[:, 1:2])
    start = Net().state_dict()

    def train(mixed: bool) -> Any:
        model = Net().load_state_dict(start)
        optimizer = ts.optim.Adam(model, lr=0.02)

        def step(batch: Any) -> Any:
            with ts.autocast(enabled=mixed):
                output = model(batch)
            loss = ((output - target) ** 2).mean()
            scaled_loss = loss * ts.grad_scale()
            grads = ts.grad(scaled_loss, model)
            grads = ts.unscale_grads(grads)
            optimizer.step(grads)
            return loss

        run = ts.jit(ts.mixed_precision(step, compute=ts.bf16, accumulate=ts.f32, grad_scale=1024) if mixed else step)
        return np.array([float(run(data)) for _ in range(60)]), str(run.graph_ir)

    (single, _), (low, graph) = train(False), train(True)
    assert single[-1] < 0.3 * single[0] and np.abs(low / single - 1).max() < 0.02
    assert "bf16[" in graph and not np.array_equal(low, single)


@pytest.mark.parametrize("traced", [False, True])
def test_e039_an_overflow_skips_the_step(traced: bool) -> None:
    params = {"w": ts.ones(3)}
    optimizer = ts.optim.Adam(params, lr=0.1)

    @ts.mixed_precision(grad_scale=8)
    def step(g: Any) -> Any:
        grads = ts.unscale_grads({"w": g})
        optimizer.step(grads)
        return grads["w"]

    run = ts.jit(step) if traced else step
    assert run(ts.full((3,), 16.0)).tolist() == [2.0] * 3
    before = params["w"].tolist(), int(optimizer.state["w"]["step"])
    run(ts.tensor([np.inf, 1.0, 1.0]))
    assert (params["w"].tolist(), int(optimizer.state["w"]["step"])) == before  # not even the momentum moves it
    run(ts.ones(3))
    assert params["w"].tolist() != before[0] and int(optimizer.state["w"]["step"]) == 2


# -- accumulators ----------------------------------------------------------------------------------------------------------------
def exact_attention(q: Any, k: Any, v: Any) -> Any:
    q, k, v = (np.asarray(x).astype(np.float64) for x in (q, k, v))
    s = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    s = np.where(np.tril(np.ones(s.shape[-2:], bool)), s, -np.inf)
    p = np.exp(s - s.max(-1, keepdims=True))
    return p @ v / p.sum(-1, keepdims=True)


@pytest.mark.parametrize("dtype", [ts.f32, ts.bf16], ids=str)
def test_e046_accumulators_of_attention(dtype: Any) -> None:
    """The error of each format, measured: a rounding of the scores and one of the sum for each block of keys."""
    q, k, v = (ts.tensor(RNG.normal(size=(1, 2, 700, 32)).astype(np.float32)).to(dtype) for _ in range(3))
    want, found = exact_attention(q, k, v), {}
    for accumulate in (None, ts.f32, ts.f16, ts.bf16, ts.f64):
        f = ts.jit(lambda q, k, v, a=accumulate: ts.attention(q, k, v, causal=True, accumulate=a).to(ts.f32))
        out = f(q, k, v)
        assert np.array_equal(out, ts.flash_attention(q, k, v, causal=True, accumulate=accumulate).to(ts.f32))
        assert ("accumulate" in f.schedule_ir.split("template =")[1]) == (accumulate in (ts.f16, ts.bf16))  # one pass over the keys
        found[accumulate] = np.abs(np.asarray(out) - want).max() if dtype is ts.f32 else np.abs(np.asarray(out) - want).mean()
    assert found[None] == found[ts.f32] and found[ts.f16] < 2e-3 and found[ts.bf16] < 3e-2
    if dtype is ts.f32:
        assert found[ts.f64] <= found[ts.f32] < 2e-6 and 1e-5 < found[ts.f16] < found[ts.bf16]


def test_e046_the_policy_the_derivative_and_what_is_refused() -> None:
    q = ts.tensor(RNG.normal(size=(1, 1, 40, 16)).astype(np.float32))
    with ts.numerics(accumulate=ts.bf16):
        by_policy = ts.attention(q, q, q)
    assert np.array_equal(by_policy, ts.attention(q, q, q, accumulate=ts.bf16)) and not np.array_equal(by_policy, ts.attention(q, q, q))
    loss = lambda a: lambda q: (ts.attention(q, q, q, accumulate=a) ** 2).sum()
    exact, low = (ts.grad(loss(a))(q).numpy() for a in (None, ts.bf16))
    assert 0 < np.abs(low - exact).max() < 2e-2 * np.abs(exact).max()
    large = ts.attention(q * 1e3, q * 1e3, q, accumulate=ts.bf16)  # scores of 1e6: the softmax stays stable
    assert np.isfinite(large.numpy()).all()
    sizes = ts.jit(lambda q: ts.attention(q, q, q, accumulate=ts.f16))  # by its definition where a head's extent is symbolic
    assert np.abs(np.asarray(sizes(q)) - np.asarray(ts.attention(q, q, q))).max() < 2e-3
    hand = lambda q: ts.softmax((q @ q.mT) * 0.25, -1) @ q  # whose sums in bf16 are not those of attention
    plain, small = ts.jit(hand), ts.jit(hand)
    heads = ts.concat([q, q], 1)
    plain(heads)
    with ts.numerics(accumulate=ts.bf16):
        small(heads)
    assert "attention" in plain.schedule_ir and "attention" not in small.schedule_ir
    for wrong in (ts.int32, ts.fp8, ts.tf32):
        with pytest.raises(ts.errors.DTypeError, match="float format of 16 bits or more"):
            ts.attention(q, q, q, accumulate=wrong)


# -- rounding, sums, memory --------------------------------------------------------------------------------------------------------
def test_e043_every_op_of_a_function_rounds_by_chance() -> None:
    @ts.rounding.stochastic
    def f(x: Any) -> Any:
        return x * 1 + 0.003

    x = ts.ones(100_000, dtype=ts.bf16)
    out = []
    for _ in range(2):
        ts.manual_seed(11)
        out.append(f32(f(x)))
    exact, step = 1 + float(np.float32(0.003).astype(ts.bf16.np)), 2.0**-7
    share = (exact - 1) / step
    assert np.array_equal(*out) and set(np.unique(out[0])) == {1.0, 1 + step}
    assert abs(out[0].mean(dtype=np.float64) - exact) < 3 * step * np.sqrt(share * (1 - share) / x.size)


def test_e050_a_training_step_in_sixteen_bits_takes_half_the_memory() -> None:
    def loss(ws: Any, x: Any) -> Any:
        qkv, o, up, down = ws
        q, k, v = (t.reshape(2, 64, 4, 16).transpose(0, 2, 1, 3) for t in ts.split(ts.layer_norm(x) @ qkv, 3, dim=-1))
        x = x + ts.attention(q, k, v, causal=True).transpose(0, 2, 1, 3).reshape(2, 64, 64) @ o
        return (ts.gelu(ts.layer_norm(x) @ up) @ down).sum().to(ts.f32)

    total = {}
    for dtype in (ts.f32, ts.bf16):
        ws = tuple(ts.zeros(s, dtype=dtype) for s in ((64, 192), (64, 64), (64, 256), (256, 64)))
        f = ts.jit(loss)
        f(ws, ts.zeros(2, 64, 64, dtype=dtype))
        arena = f.programs[0].executable.arena
        total[dtype] = arena + sum(w.nbytes for w in ws) + 2 * 64 * 64 * dtype.itemsize
    assert total[ts.bf16] <= 0.55 * total[ts.f32], total
