"""Linear layouts: where the elements of a tile lie among registers, lanes and warps, or in shared memory.

A layout is a linear map over F2.  Every bit of a place (register number, lane, warp; or a shared-memory offset) moves one
element number to another by XOR with that bit's *basis*: the element at a place is the XOR of the bases of the bits that
are set.  Element numbers are row-major over the tile's extents, each rounded up to a power of two, so a basis is a set of
index bits.  A basis of 0 replicates; a basis with several bits is a swizzle.

All questions are answered by elimination over F2: composition, inverse, what moving from one layout to another takes
(:func:`movement`), and which offsets in shared memory make both the writes and the reads of a move free of bank conflicts
(:func:`swizzle`).

Source: K. Zhou et al., "Linear Layouts: Robust Code Generation of Efficient Tensor Computation Using F2" (2025).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

PLACES = ("reg", "lane", "warp")


def log2_up(n: int) -> int:
    """Bits of an index below ``n``."""
    return (n - 1).bit_length()


def axis_bits(shape: Sequence[int]) -> tuple[int, ...]:
    """Index bits of each axis of a tile."""
    return tuple(log2_up(n) for n in shape)


# -- linear algebra over F2 ---------------------------------------------------------------------------------------------
def eliminate(columns: Iterable[int]) -> dict[int, tuple[int, int]]:
    """A reduced basis of the span: leading bit -> (vector, which columns add up to it)."""
    found: dict[int, tuple[int, int]] = {}
    for i, v in enumerate(columns):
        combination = 1 << i
        for bit, (w, c) in found.items():
            if v >> bit & 1:
                v, combination = v ^ w, combination ^ c
        if v:
            lead = v.bit_length() - 1
            for bit, (w, c) in found.items():
                if w >> lead & 1:
                    found[bit] = (w ^ v, c ^ combination)
            found[lead] = (v, combination)
    return found


def solve(columns: Sequence[int], target: int) -> int | None:
    """Bits ``x`` with ``target`` = XOR of the columns that ``x`` selects; None where it lies outside their span."""
    x = 0
    for bit, (v, c) in eliminate(columns).items():
        if target >> bit & 1:
            target, x = target ^ v, x ^ c
    return None if target else x


def complement(columns: Iterable[int], n: int) -> list[int]:
    """Unit vectors that extend the columns' span to all of the ``n``-bit numbers."""
    leads = eliminate(columns)
    return [1 << i for i in range(n) if i not in leads]


