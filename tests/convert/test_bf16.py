"""Every published family in bf16, as transformers draws it and runs it by default."""

from __future__ import annotations

import statistics
import sys

import pytest
from conftest import ROOT

pytest.importorskip("transformers")
sys.path.insert(0, str(ROOT / "tests" / "measure"))
from elsewhere import quiet_transformers
from published_configs import CONFIGS
from rounding import measured


@pytest.mark.parametrize("name", CONFIGS)
def test_outputs_are_a_hundredth_apart(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    quiet_transformers()
    rows = measured(name, 1, own=True)
    apart, _, exact, theirs = zip(*rows, strict=True)
    assert statistics.median(apart) <= 1e-2, rows  # a row may be sent to other experts
    # and it is about as exact as theirs
    assert statistics.median(exact) <= 1.5 * statistics.median(theirs), rows
