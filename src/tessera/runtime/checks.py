"""Leaving out run-time checks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ..ops.table import OPS
from ..tracing import recorder


@contextmanager
def unchecked() -> Iterator[None]:
    """Ops executed or recorded inside the block make no run-time checks: indices are clamped without an error, and an
    integer divided by 0 gives some number.  (Outside traced functions, ``x[i]`` is a copy by NumPy and keeps its check.)

    A traced function is traced with its own checks wherever it is called; the block has to stand inside it.
    """
    if not recorder.CHECKED:
        recorder.CHECKED.update({"floor_div", "mod"})
        recorder.CHECKED.update(n for n, d in OPS.items() if "checked" in d.facts.get("attrs", ()))
    saved = recorder.STATE.unchecked
    recorder.STATE.unchecked = True
    try:
        yield
    finally:
        recorder.STATE.unchecked = saved
