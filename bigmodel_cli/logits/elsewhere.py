"""Pieces as they are on another device: for a step that is followed on paper."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from bigmodel_cli.logits.entropy import PIECE as OF_LOSS
from bigmodel_cli.logits.late import LEAST, PIECE


@contextlib.contextmanager
def pieces_as_on(kind: str) -> Iterator[None]:
    """Inside, logits on the CPU come in pieces as large as on that kind of device."""
    tables = (OF_LOSS, PIECE, LEAST)
    before = [table["cpu"] for table in tables]
    try:
        for table in tables:
            table["cpu"] = table[kind]
        yield
    finally:
        for table, value in zip(tables, before, strict=True):
            table["cpu"] = value
