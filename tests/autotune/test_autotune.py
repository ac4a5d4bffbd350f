"""The autotuner: spaces, strategies, models, and functions that tune themselves."""

# ruff: noqa: C408, F821  (fields of schedules by name; names of sizes in annotations)
import math
import os
import random
import subprocess
import sys
from collections import defaultdict
from types import SimpleNamespace

import numpy as np
import pytest

import tessera as ts
from tessera import tile
from tessera.autotune import (
    Autotuner,
    Config,
    EmpiricalModel,
    Evolutionary,
    ModelGuided,
    PerformanceModel,
    RooflineModel,
    ScheduleGenerator,
    SearchSpace,
)
from tessera.autotune import measure as measuring
from tessera.autotune.tuning import search
from tessera.errors import ArgumentError, DeviceError
from tessera.ml import PerformancePredictor

SPACE = dict(tile_m=[64, 128, 256], tile_n=[64, 128, 256], tile_k=[16, 32, 64], warps=[2, 4, 8], stages=[2, 3, 4])


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TESSERA_CACHE", str(tmp_path / "cache"))


@ts.kernel
def add(A: ts.Tile["N", ts.f32], B: ts.Tile["N", ts.f32], C: ts.Tile["N", ts.f32]):
    tile.store(C, A + B)


@ts.kernel
def product(A: ts.Tile["M", "K", ts.f32], B: ts.Tile["K", "N", ts.f32], C: ts.Tile["M", "N", ts.f32]):
    return tile.matmul(A, B, C)


def landscape(c):
    """A smooth bowl with ripples, positive."""
    x = [math.log2(c[n]) for n in SPACE]
    best = [7, 8, 5, 2, 1.6]
    return 1e-3 * (1 + sum((a - b) ** 2 for a, b in zip(x, best)) + 0.2 * math.sin(3 * sum(x)))


def drive(tuner, space, budget):
    """Measurements of a strategy on the landscape, in order."""
    tuner.space, seen = space, {}
    while len(seen) < budget:
        new = [c for c in tuner.suggest_configs(None, []) if c not in seen][:budget - len(seen)]
        if not new:
            break
        for c in new:
            seen[c] = landscape(c)
            tuner.update(c, seen[c])
    return seen


# -- spaces -------------------------------------------------------------------------------------------------------------------
def test_configurations_offer_attributes_and_items():
    c = Config(tile_m=64, warps=4)
    assert c.tile_m == c["tile_m"] == 64 and dict(c) == {"tile_m": 64, "warps": 4} == c and c == Config(dict(c))
    assert len({c, Config(warps=4, tile_m=64)}) == 1 and c.schedule() == ts.Schedule(tile_m=64, warps=4)
    with pytest.raises(AttributeError, match="no parameter 'tile_n'"):
        _ = c.tile_n


def test_a_space_is_its_product_less_what_constraints_exclude():
    constraints = [lambda c: c.tile_m * c.tile_n <= 16384, lambda c: c["warps"] * 32 <= c.tile_m]
    space = SearchSpace(SPACE)
    assert space.size == 243 == len(space.points())
    few = SearchSpace(SPACE, constraints)
    brute = sum(m * n <= 16384 and w * 32 <= m for m in SPACE["tile_m"] for n in SPACE["tile_n"] for _ in range(3)
                for w in SPACE["warps"] for _ in range(3))
    assert len(few.points()) == brute and 0 < brute < 243
    with pytest.raises(ArgumentError, match="needs a list of values"):
        SearchSpace({"tile_m": 3})
    with pytest.raises(ArgumentError, match="has no values"):
        SearchSpace({"tile_m": []})


