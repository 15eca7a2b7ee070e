"""Standard streams that are closed, full, or whose reader has gone: the work is done, and nothing
shows a traceback.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, Result


def sh(line: str) -> Result:
    """Run a line of bash in which `bigmodel` is this checkout's."""
    command = (
        f'set -o pipefail; bigmodel() {{ {shlex.quote(sys.executable)} -m bigmodel_cli "$@"; }};'
        f" {line}"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(
        ["bash", "-c", command], capture_output=True, text=True, env=environment, timeout=120
    )
    return Result(ended.returncode, ended.stdout, ended.stderr)


@pytest.mark.parametrize("words", ["--help", "models", "--version"])
def test_a_full_stdout_is_one_message_and_5(words: str) -> None:
    """Row 85."""
    result = sh(f"bigmodel {words} > /dev/full")
    assert result.status == 5
    assert (
        result.err
        == "bigmodel: stdout: cannot be written: No space left on device; the result is not shown\n"
    )


@pytest.mark.parametrize("words", ["--help", "models", "schema"])
def test_a_reader_that_has_gone_is_no_error(words: str) -> None:
    """Row 46."""
    result = sh(f"bigmodel {words} | true")
    assert (result.status, result.err) == (0, "")


def test_a_run_with_closed_standard_streams_is_complete(decoder_spec: Path) -> None:
    """Row 85: no file of the run gets the number of a closed sequence."""
    result = sh(
        "bigmodel pretrain decoder.yaml --out run --set train.steps=1 <&- >&- 2>&-; echo $?"
    )
    assert (result.status, result.out, result.err) == (0, "0\n", "")
    assert json.loads(Path("run/status.json").read_text())["state"] == "done"
    assert all(json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines())


def test_missing_input_is_reported() -> None:
    """Row 85: stdin that is closed or empty."""
    for end in ("<&-", "< /dev/null"):
        result = sh(f"bigmodel predict run {end}")
        assert (result.status, result.out) == (2, "")
        assert (
            result.err
            == "bigmodel: no input is named, and stdin is empty; give inputs as arguments, or one"
            " on each line of stdin\n"
        )


def test_a_full_stderr_does_not_change_the_exit_status() -> None:
    """Row 85."""
    result = sh("bigmodel models nonsense 2> /dev/full; echo $?")
    assert (result.out, result.err) == ("2\n", "")
