"""Symbolic dimensions: integer polynomials over names, in one canonical form.

A size in a tensor type is a Python ``int`` or a :class:`Dim`.  A ``Dim`` is never constant: every operation that
yields a constant returns a plain ``int``, so ``isinstance(d, int)`` is the test for "static".  Two sizes are equal
exactly when their canonical forms are (``2*B*S == S*B + B*S``); nothing is ever guessed.

The same algebra serves as the index arithmetic of Schedule IR, where the names are loop variables.  There, division
and remainder simplify with the help of ``ranges`` (``0 <= name < extent``); see :func:`floordiv`, :func:`mod`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, Union

DimLike = Union[int, "Dim"]
Ranges = Mapping[str, DimLike]

# An atom is a name or an application that polynomials cannot express: (op, lhs, rhs).
Atom = str | tuple[str, DimLike, DimLike]
Monomial = tuple[tuple[Atom, int], ...]  # sorted ((atom, power), ...); () is the constant term


def _atom_key(atom: Atom) -> str:
    return atom if isinstance(atom, str) else f"~{atom[0]}({atom[1]},{atom[2]})"


def _mono_mul(a: Monomial, b: Monomial) -> Monomial:
    powers: dict[Atom, int] = dict(a)
    for atom, p in b:
        powers[atom] = powers.get(atom, 0) + p
    return tuple(sorted(((x, p) for x, p in powers.items() if p), key=lambda t: _atom_key(t[0])))


class Dim:
    """A non-constant integer polynomial over named sizes.

    Build names with :func:`sym`; combine with ``+ - * // %``.  Immutable and hashable.
    """

    __slots__ = ("_hash", "terms")
    terms: tuple[tuple[Monomial, int], ...]

    def __init__(self, terms: tuple[tuple[Monomial, int], ...]):
        self.terms = terms
        self._hash = hash(terms)

    # -- arithmetic ------------------------------------------------------------------------------------------------
    def __add__(self, other: DimLike) -> DimLike:
        if not isinstance(other, int | Dim):
            return NotImplemented
        acc = dict(self.terms)
        for m, c in _terms(other):
            acc[m] = acc.get(m, 0) + c
        return _make(acc)

    __radd__ = __add__

    def __neg__(self) -> DimLike:
        return _make({m: -c for m, c in self.terms})

    def __sub__(self, other: DimLike) -> DimLike:
        if not isinstance(other, int | Dim):
            return NotImplemented
        return self + (-other)

    def __rsub__(self, other: DimLike) -> DimLike:
        return (-self) + other

    def __mul__(self, other: DimLike) -> DimLike:
        if not isinstance(other, int | Dim):
            return NotImplemented
        acc: dict[Monomial, int] = {}
        for m1, c1 in self.terms:
            for m2, c2 in _terms(other):
                m = _mono_mul(m1, m2)
                acc[m] = acc.get(m, 0) + c1 * c2
        return _make(acc)

    __rmul__ = __mul__

    def __pow__(self, n: int) -> DimLike:
        out: DimLike = 1
        for _ in range(n):
            out = out * self
        return out

    def __floordiv__(self, other: DimLike) -> DimLike:
        if not isinstance(other, int | Dim):
            return NotImplemented
        return floordiv(self, other)

    def __rfloordiv__(self, other: DimLike) -> DimLike:
        return floordiv(other, self)

    def __mod__(self, other: DimLike) -> DimLike:
        if not isinstance(other, int | Dim):
            return NotImplemented
        return mod(self, other)

    def __rmod__(self, other: DimLike) -> DimLike:
        return mod(other, self)

    # -- identity --------------------------------------------------------------------------------------------------
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Dim) and self.terms == other.terms

    def __hash__(self) -> int:
        return self._hash

    def __bool__(self) -> bool:
        return True

    def __repr__(self) -> str:
        return f"Dim({self})"

    def __str__(self) -> str:
        return format_dim(self)

    def __int__(self) -> int:
        raise TypeError(f"the size {self} is symbolic: it has no value until the function is called")

    __index__ = __int__

    def plain(self) -> DimLike:
        """This size as the compiler's own; a size in a user's hands (``constraints.Size``) resolves declared names."""
        return self

    @property
    def names(self) -> frozenset[str]:
        """Every name that occurs, also inside divisions."""
        return frozenset(_names(self))

    @property
    def is_name(self) -> bool:
        """True for a bare name such as ``B``."""
        return len(self.terms) == 1 and self.terms[0][1] == 1 and len(self.terms[0][0]) == 1 and \
            self.terms[0][0][0][1] == 1 and isinstance(self.terms[0][0][0][0], str)



def _terms(d: DimLike) -> Iterable[tuple[Monomial, int]]:
    if isinstance(d, int):
        return (((), d),) if d else ()
    return d.terms


def _make(acc: Mapping[Monomial, int]) -> DimLike:
    items = sorted(((m, c) for m, c in acc.items() if c), key=lambda t: _mono_key(t[0]))
    if not items:
        return 0
    if len(items) == 1 and items[0][0] == ():
        return items[0][1]
    return Dim(tuple(items))


def _mono_key(m: Monomial) -> tuple[int, str]:
    return (0 if m else 1, "*".join(_atom_key(a) * p for a, p in m))  # the constant goes last


def _names(d: DimLike) -> Iterator[str]:
    for m, _ in _terms(d):
        for atom, _p in m:
            if isinstance(atom, str):
                yield atom
            else:
                yield from _names(atom[1])
                yield from _names(atom[2])


def atom(a: Atom) -> Dim:
    return Dim(((((a, 1),), 1),))


def name(n: str) -> Dim:
    """The size called ``n``."""
    return atom(n)


_SYM = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")


def sym(names: str) -> Any:
    """``B, S = sym("B S")``: named sizes for annotations and constraints.  One name gives one ``Dim``.

    Raises:
        ValueError: a name is not an identifier.
    """
    parts = names.replace(",", " ").split()
    for p in parts:
        if not _SYM.match(p):
            raise ValueError(f"{p!r} is not a name for a size; use an identifier such as 'B' or 'seq'")
    dims = tuple(name(p) for p in parts)
    return dims[0] if len(dims) == 1 else dims


# -- division ------------------------------------------------------------------------------------------------------
def _divide_monomial(m: Monomial, c: int, dm: Monomial, dc: int) -> tuple[Monomial, int] | None:
    if c % dc:
        return None
    powers = dict(m)
    for a, p in dm:
        if powers.get(a, 0) < p:
            return None
        powers[a] -= p
    return tuple((a, powers[a]) for a, _ in m if powers[a]), c // dc


def _split(p: DimLike, d: DimLike) -> tuple[DimLike, DimLike]:
    """``p == d*q + r`` with as many terms as possible in q; only for a single-term divisor."""
    dterms = tuple(_terms(d))
    if len(dterms) != 1:
        if p == d:
            return 1, 0
        return 0, p
    dm, dc = dterms[0]
    q: dict[Monomial, int] = {}
    r: dict[Monomial, int] = {}
    for m, c in _terms(p):
        got = _divide_monomial(m, c, dm, dc)
        if got is not None:
            q[got[0]] = q.get(got[0], 0) + got[1]
        elif m == () and dm == ():
            q[()] = q.get((), 0) + c // dc  # constants split exactly: 7 == 4*1 + 3
            r[()] = r.get((), 0) + c % dc
        else:
            r[m] = r.get(m, 0) + c
    return _make(q), _make(r)


def bounds(p: DimLike, ranges: Ranges) -> tuple[DimLike | None, DimLike | None]:
    """Inclusive (low, high) of ``p`` where each name in ``ranges`` lies in [0, extent); sizes are >= 1.

    Both ends are None when they cannot be told.  Names not in ``ranges`` count as themselves (symbolic sizes).
    """
    lo: DimLike = 0
    hi: DimLike = 0
    for m, c in _terms(p):
        t_lo: DimLike = 1
        t_hi: DimLike = 1
        for a, power in m:
            a_lo: DimLike = 0
            if isinstance(a, str) and a in ranges:
                a_hi: DimLike = ranges[a] - 1
            elif isinstance(a, str):
                a_lo = a_hi = name(a)
            elif a[0] == "mod" and ((isinstance(a[2], int) and a[2] > 0) or isinstance(a[2], Dim)):
                a_hi = a[2] - 1
            elif a[0] == "floordiv":
                n_lo, n_hi = bounds(a[1], ranges)
                if n_lo is None or n_hi is None:
                    return None, None
                a_lo, a_hi = floordiv(n_lo, a[2]), floordiv(n_hi, a[2])
            else:
                return None, None
            if not known_nonnegative(a_lo):
                return None, None
            for _ in range(power):
                t_lo, t_hi = t_lo * a_lo, t_hi * a_hi
        if c > 0:
            lo, hi = lo + c * t_lo, hi + c * t_hi
        else:
            lo, hi = lo + c * t_hi, hi + c * t_lo
    return lo, hi


def known_nonnegative(d: DimLike) -> bool:
    """True when ``d >= 0`` follows from every size being >= 1 (a sufficient test)."""
    const = 0
    positive = 0
    for m, c in _terms(d):
        if m == ():
            const += c
        elif c < 0 or not all(isinstance(a, str) or _atom_nonnegative(a) for a, _ in m):
            return False
        elif all(isinstance(a, str) for a, _ in m):
            positive += c
    return positive + const >= 0


def _atom_nonnegative(a: Any) -> bool:
    """The same for a quotient, a remainder or an extremum: ``(-S)//4`` is negative, ``S//4`` is not."""
    op, x, y = a
    if op == "floordiv":
        return known_nonnegative(x) and known_nonnegative(y)
    if op == "mod":
        return known_nonnegative(y)
    both = known_nonnegative(x) and known_nonnegative(y)
    return both or (op == "max" and (known_nonnegative(x) or known_nonnegative(y)))