# -- layouts --------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Layout:
    """A linear map from places to element numbers.

    Attributes:
        bits: index bits of each axis of the tile, the last axis lowest in the element number.
        places: (name, bases) of each kind of place, the lowest bit first.
    """

    bits: tuple[int, ...]
    places: tuple[tuple[str, tuple[int, ...]], ...]

    @property
    def dim(self) -> int:
        """Bits of an element number."""
        return sum(self.bits)

    def bases(self, place: str) -> tuple[int, ...]:
        return dict(self.places).get(place, ())

    def columns(self) -> list[int]:
        """All bases, in the order of ``places``."""
        return [c for _, bases in self.places for c in bases]

    def element(self, **at: int) -> int:
        """The element number at a place, such as ``element(reg=1, lane=5)``."""
        n = 0
        for name, bases in self.places:
            x = at.get(name, 0)
            for i, c in enumerate(bases):
                if x >> i & 1:
                    n ^= c
        return n

    def index(self, element: int) -> tuple[int, ...]:
        """The index along each axis of an element number."""
        out = []
        for n in reversed(self.bits):
            out.append(element & ((1 << n) - 1))
            element >>= n
        return tuple(reversed(out))

    def shift(self, axis: int) -> int:
        """The lowest bit of an axis in element numbers."""
        return sum(self.bits[axis + 1:])

    def axis_of(self, bit: int) -> tuple[int, int]:
        """(axis, bit along it) of a bit of element numbers."""
        for axis in range(len(self.bits) - 1, -1, -1):
            if bit < self.bits[axis]:
                return axis, bit
            bit -= self.bits[axis]
        raise ValueError("no such bit")

    @property
    def surjective(self) -> bool:
        """Every element has a place."""
        return len(eliminate(self.columns())) == self.dim

    @property
    def plain(self) -> bool:
        """Every basis is 0 or a single bit, no bit twice."""
        seen = [c for c in self.columns() if c]
        return all(c & (c - 1) == 0 for c in seen) and len(set(seen)) == len(seen)

    # -- algebra -----------------------------------------------------------------------------------------------------------
    def compose(self, outer: Layout) -> Layout:
        """``outer`` after this one: this layout's element numbers are ``outer``'s places, in order."""
        columns = outer.columns()
        image = tuple((name, tuple(_apply(columns, c) for c in bases)) for name, bases in self.places)
        return Layout(outer.bits, image)

    def inverse(self, place: str = "element") -> Layout:
        """From element numbers back to places (numbered in the order of ``places``): the place with the fewest bits set.

        Raises:
            ValueError: an element has no place.
        """
        columns = self.columns()
        rows = [solve(columns, 1 << i) for i in range(self.dim)]
        if any(r is None for r in rows):
            raise ValueError("the layout does not reach every element")
        widths = tuple(len(bases) for _, bases in reversed(self.places))
        return Layout(widths, ((place, tuple(r for r in rows if r is not None)),))

    def permuted(self, perm: Sequence[int]) -> Layout:
        """The layout of the transposed tile, whose axis ``i`` is this one's axis ``perm[i]``."""
        bits = tuple(self.bits[p] for p in perm)
        new = Layout(bits, self.places)
        moved = [0] * self.dim
        for i, p in enumerate(perm):
            for b in range(bits[i]):
                moved[self.shift(p) + b] = 1 << (new.shift(i) + b)
        return Layout(bits, tuple((n, tuple(_apply(moved, c) for c in cs)) for n, cs in self.places))

    def without(self, axis: int) -> Layout:
        """The layout of what is left when an axis is summed away: its bits replicate."""
        low = self.shift(axis)
        high = low + self.bits[axis]
        bits = self.bits[:axis] + self.bits[axis + 1:]
        keep = (1 << low) - 1
        return Layout(bits, tuple((n, tuple((c & keep) | (c >> high << low) for c in cs)) for n, cs in self.places))

    def clipped(self, bits: Sequence[int]) -> Layout:
        """The layout of a tile with fewer index bits along some axes: the upper bits replicate."""
        new = Layout(tuple(bits), self.places)
        table = []
        for b in range(self.dim):
            axis, at = self.axis_of(b)
            table.append(1 << (new.shift(axis) + at) if at < bits[axis] else 0)
        return Layout(new.bits, tuple((n, tuple(_apply(table, c) for c in cs)) for n, cs in self.places))

    def reshaped(self, bits: Sequence[int]) -> Layout:
        """The same places for the same element numbers under other axes."""
        return Layout(tuple(bits), self.places)

    def compact(self) -> Layout:
        """Without registers that hold what others hold."""
        kept: list[int] = []
        for c in self.bases("reg"):
            if c and solve(kept, c) is None:
                kept.append(c)
        return Layout(self.bits, tuple((n, tuple(kept) if n == "reg" else cs) for n, cs in self.places))

    # -- text ----------------------------------------------------------------------------------------------------------------
    def __str__(self) -> str:
        return "_".join(n + ".".join(map(str, cs)) for n, cs in self.places)

    @staticmethod
    @lru_cache(maxsize=4096)
    def parse(text: str, shape: tuple[int, ...]) -> Layout:
        """The inverse of ``str`` for a tile of ``shape``.

        Raises:
            ValueError: the text is no layout.
        """
        places = []
        for part in text.split("_"):
            name = part.rstrip("0123456789.")
            numbers = part[len(name):]
            if not name:
                raise ValueError(f"{text!r} is no layout")
            places.append((name, tuple(int(x) for x in numbers.split(".") if x)))
        return Layout(axis_bits(shape), tuple(places))

    def picture(self, shape: Sequence[int] | None = None) -> str:
        """A drawing for the terminal: at each element of a 1-D or 2-D tile, which warp:lane:register holds it.

        Replicated elements show their first place; a layout of offsets shows the offset.
        """
        extents = tuple(shape) if shape is not None else tuple(1 << b for b in self.bits)
        holder: dict[int, str] = {}
        names = [n for n, cs in self.places]
        for at in _places(self):
            label = ":".join(str(at[n]) for n in reversed(names))
            holder.setdefault(self.element(**at), label)
        columns = extents[-1] if extents else 1
        rows = prod(extents[:-1]) if extents else 1
        low = self.bits[-1] if self.bits else 0
        table = [[holder.get(r << low | c, "-") for c in range(columns)] for r in range(rows)]
        width = max((len(x) for row in table for x in row), default=1)
        head = ":".join(reversed(names))
        return "\n".join([head, *(" ".join(x.rjust(width) for x in row) for row in table)])


def _places(layout: Layout) -> Iterable[dict[str, int]]:
    names = [n for n, _ in layout.places]
    widths = [len(cs) for _, cs in layout.places]
    for flat in range(1 << sum(widths)):
        at, rest = {}, flat
        for n, w in zip(names, widths, strict=True):
            at[n] = rest & ((1 << w) - 1)
            rest >>= w
        yield at


