"""Mixtures of experts and hybrids, against transformers' models with every weight drawn anew.

Where two experts' scores are nearly equal, rounding decides which is taken, and either is right:
the seeds are such that none are.
"""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert import opening
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.exporting import express, folder_files
from bigmodel_cli.convert.families import BY_TYPE
from bigmodel_cli.convert.family import written_out
from bigmodel_cli.errors import CheckpointError, SpecError
from bigmodel_cli.generation.sampling import generate
from bigmodel_cli.models import build

VOCAB, LONGEST = 101, 96
EAGER = {"attn_implementation": "eager", "experts_implementation": "eager"}
SHARED = {
    "vocab_size": VOCAB, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": LONGEST, "bos_token_id": None,
    "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
WIDE = {**SHARED, "head_dim": 10}
YARN = {
    "rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 32,
    "rope_theta": 5000.0,
}  # fmt: skip
DEEPSEEK = {
    **SHARED, "model_type": "deepseek_v3", "num_key_value_heads": 4, "moe_intermediate_size": 20,
    "intermediate_size": 28, "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4,
    "topk_group": 2, "q_lora_rank": 14, "kv_lora_rank": 12, "qk_nope_head_dim": 10,
    "qk_rope_head_dim": 6, "v_head_dim": 8, "first_k_dense_replace": 1, "n_shared_experts": 2,
    "rms_norm_eps": 1e-3, "num_nextn_predict_layers": 0,
}  # fmt: skip
MULTIPLIERS = {
    "embedding_multiplier": 12.0, "logits_scaling": 7.0, "residual_multiplier": 0.22,
    "attention_multiplier": 0.13,
}  # fmt: skip
HYBRID = {
    **SHARED, **MULTIPLIERS, "model_type": "granitemoehybrid", "intermediate_size": 20,
    "shared_intermediate_size": 28, "num_local_experts": 5, "mamba_n_heads": 6,
    "mamba_d_state": 5, "mamba_chunk_size": 16, "layer_types": ["mamba", "attention", "mamba"],
    "rms_norm_eps": 1e-3,
}  # fmt: skip
CASES: dict[str, dict[str, Any]] = {
    "mixtral": {
        **WIDE, "model_type": "mixtral", "intermediate_size": 20, "num_local_experts": 5,
        "rms_norm_eps": 1e-3,
    },
    "mixtral window tied": {
        **SHARED, "model_type": "mixtral", "intermediate_size": 13, "num_local_experts": 4,
        "num_experts_per_tok": 3, "sliding_window": 7, "tie_word_embeddings": True,
        "output_router_logits": True, "router_aux_loss_coef": 0.02,
    },
    "qwen2_moe": {
        **SHARED, "model_type": "qwen2_moe", "moe_intermediate_size": 11, "intermediate_size": 28,
        "num_experts": 5, "num_experts_per_tok": 2, "shared_expert_intermediate_size": 17,
        "decoder_sparse_step": 2, "rms_norm_eps": 1e-3,
    },
    "qwen2_moe window": {
        **SHARED, "model_type": "qwen2_moe", "moe_intermediate_size": 11, "intermediate_size": 28,
        "num_experts": 4, "num_experts_per_tok": 3, "shared_expert_intermediate_size": 9,
        "norm_topk_prob": True, "qkv_bias": False, "use_sliding_window": True, "sliding_window": 6,
        "max_window_layers": 2, "tie_word_embeddings": True,
    },
    "qwen3_moe": {
        **WIDE, "model_type": "qwen3_moe", "moe_intermediate_size": 20, "intermediate_size": 28,
        "num_experts": 6, "num_experts_per_tok": 2, "mlp_only_layers": [1], "rms_norm_eps": 1e-3,
        "norm_topk_prob": True,
    },
    "qwen3_moe bias window": {
        **WIDE, "model_type": "qwen3_moe", "moe_intermediate_size": 20, "intermediate_size": 28,
        "num_experts": 6, "num_experts_per_tok": 2, "attention_bias": True,
        "use_sliding_window": True, "sliding_window": 9, "rope_parameters": YARN,
    },
    "gpt_oss": {
        **WIDE, "model_type": "gpt_oss", "intermediate_size": 20, "num_local_experts": 5,
        "num_experts_per_tok": 2, "sliding_window": 7, "swiglu_limit": 1.1,
        "rope_parameters": {**YARN, "truncate": False},
    },
    "gpt_oss plain": {
        **WIDE, "model_type": "gpt_oss", "intermediate_size": 12, "num_local_experts": 4,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
        "num_experts_per_tok": 3, "sliding_window": 5, "attention_bias": False,
        "swiglu_alpha": 1.3, "rope_parameters": {"rope_type": "default", "rope_theta": 777.0},
    },
    "deepseek_v3": DEEPSEEK,
    "deepseek_v3 direct queries": {
        **DEEPSEEK, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "norm_topk_prob": False,
        "first_k_dense_replace": 0, "routed_scaling_factor": 1.3,
        "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.9},
    },
    "granite": {
        **SHARED, **MULTIPLIERS, "model_type": "granite", "intermediate_size": 20,
        "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True,
    },
    "granitemoehybrid": HYBRID,
    "granitemoehybrid rope groups": {
        **HYBRID, "position_embedding_type": "rope", "mamba_n_groups": 2, "mamba_d_conv": 3,
    },
    "granitemoehybrid dense": {**HYBRID, "num_local_experts": 0, "tie_word_embeddings": True},
    "lfm2": {
        **SHARED, "model_type": "lfm2", "intermediate_size": 40, "block_multiple_of": 8,
        "layer_types": ["conv", "full_attention", "conv"], "norm_eps": 1e-3,
    },
    "lfm2 bias": {
        **SHARED, "model_type": "lfm2", "intermediate_size": 21, "block_auto_adjust_ff_dim": False,
        "layer_types": ["full_attention", "conv", "conv"], "conv_bias": True, "conv_L_cache": 4,
        "tie_word_embeddings": False,
    },
    "mamba2": {
        "model_type": "mamba2", "vocab_size": VOCAB, "hidden_size": 24, "num_hidden_layers": 3,
        "num_heads": 6, "head_dim": 8, "state_size": 5, "n_groups": 2, "expand": 2,
        "chunk_size": 16, "layer_norm_epsilon": 1e-3, "bos_token_id": None, "eos_token_id": None,
        "pad_token_id": None,
    },
    "mamba2 tied": {
        "model_type": "mamba2", "vocab_size": VOCAB, "hidden_size": 20, "num_hidden_layers": 2,
        "num_heads": 4, "head_dim": 15, "state_size": 7, "n_groups": 1, "expand": 3,
        "conv_kernel": 3, "chunk_size": 5, "tie_word_embeddings": True, "bos_token_id": None,
        "eos_token_id": None, "pad_token_id": None,
    },
}  # fmt: skip
every = pytest.mark.parametrize("name", CASES)
one_each = pytest.mark.parametrize(
    "name", [pytest.param(n, marks=pytest.mark.slow) if " " in n else n for n in CASES]
)
"""The others compute by the same code."""
SEEDS = {
    "mixtral": 8, "mixtral window tied": 31, "qwen3_moe": 36, "qwen3_moe bias window": 51,
    "gpt_oss": 5, "gpt_oss plain": 18, "deepseek_v3": 24, "deepseek_v3 direct queries": 31,
    "granitemoehybrid": 20, "granitemoehybrid rope groups": 18,
}  # fmt: skip
"""Of weights for which bf16 takes the same experts: the closest scores are farthest apart."""


def theirs_of(name: str, std: float, seed: int) -> Any:
    """A model of transformers, every weight drawn anew, norms and biases too."""
    values = dict(CASES[name])
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, **EAGER)
    with torch.no_grad():
        for key, p in model.named_parameters():
            p.normal_(1.0 if "norm" in key else 0.0, std)
        for key, buffer in model.named_buffers():
            if key.endswith("e_score_correction_bias"):
                buffer.normal_(0.0, 0.2)
    return model.eval()


