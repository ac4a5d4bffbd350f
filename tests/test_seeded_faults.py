"""Faults put into passes and kernels on purpose: the comparison that the suite uses must notice each of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import lowering
import numpy as np
import pytest
import sched_cases
from emit_harness import check as check_native
from products import matmul_function
from trace_cases import agree, names, traced

import tessera as ts
from tessera.ir.interpret_graph import interpret
from tessera.ir.interpret_tile import TileError
from tessera.ir.text import parse_function
from tessera.ops import composites
from tessera.ops import pointwise as pw
from tessera.ops import reduction as rd
from tessera.ops.table import OPS
from tessera.scheduling import memory
from tessera.targets.cpu import emit_dot
from tessera.tiling import lower_loops
from tessera.tiling.lower_loops import Loops
from tessera.transforms import canonicalize, cleanup, expand
from tessera.types import dtypes as dt
from tessera.types import promotion

Patch = pytest.MonkeyPatch


class Fault(NamedTuple):
    """``seed`` breaks one function; ``check`` is what must hold before and must not hold afterwards."""

    seed: Callable[[Patch], None]
    check: Callable[[], None]


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(3).standard_normal(shape).astype(np.float32)


# -- Graph passes -----------------------------------------------------------------------------------------------------------
def merge_random_sites(patch: Patch) -> None:
    honest = cleanup.key_of
    patch.setattr(cleanup, "mergeable", lambda op: not op.blocks)
    patch.setattr(cleanup, "key_of", lambda attrs: honest({k: v for k, v in attrs.items() if k != "site"}))


def random_sites_differ() -> None:
    fn = traced(lambda x: ts.random.uniform((4,)) + ts.random.uniform((4,)) + x, (4,))
    out = cleanup.merge_common_subexpressions(fn)
    assert names(out).count("random_bits") == 2


def drop_positive_zero(patch: Patch) -> None:
    patch.setattr(canonicalize, "_positive_zero", lambda x: False)


def zeros_keep_their_sign() -> None:
    fn = parse_function("graph @f(%x: f32[2]) {\n%k = full() {shape = (2,), value = 0.0, dtype = f32} : f32[2]\n"
                        "%z = add(%x, %k) : f32[2]\nreturn(%z)\n}")
    x = [np.array([-0.0, 1.0], np.float32)]
    (before,), (after,) = interpret(fn, x), interpret(canonicalize.canonicalize(fn), x)
    assert before.tobytes() == after.tobytes()


def transpose_twice_the_wrong_way(patch: Patch) -> None:
    def wrong(c: Any, op: Any, xs: list[Any]) -> Any:
        inner = canonicalize.producer(xs[0], "transpose")
        if inner is None:
            return None
        perm = tuple(op.attrs["perm"][p] for p in inner.attrs["perm"])
        return c.builder.value("transpose", (inner.operands[0],), op.results[0].type, {"perm": perm}, (), op.loc)

    patch.setitem(canonicalize.RULES, "transpose", [wrong])


def transposes_compose() -> None:
    fn = traced(lambda x: ts.transpose(ts.transpose(x, (1, 0, 2)), (2, 1, 0)), (4, 4, 4))
    agree(fn, canonicalize.canonicalize(fn))


def softmax_without_shift(patch: Patch) -> None:
    def wrong(x: Any, axis: int) -> Any:
        e = pw.exp(x)
        return pw.mul(e, pw.reciprocal(rd.sum(e, axis, True)))

    patch.setitem(OPS, "softmax", dataclasses.replace(OPS["softmax"], expand=wrong))
    patch.setattr(expand, "_DEFINITIONS", {})


def softmax_of_large_numbers() -> None:
    x = np.array([[100.0, 99.0, -3.0], [1000.0, 0.0, 1000.0]], np.float32)
    fn = traced(lambda x: composites.softmax(x, -1), x.shape)
    (want,), (got,) = interpret(fn, [x]), interpret(expand.expand_composites(fn), [x])
    np.testing.assert_allclose(got, want, rtol=2e-6, atol=2e-6)


# -- types ------------------------------------------------------------------------------------------------------------------
def wrong_row_of_promotion(patch: Patch) -> None:
    patch.setitem(promotion._SIGNED, 16, dt.int8)
    patch.setattr(promotion, "promote", promotion.promote.__wrapped__)  # the real one remembers the right answers


def promoted_integers_hold_both() -> None:
    for a, b in ((dt.uint8, dt.int8), (dt.int8, dt.uint8), (dt.uint16, dt.int8), (dt.uint8, dt.int32)):
        both = promotion.promote(a, b).iinfo
        assert both.max >= max(a.iinfo.max, b.iinfo.max) and both.min <= min(a.iinfo.min, b.iinfo.min)


# -- scheduling -------------------------------------------------------------------------------------------------------------
def overlapping_temporaries(patch: Patch) -> None:
    patch.setattr(memory.Life, "meets", lambda self, other: False)


def temporaries_lie_apart() -> None:
    fn = traced(lambda x, w: (x @ w) @ (x @ ts.exp(w)) @ ts.cumsum(x @ w, 0), (16, 16), (16, 16))
    program = sched_cases.check(fn, tolerance=1e-5, sums=True)
    sched_cases.check_memory(program, {})


# -- lowering ---------------------------------------------------------------------------------------------------------------
SUMS = """sched @f(%x: buf<f32[3, 130]>, %o: buf<f32[3]>) {
  kernel(%x, %o) {grid = (("i", 3),), outs = (1,)} do(%a: buf<f32[3, 130]>, %c: buf<f32[3]>) {
    %s = reduce() {over = (("j", 130),), combine = "add", lanes = 16} do() {
      %0 = load(%a) {index = (<i>, <j>)} : f32
      yield(%0)
    } : f32
    store(%c, %s) {index = (<i>,)}
    yield()
  }
  return()
}"""
MAP = """sched @f(%x: buf<f32[N]>, %o: buf<f32[N]>) with {sizes = ("N",)} {
  kernel(%x, %o) {grid = (("i", <N>),), outs = (1,)} do(%a: buf<f32[N]>, %c: buf<f32[N]>) {
    %0 = load(%a) {index = (<i>,)} : f32
    %1 = mul(%0, %0) : f32
    store(%c, %1) {index = (<i>,)}
    yield()
  }
  return()
}"""


def twice_the_accumulators(patch: Patch) -> None:
    honest = Loops._lanes
    patch.setattr(Loops, "_lanes", lambda self, op: 2 * honest(self, op))


def sums_run_in_the_written_order() -> None:
    lowering.check(SUMS, [numbers(3, 130), np.zeros(3, np.float32)], machines=lowering.MACHINES[:1])


def no_boundary_mask(patch: Patch) -> None:
    patch.setattr(lower_loops, "replace", lambda ctx, **changes: dataclasses.replace(ctx, **(changes | {"tail": None})))


def a_map_stays_inside_its_buffers() -> None:
    lowering.check(MAP, [numbers(37), np.zeros(37, np.float32)], {"N": 37}, machines=lowering.MACHINES[:1])


# -- machine code -----------------------------------------------------------------------------------------------------------
def rounded_products(patch: Patch) -> None:
    honest = emit_dot.pointwise

    def wrong(w: Any, name: str, args: Sequence[str], types: Any, out: Any, width: int) -> str:
        if name != "fma":
            return honest(w, name, args, types, out, width)
        product = honest(w, "mul", args[:2], types[:2], out, width)
        return honest(w, "add", (product, args[2]), types[:2], out, width)

    patch.setattr(emit_dot, "pointwise", wrong)


def a_product_rounds_once_a_step() -> None:
    check_native(matmul_function(5, 16, 9), [numbers(5 * 9), numbers(9 * 16), np.zeros(5 * 16, np.float32)])


FAULTS = {
    "two random sites merged": Fault(merge_random_sites, random_sites_differ),
    "x + 0.0 taken for x": Fault(drop_positive_zero, zeros_keep_their_sign),
    "permutations composed in the wrong order": Fault(transpose_twice_the_wrong_way, transposes_compose),
    "softmax without the maximum": Fault(softmax_without_shift, softmax_of_large_numbers),
    "uint8 and int8 give int8": Fault(wrong_row_of_promotion, promoted_integers_hold_both),
    "live temporaries share memory": Fault(overlapping_temporaries, temporaries_lie_apart),
    "a sum over twice the accumulators": Fault(twice_the_accumulators, sums_run_in_the_written_order),
    "no mask at the end of a row": Fault(no_boundary_mask, a_map_stays_inside_its_buffers),
    "fma rounded twice": Fault(rounded_products, a_product_rounds_once_a_step),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS.keys())
def test_the_suite_notices(fault: Fault, monkeypatch: Patch) -> None:
    fault.check()
    with monkeypatch.context() as patch:
        fault.seed(patch)
        with pytest.raises((AssertionError, TileError)), np.errstate(all="ignore"):
            fault.check()
    fault.check()
