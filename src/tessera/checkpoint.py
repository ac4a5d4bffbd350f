"""Recomputation instead of memory: ``@ts.checkpoint``.

The module is callable: ``@ts.checkpoint``, ``@ts.checkpoint(policy="selective")``; ``@ts.checkpoint.policy("selective")`` is another
spelling, and ``ts.remat`` another name.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

from .errors import ArgumentError, unknown_keyword
from .errors.boundary import describe
from .ops.barriers import checkpoint_here
from .transforms.rematerialise import Checkpointed, checkpoint


def policy(name: str) -> Any:
    """``checkpoint`` with a policy: ``"full"`` or ``"selective"``."""
    return checkpoint(policy=name)


class _Callable(ModuleType):
    def __call__(self, fn: Any = None, *args: Any, policy: str = "full", **kwargs: Any) -> Any:
        if kwargs:
            raise unknown_keyword("checkpoint", next(iter(kwargs)), ["fn", "policy"])
        if args:
            raise ArgumentError("checkpoint() takes a function, and gives one", expected="checkpoint(f)(*args)",
                                received=f"checkpoint(f, {', '.join(map(describe, args))})",
                                hints=["Write ts.checkpoint(f)(x): decorate first, call then"])
        return checkpoint(fn, policy=policy)


sys.modules[__name__].__class__ = _Callable

__all__ = ["Checkpointed", "checkpoint", "checkpoint_here", "policy"]
