"""The basic pointwise ops, one piece of a tile (or a scalar) at a time.

No op carries a fast-math flag, and an fma is made only where the program says ``fma``: a result has one meaning.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ...errors import CompileError
from ...types.dtypes import DType, f32
from .emit_convert import FORMATS, convert, is_small, narrow, normalize, widen
from .emit_writer import Writer, floor_division, literal, representation, splat_literal, vector

Args = Sequence[str]
_FLOAT_BINARY = {"add": "fadd", "sub": "fsub", "mul": "fmul", "div": "fdiv"}
_INT_BINARY = {"add": "add", "sub": "sub", "mul": "mul"}
_COMPARE_FLOAT = {"eq": "oeq", "ne": "une", "lt": "olt", "le": "ole", "gt": "ogt", "ge": "oge"}
_COMPARE_INT = {"eq": "eq", "ne": "ne", "lt": "lt", "le": "le", "gt": "gt", "ge": "ge"}
_UNARY_FLOAT = {"sqrt": "sqrt", "floor": "floor", "ceil": "ceil", "trunc": "trunc", "round": "roundeven",
                "abs": "fabs"}
_BITWISE = {"bitwise_and": "and", "bitwise_or": "or", "bitwise_xor": "xor"}
_LOGICAL = {"logical_and": "and", "logical_or": "or", "logical_xor": "xor"}

# By name: (writer, operands, operand dtype, width) -> value, for real f32/f64 or integer operands.
Rule = Callable[[Writer, Args, DType, int], str]


def pointwise(w: Writer, name: str, args: Args, dtypes: Sequence[DType], out: DType, width: int) -> str:
    """One basic op on values of one width.

    Raises:
        CompileError: the op is not basic (``tiling.vmath`` expands the others), or not defined for the dtype.
    """
    dtype = dtypes[1] if name == "select" else dtypes[0]
    if name == "convert":
        return convert(w, args[0], dtype, out, width)
    if name == "bitcast":
        return _bitcast(w, args[0], dtype, out, width)
    if name == "select":
        return w.select(args[0], representation(dtype), width, args[1], args[2])
    if name in _LOGICAL or name == "logical_not":
        return _logical(w, name, args, dtypes, width)
    if is_small(dtype):
        return _small(w, name, args, dtype, out, width)
    rule = _RULES.get(name)
    if rule is None:
        raise CompileError(f"the op {name!r} on {dtype} reached the CPU code generator unexpanded",
                           hints=("tiling.vmath.expand rewrites transcendental ops into basic ones",))
    value = rule(w, args, dtype, width)
    return normalize(w, value, out, width) if out.bits == 4 and name in _WRAPS else value


def _small(w: Writer, name: str, args: Args, dtype: DType, out: DType, width: int) -> str:
    """Arithmetic on small floats: in f32, rounded once."""
    rep = representation(dtype)
    if name in ("neg", "abs"):
        sign = 1 << FORMATS[dtype.name].magnitude_bits
        op, mask = ("xor", sign) if name == "neg" else ("and", sign - 1)
        return w.binary(op, rep, width, args[0], splat_literal(rep, mask, width))
    value = pointwise(w, name, [widen(w, a, dtype, width) for a in args], [f32] * len(args),
                      f32 if out is dtype else out, width)
    return narrow(w, value, dtype, width) if out is dtype else value


def unrounded(w: Writer, name: str, args: Args, dtypes: Sequence[DType], out: DType, width: int) -> str | None:
    """The f32 whose rounding to ``out``, a small float, is the op's result; None where none ends it."""
    if name == "convert":
        return args[0] if dtypes[0] is f32 else None
    exact = name in ("select", "bitcast", "neg", "abs", "logical_not") or name in _LOGICAL
    if exact or not is_small(dtypes[0]) or out is not dtypes[0]:
        return None
    return pointwise(w, name, [widen(w, a, out, width) for a in args], [f32] * len(args), f32, width)


