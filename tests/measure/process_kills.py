"""A storm of kill -9 over runs of several processes, which are started again: each must end, to the
bit, as the run that nobody disturbed.

    python tests/measure/process_kills.py [--count 200] [--seed 0] [--processes 2] [--folder DIR]

Each run loses one process: a random one, at a random step, or before the first; in every third run
inside a save, as soon as the checkpoint's draft is seen. The processes divide each checkpoint's
files, and write them while training goes on. Half of the runs are those of `--processes
N --restarts 3`, half torchrun's with `--max-restarts 3`. Compared are the last checkpoint's
weights, optimizer and state, and the recorded loss of every step. With `--folder` a storm that was
stopped goes on after its last run. Printed are the runs, the kills that left a save half done, and
the goodput: the undisturbed run's time over the disturbed ones'. The status is 1 where a run
differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT / "tests")]

from conftest import digests, losses  # noqa: E402

STEPS = 120
SPEC = f"""\
model:
  type: decoder
  dim: 256
  blocks:
    - {{repeat: 2, mixer: {{type: attention, num_heads: 2}}, ffn: {{type: gelu, dropout: 0.1}}}}
data: {{type: text, files: [text.txt], context: 16, tokenizer: {{type: characters}}}}
task: {{type: causal_lm}}
train:
  {{steps: {STEPS}, batch_size: 4, validate_every: 10, log_every: 1, precision: fp32, timeout: 60,
   save_async: on, optimizer: {{type: adamw, lr: 1e-3}}}}
"""
LAST = f"checkpoints/step-{STEPS:08}"
MARK = "BIGMODEL_STORM"
MOST = 300.0
"""Seconds of a run."""


class Run:
    """One run under a launcher."""

    def __init__(self, folder: Path, name: str, processes: int, torchrun: bool) -> None:
        self.mark, self.began = secrets.token_hex(8), time.monotonic()
        words = ["pretrain", "spec.yaml", "--out", name]
        if torchrun:
            agent = ["-m", "torch.distributed.run", "--standalone", "--max-restarts", "3"]
            words = [*agent, "--nproc-per-node", str(processes), "-m", "bigmodel_cli", *words]
        else:
            more = ["--processes", str(processes), "--restarts", "3"]
            words = ["-m", "bigmodel_cli", *words, *more]
        self.log = folder / f"{name}.log"
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, *words],
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(ROOT), MARK: self.mark},
                stdout=log,
                stderr=log,
                process_group=0,
            )

    def rank(self, number: int) -> int | None:
        """The process of that rank, if it is there."""
        wanted = {f"RANK={number}".encode(), f"{MARK}={self.mark}".encode()}
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if wanted <= set(path.read_bytes().split(b"\0")):
                    return int(path.parent.name)
        return None

    def end(self) -> tuple[int, float]:
        """The exit status, and the seconds that it took."""
        try:
            code = self.process.wait(MOST)
        except subprocess.TimeoutExpired:
            for rank in range(64):
                if (pid := self.rank(rank)) is not None:
                    os.kill(pid, signal.SIGKILL)
            self.process.kill()
            code = self.process.wait()
        return code, time.monotonic() - self.began


def reached(run: Run, folder: Path, name: str, step: int) -> None:
    """Wait until the run has recorded that step, or has ended."""
    record = folder / name / "metrics.jsonl"
    while run.process.poll() is None:
        with contextlib.suppress(OSError):
            if f'"step": {step},' in record.read_text():
                return
        time.sleep(0.002)


def half_done(folder: Path, name: str) -> bool:
    """Whether a checkpoint is being written, or was."""
    with contextlib.suppress(OSError):
        names = os.listdir(folder / name / "checkpoints")
        return any(entry.startswith(".draft-step-") for entry in names)
    return False


def saving(run: Run, folder: Path, name: str) -> None:
    """Wait until a checkpoint is being written, or the run has ended."""
    while run.process.poll() is None and not half_done(folder, name):
        time.sleep(0.0005)


def disturbed(
    folder: Path, number: int, options: argparse.Namespace, whole: float
) -> dict[str, Any]:
    """One run that loses a process: how it was killed, and whether it is the undisturbed one."""
    chance = random.Random(f"{options.seed} {number}")
    name, rank, torchrun = f"run-{number}", chance.randrange(options.processes), bool(number % 2)
    shutil.rmtree(folder / name, ignore_errors=True)
    run = Run(folder, name, options.processes, torchrun)
    inside = number % 3 == 0
    step = chance.randrange(-STEPS // 5, STEPS - 15)
    ranks = [run.rank(r) for r in range(options.processes)]
    while None in ranks and run.process.poll() is None:
        ranks = [run.rank(r) for r in range(options.processes)]
    if step > 0 or inside:
        reached(run, folder, name, max(1, step))
    else:
        time.sleep(chance.uniform(0, whole / 3))  # before the first step, mostly
    if inside:
        saving(run, folder, name)
    pid = ranks[rank] if run.process.poll() is None else None
    if pid is not None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    left = half_done(folder, name)
    code, seconds = run.end()
    same = code == 0
    if same:
        same = digests(folder / name / LAST) == digests(folder / "whole" / LAST)
        same = same and losses(folder / name) == losses(folder / "whole")
    if same:
        shutil.rmtree(folder / name)
    else:
        print(f"run {number}: status {code}; see {folder / name} and {run.log}", flush=True)
    return {
        "number": number,
        "torchrun": torchrun,
        "rank": rank,
        "killed": pid is not None,
        "inside": left and pid is not None,
        "code": code,
        "seconds": seconds,
        "same": same,
    }


def storm(folder: Path, options: argparse.Namespace) -> bool:
    """Whether all runs ended as the undisturbed one."""
    record = folder / "results.jsonl"
    first = folder / "whole.json"
    if not first.exists():
        (folder / "text.txt").write_text("a rose is a rose is a rose. " * 400)
        (folder / "spec.yaml").write_text(SPEC)
        shutil.rmtree(folder / "whole", ignore_errors=True)
        code, seconds = Run(folder, "whole", options.processes, torchrun=False).end()
        if code:
            raise SystemExit(f"the undisturbed run ended with status {code}")
        first.write_text(json.dumps(seconds))
    whole = json.loads(first.read_text())
    found = [json.loads(x) for x in record.read_text().splitlines()] if record.exists() else []
    for number in range(len(found), options.count):
        found.append(disturbed(folder, number, options, whole))
        with open(record, "a") as file:
            file.write(json.dumps(found[-1]) + "\n")
    killed = [x for x in found if x["killed"]]
    print(
        f"{len(found)} runs of {options.processes} processes, {sum(x['torchrun'] for x in found)}"
        f" of torchrun; {len(killed)} lost a process, {sum(x['inside'] for x in found)} inside a"
        f" save; {sum(x['same'] for x in found)} the same to the bit"
    )
    if killed:
        mean = sum(x["seconds"] for x in killed) / len(killed)
        print(f"goodput {whole / mean:.0%}: {whole:.1f} s undisturbed, {mean:.1f} s with a kill")
    return all(x["same"] for x in found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = options.folder
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        raise SystemExit(0 if storm(folder, options) else 1)


if __name__ == "__main__":
    main()
