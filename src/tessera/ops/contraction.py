"""Products: ``dot_general`` and what users write on it (matmul, dot, einsum, tensordot, outer, linear)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import ShapeError
from ..ir.core import Op, TensorType, Value
from ..tracing.recorder import bind
from ..tracing.tensor import Tensor
from ..types import dtypes as dt
from ..types.dims import DimLike, format_dim, product
from ..types.dtypes import DType, as_dtype
from ..types.promotion import accumulator
from ..types.shapes import ShapeMismatch, broadcast
from . import batch_rules as br
from . import pointwise as pw
from . import reduction as rd
from . import shaping as sh
from .derivatives import again, plus
from .operands import as_tensor, axis_of, broadcast_to, convert, promoted
from .rules import COMPLEX, LOW, REAL, Array, accept, check_axis, expect_operands, same_dtype
from .table import Applied, Attrs, Bound, ElementBuilder, primitive

Types = Sequence[TensorType]
Axes = tuple[int, ...]


# -- dot_general ---------------------------------------------------------------------------------------------------------
def dot_axes(types: Types, attrs: Attrs) -> tuple[Axes, Axes]:
    """The free axes of both operands, in order."""
    left = set(attrs["lhs_contract"]) | set(attrs["lhs_batch"])
    right = set(attrs["rhs_contract"]) | set(attrs["rhs_batch"])
    return (tuple(i for i in range(types[0].rank) if i not in left),
            tuple(i for i in range(types[1].rank) if i not in right))


def dot_accumulate(types: Types, attrs: Attrs) -> DType:
    """The dtype in which products are summed: the attribute's, else f32 for small floats, else the operands' own."""
    chosen: DType | None = attrs.get("accumulate")
    if chosen is not None:
        return chosen
    out = attrs.get("dtype") or types[0].dtype
    return accumulator(types[0].dtype) if types[0].dtype.is_float else out


def _dot_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("dot_general", types, 2)
    accept("dot_general", types, REAL + COMPLEX)
    kind = same_dtype("dot_general", types)
    x, y = types
    for what in ("contract", "batch"):
        left, right = attrs[f"lhs_{what}"], attrs[f"rhs_{what}"]
        if len(left) != len(right):
            raise ShapeError(f"'dot_general' pairs {len(left)} with {len(right)} {what} axes")
        for a, b in zip(left, right, strict=True):
            check_axis("dot_general", a, x.rank)
            check_axis("dot_general", b, y.rank)
            if x.shape[a] != y.shape[b]:
                raise ShapeError(
                    f"Shape mismatch in dimension {a}: {format_dim(x.shape[a])} vs {format_dim(y.shape[b])}",
                    expected=f"{format_dim(x.shape[a])} in dimension {b} of the second operand", received=str(y),
                    sentence=f"The product of {x} and {y} pairs dimension {a} of the first operand with dimension {b} of "
                             "the second.", hints=["Transpose or reshape one operand so that the paired sizes are equal"])
    free_x, free_y = dot_axes(types, attrs)
    if len(free_x) + len(attrs["lhs_batch"]) + len(attrs["lhs_contract"]) != x.rank or \
            len(free_y) + len(attrs["rhs_batch"]) + len(attrs["rhs_contract"]) != y.rank:
        raise ShapeError("'dot_general' names an axis twice")
    shape = [x.shape[a] for a in (*attrs["lhs_batch"], *free_x)] + [y.shape[b] for b in free_y]
    return (TensorType(attrs.get("dtype") or kind, tuple(shape)),)


def _dot_reference(x: Array, y: Array, lhs_contract: Any, rhs_contract: Any, lhs_batch: Any, rhs_batch: Any,
                   accumulate: DType | None = None, dtype: DType | None = None, schedule: Any = None) -> Array:
    free_x = [i for i in range(x.ndim) if i not in (*lhs_contract, *lhs_batch)]
    free_y = [i for i in range(y.ndim) if i not in (*rhs_contract, *rhs_batch)]
    out = dtype.np if dtype is not None else x.dtype
    wide = accumulate.np if accumulate is not None else np.dtype(np.float32) if x.dtype in LOW else \
        np.promote_types(x.dtype, out) if x.dtype.kind not in "biu" else out
    batch = [x.shape[a] for a in lhs_batch]
    inner = int(np.prod([x.shape[a] for a in lhs_contract], dtype=np.int64))
    rows, cols = [x.shape[a] for a in free_x], [y.shape[b] for b in free_y]
    left = np.transpose(x, (*lhs_batch, *free_x, *lhs_contract)).astype(wide)
    right = np.transpose(y, (*rhs_batch, *rhs_contract, *free_y)).astype(wide)
    left = left.reshape([*batch, int(np.prod(rows, dtype=np.int64)), inner])
    right = right.reshape([*batch, inner, int(np.prod(cols, dtype=np.int64))])
    with np.errstate(all="ignore"):
        return np.asarray(np.matmul(left, right).reshape([*batch, *rows, *cols]).astype(out))


def _dot_element(e: ElementBuilder, op: Op, index: Sequence[DimLike], r: int) -> Value:
    types = [v.type for v in op.operands]
    x, y = types
    free_x, free_y = dot_axes(types, op.attrs)
    run_in, out = dot_accumulate(types, op.attrs), op.results[0].type.dtype
    nb = len(op.attrs["lhs_batch"])

    def place(rank: int, batch: Axes, contract: Axes, free: Axes, own: Sequence[DimLike], inner: Sequence[DimLike]
              ) -> list[DimLike]:
        at: list[DimLike] = [0] * rank
        for axes, values in ((batch, index[:nb]), (contract, inner), (free, own)):
            for a, v in zip(axes, values, strict=True):
                at[a] = v
        return at

    def make(inner: Sequence[DimLike]) -> Value:
        a = e.operand(0, place(x.rank, op.attrs["lhs_batch"], op.attrs["lhs_contract"], free_x,
                               index[nb:nb + len(free_x)], inner))
        b = e.operand(1, place(y.rank, op.attrs["rhs_batch"], op.attrs["rhs_contract"], free_y,
                               index[nb + len(free_x):], inner))
        if run_in is not x.dtype:
            a, b = e.emit("convert", a, dtype=run_in), e.emit("convert", b, dtype=run_in)
        return e.emit("mul", a, b, dtype=run_in)

    total = e.reduce("add", [x.shape[a] for a in op.attrs["lhs_contract"]], make) if op.attrs["lhs_contract"] else make([])
    return total if run_in is out else e.emit("convert", total, dtype=out)


def _dot_terms(types: Types, attrs: Attrs) -> float:
    n = product(types[0].shape[a] for a in attrs["lhs_contract"])
    return float(n) + 1 if isinstance(n, int) else 1024.0


def meet(g: Any, other: Any, into: DType) -> tuple[Any, Any, dict[str, Any]]:
    """A cotangent and the other operand in one dtype, and the attributes that make their product one of ``into``.

    A wider cotangent of bf16 operands is rounded to bf16, which has its range; other operands are widened to it.
    """
    if g.dtype is other.dtype:
        return g, other, {} if other.dtype is into else {"dtype": into}
    if other.dtype is dt.bf16 and g.dtype.is_float:
        return convert(g, dt.bf16), other, {} if into is dt.bf16 else {"dtype": into}
    wide = g.dtype if g.dtype.bits > other.dtype.bits else other.dtype
    return convert(g, wide), convert(other, wide), {"dtype": into}


def _dot_cotangent(x: Applied, g: Any, side: int) -> Any:
    """The cotangent of operand ``side``: the product of the result's and the other operand over the other's free axes.

    Of the two orders of that product the one is taken whose result lies like the operand: it is transposed only where
    neither does, and the matrix products are the fast ones in every layout.
    """
    types, names = [v.type for v in x.operands], ("lhs", "rhs")
    free = dot_axes(types, x.attrs)
    mine, theirs = names[side], names[1 - side]
    batch, contract = x.attrs[f"{mine}_batch"], x.attrs[f"{mine}_contract"]
    their_batch, their_contract = x.attrs[f"{theirs}_batch"], x.attrs[f"{theirs}_contract"]
    nb, n = len(batch), len(free[0])
    of_g = (tuple(range(nb, nb + n)), tuple(range(nb + n, nb + n + len(free[1]))))
    # what remains of the other operand are its contracted axes, in its order: my axes that they are paired with
    partner = dict(zip(their_contract, contract, strict=True))
    rest = tuple(partner[a] for a in sorted(their_contract))
    first = not rest or not free[side] or min(free[side]) < min(rest)
    g, other, attrs = meet(g, x.operands[1 - side], types[side].dtype)
    if "accumulate" in x.attrs:
        attrs["accumulate"] = x.attrs["accumulate"]
    pairs = (of_g[1 - side], free[1 - side]), (tuple(range(nb)), tuple(their_batch))
    if first:
        out, order = dot_general(g, other, pairs[0], pairs[1], **attrs), (*batch, *free[side], *rest)
    else:
        out, order = dot_general(other, g, pairs[0][::-1], pairs[1][::-1], **attrs), (*batch, *rest, *free[side])
    perm = tuple(order.index(i) for i in range(len(order)))
    return out if perm == tuple(range(len(perm))) else bind("transpose", out, perm=perm)


def _dot_vjp(x: Applied, gs: Sequence[Any]) -> list[Any]:
    return [_dot_cotangent(x, gs[0], side) if wanted else None for side, wanted in enumerate(x.wanted)]


def product_jvp(x: Applied, ts: Sequence[Any]) -> list[Any]:
    """The product rule of an op that is linear in each of two operands."""
    a, b = x.operands
    return [plus(None if ts[0] is None else again(x, ts[0], b), None if ts[1] is None else again(x, a, ts[1]))]


primitive("dot_general", family="contraction", infer=_dot_infer, reference=_dot_reference, dtypes=REAL + COMPLEX,
          batch=br.dot_general,
          bound=Bound(1, _dot_terms), element=_dot_element, template="matmul", jvp=product_jvp, vjp=_dot_vjp,
          doc="Products of paired batch axes, summed over paired contract axes: result axes are batch, free of the first, "
              "free of the second.  Sums run in ``accumulate``; ``dtype`` is the result's; ``schedule`` holds decisions for its kernel.",
          facts={"prefer": "template", "attrs": ("lhs_contract", "rhs_contract", "lhs_batch", "rhs_batch", "accumulate",
                                               "dtype")})


def dot_general(x: Any, y: Any, contract: tuple[Axes, Axes], batch: tuple[Axes, Axes] = ((), ()), accumulate: Any = None,
                dtype: Any = None) -> Any:
    """The general product of two tensors of one dtype; see the primitive."""
    attrs: dict[str, Any] = {}
    if accumulate is not None:
        attrs["accumulate"] = as_dtype(accumulate)
    if dtype is not None:
        attrs["dtype"] = as_dtype(dtype)
    return bind("dot_general", x, y, lhs_contract=tuple(contract[0]), rhs_contract=tuple(contract[1]),
                lhs_batch=tuple(batch[0]), rhs_batch=tuple(batch[1]), **attrs)


# -- the user's functions --------------------------------------------------------------------------------------------------
def matmul(x: Any, y: Any, accumulate: Any = None, dtype: Any = None) -> Any:
    """The matrix product by NumPy's rule: vectors lose their axis, leading axes broadcast.

    Args:
        accumulate: the dtype in which products are summed (f32 for 16-bit and smaller floats); or a tensor, into which the product
            is then written.
        dtype: the result's dtype (the promoted one).

    Raises:
        ShapeError: "Shape mismatch in dimension 1: S vs K", or a scalar operand.
    """
    if isinstance(accumulate, Tensor):  # the three-operand form writes its third operand, and returns it
        accumulate[...] = matmul(x, y, dtype=accumulate.dtype if dtype is None else dtype)
        return accumulate
    x, y = promoted("matmul", x, y)
    xs, ys = x.type.shape, y.type.shape
    if not xs or not ys:
        raise ShapeError("matmul needs tensors with at least one axis", received=f"{x.type} @ {y.type}",
                         hints=["Multiply by a scalar with *"])
    cx, cy = len(xs) - 1, max(len(ys) - 2, 0)
    if xs[cx] != ys[cy]:
        raise ShapeError(
            f"Shape mismatch in dimension {cx}: {format_dim(xs[cx])} vs {format_dim(ys[cy])}",
            expected=f"{format_dim(xs[cx])} in dimension {cy} of the second operand", received=f"{x.type} @ {y.type}",
            sentence=f"A matrix product pairs dimension {cx} of the first operand with dimension {cy} of the second.",
            hints=["Transpose the second operand: x @ y.mT", "Project the first operand to the expected size"])
    if len(ys) <= 2 or len(xs) == 1:
        return dot_general(x, y, ((cx,), (cy,)), accumulate=accumulate, dtype=dtype)
    try:
        lead = broadcast(xs[:-2], ys[:-2])
    except ShapeMismatch as e:
        raise ShapeError(str(e), received=f"{x.type} @ {y.type}", sentence="The leading axes of a matrix product broadcast.",
                         hints=["Reshape so that the leading axes agree"]) from None
    if len(xs) == 2 or all(n == 1 for n in xs[:-2]):
        return _matrix_times_batch(x, y, lead, accumulate, dtype)
    x, y = broadcast_to(x, (*lead, *xs[-2:])), broadcast_to(y, (*lead, *ys[-2:]))
    n = len(lead)
    axes = tuple(range(n))
    return dot_general(x, y, ((n + 1,), (n,)), (axes, axes), accumulate, dtype)


def _matrix_times_batch(x: Any, y: Any, lead: tuple[DimLike, ...], accumulate: Any, dtype: Any) -> Any:
    """One matrix with a batch of them: the matrix is not repeated, the result's axes are put in order instead."""
    if len(x.type.shape) > 2:
        x = sh.reshape(x, x.type.shape[-2:])
    y = broadcast_to(y, (*lead, *y.type.shape[-2:]))
    out = dot_general(x, y, ((1,), (len(lead),)), accumulate=accumulate, dtype=dtype)  # [m, *lead, n]
    return sh.permute(out, (*range(1, len(lead) + 1), 0, len(lead) + 1))


