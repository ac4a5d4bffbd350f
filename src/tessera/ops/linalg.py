"""Linear algebra.

Cholesky, LU and triangular solves are Tessera tile programs; QR, SVD and the eigenvalue problems call LAPACK on the host
(``external``).  All work on the last two axes and run over the leading ones.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import ShapeError
from ..ir.core import TensorType
from ..tracing.recorder import bind
from ..types import dtypes as dt
from ..types.dims import dim_min, format_dim
from ..types.dtypes import DType
from . import batch_rules as br
from . import contraction as co
from . import indexing as ix
from . import linalg_rules as rules
from . import pointwise as pw
from . import reduction as rd
from . import shaping as sh
from .operands import as_tensor, broadcast_to, convert, promoted
from .rules import Array, accept, broadcast_shapes, equal_sizes, expect_operands, same_dtype
from .table import Attrs, Bound, primitive

Types = Sequence[TensorType]
FLOAT = (dt.f32, dt.f64)


def _size(t: TensorType) -> float:
    n = t.shape[-1]
    return float(n) if isinstance(n, int) else 1024.0


def _terms(types: Types, attrs: Attrs) -> float:
    """Backward stable algorithms: the error grows with the size, times the condition of the problem."""
    return 16.0 * _size(types[0])


def _matrix(name: str, t: TensorType, square: bool = False) -> None:
    if t.rank < 2:
        raise ShapeError(f"{name!r} takes matrices [..., M, N], not {t}")
    if square and t.shape[-1] != t.shape[-2]:
        raise ShapeError(f"{name!r} takes square matrices: Shape mismatch in dimension {t.rank - 1}: "
                         f"{format_dim(t.shape[-2])} vs {format_dim(t.shape[-1])}", received=str(t))


# -- factorisations that are tile programs -----------------------------------------------------------------------------------
def _cholesky_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("cholesky", types, 1)
    accept("cholesky", types, FLOAT)
    _matrix("cholesky", types[0], True)
    return (types[0],)


def _cholesky_reference(x: Array, checked: bool = True) -> Array:
    """Column by column; the lower triangle is read.  A matrix that is not positive definite gives NaN."""
    out = np.tril(x)
    n = x.shape[-1]
    with np.errstate(all="ignore"):
        for k in range(n):
            row = out[..., k, :k]
            pivot = out[..., k, k] - np.einsum("...i,...i->...", row, row)
            out[..., k, k] = np.sqrt(np.where(pivot > 0, pivot, np.nan))
            below = out[..., k + 1:, k] - np.einsum("...ij,...j->...i", out[..., k + 1:, :k], row)
            out[..., k + 1:, k] = below / out[..., k, k][..., None]
        broken = np.isnan(np.diagonal(out, axis1=-2, axis2=-1)).any(-1)
    return np.where(broken[..., None, None], x.dtype.type(np.nan), out)


primitive("cholesky", family="linalg", infer=_cholesky_infer, reference=_cholesky_reference, dtypes=FLOAT, template="cholesky",
          batch=br.leading,
          bound=Bound(4, _terms), jvp=rules.cholesky_jvp, vjp=rules.cholesky_back,
          doc="The lower triangular L with L L^T = x, of which the lower triangle is read; zeros above. "
          "A matrix that is not positive definite is an error of the call; unchecked, it gives NaN.", facts={"attrs": ("checked",)})


def _system(name: str, types: Types) -> Types:
    """The result type of an op that solves a x = b, for a [..., n, n] and b [..., n, k]."""
    expect_operands(name, types, 2)
    accept(name, types, FLOAT)
    same_dtype(name, types)
    a, b = types
    _matrix(name, a, True)
    _matrix(name, b)
    equal_sizes(name, (*a.shape[:-2], a.shape[-1]), (*b.shape[:-2], b.shape[-2]), str(a), str(b))
    return (b,)


def _triangular_infer(types: Types, attrs: Attrs) -> Types:
    return _system("triangular_solve", types)


def _triangular_reference(a: Array, b: Array, lower: bool = True, transpose: bool = False, unit: bool = False) -> Array:
    """Substitution row by row."""
    low = lower != transpose
    t = np.tril(a) if lower else np.triu(a)
    t = np.swapaxes(t, -1, -2) if transpose else t
    n = a.shape[-1]
    x = b.copy()
    with np.errstate(all="ignore"):
        for i in range(n) if low else reversed(range(n)):
            done = slice(0, i) if low else slice(i + 1, n)
            x[..., i, :] -= np.einsum("...k,...kj->...j", t[..., i, done], x[..., done, :])
            if not unit:
                x[..., i, :] /= t[..., i, i][..., None]
    return x


primitive("triangular_solve", family="linalg", infer=_triangular_infer, reference=_triangular_reference, dtypes=FLOAT,
          batch=br.triangular_solve,
          template="triangular_solve", bound=Bound(4, _terms), jvp=rules.triangular_jvp, vjp=rules.triangular_back,
          doc="x with op(a) x = b: a [..., n, n] is read in one triangle (``lower``), transposed on request, with ones on the "
              "diagonal if ``unit``; b is [..., n, k].", facts={"attrs": ("lower", "transpose", "unit")})


def _lu_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("lu", types, 1)
    accept("lu", types, FLOAT)
    _matrix("lu", types[0], True)
    t = types[0]
    return (t, TensorType(dt.int64, t.shape[:-1]), TensorType(t.dtype, t.shape[:-2]))


def _lu_reference(x: Array) -> tuple[Array, Array, Array]:
    """Row by row with partial pivoting: the first greatest magnitude of a column is its pivot."""
    out, n = x.copy(), x.shape[-1]
    perm = np.broadcast_to(np.arange(n), x.shape[:-1]).copy()
    sign = np.ones(x.shape[:-2], x.dtype)
    with np.errstate(all="ignore"):
        for at in np.ndindex(x.shape[:-2]):
            m, p = out[at], perm[at]
            for k in range(n):
                size = np.abs(m[k:, k])
                pivot = k + int(np.argmax(np.where(np.isnan(size), np.inf, size)))
                if pivot != k:
                    m[[k, pivot]], p[[k, pivot]], sign[at] = m[[pivot, k]], p[[pivot, k]], -sign[at]
                if m[k, k] != 0:
                    m[k + 1:, k] /= m[k, k]
                m[k + 1:, k + 1:] -= np.outer(m[k + 1:, k], m[k, k + 1:])
    return out, perm, sign


primitive("lu", family="linalg", infer=_lu_infer, reference=_lu_reference, dtypes=FLOAT, template="lu", bound=Bound(4, _terms),
          batch=br.leading,
          jvp=rules.lu_jvp, vjp=rules.lu_back,
          doc="L (below the diagonal, ones on it) and U packed in one matrix; int64 row numbers p with x[p] = L U, by partial "
              "pivoting; and the sign of p as a float.")


def _solve_infer(types: Types, attrs: Attrs) -> Types:
    return _system("solve", types)


def _solve_reference(a: Array, b: Array) -> Array:
    packed, perm, _ = _lu_reference(a)
    rows = np.take_along_axis(b, np.broadcast_to(perm[..., None], b.shape), -2)
    return _triangular_reference(packed, _triangular_reference(packed, rows, unit=True), lower=False)


def _solve_expand(a: Any, b: Any) -> Any:
    packed, perm, _ = bind("lu", a)
    return rules.lu_solve(packed, perm, b)


primitive("solve", family="linalg", infer=_solve_infer, reference=_solve_reference, dtypes=FLOAT, expand=_solve_expand,
          bound=Bound(4, _terms), jvp=rules.solve_jvp, forward=rules.solve_forward, vjp=rules.solve_back,
          doc="x with a x = b for stacks of square matrices [..., n, n] and b [..., n, k], by LU with partial pivoting.")


# -- decompositions by LAPACK ------------------------------------------------------------------------------------------------
def _batched(fn: Callable[[Array], tuple[Array, ...]], x: Array) -> tuple[Array, ...]:
    """``fn`` on a stack of matrices; one that it cannot decompose gives NaN."""
    try:
        return tuple(fn(x))
    except np.linalg.LinAlgError:
        outs = tuple(np.full_like(part, np.nan) for part in fn(np.zeros(x.shape, x.dtype)))
    for at in np.ndindex(x.shape[:-2]):
        with contextlib.suppress(np.linalg.LinAlgError):
            for out, part in zip(outs, fn(x[at]), strict=True):
                out[at] = part
    return outs


def _single(name: str, signature: str, x: Array) -> tuple[Array, ...] | None:
    """numpy's LAPACK in single precision on f32 matrices; None where there is none, or nothing to compute.

    ``np.linalg`` itself computes in f64 and rounds, which takes twice to five times as long.
    """
    loop = getattr(getattr(np.linalg, "_umath_linalg", None), name, None)
    if x.dtype != np.float32 or x.size == 0 or signature not in getattr(loop, "types", ()):
        return None
    with np.errstate(all="ignore"):  # a matrix without a decomposition gives NaN
        return tuple(loop(x, signature=signature))  # type: ignore[misc]


def _qr_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("qr", types, 1)
    accept("qr", types, FLOAT)
    _matrix("qr", types[0])
    t = types[0]
    m, n = t.shape[-2:]
    k = m if attrs["complete"] else dim_min(m, n)
    return (t.with_shape((*t.shape[:-1], k)), t.with_shape((*t.shape[:-2], k, n)))


def _svd_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("svd", types, 1)
    accept("svd", types, FLOAT)
    _matrix("svd", types[0])
    t = types[0]
    m, n = t.shape[-2:]
    k = dim_min(m, n)
    full = attrs["full"]
    return (t.with_shape((*t.shape[:-1], m if full else k)), t.with_shape((*t.shape[:-2], k)),
            t.with_shape((*t.shape[:-2], n if full else k, n)))


def _eigh_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("eigh", types, 1)
    accept("eigh", types, FLOAT)
    _matrix("eigh", types[0], True)
    return (types[0].with_shape(types[0].shape[:-1]), types[0])


def _eigh_of(x: Array) -> tuple[Array, ...]:
    return _single("eigh_lo", "f->ff", x) or tuple(np.linalg.eigh(x, "L"))


def _svd_of(x: Array, full: bool) -> tuple[Array, ...]:
    return _single("svd_f" if full else "svd_s", "f->fff", x) or tuple(np.linalg.svd(x, full))


def _complex_of(d: DType) -> DType:
    return dt.complex128 if d is dt.f64 else dt.complex64


def _eig_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("eig", types, 1)
    accept("eig", types, FLOAT)
    _matrix("eig", types[0], True)
    t = types[0].with_dtype(_complex_of(types[0].dtype))
    return (t.with_shape(t.shape[:-1]), t)


def _eig_of(x: Array) -> tuple[Array, ...]:
    w, v = np.linalg.eig(x)
    kind = np.complex128 if x.dtype == np.float64 else np.complex64
    return w.astype(kind), v.astype(kind)


primitive("qr", family="linalg", infer=_qr_infer, dtypes=FLOAT, external="lapack.geqrf", bound=Bound(4, _terms),
          batch=br.leading,
          jvp=rules.qr_jvp, vjp=rules.qr_back,
          reference=lambda x, complete: _batched(lambda a: tuple(np.linalg.qr(a, "complete" if complete else "reduced")), x),
          doc="Q with orthonormal columns and the upper triangular R with Q R = x.", facts={"attrs": ("complete",)})
primitive("svd", family="linalg", infer=_svd_infer, dtypes=FLOAT, external="lapack.gesdd", bound=Bound(4, _terms),
          batch=br.leading,
          jvp=rules.svd_jvp, vjp=rules.svd_back,
          reference=lambda x, full: _batched(lambda a: _svd_of(a, full), x),
          doc="U, the singular values in descending order, and V^T.", facts={"attrs": ("full",)})
primitive("eigh", family="linalg", infer=_eigh_infer, dtypes=FLOAT, external="lapack.syevd", bound=Bound(4, _terms),
          batch=br.leading,
          jvp=rules.eigh_jvp, vjp=rules.eigh_back,
          reference=lambda x: _batched(_eigh_of, x),
          doc="The eigenvalues of symmetric matrices (lower triangle read) in ascending order, and eigenvectors as columns.")
primitive("eig", family="linalg", infer=_eig_infer, dtypes=FLOAT, external="lapack.geev", bound=Bound(4, _terms),
          batch=br.leading,
          reference=lambda x: _batched(_eig_of, x), doc="Complex eigenvalues and eigenvectors of square matrices.",
          facts={"no_derivative": "the vectors of a matrix that is not symmetric are fixed by a convention that turns with it"})


# -- the user's functions --------------------------------------------------------------------------------------------------
def _float(x: Any) -> Any:
    """A tensor in f32 or f64."""
    x = as_tensor(x)
    return x if x.dtype in FLOAT or x.dtype.is_complex else convert(x, dt.f32)


def cholesky(x: Any, upper: bool = False) -> Any:
    """The lower triangular L with L L^T = x (or its transpose, ``upper``), for x [..., n, n], of which the lower triangle is read.

    Raises:
        NumericalError: a matrix is not positive definite (or has NaN); under ``ts.unchecked()`` it gives NaN instead.
    """
    y = bind("cholesky", _float(x))
    return sh.matrix_transpose(y) if upper else y


def solve_triangular(a: Any, b: Any, lower: bool = True, transpose: bool = False, unit_diagonal: bool = False) -> Any:
    """x with op(a) x = b for a triangular a [..., n, n] and b [..., n, k] or [n]."""
    a, b = promoted("solve_triangular", _float(a), _float(b))
    vector = len(b.type.shape) == 1
    b = sh.unsqueeze(b, -1) if vector else b
    a, b = _same_lead(a, b)
    x = bind("triangular_solve", a, b, lower=bool(lower), transpose=bool(transpose), unit=bool(unit_diagonal))
    return sh.squeeze(x, -1) if vector else x


triangular_solve = solve_triangular


def _same_lead(a: Any, b: Any) -> tuple[Any, Any]:
    """Two stacks of matrices of equally many rows with their leading axes broadcast."""
    la, lb = a.type.shape[:-2], b.type.shape[:-2]
    equal_sizes("solve", a.type.shape[-2:-1], b.type.shape[-2:-1], str(a.type), str(b.type))
    if la == lb:
        return a, b
    lead = broadcast_shapes("solve", [a.type.with_shape(la), b.type.with_shape(lb)])
    return broadcast_to(a, (*lead, *a.type.shape[-2:])), broadcast_to(b, (*lead, *b.type.shape[-2:]))


def lu(x: Any) -> tuple[Any, Any, Any]:
    """P, L, U with P L U = x."""
    packed, perm, _ = bind("lu", _float(x))
    n = packed.type.shape[-1]
    lower = pw.add(sh.tril(packed, -1), sh.eye(n, dtype=packed.dtype))
    return sh.matrix_transpose(ix.one_hot(perm, n, packed.dtype)), lower, sh.triu(packed)


def lu_factor(x: Any) -> tuple[Any, Any]:
    """L and U packed in one matrix, and int64 row numbers p with x[p] = L U."""
    packed, perm, _ = bind("lu", _float(x))
    return packed, perm


def adjoint(x: Any) -> Any:
    """The conjugate transpose of the last two axes."""
    return pw.conj(sh.matrix_transpose(as_tensor(x)))


def solve(a: Any, b: Any) -> Any:
    """x with a x = b, for b [..., n, k] or [n]; by LU with partial pivoting.  A singular matrix gives inf or NaN."""
    a, b = promoted("solve", _float(a), _float(b))
    vector = len(b.type.shape) == 1
    b = sh.unsqueeze(b, -1) if vector else b
    a, b = _same_lead(a, b)
    x = bind("solve", a, b)
    return sh.squeeze(x, -1) if vector else x


def inv(x: Any) -> Any:
    """The inverse of square matrices; a singular one gives inf or NaN."""
    x = _float(x)
    n = x.type.shape[-1]
    return solve(x, broadcast_to(sh.eye(n, dtype=x.dtype), x.type.shape))


def _diagonal(x: Any) -> Any:
    return co.diagonal(x, -2, -1)


def det(x: Any) -> Any:
    """The determinant of square matrices."""
    packed, _, sign = bind("lu", _float(x))
    return pw.mul(rd.prod(_diagonal(packed), -1), sign)


def slogdet(x: Any) -> tuple[Any, Any]:
    """The sign and the logarithm of the magnitude of the determinant."""
    packed, _, sign = bind("lu", _float(x))
    d = _diagonal(packed)
    return pw.mul(rd.prod(pw.sign(d), -1), sign), rd.sum(pw.log(pw.abs(d)), -1)


def qr(x: Any, mode: str = "reduced") -> tuple[Any, Any]:
    """Q with orthonormal columns and the upper triangular R with Q R = x; ``mode`` "reduced" or "complete"."""
    if mode not in ("reduced", "complete"):
        raise ValueError(f"qr's mode is 'reduced' or 'complete', not {mode!r}")
    q, r = bind("qr", _float(x), complete=mode == "complete")
    return q, r


def svd(x: Any, full_matrices: bool = True, compute_uv: bool = True) -> Any:
    """U, singular values in descending order, and V^T with U diag(s) V^T = x; without ``compute_uv`` the values alone."""
    u, s, vt = bind("svd", _float(x), full=bool(full_matrices and compute_uv))
    return (u, s, vt) if compute_uv else s


def svdvals(x: Any) -> Any:
    """The singular values in descending order."""
    return svd(x, compute_uv=False)


def eigh(x: Any) -> tuple[Any, Any]:
    """The eigenvalues of symmetric matrices in ascending order, and eigenvectors as columns; the lower triangle is read."""
    w, v = bind("eigh", _float(x))
    return w, v


def eigvalsh(x: Any) -> Any:
    """The eigenvalues of symmetric matrices in ascending order."""
    return eigh(x)[0]


def eig(x: Any) -> tuple[Any, Any]:
    """Complex eigenvalues of square matrices, and eigenvectors as columns."""
    w, v = bind("eig", _float(x))
    return w, v


def pinv(x: Any, rcond: float | None = None) -> Any:
    """The pseudo-inverse; singular values up to ``rcond`` times the greatest count as zero."""
    x = _float(x)
    u, s, vt = svd(x, full_matrices=False)
    cut = pw.mul(rd.max(s, -1, True), _cutoff(x, rcond))
    weight = pw.where(pw.gt(s, cut), pw.div(1.0, pw.where(pw.gt(s, cut), s, 1.0)), 0.0)
    return co.matmul(pw.mul(sh.matrix_transpose(vt), sh.unsqueeze(weight, -2)), sh.matrix_transpose(u))


def _cutoff(x: Any, rcond: float | None) -> float:
    if rcond is not None:
        return rcond
    m, n = (d if isinstance(d, int) else 1024 for d in x.type.shape[-2:])
    return float(x.dtype.finfo.eps) * max(m, n)


def matrix_rank(x: Any, rcond: float | None = None) -> Any:
    """How many singular values exceed ``rcond`` times the greatest, as int64."""
    x = _float(x)
    s = svdvals(x)
    return rd.sum(pw.gt(s, pw.mul(rd.max(s, -1, True), _cutoff(x, rcond))), -1)


def lstsq(a: Any, b: Any) -> Any:
    """x that minimises |a x - b|, of the least norm; by the pseudo-inverse."""
    return co.matmul(pinv(a), b)


def matrix_power(x: Any, n: int) -> Any:
    """The n-th power of square matrices; negative powers go through the inverse."""
    x = as_tensor(x)
    if n < 0:
        x, n = inv(x), -n
    result: Any = None
    while n:
        if n & 1:
            result = x if result is None else co.matmul(result, x)
        x, n = (co.matmul(x, x), n >> 1) if n > 1 else (x, 0)
    return broadcast_to(sh.eye(x.type.shape[-1], dtype=x.dtype), x.type.shape) if result is None else result


def matrix_norm(x: Any, ord: Any = "fro", keepdims: bool = False) -> Any:
    """The norm of matrices: "fro", "nuc", 1, -1, 2, -2, inf or -inf."""
    x = _float(x)
    if ord == "fro":
        return rd.norm(x, 2, (-2, -1), keepdims)
    if ord in ("nuc", 2, -2):
        s = svdvals(x)
        out = rd.sum(s, -1) if ord == "nuc" else rd.max(s, -1) if ord == 2 else rd.min(s, -1)
    elif ord in (1, -1, float("inf"), float("-inf")):
        sums = rd.sum(pw.abs(x), -2 if ord in (1, -1) else -1)
        out = rd.max(sums, -1) if ord > 0 else rd.min(sums, -1)
    else:
        raise ValueError(f"matrix_norm knows 'fro', 'nuc', 1, -1, 2, -2, inf and -inf, not {ord!r}")
    return sh.unsqueeze(out, (-2, -1)) if keepdims else out
