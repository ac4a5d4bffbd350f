"""Update rules against their formulas in f64, and the objects that apply them."""

import copy
import pickle

import numpy as np
import pytest

import tessera as ts
from tessera import errors, optim

RNG = np.random.default_rng(0)


def reference_sgd(p, gs, lr, momentum=0.0, nesterov=False, decay=0.0):
    v = 0.0
    for g in gs:
        g = g + decay * p
        v = momentum * v + g
        p = p - lr * (g + momentum * v if nesterov else v)
    return p


def reference_adam(p, gs, lr, betas=(0.9, 0.999), eps=1e-8, decay=0.0, decoupled=False):
    m = v = 0.0
    for t, g in enumerate(gs, 1):
        if decoupled:
            p = p * (1 - lr * decay)
        else:
            g = g + decay * p
        m, v = betas[0] * m + (1 - betas[0]) * g, betas[1] * v + (1 - betas[1]) * g * g
        p = p - lr * (m / (1 - betas[0]**t)) / (np.sqrt(v / (1 - betas[1]**t)) + eps)
    return p


RULES = {
    "sgd": (optim.sgd(0.1), lambda p, g: reference_sgd(p, g, 0.1)),
    "momentum": (optim.momentum(0.1, 0.8), lambda p, g: reference_sgd(p, g, 0.1, 0.8)),
    "nesterov": (optim.sgd(0.1, momentum=0.9, nesterov=True, weight_decay=0.01), lambda p, g: reference_sgd(p, g, 0.1, 0.9, True, 0.01)),
    "adam": (optim.adam(0.01, weight_decay=0.1), lambda p, g: reference_adam(p, g, 0.01, decay=0.1)),
    "adam without memory": (optim.adam(0.01, betas=(0.0, 0.0)), lambda p, g: reference_adam(p, g, 0.01, (0.0, 0.0))),
    "adamw": (optim.adamw(0.01, betas=(0.8, 0.99), eps=1e-6), lambda p, g: reference_adam(p, g, 0.01, (0.8, 0.99), 1e-6, 0.01, True)),
}


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("dtype, bound", [(ts.f32, 1e-6), (ts.f64, 1e-14)])
def test_rules_equal_their_formulas(name, dtype, bound):
    rule, reference = RULES[name]
    start = {"w": RNG.normal(size=(3, 4)), "b": [RNG.normal(size=5)]}
    gs = [{"w": RNG.normal(size=(3, 4)), "b": [RNG.normal(size=5)]} for _ in range(12)]
    at = lambda tree: {"w": ts.tensor(tree["w"], dtype=dtype), "b": [ts.tensor(tree["b"][0], dtype=dtype)]}
    params, state = at(start), rule.init(at(start))
    update = ts.jit(rule.update)
    for g in gs:
        params, state = update(params, at(g), state)
    assert len(update.programs) == 1 and [int(s["step"]) for s in state] == [12, 12]
    for got, want in ((params["w"], reference(start["w"], [g["w"] for g in gs])), (params["b"][0],
                                                                                  reference(start["b"][0], [g["b"][0] for g in gs]))):
        assert got.dtype is dtype and np.abs(got.numpy() - want).max() < bound * (1 + np.abs(want).max())


def test_a_small_parameter_is_what_its_master_copy_rounds_to():
    rule = optim.adam(1e-4)
    p = ts.ones(6, dtype=ts.bf16)
    state = rule.init([p])
    (low,), first = rule.update([p], [ts.ones(6, dtype=ts.bf16)], state)
    assert low.tolist() == [1.0] * 6 and abs(float(first[0]["master"][0]) - 0.9999) < 1e-7  # a step too small for bf16, kept
    (moved,), last = [low], first
    for _ in range(99):
        (moved,), last = rule.update([moved], [ts.ones(6, dtype=ts.bf16)], last)
    assert last[0]["master"].dtype is ts.f32 and moved.dtype is ts.bf16 and last[0]["mean"].dtype is ts.f32
    assert abs(float(last[0]["master"][0]) - 0.99) < 1e-5 and moved.tolist() == last[0]["master"].to(ts.bf16).tolist()


