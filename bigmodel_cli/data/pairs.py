"""Parallel text for encoder-decoders: a source and a target sentence per line of two files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field, model_validator

from bigmodel_cli.config import Count, Facts, Options
from bigmodel_cli.data.base import DataSet, Say, Split
from bigmodel_cli.data.cache import build_once, cache_directory
from bigmodel_cli.data.corpus import Corpus, find_files, survey
from bigmodel_cli.data.order import Ints
from bigmodel_cli.data.text import fit_tokenizer, token_dtype
from bigmodel_cli.data.tokenizer import Tokenizer, TokenizerOptions
from bigmodel_cli.errors import DataError, SpecError
from bigmodel_cli.lazy import Tensor, torch

FORMAT = 1  # of the cached tokens
PADDING = -1
SIDES = ("source", "target")
Files = Annotated[list[str], Field(min_length=1)]


class PairsOptions(Options):
    """Sentence pairs, parallel by line: files of sources and files of targets, plain or .gz."""

    type: Literal["pairs"] = "pairs"
    source: Files = Field(description="files, globs or folders of the training sources, read in this order")
    target: Files = Field(description="the same of the targets, with as many lines")
    val_source: list[str] = Field([], description="files for validation")
    val_target: list[str] = Field([], description="their targets")
    test_source: list[str] = Field([], description="files for the test split")
    test_target: list[str] = Field([], description="their targets")
    context: Count = Field(
        128, description="longest side in tokens, its end included; longer training pairs are left out"
    )
    tokenizer: TokenizerOptions = Field(
        description="text to tokens, fitted on both sides of the training pairs together"
    )

    @model_validator(mode="after")
    def _both_sides(self) -> PairsOptions:
        for split in ("val", "test"):
            if bool(getattr(self, f"{split}_source")) != bool(getattr(self, f"{split}_target")):
                raise ValueError(f"give both {split}_source and {split}_target, or neither")
        return self


def open_pairs(options: PairsOptions, *, base: Path, seed: int, say: Say, assets: Path | None = None) -> DataSet:
    """The pairs as tokens; the tokenizer is fitted, or a checkpoint's when `assets` names one."""
    files = {
        (split, side): find_files(names, base, f"data.{option}")
        for split, prefix in (("train", ""), ("val", "val_"), ("test", "test_"))
        for side in SIDES
        if (names := getattr(options, option := prefix + side))
    }
    surveys = {key: survey(Corpus(paths)) for key, paths in files.items()}
    joint = Corpus(files["train", "source"] + files["train", "target"])
    tokenizer = fit_tokenizer(options.tokenizer, {"train": joint}, {"train": survey(joint)}, None, say, assets)
    if tokenizer.end_of_text is None:
        raise SpecError("data.tokenizer: it has no mark for the end of a text, which ends a target; use bpe or bytes")
    description = [FORMAT, tokenizer.to_json().decode("utf-8"), [[*key, s.digest] for key, s in surveys.items()]]
    key = hashlib.sha256(json.dumps(description).encode()).hexdigest()
    folder = cache_directory("pairs") / key
    if not folder.is_dir():
        say(f"tokenizing {sum(s.characters for s in surveys.values()):,} characters (once: kept in {folder.parent})")
    build_once(folder, lambda draft: _write(draft, files, tokenizer))
    names = dict.fromkeys(split for split, _ in files)
    splits: dict[str, Split] = {
        n: Pairs(folder, n, {side: files[n, side] for side in SIDES}, tokenizer, options.context, say) for n in names
    }
    facts = Facts(vocab_size=tokenizer.vocab_size, context=options.context)
    return DataSet(facts, f"{key}-{options.context}", splits, {"tokenizer.json": tokenizer.to_json()})


