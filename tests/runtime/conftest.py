"""Each test run compiles into a cache of its own."""

import pytest

from tessera.runtime.cache import DiskCache
from tessera.runtime.compiler import Compiler


@pytest.fixture
def disk(tmp_path):
    return DiskCache(tmp_path / "cache", 1 << 28)


@pytest.fixture
def compiler(disk):
    return Compiler(cache=disk)
