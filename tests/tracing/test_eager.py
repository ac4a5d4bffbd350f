"""Eager execution: one look-up a call, programs shared between shapes, views without programs."""

import numpy as np
import pytest

import tessera as ts
from tessera import errors
from tessera.ir.interpret_graph import interpret
from tessera.tracing import eager


class Counting:
    """A compiler that counts what it is asked for."""

    def __init__(self):
        self.programs = []

    def compile(self, fn):
        self.programs.append(fn)
        return lambda arrays: interpret(fn, arrays)


@pytest.fixture
def compiler(monkeypatch):
    c = Counting()
    monkeypatch.setattr(eager, "COMPILER", c)
    return c


def test_one_program_for_every_size_of_one_pattern(compiler):
    for n in (2, 3, 7, 100):
        x = ts.ones(n)
        assert (x + x).shape == (n,)
    assert len(compiler.programs) == 1 and str(compiler.programs[0].args[0].type) == "f32[n0]"
    for shape in [(2, 3), (4, 5, 6), (3, 3)]:
        x = ts.ones(*shape)
        assert np.array_equal(x + x, np.full(shape, 2.0))  # flattened: the same program
    assert len(compiler.programs) == 1
    for m, k, n in [(2, 3, 4), (5, 6, 7)]:
        assert (ts.ones(m, k) @ ts.ones(k, n)).shape == (m, n)
    assert len(compiler.programs) == 2
    ts.ones(3, 3) @ ts.ones(3, 3)  # another pattern: all sizes are equal
    assert len(compiler.programs) == 3


def test_numbers_are_arguments_of_programs(compiler):
    x = ts.ones(4)
    assert [(x * s)[0].item() for s in (2.0, 3.0, 0.5)] == [2, 3, 0.5] and len(compiler.programs) == 1


def test_functions_of_one_tensor_are_one_program(compiler):
    x = ts.tensor([[1.0, -2.0], [3.0, 4.0]])
    assert x.relu().tolist() == [[1, 0], [3, 4]] and len(compiler.programs) == 1
    assert x.mean(dim=1).tolist() == [-0.5, 3.5] and x.mean(dim=0).tolist() == [2, 1] and len(compiler.programs) == 3
    ts.ones(2, 2).mean(dim=1)
    ts.relu(ts.ones(2, 2))
    assert len(compiler.programs) == 3
    i = ts.tensor([1, 5])
    assert ts.clip(i, 2).dtype is ts.int64 and ts.clip(i, 2.0).dtype is ts.f32


def test_views_need_no_program(compiler):
    x = ts.arange(24).reshape(2, 3, 4)
    for y in (x.T, x[1:], x[..., ::-1], x.expand(5, 2, 3, 4), x.unsqueeze(0), x.flip(0), x.transpose(0, 2), ts.split(x, 2, dim=2)[0],
              x.reshape(6, 4), x.squeeze()):
        assert np.shares_memory(y._p, x._p)
    ts.full((3,), 1), ts.zeros(2), ts.eye(2)
    assert not compiler.programs


def test_errors_show_the_user_s_sizes(compiler):
    with pytest.raises(errors.ShapeError, match="Cannot broadcast 3 with 4"):
        ts.ones(3) + ts.ones(4)
    with pytest.raises(errors.IndexOutOfRangeError, match="axis 5"):
        ts.softmax(ts.ones(3), axis=5)
    assert not compiler.programs


def test_every_path_gives_the_same_bits(rng):
    a = rng.normal(size=(5, 7)).astype(np.float32)
    x = ts.tensor(a)
    for f in (lambda x: x * 1.7 + x, lambda x: ts.softmax(x, -1), lambda x: x.mean(0), lambda x: ts.gelu(x) / 3, lambda x: x.sum(),
              lambda x: ts.where(x > 0, x, 0.1 * x), lambda x: x.var(dim=1, keepdim=True), lambda x: x.T @ x):
        assert np.asarray(f(x)).tobytes() == np.asarray(ts.jit(f)(x)).tobytes()


