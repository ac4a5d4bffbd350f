"""LLVM behind pipes: up to four processes that turn LLVM IR text into object files.

llvmlite holds one global lock, so processes are what gives parallel compilation; and a fatal LLVM error ends the
process it happens in, which must not be the user's.  A worker that dies is replaced, the IR that killed it is kept in a
file, and the request fails with a :class:`~tessera.errors.CompileError` that names the file.
"""

from __future__ import annotations

import atexit
import contextlib
import hashlib
import importlib.util
import json
import os
import queue
import struct
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from ..errors import CompileError
from ..machine import cpu_limit

MAX_WORKERS = 4
_HEADER = struct.Struct("<II")
_SCRIPT = Path(__file__).with_name("_llvm_worker.py")


@dataclass(frozen=True, slots=True)
class Request:
    """One module to compile.

    Attributes:
        text: LLVM IR.
        triple, cpu, features: the target machine, as LLVM spells them.
        emit: ``"obj"``, ``"asm"`` or ``"ll"`` (the optimised IR).
        level: LLVM's optimisation level, 0 to 3.
        name: what the module is called in errors.
    """

    text: str
    triple: str
    cpu: str
    features: str
    emit: str = "obj"
    level: int = 2
    name: str = "module"

    def header(self) -> bytes:
        return json.dumps({"triple": self.triple, "cpu": self.cpu, "features": self.features, "emit": self.emit,
                           "level": self.level}).encode()


class WorkerDied(Exception):
    """The process ended while it worked; the text is what it printed."""


def _llvmlite_root() -> str:
    spec = importlib.util.find_spec("llvmlite")
    if spec is None or not spec.origin:
        raise CompileError("llvmlite is not installed: Tessera generates machine code with it",
                           hints=["pip install llvmlite"])
    return str(Path(spec.origin).parent.parent)


