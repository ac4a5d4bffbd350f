"""The tutorials are true of every machine: they run with another device as the default, and no kernel falls back to the host."""

import linecache
import re
from pathlib import Path

import pytest
from simt_harness import opencl

import tessera as ts
from tessera.targets.nvidia import driver
from tessera.tiling import frontend

PAGES = sorted((Path(__file__).parents[2] / "docs" / "tutorials").glob("[0-9]*.md"))
BLOCK = re.compile(r"^```python\n(.*?)^```", re.S | re.M)
DEVICES = [
    pytest.param("intel:0", marks=pytest.mark.skipif(opencl() is None, reason="Intel's OpenCL runtime is not installed")),
    pytest.param("gpu:0", marks=[pytest.mark.gpu, pytest.mark.skipif(driver.count() == 0, reason="no NVIDIA device")]),
]


def on_the_host(*args):
    raise AssertionError("a kernel over tensors of a device ran on the host")


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.stem)
def test_tutorial_runs_on(page, device, monkeypatch):
    if page.stem.endswith("explicit_level") and not device.startswith("gpu"):
        pytest.skip("warp groups are NVIDIA's: see the test below")
    monkeypatch.setattr(frontend, "launch", on_the_host)
    text = page.read_text(encoding="utf-8")
    namespace = {"__name__": "__docs__"}
    with ts.device(device):
        for m in BLOCK.finditer(text):
            exec(compile("\n" * text.count("\n", 0, m.start(1)) + m.group(1), str(page), "exec"), namespace)
    tensors = [v for v in namespace.values() if isinstance(v, ts.Tensor)]
    assert tensors and all(t.device == device for t in tensors)


@pytest.mark.skipif(opencl() is None, reason="Intel's OpenCL runtime is not installed")
def test_the_explicit_level_is_refused_where_there_are_no_warp_groups():
    page = next(p for p in PAGES if p.stem.endswith("explicit_level"))
    first, second, *_ = BLOCK.findall(page.read_text(encoding="utf-8"))
    namespace = {"__name__": "__docs__"}
    linecache.cache["explicit"] = (len(first), None, first.splitlines(True), "explicit")  # the kernel's source
    exec(compile(first, "explicit", "exec"), namespace)
    with ts.device("intel:0"), pytest.raises(ts.errors.UnsupportedError, match="written for warp groups, which Intel OpenCL on a CPU"):
        exec(second, namespace)