def dot(x: Any, y: Any) -> Any:
    """NumPy's ``dot``: :func:`matmul` for up to two axes, the product for scalars, else last with second-to-last axis."""
    x, y = promoted("dot", x, y)
    if not x.type.shape or not y.type.shape:
        return pw.mul(x, y)
    return dot_general(x, y, ((len(x.type.shape) - 1,), (max(len(y.type.shape) - 2, 0),)))


def tensordot(x: Any, y: Any, axes: Any = 2) -> Any:
    """Sums over paired axes: the last ``axes`` of x with the first of y, or two lists of axes.

    Raises:
        ShapeError: paired sizes differ, or a tensor has fewer axes.
        IndexOutOfRangeError: a list names an axis that does not exist.
    """
    x, y = promoted("tensordot", x, y)
    rx, ry = len(x.type.shape), len(y.type.shape)
    if isinstance(axes, int):
        if not 0 <= axes <= min(rx, ry):
            raise ShapeError(f"tensordot cannot pair {axes} axes of {x.type} and {y.type}")
        left, right = tuple(range(rx - axes, rx)), tuple(range(axes))
    else:
        a, b = axes
        left = tuple(axis_of("tensordot", x, i) for i in ([a] if isinstance(a, int) else a))
        right = tuple(axis_of("tensordot", y, i) for i in ([b] if isinstance(b, int) else b))
    return dot_general(x, y, (left, right))


