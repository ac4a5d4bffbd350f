"""``ts.Tile["B*H", "S", "D", ts.bf16]``: the types of a kernel's parameters, and what they mean for one call.

A tile type is written like a tensor type.  Its *grid axes* are those written as a product of names (``"B*H"``) and, beyond
rank 2, all but the last two: each program of the kernel works at one position along them, so the body does not see them
(``shape`` still has the full rank).
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import DTypeError, KernelError, ShapeError
from ..ir.core import TensorType
from ..types.dims import Dim, DimLike, format_dim, name, substitute
from ..types.dtypes import DType


@dataclass(frozen=True)
class TileSpec:
    """A declared tile type.  ``dims`` is None for a bare ``Tile``; ``"?"`` and ``"..."`` as in tensor types."""

    dims: tuple[Any, ...] | None
    dtype: DType | None = None
    space: str = "global"
    rank: int | None = None

    @staticmethod
    def parse(items: Any, rank: int | None = None) -> TileSpec:
        """From what stands between the brackets.

        Raises:
            ShapeError: an item is no size, or the rank is not ``rank``.
            DTypeError: the element type is not the last item.
        """
        from ..tracing.annotations import TensorSpec
        spec = TensorSpec.parse(items)
        if rank is not None and (spec.dims is None or len(spec.dims) != rank):
            raise ShapeError(f"Tile{rank}D takes {rank} sizes, got {0 if spec.dims is None else len(spec.dims)}")
        return TileSpec(spec.dims, spec.dtype, rank=rank)

    def __matmul__(self, space: object) -> TileSpec:
        """``Tile[...] @ memory("global")``: the memory space that a parameter lives in."""
        return TileSpec(self.dims, self.dtype, str(getattr(space, "name", space)), self.rank)

    def __str__(self) -> str:
        items = [d if isinstance(d, str) else format_dim(d) for d in self.dims or ()]
        return f"Tile[{', '.join([*items, *([str(self.dtype)] if self.dtype else [])])}]" if items or self.dtype else "Tile"

    __repr__ = __str__


class _TileMeta(type):
    def __matmul__(cls, space: object) -> TileSpec:
        return TileSpec(None) @ space

    def __getitem__(cls, items: Any) -> TileSpec:
        return TileSpec.parse(items, getattr(cls, "_rank", None))


class Tile(metaclass=_TileMeta):
    """The type of a kernel's tensor parameter: ``Tile["M", "K", ts.bf16]``, or bare for any shape and dtype."""

    if typing.TYPE_CHECKING:
        def __class_getitem__(cls, items: Any) -> Any: ...


class Tile3D(Tile):
    """A tile type of rank 3."""

    _rank = 3


@dataclass(frozen=True)
class Declared:
    """A kernel's parameters: names in order, tile types of those that have one, defaults."""

    names: tuple[str, ...]
    specs: Mapping[str, TileSpec]
    signature: inspect.Signature


def read(fn: Callable[..., Any]) -> Declared:
    """The declared parameters of a kernel.

    Raises:
        KernelError: it takes *args or **kwargs.
    """
    from ..tracing.annotations import TensorSpec, _evaluated, _Names, _scopes
    signature = inspect.signature(fn)
    names = _Names([*_scopes(fn)])
    specs: dict[str, TileSpec] = {}
    for p in signature.parameters.values():
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            raise KernelError(f"the kernel {fn.__name__!r} takes *{p.name}; a kernel's parameters are named one by one")
        value = _evaluated(fn.__annotations__.get(p.name), names, p.name)
        if isinstance(value, TileSpec):
            specs[p.name] = value
        elif isinstance(value, TensorSpec):
            specs[p.name] = TileSpec(value.dims, value.dtype)
        elif isinstance(value, type) and issubclass(value, Tile):
            specs[p.name] = TileSpec(None, rank=getattr(value, "_rank", None))
    return Declared(tuple(signature.parameters), specs, signature)


@dataclass(frozen=True)
class Bound:
    """One tensor parameter of one call.

    Attributes:
        type: its dtype and sizes (names that the call binds, or numbers).
        keys: what each axis is called: axes with the same key are walked together.
        grid: which axes are grid axes.
    """

    name: str
    type: TensorType
    keys: tuple[str, ...]
    grid: tuple[int, ...]


