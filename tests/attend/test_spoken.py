"""Times of words in recordings: hand-made attention, models of sound from their folders."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from conftest import Result
from tones import recording
from torch import Tensor

from bigmodel_cli.attend import spoken
from bigmodel_cli.attend.looking import look_at
from bigmodel_cli.attend.pairs import Pair, read_pair
from bigmodel_cli.convert.generation import alignment_heads
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.generation.text import Decoding
from bigmodel_cli.loaded import Loaded, load_checkpoint

Cli = Callable[..., Result]
HEARD = {"rate": 8000, "mels": 8, "hop": 0.01, "window": 0.02}


def trained(cli: Cli, changes: dict[str, Any], model: dict[str, Any], task: str) -> Loaded:
    """A model of low and high tones that has learnt next to nothing."""
    Path("recs").mkdir()
    for number in range(6):
        name = f"recs/{('low', 'high')[number % 2]}_{number}.wav"
        Path(name).write_bytes(recording((300, 1500)[number % 2], 0.8 + 0.02 * number))
    data = {
        "type": "audio", "files": ["recs"], "pattern": r"(?P<label>[a-z]+)_\d+\.wav$",
        "val_fraction": 0.34, **HEARD, **changes,
    }  # fmt: skip
    values = {"model": model, "data": data, "task": task, "train": {"steps": 1, "batch_size": 2}}
    Path("a.yaml").write_text(yaml.safe_dump(values))
    done = cli("pretrain", "a.yaml", "--out", "run", "--device", "cpu")
    assert done.status == 0, done.err
    return load_checkpoint(Path("run"), "cpu", tell=lambda said: None)


def writer(cli: Cli, **changes: Any) -> Loaded:
    """An encoder-decoder."""
    block = {"mixer": {"type": "attention", "num_heads": 2}, "ffn": {"type": "gelu"}}
    model = {
        "type": "seq2seq", "dim": 16, "frontend": {"type": "conv", "stride": 2},
        "encoder": [block], "decoder": [{**block, "repeat": 2, "cross": {"num_heads": 2}}],
    }  # fmt: skip
    return trained(cli, {"tokenizer": "bytes", "context": 12, **changes}, model, "seq2seq")


def weights_of(spans: list[tuple[int, int]], positions: int) -> Tensor:
    """(T, S)   each query reads a span of positions evenly."""
    rows = torch.full((len(spans), positions), 1e-4)
    for row, (first, stop) in enumerate(spans):
        rows[row, first:stop] += 1 / (stop - first)
    return rows / rows.sum(-1, keepdim=True)


@pytest.mark.parametrize("padded", [None, 1.5])
def test_times_are_where_attention_moves_on(
    padded: float | None, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = writer(cli, **({} if padded is None else {"pad_to": padded}))
    pair = read_pair(loaded, "recs/high_5.wav", "x", Decoding(beams=2), "hi lo")
    assert pair.heard == pytest.approx(0.9)
    frames, positions = (90, 45) if padded is None else (150, 75)
    assert pair.batch["frames"].shape[1] == frames
    # h, i, a blank that reads anything, l, o, and the end, which reads the beginning
    spans = [(0, 7), (7, 20), (30, 37), (20, 28), (28, 45), (0, 3)]
    good = weights_of(spans, positions)
    flat, sink = torch.full_like(good, 1 / positions), torch.zeros_like(good)
    sink[:, positions - 1] = 1.0  # of silence, where there is any

    def made(given: Pair) -> Iterator[tuple[str, Tensor, None]]:
        yield "decoder.0.cross", torch.stack((flat, sink)), None
        yield "decoder.1.cross", torch.stack((sink, good)), None

    monkeypatch.setattr(spoken, "crossings", made)
    times = spoken.times_of(pair)
    assert times is not None
    assert times.heads == [(1, 1)]
    assert times.seconds == pytest.approx(0.02)
    assert times.to_json()["words"] == [
        {"word": "hi", "start": 0.0, "end": pytest.approx(0.4)},
        {"word": "lo", "start": pytest.approx(0.4), "end": pytest.approx(0.9)},
    ]
    monkeypatch.setattr(spoken, "alignment_heads", lambda assets: [(0, 0), (1, 1)])
    published = spoken.times_of(pair)
    assert published is not None
    assert (published.heads, published.rule) == (
        [(0, 0), (1, 1)], "the model's published alignment heads",
    )  # fmt: skip
    assert [w.start for w in published.words] == pytest.approx([0.0, 0.4])
    monkeypatch.setattr(spoken, "alignment_heads", lambda assets: [(1, 1), (7, 0)])
    other = spoken.times_of(pair)  # heads of another network
    assert other is not None
    assert (other.heads, other.rule) == (times.heads, times.rule)


def test_a_model_of_sound_from_its_folder(cli: Cli) -> None:
    loaded = writer(cli)
    look = look_at(loaded, "recs/low_0.wav", target="low")
    cross = [layer for layer in look.layers if layer.kind == "cross"]
    assert [(layer.keys.name, layer.queries.name, len(layer.keys)) for layer in cross] == [
        ("sound", "target", 40)
    ] * 2
    assert cross[0].keys.seconds == pytest.approx(0.02)
    assert cross[0].keys.labels[:2] == ["0.00 s", "0.02 s"]
    found = look.extra["times"]
    assert [word["word"] for word in found["words"]] == ["low"]
    assert 0 <= found["words"][0]["start"] <= found["words"][0]["end"] <= 0.8
    assert json.loads(json.dumps(look.extra)) == look.extra
    assert look.difference < 1e-5


@pytest.mark.parametrize("stride", [1, 4])
def test_a_ctc_model_tells_the_times_of_its_own_path(stride: int, cli: Cli) -> None:
    block = {"mixer": {"type": "attention", "num_heads": 2}}
    front = {"type": "conv", "stride": stride}
    model = {"type": "encoder", "dim": 16, "frontend": front, "blocks": [block]}
    loaded = trained(cli, {"units": "words"}, model, "ctc")
    look = look_at(loaded, "recs/low_0.wav")
    times = look.extra["times"]
    assert times["seconds_per_position"] == pytest.approx(0.01 * stride)
    assert " ".join(word["word"] for word in times["words"]) == look.answer
    told = json.loads(cli("predict", "run", "recs/low_0.wav").out)
    assert told["text"] == look.answer
    assert look.layers[0].keys.seconds == pytest.approx(0.01 * stride)


def test_lines_for_a_terminal_are_counted() -> None:
    words = [{"word": f"word{n}", "start": n / 2, "end": n / 2 + 0.4} for n in range(30)]
    lines = spoken.shown({"rule": "x", "words": words}, 60, 3)
    assert len(lines) == 5
    assert max(map(len, lines)) <= 60
    assert lines[1].startswith("0.00-0.40 word0   0.50-0.90 word1")
    placed = sum(line.count("word") for line in lines[1:4])
    assert lines[4] == f"({30 - placed} more words: --json)"
    assert "\x1b" not in spoken.shown(
        {"rule": "x", "words": [{"word": "\x1b[2J", "start": 0, "end": 1}]}
    )[1]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "found"), [(None, None), ([], None), ([[2, 0], [1, 3]], [(2, 0), (1, 3)])]
)
def test_published_heads_are_read(value: Any, found: Any) -> None:
    content = {} if value is None else {"alignment_heads": value}
    assert alignment_heads({"hf.generation_config.json": json.dumps(content).encode()}) == found
    assert alignment_heads({}) is None


@pytest.mark.parametrize("value", [3, "a", [1, 2], [[1]], [[1, -2]], [[True, 1]], [[1.0, 2]]])
def test_published_heads_that_are_none_are_refused(value: Any) -> None:
    content = json.dumps({"alignment_heads": value}).encode()
    with pytest.raises(CheckpointError, match=r"alignment_heads.*is not \[layer, head\]"):
        alignment_heads({"hf.generation_config.json": content})
