"""Heads over a run's checkpoints: figures by dense weights, and when induction appears."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import Result
from looks import made
from torch import Tensor

from bigmodel_cli.attend.course import HEADS, Course
from bigmodel_cli.attend.look import Layer
from bigmodel_cli.attend.over import OverOptions, over, saved
from bigmodel_cli.attend.repeated import repeated_tokens, repeats_of
from bigmodel_cli.data import load_tokenizer
from bigmodel_cli.errors import CheckpointError, SpecError
from bigmodel_cli.loaded import load_checkpoint
from bigmodel_cli.parts.contract import attending
from bigmodel_cli.parts.kernels import weights


@pytest.fixture
def run(decoder_spec: Path, cli: Callable[..., Result]) -> Path:
    """A run that kept the checkpoints of steps 2, 4, ..., 12."""
    words = ["train.keep_last=50", "train.checkpoint_every=2", "train.validate_every=12"]
    sets = [part for word in words for part in ("--set", word)]
    result = cli("pretrain", decoder_spec, *sets, "--out", "run")
    assert result.status == 0, result.err
    return Path("run")


def test_each_step_has_the_figures_of_its_own_weights(run: Path) -> None:
    found = over(run, None, OverOptions(), "cpu")
    assert found.steps == [2, 4, 6, 8, 10, 12]
    assert not found.given
    assert found.layers == ["blocks.0.mixer", "blocks.1.mixer"]
    for number, step in ((0, 2), (5, 12)):
        path = run / "checkpoints" / f"step-{step:08d}"
        loaded = load_checkpoint(path, "cpu", tell=lambda text: None)
        tokens = repeated_tokens(loaded)
        half = tokens.shape[1] // 2
        assert tokens.shape == (1, 16)
        assert tokens[0, :half].tolist() == tokens[0, half:].tolist()
        calls = []
        for part in attending(loaded.model).values():
            part.watcher = lambda call, calls=calls: calls.append(call)
        with torch.no_grad():
            logits = loaded.model(tokens)[0]
        nats = F.cross_entropy(logits[:-1], tokens[0, 1:], reduction="none")
        assert found.loss[number] == pytest.approx(float(nats.mean()), abs=1e-6)
        for layer, call in enumerate(calls):
            w = weights(call.q, call.k, call.spec)[0]
            for head in range(2):
                sink = float(w[head, :, 0].mean())
                assert found.of("sink", layer, head)[number] == pytest.approx(sink, abs=1e-6)
                previous = float(w[head].diagonal(-1).mean())
                got = found.of("previous", layer, head)[number]
                assert got == pytest.approx(previous, abs=1e-6)
    assert found.loss[0] != found.loss[5]
    text = found.to_text()
    assert "6 checkpoints, steps 2 to 12" in text
    assert max(map(len, text.splitlines())) <= 100
    assert found.to_json()["steps"] == found.steps
    assert len(found.to_json()["layers"][1]["sink"]) == 6


def test_a_text_is_followed_too_and_a_checkpoint_names_its_run(run: Path) -> None:
    text = "all you need is all you"
    found = over(run / "checkpoints" / "step-00000004", text, OverOptions(), "cpu")
    assert found.steps[-1] == 12
    assert found.title.startswith("all you need")
    assert all(math.isfinite(x) for x in found.loss)


def test_runs_that_cannot_be_followed_are_refused(run: Path, base: Path) -> None:
    with pytest.raises(SpecError, match=r"1 checkpoint is there.*train.keep_last=50"):
        saved(base)
    with pytest.raises(SpecError, match="0 checkpoints are there"):
        saved(Path("nothing"))
    path = run / "checkpoints" / "step-00000006" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(CheckpointError, match="step-00000006"):
        over(run, None, OverOptions(), "cpu")


def test_a_classifier_is_followed_on_an_image(cnn_spec: Path, cli: Callable[..., Result]) -> None:
    from PIL import Image

    vit = "model={type: vit, dim: 16, patch: 4, blocks: [{mixer: {type: attention, num_heads: 2}}]}"
    words = [vit, "train.keep_last=9", "train.checkpoint_every=4", "train.ema=null"]
    sets = [part for word in words for part in ("--set", word)]
    assert cli("pretrain", cnn_spec, *sets, "--out", "vit").status == 0
    Image.new("L", (8, 8), 90).save("grey.png")
    found = over(Path("vit"), "grey.png", OverOptions(), "cpu")
    assert found.steps == [4, 8, 12]
    assert all(map(math.isnan, found.repeats))
    assert "induction" not in found.to_text()  # an image has no tokens that repeat
    with pytest.raises(SpecError, match="give an INPUT"):
        over(Path("vit"), None, OverOptions(), "cpu")


def test_twenty_checkpoints_take_seconds(decoder_spec: Path, cli: Callable[..., Result]) -> None:
    words = ["train.keep_last=50", "train.checkpoint_every=1", "train.steps=20"]
    sets = [part for word in words for part in ("--set", word)]
    assert cli("pretrain", decoder_spec, *sets, "--out", "run").status == 0
    start = time.monotonic()
    assert len(over(Path("run"), None, OverOptions(), "cpu").steps) == 20
    assert time.monotonic() - start < 30


def test_what_repeats_is_what_follows_as_it_did_before() -> None:
    tokens = [3, 1, 4, 1, 5, 3, 1, 5, 9, 3, 1, 4]
    pairs = list(pairwise(tokens))
    want = [pair in pairs[:place] for place, pair in enumerate(pairs)]
    assert repeats_of(torch.tensor(tokens)).tolist() == want


def test_the_loss_of_a_long_text_is_of_all_its_windows(run: Path) -> None:
    """The context is 16 tokens: the first token of each window is foretold by nothing."""
    text = "all all all you need is all is all you need need"
    found = over(run, text, OverOptions(), "cpu")
    loaded = load_checkpoint(run, "cpu", tell=lambda text: None)
    tokens = load_tokenizer(loaded.assets).encode(text)
    limit = loaded.model.limit
    nats, again = [], []
    for start in range(0, len(tokens), limit):
        row = tokens[start : start + limit]
        with torch.no_grad():
            logs = loaded.model(torch.tensor([row]))[0].log_softmax(-1)
        pairs = list(pairwise(row))
        for place, (_, token) in enumerate(pairs):
            nats.append(-float(logs[place, token]))
            if pairs[place] in pairs[:place]:
                again.append(nats[-1])
    assert len(tokens) == 3 * limit
    assert again
    assert found.loss[-1] == pytest.approx(sum(nats) / len(nats), abs=1e-5)
    assert found.repeats[-1] == pytest.approx(sum(again) / len(again), abs=1e-5)


def test_a_mixer_in_the_place_of_attention_is_followed(
    decoder_spec: Path, cli: Callable[..., Result]
) -> None:
    mixer = "model={type: decoder, dim: 16, blocks: [{mixer: {type: retention, num_heads: 2}}]}"
    words = [mixer, "train.keep_last=9", "train.checkpoint_every=6", "train.validate_every=6"]
    sets = [part for word in words for part in ("--set", word)]
    assert cli("pretrain", decoder_spec, *sets, "--out", "mixers").status == 0
    found = over(Path("mixers"), None, OverOptions(), "cpu")
    assert found.steps == [6, 12]
    assert found.heads() == [(0, 0), (0, 1)]
    assert all(map(math.isfinite, [*found.of("own", 0, 1), *found.loss, *found.repeats]))


def course(scores: list[list[float]], repeats: list[float]) -> Course:
    """A course with these induction scores (heads of one layer) at each step."""
    found = Course("run", "made")
    layer = made(layers=1, heads=len(scores[0])).layers[0]
    for number, (own, loss) in enumerate(zip(scores, repeats, strict=True)):
        figures = layer.statistics
        changed = type(figures)(**{**vars(figures), "induction": Tensor(own)})
        values = {**vars(layer), "statistics": changed}
        found.add(100 * (number + 1), [Layer(**values)], loss + 1, loss)
    return found


def test_induction_appears_at_the_largest_jump_of_the_best_head() -> None:
    scores = [[0.02, 0.05], [0.04, 0.06], [0.1, 0.08], [0.7, 0.1], [0.8, 0.5], [0.82, 0.79]]
    found = course(scores, [4.0, 4.0, 3.9, 3.0, 1.0, 0.9])
    onset = found.onset()
    assert onset is not None
    assert (onset.before, onset.step, onset.head) == (300, 400, "0.0")
    assert (onset.low, onset.high) == pytest.approx((0.1, 0.7))
    assert (onset.fell_before, onset.fell, onset.apart) == (400, 500, 1)
    assert "induction appears between steps 300 and 400" in found.to_text()
    assert found.to_json()["induction_appears"]["step"] == 400
    plain = found.to_text(ascii_only=True)
    assert plain.isascii()
    assert course([[0.1, 0.1], [0.15, 0.12]], [4.0, 3.0]).onset() is None
    unknown = course([[math.nan], [math.nan]], [math.nan, math.nan])
    assert unknown.onset() is None
    assert "induction" not in unknown.to_text()


def test_of_many_heads_and_steps_those_are_shown_that_changed_most() -> None:
    scores = [[0.01 * step * (head == 30) for head in range(40)] for step in range(60)]
    found = course(scores, [4.0] * 60)
    text = found.to_text()
    assert "0.30 " in text
    assert f"and {40 - HEADS} heads that changed less" in text
    assert max(map(len, text.splitlines())) <= 100
    assert len(text.splitlines()) <= 40
