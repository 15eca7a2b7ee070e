"""Llama and the decoders with its layout: Mistral, Qwen 2 and 3, SmolLM3."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import CAUSAL_LM, Family, Model, grouped
from bigmodel_cli.convert.rotary import rope_parameters, rotary
from bigmodel_cli.convert.rules import Rule, rows


class Llama(Family):
    """Pre-norm RMSNorm, rotary grouped-query attention, SwiGLU (Touvron et al. 2023)."""

    model_types: ClassVar = ("llama",)
    heads: ClassVar = {"LlamaForCausalLM": CAUSAL_LM}
    leftovers: ClassVar = (r".*\.rotary_emb\.inv_freq",)
    rope_base = 10_000.0

    def model(self, config: Config) -> dict[str, Any]:
        config.only("hidden_act", "silu")
        config.only("pretraining_tp", 1)
        norm = {"type": "rmsnorm", "eps": config.get("rms_norm_eps", float, 1e-6)}
        layers = config.get("num_hidden_layers", int)
        blocks = [
            {
                "mixer": self.mixer(config, layer),
                "ffn": self.ffn(config),
                "norm": norm,
            }
            for layer in range(layers)
        ]
        return {
            "type": "decoder",
            "dim": config.get("hidden_size", int),
            "max_len": config.get("max_position_embeddings", int),
            "vocab_size": config.get("vocab_size", int),
            "tie_embeddings": config.get("tie_word_embeddings", bool, False),
            "norm": norm,
            "blocks": grouped(blocks),
        }

    def mixer(self, config: Config, layer: int) -> dict[str, Any]:
        """The attention of a layer."""
        heads = config.get("num_attention_heads", int)
        return {
            "type": "attention",
            "num_heads": heads,
            "kv_heads": config.get("num_key_value_heads", int, heads),
            "head_dim": config.get("head_dim", int, config.get("hidden_size", int) // heads),
            "bias": config.get("attention_bias", bool, False),
            "dropout": config.get("attention_dropout", float, 0.0),
            "position": rotary(config, self.rope_base),
        }

    def ffn(self, config: Config) -> dict[str, Any]:
        """The feed-forward network of every layer."""
        return {
            "type": "swiglu",
            "hidden": config.get("intermediate_size", int),
            "bias": config.get("mlp_bias", bool, False),
        }

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        block = model["blocks"][0]
        mixer, ffn = block["mixer"], block["ffn"]
        return {
            "model_type": self.model_types[0],
            "hidden_act": "silu",
            "hidden_size": model["dim"],
            "intermediate_size": ffn["hidden"],
            "num_hidden_layers": len(model["blocks"]),
            "num_attention_heads": mixer["num_heads"],
            "num_key_value_heads": mixer["kv_heads"],
            "head_dim": mixer["head_dim"],
            "attention_bias": mixer["bias"],
            "mlp_bias": ffn["bias"],
            "attention_dropout": mixer["dropout"],
            "rms_norm_eps": model["norm"]["eps"],
            "max_position_embeddings": model["max_len"],
            "vocab_size": model["vocab_size"],
            "tie_word_embeddings": model["tie_embeddings"],
            "rope_parameters": rope_parameters(mixer["position"]),
        }

    def rules(self, model: Model, info: DatasetInfo, task: str) -> Iterator[Rule]:
        yield Rule("model.embed_tokens.weight", "embedding.weight")
        for i, block in enumerate(model["blocks"]):
            theirs, ours = f"model.layers.{i}.", f"blocks.{i}."
            yield Rule(theirs + "input_layernorm.weight", ours + "mixer_norm.weight")
            yield from self.attention(theirs + "self_attn.", ours + "mixer.", block["mixer"])
            yield Rule(theirs + "post_attention_layernorm.weight", ours + "ffn_norm.weight")
            for kind in kinds(block["ffn"]["bias"]):
                for name in ("gate", "up", "down"):
                    yield Rule(f"{theirs}mlp.{name}_proj.{kind}", f"{ours}ffn.{name}.{kind}")
        yield Rule("model.norm.weight", "norm.weight")
        if not model["tie_embeddings"]:
            yield Rule("lm_head.weight", "head.weight")

    def attention(self, theirs: str, ours: str, mixer: Model) -> Iterator[Rule]:
        """Queries, keys and values are rows of one matrix of ours."""
        width = mixer["head_dim"]
        heads, groups = mixer["num_heads"] * width, mixer["kv_heads"] * width
        for kind in kinds(mixer["bias"]):
            start = 0
            for name, count in (("q", heads), ("k", groups), ("v", groups)):
                yield Rule(f"{theirs}{name}_proj.{kind}", f"{ours}qkv.{kind}", rows(start, count))
                start += count
            yield Rule(f"{theirs}o_proj.{kind}", f"{ours}out.{kind}")
        if mixer["qk_norm"]:
            for name in ("q", "k"):
                yield Rule(f"{theirs}{name}_norm.weight", f"{ours}{name}_norm.weight")


def kinds(bias: bool) -> tuple[str, ...]:
    """The tensors of a projection."""
    return ("weight", "bias") if bias else ("weight",)
