"""Where pairs of texts come from: two files that are parallel by line, or two columns of a table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np

from bigmodel_cli.data.cache import cache_directory, publish
from bigmodel_cli.data.cleaning import clean
from bigmodel_cli.data.corpus import Corpus, Survey, Texts, survey
from bigmodel_cli.data.order import Ints
from bigmodel_cli.data.reading import is_json_lines, lines
from bigmodel_cli.data.table_files import Columns, rows_of
from bigmodel_cli.data.table_header import are_names
from bigmodel_cli.data.table_survey import survey_table
from bigmodel_cli.errors import DataError

SIDES = ("source", "target")
Pair = tuple[str, str]
FORMAT = 1  # of the cached counts
ENDS = 2  # documents: a tokenizer that is fitted on several has a mark for the end of each


@dataclass(frozen=True)
class PairSource:
    """The pairs of a split: `rows` reads them, `digest` names their content, `corpus` has the texts of one side, or of both.

    `notes` are what a reader of the files should know.
    """

    rows: Callable[[], Iterator[Pair]]
    digest: list[str]
    characters: int
    corpus: Callable[[str | None], tuple[Corpus, Survey]]
    notes: tuple[str, ...] = ()

    def count(self) -> int:
        """How many pairs there are: counted once, and kept in the cache by their content."""
        key = hashlib.sha256(json.dumps(["pairs", FORMAT, self.digest]).encode()).hexdigest()
        kept = cache_directory("surveys") / f"{key}.json"
        if not kept.exists():
            publish(kept, json.dumps(sum(1 for _ in self.rows())).encode())
        return int(json.loads(kept.read_text(encoding="utf-8")))

    def part(self, chosen: Ints, count: int) -> PairSource:
        """The pairs of those numbers, of `count`, alone."""
        inside = np.zeros(count, bool)
        inside[chosen] = True
        digest = [*self.digest, hashlib.sha256(chosen.tobytes()).hexdigest()]

        def rows() -> Iterator[Pair]:
            return (pair for pair, taken in zip(self.rows(), inside, strict=True) if taken)

        def corpus(side: str | None) -> tuple[Corpus, Survey]:
            _, found = self.corpus(side)  # the characters are those of all pairs
            numbers = range(len(SIDES)) if side is None else (SIDES.index(side),)
            texts = Texts(files=(), source=lambda: (pair[i] for pair in rows() for i in numbers))
            return texts, replace(found, digest=f"{found.digest}-{digest[-1]}")

        return PairSource(rows, digest, self.characters * len(chosen) // count, corpus)


def parallel(split: str, files: dict[str, tuple[Path, ...]]) -> PairSource:
    """Files of sources and of targets, as many lines in each; where there are as many files of both, file by file.

    Raises `DataError` for .jsonl, whose rows are no lines of text, and for sides of different length.
    """
    if objects := [path for paths in files.values() for path in paths if is_json_lines(path)]:
        raise DataError(f"{objects[0]}: pairs are lines of text; for columns of .jsonl use data.type: pair_table")
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

    characters = sum(s.characters for s in found.values())
    return PairSource(rows, [found[side].digest for side in SIDES], characters, corpus, _names_first(together))


def table(paths: tuple[Path, ...], columns: Columns) -> PairSource:
    """Two columns of .tsv, .csv, .jsonl or .parquet files."""
    found = survey_table(paths, columns)

    def rows() -> Iterator[Pair]:
        return ((row.texts[0], row.texts[1]) for row in rows_of(paths, columns))

    def corpus(side: str | None) -> tuple[Corpus, Survey]:
        chosen = SIDES if side is None else (side,)
        texts = Texts(files=paths, source=lambda: (pair[SIDES.index(s)] for pair in rows() for s in chosen))
        digest = found.digest + ("" if side is None else f"-{side}")
        return texts, Survey(digest, found.characters, ENDS, found.symbols)

    return PairSource(rows, [found.digest], found.characters, corpus, tuple(found.notes))


def _names_first(together: Sequence[tuple[Sequence[Path], Sequence[Path]]]) -> tuple[str, ...]:
    """What is to be said of files whose first lines look like the names of columns."""
    said = []
    for sources, targets in together:
        first = [next(lines(paths[0]), "").strip() for paths in (sources, targets)]
        if are_names(first):
            said.append(
                f"warning: the first lines of {sources[0]} and {targets[0]} ({', '.join(first)}) look like the names of columns, "
                "and are read as a pair; take them out if they are names"
            )
    return tuple(said)


def _lines(paths: Sequence[Path]) -> Iterator[str]:
    return (line for path in paths for line in lines(path))


def _uneven(split: str, sources: Sequence[Path], targets: Sequence[Path]) -> DataError:
    counts = [sum(1 for _ in _lines(paths)) for paths in (sources, targets)]
    return DataError(
        f"the {split} sources ({sources[0]}) have {counts[0]:,} lines and the targets ({targets[0]}) {counts[1]:,}; line n of one "
        "belongs to line n of the other"
    )
