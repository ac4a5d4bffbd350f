"""The user's functions that rearrange tensors: reshape, split, stack, pad … written on the movement primitives."""

from __future__ import annotations

import builtins
import operator
from collections.abc import Sequence
from typing import Any

from ..errors import ArgumentError, IndexOutOfRangeError, ShapeError
from ..tracing.recorder import bind
from ..types import dtypes as dt
from ..types.dims import DimLike, as_dim, format_dim, product
from ..types.dtypes import as_dtype
from ..types.shapes import format_shape
from .operands import as_tensor, axes_of, axis_of, broadcast_to, one_of, promoted, shape_of, spread


def reshape(x: Any, *shape: Any) -> Any:
    """The same elements under another shape; one size may be -1.

    Raises:
        ShapeError: the numbers of elements differ.
    """
    x = as_tensor(x)
    wanted = list(shape_of(shape))
    free = [i for i, n in enumerate(wanted) if n == -1]
    if len(free) > 1:
        raise ShapeError(f"only one size of {format_shape(wanted)} may be -1")
    if free:
        known = product(n for n in wanted if n != -1)
        total = product(x.type.shape)
        if known == 0 or (total % known) != 0:
            text = ", ".join("-1" if n == -1 else format_dim(n) for n in wanted)
            raise ShapeError(f"Cannot reshape {format_shape(x.type.shape)} to [{text}]: {format_dim(total)} elements are not a "
                             f"multiple of {format_dim(known)}", received=str(x.type))
        wanted[free[0]] = total // known
    if tuple(wanted) == tuple(x.type.shape):
        return x
    return bind("reshape", x, shape=tuple(wanted))


def flatten(x: Any, start: int = 0, end: int = -1) -> Any:
    """Axes ``start`` to ``end`` (inclusive) merged into one."""
    x = as_tensor(x)
    if len(x.type.shape) == 0:
        return reshape(x, 1)
    a, b = axis_of("flatten", x, start), axis_of("flatten", x, end)
    return reshape(x, (*x.type.shape[:a], product(x.type.shape[a:b + 1]), *x.type.shape[b + 1:]))


def ravel(x: Any) -> Any:
    """All elements in row-major order, as one axis."""
    return reshape(x, -1) if 0 not in as_tensor(x).type.shape else reshape(x, 0)


def permute(x: Any, *axes: Any) -> Any:
    """Axis i of the result is axis ``axes[i]`` of ``x``."""
    x = as_tensor(x)
    order = axes[0] if len(axes) == 1 and isinstance(axes[0], list | tuple) else axes
    perm = tuple(axis_of("permute", x, a) for a in order)
    if perm == tuple(range(len(x.type.shape))):
        return x
    return bind("transpose", x, perm=perm)


def transpose(x: Any, *axes: Any) -> Any:
    """No axes: all reversed.  Two integers: these two are swapped.  A tuple, or more integers: a permutation."""
    x = as_tensor(x)
    if not axes or axes == (None,):
        return permute(x, tuple(reversed(range(len(x.type.shape)))))
    if len(axes) == 2:
        return swapaxes(x, *axes)
    return permute(x, *axes)


def swapaxes(x: Any, a: int, b: int) -> Any:
    """Two axes exchanged."""
    x = as_tensor(x)
    i, j = axis_of("swapaxes", x, a), axis_of("swapaxes", x, b)
    perm = list(range(len(x.type.shape)))
    perm[i], perm[j] = j, i
    return permute(x, tuple(perm))


def moveaxis(x: Any, source: Any, destination: Any) -> Any:
    """Axes moved to new places; the others keep their order."""
    x = as_tensor(x)
    src = [axis_of("moveaxis", x, a) for a in ([source] if isinstance(source, int) else source)]
    dst = [axis_of("moveaxis", x, a) for a in ([destination] if isinstance(destination, int) else destination)]
    if len(src) != len(dst) or len(set(src)) != len(src) or len(set(dst)) != len(dst):
        raise ShapeError(f"moveaxis needs as many different sources as destinations, not {source} and {destination}")
    order = [a for a in range(len(x.type.shape)) if a not in src]
    for d, s in sorted(zip(dst, src, strict=True)):
        order.insert(d, s)
    return permute(x, tuple(order))


