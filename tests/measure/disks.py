"""Disks with no room, and with 4 kB more each time: what was saved stays good, and there is a
message in place of a traceback.

    python tests/measure/disks.py [--family decoder] [--step 4096] [--data DATA] [--only run]
    [--mounted DIR]

A tmpfs (which takes root to mount; `--mounted` names a small file system that is there already, and
empty) is filled but for 0, 4, 8 ... kB, until a command has what it needs. On it lie in turn the
run's directory, the cache, TMPDIR, the file of `eval --predictions`, that of `eval --confusion` and
that of `attend --out`. Checked at every size: the status is 5, or 0; no traceback; a message that
names the place; the last committed checkpoint verifies, nothing half written is left, and once
there is room, the run goes on and ends as one that always had it. The status is 1 where one of it
fails.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from measure.families import FAMILIES, differences, fingerprint  # noqa: E402
from measure.kills import workplace  # noqa: E402
from zygote import Ended, Zygote  # noqa: E402

from bigmodel_cli import checkpoints  # noqa: E402

SIZE = 32 << 20
"""Bytes of the tmpfs, more than any of the commands needs."""
FILLER = "filler"
ENOUGH = 2
"""So many sizes in a row at which nothing was said end the series."""


class NoDisk(Exception):
    """A tmpfs cannot be mounted here."""


@contextmanager
def small_disk(place: Path) -> Iterator[Path]:
    """A tmpfs, mounted at `place` as long as the block lasts. Raises `NoDisk`."""
    place.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(place)]
    try:
        subprocess.run(mount, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        raise NoDisk(
            f"no tmpfs can be mounted here ({error}); it takes root, or a small file system by"
            " --mounted"
        ) from None
    try:
        yield place
    finally:
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(disk: Path, free: int) -> None:
    """Empty the disk, then fill it so that `free` bytes are left."""
    make_room(disk)
    for entry in disk.iterdir():
        shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
    taken = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize - free
    with open(disk / FILLER, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(1, taken))


def make_room(disk: Path) -> None:
    """Take away what fills the disk."""
    (disk / FILLER).unlink(missing_ok=True)


@dataclass
class Series:
    """One command with one of its places on the small disk."""

    zygote: Zygote
    disk: Path
    family: str
    whole: Path  # a run that always had room

    def run(self, free: int) -> tuple[Ended, list[str]]:
        """A training whose directory is on it."""
        fill(self.disk, free)
        return self.trained(self.disk / "run", {})

    def cache(self, free: int) -> tuple[Ended, list[str]]:
        """A training whose cache is on it."""
        fill(self.disk, free)
        return self.trained(self.fresh("run"), {"XDG_CACHE_HOME": str(self.disk)})

    def tmp(self, free: int) -> tuple[Ended, list[str]]:
        """A training whose temporary files are on it."""
        fill(self.disk, free)
        return self.trained(self.fresh("run"), {"TMPDIR": str(self.disk)})

    def samples(self, free: int) -> tuple[Ended, list[str]]:
        """The file of samples."""
        return self.written(
            free, "eval", self.whole, "--split", "val", "--predictions", self.disk / "out.jsonl"
        )

    def confusion(self, free: int) -> tuple[Ended, list[str]]:
        """The picture of confusions."""
        return self.written(
            free, "eval", self.whole, "--split", "val", "--confusion", self.disk / "out.png"
        )

    def attend(self, free: int) -> tuple[Ended, list[str]]:
        """The picture of what decides."""
        return self.written(free, "attend", self.whole, "digit.png", "--png", self.disk / "out.png")

    def fresh(self, name: str) -> Path:
        """A folder that is not there, on a disk with room."""
        path = Path(name).resolve()
        shutil.rmtree(path, ignore_errors=True)
        return path

    def written(self, free: int, *words: object) -> tuple[Ended, list[str]]:
        """A command that writes one file onto the disk: whole, or not at all."""
        fill(self.disk, free)
        ended = self.zygote.run(*words)
        left = [p.name for p in self.disk.iterdir() if p.name != FILLER]
        faults = [f"left {left}"] if (ended.status == 5) == bool(left) else []
        return ended, [*said(ended, self.disk), *faults]

    def trained(self, out: Path, env: dict[str, str]) -> tuple[Ended, list[str]]:
        """A training, and the same again with room."""
        words = ["pretrain", f"{self.family}.yaml", "--out", out]
        ended = self.zygote.run(*words, env=env)
        faults = said(ended, self.disk)
        if (out / "checkpoints").is_dir():
            faults += [f"left {p.name}" for p in (out / "checkpoints").glob(".*")]
        if (out / "status.json").exists() and ended.status in (0, 5):
            told = json.loads((out / "status.json").read_text())
            wrong = told["state"] != ("done" if ended.status == 0 else "failed")
            faults += (
                [f"status.json says {told['state']}"]
                if wrong and "status.json: cannot" not in ended.err
                else []
            )
        try:
            checkpoints.newest(
                out / "checkpoints",
                lambda text: faults.append(f"a checkpoint is no longer good: {text}"),
            )
        except Exception as error:
            faults.append(f"the checkpoints are no longer good: {error}")
        make_room(self.disk)
        if ended.status != 0:
            again = self.zygote.run(*words, *(["--resume"] if out.exists() else []), env=env)
            faults += (
                []
                if again.status == 0
                else [f"with room it ends with {again.status}: {again.err[-600:]}"]
            )
            if again.status == 0:
                faults += [
                    f"{n} differs" for n in differences(fingerprint(out), fingerprint(self.whole))
                ]
        elif differing := differences(of_last(out), of_last(self.whole)):
            faults += [f"{n} differs" for n in differing]
        return ended, faults


def of_last(run: Path) -> dict[str, str]:
    """The contents of a run's result."""
    return {name: value for name, value in fingerprint(run).items() if name.startswith("last")}


