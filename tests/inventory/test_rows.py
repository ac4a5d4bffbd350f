"""Every row of the feature inventory names the tests that check it, in rows/GROUP.toml: `A023 = ["inventory/test_a.py::test_name"]`
(paths below tests/), or a string that says why no test here can. The tables are kept true: a named test must exist."""

from __future__ import annotations

import ast
import functools
import tomllib
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
TABLES = sorted((Path(__file__).parent / "rows").glob("*.toml"))


@functools.cache
def _tests_of(file: Path) -> frozenset[str]:
    tree = ast.parse(file.read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("test_"))


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.stem)
def test_each_row_names_tests_that_exist(table: Path) -> None:
    rows = tomllib.loads(table.read_text())
    wrong = [row for row in rows if not (row[0] == table.stem and row[1:].isdigit() and len(row) == 4)]
    for row, where in rows.items():
        if isinstance(where, str):
            assert len(where) > 20, f"{row}: say why no test checks it"
            continue
        for node in where:
            path, _, name = node.partition("::")
            if not (TESTS / path).is_file() or name not in _tests_of(TESTS / path):
                wrong.append(f"{row}: {node}")
    assert not wrong, wrong


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.stem)
def test_rows_are_in_order_and_without_gaps(table: Path) -> None:
    numbers = [int(row[1:]) for row in tomllib.loads(table.read_text())]
    assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
