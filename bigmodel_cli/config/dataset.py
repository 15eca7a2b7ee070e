"""What the data tells the model, and a checkpoint keeps."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from bigmodel_cli.config.bounds import Count, Finite, Natural, NonNegative, Positive, Side

MOST_PIXELS = 2**28
"""Most numbers in an image, or in a recording of one length: 1 GiB in fp32."""
MOST_FILTERS = 2**24
"""Bands times samples of a window, at most: the number of filter coefficients."""
MOST_RATE = 768_000
"""Most samples per second."""
_STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class MelConfig:
    """How sound becomes frames: `rate` in samples per second, `window` and `hop` in samples, `mels`
    filters from `low` to `high` Hz.

    `length` is the number of samples that every recording is brought to; None where each keeps its
    own. `padded` is that up to which silence is added behind each, to be read as a part of it.
    `features` says which logarithm of which bands (see data/audio/mel.py).
    """

    __pydantic_config__ = _STRICT
    rate: Annotated[int, Field(gt=0, le=MOST_RATE)]
    window: Annotated[int, Field(gt=0, le=MOST_RATE)]
    hop: Annotated[int, Field(gt=0, le=MOST_RATE)]
    mels: Annotated[int, Field(gt=0, le=1024)]
    low: NonNegative
    high: Positive
    length: Annotated[int, Field(gt=0, le=MOST_PIXELS)] | None = None
    features: Literal["standard", "whisper"] = "standard"
    padded: Annotated[int, Field(gt=0, le=MOST_PIXELS)] | None = None

    def identity(self) -> dict[str, Any]:
        """The values that tell it from others; what came later only where it is used."""
        later = {"features": "standard", "padded": None}
        return {name: v for name, v in vars(self).items() if later.get(name, self) != v}

    def check(self) -> None:
        """Raise `ValueError` where the filters would take more memory than any sound needs."""
        if self.mels * self.window > MOST_FILTERS:
            raise ValueError(
                f"{self.mels:,} mels of a window of {self.window:,} samples; their product is at"
                f" most {MOST_FILTERS:,}"
            )


@dataclass(frozen=True)
class DatasetInfo:
    """What the data tells the model, and a checkpoint keeps: everything needed to use the model
    without the data.

    `image_shape` is (channels, height, width). `white_level` is the value of white in images of
    more than 8 bits, None where the file's type says it. `mean` and `std` are per channel, of
    pixels scaled to 0..1.

    `classes` are the labels' names in the order of the logits. `vocab_size` counts tokens,
    `source_vocab_size` those of the source where it has its own tokenizer. `context` is the length
    of a training window.

    `sound` says how recordings become images, or rows of frames of `frame_width` numbers; `context`
    then counts frames, and `text_context` is the longest text of a recording in tokens.
    `spelling` is "words" or "characters" where the classes are units of a transcript rather than
    labels of an item: the last logit is then the blank, which is not a class. Where `tagged`, each
    word of an item has a class, and the item has none.

    `class_counts` are the training items per class, where items have labels; () in checkpoints from
    before it was kept. With `label_sets` an item has any number of the classes; `items` is then the
    number of training items.

    `targets` are the names of an item's numbers, in the order of the outputs, where it has numbers
    rather than labels. `target_mean` and `target_std` are those of the training split, in the
    data's units.
    """

    __pydantic_config__ = _STRICT
    image_shape: tuple[Side, Side, Side] | None = None
    mean: tuple[Finite, ...] = ()
    std: tuple[Positive, ...] = ()
    classes: tuple[str, ...] = ()
    vocab_size: Count | None = None
    source_vocab_size: Count | None = None
    context: Count | None = None
    frame_width: Side | None = None
    sound: MelConfig | None = None
    text_context: Count | None = None
    spelling: Literal["", "words", "characters"] = ""
    class_counts: tuple[Natural, ...] = ()
    white_level: Annotated[float, Field(gt=0, le=2**32)] | None = None
    tagged: bool = False
    label_sets: bool = False
    items: Natural = 0
    targets: tuple[str, ...] = ()
    target_mean: tuple[float, ...] = ()
    target_std: tuple[Annotated[float, Field(gt=0)], ...] = ()

    @property
    def outputs(self) -> int:
        """The number of model outputs for a whole item: one for each class or target."""
        return len(self.classes) or len(self.targets)

    def to_json(self) -> dict[str, Any]:
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in vars(self).items()}
        return {**values, "sound": vars(self.sound) if self.sound is not None else None}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> DatasetInfo:
        """The inverse of `to_json`.

        Raises `ValueError` naming the key that is unknown, or whose value is not of its type or in
        its range.
        """
        try:
            # a tuple is a list in JSON; file names that are not UTF-8 hold lone surrogates
            info = _info_adapter().validate_json(
                json.dumps(values, ensure_ascii=False).encode("utf-8", "replace")
            )
        except ValidationError as error:
            fault = error.errors(include_url=False)[0]
            raise ValueError(f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}") from None
        if info.image_shape is not None and math.prod(info.image_shape) > MOST_PIXELS:
            raise ValueError(
                f"image_shape: images of {math.prod(info.image_shape):,} numbers; at most"
                f" {MOST_PIXELS:,}"
            )
        if info.sound is not None:
            _check_sound(info, info.sound)
        if len(info.mean) != len(info.std):
            raise ValueError(f"mean, std: {len(info.mean)} and {len(info.std)} values")
        if info.class_counts and len(info.class_counts) != len(info.classes):
            raise ValueError(
                f"class_counts: {len(info.class_counts)} for {len(info.classes)} classes"
            )
        for name, names in (("classes", info.classes), ("targets", info.targets)):
            if len(set(values.get(name, ()))) != len(names):
                raise ValueError(f"{name}: a name is given twice")
        if not len(info.targets) == len(info.target_mean) == len(info.target_std):
            raise ValueError("targets, target_mean, target_std: not equally many")
        if info.classes and info.targets:
            raise ValueError("classes, targets: an item has one or the other")
        return info if "classes" not in values else replace(info, classes=tuple(values["classes"]))


def _check_sound(info: DatasetInfo, sound: MelConfig) -> None:
    """Raise `ValueError` where frames are too large, or not of the shape that the model reads."""
    try:
        sound.check()
    except ValueError as error:
        raise ValueError(f"sound: {error}") from None
    if sound.length is not None and sound.padded is not None:
        raise ValueError("sound: length and padded exclude one another")
    if sound.length is None:
        fits = info.frame_width == sound.mels
    else:
        fits = info.image_shape == (1, sound.mels, -(-sound.length // sound.hop))
    if not fits:
        raise ValueError("sound: its frames are not those of frame_width or image_shape")


@functools.cache
def _info_adapter() -> TypeAdapter[DatasetInfo]:
    return TypeAdapter(DatasetInfo)


NO_DATASET = DatasetInfo()
"""For what needs no data."""
