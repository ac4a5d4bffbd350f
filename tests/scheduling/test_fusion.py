"""How many launches programs need, and that fused programs compute what the graph says."""

from __future__ import annotations

import pytest
from sched_cases import check, launches, lower

SOFTMAX = """graph @softmax(%x: f32[B, 96]) {
  %y = softmax(%x) {axis = 1} : f32[B, 96]
  return(%y)
}"""
LAYER_NORM = """graph @norm(%x: f32[B, S, 64], %w: f32[64], %b: f32[64]) {
  %y = layer_norm(%x, %w, %b) {eps = 1e-05} : f32[B, S, 64]
  return(%y)
}"""
RMS_NORM = """graph @norm(%x: f32[B, 64], %w: f32[64]) {
  %y = rms_norm(%x, %w) {eps = 1e-06} : f32[B, 64]
  return(%y)
}"""
LOG_SOFTMAX = SOFTMAX.replace("softmax(%x)", "log_softmax(%x)")
GELU = """graph @gelu(%x: f32[B, 64]) {
  %y = gelu(%x) {approximate = "none"} : f32[B, 64]
  return(%y)
}"""
CROSS_ENTROPY = """graph @loss(%x: f32[8, 100], %t: int64[8]) {
  %y = cross_entropy(%x, %t) : f32[8]
  return(%y)
}"""


@pytest.mark.parametrize("text", [SOFTMAX, LAYER_NORM, RMS_NORM, LOG_SOFTMAX, GELU, CROSS_ENTROPY],
                         ids=["softmax", "layer_norm", "rms_norm", "log_softmax", "gelu", "cross_entropy"])
def test_row_programs_are_one_kernel(text: str) -> None:
    assert launches(check(text, {"B": 3, "S": 2})) == ["kernel"]


def test_softmax_keeps_its_exponentials() -> None:
    fn = lower(SOFTMAX)
    (kernel,) = [op for op in fn.body.ops if op.name == "kernel"]
    assert sum(op.name == "exp" for op in kernel.walk()) == 1
    assert kernel.attrs["grid"][0][0] == "i0" and len(kernel.attrs["grid"]) == 1
    reductions = [op for op in kernel.blocks[0].ops if op.name == "reduce"]
    assert [r.attrs["combine"] for r in reductions] == ["max", "add"]
    assert any(op.name == "store" for op in reductions[1].walk())


def test_softmax_over_a_leading_axis_has_its_lane_on_the_kept_one() -> None:
    fn = check("""graph @f(%x: f32[7, 40]) {
      %y = softmax(%x) {axis = 0} : f32[7, 40]
      return(%y)
    }""")
    (kernel,) = [op for op in fn.body.ops if op.name == "kernel"]
    assert kernel.attrs["grid"] == (("i0", 40),)
    assert [op.attrs["lanes"] for op in kernel.walk() if op.name == "reduce"] == [1, 1]


MLP = """graph @mlp(%x: f32[B, S, 48], %w: f32[48, 96], %b: f32[96]) {
  %y = dot_general(%x, %w) {lhs_contract = (2,), rhs_contract = (0,), lhs_batch = (), rhs_batch = ()} : f32[B, S, 96]
  %bb = broadcast_to(%b) {shape = (<B>, <S>, 96)} : f32[B, S, 96]
  %z = add(%y, %bb) : f32[B, S, 96]
  %g = gelu(%z) {approximate = "tanh"} : f32[B, S, 96]
  return(%g)
}"""


def test_a_layer_with_bias_and_gelu_is_one_product() -> None:
    fn = check(MLP, {"B": 4, "S": 9})
    assert launches(fn) == ["matmul"]
    (op,) = [op for op in fn.body.ops if op.name == "template"]
    assert op.attrs["m"][1] == fn.args[0].type.shape[0] * fn.args[0].type.shape[1]
    assert op.attrs["batch"] == ()


def test_a_product_that_is_also_returned_is_not_lost_in_an_epilogue() -> None:
    text = MLP.replace("return(%g)", "return(%g, %y)").replace("gelu(%z)", "gelu(%z)")
    assert launches(check(text, {"B": 4, "S": 9})) == ["matmul", "kernel"]


