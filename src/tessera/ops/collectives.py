"""Collectives over a named axis: what the examples of a ``vmap`` (or the members of a mesh axis) tell each other.

The primitives name the axis.  The transformation that binds the name replaces them; an axis that nothing has bound has one
member, which is what the numpy meaning and the element rule say.  The user's functions refuse names that are not bound.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import optree

from ..errors import ArgumentError, ShapeError, suggest
from ..ir.core import TensorType
from ..tracing.recorder import bind, lift
from ..types import dtypes as dt
from ..types.dims import DimLike
from . import batch_rules as br
from . import pointwise as pw
from . import reduction as rd
from . import shaping as sh
from .derivatives import onward, reverse
from .operands import axis_of, convert, scalar
from .rules import BOOL, EVERY, REAL, accept, expect_operands
from .table import Applied, Attrs, primitive

Types = Sequence[TensorType]
REDUCTIONS = {"sum": "reduce_sum", "max": "reduce_max", "min": "reduce_min"}


class _Bound(threading.local):
    axes: tuple[tuple[str, DimLike], ...] = ()


BOUND = _Bound()
"""The names that are bound here, innermost last, with the number of members."""


@contextmanager
def binding(name: str | None, size: DimLike) -> Iterator[None]:
    """Inside the block ``name`` is an axis of ``size`` members."""
    saved = BOUND.axes
    if name is not None:
        BOUND.axes = (*saved, (name, size))
    try:
        yield
    finally:
        BOUND.axes = saved


# -- primitives ------------------------------------------------------------------------------------------------------------
# ``facts["within"]``: (application, mapped, size) -> results and whether they are mapped, where the mapped axis is the one named.
def _reduce_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("all_reduce", types, 1)
    accept("all_reduce", types, REAL)
    if attrs["combine"] not in REDUCTIONS:
        raise ShapeError(f"'all_reduce' combines with {', '.join(REDUCTIONS)}, not {attrs['combine']!r}")
    return (types[0],)


def _reduce_within(x: Applied, mapped: tuple[bool, ...], size: DimLike) -> tuple[list[Any], bool]:
    (t,) = br.spread(x, mapped, size)
    return [bind(REDUCTIONS[x.attrs["combine"]], t, axes=(0,))], False


def _over_members(x: Applied, t: Any) -> Any:
    """The sum of ``t`` over the members."""
    return bind("all_reduce", t, axis=x.attrs["axis"], combine="sum")


def _share(x: Applied, t: Any) -> Any:
    """``t`` where a member has the extremum, divided among those that have it."""
    hit = convert(pw.eq(x.operands[0], x.out), t.dtype)
    return pw.mul(pw.div(hit, _over_members(x, hit)), t)


def _reduce_jvp(x: Applied, t: Any) -> Any:
    return _over_members(x, t if x.attrs["combine"] == "sum" else _share(x, t))


def _reduce_back(x: Applied, g: Any) -> Any:
    total = _over_members(x, g)
    return total if x.attrs["combine"] == "sum" else _share(x, total)


primitive("all_reduce", family="collective", infer=_reduce_infer, reference=lambda x, axis, combine: x.copy(), dtypes=REAL,
          element=lambda e, op, index, r: e.operand(0, index), batch=br.leading,
          jvp=onward(_reduce_jvp), vjp=reverse(_reduce_back),
          facts={"attrs": ("axis", "combine"), "within": _reduce_within},
          doc="The members' operands along the named ``axis`` combined (sum, max, min): every member gets the same.")


def _gather_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("all_gather", types, 1)
    return (types[0].with_shape((attrs["members"], *types[0].shape)),)


def _gather_back(x: Applied, g: Any) -> Any:
    """A member's own part of what all members say about the whole."""
    index = bind("axis_index", axis=x.attrs["axis"])
    return bind("gather", _over_members(x, g), index, axes=(0,), checked=False)


primitive("all_gather", family="collective", infer=_gather_infer, dtypes=EVERY, batch=br.all_gather,
          reference=lambda x, axis, members: np.broadcast_to(x, (members, *x.shape)).copy(),
          element=lambda e, op, index, r: e.operand(0, index[1:]), linear=True, vjp=reverse(_gather_back),
          facts={"attrs": ("axis", "members"), "within": lambda x, mapped, size: (br.spread(x, mapped, size), False)},
          doc="The operands of all ``members`` of the named ``axis``, along a new first axis.")


def _index_infer(types: Types, attrs: Attrs) -> Types:
    expect_operands("axis_index", types, 0)
    return (TensorType(dt.int64, ()),)