# -- functions and kernels ---------------------------------------------------------------------------------------------------
def test_the_measured_minimum_is_chosen_and_kept(monkeypatch):
    costs = {8: 3.0, 16: 1.0, 32: 2.0}
    calls = []

    def fake(call):
        call()
        from tessera.tracing.recorder import STATE
        calls.append(STATE)
        return next(seconds)

    seconds = iter(costs[n] for n in (8, 16, 32))
    monkeypatch.setitem(measuring.METRICS, "latency", fake)

    @ts.autotune(configs=[{"tile_m": 8}, {"tile_m": 16}, {"tile_m": 32}], metric="latency")
    def f(a, b):
        return a @ b

    a, b = ts.randn(40, 40), ts.randn(40, 40)
    np.testing.assert_array_equal(f(a, b).numpy(), (a @ b).numpy())
    assert f.best_config(a, b) == {"tile_m": 16} and len(calls) == 3
    assert f.best_config(ts.randn(35, 40), b) == {"tile_m": 16} and len(calls) == 3  # one class of shapes
    assert [t.value for t in f.tune(a, b).trials] == [3.0, 1.0, 2.0]


def test_kernels_tune_on_copies_of_their_arguments():
    tuned = ts.autotune.search_space(tile_n=[16, 32], warps=[1, 2], constraints=[lambda c: c.warps * 16 <= c.tile_n])(add)
    a, c = ts.randn(100), ts.zeros(100)
    out = tuned(a, a, c)
    assert out is c
    np.testing.assert_array_equal(c.numpy(), 2 * a.numpy())
    assert len(tuned.tune(a, a, c).trials) == 3


def test_candidates_with_other_bits_are_skipped():
    @ts.kernel
    def total(X: ts.Tile["N", ts.f32], O: ts.Tile[1, ts.f32]):
        ctx = tile.context()
        acc = tile.alloc_register(1, dtype=ts.f32)
        tile.fill(acc, 0.0)
        for i in tile.range(0, X.shape[0], step=ctx.N):
            acc = acc + tile.sum(tile.load(X, (i,), shape=(ctx.N,)))
        tile.store(O, acc)

    x, o = ts.tensor(np.random.default_rng(0).standard_normal(1000).astype(np.float32)), ts.zeros(1)
    configs = [{"tile_n": 64}, {"tile_n": 16}]
    result = ts.autotune(total, configs=configs).tune(x, o)
    assert result.best == {"tile_n": 64} and "other bits" in result.trials[1].error
    fast = ts.autotune(total, configs=configs, numerics="fast").tune(x, o)
    assert all(math.isfinite(t.value) for t in fast.trials)


def test_invalid_candidates_are_skipped():
    @ts.kernel
    def halves(X: ts.Tile["N", ts.f32], O: ts.Tile["N", ts.f32]):
        ctx = tile.context()
        if ctx.N > 100:
            tile.reshape(tile.load(X, shape=(ctx.N,)), (7, 3))
        tile.store(O, tile.load(X, shape=(ctx.N,)))

    result = ts.autotune(halves, configs=[{"tile_n": 128}, {"tile_n": 32}]).tune(ts.randn(64), ts.zeros(64))
    assert result.best == {"tile_n": 32} and "cannot reshape" in result.trials[0].error


def test_parameters_of_a_function():
    @ts.autotune(configs=[{"blocks": 1}, {"blocks": 2}])
    def f(x, blocks=4):
        return x * 2 if blocks else x

    assert set(f.best_config(ts.randn(4))) == {"blocks"}


def test_inside_a_traced_function_nothing_is_measured(monkeypatch):
    tuned = ts.autotune(product, configs=[{"tile_m": 8}, {"tile_m": 16}])
    a, c = ts.randn(20, 20), ts.zeros(20, 20)
    monkeypatch.setattr(type(tuned), "tune", lambda *a, **k: pytest.fail("measured while tracing"))

    @ts.jit
    def f(a, c):
        return tuned(a, a, c)

    np.testing.assert_allclose(f(a, c).numpy(), (a @ a).numpy(), rtol=1e-5, atol=1e-5)


def test_the_function_form():
    result = ts.autotune(product, shapes=[(20, 30), (30, 40), (20, 40)], configs=[{"tile_m": 8}, {"tile_m": 16}])
    assert result.best in ({"tile_m": 8}, {"tile_m": 16}) and len(result.trials) == 2 and "best: " in str(result)


