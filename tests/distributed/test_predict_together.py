"""`predict` in several processes: the records of one, to the bit, and one end for all."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SPEC = """\
model:
  type: decoder
  dim: 16
  blocks: [{mixer: {type: attention, num_heads: 2}, ffn: gelu}]
data: {type: text, files: [text.txt], context: 24, tokenizer: {type: characters}}
task: {type: causal_lm}
train: {steps: 2, batch_size: 8, precision: fp32}
"""
DRAWN = ("--max-tokens", "6", "--top-k", "5", "--seed", "3")


@pytest.fixture
def run(tmp_path: Path, cli: Any) -> Path:
    (tmp_path / "text.txt").write_text("a rose is a rose is a rose. " * 60)
    (tmp_path / "spec.yaml").write_text(SPEC)
    assert cli("pretrain", tmp_path / "spec.yaml", "--out", tmp_path / "run").status == 0
    return tmp_path / "run"


def test_lines_are_shared(run: Path, tmp_path: Path) -> None:
    """205 lines of other lengths, in four batches of two processes; one is not a text, and some are
    too long. Drawn text is by a line's number, whoever writes it.
    """
    lines = [("a rose is " * 9)[: 1 + number * 7 % 60].encode() for number in range(205)]
    lines[131] = b"\xff\xfe"
    (tmp_path / "lines.txt").write_bytes(b"\n".join(lines))
    found = []
    for more in ((), ("--processes", "2")):
        with open(tmp_path / "lines.txt", "rb") as given:
            command = [sys.executable, "-m", "bigmodel_cli", "predict", run, *DRAWN, *more]
            done = subprocess.run(
                command, stdin=given, capture_output=True, check=False, timeout=300, cwd=ROOT
            )
        said = [line for line in done.stderr.splitlines() if not line.startswith(b"device: ")]
        found.append((done.returncode, done.stdout, said))
    assert found[0] == found[1]
    records = [json.loads(line) for line in found[0][1].splitlines()]
    assert [i for i, record in enumerate(records) if "error" in record] == [131]
    assert len(records) == 205
    assert found[0][0] == 3
