"""State: objects whose tensors change from call to call, and functions that carry their state explicitly.

A :class:`Stateful` object holds state in plain attributes.  Methods marked :func:`stateful` may assign them.  Run eagerly, an
assignment is recorded in the object's history.  In a traced function the state is a hidden input of the program, read anew at
each call, and what was assigned is a hidden result that is written back when the call is over: the program has the effect
``state``, and a compiled function leaves the object as an eager one would.  :func:`assign` does the same for one tensor, wherever it
is kept: parameters are trained so.
"""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import textwrap
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
import optree

from ..errors import ArgumentError, DTypeError, EffectError, ShapeError, TesseraError, TracingError, suggest
from ..ir.core import TensorType
from ..types.dims import Dim
from ..types.effects import EFFECTS
from .function import TracedFunction
from .placed import DeviceArray, returned, where
from .recorder import STATE, Hidden, Trace, as_array, check_effects, lift, user_loc
from .tensor import Conversions, Tensor, Traced, make

_STATE = frozenset({"state"})


@dataclass(frozen=True)
class Write:
    """One assignment of state.

    Attributes:
        name: the attribute; old, new: its tensors before and after.
        step: the number of the assignment, from 0.
        where: ``file:line`` of the assignment.
    """

    name: str
    old: Tensor
    new: Tensor
    step: int
    where: str

    def __str__(self) -> str:
        return f"#{self.step} {self.name}: {self.old.type} at {self.where}"


class StateInput(Hidden):
    """An attribute of an object as a hidden input of a program."""

    __slots__ = ("name", "owner")

    def __init__(self, owner: Stateful, name: str, type: TensorType):
        super().__init__(type, self._fetch)
        self.owner, self.name = owner, name

    def _fetch(self, _sites: int) -> np.ndarray[Any, Any]:
        t = self.owner.__dict__[self.name]
        a: np.ndarray[Any, Any] = t._concrete("state")
        if t.type != self.type:
            _changed(self.name, self.type, t.type, "The program was traced for the state as it was then.")
        return a


def _changed(name: str, want: TensorType, got: TensorType, sentence: str) -> None:
    kind: type[TesseraError] = DTypeError if want.shape == got.shape else ShapeError
    raise kind(f"the state {name!r} changes from {want} to {got}", expected=str(want), received=str(got), sentence=sentence,
               hints=[f"Convert it: value.to({want.dtype})" if want.shape == got.shape else "Start with a state of the final shape"])


class _Tracking(threading.local):
    depth = 0  # how many stateful methods are running


_TRACKING = _Tracking()


@contextmanager
def _tracked() -> Iterator[None]:
    _TRACKING.depth += 1
    try:
        yield
    finally:
        _TRACKING.depth -= 1


