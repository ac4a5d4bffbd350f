"""The text form: what is printed parses back, and errors point at the place."""

import numpy as np
import pytest

from tessera.ir.core import Block, BufferType, Builder, Copier, Function, Op, ScalarType, TensorType, TileType, free_values, rewrite
from tessera.ir.text import ParseError, parse_function
from tessera.types import dtypes as dt
from tessera.types.dims import name

B = name("B")


def sample() -> Function:
    t = TensorType(dt.f32, (B, 768))
    fn = Function("f", "graph", Block([t, t], ["x", "w.1'"]), {"sizes": ("B",), "effects": ()})
    b = Builder(fn.body)
    v = b.value("add", fn.args, t, {"i": 3, "f": 1.5, "inf": float("inf"), "n": None, "s": 'a"b\\\n', "d": dt.bf16, "q": B * 2 + 1,
                                    "t": (1, (2.0,), ()), "c": complex(1, -2), "flag": True, "ty": t, "neg": -3, "tiny": 1e-30})
    inner = Block([TensorType(dt.f32, ())], ["c"])
    inner.ops.append(Op("yield", [inner.args[0]]))
    many = b.op("scan", [v], [t, t], {"k": np.arange(3, dtype=np.int32), "e": np.zeros((0, 2), np.float32)}, [inner, Block()])
    b.op("return", many.results)
    return fn


def test_round_trip():
    text = str(sample())
    assert str(parse_function(text)) == text
    again = parse_function(text).body.ops[0].attrs
    for k, v in sample().body.ops[0].attrs.items():
        assert again[k] == v and type(again[k]) is type(v)


def test_types_round_trip():
    types = [TensorType(dt.f32, ()), BufferType(dt.bf16, (B, 3)), BufferType(dt.f32, (4,), "local"), TileType(dt.int8, (4, 16)),
             TileType(dt.f32, (3,), "scalar"), ScalarType(dt.int64)]
    fn = Function("g", "tile", Block(types))
    Builder(fn.body).op("return", [])
    assert [a.type for a in parse_function(str(fn)).args] == types


def test_called_functions_are_printed_first():
    fn = sample()
    fn.functions["helper"] = Function("helper", "graph", Block([]))
    fn.functions["helper"].body.ops.append(Op("return"))
    again = parse_function(str(fn))
    assert list(again.functions) == ["helper"] and str(again) == str(fn)


@pytest.mark.parametrize(("text", "message", "line"), [
    ("graph @f(%x: f32[2]) {\n  return(%y)\n}", "%y is not defined", 2),
    ("graph @f(%x: f33[2]) {\n}", "no dtype is called 'f33'", 1),
    ("graph @f() {\n  %0 = add()\n}", "names 1 results but gives 0 types", 2),
    ("soup @f() {}", "not a level", 1),
    ("graph @f(%x: f32[2]) {\n %x = neg(%x) : f32[2]\n}", "defined twice", 2),
    ("graph @f() {\n  return(", "expected", 2),
    ("graph @f() {\n  a() {k = @}\n}", "expected a value", 2),
])
def test_parse_errors_point_at_the_place(text, message, line):
    with pytest.raises(ParseError, match=message) as e:
        parse_function(text)
    assert e.value.line == line


def test_rewrite_replaces_values():
    def rule(c: Copier, op: Op):
        if op.name == "add":
            return [c.builder.value("mul", c.operands(op), op.result.type)]
        return None

    out = rewrite(sample(), rule)
    assert [op.name for op in out.walk()] == ["mul", "scan", "yield", "return"]
    assert out.body.ops[1].operands[0] is out.body.ops[0].result
    assert next(op.name for op in sample().walk()) == "add"


def test_free_values():
    fn = sample()
    block = Block([TensorType(dt.f32, ())])
    block.ops.append(Op("use", [fn.args[0], block.args[0], fn.args[0]]))
    assert free_values([block]) == [fn.args[0]]