class Pair:
    """Their model, the folder that it was saved to, and ours read from there."""

    def __init__(
        self,
        name: str,
        folder: Path,
        dtype: torch.dtype = torch.float32,
        std: float = 0.3,
        seed: int = 0,
    ) -> None:
        self.name, self.folder = name, folder
        self.theirs = theirs_of(name, std, seed).to(dtype)
        self.theirs.save_pretrained(folder)
        self.read = opening.read(folder)
        self.options = opening.typed(self.read.spec["model"])
        self.info = DatasetInfo.from_json(self.read.info)
        self.ours: Any = build(self.options, self.info).eval()
        self.read.model.copy_to(self.ours.state_dict())


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Pair]:
    made: dict[str, Pair] = {}

    class Lazily(dict[str, Pair]):
        def __missing__(self, name: str) -> Pair:
            made = self[name] = Pair(name, tmp_path_factory.mktemp("theirs"))
            return made

    return Lazily(made)


def tokens(*shape: int, seed: int = 1) -> Tensor:
    return torch.randint(VOCAB, shape, generator=torch.Generator().manual_seed(seed))


def apart(found: Tensor, want: Tensor) -> float:
    """The largest difference relative to the largest logit."""
    return float((found.float() - want.float()).abs().max() / want.float().abs().max())


