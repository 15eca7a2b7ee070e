"""A first spec for running text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bigmodel_cli.data.text.corpus import Corpus, survey
from bigmodel_cli.errors import DataError
from bigmodel_cli.init.draft import (
    CHARACTERS_OF_A_TOKEN,
    LARGE_TEXT,
    Draft,
    Wanted,
    by_split,
    listed,
    section,
    tokenizer,
    warmup,
)
from bigmodel_cli.init.draft import paths as spelled
from bigmodel_cli.yaml_scalars import on_one_line

SEEN, PASSES = 2_400_000, 40
"""Most tokens, and most passes over the text, in training: minutes on two cores."""
BATCH = 16
MOST_CHARACTERS = 256
"""Most different characters for a tokenizer of characters."""
LEAST = 400


def of_texts(
    paths: Sequence[Path], files: Sequence[Path], wanted: Wanted, field: str = ""
) -> Draft:
    """A small decoder that continues the text; `field` is the key of the text in .jsonl."""
    splits = by_split(files)
    named = {"train": "files", "val": "val_files", "test": "test_files"}
    given = {"train": [paths[0]]} if len(paths) == 1 and len(splits) == 1 and not field else splits
    surveyed = survey(Corpus(tuple(splits["train"]), field or "text"))
    if surveyed.characters < LEAST:
        raise DataError(
            f"{files[0]}: {surveyed.characters:,} characters of text; a model learns to write from"
            f" {LEAST:,} or more"
        )
    few = surveyed.characters < LARGE_TEXT and len(surveyed.symbols) <= MOST_CHARACTERS
    kind, why = tokenizer(surveyed.characters)
    if few:
        kind, why = (
            {"type": "characters"},
            f"{len(surveyed.symbols)} different characters are the tokens",
        )
    tokens = surveyed.characters // (CHARACTERS_OF_A_TOKEN + 1 if kind["type"] == "bpe" else 1)
    context = max(8, min(128, 1 << ((tokens // 40).bit_length() - 1)))
    large = surveyed.characters >= LARGE_TEXT
    seen = min(SEEN // 4 if large else SEEN, PASSES * tokens)
    steps = max(200, seen // (BATCH * context))
    data = {
        **{named[name]: spelled(own) for name, own in given.items()},
        "field": on_one_line(field) if field else "",
        "context": f"{context}                # tokens that the model sees at once",
        "tokenizer": on_one_line(kind),
    }
    texts = "1 text" if surveyed.documents == 1 else f"{surveyed.documents:,} texts"
    notes = (
        f"{texts} of {surveyed.characters:,} characters for training" + _others(splits),
        f"tokenizer: {why}; a model that continues text, by windows of {context} tokens",
    )
    start = " ".join(_first(splits["train"][0], field).split()[:2])[:20]
    values = {
        "data": section(data),
        "dim": "256" if large else "128",
        "prompt": on_one_line(start),
        "steps": str(steps),
        "batch": str(BATCH),
        "warmup": str(warmup(steps, 50)),
    }
    return Draft("texts", values, notes, start)


def _others(splits: dict[str, list[Path]]) -> str:
    others = [f"{name}: {listed(own)}" for name, own in splits.items() if name != "train"]
    return "; by their names " + "; ".join(others) if others else ""


def _first(path: Path, field: str) -> str:
    return next(
        (text for document in Corpus((path,), field or "text").documents() for text in document), ""
    )