def matrix_transpose(x: Any) -> Any:
    """The last two axes exchanged."""
    return swapaxes(x, -1, -2)


def unsqueeze(x: Any, axis: Any = None, *, dim: Any = None) -> Any:
    """Axes of size 1 inserted at the places ``axis`` has in the result."""
    x = as_tensor(x)
    axis = one_of("unsqueeze", axis, dim, "axis", "dim")
    places = [operator.index(a) for a in (axis if isinstance(axis, list | tuple) else [axis])]
    rank = len(x.type.shape) + len(places)
    if any_outside := [a for a in places if not -rank <= a < rank]:
        raise IndexOutOfRangeError(f"axis {any_outside[0]} does not exist in a result of rank {rank}", received=str(x.type))
    where = {a % rank for a in places}
    if len(where) != len(places):
        raise ShapeError(f"an axis is named twice in {tuple(places)}")
    sizes = iter(x.type.shape)
    return bind("reshape", x, shape=tuple(1 if i in where else next(sizes) for i in range(rank)))


expand_dims = unsqueeze


def squeeze(x: Any, axis: Any = None, *, dim: Any = None) -> Any:
    """Axes of size 1 removed: those named, or all.

    Raises:
        ShapeError: a named axis has another size.
    """
    x = as_tensor(x)
    axis = one_of("squeeze", axis, dim, "axis", "dim")
    axes = tuple(i for i, n in enumerate(x.type.shape) if n == 1) if axis is None else axes_of("squeeze", x, axis)
    for a in axes:
        if x.type.shape[a] != 1:
            raise ShapeError(f"Cannot squeeze dimension {a}: its size is {format_dim(x.type.shape[a])}, not 1",
                             received=format_shape(x.type.shape))
    return bind("reshape", x, shape=tuple(n for i, n in enumerate(x.type.shape) if i not in axes)) if axes else x


def expand(x: Any, *shape: Any) -> Any:
    """:func:`broadcast_to`, where -1 keeps a size."""
    x = as_tensor(x)
    wanted = shape_of(shape)
    lead = len(wanted) - len(x.type.shape)
    return broadcast_to(x, tuple(x.type.shape[i - lead] if n == -1 and i >= lead else n for i, n in enumerate(wanted)))


def broadcast_arrays(*xs: Any) -> list[Any]:
    """All tensors broadcast to their common shape."""
    return spread("broadcast_arrays", *[as_tensor(x) for x in xs])


def flip(x: Any, axis: Any = None, *, dim: Any = None) -> Any:
    """The order reversed along ``axis`` (None: along all)."""
    x = as_tensor(x)
    axes = axes_of("flip", x, one_of("flip", axis, dim, "axis", "dim"))
    return bind("flip", x, axes=axes) if axes else x


def slice_axis(x: Any, axis: int, start: DimLike, limit: DimLike, stride: int = 1) -> Any:
    """Elements ``start`` to ``limit`` along one axis, all of the others."""
    axis = axis_of("slice_axis", x, axis)
    starts: list[DimLike] = [0] * len(x.type.shape)
    limits, strides = list(x.type.shape), [1] * len(x.type.shape)
    starts[axis], limits[axis], strides[axis] = start, limit, stride
    return bind("slice", x, start=tuple(starts), limit=tuple(limits), stride=tuple(strides))


def roll(x: Any, shift: int | Sequence[int], axis: Any = None, *, dim: Any = None) -> Any:
    """Elements moved by ``shift`` places along ``axis``; those pushed out come back at the other end."""
    x = as_tensor(x)
    axis = one_of("roll", axis, dim, "axis", "dim")
    if axis is None:
        return reshape(roll(ravel(x), shift, 0), x.type.shape)
    shifts = [shift] if isinstance(shift, int) else list(shift)
    axes = [axis] if isinstance(axis, int) else list(axis)
    for s, a in zip(shifts, axes, strict=True):
        a = axis_of("roll", x, a)
        n = x.type.shape[a]
        if n == 0 or (k := s % n) == 0:
            continue
        x = concat([slice_axis(x, a, n - k, n), slice_axis(x, a, 0, n - k)], a)
    return x


