"""What a process keeps a part of, it never has in whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from parallel_cases import run, text


@pytest.mark.slow
def test_the_start_takes_a_part_and_a_block(tmp_path: Path) -> None:
    """400 MB of weights: 200 MB of them and as much momentum are a process's own, a block of 50 MB
    is whole at once, and so is what is drawn or read. All of it would be 800 MB and more.
    """
    block = {
        "repeat": 8,
        "mixer": {"type": "attention", "num_heads": 8},
        "ffn": {"type": "gelu", "hidden": 4096},
    }
    train = {
        "steps": 1,
        "optimizer": {"type": "sgd", "lr": 0.1},
        "precision": "fp32",
        "parallel": {"shard": 2},
    }
    spec = text(train, {"dim": 1024, "blocks": [block]})
    start = {"checkpoint": str(tmp_path / "saved" / "step-00000000")}
    cases = [
        {"name": "first", "spec": text(train, {"dim": 64})},  # what is imported counts in none
        {"name": "drawn", "spec": spec, "save": str(tmp_path / "saved")},
        {"name": "resumed", "spec": spec, "from": str(tmp_path / "saved")},
        {"name": "tuned", "spec": {**spec, "init": start}},
    ]
    ended = run(cases, tmp_path, 2, "start_ranks.py")
    del ended["first"]
    for name, found in ended.items():
        assert found["whole"] > 400_000_000, name
        for grown in found["grown"]:
            assert 1.0 * found["whole"] < grown < 1.3 * found["whole"], (name, found)
