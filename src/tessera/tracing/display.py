"""How tensors print: values with shape and dtype, traced tensors with their type."""

from __future__ import annotations

from typing import Any

import numpy as np

from .tensor import Donated, Tensor, Traced


def show(t: Tensor) -> str:
    """``Tensor([[1., 2.]], f32[1, 2])``; a traced tensor shows its type and where it came from, one on a device the device."""
    p: Any = t._p
    if type(p) is Donated:
        return f"Tensor(donated to {p.function!r} at {p.line})"
    if type(p) is Traced:
        made = p.value.op.name if p.value.op is not None else p.value.name or "argument"
        return f"Tensor(traced {p.value.type} = {made})"
    head = "Tensor("
    a = t._concrete("printing")
    if t.dtype.is_float and t.dtype.bits < 32:
        a = a.astype(np.float32)
    elif t.dtype.bits == 4:
        a = a.astype(np.int8)
    text = np.array2string(a, separator=", ", prefix=head, threshold=200, edgeitems=3, max_line_width=100)
    if a.size == 0:
        text = "[]"
    where = "" if type(p) is np.ndarray else f", {t.device}"
    return f"{head}{text}, {t.type}{where})"