def bind(declared: Declared, kernel: str, types: Mapping[str, TensorType]) -> dict[str, Bound]:
    """Match tensors to the declared types.

    Raises:
        ShapeError: a rank or size does not fit.
        DTypeError: an element type does not.
    """
    env: dict[str, DimLike] = {}
    out: dict[str, Bound] = {}
    late: list[tuple[str, int, Dim, DimLike]] = []
    for param, t in types.items():
        spec = declared.specs.get(param, TileSpec(None))
        if spec.dtype is not None and spec.dtype is not t.dtype:
            raise DTypeError(f"the kernel {kernel!r} takes {param!r} as {spec}, got {t}", expected=str(spec), received=str(t),
                             hints=[f"convert it: {param}.to({spec.dtype})"])
        if spec.rank is not None and spec.rank != t.rank:
            raise ShapeError(f"the kernel {kernel!r} takes {param!r} of rank {spec.rank}, got {t}")
        dims = _expand(spec, t.rank)
        if dims is None:
            raise ShapeError(f"the kernel {kernel!r} takes {param!r} as {spec}, got {t} of rank {t.rank}",
                             expected=str(spec), received=str(t))
        for axis, (d, n) in enumerate(zip(dims, t.shape, strict=True)):
            if isinstance(d, int) and d != n:
                raise _mismatch(kernel, param, spec, t, axis, d, n)
            if isinstance(d, Dim) and d.is_name:
                (only,) = d.names
                if env.setdefault(only, n) != n:
                    raise _mismatch(kernel, param, spec, t, axis, env[only], n, only)
            elif isinstance(d, Dim):
                late.append((param, axis, d, n))
        keys = tuple(format_dim(d) if isinstance(d, Dim) else f"={format_dim(n)}" for d, n in zip(dims, t.shape, strict=True))
        out[param] = Bound(param, t, keys, _grid_axes(dims))
    _check_late(kernel, declared, types, env, late)
    return out


def _check_late(kernel: str, declared: Declared, types: Mapping[str, TensorType], env: Mapping[str, DimLike],
                late: Sequence[tuple[str, int, Dim, DimLike]]) -> None:
    """Sizes such as ``3*D``, once their names are known; the same expression has the same size everywhere."""
    seen: dict[Dim, DimLike] = {}
    for param, axis, d, n in late:
        want = substitute(d, dict(env)) if d.names <= env.keys() else seen.setdefault(d, n)
        if want != n:
            raise _mismatch(kernel, param, declared.specs[param], types[param], axis, want, n, str(d))


def _mismatch(kernel: str, param: str, spec: TileSpec, t: TensorType, axis: int, want: DimLike, got: DimLike,
              called: str = "") -> ShapeError:
    label = f"{called} = {format_dim(want)}" if called else format_dim(want)
    return ShapeError(f"the kernel {kernel!r}: {param!r} has size {format_dim(got)} in dimension {axis}, expected {label}",
                      expected=f"{spec}" + (f" where {label}" if called else ""), received=str(t))


def _expand(spec: TileSpec, rank: int) -> tuple[Any, ...] | None:
    if spec.dims is None:
        return (None,) * rank
    dims = [None if d == "?" else d for d in spec.dims]
    if "..." in [d for d in dims if isinstance(d, str)]:
        at = next(i for i, d in enumerate(dims) if isinstance(d, str) and d == "...")
        if rank < len(dims) - 1:
            return None
        dims[at:at + 1] = [name(f"_rest{i}") for i in range(rank - len(dims) + 1)]
    return tuple(dims) if len(dims) == rank else None


def _grid_axes(dims: Sequence[Any]) -> tuple[int, ...]:
    leading = set(range(len(dims) - 2)) if len(dims) > 2 else set()
    products = {i for i, d in enumerate(dims) if isinstance(d, Dim) and any(sum(p for _, p in m) > 1 for m, _ in d.terms)}
    return tuple(sorted(leading | products))


def symbolic(bound: Mapping[str, Bound], frozen: frozenset[str]) -> dict[str, Bound]:
    """The same parameters with names in place of numbers, one name for each key, except for the keys in ``frozen``."""
    names: dict[str, str] = {}

    def general(key: str, n: DimLike) -> DimLike:
        if not isinstance(n, int) or n < 1 or key in frozen:
            return n
        if key not in names:
            plain = f"_n{len(names)}" if key.startswith("=") else key if key.isidentifier() else "_".join(_words(key)) + "_"
            names[key] = plain
        return name(names[key])

    return {p: Bound(p, b.type.with_shape(general(k, n) for k, n in zip(b.keys, b.type.shape, strict=True)), b.keys, b.grid)
            for p, b in bound.items()}


def _words(expression: str) -> list[str]:
    word, out = "", []
    for c in expression + " ":
        if c.isalnum() or c == "_":
            word += c
        elif word:
            out.append(word if not word[0].isdigit() else f"n{word}")
            word = ""
    return out
