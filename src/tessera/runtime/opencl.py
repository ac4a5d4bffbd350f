"""Programs on Intel's OpenCL devices: Schedule programs as launches on one queue in order.

The first call with new sizes makes a :class:`Plan`: every launch with its kernel, its grid and where its buffers lie (an argument,
the arena, a constant).  Control flow is the host's: it reads the flag that decides.  Routines of the host (LAPACK) copy their
operands to the host and the results back.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import CompileError, DeviceError, DTypeError, ShapeError
from ..ir.core import BufferType, Function, Loc, Op
from ..ir.text import print_function
from ..machine.simt import SimtMachine
from ..targets.cpu import abi
from ..targets.cpu.program import _callee_sizes, arena_bytes, reachable
from ..targets.intel.emit import lower
from ..targets.intel.opencl import Block as Memory
from ..targets.intel.opencl import OpenCL, devices
from ..targets.simt.emit import Module
from ..tiling.assign import assign_layouts
from ..tracing.placed import DeviceArray, placed_dtype, stored
from ..types.dims import evaluate, product
from ..types.dtypes import DType, as_dtype
from ..types.shapes import unify
from . import plans
from .cache import key_of, source_hash
from .failures import check_number, raise_failure
from .manifest import Manifest
from .plans import Ref, Step

Array = np.ndarray[Any, Any]


class IntelArray(DeviceArray):
    """Memory of an OpenCL device."""

    __slots__ = ("memory", "opencl")

    def __init__(self, compiler: IntelCompiler, dtype: DType, shape: tuple[int, ...]):
        self.opencl, self.shape, self.dtype = compiler.device, shape, placed_dtype(dtype, compiler.name)
        self.memory = compiler.device.allocate(self.nbytes)
        self.pointer = self.memory.address

    def to_host(self) -> Array:
        kind = self.dtype.dtype
        out = np.empty(self.shape, stored(kind))
        self.opencl.read(self.pointer, out)
        return out if out.dtype == kind.np else out.astype(kind.np)


def upload(a: Array, device: str) -> IntelArray:
    """A copy of a host array on a device."""
    dtype = as_dtype(a.dtype)
    out = IntelArray(compiler(device), dtype, a.shape)
    out.opencl.write(out.pointer, a.astype(stored(dtype), copy=False))
    return out


@dataclass
class Kernel:
    """One launch's code: the tile function with its layouts, its module, and, once loaded, the device's handle."""

    tile: Function
    module: Module
    code: bytes | Future[bytes]
    handle: Any = None

    def blocks(self, env: Mapping[str, int], machine: SimtMachine) -> int:
        n = int(evaluate(product(self.tile.attrs["grid"]), dict(env)))
        return min(n, machine.resident_blocks) if self.module.scratch else n


class IntelCompiler:
    """Compiles Graph functions for one OpenCL device.

    Args:
        number: which of Intel's devices, GPUs first.

    Raises:
        DeviceError: there is no such device.
    """

    def __init__(self, number: int = 0):
        found = devices()
        if number >= len(found):
            raise DeviceError(f"there is no device 'intel:{number}' here", expected=f"{len(found)} OpenCL devices of Intel",
                              hints=["pip install 'tessera-lang[intel]' brings the runtime that runs on CPUs"])
        self.name = f"intel:{number}"
        self.device = OpenCL(found[number])
        self.machine = self.device.machine
        self.kernels: dict[tuple[str, bool], Kernel] = {}

    def compile(self, fn: Function) -> Program:
        """An executable for a Graph function, or for one launch of a Tile function, which works on its buffers in place.

        Raises:
            CompileError, UnsupportedError: the program cannot be computed on this device.
        """
        return Program(self, fn)

    def kernel(self, tile: Function, aligned: bool) -> Kernel:
        """The kernel of a tile function, on its way through LLVM; equal functions share one."""
        key = (print_function(tile), aligned)
        found = self.kernels.get(key)
        if found is None:
            placed = assign_layouts(tile, self.machine)
            module = lower(placed, self.machine, aligned)
            found = self.kernels[key] = Kernel(placed, module, self._code(module))
        return found

    def _code(self, module: Module) -> bytes | Future[bytes]:
        """The SPIR-V of a module: from the disk cache, or from LLVM."""
        from . import host_compiler
        from .llvm_workers import Request
        host, m = host_compiler(), self.machine
        key = self._key(module)
        found = host.cache.get("kernels", key)
        if found is not None:
            return found
        future = host.llvm.submit(Request(module.text, m.triple, m.cpu, m.llvm_features, "obj", m.llvm_level, module.symbol))
        future.add_done_callback(lambda f: host.keep(key, f))
        return future

    def loaded(self, kernel: Kernel) -> Any:
        """The device's handle of a kernel: its machine code from the disk cache, or made from SPIR-V by the driver."""
        if kernel.handle is None:
            kernel.handle = self._load(kernel)
        return kernel.handle

    def _load(self, kernel: Kernel) -> Any:
        from . import host_compiler
        cache, symbol = host_compiler().cache, kernel.module.symbol
        key = key_of(self._key(kernel.module), self.device.key())
        held = cache.get("kernels", key)
        handle = None if held is None else self.device.load_binary(held, symbol)
        if handle is None:
            code = kernel.code if isinstance(kernel.code, bytes) else kernel.code.result()
            handle, binary = self.device.build(code, symbol)
            cache.put("kernels", key, binary)
        return handle

    def _key(self, module: Module) -> str:
        return key_of(source_hash(), self.machine.key(), module.text)


