"""The values of the tile language: IR values with Python operators, and the program under construction.

A :class:`TileValue` is a scalar (``shape == ()``) or a tile; a :class:`Buffer` is memory.  Operators build ops at the
insertion point of the current :class:`TileProgram`.  Python numbers take the other operand's dtype; operands of unequal
shape are broadcast by explicit ops; dtypes mix by the one promotion table; int64 arithmetic on constants and sizes is
folded.
"""

from __future__ import annotations

import operator
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from ..errors import KernelError
from ..ir.core import INDEX, Block, BufferType, Builder, Function, Loc, ScalarType, TileType, Value
from ..ir.graph import GrammarError
from ..ir.tile import POINTWISE, WRITES, element, pointwise_type, verify
from ..ir.tile_explicit import RULES
from ..types.dims import Dim, DimLike, dim_max, dim_min, format_dim
from ..types.dtypes import DType, as_dtype, bool_, f32, int64
from ..types.promotion import PromotionError, promote, promote_weak

Number = bool | int | float | complex

_INTERNAL: set[str] = {__file__}  # files whose frames are passed over when an op's line is looked up
_local = threading.local()


def internal(file: str) -> None:
    """Mark a file of the tile language itself: locations of ops skip its frames."""
    _INTERNAL.add(file)


def location() -> Loc | None:
    """The innermost frame outside the tile language: a line of the kernel."""
    frame = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_filename not in _INTERNAL:
            return Loc(frame.f_code, frame.f_lasti, frame.f_lineno)
        frame = frame.f_back  # type: ignore[assignment]
    return None


def fail(message: str, **details: Any) -> NoReturn:
    """Raise a KernelError at the kernel's line."""
    raise KernelError(message, loc=location(), **details)


# -- the program -------------------------------------------------------------------------------------------------------
class TileProgram:
    """A Tile function under construction.

    Args:
        name: the function's name.
        buffers: (name, BufferType) of each parameter, in order.
        sizes: names of the symbolic sizes that are parameters (int64), in order.
        grid: blocks along each axis, as sizes.
        writes: which buffers it writes (indices); None: those that are stored to.
        loc: one location for every op (a template: the line of the op it implements); None: the kernel's own lines.

    ``with program: …`` makes it current; ``program.buffers`` are the parameters as :class:`Buffer`.
    """

    def __init__(self, name: str, buffers: Sequence[tuple[str, BufferType]], sizes: Sequence[str] = (),
                 grid: Sequence[DimLike] = (1,), writes: Sequence[int] | None = None, loc: Loc | None = None):
        types = [t for _, t in buffers] + [INDEX] * len(sizes)
        names = [n if n not in sizes else f"{n}_" for n, _ in buffers]
        block = Block(types, [*names, *sizes])
        self.fn = Function(name, "tile", block, {"grid": tuple(grid), "sizes": tuple(sizes), "writes": ()})
        self.writes = None if writes is None else tuple(writes)
        self.builder = Builder(block, loc)
        self.prologue = Block()  # sizes and the like, computed before everything else
        self.scopes: list[dict[Any, TileValue]] = [{}, {}]  # memo of constants, one table a block: prologue, body, nested …
        self.buffers = [Buffer(v) for v in block.args[:len(buffers)]]
        self.read: set[Value] = set()
        self.written: set[Value] = set()

    def __enter__(self) -> TileProgram:
        stack = _local.__dict__.setdefault("stack", [])
        stack.append(self)
        return self

    def __exit__(self, *_: object) -> None:
        _local.stack.pop()

    @contextmanager
    def block(self, block: Block) -> Iterator[Block]:
        """Build into a nested block."""
        self.scopes.append({})
        try:
            with self.builder.at(block):
                yield block
        finally:
            self.scopes.pop()

    @contextmanager
    def before(self) -> Iterator[None]:
        """Build into the prologue, whose values are defined everywhere."""
        saved, self.scopes = self.scopes, self.scopes[:1]
        try:
            with self.builder.at(self.prologue):
                yield
        finally:
            self.scopes = saved

    @property
    def nested(self) -> bool:
        """True inside a loop or conditional."""
        return len(self.scopes) > 2

    def emit(self, name: str, operands: Sequence[TileValue | Buffer], result: Any = None,
             attrs: Mapping[str, Any] | None = None, blocks: Sequence[Block] = ()) -> TileValue:
        """Append an op with one result (or none: then the returned value must not be used)."""
        types = () if result is None else (result,)
        op = self.builder.op(name, [v.value for v in operands], types, attrs, blocks, self.builder.loc or location())
        if not types:
            return None  # type: ignore[return-value]
        made = TileValue(op.results[0])
        for v in operands:
            if v.__class__ is TileValue and v.meta is not None:
                _hook("meta")(name, operands, attrs, made)
                break
        return made

    def memo(self, key: Any, make: Callable[[], TileValue]) -> TileValue:
        """A value that an enclosing block already has, else ``make()`` here."""
        for scope in self.scopes:
            if key in scope:
                return scope[key]
        made = self.scopes[-1][key] = make()
        return made

    def finish(self) -> Function:
        """End the program with ``return`` and verify it.

        Raises:
            KernelError: the program breaks a rule of Tile IR (a value that left its loop, a write to a read-only buffer …).
        """
        self.builder.op("return")
        self.fn.body.ops[0:0] = self.prologue.ops
        self.prologue.ops.clear()
        remove_dead(self.fn.body)
        written = tuple(i for i, b in enumerate(self.buffers) if b.value in self.written)
        self.fn.attrs["writes"] = written if self.writes is None else self.writes
        try:
            verify(self.fn)
        except GrammarError as e:
            raise KernelError(f"the kernel {self.fn.name!r} is not a valid tile program: {e}") from e
        return self.fn


