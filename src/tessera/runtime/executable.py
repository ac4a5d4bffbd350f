"""Running a compiled program.

The first call with new sizes makes a :class:`Plan`: the numbers behind every size expression, and frames prepared for
native code.  A later call allocates the outputs, takes a frame, and makes one native call, which checks the arrays
itself; a call of a tiny program costs about a microsecond.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..errors import CompileError, DTypeError, NumericalError, ShapeError
from ..ir.core import BufferType
from ..ops.table import OPS
from ..targets.cpu import abi, frame, pool
from ..targets.cpu.loader import Image, load
from ..targets.cpu.pool import Native, aligned_bytes
from ..tracing.dense import dense
from ..types.dims import DimLike, evaluate
from ..types.dtypes import DType
from ..types.shapes import format_shape, unify
from .allocator import ALLOCATOR, LARGE
from .failures import Source, raise_failure
from .manifest import Manifest, buffer_type, size

Array = np.ndarray[Any, Any]

QUICK_WORK = 1 << 15  # element operations below which the interpreter's lock is not worth releasing
MOST_PATIENCE = 1 << 14  # pauses: how long a call waits for a thread to wake up, about half of the work's own time
KEPT_ARENA = 1 << 20  # bytes of temporaries that a resting frame may hold
MAX_PLANS = 1024

_KNOWN_LAYOUT = frame.layout_is_known()
_HOST_TYPE = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)


class Frame:
    """The native memory of one call, and everything it points to."""

    __slots__ = ("address", "arena", "buffers", "error", "memory", "plan")

    def __init__(self, plan: Plan):
        self.memory, self.address = aligned_bytes(frame.FRAME_BYTES)
        self.arena: Any = None
        self.error: BaseException | None = None
        self.buffers = (ctypes.c_uint64 * max(1, len(plan.arrays)))()
        self.plan = plan
        put = self.put
        put(abi.BUFFERS, ctypes.addressof(self.buffers))
        put(abi.SIZES, ctypes.addressof(plan.sizes))
        put(frame.PROGRAM, plan.program)
        put(frame.POOL_CELL, pool.cell_address())
        put(frame.PARALLEL, plan.parallel)
        put(frame.PATIENCE, plan.patience)
        put(frame.COUNT, len(plan.arrays))
        put(frame.EXPECT, ctypes.addressof(plan.expect))
        put(frame.ARRAY_TYPE, id(np.ndarray))
        put(frame.HANDLE, id(self))
        put(frame.HOST, _HOST_ADDRESS)
        if plan.arena and plan.arena <= KEPT_ARENA:
            self.take_arena(plan.arena)

    def put(self, offset: int, value: int) -> None:
        ctypes.c_uint64.from_address(self.address + offset).value = value

    def get(self, offset: int) -> int:
        return ctypes.c_uint64.from_address(self.address + offset).value

    def take_arena(self, nbytes: int) -> None:
        if nbytes >= LARGE:
            self.arena = ALLOCATOR.block(nbytes)
            address = ctypes.addressof(self.arena)
        else:
            self.arena, address = aligned_bytes(nbytes)
        self.put(abi.ARENA, address)


class Plan:
    """A program under one binding of its sizes.

    Attributes:
        env: the sizes.
        arrays: (dtype, shape) of every array, inputs then outputs.
        outputs: (shape, numpy dtype, bytes) of each output.
        patience: how long the caller waits for the pool's threads to wake up before it goes on without them.
        parallel: 1 where some launch is worth sharing out.
        frames: prepared frames that no call is using.
    """

    def __init__(self, exe: Executable, env: dict[str, int]):
        m = exe.manifest
        self.env = env
        self.executable = exe
        self.arrays = [(t.dtype, tuple(evaluate(d, env) for d in t.shape)) for t in (*exe.inputs, *exe.outputs)]
        self.outputs = [(shape, t.np, t.itemsize * _count(shape)) for t, shape in self.arrays[len(exe.inputs):]]
        self.small = not m.aliases and all(n < LARGE for _, _, n in self.outputs)
        self.sizes = (ctypes.c_int64 * max(1, len(m.sizes)))(*[env[n] for n in m.sizes])
        self.arena = evaluate(exe.arena, env)
        work = [evaluate(w, env) for w in exe.work]
        self.parallel = int(any(w >= m.serial for w in work))
        self.patience = min(sum(work) >> 13, MOST_PATIENCE)
        self.program = exe.image.symbols["program"]
        self.shapes = [(ctypes.c_int64 * max(1, len(s)))(*s) for _, s in self.arrays]
        self.expect = (ctypes.c_int64 * (4 * max(1, len(self.arrays))))()
        self.dtypes = [t.np for t, _ in self.arrays]
        for i, (_, shape) in enumerate(self.arrays):
            written = frame.WRITEABLE if i >= len(exe.inputs) or i in m.donated else 0
            flags = frame.C_CONTIGUOUS | frame.ALIGNED | written
            self.expect[4 * i:4 * i + 4] = [id(self.dtypes[i]), len(shape), flags, ctypes.addressof(self.shapes[i])]
        native = exe.native
        quick = not self.parallel and not m.waits and sum(work) < QUICK_WORK
        self.call = native.quick if quick else native.call
        self.frames: list[Frame] = []

    def new_frame(self) -> Frame:
        return Frame(self)


def _count(shape: tuple[int, ...]) -> int:
    n = 1
    for d in shape:
        n *= d
    return n


class Executable:
    """A compiled program.  ``executable(arrays)`` runs it on numpy arrays and returns its results.

    Args:
        manifest: what it is.
        objects: its object files: kernels and the program.
        native: the pool's code.
        source: where it came from, for errors and for showing the stages.
    """

    def __init__(self, manifest: Manifest, objects: Sequence[bytes], native: Native, source: Source):
        self.manifest, self.native, self.source = manifest, native, source
        self.image: Image = load(objects, native.symbols)
        self.inputs: list[BufferType] = [buffer_type(f) for f in manifest.inputs]
        self.outputs: list[BufferType] = [buffer_type(f) for f in manifest.outputs]
        self.arena: DimLike = size(manifest.arena)
        self.work: list[DimLike] = [size(w) for w in manifest.work]
        self._aliases: dict[int, int] = dict(manifest.aliases)
        self._externals = [(name, [buffer_type(f) for f in types], attrs) for name, types, attrs in manifest.externals]
        self._plans: dict[Any, Plan] = {}
        self._only = Plan(self, {}) if not manifest.sizes else None

    def __del__(self, finalizing: Any = sys.is_finalizing) -> None:
        """Unmap the code.  Nobody is inside: a call holds a reference, and workers have left when it returns."""
        image = getattr(self, "image", None)
        if image is not None and not finalizing():
            image.close()

    # -- calling -------------------------------------------------------------------------------------------------------
    def __call__(self, arrays: Sequence[Array]) -> list[Array]:
        """Run on ``arrays``, one for each input.  The arrays of donated inputs are overwritten.

        Raises:
            ShapeError, DTypeError: an array is not what the program was compiled for.
            TesseraError: a run-time check failed (division by zero, an index out of range …).
        """
        plan = self._only
        if plan is None:
            plan = self._plans.get(tuple([a.shape for a in arrays])) or self._bind(arrays)
        if plan.small:
            outs = [np.empty(s, d) for s, d, _ in plan.outputs]
        else:
            outs = self._allocate(plan, arrays)
        if plan.parallel:
            pool.ensure_started()
        try:
            f = plan.frames.pop()
        except IndexError:
            f = plan.new_frame()
        if plan.arena > KEPT_ARENA:
            f.take_arena(plan.arena)
        if _KNOWN_LAYOUT:
            code = plan.call(f.address, (*arrays, *outs))
        else:
            code = self._run_by_addresses(plan, f, arrays, outs)
        if code or self.manifest.waits:
            self._settle(code, plan, f, arrays, outs)
        if plan.arena > KEPT_ARENA:
            f.arena = None
        plan.frames.append(f)
        return outs

    def _allocate(self, plan: Plan, arrays: Sequence[Array]) -> list[Array]:
        """The results' arrays: new ones, and donated inputs for the results that are made in their memory."""
        taken = self._aliases
        return [ALLOCATOR.empty(s, d, n) if k not in taken else arrays[taken[k]] for k, (s, d, n) in enumerate(plan.outputs)]

    def _settle(self, code: int, plan: Plan, f: Frame, arrays: Sequence[Array], outs: list[Array]) -> None:
        """After a call that did not simply succeed, or that Python had a part in."""
        if code == frame.WRONG_ARRAY:
            code = self._run_by_addresses(plan, f, arrays, outs)
        error, f.error = f.error, None
        if error is not None:
            raise error
        if f.get(frame.ERROR):
            _raise_stored(f)
        if f.get(frame.STOP) == frame.IN_HOST:  # a signal came before the routine's first instruction
            raise KeyboardInterrupt
        if code == frame.CHECK_FAILED:
            failed = abi.status_of(f.get(abi.STATUS))
            if plan.arena > KEPT_ARENA:
                f.arena = None
            plan.frames.append(f)
            if failed is not None:
                raise_failure(self.manifest, self.source, plan.env, *failed)
            raise CompileError("a program ended with an unknown status")

    def _run_by_addresses(self, plan: Plan, f: Frame, arrays: Sequence[Array], outs: list[Array]) -> int:
        fixed = self._conform(plan, arrays)
        for result, source in self._aliases.items():
            outs[result] = fixed[source]
        for i, a in enumerate((*fixed, *outs)):
            f.buffers[i] = a.__array_interface__["data"][0]
        code: int = self.native.run(f.address)
        return code

    def _conform(self, plan: Plan, arrays: Sequence[Array]) -> list[Array]:
        """The arrays as dense, aligned, native ones of the right type.

        Raises:
            DTypeError, ShapeError: an array is of another type or shape.
        """
        self._check_count(arrays)
        out = []
        for i, (a, (dtype, shape)) in enumerate(zip(arrays, plan.arrays, strict=False)):
            a = np.asarray(a)
            if a.dtype != dtype.np:
                raise DTypeError(f"argument {i} of {self.manifest.name!r} has another element type",
                                 expected=str(dtype), received=str(a.dtype))
            if a.shape != shape:
                raise self._shape_error(i, a)
            out.append(np.require(a, dtype.np, ["C", "A", "W"]) if i in self.manifest.donated else dense(a))
        return out

    def _check_count(self, arrays: Sequence[Array]) -> None:
        if len(arrays) != len(self.inputs):
            raise ShapeError(f"{self.manifest.name!r} takes {len(self.inputs)} arrays, not {len(arrays)}")

    def _shape_error(self, i: int, a: Array) -> ShapeError:
        return ShapeError(f"argument {i} of {self.manifest.name!r} has another shape",
                          expected=f"{self.inputs[i].dtype}{format_shape(self.inputs[i].shape)}",
                          received=f"{a.dtype}{list(a.shape)}")

    # -- sizes ---------------------------------------------------------------------------------------------------------
    def _bind(self, arrays: Sequence[Array]) -> Plan:
        """The plan for new shapes."""
        self._check_count(arrays)
        env: dict[str, int] = {}
        wrong: list[int] = []
        for _ in range(2):  # a compound size may come before the names it is made of
            wrong = [i for i, (t, a) in enumerate(zip(self.inputs, arrays, strict=True))
                     if t.rank != a.ndim or unify(t.shape, a.shape, env) is not None]
        if wrong:
            raise self._shape_error(wrong[0], arrays[wrong[0]])
        missing = [n for n in self.manifest.sizes if n not in env]
        if missing:
            raise ShapeError(f"no argument of {self.manifest.name!r} tells the size {missing[0]!r}")
        plan = Plan(self, env)
        if len(self._plans) >= MAX_PLANS:
            self._plans.clear()
        self._plans[tuple([a.shape for a in arrays])] = plan  # two threads may both make one: either serves
        return plan

    # -- host routines ---------------------------------------------------------------------------------------------------
    def run_external(self, call: int, plan: Plan, pointers: int) -> None:
        """Run host routine number ``call`` on the buffers at ``pointers``.

        Raises:
            NumericalError: the routine gives up, such as an iteration that does not converge.
        """
        op, types, attrs = self._externals[call]
        addresses = (ctypes.c_uint64 * len(types)).from_address(pointers)
        arrays = [_array_at(address, t.dtype, tuple(evaluate(d, plan.env) for d in t.shape))
                  for address, t in zip(addresses, types, strict=True)]
        values = _attributes(attrs, plan.env)
        outs = values.pop("outs")
        try:
            got = OPS[op].reference(*[a for i, a in enumerate(arrays) if i not in outs], **values)
        except np.linalg.LinAlgError as e:
            raise NumericalError(f"{op}: {e}") from None
        for i, result in zip(outs, got if isinstance(got, tuple) else (got,), strict=True):
            arrays[i][...] = result

    # -- showing -------------------------------------------------------------------------------------------------------
    @property
    def schedule_ir(self) -> str:
        """Schedule IR, as text."""
        return self.source.text("sched")

    @property
    def tile_ir(self) -> str:
        """Tile IR of every kernel, as text."""
        return self.source.text("tile")

    @property
    def target_ir(self) -> str:
        """LLVM IR of every kernel and of the program, as text."""
        return self.source.text("ll")

    @property
    def kernels(self) -> tuple[str, ...]:
        """The names of the compiled kernels."""
        return tuple(dict.fromkeys(k for _, k in self.manifest.launches))

    def explain(self) -> str:
        """What the compiler did: launches, kernels, memory, time."""
        m = self.manifest
        kernels = dict.fromkeys(k for _, k in m.launches)
        lines = [f"{m.operations} operations in {len(m.launches)} launches of {len(kernels)} kernels",
                 f"temporaries: {m.arena} bytes in one arena"]
        lines += [f"  {name}: {kernel}" for name, kernel in m.launches]
        return "\n".join(lines + self.source.report())


