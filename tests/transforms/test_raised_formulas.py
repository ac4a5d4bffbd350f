"""gelu and silu raised from formulas by hand keep the roundings of the formula: eager = jitted, bit for bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trace_cases import names, traced

import tessera as ts
from tessera.ir.core import Function, TensorType
from tessera.ir.graph import GrammarError, verify
from tessera.ir.text import parse_function, print_function
from tessera.transforms.canonicalize import canonicalize
from tessera.transforms.cleanup import merge_common_subexpressions
from tessera.transforms.expand import expand_composites
from tessera.transforms.raising import raise_composites
from tessera.types import dtypes as dt

C = math.sqrt(2 / math.pi)
CURVES: dict[str, Any] = {
    "erf of a quotient": lambda x: ts.erf(x / math.sqrt(2)),
    "erf of a product": lambda x: ts.erf(math.sqrt(0.5) * x),
    "erf with a short constant": lambda x: ts.erf(x * 0.7071),
    "tanh of a cube": lambda x: ts.tanh(C * (x + 0.044715 * x**3)),
    "tanh of products": lambda x: ts.tanh((x + x * x * x * 0.044715) * 0.7978845608),
    "tanh, factored": lambda x: ts.tanh(x * 0.7978845608 * (1.0 + 0.044715 * x * x)),
    "tanh, factored with a square": lambda x: ts.tanh(C * x * (1 + 0.044715 * ts.square(x))),
}
ORDERS: dict[str, Any] = {
    "half first": lambda x, g: 0.5 * x * (1 + g),
    "half last": lambda x, g: x * (g + 1.0) * 0.5,
    "half of the gate": lambda x, g: x * (0.5 * (1.0 + g)),
    "halved": lambda x, g: (x / 2) * (1 + g),
    "gate first": lambda x, g: (1 + g) * x / 2,
    "gate halved": lambda x, g: (g + 1) / 2 * x,
}
SILUS: dict[str, Any] = {
    "by sigmoid": lambda x: x * ts.sigmoid(x), "sigmoid first": lambda x: ts.sigmoid(x) * x,
    "by exp": lambda x: x / (1 + ts.exp(-x)), "by exp, one last": lambda x: x / (ts.exp(-x) + 1.0),
}
SPELLINGS = {f"{c}, {o}": (lambda x, c=c, o=o: ORDERS[o](x, CURVES[c](x))) for c in CURVES for o in ORDERS} | SILUS


def operand(dtype: dt.DType) -> np.ndarray:
    line = np.linspace(-9, 9, 1021)
    edges = [0.0, -0.0, np.inf, -np.inf, np.nan, 1e-38, 1e38, -1e38, 1e-44, 60000.0, -60000.0]
    with np.errstate(all="ignore"):
        return np.concatenate([line, edges]).astype(np.float32).astype(dtype.np)


@pytest.mark.parametrize("dtype", [dt.f32, dt.bf16, dt.f16, dt.f64], ids=str)
def test_every_spelling_is_the_same_eager_and_jitted(dtype: dt.DType) -> None:
    x = ts.from_numpy(operand(dtype))
    spelled = list(SPELLINGS.values())
    jitted = ts.jit(lambda x: tuple(f(x) for f in spelled))(x)
    for name, f, got in zip(SPELLINGS, spelled, jitted, strict=True):
        want = f(x).numpy()
        same = want.view(np.uint8).reshape(len(want), -1) == got.numpy().view(np.uint8).reshape(len(want), -1)
        nan = np.isnan(want.astype(np.float64)) & np.isnan(got.numpy().astype(np.float64))
        assert np.all(same.all(-1) | nan), name


@pytest.mark.parametrize("name", list(SPELLINGS))
def test_raised_and_expanded_again_it_is_the_same_sequence(name: str) -> None:
    for dtype in (dt.f32, dt.bf16):
        fn = traced(SPELLINGS[name], TensorType(dtype, (5,)))
        raised = raise_composites(fn)
        whole = names(raised) in (["gelu"], ["silu"])
        assert whole or dtype is dt.bf16  # whose rounded constants may lie too far from the formula's
        assert print_function(parse_function(print_function(raised))) == print_function(raised)
        again = merge_common_subexpressions(expand_composites(raised))
        plain = merge_common_subexpressions(canonicalize(fn))
        assert arithmetic(again) == arithmetic(plain)
        if whole and dtype is dt.bf16:
            assert "formula" in raised.body.ops[-2].attrs


def arithmetic(fn: Function) -> list[str]:
    return sorted(n for n in names(fn) if n not in ("full", "constant", "broadcast_to", "reshape"))


def test_the_definition_itself_needs_no_formula() -> None:
    for f in (lambda x: (x * 0.5) * (ts.erf(x * math.sqrt(0.5)) + 1.0), lambda x: (1.0 + ts.erf(math.sqrt(0.5) * x)) * (0.5 * x),
              lambda x: x * ts.sigmoid(x)):
        assert "formula" not in raise_composites(traced(f, (4,))).body.ops[-2].attrs


@settings(max_examples=25, deadline=None)
@given(st.sampled_from(list(SPELLINGS)), st.sampled_from(list(SPELLINGS)), st.integers(1, 40), st.integers(0, 2**31 - 1))
def test_spellings_inside_other_pointwise_programs(a: str, b: str, n: int, seed: int) -> None:
    def program(x: Any, y: Any) -> Any:
        return SPELLINGS[a](x * y + 1.5) - SPELLINGS[b](ts.abs(y) - x)

    x, y = (ts.from_numpy(v) for v in np.random.default_rng(seed).standard_normal((2, n)).astype(np.float32) * 3)
    assert program(x, y).numpy().tobytes() == ts.jit(program)(x, y).numpy().tobytes()


def test_a_formula_that_is_none_is_refused() -> None:
    for formula in ('("launch", "x")', '"y"', '("matmul", "x", "x")', '("add", "x", true)', '()'):
        text = f'graph @f(%x: f32[4]) {{\n%y = gelu(%x) {{approximate = "none", formula = {formula}}} : f32[4]\nreturn(%y)\n}}'
        with pytest.raises(GrammarError, match="formula"):
            verify(parse_function(text))
