"""Marian and T5 of transformers, in and out: logits, padding, greedy text and beams equal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from published import drawn, off, read, saved, settings, tensors, written
from torch import Tensor

from bigmodel_cli.generation.beam import Beam, beam_search
from bigmodel_cli.generation.sampling import Sampling, generate

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.no_cover

MARIAN: dict[str, Any] = {
    "vocab_size": 37, "d_model": 24, "encoder_layers": 3, "decoder_layers": 2,
    "encoder_attention_heads": 3, "decoder_attention_heads": 4, "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 28, "max_position_embeddings": 70, "pad_token_id": 36, "eos_token_id": 0,
    "decoder_start_token_id": 36, "forced_eos_token_id": None,
}  # fmt: skip
T5: dict[str, Any] = {
    "vocab_size": 41, "d_model": 20, "d_kv": 6, "d_ff": 36, "num_layers": 2,
    "num_decoder_layers": 3, "num_heads": 3, "relative_attention_num_buckets": 10,
    "relative_attention_max_distance": 17, "layer_norm_epsilon": 1e-3, "n_positions": 70,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "marian, swish": ("MarianMTModel", {**MARIAN, "activation_function": "swish"}),
    "marian, scaled": (
        "MarianMTModel",
        {**MARIAN, "activation_function": "relu", "scale_embedding": True},
    ),
    "t5": ("T5ForConditionalGeneration", T5),
    "t5, gated": (
        "T5ForConditionalGeneration",
        {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    ),
    "t5, gated silu": (
        "T5ForConditionalGeneration",
        {**T5, "feed_forward_proj": "gated-silu"},
    ),
}


def published(folder: Path, name: str) -> Any:
    kind, options = FAMILIES[name]
    cls = getattr(transformers, kind)
    model = drawn(cls(cls.config_class(**options)), 0.15)
    with torch.no_grad():
        if name.startswith("marian"):
            model.final_logits_bias.normal_()
    saved(model, folder)
    return cls.from_pretrained(folder).eval()  # whose sines are not drawn


def batch(vocab: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sources, which of their places are real, targets."""
    draw = torch.Generator().manual_seed(2)
    source = torch.randint(1, vocab - 1, (3, 11), generator=draw)
    real = torch.ones(3, 11, dtype=torch.bool)
    real[1, 7:] = real[2, 2:] = False
    return source, real, torch.randint(1, vocab - 1, (3, 9), generator=draw)


@pytest.mark.parametrize("name", FAMILIES)
def test_logits_equal_and_what_is_written_is_what_was_read(name: str, tmp_path: Path) -> None:
    theirs = published(tmp_path / "theirs", name)
    ours, _ = read(tmp_path / "theirs")
    source, real, target = batch(theirs.config.vocab_size)
    padded = source.masked_fill(~real, -1)
    out = written(tmp_path / "theirs", ours, tmp_path / "ours")
    again = type(theirs).from_pretrained(out).eval()
    inputs = {"input_ids": source, "attention_mask": real.long(), "decoder_input_ids": target}
    with torch.no_grad():
        want = theirs(**inputs).logits
        assert off(ours(padded, target), want) < 1e-5
        assert off(again(**inputs).logits, want) < 1e-6
        for row, length in enumerate((11, 7, 2)):  # padded = alone
            alone = ours(source[row : row + 1, :length], target[row : row + 1])
            assert off(alone, want[row : row + 1]) < 1e-5
        with torch.autocast("cpu", torch.bfloat16):
            assert off(ours(padded, target).float(), theirs(**inputs).logits.float()) < 2e-2
    before, after = tensors(tmp_path / "theirs"), tensors(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[n], after[n]) for n in after)
    assert settings(again.config) == settings(
        type(theirs).from_pretrained(tmp_path / "theirs").config
    )
