"""Fields: functions of named coordinates, with lazy algebra and derivatives, as residuals of differential equations are written.

    psi = op.mlp(in_dim=2, hidden=[64, 64], out_dim=1)
    u, v = op.grad(psi, wrt="y"), -op.grad(psi, wrt="x")
    residual = op.laplacian(psi) - forcing
    loss = op.reduce_sum(residual**2, stable=True)

A field is called with points ``[N, coordinates]`` and gives ``[N]``.  Derivatives are exact: nested forward mode along an axis.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import ArgumentError, DerivativeError, suggest
from ..ops import pointwise as pw
from ..ops import reduction as rd
from ..tracing.recorder import bind, lift
from ..tracing.tensor import Tensor
from ..types import dtypes as dt
from .derivatives import jvp

COORDINATES = {1: ("x",), 2: ("x", "y"), 3: ("x", "y", "t"), 4: ("x", "y", "z", "t")}


class Field:
    """A scalar function of named coordinates.

    Args:
        fn: takes points ``[N, len(coords)]`` and gives ``[N]``.
        coords: the names of the coordinates.

    Attributes:
        parameters: the tensors behind it, by name (those of ``op.mlp``).
    """

    __array_ufunc__ = None

    def __init__(self, fn: Callable[[Any], Any], coords: Sequence[str] = ("x", "y"), parameters: dict[str, Tensor] | None = None):
        if not callable(fn):
            raise ArgumentError(f"a field is made of a function of points, not of a {type(fn).__name__}")
        self.fn, self.coords, self.parameters = fn, tuple(coords), parameters or {}

    def __call__(self, points: Any) -> Tensor:
        p = lift(points)
        if len(p.type.shape) != 2 or p.type.shape[1] != len(self.coords):
            raise ArgumentError(f"a field of ({', '.join(self.coords)}) takes points", expected=f"[N, {len(self.coords)}]",
                                received=str(p.type))
        out = lift(self.fn(p))
        return bind("reshape", out, shape=(p.type.shape[0],)) if len(out.type.shape) == 2 else out

    def named_parameters(self) -> Iterator[tuple[str, Tensor]]:
        """(name, tensor)."""
        return iter(self.parameters.items())

    def _with(self, other: Any, fn: Callable[[Any, Any], Any]) -> Field:
        if isinstance(other, Field):
            if other.coords != self.coords:
                raise ArgumentError("two fields over different coordinates", expected=", ".join(self.coords),
                                    received=", ".join(other.coords))
            return Field(lambda p: fn(self(p), other(p)), self.coords, {**self.parameters, **other.parameters})
        if callable(other) and not isinstance(other, Tensor):
            return Field(lambda p: fn(self(p), other(p)), self.coords, self.parameters)
        return Field(lambda p: fn(self(p), other), self.coords, self.parameters)

    def __add__(self, other: Any) -> Field:
        return self._with(other, pw.add)

    def __sub__(self, other: Any) -> Field:
        return self._with(other, pw.sub)

    def __mul__(self, other: Any) -> Field:
        return self._with(other, pw.mul)

    def __truediv__(self, other: Any) -> Field:
        return self._with(other, pw.div)

    def __pow__(self, other: Any) -> Field:
        return self._with(other, pw.pow)

    def __radd__(self, other: Any) -> Field:
        return self._with(other, lambda a, b: pw.add(b, a))

    def __rsub__(self, other: Any) -> Field:
        return self._with(other, lambda a, b: pw.sub(b, a))

    def __rmul__(self, other: Any) -> Field:
        return self._with(other, lambda a, b: pw.mul(b, a))

    def __rtruediv__(self, other: Any) -> Field:
        return self._with(other, lambda a, b: pw.div(b, a))

    def __neg__(self) -> Field:
        return Field(lambda p: pw.neg(self(p)), self.coords, self.parameters)

    def __repr__(self) -> str:
        return f"<field of ({', '.join(self.coords)})>"


def grad(field: Any, wrt: Any = None, *, axis: Any = None, x: Any = None) -> Any:
    """The derivative of a field along a coordinate: ``op.grad(psi, wrt="y")`` (also by position, ``axis=``, ``x=``).

    A function or tensor instead of a field: :func:`tessera.grad`.

    Raises:
        DerivativeError: the field has no such coordinate.
    """
    names = [n for n in (wrt, axis, x) if n is not None]
    if not isinstance(field, Field):
        from .derivatives import grad as of_function
        return of_function(field, *names[:1])
    if len(names) != 1 or names[0] not in field.coords:
        given = str(names[0]) if names else "nothing"
        raise DerivativeError(f"a field of ({', '.join(field.coords)}) has no coordinate {given!r}{suggest(given, field.coords)}",
                              expected=" or ".join(field.coords), received=given, hints=['Write op.grad(field, wrt="x")'])
    at = field.coords.index(names[0])

    def along(points: Tensor) -> Tensor:
        unit = np.zeros(len(field.coords))
        unit[at] = 1
        direction = bind("broadcast_to", bind("convert", lift(unit), dtype=points.dtype), shape=points.type.shape)
        out: Tensor = jvp(field, (points,), (direction,))[1]
        return out

    return Field(along, field.coords, field.parameters)


def laplacian(field: Field, coords: Sequence[str] | None = None) -> Field:
    """The sum of second derivatives along the coordinates of space (all but ``t``, unless ``coords`` names them)."""
    if not isinstance(field, Field):
        raise ArgumentError(f"laplacian() takes a field, not a {type(field).__name__}", hints=["Make one: op.mlp(in_dim=2), op.field(f)"])
    along = [c for c in field.coords if c != "t"] if coords is None else list(coords)
    terms = [grad(grad(field, c), c) for c in along]
    total: Field = terms[0]
    for t in terms[1:]:
        total = total + t
    return total


def field(fn: Callable[[Any], Any], coords: Sequence[str] = ("x", "y")) -> Field:
    """A function of points ``[N, coordinates]`` as a field."""
    return fn if isinstance(fn, Field) else Field(fn, coords)


def mlp(in_dim: int = 2, hidden: Sequence[int] = (64, 64), out_dim: int = 1, *, activation: Any = None, coords: Any = None,
        dtype: Any = dt.f32, seed: int = 0) -> Field:
    """A multilayer perceptron over ``in_dim`` coordinates as a field (tanh between layers, Glorot weights from ``seed``).

    Raises:
        ArgumentError: more coordinates than names, or more than one output.
    """
    names = tuple(coords) if coords is not None else COORDINATES.get(in_dim, ())
    if len(names) != in_dim:
        raise ArgumentError(f"op.mlp(in_dim={in_dim}) needs {in_dim} names of coordinates", hints=["Name them: coords=(\"x\", \"y\")"])
    if out_dim != 1:
        raise ArgumentError(f"op.mlp(out_dim={out_dim}): a field is a scalar", hints=["Make one field for each component"])
    rng, kind = np.random.default_rng(seed), dt.as_dtype(dtype)
    widths = [in_dim, *hidden, out_dim]
    parameters: dict[str, Tensor] = {}
    from ..tracing.recorder import suspended
    with suspended():
        for i, (a, b) in enumerate(itertools.pairwise(widths)):
            bound = (6 / (a + b)) ** 0.5
            parameters[f"weight{i}"] = lift(rng.uniform(-bound, bound, (a, b)).astype(kind.np))
            parameters[f"bias{i}"] = lift(np.zeros(b, kind.np))
    act = activation or pw.tanh

    def run(p: Tensor) -> Tensor:
        h = p.to(kind)
        for i in range(len(widths) - 1):
            h = h @ parameters[f"weight{i}"] + parameters[f"bias{i}"]
            h = act(h) if i < len(widths) - 2 else h
        return h

    return Field(run, names, parameters)


class _Domain(threading.local):
    points: Any = None


_DOMAIN = _Domain()


@contextmanager
def domain(points: Any) -> Iterator[None]:
    """Inside the block ``op.reduce_sum(field)`` sums over ``points`` [N, coordinates]."""
    saved, _DOMAIN.points = _DOMAIN.points, points
    try:
        yield
    finally:
        _DOMAIN.points = saved


def reduce_sum(x: Any, *args: Any, stable: bool = False, **kwargs: Any) -> Any:
    """The sum of a field over the points of ``op.domain(points)``; without a domain over a grid of the unit cube (16 a side).

    Of a tensor: ``ts.sum``.  ``stable``: sums run in f64.
    """
    if isinstance(x, Field):
        points = _DOMAIN.points
        if points is None:
            line = (np.arange(16) + 0.5) / 16
            mesh = np.meshgrid(*[line] * len(x.coords), indexing="ij")
            points = np.stack([m.ravel() for m in mesh], -1).astype(np.float32)
        x = x(points)
    t = lift(x)
    if stable and t.dtype.is_float and t.dtype is not dt.f64:
        return rd.sum(t.to(dt.f64), *args, **kwargs).to(t.dtype)
    return rd.sum(t, *args, **kwargs)


__all__ = ["Field", "domain", "field", "grad", "laplacian", "mlp", "reduce_sum"]
