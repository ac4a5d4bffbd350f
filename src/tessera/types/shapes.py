"""Shapes: tuples of sizes; broadcasting, binding and constraints, all decided symbolically."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .dims import Dim, DimLike, as_dim, bounds, format_dim, known_nonnegative, mod, product, substitute

Shape = tuple[DimLike, ...]


class ShapeMismatch(ValueError):
    """Two shapes do not fit.  ``axis`` counts in the result; ``a`` and ``b`` are the sizes there."""

    def __init__(self, message: str, axis: int | None = None, a: DimLike | None = None, b: DimLike | None = None):
        super().__init__(message)
        self.axis, self.a, self.b = axis, a, b


def as_shape(dims: Iterable[object]) -> Shape:
    return tuple(as_dim(d) for d in dims)


def format_shape(shape: Sequence[DimLike]) -> str:
    return "[" + ", ".join(format_dim(d) for d in shape) + "]"


def is_static(shape: Iterable[DimLike]) -> bool:
    return all(isinstance(d, int) for d in shape)


def broadcast(*shapes: Sequence[DimLike]) -> Shape:
    """The NumPy broadcast of shapes; sizes are equal, or one of them is the literal 1.

    Raises:
        ShapeMismatch: naming the axis of the result and both sizes.
    """
    rank = max(map(len, shapes), default=0)
    out: list[DimLike] = []
    for axis in range(rank):
        size: DimLike = 1
        for s in shapes:
            i = axis - (rank - len(s))
            if i < 0 or s[i] == 1:
                continue
            if size != 1 and size != s[i]:
                raise ShapeMismatch(
                    f"Cannot broadcast {format_dim(size)} with {format_dim(s[i])}: "
                    f"shape mismatch in dimension {axis}: {format_dim(size)} vs {format_dim(s[i])}", axis, size, s[i])
            size = s[i]
        out.append(size)
    return tuple(out)


def normalize_axis(axis: int, rank: int) -> int:
    """A non-negative axis.

    Raises:
        IndexError: the axis does not exist.
    """
    if not -rank <= axis < rank:
        valid = f"it has axes {-rank} to {rank - 1}" if rank else "a scalar has no axes"
        raise IndexError(f"axis {axis} does not exist in a tensor of rank {rank}: {valid}")
    return axis % rank


def normalize_axes(axes: int | Sequence[int] | None, rank: int) -> tuple[int, ...]:
    """Sorted non-negative axes; None means all.

    Raises:
        IndexError: an axis does not exist.
        ValueError: an axis is named twice.
    """
    if axes is None:
        return tuple(range(rank))
    seq = (axes,) if isinstance(axes, int) else tuple(axes)
    out = tuple(sorted(normalize_axis(int(a), rank) for a in seq))
    if len(set(out)) != len(out):
        raise ValueError(f"axis {next(a for a in out if out.count(a) > 1)} is named twice in {tuple(seq)}")
    return out


def contiguous_strides(shape: Sequence[DimLike]) -> Shape:
    """Row-major strides, in elements."""
    return tuple(product(shape[i + 1:]) for i in range(len(shape)))


def unify(declared: Sequence[DimLike], actual: Sequence[DimLike], env: dict[str, Any]) -> int | None:
    """Bind the names of ``declared`` to the actual sizes (numbers or symbolic); returns the axis that does not fit, or None.

    ``env`` is updated.  Compound sizes (``3*D``) are solved when they have one unbound name with an exact solution.
    """
    pending: list[int] = []
    for axis, (d, n) in enumerate(zip(declared, actual, strict=True)):
        if isinstance(d, int):
            if d != n:
                return axis
        elif d.is_name:
            (only,) = d.names
            if env.setdefault(only, n) != n:
                return axis
        else:
            pending.append(axis)
    for axis in pending:
        d, n = declared[axis], actual[axis]
        assert isinstance(d, Dim)
        free = sorted(d.names - env.keys())
        if len(free) == 1:
            solved = _solve_linear(d, free[0], n, env)
            if solved is None:
                return axis
            env[free[0]] = solved
        if not d.names - env.keys() and substitute(d, env) != n:
            return axis
    return None


def _solve_linear(d: Dim, x: str, n: DimLike, env: Mapping[str, DimLike]) -> DimLike | None:
    known = {k: v for k, v in env.items() if k in d.names}
    at0, at1 = substitute(d, {**known, x: 0}), substitute(d, {**known, x: 1})
    slope, rest = at1 - at0, n - at0
    if slope == 0:
        return None
    q = rest // slope
    if isinstance(q, int) and q < 0:
        return None
    return q if substitute(d, {**known, x: q}) == n else None


@dataclass(frozen=True)
class Constraint:
    """A fact about sizes: ``lhs (op) rhs`` with op one of ``== != < <= > >=``; made by :func:`parse_constraint`."""

    lhs: DimLike
    op: str
    rhs: DimLike

    def decide(self, env: Mapping[str, DimLike] | None = None) -> bool | None:
        """True or False where that is certain under ``env``, else None."""
        lhs, rhs = substitute(self.lhs, env or {}), substitute(self.rhs, env or {})
        if isinstance(lhs, int) and isinstance(rhs, int):
            return bool(_COMPARE[self.op](lhs, rhs))
        if lhs == rhs:
            return self.op in ("==", "<=", ">=")
        lo, _ = bounds(lhs - rhs, {})
        if self.op in (">=",) and lo is not None and known_nonnegative(lo):
            return True
        return None

    def __str__(self) -> str:
        return f"{format_dim(self.lhs)} {self.op} {format_dim(self.rhs)}"


_COMPARE = {
    "==": lambda a, b: a == b, "!=": lambda a, b: a != b, "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b, ">": lambda a, b: a > b, ">=": lambda a, b: a >= b,
}


def parse_constraint(text: str) -> Constraint:
    """``"D % 8 == 0"`` as a Constraint.

    Raises:
        ValueError: there is no comparison in the text, or a side is not a size.
    """
    for op in ("==", "!=", "<=", ">=", "<", ">"):
        if op in text:
            lhs, rhs = text.split(op, 1)
            return Constraint(as_dim(lhs.strip()), op, as_dim(rhs.strip()))
    raise ValueError(f"{text!r} is not a constraint; write a comparison such as 'D % 8 == 0'")


def divisible(d: DimLike, n: int) -> bool:
    """True when ``d`` is certainly a multiple of ``n``."""
    return mod(d, n) == 0
