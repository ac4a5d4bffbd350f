"""Tile IR: the grammar refuses every kind of malformed program, naming the op; the text form round-trips."""

# ruff: noqa: E501  (one program a line)

import pytest

from tessera.ir.core import INDEX, Block, BufferType, Builder, Function, Loc, ScalarType, TileType
from tessera.ir.graph import GrammarError
from tessera.ir.text import parse_function
from tessera.ir.tile import OPS, POINTWISE, pointwise_type, tile_axes, verify
from tessera.types.dims import name
from tessera.types.dtypes import bf16, bool_, f32, int8, int32

HEAD = 'tile @k(%x: buf<f32[N, 8]>, %y: buf<f32[N, 8]>, %N: int64) with {grid = (<N>,), sizes = ("N",), writes = (1,)} {\n'

GOOD = HEAD + """
  %i = program_id() {axis = 0} : int64
  %z = constant() {value = 0} : int64
  %n = size() {value = <2*N>} : int64
  %one = constant() {value = 1} : int64
  %t = load(%x, %i, %z) {axes = (1,), check = (1,), fill = 0.0} : tile<f32[16]>
  %s = constant() {value = 1.5} : f32
  %b = splat(%s) : tile<f32[16]>
  %p = gt(%t, %b) : tile<bool[16]>
  %m = load(%x, %i, %z, %p) {axes = (1,), check = (1,), fill = 0.0, masked = true} : tile<f32[16]>
  %w = select(%p, %t, %m) : tile<f32[16]>
  %acc = for(%z, %n, %one, %w) do(%k: int64, %c: tile<f32[16]>) {
    %d = add(%c, %b) : tile<f32[16]>
    yield(%d)
  } : tile<f32[16]>
  %q = while(%z) do(%u: int64) {
    %go = lt(%u, %n) : bool
    yield(%go, %u)
  } do(%v: int64) {
    %v1 = add(%v, %one) : int64
    yield(%v1)
  } : int64
  %r = reduce(%acc) {axis = 0, combine = "add"} : f32
  %yes = lt(%q, %n) : bool
  %f = if(%yes) do() {
    yield(%r)
  } do() {
    yield(%s)
  } : f32
  %a = reshape(%acc) : tile<f32[4, 4]>
  %at = transpose(%a) {perm = (1, 0)} : tile<f32[4, 4]>
  %sl = slice(%at) {starts = (0, 1), limits = (4, 4)} : tile<f32[4, 3]>
  %cc = concat(%sl, %sl) {axis = 1} : tile<f32[4, 6]>
  %dd = dot(%a, %cc, %cc) : tile<f32[4, 6]>
  %e = extract(%dd) {index = (3, 5)} : f32
  %col = slice(%a) {starts = (0, 0), limits = (4, 1)} : tile<f32[4, 1]>
  %bc = broadcast(%col) : tile<f32[4, 4]>
  %io = iota() {axis = 0} : tile<int64[16]>
  %g = gather(%x, %io) : tile<f32[16]>
  %loc = alloc() : buf<f32[16], local>
  store(%loc, %z, %g) {axes = (0,)}
  scatter(%y, %io, %g, %p) {masked = true}
  %cv = convert(%g) : tile<int32[16]>
  %bits = bitcast(%g) : tile<int32[16]>
  %same = eq(%cv, %bits) : tile<bool[16]>
  check(%same, %cv) {site = 3}
  store(%y, %i, %z, %w) {axes = (1,), check = (1,)}
  return()
}"""


def test_a_program_with_every_structure_is_accepted_and_round_trips():
    fn = parse_function(GOOD)
    verify(fn)
    again = parse_function(str(fn))
    verify(again)
    assert str(again) == str(fn)


def body(text):
    return HEAD + text + "\n  return()\n}"


