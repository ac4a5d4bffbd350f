"""These tests are about tracing: programs run in the interpreter of Graph IR, which needs no compiler."""

import numpy as np
import pytest

import tessera as ts
from tessera.tracing import eager, methods

ts.Tensor  # noqa: B018  puts the package together


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(eager, "COMPILER", None)
    eager.clear()
    methods.clear()
    yield
    eager.clear()
    methods.clear()


@pytest.fixture
def rng():
    return np.random.default_rng(0)
