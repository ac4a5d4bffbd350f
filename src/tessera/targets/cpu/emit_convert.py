"""Conversions between element types, in registers, with the results of numpy and ml_dtypes.

Small floats (f16, bf16, fp8, fp6, fp4) widen exactly to f32 and are rounded from f32, to nearest even.
"""

from __future__ import annotations

from dataclasses import dataclass

from ...types.dtypes import DType, f32
from .emit_writer import Writer, literal, representation, splat_literal, vector


@dataclass(frozen=True)
class Format:
    """A small float format: ``code`` of the magnitude runs from 0 to ``largest``, then come inf and NaN (if any).

    ``overflow`` is the code of what is too large; ``nan`` that of NaN, None where NaN becomes a zero of opposite sign.
    """

    exponent: int
    mantissa: int
    bias: int
    overflow: int
    nan: int | None
    first_special: int | None

    @property
    def magnitude_bits(self) -> int:
        return self.exponent + self.mantissa


FORMATS = {
    "f16": Format(5, 10, 15, 0x7C00, 0x7E00, 0x7C00),
    "bf16": Format(8, 7, 127, 0x7F80, 0x7FC0, 0x7F80),
    "fp8_e5m2": Format(5, 2, 15, 0x7C, 0x7E, 0x7C),
    "fp8_e4m3": Format(4, 3, 7, 0x7F, 0x7F, 0x7F),
    "fp6_e3m2": Format(3, 2, 3, 0x1F, None, None),
    "fp6_e2m3": Format(2, 3, 1, 0x1F, None, None),
    "fp4_e2m1": Format(2, 1, 1, 0x07, None, None),
}


def is_small(dtype: DType) -> bool:
    return dtype.is_float and dtype.bits < 32


def widen(w: Writer, value: str, dtype: DType, width: int) -> str:
    """A small float as f32, exactly."""
    if dtype.name == "bf16":
        wide = w.cast("zext", "i16", "i32", width, value)
        return w.cast("bitcast", "i32", "float", width,
                      w.binary("shl", "i32", width, wide, splat_literal("i32", 16, width)))
    if w.machine.has_half_conversion and dtype.name in ("f16", "fp8_e5m2"):
        if dtype.name == "fp8_e5m2":  # it is the upper half of an f16
            wide = w.cast("zext", "i8", "i16", width, value)
            value = w.binary("shl", "i16", width, wide, splat_literal("i16", 8, width))
        return w.cast("fpext", "half", "float", width, w.cast("bitcast", "i16", "half", width, value))
    return _widen_bits(w, value, dtype, width)


def _widen_bits(w: Writer, value: str, dtype: DType, width: int) -> str:
    f, t = FORMATS[dtype.name], vector("i32", width)

    def c(v: int) -> str:
        return splat_literal("i32", v, width)

    x = w.cast("zext", representation(dtype), "i32", width, value)
    magnitude = w.binary("and", "i32", width, x, c((1 << f.magnitude_bits) - 1))
    sign = w.binary("shl", "i32", width, w.binary("and", "i32", width, x, c(1 << f.magnitude_bits)),
                    c(31 - f.magnitude_bits))
    moved = w.binary("shl", "i32", width, magnitude, c(23 - f.mantissa))
    normal = w.binary("add", "i32", width, moved, c((127 - f.bias) << 23))
    count = w.cast("uitofp", "i32", "float", width, magnitude)
    unit = splat_literal("float", 2.0 ** (1 - f.bias - f.mantissa), width)
    tiny = w.cast("bitcast", "float", "i32", width, w.binary("fmul", "float", width, count, unit))
    is_tiny = w.let(f"icmp ult {t} {magnitude}, {c(1 << f.mantissa)}")
    bits = w.select(is_tiny, "i32", width, tiny, normal)
    if f.first_special is not None:
        special = w.binary("or", "i32", width, moved, c(0x7F800000))
        if f.first_special == f.nan:
            special = c(0x7FC00000)
        is_special = w.let(f"icmp uge {t} {magnitude}, {c(f.first_special)}")
        bits = w.select(is_special, "i32", width, special, bits)
    return w.cast("bitcast", "i32", "float", width, w.binary("or", "i32", width, bits, sign))


def narrow(w: Writer, value: str, dtype: DType, width: int) -> str:
    """An f32 rounded to a small float, by the machine's instruction where the writer knows one."""
    native = w.narrowing.get(dtype.name)
    return native(w, value) if native is not None and width == 1 else _narrow_bits(w, value, dtype, width)


def _narrow_bits(w: Writer, value: str, dtype: DType, width: int) -> str:
    """An f32 rounded to a small float."""
    if dtype.name == "f16" and w.machine.has_half_conversion:
        if width == 1:  # LLVM merges this rounding with an exact one from f64 into a call of a library that is not there
            value = w.intrinsic("arithmetic.fence", "float", width, value)
        return w.cast("bitcast", "half", "i16", width, w.cast("fptrunc", "float", "half", width, value))
    f, t = FORMATS[dtype.name], vector("i32", width)

    def c(v: int) -> str:
        return splat_literal("i32", v, width)

    def op(name: str, a: str, b: str) -> str:
        return w.binary(name, "i32", width, a, b)

    bits = w.cast("bitcast", "float", "i32", width, value)
    magnitude = op("and", bits, c(0x7FFFFFFF))
    shift = 23 - f.mantissa
    odd = op("and", op("lshr", magnitude, c(shift)), c(1))
    rounded = op("add", op("add", magnitude, odd), c((1 << (shift - 1)) - 1))
    code = op("lshr", rounded, c(shift))
    if f.bias != 127:
        code = op("sub", code, c((127 - f.bias) << f.mantissa))
        # Below the smallest normal number, adding a constant makes the hardware round at the format's unit.
        magic = 2.0 ** (1 - f.bias - f.mantissa + 23)
        absolute = w.cast("bitcast", "i32", "float", width, magnitude)
        summed = w.binary("fadd", "float", width, absolute, splat_literal("float", magic, width))
        magic_bits = (150 + 1 - f.bias - f.mantissa) << 23
        tiny = op("sub", w.cast("bitcast", "float", "i32", width, summed), c(magic_bits))
        is_tiny = w.let(f"icmp ult {t} {magnitude}, {c((128 - f.bias) << 23)}")
        code = w.select(is_tiny, "i32", width, tiny, code)
        code = w.intrinsic("umin", "i32", width, code, c(f.overflow))
    sign = op("lshr", bits, c(31))
    is_nan = w.let(f"icmp ugt {t} {magnitude}, {c(0x7F800000)}")
    if f.nan is None:
        sign = op("xor", sign, w.cast("zext", "i1", "i32", width, is_nan))
    code = w.select(is_nan, "i32", width, c(f.nan or 0), code)
    whole = op("or", code, op("shl", sign, c(f.magnitude_bits)))
    return w.cast("trunc", "i32", representation(dtype), width, whole)


