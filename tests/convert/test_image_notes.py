"""What is said of how a published image model's own library prepares images, and ours does not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from folders import drawn_folder

from bigmodel_cli.convert import opening

VIT = {
    "model_type": "vit", "architectures": ["ViTForImageClassification"], "hidden_size": 8,
    "num_attention_heads": 2, "num_hidden_layers": 1, "intermediate_size": 12, "image_size": 8,
    "patch_size": 4, "id2label": {"0": "a", "1": "b"},
}  # fmt: skip
USUAL = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "size": 8}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"resample": 3}, "resizes images by bicubic interpolation; here it is bilinear"),
        ({"resample": 2}, ""),
        ({"resample": [3]}, ""),
        ({"do_center_crop": True, "crop_size": 8}, "cuts out the middle"),
        ({"size": {"height": 16, "width": 16}}, "makes images of 16 x 16"),
    ],
)
def test_another_way_to_prepare_images_is_said(
    values: dict[str, object], said: str, tmp_path: Path
) -> None:
    folder = drawn_folder(tmp_path / "a", VIT)
    (folder / "preprocessor_config.json").write_text(json.dumps({**USUAL, **values}))
    notes = " ".join(opening.describe(folder).notes)
    assert said in notes
    assert said or "here" not in notes


TIMM = {
    "architecture": "vit_tiny_patch16_224",
    "num_classes": 2,
    "pretrained_cfg": {
        "input_size": [3, 32, 32],
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
        "interpolation": "bilinear",
        "crop_pct": 1.0,
    },
}


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({}, ""),
        ({"interpolation": "bicubic"}, "timm resizes images by bicubic interpolation; here it is"),
        ({"interpolation": None}, "timm resizes images by bicubic interpolation; here it is"),
        ({"crop_pct": 0.9}, "timm cuts out the middle of an image; here the whole image is"),
        ({"crop_pct": None}, "timm cuts out the middle of an image; here the whole image is"),
    ],
)
def test_so_is_that_of_timm(values: dict[str, object], said: str, tmp_path: Path) -> None:
    """What a config leaves out (None here) is as timm has it: bicubic, and a crop of 0.875."""
    given = {**TIMM["pretrained_cfg"], **values}  # type: ignore[dict-item]
    given = {name: value for name, value in given.items() if value is not None}
    (tmp_path / "config.json").write_text(json.dumps({**TIMM, "pretrained_cfg": given}))
    notes = " ".join(opening.describe(tmp_path).notes)
    assert said in notes
    assert said or "timm" not in notes
