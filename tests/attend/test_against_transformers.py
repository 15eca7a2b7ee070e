"""Weights of imported models equal those that transformers returns, of every kind of attention.

`attn_implementation="eager"` and `output_attentions=True` on their side; on ours the fused kernels
run, and the weights are made of what they were given.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from bigmodel_cli.attend.layers import Wanted, found_in
from bigmodel_cli.attend.look import Layer, Side
from bigmodel_cli.loaded import load_checkpoint

transformers = pytest.importorskip("transformers")

LENGTH = 21
SHARED: dict[str, Any] = {
    "vocab_size": 53, "hidden_size": 36, "intermediate_size": 44, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "head_dim": 10,
}  # fmt: skip
FULL, SLIDING = "full_attention", "sliding_attention"
YARN = {
    "rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 30, "beta_fast": 8.0,
    "beta_slow": 1.0, "truncate": False, "rope_theta": 600.0,
}  # fmt: skip
DECODERS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "vocab_size": 53, "n_embd": 36, "n_layer": 2, "n_head": 3, "n_positions": 64,
        "bos_token_id": None, "eos_token_id": None,
    },
    "llama": {},
    "mistral": {"sliding_window": 7},
    "qwen3": {},
    "olmo2": {"head_dim": None},
    "qwen2": {"head_dim": None, "sliding_window": None},
    "smollm3": {"head_dim": None, "no_rope_layers": [1, 0]},
    "granite": {"head_dim": None, "attention_multiplier": 0.31, "attention_bias": True},
    "olmo3": {"sliding_window": 4, "layer_types": [SLIDING, FULL], "head_dim": None},
    "gemma2": {
        "sliding_window": 6, "attn_logit_softcapping": 3.0, "query_pre_attn_scalar": 24,
        "layer_types": [SLIDING, FULL],
    },
    "gemma3_text": {"sliding_window": 5, "layer_types": [SLIDING, FULL]},
    "gpt_oss": {
        "sliding_window": 8, "layer_types": [SLIDING, FULL], "num_local_experts": 4,
        "num_experts_per_tok": 2, "rope_parameters": YARN,
    },
    "deepseek_v3": {
        "num_key_value_heads": 6, "moe_intermediate_size": 20, "n_routed_experts": 4,
        "num_experts_per_tok": 2, "n_group": 2, "topk_group": 1, "q_lora_rank": 14,
        "kv_lora_rank": 12, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6, "v_head_dim": 8,
        "first_k_dense_replace": 1, "n_shared_experts": 1, "num_nextn_predict_layers": 0,
        "head_dim": None,
    },
    "mixtral": {
        "num_local_experts": 3, "num_experts_per_tok": 2, "sliding_window": 5,
        "num_key_value_heads": 1,
    },
    "qwen3_moe": {"moe_intermediate_size": 20, "num_experts": 5, "num_experts_per_tok": 3},
    "qwen2_moe": {
        "moe_intermediate_size": 20, "num_experts": 5, "num_experts_per_tok": 3,
        "shared_expert_intermediate_size": 12, "head_dim": None, "sliding_window": None,
        "num_key_value_heads": 3,
    },
}  # fmt: skip
HYBRIDS: dict[str, dict[str, Any]] = {
    "lfm2": {
        "layer_types": ["conv", FULL], "head_dim": None, "block_ff_dim": 40, "conv_L_cache": 3,
        "block_auto_adjust_ff_dim": False,
    },
    "granitemoehybrid": {
        "layer_types": ["attention", "mamba"], "head_dim": None, "num_local_experts": 0,
        "mamba_n_heads": 4, "mamba_d_head": 18, "mamba_n_groups": 2, "mamba_d_state": 8,
        "mamba_expand": 2, "shared_intermediate_size": 20, "attention_multiplier": 0.2,
    },
    "qwen3_5_text": {
        "layer_types": [FULL, "linear_attention"], "head_dim": 16, "linear_num_key_heads": 2,
        "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 6,
    },
}  # fmt: skip
POST = {
    "vocab_size": 53, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 50, "max_position_embeddings": 40,
}  # fmt: skip
ENCODERS: dict[str, dict[str, Any]] = {
    "Bert": {**POST},
    "Roberta": {**POST, "pad_token_id": 1, "type_vocab_size": 1},
    "ModernBert": {
        **POST, "local_attention": 6, "pad_token_id": 0, "layer_types": [SLIDING, FULL],
        "rope_parameters": {
            FULL: {"rope_type": "default", "rope_theta": 900.0},
            SLIDING: {"rope_type": "default", "rope_theta": 50.0},
        },
    },
    "DistilBert": {
        "vocab_size": 53, "dim": 36, "n_layers": 2, "n_heads": 3, "hidden_dim": 50,
        "max_position_embeddings": 40,
    },
}  # fmt: skip
PAIRS: dict[str, tuple[str, dict[str, Any]]] = {
    "marian": ("MarianMTModel", {
        "vocab_size": 37, "d_model": 24, "encoder_layers": 2, "decoder_layers": 2,
        "encoder_attention_heads": 3, "decoder_attention_heads": 4, "encoder_ffn_dim": 20,
        "decoder_ffn_dim": 28, "max_position_embeddings": 70, "pad_token_id": 36,
        "eos_token_id": 0, "decoder_start_token_id": 36, "forced_eos_token_id": None,
    }),
    "t5": ("T5ForConditionalGeneration", {
        "vocab_size": 41, "d_model": 20, "d_kv": 6, "d_ff": 36, "num_layers": 2, "num_heads": 3,
        "relative_attention_num_buckets": 10, "relative_attention_max_distance": 17,
        "n_positions": 70,
    }),
    "whisper": ("WhisperForConditionalGeneration", {
        "vocab_size": 269, "num_mel_bins": 12, "d_model": 24, "encoder_layers": 2,
        "decoder_layers": 2, "encoder_attention_heads": 3, "decoder_attention_heads": 4,
        "encoder_ffn_dim": 20, "decoder_ffn_dim": 28, "max_source_positions": 50,
        "max_target_positions": 80, "decoder_start_token_id": 257, "eos_token_id": 256,
        "bos_token_id": 256, "pad_token_id": 256, "suppress_tokens": None,
        "begin_suppress_tokens": None,
    }),
}  # fmt: skip
VISION: dict[str, dict[str, Any]] = {
    "ViT": {"intermediate_size": 40},
    "Dinov2": {"mlp_ratio": 3},
    "Dinov2WithRegisters": {"num_register_tokens": 3, "mlp_ratio": 2},
}


def saved(model: Any, folder: Path) -> Any:
    """Every parameter drawn, so that no two heads are alike."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in model.parameters():
            if not p.requires_grad:  # fixed sines, which are not in the file
                continue
            drawn = torch.randn(p.shape, generator=generator)
            p.copy_(0.2 * drawn + 1 if p.dim() == 1 else 0.2 * drawn)
    model.save_pretrained(folder)
    return model.eval()


