"""``ts.fold``: a binary function as a reduction over a fixed balanced tree.

Neighbours are combined, then neighbours of the results, and so on; an odd last element moves up unchanged.  The order of the
elements is kept, so the function need only be associative, and the pairings depend on the number of elements alone: the
bits are the same on any number of threads.  The error of a sum grows with the logarithm of its length.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optree

from ..errors import ArgumentError, DTypeError, ShapeError, TracingError
from ..ops.shaping import concat, moveaxis, slice_axis
from ..tracing.function import TracedFunction
from ..tracing.recorder import STATE, lift
from ..tracing.tensor import Tensor
from ..types.dims import format_dim
from .vmap import vmap

Span = tuple[int, int]


def pairings(n: int) -> list[list[tuple[Span, Span]]]:
    """What :func:`fold` combines for ``n`` elements: for each level, the pairs of spans [start, end) of elements."""
    spans: list[Span] = [(i, i + 1) for i in range(n)]
    levels = []
    while len(spans) > 1:
        level = [(spans[i], spans[i + 1]) for i in range(0, len(spans) - 1, 2)]
        levels.append(level)
        spans = [(a[0], b[1]) for a, b in level] + spans[2 * len(level):]
    return levels


def fold(fn: Callable[[Any, Any], Any], xs: Any = None, axis: int = 0, init: Any = None) -> Any:
    """``xs`` reduced by ``fn`` along ``axis``, in the fixed balanced tree that :func:`pairings` describes.

    ``@ts.fold`` turns a binary function into such a reduction: ``total(xs)``.

    Args:
        fn: (a, b) -> c over tensors, or trees of them, of one type; associative.
        xs: a tensor (or a tuple or dict of tensors of equal size along ``axis``): one program, in which a level of the tree is one
            batched call.  A list: its items, whatever they are, combined by Python in the same tree.
        init: combined with the result, from the left; what an empty ``xs`` gives.

    Raises:
        ShapeError: nothing to reduce and no ``init``; tensors of unequal sizes; ``fn`` changes the shape.
        DTypeError: ``fn`` changes the dtype.
    """
    if not callable(fn):
        raise ArgumentError(f"fold() takes a binary function first, not a {type(fn).__name__}", expected="fold(fn, xs)")
    if xs is None:
        return _Fold(fn)
    return _Fold(fn)(xs, axis, init)


class _Fold:
    """The reduction by one function.  ``pairings(n)`` says what is combined."""

    pairings = staticmethod(pairings)

    def __init__(self, fn: Callable[[Any, Any], Any]):
        functools.update_wrapper(self, fn, assigned=("__module__", "__name__", "__qualname__", "__doc__"), updated=())
        self.fn = fn

        def folded(xs: Any, axis: int, init: Any) -> Any:
            return self._tree(xs, axis, init)

        folded.__name__ = f"fold_{getattr(fn, '__name__', 'fn')}".replace("<lambda>", "fn")
        self._program = TracedFunction(folded, static_argnames=("axis",))

    def __call__(self, xs: Any, axis: int = 0, init: Any = None) -> Any:
        if isinstance(xs, list):
            return self._items(xs, init)
        if STATE.trace is None:
            return self._program(xs, axis, init)
        return self._tree(xs, axis, init)

    def _items(self, items: Sequence[Any], init: Any) -> Any:
        level = list(items)
        while len(level) > 1:
            level = [self.fn(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)] + level[len(level) // 2 * 2:]
        if not level:
            return self._empty(init, "an empty list")
        return level[0] if init is None else self.fn(init, level[0])

    def _tree(self, xs: Any, axis: int, init: Any) -> Any:
        leaves, form = optree.tree_flatten(xs)
        for leaf in leaves:
            if not isinstance(leaf, Tensor | np.ndarray):
                raise ArgumentError(f"fold() reduces tensors, not a {type(leaf).__name__}", received=repr(leaf)[:80],
                                    hints=["Pass a list to combine its items"])
        level = [lift(t) for t in leaves]
        for t in level:
            if not t.type.shape:
                raise ShapeError("fold() reduces along an axis, and a scalar has none", received=str(t.type))
        level = [moveaxis(t, axis, 0) for t in level]
        n = int(level[0].shape[0])  # the depth of the tree: a symbolic size becomes a number
        for t in level[1:]:
            if t.type.shape[0] != n:
                raise ShapeError(f"fold() over sequences of unequal lengths: {n} and {format_dim(t.type.shape[0])}", received=str(t.type))
        step = vmap(self._checked(form, [t.type for t in level]))
        while n > 1:
            half = n // 2
            left, right = ([slice_axis(t, 0, k, 2 * half, 2) for t in level] for k in (0, 1))
            made = step(tuple(left), tuple(right))
            level = [m if n % 2 == 0 else concat([m, slice_axis(t, 0, n - 1, n)], 0) for m, t in zip(made, level, strict=True)]
            n = half + n % 2
        if n == 0:
            return self._empty(init, str(level[0].type))
        out = optree.tree_unflatten(form, [t[0] for t in level])
        return out if init is None else self.fn(init, out)

    def _checked(self, form: Any, types: Sequence[Any]) -> Callable[..., Any]:
        """``fn`` on tuples of leaves, whose result must have the elements' types."""
        def one(left: tuple[Any, ...], right: tuple[Any, ...]) -> tuple[Any, ...]:
            made, tree = optree.tree_flatten(self.fn(optree.tree_unflatten(form, left), optree.tree_unflatten(form, right)))
            if tree != form:
                raise TracingError("the function of fold() changes the structure of the elements", expected=str(form), received=str(tree))
            out = [lift(t) for t in made]
            for t, want in zip(out, types, strict=True):
                element = want.with_shape(want.shape[1:])
                if t.type != element:
                    kind = DTypeError if t.type.shape == element.shape else ShapeError
                    raise kind(f"the function of fold() makes {t.type} of two {element}", expected=str(element), received=str(t.type),
                               sentence="The result of a pair takes part in the next pair, so it has the elements' type.")
            return tuple(out)

        one.__name__ = getattr(self.fn, "__name__", "fn")
        return one

    def _empty(self, init: Any, what: str) -> Any:
        if init is None:
            raise ShapeError("fold() over no elements has no result", received=what, hints=["Pass init="])
        return init


__all__ = ["fold", "pairings"]
