"""Each Graph pass, before and after, as text."""

from __future__ import annotations

import textwrap

import pytest
from trace_cases import agree, names, traced

import tessera as ts
from tessera.ir.core import Function
from tessera.ir.graph import verify
from tessera.ir.text import parse_function
from tessera.transforms.canonicalize import canonicalize
from tessera.transforms.cleanup import eliminate_dead_code, fold_constants, merge_common_subexpressions
from tessera.transforms.expand import expand_composites
from tessera.transforms.hashing import graph_hash
from tessera.transforms.outlining import outline_layers
from tessera.transforms.pipeline import GRAPH_PASSES, optimize, passes
from tessera.transforms.products import contract_as_it_lies, turn_products


def text(fn: Function) -> str:
    return "\n".join(line.strip() for line in str(fn).splitlines()[1:-1])


def rewritten(run: object, body: str, head: str = "%x: f32[4], %y: f32[4]", tolerance: float = 0.0) -> str:
    fn = parse_function(f"graph @f({head}) {{\n{body}\n}}")
    verify(fn)
    out = run(fn)  # type: ignore[operator]
    verify(out)
    agree(fn, out, tolerance)
    return text(out)


def test_dead_code() -> None:
    assert rewritten(eliminate_dead_code, """
      %a = exp(%x) : f32[4]
      %b = add(%a, %y) : f32[4]
      %c = neg(%x) : f32[4]
      return(%c)""") == "%c = neg(%x) : f32[4]\nreturn(%c)"


def test_common_subexpressions() -> None:
    assert rewritten(merge_common_subexpressions, """
      %a = exp(%x) : f32[4]
      %b = exp(%x) : f32[4]
      %c = add(%a, %b) : f32[4]
      return(%c)""") == "%a = exp(%x) : f32[4]\n%c = add(%a, %a) : f32[4]\nreturn(%c)"


def test_signed_zeros_are_not_equal() -> None:
    out = rewritten(merge_common_subexpressions, """
      %a = full() {shape = (4,), value = 0.0, dtype = f32} : f32[4]
      %b = full() {shape = (4,), value = -0.0, dtype = f32} : f32[4]
      return(%a, %b)""")
    assert out.count("full()") == 2


def test_two_random_sites_stay_two() -> None:
    fn = traced(lambda x: ts.random.uniform((4,)) + ts.random.uniform((4,)) + x, (4,))
    assert names(optimize(fn)).count("random_bits") == 2


def test_constants_are_folded() -> None:
    out = rewritten(fold_constants, """
      %a = constant() {value = dense<f32[2]: 0000803f00000040>} : f32[2]
      %b = add(%a, %a) : f32[2]
      %c = concat(%b, %b) {axis = 0} : f32[4]
      %d = add(%c, %x) : f32[4]
      return(%d)""")
    assert [line.split(" = ")[1].split("(")[0] for line in out.splitlines()[:-1]] == ["constant", "constant", "constant", "add"]


def test_transcendental_functions_of_constants_are_left_to_the_compiler() -> None:
    fn = traced(lambda x: x + ts.exp(ts.tensor([0.1, 0.2, 0.3, 0.4])), (4,))
    assert "exp" in names(optimize(fn))


ZERO, ONE, HALF, THREE = (f"%k = full() {{shape = (4,), value = {v}, dtype = f32}} : f32[4]" for v in ("0.0", "1.0", "2.0", "3.0"))


@pytest.mark.parametrize(("before", "after"), [
    (f"{ONE}\n%z = mul(%x, %k) : f32[4]\nreturn(%z)", "return(%x)"),
    (f"{ONE}\n%z = div(%x, %k) : f32[4]\nreturn(%z)", "return(%x)"),
    (f"{ZERO}\n%z = sub(%x, %k) : f32[4]\nreturn(%z)", "return(%x)"),
    (f"{ZERO.replace('0.0', '-0.0')}\n%z = add(%x, %k) : f32[4]\nreturn(%z)", "return(%x)"),
    ("%a = neg(%x) : f32[4]\n%z = neg(%a) : f32[4]\nreturn(%z)", "return(%x)"),
    ("%z = maximum(%x, %x) : f32[4]\nreturn(%z)", "return(%x)"),
    ("%z = convert(%x) {dtype = f32} : f32[4]\nreturn(%z)", "return(%x)"),
    ("%a = convert(%x) {dtype = f64} : f64[4]\n%z = convert(%a) {dtype = f32} : f32[4]\nreturn(%z)", "return(%x)"),
    ("%a = reshape(%x) {shape = (2, 2)} : f32[2, 2]\n%z = reshape(%a) {shape = (4,)} : f32[4]\nreturn(%z)", "return(%x)"),
    ("%z = slice(%x) {start = (0,), limit = (4,), stride = (1,)} : f32[4]\nreturn(%z)", "return(%x)"),
    ("%z = pad(%x) {low = (0,), high = (0,), value = 1.0} : f32[4]\nreturn(%z)", "return(%x)"),
    ("%z = concat(%x) {axis = 0} : f32[4]\nreturn(%z)", "return(%x)"),
    ("%a = flip(%x) {axes = (0,)} : f32[4]\n%z = flip(%a) {axes = (0,)} : f32[4]\nreturn(%z)", "return(%x)"),
])
def test_canonical_forms(before: str, after: str) -> None:
    assert rewritten(lambda fn: eliminate_dead_code(canonicalize(fn)), before) == after


