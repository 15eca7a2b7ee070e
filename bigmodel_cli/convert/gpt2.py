"""GPT-2 (Radford et al. 2019): learned positions, pre-norm LayerNorm, matrices inputs first."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import CAUSAL_LM, Family, Model, grouped
from bigmodel_cli.convert.rules import Rule, transposed

GELU = {"gelu_new": "tanh", "gelu_pytorch_tanh": "tanh", "gelu": "none"}
"""`activation_function` -> `approximate` of our ffn; the first of a form is what is written."""
MATRICES = {
    "attn.c_attn": "mixer.qkv",
    "attn.c_proj": "mixer.out",
    "mlp.c_fc": "ffn.up",
    "mlp.c_proj": "ffn.down",
}


class GPT2(Family):
    """Decoders of GPT-2's layout; files from the hub have names without `transformer.`."""

    model_types: ClassVar = ("gpt2",)
    heads: ClassVar = {"GPT2LMHeadModel": CAUSAL_LM}
    prefix: ClassVar = "transformer."
    leftovers: ClassVar = (r".*\.attn\.(masked_)?bias",)  # causal masks
    copies: ClassVar = {"lm_head.weight": "transformer.wte.weight"}
    # reorder_and_upcast_attn: the same formula in fp32
    ignored: ClassVar = ("n_ctx", "reorder_and_upcast_attn", "summary_activation",
                         "summary_first_dropout", "summary_proj_to_labels",
                         "summary_use_proj")  # fmt: skip

    def model(self, config: Config) -> dict[str, Any]:
        config.only("add_cross_attention", False)
        config.only("activation_function", *GELU)
        norm = {"type": "layernorm", "eps": config.get("layer_norm_epsilon", float, 1e-5)}
        dim = config.get("n_embd", int, 768)
        block = {
            "ffn": {
                "type": "gelu",
                "approximate": GELU[config.get("activation_function", str, "gelu_new")],
                "hidden": config.get("n_inner", int, 4 * dim),
            },
            "norm": norm,
            "dropout": config.get("resid_pdrop", float, 0.1),
        }
        layers = range(config.get("n_layer", int, 12))
        return {
            "type": "decoder",
            "dim": dim,
            "position": {"type": "learned"},
            "blocks": grouped([{"mixer": self.mixer(config, layer), **block} for layer in layers]),
            "norm": norm,
            "max_len": config.get("n_positions", int, 1024),
            "vocab_size": config.get("vocab_size", int, 50257),
            "tie_embeddings": config.get("tie_word_embeddings", bool, True),
            "dropout": config.get("embd_pdrop", float, 0.1),
        }

    def mixer(self, config: Config, layer: int) -> dict[str, Any]:
        """The attention of a layer, whose scores may be scaled otherwise than by 1 / sqrt(D)."""
        heads = config.get("n_head", int, 12)
        width = config.get("n_embd", int, 768) // heads
        scale = width**-0.5 if config.get("scale_attn_weights", bool, True) else 1.0
        if by_layer := config.get("scale_attn_by_inverse_layer_idx", bool, False):
            scale /= layer + 1
        return {
            "type": "attention",
            "num_heads": heads,
            "dropout": config.get("attn_pdrop", float, 0.1),
            **({"scale": scale} if by_layer or scale == 1.0 else {}),
        }

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        block = model["blocks"][0]
        mixer, ffn = block["mixer"], block["ffn"]
        scale = mixer["scale"]
        gelu = {ours: theirs for theirs, ours in reversed(GELU.items())}
        return {
            "model_type": self.model_types[0],
            "activation_function": gelu[ffn["approximate"]],
            "n_embd": model["dim"],
            "n_inner": ffn["hidden"],
            "n_layer": len(model["blocks"]),
            "n_head": mixer["num_heads"],
            "n_positions": model["max_len"],
            "vocab_size": model["vocab_size"],
            "layer_norm_epsilon": model["norm"]["eps"],
            "attn_pdrop": mixer["dropout"],
            "resid_pdrop": block["dropout"],
            "embd_pdrop": model["dropout"],
            "scale_attn_weights": scale != 1.0,
            "scale_attn_by_inverse_layer_idx": scale != model["blocks"][-1]["mixer"]["scale"],
            "tie_word_embeddings": model["tie_embeddings"],
        }

    def rules(self, model: Model, info: DatasetInfo, task: str) -> Iterator[Rule]:
        yield Rule(f"{self.prefix}wte.weight", "embedding.weight")
        yield Rule(f"{self.prefix}wpe.weight", "position.table.weight")
        norms = {f"{self.prefix}ln_f": "norm"}
        for i in range(len(model["blocks"])):
            theirs, ours = f"{self.prefix}h.{i}.", f"blocks.{i}."
            norms |= {f"{theirs}ln_1": f"{ours}mixer_norm", f"{theirs}ln_2": f"{ours}ffn_norm"}
            for name, of_ours in MATRICES.items():
                yield Rule(f"{theirs}{name}.weight", f"{ours}{of_ours}.weight", transposed)
                yield Rule(f"{theirs}{name}.bias", f"{ours}{of_ours}.bias")
        for name, of_ours in norms.items():
            for kind in ("weight", "bias"):
                yield Rule(f"{name}.{kind}", f"{of_ours}.{kind}")
        if not model["tie_embeddings"]:
            yield Rule("lm_head.weight", "head.weight")
