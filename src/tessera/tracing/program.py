"""A traced function for one kind of arguments: its graph, what it captured, and how to run it."""

from __future__ import annotations

import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import optree

from ..errors import DTypeError, ShapeError
from ..ir.core import Function, TensorType
from ..types.constraints import SCOPE, Size
from ..types.dims import Dim, DimLike, substitute
from ..types.dims import name as name_of
from ..types.effects import format_effects
from ..types.shapes import Constraint, unify
from . import eager
from .annotations import Declared, TensorSpec, check_dtype, expand, flat_specs, shape_mismatch
from .location import Location
from .placed import DeviceArray, payload_name, where
from .reads import unchanged
from .recorder import STATE, Hidden, Trace, allowing, check_effects, lift, tracing
from .tensor import Donated, Tensor, Traced, make


class NeedsValue(BaseException):
    """Python asked for the value of a symbolic size: the function is traced again with these sizes as numbers."""

    def __init__(self, names: frozenset[str]):
        super().__init__(", ".join(sorted(names)))
        self.names = names


class NeedsMultiple(BaseException):
    """Without a call, sizes fit only where ``size`` is a multiple of ``of``: it is traced again as one."""

    def __init__(self, size: str, of: DimLike):
        super().__init__(f"{size} as a multiple of {of}")
        self.size, self.of = size, of


class Program:
    """One trace of a function.

    Attributes:
        graph: the Graph function; its parameters are the dynamic leaves of the arguments, then what it captured.
        captured: the tensors and hidden inputs behind the trailing parameters.
        effects: inferred effects.
        constraints: facts about sizes that each call checks once.
        guards: comparisons of sizes that Python decided on while tracing; the program is valid where they come out alike.
        location: where it runs, as far as the body relied on that.
    """

    def __init__(self, graph: Function, trace: Trace, out_tree: Any, out_static: Sequence[Any], assigned: Sequence[Any] = ()):
        self.graph = graph
        self.captured = trace.captured
        self.keep = trace._keep
        self.sites = trace.sites
        self.reasons = trace.reasons
        self.outlined = trace.outlined
        self.effects = frozenset(trace.effects)
        self.constraints: list[Constraint] = trace.constraints
        self.guards = trace.guards
        self.location: Location = trace.location or Location()
        self.reads: list[Any] = []  # the attributes of Python objects that the body read: tracing/reads.py
        self.out_tree = out_tree
        self.out_static = list(out_static)  # per leaf: (value,) for a constant of the host, None for a tensor
        self.assigned = list(assigned)  # state and messages that take the trailing results
        self._run: Any = None
        self._elsewhere: dict[str, Any] = {}

    @property
    def executable(self) -> Any:
        """The compiled program; compiled at first use."""
        if self._run is None:
            self._run = eager.compile_graph(self.graph)
        return self._run

    def executable_on(self, device: str | None) -> Any:
        """The program compiled for a device (None: the CPU)."""
        if device is None:
            return self.executable
        if device not in self._elsewhere:
            self._elsewhere[device] = eager.compile_graph(self.graph, device)
        return self._elsewhere[device]

    def captures_fit(self) -> bool:
        """True while the captured tensors have the types that the graph was traced for."""
        args = self.graph.args[len(self.graph.args) - len(self.captured):]
        return all(isinstance(c, Hidden) or (type(c._p) is not Donated and c.dtype is a.type.dtype)
                   for c, a in zip(self.captured, args, strict=True))

    def fits(self, env: Mapping[str, int], location: Location) -> bool:
        """True when every guard comes out as it did while tracing, the call is where the body relied on, and objects are as read."""
        return all(c.decide(env) == outcome for c, outcome in self.guards) and self.location.serves(
            location.device, location.current) and unchanged(self.reads)

    def device_for(self, arguments: Sequence[Any], location: Location, alone: bool) -> str | None:
        """Where a call runs: with its arguments and what is captured on a device (what is captured on the host goes along); else where
        the body stated; else, where ``alone`` (there are no arguments), on the current device.

        Raises:
            DeviceError: these differ.
        """
        elsewhere = [c for c in self.captured if type(c) is Tensor and type(c._p) is not np.ndarray]
        device = where([x._p for x in (*arguments, *elsewhere) if type(x) is Tensor]) if elsewhere else location.device
        if self.location.asked and self.location.free and device is None:
            return self.location.device
        if device is None and alone and location.current is not None and not any(type(c) is Tensor for c in self.captured):
            return payload_name(location.current)
        return device

    def entry(self, device: str | None = None) -> Callable[[list[Any]], Any]:
        """A function from the leaves' arrays to the results, specialised so that a call does as little as possible."""
        run, captured, sites = self.executable_on(device), self.captured, self.sites
        single = self.out_tree is None and not captured and not self.effects
        if single:
            return lambda arrays: make(run(arrays)[0])
        statics, tree = self.out_static, self.out_tree

        effects, name, assigned = self.effects, self.graph.name, self.assigned

        def call(arrays: list[Any]) -> Any:
            if effects and STATE.allowed:
                check_effects(effects, name)
            arrays = arrays + [c.fetch(sites) if isinstance(c, Hidden) else concrete(c) for c in captured]
            out = run(arrays)
            if assigned:
                for a, array in zip(assigned, out[-len(assigned):], strict=True):
                    a.commit(array)
            if tree is None:
                return make(out[0])
            it = iter(out)
            leaves = [make(next(it)) if s is None else s[0] for s in statics]
            return optree.tree_unflatten(tree, leaves)

        return call


