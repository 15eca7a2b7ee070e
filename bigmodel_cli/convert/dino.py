"""Vision Transformers that learnt without labels: DINOv2 and DINOv3.

DINOv2 (Oquab et al. 2023), with or without registers (Darcet et al. 2024); DINOv3 (Siméoni et al.
2025).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import BODY, CLASSIFICATION, Model
from bigmodel_cli.convert.rules import Rule
from bigmodel_cli.convert.vision import attention, biased, image_size, linear
from bigmodel_cli.convert.vit import HFViT


class Dinov2(HFViT):
    """DINOv2: a scale per channel on what each slot adds; its head reads class token and mean."""

    model_types: ClassVar = ("dinov2",)
    heads: ClassVar = {"Dinov2ForImageClassification": CLASSIFICATION, "Dinov2Model": BODY}
    leftovers: ClassVar[tuple[str, ...]] = (r"(dinov2\.)?embeddings\.mask_token",)
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
        return "cls_mean"

    def unfit(self, model: Model, info: DatasetInfo) -> Iterator[tuple[str, str]]:
        assert info.image_shape is not None
        _, height, width = info.image_shape
        if height != width:
            yield "data.size", f"{height} x {width}, and their class has positions of squares alone"

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
    leftovers: ClassVar[tuple[str, ...]] = (r"(dinov2_with_registers\.)?embeddings\.mask_token",)

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
    leftovers: ClassVar[tuple[str, ...]] = (
        r"embeddings\.mask_token",
        r"embeddings\.register_tokens",
    )  # of none
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
