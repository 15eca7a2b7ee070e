"""Networks whose weights are replaced at once are built without drawing any."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.models import MODELS, build, within

IMAGES = DatasetInfo(image_shape=(3, 32, 32), classes=("a", "b"), mean=(0.5,) * 3, std=(0.5,) * 3)
BLOCK = {"mixer": {"type": "attention", "num_heads": 2}, "ffn": {"type": "gelu"}}
NETWORKS = {
    "vit": {"dim": 8, "patch": 8, "blocks": [BLOCK], "registers": 1},
    "torchvision": {"name": "vit_b_32"},
    "cnn": {"layers": [{"type": "flatten"}, {"type": "dense", "units": "classes"}]},
}


@pytest.fixture
def poisoned() -> Iterator[None]:
    """New memory holds NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("poisoned")
@pytest.mark.parametrize("kind", sorted(NETWORKS))
def test_building_ends_whatever_is_in_memory(kind: str) -> None:
    options = MODELS[kind].model_validate({"type": kind, **NETWORKS[kind]})
    with torch.device("meta"):
        weights = build(options, IMAGES).state_dict()
    before = torch.nn.init.trunc_normal_
    with within(weights, draw=False):
        model = build(options, IMAGES)
    assert torch.nn.init.trunc_normal_ is before
    assert any(bool(p.isnan().any()) for p in model.parameters())
    drawn = build(options, IMAGES)
    assert not any(bool(p.isnan().any()) for p in drawn.parameters())
