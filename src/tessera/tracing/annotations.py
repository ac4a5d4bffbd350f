"""Tensor types in annotations: ``Tensor["B", "S", 768, ts.bf16 @ ts.accum(ts.f32)]``.

Sizes are integers, names, expressions over names (``"3*D"``), integers as text with a suffix (``"1M"`` is 2**20), ``Dim``
objects, type parameters (``def f[B, D](x: Tensor[B, D])``, Python 3.12), ``"?"`` (any size) or ``"..."`` (any number of
axes); an element type or numerical policy may come last.  ``typing.Annotated[Tensor, "B", "S", ts.f32]`` means the same and
needs no setting in a static type checker.
"""

from __future__ import annotations

import builtins
import inspect
import re
import sys
import typing
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import ArgumentError, ConstraintError, DTypeError, ShapeError
from ..ir.core import TensorType
from ..types.constraints import Size, SizeConstraint, as_size
from ..types.dims import Dim, DimLike, as_dim, format_dim, name, substitute
from ..types.dtypes import ALIASES, DType, as_dtype
from ..types.policy import NumericalPolicy
from ..types.promotion import widens
from ..types.shapes import Constraint, parse_constraint, unify
from .recorder import STATE
from .tensor import Tensor

ANY = "?"
REST = "..."


@dataclass(frozen=True)
class TensorSpec:
    """A declared tensor type.

    Attributes:
        dims: sizes; ``"?"`` stands for any size and ``"..."`` for any number of axes.  None: any shape.
        dtype: the element type, or None for any.
        policy: the numerical policy, where one is given.
    """

    dims: tuple[Any, ...] | None
    dtype: DType | None = None
    policy: NumericalPolicy | None = None

    @staticmethod
    def parse(items: Any) -> TensorSpec:
        """From what stands between the brackets.

        Raises:
            ShapeError: an item is no size.
            DTypeError: the element type is not the last item.
        """
        parts = items if isinstance(items, tuple) else (items,)
        dtype, policy = None, None
        if parts and isinstance(parts[-1], type) and issubclass(parts[-1], NumericalPolicy):
            parts = (*parts[:-1], parts[-1].from_class())
        if parts and _is_dtype(parts[-1]):
            policy = parts[-1] if isinstance(parts[-1], NumericalPolicy) else None
            dtype = as_dtype(parts[-1])
            parts = parts[:-1]
            if not parts:
                return TensorSpec(None, dtype, policy)
        dims = tuple(_dim(p) for p in parts)
        if sum(d == REST for d in dims if isinstance(d, str)) > 1:
            raise ShapeError("a tensor type can have only one '...'", received=", ".join(map(str, parts)))
        return TensorSpec(dims, dtype, policy)

    @property
    def __origin__(self) -> type:  # ``typing`` shows the annotation and lets it take part in unions
        return Tensor

    def __or__(self, other: Any) -> Any:
        return typing.Union[self, other]  # noqa: UP007

    def __ror__(self, other: Any) -> Any:
        return typing.Union[other, self]  # noqa: UP007

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:  # makes the object acceptable to typing.Optional
        return Tensor(*args, **kwargs)

    def __str__(self) -> str:
        items = [] if self.dims is None else [d if isinstance(d, str) and d in (ANY, REST) else format_dim(d) for d in self.dims]
        if self.policy is not None:
            items.append(str(self.policy))
        elif self.dtype is not None:
            items.append(str(self.dtype))
        return f"Tensor[{', '.join(items)}]" if items or self.dims is not None else "Tensor"

    __repr__ = __str__

    @property
    def shape(self) -> tuple[Any, ...]:
        """The declared sizes: integers, sizes over names, ``"?"``."""
        if self.dims is None:
            raise ShapeError(f"{self} declares no shape")
        return tuple(as_size(d, True) if isinstance(d, Dim) else d for d in self.dims)

    @property
    def names(self) -> frozenset[str]:
        """The names that occur in the sizes."""
        return frozenset(n for d in self.dims or () if isinstance(d, Dim) for n in d.names)

    def __instancecheck__(self, x: Any) -> bool:
        return isinstance(x, Tensor) and matches(self, x.type)


