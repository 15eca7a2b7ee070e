"""What a run would take is known before it begins: models and batches that no memory holds, and
stacks of many blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Result

from bigmodel_cli.assemble import assemble, kept_bytes, outline, outlines, starting
from bigmodel_cli.checkpoints import safe
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import SpecError
from bigmodel_cli.models import stacks
from bigmodel_cli.models.sizing import Oversize, watched
from bigmodel_cli.roles import named_weights
from bigmodel_cli.spec import load
from bigmodel_cli.train import room
from bigmodel_cli.train.rehearsal import dry_run

Cli = Callable[..., Result]
IMAGES = DatasetInfo(image_shape=(1, 8, 8), mean=(0.5,), std=(0.5,), classes=tuple("0123456789"))
TOKENS = DatasetInfo(vocab_size=20, context=16)
VIT = """\
model: {type: vit, dim: 16, patch: 4,
  blocks: [{mixer: {type: attention, num_heads: 2}, ffn: {type: gelu}}]}
data: {type: digits}
task: {type: classification}
train: {steps: 1}
"""
ABSURD = [
    ("decoder_spec", "model.dim=1000000000"),
    ("decoder_spec", "model.dim=300000"),
    ("decoder_spec", "model.max_len=1000000000"),
    ("decoder_spec", "model.vocab_size=1000000000"),
    ("decoder_spec", "model.blocks.0.mixer.num_heads=1000000000,model.blocks.0.mixer.head_dim=2"),
    ("decoder_spec", "model.blocks.0.mixer.head_dim=1000000000"),
    ("decoder_spec", "model.blocks.0.ffn.hidden=1000000000"),
    ("cnn_spec", "model.layers.0.channels=1000000000"),
    ("cnn_spec", "model.layers.0.channels=200000000,model.layers.0.groups=1"),
    ("vit_spec", "model.dim=1000000000"),
    ("vit_spec", "model.registers=1000000000"),
]


@pytest.fixture
def vit_spec(tmp_path: Path) -> Path:
    path = tmp_path / "vit.yaml"
    path.write_text(VIT)
    return path


@pytest.mark.parametrize(("family", "changes"), ABSURD, ids=[changes for _, changes in ABSURD])
def test_an_absurd_size_is_refused_with_its_bytes_before_memory_is_taken(
    family: str, changes: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 28: status 2, and nothing is drawn."""
    apart = changes.split(",") if "{" not in changes else [changes]
    spec = load(request.getfixturevalue(family), apart)
    for place in (outlines, starting):
        monkeypatch.setattr(place, "total_memory", lambda device: 25 * 10**9)
    monkeypatch.setattr(
        torch.Tensor, "uniform_", lambda w, *a, **k: w if w.is_meta else pytest.fail("it is drawn")
    )
    with pytest.raises(
        SpecError, match=r"[0-9.,]+ [a-zA-Z]*B (for|with) .*make the model smaller"
    ) as found:
        assemble(spec, TOKENS if family == "decoder_spec" else IMAGES, torch.device("cpu"))
    assert "recursion" not in str(found.value)


def test_memory_that_is_asked_for_is_seen_before_it_is_taken() -> None:
    """Row 28."""
    with pytest.raises(Oversize) as found, watched(1000):
        torch.nn.Linear(1 << 20, 1 << 30)
    assert found.value.shape == (1 << 30, 1 << 20)
    with watched(1000), torch.device("meta"):
        assert torch.nn.Linear(1 << 20, 1 << 20).weight.is_meta