class Model(ts.nn.Module):
    def __init__(self, dtype=ts.f32):
        self.first, self.second = ts.nn.Linear(6, 8, dtype=dtype), ts.nn.Linear(8, 1, dtype=dtype)
        self.table = ts.arange(3)

    def forward(self, x):
        return self.second(ts.tanh(self.first(x)))


def loss_of(model, x, y):
    return ((model(x) - y) ** 2).mean()


@pytest.fixture
def data():
    x = RNG.normal(size=(32, 6)).astype(np.float32)
    return ts.tensor(x), ts.tensor(np.sin(x[:, :1]))


def test_a_model_is_trained_in_place(data):
    model = Model()
    weight, predict = model.first.weight, ts.jit(lambda x: model(x))
    optimizer = optim.Adam(model, lr=0.02)
    before, outputs = float(loss_of(model, *data)), predict(data[0]).numpy().copy()
    grads = ts.jit(lambda x, y: ts.grad(loss_of(model, x, y), model))
    for _ in range(60):
        optimizer.step(grads(*data))
    assert model.first.weight is weight and float(loss_of(model, *data)) < 0.2 * before
    assert not np.allclose(predict(data[0]), outputs) and len(predict.programs) == len(grads.programs) == 1  # read anew
    assert sorted(optimizer.params) == ["first.bias", "first.weight", "second.bias", "second.weight"] and "table" not in repr(optimizer)
    assert len(optimizer._step.programs) == 1
    optimizer.lr = 0.0
    weight = model.first.weight.numpy().copy()
    optimizer.step(grads(*data))
    assert optimizer.lr == 0 and np.array_equal(model.first.weight, weight) and len(optimizer._step.programs) == 1


def test_loaded_parameters_reach_programs_that_captured_them(data):
    model, other = Model(), Model()
    predict = ts.jit(lambda x: model(x))
    assert not np.array_equal(predict(data[0]), other(data[0]))
    optimizer = optim.Adam(model)
    model.load_state_dict(other.state_dict())
    np.testing.assert_allclose(predict(data[0]), other(data[0]), rtol=1e-6, atol=1e-6)
    optimizer.step({"first.bias": ts.ones(8)})  # and the optimiser still moves them, not the model that they came from
    assert not np.array_equal(model.first.bias, other.first.bias) and len(predict.programs) == 1


def test_a_whole_step_in_one_program(data):
    models = [Model(), Model()]
    models[1].load_state_dict(models[0].state_dict())
    eager, traced = (optim.AdamW(m, lr=0.05) for m in models)

    @ts.jit
    def step(x, y):
        loss = loss_of(models[1], x, y)
        traced.step(ts.grad(loss, models[1]))
        return loss, models[1].first.bias * 1  # the new value

    for _ in range(5):
        eager.step(ts.grad(loss_of)(models[0], *data))
        _, bias = step(*data)
        assert np.array_equal(bias, models[1].first.bias)
    assert step.effects == {"state"} and len(step.programs) == 1
    for a, b in zip(models[0].parameters(), models[1].parameters(), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6)
    assert int(traced.state["first.bias"]["step"]) == 5


def test_steps_that_are_left_out(data):
    model = Model()
    optimizer = optim.Adam(model)
    optimizer.step(ts.grad(loss_of)(model, *data))
    before = [p.numpy().copy() for p in model.parameters()], optimizer.state["first.bias"]["mean"].numpy().copy()
    optimizer.step(ts.grad(loss_of)(model, *data), where=ts.tensor(False))
    assert all(np.array_equal(p, q) for p, q in zip(model.parameters(), before[0], strict=True))
    assert np.array_equal(optimizer.state["first.bias"]["mean"], before[1]) and int(optimizer.state["first.bias"]["step"]) == 1
    optimizer.step({"first.bias": ts.ones(8)})  # the others have no gradient
    assert np.array_equal(model.first.weight, before[0][0]) and not np.array_equal(model.first.bias, before[0][1])
    assert int(optimizer.state["first.bias"]["step"]) == 2 and int(optimizer.state["second.bias"]["step"]) == 1


