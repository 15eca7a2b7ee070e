"""A first spec for sentences with a tag for each word."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from bigmodel_cli.data.reading import is_json_lines, json_rows, lines, plain_name
from bigmodel_cli.data.text.conll import DOCUMENT, CoNLLOptions, Sentence
from bigmodel_cli.errors import DataError
from bigmodel_cli.init.draft import (
    SMALL_TEXT,
    Draft,
    Wanted,
    by_split,
    context_of,
    epochs,
    length,
    listed,
    section,
    tokenizer,
)
from bigmodel_cli.init.draft import paths as spelled
from bigmodel_cli.yaml_scalars import on_one_line

ENDINGS = (".conll", ".conllu", ".iob", ".iob2", ".bio")
SEEN = 100_000
LOOKED_AT = 200
"""Lines of a file whose ending does not say that words with tags are in it."""
MARKS = ("B-", "I-", "S-", "E-", "L-", "U-")


def is_tagged(file: Path) -> bool:
    """Whether a file holds words with tags: by its ending; or by rows of JSON with lists tokens and
    tags; or by lines, each as wide as the others and with O, B-... or I-... last.
    """
    name = plain_name(file)
    if is_json_lines(file):
        row = next((row for _, row in json_rows(file)), {})
        return all(isinstance(row.get(key), list) for key in ("tokens", "tags"))
    if not name.endswith((".txt", ".tsv")):
        return name.endswith(ENDINGS)
    rows = [line.split() for line in islice(lines(file), LOOKED_AT) if line.strip()]
    rows = [row for row in rows if row[0] != DOCUMENT]
    tags = {row[-1] for row in rows}
    return (
        len({len(row) for row in rows}) == 1
        and len(rows[0]) > 1
        and "O" in tags
        and all(tag == "O" or tag.startswith(MARKS) for tag in tags)
    )


def of_tagged(paths: Sequence[Path], files: Sequence[Path], wanted: Wanted) -> Draft:
    """An encoder that finds a tag for each word."""
    splits = by_split(files)
    universal = all(plain_name(file).endswith(".conllu") for file in files)
    columns: dict[str, int] = {"words": 1, "tags": 3} if universal else {}
    given = {name: spelled(own) for name, own in splits.items()}
    options = CoNLLOptions.model_validate(
        {"train": list(map(str, splits["train"])), "tokenizer": {"type": "bytes"}, **columns}
    )
    found: list[Sentence] = [
        sentence for file in splits["train"] for sentence in options.sentences(file, Counter())
    ]
    if not found:
        raise DataError(f"{splits['train'][0]}: not a sentence in it")
    texts = [" ".join(sentence.words) for sentence in found]
    # A word's tag is told at one token of it: a byte would say little of the word.
    kind, _ = tokenizer(max(SMALL_TEXT, sum(map(len, texts))))
    context = context_of(list(map(len, texts)), kind)
    tags = sorted({tag for sentence in found for tag in sentence.tags})
    where = (
        "the word and UPOS of CoNLL-U, its columns 1 and 3"
        if universal
        else "keys tokens and tags"
        if all(map(is_json_lines, files))
        else "the first column and the last one"
    )
    data = {
        **given,
        **{name: str(column) for name, column in columns.items()},
        "context": f"{context}                # most tokens of a sentence; longer ones are cut",
        "tokenizer": on_one_line(kind),
    }
    notes = (
        f"{len(found):,} sentences for training; words and tags: {where}"
        f" (data.words, data.tags); {len(tags)} tags ({listed(tags)})",
        f"a BPE tokenizer of {kind['vocab_size']:,} tokens; sentences of up to {context} tokens",
    )
    values = {
        "tags": str(len(tags)),
        "data": section(data),
        **length(len(found), epochs(len(found), SEEN), 32, 50),
    }
    return Draft("tagged", values, notes, texts[0])
