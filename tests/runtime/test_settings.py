"""The table of environment variables."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tessera
from tessera.settings import CACHE, CACHE_LIMIT, OVERRIDE, SETTINGS, THREADS, SettingError

SRC = Path(tessera.__file__).parent


def test_under_ten_and_all_documented():
    assert len(SETTINGS) < 10
    assert all(s.name.startswith("TESSERA_") and s.doc for s in SETTINGS)


def test_nobody_reads_another_variable():
    known = {s.name for s in SETTINGS}
    for path in SRC.rglob("*.py"):
        text = path.read_text()
        assert set(re.findall(r"TESSERA_[A-Z_]+", text)) <= known, path
        if path.name not in ("settings.py", "opencl.py", "driver.py"):  # which tell OpenCL's loader and CUDA's driver of folders
            assert "os.environ" not in text and "getenv" not in text, path


def test_what_changes_the_code_is_in_the_key():
    assert OVERRIDE.keyed and not CACHE.keyed and not THREADS.keyed


@pytest.mark.parametrize(("text", "value"), [("1000", 1000), ("4K", 4096), ("2M", 2 << 20), ("1g", 1 << 30)])
def test_sizes(monkeypatch, text, value):
    monkeypatch.setenv("TESSERA_CACHE_LIMIT", text)
    assert CACHE_LIMIT.get() == value


@pytest.mark.parametrize(("name", "text"), [("TESSERA_CACHE_LIMIT", "0"), ("TESSERA_CACHE_LIMIT", "-1"), ("TESSERA_THREADS", "two"),
                                            ("TESSERA_THREADS", "0"), ("TESSERA_CACHE_LIMIT", "1.5G")])
def test_impossible_values(monkeypatch, name, text):
    monkeypatch.setenv(name, text)
    with pytest.raises(SettingError, match=f"{name} is '{text}'"):
        next(s for s in SETTINGS if s.name == name).get()


@pytest.mark.parametrize("text", ["off", "OFF", "none", "0"])
def test_the_cache_can_be_off(monkeypatch, text):
    monkeypatch.setenv("TESSERA_CACHE", text)
    assert CACHE.get() is None


def test_threads_from_the_environment():
    out = subprocess.run([sys.executable, "-c", "import tessera as ts; ts.Tensor; print(ts.get_num_threads())"], text=True,
                         capture_output=True, env={**os.environ, "TESSERA_THREADS": "5"}, timeout=60)
    assert out.stdout.strip() == "5", out.stderr