def test_no_policy_has_a_say_in_the_update():
    results = []
    for scope in (ts.numerics(ts.TrainingPolicy), ts.autocast(enabled=False)):
        params = {"w": ts.ones(4)}
        optimizer = optim.SGD(params, lr=1e-3)
        with scope:
            optimizer.step({"w": ts.ones(4)})
        results.append(params["w"].tolist())
    assert results[0] == results[1] and params["w"].dtype is ts.f32


def test_states_are_saved_and_taken_up():
    runs = []
    for interrupted in (False, True):
        params = [ts.ones(3), None, {"b": ts.ones(2, dtype=ts.bf16)}]
        optimizer = optim.Adam(params, lr=0.1)
        for i in range(4):
            if interrupted and i == 2:
                saved = {n: v.numpy() for n, v in optimizer.state_dict().items()}
                optimizer = optim.Adam(params, lr=0.7)
                optimizer.load_state_dict(saved)
            optimizer.step([ts.full((3,), i + 1.0), None, {"b": ts.ones(2, dtype=ts.bf16)}])
        runs.append([params[0].tolist(), params[2]["b"].tolist(), optimizer.lr])
    assert runs[0] == runs[1] and set(saved) == {"lr", "0.step", "0.mean", "0.square", "2.b.master", "2.b.step", "2.b.mean", "2.b.square"}


