"""Llama, and what the decoders with its layout share: Mistral, Qwen, SmolLM3, OLMo, Gemma."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import CAUSAL_LM, Family, Model, grouped
from bigmodel_cli.convert.rotary import rope_parameters, rotary
from bigmodel_cli.convert.rules import Rule, rows
from bigmodel_cli.errors import CheckpointError

WHOLE_HEADS = ("llama", "gemma2", "gemma3_text")
"""Families of which transformers wants a width that is a multiple of the number of heads."""


class Llama(Family):
    """Pre-norm RMSNorm, rotary grouped-query attention, SwiGLU (Touvron et al. 2023)."""

    model_types: ClassVar[tuple[str, ...]] = ("llama",)
    heads: ClassVar[Mapping[str, str]] = {"LlamaForCausalLM": CAUSAL_LM}
    leftovers: ClassVar[tuple[str, ...]] = (r".*\.rotary_emb\.inv_freq",)
    copies: ClassVar[Mapping[str, str]] = {"lm_head.weight": "model.embed_tokens.weight"}
    rope_base = 10_000.0
    eps = 1e-6
    tied = False
    sizes: ClassVar[Mapping[str, int]] = {}
    """What sizes are that config.json leaves out; the others must be there."""
    says_head_dim = True
    """Whether config.json has the heads' width also where it is dim / heads."""
    biases: ClassVar[tuple[str, ...]] = ("attention_bias", "mlp_bias")
    """Options of config.json that give projections biases; where one is missing, it may only be
    false.
    """
    norms: ClassVar[Mapping[str, str]] = {
        "mixer_norm": "input_layernorm",
        "ffn_norm": "post_attention_layernorm",
    }
    """Norms of ours -> of theirs, in a layer."""

    def model(self, config: Config) -> dict[str, Any]:
        config.fill(self.sizes)
        blocks = [
            self.block(config, layer) for layer in range(config.get("num_hidden_layers", int))
        ]
        return {
            "type": "decoder",
            "dim": config.get("hidden_size", int),
            "max_len": self.longest(config),
            "vocab_size": config.get("vocab_size", int),
            "tie_embeddings": config.get("tie_word_embeddings", bool, self.tied),
            "norm": self.norm(config),
            "blocks": grouped(blocks),
        }

    def longest(self, config: Config) -> int | None:
        """The longest sequence; None for a network that takes any."""
        return config.get("max_position_embeddings", int)

    def block(self, config: Config, layer: int) -> dict[str, Any]:
        """A layer."""
        return {
            "mixer": self.mixer(config, layer),
            "ffn": self.ffn(config),
            "norm": self.norm(config),
        }

    def norm(self, config: Config) -> dict[str, Any]:
        """Every norm of the residual stream."""
        return {"type": "rmsnorm", "eps": config.get("rms_norm_eps", float, self.eps)}

    def mixer(self, config: Config, layer: int) -> dict[str, Any]:
        """The attention of a layer."""
        heads = config.get("num_attention_heads", int)
        position = self.position(config, layer)
        if position.get("fraction", 1.0) != 1.0:
            # their code overlooks it, in part
            raise CheckpointError(
                f"{config.file}: partial_rotary_factor: {position['fraction']:g}, and heads of this"
                " family turn as a whole"
            )
        return {
            "type": "attention",
            "num_heads": heads,
            "kv_heads": config.get("num_key_value_heads", int, heads),
            "head_dim": self.head_dim(config),
            "bias": self.bias(config, "attention_bias"),
            "dropout": config.get("attention_dropout", float, 0.0),
            "position": position,
        }

    def head_dim(self, config: Config) -> int:
        """The width of a head."""
        width = config.get("hidden_size", int) // max(1, config.get("num_attention_heads", int))
        return config.get("head_dim", int, width)

    def position(self, config: Config, layer: int) -> dict[str, Any]:
        """The positions of a layer."""
        return rotary(config, self.rope_base)

    def ffn(self, config: Config) -> dict[str, Any]:
        """The feed-forward network of every layer."""
        config.only("hidden_act", "silu")
        config.only("pretraining_tp", 1)
        return {
            "type": "swiglu",
            "hidden": config.get("intermediate_size", int),
            "bias": self.bias(config, "mlp_bias"),
        }

    def bias(self, config: Config, option: str) -> bool:
        """Whether the projections that an option of config.json is about have biases."""
        if option in self.biases:
            return config.get(option, bool, False)
        config.only(option, False)
        return False

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        block = model["blocks"][0]
        biases = {"attention_bias": block["mixer"]["bias"], "mlp_bias": block["ffn"]["bias"]}
        return {
            **self.shared_config(model),
            **self.attention_config(model, block["mixer"]),
            **{option: biases[option] for option in self.biases},
            "rope_parameters": rope_parameters(block["mixer"]["position"]),
        }

    def unfit(self, model: Model, info: DatasetInfo) -> Iterator[tuple[str, str]]:
        if self.model_types[0] not in WHOLE_HEADS:
            return
        heads = model["blocks"][0]["mixer"]["num_heads"]
        if model["dim"] % heads:
            yield (
                "model.blocks.0.mixer.num_heads",
                f"{heads}, and dim {model['dim']} is not a multiple of it, which their class wants",
            )

    def shared_config(self, model: Model) -> dict[str, Any]:
        """What all decoders with this layout say."""
        return {
            "model_type": self.model_types[0],
            "hidden_act": "silu",
            "hidden_size": model["dim"],
            "intermediate_size": model["blocks"][0]["ffn"]["hidden"],
            "num_hidden_layers": len(model["blocks"]),
            "rms_norm_eps": model["norm"]["eps"],
            "max_position_embeddings": model["max_len"],
            "vocab_size": model["vocab_size"],
            "tie_word_embeddings": model["tie_embeddings"],
            # Not those of the family, whose vocabulary is another one.
            **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id")),
        }

    def attention_config(self, model: Model, mixer: Model) -> dict[str, Any]:
        """What they say of attention."""
        found = {
            "num_attention_heads": mixer["num_heads"],
            "num_key_value_heads": mixer["kv_heads"],
            "head_dim": mixer["head_dim"],
            "attention_dropout": mixer["dropout"],
        }
        if not self.says_head_dim and mixer["head_dim"] == model["dim"] // mixer["num_heads"]:
            del found["head_dim"]
        return found

    def rules(self, model: Model, info: DatasetInfo, task: str) -> Iterator[Rule]:
        yield Rule("model.embed_tokens.weight", "embedding.weight")
        for i, block in enumerate(model["blocks"]):
            theirs, ours = f"model.layers.{i}.", f"blocks.{i}."
            for own, name in self.norms.items():
                yield Rule(f"{theirs}{name}.weight", f"{ours}{own}.weight")
            yield from self.mixer_rules(theirs, ours + "mixer.", block["mixer"])
            for kind in kinds(block["ffn"]["bias"]):
                for name in ("gate", "up", "down"):
                    yield Rule(f"{theirs}mlp.{name}_proj.{kind}", f"{ours}ffn.{name}.{kind}")
        yield Rule("model.norm.weight", "norm.weight")
        if not model["tie_embeddings"]:
            yield Rule("lm_head.weight", "head.weight")

    def mixer_rules(self, layer: str, ours: str, mixer: Model) -> Iterator[Rule]:
        """Those of a layer's mixer."""
        yield from self.attention(layer + "self_attn.", ours, mixer)

    def attention(self, theirs: str, ours: str, mixer: Model) -> Iterator[Rule]:
        """Queries, keys and values are rows of one matrix of ours.

        Their biases are rows of one vector where all have one, and else vectors of their own.
        """
        width, bias = mixer["head_dim"], mixer["bias"]
        biased = set(bias if isinstance(bias, list) else "qkvo" if bias else ())
        start = 0
        for name, heads in (("q", "num_heads"), ("k", "kv_heads"), ("v", "kv_heads")):
            own = rows(start, mixer[heads] * width)
            yield Rule(f"{theirs}{name}_proj.weight", f"{ours}qkv.weight", own)
            if biased >= set("qkv"):
                yield Rule(f"{theirs}{name}_proj.bias", f"{ours}qkv.bias", own)
            elif name in biased:
                yield Rule(f"{theirs}{name}_proj.bias", f"{ours}{name}_bias")
            start += mixer[heads] * width
        for kind in kinds("o" in biased):
            yield Rule(f"{theirs}o_proj.{kind}", f"{ours}out.{kind}")
        if mixer["qk_norm"]:
            for name in ("q", "k"):
                yield Rule(f"{theirs}{name}_norm.weight", f"{ours}{name}_norm.weight")


def kinds(bias: bool) -> tuple[str, ...]:
    """The tensors of a projection."""
    return ("weight", "bias") if bias else ("weight",)
