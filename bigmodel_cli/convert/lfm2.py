"""LFM2: gated short convolutions, and attention in a few layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import CAUSAL_LM, Model
from bigmodel_cli.convert.layered import (
    MIXTRALS,
    Layered,
    gated,
    of_type,
)
from bigmodel_cli.convert.layers import layer_types
from bigmodel_cli.convert.rules import Rule

KINDS = {"conv": "convolution", "full_attention": "attention"}
RENAMED = {"o_proj": "out_proj", "q_norm": "q_layernorm", "k_norm": "k_layernorm"}
"""What of an attention has another name than Llama's."""


class Lfm2(Layered):
    """LFM2 (Liquid AI 2025)."""

    model_types: ClassVar = ("lfm2",)
    heads: ClassVar = {"Lfm2ForCausalLM": CAUSAL_LM}
    ignored: ClassVar = (
        "block_dim", "block_norm_eps", "conv_dim", "conv_dim_out", "num_heads",  # said by others
        "block_mlp_init_scale", "block_out_init_scale", "block_use_xavier_init",
        "conv_use_xavier_init",  # of first weights
    )  # fmt: skip
    sizes: ClassVar = {"num_key_value_heads": 8}
    rope_base = 1_000_000.0
    eps_key: ClassVar = "norm_eps"
    eps = 1e-5
    tied = True
    says_head_dim = False
    last_norm: ClassVar = "embedding_norm"
    norms: ClassVar = {"mixer_norm": "operator_norm", "ffn_norm": "ffn_norm"}

    def model(self, config: Config) -> dict[str, Any]:
        config.only("block_use_swiglu", True)
        config.only("use_pos_enc", True)
        found, tied = super().model(config), config.maybe("tie_embedding", bool)
        return found if tied is None else {**found, "tie_embeddings": tied}

    def block(self, config: Config, layer: int) -> dict[str, Any]:
        attends = config.maybe("full_attn_idxs", list)
        types = layer_types(
            config,
            lambda i: "full_attention" if attends is None or i in attends else "conv",
            [*KINDS],
        )
        kind = KINDS[types[layer]]
        bias, width = config.get("conv_bias", bool, False), config.get("conv_L_cache", int, 3)
        eps = config.get("norm_eps", float, 1e-5)
        parts = {
            "convolution": {"type": "convolution", "kernel": width, "bias": bias},
            "attention": {**self.mixer(config, layer), "qk_norm": {"over": "head", "eps": eps}},
        }
        return {
            "mixer": parts[kind],
            "ffn": {"type": "swiglu", "hidden": self.hidden(config)},
            "norm": self.norm(config),
        }

    def hidden(self, config: Config) -> int:
        """The width of the feed-forward networks."""
        width = config.maybe("block_ff_dim", int) or config.get("intermediate_size", int, 12288)
        config.maybe("intermediate_size", int)  # another name, which the older one overrides
        factor = config.get("block_ffn_dim_multiplier", float, 1.0)
        unit = config.get("block_multiple_of", int, 256)
        if config.get("block_auto_adjust_ff_dim", bool, True):
            width = unit * -(-int(factor * int(2 * width / 3)) // unit)
        return width

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        convolutions = of_type(model, "mixer", "convolution")
        kinds = {ours: theirs for theirs, ours in KINDS.items()}
        attention = self.attention_config(model, of_type(model, "mixer", "attention")[0])
        del attention["attention_bias"], attention["attention_dropout"]  # there are none
        found = {
            **super().config(model, info),
            **attention,
            "layer_types": [kinds[block["mixer"]["type"]] for block in model["blocks"]],
            "intermediate_size": model["blocks"][0]["ffn"]["hidden"],
            "block_auto_adjust_ff_dim": False,
        }
        if convolutions:
            found |= {
                "conv_L_cache": convolutions[0]["kernel"],
                "conv_bias": convolutions[0]["bias"],
            }
        return found

    def layer(self, theirs: str, ours: str, block: Model) -> Iterator[Rule]:
        mixer = block["mixer"]
        if mixer["type"] == "convolution":
            yield from _convolution(theirs + "conv.", ours + "mixer.", mixer["bias"])
        else:
            for rule in self.attention("", ours + "mixer.", mixer):
                name, kind = rule.theirs.rsplit(".", 1)
                yield Rule(
                    f"{theirs}self_attn.{RENAMED.get(name, name)}.{kind}", rule.ours, rule.view
                )
        yield from gated(theirs + "feed_forward.", ours + "ffn.", block["ffn"], MIXTRALS)


def _convolution(theirs: str, ours: str, bias: bool) -> Iterator[Rule]:
    yield Rule(theirs + "conv.weight", ours + "conv.weight", lambda filters: filters[:, None])
    if bias:
        yield Rule(theirs + "conv.bias", ours + "conv.bias")
    for kind in ("weight", "bias") if bias else ("weight",):
        yield Rule(f"{theirs}in_proj.{kind}", f"{ours}input.{kind}")
        yield Rule(f"{theirs}out_proj.{kind}", f"{ours}out.{kind}")
