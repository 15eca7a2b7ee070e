"""What is shown of a model after training, as its task asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bigmodel_cli.lazy import Module, Tensor


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
