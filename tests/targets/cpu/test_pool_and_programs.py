"""Whole programs as native functions: order, control flow, sizes, host routines, threads."""

import ctypes
import threading
import time

import numpy as np
import pytest
from native_harness import Native, elementwise, floats

from tessera.errors import CompileError
from tessera.ir.text import parse_function
from tessera.runtime.llvm_workers import Request, workers
from tessera.targets.cpu import elf, frame, pool, pool_ir, program
from tessera.targets.cpu.hazards import Accesses
from tessera.targets.cpu.program import arena_bytes, emit_program

ADD1 = elementwise("add1", "%r = fadd <16 x float> %a, splat (float 1.0)")
TWICE = elementwise("twice", "%r = fmul <16 x float> %a, splat (float 2.0)")
SUM = elementwise("sum", "%r = fadd <16 x float> %a, %b", operands=2)
KERNELS = {"add1": ADD1, "twice": TWICE, "sum": SUM}

CHAIN = """
sched @p(%x: buf<f32[N]>, %y: buf<f32[N]>) with {inputs = 1, outputs = 1, sizes = ("N",), arena = <8*N>} {
  %t = alloc() {offset = 0} : buf<f32[N]>
  %u = alloc() {offset = <4*N>} : buf<f32[N]>
  kernel(%x, %t) {name = "add1", outs = (1,)}
  kernel(%x, %u) {name = "twice", outs = (1,)}
  kernel(%t, %u, %y) {name = "sum", outs = (2,)}
  kernel(%y, %t) {name = "add1", outs = (1,)}
  kernel(%t, %y) {name = "twice", outs = (1,)}
  return()
}"""


@pytest.fixture(autouse=True)
def threads():
    yield
    pool.set_num_threads(2)


@pytest.fixture(params=["shared", "serial"])
def sharing(request, monkeypatch):
    """Every launch shared out, or none."""
    monkeypatch.setattr(program, "SERIAL_WORK", 0 if request.param == "shared" else 1 << 60)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("n", [16, 160, 4096, 100000])
def test_chain(sharing, count, n):
    pool.set_num_threads(count)
    run = Native(CHAIN, KERNELS)
    x, y = floats(n), np.empty(n, np.float32)
    for _ in range(20):
        y[:] = np.nan
        assert run(x, y, sizes={"N": n}.items()) == frame.DONE
        np.testing.assert_array_equal(y, ((x + 1) + x * 2 + 1) * 2)


def test_mixed_small_and_large_launches(monkeypatch):
    """A small launch between large ones is run by one thread; its neighbours still see what it wrote."""
    monkeypatch.setattr(program, "SERIAL_WORK", 2000)
    small, big = 16, 64000
    edge = elementwise("edge", "%r = fadd <16 x float> %a, splat (float 5.0)", grid="1")
    text = """
sched @p(%x: buf<f32[N]>, %y: buf<f32[N]>) with {inputs = 1, outputs = 1, sizes = ("N",), arena = 0} {
  kernel(%x, %y) {name = "add1", outs = (1,)}
  kernel(%y, %y) {name = "edge", outs = (1,)}
  kernel(%y, %y) {name = "edge", outs = (1,)}
  kernel(%y, %y) {name = "twice", outs = (1,)}
  kernel(%y, %y) {name = "edge", outs = (1,)}
  return()
}"""
    pool.set_num_threads(3)
    run = Native(text, {**KERNELS, "edge": edge})
    x, y = floats(big), np.empty(big, np.float32)
    want = (x + 1) * 2
    want[:small] = ((x[:small] + 1 + 5) + 5) * 2 + 5
    for _ in range(50):
        run(x, y, sizes={"N": big}.items())
        np.testing.assert_array_equal(y, want)


