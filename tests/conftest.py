"""What every test shares: the real data's place, and the command line run as a user runs it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def find_data() -> Path | None:
    """The real data sets' folder: `BIGMODEL_TEST_DATA`, else ../shared/data beside the checkout, else None."""
    named = os.environ.get("BIGMODEL_TEST_DATA")
    candidates = [Path(named)] if named else [ROOT.parent / "shared" / "data"]
    return next((path for path in candidates if path.is_dir()), None)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The real data's root; the test is skipped where there is none."""
    root = find_data()
    if root is None:
        pytest.skip("real data not found: set BIGMODEL_TEST_DATA to the folder that holds mnist/, tinyshakespeare/ ...")
    return root
