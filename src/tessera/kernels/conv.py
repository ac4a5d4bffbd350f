"""Direct convolution: output columns along the lanes, a few output channels in registers.

``acc[n, o, …] = sum over (c, k…) of x[n, group + c, … * stride + k * dilation - pad] * w[o, c, k…]``, ascending, one ``fma``
each.  A block computes some rows of one image for some channels.  Nothing is copied or padded: lanes that fall outside
the input read zeros.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..ir.core import Function, Op
from ..scheduling.templates import block
from ..tiling import dsl as tile
from ..tiling.templates import register
from ..types.dims import Dim, DimLike, product
from ..types.dtypes import DType
from .fused import BlockRunner, Lanes, Point
from .programs import blocks, open_program, per_block

_UNROLLED = 8  # a window of at most so many places along the lane axis is written out


@register("conv")
def conv(op: Op, machine: Any, name: str) -> Function:
    """Operands and attributes as in :mod:`tessera.scheduling.templates`."""
    return _Convolution(op, machine).build(name)


class _Convolution:
    """One ``conv`` template op.

    Attributes:
        spatial: the output's loops, outermost first; the last one runs along the lanes.
        rows: the product of the extents of the others.
        lanes, channels: extents of the register tile.
    """

    def __init__(self, op: Op, machine: Any):
        a = op.attrs
        self.op, self.machine = op, machine
        self.batch: tuple[str, DimLike] = a["batch"][0]
        self.channel: tuple[str, DimLike] = a["channel"]
        self.spatial: tuple[tuple[str, DimLike], ...] = a["spatial"]
        self.strides, self.dilation = tuple(a["strides"]), tuple(a["dilation"])
        self.pads = tuple(p[0] for p in a["padding"])
        self.groups: int = a.get("groups", 1)
        self.accumulate: DType = a["accumulate"]
        self.kernel = op.operands[1].type.shape[2:]
        self.depth: DimLike = op.operands[1].type.shape[1]
        self.rows = product(e for _, e in self.spatial[:-1])
        self.lanes, self.channels = self._register_tile()

    def _register_tile(self) -> tuple[int, int]:
        """As many accumulators as registers hold beside two input vectors and a weight."""
        full = self.machine.vector_lanes(self.accumulate)
        width = self.spatial[-1][1]
        vectors = 1 if isinstance(width, int) and width <= full else 2
        room = (28 if self.machine.registers >= 32 else 12) // vectors
        channels = min(8 if vectors == 2 else 16, room)
        per_group = self.per_group
        while isinstance(per_group, int) and channels > 1 and channels >= 2 * per_group:
            channels //= 2
        return full * vectors, channels

    @property
    def per_group(self) -> DimLike:
        total: DimLike = self.op.operands[1].type.shape[0]
        return total if self.groups == 1 else total // self.groups

    def build(self, name: str) -> Function:
        work = product(self.kernel) * self.depth * (self.spatial[-1][1] * self.channels)
        self.rows_per_block = per_block(work, 1 << 17, self.rows)
        grid = (self.batch[1], self.groups * blocks(self.per_group, self.channels), blocks(self.rows, self.rows_per_block))
        program = open_program(self.op, name, grid)
        return tile.build(program, self.body)

    def body(self, *buffers: tile.Buffer) -> None:
        epilogue = block(self.op, "epilogue")
        assert epilogue is not None
        runner = BlockRunner(epilogue, buffers)
        per_group = blocks(self.per_group, self.channels)
        part = tile.program_id(1)
        group = 0 if self.groups == 1 else part // per_group
        first = (part if self.groups == 1 else part % per_group) * self.channels
        lo = tile.program_id(2) * self.rows_per_block
        hi = tile.minimum(lo + self.rows_per_block, tile.size(self.rows))
        width = self.spatial[-1][1]

        def row(r: Any, _: Any) -> tuple[()]:
            at = self._coordinates(r)
            tile.for_loop((0, width, self.lanes), (), lambda col, _: self._tile(buffers, runner, group, first, at, col))
            return ()

        tile.for_loop((lo, hi, 1), (), row)

    def _coordinates(self, r: Any) -> list[Any]:
        """The places along all spatial axes but the last."""
        out: list[Any] = []
        for _, extent in reversed(self.spatial[1:-1]):
            out.append(r % extent)
            r = r // extent
        return [] if len(self.spatial) == 1 else [r, *reversed(out)]

    def _tile(self, buffers: Sequence[tile.Buffer], runner: BlockRunner, group: Any, first: Any, at: list[Any], col: Any) -> tuple[()]:
        """All of one register tile: channels ``first …`` of a group, columns ``col …``."""
        x, w = buffers[0], buffers[1]
        per_group = self.per_group
        # Channels beyond the group's last repeat the last one and are not stored.
        last = per_group - 1 if isinstance(per_group, int) else tile.size(per_group) - 1
        ragged = not (isinstance(per_group, int) and per_group % self.channels == 0)
        inner = [tile.minimum(first + c, last) if ragged else first + c for c in range(self.channels)]
        base = 0 if self.groups == 1 else group * per_group
        outs = [base + c for c in inner]
        image = tile.program_id(0)

        def take(c: Any, accs: list[tile.TileValue]) -> list[tile.TileValue]:
            channel = c if self.groups == 1 else group * self.depth + c

            def place(k: Sequence[Any], accs: list[tile.TileValue]) -> list[tile.TileValue]:
                here = self._input(x, image, channel, at, col, k)
                return [tile.fma(here, tile.full(here.shape, tile.load(w, (o, c, *k)).to(self.accumulate)), acc)
                        for o, acc in zip(outs, accs, strict=True)]

            return self._window(place, accs)

        zero = tile.full((self.lanes,), 0, self.accumulate)
        accs = tile.for_loop((0, self.depth, 1), [zero] * self.channels, take)
        names = dict(zip((n for n, _ in self.spatial[:-1]), at, strict=True))
        lane = Lanes(self.spatial[-1][0], col, self.lanes, self.spatial[-1][1], not self._divides())
        for c, acc in enumerate(accs):
            point = Point({self.batch[0]: image, self.channel[0]: outs[c], **names}, (lane,))
            if ragged:
                tile.cond(first + c <= last, _nothing(lambda: runner.run(point, acc)), _nothing(lambda: None))  # noqa: B023
            else:
                runner.run(point, acc)
        return ()

    def _divides(self) -> bool:
        width = self.spatial[-1][1]
        return isinstance(width, int) and width % self.lanes == 0

    def _window(self, place: Callable[[Sequence[Any], list[tile.TileValue]], list[tile.TileValue]],
                accs: list[tile.TileValue], outer: tuple[Any, ...] = ()) -> list[tile.TileValue]:
        """``place`` for every position in the window, row-major."""
        axis = len(outer)
        if axis == len(self.kernel):
            return place(outer, accs)
        extent = self.kernel[axis]
        if isinstance(extent, int) and (extent == 1 or (axis == len(self.kernel) - 1 and extent <= _UNROLLED)):
            for k in range(extent):
                accs = self._window(place, accs, (*outer, k))
            return accs
        return list(tile.for_loop((0, extent, 1), accs, lambda k, accs: self._window(place, accs, (*outer, k))))

    def _input(self, x: tile.Buffer, image: Any, channel: Any, at: list[Any], col: Any, k: Sequence[Any]) -> tile.TileValue:
        """One vector of the input: zeros where it lies in the padding."""
        where = [(p if s == 1 else p * s) + (j if d == 1 else j * d) - pad
                 for p, s, j, d, pad in zip([*at, col], self.strides, k, self.dilation, self.pads, strict=True)]
        step, axes = self.strides[-1], tuple(range(2, x.rank))
        check = tuple(a for a in axes if self._may_leave(a - 2))
        got = tile.load(x, (image, channel, *where), (self.lanes * step,), axes=(x.rank - 1,), check=check)
        if step > 1:
            got = tile.reshape(got, (self.lanes, step))[:, 0]
        return got.to(self.accumulate)

    def _may_leave(self, axis: int) -> bool:
        """Whether some place of a (whole) tile can lie outside the input along a spatial axis."""
        if self.pads[axis] or (axis == len(self.spatial) - 1 and (not self._divides() or self.strides[axis] > 1)):
            return True
        size, out, k = self.op.operands[0].type.shape[2 + axis], self.spatial[axis][1], self.kernel[axis]
        reach = (out - 1) * self.strides[axis] + (k - 1) * self.dilation[axis]
        return isinstance(size - reach, Dim) or size - reach < 1


def _nothing(act: Callable[[], Any]) -> Callable[[], tuple[()]]:
    def run() -> tuple[()]:
        act()
        return ()

    return run
