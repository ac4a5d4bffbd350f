"""Whole programs on Intel's OpenCL runtime: the cover of the op sweep, control flow, routines of the host, errors."""

from __future__ import annotations

from typing import Any

import pytest
import sweep
from simt_harness import opencl

pytestmark = pytest.mark.skipif(opencl() is None, reason="Intel's OpenCL runtime is not installed")
CASES = sweep.cases()


def compiler() -> Any:
    from tessera.runtime import opencl as programs
    return programs.compiler("intel:0")


@pytest.mark.parametrize("group", list(sweep.batches(CASES, 45)), ids=lambda g: f"{g[0].op}..{g[-1].op}")
def test_the_sweeps_cover(group: Any) -> None:
    fn, arrays = sweep.program(group)
    assert not sweep.failures(group, compiler().compile(fn)(arrays))
