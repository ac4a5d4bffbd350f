"""Size expressions as LLVM arithmetic on i64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...errors import CompileError
from ...types.dims import Dim, DimLike, known_nonnegative


class SizeWriter:
    """Writes the arithmetic for size expressions; ``names`` maps each size or loop variable to its LLVM value.

    Args:
        line: receives one instruction.
        fresh: gives a new LLVM value name.
    """

    def __init__(self, line: Callable[[str], None], fresh: Callable[[], str], names: Mapping[str, str]):
        self.line, self.fresh, self.names = line, fresh, names

    def value(self, d: DimLike) -> str:
        """The LLVM operand (a literal or a value) of ``d``.

        Raises:
            CompileError: a name has no value here.
        """
        if not isinstance(d, Dim):
            return str(int(d))
        total: str | None = None
        for monomial, coefficient in d.terms:
            term: str | None = None
            for atom, power in monomial:
                factor = self._atom(atom)
                for _ in range(power):
                    term = factor if term is None else self._op("mul", term, factor)
            if term is None:
                term = str(coefficient)
            elif coefficient != 1:
                term = self._op("mul", term, str(coefficient))
            total = term if total is None else self._op("add", total, term)
        return total or "0"

    def _atom(self, atom: Any) -> str:
        if isinstance(atom, str):
            if atom not in self.names:
                raise CompileError(f"the size {atom!r} has no value in this program")
            return self.names[atom]
        op, lhs, rhs = atom
        a, b = self.value(lhs), self.value(rhs)
        if op in ("max", "min"):
            return self._call(f"llvm.s{op}.i64", a, b)
        if known_nonnegative(lhs):
            return self._op("udiv" if op == "floordiv" else "urem", a, b)
        return self._floor(op, a, b)

    def _floor(self, op: str, a: str, b: str) -> str:
        """Division rounding down (and its remainder, with the divisor's sign) for operands of either sign."""
        q, r = self._op("sdiv", a, b), self._op("srem", a, b)
        wrong = self._compare("slt", self._op("xor", r, b), "0")
        uneven = self._compare("ne", r, "0")
        fix = self.fresh()
        self.line(f"{fix} = and i1 {wrong}, {uneven}")
        one = self.fresh()
        self.line(f"{one} = sext i1 {fix} to i64")
        if op == "floordiv":
            return self._op("add", q, one)
        return self._op("add", r, self._op("and", one, b))

    def _op(self, op: str, a: str, b: str) -> str:
        out = self.fresh()
        self.line(f"{out} = {op} i64 {a}, {b}")
        return out

    def _compare(self, predicate: str, a: str, b: str) -> str:
        out = self.fresh()
        self.line(f"{out} = icmp {predicate} i64 {a}, {b}")
        return out

    def _call(self, name: str, a: str, b: str) -> str:
        out = self.fresh()
        self.line(f"{out} = call i64 @{name}(i64 {a}, i64 {b})")
        return out
