"""Granite: Llama with multipliers; and Granite 4, where most layers are Mamba-2."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import CAUSAL_LM, Model
from bigmodel_cli.convert.layered import (
    Layered,
    balance,
    balance_config,
    gated,
    of_type,
    rounded,
)
from bigmodel_cli.convert.layers import layer_types
from bigmodel_cli.convert.mamba2 import check_heads, check_step_sizes, state_space
from bigmodel_cli.convert.rules import Half, Rule

KINDS = {
    "mamba": "mamba2",
    "linear_attention": "mamba2",
    "attention": "attention",
    "full_attention": "attention",
}
"""`layer_types`, each in an old and a new word."""


class Granite(Layered):
    """Granite 3 and 4's dense models (IBM 2024)."""

    model_types: ClassVar = ("granite",)
    heads: ClassVar = {"GraniteForCausalLM": CAUSAL_LM}
    says_head_dim = False

    def model(self, config: Config) -> dict[str, Any]:
        embeddings = config.get("embedding_multiplier", float, 1.0)
        return {
            **super().model(config),
            "scale_embeddings": False if embeddings == 1.0 else embeddings,
            "logit_scale": 1.0 / config.get("logits_scaling", float, 1.0),
        }

    def block(self, config: Config, layer: int) -> dict[str, Any]:
        return {
            "mixer": self.scaled(config, layer),
            "ffn": self.ffn(config),
            "norm": self.norm(config),
            "residual_scale": config.get("residual_multiplier", float, 1.0),
        }

    def scaled(self, config: Config, layer: int) -> dict[str, Any]:
        """A layer's attention."""
        scale = config.get("attention_multiplier", float, 1.0)
        return {**self.mixer(config, layer), "scale": scale}

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        ffn = model["blocks"][0]["ffn"]
        return {
            **super().config(model, info),
            **self.multipliers(model, of_type(model, "mixer", "attention")[0]),
            "intermediate_size": ffn["hidden"],
            "mlp_bias": ffn["bias"],
        }

    def multipliers(self, model: Model, mixer: Model) -> dict[str, Any]:
        """What all of these families have, in config.json."""
        embeddings, logits = model["scale_embeddings"], model["logit_scale"]
        scale = mixer["scale"]
        if embeddings is True:
            embeddings = math.sqrt(model["dim"])
        return {
            **self.attention_config(model, mixer),
            "attention_multiplier": mixer["head_dim"] ** -0.5 if scale is None else scale,
            "embedding_multiplier": embeddings or 1.0,
            "logits_scaling": rounded(1.0 / logits),
            "residual_multiplier": model["blocks"][0]["residual_scale"],
        }

    def layer(self, theirs: str, ours: str, block: Model) -> Iterator[Rule]:
        yield from self.attention(theirs + "self_attn.", ours + "mixer.", block["mixer"])
        yield from gated(theirs + "mlp.", ours + "ffn.", block["ffn"])


