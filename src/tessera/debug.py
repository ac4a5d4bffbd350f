"""Finding what went wrong: so far, where two runs of a function part.

``@ts.debug.deterministic`` runs a function several times from one seed and, where the bits differ, names the first op that gives other
results for equal inputs, the kernel that computed it and the line that asked for it.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from . import random
from .deterministic import Deterministic, _threads, digest
from .errors import ArgumentError, NumericalError
from .ir.core import Function, Op, Value, value_key
from .tracing import eager
from .tracing.function import TracedFunction
from .tracing.program import Program, concrete
from .tracing.recorder import Hidden, suspended
from .types.dims import Dim

REPEATS = 8  # times that each op runs on the same inputs


class NondeterminismWarning(UserWarning):
    """A function gave different bits for equal inputs."""


@dataclass(frozen=True)
class Nondeterminism:
    """Where two runs part.

    Attributes:
        op: the op, by its name in the IR; ``"python"`` where the function itself records another program each time.
        kernels: the kernels that compute it.
        where: file and line that asked for it.
        detail: how the results differ.
    """

    op: str
    kernels: tuple[str, ...]
    where: str
    detail: str

    def __str__(self) -> str:
        kernels = f", kernel {', '.join(self.kernels)}" if self.kernels else ""
        return f"op {self.op}{kernels}, {self.where}: {self.detail}"


def find_nondeterminism(fn: Callable[..., Any], *args: Any, seed: int = 0, repeats: int = REPEATS, **kwargs: Any) -> Nondeterminism | None:
    """The first op whose results differ for equal inputs, or the first op that the function records differently when it is traced
    again; None where there is none.

    Every op of the function's graph runs by itself ``repeats`` times, with one thread and with two, on the inputs of the first
    run; so a fault that only shows where ops are fused is reported as the whole program's.
    """
    inner = fn if isinstance(fn, TracedFunction) else getattr(fn, "_fn", fn)
    python = inner.fn if isinstance(inner, TracedFunction) else inner
    programs = []
    for _ in range(2):
        with Deterministic(seed), suspended():
            traced = TracedFunction(python)
            call = traced.take_apart(args, kwargs)
            programs.append((traced.program(*args, **kwargs), call))
    (first, call), (second, _) = programs
    found = _recorded_differently(first.graph, second.graph) or _captured_differently(first, second)
    if found is not None:
        return found
    arrays = [np.asarray(a) for a in call.arrays]
    with Deterministic(seed):
        inputs = [*arrays, *[c.fetch(first.sites) if type(c) is Hidden else concrete(c) for c in first.captured]]
        return _walk(first.graph, inputs, repeats) or _whole(first, inputs, repeats)


def _place(op: Op) -> str:
    return str(op.loc) if op.loc is not None else "(no line)"


def _recorded_differently(a: Function, b: Function) -> Nondeterminism | None:
    for x, y in zip(a.body.ops, b.body.ops, strict=False):
        if x.name != y.name:
            return Nondeterminism("python", (), _place(x), f"the function recorded {x.name!r}, and {y.name!r} when it was traced again")
        for k in x.attrs:
            if value_key(x.attrs[k]) != value_key(y.attrs.get(k)):
                return Nondeterminism("python", (), _place(x),
                                      f"the function recorded {x.name!r} with another {k} when it was traced again: a value that Python "
                                      "computes differently each time (random, time, set order)")
    if len(a.body.ops) != len(b.body.ops):
        return Nondeterminism("python", (), _place(a.body.ops[-1]), "the function recorded more ops when it was traced again")
    return None


def _captured_differently(a: Program, b: Program) -> Nondeterminism | None:
    for i, (x, y) in enumerate(zip(a.captured, b.captured, strict=False)):
        if isinstance(x, Hidden) or isinstance(y, Hidden):
            continue
        if digest(concrete(x)) != digest(concrete(y)):
            value = a.graph.args[len(a.graph.args) - len(a.captured) + i]
            user = next((op for op in a.graph.body.ops if value in op.operands), a.graph.body.ops[-1])
            return Nondeterminism("python", (), _place(user), f"{user.name!r} reads an array that Python makes differently each time")
    return None


def _walk(fn: Function, inputs: list[Any], repeats: int) -> Nondeterminism | None:
    """Run the graph op by op."""
    env: dict[Value, Any] = dict(zip(fn.args, inputs, strict=True))
    sizes = {str(d): n for arg, a in zip(fn.args, inputs, strict=True) for d, n in zip(arg.type.shape, a.shape, strict=True)
             if isinstance(d, Dim) and d.is_name}
    for op in fn.body.ops:
        if op.name == "return" or not op.results:
            continue
        run = _one(fn, op, sizes)
        operands = [env[v] for v in op.operands]
        results = []
        for i in range(repeats):
            with _threads(1 + i % 2):
                results.append([np.array(r) for r in run(list(operands))])
        for again in results[1:]:
            for p, q in zip(results[0], again, strict=True):
                if p.tobytes() != q.tobytes():
                    return Nondeterminism(op.name, tuple(getattr(run, "kernels", ())), _place(op), _difference(p, q))
        env.update(zip(op.results, results[0], strict=True))
    return None


def _difference(p: Any, q: Any) -> str:
    flat, other = p.reshape(-1), q.reshape(-1)
    at = [i for i in range(p.size) if flat[i].tobytes() != other[i].tobytes()]
    return f"{len(at)} of {p.size} elements differ between runs on equal inputs, the first from {flat[at[0]]} to {other[at[0]]}"


def _one(fn: Function, op: Op, sizes: dict[str, int]) -> Any:
    """A program of one op, with numbers for the sizes."""
    from .ir.core import Block, Builder
    from .types.dims import substitute

    def known(t: Any) -> Any:
        return t.with_shape([substitute(d, sizes) if isinstance(d, Dim) else d for d in t.shape])

    def plain(x: Any) -> Any:
        if isinstance(x, Dim):
            return substitute(x, sizes)
        return tuple(map(plain, x)) if isinstance(x, tuple) else x

    alone = Function(f"debug_{op.name}", "graph", Block([known(v.type) for v in op.operands]))
    alone.functions = fn.functions
    b = Builder(alone.body, op.loc)
    made = b.op(op.name, alone.args, [known(r.type) for r in op.results], {k: plain(v) for k, v in op.attrs.items()}, op.blocks)
    b.op("return", made.results)
    alone.attrs = {"effects": (), "sizes": (), "captured": 0, "constraints": ()}
    return eager.compile_graph(alone)


def _whole(program: Program, inputs: list[Any], repeats: int) -> Nondeterminism | None:
    outs = []
    for i in range(repeats):
        with _threads(1 + i % 2):
            outs.append([np.array(r) for r in program.executable(list(inputs))])
    for again in outs[1:]:
        for p, q, v in zip(outs[0], again, program.graph.returns, strict=True):
            if p.tobytes() != q.tobytes():
                op = v.op
                return Nondeterminism(op.name if op is not None else "?", tuple(getattr(program.executable, "kernels", ())),
                                      _place(op) if op is not None else "?", "in the fused program: " + _difference(p, q))
    return None


def deterministic(fn: Callable[..., Any] | None = None, *, runs: int = 4, seed: int = 0, strict: bool = False) -> Any:
    """``@ts.debug.deterministic``: run ``fn`` several times a call, from one seed, and report where runs part.

    The call returns the first run's result.  A difference is warned of (:class:`NondeterminismWarning`), and kept in the function's
    ``reports``.

    Args:
        runs: how often the function runs at each call.
        strict: raise a NumericalError instead of a warning.

    Raises:
        ArgumentError: ``fn`` is no function, or fewer than two runs.
    """
    if fn is None:
        return functools.partial(deterministic, runs=runs, seed=seed, strict=strict)
    if not callable(fn):
        raise ArgumentError(f"@debug.deterministic decorates a function, not a {type(fn).__name__}")
    if runs < 2:
        raise ArgumentError("to compare runs takes at least two", received=f"runs={runs}")

    @functools.wraps(fn)
    def compared(*args: Any, **kwargs: Any) -> Any:
        outs, state = [], random.get_state()
        for i in range(runs):
            random.set_state(state)
            with _threads(1 + i % 2):
                outs.append(fn(*args, **kwargs))
        if len({digest(o) for o in outs}) > 1:
            report = find_nondeterminism(fn, *args, seed=seed, **kwargs) or Nondeterminism(
                "python", (), getattr(fn, "__name__", "?"), "the function's own Python gives other results, with the same ops")
            compared.reports.append(report)  # type: ignore[attr-defined]
            text = f"{getattr(fn, '__name__', 'the function')} is not deterministic: {report}"
            if strict:
                raise NumericalError(text)
            warnings.warn(text, NondeterminismWarning, stacklevel=2)
        return outs[0]

    compared.reports = []  # type: ignore[attr-defined]
    return compared


__all__ = ["Nondeterminism", "NondeterminismWarning", "deterministic", "find_nondeterminism"]
