"""Recording: every op goes through :func:`bind`.

Under a trace, ``bind`` infers the result's type and appends an op to the Graph function being built; otherwise it runs
the op at once (``eager.py``).  A tensor that a trace meets and did not make is *captured*: it becomes a hidden trailing
parameter, by identity, and is read anew at every call of the program.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from ..errors import (
    DTypeError,
    EffectError,
    IndexOutOfRangeError,
    ShapeError,
    TesseraError,
    TracingError,
    UnsupportedError,
    suggest,
)
from ..errors.frames import GENERATED, PACKAGE
from ..ir.core import Block, Builder, Function, Loc, Op, TensorType, Value
from ..ir.graph import OP_RULES
from ..types import dtypes as dt
from ..types.constraints import Size, SizeConstraint, plain
from ..types.dims import Dim, DimLike
from ..types.dtypes import as_dtype
from ..types.effects import format_effects
from ..types.promotion import PromotionError
from ..types.shapes import ShapeMismatch
from . import eager
from .placed import from_foreign
from .tensor import Donated, Tensor, Traced, make

# -- registries, filled when the package is assembled -----------------------------------------------------------------
EFFECTS: dict[str, frozenset[str]] = {}
"""Effects of ops that have any, by name."""

REQUIRES: dict[str, Callable[[Sequence[TensorType], dict[str, Any]], Sequence[tuple[DimLike, str, DimLike]]]] = {}
"""What ops need of sizes, by name: (operand types, attributes) -> facts (lhs, op, rhs)."""


def _no_random(shape: Any, key: Any) -> Any:
    raise TracingError("stochastic rounding needs tessera.random, which is not loaded")


RANDOM_WORDS: Callable[[Any, Any], Any] = _no_random
"""uint32 random words of a shape for a key (None: the next draw of the stream); set when the package is assembled."""


class _State(threading.local):
    trace: Trace | None = None
    policy: Any = None  # the numerical policy in force (tracing/policies.py); part of every trace's key
    schedule: Any = None  # the ambient schedule of ``ts.schedule``; part of every trace's key
    device: Any = None  # of the innermost device block: tessera/device.py
    outer_devices: tuple[Any, ...] = ()  # of the blocks around it
    home: str | None = None  # the device of the operands of the eager function that is running: tracing/home.py
    allowed: tuple[tuple[frozenset[str], str], ...] = ()  # (effects, who says so), innermost last
    unchecked: bool = False  # ops that can do without their run-time checks do


STATE = _State()
CHECKED: set[str] = set()
"""Ops with run-time checks; filled when :func:`tessera.unchecked` is first used."""


class Hidden:
    """A hidden program input that is not a tensor: ``fetch(n)`` gives its array for a call that uses ``n`` sites."""

    __slots__ = ("fetch", "type")

    def __init__(self, type: TensorType, fetch: Callable[[int], np.ndarray[Any, Any]]):
        self.type, self.fetch = type, fetch


def no_value(sites: int) -> np.ndarray[Any, Any]:
    """Fetches a parameter whose size is symbolic: it has no value before a call."""
    raise TracingError("a program of declared types alone cannot run")


# -- locations -------------------------------------------------------------------------------------------------------
_internal: dict[str, bool] = {}


def user_loc(depth: int = 2) -> Loc | None:
    """The innermost frame outside the package."""
    frame: Any = sys._getframe(depth)
    while frame is not None:
        file = frame.f_code.co_filename
        inside = _internal.get(file)
        if inside is None:
            inside = _internal[file] = file.startswith((PACKAGE, GENERATED))
        if not inside:
            return Loc(frame.f_code, frame.f_lasti, frame.f_lineno)
        frame = frame.f_back
    return None


# -- a trace ---------------------------------------------------------------------------------------------------------
class Trace:
    """One Graph function being recorded.

    Attributes:
        function: the function; ``builder`` appends to its current block.
        captured: the tensors and hidden inputs behind the trailing parameters, in order.
        effects: what the recorded ops do besides computing.
        sites: how many random ops were recorded (their indices in program order).
        guards: comparisons of sizes that Python decided on, with the outcome.
    """

    def __init__(self, name: str, parent: Trace | None = None):
        self.function = Function(name if name.isidentifier() else _identifier(name), "graph", Block())
        self.builder = Builder(self.function.body)
        self.parent = parent
        self.captured: list[Tensor | Hidden] = []
        self._captured_values: dict[int, Value] = {}
        self._keep: list[Any] = []
        self.effects: set[str] = set()
        self.constraints: list[Any] = []
        self.guards: list[tuple[Any, bool]] = []
        self.sites = 0
        self.messages: list[Any] = []  # values that are results for the sake of a message: tessera/messages.py
        self.state: dict[tuple[int, str], Any] = {}  # (object, attribute) -> what stateful methods met: tracing/state.py
        self.reasons: dict[Value, str] = {}  # why a conversion was recorded
        self.outlined = False  # a parameter's size is symbolic: it has no value, and the graph cannot run
        self.policies: dict[Value, Any] = {}  # of values whose declared type names a numerical policy, and what is made of them
        self.iterations: tuple[Tensor, ...] = ()  # the numbers of the surrounding loops' iterations, where known
        self.open = True
        self.born: set[int] = set()  # the stateful objects made while this was recorded: what they hold ends with it
        self.transformed = False  # a transformation makes something else of it: messages would be lost
        self.location: Any = parent.location if parent is not None else None  # where the program runs: tracing/location.py
        self.place: Loc | None = None  # where ops made by a derivative rule come from; None: the user's frame

    # -- inputs ------------------------------------------------------------------------------------------------------
    def parameter(self, type: TensorType, name: str | None = None, weak: type | None = None) -> Tensor:
        """A new parameter of the function."""
        return make(Traced(self, self.function.body.add_arg(type, name), weak))

    def capture(self, source: Tensor | Hidden) -> Value:
        """The hidden parameter for a tensor (or hidden input) from outside."""
        got = self._captured_values.get(id(source))
        if got is None:
            if not self.open:
                raise TracingError("a finished trace cannot capture")
            got = self.function.body.add_arg(source.type, _free_name(self.function, len(self.captured)))
            self._captured_values[id(source)] = got
            self.captured.append(source)
        return got

    def rebind(self, source: Tensor, new: Tensor) -> None:
        """From here on the captured tensor ``source`` stands for ``new``."""
        self.capture(source)
        self._captured_values[id(source)] = self.lower(new)

    def lower(self, t: Any) -> Value:
        """The value of an operand in this trace."""
        p = t._p
        if type(p) is Traced:
            if p.trace is self:
                return p.value
            outer = self.parent
            while outer is not None:
                if outer is p.trace:
                    return self.capture(t)
                outer = outer.parent
            raise TracingError(
                "a traced tensor was used outside the function that made it", received=f"traced {t.type}",
                sentence="It stood for a value inside a function that has been traced already; it was probably kept in a "
                         "global, an attribute or a list.", hints=["Return the tensor from the function instead"])
        if type(p) is Donated:
            t._concrete("an operation")
        return self.capture(t)

    # -- ops ---------------------------------------------------------------------------------------------------------
    def bind(self, name: str, operands: Sequence[Any], attrs: dict[str, Any], depth: int = 3) -> Any:
        values = [self.lower(t) if type(t) is Tensor else self.lower(lift(t)) for t in operands]
        for k, v in attrs.items():
            if isinstance(v, Size):
                attrs[k] = plain(v)
            elif type(v) is tuple and any(isinstance(x, Size) for x in v):
                attrs[k] = tuple([plain(x) if isinstance(x, Size) else x for x in v])
        loc = self.place or user_loc(depth)
        types = infer(name, [v.type for v in values], attrs, loc)
        effects = EFFECTS.get(name)
        if effects is not None:
            check_effects(effects, name)
            self.effects |= effects
        if name in REQUIRES:
            self.require(REQUIRES[name]([v.type for v in values], attrs))
        op = Op(name, values, types, attrs, (), loc)
        self.builder.block.ops.append(op)
        if len(op.results) == 1:
            return make(Traced(self, op.results[0]))
        return tuple([make(Traced(self, r)) for r in op.results])

    def require(self, facts: Sequence[tuple[DimLike, str, DimLike]]) -> None:
        """Have each call check the ``facts`` that are not certain for all sizes."""
        for lhs, relation, rhs in facts:
            if isinstance(lhs, Dim) or isinstance(rhs, Dim):
                c = SizeConstraint(lhs, relation, rhs)
                if c.decide() is None and c not in self.constraints:
                    self.constraints.append(c)

    def structured(self, name: str, operands: Sequence[Tensor], result_types: Sequence[TensorType], attrs: dict[str, Any],
                   blocks: Sequence[Block]) -> list[Tensor]:
        """Append a structural op (``cond``, ``while``, ``scan``, ``call``)."""
        op = self.builder.op(name, [self.lower(t) for t in operands], result_types, attrs, blocks, self.place or user_loc(2))
        return [make(Traced(self, r)) for r in op.results]

    def block(self, types: Sequence[TensorType]) -> tuple[Block, list[Tensor]]:
        """A nested block and its arguments."""
        b = Block(list(types))
        return b, [make(Traced(self, a)) for a in b.args]

    @contextmanager
    def iterating(self, number: Tensor | None) -> Iterator[None]:
        """Inside the block random ops fold in ``number``, the loop's iteration."""
        saved = self.iterations
        if number is not None:
            self.iterations = (*saved, number)
        try:
            yield
        finally:
            self.iterations = saved

    def terminate(self, block: Block, results: Sequence[Tensor], name: str = "yield") -> None:
        with self.builder.at(block):
            self.builder.op(name, [self.lower(t) for t in results])

    # -- the end -----------------------------------------------------------------------------------------------------
    def finish(self, results: Sequence[Tensor]) -> Function:
        """Close the function with ``return`` and write its attributes."""
        self.builder.op("return", [self.lower(t) for t in results])
        fn = self.function
        sizes: dict[str, None] = {}
        for a in fn.args:
            for d in a.type.shape:
                if isinstance(d, Dim):
                    sizes.update(dict.fromkeys(sorted(d.names)))
        fn.attrs = {"effects": tuple(sorted(self.effects)), "sizes": tuple(sizes), "captured": len(self.captured),
                    "constraints": tuple(str(c) for c in self.constraints)}
        self.open = False
        return fn