def _odd_f32(w: Writer, value: str, width: int) -> str:
    """An f64 as f32 rounded to odd: a second rounding, to any smaller format, then gives what one rounding would."""
    near = w.cast("fptrunc", "double", "float", width, value)
    back = w.cast("fpext", "float", "double", width, near)
    vd = vector("double", width)
    exact = w.let(f"fcmp ueq {vd} {back}, {value}")
    larger = w.let(f"fcmp ogt {vd} {w.intrinsic('fabs', 'double', width, back)}, "
                   f"{w.intrinsic('fabs', 'double', width, value)}")
    bits = w.cast("bitcast", "float", "i32", width, near)
    toward_zero = w.binary("add", "i32", width, bits, w.cast("sext", "i1", "i32", width, larger))
    odd = w.binary("or", "i32", width, toward_zero, splat_literal("i32", 1, width))
    return w.cast("bitcast", "i32", "float", width, w.select(exact, "i32", width, bits, odd))


def normalize(w: Writer, value: str, dtype: DType, width: int) -> str:
    """Bring an i8 back into the range of a 4-bit integer (wrapping)."""
    if dtype.bits != 4 or dtype.is_float:
        return value
    if dtype.kind == "uint":
        return w.binary("and", "i8", width, value, splat_literal("i8", 15, width))
    up = w.binary("shl", "i8", width, value, splat_literal("i8", 4, width))
    return w.binary("ashr", "i8", width, up, splat_literal("i8", 4, width))


def convert(w: Writer, value: str, source: DType, target: DType, width: int) -> str:
    """``value`` of ``source`` as ``target``: floats round to nearest even, float to integer saturates (NaN gives 0),
    integers wrap, anything but 0 is True."""
    if source is target:
        return value
    if is_small(source):
        return convert(w, widen(w, value, source, width), f32, target, width)
    if target.kind == "bool":
        rep = representation(source)
        test = "fcmp une" if source.is_float else "icmp ne"
        return w.let(f"{test} {vector(rep, width)} {value}, {splat_literal(rep, 0, width)}")
    if source.is_float:
        return _from_float(w, value, source, target, width)
    if target.is_float:
        to = "double" if target.name == "f64" else "float"
        number = w.cast("sitofp" if source.kind == "int" else "uitofp", representation(source), to, width, value)
        return narrow(w, number, target, width) if is_small(target) else number
    return _between_integers(w, value, source, target, width)


def _between_integers(w: Writer, value: str, source: DType, target: DType, width: int) -> str:
    a, b = representation(source), representation(target)
    na, nb = int(a[1:]), int(b[1:])
    if na < nb:
        value = w.cast("sext" if source.kind == "int" else "zext", a, b, width, value)
    elif na > nb:
        value = w.cast("trunc", a, b, width, value)
    return normalize(w, value, target, width)


def _from_float(w: Writer, value: str, source: DType, target: DType, width: int) -> str:
    rep = representation(source)
    if is_small(target):
        return narrow(w, _odd_f32(w, value, width) if rep == "double" else value, target, width)
    if target.is_float:
        return w.cast("fpext" if rep == "float" else "fptrunc", rep, representation(target), width, value)
    return _to_integer(w, value, rep, target, width)


def _to_integer(w: Writer, value: str, rep: str, target: DType, width: int) -> str:
    """Saturating: compares choose the limits, and what is outside is replaced by 0 before it is converted."""
    low, high = int(target.min), int(target.max)
    wide = "i64" if target.bits == 64 or target.name == "uint32" else "i32"
    vt = vector(rep, width)
    floor = splat_literal(rep, float(low) if target.kind == "int" else 0.0, width)
    ceiling = splat_literal(rep, float(high + 1), width)
    over = w.let(f"fcmp oge {vt} {value}, {ceiling}")
    under = w.let(f"fcmp olt {vt} {value}, {floor}")
    within = w.binary("and", "i1", width, w.let(f"fcmp olt {vt} {value}, {ceiling}"),
                      w.let(f"fcmp oge {vt} {value}, {floor}"))
    safe = w.select(within, rep, width, value, splat_literal(rep, 0.0, width))
    op = "fptoui" if target.name == "uint64" else "fptosi"
    number = w.cast(op, rep, wide, width, safe)
    out = representation(target)
    if out != wide:
        number = w.cast("trunc", wide, out, width, number)
    number = w.select(over, out, width, splat_literal(out, high, width), number)
    return w.select(under, out, width, splat_literal(out, low, width), number)


__all__ = ["FORMATS", "Format", "convert", "is_small", "literal", "narrow", "normalize", "widen"]
