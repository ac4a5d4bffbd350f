"""Convolution as a ``template`` op with an epilogue."""

from __future__ import annotations

from typing import Any

from ..ir.core import Op
from ..types import dtypes as dt
from ..types.dims import DimLike
from ..types.dims import name as dim_name
from ..types.promotion import accumulator
from .fusion import BY_ELEMENT
from .indexing import Names
from .products import Epilogue
from .program import BlockScheduler, launches
from .templates import Loop


@launches("conv")
def conv(bs: BlockScheduler, op: Op) -> None:
    """Cross-correlation of [N, C, *spatial] with [O, C/groups, *kernel]."""
    names = Names(bs.program.sizes)
    shape = op.result.type.shape
    batch: Loop = (names.fresh("n", plain=True), shape[0])
    channel: Loop = (names.fresh("c", plain=True), shape[1])
    spatial: tuple[Loop, ...] = tuple((names.fresh("o"), n) for n in shape[2:])
    index = tuple(0 if e == 1 else dim_name(n) for n, e in (batch, channel, *spatial))
    operands = [bs.demand(v) for v in op.operands]
    ranges: dict[str, DimLike] = dict((batch, channel, *spatial))
    accumulate = op.attrs.get("accumulate") or accumulator(op.operands[0].type.dtype)
    every, blocks, outs, value = Epilogue(bs, op, op.result, index, ranges).build(operands, accumulate, names)
    attrs: dict[str, Any] = {**op.attrs, "template": "conv", "name": bs.program.label("conv"), "outs": outs,
                             "blocks": ("epilogue",), "batch": (batch,), "channel": channel, "spatial": spatial,
                             "accumulate": accumulate}
    bs.append(Op("template", every, (), attrs, blocks, op.loc), (value,), (bs.buffers[value],))


def _by_element(op: Op) -> bool:
    spread = op.attrs.get("input_dilation") or ()
    return op.operands[0].type.dtype not in (dt.f32, dt.f64, dt.bf16, dt.f16) or any(s != 1 for s in spread)


BY_ELEMENT["conv"] = _by_element
