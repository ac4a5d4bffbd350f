"""``@ts.kernel``: tile programs written by users.

A kernel is a Python function over tile parameters.  It is built once for each combination of dtypes and static
arguments; sizes stay symbolic unless the body needs them as numbers (for a tile's shape), in which case it is built again
for those sizes.  Called on concrete tensors it runs at once and writes its output arguments in place; called inside a
traced function it becomes a ``kernel_call``, and the arguments it writes are replaced by results.

How the grid comes about:

1. Axes written as a product in a Tile type, and all but the last two axes, are grid axes: one program for each position.
2. The outermost ``tile.range`` over an axis of a parameter is spread over the grid: one program for each iteration,
   which runs the whole body; so are loops that stand directly in it, where nothing is computed between the two.  A loop is
   sequential instead where a store does not depend on it (two programs would write the same place), where an atomic update
   outside it would be done by every program, and where its iterations store what goes from one to the next.  (What is set
   before the outermost loop and stored after it is each program's own.)
3. Windows that the body loads or stores without a position are the program's own: the grid walks those axes.
"""

from __future__ import annotations

import functools
import sysconfig
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np

from ..errors import KernelError, suggest
from ..errors.boundary import PLAIN
from ..errors.frames import is_internal
from ..ir import interpret_tile
from ..ir.core import Function, Loc, Op, TensorType, Value, rewrite, value_key
from ..ir.tile import WRITES, written
from ..ir.tile_explicit import is_explicit_program
from ..scheduling.decisions import Schedule, as_schedule
from ..types.dims import Dim, DimLike
from ..types.shapes import unify
from .access import Access, analyze
from .control import TileRange
from .counts import access_pattern, count_flops
from .edges import plain
from .functions import BUILTINS
from .kernel_ops import KernelRange
from .kernel_values import Demand, KernelProgram, Param, Register, SizeValue, Spread, Volatile, Window
from .misuse import explained
from .rewrite import Carried, Cells, Machinery, rewritten, written_inside
from .tile_types import Bound, Declared, Tile, Tile3D, TileSpec, bind, read, symbolic
from .values import TileValue, current, fail, internal, tracing

internal(__file__)

DEFAULT_TILES = {"M": 64, "N": 64, "K": 64}


# -- control flow of kernel bodies ---------------------------------------------------------------------------------------
class KernelMachinery(Machinery):
    """Loops that may be spread over the grid, registers as loop state, and helper functions."""

    @classmethod
    def registers(cls) -> Sequence[Any]:
        prog = current()
        return list(prog.registers) if isinstance(prog, KernelProgram) else []

    @classmethod
    def loop(cls, items: Any, body: Callable[[Any], None], live: tuple[str, ...], names: tuple[str, ...], index: str | None) -> None:
        if isinstance(items, Param | Window):
            fail("cannot iterate over a tensor", hints=["use tile.range(X.shape[0], step=…) and windows", "use tile.split(X)"])
        prog = current()
        if isinstance(items, KernelRange) and isinstance(prog, KernelProgram):
            if items.key is not None and not prog.nested and cls._spread(prog, items, body, live):
                return
            cls.traced_loop(items, body, lambda i: body(cls._item(prog, items, i)), live, names, index)
            return
        super().loop(items, body, live, names, index)

    @staticmethod
    def _item(prog: KernelProgram, items: KernelRange, i: TileValue) -> Any:
        """What the loop variable stands for; remembers that it is a multiple of the step."""
        if isinstance(items.lo, int) and items.lo == 0 and isinstance(items.step, int):
            hi = items.hi.dim if isinstance(items.hi, TileValue) and items.hi.dim is not None else items.hi
            if not isinstance(hi, TileValue):  # an end that is known only when the kernel runs says nothing of the axis
                prog.multiples[i.value] = (items.step, int(hi) if isinstance(hi, int) else hi)
        return items.item(i)

    @staticmethod
    def _spread(prog: KernelProgram, items: KernelRange, body: Callable[[Any], None], live: tuple[str, ...]) -> bool:
        """Run the body once, at this program's position, if this loop is one that the grid replaces.

        Raises:
            _Serial: it is inside another one, and an iteration reads what the one before it wrote.
        """
        number = prog.loops
        prog.loops += 1
        around = prog.spread[-1] if prog.spread else None
        if number in prog.serial or (around is not None and not around.holds_nothing_yet(prog)):
            return False
        total = items.hi.dim if isinstance(items.hi, SizeValue) else int(items.hi)
        assert items.key is not None and total is not None
        if around is None:
            offset = prog.window(items.key, total, items.step)
            axis = prog.grid_keys[items.key]
        else:
            axis, offset = prog.loop_position(number, total, items.step)
        loop = Spread(number, axis, len(prog.fn.body.ops))
        prog.spread.append(loop)
        state = Carried(Cells(body), live, prog.registers)
        body(items.item(offset))
        loop.last = len(prog.fn.body.ops)
        read = {v for op in prog.fn.body.ops[loop.first:] for o in op.walk() for v in o.operands}
        loop.carries = state.goes_on(read)
        if around is not None and loop.carries:
            raise _Serial(number)
        return True

    @staticmethod
    def callee(f: Any) -> Any:
        """What a call in a kernel calls: helper functions are rewritten like the kernel itself, and builtins take tiles."""
        if isinstance(f, Kernel):
            f = f.function
        if isinstance(f, types.BuiltinFunctionType | type):
            return BUILTINS.get(f, f)
        if isinstance(f, types.MethodType) and isinstance(f.__func__, types.FunctionType) and _users(f.__func__):
            return functools.partial(_inlined(f.__func__), f.__self__)
        if isinstance(f, types.FunctionType) and _users(f):
            return _inlined(f)
        return f


