"""`bigmodel` as processes of its own, which tests watch and disturb."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SPEC = """\
model:
  type: decoder
  dim: 16
  blocks: [{mixer: {type: attention, num_heads: 2}, ffn: {type: gelu, hidden: 32, dropout: 0.1}}]
data: {type: text, files: [text.txt], context: 16, tokenizer: {type: characters}}
task: {type: causal_lm}
train:
  {steps: 40, batch_size: 8, validate_every: 10, log_every: 1, precision: fp32, timeout: 4,
   optimizer: {type: adamw, lr: 1e-3}}
"""


class Started:
    """`bigmodel ...` in a folder, as a process of its own."""

    def __init__(self, folder: Path, *words: str, **environment: str) -> None:
        self.folder = folder
        command = [sys.executable, "-m", "bigmodel_cli", *words]
        root = str(Path(__file__).resolve().parents[2])
        self.process = subprocess.Popen(
            command,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": root, **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def rank(self, number: int) -> int:
        """The process of that rank."""
        wanted = f"RANK={number}".encode()
        for path in Path(f"/proc/{self.process.pid}/task").glob("*/children"):
            for child in path.read_text().split():
                if wanted in Path(f"/proc/{child}/environ").read_bytes().split(b"\0"):
                    return int(child)
        raise AssertionError(f"rank {number} is not there")

    def reach(self, run: str, step: int) -> None:
        """Wait for a record of that step."""
        for _ in range(2400):
            with contextlib.suppress(OSError):
                if f'"step": {step},' in (self.folder / run / "metrics.jsonl").read_text():
                    return
            time.sleep(0.05)
        raise AssertionError(f"step {step} was not reached")

    def end(self) -> tuple[int, str, str]:
        """(exit status, stdout, stderr)"""
        out, err = self.process.communicate(timeout=90)
        return self.process.returncode, out, err


@contextlib.contextmanager
def started(folder: Path, *words: str, **environment: str) -> Iterator[Started]:
    found = Started(folder, *words, **environment)
    try:
        yield found
    finally:
        if found.process.poll() is None:
            found.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                found.process.communicate(timeout=20)
            found.process.kill()


def status(folder: Path, run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / run / "status.json").read_text())
    return found
