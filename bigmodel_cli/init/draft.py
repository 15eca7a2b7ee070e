"""Common to all drafts of a spec: sizes, and the names of splits."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from bigmodel_cli.data.image.folder import SPLIT_NAMES
from bigmodel_cli.data.reading import plain_name
from bigmodel_cli.errors import SpecError
from bigmodel_cli.yaml_scalars import on_one_line

SMALL_TEXT, LARGE_TEXT = 20_000, 2_000_000
"""In characters: up to the first limit each byte is a token, from the second on the vocabulary has
its largest size.
"""
CHARACTERS_OF_A_TOKEN = 3
"""About, for a BPE with a small vocabulary."""


@dataclass(frozen=True)
class Wanted:
    """What the user says: the columns of text of a table, and its label column ("" for none); and
    the task, where that is given.
    """

    text: tuple[str, ...] = ()
    label: str | None = None
    task: str = ""

    @property
    def given(self) -> str:
        """The option that is given, or ''."""
        return "--text" if self.text else "--label" if self.label is not None else ""


@dataclass(frozen=True)
class Draft:
    """A template of a spec with its values; `notes` say what was found and decided.

    `input` is one for `predict`; `used` are files of another form that are read as well.
    """

    template: str
    values: dict[str, str]
    notes: tuple[str, ...]
    input: str
    used: tuple[Path, ...] = ()

    def told(self, note: str) -> Draft:
        """The same with one more note."""
        return replace(self, notes=(*self.notes, note))


def epochs(items: float, seen: float, most: int = 50) -> int:
    """Number of epochs in which about `seen` of what costs time is seen: pixels, characters; of
    which the data has `items`.
    """
    return max(1, min(most, round(seen / items)))


def batch_size(items: int, most: int = 64) -> int:
    """A power of two: ten batches or more in an epoch, where there are enough items."""
    return max(2, min(most, 1 << max(0, (items // 10).bit_length() - 1)))


def warmup(steps: float, most: int) -> int:
    """Steps of warm-up in a run of about that many: a tenth, and no more than `most`."""
    return min(most, int(steps / 10))


def length(items: int, passes: int, most_batch: int, most_warmup: int) -> dict[str, str]:
    """How long and in what steps is trained, for the template: passes over the items, the batch,
    the warm-up.
    """
    batch = batch_size(items, most_batch)
    warm = warmup(passes * items / batch, most_warmup)
    return {"epochs": str(passes), "batch": str(batch), "warmup": str(warm)}


def tokenizer(characters: int, most: int = 8192) -> tuple[dict[str, object], str]:
    """The tokenizer for that much text, and a note on it."""
    if characters < SMALL_TEXT:
        return {"type": "bytes"}, f"{characters:,} characters are few: each byte is a token"
    size = max(512, min(most, 1 << (characters // 200).bit_length()))
    return {
        "type": "bpe",
        "vocab_size": size,
    }, f"{characters:,} characters: a BPE tokenizer of {size:,} tokens"


def context_of(lengths: Sequence[int], kind: dict[str, object], most: int = 512) -> int:
    """A context that fits 98 % of the texts, given their numbers of characters, with special
    tokens; a multiple of 16.
    """
    longest = sorted(lengths)[min(len(lengths) - 1, len(lengths) * 98 // 100)]
    tokens = longest * 1.3 if kind["type"] == "bytes" else longest / CHARACTERS_OF_A_TOKEN
    return max(16, min(most, -(-int(tokens + 8) // 16) * 16))


def by_split(files: Iterable[Path]) -> dict[str, list[Path]]:
    """The files of each split, by a word in their names; without such words all are for
    training.
    """
    splits: dict[str, list[Path]] = {}
    for file in files:
        words = re.split(r"[^a-z]+", plain_name(file).rpartition(".")[0])
        splits.setdefault(
            next((s for s, names in SPLIT_NAMES.items() if set(words) & set(names)), "train"), []
        ).append(file)
    if "train" not in splits:
        return {"train": [file for own in splits.values() for file in own]}
    return {split: splits[split] for split in SPLIT_NAMES if split in splits}


def paths(files: Iterable[Path]) -> str:
    """A YAML list of paths.

    Raises `SpecError` for a name that is not UTF-8.
    """
    names = list(map(str, files))
    for name in names:
        if any("\ud800" <= character <= "\udfff" for character in name):
            raise SpecError(f"--data: {name!r} is not UTF-8, and no spec can record it; rename it")
    return on_one_line(names)


def section(values: dict[str, str]) -> str:
    """Lines of a section of the spec, each an option with its YAML value."""
    return "\n".join(f"  {name}: {value}" for name, value in values.items() if value)


def listed(names: Iterable[object], most: int = 5) -> str:
    """Names for a sentence."""
    shown = list(map(str, names))
    return ", ".join(shown[:most]) + (
        f" and {len(shown) - most:,} more" if len(shown) > most else ""
    )
