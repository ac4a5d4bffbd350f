"""Order in memory: where the threads of a block meet, and where they need not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ...ir.core import Block, Op, TileType, Value
from ...ir.tile import POINTWISE, WRITES, root, tile_axes
from .values import EXCHANGE

if TYPE_CHECKING:
    from .emit import Emitter


class Order:
    """Which accesses since the last barrier others must not overtake."""

    def __init__(self, emitter: Emitter):
        self.e = emitter
        self.pending: dict[Any, dict[bool, set[Any]]] = {}

    def touch(self, place: Any, write: bool, key: Any = None) -> None:
        """Memory is about to be accessed: meet first if that is needed.

        Args:
            place: a buffer's root, or ``EXCHANGE``.
            key: equal keys mean that each thread touches the same elements; None: unknown.
        """
        if self._conflict(place, write, key):
            self.barrier()
        self.pending.setdefault(place, {}).setdefault(write, set()).add(key)

    def barrier(self) -> None:
        self.e.w.barrier()
        self.pending.clear()

    def meet_before_write(self, place: Any) -> None:
        """A copy is about to write memory which is not read before the copy is waited for."""
        if self._conflict(place, True, None):
            self.barrier()

    def _conflict(self, place: Any, write: bool, key: Any) -> bool:
        known = {key} if key is not None else set()
        here = self.pending.get(place, {})
        if here.get(True, set()) - known or (write and here.get(False, set()) - known):
            return True
        if not write or not self._parameter(place) or self.e.fn.attrs.get("noalias") is True:
            return False
        return any(self._parameter(p) and kinds.get(False, set()) - known for p, kinds in self.pending.items())  # may be one memory

    @staticmethod
    def _parameter(place: Any) -> bool:
        return isinstance(place, Value) and place.op is None

    def snapshot(self) -> dict[Any, dict[bool, set[Any]]]:
        return {p: {k: set(v) for k, v in kinds.items()} for p, kinds in self.pending.items()}

    def merge(self, other: Mapping[Any, Mapping[bool, set[Any]]]) -> None:
        for p, kinds in other.items():
            for k, v in kinds.items():
                self.pending.setdefault(p, {}).setdefault(k, set()).update(v)

    def before_loop(self, loop: Op) -> None:
        """Before a loop: what it must not overtake is waited for here, once, and not in each of its turns."""
        for op in loop.blocks[0].walk():
            if _touches(op) and self._conflict(root(op.operands[0]), op.name in WRITES, None):
                self.barrier()
                return

    def enter_loop(self, blocks: Sequence[Block], loop: Op | None = None) -> None:
        """At a loop's head any access of its body may have come before, but for those of which no two turns touch the same element."""
        apart = self._apart(loop) if loop is not None else set()
        for kinds in self.pending.values():
            for seen in kinds.values():
                seen.clear()
                seen.add(None)
        for b in blocks:
            for op in b.walk():
                if _touches(op) and root(op.operands[0]) not in apart:
                    self.pending.setdefault(root(op.operands[0]), {}).setdefault(op.name in WRITES, set()).add(None)
        for write in (False, True):
            self.pending.setdefault(EXCHANGE, {}).setdefault(write, set()).add(None)

    def _apart(self, loop: Op) -> set[Any]:
        """Memories of which each turn of a loop touches elements of its own.  Parameters count as one memory where they may be."""
        together = self.e.fn.attrs.get("noalias") is not True
        groups: dict[Any, list[Op]] = {}
        for op in loop.blocks[0].walk():
            if _touches(op):
                place = root(op.operands[0])
                groups.setdefault("parameters" if together and self._parameter(place) else place, []).append(op)
        return {root(op.operands[0]) for ops in groups.values() if turns_apart(loop, ops) for op in ops}


def _touches(op: Op) -> bool:
    return op.name in WRITES or op.name in ("load", "gather")


def turns_apart(loop: Op, accesses: Sequence[Op]) -> bool:
    """Whether no two turns of a ``for`` touch the same element: all accesses are of one tile, which moves on by its own extent at least."""
    body = loop.blocks[0]
    places = {_tile_of(op) for op in accesses}
    if len(places) != 1 or None in places or any(op not in body.ops for op in accesses):
        return False
    first = accesses[0]
    step = loop.operands[2].op
    if step is None or step.name != "constant" or not isinstance(step.attrs["value"], int):
        return False
    inside = set(body.walk())
    shape = _accessed(first).type.shape
    for axis, n in zip(tile_axes(first), shape, strict=True):
        each = _advance(first.operands[1 + axis], body, inside)
        if each is not None and abs(each * step.attrs["value"]) >= n:
            return True
    return False


def _accessed(op: Op) -> Value:
    value: Value = op.result if op.name == "load" else op.operands[1 + op.operands[0].type.rank]
    return value


def _tile_of(op: Op) -> tuple[Any, ...] | None:
    """What a load's or store's elements and the threads that touch them depend on; None for other accesses."""
    if op.name not in ("load", "store") or not isinstance(_accessed(op).type, TileType):
        return None
    t, buffer = _accessed(op).type, op.operands[0].type
    return (*op.operands[1:1 + buffer.rank], tile_axes(op), t.shape, t.layout, buffer.shape)


def _advance(v: Value, body: Block, inside: set[Op]) -> int | None:
    """By how much an integer grows where the loop's counter grows by one; None: unknown."""
    if v is body.args[0]:
        return 1
    if v.op is None or v.op not in inside:
        return None if v in body.args else 0
    parts = [_advance(x, body, inside) for x in v.op.operands]
    if all(x == 0 for x in parts):
        return 0 if v.op.name in POINTWISE or v.op.name in ("constant", "size", "program_id") else None
    if None in parts or len(parts) != 2:
        return None
    a, b = parts
    assert a is not None and b is not None
    if v.op.name == "add":
        return a + b
    if v.op.name == "sub":
        return a - b
    if v.op.name == "mul" and 0 in parts:
        factor = v.op.operands[1 if b == 0 else 0].op
        value = factor.attrs["value"] if factor is not None and factor.name == "constant" else None
        return (a + b) * value if isinstance(value, int) else None
    return None


__all__ = ["Order", "turns_apart"]