class GraniteMoeHybrid(Granite):
    """Granite 4 (IBM 2025): Mamba-2, a few layers of attention, experts beside a shared one."""

    model_types: ClassVar = ("granitemoehybrid",)
    heads: ClassVar = {"GraniteMoeHybridForCausalLM": CAUSAL_LM}
    ignored: ClassVar = ("init_method", "mlp_bias")

    def block(self, config: Config, layer: int) -> dict[str, Any]:
        config.only("normalization_function", "rmsnorm")
        kind = KINDS[layer_types(config, lambda _: "mamba", [*KINDS])[layer]]
        parts = {"attention": self.scaled(config, layer), "mamba2": self.state_space(config)}
        return {
            "mixer": parts[kind],
            "ffn": self.mixture(config),
            "norm": self.norm(config),
            "residual_scale": config.get("residual_multiplier", float, 1.0),
        }

    def scaled(self, config: Config, layer: int) -> dict[str, Any]:
        config.only("position_embedding_type", None, "nope", "rope")
        turned = config.maybe("position_embedding_type", str) == "rope"
        mixer = super().scaled(config, layer)
        return mixer if turned else {**mixer, "position": {"type": "none"}}

    def state_space(self, config: Config) -> dict[str, Any]:
        """The Mamba-2 of a layer."""
        config.only("mamba_conv_bias", True)
        config.only("mamba_proj_bias", False)
        check_step_sizes(config)
        expand, inner = config.get("mamba_expand", int, 2), config.get("hidden_size", int)
        if config.values.get("mamba_d_head", "auto") == "auto":
            config.asked.add("mamba_d_head")
            width = expand * inner // config.get("mamba_n_heads", int, 128)
        else:
            width = config.get("mamba_d_head", int)
        check_heads(config, "mamba_n_heads", width, expand, 128)
        return {
            "type": "mamba2",
            "state": config.get("mamba_d_state", int, 256),
            "head_dim": width,
            "expand": float(expand),
            "groups": config.get("mamba_n_groups", int, 1),
            "kernel": config.get("mamba_d_conv", int, 4),
            "chunk": config.get("mamba_chunk_size", int, 256),
            "eps": config.get("rms_norm_eps", float, 1e-6),
        }

    def mixture(self, config: Config) -> dict[str, Any]:
        """Experts beside a shared network, which is all there is where there are no experts."""
        count = config.get("num_local_experts", int, 8)
        width = config.get("shared_intermediate_size", int, 1024)
        top_k, hidden = (
            config.get("num_experts_per_tok", int, 2),
            config.get("intermediate_size", int),
        )
        balanced = balance(config, top_k, 0.001)
        if not count:
            return {"type": "swiglu", "hidden": width}
        return {
            "type": "moe",
            "experts": count,
            "top_k": top_k,
            "hidden": hidden,
            "shared": 1,
            "shared_hidden": width,
            **balanced,
        }

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        attention = of_type(model, "mixer", "attention")
        turned = bool(attention) and attention[0]["position"]["type"] == "rotary"
        mixers = [block["mixer"]["type"] for block in model["blocks"]]
        return {
            **Layered.config(self, model, info),
            **self.multipliers(model, attention[0]),
            "layer_types": ["mamba" if kind == "mamba2" else "attention" for kind in mixers],
            "position_embedding_type": "rope" if turned else "nope",
            **_state_space_config(of_type(model, "mixer", "mamba2"), model["dim"]),
            **_mixture_config(model["blocks"][0]["ffn"]),
        }

    def layer(self, theirs: str, ours: str, block: Model) -> Iterator[Rule]:
        mixer, ffn = block["mixer"], block["ffn"]
        if mixer["type"] == "mamba2":
            yield from state_space(theirs + "mamba.", ours + "mixer.")
        else:
            yield from self.attention(theirs + "self_attn.", ours + "mixer.", mixer)
        ours += "ffn."
        if ffn["type"] == "moe":
            moe = theirs + "block_sparse_moe."
            yield Rule(moe + "router.layer.weight", ours + "router.weight")
            for name in ("gate", "up"):
                half = Half(1, name == "up")
                yield Rule(moe + "input_linear.weight", ours + name, half=half)
            yield Rule(moe + "output_linear.weight", ours + "down")
            ours, width = ours + "shared.", ffn["shared_hidden"]
        else:
            width = ffn["hidden"]
        yield Rule(theirs + "shared_mlp.input_linear.weight", ours + "gate.weight")
        yield Rule(theirs + "shared_mlp.input_linear.weight", ours + "up.weight", skip=width)
        yield Rule(theirs + "shared_mlp.output_linear.weight", ours + "down.weight")


def _state_space_config(mixers: list[Model], dim: int) -> dict[str, Any]:
    if not mixers:
        return {}
    mixer = mixers[0]
    return {
        "mamba_d_state": mixer["state"],
        "mamba_d_head": mixer["head_dim"],
        "mamba_n_heads": int(mixer["expand"] * dim) // mixer["head_dim"],
        "mamba_expand": int(mixer["expand"]),
        "mamba_n_groups": mixer["groups"],
        "mamba_d_conv": mixer["kernel"],
        "mamba_chunk_size": mixer["chunk"],
    }


def _mixture_config(ffn: Model) -> dict[str, Any]:
    if ffn["type"] != "moe":
        return {
            "num_local_experts": 0,
            "shared_intermediate_size": ffn["hidden"],
            "intermediate_size": ffn["hidden"],
        }
    return {
        "num_local_experts": ffn["experts"],
        "num_experts_per_tok": ffn["top_k"],
        "intermediate_size": ffn["hidden"],
        "shared_intermediate_size": ffn["shared_hidden"],
        **balance_config(ffn),
    }