def said(ended: Ended, disk: Path) -> list[str]:
    """What is wrong with how a command ended on a full disk."""
    faults = ["a traceback"] if "Traceback" in ended.err else []
    if ended.status not in (0, 5):
        faults.append(f"status {ended.status}")
    if ended.status == 5 and str(disk) not in ended.err.splitlines()[-1]:
        faults.append(f"the message does not name the place: {ended.err[-300:]}")
    return faults


def series(
    made: Series, name: str, step: int, most: int = SIZE
) -> tuple[Counter[int], int, list[str]]:
    """Run it at 0, `step`, 2 x `step` ... free bytes.

    Returns (how often each status, the first size with all it needs, faults).
    """
    ended_with: Counter[int] = Counter()
    faults: list[str] = []
    quiet, free = 0, 0
    while quiet < ENOUGH and free <= most:
        ended, found = getattr(made, name)(free)
        ended_with[ended.status] += 1
        quiet = quiet + 1 if ended.status == 0 and "warning" not in ended.err else 0
        if found:
            last = ended.err.strip().splitlines()[-1:] if "a traceback" in found else []
            faults.append(f"{name} with {free:,} bytes free: {'; '.join([*found, *last])}")
            print(faults[-1], flush=True)
        free += step
    return ended_with, free - ENOUGH * step, faults


TRAININGS, FILES = ("run", "cache", "tmp"), ("samples", "confusion", "attend")


def prepared(zygote: Zygote, disk: Path, family: str) -> Series:
    """The series' parts: a run of the family that has all the room that it needs."""
    whole = Path(f"{family}-whole").resolve()
    ended = zygote.run("pretrain", f"{family}.yaml", "--out", whole)
    assert ended.status == 0, ended.err
    return Series(zygote, disk, family, whole)


def main() -> None:
    """Make the series, and print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--family", choices=FAMILIES, default="decoder")
    parser.add_argument("--step", type=int, default=4096)
    parser.add_argument("--data", type=Path, help="the real data sets")
    parser.add_argument("--only", choices=(*TRAININGS, *FILES))
    parser.add_argument(
        "--mounted", type=Path, help="a small file system, empty; all that is on it is removed"
    )
    chosen = parser.parse_args()
    mounted, data = (path.resolve() if path else None for path in (chosen.mounted, chosen.data))
    with tempfile.TemporaryDirectory() as temporary:
        folder, failed = Path(temporary).resolve(), False
        (zygote,) = workplace(folder, data, 1)
        write_digit(Path("digit.png"))
        print(
            f"{'on the disk':14}{'sizes':>7}{'status 5':>10}{'status 0':>10}"
            f"{'needs':>12}{'faults':>8}{'seconds':>9}",
            flush=True,
        )
        try:
            with small_disk(folder / "disk") if mounted is None else no_disk(mounted) as disk:
                parts = {
                    n: prepared(zygote, disk, f)
                    for n, f in ((TRAININGS, chosen.family), (FILES, "cnn"))
                }
                for name in [chosen.only] if chosen.only else [*TRAININGS, *FILES]:
                    began = time.monotonic()
                    counts, needs, faults = series(
                        next(p for n, p in parts.items() if name in n), name, chosen.step
                    )
                    failed = failed or bool(faults)
                    figures = (
                        f"{counts.total():7,}{counts[5]:10,}{counts[0]:10,}{needs:12,}"
                        f"{len(faults):8,}"
                    )
                    print(f"{name:14}{figures}{time.monotonic() - began:9.0f}", flush=True)
        except NoDisk as error:
            sys.exit(f"skipped: {error}")
        finally:
            zygote.close()
        sys.exit(failed)


@contextmanager
def no_disk(mounted: Path) -> Iterator[Path]:
    """A file system that was mounted by somebody else."""
    yield mounted


def write_digit(path: Path) -> None:
    """A picture of a stroke, of the size of scikit-learn's digits."""
    from PIL import Image

    picture = Image.new("L", (8, 8))
    for row in range(1, 7):
        picture.putpixel((4, row), 255)
    picture.save(path)


if __name__ == "__main__":
    main()