def _is_dtype(x: Any) -> bool:
    return isinstance(x, DType | NumericalPolicy) or (isinstance(x, str) and (x in ALIASES or "@" in x)) or \
        (isinstance(x, type) and x in (float, bool, complex))


def _dim(p: Any) -> Any:
    if p is Ellipsis or p == REST:
        return REST
    if isinstance(p, str) and p.strip() in (ANY, "_"):
        return ANY
    if _is_dtype(p):
        raise DTypeError(f"the element type {p} must be the last item of a tensor type")
    if type(p).__name__ == "TypeVar":
        return name(p.__name__)
    if isinstance(p, float) or (isinstance(p, int) and (p < 0 or isinstance(p, bool))):
        raise ShapeError(f"{p!r} is not a size", sentence="Sizes in a tensor type are integers from 0, or names.")
    try:
        d = as_dim(p)
    except (TypeError, ValueError) as e:
        raise ShapeError(f"{p!r} is not a size: {e}", hints=[
            'Write a name "B", an integer, an expression "3*D", "?" for any size, or "..." for any number of axes']) from None
    return Dim(d.terms) if isinstance(d, Dim) else d


# -- matching --------------------------------------------------------------------------------------------------------------
def expand(spec: TensorSpec, rank: int, fresh: Iterator[str], prefix: str = "") -> tuple[DimLike, ...] | None:
    """The declared sizes for a tensor of ``rank``, with names for ``"?"`` and ``"..."``; None when the rank does not fit.

    The axes of ``"..."`` get names that depend only on their position, so that they agree across a signature.
    """
    assert spec.dims is not None
    rest = [i for i, d in enumerate(spec.dims) if isinstance(d, str) and d == REST]
    dims = list(spec.dims)
    if rest:
        extra = rank - (len(dims) - 1)
        if extra < 0:
            return None
        dims[rest[0]:rest[0] + 1] = [name(f"{prefix}_rest{i}") for i in range(extra)]
    elif len(dims) != rank:
        return None
    return tuple(name(next(fresh)) if isinstance(d, str) else d for d in dims)


def matches(spec: TensorSpec, t: TensorType) -> bool:
    """True when a tensor of type ``t`` fits the specification taken alone."""
    env: dict[str, DimLike] = {}
    if spec.dtype is not None and spec.dtype is not t.dtype:
        return False
    if spec.dims is None:
        return True
    declared = expand(spec, t.rank, iter(f"_{i}" for i in range(99)))
    return declared is not None and unify(declared, t.shape, env) is None


def check_dtype(spec: TensorSpec, t: TensorType, what: str, function: str) -> None:
    """Refuse an element type that does not widen to the declared one.

    Raises:
        DTypeError: "Cannot implicitly convert from bf16 to fp8_e4m3".
    """
    want = spec.dtype
    if STATE.policy is not None and STATE.policy.policy is not None and want is not None and want.is_float and t.dtype.is_float:
        return  # inside ``with ts.precision(...)`` declared conversions are made
    if want is None or want is t.dtype or (widens(t.dtype, want) and want.is_float and t.dtype.is_float):
        return
    raise DTypeError(
        f"Cannot implicitly convert from {t.dtype} to {want}", expected=f"{what}: {spec}", received=str(t),
        sentence=f"Tensor {what!r} has type {t.dtype} but {function!r} expects {want}.",
        hints=[f"Add an explicit cast: {function}({what}.to({want}))",
               f'Or use automatic mixed precision: with tessera.precision("mixed"): {function}({what})',
               f"Or declare {what} as {t.dtype} in the annotation"])