def _identifier(name: str) -> str:
    return "".join(c if c.isalnum() or c == "_" else "_" for c in name).strip("_") or "program"


def _free_name(fn: Function, n: int) -> str:
    taken = {a.name for a in fn.args}
    while f"captured{n}" in taken:
        n += 1
    return f"captured{n}"


@contextmanager
def tracing(trace: Trace) -> Iterator[Trace]:
    """Ops record into ``trace``."""
    saved = STATE.trace, STATE.unchecked
    STATE.trace, STATE.unchecked = trace, False
    try:
        yield trace
    finally:
        STATE.trace, STATE.unchecked = saved


@contextmanager
def suspended() -> Iterator[None]:
    """Ops run at once even inside a traced function (parameters are initialised so)."""
    saved = STATE.trace
    STATE.trace = None
    try:
        yield
    finally:
        STATE.trace = saved


# -- bind --------------------------------------------------------------------------------------------------------------
def bind(name: str, *operands: Any, **attrs: Any) -> Any:
    """One op: recorded under a trace, else executed.  One result is a ``Tensor``, several are a tuple.

    Raises:
        TesseraError: the op's rule refuses the operands; the error points at the user's line.
    """
    trace = STATE.trace
    if STATE.unchecked and name in CHECKED:
        attrs.setdefault("checked", False)
    if STATE.schedule is not None and name in SCHEDULED:
        attrs.setdefault("schedule", STATE.schedule.items)
    if STATE.policy is not None or (trace is not None and trace.policies):
        return POLICIES(name, operands, attrs)
    if trace is not None:
        return trace.bind(name, operands, attrs)
    return eager.dispatch(name, operands, attrs)


