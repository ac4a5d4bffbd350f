"""Donated arguments: the call may reuse their memory, and nobody can use them afterwards."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import DonationError
from ..errors.frames import user_frames
from .tensor import Donated, Tensor


def consume(tensors: Sequence[Any], function: str) -> Callable[[], None]:
    """Check what is donated; the returned function marks it consumed after the call.

    Memory that others can see (NumPy, DLPack, views) is not given away: a warning says so.

    Raises:
        DonationError: one buffer is donated twice.
    """
    line = _line()
    taken: list[Tensor] = []
    seen: dict[int, Any] = {}
    for t in tensors:
        if not isinstance(t, Tensor):
            continue
        a = t._concrete("a donated argument")
        root = a if a.base is None else a.base
        if id(root) in seen and a.size:
            raise DonationError("one buffer is donated twice", received=f"two arguments of {function!r} that share memory",
                                sentence="Each donated buffer can be reused once.",
                                hints=["Donate one of the two arguments", "Copy one: x.clone()"])
        seen[id(root)] = root
        if isinstance(a.base, np.ndarray) or not a.flags.writeable or not a.flags.c_contiguous:
            warnings.warn(f"a donated argument of {function!r} at {line} shares its memory with others; it is not reused",
                          stacklevel=4)
            continue
        taken.append(t)

    def release() -> None:
        for t in taken:
            t._p = Donated(function, line)

    return release


def _line() -> str:
    frames = user_frames(sys._getframe(1), 1)
    return str(frames[0]) if frames else "?"
