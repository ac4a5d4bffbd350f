"""A message written while a program runs: ``ts.log`` inside a branch or a loop, where a value cannot be a result of the call."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..ir.core import TensorType
from ..tracing.tensor import make
from ..types import dtypes as dt
from .rules import EVERY, Array
from .table import Attrs, primitive

LOGGER = logging.getLogger("tessera")


def shown(array: Any) -> str:
    a = np.asarray(array)
    return f"{a.item():.6g}" if a.ndim == 0 and a.dtype.kind not in "bOiu" and not np.iscomplexobj(a) else \
        str(a.item()) if a.ndim == 0 else str(make(a))


def emit(parts: Sequence[str], places: Sequence[int], arrays: Sequence[Any]) -> None:
    """Write the texts, those at ``places`` followed by the arrays in turn."""
    texts = list(parts)
    for at, array in zip(places, arrays, strict=True):
        texts[at] += shown(array)
    LOGGER.info("%s", " ".join(t for t in texts if t))


def _infer(types: Sequence[TensorType], attrs: Attrs) -> Sequence[TensorType]:
    return (TensorType(dt.int8, ()),)


def _reference(*arrays: Array, parts: Sequence[str], places: Sequence[int]) -> Array:
    emit(parts, places, arrays)
    return np.zeros((), np.int8)


primitive("message", family="barrier", infer=_infer, reference=_reference, dtypes=EVERY, external="python.logging", linear=(),
          effects=frozenset({"io"}), facts={"attrs": ("parts", "places")},
          doc="Writes texts and operands to the logger when the program comes there; the result, 0, is for nobody.")


__all__ = ["LOGGER", "emit", "shown"]