def test_another_process_measures_nothing(tmp_path):
    program = tmp_path / "tuned.py"
    program.write_text("""
import tessera as ts
@ts.autotune(configs=[{"tile_m": 32}, {"tile_m": 64}])
def f(a, b):
    return a @ b
r = f.tune(ts.ones(50, 50), ts.ones(50, 50))
print(r.cached, len(r.trials), dict(r.best))
""")
    out = [subprocess.run([sys.executable, str(program)], capture_output=True, text=True, check=True, env=dict(os.environ)).stdout.split()
           for _ in range(2)]
    assert out[0][:2] == ["False", "2"] and out[1][:2] == ["True", "0"] and out[0][2:] == out[1][2:]


@pytest.mark.parametrize("make, text", [
    (lambda: ts.autotune(metric="lateny"), "no metric 'lateny'; did you mean 'latency'"),
    (lambda: ts.autotune(configs=[{"tile_mm": 1}])(add), "no field 'tile_mm'"),
    (lambda: ts.autotune(configs=[]), "at least one configuration"),
    (lambda: ts.autotune(configs=[3]), "a configuration is a mapping"),
    (lambda: ts.autotune(confgs=[]), "did you mean 'configs'"),
    (lambda: ts.autotune(configs=[{}], space={}), "not both"),
    (lambda: ts.autotune(add, shapes=[]), "the shape of every tensor argument"),
    (lambda: ts.autotune(42), "takes a function or a kernel, not a int"),
    (lambda: ts.autotune(add, numerics="loose"), "'exact' or 'fast'"),
    (lambda: ts.autotune(add, tuner=3), "a tuner has suggest_configs"),
    (lambda: ts.autotune.evolutionary(mutation_rate=2), "mutation_rate is a probability"),
    (lambda: ts.autotune.evolutionary(population_size=1), "at least 2 configurations"),
])
def test_errors(make, text):
    with pytest.raises(ArgumentError, match=text):
        make()


def test_metrics(monkeypatch, tmp_path):
    x = ts.randn(100_000)
    call = lambda: x + 1
    assert measuring.latency(call) > 0 and measuring.METRICS["throughput"](call) < 0
    assert measuring.memory(call) >= 400_000
    assert measuring.time() <= measuring.time()
    monkeypatch.setattr(measuring, "RAPL", tmp_path)
    with pytest.raises(DeviceError, match="no readable counters"):
        measuring.energy(call)
    (tmp_path / "intel-rapl:0").mkdir()
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("1000000")
    assert measuring.energy(call) == 0.0


# -- strategies ----------------------------------------------------------------------------------------------------------------
def test_evolution_beats_random_search():
    space, wins = SearchSpace(SPACE), 0
    for seed in range(10):
        evolved = drive(Evolutionary(12, 5, 0.2, 0.7, seed), space, 60)
        rng = random.Random(1000 + seed)
        drawn = rng.sample(space.points(), len(evolved))
        wins += min(evolved.values()) <= min(map(landscape, drawn))
        assert list(evolved) == list(drive(Evolutionary(12, 5, 0.2, 0.7, seed), space, 60))
    assert wins >= 8


def test_the_model_finds_the_best_sooner():
    space = SearchSpace(SPACE)
    best = min(map(landscape, space))
    found = [min(drive(ModelGuided(trials=40, seed=s), space, 40).values()) for s in range(5)]
    assert sum(f <= 1.02 * best for f in found) >= 4


def test_the_predictor_ranks():
    hits = 0
    for seed in range(10):
        rng = np.random.default_rng(seed)
        weights, centre = rng.uniform(0.3, 2, 5), rng.uniform(0, 1, 5)
        tuner = Autotuner()
        tuner.space = SearchSpace(SPACE)
        features = tuner.extract_features(None, [(64, 64)])
        true = 1e-3 * np.exp(((features.vectors[:, :5] - centre) ** 2 * weights).sum(1)) * rng.lognormal(0, 0.01, len(features.configs))
        model = PerformancePredictor()
        model.predict(features)
        chosen = rng.choice(len(true), 100, replace=False)
        model.retrain([(features.configs[i], true[i]) for i in chosen])
        predictions = model.predict(features)
        rank = lambda v: np.argsort(np.argsort(v))
        assert np.corrcoef(rank(predictions.values), rank(true))[0, 1] > 0.7
        hits += features.configs[int(np.argmin(true))] in model.top_k_configs(predictions, k=10)
    assert hits >= 8