def known_less(a: DimLike, b: DimLike, ranges: Ranges) -> bool:
    """True when ``a < b`` is certain."""
    lo, _ = bounds(b - a - 1, ranges)
    return lo is not None and known_nonnegative(lo)


_NO_RANGES: dict[str, DimLike] = {}


def floordiv(p: DimLike, d: DimLike, ranges: Ranges = _NO_RANGES) -> DimLike:
    """``p // d`` (floor), simplified where the ranges allow: (i*4 + j)//4 -> i when 0 <= j < 4.

    Raises:
        ZeroDivisionError: the divisor is the constant 0.
    """
    if isinstance(p, int) and isinstance(d, int):
        return p // d
    if d == 0:
        raise ZeroDivisionError("division of a size by zero")
    if d == 1:
        return p
    q, r = _split(p, d)
    if r == 0:
        return q
    if q != 0 or ranges:
        lo, hi = bounds(r, ranges)
        if lo is not None and hi is not None and known_nonnegative(lo) and known_less(hi, d, {}):
            return q
    if q != 0:
        return q + atom(("floordiv", r, d))
    if isinstance(p, Dim) and len(p.terms) == 1 and p.terms[0][1] == 1 and len(p.terms[0][0]) == 1:
        a, power = p.terms[0][0][0]
        if power == 1 and not isinstance(a, str) and a[0] == "floordiv" and isinstance(d, int):
            inner = a[2] * d
            return floordiv(a[1], inner, ranges)
    return atom(("floordiv", p, d))


