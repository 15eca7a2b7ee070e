"""`bigmodel export --to gguf`: read back by transformers with equal logits and tokens."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.loaded import load_checkpoint

pytestmark = pytest.mark.no_cover
Cli = Callable[..., Any]
TEXT = "the quick brown fox jumps over 12 lazy dogs, don't they?\n" * 60


def trained(cli: Cli, mixer: str, model: str = "", tokenizer: str = "{type: bpe, vocab_size: 290}"):
    Path("text.txt").write_text(TEXT)
    Path("spec.yaml").write_text(
        f"model: {{type: decoder, dim: 24, max_len: 40, norm: {{type: rmsnorm, eps: 1e-5}}, {model}"
        f" blocks: [{{repeat: 2, mixer: {{type: attention, {mixer}}},"
        " ffn: {type: swiglu, hidden: 36}, norm: {type: rmsnorm, eps: 1e-5}}]}\n"
        f"data: {{type: text, files: [text.txt], context: 32, tokenizer: {tokenizer}}}\n"
        "task: {type: causal_lm, sample_tokens: 0}\n"
        "train: {steps: 6, batch_size: 4, precision: fp32, optimizer: {type: adamw, lr: 0.02}}\n"
    )
    result = cli("pretrain", "spec.yaml", "--out", "run")
    assert result.status == 0, result.err


LLAMA = "num_heads: 4, kv_heads: 2, bias: false, position: {type: rotary, base: 5000}"
QWEN3 = (
    "num_heads: 4, kv_heads: 1, head_dim: 128, bias: false, qk_norm: {eps: 1e-5}, position: rotary"
)
QWEN2 = "num_heads: 4, kv_heads: 2, bias: [q, k, v], position: rotary"


@pytest.mark.parametrize(
    ("mixer", "model"),
    [
        (LLAMA, "tie_embeddings: false,"),
        (LLAMA, ""),
        (QWEN3, ""),
        (QWEN2, "tie_embeddings: false,"),
    ],
    ids=["llama", "llama_tied", "qwen3", "qwen2"],
)
def test_logits_and_tokens_are_equal(mixer: str, model: str, cli: Cli) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gguf")
    trained(cli, mixer, model)
    result = cli("export", "run", "out", "--to", "gguf")
    assert result.status == 0, result.err
    files = {"gguf_file": "model.gguf"}
    theirs = transformers.AutoModelForCausalLM.from_pretrained("out", **files).eval()
    loaded = load_checkpoint(Path("run"), "cpu", tell=lambda _: None)
    tokens = torch.randint(280, (2, 21), generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        ours, expected = loaded.model(tokens), theirs(tokens).logits
    assert float((ours - expected).abs().max() / expected.abs().max()) < 1e-5
    from bigmodel_cli.data import load_tokenizer

    tokenizer = transformers.AutoTokenizer.from_pretrained("out", **files)
    text = "Quick foxes don't jump 2345 times.\n\n  ok"
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == load_tokenizer(
        loaded.assets
    ).encode(text)


@pytest.mark.parametrize(
    ("mixer", "tokenizer", "message"),
    [
        ("num_heads: 4, bias: false, position: alibi", "bytes", "alibi"),
        (f"{LLAMA}, window: 8", "bytes", "windows"),
        (LLAMA.replace("5000}", "5000, scaling: {type: linear, factor: 2}}"), "bytes", "scaled"),
        (LLAMA, "{type: characters}", "byte-level BPE"),
    ],
)
def test_what_the_file_cannot_say_is_refused(
    mixer: str, tokenizer: str, message: str, cli: Cli
) -> None:
    pytest.importorskip("gguf")
    trained(cli, mixer, "", tokenizer)
    result = cli("export", "run", "out", "--to", "gguf")
    assert (result.status, message in result.err) == (2, True), result.err
    assert not Path("out").exists()
