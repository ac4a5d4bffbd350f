"""Derivatives of factorisations, attached to the stanzas of ``linalg.py``.

Every rule is written for stacks of matrices.  A matrix of which one triangle is read has a cotangent in that triangle alone.
Factors that values alone do not fix (the further columns of a complete Q or a full U) have no derivative, and vectors of
equal singular values or eigenvalues are taken as if they did not turn into each other.

Sources: Giles, "Collected matrix derivative results" (2008); Murray, "Differentiation of the Cholesky decomposition" (2016);
Seeger et al., "Auto-differentiating linear algebra" (2017); Townsend, "Differentiating the singular value decomposition" (2016).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import UnsupportedError
from ..tracing.recorder import bind
from ..types.dims import DimLike, format_dim, known_less
from . import contraction as co
from . import pointwise as pw
from . import reduction as rd
from . import shaping as sh
from .derivatives import Tangent, kept, onward, plus, reverse, stretched
from .operands import broadcast_to
from .table import Applied

_t = sh.matrix_transpose
_matmul = co.matmul


def _tril(x: Any, k: int = 0) -> Any:
    return sh.tril(x, k)


def _triu(x: Any, k: int = 0) -> Any:
    return sh.triu(x, k)


def _on_diagonal(x: Any) -> Any:
    """A bool matrix of the last two axes, true on the diagonal, in the shape of ``x``."""
    square = x.type.shape[-2:]
    return broadcast_to(pw.eq(sh.iota(square, 0), sh.iota(square, 1)), x.type.shape)


def _half(x: Any) -> Any:
    """The lower triangle with half the diagonal: the map and its transpose in Murray's notation."""
    low = _tril(x)
    return bind("select", _on_diagonal(x), pw.mul(low, 0.5), low)


def _diagonal(x: Any) -> Any:
    return rd.sum(kept(_on_diagonal(x), x), -1)


def _lower_part(g: Any) -> Any:
    """The cotangent of the triangle that is read, from that of the symmetric matrix it stands for."""
    return pw.add(_tril(g), _tril(_t(g), -1))


def _symmetric(t: Any) -> Any:
    """The symmetric matrix that a lower triangle stands for."""
    return pw.add(_tril(t), _t(_tril(t, -1)))


def _left(a: Any, b: Any, lower: bool, transpose: bool = False, unit: bool = False) -> Any:
    """op(a)^-1 b."""
    return bind("triangular_solve", a, b, lower=lower, transpose=transpose, unit=unit)


def _right(b: Any, a: Any, lower: bool, transpose: bool = False, unit: bool = False) -> Any:
    """b op(a)^-1."""
    return _t(_left(a, _t(b), lower, not transpose, unit))


# -- Cholesky -----------------------------------------------------------------------------------------------------------------
def _cholesky_jvp(x: Applied, t: Any) -> Any:
    factor = x.out
    return _matmul(factor, _half(_right(_left(factor, _symmetric(t), True), factor, True, True)))


def _cholesky_back(x: Applied, g: Any) -> Any:
    factor = x.out
    inner = _half(_matmul(_t(factor), _tril(g)))
    return _lower_part(_right(_left(factor, inner, True, True), factor, True))


cholesky_jvp, cholesky_back = onward(_cholesky_jvp), reverse(_cholesky_back)


# -- triangular systems ---------------------------------------------------------------------------------------------------------
def _triangle(x: Applied, m: Any) -> Any:
    """What the solve reads of ``a``: a triangle, without the diagonal where that is taken as ones."""
    cut = 1 if x.attrs.get("unit", False) else 0
    return _tril(m, -cut) if x.attrs.get("lower", True) else _triu(m, cut)


def triangular_jvp(x: Applied, ts: Sequence[Tangent]) -> list[Tangent]:
    a, out = x.operands[0], x.out
    b = ts[1]
    if ts[0] is not None:
        moved = _triangle(x, ts[0])
        moved = _matmul(_t(moved) if x.attrs.get("transpose", False) else moved, out)
        b = pw.neg(moved) if b is None else pw.sub(b, moved)
    return [None if b is None else bind("triangular_solve", a, b, **x.attrs)]


