"""Hugging Face's Vision Transformers: ViT (Dosovitskiy et al. 2021) and DINOv2 (Oquab et al. 2023),
the latter with or without registers (Darcet et al. 2024)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import BODY, CLASSIFICATION, Model, grouped
from bigmodel_cli.convert.rules import Rule
from bigmodel_cli.convert.vision import (
    VisionFamily,
    image_size,
    labels,
    linear,
    separate,
    square,
)


class HFViT(VisionFamily):
    """Patches, a class token, learned positions, pre-norm blocks, a head on the class token."""

    model_types: ClassVar = ("vit",)
    heads: ClassVar = {"ViTForImageClassification": CLASSIFICATION, "ViTModel": BODY}
    leftovers: ClassVar = (r"pooler\.dense\.(weight|bias)",)
    ignored: ClassVar[tuple[str, ...]] = ("encoder_stride", "pooler_act", "pooler_output_size")
    eps = 1e-12
    patch = 16

    def model(self, config: Config) -> dict[str, Any]:
        config.only("qkv_bias", True)
        norm = {"type": "layernorm", "eps": config.get("layer_norm_eps", float, self.eps)}
        dropout = config.get("hidden_dropout_prob", float, 0.0)
        block = {
            "mixer": {
                "type": "attention",
                "num_heads": config.get("num_attention_heads", int),
                "dropout": config.get("attention_probs_dropout_prob", float, 0.0),
            },
            "ffn": self.ffn(config),
            "norm": norm,
            **self.block(config, dropout),
        }
        return {
            "type": "vit",
            "dim": config.get("hidden_size", int),
            "patch": square(config, "patch_size", self.patch),
            "pool": self.pool(config),
            "registers": self.registers(config),
            "norm": norm,
            "dropout": dropout,
            "blocks": grouped([block] * config.get("num_hidden_layers", int)),
        }

    def ffn(self, config: Config) -> dict[str, Any]:
        """The feed-forward network of every block."""
        config.only("hidden_act", "gelu")
        return {"type": "gelu", "hidden": config.get("intermediate_size", int)}

    def block(self, config: Config, dropout: float) -> dict[str, Any]:
        """Further options of every block."""
        return {"dropout": dropout}

    def pool(self, config: Config) -> str:
        """What the label is read from."""
        return "cls"

    def registers(self, config: Config) -> int:
        """The number of registers."""
        return 0

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        assert info.image_shape is not None
        block = model["blocks"][0]
        return {
            "model_type": self.model_types[0],
            "hidden_size": model["dim"],
            "num_hidden_layers": len(model["blocks"]),
            "num_attention_heads": block["mixer"]["num_heads"],
            "hidden_act": "gelu",
            "hidden_dropout_prob": model["dropout"],
            "attention_probs_dropout_prob": block["mixer"]["dropout"],
            "layer_norm_eps": block["norm"]["eps"],
            "image_size": image_size(info),
            "patch_size": model["patch"],
            "num_channels": info.image_shape[0],
            "qkv_bias": True,
            **self.sizes(model),
            **labels(info.classes),
        }

    def sizes(self, model: Model) -> dict[str, Any]:
        """The keys of the feed-forward network, and what this family alone has."""
        return {"intermediate_size": model["blocks"][0]["ffn"]["hidden"]}

    def rules(self, model: Model, info: DatasetInfo, task: str) -> Iterator[Rule]:
        body = f"{self.model_types[0]}." if task else ""
        yield Rule(f"{body}embeddings.cls_token", "cls")
        yield Rule(f"{body}embeddings.position_embeddings", "table")
        yield from linear(f"{body}embeddings.patch_embeddings.projection", "patches")
        if model["registers"]:
            yield Rule(f"{body}embeddings.register_tokens", "registers")
        for i, block in enumerate(model["blocks"]):
            theirs, ours = f"{body}encoder.layer.{i}.", f"blocks.{i}."
            attention = f"{theirs}attention.attention."
            names = [f"{attention}{name}" for name in ("query", "key", "value")]
            yield from separate(names, f"{ours}mixer.qkv", model["dim"])
            yield from linear(f"{theirs}attention.output.dense", f"{ours}mixer.out")
            yield from self.layer(theirs, ours, block)
        yield from linear(f"{body}layernorm", "norm")
        if task:
            yield from linear("classifier", "head")

    def layer(self, theirs: str, ours: str, block: Model) -> Iterator[Rule]:
        """The weights of a block beside its attention."""
        yield from linear(f"{theirs}layernorm_before", f"{ours}mixer_norm")
        yield from linear(f"{theirs}layernorm_after", f"{ours}ffn_norm")
        yield from linear(f"{theirs}intermediate.dense", f"{ours}ffn.up")
        yield from linear(f"{theirs}output.dense", f"{ours}ffn.down")


class Dinov2(HFViT):
    """DINOv2: a scale per channel on what each slot adds; its head reads class token and mean."""

    model_types: ClassVar = ("dinov2",)
    heads: ClassVar = {"Dinov2ForImageClassification": CLASSIFICATION, "Dinov2Model": BODY}
    leftovers: ClassVar = (r"(dinov2\.)?embeddings\.mask_token",)
    ignored: ClassVar = (
        *("apply_layernorm", "reshape_hidden_states", "out_features", "out_indices"),
        *("stage_names", "use_mask_token"),
    )
    eps = 1e-6
    patch = 14

    def ffn(self, config: Config) -> dict[str, Any]:
        hidden = config.get("hidden_size", int) * config.get("mlp_ratio", int, 4)
        if config.get("use_swiglu_ffn", bool, False):
            config.get("hidden_act", str, "gelu")  # not read by this variant
            return {"type": "swiglu", "hidden": two_thirds(hidden), "bias": True}
        config.only("hidden_act", "gelu")
        return {"type": "gelu", "hidden": hidden}

    def block(self, config: Config, dropout: float) -> dict[str, Any]:
        return {
            "layer_scale": config.get("layerscale_value", float, 1.0),
            "drop_path": config.get("drop_path_rate", float, 0.0),
        }

    def pool(self, config: Config) -> str:
        return "cls_mean" if self.task_of(config) else "cls"

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        if isinstance(image_size(info), list):
            raise ValueError("transformers' class interpolates positions of squares alone")
        return super().config(model, info)

    def sizes(self, model: Model) -> dict[str, Any]:
        block = model["blocks"][0]
        gated = block["ffn"]["type"] == "swiglu"
        hidden, dim = block["ffn"]["hidden"], model["dim"]
        whole = [4, *range(1, 65)]  # the usual ratio first: rounding makes several the same
        fit = [n for n in whole if hidden == (two_thirds(n * dim) if gated else n * dim)]
        return {
            "mlp_ratio": fit[0],
            "use_swiglu_ffn": gated,
            "layerscale_value": block["layer_scale"],
            "drop_path_rate": block["drop_path"],
            "use_mask_token": False,
        }

    def layer(self, theirs: str, ours: str, block: Model) -> Iterator[Rule]:
        for number, slot in ((1, "mixer"), (2, "ffn")):
            yield from linear(f"{theirs}norm{number}", f"{ours}{slot}_norm")
            yield Rule(f"{theirs}layer_scale{number}.lambda1", f"{ours}{slot}_scale")
        if block["ffn"]["type"] == "swiglu":
            for kind in ("weight", "bias"):
                hidden, fused = block["ffn"]["hidden"], f"{theirs}mlp.weights_in.{kind}"
                yield Rule(fused, f"{ours}ffn.gate.{kind}")
                yield Rule(fused, f"{ours}ffn.up.{kind}", skip=hidden)
            yield from linear(f"{theirs}mlp.weights_out", f"{ours}ffn.down")
        else:
            yield from linear(f"{theirs}mlp.fc1", f"{ours}ffn.up")
            yield from linear(f"{theirs}mlp.fc2", f"{ours}ffn.down")


class Dinov2WithRegisters(Dinov2):
    """The same with further tokens beside the patches."""

    model_types: ClassVar = ("dinov2_with_registers",)
    heads: ClassVar = {
        "Dinov2WithRegistersForImageClassification": CLASSIFICATION,
        "Dinov2WithRegistersModel": BODY,
    }
    leftovers: ClassVar = (r"(dinov2_with_registers\.)?embeddings\.mask_token",)

    def registers(self, config: Config) -> int:
        return config.get("num_register_tokens", int, 4)

    def sizes(self, model: Model) -> dict[str, Any]:
        values = {**super().sizes(model), "num_register_tokens": model["registers"]}
        del values["use_mask_token"]
        return values


def two_thirds(hidden: int) -> int:
    """The hidden layer of a gated network with as many weights, a multiple of 8."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8
