"""Functions of a single 16-bit element: scalar code, which LLVM compiles otherwise than vectors."""

from __future__ import annotations

import pytest

import tessera as ts

NAMES = ("atanh", "tanh", "sinh", "asinh", "acosh", "erf", "log1p", "expm1", "cos", "sigmoid", "exp", "log")


@pytest.mark.parametrize("dtype", [ts.f16, ts.bf16], ids=str)
def test_one_element_rounds_once_and_needs_no_library(dtype: ts.DType) -> None:
    """LLVM merged the last rounding of a scalar with an exact one from f64 into a call of ``__truncdfhf2``."""
    x = ts.full((1,), 0.5, dtype=dtype)
    results = ts.jit(lambda x: tuple(getattr(ts, n)(x if n != "acosh" else x + 1) for n in NAMES))(x)
    for name, got in zip(NAMES, results, strict=True):
        wide = x.to(ts.f32) + (1 if name == "acosh" else 0)
        assert got.tolist() == getattr(ts, name)(wide).to(dtype).tolist(), name
        assert ts.jit(getattr(ts, name))(x if name != "acosh" else x + 1).tolist() == got.tolist(), name
