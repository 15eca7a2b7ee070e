"""Files of torchvision's weights: which network they are of is proven; equal logits both ways."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from conftest import Result
from PIL import Image
from safetensors.torch import save_file

from bigmodel_cli import checkpoints
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.convert import opening
from bigmodel_cli.convert.torchvision import describe, save
from bigmodel_cli.errors import CheckpointError, SpecError
from bigmodel_cli.models import build
from bigmodel_cli.models.decoder import DecoderOptions
from bigmodel_cli.models.torchvision import TorchvisionOptions


def network(name: str, classes: int = 7, **options: Any) -> Any:
    """A network of torchvision, every number drawn."""
    torch.manual_seed(5)
    model = torchvision.models.get_model(name, weights=None, num_classes=classes, **options)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                low = 0.5 if key.endswith(("running_var", "norm.weight", "bn.weight")) else -0.05
                tensor.uniform_(low, low + 0.1)
    return model.eval()


def opened(path: Path) -> tuple[Any, DatasetInfo]:
    contents = opening.read(path)
    info = DatasetInfo.from_json(contents.info)
    ours = build(TorchvisionOptions.model_validate(contents.spec["model"]), info).eval()
    checkpoints.load_weights(ours, contents.model)
    return ours, info


def logits(model: Any, side: int) -> torch.Tensor:
    x = torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        y: torch.Tensor = model(x)
    return y


@pytest.mark.parametrize(
    ("name", "side", "options"),
    [
        ("shufflenet_v2_x0_5", 64, {}),
        ("squeezenet1_1", 64, {}),
        ("mobilenet_v3_small", 64, {}),
        pytest.param("regnet_y_400mf", 64, {}, marks=pytest.mark.slow),
        pytest.param("vit_b_32", 64, {"image_size": 64}, marks=pytest.mark.slow),
        pytest.param("maxvit_t", 224, {"input_size": (224, 224)}, marks=pytest.mark.slow),
        pytest.param("swin_v2_t", 64, {}, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", 64, {}, marks=pytest.mark.slow),
        pytest.param("vgg11_bn", 64, {}, marks=pytest.mark.slow),
        pytest.param("resnext50_32x4d", 64, {}, marks=pytest.mark.slow),
        pytest.param("mnasnet0_5", 64, {}, marks=pytest.mark.slow),
        pytest.param("efficientnet_b0", 64, {}, marks=pytest.mark.slow),
    ],
)
def test_the_network_is_found_by_its_tensors(
    name: str, side: int, options: dict[str, Any], tmp_path: Path
) -> None:
    theirs = network(name, **options)
    torch.save(theirs.state_dict(), tmp_path / "mine.pth")
    ours, info = opened(tmp_path / "mine.pth")
    assert info.classes == tuple("0123456")
    assert torch.equal(logits(ours, side), logits(theirs, side))
    path = save(tmp_path, TorchvisionOptions(name=name), info, ours.state_dict())
    beside = json.loads(path.with_suffix(".json").read_text())
    again = torchvision.models.get_model(beside["name"], weights=None, **beside["arguments"])
    written = torch.load(path, weights_only=True)
    again.load_state_dict(written, strict=True)
    assert torch.equal(logits(again.eval(), side), logits(theirs, side))
    before = theirs.state_dict()
    assert before.keys() == written.keys()
    assert all(torch.equal(before[n], written[n]) for n in before)


def test_what_is_known_beside_the_weights_comes_back(tmp_path: Path) -> None:
    model = network("squeezenet1_0", 3)
    info = DatasetInfo(
        image_shape=(3, 40, 48), classes=("a", "b", "c"), mean=(0.1, 0.2, 0.3), std=(1.0, 2.0, 3.0)
    )
    path = save(tmp_path, TorchvisionOptions(name="squeezenet1_0"), info, model.state_dict())
    save_file(model.state_dict(), path.with_suffix(".safetensors"))
    assert describe(path).info == describe(path.with_suffix(".safetensors")).info == info
    path.with_suffix(".json").write_text('{"classes": ["a", "a", "b"]}')
    describe.__globals__["_describe"].cache_clear()
    with pytest.raises(CheckpointError, match="classes: not 3 different names"):
        describe(path)


def test_a_file_of_torchvisions_own_brings_labels_and_normalisation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "draft.pth"
    torch.save(network("googlenet", 1000, aux_logits=True, init_weights=False).state_dict(), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    path = path.rename(tmp_path / f"googlenet-{digest[:8]}.pth")
    weights = torchvision.models.GoogLeNet_Weights.IMAGENET1K_V1
    monkeypatch.setattr(type(weights), "url", f"https://any/{path.name}")
    said = " ".join(opening.read(path).notes)
    found = describe(path).info
    assert found.classes == tuple(weights.meta["categories"])
    assert found.mean == (0.5, 0.5, 0.5)  # its forward would normalise once more
    assert "ignored, heads for training alone: aux1, aux2" in said
    assert "torchvision's GoogLeNet_Weights.IMAGENET1K_V1" in said
    other = tmp_path / "googlenet-00000000.pth"
    path.rename(other)
    monkeypatch.setattr(type(weights), "url", f"https://any/{other.name}")
    assert describe(other).info.classes[0] == "0"  # its content is not that of the name


def test_inception_normalises_as_torchvision_does(tmp_path: Path) -> None:
    theirs = network("inception_v3", aux_logits=True, transform_input=True, init_weights=False)
    torch.save(theirs.state_dict(), tmp_path / "a.pth")
    ours, info = opened(tmp_path / "a.pth")
    pixels = torch.rand(1, 3, 80, 80, generator=torch.Generator().manual_seed(1))
    usual = torchvision.transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    with torch.no_grad():
        want = theirs(usual(pixels))
        got = ours(torchvision.transforms.Normalize(info.mean, info.std)(pixels))
    assert float((got - want).abs().max() / want.abs().max()) < 1e-5


def test_old_files(tmp_path: Path) -> None:
    """DenseNet's old names, in the layout of torch.save from before 2020, without counters."""
    theirs = network("densenet121")
    old = {
        re.sub(r"(denselayer\d+\.(?:norm|conv))([12])", r"\1.\2", name): tensor
        for name, tensor in theirs.state_dict().items()
        if not name.endswith("num_batches_tracked")
    }
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "a.pth", _use_new_zipfile_serialization=False)
    ours, _ = opened(tmp_path / "a.pth")
    assert torch.equal(logits(ours, 64), logits(theirs, 64))


