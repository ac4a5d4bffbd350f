"""Programs on NVIDIA devices: arrays in device memory, and Schedule programs as sequences of launches.

The first call with new sizes makes a :class:`Plan`: every launch with its grid and where its buffers lie (an argument, the arena, a
constant).  A call allocates the results and replays the plan on the thread's stream; it returns before the device is done.
Reading a tensor waits, and raises what a run-time check found meanwhile.

A plan of several launches is recorded as a CUDA graph at its second call; later calls only exchange pointers in its nodes.
"""

from __future__ import annotations

import functools
import math
import sys
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..errors import DTypeError, ShapeError
from ..ir.core import BufferType, Function, Op
from ..ir.text import print_function
from ..machine import NVIDIA_SM80, NVIDIA_SM90
from ..machine.simt import SimtMachine
from ..targets.cpu import abi
from ..targets.cpu.program import _callee_sizes, arena_bytes, reachable
from ..targets.nvidia import driver, kernels
from ..tracing.placed import DeviceArray, PlacedDType, placed_dtype, stored
from ..types.dims import evaluate
from ..types.dtypes import DType
from ..types.shapes import unify
from . import plans
from .cache import key_of, source_hash
from .failures import check_number, raise_failure
from .manifest import Manifest
from .plans import Ref, Step

ALIGN = 256
GRAPHS = 16  # for so many sets of pointers a plan of one launch is recorded
GRAPH_AFTER = 1  # plain calls before a plan is recorded


# -- arrays ------------------------------------------------------------------------------------------------------------------
class GpuArray(DeviceArray):
    """Memory of an NVIDIA device.  Its own memory goes back to the pool with the last reference; ``keep`` owns borrowed memory."""

    __slots__ = ("borrowed", "gpu", "keep", "stream")

    def __init__(self, gpu: driver.Gpu, dtype: DType, shape: tuple[int, ...], pointer: int | None = None, keep: Any = None):
        self.gpu, self.shape, self.dtype = gpu, shape, placed_dtype(dtype, f"gpu:{gpu.number}")
        self.stream, self.keep = gpu.stream, keep
        self.borrowed = pointer is not None
        self.pointer = pointer if pointer is not None else gpu.allocate(self.nbytes, self.stream)

    def __del__(self, finalizing: Any = sys.is_finalizing) -> None:
        if not getattr(self, "borrowed", True) and not finalizing():
            self.gpu.free(self.pointer, self.stream)

    @classmethod
    def fresh(cls, gpu: driver.Gpu, dtype: PlacedDType, shape: tuple[int, ...], block: int, stream: driver.Stream) -> GpuArray:
        """An array in a block of a size that the pool hands out; for results, which are made at every call."""
        made = cls.__new__(cls)
        made.gpu, made.dtype, made.shape, made.stream, made.keep, made.borrowed = gpu, dtype, shape, stream, None, False
        held = stream.blocks.get(block)
        if held:
            made.pointer = pointer = held.pop()
            stream.held -= block
            stream.sizes[pointer] = block
        else:
            made.pointer = gpu.allocate(block, stream)
        return made

    def to_host(self) -> np.ndarray[Any, Any]:
        kind = self.dtype.dtype
        out = np.empty(self.shape, stored(kind))
        self.gpu.enter()
        self.gpu.download(out.ctypes.data, self.pointer, self.nbytes, self.gpu.stream)
        settle(self.gpu)
        return out if out.dtype == kind.np else out.astype(kind.np)

    def cuda_interface(self) -> dict[str, Any]:
        kind = self.dtype.dtype
        if kind.is_float and kind.bits < 32 and kind.name != "f16":
            raise AttributeError(f"__cuda_array_interface__ has no form for {kind}: use DLPack")
        self.stream.synchronize()  # libraries read on streams of their own, and not all heed ours
        return {"shape": self.shape, "typestr": kind.np.str, "data": (self.pointer, False), "version": 3, "strides": None,
                "stream": None}

    def dlpack_device(self) -> tuple[int, int]:
        return 2, self.gpu.number

    def dlpack(self) -> Any:
        from .dlpack import capsule
        self.stream.synchronize()
        return capsule(self)


