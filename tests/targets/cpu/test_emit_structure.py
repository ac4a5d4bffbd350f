"""Memory, moves, reductions, products and control flow, compiled and interpreted: the same bits."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tessera.ir.text import parse_function
from tessera.machine import X86_AVX2, host_cpu
from tessera.targets.cpu import abi
from tessera.targets.cpu.emit import emit
from tessera.types.dtypes import as_dtype

sys.path.insert(0, str(Path(__file__).parent))
from emit_harness import Compiled, check, values

RNG = np.random.default_rng(7)


def f32(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("n", [1, 3, 16, 40, 64, 100])
@pytest.mark.parametrize("d", ["f32", "f64", "bf16", "int8", "bool"])
def test_checked_tiles_at_the_edge(n: int, d: str) -> None:
    text = f"""tile @edge(%x: buf<{d}[R, N]>, %o: buf<{d}[R, N]>, %R: int64, %N: int64)
      with {{grid = (<(R+2)//3>, <(N+{n - 1})//{n}>), sizes = ("R", "N"), writes = (1,)}} {{
      %p = program_id() {{axis = 0}} : int64
      %q = program_id() {{axis = 1}} : int64
      %three = constant() {{value = 3}} : int64
      %n = constant() {{value = {n}}} : int64
      %i = mul(%p, %three) : int64
      %j = mul(%q, %n) : int64
      %t = load(%x, %i, %j) {{check = (0, 1)}} : tile<{d}[3, {n}]>
      store(%o, %i, %j, %t) {{check = (0, 1)}}
      return()
    }}"""
    x = values(d, (7, 45), RNG)
    check(text, [x, np.zeros_like(x)], {"R": 7, "N": 45})


def test_negative_offsets_fill_and_masks() -> None:
    text = """tile @window(%x: buf<f32[10, 20]>, %m: buf<bool[4, 24]>, %o: buf<f32[4, 24]>, %s: buf<f32[3]>)
      with {grid = (), sizes = (), writes = (2, 3)} {
      %a = constant() {value = -2} : int64
      %b = constant() {value = -3} : int64
      %z = constant() {value = 0} : int64
      %one = constant() {value = 1} : int64
      %two = constant() {value = 2} : int64
      %k = load(%m, %z, %z) : tile<bool[4, 24]>
      %t = load(%x, %a, %b, %k) {check = (0, 1), fill = 7.5, masked = true} : tile<f32[4, 24]>
      store(%o, %z, %z, %t) {masked = false}
      %u = neg(%t) : tile<f32[4, 24]>
      store(%o, %z, %z, %u, %k) {masked = true}
      %out = load(%x, %a, %z) {check = (0,), fill = 3.0} : f32
      %in = load(%x, %two, %one) {check = (0, 1), fill = 3.0} : f32
      store(%s, %z, %out)
      store(%s, %one, %in)
      %far = constant() {value = 99} : int64
      store(%s, %far, %in) {check = (0,)}
      return()
    }"""
    check(text, [f32(10, 20), RNG.random((4, 24)) < 0.5, f32(4, 24), f32(3)])


def test_a_size_may_be_a_negative_offset() -> None:
    text = """tile @before(%x: buf<f32[N]>, %o: buf<f32[20]>, %N: int64) with {grid = (), sizes = ("N",), writes = (1,)} {
      %z = constant() {value = 0} : int64
      %at = size() {value = <N-12>} : int64
      %t = load(%x, %at) {check = (0,), fill = 9.0} : tile<f32[20]>
      store(%o, %z, %t)
      return()
    }"""
    for n in (7, 12, 40):
        check(text, [f32(n), f32(20)], {"N": n})


@pytest.mark.parametrize("shape,axes", [((16, 16), (1, 0)), ((4, 32), (1, 0)), ((20, 5), (1, 0)), ((3,), (0,)), ((33,), (0,)),
                                        ((7, 8), (0, 1)), ((2, 3, 4), (2, 0, 1)), ((4, 5), (0, 2)), ((16,), (1,))])
def test_tiles_along_other_axes(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    rank = max(2, max(axes) + 1)
    dims = ", ".join(["40"] * rank)
    zeros = ", ".join(f"%o{i}" for i in range(rank))
    offsets = "\n".join(f"%o{i} = constant() {{value = {i + 1}}} : int64" for i in range(rank))
    t = ", ".join(map(str, shape))
    text = f"""tile @axes(%x: buf<f32[{dims}]>, %y: buf<f32[{dims}]>, %z: buf<f32[{dims}]>)
      with {{grid = (), sizes = (), writes = (1, 2)}} {{
      {offsets}
      %t = load(%x, {zeros}) {{axes = {axes if len(axes) > 1 else f'({axes[0]},)'}}} : tile<f32[{t}]>
      store(%y, {zeros}, %t) {{axes = {axes if len(axes) > 1 else f'({axes[0]},)'}}}
      %far = constant() {{value = 30}} : int64
      %u = load(%x, {", ".join(["%far"] * rank)}) {{axes = {axes if len(axes) > 1 else f'({axes[0]},)'},
        check = {tuple(range(rank))}}} : tile<f32[{t}]>
      %v = neg(%u) : tile<f32[{t}]>
      store(%z, {", ".join(["%far"] * rank)}, %v) {{axes = {axes if len(axes) > 1 else f'({axes[0]},)'},
        check = {tuple(range(rank))}}}
      return()
    }}"""
    check(text, [f32(*[40] * rank) for _ in range(3)])


MOVES = [
    ("reshape", (4, 16), (8, 8), ""), ("reshape", (6, 7), (42,), ""), ("reshape", (16, 1), (16,), ""),
    ("reshape", (5,), (5, 1), ""), ("reshape", (2, 3, 4), (4, 6), ""), ("reshape", (32,), (2, 16), ""),
    ("transpose", (16, 16), (16, 16), "perm = (1, 0)"), ("transpose", (8, 24), (24, 8), "perm = (1, 0)"),
    ("transpose", (5, 3), (3, 5), "perm = (1, 0)"), ("transpose", (2, 3, 20), (20, 2, 3), "perm = (2, 0, 1)"),
    ("transpose", (2, 3, 4), (3, 2, 4), "perm = (1, 0, 2)"), ("transpose", (14, 32), (32, 14), "perm = (1, 0)"),
    ("transpose", (1, 9), (9, 1), "perm = (1, 0)"), ("transpose", (9, 1), (1, 9), "perm = (1, 0)"),
    ("slice", (6, 40), (3, 21), "starts = (1, 5), limits = (4, 26)"), ("slice", (40,), (16,), "starts = (16,), limits = (32,)"),
    ("slice", (8,), (1,), "starts = (5,), limits = (6,)"),
    ("broadcast", (1, 20), (3, 20), ""), ("broadcast", (5, 1), (5, 33), ""), ("broadcast", (1, 1), (4, 4), ""),
    ("broadcast", (2, 1, 3), (2, 5, 3), ""),
]


@pytest.mark.parametrize("d", ["f32", "int8", "bool", "f64"])
def test_moves(d: str) -> None:
    lines, params, arrays, outs = [], [], [], []
    for i, (name, src, dst, attrs) in enumerate(MOVES):
        s, t = ", ".join(map(str, src)), ", ".join(map(str, dst))
        params += [f"%x{i}: buf<{d}[{s}]>", f"%o{i}: buf<{d}[{t}]>"]
        zs, zd = ", ".join(["%z"] * len(src)), ", ".join(["%z"] * len(dst))
        lines += [f"%t{i} = load(%x{i}, {zs}) : tile<{d}[{s}]>",
                  f"%u{i} = {name}(%t{i}) {'{' + attrs + '}' if attrs else ''} : tile<{d}[{t}]>", f"store(%o{i}, {zd}, %u{i})"]
        outs.append(2 * i + 1)
        x = np.arange(int(np.prod(src))).reshape(src)
        arrays += [(x % 2 == 0) if d == "bool" else (x % 120).astype({"f32": "f4", "int8": "i1", "f64": "f8"}[d])]
        arrays += [np.zeros(dst, arrays[-1].dtype)]
    text = f"""tile @moves({", ".join(params)}) with {{grid = (), sizes = (), writes = {tuple(outs)}}} {{
      %z = constant() {{value = 0}} : int64
      {chr(10).join(lines)}
      return()
    }}"""
    check(text, arrays)


def test_chains_of_moves_and_concat() -> None:
    text = """tile @chain(%x: buf<f32[8, 12]>, %y: buf<f32[12, 4]>, %o: buf<f32[12, 24]>, %s: buf<f32[1]>)
      with {grid = (), sizes = (), writes = (2, 3)} {
      %z = constant() {value = 0} : int64
      %a = load(%x, %z, %z) : tile<f32[8, 12]>
      %b = load(%y, %z, %z) : tile<f32[12, 4]>
      %t = transpose(%a) {perm = (1, 0)} : tile<f32[12, 8]>
      %c = concat(%t, %b, %t) {axis = 1} : tile<f32[12, 20]>
      %r = reshape(%c) : tile<f32[4, 60]>
      %q = reshape(%r) : tile<f32[12, 20]>
      %d = slice(%q) {starts = (0, 3), limits = (12, 7)} : tile<f32[12, 4]>
      %e = concat(%q, %d) {axis = 1} : tile<f32[12, 24]>
      store(%o, %z, %z, %e)
      %f = extract(%e) {index = (5, 17)} : f32
      store(%s, %z, %f)
      return()
    }"""
    check(text, [f32(8, 12), f32(12, 4), f32(12, 24), f32(1)])


@pytest.mark.parametrize("d,combine", [("f32", "add"), ("f32", "max"), ("f64", "add"), ("bf16", "add"), ("int32", "mul"),
                                       ("int8", "min"), ("bool", "or"), ("uint16", "xor")])
def test_reductions(d: str, combine: str) -> None:
    shapes = [(n,) for n in (1, 2, 3, 8, 13, 16, 17, 40, 64, 70, 100)] + [(5, 3), (16, 16), (4, 40), (1, 7), (3, 1), (2, 3, 20), (20, 33)]
    params, lines, arrays, outs = [], [], [], []
    for i, shape in enumerate(shapes):
        s, z = ", ".join(map(str, shape)), ", ".join(["%z"] * len(shape))
        params.append(f"%x{i}: buf<{d}[{s}]>")
        lines.append(f"%t{i} = load(%x{i}, {z}) : tile<{d}[{s}]>")
        arrays.append(values(d, shape, RNG))
    for i, shape in enumerate(shapes):
        for axis in range(len(shape)):
            rest = [n for k, n in enumerate(shape) if k != axis]
            r = ", ".join(map(str, rest))
            t = f"tile<{d}[{r}]>" if rest else d
            outs.append(len(params))
            params.append(f"%o{i}_{axis}: buf<{d}[{r or 1}]>")
            lines += [f"%r{i}_{axis} = reduce(%t{i}) {{axis = {axis}, combine = \"{combine}\"}} : {t}",
                      f"store(%o{i}_{axis}, {', '.join(['%z'] * max(1, len(rest)))}, %r{i}_{axis})"]
            arrays.append(np.zeros(rest or (1,), arrays[0].dtype))
    text = f"""tile @reduces({", ".join(params)}) with {{grid = (), sizes = (), writes = {tuple(outs)}}} {{
      %z = constant() {{value = 0}} : int64
      {chr(10).join(lines)}
      return()
    }}"""
    check(text, arrays)


@pytest.mark.parametrize("m,n,k,a,b,c", [
    (14, 32, 8, "f32", "f32", "f32"), (3, 20, 5, "f64", "f64", "f64"), (1, 1, 7, "f32", "f32", "f32"),
    (4, 16, 4, "bf16", "bf16", "f32"), (2, 17, 3, "int8", "int8", "int32"), (5, 8, 6, "f16", "f16", "f32")])
def test_dot(m: int, n: int, k: int, a: str, b: str, c: str) -> None:
    text = f"""tile @product(%a: buf<{a}[{m}, 24]>, %at: buf<{a}[24, {m}]>, %b: buf<{b}[24, {n}]>, %o: buf<{c}[{m}, {n}]>)
      with {{grid = (), sizes = (), writes = (3,)}} {{
      %z = constant() {{value = 0}} : int64
      %k = constant() {{value = {k}}} : int64
      %hi = constant() {{value = {24 // k * k}}} : int64
      %zero = full() {{value = 0}} : tile<{c}[{m}, {n}]>
      %sum = for(%z, %hi, %k, %zero) do(%i: int64, %acc: tile<{c}[{m}, {n}]>) {{
        %x = load(%a, %z, %i) : tile<{a}[{m}, {k}]>
        %y = load(%b, %i, %z) : tile<{b}[{k}, {n}]>
        %c1 = dot(%x, %y, %acc) : tile<{c}[{m}, {n}]>
        %p = load(%at, %i, %z) : tile<{a}[{k}, {m}]>
        %q = transpose(%p) {{perm = (1, 0)}} : tile<{a}[{m}, {k}]>
        %c2 = dot(%q, %y, %c1) : tile<{c}[{m}, {n}]>
        %w = add(%x, %q) : tile<{a}[{m}, {k}]>
        %c3 = dot(%w, %y, %c2) : tile<{c}[{m}, {n}]>
        yield(%c3)
      }} : tile<{c}[{m}, {n}]>
      store(%o, %z, %z, %sum)
      return()
    }}"""
    rng = np.random.default_rng(1)

    def make(d: str, *shape: int) -> np.ndarray:
        from tessera.types.dtypes import as_dtype
        return (rng.integers(-9, 9, shape) if d.startswith("int") else rng.standard_normal(shape).astype(np.float32)).astype(as_dtype(d).np)

    check(text, [make(a, m, 24), make(a, 24, m), make(b, 24, n), make(c, m, n)])


@pytest.mark.parametrize("form", ["memory", "registers"])
def test_products_by_pairs(form: str) -> None:
    if host_cpu().matrix_instruction("dpbf16") is None:
        pytest.skip("the host has no vdpbf16ps")
    change = form == "registers"
    text = f"""tile @pairs(%a: buf<bf16[5, 40]>, %b: buf<bf16[20, 64]>, %d: buf<bf16[4, 32]>, %o: buf<f32[5, 32]>)
      with {{grid = (), sizes = (), writes = (3,)}} {{
      %z = constant() {{value = 0}} : int64
      %k = constant() {{value = 4}} : int64
      %two = constant() {{value = 2}} : int64
      %hi = constant() {{value = 40}} : int64
      %start = load(%o, %z, %z) : tile<f32[5, 32]>
      %s = for(%z, %hi, %k, %start) do(%i: int64, %acc: tile<f32[5, 32]>) {{
        %x0 = load(%a, %z, %i) : tile<bf16[5, 4]>
        %x = {"neg" if change else "abs"}(%x0) : tile<bf16[5, 4]>
        %h = floor_div(%i, %two) : int64
        %p0 = load(%b, %h, %z) : tile<bf16[2, 64]>
        %p = reshape(%p0) : tile<bf16[2, 32, 2]>
        %q = transpose(%p) {{perm = (0, 2, 1)}} : tile<bf16[2, 2, 32]>
        %y0 = reshape(%q) : tile<bf16[4, 32]>
        %y1 = load(%d, %z, %z) : tile<bf16[4, 32]>
        %c = dot(%{"x" if change else "x0"}, %y0, %acc) {{unit = "dpbf16"}} : tile<f32[5, 32]>
        %e = dot(%x, %y1, %c) {{unit = "dpbf16"}} : tile<f32[5, 32]>
        yield(%e)
      }} : tile<f32[5, 32]>
      store(%o, %z, %z, %s)
      return()
    }}"""
    from tessera.types.dtypes import as_dtype
    narrow = as_dtype("bf16").np
    check(text, [f32(5, 40).astype(narrow), f32(20, 64).astype(narrow), f32(4, 32).astype(narrow), f32(5, 32)])


def test_control_flow() -> None:
    text = """tile @flow(%x: buf<f32[N]>, %o: buf<f32[N]>, %c: buf<int64[4]>, %N: int64)
      with {grid = (4,), sizes = ("N",), writes = (1, 2)} {
      %p = program_id() {axis = 0} : int64
      %z = constant() {value = 0} : int64
      %one = constant() {value = 1} : int64
      %two = constant() {value = 2} : int64
      %w = constant() {value = 20} : int64
      %n = size() {value = <N//4>} : int64
      %lo = mul(%p, %n) : int64
      %hi = add(%lo, %n) : int64
      %t0 = load(%x, %lo) : tile<f32[20]>
      %s, %count = for(%lo, %hi, %w, %t0, %z) do(%i: int64, %acc: tile<f32[20]>, %k: int64) {
        %t = load(%x, %i) {check = (0,)} : tile<f32[20]>
        %even = mod(%k, %two) : int64
        %is = eq(%even, %z) : bool
        %next = if(%is) do() {
          %a = add(%acc, %t) : tile<f32[20]>
          yield(%a)
        } do() {
          %b = mul(%acc, %t) : tile<f32[20]>
          yield(%b)
        } : tile<f32[20]>
        %k1 = add(%k, %one) : int64
        yield(%next, %k1)
      } : tile<f32[20]>, int64
      store(%o, %lo, %s)
      %e1, %e2 = while(%count, %one) do(%u: int64, %v: int64) {
        %go = gt(%u, %one) : bool
        yield(%go, %u, %v)
      } do(%u2: int64, %v2: int64) {
        %h = floor_div(%u2, %two) : int64
        %d = add(%v2, %one) : int64
        yield(%h, %d)
      } : int64, int64
      %f = add(%e1, %e2) : int64
      store(%c, %p, %f)
      %none = for(%hi, %lo, %one, %f) do(%j: int64, %e: int64) {
        yield(%z)
      } : int64
      %big = gt(%none, %two) : bool
      if(%big) do() {
        %m = neg(%none) : int64
        store(%c, %p, %m)
        yield()
      } do() {
        yield()
      }
      return()
    }"""
    check(text, [f32(320), f32(320), np.zeros(4, np.int64)], {"N": 320})


@pytest.mark.parametrize("unroll", ["3", "true"])
def test_unrolled_loops(unroll: str) -> None:
    text = f"""tile @unrolled(%x: buf<f32[7, 20]>, %o: buf<f32[20]>) with {{grid = (), sizes = (), writes = (1,)}} {{
      %z = constant() {{value = 0}} : int64
      %one = constant() {{value = 1}} : int64
      %n = constant() {{value = 7}} : int64
      %t0 = load(%o, %z) : tile<f32[20]>
      %s = for(%z, %n, %one, %t0) {{unroll = {unroll}}} do(%i: int64, %acc: tile<f32[20]>) {{
        %t = load(%x, %i, %z) : tile<f32[20]>
        %u = fma(%t, %acc, %t) : tile<f32[20]>
        yield(%u)
      }} : tile<f32[20]>
      store(%o, %z, %s)
      return()
    }}"""
    check(text, [f32(7, 20), f32(20)])


def test_scratch_gather_and_scatter() -> None:
    text = """tile @scatters(%x: buf<f32[50]>, %i: buf<int64[40]>, %m: buf<bool[40]>, %o: buf<f32[40]>, %p: buf<f32[50]>, %q: buf<bool[50]>)
      with {grid = (), sizes = (), writes = (3, 4, 5)} {
      %z = constant() {value = 0} : int64
      %ten = constant() {value = 10} : int64
      %at = load(%i, %z) : tile<int64[40]>
      %k = load(%m, %z) : tile<bool[40]>
      %g = gather(%x, %at, %k) {masked = true, fill = -1.0} : tile<f32[40]>
      store(%o, %z, %g)
      scatter(%p, %at, %g)
      scatter(%q, %at, %k, %k) {masked = true}
      %b = alloc() : buf<f32[40], local>
      store(%b, %z, %g)
      %h = load(%b, %ten) : tile<f32[25]>
      %h2 = add(%h, %h) : tile<f32[25]>
      store(%b, %z, %h2)
      %r = load(%b, %z) : tile<f32[40]>
      store(%o, %z, %r)
      return()
    }"""
    index = RNG.integers(0, 50, 40)
    check(text, [f32(50), index, RNG.random(40) < 0.6, f32(40), f32(50), RNG.random(50) < 0.5])


def test_a_store_does_not_change_what_was_loaded_before() -> None:
    text = """tile @order(%x: buf<f32[64]>, %o: buf<f32[32]>) with {grid = (), sizes = (), writes = (0, 1)} {
      %z = constant() {value = 0} : int64
      %five = constant() {value = 5} : int64
      %a = load(%x, %z) : tile<f32[32]>
      %b = load(%x, %five) : tile<f32[32]>
      %c = add(%a, %b) : tile<f32[32]>
      store(%x, %five, %c)
      %d = mul(%a, %b) : tile<f32[32]>
      store(%o, %z, %d)
      return()
    }"""
    check(text, [f32(64), f32(32)])


def test_a_product_sees_what_was_loaded_not_what_was_stored_since() -> None:
    text = """tile @stale(%x: buf<f32[4, 8]>, %b: buf<f32[8, 16]>, %o: buf<f32[4, 16]>)
      with {grid = (), sizes = (), writes = (0, 2)} {
      %z = constant() {value = 0} : int64
      %one = constant() {value = 1} : int64
      %two = constant() {value = 2} : int64
      %a = load(%x, %z, %z) : tile<f32[4, 8]>
      %t = load(%x, %z, %z) : tile<f32[4, 8]>
      %p = transpose(%t) {perm = (1, 0)} : tile<f32[8, 4]>
      %q = transpose(%p) {perm = (1, 0)} : tile<f32[4, 8]>
      %b = load(%b, %z, %z) : tile<f32[8, 16]>
      %c = full() {value = 0.0} : tile<f32[4, 16]>
      %s = for(%z, %two, %one, %c) do(%i: int64, %acc: tile<f32[4, 16]>) {
        %d = dot(%a, %b, %acc) : tile<f32[4, 16]>
        %n = neg(%a) : tile<f32[4, 8]>
        %m = add(%n, %q) : tile<f32[4, 8]>
        store(%x, %z, %z, %m)
        yield(%d)
      } : tile<f32[4, 16]>
      %e = dot(%q, %b, %s) : tile<f32[4, 16]>
      store(%o, %z, %z, %e)
      return()
    }""".replace("%b: buf", "%w: buf").replace("load(%b", "load(%w")
    check(text, [f32(4, 8), f32(8, 16), f32(4, 16)])


CHECK = """tile @checks(%x: buf<int64[N]>, %N: int64) with {grid = (<N//20>,), sizes = ("N",), writes = ()} {
      %p = program_id() {axis = 0} : int64
      %w = constant() {value = 20} : int64
      %lo = mul(%p, %w) : int64
      %t = load(%x, %lo) : tile<int64[20]>
      %limit = full() {value = 100} : tile<int64[20]>
      %ok = lt(%t, %limit) : tile<bool[20]>
      check(%ok, %t) {site = 3}
      %zero = full() {value = 0} : tile<int64[20]>
      %ok2 = ge(%t, %zero) : tile<bool[20]>
      check(%ok2, %t) {site = 2}
      return()
    }"""


def test_checks_report_the_first_site_and_least_value() -> None:
    fn = parse_function(CHECK)
    compiled = Compiled(fn)
    x = np.arange(100, dtype=np.int64)
    assert abi.status_of(compiled([x], {"N": 100})) is None
    x[[7, 90, 50]] = 700, 500, 600
    assert abi.status_of(compiled([x], {"N": 100})) == (3, 500)
    x[95] = -4
    assert abi.status_of(compiled([x], {"N": 100})) == (2, -4)


def test_other_machines_take_the_same_programs() -> None:
    if not set(X86_AVX2.features) <= set(host_cpu().features):
        pytest.skip("the host has no AVX2")
    text = """tile @soft(%x: buf<f32[5, 21]>, %o: buf<f32[5, 21]>) with {grid = (5,), sizes = (), writes = (1,)} {
      %p = program_id() {axis = 0} : int64
      %z = constant() {value = 0} : int64
      %t = load(%x, %p, %z) : tile<f32[1, 21]>
      %m = reduce(%t) {axis = 1, combine = "max"} : tile<f32[1]>
      %r = reshape(%m) : tile<f32[1, 1]>
      %b = broadcast(%r) : tile<f32[1, 21]>
      %d = sub(%t, %b) : tile<f32[1, 21]>
      %s = reduce(%d) {axis = 1, combine = "add"} : tile<f32[1]>
      %sr = reshape(%s) : tile<f32[1, 1]>
      %sb = broadcast(%sr) : tile<f32[1, 21]>
      %e = div(%d, %sb) : tile<f32[1, 21]>
      store(%o, %p, %z, %e)
      return()
    }"""
    x = f32(5, 21)
    check(text, [x, np.zeros_like(x)], machine=X86_AVX2)
    check(text, [x, np.zeros_like(x)])


@pytest.mark.parametrize("d", ["fp8_e4m3", "int8", "bf16", "f16", "int16", "f32"])
@pytest.mark.parametrize("lanes", [1, 2, 3])
def test_a_store_of_few_lanes_leaves_the_neighbours(d: str, lanes: int) -> None:
    """A mask that is a constant with a single lane: LLVM must not widen the store."""
    text = f"""tile @few(%x: buf<f32[16]>, %o: buf<{d}[16]>) with {{grid = (1,), sizes = (), writes = (1,)}} {{
      %z = constant() {{value = 0}} : int64
      %wide = load(%x, %z) : tile<f32[16]>
      %t = convert(%wide) : tile<{d}[16]>
      %i = iota() {{axis = 0}} : tile<int64[16]>
      %n = full() {{value = {lanes}}} : tile<int64[16]>
      %m = lt(%i, %n) : tile<bool[16]>
      store(%o, %z, %t, %m) {{masked = true}}
      return()
    }}"""
    dtype = as_dtype(d).np
    x, o = np.arange(1, 17).astype(np.float32), np.full(16, 7).astype(dtype)
    _, out = check(text, [x, o])
    assert out.tolist() == x[:lanes].tolist() + [7] * (16 - lanes)


def test_rows_outside_a_buffer_point_into_the_frame() -> None:
    text = """tile @rows(%x: buf<f32[10, 16]>, %o: buf<f32[10, 16]>) with {grid = (2,), sizes = (), writes = (1,)} {
      %p = program_id() {axis = 0} : int64
      %eight = constant() {value = 8} : int64
      %z = constant() {value = 0} : int64
      %i = mul(%p, %eight) : int64
      %t = load(%x, %i, %z) {check = (0,)} : tile<f32[8, 16]>
      store(%o, %i, %z, %t) {check = (0,)}
      return()
    }"""
    x = f32(10, 16)
    assert np.array_equal(check(text, [x, np.zeros_like(x)])[1], x)
    code = emit(parse_function(text), host_cpu())
    assert code.count("select i1") >= 16, "masked accesses to pages that are not mapped cost hundreds of cycles each"