BAD = {
    "not an op": ("frobnicate()", "frobnicate: is not an op"),
    "grid axis": ("%i = program_id() {axis = 1} : int64", "program_id: axis 1 does not exist in a grid of rank 1"),
    "unknown size": ("%i = size() {value = <M>} : int64", "size: .* uses names that are not parameters: M"),
    "offsets": ("%z = constant() {value = 0} : int64 %t = load(%x, %z) {axes = (1,)} : tile<f32[4]>", "load: a buffer of rank 2 takes 2 offsets"),
    "offset dtype": ("%z = constant() {value = 0} : int32 %t = load(%x, %z, %z) : tile<f32[4]>", "load: offset 0 is a scalar of type int64"),
    "load dtype": ("%z = constant() {value = 0} : int64 %t = load(%x, %z, %z) : tile<f16[4]>", "load: the buffer holds f32, not f16"),
    "axes": ("%z = constant() {value = 0} : int64 %t = load(%x, %z, %z) {axes = (0, 0)} : tile<f32[4, 4]>", "load: axes .* are not distinct"),
    "check axis": ("%z = constant() {value = 0} : int64 %t = load(%x, %z, %z) {check = (2,)} : tile<f32[4]>", "load: check names axis 2"),
    "mask": ("%z = constant() {value = 0} : int64 %p = full() {value = true} : tile<bool[5]> "
             "%t = load(%x, %z, %z, %p) {masked = true} : tile<f32[4]>", "load: the mask is tile<bool"),
    "read-only": ("%z = constant() {value = 0} : int64 %t = full() {value = 0.0} : tile<f32[4]> store(%x, %z, %z, %t)",
                  "store: writes %x, which the attribute writes does not list"),
    "store value": ("%z = constant() {value = 0} : int64 %t = full() {value = 0} : tile<int32[4]> store(%y, %z, %z, %t)",
                    "store: the buffer holds f32, not int32"),
    "gather index": ("%i = full() {value = 0} : tile<int32[4]> %t = gather(%x, %i) : tile<f32[4]>", "gather: the offsets are tile<int64"),
    "scatter": ("%i = iota() {axis = 0} : tile<int64[4]> %t = full() {value = 0.0} : tile<f32[5]> scatter(%y, %i, %t)",
                "scatter: the offsets are tile<int64.5.>"),
    "iota axis": ("%i = iota() {axis = 1} : tile<int64[4]>", "iota: axis 1 does not exist"),
    "iota dtype": ("%i = iota() {axis = 0} : tile<f32[4]>", "iota: the result is a tile of int64"),
    "full": ("%i = full() : tile<f32[4]>", "full: has no value"),
    "full scalar": ("%i = full() {value = 0.0} : f32", "full: the result is a tile"),
    "splat": ("%s = constant() {value = 1.0} : f32 %t = splat(%s) : tile<f16[4]>", "splat: the result holds f32"),
    "shapes": ("%a = full() {value = 0.0} : tile<f32[4]> %b = full() {value = 0.0} : tile<f32[5]> %c = add(%a, %b) : tile<f32[4]>",
               "add: operands have different shapes"),
    "dtypes": ("%a = full() {value = 0.0} : tile<f32[4]> %b = full() {value = 0.0} : tile<f16[4]> %c = add(%a, %b) : tile<f32[4]>",
               "add: operands have different dtypes"),
    "bool arithmetic": ("%a = full() {value = true} : tile<bool[4]> %c = add(%a, %a) : tile<bool[4]>", "add: works on numbers"),
    "integer division": ("%a = full() {value = 1} : tile<int32[4]> %c = div(%a, %a) : tile<int32[4]>", "div: works on floats"),
    "comparison result": ("%a = full() {value = 1} : tile<int32[4]> %c = lt(%a, %a) : tile<int32[4]>", "lt: the result is tile<bool"),
    "operand count": ("%a = full() {value = 1} : tile<int32[4]> %c = add(%a) : tile<int32[4]>", "add: takes 2 operands, got 1"),
    "select": ("%a = full() {value = 1} : tile<int32[4]> %c = select(%a, %a, %a) : tile<int32[4]>", "select: the condition is bool"),
    "bitcast": ("%a = full() {value = 1} : tile<int32[4]> %c = bitcast(%a) : tile<f16[4]>", "bitcast: cannot reinterpret int32 as f16"),
    "broadcast": ("%a = full() {value = 1} : tile<int32[4]> %c = broadcast(%a) : tile<int32[8]>", "broadcast: .* does not stretch"),
    "reshape": ("%a = full() {value = 1} : tile<int32[4]> %c = reshape(%a) : tile<int32[2, 3]>", "reshape: .* does not reshape"),
    "transpose": ("%a = full() {value = 1} : tile<int32[4, 2]> %c = transpose(%a) {perm = (0, 0)} : tile<int32[4, 2]>",
                  "transpose: .* is not a permutation"),
    "slice": ("%a = full() {value = 1} : tile<int32[4]> %c = slice(%a) {starts = (2,), limits = (5,)} : tile<int32[3]>",
              "slice: .* does not lie in"),
    "concat": ("%a = full() {value = 1} : tile<int32[4, 2]> %b = full() {value = 1} : tile<int32[3, 2]> "
               "%c = concat(%a, %b) {axis = 1} : tile<int32[4, 4]>", "concat: .* does not join"),
    "exchange": ("%a = full() {value = 1} : tile<int32[12]> %c = exchange(%a) {axis = 0, mask = 4} : tile<int32[12]>",
                 "exchange: axis 0 of .* is no whole number of runs"),
    "extract": ("%a = full() {value = 1} : tile<int32[4]> %c = extract(%a) {index = (4,)} : int32", "extract: .* is not an index"),
    "reduce axis": ("%a = full() {value = 1} : tile<int32[4]> %c = reduce(%a) {axis = 1, combine = \"add\"} : int32", "reduce: axis 1 does not"),
    "combine": ("%a = full() {value = 1} : tile<int32[4]> %c = reduce(%a) {axis = 0, combine = \"sum\"} : int32", "reduce: combine is one of"),
    "combine dtype": ("%a = full() {value = 1.0} : tile<f32[4]> %c = reduce(%a) {axis = 0, combine = \"xor\"} : f32", "reduce: xor combines"),
    "dot shapes": ("%a = full() {value = 1.0} : tile<f32[4, 3]> %c = dot(%a, %a, %a) : tile<f32[4, 3]>", "dot: shapes do not fit"),
    "dot dtypes": ("%a = full() {value = 1.0} : tile<f32[4, 4]> %b = full() {value = 1.0} : tile<f16[4, 4]> "
                   "%c = dot(%a, %a, %b) : tile<f16[4, 4]>", "dot: f32 does not convert exactly"),
    "alloc": ("%a = alloc() : buf<f32[4]>", "alloc: the result is a buffer of a space of the block"),
    "alloc shape": ("%a = alloc() : buf<f32[N], local>", "alloc: extents are positive integers"),
    "check": ("%a = constant() {value = 1} : int32 check(%a, %a) {site = 0}", "check: the condition is bool"),
    "for types": ("%z = constant() {value = 0} : int64 %s = constant() {value = 0.0} : f32 "
                  "%r = for(%z, %z, %z, %s) do(%i: int64, %c: f32) { yield(%i) } : f32", "for: the values yielded"),
    "for bounds": ("%z = constant() {value = 0} : int32 for(%z, %z, %z) do(%i: int64) { yield() }", "for: low is a scalar of type int64"),
    "while": ("%z = constant() {value = 0} : int64 %r = while(%z) do(%a: int64) { yield(%a, %a) } do(%b: int64) { yield(%b) } : int64",
              "while: the values yielded"),
    "if": ("%z = constant() {value = 0} : int64 if(%z) do() { yield() } do() { yield() }", "if: the condition is a scalar of type bool"),
    "if branches": ("%p = constant() {value = true} : bool %z = constant() {value = 0} : int64 "
                    "%r = if(%p) do() { yield(%z) } do() { yield(%p) } : int64", "if: the values yielded"),
    "no terminator": ("%p = constant() {value = true} : bool if(%p) do() { } do() { yield() }", "if: a block ends in yield"),
}


