"""What a finished training shows of its model, as a task asks for it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bigmodel_cli.lazy import Module, Tensor


@dataclass(frozen=True)
class SampleText:
    """Text that shows what a model has learnt: what it continues, with how many tokens, at which
    temperature.
    """

    prompt: str
    tokens: int
    temperature: float


@dataclass(frozen=True)
class Pictures:
    """Images that show what a model has learnt: `rows(model, batch)` gives images (B, C, H, W),
    normalised, by their title.

    They are drawn as `file`.png; the line that tells of it is the title, the path and the note.
    """

    file: str
    title: str
    note: str
    rows: Callable[[Module, dict[str, Tensor]], dict[str, Tensor]]
