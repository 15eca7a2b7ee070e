"""Random configs of every family of decoders: equal logits in both directions, or refused."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from test_decoder_families import CASES, DELTA, FULL, SLIDING, Pair, apart, write
from transformers import AutoModelForCausalLM

from bigmodel_cli.convert.exporting import express
from bigmodel_cli.errors import CheckpointError

pytestmark = [pytest.mark.no_cover, pytest.mark.slow]

SEEDS = 60
KINDS = (
    "llama", "mistral", "qwen2", "qwen3", "smollm3", "olmo2", "olmo3", "gemma2", "gemma3_text",
    "qwen3_5_text",
)  # fmt: skip


class Draw(random.Random):
    """Random parts of a config."""

    def chance(self, p: float) -> bool:
        return self.random() < p

    def rope(self, kinds: tuple[str, ...] = ("default", "linear", "llama3", "yarn")) -> Any:
        """`rope_parameters`."""
        kind = self.choice(kinds)
        found: dict[str, Any] = {"rope_type": kind, "rope_theta": self.choice([50.0, 1e4, 3e5])}
        if kind != "default":
            found["factor"] = self.choice([1.5, 4.0, 8])
        if kind in ("llama3", "yarn"):
            found["original_max_position_embeddings"] = self.choice([24, 32, 64])
        if kind == "llama3":
            found |= {"low_freq_factor": self.choice([0.5, 1]), "high_freq_factor": 4.0}
        more: dict[str, Any] = {
            "beta_fast": 4, "attention_factor": 1.2, "mscale": 0.8, "truncate": False,
        }  # fmt: skip
        if kind == "yarn":
            found |= {key: value for key, value in more.items() if self.chance(0.3)}
            found |= {"mscale_all_dim": 0.6} if "mscale" in found else {}
        return found

    def config(self) -> dict[str, Any]:
        """A whole config."""
        kind, groups, count = self.choice(KINDS), self.choice([1, 2, 3]), self.choice([1, 2, 3, 5])
        heads = groups * self.choice([1, 2, 3])
        found: dict[str, Any] = {
            "model_type": kind, "vocab_size": 107, "hidden_size": heads * self.choice([4, 6, 8]),
            "num_attention_heads": heads, "num_key_value_heads": groups,
            "intermediate_size": self.choice([13, 30]), "num_hidden_layers": count,
            "max_position_embeddings": self.choice([64, 90, 200]),
            "rms_norm_eps": self.choice([1e-6, 1e-5, 1e-2]),
            "tie_word_embeddings": self.chance(0.5), "bos_token_id": None, "eos_token_id": None,
            "pad_token_id": None,
        }  # fmt: skip
        types = [self.choice([FULL, SLIDING]) for _ in range(count)]
        if kind in ("qwen3", "gemma2", "gemma3_text") or (kind == "llama" and self.chance(0.5)):
            found["head_dim"] = self.choice([4, 6, 10, 16])
        if kind not in ("qwen2", "mistral"):
            found["attention_bias"] = self.chance(0.4)
        if kind in ("llama", "smollm3"):
            found["mlp_bias"] = self.chance(0.4)
        if kind == "mistral":
            found["sliding_window"] = self.choice([None, 3, 9, 100])
        if kind in ("qwen2", "qwen3", "smollm3") and self.chance(0.6):
            found |= {"use_sliding_window": True, "sliding_window": self.choice([2, 7])}
            found |= {"layer_types": types} if self.chance(0.5) else {}
        if kind == "smollm3" and self.chance(0.5):
            found["no_rope_layers"] = [self.choice([0, 1]) for _ in range(count)]
        if kind in ("olmo3", "gemma2", "gemma3_text"):
            found["sliding_window"] = self.choice([2, 6, 50])
            found |= {"layer_types": types} if self.chance(0.6) else {}
        if kind in ("gemma2", "gemma3_text"):
            found["query_pre_attn_scalar"] = self.choice([7, 16, found["head_dim"]])
            found["final_logit_softcapping"] = self.choice([None, 2.0])
        if kind == "qwen3_5_text":
            keys = self.choice([1, 2])
            found |= {
                "head_dim": self.choice([16, 32]), "linear_num_key_heads": keys,
                "linear_num_value_heads": keys * self.choice([1, 3]),
                "linear_key_head_dim": self.choice([4, 6]),
                "linear_value_head_dim": self.choice([5, 8]),
                "layer_types": [self.choice([FULL, DELTA]) for _ in range(count)],
            }  # fmt: skip
            rope = {**self.rope(("default",)), "partial_rotary_factor": self.choice([0.25, 1.0])}
        elif kind in ("olmo3", "gemma3_text"):
            rope = {FULL: self.rope(), SLIDING: self.rope()}
        else:
            rope = self.rope()
        return {**found, **({"rope_parameters": rope} if self.chance(0.7) else {})}


def opened(folder: Path) -> Pair | None:
    """None where it is refused for the one reason there is."""
    try:
        return Pair("random", folder)
    except CheckpointError as error:
        if "truncate: false of one type of layer" in str(error):
            return None
        raise


@pytest.mark.parametrize("seed", range(SEEDS))
@torch.no_grad()
def test_a_random_config_is_equal_or_refused(seed: int, tmp_path: Path) -> None:
    CASES["random"] = Draw(seed).config()
    pair = opened(tmp_path / "theirs")
    if pair is None:
        return
    rows = [torch.randint(107, (1, count)) for count in (29, 1, 13)]
    segments = torch.cat([torch.full((1, row.shape[1]), i) for i, row in enumerate(rows)], 1)
    packed = pair.ours(torch.cat(rows, 1), segments=segments)
    cache = pair.ours.new_cache(1)
    pieces = [pair.ours(piece, cache) for piece in rows[0].split([5, 1, 9, 1, 1, 12], 1)]
    alone = [pair.theirs(row, use_cache=False).logits for row in rows]
    exact = [pair.ours.double()(row) for row in rows]
    pair.ours.float()
    # what is drawn may amplify rounding
    near = max(1e-5, *(4 * apart(w, e) for w, e in zip(alone, exact, strict=True)))
    for i, (row, want) in enumerate(zip(rows, alone, strict=True)):
        assert apart(pair.ours(row), want) <= near
        assert apart(packed[:, segments[0] == i], want) <= near
    assert apart(torch.cat(pieces, 1), alone[0]) <= near
    write(pair, express(pair.options, pair.info, "causal_lm"), tmp_path / "ours")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours", attn_implementation="eager")
    assert torch.equal(again.eval()(rows[0], use_cache=False).logits, alone[0])