def _apply(columns: Sequence[int], x: int) -> int:
    out, i = 0, 0
    while x:
        if x & 1:
            out ^= columns[i]
        x >>= 1
        i += 1
    return out


# -- making layouts ---------------------------------------------------------------------------------------------------------
@lru_cache(maxsize=4096)
def blocked(shape: tuple[int, ...], vector: int, lanes: int, warps: int, order: tuple[int, ...] | None = None) -> Layout:
    """The layout for memory access: neighbouring elements go to a thread's vector, then to lanes, warps, registers.

    Args:
        vector: elements of one access, along the axis that varies fastest.
        lanes, warps: how many; what the tile does not fill replicates.
        order: the axes, fastest first; None: the last axis first.
    """
    bits = axis_bits(shape)
    axes = order if order is not None else tuple(range(len(shape) - 1, -1, -1))
    probe = Layout(bits, ())
    elements = [1 << (probe.shift(a) + b) for a in axes for b in range(bits[a])]
    threads = log2_up(lanes) + log2_up(warps)
    first = bits[axes[0]] if axes else 0
    own = min(log2_up(vector), first, max(0, len(elements) - threads) if len(elements) > threads else 0)
    reg, rest = elements[:own], elements[own:]
    lane, rest = rest[:log2_up(lanes)], rest[log2_up(lanes):]
    warp, more = rest[:log2_up(warps)], rest[log2_up(warps):]
    lane += [0] * (log2_up(lanes) - len(lane))
    warp += [0] * (log2_up(warps) - len(warp))
    return Layout(bits, (("reg", (*reg, *more)), ("lane", tuple(lane)), ("warp", tuple(warp))))


