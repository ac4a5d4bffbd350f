"""Structured control flow over buffers, calls, updates in place."""

from __future__ import annotations

import numpy as np
from sched_cases import arguments, check, launches, lower

from tessera.ir.interpret_sched import interpret
from tessera.ir.text import parse_function

WHILE = """graph @w(%x: f32[4], %n: int64[]) {
  %i = constant() {value = 0} : int64[]
  %r0, %r1 = while(%i, %x) do(%a: int64[], %b: f32[4]) {
    %c = constant() {value = 5} : int64[]
    %p = lt(%a, %c) : bool[]
    yield(%p)
  } do(%a1: int64[], %b1: f32[4]) {
    %one = constant() {value = 1} : int64[]
    %a2 = add(%a1, %one) : int64[]
    %b2 = add(%b1, %b1) : f32[4]
    yield(%a2, %b2)
  } : int64[], f32[4]
  return(%r0, %r1, %x)
}"""


def test_while() -> None:
    fn = check(WHILE)
    loop = next(op for op in fn.body.ops if op.name == "while")
    assert [op.name for op in loop.blocks[1].ops] == ["kernel", "kernel", "yield"]  # the carry is written in place


def test_while_that_never_runs() -> None:
    check(WHILE.replace("value = 5", "value = 0"))


def test_a_carry_that_changes_places() -> None:
    check("""graph @w(%x: f32[4], %y: f32[4]) {
      %i = constant() {value = 0} : int64[]
      %r0, %r1, %r2 = while(%i, %x, %y) do(%a: int64[], %b: f32[4], %d: f32[4]) {
        %c = constant() {value = 3} : int64[]
        %p = lt(%a, %c) : bool[]
        yield(%p)
      } do(%a1: int64[], %b1: f32[4], %d1: f32[4]) {
        %one = constant() {value = 1} : int64[]
        %a2 = add(%a1, %one) : int64[]
        yield(%a2, %d1, %b1)
      } : int64[], f32[4], f32[4]
      return(%r0, %r1, %r2)
    }""")


SCAN = """graph @s(%h: f32[4], %xs: f32[T, 4], %w: f32[4, 4]) {
  %r, %ys = scan(%h, %xs) {carry = 1, length = <T>, reverse = REVERSE} do(%c: f32[4], %x: f32[4]) {
    %m = dot_general(%c, %w) {lhs_contract = (0,), rhs_contract = (0,), lhs_batch = (), rhs_batch = ()} : f32[4]
    %s = add(%m, %x) : f32[4]
    %t = tanh(%s) : f32[4]
    %u = mul(%t, %x) : f32[4]
    yield(%t, %u)
  } : f32[4], f32[T, 4]
  return(%r, %ys)
}"""


def test_scan_both_ways() -> None:
    for word in ("true", "false"):
        check(SCAN.replace("REVERSE", word), {"T": 6}, tolerance=1e-5)


def test_scan_over_nothing() -> None:
    check(SCAN.replace("REVERSE", "false"), {"T": 0})


def test_cond_uses_values_from_outside() -> None:
    text = """graph @c(%p: bool[], %x: f32[3], %y: f32[3]) {
      %s = add(%x, %y) : f32[3]
      %r = cond(%p, %s) do(%a: f32[3]) {
        %e = mul(%a, %s) : f32[3]
        yield(%e)
      } do(%b: f32[3]) {
        yield(%b)
      } : f32[3]
      return(%r)
    }"""
    fn = parse_function(text)
    for p in (True, False):
        xs = [np.asarray(p), *arguments(fn, {})[1:]]
        check(text, inputs=xs)


CACHE = """graph @k(%cache: f32[2, 8, 4], %new: f32[2, 1, 4], %pos: int64[]) ATTRS{
  %n2 = add(%new, %new) : f32[2, 1, 4]
  %r = dynamic_update_slice(%cache, %n2, %pos) {starts = (0, none, 0)} : f32[2, 8, 4]
  %e = exp(%r) : f32[2, 8, 4]
  return(%r, %e)
}"""


def test_an_update_copies_what_it_may_not_overwrite() -> None:
    fn = check(CACHE.replace("ATTRS", ""))
    assert "aliases" not in fn.attrs


def test_an_update_of_a_donated_cache_writes_the_piece_alone() -> None:
    fn = lower(CACHE.replace("ATTRS", "with {donated = (0,)} "))
    assert fn.attrs["aliases"] == ((0, 0),)
    cache, new, pos = arguments(parse_function(CACHE.replace("ATTRS", "")), {})
    pos = np.asarray(5)
    expected = cache.copy()
    expected[:, 5] = 2 * new[:, 0]
    out = np.zeros_like(cache)
    interpret(fn, [cache, new, pos, np.zeros_like(cache), out])
    assert np.array_equal(cache, expected)
    np.testing.assert_allclose(out, np.exp(expected), rtol=1e-6)


