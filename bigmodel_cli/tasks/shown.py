"""What is shown of a task: its first sample before training, texts and pictures after it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from bigmodel_cli.config import PADDING
from bigmodel_cli.lazy import Module, Tensor

MOST = 200
"""Characters from which on a text is shortened."""


@dataclass(frozen=True)
class Spell:
    """How what is in a batch is written for people.

    `tokens` takes a batch key and some of its tokens, and gives their text, special tokens spelled
    out; `picture` is what an item of "image" is called.
    """

    tokens: Callable[[str, list[int]], str]
    picture: str = "an image"

    def __call__(self, name: str, tokens: list[int]) -> str:
        return self.tokens(name, tokens)


@dataclass(frozen=True)
class Learnt:
    """What is learnt of some samples: `first` shows the first of them, and `count` are their
    targets, of `of` tokens where it is tokens that are learnt.
    """

    first: str
    count: int
    of: int | None = None
    how: str = "are learnt"


def real(tokens: Tensor) -> list[int]:
    """(T,) tokens without padding."""
    return [token for token in tokens.tolist() if token != PADDING]


def shortened(text: str) -> str:
    """A long text without its middle."""
    return text if len(text) <= MOST else f"{text[: MOST // 2]} ... {text[-MOST // 2 :]}"


def marked(tokens: Sequence[int], learnt: Sequence[bool], spell: Callable[[list[int]], str]) -> str:
    """The text of some tokens, what is learnt of it between » and «; long parts are shortened."""
    parts: list[str] = []
    first = 0
    for index in range(1, len(learnt) + 1):
        if index == len(learnt) or learnt[index] != learnt[first]:
            text = shortened(spell([*tokens[first:index]]))
            parts.append(f"»{text}«" if learnt[first] else text)
            first = index
    return "".join(parts)


def in_one_line(text: str) -> str:
    """The text with its line ends spelled out."""
    return text.replace("\n", "\\n")


def of_input(batch: Mapping[str, Tensor], spell: Spell) -> str:
    """What a batch's first item is, in a line."""
    if "image" in batch:
        image = batch["image"][0]
        size, ends = " x ".join(map(str, image.shape)), (float(image.min()), float(image.max()))
        return f"{spell.picture} of {size}, values {ends[0]:.3g} to {ends[1]:.3g}"
    if "frames" in batch:
        frames = batch["frames"][0]
        count = int(batch["lengths"][0]) if "lengths" in batch else len(frames)
        return f"{count:,} frames of {frames.shape[1]} numbers"
    return in_one_line(shortened(spell("tokens", real(batch["tokens"][0]))))


@dataclass(frozen=True)
class SampleText:
    """A text to generate: its prompt, number of tokens, and temperature."""

    prompt: str
    tokens: int
    temperature: float


@dataclass(frozen=True)
class Pictures:
    """Images to draw: `rows(model, batch)` gives normalised images (B, C, H, W) by title.

    They are drawn as `file`.png; the message is the title, the path and the note.
    """

    file: str
    title: str
    note: str
    rows: Callable[[Module, dict[str, Tensor]], dict[str, Tensor]]
