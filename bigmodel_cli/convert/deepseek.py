"""DeepSeek-V3 and its like: latent attention, experts chosen within groups after dense layers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import CAUSAL_LM, Model
from bigmodel_cli.convert.layered import Layered, experts, gated, of_type
from bigmodel_cli.convert.rotary import rope_parameters, rotary
from bigmodel_cli.convert.rules import Rule, neighbours


class DeepseekV3(Layered):
    """DeepSeek-V3, R1, Kimi K2 (DeepSeek-AI 2024); the layers that predict further are left."""

    model_types: ClassVar = ("deepseek_v3",)
    heads: ClassVar = {"DeepseekV3ForCausalLM": CAUSAL_LM}
    ignored: ClassVar = (
        "head_dim", "qk_head_dim",  # follow from others
        "num_nextn_predict_layers", "num_mtp_layers",  # left
        "ep_size", "aux_loss_alpha", "seq_aux", "output_router_logits",  # of training
    )  # fmt: skip

    def block(self, config: Config, layer: int) -> dict[str, Any]:
        heads = config.get("num_attention_heads", int)
        config.only("num_key_value_heads", heads)
        config.only("attention_bias", False)
        config.only("rope_interleave", True)
        config.only("pretraining_tp", 1)
        mixer = {
            "type": "mla",
            "num_heads": heads,
            "kv_rank": config.get("kv_lora_rank", int, 512),
            "q_rank": config.maybe("q_lora_rank", int),
            "head_dim": config.get("qk_nope_head_dim", int, 128),
            "rotary_dim": config.get("qk_rope_head_dim", int, 64),
            "value_dim": config.get("v_head_dim", int, 128),
            "position": rotary(config, self.rope_base),
            "dropout": config.get("attention_dropout", float, 0.0),
        }
        dense = {"type": "swiglu", "hidden": config.get("intermediate_size", int)}
        mixture = self.experts(config)
        first = config.get("first_k_dense_replace", int, 3)
        return {
            "mixer": mixer,
            "ffn": dense if layer < first else mixture,
            "norm": self.norm(config),
        }

    def experts(self, config: Config) -> dict[str, Any]:
        """The mixture of the layers that are not dense."""
        config.only("scoring_func", "sigmoid")
        config.only("topk_method", "noaux_tc")
        config.only("moe_layer_freq", 1)
        return {
            "type": "moe",
            "experts": config.get("n_routed_experts", int, 256),
            "top_k": config.get("num_experts_per_tok", int, 8),
            "hidden": config.get("moe_intermediate_size", int),
            "shared": config.get("n_shared_experts", int, 1),
            "router": "sigmoid",
            "normalize": config.get("norm_topk_prob", bool, True),
            "groups": config.get("n_group", int, 8),
            "top_groups": config.get("topk_group", int, 4),
            "scale": config.get("routed_scaling_factor", float, 2.5),
            "balance": "bias",
            "balance_weight": 0.001,
        }

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        mixer, ffn = model["blocks"][0]["mixer"], of_type(model, "ffn", "moe")[0]
        dense = of_type(model, "ffn", "swiglu")
        return {
            **super().config(model, info),
            "num_attention_heads": mixer["num_heads"],
            "num_key_value_heads": mixer["num_heads"],
            "kv_lora_rank": mixer["kv_rank"],
            "q_lora_rank": mixer["q_rank"],
            "qk_nope_head_dim": mixer["head_dim"],
            "qk_rope_head_dim": mixer["rotary_dim"],
            "v_head_dim": mixer["value_dim"],
            "attention_dropout": mixer["dropout"],
            "rope_interleave": True,
            "rope_parameters": rope_parameters(mixer["position"]),
            "first_k_dense_replace": len(dense),
            "intermediate_size": (dense or [ffn])[0]["hidden"],
            "moe_intermediate_size": ffn["hidden"],
            "n_routed_experts": ffn["experts"],
            "num_experts_per_tok": ffn["top_k"],
            "n_shared_experts": ffn["shared"],
            "norm_topk_prob": ffn["normalize"],
            "n_group": ffn["groups"],
            "topk_group": ffn["top_groups"],
            "routed_scaling_factor": ffn["scale"],
            "num_nextn_predict_layers": 0,
        }

    def leftovers_of(self, model: Model) -> tuple[str, ...]:
        """Also the layers after the last, which predict further tokens."""
        last = len(model["blocks"])
        return (*self.leftovers, *(rf"model\.layers\.{last + i}\..*" for i in range(4)))

    def layer(self, theirs: str, ours: str, block: Model) -> Iterator[Rule]:
        mixer, ffn = block["mixer"], block["ffn"]
        yield from self.latent(theirs + "self_attn.", ours + "mixer.", mixer)
        theirs, ours = theirs + "mlp.", ours + "ffn."
        if ffn["type"] != "moe":
            yield from gated(theirs, ours, ffn)
            return
        yield Rule(theirs + "gate.weight", ours + "router.weight")
        yield Rule(theirs + "gate.e_score_correction_bias", ours + "bias")
        yield from experts(theirs, ours, ffn)
        if ffn["shared"]:
            yield from gated(theirs + "shared_experts.", ours + "shared.", ffn)

    def latent(self, theirs: str, ours: str, mixer: Model) -> Iterator[Rule]:
        """Rotary channels stand in neighbouring pairs."""
        plain, turned = mixer["head_dim"], mixer["rotary_dim"]
        heads = neighbours(mixer["num_heads"], plain + turned, turned)
        if mixer["q_rank"] is None:
            yield Rule(theirs + "q_proj.weight", ours + "q_up.weight", order=heads)
        else:
            yield Rule(theirs + "q_a_proj.weight", ours + "q_down.weight")
            yield Rule(theirs + "q_a_layernorm.weight", ours + "q_norm.weight")
            yield Rule(theirs + "q_b_proj.weight", ours + "q_up.weight", order=heads)
        shared = neighbours(1, mixer["kv_rank"] + turned, turned)
        yield Rule(theirs + "kv_a_proj_with_mqa.weight", ours + "kv_down.weight", order=shared)
        yield Rule(theirs + "kv_a_layernorm.weight", ours + "kv_norm.weight")
        yield Rule(theirs + "kv_b_proj.weight", ours + "kv_up.weight")
        yield Rule(theirs + "o_proj.weight", ours + "out.weight")