# -- objects ---------------------------------------------------------------------------------------------------------------
class Stateful:
    """Base class of objects with state: tensor attributes that methods marked ``@ts.stateful`` assign.

    ``cell.history()`` lists the last :attr:`history_size` assignments, ``cell.undo()`` takes them back, ``cell.state_dict()`` and
    ``cell.load_state_dict()`` copy all tensors out and in.  Assignments outside such methods (``__init__``, a ``reset``) set the
    state without being recorded.
    """

    history_size: ClassVar[int] = 100
    _state_names: ClassVar[frozenset[str]] = frozenset()

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        self = super().__new__(cls)
        if STATE.trace is not None:
            STATE.trace.born.add(id(self))
        return self

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        names = {n for c in cls.__mro__ for m in vars(c).values() for n in getattr(m, "__state_names__", ())}
        cls._state_names = frozenset(names)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.forward(*args, **kwargs)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The object's computation; subclasses define it."""
        raise TypeError(f"{type(self).__name__} defines no forward(...)")

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if STATE.trace is None or name.startswith("_") or name not in object.__getattribute__(self, "_state_names"):
            return value
        return _read(self, name, value)

    def __setattr__(self, name: str, value: Any) -> None:
        if _TRACKING.depth and name in self._state_names:
            _write(self, name, value)
        else:
            object.__setattr__(self, name, value)

    # -- looking at it -----------------------------------------------------------------------------------------------------
    def _log(self) -> deque[Write]:
        log = self.__dict__.get("_writes")
        if log is None:
            log = self.__dict__["_writes"] = deque(maxlen=self.history_size)
        return log

    def history(self, name: str | None = None) -> list[Write]:
        """The recorded assignments (of one attribute), oldest first."""
        return [w for w in self._log() if name in (None, w.name)]

    def undo(self, steps: int = 1) -> None:
        """Take the last ``steps`` assignments back.

        Raises:
            ArgumentError: fewer are recorded.
        """
        log = self._log()
        if not 0 <= steps <= len(log):
            raise ArgumentError(f"undo({steps}): {len(log)} assignments are recorded", hints=[
                f"The last {self.history_size} are kept; set history_size on the class to keep more"])
        for _ in range(steps):
            w = log.pop()
            self.__dict__[w.name] = make(w.old._p)

    def state_dict(self) -> dict[str, Tensor]:
        """The object's tensors by attribute."""
        return {n: make(t._p) for n, t in self.__dict__.items() if isinstance(t, Tensor)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set tensors from :meth:`state_dict`.

        Raises:
            ArgumentError: an unknown name.
            ShapeError, DTypeError: a tensor of another type.
        """
        own = {n: t for n, t in self.__dict__.items() if isinstance(t, Tensor)}
        for n, value in state.items():
            if n not in own:
                raise ArgumentError(f"{type(self).__name__} has no tensor {n!r}{suggest(n, own)}", received=", ".join(own))
            t = lift(value)
            if t.type != own[n].type:
                _changed(n, own[n].type, t.type, "A state keeps its type.")
        for n, value in state.items():
            self.__dict__[n] = make(np.array(lift(value)._concrete("load_state_dict()")))


def _pending(trace: Trace | None, key: tuple[int, str]) -> Any:
    """What this trace, or one around it, assigned."""
    while trace is not None:
        if key in trace.state:
            return trace.state[key]
        trace = trace.parent
    return None


def _read(owner: Stateful, name: str, value: Any) -> Any:
    """State inside a traced function: what was assigned there, else the hidden input."""
    trace = STATE.trace
    assert trace is not None
    found = _pending(trace, (id(owner), name))
    if found is not None:
        return found.value if found.value._p.trace is trace else _own(trace, found)
    if not isinstance(value, Tensor) or value.is_traced:
        return value  # an object made inside the function
    inputs = owner.__dict__.setdefault("_inputs", {})
    source = inputs.get((name, value.type))
    if source is None:
        source = inputs[name, value.type] = StateInput(owner, name, value.type)
    t = make(Traced(trace, trace.capture(source)))
    loc = user_loc(3)
    trace.state[id(owner), name] = Assigned(owner, name, t, t._p, str(loc))
    return t


@dataclass
class Assigned:
    """State met while tracing: its tensor in the trace, which ``x[i] = v`` may have rebound, and what it was at first."""

    owner: Stateful
    name: str
    value: Tensor
    first: Any
    where: str

    @property
    def changed(self) -> bool:
        return self.value._p is not self.first

    @property
    def what(self) -> str:
        return f"the state {self.name!r} of a {type(self.owner).__name__}"

    def commit(self, array: Any) -> None:
        _store(self.owner, self.name, make(array), self.where)


def _own(trace: Trace, outer: Assigned) -> Tensor:
    """What a trace around this one holds, as a tensor that this one may rebind."""
    t = make(Traced(trace, trace.lower(outer.value)))
    trace.state[id(outer.owner), outer.name] = Assigned(outer.owner, outer.name, t, t._p, outer.where)
    return t


# -- tensors ---------------------------------------------------------------------------------------------------------------
class AssignedTensor:
    """A tensor from outside a traced function that the function gives a new value."""

    changed = True

    def __init__(self, target: Tensor, value: Tensor, where: str):
        self.target, self.value, self.where = target, value, where

    @property
    def what(self) -> str:
        return f"a tensor {self.target.type}"

    def commit(self, array: Any) -> None:
        self.target._p = array


def assign(target: Tensor, value: Any) -> None:
    """Give a tensor a new value of its own shape and dtype: it stays the tensor that modules hold and programs have captured.

    Tensors that shared its memory keep the old value.  In a traced function a tensor from outside is written when the call is over
    (effect ``state``); what the function reads from it after the assignment is the new value.

    Raises:
        ArgumentError: ``target`` is no tensor.
        ShapeError, DTypeError: the value has another type.
        EffectError: the surrounding function may not write state.
        TracingError: ``target`` belongs to an enclosing traced function.
    """
    if not isinstance(target, Tensor):
        raise ArgumentError(f"assign() gives a tensor a new value, and this is a {type(target).__name__}", received=repr(target)[:80],
                            expected="assign(tensor, value)")
    new = lift(value if isinstance(value, Tensor | Dim) else as_array(value, target.dtype))  # numbers are rounded once
    new = new if isinstance(value, Tensor) else new.to(target.dtype)
    if new.type != target.type:
        kind: type[TesseraError] = DTypeError if new.type.shape == target.type.shape else ShapeError
        raise kind(f"assign() changes {target.type} to {new.type}", expected=str(target.type), received=str(new.type),
                   sentence="A tensor keeps its type, because programs that captured it were compiled for it.",
                   hints=[f"Convert it: value.to({target.dtype})"] if kind is DTypeError else [])
    trace = STATE.trace
    if trace is None:
        check_effects(_STATE, "assign")
        where([target._p, new._p])
        target._p = returned(new._p, target._p) if isinstance(target._p, DeviceArray) else new._concrete("assign()")
    elif type(target._p) is Traced and target._p.trace is trace:
        target._p = new._p
    elif type(target._p) is Traced:
        raise TracingError("assign() to a tensor of the traced function around this one", received=str(target.type),
                           hints=["Return the new value, and assign it outside"])
    else:
        check_effects(_STATE, "assign")
        target._concrete("assign()")
        if trace.transformed:
            raise _lost(f"a tensor {target.type}")
        trace.rebind(target, new)
        trace.state[id(target), ""] = AssignedTensor(target, make(new._p), str(user_loc(2)))


def convert(target: Tensor, value: Tensor) -> None:
    """Give a tensor outside any trace a value that may have another dtype or live elsewhere, as a module's ``to`` does: it stays the
    tensor that modules, ties and optimisers hold, and functions that captured it are traced again.

    Raises:
        ShapeError: the value has another shape.
        EffectError: a traced function does this, or the surrounding function may not write state.
    """
    if STATE.trace is not None:
        raise EffectError("a traced function cannot convert the tensors of a module in place",
                          sentence="Its program was compiled for the types and the device that they have.",
                          hints=["Convert the module before the call", "Convert values where they are used: w.to(ts.bf16)"])
    if value.shape != target.shape:
        raise ShapeError(f"a tensor of shape {list(target.shape)} cannot become one of shape {list(value.shape)}")
    check_effects(_STATE, "convert")
    target._p = value._p
    Conversions.count += 1


def refuse_state(trace: Trace) -> None:
    """State that was assigned in the trace of a function that a transformation works on would be lost.

    Raises:
        EffectError: there is some.
    """
    for (number, _), a in trace.state.items():
        if a.changed and number not in trace.born:
            raise _lost(a.what, f"at {a.where}")


def _lost(what: str, received: str | None = None) -> EffectError:
    return EffectError(f"a function that grad, vmap, checkpoint or another transformation works on assigns {what}", received=received,
                       sentence="The transformation makes another function of it, in which the assignment would be lost, or done more "
                       "than once.", hints=["Return the new value beside the result (has_aux=True) and assign it outside",
                                            "Carry the state explicitly: see ts.with_state"])


def written(trace: Trace) -> list[Any]:
    """What a finished body leaves to be written back.

    Raises:
        TracingError: a branch or a loop assigned it.
        EffectError: the function may not write state.
    """
    out = [a for a in trace.state.values() if a.changed]
    body = set(trace.function.body.ops) if out else set()
    for a in out:
        value = trace.lower(a.value)
        if value.op not in body and value not in trace.function.args:
            raise TracingError(
                f"{a.what} is assigned inside cond(), while_loop() or scan()", sentence="What a branch or a loop computes "
                "leaves it as a result.", hints=["Make the state part of the carry, and assign it after the loop"])
        check_effects(_STATE, a.what)
    if out:
        trace.effects |= _STATE
    return out


def _store(owner: Stateful, name: str, value: Tensor, where: str) -> None:
    old = owner.__dict__.get(name)
    if isinstance(old, Tensor):
        log = owner._log()
        log.append(Write(name, old, value, log[-1].step + 1 if log else 0, where))
    owner.__dict__[name] = value


def _write(owner: Stateful, name: str, value: Any) -> None:
    loc = user_loc(3)
    where = str(loc) if loc is not None else "?"
    what = f"{type(owner).__name__}.{name} = …"
    old = owner.__dict__.get(name)
    trace = STATE.trace
    if trace is None:
        check_effects(_STATE, what)
        if isinstance(old, Tensor) and isinstance(value, Tensor):
            _store(owner, name, make(value._p), where)
        else:
            owner.__dict__[name] = value
        return
    if isinstance(old, Tensor) and old.is_traced:
        owner.__dict__[name] = value  # the object itself lives inside the function
        return
    if not isinstance(old, Tensor):
        raise EffectError(
            f"{what} inside a traced function assigns state that is not a tensor", received=f"{type(old).__name__} before",
            sentence="A compiled program writes tensors back after each call; other Python values change only while it is traced.",
            hints=[f"Start with a tensor: self.{name} = ts.tensor(…) in __init__"])
    check_effects(_STATE, what)
    if trace.transformed and id(owner) not in trace.born:
        raise _lost(f"the state {name!r} of a {type(owner).__name__}")
    new = lift(value)
    if not isinstance(value, Tensor):
        new = new.to(old.dtype)
    if new.type != old.type:
        _changed(name, old.type, new.type, "A state keeps its type from call to call, because the program has one type for it.")
    trace.state[id(owner), name] = Assigned(owner, name, make(new._p), None, where)


def stateful(fn: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a :class:`Stateful` class that may assign the object's state: the assignments are tracked.

    Raises:
        ArgumentError: not a function.
    """
    target = fn.fn if isinstance(fn, TracedFunction) else fn
    if not inspect.isfunction(target):
        raise ArgumentError(f"@stateful marks a method, not a {type(fn).__name__}")

    @functools.wraps(target)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(self, Stateful):
            raise ArgumentError(f"@stateful method {target.__name__!r} of a {type(self).__name__}", hints=[
                f"Derive the class from ts.Stateful: class {type(self).__name__}(ts.Stateful)"])
        with _tracked():
            return fn(self, *args, **kwargs)

    method.__state_names__ = frozenset(_assigned_attributes(target))  # type: ignore[attr-defined]
    return method


def _assigned_attributes(fn: Any) -> Iterator[str]:
    """The attributes of its first parameter that a method assigns, whole or in part; also in nested functions."""
    first = fn.__code__.co_varnames[:1]
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(fn)))
    except (OSError, TypeError, SyntaxError):  # no source: whole assignments are seen in the code
        codes, before = [fn.__code__], None
        while codes:
            code = codes.pop()
            codes += [c for c in code.co_consts if inspect.iscode(c)]
            for i in dis.get_instructions(code):
                if i.opname == "STORE_ATTR" and before is not None and (before.argval in first or before.opname == "SWAP"):
                    yield i.argval
                before = i
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute | ast.Subscript) or not isinstance(node.ctx, ast.Store):
            continue
        base: ast.expr = node
        while isinstance(base, ast.Subscript):
            base = base.value
        if isinstance(base, ast.Attribute) and isinstance(base.value, ast.Name) and base.value.id in first:
            yield base.attr


