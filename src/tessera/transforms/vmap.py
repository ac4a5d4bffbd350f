"""``ts.vmap``: a function of one example as a function of a batch of them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import optree

from ..errors import ArgumentError, IndexOutOfRangeError, ShapeError, TracingError
from ..ir.core import Function
from ..ops import batch_rules as br
from ..ops.collectives import binding
from ..tracing.function import TracedFunction
from ..tracing.recorder import STATE, Hidden, Trace, lift, tracing
from ..tracing.state import refuse_state
from ..tracing.tensor import Tensor, Traced, make
from ..types.constraints import Size, plain
from ..types.dims import DimLike, as_dim, format_dim
from .batching import batch_function
from .raising import raise_composites

_ARRAYS = (Tensor, np.ndarray)
_NUMBERS = (bool, int, float, complex, np.generic)


class Leaf:
    """One leaf of the arguments: its value, the dimension that is mapped (None: it is the same for all), and its name in errors."""

    __slots__ = ("dim", "name", "value")

    def __init__(self, value: Any, dim: int | None, name: str):
        self.value, self.dim, self.name = value, dim, name


def vmap(fn: Callable[..., Any] | None = None, in_dims: Any = 0, out_dims: Any = 0, *, axis_name: str | None = None,
         axis_size: Any = None, in_axes: Any = None, out_axes: Any = None) -> Any:
    """``vmap(f)(xs)`` is ``f`` of each slice of ``xs``, stacked: one program in which every op works on the whole batch.

    Works on any function of tensors, inside and outside ``jit`` and ``grad``, and nests.  Also a decorator:
    ``@ts.vmap(in_dims=(None, 0))``.

    Args:
        in_dims: which dimension of each argument runs over the examples: a tuple with an entry for each positional argument, of
            an integer (negative: from the end), None (the same for all examples) or a tree of these for an argument that is a
            tree.  A single integer maps every tensor (also in tuples) and keyword argument, and leaves parameter trees (dicts,
            lists, modules) and numbers as they are.
        out_dims: where the examples stand in each result: an integer, None (the result must not depend on the example), or a
            tree of these.
        axis_name: the name by which ``all_reduce``, ``all_gather`` and ``axis_index`` inside ``fn`` know the examples.
        axis_size: how many examples there are, where no argument says so.
        in_axes, out_axes: other spellings of ``in_dims`` and ``out_dims``.

    Random draws are independent for each example; draws with an explicit ``key=`` depend on the key alone.

    Raises:
        ArgumentError: ``in_dims`` or ``out_dims`` do not fit the arguments or results, or nothing is mapped.
        ShapeError: two arguments have unequal sizes along their mapped dimensions.
        IndexOutOfRangeError: a mapped dimension does not exist.
    """
    in_dims = in_dims if in_axes is None else in_axes
    out_dims = out_dims if out_axes is None else out_axes
    if fn is None or isinstance(fn, int | tuple | list):
        if fn is not None:
            raise ArgumentError("vmap() takes a function first", expected="vmap(f, in_dims=0, out_dims=0)", received=repr(fn),
                                hints=[f"Name the argument: @ts.vmap(in_dims={fn!r})"])
        return functools.partial(vmap, in_dims=in_dims, out_dims=out_dims, axis_name=axis_name, axis_size=axis_size)
    if not callable(fn):
        raise ArgumentError(f"vmap() maps a function, not a {type(fn).__name__}", expected="vmap(f, in_dims=0, out_dims=0)")
    _check_spec(in_dims, "in_dims")
    _check_spec(out_dims, "out_dims")
    return _Mapped(fn, in_dims, out_dims, axis_name, axis_size)


class _Mapped:
    """What :func:`vmap` returns.  A direct call runs a program that is traced once for each kind of arguments."""

    __slots__ = ("__name__", "__signature__", "__weakref__", "axis_name", "axis_size", "fn", "in_dims", "out_dims", "program")

    def __init__(self, fn: Callable[..., Any], in_dims: Any, out_dims: Any, axis_name: str | None, axis_size: Any):
        self.fn, self.in_dims, self.out_dims = fn, in_dims, out_dims
        self.axis_name, self.axis_size = axis_name, axis_size
        self.__name__ = getattr(fn, "__name__", type(fn).__name__)
        self.__signature__ = _signature(fn)

        def batched(*args: Any, **kwargs: Any) -> Any:
            return self.record(args, kwargs)

        batched.__name__ = f"vmap_{self.__name__}".replace("<lambda>", "f")
        self.program = TracedFunction(batched, kind="vmap")

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if STATE.trace is None:
            return self.program(*args, **kwargs)
        return self.record(args, kwargs)

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else functools.partial(self, instance)

    def __repr__(self) -> str:
        return f"<vmap of {self.__name__}>"

    def record(self, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """Record the call into the ambient trace."""
        leaves, rebuild = _take_apart(self.fn, args, kwargs, self.in_dims)
        size = _batch_size(leaves, self.axis_size, self.__name__)
        fn, given, tree, statics = self._one_example(leaves, rebuild, size)
        outs, mapped = batch_function(fn, [t for t, _, _ in given], [m for _, m, _ in given], [d for _, _, d in given], size,
                                      self.axis_name)
        results = iter(zip(outs, mapped, strict=True))
        values = [next(results) if s is None else (s[0], None) for s in statics]
        return _assemble(values, tree, self.out_dims, size, self.__name__)

    def _one_example(self, leaves: Sequence[Leaf], rebuild: Callable[[Sequence[Any]], Any], size: DimLike
                     ) -> tuple[Function, list[tuple[Tensor, bool, bool]], Any, list[Any]]:
        """The function of one example as a Graph; its arguments (with: mapped, key of the random stream); the result's form."""
        outer = STATE.trace
        assert outer is not None
        inner = Trace(self.__name__, outer)
        inner.sites, inner.iterations, inner.transformed = outer.sites, outer.iterations, True
        unchecked = STATE.unchecked
        given: list[tuple[Tensor, bool, bool]] = []
        values = []
        for leaf in leaves:
            if leaf.dim is None:
                values.append(leaf.value)
                continue
            t = br.moved(leaf.value, leaf.dim, 0)
            given.append((t, True, False))
            values.append(inner.parameter(t.type.with_shape(t.type.shape[1:])))
        with tracing(inner), binding(self.axis_name, size):
            STATE.unchecked = unchecked
            args, kwargs = rebuild(values)
            out, tree = optree.tree_flatten(self.fn(*args, **kwargs))
            statics: list[Any] = [None if isinstance(x, (*_ARRAYS, *_NUMBERS, Size)) else (x,) for x in out]
            tensors = [lift(x) for x, s in zip(out, statics, strict=True) if s is None]
            graph = inner.finish(tensors)
            refuse_state(inner)
        outer.sites = inner.sites
        outer.effects |= inner.effects
        outer.constraints += [c for c in inner.constraints if c not in outer.constraints]
        outer._keep += inner._keep
        for c in inner.captured:
            if isinstance(c, Hidden):  # of hidden inputs, the state of objects is no random key
                given.append((make(Traced(outer, outer.capture(c))), False, type(c) is Hidden))
            else:
                given.append((c, False, False))
        return raise_composites(graph), given, tree, statics


