"""Small trainings that several processes are to do as one does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from conftest import ROOT

ADAM = {"type": "adamw", "lr": 1e-3}
TRAIN = {"batch_size": 13, "optimizer": ADAM, "max_grad_norm": 1.0}
# a key's bias has a gradient of 0, of which Adam makes a step by rounding
MIXER = {"type": "attention", "num_heads": 2, "dropout": 0.1, "bias": False}
BLOCK = {
    "repeat": 2,
    "mixer": MIXER,
    "ffn": {"type": "gelu", "dropout": 0.1},
    "dropout": 0.2,
    "drop_path": 0.2,
}
DECODER = {"type": "decoder", "dim": 16, "dropout": 0.1, "blocks": [BLOCK]}
TEXT = {
    "type": "synthetic",
    "problem": "copy",
    "length": 9,
    "min_length": 2,
    "symbols": 7,
    "samples": 101,
    "val_samples": 37,
}
SEQ2SEQ = {
    "type": "seq2seq",
    "dim": 16,
    "dropout": 0.1,
    "encoder": [{"mixer": MIXER, "ffn": {"type": "gelu"}, "dropout": 0.1}],
    "decoder": [
        {
            "mixer": MIXER,
            "cross": {"num_heads": 2, "dropout": 0.1, "bias": False},
            "ffn": {"type": "gelu"},
            "dropout": 0.1,
        }
    ],
}
CONVOLUTIONS = {
    "type": "cnn",
    "layers": [
        {"type": "conv", "channels": 6, "kernel": 3, "norm": "batch"},
        {"type": "pool", "kind": "max", "kernel": 2},
        {"type": "flatten"},
        {"type": "dropout", "p": 0.3},
        {"type": "dense", "units": "classes"},
    ],
}


def text(train: dict[str, Any], model: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """A decoder that copies, with these changes."""
    own = {"model": {**DECODER, **(model or {})}, "data": TEXT, "task": {"type": "causal_lm"}}
    return {**own, "train": {**TRAIN, **train}, **more}


def experts(balance: str) -> dict[str, Any]:
    """Blocks with experts."""
    ffn = {"type": "moe", "experts": 4, "balance": balance, "balance_weight": 0.5}
    return {"blocks": [{"repeat": 2, "mixer": MIXER, "ffn": ffn, "dropout": 0.1}]}


def mixing(**options: Any) -> dict[str, Any]:
    """Blocks whose mixer has these options."""
    return {"blocks": [{"repeat": 2, "mixer": {**MIXER, **options}, "ffn": {"type": "gelu"}}]}


def translation(**train: Any) -> dict[str, Any]:
    """An encoder-decoder of pairs of unequal lengths."""
    data = {**TEXT, "form": "pairs"}
    own = {"model": SEQ2SEQ, "data": data, "task": {"type": "seq2seq"}}
    return {**own, "train": {"optimizer": ADAM, **train}}


MUON = {"type": "muon", "lr": 1e-2}
SPECS: dict[str, dict[str, Any]] = {
    "batch norm": {
        "model": CONVOLUTIONS,
        "data": {"type": "digits"},
        "task": {"type": "classification"},
        "train": {**TRAIN, "batch_size": 24, "micro_batch_size": 2, "ema": 0.9},
    },
    "a row for each": text({"batch_size": 2}),
    "dropout": text({"batch_size": 12}),
    "uneven": text({}),
    "muon and ema": text({"optimizer": MUON, "ema": 0.9, "batch_size": 12, "micro_batch_size": 3}),
    "schedule free": text({"optimizer": {"type": "schedule_free_adamw", "lr": 1e-3}}),
    "experts, loss": text({}, experts("loss")),
    "experts, bias": text({"batch_size": 12, "micro_batch_size": 4}, experts("bias")),
    "two draws": text({"consistency": 0.5}),
    "recomputed": text({"checkpointing": "blocks"}),
    "tied": text({}, {"tie_embeddings": True}),
    "lora": text({}, adapter={"type": "lora", "rank": 2, "dropout": 0.1, "targets": ["*qkv*"]}),
    "unfrozen": text({"unfreeze_every": 2}),
    "windows": text({}, mixing(window=3)),
    "sinks": text({}, mixing(sinks=True)),
    "tokens": translation(batch_tokens=120),
    "tokens, micro": translation(batch_tokens=90, micro_batch_size=30),
    "bf16": text({"precision": "bf16"}),
    "fp16": text({"precision": "fp16"}),
}
ROUNDED = ("bf16", "fp16")
"""Those whose products are rounded otherwise where the rows are others."""


def deterministic(name: str) -> dict[str, Any]:
    """The same in eight micro-batches with the same bits, however many processes."""
    spec = json.loads(json.dumps(SPECS[name]))
    small = {"batch_tokens": 160, "micro_batch_size": 20}
    small = small if "batch_tokens" in spec["train"] else {"batch_size": 24, "micro_batch_size": 3}
    return {**spec, "train": {**spec["train"], **small, "deterministic": True}}


def run(
    cases: list[dict[str, Any]], out: Path, count: int, program: str = "ranks.py"
) -> dict[str, dict[str, Any]]:
    """The cases in that many processes of one thread; what came out, by name."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "cases.json").write_text(json.dumps(cases))
    script = [str(Path(__file__).with_name(program)), str(out / "cases.json"), str(out)]
    many = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={count}"]
    ended = subprocess.run(
        [sys.executable, *(many if count > 1 else []), *script],
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, ended.stderr[-4000:]
    return {case["name"]: json.loads((out / f"{case['name']}.json").read_text()) for case in cases}


def weights(out: Path, name: str) -> dict[str, torch.Tensor]:
    """The weights that a case ended with."""
    found: dict[str, torch.Tensor] = torch.load(out / f"{name}.pt", weights_only=True)["weights"]
    return found
