"""What a process keeps a part of, it never has in whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from parallel_cases import run, text


@pytest.mark.slow
def test_the_start_takes_a_part_and_a_block(tmp_path: Path) -> None:
    """400 MB of weights, of which a block has an eighth: 200 and 50 MB at once, and some for what
    is drawn and read.
    """
    block = {
        "repeat": 8,
        "mixer": {"type": "attention", "num_heads": 8},
        "ffn": {"type": "gelu", "hidden": 4096},
    }
    plain = {"type": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False}
    train = {"steps": 1, "optimizer": plain, "precision": "fp32", "parallel": {"shard": 2}}
    spec = text(train, {"dim": 1024, "blocks": [block]})
    start = {"checkpoint": str(tmp_path / "saved" / "step-00000000")}
    cases = [
        {"name": "drawn", "spec": spec, "save": str(tmp_path / "saved")},
        {"name": "resumed", "spec": spec, "from": str(tmp_path / "saved")},
        {"name": "tuned", "spec": {**spec, "init": start}},
    ]
    for name, found in run(cases, tmp_path, 2, "start_ranks.py").items():
        assert found["whole"] > 390 << 20, name
        for grown in found["grown"]:
            assert 0.5 * found["whole"] < grown < 0.75 * found["whole"], (name, found)
