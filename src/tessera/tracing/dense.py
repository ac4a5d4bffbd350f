"""Dense copies of arrays that are not: what a program asks of its arguments."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..ir.core import TensorType
from ..types.dtypes import as_dtype
from . import eager, recorder

Array = np.ndarray[Any, Any]

FEW_BYTES = 1 << 16  # below which numpy's own loop over strides is as good


def lying(a: Array) -> tuple[Array, tuple[int, ...]] | None:
    """(base, perm), where ``a`` is ``base.transpose(perm)`` and ``base`` is dense in C order; None where there is no such base."""
    if not a.size or min(a.strides, default=0) <= 0:
        return None
    order = sorted(range(a.ndim), key=lambda axis: -a.strides[axis])
    base = a.transpose(order)
    if not (base.flags.c_contiguous and base.flags.aligned):
        return None
    return base, tuple(sorted(range(a.ndim), key=order.__getitem__))


def dense(a: Array) -> Array:
    """``a`` in C order and aligned: itself, or a copy.

    Dense memory with its axes in another order (``x.T``) goes through the compiled transposition, which works in squares and on all
    threads; numpy walks along one of the two orders, and a cache line of the other serves one element.
    """
    if a.nbytes >= FEW_BYTES and not a.flags.c_contiguous:
        found = lying(a)
        if found is not None:
            return _transposed(*found)
    return np.require(a, a.dtype, ["C", "A"])


def _transposed(base: Array, perm: tuple[int, ...]) -> Array:
    with recorder.without_policies():
        run = eager.program("transpose", [TensorType(as_dtype(base.dtype), base.shape)], {"perm": perm}, None)
    out: Array = run([base])[0]
    return out


def flattened(a: Array) -> Array:
    """All elements in C order along one axis: a view where the array is dense."""
    return (a if a.flags.c_contiguous else dense(a)).reshape(-1)
