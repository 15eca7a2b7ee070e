"""Bytes of trainings in several processes are those that are foreseen; all of it, and four ways to
divide them, by tests/measure/mesh_plan.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from byte_cases import compared


@pytest.mark.slow
def test_bytes_of_two_processes_are_those_foreseen(tmp_path: Path) -> None:
    wanted = [("decoder", "replicate=2"), ("encoder", "tensor=2"), ("cnn", "shard=2")]
    found = dict(compared(wanted, tmp_path))
    assert list(found) == wanted
    for key, rows in found.items():
        assert len(rows) >= 6, key
        for row in rows:
            assert row.ratio == pytest.approx(1, abs=0.1), (key, row)