def test_captured_and_static_values_inside_compiled_calls(compiler):
    w = ts.ones(3)
    f = ts.jit(lambda x, k: x * w + k)
    assert f(ts.ones(3), 2).tolist() == [3, 3, 3] and f(ts.zeros(3), 5).tolist() == [5, 5, 5] and len(compiler.programs) == 1


def test_mixing_arrays_and_lists():
    x = ts.ones(2)
    assert (x / np.sqrt(64)).dtype is ts.f32  # NumPy's float is a Python float, and as weak
    assert (x + np.ones(2, np.float64)).dtype is ts.f64 and (x + np.float16(1)).dtype is ts.f32
    assert (x + [1, 2]).tolist() == [2, 3]  # noqa: RUF005
    assert ts.concat([x, [5.0]]).tolist() == [1, 1, 5]
    assert ts.tensor([ts.tensor(1.0), 2.0]).tolist() == [1, 2]
    assert ts.jit(lambda x: ts.tensor([x[0], 2.0, x[1]]))(x).tolist() == [1, 2, 1]


def test_signed_zeros_are_two_values():
    x = ts.ones(1)
    for pad in (lambda v: ts.pad(x, (1, 0), value=v), lambda v: static(x, v), lambda v: ts.full((1,), v)):
        assert [float(np.copysign(1, pad(v).tolist()[0])) for v in (0.0, -0.0, 0.0)] == [1, -1, 1]


static = ts.jit(lambda x, v: ts.full((1,), v), static_argnums=1)


def test_attention_keeps_the_extents_of_a_head_as_numbers(compiler):
    """Its template wants them; all other sizes are symbolic, so one program serves every batch and sequence."""
    for shape in ((2, 40, 16), (3, 50, 16)):
        q = ts.ones(*shape)
        compiler.programs = [p for p in compiler.programs if p.name == "eager_attention"]
        ts.attention(q, q, q, causal=True)
    attention = [p for p in compiler.programs if p.name == "eager_attention"]
    assert len(attention) == 1 and str(attention[0].args[0].type) == "f32[n0, n1, 16]"


@pytest.mark.parametrize("shape, perm", [((300, 200), (1, 0)), ((4, 60, 8, 50), (0, 2, 1, 3)), ((3, 50, 7, 40), (3, 1, 0, 2))])
def test_permuted_operands_are_read_as_they_lie(shape, perm):
    rng = np.random.default_rng(1)
    a = rng.normal(size=shape).astype(np.float32)
    t, other = ts.from_numpy(a).permute(*perm), rng.normal(size=np.transpose(a, perm).shape).astype(np.float32)
    want = np.transpose(a, perm)
    assert np.array_equal((t + 1.0).numpy(), want + np.float32(1)) and np.array_equal((t * ts.from_numpy(other)).numpy(), want * other)
    assert np.array_equal(ts.exp(t).numpy(), ts.exp(ts.from_numpy(want.copy())).numpy())
    w = rng.normal(size=(want.shape[-1], 300)).astype(np.float32)
    assert np.array_equal((t @ ts.from_numpy(w)).numpy(), (ts.from_numpy(want.copy()) @ ts.from_numpy(w)).numpy())
    assert np.array_equal(ts.jit(lambda x: x * 2)(t).numpy(), want * 2)


def test_products_with_transposed_operands(rng):
    x, w = rng.normal(size=(40, 700)).astype(np.float32), rng.normal(size=(300, 700)).astype(np.float32)
    for rows in (1, 2, 40):
        got = (ts.from_numpy(x[:rows]) @ ts.from_numpy(w).T).numpy()
        assert np.allclose(got, x[:rows].astype(np.float64) @ w.T, rtol=1e-4, atol=1e-4)
        assert np.array_equal(got, ts.jit(lambda a, b: a @ b.T)(ts.from_numpy(x[:rows]), ts.from_numpy(w)).numpy())
    assert np.allclose((ts.from_numpy(w).T @ ts.from_numpy(w)).numpy(), w.T.astype(np.float64) @ w, rtol=1e-4, atol=1e-4)
    with pytest.raises(errors.ShapeError, match="Shape mismatch in dimension 1: 300 vs 700"):
        ts.from_numpy(w).T @ ts.from_numpy(x.T.copy())