@functools.cache
def _library_paths() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple({paths[k] for k in ("stdlib", "platstdlib", "purelib", "platlib")})


def _users(f: types.FunctionType) -> bool:
    """True for functions of the user's program (not of a library): they are inlined with their loops rewritten."""
    file = f.__code__.co_filename
    if hasattr(f, "__wrapped__") or is_internal(file) or f.__name__.startswith("__tile_") or "__tile__" in f.__code__.co_freevars:
        return False
    if f.__name__ == "<lambda>" or written_inside(f):  # nothing to rewrite, or done
        return False
    return not file.startswith(("<", *_library_paths()))


def _inlined(f: types.FunctionType) -> Callable[..., Any]:
    @functools.wraps(f)
    def run(*args: Any, **kwargs: Any) -> Any:
        if not tracing():
            return f(*args, **kwargs)
        prog = current()
        active = prog.active if isinstance(prog, KernelProgram) else []
        if f.__code__ in active:
            fail(f"recursion: {f.__name__!r} calls itself", sentence="Functions are inlined into the kernel, so a recursion would not end.",
                 hints=["write it as a loop: `for` over tile.range, or `while`"])
        made = rewritten(f, KernelMachinery, True)
        active.append(f.__code__)
        try:
            return made(*args, **kwargs)
        finally:
            active.pop()

    return run


