"""What a sched kernel touches and where: loops, index polynomials, dependence on loop variables.

Every load, store and ``index`` op gets one polynomial over loop names, dynamic names and sizes: its row-major offset
(or the number).  All later questions (is this contiguous along ``j``? may these two loops become one?) are asked of
these polynomials.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from ..ir.core import Block, BufferType, Op, Value
from ..types.dims import Dim, DimLike, atom, floordiv, mod, product, substitute
from ..types.dims import name as named
from ..types.shapes import contiguous_strides
from .lower_complex import has_complex, split_complex


@dataclass(frozen=True)
class Loop:
    """One loop of a kernel: ``0 <= name < extent``."""

    name: str
    extent: DimLike


@dataclass
class Kernel:
    """A sched kernel with its index expressions pulled out, so that loops can be merged without editing the op.

    Attributes:
        grid: the parallel loops that remain, outermost first.
        expr: the row-major offset of each load and store; the value of each ``index`` op.
        loops: the loops of each ``reduce`` and ``for``.
        written: the buffers (block arguments) that the kernel stores to.
    """

    op: Op
    body: Block
    grid: list[Loop]
    expr: dict[Op, DimLike] = field(default_factory=dict)
    loops: dict[Op, list[Loop]] = field(default_factory=dict)
    written: set[Value] = field(default_factory=set)
    _deps: dict[Op, frozenset[str]] = field(default_factory=dict)

    @property
    def ranges(self) -> dict[str, DimLike]:
        out = {loop.name: loop.extent for loop in self.grid}
        for loops in self.loops.values():
            out.update((loop.name, loop.extent) for loop in loops)
        return out

    def depends(self, op: Op) -> frozenset[str]:
        """The loop names on which an op's value depends (own inner loops excluded)."""
        known = self._deps.get(op)
        if known is None:
            names: set[str] = set()
            if op in self.expr:
                e = self.expr[op]
                names |= e.names if isinstance(e, Dim) else frozenset()
            for v in op.operands:
                if v.op is not None:
                    names |= self.depends(v.op)
            for b in op.blocks:
                for inner in b.ops:
                    names |= self.depends(inner)
            names -= {loop.name for loop in self.loops.get(op, ())}
            known = self._deps[op] = frozenset(names)
        return known

    def forget_dependence(self) -> None:
        self._deps.clear()


def analyse(op: Op) -> Kernel:
    """Read a sched ``kernel`` op, drop loops of extent 1, merge loops that every access walks as one.

    Raises:
        ValueError: the op is not a kernel.
    """
    if op.name != "kernel" or len(op.blocks) != 1:
        raise ValueError(f"lower_kernel needs a kernel op with one block, not {op.name}")
    if has_complex(op):
        op = split_complex(op)
    k = Kernel(op, op.blocks[0], [Loop(n, e) for n, e in op.attrs.get("grid", ())])
    _collect(k, k.body)
    k.grid = _drop_unit(k, k.grid, list(k.expr))
    k.grid = merge_loops(k, k.grid, list(k.expr), any_order=True)
    for phase in list(k.loops):
        inner = [o for o in phase.walk() if o in k.expr]
        k.loops[phase] = _drop_unit(k, k.loops[phase], inner)
        k.loops[phase] = merge_loops(k, k.loops[phase], inner, any_order=False)
    k.forget_dependence()
    return k


def _collect(k: Kernel, block: Block) -> None:
    for op in block.ops:
        if op.name in ("load", "store"):
            t = op.operands[0].type
            assert isinstance(t, BufferType)
            index = op.attrs.get("index", ())
            k.expr[op] = _rename_dynamic(op, sum_of(i * s for i, s in zip(index, contiguous_strides(t.shape), strict=True)))
            if op.name == "store":
                k.written.add(op.operands[0])
        elif op.name == "index":
            k.expr[op] = _rename_dynamic(op, op.attrs["value"])
        elif op.name in ("reduce", "for"):
            k.loops[op] = [Loop(n, e) for n, e in op.attrs["over"]]
        for b in op.blocks:
            _collect(k, b)


