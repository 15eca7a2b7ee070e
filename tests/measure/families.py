"""Four families of runs in miniature, which kills, signals and full disks are tried on, and what
tells two runs apart.

Each takes about a second when torch is loaded. The texts are the first lines of the real data sets,
where there are any, and made up otherwise; the images are scikit-learn's digits.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import random
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

PINNED = """
  precision: fp32
  memory_format: contiguous
  compile: "off"
  log_every: 1
"""

CNN = f"""\
model:
  type: cnn
  layers:
    - {{type: conv, channels: 4, kernel: 3, norm: batch}}
    - {{type: pool}}
    - {{type: flatten}}
    - {{type: dropout, p: 0.2}}
    - {{type: dense, units: classes}}
data:
  type: digits
  workers: 2
  augment:
    - {{type: RandomAffine, degrees: 10, translate: [0.1, 0.1]}}
task: {{type: classification}}
train:
  steps: 12
  batch_size: 100
  validate_every: 4
  checkpoint_every: 2
  {PINNED}"""

DECODER = f"""\
model:
  type: decoder
  dim: 16
  dropout: 0.1
  blocks:
    - repeat: 2
      mixer: {{type: attention, num_heads: 2, dropout: 0.1}}
      ffn: {{type: gelu}}
data: {{type: text, files: [text.txt], context: 16, tokenizer: {{type: characters}}}}
task: {{type: causal_lm, sample_tokens: 4, sample_prompt: a}}
train:
  steps: 14
  batch_size: 4
  micro_batch_size: 2
  optimizer: {{type: muon, lr: 0.02, rest: {{lr: 1.0e-3}}}}
  max_grad_norm: 1.0
  ema: 0.9
  validate_every: 3
  checkpoint_every: 2
  {PINNED}"""

SEQ2SEQ = f"""\
model:
  type: seq2seq
  dim: 16
  dropout: 0.1
  encoder: [{{mixer: {{type: attention, num_heads: 2}}, ffn: {{type: relu}}}}]
  decoder: [{{mixer: {{type: attention, num_heads: 2}}, ffn: {{type: relu}},
    cross: {{num_heads: 2}}}}]
data:
  type: pairs
  source: [train.source]
  target: [train.target]
  val_source: [val.source]
  val_target: [val.target]
  context: 64
  tokenizer: {{type: bpe, vocab_size: 300}}
task: {{type: seq2seq, label_smoothing: 0.1}}
train:
  steps: 40
  batch_tokens: 400
  # so large that the best validation is an early one, and patience ends the run
  optimizer: {{type: adamw, lr: 0.2}}
  validate_every: 2
  checkpoint_every: 3
  patience: 2
  {PINNED}"""

MASKED = f"""\
model:
  type: vit
  dim: 16
  patch: 2
  pool: mean
  position: sines
  blocks: [{{mixer: {{type: attention, num_heads: 2}}, ffn: {{type: gelu}}}}]
  reconstruct:
    dim: 8
    blocks: [{{mixer: {{type: attention, num_heads: 2}}, ffn: {{type: gelu}}}}]
data:
  type: digits
  labels: false
  augment: [{{type: RandomHorizontalFlip}}]
