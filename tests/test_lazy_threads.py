"""Threads of the CPU sleep soon when they wait, unless the user says otherwise."""

from __future__ import annotations

import pytest

from bigmodel_cli import lazy


def test_threads_sleep_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY"):
        monkeypatch.delenv(name, raising=False)
    lazy.sleep_soon()
    assert os.environ["GOMP_SPINCOUNT"] == str(lazy.SPINS)
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    lazy.sleep_soon()
    assert os.environ["GOMP_SPINCOUNT"] == "7"
    monkeypatch.delenv("GOMP_SPINCOUNT")
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    lazy.sleep_soon()
    assert "GOMP_SPINCOUNT" not in os.environ