@pytest.mark.parametrize("call, kind, text", [
    (lambda: optim.sgd(-1.0), errors.ArgumentError, "lr is at least 0"),
    (lambda: optim.sgd(momentum=1.0), errors.ArgumentError, "momentum is between 0 and 1, which it is less than"),
    (lambda: optim.sgd(nesterov=True), errors.ArgumentError, "nesterov goes with a momentum"),
    (lambda: optim.adam(betas=(0.9, 2)), errors.ArgumentError, "beta2"),
    (lambda: optim.Adam([1, 2]), errors.ArgumentError, "no parameters to train"),
    (lambda: optim.Adam({"w": ts.ones(2)}).step({"v": ts.ones(2)}), errors.ArgumentError, "not a tree like the parameters"),
    (lambda: optim.Adam(ts.nn.Linear(2, 2)).step({"wieght": ts.ones(2)}), errors.ArgumentError,
     "no parameter 'wieght'; did you mean 'weight'"),
    (lambda: optim.Adam(ts.nn.Linear(2, 2)).step([ts.ones(2)]), errors.ArgumentError, "a dict by parameter name"),
    (lambda: optim.Adam({"w": ts.ones(2)}).step({"w": ts.ones(3)}), errors.ShapeError, "not its parameter's shape"),
    (lambda: optim.Adam({"w": ts.ones(2)}).load_state_dict({"lr": 1.0}), errors.ArgumentError, "one side only"),
    (lambda: optim.adam().update([ts.ones(2)], [ts.ones(2)], []), errors.ArgumentError, "rule.init"),
    (lambda: optim.adam("fast"), errors.ArgumentError, r"adam\(lr=…\) is a number, not 'fast'"),
    (lambda: optim.adam(True), errors.ArgumentError, "is a number, not True"),
    (lambda: optim.adam(betas=0.9), errors.ArgumentError, r"adam\(betas=…\) is a pair of numbers, not 0.9"),
    (lambda: optim.adam(betas=(0.9, None)), errors.ArgumentError, "beta2=…. is a number, not None"),
    (lambda: optim.adam(lrr=1), errors.ArgumentError, "no argument 'lrr'; did you mean 'lr'"),
    (lambda: optim.Adam([ts.ones(2)], beta=1), errors.ArgumentError, "beta"),
    (lambda: optim.Optimizer([ts.ones(2)], "adam"), errors.ArgumentError, "follows a rule, not 'adam'"),
    (lambda: optim.Adam([{"params": [ts.ones(2)], "lr": 1.0}]), errors.ArgumentError, "an optimiser for each group"),
    (lambda: setattr(optim.Adam([ts.ones(2)]), "lr", -1.0), errors.ArgumentError, "lr is at least 0"),
    (lambda: optim.adam().update([ts.ones(2)], [ts.ones(2)], optim.sgd().init([ts.ones(2)])), errors.ArgumentError, "not one of adam"),
    (lambda: optim.adam().update([ts.ones(2)], [ts.ones(2)], None), errors.ArgumentError, "the state is a NoneType"),
    (lambda: optim.adam().update([ts.ones(2)], [ts.ones(2)], [3]), errors.ArgumentError, "a parameter has no state"),
    (lambda: optim.sgd().update([ts.ones(2)], [ts.ones(2)], optim.sgd().init([ts.ones(2)]), lr=-1), errors.ArgumentError, "at least 0"),
    (lambda: optim.sgd().update([ts.ones(2)], [ts.ones(2)], optim.sgd().init([ts.ones(2)]), lr=ts.ones(2)), errors.ShapeError,
     "one number"),
    (lambda: optim.sgd().update({"w": ts.ones(2)}, {}, optim.sgd().init({"w": ts.ones(2)})), errors.ArgumentError, "Give None"),
    (lambda: optim.sgd().update([ts.arange(2)], [ts.ones(2)], optim.sgd().init([ts.arange(2)])), errors.DTypeError, "of int64 numbers"),
    (lambda: optim.SGD([ts.ones(2)]).step([ts.ones(2).to(ts.complex64)]), errors.DTypeError, "a complex gradient"),
    (lambda: optim.SGD({"w": ts.ones(2), "n": ts.arange(2)}).step({"n": ts.ones(2)}), errors.DTypeError, "'n', which is not trained"),
    (lambda: optim.SGD([ts.ones(2)]).step([ts.ones(2)], where=1.5), errors.ArgumentError, "one truth value"),
    (lambda: optim.SGD([ts.ones(2)]).step([ts.ones(2)], where=ts.tensor([True, False])), errors.ArgumentError, "flags.all"),
    (lambda: optim.Adam([ts.ones(2)]).load_state_dict(None), errors.ArgumentError, "a dict of tensors by name, not None"),
    (lambda: ts.assign(3, 4), errors.ArgumentError, "this is a int"),
    (lambda: ts.assign(ts.ones(2), ts.ones(3)), errors.ShapeError, r"changes f32\[2\] to f32\[3\]"),
    (lambda: ts.assign(ts.ones(2), ts.ones(2, dtype=ts.bf16)), errors.DTypeError, "value.to"),
])
def test_errors(call, kind, text):
    with pytest.raises(kind, match=text):
        call()


class Tied(ts.nn.Module):
    def __init__(self):
        self.a = ts.ones(3)
        self.b = self.a


def test_a_tensor_with_two_names_moves_once_by_its_whole_gradient():
    model = Tied()
    optimizer = optim.SGD(model, lr=0.1)
    optimizer.step(ts.grad(lambda m: (m.a * 2 + m.b * 3).sum())(model))
    assert np.allclose(model.a.numpy(), 0.5) and list(optimizer.params) == ["a"]
    optimizer.step({"b": ts.ones(3)})
    assert np.allclose(model.a.numpy(), 0.4)
    w = ts.ones(3)
    with pytest.raises(errors.ArgumentError, match="one tensor stands at '0' and at '1'"):
        optim.SGD([w, w])


