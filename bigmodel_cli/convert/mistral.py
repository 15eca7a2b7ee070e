"""Mistral: Llama with a window over every layer."""

from __future__ import annotations

from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import CAUSAL_LM, Model
from bigmodel_cli.convert.llama import Llama


class Mistral(Llama):
    """Llama without biases and with a window (Jiang et al. 2023)."""

    model_types: ClassVar = ("mistral",)
    heads: ClassVar = {"MistralForCausalLM": CAUSAL_LM}
    sizes: ClassVar = {"num_key_value_heads": 8}
    biases: ClassVar = ()

    def mixer(self, config: Config, layer: int) -> dict[str, Any]:
        # Where it is not there it is 4096, and where it is null there is none.
        return {**super().mixer(config, layer), "window": config.maybe("sliding_window", int, 4096)}

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        window = model["blocks"][0]["mixer"]["window"]
        return {**super().config(model, info), "sliding_window": window}
