"""A first spec for a table: texts with what is learnt of them, pairs of texts, or texts alone, by
what its columns hold.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from bigmodel_cli.data.reading import is_json_lines
from bigmodel_cli.data.text.pair_files import table as pairs_of_table
from bigmodel_cli.data.text.table_columns import Column, Columns
from bigmodel_cli.data.text.table_files import rows_of
from bigmodel_cli.data.text.table_look import SeenColumn, SeenTable, look_at_table
from bigmodel_cli.data.text.table_survey import survey_table
from bigmodel_cli.errors import SpecError
from bigmodel_cli.init.draft import (
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
from bigmodel_cli.init.images import of_parquet
from bigmodel_cli.init.learnt import Learnt, learnt_of, named
from bigmodel_cli.init.pairs import draft_pairs
from bigmodel_cli.init.texts import of_texts
from bigmodel_cli.yaml_scalars import on_one_line

SEEN, CHARACTERS = 55_000, 30_000_000
"""Most rows, and most characters, that are seen in training: minutes on two cores."""
LOOKED_AT = 5000


@dataclass(frozen=True)
class _Table:
    """The files of a table, and what its first rows look like."""

    splits: Mapping[str, Sequence[Path]]
    seen: SeenTable

    @property
    def header(self) -> bool | None:
        """`data.header`: left out where columns have names, since those are given."""
        has_names = any(isinstance(column.name, str) for column in self.seen.columns)
        return None if has_names else False

    def options(self, columns: Mapping[str, str]) -> dict[str, str]:
        """The options of `data`: its files, these columns, and how rows are split."""
        options = {name: spelled(own) for name, own in self.splits.items()} | dict(columns)
        if self.header is not None:
            options["header"] = "false"
        if self.seen.delimiter:
            options["delimiter"] = f'"{self.seen.delimiter}"'.replace("\t", "\\t")
        return options


def of_tables(paths: Sequence[Path], files: Sequence[Path], wanted: Wanted) -> Draft:
    """An encoder that judges texts, an encoder-decoder for two columns of text, or a decoder for
    one without labels.
    """
    splits = by_split(files)
    table = _Table(splits, look_at_table(splits["train"][0]))
    learnt, notes = learnt_of(table.seen, wanted)
    images = [column.name for column in table.seen.columns if column.is_image()]
    if images and learnt and learnt.task == Learnt.task:
        made = of_parquet(splits, str(images[0]), str(learnt.column.name))
        return replace(made, notes=(*notes, *made.notes))
    texts, more = _texts(table.seen, wanted, learnt.column if learnt else None)
    notes += more
    if table.seen.delimiter:
        notes.append(f"columns stand between {table.seen.delimiter!r}")
    if learnt is None and len(texts) == 2:
        return _of_pairs(table, texts[0].name, texts[1].name, notes)
    if learnt is None and all(map(is_json_lines, files)):
        made = of_texts(paths, files, wanted, str(texts[0].name))
        return replace(made, notes=(*notes, *made.notes))
    return _of_rows(table, [text.name for text in texts], learnt, notes)


def _of_pairs(table: _Table, source: Column, target: Column, notes: list[str]) -> Draft:
    """An encoder-decoder from one column to another."""
    options = ("source", "target")
    columns = Columns((source, target), None, table.header, options, table.seen.delimiter)
    data = table.options({"source": on_one_line(source), "target": on_one_line(target)})
    notes.append(
        f"{source!r} is read, and {target!r} is written; --text twice in the other order for the"
        " other way"
    )
    pairs = pairs_of_table(tuple(table.splits["train"]), columns)
    return draft_pairs("pair_table", data, pairs, tuple(notes))


def _of_rows(
    table: _Table, names: Sequence[Column], learnt: Learnt | None, notes: list[str]
) -> Draft:
    """An encoder for what is learnt of the texts, or a decoder of them."""
    columns = Columns(tuple(names), None, table.header, delimiter=table.seen.delimiter)
    if learnt:
        columns = replace(
            columns, label=learnt.label, separator=learnt.separator, targets=learnt.targets
        )
    train = tuple(table.splits["train"])
    found = survey_table(train, columns)
    kind, why = tokenizer(found.characters)
    rows = list(islice(rows_of(train, columns), LOOKED_AT))
    context = context_of([sum(map(len, row.texts)) for row in rows], kind)
    options = {
        **table.options({"text": on_one_line(list(names)), **(learnt.options if learnt else {})}),
        "context": f"{context}                # most tokens of a row; longer ones are cut",
        "tokenizer": on_one_line(kind),
    }
    notes.append(f"{found.rows:,} rows for training; {why}; rows of up to {context} tokens")
    notes += found.notes
    task = learnt.task if learnt else ""
    passes = epochs(found.rows, min(SEEN, CHARACTERS * found.rows / found.characters))
    values = {
        "data": section(options),
        "question": learnt.question(len(found.counts)) if learnt else "",
        "task": task,
        "token_types": (
            "\n  token_types: 2             # tells the two texts apart" if len(names) == 2 else ""
        ),
        "dropped": "0.1" if kind["type"] == "bytes" else "0.2",
        "smoothing": ", label_smoothing: 0.1" if task == Learnt.task else "",
        **length(found.rows, passes, 32, 100 if learnt else 50),
    }
    template = "tables" if learnt else "rows"
    return Draft(template, values, tuple(notes), "\t".join(rows[0].texts))


def _texts(
    seen: SeenTable, wanted: Wanted, label: SeenColumn | None
) -> tuple[list[SeenColumn], list[str]]:
    """The one or two columns of text. Raises `SpecError` where there is none."""
    if len(wanted.text) > 2:
        raise SpecError(f"--text: {len(wanted.text)} columns; a row has one text, or two")
    if wanted.text:
        return [named(seen, name, "--text") for name in wanted.text], []
    found = [c for c in seen.columns if c is not label and c.is_text()]
    if not found and wanted.label and len(left := _of_words(seen, label)) == 1:
        found = left  # nothing else can be meant, though its values repeat
    if not found:
        raise SpecError(
            f"--data: no column of texts among {listed([c.name for c in seen.columns], 10)}; name"
            " it with --text COLUMN (networks here read texts, images and sounds, not numbers)"
        )
    longest = sorted(found, key=lambda c: -sum(map(len, c.strings)) / max(1, len(c.strings)))
    kept = [c for c in found if c in (longest[:1] if len(found) > 2 else found)]
    notes = [f"text: {' and '.join(repr(c.name) for c in kept)}"]
    if others := [c for c in found if c not in kept]:
        notes.append(
            f"{listed(repr(c.name) for c in others)} hold text too: --text COLUMN takes another, or"
            " two of them"
        )
    elif len(kept) == 2 and label is not None:
        notes.append(
            f"both texts of a row are read, as a pair: --text {kept[0].name} takes one of them"
        )
    return kept, notes


def _of_words(seen: SeenTable, label: SeenColumn | None) -> list[SeenColumn]:
    """The columns of words, beside the label's: neither numbers nor anything but strings."""
    return [
        c
        for c in seen.columns
        if c is not label and len(c.strings) == len(c.values) and not c.is_numbers()
    ]