ATTENTION = """graph @block(%x: f32[B, S, 96], %w: f32[32, 32], %mask: bool[B, 1, 1, S], %r: f32[B, S, 32]) {
  %q = slice(%x) {start = (0, 0, 0), limit = (<B>, <S>, 32), stride = (1, 1, 1)} : f32[B, S, 32]
  %k = slice(%x) {start = (0, 0, 32), limit = (<B>, <S>, 64), stride = (1, 1, 1)} : f32[B, S, 32]
  %v = slice(%x) {start = (0, 0, 64), limit = (<B>, <S>, 96), stride = (1, 1, 1)} : f32[B, S, 32]
  %q1 = reshape(%q) {shape = (<B>, <S>, 4, 8)} : f32[B, S, 4, 8]
  %k1 = reshape(%k) {shape = (<B>, <S>, 4, 8)} : f32[B, S, 4, 8]
  %v1 = reshape(%v) {shape = (<B>, <S>, 4, 8)} : f32[B, S, 4, 8]
  %q2 = transpose(%q1) {perm = (0, 2, 1, 3)} : f32[B, 4, S, 8]
  %k2 = transpose(%k1) {perm = (0, 2, 1, 3)} : f32[B, 4, S, 8]
  %v2 = transpose(%v1) {perm = (0, 2, 1, 3)} : f32[B, 4, S, 8]
  %a = attention(%q2, %k2, %v2, %mask) {scale = 0.3, causal = true} : f32[B, 4, S, 8]
  %t = transpose(%a) {perm = (0, 2, 1, 3)} : f32[B, S, 4, 8]
  %h = reshape(%t) {shape = (<B>, <S>, 32)} : f32[B, S, 32]
  %y = dot_general(%h, %w) {lhs_contract = (2,), rhs_contract = (0,), lhs_batch = (), rhs_batch = ()} : f32[B, S, 32]
  %o = add(%y, %r) : f32[B, S, 32]
  return(%o)
}"""


def test_heads_are_split_and_joined_by_index_maps() -> None:
    fn = check(ATTENTION, {"B": 2, "S": 6})
    assert launches(fn) == ["attention", "matmul"]
    attention = next(op for op in fn.body.ops if op.name == "template")
    assert attention.attrs["blocks"] == ("score", "epilogue")
    assert {base(v) for v in attention.operands[:3]} == {fn.args[0]}


def base(v: object) -> object:
    from tessera.scheduling.memory import base as base_of
    return base_of(v)  # type: ignore[arg-type]


def test_grouped_heads() -> None:
    check("""graph @f(%q: f32[2, 6, 5, 8], %k: f32[2, 2, 7, 8], %v: f32[2, 2, 7, 8], %m: f32[1, 1, 5, 7]) {
      %a = attention(%q, %k, %v, %m) {scale = 0.5, causal = false} : f32[2, 6, 5, 8]
      return(%a)
    }""")


def test_one_tensor_as_both_operands() -> None:
    fn = check("""graph @f(%x: f32[40, 40]) {
      %y = dot_general(%x, %x) {lhs_contract = (1,), rhs_contract = (1,), lhs_batch = (), rhs_batch = ()} : f32[40, 40]
      return(%y)
    }""", tolerance=1e-5)
    assert launches(fn) == ["matmul"]


def test_matrix_times_vector_is_a_plain_kernel() -> None:
    assert launches(check("""graph @f(%x: f32[30, 500], %v: f32[500]) {
      %y = dot_general(%x, %v) {lhs_contract = (1,), rhs_contract = (0,), lhs_batch = (), rhs_batch = ()} : f32[30]
      %z = tanh(%y) : f32[30]
      return(%z)
    }""", tolerance=1e-4)) == ["kernel"]


