"""``@ts.function`` and ``ts.jit``: Python functions as programs.

A call looks its arguments' shapes and dtypes up in a table; a new kind of argument is checked against the function's
contract and traced.  Sizes that the annotations name stay symbolic, so one trace and one compiled program serve every
value of them; arguments without annotation specialise the program on their shape.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any, overload

import numpy as np
import optree

from ..errors import ArgumentError, ConstraintError, EffectError, TracingError, UnsupportedError, suggest, unknown_keyword
from ..ir.core import Function, TensorType, value_key
from ..types import dtypes as dt
from ..types.constraints import SizeConstraint, plain
from ..types.dims import DimLike, substitute
from ..types.dims import name as name_of
from ..types.effects import as_effects, format_effects
from ..types.shapes import Constraint
from . import decorators, eager, policies
from .annotations import Declared, TensorSpec, check_dtype, check_sizes, not_a_tensor, read
from .contract import Contract
from .donation import consume
from .location import Location
from .placed import DeviceArray, where
from .program import (
    NeedsMultiple,
    NeedsValue,
    Program,
    Scope,
    as_type,
    check_results,
    check_shape,
    flatten_results,
    record,
    sizes_of,
)
from .reads import Same, reading, unchanged
from .recorder import STATE, allowing, as_array, lift
from .tensor import Conversions, Tensor, make, ndarray

_SCALARS = {int: TensorType(dt.int64, ()), float: TensorType(dt.f32, ()), complex: TensorType(dt.complex64, ())}
_NUMBERS: dict[type, type] = {np.float64: float, np.complex128: complex}  # subclasses of Python's, and as weak
RETRACES = 16


def _no_gradient(fn: Any) -> Any:
    raise UnsupportedError("derivatives are not loaded")


GRADIENT: Callable[[Any], Any] = _no_gradient
"""``ts.grad``; set when the package is assembled."""
SETTLE: Callable[[Call, Mapping[str, str], str], None] | None = None
"""Brings a call's tensors to the memory spaces of its parameters; set when the package is assembled."""


class Call:
    """The arguments of one call, taken apart."""

    __slots__ = ("arrays", "names", "objects", "others", "owners", "rebuild", "static", "types", "weak")

    def __init__(self) -> None:
        self.arrays: list[Any] = []  # the dynamic leaves: tensors, arrays, numbers
        self.types: list[TensorType] = []
        self.weak: list[type | None] = []
        self.owners: list[str | None] = []  # the parameter that a leaf is the whole value of
        self.names: list[str | None] = []
        self.objects: list[Any] = []  # what is no dynamic leaf
        self.others: dict[str, Any] = {}  # arguments that are not one dynamic leaf
        self.static: Any = None
        self.rebuild: Callable[[Sequence[Any]], tuple[list[Any], dict[str, Any]]] = lambda leaves: ([], {})


