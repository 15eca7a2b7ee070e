"""A first spec for pairs of texts: two files that are parallel by line, or two columns of a
table.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from bigmodel_cli.data.reading import lines, plain_name
from bigmodel_cli.data.text.corpus import ENDINGS
from bigmodel_cli.data.text.pair_files import PairSource, parallel
from bigmodel_cli.init.draft import (
    CHARACTERS_OF_A_TOKEN,
    Draft,
    Wanted,
    by_split,
    context_of,
    epochs,
    section,
    tokenizer,
    warmup,
)
from bigmodel_cli.init.draft import paths as spelled
from bigmodel_cli.yaml_scalars import on_one_line

SEEN = 18_000_000
"""Characters of both sides that are seen in training: some eight minutes on two cores."""
LOOKED_AT = 5000
PREFIX = {"train": "", "val": "val_", "test": "test_"}


def sides_of(paths: Sequence[Path], files: Sequence[Path]) -> tuple[list[Path], list[Path]] | None:
    """The files of sources and of targets, in one order; None where these are not pairs.

    Two files whose names differ only in their ending (train.de, train.en), or a folder of such; or
    two .txt with equally many lines.
    """
    names = [plain_name(file).rpartition(".") for file in files]
    ends = list(dict.fromkeys(end for _, _, end in names))
    if len(ends) == 2 and not any(
        f".{end}" in (*ENDINGS, ".csv", ".tsv", ".parquet") for end in ends
    ):
        sides = [
            sorted((f for f, n in zip(files, names, strict=True) if n[2] == end), key=plain_name)
            for end in ends
        ]
        stems = [[plain_name(file).rpartition(".")[0] for file in side] for side in sides]
        single = len(files) == 2 and len(paths) == 2
        if stems[0] == stems[1] or single:
            return sides[0], sides[1]
    if len(paths) == 2 and len(files) == 2 and all(name[2] == "txt" for name in names):
        counts = [sum(1 for _ in lines(file)) for file in files]
        return ([files[0]], [files[1]]) if counts[0] == counts[1] else None
    return None


def of_pairs(paths: Sequence[Path], files: Sequence[Path], wanted: Wanted) -> Draft:
    """An encoder-decoder for files that are parallel by line."""
    sides = sides_of(paths, files)
    assert sides is not None
    splits = [by_split(side) for side in sides]
    named = {
        f"{PREFIX[split]}{side}": spelled(own[split])
        for split in splits[0]
        for side, own in zip(("source", "target"), splits, strict=True)
    }
    source = parallel(
        "train",
        {side: tuple(own["train"]) for side, own in zip(("source", "target"), splits, strict=True)},
    )
    first, second = (own["train"][0] for own in splits)
    note = (
        f"{first.name} is read, {second.name} is written; the other way: --data {second} --data"
        f" {first}"
    )
    return draft_pairs("pairs", named, source, (note,))


def draft_pairs(
    kind: str, data: dict[str, str], source: PairSource, notes: tuple[str, ...]
) -> Draft:
    """An encoder-decoder for pairs; `data` are the source's options."""
    rows = list(islice(source.rows(), LOOKED_AT))
    count = source.count()
    tokens, why = tokenizer(source.characters, 4096)
    context = context_of([max(map(len, row)) for row in rows], tokens)
    options = {
        **data,
        "context": (
            f"{context}                # tokens of the longer side; longer training pairs are"
            " left out"
        ),
        "tokenizer": on_one_line(tokens),
    }
    passes = epochs(source.characters, SEEN)
    batch = max(4 * context, min(2048, source.characters // 60))
    side = source.characters / 2 / (1 if tokens["type"] == "bytes" else CHARACTERS_OF_A_TOKEN)
    many = (f"{count:,} pairs for training; {why}; sides of up to {context} tokens",)
    values = {
        "type": kind,
        "data": section(options),
        "epochs": str(passes),
        "batch": str(batch),
        "warmup": str(warmup(passes * max(1, side / batch), 200)),
    }
    return Draft("pairs", values, (*notes, *many), rows[0][0])