@pytest.mark.parametrize("words", [[], ["--dry-run"]], ids=["training", "dry run"])
def test_a_batch_that_no_memory_holds_is_refused_with_the_micro_batch_that_fits(
    words: list[str], decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 88: status 2 before training, with the bytes."""
    for place in (outlines, starting, room):
        monkeypatch.setattr(place, "total_memory", lambda device: 10**6)
    sets = ["--set", "train.batch_size=100", "--set", "train.precision=fp32"]
    result = cli("pretrain", decoder_spec, "--out", "run", *words, *sets)
    assert result.status == 2
    assert "train.batch_size: a step of 100 samples at once needs about" in result.err
    assert ("FLOPs per sample" in result.out) == bool(words)  # a plan may be for another machine
    fitting = int(result.err.rpartition("set train.micro_batch_size: ")[2].partition(",")[0])
    assert 1 <= fitting < 50
    assert 100 % fitting == 0
    assert not Path("run/checkpoints").exists()
    assert (
        cli(
            "pretrain",
            decoder_spec,
            "--dry-run",
            *sets,
            "--set",
            f"train.micro_batch_size={fitting}",
        ).status
        == 0
    )


def test_an_ordinary_batch_is_not_computed_on_the_meta_device(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 88: the plan costs ordinary specs no time."""
    monkeypatch.setattr(room, "outline", lambda *a: pytest.fail("it is computed"))
    assert cli("pretrain", decoder_spec, "--set", "train.steps=1").status == 0


@pytest.mark.parametrize("batch", ["4", "200"])
def test_many_equal_blocks_cost_what_they_would_one_by_one(
    batch: str, decoder_spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 87: 2,000 blocks in seconds, by a short model; the figures and the layers are those of
    the whole one.
    """
    other = "model.blocks.0.ffn={type: swiglu}"
    spec = load(decoder_spec, [f"train.batch_size={batch}", "model.blocks.0.repeat=9", other])
    short = dry_run(spec, "cpu")
    monkeypatch.setattr(stacks, "LONG", 6)
    assert dry_run(spec, "cpu") == short


def test_a_dry_run_of_two_thousand_blocks_looks_at_few(decoder_spec: Path) -> None:
    """Row 87."""
    spec = load(decoder_spec, ["model.blocks.0.repeat=2000"])
    short, found, more = stacks.shortened(spec.model)
    assert [short.blocks[0].repeat, *(m.blocks[0].repeat for m in more)] == [4, 5]
    assert [(s.first, s.count, s.kept) for s in found] == [(0, 2000, 4)]
    alike = [
        spec.model.blocks[0].model_copy(update={"repeat": 1})
    ] * 50  # one by one, as a generator of specs writes them
    assert [
        s.count for s in stacks.shortened(spec.model.model_copy(update={"blocks": alike}))[1]
    ] == [50]


def test_more_tensors_than_a_checkpoint_lists_are_refused_before_training(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 28: a run whose checkpoints could not be read again does not begin; what is let through
    can be read.
    """
    assert cli("pretrain", decoder_spec, "--out", "run", "--set", "train.steps=1").status == 0
    (checkpoint,) = Path("run/checkpoints").glob("step-*")
    texts = [(checkpoint / "manifest.json").read_bytes()]
    for name in ("model.safetensors", "train_state.safetensors"):
        content = (checkpoint / name).read_bytes()
        texts.append(content[8 : 8 + int.from_bytes(content[:8], "little")])
    most = max(sum(text.count(sign) for sign in (b",", b":", b"[", b"{")) for text in texts)
    monkeypatch.setattr(safe, "MOST_VALUES", most)
    result = cli("pretrain", decoder_spec, "--out", "other", "--set", "train.steps=1")
    assert (result.status, Path("other/checkpoints").exists()) == (2, False)
    assert "tensors, with the optimizer's" in result.err
    monkeypatch.setattr(safe, "MOST_VALUES", most + 1100)  # the rest of the manifest has fewer
    assert cli("pretrain", decoder_spec, "--out", "other", "--set", "train.steps=1").status == 0


SHRINKS = """\
model:
  type: cnn
  layers:
    - {type: conv, channels: 4, stride: 1000000000, norm: batch}
    - {type: flatten}
    - {type: dense, units: classes}
data: {type: digits}
task: {type: classification}
train: {steps: 1, batch_size: 4, precision: fp32, memory_format: contiguous}
"""


def test_batch_normalisation_of_one_value_is_not_timed(tmp_path: Path, cli: Cli) -> None:
    """Row 28: a map of 1 x 1 has one value for each channel and sample."""
    spec = tmp_path / "shrinks.yaml"
    spec.write_text(SHRINKS)
    assert cli("bench", spec, "--seconds", "0.1").status == 0
    alone = cli("bench", spec, "--seconds", "0.1", "--set", "train.micro_batch_size=1")
    assert (alone.status, "let more samples pass at once" in alone.err) == (2, True), alone.err


def test_a_sample_of_a_billion_tokens_is_refused_before_training(decoder_spec: Path) -> None:
    """Row 28: its random numbers took 4 GB at the end of the run, which was then status 5."""
    with pytest.raises(SpecError, match=r"task\.sample_tokens"):
        load(decoder_spec, ["task.sample_tokens=1000000000"])


def test_a_batch_that_no_memory_holds_is_not_timed(cli: Cli, decoder_spec: Path) -> None:
    """Row 88: refused before a batch of 10^9 samples is made."""
    result = cli("bench", decoder_spec, "--set", "train.batch_size=1000000000")
    assert result.status == 2
    assert "train.batch_size: a step of 1,000,000,000 samples at once needs about" in result.err


@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "muon"])
def test_the_plan_counts_the_state_that_an_optimizer_keeps_of_each_weight(
    decoder_spec: Path, optimizer: str
) -> None:
    spec = load(decoder_spec, [f"train.optimizer={optimizer}"])
    state = kept_bytes(spec, outline(spec, TOKENS).weights)[2]
    kept = spec.train.optimizer.build(named_weights(spec.model.build(TOKENS))).state_dict()
    assert state == sum(tensor.nbytes for tensor in kept.values())
