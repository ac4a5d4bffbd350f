"""The process in which LLVM runs.  Stand-alone: it is started as a script and imports llvmlite alone.

It reads requests on its standard input and answers on its standard output, both as ``<u32 header bytes> <u32 payload
bytes> <JSON header> <payload>``.  A request's header is ``{"triple", "cpu", "features", "level", "emit"}`` and its payload
LLVM IR text; the answer's header is ``{"ok", "seconds"}`` and its payload an object file, a text, or an error message.
LLVM ends its process on a fatal error: that is why it has one of its own.
"""

from __future__ import annotations

import json
import os
import select
import struct
import sys
import time
from typing import Any, NoReturn

HEADER = struct.Struct("<II")
PARENT_POLL_SECONDS = 5.0


def _read_exactly(fd: int, n: int) -> bytes:
    parts = []
    while n:
        part = os.read(fd, min(n, 1 << 20))
        if not part:
            os._exit(0)  # the parent closed the pipe or died
        parts.append(part)
        n -= len(part)
    return b"".join(parts)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view):]


def _wait_for_request(fd: int, parent: int) -> None:
    """Block until there is input; leave when the parent is gone (a forked child of it may still hold the pipe)."""
    while not select.select([fd], [], [], PARENT_POLL_SECONDS)[0]:
        if os.getppid() != parent:
            os._exit(0)


class Machines:
    """LLVM target machines by (triple, cpu, features, level)."""

    def __init__(self, binding: Any):
        self.llvm = binding
        self.made: dict[Any, Any] = {}
        self.all_targets = False

    def get(self, triple: str, cpu: str, features: str, level: int) -> Any:
        key = (triple, cpu, features, level)
        tm = self.made.get(key)
        if tm is None:
            tm = self.made[key] = self._make(triple, cpu, features, level)
        return tm

    def _make(self, triple: str, cpu: str, features: str, level: int) -> Any:
        llvm = self.llvm
        try:
            target = llvm.Target.from_triple(triple)
        except RuntimeError:
            if self.all_targets:
                raise
            llvm.initialize_all_targets()
            llvm.initialize_all_asmprinters()
            self.all_targets = True
            target = llvm.Target.from_triple(triple)
        return target.create_target_machine(cpu=cpu, features=features, opt=level, reloc="pic", codemodel="small")


def _pass_builder(llvm: Any, tm: Any, level: int) -> Any:
    """Scalar clean-up only: Tessera's IR is explicit vectors in their final shape, so the vectorisers stay off."""
    options = llvm.create_pipeline_tuning_options(speed_level=level)
    options.loop_vectorization = False
    options.slp_vectorization = False
    options.loop_interleaving = False
    options.loop_unrolling = False
    return llvm.create_pass_builder(tm, options)


def compile_module(llvm: Any, machines: Machines, request: dict[str, Any], text: str) -> tuple[bytes, tuple[float, ...]]:
    """The object file (or assembly, or optimised IR) of one module, as bytes."""
    start = time.perf_counter()
    level = request["level"]
    tm = machines.get(request["triple"], request["cpu"], request["features"], level)
    module = llvm.parse_assembly(text)
    module.triple = request["triple"]
    module.data_layout = str(tm.target_data)
    module.verify()
    parsed = time.perf_counter()
    builder = _pass_builder(llvm, tm, level)
    builder.getModulePassManager().run(module, builder)
    optimised = time.perf_counter()
    emit = request["emit"]
    if emit == "ll":
        out = str(module).encode()
    elif emit == "asm":
        out = tm.emit_assembly(module).encode()
    else:
        out = tm.emit_object(module)
    module.close()
    return out, (parsed - start, optimised - parsed, time.perf_counter() - optimised)


_SPIRV_EXTENSIONS = "+SPV_INTEL_subgroup_matrix_multiply_accumulate"
"""What a module may declare beyond SPIR-V's core, and does where it uses it."""


def compile_in_child(llvm: Any, machines: Machines, request: dict[str, Any], text: str) -> tuple[bytes, tuple[float, ...]]:
    """:func:`compile_module` in a forked child: LLVM's SPIR-V back end keeps pointers into the module that it compiled
    before, and spoils the next one.  A child that dies takes this process with it, as LLVM itself would have."""
    llvm.initialize_all_targets()
    llvm.initialize_all_asmprinters()
    out, into = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            llvm.set_option("", f"--spirv-ext={_SPIRV_EXTENSIONS}")
            payload, seconds = compile_module(llvm, machines, request, text)
            answer: dict[str, Any] = {"seconds": seconds}
        except Exception as e:
            payload, answer = b"", {"error": str(e)}
        header = json.dumps(answer).encode()
        _write_all(into, HEADER.pack(len(header), len(payload)) + header + payload)
        os._exit(0)
    os.close(into)
    parts = []
    while part := os.read(out, 1 << 20):
        parts.append(part)
    os.close(out)
    _, status = os.waitpid(child, 0)
    if status:
        os.kill(os.getpid(), os.WTERMSIG(status) if os.WIFSIGNALED(status) else 6)
    whole = b"".join(parts)
    head, size = HEADER.unpack_from(whole)
    answer = json.loads(whole[HEADER.size:HEADER.size + head])
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return whole[HEADER.size + head:HEADER.size + head + size], tuple(answer["seconds"])


def serve(requests: int, answers: int) -> NoReturn:
    """Answer requests until the parent closes the pipe."""
    import llvmlite.binding as llvm  # type: ignore[import-untyped]
    llvm.initialize_native_target()
    llvm.initialize_native_asmprinter()
    machines = Machines(llvm)
    parent = os.getppid()
    while True:
        _wait_for_request(requests, parent)
        head, body = HEADER.unpack(_read_exactly(requests, HEADER.size))
        request = json.loads(_read_exactly(requests, head))
        text = _read_exactly(requests, body).decode()
        try:
            compiled = compile_in_child if request["triple"].startswith("spirv") else compile_module
            payload, seconds = compiled(llvm, machines, request, text)
            answer: dict[str, Any] = {"ok": True, "seconds": seconds}
        except Exception as e:
            payload, answer = str(e).encode(), {"ok": False, "seconds": ()}
        header = json.dumps(answer).encode()
        _write_all(answers, HEADER.pack(len(header), len(payload)) + header + payload)


if __name__ == "__main__":
    sys.path.append(sys.argv[1])  # where llvmlite lies; nothing else of the user's environment is seen
    answers = os.dup(1)
    os.dup2(2, 1)  # whatever LLVM prints must not get into the answers
    serve(0, answers)
