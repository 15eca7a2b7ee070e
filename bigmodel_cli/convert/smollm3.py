"""SmolLM3: Llama whose every fourth layer has no positions."""

from __future__ import annotations

from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import CAUSAL_LM, Model
from bigmodel_cli.convert.layers import layer_types, only_window, types_of, window_of
from bigmodel_cli.convert.llama import Llama
from bigmodel_cli.convert.rotary import FULL, SLIDING, rope_parameters
from bigmodel_cli.errors import CheckpointError


class SmolLM3(Llama):
    """Llama with rotary positions in some layers and none in others (Bakouch et al. 2025)."""

    model_types: ClassVar = ("smollm3",)
    heads: ClassVar = {"SmolLM3ForCausalLM": CAUSAL_LM}
    sizes: ClassVar = {"num_key_value_heads": 4}
    rope_base = 2_000_000.0
    tied = True
    says_head_dim = False

    def turned(self, config: Config) -> list[bool]:
        """Whether each layer has positions (`no_rope_layers` says 1 where it has)."""
        count = config.get("num_hidden_layers", int)
        every = config.get("no_rope_layer_interval", int, 4)
        given = config.maybe("no_rope_layers", list)
        if given is None:
            return [bool((i + 1) % max(1, every)) for i in range(count)]
        if len(given) != count or any(value not in (0, 1) for value in given):
            raise CheckpointError(
                f"{config.file}: no_rope_layers: it does not say 0 or 1 for each of {count} layers"
            )
        return [bool(value) for value in given]

    def position(self, config: Config, layer: int) -> dict[str, Any]:
        found = super().position(config, layer)
        return found if self.turned(config)[layer] else {"type": "none"}

    def mixer(self, config: Config, layer: int) -> dict[str, Any]:
        windowed, turned = config.get("use_sliding_window", bool, False), self.turned(config)
        window = config.maybe("sliding_window", int)
        window = window if windowed else None
        types = layer_types(config, lambda i: SLIDING if window and not turned[i] else FULL)
        return {
            **super().mixer(config, layer),
            "window": window_of(config, types[layer], window),
        }

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        positions = [block["mixer"]["position"] for block in model["blocks"]]
        rotary = [position for position in positions if position["type"] == "rotary"]
        window = only_window(model)
        return {
            **self.shared_config(model),
            **self.attention_config(model, model["blocks"][0]["mixer"]),
            "attention_bias": model["blocks"][0]["mixer"]["bias"],
            "mlp_bias": model["blocks"][0]["ffn"]["bias"],
            "no_rope_layers": [int(position["type"] == "rotary") for position in positions],
            "use_sliding_window": window is not None,
            "sliding_window": window,
            "layer_types": types_of(model),
            **({"rope_parameters": rope_parameters(rotary[0])} if rotary else {}),
        }
