"""A first spec for a table: labelled texts, pairs of texts, or texts alone, by what its columns
hold.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from bigmodel_cli.data.reading import is_json_lines
from bigmodel_cli.data.text.pair_files import table as pairs_of_table
from bigmodel_cli.data.text.table_files import Columns, rows_of
from bigmodel_cli.data.text.table_header import LABELS, column_name
from bigmodel_cli.data.text.table_look import SeenColumn, SeenTable, look_at_table
from bigmodel_cli.data.text.table_survey import survey_table
from bigmodel_cli.errors import SpecError, did_you_mean
from bigmodel_cli.init.draft import (
    Draft,
    Wanted,
    batch_size,
    by_split,
    context_of,
    epochs,
    listed,
    section,
    tokenizer,
)
from bigmodel_cli.init.draft import paths as spelled
from bigmodel_cli.init.images import of_parquet
from bigmodel_cli.init.pairs import draft_pairs
from bigmodel_cli.init.texts import of_texts
from bigmodel_cli.yaml_source import on_one_line

SEEN = 50_000
LOOKED_AT = 5000


def of_tables(paths: Sequence[Path], files: Sequence[Path], wanted: Wanted) -> Draft:
    """An encoder that classifies texts, an encoder-decoder for two columns of text, or a decoder
    for one without labels.
    """
    splits = by_split(files)
    seen = look_at_table(splits["train"][0])
    label, notes = _label(seen, wanted)
    images = [column.name for column in seen.columns if column.is_image()]
    if images and label is not None:
        made = of_parquet(splits, str(images[0]), str(label.name))
        return replace(made, notes=(*notes, *made.notes))
    texts, more = _texts(seen, wanted, label)
    notes += more
    data = {name: spelled(own) for name, own in splits.items()}
    delimiter = {"delimiter": f'"{seen.delimiter}"'.replace("\t", "\\t")} if seen.delimiter else {}
    if seen.delimiter:
        notes.append(f"columns stand between {seen.delimiter!r}")
    named = any(isinstance(column.name, str) for column in seen.columns)
    header = {} if named else {"header": "false"}
    train = tuple(splits["train"])
    if label is None and len(texts) == 2:
        source, target = texts
        columns = Columns(
            (source.name, target.name),
            None,
            None if named else False,
            ("source", "target"),
            seen.delimiter,
        )
        sides = {"source": on_one_line(source.name), "target": on_one_line(target.name)}
        notes.append(
            f"{source.name!r} is read, and {target.name!r} is written; --text twice in the other"
            " order for the other way"
        )
        return draft_pairs(
            "pair_table",
            {**data, **sides, **header, **delimiter},
            pairs_of_table(train, columns),
            tuple(notes),
        )
    if label is None and all(map(is_json_lines, files)):
        made = of_texts(paths, files, wanted, str(texts[0].name))
        return replace(made, notes=(*notes, *made.notes))
    names = tuple(text.name for text in texts)
    columns = Columns(
        names,
        None if label is None else label.name,
        None if named else False,
        delimiter=seen.delimiter,
    )
    found = survey_table(train, columns)
    kind, why = tokenizer(found.characters)
    rows = list(islice(rows_of(train, columns), LOOKED_AT))
    context = context_of([sum(map(len, row.texts)) for row in rows], kind)
    options = {
        **data,
        "text": on_one_line(list(names)),
        "label": "" if label is None else on_one_line(label.name),
        **header,
        **delimiter,
        "context": f"{context}                # most tokens of a row; longer ones are cut",
        "tokenizer": on_one_line(kind),
    }
    notes.append(f"{found.rows:,} rows for training; {why}; rows of up to {context} tokens")
    notes += found.notes
    values = {
        "data": section(options),
        "classes": str(len(found.counts)),
        "token_types": (
            "\n  token_types: 2             # tells the two texts apart" if len(names) == 2 else ""
        ),
        "epochs": str(epochs(found.rows, SEEN)),
        "batch": str(batch_size(found.rows, 32)),
    }
    return Draft(
        "tables" if label is not None else "rows", values, tuple(notes), "\t".join(rows[0].texts)
    )


def _label(seen: SeenTable, wanted: Wanted) -> tuple[SeenColumn | None, list[str]]:
    """The column of labels, or None, with notes on the choice."""
    if wanted.label is not None:
        return (_named(seen, wanted.label, "--label") if wanted.label else None), []
    found = [c for c in seen.columns if c.is_label() and str(c.name) not in wanted.text]
    usual = [c for c in found if column_name(str(c.name)) in LABELS]
    if not found:
        named = [
            c.name for c in seen.columns if column_name(str(c.name)) in LABELS and not c.is_text()
        ]
        return None, [
            f"{n!r} is not taken for labels, since values are missing, fractions, or too many"
            for n in named[:1]
        ]
    chosen = (usual or sorted(found, key=lambda c: len(c.counts)))[0]
    notes = [
        f"label: {chosen.name!r}, of {len(chosen.counts)} classes ({listed(sorted(chosen.counts))})"
    ]
    if others := [c for c in found if c is not chosen]:
        shown = listed(f"{c.name!r} ({len(c.counts)} values)" for c in others)
        notes.append(
            f"{shown} may hold labels too: --label {others[0].name} takes it, --label '' none"
        )
    return chosen, notes


def _texts(
    seen: SeenTable, wanted: Wanted, label: SeenColumn | None
) -> tuple[list[SeenColumn], list[str]]:
    """The one or two columns of text.

    Raises `SpecError` where there is none.
    """
    if len(wanted.text) > 2:
        raise SpecError(f"--text: {len(wanted.text)} columns; a row has one text, or two")
    if wanted.text:
        return [_named(seen, name, "--text") for name in wanted.text], []
    found = [c for c in seen.columns if c is not label and c.is_text()]
    if not found:
        raise SpecError(
            f"--data: no column of texts among {listed([c.name for c in seen.columns], 10)}; name"
            " it with --text COLUMN"
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


def _named(seen: SeenTable, name: str, option: str) -> SeenColumn:
    """The column of that name or number.

    Raises `SpecError` where there is none.
    """
    by_name: dict[str, SeenColumn] = {str(column.name): column for column in seen.columns}
    if name not in by_name:
        raise SpecError(
            f"{option} {name}: no such column; there are"
            f" {listed(by_name, 10)}{did_you_mean(name, by_name)}"
        )
    return by_name[name]