def _bitcast(w: Writer, value: str, source: DType, target: DType, width: int) -> str:
    a, b = representation(source), representation(target)
    if source.kind == "bool":
        value, a = w.cast("zext", "i1", "i8", width, value), "i8"
    if target.kind == "bool":
        return w.let(f"icmp ne {vector(a, width)} {value}, {splat_literal(a, 0, width)}")
    if source.itemsize != target.itemsize:
        raise CompileError(f"bitcast between {source} and {target}, which differ in size")
    return value if a == b else w.cast("bitcast", a, b, width, value)


def _logical(w: Writer, name: str, args: Args, dtypes: Sequence[DType], width: int) -> str:
    from ...types.dtypes import bool_
    truths = [convert(w, a, d, bool_, width) for a, d in zip(args, dtypes, strict=True)]
    if name == "logical_not":
        return w.binary("xor", "i1", width, truths[0], splat_literal("i1", True, width))
    return w.binary(_LOGICAL[name], "i1", width, truths[0], truths[1])


def _arithmetic(name: str) -> Rule:
    def rule(w: Writer, args: Args, dtype: DType, width: int) -> str:
        rep = representation(dtype)
        if dtype.is_float:
            return w.binary(_FLOAT_BINARY[name], rep, width, *args)
        if dtype.kind == "bool":
            return _bool_arithmetic(w, name, args, width)
        if name == "div":
            return _divide_integers(w, args, dtype, width)
        return w.binary(_INT_BINARY[name], rep, width, *args)
    return rule


def _bool_arithmetic(w: Writer, name: str, args: Args, width: int) -> str:
    op = {"add": "or", "mul": "and"}.get(name)
    if op is None:
        raise CompileError(f"the op {name!r} is not defined for bool")
    return w.binary(op, "i1", width, *args)


def _divide_integers(w: Writer, args: Args, dtype: DType, width: int) -> str:
    raise CompileError(f"'div' of {dtype}: integers are divided by 'floor_div', or converted to a float first")


def _fma(w: Writer, args: Args, dtype: DType, width: int) -> str:
    rep = representation(dtype)
    if dtype.is_float:
        return w.intrinsic("fma", rep, width, *args)
    return w.binary("add", rep, width, w.binary("mul", rep, width, args[0], args[1]), args[2])


def _neg(w: Writer, args: Args, dtype: DType, width: int) -> str:
    rep = representation(dtype)
    if dtype.is_float:
        return w.let(f"fneg {vector(rep, width)} {args[0]}")
    return w.binary("sub", rep, width, splat_literal(rep, 0, width), args[0])


def _unary(name: str) -> Rule:
    def rule(w: Writer, args: Args, dtype: DType, width: int) -> str:
        rep = representation(dtype)
        if dtype.is_float:
            return w.intrinsic(_UNARY_FLOAT[name], rep, width, args[0])
        if name == "sqrt":
            raise CompileError(f"'sqrt' is not defined for {dtype}")
        if name == "abs" and dtype.kind == "int":
            t = vector(rep, width)
            return w.let(f"call {t} @llvm.abs.{_overload(rep, width)}({t} {args[0]}, i1 false)")
        return args[0]
    return rule


def _overload(rep: str, width: int) -> str:
    return rep if width == 1 else f"v{width}{rep}"


def _extremum(name: str) -> Rule:
    """IEEE 754-2019: NaN where either is NaN, and -0 below +0."""
    maximum = name == "maximum"

    def rule(w: Writer, args: Args, dtype: DType, width: int) -> str:
        rep = representation(dtype)
        if rep == "float" and width == 16 and w.machine.has("avx512dq") and all(a.startswith("%") for a in args):
            return _range(w, maximum, *args)
        if dtype.is_float:
            return w.intrinsic(name, rep, width, *args)
        if dtype.kind == "bool":
            return w.binary("or" if maximum else "and", "i1", width, *args)
        sign = "s" if dtype.kind == "int" else "u"
        return w.intrinsic(f"{sign}{'max' if maximum else 'min'}", rep, width, *args)
    return rule


