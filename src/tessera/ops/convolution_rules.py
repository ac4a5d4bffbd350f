"""Derivatives of ``conv``: that of the data is a convolution again, that of the kernel is matrix products."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

from ..tracing.recorder import bind
from ..types.dims import product
from ..types.promotion import accumulator
from . import shaping as sh
from .contraction import meet
from .operands import convert
from .table import Applied

_MOST = 128  # places of a window whose kernel's cotangent is written as products; larger windows stay a convolution
_TOGETHER = 1 << 26  # elements of all slices that one product may read; beyond that each row of the window has its own


def conv_vjp(x: Applied, gs: Sequence[Any]) -> list[Any]:
    """The cotangents of ``conv``'s data [N, C, *spatial] and kernel [O, C/groups, *window] from that of its result."""
    rules = (_data_back, _kernel_back)
    return [rule(x, gs[0]) if wanted else None for rule, wanted in zip(rules, x.wanted, strict=True)]


def spread_conv(x: Any, kernel: Any, spread: Sequence[int], **attrs: Any) -> Any:
    """``conv`` of ``x`` with its elements ``spread`` apart along the spatial axes.

    The gaps are written out: a convolution of what lies densely has a kernel, and many zeros cost it less than tests would.
    """
    if any(s != 1 for s in spread):
        none = (0,) * (len(spread) + 2)
        x = bind("pad", x, low=none, high=none, interior=(0, 0, *[s - 1 for s in spread]), value=0)
    return bind("conv", x, kernel, **attrs)


def _spread(x: Applied) -> tuple[int, ...]:
    return tuple(x.attrs.get("input_dilation") or (1,) * (x.operands[0].type.rank - 2))


def _data_back(x: Applied, g: Any) -> Any:
    """The cotangent of the input: that of the result spread by the strides, correlated with the flipped kernel."""
    a, (t, w) = x.attrs, [v.type for v in x.operands]
    n, groups = t.rank - 2, a["groups"]
    o, c, *window = w.shape
    spread = _spread(x)
    kernel = bind("flip", x.operands[1], axes=tuple(range(2, n + 2)))
    if groups > 1:
        kernel = bind("reshape", kernel, shape=(groups, o // groups, c, *window))
        kernel = bind("reshape", sh.swapaxes(kernel, 1, 2), shape=(groups * c, o // groups, *window))
    else:
        kernel = sh.swapaxes(kernel, 0, 1)
    around = []
    for size, m, k, s, d, r, p in zip(t.shape[2:], g.type.shape[2:], window, a["strides"], a["dilation"], spread, a["padding"],
                                      strict=True):
        before = (k - 1) * d - p[0]
        around.append((before, (size - 1) * r + (k - 1) * d - (m - 1) * s - before))
    g, kernel, extra = meet(g, kernel, t.dtype)
    return spread_conv(g, kernel, a["strides"], strides=spread, padding=tuple(around), dilation=tuple(a["dilation"]), groups=groups,
                       **extra)


def _kernel_back(x: Applied, g: Any) -> Any:
    """The cotangent of the kernel.

    Every place of the window meets one strided slice of the padded data, so its cotangent is the product of the result's with that
    slice over all places of the output.  All places share one product, unless the slices would take too much memory together.
    """
    shape = x.operands[1].type.shape[2:]
    window = [k for k in shape if isinstance(k, int)]
    if len(window) < len(shape) or math.prod(window) > _MOST:
        return _kernel_back_correlated(x, g)
    a, (t, w), spread = x.attrs, [v.type for v in x.operands], _spread(x)
    groups, pads = a["groups"], a["padding"]
    many, channels = t.shape[:2]
    per_group, places = w.shape[1], g.type.shape[2:]
    g, data, _ = meet(g, x.operands[0], w.dtype)
    if any(s != 1 for s in spread) or any(p != (0, 0) for p in pads):
        data = bind("pad", data, low=(0, 0, *[p[0] for p in pads]), high=(0, 0, *[p[1] for p in pads]),
                    interior=(0, 0, *[s - 1 for s in spread]), value=0)
    wide = accumulator(g.dtype)
    extra = {} if wide is g.dtype else {"dtype": wide}
    flat = product(places)
    lead = (many,) if groups == 1 else (many, groups)
    g = bind("reshape", g, shape=(*lead, w.shape[0] // groups, flat))

    def seen(at: Sequence[int]) -> Any:
        """What the place ``at`` of the window meets: [N, C, *places]."""
        first = [k * d for k, d in zip(at, a["dilation"], strict=True)]
        limit = [f + (m - 1) * s + 1 for f, m, s in zip(first, places, a["strides"], strict=True)]
        return bind("slice", data, start=(0, 0, *first), limit=(many, channels, *limit), stride=(1, 1, *a["strides"]))

    axes, last = tuple(range(len(lead))), len(lead) + 1
    every = list(itertools.product(*[range(k) for k in window]))
    size = product((many, channels, len(every), flat))
    count = window[-1] if isinstance(size, int) and size > _TOGETHER else len(every)
    parts = []
    for at in range(0, len(every), count):
        met = sh.stack([seen(k) for k in every[at:at + count]], 2)
        met = bind("reshape", met, shape=(*lead, per_group * count, flat))
        each = bind("dot_general", g, met, lhs_contract=(last,), rhs_contract=(last,), lhs_batch=axes, rhs_batch=axes, **extra)
        parts.append(bind("reshape", bind("reduce_sum", each, axes=(0,)), shape=(w.shape[0], per_group, count)))
    return convert(bind("reshape", sh.concat(parts, 2), shape=w.shape), w.dtype)


def _kernel_back_correlated(x: Applied, g: Any) -> Any:
    """The same for windows of unknown or large size: the input correlated with the result's cotangent, examples as channels."""
    a, (t, w) = x.attrs, [v.type for v in x.operands]
    groups, data = a["groups"], x.operands[0]
    many, channels, *sizes = t.shape
    spread = _spread(x)
    if groups > 1:
        data = bind("reshape", data, shape=(many, groups, channels // groups, *sizes))
        data = bind("reshape", sh.moveaxis(data, (2, 1), (0, 1)), shape=(channels // groups, groups * many, *sizes))
    else:
        data = sh.swapaxes(data, 0, 1)
    around = []
    for size, m, k, s, d, r, p in zip(sizes, g.type.shape[2:], w.shape[2:], a["strides"], a["dilation"], spread, a["padding"],
                                      strict=True):
        around.append((p[0], (k - 1) * d + (m - 1) * s - (size - 1) * r - p[0]))
    g, data, extra = meet(g, data, w.dtype)
    out = spread_conv(data, sh.swapaxes(g, 0, 1), spread, strides=tuple(a["dilation"]), padding=tuple(around),
                      dilation=tuple(a["strides"]), groups=groups, **extra)
    return sh.swapaxes(out, 0, 1)
