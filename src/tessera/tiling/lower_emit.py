"""Writing Tile IR: a builder that never writes the same pure value twice, and sizes turned into index arithmetic.

Index arithmetic is on ``int | Value``: what is known stays a Python integer, so that no additions of zero or products
by one are written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..ir.core import INDEX, Block, BufferType, Builder, Function, Op, ScalarType, TileType, Value
from ..types.dims import Dim, DimLike, atom
from ..types.dtypes import DType, bool_, f64, int64

Int = int | Value

_IMPURE = frozenset({"load", "gather", "store", "scatter", "atomic", "check", "alloc", "for", "while", "if", "yield", "return"})


def scalar_of(t: Any) -> DType:
    dtype: DType = t.dtype
    return dtype


class Emit:
    """Appends tile ops; equal pure ops of one scope (and of the scopes around it) are written once."""

    def __init__(self, fn: Function, sizes: Mapping[str, Value]):
        self.fn = fn
        self.b = Builder(fn.body)
        self.sizes = sizes
        self._seen: list[dict[Any, Value]] = [{}]
        self._constants: dict[Value, int] = {}

    # -- ops -----------------------------------------------------------------------------------------------------------
    def op(self, name: str, operands: Sequence[Value], type: Any, attrs: Mapping[str, Any] | None = None,
           pure: bool | None = None) -> Value:
        """A one-result op; ``pure`` overrides the table (a load from memory that this program never writes)."""
        if not (name not in _IMPURE if pure is None else pure):
            return self.b.value(name, operands, type, attrs)
        key = (name, tuple(map(id, operands)), type, _freeze(attrs))
        for scope in reversed(self._seen):
            found: Value | None = scope.get(key)
            if found is not None:
                return found
        v: Value = self.b.value(name, operands, type, attrs)
        self._seen[-1][key] = v
        return v

    def effect(self, name: str, operands: Sequence[Value], attrs: Mapping[str, Any] | None = None) -> None:
        self.b.op(name, operands, (), attrs)

    @contextmanager
    def inside(self, block: Block) -> Iterator[None]:
        """Write into a nested block; what is found there is forgotten afterwards."""
        self._seen.append({})
        with self.b.at(block):
            yield
        self._seen.pop()

    def loop(self, lo: Int, hi: Int, step: int, carried: Sequence[Value],
             body: Callable[[Value, list[Value]], Sequence[Value]]) -> list[Value]:
        """``for`` over [lo, hi): ``body(i, carried) -> carried``; a loop known to run never or once is not one."""
        if isinstance(lo, int) and isinstance(hi, int):
            if hi <= lo:
                return list(carried)
            if hi - lo <= step:
                return list(body(self.index(lo), list(carried)))
        types = [v.type for v in carried]
        block = Block([INDEX, *types])
        with self.inside(block):
            out = body(block.args[0], block.args[1:])
            self.effect("yield", out)
        made = self.b.op("for", [self.index(lo), self.index(hi), self.index(step), *carried], types, None, [block])
        return list(made.results)

    def when(self, p: Value, types: Sequence[Any], then: Callable[[], Sequence[Value]],
             other: Callable[[], Sequence[Value]]) -> list[Value]:
        """``if``."""
        blocks = []
        for make in (then, other):
            block = Block()
            with self.inside(block):
                self.effect("yield", make())
            blocks.append(block)
        return list(self.b.op("if", [p], types, None, blocks).results)

    # -- constants and shapes --------------------------------------------------------------------------------------------
    def const(self, value: Any, dtype: DType, shape: tuple[int, ...] = ()) -> Value:
        """A constant scalar, or a tile full of it."""
        if shape:
            return self.op("full", (), TileType(dtype, shape), {"value": value})
        v = self.op("constant", (), ScalarType(dtype), {"value": value})
        if dtype is int64:
            self._constants[v] = int(value)
        return v

    def splat(self, v: Value, shape: tuple[int, ...]) -> Value:
        """A scalar as a tile of ``shape``; a tile is returned as it is."""
        if isinstance(v.type, TileType) or not shape:
            return v
        if v.op is not None and v.op.name == "constant":
            return self.const(v.op.attrs["value"], scalar_of(v.type), shape)
        return self.op("splat", (v,), TileType(scalar_of(v.type), shape))

    def iota(self, shape: tuple[int, ...], axis: int) -> Value:
        return self.op("iota", (), TileType(int64, shape), {"axis": axis})

    def pointwise(self, name: str, *operands: Value, dtype: DType | None = None, attrs: Any = None) -> Value:
        """A pointwise op on scalars and tiles together: scalars are spread out."""
        shape: tuple[int, ...] = next((v.type.shape for v in operands if isinstance(v.type, TileType)), ())
        d = dtype or scalar_of(operands[-1].type)
        vs = [self.splat(v, shape) for v in operands]
        return self.op(name, vs, TileType(d, shape) if shape else ScalarType(d), attrs)

    def compare(self, name: str, a: Value, b: Value) -> Value:
        return self.pointwise(name, a, b, dtype=bool_)

    def both(self, a: Value | None, b: Value | None) -> Value | None:
        """The conjunction of two masks, None meaning all lanes."""
        if a is None or b is None:
            return a if b is None else b
        return self.pointwise("logical_and", a, b, dtype=bool_)

    # -- index arithmetic ------------------------------------------------------------------------------------------------
    def index(self, x: Int) -> Value:
        return self.const(x, int64) if isinstance(x, int) else x

    def known(self, x: Int) -> Int:
        """An int where the value is known to be constant."""
        return self._constants.get(x, x) if isinstance(x, Value) else x

    def add(self, a: Int, b: Int) -> Int:
        a, b = self.known(a), self.known(b)
        if isinstance(a, int) and isinstance(b, int):
            return a + b
        if a == 0 and isinstance(a, int):
            return b
        if isinstance(b, int) and b == 0:
            return a
        return self._index("add", a, b)

    def sub(self, a: Int, b: Int) -> Int:
        a, b = self.known(a), self.known(b)
        if isinstance(a, int) and isinstance(b, int):
            return a - b
        if isinstance(b, int) and b == 0:
            return a
        return 0 if a is b else self._index("sub", a, b)

    def mul(self, a: Int, b: Int) -> Int:
        a, b = self.known(a), self.known(b)
        if isinstance(a, int) and isinstance(b, int):
            return a * b
        for x, y in ((a, b), (b, a)):
            if isinstance(x, int) and x in (0, 1):
                return y if x else 0
        return self._index("mul", a, b)

    def minimum(self, a: Int, b: Int) -> Int:
        a, b = self.known(a), self.known(b)
        if isinstance(a, int) and isinstance(b, int):
            return min(a, b)
        return self._index("minimum", a, b)

    def round_down(self, a: Int, n: int) -> Int:
        """``a - a % n`` for ``a >= 0`` (any ``a`` when n is a power of two)."""
        if isinstance(a, int):
            return a // n * n
        if n & (n - 1) == 0:
            return self._index("bitwise_and", a, -n)
        return self.sub(a, self._index("mod", a, n))

    def floordiv(self, a: Int, b: Int) -> Int:
        a, b = self.known(a), self.known(b)
        if isinstance(b, int):
            if isinstance(a, int):
                return a // b
            if b == 1:
                return a
            if b > 0 and b & (b - 1) == 0:
                return self._index("shift_right", a, b.bit_length() - 1)
        return self._index("floor_div", a, b)

    def mod(self, a: Int, b: Int) -> Int:
        a, b = self.known(a), self.known(b)
        if isinstance(b, int):
            if isinstance(a, int):
                return a % b
            if b == 1:
                return 0
            if b > 0 and b & (b - 1) == 0:
                return self._index("bitwise_and", a, b - 1)
        return self._index("mod", a, b)

    def _index(self, name: str, a: Int, b: Int) -> Value:
        return self.op(name, (self.index(a), self.index(b)), INDEX)

    # -- sizes -----------------------------------------------------------------------------------------------------------
    def size(self, d: DimLike) -> Int:
        """A size expression over the program's sizes."""
        return d if isinstance(d, int) else self.op("size", (), INDEX, {"value": d})

    def scalar(self, d: DimLike, env: Mapping[str, Int]) -> Int:
        """``d`` as an integer, where ``env`` gives loop variables and every other name is a size."""
        if isinstance(d, int):
            return d
        grouped: dict[tuple[tuple[Any, int], ...], DimLike] = {}
        for m, c in d.terms:
            moving = tuple((a, p) for a, p in m if _mentions(a, env))
            fixed: DimLike = c
            for a, p in m:
                if not _mentions(a, env):
                    fixed = fixed * atom(a) ** p
            grouped[moving] = grouped.get(moving, 0) + fixed
        total: Int = 0
        for moving, fixed in grouped.items():
            term = self.size(fixed)
            for a, p in moving:
                for _ in range(p):
                    term = self.mul(term, self.atom(a, env))
            total = self.add(total, term)
        return total

    def atom(self, a: Any, env: Mapping[str, Int]) -> Int:
        if isinstance(a, str):
            return env[a]
        x, y = self.scalar(a[1], env), self.scalar(a[2], env)
        if a[0] in ("floordiv", "mod"):
            return self.floordiv(x, y) if a[0] == "floordiv" else self.mod(x, y)
        return self._index("maximum" if a[0] == "max" else "minimum", x, y)

    # -- vectors of indices ----------------------------------------------------------------------------------------------
    def quotient(self, x: Value, d: Int) -> Value:
        """Floor division of a tile of indices.  No vector unit divides 64-bit integers: the quotient is formed in f64.

        Exact for ``|x| < 2**50``: (x + 1/2)/d lies at least 1/(2d) from an integer, and the rounding errors of the
        reciprocal and the product together stay below that.
        """
        d = self.known(d)
        assert isinstance(x.type, TileType)
        shape = x.type.shape
        if isinstance(d, int) and d > 0 and d & (d - 1) == 0:
            return self.pointwise("shift_right", x, self.const(d.bit_length() - 1, int64, shape))
        one = self.const(1.0, f64)
        inverse = self.const(1.0 / d, f64) if isinstance(d, int) else \
            self.op("div", (one, self.op("convert", (d,), ScalarType(f64))), ScalarType(f64))
        wide = self.pointwise("convert", x, dtype=f64)
        wide = self.pointwise("add", wide, self.const(0.5, f64, shape))
        return self.pointwise("convert", self.pointwise("floor", self.pointwise("mul", wide, inverse)), dtype=int64)

    def remainder(self, x: Value, d: Int) -> Value:
        d = self.known(d)
        assert isinstance(x.type, TileType)
        if isinstance(d, int) and d > 0 and d & (d - 1) == 0:
            return self.pointwise("bitwise_and", x, self.const(d - 1, int64, x.type.shape))
        return self.pointwise("sub", x, self.pointwise("mul", self.quotient(x, d), self.index(d)))