LOOPS = """
sched @layer(%a: buf<f32[M]>, %b: buf<f32[M]>) with {sizes = ("M",), arena = <4*M>} {
  %t = alloc() {offset = 0} : buf<f32[M]>
  kernel(%a, %t) {name = "inner1", outs = (1,)}
  kernel(%t, %b) {name = "inner2", outs = (1,)}
  return()
}
sched @p(%x: buf<f32[K, 64]>, %y: buf<f32[K, 64]>, %flag: buf<bool[]>) with {inputs = 1, outputs = 1, sizes = ("K",), arena = 0} {
  loop() {over = ("t", <K>)} do() {
    %s = view(%x) {offset = <64*t>} : buf<f32[64]>
    %d = view(%y) {offset = <64*(K-1-t)>} : buf<f32[64]>
    call(%s, %d) {callee = "layer"}
    yield()
  }
  cond(%flag) do() {
    kernel(%y, %y) {name = "all1", outs = (1,)}
    yield()
  } do() {
    kernel(%y, %y) {name = "all2", outs = (1,)}
    yield()
  }
  return()
}"""


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("flag", [True, False])
def test_loop_call_and_cond(sharing, count, flag):
    pool.set_num_threads(count)
    add, mul = "%r = fadd <16 x float> %a, splat (float 1.0)", "%r = fmul <16 x float> %a, splat (float 2.0)"
    kernels = {"inner1": elementwise("inner1", add, size="M", grid="M//16"),
               "inner2": elementwise("inner2", mul, size="M", grid="M//16"),
               "all1": elementwise("all1", add, size="K", grid="4*K"), "all2": elementwise("all2", mul, size="K", grid="4*K")}
    run = Native(LOOPS, kernels)
    k = 9
    x, y = floats(64 * k).reshape(k, 64), np.empty((k, 64), np.float32)
    for _ in range(10):
        assert run(x, y, np.array(flag), sizes={"K": k}.items()) == frame.DONE
        want = ((x + 1) * 2)[::-1]
        np.testing.assert_array_equal(y, want + 1 if flag else want * 2)


WHILE = """
sched @p(%x: buf<f32[N]>, %flag: buf<bool[]>) with {inputs = 1, outputs = 1, sizes = ("N",), arena = 0} {
  while() do() {
    kernel(%x, %flag) {name = "below", outs = (1,)}
    yield(%flag)
  } do() {
    kernel(%x, %x) {name = "add1", outs = (1,)}
    yield()
  }
  return()
}"""
BELOW = ("""define void @below(ptr %x, ptr %flag, i64 %N, ptr %ctx, i64 %b, i64 %e) {
  %v = load float, ptr %x
  %c = fcmp olt float %v, LIMIT
  %z = zext i1 %c to i8
  store i8 %z, ptr %flag
  ret void
}""")


def below(limit):
    tile = parse_function('tile @below(%x: buf<f32[N]>, %f: buf<bool[]>, %N: int64) with {grid = (1,), sizes = ("N",), '
                          'writes = (1,)} { return() }')
    return tile, BELOW.replace("LIMIT", limit)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_while(sharing, count):
    pool.set_num_threads(count)
    run = Native(WHILE, {"add1": ADD1, "below": below("1.0e+02")})
    x = np.zeros(3200, np.float32)
    assert run(x, np.array(False), sizes={"N": 3200}.items()) == frame.DONE
    assert (x == 100).all()


EXTERNAL = """
sched @p(%x: buf<f32[N]>, %y: buf<f32[N]>) with {inputs = 1, outputs = 1, sizes = ("N",), arena = <4*N>} {
  %t = alloc() {offset = 0} : buf<f32[N]>
  kernel(%x, %t) {name = "add1", outs = (1,)}
  external(%t, %y) {function = "reverse", op = "reverse", outs = (1,)}
  kernel(%y, %y) {name = "twice", outs = (1,)}
  return()
}"""


def test_host_routine(sharing):
    pool.set_num_threads(3)
    run = Native(EXTERNAL, KERNELS)
    n, seen = 1600, []

    def host(handle, call, pointers):
        a, b = (np.ctypeslib.as_array((ctypes.c_float * n).from_address(p)) for p in (ctypes.c_uint64 * 2).from_address(pointers))
        seen.append((call, threading.get_ident()))
        b[:] = a[::-1]

    run.host = ctypes.CFUNCTYPE(None, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)(host)
    x, y = floats(n), np.empty(n, np.float32)
    run(x, y, sizes={"N": n}.items())
    np.testing.assert_array_equal(y, (x + 1)[::-1] * 2)
    assert seen == [(0, threading.get_ident())]


def test_constants_are_in_the_program():
    text = """
sched @p(%y: buf<f32[16]>) with {inputs = 0, outputs = 1, sizes = ("N",), arena = 0} {
  %c = constant() {value = dense<f32[16]: DATA>} : buf<f32[16]>
  kernel(%c, %y) {name = "add1", outs = (1,)}
  return()
}"""
    c = floats(16)
    run = Native(text.replace("DATA", c.tobytes().hex()), KERNELS)
    y = np.empty(16, np.float32)
    run(y, sizes={"N": 16}.items())
    np.testing.assert_array_equal(y, c + 1)


