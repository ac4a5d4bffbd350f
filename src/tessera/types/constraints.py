"""Sizes as a user writes them: ``B, D = ts.sym("B D")``, ``where=[D % 8 == 0]``, ``q.reshape(B, S, H, D // H)``.

A :class:`Size` is a :class:`~tessera.types.dims.Dim` whose comparisons give a :class:`SizeConstraint`.  As a condition,
``==`` and ``!=`` of symbolic sizes answer whether they are *known* to be equal; an order (``S > 512``) must be certain,
or the function being traced is asked for the actual values.

*Declared* sizes (from :func:`sym`) are names in an annotation; *actual* ones (from ``x.shape``) belong to the program
being traced.  Inside a function's body a declared size turns into the actual one that its annotation bound.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from typing import Any

from .dims import Dim, DimLike, as_dim, floordiv, known_nonnegative, mod, substitute
from .dims import sym as _plain_sym
from .shapes import Constraint


class _Scope(threading.local):
    """What declared names mean where the running function's body stands; set by tracing."""

    bindings: Mapping[str, DimLike] | None = None
    demand: Callable[[Dim], int] | None = None  # the value of an actual size, or an exception
    decide: Callable[[Constraint], bool] | None = None  # the truth of a comparison that is not certain
    divided: set[str] | None = None  # names in divisions that may leave a remainder
    quotient: tuple[DimLike, DimLike] | None = None  # the latest of them: what was divided by what


SCOPE = _Scope()


