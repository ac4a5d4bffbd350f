"""The stages run one after the other: a program's way from Graph IR to object files.

Each launch is lowered to a tile function, named by the hash of its text (equal launches share one kernel), looked up in
the kernel tier of the cache, and else emitted and handed to an LLVM process at once, so that LLVM works while Python lowers
the next one.
"""

from __future__ import annotations

import importlib
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING

from ..errors import CompileError, UnsupportedError
from ..ir.core import Block, BufferType, Function, Op, rewrite
from ..ir.text import _attrs, _Names, _print_ops, print_function
from ..ir.tile_explicit import of_groups
from ..machine import CpuMachine, SimtMachine
from ..targets.cpu import program
from ..targets.cpu.program import Kernel, arena_bytes, emit_program, external_calls, launch_work, reachable
from ..tiling.assign import assign_layouts
from ..types.dims import format_dim
from .cache import digest, key_of, source_hash
from .failures import check_number
from .manifest import Manifest, buffer_facts
from .stages import STAGES, Exchange, Stage

if TYPE_CHECKING:
    from concurrent.futures import Future

    from .compiler import Compiler

GRAPH, SCHED, TILE, LL, OBJECT = STAGES
_LAUNCHES = ("kernel", "template", "launch")


@dataclass
class Build:
    """One program on its way through the stages.

    Attributes:
        source: the Graph function as traced.
        seconds: time in each stage; LLVM's is what was waited for it.
        kernels: by symbol; ``launches`` says which op runs which.
    """

    source: Function
    exchange: Exchange
    seconds: dict[str, float] = field(default_factory=dict)
    graph: Function | None = None
    sched: Function | None = None
    kernels: dict[str, Function] = field(default_factory=dict)
    launches: dict[Op, Kernel] = field(default_factory=dict)
    modules: dict[str, str] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    pending: dict[str, Future[bytes]] = field(default_factory=dict)
    reused: int = 0

    @contextmanager
    def timed(self, s: Stage) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[s.name] = self.seconds.get(s.name, 0.0) + time.perf_counter() - start


class Lowering:
    """Runs the stages for a compiler."""

    def __init__(self, compiler: Compiler):
        self.compiler = compiler

    def run(self, fn: Function, exchange: Exchange, until: str = "o") -> Build:
        """Run the stages up to ``until``: a stage's name, or ``"asm"``."""
        build = Build(fn, exchange)
        steps = [(GRAPH, self._graph), (SCHED, self._schedule), (TILE, self._kernels), (OBJECT, self._finish)]
        if until in ("o", "asm"):
            self.compiler.llvm.start(1)
        for s, step in steps:
            if fn.level == "tile" and s in (GRAPH, SCHED):
                continue
            if s is OBJECT and until not in ("o", "asm"):
                break
            step(build, until)
            if s.name == until:
                break
        return build

    def _graph(self, build: Build, wanted: str) -> None:
        from ..transforms.pipeline import optimize
        with build.timed(GRAPH):
            build.exchange.verify(GRAPH, build.source)
            made = build.exchange.override(GRAPH)
            build.graph = made if made is not None else optimize(build.source, self.compiler.machine)
            build.exchange.verify(GRAPH, build.graph)
        build.exchange.dump(GRAPH, build.graph)

    def _schedule(self, build: Build, wanted: str) -> None:
        from ..scheduling import schedule
        assert build.graph is not None
        with build.timed(SCHED):
            made = build.exchange.override(SCHED)
            if made is None:
                made = schedule(build.graph, self.compiler.machine)
                number_checks(made)
            build.sched = made
            build.exchange.verify(SCHED, build.sched)
        build.exchange.dump(SCHED, build.sched)

    # -- kernels -------------------------------------------------------------------------------------------------------
    def _kernels(self, build: Build, wanted: str) -> None:
        """Lower every launch; emit each new kernel and hand it to LLVM."""
        edited = build.exchange.override(TILE) or {}
        modules = build.exchange.override(LL) or {}
        if build.source.level == "tile":
            build.sched = one_launch(build.source)
        assert build.sched is not None
        known: dict[str, Kernel] = {}
        for f in reachable(build.sched):
            sizes = tuple(f.attrs.get("sizes", ()))
            for op in f.walk():
                if op.name not in _LAUNCHES:
                    continue
                _forget_names(op)
                text = _launch_text(op, sizes)
                kernel = known.get(text)
                if kernel is None:
                    kernel = known[text] = self._lower(build, f, op, sizes, edited)
                    if kernel.symbol not in build.kernels:
                        build.kernels[kernel.symbol] = kernel.tile
                        if wanted not in ("tile",):
                            self._emit(build, kernel, modules, wanted)
                build.launches[op] = kernel
        build.exchange.dump(TILE, build.kernels)
        if wanted == "tile":
            return
        if not isinstance(self.compiler.machine, CpuMachine):
            build.exchange.dump(LL, build.modules)
            return  # the host launches the kernels
        with build.timed(LL):
            text = modules.get("program") or emit_program(build.sched, build.launches)
        build.modules["program"] = text
        build.exchange.dump(LL, build.modules)
        self._submit(build, "program", text, wanted)

    def _lower(self, build: Build, fn: Function, op: Op, sizes: tuple[str, ...], edited: dict[str, Function]) -> Kernel:
        with build.timed(TILE):
            tile = lower_launch(fn, op, self.compiler.machine, sizes)
            tile.name = "kernel"
            if isinstance(self.compiler.machine, SimtMachine):
                tile = assign_layouts(own_target(self.compiler.machine).prepared(tile, self.compiler.machine), self.compiler.machine)
            for i, a in enumerate(tile.args):
                if isinstance(a.type, BufferType):  # equal kernels have one hash, whatever their buffers were called
                    a.name = f"b{i}"
            symbol = f"{_stem(op)}_{digest(print_function(tile).encode()).hex()[:12]}"
            tile = edited.get(symbol, tile)
            tile.name = symbol
            build.exchange.verify(TILE, tile)
        return Kernel(symbol, tile)

    def _emit(self, build: Build, kernel: Kernel, modules: dict[str, str], wanted: str) -> None:
        active = build.exchange.active or wanted != "o"
        key = key_of(source_hash(), self.compiler.target, print_function(kernel.tile))
        if not active:
            found = self.compiler.cache.get("kernels", key)
            if found is not None:
                build.objects[kernel.symbol] = found
                build.reused += 1
                return
        with build.timed(LL):
            text = modules.get(kernel.symbol) or kernel_ir(kernel.tile, self.compiler.machine)
        build.modules[kernel.symbol] = text
        self._submit(build, kernel.symbol, text, wanted, None if active else key)

    def _submit(self, build: Build, name: str, text: str, wanted: str, key: str | None = None) -> None:
        if wanted not in ("o", "asm"):
            return
        future = self.compiler.llvm.submit(self.compiler.request(name, text, "asm" if wanted == "asm" else "obj"))
        build.pending[name] = future
        if key is not None:
            future.add_done_callback(lambda f: self.compiler.keep(key, f))

    def _finish(self, build: Build, wanted: str) -> None:
        with build.timed(OBJECT):
            for name, future in build.pending.items():
                build.objects[name] = future.result()
        build.pending.clear()
        if wanted == "o":
            build.exchange.dump(OBJECT, build.objects)


