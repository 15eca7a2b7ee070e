"""Recordings with labels or transcripts; patterns in their names say which split each belongs
to.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from pydantic import Field, field_validator, model_validator

from bigmodel_cli.config import (
    MOST_PIXELS,
    MOST_RATE,
    DatasetInfo,
    MelConfig,
    Natural,
    NonNegative,
    Positive,
)
from bigmodel_cli.console import say as tell
from bigmodel_cli.data.audio.augment import SoundAugmentation, SoundAugmentOptions
from bigmodel_cli.data.audio.mel import check_filters, frames_of
from bigmodel_cli.data.audio.recordings import Recordings, open_recordings
from bigmodel_cli.data.audio.sound import Wave, decode, notes_said
from bigmodel_cli.data.audio.split import (
    Bank,
    JoinOptions,
    SoundSplit,
    longest_frames,
    named,
    to_frames,
)
from bigmodel_cli.data.audio.targets import beside_recordings, texts_of
from bigmodel_cli.data.audio.transcripts import Units, spell
from bigmodel_cli.data.base import (
    Assets,
    DataSet,
    Say,
    count_classes,
    info_of,
    numbers_of,
    say_lacking,
)
from bigmodel_cli.data.cache import key_of
from bigmodel_cli.data.expected import Expected, LabelledOptions, numbered
from bigmodel_cli.data.files import check_plain
from bigmodel_cli.data.holdout import (
    HELD_OUT,
    ValFraction,
    fraction_of,
    needed,
    not_both,
    parts_of,
    with_held_out,
)
from bigmodel_cli.data.normalisation import normalisation, sampled
from bigmodel_cli.data.order import Ints
from bigmodel_cli.data.targets import Separator, check_kind
from bigmodel_cli.data.text.table_survey import alike_labels
from bigmodel_cli.errors import DataError, did_you_mean
from bigmodel_cli.lazy import Tensor, torch

RESIDENT_BYTES = 2 << 30
SAMPLED = 1000  # recordings from which the mean and deviation are computed
MOST_FRAMES = 1 << 20
FOLDER = r"(?P<label>[^/]+)/[^/]+$"
NAMED = r"(?P<label>[^/]+)$"
"""The pattern of labels that are folders, and that of any recording."""
Rule = dict[str, Annotated[list[Natural | str], Field(min_length=1)]]


class AudioOptions(LabelledOptions):
    """Recordings: WAV, and FLAC, OGG, MP3 (pip install 'bigmodel[audio]'), as files, in folders, or
    in .tar archives.
    """

    paths = ("files", "transcripts")
    test_data: ClassVar[str] = "'data.split={test: {GROUP: [VALUE]}}'"
    type: Literal["audio"] = "audio"
    files: Annotated[list[str], Field(min_length=1)] = Field(
        description="recordings, globs, folders, .tar or .tar.gz"
    )
    pattern: str = Field(
        FOLDER,
        description=(
            "a regular expression found in each name (the path below the folder or archive); its"
            " group `label` is the class, others serve `split`; when left out, the folder is the"
            " class, or with transcripts every recording is taken"
        ),
    )
    split: dict[Literal["val", "test"], Rule] = Field(
        {},
        description=(
            "values of the pattern's groups that put a recording into test, or else into val; the"
            " rest trains"
        ),
    )
    val_fraction: ValFraction = Field(None, description=HELD_OUT.format("recordings"))
    units: Literal["words", "characters"] | None = Field(
        None,
        description=(
            "what a transcript is spelled in, for task.type: ctc; left out: one label for each"
            " recording"
        ),
    )
    transcripts: list[str] = Field(
        [],
        description=(
            "files of lines NAME<TAB>TEXT; the text may be labels (label_separator), or numbers"
            " with tabs between (targets); when left out, a recording's label is its transcript"
        ),
    )
    label_separator: Separator = None
    targets: list[str] = Field(
        [],
        description=(
            "the names of numbers to learn, for task.type: regression: groups of the pattern, or"
            " with transcripts the columns behind NAME in this order"
        ),
    )
    join: JoinOptions | None = Field(
        None, description="make strings of several recordings; needs units"
    )
    seconds: Annotated[float, Field(gt=0, le=3600)] | None = Field(
        None,
        description=(
            "bring each to this length, as a picture for cnn and vit; left out: rows of frames, for"
            " encoder"
        ),
    )
    rate: Annotated[int, Field(ge=100, le=MOST_RATE)] = Field(
        16000, description="samples per second"
    )
    window: Annotated[float, Field(gt=0, le=1)] = Field(
        0.025, description="seconds of sound in a frame"
    )
    hop: Annotated[float, Field(gt=0, le=1)] = Field(0.01, description="seconds between frames")
    mels: Annotated[int, Field(gt=0, le=1024)] = Field(
        64, description="bands of a frame, evenly on the mel scale (HTK)"
    )
    low: NonNegative = Field(20.0, description="lower end of the lowest band in Hz")
    high: Positive | None = Field(
        None, description="upper end of the highest band in Hz; half the rate when left out"
    )
    normalize: Literal["auto", "none"] = Field(
        "auto", description="auto: to mean 0 and deviation 1 of the training split"
    )
    augment: list[SoundAugmentOptions] = Field(
        [], description="random changes while training, in order"
    )
    workers: Annotated[int, Field(ge=0, le=256)] = Field(
        0, description="processes that make frames and augment"
    )
    on_bad: Literal["error", "skip"] = Field(
        "error", description="what to do with a recording that cannot be decoded"
    )

    def open(
        self, *, base: Path, say: Say, assets: Assets | None = None, only: str | None = None
    ) -> DataSet:
        return _open_audio(self, base, say, assets, only)

    @model_validator(mode="before")
    @classmethod
    def _transcripts_need_no_folders(cls, values: Any) -> Any:
        if isinstance(values, dict) and values.get("transcripts"):
            return {"pattern": NAMED, **values}
        return values

    @field_validator("pattern")
    @classmethod
    def _is_a_pattern(cls, pattern: str) -> str:
        try:
            re.compile(pattern)
        except (re.error, OverflowError) as error:
            raise ValueError(f"not a regular expression: {error}") from None
        return pattern

    @model_validator(mode="after")
    def _consistent(self) -> AudioOptions:
        groups = re.compile(self.pattern).groupindex
        if self.targets and (self.units is not None or self.label_separator is not None):
            raise ValueError(
                "targets: a recording has numbers, or else units or labels; leave one out"
            )
        if self.units is not None and self.label_separator is not None:
            raise ValueError(
                "label_separator and units: a recording has labels or a transcript; leave one out"
            )
        for name in [] if self.transcripts else self.targets:
            if name not in groups:
                known = ", ".join(groups) or "none"
                raise ValueError(
                    f"targets: the pattern has no group {name!r} (it has:"
                    f" {known}){did_you_mean(name, groups)}"
                )
        if len(set(self.targets)) < len(self.targets):
            raise ValueError("targets: a name is given twice")
        if "label" not in groups and not self.transcripts and not self.targets:
            raise ValueError("pattern: it needs a group (?P<label>...), which is the class")
        for name, rule in self.split.items():
            for group in rule.keys() - groups.keys():
                known = ", ".join(groups) or "none"
                raise ValueError(
                    f"split.{name}: the pattern has no group {group!r} (it has:"
                    f" {known}){did_you_mean(group, groups)}"
                )
        not_both("val" in self.split, "split.val", self.val_fraction)
        others = self.targets or self.label_separator is not None
        if self.units is None and (self.join is not None or (self.transcripts and not others)):
            raise ValueError(
                f"{'join' if self.join else 'transcripts'}: say in which units a transcript is"
                " spelled"
            )
        if self.seconds is not None and self.units is not None:
            raise ValueError(
                "seconds: transcripts belong to rows of frames as long as the recording; leave"
                " seconds out"
            )
        top = self.high or self.rate / 2
        if not self.low < top <= self.rate / 2:
            raise ValueError(
                f"low and high: {self.low:g} to {top:g} Hz do not lie in this order below half the"
                " rate"
            )
        if min(self.window, self.hop) * self.rate < 1:
            raise ValueError(f"window and hop: at {self.rate} Hz they hold less than a sample")
        if self.seconds is not None and self.seconds / self.hop > MOST_FRAMES:
            raise ValueError(f"seconds: more than {MOST_FRAMES:,} frames")
        if self.seconds is not None and self.seconds * self.rate > MOST_PIXELS:
            raise ValueError(
                f"seconds: more than {MOST_PIXELS:,} samples at {self.rate:,} a second"
            )
        self.sound().check()
        return self

    def splits(self, base: Path) -> tuple[str, ...]:
        """The splits that there are."""
        return with_held_out(
            ("train", *(n for n in ("val", "test") if n in self.split)), self.val_fraction
        )

    def loader_workers(self) -> int:
        return self.workers

    def expected(self, assets: Assets | None) -> Expected:
        """The shapes for recordings of one length; the length of others is only known from the
        data.
        """
        sound = self.sound()
        if sound.length is None:
            raise DataError(
                "how long its longest recording is is not known"
                + (
                    ": give data.seconds: N to bring each to that length"
                    if self.units is None
                    else ""
                )
            )
        shape = (1, sound.mels, frames_of(sound.length, sound.hop))
        info = replace(
            numbered(self.expected_classes()),
            sound=sound,
            image_shape=shape,
            mean=(0.0,),
            std=(1.0,),
        )
        return Expected(info, frozenset({"image", "label"}))

    def split_of(self, groups: dict[str, str]) -> str:
        """The split of a recording whose name has these groups: test before val, and the rest
        trains.
        """
        for name, rule in sorted(self.split.items()):
            if all(_is_one_of(groups[k], values) for k, values in rule.items()):
                return name
        return "train"

    def sound(self) -> MelConfig:
        """How sound becomes frames."""
        return MelConfig(
            rate=self.rate,
            window=round(self.window * self.rate),
            hop=round(self.hop * self.rate),
            mels=self.mels,
            low=self.low,
            high=self.high or self.rate / 2,
            length=None if self.seconds is None else max(1, round(self.seconds * self.rate)),
        )


def _open_audio(
    options: AudioOptions, base: Path, say: Say, assets: Assets | None, only: str | None
) -> DataSet:
    """The recordings as splits; a checkpoint's normalisation is used when `assets` has one."""
    before = info_of(assets)
    known = before if only is not None else None
    sound = known.sound if known is not None and known.sound is not None else options.sound()
    check_filters(sound)
    fraction = fraction_of(options.val_fraction, "val" in options.split)
    wanted = needed(("train", *options.split), only)
    recordings = open_recordings(
        options.files,
        options.pattern,
        sound.rate,
        options.on_bad == "skip",
        base,
        say,
        (
            None
            if only is None
            else (lambda groups: options.split_of(groups) in wanted, [list(wanted), options.split])
        ),
    )
    rows = _rows(options, recordings, wanted, fraction, None if only else say)
    texts, places = texts_of(options, recordings, base)
    opened = {n: chosen for n, chosen in rows.items() if only in (None, n)}
    beside, spelled = None, Units((), [], np.zeros(0, np.int64))
    if options.targets or options.label_separator is not None:
        beside, info = beside_recordings(
            options, texts, places, opened, before, known is not None, say
        )
        check_kind(info, known)
        info = known or replace(info, sound=sound)
    else:
        spelled = spell(texts, options.units)
        info = known or DatasetInfo(
            classes=spelled.names, sound=sound, spelling=options.units or ""
        )
        check_kind(DatasetInfo(classes=spelled.names), known)
        if known is not None:
            spelled = _as_known(spelled, opened, known)
        for name, chosen in opened.items():
            there = np.concatenate([spelled.units[row] for row in chosen]).tolist()
            say_lacking(name, "recording", there, spelled.names, say)
    if beside is None and options.units is None and "train" in opened:
        labels = np.array([spelled.units[row][0] for row in opened["train"]])
        info = replace(info, class_counts=count_classes(labels, spelled.names))
        for note in alike_labels(spelled.names):
            say(note)
    if sound.length is not None:
        info = replace(info, image_shape=(1, sound.mels, frames_of(sound.length, sound.hop)))
    bank = Bank(recordings)
    resident = recordings.samples.nbytes <= RESIDENT_BYTES
    change = SoundAugmentation(options.augment)
    splits = {
        name: SoundSplit(
            bank,
            chosen,
            spelled.units,
            spelled.between,
            options.join,
            info,
            change,
            resident,
            beside,
        )
        for name, chosen in opened.items()
    }
    if known is None:
        info = _measured(options, info, splits, assets)
    elif known.context is not None:
        for split in splits.values():
            _check_lengths(split, recordings, known.context)
    splits = {name: replace(split, info=info) for name, split in splits.items()}
    items = {name: partial(recordings.items.__getitem__, chosen) for name, chosen in rows.items()}
    key = _fingerprint(options, recordings, rows, texts)
    return DataSet(info, key, dict(splits), {}, items, "recordings", fraction > 0)


