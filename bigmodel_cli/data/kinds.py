"""The kinds of inputs and targets of data.

Each answers what upper rooms ask, so that they need not look at the DatasetInfo. A new kind is a
class here, and a line in `input_of` or `target_of`: the only places that tell the kinds apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data.audio.ticks import Ticks, frequency_ticks, time_ticks
from bigmodel_cli.data.base import AnyDataOptions, Assets
from bigmodel_cli.data.image.pixels import denormalise
from bigmodel_cli.data.inputs import Images, LongReader, Reader, Rows, Sounds, Windows
from bigmodel_cli.data.text.pieces import Sentences
from bigmodel_cli.data.text.tokenizer_files import load_tokenizer
from bigmodel_cli.draw import KEY
from bigmodel_cli.lazy import Tensor, torch


@dataclass(frozen=True)
class Input:
    """A model's input; `name` is its key in a batch."""

    name: ClassVar[str]
    in_files: ClassVar[bool] = True
    """Whether an item is given as the path of a file, rather than as a text."""
    one_size: ClassVar[bool] = False
    """Whether all items have the same shape."""
    info: DatasetInfo

    @property
    def pixels(self) -> int:
        """Pixels of an image; 0 where items are rows."""
        return 0

    @property
    def picture(self) -> str:
        """What an item is called where it is one tensor (C, H, W)."""
        return "an image"

    @property
    def axes(self) -> tuple[str, str] | None:
        """Labels of an image's vertical and horizontal axes; None for an ordinary picture."""
        return None

    def ticks(self, columns: int) -> tuple[Ticks, Ticks] | None:
        """Round values along a sound's bands, from below, and frames; None of other data."""
        sound = self.info.sound
        return None if sound is None else (frequency_ticks(sound), time_ticks(sound, columns))

    def pixels_of(self, image: Tensor) -> Tensor:
        """A normalised image (C, H, W) as pixels in 0..1."""
        raise NotImplementedError

    def random(
        self, count: int, device: torch.device, length: int | None = None
    ) -> dict[str, Tensor]:
        """A batch of random items without targets; rows have this length, or that of the data's
        context.
        """
        raise NotImplementedError

    def unlabelled(
        self, names: tuple[str, ...], count: int, device: torch.device
    ) -> dict[str, Tensor]:
        """Random items for a task that reads these names, none of which is a target beside the
        input.
        """
        return self.random(count, device)

    def reader(self, options: AnyDataOptions, assets: Assets) -> LongReader:
        """What prepares given items as the training data was, for a model with these options of
        data and files.
        """
        return Images(self.info) if self.info.sound is None else Sounds(self.info)

    def whole(self, options: AnyDataOptions, assets: Assets, longest: int | None) -> Reader:
        """The same for items that are each read as one: texts with their special tokens, of at
        most `longest` tokens.
        """
        return self.reader(options, assets)


class ImageInput(Input):
    """{"image": (B, C, H, W)}: pictures, or recordings of one length."""

    name = "image"
    one_size = True

    @property
    def pixels(self) -> int:
        return math.prod((self.info.image_shape or ())[1:])

    @property
    def picture(self) -> str:
        return "an image" if self.info.sound is None else "a spectrogram"

    @property
    def axes(self) -> tuple[str, str] | None:
        """The axes of a recording's frames."""
        sound = self.info.sound
        if sound is None:
            return None
        hop = 1000 * sound.hop / sound.rate
        return f"mel bands, {sound.low:g} to {sound.high:g} Hz", f"frames of {hop:g} ms"

    def pixels_of(self, image: Tensor) -> Tensor:
        """A normalised image (C, H, W) as pixels in 0..1; frames are scaled from their minimum to
        their maximum.
        """
        if self.info.sound is None:
            return denormalise(image, self.info)
        return (image - image.min()) / (image.max() - image.min()).clamp(min=1e-12)

    def random(
        self, count: int, device: torch.device, length: int | None = None
    ) -> dict[str, Tensor]:
        """Pixels of mean 0 and deviation 1."""
        return {"image": torch.randn(count, *(self.info.image_shape or ()), device=device)}


class FrameInput(Input):
    """{"frames": (B, T, width), "lengths": (B,)}: recordings of many lengths."""

    name = "frames"

    def random(
        self, count: int, device: torch.device, length: int | None = None
    ) -> dict[str, Tensor]:
        """Frames of mean 0 and deviation 1, of one length."""
        length = length or self.info.context or 1
        frames = torch.randn(count, length, self.info.frame_width or 1, device=device)
        return {"frames": frames, "lengths": torch.full((count,), length, device=device)}

    def unlabelled(
        self, names: tuple[str, ...], count: int, device: torch.device
    ) -> dict[str, Tensor]:
        """With a text (B, T + 1) for each, of tokens, where the task reads one."""
        batch = self.random(count, device)
        if "target" in names:
            size = (count, (self.info.text_context or 1) + 1)
            batch["target"] = torch.randint(self.info.vocab_size or 1, size, device=device)
        return batch


