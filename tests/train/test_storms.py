"""A sample of the storms of kills, signals and full disks in tests/measure, whose scripts make a
thousand of them.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from measure.disks import NoDisk, prepared, series, small_disk
from measure.families import orphans, write_data
from measure.kills import Storm, storm
from measure.signals import SignalStorm
from zygote import Zygote

# other tests run these lines; coverage would take half of the time again
pytestmark = pytest.mark.no_cover

SAMPLE = [
    (Storm, "seq2seq", 4),
    (SignalStorm, "averaged", 4),
    pytest.param(Storm, "decoder", 8, marks=pytest.mark.slow),
    pytest.param(Storm, "seq2seq", 18, marks=pytest.mark.slow),
    pytest.param(SignalStorm, "averaged", 8, marks=pytest.mark.slow),
    pytest.param(SignalStorm, "seq2seq", 8, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(
    ("kind", "family", "count"), SAMPLE, ids=lambda value: getattr(value, "__name__", str(value))
)
def test_runs_stopped_by_a_storm_of_signals_resume_bit_for_bit(
    kind: type[Storm], family: str, count: int, zygote: Zygote, tmp_path: Path
) -> None:
    """Rows 1 to 4, 7, 61 to 65 and 67: kill -9 and signals at random moments, in saves, and to the
    whole group.
    """
    write_data(tmp_path)
    found = storm([zygote], tmp_path, family, count, 0, kind)
    assert found.differing == []
    assert found.total.kills.total() >= count
    assert orphans(found.total.leaders) == []


def test_a_disk_without_room_loses_nothing(zygote: Zygote, tmp_path: Path) -> None:
    """Rows 8 and 68: a run with no room at all, and with some of what it needs; with room it goes
    on to the same end.
    """
    write_data(tmp_path)
    try:
        with small_disk(tmp_path / "disk") as disk:
            counts, _, faults = series(prepared(zygote, disk, "decoder"), "run", 160_000)
    except NoDisk as error:
        pytest.skip(str(error))
    assert faults == []
    assert counts[5] >= 2
