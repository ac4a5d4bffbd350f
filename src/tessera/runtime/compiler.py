"""From a Graph function to an :class:`Executable`.

A program that the disk cache knows is loaded from there: nothing is lowered, LLVM is not started, and what lowering
takes is not even imported.  Otherwise ``build.py`` runs the stages.
"""

from __future__ import annotations

import sys
import threading
import time
from typing import TYPE_CHECKING

from ..errors import CompileError
from ..ir.core import Function, Loc
from ..ir.text import print_function
from ..machine import CpuMachine, SimtMachine, host_cpu
from ..settings import DUMP, OVERRIDE, SETTINGS
from ..targets.cpu import pool
from ..targets.cpu.pool_ir import pool_ir
from ..transforms.regions import inline_regions
from .cache import DiskCache, key_of, open_cache, source_hash
from .executable import Executable
from .manifest import pack, unpack

if TYPE_CHECKING:  # a warm start needs no worker processes, and none of what starting them takes
    from concurrent.futures import Future

    from .build import Build
    from .llvm_workers import Request, Workers
    from .stages import Exchange


class Compiler:
    """Compiles Graph functions for one CPU.

    Args:
        machine: the target's description; None: this computer.  For a SIMT machine there are stages to look at
            (:meth:`show`); its programs are run by its own runtime.
        cache: the disk cache; None: the one that the environment asks for.
        llvm: the worker processes; None: the process's own.
    """

    def __init__(self, machine: CpuMachine | SimtMachine | None = None, cache: DiskCache | None = None, llvm: Workers | None = None):
        self._machine, self._cache, self._llvm = machine, cache, llvm
        self._lock = threading.Lock()
        self._pool_code: bytes | Future[bytes] | None = None
        self.programs = self.cached_programs = 0

    def after_fork(self) -> None:
        """In a forked child: what the parent's other threads were doing is not going on here."""
        self._lock = threading.Lock()
        self._pool_code = None

    @property
    def machine(self) -> CpuMachine | SimtMachine:
        if self._machine is None:
            self._machine = host_cpu()
        return self._machine

    @property
    def cache(self) -> DiskCache:
        if self._cache is None:
            self._cache = open_cache()
        return self._cache

    @property
    def llvm(self) -> Workers:
        from .llvm_workers import workers
        return self._llvm or workers()

    # -- the whole way -------------------------------------------------------------------------------------------------
    def compile(self, fn: Function) -> Executable:
        """An executable for a Graph function, or for one launch of a Tile function, which works on its buffers in place.

        Raises:
            CompileError: a stage refused the program, or LLVM did.
            UnsupportedError: an op cannot be computed on this target.
        """
        start = time.perf_counter()
        fn = inline_regions(fn)
        key = self.program_key(fn)
        origin = Origin(self, fn, key)
        self.programs += 1
        kept = DUMP.get() is None and OVERRIDE.get() is None and not _user_passes()
        if kept:
            found = self._from_cache(key, origin)
            if found is not None:
                origin.seconds = {"cache": time.perf_counter() - start}
                return found
        from .build import describe
        from .stages import Exchange
        self._prepare_native()
        # Not the cache key: what a run dumps must bear the name that a run with TESSERA_OVERRIDE, itself keyed, looks for.
        label = key_of(repr(self.machine), print_function(fn))[:8]
        build = self.build(fn, Exchange(f"{fn.name}-{label}", fn.name))
        manifest, objects = describe(build), list(build.objects.values())
        executable = Executable(manifest, objects, self.native(), origin)
        if kept:
            self.cache.put("programs", key, pack(manifest, objects))
        origin.seconds = build.seconds
        return executable

    def _from_cache(self, key: str, origin: Origin) -> Executable | None:
        """The program as an earlier process left it; None where there is none that can be used."""
        payload = self.cache.get("programs", key)
        if payload is None:
            return None
        try:
            manifest, objects = unpack(payload)
            executable = Executable(manifest, objects, self.native(), origin)
        except (ValueError, CompileError):
            return None  # written by something else: compiled anew and replaced
        self.cached_programs += 1
        return executable

    def program_key(self, fn: Function) -> str:
        """The cache key of a program: its graph without locations, the target, the compiler, keyed settings."""
        keyed = "".join(f"{s.name}={s.get()};" for s in SETTINGS if s.keyed)
        return key_of(source_hash(), repr(self.machine), keyed, print_function(fn))

    def build(self, fn: Function, exchange: Exchange, until: str = "o") -> Build:
        """Run the stages up to ``until``."""
        from .build import Lowering
        return Lowering(self).run(fn, exchange, until)

    # -- LLVM ----------------------------------------------------------------------------------------------------------
    @property
    def target(self) -> str:
        """The target as part of cache keys."""
        return self.machine.key()

    def request(self, name: str, text: str, emit: str = "obj") -> Request:
        """A module for LLVM."""
        from .llvm_workers import Request
        m = self.machine
        return Request(text, m.triple, m.cpu, m.llvm_features, emit, m.llvm_level, name)

    def keep(self, key: str, future: Future[bytes]) -> None:
        """Enter a finished object file into the kernel tier."""
        if not future.cancelled() and future.exception() is None:
            self.cache.put("kernels", key, future.result())

    # -- the pool's code -------------------------------------------------------------------------------------------------
    def native(self) -> pool.Native:
        """The loaded pool code, compiled (or read from the cache) once a process."""
        got = pool.installed()
        if got is not None:
            return got
        with self._lock:
            code = self._pool_code
            if code is None:
                self._pool_code = code = self._request_pool()
            return pool.install(code if isinstance(code, bytes) else code.result())

    def _request_pool(self) -> bytes | Future[bytes]:
        """The pool's object file, or LLVM at work on it."""
        machine = host_cpu()
        text = pool_ir(machine.triple.split("-")[0])
        key = key_of(self.target, text)
        found = self.cache.get("kernels", key)
        if found is not None:
            return found
        future = self.llvm.submit(self.request("pool", text))
        future.add_done_callback(lambda f: self.keep(key, f))
        return future

    def _prepare_native(self) -> None:
        """Let LLVM make the pool's code while Python lowers the first program."""
        if pool.installed() is None:
            with self._lock:
                if self._pool_code is None:
                    self._pool_code = self._request_pool()

    # -- showing ---------------------------------------------------------------------------------------------------------
    def show(self, fn: Function, stage_name: str) -> str:
        """A stage's artefact as text; ``asm`` is the assembly of every module.

        Raises:
            CompileError: there is no such stage, or compilation fails before it.
        """
        from .stages import Exchange, stage
        exchange = Exchange(fn.name, fn.name)
        exchange.dump_to = None
        if stage_name != "asm":
            stage(stage_name)
        build = self.build(fn, exchange, stage_name)
        if stage_name == "asm":
            return "\n".join(f"# ==== module {n}\n{code.decode()}" for n, code in build.objects.items())
        artefact = {"graph": build.graph, "sched": build.sched, "tile": build.kernels, "ll": build.modules}.get(stage_name)
        if artefact is None:
            raise CompileError(f"the stage {stage_name!r} has no text form; ask for 'asm'")
        return stage(stage_name).to_text(artefact)


