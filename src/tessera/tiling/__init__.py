"""Schedule IR to Tile IR, and the tile language: ``dsl`` (the builder, for kernels and lowerings) and ``frontend`` (``@ts.kernel``)."""

from __future__ import annotations

import importlib
from typing import Any

_PUBLIC = {
    "kernel": ("frontend", "kernel"), "Kernel": ("frontend", "Kernel"), "Tile": ("tile_types", "Tile"), "Tile3D": ("tile_types", "Tile3D"),
    "lower_kernel": ("lower", "lower_kernel"), "tile_namespace": ("..tile", None),
}


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, attribute = _PUBLIC[name]
    found = importlib.import_module(module if module.startswith(".") else f".{module}", __name__)
    return found if attribute is None else getattr(found, attribute)