def _measured(
    options: AudioOptions, info: DatasetInfo, splits: dict[str, SoundSplit], assets: Assets | None
) -> DatasetInfo:
    """The DatasetInfo with what is measured on the recordings: normalisation, and the longest
    row.
    """
    sound, before = options.sound(), info_of(assets)
    alike = before if before is not None and before.sound == sound else None
    mean, std = normalisation(options.normalize == "auto", alike, lambda: _moments(splits["train"]))
    info = replace(info, mean=mean, std=std)
    if sound.length is None:
        info = replace(
            info, frame_width=sound.mels, context=max(map(longest_frames, splits.values()))
        )
    return info


def _check_lengths(split: SoundSplit, recordings: Recordings, context: int) -> None:
    """Raise `DataError` naming the first sample that is longer than a checkpoint's longest row, as
    `read_sound` does.
    """
    chosen, pauses = split.made_of(np.arange(len(split)), 0, 0)
    rate, longest = split.sound.rate, context * split.sound.hop
    for own, before in zip(chosen, pauses, strict=True):
        length = int(recordings.lengths[own].sum() + before.sum())
        if length > longest:
            names = " + ".join(recordings.names[i] for i in own.tolist())
            raise DataError(
                f"{names}: {length / rate:.1f} s long, and the model reads up to"
                f" {longest / rate:.1f} s; cut it into pieces, or leave it out"
            )