class Pairs:
    """{"source": (B, S), "target": (B, T + 1)} int64, -1 after a row's end.

    A source is its tokens and the end; a target begins with the end as well, which says: write. In training, pairs with an empty
    or too long side are left out; in evaluation every pair stays, cut where it is too long.
    """

    resident = False
    lengths: Ints | None

    def __init__(
        self,
        folder: Path,
        name: str,
        files: dict[str, tuple[Path, ...]],
        tokenizer: Tokenizer,
        context: int,
        say: Say,
    ) -> None:
        self.files = files
        assert tokenizer.end_of_text is not None
        self.end, self.longest = tokenizer.end_of_text, context - 1
        dtype = token_dtype(tokenizer)
        self.tokens: dict[str, Any] = {}
        self.starts: dict[str, Ints] = {}
        self.lengths_of: dict[str, Ints] = {}
        for side in SIDES:
            path = folder / f"{name}.{side}.bin"
            self.tokens[side] = np.memmap(path, dtype=dtype, mode="r") if path.stat().st_size else np.zeros(0, dtype)
            ends = np.load(folder / f"{name}.{side}.ends.npy")
            self.starts[side] = np.concatenate((np.zeros(1, np.int64), ends[:-1]))
            self.lengths_of[side] = ends - self.starts[side]
        count = len(self.lengths_of["source"])
        self.kept = np.arange(count)
        if name == "train":
            sides = np.stack([self.lengths_of[side] for side in SIDES])
            self.kept = np.flatnonzero((sides.min(0) > 0) & (sides.max(0) <= self.longest))
            if len(self.kept) < count:
                say(
                    f"{count - len(self.kept):,} of {count:,} training pairs are left out: empty, or longer than {context}"
                )
            if not len(self.kept):
                raise DataError(f"no training pair fits into data.context {context}; make it larger")
        sides = np.stack([self.lengths_of[side][self.kept] for side in SIDES])
        self.lengths = np.minimum(sides.max(0), self.longest) + 1

    def __len__(self) -> int:
        return len(self.kept)

    def texts(self) -> tuple[list[str], list[str]]:
        """(sources, targets) of every pair, as they were read."""
        source, target = (list(_lines(self.files[side])) for side in SIDES)
        return [source[i] for i in self.kept], [target[i] for i in self.kept]

    def to(self, device: torch.device) -> None:
        """Nothing is held that could move."""

    def batch(self, samples: Ints, epoch: int, seed: int, augment: bool) -> dict[str, Tensor]:
        """The pairs, each side padded to its longest."""
        rows = self.kept[samples]
        return {"source": self.side("source", rows, 0), "target": self.side("target", rows, 1)}

    def side(self, side: str, rows: Ints, first: int) -> Tensor:
        """(B, first + longest + 1): `first` marks, the tokens, the end."""
        tokens, starts = self.tokens[side], self.starts[side][rows]
        lengths = np.minimum(self.lengths_of[side][rows], self.longest)
        place = np.arange(int(lengths.max(initial=0)))
        taken = np.full((len(rows), first + len(place) + 1), PADDING, np.int64)
        taken[:, :first] = self.end
        if len(place):
            index = np.minimum(starts[:, None] + place, len(tokens) - 1)
            taken[:, first:-1] = np.where(place < lengths[:, None], tokens[index].astype(np.int64), PADDING)
        taken[np.arange(len(rows)), first + lengths] = self.end
        return torch.from_numpy(taken)


def _write(draft: Path, files: dict[tuple[str, str], tuple[Path, ...]], tokenizer: Tokenizer) -> None:
    """For each split and side the tokens of all lines, one after the other, and where each line ends."""
    for split in dict.fromkeys(split for split, _ in files):
        counts = {}
        for side in SIDES:
            ends, total = [], 0
            with open(draft / f"{split}.{side}.bin", "wb") as file:
                for line in _lines(files[split, side]):
                    tokens = np.asarray(tokenizer.encode_array(line) if line else [], token_dtype(tokenizer))
                    file.write(tokens.tobytes())
                    total += len(tokens)
                    ends.append(total)
            np.save(draft / f"{split}.{side}.ends.npy", np.asarray(ends, np.int64))
            counts[side] = len(ends)
        if counts["source"] != counts["target"]:
            raise DataError(
                f"the {split} sources ({files[split, 'source'][0]}) have {counts['source']:,} lines and the targets "
                f"({files[split, 'target'][0]}) {counts['target']:,}; line n of one belongs to line n of the other"
            )
        if not counts["source"]:
            raise DataError(f"{files[split, 'source'][0]}: no line in it")


def _lines(paths: tuple[Path, ...]) -> Iterator[str]:
    """The lines of the files, without their ends and the spaces around them."""
    for path in paths:
        kept = ""
        for piece in Corpus((path,)).pieces(path):
            *whole, kept = (kept + piece).split("\n")
            yield from (line.strip() for line in whole)
        if kept:
            yield kept.strip()
