"""Compiled programs: sizes, arrays of every form, errors, sharing, processes, interrupts, shutdown."""

import os
import re
import subprocess
import sys
import textwrap
import threading
from dataclasses import replace

import numpy as np
import pytest

import tessera as ts
from tessera.errors import CompileError, DTypeError, ShapeError
from tessera.ir.text import parse_function
from tessera.machine import X86_AVX2, host_cpu
from tessera.ops.table import OPS
from tessera.runtime.compiler import Compiler
from tessera.runtime.executable import Executable
from tessera.runtime.stages import Exchange
from tessera.targets.cpu import pool, program

ts.Tensor  # noqa: B018  (assembles the package: the grammar of Graph IR is the op table)

AFFINE = """
graph @affine(%x: f32[B, 16], %y: f32[16]) with {effects = (), sizes = ("B",), captured = 0, constraints = ()} {
  %0 = broadcast_to(%y) {shape = (<B>, 16)} : f32[B, 16]
  %1 = add(%x, %0) : f32[B, 16]
  %2 = mul(%1, %1) : f32[B, 16]
  return(%2)
}"""


def floats(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@pytest.fixture
def affine(compiler):
    return compiler.compile(parse_function(AFFINE))


Y = floats(16, seed=1)


@pytest.mark.parametrize("b", [1, 2, 3, 17, 300, 20000])
def test_one_program_serves_every_size(affine, b):
    x = floats(b, 16)
    np.testing.assert_array_equal(affine([x, Y])[0], (x + Y) * (x + Y))


def test_every_form_of_array(affine):
    x = floats(12, 16)
    want = (x + Y) * (x + Y)
    unaligned = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(12, 16)
    read_only = x.copy()
    read_only.flags.writeable = False
    for form in (np.asfortranarray(x), np.repeat(x, 2, 0)[::2], x[::-1].copy()[::-1], unaligned, read_only,
                 x.view(type("Sub", (np.ndarray,), {}))):
        np.testing.assert_array_equal(affine([form, Y])[0], want)
    np.testing.assert_array_equal(affine([x, Y.astype(">f4").astype("<f4")])[0], want)
    np.testing.assert_array_equal(affine([x, np.ascontiguousarray(Y[::-1])[::-1]])[0], want)


def test_wrong_arrays(affine):
    x = floats(4, 16)
    with pytest.raises(DTypeError, match="another element type"):
        affine([x.astype(np.float64), Y])
    with pytest.raises(ShapeError, match="another shape"):
        affine([x, Y[:3]])
    with pytest.raises(ShapeError, match="another shape"):
        affine([x[0], Y])
    with pytest.raises(ShapeError, match="takes 2 arrays, not 1"):
        affine([x])
    np.testing.assert_array_equal(affine([x, Y])[0], (x + Y) ** 2)


def test_results_are_fresh_memory(affine):
    x = floats(4000, 16)
    a, = affine([x, Y])
    b, = affine([x, Y])
    assert not np.shares_memory(a, b)
    a[:] = 0
    np.testing.assert_array_equal(b, (x + Y) ** 2)


def test_bits_do_not_depend_on_threads(compiler, monkeypatch):
    text = """
graph @rows(%x: f32[B, 777]) with {effects = (), sizes = ("B",), captured = 0, constraints = ()} {
  %0 = exp(%x) : f32[B, 777]
  %1 = reduce_sum(%0) {axes = (1,)} : f32[B]
  %2 = log(%1) : f32[B]
  %3 = reduce_sum(%2) {axes = (0,)} : f32[]
  return(%1, %3)
}"""
    monkeypatch.setattr(program, "SERIAL_WORK", 0)
    run = compiler.compile(parse_function(text))
    x = floats(501, 777)
    seen = set()
    try:
        for n in (1, 2, 3, 7, 2):
            pool.set_num_threads(n)
            rows, total = run([x])
            seen.add((rows.tobytes(), total.tobytes()))
    finally:
        pool.set_num_threads(2)
    assert len(seen) == 1
    np.testing.assert_allclose(rows, np.exp(x.astype(np.float64)).sum(1), rtol=1e-5)


def test_two_user_threads_in_one_program(affine):
    wrong = []

    def work(seed):
        x = floats(3000, 16, seed=seed)
        want = (x + Y) * (x + Y)
        for _ in range(50):
            if not np.array_equal(affine([x, Y])[0], want):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


DIVIDE = """
graph @divide(%x: int64[N], %y: int64[N]) with {effects = (), sizes = ("N",), captured = 0, constraints = ()} {
  %0 = floor_div(%x, %y) : int64[N]
  return(%0)
}"""


def test_a_failed_check_is_an_error_and_the_next_call_works(compiler):
    run = compiler.compile(parse_function(DIVIDE))
    x, y = np.arange(10), np.arange(10)
    for _ in range(3):
        with pytest.raises(ts.NumericalError, match="floor_div by zero"):
            run([x, y])
        np.testing.assert_array_equal(run([x, y + 1])[0], x // (y + 1))


def test_the_error_names_the_users_line():
    @ts.jit
    def ratio(a, b):
        return a // b

    with pytest.raises(ts.NumericalError) as e:
        ratio(ts.tensor([1, 2]), ts.tensor([1, 0]))
    assert "return a // b  # ← Error here" in str(e.value)


def test_a_template_that_checks_its_operand_names_the_users_line():
    @ts.jit
    def factor(a):
        return ts.linalg.cholesky(a) + 1

    indefinite = ts.tensor([[1.0, 2.0], [2.0, 1.0]])
    for call in (factor, ts.linalg.cholesky):  # compiled and eager
        with pytest.raises(ts.NumericalError, match="leading minor of order 2"):
            call(indefinite)
    with pytest.raises(ts.NumericalError) as e:
        factor(indefinite)
    assert "return ts.linalg.cholesky(a) + 1  # ← Error here" in str(e.value)
    np.testing.assert_array_equal(factor(ts.eye(2)).numpy(), np.eye(2) + 1)
    with ts.unchecked():
        assert np.isnan(ts.linalg.cholesky(indefinite).numpy()).all()


@pytest.mark.skipif(not host_cpu().triple.startswith("x86_64"), reason="x86 descriptions")
def test_a_lesser_machine_has_a_cache_of_its_own(disk):
    fn, x = parse_function(AFFINE), floats(5, 16)
    for machine in (X86_AVX2, host_cpu(), X86_AVX2):
        c = Compiler(machine, disk)
        np.testing.assert_array_equal(c.compile(fn)([x, Y])[0], (x + Y) ** 2)
    assert c.cached_programs == 1
    assert Compiler(X86_AVX2, disk).program_key(fn) != Compiler(cache=disk).program_key(fn)


# -- the disk cache ------------------------------------------------------------------------------------------------------
def test_a_warm_start_lowers_nothing(disk, monkeypatch):
    fn = parse_function(AFFINE)
    Compiler(cache=disk).compile(fn)
    warm = Compiler(cache=disk)
    monkeypatch.setattr(Compiler, "build", lambda *a, **k: pytest.fail("lowered in spite of the cache"))
    x = floats(5, 16)
    np.testing.assert_array_equal(warm.compile(fn)([x, Y])[0], (x + Y) ** 2)
    assert warm.cached_programs == 1


def test_a_warm_start_loads_no_llvm(tmp_path):
    code = f"""
import sys
import numpy as np, tessera as ts
from tessera.ir.text import parse_function
ts.Tensor
from tessera import runtime
e = runtime.host_compiler().compile(parse_function({AFFINE!r}))
e([np.ones((2, 16), np.float32), np.ones(16, np.float32)])
print("scheduled" if "tessera.scheduling" in sys.modules or "tessera.tiling.lower" in sys.modules else "loaded",
      "llvmlite" in sys.modules, "subprocess" in sys.modules)
"""
    env = {**os.environ, "TESSERA_CACHE": str(tmp_path / "c")}
    first, second = (subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=60)
                     for _ in range(2))
    assert first.stdout.split()[0] == "scheduled", first.stderr
    assert second.stdout.split() == ["loaded", "False", "False"], second.stderr


def test_damaged_and_foreign_entries_are_compiled_anew(disk):
    fn = parse_function(AFFINE)
    Compiler(cache=disk).compile(fn)
    key = Compiler(cache=disk).program_key(fn)
    x = floats(5, 16)
    for payload in (b"", b"rubbish", disk.get("programs", key)[:-100]):
        disk.put("programs", key, payload)
        again = Compiler(cache=disk)
        np.testing.assert_array_equal(again.compile(fn)([x, Y])[0], (x + Y) ** 2)
        assert again.cached_programs == 0


def test_the_key_depends_on_meaning_only(compiler):
    key = compiler.program_key(parse_function(AFFINE))
    assert key == compiler.program_key(parse_function(AFFINE + "\n"))
    assert key != compiler.program_key(parse_function(AFFINE.replace("mul", "add")))


def test_equal_launches_are_one_kernel(compiler):
    text = """
graph @twice(%x: f32[64, 256]) with {effects = (), sizes = (), captured = 0, constraints = ()} {
  %0 = softmax(%x) {axis = 1} : f32[64, 256]
  %1 = cumsum(%0) {axis = 1} : f32[64, 256]
  %2 = softmax(%1) {axis = 1} : f32[64, 256]
  %3 = cumsum(%2) {axis = 1} : f32[64, 256]
  return(%3)
}"""
    run = compiler.compile(parse_function(text))
    kernels = [k for _, k in run.manifest.launches]
    assert len(set(kernels)) < len(kernels)


# -- stages ----------------------------------------------------------------------------------------------------------------
def test_dump_and_override(disk, tmp_path, monkeypatch):
    fn = parse_function(AFFINE)
    dump, override = tmp_path / "dump", tmp_path / "override"
    override.mkdir()
    x = floats(5, 16)
    monkeypatch.setenv("TESSERA_DUMP", str(dump))
    Compiler(cache=disk).compile(fn)
    found = {p.suffix: p for p in dump.iterdir()}
    assert set(found) == {".graph", ".sched", ".tile", ".ll", ".o"}
    monkeypatch.delenv("TESSERA_DUMP")
    monkeypatch.setenv("TESSERA_OVERRIDE", str(override))
    for suffix, old, new in ((".graph", "add(", "sub("), (".sched", "add(", "sub("), (".ll", "fadd", "fsub")):
        for p in override.iterdir():
            p.unlink()
        text = found[suffix].read_text()
        assert old in text
        (override / f"affine{suffix}").write_text(text.replace(old, new))
        np.testing.assert_array_equal(Compiler(cache=disk).compile(fn)([x, Y])[0], (x - Y) * (x - Y))
    for p in override.iterdir():
        p.unlink()
    text = found[".tile"].read_text()
    edited = re.sub(r"= add\((%\d+), (%\d+)\) : tile", r"= sub(\1, \2) : tile", text)
    assert edited != text
    (override / "affine.tile").write_text(edited)
    np.testing.assert_array_equal(Compiler(cache=disk).compile(fn)([x, Y])[0], (x - Y) * (x - Y))


def test_an_edited_dump_is_read_back_under_its_own_name(disk, tmp_path, monkeypatch):
    fn, there = parse_function(AFFINE), tmp_path / "dump"
    monkeypatch.setenv("TESSERA_DUMP", str(there))
    Compiler(cache=disk).compile(fn)
    monkeypatch.delenv("TESSERA_DUMP")
    (dumped,) = there.glob("*.graph")
    assert dumped.stem != "affine"
    for p in there.iterdir():
        if p != dumped:
            p.unlink()
    dumped.write_text(dumped.read_text().replace("add(", "sub("))
    monkeypatch.setenv("TESSERA_OVERRIDE", str(there))
    x = floats(5, 16)
    np.testing.assert_array_equal(Compiler(cache=disk).compile(fn)([x, Y])[0], (x - Y) * (x - Y))


def test_a_bad_override_is_an_error_with_its_place(disk, tmp_path, monkeypatch):
    monkeypatch.setenv("TESSERA_OVERRIDE", str(tmp_path))
    (tmp_path / "affine.graph").write_text("graph @affine(%x: f32[B, 16]) {\n  %0 = what(%y) : f32[]\n}")
    with pytest.raises(CompileError, match="line 2"):
        Compiler(cache=disk).compile(parse_function(AFFINE))


def test_an_ungrammatical_override_is_refused(disk, tmp_path, monkeypatch):
    monkeypatch.setenv("TESSERA_OVERRIDE", str(tmp_path))
    (tmp_path / "affine.graph").write_text(AFFINE.replace("add(%x, %0) : f32[B, 16]", "add(%x, %0) : f32[B, 15]"))
    with pytest.raises(CompileError, match="not well-formed"):
        Compiler(cache=disk).compile(parse_function(AFFINE))


def test_the_stages_as_text(compiler):
    run = compiler.compile(parse_function(AFFINE))
    assert run.schedule_ir.startswith("sched @affine(")
    assert run.tile_ir.startswith("tile @")
    assert "define void @" in run.target_ir and "@program(ptr %ctx, i64 %tid)" in run.target_ir
    assert "vaddps" in compiler.show(parse_function(AFFINE), "asm") or "fadd" in compiler.show(parse_function(AFFINE), "asm")
    assert "1 launches of 1 kernels" in run.explain()
    with pytest.raises(CompileError, match="no stage 'nonsense'"):
        compiler.show(parse_function(AFFINE), "nonsense")


def test_stages_verify_what_they_get(compiler):
    fn = parse_function(AFFINE)
    fn.body.ops[1].results[0].type = fn.args[1].type
    with pytest.raises(CompileError, match="graph stage of 'affine' is not well-formed"):
        compiler.build(fn, Exchange("affine", "affine"), "graph")


def test_an_llvm_abort_is_an_exception(compiler, tmp_path, monkeypatch):
    fn = parse_function(AFFINE)
    text = compiler.show(fn, "ll")
    (tmp_path / "affine.ll").write_text(text.replace("ret void", 'call void asm sideeffect "no such instruction", ""()\n  ret void'))
    monkeypatch.setenv("TESSERA_OVERRIDE", str(tmp_path))
    with pytest.raises(CompileError, match="LLVM died on"):
        compiler.compile(fn)
    monkeypatch.delenv("TESSERA_OVERRIDE")
    x = floats(5, 16)
    np.testing.assert_array_equal(compiler.compile(fn)([x, Y])[0], (x + Y) ** 2)


# -- processes, signals, shutdown ----------------------------------------------------------------------------------------------
BIG = """
import os, signal, sys, threading, time
import numpy as np
import tessera as ts
from tessera.ir.text import parse_function
ts.Tensor
from tessera import runtime
from tessera.targets.cpu import pool, program
program.SERIAL_WORK = 0
pool.set_num_threads(3)
""" + f"run = runtime.host_compiler().compile(parse_function({AFFINE!r}))\n" + """
y = np.ones(16, np.float32)
x = np.ones((50000, 16), np.float32)
"""


def python(code, tmp_path, **kw):
    env = {**os.environ, "TESSERA_CACHE": str(tmp_path / "c")}
    return subprocess.run([sys.executable, "-c", BIG + textwrap.dedent(code)], capture_output=True, text=True, env=env,
                          timeout=60, **kw)


def test_fork(tmp_path):
    """A forked child has a pool of its own, and the parent keeps its."""
    out = python("""
        assert (run([x, y])[0] == 4).all() and pool._state.pool is not None
        for _ in range(3):
            child = os.fork()
            if child == 0:
                assert pool._state.pool is None
                for _ in range(20):
                    assert (run([x, y])[0] == 4).all()
                assert pool._state.pool is not None
                os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            assert (run([x, y])[0] == 4).all()
        print("ok")
        """, tmp_path)
    assert out.stdout.strip() == "ok", out.stderr


def test_fork_while_another_thread_is_inside(tmp_path):
    out = python("""
        stop = []
        def work():
            while not stop:
                run([x, y])
        t = threading.Thread(target=work)
        t.start()
        for _ in range(10):
            child = os.fork()
            if child == 0:
                ok = (run([x, y])[0] == 4).all()
                os._exit(0 if ok else 1)
            assert os.waitpid(child, 0)[1] == 0
        stop.append(1)
        t.join()
        print("ok")
        """, tmp_path)
    assert out.stdout.strip() == "ok", out.stderr


@pytest.mark.parametrize("how", ["sys.exit(3)", "raise SystemExit(3)"])
def test_shutdown_while_other_threads_compute(tmp_path, how):
    out = python(f"""
        def work():
            while True:
                run([x, y])
        for _ in range(3):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.2)
        {how}
        """, tmp_path)
    assert out.returncode == 3, (out.returncode, out.stderr)
    assert not out.stderr


def test_interrupt_after_a_call(tmp_path):
    """Ctrl-C during native code arrives when the call is over, and later calls work."""
    out = python("""
        big = np.ones((4_000_000, 16), np.float32)
        run([big, y])
        hits = 0
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        for i in range(12):
            try:
                signal.setitimer(signal.ITIMER_REAL, 0.002)
                for _ in range(1000):
                    assert (run([big, y])[0][::100000] == 4).all()
            except KeyboardInterrupt:
                hits += 1
            assert (run([x, y])[0] == 4).all()
        print(hits)
        """, tmp_path)
    assert out.stdout.strip() == "12", (out.stdout, out.stderr)


FOREVER = """
graph @forever(%x: f32[16]) with {effects = (), sizes = (), captured = 0, constraints = ()} {
  %0 = while(%x) do(%c: f32[16]) {
    %t = constant() {value = dense<bool[]: 01>} : bool[]
    yield(%t)
  } do(%c2: f32[16]) {
    %n = neg(%c2) : f32[16]
    yield(%n)
  } : f32[16]
  return(%0)
}"""


def test_an_endless_loop_can_be_interrupted(tmp_path):
    out = python(f"""
        spin = runtime.host_compiler().compile(parse_function({FOREVER!r}))
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            spin([y])
        except KeyboardInterrupt:
            print("interrupted")
        assert (run([x, y])[0] == 4).all()
        class Custom(Exception): pass
        def handler(*_): raise Custom("mine")
        signal.signal(signal.SIGINT, handler)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
        try:
            spin([y])
        except Custom as e:
            print(e)
        """, tmp_path)
    assert out.stdout.split() == ["interrupted", "mine"], out.stderr


def test_several_processes_share_the_cache(tmp_path):
    code = BIG + "print((run([x, y])[0] == 4).all())"
    env = {**os.environ, "TESSERA_CACHE": str(tmp_path / "c")}
    several = [subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=env, text=True) for _ in range(3)]
    assert [p.communicate(timeout=60)[0].strip() for p in several] == ["True"] * 3


