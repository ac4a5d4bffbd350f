"""The op sweep's full product (every op, dtype and operand form) on Intel's OpenCL runtime: about twenty minutes of a processor."""

from __future__ import annotations

import pytest
import sweep
from opencl_sweep import run
from simt_harness import opencl

pytestmark = [pytest.mark.skipif(opencl() is None, reason="Intel's OpenCL runtime is not installed"), pytest.mark.slow,
              pytest.mark.timeout(1800)]


@pytest.mark.parametrize("op", sorted({c.op for c in sweep.cases()}))
def test_full_product(op: str) -> None:
    for group in sweep.batches([c for c in sweep.cases(full=True) if c.op == op], 24):
        run(group)