def mod(p: DimLike, d: DimLike, ranges: Ranges = _NO_RANGES) -> DimLike:
    """``p % d`` (sign of the divisor), simplified where the ranges allow."""
    if isinstance(p, int) and isinstance(d, int):
        return p % d
    if d == 0:
        raise ZeroDivisionError("remainder of a size by zero")
    if d == 1:
        return 0
    _, r = _split(p, d)
    if isinstance(r, int) and isinstance(d, int):
        return r % d
    if r == 0:
        return 0
    lo, hi = bounds(r, ranges)
    if lo is not None and hi is not None and known_nonnegative(lo) and known_less(hi, d, {}):
        return r
    return atom(("mod", r, d))


def _extremum(op: str, a: DimLike, b: DimLike) -> DimLike:
    if isinstance(a, int) and isinstance(b, int):
        return max(a, b) if op == "max" else min(a, b)
    if a == b:
        return a
    if known_nonnegative(a - b):
        return a if op == "max" else b
    if known_nonnegative(b - a):
        return b if op == "max" else a
    lo, hi = sorted((a, b), key=str)
    return atom((op, lo, hi))


def dim_max(a: DimLike, b: DimLike) -> DimLike:
    return _extremum("max", a, b)


def dim_min(a: DimLike, b: DimLike) -> DimLike:
    return _extremum("min", a, b)


