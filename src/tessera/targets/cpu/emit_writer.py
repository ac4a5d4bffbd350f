"""Lines of LLVM IR: names, types, constants and the structured values of one function under construction."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ...errors import CompileError
from ...ir.core import Value
from ...machine.cpu import CpuMachine
from ...types.dims import DimLike
from ...types.dtypes import DType

# How an element is held while it is computed with.  16-bit and smaller floats are held as their bits: arithmetic
# widens them to f32.  int4 is sign-extended, uint4 zero-extended, into i8.
_REPRESENTATION = {
    "bool": "i1", "int4": "i8", "uint4": "i8", "int8": "i8", "uint8": "i8", "int16": "i16", "uint16": "i16",
    "int32": "i32", "uint32": "i32", "int64": "i64", "uint64": "i64", "f16": "i16", "bf16": "i16", "f32": "float",
    "f64": "double", "fp8_e4m3": "i8", "fp8_e5m2": "i8", "fp6_e2m3": "i8", "fp6_e3m2": "i8", "fp4_e2m1": "i8",
}
_SUFFIX = {"i1": "i1", "i8": "i8", "i16": "i16", "i32": "i32", "i64": "i64", "float": "f32", "double": "f64",
           "ptr": "p0", "half": "f16"}


def representation(dtype: DType) -> str:
    """LLVM's type of one element in registers.

    Raises:
        CompileError: a complex dtype; complex values are pairs of real tiles before they get here.
    """
    rep = _REPRESENTATION.get(dtype.name)
    if rep is None:
        raise CompileError(f"the CPU code generator takes no {dtype} elements")
    return rep


def memory_type(dtype: DType) -> str:
    """LLVM's type of one element in memory (bool is a byte)."""
    return "i8" if dtype.name == "bool" else representation(dtype)


def vector(element: str, width: int) -> str:
    """A vector type; one lane is a plain scalar."""
    return element if width == 1 else f"<{width} x {element}>"


def suffix(element: str, width: int) -> str:
    """The overload suffix of an intrinsic: ``f32``, ``v16f32``."""
    return _SUFFIX[element] if width == 1 else f"v{width}{_SUFFIX[element]}"


def literal(element: str, value: Any) -> str:
    """One constant of an LLVM element type."""
    if element == "i1":
        return "true" if value else "false"
    if element == "float":
        with np.errstate(over="ignore"):
            value = float(np.float32(value))
        return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"
    if element == "double":
        return f"0x{struct.unpack('<Q', struct.pack('<d', float(value)))[0]:016X}"
    bits = int(element[1:])
    number = int(value) & (1 << bits) - 1
    return str(number - (1 << bits) if number >> (bits - 1) else number)


def splat_literal(element: str, value: Any, width: int) -> str:
    """A constant with ``value`` in every lane."""
    text = literal(element, value)
    if width == 1:
        return text
    return "zeroinitializer" if text == "0" else f"splat ({element} {text})"


def vector_literal(element: str, values: Iterable[Any]) -> str:
    """A constant from its lanes."""
    items = list(values)
    if len(items) == 1:
        return literal(element, items[0])
    return "<" + ", ".join(f"{element} {literal(element, v)}" for v in items) + ">"


def constant_bits(dtype: DType, value: Any) -> Any:
    """``value`` as the number that stands for it in registers: small floats are their bits."""
    if dtype.is_float and dtype.bits < 32:
        raw = np.asarray(value, np.float64).astype(dtype.np)
        return int(raw.view(np.uint16 if dtype.itemsize == 2 else np.uint8))
    if dtype.is_integer and isinstance(value, float | np.floating):
        return int(value)
    return value.item() if isinstance(value, np.generic | np.ndarray) else value