def _range(w: Writer, maximum: bool, a: str, b: str) -> str:
    """AVX-512's vrangeps orders zeros as wanted but prefers a number to NaN: half the instructions of the general form."""
    t = "<16 x float>"
    best = w.let(f"call {t} @llvm.x86.avx512.mask.range.ps.512({t} {a}, {t} {b}, i32 {5 if maximum else 4}, "
                 f"{t} poison, i16 -1, i32 4)")
    nan = splat_literal("float", float("nan"), 16)
    return w.select(w.let(f"fcmp uno {t} {a}, {b}"), "float", 16, nan, best)


def _compare(name: str) -> Rule:
    def rule(w: Writer, args: Args, dtype: DType, width: int) -> str:
        rep = representation(dtype)
        if dtype.is_float:
            return w.let(f"fcmp {_COMPARE_FLOAT[name]} {vector(rep, width)} {args[0]}, {args[1]}")
        predicate = _COMPARE_INT[name]
        if name not in ("eq", "ne"):
            predicate = ("s" if dtype.kind == "int" else "u") + predicate
        return w.let(f"icmp {predicate} {vector(rep, width)} {args[0]}, {args[1]}")
    return rule


def _bitwise(name: str) -> Rule:
    def rule(w: Writer, args: Args, dtype: DType, width: int) -> str:
        rep = representation(dtype)
        if dtype.is_float:
            raise CompileError(f"{name!r} is not defined for {dtype}: bitcast to an integer first")
        if name == "bitwise_not":
            return w.binary("xor", rep, width, args[0], splat_literal(rep, -1 if rep != "i1" else 1, width))
        return w.binary(_BITWISE[name], rep, width, *args)
    return rule


def _shift(name: str) -> Rule:
    """A count outside [0, bits) gives 0, or the sign where a signed number is shifted right."""
    def rule(w: Writer, args: Args, dtype: DType, width: int) -> str:
        rep, (a, count) = representation(dtype), args
        if not dtype.is_integer:
            raise CompileError(f"{name!r} is not defined for {dtype}")
        bits = dtype.bits
        inside = w.let(f"icmp ult {vector(rep, width)} {count}, {splat_literal(rep, bits, width)}")
        if name == "shift_right" and dtype.kind == "int":
            clamped = w.select(inside, rep, width, count, splat_literal(rep, bits - 1, width))
            return w.binary("ashr", rep, width, a, clamped)
        zero = splat_literal(rep, 0, width)
        safe = w.select(inside, rep, width, count, zero)
        shifted = w.binary("shl" if name == "shift_left" else "lshr", rep, width, a, safe)
        return w.select(inside, rep, width, shifted, zero)
    return rule


def _floor_div(w: Writer, args: Args, dtype: DType, width: int) -> str:
    rep, (a, b) = representation(dtype), args
    if not dtype.is_integer:
        raise CompileError(f"'floor_div' on {dtype} reached the CPU code generator unexpanded")
    if dtype.kind == "uint" or rep in ("i8", "i16", "i32"):
        quick = _quotient_by_float(w, a, b, dtype, width)
        if quick is not None:
            return quick
    if dtype.kind == "int":
        return floor_division(w, rep, width, a, b)
    t, zero = vector(rep, width), splat_literal(rep, 0, width)
    is_zero = w.let(f"icmp eq {t} {b}, {zero}")
    safe = w.select(is_zero, rep, width, splat_literal(rep, 1, width), b)
    return w.select(is_zero, rep, width, zero, w.binary("udiv", rep, width, a, safe))


def _quotient_by_float(w: Writer, a: str, b: str, dtype: DType, width: int) -> str | None:
    """Vectors have no integer division: 32-bit and smaller quotients are exact after one division in f64."""
    rep = representation(dtype)
    if width == 1 or rep == "i64":
        return None
    to = "sitofp" if dtype.kind == "int" else "uitofp"
    td, zero = vector("double", width), splat_literal(rep, 0, width)
    is_zero = w.let(f"icmp eq {vector(rep, width)} {b}, {zero}")
    safe = w.select(is_zero, rep, width, splat_literal(rep, 1, width), b)
    quotient = w.let(f"fdiv {td} {w.cast(to, rep, 'double', width, a)}, {w.cast(to, rep, 'double', width, safe)}")
    whole = w.cast("fptosi", "double", "i64", width, w.intrinsic("floor", "double", width, quotient))
    return w.select(is_zero, rep, width, zero, w.cast("trunc", "i64", rep, width, whole))


