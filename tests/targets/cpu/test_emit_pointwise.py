"""Every basic pointwise op on every dtype it takes, compiled and interpreted: the same bits."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from tessera.errors import CompileError
from tessera.ir import tile as tile_ir
from tessera.ir.core import Block, BufferType, Builder, Function, ScalarType, TileType
from tessera.machine import X86_AVX2, host_cpu
from tessera.targets.cpu.emit import emit
from tessera.targets.cpu.emit_pointwise import BASIC
from tessera.types import dtypes as dt

sys.path.insert(0, str(Path(__file__).parent))
from emit_harness import check, values

REAL = [d for d in dt.ALL if not d.is_complex]
CLASSES = {
    "number": lambda d: d.kind != "bool", "real": lambda d: d.kind != "bool", "ordered": lambda d: True,
    "float": lambda d: d.is_float, "inexact": lambda d: d.is_float, "integer": lambda d: d.is_integer,
    "bits": lambda d: d.is_integer or d.kind == "bool", "bool": lambda d: d.kind == "bool", "any": lambda d: True,
}
INT64 = ScalarType(dt.int64)


def ops_of(d: dt.DType) -> list[tuple[str, int, dt.DType]]:
    """(op, operands, result dtype) of the basic ops that take ``d``."""
    out = []
    for names, count, takes, gives in tile_ir._GROUPS:
        for name in names.split():
            if name not in BASIC or name in ("select", "convert", "bitcast") or not CLASSES[takes](d):
                continue
            if d.is_float and name in ("floor_div", "mod"):
                continue
            out.append((name, count, dt.bool_ if gives == "bool" else d))
    return out


def program(d: dt.DType, shape: tuple[int, ...]) -> Function:
    """Loads three tiles and a condition, applies every op of ``d``, stores each result in a buffer of its own."""
    ops = ops_of(d)
    outs = [*(o for _, _, o in ops), d]
    types = [BufferType(d, shape)] * 3 + [BufferType(dt.bool_, shape)] + [BufferType(o, shape) for o in outs]
    fn = Function("every", "tile", Block(types), {"grid": (), "sizes": (), "writes": tuple(range(4, len(types)))})
    b = Builder(fn.body)
    zero = [b.value("constant", (), INT64, {"value": 0})] * len(shape)
    x, y, z = (b.value("load", (fn.args[i], *zero), TileType(d, shape)) for i in range(3))
    p = b.value("load", (fn.args[3], *zero), TileType(dt.bool_, shape))
    made = [b.value(name, (x, y, z)[:count], TileType(o, shape)) for name, count, o in ops]
    made.append(b.value("select", (p, x, y), TileType(d, shape)))
    for value, buffer in zip(made, fn.args[4:], strict=True):
        b.op("store", (buffer, *zero, value))
    b.op("return")
    return fn


def inputs(d: dt.DType, shape: tuple[int, ...], fn: Function, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    x, y, z = (values(d.np, shape, rng) for _ in range(3))
    if d.is_integer:  # shift counts and divisors that are in range, too
        small = (rng.integers(0, 9, shape)).astype(np.int8).astype(d.np)
        y = np.where(rng.random(shape) < 0.5, small, y)
    same = rng.random(shape) < 0.1
    y = np.where(same, x, y)
    rest = [np.zeros(a.type.shape, a.type.dtype.np) for a in fn.args[4:]]
    return [x, y, z, values(np.bool_, shape, rng), *rest]


@pytest.mark.parametrize("d", REAL, ids=str)
def test_every_op(d: dt.DType) -> None:
    for shape in ((64,), (3, 21)):
        fn = program(d, shape)
        check(fn, inputs(d, shape, fn, 1))


@pytest.mark.parametrize("d", [dt.f32, dt.f16, dt.fp8_e4m3, dt.int8, dt.int64, dt.bool_], ids=str)
def test_every_op_with_avx2(d: dt.DType) -> None:
    if not set(X86_AVX2.features) <= set(host_cpu().features):
        pytest.skip("the host has no AVX2")
    fn = program(d, (37,))
    check(fn, inputs(d, (37,), fn, 2), machine=X86_AVX2)


def test_one_element_tiles_and_scalars() -> None:
    for d in (dt.f32, dt.bf16, dt.int4, dt.uint64, dt.bool_):
        fn = program(d, (1,))
        for seed in range(3):
            check(fn, inputs(d, (1,), fn, seed))


@pytest.mark.parametrize("d", REAL, ids=str)
def test_conversions(d: dt.DType) -> None:
    n = 77
    casts = [t for t in REAL if t.itemsize == d.itemsize]
    types = [BufferType(d, (n,)), *(BufferType(t, (n,)) for t in [*REAL, *casts])]
    fn = Function("converts", "tile", Block(types), {"grid": (), "sizes": (), "writes": tuple(range(1, len(types)))})
    b = Builder(fn.body)
    zero = b.value("constant", (), INT64, {"value": 0})
    x = b.value("load", (fn.args[0], zero), TileType(d, (n,)))
    for i, t in enumerate([*REAL, *casts]):
        made = b.value("convert" if i < len(REAL) else "bitcast", (x,), TileType(t, (n,)))
        b.op("store", (fn.args[1 + i], zero, made))
    b.op("return")
    skip = {t.name for t in casts if t.bits == 4 or d.bits == 4 or "bool" in (t.kind, d.kind) or 6 in (t.bits, d.bits)}
    fn.body.ops = [o for o in fn.body.ops if not (o.name == "bitcast" and o.result.type.dtype.name in skip)
                   and not (o.name == "store" and o.operands[2].op.name == "bitcast"
                            and o.operands[2].type.dtype.name in skip)]
    arrays = [np.zeros(n, t.dtype.np) for t in types]
    arrays[0] = values(d.np, n, np.random.default_rng(3))
    check(fn, arrays)


@pytest.mark.parametrize("d", [dt.f16, dt.bf16, dt.fp8_e4m3, dt.fp8_e5m2, dt.fp6_e2m3, dt.fp6_e3m2, dt.fp4_e2m1], ids=str)
def test_every_code_of_a_small_float_widens(d: dt.DType) -> None:
    n = 1 << (16 if d.bits == 16 else d.bits)
    text = f"""tile @widen(%x: buf<{d}[{n}]>, %o: buf<f32[{n}]>) with {{grid = ({n // 16},), sizes = (), writes = (1,)}} {{
      %p = program_id() {{axis = 0}} : int64
      %c = constant() {{value = 16}} : int64
      %i = mul(%p, %c) : int64
      %t = load(%x, %i) : tile<{d}[16]>
      %y = convert(%t) : tile<f32[16]>
      store(%o, %i, %y)
      return()
    }}"""
    codes = np.arange(n).astype(np.uint16 if d.bits == 16 else np.uint8).view(d.np)
    check(text, [codes, np.zeros(n, np.float32)])


@pytest.mark.parametrize("d", [dt.f16, dt.bf16, dt.fp8_e4m3, dt.fp8_e5m2, dt.fp6_e2m3, dt.fp6_e3m2, dt.fp4_e2m1], ids=str)
def test_rounding_to_a_small_float(d: dt.DType) -> None:
    """Every value of the format, the middles between neighbours, and their neighbours in f32."""
    codes = np.arange(1 << 16 if d.bits == 16 else 1 << d.bits).astype(np.uint16 if d.bits == 16 else np.uint8).view(d.np)
    exact = np.unique(codes.astype(np.float32)[np.isfinite(codes.astype(np.float32))])
    middles = ((exact[1:].astype(np.float64) + exact[:-1]) / 2).astype(np.float32)
    x = np.concatenate([exact, middles, np.nextafter(middles, np.float32(np.inf)), np.nextafter(middles, np.float32(-np.inf)),
                        exact[-1:] * np.array([1.01, 1.1, 1.5, 4], np.float32)])
    n = len(x) // 16 * 16
    text = f"""tile @narrow(%x: buf<f32[{n}]>, %o: buf<{d}[{n}]>) with {{grid = ({n // 16},), sizes = (), writes = (1,)}} {{
      %p = program_id() {{axis = 0}} : int64
      %c = constant() {{value = 16}} : int64
      %i = mul(%p, %c) : int64
      %t = load(%x, %i) : tile<f32[16]>
      %y = convert(%t) : tile<{d}[16]>
      store(%o, %i, %y)
      return()
    }}"""
    from dataclasses import replace
    check(text, [x[:n], np.zeros(n, d.np)])
    if d is dt.f16:  # and without the instruction
        machine = replace(X86_AVX2, features=tuple(f for f in X86_AVX2.features if f != "f16c"))
        check(text, [x[:n], np.zeros(n, d.np)], machine=machine)


def test_refusals() -> None:
    text = """tile @bad(%x: buf<f32[16]>) with {grid = (), sizes = (), writes = (0,)} {
      %c = constant() {value = 0} : int64
      %t = load(%x, %c) : tile<f32[16]>
      %y = exp(%t) : tile<f32[16]>
      store(%x, %c, %y)
      return()
    }"""
    from tessera.ir.text import parse_function
    with pytest.raises(CompileError, match="vmath"):
        emit(parse_function(text), host_cpu())
    from dataclasses import replace
    old = replace(X86_AVX2, features=("sse3",))
    with pytest.raises(CompileError, match="multiply-add"):
        emit(parse_function(text), old)
    huge = parse_function(text.replace("exp", "neg").replace("[16]", "[9999999]"))
    with pytest.raises(CompileError, match="too large"):
        emit(huge, host_cpu())
