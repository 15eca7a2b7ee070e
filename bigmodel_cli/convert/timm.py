"""timm's folders: config.json of its own (`architecture`, `pretrained_cfg`), model.safetensors."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

from bigmodel_cli.checkpoints.files import clipped
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.family import BODY, CLASSIFICATION, Model, grouped, head_of
from bigmodel_cli.convert.rules import Rule
from bigmodel_cli.convert.vision import (
    NO_HEAD,
    VisionFamily,
    biased,
    check_channels,
    image_size,
    linear,
    moments,
    normalised,
)
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import torch
from bigmodel_cli.models.torchvision import TorchvisionOptions, build_torchvision

SIZES = {
    "tiny": (192, 12, 3), "small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16),
    "huge": (1280, 32, 16),
}  # fmt: skip
"""Width, blocks and heads of timm's plain Vision Transformers."""
_VIT = re.compile(r"(?:vit|deit)_(tiny|small|base|large|huge)_patch(\d{1,2})_(\d{2,3}|dinov2)")
RESNETS = (
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152"),
    *("resnext50_32x4d", "resnext101_32x8d", "resnext101_64x4d"),
    *("wide_resnet50_2", "wide_resnet101_2"),
)
"""Networks that are timm's and torchvision's under the same names, tensor by tensor."""
_TRAINING = (
    *("drop_rate", "pos_drop_rate", "patch_drop_rate", "proj_drop_rate", "attn_drop_rate"),
    *("drop_path_rate", "drop_block_rate", "weight_init", "fix_init", "zero_init_last"),
)
"""Arguments that change nothing once a network is trained."""


class _Timm(VisionFamily):
    """What both have: sizes, labels and normalisation by config.json alone."""

    model_types: ClassVar = ()
    heads: ClassVar = {
        "TimmWrapperForImageClassification": CLASSIFICATION,
        "TimmWrapperModel": BODY,
    }
    ignored: ClassVar = (
        *("num_features", "label_descriptions", "model_args", "num_classes"),
        "label_names",  # read where there is a head
    )

    def called(self) -> str:
        return f"timm's {type(self).__name__.removeprefix('Timm')}"

    def class_of(self, task: str) -> str | None:
        # its config.json cannot say that labels are sets, or numbers
        return super().class_of(task) if task == head_of(task) else None

    def task_of(self, config: Config) -> str:
        return CLASSIFICATION if config.get("num_classes", int) else BODY

    def info(self, config: Config, folder: Path, model: Model, task: str) -> DatasetInfo:
        given = config.get("pretrained_cfg", dict)
        shape = given.get("input_size")
        side = arguments(config).get("img_size")
        if side is not None and isinstance(shape, list):
            shape = [shape[0], *(side if isinstance(side, list) else [side, side])]
        if (
            not isinstance(shape, list)
            or len(shape) != 3
            or not all(type(n) is int and n > 0 for n in shape)
        ):
            raise CheckpointError(f"{config.file}: pretrained_cfg: input_size: not three sizes")
        check_channels(shape[0], config, "pretrained_cfg: input_size")
        path = folder / "config.json"
        mean, std = moments(given.get("mean"), given.get("std"), shape[0], path)
        info = DatasetInfo(
            image_shape=(shape[0], shape[1], shape[2]),
            mean=mean,
            std=std,
            classes=self.classes(config) if task else NO_HEAD,
        )
        config.note(normalised(info))
        how = given.get("interpolation", "bicubic")
        if how != "bilinear" and isinstance(how, str):
            config.note(f"timm resizes images by {clipped(how)} interpolation; here it is bilinear")
        if given.get("crop_pct", 0.875) != 1.0:
            config.note("timm cuts out the middle of an image; here the whole image is resized")
        return info

    def classes(self, config: Config) -> tuple[str, ...]:
        """The labels in the order of the logits. Raises `CheckpointError`."""
        count = config.get("num_classes", int)
        names = config.maybe("label_names", list) or [f"LABEL_{i}" for i in range(count)]
        if len(set(map(str, names))) != count:
            raise CheckpointError(f"{config.file}: label_names: not {count} different names")
        return tuple(map(str, names))

    def more_files(self, model: Model, info: DatasetInfo) -> dict[str, dict[str, Any]]:
        return {}

    def described(self, info: DatasetInfo) -> dict[str, Any]:
        """The keys that do not depend on the architecture."""
        assert info.image_shape is not None
        classes = () if info.classes == NO_HEAD else info.classes
        pretrained = {
            "input_size": list(info.image_shape),
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "mean": list(info.mean) or [0.0] * info.image_shape[0],
            "std": list(info.std) or [1.0] * info.image_shape[0],
            "num_classes": len(classes),
        }
        return {
            "num_classes": len(classes),
            "label_names": list(classes),
            "pretrained_cfg": pretrained,
        }


