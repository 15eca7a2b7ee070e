"""Targets of recordings, from their names or from a file of transcripts: labels, numbers, sets of
labels, or the units that a transcript is spelled in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data.audio.recordings import Recordings
from bigmodel_cli.data.audio.texts import Spoken
from bigmodel_cli.data.base import Say
from bigmodel_cli.data.classes import classes_in, count_classes, numbers_of, say_lacking
from bigmodel_cli.data.files import find_files
from bigmodel_cli.data.order import Ints
from bigmodel_cli.data.reading import lines
from bigmodel_cli.data.targets import (
    check_kind,
    multi_hot,
    number_facts,
    read_number,
    read_set,
    sets_among,
)
from bigmodel_cli.data.text.corpus import ENDINGS
from bigmodel_cli.data.text.table_survey import alike_labels, sort_classes
from bigmodel_cli.errors import DataError


@dataclass(frozen=True)
class Targets:
    """The targets of all recordings, and the DatasetInfo's facts about them.

    `labels` (N,), sets of them (N, C) or numbers (N, K) has a row for each recording. Where each
    has a transcript instead, `labels` is None, `units` are the numbers of each one's units, and
    `between` is what separates two transcripts; or `spoken` has it as tokens.
    """

    info: DatasetInfo
    labels: Any
    units: Sequence[Ints] = ()
    between: Any = None
    spoken: Spoken | None = None


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
    for name, groups in zip(recordings.names, recordings.groups, strict=True):
        if not groups["label"].strip() and options.label_separator is None:
            raise DataError(f"{name}: data.pattern gives it an empty label")
    return [groups["label"] for groups in recordings.groups], [*recordings.names]


def read_transcripts(
    files: list[str], names: Sequence[str], base: Path, empty: bool = False
) -> tuple[list[str], list[str]]:
    """The text of each recording, from lines NAME<TAB>TEXT, and its position.

    A text may be `empty` where that is allowed.

    NAME is the recording's, with or without folder and ending.

    Raises `DataError` for a line without a tab, an empty text, two texts of one name, a name that
    several recordings have, and a recording without any text.
    """
    texts: dict[str, str] = {}
    places: dict[str, str] = {}
    for path in find_files(files, base, "data.transcripts", ENDINGS):
        for number, line in enumerate(lines(path), 1):
            if not line.strip():
                continue
            name, tab, text = line.partition("\t")
            if not tab or not (text.strip() or empty):
                raise DataError(f"{path}:{number}: not NAME<TAB>TEXT with a text that is not empty")
            if texts.setdefault(name, text) != text:
                raise DataError(
                    f"{path}:{number}: a second, other text for {name}; keep one of them"
                )
            places.setdefault(name, f"{path}:{number}")
    matched, taken = [], dict[str, str]()  # names in the files, and their recordings
    for name in names:
        pure = PurePosixPath(name)
        known = [n for n in (name, str(pure.with_suffix("")), pure.name, pure.stem) if n in texts]
        if not known:
            raise DataError(
                f"{name}: no transcript in {', '.join(files)}; add a line NAME<TAB>TEXT, or change"
                " data.pattern"
            )
        if (other := taken.setdefault(known[0], name)) != name:
            both = f"{known[0]} is the name of two recordings, {other} and {name}"
            raise DataError(f"{', '.join(files)}: {both}; write them with folder and ending")
        matched.append(known[0])
    return [texts[name] for name in matched], [places[name] for name in matched]


def read_targets(
    options: Any,
    texts: list[str],
    places: list[str],
    opened: dict[str, Ints],
    before: DatasetInfo | None,
    known: DatasetInfo | None,
    say: Say,
) -> Targets:
    """The targets in these texts; the DatasetInfo is that of the checkpoint that is `known`."""
    train = opened.get("train", np.zeros(0, np.int64))
    if options.targets:
        numbers = _numbers(options.targets, texts, places)
        facts = number_facts(options.targets, numbers[train], before, known is not None, say)
        targets = Targets(DatasetInfo(**facts), numbers)
    elif options.label_separator is not None:
        targets = _sets(options.label_separator, texts, places, opened, train, known, say)
    else:
        return _spelled(options.units, texts, opened, known, say)
    check_kind(targets.info, known)
    return targets if known is None else replace(targets, info=known)


def _sets(
    separator: str,
    texts: list[str],
    places: list[str],
    opened: dict[str, Ints],
    train: Ints,
    known: DatasetInfo | None,
    say: Say,
) -> Targets:
    sets = [read_set(t, separator, p, "label") for t, p in zip(texts, places, strict=True)]
    classes = sort_classes({name: "" for held in sets for name in held})
    if not classes:
        raise DataError("data.label_separator: no recording has a label")
    labels = multi_hot(sets, classes, "data.label_separator")
    if known is not None:
        labels, classes = sets_among(labels, classes, known.classes), known.classes
    else:
        for note in alike_labels(classes):
            say(note)
    for name, chosen in opened.items():
        say_lacking(name, "recording", classes_in(labels[chosen]), classes, say)
    counts = count_classes(labels[train], classes)
    info = DatasetInfo(classes=classes, class_counts=counts, label_sets=True, items=len(train))
    return Targets(info, labels)


def _numbers(names: list[str], texts: list[str], places: list[str]) -> Any:
    """(N, K) the numbers of all recordings."""
    rows = [text.split("\t") for text in texts]
    for row, place in zip(rows, places, strict=True):
        if len(row) != len(names):
            raise DataError(
                f"{place}: {len(row)} numbers behind the name, and data.targets names {len(names)}"
            )
    return np.array(
        [
            [
                read_number(v, place, f"data.targets ({name})")
                for v, name in zip(row, names, strict=True)
            ]
            for row, place in zip(rows, places, strict=True)
        ]
    )


def _spelled(
    units: Literal["words", "characters"] | None,
    texts: list[str],
    opened: dict[str, Ints],
    known: DatasetInfo | None,
    say: Say,
) -> Targets:
    """Labels, or transcripts in units, by the numbers of a checkpoint's classes where it is known.

    Raises `SpecError` for a class that it does not know.
    """
    names, rows, between = spell(texts, units)
    check_kind(DatasetInfo(classes=names), known)
    info = known or DatasetInfo(classes=names, spelling=units or "")
    if known is not None:
        used = np.unique(np.concatenate([rows[r] for chosen in opened.values() for r in chosen]))
        number = numbers_of(names, known.classes, [names[i] for i in used])
        rows, between = [number[own] for own in rows], number[between]
    for name, chosen in opened.items():
        there = np.concatenate([rows[r] for r in chosen]).tolist()
        say_lacking(name, "recording", there, info.classes, say)
    if units is not None:
        return Targets(info, None, rows, between)
    labels = np.concatenate(rows)
    if "train" in opened:
        counts = count_classes(labels[opened["train"]], info.classes)
        info = replace(info, class_counts=counts)
        for note in alike_labels(info.classes):
            say(note)
    return Targets(info, labels)


def spell(texts: Sequence[str], units: str | None) -> tuple[tuple[str, ...], list[Ints], Ints]:
    """(the names of the classes, each text as their numbers, what stands between two texts): each
    text is one class (units None), its words, or its characters.

    Names are in alphabetical order, numbers by size. Several spaces between words count as one.
    """
    between = [" "] if units == "characters" else []
    if units is None:
        split = [[text] for text in texts]
    elif units == "words":
        split = [text.split() for text in texts]
    else:
        split = [list(" ".join(text.split())) for text in texts]
    used = {unit for row in split for unit in row} | set(between)
    names = sorted(
        used, key=lambda n: (0, int(n), n) if n.isdecimal() and len(n) < 19 else (1, 0, n)
    )
    number = {name: i for i, name in enumerate(names)}
    rows = [np.array([number[unit] for unit in row], np.int64) for row in split]
    return tuple(names), rows, np.array([number[unit] for unit in between], np.int64)
