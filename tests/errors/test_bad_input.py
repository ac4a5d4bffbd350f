"""Bad input to every public function: an error of Tessera's form, never a plain Python error and never a crash."""

from __future__ import annotations

import contextlib
import copy
import inspect
import operator
import pickle
import random
from typing import Any

import numpy as np
import pytest

import tessera as ts
from tessera.errors.boundary import describe, guarded

STRANGE: dict[str, Any] = {
    "f32[2, 3]": ts.ones(2, 3), "int64[2, 3]": ts.arange(6).reshape(2, 3), "empty": ts.zeros(0, 3), "scalar": ts.tensor(1.5),
    "vector": ts.arange(3), "bools": ts.tensor([True, False]), "complex": ts.tensor([1 + 2j]), "None": None, "text": "abc", "-1": -1,
    "10**12": 10**12, "nan": float("nan"), "2.5": 2.5, "list": [1, 2], "ragged": [[1], [2, 3]], "dict": {"a": 1},
    "object": object(), "function": lambda x: x, "tuple": (0, 5), "range": range(2), "2**70": 2**70, "slice": slice(None, None, 0),
    "set": {1}, "bytes": b"x", "dtype": ts.bf16, "class": int, "objects": np.ones((2, 2), object), "texts": np.array(["a"]),
}
KEYWORDS = ("axis", "dim", "dtype", "shape", "size", "keepdims", "bogus")
SLOW = {"median", "compile", "jit", "function", "kernel"}  # compile at each call, or make decorators of anything


def functions() -> list[str]:
    known = [n for n in ts.__all__ if inspect.isfunction(getattr(ts, n)) and n not in SLOW]
    assert len(known) > 200
    return known


@pytest.mark.parametrize("first", list("acelmnprsv"))
def test_every_public_function(first: str) -> None:
    """Calls drawn by a fixed seed: no arguments, one to three strange ones, and known keywords with strange values."""
    last = {"a": "b", "c": "d", "e": "k", "l": "l", "m": "m", "n": "o", "p": "q", "r": "r", "s": "u", "v": "z"}[first]
    names = [n for n in functions() if first <= n[0].lower() <= last]
    rng = random.Random(20)
    tensors = ["f32[2, 3]", "int64[2, 3]", "empty", "vector", "scalar"]
    plain = []
    for name in names:
        calls: list[tuple[list[str], dict[str, str]]] = [([], {})]
        calls += [([rng.choice(list(STRANGE))], {}) for _ in range(4)]
        calls += [([rng.choice(tensors), rng.choice(list(STRANGE))], {}) for _ in range(5)]
        calls += [([rng.choice(tensors), rng.choice(tensors), rng.choice(list(STRANGE))], {}) for _ in range(2)]
        calls += [([rng.choice(tensors)], {rng.choice(KEYWORDS): rng.choice(list(STRANGE))}) for _ in range(4)]
        for args, kwargs in calls:
            try:
                getattr(ts, name)(*[STRANGE[a] for a in args], **{k: STRANGE[v] for k, v in kwargs.items()})
            except ts.TesseraError as e:
                assert e.message and str(e).startswith("Error: ")
            except Exception as e:
                plain.append(f"{name}({args}, {kwargs}): {type(e).__name__}: {e}")
    assert not plain, "\n".join(plain)


@pytest.mark.parametrize("name", ["uniform", "normal", "randn", "randint", "bernoulli", "key", "fold_in", "split", "permutation", "dropout",
                                  "seed", "categorical", "exponential", "truncated_normal"])
def test_random_functions(name: str) -> None:
    state = ts.random.get_state()
    for value in STRANGE.values():
        for args in ((value,), (value, value), (STRANGE["f32[2, 3]"], value)):
            with contextlib.suppress(ts.TesseraError):
                getattr(ts.random, name)(*args)
    ts.random.set_state(state)


METHODS = ["reshape", "sum", "mean", "max", "argmax", "transpose", "permute", "squeeze", "unsqueeze", "to", "expand", "flip", "roll",
           "split", "chunk", "repeat", "take", "gather", "scatter", "sort", "topk", "clip", "cumsum", "masked_fill", "softmax", "index_put"]


