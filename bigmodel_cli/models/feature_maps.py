"""Which outputs of a network's modules are maps of the image, and how their axes lie.

Grad-CAM asks a model for them; here are the tables of torchvision's families.
"""

from __future__ import annotations

import re

from bigmodel_cli.lazy import Tensor

LAST_MAPS = {
    "alexnet": "features",
    "convnext": "features",
    "densenet": "features",  # followed by an in-place ReLU
    "efficientnet": "features",
    "googlenet": "inception5b",
    "inception": "Mixed_7c",
    "maxvit": "blocks.3",
    "mnasnet": "layers",
    "mobilenet": "features",
    "regnet": "trunk_output",
    "resnet": "layer4",
    "resnext": "layer4",
    "shufflenet": "conv5",
    "squeezenet": "classifier.2",  # a map per class, whose means are the logits
    "swin": "permute",  # channels first again
    "vgg": "features",
    "wide_resnet": "layer4",
}
"""Family -> the module whose output enters the last pooling."""

CHANNELS_LAST = {
    "convnext": re.compile(r"features\..+\.block\.[1-5]"),
    "swin": re.compile(r"(features(?!\.0\.0$).*|norm)"),
}
"""Family -> the modules whose output is (B, h, w, K)."""

NO_MAPS = {
    "maxvit": re.compile(r".+_attention\.(?!departition_op$).+"),  # (B, windows, positions, K)
    "swin": re.compile(r".+\.cpb_mlp.*"),  # of relative positions, not of the image
}
"""Family -> the modules whose output has four axes and is not a map of the image."""

WINDOWS = {
    "maxvit": "MaxViT attends within windows and grids of 7 x 7 places",
    "swin": "Swin attends within shifted windows of 7 x 7 or 8 x 8 patches",
}
"""Family -> why its attention is not shown."""


def of_family(table: dict[str, re.Pattern[str]], network: str, module: str) -> bool:
    """Whether the table has that module of that network."""
    return any(
        network.startswith(family) and pattern.fullmatch(module) is not None
        for family, pattern in table.items()
    )


def grid_of_tokens(y: Tensor, first: int, grid: tuple[int, int]) -> Tensor | None:
    """(B, F + N + R, K) -> (B, K, rows, columns)   the patches' vectors at their places.

    None where `y` is not of that many positions; those after the patches may be left off.
    """
    patches = grid[0] * grid[1]
    if y.dim() != 3 or y.shape[1] < first + patches:
        return None
    found: Tensor = y[:, first : first + patches].transpose(1, 2).unflatten(2, grid)
    return found
