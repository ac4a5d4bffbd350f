"""Which values share a kernel.

Roots are the values that must exist in memory (results, and operands of templates and host routines).  A kernel computes one
or more roots of one shape; everything between them and what is already in memory is recomputed inside, by these rules:

* pointwise and movement ops are inlined wherever they are used;
* a reduction is inlined where its index depends on the kernel's rows alone and each row needs it once: the kernel then
  has the rows as its grid (softmax, norms);
* an expensive value (transcendental functions) is never computed at more points than it has elements;
* a value with further users elsewhere is stored by the first kernel that meets each of its elements once.

What the rules refuse becomes a root of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from dataclasses import replace as replaced

from ..ir.core import Op, Value
from ..ops.movement import is_uniform
from ..ops.table import OPS
from ..types.dims import Dim, DimLike, name, product
from . import templates
from .elements import covers
from .indexing import Index, injective, replace, typical
from .summary import EXPENSIVE, Summaries, Summary, axis_name

MAX_BUFFERS = 14  # operands of one kernel
REPEATED = 3  # cycles of an operand of a contraction that are worth a buffer
MAX_DEPTH = 56  # ops of the longest chain in one kernel
MAX_VISITS = 400  # (value, index) pairs of one kernel


class Materialise(Exception):
    """``value`` has to be in memory before the kernel that asked for it can be built."""

    def __init__(self, value: Value):
        super().__init__(value)
        self.value = value


@dataclass
class Plan:
    """One kernel: see the module's text.

    Attributes:
        roots: values of one shape, in program order.
        shape: their shape.
        grid: axes that are grid loops; the others are loops inside.
        rows: reductions computed once a grid point, dependencies first, with their index over ``$axis``.
        side: further values that the kernel stores.
        scratch: an expensive value and the root whose buffer holds it between two loops.
        leaves: the buffers' values it reads.
        visits: (value, index) pairs met.
    """

    roots: list[Value]
    shape: tuple[DimLike, ...]
    grid: tuple[int, ...] = ()
    rows: list[tuple[Value, Index]] = field(default_factory=list)
    side: list[Value] = field(default_factory=list)
    scratch: tuple[Value, Value] | None = None
    leaves: dict[Value, None] = field(default_factory=dict)
    visits: dict[Value, dict[Index, Context]] = field(default_factory=dict)
    ranges: dict[str, DimLike] = field(default_factory=dict)

    @property
    def inner(self) -> tuple[int, ...]:
        return tuple(k for k, e in enumerate(self.shape) if e != 1 and k not in self.grid)

    def index(self) -> Index:
        """The roots' index over ``$axis``."""
        return tuple(0 if e == 1 else name(axis_name(k)) for k, e in enumerate(self.shape))


# Ops with both an element rule and a template: whether the rule serves better for this one.
BY_ELEMENT: dict[str, Callable[[Op], bool]] = {}


def fusable(op: Op) -> bool:
    """True for ops that are computed element by element inside kernels and are no launch of their own."""
    rule = OPS.get(op.name)
    if rule is None or (rule.element is None and not rule.pointwise):
        return False
    if op.name == "constant" and not is_uniform(op):
        return False
    if rule.template is None or not templates.available(rule.template):
        return True
    prefers = BY_ELEMENT.get(op.name)
    return prefers is not None and prefers(op)


