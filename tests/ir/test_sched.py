"""The grammar of Schedule IR: what is refused, and with which words."""

from __future__ import annotations

import numpy as np
import pytest

from tessera.ir.graph import GrammarError
from tessera.ir.interpret_sched import CheckFailed, interpret
from tessera.ir.sched import verify
from tessera.ir.sched_machine import fold, identity
from tessera.ir.text import parse_function
from tessera.types.dtypes import bool_, f32, int32

SOFTMAX = """sched @softmax(%x: buf<f32[B, 40]>, %o: buf<f32[B, 40]>) with {inputs = 1, outputs = 1, sizes = ("B",)} {
  kernel(%x, %o) {name = "softmax", grid = (("i", <B>),), outs = (1,)} do(%a: buf<f32[B, 40]>, %b: buf<f32[B, 40]>) {
    %m = reduce() {over = (("r", 40),), combine = "max", lanes = 16} do() {
      %v = load(%a) {index = (<i>, <r>)} : f32
      yield(%v)
    } : f32
    %s = reduce() {over = (("t", 40),), combine = "add", lanes = 16} do() {
      %w = load(%a) {index = (<i>, <t>)} : f32
      %d = sub(%w, %m) : f32
      %e = exp(%d) : f32
      store(%b, %e) {index = (<i>, <t>)}
      yield(%e)
    } : f32
    for() {over = (("j", 40),)} do() {
      %p = load(%b) {index = (<i>, <j>)} : f32
      %q = div(%p, %s) : f32
      store(%b, %q) {index = (<i>, <j>)}
      yield()
    }
    yield()
  }
  return()
}"""


def test_the_example_is_well_formed_and_reads_back() -> None:
    fn = parse_function(SOFTMAX)
    verify(fn)
    assert str(parse_function(str(fn))) == str(fn)


def test_the_example_is_softmax() -> None:
    x = np.random.default_rng(0).standard_normal((3, 40)).astype(np.float32)
    out = np.empty_like(x)
    interpret(parse_function(SOFTMAX), [x, out], {"B": 3})
    e = np.exp(x - x.max(1, keepdims=True))
    np.testing.assert_allclose(out, e / e.sum(1, keepdims=True), rtol=1e-6)


@pytest.mark.parametrize(("old", "new", "message"), [
    ('grid = (("i", <B>),)', 'grid = (("i", <C>),)', "'C', which is neither a size nor a loop"),
    ('grid = (("i", <B>),)', 'grid = (("B", <B>),)', "the loop 'B' takes a name in use"),
    ("outs = (1,)", "outs = (0,)", r"outs = \(0,\), but it stores to \[1\]"),
    ("outs = (1,)", "outs = (2,)", "does not name operands"),
    ("outs = (1,)", 'outs = (1,), lane = "r"', "lane = 'r' is not a loop of the grid"),
    ("index = (<i>, <r>)", "index = (<i>,)", "does not fit"),
    ("index = (<i>, <r>)", "index = (<i>, <t>)", "mentions 't', which is no loop around it"),
    ('combine = "max"', 'combine = "most"', "not 'most'"),
    ("lanes = 16} do() {\n      %v", "lanes = 12} do() {\n      %v", "no power of two"),
    ("yield(%v)\n    } : f32", "yield(%v)\n    } : f64", "yields other types"),
    ("%v = load(%a) {index = (<i>, <r>)} : f32", "%v = load(%a) {index = (<i>, <r>)} : f64", "gives f64 from"),
    ("%d = sub(%w, %m) : f32", "%d = sub(%w, %a) : f32", "works on scalars"),
    ("  return()\n", "  yield()\n", "does not end in return"),
    ("kernel(%x, %o)", "kernel(%x, %x)", None),
    ("  kernel(%x, %o)", "  launchpad(%x, %o)", "no such launch"),
    ("do(%a: buf<f32[B, 40]>", "do(%a: buf<f32[B, 41]>", "arguments are not the operands"),
])
def test_refused(old: str, new: str, message: str | None) -> None:
    assert old in SOFTMAX
    fn = parse_function(SOFTMAX.replace(old, new, 1))
    if message is None:
        verify(fn)
    else:
        with pytest.raises(GrammarError, match=message):
            verify(fn)


TOP = """sched @f(%x: buf<f32[4]>, %p: buf<bool[]>) with {{inputs = 1, outputs = 1, sizes = ()}} {{
  {}
  return()
}}"""


