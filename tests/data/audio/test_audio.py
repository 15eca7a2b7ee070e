"""Recordings as data: sources and splits, frames that belong to the sample alone, strings, and each
fault with its message.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result
from tones import SPEC, packed, recording, riff, tone, write

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data import input_of, open_data
from bigmodel_cli.data.audio.audio import AudioOptions
from bigmodel_cli.data.audio.augment import (
    GainOptions,
    NoiseOptions,
    SoundAugmentation,
    SpecAugmentOptions,
    SpeedOptions,
    TimeShiftOptions,
    real,
)
from bigmodel_cli.data.audio.mel import log_mel
from bigmodel_cli.data.audio.split import batch_of_sounds, middle, read_sound
from bigmodel_cli.data.base import DataSet
from bigmodel_cli.errors import DataError

Cli = Callable[..., Result]
PATTERN = r"(?P<label>\w+)_(?P<speaker>\w+)_(?P<index>\d+)\.wav$"


def opened(said: list[str] | None = None, **changes: Any) -> DataSet:
    values = {
        "files": ["sounds"],
        "pattern": PATTERN,
        "rate": 8000,
        "mels": 16,
        "val_fraction": 0,
        **changes,
    }
    options = AudioOptions.model_validate(values)
    return open_data(options, base=Path(), say=(said if said is not None else []).append)


def batch(
    data: DataSet, split: str, *samples: int, augment: bool = False, epoch: int = 0
) -> dict[str, torch.Tensor]:
    return data.split(split).batch(
        np.array(samples or range(len(data.split(split)))), epoch, 0, augment
    )


def prepare_files(paths: list[Path], info: DatasetInfo) -> dict[str, torch.Tensor]:
    """Recordings as a model with this DatasetInfo reads them."""
    reader = input_of(info).reader(AudioOptions(files=["sounds"]), {})
    return reader.batch([reader.read(str(path), "the recording")[0] for path in paths])


def prepare_file(path: Path, info: DatasetInfo) -> torch.Tensor:
    """(1, 1, mels, T) or (1, T, mels)."""
    return next(iter(prepare_files([path], info).values()))


def archive(name: str, members: list[tuple[str, bytes]], mode: str = "w:gz") -> Path:
    with tarfile.open(name, mode) as out:
        for member, content in members:
            info = tarfile.TarInfo(member)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return Path(name)


def test_labels_and_splits_by_name() -> None:
    write()
    data = opened(
        split={"test": {"index": [0, 1], "speaker": ["ann"]}, "val": {"index": [5]}}, seconds=0.2
    )
    assert {n: len(data.split(n)) for n in data.splits} == {"train": 8, "test": 2, "val": 2}
    assert data.info.classes == ("high", "low")
    assert data.info.image_shape == (1, 16, 20)
    assert batch(data, "test")["label"].tolist() == [0, 1]
    assert batch(data, "test")["image"].shape == (2, 1, 16, 20)
    assert data.split("val").resident
    held = opened(split={"test": {"speaker": ["bob"]}}, seconds=0.2)
    assert (len(held.split("train")), len(held.split("test"))) == (6, 6)
    both = opened(split={"val": {"index": [0]}, "test": {"speaker": ["bob"]}}, seconds=0.2)
    # test takes first
    assert {n: len(both.split(n)) for n in both.splits} == {
        "train": 4,
        "test": 6,
        "val": 2,
    }
    assert held.splits == ("train", "test")  # the test split never stands in for a validation
    part = opened(val_fraction=0.25)
    assert {n: len(part.split(n)) for n in part.splits} == {"train": 9, "val": 3}
    assert data.fingerprint != held.fingerprint


def test_folders_of_classes_and_numbers_as_numbers() -> None:
    for label in ("10", "9"):
        (Path("set") / label).mkdir(parents=True)
        for index in (7, 8):
            (Path("set") / label / f"{index:03}.wav").write_bytes(recording(440))
    data = opened(files=["set"], pattern=AudioOptions.model_fields["pattern"].default)
    assert data.info.classes == ("9", "10")
    assert batch(data, "train")["label"].tolist() == [1, 1, 0, 0]
    by_number = opened(
        files=["set/**/*.wav"], pattern=r"(?P<label>\d+)\.wav", split={"test": {"label": [7]}}
    )
    assert len(by_number.split("test")) == 2


@pytest.mark.parametrize(
    ("name", "mode"),
    [("a.tar", "w"), ("a.tar.gz", "w:gz"), ("a.tgz", "w:gz"), ("a.tar.xz", "w:xz")],
)
def test_archives_are_read_in_place_and_nothing_leaves_them(
    name: str, mode: Any, tmp_path: Path
) -> None:
    good = [(f"x/{p.name}", p.read_bytes()) for p in sorted(write().iterdir())]
    evil = [
        ("../up_ann_1.wav", recording(100)),
        ("/abs_ann_1.wav", recording(100)),
        ("x/._low_ann_0.wav", b"junk"),
    ]
    evil += [
        (f"{hidden}/low_ann_9.wav", recording(500))
        for hidden in ("__MACOSX/x", "x/.hidden", "./.git/y")
    ]
    with tarfile.open(name, mode) as out:
        for member, content in [*evil, *good, ("x/readme.txt", b"text")]:
            info = tarfile.TarInfo(member)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("x/link_ann_1.wav")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        out.addfile(link)
    before = sorted(p.name for p in tmp_path.iterdir())
    packed_data, plain = opened(files=[name], seconds=0.2), opened(seconds=0.2)
    assert sorted(p.name for p in tmp_path.iterdir()) == before
    assert packed_data.info == plain.info
    assert torch.equal(batch(packed_data, "train")["image"], batch(plain, "train")["image"])


def test_a_member_larger_than_memory_should_hold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bigmodel_cli.data.audio.recordings.MOST_BYTES", 5000)
    archive("a.tar.gz", [("low_ann_1.wav", recording(440)), ("low_ann_2.wav", bytes(6000))])
    with pytest.raises(
        DataError,
        match=r"a.tar.gz: low_ann_2.wav: 6,000 bytes, more than 5,000; cut it into pieces",
    ):
        opened(files=["a.tar.gz"])


def test_recordings_are_decoded_once() -> None:
    write(count=3)
    said: list[str] = []
    opened(said)
    assert any("decoding recordings" in line for line in said)
    Path("sounds/low_ann_0.wav").touch()  # the content is the same
    again: list[str] = []
    opened(again, split={"test": {"index": [1]}}, mels=20)
    assert not again
    Path("sounds/low_ann_0.wav").write_bytes(recording(200))
    changed: list[str] = []
    opened(changed)
    assert any("decoding recordings" in line for line in changed)


def test_rows_of_frames_equal_the_recording_alone() -> None:
    write()
    data = opened(normalize="none")
    assert data.info.frame_width == 16
    assert data.info.context == 20
    whole = batch(data, "train")
    assert whole["frames"].shape == (12, 20, 16)
    train: Any = data.split("train")
    assert train.lengths.tolist() == whole["lengths"].tolist()
    sound = data.info.sound
    assert sound is not None
    for row, path in enumerate(sorted(Path("sounds").iterdir())):
        samples = np.frombuffer(
            path.read_bytes()[-(int(whole["lengths"][row]) * 160) :], "<i2"
        ).copy()
        alone = log_mel(torch.from_numpy(samples)[None] / 32768, sound)[0].T
        torch.testing.assert_close(whole["frames"][row, : len(alone)], alone)
        assert not whole["frames"][row, len(alone) :].any()
        torch.testing.assert_close(prepare_file(path, data.info)[0], alone)


def test_loud_quiet_and_unusual_recordings_are_read_as_they_sound(cli: Cli) -> None:
    write()
    quiet, loud = 1e-4 * tone(8000, 0.2), 6 * tone(8000, 0.2)
    whole, stereo = (
        np.round(20_000 * tone(8000, 0.2)),
        np.stack((tone(8000, 0.2), -tone(8000, 0.2)), 1),
    )
    odd = {
        "low_cat_1.wav": (riff(packed(quiet, "float32"), 3, 32), quiet),
        "low_cat_2.wav": (riff(packed(loud, "float32"), 3, 32), loud),
        "low_cat_3.wav": (riff(packed(whole, "float32"), 3, 32), whole / 32768),
        "low_cat_4.wav": (riff(packed(stereo.ravel(), "16"), channels=2), np.zeros(1600)),
    }
    for name, (content, _) in odd.items():
        Path("sounds", name).write_bytes(content)
    for attempt in range(2):  # the second finds all in the cache
        said: list[str] = []
        data = opened(said, normalize="none", seconds=0.2)
        warnings = [line for line in said if "warning" in line]
        assert len(warnings) == 2, attempt
        assert "1 recording of float samples that are integers" in warnings[0]
        assert "low_cat_3.wav" in warnings[0]
        assert "1 recording whose channels cancel one another" in warnings[1]
    rows = batch(data, "train")["image"]
    names = sorted(p.name for p in Path("sounds").iterdir())
    assert data.info.sound is not None
    for name, (_, wave) in odd.items():
        expected = log_mel(torch.from_numpy(wave).float()[None], data.info.sound)
        torch.testing.assert_close(rows[names.index(name)], expected, atol=2e-3, rtol=0)
    again: list[str] = []
    waves = [read_sound(Path("sounds", name), data.info, again.append) for name in odd]
    alone = batch_of_sounds(waves, data.info)["image"]
    assert torch.equal(alone, rows[[names.index(name) for name in odd]])
    assert len(again) == 2


def test_normalisation_is_of_real_frames_and_kept() -> None:
    write()
    for options in ({}, {"seconds": 0.16}):
        data = opened(**options)
        rows = batch(data, "train")
        own = (
            rows["image"]
            if options
            else rows["frames"][real(rows["lengths"], rows["frames"].shape[1])]
        )
        assert float(own.mean()) == pytest.approx(0, abs=1e-3)
        assert float(own.std()) == pytest.approx(1, abs=1e-2)
        path = Path("sounds/low_ann_2.wav")
        number = sorted(p.name for p in Path("sounds").iterdir()).index(path.name)
        name, length = ("image", 16) if options else ("frames", 14)
        alone = prepare_file(path, data.info)
        torch.testing.assert_close(
            alone[0], rows[name][number][:, :, :16] if options else rows[name][number, :length]
        )


def test_long_recordings_keep_their_middle() -> None:
    x = torch.arange(1.0, 8)[None].repeat(3, 1)
    x = x * real(torch.tensor([7, 4, 1]), 7)
    cut = middle(x, torch.tensor([7, 4, 1]), 5)
    assert cut.tolist() == [[2, 3, 4, 5, 6], [1, 2, 3, 4, 0], [0, 0, 1, 0, 0]]


CHANGES = [
    [SpeedOptions(factor=[0.8, 1.25])],
    [GainOptions(decibels=12)],
    [NoiseOptions(p=0.9, snr=[0, 20])],
    [TimeShiftOptions(seconds=0.05)],
    [SpecAugmentOptions(time_width=5, time_fraction=0.5, mel_width=4)],
    [
        SpeedOptions(),
        TimeShiftOptions(),
        NoiseOptions(),
        GainOptions(),
        SpecAugmentOptions(time_width=3),
    ],
]


@pytest.mark.parametrize("options", CHANGES, ids=lambda o: "+".join(x.type for x in o))
@pytest.mark.parametrize("seconds", [None, 0.15])
def test_augmentation_belongs_to_the_sample_not_to_the_batch(
    options: list[Any], seconds: float | None
) -> None:
    write()
    data = opened(augment=[o.model_dump() for o in options], seconds=seconds)
    name = "image" if seconds else "frames"
    together = batch(data, "train", augment=True, epoch=3)
    assert data.info.context is None or together["frames"].shape[1] <= data.info.context
    for i in range(12):
        alone = batch(data, "train", i, augment=True, epoch=3)
        own = together[name][i] if seconds else together[name][i, : int(together["lengths"][i])]
        torch.testing.assert_close(alone[name][0], own, atol=1e-5, rtol=1e-4)
    plain, other = batch(data, "train"), batch(data, "train", augment=True, epoch=4)
    assert together[name].shape != plain[name].shape or not torch.equal(together[name], plain[name])
    assert together[name].shape != other[name].shape or not torch.equal(together[name], other[name])


def test_each_augmentation() -> None:
    lengths, samples = torch.tensor([4000, 2000]), np.array([5, 6])
    waves = torch.from_numpy(np.stack([tone(8000), tone(8000)])).float() * real(lengths, 4000)
    row = (0, 1, samples, 200)
    noisy, _ = NoiseOptions(p=1.0, snr=[10.0, 10.0]).apply(waves, lengths, 8000, row)
    for i, n in enumerate(lengths.tolist()):
        added = noisy[i] - waves[i]
        ratio = 10 * torch.log10(waves[i, :n].square().mean() / added[:n].square().mean())
        assert float(ratio) == pytest.approx(10, abs=0.3)
        assert not added[n:].any()
    louder, _ = GainOptions(decibels=6).apply(waves, lengths, 8000, row)
    factor = louder[:, 1] / waves[:, 1]
    assert bool(((factor > 0.5) & (factor < 2)).all())
    slower, longer = SpeedOptions(factor=[0.5, 0.5]).apply(waves, lengths, 8000, row)
    assert longer.tolist() == [8000, 4000]
    torch.testing.assert_close(slower[:, ::2], waves)
    moved, after = TimeShiftOptions(seconds=0.1).apply(waves, lengths, 8000, row)
    assert moved.shape[1] == int(after.max())
    assert bool((after > lengths).all())
    assert moved.square().sum().item() == pytest.approx(waves.square().sum().item())


def test_spec_augment_hides_blocks_of_bounded_width() -> None:
    frames, samples = torch.rand(200, 16, 50), np.arange(200)
    lengths = torch.full((200,), 40)
    options = SpecAugmentOptions(
        time_masks=1, time_width=8, time_fraction=0.1, mel_masks=1, mel_width=5
    )
    change = SoundAugmentation([options])
    changed = change.change_frames(frames, lengths, samples, 0, 0)
    assert torch.equal(changed[:, :, 40:], frames[:, :, 40:])
    hidden = (changed != frames)[:, :, :40]
    times, bands = hidden.all(1).sum(1), hidden.all(2).sum(1)
    # a tenth of the row is less than the greatest width
    assert set(times.tolist()) == set(range(5))
    assert set(bands.tolist()) == set(range(6))
    assert torch.equal(hidden, hidden.all(1)[:, None] | hidden.all(2)[:, :, None])


@pytest.mark.parametrize("offset", [0.0, 5.0])
def test_spec_augment_hides_by_the_mean_of_the_row_itself(offset: float) -> None:
    """Each row alone, without its padding, through torch's mean, whatever stands beside it and
    however it is normalised.
    """
    lengths = torch.tensor([31, 7, 1, 22])
    frames = torch.randn(4, 9, 31) * torch.tensor([1.0, 3.0, 0.5, 2.0])[:, None, None] + offset
    frames = frames * real(lengths, 31)[:, None]
    options = SpecAugmentOptions(
        time_masks=3, time_width=9, time_fraction=0.9, mel_masks=2, mel_width=4
    )
    got = SoundAugmentation([options]).change_frames(frames, lengths, np.array([3, 4, 5, 7]), 2, 1)
    for row, n in enumerate(lengths.tolist()):
        alone = frames[row, :, :n]
        hidden = got[row, :, :n] != alone
        torch.testing.assert_close(got[row, :, :n][hidden], alone.mean().expand(int(hidden.sum())))
        assert not got[row, :, n:].any()
    assert int((got != frames).sum()) > 100


def test_strings_of_recordings() -> None:
    write(labels=("one", "two", "three"))
    join = {"least": 2, "most": 4, "pause": [0.02, 0.05]}
    data = opened(split={"test": {"index": [0, 1]}}, units="words", join=join, normalize="none")
    assert data.info.classes == ("one", "three", "two")
    assert data.info.spelling == "words"
    train, test = batch(data, "train", augment=True), batch(data, "test")
    counts = (train["target"] >= 0).sum(1)
    assert set(counts.tolist()) == {2, 3, 4}
    assert torch.equal(test["frames"], batch(data, "test")["frames"])  # evaluation: always the same
    assert not torch.equal(train["target"], batch(data, "train", augment=True, epoch=1)["target"])
    one = batch(data, "train", 3, augment=True)
    n = int(one["lengths"][0])
    torch.testing.assert_close(one["frames"][0], train["frames"][3, :n])
    assert one["target"][0].tolist() == [u for u in train["target"][3].tolist() if u >= 0]
    split: Any = data.split("test")
    chosen, pauses = split.join.choose(split.rows, 8000, np.arange(6), 0, 0)
    assert set(np.concatenate(chosen)) <= set(split.rows)
    assert all(160 <= p <= 400 for row in pauses for p in row[1:])
    for i, own in enumerate(chosen):
        expected = split.bank.lengths[own].sum() + pauses[i].sum()
        assert int(test["lengths"][i]) == -(-expected // 80)
        assert test["target"][i, : len(own)].tolist() == [
            int(split.targets.units[r][0]) for r in own
        ]
    assert data.info.context is not None
    assert int(train["lengths"].max()) <= data.info.context


def test_transcripts_from_a_file_in_words_and_characters() -> None:
    write(count=1)
    Path("said.tsv").write_text("low_ann_0\tgo  down\nhigh_ann_0.wav\tgo up\n")
    words = opened(pattern=r"\.wav$", transcripts=["said.tsv"], units="words")
    assert words.info.classes == ("down", "go", "up")
    assert batch(words, "train")["target"].tolist() == [[1, 2], [1, 0]]
    letters = opened(pattern=r"\.wav$", transcripts=["said.tsv"], units="characters")
    assert letters.info.classes == tuple(" dgnopuw")
    text = "".join(letters.info.classes[i] for i in batch(letters, "train")["target"][1])
    assert text == "go down"
    joined = opened(units="characters", join={"least": 2, "most": 2})
    spelled = [
        "".join(joined.info.classes[u] for u in row if u >= 0)
        for row in batch(joined, "train")["target"].tolist()
    ]
    assert set(spelled) <= {"low high", "high low", "low low", "high high"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("low_ann_0\tdown\n", "high_ann_0.wav: no transcript in said.tsv"),
        ("low_ann_0 down\n", "said.tsv:1: not NAME<TAB>TEXT"),
        ("low_ann_0\tb\xe4\n", "said.tsv: not UTF-8 at byte offset 11"),
        (
            "high_ann_0\tup\nlow_ann_0\t \n",
            "said.tsv:2: not NAME<TAB>TEXT with a text that is not empty",
        ),
        ("low_ann_0\tdown\nlow_ann_0\tup\n", "said.tsv:2: a second, other text for low_ann_0"),
    ],
)
def test_transcripts_that_do_not_fit(content: str, message: str) -> None:
    write(count=1)
    Path("said.tsv").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError) as caught:
        opened(pattern=r"\.wav$", transcripts=["said.tsv"], units="words")
    assert message in str(caught.value)


def pretrain(cli: Cli, *changes: str, out: str = "run") -> Result:
    Path("audio.yaml").write_text(SPEC)
    return cli("pretrain", "audio.yaml", "--out", out, *(w for c in changes for w in ("--set", c)))


def last_metrics(run: str = "run") -> Any:
    return json.loads(Path(run, "metrics.jsonl").read_text().splitlines()[-1])["val"]


def test_a_cnn_learns_low_from_high_tones(cli: Cli) -> None:
    write(count=10)
    trained = pretrain(cli)
    assert trained.status == 0, trained.err
    assert cli("pretrain", "audio.yaml", "--dry-run").status == 0
    assert last_metrics()["accuracy"] == 1
    assert json.loads(cli("eval", "run", "--json").out)["accuracy"] == 1
    looked = cli("attend", "run", "sounds/high_bob_1.wav", "--png", "cam.png")
    assert looked.status == 0, looked.err
    assert Path("cam.png").stat().st_size > 1000
    info = DatasetInfo.from_json(
        json.loads(next(Path("run/checkpoints").glob("step-*/facts.json")).read_text())
    )
    assert prepare_file(Path("sounds/low_ann_0.wav"), info).shape == (1, 1, 16, 20)
    # other recordings, the checkpoint's normalisation
    finetuned = cli(
        "finetune",
        "--from",
        "run",
        "audio.yaml",
        "--out",
        "more",
        "--set",
        "data.split={}",
        "--set",
        "train.steps=1",
    )
    assert finetuned.status == 0, finetuned.err
    again = json.loads(next(Path("more/checkpoints").glob("step-*/facts.json")).read_text())
    assert (tuple(again["mean"]), tuple(again["std"])) == (info.mean, info.std)


def test_a_resume_repeats_the_run_to_the_bit(cli: Cli) -> None:
    from conftest import digests

    write(count=10)
    changes = [
        "data.augment=[{type: speed}, {type: noise}, {type: time_shift}, {type: spec_augment}]",
        "train.checkpoint_every=7",
        "train.validate_every=null",
    ]
    assert pretrain(cli, *changes, "train.steps=14", out="whole").status == 0
    assert pretrain(cli, *changes, "train.steps=7", out="half").status == 0
    words = [w for c in [*changes, "train.steps=14"] for w in ("--set", c)]
    resumed = cli("pretrain", "audio.yaml", "--out", "half", "--resume", *words)
    assert resumed.status == 0, resumed.err
    one, other = (digests(Path(r, "checkpoints/step-00000014")) for r in ("whole", "half"))
    one.pop("state"), other.pop("state")  # the shorter run validated once more
    assert one == other
    Path("sounds/low_ann_0.wav").write_bytes(recording(250))
    changed = cli(
        "pretrain", "audio.yaml", "--out", "half", "--resume", *words[:-1], "train.steps=15"
    )
    assert changed.status == 4
    assert "data" in changed.err


HALF = recording(440)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "zero bytes long"),
        (b"\x89PNG" + HALF, "not a WAV file"),
        (HALF[:-50], "cut off: "),
        (
            riff(packed(np.array([0.1, np.nan]), "float32"), 3, 32),
            "sample 1 is not a finite number",
        ),
        (riff(packed(np.array([np.inf]), "float32"), 3, 32), "sample 0 is not a finite number"),
        (riff(HALF, 6, 8), "encoded as A-law"),
    ],
    ids=["empty", "header", "truncated", "nan", "inf", "encoding"],
)
@pytest.mark.parametrize("packing", ["folder", "archive"])
def test_recordings_that_cannot_be_decoded(
    packing: str, content: bytes, message: str, cli: Cli
) -> None:
    bad = write() / "low_ann_2.wav"
    bad.write_bytes(content)
    place = str(bad)
    changes = ["train.steps=2", "data.val_fraction=0"]
    if packing == "archive":
        archive(
            "a.tar.gz", [(f"x/{p.name}", p.read_bytes()) for p in sorted(Path("sounds").iterdir())]
        )
        place, changes = "a.tar.gz: x/low_ann_2.wav", [*changes, "data.files=[a.tar.gz]"]
    result = pretrain(cli, *changes, "train.batch_size=4")
    assert result.status == 3
    assert f"{place}: {message}" in result.err
    assert "or set data.on_bad: skip" in result.err
    assert "Traceback" not in result.err
    assert not Path("run/checkpoints").exists()
    skipped = pretrain(cli, *changes, "train.batch_size=4", "data.on_bad=skip", out="run2")
    assert skipped.status == 0, skipped.err
    assert (
        f"warning: skipped 1 recording that cannot be decoded, the first: {place}: {message}"
        in skipped.err
    )
    assert "7 training samples" in skipped.err


@pytest.mark.parametrize(
    ("changes", "status", "message"),
    [
        (["data.files=[none.wav]"], 3, "data.files: none.wav: no such file"),
        (["data.files=[notes.txt]"], 3, "notes.txt: not a recording or an archive"),
        (["data.files=[empty]"], 3, "data.files: the folder empty holds no file that ends in .wav"),
        (["data.files=[empty.tar]"], 3, "empty.tar: no recordings in it"),
        (["data.files=[half.tar.gz]"], 3, "half.tar.gz: cannot be read as an archive"),
        (["data.files=[fake.tar.gz]"], 3, "fake.tar.gz: cannot be read as an archive"),
        (["data.pattern='(?P<label>z)x'", "data.split={}"], 3,
         "is found in none of 12 names; the first is high_ann_0.wav"),
        (["data.pattern='(?P<label>x*)'", "data.split={}"], 3,
         "high_ann_0.wav: data.pattern gives it an empty label"),
        (["data.split={test: {index: [77]}}"], 3,
         "data.split.test: no recording of 12 is in it; the names have index: 0, 1"),
        (["data.split={test: {label: [low, high]}}"], 3,
         "data.split: nothing of 12 recordings is left to train on"),
        (["train.batch_size=9"], 3, "the train split has 7 samples, fewer than train.batch_size 9"),
        (["data.pattern='(?P<label>'"], 2, "data.pattern: not a regular expression"),
        (["data.pattern='(?P<lable>a)'", "data.split={}"], 2,
         "pattern: it needs a group (?P<label>...)"),
        (["data.split={test: {speeker: [ann]}}"], 2,
         "no group 'speeker' (it has: label, speaker, index); did you mean speaker?"),
        (["data.join={}"], 2, "join: give units, or a tokenizer, in which transcripts are spelled"),
        (["data.units=words"], 2, "seconds: transcripts belong to rows of frames"),
        (["data.high=5000"], 2, "do not lie in this order below half the rate"),
        (["data.mels=200"], 2,
         "data.mels: 29 of 200 bands hold no frequency that a window of 200 samples tells apart "
         "(31 Hz)"),
        (["data.hop=0.00001"], 2, "at 8000 Hz they hold less than a sample"),
        (["data.rate=.nan"], 2, "data.rate"),
        (["data.seconds=null"], 2, "the data has none; data.seconds: N makes them of"),
        (["task.type=ctc"], 2,
         "task.type: ctc is learnt by model.type: encoder, and model.type is cnn"),
    ],
)  # fmt: skip
def test_audio_options_that_do_not_fit_are_refused(
    changes: list[str], status: int, message: str, cli: Cli
) -> None:
    write()
    Path("empty").mkdir()
    Path("notes.txt").write_text("no sound")
    archive("empty.tar", [], "w")
    whole = archive("half.tar.gz", [("x/low_ann_1.wav", recording(440, 2.0))])
    whole.write_bytes(whole.read_bytes()[:-800])
    Path("fake.tar.gz").write_bytes(b"not an archive at all")
    result = pretrain(cli, *changes)
    assert result.status == status, result.err
    assert message in result.err
    assert "Traceback" not in result.err
    assert not Path("run/checkpoints").exists()


def test_a_class_missing_in_an_audio_split_is_reported() -> None:
    write()
    said: list[str] = []
    opened(said, split={"test": {"label": ["low"], "index": [0]}})
    assert "warning: the test split has no recording of class high" in said
    some: list[str] = []
    opened(some, pattern=r"(?P<label>low|high)_ann")
    assert "6 recordings are left out: data.pattern is not found in the name" in some


def test_a_recording_to_predict_from(cli: Cli) -> None:
    write()
    info = opened(seconds=0.2).info
    with pytest.raises(DataError, match=r"none.wav: cannot be read: No such file"):
        prepare_file(Path("none.wav"), info)
    rows = opened().info
    Path("long.wav").write_bytes(recording(440, 3.0))
    with pytest.raises(
        DataError, match=r"long.wav: 3.0 s long, and the model reads up to 0.2 s; cut it"
    ):
        prepare_file(Path("long.wav"), rows)
    Path("fast.wav").write_bytes(riff(packed(tone(192_000, 0.1), "24"), bits=24, rate=192_000))
    assert prepare_file(Path("fast.wav"), rows).shape == (1, 10, 16)
    paths = sorted(Path("sounds").iterdir())
    together = prepare_files(paths, rows)
    assert together["frames"].shape == (12, 20, 16)
    for i, path in enumerate(paths):
        own = together["frames"][i, : int(together["lengths"][i])]
        torch.testing.assert_close(own, prepare_file(path, rows)[0])


def test_the_spoken_digits_of_a_real_archive(data_root: Path) -> None:
    said: list[str] = []
    data = opened(
        said,
        files=[str(data_root / "fsdd" / "recordings.tar.gz")],
        pattern=r"(?P<label>\d)_(?P<speaker>\w+)_(?P<index>\d+)\.wav$",
        split={"test": {"index": [0, 1, 2, 3, 4]}},
        mels=40,
    )
    assert data.info.classes == tuple("0123456789")
    assert (len(data.split("train")), len(data.split("test"))) == (2700, 300)
    assert torch.equal(batch(data, "test")["label"].bincount(), torch.full((10,), 30))
    assert not any("warning" in line for line in said)
