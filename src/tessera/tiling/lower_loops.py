"""Loops of a kernel as loops of tile programs: over lanes with a masked tail, sequential, and reductions in fixed order."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ..ir.core import INDEX, BufferType, Op, ScalarType, TileType, Value
from ..types.dims import DimLike, mod, product, substitute
from ..types.dims import name as named
from ..types.dtypes import DType, bool_, int64
from .lower_analysis import Loop, linearise
from .lower_body import Axis, Body, Context, stores
from .lower_cost import best_lane, widest
from .lower_emit import Int, combine_name, identity, order_matters, scalar_of

_UNSET = 2 ** 63 - 1  # the index of an argmax lane that has seen no element
_UNROLLED = 16  # a reduction of at most so many iterations is written out


class Loops(Body):
    """Adds ``reduce`` and ``for``.  Where no lanes are open yet, a phase opens them along its own innermost loop."""

    machine: Any

    # -- grouping --------------------------------------------------------------------------------------------------------
    def run(self, ops: Sequence[Op], ctx: Context) -> list[Value]:
        """As in :class:`Body`; reductions over equal loops that do not depend on each other share one pass."""
        for at, op in enumerate(ops):
            if op.name == "yield":
                return [self.value(v) for v in op.operands]
            if op.results and self.has(op.results[0]):
                continue
            if op.name == "reduce":
                self._reduce_group(self._companions(op, ops[at + 1:], ctx), ctx)
            else:
                self.evaluate(op, ctx)
        return []

    def _companions(self, first: Op, rest: Sequence[Op], ctx: Context) -> list[Op]:
        """``first`` and later reductions for the same pass; what these need is evaluated here."""
        group, late, before = [first], set(first.results), []
        if stores(first) or self.reads_written(first):
            return group
        for op in rest:
            if op.name in ("store", "for", "check", "yield"):
                break
            if any(v in late for o in op.walk() for v in o.operands):
                late.update(op.results)
            elif op.name != "reduce":
                if not self.reads_written(op):
                    before.append(op)
                else:
                    late.update(op.results)
            else:
                free = not stores(op) and not self.reads_written(op)
                if free and self._fits(first, op) and not self.has(op.results[0]):
                    group.append(op)
                late.update(op.results)
        if len(group) > 1:
            super().run([op for op in before if not self.has(op.results[0])], ctx)
            for op in group[1:]:
                self._share_names(self.k.loops[first], op)
        return group

    def _fits(self, a: Op, b: Op) -> bool:
        return [x.extent for x in self.k.loops[a]] == [x.extent for x in self.k.loops[b]] and \
            self._lanes(a) == self._lanes(b)

    def _share_names(self, loops: list[Loop], op: Op) -> None:
        names = {old.name: named(new.name) for old, new in zip(self.k.loops[op], loops, strict=True)
                 if old.name != new.name}
        if names:
            for o in op.walk():
                if o in self.k.expr:
                    self.k.expr[o] = substitute(self.k.expr[o], names)
            self.k.loops[op] = list(loops)
            self.k.forget_dependence()

    def _lanes(self, op: Op) -> int:
        """Accumulators whose order is fixed; 0 where any order gives the same bits."""
        if not order_matters(op.attrs["combine"], scalar_of(op.results[0].type)):
            return 0
        return int(op.attrs.get("lanes", 1))

    # -- loops -----------------------------------------------------------------------------------------------------------
    def nest(self, loops: Sequence[Loop], ops: Sequence[Op], ctx: Context, carried: Sequence[Value],
             body: Callable[[Context, list[Value]], Sequence[Value]]) -> list[Value]:
        """Sequential loops around ``body``; before each, what ``ops`` need and it does not change is evaluated."""
        if not loops:
            return list(body(ctx, list(carried)))
        loop, rest = loops[0], loops[1:]
        self.hoist(ops, frozenset(x.name for x in loops), ctx)

        def step(i: Value, accs: list[Value]) -> Sequence[Value]:
            with self.scope():
                return self.nest(rest, ops, ctx.bind(**{loop.name: self.e.known(i)}), accs, body)

        return self.e.loop(0, self.e.size(loop.extent), 1, carried, step)

    def lanes(self, loop: Loop, lo: Int, hi: Int, width: int, tail: int, ops: Sequence[Op], ctx: Context,
              carried: Sequence[Value], body: Callable[[Context, list[Value]], Sequence[Value]],
              stream: bool = False, unit: int = 0) -> list[Value]:
        """``loop`` from lo to hi on lanes: whole tiles of ``width``, then the rest in masked tiles of ``tail`` lanes, or where lo and
        hi are multiples of ``unit``, in whole tiles of that many.

        ``stream``: a pass over much memory that writes little, which gains from asking for lines ahead.
        """
        e = self.e
        self.hoist(ops, frozenset((loop.name,)), ctx)
        n = e.sub(hi, lo)
        whole = e.add(lo, e.round_down(n, width))

        def step(extent: int, masked: bool) -> Callable[[Value, list[Value]], Sequence[Value]]:
            def run(i: Value, accs: list[Value]) -> Sequence[Value]:
                base = e.known(i)
                mask = None
                if masked:
                    left = e.splat(e.index(e.sub(hi, base)), (extent,))
                    mask = e.compare("lt", e.iota((extent,), 0), left)
                with self.scope():
                    return body(replace(ctx, axes=(Axis(loop.name, base, extent),), tail=mask), accs)
            return run

        if self.machine.map_unroll == 1 and not carried and not unit and not (isinstance(n, int) and (n < width or n % width == 0)):
            return e.loop(lo, hi, tail, carried, step(tail, True))  # one copy of the body, where code is dear and masks are cheap
        with self.stream(stream):
            carried = e.loop(lo, whole, width, carried, step(width, False))
        if unit:
            return e.loop(whole, hi, unit, carried, step(unit, False))
        rest = hi - whole if isinstance(hi, int) and isinstance(whole, int) else None
        if rest is not None and rest % tail == 0:
            return e.loop(whole, hi, tail, carried, step(tail, False))
        return e.loop(whole, hi, tail, carried, step(tail, True))

    def unit(self, extent: DimLike, tail: int) -> int:
        """The most lanes up to ``tail``, and at least half of them, that divide a loop whose extent is symbolic; 0: none are known to."""
        known = self.k.op.attrs.get("multiples", ())
        if isinstance(extent, int) or not known:
            return 0
        extent = substitute(extent, {n: m * named(n) for n, m in known})
        return next((n for n in (tail, tail // 2) if n > 1 and mod(extent, n) == 0), 0)

    def _for(self, op: Op, ctx: Context) -> list[Value]:
        ops = op.blocks[0].ops

        def body(inner: Context, _: list[Value]) -> Sequence[Value]:
            self.run(ops, inner)
            return ()

        loops = self.k.loops[op]
        if self._empty(op):
            return []
        if ctx.axes or not loops:
            self.nest(loops, ops, ctx, (), body)
            return []
        lane = best_lane(self.k, list(op.walk()), loops, self.machine)[0]
        outer = [x for x in loops if x is not lane]
        full = self.machine.vector_lanes(widest(op))
        width = self.width(op, lane)

        def row(inner: Context, _: list[Value]) -> Sequence[Value]:
            return self.lanes(lane, 0, self.e.size(lane.extent), width, min(full, width), ops, inner, (), body)

        self.nest(outer, ops, ctx, (), row)
        return []

    def width(self, op: Op, lane: Loop) -> int:
        """Lanes of a tile for a map: several registers in flight, fewer where the body is long or the loop short."""
        full: int = self.machine.vector_lanes(widest(op))
        most = self.machine.map_unroll
        flight = most if _weight(op) <= 40 else max(1, most // 2)
        unroll = int(self.k.op.attrs.get("unroll", 0)) or max(flight, self.machine.access_elements(widest(op)))
        if isinstance(lane.extent, int):
            unroll = max(1, min(unroll, lane.extent // full))
        return full * unroll

    # -- reductions ------------------------------------------------------------------------------------------------------
    def _reduce(self, op: Op, ctx: Context) -> list[Value]:
        self._reduce_group([op], ctx)
        found = [self.value(r) for r in op.results]
        return found

    def _reduce_group(self, ops: list[Op], ctx: Context) -> None:
        lanes = self._lanes(ops[0])
        if self._empty(ops[0]):
            for op in ops:
                start = self._start(op, ())
                self._define(op, start)
            return
        total = product(x.extent for x in self.k.loops[ops[0]])
        few = isinstance(total, int) and total <= 4
        if not ctx.axes and self.k.loops[ops[0]] and (lanes == 0 or lanes >= 4) and not few:
            self._reduce_on_lanes(ops, lanes, ctx)
        elif lanes > 1:
            for op in ops:
                if isinstance(total, int) and total <= min(lanes, _UNROLLED):
                    self._reduce_unrolled(op, ctx)
                else:
                    self._reduce_in_scratch(op, lanes, ctx)
        else:
            self._reduce_in_order(ops, ctx)

    def _empty(self, op: Op) -> bool:
        return any(isinstance(x.extent, int) and x.extent == 0 for x in self.k.loops[op])

    def _start(self, op: Op, shape: tuple[int, ...]) -> list[Value]:
        combine, dtype = op.attrs["combine"], scalar_of(op.results[0].type)
        value = self.e.const(identity(combine, dtype), dtype, shape)
        return [value, self.e.const(_UNSET, int64, shape)] if combine.startswith("arg") else [value]

    def _take_in(self, op: Op, accs: list[Value], new: list[Value], mask: Value | None) -> list[Value]:
        """The accumulators with one more element (for every lane)."""
        combine = op.attrs["combine"]
        if combine.startswith("arg"):
            return self._better(combine, accs, new, mask)
        dtype = scalar_of(accs[0].type)
        return [self.e.pointwise(combine_name(combine, dtype), accs[0], new[0], dtype=dtype)]

    def _better(self, combine: str, old: list[Value], new: list[Value], mask: Value | None = None,
                ties: bool = False) -> list[Value]:
        """The better of two (value, index) pairs: NaN before all numbers, else the extremum, else the first index."""
        e = self.e
        (a, ai), (b, bi) = old, new
        dtype = scalar_of(a.type)
        wins = e.compare("gt" if combine == "argmax" else "lt", b, a)
        tie = e.compare("eq", a, b) if ties else None
        unset = e.compare("eq", ai, e.const(_UNSET, int64))
        if dtype.is_float:
            nan_a, nan_b = (e.pointwise("isnan", v, dtype=bool_) for v in (a, b))
            first_nan = self._and(nan_b, e.pointwise("logical_not", nan_a, dtype=bool_))
            wins = e.pointwise("logical_or", wins, first_nan, dtype=bool_)
            if tie is not None:
                tie = e.pointwise("logical_or", tie, self._and(nan_a, nan_b), dtype=bool_)
        wins = e.pointwise("logical_or", wins, unset, dtype=bool_)
        if tie is not None:
            wins = e.pointwise("logical_or", wins, self._and(tie, e.compare("lt", bi, ai)), dtype=bool_)
            wins = self._and(wins, e.compare("ne", bi, e.const(_UNSET, int64)))
        take = wins if mask is None else self._and(wins, mask)
        return [e.pointwise("select", take, b, a, dtype=dtype), e.pointwise("select", take, bi, ai, dtype=int64)]

    def _and(self, a: Value, b: Value) -> Value:
        return self.e.pointwise("logical_and", a, b, dtype=bool_)

    def _define(self, op: Op, values: Sequence[Value]) -> None:
        for old, new in zip(op.results, values, strict=True):
            self.define(old, new)

    def _reduce_in_order(self, ops: list[Op], ctx: Context) -> None:
        """One accumulator for each lane that is open, iterations in order."""
        inner = [o for op in ops for o in op.blocks[0].ops]
        start = [v for op in ops for v in self._start(op, ctx.shape)]

        def body(at: Context, accs: list[Value]) -> Sequence[Value]:
            out: list[Value] = []
            for op in ops:
                mine, accs = accs[:len(op.results)], accs[len(op.results):]
                new = [self.e.splat(v, ctx.shape) for v in self.run(op.blocks[0].ops, at)]
                out += self._take_in(op, mine, new, None)
            return out

        found = self.nest(self.k.loops[ops[0]], inner, ctx, start, body)
        for op in ops:
            self._define(op, found[:len(op.results)])
            found = found[len(op.results):]

    def _reduce_unrolled(self, op: Op, ctx: Context) -> None:
        """At most as many iterations as accumulators: one element each, then the tree."""
        e, dtype = self.e, scalar_of(op.results[0].type)
        names: list[dict[str, Int]] = [{}]
        for loop in self.k.loops[op]:
            assert isinstance(loop.extent, int)
            names = [{**n, loop.name: i} for n in names for i in range(loop.extent)]
        combine = combine_name(op.attrs["combine"], dtype)
        start = self._start(op, ctx.shape)[0]
        self.hoist(op.blocks[0].ops, frozenset(x.name for x in self.k.loops[op]), ctx)
        parts = []
        for n in names:
            with self.scope():
                v = self.run(op.blocks[0].ops, ctx.with_env(n))[0]
            parts.append(e.pointwise(combine, start, e.splat(v, ctx.shape), dtype=dtype))
        self._define(op, [self._tree(combine, parts, int(op.attrs["lanes"])) if parts else start])

    def _tree(self, combine: str, parts: list[Value], lanes: int) -> Value:
        n = lanes
        while n > 1:
            h = 1 << (n - 1).bit_length() - 1
            parts = [self.e.pointwise(combine, v, parts[h + i]) if h + i < len(parts) else v
                     for i, v in enumerate(parts[:h])]
            n = h
        return parts[0]

    def _reduce_in_scratch(self, op: Op, lanes: int, ctx: Context) -> None:
        """More accumulators than registers hold: they lie in scratch memory, one row each."""
        e, dtype = self.e, scalar_of(op.results[0].type)
        combine = combine_name(op.attrs["combine"], dtype)
        t: Any = TileType(dtype, ctx.shape) if ctx.axes else ScalarType(dtype)
        scratch = self.alloc(dtype, (lanes, *ctx.shape))
        zeros = [e.index(0)] * len(ctx.axes)
        attrs = {"axes": tuple(range(1, 1 + len(ctx.axes)))} if ctx.axes else {}
        start = self._start(op, ctx.shape)[0]

        def put(i: Value, v: Value) -> None:
            e.effect("store", [scratch, i, *zeros, v], attrs)

        def get(i: Int) -> Value:
            return e.op("load", (scratch, e.index(i), *zeros), t, attrs)

        def clear(i: Value, _: list[Value]) -> Sequence[Value]:
            put(i, start)
            return ()

        def body(at: Context, carried: list[Value]) -> Sequence[Value]:
            lane = carried[0]
            v = e.splat(self.run(op.blocks[0].ops, at)[0], ctx.shape)
            put(lane, e.pointwise(combine, get(lane), v, dtype=dtype))
            following = e.index(e.add(lane, 1))
            again = e.compare("eq", following, e.index(lanes))
            return [e.pointwise("select", again, e.index(0), following, dtype=int64)]

        e.loop(0, lanes, 1, (), clear)
        self.nest(self.k.loops[op], op.blocks[0].ops, ctx, [e.index(0)], body)
        n = lanes
        while n > 1:
            h = 1 << (n - 1).bit_length() - 1

            def fold(i: Value, _: list[Value], h: int = h) -> Sequence[Value]:
                put(i, e.pointwise(combine, get(i), get(e.add(i, h)), dtype=dtype))
                return ()

            e.loop(0, n - h, 1, (), fold)
            n = h
        self._define(op, [get(0)])

    def _reduce_on_lanes(self, ops: list[Op], lanes: int, ctx: Context) -> None:
        """The accumulators are the lanes of a tile along the innermost loop."""
        loops = self.k.loops[ops[0]]
        turning = bool(lanes) and len(loops) > 1 and mod(loops[-1].extent, lanes) != 0  # rows do not start at lane 0
        if turning and isinstance(loops[-1].extent, int) and loops[-1].extent < lanes // 2:
            for op in ops:  # rows of a few elements: walk all iterations as one loop
                linearise(self.k, op)
            loops, turning = self.k.loops[ops[0]], False
        lane, outer = loops[-1], loops[:-1]
        width = self._reduction_width(ops, lanes, lane)
        width = lanes if turning else width
        count = lanes or width
        inner = [o for op in ops for o in op.blocks[0].ops]
        start = [v for op in ops for v in self._start(op, (count,))]

        def body(at: Context, accs: list[Value]) -> Sequence[Value]:
            out: list[Value] = []
            for op in ops:
                mine, accs = accs[:len(op.results)], accs[len(op.results):]
                new = [self.e.splat(v, at.shape) for v in self.run(op.blocks[0].ops, at)]
                out += self._accumulate(op, mine, new, at.tail, count)
            return out

        def row(at: Context, accs: list[Value]) -> Sequence[Value]:
            long = not isinstance(lane.extent, int) or lane.extent >= 4 * width
            return self.lanes(lane, 0, self.e.size(lane.extent), width, count, inner, at, accs, body, stream=long)

        def turned(at: Context, carried: list[Value]) -> Sequence[Value]:
            return self._turned_row(lane, carried[0], count, inner, at, carried[1:], body)

        found = self.nest(outer, inner, ctx, [self.e.index(0), *start], turned)[1:] if turning else \
            self.nest(outer, inner, ctx, start, row)
        for op in ops:
            self._define(op, self._finish(op, found[:len(op.results)], count))
            found = found[len(op.results):]

    def _turned_row(self, loop: Loop, first: Value, count: int, ops: Sequence[Op], ctx: Context, accs: Sequence[Value],
                    body: Callable[[Context, list[Value]], Sequence[Value]]) -> list[Value]:
        """One row of a reduction whose rows start at any lane: element 0 belongs to accumulator ``first``.

        Tiles are placed so that lanes and accumulators agree: the first one begins ``first`` elements before the row, masked.
        Returns the accumulator of the next row's element 0, and the accumulators.
        """
        e = self.e
        self.hoist(ops, frozenset((loop.name,)), ctx)
        extent = e.size(loop.extent)
        before = e.op("sub", (e.index(0), first), INDEX)
        head = e.mod(before, count)  # the first whole tile
        rest = e.op("maximum", (e.index(e.sub(extent, head)), e.index(0)), INDEX)
        whole = e.add(head, e.round_down(rest, count))

        def step(masked: bool) -> Callable[[Value, list[Value]], Sequence[Value]]:
            def run(i: Value, accs: list[Value]) -> Sequence[Value]:
                mask = None
                if masked:
                    at = e.pointwise("add", e.iota((count,), 0), i)
                    mask = e.both(e.compare("ge", at, e.index(0)), e.compare("lt", at, e.index(extent)))
                with self.scope():
                    return body(replace(ctx, axes=(Axis(loop.name, i, count),), tail=mask), accs)
            return run

        accs = e.loop(before, e.index(0), count, accs, step(True))
        accs = e.loop(head, whole, count, accs, step(False))
        accs = e.loop(whole, extent, count, accs, step(True))
        return [e.index(e.mod(e.add(first, extent), count)), *accs]

    def _reduction_width(self, ops: list[Op], lanes: int, lane: Loop) -> int:
        full = int(min(self.machine.vector_lanes(widest(op)) for op in ops))
        short = isinstance(lane.extent, int) and lane.extent <= 4 * full
        if lanes:
            return lanes if short else max(lanes, 4 * full // lanes * lanes)
        return full * max(1, -(-lane.extent // full)) if short and isinstance(lane.extent, int) else 4 * full

    def _accumulate(self, op: Op, accs: list[Value], new: list[Value], mask: Value | None, count: int) -> list[Value]:
        e, combine = self.e, op.attrs["combine"]
        dtype = scalar_of(new[0].type)
        if mask is not None and not combine.startswith("arg"):
            fill = e.const(identity(combine, dtype), dtype)
            new = [e.pointwise("select", mask, new[0], fill, dtype=dtype)]
        assert isinstance(new[0].type, TileType)
        extent = new[0].type.shape[0]
        if extent == count:
            return self._take_in(op, accs, new, mask)
        for at in range(0, extent, count):  # one accumulator takes its elements one after the other
            part = [e.op("slice", (v,), TileType(scalar_of(v.type), (count,)), {"starts": (at,), "limits": (at + count,)})
                    for v in new]
            accs = self._take_in(op, accs, part, None)
        return accs

    def _finish(self, op: Op, accs: list[Value], count: int) -> list[Value]:
        combine = op.attrs["combine"]
        if not combine.startswith("arg"):
            dtype = scalar_of(accs[0].type)
            return [self.e.op("reduce", (accs[0],), ScalarType(dtype), {"axis": 0, "combine": combine})]
        e, n = self.e, count
        while n > 1:
            h = 1 << (n - 1).bit_length() - 1
            low, high = ([e.op("slice", (v,), TileType(scalar_of(v.type), (stop - at,)), {"starts": (at,), "limits": (stop,)})
                          for v in accs] for at, stop in ((0, n - h), (h, n)))
            mixed = self._better(combine, low, high, ties=True)
            if n - h < h:
                rest = [e.op("slice", (v,), TileType(scalar_of(v.type), (2 * h - n,)), {"starts": (n - h,), "limits": (h,)})
                        for v in accs]
                mixed = [e.op("concat", (a, b), TileType(scalar_of(a.type), (h,)), {"axis": 0})
                         for a, b in zip(mixed, rest, strict=True)]
            accs, n = mixed, h
        return [e.op("extract", (v,), ScalarType(scalar_of(v.type)), {"index": (0,)}) for v in accs]

    # -- scratch ---------------------------------------------------------------------------------------------------------
    def alloc(self, dtype: DType, shape: tuple[int, ...]) -> Value:
        """Scratch memory of the block, at the top of the program."""
        op = Op("alloc", (), (BufferType(dtype, shape, "local"),))
        self.e.fn.body.ops.insert(0, op)
        return op.results[0]


def _weight(op: Op) -> int:
    """Roughly how many vector instructions one element costs."""
    from .lower_cost import op_weight
    return sum(op_weight(o) for o in op.walk())
