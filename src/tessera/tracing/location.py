"""Where a program runs: on one device, that of its arguments.

Data cannot move inside of a program.  A body may still ask: ``x.device`` and ``ts.current_device()`` have the value of the call that is
traced for, and the program then serves that device alone; ``with ts.device(d):`` and ``x.to(d)`` state that it runs on ``d``.  Where no
argument decides, such a statement does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..errors import DeviceError
from .placed import DeviceArray, spoken, where
from .tensor import Tensor, ndarray


class Location:
    """What is known of where a program runs, and what its body relied on.

    Attributes:
        device: a payload's name of the device; None: the CPU.
        known: there is a call (else every statement holds).
        free: no argument decides, so the body may.
        asked: the body relied on ``device``.
        current: the innermost device block around the call; ``asked_current``: the body relied on it.
    """

    __slots__ = ("asked", "asked_current", "current", "device", "free", "known")

    def __init__(self, device: str | None = None, known: bool = False, free: bool = True, current: Any = None):
        self.device, self.known, self.free, self.current = device, known, free, current
        self.asked = self.asked_current = False

    @classmethod
    def of_call(cls, arguments: Sequence[Any], current: Any) -> Location:
        """The location of a call with these leaves.

        Raises:
            DeviceError: they live on different devices.
        """
        payloads = [x._p for x in arguments if type(x) is Tensor]
        free = not any(isinstance(p, DeviceArray) or (type(p) is ndarray and p.size > 1) for p in payloads)
        return cls(where(payloads), True, free, current)

    def serves(self, device: str | None, current: Any) -> bool:
        """Whether a program traced here is valid for a call there."""
        return (not self.asked or self.free or self.device == device) and (not self.asked_current or self.current == current)

    def state(self, device: str | None, what: str) -> None:
        """The body says that the program runs on ``device``; ``what`` is how.

        Raises:
            DeviceError: it does not.
        """
        if not self.known:
            return
        if device != self.device and self.free and not self.asked:
            self.device = device
        self.asked = True
        if device == self.device:
            return
        here, there = spoken(self.device or "cpu"), spoken(device or "cpu")
        because = "what it stated before" if self.free else "its arguments"
        raise DeviceError(
            f"{what} in a traced function that runs on {here}", expected=f"{here}, because of {because}", received=there,
            sentence="A compiled program runs on one device, where its arguments live; data move before and after a call, not in it.",
            hints=[f'Call the function with arguments on {there}: f(x.to("{there}"))', f'Move its result: f(x).to("{there}")',
                   "Compile the two halves as two functions, and move what goes between them"])


__all__ = ["Location"]
