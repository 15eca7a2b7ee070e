"""Which files a spec names: one rule for all sources.

In folders, globs and archives these are ignored: hidden files (whose names begin with a dot, also
the `._name` of macOS), `__MACOSX`, `Thumbs.db` and `desktop.ini`. Endings match in any case. A
linked folder is followed once, and a link that leads nowhere is an error. A path that exists is
taken literally, with brackets, asterisks and dollars.
"""

from __future__ import annotations

import glob
import os
import re
import stat
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from pathlib import Path

from bigmodel_cli.console import counted, say
from bigmodel_cli.data.folders import passed_over, status_of, walk
from bigmodel_cli.errors import BigmodelError, DataError, MissingData, SpecError

SKIP = ", or set data.on_bad: skip"
"""The end of a message about a file of training data, where others may be used without it."""
Found = tuple[Path, str]
"""A file, and its name relative to the folder that was named, or its own."""


def find_files(
    names: Iterable[str], base: Path, option: str, endings: tuple[str, ...]
) -> tuple[Path, ...]:
    """The files that paths, globs and folders name, in order; of a folder those with one of the
    endings (in lower case).

    Raises `DataError` for a name that finds nothing, and `SpecError` for a variable that is not
    set.
    """
    return tuple(path for path, _ in find_named(names, base, option, endings))


def find_named(
    names: Iterable[str],
    base: Path,
    option: str,
    endings: tuple[str, ...],
    beside: tuple[str, ...] = (),
) -> list[Found]:
    """The same, each with its name below the folder that was named.

    Files that end as those `beside` them do are another option's, and are passed over in silence.
    """
    files: dict[str, Found] = {}
    twice = 0
    for name in names:
        for path, known_as in _matches(name, base, option, endings, beside):
            key = os.path.realpath(path)
            twice += key in files
            files.setdefault(key, (path, known_as))
    if twice:
        again = counted(twice, "file is", "files are")
        say(f"{option}: {again} named or linked more than once, and taken once")
    return list(files.values())


def expand(text: str, base: Path, option: str) -> Path:
    """The path that a text names, from `base`, with `~` and variables expanded as in a shell.

    A path that exists is taken literally. Raises `SpecError` for a variable that is not set.
    """
    place, rest = _resolved(text, base, option)
    return place.joinpath(*rest)


