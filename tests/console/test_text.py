"""Counts with their nouns and verbs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import bigmodel_cli
from bigmodel_cli.console import counted


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ((1, "file"), "1 file"),
        ((0, "file"), "0 files"),
        ((2, "file is", "files are"), "2 files are"),
        ((1, "file is", "files are"), "1 file is"),
        ((12345, "class", "classes"), "12,345 classes"),
    ],
)
def test_counts_have_the_noun_in_its_number(words: tuple[int, str], expected: str) -> None:
    assert counted(*words) == expected


def test_no_message_leaves_the_number_open() -> None:
    root = Path(bigmodel_cli.__file__).parent
    found = [
        f"{path.relative_to(root)}: {line.strip()}"
        for path in sorted(root.rglob("*.py"))
        for line in path.read_text().splitlines()
        if re.search(r"\} [a-z ]+\((s|es)\)", line)
    ]
    assert not found
