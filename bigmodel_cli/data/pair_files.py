"""Where pairs of texts come from: two files that are parallel by line, or two columns of a table."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import zip_longest
from pathlib import Path

import numpy as np

from bigmodel_cli.data.cache import cache_directory, publish
from bigmodel_cli.data.corpus import Corpus, Survey, Texts, survey
from bigmodel_cli.data.order import Ints
from bigmodel_cli.data.table_files import Columns, lines, rows_of
from bigmodel_cli.data.table_survey import survey_table
from bigmodel_cli.errors import DataError

SIDES = ("source", "target")
Pair = tuple[str, str]
FORMAT = 1  # of the cached counts
ENDS = 2  # documents: a tokenizer that is fitted on several has a mark for the end of each


@dataclass(frozen=True)
class PairSource:
    """The pairs of a split: `rows` reads them, `digest` names their content, `corpus` has the texts of one side, or of both."""

    rows: Callable[[], Iterator[Pair]]
    digest: list[str]
    characters: int
    corpus: Callable[[str | None], tuple[Corpus, Survey]]

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
    """Files of sources and of targets, as many lines in each."""
    found = {side: survey(Corpus(paths)) for side, paths in files.items()}

    def rows() -> Iterator[Pair]:
        count = 0
        for source, target in zip_longest(*(_lines(files[side]) for side in SIDES)):
            if source is None or target is None:
                raise _uneven(split, files)
            yield source.strip(), target.strip()
            count += 1
        if not count:
            raise DataError(f"{files['source'][0]}: no line in it")

    def corpus(side: str | None) -> tuple[Corpus, Survey]:
        paths = files["source"] + files["target"] if side is None else files[side]
        return Corpus(paths), replace(survey(Corpus(paths)), documents=ENDS)

    return PairSource(rows, [found[side].digest for side in SIDES], sum(s.characters for s in found.values()), corpus)


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

    return PairSource(rows, [found.digest], found.characters, corpus)


def _lines(paths: tuple[Path, ...]) -> Iterator[str]:
    return (line for path in paths for line in lines(path))


def _uneven(split: str, files: dict[str, tuple[Path, ...]]) -> DataError:
    counts = {side: sum(1 for _ in _lines(files[side])) for side in SIDES}
    return DataError(
        f"the {split} sources ({files['source'][0]}) have {counts['source']:,} lines and the targets "
        f"({files['target'][0]}) {counts['target']:,}; line n of one belongs to line n of the other"
    )