def ceildiv(p: DimLike, d: DimLike) -> DimLike:
    return floordiv(p + d - 1, d)


def product(dims: Iterable[DimLike]) -> DimLike:
    out: DimLike = 1
    for d in dims:
        out = out * d
    return out


# -- substitution and evaluation -----------------------------------------------------------------------------------
_APPLY: dict[str, Callable[[DimLike, DimLike], DimLike]] = {
    "floordiv": floordiv, "mod": mod, "max": dim_max, "min": dim_min,
}


def substitute(d: DimLike, env: Mapping[str, DimLike], ranges: Ranges = _NO_RANGES) -> DimLike:
    """Replace names by sizes (ints or Dims); the result is canonical again."""
    if isinstance(d, int):
        return d
    out: DimLike = 0
    for m, c in d.terms:
        t: DimLike = c
        for a, p in m:
            if isinstance(a, str):
                v: DimLike = env.get(a, name(a))
            else:
                lhs, rhs = substitute(a[1], env, ranges), substitute(a[2], env, ranges)
                if a[0] in ("floordiv", "mod"):
                    v = (floordiv if a[0] == "floordiv" else mod)(lhs, rhs, ranges)
                else:
                    v = _APPLY[a[0]](lhs, rhs)
            for _ in range(p):
                t = t * v
        out = out + t
    return out


def evaluate(d: DimLike, env: Mapping[str, int]) -> int:
    """The value of ``d`` under ``env``.

    Raises:
        KeyError: a name has no value.
    """
    if isinstance(d, int):
        return d
    missing = d.names - env.keys()
    if missing:
        raise KeyError(", ".join(sorted(missing)))
    out = substitute(d, env)
    assert isinstance(out, int)
    return out


def python_expr(d: DimLike, lookup: Callable[[str], str] = lambda n: n) -> str:
    """A Python (also C-like for non-negative operands) expression for ``d``; ``lookup`` maps a name to its variable."""
    if isinstance(d, int):
        return str(d) if d >= 0 else f"({d})"

    def factor(a: Atom, p: int) -> str:
        if isinstance(a, str):
            s = lookup(a)
        else:
            x, y = python_expr(a[1], lookup), python_expr(a[2], lookup)
            s = {"floordiv": f"({x})//({y})", "mod": f"({x})%({y})"}.get(a[0]) or f"{a[0]}({x}, {y})"
            s = f"({s})"
        return "*".join([s] * p)

    parts = []
    for m, c in d.terms:
        fs = [factor(a, p) for a, p in m]
        if not fs:
            parts.append(str(c))
        else:
            body = "*".join(fs)
            parts.append(body if c == 1 else f"-{body}" if c == -1 else f"{c}*{body}")
    return " + ".join(parts).replace("+ -", "- ")


