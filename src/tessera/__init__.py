"""Tessera: a typed tensor programming model and compiler.

    import tessera as ts

    @ts.jit
    def mlp(x: ts.Tensor["B", 768], w, b):
        return ts.gelu(x @ w + b)

The public names are listed in ``_api.py``, where the rooms of the package are put together.  Rooms that not every program
needs (``nn``, ``importers`` …) are loaded when they are first named.  ``import tessera as ts`` is the documented alias.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from ._api import *  # noqa: F403
    from .ops import *  # type: ignore[assignment]  # noqa: F403

    # A static type checker cannot read sizes and dtypes in ``Tensor["B", 768, ts.bf16]``; as ``Any`` the name passes mypy.
    Tensor: Any


def __getattr__(name: str) -> Any:
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module 'tessera' has no attribute {name!r}")
    return import_module("tessera._api").find(name, globals())


def __dir__() -> list[str]:
    names: list[str] = import_module("tessera._api").public_names()
    return sorted([*names, "__version__"])


import_module("tessera._api")