task: {{type: masked_image, mask_ratio: 0.75}}
train:
  steps: 12
  batch_size: 64
  validate_every: 5
  checkpoint_every: 2
  {PINNED}"""

BPE = DECODER.replace("{type: characters}", "{type: bpe, vocab_size: 400}").replace(
    "ema: 0.9", "average_last: 3"
)

FAMILIES = {"cnn": CNN, "decoder": DECODER, "seq2seq": SEQ2SEQ, "masked": MASKED}
AVERAGED = {"averaged": BPE}
"""A decoder whose tokenizer is trained and whose result is a mean of checkpoints."""
WORDS = [
    "a",
    "small",
    "model",
    "learns",
    "what",
    "the",
    "words",
    "of",
    "short",
    "texts",
    "are",
    "and",
    "in",
    "which",
    "order",
]
CLOCK = ("per_second", "elapsed")
"""Figures of metrics.jsonl and state.json that no two runs share."""


def write_data(folder: Path, data_root: Path | None = None) -> None:
    """Write the specs, and the text and the pairs that they name: real ones where `data_root` holds
    them.
    """
    for name, spec in {**FAMILIES, **AVERAGED}.items():
        (folder / f"{name}.yaml").write_text(spec, encoding="utf-8")
    rng = random.Random(0)
    lines = [" ".join(rng.choice(WORDS) for _ in range(rng.randint(3, 12))) for _ in range(400)]
    sides = {"source": lines, "target": [" ".join(reversed(line.split())) for line in lines]}
    text = "\n".join(lines)[:8000]
    if data_root is not None:
        text = (data_root / "tinyshakespeare" / "input.txt").read_text(encoding="utf-8")[:8000]
        for side, language in (("source", "en"), ("target", "de")):
            with gzip.open(
                data_root / "multi30k" / f"train.{language}.gz", "rt", encoding="utf-8"
            ) as file:
                sides[side] = [next(file).strip() for _ in range(400)]
    (folder / "text.txt").write_text(text, encoding="utf-8")
    for side, found in sides.items():
        (folder / f"train.{side}").write_text("\n".join(found[:340]) + "\n", encoding="utf-8")
        (folder / f"val.{side}").write_text("\n".join(found[340:]) + "\n", encoding="utf-8")


def sha(content: bytes) -> str:
    """SHA-256 in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def without_clock(values: dict[str, object]) -> bytes:
    """A record as bytes, without the figures of a clock."""
    return json.dumps({k: v for k, v in values.items() if k not in CLOCK}, sort_keys=True).encode()


def of_checkpoint(folder: Path) -> dict[str, str]:
    """The SHA-256 of each file of a checkpoint; of state.json without the clock's figure, and no
    manifest, which has its hash.
    """
    found = {
        p.name: sha(p.read_bytes())
        for p in folder.iterdir()
        if p.name not in ("state.json", "manifest.json")
    }
    return {
        **found,
        "state.json": sha(without_clock(json.loads((folder / "state.json").read_text()))),
    }


def fingerprint(run: Path) -> dict[str, str]:
    """What must be the same in a run that nobody disturbed and in one that was: name -> SHA-256 or
    value.

    The contents of the checkpoints `last` and `best` and where they point, the log without the
    clock's figures, and the status.
    """
    found: dict[str, str] = {}
    for link in ("last", "best"):
        path = run / "checkpoints" / link
        if path.is_symlink():
            found[link] = os.readlink(path)
            found |= {f"{link}/{name}": value for name, value in of_checkpoint(path).items()}
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    found["metrics.jsonl"] = sha(b"\n".join(without_clock(json.loads(line)) for line in lines))
    status = json.loads((run / "status.json").read_text())
    return {
        **found,
        "status.json": (
            f"{status['state']} {status['code']} {status['last_step']} {status['last_checkpoint']}"
        ),
    }


def kept(run: Path) -> str:
    """The names in a run's folder of checkpoints."""
    return " ".join(sorted(p.name for p in (run / "checkpoints").iterdir()))


def drafts(run: Path) -> list[str]:
    """Hidden files and folders below a run: what something that was not finished left behind."""
    return sorted(str(p.relative_to(run)) for p in run.rglob(".*"))


def differences(found: dict[str, str], expected: dict[str, str]) -> list[str]:
    """What differs, by name."""
    return [n for n in sorted(found.keys() | expected.keys()) if found.get(n) != expected.get(n)]


def in_sessions(leaders: Iterable[int]) -> Iterator[int]:
    """The living processes of the sessions with these leaders, of which zombies are none."""
    wanted = {str(pid) for pid in leaders}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _parent, _group, session = entry.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if session in wanted and state not in "ZX":
            yield int(entry.parent.name)


def orphans(leaders: Iterable[int], patience: float = 15.0) -> list[int]:
    """The processes of these sessions that are left after some seconds: a loader's worker looks for
    its parent every five.
    """
    wanted, end = list(leaders), time.monotonic() + patience
    while (left := list(in_sessions(wanted))) and time.monotonic() < end:
        time.sleep(0.2)
    return left