def test_a_donated_cache_that_is_read_again_is_not_overwritten() -> None:
    text = CACHE.replace("ATTRS", "with {donated = (0,)} ").replace("return(%r, %e)", "%z = neg(%cache) : f32[2, 8, 4]\n  return(%r, %z)")
    fn = check(text)
    assert [i for _, i in fn.attrs["aliases"]] == [0]  # one of the results, and the other is right all the same


def test_a_cache_carried_by_a_scan_is_updated_in_place() -> None:
    fn = check("""graph @f(%cache: f32[6, 4], %xs: f32[6, 1, 4]) {
      %i = constant() {value = 0} : int64[]
      %n, %r = scan(%i, %cache, %xs) {carry = 2, length = 6, reverse = false} do(%k: int64[], %c: f32[6, 4], %x: f32[1, 4]) {
        %u = dynamic_update_slice(%c, %x, %k) {starts = (none, 0)} : f32[6, 4]
        %one = constant() {value = 1} : int64[]
        %k2 = add(%k, %one) : int64[]
        yield(%k2, %u)
      } : int64[], f32[6, 4]
      return(%n, %r)
    }""")
    loop = next(op for op in fn.body.ops if op.name == "loop")
    assert all(op.attrs["grid"] != (("i0", 6), ("i1", 4)) for op in loop.blocks[0].ops if op.name == "kernel")


def test_calls() -> None:
    fn = check("""graph @layer(%x: f32[B, 8], %w: f32[8]) with {sizes = ("B",)} {
      %y = rms_norm(%x, %w) {eps = 1e-06} : f32[B, 8]
      %s = softmax(%y) {axis = 0} : f32[B, 8]
      return(%s)
    }
    graph @f(%x: f32[B, 8], %w: f32[8]) with {sizes = ("B",)} {
      %a = call(%x, %w) {callee = "layer"} : f32[B, 8]
      %b = call(%a, %w) {callee = "layer"} : f32[B, 8]
      return(%b)
    }""", {"B": 5})
    assert launches(fn) == ["call", "call"]
    assert all(op.attrs.get("offset") is not None for op in fn.body.ops if op.name == "call")


def test_a_donated_state_is_updated_in_its_own_memory() -> None:
    text = """graph @step(%p: f32[8], %m: f32[8], %g: f32[8]) with {donated = (0, 1)} {
      %k = full() {shape = (8,), value = 0.5, dtype = f32} : f32[8]
      %a = mul(%m, %k) : f32[8]
      %n = add(%a, %g) : f32[8]
      %s = mul(%n, %k) : f32[8]
      %q = sub(%p, %s) : f32[8]
      return(%q, %n)
    }"""
    fn = lower(text)
    assert launches(fn) == ["kernel"] and fn.attrs["aliases"] == ((0, 0), (1, 1))
    p, m, g = arguments(parse_function(text), {})
    n = m * np.float32(0.5) + g
    q = p - n * np.float32(0.5)
    interpret(fn, [p, m, g, np.zeros_like(p), np.zeros_like(p)])
    assert np.array_equal(p, q) and np.array_equal(m, n)


def test_a_donated_parameter_that_is_read_at_other_places_is_not_reused() -> None:
    text = """graph @f(%x: f32[8]) with {donated = (0,)} {
      %r = flip(%x) {axes = (0,)} : f32[8]
      %y = add(%x, %r) : f32[8]
      return(%y)
    }"""
    assert "aliases" not in check(text).attrs


COPIES = """graph @f(%h: f32[4, 8], %xs: f32[6, 4, 8]) {
  %r, %q, %ys = scan(%h, %h, %xs) {carry = 2, length = 6, reverse = false} do(%c: f32[4, 8], %d: f32[4, 8], %x: f32[4, 8]) {
    %b = flip(%d) {axes = (0,)} : f32[4, 8]
    %t = tanh(%b) : f32[4, 8]
    %n = add(%t, %x) : f32[4, 8]
    %m = mul(%n, %c) : f32[4, 8]
    yield(%m, %n, %n)
  } : f32[4, 8], f32[4, 8], f32[6, 4, 8]
  return(%r, %q, %ys)
}"""


def test_copies_at_the_end_of_a_step_need_no_kernel() -> None:
    """A value that is both the next carry and a row of the result is stored to both by the kernel that makes it; where that
    kernel reads the carry at other points, the copy over it stays."""
    fn = check(COPIES)
    loop = next(op for op in fn.body.ops if op.name == "loop")
    kernels = [op for op in loop.blocks[0].ops if op.name == "kernel"]
    copies = [op for op in kernels if [o.name for o in op.blocks[0].ops] == ["load", "store", "yield"]]
    assert len(copies) <= 1
    made = next(op for op in kernels if any(o.name == "tanh" for o in op.walk()))
    assert len(made.attrs["outs"]) >= 2