def _as_known(spelled: Units, rows: dict[str, Ints], known: DatasetInfo) -> Units:
    """The units by the numbers that a checkpoint's classes have.

    Raises `SpecError` for a unit that it does not know.
    """
    used = np.unique(np.concatenate([spelled.units[r] for chosen in rows.values() for r in chosen]))
    number = numbers_of(spelled.names, known.classes, [spelled.names[i] for i in used])
    return Units(known.classes, [number[units] for units in spelled.units], number[spelled.between])


def _rows(
    options: AudioOptions,
    recordings: Recordings,
    wanted: Sequence[str],
    fraction: float,
    say: Say | None,
) -> dict[str, Ints]:
    """The row numbers of each split's recordings.

    Raises `DataError` for an empty split.
    """
    count = len(recordings.names)
    inside = np.array([options.split_of(groups) for groups in recordings.groups])
    rows: dict[str, Ints] = {}
    for name, rule in sorted(options.split.items()):
        rows[name] = np.flatnonzero(inside == name)
        if not len(rows[name]) and name in wanted:
            groups = {k: sorted({g[k] for g in recordings.groups})[:8] for k in rule}
            groups_text = "; ".join(f"{k}: {', '.join(values)}" for k, values in groups.items())
            raise DataError(
                f"data.split.{name}: no recording of {count:,} is in it; in the names stand"
                f" {groups_text}"
            )
    train = np.flatnonzero(inside == "train")
    if "train" not in wanted:
        return {n: chosen for n, chosen in rows.items() if n in wanted}
    if not len(train):
        raise DataError(f"data.split: nothing of {count:,} recordings is left to train on")
    parts = {
        n: train[chosen] for n, chosen in parts_of(len(train), fraction, "recordings", say).items()
    }
    return {**parts, **{n: chosen for n, chosen in rows.items() if n in wanted}}