def check_plain(path: Path, error: type[BigmodelError] = DataError) -> None:
    """Raise `error` for a pipe, a socket or a device, which may have no end or no beginning.

    A missing file is ignored.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):  # opening it says so
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        kind = (
            "a pipe" if stat.S_ISFIFO(mode) else "a socket" if stat.S_ISSOCK(mode) else "a device"
        )
        raise error(f"{path}: {kind}, and not a file; write what it gives to a file, and name that")


def read_file(path: Path) -> bytes:
    """The content of a file.

    Raises `DataError` where it cannot be read, or is a pipe, a socket or a device.
    """
    check_plain(path)
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from None


def _matches(
    name: str, base: Path, option: str, endings: tuple[str, ...], beside: tuple[str, ...]
) -> list[Found]:
    """The files that one name finds."""
    place, rest = _resolved(name, base, option)
    if rest:
        return [(path, path.name) for path in _of_glob(place, rest, f"{option}: {name}")]
    mode = status_of(str(place)).st_mode
    if not stat.S_ISDIR(mode):
        if not stat.S_ISREG(mode):
            raise DataError(f"{option}: {name}: neither a file nor a folder ({place.absolute()})")
        return [(place, place.name)]
    below = walk(place)
    paths = [path for path in below if path.name.lower().endswith(endings)]
    if not paths:
        raise DataError(
            f"{option}: the folder {name} holds no file that ends in {', '.join(endings)}"
        )
    known = endings + beside
    others = [path for path in below if not path.name.lower().endswith(known)]
    if others:
        kinds = Counter(path.suffix.lower() or "no ending" for path in others)
        shown = ", ".join(f"{count:,} {ending}" for ending, count in kinds.most_common(5))
        out = counted(len(others), "file that ends otherwise is", "files that end otherwise are")
        say(f"{option}: {name}: {out} left out ({shown})")
    start = len(str(place)) + 1 if str(place) != "." else 0
    return [(path, str(path)[start:]) for path in paths]


def _of_glob(place: Path, pattern: tuple[str, ...], named: str) -> list[Path]:
    """The files below `place` that a glob matches, its ending in any case."""
    wanted, pattern = pattern, (*pattern[:-1], _ending_in_any_case(pattern[-1]))
    if "**" in pattern:
        cut = pattern.index("**")
        heads = (
            [path for path in _plain(place, pattern[:cut]) if os.path.isdir(path)]
            if cut
            else [place]
        )
        files = [
            p
            for head in heads
            for p in walk(head)
            if _fits(p.relative_to(head).parts, pattern[cut:])
        ]
        folders = []
    else:
        both = _plain(place, pattern)
        modes = [status_of(str(path)).st_mode for path in both]
        files = [path for path, mode in zip(both, modes, strict=True) if stat.S_ISREG(mode)]
        folders = [path for path, mode in zip(both, modes, strict=True) if stat.S_ISDIR(mode)]
    if not files and folders:
        raise DataError(
            f"{named}: matches only folders, the first {folders[0]}; end it with /** for the files"
            " in them"
        )
    if not files:
        raise MissingData(
            f"{named}: no such file; it was looked for as {place.joinpath(*wanted).absolute()}"
        )
    if folders:
        say(
            f"{named}: {counted(len(folders), 'folder is', 'folders are')} matched too and left"
            f" out, the first {folders[0]}"
        )
    return files


def _ending_in_any_case(part: str) -> str:
    """`*.txt` -> `*.[tT][xX][tT]`; a part without `*`, `?` or brackets is a name, and stays."""
    # an unclosed bracket is literal
    if not glob.has_magic(part) or part.rfind("[") > part.rfind("]"):
        return part
    return re.sub(r"(\.[^\W_]+)+$", lambda m: re.sub(r"[^\W\d]", _both_cases, m[0]), part)


def _both_cases(letter: re.Match[str]) -> str:
    lower, upper = letter[0].lower(), letter[0].upper()
    return f"[{lower}{upper}]" if len(lower) == len(upper) == 1 and lower != upper else letter[0]


def _plain(place: Path, pattern: tuple[str, ...]) -> list[Path]:
    """What a glob without ** matches, sorted."""
    matches = [Path(path) for path in glob.glob(os.path.join(glob.escape(str(place)), *pattern))]
    skip = len(place.parts)
    return sorted(p for p in matches if all(map(_is_meant, p.parts[skip:], pattern)))


def _is_meant(part: str, pattern: str) -> bool:
    """Whether what a part of a glob matches is not ignored, or is asked for as in a shell: by a
    dot, or by its name.
    """
    return (
        not passed_over(part)
        or part == pattern
        or (part.startswith(".") and pattern.startswith("."))
    )


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Whether the parts of a path match those of a glob, where ** stands for any number of
    parts.
    """
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[cut:], pattern[1:]) for cut in range(len(parts) + 1))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _resolved(text: str, base: Path, option: str) -> tuple[Path, tuple[str, ...]]:
    """As much of a path as exists literally, and the parts after it, with `~` and variables
    expanded.
    """
    place, rest = _existing(base, Path(text).parts)
    if not rest:
        return place, rest
    first = os.path.expanduser(rest[0]) if place == base else rest[0]
    if place == base and rest[0].startswith("~") and first == rest[0]:
        raise SpecError(f"{option}: {text}: there is no user {rest[0][1:]!r}")
    filled = [
        re.sub(r"\$(?:(\w+)|\{(\w+)\})", lambda m: _variable(m, option, text), part)
        for part in rest
    ]
    start = filled[0] if first == rest[0] else first
    return _existing(place, Path(start, *filled[1:]).parts)


def _existing(place: Path, parts: tuple[str, ...]) -> tuple[Path, tuple[str, ...]]:
    for index, part in enumerate(parts):
        if not os.path.lexists(place / part):
            return place, parts[index:]
        place = place / part
    return place, ()


def _variable(match: re.Match[str], option: str, text: str) -> str:
    name = match[1] or match[2]
    if name not in os.environ:
        raise SpecError(f"{option}: {text}: the variable {name} is not set")
    return os.environ[name]
