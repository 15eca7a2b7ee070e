"""A compiler of kernels that fails is a message with a remedy, whatever command asked for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigmodel_cli.errors import compile_fault
from bigmodel_cli.train import loop

Cli = Callable[..., Any]
TEXT = """\
SubprocException: An exception occurred in a subprocess:

Traceback (most recent call last):
  File "compiler.py", line 316, in make_ttgir
RuntimeError: PassManager::run failed

Set TORCHDYNAMO_VERBOSE=1 for the internal stack trace
"""


class InductorError(RuntimeError):
    """Named as PyTorch's."""


def test_a_compiler_that_fails_is_no_traceback(
    cli: Cli, decoder_spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: object) -> None:
        raise InductorError(TEXT)

    monkeypatch.setattr(loop, "train_step", fails)
    done = cli("pretrain", decoder_spec, "--out", "run")
    assert done.status == 5
    assert "Traceback" not in done.err
    assert done.err.strip().splitlines()[-1] == (
        "bigmodel: torch.compile: the network cannot be compiled (RuntimeError: PassManager::run"
        " failed); train.compile: off goes without"
    )


def test_another_error_is_none_of_a_compiler() -> None:
    assert compile_fault(RuntimeError(TEXT)) is None