class TracedFunction:
    """A Python function as a program; made by :func:`function` and :func:`jit`.  Call it like the original.

    Attributes:
        programs: the traces made so far (one for each kind of arguments).
        decorators: which of Tessera's decorators were applied, from the innermost outwards.
    """

    def __init__(self, fn: Callable[..., Any], *, static_argnums: Sequence[int] = (), static_argnames: Sequence[str] = (),
                 donate_argnums: Sequence[int] = (), where: Sequence[Any] = (), effects: frozenset[str] | None = None,
                 static_sizes: Any = (), kind: str = "function"):
        _refuse_suspended(fn, kind)
        functools.update_wrapper(self, fn)
        self.__name__ = getattr(fn, "__name__", type(fn).__name__)
        self.__qualname__: str = getattr(fn, "__qualname__", self.__name__)
        self.fn, self.kind = fn, kind
        self.decorators = decorators.apply("compile" if kind == "jit" else "function", fn)
        try:
            self.signature = inspect.signature(fn)
        except (TypeError, ValueError):
            raise ArgumentError(f"{fn!r} has no signature to trace") from None
        self._parameters_of_signature = list(self.signature.parameters.values())
        names = list(self.signature.parameters)
        self.static_names = set(_named(static_argnames, names, "static_argnames"))
        self.static_names |= set(_numbered(static_argnums, names, "static_argnums"))
        self.donated = tuple(_numbered(donate_argnums, names, "donate_argnums"))
        self._where = where
        self._declared: Declared | None = None
        self.allowed = effects
        self.programs: list[Program] = []
        self.parameters_owned: dict[str, Tensor] = {}
        self._fast: dict[Any, Any] = {}
        self._kinds: dict[Any, Any] = {}
        self._by_types: dict[Any, list[Program]] = {}
        self._static_sizes: set[str] = {str(n) for n in _listed(static_sizes)}
        self._simple = not self.static_names and not self.donated
        self._conversions = Conversions.count
        self._options = {"static_argnames": tuple(self.static_names), "where": tuple(where), "effects": effects,
                         "donate_argnums": [names.index(n) for n in self.donated], "static_sizes": tuple(self._static_sizes),
                         "kind": kind}

    def __reduce__(self) -> Any:
        """Pickled as Python pickles functions: by its name, and the programs are traced again where it is loaded.

        Raises:
            ArgumentError: no module holds the function under its name (a lambda, or one defined in a function).
        """
        found: Any = sys.modules.get(self.__module__)
        for part in self.__qualname__.split("."):
            found = getattr(found, part, None)
        if found is self:
            return self.__qualname__
        if found is self.fn:
            return _again, (self.fn, self._options)
        raise ArgumentError(f"{self.__qualname__!r} cannot be pickled: its module holds nothing under that name",
                            hints=["Define the function at the top level of a module", "Pickle its arguments and results instead"])

    def __deepcopy__(self, memo: Any) -> TracedFunction:
        return self  # as functions are

    # -- calling -------------------------------------------------------------------------------------------------------
    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._conversions != Conversions.count:
            self._forget_converted()
        if self._simple and STATE.trace is None and not kwargs and STATE.policy is None and STATE.schedule is None:
            try:
                arrays = [a._p for a in args]
                run = self._fast.get(tuple([(p.shape, p.dtype) for p in arrays]))
            except (AttributeError, TypeError):
                run = None
            if run is not None:
                return run(arrays)
        return self._call(args, kwargs)

    def _call(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if STATE.trace is not None:
            return self._inline(args, kwargs)
        call = self.take_apart(args, kwargs)
        if self.declared.spaces and SETTLE is not None:
            self._simple = False  # each call looks where its arguments are
            SETTLE(call, self.declared.spaces, self.__name__)
        device = where([x._p for x in call.arrays if type(x) is Tensor])
        key = (call.static, tuple([(t.dtype.name, t.shape) for t in call.types]), STATE.policy, STATE.schedule, device, STATE.device)
        known = self._kinds.get(key)
        if known is not None and unchanged(known[1].reads):
            run, program = known
        else:
            program, env = self._program(call)
            check_sizes(program.constraints, env, self.__name__, {})
            location = Location.of_call(call.arrays, STATE.device)
            run = program.entry(program.device_for(call.arrays, location, all(type(x) in _SCALARS for x in call.arrays)))
            if len(self._kinds) > 4096:
                self._kinds.clear()
                self._fast.clear()
            self._kinds[key] = run, program
            if program.location.asked_current:
                self._simple = False  # each call looks which device is current
            plain = args and not kwargs and len(call.arrays) == len(args) and all(type(a) is Tensor for a in args)  # no number by default
            if self._simple and plain and STATE.policy is None and STATE.schedule is None:
                self._fast[tuple([(a._p.shape, a._p.dtype) for a in args])] = self._looking(run, program.reads) if program.reads else run
        if not self.donated:
            return run([_array(x, t) for x, t in zip(call.arrays, call.types, strict=True)])
        copies, release = consume(call.arrays, self._donated_leaves(call), program.captured, self.__name__)
        out = run([copies[i] if i in copies else _array(x, t) for i, (x, t) in enumerate(zip(call.arrays, call.types, strict=True))])
        release()
        return out

    def _looking(self, run: Callable[[list[Any]], Any], reads: Sequence[Any]) -> Callable[[list[Any]], Any]:
        """``run`` while the attributes are as they were ``reads``; else the call looks for another program."""
        return lambda arrays: run(arrays) if unchanged(reads) else self._call([make(a) for a in arrays], {})

    def _forget_converted(self) -> None:
        """Tensors took other types or devices in place: drop what was compiled for those they had."""
        self._conversions = Conversions.count
        self._fast.clear()
        self._kinds.clear()
        self.programs = [p for p in self.programs if p.captures_fit()]
        self._by_types = {key: [p for p in found if p.captures_fit()] for key, found in self._by_types.items()}

    def _donated_leaves(self, call: Call) -> list[int]:
        return [i for i, n in enumerate(call.names) if (n or "").partition(".")[0] in self.donated]

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        return BoundFunction(self, instance)

    # -- arguments -----------------------------------------------------------------------------------------------------
    def bind_arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> inspect.BoundArguments:
        """Arguments by parameter, defaults filled in.

        Raises:
            ArgumentError: unknown keywords (with a suggestion), missing or superfluous arguments.
        """
        return self._bind(args, kwargs)[0]

    def _bind(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[inspect.BoundArguments, frozenset[str]]:
        """The same, and which parameters the call itself names."""
        try:
            bound = self._callable_signature.bind(*args, **kwargs)
        except TypeError as e:
            names = list(self.signature.parameters)
            for k in kwargs:
                if k not in names:
                    raise unknown_keyword(self.__name__, k, names) from None
            raise ArgumentError(f"{self.__name__}(): {e}", expected=f"{self.__name__}{self.signature}") from None
        given = frozenset(bound.arguments)
        bound.apply_defaults()
        return bound, given

    def take_apart(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Call:
        """Split arguments into dynamic leaves (tensors, arrays, numbers) and static values (everything else)."""
        bound, given = self._bind(args, kwargs)
        call = Call()
        statics: list[Any] = []
        pieces: list[tuple[str, Any, list[Any]]] = []  # (parameter, tree, leaf: index of a dynamic leaf or (value,))
        for name, value in bound.arguments.items():
            unasked = name not in given and type(value) in _SCALARS and name not in self.declared.params
            if unasked or name in self.static_names:  # a number that nobody chose decides in Python, such as "if smoothing:"
                statics.append(_key(value, name, self.__name__))
                pieces.append((name, None, [(value,)]))
                call.objects.append(value)
                continue
            leaves, tree = optree.tree_flatten(value)
            whole = len(leaves) == 1 and leaves[0] is value
            each = name in self._many and name in self.declared.params
            slots: list[Any] = []
            for i, leaf in enumerate(leaves):
                t, weak = _leaf_type(leaf)
                if t is None:
                    statics.append(_key(leaf, name, self.__name__))
                    slots.append((leaf,))
                    call.objects.append(leaf)
                    continue
                slots.append(len(call.arrays))
                call.arrays.append(leaf)
                call.types.append(t)
                call.weak.append(weak)
                call.owners.append(name if whole or each else None)
                call.names.append(name if whole else f"{name}.{i}")
            statics.append(tree)
            pieces.append((name, None if whole else tree, slots))
            if value is not None and not (whole and type(slots[0]) is int):
                call.others[name] = value
        call.static = (*statics, *call.weak)

        def rebuild(leaves: Sequence[Any]) -> tuple[list[Any], dict[str, Any]]:
            for name, tree, slots in pieces:
                values = [leaves[s] if type(s) is int else s[0] for s in slots]
                bound.arguments[name] = values[0] if tree is None else optree.tree_unflatten(tree, values)
            return list(bound.args), dict(bound.kwargs)

        call.rebuild = rebuild
        return call

    # -- tracing -------------------------------------------------------------------------------------------------------
    @property
    def declared(self) -> Declared:
        """The annotations, read at first use (so that they may name what is defined later)."""
        if self._declared is None:
            self._declared = read(self.fn, self._where)
        return self._declared

    @functools.cached_property
    def _many(self) -> frozenset[str]:
        """The parameters that take any number of arguments; an annotation of theirs is of each."""
        many = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        return frozenset(n for n, p in self.signature.parameters.items() if p.kind in many)

    @functools.cached_property
    def _callable_signature(self) -> inspect.Signature:
        """The signature in which parameters that only state a constraint take no argument."""
        facts = self.declared.facts
        if not facts:
            return self.signature
        return self.signature.replace(parameters=[p.replace(default=None) if p.name in facts else p
                                                  for p in self.signature.parameters.values()])

    def _program(self, call: Call, abstract: bool = False) -> tuple[Program, dict[str, int]]:
        """The program for these arguments (traced when there is none) and the values of the sizes."""
        declared = self.declared
        env: dict[str, DimLike] = {}
        shapes: list[Sequence[DimLike]] = []
        origins: dict[str, str] = {}
        for name, value in call.others.items():
            if name in declared.params and name not in self._many:
                raise not_a_tensor(value, declared.params[name], name, self.__name__)
        for t, owner in zip(call.types, call.owners, strict=True):
            spec = declared.params.get(owner) if owner else None
            if spec is None:
                shapes.append(t.shape)
                continue
            before = set(env)
            shapes.append(check_shape(spec, t, owner or "", self.__name__, env, origins))
            origins |= dict.fromkeys(env.keys() - before, f"the argument {owner!r}")
            check_dtype(spec, t, owner or "", self.__name__)
        actual: dict[str, int] = {k: v for k, v in env.items() if isinstance(v, int)}
        check_sizes(declared.where, actual, self.__name__, origins)
        multiples: dict[str, DimLike] = {}
        location = Location.of_call(call.arrays, STATE.device)
        for _ in range(RETRACES):
            types = [t.with_shape(sizes_of(s, actual, self._static_sizes)) for t, s in zip(call.types, shapes, strict=True)]
            if multiples:
                types = [t.with_shape([substitute(d, multiples) for d in t.shape]) for t in types]
            key = (call.static, tuple(types), STATE.policy, STATE.schedule)
            for found in self._by_types.get(key, ()):
                if found.fits(actual, location):
                    return found, actual
            bindings: dict[str, DimLike] = {
                n: actual[n] if n in actual and (n in self._static_sizes or actual[n] == 0) else name_of(n) for n in env} | multiples
            try:
                program = self._trace(call, types, bindings, None if abstract else actual)
            except NeedsValue as e:
                self._static_sizes |= e.names
                continue
            except NeedsMultiple as e:
                multiples[e.size] = e.of * name_of(f"{e.size}_part")
                continue
            if program.outlined:
                return program, actual
            self._by_types.setdefault(key, []).append(program)
            self.programs.append(program)
            return program, actual
        raise TracingError(f"{self.__name__!r} asks for the value of a size again and again")

    def _trace(self, call: Call, types: Sequence[TensorType], bindings: Mapping[str, DimLike],
               sizes: Mapping[str, int] | None) -> Program:
        def body(params: list[Tensor]) -> Any:
            args, kwargs = call.rebuild(params)
            return self._body(args, kwargs, params, call.owners)

        location = Location() if sizes is None else Location.of_call(call.arrays, STATE.device)
        with reading(self.fn, call.objects) as reads:
            program = record(self.__name__, body, types, call.names, call.weak, self.declared, bindings, sizes, self.allowed, location)
        program.reads = reads.settled()
        if self.donated and getattr(eager.COMPILER, "reuses_donated", False):
            program.graph.attrs["donated"] = tuple(self._donated_leaves(call))
        return program

    def _body(self, args: list[Any], kwargs: dict[str, Any], params: Sequence[Tensor], owners: Sequence[str | None]) -> Any:
        from .parameters import owning
        declared = self.declared.params
        owners = [None if o in self._many else o for o in owners]
        if any(declared[o].dtype not in (None, p.dtype) for p, o in zip(params, owners, strict=True) if o and o in declared):
            bound = self.bind_arguments(args, kwargs)
            for p, o in zip(params, owners, strict=True):
                want = declared[o].dtype if o and o in declared else None
                if o and want is not None and want is not p.dtype:
                    bound.arguments[o] = p.to(want)  # a float that widens to the declared dtype
            args, kwargs = list(bound.args), dict(bound.kwargs)
            params = [bound.arguments[o] if o and o in declared else p for p, o in zip(params, owners, strict=True)]
        for p, o in zip(params, owners, strict=True):
            if o and o in declared:
                policies.attach(p, declared[o].policy)
        with owning(self):
            return self.fn(*args, **kwargs)

    def _inline(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """A call inside a traced function: the contract is checked on symbolic sizes and the body recorded in place."""
        trace = STATE.trace
        assert trace is not None
        bound = self.bind_arguments(args, kwargs)
        env: dict[str, DimLike] = {}
        origins: dict[str, str] = {}
        for n, spec in self.declared.params.items():
            v = bound.arguments.get(n)
            if isinstance(v, ndarray | Tensor):
                t = lift(v)
                before = set(env)
                check_shape(spec, t.type, n, self.__name__, env, origins)
                origins |= dict.fromkeys(env.keys() - before, f"the argument {n!r}")
                check_dtype(spec, t.type, n, self.__name__)
                bound.arguments[n] = t if spec.dtype in (None, t.dtype) else t.to(spec.dtype)
                policies.attach(bound.arguments[n], spec.policy)
            elif v is not None and _leaf_type(v)[0] is None and n not in self._many:
                raise not_a_tensor(v, spec, n, self.__name__)
        check_sizes(self.declared.where, env, self.__name__, origins)
        for c in self.declared.where:
            require(SizeConstraint(substitute(c.lhs, env), c.op, substitute(c.rhs, env)))
        from ..types.constraints import SCOPE
        from .parameters import owning
        with Scope(env, SCOPE.demand, SCOPE.decide, SCOPE.divided), owning(self):
            if self.allowed is None:
                out = self.fn(*bound.args, **bound.kwargs)
            else:
                with allowing(self.allowed, f"{self.__name__!r} ({format_effects(self.allowed)})"):
                    out = self.fn(*bound.args, **bound.kwargs)
            if self.declared.result is not None:
                leaves, tree, statics = flatten_results(out)
                leaves = check_results(self.declared.result, leaves, self.__name__, dict(env))
                if tree is None:
                    return leaves[0]
                it = iter(leaves)
                out = optree.tree_unflatten(tree, [next(it) if s is None else s[0] for s in statics])
        return out

    # -- looking inside --------------------------------------------------------------------------------------------------
    def trace(self, *args: Any, **kwargs: Any) -> Function:
        """The Graph function for these arguments (tensors, arrays or tensor types); without arguments, for the annotations.

        Raises:
            TracingError: a parameter has no annotation and no argument is given.
        """
        return self.program(*args, **kwargs).graph

    def program(self, *args: Any, **kwargs: Any) -> Program:
        """The :class:`Program` for these arguments; see :meth:`trace`."""
        return self.program_and_sizes(*args, **kwargs)[0]

    def program_and_sizes(self, *args: Any, **kwargs: Any) -> tuple[Program, dict[str, int]]:
        """:meth:`program`, and the values of its sizes where the arguments have them."""
        if not args and not kwargs and self.signature.parameters:
            return self._from_annotations(), {}
        with _no_trace():
            call = self.take_apart(args, kwargs)
            return self._program(call, abstract=any(not t.static for t in call.types))

    def _from_annotations(self) -> Program:
        specs = []
        for p in self._parameters_of_signature:
            spec = self.declared.params.get(p.name)
            if spec is not None and spec.dims is not None and "..." not in [d for d in spec.dims if isinstance(d, str)]:
                specs.append(spec)
            elif p.default is p.empty and p.name not in self.declared.facts and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
                if self.programs:
                    return self.programs[-1]
                raise TracingError(f"the parameter {p.name!r} of {self.__name__!r} has no full tensor type", hints=[
                    f'Annotate it: {p.name}: ts.Tensor["B", 768]', "Call the function once first",
                    f"Give an example: {self.__name__}.trace(x)"])
        with _no_trace():
            return self._program(self.take_apart(specs, {}), abstract=True)[0]

    @property
    def graph_ir(self) -> str:
        """The Graph IR as text: of the annotated types, else of the latest call."""
        return str(self._latest().graph)

    def _latest(self) -> Program:
        return self.programs[-1] if self.programs else self._from_annotations()

    def _stage(self, name: str) -> Any:
        executable = self._latest().executable
        found = getattr(executable, name, None)
        if found is None:
            raise UnsupportedError(f"the executable of {self.__name__!r} does not show {name!r}",
                                   sentence="Without a compiler, programs run in the interpreter of Graph IR.")
        return found

    @property
    def grad_ir(self) -> str:
        """The Graph IR of the gradient by the first argument, as text: of the annotated types, else of the latest call."""
        gradient = GRADIENT(self)
        if all(p.name in self.declared.params for p in self._parameters_of_signature):
            return str(gradient.trace())
        graph = self._latest().graph
        return str(gradient.trace(*[a.type for a in graph.args[:len(graph.args) - graph.attrs["captured"]]]))

    @property
    def schedule_ir(self) -> str:
        """The Schedule IR as text."""
        return str(self._stage("schedule_ir"))

    @property
    def tile_ir(self) -> str:
        """The Tile IR of every kernel as text."""
        return str(self._stage("tile_ir"))

    @property
    def target_ir(self) -> str:
        """The LLVM IR as text."""
        return str(self._stage("target_ir"))

    def inspect(self, level: str = "graph") -> str:
        """The program at one level, as text: ``"graph"``, ``"schedule"``, ``"tile"`` or ``"target"``.

        Raises:
            ArgumentError: there is no such level.
        """
        levels = ("graph", "schedule", "tile", "target")
        if level not in levels:
            raise ArgumentError(f"inspect() shows no level {level!r}{suggest(str(level), levels)}", expected=", ".join(levels))
        return str(getattr(self, f"{level}_ir"))

    @property
    def kernels(self) -> Any:
        """The names of the compiled kernels."""
        return self._stage("kernels")

    def explain(self) -> str:
        """What the compiler did: passes, fusions, kernels, sizes that specialise."""
        head = [str(self.contract), f"programs: {len(self.programs)}"]
        if self._static_sizes:
            head.append(f"specialised on: {', '.join(sorted(self._static_sizes))} (Python needed their values)")
        program = self._latest()
        explain = getattr(program.executable, "explain", None)
        return "\n".join([*head, str(explain()) if callable(explain) else str(program.graph)])

    @property
    def contract(self) -> Contract:
        """Argument and result types, constraints and effects."""
        return Contract(self)

    @property
    def effects(self) -> frozenset[str]:
        """The effects: declared, else inferred from the body."""
        if self.allowed is not None and not self.programs:
            return self.allowed
        try:
            return self._latest().effects
        except TracingError:
            return frozenset()

    @property
    def result_type(self) -> Any:
        """The type of the result, from the annotations alone (or the latest call): a tensor type or a tree of them."""
        p = self._latest()
        plain_dtype = any(s.dtype is None for s in self.declared.params.values()) and not all(
            s.dtype is not None for s in self.declared.params.values())
        specs = [TensorSpec(tuple(t.shape), None if plain_dtype else t.dtype) for t in p.graph.result_types]
        if p.out_tree is None:
            return specs[0]
        it = iter(specs)
        return optree.tree_unflatten(p.out_tree, [next(it) if s is None else s[0] for s in p.out_static])

    def result_text(self) -> str:
        """The result's type as text; the annotation where nothing has been traced."""
        try:
            return str(self.result_type)
        except (TracingError, TypeError):
            return str(self.declared.result) if self.declared.result is not None else "?"

    def parameters(self) -> list[Tensor]:
        """The tensors that the function owns (made by ``linear(x, out_dim)`` and the like), in order of creation."""
        return list(self.parameters_owned.values())

    def named_parameters(self) -> dict[str, Tensor]:
        """The function's own tensors by name."""
        return dict(self.parameters_owned)

    def __repr__(self) -> str:
        return f"<tessera {self.kind} {self.__name__}{self.signature}>"


def _again(fn: Callable[..., Any], options: dict[str, Any]) -> TracedFunction:
    return TracedFunction(fn, **options)


def _refuse_suspended(fn: Callable[..., Any], kind: str) -> None:
    """Raises ArgumentError for functions that do not run when they are called."""
    inner = inspect.unwrap(fn.func if isinstance(fn, functools.partial) else fn)
    what = "a generator function" if inspect.isgeneratorfunction(inner) or inspect.isasyncgenfunction(inner) else \
        "a coroutine function" if inspect.iscoroutinefunction(inner) else None
    if what is not None:
        name = getattr(inner, "__name__", "fn")
        raise ArgumentError(f"{kind}() compiles functions that return tensors, and {name!r} is {what}",
                            sentence="Its body runs piece by piece after the call has returned.",
                            hints=["Return a list or a tuple instead of yielding", "Compile the step, and loop outside of it"])


class BoundFunction:
    """A traced function as a method: calls pass the object first; everything else is the function's."""

    def __init__(self, function: TracedFunction, instance: Any):
        self.__func__, self.__self__ = function, instance

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__func__(self.__self__, *args, **kwargs)

    def trace(self, *args: Any, **kwargs: Any) -> Function:
        """The Graph function for these arguments."""
        return self.__func__.trace(self.__self__, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__func__, name)


# -- helpers -------------------------------------------------------------------------------------------------------------
def _array(x: Any, t: TensorType) -> Any:
    if type(x) is Tensor:
        return x._p if isinstance(x._p, DeviceArray) else x._concrete("an argument")
    return as_array(x, t.dtype)


def _leaf_type(leaf: Any) -> tuple[TensorType | None, type | None]:
    if isinstance(leaf, Tensor):
        leaf._p.shape  # noqa: B018  a donated tensor raises here
        return leaf.type, None
    if isinstance(leaf, TensorSpec | TensorType):
        return as_type(leaf), None
    kind = _NUMBERS.get(type(leaf), type(leaf))
    if kind in _SCALARS:
        return _SCALARS[kind], kind
    if isinstance(leaf, np.ndarray | np.generic) and leaf.dtype != object:
        few = leaf[:0] if isinstance(leaf, np.ndarray) and leaf.ndim else leaf
        return TensorType(dt.as_dtype(as_array(few).dtype), leaf.shape), None
    return None, None


def _key(value: Any, name: str, function: str) -> Any:
    if isinstance(value, Tensor | np.ndarray):
        raise ArgumentError(f"the static argument {name!r} of {function}() is a tensor",
                            hints=[f"Remove {name!r} from static_argnums / static_argnames"])
    key = (type(value), value_key(value))
    try:
        hash(key)
    except TypeError:
        return Same(value)
    return key


def _numbered(numbers: Any, names: Sequence[str], what: str) -> list[str]:
    out = []
    for i in (numbers,) if isinstance(numbers, int) else numbers:
        if not -len(names) <= i < len(names):
            raise ArgumentError(f"{what} names argument {i} of a function with {len(names)}", received=", ".join(names))
        out.append(names[i])
    return out


def _named(wanted: Any, names: Sequence[str], what: str) -> list[str]:
    out = [wanted] if isinstance(wanted, str) else list(wanted)
    for n in out:
        if n not in names:
            raise ArgumentError(f"{what} names {n!r}, which is no parameter{suggest(n, names)}", received=", ".join(names))
    return out


def _no_trace() -> Any:
    from .recorder import suspended
    return suspended()


# -- public --------------------------------------------------------------------------------------------------------------
def _listed(names: Any) -> list[Any]:
    """``"D H"``, one size, or several."""
    if isinstance(names, str):
        return names.replace(",", " ").split()
    return list(names) if isinstance(names, list | tuple | set | frozenset) else [names]


@overload
def function(fn: Callable[..., Any], *, pure: bool = ..., effects: Any = ..., where: Sequence[Any] = ..., static_argnums: Any = ...,
             static_argnames: Any = ..., static_sizes: Any = ...) -> TracedFunction: ...
@overload
def function(fn: None = None, *, pure: bool = ..., effects: Any = ..., where: Sequence[Any] = ..., static_argnums: Any = ...,
             static_argnames: Any = ..., static_sizes: Any = ...) -> Callable[[Callable[..., Any]], TracedFunction]: ...
def function(fn: Callable[..., Any] | None = None, *, pure: bool = False, effects: Any = None, where: Sequence[Any] = (),
             static_argnums: Any = (), static_argnames: Any = (), static_sizes: Any = ()) -> Any:
    """``@ts.function``: a checked, traced function.

    Args:
        pure: refuse every effect in the body.
        effects: the effects that the body may have (``"random"``, ``["random", "io"]``, ``"all"``); default: any.
        where: constraints on the declared sizes, e.g. ``[D % 8 == 0]`` or ``["D % 8 == 0"]``.
        static_argnums, static_argnames: arguments whose Python value the program depends on.
        static_sizes: names of sizes (``"D H"``) that specialise the program; the others stay symbolic.

    Raises:
        ArgumentError, ConstraintError, EffectError: the decorator's own arguments are wrong.
    """
    if fn is None:
        return functools.partial(function, pure=pure, effects=effects, where=where, static_argnums=static_argnums,
                                 static_argnames=static_argnames, static_sizes=static_sizes)
    if isinstance(fn, TracedFunction):
        decorators.apply("function", fn)
        return fn
    allowed: frozenset[str] | None = frozenset() if pure else None
    if effects is not None:
        try:
            allowed = as_effects(effects)
        except ValueError as e:
            raise EffectError(str(e)) from None
    if not callable(fn):
        raise ArgumentError(f"@function decorates a function, not a {type(fn).__name__}")
    return TracedFunction(fn, where=where, effects=allowed, static_argnums=static_argnums, static_argnames=static_argnames,
                          static_sizes=static_sizes)


def custom(fn: Callable[..., Any] | None = None, **options: Any) -> Any:
    """``@ts.custom``: a function for experts, which may open schedule, numerics and device scopes and call ``@ts.kernel`` programs in
    its body; it may have any effect.  Takes the options of :func:`function`."""
    if fn is None:
        return functools.partial(custom, **options)
    return function(fn.fn if isinstance(fn, TracedFunction) else fn, **{"effects": "all", **options})


@overload
def jit(fn: Callable[..., Any], *, static_argnums: Any = ..., static_argnames: Any = ...,
        donate_argnums: Any = ...) -> TracedFunction: ...
@overload
def jit(fn: None = None, *, static_argnums: Any = ..., static_argnames: Any = ...,
        donate_argnums: Any = ...) -> Callable[[Callable[..., Any]], TracedFunction]: ...
def jit(fn: Callable[..., Any] | None = None, *, static_argnums: Any = (), static_argnames: Any = (),
        donate_argnums: Any = ()) -> Any:
    """``ts.jit``: compile ``fn`` on first call.

    Tensors, arrays, integers, floats and complex numbers in the arguments (also inside lists, tuples, dicts) are inputs of
    the program; everything else (bools, strings, callables, objects) is part of its identity, and so are the attributes that the body reads
    of objects (compared at each call).  NumPy's float64 and complex128 scalars are Python numbers, as they are for eager functions.

    Args:
        static_argnums, static_argnames: arguments whose Python value the program depends on.
        donate_argnums: arguments whose memory the call may reuse; they cannot be used afterwards.
    """
    if fn is None:
        return functools.partial(jit, static_argnums=static_argnums, static_argnames=static_argnames,
                                 donate_argnums=donate_argnums)
    if isinstance(fn, TracedFunction):
        if not (static_argnums or static_argnames or donate_argnums):
            fn.decorators = decorators.apply("compile", fn)
            return fn
        return TracedFunction(fn.fn, where=fn._where, effects=fn.allowed, static_argnums=static_argnums,
                              static_argnames=static_argnames, donate_argnums=donate_argnums, kind="jit")
    if not callable(fn):
        raise ArgumentError(f"jit() compiles a function, not a {type(fn).__name__}")
    return TracedFunction(fn, static_argnums=static_argnums, static_argnames=static_argnames,
                          donate_argnums=donate_argnums, kind="jit")


def eval_shape(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The type of ``fn(*args)`` without running it; arguments are tensors, arrays or types such as ``Tensor["B", 4]``.

    Returns:
        The result's structure with a tensor type (``.shape``, ``.dtype``) at each leaf.
    """
    traced = fn if isinstance(fn, TracedFunction) else TracedFunction(fn)
    p, sizes = traced.program_and_sizes(*args, **kwargs)
    specs = iter([TensorSpec(tuple([substitute(d, sizes) for d in t.shape]), t.dtype) for t in p.graph.result_types])
    if p.out_tree is None:
        return next(specs)
    return optree.tree_unflatten(p.out_tree, [next(specs) if s is None else s[0] for s in p.out_static])


def require(constraint: Any) -> None:
    """State a fact about sizes inside a function: decided at once where possible, else checked once for each call.

    Raises:
        ConstraintError: it does not hold.
    """
    if isinstance(constraint, bool | np.bool_):
        holds: bool | None = bool(constraint)
    elif isinstance(constraint, Constraint):
        constraint = SizeConstraint(plain(constraint.lhs), constraint.op, plain(constraint.rhs))
        holds = constraint.decide()
    elif isinstance(constraint, Tensor):
        raise ConstraintError("require() takes a fact about sizes, not about a tensor's values",
                              hints=["Compare sizes: ts.require(x.shape[0] == 4)"])
    else:
        raise ConstraintError(f"{constraint!r} is not a constraint on sizes", hints=["Write a comparison: D % 8 == 0"])
    if holds is False:
        raise ConstraintError(f"{constraint} does not hold" if not isinstance(constraint, bool) else "the requirement does not hold")
    if holds is None:
        if STATE.trace is None:
            raise ConstraintError(f"whether {constraint} holds is not known here", hints=["Use where=[…] on the function"])
        STATE.trace.constraints.append(constraint)


__all__ = ["TracedFunction", "custom", "eval_shape", "function", "jit", "require"]
