"""Vector maths: transcendental pointwise ops become polynomials over basic ops, at Tile level.

So the interpreter and every target compute the same bits.  f16, bf16 and smaller floats go through f32 and round once.
The accuracy of each function stands in ``docs/accuracy.md``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..ir.core import Copier, Function, Op, ScalarType, TileType, Value, rewrite
from ..types.dtypes import DType, f32
from . import vmath_exp, vmath_special, vmath_trig
from .vmath_builder import E, V
from .vmath_fast import FAST

Expansion = Callable[..., E]

EXPANSIONS: dict[str, Expansion] = {
    "exp": vmath_exp.exp, "exp2": vmath_exp.exp2, "expm1": vmath_exp.expm1, "log": vmath_exp.log, "log2": vmath_exp.log2,
    "log10": vmath_exp.log10, "log1p": vmath_exp.log1p, "logaddexp": vmath_exp.logaddexp, "sigmoid": vmath_exp.sigmoid,
    "tanh": vmath_exp.tanh, "sinh": vmath_exp.sinh, "cosh": vmath_exp.cosh, "asinh": vmath_exp.asinh,
    "acosh": vmath_exp.acosh, "atanh": vmath_exp.atanh, "reciprocal": vmath_exp.reciprocal, "rsqrt": vmath_exp.rsqrt,
    "cbrt": vmath_exp.cbrt, "hypot": vmath_exp.hypot, "pow": vmath_exp.power,
    "sin": vmath_trig.sin, "cos": vmath_trig.cos, "tan": vmath_trig.tan, "asin": vmath_trig.asin, "acos": vmath_trig.acos,
    "atan": vmath_trig.atan, "atan2": vmath_trig.atan2,
    "erf": vmath_special.erf, "erfc": vmath_special.erfc, "erfinv": vmath_special.erfinv, "lgamma": vmath_special.lgamma,
    "digamma": vmath_special.digamma, "nextafter": vmath_special.nextafter, "mod": vmath_special.mod,
    "floor_div": vmath_special.floor_div,
    "exp2_approx": vmath_exp.exp2, "log2_approx": vmath_exp.log2, "reciprocal_approx": vmath_exp.reciprocal,
}
APPROXIMATE = frozenset({"exp2_approx", "log2_approx", "reciprocal_approx"})
"""Ops that a target with a special-function unit keeps."""


def expand(fn: Function, keep: frozenset[str] = frozenset()) -> Function:
    """``fn`` with every transcendental op on floats rewritten into basic ops; the same function where there is none.

    Complex operands, integer ``mod`` / ``floor_div`` and ``nextafter`` on 4- and 6-bit floats are left as they are, and so are
    ops on f32 named in ``keep``.
    """
    def stays(op: Op) -> bool:
        return op.name in keep and _dtype(op.operands[0]) is f32

    if not any(_expands(op) and not stays(op) for op in fn.walk()):
        return fn
    return rewrite(fn, lambda c, op: None if stays(op) else _rule(c, op))


def _expands(op: Op) -> bool:
    if op.name not in EXPANSIONS or not op.operands:
        return False
    dtype = _dtype(op.operands[0])
    return dtype.is_float and not (op.name == "nextafter" and dtype.bits < 8)


def _dtype(v: Value) -> DType:
    t: Any = v.type
    return t.dtype  # type: ignore[no-any-return]


def _rule(c: Copier, op: Op) -> list[Value] | None:
    if not _expands(op):
        return None
    t = op.result.type
    assert isinstance(t, ScalarType | TileType)
    v = V(c.builder, t.shape if isinstance(t, TileType) else None, t.layout if isinstance(t, TileType) else None, op.loc)
    dtype = _dtype(op.operands[0])
    work = dtype if dtype.bits >= 32 or op.name == "nextafter" else f32
    args = [E(v, c[x], dtype).to(work) for x in op.operands]
    fast = FAST.get(op.name) if op.attrs.get("fast") and work is f32 else None
    return [(fast or EXPANSIONS[op.name])(v, *args).to(dtype).value]