class _Process:
    """One worker process; used by one thread at a time."""

    def __init__(self) -> None:
        self.stderr = tempfile.TemporaryFile()  # a pipe could fill up and block LLVM  # noqa: SIM115
        self.popen = subprocess.Popen(
            [sys.executable, "-I", "-S", "-X", "utf8", str(_SCRIPT), _llvmlite_root()],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.stderr, bufsize=0, close_fds=True,
            start_new_session=True)  # a session of its own: Ctrl-C in the terminal is for the user's process

    def ask(self, request: Request) -> tuple[dict[str, object], bytes]:
        assert self.popen.stdin is not None and self.popen.stdout is not None
        header, body = request.header(), request.text.encode()
        try:
            self._write(self.popen.stdin.fileno(), _HEADER.pack(len(header), len(body)) + header + body)
            head, size = _HEADER.unpack(self._read(self.popen.stdout.fileno(), _HEADER.size))
            answer = json.loads(self._read(self.popen.stdout.fileno(), head))
            return answer, self._read(self.popen.stdout.fileno(), size)
        except (BrokenPipeError, EOFError) as e:
            raise WorkerDied(self._last_words()) from e

    @staticmethod
    def _write(fd: int, data: bytes) -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view):]

    @staticmethod
    def _read(fd: int, n: int) -> bytes:
        parts = []
        while n:
            part = os.read(fd, min(n, 1 << 20))
            if not part:
                raise EOFError
            parts.append(part)
            n -= len(part)
        return b"".join(parts)

    def _last_words(self) -> str:
        self.popen.wait()
        self.stderr.seek(0)
        lines = self.stderr.read().decode(errors="replace").strip().splitlines()
        message = next((ln for ln in lines if "LLVM ERROR" in ln or "Assertion" in ln), lines[0] if lines else "")
        return f"{message} (exit status {self.popen.returncode})".strip()

    def close(self) -> None:
        for pipe in (self.popen.stdin, self.popen.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        self.stderr.close()

    def stop(self) -> None:
        """End it: it leaves when its input closes, and is killed when it does not."""
        self.close()
        try:
            self.popen.wait(timeout=0.2)
        except subprocess.TimeoutExpired:
            self.popen.kill()
            self.popen.wait()


@lru_cache(maxsize=1)
def _failed_directory() -> Path:
    """A directory of this process's own, that stays."""
    return Path(tempfile.mkdtemp(prefix="tessera-failed-"))


def keep_offending_ir(request: Request, directory: Path | None = None) -> Path:
    """Write the IR that LLVM could not compile to a file that stays, and return its path."""
    where = directory or _failed_directory()
    digest = hashlib.blake2b(request.text.encode(), digest_size=6).hexdigest()
    path = where / f"{request.name}-{digest}.ll"
    path.write_text(f"; triple {request.triple}, cpu {request.cpu}, features {request.features}\n{request.text}")
    return path


class Workers:
    """A set of worker processes and the threads that talk to them.  Thread safe; a forked child needs a new one."""

    def __init__(self, count: int | None = None):
        self.count = count or min(MAX_WORKERS, max(1, cpu_limit()))
        self.pid = os.getpid()
        self._jobs: queue.SimpleQueue[tuple[Request, Future[bytes]] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._processes: list[_Process] = []
        self._busy = 0
        self._closed = False

    def start(self, count: int = 1) -> None:
        """Start up to ``count`` processes now, so that they are ready when the first request comes."""
        with self._lock:
            if self._closed:
                raise CompileError("the compiler's worker processes have been stopped")
            while len(self._threads) < min(count, self.count):
                t = threading.Thread(target=self._serve, name=f"tessera-llvm-{len(self._threads)}", daemon=True)
                self._threads.append(t)
                t.start()

    def submit(self, request: Request) -> Future[bytes]:
        """Compile in the background; the future gives the bytes or raises :class:`CompileError`."""
        with self._lock:
            self._busy += 1
            wanted = self._busy
        self.start(wanted)
        future: Future[bytes] = Future()
        self._jobs.put((request, future))
        return future

    def compile(self, request: Request) -> bytes:
        """Compile and wait.

        Raises:
            CompileError: LLVM refused the module or died of it; the IR is kept in the file that the message names.
        """
        return self.submit(request).result()

    def _serve(self) -> None:
        process: _Process | None = None
        while True:
            try:
                process = process or self._open()
            except Exception as e:
                self._fail_next(e)
                continue
            job = self._jobs.get()
            if job is None:
                return
            request, future = job
            try:
                try:
                    answer, payload = process.ask(request)
                except WorkerDied as e:
                    self._drop(process)
                    process = None
                    raise self._error(request, f"LLVM died on {request.name!r}", str(e)) from None
                if not answer["ok"]:
                    raise self._error(request, f"LLVM refused {request.name!r}", payload.decode(errors="replace"))
                future.set_result(payload)
            except BaseException as e:
                future.set_exception(e)
            finally:
                with self._lock:
                    self._busy -= 1

    def _fail_next(self, error: Exception) -> None:
        job = self._jobs.get()
        if job is not None:
            with self._lock:
                self._busy -= 1
            job[1].set_exception(error)

    @staticmethod
    def _error(request: Request, what: str, message: str) -> CompileError:
        path = keep_offending_ir(request)
        error = CompileError(f"{what}: {message}", sentence=f"The LLVM IR that was being compiled is kept in {path}.",
                             hints=["this is a defect in Tessera: please report it together with that file"])
        error.frames = ()  # this thread's frames say nothing to the user
        return error

    def _open(self) -> _Process:
        process = _Process()
        with self._lock:
            self._processes.append(process)
        return process

    def _drop(self, process: _Process) -> None:
        with self._lock:
            if process in self._processes:
                self._processes.remove(process)
        process.close()

    def stop(self) -> None:
        """End every process; requests under way fail."""
        with self._lock:
            self._closed = True
            processes, self._processes = self._processes, []
        for _ in self._threads:
            self._jobs.put(None)
        for p in processes:
            p.stop()

    def abandon(self) -> None:
        """In a forked child: let go of the parent's processes without ending them."""
        for p in self._processes:
            p.popen.returncode = 0  # not this process's child: nothing to wait for
            p.close()


_shared: Workers | None = None
_shared_lock = threading.Lock()


def workers() -> Workers:
    """The process's own set, made at first use."""
    global _shared
    with _shared_lock:
        if _shared is None:
            _shared = Workers()
        return _shared


def _stop_shared() -> None:
    if _shared is not None and _shared.pid == os.getpid():
        _shared.stop()


def _after_fork() -> None:
    global _shared, _shared_lock
    _shared_lock = threading.Lock()
    if _shared is not None:
        _shared.abandon()
        _shared = None


atexit.register(_stop_shared)
os.register_at_fork(after_in_child=_after_fork)