_ACTS = WRITES | {"check"} | (frozenset(RULES) - {"group_id", "cluster_rank", "uninitialized", "mbarriers"})
_EFFECTS = _ACTS | {"prefetch", "yield", "return"}


def remove_dead(block: Block) -> None:
    """Drop ops whose results nobody reads and that write nothing (constants that were folded away, unused loads)."""
    used: set[Value] = set()

    def sweep(b: Block) -> bool:
        """Keeps what is needed, from the end; True if anything in the block has an effect."""
        kept, effect = [], False
        for op in reversed(b.ops):
            nested = [sweep(n) for n in op.blocks]
            acts = op.name in _ACTS or any(nested) or op.name == "while"
            if acts or op.name in _EFFECTS or any(r in used for r in op.results):
                used.update(op.operands)
                kept.append(op)
            effect = effect or acts
        b.ops = kept[::-1]
        return effect

    sweep(block)


def current() -> TileProgram:
    """The program being built.

    Raises:
        KernelError: there is none.
    """
    stack = _local.__dict__.get("stack")
    if not stack:
        fail("tile operations work only inside a kernel", hints=["decorate the function with @ts.kernel and call it on tensors"])
    return stack[-1]  # type: ignore[no-any-return]


def tracing() -> bool:
    """True while a program is being built on this thread."""
    return bool(_local.__dict__.get("stack"))