def test_half_precision_is_read(tmp_path: Path) -> None:
    state = network("squeezenet1_1").state_dict()
    half = {n: t.half() if t.is_floating_point() else t for n, t in state.items()}
    save_file(half, tmp_path / "a.safetensors")
    ours, _ = opened(tmp_path / "a.safetensors")
    assert all(torch.equal(t, half[n].float()) for n, t in ours.state_dict().items())


def hostile(kind: str, path: Path) -> None:
    if kind == "text":
        path.write_bytes(b"not a pickle at all")
    elif kind == "another":
        torch.save({"a.weight": torch.zeros(3, 4), "b.weight": torch.zeros(2, 3)}, path)
    elif kind == "a list":
        torch.save([torch.zeros(3)], path)
    elif kind == "nested":
        torch.save({"epoch": 3, "state_dict": {}}, path)
    elif kind == "code":
        torch.save({"a": print}, path)
    elif kind == "bomb":
        torch.save({"a": torch.zeros(1_000_000)}, path)
        with (
            zipfile.ZipFile(path) as whole,
            zipfile.ZipFile(path.with_suffix(".zip"), "w", zipfile.ZIP_DEFLATED) as small,
        ):
            for name in whole.namelist():
                small.writestr(name, whole.read(name))
        path.with_suffix(".zip").rename(path)
    elif kind == "almost":
        state = network("squeezenet1_1").state_dict()
        state["features.0.bias"] = torch.zeros(8, 8)
        torch.save(state, path)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("text", "a pickle that is refused"),
        ("another", "its 2 tensors, the first of which is a.weight, are not those of a classifica"),
        ("a list", "holds a list, not tensors"),
        ("nested", "'epoch' is not a tensor of numbers"),
        ("code", "a pickle that is refused"),
        ("bomb", "is compressed"),
        ("almost", "are not those of a classification network"),
    ],
)
def test_what_is_not_a_networks_weights_is_refused(kind: str, message: str, tmp_path: Path) -> None:
    hostile(kind, tmp_path / "resnet18.pth")
    with pytest.raises(CheckpointError, match=message):
        describe(tmp_path / "resnet18.pth")


def test_a_model_of_blocks_is_not_written_for_torchvision(tmp_path: Path) -> None:
    options = DecoderOptions.model_validate({"dim": 8, "blocks": [{"ffn": {"type": "gelu"}}]})
    with pytest.raises(SpecError, match="decoder is not one of torchvision's networks"):
        save(tmp_path, options, DatasetInfo(), {})


def test_from_the_command_line(tmp_path: Path, cli: Callable[..., Result]) -> None:
    """Read, finetuned on three classes with a new head, written, and read again."""
    torch.save(network("squeezenet1_1", 10).state_dict(), tmp_path / "mine.pth")
    for name, colour in (("red", (255, 0, 0)), ("green", (0, 255, 0)), ("blue", (0, 0, 255))):
        (tmp_path / "images" / name).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (40, 40), colour).save(tmp_path / "images" / name / f"{i}.png")
    (tmp_path / "spec.yaml").write_text(
        f"data: {{type: image_folder, root: {tmp_path / 'images'}, val_fraction: 0}}\n"
        "train: {steps: 1, batch_size: 6, precision: fp32, memory_format: contiguous,"
        " compile: 'off'}\n"
    )
    done = cli(
        *("finetune", "--from", tmp_path / "mine.pth", tmp_path / "spec.yaml"),
        *("--out", tmp_path / "run", "--device", "cpu"),
    )
    assert done.status == 0, done.err
    said = " ".join(done.err.split())
    assert "the weights of torchvision's squeezenet1_1, by their names and shapes" in said
    assert "since the classes differ: classifier.1.weight, classifier.1.bias" in said
    facts = json.loads((Path(done.out.strip()) / "facts.json").read_text())
    assert facts["mean"] == [0.485, 0.456, 0.406]  # that of the weights, not of the images
    done = cli("export", tmp_path / "run", "--to", "torchvision", tmp_path / "out")
    assert done.status == 0, done.err
    written = json.loads((tmp_path / "out" / "squeezenet1_1.json").read_text())
    assert written["classes"] == ["blue", "green", "red"]
    image = tmp_path / "images" / "red" / "0.png"
    answers = [
        json.loads(cli("predict", model, image, "--device", "cpu").out)["top"]
        for model in (tmp_path / "run", tmp_path / "out" / "squeezenet1_1.pth")
    ]
    assert answers[0] == answers[1]
    done = cli("import", tmp_path / "mine.pth")
    assert "# mine.pth: torchvision's squeezenet1_1" in done.out.replace(f"{tmp_path}/", "")
    assert "name: squeezenet1_1" in done.out
    assert "root:" not in done.out
    (tmp_path / "mine.pth").write_text("text")
    assert cli("predict", tmp_path / "mine.pth", image).status == 4