SCHEDULED = frozenset({"dot_general", "attention"})
"""Ops whose kernels a schedule decides on; it stands in their attribute ``schedule``, which changes no bit of the result."""


def plain_bind(name: str, operands: Sequence[Any], attrs: dict[str, Any]) -> Any:
    """:func:`bind` without looking at policies."""
    trace = STATE.trace
    return eager.dispatch(name, operands, attrs) if trace is None else trace.bind(name, operands, attrs, 5)


def _no_policies(name: str, operands: Sequence[Any], attrs: dict[str, Any]) -> Any:
    return plain_bind(name, operands, attrs)


POLICIES: Callable[[str, Sequence[Any], dict[str, Any]], Any] = _no_policies
"""How an op is bound where a numerical policy holds (``tracing/policies.py``)."""


@contextmanager
def without_policies() -> Iterator[None]:
    """Inside the block ops are recorded as they stand: no policy in scope has a say (transformations replay graphs so)."""
    saved = STATE.policy
    STATE.policy = None
    try:
        yield
    finally:
        STATE.policy = saved


def because(t: Tensor, reason: str) -> Tensor:
    """Keep why the conversion that made ``t`` was recorded; returns ``t``."""
    if type(t._p) is Traced and t._p.trace is not None:
        t._p.trace.reasons[t._p.value] = reason
    return t


