"""Shared by all tests: helper modules that stand beside the tests that own them can be imported from anywhere."""

import sys
from pathlib import Path

HERE = Path(__file__).parent
for folder in ("inventory", "scheduling", "ops", "kernels", "tiling", "transforms", "targets/cpu", "targets/simt"):
    path = str(HERE / folder)
    if path not in sys.path:
        sys.path.append(path)