class Writer:
    """Collects the lines of one LLVM function.

    Lines go to the current basic block; ``entry`` lines stand before all blocks, so what they define may be used
    anywhere (stack slots, strides).
    """

    narrowing: Mapping[str, Callable[[Any, str], str]] = {}  # small floats that an f32 is rounded to by one instruction

    def __init__(self, machine: CpuMachine):
        self.machine = machine
        self.lanes = machine.tile_lanes
        self.entry: list[str] = []
        self.body: list[str] = []
        self.label = "start"
        self.count = 0
        self._in_entry = False
        self.sizes: dict[str, str] = {}
        self._dims: dict[DimLike, str] = {}
        self.dummy: str | None = None
        self.truth: str | None = None
        self.indices: set[Value] = set()  # loop variables that are never negative

    # -- lines -------------------------------------------------------------------------------------------------------
    def fresh(self) -> str:
        self.count += 1
        return f"%v{self.count}"

    def line(self, text: str) -> None:
        (self.entry if self._in_entry else self.body).append("  " + text)

    def let(self, expression: str) -> str:
        """``%new = expression``; returns the name."""
        self.count += 1
        name = f"%v{self.count}"
        (self.entry if self._in_entry else self.body).append(f"  {name} = {expression}")
        return name

    def new_label(self, hint: str) -> str:
        self.count += 1
        return f"{hint}{self.count}"

    def start(self, label: str) -> None:
        """Begin a basic block."""
        self.body.append(f"{label}:")
        self.label = label

    def branch(self, label: str) -> None:
        self.line(f"br label %{label}")

    def branch_if(self, condition: str, yes: str, no: str) -> None:
        self.line(f"br i1 {condition}, label %{yes}, label %{no}")

    # -- small expressions ---------------------------------------------------------------------------------------------
    def binary(self, op: str, element: str, width: int, a: str, b: str) -> str:
        return self.let(f"{op} {vector(element, width)} {a}, {b}")

    def intrinsic(self, name: str, element: str, width: int, *args: str) -> str:
        """A call of an intrinsic overloaded on one type that all arguments and the result have."""
        t = vector(element, width)
        return self.let(f"call {t} @llvm.{name}.{suffix(element, width)}({', '.join(f'{t} {a}' for a in args)})")

    def select(self, condition: str, element: str, width: int, yes: str, no: str) -> str:
        t = vector(element, width)
        return self.let(f"select {vector('i1', width)} {condition}, {t} {yes}, {t} {no}")

    def cast(self, op: str, source: str, target: str, width: int, value: str) -> str:
        return self.let(f"{op} {vector(source, width)} {value} to {vector(target, width)}")

    def splat(self, element: str, width: int, value: str) -> str:
        """A vector with a scalar in every lane."""
        if width == 1:
            return value
        t = vector(element, width)
        one = self.let(f"insertelement {t} poison, {element} {value}, i32 0")
        return self.let(f"shufflevector {t} {one}, {t} poison, <{width} x i32> zeroinitializer")

    def extract(self, element: str, width: int, value: str, lane: int) -> str:
        return value if width == 1 else self.let(f"extractelement {vector(element, width)} {value}, i32 {lane}")

    def alloca(self, element: str, count: int) -> str:
        """A stack slot for the whole call."""
        name = self.fresh()
        self.entry.append(f"  {name} = alloca [{count} x {element}], align 64")
        return name

    def scratch(self) -> str:
        """Sixteen bytes that nobody reads: where lanes outside a buffer point."""
        if self.dummy is None:
            self.dummy = self.alloca("i8", 64)
            self.entry.append(f"  store <16 x i32> zeroinitializer, ptr {self.dummy}, align 64")
        return self.dummy

    def surely(self) -> str:
        """The ``i1`` true, of which LLVM does not know that it is."""
        if self.truth is None:
            self.truth = "%surely"
            self.entry.append('  %surely.word = call i64 asm "", "=r,0"(i64 1)')
            self.entry.append("  %surely = trunc i64 %surely.word to i1")
        return self.truth

    def gep(self, element: str, pointer: str, offset: str) -> str:
        """The address ``offset`` elements on."""
        if offset == "0":
            return pointer
        return self.let(f"getelementptr {element}, ptr {pointer}, i64 {offset}")

    # -- sizes ---------------------------------------------------------------------------------------------------------
    def dim(self, d: DimLike) -> str:
        """A size expression as an i64, computed once at the function's entry."""
        if isinstance(d, int):
            return str(d)
        if d not in self._dims:
            saved, self._in_entry = self._in_entry, True
            try:
                self._dims[d] = self._dim(d)
            finally:
                self._in_entry = saved
        return self._dims[d]

    def _dim(self, d: Any) -> str:
        total: str | None = None
        for mono, coefficient in d.terms:
            term: str | None = None
            for atom, power in mono:
                value = self._atom(atom)
                for _ in range(power):
                    term = value if term is None else self.binary("mul", "i64", 1, term, value)
            if term is None:
                term = str(coefficient)
            elif coefficient != 1:
                term = self.binary("mul", "i64", 1, term, str(coefficient))
            total = term if total is None else self.binary("add", "i64", 1, total, term)
        return total or "0"

    def _atom(self, atom: Any) -> str:
        if isinstance(atom, str):
            if atom not in self.sizes:
                raise CompileError(f"the size {atom!r} is not a parameter of the kernel")
            return self.sizes[atom]
        op, x, y = atom[0], self.dim(atom[1]), self.dim(atom[2])
        if op in ("max", "min"):
            return self.intrinsic(f"s{op}", "i64", 1, x, y)
        quotient = floor_division(self, "i64", 1, x, y, None if not isinstance(atom[2], int) else atom[2])
        if op == "floordiv":
            return quotient
        return self.binary("sub", "i64", 1, x, self.binary("mul", "i64", 1, quotient, y))


def floor_division(w: Writer, element: str, width: int, a: str, b: str, known: int | None = None) -> str:
    """Signed ``a // b`` rounded down; 0 for ``b == 0``; ``min // -1`` wraps.  ``known``: b, where it is a constant."""
    zero = splat_literal(element, 0, width)
    if known is not None and known > 0 and known & (known - 1) == 0:
        return w.binary("ashr", element, width, a, splat_literal(element, known.bit_length() - 1, width))
    if known is None or known in (0, -1):
        t, ones = vector(element, width), splat_literal(element, 1, width)
        is_zero = w.let(f"icmp eq {t} {b}, {zero}")
        minus = splat_literal(element, -1, width)
        is_minus = w.let(f"icmp eq {t} {b}, {minus}")
        odd = w.binary("or", "i1", width, is_zero, is_minus)
        safe = w.select(odd, element, width, ones, b)
        negated = w.binary("sub", element, width, zero, a)
        special = w.select(is_zero, element, width, zero, negated)
        return w.select(odd, element, width, special, _floor_quotient(w, element, width, a, safe))
    return _floor_quotient(w, element, width, a, b)


def _floor_quotient(w: Writer, element: str, width: int, a: str, b: str) -> str:
    t, zero = vector(element, width), splat_literal(element, 0, width)
    q = w.binary("sdiv", element, width, a, b)
    r = w.binary("sub", element, width, a, w.binary("mul", element, width, q, b))
    inexact = w.let(f"icmp ne {t} {r}, {zero}")
    signs = w.let(f"icmp slt {t} {w.binary('xor', element, width, r, b)}, {zero}")
    down = w.binary("and", "i1", width, inexact, signs)
    return w.binary("add", element, width, q, w.cast("sext", "i1", element, width, down))