def triangular_back(x: Applied, gs: Sequence[Tangent]) -> list[Tangent]:
    turned = bool(x.attrs.get("transpose", False))
    b = bind("triangular_solve", x.operands[0], gs[0], **{**x.attrs, "transpose": not turned})
    if not x.wanted[0]:
        return [None, b]
    of_a = _matmul(x.out, _t(b)) if turned else _matmul(b, _t(x.out))
    return [pw.neg(_triangle(x, of_a)), b if x.wanted[1] else None]


# -- LU and general systems -------------------------------------------------------------------------------------------------------
def rows_in_order(x: Any, perm: Any) -> Any:
    """The rows of matrices in the order that ``perm`` [..., n] gives."""
    return bind("take_along_axis", x, broadcast_to(sh.unsqueeze(perm, -1), x.type.shape), axis=x.type.rank - 2, checked=False)


def rows_back(x: Any, perm: Any) -> Any:
    """The inverse of :func:`rows_in_order`."""
    return rows_in_order(x, bind("argsort", perm, axis=perm.type.rank - 1))


def lu_jvp(x: Applied, ts: Sequence[Tangent]) -> list[Tangent]:
    """x[p] = L U: with M = L^-1 x'[p] U^-1, L' = L tril(M, -1) and U' = triu(M) U.  The permutation and its sign stay."""
    packed, perm, _ = x.results
    inner = _right(_left(packed, rows_in_order(ts[0], perm), True, unit=True), packed, False)
    low, up = _tril(inner, -1), _triu(inner)
    # L = I + strict, so L low = low + strict low
    return [pw.add(pw.add(low, _matmul(_tril(packed, -1), low)), _matmul(up, _triu(packed))), None, None]


def lu_back(x: Applied, gs: Sequence[Tangent]) -> list[Tangent]:
    packed, perm, _ = x.results
    if gs[0] is None:
        return [None]
    low, up = _tril(gs[0], -1), _triu(gs[0])
    of_low = _tril(pw.add(low, _matmul(_t(_tril(packed, -1)), low)), -1)
    inner = pw.add(of_low, _triu(_matmul(up, _t(_triu(packed)))))
    return [rows_back(_right(_left(packed, inner, True, True, True), packed, False, True), perm)]


def lu_solve(packed: Any, perm: Any, b: Any) -> Any:
    """a^-1 b by the factors of a."""
    return _left(packed, _left(packed, rows_in_order(b, perm), True, unit=True), False)


def lu_solve_transposed(packed: Any, perm: Any, b: Any) -> Any:
    """a^-T b by the factors of a."""
    return rows_back(_left(packed, _left(packed, b, False, True), True, True, True), perm)


def solve_forward(x: Applied) -> tuple[list[Any], Any]:
    """The factors of the matrix are kept for the transposed system of the reverse pass."""
    packed, perm, _ = bind("lu", x.operands[0])
    return [lu_solve(packed, perm, x.operands[1])], (packed, perm)


def solve_jvp(x: Applied, ts: Sequence[Tangent]) -> list[Tangent]:
    a, b = x.operands[0], ts[1]
    if ts[0] is not None:
        moved = _matmul(ts[0], x.out)
        b = pw.neg(moved) if b is None else pw.sub(b, moved)
    return [None if b is None else bind("solve", a, b)]


def solve_back(x: Applied, gs: Sequence[Tangent]) -> list[Tangent]:
    packed, perm = x.residuals
    b = lu_solve_transposed(packed, perm, gs[0])
    return [pw.neg(_matmul(b, _t(x.out))) if x.wanted[0] else None, b if x.wanted[1] else None]


