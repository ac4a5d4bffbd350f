"""A Schedule program under one binding of its sizes, as steps of the host: launches on a device, and what decides between them.

A device's plan derives from :class:`Plan` and says how it launches, reads and writes.  Control flow is the host's: it reads the flag
that decides.  Routines of the host (LAPACK) copy their operands to the host and the results back.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np

from ..errors import CompileError, NumericalError
from ..ir.core import Block, Function, Op, Value
from ..ops.table import OPS
from ..targets.cpu.program import _callee_sizes
from ..types.dims import evaluate

Array = np.ndarray[Any, Any]
Ref = tuple[Any, int]  # (argument number, "arena", or an address of its own; bytes behind it)
Step = Callable[[list[int]], None]
L = TypeVar("L")


class Plan(ABC, Generic[L]):
    """The steps of a program; ``L`` is a device's launch.

    Attributes:
        steps: launches, and functions of the arguments' addresses.
        launches: all launches, also those that the host decides on.
        where: where each buffer lies.
        arena_address: where the arena begins; a device's plan sets it.
    """

    arena_address: int

    def __init__(self, f: Function, env: dict[str, int]):
        self.env = env
        self.steps: list[L | Step] = []
        self.launches: list[L] = []
        self.where: dict[Value, Ref] = {a: (i, 0) for i, a in enumerate(f.args)}
        self.base = 0  # of the called function's part of the arena
        self._block(f, f.body, env)

    # -- what a device says ----------------------------------------------------------------------------------------------------
    @abstractmethod
    def _launch_of(self, f: Function, op: Op, env: dict[str, int]) -> L | None:
        """The launch of a kernel, a template or a tile function; None where it has nothing to write."""

    @abstractmethod
    def _place(self, data: Array, op: Op) -> int:
        """The address of a constant on the device, alive as long as the plan."""

    @abstractmethod
    def _read(self, address: int, array: Array) -> None:
        """Fill a dense array of the host when all steps before are done."""

    @abstractmethod
    def _write(self, address: int, array: Array) -> None:
        """Copy a dense array of the host, which may change afterwards, in the order of the steps."""

    @abstractmethod
    def _run(self, steps: Sequence[L | Step], pointers: list[int]) -> None:
        """Start the steps in order."""

    # -- flattening the schedule -----------------------------------------------------------------------------------------------
    def _block(self, f: Function, block: Block, env: dict[str, int]) -> list[Value]:
        for op in block.ops:
            if op.name in ("return", "yield"):
                return list(op.operands)
            rule = self._RULES.get(op.name)
            if rule is None:
                raise CompileError(f"a program cannot contain {op.name!r}", loc=op.loc)
            rule(self, f, op, env)
        return []

    def _alloc(self, f: Function, op: Op, env: dict[str, int]) -> None:
        self.where[op.result] = ("arena", self.base + int(evaluate(op.attrs["offset"], env)))

    def _constant(self, f: Function, op: Op, env: dict[str, int]) -> None:
        data = np.ascontiguousarray(op.attrs["value"], op.result.type.dtype.np)
        self.where[op.result] = (("at", self._place(data, op)), 0)

    def _view(self, f: Function, op: Op, env: dict[str, int]) -> None:
        place, behind = self.where[op.operands[0]]
        self.where[op.result] = (place, behind + int(evaluate(op.attrs.get("offset", 0), env)) * op.result.type.dtype.itemsize)

    def _launch(self, f: Function, op: Op, env: dict[str, int]) -> None:
        made = self._launch_of(f, op, env)
        if made is not None:
            self.launches.append(made)
            self.steps.append(made)

    def _call(self, f: Function, op: Op, env: dict[str, int]) -> None:
        callee = f.functions[op.attrs["callee"]]
        inner = {n: int(evaluate(d, env)) for n, d in _callee_sizes(callee, op).items()}
        inner |= {n: env[n] for n in callee.attrs.get("sizes", ()) if n not in inner and n in env}
        saved, known = self.base, dict(self.where)
        self.base += int(evaluate(op.attrs.get("offset", f.attrs.get("arena", 0)), env))
        self.where.update(zip(callee.args, [known[v] for v in op.operands], strict=True))
        self._block(callee, callee.body, inner)
        self.base, self.where = saved, known

    def _loop(self, f: Function, op: Op, env: dict[str, int]) -> None:
        name, extent = op.attrs["over"]
        for t in range(int(evaluate(extent, env))):
            self._block(f, op.blocks[0], {**env, name: t})

    def _part(self, f: Function, block: Block, env: dict[str, int]) -> tuple[list[L | Step], list[Value]]:
        """The steps of a block that the host decides on."""
        saved, self.steps = self.steps, []
        values = self._block(f, block, env)
        made, self.steps = self.steps, saved
        return made, values

    def _flag(self, ref: Ref, pointers: list[int]) -> bool:
        byte = np.zeros(1, np.uint8)
        self._read(self._address(ref, pointers), byte)
        return bool(byte[0])

    def _cond(self, f: Function, op: Op, env: dict[str, int]) -> None:
        flag = self.where[op.operands[0]]
        yes, no = (self._part(f, b, env)[0] for b in op.blocks)
        self.steps.append(lambda pointers: self._run(yes if self._flag(flag, pointers) else no, pointers))

    def _while(self, f: Function, op: Op, env: dict[str, int]) -> None:
        head, values = self._part(f, op.blocks[0], env)
        flag = self.where[values[0]]
        body, _ = self._part(f, op.blocks[1], env)

        def step(pointers: list[int]) -> None:
            self._run(head, pointers)
            while self._flag(flag, pointers):
                self._run(body, pointers)
                self._run(head, pointers)

        self.steps.append(step)

    def _external(self, f: Function, op: Op, env: dict[str, int]) -> None:
        refs = [self.where[v] for v in op.operands]
        types = [(v.type.dtype.np, tuple(int(evaluate(d, env)) for d in v.type.shape)) for v in op.operands]
        outs, name = op.attrs["outs"], str(op.attrs["op"])
        attrs = {k: _number(v, env) for k, v in op.attrs.items() if k not in ("function", "op", "name", "tile", "outs")}

        def step(pointers: list[int]) -> None:
            arrays = [np.empty(shape, dtype) for dtype, shape in types]
            for i, a in enumerate(arrays):
                if i not in outs:
                    self._read(self._address(refs[i], pointers), a)
            try:
                got = OPS[name].reference(*[a for i, a in enumerate(arrays) if i not in outs], **attrs)
            except np.linalg.LinAlgError as e:
                raise NumericalError(f"{name}: {e}") from None
            for i, result in zip(outs, got if isinstance(got, tuple) else (got,), strict=True):
                self._write(self._address(refs[i], pointers), np.ascontiguousarray(result, types[i][0]))

        self.steps.append(step)

    _RULES: ClassVar[dict[str, Callable[[Any, Function, Op, dict[str, int]], None]]] = {
        "alloc": _alloc, "constant": _constant, "view": _view, "kernel": _launch, "template": _launch, "launch": _launch,
        "call": _call, "loop": _loop, "cond": _cond, "while": _while, "external": _external}

    # -- running ---------------------------------------------------------------------------------------------------------------
    def _address(self, ref: Ref, pointers: Sequence[int]) -> int:
        place, behind = ref
        if place == "arena":
            return self.arena_address + behind
        return int(place[1] if isinstance(place, tuple) else pointers[place]) + behind


def _number(v: Any, env: Mapping[str, int]) -> Any:
    if isinstance(v, tuple):
        return tuple(_number(x, env) for x in v)
    return evaluate(v, dict(env)) if hasattr(v, "terms") else v


__all__ = ["Plan", "Ref", "Step"]