def _mentions(a: Any, env: Mapping[str, Any]) -> bool:
    if isinstance(a, str):
        return a in env
    return any(isinstance(d, Dim) and not env.keys().isdisjoint(d.names) for d in a[1:])


def _freeze(attrs: Mapping[str, Any] | None) -> Any:
    if not attrs:
        return None
    return tuple((k, _freeze_value(v)) for k, v in attrs.items())


def _freeze_value(v: Any) -> Any:
    """Attributes compared by their bits: 0.0 and -0.0 differ, 1 and 1.0 and True differ."""
    if isinstance(v, np.ndarray | np.generic):
        return (str(v.dtype), v.tobytes())
    if isinstance(v, tuple | list):
        return tuple(map(_freeze_value, v))
    if isinstance(v, float):
        return np.float64(v).tobytes()
    return (type(v).__name__, v)


def identity(combine: str, dtype: DType) -> Any:
    """What changes nothing when combined: the start of a reduction."""
    if combine in ("add", "or", "xor"):
        return False if dtype is bool_ else 0.0 if dtype.is_float or dtype.is_complex else 0
    if combine == "mul":
        return True if dtype is bool_ else 1.0 if dtype.is_float or dtype.is_complex else 1
    if combine == "and":
        return True if dtype is bool_ else -1 if dtype.kind == "int" else 2 ** dtype.bits - 1
    return dtype.min if combine in ("max", "argmax") else dtype.max


_COMBINE = {"add": "add", "mul": "mul", "max": "maximum", "min": "minimum", "xor": "bitwise_xor",
            "and": "bitwise_and", "or": "bitwise_or"}


def combine_name(combine: str, dtype: DType) -> str:
    """The pointwise op that combines two values."""
    if dtype is bool_ and combine in ("and", "or", "xor", "add", "mul", "max", "min"):
        return {"and": "logical_and", "mul": "logical_and", "min": "logical_and", "xor": "logical_xor"}.get(
            combine, "logical_or")
    return _COMBINE[combine]


def order_matters(combine: str, dtype: DType) -> bool:
    """False where any order of combining gives the same bits."""
    return combine in ("add", "mul") and (dtype.is_float or dtype.is_complex)


__all__ = ["BufferType", "Emit", "Int", "Op", "combine_name", "identity", "order_matters", "scalar_of"]
