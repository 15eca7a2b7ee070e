"""A first spec for recordings, labelled by folders or names, or with transcripts beside them."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from bigmodel_cli.console import say
from bigmodel_cli.data.audio.audio import AudioOptions
from bigmodel_cli.data.audio.recordings import ARCHIVES, contents, find_sound, open_recordings
from bigmodel_cli.data.folders import walk
from bigmodel_cli.data.reading import lines, plain_name
from bigmodel_cli.errors import DataError
from bigmodel_cli.init.draft import Draft, Wanted, batch_size, epochs, listed, section
from bigmodel_cli.init.draft import paths as spelled
from bigmodel_cli.yaml_scalars import on_one_line

RATE = 8000
"""Samples per second: enough for speech on a laptop."""
SEEN = 40_000
LONGEST = 10.0
"""Seconds of a labelled recording that are used."""
FOLDER = str(AudioOptions.model_fields["pattern"].default)
NAMES = {
    "the folder": FOLDER,
    "what stands first in the name": r"(?P<label>[^/_\-. ]+)[_\-. ][^/]*$",
    "what stands last in the name": r"[_\-. ](?P<label>[^/_\-. ]+)\.\w+$",
}
ANY = r"(?P<label>[^/]+)$"


def of_sounds(paths: Sequence[Path], files: Sequence[Path], wanted: Wanted) -> Draft:
    """A CNN on spectrograms where there are labels, a CTC encoder where there are transcripts."""
    given = [str(path) for path in paths if path.is_dir() or path in files]
    names = [name for name, _, _ in contents(find_sound(given, Path()))]
    transcripts = _transcripts(paths)
    how, pattern, classes = ("", ANY, []) if transcripts else _pattern(names)
    try:
        recordings, bad = open_recordings(given, pattern, RATE, False, Path(), say), ""
    except DataError as error:
        say(f"{error}: such recordings are left out (data.on_bad: skip)")
        recordings, bad = open_recordings(given, pattern, RATE, True, Path(), say), "skip"
    count, lengths = len(recordings.names), recordings.lengths / RATE
    about = f"{count:,} recordings of {lengths.min():.1f} to {lengths.max():.1f} s"
    data = {
        "files": on_one_line(given),
        "pattern": "" if pattern == FOLDER else on_one_line(pattern),
        "on_bad": bad,
    }
    use = str(next((f for f in files if not f.name.lower().endswith(ARCHIVES)), "RECORDING.wav"))
    values = {
        "rate": str(RATE),
        "epochs": str(epochs(count, SEEN)),
        "batch": str(batch_size(count, 32)),
    }
    if transcripts:
        texts = [
            line.partition("\t")[2] for path in transcripts for line in lines(path) if line.strip()
        ]
        words = {word for text in texts for word in text.split()}
        units = "words" if len(words) <= max(20, len(texts) // 10) else "characters"
        data |= {"transcripts": spelled(transcripts), "units": units}
        notes = (
            f"{about}; transcripts: {listed(transcripts)}",
            f"{len(words):,} different words: written down in {units} (CTC)",
        )
        return Draft(
            "transcripts", {**values, "data": section(data)}, notes, use, tuple(transcripts)
        )
    length = max(0.1, round(min(LONGEST, float(np.quantile(lengths, 0.95))), 2))
    data |= {"seconds": f"{length:g}               # each recording is brought to this length"}
    notes = (
        f"{about}; the label is {how}: {len(classes)} classes ({listed(classes)})",
        f"{length:g} s of each are used, as a spectrogram, at {RATE:,} samples per second",
    )
    return Draft(
        "sounds", {**values, "classes": str(len(classes)), "data": section(data)}, notes, use
    )


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