def upload(gpu: driver.Gpu, a: np.ndarray[Any, Any], dtype: DType) -> GpuArray:
    """A copy of a host array on a device."""
    dense = np.ascontiguousarray(a).astype(stored(dtype), copy=False)
    out = GpuArray(gpu, dtype, dense.shape if a.ndim else ())
    gpu.upload(out.pointer, dense.ctypes.data, dense.nbytes, out.stream)
    return out


def settle(gpu: driver.Gpu) -> None:
    """Raise the first failure of the run-time checks of programs that have ended."""
    pending, gpu.pending[:] = list(gpu.pending), []
    word = np.zeros(1, np.uint64)
    for program, env, status, stream in pending:
        gpu.download(word.ctypes.data, status, 8, stream)
        gpu.free(status, stream)
        failed = abi.status_of(int(word[0]))
        if failed is not None:
            raise_failure(program.manifest, program, env, *failed)


# -- compiling -----------------------------------------------------------------------------------------------------------------
def machine_of(gpu: driver.Gpu) -> SimtMachine:
    """The description of a device."""
    from dataclasses import replace
    base = NVIDIA_SM90 if gpu.capability == (9, 0) else NVIDIA_SM80
    return replace(base, units=gpu.units)


OPENED: dict[str, driver.Gpu] = {}
"""The devices that programs have been compiled for, by name."""


class GpuCompiler:
    """Compiles Graph functions for one device."""

    def __init__(self, name: str):
        self.gpu = driver.gpu(int(name.partition(":")[2] or 0))
        self.machine = machine_of(self.gpu)
        OPENED[name] = self.gpu
        self.kernels: dict[str, kernels.Kernel] = {}

    def compile(self, fn: Function) -> GpuProgram:
        """An executable for a Graph function, or for one launch of a Tile function.

        Raises:
            CompileError, UnsupportedError: the program cannot be computed on this device.
        """
        return GpuProgram(self, fn)

    def load(self, launches: Sequence[Launch]) -> list[kernels.Kernel]:
        """The loaded kernels of launches; equal tile functions share one.  LLVM works on several at a time."""
        texts = [print_function(s.tile) + ("" if s.aligned else "# at any address") for s in launches]
        made: dict[str, tuple[Function, Any, Any]] = {}
        for s, text in zip(launches, texts, strict=True):
            if text not in self.kernels and text not in made:
                tile = s.tile
                module = kernels.lower(tile, self.machine, s.aligned)
                made[text] = tile, module, self._ptx(tile.name, module.text, text)
        self.gpu.enter()
        for text, (tile, module, ptx) in made.items():
            self.kernels[text] = kernels.Kernel(tile, module, ptx())
        return [self.kernels[t] for t in texts]

    def _ptx(self, name: str, text: str, tile: str) -> Callable[[], bytes]:
        """PTX that LLVM is asked for, or that the disk cache has; its machine code stays in the driver's own cache."""
        from . import host_compiler
        from .llvm_workers import Request
        host = host_compiler()
        key = key_of(source_hash(), self.machine.key(), tile)
        found = host.cache.get("kernels", key)
        if found is not None:
            return lambda: found
        m = self.machine
        future = host.llvm.submit(Request(text, m.triple, m.cpu, m.llvm_features, "asm", name=name))
        future.add_done_callback(lambda f: host.keep(key, f))
        return future.result


@functools.cache
def compiler(name: str) -> GpuCompiler:
    """The compiler for ``gpu:0`` and the like."""
    return GpuCompiler(name)


