"""How well the accesses of a kernel use memory: bytes asked for against bytes moved, 32 lanes at a time.

The tile interpreter runs the kernel's first block and reports where its lanes go.  Lanes in row-major order are taken 32 together, as a
warp takes them; memory moves in sectors of 32 bytes.  Shared memory has 32 banks of 4 bytes: lanes of one warp that need different
words of one bank wait for each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir import interpret_tile
from ..ir.core import Function, Loc, Op, rewrite

WARP, SECTOR, BANKS, WORD = 32, 32, 32, 4


@dataclass
class Access:
    """One load, store, gather or scatter of a kernel, over everything that its first block does with it.

    Attributes:
        op: its name; ``buffer``: what it accesses; ``loc``: the kernel's line.
        requests: how many warps asked; ``sectors``: sectors of 32 bytes moved for them.
        used, moved: bytes asked for (an element that several lanes of a warp share counts once), and bytes moved.
        conflicts: in shared memory, passes beyond the first that bank conflicts cost, over all requests.
    """

    op: str
    buffer: str
    loc: Loc | None
    requests: int = 0
    sectors: int = 0
    used: int = 0
    moved: int = 0
    conflicts: int = 0

    @property
    def efficiency(self) -> float:
        """Bytes asked for over bytes moved."""
        return self.used / self.moved if self.moved else 1.0

    def __str__(self) -> str:
        where = f" at line {self.loc.line}" if self.loc else ""
        extra = f", {self.conflicts} bank conflicts" if self.conflicts else ""
        return (f"{self.op} {self.buffer}{where}: {self.efficiency:.0%} of {self.moved} bytes, {self.sectors} sectors in "
                f"{self.requests} requests{extra}")


def analyze(fn: Function, buffers: Sequence[np.ndarray[Any, Any]], sizes: Mapping[str, int]) -> list[Access]:
    """The accesses of the first block of a Tile function, in program order.  The buffers are not changed."""
    first = rewrite(fn)
    first.attrs = {**fn.attrs, "grid": (1,) * len(fn.attrs["grid"])}
    found: dict[tuple[Any, ...], Access] = {}

    def watch(op: Op, name: str, flat: Any, active: Any) -> None:
        # Line and buffer name the access: the interpreter runs a copy of the function.
        at = (op.name, name, op.loc.line if op.loc else None, op.loc.instruction if op.loc else None)
        access = found.setdefault(at, Access(op.name, name.lstrip("%"), op.loc))
        buffer = op.operands[0].type
        _count(access, np.ravel(np.broadcast_to(flat, np.shape(active))), np.ravel(active), buffer.dtype.itemsize, buffer.space)

    interpret_tile.run(first, [b.copy() for b in buffers], sizes, races=False, watch=watch)
    return list(found.values())


def _count(access: Access, flat: Any, active: Any, itemsize: int, space: str) -> None:
    for start in range(0, len(flat), WARP):
        lanes = np.unique(flat[start:start + WARP][active[start:start + WARP]])
        if not len(lanes):
            continue
        access.requests += 1
        access.used += len(lanes) * itemsize
        if space == "global":
            sectors = len(np.unique(lanes * itemsize // SECTOR))
            access.sectors += sectors
            access.moved += sectors * SECTOR
        else:
            words = np.unique(lanes * itemsize // WORD)
            passes = int(np.bincount(words % BANKS).max())
            least = -(-len(words) // BANKS)
            access.sectors += passes
            access.moved += len(lanes) * itemsize
            access.conflicts += passes - least


__all__ = ["Access", "analyze"]