def concrete(t: Any) -> np.ndarray[Any, Any]:
    """The array of a captured tensor, as it is now."""
    a: np.ndarray[Any, Any] = t._p
    if type(a) is not np.ndarray and not isinstance(a, DeviceArray):
        t._concrete("a captured tensor")
    return a


# -- tracing one call ----------------------------------------------------------------------------------------------------
class Scope:
    """What a function's body sees: declared names, allowed effects, and how sizes give values."""

    def __init__(self, bindings: Mapping[str, DimLike], demand: Any = None, decide: Any = None,
                 divided: set[str] | None = None):
        self.new = (bindings, demand, decide, divided)

    def __enter__(self) -> None:
        self.saved = (SCOPE.bindings, SCOPE.demand, SCOPE.decide, SCOPE.divided)
        SCOPE.bindings, SCOPE.demand, SCOPE.decide, SCOPE.divided = self.new

    def __exit__(self, *exc: object) -> None:
        SCOPE.bindings, SCOPE.demand, SCOPE.decide, SCOPE.divided = self.saved


def record(name: str, call: Callable[[list[Tensor]], Any], types: Sequence[TensorType], names: Sequence[str | None],
           weak: Sequence[type | None], declared: Declared, bindings: Mapping[str, DimLike],
           sizes: Mapping[str, int] | None, allowed: frozenset[str] | None, location: Location) -> Program:
    """Trace ``call`` on parameters of the given types.

    Args:
        sizes: the actual values of the names, where the trace stands for a call; None for an abstract trace.
        allowed: the effects that the function may have; None: any.
        location: where the call is that it stands for.

    Raises:
        TesseraError: from the body; a result that does not fit what is declared.
        NeedsValue: Python needs the value of a size.
    """
    trace = Trace(name, STATE.trace)
    if STATE.trace is None:
        trace.location = location

    def demand(d: Dim) -> int:
        if sizes is None or d.names - sizes.keys():
            raise TypeError(f"the size {d} is symbolic: it has no value until the function is called")
        raise NeedsValue(d.names)

    def decide(c: Constraint) -> bool:
        outcome = c.decide(sizes) if sizes is not None else None
        if outcome is None:
            raise TypeError(f"whether {c} holds is not known until the function is called; state it with ts.require({c})")
        trace.guards.append((c, outcome))
        return outcome

    params = [trace.parameter(t, n, w) for t, n, w in zip(types, names, weak, strict=True)]
    divided: set[str] = set()
    SCOPE.quotient = None
    try:
        with tracing(trace), Scope(bindings, demand, decide, divided):
            if allowed is not None:
                with allowing(allowed, f"{name!r} ({format_effects(allowed)})"):
                    out = call(params)
            else:
                out = call(params)
            check_structure(declared.result, out, name)
            leaves, tree, statics = flatten_results(out)
            leaves = check_results(declared.result, leaves, name, dict(bindings))
            assigned = [*(_assigned(trace) if trace.state else []), *trace.messages]
            graph = trace.finish([*leaves, *[a.value for a in assigned]])
            graph.attrs["constraints"] = (*map(str, declared.where), *graph.attrs["constraints"])
    except ShapeError:
        if sizes is None and divided and SCOPE.quotient is not None:
            size, of = SCOPE.quotient
            if isinstance(size, Dim) and len(size.names) == 1 and size == name_of(*size.names) and size.names <= bindings.keys():
                raise NeedsMultiple(*size.names, of) from None
        if sizes is None or not divided or divided - sizes.keys():
            raise
        # Sizes such as D // H fit only where the division is exact: trace with their values instead.
        raise NeedsValue(frozenset(divided)) from None
    return Program(graph, trace, tree, statics, assigned)


def _assigned(trace: Trace) -> list[Any]:
    from .state import written
    return written(trace)


def flatten_results(out: Any) -> tuple[list[Tensor], Any, list[Any]]:
    """The tensors of a result, its structure (None for a single tensor), and for each leaf None or its host value."""
    if type(out) is Tensor:
        return [out], None, [None]
    leaves, tree = optree.tree_flatten(out)
    tensors: list[Tensor] = []
    statics: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            tensors.append(leaf)
            statics.append(None)
        elif isinstance(leaf, np.ndarray | np.generic | Size):
            tensors.append(lift(leaf))
            statics.append(None)
        else:
            statics.append((leaf,))
    return tensors, tree, statics