def grid_of_threads(shape: tuple[int, int], lanes: int, warps: int, vector: int = 4) -> Layout:
    """The layout of a product's result: threads in a grid as square as can be, each holding a rectangle, so that the
    rows and columns it reads are few.

    Args:
        vector: neighbouring columns, and rows, of one thread; 1 where the lanes themselves are the elements of a vector, which then
            all lie along a row.
    """
    rows, columns = axis_bits(shape)
    threads = log2_up(lanes) + log2_up(warps)
    square = max(threads - rows, (threads + columns - rows + 1) // 2, 0)
    across = min(columns, threads, square if vector > 1 else threads)
    down = min(rows, threads - across)
    column = [1 << i for i in range(columns)]
    row = [1 << (columns + i) for i in range(rows)]
    own, high = min(log2_up(vector), columns - across), min(log2_up(vector), rows - down)
    hold = [*column[:own], *row[:high], *column[own + across:], *row[high + down:]]
    spread = [*column[own:own + across], *row[high:high + down]]
    spread += [0] * (threads - len(spread))
    n = log2_up(lanes)
    return Layout((rows, columns), (("reg", tuple(hold)), ("lane", tuple(spread[:n])), ("warp", tuple(spread[n:]))))


def factors_of(result: Layout, k: int) -> tuple[Layout, Layout]:
    """The layouts of lhs [m, k] and rhs [k, n] in which every thread holds what its part of ``result`` [m, n] is made of."""
    depth = log2_up(k)
    rows, columns = result.without(1).compact(), result.without(0).compact()
    along = tuple(1 << i for i in range(depth))
    below = tuple(c << columns.bits[0] for c in along)
    lhs = Layout((rows.bits[0], depth), tuple((p, (*(c << depth for c in cs), *(along if p == "reg" else ()))) for p, cs in rows.places))
    rhs = Layout((depth, columns.bits[0]), tuple((p, (*cs, *(below if p == "reg" else ()))) for p, cs in columns.places))
    return lhs, rhs


@lru_cache(maxsize=4096)
def squares(shape: tuple[int, int], vector: int, group: int, lanes: int, warps: int) -> Layout:
    """The layout for memory access to a tile that is read on in columns: each thread holds ``vector`` neighbours along rows, as
    :func:`blocked`, and of ``group`` rows, fewer where the tile has too few elements."""
    rows, columns = axis_bits(shape)
    threads = log2_up(lanes) + log2_up(warps)
    spare = max(0, rows + columns - threads)
    down = min(log2_up(group), rows, spare)
    own = min(log2_up(vector), columns, spare - down)
    column = [1 << i for i in range(columns)]
    row = [1 << (columns + i) for i in range(rows)]
    rest = [*column[own:], *row[down:]]
    spread, more = rest[:threads], rest[threads:]
    spread += [0] * (threads - len(spread))
    n = log2_up(lanes)
    return Layout((rows, columns), (("reg", (*column[:own], *row[:down], *more)), ("lane", tuple(spread[:n])), ("warp", tuple(spread[n:]))))


def of_fragments(shape: tuple[int, int], unit: tuple[int, int], steps: tuple[Sequence[tuple[int, int]], Sequence[tuple[int, int]]],
                 warps: Sequence[tuple[int, int]]) -> Layout:
    """The layout of an operand or result of a matrix instruction that covers a tile by repetition.

    Registers number the elements of one instruction first, then the instructions along rows, then along columns, as far as no warp
    has them.

    Args:
        shape: the tile; a multiple of ``unit``, powers of two.
        unit: rows and columns of one instruction's operand.
        steps: of its register and of its lane bits (:class:`~tessera.machine.simt.Fragments`).
        warps: what each bit of the warp's number stands for: a step of whole instructions, or (0, 0).
    """
    bits = axis_bits(shape)

    def number(step: tuple[int, int]) -> int:
        return step[0] << bits[1] | step[1]

    blocks = [(unit[0] << i, 0) for i in range(log2_up(shape[0] // unit[0]))]
    blocks += [(0, unit[1] << i) for i in range(log2_up(shape[1] // unit[1]))]
    own = [b for b in blocks if b not in warps]
    return Layout(bits, (("reg", tuple(map(number, (*steps[0], *own)))), ("lane", tuple(map(number, steps[1]))),
                         ("warp", tuple(map(number, warps)))))


def warps_of_product(m: int, n: int, unit: tuple[int, int], warps: int, rows_first: bool = False) -> list[tuple[int, int]]:
    """Which instructions of an [m, n] result the warps take: rows and columns in turn, so that each reads few of either; or rows as
    long as there are any, so that a row stays within a warp."""
    steps = [[(unit[0] << i, 0) for i in range(log2_up(m // unit[0]))], [(0, unit[1] << i) for i in range(log2_up(n // unit[1]))]]
    out: list[tuple[int, int]] = []
    axis = 0
    while len(out) < log2_up(warps):
        axis = axis if steps[axis] else 1 - axis
        out.append(steps[axis].pop(0) if steps[axis] else (0, 0))
        axis = 0 if rows_first else 1 - axis
    return out


@lru_cache(maxsize=1024)
def fragment(shape: tuple[int, ...]) -> Layout:
    """The layout of a warp group's accumulator and left operand (``wgmma``): 64 rows and a multiple of 8 columns.

    Register bits walk a pair of columns, 8 rows, then 8, 16, … columns; lanes 2 and 4 columns, then 1, 2 and 4 rows; warps 16
    and 32 rows.  Source: PTX ISA, "Register fragments for wgmma.mma_async.m64nNk16".
    """
    rows, columns = axis_bits(shape)
    column = [1 << i for i in range(columns)]
    row = [1 << (columns + i) for i in range(rows)]
    return Layout((rows, columns), (("reg", (column[0], row[3], *column[3:])), ("lane", (column[1], column[2], *row[:3])),
                                    ("warp", tuple(row[4:6]))))


# -- moving from one layout to another ----------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Movement:
    """What a conversion takes.

    Attributes:
        kind: ``"none"``, ``"registers"`` (renaming), ``"shuffle"`` (between lanes of a warp) or ``"shared"`` (memory).
        registers: for each register of the target, the source's register that holds its elements.
        lanes: for ``shuffle``, for each register of the target, a number that the sender's lane is XORed with.
        lane_map: for ``shuffle``, the sender's lane for each bit of the receiver's.
    """

    kind: str
    registers: tuple[int, ...] = ()
    lanes: tuple[int, ...] = ()
    lane_map: tuple[int, ...] = ()


@lru_cache(maxsize=4096)
def movement(source: Layout, target: Layout) -> Movement:
    """How a tile gets from ``source`` to ``target``: the cheapest way that the algebra allows.

    For every bit of a target place, the source's place of the same element is solved for; where the source replicates,
    a thread takes its own copy.
    """
    if source == target:
        return Movement("none")
    reg, lane, warp = (source.bases(p) for p in PLACES)
    nr = len(reg)
    # A thread stays in its warp, and the register it takes does not depend on its lane: what its bits select in the
    # target they must select in the source too, if need be in another lane.
    if target.bases("warp") != warp or len(target.bases("lane")) != len(lane):
        return Movement("shared")
    by_lane: list[int] = []
    for i, (a, b) in enumerate(zip(target.bases("lane"), lane, strict=True)):
        at = 1 << i if a == b else solve(lane, a)
        if at is None:
            return Movement("shared")
        by_lane.append(at)
    by_reg: list[int] = []
    for c in target.bases("reg"):
        own = solve(reg, c)
        own = own if own is not None else solve([*reg, *lane], c)
        if own is None:
            return Movement("shared")
        by_reg.append(own)
    places = [_apply(by_reg, r) for r in range(1 << len(by_reg))]
    registers, lanes = tuple(x & ((1 << nr) - 1) for x in places), tuple(x >> nr for x in places)
    here = not any(lanes) and all(x == 1 << i for i, x in enumerate(by_lane))
    return Movement("registers" if here else "shuffle", registers, lanes, tuple(by_lane))


@lru_cache(maxsize=4096)
def contiguous(layout: Layout, offsets: Layout) -> int:
    """How many registers in a row lie at successive offsets, the first at a multiple of their number: the widest vector
    access (a power of two)."""
    there = layout.compose(offsets.inverse())
    columns, n = there.columns(), 0
    for i, c in enumerate(there.bases("reg")):
        if c != 1 << i or sum(x >> i & 1 for x in columns) != 1:
            break
        n += 1
    return 1 << n


@lru_cache(maxsize=4096)
def swizzle(writer: Layout, reader: Layout, bits: int, banks: int = 32) -> Layout:
    """Offsets in shared memory for a move from ``writer`` to ``reader``: vectors of up to 16 bytes where both have them,
    and no bank conflict on either side where the algebra allows that.

    Args:
        bits: of one element.
        banks: of shared memory, 32 bits each.

    Returns:
        A layout with the one place ``"offset"``, a bijection.
    """
    n = writer.dim
    common = [c for c in writer.bases("reg") if c in reader.bases("reg") and c]
    vector = common[:max(0, log2_up(max(1, 128 // bits)))]
    words = log2_up(max(1, (bits << len(vector)) // 32))  # of one access
    served = max(0, log2_up(banks) - words)  # lanes of one wavefront
    a = [c for c in (*vector, *writer.bases("lane")[:served]) if c]
    b = [c for c in (*vector, *reader.bases("lane")[:served]) if c]
    in_bank = min(n, log2_up(max(1, banks * 32 // bits))) - len(vector)
    rest = n - len(vector) - in_bank  # bits that choose the row of banks
    rows = [1 << i for i in range(n) if solve(a, 1 << i) is None and solve(b, 1 << i) is None][:rest]
    only_a, only_b = sorted(c for c in a if c not in b), sorted(c for c in b if c not in a)
    for x, y in zip(only_a, only_b, strict=False):
        if len(rows) < rest and solve([*vector, *rows], x ^ y) is None:
            rows.append(x ^ y)
    for c in complement([*vector, *rows], n):
        if len(rows) < rest:
            rows.append(c)
    inside = complement([*vector, *rows], n)[:in_bank]
    return Layout(writer.bits, (("offset", (*vector, *inside, *rows)),))


def conflicts(layout: Layout, offsets: Layout, bits: int, banks: int = 32) -> int:
    """The worst number of passes that one access of a warp takes beyond its share: 1 is free of conflicts.

    By simulation: every lane's vector, lanes served in groups that together could fill the banks once.
    """
    back = offsets.inverse()
    vector = min(contiguous(layout, offsets), max(1, 128 // bits))
    words = max(1, vector * bits // 32)
    group = max(1, banks // words)
    worst = 1
    lanes = 1 << len(layout.bases("lane"))
    for r in range(0, 1 << len(layout.bases("reg")), vector):
        for first in range(0, lanes, group):
            rows: dict[int, set[int]] = {}
            for lane in range(first, min(lanes, first + group)):
                word = back.element(element=layout.element(reg=r, lane=lane)) * bits // 32
                for k in range(words):
                    rows.setdefault((word + k) % banks, set()).add(word + k)
            worst = max(worst, max(len(s) for s in rows.values()))
    return worst


def free_bits(layout: Layout) -> Mapping[str, tuple[int, ...]]:
    """For lanes and warps, the bits that replicate: threads with any of them set hold copies."""
    seen: list[int] = [c for c in layout.bases("reg") if c]
    out: dict[str, tuple[int, ...]] = {}
    for place in ("lane", "warp"):
        free = []
        for i, c in enumerate(layout.bases(place)):
            if c == 0 or solve(seen, c) is not None:
                free.append(i)
            else:
                seen.append(c)
        out[place] = tuple(free)
    return out


__all__ = ["Layout", "Movement", "blocked", "complement", "conflicts", "contiguous", "eliminate", "factors_of", "free_bits",
           "grid_of_threads", "movement", "solve", "squares", "swizzle"]
