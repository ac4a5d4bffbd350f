"""Every op has all its facets, and the names agree with the vocabulary that the lower levels speak."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
import sweep

import tessera.ops as ops
from tessera.errors import TesseraError
from tessera.ir import tile
from tessera.ir.core import TensorType
from tessera.ir.graph import OP_RULES, STRUCTURAL
from tessera.ir.interpret_graph import REFERENCES
from tessera.ops.table import OPS, primitive
from tessera.types import dtypes as dt

NAMES = sorted(OPS)
FAMILIES = {"pointwise", "movement", "reduction", "contraction", "composite", "indexing", "sorting", "random", "fft", "linalg", "summation",
            "collective", "barrier"}
POINTWISE = """
add sub mul div neg abs fma sqrt floor ceil round trunc minimum maximum eq ne lt le gt ge logical_and logical_or logical_not
logical_xor bitwise_and bitwise_or bitwise_xor bitwise_not shift_left shift_right select convert bitcast floor_div mod isnan isinf
isfinite sign copysign exp exp2 expm1 log log2 log1p log10 sin cos tan asin acos atan atan2 sinh cosh tanh asinh acosh atanh erf
erfc erfinv sigmoid rsqrt cbrt pow hypot lgamma digamma reciprocal logaddexp
"""
VOCABULARY = POINTWISE.split()
COMPLEX_PARTS = {"real", "imag", "complex"}


@pytest.mark.parametrize("name", NAMES)
def test_facets(name: str) -> None:
    op = OPS[name]
    assert op.family in FAMILIES
    assert callable(op.infer) and callable(op.reference)
    assert op.dtypes and all(isinstance(d, dt.DType) for d in op.dtypes)
    assert op.doc, "the stanza does not say what the op is"
    assert op.bound.ulp >= 0
    whole = [op.pointwise, op.expand is not None, op.external is not None, op.element is not None or op.template is not None]
    assert sum(whole) == 1, "there must be exactly one way in which the op is computed"
    assert OP_RULES[name] is not None and REFERENCES[name] is op.reference
    assert name not in STRUCTURAL


@pytest.mark.parametrize("name", NAMES)
def test_attributes_are_those_of_the_reference(name: str) -> None:
    """``facts["attrs"]`` names the attributes, and the numpy meaning takes each of them."""
    op = OPS[name]
    parameters = inspect.signature(op.reference).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    missing = [a for a in op.facts.get("attrs", ()) if a not in parameters]
    assert not missing


def test_pointwise_vocabulary() -> None:
    assert {n for n, op in OPS.items() if op.pointwise} - COMPLEX_PARTS == set(VOCABULARY)


def test_tile_level_knows_every_pointwise_op() -> None:
    for name in VOCABULARY:
        assert name in tile.POINTWISE, name


def test_unary_ops_have_functions_of_their_name() -> None:
    inner = {"select", "argtopk", "message", "full", "iota", "constant", "size", "complex", "convert", "dot_general", "random_bits",
             "barrier", "prefetch", "release"}
    hidden = {n for n in OPS if n.startswith("reduce_")} | inner | {n for n, o in OPS.items() if o.family in ("fft", "linalg")}
    for name in set(OPS) - hidden - {"integer_pow", "slice", "attention_forward", "attention_backward"}:
        assert callable(getattr(ops, name)), name


@pytest.mark.parametrize("name", NAMES)
def test_wrong_operands_are_refused_in_words(name: str) -> None:
    """Far too many operands: an error of tessera.errors, never an exception from inside."""
    with pytest.raises(TesseraError) as caught:
        OPS[name].infer([TensorType(OPS[name].dtypes[0], (3, 4))] * 9, dict(_any_attrs(name)))
        pytest.skip("a variadic op")
    assert caught.value.message


def _any_attrs(name: str) -> dict:
    case = next((c for c in CASES if c.op == name), None)
    if case is None:
        return {"full": True, "complete": True}
    return case.attrs


CASES = sweep.cases()


def test_names_are_unique() -> None:
    with pytest.raises(ValueError, match="declared twice"):
        primitive("add", family="pointwise", infer=lambda t, a: t, reference=np.add, dtypes=(dt.f32,))
