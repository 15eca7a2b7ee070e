"""Whether files in place have the hashes that their index gives: found once for each content."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

from bigmodel_cli.data.cache import cached_json
from bigmodel_cli.data.hashes import content_hashes
from bigmodel_cli.errors import DataError

HASHES = ("sha256", "sha1", "md5")
"""Algorithms that are known here, the best one first."""
PIECE = 1 << 20  # bytes
SETTLED = 3 * 10**9
"""Nanoseconds after a change from which on a later one bears another time."""

_whole: set[tuple[object, ...]] = set()
"""Files that were found whole in this process, by path, size, times and inode."""


def known(hashes: Sequence[tuple[str, str]]) -> tuple[str, str] | None:
    """The best of the hashes that can be checked; None where there is none."""
    fitting = [pair for pair in hashes if pair[0] in HASHES]
    return min(fitting, key=lambda pair: HASHES.index(pair[0])) if fitting else None


def check(place: str, hashes: Sequence[tuple[str, str]]) -> None:
    """Raise `DataError` where a file's content is not that of its index.

    It is read when it is first asked for; what was found is remembered, in later runs too, as long
    as nothing changes the file.
    """
    wanted = known(hashes)
    if wanted is None:
        return
    try:
        stat = os.stat(place)
    except OSError as error:
        raise DataError(f"{place}: {error.strerror}; put it back") from None
    form = (os.path.abspath(place), stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino)
    if form in _whole:
        return
    name, digits = wanted
    if name == "sha256":
        (found,) = content_hashes([Path(place)])
    elif max(stat.st_mtime_ns, stat.st_ctime_ns) + SETTLED > time.time_ns():
        found = _hash(name, place)
    else:
        found = cached_json("shard-hashes", [name, *form], lambda: _hash(name, place))
    if found != digits:
        raise DataError(
            f"{place}: its {name} is not that of its index: it was changed or damaged; fetch or"
            " write it again"
        )
    _whole.add(form)


def _hash(name: str, place: str) -> str:
    try:
        with open(place, "rb") as file:
            sha = hashlib.new(name)
            while piece := file.read(PIECE):
                sha.update(piece)
    except OSError as error:
        raise DataError(f"{place}: cannot be read: {error.strerror}") from None
    return sha.hexdigest()