def concat(xs: Sequence[Any], axis: int | None = None, *, dim: int | None = None) -> Any:
    """Tensors joined along ``axis`` (0); dtypes promote.

    Raises:
        ShapeError: the other sizes differ.
    """
    if not isinstance(xs, list | tuple) or not xs:
        raise ShapeError("concat needs a list of at least one tensor")
    axis = one_of("concat", axis, dim, "axis", "dim", 0)
    items = promoted("concat", *xs)
    return bind("concat", *items, axis=axis_of("concat", items[0], axis)) if len(items) > 1 else items[0]


concatenate = cat = concat


def stack(xs: Sequence[Any], axis: int | None = None, *, dim: int | None = None) -> Any:
    """Tensors of one shape joined along a new axis (0)."""
    axis = one_of("stack", axis, dim, "axis", "dim", 0)
    if axis < 0:
        axis += len(as_tensor(xs[0]).type.shape) + 1
    return concat([unsqueeze(as_tensor(x), axis) for x in xs], axis)


def split(x: Any, sections: Any = None, axis: int | None = None, *, dim: int | None = None, num_splits: Any = None) -> list[Any]:
    """Parts along ``axis`` (0): ``sections`` equal ones, or a list of their sizes.

    Raises:
        ShapeError: the axis does not divide, or the sizes do not add up.
    """
    x = as_tensor(x)
    sections = one_of("split", sections, num_splits, "sections", "num_splits")
    axis = axis_of("split", x, one_of("split", axis, dim, "axis", "dim", 0))
    n = x.type.shape[axis]
    if isinstance(sections, int):
        if sections < 1 or n % sections != 0:
            raise ShapeError(f"Cannot split dimension {axis} of size {format_dim(n)} into {sections} equal parts",
                             received=format_shape(x.type.shape), hints=["Give the sizes as a list, or use chunk"])
        sizes: list[DimLike] = [n // sections] * sections
    else:
        sizes = [as_dim(s) for s in sections]
        if builtins.sum(sizes) != n:
            raise ShapeError(f"the sizes {format_shape(sizes)} do not add up to dimension {axis} of size {format_dim(n)}")
    parts = []
    start: DimLike = 0
    for size in sizes:
        parts.append(slice_axis(x, axis, start, start + size))
        start = start + size
    return parts


def chunk(x: Any, chunks: int, axis: int | None = None, *, dim: int | None = None) -> list[Any]:
    """Up to ``chunks`` parts along ``axis`` (0), all but the last of equal size.

    Raises:
        ArgumentError: ``chunks`` is not a positive integer.
        ShapeError: the axis has a symbolic size that does not divide.
    """
    x = as_tensor(x)
    if not hasattr(chunks, "__index__") or chunks < 1:
        raise ArgumentError("chunk() cuts into at least one part", expected="chunks: a positive integer", received=repr(chunks))
    axis = axis_of("chunk", x, one_of("chunk", axis, dim, "axis", "dim", 0))
    n = x.type.shape[axis]
    if not isinstance(n, int):
        return split(x, chunks, axis)
    step = builtins.max(-(-n // chunks), 1)
    return [slice_axis(x, axis, i, builtins.min(i + step, n)) for i in range(0, n, step)] or [x]


def tile(x: Any, *reps: Any) -> Any:
    """``x`` repeated as a whole ``reps`` times along each axis."""
    x = as_tensor(x)
    times = shape_of(reps)
    times = (1,) * (len(x.type.shape) - len(times)) + times
    shape = (1,) * (len(times) - len(x.type.shape)) + x.type.shape
    paired = [n for t, s in zip(times, shape, strict=True) for n in (t, s)]
    spaced = [n for s in shape for n in (1, s)]
    return reshape(broadcast_to(reshape(x, spaced), paired), [t * s for t, s in zip(times, shape, strict=True)])


def repeat(x: Any, repeats: int, axis: int | None = None, *, dim: int | None = None) -> Any:
    """Each element repeated ``repeats`` times along ``axis`` (None: of the flattened tensor)."""
    x = as_tensor(x)
    axis = one_of("repeat", axis, dim, "axis", "dim")
    if axis is None:
        x, axis = ravel(x), 0
    a = axis_of("repeat", x, axis)
    shape = list(x.type.shape)
    wide = broadcast_to(unsqueeze(x, a + 1), [*shape[:a + 1], repeats, *shape[a + 1:]])
    return reshape(wide, [*shape[:a], shape[a] * repeats, *shape[a + 1:]])


def pad(x: Any, width: Any, value: Any = 0, mode: str = "constant") -> Any:
    """``value`` put around ``x``.

    Args:
        width: one amount for all sides, one (before, after) pair for all axes, or a pair for each axis; negative cuts.

    Raises:
        ShapeError: there are not as many pairs as axes.
        ValueError: ``mode`` is not "constant".
    """
    x = as_tensor(x)
    if mode != "constant":
        raise ValueError(f"pad knows the mode 'constant', not {mode!r}")
    rank = len(x.type.shape)
    if isinstance(width, int):
        width = [(width, width)] * rank
    elif len(width) == 2 and builtins.all(isinstance(w, int) for w in width):
        width = [tuple(width)] * rank
    pairs = [(w, w) if isinstance(w, int) else tuple(w) for w in width]
    if len(pairs) != rank:
        raise ShapeError(f"pad got {len(pairs)} pairs for a tensor of rank {rank}")
    if builtins.all(p == (0, 0) for p in pairs):
        return x
    return bind("pad", x, low=tuple(p[0] for p in pairs), high=tuple(p[1] for p in pairs), value=value)


def full(shape: Any, value: Any, dtype: Any = None) -> Any:
    """``value`` everywhere; the dtype is f32 for a float, int64 for an int, bool for a bool unless given."""
    if hasattr(value, "shape"):
        x = as_tensor(value)
        return broadcast_to(x if dtype is None else x.to(dtype), shape_of((shape,)))
    kind = as_dtype(dtype if dtype is not None else type(value))
    return bind("full", shape=shape_of((shape,)), value=value, dtype=kind)


def iota(shape: Any, axis: int = 0, dtype: Any = dt.int64) -> Any:
    """A tensor whose elements are their own index along ``axis``.

    Raises:
        ShapeError: there is no such axis.
    """
    sizes = shape_of((shape,))
    return bind("iota", shape=sizes, axis=axis + len(sizes) if axis < 0 else axis, dtype=as_dtype(dtype))


def eye(n: Any, m: Any = None, dtype: Any = dt.f32) -> Any:
    """The identity matrix, n by m (m = n)."""
    from . import pointwise as pw
    from .operands import convert
    shape = (as_dim(n), as_dim(n if m is None else m))
    return convert(pw.eq(iota(shape, 0), iota(shape, 1)), as_dtype(dtype))


def _triangle(x: Any, k: int, compare: str) -> Any:
    from . import pointwise as pw
    x = as_tensor(x)
    if len(x.type.shape) < 2:
        raise ShapeError(f"a triangle needs a matrix, not a tensor of rank {len(x.type.shape)}")
    shape = tuple(x.type.shape[-2:])
    rows = pw.add(iota(shape, 0), k) if k else iota(shape, 0)
    return pw.where(bind(compare, rows, iota(shape, 1)), x, 0)


def tril(x: Any, k: int = 0) -> Any:
    """The lower triangle of the last two axes: zero above the ``k``-th diagonal."""
    return _triangle(x, k, "ge")


def triu(x: Any, k: int = 0) -> Any:
    """The upper triangle of the last two axes: zero below the ``k``-th diagonal."""
    return _triangle(x, k, "le")


def view_as_real(x: Any) -> Any:
    """Complex elements as pairs along a new last axis."""
    return bind("view_as_real", as_tensor(x))


def view_as_complex(x: Any) -> Any:
    """Pairs along the last axis as complex elements."""
    return bind("view_as_complex", as_tensor(x))
