"""Every example runs from the command line, says what it checked, and is listed in docs/examples.md."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda p: p.stem)
def test_example_runs(path, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, str(path)], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=150)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 2, "an example says what it checked"


def test_the_index_lists_every_example():
    listed = re.findall(r"\]\(\.\./examples/(\w+\.py)\)", (ROOT / "docs" / "examples.md").read_text())
    assert sorted(listed) == [p.name for p in EXAMPLES]