OWN = {"amd": "tessera.targets.amd.build", "nvidia": "tessera.targets.nvidia.kernels", "intel": "tessera.targets.intel.emit"}
"""Each vendor's module: ``prepared(fn, machine)`` is what comes before layouts, ``module_text(fn, machine)`` the LLVM IR after them."""


def own_target(machine: SimtMachine) -> ModuleType:
    """The module of a machine's vendor."""
    return importlib.import_module(OWN[machine.vendor])


def kernel_ir(tile: Function, machine: CpuMachine | SimtMachine) -> str:
    """LLVM IR of one kernel, by the code generator of the machine's kind."""
    if isinstance(machine, SimtMachine):
        text: str = own_target(machine).module_text(tile, machine)
        return text
    from ..targets.cpu.emit import emit
    return emit(tile, machine)


def one_launch(tile: Function) -> Function:
    """A Schedule program of one launch; every buffer is an input, and what the launch writes changes in place."""
    buffers = [a for a in tile.args if isinstance(a.type, BufferType)]
    fn = Function(tile.name, "sched", Block([a.type for a in buffers], [a.name for a in buffers]))
    fn.body.ops += [Op("launch", fn.args, (), {"callee": tile.name, "outs": tuple(tile.attrs["writes"])}), Op("return")]
    fn.attrs = {"inputs": len(buffers), "outputs": 0, "sizes": tuple(tile.attrs["sizes"]), "arena": 0,
                "sites": tuple(tile.attrs.get("sites", ()))}
    fn.functions = {tile.name: tile}
    return fn