def inner(x: Any, y: Any) -> Any:
    """Sums over the last axes of both."""
    x, y = promoted("inner", x, y)
    return dot_general(x, y, ((len(x.type.shape) - 1,), (len(y.type.shape) - 1,))) if x.type.shape and y.type.shape else \
        pw.mul(x, y)


def outer(x: Any, y: Any) -> Any:
    """All products of an element of x with one of y, as a matrix of the flattened tensors."""
    x, y = sh.ravel(as_tensor(x)), sh.ravel(as_tensor(y))
    return pw.mul(sh.unsqueeze(x, 1), sh.unsqueeze(y, 0))


def linear(x: Any, weight: Any, bias: Any = None, accumulate: Any = None) -> Any:
    """``x @ weight + bias`` with ``weight`` [in, out]."""
    y = matmul(x, weight, accumulate=accumulate)
    return y if bias is None else pw.add(y, bias)


# -- einsum ----------------------------------------------------------------------------------------------------------------
def einsum(equation: str, *operands: Any, accumulate: Any = None) -> Any:
    """Einstein's summation: ``"bshd,bthd->bhst"``; an ellipsis stands for leading axes; without ``->`` letters that occur
    once are kept in alphabetical order.

    Raises:
        ShapeError: the equation does not fit the operands.
    """
    tensors = promoted("einsum", *operands)
    terms, out = _parse(equation, tensors)
    items = [_diagonals(t, term) for t, term in zip(tensors, terms, strict=True)]
    sizes: dict[str, DimLike] = {}
    for t, term in items:
        for axis, (letter, n) in enumerate(zip(term, t.type.shape, strict=True)):
            if sizes.setdefault(letter, n) != n:
                raise ShapeError(f"Shape mismatch in dimension {axis}: {format_dim(sizes[letter])} vs {format_dim(n)}",
                                 received=str(t.type), sentence=f"In einsum, {letter!r} has two sizes.")
    while len(items) > 1:
        (x, tx), (y, ty) = items[0], items[1]
        rest = set(out).union(*[set(t) for _, t in items[2:]])
        items = [_pair(x, tx, y, ty, rest, accumulate), *items[2:]]
    x, term = items[0]
    gone = tuple(i for i, letter in enumerate(term) if letter not in out)
    x, term = rd.apply("reduce_sum", x, gone, False), "".join(c for c in term if c in out)
    return sh.permute(x, tuple(term.index(c) for c in out)) if out else x


