"""Plans of devices: what the host decides, and routines of the host, on a device whose memory is a numpy array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from tessera.errors import CompileError, NumericalError
from tessera.ir.core import Function, Op
from tessera.ir.text import parse_function
from tessera.runtime import plans

ARENA, CONSTANTS = 4096, 8192


@dataclass
class Named:
    name: str
    refs: list[plans.Ref]


class Simple(plans.Plan[Named]):
    """``add1`` and ``twice`` change four floats, ``below`` says whether the first is under 5."""

    def __init__(self, text: str, env: dict[str, int] | None = None):
        self.memory, self.arena_address, self.placed = np.zeros(16384, np.uint8), ARENA, 0
        super().__init__(parse_function(text), env or {})

    def _launch_of(self, f: Function, op: Op, env: dict[str, int]) -> Named | None:
        return None if op.attrs["name"] == "nothing" else Named(str(op.attrs["name"]), [self.where[v] for v in op.operands])

    def _place(self, data: np.ndarray, op: Op) -> int:
        self.placed += 64
        self._write(CONSTANTS + self.placed, data)
        return CONSTANTS + self.placed

    def _read(self, address: int, array: np.ndarray) -> None:
        array.reshape(-1).view(np.uint8)[:] = self.memory[address:address + array.nbytes]

    def _write(self, address: int, array: np.ndarray) -> None:
        self.memory[address:address + array.nbytes] = array.reshape(-1).view(np.uint8)

    def floats(self, address: int, count: int = 4) -> np.ndarray:
        return self.memory[address:address + 4 * count].view(np.float32)

    def _run(self, steps: Sequence[Any], pointers: list[int]) -> None:
        for s in steps:
            if not isinstance(s, Named):
                s(pointers)
                continue
            at = [self._address(r, pointers) for r in s.refs]
            if s.name == "below":
                self.memory[at[1]] = self.floats(at[0])[0] < 5
            else:
                x = self.floats(at[0]).copy()
                self.floats(at[1])[:] = x + 1 if s.name == "add1" else x * 2

    def run(self, *pointers: int) -> None:
        self._run(self.steps, list(pointers))


def test_calls_loops_views_and_branches() -> None:
    plan = Simple("""
sched @layer(%a: buf<f32[M]>, %b: buf<f32[M]>) with {sizes = ("M",), arena = <4*M>} {
  %t = alloc() {offset = 16} : buf<f32[M]>
  kernel(%a, %t) {name = "add1", outs = (1,)}
  kernel(%t, %b) {name = "twice", outs = (1,)}
  kernel(%t, %b) {name = "nothing", outs = (1,)}
  return()
}
sched @p(%x: buf<f32[K, 4]>, %y: buf<f32[K, 4]>, %flag: buf<bool[]>) with {inputs = 1, outputs = 1, sizes = ("K",), arena = 64} {
  loop() {over = ("t", <K>)} do() {
    %s = view(%x) {offset = <4*t>} : buf<f32[4]>
    %d = view(%y) {offset = <4*(K-1-t)>} : buf<f32[4]>
    call(%s, %d) {callee = "layer"}
    yield()
  }
  cond(%flag) do() {
    kernel(%y, %y) {name = "add1", outs = (1,)}
    yield()
  } do() {
    kernel(%y, %y) {name = "twice", outs = (1,)}
    yield()
  }
  return()
}""", {"K": 3})
    assert len(plan.launches) == 2 * 3 + 2
    assert {r for s in plan.launches[:6] for r in s.refs if r[0] == "arena"} == {("arena", 64 + 16)}  # behind the caller's own part
    x, y, flag = 0, 256, 512
    for yes in (True, False):
        plan.floats(x, 12)[:] = np.arange(12)
        plan.memory[flag] = yes
        plan.run(x, y, flag)
        want = ((np.arange(12).reshape(3, 4) + 1) * 2)[::-1].astype(np.float32)
        want[0] = want[0] + 1 if yes else want[0] * 2
        np.testing.assert_array_equal(plan.floats(y, 12).reshape(3, 4), want)


def test_while_reads_its_flag_before_each_turn() -> None:
    plan = Simple("""
sched @p(%x: buf<f32[4]>, %flag: buf<bool[]>) with {inputs = 1, outputs = 1, sizes = ()} {
  while() do() {
    kernel(%x, %flag) {name = "below", outs = (1,)}
    yield(%flag)
  } do() {
    kernel(%x, %x) {name = "add1", outs = (1,)}
    yield()
  }
  return()
}""")
    plan.run(0, 512)
    assert plan.floats(0).tolist() == [5] * 4
    plan.floats(0)[:] = 9
    plan.run(0, 512)
    assert plan.floats(0).tolist() == [9] * 4


def test_routines_of_the_host() -> None:
    plan = Simple("""
sched @p(%x: buf<f32[2, 2]>, %y: buf<f32[2, 2]>) with {inputs = 1, outputs = 1, sizes = ()} {
  external(%x, %y) {function = "f", op = "flip", outs = (1,), axes = (1,)}
  return()
}""")
    plan.floats(0)[:] = [1, 2, 3, 4]
    plan.run(0, 256)
    assert plan.floats(256).tolist() == [2, 1, 4, 3]


def test_a_factorisation_that_fails_names_its_op(monkeypatch: pytest.MonkeyPatch) -> None:
    def diverges(x: np.ndarray) -> np.ndarray:
        raise np.linalg.LinAlgError("SVD did not converge")

    monkeypatch.setitem(plans.OPS, "flip", replace(plans.OPS["flip"], reference=diverges))
    plan = Simple("""
sched @p(%x: buf<f32[4]>, %y: buf<f32[4]>) with {inputs = 1, outputs = 1, sizes = ()} {
  external(%x, %y) {function = "f", op = "flip", outs = (1,)}
  return()
}""")
    with pytest.raises(NumericalError, match="flip: SVD did not converge"):
        plan.run(0, 256)


def test_constants_lie_on_the_device() -> None:
    plan = Simple("""
sched @p(%x: buf<f32[4]>) with {inputs = 0, outputs = 1, sizes = ()} {
  %c = constant() {value = dense<f32[4]: 0000803f000000400000404000008040>} : buf<f32[4]>
  kernel(%c, %x) {name = "add1", outs = (1,)}
  return()
}""")
    plan.run(0)
    assert plan.floats(0).tolist() == [2, 3, 4, 5]


def test_an_op_of_another_level_is_refused() -> None:
    f = parse_function("sched @p(%x: buf<f32[4]>) with {inputs = 1, outputs = 0, sizes = ()} {\n  return()\n}")
    f.body.ops.insert(0, Op("barrier", (), ()))
    with pytest.raises(CompileError, match="a program cannot contain 'barrier'"):
        type("Direct", (Simple,), {"__init__": lambda self: plans.Plan.__init__(self, f, {})})()