class Size(Dim):
    """A symbolic size in a user's hands: an integer polynomial over names that compares into constraints."""

    __slots__ = ("declared",)

    def __init__(self, terms: Any, declared: bool = False):
        super().__init__(terms)
        self.declared = declared

    def plain(self) -> DimLike:
        return _resolved(self)

    # -- arithmetic keeps the class --------------------------------------------------------------------------------
    def __add__(self, other: DimLike) -> DimLike:
        return _binary(self, other, lambda a, b: a + b)

    __radd__ = __add__

    def __sub__(self, other: DimLike) -> DimLike:
        return _binary(self, other, lambda a, b: a - b)

    def __rsub__(self, other: DimLike) -> DimLike:
        return _binary(other, self, lambda a, b: a - b)

    def __mul__(self, other: DimLike) -> DimLike:
        return _binary(self, other, lambda a, b: a * b)

    __rmul__ = __mul__

    def __floordiv__(self, other: DimLike) -> DimLike:
        return _binary(self, other, floordiv)

    def __rfloordiv__(self, other: DimLike) -> DimLike:
        return _binary(other, self, floordiv)

    def __mod__(self, other: DimLike) -> DimLike:
        return _binary(self, other, mod)

    def __rmod__(self, other: DimLike) -> DimLike:
        return _binary(other, self, mod)

    def __neg__(self) -> DimLike:
        return as_size(-plain(self), self.declared and SCOPE.bindings is None)

    def __pow__(self, n: int) -> DimLike:
        return as_size(_resolved(self) ** n, self.declared and SCOPE.bindings is None)

    def __truediv__(self, other: Any) -> Any:
        return int(self) / other

    def __rtruediv__(self, other: Any) -> Any:
        return other / int(self)

    # -- comparisons -------------------------------------------------------------------------------------------------
    def __eq__(self, other: object) -> Any:
        return _compare(self, "==", other)

    def __ne__(self, other: object) -> Any:
        return _compare(self, "!=", other)

    def __lt__(self, other: object) -> Any:
        return _compare(self, "<", other)

    def __le__(self, other: object) -> Any:
        return _compare(self, "<=", other)

    def __gt__(self, other: object) -> Any:
        return _compare(self, ">", other)

    def __ge__(self, other: object) -> Any:
        return _compare(self, ">=", other)

    __hash__ = Dim.__hash__

    # -- values --------------------------------------------------------------------------------------------------------
    def __int__(self) -> int:
        d = _resolved(self)
        if isinstance(d, int):
            return d
        if SCOPE.demand is None:
            raise TypeError(f"the size {d} is symbolic: it has no value until the function is called")
        return SCOPE.demand(d)

    __index__ = __int__

    def __float__(self) -> float:
        return float(int(self))

    def __repr__(self) -> str:
        return str(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickle, (str(self), self.declared)


def _unpickle(text: str, declared: bool) -> DimLike:
    return as_size(as_dim(text), declared)


class SizeConstraint(Constraint):
    """A comparison of sizes: a fact to require (``where=[…]``, ``ts.require``) or a condition (``if``)."""

    def decide(self, env: Mapping[str, DimLike] | None = None) -> bool | None:
        """True or False where that is certain under ``env``, given that sizes are at least 1; else None."""
        certain = super().decide(env)
        if certain is not None:
            return certain
        lhs, rhs = substitute(self.lhs, env or {}), substitute(self.rhs, env or {})
        if not _polynomial(lhs) or not _polynomial(rhs):
            return None
        above = known_nonnegative(lhs - rhs - 1)  # lhs > rhs
        below = known_nonnegative(rhs - lhs - 1)
        if self.op in ("==", "!="):
            return self.op == "!=" if above or below else None
        if self.op in (">", "<="):
            return self.op == ">" if above else self.op == "<=" if known_nonnegative(rhs - lhs) else None
        return self.op == "<" if below else self.op == ">=" if known_nonnegative(lhs - rhs) else None

    def __str__(self) -> str:
        return f"{_pretty(self.lhs)} {self.op} {_pretty(self.rhs)}"

    def __bool__(self) -> bool:
        certain = self.decide()
        if certain is not None:
            return certain
        if self.op in ("==", "!="):
            return self.op == "!="
        if SCOPE.decide is None:
            raise TypeError(f"whether {self} holds is not known until the function is called; "
                            f"state it with where=[{self}] or ts.require({self})")
        return SCOPE.decide(self)

    __hash__ = Constraint.__hash__


def _polynomial(d: DimLike) -> bool:
    """True when only names occur, each of which is at least 1; a remainder may be 0."""
    return isinstance(d, int) or all(isinstance(a, str) for m, _ in d.terms for a, _ in m)


def _pretty(d: DimLike) -> str:
    text = re.sub(r"\((\w+)\)", r"\1", str(d))
    return text[1:-1] if re.fullmatch(r"\([^()]*\)", text) else text


def plain(d: DimLike) -> DimLike:
    """``d`` as the compiler's own :class:`Dim` (or int), with declared names resolved."""
    return _resolved(d) if isinstance(d, Size) else d


def as_size(d: DimLike, declared: bool = False) -> DimLike:
    """``d`` as a user-level size; ints stay ints."""
    return Size(d.terms, declared) if isinstance(d, Dim) else d


def _resolved(d: Size) -> DimLike:
    if d.declared and SCOPE.bindings is not None:
        return substitute(Dim(d.terms), SCOPE.bindings)
    return Dim(d.terms)


def _binary(a: object, b: object, apply: Callable[[Any, Any], DimLike]) -> DimLike:
    if not isinstance(a, int | Dim) or not isinstance(b, int | Dim):
        return NotImplemented  # type: ignore[no-any-return]
    declared = SCOPE.bindings is None and (getattr(a, "declared", False) or getattr(b, "declared", False))
    out = apply(plain(a), plain(b))
    if SCOPE.divided is not None and isinstance(out, Dim) and not _polynomial(out):
        SCOPE.divided |= out.names
        SCOPE.quotient = plain(a), plain(b)
    return as_size(out, declared)


def _compare(a: Size, op: str, b: object) -> Any:
    if not isinstance(b, int | Dim) or isinstance(b, bool):
        return NotImplemented
    return SizeConstraint(plain(a), op, plain(b))


def sym(names: str) -> Any:
    """``B, S = ts.sym("B S")``: named sizes for annotations, constraints and bodies.  One name gives one size.

    Raises:
        ValueError: a name is not an identifier.
    """
    dims = _plain_sym(names)
    if isinstance(dims, tuple):
        return tuple(as_size(d, True) for d in dims)
    return as_size(dims, True)