def lift(x: Any) -> Tensor:
    """Anything a user may pass for a tensor: tensors, numbers, sizes, arrays, nested lists.

    Inside a trace, numbers, lists and small arrays become constants; a larger array is captured without a copy.
    """
    if isinstance(x, Tensor):
        return x
    if isinstance(x, Dim):
        out: Tensor = bind("size", value=plain(x))
        return out
    a = as_array(x)
    if STATE.trace is None:
        return make(a)
    if a.size <= 1024:
        out = bind("constant", value=a.copy())
        return out
    held = make(a)
    STATE.trace._keep.append(held)
    return held


_DEFAULT_NP: dict[str, np.dtype[Any]] = {
    "i": np.dtype(np.int64), "u": np.dtype(np.uint64), "f": np.dtype(np.float32), "b": np.dtype(np.bool_),
    "c": np.dtype(np.complex64)}


def as_array(x: Any, dtype: Any = None) -> np.ndarray[Any, Any]:
    """A numpy array of a dtype Tessera has: numbers and lists get f32, int64, bool or complex64; arrays keep theirs.

    Raises:
        DTypeError: strings, objects, dates.
        ShapeError: nested lists of unequal lengths.
    """
    lends = hasattr(x, "__dlpack__")
    if isinstance(x, np.ndarray | np.generic | Tensor) or (not lends and (hasattr(x, "__array__") or hasattr(x, "__array_interface__"))):
        a = np.asarray(x)
    elif isinstance(x, list | tuple | range | bool | int | float | complex):
        a = _from_python(x, exact=dtype is not None)
    elif lends:
        a = from_foreign(x)
    else:
        tile = hasattr(type(x), "__tile_language__")
        raise DTypeError(f"a {'tile' if tile else type(x).__name__} is not a tensor", received=repr(x)[:80],
                         hints=["In a kernel, use the operations of tile: tile.exp, tile.sum …" if tile else
                                "Pass a tensor, a number, a NumPy array or nested lists of numbers"])
    if not a.dtype.isnative:
        a = a.astype(a.dtype.newbyteorder("="))
    if dtype is not None:
        want = as_dtype(dtype)
        return a if a.dtype == want.np else convert_array(a, want)
    try:
        as_dtype(a.dtype)
    except TypeError:
        raise DTypeError(f"tessera has no dtype for NumPy's {a.dtype}", received=repr(x)[:80],
                         hints=["Convert it to a numeric array first: np.asarray(x, np.float32)"]) from None
    return a


def _from_python(x: Any, exact: bool) -> np.ndarray[Any, Any]:
    """Numbers as an array of the default dtype; ``exact``: as Python has them, for a conversion that rounds once."""
    if isinstance(x, list | tuple) and any(isinstance(v, Tensor) for v in x):
        x = [np.asarray(v) if isinstance(v, Tensor) else v for v in x]
    try:
        a = np.asarray(x)
    except ValueError:
        raise ShapeError("nested lists must have equal lengths", received=repr(x)[:80]) from None
    except OverflowError as e:
        raise DTypeError(str(e), received=repr(x)[:80]) from None
    if a.dtype == np.object_:
        raise DTypeError("these values are not all numbers", received=repr(x)[:80],
                         hints=["Integers must fit into 64 bits"])
    if exact or (isinstance(x, list | tuple) and _holds_arrays(x)):
        return a
    want = _DEFAULT_NP.get(a.dtype.kind)
    return a if want is None or a.dtype == want else a.astype(want)