# -- values ------------------------------------------------------------------------------------------------------------
class Operators:
    """Python's operators as pointwise ops, for tile values and whatever else has ``__tile__()``."""

    __slots__ = ()
    __array_priority__ = 1000
    __tile_language__ = True  # how rooms above this one know a tile

    def __add__(self, o: Any) -> TileValue: return binary("add", self, o)
    def __radd__(self, o: Any) -> TileValue: return binary("add", o, self)
    def __sub__(self, o: Any) -> TileValue: return binary("sub", self, o)
    def __rsub__(self, o: Any) -> TileValue: return binary("sub", o, self)
    def __mul__(self, o: Any) -> TileValue: return binary("mul", self, o)
    def __rmul__(self, o: Any) -> TileValue: return binary("mul", o, self)
    def __truediv__(self, o: Any) -> TileValue: return binary("div", self, o)
    def __rtruediv__(self, o: Any) -> TileValue: return binary("div", o, self)
    def __floordiv__(self, o: Any) -> TileValue: return binary("floor_div", self, o)
    def __rfloordiv__(self, o: Any) -> TileValue: return binary("floor_div", o, self)
    def __mod__(self, o: Any) -> TileValue: return binary("mod", self, o)
    def __rmod__(self, o: Any) -> TileValue: return binary("mod", o, self)
    def __pow__(self, o: Any) -> TileValue: return power(as_value(self), o)
    def __matmul__(self, o: Any) -> TileValue: return _hook("dot")(self, o)  # type: ignore[no-any-return]
    def __lt__(self, o: Any) -> TileValue: return binary("lt", self, o)
    def __le__(self, o: Any) -> TileValue: return binary("le", self, o)
    def __gt__(self, o: Any) -> TileValue: return binary("gt", self, o)
    def __ge__(self, o: Any) -> TileValue: return binary("ge", self, o)
    def __eq__(self, o: object) -> Any: return False if o is None else binary("eq", self, o)
    def __ne__(self, o: object) -> Any: return True if o is None else binary("ne", self, o)
    def __and__(self, o: Any) -> TileValue: return logic("and", self, o)
    def __rand__(self, o: Any) -> TileValue: return logic("and", o, self)
    def __or__(self, o: Any) -> TileValue: return logic("or", self, o)
    def __ror__(self, o: Any) -> TileValue: return logic("or", o, self)
    def __xor__(self, o: Any) -> TileValue: return logic("xor", self, o)
    def __rxor__(self, o: Any) -> TileValue: return logic("xor", o, self)
    def __lshift__(self, o: Any) -> TileValue: return binary("shift_left", self, o)
    def __rshift__(self, o: Any) -> TileValue: return binary("shift_right", self, o)
    def __invert__(self) -> TileValue: return invert(self)
    def __neg__(self) -> TileValue: return unary("neg", self)
    def __pos__(self) -> TileValue: return as_value(self)
    def __abs__(self) -> TileValue: return unary("abs", self)
    def __hash__(self) -> int: return id(self)

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **kwargs: Any) -> TileValue:
        from .ufuncs import numpy_call
        return numpy_call(ufunc, method, inputs, kwargs)

    @property
    def T(self) -> TileValue:
        """The matrix transposed."""
        x = as_value(self)
        if x.rank != 2:
            fail(f"T transposes matrices; this is {x.type}", hints=["use tile.transpose(x, perm)"])
        return transpose(x, (1, 0))

    def to(self, dtype: object) -> TileValue:
        """Converted to ``dtype``: rounded to nearest even; floats to integers truncate and saturate, NaN gives 0."""
        return convert(as_value(self), as_dtype(dtype))

    def sum(self, axis: int | None = None, keepdims: bool = False) -> TileValue:
        return _hook("sum")(self, axis, keepdims)  # type: ignore[no-any-return]

    def max(self, axis: int | None = None, keepdims: bool = False) -> TileValue:
        return _hook("max")(self, axis, keepdims)  # type: ignore[no-any-return]

    def min(self, axis: int | None = None, keepdims: bool = False) -> TileValue:
        return _hook("min")(self, axis, keepdims)  # type: ignore[no-any-return]

    def reshape(self, *shape: Any) -> TileValue:
        return reshape(as_value(self), shape[0] if len(shape) == 1 and isinstance(shape[0], tuple | list) else shape)

    def transpose(self, *perm: Any) -> TileValue:
        return transpose(as_value(self), perm[0] if len(perm) == 1 and isinstance(perm[0], tuple | list) else perm)


