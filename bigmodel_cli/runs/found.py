"""Finds runs: folders of runs, runs and their checkpoints, by path or by name below runs/."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from bigmodel_cli.console import one_line
from bigmodel_cli.differences import shortest
from bigmodel_cli.errors import SpecError, did_you_mean
from bigmodel_cli.runs.record import is_run

ROOT = Path("runs")
DEPTH = 4
"""Depth in folders to which runs are searched below a named folder."""
MOST_FOREIGN = 5


def find_runs(given: Sequence[str], say: Callable[[str], None]) -> list[Path]:
    """The runs that are named, or below the folders that are named, or below runs/; each once.

    What is ignored is reported.

    Raises `SpecError` for what is neither a run nor a folder.
    """
    runs: list[Path] = []
    foreign: list[Path] = []
    for text in given or [str(ROOT)]:
        path = _run_of(Path(text))
        if path is None and not given:
            raise SpecError(
                "runs: no such folder; name one that holds runs, or begin one with `bigmodel"
                " pretrain SPEC`"
            )
        if path is None:
            names = {p.name for p in ROOT.iterdir()} - {text} if os.path.isdir(ROOT) else ()
            raise SpecError(f"{text}: no such run or folder{did_you_mean(text, names)}")
        found = [path] if is_run(path) else [*_below(path, foreign, set(), DEPTH)]
        if given and not found:
            foreign.append(path)
        runs += sorted(found, key=natural)
    if foreign:
        shown = [one_line(str(path)) for path in foreign[:MOST_FOREIGN]]
        more = f" and {len(foreign) - MOST_FOREIGN} more" if len(foreign) > MOST_FOREIGN else ""
        say(f"warning: without a run, and left out: {', '.join(shown)}{more}")
    by_real_path = {os.path.realpath(path): path for path in reversed(runs)}
    return [path for path in runs if by_real_path[os.path.realpath(path)] is path]


def _run_of(path: Path) -> Path | None:
    """The folder of a path: a run, the run of a checkpoint, or a folder of runs; None where it is
    none of these.
    """
    place = next((p for p in (path, ROOT / path) if os.path.isdir(p)), None)
    if place is not None and (
        os.path.exists(place / "manifest.json") or place.name == "checkpoints"
    ):
        return next(
            (_shown(p) for p in Path(os.path.abspath(place)).parents[:2] if is_run(p)), place
        )
    return place


def _shown(path: Path) -> Path:
    """A path below the current folder relative to it."""
    here = Path.cwd()
    return path.relative_to(here) if path.is_absolute() and path.is_relative_to(here) else path


def _below(folder: Path, foreign: list[Path], seen: set[str], depth: int) -> Iterator[Path]:
    """The runs in a folder; folders without any are added to `foreign`."""
    try:
        with os.scandir(folder) as entries:
            inner = sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())
    except OSError:
        foreign.append(folder)
        return
    for path in (folder / name for name in inner):
        real = os.path.realpath(path)
        if real in seen:  # by another link
            continue
        seen.add(real)
        if is_run(path):
            yield path
            continue
        runs = list(_below(path, [], seen, depth - 1)) if depth > 1 else []
        yield from runs
        if not runs:
            foreign.append(path)


def natural(path: Path) -> list[tuple[int, str]]:
    """A sort key by which name-2 comes before name-10."""
    return [
        (int(piece), "") if piece.isdecimal() else (-1, piece)
        for piece in re.split(r"([0-9]{1,18})", str(path))
    ]


def short_names(paths: Sequence[Path]) -> list[str]:
    """Each path as its shortest end that no other one ends in, made visible."""
    whole = {str(path): Path(os.path.abspath(path)).parts[1:] or ("/",) for path in paths}
    names = shortest(whole, "/")
    return [one_line(names[str(path)]) for path in paths]
