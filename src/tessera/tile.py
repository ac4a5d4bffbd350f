"""``ts.tile``: what a kernel's body is written with (see ``docs`` and :func:`tessera.kernel`).

    @ts.kernel
    def scale(X: ts.Tile["M", "N", ts.f32], Y: ts.Tile["M", "N", ts.f32], factor: float):
        for i in ts.tile.range(X.shape[0], step=16):
            ts.tile.store(Y[i:i + 16], X[i:i + 16] * factor)
"""

from __future__ import annotations

from typing import Any

from .errors import KernelError, suggest
from .tiling import dsl as _dsl
from .tiling import explicit as _explicit
from .tiling import fragments as _fragments
from .tiling import functions as _functions
from .tiling import groups as _groups
from .tiling import kernel_ops as _ops
from .tiling.values import internal as _internal
from .tiling.values import location as _location

_internal(__file__)

for _name in _ops.POINTWISE_NAMES + _ops.FROM_DSL:
    globals()[_name] = getattr(_dsl, _name)
for _name in _ops.NAMES:
    globals()[_name] = getattr(_ops, _name)
for _name in _groups.NAMES:
    globals()[_name] = getattr(_groups, _name)
for _name in _explicit.NAMES:
    globals()[_name] = getattr(_explicit, _name)
for _name in _fragments.NAMES:
    globals()[_name] = getattr(_fragments, _name)
for _name in _functions.NAMES:
    globals()[_name] = getattr(_functions, _name)
del _name

__all__ = sorted({*_ops.POINTWISE_NAMES, *_ops.FROM_DSL, *_ops.NAMES, *_groups.NAMES, *_explicit.NAMES, *_fragments.NAMES,
                  *_functions.NAMES})


class UnknownTileName(KernelError, AttributeError):
    """``tile.`` has no such operation."""


def __getattr__(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    raise UnknownTileName(f"tile has no operation {name!r}{suggest(name, __all__)}", loc=_location(),
                          hints=["the operations are listed in ts.tile.__all__"])


def __dir__() -> list[str]:
    return list(__all__)