def check_structure(annotation: Any, out: Any, name: str) -> None:
    """A result against a declared ``Dict[K, V]``, ``List[V]`` or ``Tuple[…]``.

    Raises:
        DTypeError: it is no such container, or a key is of another kind.
        ShapeError: a tuple has another length.
    """
    origin, args = typing.get_origin(annotation), typing.get_args(annotation)
    if origin not in (dict, list, tuple) or not args:
        return
    shown = str(annotation).replace("typing.", "")
    if not isinstance(out, origin):
        raise DTypeError(f"{name!r} returns a {type(out).__name__}, not a {origin.__name__}", expected=shown, received=type(out).__name__)
    if origin is tuple and not (len(args) == 2 and args[1] is Ellipsis) and len(out) != len(args):
        raise ShapeError(f"{name!r} returns {len(out)} values, not {len(args)}", expected=shown, received=f"a tuple of {len(out)}")
    if origin is dict and isinstance(args[0], type):
        wrong = [k for k in out if not isinstance(k, args[0])]
        if wrong:
            raise DTypeError(f"the key {wrong[0]!r} of {name!r}'s result is a {type(wrong[0]).__name__}, not a {args[0].__name__}",
                             expected=shown, received=f"keys {', '.join(map(repr, list(out)[:8]))}",
                             hints=[f"Use {args[0].__name__} keys", "Widen the annotation: Dict[Any, Tensor]"])


def check_results(annotation: Any, leaves: list[Tensor], name: str, env: dict[str, DimLike]) -> list[Tensor]:
    """Results against the declared type; floats widen to a declared dtype.

    Raises:
        ShapeError, DTypeError: a result does not fit.
    """
    if annotation is None:
        return leaves
    specs = flat_specs(annotation, len(leaves))
    out: list[Tensor] = []
    for t, spec in zip(leaves, specs, strict=True):
        if spec is not None:
            where = "the result" if len(leaves) == 1 else f"result {len(out)}"
            check_shape(spec, t.type, where, name, env, {})
            check_dtype(spec, t.type, where, name)
            if spec.dtype is not None and spec.dtype is not t.dtype:
                t = t.to(spec.dtype)
        out.append(t)
    return out


def check_shape(spec: TensorSpec, t: TensorType, what: str, function: str, env: dict[str, DimLike],
                origins: Mapping[str, str]) -> tuple[DimLike, ...]:
    """Bind the declared sizes; returns them (without ``?`` and ``...``).

    Raises:
        ShapeError: the shape does not fit.
    """
    if spec.dims is None:
        return t.shape
    fresh = (f"_{what}{i}".replace(" ", "_") for i in range(64))
    declared = expand(spec, t.rank, fresh, "" if what.isidentifier() else "_out")
    if declared is None:
        raise shape_mismatch(spec, t, None, what, function, env, origins)
    before = dict(env)
    axis = unify(declared, t.shape, env)
    if axis is not None:
        raise shape_mismatch(spec, t, axis, what, function, before | env, origins)
    return declared


def sizes_of(declared: Sequence[DimLike], env: Mapping[str, int], static: frozenset[str] | set[str]) -> tuple[DimLike, ...]:
    """The sizes with the names in ``static`` (and sizes 0) as numbers."""
    out: list[DimLike] = []
    for d in declared:
        if isinstance(d, Dim):
            d = substitute(d, {n: env[n] for n in d.names if n in env and (n in static or env[n] == 0)})
        out.append(d)
    return tuple(out)


def check_constraints(constraints: Sequence[Constraint], env: Mapping[str, int], function: str) -> None:
    """Facts about sizes that the body required.

    Raises:
        ConstraintError: one does not hold.
    """
    from .annotations import check_sizes
    check_sizes(constraints, env, function, {})


def as_type(x: Any) -> TensorType:
    """A tensor type from a tensor, an array, a :class:`TensorSpec` or a type.

    Raises:
        DTypeError, ShapeError: it describes no tensor.
    """
    if isinstance(x, TensorType):
        return x
    if isinstance(x, TensorSpec):
        from ..types.dtypes import f32
        if x.dims is None or any(isinstance(d, str) and d == "..." for d in x.dims):
            raise ShapeError(f"{x} has no definite rank")
        fresh = (f"_any{i}" for i in range(64))
        return TensorType(x.dtype or f32, expand(x, len(x.dims), fresh) or ())
    if isinstance(x, Tensor):
        return x.type
    if hasattr(x, "shape") and hasattr(x, "dtype"):
        from ..types.dtypes import as_dtype
        return TensorType(as_dtype(x.dtype), tuple(x.shape))
    raise DTypeError(f"a {type(x).__name__} describes no tensor", received=repr(x)[:80])


__all__ = ["NeedsValue", "Program", "Scope", "Traced", "as_type", "check_constraints", "check_results", "check_shape",
           "concrete", "flatten_results", "record", "sizes_of"]
