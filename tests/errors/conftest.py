"""Errors are raised before anything is compiled: programs run in the interpreter of Graph IR."""

import pytest

from tessera.tracing import eager, methods


@pytest.fixture(autouse=True)
def interpreted(monkeypatch):
    monkeypatch.setattr(eager, "COMPILER", None)
    eager.clear()
    methods.clear()
    yield
    eager.clear()
    methods.clear()