@every
@torch.no_grad()
def test_logits_padded_and_packed(name: str, pairs: dict[str, Pair]) -> None:
    pair = pairs[name]
    rows = [tokens(1, count, seed=count) for count in (19, 7, 11)]
    alone = [pair.theirs(row).logits for row in rows]
    padded = torch.full((3, 19), -1)
    for i, row in enumerate(rows):
        padded[i, : row.shape[1]] = row[0]
    found = pair.ours(padded)
    segments = torch.cat([torch.full((1, row.shape[1]), i) for i, row in enumerate(rows)], 1)
    packed = pair.ours(torch.cat(rows, 1), segments=segments)
    for i, (row, want) in enumerate(zip(rows, alone, strict=True)):
        assert apart(pair.ours(row), want) <= 1e-5
        assert apart(found[i : i + 1, : row.shape[1]], want) <= 1e-5
        assert apart(packed[:, segments[0] == i], want) <= 1e-5


@one_each
@torch.no_grad()
def test_greedy_tokens_with_a_cache(name: str, pairs: dict[str, Pair]) -> None:
    pair, prompt = pairs[name], tokens(1, 6)
    found = torch.stack(list(generate(pair.ours, prompt, max_new_tokens=64)), 1)
    # each is theirs after those before it: so all are
    want = pair.theirs(torch.cat((prompt, found), 1)).logits[:, 5:-1].argmax(-1)
    assert torch.equal(found, want)


@one_each
@torch.no_grad()
def test_bf16(name: str, tmp_path: Path) -> None:
    pair = Pair(name, tmp_path / "theirs", torch.bfloat16, std=0.05, seed=SEEDS.get(name, 0))
    rows = tokens(2, 7)
    want = pair.theirs(rows).logits
    same_folder(pair, tmp_path / "ours")
    found = pair.ours.bfloat16()(rows)
    assert float((found - want).norm() / want.norm()) <= 1e-2


UNIMPORTANT = {
    "transformers_version", "_name_or_path", "dtype", "initializer_range", "bos_token_id",
    "eos_token_id", "pad_token_id", "router_jitter_noise", "use_cache", "hidden_act",
}  # fmt: skip
OTHERWISE = {
    # the hidden width as it is, and not what it is found from
    "lfm2": {"block_auto_adjust_ff_dim", "block_multiple_of", "intermediate_size"},
    # of layers that are not there
    "qwen3_moe bias window": {"intermediate_size"},
    "qwen2_moe": {"decoder_sparse_step", "mlp_only_layers", "sliding_window"},
    "qwen2_moe window": {"intermediate_size", "max_window_layers"},
    "deepseek_v3 direct queries": {"intermediate_size"},
    "granitemoehybrid dense": {"intermediate_size", "position_embedding_type"},
    "granitemoehybrid": {"position_embedding_type"},  # nope is a word for none
}
"""What is said in other words."""