def dynamic_operands(op: Op) -> dict[str, Value]:
    """The unique name of each dynamic operand of a load, store or index."""
    names = op.attrs.get("dyn", ())
    first = {"index": 0, "load": 1, "store": 1 + op.attrs.get("parts", 1)}[op.name]
    return {f"{n}'{id(op)}": v for n, v in zip(names, op.operands[first:], strict=True)}


def _rename_dynamic(op: Op, e: DimLike) -> DimLike:
    names = op.attrs.get("dyn", ())
    return substitute(e, {n: named(u) for n, u in zip(names, dynamic_operands(op), strict=True)}) \
        if names else e


def sum_of(terms: Iterable[DimLike]) -> DimLike:
    out: DimLike = 0
    for t in terms:
        out = out + t
    return out


def atom_names(a: object) -> Iterator[str]:
    """Every name inside a polynomial's atom."""
    if isinstance(a, str):
        yield a
    elif isinstance(a, tuple):
        for part in a[1:]:
            if isinstance(part, Dim):
                yield from part.names


def coefficient(e: DimLike, name: str) -> DimLike | None:
    """``c`` where ``e == c*name + rest`` and neither holds ``name``; None where ``e`` is not affine in it."""
    if isinstance(e, int):
        return 0
    out: DimLike = 0
    for m, c in e.terms:
        t: DimLike = c
        times = 0
        for a, p in m:
            if a == name:
                times += p
                continue
            if not isinstance(a, str) and name in atom_names(a):
                return None
            t = t * atom(a) ** p
        if times > 1:
            return None
        if times:
            out = out + t
    return out


def _drop_unit(k: Kernel, loops: list[Loop], ops: list[Op]) -> list[Loop]:
    gone = {loop.name: 0 for loop in loops if loop.extent == 1}
    if gone:
        for op in ops:
            k.expr[op] = substitute(k.expr[op], gone, k.ranges)
    return [loop for loop in loops if loop.name not in gone]


def merge_loops(k: Kernel, loops: list[Loop], ops: list[Op], any_order: bool) -> list[Loop]:
    """Merge pairs of loops ``o, n`` that every expression walks as ``o*extent(n) + n``.

    ``any_order``: the loops are parallel, so any two may be merged; otherwise only neighbours, outer before inner.
    """
    loops = list(loops)
    changed = True
    while changed and len(loops) > 1:
        changed = False
        for a in range(len(loops) - 1, -1, -1):
            for b in range(len(loops) - 1, -1, -1):
                if a == b or (not any_order and b != a + 1):
                    continue
                outer, inner = loops[a], loops[b]
                if all(_walks_as_one(k.expr[op], outer, inner) for op in ops):
                    for op in ops:
                        k.expr[op] = substitute(k.expr[op], {outer.name: 0})
                    loops[b] = Loop(inner.name, outer.extent * inner.extent)
                    del loops[a]
                    changed = True
                    break
            if changed:
                break
    return loops


def _walks_as_one(e: DimLike, outer: Loop, inner: Loop) -> bool:
    co, ci = coefficient(e, outer.name), coefficient(e, inner.name)
    if co is None or ci is None or co != ci * inner.extent:
        return False
    return not (isinstance(ci, Dim) and (outer.name in ci.names or inner.name in ci.names))


def linearise(k: Kernel, phase: Op) -> Loop:
    """Replace the loops of a phase by one, whose variable the old ones are quotients and remainders of."""
    loops = k.loops[phase]
    name = "'".join(loop.name for loop in loops)
    total = product(loop.extent for loop in loops)
    whole: DimLike = named(name)
    env: dict[str, DimLike] = {}
    ranges = {**k.ranges, name: total}
    stride: DimLike = 1
    for loop in reversed(loops):
        q = floordiv(whole, stride, ranges)
        env[loop.name] = q if loop is loops[0] else mod(q, loop.extent, ranges)
        stride = stride * loop.extent
    for op in phase.walk():
        if op in k.expr:
            k.expr[op] = substitute(k.expr[op], env, ranges)
    k.loops[phase] = [Loop(name, total)]
    k.forget_dependence()
    return k.loops[phase][0]
