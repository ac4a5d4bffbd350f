"""What interrupts, threads, forks, recursion and errors of callbacks leave behind: nothing."""

import os
import threading

import numpy as np
import pytest

import tessera as ts
from tessera.tracing.recorder import STATE


@pytest.fixture(autouse=True)
def simulated(monkeypatch):
    monkeypatch.setenv("TESSERA_SIM_DEVICES", "2")


def clean():
    return (STATE.trace, STATE.home, STATE.device, STATE.outer_devices, STATE.policy) == (None, None, None, (), None)


def test_threads_call_one_function_on_several_devices():
    f = ts.jit(lambda v: (v * 2 + 1).sum() * v)
    wrong = []

    def run(device):
        for n in range(1, 9):
            line = np.arange(n, dtype=np.float32)
            out = f(ts.tensor(line).to(device))
            low = ts.tril(ts.ones(n, n).to(device)).sum()  # a function that makes constants of its own
            if out.device != device or low.device != device or float(low) != n * (n + 1) / 2 or not np.allclose(
                    out.numpy(), (line * 2 + 1).sum() * line):
                wrong.append((device, n))

    threads = [threading.Thread(target=run, args=(d,)) for d in ("cpu", "gpu:0", "gpu:1", "gpu:0")]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong and clean()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_computes():
    f = ts.jit(lambda v: v * 2)
    f(ts.ones(3))
    child = os.fork()
    if child == 0:
        try:
            fine = f(ts.ones(3)).tolist() == [2, 2, 2] and f(ts.ones(3).to("gpu:0")).device == "gpu:0"
            os._exit(0 if fine else 1)
        except BaseException:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0


def test_an_interrupt_while_tracing():
    def body(v):
        raise KeyboardInterrupt  # a signal would reach the main thread, which need not be this one

    f = ts.jit(body)
    with pytest.raises(KeyboardInterrupt):
        f(ts.ones(2))
    assert clean() and not f.programs and (ts.ones(2) + 1).tolist() == [2, 2]


class Boom(Exception):
    pass


def boom(*_):
    raise Boom("mine")


def failing(x):
    boom()


@pytest.mark.parametrize("call", [
    lambda x: ts.jit(boom)(x), lambda x: ts.grad(boom)(x), lambda x: ts.vmap(boom)(x), lambda x: ts.scan(boom, x, x),
    lambda x: ts.cond(True, boom, boom, x), lambda x: ts.while_loop(boom, boom, x), lambda x: ts.fori_loop(0, 3, boom, x),
    lambda x: ts.checkpoint(boom)(x), lambda x: ts.kernel(failing)(x), lambda x: ts.eval_shape(boom, x),
    lambda x: ts.memory.async_copy(x, copier=boom).wait()])
def test_errors_of_callbacks_are_the_users_own(call):
    with ts.device("gpu:0"), pytest.raises(Boom, match="mine"):
        call(ts.ones(3, device="cpu"))
    assert clean()


def test_recursion_with_an_end_and_without():
    def power(v, n):
        return v if n == 0 else f(v * 2, n - 1)

    f = ts.jit(power, static_argnums=1)
    assert f(ts.ones(1), 5).tolist() == [32]
    endless = ts.jit(lambda v: endless(v))
    with pytest.raises(RecursionError):
        endless(ts.ones(1))
    assert clean() and f(ts.ones(1), 3).tolist() == [8]


def test_subclasses_of_tensors_are_tensors():
    class Mine(ts.Tensor):
        pass

    m, x = Mine([1.0, 2.0]), ts.ones(2)
    assert [(v.tolist(), type(v)) for v in (m + x, x + m, ts.jit(lambda v: v + m)(x), ts.jit(lambda v: v * 2)(m))] == [
        ([2, 3], ts.Tensor), ([2, 3], ts.Tensor), ([2, 3], ts.Tensor), ([2, 4], ts.Tensor)]
    assert ts.grad(lambda v: (v * v).sum())(m).tolist() == [2, 4] and m.to("gpu:0").device == "gpu:0"