def same_folder(pair: Pair, place: Path) -> None:
    """What we write is what was read: every tensor to the bit, and the configuration."""
    place.mkdir()
    weights = {k: v.to(pair.theirs.dtype) for k, v in pair.ours.state_dict().items()}
    found = express(pair.options, pair.info, "causal_lm")
    for file, pieces in folder_files(found, pair.options, pair.info, "causal_lm", weights):
        (place / file).write_bytes(b"".join(bytes(piece) for piece in pieces))
    theirs, ours = (load_file(f / "model.safetensors") for f in (pair.folder, place))
    assert ours.keys() == theirs.keys()
    for key, tensor in theirs.items():
        assert torch.equal(ours[key].to(tensor.dtype), tensor), key
    written, read = (AutoConfig.from_pretrained(f).to_dict() for f in (place, pair.folder))
    different = {key for key in written | read if written.get(key) != read.get(key)}
    assert different <= UNIMPORTANT | OTHERWISE.get(pair.name, set())
    again = opening.read(place)
    assert again.spec["model"] == pair.read.spec["model"]


@every
def test_what_is_written_is_what_was_read(
    name: str, pairs: dict[str, Pair], tmp_path: Path
) -> None:
    pair = pairs[name]
    same_folder(pair, tmp_path / "again")
    opened = AutoModelForCausalLM.from_pretrained(tmp_path / "again", **EAGER).eval()
    row = tokens(1, 13)
    with torch.no_grad():
        # memory that is aligned otherwise is summed in another order
        assert apart(opened(row).logits, pair.theirs(row).logits) <= 1e-6


def read_again(values: dict[str, Any]) -> dict[str, Any]:
    """The `model` section of a config.json, every option with its value."""
    config = Config(values, "config.json")
    family = BY_TYPE[values["model_type"]]
    model = opening.typed(family.model(config))
    config.finish(family.ignored)
    return written_out(model)


def older(values: dict[str, Any]) -> dict[str, Any]:
    """The same config.json with the keys that transformers 4 and the hub have."""
    values = copy.deepcopy(values)
    rotary, kind = values.pop("rope_parameters", None), values["model_type"]
    values["torch_dtype"] = values.pop("dtype")
    if rotary is not None:
        values["rope_theta"] = rotary.pop("rope_theta")
        plain = rotary["rope_type"] == "default"
        values["rope_scaling"] = None if plain else {"type": rotary.pop("rope_type"), **rotary}
    if kind == "qwen3_moe":
        values["num_experts"] = values.pop("num_local_experts")
        values["max_window_layers"] = 2
    if kind == "gpt_oss" and values["layer_types"][0] == "sliding_attention":
        del values["layer_types"]
    if kind == "deepseek_v3":
        del values["head_dim"], values["qk_head_dim"]
        values |= {"scoring_func": "sigmoid", "topk_method": "noaux_tc", "moe_layer_freq": 1,
                   "ep_size": 1, "aux_loss_alpha": 0.001, "seq_aux": True}  # fmt: skip
    if kind == "granitemoehybrid":
        old = {"linear_attention": "mamba", "full_attention": "attention"}
        values["layer_types"] = [old[name] for name in values["layer_types"]]
        if values["position_embedding_type"] is None:
            values["position_embedding_type"] = "nope"
        values["time_step_limit"] = [0.0, float("inf")]
    if kind == "lfm2":
        types = values.pop("layer_types")
        values["full_attn_idxs"] = [i for i, name in enumerate(types) if name != "conv"]
        values["block_ff_dim"] = values.pop("intermediate_size")
        values["tie_embedding"] = values.pop("tie_word_embeddings")
    if kind == "mamba2":
        values |= {"time_step_limit": [0.0, float("inf")], "norm_before_gate": True}
    return values