def test_the_specification_s_tuner_drives_a_kernel():
    class MLAutotuner(ts.Autotuner):
        def __init__(self):
            self.model = ts.ml.PerformancePredictor()
            self.history, self.retrained = [], 0

        def suggest_configs(self, kernel, input_shapes):
            features = self.extract_features(kernel, input_shapes)
            return self.model.top_k_configs(self.model.predict(features), k=10)

        def update(self, config, performance):
            self.history.append((config, performance))
            if len(self.history) % 4 == 0:
                self.model.retrain(self.history)
                self.retrained += 1

    tuner = MLAutotuner()
    result = search(add, [ts.randn(64), ts.randn(64), ts.zeros(64)], {}, SearchSpace({"tile_n": [8, 16, 32, 64], "warps": [1, 2]}), tuner,
                    lambda call: 1.0)
    assert len(result.trials) == 8 and tuner.retrained == 8 // 4


# -- models -------------------------------------------------------------------------------------------------------------------
def test_the_roofline():
    device = SimpleNamespace(peak_flops=lambda: 1e9, peak_bandwidth=lambda: 1e8)
    model = RooflineModel(device)
    assert model.bound(add.example(*[ts.zeros(1000)] * 3)) == "memory" and model.predict(add) == 12000 / 1e8
    square = product.example(*[ts.zeros(240, 240)] * 3)
    assert model.bound(square) == "compute" and model.predict(square) == 2 * 240**3 / 1e9


def test_the_specification_s_roofline_runs():
    class Roofline(ts.PerformanceModel):
        def __init__(self, device):
            self.peak_flops, self.peak_bandwidth = device.peak_flops(), device.peak_bandwidth()

        def predict(self, kernel):
            flops, nbytes = kernel.count_flops(), kernel.count_memory_bytes()
            if flops / nbytes < self.peak_flops / self.peak_bandwidth:
                return nbytes / self.peak_bandwidth
            return flops / self.peak_flops

    device = SimpleNamespace(peak_flops=lambda: 1e9, peak_bandwidth=lambda: 1e8)
    for k in (add.example(*[ts.zeros(1000)] * 3), product.example(*[ts.zeros(64, 64)] * 3)):
        assert Roofline(device).predict(k) == RooflineModel(device).predict(k)
    with pytest.raises(ArgumentError, match="has no predict"):
        PerformanceModel().predict(add)


def test_the_empirical_model_interpolates():
    model = EmpiricalModel()
    smooth = lambda c: 1e-3 * (1 + 0.1 * math.log2(c["tile_m"]) + 0.05 * math.log2(c["warps"]))
    for m in (16, 64, 256):
        for w in (1, 4, 16):
            model.record({"tile_m": m, "warps": w}, smooth({"tile_m": m, "warps": w}))
    for m in (32, 128):
        for w in (2, 8):
            c = {"tile_m": m, "warps": w}
            assert abs(model.predict(None, c) / smooth(c) - 1) < 0.2
    assert model.predict(None, {"tile_m": 64, "warps": 4}) == smooth({"tile_m": 64, "warps": 4})
    assert model.find_similar_configs({"tile_n": 3}) == [] and isinstance(model.measurements, defaultdict)
    measured = EmpiricalModel(runs=3)
    seconds = measured.predict(add.example(*[ts.zeros(100)] * 3), ts.Schedule(tile_n=32))
    assert seconds == measured.predict(add, {"tile_n": 32}) > 0


def test_the_first_schedule():
    generator = ScheduleGenerator()
    assert generator.generate(product.example(*[ts.zeros(256, 256)] * 3)) == \
        ts.Schedule(tile_m=128, tile_n=128, tile_k=32, warps=8, stages=2, vector_width=4)
    assert generator.generate(add.example(*[ts.zeros(256)] * 3)) == \
        ts.Schedule(tile_m=64, tile_n=64, tile_k=64, warps=4, stages=4, vector_width=8)
