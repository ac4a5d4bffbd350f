"""Messages of branches and loops: written by the program, in the order in which it comes to them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

import tessera as ts
from tessera.ops import message


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []
    handler = message.logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    level = message.LOGGER.level
    message.LOGGER.addHandler(handler)
    message.LOGGER.setLevel("INFO")
    yield lines
    message.LOGGER.removeHandler(handler)
    message.LOGGER.setLevel(level)


def test_loops_and_branches(said: list[str]) -> None:
    @ts.jit
    def f(x: ts.Tensor) -> ts.Tensor:
        ts.log("first", x.sum())

        def step(c: ts.Tensor, t: ts.Tensor) -> tuple[ts.Tensor, ts.Tensor]:
            ts.log("step", t, carry=c)
            ts.log("next")
            return c + t, c

        def double(v: ts.Tensor) -> ts.Tensor:
            ts.log("double", v)
            return v * 2

        def large() -> ts.Tensor:
            ts.log("large", np.array([1, 2]))
            return v

        c, _ = ts.scan(step, ts.tensor(0.0), x)
        v = ts.while_loop(lambda v: v < 20, double, c + 1)
        r = ts.cond(v > 30, large, lambda: v + 1)
        ts.log("last", r)
        return r

    assert f(ts.tensor([1.0, 2.0, 3.0])).item() == 29 and f.effects == {"io"}
    steps = ["step 1 carry=0", "next", "step 2 carry=1", "next", "step 3 carry=3", "next"]
    assert said == [*steps, "double 7", "double 14", "first 6", "last 29"]
    said.clear()
    assert f(ts.tensor([10.0, 5.0, 20.0])).item() == 36
    assert said[6:] == ["large Tensor([1, 2], int64[2])", "first 35", "last 36"] and said[4] == "step 20 carry=15"
    said.clear()
    short = ts.jit(lambda x: ts.fori_loop(0, 3, lambda i, a: (ts.log("round", i), a)[1], x))
    short(ts.zeros(2))
    assert said == ["round 0", "round 1", "round 2"]  # that the loop changes nothing does not silence it


def test_refused_where_it_has_no_place() -> None:
    def loop(x: ts.Tensor) -> ts.Tensor:
        return ts.fori_loop(0, 2, lambda i, a: (ts.log("a", a.sum()), a * 2)[1], x).sum()

    with pytest.raises(ts.TracingError, match="a function that grad, vmap"):
        ts.grad(loop)(ts.ones(3))
    with pytest.raises(ts.EffectError, match="'log' has the effect io"):
        ts.pure(loop)(ts.ones(3))
