"""A first spec for recordings, labelled by folders or names, or with transcripts beside them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bigmodel_cli.console import say
from bigmodel_cli.data.audio.audio import FOLDER, NAMED
from bigmodel_cli.data.audio.recordings import ARCHIVES, contents, find_sound, open_recordings
from bigmodel_cli.data.audio.targets import read_transcripts
from bigmodel_cli.data.folders import walk
from bigmodel_cli.data.image.folder import SPLIT_NAMES
from bigmodel_cli.data.reading import lines, plain_name
from bigmodel_cli.errors import DataError
from bigmodel_cli.init.draft import Draft, Wanted, epochs, length, listed, section
from bigmodel_cli.init.draft import paths as spelled
from bigmodel_cli.yaml_scalars import on_one_line

RATE = 8000
"""Samples per second: enough for speech on a laptop."""
SEEN, SECONDS = 48_000, 60_000
"""Most recordings, and most seconds of sound, that are seen in training."""
LONGEST = 10.0
"""Seconds of a labelled recording that are used."""
GROUPED = """
  # split: {test: {speaker: [anna]}}   # keeps a speaker's recordings together, by a group
  #                                    # (?P<speaker>...) of `pattern`"""
SPLIT = r"^(?P<split>[^/]+)/"
"""What stands before a pattern where the first folders are splits."""
NAMES = {
    "the folder": FOLDER,
    "what stands first in the name": r"(?P<label>[^/_\-. ]+)[_\-. ][^/]*$",
    "what stands last in the name": r"[_\-. ](?P<label>[^/_\-. ]+)\.\w+$",
}


def of_sounds(paths: Sequence[Path], files: Sequence[Path], wanted: Wanted) -> Draft:
    """A CNN on spectrograms where there are labels, a CTC encoder where there are transcripts."""
    given = [str(path) for path in paths if path.is_dir() or path in files]
    names = [name for name, _, _ in contents(find_sound(given, Path()))]
    splits, transcripts = _splits(names), _transcripts(paths)
    inner = [name.partition("/")[2] if splits else name for name in names]
    how, pattern, classes = ("", NAMED, []) if transcripts else _pattern(inner)
    if splits:
        pattern = SPLIT + ("" if transcripts else ".*?" + pattern)
    try:
        recordings, bad = open_recordings(given, pattern, RATE, False, Path(), say), ""
    except DataError as error:
        say(f"{error}: such recordings are left out (data.on_bad: skip)")
        recordings, bad = open_recordings(given, pattern, RATE, True, Path(), say), "skip"
    count, lengths = len(recordings.names), recordings.lengths / RATE
    if splits:
        count = sum(groups["split"] in splits["train"] for groups in recordings.groups)
    rules = {split: {"split": own} for split, own in splits.items() if split != "train"}
    data = {
        "files": on_one_line(given),
        "pattern": "" if pattern in (FOLDER, NAMED) else on_one_line(pattern),
        "split": on_one_line(rules) if rules else "",
        "on_bad": bad,
    }
    seconds = max(0.1, round(min(LONGEST, float(np.quantile(lengths, 0.95))), 2))
    values = {
        "rate": str(RATE),
        **length(count, epochs(count, min(SEEN, SECONDS / seconds)), 32, 50),
    }
    notes = [
        f"{count:,} recordings for training; all have {lengths.min():.1f} to {lengths.max():.1f} s"
    ]
    notes += (
        [f"splits, by their folders: {listed(own[0] for own in splits.values())}"] if splits else []
    )
    use = str(next((f for f in files if not f.name.lower().endswith(ARCHIVES)), "RECORDING.wav"))
    if transcripts:
        texts, _ = read_transcripts(list(map(str, transcripts)), recordings.names, Path())
        words = {word for text in texts for word in text.split()}
        units = "words" if len(words) <= max(20, len(texts) // 10) else "characters"
        data |= {"transcripts": spelled(transcripts), "units": units}
        values |= {"stride": "4" if units == "words" else "2", "data": section(data)}
        notes += [
            f"transcripts: {listed(transcripts)}",
            f"{len(words):,} different words: written down in {units} (CTC)",
        ]
        return Draft("transcripts", values, tuple(notes), use, tuple(transcripts))
    data |= {"seconds": f"{seconds:g}               # each recording is brought to this length"}
    notes += [
        f"the label is {how}: {len(classes)} classes ({listed(classes)})",
        f"{seconds:g} s of each are used, as a spectrogram, at {RATE:,} samples per second",
    ]
    grouped = "" if splits else GROUPED
    values |= {"classes": str(len(classes)), "data": section(data), "grouped": grouped}
    return Draft("sounds", values, tuple(notes), use)


def _splits(names: Sequence[str]) -> dict[str, list[str]]:
    """The first folder of the names of each split, where these are called as splits are.

    Raises `DataError` for a first folder that is not, and where there is none for training.
    """
    tops = sorted({name.partition("/")[0] for name in names})
    found = {
        split: own
        for split, usual in SPLIT_NAMES.items()
        if (own := [top for top in tops if top.lower() in usual])
    }
    if not found:
        return {}
    splits = [top for own in found.values() for top in own]
    if others := [top for top in tops if top not in splits]:
        raise DataError(
            f"{listed(splits)} beside {listed(others)}: are they splits or classes? Put the others"
            " into a folder train, or rename those"
        )
    if "train" not in found:
        raise DataError(f"there is {listed(splits)}, and no folder train beside it; make one")
    return found


def _transcripts(paths: Sequence[Path]) -> list[Path]:
    """Files of lines NAME<TAB>TEXT beside or in what is named; other tables are reported as left
    out.
    """
    beside = [
        f
        for p in paths
        for f in (
            walk(p) if p.is_dir() else [p] if plain_name(p).endswith((".txt", ".tsv")) else []
        )
    ]
    tables = [f for f in beside if plain_name(f).endswith((".txt", ".tsv"))]
    taken = [f for f in tables if all("\t" in line for line in list(lines(f))[:20] if line.strip())]
    others = [
        f
        for f in beside
        if plain_name(f).endswith((".csv", ".json", ".jsonl")) or (f in tables and f not in taken)
    ]
    if others:
        say(f"{listed(others)}: not read; transcripts are lines NAME<TAB>TEXT in a .tsv or .txt")
    return taken


def _pattern(names: Sequence[str]) -> tuple[str, str, list[str]]:
    """How the names give the labels: (in words, pattern, the labels).

    Raises `DataError` where they do not.
    """
    for how, pattern in NAMES.items():
        matches = [re.search(pattern, name) for name in names]
        labels = Counter(match["label"] for match in matches if match)
        if all(matches) and 1 < len(labels) <= len(names) // 2:
            return how, pattern, sorted(labels)
    raise DataError(
        f"the names of {len(names):,} recordings do not say their classes ({listed(names, 3)});"
        " sort them into folders by class, or put a file of lines NAME<TAB>TEXT beside them"
    )
