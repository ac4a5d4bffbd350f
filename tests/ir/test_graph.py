"""The grammar of Graph IR: what it refuses and how it says so."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest

import tessera.ops  # noqa: F401  (fills the op table)
from tessera.ir.core import Block, Function, Op, TensorType
from tessera.ir.graph import GrammarError, verify, walk_functions
from tessera.ir.text import parse_function, print_function
from tessera.types import dtypes as dt

GOOD = """
graph @step(%x: f32[B, 4], %w: f32[4, 3]) {
  %0 = dot_general(%x, %w) {lhs_contract = (1,), rhs_contract = (0,), lhs_batch = (), rhs_batch = ()} : f32[B, 3]
  return(%0)
}
graph @main(%x: f32[B, 4], %w: f32[4, 3], %n: int64[]) with {effects = (), sizes = ("B",), captured = 0, constraints = ()} {
  %y = call(%x, %w) {callee = "step"} : f32[B, 3]
  %z = constant() {value = 0.5, dtype = f32} : f32[]
  %b = broadcast_to(%z) {shape = (<B>, 3)} : f32[B, 3]
  %s = add(%y, %b) : f32[B, 3]
  %zero = constant() {value = 0, dtype = int64} : int64[]
  %p = lt(%n, %zero) : bool[]
  %c = cond(%p, %s) do(%t: f32[B, 3]) {
    %u = neg(%t) : f32[B, 3]
    yield(%u)
  } do(%t2: f32[B, 3]) {
    yield(%t2)
  } : f32[B, 3]
  %m, %v = while(%n, %c) do(%i: int64[], %a: f32[B, 3]) {
    %q = gt(%i, %zero) : bool[]
    yield(%q)
  } do(%i2: int64[], %a2: f32[B, 3]) {
    %one = constant() {value = 1, dtype = int64} : int64[]
    %j = sub(%i2, %one) : int64[]
    %d = add(%a2, %a2) : f32[B, 3]
    yield(%j, %d)
  } : int64[], f32[B, 3]
  %k, %rows = scan(%n, %x) {carry = 1, length = <B>, reverse = false} do(%h: int64[], %row: f32[4]) {
    %h2 = add(%h, %h) : int64[]
    %r2 = mul(%row, %row) : f32[4]
    yield(%h2, %r2)
  } : int64[], f32[B, 4]
  return(%v, %k, %rows)
}
"""


def program() -> Function:
    return parse_function(GOOD)


def test_a_good_program_passes_and_prints_back() -> None:
    fn = program()
    verify(fn)
    again = parse_function(print_function(fn))
    verify(again)
    assert print_function(again) == print_function(fn)


def test_functions_are_walked_once_each() -> None:
    fn = program()
    fn.functions["same"] = fn.functions["step"]
    assert [f.name for f in walk_functions(fn)] == ["step", "main"]


# what to change in the text -> what the error says
WRONG = {
    "unknown op": (("%s = add(", "%s = ad("), "ad: there is no such op"),
    "type of a result": (("%s = add(%y, %b) : f32[B, 3]", "%s = add(%y, %b) : f32[B, 4]"),
                         "add: states (f32[B, 4]), its rule infers (f32[B, 3])"),
    "dtype of a result": (("neg(%t) : f32[B, 3]", "neg(%t) : f64[B, 3]"), "neg: states (f64[B, 3])"),
    "operands that do not fit": (("add(%y, %b)", "add(%y, %x)"), "add: Shape mismatch in dimension 1: 3 vs 4"),
    "missing attribute": (("{shape = (<B>, 3)}", "{}"), "broadcast_to: the attribute 'shape' is missing"),
    "unknown size": (("%d = add(%a2, %a2) : f32[B, 3]", "%d = add(%a2, %a2) : f32[Q, 3]"), "names the size 'Q', which no parameter has"),
    "callee": (('callee = "step"', 'callee = "stop"'), "call: @main has no function 'stop'"),
    "call's result": (('{callee = "step"} : f32[B, 3]', '{callee = "step"} : f32[3, B]'), "call: @step returns (f32[B, 3])"),
    "call's operand": (("call(%x, %w)", "call(%w, %w)"), "call: passes f32[4, 3] for f32[4, 4] of @step"),
    "predicate": (("cond(%p, %s)", "cond(%n, %s)"), "cond: the predicate is not a bool[]"),
    "branches differ": (("yield(%t2)", "yield(%n)"), "cond: block 1 yields (int64[]), the op states (f32[B, 3])"),
    "branch arguments": (("do(%t2: f32[B, 3])", "do(%t2: f32[3, B])"), "cond: block 1 takes (f32[3, B]), not (f32[B, 3])"),
    "loop condition": (("yield(%q)", "yield(%i)"), "while: the condition yields (int64[]), not bool[]"),
    "loop carry": (("yield(%j, %d)", "yield(%d, %j)"), "while: the body yields"),
    "scan length": (("length = <B>", "length = 7"), "scan: the operand f32[B, 4] does not have 7 slices"),
    "scan carry": (("carry = 1", "carry = 5"), "scan: carry = 5 is not a number of operands"),
    "end of a function": (("  return(%v, %k, %rows)\n", ""), "@main: a block must end in 'return'"),
    "return in the middle": (("  %s = add(", "  return(%y)\n  %s = add("), "return: stands in the middle of a block"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_programs_are_refused(what: str) -> None:
    (old, new), message = WRONG[what]
    assert GOOD.count(old) == 1, old
    with pytest.raises(GrammarError, match=re.escape(message)):
        verify(parse_function(GOOD.replace(old, new)))


def broken(change: Callable[[Function], None]) -> Function:
    fn = program()
    change(fn)
    return fn


def _use_before_definition(fn: Function) -> None:
    fn.body.ops[0], fn.body.ops[3] = fn.body.ops[3], fn.body.ops[0]


def _use_of_an_inner_value(fn: Function) -> None:
    inner = next(op for op in fn.body.ops if op.name == "cond").blocks[0].ops[0].result
    fn.body.terminator.operands[0] = inner


def _odd_attribute(fn: Function) -> None:
    fn.body.ops[0].attrs["note"] = object()


def _defined_twice(fn: Function) -> None:
    fn.body.ops.insert(1, fn.body.ops[0])


def _block_on_a_primitive(fn: Function) -> None:
    fn.body.ops[3].blocks = [Block()]


@pytest.mark.parametrize(("change", "message"), [
    (_use_before_definition, "used before it is defined"),
    (_use_of_an_inner_value, "outside its block"),
    (_odd_attribute, "the attribute note is a object"),
    (_defined_twice, "defined twice"),
    (_block_on_a_primitive, "add: has a nested block"),
])
def test_structure_that_text_cannot_say(change: Callable[[Function], None], message: str) -> None:
    with pytest.raises(GrammarError, match=message):
        verify(broken(change))


def test_other_levels_are_refused() -> None:
    with pytest.raises(GrammarError, match="is a tile function"):
        verify(Function("k", "tile"))


def test_a_number_as_constant_needs_its_type() -> None:
    fn = Function("f", "graph")
    op = Op("constant", (), (TensorType(dt.f32, (2,)),), {"value": 1.5})
    fn.body.ops = [op, Op("return", op.results)]
    with pytest.raises(GrammarError, match="a number is a scalar"):
        verify(fn)
    op.results[0].type = TensorType(dt.f32, ())
    verify(fn)
    op.attrs["value"] = np.zeros((2,), np.float64)
    with pytest.raises(GrammarError, match="its rule infers"):
        verify(fn)