def test_two_callers_at_once(sharing):
    """One owns the pool, the other runs on its own thread; both are right."""
    pool.set_num_threads(2)
    run = Native(CHAIN, KERNELS)
    n, wrong = 40000, []

    def call(seed):
        x, y = floats(n, seed), np.empty(n, np.float32)
        want = ((x + 1) + x * 2 + 1) * 2
        for _ in range(60):
            y[:] = 0
            run(x, y, sizes={"N": n}.items())
            if not np.array_equal(y, want):
                wrong.append(seed)

    ts = [threading.Thread(target=call, args=(i,)) for i in range(3)]
    for t in ts:
        t.start()
    for t in ts:
        t.join()
    assert not wrong


def test_changing_the_number_of_threads_between_calls(monkeypatch):
    monkeypatch.setattr(program, "SERIAL_WORK", 0)
    run = Native(CHAIN, KERNELS)
    x, y = floats(1600), np.empty(1600, np.float32)
    for count in (2, 1, 4, 2, 3, 1, 7):
        pool.set_num_threads(count)
        assert pool.get_num_threads() == count
        y[:] = 0
        run(x, y, sizes={"N": 1600}.items())
        np.testing.assert_array_equal(y, ((x + 1) + x * 2 + 1) * 2)


@pytest.mark.parametrize("n", [0, -1, 2.5, True, "2", 5000])
def test_wrong_numbers_of_threads(n):
    with pytest.raises(ValueError, match="number of threads"):
        pool.set_num_threads(n)


@pytest.mark.parametrize(("triple", "cpu", "features"), [("x86_64-unknown-linux-gnu", "x86-64-v3", ""),
                                                         ("aarch64-unknown-linux-gnu", "generic", "+neon,+lse")])
def test_the_pool_for_every_architecture(triple, cpu, features):
    code = workers().compile(Request(pool_ir.pool_ir(triple.split("-")[0]), triple, cpu, features))
    names = {s.name for s in elf.parse(code).symbols}
    assert {"ts_worker", "ts_claim", "ts_barrier", "ts_poll", "ts_run", "ts_call", "ts_stop"} <= names


def launch(fn, i):
    return [op for op in fn.walk() if op.name == "kernel"][i]


def test_independent_launches_do_not_wait():
    fn = parse_function(CHAIN)
    since = Accesses()
    since.add(launch(fn, 0))
    assert not since.conflicts(launch(fn, 1))
    since.add(launch(fn, 1))
    assert since.conflicts(launch(fn, 2))


def test_reused_arena_memory_is_a_hazard():
    fn = parse_function(CHAIN.replace("offset = <4*N>", "offset = <2*N>"))
    since = Accesses()
    since.add(launch(fn, 0))
    assert since.conflicts(launch(fn, 1))


def test_arena_counts_callees():
    assert arena_bytes(parse_function(LOOPS)) == 4 * 64


@pytest.mark.parametrize(("change", "message"), [
    (("{offset = 0}", "{}"), "memory plan"),
    (('name = "add1"', 'name = "absent"'), "no kernel"),
    (("kernel(%x, %u)", "surprise(%x, %u)"), "surprise"),
])
def test_malformed_programs(change, message):
    fn = parse_function(CHAIN.replace(*change, 1))
    kernels = {op: program.Kernel(op.attrs["name"], KERNELS[op.attrs["name"]][0]) for op in fn.walk()
               if op.name == "kernel" and op.attrs["name"] in KERNELS}
    with pytest.raises(CompileError, match=message):
        emit_program(fn, kernels)


@pytest.mark.parametrize("patience", [0, 10, 1 << 20])
def test_threads_that_come_late_or_never(monkeypatch, patience):
    """A call does not wait for threads that have not joined, and is right whoever joins when."""
    monkeypatch.setattr(program, "SERIAL_WORK", 0)
    pool.set_num_threads(24)
    run = Native(CHAIN, KERNELS, patience=patience)
    x, y = floats(3200), np.empty(3200, np.float32)
    want = ((x + 1) + x * 2 + 1) * 2
    for i in range(400):
        y[:] = np.nan
        run(x, y, sizes={"N": 3200}.items())
        np.testing.assert_array_equal(y, want)
        if i % 50 == 0:
            time.sleep(0.002)  # let them fall asleep