# -- QR ---------------------------------------------------------------------------------------------------------------------------
def _tall(x: Applied) -> bool:
    """Whether the matrices have at least as many rows as columns.

    Raises:
        UnsupportedError: that is not known, or Q has columns that the operand does not fix.
    """
    m, n = x.operands[0].type.shape[-2:]
    tall, wide = known_less(n, _more(m), {}), known_less(m, _more(n), {})
    if not tall and not wide:
        raise UnsupportedError(f"the derivative of 'qr' needs to know which of {format_dim(m)} and {format_dim(n)} is greater",
                               received=str(x.operands[0].type), hints=["Declare one of the two sizes with a number"])
    if x.attrs["complete"] and not wide:
        raise UnsupportedError("a complete QR of matrices with more rows than columns has no derivative",
                               received=str(x.operands[0].type),
                               sentence="The further columns of Q are any orthonormal ones: the operand does not fix them.",
                               hints=["Use mode='reduced'"])
    return tall


def _more(n: DimLike) -> DimLike:
    return n + 1


def _columns(x: Any, start: DimLike, limit: DimLike) -> Any:
    return sh.slice_axis(x, x.type.rank - 1, start, limit)


def _tall_qr_jvp(q: Any, r: Any, t: Any) -> tuple[Any, Any]:
    scaled = _right(t, r, False)
    inner = _matmul(_t(q), scaled)
    low = _tril(inner, -1)
    turn = pw.sub(low, _t(low))
    return pw.add(_matmul(q, pw.sub(turn, inner)), scaled), _matmul(pw.sub(inner, turn), r)


def qr_jvp(x: Applied, ts: Sequence[Tangent]) -> list[Tangent]:
    q, r = x.results
    if _tall(x):
        return list(_tall_qr_jvp(q, r, ts[0]))
    m, n = x.operands[0].type.shape[-2:]
    turned, first = _tall_qr_jvp(q, _columns(r, 0, m), _columns(ts[0], 0, m))
    rest = pw.add(_matmul(_t(turned), _columns(x.operands[0], m, n)), _matmul(_t(q), _columns(ts[0], m, n)))
    return [turned, sh.concat([first, rest], -1)]


def _tall_qr_back(q: Any, r: Any, gq: Tangent, gr: Tangent) -> Any:
    """(gQ + Q copyltu(R gR^T - gQ^T Q)) R^-T."""
    inner = plus(None if gr is None else _matmul(r, _t(_triu(gr))), None if gq is None else pw.neg(_matmul(_t(gq), q)))
    both = pw.add(_tril(inner), _t(_tril(inner, -1)))
    return _right(plus(gq, _matmul(q, both)), r, False, True)


def qr_back(x: Applied, gs: Sequence[Tangent]) -> list[Tangent]:
    q, r = x.results
    if _tall(x):
        return [_tall_qr_back(q, r, *gs)]
    m, n = x.operands[0].type.shape[-2:]
    gq, gr = gs
    first = None if gr is None else _columns(gr, 0, m)
    if gr is not None:
        rest = _columns(gr, m, n)
        gq = plus(gq, _matmul(_columns(x.operands[0], m, n), _t(rest)))
        right = _matmul(q, rest)
    else:
        right = broadcast_to(sh.full((), 0.0, q.dtype), (*q.type.shape[:-1], n - m))
    return [sh.concat([_tall_qr_back(q, _columns(r, 0, m), gq, first), right], -1)]


# -- singular values and eigenvalues ------------------------------------------------------------------------------------------------
def _gaps(values: Any) -> Any:
    """1 / (v[j] - v[i]) at (i, j), 0 where they are equal."""
    gap = pw.sub(sh.unsqueeze(values, -2), sh.unsqueeze(values, -1))
    same = pw.eq(gap, 0)
    return kept(pw.logical_not(same), pw.div(1, pw.where(same, 1, gap)))


def _inverse(s: Any) -> Any:
    zero = pw.eq(s, 0)
    return kept(pw.logical_not(zero), pw.div(1, pw.where(zero, 1, s)))


