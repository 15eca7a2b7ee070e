"""Recordings with labels or transcripts; patterns in their names say which split each belongs
to.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from bigmodel_cli.config import MOST_PIXELS, MOST_RATE, MelConfig, Natural, NonNegative, Positive
from bigmodel_cli.data.audio.augment import SoundAugmentOptions
from bigmodel_cli.data.audio.loading import open_audio
from bigmodel_cli.data.audio.mel import frames_of
from bigmodel_cli.data.audio.split import JoinOptions
from bigmodel_cli.data.base import Assets, DataSet, Say
from bigmodel_cli.data.expected import Expected, LabelledOptions, numbered
from bigmodel_cli.data.holdout import HELD_OUT, HeldOutOptions, ValFraction, not_both
from bigmodel_cli.data.targets import Separator
from bigmodel_cli.errors import DataError, did_you_mean

MOST_FRAMES = 1 << 20
FOLDER = r"(?P<label>[^/]+)/[^/]+$"
NAMED = r"(?P<label>[^/]+)$"
"""The pattern of labels that are folders, and that of any recording."""
Rule = dict[str, Annotated[list[Natural | str], Field(min_length=1)]]


class AudioOptions(HeldOutOptions, LabelledOptions):
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
        return open_audio(self, base, say, assets, only)

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
        _check_groups("targets", [] if self.transcripts else self.targets, groups)
        if len(set(self.targets)) < len(self.targets):
            raise ValueError("targets: a name is given twice")
        if "label" not in groups and not self.transcripts and not self.targets:
            raise ValueError("pattern: it needs a group (?P<label>...), which is the class")
        for name, rule in self.split.items():
            _check_groups(f"split.{name}", rule, groups)
        not_both("val" in self.split, "split.val", self.val_fraction)
        others = self.targets or self.label_separator is not None
        if self.units is None and (self.join is not None or (self.transcripts and not others)):
            raise ValueError(
                f"{'join' if self.join else 'transcripts'}: give units, in which transcripts are"
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

    def named(self, base: Path) -> tuple[str, ...]:
        return ("train", *(name for name in ("val", "test") if name in self.split))

    def loader_workers(self) -> int:
        return self.workers

    def expected(self, assets: Assets | None) -> Expected:
        """The shapes for recordings of one length; the length of others is only known from the
        data.
        """
        sound = self.sound()
        if sound.length is None:
            remedy = ": give data.seconds: N to bring each to that length"
            raise DataError(
                f"the length of its longest recording is not known{'' if self.units else remedy}"
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


def _check_groups(option: str, names: Iterable[str], groups: Mapping[str, int]) -> None:
    """Raise `ValueError` for a name that is none of the pattern's groups."""
    for name in names:
        if name not in groups:
            raise ValueError(
                f"{option}: the pattern has no group {name!r} (it has:"
                f" {', '.join(groups) or 'none'}){did_you_mean(name, groups)}"
            )


def _is_one_of(text: str, values: list[int | str]) -> bool:
    """Whether a group's text is one of the values; numbers are compared as numbers, so that 07 is
    7.
    """
    return any(
        text == v if isinstance(v, str) else text.isdecimal() and len(text) < 19 and int(text) == v
        for v in values
    )