def test_complex_parameters_go_down_the_slope():
    target = np.array([1 + 2j, -1 - 1j], np.complex64)
    rule, p = optim.adam(0.1), [ts.zeros(2, dtype=ts.complex64)]
    state, real = rule.init(p), [ts.zeros(2, 2)]
    again = rule.init(real)
    for _ in range(5):  # as two real numbers would move
        p, state = rule.update(p, ts.grad(lambda q: (ts.abs(q[0] - target) ** 2).sum())(p), state)
        parts = ts.tensor(np.stack([target.real, target.imag], -1))
        real, again = rule.update(real, ts.grad(lambda q, c=parts: ((q[0] - c) ** 2).sum())(real), again)
    assert p[0].dtype is ts.complex64 and np.allclose(ts.view_as_real(p[0]).numpy(), real[0].numpy(), atol=1e-6)
    assert abs(p[0].numpy() - target).max() < abs(target).max()


def test_state_follows_a_converted_model(monkeypatch):
    monkeypatch.setenv("TESSERA_SIM_DEVICES", "1")
    model, grads = ts.nn.Linear(3, 2), {"weight": ts.ones(3, 2), "bias": ts.ones(2)}
    optimizer = optim.Adam(model, lr=0.1)
    optimizer.step(grads)
    for kind in (ts.bf16, ts.f64, ts.f32):
        before = model.to(kind).weight.to(ts.f32)
        optimizer.step(grads)
        state = optimizer.state["weight"]
        assert model.weight.dtype is kind and ("master" in state) == (kind is ts.bf16) and state["mean"].dtype is (
            ts.f64 if kind is ts.f64 else ts.f32)
        assert np.allclose((before - model.weight.to(ts.f32)).numpy(), 0.1, atol=0.02)
    model.to("gpu:0")
    optimizer.step({n: g.to("gpu:0") for n, g in grads.items()})
    assert int(optimizer.state["weight"]["step"]) == 5 and optimizer.state["weight"]["mean"].device == "gpu:0" == model.weight.device
    saved = {n: t.cpu() for n, t in optimizer.state_dict().items()}
    optimizer.load_state_dict(saved)
    model.load_state_dict({n: t.cpu() for n, t in model.state_dict().items()})
    assert optimizer.state["bias"]["square"].device == "gpu:0" == model.bias.device

    @ts.jit
    def step(g):
        optimizer.step({"weight": g})
        return g

    step(ts.ones(3, 2).to("gpu:0"))
    model.to(ts.f64, "cpu")
    with pytest.raises(errors.TracingError, match="its optimiser has not followed yet"):
        step(ts.ones(3, 2))
    optimizer.follow()
    step(ts.ones(3, 2))
    assert int(optimizer.state["weight"]["step"]) == 7


def test_rules_and_optimisers_are_pickled():
    rule = pickle.loads(pickle.dumps(optim.sgd(0.5, momentum=0.9)))
    p = [ts.ones(2)]
    assert rule.update(p, p, rule.init(p))[0][0].tolist() == [0.5, 0.5]
    params = {"w": [ts.ones(2)], "none": None}
    first = optim.Adam(params, lr=0.1)
    first.step({"w": [ts.ones(2)], "none": None})
    again = pickle.loads(pickle.dumps(first))
    for o in (first, again):
        o.step({"w": [ts.ones(2)], "none": None})
    assert first.params["w.0"].tolist() == again.params["w.0"].tolist() and again.lr == 0.1
    model = ts.nn.Linear(2, 2)
    optimizer = optim.Adam(model)
    both = copy.deepcopy((model, optimizer))
    assert both[1].params["weight"] is both[0].weight and both[0].weight is not model.weight


@pytest.mark.parametrize(("name", "value", "kind"), [
    ("lr", -5.0, errors.ArgumentError), ("lr", "x", errors.ArgumentError), ("w.mean", ts.ones(3), errors.ShapeError),
    ("w.step", 1.5, errors.DTypeError), ("w.square", "x", errors.DTypeError), ("w.square", ts.ones(2, dtype=ts.complex64),
                                                                               errors.DTypeError)])