def _parse(equation: str, tensors: Sequence[Any]) -> tuple[list[str], str]:
    text = equation.replace(" ", "")
    left, arrow, out = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(tensors):
        raise ShapeError(f"einsum names {len(terms)} operands and got {len(tensors)}", received=repr(equation))
    spare = [c for c in "ABCDEFGHIJKLMNOPQRSTUVWXYZ" if c not in text]
    ell = 0
    for term, t in zip(terms, tensors, strict=True):
        if "..." in term:
            ell = max(ell, len(t.type.shape) - len(term.replace("...", "")))
    lead = "".join(spare[:ell])
    full = []
    for term, t in zip(terms, tensors, strict=True):
        if "..." in term:
            n = len(t.type.shape) - len(term.replace("...", ""))
            term = term.replace("...", lead[ell - n:] if n > 0 else "")
        if len(term) != len(t.type.shape) or (term and not term.isalpha()):
            raise ShapeError(f"the einsum term {term!r} does not fit a tensor of rank {len(t.type.shape)}",
                             received=str(t.type))
        full.append(term)
    letters = "".join(full)
    if not arrow:
        out = lead + "".join(c for c in sorted(set(letters) - set(lead)) if letters.count(c) == 1)
    else:
        out = out.replace("...", lead)
    if unknown := [c for c in out if c not in letters]:
        raise ShapeError(f"the einsum result names {unknown[0]!r}, which no operand has", received=repr(equation))
    if len(set(out)) != len(out):
        raise ShapeError("the einsum result names an axis twice", received=repr(equation))
    return full, out


