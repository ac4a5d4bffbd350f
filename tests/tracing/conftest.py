"""These tests are about tracing: programs run in the interpreter of Graph IR, which needs no compiler."""

import numpy as np
import pytest

from tessera import random
from tessera.tracing import eager, methods


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(eager, "COMPILER", None)
    monkeypatch.setattr(random, "_programs", {})
    eager.clear()
    methods.clear()
    yield
    eager.clear()
    methods.clear()


@pytest.fixture
def rng():
    return np.random.default_rng(0)
