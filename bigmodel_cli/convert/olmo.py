"""OLMo 2 and OLMo 3: norms after the parts, queries and keys normalised over all heads."""

from __future__ import annotations

from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import CAUSAL_LM, Model
from bigmodel_cli.convert.layers import layer_types, only_window, types_of, window_of
from bigmodel_cli.convert.llama import Llama
from bigmodel_cli.convert.rotary import FULL, SLIDING, layered_rotary, rope_parameters


class Olmo2(Llama):
    """x + norm(f(x)), and RMSNorm of all heads' queries and keys together (OLMo 2, 2024)."""

    model_types: ClassVar = ("olmo2",)
    heads: ClassVar = {"Olmo2ForCausalLM": CAUSAL_LM}
    eps = 1e-5
    says_head_dim = False
    biases: ClassVar = ("attention_bias",)
    norms: ClassVar = {
        "mixer_norm": "post_attention_layernorm",
        "ffn_norm": "post_feedforward_layernorm",
    }

    def block(self, config: Config, layer: int) -> dict[str, Any]:
        return {**super().block(config, layer), "placement": "after"}

    def mixer(self, config: Config, layer: int) -> dict[str, Any]:
        norm = {"over": "full", "eps": config.get("rms_norm_eps", float, self.eps)}
        return {**super().mixer(config, layer), "qk_norm": norm}


class Olmo3(Olmo2):
    """OLMo 2 with windows in three of four layers, and scaled positions in the others (2025)."""

    model_types: ClassVar = ("olmo3",)
    heads: ClassVar = {"Olmo3ForCausalLM": CAUSAL_LM}
    rope_base = 500_000.0

    def types(self, config: Config) -> list[str]:
        """Each layer's type."""
        return layer_types(config, lambda i: SLIDING if (i + 1) % 4 else FULL)

    def position(self, config: Config, layer: int) -> dict[str, Any]:
        # In the older form, transformers takes this base for layers with a window whatever it says.
        config.only("rope_theta", self.rope_base)
        bases = dict.fromkeys((FULL, SLIDING), self.rope_base)
        return layered_rotary(config, self.types(config)[layer], bases, {})

    def mixer(self, config: Config, layer: int) -> dict[str, Any]:
        window = config.maybe("sliding_window", int, 4096)
        return {
            **super().mixer(config, layer),
            "window": window_of(config, self.types(config)[layer], window),
        }

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        return {
            **super().config(model, info),
            "sliding_window": only_window(model, 4096),
            "layer_types": types_of(model),
            "rope_parameters": rope_parameters_by_type(model),
        }


def rope_parameters_by_type(model: Model) -> dict[str, Any]:
    """Those of the first layer of each type there is."""
    found: dict[str, Any] = {}
    for kind, block in zip(types_of(model), model["blocks"], strict=True):
        found.setdefault(kind, rope_parameters(block["mixer"]["position"]))
    return found