def _signature(fn: Callable[..., Any]) -> inspect.Signature:
    """The parameters of ``fn`` without their annotations, which are those of one example."""
    try:
        given = list(inspect.signature(fn).parameters.values())
    except (TypeError, ValueError):
        given = [inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL), inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)]
    return inspect.Signature([p.replace(annotation=p.empty) for p in given])


# -- arguments ---------------------------------------------------------------------------------------------------------------
def _is_dim(x: Any) -> bool:
    return x is None or (isinstance(x, int | np.integer) and not isinstance(x, bool))


def _check_spec(spec: Any, what: str) -> None:
    for leaf in optree.tree_leaves(spec, is_leaf=_is_dim, none_is_leaf=True):
        if not _is_dim(leaf):
            raise ArgumentError(f"{what} holds a {type(leaf).__name__}", expected="integers and None, in tuples, lists or dicts",
                                received=repr(spec)[:80])


def _take_apart(fn: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any], in_dims: Any
                ) -> tuple[list[Leaf], Callable[[Sequence[Any]], tuple[list[Any], dict[str, Any]]]]:
    """The leaves of all arguments, and how to put them together again."""
    everywhere = isinstance(in_dims, int | np.integer)
    specs: list[Any]
    if everywhere:
        specs = [in_dims if _is_mapped_by_default(a) else None for a in args]
    elif isinstance(in_dims, tuple | list) and len(in_dims) == len(args):
        specs = list(in_dims)
    elif in_dims is None or (isinstance(in_dims, dict) and len(args) == 1):
        specs = [in_dims] * len(args)
    else:
        n = len(in_dims) if isinstance(in_dims, tuple | list) else "a tree"
        raise ArgumentError(
            f"in_dims has {n} entries for {len(args)} positional arguments" if isinstance(n, int) else
            f"in_dims is a {type(in_dims).__name__} for {len(args)} positional arguments",
            expected=f"a tuple of {len(args)} entries", received=repr(in_dims)[:80], hints=[
                "Give one entry for each positional argument: an integer, or None for what all examples share"])
    names = _names(fn, args)
    leaves: list[Leaf] = []
    parts: list[tuple[Any, Any, int]] = []  # (keyword or None, tree, number of leaves)
    pieces: list[tuple[str | None, Any, Any, str]] = [(None, a, s, n) for a, s, n in zip(args, specs, names, strict=True)]
    pieces += [(k, v, in_dims if everywhere and _is_mapped_by_default(v) else None, k) for k, v in kwargs.items()]
    for keyword, value, spec, name in pieces:
        dims, values, tree = _dims(spec, value, name)
        parts.append((keyword, tree, len(values)))
        for i, (v, d) in enumerate(zip(values, dims, strict=True)):
            leaves.append(_leaf(v, d, name if len(values) == 1 and v is value else f"{name}, leaf {i}", everywhere))

    def rebuild(new: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
        it = iter(new)
        positional, named = [], {}
        for keyword, tree, n in parts:
            v = optree.tree_unflatten(tree, [next(it) for _ in range(n)])
            if keyword is None:
                positional.append(v)
            else:
                named[keyword] = v
        return positional, named

    return leaves, rebuild


def _number_kind(x: Any) -> type | None:
    """The Python type of a number, also of one that is an input of the program."""
    if isinstance(x, _ARRAYS):
        return x._p.weak if isinstance(x, Tensor) and type(x._p) is Traced else None
    return type(x)


def _is_mapped_by_default(x: Any) -> bool:
    """Tensors, and tuples; dicts, lists and modules hold what all examples share."""
    return isinstance(x, tuple) or _number_kind(x) is None


def _names(fn: Callable[..., Any], args: Sequence[Any]) -> list[str]:
    try:
        known = [p.name for p in inspect.signature(fn).parameters.values() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    except (TypeError, ValueError):
        known = []
    return [f"argument {known[i]!r}" if i < len(known) else f"argument {i}" for i in range(len(args))]


def _dims(spec: Any, value: Any, name: str) -> tuple[list[int | None], list[Any], Any]:
    """For each leaf of an argument the dimension that is mapped."""
    leaves, tree = optree.tree_flatten(value)
    if _is_dim(spec):
        return [spec] * len(leaves), leaves, tree
    entries, form = optree.tree_flatten(spec, is_leaf=_is_dim, none_is_leaf=True)
    try:
        under = form.flatten_up_to(value)
    except (ValueError, TypeError):
        raise ArgumentError(f"the entry of in_dims for {name} has another structure than the argument",
                            expected=str(tree), received=repr(spec)[:120],
                            hints=["Give an integer or None for the whole argument, or a tree like it"]) from None
    dims: list[int | None] = []
    for entry, part in zip(entries, under, strict=True):
        dims += [entry] * len(optree.tree_leaves(part))
    return dims, leaves, tree


def _leaf(value: Any, dim: int | None, name: str, everywhere: bool) -> Leaf:
    number = _number_kind(value)
    if dim is None or (everywhere and number is not None):
        return Leaf(value, None, name)
    if number is not None:
        raise ArgumentError(f"in_dims maps dimension {dim} of {name}, which is a {number.__name__}",
                            expected="a tensor", received=repr(value)[:80], hints=["Use None for what all examples share"])
    t = lift(value)
    rank = len(t.type.shape)
    if not -rank <= dim < rank:
        raise IndexOutOfRangeError(
            f"in_dims maps dimension {dim} of {name}, which has " + (f"dimensions 0 to {rank - 1}" if rank else "none"),
            received=str(t.type), sentence="vmap takes one slice along that dimension for each example.",
            hints=["Use None for what all examples share", *([f"Dimensions run from {-rank} to {rank - 1}"] if rank else [])])
    return Leaf(t, int(dim) % rank, name)


def _batch_size(leaves: Sequence[Leaf], axis_size: Any, name: str) -> DimLike:
    size: DimLike | None = None if axis_size is None else plain(as_dim(axis_size))
    origin = "axis_size"
    for leaf in leaves:
        if leaf.dim is None:
            continue
        n = leaf.value.type.shape[leaf.dim]
        if size is None:
            size, origin = n, f"dimension {leaf.dim} of {leaf.name}"
        elif n != size:
            raise ShapeError(
                f"vmap of {name!r} maps sizes that disagree: {format_dim(size)} ({origin}) vs {format_dim(n)} (dimension "
                f"{leaf.dim} of {leaf.name})", expected=f"{format_dim(size)} examples", received=str(leaf.value.type),
                sentence="All mapped dimensions have one size: the number of examples.",
                hints=["Map another dimension: in_dims=(…)", "Use None in in_dims for an argument that all examples share"])
    if size is None:
        raise ArgumentError(f"vmap of {name!r} maps nothing: no argument has a mapped dimension",
                            expected="at least one mapped tensor", hints=["Give in_dims an integer for one of the arguments",
                            "A dict, list or module is mapped only by its own entry: in_dims=({...},)", "Pass axis_size=n"])
    return size


# -- results -----------------------------------------------------------------------------------------------------------------
def _assemble(values: Sequence[tuple[Any, Any]], tree: Any, out_dims: Any, size: DimLike, name: str) -> Any:
    """The results with the batch where ``out_dims`` wants it."""
    slots = list(range(len(values)))
    if _is_dim(out_dims):
        dims: list[Any] = [out_dims] * len(values)
    else:
        entries, form = optree.tree_flatten(out_dims, is_leaf=_is_dim, none_is_leaf=True)
        try:
            under = form.flatten_up_to(optree.tree_unflatten(tree, slots))
        except (ValueError, TypeError):
            raise ArgumentError(f"out_dims has another structure than the result of {name!r}", expected=str(tree),
                                received=repr(out_dims)[:120],
                                hints=["Give an integer for all results, or a tree like the result"]) from None
        dims = [entry for entry, part in zip(entries, under, strict=True) for _ in optree.tree_leaves(part)]
    return optree.tree_unflatten(tree, [_placed(t, m, d, size, name) for (t, m), d in zip(values, dims, strict=True)])


def _placed(t: Any, mapped: bool | None, dim: int | None, size: DimLike, name: str) -> Any:
    if mapped is None:
        if callable(t) or not isinstance(t, str):
            raise TracingError(f"the result of {name!r} holds a {type(t).__name__}", received=repr(t)[:80],
                               sentence="vmap stacks the results of all examples: tensors and numbers, in tuples, lists or dicts.")
        return t
    if dim is None:
        if mapped:
            raise ArgumentError(f"out_dims is None for a result of {name!r} that differs between examples", received=str(t.type),
                                hints=["Give the dimension along which the examples are stacked", "Reduce over the examples "
                                       "first: ts.all_reduce(x, \"mean\", axis=…)"])
        return t
    rank = len(t.type.shape) + (not mapped)
    if not -rank <= dim < rank:
        raise IndexOutOfRangeError(f"out_dims puts the examples of {name!r} at dimension {dim} of a result with {rank} dimensions",
                                   received=str(t.type), hints=[f"Dimensions run from {-rank} to {rank - 1}"])
    t = t if mapped else br.stretched(t, size)
    return br.moved(t, 0, dim % rank)


__all__ = ["vmap"]
