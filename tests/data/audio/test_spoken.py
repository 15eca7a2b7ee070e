"""Recordings whose transcripts are tokens: frames as Whisper hears them, targets, and the whole way
from training to text.
"""

from __future__ import annotations

import json
import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from conftest import Result

from bigmodel_cli.config import DatasetInfo, MelConfig
from bigmodel_cli.data import random_batch
from bigmodel_cli.data.audio.audio import AudioOptions
from bigmodel_cli.data.audio.mel import log_mel
from bigmodel_cli.data.audio.split import to_frames
from bigmodel_cli.data.base import DataSet
from bigmodel_cli.errors import DataError, SpecError

RATE = 2000
HEARD: dict[str, Any] = {"features": "whisper", "rate": RATE, "mels": 8}


def tone(path: Path, hertz: float, seconds: float = 0.2) -> None:
    samples = 12000 * np.sin(2 * np.pi * hertz * np.arange(int(RATE * seconds)) / RATE)
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(samples.astype("<i2").tobytes())


@pytest.fixture
def tones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Low and high tones in `recs`, and what they are called in said.txt."""
    monkeypatch.chdir(tmp_path)
    Path("recs").mkdir()
    said = []
    for i in range(12):
        high = i % 2 == 1
        tone(Path("recs", f"r{i:02d}.wav"), (700 if high else 150) + 5 * i, 0.2 + 0.01 * i)
        said.append(f"r{i:02d}\t{'high' if high else 'low'}  one\n")
    Path("said.txt").write_text("".join(said))
    return tmp_path


def opened(**options: Any) -> DataSet:
    values = {"files": ["recs"], "transcripts": ["said.txt"], "tokenizer": "bytes", **HEARD}
    found = AudioOptions.model_validate({**values, "val_fraction": 0, **options})
    return found.open(base=Path(), say=lambda text: None)


def test_frames_equal_those_of_transformers() -> None:
    transformers = pytest.importorskip("transformers")
    for mels, rate, window in ((80, 16000, 400), (128, 16000, 400), (20, 24000, 512)):
        theirs = transformers.WhisperFeatureExtractor(
            mels, sampling_rate=rate, chunk_length=3, n_fft=window
        )
        sound = MelConfig(rate, window, 160, mels, 0.0, 8000.0, features="whisper", padded=3 * rate)
        info = DatasetInfo(sound=sound, frame_width=mels)
        draw = torch.Generator().manual_seed(mels)
        lengths = [3 * rate, 3 * rate - 77, 1, 8191]
        rows = [0.1 * torch.randn(n, generator=draw) for n in lengths]
        want = theirs([row.numpy() for row in rows], sampling_rate=rate)["input_features"]
        padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        got, counts = to_frames(padded, torch.tensor(lengths), info)
        assert counts.tolist() == [3 * rate // 160] * 4
        np.testing.assert_allclose(got.numpy(), np.array(want), atol=1e-5)


def test_a_row_is_heard_alike_alone_and_beside_longer_ones() -> None:
    sound = MelConfig(RATE, 50, 20, 8, 0.0, 1000.0, features="whisper")
    rows = [torch.randn(n) * 0.1 for n in (930, 400, 11)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    info = DatasetInfo(sound=sound, frame_width=8)
    together, counts = to_frames(padded, torch.tensor([930, 400, 11]), info)
    for row, alone, count in zip(together, rows, counts.tolist(), strict=True):
        want = log_mel(alone[None], sound)[0]
        assert want.shape == (8, count)
        torch.testing.assert_close(row[:, :count], want)
        assert not row[:, count:].any()


def test_targets_are_tokens_between_start_and_end(tones: Path) -> None:
    data = opened(context=12)
    assert data.info.vocab_size == 257
    assert data.info.text_context == 12
    assert data.info.context == 31  # the longest recording has 0.31 s, in frames of 10 ms
    assert data.info.mean == ()
    batch = data.split("train").batch(np.array([0, 1]), 0, 0, False)
    rows = [[256, *b"low one", 256, -1], [256, *b"high one", 256]]
    assert batch["target"].tolist() == rows
    assert batch["lengths"].tolist() == [20, 21]
    assert batch["frames"].shape == (2, 21, 8)
    assert data.split("train").longest_rows() == (31, 9)
    assert data.split("train").texts()[1][:2] == ["low one", "high one"]
    assert "tokenizer.json" in data.assets()


@pytest.mark.parametrize("tokenizer", ["bytes", {"type": "bpe", "vocab_size": 262}])
def test_strings_of_recordings_have_the_tokens_of_their_text(tones: Path, tokenizer: Any) -> None:
    data = opened(join={"least": 2, "most": 3}, tokenizer=tokenizer, context=40)
    from bigmodel_cli.data.text.tokenizer_files import load_tokenizer

    own = load_tokenizer(data.assets())
    batch = data.split("train").batch(np.arange(6), 0, 0, False)
    for row, text in zip(batch["target"].tolist(), data.split("train").texts()[1], strict=False):
        target = [token for token in row if token >= 0]
        assert target == [own.target_start, *own.encode(text), own.end_of_text]
        assert 2 <= text.count(" one") <= 3


def test_silence_is_added_behind_each_up_to_a_length(tones: Path) -> None:
    batch = opened(pad_to=0.4).split("train").batch(np.array([0, 11]), 0, 0, False)
    assert batch["lengths"].tolist() == [40, 40]
    assert (batch["frames"][0, 25:] == batch["frames"][0].min()).all()
    with pytest.raises(DataError, match=r"r11.wav: 0.3 s long.*data.pad_to is 0.3"):
        opened(pad_to=0.3)
    with pytest.raises(DataError, match=r"0\.310 s in training, and data\.pad_to is 0\.309;"):
        opened(pad_to=0.309)


@pytest.mark.parametrize(
    ("changes", "fault", "message"),
    [
        ({"context": 8}, DataError, r"said.txt:2: its transcript has 8 tokens.*up to 9.*is 8"),
        ({"prompt": "<|en|>"}, SpecError, "'<|en|>' is not a special token of the tokenizer"),
        ({"prompt": "{language}"}, SpecError, "does not say its languages"),
        ({"units": "words"}, ValueError, "leave units, targets and label_separator out"),
        ({"seconds": 1.0}, ValueError, "leave seconds out"),
        ({"tokenizer": None, "units": "words", "context": 5}, ValueError, "give a tokenizer"),
        ({"seconds": 1.0, "pad_to": 1.0}, ValueError, "seconds and pad_to"),
        ({"pad_to": 1e-5, "hop": 1e-9}, ValueError, "hold less than a sample"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    tones: Path, changes: dict[str, Any], fault: type[Exception], message: str
) -> None:
    with pytest.raises(fault, match=message.replace("|", r"\|")):
        opened(**changes)


def spec(**changes: Any) -> dict[str, Any]:
    heads = {"num_heads": 2, "bias": ["q", "v", "o"]}
    block = {"mixer": {"type": "attention", **heads}, "ffn": {"type": "gelu", "hidden": 32}}
    return {
        "model": {
            "type": "seq2seq", "dim": 16, "frontend": {"type": "conv", "stride": 2},
            "position": {"type": "sinusoidal", "layout": "halves", "slowest": "last"},
            "decoder_position": "learned", "norm": "layernorm", "scale_embeddings": False,
            "encoder": [block], "decoder": [{**block, "cross": heads}],
        },
        "data": {
            "type": "audio", "files": ["recs"], "transcripts": ["said.txt"], "context": 12,
            "tokenizer": "bytes", "val_fraction": 0.25, **HEARD,
        },
        "task": {"type": "seq2seq", "metrics": ["wer", "cer"], "metric": "wer", "beams": 1},
        "train": {
            "steps": 60, "batch_size": 8, "precision": "fp32", "compile": "off",
            "memory_format": "contiguous", "optimizer": {"type": "adamw", "lr": 0.01},
        },
        **changes,
    }  # fmt: skip


def test_from_training_to_text(tones: Path, cli: Callable[..., Result]) -> None:
    """It is trained, evaluated, asked, finetuned; the two words are told apart."""
    Path("a.yaml").write_text(yaml.safe_dump(spec()))
    done = cli("pretrain", "a.yaml", "--out", "run", "--device", "cpu")
    assert done.status == 0, done.err
    found = json.loads(cli("eval", "run", "--split", "val", "--json", "--device", "cpu").out)
    assert found["wer"] == 0.0
    for beams in ("1", "3"):
        told = cli("predict", "run", "recs/r00.wav", "recs/r01.wav", "--beams", beams)
        texts = [json.loads(line)["text"] for line in told.out.splitlines()]
        assert texts == ["low one", "high one"], beams
    looked = cli("attend", "run", "recs/r00.wav", "--json")
    assert looked.status == 0, looked.err
    looked_values = json.loads(looked.out)
    assert looked_values["answer"] == "low one"
    assert [word["word"] for word in looked_values["times"]["words"]] == ["low", "one"]
    more = spec(train={"steps": 1, "batch_size": 8, "precision": "fp32"})
    del more["model"], more["data"]["tokenizer"], more["data"]["rate"], more["data"]["mels"]
    Path("b.yaml").write_text(yaml.safe_dump(more))  # how it hears comes with the checkpoint
    done = cli("finetune", "--from", "run", "b.yaml", "--out", "more", "--device", "cpu")
    assert done.status == 0, done.err


def test_random_batches_have_frames_and_texts(tones: Path) -> None:
    info = opened(context=12).info
    batch = random_batch(info, ("frames", "lengths", "target"), 3, torch.device("cpu"))
    assert batch["frames"].shape == (3, 31, 8)
    assert batch["target"].shape == (3, 13)
    assert int(batch["target"].max()) < 257


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"frontend": None}, "model.frontend: missing; the data has frames of sound"),
        ({"source_len": 5}, "model.source_len: 5 frames are fewer than the data's longest row"),
        ({"max_len": 5}, "model.max_len: 5 is shorter than the data's context 12"),
        ({"share_embeddings": "inputs"}, "there are no embeddings of a source"),
        ({"type": "encoder"}, "task.type: seq2seq is learnt by model.type: seq2seq"),
    ],
)
def test_models_that_do_not_fit_are_refused(
    tones: Path, cli: Callable[..., Result], changes: dict[str, Any], message: str
) -> None:
    values = spec()
    values["model"] |= changes
    if "type" in changes:
        block = values["model"]["encoder"]
        values["model"] = {"type": "encoder", "dim": 16, "blocks": block}
    Path("a.yaml").write_text(yaml.safe_dump(values))
    done = cli("pretrain", "a.yaml", "--out", "run", "--device", "cpu")
    assert done.status == 2
    assert message in done.err


def test_labels_alone_are_not_texts(tones: Path, cli: Callable[..., Result]) -> None:
    values = spec()
    del values["data"]["tokenizer"], values["data"]["context"]
    values["data"]["units"] = "words"
    Path("a.yaml").write_text(yaml.safe_dump(values))
    done = cli("pretrain", "a.yaml", "--out", "run", "--device", "cpu")
    assert done.status == 2
    assert "give data.tokenizer" in done.err