def test_division_by_a_power_of_two_is_a_product() -> None:
    assert "mul(" in rewritten(canonicalize, f"{HALF}\n%z = div(%x, %k) : f32[4]\nreturn(%z)")
    assert "div(" in rewritten(canonicalize, f"{THREE}\n%z = div(%x, %k) : f32[4]\nreturn(%z)")


@pytest.mark.parametrize(("dtype", "exponent"), [("f16", -16), ("f16", -20), ("f16", 15), ("bf16", 127)])
def test_division_stays_where_the_reciprocal_is_no_normal_number(dtype: str, exponent: int) -> None:
    fn = parse_function(f"graph @f(%x: {dtype}[4]) {{\n%k = full() {{shape = (4,), value = {2.0 ** exponent}, dtype = {dtype}}} : "
                        f"{dtype}[4]\n%z = div(%x, %k) : {dtype}[4]\nreturn(%z)\n}}")
    assert names(canonicalize(fn)) == ["full", "div"]


@pytest.mark.parametrize("before", [
    f"{ZERO}\n%z = add(%x, %k) : f32[4]\nreturn(%z)",  # -0.0 + 0.0 is 0.0
    f"{ZERO}\n%z = mul(%x, %k) : f32[4]\nreturn(%z)",  # inf * 0 is nan
    f"{ZERO.replace('0.0', '-0.0')}\n%z = sub(%x, %k) : f32[4]\nreturn(%z)",
    "%a = convert(%x) {dtype = bf16} : bf16[4]\n%z = convert(%a) {dtype = f32} : f32[4]\nreturn(%z)",
    "%z = sub(%x, %x) : f32[4]\nreturn(%z)",
])
def test_what_is_not_exact_stays(before: str) -> None:
    fn = parse_function(f"graph @f(%x: f32[4], %y: f32[4]) {{\n{before}\n}}")
    assert names(eliminate_dead_code(canonicalize(fn))) == names(fn)


def test_transposes_compose() -> None:
    out = rewritten(lambda fn: eliminate_dead_code(canonicalize(fn)), textwrap.dedent("""
      %a = transpose(%x) {perm = (1, 2, 0)} : f32[3, 4, 2]
      %z = transpose(%a) {perm = (1, 2, 0)} : f32[4, 2, 3]
      return(%z)"""), "%x: f32[2, 3, 4]")
    assert out.splitlines()[0] == "%0 = transpose(%x) {perm = (2, 0, 1)} : f32[4, 2, 3]"


def test_composites_are_expanded_last_and_attention_is_kept() -> None:
    fn = traced(lambda q, k, v: ts.attention(ts.softmax(q, -1), k, v, scale=1.0), (2, 5, 8), (2, 5, 8), (2, 5, 8))
    out = expand_composites(fn)
    assert "softmax" not in names(out) and "attention" in names(out) and "exp" in names(out)
    agree(fn, out, 1e-5)
    listed = [p.name for p in GRAPH_PASSES]
    assert listed.index("raise_composites") == 0 and listed.index("expand_composites") > listed.index("dead_code")
    assert all(p.reason for p in passes())


# -- hashing --------------------------------------------------------------------------------------------------------------------
def test_hash_sees_structure_and_not_names() -> None:
    a = parse_function("graph @f(%x: f32[4]) {\n%a = exp(%x) : f32[4]\nreturn(%a)\n}")
    b = parse_function("graph @g(%y: f32[4]) {\n%b = exp(%y) : f32[4]\nreturn(%b)\n}")
    assert graph_hash(a) == graph_hash(b)


@pytest.mark.parametrize("other", [
    "graph @f(%x: f32[5]) {\n%a = exp(%x) : f32[5]\nreturn(%a)\n}",
    "graph @f(%x: f32[4]) {\n%a = exp2(%x) : f32[4]\nreturn(%a)\n}",
    "graph @f(%x: f32[4]) {\n%a = exp(%x) : f32[4]\nreturn(%x)\n}",
    "graph @f(%x: f32[4]) with {donated = (0,)} {\n%a = exp(%x) : f32[4]\nreturn(%a)\n}",
])
def test_hash_differs(other: str) -> None:
    a = parse_function("graph @f(%x: f32[4]) {\n%a = exp(%x) : f32[4]\nreturn(%a)\n}")
    assert graph_hash(a) != graph_hash(parse_function(other))


def test_hash_sees_constants_and_their_order() -> None:
    def of(*values: float) -> str:
        fn = traced(lambda x: x + ts.tensor(list(values)), (len(values),))
        return graph_hash(fn)

    assert of(1.0, 2.0) == of(1.0, 2.0) != of(2.0, 1.0)