class Edge:
    """Where data ends along an axis of a tile: lanes below ``total - start`` are data.  Computed where it is needed.

    ``zero``: the other lanes are known to be 0.
    ``given``: the kernel said what they hold, so they may become data where an edge cannot be followed.
    """

    __slots__ = ("given", "start", "total", "zero")

    def __init__(self, total: TileValue | DimLike, start: TileValue | DimLike = 0, zero: bool = False, given: bool = False):
        self.total, self.start, self.zero, self.given = total, start, zero, given

    def unknown(self) -> Edge:
        """The same edge when nothing is known about the lanes beyond it."""
        return Edge(self.total, self.start, given=self.given) if self.zero else self

    def merged(self, factor: int) -> Edge:
        """The edge of this axis and one of ``factor`` behind it, as one axis."""
        return Edge(binary("mul", self.total, factor), binary("mul", self.start, factor), self.zero, self.given)

    def limit(self) -> TileValue:
        total = size(self.total) if isinstance(self.total, Dim) else self.total
        return as_value(total if isinstance(self.start, int) and self.start == 0 else binary("sub", total, self.start))

    def key(self) -> tuple[Any, Any]:
        return tuple(x.value if isinstance(x, TileValue) else x for x in (self.total, self.start))  # type: ignore[return-value]


class Meta:
    """What the kernel front end knows about a tile beyond its type.

    Attributes:
        edges: axis -> where data ends along it.
        rows: a rank-1 tile that holds one value for each row of a matrix: it broadcasts along the last axis.
        walks: axis -> which axis of the kernel's parameters the program's window follows there.
    """

    __slots__ = ("edges", "rows", "walks")

    def __init__(self, edges: Mapping[int, Edge] | None = None, rows: bool = False, walks: Mapping[int, str] | None = None):
        self.edges, self.rows, self.walks = dict(edges or {}), rows, dict(walks or {})

    def same(self, other: Meta | None) -> bool:
        if other is None:
            return not self.edges and not self.rows
        return self.rows == other.rows and self.edges.keys() == other.edges.keys() and \
            all(v.key() == other.edges[k].key() for k, v in self.edges.items())


class TileValue(Operators):
    """A scalar or tile of the program under construction.

    Attributes:
        value: the IR value.
        const: the Python number it is known to equal, or None.
        dim: the size expression it is known to equal, or None.
        meta: what the kernel front end knows beyond the type, or None.
    """

    __slots__ = ("const", "dim", "meta", "value")

    def __init__(self, value: Value, const: Number | None = None, dim: Dim | None = None, meta: Meta | None = None):
        self.value, self.const, self.dim, self.meta = value, const, dim, meta

    @property
    def type(self) -> Any:
        return self.value.type

    @property
    def dtype(self) -> DType:
        return self.value.type.dtype  # type: ignore[no-any-return]

    @property
    def shape(self) -> tuple[int, ...]:
        t = self.value.type
        return t.shape if isinstance(t, TileType) else ()

    @property
    def rank(self) -> int:
        return len(self.shape)

    ndim = rank

    def __getitem__(self, index: Any) -> TileValue:
        """Static indexing: slices with constant ends, integers, ``None`` for a new axis."""
        return _hook("getitem")(self, index)  # type: ignore[no-any-return]

    def __len__(self) -> int:
        if not self.shape:
            fail(f"{self.type} has no length")
        return self.shape[0]

    def __bool__(self) -> bool:
        fail(f"the truth of a {self.type} is known only when the kernel runs", hints=[
            "use `if` and `while` inside a @ts.kernel (or @tile_function) body, on scalars",
            "use tile.where(condition, a, b) for tiles", "use & | ~ in place of `and`, `or`, `not`"])

    def __index__(self) -> int:
        if isinstance(self.const, int):
            return self.const
        fail(f"an integer that is known when the kernel is built is needed here, not a {self.type} computed in it",
             hints=["tile shapes and axes must be static: use numbers or keyword arguments of the kernel"])

    __int__ = __index__

    def __float__(self) -> float:
        fail(f"the value of a {self.type} is known only when the kernel runs")

    def __iter__(self) -> Iterator[TileValue]:
        fail(f"cannot iterate over a {self.type}", hints=["use tile.range or tile.static_range and slices"])

    def __setitem__(self, index: Any, value: Any) -> None:
        fail(f"cannot assign to elements of a {self.type}: tiles are values", hints=["use tile.where", "use tile.alloc_shared for memory"])

    def __repr__(self) -> str:
        return f"<{self.type}>"