class TokenInput(Input):
    """{"tokens": (B, T)}: texts."""

    name = "tokens"
    in_files = False

    def random(
        self, count: int, device: torch.device, length: int | None = None
    ) -> dict[str, Tensor]:
        """Tokens that are in both vocabularies of pairs."""
        known = min(filter(None, (self.info.vocab_size, self.info.source_vocab_size)))
        return {
            "tokens": torch.randint(known, (count, length or self.info.context or 1), device=device)
        }

    def unlabelled(
        self, names: tuple[str, ...], count: int, device: torch.device
    ) -> dict[str, Tensor]:
        """Texts and targets are (B, T + 1), since a task does not show the model the last token;
        each token is a word.
        """
        length = self.info.context or 1
        lengths = {name: length + (name != "source") for name in names}
        batch = {
            name: self.random(count, device, n)[self.name]
            for name, n in lengths.items()
            if name != "words"
        }
        numbers = torch.arange(length + 1, device=device).expand(count, -1)
        return {**batch, **({"words": numbers} if "words" in names else {})}

    def reader(self, options: AnyDataOptions, assets: Assets) -> LongReader:
        """For a model that reads whole texts: as rows of a table where it was trained on one."""
        tokenizer, context = load_tokenizer(assets), self.info.context
        assert context is not None
        if self.info.tagged:
            return Sentences(tokenizer, context, options.tagged_piece())
        sides = options.text_columns() or (1 if target_of(self.info) is not None else 0)
        return Rows(tokenizer, context, sides) if sides else Windows(tokenizer, context)

    def whole(self, options: AnyDataOptions, assets: Assets, longest: int | None) -> Reader:
        assert self.info.context is not None
        context = min(self.info.context, longest or self.info.context)
        return Rows(load_tokenizer(assets), context, options.text_columns() or 1)


@dataclass(frozen=True)
class Target:
    """A target of an item.

    `name` is its key in a batch: here that of a class index.
    """

    name: ClassVar[str] = "label"
    spelled: ClassVar[bool] = False
    """Whether it is a sequence of units, which the classes then are."""
    tags: ClassVar[bool] = False
    """Whether there is one for each word."""
    lacking: ClassVar[str] = (
        "the checkpoint tells classes apart, and the data has no labels; say where they are"
        " (data.label, data.labels)"
    )
    """A message about data without it."""
    info: DatasetInfo

    def random(self, count: int, device: torch.device) -> Tensor:
        """Random targets."""
        return torch.randint(len(self.info.classes), (count,), device=device)


class Numbers(Target):
    """(B, K) float64 numbers in the data's units."""

    name = "numbers"
    lacking = (
        "the checkpoint learnt numbers, and the data has none; say where they are (data.targets,"
        " data.target_columns)"
    )

    def random(self, count: int, device: torch.device) -> Tensor:
        """With the training split's mean and deviation."""
        mean, std = (
            torch.tensor(x, dtype=torch.float64)
            for x in (self.info.target_mean, self.info.target_std)
        )
        return (mean + std * torch.randn(count, len(mean), dtype=torch.float64)).to(device)


class LabelSet(Target):
    """(B, C) bool: which classes an item has."""

    name = "labels"

    def random(self, count: int, device: torch.device) -> Tensor:
        """Each class with probability 1/2."""
        return torch.rand(count, len(self.info.classes), device=device) < 0.5


class Transcript(Target):
    """(B, L) the units of a recording's transcript."""

    name = "target"
    spelled = True

    def random(self, count: int, device: torch.device) -> Tensor:
        """A unit for every 64 frames."""
        units = max(1, (self.info.context or 1) // 64)
        return torch.randint(len(self.info.classes), (count, units), device=device)


class Tags(Target):
    """(B, T) the number of each word's tag, at one of its tokens; -1 at others."""

    name = "tags"
    tags = True

    def random(self, count: int, device: torch.device) -> Tensor:
        """A tag at each token."""
        return torch.randint(len(self.info.classes), (count, self.info.context or 1), device=device)


def input_of(info: DatasetInfo) -> Input:
    """The input of a model for data as `info` describes it."""
    if info.image_shape is not None:
        return ImageInput(info)
    return TokenInput(info) if info.frame_width is None else FrameInput(info)


def target_of(info: DatasetInfo) -> Target | None:
    """The target beside the input; None where there is none."""
    if info.targets:
        return Numbers(info)
    if not info.classes:
        return None
    if info.tagged:
        return Tags(info)
    if info.label_sets:
        return LabelSet(info)
    return Transcript(info) if info.spelling else Target(info)


def random_batch(
    info: DatasetInfo, names: tuple[str, ...], count: int, device: torch.device
) -> dict[str, Tensor]:
    """A random batch for a task that reads these names, with a key for each row, as data has it."""
    kind, target = input_of(info), target_of(info)
    if target is not None and target.name in names:
        batch = {**kind.random(count, device), target.name: target.random(count, device)}
    else:
        batch = kind.unlabelled(names, count, device)
    return {**batch, KEY: torch.arange(count, device=device)}