# -- outlining --------------------------------------------------------------------------------------------------------------------
def layers(count: int, width: int = 8) -> Function:
    def f(x: object, *weights: object) -> object:
        for w, b in zip(weights[::2], weights[1::2], strict=True):
            h = ts.gelu(ts.layer_norm(x, b) @ w + b)  # type: ignore[operator]
            h = ts.tanh(h * 2.0 + x) * ts.sigmoid(h)  # type: ignore[operator]
            x = x + h * 0.5  # type: ignore[operator]
        return x

    return traced(f, (4, width), *[s for _ in range(count) for s in ((width, width), (width,))])


def test_repeated_layers_become_calls() -> None:
    fn = layers(5)
    out = outline_layers(fn)
    assert names(out).count("call") >= 4 and len(out.functions) == 1
    agree(fn, out)
    (layer,) = out.functions.values()
    assert len(layer.returns) == 1


def test_layers_of_different_widths_stay() -> None:
    fn = traced(lambda x, a, b: ts.tanh(ts.tanh(x @ a) @ b), (4, 8), (8, 9), (9, 10))
    assert outline_layers(fn) is fn


def test_a_layer_wired_differently_is_not_merged() -> None:
    def f(x: object, *ws: object) -> object:
        first = x
        for k, w in enumerate(ws):
            h = ts.tanh(x @ w)  # type: ignore[operator]
            for _ in range(8):
                h = ts.sin(h) + (first if k == 2 else x)  # type: ignore[operator]
            x = h
        return x

    fn = traced(f, (8, 8), *[(8, 8)] * 5)
    out = outline_layers(fn)
    agree(fn, out)


def test_optimize_keeps_the_meaning() -> None:
    fn = layers(4)
    agree(fn, optimize(fn), 1e-4)


def test_chains_of_elementwise_ops_are_not_outlined() -> None:
    def f(x: object) -> object:
        for _ in range(20):
            x = ts.tanh(ts.sin(x) * 2.0 + 1.0) * ts.cos(x) - ts.abs(x)  # type: ignore[operator, arg-type]
        return x

    fn = traced(f, (4,))
    assert outline_layers(fn) is fn


def test_products_that_are_only_transposed_are_turned_round() -> None:
    head = "%x: f32[5, 3], %y: f32[5, 4]"
    out = rewritten(lambda f: eliminate_dead_code(turn_products(f)), """
      %a = dot_general(%x, %y) {lhs_contract = (0,), rhs_contract = (0,), lhs_batch = (), rhs_batch = ()} : f32[3, 4]
      %b = transpose(%a) {perm = (1, 0)} : f32[4, 3]
      return(%b)""", head)
    assert "transpose" not in out and "dot_general(%y, %x)" in out
    kept = rewritten(turn_products, """
      %a = dot_general(%x, %y) {lhs_contract = (0,), rhs_contract = (0,), lhs_batch = (), rhs_batch = ()} : f32[3, 4]
      %b = transpose(%a) {perm = (1, 0)} : f32[4, 3]
      return(%a, %b)""", head)
    assert "transpose" in kept, "a product that is used as it is too is not made twice"
    batched = rewritten(lambda f: eliminate_dead_code(turn_products(f)), """
      %a = dot_general(%x, %y) {lhs_contract = (3,), rhs_contract = (1,), lhs_batch = (0,), rhs_batch = (0,)} : f32[2, 3, 4, 6]
      %b = transpose(%a) {perm = (0, 3, 1, 2)} : f32[2, 6, 3, 4]
      return(%b)""", "%x: f32[2, 3, 4, 5], %y: f32[2, 5, 6]")
    assert "dot_general(%y, %x)" in batched


def test_a_vector_by_a_transposed_matrix_contracts_along_its_rows() -> None:
    def product(rows: int) -> str:
        return rewritten(lambda f: eliminate_dead_code(contract_as_it_lies(f)), f"""
          %t = transpose(%w) {{perm = (1, 0)}} : f32[5, 4]
          %y = dot_general(%v, %t) {{lhs_contract = (1,), rhs_contract = (0,), lhs_batch = (), rhs_batch = ()}} : f32[{rows}, 4]
          return(%y)""", f"%v: f32[{rows}, 5], %w: f32[4, 5]", 1e-6)

    assert "transpose" not in product(1) and "rhs_contract = (1,)" in product(1)
    assert "transpose" in product(2), "a matrix has a template, which reads it where it lies"


@pytest.mark.parametrize("reverse", [False, True])
def test_a_loop_of_no_steps_is_what_it_starts_from(reverse: bool) -> None:
    fn = traced(lambda a, xs: ts.scan(lambda c, x: (a * 2 + x.sum(), c), a, xs, reverse=reverse), (2, 3), (0, 5))
    out = optimize(fn)
    agree(fn, out)
    assert "scan" not in names(out)
    x = ts.ones(2, 0, 16)  # an input that is a stream of the loop, and read in it
    assert ts.jit(lambda x: ts.scan(lambda c, y: (x @ y, y), x * 1, x.reshape(0, 2, 16, 16)))(x)[1].shape == (0, 2, 16, 16)