@pytest.mark.parametrize("name", METHODS)
def test_methods_and_operators(name: str) -> None:
    x = ts.ones(2, 3)
    for value in STRANGE.values():
        for call in (lambda v: getattr(x, name)(v), lambda v: getattr(x, name)(bogus=v)):
            with contextlib.suppress(ts.TesseraError):
                call(value)


def test_indices() -> None:
    def write(x: Any, i: Any) -> None:
        x[i] = 1.0

    for index in [*STRANGE.values(), slice(1.5, None), slice(None, None, "a"), (0, 0, 0), (Ellipsis, Ellipsis), np.array([5]), [9], True]:
        for act in (lambda x, i: x[i], write, lambda x, i: ts.jit(lambda x: x[i])(x)):
            with contextlib.suppress(ts.TesseraError):
                act(ts.ones(2, 3), index)


def test_operators_with_strange_operands() -> None:
    x = ts.ones(2, 3)
    for op in ("add", "sub", "mul", "truediv", "pow", "matmul", "lt", "ge", "and_", "or_", "lshift", "mod"):
        for kind, value in STRANGE.items():
            if kind != "dtype":  # which has operators of its own
                with contextlib.suppress(ts.TesseraError):
                    getattr(operator, op)(x, value)
    assert (x == object()) is False and (x != "a") is not None


# -- texts -----------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(("call", "kind", "message", "received"), [
    (lambda x: x.sum(dmi=1), ts.errors.ArgumentError, r"sum\(\) has no argument 'dmi'; did you mean 'dim'\?", "dmi"),
    (lambda x: ts.add(x), ts.errors.ArgumentError, r"add\(\): missing a required argument: 'y'", "add(f32[2, 3])"),
    (lambda x: ts.exp(x, 3), ts.errors.ArgumentError, r"exp\(\): too many positional arguments", "exp(f32[2, 3], 3)"),
    (lambda x: x[::0], ts.errors.IndexOutOfRangeError, "slice step cannot be zero", "an index of f32[2, 3]"),
    (lambda x: ts.jit(lambda x: x[::0])(x), ts.errors.IndexOutOfRangeError, "slice step cannot be zero", "an index of f32[2, 3]"),
    (lambda x: ts.one_hot(ts.arange(3), -1), ts.ShapeError, "the size -1 is negative", "-1"),
    (lambda x: ts.zeros(10**12), ts.errors.OutOfMemoryError, "no memory for 4123168604160 bytes", "zeros(1000000000000)"),
    (lambda x: ts.zeros(2**70), ts.ShapeError, "elements", "1180591620717411303424"),
    (lambda x: x + object(), ts.errors.ArgumentError, "add\\(\\) takes tensors, arrays and numbers, not <object>", "<object>"),
    (lambda x: ts.gelu(x, "q"), ts.errors.ArgumentValueError, "gelu knows the forms 'none' and 'tanh', not 'q'", "gelu(f32[2, 3], 'q')"),
    (lambda x: ts.op.linalg.solve(x), ts.errors.ArgumentError, r"linalg.solve\(\): missing a required argument: 'b'",
     "linalg.solve(f32[2, 3])"),
    (lambda x: ts.jit(lambda x: np.cbrt(x))(x), ts.TracingError, "np.cbrt", "traced f32[2, 3]"),
    (lambda x: ts.embedding(ts.arange(2), x), ts.DTypeError, "embedding\\(\\) takes ids of integers, not of f32", "f32[2, 3]"),
    (lambda x: ts.layer_norm(x, 3, x[0], x[0]), ts.errors.ArgumentError, "always normalises the last axis", "layer_norm(f32[2, 3], 3, …)"),
    (lambda x: ts.checkpoint(ts.exp, x), ts.errors.ArgumentError, "takes a function, and gives one", "checkpoint(f, f32[2, 3])"),
    (lambda x: ts.checkpoint(polcy="full"), ts.errors.ArgumentError, "did you mean 'policy'", "polcy"),
])
def test_the_text_names_function_and_arguments(call: Any, kind: Any, message: str, received: str) -> None:
    with pytest.raises(kind, match=message) as e:
        call(ts.ones(2, 3))
    assert e.value.received == received and "← Error here" in str(e.value) and "boundary.py" not in str(e.value)


