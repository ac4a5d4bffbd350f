"""What a traced function read of Python objects, and when that makes another program."""

import dataclasses
import threading

import numpy as np
import pytest

import tessera as ts


class Config:
    shared = 1.0

    def __init__(self):
        self.scale, self.flag, self.sizes, self.table, self.weight = 2.0, True, [1, 2], {"k": 3.0}, ts.ones(2)
        self.array, self.tags, self.calls, self.history = np.array([1.0, 1.0], np.float32), {"a"}, 0, []
        self.inner = ts.nn.Linear(2, 2)

    @property
    def double(self):
        return self.scale * 2


@dataclasses.dataclass
class Point:
    x: float = 1.0


class Slotted:
    __slots__ = ("k",)

    def __init__(self, k):
        self.k = k


CONFIG = Config()


def helper(x):
    return x * CONFIG.scale


def count_programs(f, *args):
    """(the result, how many programs there are) as a call's outcome."""
    out = f(*args)
    return out.tolist(), len(f.programs)


def test_attributes_that_were_read_make_another_program_when_they_change():
    c, x = Config(), ts.ones(2)

    @ts.jit
    def f(x, c):
        y = x * c.double * c.sizes[0] * c.table["k"] + c.weight * c.array * c.shared
        return y + len(c.tags) if c.flag else y

    want = lambda: [2 * c.scale * c.sizes[0] * c.table["k"] + w * float(a) * c.shared + (len(c.tags) if c.flag else 0)
                    for w, a in zip(c.weight.tolist(), c.array, strict=True)]
    changes = [lambda: None, lambda: setattr(c, "scale", 3.0), lambda: c.sizes.__setitem__(0, 5), lambda: c.table.update(k=7.0),
               lambda: setattr(c, "weight", ts.zeros(2)), lambda: c.array.fill(4.0), lambda: c.tags.add("b"),
               lambda: setattr(c, "flag", False), lambda: setattr(c, "shared", 2.0)]
    for i, change in enumerate(changes):
        change()
        for _ in range(2):
            assert count_programs(f, x, c) == (want(), i + 1)
    c.scale = 2.0
    c.calls += 1  # never read
    c.history.append(x)
    f(x, c)
    programs = len(f.programs)
    c.calls += 1
    c.history.append(x)
    ts.assign(c.weight, ts.ones(2))  # values are read anew
    assert count_programs(f, x, c) == (want(), programs)
    assert "__getattribute__" not in vars(Config) and "__getattribute__" not in vars(ts.nn.Linear)


def test_objects_may_come_from_anywhere():
    p, slotted, layer, x = Point(), Slotted(2.0), ts.nn.Linear(2, 2), ts.ones(2)
    functions = {
        "argument": (ts.jit(lambda x, p: x * p.x), (x, p)), "closure": (ts.jit(lambda x: x * p.x), (x,)),
        "slots": (ts.jit(lambda x, s: x * s.k), (x, slotted)), "list": (ts.jit(lambda x, ps: x * ps[0].x), (x, [p])),
        "global of a helper": (ts.jit(lambda x: helper(x)), (x,)), "layer": (ts.jit(lambda x: layer(x)), (x,)),
        "grad": (ts.grad(lambda x: (x * p.x).sum()), (x,)), "vmap": (ts.vmap(lambda x: x * p.x), (x,)),
        "vmap of grad": (ts.vmap(ts.grad(lambda x: x * p.x)), (x,))}
    for f, args in functions.values():
        f(*args)
    p.x, slotted.k, CONFIG.scale, layer.weight = 5.0, 5.0, 5.0, ts.ones(2, 2) * 2.5
    try:
        assert {n: f(*args).tolist() for n, (f, args) in functions.items()} == {n: [5.0, 5.0] for n in functions}
    finally:
        CONFIG.scale = 2.0


def test_what_tracing_itself_changes_makes_no_new_program():
    class Counting:
        def __init__(self):
            self.traced, self.k = 0, 2.0

        @ts.jit
        def forward(self, x):
            self.traced += 1
            return x * self.k

    c = Counting()
    for _ in range(3):
        assert c.forward(ts.ones(1)).tolist() == [2]
    assert c.traced == 1
    c.k = 3.0
    assert c.forward(ts.ones(1)).tolist() == [3] and c.traced == 2


def test_objects_with_an_equality_of_their_own_share_programs():
    @dataclasses.dataclass(frozen=True)
    class Frozen:
        k: float

    f = ts.jit(lambda x, c: x * c.k)
    assert [f(ts.ones(1), Frozen(k)).item() for k in (2.0, 3.0, 2.0, 3.0)] == [2, 3, 2, 3] and len(f.programs) == 2


def test_classes_are_left_as_they_were_by_errors_and_threads():
    class Own:
        def __getattribute__(self, name):
            return object.__getattribute__(self, name)

    own, o = vars(Own)["__getattribute__"], Own()
    o.k = 2.0
    with pytest.raises(ZeroDivisionError):
        ts.jit(lambda x, o: x * o.k / (0 // 0))(ts.ones(1), o)
    assert vars(Own)["__getattribute__"] is own
    f = ts.jit(lambda x, o: x * o.k)
    results = []
    threads = [threading.Thread(target=lambda n=n: results.append(f(ts.ones(n), o).sum().item() / n)) for n in range(1, 9)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert results == [2.0] * 8 and vars(Own)["__getattribute__"] is own


def test_numpy_float64_is_a_python_number_everywhere():
    x = ts.ones(2)
    for number, kind in ((np.float64(2), ts.f32), (np.complex128(2j), ts.complex64), (np.float32(2), ts.f32)):
        f = ts.jit(lambda x, s: x * s)
        assert (x * number).dtype is f(x, number).dtype is kind and ts.jit(lambda s: s + s)(number).dtype is ts.add(number, number).dtype
    assert ts.jit(lambda x, s: x * s)(x, np.array(2.0)).dtype is ts.f64  # an array says what it is
