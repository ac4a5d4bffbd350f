"""The registry of templates: tile programs that the scheduler picks by name.

A template is a function ``(op, machine, name) -> Function``: from a sched ``template`` op it builds one block's tile
program.  The files of ``kernels/`` fill the table when the package is assembled; this room never imports them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ..ir.core import Function, Op

Template = Callable[[Op, Any, str], Function]

TEMPLATES: dict[str, Template] = {}


def register(name: str) -> Callable[[Template], Template]:
    """Decorator: enter a template under ``name``.

    Raises:
        ValueError: the name is already taken by another function.
    """

    def enter(build: Template) -> Template:
        taken = TEMPLATES.get(name)
        if taken is not None and taken is not build:
            raise ValueError(f"the template {name!r} is already registered by {taken.__module__}.{taken.__qualname__}")
        TEMPLATES[name] = build
        return build

    return enter