class Buffer:
    """Memory: a parameter of the program, or what ``alloc`` gave."""

    __slots__ = ("value",)

    def __init__(self, value: Value):
        self.value = value

    @property
    def type(self) -> BufferType:
        return self.value.type  # type: ignore[no-any-return]

    @property
    def dtype(self) -> DType:
        return self.type.dtype

    @property
    def shape(self) -> tuple[DimLike, ...]:
        return self.type.shape

    @property
    def rank(self) -> int:
        return len(self.type.shape)

    def __repr__(self) -> str:
        return f"<{self.type}>"


_HOOKS: dict[str, Callable[..., Any]] = {}  # operations of dsl.py that methods of TileValue reach


def _hook(name: str) -> Callable[..., Any]:
    return _HOOKS[name]


def logic(what: str, a: Any, b: Any) -> TileValue:
    """``& | ^``: logical on bool, else bitwise."""
    a, b = _lift(a), _lift(b)
    both_bool = all(isinstance(x, bool) or (isinstance(x, TileValue) and x.dtype is bool_) for x in (a, b))
    return pointwise(f"{'logical' if both_bool else 'bitwise'}_{what}", a, b)


def invert(x: Any) -> TileValue:
    v = as_value(x)
    return unary("logical_not" if v.dtype is bool_ else "bitwise_not", v)


# -- constants, sizes, conversion --------------------------------------------------------------------------------------
def constant(value: Number, dtype: object = None) -> TileValue:
    """A scalar constant; the default dtype is bool, int64 or f32 by the value's type."""
    d = as_dtype(type(value)) if dtype is None else as_dtype(dtype)
    v = literal(value, d)
    prog = current()

    def make() -> TileValue:
        made = prog.emit("constant", (), ScalarType(d), {"value": v})
        made.const = v
        return made

    return prog.memo(("constant", d, type(v), repr(v)), make)


def literal(value: Any, dtype: DType) -> Number:
    """A Python number as an attribute value of ``dtype``.

    Raises:
        KernelError: it does not fit.
    """
    if not isinstance(value, Number):
        if hasattr(value, "item") and getattr(value, "shape", None) == ():
            value = value.item()
        else:
            fail(f"expected a number, got {type(value).__name__}")
    if dtype.kind == "bool":
        if isinstance(value, bool) or value in (0, 1):
            return bool(value)
    elif dtype.is_integer:
        if isinstance(value, int) or (isinstance(value, float) and value.is_integer()):
            if dtype.min <= int(value) <= dtype.max:
                return int(value)
            fail(f"{value} does not fit {dtype}")
    elif dtype.is_float:
        if not isinstance(value, complex):
            return float(value)
    else:
        return complex(value)
    fail(f"{value!r} is not a value of {dtype}", hints=["convert the tile with .to(...)"])


def size(expr: DimLike | str) -> TileValue | int:
    """A size expression as an int64 scalar (a number stays a number)."""
    if isinstance(expr, str):
        from ..types.dims import parse_dim
        expr = parse_dim(expr)
    if isinstance(expr, int):
        return expr
    prog = current()
    d = expr

    def make() -> TileValue:
        made = prog.emit("size", (), INDEX, {"value": d})
        made.dim = d
        return made

    with prog.before():
        return prog.memo(("size", d), make)


