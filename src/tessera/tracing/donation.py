"""Donated arguments: the call may reuse their memory, and nobody can use them afterwards."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import DonationError
from ..errors.frames import user_frames
from .indexing import owned
from .placed import DeviceArray
from .tensor import Donated, Tensor


def consume(leaves: Sequence[Any], donated: Sequence[int], captured: Sequence[Any],
            function: str) -> tuple[dict[int, np.ndarray[Any, Any]], Callable[[], None]]:
    """Check the donated leaves of a call.

    Memory that others can see (NumPy, DLPack, views, another argument) is not given away: the program gets a copy, and a
    warning says so.

    Returns:
        Copies to pass in place of leaves, by position, and a function that marks the donated tensors consumed.

    Raises:
        DonationError: one buffer is donated twice.
    """
    line = _line()
    given: set[int] = set()
    others = {_root(x._p) for i, x in enumerate(leaves) if isinstance(x, Tensor) and i not in donated}
    others |= {_root(c._p) for c in captured if isinstance(c, Tensor)}
    copies: dict[int, np.ndarray[Any, Any]] = {}
    taken: list[Tensor] = []
    for i in donated:
        x = leaves[i]
        if not isinstance(x, Tensor):
            continue
        elsewhere = isinstance(x._p, DeviceArray)  # nothing else sees a device array's memory
        if not elsewhere:
            x._concrete("a donated argument")
        root = _root(x._p)
        if root in given and x.size:
            raise DonationError("one buffer is donated twice", received=f"two arguments of {function!r} that share memory",
                                sentence="Each donated buffer can be reused once.",
                                hints=["Donate one of the two arguments", "Copy one: x.clone()"])
        given.add(root)
        if root in others or not (elsewhere or owned(x)):
            warnings.warn(f"a donated argument of {function!r} at {line} shares its memory with others; it is copied, not reused",
                          stacklevel=4)
            copies[i] = x._p.copy()
        else:
            taken.append(x)

    def release() -> None:
        for t in taken:
            t._p = Donated(function, line)

    return copies, release


def _root(array: Any) -> int:
    """The identity of the memory under an array."""
    while isinstance(array, np.ndarray) and array.base is not None:
        array = array.base
    return id(array)


def _line() -> str:
    frames = user_frames(sys._getframe(1), 1)
    return str(frames[0]) if frames else "?"