def not_a_tensor(value: Any, spec: TensorSpec, what: str, function: str) -> ArgumentError:
    """The error for an argument that is declared as a tensor and is something else."""
    hints = [f"Pass a tensor or a NumPy array as {what!r}"]
    if isinstance(value, list | tuple | dict):
        many = any(isinstance(v, Tensor | np.ndarray) for v in (value.values() if isinstance(value, dict) else value))
        hints = [] if isinstance(value, dict) else [f"Join them: ts.stack({what})" if many else f"Make it one: ts.tensor({what})"]
        hints.append(f"Leave {what!r} without a tensor annotation: trees of tensors are accepted")
    return ArgumentError(
        f"{what!r} is declared as a tensor and is a {type(value).__name__}", expected=f"{what}: {spec}", received=type(value).__name__,
        sentence=f"The function {function!r} takes one tensor as {what!r}.", hints=hints)


def _quoted(d: Any) -> str:
    return f'"{d}"' if isinstance(d, str | Dim) else format_dim(d)


def _as_written(spec: TensorSpec, dims: Sequence[Any]) -> str:
    items = [_quoted(d) for d in dims]
    if spec.dtype is not None:
        items.append(str(spec.policy or spec.dtype))
    return f"Tensor[{', '.join(items)}]"


def shape_mismatch(spec: TensorSpec, t: TensorType, axis: int | None, what: str, function: str,
                   env: Mapping[str, DimLike], origins: Mapping[str, str]) -> ShapeError:
    """The error for an argument (or result) whose shape does not fit what is declared."""
    declared = expand(spec, t.rank, iter(f"_{i}" for i in range(99))) if axis is not None else None
    wrong = declared[axis] if declared is not None and axis is not None else None
    names = sorted(wrong.names if isinstance(wrong, Dim) else spec.names if axis is None else ())
    bound = ", ".join(f"{k} = {format_dim(env[k])}" for k in names if k in env and not k.startswith("_"))
    expected = _as_written(spec, spec.dims or ()) + (f" where {bound}" if bound else "")
    notes = [f"{k} = {format_dim(env[k])} from {origins[k]}" for k in sorted(spec.names) if k in env and k in origins]
    if axis is None:
        return ShapeError(
            f"{what!r} has {t.rank} axes, and its type has {len(spec.dims or ())}", expected=expected,
            received=_as_written(spec, t.shape), sentence=f"The function {function!r} expects {what!r} as {spec}.", origins=notes,
            hints=["Add or remove axes: x.unsqueeze(0), x.squeeze(0), x.reshape(...)",
                   'Declare "..." in the annotation to accept any number of leading axes'])
    assert declared is not None
    want, got = declared[axis], format_dim(t.shape[axis])
    known = {k: v for k, v in env.items() if not isinstance(want, Dim) or want.is_name or k in want.names}
    value = substitute(want, known) if isinstance(want, Dim) else want
    label = f"{want}={value}" if isinstance(want, Dim) and value != want else f"{value}"
    shown = [n if i == axis or not isinstance(d, Dim) or str(d).startswith("_") else d
             for i, (d, n) in enumerate(zip(declared, t.shape, strict=True))]
    return ShapeError(
        f"{what!r} has size {got} in dimension {axis}, where {label} is declared", expected=expected,
        received=_as_written(spec, shown), origins=notes,
        sentence=f"The function {function!r} expects dimension {label} but received {_received(want, got)}.",
        hints=["Ensure input tensor has correct dimensions",
               f"Add a projection layer: {what} = linear({what}, out_dim={value})",
               f"Update the declared sizes to use {_received(want, got)}"])


def _received(want: DimLike, got: str) -> str:
    return f"{want}={got}" if isinstance(want, Dim) and want.is_name else got


