"""Where pairs of texts come from: two files that are parallel by line, or two columns of a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import zip_longest
from pathlib import Path

from bigmodel_cli.data.corpus import Corpus, Survey, Texts, survey
from bigmodel_cli.data.hashes import check_unchanged
from bigmodel_cli.data.table_files import Columns, lines, rows_of
from bigmodel_cli.data.table_survey import survey_table
from bigmodel_cli.errors import DataError

SIDES = ("source", "target")
Pair = tuple[str, str]
ENDS = 2  # documents: a tokenizer that is fitted on several has a mark for the end of each


@dataclass(frozen=True)
class PairSource:
    """The pairs of a split: `rows` reads them, `digest` names their content, `corpus` has the texts of one side, or of both.

    `hashes` are those of the content of the files that the pairs are in, by path.
    """

    rows: Callable[[], Iterator[Pair]]
    digest: list[str]
    characters: int
    corpus: Callable[[str | None], tuple[Corpus, Survey]]
    hashes: dict[Path, str] = field(default_factory=dict)

    def check_unchanged(self) -> None:
        """Raise `DataError` for a file whose content is not what `digest` was made of."""
        check_unchanged(list(self.hashes), list(self.hashes.values()))


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

    hashes = {path: sha for side, paths in files.items() for path, sha in zip(paths, found[side].hashes, strict=True)}
    characters = sum(s.characters for s in found.values())
    return PairSource(rows, [found[side].digest for side in SIDES], characters, corpus, hashes)


def table(paths: tuple[Path, ...], columns: Columns) -> PairSource:
    """Two columns of .tsv, .csv, .jsonl or .parquet files."""
    found = survey_table(paths, columns)

    def rows() -> Iterator[Pair]:
        return ((row.texts[0], row.texts[1]) for row in rows_of(paths, columns))

    def corpus(side: str | None) -> tuple[Corpus, Survey]:
        chosen = SIDES if side is None else (side,)
        texts = Texts(files=paths, source=lambda: (pair[SIDES.index(s)] for pair in rows() for s in chosen))
        digest = found.digest + ("" if side is None else f"-{side}")
        return texts, Survey(digest, found.characters, ENDS, found.symbols, found.hashes)

    hashes = dict(zip(paths, found.hashes, strict=True))
    return PairSource(rows, [found.digest], found.characters, corpus, hashes)


def _lines(paths: tuple[Path, ...]) -> Iterator[str]:
    return (line for path in paths for line in lines(path))


def _uneven(split: str, files: dict[str, tuple[Path, ...]]) -> DataError:
    counts = {side: sum(1 for _ in _lines(files[side])) for side in SIDES}
    return DataError(
        f"the {split} sources ({files['source'][0]}) have {counts['source']:,} lines and the targets "
        f"({files['target'][0]}) {counts['target']:,}; line n of one belongs to line n of the other"
    )
