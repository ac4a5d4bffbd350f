"""The cover of the op sweep in programs of a dozen cases, and what one of them must do on Intel's OpenCL runtime."""

from __future__ import annotations

from collections.abc import Sequence

import sweep

CASES = sweep.cases()
GROUPS = list(sweep.batches(CASES, 12))
HALF = len(GROUPS) // 2


def name_of(group: Sequence[sweep.Case]) -> str:
    return f"{group[0].op}..{group[-1].op}"


def run(group: Sequence[sweep.Case]) -> None:
    """Every case within its op's bound of the reference, and all bits the same at the second call."""
    from tessera.runtime.opencl import compiler
    fn, arrays = sweep.program(group)
    compiled = compiler("intel:0").compile(fn)
    first = compiled(arrays)
    assert not sweep.failures(group, first)
    for a, again in zip(first, compiled(arrays), strict=True):
        assert a.tobytes() == again.tobytes()
