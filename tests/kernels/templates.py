"""Runs a template's tile program in the interpreter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from tessera.ir import interpret_tile
from tessera.ir.core import Block, BufferType, Function, Op
from tessera.ir.tile import verify
from tessera.machine import cpu
from tessera.tiling.templates import TEMPLATES
from tessera.types.dims import evaluate
from tessera.types.dtypes import as_dtype


def template_op(template: str, types: Sequence[tuple[Any, Sequence[Any]]], outs: int = 1, **attrs: Any) -> Op:
    """A template op over buffers of (dtype, shape); the last ``outs`` are written."""
    block = Block([BufferType(as_dtype(d), tuple(s)) for d, s in types], [f"b{i}" for i in range(len(types))])
    first = len(types) - outs
    return Op("template", block.args, (), {"template": template, "outs": tuple(range(first, len(types))), **attrs})


def build(op: Op, machine: Any = cpu.X86_AVX512) -> Function:
    fn = TEMPLATES[op.attrs["template"]](op, machine, "k")
    verify(fn)
    return fn


def run(fn: Function, arrays: Sequence[np.ndarray], sizes: dict[str, int] | None = None, seed: int | None = 3) -> interpret_tile.Result:
    """Run in place, each array seen in the shape that the program gives its buffer."""
    seen = []
    for p, a in zip(fn.args, arrays, strict=False):
        assert a.flags.c_contiguous
        seen.append(a.reshape([evaluate(d, sizes or {}) for d in p.type.shape]))
    return interpret_tile.run(fn, seen, sizes or {}, seed=seed)
