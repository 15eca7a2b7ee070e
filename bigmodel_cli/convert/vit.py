"""Hugging Face's Vision Transformer: ViT (Dosovitskiy et al. 2021)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import BODY, CLASSIFICATION, Model, grouped
from bigmodel_cli.convert.label_heads import class_labels
from bigmodel_cli.convert.rules import Rule
from bigmodel_cli.convert.vision import (
    VisionFamily,
    attention,
    biased,
    image_size,
    linear,
    square,
)

QKV = ("query", "key", "value")


class HFViT(VisionFamily):
    """Patches, a class token, learned positions, pre-norm blocks, a head on the class token."""

    model_types: ClassVar = ("vit",)
    heads: ClassVar = {"ViTForImageClassification": CLASSIFICATION, "ViTModel": BODY}
    leftovers: ClassVar[tuple[str, ...]] = (r"pooler\.dense\.(weight|bias)",)
    ignored: ClassVar[tuple[str, ...]] = ("encoder_stride", "pooler_act", "pooler_output_size")
    eps = 1e-12
    patch = 16
    position = "learned"

    def model(self, config: Config) -> dict[str, Any]:
        norm = {"type": "layernorm", "eps": config.get("layer_norm_eps", float, self.eps)}
        dropout = config.get("hidden_dropout_prob", float, 0.0)
        block = {
            "mixer": self.mixer(config),
            "ffn": self.ffn(config),
            "norm": norm,
            **self.block(config, dropout),
        }
        return {
            "type": "vit",
            "dim": config.get("hidden_size", int),
            "patch": square(config, "patch_size", self.patch),
            "position": self.position,
            "pool": self.pool(config),
            "registers": self.registers(config),
            "norm": norm,
            "dropout": dropout,
            "blocks": grouped([block] * config.get("num_hidden_layers", int)),
        }

    def mixer(self, config: Config) -> dict[str, Any]:
        """The attention of every block."""
        return {
            "type": "attention",
            "num_heads": config.get("num_attention_heads", int),
            "bias": config.get("qkv_bias", bool, True) or ["o"],
            "dropout": config.get("attention_probs_dropout_prob", float, 0.0),
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
            "qkv_bias": biased(block["mixer"], "q"),
            **self.sizes(model),
            **class_labels(info),
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
            names = {name[0]: f"{theirs}attention.attention.{name}" for name in QKV}
            names["o"] = f"{theirs}attention.output.dense"
            yield from attention(names, f"{ours}mixer.", block["mixer"], model["dim"])
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
