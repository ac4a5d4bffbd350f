"""``template`` ops: what the scheduler hands to the tile programs of ``kernels/``.

A template op is one launch whose inner loops somebody wrote by hand.  The scheduler says *which data* it reads and
*what happens to each result*; layouts and neighbouring ops are folded in, so nothing is transposed, scaled or added to
by a kernel of its own.

Common form
===========

``template(%a, %b, …, %o, …) {template = "matmul", name, outs, blocks, …} do(…) {…} …``

* Operands are dense row-major buffers: those read, then those written.  ``outs`` holds the positions of the written
  ones.  A buffer that is read and written (in place) stands once, at a written position.
* **Loops** are pairs ``("m", <M>)``: a name and an extent.  Names never clash with the names of symbolic sizes, so a
  template must take the names from the attributes.  Any extent may be symbolic, 1 or (when symbolic) 0.
* **Index maps** (``lhs = (<b0>, <m>, <k>)``) are size expressions over the loops, one for each axis of that operand's
  buffer.  They may contain ``//`` and ``%`` of *batch* loops (grouped heads); in all other loops they are affine:
  :func:`affine` gives offset and strides.  An axis that is not mapped through a loop is a constant.
* **Blocks**: ``blocks`` names ``op.blocks`` in order.  The arguments of every block are *all operands in order*
  (block argument ``i`` stands for operand ``i``) followed by the scalars listed below.  Bodies hold the scalar ops of a
  ``kernel`` (``load store index constant guard check`` and pointwise ops; never ``reduce`` or ``for``), with the loops
  as names in index expressions.

  - ``epilogue`` (always present): receives the finished accumulator(s) of one output point and *stores*: each written
    buffer exactly once a point.  Ends in ``yield()``.  The plain product is ``store(%o, convert(%acc))``.  A store index may contain
    ``//`` and ``%`` of loops (a store that splits heads); :func:`affine` then returns None and the lane loop may need one address a lane.
  - prologues (``lhs``, ``rhs``, optional): give the operand's element in place of a plain load; ``yield(%v)``.  The
    attribute of the same name is then absent.  They are *cheap*: a convert, a scale, an add, an activation that is one op.

* The order of a sum over a loop is ascending with ``fma`` into one accumulator a point unless ``split`` says otherwise.

The products
============

``matmul``     ``acc[b…, m, n] = sum over k of lhs[b…, m, k] * rhs[b…, k, n]``, in ``accumulate``.

    ============  ==================================================================================================
    ``batch``     ``(("b0", <B>), …)``, outermost first, possibly empty; an operand need not depend on all of them
    ``m n k``     one loop each; extent 1 where the product has no such loop (matrix-vector, dot); ``k`` may be 0
    ``lhs rhs``   index maps of operands 0 and 1 (or prologue blocks) over batch, m/n and k
    ``accumulate``  dtype of the sum and of the epilogue's scalar; 16-bit operands are widened before multiplying
    ``schedule``  optional: pairs ``("tile_m", 128)`` that decide how it is cut up; no bit of the result depends on them
    ============  ==================================================================================================

    Blocks: ``lhs`` (yields the element; its dtype is that of ``lhs_dtype``), ``rhs``, ``epilogue(…, %acc)``.

``attention``  ``s[q, t] = scale * sum_d query[q, d] * key[t, d]``; ``s`` through ``score``; ``p = softmax over t``;
               ``acc[q, e] = sum_t p[q, t] * value[t, e]``; all in ``compute``: f32, or f64 for f64 operands.

    ====================  ==========================================================================================
    ``batch``             batch and head loops; ``q t d e`` the four loops
    ``query key value``   index maps of operands 0, 1, 2 over batch and (q, d), (t, d), (t, e)
    ``scale``             a number
    ``causal``            bool: position q sees t <= q + causal_offset; ``causal_offset``: a size expression, T - Q
    ``key_block``         numeric parameter: keys an online-softmax step takes
    ``schedule``          optional, as above; ``tile_m`` is the rows of queries of a block
    ====================  ==========================================================================================

    ``compute`` is the dtype of scores and accumulators; where ``accumulate`` is given, ``scale * query key^T`` is rounded to it (before
    ``score``), and so is ``acc`` after each block of keys.  ``sums`` (optional): the position of a written buffer ``[batch…, q]``
    of that dtype, which receives the log-sum-exp of each row's scores (-inf for a row that sees no key).

    Blocks: ``score(…, %score)`` optional: yields the score to use, over loops batch, q, t (masks and biases: loads from
    further operands; a masked-out score is ``-inf``).  ``epilogue(…, %acc)``: over batch, q, e; ``%acc`` is already divided
    by the sum.  A row in which every score is -inf gives 0.

``attention_backward``  from query, key, value, the cotangent of the result and, as whole buffers ``[batch…, q]``, the log-sum-exp
               and delta of each row: ``p = exp(s - lse)``, ``ds = p * (cotangent value^T - delta)``; of dq = scale * ds key,
               dk = scale * ds^T query and dv = p^T cotangent those that ``writes`` names, dense and in ``compute``.

    ====================  ==========================================================================================
    ``batch q t d e``     as above, and ``query key value scale causal causal_offset compute`` too
    ``cotangent``         index map of operand 3 over batch and (q, e)
    ``key_heads``         the extent of the last batch loop in keys and values: query heads that share one are added up
    ``writes``            names of operands 6 …: ``("dq", "dk", "dv")`` or a part of it
    ``cut``               which loop blocks share out: "q" (writes dq alone), "t" (dk and dv alone) or None
    ====================  ==========================================================================================

    Block: ``score``, optional, as above.

``conv``       operands input ``[N, C, *spatial]``, weight ``[O, C/groups, *kernel]``; ``strides``, ``padding`` (pairs),
               ``dilation``, ``groups``, ``accumulate``; loops ``batch = (("n", <N>),)``, ``channel``, ``spatial = (("o0", …), …)``.
               Block ``epilogue(…, %acc)``.

Everything else
===============

An op of the table whose stanza names a template and that has no section above arrives as: operands = the Graph op's operands in order
then its results in order, each a buffer of exactly the Graph type's shape and dtype; attributes = the Graph op's own
attributes plus ``template``, ``op`` (the Graph op's name), ``name``, ``outs``; no blocks.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence

from ..ir.core import Block, Op
from ..types.dims import Dim, DimLike, substitute
from ..types.shapes import contiguous_strides

Loop = tuple[str, DimLike]

AVAILABLE: Container[str] | None = None
"""The names in the registry of templates, set when the package is assembled; None: all."""


def available(name: str) -> bool:
    """True when a tile program of that name exists."""
    return AVAILABLE is None or name in AVAILABLE


def block(op: Op, name: str) -> Block | None:
    """The block called ``name`` of a template op, or None."""
    names: tuple[str, ...] = op.attrs.get("blocks", ())
    return op.blocks[names.index(name)] if name in names else None


def loops(op: Op, *roles: str) -> tuple[Loop, ...]:
    """The loops of the given roles, in order: ``loops(op, "batch", "m", "n")``."""
    out: list[Loop] = []
    for role in roles:
        got = op.attrs[role]
        out += got if got == () or isinstance(got[0], tuple) else (got,)
    return tuple(out)


def flat_index(index: Sequence[DimLike], shape: Sequence[DimLike]) -> DimLike:
    """The row-major element offset of ``index`` in a dense buffer of ``shape``."""
    total: DimLike = 0
    for i, stride in zip(index, contiguous_strides(shape), strict=True):
        total = total + i * stride
    return total


def affine(expr: DimLike, names: Iterable[str]) -> tuple[DimLike, Mapping[str, DimLike]] | None:
    """``expr`` as ``offset + sum(stride[name] * name)``; None where it is not affine in ``names``.

    Offset and strides may contain other names (batch loops, sizes).  Names that do not occur have stride 0.
    """
    wanted = set(names)
    offset: DimLike = 0
    strides: dict[str, DimLike] = dict.fromkeys(wanted, 0)
    if isinstance(expr, int):
        return expr, strides
    for mono, coefficient in expr.terms:
        here = [a for a, _ in mono if isinstance(a, str) and a in wanted]
        if any(not isinstance(a, str) and wanted & Dim((((( a, 1),), 1),)).names for a, _ in mono):
            return None
        if not here:
            offset = offset + Dim(((mono, coefficient),)) if mono else offset + coefficient
            continue
        if len(here) > 1 or dict(mono)[here[0]] > 1:
            return None
        strides[here[0]] = strides[here[0]] + substitute(Dim(((mono, coefficient),)), {here[0]: 1})
    return offset, strides


def is_plain_store(op: Op) -> bool:
    """True when the epilogue only converts and stores."""
    epilogue = block(op, "epilogue")
    return epilogue is not None and all(o.name in ("convert", "store", "yield") for o in epilogue.ops)
