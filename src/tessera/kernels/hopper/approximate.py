"""Functions on the special-function unit, for results that are rounded to 16 bits: relative errors of a few units of f32's last place
grow to 1e-5 at most, a hundredth of what the rounding takes.

Sources: M. Abramowitz and I. Stegun, "Handbook of Mathematical Functions", 7.1.26, for erf; Taylor's series near 0.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from ...tiling import dsl
from ...tiling.dsl import TileValue

LOG2_E = math.log2(math.e)
ERF = (0.254829592, -0.284496736, 1.421413741, -1.453152027, 1.061405429)
ERF_SLOPE = 0.3275911
ERF_NEAR = tuple(2 / math.sqrt(math.pi) * c for c in (1.0, -1 / 3, 1 / 10, -1 / 42))
TANH_NEAR = (1.0, -1 / 3, 2 / 15)


def exp(x: TileValue) -> TileValue:
    return dsl.exp2_approx(x * LOG2_E)


def sigmoid(x: TileValue) -> TileValue:
    return dsl.reciprocal_approx(dsl.exp2_approx(x * -LOG2_E) + 1.0)


def tanh(x: TileValue) -> TileValue:
    far = dsl.fma(dsl.reciprocal_approx(dsl.exp2_approx(x * (2 * LOG2_E)) + 1.0), -2.0, dsl.full(x.shape, 1.0, x.dtype))
    return dsl.where(abs(x) < 0.1, x * _polynomial(x * x, TANH_NEAR), far)


def erf(x: TileValue) -> TileValue:
    size, square = abs(x), x * x
    t = dsl.reciprocal_approx(dsl.fma(size, ERF_SLOPE, dsl.full(x.shape, 1.0, x.dtype)))
    far = 1.0 - t * _polynomial(t, ERF) * dsl.exp2_approx(square * -LOG2_E)
    return dsl.where(size < 0.25, x * _polynomial(square, ERF_NEAR), dsl.where(x < 0.0, -far, far))


def _polynomial(x: TileValue, coefficients: tuple[float, ...]) -> TileValue:
    total = dsl.full(x.shape, coefficients[-1], x.dtype)
    for c in reversed(coefficients[:-1]):
        total = dsl.fma(total, x, dsl.full(x.shape, c, x.dtype))
    return total


FUNCTIONS: Mapping[str, Callable[[TileValue], TileValue]] = {"exp": exp, "sigmoid": sigmoid, "tanh": tanh, "erf": erf}

__all__ = ["FUNCTIONS"]
