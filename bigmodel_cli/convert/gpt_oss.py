"""gpt-oss: attention with sinks, every other layer with a window, experts with biases."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import CAUSAL_LM, Model
from bigmodel_cli.convert.layered import (
    Layered,
    balance,
    balance_config,
)
from bigmodel_cli.convert.layers import layer_types, only_window, types_of, window_of
from bigmodel_cli.convert.rotary import FULL, SLIDING
from bigmodel_cli.convert.rules import Half, Rule, transposed_each, whole
from bigmodel_cli.errors import CheckpointError


class GptOss(Layered):
    """gpt-oss (Agarwal et al. 2025), its weights in bf16 or wider: MXFP4 is not read."""

    model_types: ClassVar = ("gpt_oss",)
    heads: ClassVar = {"GptOssForCausalLM": CAUSAL_LM}
    ignored: ClassVar = ("experts_per_token", "initial_context_length")  # said by other keys too
    sizes: ClassVar = {"num_key_value_heads": 8, "head_dim": 64}
    rope_base = 150_000.0
    eps = 1e-5

    def block(self, config: Config, layer: int) -> dict[str, Any]:
        if not config.maybe("rope_parameters", dict) and not config.maybe("rope_scaling", dict):
            raise CheckpointError(f"{config.file}: rope_parameters: missing; this family needs it")
        types = layer_types(config, lambda i: FULL if i % 2 else SLIDING)
        window = config.maybe("sliding_window", int, 128)
        top_k = config.get("num_experts_per_tok", int, 4)
        return {
            "mixer": {
                **self.mixer(config, layer),
                "bias": config.get("attention_bias", bool, True),
                "sinks": True,
                "window": window_of(config, types[layer], window),
            },
            "ffn": {
                "type": "moe",
                "experts": config.get("num_local_experts", int, 128),
                "top_k": top_k,
                "hidden": config.get("intermediate_size", int),
                "bias": True,
                "clamp": {
                    "limit": config.get("swiglu_limit", float, 7.0),
                    "alpha": config.get("swiglu_alpha", float, 1.702),
                },
                **balance(config, top_k, 0.001),
            },
            "norm": self.norm(config),
        }

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        mixer, ffn = model["blocks"][0]["mixer"], model["blocks"][0]["ffn"]
        return {
            **super().config(model, info),
            **self.attention_config(model, mixer),
            "layer_types": types_of(model),
            "sliding_window": only_window(model, 128),
            "intermediate_size": ffn["hidden"],
            "num_local_experts": ffn["experts"],
            "num_experts_per_tok": ffn["top_k"],
            "swiglu_limit": ffn["clamp"]["limit"],
            "swiglu_alpha": ffn["clamp"]["alpha"],
            **balance_config(ffn),
        }

    def layer(self, theirs: str, ours: str, block: Model) -> Iterator[Rule]:
        yield from self.attention(theirs + "self_attn.", ours + "mixer.", block["mixer"])
        yield Rule(theirs + "self_attn.sinks", ours + "mixer.sinks")
        theirs, ours = theirs + "mlp.", ours + "ffn."
        for kind in ("weight", "bias"):
            yield Rule(f"{theirs}router.{kind}", f"{ours}router.{kind}")
        for kind, view, axis in (("", transposed_each, 2), ("_bias", whole, 1)):
            for name, second in (("gate", False), ("up", True)):
                half = Half(axis, second, mixed=True)
                yield Rule(
                    f"{theirs}experts.gate_up_proj{kind}", ours + name + kind, view, half=half
                )
            yield Rule(f"{theirs}experts.down_proj{kind}", f"{ours}down{kind}", view)