def test_integer_products_are_exact() -> None:
    check("""graph @f(%x: int32[40, 50], %y: int32[50, 60]) {
      %z = dot_general(%x, %y) {lhs_contract = (1,), rhs_contract = (0,), lhs_batch = (), rhs_batch = ()} : int32[40, 60]
      return(%z)
    }""")


def test_siblings_share_a_kernel() -> None:
    fn = check("""graph @f(%x: f32[B, 8]) {
      %s = sin(%x) : f32[B, 8]
      %c = cos(%x) : f32[B, 8]
      %t = mul(%s, %c) : f32[B, 8]
      return(%s, %c, %t)
    }""", {"B": 5})
    assert launches(fn) == ["kernel"]


def test_a_sum_and_its_norm_share_a_kernel() -> None:
    fn = check("""graph @f(%x: f32[B, 64], %y: f32[B, 64], %w: f32[64]) {
      %h = add(%x, %y) : f32[B, 64]
      %n = rms_norm(%h, %w) {eps = 1e-06} : f32[B, 64]
      return(%h, %n)
    }""", {"B": 5})
    assert launches(fn) == ["kernel"]


def test_expensive_values_are_not_computed_again_and_again() -> None:
    fn = check("""graph @f(%x: f32[64], %y: f32[32, 64]) {
      %e = exp(%x) : f32[64]
      %b = broadcast_to(%e) {shape = (32, 64)} : f32[32, 64]
      %z = mul(%b, %y) : f32[32, 64]
      return(%z)
    }""")
    assert launches(fn) == ["kernel", "kernel"]