@lru_cache(maxsize=65536)
def format_dim(d: DimLike) -> str:
    """The text of a size as it stands in printed types; :func:`parse_dim` reads it back."""
    return python_expr(d).replace(" ", "")


# -- parsing -------------------------------------------------------------------------------------------------------
_SUFFIX = {"K": 2**10, "M": 2**20, "G": 2**30}
_TOKEN = re.compile(r"\s*(?:(\d+[KMG]?)(?![A-Za-z0-9_])|(\$?[A-Za-z_][A-Za-z0-9_]*|\$\d+)|(//|\*\*|[-+*%(),]))")


class _Parser:
    """Recursive descent over the tokens of one size expression."""

    def __init__(self, text: str):
        self.text, self.at = text, 0
        self.tokens: list[str] = []
        pos = 0
        while pos < len(text):
            m = _TOKEN.match(text, pos)
            if not m:
                raise ValueError(f"cannot read {text!r} as a size: unexpected {text[pos:].strip()[:8]!r}")
            self.tokens.append(m.group(1) or m.group(2) or m.group(3))
            pos = m.end()

    def peek(self) -> str:
        return self.tokens[self.at] if self.at < len(self.tokens) else ""

    def take(self, expected: str | None = None) -> str:
        t = self.peek()
        if not t or (expected is not None and t != expected):
            raise ValueError(f"cannot read {self.text!r} as a size: expected {expected or 'a value'} after "
                             f"{''.join(self.tokens[:self.at])!r}")
        self.at += 1
        return t

    def expr(self) -> DimLike:
        v = self.term()
        while self.peek() in ("+", "-"):
            v = v + self.term() if self.take() == "+" else v - self.term()
        return v

    def term(self) -> DimLike:
        v = self.power()
        while self.peek() in ("*", "//", "%"):
            op = self.take()
            rhs = self.power()
            v = v * rhs if op == "*" else floordiv(v, rhs) if op == "//" else mod(v, rhs)
        return v

    def power(self) -> DimLike:
        base = self.primary()
        if self.peek() == "**":
            self.take()
            return product([base] * int(self.take()))
        return base

    def primary(self) -> DimLike:
        t = self.take()
        if t == "(":
            v = self.expr()
            self.take(")")
            return v
        if t == "-":
            return -self.primary()
        if t[0].isdigit():
            return int(t[:-1]) * _SUFFIX[t[-1]] if t[-1] in _SUFFIX else int(t)
        if self.peek() == "(" and t in ("max", "min"):
            self.take("(")
            a = self.expr()
            self.take(",")
            b = self.expr()
            self.take(")")
            return _APPLY[t](a, b)
        if t[0].isalpha() or t[0] in "_$":
            return name(t)
        raise ValueError(f"cannot read {self.text!r} as a size: unexpected {t!r}")


def parse_dim(text: str) -> DimLike:
    """Read ``"3*D"``, ``"B*H"``, ``"128"``, ``"1M"`` (2**20), ``"(S+63)//64"``, ``"max(S,T)"``.

    Raises:
        ValueError: the text is not an arithmetic expression over names and integers.
    """
    p = _Parser(text.rstrip())
    if not p.tokens:
        raise ValueError("an empty string is not a size")
    out = p.expr()
    if p.peek():
        raise ValueError(f"cannot read {text!r} as a size: unexpected {p.peek()!r}")
    return out


def as_dim(x: object) -> DimLike:
    """An int, Dim or string as a size.

    Raises:
        TypeError, ValueError: it is none of these.
    """
    if isinstance(x, bool):
        raise TypeError("a size is an integer, not a bool")
    if isinstance(x, Dim):
        return x.plain()
    if isinstance(x, str):
        return parse_dim(x)
    if hasattr(x, "__index__"):
        return int(x)
    raise TypeError(f"a size is an integer, a name or an expression over names, not {type(x).__name__}")