def test_the_fallback_without_numpys_layout(affine, monkeypatch):
    from tessera.runtime import executable
    monkeypatch.setattr(executable, "_KNOWN_LAYOUT", False)
    x = floats(7, 16)
    np.testing.assert_array_equal(affine([x, Y])[0], (x + Y) ** 2)
    np.testing.assert_array_equal(affine([x[::-1], Y])[0], ((x + Y) ** 2)[::-1])
    assert isinstance(affine, Executable)


def test_unchecked():
    x, i = ts.tensor([1.0, 2.0, 3.0]), ts.tensor([0, 7])

    @ts.jit
    def inside(x, i):
        with ts.unchecked():
            return x[i]

    @ts.jit
    def checked(x, i):
        return x[i]

    with ts.unchecked():
        ts.tensor([1, 2]) // ts.tensor([0, 1])
        with pytest.raises(ts.IndexOutOfRangeError):
            checked(x, i)
    assert inside(x, i).tolist() == [1.0, 3.0]
    with pytest.raises(ts.NumericalError):
        ts.tensor([1, 2]) // ts.tensor([0, 1])


def test_a_check_of_an_eager_op_names_the_line_of_its_call():
    """The program is kept from the line that first used it."""
    x = ts.arange(5)
    x // 3
    with pytest.raises(ts.NumericalError) as e:
        x // ts.zeros(5, dtype=ts.int64)
    assert "x // ts.zeros(5, dtype=ts.int64)  # ← Error here" in str(e.value)
    ts.arange(4) // ts.ones(4, dtype=ts.int64)
    with pytest.raises(ts.NumericalError) as e:
        ts.arange(4) // ts.zeros(4, dtype=ts.int64)
    assert "ts.arange(4) // ts.zeros(4, dtype=ts.int64)  # ← Error here" in str(e.value)