def test_errors_of_the_user_s_own_code_stay() -> None:
    class Broken:
        def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine") as e:
        ts.exp(Broken())
    assert not isinstance(e.value, ts.TesseraError)
    with pytest.raises(ZeroDivisionError):
        ts.eval_shape(lambda x: x * (1 // 0), ts.ones(2))
    with pytest.raises(KeyError, match="q"):
        ts.cond(ts.tensor(True), lambda x: {}["q"], lambda x: x, ts.ones(2))


def test_descriptions_stay_short() -> None:
    assert describe(ts.ones(2)) == "f32[2]" and describe("a" * 100).endswith("…") and describe(2**999) == "an integer of 1000 bits"
    assert describe([1, ts.ones(3)]) == "[1, f32[3]]" and describe((1,)) == "(1,)" and describe(np.ones(2)) == "<ndarray float64[2]>"
    assert describe(list(range(20))) == "[0, 1, 2, 3, 4, 5, 6, 7, …]"
    assert guarded(ts.ops.exp).__name__ == "exp" and inspect.signature(ts.exp) == inspect.signature(ts.ops.exp)


# -- functions as values ---------------------------------------------------------------------------------------------------
@ts.jit
def increment(x: Any) -> Any:
    return x + 1


def double(x: Any, k: int) -> Any:
    return x * k


doubled = ts.jit(double, static_argnames="k")


def test_pickling_functions() -> None:
    assert pickle.loads(pickle.dumps(increment)) is increment and copy.deepcopy(increment) is increment
    again = pickle.loads(pickle.dumps(doubled))
    assert again(ts.ones(2), 2).tolist() == [2, 2] and again.static_names == {"k"}
    with pytest.raises(ts.errors.ArgumentError, match="cannot be pickled: its module holds nothing under that name"):
        pickle.dumps(ts.jit(lambda x: x))


def test_functions_that_suspend_are_refused() -> None:
    def generator(x: Any) -> Any:
        yield x

    async def coroutine(x: Any) -> Any:
        return x

    for f, what in ((generator, "a generator function"), (coroutine, "a coroutine function")):
        with pytest.raises(ts.errors.ArgumentError, match=f"'{f.__name__}' is {what}"):
            ts.jit(f)
        with pytest.raises(ts.errors.ArgumentError, match=what):
            ts.function(f)


def test_numpy_functions_on_tensors() -> None:
    x = ts.tensor([0.25, 0.5])
    for got in (np.sin(x), ts.jit(lambda x: np.sin(x))(x)):
        assert isinstance(got, ts.Tensor) and got.dtype is ts.f32 and got.tolist() == ts.sin(x).tolist()
    assert isinstance(np.cbrt(x), ts.Tensor) and float(np.add.reduce(x)) == 0.75
    a = np.ones(2)
    assert isinstance(a + x, ts.Tensor) and (a + x).dtype is ts.f64 and isinstance(np.float64(2) * x, ts.Tensor)
    a += x
    assert isinstance(a, np.ndarray) and a.tolist() == [1.25, 1.5]
    assert (np.ones((2, 2), np.float32) @ x).tolist() == [0.75, 0.75] and (np.zeros(2) < x).dtype is ts.bool_


@pytest.mark.parametrize(("call", "text"), [
    (lambda: ts.nn.Linear(3), "missing a required argument: 'out_features'"), (lambda: ts.nn.Linear("a", 3), "Linear"),
    (lambda: ts.nn.Linear(3, 4, bais=True), "Linear() has no argument 'bais'; did you mean 'bias'"),
    (lambda: ts.nn.Parameter(), "missing a required argument: 'value'"), (lambda: ts.memory.store(None, ts.ones(2)), "memory.store()"),
    (lambda: ts.memory.prefetch(), "missing a required argument: 'x'"), (lambda: ts.memory.plan(3), "decorates a class"),
    (lambda: ts.memory.async_copy(ts.ones(2), tu="host"), "no argument 'tu'; did you mean 'to'"),
    (lambda: ts.stable.mean(ts.ones(2), object()), "stable.mean()"), (lambda: ts.optim.Adam([ts.ones(2)], learning_rate=1), "Adam")])
def test_functions_of_the_modules_answer_in_the_form(call, text):
    with pytest.raises(ts.TesseraError) as e:
        call()
    assert text in str(e.value) and "self" not in (e.value.expected or "")


def test_a_scalar_may_be_prefetched():
    with ts.prefetch(ts.tensor(1.0)) as x:
        assert float(x) == 1
