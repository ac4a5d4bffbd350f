"""LLVM in worker processes: answers, refusals, deaths, forks."""

import os
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tessera.errors import CompileError
from tessera.machine import host_cpu
from tessera.runtime.llvm_workers import Request, Workers

M = host_cpu()
ADD = "define i32 @f(i32 %a) {\n  %b = add i32 %a, 1\n  ret i32 %b\n}\n"
# Inline assembly for a target whose streamer has no parser, such as a word that is no instruction, ends LLVM itself.
FATAL = 'define i32 @f(i32 %a) {\n  call void asm sideeffect "no such instruction", ""()\n  ret i32 %a\n}\n'


@pytest.fixture(scope="module")
def llvm():
    w = Workers(2)
    yield w
    w.stop()


def request(text, **kw):
    return Request(text, M.triple, M.cpu, M.llvm_features, **kw)


def test_object_assembly_and_optimised_ir(llvm):
    assert llvm.compile(request(ADD))[:4] == b"\x7fELF"
    assert b"f:" in llvm.compile(request(ADD, emit="asm"))
    assert b"target datalayout" in llvm.compile(request(ADD, emit="ll"))


def test_other_targets(llvm):
    code = llvm.compile(Request(ADD, "aarch64-unknown-linux-gnu", "generic", "+neon"))
    assert code[18:20] == (183).to_bytes(2, "little")


def test_refused_ir_is_kept(llvm):
    with pytest.raises(CompileError, match="LLVM refused 'broken'") as e:
        llvm.compile(request("define i32 @f(", name="broken"))
    path = str(e.value).split("is kept in ")[1].split()[0].rstrip(".")
    assert "define i32 @f(" in Path(path).read_text()


def test_death_is_an_error_and_the_next_request_works(llvm):
    with pytest.raises(CompileError, match="LLVM died on 'fatal'") as e:
        llvm.compile(request(FATAL, name="fatal"))
    assert "exit status -6" in str(e.value)
    path = str(e.value).split("is kept in ")[1].split()[0].rstrip(".")
    assert "no such instruction" in Path(path).read_text()
    assert llvm.compile(request(ADD))[:4] == b"\x7fELF"


def test_many_requests_at_once(llvm):
    texts = [ADD.replace("@f", f"@f{i}").replace("1", str(i)) for i in range(20)]
    futures = [llvm.submit(request(t)) for t in texts]
    for i, f in enumerate(futures):
        assert f"f{i}".encode() in f.result(timeout=30)
    assert len(llvm._processes) <= 2


def test_a_worker_killed_while_idle_fails_one_request_at_most(llvm):
    for p in list(llvm._processes):
        p.popen.kill()
        p.popen.wait()
    for _ in range(3):
        try:
            llvm.compile(request(ADD))
        except CompileError:
            continue
        break
    assert llvm.compile(request(ADD))[:4] == b"\x7fELF"


def run_python(code, **kw):
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=60, **kw)


PRELUDE = """
import os, sys, time
from tessera.machine import host_cpu
from tessera.runtime.llvm_workers import Request, workers
M = host_cpu()
R = Request("define void @f() {\\n  ret void\\n}", M.triple, M.cpu, M.llvm_features)
"""


def test_workers_end_with_their_parent():
    out = run_python(PRELUDE + """
workers().compile(R)
print(workers()._processes[0].popen.pid, flush=True)
os.kill(os.getpid(), 9)
""")
    pid = int(out.stdout)
    for _ in range(100):
        if not os.path.exists(f"/proc/{pid}") or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z":
            return
        time.sleep(0.05)
    raise AssertionError("the worker outlives its parent")


def test_standard_input_is_left_alone():
    out = run_python(PRELUDE + "workers().compile(R)\nprint(sys.stdin.read())", input="for the user")
    assert out.stdout.strip() == "for the user", out.stderr


def test_a_forked_child_has_workers_of_its_own():
    out = run_python(PRELUDE + """
workers().compile(R)
parent = workers()._processes[0].popen.pid
child = os.fork()
if child == 0:
    workers().compile(R)
    os._exit(0 if workers()._processes[0].popen.pid != parent else 1)
assert os.waitpid(child, 0)[1] == 0
workers().compile(R)
assert workers()._processes[0].popen.pid == parent
print("ok")
""")
    assert out.stdout.strip() == "ok", out.stderr
