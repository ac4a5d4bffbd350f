"""Long reductions in two steps.

A reduction to few elements would run on one thread.  It is cut into chunks (a numeric parameter of the machine, so that the
order of the sum depends on the op's shape alone): one kernel reduces every chunk, a second one the chunks' results.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from ..ir.core import Copier, Function, Op, TensorType, Value
from ..ir.sched_machine import identity
from ..ops.table import OPS
from ..types.dims import DimLike, ceildiv, product
from ..types.dtypes import DType
from ..types.promotion import accumulator
from .fusion import fusable


def split_reductions(fn: Function, machine: Any) -> Function:
    """``fn`` with every long reduction to few elements written as two."""
    from ..ir.core import rewrite
    return rewrite(fn, lambda c, op: _split(c, op, machine))


def _split(c: Copier, op: Op, machine: Any) -> list[Value] | None:
    rule = OPS.get(op.name)
    if rule is None or "combine" not in rule.facts or "axes" not in op.attrs or not fusable(op):
        return None
    t: TensorType = op.operands[0].type
    kept = op.results[0].type.size
    axes = tuple(op.attrs["axes"])
    few, chunk = machine.reduction_split(t.dtype, along=axes[-1] == len(t.shape) - 1 if axes else True)
    if not isinstance(kept, int) or not 0 < kept < few or axes != tuple(range(axes[0], axes[0] + len(axes))):
        return None
    count = product(t.shape[a] for a in axes)
    if isinstance(count, int) and count < 2 * chunk:
        return None
    return [_Two(c, op, chunk).build(c.operands(op)[0], axes, count)]


class _Two:
    """Builds both steps for one op."""

    def __init__(self, c: Copier, op: Op, chunk: int):
        self.c, self.op, self.chunk = c, op, chunk
        t: TensorType = op.operands[0].type
        self.out: DType = t.dtype
        sums = op.name in ("reduce_sum", "reduce_prod")
        wide = op.attrs.get("accumulate") or (accumulator(t.dtype) if t.dtype.is_float else t.dtype)
        self.wide: DType = wide if sums else t.dtype

    def emit(self, name: str, v: Value, to: Sequence[DimLike], **attrs: Any) -> Value:
        return self.c.builder.value(name, (v,), TensorType(v.type.dtype, tuple(to)), attrs, (), self.op.loc)

    def _convert(self, v: Value, dtype: DType) -> Value:
        return self.c.builder.value("convert", (v,), v.type.with_dtype(dtype), {"dtype": dtype}, (), self.op.loc)

    def build(self, x: Value, axes: tuple[int, ...], count: DimLike) -> Value:
        if x.type.dtype is not self.wide:
            x = self._convert(x, self.wide)
        shape = x.type.shape
        lead, tail = shape[:axes[0]], shape[axes[-1] + 1:]
        rows = self._rows([shape[a] for a in axes])
        if rows is not None:
            outer = product(shape[a] for a in axes[:rows])
            parts = [*lead, outer, *shape[axes[rows]:axes[-1] + 1], *tail]
            if parts != list(shape):
                x = self.emit("reshape", x, parts, shape=tuple(parts))
            inner = tuple(range(len(lead) + 1, len(parts) - len(tail)))
        else:
            x = self._chunks(x, lead, count, tail)
            inner = (len(lead) + 1,)
        kept = [n for i, n in enumerate(x.type.shape) if i not in inner]
        first = self.emit(self.op.name, x, kept, axes=inner)
        second_axes = (len(lead),)
        size = kept[len(lead)]
        if isinstance(size, int) and size >= 2 * self.chunk:
            y = _Two(self.c, self.op, self.chunk).again(first, second_axes, size)
        else:
            y = self.emit(self.op.name, first, (*lead, *tail), axes=second_axes)
        return y if self.out is y.type.dtype else self._convert(y, self.out)

    def again(self, x: Value, axes: tuple[int, ...], count: DimLike) -> Value:
        self.out = self.wide
        return self.build(x, axes, count)

    def _rows(self, extents: Sequence[DimLike]) -> int | None:
        """How many leading axes to leave for the second step, where the others make rows of a good length."""
        for k in range(1, len(extents)):
            length = product(extents[k:])
            if isinstance(length, int) and self.chunk // 16 <= length <= 4 * self.chunk:
                return k
        return None

    def _chunks(self, x: Value, lead: Sequence[DimLike], count: DimLike, tail: Sequence[DimLike]) -> Value:
        """``x`` with the reduced axes as [chunks, chunk], padded with what changes nothing."""
        flat = (*lead, count, *tail)
        if x.type.shape != flat:
            x = self.emit("reshape", x, flat, shape=flat)
        chunk = self._divisor(count) if isinstance(count, int) else None
        if chunk is None:
            chunk = self.chunk
            padded = ceildiv(count, chunk) * chunk
            low = (0,) * len(flat)
            high = (*[0] * len(lead), padded - count, *[0] * len(tail))
            combine = OPS[self.op.name].facts["combine"]
            x = self.emit("pad", x, (*lead, padded, *tail), low=low, high=high, value=identity(combine, self.wide))
            count = padded
        number = count // chunk
        shape = (*lead, number, chunk, *tail)
        return self.emit("reshape", x, shape, shape=shape)

    def _divisor(self, count: int) -> int | None:
        """A divisor of ``count`` near the chunk's length."""
        for d in range(self.chunk, min(2 * self.chunk, math.isqrt(count) + self.chunk)):
            if count % d == 0:
                return d
        return next((d for d in range(self.chunk - 1, self.chunk // 2, -1) if count % d == 0), None)