@functools.cache
def compiler(name: str = "intel:0") -> IntelCompiler:
    """The compiler for ``intel:0`` and the like."""
    return IntelCompiler(int(name.partition(":")[2] or 0))


class Program:
    """A compiled program: ``program(arrays)`` runs it on arrays of the device (or of the host, which are copied) and returns
    arrays of the device (of the host, where it was given none but those)."""

    def __init__(self, compiler: IntelCompiler, fn: Function):
        from ..scheduling import schedule
        from ..transforms.pipeline import optimize
        from .build import number_checks, one_launch
        self.compiler, self.fn = compiler, fn
        if fn.level == "tile":
            self.sched = one_launch(fn)
        else:
            self.sched = schedule(optimize(fn, compiler.machine), compiler.machine)
            number_checks(self.sched)
        f = self.sched
        n = f.attrs["inputs"]
        self.inputs: list[BufferType] = [a.type for a in f.args[:n] if isinstance(a.type, BufferType)]
        self.outputs: list[BufferType] = [a.type for a in f.args[n:]]
        self.aliases: dict[int, int] = dict(f.attrs.get("aliases", ()))
        self.in_place = tuple(fn.attrs["writes"]) if fn.level == "tile" else ()
        self.manifest = Manifest(fn.name, sizes=list(f.attrs.get("sizes", ())), checks=list(f.attrs.get("sites", ())))
        self.plans: dict[Any, Plan] = {}
        self._lowered: dict[tuple[Op, bool], Kernel] = {}

    # -- what it came from ---------------------------------------------------------------------------------------------------
    def text(self, stage: str) -> str:
        """A stage's artefact as text."""
        from .compiler import Compiler
        return Compiler(self.compiler.machine).show(self.fn, stage)

    @property
    def schedule_ir(self) -> str:
        """Schedule IR, as text."""
        return self.text("sched")

    @property
    def tile_ir(self) -> str:
        """Tile IR of every kernel, with its layouts, as text."""
        return self.text("tile")

    @property
    def target_ir(self) -> str:
        """LLVM IR of every kernel, as text."""
        return self.text("ll")

    def report(self) -> list[str]:
        return []

    def location(self, site: int) -> Loc | None:
        """The user's line behind a check."""
        return next((op.loc for f in reachable(self.sched) for op in f.walk() if check_number(op) == site), None)

    def kernel(self, f: Function, op: Op, aligned: bool) -> Kernel:
        """The kernel of a launch."""
        from .build import lower_launch
        found = self._lowered.get((op, aligned))
        if found is None:
            tile = lower_launch(f, op, self.compiler.machine, tuple(f.attrs.get("sizes", ())))
            tile.name = "kernel"
            found = self._lowered[op, aligned] = self.compiler.kernel(tile, aligned)
        return found

    # -- calling -------------------------------------------------------------------------------------------------------------
    def __call__(self, arrays: Sequence[Any]) -> list[Any]:
        """Run on ``arrays``, one for each input.

        Raises:
            ShapeError, DTypeError: an array is not what the program was compiled for.
            TesseraError: a run-time check failed.
        """
        key = tuple([a.shape for a in arrays])
        plan = self.plans.get(key)
        if plan is None:
            plan = self.plans[key] = Plan(self, self._bind(arrays))
        return plan(arrays)

    def _bind(self, arrays: Sequence[Any]) -> dict[str, int]:
        if len(arrays) != len(self.inputs):
            raise ShapeError(f"{self.fn.name!r} takes {len(self.inputs)} arrays, not {len(arrays)}")
        env: dict[str, int] = {}
        wrong: list[int] = []
        for _ in range(2):  # a compound size may come before the names it is made of
            wrong = [i for i, (t, a) in enumerate(zip(self.inputs, arrays, strict=True))
                     if t.rank != len(a.shape) or unify(t.shape, a.shape, env) is not None]
        if wrong:
            raise ShapeError(f"argument {wrong[0]} of {self.fn.name!r} has another shape", expected=str(self.inputs[wrong[0]]),
                             received=str(list(arrays[wrong[0]].shape)))
        return env


