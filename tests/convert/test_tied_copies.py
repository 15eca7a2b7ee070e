"""Files that hold the matrix of the logits a second time, where config.json ties it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from published import drawn, off, read, saved, tensors
from safetensors.torch import save_file

from bigmodel_cli.errors import CheckpointError

transformers = pytest.importorskip("transformers")
WIDE = {
    "vocab_size": 37, "hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1,
    "intermediate_size": 16,
}  # fmt: skip
GROUPED = {**WIDE, "num_key_value_heads": 2, "tie_word_embeddings": True}
MARKS = dict.fromkeys([f"{name}_token_id" for name in ("pad", "bos", "eos", "cls", "sep")], 0)
CASES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 37, "n_embd": 12, "n_head": 3, "n_layer": 1},
             "lm_head.weight", "transformer.wte.weight"),
    "llama": ("LlamaForCausalLM", GROUPED, "lm_head.weight", "model.embed_tokens.weight"),
    "mixtral": ("MixtralForCausalLM", GROUPED, "lm_head.weight", "model.embed_tokens.weight"),
    "lfm2": ("Lfm2ForCausalLM", {**GROUPED, "layer_types": ["full_attention"]},
             "lm_head.weight", "model.embed_tokens.weight"),
    "mamba2": ("Mamba2ForCausalLM",
               {"vocab_size": 37, "hidden_size": 16, "num_heads": 4, "head_dim": 8, "n_groups": 1,
                "state_size": 4, "num_hidden_layers": 1, "tie_word_embeddings": True},
               "lm_head.weight", "backbone.embeddings.weight"),
    "bert": ("BertForMaskedLM", WIDE, "cls.predictions.decoder.weight",
             "bert.embeddings.word_embeddings.weight"),
    "bert bias": ("BertForMaskedLM", WIDE, "cls.predictions.decoder.bias", "cls.predictions.bias"),
    "roberta": ("RobertaForMaskedLM", WIDE, "lm_head.decoder.weight",
                "roberta.embeddings.word_embeddings.weight"),
    "roberta bias": ("RobertaForMaskedLM", WIDE, "lm_head.decoder.bias", "lm_head.bias"),
    "distilbert": ("DistilBertForMaskedLM",
                   {"vocab_size": 37, "dim": 12, "n_heads": 3, "n_layers": 1, "hidden_dim": 9},
                   "vocab_projector.weight", "distilbert.embeddings.word_embeddings.weight"),
    "modernbert": ("ModernBertForMaskedLM", {**WIDE, **MARKS}, "decoder.weight",
                   "model.embeddings.tok_embeddings.weight"),
}  # fmt: skip
"""(class, config, the copy, what it is a copy of)"""


@pytest.mark.parametrize("name", CASES)
@torch.no_grad()
def test_a_copy_is_read_where_it_is_one_and_refused_where_not(name: str, tmp_path: Path) -> None:
    """GPT-2's and the encoders' was overlooked: other logits than those of transformers, which
    takes both. The decoders' was refused, equal or not.
    """
    kind, values, copy, of = CASES[name]
    made = getattr(transformers, kind)
    saved(drawn(made(made.config_class(**values)), 0.3), tmp_path)
    found = tensors(tmp_path)
    found[copy] = found[of].clone()
    save_file(found, tmp_path / "model.safetensors", {"format": "pt"})
    row = torch.tensor([[9, 30, 8, 8, 21, 36]])
    theirs = made.from_pretrained(tmp_path).eval()
    assert off(read(tmp_path)[0](row), theirs(row).logits) < 1e-5
    found[copy][..., 3] += 1
    save_file(found, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(CheckpointError, match=f"{copy} is not {of}, and by config.json"):
        read(tmp_path)