@pytest.mark.parametrize("case", BAD, ids=list(BAD))
def test_malformed_programs_are_refused(case):
    text, message = BAD[case]
    fn = parse_function(body(text))
    with pytest.raises(GrammarError, match=message):
        verify(fn)


def test_a_value_is_not_visible_outside_its_loop():
    fn = Function("k", "tile", Block(), {"grid": (1,), "sizes": (), "writes": ()})
    b = Builder(fn.body)
    zero = b.value("constant", (), INDEX, {"value": 0})
    inner = Block([INDEX])
    with b.at(inner):
        leaked = b.value("add", (inner.args[0], zero), INDEX)
        b.op("yield")
    b.op("for", (zero, zero, zero), (), {}, [inner])
    b.op("add", (leaked, zero), (INDEX,), loc=Loc("kernel.py", 0, 12))
    b.op("return")
    with pytest.raises(GrammarError, match=r"add: operand 0 .* is not defined here \(kernel.py:12\)"):
        verify(fn)


def test_function_attributes_are_checked():
    for change, message in [({"grid": None}, "grid is a tuple"), ({"sizes": ("M",)}, "size parameters are"), ({"writes": (5,)}, "writes holds"),
                            ({"grid": (name("Z"),)}, "sizes are used that are not parameters: Z")]:
        fn = parse_function(GOOD)
        fn.attrs.update(change)
        with pytest.raises(GrammarError, match=message):
            verify(fn)
    with pytest.raises(GrammarError, match="is a graph function"):
        verify(Function("g", "graph"))


def test_pointwise_types():
    t = TileType(f32, (4,))
    assert pointwise_type("fma", [t, t, t]) == t
    assert pointwise_type("lt", [t, t]) == TileType(bool_, (4,))
    assert pointwise_type("convert", [t], TileType(bf16, (4,))) == TileType(bf16, (4,))
    assert pointwise_type("bitwise_and", [ScalarType(int8)] * 2) == ScalarType(int8)
    with pytest.raises(GrammarError, match="has not the operand's shape"):
        pointwise_type("convert", [t], TileType(int32, (5,)))
    assert set(POINTWISE) < OPS


def test_axes_default_to_the_trailing_ones():
    fn = parse_function(body("%z = constant() {value = 0} : int64 %t = load(%x, %z, %z) : tile<f32[4]>"))
    assert tile_axes(fn.body.ops[1]) == (1,)
    assert isinstance(fn.args[0].type, BufferType)
