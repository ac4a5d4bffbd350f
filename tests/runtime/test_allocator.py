"""The caching allocator: reuse, limits, threads, forks."""

import gc
import os
import threading

import numpy as np
import pytest

from tessera.runtime.allocator import HUGE_PAGE, LARGE, Allocator, size_class

F32 = np.dtype(np.float32)


@pytest.fixture
def memory():
    return Allocator(1 << 30)


def make(memory, n):
    return memory.empty((n // 4,), F32, n)


def address(a):
    return a.__array_interface__["data"][0]


def test_a_freed_block_is_reused(memory):
    a = make(memory, 1 << 20)
    at = address(a)
    del a
    assert memory.usage()["in_use"] == 0 and memory.usage()["cached"] == 1 << 20
    assert address(make(memory, 1 << 20)) == at
    assert memory.hits == 1 and memory.misses == 1


def test_views_keep_the_block(memory):
    a = make(memory, 1 << 20)
    a[:] = 7
    view = a[1000:2000].reshape(10, 100).T
    del a
    gc.collect()
    other = make(memory, 1 << 20)
    other[:] = 1
    assert (view == 7).all()
    del view
    assert memory.usage()["cached"] == 1 << 20


def test_small_arrays_are_numpys(memory):
    a = make(memory, LARGE - 4)
    assert a.base is None and memory.usage()["in_use"] == 0


def test_alignment(memory):
    assert address(make(memory, 4 * HUGE_PAGE)) % HUGE_PAGE == 0
    assert address(make(memory, LARGE)) % 4096 == 0


@pytest.mark.parametrize("n", [LARGE, LARGE + 1, 100_000, 1 << 20, (1 << 20) + 1, 12345678, (1 << 30) - 1])
def test_size_classes(n):
    c = size_class(n)
    assert n <= c <= n + max(n // 8, 4096)
    assert size_class(c) == c


def test_different_classes_do_not_mix(memory):
    a = make(memory, 1 << 20)
    del a
    make(memory, 1 << 21)
    assert memory.hits == 0


def test_the_limit_returns_memory_to_the_system():
    memory = Allocator(3 << 20)
    arrays = [make(memory, 1 << 20) for _ in range(8)]
    del arrays
    assert memory.usage()["cached"] <= 3 << 20
    memory.trim()
    assert memory.usage()["cached"] == 0
    make(memory, 1 << 20)[:] = 1


def test_the_peak(memory):
    a, b = make(memory, 1 << 20), make(memory, 1 << 20)
    del a, b
    assert memory.usage()["peak"] == 2 << 20
    memory.reset_peak()
    assert memory.usage()["peak"] == 0


def test_a_block_freed_in_a_cycle(memory):
    a = make(memory, 1 << 20)
    box = [a]
    box.append(box)
    del a, box
    gc.collect()
    assert memory.usage()["in_use"] == 0


def test_threads(memory):
    wrong = []

    def work(i):
        rng = np.random.default_rng(i)
        for _ in range(300):
            n = int(rng.integers(LARGE, 4 * LARGE)) // 4 * 4
            a = make(memory, n)
            a[:] = i
            if not (a == i).all():
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong and memory.usage()["in_use"] == 0


@pytest.mark.parametrize("n", [1 << 45, 1 << 60, (1 << 64) + 4096, 1 << 200])
def test_more_than_the_machine_has(n):
    memory = Allocator(1 << 30)
    with pytest.raises(MemoryError):
        memory.block(n)
    assert memory.usage()["in_use"] == 0


def test_a_forked_child_may_allocate(memory):
    kept = make(memory, 1 << 20)
    kept[:] = 3
    child = os.fork()
    if child == 0:
        other = make(memory, 1 << 20)
        other[:] = 4
        os._exit(0 if (kept == 3).all() else 1)
    assert os.waitpid(child, 0)[1] == 0