def as_value(x: Any, dtype: DType | None = None) -> TileValue:
    """A TileValue from a TileValue, a number or a size.

    Raises:
        KernelError: it is none of these.
    """
    if isinstance(x, TileValue):
        return x
    if isinstance(x, Dim):
        return size(x)  # type: ignore[return-value]
    if isinstance(x, Number):
        return constant(x, dtype)
    as_tile = getattr(x, "__tile__", None)
    if as_tile is not None:
        return as_tile()  # type: ignore[no-any-return]
    if hasattr(x, "item") and getattr(x, "shape", None) == ():
        return constant(x.item(), dtype)
    fail(f"expected a tile, a scalar or a number, got {type(x).__name__}")


def index_value(x: Any) -> TileValue:
    """An offset as an int64 scalar.

    Raises:
        KernelError: it is not an integer scalar.
    """
    v = as_value(x, int64 if isinstance(x, int) else None)
    if v.shape or not v.dtype.is_integer:
        fail(f"an offset is an integer scalar, not {v.type}")
    return convert(v, int64)


def convert(x: TileValue, dtype: DType) -> TileValue:
    if x.dtype is dtype:
        return x
    if x.const is not None and not x.shape and (dtype.is_float or not isinstance(x.const, float)):
        return constant(x.const, dtype)
    return current().emit("convert", (x,), element(dtype, x.shape))


# -- shapes ------------------------------------------------------------------------------------------------------------
def static_shape(shape: Any, what: str = "tile shape") -> tuple[int, ...]:
    """A tuple of positive Python integers.

    Raises:
        KernelError: an extent is not static, or below 1.
    """
    dims = tuple(shape) if isinstance(shape, tuple | list) else (shape,)
    out = []
    for axis, d in enumerate(dims):
        if isinstance(d, TileValue) and isinstance(d.const, int):
            d = d.const
        if isinstance(d, TileValue | Dim):
            if isinstance(d, TileValue) and d.dim is not None and "demand" in _HOOKS:
                _hook("demand")(d.dim)
            text = format_dim(d) if isinstance(d, Dim) else format_dim(d.dim) if d.dim is not None else "a value computed in the kernel"
            fail(f"a {what} must be static: extent {axis} is {text}",
                 expected="integers known when the kernel is built", received=text,
                 hints=["use a number, tile.context(), or a keyword argument of the kernel (they are static)",
                        "loop over the axis with tile.range and load a tile of fixed shape at a time"])
        try:
            n = operator.index(d)
        except TypeError:
            fail(f"a {what} is made of integers, not {type(d).__name__}")
        if n < 1 or isinstance(d, bool):
            fail(f"a {what} has positive extents; extent {axis} is {n}")
        out.append(n)
    return tuple(out)


def normal_axis(axis: Any, rank: int) -> int:
    n = operator.index(axis)
    if not -rank <= n < rank:
        fail(f"axis {n} does not exist in a tile of rank {rank}")
    return n % rank


def reshape(x: TileValue, shape: Any) -> TileValue:
    """The same elements in row-major order under another shape (one extent may be -1)."""
    x = as_value(x)
    dims = list(shape) if isinstance(shape, tuple | list) else [shape]
    total = 1
    for n in x.shape:
        total *= n
    if -1 in [d for d in dims if isinstance(d, int)]:
        known = 1
        for d in dims:
            known *= d if d != -1 else 1
        dims[dims.index(-1)] = total // known if known else 0
    new = static_shape(tuple(dims))
    count = 1
    for n in new:
        count *= n
    if count != total:
        fail(f"cannot reshape {x.type} to {list(new)}: {total} elements against {count}")
    if new == x.shape:
        return x
    if not x.shape:
        return current().emit("splat", (x,), TileType(x.dtype, new))
    if not new:
        return current().emit("extract", (x,), ScalarType(x.dtype), {"index": (0,) * x.rank})
    return current().emit("reshape", (x,), TileType(x.dtype, new))


