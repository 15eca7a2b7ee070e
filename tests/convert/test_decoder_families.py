"""Llama and its relations, against transformers' models with every weight drawn anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert import opening
from bigmodel_cli.convert.config import IRRELEVANT
from bigmodel_cli.convert.exporting import Expressed, express, folder_files
from bigmodel_cli.convert.families import BY_TYPE
from bigmodel_cli.convert.family import written_out
from bigmodel_cli.generation.sampling import generate
from bigmodel_cli.models import build

VOCAB = 107
SHARED: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 36, "intermediate_size": 44, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 90,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
WIDE = {**SHARED, "head_dim": 10}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 40, "rope_theta": 900.0,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 30, "beta_fast": 8.0,
    "rope_theta": 600.0,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 2.5, "rope_theta": 3000.0}
FULL, SLIDING, DELTA = "full_attention", "sliding_attention", "linear_attention"
SOME = {"layer_types": [SLIDING, FULL, SLIDING], "sliding_window": 5}
QWEN3_5 = {
    **WIDE, "model_type": "qwen3_5_text", "head_dim": 16, "linear_key_head_dim": 6,
    "linear_value_head_dim": 10, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
    "layer_types": [DELTA, FULL, DELTA],
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "llama": {**SHARED, "model_type": "llama"},
    "llama 3.2": {
        **WIDE, "model_type": "llama", "rope_parameters": LLAMA3, "tie_word_embeddings": True,
        "rms_norm_eps": 1e-3,
    },
    "llama biases": {
        **WIDE, "model_type": "llama", "attention_bias": True, "mlp_bias": True,
        "rope_parameters": LINEAR,
    },
    "llama yarn": {**WIDE, "model_type": "llama", "rope_parameters": YARN},
    "mistral": {**WIDE, "model_type": "mistral", "sliding_window": 7},
    "mistral without": {**SHARED, "model_type": "mistral", "sliding_window": None},
    "qwen2": {**SHARED, "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2 windows": {
        **SHARED, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 6,
        "max_window_layers": 1,
    },
    "qwen3": {**WIDE, "model_type": "qwen3", "rms_norm_eps": 1e-3},
    "qwen3 layer types": {
        **WIDE, **SOME, "model_type": "qwen3", "use_sliding_window": True, "attention_bias": True,
        "rope_parameters": YARN,
    },
    "smollm3": {**SHARED, "model_type": "smollm3", "num_hidden_layers": 5},
    "smollm3 windows": {
        **SHARED, "model_type": "smollm3", "no_rope_layers": [1, 0, 0], "attention_bias": True,
        "use_sliding_window": True, "sliding_window": 8, "tie_word_embeddings": False,
    },
    "olmo2": {**SHARED, "model_type": "olmo2"},
    "olmo2 biases": {**SHARED, "model_type": "olmo2", "attention_bias": True,
                     "rope_parameters": YARN, "rms_norm_eps": 1e-2},
    "olmo3": {**SHARED, "model_type": "olmo3", "num_hidden_layers": 4, "sliding_window": 6},
    "olmo3 yarn": {
        **SHARED, **SOME, "model_type": "olmo3",
        "rope_parameters": {SLIDING: {"rope_type": "default", "rope_theta": 700.0}, FULL: YARN},
    },
    "gemma2": {**WIDE, "model_type": "gemma2", "query_pre_attn_scalar": 17, "sliding_window": 6},
    "gemma2 others": {
        **WIDE, "model_type": "gemma2", "query_pre_attn_scalar": 10, "attention_bias": True,
        "attn_logit_softcapping": None, "final_logit_softcapping": 3.0,
        "layer_types": [FULL, FULL, SLIDING], "sliding_window": 4, "rms_norm_eps": 1e-3,
    },
    "gemma3": {**WIDE, **SOME, "model_type": "gemma3_text", "query_pre_attn_scalar": 23},
    "gemma3 scaled": {
        **WIDE, "model_type": "gemma3_text", "sliding_window": 4, "query_pre_attn_scalar": 10,
        "final_logit_softcapping": 4.0,
        "rope_parameters": {FULL: LINEAR, SLIDING: {"rope_type": "default", "rope_theta": 80.0}},
        "layer_types": [SLIDING, FULL, FULL],
    },
    "qwen3.5": {**QWEN3_5, "rms_norm_eps": 1e-3},
    "qwen3.5 others": {
        **QWEN3_5, "attention_bias": True, "tie_word_embeddings": True, "layer_types": None,
        "num_hidden_layers": 4, "linear_num_key_heads": 4, "linear_conv_kernel_dim": 3,
        "rope_parameters": {
            "rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5,
            "mrope_section": [2, 1, 1], "mrope_interleaved": True,
        },
    },
}  # fmt: skip
every = pytest.mark.parametrize("name", CASES)
ONE_EACH = (
    "llama 3.2", "mistral", "qwen2 windows", "qwen3", "smollm3", "olmo2", "olmo3", "gemma2",
    "gemma3", "qwen3.5",
)  # fmt: skip
one_each = pytest.mark.parametrize(
    "name", [n if n in ONE_EACH else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)


def drawn(model: Any, std: float = 0.2) -> Any:
    """Every weight drawn anew, norms and biases too."""
    torch.manual_seed(0)
    offset = model.config.model_type.startswith(("gemma", "qwen3_5"))
    with torch.no_grad():
        for key, p in model.named_parameters():
            centre = 1.0 if "norm" in key and not (offset and "linear_attn" not in key) else 0.0
            p.normal_(centre, std if p.dim() > 1 else 0.2)
            if "embed" in key and offset:  # tied: else each token is followed by itself
                p.mul_(0.2)
    return model.eval()


def theirs_of(name: str, std: float = 0.2) -> Any:
    values = dict(CASES[name])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    return drawn(AutoModelForCausalLM.from_config(config, attn_implementation="eager"), std)


def read(folder: Path) -> tuple[Any, DatasetInfo, Any]:
    """Our model of a folder, its info and its options."""
    found = opening.read(folder)
    options, info = opening.typed(found.spec["model"]), DatasetInfo.from_json(found.info)
    model = build(options, info).eval()
    found.model.copy_to(model.state_dict())
    return model, info, options


class Pair:
    """Their model, the folder that it was saved to, and ours read from there."""

    def __init__(self, name: str, folder: Path) -> None:
        self.theirs, self.folder = theirs_of(name), folder
        self.theirs.save_pretrained(folder)
        self.ours, self.info, self.options = read(folder)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    class Lazily(dict[str, Pair]):
        def __missing__(self, name: str) -> Pair:
            self[name] = Pair(name, tmp_path_factory.mktemp("theirs"))
            return self[name]

    return Lazily()


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def apart(found: Tensor, want: Tensor) -> float:
    """The largest difference relative to the largest logit."""
    assert found.shape == want.shape
    return float((found.float() - want.float()).abs().max() / want.float().abs().max())


@every
@torch.no_grad()
def test_logits_padded_and_packed(name: str, pairs: dict[str, Pair]) -> None:
    pair = pairs[name]
    rows = [tokens(1, count, seed=count) for count in (23, 7, 12)]
    padded = torch.full((3, 23), -1)
    for i, row in enumerate(rows):
        padded[i, : row.shape[1]] = row[0]
    found = pair.ours(padded)
    segments = torch.cat([torch.full((1, row.shape[1]), i) for i, row in enumerate(rows)], 1)
    packed = pair.ours(torch.cat(rows, 1), segments=segments)
    for i, row in enumerate(rows):
        want = pair.theirs(row).logits
        assert apart(pair.ours(row), want) <= 1e-5
        assert apart(found[i : i + 1, : row.shape[1]], want) <= 1e-5
        assert apart(packed[:, segments[0] == i], want) <= 1e-5


@one_each
@torch.no_grad()
def test_64_greedy_tokens_with_a_cache(name: str, pairs: dict[str, Pair]) -> None:
    """Each of ours is the likeliest in their model after those before it: theirs are the same."""
    pair, prompt = pairs[name], tokens(2, 9)
    found = torch.stack(list(generate(pair.ours, prompt, max_new_tokens=64)), 1)
    assert found.shape == (2, 64)
    logits = pair.theirs(torch.cat((prompt, found), 1)).logits
    assert torch.equal(logits[:, 8:-1].argmax(-1), found)
    assert len(found.unique()) > 4  # not a single token again and again


def far(found: Tensor, want: Tensor) -> float:
    """The root mean square of the differences relative to that of the logits."""
    return float(
        (found - want).float().square().mean().sqrt() / want.float().square().mean().sqrt()
    )


@one_each
@torch.no_grad()
def test_bf16(name: str, tmp_path: Path) -> None:
    """As near as two ways of rounding are, at the deviation that networks start with."""
    theirs, row = theirs_of(name, 0.02), tokens(2, 23)
    theirs.save_pretrained(tmp_path)
    exact = theirs(row).logits
    want = theirs.bfloat16()(row).logits
    found = read(tmp_path)[0].bfloat16()(row)
    assert found.dtype == torch.bfloat16
    assert far(found, want) <= max(1e-2, 1.5 * far(want, exact))


UNUSED = {
    "max_window_layers",  # layer_types is there
    "mrope_section", "mrope_interleaved",  # for images
}  # fmt: skip


def network(values: dict[str, Any]) -> dict[str, Any]:
    """What a config says of the network."""
    return {
        key: network(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in IRRELEVANT | UNUSED and value is not None
    }


def write(pair: Pair, found: Expressed, place: Path) -> None:
    place.mkdir()
    weights = pair.ours.state_dict()
    for file, pieces in folder_files(found, pair.options, pair.info, "causal_lm", weights):
        (place / file).write_bytes(b"".join(bytes(piece) for piece in pieces))


@every
def test_what_is_written_is_what_was_read(
    name: str, pairs: dict[str, Pair], tmp_path: Path
) -> None:
    pair = pairs[name]
    family = BY_TYPE[CASES[name]["model_type"]]
    config = family.config(written_out(pair.options), pair.info)
    head = {"architectures": [family.class_of("causal_lm")]}
    write(pair, Expressed(family, {**config, **head}, []), tmp_path / "again")
    theirs, ours = (load_file(f / "model.safetensors") for f in (pair.folder, tmp_path / "again"))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[key], tensor) for key, tensor in theirs.items())
    again = AutoConfig.from_pretrained(tmp_path / "again")
    want = AutoConfig.from_pretrained(pair.folder)
    assert network(again.to_dict()) == network(want.to_dict())
    # and found without knowing the family
    found = express(pair.options, pair.info, "causal_lm")
    assert found.left_out == []
    same = found.family is family
    assert same or (name, found.family.model_types[0]) == ("mistral without", "llama")