def _diagonals(t: Any, term: str) -> tuple[Any, str]:
    """Letters that a term repeats are taken along the diagonal."""
    while (twice := next((c for c in term if term.count(c) > 1), None)) is not None:
        a, b = term.index(twice), term.rindex(twice)
        shape = t.type.shape
        on = pw.eq(bind("iota", shape=shape, axis=a, dtype=as_dtype("int64")),
                   bind("iota", shape=shape, axis=b, dtype=as_dtype("int64")))
        t = rd.apply("reduce_sum", pw.where(on, t, 0), (b,), False)
        term = term[:b] + term[b + 1:]
    return t, term


def _pair(x: Any, tx: str, y: Any, ty: str, rest: set[str], accumulate: Any) -> tuple[Any, str]:
    """The product of two einsum operands, summed over letters that nothing else needs."""
    for own, other in ((tx, ty), (ty, tx)):
        alone = tuple(i for i, c in enumerate(own) if c not in other and c not in rest)
        if alone:
            if own is tx:
                x, tx = rd.apply("reduce_sum", x, alone, False), "".join(c for i, c in enumerate(tx) if i not in alone)
            else:
                y, ty = rd.apply("reduce_sum", y, alone, False), "".join(c for i, c in enumerate(ty) if i not in alone)
    shared = [c for c in tx if c in ty]
    batch, summed = [c for c in shared if c in rest], [c for c in shared if c not in rest]
    z = dot_general(x, y, (tuple(tx.index(c) for c in summed), tuple(ty.index(c) for c in summed)),
                    (tuple(tx.index(c) for c in batch), tuple(ty.index(c) for c in batch)), accumulate)
    return z, "".join(batch) + "".join(c for c in tx if c not in shared) + "".join(c for c in ty if c not in shared)


def trace(x: Any, axis1: int = 0, axis2: int = 1) -> Any:
    """The sum of the diagonal of two axes."""
    return rd.sum(diagonal(x, axis1, axis2), -1)


def diagonal(x: Any, axis1: int = 0, axis2: int = 1) -> Any:
    """The diagonal of two axes, as the last axis of the result."""
    x = as_tensor(x)
    x = sh.moveaxis(x, (axis1, axis2), (-2, -1))
    m, n = x.type.shape[-2:]
    if isinstance(m, int) and isinstance(n, int) and m != n:
        x = sh.slice_axis(x, -2 if m > n else -1, 0, min(m, n))
    letters = "abcdefghijklmnop"[:len(x.type.shape) - 2]
    return convert(_diagonals(x, letters + "zz")[0], x.dtype)


__all__ = ["diagonal", "dot", "dot_general", "einsum", "inner", "linear", "matmul", "outer", "tensordot", "trace"]