class GpuProgram:
    """A compiled program: ``program(arrays)`` runs it on device arrays (and 0-d host arrays) and returns device arrays."""

    def __init__(self, compiler: GpuCompiler, fn: Function):
        from ..scheduling import schedule
        from ..scheduling.rows import is_row
        from ..transforms.pipeline import optimize
        from .build import number_checks, one_launch
        self.compiler, self.source = compiler, fn
        if fn.level == "tile":
            self.sched = one_launch(fn)
        else:
            self.sched = schedule(optimize(fn, compiler.machine, is_row), compiler.machine)
            number_checks(self.sched)
        f = self.sched
        n = f.attrs["inputs"]
        self.inputs: list[BufferType] = [a.type for a in f.args[:n]]
        self.outputs: list[BufferType] = [a.type for a in f.args[n:]]
        self.aliases: dict[int, int] = dict(f.attrs.get("aliases", ()))
        sites = list(f.attrs.get("sites", ()))
        self.manifest = Manifest(fn.name, [], [], list(f.attrs.get("sizes", ())), "0", [], sites, [], 0, False, [], 0, [], [])
        self.plans: dict[Any, Plan] = {}

    # what failures ask of a program's origin
    def text(self, stage: str) -> str:
        return str(self.sched)

    def report(self) -> list[str]:
        return []

    def location(self, site: int) -> Any:
        for f in reachable(self.sched):
            for op in f.walk():
                if check_number(op) == site:
                    return op.loc
        return None

    @property
    def schedule_ir(self) -> str:
        """Schedule IR, as text."""
        return str(self.sched)

    @property
    def tile_ir(self) -> str:
        """Tile IR of the kernels of the plans made so far."""
        return "\n".join(dict.fromkeys(str(k.fn) for p in self.plans.values() for k in p.kernels))

    @property
    def target_ir(self) -> str:
        """LLVM IR of these kernels."""
        return "\n".join(dict.fromkeys(k.module.text for p in self.plans.values() for k in p.kernels))

    def __call__(self, arrays: Sequence[Any]) -> list[GpuArray]:
        """Start the program on the calling thread's stream.

        Raises:
            ShapeError: an array does not have the shape that it was compiled for.
        """
        stream = self.compiler.gpu.stream
        plan = self.plans.get((stream.number, *[a.shape for a in arrays]))
        if plan is None:
            plan = self._plan(arrays, stream)
        return plan(arrays)

    def _plan(self, arrays: Sequence[Any], stream: driver.Stream) -> Plan:
        if len(arrays) != len(self.inputs):
            raise ShapeError(f"{self.source.name!r} takes {len(self.inputs)} arrays, not {len(arrays)}")
        env: dict[str, int] = {}
        for _ in range(2):
            for i, (t, a) in enumerate(zip(self.inputs, arrays, strict=True)):
                if t.rank != len(a.shape) or unify(t.shape, a.shape, env) is not None:
                    raise ShapeError(f"argument {i} of {self.source.name!r} has another shape", expected=str(t),
                                     received=str(list(a.shape)))
        made = self.plans[(stream.number, *[a.shape for a in arrays])] = Plan(self, env, stream)
        return made


class Launch:
    """One launch of a plan."""

    __slots__ = ("aligned", "blocks", "env", "kernel", "refs", "tile")
    kernel: kernels.Kernel

    def __init__(self, tile: Function, refs: list[Ref], env: dict[str, int]):
        self.tile, self.refs, self.env = tile, refs, env
        self.blocks = kernels.grid_blocks(tile, env)
        self.aligned = all(behind % 16 == 0 for _, behind in refs)