class Fusion:
    """Decides kernels for one block of Graph ops.

    Args:
        users: the ops that use a value (``return`` and ``yield`` included).
        ready: True for values in memory.
        elementwise: ops to be computed by their element rule although they have a template.
        weights: what :meth:`weight` has found so far, shared with the blocks around.
    """

    def __init__(self, users: dict[Value, list[Op]], ready: Callable[[Value], bool], summaries: Summaries,
                 elementwise: set[Op], weights: dict[Value, tuple[int, int]]):
        self.users, self.ready, self.summaries, self.elementwise = users, ready, summaries, elementwise
        self.weights = weights

    def fusable(self, op: Op) -> bool:
        """As the function of that name; also ops whose template turned out not to fit."""
        return op in self.elementwise or fusable(op)

    # -- cost ----------------------------------------------------------------------------------------------------------
    def weight(self, v: Value) -> tuple[int, int]:
        """(elements read, cycles) to compute one element of ``v``; values in memory and reductions read one."""
        if v.op is None or self.ready(v):
            return 1, 0
        got = self.weights.get(v)
        if got is None:
            got = self.weights[v] = self._weigh(v)
        return got

    def _weigh(self, v: Value) -> tuple[int, int]:
        assert v.op is not None
        if not self.fusable(v.op):
            return 1, 0
        s = self.summaries[v.op]
        if s.reduces:
            return 1, EXPENSIVE
        loads, cost = 0, s.cost
        for a in s.accesses:
            below = self.weight(v.op.operands[a.operand])
            loads, cost = loads + below[0], cost + below[1]
        return min(loads, 100), min(cost, 1000)

    def light(self, v: Value) -> bool:
        """Cheaper to compute again than to write and read."""
        loads, cost = self.weight(v)
        return loads <= 1 and cost < EXPENSIVE

    # -- planning ------------------------------------------------------------------------------------------------------
    def plan(self, roots: Sequence[Value]) -> Plan:
        """A kernel that computes ``roots`` (all of one shape).

        Raises:
            Materialise: naming a value to put into memory first; ask again after that.
        """
        p = Plan(list(roots), tuple(roots[0].type.shape))
        p.ranges = {axis_name(k): e for k, e in enumerate(p.shape)}
        for r in roots:
            self._visit(p, r, p.index(), Context(root=True))
        self._choose_grid(p)
        self._check_costs(p)
        self._choose_side(p)
        self._choose_scratch(p)
        return p

    def _visit(self, p: Plan, v: Value, index: Index, c: Context) -> None:
        if self.ready(v):
            p.leaves[v] = None
            return
        seen = p.visits.setdefault(v, {})
        if index in seen:
            return
        seen[index] = c
        if sum(map(len, p.visits.values())) > MAX_VISITS:
            raise Materialise(self._deepest_shared(p, v))
        if c.depth > MAX_DEPTH:
            raise Materialise(v)
        if v.op is None or not self.fusable(v.op):
            raise Materialise(v)
        s = self.summaries[v.op]
        if s.reduces and not c.root and (self._inner_names(index) or c.guarded or c.dynamic):
            raise Materialise(self._cut(p, v, c))
        if c.dynamic and not c.root and not self.light(v):
            raise Materialise(v)
        self._visit_operands(p, v, s, index, c)
        if s.reduces:
            p.rows.append((v, index))

    def _visit_operands(self, p: Plan, v: Value, s: Summary, index: Index, c: Context) -> None:
        assert v.op is not None
        env = {axis_name(k): e for k, e in enumerate(index)}
        p.ranges.update(s.ranges)
        for a in s.accesses:
            loops = tuple([n for n in s.ranges if n.startswith("$r")]) if a.reduced else c.loops
            below = Context(False, c.reduced or a.reduced, c.guarded or a.guarded, c.dynamic or a.dynamic, depth=c.depth + 1,
                            loops=loops)
            source = v.op.operands[a.operand]
            if below.reduced or below.guarded or below.dynamic:
                below = replaced(below, path=(*c.path, source), contracted=c.contracted or v.op.name == "dot_general")
            at = tuple(replace(e, env, p.ranges) for e in a.index)
            self._visit(p, source, at, below)

    def _cut(self, p: Plan, v: Value, c: Context) -> Value:
        """Which value to put into memory where a reduction ``v`` stands inside a loop or guard: the smallest between; of these
        the outermost, so that what follows the reduction comes along, or the outermost that others need too."""
        between = [u for u in c.path if u not in p.roots and u.op is not None and not self.ready(u)
                   and not self.summaries[u.op].movement]
        least = min((typical(u.type.size) for u in between), default=0)
        small = [u for u in between if typical(u.type.size) == least]
        return next((u for u in small if len(set(self.users.get(u, ()))) > 1), small[0] if small else v)

    def _deepest_shared(self, p: Plan, v: Value) -> Value:
        """Where to cut a kernel that grows too large: a value that many places use, else the one just met."""
        shared = [u for u, at in p.visits.items() if len(at) > 1 and u.op is not None and u not in p.roots]
        if shared:
            return max(shared, key=lambda u: len(p.visits[u]))
        if v in p.roots:
            raise RecursionError("a single value needs a kernel of more than the allowed size")
        return v

    # -- grid ----------------------------------------------------------------------------------------------------------
    def _axes(self, p: Plan, index: Sequence[DimLike]) -> set[int]:
        names = {n for e in index if isinstance(e, Dim) for n in e.names}
        return {k for k in range(len(p.shape)) if axis_name(k) in names}

    def _choose_grid(self, p: Plan) -> None:
        every = {k for k, e in enumerate(p.shape) if e != 1}
        if not p.rows:
            p.grid = tuple(sorted(every))
            return
        grid: set[int] = set()
        for _, index in p.rows:
            grid |= self._axes(p, index)
        points = product(p.shape[k] for k in grid)
        for v, index in p.rows:
            if self._axes(p, index) != grid or v.type.size != points:
                if v in p.roots:
                    raise Materialise(next(u for u, _ in p.rows if u not in p.roots))
                raise Materialise(v)
        inner = product(p.shape[k] for k in every - grid)
        few = isinstance(points, int) and points < 4
        if few and inner != 1 and (not isinstance(inner, int) or inner > 65536):
            raise Materialise(p.rows[0][0])
        p.grid = tuple(sorted(grid))

    def _space(self, p: Plan, index: Index, v: Value) -> DimLike | None:
        """Points at which a kernel computes ``v`` there; None: once a row."""
        if p.inner and self._axes(p, index) <= set(p.grid) and not self._inner_names(index):
            return None
        inner = self._reducing(p, index, v)
        return product([*(p.shape[k] for k in p.grid), *(p.ranges[n] for n in inner)]) if inner else \
            product(p.shape)

    def _reducing(self, p: Plan, index: Index, v: Value) -> list[str]:
        """The loops of the reduction around a place that mentions one of them: all of them are one nest."""
        inner = self._inner_names(index)
        return sorted(inner.union(p.visits[v][index].loops)) if inner else []

    def _loops(self, p: Plan, index: Index, v: Value) -> list[str]:
        """The loops around a place."""
        inner = self._reducing(p, index, v)
        axes = p.grid if inner else (*p.grid, *p.inner)
        return [axis_name(k) for k in axes] + inner

    @staticmethod
    def _inner_names(index: Index) -> set[str]:
        return {n for e in index if isinstance(e, Dim) for n in e.names if n.startswith("$r")}

    def _check_costs(self, p: Plan) -> None:
        self._check_repeats(p)
        for v, indices in p.visits.items():
            if v.op is None or self.ready(v) or self.summaries[v.op].reduces or self.weight(v)[1] < EXPENSIVE:
                continue
            if self._own_cost(v) < EXPENSIVE:
                continue
            bare = all(self._bare(p, v, i) for i in indices)
            if len(indices) > 1 and not bare:
                raise Materialise(v)
            for i in indices:
                points = self._space(p, i, v)
                if points is None:
                    points = product(p.shape[k] for k in p.grid)
                if points != v.type.size and not (indices[i].guarded and injective(i, p.ranges, self._loops(p, i, v))):
                    raise Materialise(v)

    def _check_repeats(self, p: Plan) -> None:
        """Arithmetic inside a contraction is done once for each point of the grid: too often, if it is more than one op."""
        for v, indices in p.visits.items():
            if v in p.roots or v.op is None or self.ready(v) or self.summaries[v.op].reduces or self.weight(v)[1] < REPEATED:
                continue
            for i, c in indices.items():
                points = self._space(p, i, v) if self._inner_names(i) else None
                if points is not None and c.contracted and not c.guarded and typical(points) >= 8 * typical(v.type.size):
                    raise Materialise(v)

    def _own_cost(self, v: Value) -> int:
        """Cost of the chain down to values that are checked on their own."""
        assert v.op is not None
        return self.summaries[v.op].cost

    def _bare(self, p: Plan, v: Value, index: Index) -> bool:
        names = {n for e in index if isinstance(e, Dim) for n in e.names}
        loops = [(n, p.ranges[n]) for n in sorted(names) if n in p.ranges]
        return len(loops) == len(names) and covers(index, v.type.shape, loops)

    # -- what else the kernel stores -----------------------------------------------------------------------------------
    def _choose_side(self, p: Plan) -> None:
        members = {v.op for v in p.visits}
        for v, indices in p.visits.items():
            if v in p.roots or v.op is None or len(self.users.get(v, ())) < 2 or self.light(v):
                continue
            if all(u in members for u in self.users[v]):
                continue
            if any(self._storable(p, v, i) for i in indices):
                p.side.append(v)
            else:
                raise Materialise(v)
        if len(p.leaves) + len(p.side) + len(p.roots) > MAX_BUFFERS and p.side:
            raise Materialise(p.side[0])

    def _storable(self, p: Plan, v: Value, index: Index) -> bool:
        if p.visits[v][index].reduced and not p.rows:
            return False
        loops = [axis_name(k) for k in p.grid]
        if self._axes(p, index) - set(p.grid):
            loops += [axis_name(k) for k in p.inner]
        loops += self._reducing(p, index, v)
        return covers(index, v.type.shape, [(n, p.ranges[n]) for n in loops])

    def _choose_scratch(self, p: Plan) -> None:
        """Softmax: ``exp(x - max)`` is summed in one loop and scaled in the next; keep it in the result's buffer."""
        if not p.inner or len(p.roots) != 1:
            return
        root = p.roots[0]
        if len(p.visits[root]) != 1:
            return
        for v, indices in p.visits.items():
            if v is root or v.op is None or v in p.side or self._own_cost(v) < EXPENSIVE:
                continue
            if self.summaries[v.op].reduces or v.type != root.type or p.index() not in indices:
                continue
            inner = [i for i in indices if self._inner_names(i)]
            rest = [i for i in indices if not self._inner_names(i)]
            if inner and rest == [p.index()] and all(self._storable(p, v, i) for i in inner):
                p.scratch = (v, root)
                return


@dataclass(frozen=True)
class Context:
    """How a value is reached from the root."""

    root: bool = False
    reduced: bool = False
    guarded: bool = False
    dynamic: bool = False
    contracted: bool = False  # inside a product computed element by element
    depth: int = 0
    loops: tuple[str, ...] = ()  # of the innermost reduction around it
    path: tuple[Value, ...] = ()


__all__ = ["Context", "Fusion", "Materialise", "Plan", "fusable"]
