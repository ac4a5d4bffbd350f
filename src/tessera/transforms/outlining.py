"""Repeated layers become calls of one function, so that whatever comes later costs as much as the *distinct* layers.

A model traced layer by layer is a periodic sequence of ops.  The longest such stretch is found by comparing the ops' forms at
a distance; where the cut falls is chosen so that the fewest values cross it (the residual stream, usually).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..ir.core import Block, Builder, Function, Op, Value
from ..ir.core import uses as uses_of
from ..ops.table import OPS
from .cleanup import eliminate_dead_code
from .rewriting import key_of

SMALLEST = 8  # ops of the smallest layer
WORTH = 24  # ops saved that are worth a function
TRIES = 6  # cuts of one stretch that are looked at
FREE = ("constant", "full", "iota", "size")  # computed anywhere; no layer needs them handed in


@dataclass(frozen=True)
class Stretch:
    """``count`` layers of ``period`` ops each, from op ``start`` on."""

    start: int
    period: int
    count: int

    @property
    def saved(self) -> int:
        return self.period * (self.count - 1)


def outline_layers(fn: Function) -> Function:
    """``fn`` with its longest run of repeated layers as calls; ``fn`` itself where there is none."""
    ops = [op for op in fn.body.ops if op.name not in FREE]
    if len(ops) < 2 * SMALLEST:
        return fn
    users = _users(fn)
    crossing = _crossing(ops, users)
    for length, run in _runs(_forms(ops)):
        cuts = _cuts(run, length)
        cuts.sort(key=lambda s: (-s.saved, crossing[s.start + s.period], s.start))
        for s in cuts[:TRIES]:
            made = _Layers(fn, ops, s, users)
            if made.regular:
                return made.build()
    return fn


def _crossing(ops: Sequence[Op], users: dict[Value, list[Op]]) -> np.ndarray[Any, Any]:
    """How many values are alive before each op."""
    position = {op: k for k, op in enumerate(ops)}
    change = np.zeros(len(ops) + 1, np.int64)
    for k, op in enumerate(ops):
        for r in op.results:
            last = max((position.get(u, k) for u in users.get(r, ())), default=k)
            change[k + 1] += 1
            change[min(last + 1, len(ops))] -= 1
    return np.cumsum(change)


def _forms(ops: Sequence[Op]) -> np.ndarray[Any, Any]:
    """A number for each op: equal for equal name, types and attributes."""
    table: dict[Any, int] = {}
    out = []
    for k, op in enumerate(ops):
        key: Any = k
        if not op.blocks and op.name != "return":
            key = (op.name, tuple(v.type for v in op.operands), tuple(r.type for r in op.results), key_of(op.attrs))
        out.append(table.setdefault(key, len(table)))
    return np.asarray(out)


def _runs(forms: np.ndarray[Any, Any]) -> list[tuple[int, Stretch]]:
    """For each period, the longest stretch (its ops, as layers) that repeats at that distance; the three that save most."""
    out = []
    for period in range(SMALLEST, len(forms) // 2 + 1):
        equal = forms[:-period] == forms[period:]
        if not equal.any():
            continue
        edges = np.flatnonzero(np.diff(np.concatenate(([0], equal.view(np.int8), [0]))))
        starts, ends = edges[::2], edges[1::2]
        k = int(np.argmax(ends - starts))
        length = int(ends[k] - starts[k])
        if length >= period:
            out.append((length + period, Stretch(int(starts[k]), period, length // period + 1)))
    out.sort(key=lambda at: (-at[1].saved, at[1].period))
    return out[:3]


def _cuts(run: Stretch, length: int) -> list[Stretch]:
    """The same stretch cut at each place of its period; the last layer may be lost."""
    counts = [(k, (length - k) // run.period) for k in range(run.period)]
    return [Stretch(run.start + k, run.period, n) for k, n in counts if n > 1 and run.period * (n - 1) >= WORTH]


class _Layers:
    """One way to cut: what a layer takes and gives, and whether all layers are wired alike."""

    def __init__(self, fn: Function, ops: Sequence[Op], s: Stretch, users: dict[Value, list[Op]]):
        self.fn, self.ops, self.s, self.users = fn, ops, s, users
        self.layers = [ops[s.start + k * s.period:s.start + (k + 1) * s.period] for k in range(s.count)]
        self.inputs: list[list[Value]] = []
        self.regular = any(_heavy(op) for op in self.layers[0]) and self._wire()

    def _wire(self) -> bool:
        wiring = None
        outputs: set[tuple[int, int]] = set()
        for layer in self.layers:
            place = {r: (k, i) for k, op in enumerate(layer) for i, r in enumerate(op.results)}
            members = set(layer)
            taken: dict[Value, int] = {}
            shape: list[Any] = []
            for op in layer:
                for v in op.operands:
                    if v in place:
                        shape.append(place[v])
                    elif v.op is not None and v.op.name in FREE:
                        shape.append((v.op.name, v.type, key_of(v.op.attrs)))
                    else:
                        shape.append(taken.setdefault(v, len(taken)))
            if wiring is None:
                wiring = shape
            elif wiring != shape:
                return False
            self.inputs.append(list(taken))
            outputs |= {at for r, at in place.items() if any(u not in members for u in self.users.get(r, ()))}
        self.outputs = sorted(outputs)
        return bool(self.outputs)

    def build(self) -> Function:
        """The function with calls, and the layer beside it."""
        s = self.s
        name = _free_name(self.fn)
        layer = self._layer(name)
        new = Function(self.fn.name, "graph", Block([a.type for a in self.fn.args], [a.name for a in self.fn.args]),
                       dict(self.fn.attrs), {**self.fn.functions, name: layer})
        env: dict[Value, Value] = dict(zip(self.fn.args, new.args, strict=True))
        b = Builder(new.body)
        position = {op: k for k, op in enumerate(self.ops)}
        for op in self.fn.body.ops:
            k = position.get(op, -1) - s.start
            if not 0 <= k < s.period * s.count:
                _copy(b, op, env)
            elif (k + 1) % s.period == 0:
                self._call(b, k // s.period, name, layer, env)
        return eliminate_dead_code(new)

    def _call(self, b: Builder, n: int, name: str, layer: Function, env: dict[Value, Value]) -> None:
        ops = self.layers[n]
        call = b.op("call", [env[v] for v in self.inputs[n]], layer.result_types, {"callee": name}, (), ops[0].loc)
        for (k, i), r in zip(self.outputs, call.results, strict=True):
            env[ops[k].results[i]] = r

    def _layer(self, name: str) -> Function:
        first = self.layers[0]
        given = self.inputs[0]
        layer = Function(name, "graph", Block([v.type for v in given]))
        env: dict[Value, Value] = dict(zip(given, layer.args, strict=True))
        b = Builder(layer.body)
        for op in first:
            for v in op.operands:
                if v not in env and v.op is not None and v.op.name in FREE:
                    _copy(b, v.op, env)
            _copy(b, op, env)
        b.op("return", [env[first[k].results[i]] for k, i in self.outputs])
        sizes = [n for n in self.fn.attrs.get("sizes", ()) if any(n in _names(a) for a in layer.args)]
        layer.attrs = {"effects": (), "sizes": tuple(sizes), "captured": 0, "constraints": ()}
        return layer


def _heavy(op: Op) -> bool:
    """True for products and the like: layers without any would lose more by not being fused than a call saves."""
    rule = OPS.get(op.name)
    return rule is not None and (rule.template is not None or rule.facts.get("template") is not None)


def _users(fn: Function) -> dict[Value, list[Op]]:
    return {v: [op for op, _ in at] for v, at in uses_of(fn.body).items()}


def _names(v: Value) -> set[str]:
    return {n for d in v.type.shape if not isinstance(d, int) for n in d.names}


def _copy(b: Builder, op: Op, env: dict[Value, Value]) -> None:
    new = b.op(op.name, [env.get(v, v) for v in op.operands], [r.type for r in op.results], op.attrs, op.blocks, op.loc)
    env.update(zip(op.results, new.results, strict=True))


def _free_name(fn: Function) -> str:
    name, k = "layer", 0
    while name in fn.functions:
        k += 1
        name = f"layer{k}"
    return name
