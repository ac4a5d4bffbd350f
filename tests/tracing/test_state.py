"""State of objects, eager and compiled, and functions that carry theirs."""

# ruff: noqa: F821  (names of sizes in annotations)
import numpy as np
import pytest

import tessera as ts
from tessera import errors

W_H, W_X = ts.tensor(np.eye(3, dtype=np.float32) * 0.5), ts.tensor(np.full((2, 3), 0.25, np.float32))


class Cell(ts.Stateful):
    def __init__(self, hidden_size=3):
        self.hidden_size = hidden_size
        self.state = ts.zeros(hidden_size)
        self.W_h, self.W_x = W_H, W_X

    @ts.stateful
    def forward(self, x):
        self.state = ts.tanh(self.state @ self.W_h + x @ self.W_x)
        return self.state * 2

    def reset(self):
        self.state = ts.zeros(self.hidden_size)


def inputs(n=10):
    return [ts.tensor(np.random.default_rng(i).standard_normal(2).astype(np.float32)) for i in range(n)]


def reference(xs):
    h, out = np.zeros(3, np.float32), []
    for x in xs:
        h = np.tanh(h @ W_H.numpy() + x.numpy() @ W_X.numpy())
        out.append(h * 2)
    return h, out


def test_state_is_tracked_eagerly():
    cell, xs = Cell(), inputs()
    out = [cell(x) for x in xs]
    h, want = reference(xs)
    np.testing.assert_allclose(np.stack(out), np.stack(want), rtol=1e-6)
    np.testing.assert_allclose(cell.state.numpy(), h, rtol=1e-6)
    writes = cell.history()
    assert [w.step for w in writes] == list(range(10)) and {w.name for w in writes} == {"state"}
    np.testing.assert_array_equal(writes[3].new.numpy(), writes[4].old.numpy())
    assert "test_state.py" in writes[0].where and "#0 state: f32[3]" in str(writes[0])
    assert cell.history("other") == []


def test_compiled_leaves_the_object_as_eager_does():
    eager, cell, xs = Cell(), Cell(), inputs()
    step = ts.jit(cell.forward)
    got = [step(x) for x in xs]
    want = [eager(x) for x in xs]
    np.testing.assert_allclose(np.stack(got), np.stack(want), rtol=1e-6)
    np.testing.assert_allclose(cell.state.numpy(), eager.state.numpy(), rtol=1e-6)
    assert len(step.programs) == 1 and "state" in step.effects and len(cell.history()) == 10
    assert not cell.state.is_traced


def test_two_steps_in_one_program():
    cell, (x, y) = Cell(), inputs(2)

    @ts.jit
    def both(x, y):
        return cell(x), cell(y)

    h, want = reference([x, y, x, y])
    got = [*both(x, y), *both(x, y)]
    np.testing.assert_allclose(np.stack(got), np.stack(want), rtol=1e-6)
    np.testing.assert_allclose(cell.state.numpy(), h, rtol=1e-6)


def test_reset_and_undo():
    cell, (x,) = Cell(), inputs(1)
    step = ts.jit(cell.forward)
    first, second = step(x).numpy(), step(x).numpy()
    cell.reset()
    np.testing.assert_array_equal(step(x).numpy(), first)
    cell.undo()
    np.testing.assert_array_equal(cell.state.numpy(), np.zeros(3))
    cell.reset()
    step(x), step(x)
    cell.undo()
    np.testing.assert_array_equal(step(x).numpy(), second)
    with pytest.raises(errors.ArgumentError, match="assignments are recorded"):
        cell.undo(99)


def test_earlier_states_keep_their_values():
    cell, (x,) = Cell(), inputs(1)
    before = cell.state
    ts.jit(cell.forward)(x)
    assert before.tolist() == [0, 0, 0]


def test_state_dict_round_trips():
    a, b, xs = Cell(), Cell(), inputs(3)
    for x in xs:
        a(x)
    saved = a.state_dict()
    assert set(saved) == {"state", "W_h", "W_x"}
    b.load_state_dict(saved)
    np.testing.assert_array_equal(a(xs[0]).numpy(), b(xs[0]).numpy())
    with pytest.raises(errors.ArgumentError, match="did you mean 'state'"):
        b.load_state_dict({"sate": ts.zeros(3)})
    with pytest.raises(errors.ShapeError):
        b.load_state_dict({"state": ts.zeros(4)})


def test_parts_of_a_state():
    class Buffer(ts.Stateful):
        def __init__(self):
            self.rows, self.count = ts.zeros(4, 2), ts.tensor(0)

        @ts.stateful
        def push(self, x):
            self.rows[self.count] = x
            self.count += 1
            return self.rows.sum()

    eager, compiled = Buffer(), Buffer()
    push = ts.jit(compiled.push)
    for x in inputs(3):
        np.testing.assert_allclose(push(x).numpy(), eager.push(x).numpy(), rtol=1e-6)
    np.testing.assert_array_equal(compiled.rows.numpy(), eager.rows.numpy())
    assert int(compiled.count) == 3 and not compiled.rows.numpy()[3].any() and compiled.rows.numpy()[2].any()