def _holds_arrays(x: Any) -> bool:
    while isinstance(x, list | tuple) and x:
        x = x[0]
    return isinstance(x, np.ndarray | np.generic)


def convert_array(a: np.ndarray[Any, Any], dtype: dt.DType) -> np.ndarray[Any, Any]:
    """Host-side conversion for creation: to nearest even; float to integer truncates, saturates, and NaN gives 0."""
    if dtype.is_integer and a.dtype.kind not in "iub":
        wide = a.astype(np.float64)
        info = dtype.iinfo
        wide = np.where(np.isnan(wide), 0.0, np.clip(np.trunc(wide), float(info.min), float(info.max)))
        with np.errstate(all="ignore"):
            out = wide.astype(dtype.np)
        return np.where(wide >= float(info.max), np.asarray(info.max, dtype.np), out) if dtype.bits == 64 else out
    with np.errstate(all="ignore"):
        return a.astype(dtype.np)


# -- inference -----------------------------------------------------------------------------------------------------------
def infer(name: str, types: Sequence[TensorType], attrs: dict[str, Any], loc: Loc | None) -> Sequence[TensorType]:
    """Result types by the op's rule; plain exceptions of the type algebra become errors with the user's line.

    Raises:
        TesseraError: the operands do not fit.
    """
    rule = OP_RULES.get(name)
    if rule is None:
        raise UnsupportedError(f"there is no op {name!r}{suggest(name, OP_RULES)}", loc=loc)
    try:
        return rule(types, attrs)
    except TesseraError as e:
        if e.loc is None:
            e.loc = loc
        raise
    except (ValueError, TypeError, IndexError, KeyError, ZeroDivisionError) as e:
        raise explained(e, name, types, loc) from None


def explained(e: Exception, name: str, types: Sequence[TensorType], loc: Loc | None) -> TesseraError:
    """A plain exception of the type algebra as the error a user should see."""
    received = ", ".join(str(t) for t in types) or None
    if isinstance(e, PromotionError):
        return DTypeError(
            f"Cannot implicitly convert between {e.a} and {e.b}", received=received, loc=loc, sentence=f"In {name!r}: {e.why}.",
            hints=[f"Convert one operand: x.to({e.a}) or y.to({e.b})"])
    kind: type[TesseraError] = ShapeError
    if isinstance(e, IndexError):
        kind = IndexOutOfRangeError
    elif isinstance(e, TypeError) and not isinstance(e, ShapeMismatch):
        kind = DTypeError
    text = f"a required attribute {e} is missing" if isinstance(e, KeyError) else str(e)
    return kind(text, received=received, loc=loc, sentence=f"In {name!r}.")


# -- effects -------------------------------------------------------------------------------------------------------------
def check_effects(effects: frozenset[str] | set[str], what: str) -> None:
    """Refuse effects that a surrounding ``pure`` / ``effects`` / ``suspend`` forbids.

    Raises:
        EffectError: naming the call and who forbids it.
    """
    for allowed, who in STATE.allowed:
        extra = frozenset(effects) - allowed
        if extra:
            names = format_effects(extra)
            raise EffectError(
                f"{what!r} has the effect {names}, which {who} does not allow", expected=format_effects(allowed),
                received=format_effects(effects), sentence="A function may only have the effects that it declares.",
                hints=[f"Declare it: @ts.effects([{', '.join(repr(x) for x in sorted(allowed | extra))}])",
                       f"Move {what!r} out of the function",
                       *(["Pass random numbers in as an argument, or draw them with an explicit key="]
                         if extra == {"random"} else [])])


@contextmanager
def allowing(effects: frozenset[str], who: str) -> Iterator[None]:
    """Inside the block only ``effects`` are allowed."""
    saved = STATE.allowed
    STATE.allowed = (*saved, (effects, who))
    try:
        yield
    finally:
        STATE.allowed = saved