def lower_launch(fn: Function, op: Op, machine: CpuMachine | SimtMachine, sizes: tuple[str, ...]) -> Function:
    """The tile function of one launch.

    Raises:
        CompileError: the template or tile function that it names does not exist.
        UnsupportedError: a kernel of warp groups, on a machine that has none.
    """
    from .. import kernels  # noqa: F401  (importing the room enters its templates)
    from ..kernels.simt.select import simt_program
    from ..tiling.copies import synchronous
    from ..tiling.large_tiles import fit_registers
    from ..tiling.lower import lower_kernel
    from ..tiling.templates import TEMPLATES
    from ..tiling.vmath import APPROXIMATE, expand
    if op.name == "launch":
        callee = fn.functions.get(op.attrs["callee"])
        if callee is None or callee.level != "tile":
            raise CompileError(f"the program launches {op.attrs['callee']!r}, which it does not define", loc=op.loc)
        groups = isinstance(machine, SimtMachine) and machine.has_warp_groups
        own_level = next((o for o in callee.walk() if of_groups(o)), None)
        if own_level is not None and not groups:
            raise UnsupportedError(f"the kernel {callee.name!r} is written for warp groups, which {machine.name} does not have",
                                   loc=own_level.loc or op.loc,
                                   sentence="Roles, clusters, the copy engine, barriers with phases and wgmma are Hopper's; shared memory, "
                                            "fragments, async_copy and tile.barrier() are everyone's.",
                                   hints=['Give it tensors of an NVIDIA Hopper GPU: x.to("gpu:0")',
                                          "Call it on CPU tensors outside jit: the interpreter runs it, and reports races",
                                          "Write it on the tile level, which every machine has"])
        own = rewrite(callee) if machine.has_async_copies else rewrite(synchronous(callee))
        tile = fit_registers(own, machine.tile_elements, machine.unrolls_products)  # it is the user's, and will be renamed
    elif op.name == "template":
        build = TEMPLATES.get(op.attrs["template"])
        if build is None:
            raise CompileError(f"no template is called {op.attrs['template']!r}", loc=op.loc)
        special = simt_program(op, machine, "kernel") if isinstance(machine, SimtMachine) else None
        tile = special or build(op, machine, "kernel")
    else:
        tile = lower_kernel(op, machine, "kernel", sizes)
    return expand(tile, APPROXIMATE if isinstance(machine, SimtMachine) and machine.has_special_functions else frozenset())


_STEM = re.compile(r"[^A-Za-z0-9_]")


def _stem(op: Op) -> str:
    name = str(op.attrs.get("name") or op.attrs.get("callee") or op.name)
    return _STEM.sub("_", re.sub(r"_\d+$", "", name)) or "kernel"


def _forget_names(op: Op) -> None:
    """Drop the names of the values inside a launch: the same layer with other weights is the same kernel."""
    for b in op.blocks:
        for a in b.args:
            a.name = None
        for inner in b.walk():
            for v in (*inner.results, *(a for nested in inner.blocks for a in nested.args)):
                v.name = None


def _launch_text(op: Op, sizes: tuple[str, ...]) -> str:
    """What a launch computes, whatever its buffers are called: equal texts are one kernel."""
    names = _Names()
    for v in op.operands:
        if v not in names.of:
            names.define(v)
    attrs = {k: v for k, v in op.attrs.items() if k != "name"}
    stem = _stem(op)
    blocks = []
    for b in op.blocks:
        inner = _Names()
        inner.of.update((a, f"b{i}") for i, a in enumerate(b.args))
        args = ", ".join(str(a.type) for a in b.args)
        blocks.append(f"({args}) " + "\n".join(_print_ops(b, inner, 0, False)))
    same = [op.operands.index(v) for v in op.operands]
    types = ", ".join(str(v.type) for v in op.operands)
    return f"{stem} {op.name} {sizes} {same} {types} {_attrs(attrs)} {' '.join(blocks)}"


def number_checks(fn: Function) -> None:
    """Give every check of the program and its callees a number of its own, and ``fn`` all the messages."""
    messages: list[str] = []
    for f in reachable(fn):
        base = len(messages)
        own = tuple(f.attrs.get("sites", ()))
        if base and own:
            for op in f.walk():
                number = check_number(op)
                if number is not None:
                    op.attrs["site"] = number + base
        messages += own
        for name, tile in list(f.functions.items()):
            own = tuple(tile.attrs.get("sites", ()))
            if tile.level == "tile" and own:
                f.functions[name] = _shifted(tile, len(messages))
                messages += own
    if messages:
        fn.attrs["sites"] = tuple(messages)


def _shifted(tile: Function, base: int) -> Function:
    """A user's kernel whose checks have other numbers in this program."""
    new = rewrite(tile)
    for op in new.walk():
        if op.name == "check":
            op.attrs["site"] = op.attrs["site"] + base
    return new


def describe(build: Build) -> Manifest:
    """The manifest of a finished build."""
    fn = build.sched
    assert fn is not None
    inputs = fn.attrs["inputs"]
    facts = [buffer_facts(a.type) for a in fn.args if isinstance(a.type, BufferType)]
    externals = []
    for op in external_calls(fn):
        attrs = {k: v for k, v in op.attrs.items() if k not in ("function", "op", "name", "tile")}
        externals.append((str(op.attrs["op"]), [buffer_facts(v.type) for v in op.operands], _attrs(attrs).strip()))
    loops = any(op.name == "while" for f in reachable(fn) for op in f.walk())
    launches = [(str(op.attrs.get("name", op.name)), k.symbol) for op, k in build.launches.items()]
    return Manifest(build.source.name, facts[:inputs], facts[inputs:], list(fn.attrs.get("sizes", ())),
                    format_dim(arena_bytes(fn)), [format_dim(w) for w in launch_work(fn, build.launches)],
                    list(fn.attrs.get("sites", ())), externals, program.SERIAL_WORK, loops or bool(externals), launches,
                    sum(1 for _ in (build.graph or build.source).walk()), list(build.source.attrs.get("donated", ())),
                    list(fn.attrs.get("aliases", ())))
