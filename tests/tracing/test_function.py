"""Traced functions: contracts, symbolic sizes, static arguments, trees, captured tensors, donation, effects."""
# ruff: noqa: F722, F821  (sizes in annotations)

import math
import sys  # noqa: F401  (in a condition of pytest)
import threading
import warnings
from typing import Annotated, Optional

import numpy as np
import pytest

import tessera as ts
from tessera import errors

B, S, D, H = ts.sym("B S D H")


def softmax(a):
    e = np.exp(a - a.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


# -- symbolic sizes --------------------------------------------------------------------------------------------------------
def test_one_program_serves_every_size(rng):
    @ts.function
    def f(x: ts.Tensor["B", "D_in"], w: ts.Tensor["D_in", "D_out"]) -> ts.Tensor["B", "D_out"]:
        return ts.softmax(x @ w)

    for b, i, o in [(2, 3, 4), (7, 5, 5), (1, 1, 1), (64, 2, 3)]:
        x, w = rng.normal(size=(b, i)).astype(np.float32), rng.normal(size=(i, o)).astype(np.float32)
        np.testing.assert_allclose(f(ts.tensor(x), ts.tensor(w)), softmax(x @ w), rtol=1e-5)
    assert len(f.programs) == 1
    assert f.programs[0].graph.attrs["sizes"] == ("B", "D_in", "D_out")


def test_graph_and_types_need_no_data():
    @ts.function
    def attention(q: ts.Tensor[B, H, S, D], k: ts.Tensor[B, H, S, D], v: ts.Tensor[B, H, S, D]) -> ts.Tensor[B, H, S, D]:
        return ts.softmax(q @ k.transpose(-2, -1)) @ v

    assert str(attention.result_type) == "Tensor[B, H, S, D]"
    assert attention.graph_ir.startswith("graph @attention(%q: f32[B, H, S, D]")
    assert "attention(q: Tensor[B, H, S, D]" in str(attention.contract) and "effects: pure" in str(attention.contract)
    assert attention.contract.deterministic and attention.contract.effects == frozenset()


def test_a_symbol_binds_to_one_size_in_a_call():
    @ts.function
    def add(x: ts.Tensor["B", "S"], y: ts.Tensor["B", "S"]):
        return x + y

    assert add(ts.ones(2, 3), ts.ones(2, 3)).shape == (2, 3)
    with pytest.raises(errors.ShapeError, match="'y' has size 4 in dimension 1, where S=3 is declared"):
        add(ts.ones(2, 3), ts.ones(2, 4))


def test_symbols_do_not_mix():
    @ts.function
    def invalid(x: ts.Tensor["B", "S"], y: ts.Tensor["B", "K"]):
        return x + y

    with pytest.raises(errors.ShapeError, match="Cannot broadcast S with K: shape mismatch in dimension 1: S vs K"):
        invalid.graph_ir  # noqa: B018
    with pytest.raises(errors.ShapeError):
        invalid(ts.ones(2, 3), ts.ones(2, 3))


def test_broadcasting_is_symbolic():
    @ts.function
    def f(x: ts.Tensor["B", "S", "D"], y: ts.Tensor["D"], z: ts.Tensor["1", "S", "1"]):
        return x + y + z

    assert str(f.result_type) == "Tensor[B, S, D]"
    assert f(ts.ones(2, 3, 4), ts.ones(4), ts.ones(1, 3, 1)).tolist() == np.full((2, 3, 4), 3.0).tolist()
    with pytest.raises(errors.ShapeError, match="'z' has size 2 in dimension 0, where 1 is declared"):
        f(ts.ones(2, 3, 4), ts.ones(4), ts.ones(2, 3, 1))


def test_expressions_and_suffixes():
    @ts.function
    def qkv(x: ts.Tensor["S", "D"], w: ts.Tensor["D", "3*D"]) -> ts.Tensor["S", "3*D"]:
        return x @ w

    assert qkv(ts.ones(2, 4), ts.ones(4, 12)).shape == (2, 12)
    with pytest.raises(errors.ShapeError, match=r"'w' has size 13 in dimension 1, where 3\*D=12 is declared"):
        qkv(ts.ones(2, 4), ts.ones(4, 13))
    assert ts.Tensor["1M", ts.fp8].dims == (2**20,) and ts.Tensor["128"].dims == (128,)


def test_anonymous_sizes_and_any_rank():
    @ts.function
    def head(x: ts.Tensor["?", 8]) -> ts.Tensor["?", 2]:
        return x @ ts.ones(8, 2)

    for n in (1, 7, 64):
        assert head(ts.ones(n, 8)).shape == (n, 2)
    assert len(head.programs) == 1
    with pytest.raises(errors.ShapeError, match="'x' has size 7 in dimension 1, where 8 is declared"):
        head(ts.ones(3, 7))

    @ts.function
    def norm(x: ts.Tensor["...", "D"]) -> ts.Tensor["...", "D"]:
        return x - x.mean(dim=-1, keepdim=True)

    for shape in [(4,), (2, 4), (1, 2, 3, 1, 4)]:
        assert norm(ts.ones(*shape)).shape == shape
    trailing = ts.function(_first_row)
    assert trailing(ts.ones(3)).shape == () and trailing(ts.ones(3, 2, 2)).shape == (2, 2)


def _first_row(x: ts.Tensor["B", "..."]):
    return x[0]


def test_annotated_and_optional_mean_the_same():
    @ts.function
    def f(x: Annotated[ts.Tensor, "B 4 f32"], mask: Optional[ts.Tensor["B"]] = None):  # noqa: UP045
        return x if mask is None else x * mask.unsqueeze(1)

    assert str(f.contract.params["x"]) == "Tensor[B, 4, f32]"
    assert f(ts.ones(2, 4)).shape == (2, 4) and f(ts.ones(2, 4), ts.zeros(2)).sum().item() == 0
    with pytest.raises(errors.ShapeError):
        f(ts.ones(2, 4), ts.zeros(3))


def test_dtype_only_annotations_dispatch():
    assert isinstance(ts.ones(2, 3), ts.Tensor[ts.Float32]) and not isinstance(ts.ones(2), ts.Tensor[ts.Int8])
    assert isinstance(ts.ones(2, 3), ts.Tensor["B", 3]) and not isinstance(ts.ones(2, 3), ts.Tensor["B", "B"])

    @ts.function
    def f(x: ts.Tensor[ts.int8]):
        return x

    with pytest.raises(errors.DTypeError, match="Cannot implicitly convert from f32 to int8"):
        f(ts.ones(2))


def test_policies_in_annotations():
    spec = ts.Tensor[B, D, ts.bf16 @ ts.accum(ts.f32)]
    assert spec.policy.storage is ts.bf16 and spec.policy.accumulate is ts.f32 and "accum(f32)" in str(spec)

    @ts.function
    def f(x: ts.Tensor["N", ts.fp8_e4m3]):
        return x

    with pytest.raises(errors.DTypeError, match="Cannot implicitly convert from bf16 to fp8_e4m3"):
        f(ts.ones(3, dtype=ts.bf16))


def test_declared_floats_widen_but_never_narrow():
    @ts.function
    def f(x: ts.Tensor["N", ts.f32]) -> ts.Tensor["N", ts.f64]:
        return x * 2

    assert f(ts.ones(3, dtype=ts.bf16)).dtype is ts.f64
    with pytest.raises(errors.DTypeError, match="from f64 to f32"):
        f(ts.ones(3, dtype=ts.f64))


def test_results_are_checked():
    @ts.function
    def f(x: ts.Tensor["B", "D"]) -> ts.Tensor["B"]:
        return x.sum(dim=0)

    with pytest.raises(errors.ShapeError, match="the result"):
        f(ts.ones(2, 3))


def test_constraints():
    @ts.function(where=[D % 8 == 0, "B <= 4"])
    def f(x: ts.Tensor[B, D]):
        ts.require(x.shape[1] >= 16)
        return x

    assert f(ts.ones(1, 16)).shape == (1, 16)
    for shape, text in [((1, 12), "D%8 == 0 does not hold"), ((5, 16), "B <= 4 does not hold"), ((1, 8), "D >= 16 does not hold")]:
        with pytest.raises(errors.ConstraintError, match=text):
            f(ts.ones(*shape))
    with pytest.raises(errors.ConstraintError):
        ts.require(3 > 4)
    with pytest.raises(errors.ConstraintError, match="not a constraint"):
        ts.function(where=["hello"])(lambda x: x).declared  # noqa: B018


def test_sizes_compute_and_compare():
    @ts.function
    def f(x: ts.Tensor["B", "S", "D"], h: int = 2):
        b, s, d = x.shape
        assert d == x.shape[2] and d != s and b * s == s * b
        return x.reshape(b, s, 2, d // 2).transpose(1, 2).reshape(b * 2, s, -1), b + s

    y, n = f(ts.ones(2, 3, 4))
    assert y.shape == (4, 3, 2) and n.item() == 5 and n.dtype is ts.int64
    y, n = f(ts.ones(1, 5, 8))
    assert y.shape == (2, 5, 4) and n.item() == 6 and len(f.programs) == 2  # D // 2 must be exact: a program for each D
    f(ts.ones(7, 5, 8))
    assert len(f.programs) == 2
    with pytest.raises(errors.ShapeError, match="Cannot reshape"):
        f(ts.ones(1, 5, 7))


def test_python_needing_a_value_specialises_on_that_size_alone():
    @ts.function
    def f(x: ts.Tensor["B", "D"]):
        return x / math.sqrt(x.shape[1])

    assert f(ts.ones(2, 4)).tolist() == [[0.5] * 4] * 2
    assert f(ts.ones(3, 4)).shape == (3, 4) and len(f.programs) == 1
    assert f(ts.ones(3, 16))[0, 0].item() == 0.25 and len(f.programs) == 2


def test_declared_names_have_values_in_the_body():
    @ts.function
    def f(x: ts.Tensor[B, D]):
        return x / ts.sqrt(D) + ts.zeros(B, D)

    assert f(ts.ones(2, 4)).tolist() == [[0.5] * 4] * 2 and f(ts.ones(1, 16))[0, 0].item() == 0.25
    assert len(f.programs) == 1

    @ts.function
    def outer(y: ts.Tensor["N", "M"]):
        return f(y.T)  # inside, D is the outer N

    assert outer(ts.ones(4, 3)).tolist() == [[0.5] * 4] * 3


def test_branches_on_sizes_become_guards():
    @ts.function
    def f(x: ts.Tensor["S"]):
        return x * 2 if x.shape[0] > 3 else x

    assert f(ts.ones(2)).tolist() == [1, 1] and f(ts.ones(5))[0].item() == 2
    assert f(ts.ones(3)).tolist() == [1, 1, 1] and f(ts.ones(9))[0].item() == 2 and len(f.programs) == 2


def test_zero_sizes():
    @ts.function
    def f(x: ts.Tensor["B", "D"]):
        return x.sum(dim=0), x + 1

    s, y = f(ts.ones(0, 3))
    assert s.tolist() == [0, 0, 0] and y.shape == (0, 3)


# -- arguments -------------------------------------------------------------------------------------------------------------
def test_trees_keywords_and_defaults():
    @ts.jit
    def f(params, x, *, scale=2.0, flip=False):
        y = x @ params["w"] + params["b"]
        return {"y": y * scale, "n": (x.sum(), [x.mean()]), "flip": flip}

    p = {"w": ts.ones(3, 2), "b": ts.zeros(2)}
    out = f(p, ts.ones(4, 3), flip=True)
    assert out["y"].tolist() == [[6, 6]] * 4 and out["n"][0].item() == 12 and out["n"][1][0].item() == 1 and out["flip"] is True
    assert f(p, ts.ones(4, 3), scale=3.0)["y"][0, 0].item() == 9 and len(f.programs) == 2


def test_numbers_are_inputs_and_weak():
    @ts.jit
    def f(x, s):
        return x * s

    assert f(ts.ones(2, dtype=ts.bf16), 2.5).dtype is ts.bf16
    assert f(ts.ones(2, dtype=ts.bf16), 3.5).tolist() == [3.5, 3.5] and len(f.programs) == 1
    assert f(ts.ones(2), 2).dtype is ts.f32 and len(f.programs) == 2


def test_numpy_arrays_are_inputs():
    f = ts.jit(lambda x: x + 1)
    assert f(np.ones(2, np.float32)).tolist() == [2, 2] and f(np.ones(2, np.float64)).dtype is ts.f64
    assert len(f.programs) == 2


def test_static_arguments():
    traces = []

    @ts.jit(static_argnums=(1,), static_argnames="mode")
    def f(x, n, mode="a"):
        traces.append((n, mode))
        return x.reshape(n, -1)

    x = ts.ones(12)
    assert f(x, 3).shape == (3, 4) and f(x, 4).shape == (4, 3) and f(x, 3).shape == (3, 4)
    f(x, 3, mode="b")
    assert traces == [(3, "a"), (4, "a"), (3, "b")]
    with pytest.raises(errors.ArgumentError, match="is a tensor"):
        f(x, x)
    with pytest.raises(errors.ArgumentError, match="static_argnums"):
        ts.jit(lambda x: x, static_argnums=(3,))
    with pytest.raises(errors.ArgumentError, match="did you mean 'width'"):
        ts.jit(lambda width: width, static_argnames="widht")


def test_callables_and_objects_are_static():
    @ts.jit
    def f(x, g):
        return g(x)

    double = lambda t: t * 2
    assert f(ts.ones(2), double).tolist() == [2, 2] and f(ts.ones(2), lambda t: t + 5).tolist() == [6, 6]
    f(ts.ones(2), double)
    assert len(f.programs) == 2


def test_second_call_traces_nothing():
    count = []
    f = ts.jit(lambda x: (count.append(1), x + 1)[1])
    for _ in range(3):
        f(ts.ones(4))
    f(ts.zeros(4))
    assert len(count) == 1
    f(ts.zeros(5))
    assert len(count) == 2


def test_a_number_by_default_is_an_input_of_every_call():
    def f(x, p: float = 0.5, n=2, flag=True):
        return x * p + n if flag else x

    for g in (ts.jit(f), ts.function(f)):
        for _ in range(3):
            assert g(ts.ones(2)).tolist() == [2.5, 2.5]
        assert g(ts.ones(2), 1.0).tolist() == [3, 3] and g(ts.ones(2), flag=False).tolist() == [1, 1]
        assert g(ts.ones(2)).tolist() == [2.5, 2.5]


def test_wrong_arguments():
    @ts.jit
    def f(x, keepdim=False):
        return x

    with pytest.raises(errors.ArgumentError, match="has no argument 'kepdim'; did you mean 'keepdim'"):
        f(ts.ones(2), kepdim=True)
    with pytest.raises(errors.ArgumentError, match="missing a required argument: 'x'"):
        f()
    with pytest.raises(TypeError):
        f(1, 2, 3)
    with pytest.raises(errors.ArgumentError):
        ts.jit(3)


def test_methods():
    class Model:
        def __init__(self):
            self.w = ts.ones(2)

        @ts.jit
        def forward(self, x):
            return x * self.w

    m = Model()
    assert m.forward(ts.ones(2)).tolist() == [1, 1]
    m.w = ts.zeros(2)
    assert m.forward(ts.ones(2)).tolist() == [0, 0] and m.forward(ts.ones(2)).tolist() == [0, 0]
    other = Model()
    other.w = ts.ones(2) * 3
    assert other.forward(ts.ones(2)).tolist() == [3, 3]
    assert "mul" in m.forward.graph_ir and "mul" in str(m.forward.trace(ts.ones(2))) and len(m.forward.programs) == 3


def test_callable_objects_and_any_number_of_arguments():
    class Scale:
        def __init__(self):
            self.w = ts.ones(2) * 3

        def __call__(self, *xs, **named):
            return sum(xs, named.get("start", 0)) * self.w

    f = ts.jit(Scale())
    assert f(ts.ones(2), ts.ones(2)).tolist() == [6, 6] and f(ts.ones(2), start=ts.ones(2)).tolist() == [6, 6]
    f(ts.zeros(2), ts.ones(2))
    assert len(f.programs) == 2


# -- captured tensors --------------------------------------------------------------------------------------------------------
def test_captured_tensors_are_read_anew_and_never_printed():
    w = ts.tensor([1.0, 2.0])
    f = ts.jit(lambda x: x * w + w)
    assert f(ts.ones(2)).tolist() == [2, 4]
    w[0] = 10
    assert f(ts.ones(2)).tolist() == [20, 4] and len(f.programs) == 1
    graph = f.programs[0].graph
    assert graph.attrs["captured"] == 1 and "dense" not in str(graph) and len(graph.args) == 2


def test_literals_are_constants_and_large_arrays_are_inputs():
    big = np.ones(5000, np.float32)
    f = ts.jit(lambda x: x + ts.tensor([1.0, 2.0]) + ts.from_numpy(big)[:2])
    assert f(ts.ones(2)).tolist() == [3, 4]
    assert f.programs[0].graph.attrs["captured"] == 1 and "dense<f32[2]" in f.graph_ir


def test_nested_functions_are_recorded_in_place():
    inner = ts.jit(lambda x: x * 2)

    @ts.function
    def checked(x: ts.Tensor["N"]) -> ts.Tensor["N"]:
        return inner(x) + 1

    outer = ts.jit(lambda x: checked(x) + inner(x))
    assert outer(ts.ones(3)).tolist() == [5, 5, 5] and not inner.programs and not checked.programs
    with pytest.raises(errors.ShapeError, match="'x' has 2 axes"):
        ts.jit(lambda x: checked(x))(ts.ones(2, 2))


def test_a_leaked_traced_tensor():
    kept = []
    ts.jit(lambda x: (kept.append(x), x)[1])(ts.ones(2))
    with pytest.raises(errors.TracingError, match="traced tensor"):
        kept[0] + 1
    with pytest.raises(errors.TracingError, match="outside the function that made it"):
        ts.jit(lambda x: x + kept[0])(ts.ones(2))


def test_threads_trace_independently():
    results = {}

    def work(i):
        f = ts.jit(lambda x: x * i)
        results[i] = [f(ts.ones(3)).tolist() for _ in range(20)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert all(results[i] == [[i] * 3] * 20 for i in range(4))


def test_an_error_while_tracing_leaves_nothing_behind():
    f = ts.jit(lambda x: x.reshape(7))
    with pytest.raises(errors.ShapeError):
        f(ts.ones(2))
    assert (ts.ones(2) + 1).tolist() == [2, 2] and not f.programs


# -- abstract evaluation -------------------------------------------------------------------------------------------------------
def test_eval_shape():
    def f(x, y):
        return {"z": x @ y, "n": 3}

    t = ts.eval_shape(f, ts.Tensor["B", 4, ts.bf16], ts.ones(4, 5, dtype=ts.bf16))
    assert t["z"].dtype is ts.bf16 and str(t["z"]) == "Tensor[B, 5, bf16]" and t["n"] == 3
    assert t["z"].shape[1] == 5
    with pytest.raises(errors.ShapeError):
        ts.eval_shape(f, ts.ones(2, 3), ts.ones(4, 5))


def test_unannotated_functions_show_the_latest_call():
    f = ts.jit(lambda x: x + 1)
    with pytest.raises(errors.TracingError, match="no full tensor type"):
        f.graph_ir  # noqa: B018
    f(ts.ones(3))
    assert "f32[3]" in f.graph_ir and "add" in str(f.trace(ts.ones(4)))


# -- donation ------------------------------------------------------------------------------------------------------------------
def test_donated_arguments_are_gone():
    f = ts.jit(lambda x, y: x + y, donate_argnums=(0,))
    x, y = ts.ones(3), ts.ones(3)
    assert f(x, y).tolist() == [2, 2, 2] and y.tolist() == [1, 1, 1]
    for use in (lambda: x + 1, lambda: x.tolist(), lambda: x.shape, lambda: f(x, y), lambda: bool(x), lambda: np.asarray(x)):
        with pytest.raises(errors.DonationError, match=r"test_function\.py:\d+"):
            use()
    assert "donated" in repr(x)


def test_donating_twice_or_borrowed_memory():
    f = ts.jit(lambda x, y: x + y, donate_argnums=(0, 1))
    x = ts.ones(4)
    with pytest.raises(errors.DonationError, match="twice"):
        f(x, x)
    whole = ts.ones(8)
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        assert f(whole[:4], ts.ones(4)).tolist() == [2] * 4
    assert any("not reused" in str(w.message) for w in seen) and whole.tolist() == [1] * 8


# -- effects -------------------------------------------------------------------------------------------------------------------
def test_effects_are_inferred_and_checked():
    @ts.effects(["random"])
    def dropout(x):
        return x * ts.random.bernoulli(0.5, x.shape)

    composed = ts.function(lambda x: dropout(x + x))
    composed(ts.ones(4))
    assert composed.effects == {"random"} and "effects: random" in str(composed.contract)
    assert ts.function(lambda x: x + 1).effects == frozenset()

    @ts.pure
    def f(x):
        return dropout(x)

    with pytest.raises(errors.EffectError, match=r"'random\.bernoulli' has the effect random, which 'f'"):
        f(ts.ones(2))
    keyed = ts.pure(lambda x: x + ts.random.uniform(2, key=1))
    assert keyed(ts.ones(2)).tolist() == keyed(ts.ones(2)).tolist()
    with ts.effects.suspend("random"):
        with pytest.raises(errors.EffectError, match="suspend"):
            ts.random.uniform(2)
        with pytest.raises(errors.EffectError, match=r"'lambda' has the effect random, which effects\.suspend"):
            composed(ts.ones(4))  # traced before
    ts.random.uniform(2)
    with pytest.raises(errors.EffectError, match="did you mean 'random'"):
        ts.effects(["randon"])
    assert ts.effects(["all"])(lambda x: dropout(x))(ts.ones(2)).shape == (2,)


# -- parameters ------------------------------------------------------------------------------------------------------------------
def test_implicit_parameters():
    @ts.function
    def model(x: ts.Tensor["B", 4]):
        return ts.linear(ts.relu(ts.linear(x, 8)), 2)

    y = model(ts.ones(3, 4))
    assert y.shape == (3, 2) and [p.shape for p in model.parameters()] == [(4, 8), (8,), (8, 2), (2,)]
    first = model.parameters()[0]
    assert np.array_equal(model(ts.ones(3, 4)), y) and model.parameters()[0] is first
    model.named_parameters()["linear.bias1"][:] = 100
    assert (np.asarray(model(ts.ones(3, 4))) > 50).all() and len(model.programs) == 1
    w = ts.ones(4, 2)
    assert ts.linear(ts.ones(3, 4), w).tolist() == [[4, 4]] * 3
    assert ts.jit(lambda x: ts.linear(x, out_dim=3))(ts.ones(2, 4)).shape == (2, 3)
    with pytest.raises(errors.TracingError, match="implicit weight"):
        ts.linear(ts.ones(3, 4), 8)


def test_a_parameter_may_state_a_constraint():
    @ts.function
    def dynamic_model(x: ts.Tensor["?", D], constraint: D % 8 == 0):
        return x * 2

    assert dynamic_model(ts.ones(3, 16)).shape == (3, 16)
    with pytest.raises(errors.ConstraintError, match="D%8 == 0 does not hold"):
        dynamic_model(ts.ones(3, 12))


def test_declared_static_sizes_specialise():
    @ts.function(static_sizes="D")
    def f(x: ts.Tensor["B", "D"]):
        return x.sum(dim=1) / x.shape[1]

    for shape in [(2, 4), (3, 4), (5, 8)]:
        assert f(ts.ones(*shape)).tolist() == [1] * shape[0]
    assert [str(p.graph.args[0].type) for p in f.programs] == ["f32[B, 4]", "f32[B, 8]"]


@pytest.mark.skipif("sys.version_info < (3, 12)")
def test_type_parameters_are_sizes():
    scope = {"ts": ts}
    exec("from __future__ import annotations\n"
         "@ts.function\n"
         "def f[B, D: int](x: ts.Tensor[B, D], fact: D % 8 == 0) -> ts.Tensor[B, D]:\n"
         "    return x\n", scope)
    assert str(scope["f"].result_type) == "Tensor[B, D]"
    with pytest.raises(errors.ConstraintError):
        scope["f"](ts.ones(2, 12))


@pytest.mark.parametrize("value, hint", [
    ([1.0, 2.0], r"1\. Make it one: ts\.tensor\(x\)"), ((ts.ones(4), ts.ones(4)), r"1\. Join them: ts\.stack\(x\)"),
    ({"a": ts.ones(4)}, r"1\. Leave 'x' without a tensor annotation"), ("abc", r"1\. Pass a tensor or a NumPy array as 'x'")])
def test_what_is_declared_a_tensor_is_one(value, hint):
    @ts.function
    def f(x: ts.Tensor["B", 4]):
        return x * 2

    @ts.function
    def caller(y: ts.Tensor["B", 4]):
        return f(value) + y

    for call in (lambda: f(value), lambda: caller(ts.ones(1, 4))):
        with pytest.raises(errors.ArgumentError, match=f"'x' is declared as a tensor and is a {type(value).__name__}(?s:.)*{hint}"):
            call()


def test_a_default_that_the_call_leaves_alone_decides_in_python():
    @ts.jit
    def f(x, power=2, offset: ts.Tensor[()] = 1.0):
        return (x * x if power == 2 else x) + offset.sum()

    assert f(ts.full((2,), 3.0)).tolist() == [10, 10] and f(ts.full((2,), 3.0), offset=2.0).tolist() == [11, 11]
    with pytest.raises(errors.TracingError, match="a Python condition needs the value"):
        f(ts.ones(2), 2)
    logits, labels = ts.randn(4, 10), ts.randint(0, 10, (4,))
    assert ts.jit(ts.cross_entropy)(logits, labels).item() == pytest.approx(ts.cross_entropy(logits, labels).item(), rel=1e-6)


@pytest.mark.parametrize("annotation, text", [
    ("ts.Tensr['B']", "the annotation of 'x' cannot be read: module 'tessera' has no attribute 'Tensr'; did you mean 'Tensor'"),
    ("ts.Tensor['B', ts.bf61]", "has no attribute 'bf61'; did you mean 'bf16'"),
    ("ts.Tensor['B', ts.bf16 @ ts.accum(unknown)]", "the annotation of 'x' cannot be read: .*(?s:.)*of an enclosing function")])
def test_an_annotation_that_cannot_be_read_is_not_ignored(annotation, text):
    scope = {"ts": ts}
    exec(f"from __future__ import annotations\n@ts.function\ndef f(x: {annotation}):\n    return x\n", scope)
    with pytest.raises(errors.ArgumentError, match=text):
        scope["f"](ts.ones(3))


@pytest.mark.parametrize("annotation", ["torch.Tensor", "SomeClass", "Optional[ts.Tensor['B']]", "np.ndarray", "Float[Tensor, 'b']"])
def test_annotations_of_others_are_left_alone(annotation):
    scope = {"ts": ts}
    exec(f"from __future__ import annotations\n@ts.function\ndef f(x: {annotation}):\n    return x\n", scope)
    assert scope["f"](ts.ones(3)).shape == (3,)


def test_an_annotation_of_many_arguments_is_of_each():
    @ts.function
    def total(x: ts.Tensor["N"], *rest: ts.Tensor["N"], **named: ts.Tensor["N"]):
        for y in (*rest, *named.values()):
            x = x + y
        return x

    assert total(ts.ones(2)).tolist() == [1, 1] and total(ts.ones(2), ts.ones(2), z=ts.ones(2)).tolist() == [3, 3]