def transpose(x: TileValue, perm: Any = None) -> TileValue:
    """Axes permuted (default: reversed)."""
    x = as_value(x)
    p = tuple(normal_axis(a, x.rank) for a in perm) if perm else tuple(reversed(range(x.rank)))
    if sorted(p) != list(range(x.rank)):
        fail(f"{p} is not a permutation of the axes of {x.type}")
    if p == tuple(range(x.rank)):
        return x
    return current().emit("transpose", (x,), TileType(x.dtype, tuple(x.shape[a] for a in p)), {"perm": p})


def broadcast_to(x: TileValue, shape: Sequence[int]) -> TileValue:
    """Stretched to ``shape`` by NumPy's rule.

    Raises:
        KernelError: an extent is neither equal nor 1.
    """
    shape = tuple(shape)
    if x.shape == shape:
        return x
    prog = current()
    if not x.shape:
        if x.const is not None:
            return prog.memo(("full", x.dtype, shape, repr(x.const)),
                             lambda: prog.emit("full", (), TileType(x.dtype, shape), {"value": x.const}))
        return prog.emit("splat", (x,), TileType(x.dtype, shape))
    padded = (1,) * (len(shape) - x.rank) + x.shape
    if len(padded) != len(shape) or any(a not in (1, b) for a, b in zip(padded, shape, strict=True)):
        fail(f"cannot broadcast {x.type} to {list(shape)}")
    x = reshape(x, padded)
    return x if x.shape == shape else prog.emit("broadcast", (x,), TileType(x.dtype, shape))


def joint_shape(values: Sequence[TileValue]) -> tuple[int, ...]:
    """The shape to which all broadcast.

    Raises:
        KernelError: naming the axis and both tile types.
    """
    rank = max(v.rank for v in values)
    out: list[int] = []
    for axis in range(rank):
        n = 1
        for v in values:
            k = axis - (rank - v.rank)
            if k < 0 or v.shape[k] == 1:
                continue
            if n not in (1, v.shape[k]):
                shapes = " and ".join(str(w.type) for w in values if w.shape)
                fail(f"tile shapes do not fit: {shapes} differ in dimension {axis}: {n} vs {v.shape[k]}",
                     sentence="Operands of an elementwise operation have equal extents, or 1, along each axis.")
            n = v.shape[k]
        out.append(n)
    return tuple(out)


# -- pointwise ---------------------------------------------------------------------------------------------------------
def _lift(v: Any) -> Any:
    """A TileValue; Python numbers and numpy scalars stay, as Python numbers, because their dtype is weak."""
    if hasattr(v, "item") and getattr(v, "shape", None) == () and not isinstance(v, Operators):
        return v.item()
    return v if isinstance(v, Number) else as_value(v)


def agree(values: Sequence[Any]) -> list[TileValue]:
    """Operands brought to one dtype."""
    lifted = [_lift(v) for v in values]
    tiles = [v for v in lifted if isinstance(v, TileValue)]
    if not tiles:
        lifted[0] = constant(lifted[0])
        tiles = [lifted[0]]
    dtype = tiles[0].dtype
    try:
        for t in tiles[1:]:
            dtype = promote(dtype, t.dtype)
    except PromotionError as e:
        fail(str(e), hints=["convert one operand with .to(...)"])
    for v in lifted:
        if not isinstance(v, TileValue):
            dtype = promote_weak(dtype, next(k for k in (bool, int, float, complex) if isinstance(v, k)))  # sizes are ints too
    return [convert(v, dtype) if isinstance(v, TileValue) else constant(v, dtype) for v in lifted]


def conform(values: Sequence[TileValue]) -> list[TileValue]:
    """Operands broadcast to one shape."""
    if any(v.meta is not None and v.meta.rows for v in values) and any(v.rank > 1 for v in values):
        values = [reshape(v, (*v.shape, 1)) if v.rank == 1 and v.meta is not None and v.meta.rows else v for v in values]
    shape = joint_shape(values)
    return [broadcast_to(v, shape) for v in values]


def common(values: Sequence[Any]) -> list[TileValue]:
    """Operands brought to one dtype (Python numbers are weak) and one shape."""
    return conform(agree(values))


