"""Two ways to run a function of tensors: its Graph by the interpreter, and compiled."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
import optree

import tessera.ops  # noqa: F401
from tessera.ir.core import Function, TensorType
from tessera.ir.graph import verify
from tessera.ir.interpret_graph import interpret
from tessera.tracing import methods
from tessera.tracing.recorder import Trace, tracing
from tessera.types.dtypes import as_dtype

Way = Callable[..., Any]
importlib.import_module("tessera._api")


def traced(fn: Callable[..., Any], arrays: tuple[Any, ...], shapes: tuple[Any, ...] | None = None) -> tuple[Function, Any]:
    """The Graph of ``fn`` on such arrays (with ``shapes`` in place of theirs, where given), and the form of its result."""
    trace = Trace(getattr(fn, "__name__", "f").replace("<lambda>", "f"))
    with tracing(trace):
        types = [TensorType(as_dtype(a.dtype), (shapes[i] if shapes else a.shape)) for i, a in enumerate(arrays)]
        out = fn(*[trace.parameter(t) for t in types])
        leaves, form = optree.tree_flatten(out)
        graph = trace.finish(leaves)
    verify(graph)
    return graph, form


def interpreted(fn: Callable[..., Any], *arrays: Any, shapes: Any = None) -> Any:
    graph, form = traced(fn, arrays, shapes)
    return optree.tree_unflatten(form, interpret(graph, arrays))


def host_compiler() -> Any:
    return importlib.import_module("tessera.runtime").host_compiler()


def compiled(fn: Callable[..., Any], *arrays: Any, shapes: Any = None) -> Any:
    graph, form = traced(fn, arrays, shapes)
    run = host_compiler().compile(graph)
    return optree.tree_unflatten(form, [np.asarray(a) for a in run(list(arrays))])


WAYS = {"interpreted": interpreted, "compiled": compiled}
assert methods.NAMESPACE is not None
