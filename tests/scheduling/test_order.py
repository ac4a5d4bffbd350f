"""Less memory at once: where launches stand, and where temporaries lie."""

from __future__ import annotations

from sched_cases import check

LATE = """graph @f(%x: f32[640, 640], %w: f32[640, 640]) {
  %a = dot_general(%x, %w) {lhs_contract = (1,), rhs_contract = (0,), lhs_batch = (), rhs_batch = ()} : f32[640, 640]
  %s = reduce_sum(%a) {axes = (0, 1)} : f32[]
  %b = dot_general(%w, %x) {lhs_contract = (1,), rhs_contract = (0,), lhs_batch = (), rhs_batch = ()} : f32[640, 640]
  %m = reduce_max(%b) {axes = (1,)} : f32[640]
  %t = reduce_sum(%m) {axes = (0,)} : f32[]
  return(%t, %s)
}"""


def test_what_only_a_result_shows_does_not_keep_large_values() -> None:
    one = 640 * 640 * 4
    assert check(LATE, tolerance=1e-4).attrs["arena"] < 1.5 * one, "one product at a time"


SUM = """graph @f(%x: f32[600, 600], %w: f32[600, 600]) {
  %a = dot_general(%x, %w) {lhs_contract = (1,), rhs_contract = (0,), lhs_batch = (), rhs_batch = ()} : f32[600, 600]
  %b = dot_general(%w, %x) {lhs_contract = (1,), rhs_contract = (1,), lhs_batch = (), rhs_batch = ()} : f32[600, 600]
  %c = cumsum(%b) {axis = 1, reverse = false} : f32[600, 600]
  %d = cumsum(%a) {axis = 1, reverse = false} : f32[600, 600]
  %e = add(%c, %d) : f32[600, 600]
  return(%e)
}"""


def test_a_temporary_lives_in_the_result_that_it_becomes() -> None:
    one = 600 * 600 * 4
    fn = check(SUM, tolerance=1e-3)
    assert fn.attrs["arena"] <= 2.1 * one, "the third is where the result will lie"


def test_a_result_that_is_read_earlier_keeps_its_memory_to_itself() -> None:
    check("""graph @f(%x: f32[64, 64]) {
      %a = dot_general(%x, %x) {lhs_contract = (1,), rhs_contract = (0,), lhs_batch = (), rhs_batch = ()} : f32[64, 64]
      %b = add(%a, %x) : f32[64, 64]
      %c = dot_general(%b, %a) {lhs_contract = (1,), rhs_contract = (0,), lhs_batch = (), rhs_batch = ()} : f32[64, 64]
      %d = add(%c, %b) : f32[64, 64]
      return(%b, %d, %a)
    }""", tolerance=1e-4)
