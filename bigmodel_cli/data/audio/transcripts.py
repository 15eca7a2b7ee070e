"""Transcripts of recordings: a label, or a line of a file; spelled in words or in characters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from bigmodel_cli.data.files import find_files
from bigmodel_cli.data.order import Ints
from bigmodel_cli.data.reading import lines
from bigmodel_cli.data.text.corpus import ENDINGS
from bigmodel_cli.errors import DataError


@dataclass(frozen=True)
class Units:
    """The names of the classes or units, each recording's as numbers, and the separator of two
    transcripts.
    """

    names: tuple[str, ...]
    units: list[Ints]
    between: Ints


def spell(texts: Sequence[str], units: str | None) -> Units:
    """Each text as one class (units None), as its words, or as its characters.

    Names are in alphabetical order, numbers by size. Several spaces between words count as one.
    """
    between = [" "] if units == "characters" else []
    if units is None:
        split = [[text] for text in texts]
    elif units == "words":
        split = [text.split() for text in texts]
    else:
        split = [list(" ".join(text.split())) for text in texts]
    found = {unit for row in split for unit in row} | set(between)
    names = sorted(
        found, key=lambda n: (0, int(n), n) if n.isdecimal() and len(n) < 19 else (1, 0, n)
    )
    number = {name: i for i, name in enumerate(names)}
    rows = [np.array([number[unit] for unit in row], np.int64) for row in split]
    return Units(tuple(names), rows, np.array([number[unit] for unit in between], np.int64))


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
    found, taken = [], dict[str, str]()  # names in the files, and their recordings
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
        found.append(known[0])
    return [texts[name] for name in found], [places[name] for name in found]