@every
def test_older_keys_say_the_same(name: str, pairs: dict[str, Pair]) -> None:
    values = json.loads((pairs[name].folder / "config.json").read_text())
    if name == "gpt_oss plain":
        return  # to transformers a config.json of the old form means YaRN here
    assert read_again(older(values)) == read_again(values)


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("mixtral", "router_jitter_noise", 0.1),
        ("mixtral", "moe_dropout", 0.1),
        ("gpt_oss", "rope_parameters", None),
        ("gpt_oss", "layer_types", ["full_attention", "chunked_attention", "full_attention"]),
        ("gpt_oss", "layer_types", ["full_attention"]),
        ("deepseek_v3", "attention_bias", True),
        ("deepseek_v3", "rope_interleave", False),
        ("deepseek_v3", "num_key_value_heads", 2),
        ("deepseek_v3", "scoring_func", "softmax"),
        ("granitemoehybrid", "mamba_proj_bias", True),
        ("granitemoehybrid", "mamba_conv_bias", False),
        ("granitemoehybrid", "position_embedding_type", "alibi"),
        ("granitemoehybrid", "time_step_limit", [0.0, 0.5]),
        ("mamba2", "use_bias", True),
        ("mamba2", "time_step_limit", [0.1, {"__float__": "Infinity"}]),
        ("mamba2", "num_heads", 5),
        ("lfm2", "use_pos_enc", False),
    ],
)
def test_what_is_not_built_is_refused_by_name(
    name: str, key: str, value: Any, pairs: dict[str, Pair]
) -> None:
    values = json.loads((pairs[name].folder / "config.json").read_text())
    with pytest.raises(CheckpointError, match=f"^config.json: {key}: "):
        read_again({**values, key: value})


def test_layers_that_predict_further_are_left(pairs: dict[str, Pair], tmp_path: Path) -> None:
    folder = pairs["deepseek_v3"].folder
    weights = load_file(folder / "model.safetensors")
    for extra, message in (("model.layers.3.eh_proj.weight", ""), ("model.layers.2.more", "more")):
        save_file({**weights, extra: torch.ones(2)}, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_bytes((folder / "config.json").read_bytes())
        if not message:
            assert opening.read(tmp_path).spec["model"] == pairs["deepseek_v3"].read.spec["model"]
            continue
        with pytest.raises(CheckpointError, match=message):
            opening.read(tmp_path)


@pytest.mark.parametrize(
    ("name", "slot", "change"),
    [
        ("mixtral", "ffn", {"shared": 1}),
        ("gpt_oss", "ffn", {"router": "sigmoid"}),
        ("deepseek_v3", "ffn", {"shared_hidden": 9}),
        ("granite", "mixer", {"window": 5}),
        ("lfm2", "mixer", {"sinks": True}),
        ("mamba2", "mixer", {"eps": 0.5}),
    ],
)
def test_what_no_family_has_is_refused(
    name: str, slot: str, change: dict[str, Any], pairs: dict[str, Pair]
) -> None:
    pair = pairs[name]
    model = pair.options.model_dump(mode="json")
    for block in model["blocks"]:
        if change.keys() <= block[slot].keys():
            block[slot] |= change
    with pytest.raises(SpecError, match="no published family has this model"):
        express(opening.typed(model), pair.info, "causal_lm")


def test_bounds_of_transformers_4_and_no_other_infinity(
    pairs: dict[str, Pair], tmp_path: Path
) -> None:
    folder = pairs["mamba2"].folder
    text, weights = (folder / "config.json").read_text(), "model.safetensors"
    (tmp_path / weights).write_bytes((folder / weights).read_bytes())
    values = {**json.loads(text), "time_step_limit": [0.0, float("inf")]}
    for key, odd in (("time_step_limit", None), ("layer_norm_epsilon", "inf"), ("expand", "nan")):
        changed = values if odd is None else {**values, key: float(odd)}
        (tmp_path / "config.json").write_text(json.dumps(changed))
        if odd is None:
            assert "Infinity" in (tmp_path / "config.json").read_text()
            assert opening.read_spec(tmp_path)["model"] == pairs["mamba2"].read.spec["model"]
            continue
        with pytest.raises(CheckpointError, match=r"config\.json"):
            opening.read_spec(tmp_path)
