"""Group A of the inventory, rows A001–A039: functions, contracts, shape types, dtypes."""
# ruff: noqa: F722, F821, UP037  (sizes in annotations)

from __future__ import annotations

import math
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tessera as ts
from tessera.machine import host_cpu
from tessera.runtime.executable import Executable
from tessera.tracing import recorder

sys.path.append(str(Path(__file__).parents[1] / "ops"))
import sweep

RNG = np.random.default_rng(11)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.fixture
def launches(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each compiled program that runs."""
    seen: list[str] = []
    run = Executable.__call__

    def counted(self: Executable, arrays: Any) -> Any:
        seen.append(self.manifest.name if hasattr(self.manifest, "name") else "program")
        return run(self, arrays)

    monkeypatch.setattr(Executable, "__call__", counted)
    return seen


# -- A001 … A009: functions ----------------------------------------------------------------------------------------------------
D_HIDDEN, D_OUT = 16, 4


@ts.function
def tessera_model(x: ts.Tensor["B", "D_in"]) -> ts.Tensor["B", "D_out"]:
    """A pure function with guaranteed properties."""
    return ts.linear(ts.relu(ts.linear(x, D_HIDDEN)), D_OUT)


def test_a001_a_graph_without_data_and_the_result_of_numpy() -> None:
    fresh = ts.function(tessera_model.fn)
    graph = fresh.graph_ir
    assert "%x: f32[B, D_in]" in graph and "f32[D_in, 16]" in graph and graph.count("dot_general") == 2 and not fresh.programs
    assert str(fresh.result_type) == "Tensor[B, 4]" and fresh.effects == frozenset()
    x = f32(7, 8)
    got = fresh(ts.tensor(x))
    w1, b1, w2, b2 = [np.asarray(p) for p in fresh.parameters()]
    np.testing.assert_allclose(got, np.maximum(x @ w1 + b1, 0) @ w2 + b2, rtol=1e-5, atol=1e-5)
    assert "f32[B, 8]" in fresh.graph_ir and fresh(ts.tensor(f32(3, 8))).shape == (3, 4) and len(fresh.programs) == 1


def test_a002_a_wrong_inner_size_is_refused_before_any_kernel(launches: list[str]) -> None:
    @ts.function
    def two(x: ts.Tensor["B", "D_in"], w: ts.Tensor["D_in", "D_out"]) -> ts.Tensor["B", "D_out"]:
        return ts.relu(x @ w)

    @ts.function
    def never(x: ts.Tensor["B", "D_in"], w: ts.Tensor["D_out", "D_in"]) -> ts.Tensor["B", "D_out"]:
        return x @ w

    with pytest.raises(ts.CompileError, match="D_in=3 is declared"):
        two(ts.ones(2, 3), ts.ones(4, 5))
    for use in (lambda: never.graph_ir, lambda: never.result_type, lambda: never(ts.ones(2, 3), ts.ones(4, 3))):
        with pytest.raises(ts.CompileError, match="D_in"):
            use()
    before = len(launches)
    assert two(ts.ones(2, 3), ts.ones(3, 5)).shape == (2, 5) and len(launches) > before == 0


@pytest.mark.parametrize("dtype", [ts.f16, ts.bf16], ids=str)
@pytest.mark.parametrize("compiled", [False, True])
def test_a003_stable_forms_without_being_asked(dtype: ts.DType, compiled: bool) -> None:
    def by_hand(x: Any) -> Any:
        e = ts.exp(x - x.max(dim=-1, keepdim=True))
        return e / e.sum(dim=-1, keepdim=True)

    def norm(a: np.ndarray) -> np.ndarray:
        return (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-5)

    def softmax(a: np.ndarray) -> np.ndarray:
        e = np.exp(a - a.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)

    def lse(a: np.ndarray) -> np.ndarray:
        return np.log(np.exp(a - a.max(-1, keepdims=True)).sum(-1)) + a.max(-1)

    x = ts.tensor((RNG.uniform(-1, 1, (4, 64)) * 1e4).astype(np.float32)).to(dtype)
    x[0, 0], x[1] = 1e4, -1e4
    wide = np.asarray(x).astype(np.float64)
    rounding = 2.0 ** -10 if dtype is ts.f16 else 2.0 ** -7
    cases: list[tuple[Callable[..., Any], np.ndarray]] = [
        (ts.softmax, softmax(wide)), (by_hand, softmax(wide)), (ts.layer_norm, norm(wide)),
        (lambda v: ts.logsumexp(v, -1), lse(wide)), (lambda v: ts.rms_norm(v), wide / np.sqrt((wide ** 2).mean(-1, keepdims=True) + 1e-6))]
    for fn, want in cases:
        got = np.asarray((ts.jit(lambda v, fn=fn: fn(v)) if compiled else fn)(x)).astype(np.float64)
        assert np.isfinite(got).all()
        np.testing.assert_allclose(got, want, rtol=rounding, atol=rounding)


def test_a004_fusion_by_default_and_what_was_done() -> None:
    @ts.function
    def f(x: ts.Tensor["B", 16], w: ts.Tensor[16, 32]) -> ts.Tensor["B", 32]:
        y = ts.relu(x @ w + (1.0 + 1.0))
        return y * 2 + ts.exp(-y)

    f(ts.ones(3, 16), ts.ones(16, 32))
    ops = sum(1 for op in f.programs[0].graph.body.ops if op.name not in ("return", "constant"))
    text = f.explain()
    assert len(f.kernels) == 1 < ops and "operations in 1 launches of 1 kernels" in text
    passes = re.search(r"passes: (.*)", text)
    assert passes is not None and {"merge", "dead_code", "expand_composites", "fuse"} <= set(re.findall(r"\w+", passes[1]))


def test_a007_owned_parameters_are_seeded_by_name() -> None:
    first, again = ts.function(tessera_model.fn), ts.function(tessera_model.fn)
    a, b = first(ts.ones(2, 8)), again(ts.ones(2, 8))
    assert a.numpy().tobytes() == b.numpy().tobytes() and [p.shape for p in first.parameters()] == [(8, 16), (16,), (16, 4), (4,)]
    assert list(first.named_parameters()) == ["linear.weight0", "linear.bias0", "linear.weight1", "linear.bias1"]


PRELUDE = '''
import tessera
from tessera import *
D_hidden, D_out = 16, 4
linear_layer_1, linear_layer_2 = (lambda x: linear(x, ones(8, D_hidden))), (lambda x: linear(x, ones(D_hidden, D_out)))
def traditional_model(x):
    x = linear_layer_1(x)
    x = relu(x)
    x = linear_layer_2(x)
    return x

@tessera.function
def tessera_model(x: Tensor["B", "D_in"]) -> Tensor["B", "D_out"]:
    return linear(relu(linear(x, D_hidden)), D_out)
'''


def test_a008_the_chapter_s_block_runs_after_one_import() -> None:
    scope: dict[str, Any] = {}
    exec(PRELUDE, scope)
    assert scope["traditional_model"](ts.ones(3, 8)).shape == (3, 4) and scope["tessera_model"](ts.ones(3, 8)).shape == (3, 4)
    names = ("Tensor", "Tile", "tile", "memory", "device", "prefetch", "matmul", "softmax", "relu", "linear", "gelu", "layernorm", "mse",
             "bf16", "f32", "tf32", "accum", "sqrt", "exp")
    assert not [n for n in names if n not in scope]


def test_a009_contracts_hold_for_a_hundred_random_shapes() -> None:
    @ts.function(where=["S >= 2"])
    def block(x: ts.Tensor["B", "S", "2*H"], w: ts.Tensor["2*H", "O"]) -> Any:
        y = x @ w
        return {"rows": y.sum(dim=0), "joined": ts.concat([y, y], dim=1), "last": y[:, -1]}

    contract = str(block.contract)
    assert "x: Tensor[B, S, 2*H]" in contract and "S >= 2" in contract and "effects: pure" in contract
    assert "deterministic: bit-identical" in contract and block.contract.effects == frozenset()
    assert {n: str(t) for n, t in block.result_type.items()} == {
        "rows": "Tensor[S, O]", "joined": "Tensor[B, 2*S, O]", "last": "Tensor[B, O]"}
    for _ in range(100):
        b, s, h, o = (int(n) for n in RNG.integers(1, 9, 4))
        s += 1
        out = block(ts.ones(b, s, 2 * h), ts.ones(2 * h, o))
        assert {n: t.shape for n, t in out.items()} == {"rows": (s, o), "joined": (b, 2 * s, o), "last": (b, o)}
        assert all(t.dtype is ts.f32 for t in out.values())
    with pytest.raises(ts.ConstraintError):
        block(ts.ones(2, 1, 4), ts.ones(4, 3))
    assert len(block.programs) <= 4  # sizes of 1 broadcast


# -- A010, A013, A014: precision, places, tiers ----------------------------------------------------------------------------------
def test_a010_the_sum_s_dtype_is_part_of_the_type() -> None:
    kind = ts.bf16 @ ts.accum(ts.f32)
    assert kind.storage is ts.bf16 and kind.accum is ts.f32 and str(kind) == "bf16 @ accum(f32)"
    assert ts.Tensor["B", ts.bf16 @ ts.accum(ts.f32)].policy == kind

    @ts.function
    def wide(x: ts.Tensor["N", ts.bf16 @ ts.accum(ts.f32)], y: ts.Tensor["N", ts.bf16 @ ts.accum(ts.f32)]) -> Any:
        return x @ y

    @ts.function
    def narrow(x: ts.Tensor["N", ts.bf16 @ ts.accum(ts.bf16)], y: ts.Tensor["N", ts.bf16 @ ts.accum(ts.bf16)]) -> Any:
        return x @ y

    rng = np.random.default_rng(0)
    a, b = (ts.tensor(rng.random(4096).astype(np.float32)).to(ts.bf16) for _ in range(2))
    want = float(np.asarray(a).astype(np.float64) @ np.asarray(b).astype(np.float64))
    error = [abs(float(dot(a, b)) - want) / want for dot in (wide, narrow)]
    assert error[0] < 2.0 ** -8 < error[1]


def test_a013_each_op_reports_precision_device_and_axis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESSERA_SIM_DEVICES", "1")

    @ts.function
    def seed(x: ts.Tensor["B", "D", ts.bf16 @ ts.accum(ts.f32)], weights: ts.Tensor["D", "K", ts.bf16]) -> Any:
        with ts.prefetch(weights, "L2_cache"):
            y = ts.matmul(x, weights)
        return ts.scan(lambda c, row: (c + row, row.sum()), ts.zeros_like(y[0]), y)

    declared = ts.explain(seed)
    assert {op.device for op in declared} == {"cpu"} and {op.mesh_axis for op in declared} == {None}
    product = next(op for op in declared if op.name == "dot_general")
    assert (product.dtype, product.accumulate) == ("bf16", "f32") and "test_a_language.py" in str(product.where)
    assert [op.name for op in declared if op.accumulate] == ["dot_general", "reduce_sum"]
    there = ts.explain(seed, *(t.to("gpu:0") for t in (ts.ones(3, 4, dtype=ts.bf16), ts.ones(4, 8, dtype=ts.bf16))))
    assert {op.device for op in there} == {"gpu:0"} and len(there) == len(declared)
    line = next(line for line in str(there).splitlines() if "dot_general" in line)
    assert "bf16 @ accum(f32)" in line and "gpu:0" in line and "mesh axis -" in line
    with pytest.raises(ts.errors.ArgumentError, match="takes a function"):
        ts.explain(3)  # type: ignore[arg-type]


def test_a014_three_tiers_of_one_model() -> None:
    from tessera.models import GPT2, GPT2Config
    tiny = GPT2Config(vocab_size=50, n_positions=16, n_embd=32, n_layer=2, n_head=2)
    ids = ts.randint(0, 50, (2, 8))
    beginner = GPT2(tiny)
    intermediate = GPT2(tiny, precision="mixed", attention="flash2", compile_mode="optimize").load_state_dict(beginner.state_dict())
    older = GPT2(tiny, attention="flash1", compile_mode="eager").load_state_dict(beginner.state_dict())

    @ts.kernel
    def double(x: ts.Tile["M", "N"], y: ts.Tile["M", "N"]):  # type: ignore[no-untyped-def]
        ts.tile.store(y, ts.tile.load(x) * 2)

    @ts.custom
    def expert(ids: Any) -> Any:
        with ts.schedule(tile_size=128, warps=8), ts.numerics(compute=ts.tf32, accumulate=ts.f32):
            logits = beginner(ids)
        flat = logits.reshape(-1, 50)
        return double(flat, ts.zeros_like(flat)).reshape(2, 8, 50) / 2

    want = beginner(ids).numpy()
    size = np.abs(want).max()
    assert intermediate.generate([1, 2], 3)[:2] == [1, 2] and len(beginner.generate([1], 4)) == 5
    assert want.shape == (2, 8, 50) and np.abs(older(ids) - want).max() < 1e-5 * size
    assert 0 < np.abs(intermediate(ids) - want).max() < 2.0 ** -6 * size
    assert 0 < np.abs(expert(ids) - want).max() < 2.0 ** -8 * size
    for option in ({"attention": "flash3"}, {"compile_mode": "optimise"}):
        with pytest.raises(ts.errors.ArgumentError, match="did you mean"):
            GPT2(tiny, **option)


def test_a015_the_expert_s_function_of_the_chapter() -> None:
    scope: dict[str, Any] = {"custom_kernel": ts.kernel(_copy_rows), "tessera": ts, "tf32": ts.tf32}
    exec('@tessera.custom\n'
         'def expert_model(x):\n'
         '    with tessera.schedule(tile_size=128, warps=8):\n'
         '        with tessera.numerics(accumulate=tf32, round="stochastic"):\n'
         '            return custom_kernel(x, tessera.zeros_like(x))\n', scope)
    x = ts.randn(5, 7)
    assert scope["expert_model"](x).numpy().tobytes() == x.numpy().tobytes()


def _copy_rows(x, y):  # type: ignore[no-untyped-def]
    ts.tile.store(y, ts.tile.load(x))


# -- A016 … A033: shapes -----------------------------------------------------------------------------------------------------------
def test_a016_every_op_s_shape_is_known_before_it_runs() -> None:
    checked: set[str] = set()
    for case in sweep.cases():
        names = {n: f"n{n}" for t in case.types for n in t.shape if n > 1}
        symbolic = case.attrs.keys() <= {"axis", "axes", "keepdims", "accumulate", "dtype", "perm", "reverse", "exclusive", "descending"}
        specs = [ts.Tensor[(*[(names[n] if n in names and symbolic else n) for n in t.shape], t.dtype)] if t.rank else t
                 for t in case.types]

        def fn(*xs: Any, case: Any = case) -> Any:
            return recorder.bind(case.op, *xs, **case.attrs)

        try:
            out = ts.eval_shape(fn, *specs)
        except ts.TesseraError:
            assert symbolic, case.id
            out = ts.eval_shape(fn, *case.types)
        sizes = {v: k for k, v in names.items()}
        for t, want in zip(out if isinstance(out, tuple) else (out,), case.expected(), strict=True):
            assert tuple(_size(d, sizes) for d in t.shape) == want.shape, case.id
        checked.add(case.op)
    unmet = {n for n in sweep.OPS if n not in checked} - set(sweep.NOT_UNIQUE)
    assert not unmet, unmet


def _size(d: Any, sizes: dict[str, int]) -> int:
    return d if isinstance(d, int) else int(eval(str(d).replace("//", "//"), {}, dict(sizes)))


def test_a017_names_of_sizes_without_type_parameters() -> None:
    B, S, D, H = ts.sym("B S D H")

    @ts.function
    def attention(query: ts.Tensor[B, H, S, D], key: ts.Tensor[B, H, S, D], value: ts.Tensor[B, H, S, D]) -> ts.Tensor[B, H, S, D]:
        return ts.softmax(query @ key.transpose(-2, -1) / ts.sqrt(D)) @ value

    def declared(scope: dict[str, Any]) -> Any:
        return scope["attention"]

    text = str(attention.contract)
    assert text.startswith("attention(query: Tensor[B, H, S, D], key: Tensor[B, H, S, D], value: Tensor[B, H, S, D]) -> Tensor[B, H, S, D]")
    if sys.version_info >= (3, 12):
        scope: dict[str, Any] = {"ts": ts}
        exec("@ts.function\ndef attention[B, S, D, H](query: ts.Tensor[B, H, S, D], key: ts.Tensor[B, H, S, D], "
             "value: ts.Tensor[B, H, S, D]) -> ts.Tensor[B, H, S, D]:\n"
             "    return ts.softmax(query @ key.transpose(-2, -1) / ts.sqrt(D)) @ value\n", scope)
        assert str(declared(scope).contract) == text
    q, k, v = f32(2, 3, 5, 4), f32(2, 3, 5, 4), f32(2, 3, 5, 4)
    p = q.astype(np.float64) @ k.swapaxes(-2, -1) / math.sqrt(4)
    p = np.exp(p - p.max(-1, keepdims=True))
    np.testing.assert_allclose(attention(*map(ts.tensor, (q, k, v))), p / p.sum(-1, keepdims=True) @ v, rtol=1e-5, atol=1e-6)


def test_a018_a019_static_sizes_and_types_without_running(launches: list[str]) -> None:
    B, S, D, H = ts.sym("B S D H")

    @ts.function(static_sizes="D H")
    def attention(q: ts.Tensor[B, H, S, D], k: ts.Tensor[B, H, S, D], v: ts.Tensor[B, H, S, D]) -> ts.Tensor[B, H, S, D]:
        return ts.softmax(q @ k.transpose(-2, -1) / ts.sqrt(D)) @ v

    assert str(attention.result_type) == "Tensor[B, H, S, D]" and not launches
    attention.programs.clear()
    attention._by_types.clear()
    for b, s, d, count in [(2, 3, 4, 1), (5, 3, 4, 1), (2, 9, 4, 1), (2, 3, 8, 2), (7, 6, 8, 2)]:
        x = ts.ones(b, 2, s, d)
        assert attention(x, x, x).shape == (b, 2, s, d) and len(attention.programs) == count


def test_a020_products_and_transposes_of_three_and_four_axes() -> None:
    for shape in [(2, 5, 4), (2, 3, 5, 4)]:
        a, b = f32(*shape), f32(*shape)
        x, y = ts.tensor(a), ts.tensor(b)
        np.testing.assert_allclose(x @ y.transpose(-2, -1), a @ b.swapaxes(-2, -1), rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(ts.jit(lambda u, v: u @ v.transpose(-2, -1))(x, y), a @ b.swapaxes(-2, -1), rtol=1e-5, atol=1e-5)
        assert np.array_equal(x.transpose(-2, -1), a.swapaxes(-2, -1))


def test_a024_a_broadcast_that_cannot_be() -> None:
    @ts.function
    def invalid_broadcast(x: ts.Tensor["B", "S"], y: ts.Tensor["B", "K"]) -> Any:
        return x + y

    types = ts.Tensor["B", "S"], ts.Tensor["B", "K"]
    for use in (lambda: invalid_broadcast.graph_ir, lambda: ts.eval_shape(invalid_broadcast, *types)):
        with pytest.raises(ts.CompileError) as e:
            use()
        assert "Cannot broadcast S with K" in str(e.value) and "shape mismatch in dimension 1: S vs K" in str(e.value)


def test_a027_a_constraint_by_each_spelling() -> None:
    D = ts.sym("D")

    @ts.function(where=[D % 8 == 0])
    def by_where(x: ts.Tensor["?", D]) -> Any:
        return x * 2

    @ts.function
    def by_text(x: ts.Tensor["?", "D"], constraint: "D % 8 == 0") -> Any:
        return x * 2

    @ts.function
    def by_require(x: ts.Tensor["?", D]) -> Any:
        ts.require(D % 8 == 0)
        return x * 2

    @ts.function
    def outer(y: ts.Tensor["N", "M"]) -> Any:
        return by_where(y)

    with pytest.raises(ts.ConstraintError, match="D%8 == 0 does not hold") as e:
        ts.jit(lambda y: by_where(y))(ts.ones(3, 12))
    assert "Received: D = 12" in str(e.value) and "D = 12 from the argument 'x'" in str(e.value)
    with pytest.raises(ts.ConstraintError, match="M%8 == 0 does not hold"):
        outer(ts.ones(3, 12))
    for f in (by_where, by_text, by_require, outer):
        assert f(ts.ones(3, 16)).shape == (3, 16)
        with pytest.raises(ts.ConstraintError, match="%8 == 0 does not hold"):
            f(ts.ones(3, 12))


def test_a028_a_divisibility_is_checked_once_before_a_launch(launches: list[str]) -> None:
    D = ts.sym("D")

    @ts.function(where=[D % 8 == 0])
    def f(x: ts.Tensor["?", D]) -> Any:
        return x * 2

    with pytest.raises(ts.ConstraintError, match="D%8 == 0"):
        f(ts.ones(3, 12))
    assert not launches and f(ts.ones(3, 16)).shape == (3, 16) and len(launches) >= 1
    lanes = min(8, host_cpu().vector_lanes(ts.f32))
    assert f"tile<f32[{lanes}]>" in f.tile_ir and "masked" not in f.tile_ir and 'multiples = (("D", 8),)' in f.schedule_ir
    for shape in [(1, 8), (3, 24), (7, 1000), (300, 136)]:
        a = f32(*shape)
        assert np.array_equal(f(ts.tensor(a)), a * 2)
    assert len(f.programs) == 1

    @ts.function
    def anything(x: ts.Tensor["?", D]) -> Any:
        return x * 2

    anything(ts.ones(3, 5))
    assert "masked" in anything.tile_ir


def test_a030_a031_any_number_of_axes() -> None:
    @ts.function
    def norm(x: ts.Tensor["...", "D"]) -> ts.Tensor["...", "D"]:
        return ts.layer_norm(x)

    @ts.function
    def rows(x: ts.Tensor["B", "..."]) -> ts.Tensor["B", "..."]:
        return x * 2

    for rank in range(1, 6):
        shape = tuple(range(2, 2 + rank))
        a = f32(*shape)
        want = (a - a.mean(-1, keepdims=True)) / np.sqrt(a.var(-1, keepdims=True) + 1e-5)
        got = norm(ts.tensor(a))
        assert got.shape == shape and ts.eval_shape(norm, ts.tensor(a)).shape == shape
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
        assert np.array_equal(rows(ts.tensor(a)), a * 2)


# -- A034 … A039: element types ------------------------------------------------------------------------------------------------------
def test_a034_a_declared_dtype_is_not_narrowed_to() -> None:
    @ts.function
    def attention(q: ts.Tensor["B", "H", "S", "D", ts.bf16]) -> ts.Tensor["B", "H", "S", "D", ts.bf16]:
        return ts.nn.flash_attention(q, q, q, causal=True)

    assert attention(ts.ones(1, 2, 3, 4, dtype=ts.bf16)).dtype is ts.bf16
    with pytest.raises(ts.DTypeError) as e:
        attention(ts.ones(1, 2, 3, 4))
    text = str(e.value)
    assert "Numerical type mismatch" in text and "Cannot implicitly convert from f32 to bf16" in text and ".to(bf16)" in text


def test_a035_bf16_by_fp8_equals_its_emulation_bit_for_bit() -> None:
    @ts.function
    def model(x: ts.Tensor["B", "S", "D", ts.bf16 @ ts.accum(ts.f32)],
              w: ts.Tensor["D", "K", ts.fp8_e4m3 @ ts.accum(ts.f32)]) -> ts.Tensor["B", "S", "K", ts.bf16]:
        return ts.nn.linear(x, w)

    x = RNG.integers(-8, 9, (2, 5, 64)).astype(ml_dtypes.bfloat16)  # sums of small integers are exact in f32, whatever their order
    w = RNG.integers(-8, 9, (64, 33)).astype(ml_dtypes.float8_e4m3fn)
    want = (x.astype(np.float32) @ w.astype(np.float32)).astype(ml_dtypes.bfloat16)
    got = np.asarray(model(ts.from_numpy(x), ts.from_numpy(w)))
    assert got.dtype == want.dtype and got.tobytes() == want.tobytes() and np.abs(want.astype(np.float32)).max() > 256


def test_a036_each_conversion_has_a_reason_and_none_is_silent() -> None:
    @ts.function
    def model(x: ts.Tensor["B", "D", ts.bf16 @ ts.accum(ts.f32)], w: ts.Tensor["D", "K", ts.fp8_e4m3 @ ts.accum(ts.f32)]) -> Any:
        return x @ w

    casts = [op for op in ts.explain(model) if op.name == "convert"]
    assert [(op.dtype, op.reason) for op in casts] == [("bf16", "operands meet in bf16")]
    report = ts.explain(lambda x, y: (x + y).to(ts.f16), ts.ones(3), ts.ones(3, dtype=ts.bf16))
    assert [op.reason for op in report if op.name == "convert"] == ["operands meet in f32", "written"]
    assert "# written" in str(report)
    with ts.precision("mixed"):
        mixed = ts.explain(lambda x: x @ x, ts.ones(3, 3))
    assert all("numerical policy" in str(op.reason) for op in mixed if op.name == "convert") and any(op.reason for op in mixed)
    with pytest.raises(ts.DTypeError, match="from f64 to f32"):
        ts.function(_narrow)(ts.ones(2, dtype=ts.f64))
    with pytest.raises(ts.DTypeError):
        ts.ones(2, dtype=ts.fp8_e4m3) + ts.ones(2)


def _narrow(x: ts.Tensor["N", ts.f32]) -> Any:
    return x


def test_a037_types_of_a_dtype_alone_fit_any_rank() -> None:
    def name(x: Any) -> str:
        return next(n for n, t in {"float": ts.Tensor[ts.Float32], "byte": ts.Tensor[ts.Int8]}.items() if isinstance(x, t))

    for rank in range(4):
        assert name(ts.zeros(*[2] * rank)) == "float" and name(ts.zeros(*[2] * rank, dtype=ts.int8)) == "byte"


def _decoded(code: int, exponent: int, mantissa: int, finite: bool) -> float:
    """The value of a code of a binary format with a sign: IEEE's rule, and where ``finite``, its all-ones exponent as numbers."""
    sign = -1.0 if code >> (exponent + mantissa) & 1 else 1.0
    e, m = code >> mantissa & (1 << exponent) - 1, code & (1 << mantissa) - 1
    bias, top = (1 << exponent - 1) - 1, (1 << exponent) - 1
    if e == top and not finite:
        return sign * math.inf if m == 0 else math.nan
    if e == 0:
        return sign * m * 2.0 ** (1 - bias - mantissa)
    return sign * (1 + m / 2 ** mantissa) * 2.0 ** (e - bias)


FORMATS = {"f16": (5, 10, False), "bf16": (8, 7, False), "fp8_e5m2": (5, 2, False), "fp8_e4m3": (4, 3, True),
           "fp6_e2m3": (2, 3, True), "fp6_e3m2": (3, 2, True), "fp4_e2m1": (2, 1, True)}


@pytest.mark.parametrize("name", FORMATS)
def test_a038_a039_every_code_of_small_formats(name: str) -> None:
    exponent, mantissa, finite = FORMATS[name]
    dtype: ts.DType = getattr(ts, name)
    bits = 1 + exponent + mantissa
    codes = np.arange(1 << bits, dtype=np.uint16 if bits > 8 else np.uint8)
    x = ts.from_numpy(codes.view(dtype.np))
    want = np.array([_decoded(int(c), exponent, mantissa, finite) for c in codes], np.float32)
    if name == "fp8_e4m3":
        want[[0x7F, 0xFF]] = math.nan
    for convert in (lambda t: t.to(ts.f32), ts.jit(lambda t: t.to(ts.f32))):
        got = np.asarray(convert(x))
        np.testing.assert_array_equal(got, want)
        assert np.array_equal(np.signbit(got), np.signbit(want) | (np.isnan(want) & np.signbit(got)))
    back = np.asarray(ts.jit(lambda t: t.to(dtype))(ts.from_numpy(want))).view(codes.dtype)
    assert np.array_equal(back[~np.isnan(want)], codes[~np.isnan(want)])
    assert ts.fp8 is ts.fp8_e4m3


@pytest.mark.parametrize("name", ["fp6_e2m3", "fp6_e3m2", "fp4_e2m1", "fp8_e4m3", "fp8_e5m2"])
def test_a039_quantisation_goes_to_the_nearest_number_of_the_format(name: str) -> None:
    exponent, mantissa, finite = FORMATS[name]
    table = np.array(sorted({v for c in range(1 << (1 + exponent + mantissa))
                             if math.isfinite(v := _decoded(c, exponent, mantissa, finite)) and not (name == "fp8_e4m3" and abs(v) > 448)}))
    dtype: ts.DType = getattr(ts, name)
    x = RNG.uniform(-table.max(), table.max(), 4000).astype(np.float32)
    got = np.asarray(ts.tensor(x).to(dtype).to(ts.f32))
    best = np.abs(x[:, None].astype(np.float64) - table).min(1)
    assert np.array_equal(np.abs(x.astype(np.float64) - got), best)
    normal = np.abs(x) >= 2.0 ** (2 - (1 << exponent - 1))
    assert (np.abs(got - x)[normal] <= np.abs(x)[normal] * 2.0 ** -(mantissa + 1)).all()


def test_a038_names_of_dtypes() -> None:
    for name in ["bf16", "f32", "fp8_e4m3", "fp8_e5m2", "fp8", "tf32", "int8", "int32"]:
        assert isinstance(getattr(ts, name), ts.DType)
