"""Gemma 2 and Gemma 3: norms on both sides, a scale of 1 + weight, windows by turns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import CAUSAL_LM, Model
from bigmodel_cli.convert.layers import layer_types, only_window, types_of, window_of
from bigmodel_cli.convert.llama import Llama
from bigmodel_cli.convert.olmo import rope_parameters_by_type
from bigmodel_cli.convert.rotary import FULL, SLIDING, layered_rotary, rope_parameters
from bigmodel_cli.errors import CheckpointError


class Gemma2(Llama):
    """Sandwich norms, GeGLU, softcaps, every second layer with a window (Gemma 2, 2024)."""

    model_types: ClassVar[tuple[str, ...]] = ("gemma2",)
    heads: ClassVar = {"Gemma2ForCausalLM": CAUSAL_LM}
    sizes: ClassVar[Mapping[str, int]] = {"num_key_value_heads": 4}
    ignored: ClassVar[tuple[str, ...]] = ("cache_implementation", "hidden_act")
    norms: ClassVar = {
        "mixer_norm": "input_layernorm",
        "mixer_norm_after": "post_attention_layernorm",
        "ffn_norm": "pre_feedforward_layernorm",
        "ffn_norm_after": "post_feedforward_layernorm",
    }
    tied = True
    logit_softcap: float | None = 30.0

    def model(self, config: Config) -> dict[str, Any]:
        config.only("use_bidirectional_attention", False)
        return {
            **super().model(config),
            "scale_embeddings": True,
            "logit_softcap": config.maybe("final_logit_softcapping", float, self.logit_softcap),
        }

    def block(self, config: Config, layer: int) -> dict[str, Any]:
        return {**super().block(config, layer), "placement": "sandwich"}

    def norm(self, config: Config) -> dict[str, Any]:
        return {**super().norm(config), "offset": True}

    def head_dim(self, config: Config) -> int:
        return config.get("head_dim", int, 256)

    def types(self, config: Config) -> list[str]:
        """Each layer's type."""
        return layer_types(config, lambda i: FULL if i % 2 else SLIDING)

    def mixer(self, config: Config, layer: int) -> dict[str, Any]:
        window = config.maybe("sliding_window", int, 4096)
        scalar = config.get("query_pre_attn_scalar", int, 256)
        if scalar < 1:
            raise CheckpointError(f"{config.file}: query_pre_attn_scalar: {scalar} is not above 0")
        return {
            **super().mixer(config, layer),
            "scale": None if scalar == self.head_dim(config) else scalar**-0.5,
            "window": window_of(config, self.types(config)[layer], window),
            **self.own(config),
        }

    def own(self, config: Config) -> dict[str, Any]:
        """Options of attention that this Gemma has."""
        return {"softcap": config.maybe("attn_logit_softcapping", float, 50.0)}

    def ffn(self, config: Config) -> dict[str, Any]:
        config.only("hidden_activation", "gelu_pytorch_tanh")
        config.only("mlp_bias", False)
        return {"type": "geglu", "hidden": config.get("intermediate_size", int)}

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        mixer, shared = model["blocks"][0]["mixer"], self.shared_config(model)
        scale = mixer["scale"]
        del shared["hidden_act"]
        return {
            **shared,
            **self.attention_config(model, mixer),
            "hidden_activation": "gelu_pytorch_tanh",
            "attention_bias": mixer["bias"],
            "query_pre_attn_scalar": mixer["head_dim"] if scale is None else round(scale**-2),
            "attn_logit_softcapping": mixer["softcap"],
            "final_logit_softcapping": model["logit_softcap"],
            "sliding_window": only_window(model, 4096),
            "layer_types": types_of(model),
            "rope_parameters": rope_parameters(mixer["position"]),
        }


class Gemma3(Gemma2):
    """Norms of queries and keys in place of softcaps, two bases of positions (Gemma 3, 2025).

    Of a model that reads images too it is the text part, without the images' encoder.
    """

    model_types: ClassVar = ("gemma3_text", "gemma3")
    heads: ClassVar = {
        "Gemma3ForCausalLM": CAUSAL_LM,
        "Gemma3ForConditionalGeneration": CAUSAL_LM,
    }
    renamed: ClassVar = {
        r"^(model\.)?language_model\.(model\.)?(?!lm_head)": "model.",
        r"^language_model\.lm_head": "lm_head",
    }
    leftovers: ClassVar = (*Gemma2.leftovers, r"(model\.)?(vision_tower|multi_modal_projector)\..*")
    ignored: ClassVar = (
        *Gemma2.ignored, "mm_tokens_per_image", "boi_token_index", "eoi_token_index",
        "image_token_index", "boi_token_id", "eoi_token_id", "image_token_id", "vision_config",
    )  # fmt: skip
    sizes: ClassVar[Mapping[str, int]] = {
        "vocab_size": 262_208, "hidden_size": 2304, "intermediate_size": 9216,
        "num_hidden_layers": 26, "num_attention_heads": 8, "num_key_value_heads": 4,
        "max_position_embeddings": 131_072,
    }  # fmt: skip
    logit_softcap = None

    def model(self, config: Config) -> dict[str, Any]:
        if "text_config" not in config.values:
            return super().model(config)
        text = config.part("text_config")
        tied = config.get("tie_word_embeddings", bool, True)
        return {**super().model(text), "tie_embeddings": tied}

    def types(self, config: Config) -> list[str]:
        every = config.get("sliding_window_pattern", int, 6)
        config.asked.add("_sliding_window_pattern")
        return layer_types(config, lambda i: SLIDING if (i + 1) % max(1, every) else FULL)

    def position(self, config: Config, layer: int) -> dict[str, Any]:
        return layered_rotary(
            config,
            self.types(config)[layer],
            {FULL: 1_000_000.0, SLIDING: 10_000.0},
            {FULL: "rope_theta", SLIDING: "rope_local_base_freq"},
        )

    def own(self, config: Config) -> dict[str, Any]:
        config.only("attn_logit_softcapping")  # their code has no use for it
        return {"qk_norm": {"eps": config.get("rms_norm_eps", float, self.eps), "offset": True}}

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        return {**super().config(model, info), "rope_parameters": rope_parameters_by_type(model)}
