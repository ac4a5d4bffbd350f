"""Eager functions on the tensors of a device: the constants that a function makes for itself go to its operands.

A function of the op namespace is made of ops, and some of those read constants that it makes on the host: ``tril`` compares two
ranges, ``fft`` multiplies by roots of unity.  In a program they are the program's own.  Eagerly they belong where the operands that
the user gave live, so a call first looks where that is (its *home*); whatever else it meets then goes along.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import optree

from .placed import to_device, where
from .recorder import STATE
from .tensor import Tensor, make, ndarray


def at_home(f: Callable[..., Any], passing: frozenset[str] = frozenset()) -> Callable[..., Any]:
    """``f``, of which an eager call computes where its operands live, and whose results are there.

    Args:
        passing: parameters given by name that go along wherever they are (a random key).

    Raises:
        DeviceError: operands live on different devices.
    """
    def call(*args: Any, **kwargs: Any) -> Any:
        if STATE.trace is not None or STATE.home is not None:
            return f(*args, **kwargs)
        home = where(tuple(_payloads((*args, *[v for k, v in kwargs.items() if k not in passing]))))
        if home is None:
            return f(*args, **kwargs)
        STATE.home = home
        try:
            return _settled(f(*args, **kwargs), home)
        finally:
            STATE.home = None

    return functools.update_wrapper(call, f)


@contextmanager
def at_home_of(x: Tensor) -> Iterator[None]:
    """Inside the block, eager ops on ``x`` take constants to its device."""
    saved, STATE.home = STATE.home, where([x._p])
    try:
        yield
    finally:
        STATE.home = saved


def keep_home(namespace: dict[str, Any], names: Iterable[str], passing: frozenset[str] = frozenset()) -> None:
    """Have the functions of a module that go by these names compute at home."""
    for n in names:
        if inspect.isfunction(namespace.get(n)):
            namespace[n] = at_home(namespace[n], passing)


def _payloads(values: Iterable[Any]) -> Iterator[Any]:
    """The payloads of tensors, also in lists; numbers and NumPy arrays live nowhere and go along."""
    for v in values:
        if type(v) is Tensor:
            yield v._p
        elif type(v) is list or type(v) is tuple:
            yield from _payloads(v)


def _settled(out: Any, home: str) -> Any:
    """The results, moved to the device where they do not come from there (such as ranges)."""
    if type(out) is Tensor:
        return make(to_device(out._p, home)) if type(out._p) is ndarray else out
    if not isinstance(out, list | tuple | dict):
        return out
    tree_map: Any = optree.tree_map
    return tree_map(lambda t: _settled(t, home) if type(t) is Tensor else t, out)


__all__ = ["at_home", "at_home_of", "keep_home"]