@dataclass
class Launch:
    """One launch of a plan."""

    kernel: Kernel
    blocks: int
    refs: list[Ref]
    sizes: list[int]


class Plan(plans.Plan[Launch]):
    """A program under one binding of its sizes."""

    def __init__(self, program: Program, env: dict[str, int]):
        self.program = program
        self.device, self.machine = program.compiler.device, program.compiler.machine
        f = program.sched
        self.results = [(t.dtype, tuple(int(evaluate(d, env)) for d in t.shape)) for t in program.outputs]
        self.arena = self.device.allocate(int(evaluate(arena_bytes(f), env)))
        self.arena_address = self.arena.address
        self.status = self.device.allocate(8)
        self.constants: list[Memory] = []
        super().__init__(f, env)
        self.scratch = self.device.allocate(max([s.blocks * s.kernel.module.scratch for s in self.launches], default=0))

    # -- what its steps do -----------------------------------------------------------------------------------------------------
    def _launch_of(self, f: Function, op: Op, env: dict[str, int]) -> Launch:
        refs = [self.where[v] for v in op.operands]
        kernel = self.program.kernel(f, op, all(behind % 16 == 0 for _, behind in refs))
        inner = env if op.name != "launch" else {n: int(evaluate(d, env)) for n, d in _callee_sizes(kernel.tile, op).items()}
        missing = [n for n in kernel.tile.attrs["sizes"] if n not in inner]
        if missing:
            raise CompileError(f"the kernel {op.attrs.get('name', op.name)!r} needs the size {missing[0]!r}", loc=op.loc)
        return Launch(kernel, kernel.blocks(inner, self.machine), refs, [inner[n] for n in kernel.tile.attrs["sizes"]])

    def _place(self, data: Array, op: Op) -> int:
        held = self.device.allocate(data.nbytes)
        self.device.write(held.address, data.astype(stored(as_dtype(data.dtype)), copy=False))
        self.constants.append(held)
        return held.address

    def _read(self, address: int, array: Array) -> None:
        self.device.read(address, array)

    def _write(self, address: int, array: Array) -> None:
        self.device.write(address, array)

    # -- running -------------------------------------------------------------------------------------------------------------
    def __call__(self, arrays: Sequence[Any]) -> list[Any]:
        inputs = [self._input(i, a) for i, a in enumerate(arrays)]
        aliases, compiler = self.program.aliases, self.program.compiler
        outs = [inputs[aliases[k]] if k in aliases else IntelArray(compiler, dtype, shape) for k, (dtype, shape) in enumerate(self.results)]
        if self.program.manifest.checks:
            self.device.write(self.status.address, np.array([abi.STATUS_OK], np.uint64))
        self._run(self.steps, [a.pointer for a in (*inputs, *outs)])
        self.device.finish()
        self._settle()
        if any(isinstance(a, IntelArray) for a in arrays):
            return list(outs)
        for i in self.program.in_place:
            self.device.read(inputs[i].pointer, arrays[i])
        return [o.to_host() for o in outs]

    def _input(self, i: int, a: Any) -> IntelArray:
        t = self.program.inputs[i]
        received = a.dtype.dtype.np if isinstance(a, IntelArray) else a.dtype
        if received != t.dtype.np:
            raise DTypeError(f"argument {i} of {self.program.fn.name!r} has another element type", expected=str(t.dtype),
                             received=str(received))
        return a if isinstance(a, IntelArray) else upload(a, self.program.compiler.name)

    def _settle(self) -> None:
        """Raise the first failure of the run-time checks."""
        if self.program.manifest.checks:
            word = np.zeros(1, np.uint64)
            self.device.read(self.status.address, word)
            failed = abi.status_of(int(word[0]))
            if failed is not None:
                raise_failure(self.program.manifest, self.program, self.env, *failed)

    def _run(self, steps: Sequence[Launch | Step], pointers: list[int]) -> None:
        for s in steps:
            if not isinstance(s, Launch):
                s(pointers)
            elif s.blocks:
                addresses = [self._address(r, pointers) for r in s.refs]
                m = s.kernel.module
                self.device.launch(self.program.compiler.loaded(s.kernel), s.blocks, m.threads, m.shared,
                                   [*addresses, self.status.address, self.scratch.address], s.sizes)


__all__ = ["IntelCompiler", "Kernel", "Plan", "Program", "compiler"]
