"""Qwen 3.5: gated DeltaNet and gated attention by turns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import CAUSAL_LM, Model
from bigmodel_cli.convert.layers import layer_types
from bigmodel_cli.convert.llama import Llama, kinds
from bigmodel_cli.convert.rotary import FULL, rope_parameters, rotary
from bigmodel_cli.convert.rules import Rule, rows, shaped, whole

LINEAR = "linear_attention"


class Qwen3_5(Llama):
    """Three layers of gated DeltaNet to one of gated attention (Qwen 3.5, 2026).

    Of a model that reads images too it is the text part, without the images' encoder. Its layers
    that foretell several tokens (`mtp.`) are left out.
    """

    model_types: ClassVar = ("qwen3_5_text", "qwen3_5")
    heads: ClassVar = {
        "Qwen3_5ForCausalLM": CAUSAL_LM,
        "Qwen3_5ForConditionalGeneration": CAUSAL_LM,
    }
    sizes: ClassVar = {"num_attention_heads": 16, "num_key_value_heads": 4}
    biases: ClassVar = ("attention_bias",)
    renamed: ClassVar = {r"^model\.language_model\.": "model."}
    leftovers: ClassVar = (*Llama.leftovers, r"mtp\..*", r"model\.visual\..*")
    ignored: ClassVar = (
        "image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id",
        "vision_config", "mamba_ssm_dtype", "mtp_num_hidden_layers", "mtp_use_dedicated_embeddings",
    )  # fmt: skip

    def model(self, config: Config) -> dict[str, Any]:
        if "text_config" not in config.values:
            return super().model(config)
        text = config.part("text_config")
        return {
            **super().model(text),
            "tie_embeddings": config.get("tie_word_embeddings", bool, False),
        }

    def norm(self, config: Config) -> dict[str, Any]:
        return {**super().norm(config), "offset": True}

    def ffn(self, config: Config) -> dict[str, Any]:
        config.only("mlp_only_layers", [])
        return super().ffn(config)

    def head_dim(self, config: Config) -> int:
        return config.get("head_dim", int, 256)

    def mixer(self, config: Config, layer: int) -> dict[str, Any]:
        every = config.get("full_attention_interval", int, 4)
        types = layer_types(
            config, lambda i: LINEAR if (i + 1) % max(1, every) else FULL, (FULL, LINEAR)
        )
        both = self.attention_options(config), self.delta_options(config)
        return both[types[layer] == LINEAR]

    def attention_options(self, config: Config) -> dict[str, Any]:
        """A layer of attention."""
        config.only("attn_output_gate", True)
        heads = config.get("num_attention_heads", int)
        return {
            "type": "attention",
            "num_heads": heads,
            "kv_heads": config.get("num_key_value_heads", int, heads),
            "head_dim": self.head_dim(config),
            "gate": "full",
            "bias": config.get("attention_bias", bool, False),
            "dropout": config.get("attention_dropout", float, 0.0),
            "qk_norm": {"eps": config.get("rms_norm_eps", float, self.eps), "offset": True},
            # Of text, which stands at the same place along each of the three axes.
            "position": rotary(
                config, self.rope_base, None, 0.25, ("mrope_section", "mrope_interleaved")
            ),
        }

    def delta_options(self, config: Config) -> dict[str, Any]:
        """A layer of gated DeltaNet."""
        return {
            "type": "gated_deltanet",
            "num_heads": config.get("linear_num_value_heads", int, 32),
            "key_heads": config.get("linear_num_key_heads", int, 16),
            "key_dim": config.get("linear_key_head_dim", int, 128),
            "value_dim": config.get("linear_value_head_dim", int, 128),
            "kernel": config.get("linear_conv_kernel_dim", int, 4),
            "norm_eps": config.get("rms_norm_eps", float, self.eps),
        }

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        mixers = [block["mixer"] for block in model["blocks"]]
        types = [FULL if mixer["type"] == "attention" else LINEAR for mixer in mixers]
        found = {**self.shared_config(model), "layer_types": types}
        if FULL in types:
            mixer = mixers[types.index(FULL)]
            found |= {
                **self.attention_config(model, mixer),
                "attention_bias": mixer["bias"],
                "rope_parameters": {
                    "partial_rotary_factor": 1.0, **rope_parameters(mixer["position"]),
                },
            }  # fmt: skip
        if LINEAR in types:
            mixer = mixers[types.index(LINEAR)]
            found |= {
                "linear_num_value_heads": mixer["num_heads"],
                "linear_num_key_heads": mixer["key_heads"],
                "linear_key_head_dim": mixer["key_dim"],
                "linear_value_head_dim": mixer["value_dim"],
                "linear_conv_kernel_dim": mixer["kernel"],
            }
        return found

    def mixer_rules(self, layer: str, ours: str, mixer: Model) -> Iterator[Rule]:
        if mixer["type"] == "attention":
            yield from self.attention(layer + "self_attn.", ours, mixer)
        else:
            yield from delta_rules(layer + "linear_attn.", ours, mixer)

    def attention(self, theirs: str, ours: str, mixer: Model) -> Iterator[Rule]:
        """A head's rows of their q_proj are its queries, then its gate."""
        width = mixer["head_dim"]
        heads, groups = mixer["num_heads"], mixer["kv_heads"]
        after = (heads + 2 * groups) * width  # where the gates begin
        order = [
            start + width * head + row
            for head in range(heads)
            for start in (0, after)
            for row in range(width)
        ]
        for kind in kinds(mixer["bias"]):
            yield Rule(f"{theirs}q_proj.{kind}", f"{ours}qkv.{kind}", whole, order)
            for i, name in enumerate("kv"):
                own = rows((heads + i * groups) * width, groups * width)
                yield Rule(f"{theirs}{name}_proj.{kind}", f"{ours}qkv.{kind}", own)
            yield Rule(f"{theirs}o_proj.{kind}", f"{ours}out.{kind}")
        for name in ("q", "k"):
            yield Rule(f"{theirs}{name}_norm.weight", f"{ours}{name}_norm.weight")


def delta_rules(theirs: str, ours: str, mixer: Model) -> Iterator[Rule]:
    """Those of a layer of gated DeltaNet."""
    heads = mixer["num_heads"]
    channels = 2 * mixer["key_heads"] * mixer["key_dim"] + heads * mixer["value_dim"]
    yield Rule(f"{theirs}in_proj_qkv.weight", f"{ours}qkv.weight")
    yield Rule(f"{theirs}in_proj_z.weight", f"{ours}gate.weight")
    yield Rule(f"{theirs}in_proj_b.weight", f"{ours}rates.weight", rows(0, heads))
    yield Rule(f"{theirs}in_proj_a.weight", f"{ours}rates.weight", rows(heads, heads))
    yield Rule(f"{theirs}conv1d.weight", f"{ours}conv.weight", shaped(channels, 1, mixer["kernel"]))
    yield Rule(f"{theirs}dt_bias", f"{ours}dt_bias")
    yield Rule(f"{theirs}A_log", f"{ours}log_a")
    yield Rule(f"{theirs}norm.weight", f"{ours}norm.weight")
    yield Rule(f"{theirs}out_proj.weight", f"{ours}out.weight")
