"""Where the matrix unit finds its operands in shared memory.

Facts: PTX ISA 9.0, "Asynchronous warpgroup level matrix instructions" and "Matrix descriptors".
"""

from __future__ import annotations

from dataclasses import dataclass

from ...ir.core import BufferType, Value
from ...ir.tile import root

_SWIZZLE_CODE = {0: 0, 128: 1, 64: 2, 32: 3}  # bits 62-63 of a descriptor


@dataclass(frozen=True)
class Panels:
    """How a shared buffer's last two axes lie: panels of ``span`` bytes of columns, chunks of 16 bytes permuted by row."""

    rows: int
    columns: int
    itemsize: int
    swizzle: int

    @staticmethod
    def of(buffer: Value) -> Panels:
        """The panels of a buffer made by ``alloc``."""
        t = buffer.type
        made = root(buffer).op
        swizzle = int(made.attrs.get("swizzle", 0)) if made is not None else 0
        return Panels(int(t.shape[-2]), int(t.shape[-1]), t.dtype.itemsize, swizzle)

    @property
    def span(self) -> int:
        """Bytes of one row of a panel."""
        return self.swizzle or self.columns * self.itemsize

    @property
    def width(self) -> int:
        """Columns of a panel."""
        return self.span // self.itemsize

    @property
    def panel(self) -> int:
        """Bytes of a panel."""
        return self.rows * self.span

    @property
    def matrix(self) -> int:
        """Bytes of one matrix."""
        return self.rows * self.columns * self.itemsize

    def descriptor(self, across: bool) -> int:
        """The fixed part of a matrix descriptor.  ``across``: the contraction runs along rows of memory (MN-major)."""
        leading = self.panel if across else 16
        return (8 * self.span >> 4) << 32 | (leading >> 4) << 16 | _SWIZZLE_CODE[self.swizzle] << 62

    def step(self, j: int, across: bool) -> int:
        """Bytes from the start to the j-th 16 elements of the contraction."""
        if across:
            return j * 16 * self.span
        each = self.span // 32
        return j // each * self.panel + j % each * 32

    @property
    def mask(self) -> int:
        """The bits of a row number that permute its chunks."""
        return max(0, self.swizzle // 16 - 1)


def shared_bytes(t: BufferType) -> int:
    """Bytes of a shared buffer or a row of barriers, rounded up to a swizzle's period."""
    return -(-int(t.nbytes) // 1024) * 1024


__all__ = ["Panels", "shared_bytes"]
