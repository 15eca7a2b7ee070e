"""Targets of recordings, from their names or from a file: labels, numbers, sets of labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data.audio.recordings import Recordings
from bigmodel_cli.data.audio.transcripts import read_transcripts
from bigmodel_cli.data.base import Say, classes_in, count_classes, say_lacking
from bigmodel_cli.data.order import Ints
from bigmodel_cli.data.targets import multi_hot, number_facts, read_number, read_set, sets_among
from bigmodel_cli.data.text.table_survey import alike_labels, sort_classes
from bigmodel_cli.errors import DataError


def texts_of(options: Any, recordings: Recordings, base: Path) -> tuple[list[str], list[str]]:
    """The text of each recording, from its name or a file, and its position; numbers have tabs
    between.
    """
    if options.transcripts:
        empty = options.label_separator is not None
        return read_transcripts(options.transcripts, recordings.names, base, empty)
    if options.targets:
        return ["\t".join(groups[n] for n in options.targets) for groups in recordings.groups], [
            *recordings.names
        ]
    return _labels(recordings, options.label_separator is not None), [*recordings.names]


def beside_recordings(
    options: Any,
    texts: list[str],
    places: list[str],
    opened: dict[str, Ints],
    before: DatasetInfo | None,
    known: bool,
    say: Say,
) -> tuple[Any, DatasetInfo]:
    """The numbers or sets of labels of all recordings, one a row, and the DatasetInfo's facts about
    them.
    """
    train = opened.get("train", np.zeros(0, np.int64))
    if options.label_separator is not None:
        sets = [
            read_set(t, options.label_separator, place, "label")
            for t, place in zip(texts, places, strict=True)
        ]
        names = sort_classes({name: "" for held in sets for name in held})
        if not names:
            raise DataError("data.label_separator: no recording has a label")
        beside, classes = multi_hot(sets, names, "data.label_separator"), names
        if known and before is not None:
            beside, classes = sets_among(beside, names, before.classes), before.classes
        for note in [] if known else alike_labels(names):
            say(note)
        for name, chosen in opened.items():
            say_lacking(name, "recording", classes_in(beside[chosen]), classes, say)
        counts = count_classes(beside[train], classes)
        return beside, DatasetInfo(
            classes=classes, class_counts=counts, label_sets=True, items=len(train)
        )
    rows = [text.split("\t") for text in texts]
    for row, place in zip(rows, places, strict=True):
        if len(row) != len(options.targets):
            raise DataError(
                f"{place}: {len(row)} numbers behind the name, and data.targets names"
                f" {len(options.targets)}"
            )
    numbers = np.array(
        [
            [
                read_number(v, place, f"data.targets ({name})")
                for v, name in zip(row, options.targets, strict=True)
            ]
            for row, place in zip(rows, places, strict=True)
        ]
    )
    return numbers, DatasetInfo(**number_facts(options.targets, numbers[train], before, known, say))


def _labels(recordings: Recordings, empty: bool) -> list[str]:
    for name, groups in zip(recordings.names, recordings.groups, strict=True):
        if not groups["label"].strip() and not empty:
            raise DataError(f"{name}: data.pattern gives it an empty label")
    return [groups["label"] for groups in recordings.groups]
