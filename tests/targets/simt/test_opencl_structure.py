"""The tile programs that the CPU's code generator is tested with, on Intel's OpenCL runtime: the same bits as interpreted."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from simt_harness import check, opencl

sys.path.insert(0, str(Path(__file__).parents[1] / "cpu"))
import test_emit_pointwise as pointwise_programs
import test_emit_structure as programs

pytestmark = pytest.mark.skipif(opencl() is None, reason="Intel's OpenCL runtime is not installed")


@pytest.fixture(autouse=True)
def on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (programs, pointwise_programs):
        monkeypatch.setattr(module, "check", check)


test_checked_tiles_at_the_edge = programs.test_checked_tiles_at_the_edge
test_negative_offsets_fill_and_masks = programs.test_negative_offsets_fill_and_masks
test_a_size_may_be_a_negative_offset = programs.test_a_size_may_be_a_negative_offset
test_tiles_along_other_axes = programs.test_tiles_along_other_axes
test_moves = programs.test_moves
test_chains_of_moves_and_concat = programs.test_chains_of_moves_and_concat
test_reductions = programs.test_reductions
test_dot = programs.test_dot
test_control_flow = programs.test_control_flow
test_unrolled_loops = programs.test_unrolled_loops
test_scratch_gather_and_scatter = programs.test_scratch_gather_and_scatter
test_a_store_does_not_change_what_was_loaded_before = programs.test_a_store_does_not_change_what_was_loaded_before
test_a_product_sees_what_was_loaded_not_what_was_stored_since = programs.test_a_product_sees_what_was_loaded_not_what_was_stored_since
test_a_store_of_few_lanes_leaves_the_neighbours = programs.test_a_store_of_few_lanes_leaves_the_neighbours
