"""Hugging Face's Vision Transformers.

ViT (Dosovitskiy et al. 2021), DINOv2 (Oquab et al. 2023), with or without registers (Darcet et al.
2024), and DINOv3 (Siméoni et al. 2025).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import BODY, CLASSIFICATION, Model, class_labels, grouped
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
    leftovers: ClassVar = (r"pooler\.dense\.(weight|bias)",)
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


BIASES = {"q": "query_bias", "k": "key_bias", "v": "value_bias", "o": "proj_bias"}


class Dinov3(HFViT):
    """DINOv3 (Siméoni et al. 2025): rotary positions of rows and columns, no head."""

    model_types: ClassVar = ("dinov3_vit",)
    heads: ClassVar = {"DINOv3ViTModel": BODY}
    leftovers: ClassVar = (r"embeddings\.mask_token", r"embeddings\.register_tokens")  # of none
    renamed: ClassVar = {r"^model\.layer\.": "layer."}
    ignored: ClassVar = (
        *("apply_layernorm", "reshape_hidden_states", "out_features", "out_indices"),
        *("stage_names", "pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"),
    )
    eps = 1e-5
    position = "none"

    def mixer(self, config: Config) -> dict[str, Any]:
        biased = [p for p, key in BIASES.items() if config.get(key, bool, p != "k")]
        return {
            "type": "attention",
            "num_heads": config.get("num_attention_heads", int),
            "bias": biased,
            "dropout": config.get("attention_dropout", float, 0.0),
            "position": {"type": "axial", "base": config.get("rope_theta", float, 100.0)},
        }

    def ffn(self, config: Config) -> dict[str, Any]:
        gated = config.get("use_gated_mlp", bool, False)
        config.only("hidden_act", "silu" if gated else "gelu")
        return {
            "type": "swiglu" if gated else "gelu",
            "hidden": config.get("intermediate_size", int),
            "bias": config.get("mlp_bias", bool, True),
        }

    def block(self, config: Config, dropout: float) -> dict[str, Any]:
        return {
            "layer_scale": config.get("layerscale_value", float, 1.0),
            "drop_path": config.get("drop_path_rate", float, 0.0),
        }

    def registers(self, config: Config) -> int:
        return config.get("num_register_tokens", int, 0)

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        assert info.image_shape is not None
        block = model["blocks"][0]
        mixer, gated = block["mixer"], block["ffn"]["type"] == "swiglu"
        return {
            "model_type": self.model_types[0],
            "hidden_size": model["dim"],
            "intermediate_size": block["ffn"]["hidden"],
            "num_hidden_layers": len(model["blocks"]),
            "num_attention_heads": mixer["num_heads"],
            "attention_dropout": mixer["dropout"],
            "rope_theta": mixer["position"]["base"],
            **{key: biased(mixer, p) for p, key in BIASES.items()},
            "use_gated_mlp": gated,
            "hidden_act": "silu" if gated else "gelu",
            "mlp_bias": block["ffn"]["bias"],
            "layer_norm_eps": block["norm"]["eps"],
            "layerscale_value": block["layer_scale"],
            "drop_path_rate": block["drop_path"],
            "num_register_tokens": model["registers"],
            "image_size": image_size(info),
            "patch_size": model["patch"],
            "num_channels": info.image_shape[0],
        }

    def rules(self, model: Model, info: DatasetInfo, task: str) -> Iterator[Rule]:
        yield Rule("embeddings.cls_token", "cls")
        yield from linear("embeddings.patch_embeddings", "patches")
        if model["registers"]:
            yield Rule("embeddings.register_tokens", "registers")
        for i, block in enumerate(model["blocks"]):
            theirs, ours = f"layer.{i}.", f"blocks.{i}."
            names = {p: f"{theirs}attention.{p}_proj" for p in BIASES}
            yield from attention(names, f"{ours}mixer.", block["mixer"], model["dim"])
            for number, slot in ((1, "mixer"), (2, "ffn")):
                yield from linear(f"{theirs}norm{number}", f"{ours}{slot}_norm")
                yield Rule(f"{theirs}layer_scale{number}.lambda1", f"{ours}{slot}_scale")
            layers = ("gate", "up", "down") if block["ffn"]["type"] == "swiglu" else ("up", "down")
            kinds = ("weight", "bias") if block["ffn"]["bias"] else ("weight",)
            for name in layers:
                for kind in kinds:
                    yield Rule(f"{theirs}mlp.{name}_proj.{kind}", f"{ours}ffn.{name}.{kind}")
        yield from linear("norm", "norm")


def two_thirds(hidden: int) -> int:
    """The hidden layer of a gated network with as many weights, a multiple of 8."""
    return (int(hidden * 2 / 3) + 7) // 8 * 8
