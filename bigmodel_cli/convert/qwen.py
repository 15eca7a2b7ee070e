"""Qwen 2, Qwen 2.5 and Qwen 3: Llama with biases of queries, keys and values, or their norms."""

from __future__ import annotations

from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import CAUSAL_LM, Model
from bigmodel_cli.convert.layers import layer_types, only_window, types_of, window_of
from bigmodel_cli.convert.llama import Llama
from bigmodel_cli.convert.rotary import FULL, SLIDING, rope_parameters


class Qwen2(Llama):
    """Llama with biases of q, k and v (Yang et al. 2024), maybe with windows in later layers."""

    model_types: ClassVar = ("qwen2",)
    heads: ClassVar = {"Qwen2ForCausalLM": CAUSAL_LM}
    sizes: ClassVar = {"num_key_value_heads": 32}
    biases: ClassVar = ("attention_bias",)
    says_head_dim = False

    def mixer(self, config: Config, layer: int) -> dict[str, Any]:
        windowed = config.get("use_sliding_window", bool, False)
        window = config.maybe("sliding_window", int, 4096)
        window = window if windowed else None
        first = config.get("max_window_layers", int, 28)
        types = layer_types(config, lambda i: SLIDING if window and i >= first else FULL)
        return {
            **super().mixer(config, layer),
            "window": window_of(config, types[layer], window),
            **self.own(config),
        }

    def own(self, config: Config) -> dict[str, Any]:
        """Options of attention that this family has and Llama has not."""
        config.only("attention_bias", True)
        return {"bias": ["q", "k", "v"]}

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        types, window = types_of(model), only_window(model)
        return {
            **self.shared_config(model),
            **self.attention_config(model, model["blocks"][0]["mixer"]),
            "use_sliding_window": window is not None,
            "sliding_window": window,
            **({"max_window_layers": types.index(SLIDING)} if SLIDING in types else {}),
            "layer_types": types,
            "rope_parameters": rope_parameters(model["blocks"][0]["mixer"]["position"]),
        }


class Qwen3(Qwen2):
    """Qwen 2 with norms of each head's queries and keys in place of biases (Yang et al. 2025)."""

    model_types: ClassVar = ("qwen3",)
    heads: ClassVar = {"Qwen3ForCausalLM": CAUSAL_LM}
    says_head_dim = True

    def head_dim(self, config: Config) -> int:
        return config.get("head_dim", int, 128)

    def own(self, config: Config) -> dict[str, Any]:
        return {
            "bias": config.get("attention_bias", bool, False),
            "qk_norm": {"eps": config.get("rms_norm_eps", float, self.eps)},
        }

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        mixer = model["blocks"][0]["mixer"]
        return {**super().config(model, info), "attention_bias": mixer["bias"]}