primitive("axis_index", family="collective", infer=_index_infer, reference=lambda axis: np.asarray(0, np.int64), dtypes=(dt.int64,),
          element=lambda e, op, index, r: e.const(0, dt.int64),
          facts={"attrs": ("axis",), "within": lambda x, mapped, size: ([br.example_numbers((size,))], True)},
          doc="A member's own number along the named ``axis``.")


# -- the user's functions ----------------------------------------------------------------------------------------------------
def _named(what: str, axis: Any, mesh_axis: Any) -> tuple[str, DimLike]:
    name = axis if mesh_axis is None else mesh_axis
    names = [n for n, _ in BOUND.axes]
    if name is None and len(names) == 1:
        name = names[0]
    for n, size in reversed(BOUND.axes):
        if n == name:
            return n, size
    raise ArgumentError(
        f"{what}() over the axis {name!r}, which nothing has bound{suggest(str(name), names)}", expected=", ".join(names) or
        "a call inside vmap(…, axis_name=)", received=repr(name), sentence="A named axis exists inside the function that is mapped.",
        hints=["Name the mapped axis: ts.vmap(f, axis_name=\"batch\")"])


def all_reduce(x: Any, op: str = "sum", axis: str | None = None, *, mesh_axis: str | None = None) -> Any:
    """The values of ``x`` (a tensor, or a tree of them) of all members of a named axis, combined.

    Args:
        op: "sum", "mean", "max", "min" or "prod".
        axis: the name of the axis (``mesh_axis`` is the same); may be left out where only one is bound.

    Raises:
        ArgumentError: no such axis is bound, or an unknown ``op``.
    """
    name, size = _named("all_reduce", axis, mesh_axis)
    known = (*REDUCTIONS, "mean", "prod")
    if op not in known:
        raise ArgumentError(f"all_reduce() combines with {', '.join(known)}, not {op!r}{suggest(str(op), known)}")

    def one(leaf: Any) -> Any:
        t = lift(leaf)
        t = convert(t, dt.int64) if t.dtype in BOOL else t
        if op == "prod":
            return rd.prod(bind("all_gather", t, axis=name, members=size), 0)
        if op != "mean":
            return bind("all_reduce", t, axis=name, combine=op)
        t = t if t.dtype.is_inexact else convert(t, dt.f32)
        members = scalar(size, t.dtype) if isinstance(size, int) else convert(bind("size", value=size), t.dtype)
        return pw.div(bind("all_reduce", t, axis=name, combine="sum"), members)

    return optree.tree_map(one, x)


def psum(x: Any, axis: str | None = None) -> Any:
    """The sum over a named axis: ``all_reduce(x, "sum", axis)``."""
    return all_reduce(x, "sum", axis)


def pmean(x: Any, axis: str | None = None) -> Any:
    """The mean over a named axis: ``all_reduce(x, "mean", axis)``."""
    return all_reduce(x, "mean", axis)


def pmax(x: Any, axis: str | None = None) -> Any:
    """The maximum over a named axis: ``all_reduce(x, "max", axis)``."""
    return all_reduce(x, "max", axis)


def pmin(x: Any, axis: str | None = None) -> Any:
    """The minimum over a named axis: ``all_reduce(x, "min", axis)``."""
    return all_reduce(x, "min", axis)


def all_gather(x: Any, axis: str | None = None, *, mesh_axis: str | None = None, dim: int = 0, stack: bool = False) -> Any:
    """The values of all members of a named axis joined along dimension ``dim`` (scalars: as a vector), in order.

    Args:
        stack: along a new dimension instead, at place ``dim`` of the result.

    Raises:
        ArgumentError: no such axis is bound.
    """
    name, size = _named("all_gather", axis, mesh_axis)
    t = lift(x)
    out = bind("all_gather", t, axis=name, members=size)
    shape = t.type.shape
    if stack or not shape:
        return sh.moveaxis(out, 0, dim)
    at = axis_of("all_gather", t, dim)
    return sh.reshape(sh.moveaxis(out, 0, at), (*shape[:at], size * shape[at], *shape[at + 1:]))


def axis_index(axis: str | None = None) -> Any:
    """The member's own number along a named axis, as int64.

    Raises:
        ArgumentError: no such axis is bound.
    """
    return bind("axis_index", axis=_named("axis_index", axis, None)[0])


def axis_size(axis: str | None = None) -> Any:
    """How many members a named axis has.

    Raises:
        ArgumentError: no such axis is bound.
    """
    return _named("axis_size", axis, None)[1]