def _beside(x: Any, basis: Any) -> Any:
    """(I - B B^T) x for a basis with orthonormal columns."""
    return pw.sub(x, _matmul(basis, _matmul(_t(basis), x)))


def _fixed(x: Applied) -> None:
    """Refuse full factors with vectors that the operand does not fix.

    Raises:
        UnsupportedError: U or V has further columns.
    """
    m, n = x.operands[0].type.shape[-2:]
    if x.attrs["full"] and m != n:
        raise UnsupportedError("the full singular value decomposition of matrices that are not square has no derivative",
                               received=str(x.operands[0].type),
                               sentence="The further singular vectors are any orthonormal ones: the operand does not fix them.",
                               hints=["Use full_matrices=False"])


def svd_jvp(x: Applied, ts: Sequence[Tangent]) -> list[Tangent]:
    _fixed(x)
    u, s, vt = x.results
    t = ts[0]
    inner = _matmul(_matmul(_t(u), t), _t(vt))
    row, column = sh.unsqueeze(s, -2), sh.unsqueeze(s, -1)
    gaps, inverse = _gaps(pw.square(s)), sh.unsqueeze(_inverse(s), -2)
    turn_u = pw.mul(gaps, pw.add(pw.mul(inner, row), pw.mul(column, _t(inner))))
    turn_v = pw.mul(gaps, pw.add(pw.mul(column, inner), pw.mul(_t(inner), row)))
    v = _t(vt)
    du = pw.add(_matmul(u, turn_u), pw.mul(_beside(_matmul(t, v), u), inverse))
    dv = pw.add(_matmul(v, turn_v), pw.mul(_beside(_matmul(_t(t), u), v), inverse))
    return [du, _diagonal(inner), _t(dv)]


def svd_back(x: Applied, gs: Sequence[Tangent]) -> list[Tangent]:
    """Without cotangents of the vectors nothing is divided by: the values' alone are good for equal ones too."""
    _fixed(x)
    u, s, vt = x.results
    gu, gsv, gvt = gs
    row, column = sh.unsqueeze(s, -2), sh.unsqueeze(s, -1)
    inner = None if gsv is None else kept(_on_diagonal_of(s), _repeated(gsv))
    outside = None
    if gu is not None or gvt is not None:
        gaps, inverse = _gaps(pw.square(s)), sh.unsqueeze(_inverse(s), -2)
    if gu is not None:
        turn = pw.mul(gaps, _matmul(_t(u), gu))
        inner = plus(inner, pw.mul(pw.add(turn, _t(turn)), row))
        outside = _matmul(pw.mul(_beside(gu, u), inverse), vt)
    if gvt is not None:
        gv = _t(gvt)
        turn = pw.mul(gaps, _matmul(vt, gv))
        inner = plus(inner, pw.mul(column, pw.add(turn, _t(turn))))
        outside = plus(outside, _matmul(u, _t(pw.mul(_beside(gv, _t(vt)), inverse))))
    return [plus(_matmul(_matmul(u, inner), vt), outside)]


def _repeated(v: Any) -> Any:
    """[..., n] repeated to [..., n, n]: element (i, j) is v[j]."""
    return stretched(v, (v.type.rank - 1,), (*v.type.shape, v.type.shape[-1]))


def _on_diagonal_of(v: Any) -> Any:
    return _on_diagonal(_repeated(v))


def eigh_jvp(x: Applied, ts: Sequence[Tangent]) -> list[Tangent]:
    w, v = x.results
    inner = _matmul(_matmul(_t(v), _symmetric(ts[0])), v)
    return [_diagonal(inner), _matmul(v, pw.mul(_gaps(w), inner))]


def eigh_back(x: Applied, gs: Sequence[Tangent]) -> list[Tangent]:
    w, v = x.results
    gw, gv = gs
    inner = plus(None if gw is None else kept(_on_diagonal_of(w), _repeated(gw)),
                 None if gv is None else pw.mul(_gaps(w), _matmul(_t(v), gv)))
    return [_lower_part(_matmul(_matmul(v, inner), _t(v)))]
