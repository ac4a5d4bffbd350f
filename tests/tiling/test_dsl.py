"""The tile language's operations: folding, promotion, broadcasting, index expressions, errors."""

import numpy as np
import pytest

from tessera.errors import KernelError
from tessera.ir.core import BufferType, Loc
from tessera.ir.interpret_tile import run
from tessera.tiling import dsl as tile
from tessera.types import dtypes as dt
from tessera.types.dims import floordiv, mod, sym

M, N = sym("M N")


def build(body, *buffers, sizes=("M", "N"), **options):
    shapes = buffers or (BufferType(dt.f32, (M, N)), BufferType(dt.f32, (M, N)))
    return tile.build(tile.TileProgram("k", [(f"b{i}", b) for i, b in enumerate(shapes)], sizes, **options), body)


def names(fn):
    return [op.name for op in fn.walk()]


# -- index arithmetic ----------------------------------------------------------------------------------------------------
def test_constants_and_sizes_fold():
    def body(x, o):
        i = tile.program_id(0)
        zero = tile.constant(0)
        assert (i + 0) is i and (i * 1) is i and (zero + i) is i and (i - zero) is i and (i // 1) is i
        assert (i * 0).const == 0 and (i % 1).const == 0 and (tile.constant(7) // 2).const == 3
        m = tile.size(M)
        assert (m + 3).dim == M + 3 and ((m + 3) - m).const == 3 and tile.minimum(M, M + 1) == M
        assert (tile.constant(3) < 4).const is True
        tile.store(o, (i, 0), 0.0)

    fn = build(body)
    assert sorted(names(fn)) == ["constant", "constant", "program_id", "return", "store"]


def test_sizes_stand_once_before_everything_else():
    def body(x, o):
        tile.for_loop((0, M, 1), (), lambda i, _: (tile.store(o, (i, N - 1), i % tile.size(N)), ())[1])

    fn = build(body)
    sizes = [str(op.attrs["value"]) for op in fn.walk() if op.name == "size"]
    assert names(fn)[:3] == ["size"] * 3 and sorted(sizes) == ["M", "N", "N-1"]


@pytest.mark.parametrize("expr, value", [
    (M * 3 + 1, 16), (sym("i") * N + sym("j"), 2 * 7 + 3), (floordiv(sym("i") * 5 + sym("j"), 4) + mod(sym("j"), 2), 13 // 4 + 1),
    (sym("i") * sym("i") * 2 - N, 1), (4, 4), (sym("i") + N * M, 37),
])
def test_index_expressions_over_loop_names(expr, value):
    def body(o):
        i, j = tile.load(o, (1,)), tile.load(o, (2,))
        tile.store(o, (0,), tile.evaluate(expr, {"i": i, "j": j}))

    fn = tile.build(tile.TileProgram("k", [("o", BufferType(dt.int64, (3,)))], ("M", "N")), body)
    o = np.array([0, 2, 3])
    run(fn, [o], {"M": 5, "N": 7})
    assert o[0] == value


def test_cdiv():
    assert tile.cdiv(7, 2) == 4 and tile.cdiv(M, 1) == M and str(tile.cdiv(M, 4)) == str(floordiv(M + 3, 4))


# -- dtypes and shapes ---------------------------------------------------------------------------------------------------
def in_program(check):
    """Run ``check`` on tiles of a program that is thrown away."""
    build(lambda x, o: (check(), tile.store(o, (0, 0), 0.0)))


def test_promotion_and_weak_numbers():
    def check():
        f, b, h, i, p = (tile.full((4,), 1, d) for d in (dt.f32, dt.bf16, dt.f16, dt.int32, dt.bool_))
        assert (b * 2.5).dtype is dt.bf16 and (i + 1).dtype is dt.int32 and (i * 0.5).dtype is dt.f32
        assert (b + h).dtype is dt.f32 and (f + b).dtype is dt.f32 and (i + b).dtype is dt.bf16
        assert (i / 2).dtype is dt.f32 and (i // 2).dtype is dt.int32 and (f > 0).dtype is dt.bool_
        assert (p & True).dtype is dt.bool_ and (i & 3).dtype is dt.int32 and (~p).dtype is dt.bool_
        assert (f * np.float64(2)).dtype is dt.f32 and (np.float32(2) * f).dtype is dt.f32 and (2 - f).dtype is dt.f32
        assert tile.where(f > 0, b, 1.0).dtype is dt.bf16 and tile.convert(1, dt.f16).dtype is dt.f16
        assert tile.sum(i, 0).dtype is dt.int32 and tile.dot(b.reshape(2, 2), b.reshape(2, 2)).dtype is dt.f32
        assert tile.dot(tile.full((2, 2), 1, dt.int8), tile.full((2, 2), 1, dt.int8)).dtype is dt.int64

    in_program(check)


def test_broadcasting():
    def check():
        a, row, col = tile.full((3, 5), 1, dt.f32), tile.full((5,), 1, dt.f32), tile.full((3, 1), 1, dt.f32)
        assert (a + row).shape == (3, 5) and (row * col).shape == (3, 5) and (a > tile.constant(1)).shape == (3, 5)
        assert tile.where(col > 0, row, 0.0).shape == (3, 5) and tile.fma(a, row, col).shape == (3, 5)
        assert a.T.shape == (5, 3) and a.reshape(-1).shape == (15,) and a[1].shape == (5,) and a[:, None].shape == (3, 1, 5)
        assert tile.max(a, -1, keepdims=True).shape == (3, 1) and len(a) == 3 and a.ndim == 2 and tile.sum(a).shape == ()

    in_program(check)


def test_dead_operations_are_dropped():
    def body(x, o):
        tile.exp(tile.load(x, (0, 0), (2, 3)))
        tile.for_loop((0, 3, 1), 0.0, lambda i, c: c + 1.0)
        tile.store(o, (0, 0), tile.full((2, 3), 1.0, dt.f32))

    assert sorted(names(build(body))) == ["constant", "full", "return", "store"]


def test_what_a_program_writes_is_inferred_and_can_be_declared():
    def body(x, o):
        tile.store(o, (0, 0), tile.load(x, (0, 0)))

    assert build(body).attrs["writes"] == (1,) and build(body, writes=(0, 1)).attrs["writes"] == (0, 1)
    with pytest.raises(KernelError, match="writes %b1, which the attribute writes does not list"):
        build(body, writes=(0,))


def test_a_template_gives_its_ops_one_location():
    loc = Loc("model.py", 0, 42)
    fn = build(lambda x, o: tile.store(o, (0, 0), tile.load(x, (0, 0)) + 1), loc=loc)
    assert all(str(op.loc) == "model.py:42" for op in fn.walk() if op.name != "return")


def test_buffers_named_like_a_size_keep_the_text_readable():
    from tessera.ir.text import parse_function
    from tessera.ir.tile import verify
    fn = tile.build(tile.TileProgram("k", [("N", BufferType(dt.f32, (N,)))], ("N",)), lambda o: tile.store(o, (0,), 1.0))
    verify(parse_function(str(fn)))


# -- errors --------------------------------------------------------------------------------------------------------------
def f(*shape, d=dt.f32):
    return tile.full(shape, 1, d)


ERRORS = {
    "static shape": (lambda: tile.zeros((tile.program_id(0),), dt.f32), "a tile shape must be static"),
    "size in a shape": (lambda: tile.zeros((M,), dt.f32), "a tile shape must be static: extent 0 is M"),
    "empty": (lambda: tile.zeros((0,), dt.f32), "positive extents; extent 0 is 0"),
    "float extent": (lambda: tile.zeros((2.5,), dt.f32), "made of integers, not float"),
    "mismatch": (lambda: f(3) + f(4), "differ in dimension 0: 3 vs 4"),
    "reshape": (lambda: f(3, 4).reshape(5, 2), "cannot reshape tile<f32.3, 4.> to .5, 2.: 12 elements against 10"),
    "perm": (lambda: tile.transpose(f(3, 4), (0, 0)), "is not a permutation"),
    "T": (lambda: f(3).T, "T transposes matrices"),
    "broadcast": (lambda: tile.broadcast_to(f(3), (4,)), "cannot broadcast"),
    "axis": (lambda: tile.sum(f(3), 1), "axis 1 does not exist in a tile of rank 1"),
    "combine": (lambda: tile.reduce(f(3), 0, "sum"), "no reduction is called 'sum'"),
    "slice": (lambda: tile.slice(f(3), (1,), (5,)), "does not lie in"),
    "empty slice": (lambda: f(3)[2:2], "is empty"),
    "step": (lambda: f(8)[::2], "slices of a tile have step 1"),
    "index": (lambda: f(3)[5], "index 5 is out of range"),
    "too many": (lambda: f(3)[1, 2], "too many indices"),
    "extract": (lambda: tile.extract(f(3), (3,)), "is not an index"),
    "concat": (lambda: tile.concat([f(3, 4), f(3, 5)], 0), "does not join"),
    "exchange": (lambda: tile.exchange(f(12), 4), "exchange by 4 leaves axis 0"),
    "exchange back": (lambda: tile.exchange(f(8), -1), "exchange by -1 leaves"),
    "no parts": (lambda: tile.concat([]), "at least one tile"),
    "dot rank": (lambda: tile.dot(f(3), f(3)), "dot multiplies matrices"),
    "dot inner": (lambda: tile.dot(f(3, 4), f(3, 4)), "inner extents differ, 4 vs 3"),
    "dot acc": (lambda: tile.dot(f(3, 4), f(4, 3), f(3, 4)), "the accumulator is tile<f32.3, 4.>"),
    "dot dtype": (lambda: tile.dot(f(2, 2), f(2, 2), f(2, 2, d=dt.bf16)), "f32 does not convert exactly to the accumulator's dtype bf16"),
    "dot bool": (lambda: tile.dot(f(2, 2, d=dt.bool_), f(2, 2, d=dt.bool_)), "bool has no dot"),
    "promotion": (lambda: f(3, d=dt.fp8_e4m3) + f(3), "never converts implicitly"),
    "op dtype": (lambda: tile.floor(f(3, d=dt.int32)), "floor works on floats, not on int32"),
    "condition": (lambda: tile.where(f(3), 1.0, 2.0), "the condition is bool, not f32"),
    "operands": (lambda: tile.exp(f(3), f(3)), "exp takes 1 operand, got 2"),
    "number": (lambda: f(3, d=dt.int8) + 1000, "1000 does not fit int8"),
    "bitcast": (lambda: tile.bitcast(f(3), dt.f16), "cannot reinterpret f32 as f16"),
    "program_id": (lambda: tile.program_id(1), "the grid has 1 axes"),
    "range": (lambda: tile.range(0, 5, 0), "the step of a range is positive"),
    "static_range": (lambda: tile.static_range(M), "numbers known when the kernel is built"),
    "float()": (lambda: float(tile.constant(1.0)), "is known only when the kernel runs"),
    "len": (lambda: len(tile.constant(1.0)), "has no length"),
    "iter": (lambda: list(f(3)), "cannot iterate over"),
    "setitem": (lambda: f(3).__setitem__(0, 1), "tiles are values"),
    "not a value": (lambda: f(3) + "x", "expected a tile, a scalar or a number, got str"),
}


@pytest.mark.parametrize("case", ERRORS, ids=list(ERRORS))
def test_errors_of_operations(case):
    make, message = ERRORS[case]
    with pytest.raises(KernelError, match=message) as info:
        build(lambda x, o: make())
    assert info.value.where.file == __file__


@pytest.mark.parametrize("access, message", [
    (lambda x, o: tile.load(x, (0,)), "takes 2 offsets, got 1"),
    (lambda x, o: tile.load(x, (0, 0), (1, 2, 3)), "a tile of rank 3 does not lie in"),
    (lambda x, o: tile.load(x, (0, 0), (2,), axes=(5,)), "axis 5 does not exist"),
    (lambda x, o: tile.load(x, (0, 0), (2, 2), axes=(0, 0)), "do not place a tile"),
    (lambda x, o: tile.load(x, (0, 1.5), (2,)), "1.5 is not a value of int64|an offset is an integer scalar"),
    (lambda x, o: tile.load(x, (0, f(3)), (2,)), "an offset is an integer scalar"),
    (lambda x, o: tile.load(x, (0, 0), (2,), mask=f(2)), "a mask is bool, not f32"),
    (lambda x, o: tile.load(f(3), (0,), (2,)), "load takes a buffer"),
    (lambda x, o: tile.store(f(3), (0,), 1.0), "store takes a buffer"),
])
def test_errors_of_memory_access(access, message):
    with pytest.raises(KernelError, match=message):
        build(access)


def test_operations_need_a_program():
    with pytest.raises(KernelError, match="work only inside a kernel"):
        tile.full((3,), 1.0)
    assert not tile.tracing()
