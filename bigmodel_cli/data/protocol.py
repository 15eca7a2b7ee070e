"""What the rest of the house sees of data: a `DataSet` has splits, and a `Split` gives batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from bigmodel_cli.config import Facts
from bigmodel_cli.errors import DataError, did_you_mean
from bigmodel_cli.lazy import Tensor, torch


class Split(Protocol):
    """One part of a data set, cut into numbered samples."""

    @property
    def resident(self) -> bool:
        """Whether `batch` is index arithmetic on tensors in memory. Otherwise it reads and decodes files."""

    def __len__(self) -> int:
        """The number of samples (of an epoch, in training)."""

    def to(self, device: torch.device) -> None:
        """Move the tensors of a resident split to the device; nothing for others."""

    def batch(self, samples: Tensor, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """Samples (B,) int64 -> named tensors, by a pure function of the arguments.

        Images: {"image": (B, C, H, W) float32, normalised, "label": (B,) int64}. Text: {"tokens": (B, T + 1) int64}, where
        -1 stands behind the end of the corpus (in evaluation only). Random choices are keyed by (seed, epoch, sample).
        """


class DataSet(Protocol):
    """Opened data: its splits, and what a checkpoint must know of it."""

    @property
    def facts(self) -> Facts:
        """What the model must know."""

    @property
    def fingerprint(self) -> str:
        """SHA-256 in hex of what the samples are: the content, and how it is cut."""

    @property
    def splits(self) -> tuple[str, ...]:
        """The names that `split` takes, out of train, val, test."""

    def split(self, name: str) -> Split:
        """One split. Raises `DataError` where the data has none of that name."""

    def assets(self) -> dict[str, bytes]:
        """Files that a checkpoint must carry to use the model without the data."""


@dataclass(frozen=True)
class Fitted:
    """What a checkpoint has fitted to its data, taken instead of fitting anew."""

    facts: Facts
    assets: dict[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Opening:
    """How data is opened: relative paths start at `base`, lines for people go to `say`."""

    base: Path
    seed: int
    say: Callable[[str], None]
    fitted: Fitted | None = None

    def path(self, text: str) -> Path:
        """An option's path: `~` is expanded, and a relative one starts at `base`."""
        return self.base / Path(text).expanduser()


def no_split(name: str, splits: tuple[str, ...]) -> DataError:
    """The fault of asking for a split that is not there."""
    return DataError(f"the data has no split {name!r}, only {', '.join(splits)}{did_you_mean(name, splits)}")
