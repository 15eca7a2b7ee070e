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

from bigmodel_cli.config import Count, DatasetInfo, Natural
from bigmodel_cli.data.audio.augment import SoundAugmentOptions
from bigmodel_cli.data.audio.frame_options import FrameOptions
from bigmodel_cli.data.audio.loading import open_audio
from bigmodel_cli.data.audio.mel import frames_of
from bigmodel_cli.data.audio.split import JoinOptions
from bigmodel_cli.data.base import Assets, DataSet, Say
from bigmodel_cli.data.expected import Expected, LabelledOptions, numbered
from bigmodel_cli.data.holdout import HELD_OUT, HeldOutOptions, ValFraction, not_both
from bigmodel_cli.data.targets import Separator
from bigmodel_cli.data.text.tokenizer_fit import TokenizerOptions, expected_size
from bigmodel_cli.errors import DataError, did_you_mean

FOLDER = r"(?P<label>[^/]+)/[^/]+$"
NAMED = r"(?P<label>[^/]+)$"
"""The pattern of labels that are folders, and that of any recording."""
Rule = dict[str, Annotated[list[Natural | str], Field(min_length=1)]]


class AudioOptions(HeldOutOptions, LabelledOptions, FrameOptions):
    """Recordings: WAV, and FLAC, OGG, MP3 (pip install 'bigmodel[audio]'), as files, in folders, or
    in .tar archives.
    """

    paths = ("files", "transcripts")
    carried: ClassVar = (*FrameOptions.carried, "context", "prompt")
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
    tokenizer: TokenizerOptions | None = Field(
        None,
        description=(
            "what turns transcripts into tokens, for task.type: seq2seq, fitted on those of the"
            " training recordings"
        ),
    )
    context: Count = Field(
        448,
        description="with a tokenizer, most tokens of a transcript, prompt and end included",
    )
    prompt: str = Field(
        "",
        description=(
            "with a tokenizer, special tokens before each text, which are given and not learnt"
            ' (Whisper: "<|en|><|transcribe|><|notimestamps|>")'
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
        None, description="make strings of several recordings; needs units, or a tokenizer"
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
        others = bool(self.targets) or self.label_separator is not None
        spelled = self.units or self.tokenizer
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
        if self.tokenizer is not None and (self.units or others):
            raise ValueError(
                "tokenizer: a transcript is spelled in tokens; leave units, targets and"
                " label_separator out"
            )
        if self.tokenizer is None and (self.prompt or self.context != 448):
            raise ValueError("prompt and context are of transcripts in tokens; give a tokenizer")
        if spelled is None and (self.join is not None or (self.transcripts and not others)):
            raise ValueError(
                f"{'join' if self.join else 'transcripts'}: give units, or a tokenizer, in which"
                " transcripts are spelled"
            )
        if self.seconds is not None and spelled is not None:
            raise ValueError(
                "seconds: transcripts belong to rows of frames as long as the recording; leave"
                " seconds out"
            )
        return self

    def named(self, base: Path) -> tuple[str, ...]:
        return ("train", *(name for name in ("val", "test") if name in self.split))

    def loader_workers(self) -> int:
        return self.workers

    def longest(self) -> int | None:
        return None if self.tokenizer is None else self.context

    def target_prompt(self) -> str:
        return self.prompt

    def expected(self, assets: Assets | None) -> Expected:
        """The shapes for recordings of one length; the length of others is only known from the
        data.
        """
        sound = self.sound()
        if self.tokenizer is not None and sound.padded is not None:
            info = DatasetInfo(
                vocab_size=expected_size(self.tokenizer, assets),
                text_context=self.context,
                context=frames_of(sound.padded, sound.hop),
                frame_width=sound.mels,
                sound=sound,
            )
            names = frozenset({"frames", "lengths", "target"})
            return Expected(info, names, longest=(info.context or 1, self.context))
        if sound.length is None:
            known = self.units
            remedy = ": give data.seconds: N to bring each to that length"
            if self.tokenizer is not None:
                remedy = ": give data.pad_to: N to fill each up with silence"
            raise DataError(
                f"the length of its longest recording is not known{'' if known else remedy}"
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
