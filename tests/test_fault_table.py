"""faults.yaml is true: each row names tests that exist."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
import yaml

TESTS = Path(__file__).resolve().parent
ROWS = yaml.safe_load((TESTS / "faults.yaml").read_text(encoding="utf-8"))


def names_in(file: str) -> set[str]:
    """The names of a file's tests."""
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


def test_every_fault_has_one_row_in_order() -> None:
    assert [row[0] for row in ROWS] == list(range(1, len(ROWS) + 1))
    assert all(len(row) == 4 and row[1] and row[2] for row in ROWS)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row[0]}-{row[1].split(',')[0]}")
def test_the_tests_of_a_row_exist(row: list[object]) -> None:
    tests = row[3]
    assert isinstance(tests, list)
    assert tests, "a fault without a test"
    for test in tests:
        file, _, name = str(test).partition("::")
        assert name in names_in(file), f"{test}: no such test"