def looked(folder: Path, *arguments: Tensor) -> list[Layer]:
    """Our layers with all weights, of a folder of theirs."""
    model = load_checkpoint(folder, "cpu", body=True).model
    side = Side("positions", [""] * max(LENGTH, *(each.shape[1] for each in arguments)))

    def run() -> Any:
        with torch.no_grad():
            return model(*arguments)

    found = found_in(model, run, lambda name, call: (side, side), Wanted(dense=True))
    return [layer for layer, _ in found.layers]


def check(layers: list[Layer], theirs: list[Tensor]) -> None:
    """The same weights, and weights times values are what the kernel returned."""
    assert len(layers) == len(theirs)
    for layer, want in zip(layers, theirs, strict=True):
        assert layer.weights is not None
        torch.testing.assert_close(layer.weights[1], want[0].detach().float(), atol=1e-5, rtol=0)
        assert layer.difference <= 1e-5
        assert float(want.max()) > 1.4 / want.shape[-1]  # not weights that are all alike


@pytest.mark.parametrize("name", DECODERS)
def test_decoders(name: str, tmp_path: Path) -> None:
    values = {**({} if name == "gpt2" else SHARED), **DECODERS[name]}
    values = {key: value for key, value in values.items() if key != "head_dim" or value}
    config = transformers.AutoConfig.for_model(name, **values)
    how = {"attn_implementation": "eager"}
    theirs = saved(transformers.AutoModelForCausalLM.from_config(config, **how), tmp_path)
    tokens = torch.randint(53, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = theirs(tokens, output_attentions=True).attentions
    check(looked(tmp_path, tokens), list(want))


@pytest.mark.parametrize("name", HYBRIDS)
def test_the_layers_that_attend_among_others(name: str, tmp_path: Path) -> None:
    values = {**SHARED, **HYBRIDS[name]}
    values = {key: value for key, value in values.items() if key != "head_dim" or value}
    config = transformers.AutoConfig.for_model(name, **values)
    how = {"attn_implementation": "eager"}
    theirs = saved(transformers.AutoModelForCausalLM.from_config(config, **how), tmp_path)
    tokens = torch.randint(53, (1, 37), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        want = theirs(tokens, output_attentions=True, use_cache=False).attentions
    layers = looked(tmp_path, tokens)
    assert sorted(layer.kind for layer in layers) == ["mixing", "self"]
    assert max(layer.difference for layer in layers) <= 1e-5
    check([layer for layer in layers if layer.kind == "self"], [w for w in want if w is not None])


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders(name: str, tmp_path: Path) -> None:
    config = getattr(transformers, f"{name}Config")(**ENCODERS[name])
    cls = getattr(transformers, f"{name}ForMaskedLM")
    theirs = saved(cls._from_config(config, attn_implementation="eager"), tmp_path)
    tokens = torch.randint(5, 53, (1, LENGTH), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = theirs(tokens, output_attentions=True).attentions
    check(looked(tmp_path, tokens), list(want))


@pytest.mark.parametrize("name", PAIRS)
def test_encoder_decoders(name: str, tmp_path: Path) -> None:
    kind, options = PAIRS[name]
    cls = getattr(transformers, kind)
    theirs = cls._from_config(cls.config_class(**options), attn_implementation="eager")
    theirs = saved(theirs, tmp_path)
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(1, 30, (1, 9), generator=generator)
    if name == "whisper":
        extractor = {"feature_size": 12, "chunk_length": 1, "sampling_rate": 16000}
        transformers.WhisperFeatureExtractor(**extractor).save_pretrained(tmp_path)
        source = torch.randn(1, 100, 12, generator=generator)
        given = {"input_features": source.transpose(1, 2)}
    else:
        source = torch.randint(1, 30, (1, LENGTH), generator=generator)
        given = {"input_ids": source}
    with torch.no_grad():
        found = theirs(**given, decoder_input_ids=target, output_attentions=True)
    decoder = zip(found.decoder_attentions, found.cross_attentions, strict=True)
    want = [*found.encoder_attentions, *(x for both in decoder for x in both)]
    layers = looked(tmp_path, source, target)
    check(layers, want)
    assert [layer.kind for layer in layers].count("cross") == 2


@pytest.mark.parametrize("name", VISION)
def test_vision_transformers(name: str, tmp_path: Path) -> None:
    """Registers come after the patches here, and before them there."""
    sizes = {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 9,
        "patch_size": 3, "num_labels": 5,
    }  # fmt: skip
    config = getattr(transformers, f"{name}Config")(**sizes, **VISION[name])
    cls = getattr(transformers, f"{name}ForImageClassification")
    theirs = saved(cls._from_config(config, attn_implementation="eager"), tmp_path)
    image = torch.randn(1, 3, 9, 9, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = list(theirs(image, output_attentions=True).attentions)
    count = VISION[name].get("num_register_tokens", 0)
    places = [0, *range(1 + count, want[0].shape[-1]), *range(1, 1 + count)]
    check(looked(tmp_path, image), [each[:, :, places][..., places] for each in want])
