"""Mistral: Llama with a window over every layer."""

from __future__ import annotations

from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import CAUSAL_LM, Model
from bigmodel_cli.convert.llama import Llama
from bigmodel_cli.convert.rotary import rope_parameters


class Mistral(Llama):
    """Llama without biases and with a window (Jiang et al. 2023)."""

    model_types: ClassVar = ("mistral",)
    heads: ClassVar = {"MistralForCausalLM": CAUSAL_LM}
    sizes: ClassVar = {"num_key_value_heads": 8}

    def mixer(self, config: Config, layer: int) -> dict[str, Any]:
        config.only("attention_bias", False)
        # Where it is not there it is 4096, and where it is null there is none.
        return {**super().mixer(config, layer), "window": config.maybe("sliding_window", int, 4096)}

    def ffn(self, config: Config) -> dict[str, Any]:
        config.only("mlp_bias", False)
        return super().ffn(config)

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        mixer = model["blocks"][0]["mixer"]
        return {
            **self.shared_config(model),
            **self.attention_config(model, mixer),
            "sliding_window": mixer["window"],
            "rope_parameters": rope_parameters(mixer["position"]),
        }
