"""Sources of pairs of texts: two files that are parallel by line, or two columns of a table."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import compress, zip_longest
from pathlib import Path

import numpy as np

from bigmodel_cli import progress
from bigmodel_cli.data import reading
from bigmodel_cli.data.cache import cached_json
from bigmodel_cli.data.order import Ints
from bigmodel_cli.data.reading import is_json_lines, lines
from bigmodel_cli.data.text.cleaning import clean
from bigmodel_cli.data.text.corpus import ENDS, Corpus, Survey, Texts, survey
from bigmodel_cli.data.text.table_columns import Columns
from bigmodel_cli.data.text.table_files import rows_of
from bigmodel_cli.data.text.table_header import are_names
from bigmodel_cli.data.text.table_survey import survey_table
from bigmodel_cli.errors import DataError

SIDES = ("source", "target")
Pair = tuple[str, str]
FORMAT = 1  # of the cached counts


@dataclass(frozen=True)
class PairSource:
    """The pairs of a split: `rows` reads them, `digest` identifies their content, `corpus` has the
    texts of one side, or of both.

    `notes` are reports on the files; `hashes` those of the content of the files, by path.
    """

    rows: Callable[[], Iterator[Pair]]
    digest: list[str]
    characters: int
    corpus: Callable[[str | None], tuple[Corpus, Survey]]
    notes: tuple[str, ...] = ()
    hashes: dict[Path, str] = field(default_factory=dict)

    def count(self) -> int:
        """How many pairs there are: counted once, and cached by their content."""

        def read() -> int:
            with progress.reading("counting the pairs", list(self.hashes)):
                return sum(1 for _ in self.rows())

        return int(cached_json("surveys", ["pairs", FORMAT, self.digest], read))

    def part(self, chosen: Ints, count: int) -> PairSource:
        """Only the pairs with those numbers, of `count`."""
        inside = np.zeros(count, bool)
        inside[chosen] = True
        digest = [*self.digest, hashlib.sha256(chosen.tobytes()).hexdigest()]

        def rows() -> Iterator[Pair]:
            return compress(self.rows(), inside)

        def corpus(side: str | None) -> tuple[Corpus, Survey]:
            whole, found = self.corpus(side)  # the characters are those of all pairs
            numbers = range(len(SIDES)) if side is None else (SIDES.index(side),)
            texts = Texts(
                files=whole.files, source=lambda: (pair[i] for pair in rows() for i in numbers)
            )
            return texts, replace(found, digest=f"{found.digest}-{digest[-1]}")

        return replace(
            self,
            rows=rows,
            digest=digest,
            characters=self.characters * len(chosen) // count,
            corpus=corpus,
        )


def parallel(split: str, files: dict[str, tuple[Path, ...]]) -> PairSource:
    """Files of sources and of targets with equally many lines; where there are equally many files,
    file by file.

    Raises `DataError` for .jsonl, whose rows are not lines of text, and for sides of different
    length.
    """
    if objects := [path for paths in files.values() for path in paths if is_json_lines(path)]:
        raise DataError(
            f"{objects[0]}: pairs are lines of text; for columns of .jsonl use data.type:"
            " pair_table"
        )
    found = {side: survey(Corpus(paths)) for side, paths in files.items()}
    together: list[tuple[Sequence[Path], Sequence[Path]]] = [(files["source"], files["target"])]
    if len(files["source"]) == len(files["target"]):
        together = [((a,), (b,)) for a, b in zip(files["source"], files["target"], strict=True)]

    def rows() -> Iterator[Pair]:
        count = 0
        for sources, targets in together:
            for source, target in zip_longest(_lines(sources), _lines(targets)):
                if source is None or target is None:
                    raise _uneven(split, sources, targets)
                yield clean(source), clean(target)
                count += 1
        if not count:
            raise DataError(f"{files['source'][0]}: no line in it")

    def corpus(side: str | None) -> tuple[Corpus, Survey]:
        paths = files["source"] + files["target"] if side is None else files[side]
        return Corpus(paths), replace(survey(Corpus(paths)), documents=ENDS)

    digest = [_digest(files[side], found[side].hashes) for side in SIDES]
    hashes = {
        path: sha
        for side, paths in files.items()
        for path, sha in zip(paths, found[side].hashes, strict=True)
    }
    characters = sum(s.characters for s in found.values())
    return PairSource(
        rows, digest, characters, corpus, _names_first(together) + _numbers_differ(together), hashes
    )


def _digest(paths: Sequence[Path], hashes: Sequence[str]) -> str:
    """A hash of the lines of several files: as running text other lines may be the same text (a
    "\r" before a line's end).
    """

    def read() -> str:
        sha = hashlib.sha256()
        with progress.reading("reading the lines", paths):
            for path in paths:
                for line in lines(path):
                    sha.update(line.encode("utf-8") + b"\n")
                sha.update(b"\xff")  # not a byte of UTF-8: the end of a file
        return sha.hexdigest()

    packed = [path.name.lower().endswith(".gz") for path in paths]
    return str(
        cached_json("surveys", ["lines", FORMAT, reading.FORMAT, list(hashes), packed], read)
    )


def table(paths: tuple[Path, ...], columns: Columns) -> PairSource:
    """Two columns of .tsv, .csv, .jsonl or .parquet files."""
    found = survey_table(paths, columns)

    def rows() -> Iterator[Pair]:
        return ((row.texts[0], row.texts[1]) for row in rows_of(paths, columns))

    def corpus(side: str | None) -> tuple[Corpus, Survey]:
        chosen = SIDES if side is None else (side,)
        texts = Texts(
            files=paths, source=lambda: (pair[SIDES.index(s)] for pair in rows() for s in chosen)
        )
        digest = found.digest + ("" if side is None else f"-{side}")
        return texts, Survey(digest, found.characters, ENDS, found.symbols, hashes=found.hashes)

    hashes = dict(zip(paths, found.hashes, strict=True))
    return PairSource(rows, [found.digest], found.characters, corpus, tuple(found.notes), hashes)


def _names_first(together: Sequence[tuple[Sequence[Path], Sequence[Path]]]) -> tuple[str, ...]:
    """A warning about files whose first lines look like the names of columns."""
    notes = []
    for sources, targets in together:
        first = [next(lines(paths[0]), "").strip() for paths in (sources, targets)]
        if are_names(first):
            notes.append(
                f"warning: the first lines of {sources[0]} and {targets[0]} ({', '.join(first)})"
                " look like the names of columns, and are read as a pair; take them out if they"
                " are names"
            )
    return tuple(notes)


def _numbers_differ(together: Sequence[tuple[Sequence[Path], Sequence[Path]]]) -> tuple[str, ...]:
    """A warning about parallel files with different numbers in their names: 10 sorts before 2, and
    02 does not.
    """
    for sources, targets in together if len(together) > 1 else ():
        numbers = [
            [int(digits) for digits in re.findall("[0-9]+", paths[0].name)]
            for paths in (sources, targets)
        ]
        if numbers[0] != numbers[1] and all(numbers):
            return (
                (
                    f"warning: {sources[0]} is read beside {targets[0]}, whose name has another"
                    " number; name the files of both sides in the same order if they do not belong"
                    " together"
                ),
            )
    return ()


def _lines(paths: Sequence[Path]) -> Iterator[str]:
    return (line for path in paths for line in lines(path))


def _uneven(split: str, sources: Sequence[Path], targets: Sequence[Path]) -> DataError:
    counts = [sum(1 for _ in _lines(paths)) for paths in (sources, targets)]
    return DataError(
        f"the {split} sources ({sources[0]}) have {counts[0]:,} lines and the targets"
        f" ({targets[0]}) {counts[1]:,}; line n of one belongs to line n of the other"
    )