def test_a_tile_function_works_on_arrays_in_place(compiler):
    text = """
tile @rising(%x: buf<f32[N]>, %y: buf<f32[N]>, %N: int64) with {grid = (<(N+15)//16>,), sizes = ("N",), writes = (1,)} {
  %p = program_id() {axis = 0} : int64
  %w = constant() {value = 16} : int64
  %o = mul(%p, %w) : int64
  %t = load(%x, %o) {check = (0,)} : tile<f32[16]>
  %u = add(%t, %t) : tile<f32[16]>
  store(%y, %o, %u) {check = (0,)}
  return()
}"""
    tile = parse_function(text)
    run = compiler.compile(tile)
    for n in (1, 16, 33, 5000):
        x, y = floats(n), np.zeros(n, np.float32)
        assert run([x, y]) == []
        np.testing.assert_array_equal(y, x + x)
    assert tile.name == "rising"
    again = Compiler(cache=compiler.cache)
    again.compile(tile)([x, y])
    assert again.cached_programs == 1


def test_host_routines(compiler):
    text = """
graph @factor(%x: f64[N, N]) with {effects = (), sizes = ("N",), captured = 0, constraints = ()} {
  %0 = add(%x, %x) : f64[N, N]
  %1, %2 = qr(%0) {complete = false} : f64[N, N], f64[N, N]
  %3 = neg(%2) : f64[N, N]
  return(%1, %3)
}"""
    run = compiler.compile(parse_function(text))
    for n in (3, 8, 40):
        x = np.random.default_rng(n).standard_normal((n, n))
        q, r = run([x])
        np.testing.assert_allclose(q @ -r, 2 * x, atol=1e-12)


