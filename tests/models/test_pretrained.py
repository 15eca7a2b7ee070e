"""Pretrained weights of torchvision fill every tensor but a new head; nothing is left out in
silence.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor
from torchvision.models._api import WeightsEnum

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import SpecError
from bigmodel_cli.models import build
from bigmodel_cli.models.torchvision import TorchvisionOptions

Weights = dict[str, Tensor]
NETWORK = "shufflenet_v2_x0_5"


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch) -> Callable[[Weights], None]:
    """Puts weights in the place of every download."""

    def put(weights: Weights) -> None:
        monkeypatch.setattr(WeightsEnum, "get_state_dict", lambda self, **options: dict(weights))

    return put


def published(name: str, **options: int) -> Weights:
    """Weights as torchvision's file has them: of 1,000 classes, every number drawn."""
    torch.manual_seed(1)
    state = torchvision.models.get_model(name, weights=None, **options).state_dict()
    return {n: torch.randn(t.shape) if t.is_floating_point() else t + 7 for n, t in state.items()}


def filled(name: str, classes: int = 3, side: int = 64) -> Weights:
    torch.manual_seed(2)
    info = DatasetInfo(image_shape=(3, side, side), classes=tuple(map(str, range(classes))))
    return dict(build(TorchvisionOptions(name=name, weights="DEFAULT"), info).state_dict())


def test_all_but_a_new_head_is_filled(
    file: Callable[[Weights], None], capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = published(NETWORK)
    file(theirs)
    ours = filled(NETWORK)
    assert ours.keys() == theirs.keys()
    assert {n for n in ours if not torch.equal(ours[n], theirs[n])} == {"fc.weight", "fc.bias"}
    assert capsys.readouterr().err.splitlines() == [
        f"weights: {len(theirs) - 2} tensors of {NETWORK}'s IMAGENET1K_V1",
        "newly initialised, since the classes differ: fc.weight, fc.bias",
    ]


def test_a_head_of_as_many_classes_is_filled_too(file: Callable[[Weights], None]) -> None:
    theirs = published(NETWORK)
    file(theirs)
    ours = filled(NETWORK, classes=1000)
    assert all(torch.equal(ours[n], theirs[n]) for n in theirs)


def test_densenets_old_names_are_read(file: Callable[[Weights], None]) -> None:
    theirs = published("densenet121")
    old = {}
    for name, tensor in theirs.items():
        for word in ("norm1", "conv1", "norm2", "conv2"):
            if "denselayer" in name:
                name = name.replace(f".{word}.", f".{word[:-1]}.{word[-1]}.")
        old[name] = tensor
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    # as old files are
    file({n: t for n, t in old.items() if not n.endswith("num_batches_tracked")})
    ours = filled("densenet121")
    weights = {n for n in ours if not n.endswith("num_batches_tracked")}
    assert {n for n in weights if not torch.equal(ours[n], theirs[n])} == {
        "classifier.weight",
        "classifier.bias",
    }


def test_further_heads_of_a_file_are_named(
    file: Callable[[Weights], None], capsys: pytest.CaptureFixture[str]
) -> None:
    file({**published(NETWORK), "aux1.fc2.weight": torch.ones(1), "aux1.fc2.bias": torch.ones(1)})
    filled(NETWORK)
    assert capsys.readouterr().err.splitlines()[-1] == "ignored of the weights: aux1"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"conv5.0.weight": None},
            r"conv5.0.weight is not there in the file, and has the shape \[1024, 192, 1, 1\]",
        ),
        (
            {"conv5.0.weight": torch.ones(3)},
            r"conv5.0.weight has the shape \[3\] in the file, and has the shape \[1024, ",
        ),
        (
            {"more": torch.ones(3)},
            r"more has the shape \[3\] in the file, and is not there in the network",
        ),
        ({"fc.weight": None}, r"fc.weight is not there in the file"),
    ],
    ids=["missing", "misshapen", "not wanted", "without a head"],
)
def test_other_weights_are_refused(
    change: dict[str, Tensor | None], message: str, file: Callable[[Weights], None]
) -> None:
    file({n: t for n, t in {**published(NETWORK), **change}.items() if t is not None})
    with pytest.raises(SpecError, match=rf"^model.weights: IMAGENET1K_V1 does not fit: {message}"):
        filled(NETWORK)


def test_position_embeddings_of_another_image_size_are_refused(
    file: Callable[[Weights], None],
) -> None:
    with torch.device("meta"):
        file(dict(torchvision.models.vit_b_16(image_size=224).state_dict()))
        assert filled("vit_b_16", side=224)["encoder.pos_embedding"].is_meta
        with pytest.raises(
            SpecError,
            match=(
                r"encoder.pos_embedding has the shape \[1, 197, 768\] in the file, and .*\[1, 17,"
            ),
        ):
            filled("vit_b_16", side=64)