def test_long_reductions_are_cut_into_chunks() -> None:
    fn = check("""graph @f(%x: f32[70001], %y: f32[N, 3]) {
      %s = reduce_sum(%x) {axes = (0,)} : f32[]
      %m = reduce_max(%y) {axes = (0, 1)} : f32[]
      return(%s, %m)
    }""", {"N": 7}, tolerance=2e-4)
    kernels = [op for op in fn.body.ops if op.name == "kernel"]
    assert len(kernels) == 4
    assert kernels[0].attrs["grid"][0][1] == -(-70001 // 16384)


def test_a_loss_is_a_row_kernel_and_a_sum() -> None:
    fn = check("""graph @f(%x: f32[B, 50], %t: int64[B]) {
      %a = cross_entropy(%x, %t) : f32[B]
      %s = reduce_sum(%a) {axes = (0,)} : f32[]
      return(%s, %a)
    }""", {"B": 6}, tolerance=1e-5)
    assert launches(fn) == ["kernel", "kernel", "kernel"]


def test_convolution_takes_its_bias_along() -> None:
    fn = check("""graph @f(%x: f32[2, 4, 9], %w: f32[6, 2, 3], %b: f32[1, 6, 1]) {
      %y = conv(%x, %w) {strides = (2,), padding = ((1, 1),), dilation = (1,), groups = 2} : f32[2, 6, 5]
      %bb = broadcast_to(%b) {shape = (2, 6, 5)} : f32[2, 6, 5]
      %z = add(%y, %bb) : f32[2, 6, 5]
      return(%z)
    }""", tolerance=1e-5)
    assert launches(fn) == ["conv"]


def test_edges() -> None:
    """Empty tensors, scalars, constants, a parameter returned, one value returned twice, an unused parameter."""
    fn = check("""graph @f(%x: f32[0, 4], %y: f32[], %unused: f32[3]) {
      %s = reduce_sum(%x) {axes = (0, 1)} : f32[]
      %t = add(%s, %y) : f32[]
      %c = constant() {value = dense<f32[2]: 0000803f00000040>} : f32[2]
      %e = exp(%x) : f32[0, 4]
      return(%t, %c, %e, %y, %t)
    }""")
    assert fn.attrs["inputs"] == 3 and fn.attrs["outputs"] == 5


def test_no_operands_at_all() -> None:
    check("""graph @f() {
      %i = iota() {shape = (4, 5), axis = 1, dtype = int64} : int64[4, 5]
      return(%i)
    }""")


def test_a_failed_check_is_reported_with_its_value() -> None:
    import numpy as np

    from tessera.ir.interpret_sched import CheckFailed, interpret
    fn = lower("""graph @f(%x: f32[4], %i: int64[2]) {
      %y = gather(%x, %i) {axes = (0,)} : f32[2]
      return(%y)
    }""")
    out = np.zeros(2, np.float32)
    with pytest.raises(CheckFailed, match="index 9 is out of bounds for axis 0 with size 4"):
        interpret(fn, [np.arange(4, dtype=np.float32), np.array([1, 9]), out])
    assert out.tolist() == [1.0, 3.0]


def test_a_chain_of_any_length_is_scheduled() -> None:
    lines = [f"%v{k + 1} = sin(%v{k}) : f32[8]" if k % 3 else f"%v{k + 1} = add(%v{k}, %v0) : f32[8]" for k in range(600)]
    fn = check("graph @f(%v0: f32[8]) {\n" + "\n".join(lines) + "\nreturn(%v600)\n}", tolerance=1e-4)
    assert len(launches(fn)) < 30


def test_a_value_that_doubles_at_every_step_is_not_unfolded() -> None:
    lines = [f"%v{k + 1} = add(%v{k}, %w{k}) : f32[8]\n%w{k + 1} = mul(%v{k}, %w{k}) : f32[8]" for k in range(60)]
    head = "%w0 = sin(%v0) : f32[8]"
    fn = check("graph @f(%v0: f32[8]) {\n" + head + "\n" + "\n".join(lines) + "\n%z = tanh(%v60) : f32[8]\nreturn(%z)\n}", tolerance=1e-3)
    assert len(launches(fn)) < 10


def test_cheap_operands_are_computed_as_the_product_reads_them() -> None:
    fn = check("""graph @f(%x: f32[B, S, 48], %w: int8[48, 96], %s: f32[96]) {
      %h = convert(%x) {dtype = bf16} : bf16[B, S, 48]
      %c = convert(%w) {dtype = bf16} : bf16[48, 96]
      %y = dot_general(%h, %c) {lhs_contract = (2,), rhs_contract = (0,), lhs_batch = (), rhs_batch = (), dtype = f32} : f32[B, S, 96]
      %b = broadcast_to(%s) {shape = (<B>, <S>, 96)} : f32[B, S, 96]
      %z = mul(%y, %b) : f32[B, S, 96]
      return(%z)
    }""", {"B": 3, "S": 11}, tolerance=1e-4)
    assert launches(fn) == ["matmul"]
    (op,) = [op for op in fn.body.ops if op.name == "template"]
    assert op.attrs["blocks"] == ("lhs", "rhs", "epilogue") and "lhs" not in op.attrs


def test_an_operand_that_others_read_is_not_a_prologue() -> None:
    fn = check("""graph @f(%x: f32[40, 48], %w: bf16[48, 96]) {
      %h = convert(%x) {dtype = bf16} : bf16[40, 48]
      %y = dot_general(%h, %w) {lhs_contract = (1,), rhs_contract = (0,), lhs_batch = (), rhs_batch = ()} : bf16[40, 96]
      return(%y, %h)
    }""", tolerance=3e-2)
    assert launches(fn) == ["kernel", "matmul"]


def test_an_expensive_value_read_forwards_and_backwards() -> None:
    fn = check("""graph @f(%x: f32[B]) {
      %e = exp(%x) : f32[B]
      %r = flip(%e) {axes = (0,)} : f32[B]
      %y = add(%e, %r) : f32[B]
      return(%y)
    }""", {"B": 7})
    assert launches(fn) == ["kernel", "kernel"]


def test_padding_to_whole_blocks_of_an_open_size_is_guarded() -> None:
    check("""graph @f(%x: f32[S, 2]) {
      %p = pad(%x) {low = (0, 0), high = (<-S-4*((-S)//4)>, 0), value = 0} : f32[-4*((-S)//4), 2]
      %y = reshape(%p) {shape = (<-((-S)//4)>, 4, 2)} : f32[-((-S)//4), 4, 2]
      return(%y)
    }""", {"S": 6})