def _attributes(text: str, env: dict[str, int]) -> dict[str, Any]:
    from ..ir.text import _Parser

    def value(v: Any) -> Any:
        if isinstance(v, tuple):
            return tuple(value(x) for x in v)
        return evaluate(v, env) if hasattr(v, "terms") else v

    return {k: value(v) for k, v in _Parser(text).attrs().items()}


def _array_at(address: int, dtype: DType, shape: tuple[int, ...]) -> Array:
    n = dtype.itemsize * _count(shape)
    if n == 0:
        return np.empty(shape, dtype.np)
    return np.ndarray(shape, dtype.np, memoryview((ctypes.c_char * n).from_address(address)))


def _host(handle: int, call: int, pointers: int | None) -> None:
    """Called by native code, on the thread that called the program."""
    try:
        f = ctypes.cast(handle, ctypes.py_object).value
        if f.error is None:
            f.plan.executable.run_external(call, f.plan, pointers or 0)
            f.put(frame.STOP, 0)
    except BaseException as e:
        f = ctypes.cast(handle, ctypes.py_object).value
        f.error = e
        f.put(frame.STOP, frame.HOST_FAILED)


_HOST_CALLBACK = _HOST_TYPE(_host)
_HOST_ADDRESS = ctypes.cast(_HOST_CALLBACK, ctypes.c_void_p).value or 0
_restore = ctypes.PYFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)(("PyErr_Restore", ctypes.pythonapi))


def _raise_stored(f: Frame) -> None:
    """Raise the exception that a signal handler left while native code looked for signals."""
    words = [f.get(frame.ERROR + 8 * i) for i in range(3)]
    for i in range(3):
        f.put(frame.ERROR + 8 * i, 0)
    _restore(*words)