def _mod(w: Writer, args: Args, dtype: DType, width: int) -> str:
    """``a - floor_div(a, b) * b``, and 0 for b == 0."""
    rep, (a, b) = representation(dtype), args
    quotient = _floor_div(w, args, dtype, width)
    rest = w.binary("sub", rep, width, a, w.binary("mul", rep, width, quotient, b))
    zero = splat_literal(rep, 0, width)
    is_zero = w.let(f"icmp eq {vector(rep, width)} {b}, {zero}")
    return w.select(is_zero, rep, width, zero, rest)


def _classify(name: str) -> Rule:
    def rule(w: Writer, args: Args, dtype: DType, width: int) -> str:
        rep = representation(dtype)
        t = vector(rep, width)
        if not dtype.is_float:
            # Never NaN or infinite; written over the operand so that the result is a value, not a constant's text.
            predicate = "eq" if name == "isfinite" else "ne"
            return w.let(f"icmp {predicate} {t} {args[0]}, {args[0]}")
        if name == "isnan":
            return w.let(f"fcmp uno {t} {args[0]}, {splat_literal(rep, 0.0, width)}")
        size = w.intrinsic("fabs", rep, width, args[0])
        return w.let(f"fcmp {'oeq' if name == 'isinf' else 'olt'} {t} {size}, {splat_literal(rep, float('inf'), width)}")
    return rule


def _sign(w: Writer, args: Args, dtype: DType, width: int) -> str:
    rep, (a,) = representation(dtype), args
    t = vector(rep, width)
    if dtype.kind == "bool":
        return a
    zero = splat_literal(rep, 0, width)
    greater, less = ("fcmp ogt", "fcmp olt") if dtype.is_float else ("icmp sgt", "icmp slt")
    if dtype.kind == "uint":
        positive = w.let(f"icmp ne {t} {a}, {zero}")
        return w.cast("zext", "i1", rep, width, positive)
    # Zeros and NaN are their own sign.
    other = w.select(w.let(f"{less} {t} {a}, {zero}"), rep, width, splat_literal(rep, -1, width), a)
    return w.select(w.let(f"{greater} {t} {a}, {zero}"), rep, width, splat_literal(rep, 1, width), other)


def _copysign(w: Writer, args: Args, dtype: DType, width: int) -> str:
    if not dtype.is_float:
        raise CompileError(f"'copysign' is not defined for {dtype}")
    return w.intrinsic("copysign", representation(dtype), width, *args)


_RULES: dict[str, Rule] = {
    **{n: _arithmetic(n) for n in _FLOAT_BINARY}, **{n: _unary(n) for n in _UNARY_FLOAT},
    **{n: _compare(n) for n in _COMPARE_FLOAT}, **{n: _bitwise(n) for n in (*_BITWISE, "bitwise_not")},
    **{n: _shift(n) for n in ("shift_left", "shift_right")}, **{n: _extremum(n) for n in ("maximum", "minimum")},
    **{n: _classify(n) for n in ("isnan", "isinf", "isfinite")},
    "fma": _fma, "neg": _neg, "floor_div": _floor_div, "mod": _mod, "sign": _sign, "copysign": _copysign,
}
_WRAPS = frozenset({"add", "sub", "mul", "neg", "fma", "shift_left", "bitwise_not", "abs", "floor_div"})
BASIC: frozenset[str] = frozenset(_RULES) | frozenset({"convert", "bitcast", "select", "logical_not"} | set(_LOGICAL))

__all__ = ["BASIC", "literal", "pointwise"]
