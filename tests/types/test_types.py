"""Dtypes, promotion, shapes, policies, effects."""

import itertools

import numpy as np
import pytest

from tessera.types import dtypes as dt
from tessera.types.dims import name
from tessera.types.dtypes import ALL, as_dtype
from tessera.types.effects import as_effects
from tessera.types.policy import NumericalPolicy, RoundingMode, accum
from tessera.types.promotion import PromotionError, accumulator, promote, promote_weak, widens
from tessera.types.shapes import ShapeMismatch, broadcast, normalize_axes, parse_constraint, unify

B, S, K = (name(n) for n in "BSK")


def test_every_spelling_is_one_dtype():
    assert as_dtype("fp8") is dt.fp8_e4m3 and as_dtype("Float32") is dt.f32 and as_dtype(np.float64) is dt.f64
    assert as_dtype(float) is dt.f32 and as_dtype(int) is dt.int64
    assert as_dtype(dt.bf16.np) is dt.bf16
    with pytest.raises(TypeError, match="did you mean"):
        as_dtype("flaot32")


def test_a_dtype_of_torch_is_a_spelling():
    torch = pytest.importorskip("torch")
    assert as_dtype(torch.float16) is dt.f16 and as_dtype(torch.long) is dt.int64
    with pytest.raises(TypeError, match=r"no dtype for torch\.qint8"):
        as_dtype(torch.qint8)


@pytest.mark.parametrize("d", [d for d in ALL if d.is_float], ids=str)
def test_limits_of_a_float_format_are_values_of_it(d):
    with np.errstate(invalid="ignore"):
        kept = np.array([d.min, d.max, np.inf], np.float32 if d.bits < 64 else np.float64).astype(d.np).astype(np.float64)
    assert kept[0] == d.min and kept[1] == d.max
    assert (kept[2] == np.inf) == d.has_infinity


def test_promotion_is_commutative_and_associative_where_defined():
    def p(a, b):
        try:
            return promote(a, b)
        except PromotionError:
            return None
    for a, b in itertools.product(ALL, ALL):
        assert p(a, b) is p(b, a)
        if p(a, b) is not None:
            assert p(p(a, b), b) is p(a, b)


@pytest.mark.parametrize(("a", "b", "c"), [
    ("f16", "bf16", "f32"), ("int8", "f16", "f16"), ("int64", "bf16", "bf16"), ("uint8", "int8", "int16"),
    ("uint32", "int8", "int64"), ("f64", "complex64", "complex128"), ("bool", "int4", None), ("uint64", "int64", None),
    ("fp8_e4m3", "f32", None), ("int32", "int64", "int64"),
])
def test_promotion_table(a, b, c):
    if c is None:
        with pytest.raises(PromotionError):
            promote(as_dtype(a), as_dtype(b))
    else:
        assert promote(as_dtype(a), as_dtype(b)) is as_dtype(c)


def test_python_scalars_are_weak():
    assert promote_weak(dt.bf16, float) is dt.bf16
    assert promote_weak(dt.int32, float) is dt.f32
    assert promote_weak(dt.int8, int) is dt.int8
    assert promote_weak(dt.f64, complex) is dt.complex128


def test_widening_and_accumulators():
    assert widens(dt.bf16, dt.f32) and not widens(dt.f32, dt.bf16) and not widens(dt.fp8_e4m3, dt.f32)
    assert accumulator(dt.bf16) is dt.f32 and accumulator(dt.int8) is dt.int64 and accumulator(dt.f64) is dt.f64


def test_broadcast_is_symbolic():
    assert broadcast((B, S, 768), (768,), (1, S, 1)) == (B, S, 768)
    with pytest.raises(ShapeMismatch, match="dimension 1: S vs K") as e:
        broadcast((B, S, 8), (B, K, 8))
    assert e.value.axis == 1
    with pytest.raises(ShapeMismatch):
        broadcast((B,), (3,))


def test_unify_binds_and_solves():
    env: dict[str, int] = {}
    assert unify((B, 3 * S, 8), (2, 12, 8), env) is None
    assert env == {"B": 2, "S": 4}
    assert unify((B,), (3,), env) == 0
    assert unify((3 * K,), (10,), {}) == 0


def test_axes():
    assert normalize_axes(None, 3) == (0, 1, 2) and normalize_axes((-1, 0), 3) == (0, 2)
    with pytest.raises(IndexError, match="axes -2 to 1"):
        normalize_axes(2, 2)
    with pytest.raises(ValueError, match="twice"):
        normalize_axes((1, -1), 2)


def test_policies():
    p = dt.bf16 @ accum(dt.f32)
    assert p == NumericalPolicy(storage="bf16", accumulate="f32") and str(p) == "bf16 @ accum(f32)"
    q = NumericalPolicy(store="fp8", compute="bf16", round="rte", saturate=True)
    assert q.storage is dt.fp8_e4m3 and q.rounding is RoundingMode.NEAREST and hash(q) == hash(q.replace())
    with pytest.raises(TypeError, match="no field 'stoarge'"):
        NumericalPolicy(stoarge="f32")
    with pytest.raises(ValueError):
        NumericalPolicy(denorm_mode="maybe")


def test_effects_and_constraints():
    assert as_effects("all") >= as_effects(["random", "io"])
    with pytest.raises(ValueError, match="no effect"):
        as_effects("rnadom")
    c = parse_constraint("D % 8 == 0")
    assert c.decide({"D": 16}) is True and c.decide({"D": 12}) is False and c.decide() is None