# -- signatures --------------------------------------------------------------------------------------------------------------
class _Names(dict[str, Any]):
    """Names for evaluating an annotation: unknown single identifiers are sizes."""

    def __init__(self, scopes: Sequence[Mapping[str, Any]]):
        super().__init__()
        self.scopes = scopes

    def __missing__(self, key: str) -> Any:
        for scope in (*self.scopes, vars(builtins)):
            if key in scope:
                value = scope[key]
                return as_size(name(key), True) if type(value).__name__ == "TypeVar" else value
        return as_size(name(key), True)


@dataclass(frozen=True)
class Declared:
    """What a function's annotations say.

    Attributes:
        params: parameter name to its :class:`TensorSpec` (tensor parameters only).
        result: the annotation of the result: a spec, a tuple/list/dict structure over specs, or None.
        where: constraints on sizes.
        spaces: the memory space that a parameter is declared to live in.
        facts: parameters that only state a constraint (``def f(x: Tensor["B", D], fact: D % 8 == 0)``) and take no argument.
    """

    params: Mapping[str, TensorSpec]
    result: Any
    where: tuple[Constraint, ...]
    facts: frozenset[str] = frozenset()
    spaces: Mapping[str, str] = field(default_factory=dict)


def read(fn: Callable[..., Any], where: Sequence[Any] = ()) -> Declared:
    """The declared types of ``fn``.

    Raises:
        ConstraintError: an item of ``where`` is not a comparison of sizes.
    """
    raw = dict(getattr(inspect.unwrap(fn), "__annotations__", {}))
    raw_names = _Names([*_scopes(fn)])
    params: dict[str, TensorSpec] = {}
    constraints = [_constraint(c) for c in where]
    result: Any = None
    facts: set[str] = set()
    spaces: dict[str, str] = {}
    for key, annotation in raw.items():
        value = _evaluated(annotation, raw_names, key)
        if isinstance(value, str) and any(op in value for op in ("==", "!=", "<", ">")):  # "D % 8 == 0", quoted once more
            value = _constraint(value)
        if key == "return":
            result = value
        elif isinstance(value, Constraint):
            constraints.append(value)
            facts.add(key)
        else:
            spec = spec_of(value)
            if spec is not None:
                params[key] = spec
            if isinstance(getattr(value, "space", None), str):
                spaces[key] = str(value.space)
    _type_parameters_as_sizes(fn, {n for spec in params.values() for d in spec.dims or () if isinstance(d, Dim) for n in d.names})
    return Declared(params, result, tuple(constraints), frozenset(facts), spaces)


def _type_parameters_as_sizes(fn: Callable[..., Any], sizes: Container[str]) -> None:
    """In the body of ``def f[B](x: Tensor[B])`` the name B means the size too: its cell holds that in place of the type variable."""
    inner: Any = inspect.unwrap(fn)
    inner = getattr(inner, "__func__", inner)
    code, own = getattr(inner, "__code__", None), getattr(inner, "__type_params__", ())
    for n, cell in zip(code.co_freevars, inner.__closure__ or (), strict=True) if code is not None and own else ():
        if n in sizes and _filled(cell) and any(cell.cell_contents is t for t in own):
            cell.cell_contents = name(n)


def _scopes(fn: Callable[..., Any]) -> Iterator[Mapping[str, Any]]:
    inner: Any = inspect.unwrap(fn)
    if hasattr(inner, "__func__"):
        inner = inner.__func__
    yield {t.__name__: t for t in getattr(inner, "__type_params__", ())}
    code, cells = getattr(inner, "__code__", None), getattr(inner, "__closure__", None)
    if code is not None and cells:
        yield {n: c.cell_contents for n, c in zip(code.co_freevars, cells, strict=True) if _filled(c)}
    yield getattr(inner, "__globals__", {})


