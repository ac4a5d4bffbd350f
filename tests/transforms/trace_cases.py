"""Functions of tensors as graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import tessera  # noqa: F401  (assembles the package)
from tessera import ops  # noqa: F401
from tessera.ir.core import Function, TensorType
from tessera.ir.graph import verify
from tessera.ir.interpret_graph import REFERENCES, interpret
from tessera.ops.table import OPS
from tessera.tracing.recorder import Trace, tracing
from tessera.types import dtypes as dt

REFERENCES.update({n: d.reference for n, d in OPS.items()})


def traced(f: Callable[..., Any], *types: Any) -> Function:
    """``f`` on tensors of the given types (a shape alone means f32)."""
    trace = Trace("f")
    with tracing(trace):
        out = f(*[trace.parameter(t if isinstance(t, TensorType) else TensorType(dt.f32, t)) for t in types])
        fn = trace.finish(list(out) if isinstance(out, tuple) else [out])
    verify(fn)
    return fn


def names(fn: Function) -> list[str]:
    return [op.name for op in fn.body.ops if op.name != "return"]


def agree(a: Function, b: Function, tolerance: float = 0.0, seed: int = 0) -> None:
    """Both functions give the same on random inputs; with tolerance 0, bit for bit."""
    rng = np.random.default_rng(seed)
    xs = [(rng.standard_normal(p.type.shape) if p.type.dtype.is_float else rng.integers(0, 2, p.type.shape)).astype(p.type.dtype.np)
          for p in a.args]
    verify(b)
    for x, y in zip(interpret(a, xs), interpret(b, xs), strict=True):
        if tolerance == 0.0:
            assert x.dtype == y.dtype and x.tobytes() == y.tobytes()
        else:
            np.testing.assert_allclose(x.astype(np.float64), y.astype(np.float64), rtol=tolerance, atol=tolerance)
