"""An adapter in PEFT's files that does not fit is refused by a dry run too."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from conftest import Result, write_text
from folders import llama_folder, write_tensors

Cli = Callable[..., Result]


def test_files_of_peft_are_checked_without_the_weights(cli: Cli, tmp_path: Path) -> None:
    folder = llama_folder(tmp_path / "llama")
    write_text(tmp_path / "text.txt")
    Path("tune.yaml").write_text(
        "data: {type: text, files: [text.txt], context: 16, tokenizer: bytes}\ntask: causal_lm\n"
        "train: {steps: 1, batch_size: 4, precision: fp32, compile: 'off'}\n"
    )
    adapter = tmp_path / "peft"
    adapter.mkdir()
    config = {
        "peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"],
        "task_type": "CAUSAL_LM", "bias": "none",
    }  # fmt: skip
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    stem = "base_model.model.model.layers.{}.self_attn.q_proj.lora_"
    tensors = {
        f"{stem.format(layer)}{name}.weight": torch.ones(shape)
        for layer in (0, 1)
        for name, shape in (("A", (2, 12)), ("B", (18, 2)))
    }
    words = ["finetune", "--from", folder, "tune.yaml"]
    words += ["--set", f"adapter={{type: peft, path: {adapter}}}"]
    for wrong in ({}, {f"{stem.format(1)}B.weight": torch.ones(17, 2)}):
        write_tensors(adapter / "adapter_model.safetensors", tensors | wrong)
        real, dry = (cli(*words, *more) for more in ((), ("--dry-run",)))
        assert real.status == dry.status == (4 if wrong else 0), dry.err
        assert not wrong or real.err.splitlines()[-1] == dry.err.splitlines()[-1]