class Origin:
    """What an executable came from; see :class:`~tessera.runtime.failures.Source`."""

    def __init__(self, compiler: Compiler, fn: Function, key: str):
        self.compiler, self.fn, self.key = compiler, fn, key
        self.seconds: dict[str, float] = {}

    def text(self, stage_name: str) -> str:
        return self.compiler.show(self.fn, stage_name)

    def report(self) -> list[str]:
        from ..transforms.pipeline import passes
        lines = [f"passes: {', '.join(p.name for p in passes())}; then fuse, choose_templates, plan_memory"]
        return [*lines, "time: " + ", ".join(f"{k} {1e3 * v:.1f} ms" for k, v in self.seconds.items())] if self.seconds else lines

    def location(self, site: int) -> Loc | None:
        """The user's line behind a check.  Locations are in no cache, so the program is scheduled again for it."""
        from ..targets.cpu.program import reachable
        from .failures import check_number
        from .stages import Exchange
        exchange = Exchange(self.fn.name, self.fn.name)
        exchange.dump_to = exchange.read_from = None
        functions = [self.fn]
        if self.fn.level == "graph":
            build = self.compiler.build(self.fn, exchange, "sched")
            assert build.sched is not None
            functions = reachable(build.sched)
            functions = [*functions, *(t for f in functions for t in f.functions.values() if t.level == "tile")]
        for f in functions:
            for op in f.body.ops:
                for inner in op.walk():
                    if check_number(inner) == site:
                        return inner.loc or op.loc
        return None


def _user_passes() -> bool:
    """Passes of the user's own have no hash: programs made with them are not kept on disk."""
    rooms = (sys.modules.get(f"tessera.{name}") for name in ("transforms.pipeline", "scheduling.program"))
    return any(getattr(room, "USER_PASSES", ()) for room in rooms if room is not None)
