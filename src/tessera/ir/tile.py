"""Tile IR: one block's program.

A ``tile`` function's parameters are buffers, then one ``int64`` for each symbolic size (named like the size).  Function
attributes: ``grid = (<e0>, <e1>, …)`` (blocks along each axis, sizes over the size names; blocks run in any order),
``sizes`` (their names, in parameter order), ``writes`` (indices of the buffers it writes).

Values are scalars (:class:`ScalarType`; index arithmetic is ``int64``), tiles (:class:`TileType`, static extents) and buffers.

Structure::

    %i   = program_id() {axis = 0} : int64
    %n   = size() {value = <B*S>} : int64                            a size expression as a number
    %r…  = for(%lo, %hi, %step, %init…) do(%i: int64, %c…) {… yield(%c'…)} : types      sequential loop
    %r…  = while(%init…) do(%c…) {… yield(%go, %c…)} do(%c…) {… yield(%c'…)} : types
    %r…  = if(%p) do() {… yield(…)} do() {… yield(…)} : types
    %b   = alloc() : buf<f32[64, 64], local>                        scratch of this block
    %v   = view(%b) : buf<f32[32, 128], local>                       the first elements of a buffer under another dense shape
    return()

Memory.  Offsets are int64 scalars, one for each axis of the buffer.  The tile's axes lie along the buffer axes ``axes``
(default: the trailing ones).  ``check`` lists the buffer axes along which lanes may fall outside: a load gives ``fill``
(default 0) there, a store does nothing.  Lanes along other axes are promised to be inside::

    %t = load(%buf, %o0, %o1) {axes = (0, 1), check = (1,), fill = 0.0} : tile<f32[4, 16]>     (or a scalar type: one element)
    %t = load(%buf, %o0, %o1, %mask) {masked = true, …} : tile<f32[4, 16]>
    store(%buf, %o0, %o1, %t) {axes, check}          store(%buf, %o0, %o1, %t, %mask) {masked = true}
    %t = gather(%buf, %flat) : tile                 elements at row-major offsets (a tile of int64), ``masked`` and ``fill`` as above
    prefetch(%buf, %o0, %o1)                          a hint: this element is read soon; it may lie outside
    scatter(%buf, %flat, %t)                          the reverse; equal offsets within one tile: the last lane wins
    atomic(%buf, %flat, %t) {combine = "add"}         buf[flat] = buf[flat] combined with t, lane by lane, whatever other blocks do;
                                                      integers only (no order of the blocks changes the result): add max min and or xor

A buffer starts out undefined if the block made it by ``alloc``: reading an element before it is written is an error.

Tiles.  Operands of pointwise ops have equal shapes: broadcasting is explicit::

    %s = constant() {value = 1.5} : f32     %t = full() {value = 0.0} : tile
    %t = splat(%s) : tile            %t = iota() {axis = 0} : tile<int64[16]>
    %t = broadcast(%t) : tile               (axes of extent 1 stretch; rank is kept)
    %t = reshape(%t) : tile                 %t = transpose(%t) {perm = (1, 0)} : tile
    %t = slice(%t) {starts, limits} : tile  %t = concat(%a, %b) {axis} : tile   %s = extract(%t) {index = (0, 3)} : scalar
    %t = exchange(%t) {axis = 0, mask = 3} : tile                  element i along the axis is element i ^ mask
    %t = reduce(%t) {axis = 1, combine = "add"} : tile             the axis is removed; a 1-D tile gives a scalar
    %t = relayout(%t) : tile<f32[64], reg1_lane2.4_warp32>          the same tile, its elements in other registers and lanes
    %c = dot(%a, %b, %acc) : tile<f32[M, N]>                        acc[m,n] = fma(a[m,k], b[k,n], acc[m,n]), k ascending

A tile type may carry a layout (``tiling/layouts.py``): which thread holds which element.  ``tiling/assign.py`` puts layouts on,
for targets whose blocks have many threads; they change nothing in what a program computes.

Operands of ``dot`` convert exactly to the accumulator's dtype before they are multiplied.  ``dot`` with ``unit = "amx_bf16"``
(see ``machine``) has the order and rounding of that instruction: of every 32 k, the even and the odd ones have a sum each.
``reduce`` combines by halving: while n > 1, with h the largest power of two below n, element l of the first h takes in
element h + l where that exists; then n = h.  ``combine``: add mul max min and or xor.

Pointwise ops carry the op table's names (``add``, ``fma``, ``exp``, ``select``, ``convert`` …) and work on scalars and tiles alike.
The transcendental ones are expanded into polynomials over ``fma``, ``convert``, ``bitcast``, ``shift_left`` … by ``tiling/vmath.py`` before
emission, so that every target and the interpreter compute the same bits.

The explicit level (roles, barriers, asynchronous copies and products, clusters) is in ``ir/tile_explicit.py``.

``check(%ok, %value) {site = n}`` records the first failure (see ``design``, errors at run time); tiles are checked lane by lane.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ..types.dims import Dim, DimLike
from ..types.dtypes import DType, bool_
from .core import INDEX, Block, BufferType, Function, Op, ScalarType, TileType, Type, Value
from .expectations import expect_buffer, expect_counts, expect_result, expect_scalar, expect_tile, only_result, plain
from .graph import GrammarError, require
from .tile_explicit import RULES, SWIZZLES, check_roles

# -- the pointwise vocabulary ------------------------------------------------------------------------------------------
# Operand classes: "number" (anything but bool), "real", "ordered" (not complex), "float", "inexact" (float or complex),
# "integer", "bits" (integers and bool), "bool", "any".  Results: the operands' dtype ("same"), "bool", or "given".
_GROUPS: tuple[tuple[str, int, str, str], ...] = (
    ("add sub mul", 2, "number", "same"), ("fma", 3, "number", "same"), ("neg", 1, "number", "same"),
    ("div", 2, "inexact", "same"), ("sqrt", 1, "inexact", "same"), ("abs sign", 1, "real", "same"),
    ("floor ceil round trunc", 1, "float", "same"), ("minimum maximum", 2, "ordered", "same"),
    ("eq ne", 2, "any", "bool"), ("lt le gt ge", 2, "ordered", "bool"),
    ("logical_and logical_or logical_xor", 2, "bool", "bool"), ("logical_not", 1, "bool", "bool"),
    ("bitwise_and bitwise_or bitwise_xor", 2, "bits", "same"), ("bitwise_not", 1, "bits", "same"),
    ("shift_left shift_right", 2, "integer", "same"), ("floor_div mod", 2, "real", "same"),
    ("isnan isinf isfinite", 1, "float", "bool"), ("copysign", 2, "float", "same"),
    ("select", 3, "any", "same"), ("convert bitcast", 1, "any", "given"),
    # expanded into the above before emission (tiling/vmath.py)
    ("exp exp2 expm1 log log2 log1p log10 sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh erf erfc erfinv sigmoid rsqrt "
     "cbrt lgamma digamma reciprocal", 1, "inexact", "same"),
    ("atan2 pow hypot logaddexp nextafter", 2, "inexact", "same"),
    ("exp2_approx log2_approx reciprocal_approx", 1, "float", "same"),
)
# name -> (number of operands, what the operands may be, what the result is)
POINTWISE: dict[str, tuple[int, str, str]] = {
    name: (count, accepts, result) for names, count, accepts, result in _GROUPS for name in names.split()
}
COMBINES = {
    "add": "number", "mul": "number", "max": "ordered", "min": "ordered", "and": "bits", "or": "bits", "xor": "bits",
}

ATOMICS = ("add", "max", "min", "and", "or", "xor")
WRITES = frozenset({"store", "scatter", "atomic", "tma_store"})
"""Ops that change a buffer: :func:`written` says which."""

_CLASSES: dict[str, Callable[[DType], bool]] = {
    "any": lambda d: True, "number": lambda d: d.kind != "bool", "real": lambda d: d.kind not in ("bool", "complex"),
    "ordered": lambda d: d.kind != "complex", "float": lambda d: d.is_float, "inexact": lambda d: d.is_inexact,
    "integer": lambda d: d.is_integer, "bits": lambda d: d.is_integer or d.kind == "bool", "bool": lambda d: d.kind == "bool",
}
_CLASS_TEXT = {
    "number": "numbers (not bool)", "real": "real numbers", "ordered": "ordered values (not complex)", "float": "floats",
    "inexact": "floats or complex numbers", "integer": "integers", "bits": "integers or bool", "bool": "bool",
}


def shape_of(t: Type) -> tuple[int, ...]:
    """The extents of a scalar (none) or tile type.

    Raises:
        GrammarError: it is a buffer.
    """
    if isinstance(t, TileType):
        return t.shape
    if isinstance(t, ScalarType):
        return ()
    raise GrammarError(f"expected a scalar or a tile, found {t}")


def element(dtype: DType, shape: Sequence[int]) -> ScalarType | TileType:
    """The scalar type for the empty shape, else the tile type."""
    return TileType(dtype, tuple(shape)) if len(shape) else ScalarType(dtype)


def pointwise_type(name: str, types: Sequence[Any], given: Any = None) -> ScalarType | TileType:
    """The result type of a pointwise op; ``given`` is the result type of ``convert`` and ``bitcast``.

    Raises:
        GrammarError: wrong number of operands, unequal shapes, or a dtype the op does not have.
    """
    count, accepts, result = POINTWISE[name]
    if len(types) != count:
        raise GrammarError(f"takes {count} operand{'s' * (count > 1)}, got {len(types)}")
    shapes = {shape_of(t) for t in types}
    if len(shapes) > 1:
        raise GrammarError("operands have different shapes: " + ", ".join(str(t) for t in types))
    if name == "select" and types[0].dtype is not bool_:
        raise GrammarError(f"the condition is bool, not {types[0].dtype}")
    data = types[1:] if name == "select" else types
    dtype: DType = data[0].dtype
    if any(t.dtype is not dtype for t in data):
        raise GrammarError("operands have different dtypes: " + ", ".join(str(t.dtype) for t in data))
    if not _CLASSES[accepts](dtype):
        raise GrammarError(f"works on {_CLASS_TEXT[accepts]}, not on {dtype}")
    (shape,) = shapes
    if result == "given":
        if given is None or shape_of(given) != shape:
            raise GrammarError(f"the result {given} has not the operand's shape {list(shape)}")
        if name == "bitcast" and (given.dtype.bits != dtype.bits or given.dtype.is_complex or dtype.is_complex):
            raise GrammarError(f"cannot reinterpret {dtype} as {given.dtype}: their widths differ")
        return element(given.dtype, shape)
    return element(bool_ if result == "bool" else dtype, shape)


def dot_problem(a: DType, b: DType, acc: DType) -> str | None:
    """Why ``dot`` has no form for these dtypes; None where it has one.

    Operands convert to the accumulator's dtype exactly, so each product is formed in that dtype.
    """
    if acc.kind == "bool" or a.kind == "bool" or b.kind == "bool":
        return "bool has no dot; convert to an integer or a float"
    for d in (a, b):
        if d is acc:
            continue
        exact = acc.kind == d.kind or (acc.kind == "int" and d.kind == "uint" and acc.bits > d.bits)
        if not exact or d.bits >= acc.bits:
            return f"{d} does not convert exactly to the accumulator's dtype {acc}"
    return None


def tile_axes(op: Op) -> tuple[int, ...]:
    """The buffer axes along which the tile of a ``load`` or ``store`` lies."""
    buffer = op.operands[0].type
    value = op.results[0].type if op.name == "load" else op.operands[1 + buffer.rank].type
    rank = len(shape_of(value))
    axes: tuple[int, ...] = op.attrs.get("axes", tuple(range(buffer.rank - rank, buffer.rank)))
    return axes


# -- grammar -----------------------------------------------------------------------------------------------------------
def _access(op: Op, value: Any, trailing: int) -> None:
    """The rules that ``load`` and ``store`` share; ``trailing`` operands follow buffer and offsets (before the mask)."""
    buffer = expect_buffer(op)
    masked = bool(op.attrs.get("masked", False))
    expected = 1 + buffer.rank + trailing + masked
    require(len(op.operands) == expected, op,
            f"a buffer of rank {buffer.rank} takes {buffer.rank} offsets: expected {expected} operands, got {len(op.operands)}")
    for k in range(buffer.rank):
        expect_scalar(op, op.operands[1 + k], f"offset {k}", INDEX.dtype)
    shape = shape_of(value)
    require(value.dtype is buffer.dtype, op, f"the buffer holds {buffer.dtype}, not {value.dtype}")
    axes = tile_axes(op)
    require(len(axes) == len(shape), op, f"axes {axes} do not match the tile's rank {len(shape)}")
    require(all(isinstance(a, int) and 0 <= a < buffer.rank for a in axes) and len(set(axes)) == len(axes), op,
            f"axes {axes} are not distinct axes of a buffer of rank {buffer.rank}")
    for a in op.attrs.get("check", ()):
        require(isinstance(a, int) and 0 <= a < buffer.rank, op, f"check names axis {a} of a buffer of rank {buffer.rank}")
    if masked:
        require(plain(op.operands[-1].type) == element(bool_, shape), op,
                f"the mask is {element(bool_, shape)}, not {op.operands[-1].type}")


def _load(op: Op) -> None:
    _access(op, only_result(op), 0)


def _store(op: Op) -> None:
    buffer = expect_buffer(op)
    require(len(op.operands) > 1 + buffer.rank, op, "the value is missing")
    value = op.operands[1 + buffer.rank].type
    require(isinstance(value, TileType | ScalarType), op, f"the value is a tile or a scalar, not {value}")
    require(not op.results, op, "has no result")
    _access(op, value, 1)


def _gather(op: Op) -> None:
    buffer, got = expect_buffer(op), only_result(op)
    masked = bool(op.attrs.get("masked", False))
    expect_counts(op, 2 + masked, 1)
    require(got.dtype is buffer.dtype, op, f"the buffer holds {buffer.dtype}, not {got.dtype}")
    _flat(op, shape_of(got), masked)


def _scatter(op: Op) -> None:
    buffer = expect_buffer(op)
    masked = bool(op.attrs.get("masked", False))
    expect_counts(op, 3 + masked, 0)
    value = op.operands[2].type
    require(value.dtype is buffer.dtype, op, f"the buffer holds {buffer.dtype}, not {value.dtype}")
    _flat(op, shape_of(value), masked)


def _atomic(op: Op) -> None:
    buffer = expect_buffer(op)
    expect_counts(op, 3, 0)
    value = op.operands[2].type
    require(value.dtype is buffer.dtype and buffer.dtype.is_integer and buffer.dtype.bits >= 32, op,
            f"works on integers of 32 or 64 bits, not on {value.dtype} and {buffer.dtype}")
    require(op.attrs.get("combine") in ATOMICS, op, f"combine is one of {', '.join(ATOMICS)}, not {op.attrs.get('combine')!r}")
    _flat(op, shape_of(value), False)


def _flat(op: Op, shape: tuple[int, ...], masked: bool) -> None:
    require(plain(op.operands[1].type) == element(INDEX.dtype, shape), op,
            f"the offsets are {element(INDEX.dtype, shape)}, not {op.operands[1].type}")
    if masked:
        require(plain(op.operands[-1].type) == element(bool_, shape), op,
                f"the mask is {element(bool_, shape)}, not {op.operands[-1].type}")


def _iota(op: Op) -> None:
    expect_counts(op, 0, 1)
    got, axis = only_result(op), op.attrs.get("axis", 0)
    require(isinstance(got, TileType) and got.dtype is INDEX.dtype, op, f"the result is a tile of int64, not {got}")
    require(isinstance(axis, int) and 0 <= axis < got.rank, op, f"axis {axis} does not exist in {got}")


def _constant(op: Op) -> None:
    expect_counts(op, 0, 1)
    require("value" in op.attrs, op, "has no value")
    want = ScalarType if op.name == "constant" else TileType
    require(isinstance(only_result(op), want), op, f"the result is a {'scalar' if want is ScalarType else 'tile'}, not {only_result(op)}")


def _splat(op: Op) -> None:
    expect_counts(op, 1, 1)
    expect_scalar(op, op.operands[0], "the operand")
    got = only_result(op)
    require(isinstance(got, TileType), op, f"the result is a tile, not {got}")
    require(got.dtype is op.operands[0].type.dtype, op, f"the result holds {op.operands[0].type.dtype}, not {got.dtype}")


def _broadcast(op: Op) -> None:
    expect_counts(op, 1, 1)
    src, got = expect_tile(op), only_result(op)
    fits = isinstance(got, TileType) and got.rank == src.rank and got.dtype is src.dtype and \
        all(a in (1, b) for a, b in zip(src.shape, got.shape, strict=True))
    require(fits, op, f"{src} does not stretch to {got}: rank and dtype stay, only axes of extent 1 grow")


def _reshape(op: Op) -> None:
    expect_counts(op, 1, 1)
    src, got = expect_tile(op), only_result(op)
    require(isinstance(got, TileType) and got.dtype is src.dtype and got.size == src.size, op, f"{src} does not reshape to {got}")


def _transpose(op: Op) -> None:
    expect_counts(op, 1, 1)
    src, perm = expect_tile(op), op.attrs.get("perm", ())
    require(sorted(perm) == list(range(src.rank)), op, f"{perm} is not a permutation of the axes of {src}")
    expect_result(op, TileType(src.dtype, tuple(src.shape[p] for p in perm)))


def _relayout(op: Op) -> None:
    expect_counts(op, 1, 1)
    src, got = expect_tile(op), only_result(op)
    require(isinstance(got, TileType) and (got.dtype, got.shape) == (src.dtype, src.shape), op, f"{got} is not {src} in another layout")


def _slice(op: Op) -> None:
    expect_counts(op, 1, 1)
    src, starts, limits = expect_tile(op), op.attrs.get("starts", ()), op.attrs.get("limits", ())
    ok = len(starts) == len(limits) == src.rank and \
        all(0 <= s < e <= n for s, e, n in zip(starts, limits, src.shape, strict=True))
    require(ok, op, f"{starts}:{limits} does not lie in {src}")
    expect_result(op, TileType(src.dtype, tuple(e - s for s, e in zip(starts, limits, strict=True))))


def _concat(op: Op) -> None:
    require(len(op.operands) >= 1, op, "takes at least one operand")
    first, axis = expect_tile(op), op.attrs.get("axis", 0)
    require(isinstance(axis, int) and 0 <= axis < first.rank, op, f"axis {axis} does not exist in {first}")
    total = 0
    for i in range(len(op.operands)):
        t = expect_tile(op, i)
        same = t.dtype is first.dtype and t.rank == first.rank and \
            all(k == axis or a == b for k, (a, b) in enumerate(zip(t.shape, first.shape, strict=True)))
        require(same, op, f"{t} does not join {first} along axis {axis}")
        total += t.shape[axis]
    expect_result(op, TileType(first.dtype, (*first.shape[:axis], total, *first.shape[axis + 1:])))


def _exchange(op: Op) -> None:
    expect_counts(op, 1, 1)
    src, axis, mask = expect_tile(op), op.attrs.get("axis", 0), op.attrs.get("mask")
    require(isinstance(axis, int) and 0 <= axis < src.rank, op, f"axis {axis} does not exist in {src}")
    require(isinstance(mask, int) and mask > 0 and src.shape[axis] % (1 << mask.bit_length()) == 0, op,
            f"axis {axis} of {src} is no whole number of runs that mask {mask} keeps to themselves")
    expect_result(op, TileType(src.dtype, src.shape))


def _extract(op: Op) -> None:
    expect_counts(op, 1, 1)
    src, index = expect_tile(op), op.attrs.get("index", ())
    require(len(index) == src.rank and all(0 <= i < n for i, n in zip(index, src.shape, strict=True)), op,
            f"{index} is not an index of {src}")
    expect_result(op, ScalarType(src.dtype))


def _reduce(op: Op) -> None:
    expect_counts(op, 1, 1)
    src, axis, combine = expect_tile(op), op.attrs.get("axis", -1), op.attrs.get("combine")
    require(isinstance(axis, int) and 0 <= axis < src.rank, op, f"axis {axis} does not exist in {src}")
    require(combine in COMBINES, op, f"combine is one of {' '.join(COMBINES)}, not {combine!r}")
    accepts = COMBINES[str(combine)]
    require(_CLASSES[accepts](src.dtype), op, f"{combine} combines {_CLASS_TEXT[accepts]}, not {src.dtype}")
    expect_result(op, element(src.dtype, (*src.shape[:axis], *src.shape[axis + 1:])))


def _dot(op: Op) -> None:
    expect_counts(op, 3, 1)
    a, b, acc = expect_tile(op, 0), expect_tile(op, 1), expect_tile(op, 2)
    require(a.rank == b.rank == acc.rank == 2, op, f"operands are matrices, got {a}, {b}, {acc}")
    fits = a.shape[1] == b.shape[0] and acc.shape == (a.shape[0], b.shape[1])
    require(fits, op, f"shapes do not fit: {a} by {b} into {acc}")
    problem = dot_problem(a.dtype, b.dtype, acc.dtype)
    require(problem is None, op, str(problem))
    expect_result(op, TileType(acc.dtype, acc.shape))


def _alloc(op: Op) -> None:
    expect_counts(op, 0, 1)
    got = only_result(op)
    require(isinstance(got, BufferType) and got.space != "global", op, f"the result is a buffer of a space of the block, not {got}")
    require(all(isinstance(d, int) and d > 0 for d in got.shape), op, f"extents are positive integers: {got}")
    require(op.attrs.get("swizzle", 0) in SWIZZLES, op, f"swizzle is one of {', '.join(map(str, SWIZZLES))}")


def _view(op: Op) -> None:
    expect_counts(op, 1, 1)
    src, got = expect_buffer(op), only_result(op)
    require(isinstance(got, BufferType) and got.dtype is src.dtype and got.space == src.space, op,
            f"{got} does not hold what {src} holds")
    require(not (isinstance(src.size, int) and isinstance(got.size, int)) or got.size <= src.size, op, f"{got} is larger than {src}")


def written(op: Op) -> Value:
    """The buffer that an op of ``WRITES`` writes."""
    return op.operands[1 + op.operands[0].type.rank] if op.name == "tma_store" else op.operands[0]


def root(v: Value) -> Value:
    """The parameter or ``alloc`` that a buffer is a view of."""
    while v.op is not None and v.op.name == "view":
        v = v.op.operands[0]
    return v


def _prefetch(op: Op) -> None:
    buffer = expect_buffer(op)
    expect_counts(op, 1 + buffer.rank, 0)
    for k in range(buffer.rank):
        expect_scalar(op, op.operands[1 + k], f"offset {k}", INDEX.dtype)


def _check_op(op: Op) -> None:
    expect_counts(op, 2, 0)
    ok, value = op.operands[0].type, op.operands[1].type
    require(not isinstance(ok, BufferType) and ok.dtype is bool_, op, f"the condition is bool, not {ok}")
    require(shape_of(ok) == shape_of(value), op, f"condition and value have different shapes: {ok}, {value}")
    require(isinstance(op.attrs.get("site", 0), int), op, "site is an integer")


def _pointwise(op: Op) -> None:
    got = only_result(op)
    try:
        expected = pointwise_type(op.name, [v.type for v in op.operands], got)
    except GrammarError as e:
        require(False, op, str(e))
        return
    expect_result(op, expected)


def _program_id(op: Op) -> None:
    expect_counts(op, 0, 1)
    expect_result(op, INDEX)


def _size(op: Op) -> None:
    expect_counts(op, 0, 1)
    require(isinstance(op.attrs.get("value"), int | Dim), op, "value is a size expression")
    expect_result(op, INDEX)


_PLAIN: dict[str, Callable[[Op], None]] = {
    "load": _load, "store": _store, "gather": _gather, "scatter": _scatter, "atomic": _atomic, "iota": _iota, "full": _constant,
    "constant": _constant, "splat": _splat, "broadcast": _broadcast, "reshape": _reshape, "transpose": _transpose,
    "relayout": _relayout, "slice": _slice, "concat": _concat,
    "exchange": _exchange, "extract": _extract, "reduce": _reduce, "dot": _dot, "alloc": _alloc, "view": _view,
    "prefetch": _prefetch, "check": _check_op, "program_id": _program_id, "size": _size, **dict.fromkeys(POINTWISE, _pointwise),
    **RULES,
}
STRUCTURE = frozenset({"for", "while", "if", "roles", "yield", "return"})
OPS = frozenset(_PLAIN) | STRUCTURE


class _Verifier:
    """Walks a function once, keeping the set of values that are defined at the point it has reached."""

    def __init__(self, fn: Function):
        self.fn = fn
        self.names = frozenset(fn.attrs.get("sizes", ()))
        self.rank = len(fn.attrs.get("grid", ()))
        self.defined: set[Value] = set(fn.args)
        self.seen: set[int] = set()

    def block(self, b: Block, owner: Op | None, end: str) -> None:
        """``end`` names the terminator that the block must have."""
        where = owner.name if owner is not None else self.fn.name
        if not b.ops or b.ops[-1].name != end:
            raise GrammarError(f"{where}: a block ends in {end}" + (f" ({owner.loc})" if owner is not None and owner.loc else ""))
        added: list[Value] = list(b.args)
        self.defined.update(b.args)
        for op in b.ops:
            require(id(op) not in self.seen, op, "stands twice in the function")
            self.seen.add(id(op))
            for i, v in enumerate(op.operands):
                require(v in self.defined, op, f"operand {i} ({v!r}) is not defined here")
            require(op.name not in ("yield", "return") or op is b.ops[-1], op, "stands in the middle of a block")
            self.op(op)
            added += op.results
            self.defined.update(op.results)
        self.defined.difference_update(added)

    def op(self, op: Op) -> None:
        if op.name in _PLAIN:
            require(not op.blocks, op, "has no blocks")
            _PLAIN[op.name](op)
            if op.name == "program_id":
                axis = op.attrs.get("axis")
                require(isinstance(axis, int) and 0 <= axis < self.rank, op, f"axis {axis} does not exist in a grid of rank {self.rank}")
            elif op.name == "size":
                self.sizes((op.attrs["value"],), op)
            elif op.name == "view":
                self.sizes(op.results[0].type.shape, op)
            return
        rule = {"for": self.for_, "while": self.while_, "if": self.if_, "roles": self.roles}.get(op.name)
        if rule is not None:
            rule(op)
        else:
            require(op.name in STRUCTURE, op, "is not an op of Tile IR")
            require(not op.blocks and not op.results, op, "ends a block")

    def sizes(self, dims: Iterable[DimLike], op: Op) -> None:
        for d in dims:
            unknown = d.names - self.names if isinstance(d, Dim) else ()
            require(not unknown, op, f"the size {d} uses names that are not parameters: {', '.join(sorted(unknown))}")

    def same(self, op: Op, got: Sequence[Value], expected: Sequence[Any], what: str) -> None:
        a, b = [v.type for v in got], list(expected)
        require(a == b, op, f"{what} are ({', '.join(map(str, a))}), expected ({', '.join(map(str, b))})")

    def for_(self, op: Op) -> None:
        require(len(op.blocks) == 1 and len(op.operands) >= 3, op, "takes low, high, step, the carried values and one block")
        for v, what in zip(op.operands[:3], ("low", "high", "step"), strict=True):
            expect_scalar(op, v, what, INDEX.dtype)
        carried = [v.type for v in op.operands[3:]]
        body = op.blocks[0]
        self.same(op, body.args, [INDEX, *carried], "the block's arguments")
        self.same(op, op.results, carried, "the results")
        self.block(body, op, "yield")
        self.same(op, body.terminator.operands, carried, "the values yielded")

    def while_(self, op: Op) -> None:
        require(len(op.blocks) == 2, op, "takes two blocks, condition and body")
        carried = [v.type for v in op.operands]
        self.same(op, op.results, carried, "the results")
        for i, b in enumerate(op.blocks):
            self.same(op, b.args, carried, "the block's arguments")
            self.block(b, op, "yield")
            expected = carried if i else [ScalarType(bool_), *carried]
            self.same(op, b.terminator.operands, expected, "the values yielded")

    def roles(self, op: Op) -> None:
        check_roles(op)
        for b in op.blocks:
            self.same(op, b.args, [], "the block's arguments")
            self.block(b, op, "yield")
            self.same(op, b.terminator.operands, [], "the values yielded")

    def if_(self, op: Op) -> None:
        require(len(op.blocks) == 2 and len(op.operands) == 1, op, "takes a condition and two blocks")
        expect_scalar(op, op.operands[0], "the condition", bool_)
        for b in op.blocks:
            self.same(op, b.args, [], "the block's arguments")
            self.block(b, op, "yield")
            self.same(op, b.terminator.operands, [r.type for r in op.results], "the values yielded")


def verify(fn: Function) -> None:
    """Check that ``fn`` is a well-formed Tile program.

    Raises:
        GrammarError: naming the op, what is wrong with it, and its line where it has one.
    """
    def need(condition: bool, message: str) -> None:
        if not condition:
            raise GrammarError(f"{fn.name}: {message}")

    need(fn.level == "tile", f"is a {fn.level} function, not a tile function")
    sizes, grid, writes = (fn.attrs.get(k) for k in ("sizes", "grid", "writes"))
    need(isinstance(sizes, tuple) and all(isinstance(s, str) for s in sizes), "the attribute sizes is a tuple of names")
    need(isinstance(grid, tuple) and all(isinstance(g, int | Dim) for g in grid), "the attribute grid is a tuple of sizes")
    assert isinstance(sizes, tuple) and isinstance(grid, tuple)
    buffers = [a for a in fn.args if isinstance(a.type, BufferType)]
    rest = fn.args[len(buffers):]
    need(fn.args[:len(buffers)] == buffers and all(a.type == INDEX for a in rest), "parameters are buffers, then int64 sizes")
    need(tuple(a.name for a in rest) == sizes, f"the size parameters are {sizes}, not {tuple(a.name for a in rest)}")
    need(isinstance(writes, tuple) and all(isinstance(w, int) and 0 <= w < len(buffers) for w in writes),
         f"the attribute writes holds indices of the {len(buffers)} buffers, not {writes!r}")
    used = {n for d in (*grid, *(d for b in buffers for d in b.type.shape)) if isinstance(d, Dim) for n in d.names}
    need(used <= set(sizes), f"sizes are used that are not parameters: {', '.join(sorted(used - set(sizes)))}")
    need(bool(fn.body.ops), "has an empty body")
    _Verifier(fn).block(fn.body, None, "return")
    need(not fn.body.terminator.operands, "returns nothing: results are written to buffers")
    allowed = {buffers[w] for w in writes}  # type: ignore[union-attr]
    for op in fn.walk():
        if op.name in WRITES and (target := root(written(op))) in buffers:
            require(target in allowed, op, f"writes %{target.name}, which the attribute writes does not list")
