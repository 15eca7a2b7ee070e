"""Mixtral, Qwen2-MoE, Qwen3-MoE: Llama's layers with experts, each under its own name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import CAUSAL_LM, Model
from bigmodel_cli.convert.layered import (
    MIXTRALS,
    Layered,
    balance,
    balance_config,
    experts,
    gated,
    of_type,
)
from bigmodel_cli.convert.layers import layer_types, only_window, types_of, window_of
from bigmodel_cli.convert.rotary import FULL, SLIDING
from bigmodel_cli.convert.rules import Rule


class Mixtral(Layered):
    """Mixtral (Jiang et al. 2024)."""

    model_types: ClassVar = ("mixtral",)
    heads: ClassVar = {"MixtralForCausalLM": CAUSAL_LM}
    sizes: ClassVar = {"num_key_value_heads": 8}
    rope_base = 1_000_000.0
    eps = 1e-5
    says_head_dim = False

    def block(self, config: Config, layer: int) -> dict[str, Any]:
        config.only("router_jitter_noise", 0.0)
        window = {"window": config.maybe("sliding_window", int)}
        return {
            "mixer": {**self.mixer(config, layer), **window},
            "ffn": self.experts(config),
            "norm": self.norm(config),
        }

    def experts(self, config: Config) -> dict[str, Any]:
        """The mixture of every layer."""
        top_k = config.get("num_experts_per_tok", int, 2)
        return {
            "type": "moe",
            "experts": config.get("num_local_experts", int, 8),
            "top_k": top_k,
            "hidden": config.get("intermediate_size", int),
            **balance(config, top_k, 0.001),
        }

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        mixer, ffn = model["blocks"][0]["mixer"], model["blocks"][0]["ffn"]
        attention = self.attention_config(model, mixer)
        del attention["attention_bias"]
        return {
            **super().config(model, info),
            **attention,
            "sliding_window": mixer["window"],
            "intermediate_size": ffn["hidden"],
            "num_local_experts": ffn["experts"],
            "num_experts_per_tok": ffn["top_k"],
            **balance_config(ffn),
        }

    def layer(self, theirs: str, ours: str, block: Model) -> Iterator[Rule]:
        yield from self.attention(theirs + "self_attn.", ours + "mixer.", block["mixer"])
        yield Rule(theirs + "block_sparse_moe.gate.weight", ours + "ffn.router.weight")
        yield from experts(theirs + "block_sparse_moe.", ours + "ffn.", block["ffn"], MIXTRALS)


class Qwen3Moe(Layered):
    """Qwen3-MoE (Yang et al. 2025): some layers may be dense."""

    model_types: ClassVar = ("qwen3_moe",)
    heads: ClassVar = {"Qwen3MoeForCausalLM": CAUSAL_LM}
    sizes: ClassVar = {"num_key_value_heads": 4}
    ignored: ClassVar[tuple[str, ...]] = ("max_window_layers",)  # a window holds for all layers

    def block(self, config: Config, layer: int) -> dict[str, Any]:
        window = config.maybe("sliding_window", int)
        if not config.get("use_sliding_window", bool, False):
            window = None
        elif window is None:
            window = 4096
        norm = {"over": "head", "eps": config.get("rms_norm_eps", float, 1e-6)}
        return {
            "mixer": {**self.mixer(config, layer), "window": window, "qk_norm": norm},
            "ffn": self.ffn_of(config, layer),
            "norm": self.norm(config),
        }

    def ffn_of(self, config: Config, layer: int) -> dict[str, Any]:
        """The feed-forward network of a layer: experts, or dense."""
        count = config.maybe("num_experts", int) or config.maybe("num_local_experts", int) or 128
        top_k = config.get("num_experts_per_tok", int, 8)
        normalize = config.get("norm_topk_prob", bool, False)
        hidden, width = (config.get(f"{k}intermediate_size", int) for k in ("", "moe_"))
        shared = balance(config, top_k, 0.001)
        step, dense = (
            config.get("decoder_sparse_step", int, 1),
            config.maybe("mlp_only_layers", list),
        )
        if layer in (dense or ()) or (layer + 1) % step:
            return {"type": "swiglu", "hidden": hidden}
        return {
            "type": "moe",
            "experts": count,
            "top_k": top_k,
            "hidden": width,
            "normalize": normalize,
            **shared,
        }

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        mixer, ffn = model["blocks"][0]["mixer"], of_type(model, "ffn", "moe")[0]
        dense = [i for i, block in enumerate(model["blocks"]) if block["ffn"]["type"] != "moe"]
        return {
            **super().config(model, info),
            **self.attention_config(model, mixer),
            "use_sliding_window": mixer["window"] is not None,
            "sliding_window": mixer["window"],
            "intermediate_size": model["blocks"][dense[0]]["ffn"]["hidden"]
            if dense
            else ffn["hidden"],
            "moe_intermediate_size": ffn["hidden"],
            "mlp_only_layers": dense,
            "decoder_sparse_step": 1,
            "num_experts": ffn["experts"],
            "num_experts_per_tok": ffn["top_k"],
            "norm_topk_prob": ffn["normalize"],
            **balance_config(ffn),
        }

    def layer(self, theirs: str, ours: str, block: Model) -> Iterator[Rule]:
        yield from self.attention(theirs + "self_attn.", ours + "mixer.", block["mixer"])
        if block["ffn"]["type"] == "moe":
            yield Rule(theirs + "mlp.gate.weight", ours + "ffn.router.weight")
            yield from experts(theirs + "mlp.", ours + "ffn.", block["ffn"])
        else:
            yield from gated(theirs + "mlp.", ours + "ffn.", block["ffn"])


class Qwen2Moe(Qwen3Moe):
    """Qwen2-MoE (Qwen Team 2024): biases of q, k and v, and a shared expert with a gate."""

    model_types: ClassVar = ("qwen2_moe",)
    heads: ClassVar = {"Qwen2MoeForCausalLM": CAUSAL_LM}
    sizes: ClassVar = {"num_key_value_heads": 16}
    ignored: ClassVar[tuple[str, ...]] = ()
    says_head_dim = False

    def block(self, config: Config, layer: int) -> dict[str, Any]:
        first = config.get("max_window_layers", int, 28)
        windowed = config.get("use_sliding_window", bool, False)
        window = config.maybe("sliding_window", int, 4096)
        window = window if windowed else None
        types = layer_types(
            config, lambda i: SLIDING if windowed and not i % 2 and i < first else FULL
        )
        bias = ["q", "k", "v"] if config.get("qkv_bias", bool, True) else False
        return {
            "mixer": {
                **self.mixer(config, layer),
                "bias": bias,
                "window": window_of(config, types[layer], window),
            },
            "ffn": self.ffn_of(config, layer),
            "norm": self.norm(config),
        }

    def ffn_of(self, config: Config, layer: int) -> dict[str, Any]:
        found = super().ffn_of(config, layer)
        width = config.get("shared_expert_intermediate_size", int, 5632)
        shared = {"shared": 1, "shared_hidden": width, "shared_gate": True}
        return {**found, **shared} if found["type"] == "moe" else found

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        found = super().config(model, info)
        window = only_window(model)
        del found["attention_bias"]
        return {
            **found,
            "qkv_bias": bool(model["blocks"][0]["mixer"]["bias"]),
            "use_sliding_window": window is not None,
            "sliding_window": window,
            "layer_types": types_of(model),
            "shared_expert_intermediate_size": of_type(model, "ffn", "moe")[0]["shared_hidden"],
        }

    def layer(self, theirs: str, ours: str, block: Model) -> Iterator[Rule]:
        yield from super().layer(theirs, ours, block)
        if block["ffn"]["type"] == "moe":
            theirs, ours = theirs + "mlp.", ours + "ffn."
            yield Rule(theirs + "shared_expert_gate.weight", ours + "shared_gate.weight")
            yield from gated(theirs + "shared_expert.", ours + "shared.", block["ffn"])