def pointwise(name: str, *operands: Any) -> TileValue:
    """A pointwise op of the table on tiles, scalars and numbers.

    Raises:
        KernelError: shapes or dtypes do not fit.
    """
    values = common(operands)
    return typed(name, values)


def typed(name: str, values: Sequence[TileValue], given: Any = None, attrs: Mapping[str, Any] | None = None) -> TileValue:
    """The op on operands that already agree; ``given`` is the result type of convert and bitcast."""
    try:
        result = pointwise_type(name, [v.type for v in values], given)
    except GrammarError as e:
        fail(f"{name} {e}")
    return current().emit(name, values, result, attrs)


def unary(name: str, x: Any) -> TileValue:
    v = as_value(x)
    if v.const is not None and v.dtype is int64 and name == "neg":
        return constant(-v.const)
    return typed(name, (v,))


_FOLD: dict[str, Callable[[Any, Any], Any]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "floor_div": operator.floordiv, "mod": operator.mod,
    "minimum": min, "maximum": max, "lt": operator.lt, "le": operator.le, "gt": operator.gt, "ge": operator.ge,
    "eq": operator.eq, "ne": operator.ne,
}
_FOLD_DIM: dict[str, Callable[[Any, Any], DimLike]] = {
    **{n: _FOLD[n] for n in ("add", "sub", "mul", "floor_div", "mod")}, "minimum": dim_min, "maximum": dim_max,
}


def _known(x: Any) -> int | Dim | None:
    """The number or size that an index operand is known to be."""
    if isinstance(x, TileValue):
        if x.shape or x.dtype is not int64:
            return None
        return x.dim if x.dim is not None else x.const  # type: ignore[return-value]
    return x if isinstance(x, int | Dim) and not isinstance(x, bool) else None


def _fold(name: str, a: Any, b: Any) -> TileValue | None:
    """Index arithmetic on constants and sizes, and its identities; None where there is nothing to fold."""
    ka, kb = _known(a), _known(b)
    if ka is not None and kb is not None:
        if kb == 0 and name in ("floor_div", "mod"):
            return None
        if isinstance(ka, int) and isinstance(kb, int):
            return constant(_FOLD[name](ka, kb)) if name in _FOLD else None
        if name in _FOLD_DIM:
            return as_value(_FOLD_DIM[name](ka, kb))
        return None
    if isinstance(a, TileValue) and a.dtype is int64 and not a.shape and kb is not None:
        if (kb == 0 and name in ("add", "sub")) or (kb == 1 and name in ("mul", "floor_div")):
            return a
        if (kb == 0 and name == "mul") or (kb == 1 and name == "mod"):
            return constant(0)
    if isinstance(b, TileValue) and b.dtype is int64 and not b.shape and ka is not None:
        if (ka == 0 and name == "add") or (ka == 1 and name == "mul"):
            return b
        if ka == 0 and name == "mul":
            return constant(0)
    return None


def binary(name: str, a: Any, b: Any) -> TileValue:
    a, b = _lift(a), _lift(b)
    folded = _fold(name, a, b)
    if folded is not None:
        return folded
    if name == "div":
        a, b = _inexact(a), _inexact(b)
    return pointwise(name, a, b)


def _inexact(x: Any) -> Any:
    """True division of integers is division of floats: f32."""
    return convert(x, f32) if isinstance(x, TileValue) and not x.dtype.is_inexact else x


def power(x: TileValue, n: Any) -> TileValue:
    """Small integer exponents are products (left to right); others are the op ``pow``."""
    if isinstance(n, int) and not isinstance(n, bool) and 1 <= n <= 4:
        out = x
        for _ in range(n - 1):
            out = binary("mul", out, x)
        return out
    return pointwise("pow", x, n)


__all__ = ["POINTWISE", "Buffer", "TileProgram", "TileValue", "as_value", "constant", "current", "fail", "location", "size"]