@pytest.mark.parametrize(("body", "message"), [
    ("%a = view(%x) {offset = 2} : buf<f32[3]>", "leaves the buffer"),
    ("%a = view(%x) {offset = 0} : buf<int32[4]>", "changes the dtype"),
    ("%a = constant() {value = dense<f32[1]: 0000803f>} : buf<f32[2]>", "does not have the type"),
    ("cond(%x) do() {\n yield()\n } do() {\n yield()\n }", "needs one buffer of a bool"),
    ("cond(%p) do() {\n yield()\n }", "has 1 blocks, not 2"),
    ("while() do() {\n yield(%x)\n } do() {\n yield()\n }", "needs one buffer of a bool"),
    ('call(%x) {callee = "g", outs = (0,)}', "has no function 'g'"),
    ('template(%x) {template = "sort", outs = (0,), blocks = ("epilogue",)}', "names 1 blocks and has 0"),
    ('loop() {over = ("t", <T>)} do() {\n yield()\n }', "'T', which is neither a size"),
    ("%a = alloc() {offset = <N>} : buf<f32[4]>", "'N', which is neither a size"),
])
def test_refused_at_the_top(body: str, message: str) -> None:
    with pytest.raises(GrammarError, match=message):
        verify(parse_function(TOP.format(body)))


def test_loop_variables_may_stand_in_views() -> None:
    verify(parse_function(TOP.format('loop() {over = ("t", 4)} do() {\n %a = view(%x) {offset = <t>} : buf<f32[]>\n yield()\n }')))


# -- the interpreter ------------------------------------------------------------------------------------------------------------
def test_reductions_follow_the_stated_order() -> None:
    x = np.float32([1e8, 1.0, -1e8, 1.0, 3.0, 1e-3, 5.0])
    plain = np.float32(0)
    for v in x:
        plain = np.float32(plain + v)
    assert fold(x, "add", f32, 1) == plain
    lanes = [np.float32(0)] * 4
    for k, v in enumerate(x):
        lanes[k % 4] = np.float32(lanes[k % 4] + v)
    by_four = np.float32(np.float32(lanes[0] + lanes[2]) + np.float32(lanes[1] + lanes[3]))
    assert fold(x, "add", f32, 4) == by_four
    assert plain != by_four


def test_identities() -> None:
    assert identity("max", f32) == -np.inf and identity("min", int32) == 2**31 - 1
    assert identity("and", bool_) is True and identity("and", int32) == -1 and identity("mul", f32) == 1


GATHER = """sched @g(%x: buf<f32[4]>, %i: buf<int64[3]>, %o: buf<f32[3]>) with {inputs = 2, outputs = 1, sizes = (),
    sites = ("bad {value}",)} {
  kernel(%x, %i, %o) {name = "g", grid = (("k", 3),), outs = (2,)} do(%a: buf<f32[4]>, %b: buf<int64[3]>, %c: buf<f32[3]>) {
    %n = load(%b) {index = (<k>,)} : int64
    %four = constant() {value = 4} : int64
    %ok = lt(%n, %four) : bool
    check(%ok, %n) {site = 0}
    %v = guard(%ok) {other = 7.0} do() {
      %w = load(%a, %n) {index = (<g>,), dyn = ("g",)} : f32
      yield(%w)
    } : f32
    store(%c, %v) {index = (<k>,)}
    yield()
  }
  return()
}"""


def test_guards_keep_loads_inside_and_checks_report_the_first_failure() -> None:
    fn = parse_function(GATHER)
    verify(fn)
    out = np.zeros(3, np.float32)
    with pytest.raises(CheckFailed, match="bad 9"):
        interpret(fn, [np.arange(4, dtype=np.float32), np.array([2, 9, 3]), out])
    assert out.tolist() == [2.0, 7.0, 3.0]


def test_a_load_outside_its_buffer_is_an_error() -> None:
    text = SOFTMAX.replace("index = (<i>, <r>)", "index = (<i>, <r+1>)")
    with pytest.raises(IndexError, match="leaves axis 1 of size 40"):
        interpret(parse_function(text), [np.zeros((2, 40), np.float32), np.zeros((2, 40), np.float32)], {"B": 2})


def test_arrays_must_fit() -> None:
    with pytest.raises(ValueError, match="takes 2 buffers, not 1"):
        interpret(parse_function(SOFTMAX), [np.zeros((2, 40), np.float32)], {"B": 2})
    with pytest.raises(ValueError, match="not an array of shape"):
        interpret(parse_function(SOFTMAX), [np.zeros((2, 41), np.float32)] * 2, {"B": 2})
