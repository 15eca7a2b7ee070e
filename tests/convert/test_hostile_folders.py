"""Folders that lie: status 4 and a sentence, in little time and memory."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result
from folders import llama_folder, write_tensors
from tampered import bounded

from bigmodel_cli.convert.weights import INDEX

Cli = Callable[..., Result]

HOSTILE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "an index that leads out": (
        lambda f: change(f / INDEX, "weight_map", {"x": "../secret.safetensors"}),
        "is not the name of a file beside it",
    ),
    "an absolute name": (
        lambda f: change(f / INDEX, "weight_map", {"x": "/etc/passwd"}),
        "is not the name of a file beside it",
    ),
    "a missing shard": (lambda f: shard(f).unlink(), "missing; model.safetensors.index.json names"),
    "a shard that is a link": (lambda f: linked(shard(f)), "a link, folder, FIFO or device"),
    "a shard that is a FIFO": (
        lambda f: (shard(f).unlink(), os.mkfifo(shard(f))), "a link, folder, FIFO"
    ),
    "a shard that is a folder": (
        lambda f: (shard(f).unlink(), shard(f).mkdir()), "a link, folder, FIFO"
    ),
    "a header that lies": (
        lambda f: shard(f).write_bytes(b"\xff" * 7 + b"\0" + b"{}"), "its header claims"
    ),
    "a truncated shard": (
        lambda f: shard(f).write_bytes(shard(f).read_bytes()[:-5]), "bytes, and"
    ),
    "a tensor in another file than the index says": (
        lambda f: change(f / INDEX, "weight_map", {"x": shard(f).name}), "is not where"
    ),
    "another shape": (
        lambda f: change(f / "config.json", "intermediate_size", 24), "expected [24, 12], found"
    ),
    "a dtype that is not a number's": (
        lambda f: write_tensors(shard(f), {"model.norm.weight": torch.ones(12, dtype=torch.int8)}),
        "is not where",
    ),
    "10^9 layers": (
        lambda f: change(f / "config.json", "num_hidden_layers", 10**9), "not one of -1 to 2,000"
    ),
    "a width of 10^11": (
        lambda f: change(f / "config.json", "intermediate_size", 10**11), "config.json"
    ),
    "10^12 heads": (
        lambda f: change(f / "config.json", "num_attention_heads", 10**12), "config.json"
    ),
    "a negative size": (lambda f: change(f / "config.json", "hidden_size", -1), "config.json"),
    "NaN": (
        lambda f: (f / "config.json").write_text('{"model_type": "llama", "rms_norm_eps": NaN}'),
        "not a finite number",
    ),
    "a deep config": (
        lambda f: (f / "config.json").write_text('{"a":' * 100_000), "nested too deep"
    ),
    "a huge config": (
        lambda f: (f / "config.json").write_text(" " * 40_000_000), "at most 32,000,000"
    ),
    "a list": (lambda f: (f / "config.json").write_text("[]"), "not a mapping"),
    "code": (
        lambda f: change(f / "config.json", "auto_map", {"AutoModel": "evil.Model"}),
        "code that comes with it, which is not run",
    ),
    "compressed": (
        lambda f: change(f / "config.json", "quantization_config", {"bits": 4}), "not read"
    ),
    "an unknown family": (
        lambda f: change(f / "config.json", "model_type", "lama"), "did you mean llama"
    ),
    "an option that is not built": (
        lambda f: change(f / "config.json", "hidden_act", "tanh"), "hidden_act"
    ),
    "rotary of the wrong kind": (
        lambda f: change(f / "config.json", "rope_parameters", {"rope_theta": "x"}), "config.json"
    ),
    "a template bomb": (
        lambda f: (f / "chat_template.jinja").write_text("{{ x }}" * 6_000_000), "at most"
    ),
    "a tokenizer that is a link": (
        lambda f: linked(f / "tokenizer.json"), "a link, folder, FIFO or device"
    ),
}  # fmt: skip


def shard(folder: Path) -> Path:
    return folder / "model-00002-of-00002.safetensors"


def linked(path: Path) -> None:
    path.rename(path.parent.parent / "secret")
    path.symlink_to("../secret")


def change(path: Path, key: str, value: Any) -> None:
    values = json.loads(path.read_bytes())
    path.write_text(json.dumps({**values, key: value}))


@pytest.mark.parametrize("case", HOSTILE)
def test_a_folder_that_lies_is_refused(case: str, cli: Cli) -> None:
    """Rows 15 to 22."""
    act, words = HOSTILE[case]
    folder = llama_folder(Path("a"), shards=2)
    act(folder)
    with bounded():
        found = cli("predict", "a", "ab", "--device", "cpu")
    assert found.status == 4, found.err
    assert words in found.err
    assert len(found.err.strip().splitlines()) <= 8
