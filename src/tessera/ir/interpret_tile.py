"""The meaning of Tile IR: runs a program block by block in numpy, vectorised over the elements of a tile.

Everything that compiled code must reproduce is bit-exact here.  What compiled code may leave undefined is an error:
lanes outside a buffer along an unchecked axis, scratch memory read before it is written, blocks that depend on each
other's writes.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from itertools import product

import numpy as np

from .. import ir as registry
from ..types.dims import evaluate
from ..types.shapes import unify
from .core import BufferType, Function, Value
from .interpret_explicit import run_clusters
from .tile_explicit import is_explicit
from .tile_machine import Array, Machine, Memory, Result, Run, TileError, Watch


def run(fn: Function, buffers: Sequence[Array], sizes: Mapping[str, int] | None = None, *, seed: int | None = None,
        races: bool = True, limit: int = 100_000_000, watch: Watch | None = None) -> Result:
    """Execute ``fn`` on numpy arrays, in place.

    Args:
        buffers: one C-contiguous array for each buffer parameter, of its dtype and (under ``sizes``) its shape.
        sizes: the value of each symbolic size.
        seed: run the blocks in this random order instead of row-major: results must not change.
        races: report elements that two blocks touch when one of them writes.
        limit: the most iterations of one loop, so that a wrong ``while`` ends.
        watch: called at every access to a buffer: the op, the buffer's name, row-major element numbers and which lanes are active.

    Raises:
        TileError: a lane outside its buffer, uninitialised scratch, a race, an endless loop.
        ValueError: buffers or sizes do not match the parameters.
    """
    if registry.EXPAND_TILE is not None:  # else such ops evaluate in f64 and round: close to compiled code, not equal to it
        fn = registry.EXPAND_TILE(fn)
    env = dict(sizes or {})
    params = [a for a in fn.args if isinstance(a.type, BufferType)]
    if len(buffers) != len(params):
        raise ValueError(f"{fn.name} takes {len(params)} buffers, got {len(buffers)}")
    missing = [s for s in fn.attrs["sizes"] if s not in env]
    if missing:
        raise ValueError(f"{fn.name}: the size {missing[0]} has no value")
    grid = tuple(evaluate(g, env) for g in fn.attrs["grid"])
    state = Run(fn, env, grid, races, watch)
    for i, (p, b) in enumerate(zip(params, buffers, strict=True)):
        state.env[p] = _parameter(p, b, env, i in fn.attrs["writes"] and races)
    for p in fn.args[len(params):]:
        state.env[p] = np.array(env[str(p.name)], np.int64)
    order = list(enumerate(product(*(range(g) for g in grid))))
    if any(is_explicit(op) for op in fn.walk()):
        return run_clusters(state, order, limit, seed)
    if seed is not None:
        random.Random(seed).shuffle(order)
    machine = Machine(state, limit)
    for number, at in order:
        state.number, state.at = number, at
        with np.errstate(all="ignore"):
            machine.block(fn.body)
    first = min(state.failures, default=None)
    return Result(None if first is None else state.failures[first], len(order))


def interpret(fn: Function, buffers: Sequence[Array], sizes: Mapping[str, int] | None = None) -> Result:
    """:func:`run` for callers that know sizes only from the arrays: shapes bind what ``sizes`` does not name.

    Raises:
        ValueError: a shape does not fit its parameter.
    """
    env = dict(sizes or {})
    params = [a for a in fn.args if isinstance(a.type, BufferType)]
    for _ in range(2):  # sizes such as 2*B bind once their names are known
        for p, b in zip(params, buffers, strict=True):
            if len(p.type.shape) != b.ndim or unify(p.type.shape, b.shape, env) is not None:
                raise ValueError(f"%{p.name} of @{fn.name} is {p.type}; the array has the shape {list(b.shape)}")
    return run(fn, buffers, env)


def _parameter(p: Value, b: Array, env: Mapping[str, int], watched: bool) -> Memory:
    t = p.type
    shape = tuple(evaluate(d, env) for d in t.shape)
    if b.dtype != t.dtype.np or b.shape != shape:
        raise ValueError(f"%{p.name} is {t.dtype}{list(shape)}, got an array of {b.dtype}{list(b.shape)}")
    if not b.flags.c_contiguous:
        raise ValueError(f"%{p.name} is not dense in row-major order")
    marks = [np.full(shape, -1, np.int32) for _ in range(2)] if watched else [None, None]
    return Memory(b, f"%{p.name}", None, marks[0], marks[1])


__all__ = ["Result", "TileError", "interpret", "run"]