def test_a_host_routine_that_gives_up(compiler, monkeypatch):
    text = """
graph @singular(%x: f64[4, 4]) with {effects = (), sizes = (), captured = 0, constraints = ()} {
  %0, %1, %2 = svd(%x) {full = true} : f64[4, 4], f64[4], f64[4, 4]
  return(%1)
}"""
    run = compiler.compile(parse_function(text))
    good = OPS["svd"]
    for error, expected in ((np.linalg.LinAlgError("no convergence"), ts.NumericalError), (KeyboardInterrupt(), KeyboardInterrupt)):
        def fail(*_args, error=error, **_attrs):
            raise error

        monkeypatch.setitem(OPS, "svd", replace(good, reference=fail))
        with pytest.raises(expected):
            run([np.eye(4)])
    monkeypatch.setitem(OPS, "svd", good)
    np.testing.assert_allclose(run([np.eye(4)])[0], np.ones(4))


def test_donated_inputs_are_overwritten_in_place(compiler):
    text = """
graph @step(%x: f32[B, 16], %y: f32[16]) with {effects = (), sizes = ("B",), captured = 0, constraints = (), donated = (0,)} {
  %0 = broadcast_to(%y) {shape = (<B>, 16)} : f32[B, 16]
  %1 = add(%x, %0) : f32[B, 16]
  return(%1)
}"""
    run = compiler.compile(parse_function(text))
    assert [tuple(p) for p in run.manifest.aliases] == [(0, 0)]
    for b in (3, 40000):
        x = floats(b, 16)
        want = x + Y
        out, = run([x, Y])
        assert out is x
        np.testing.assert_array_equal(out, want)
    x = floats(5, 16)
    want = x + Y
    for form in (np.asfortranarray(x), np.broadcast_to(x, x.shape)):  # what cannot be overwritten is copied
        out, = run([form, Y])
        np.testing.assert_array_equal(out, want)
        assert not np.shares_memory(out, x)
