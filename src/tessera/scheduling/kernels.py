"""A :class:`~tessera.scheduling.fusion.Plan` as a ``kernel`` op, with the decisions that lie on top of its meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..errors import CompileError
from ..ir.core import Block, Op, Value
from ..ops.table import OPS
from ..types.dims import Dim, DimLike, product, substitute
from ..types.dims import name as dim_name
from .elements import Stored, Tracer
from .fusion import Plan
from .indexing import Names, certainly_positive
from .summary import Lanes, axis_name

Place = Callable[[Tracer, tuple[DimLike, ...]], "tuple[Value, tuple[DimLike, ...]]"]


class KernelBuilder:
    """Builds kernels of one program.

    Args:
        sizes: names of the symbolic sizes, which loops must not take.
        buffer: the Schedule buffer of a Graph value in memory.
    """

    def __init__(self, machine: Any, sizes: Sequence[str], buffer: Callable[[Value], Value | None], lanes: Lanes,
                 site: Callable[[Op, str], int], flat: Callable[[Value], Value]):
        self.machine, self.sizes, self.buffer, self.lanes, self.site = machine, sizes, buffer, lanes, site
        self.flat = flat

    def build(self, plan: Plan, home: Mapping[Value, Value], label: str, place: Place | None = None) -> Op:
        """The kernel of ``plan``; ``home`` gives the buffer of every value that it stores.

        With ``place``, the roots' elements go where it says instead.
        """
        names = Names(self.sizes)
        loops = {k: names.fresh("i") for k in plan.grid}
        inner = {k: names.fresh("j") for k in plan.inner}
        block = Block()
        copies = [r for r in plan.roots if r in plan.leaves]
        # What the plan computes here is computed here: by now a later launch may have given it a buffer of its own.
        hidden = {*plan.roots, *plan.side, *plan.visits}.difference(copies, plan.leaves)

        def buffer(v: Value) -> Value | None:
            return None if v in hidden else self.buffer(v)

        tracer = Tracer(block, names, {loops[k]: plan.shape[k] for k in plan.grid}, buffer, self.lanes, self.site)
        tracer.flat = self.flat
        for v in (*plan.roots, *plan.side):
            if v not in copies and place is None:
                tracer.stored[v] = Stored(home[v])
        if plan.scratch:
            value, root = plan.scratch
            tracer.stored[value] = Stored(home[root])
        self._trace(tracer, plan, home, loops, inner, place)
        lost = [] if place is not None else [v for v in plan.side if tracer.stored[v].scope is None]
        if lost:
            raise CompileError(f"the kernel {label!r} does not store {lost[0]!r}, which later kernels read")
        outer = list(tracer.operands)
        block.ops.append(Op("yield"))
        grid = tuple((loops[k], plan.shape[k]) for k in plan.grid)
        attrs: dict[str, Any] = {"name": label, "grid": grid, "outs": written(block)}
        attrs |= decide(block, grid, self.machine)
        return Op("kernel", outer, (), attrs, (block,), plan.roots[-1].op.loc if plan.roots[-1].op else None)

    def _trace(self, tracer: Tracer, plan: Plan, home: Mapping[Value, Value], loops: dict[int, str],
               inner: dict[int, str], place: Place | None = None) -> None:
        env: dict[str, DimLike] = {axis_name(k): dim_name(n) for k, n in {**loops, **inner}.items()}
        at = tuple(substitute(e, env) for e in plan.index())
        for v, index in plan.rows:
            tracer.value(v, tuple(substitute(e, env) for e in index))
        if place is not None:
            scalar = tracer.value(plan.roots[0], at)
            tracer.store(*place(tracer, at), scalar)
            return
        todo = [r for r in reversed(plan.roots) if self._missing(tracer, r)]
        if not todo:
            return
        if inner:
            with tracer.nested([(inner[k], plan.shape[k]) for k in plan.inner]) as body:
                self._store_all(tracer, todo, home, at)
                body.ops.append(Op("yield"))
            over = tuple((inner[k], plan.shape[k]) for k in plan.inner)
            tracer.put("for", (), None, {"over": over}, 0, (body,))
        else:
            self._store_all(tracer, todo, home, at)

    @staticmethod
    def _missing(tracer: Tracer, v: Value) -> bool:
        kept = tracer.stored.get(v)
        return kept is None or kept.scope is None

    def _store_all(self, tracer: Tracer, roots: Sequence[Value], home: Mapping[Value, Value],
                   at: Sequence[DimLike]) -> None:
        for r in roots:
            scalar = tracer.value(r, at)
            if self._missing(tracer, r):
                tracer.store(home[r], at, scalar)
                kept = tracer.stored.get(r)
                if kept is not None:
                    kept.scope = tracer.stack[-1]


def written(block: Block) -> tuple[int, ...]:
    """The positions of the buffers that a body stores to."""
    stored = {op.operands[0] for op in block.walk() if op.name == "store"}
    return tuple(i for i, a in enumerate(block.args) if a in stored)


def decide(block: Block, grid: Sequence[tuple[str, DimLike]], machine: Any) -> dict[str, Any]:
    """``lane`` and ``tile`` of a kernel for a machine.

    The lane is the loop along contiguous memory: the innermost grid loop, unless loops inside (a row's reductions) run
    along contiguous memory themselves; then ``lane`` is absent and each of those is vectorised.  ``tile`` bounds the
    work of a block to what the machine wants of one (``block_elements``).
    """
    inner = [op for op in block.walk() if op.name in ("reduce", "for")]
    along_rows = any(op.name == "for" or op.attrs.get("lanes", 1) > 1 for op in inner)
    out: dict[str, Any] = {}
    if grid and not along_rows:
        out["lane"] = _lane(block, grid)
    work: DimLike = 1
    for op in inner:
        here = product(e for _, e in op.attrs["over"])
        work = here if isinstance(here, int) and isinstance(work, int) and here > work else work
        if not isinstance(here, int):
            work = 4096
    ops = [o for o in block.walk() if o.name in OPS]
    heavy = 1 + sum(OPS[o.name].bound.ulp > 0 for o in ops) + len(ops) // 16
    elements = machine.block_elements(product(e for _, e in grid) * work)
    left = max(1, elements // heavy // max(1, work if isinstance(work, int) else 4096))
    tile: list[int] = []
    for n, e in reversed(grid):
        here = min(e, left) if isinstance(e, int) else (min(left, 1024) if not tile else min(left, 64))
        if n == out.get("lane") and not isinstance(e, int):
            here = max(here, 256)
        here = max(1, here)
        if isinstance(e, int) and n != out.get("lane"):
            here = -(-e // -(-max(e, 1) // here)) or 1          # equal parts
        tile.insert(0, here)
        left = max(1, left // max(1, here))
    out["tile"] = tuple(tile)
    return out


def _lane(block: Block, grid: Sequence[tuple[str, DimLike]]) -> str:
    """The grid loop that is last in the most stores; then the innermost."""
    for op in block.walk():
        if op.name == "store":
            for e in reversed(op.attrs["index"]):
                if isinstance(e, Dim):
                    found = [n for n, _ in grid if n in e.names]
                    if found:
                        return found[-1]
    return grid[-1][0]


__all__ = ["KernelBuilder", "certainly_positive", "decide", "written"]