def test_a_state_that_does_not_fit_changes_nothing(name, value, kind):
    optimizer = optim.Adam({"w": ts.ones(2)}, lr=0.1)
    optimizer.step({"w": ts.ones(2)})
    before = {n: t.tolist() for n, t in optimizer.state_dict().items()}
    other = {n: t * 2 for n, t in optimizer.state_dict().items()}
    with pytest.raises(kind):
        optimizer.load_state_dict({**other, name: value})
    assert {n: t.tolist() for n, t in optimizer.state_dict().items()} == before


# -- assign ----------------------------------------------------------------------------------------------------------------------
def test_an_assigned_tensor_keeps_its_identity():
    t = ts.tensor([1.0, 2.0])
    alias = t.reshape(1, 2)
    f = ts.jit(lambda x: x + t)
    assert f(ts.zeros(2)).tolist() == [1, 2]
    ts.assign(t, ts.tensor([5.0, 6.0]))
    assert f(ts.zeros(2)).tolist() == [5, 6] and alias.tolist() == [[1, 2]] and len(f.programs) == 1

    @ts.jit
    def twice(x):
        ts.assign(t, t + x)
        ts.assign(t, t * 2)
        y = x.clone()
        ts.assign(y, y + 1)
        return t - 1, y

    wide = ts.zeros(2, dtype=ts.f64)
    ts.assign(wide, [0.1, 0.2])
    assert wide.tolist() == [0.1, 0.2]  # rounded once, to f64
    wide[...] = [0.3, 0.7]
    assert wide.tolist() == [0.3, 0.7]
    out, y = twice(ts.ones(2))
    assert t.tolist() == [12, 14] and out.tolist() == [11, 13] and y.tolist() == [2, 2] and twice.effects == {"state"}


@pytest.mark.parametrize("way", [ts.grad, ts.vmap, lambda f: ts.jit(ts.checkpoint(f)), lambda f: lambda x: ts.jvp(f, (x,), (x,))])
def test_an_assignment_inside_a_transformed_function_is_refused_not_lost(way):
    t = ts.tensor(0.0)

    def f(x):
        ts.assign(t, t + 1)
        return (x * x).sum()

    with pytest.raises(errors.EffectError, match="assigns a tensor f32") as e:
        way(f)(ts.ones(2, 3))
    assert "ts.assign(t, t + 1)" in str(e.value) and float(t) == 0


def test_an_assignment_in_a_branch_or_a_pure_function_is_refused():
    t = ts.tensor(0.0)

    @ts.jit
    def branch(x):
        return ts.cond(x.sum() > 0, lambda x: [ts.assign(t, x.sum()), x][1], lambda x: x, x)

    def body(carry, x):
        ts.assign(t, x)
        return carry + x, x

    for call in (lambda: branch(ts.ones(2)), lambda: ts.scan(body, ts.tensor(0.0), ts.ones(3)),
                 lambda: ts.jit(lambda xs: ts.scan(body, ts.tensor(0.0), xs))(ts.ones(3))):
        with pytest.raises(errors.TracingError, match="is assigned inside cond"):
            call()

    @ts.pure
    def pure(x):
        ts.assign(t, x)
        return x

    with pytest.raises(errors.EffectError, match="'assign' has the effect state"):
        pure(ts.tensor(1.0))


@pytest.mark.parametrize("dtype", [ts.bf16, ts.f16])
def test_a_narrow_parameter_that_was_given_another_value_keeps_it(dtype):
    model = ts.nn.Linear(2, 2).to(dtype)
    opt = optim.Adam(model, lr=1e-3)
    opt.step({"weight": ts.ones(2, 2)})
    model.load_state_dict({k: ts.full(tuple(v.shape), 3.0, dtype=dtype) for k, v in model.state_dict().items()})
    opt.step({"weight": ts.ones(2, 2)})
    assert np.allclose(model.weight.to(ts.f32).numpy(), 3, atol=2e-2)