class Plan(plans.Plan[Launch]):
    """A program under one binding of its sizes, on one stream."""

    def __init__(self, program: GpuProgram, env: dict[str, int], stream: driver.Stream):
        self.program, self.stream = program, stream
        self.gpu = program.compiler.gpu
        self.gpu.enter()
        f = program.sched
        self.results = [(t.dtype, tuple(int(evaluate(d, env)) for d in t.shape)) for t in program.outputs]
        place = f"gpu:{self.gpu.number}"
        self.made = [(placed_dtype(d, place), s, driver.block_size(d.itemsize * math.prod(s))) for d, s in self.results]
        self.arena_address = self.gpu.allocate(max(ALIGN, int(evaluate(arena_bytes(f), env))), stream)
        self.constants: list[GpuArray] = []
        self.scratch = 0
        self.checked = bool(program.manifest.checks)
        self.status = self.gpu.allocate(8, stream)
        super().__init__(f, env)
        self.kernels = program.compiler.load(self.launches)
        for s, kernel in zip(self.launches, self.kernels, strict=True):
            s.kernel = kernel
        self._scratch()
        self.pure = all(isinstance(s, Launch) for s in self.steps)  # launches alone: a graph can replay it
        self.prepared: dict[tuple[int, ...], list[driver.Parameters]] = {}
        self.graphs: dict[tuple[int, ...], driver.Graph] = {}  # of a plan of one launch
        self.single = self.launches[0] if self.pure and len(self.steps) == 1 and not self.checked and self.launches[0].blocks else None
        self.graph: driver.Graph | None = None
        self.graph_pointers: tuple[int, ...] = ()
        self.nodes: list[Any] = []
        self.calls = 0

    def _scratch(self) -> None:
        need = 0
        for s in self.launches:
            if s.kernel.module.scratch:
                s.blocks = min(s.blocks, self.program.compiler.machine.resident_blocks)
                need = max(need, s.blocks * s.kernel.module.scratch)
        if need:
            self.scratch = self.gpu.allocate(need, self.stream)

    # -- what its steps do ---------------------------------------------------------------------------------------------------------
    def _launch_of(self, f: Function, op: Op, env: dict[str, int]) -> Launch | None:
        if any(0 in [evaluate(d, env) for d in op.operands[i].type.shape] for i in op.attrs["outs"]):
            return None  # nothing to write
        tile = self._tile(f, op, env)
        if op.name == "launch":
            env = {n: int(evaluate(d, env)) for n, d in _callee_sizes(tile, op).items()}
        return Launch(tile, [self.where[v] for v in op.operands], dict(env))

    def _place(self, data: np.ndarray[Any, Any], op: Op) -> int:
        self.constants.append(upload(self.gpu, data, op.result.type.dtype))
        return self.constants[-1].pointer

    def _read(self, address: int, array: np.ndarray[Any, Any]) -> None:
        self.gpu.download(array.ctypes.data, address, array.nbytes, self.stream)

    def _write(self, address: int, array: np.ndarray[Any, Any]) -> None:
        self.gpu.upload(address, array.ctypes.data, array.nbytes, self.stream)
        self.stream.synchronize()  # the host's array goes away

    def _tile(self, f: Function, op: Op, env: dict[str, int]) -> Function:
        from ..ir.tile_explicit import is_explicit_program
        from ..kernels.hopper.select import explicit_program
        from ..kernels.hopper.written import product_of_groups
        from ..kernels.rows import row_program
        from .build import lower_launch
        machine: Any = self.program.compiler.machine
        if op.name == "launch":
            callee = f.functions[op.attrs["callee"]]
            if is_explicit_program(callee):
                return callee
            sizes = {n: int(evaluate(d, env)) for n, d in _callee_sizes(callee, op).items()}
            product = product_of_groups(callee, machine, sizes)
            if product is not None:
                return product
        if op.attrs.get("template") == "row":
            return row_program(op, machine.lanes, env)
        tile = explicit_program(op, machine, env)
        if tile is None:
            tile = lower_launch(f, op, machine, tuple(f.attrs.get("sizes", ())))
            tile.name = "kernel"
        return tile

    # -- running -----------------------------------------------------------------------------------------------------------------
    def __call__(self, arrays: Sequence[Any]) -> list[GpuArray]:
        gpu = self.gpu
        inputs = [a if a.__class__ is GpuArray and a.pointer & 15 == 0 else self._brought(a, i) for i, a in enumerate(arrays)]
        aliases = self.program.aliases
        stream, fresh = self.stream, GpuArray.fresh
        outs = [inputs[aliases[k]] if k in aliases else fresh(gpu, d, s, n, stream) for k, (d, s, n) in enumerate(self.made)]
        pointers = [a.pointer for a in (*inputs, *outs)]
        if self.single is not None:
            self._start(self.single, tuple(pointers))
            return outs
        if self.checked:
            self.status = gpu.allocate(8, self.stream)
            gpu.fill(self.status, 0xFF, 8, self.stream)
        if self.pure and self.steps and not self.checked:
            self._replay(tuple(pointers))
        else:
            self._run(self.steps, pointers)
        if self.checked:
            gpu.pending.append((self.program, self.env, self.status, self.stream))
        return outs

    def _brought(self, a: Any, i: int) -> GpuArray:
        """A number of the host, or memory of others that does not begin at a multiple of 16 bytes: a copy."""
        if isinstance(a, GpuArray):
            copied = GpuArray(self.gpu, a.dtype.dtype, a.shape)
            self.gpu.copy(copied.pointer, a.pointer, a.nbytes, self.stream)
            return copied
        t = self.program.inputs[i]
        if np.asarray(a).dtype != t.dtype.np:
            raise DTypeError(f"argument {i} of {self.program.source.name!r} has another element type", expected=str(t.dtype),
                             received=str(np.asarray(a).dtype))
        made = upload(self.gpu, np.asarray(a), t.dtype)
        made.stream.synchronize()
        return made

    def _parameters(self, s: Launch, pointers: Sequence[int]) -> driver.Parameters:
        return s.kernel.parameters([self._address(r, pointers) for r in s.refs], s.env, self.status, self.scratch)

    def _run(self, steps: Sequence[Launch | Step], pointers: list[int]) -> None:
        if steps is self.steps and self.pure and not self.checked:
            key = tuple(pointers)
            ready = self.prepared.get(key)
            if ready is None:
                if len(self.prepared) > 256:
                    self.prepared.clear()
                ready = self.prepared[key] = [self._parameters(s, pointers) for s in steps if isinstance(s, Launch)]
            for s, p in zip(steps, ready, strict=True):
                assert isinstance(s, Launch)
                s.kernel.launch(self.stream, p, s.blocks)
            return
        for s in steps:
            if isinstance(s, Launch):
                s.kernel.launch(self.stream, self._parameters(s, pointers), s.blocks)
            else:
                s(pointers)

    def _start(self, s: Launch, pointers: tuple[int, ...]) -> None:
        """The only launch: a graph for pointers seen before, which the pool hands out again and again (on an H200 a graph starts in
        2 to 3 microseconds of the host's time, a launch in 5 to 6)."""
        graph = self.graphs.get(pointers)
        if graph is not None:
            graph.launch()
            return
        self.calls += 1
        if self.calls <= GRAPH_AFTER or pointers not in self.prepared or len(self.graphs) == GRAPHS:
            self._run(self.steps, list(pointers))
            return
        graph = driver.Graph(self.stream)
        with graph:
            s.kernel.launch(self.stream, self.prepared[pointers][0], s.blocks)
        self.graphs[pointers] = graph
        graph.launch()

    # -- graphs ------------------------------------------------------------------------------------------------------------------
    def _replay(self, pointers: tuple[int, ...]) -> None:
        """The whole plan in one launch; pointers that changed are exchanged in the nodes that use them."""
        self.calls += 1
        if self.calls <= GRAPH_AFTER:
            self._run(self.steps, list(pointers))
            return
        launches = [s for s in self.steps if isinstance(s, Launch) and s.blocks]
        if self.graph is None:
            self.held = [self._parameters(s, pointers) for s in launches]
            self.graph = driver.Graph(self.stream)
            with self.graph:
                for s, p in zip(launches, self.held, strict=True):
                    s.kernel.launch(self.stream, p, s.blocks)
            self.nodes = self.graph.nodes()
            self.graph_pointers = pointers
        elif pointers != self.graph_pointers:
            changed = {i for i, (a, b) in enumerate(zip(pointers, self.graph_pointers, strict=True)) if a != b}
            for k, s in enumerate(launches):
                if any(where in changed for where, _ in s.refs if isinstance(where, int)):
                    self.held[k] = self._parameters(s, pointers)
                    m = s.kernel.module
                    self.graph.update(self.nodes[k], s.kernel.function, s.blocks, m.threads, m.shared, self.held[k])
            self.graph_pointers = pointers
        self.graph.launch()


__all__ = ["GpuArray", "GpuCompiler", "GpuProgram", "compiler", "settle", "upload"]
