"""GPT-2 equals transformers', on tiny models with every weight drawn anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from published import drawn, off, read, saved, settings, tensors, written
from safetensors.torch import save_file

from bigmodel_cli.convert import opening
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.generation.sampling import generate

transformers = pytest.importorskip("transformers")

SIZES = {
    "vocab_size": 41, "n_positions": 90, "n_embd": 30, "n_layer": 3, "n_head": 5,
    "resid_pdrop": 0.15, "embd_pdrop": 0.2, "attn_pdrop": 0.05, "layer_norm_epsilon": 1e-4,
    "eos_token_id": None, "bos_token_id": None,
}  # fmt: skip
OTHERS: dict[str, dict[str, Any]] = {
    "as published": {},
    "inner": {"n_inner": 50, "activation_function": "gelu"},
    "not scaled": {"scale_attn_weights": False, "tie_word_embeddings": False},
    "scaled by layer": {"scale_attn_by_inverse_layer_idx": True},
    "both": {"scale_attn_by_inverse_layer_idx": True, "scale_attn_weights": False},
}


def theirs(**more: Any) -> Any:
    return drawn(transformers.GPT2LMHeadModel(transformers.GPT2Config(**{**SIZES, **more})))


@pytest.mark.parametrize("options", OTHERS.values(), ids=list(OTHERS))
def test_equals_transformers_and_goes_back_to_the_bit(
    options: dict[str, Any], tmp_path: Path
) -> None:
    model = theirs(**options)
    folder = saved(model, tmp_path / "theirs")
    ours, _ = read(folder)
    out = written(folder, ours, tmp_path / "out")
    tokens = torch.randint(41, (2, 19))
    with torch.no_grad():
        want = model(tokens).logits
        assert off(ours(tokens), want) <= 1e-5
        # documents of a packed row, padding behind them
        packed = torch.cat((tokens[:1, :7], tokens[1:, :9], torch.full((1, 3), -1)), 1)
        together = ours(packed, segments=torch.tensor([[0] * 7 + [1] * 9 + [2] * 3]))
        assert off(together[:, :7], want[:1, :7]) <= 1e-5
        assert off(together[:, 7:16], want[1:, :9]) <= 1e-5
    before, after = tensors(folder), tensors(out)
    assert before.keys() == after.keys()
    assert all(torch.equal(after[n], before[n]) for n in after)
    again = transformers.GPT2LMHeadModel.from_pretrained(out).eval()
    changed = {
        k: v for k, v in settings(again.config).items() if settings(model.config).get(k) != v
    }
    # 4 n_embd where null; the tokenizer's
    assert changed.keys() <= {"n_inner", "eos_token_id", "bos_token_id", "dtype"}
    assert again.config.n_inner == options.get("n_inner", 120)
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, want)
        ours.to(torch.bfloat16)
        model.to(torch.bfloat16)
        assert off(ours(tokens), model(tokens).logits) <= 1e-2


def test_64_greedy_tokens_are_transformers(tmp_path: Path) -> None:
    model = theirs(n_inner=50)
    ours, _ = read(saved(model, tmp_path / "theirs"))
    prompts = torch.randint(41, (2, 5))
    want = model.generate(prompts, max_new_tokens=64, do_sample=False, use_cache=True)
    got = torch.stack(list(generate(ours.generator(), prompts, max_new_tokens=64)), 1)
    assert torch.equal(got, want[:, 5:])


def test_files_without_the_prefix_and_with_masks_are_read(tmp_path: Path) -> None:
    model = theirs()
    folder = saved(model, tmp_path / "theirs")
    ours, _ = read(folder)
    names = {n.removeprefix("transformer."): t for n, t in tensors(folder).items()}
    names |= {f"h.{i}.attn.bias": torch.ones(1, 1, 90, 90).tril() for i in range(3)}
    names |= {f"h.{i}.attn.masked_bias": torch.tensor(-1e4) for i in range(3)}
    save_file(names, folder / "model.safetensors")
    older, _ = read(folder)
    state = ours.state_dict()
    assert all(torch.equal(t, state[n]) for n, t in older.state_dict().items())


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"activation_function": "silu"}, "activation_function: 'silu' is not built"),
        ({"add_cross_attention": True}, "add_cross_attention: 'True' is not built"),
        ({"rotary_dim": 4}, "rotary_dim: not known for this family"),
    ],
)
def test_other_options_are_refused(options: dict[str, Any], text: str, tmp_path: Path) -> None:
    config = transformers.GPT2Config(**{**SIZES, **options}, architectures=["GPT2LMHeadModel"])
    config.save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=text):
        opening.describe(tmp_path)