def _is_one_of(text: str, values: list[int | str]) -> bool:
    """Whether a group's text is one of the values; numbers are compared as numbers, so that 07 is
    7.
    """
    return any(
        text == v if isinstance(v, str) else text.isdecimal() and len(text) < 19 and int(text) == v
        for v in values
    )


def _moments(train: SoundSplit) -> list[tuple[float, float]]:
    """(mean, variance) of the training split's frames, without padding."""
    chosen = sampled(len(train), SAMPLED)
    total, square, number = 0.0, 0.0, 0
    for first in range(0, len(chosen), 50):
        batch = train.batch(chosen[first : first + 50], 0, 0, False)
        x = train.own(batch)
        number += x.numel()
        total += float(x.double().sum())
        square += float(x.double().square().sum())
    mean = total / number
    return [(mean, max(0.0, square / number - mean**2))]


def _fingerprint(
    options: AudioOptions, recordings: Recordings, rows: dict[str, Ints], texts: list[str]
) -> str:
    join = options.join.model_dump() if options.join is not None else None
    sets = {name: chosen.tolist() for name, chosen in rows.items()}
    description = [recordings.digest, vars(options.sound()), options.units, join, sets, texts]
    return key_of(description)


def batch_of_sounds(waves: Sequence[Wave], info: DatasetInfo) -> dict[str, Tensor]:
    """Recordings from `read_sound` as a batch for a model with this DatasetInfo.

    {"image": (B, 1, mels, T)}, or {"frames": (B, T, mels), "lengths": (B,)}.
    """
    lengths = torch.tensor([len(wave.values) for wave in waves])
    rows = torch.zeros(len(waves), int(lengths.max()))
    for row, wave in zip(rows, waves, strict=True):
        row[: len(wave.values)] = torch.from_numpy(wave.floats())
    frames, lengths = to_frames(rows, lengths, info)
    return named(frames, lengths, info)


def read_sound(path: Path, info: DatasetInfo, say: Say = tell) -> Wave:
    """The samples of a recording; assumptions about them are reported.

    Raises `DataError` where it cannot be read, or is longer than the model's longest row.
    """
    assert info.sound is not None
    check_plain(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None
    wave, rate = decode(content, str(path), info.sound.rate), info.sound.rate
    longest = None if info.context is None else info.context * info.sound.hop
    if longest is not None and len(wave.values) > longest:
        raise DataError(
            f"{path}: {len(wave.values) / rate:.1f} s long, and the model reads up to"
            f" {longest / rate:.1f} s; cut it into pieces"
        )
    for sentence in notes_said((note, str(path)) for note in wave.notes):
        say(sentence)
    return wave
