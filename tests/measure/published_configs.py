"""Published families in small: what config.json says of a network of each family and form."""

from __future__ import annotations

from typing import Any

Values = dict[str, Any]
SHARED: Values = {
    "vocab_size": 61, "hidden_size": 36, "intermediate_size": 44, "num_hidden_layers": 3,
    "num_attention_heads": 6, "num_key_value_heads": 2, "max_position_embeddings": 40,
}  # fmt: skip
WIDE: Values = {**SHARED, "head_dim": 10}
LLAMA3 = {
    "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 24, "rope_theta": 900.0,
}  # fmt: skip
YARN = {
    "rope_type": "yarn", "factor": 3.0, "original_max_position_embeddings": 24, "beta_fast": 8.0,
    "rope_theta": 600.0,
}  # fmt: skip
LINEAR = {"rope_type": "linear", "factor": 2.5, "rope_theta": 3000.0}
FULL, SLIDING, DELTA = "full_attention", "sliding_attention", "linear_attention"
SOME: Values = {"layer_types": [SLIDING, FULL, SLIDING], "sliding_window": 5}
MULTIPLIERS = {
    "embedding_multiplier": 12.0, "logits_scaling": 7.0, "residual_multiplier": 0.22,
    "attention_multiplier": 0.13,
}  # fmt: skip
HYBRID: Values = {
    **SHARED, **MULTIPLIERS, "model_type": "granitemoehybrid", "intermediate_size": 20,
    "shared_intermediate_size": 28, "num_local_experts": 5, "mamba_n_heads": 6,
    "mamba_d_state": 5, "mamba_chunk_size": 16, "layer_types": ["mamba", "attention", "mamba"],
}  # fmt: skip
DEEPSEEK: Values = {
    **SHARED, "model_type": "deepseek_v3", "num_key_value_heads": 6, "moe_intermediate_size": 20,
    "n_routed_experts": 8, "num_experts_per_tok": 3, "n_group": 4, "topk_group": 2,
    "q_lora_rank": 14, "kv_lora_rank": 12, "qk_nope_head_dim": 10, "qk_rope_head_dim": 6,
    "v_head_dim": 8, "first_k_dense_replace": 1, "n_shared_experts": 2,
}  # fmt: skip
QWEN_EXPERTS: Values = {
    **SHARED, "moe_intermediate_size": 11, "num_experts": 5, "num_experts_per_tok": 2,
}  # fmt: skip
POST: Values = {
    "vocab_size": 61, "hidden_size": 36, "num_hidden_layers": 2, "num_attention_heads": 3,
    "intermediate_size": 50, "max_position_embeddings": 42, "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
}  # fmt: skip
PICTURE: Values = {
    "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "image_size": 12,
    "patch_size": 3, "layer_norm_eps": 1e-6,
}  # fmt: skip
MARIAN: Values = {
    "vocab_size": 61, "d_model": 24, "encoder_layers": 2, "decoder_layers": 2,
    "encoder_attention_heads": 3, "decoder_attention_heads": 4, "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 28, "max_position_embeddings": 40, "dropout": 0.0,
}  # fmt: skip
WHISPER: Values = {
    "vocab_size": 61, "num_mel_bins": 12, "d_model": 24, "encoder_layers": 2, "decoder_layers": 3,
    "encoder_attention_heads": 3, "decoder_attention_heads": 4, "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 28, "max_source_positions": 50, "max_target_positions": 20,
}  # fmt: skip
T5: Values = {
    "vocab_size": 61, "d_model": 24, "d_kv": 6, "d_ff": 36, "num_layers": 2,
    "num_decoder_layers": 2, "num_heads": 3, "relative_attention_num_buckets": 10,
    "relative_attention_max_distance": 17, "n_positions": 40, "dropout_rate": 0.0,
}  # fmt: skip