class TimmViT(_Timm):
    """A plain Vision Transformer of timm: label from the class token, LayerNorm of eps 1e-6."""

    def reads(self, config: Config) -> bool:
        return _VIT.fullmatch(architecture(config)) is not None

    def model(self, config: Config) -> dict[str, Any]:
        named = _VIT.fullmatch(architecture(config))
        assert named is not None
        dim, depth, heads = SIZES[named[1]]
        scale = 1e-5 if named[3] == "dinov2" else None
        given = Config(arguments(config), f"{config.file}: model_args")
        config.only("global_pool", "token")
        for key, allowed in PLAIN.items():
            given.only(key, allowed)
        given.finish((*_TRAINING, *_READ))
        dim = given.get("embed_dim", int, dim)
        norm = {"type": "layernorm", "eps": 1e-6}
        block = {
            "mixer": {
                "type": "attention",
                "num_heads": given.get("num_heads", int, heads),
                "bias": given.get("qkv_bias", bool, True) or ["o"],
            },
            "ffn": {"type": "gelu", "hidden": int(dim * given.get("mlp_ratio", float, 4.0))},
            "norm": norm,
            "layer_scale": given.maybe("init_values", float, scale),
        }
        return {
            "type": "vit",
            "dim": dim,
            "patch": given.get("patch_size", int, int(named[2])),
            "norm": norm,
            "blocks": grouped([block] * given.get("depth", int, depth)),
        }

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        assert info.image_shape is not None
        block, dim = model["blocks"][0], model["dim"]
        sizes = (dim, len(model["blocks"]), block["mixer"]["num_heads"])
        size = next((name for name, its in SIZES.items() if its == sizes), "base")
        channels, side = info.image_shape[0], image_size(info)
        described = self.described(info)
        return {
            "architecture": f"vit_{size}_patch16_224",
            "global_pool": "token",
            "num_features": dim,
            "model_args": {
                "img_size": side,
                "patch_size": model["patch"],
                "in_chans": channels,
                "num_classes": described["num_classes"],
                **dict(zip(("embed_dim", "depth", "num_heads"), sizes, strict=True)),
                "mlp_ratio": block["ffn"]["hidden"] / dim,
                "qkv_bias": block["mixer"]["bias"] is True,
                "init_values": block["layer_scale"],
            },
            **described,
        }

    def rules(self, model: Model, info: DatasetInfo, task: str) -> Iterator[Rule]:
        yield Rule("cls_token", "cls")
        yield Rule("pos_embed", "table")
        yield from linear("patch_embed.proj", "patches")
        for i, block in enumerate(model["blocks"]):
            at, mixer = f"blocks.{i}.", block["mixer"]
            names = ("weight", "bias") if biased(mixer, "q") else ("weight",)
            yield from (Rule(f"{at}attn.qkv.{kind}", f"{at}mixer.qkv.{kind}") for kind in names)
            yield from linear(f"{at}attn.proj", f"{at}mixer.out")
            for number, slot in ((1, "mixer"), (2, "ffn")):
                yield from linear(f"{at}norm{number}", f"{at}{slot}_norm")
                if block["layer_scale"] is not None:
                    yield Rule(f"{at}ls{number}.gamma", f"{at}{slot}_scale")
            yield from linear(f"{at}mlp.fc1", f"{at}ffn.up")
            yield from linear(f"{at}mlp.fc2", f"{at}ffn.down")
        yield from linear("norm", "norm")
        if task:
            yield from linear("head", "head")


PLAIN: Mapping[str, Any] = {
    "global_pool": "token", "qk_norm": False, "scale_attn_norm": False, "scale_mlp_norm": False,
    "proj_bias": True, "class_token": True, "pos_embed": "learn", "no_embed_class": False,
    "reg_tokens": 0, "pre_norm": False, "final_norm": True, "fc_norm": False,
    "pool_include_prefix": False,
}  # fmt: skip
"""Arguments of timm's VisionTransformer of which one value is built."""
_READ = (
    *("img_size", "in_chans", "num_classes", "embed_dim", "depth", "num_heads", "patch_size"),
    *("mlp_ratio", "qkv_bias", "init_values", "dynamic_img_size", "dynamic_img_pad"),
)


class TimmResNet(_Timm):
    """A ResNet that is torchvision's under the same name."""

    def reads(self, config: Config) -> bool:
        return architecture(config) in RESNETS

    def model(self, config: Config) -> dict[str, Any]:
        config.only("global_pool", "avg")
        given = Config(arguments(config), f"{config.file}: model_args")
        given.only("in_chans", 3)
        given.only("global_pool", "avg")
        given.finish((*_TRAINING, "num_classes"))
        return {"type": "torchvision", "name": architecture(config)}

    def config(self, model: Model, info: DatasetInfo) -> dict[str, Any]:
        if model["name"] not in RESNETS:
            raise ValueError("timm has another network of this name, or none")
        described = self.described(info)
        arguments = {"num_classes": described["num_classes"], "in_chans": 3}
        return {
            "architecture": model["name"],
            "global_pool": "avg",
            "model_args": arguments,
            **described,
        }

    def rules(self, model: Model, info: DatasetInfo, task: str) -> Iterator[Rule]:
        with torch.device("meta"):
            built = build_torchvision(TorchvisionOptions(name=model["name"]), info)
        for name in built.state_dict():
            if task or not name.startswith("fc."):
                yield Rule(name, name)


def architecture(config: Config) -> str:
    """timm's name of the network, without the tag of its weights; '' in other files."""
    name = None if "model_type" in config.values else config.maybe("architecture", str)
    return (name or "").partition(".")[0]


def arguments(config: Config) -> dict[str, Any]:
    """What the network is built with beside its name."""
    return {k: v for k, v in (config.maybe("model_args", dict) or {}).items() if v is not None}