# -- functions -------------------------------------------------------------------------------------------------------------
def with_state(fn: Callable[..., Any]) -> TracedFunction:
    """A function from (…, initial state) to (outputs, final state) that has no other state.

    Each call starts from the state it is given: two calls give the same result.  The final state must have the structure and
    types of the initial one, which is the parameter ``initial_state`` (or ``state``), else the last.

    Raises:
        EffectError: the body writes hidden state.
        TracingError, ShapeError, DTypeError: the result is no pair, or the final state differs from the initial one.
    """
    target = fn.fn if isinstance(fn, TracedFunction) else fn
    signature = inspect.signature(target)
    names = list(signature.parameters)
    if not names:
        raise ArgumentError(f"@with_state: {target.__name__!r} has no parameter for its initial state")
    chosen = next((n for n in ("initial_state", "state", "init") if n in names), names[-1])

    @functools.wraps(target)
    def checked(*args: Any, **kwargs: Any) -> Any:
        out = target(*args, **kwargs)
        if not isinstance(out, tuple) or len(out) != 2:
            raise TracingError(f"{target.__name__!r} must return (outputs, final_state)", received=type(out).__name__)
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        start, tree = optree.tree_flatten(bound.arguments[chosen])
        end, final = optree.tree_flatten(out[1])
        if tree != final:
            raise TracingError(f"the final state of {target.__name__!r} has another structure than {chosen!r}", expected=str(tree),
                               received=str(final))
        for a, b in zip(start, end, strict=True):
            if lift(a).type != lift(b).type:
                _changed(chosen, lift(a).type, lift(b).type, "The final state can be the next call's initial state.")
        return out

    return TracedFunction(checked, effects=frozenset(EFFECTS) - _STATE)


__all__ = ["Stateful", "Write", "assign", "refuse_state", "stateful", "with_state"]