def test_effects():
    cell = Cell()
    with pytest.raises(errors.EffectError, match=r"'Cell.state = …' has the effect state"):
        ts.pure(lambda x: cell(x))(inputs(1)[0])
    assert cell.history() == []

    @ts.effects(["state"])
    def allowed(x):
        return cell(x)

    allowed(inputs(1)[0])
    assert len(cell.history()) == 1
    with pytest.raises(errors.EffectError, match="would be lost, or done more than once"):
        ts.vmap(lambda x: cell(x))(ts.ones(3, 2))
    assert len(cell.history()) == 1


def test_errors():
    class Wrong(ts.Stateful):
        def __init__(self):
            self.h, self.n = ts.zeros(3), 0

        @ts.stateful
        def grow(self):
            self.h = ts.zeros(4)

        @ts.stateful
        def narrow(self):
            self.h = self.h.to(ts.f16)

        @ts.stateful
        def count(self):
            self.n = self.n + 1

        @ts.stateful
        def branch(self, p):
            def yes():
                self.h = self.h + 1
                return p
            return ts.cond(p, yes, lambda: p)

    w = Wrong()
    with pytest.raises(errors.ShapeError, match=r"the state 'h' changes from f32\[3\] to f32\[4\]"):
        ts.jit(w.grow)()
    with pytest.raises(errors.DTypeError, match="changes from"):
        ts.jit(w.narrow)()
    with pytest.raises(errors.EffectError, match="not a tensor"):
        ts.jit(w.count)()
    with pytest.raises(errors.TracingError, match="assigned inside cond"):
        ts.jit(w.branch)(ts.tensor(True))
    w.count()
    assert w.n == 1 and w.h.tolist() == [0, 0, 0]
    with pytest.raises(errors.ArgumentError, match="marks a method"):
        ts.stateful(3)
    step = ts.jit(Cell.forward)
    cell = Cell()
    step(cell, inputs(1)[0])
    cell.state = ts.zeros(4)
    with pytest.raises(errors.ShapeError, match="changes from"):
        step(cell, inputs(1)[0])


def test_with_state_has_no_hidden_state():
    @ts.with_state
    def rnn(x: ts.Tensor["S", 2], initial_state: ts.Tensor[3]):
        def step(state, x_t):
            new = ts.tanh(state @ W_H + x_t @ W_X)
            return new, new * 2
        final, outputs = ts.scan(step, initial_state, x)
        return outputs, final

    xs = inputs()
    h, want = reference(xs)
    for _ in range(2):
        outputs, final = rnn(ts.stack(xs), ts.zeros(3))
        np.testing.assert_allclose(outputs.numpy(), np.stack(want), rtol=1e-6)
        np.testing.assert_allclose(final.numpy(), h, rtol=1e-6)
    cell = Cell()
    with pytest.raises(errors.EffectError):
        ts.with_state(lambda x, state: (cell(x), state))(xs[0], ts.zeros(3))
    with pytest.raises(errors.TracingError, match="must return"):
        ts.with_state(lambda x, state: state)(xs[0], ts.zeros(3))
    with pytest.raises(errors.ShapeError, match="can be the next call's"):
        ts.with_state(lambda x, state: (x, ts.zeros(4)))(xs[0], ts.zeros(3))


def test_an_object_made_inside_is_the_function_s_own():
    """Its state starts from a concrete tensor and ends with the call: transformations take it as any value."""
    xs = inputs(2)

    def f(x, y):
        cell = Cell()
        cell(x)
        return cell(y)

    want = reference(xs)[1][-1]
    step = ts.jit(f)
    for _ in range(2):
        np.testing.assert_allclose(step(*xs).numpy(), want, rtol=1e-6)
    h = 1e-3
    gradient = ts.grad(lambda x, y: f(x, y).sum())(*xs).numpy()
    for i in range(2):
        d = np.eye(2, dtype=np.float32)[i] * h
        both = [f(ts.tensor(xs[0].numpy() + s * d), xs[1]).numpy().sum() for s in (1, -1)]
        assert abs(gradient[i] - (both[0] - both[1]) / (2 * h)) < 1e-3
    np.testing.assert_allclose(ts.vmap(f)(ts.stack(xs), ts.stack(xs))[0].numpy(), f(xs[0], xs[0]).numpy(), rtol=1e-5)


def test_history_is_bounded():
    class Short(Cell):
        history_size = 3

    cell = Short()
    for x in inputs():
        cell(x)
    assert [w.step for w in cell.history()] == [7, 8, 9]
