"""Masked image modelling: what it hides, that it learns, that its encoder is finetuned, and what is
refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import ROOT, Result, digests, loss_of, scores_of
from PIL import Image
from torch import Tensor, nn

from bigmodel_cli import checkpoints
from bigmodel_cli.data.order import keys_of
from bigmodel_cli.draw import KEY
from bigmodel_cli.errors import SpecError
from bigmodel_cli.tasks.masked_image import MaskedImage, MaskedImageOptions

Cli = Callable[..., Result]
BLOCK = "{repeat: 2, mixer: {type: attention, num_heads: 2}, ffn: {type: gelu}}"
MODEL = (
    "model: {type: vit, dim: 32, patch: 2, pool: mean, position: sines, init_std: 0.1, blocks:"
    f" [{BLOCK}]"
)
TRAIN = (
    "train: {precision: fp32, memory_format: contiguous, compile: 'off', batch_size: 64,"
    " log_every: 1,"
)
DECODER = "{dim: 16, blocks: [{mixer: {type: attention, num_heads: 2}, ffn: {type: gelu}}]}"
MAE = f"""\
{MODEL}, reconstruct: {DECODER}}}
data: {{type: digits, labels: false}}
task: {{type: masked_image}}
{TRAIN} steps: 8, validate_every: 4, optimizer: {{lr: 3e-3}}}}
"""
LABELS = f"""\
{MODEL}}}
data: {{type: digits, label_fraction: 0.5}}
task: {{type: classification}}
{TRAIN} steps: 4}}
"""


class Spy(nn.Module):
    """Two patches of a pixel in each direction; it keeps what it was shown and rebuilds everything
    as `value`.
    """

    grid = (4, 4)

    def __init__(self, value: float = 0.0) -> None:
        super().__init__()
        self.value = value
        self.seen: list[Tensor] = []

    def patchify(self, images: Tensor) -> Tensor:
        return nn.functional.unfold(images, 2, stride=2).transpose(1, 2)

    def unpatchify(self, patches: Tensor) -> Tensor:
        return nn.functional.fold(patches.transpose(1, 2), (8, 8), 2, stride=2)

    def forward(self, images: Tensor, visible: Tensor) -> Tensor:
        self.seen.append(visible)
        return torch.full_like(self.patchify(images), self.value)


def hidden(visible: Tensor) -> Tensor:
    """(B, N) True where a patch is hidden."""
    return torch.ones(len(visible), 16, dtype=torch.bool).scatter(1, visible, False)


def test_the_error_is_the_mean_over_hidden_patches_alone() -> None:
    images, spy = torch.randn(6, 3, 8, 8), Spy(0.5)
    for normalize in (True, False):
        task = MaskedImageOptions(mask_ratio=0.5, normalize=normalize).build()
        total, count = loss_of(task, spy, {"image": images, "key": keys_of(0, 0, np.arange(6))})
        gone, errors = hidden(spy.seen[-1]), []
        for image, row in zip(images, gone, strict=True):
            for place in row.nonzero()[:, 0].tolist():
                y, x = 2 * (place // 4), 2 * (place % 4)
                patch = image[:, y : y + 2, x : x + 2].double()
                if normalize:
                    patch = (patch - patch.mean()) / (patch.var() + 1e-6).sqrt()
                errors.append((patch - 0.5).square().mean())
        assert gone.sum(1).tolist() == [8] * 6
        assert int(count) == 6
        torch.testing.assert_close(
            total.double() / count, torch.stack(errors).mean(), atol=1e-5, rtol=1e-5
        )


def test_training_hides_others_and_evaluation_the_same_of_an_image() -> None:
    images, spy, task = torch.randn(32, 1, 8, 8), Spy(), MaskedImageOptions().build()
    for epoch in range(2):
        loss_of(task, spy, {"image": images, "key": keys_of(0, epoch, np.arange(32))})
    assert not torch.equal(spy.seen[0], spy.seen[1])
    assert hidden(spy.seen[0]).sum(1).tolist() == [12] * 32
    assert (spy.seen[0].diff(dim=1) > 0).all()  # in the image's order
    keys = keys_of(0, 0, np.arange(32))
    whole = scores_of(task, spy, {"image": images, "key": keys})["loss"]
    chosen = spy.seen[-1]
    torch.manual_seed(1)
    alone = [
        scores_of(task, spy, {"image": images[i : i + 1], "key": keys[i : i + 1]})["loss"]
        for i in range(32)
    ]
    assert torch.equal(torch.cat(spy.seen[-32:]), chosen)
    torch.testing.assert_close(whole[0], torch.cat([sums for sums, _ in alone]))
    assert whole[1].tolist() == [1] * 32
    assert len({tuple(row.tolist()) for row in chosen}) > 25  # images differ in what is hidden
    assert abs(float(hidden(chosen).float().mean(0).std())) < 0.15  # and no place is preferred


def test_patches_are_hidden_evenly_and_by_pairs_as_by_chance() -> None:
    images, spy = torch.zeros(4000, 1, 8, 8), Spy()
    loss_of(
        MaskedImageOptions(mask_ratio=0.5).build(),
        spy,
        {"image": images, "key": keys_of(9, 2, np.arange(4000))},
    )
    gone = hidden(spy.seen[-1]).double()
    assert float((gone.mean(0) - 0.5).abs().max()) < 5 * 0.5 / 4000**0.5
    both = (gone.T @ gone / 4000)[~torch.eye(16, dtype=torch.bool)]
    assert float((both - 0.5 * 7 / 15).abs().max()) < 5 * (0.2333 * 0.7667 / 4000) ** 0.5


def test_reconstruction_keeps_visible_patches() -> None:
    images, spy = torch.randn(3, 1, 8, 8), Spy(7.0)
    task: Any = MaskedImageOptions(normalize=False).build()
    seen, rebuilt = task.rebuild(spy, {"image": images, "key": keys_of(0, 0, np.arange(3))})
    gone = hidden(spy.seen[-1])[..., None].expand(-1, -1, 4)
    there = spy.unpatchify(gone.float()) == 0
    assert torch.equal(seen[there], images[there])
    assert torch.equal(rebuilt[there], images[there])
    assert not seen[~there].any()
    assert (rebuilt[~there] == 7).all()


@pytest.mark.parametrize(
    ("fraction", "patches", "seen"), [(0.75, 64, 16), (0.75, 16, 4), (0.5, 9, 4), (0.9, 10, 1)]
)
def test_how_many_stay_visible(fraction: float, patches: int, seen: int) -> None:
    assert MaskedImageOptions(mask_ratio=fraction).visible(patches) == seen


def test_fractions_that_hide_all_or_nothing() -> None:
    for fraction, message in ((0.99, "leaves none visible"), (0.01, "hides none")):
        with pytest.raises(
            SpecError, match=rf"task.mask_ratio: {fraction} of the image's 16 patches {message}"
        ):
            MaskedImageOptions(mask_ratio=fraction).visible(16)


@pytest.fixture
def mae(cli: Cli) -> Path:
    """A tiny masked autoencoder of digits, trained for a few steps."""
    Path("mae.yaml").write_text(MAE)
    Path("labels.yaml").write_text(LABELS)
    result = cli("pretrain", "mae.yaml", "--out", "mae")
    assert result.status == 0, result.err
    return Path(result.out.strip())


@pytest.mark.no_cover
def test_pretraining_learns_and_leaves_a_picture(mae: Path, cli: Cli) -> None:
    result = cli("pretrain", "mae.yaml", "--out", "long", "--set", "train.steps=120")
    assert result.status == 0, result.err
    assert (
        "rebuilt images: long/rebuilt.png, each hidden patch at its true mean and deviation"
        in result.err
    )
    assert min(Image.open("long/rebuilt.png").size) > 300
    records = [json.loads(line) for line in Path("long/metrics.jsonl").read_text().splitlines()]
    losses = [r["val"]["loss"] for r in records if "val" in r]
    assert losses[-1] < 0.9 * losses[0]
    scored = json.loads(cli("eval", "long", "--split", "val", "--json").out)
    assert scored["loss"] == pytest.approx(losses[-1], abs=1e-5)
    assert scored["metrics"]["loss"]["count"] == 143  # a tenth of 1,433
    dropped = set(checkpoints.read(mae, train_state=False).model)
    assert not any(name.startswith("head") or "table" in name for name in dropped)


def test_its_encoder_is_finetuned_under_the_same_names(mae: Path, cli: Cli) -> None:
    result = cli(
        "finetune",
        "--from",
        mae,
        "labels.yaml",
        "--out",
        "tuned",
        "--set",
        "train.optimizer.lr=1e-30",
    )
    assert result.status == 0, result.err
    before, after = (
        checkpoints.read(p, train_state=False) for p in (mae, Path(result.out.strip()))
    )
    decoder = {name for name in before.model if name.startswith("decoder.")}
    assert f"weights: {len(before.model) - len(decoder)} tensors from {mae}" in result.err
    assert "newly initialised, since the classes differ: head.weight, head.bias" in result.err
    (ignored,) = (line for line in result.err.splitlines() if "ignored of the checkpoint: " in line)
    assert set(ignored.split("checkpoint: ")[1].split(", ")) == decoder
    assert after.model.keys() == before.model.keys() - decoder | {"head.weight", "head.bias"}
    weights, first = after.model.load(), before.model.load()
    for name in before.model.keys() - decoder:
        torch.testing.assert_close(weights[name], first[name], msg=name)
    assert (after.info["mean"], after.info["std"]) == (before.info["mean"], before.info["std"])
    # half of the 1,290 that are not held out, class by class
    assert re.search(r"data: 64\d training samples", result.err)
    assert json.loads(cli("eval", "tuned", "--json").out)["metrics"]["accuracy"]["count"] == 364
    # the same file, without the autoencoder
    scratch = cli("pretrain", "labels.yaml", "--out", "scratch")
    assert scratch.status == 0, scratch.err
    assert (
        checkpoints.read(Path(scratch.out.strip()), train_state=False).info["mean"]
        == before.info["mean"]
    )


def test_with_labelled_data_the_task_alone_decides_that_the_head_is_new(cli: Cli) -> None:
    Path("mae.yaml").write_text(MAE.replace(", labels: false", ""))
    assert cli("pretrain", "mae.yaml", "--out", "mae").status == 0
    words = ["finetune", "--from", "mae", "--out", "tuned", "--set", "task={type: classification}"]
    result = cli(*words)
    assert (result.status, "model.reconstruct is for task.type: masked_image" in result.err) == (
        2,
        True,
    )
    result = cli(*words, "--set", "model.reconstruct=null")
    assert result.status == 0, result.err
    assert "newly initialised, since the task differs: head.weight, head.bias" in result.err
    assert "ignored of the checkpoint: decoder.blocks.0." in result.err
    # the same task goes on with the decoder
    again = cli("finetune", "--from", "mae", "--out", "more")
    assert again.status == 0, again.err
    assert "newly initialised" not in again.err
    assert "ignored" not in again.err


def test_a_stopped_pretraining_goes_on_exactly(mae: Path, cli: Cli, zygote: Any) -> None:
    from zygote import resume_command

    stopped = zygote.run(
        "pretrain", "mae.yaml", "--out", "run", env={"BIGMODEL_FAILPOINT": "train.step:SIGTERM:3"}
    )
    assert stopped.status == 143, stopped.err
    resumed = cli(*resume_command(stopped.err))
    assert resumed.status == 0, resumed.err
    assert digests(Path(resumed.out.strip())) == digests(mae)


def test_accumulation_gives_the_same_gradient() -> None:
    from bigmodel_cli.config import DatasetInfo
    from bigmodel_cli.models.vit import ViT, ViTOptions

    values = {**yaml.safe_load(MAE)["model"]}
    model = ViT(ViTOptions.model_validate(values), DatasetInfo(image_shape=(1, 8, 8)))
    task: MaskedImage = MaskedImageOptions().build()
    images, keys = torch.randn(8, 1, 8, 8), keys_of(3, 0, np.arange(8))

    def errors(rows: slice) -> torch.Tensor:
        return task.errors(*task.forward(model, {"image": images[rows], KEY: keys[rows]}))

    whole = errors(slice(None))
    parts = [errors(slice(i, i + 2)) for i in range(0, 8, 2)]
    torch.testing.assert_close(torch.cat(parts), whole)


def test_a_network_without_a_head_cannot_label(mae: Path, cli: Cli) -> None:
    Image.new("L", (8, 8)).save("a.png")
    result = cli("predict", "mae", "a.png")
    assert result.status == 2
    assert (
        "has no head to label them; finetune it first: bigmodel finetune --from CKPT" in result.err
    )
    looked = json.loads(cli("attend", "mae", "a.png", "--json").out)
    assert looked["layers"]  # its heads look all the same


def test_dry_run_and_bench_count_visible_patches(mae: Path, cli: Cli) -> None:
    seen = {}
    for fraction in (0.5, 0.75):
        plan = json.loads(
            cli(
                "pretrain",
                "mae.yaml",
                "--dry-run",
                "--json",
                "--set",
                f"task.mask_ratio={fraction}",
            ).out
        )
        seen[fraction] = {layer["path"]: layer["shape"] for layer in plan["layers"]}
    assert seen[0.75]["blocks.1"] == [1, 4, 32]
    assert seen[0.5]["blocks.1"] == [1, 8, 32]
    assert seen[0.75]["decoder"] == [1, 16, 4]
    result = cli("bench", mae, "--seconds", 0.1, "--json")
    assert result.status == 0, result.err
    assert json.loads(result.out)["benchmarks"][0]["unit"] == "samples"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["model.reconstruct=null"], "has no decoder; give model.reconstruct"),
        (["model={type: cnn, layers: [{type: flatten}, {type: dense, units: 4}]}"],
         "model.type: cnn cannot; use vit"),
        (["model.patch=3"], "model.patch: 3 does not divide the image of 8 x 8"),
        (["task.mask_ratio=0.99"],
         "task.mask_ratio: 0.99 of the image's 16 patches leaves none visible"),
        (["task.mask_ratio=0.01"], "task.mask_ratio: 0.01 of the image's 16 patches hides none"),
        (["task.mask_ratio=1.0"], "task.mask_ratio: 1.0 is not less than 1"),
        (["task.mask_ratio=0.0"], "task.mask_ratio: 0.0 is not greater than 0"),
        (["task.type=classification", "model.reconstruct=null"],
         "classification needs data with labels, and data.type: digits"),
        (["data={type: text, files: [mae.yaml], context: 8, tokenizer: {type: characters}}"],
         "needs data with images"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dry", [False, True])
def test_masked_image_options_that_do_not_fit_are_refused(
    changes: list[str], message: str, dry: bool, cli: Cli
) -> None:
    Path("mae.yaml").write_text(MAE)
    words = [w for change in changes for w in ("--set", change)]
    result = cli("pretrain", "mae.yaml", "--out", "run", *words, *(["--dry-run"] if dry else []))
    assert (result.status, message in result.err) == (2, True), result.err
    assert not Path("run/checkpoints").exists()


def test_the_sample_specs_are_one_network(data_root: Path, cli: Cli) -> None:
    smaller = [
        w
        for c in ("train.batch_size=8", "train.precision=fp32", "model.blocks.0.repeat=2")
        for w in ("--set", c)
    ]
    smaller += [
        "--set",
        "train.epochs=null",
        "--set",
        "train.steps=2",
        "--set",
        "train.validate_epochs=null",
    ]
    samples = ROOT / "sample_configs"
    digits = ["--set", "data={type: digits, size: 8, channels: 3, labels: false}"]
    pretrained = cli("pretrain", samples / "cifar10_mae.yaml", "--out", "mae", *smaller, *digits)
    assert pretrained.status == 0, pretrained.err
    digits[1] = digits[1].replace("labels: false", "label_fraction: 0.1")
    tuned = cli(
        "finetune",
        "--from",
        "mae",
        samples / "cifar10_finetune.yaml",
        "--out",
        "tuned",
        *smaller,
        *digits,
    )
    assert tuned.status == 0, tuned.err
    assert "newly initialised, since the classes differ: head.weight, head.bias" in tuned.err
    scratch = cli(
        "pretrain", samples / "cifar10_finetune.yaml", "--out", "scratch", *smaller, *digits
    )
    assert scratch.status == 0, scratch.err
