"""`bigmodel export --to adapter`: what was trained here opens in PEFT, with the same numbers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.loaded import load_checkpoint

Cli = Callable[..., Any]
SPEC = """\
model:
  type: decoder
  dim: 20
  max_len: 40
  tie_embeddings: false
  norm: rmsnorm
  blocks:
    - repeat: 2
      mixer: {type: attention, num_heads: 5, kv_heads: 1, bias: false, position: rotary}
      ffn: {type: swiglu, hidden: 28}
      norm: rmsnorm
data: {type: text, files: [text.txt], context: 32, tokenizer: bytes}
task: {type: causal_lm, sample_tokens: 0}
train: {steps: 3, batch_size: 4, precision: fp32, memory_format: contiguous, compile: "off"}
"""


def test_an_adapter_trained_on_a_folder_opens_in_peft(cli: Cli) -> None:
    peft = pytest.importorskip("peft")
    transformers = pytest.importorskip("transformers")
    Path("text.txt").write_text("one fish two fish red fish blue fish " * 40)
    Path("spec.yaml").write_text(SPEC)
    cli("pretrain", "spec.yaml", "--out", "base")
    assert cli("export", "base", "hf").status == 0
    adapter = (
        "adapter={type: lora, rank: 3, targets: ['*.qkv.v', '*.down'], modules_to_save: [norm]}"
    )
    words = ["--out", "tuned", "--set", adapter, "--set", "train.optimizer.lr=0.05"]
    tuned = cli("finetune", "--from", "hf", "spec.yaml", *words)
    assert tuned.status == 0, tuned.err
    whole = cli("export", "tuned", "other")
    assert (whole.status, Path("other").exists()) == (2, False)
    assert "bigmodel merge" in whole.err
    written = cli("export", "tuned", "adapter", "--to", "adapter")
    assert written.status == 0, written.err
    assert json.loads(Path("adapter/adapter_config.json").read_text())["r"] == 3
    base = transformers.AutoModelForCausalLM.from_pretrained("hf")
    theirs = peft.PeftModel.from_pretrained(base, "adapter").eval()
    ours = load_checkpoint(Path("tuned"), "cpu", tell=lambda _: None).model
    plain = load_checkpoint(Path("hf"), "cpu", tell=lambda _: None).model
    tokens = torch.randint(257, (2, 23), generator=torch.Generator().manual_seed(4))
    with torch.inference_mode():
        expected = theirs(tokens).logits
        torch.testing.assert_close(ours(tokens), expected, rtol=1e-5, atol=1e-5)
        assert float((plain(tokens) - expected).abs().max()) > 0.01
    assert "has no adapter" in cli("export", "base", "none", "--to", "adapter").err
