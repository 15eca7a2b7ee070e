"""Where shards are: the options that all data in shards has."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from bigmodel_cli.config import Count, Options, Positive
from bigmodel_cli.data.base import AnyDataOptions
from bigmodel_cli.data.shards.cache import DEFAULT

Places = Annotated[list[str], Field(min_length=1)]


class SourceOptions(Options):
    """A source of a mixture."""

    files: Places = Field(description="paths, globs, folders or URLs")
    weight: Positive = Field(description="how often it is taken, beside the others' weights")


class InShardsOptions(AnyDataOptions):
    """Data in shards: several sources for training, and what is kept of them on the disk."""

    test_data: ClassVar[str] = "data.test=[FILE]"
    paths = ("train", "mix.*.files", "val", "test")

    train: list[str] = Field([], description="paths, globs, folders or URLs")
    mix: list[SourceOptions] = Field([], description="sources with weights, instead of train")
    val: list[str] = Field([], description="those of the validation split")
    test: list[str] = Field([], description="those of the test split")
    mixed_shards: Count = Field(
        8, description="shards whose rows are shuffled together; all of these must be at hand"
    )
    cache_bytes: Annotated[int, Field(gt=0, le=1 << 60)] = Field(
        DEFAULT,
        description="most bytes of fetched, unpacked or tokenized shards that are on the disk",
    )
    workers: Annotated[int, Field(ge=0, le=256)] = Field(0, description="processes that load")

    @model_validator(mode="after")
    def _one_training(self) -> Self:
        if bool(self.train) == bool(self.mix):
            raise ValueError("give either train or mix")
        return self

    def splits(self, base: Path) -> tuple[str, ...]:
        return ("train", *(name for name in ("val", "test") if self.sources()[name]))

    def sources(self) -> dict[str, list[tuple[list[str], str]]]:
        """(names, option) of each source of each split."""
        mixed = [(s.files, f"data.mix.{i}.files") for i, s in enumerate(self.mix)]
        return {
            "train": mixed or [(self.train, "data.train")],
            "val": [(self.val, "data.val")] if self.val else [],
            "test": [(self.test, "data.test")] if self.test else [],
        }

    def weights(self) -> list[float]:
        """Those of a mixture's sources, in order."""
        return [source.weight for source in self.mix]

    def called(self, split: str, source: int, count: int) -> str:
        """What people call a source, of `count` of a split."""
        if count == 1:
            return split
        return f"{split}, source {source} ({self.mix[source].files[0]})"

    def loader_workers(self) -> int:
        return self.workers