CONFIGS: dict[str, Values] = {
    "llama": {**SHARED, "model_type": "llama"},
    "llama 3": {
        **WIDE, "model_type": "llama", "rope_parameters": LLAMA3, "tie_word_embeddings": True,
    },
    "llama biased": {
        **WIDE, "model_type": "llama", "attention_bias": True, "mlp_bias": True,
        "rope_parameters": LINEAR,
    },
    "llama yarn": {**WIDE, "model_type": "llama", "rope_parameters": YARN},
    "mistral": {**WIDE, "model_type": "mistral", "sliding_window": 7},
    "qwen2": {**SHARED, "model_type": "qwen2", "tie_word_embeddings": True},
    "qwen2 windows": {
        **SHARED, "model_type": "qwen2", "use_sliding_window": True, "sliding_window": 6,
        "max_window_layers": 1,
    },
    "qwen3": {**WIDE, "model_type": "qwen3"},
    "qwen3 128": {
        **SHARED, "model_type": "qwen3", "head_dim": 128, "num_attention_heads": 2,
        "num_key_value_heads": 1, "num_hidden_layers": 2,
    },
    "smollm3": {**SHARED, "model_type": "smollm3", "num_hidden_layers": 4},
    "olmo2": {**SHARED, "model_type": "olmo2"},
    "olmo3": {**SHARED, "model_type": "olmo3", "num_hidden_layers": 4, "sliding_window": 6},
    "gemma2": {**WIDE, "model_type": "gemma2", "query_pre_attn_scalar": 17, "sliding_window": 6},
    "gemma3": {**WIDE, **SOME, "model_type": "gemma3_text", "query_pre_attn_scalar": 23},
    "qwen3.5": {
        **WIDE, "model_type": "qwen3_5_text", "head_dim": 16, "linear_key_head_dim": 6,
        "linear_value_head_dim": 10, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
        "layer_types": [DELTA, FULL, DELTA],
    },
    "mixtral": {**WIDE, "model_type": "mixtral", "num_local_experts": 5},
    "qwen2_moe": {
        **QWEN_EXPERTS, "model_type": "qwen2_moe", "shared_expert_intermediate_size": 17,
        "decoder_sparse_step": 2,
    },
    "qwen3_moe": {
        **QWEN_EXPERTS, "model_type": "qwen3_moe", "head_dim": 10, "mlp_only_layers": [1],
        "norm_topk_prob": True,
    },
    "gpt_oss": {
        **WIDE, "model_type": "gpt_oss", "intermediate_size": 20, "num_local_experts": 5,
        "num_experts_per_tok": 2, "sliding_window": 7, "rope_parameters": YARN,
    },
    "deepseek_v3": DEEPSEEK,
    "deepseek_v3 direct": {
        **DEEPSEEK, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "norm_topk_prob": False,
        "rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.9},
    },
    "granite": {
        **SHARED, **MULTIPLIERS, "model_type": "granite", "attention_bias": True,
        "tie_word_embeddings": True,
    },
    "granitemoehybrid": HYBRID,
    "granitemoehybrid dense": {**HYBRID, "num_local_experts": 0, "position_embedding_type": "rope"},
    "lfm2": {
        **SHARED, "model_type": "lfm2", "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "full_attention", "conv"],
    },
    "mamba2": {
        "model_type": "mamba2", "vocab_size": 61, "hidden_size": 36, "num_hidden_layers": 2,
        "state_size": 6, "head_dim": 12, "num_heads": 6, "n_groups": 2, "chunk_size": 16,
    },
    "gpt2": {
        "model_type": "gpt2", "vocab_size": 61, "n_embd": 36, "n_layer": 3, "n_head": 3,
        "n_positions": 40, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0,
    },
    "bert": {**POST, "model_type": "bert", "type_vocab_size": 2},
    "roberta": {**POST, "model_type": "roberta", "type_vocab_size": 1},
    "distilbert": {
        "model_type": "distilbert", "vocab_size": 61, "dim": 36, "n_layers": 2, "n_heads": 3,
        "hidden_dim": 50, "max_position_embeddings": 40, "dropout": 0.0, "attention_dropout": 0.0,
    },
    "modernbert": {
        "model_type": "modernbert", "vocab_size": 61, "hidden_size": 36, "num_hidden_layers": 4,
        "num_attention_heads": 3, "intermediate_size": 50, "max_position_embeddings": 40,
        "local_attention": 6,
    },
    "vit": {**PICTURE, "model_type": "vit", "intermediate_size": 40},
    "dinov2": {**PICTURE, "model_type": "dinov2", "mlp_ratio": 2},
    "dinov2 gated": {**PICTURE, "model_type": "dinov2", "mlp_ratio": 3, "use_swiglu_ffn": True},
    "dinov2 registers": {
        **PICTURE, "model_type": "dinov2_with_registers", "mlp_ratio": 2, "num_register_tokens": 3,
    },
    "dinov3": {
        **PICTURE, "model_type": "dinov3_vit", "intermediate_size": 40, "num_register_tokens": 2,
    },
    "marian": {**MARIAN, "model_type": "marian", "activation_function": "swish"},
    "marian scaled": {
        **MARIAN, "model_type": "marian", "activation_function": "relu", "scale_embedding": True,
    },
    "t5": {**T5, "model_type": "t5"},
    "t5 gated": {
        **T5, "model_type": "t5", "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False,
    },
    "whisper": {**WHISPER, "model_type": "whisper"},
    "whisper untied": {**WHISPER, "model_type": "whisper", "tie_word_embeddings": False},
}  # fmt: skip
"""A name -> the keys of config.json."""
IMAGES: list[tuple[int, int, int]] = [(3, 12, 12), (1, 12, 12), (3, 12, 24)]
"""Shapes of images that patches of 2, 3, 4 and 6 divide."""
TORCHVISION = [
    "resnet18", "squeezenet1_1", "mobilenet_v3_small", "shufflenet_v2_x0_5", "mnasnet0_5",
    "regnet_y_400mf", "efficientnet_b0", "alexnet",
]  # fmt: skip


def other_models() -> dict[str, Values]:
    """Networks as they are written here, which are nobody's or somebody's by chance."""
    head = {"type": "attention", "num_heads": 3}
    return {
        "any decoder": {
            "type": "decoder", "dim": 24, "max_len": 40, "vocab_size": 61,
            "position": {"type": "learned"}, "blocks": [{"mixer": head, "ffn": {"type": "gelu"}}],
        },
        "any encoder": {
            "type": "encoder", "dim": 24, "max_len": 40, "vocab_size": 61,
            "position": {"type": "learned"}, "blocks": [{"mixer": head, "ffn": {"type": "gelu"}}],
        },
        "any seq2seq": {
            "type": "seq2seq", "dim": 24, "max_len": 40, "vocab_size": 61,
            "encoder": [{"mixer": head, "ffn": {"type": "relu"}, "placement": "post"}],
            "decoder": [
                {
                    "mixer": head, "ffn": {"type": "relu"}, "placement": "post",
                    "cross": {"num_heads": 3},
                }
            ],
        },
        "any vit": {
            "type": "vit", "dim": 24, "patch": 3, "pool": "mean",
            "blocks": [{"mixer": head, "ffn": {"type": "gelu"}}],
        },
        "any cnn": {
            "type": "cnn",
            "layers": [
                {"type": "conv", "channels": 4, "padding": "same"}, {"type": "pool"},
                {"type": "flatten"}, {"type": "dense", "units": "classes"},
            ],
        },
    }  # fmt: skip
