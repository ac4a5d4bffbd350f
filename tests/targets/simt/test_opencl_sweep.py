"""The op sweep's cover on Intel's OpenCL runtime: its first half."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import sweep
from opencl_sweep import GROUPS, HALF, name_of, run
from simt_harness import opencl

pytestmark = pytest.mark.skipif(opencl() is None, reason="Intel's OpenCL runtime is not installed")


@pytest.mark.parametrize("group", GROUPS[:HALF], ids=name_of)
def test_cover(group: Sequence[sweep.Case]) -> None:
    run(group)
