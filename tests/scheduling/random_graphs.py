"""Random Graph functions: a few dozen ops over small shapes, one axis of which may be symbolic."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import strategies as st

from tessera.ir.core import Block, Builder, Function, TensorType, Value
from tessera.ir.graph import OP_RULES
from tessera.types import dtypes as dt
from tessera.types.dims import name

B = name("B")
UNARY = ("neg", "abs", "exp", "tanh", "sigmoid", "sqrt", "floor", "sin")
BINARY = ("add", "sub", "mul", "maximum", "minimum")
Draw = Callable[[Any], Any]


class Maker:
    """Grows a function op by op."""

    def __init__(self, draw: Draw, sizes: tuple[Any, ...]):
        self.draw, self.sizes = draw, sizes
        self.fn = Function("random", "graph", Block())
        self.b = Builder(self.fn.body)
        self.values: list[Value] = []

    def parameter(self) -> None:
        rank = self.draw(st.integers(0, 3))
        shape = tuple(self.draw(st.sampled_from(self.sizes)) for _ in range(rank))
        self.values.append(self.fn.body.add_arg(TensorType(dt.f32, shape), f"p{len(self.fn.args)}"))

    def emit(self, op: str, *operands: Value, **attrs: Any) -> Value:
        types = OP_RULES[op]([v.type for v in operands], attrs)
        made = self.b.op(op, operands, types, attrs)
        self.values.append(made.results[0])
        return made.results[0]

    def pick(self) -> Value:
        """Any value; recent ones more often, so that chains grow long."""
        recent = self.values[-4:] if self.draw(st.booleans()) else self.values
        return self.draw(st.sampled_from(recent))

    def step(self) -> None:
        kind = self.draw(st.sampled_from(("unary", "binary", "reduce", "move", "composite", "product", "binary", "unary")))
        getattr(self, f"_{kind}")(self.pick())

    def _unary(self, x: Value) -> None:
        op = self.draw(st.sampled_from(UNARY))
        self.emit(op, self.emit("abs", x) if op == "sqrt" else self.emit("tanh", x) if op == "exp" else x)

    def _binary(self, x: Value) -> None:
        like = [v for v in self.values if v.type == x.type]
        smaller = [v for v in self.values if v.type.rank < x.type.rank and x.type.shape[x.type.rank - v.type.rank:] == v.type.shape]
        y = self.draw(st.sampled_from(like + smaller))
        if y.type != x.type:
            y = self.emit("broadcast_to", y, shape=x.type.shape)
        self.emit(self.draw(st.sampled_from(BINARY)), x, y)

    def _reduce(self, x: Value) -> None:
        if x.type.rank == 0:
            return
        axes = tuple(sorted(self.draw(st.sets(st.integers(0, x.type.rank - 1), min_size=1))))
        y = self.emit(self.draw(st.sampled_from(("reduce_sum", "reduce_max", "reduce_min"))), x, axes=axes)
        if self.draw(st.booleans()):  # stretched back over the axes: rows
            kept = tuple(1 if i in axes else n for i, n in enumerate(x.type.shape))
            wide = self.emit("broadcast_to", self.emit("reshape", y, shape=kept), shape=x.type.shape)
            self.emit("sub", x, wide)

    def _composite(self, x: Value) -> None:
        if x.type.rank == 0:
            return
        name_ = self.draw(st.sampled_from(("softmax", "log_softmax", "rms_norm", "layer_norm", "gelu")))
        if name_ in ("softmax", "log_softmax"):
            self.emit(name_, x, axis=self.draw(st.integers(0, x.type.rank - 1)))
        elif name_ == "gelu":
            self.emit(name_, x, approximate="tanh")
        else:
            self.emit(name_, x, eps=1e-3)

    def _move(self, x: Value) -> None:
        t, draw = x.type, self.draw
        if t.rank == 0:
            return
        op = draw(st.sampled_from(("transpose", "reshape", "flip", "slice", "pad", "concat", "merge")))
        axis = draw(st.integers(0, t.rank - 1))
        one = [0] * t.rank
        if op == "transpose":
            self.emit(op, x, perm=tuple(draw(st.permutations(range(t.rank)))))
        elif op == "reshape":
            at = draw(st.integers(0, t.rank))
            self.emit(op, x, shape=(*t.shape[:at], 1, *t.shape[at:]))
        elif op == "merge" and t.rank > 1 and axis + 1 < t.rank:
            self.emit("reshape", x, shape=(*t.shape[:axis], t.shape[axis] * t.shape[axis + 1], *t.shape[axis + 2:]))
        elif op == "flip":
            self.emit(op, x, axes=(axis,))
        elif op == "slice" and isinstance(t.shape[axis], int) and t.shape[axis] > 1:
            one[axis] = 1
            self.emit(op, x, start=tuple(one), limit=t.shape, stride=(1,) * t.rank)
        elif op == "pad":
            one[axis] = 1
            self.emit(op, x, low=tuple(one), high=(0,) * t.rank, value=0.5)
        elif op == "concat":
            like = [v for v in self.values if v.type == t]
            self.emit(op, x, draw(st.sampled_from(like)), axis=axis)

    def _product(self, x: Value) -> None:
        """With any value that shares an axis size; the second operand's other axes are free."""
        if x.type.rank == 0:
            return
        for y in self.values:
            for j, n in enumerate(y.type.shape):
                if n == x.type.shape[-1] and y.type.rank + x.type.rank <= 5:
                    self.emit("dot_general", self.emit("tanh", x), y, lhs_contract=(x.type.rank - 1,), rhs_contract=(j,),
                              lhs_batch=(), rhs_batch=())
                    return


@st.composite
def graphs(draw: Draw, symbolic: bool = True) -> Function:
    """A function of one to three f32 parameters with one to four results."""
    sizes = (1, 2, 3, 5, 33) + ((B, B) if symbolic else ())
    m = Maker(draw, sizes)
    for _ in range(draw(st.integers(1, 3))):
        m.parameter()
    for _ in range(draw(st.integers(1, 14))):
        if m.values[-1].type.rank <= 4:
            m.step()
    results = draw(st.lists(st.sampled_from(m.values), min_size=1, max_size=4))
    m.b.op("return", results)
    m.fn.attrs = {"sizes": ("B",) if symbolic else ()}
    return m.fn