def _filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _evaluated(annotation: Any, names: _Names, parameter: str) -> Any:
    """The value of an annotation; None for text that other tools may understand.

    Raises:
        ArgumentError: it is meant for Tessera (a name of the package, a tensor type) and cannot be read.
    """
    if not isinstance(annotation, str):
        return annotation
    try:
        return eval(annotation, {"__builtins__": {}}, names)  # the user's own annotation, as typing.get_type_hints does
    except (NameError, AttributeError, TypeError, SyntaxError) as e:
        ours = str(e).startswith("module 'tessera' has no attribute") or (
            isinstance(e, TypeError) and "Tensor[" in annotation and "'Size' object is not subscriptable" not in str(e))
        if not ours:
            return None
        raise ArgumentError(f"the annotation of {parameter!r} cannot be read: {e}", received=annotation, hints=[
            "Correct the annotation", "Under `from __future__ import annotations`, a name of an enclosing function is known only where "
            "the body uses it too: make it a global, or leave the import out"]) from None


def _constraint(c: Any) -> Constraint:
    if isinstance(c, Constraint):
        return c
    if isinstance(c, str):
        try:
            got = parse_constraint(c)
        except ValueError as e:
            raise ConstraintError(str(e)) from None
        return SizeConstraint(got.lhs, got.op, got.rhs)
    raise ConstraintError(f"{c!r} is not a constraint on sizes", hints=[
        'Compare sizes made by ts.sym: D = ts.sym("D"); where=[D % 8 == 0]', 'Or write it as text: where=["D % 8 == 0"]'])


def spec_of(annotation: Any) -> TensorSpec | None:
    """The tensor type in an annotation, also through ``Optional`` and ``Annotated``; None for anything else."""
    if isinstance(annotation, TensorSpec):
        return annotation
    if annotation is Tensor:
        return TensorSpec(None)
    if isinstance(getattr(annotation, "spec", None), TensorSpec):  # a type placed in a memory space
        return annotation.spec  # type: ignore[no-any-return]
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        base, *extra = typing.get_args(annotation)
        if base is Tensor:
            items = [p for e in extra for p in (re.split(r"[\s,]+", e.strip()) if isinstance(e, str) else (e,))]
            return TensorSpec.parse(tuple(items))
        return spec_of(base)
    if origin is typing.Union or (sys.version_info >= (3, 10) and isinstance(annotation, __import__("types").UnionType)):
        found = [s for s in map(spec_of, typing.get_args(annotation)) if s is not None]
        return found[0] if len(found) == 1 else None
    return None


def flat_specs(annotation: Any, count: int) -> list[TensorSpec | None]:
    """Declared types for the ``count`` leaves of a result."""
    spec = spec_of(annotation)
    if spec is not None:
        return [spec] * count if count == 1 else [None] * count
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is tuple and args:
        parts = args[:1] * count if len(args) == 2 and args[1] is Ellipsis else args
        if len(parts) == count:
            return [spec_of(p) for p in parts]
    if origin in (list, dict) and args:
        return [spec_of(args[-1])] * count
    return [None] * count


def check_sizes(where: Sequence[Constraint], env: Mapping[str, DimLike], function: str, origins: Mapping[str, str]) -> None:
    """Refuse sizes that break a declared constraint.

    Raises:
        ConstraintError: with the sizes bound.
    """
    for c in where:
        if c.decide(env) is False:
            names = sorted(n for d in (c.lhs, c.rhs) if isinstance(d, Dim) for n in d.names)
            bound = ", ".join(f"{n} = {env[n]}" for n in names if n in env)
            shown = c if isinstance(c, SizeConstraint) else SizeConstraint(c.lhs, c.op, c.rhs)
            raise ConstraintError(
                f"{shown} does not hold", expected=str(shown), received=bound,
                sentence=f"The function {function!r} requires {shown}.",
                origins=[f"{n} = {env[n]} from {origins[n]}" for n in names if n in origins and n in env],
                hints=["Pad or slice the input so that the constraint holds", "Relax the constraint in where=[…]"])


__all__ = ["ANY", "REST", "Declared", "Size", "TensorSpec", "check_dtype", "check_sizes", "expand", "flat_specs",
           "matches", "read", "shape_mismatch", "spec_of"]