# -- kernels -------------------------------------------------------------------------------------------------------------
class Kernel:
    """A tile program over tensors; made by :func:`kernel`.

    ``k(A, B, C)`` runs it (see the module's docstring) and returns what it wrote: one tensor or a tuple.  Arguments that are
    not tensors are static: the kernel is built for their values.
    """

    schedule: Schedule

    def __init__(self, fn: Callable[..., Any] | Kernel, schedule: Schedule | None = None):
        if isinstance(fn, Kernel):
            schedule = fn.schedule | (schedule or Schedule())
            fn = fn.function
        if not isinstance(fn, types.FunctionType):
            raise KernelError(f"a kernel is a plain `def` function, not a {type(fn).__name__}")
        self.function: types.FunctionType = fn
        self.schedule = schedule or Schedule()
        self.tiles = {**DEFAULT_TILES, **tiles_of(self.schedule)}
        self._declared: Declared | None = None
        self._built: dict[Any, Built] = {}
        self._frozen: dict[Any, frozenset[str]] = {}
        self._example: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._variants: dict[Schedule, Kernel] = {}
        self._elsewhere: dict[Any, Any] = {}  # programs on devices: tiling/elsewhere.py
        self._derivative: tuple[Callable[..., Any], Callable[..., Any]] | None = None
        functools.update_wrapper(self, fn)

    @property
    def declared(self) -> Declared:
        if self._declared is None:
            self._declared = read(self.function)
        return self._declared

    def with_schedule(self, schedule: Any) -> Kernel:
        """The same kernel under further decisions: a :class:`Schedule`, a mapping, or an object with such attributes."""
        return Kernel(self.function, self.schedule | as_schedule(schedule))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from ..tracing.recorder import STATE
        if tracing():
            return KernelMachinery.callee(self)(*args, **kwargs)
        tensors, static = self._arguments(args, kwargs)
        if STATE.trace is not None:
            return self._record(STATE.trace, tensors, static) if self._derivative is None else self._with_rule(tensors, static)
        return self._run(tensors, static)

    def defvjp(self, fwd: Callable[..., Any], bwd: Callable[..., Any]) -> Kernel:
        """Give the kernel a derivative: ``fwd(*tensors)`` returns (what the kernel writes, residuals), ``bwd(residuals, cotangent)`` a
        cotangent for each tensor argument, None for those that are only written.  Returns the kernel."""
        for f in (fwd, bwd):
            if not callable(f):
                raise KernelError(f"defvjp() takes two functions, not a {type(f).__name__}")
        self._derivative = fwd, bwd
        return self

    def _with_rule(self, tensors: Mapping[str, Any], static: Mapping[str, Any]) -> Any:
        from ..tracing.tensor import Tensor
        from ..transforms.custom import custom_vjp
        assert self._derivative is not None
        given = {n: t if isinstance(t, Tensor) else Tensor(t) for n, t in tensors.items()}

        def plain(*xs: Any) -> Any:
            from ..tracing.recorder import STATE
            return self._record(STATE.trace, dict(zip(given, xs, strict=True)), static)

        plain.__name__ = self.function.__name__
        out = custom_vjp(plain).defvjp(*self._derivative)(*given.values())
        built = self.build({n: t.type for n, t in given.items()}, static, specialize=False)
        for i, r in zip(built.writes, out if isinstance(out, tuple) else (out,), strict=True):
            given[built.names[i]]._p = r._p
        return out

    # -- arguments -------------------------------------------------------------------------------------------------------
    def _arguments(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Tensors and static values by parameter name.

        Raises:
            KernelError: missing or unknown arguments, or something else where a Tile is declared.
        """
        from ..tracing.tensor import Tensor
        try:
            bound = self.declared.signature.bind(*args, **kwargs)
        except TypeError as e:
            name, known = self.function.__name__, list(self.declared.signature.parameters)
            wrong = next((k for k in kwargs if k not in known), None)  # a typing error matters more than what lacks for it
            what = e if wrong is None else f"got an unexpected keyword argument {wrong!r}{suggest(wrong, known)}"
            raise KernelError(f"the kernel {name!r}: {what}", expected=f"{name}{self.declared.signature}") from None
        bound.apply_defaults()
        tensors: dict[str, Any] = {}
        static: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            if isinstance(value, Tensor | np.ndarray):
                tensors[name] = value
            elif name in self.declared.specs:
                raise KernelError(f"the kernel {self.function.__name__!r} takes {name!r} as {self.declared.specs[name]}, not a "
                                  f"{type(value).__name__}", hints=["pass a tensor or a NumPy array"])
            else:
                static[name] = value
        return tensors, static

    # -- building --------------------------------------------------------------------------------------------------------
    def build(self, args: Mapping[str, TensorType], static: Mapping[str, Any] | None = None, specialize: bool = True) -> Built:
        """The Tile function for parameters of the given types.

        Args:
            specialize: replace numeric sizes by names where the body allows it, so that one program serves all sizes.

        Raises:
            KernelError, ShapeError, DTypeError: the arguments or the body do not fit.
        """
        static = dict(static or {})
        key: Any = (tuple(args.items()), _values(static), specialize)
        try:
            found = self._built.get(key)
        except TypeError:
            key, found = None, None
        if found is not None:
            return found
        made = self._build(bind(self.declared, self.function.__name__, args), static, specialize)
        if key is not None:
            self._built[key] = made
        return made

    def _build(self, bound: dict[str, Bound], static: dict[str, Any], specialize: bool) -> Built:
        frozen: frozenset[str] = frozenset()
        serial: frozenset[int] = frozenset()
        volatile: frozenset[int] = frozenset()
        for _ in range(64):
            params = symbolic(bound, frozen) if specialize else bound
            memo = (tuple(params.items()), _values(static), serial, volatile) if _hashable(static) else None
            known = self._built.get(memo) if memo is not None else None
            if known is not None:
                return known
            try:
                made = self._trace(params, static, serial, volatile)
            except Demand as d:
                key = d.key.rstrip("'")
                if key in frozen or not specialize:
                    raise self._not_static(key, params) from None
                frozen |= {key}
                continue
            except _Serial as again:
                serial |= {again.number}
                continue
            except Volatile as memory:
                volatile |= {memory.number}
                continue
            if memo is not None:
                self._built[memo] = made
            return made
        raise KernelError(f"the kernel {self.function.__name__!r} does not settle")

    def _not_static(self, key: str, params: Mapping[str, Bound]) -> KernelError:
        where = next((f"{p}.shape[{b.keys.index(key)}]" for p, b in params.items() if key in b.keys), key)
        return KernelError(f"a tile shape must be static: {where} is symbolic here", expected="a number", received=where, hints=[
            "declare the size as a number in the traced function's annotation", "use a fixed tile shape and a loop over tile.range"])

    def _trace(self, params: dict[str, Bound], static: Mapping[str, Any], serial: frozenset[int],
               volatile: frozenset[int]) -> Built:
        sizes: dict[str, None] = {}
        for b in params.values():
            for d in b.type.shape:
                if isinstance(d, Dim):
                    sizes.update(dict.fromkeys(sorted(d.names)))
        prog = KernelProgram(self.function.__name__, params, tuple(sizes), self.tiles, serial, volatile)
        body = rewritten(self.function, KernelMachinery, True)
        with prog:
            prog.active.append(self.function.__code__)
            try:
                returned = body(**prog.params, **static)
            except PLAIN as e:
                wrong = explained(e, _operation)
                if wrong is None:
                    raise
                raise wrong from e
        outputs = [p for p in prog.params.values() if p.buffer.value in prog.written]
        self._check(prog, outputs, returned)
        fn = prog.finish()
        return Built(fn, tuple(params), tuple(fn.attrs["writes"]), params, prog.spans)

    def _check(self, prog: KernelProgram, outputs: list[Param], returned: Any) -> None:
        """Every program must write places of its own."""
        if not outputs:
            raise KernelError(f"the kernel {self.function.__name__!r} writes nothing", loc=self._loc(),
                              hints=["store results with tile.store(O, value)"])
        if returned is not None and not isinstance(returned, Param | Register | Window):
            raise KernelError(f"the kernel {self.function.__name__!r} returns a {type(returned).__name__}; kernels write their results",
                              loc=self._loc(), hints=["tile.store(O, value) to an output parameter"])
        if not prog.fn.attrs["grid"]:
            prog.fn.attrs["grid"] = (1,)
        for loop in prog.spread:
            if loop.leaves_out_effects(prog) or (loop.carries and loop.stores_all(prog)):
                raise _Serial(loop.number)
        params = {p.buffer.value for p in prog.params.values()}
        for key, axis in prog.grid_keys.items():
            for op in prog.fn.walk():
                if op.name in WRITES - {"atomic"} and written(op) in params and not _depends(op, axis):
                    around = next((s for s in prog.spread if s.axis == axis), None)
                    raise self._collision(key, op) if around is None else _Serial(around.number)

    def _collision(self, key: str, op: Op) -> KernelError:
        name = plain(key)
        return KernelError(f"programs at different positions along {name} write the same place", loc=op.loc,
                           sentence=f"The grid runs over {name}, but this store does not depend on the position along it.",
                           hints=[f"loop over {name} inside the kernel: for i in tile.range(…)", "store to a parameter that has this axis"])

    def _loc(self) -> Loc:
        code = self.function.__code__
        return Loc(code.co_filename, 0, code.co_firstlineno)

    # -- running ---------------------------------------------------------------------------------------------------------
    def _run(self, tensors: Mapping[str, Any], static: Mapping[str, Any]) -> Any:
        from ..tracing.indexing import owned
        from ..tracing.tensor import Tensor
        results = self._nothing(tensors, static) or self._run_elsewhere(tensors, static)
        if results is None:
            own = {n for n, t in tensors.items() if not isinstance(t, Tensor) or (type(t._p) is np.ndarray and owned(t))}
            arrays = {n: np.asarray(t._concrete("a kernel call") if isinstance(t, Tensor) else t) for n, t in tensors.items()}
            built = self.build({n: _type_of(a) for n, a in arrays.items()}, static)
            env: dict[str, int] = {}
            for p in built.params.values():
                unify(p.type.shape, arrays[p.name].shape, env)
            buffers = [_dense(arrays[n], i in built.writes, n in own) for i, n in enumerate(built.names)]
            if all(b.size for i, b in enumerate(buffers) if i in built.writes):
                launch(built.function, buffers, env)
            results = [_write_back(tensors[built.names[i]], buffers[i]) for i in built.writes]
        return results[0] if len(results) == 1 else tuple(results)

    def _nothing(self, tensors: Mapping[str, Any], static: Mapping[str, Any]) -> list[Any] | None:
        """The written arguments, where all of them are empty; what the kernel writes is asked of one with sizes 1 for 0."""
        if all(t.size for t in tensors.values()):
            return None
        types_ = {n: t.type if hasattr(t, "_p") else _type_of(t) for n, t in tensors.items()}
        built = self.build({n: t.with_shape([d or 1 for d in t.shape]) for n, t in types_.items()}, static)
        written = [tensors[built.names[i]] for i in built.writes]
        return None if any(t.size for t in written) else written

    def _run_elsewhere(self, tensors: Mapping[str, Any], static: Mapping[str, Any]) -> list[Any] | None:
        """Run it on the device that holds the arguments; None: on the CPU.

        Raises:
            DeviceError: they are on different devices.
        """
        from .elsewhere import computed, device_of_call, started
        device = device_of_call(tensors)
        if device is None:
            return None
        build = functools.partial(self.build, static=static)
        out = started(device, tensors, build)
        if out is None:
            key = _values(static) if _hashable(static) else None
            out = computed(device, tensors, functools.partial(build, specialize=False), lambda trace, given: self._record(
                trace, given, static), self._elsewhere, key)
        return out

    def _record(self, trace: Any, tensors: Mapping[str, Any], static: Mapping[str, Any]) -> Any:
        """Record a ``kernel_call``; written arguments become its results."""
        from ..tracing.tensor import Tensor, Traced
        given = {n: t if isinstance(t, Tensor) else Tensor(t) for n, t in tensors.items()}
        built = self.build({n: t.type for n, t in given.items()}, static, specialize=False)
        name = _enter(trace.function.functions, built.function)
        results = trace.structured("kernel_call", [given[n] for n in built.names], [given[built.names[i]].type for i in built.writes],
                                   {"callee": name, "writes": built.writes}, ())
        for i, r in zip(built.writes, results, strict=True):
            target = given[built.names[i]]
            if type(target._p) is Traced and target._p.trace is trace:
                target._p = r._p
        return results[0] if len(results) == 1 else tuple(results)

    # -- what it does, without running it --------------------------------------------------------------------------------
    def example(self, *args: Any, **kwargs: Any) -> Kernel:
        """Keep arguments for what needs some: the counts, :meth:`run` and the autotuner.  Returns the kernel.

        Raises:
            KernelError: the arguments do not fit the parameters.
        """
        self._arguments(args, kwargs)
        self._example = args, kwargs
        return self

    def _instance(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Built, dict[str, int], dict[str, TensorType]]:
        """(Tile function, sizes, argument types) for these arguments, else for the example's."""
        if not args and not kwargs:
            if self._example is None:
                raise KernelError(f"the kernel {self.function.__name__!r} has no example arguments",
                                  hints=["pass arguments", "give some once: k.example(A, B, C)"])
            args, kwargs = self._example
        tensors, static = self._arguments(args, kwargs)
        given = {n: t.type if hasattr(t, "_p") else _type_of(t) for n, t in tensors.items()}
        built = self.build(given, static)
        env: dict[str, int] = {}
        for p in built.params.values():
            unify(p.type.shape, given[p.name].shape, env)
        return built, env, given

    def count_flops(self, *args: Any, **kwargs: Any) -> int:
        """Floating-point operations of one call (2 m n k for a product of m x k and k x n), counted on the Tile function.

        Raises:
            KernelError: without arguments, no example was given.
        """
        built, env, _ = self._instance(args, kwargs)
        return count_flops(built.function, env, built.spans)

    def count_memory_bytes(self, *args: Any, **kwargs: Any) -> int:
        """The fewest bytes that one call moves: every argument once, and once more where it is read and written."""
        built, _, given = self._instance(args, kwargs)
        buffers = dict(zip(built.names, built.function.args))
        read = {op.operands[0] for op in built.function.walk() if op.name in ("load", "gather")}
        total = 0
        for i, n in enumerate(built.names):
            nbytes = int(given[n].size) * given[n].dtype.itemsize
            total += nbytes * (1 + (i in built.writes and buffers[n] in read))
        return total

    def arithmetic_intensity(self, *args: Any, **kwargs: Any) -> float:
        """Floating-point operations per byte moved."""
        return self.count_flops(*args, **kwargs) / max(1, self.count_memory_bytes(*args, **kwargs))

    def memory_access_pattern(self, *args: Any, **kwargs: Any) -> str:
        """"coalesced", "strided" or "gather": how neighbouring lanes walk global memory."""
        return access_pattern(self._instance(args, kwargs)[0].function)

    def access_report(self, *args: Any, **kwargs: Any) -> list[Access]:
        """How well each access uses memory, 32 lanes at a time, in the first block (the arguments are not changed)."""
        if not args and not kwargs:
            self._instance((), {})
            args, kwargs = self._example  # type: ignore[misc]
        tensors, static = self._arguments(args, kwargs)
        arrays = {n: np.asarray(t) for n, t in tensors.items()}
        built = self.build({n: _type_of(a) for n, a in arrays.items()}, static)
        env: dict[str, int] = {}
        for p in built.params.values():
            unify(p.type.shape, arrays[p.name].shape, env)
        return analyze(built.function, [np.ascontiguousarray(arrays[n]) for n in built.names], env)

    def run(self, schedule: Any = None) -> Any:
        """Run the kernel on its example arguments, under further decisions.

        Raises:
            KernelError: no example was given (:meth:`example`).
        """
        if self._example is None:
            self._instance((), {})
        args, kwargs = self._example  # type: ignore[misc]
        return (self if schedule is None else self._under(as_schedule(schedule)))(*args, **kwargs)

    def _under(self, schedule: Schedule) -> Kernel:
        """The kernel under further decisions; the same one for equal schedules, with what it has built."""
        made = self._variants.get(schedule)
        if made is None:
            made = self._variants[schedule] = self.with_schedule(schedule)
        return made

    def tile_ir(self, *args: Any, **kwargs: Any) -> str:
        """The text of the Tile function for these arguments."""
        tensors, static = self._arguments(args, kwargs)
        types_ = {n: t.type if hasattr(t, "_p") else _type_of(t) for n, t in tensors.items()}
        return str(self.build(types_, static).function)

    def __repr__(self) -> str:
        return f"<kernel {self.function.__name__}>"


class _Serial(Exception):
    """The outermost loop cannot be spread over the grid."""

    def __init__(self, number: int):
        super().__init__(number)
        self.number = number


class Built:
    """One Tile function of a kernel: parameter names in order, which are written, and which grid axes walk in windows."""

    __slots__ = ("function", "names", "params", "spans", "writes")

    def __init__(self, function: Function, names: tuple[str, ...], writes: tuple[int, ...], params: Mapping[str, Bound],
                 spans: Mapping[int, tuple[DimLike, int]]):
        self.function, self.names, self.writes, self.params, self.spans = function, names, writes, params, spans


def _values(static: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple((n, value_key(v)) for n, v in static.items())


def _hashable(static: Mapping[str, Any]) -> bool:
    try:
        hash(_values(static))
    except TypeError:
        return False
    return True


def _type_of(a: np.ndarray[Any, Any]) -> TensorType:
    from ..types.dtypes import as_dtype
    return TensorType(as_dtype(a.dtype), tuple(a.shape))


def _dense(a: np.ndarray[Any, Any], written: bool, own: bool) -> np.ndarray[Any, Any]:
    """The array as a kernel takes it; one that it writes and other tensors share is copied, because tensors are values."""
    if a.flags.c_contiguous and (not written or (own and a.flags.writeable)):
        return a
    return np.array(a, order="C", copy=True)


def _write_back(target: Any, buffer: np.ndarray[Any, Any]) -> Any:
    """Give an output argument its new contents."""
    if not isinstance(target, np.ndarray):
        target._p = buffer
    elif buffer is not target:
        target[...] = buffer
    return target


def launch(fn: Function, buffers: list[np.ndarray[Any, Any]], sizes: dict[str, int]) -> None:
    """Run a Tile function on arrays, in place: by the compiler where there is one, else by the tile interpreter, which also runs what is
    written for the warp groups of a GPU."""
    from ..tracing import eager
    if eager.COMPILER is not None and not is_explicit_program(fn):
        eager.COMPILER.launch(fn, buffers)
    else:
        interpret_tile.run(fn, buffers, sizes)


def _enter(functions: dict[str, Function], fn: Function) -> str:
    """Enter a Tile function under a free name, which it then also bears; equal ones share one entry."""
    copies = _RENAMED.setdefault(fn, {})
    name, n = fn.name, 0
    while functions.get(name) not in (None, fn, copies.get(name)):
        n += 1
        name = f"{fn.name}_{n}"
    if name != fn.name and name not in copies:
        copies[name] = rewrite(fn)
        copies[name].name = name
    functions[name] = copies.get(name, fn)
    return name


_RENAMED: WeakKeyDictionary[Function, dict[str, Function]] = WeakKeyDictionary()
"""Copies of Tile functions under other names: a program may call two kernels of one name."""


def _operation(called: str) -> tuple[str, Any] | None:
    """What the tile language calls a function that Python calls ``called`` (``Group.shuffle``), and the function."""
    import importlib
    here = vars(importlib.import_module("tessera.tile"))
    *owner, name = called.split(".")
    if not owner:
        return (name, here[name]) if callable(here.get(name)) else None
    for group, held in here.items():
        if group[0] != "_" and owner[-1] in [c.__name__ for c in type(held).__mro__] and hasattr(held, name):
            return f"{group}.{name}", getattr(held, name)
    return None


def _depends(store: Op, axis: int) -> bool:
    """True when where a store goes depends on the program's position along a grid axis."""
    at = store.operands.index(written(store)) + 1
    rank = 1 if store.name == "scatter" else written(store).type.rank
    stack: list[Value] = list(store.operands[at:at + rank])
    seen: set[Value] = set()
    while stack:
        v = stack.pop()
        if v in seen:
            continue
        seen.add(v)
        op = v.op
        if op is None:
            continue
        if op.name == "program_id" and op.attrs["axis"] == axis:
            return True
        stack += op.operands
        for b in op.blocks:
            stack += b.terminator.operands if b.ops else []
    return False


def tiles_of(schedule: Schedule) -> dict[str, int]:
    """The default tile extents under a schedule."""
    return {short: n for short, n in (("M", schedule.tile_m), ("N", schedule.tile_n), ("K", schedule.tile_k)) if n is not None}


def kernel(fn: Callable[..., Any] | None = None, *, schedule: Any = None, **fields: Any) -> Any:
    """Decorator: a function over tile parameters as a kernel.

        @ts.kernel
        def add(A: ts.Tile["N", ts.f32], B: ts.Tile["N", ts.f32], C: ts.Tile["N", ts.f32]):
            tile.store(C, A + B)

    Args:
        schedule: a :class:`Schedule`, a mapping or an object with such attributes; its fields may also be given as keywords,
            which win.

    Raises:
        KernelError: the function is not a plain ``def``.
        ArgumentError: a schedule has no such field, or a value is out of range.
    """
    config = (as_schedule(schedule) if schedule is not None else Schedule()) | Schedule(**fields)

    def make(f: Callable[..., Any]) -> Kernel:
        return Kernel(f, config)

    return make if fn is None else make(fn)


def with_schedule(schedule: Any) -> Callable[[Callable[..., Any]], Kernel]:
    """``@ts.kernel.with_schedule(schedule)``: a kernel under a schedule."""
    return kernel(schedule=schedule)  # type: ignore[no-any-return]


kernel.with_schedule = with_schedule  # type: ignore[attr-defined]

__all__ = ["Kernel", "Tile", "Tile3D", "TileRange", "TileSpec", "kernel", "launch"]
