"""Every command exits on a signal at once: one line, 128 + its number, nothing half done."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, digests, write_text
from zygote import Zygote

import bigmodel_cli.__main__ as main
from bigmodel_cli.train.signals import Interrupted

Cli = Callable[..., Result]
COMMANDS: dict[str, tuple[str, list[str]]] = {
    "eval": ("bigmodel_cli.evaluation.report._check_length", ["run"]),
    "predict": ("bigmodel_cli.predict.continue_texts", ["run", "a"]),
    "attend": ("bigmodel_cli.attend.look_at", ["run", "a model", "--png", "look.png"]),
    "bench": ("bigmodel_cli.bench.training.prepare", ["decoder.yaml"]),
}


def came(number: int) -> Callable[..., None]:
    """What stands in for a part of the work: it is in the middle of that when the signal comes."""

    def wait(*arguments: Any, **options: Any) -> None:
        os.kill(os.getpid(), number)
        raise AssertionError("the signal was not heeded")

    return wait


@pytest.fixture
def heeded() -> Iterator[None]:
    """Signals as in a shell, also where the tests run under nohup or in the background."""
    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
    before = [signal.signal(n, signal.SIG_DFL) for n in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.mark.usefixtures("heeded")
@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)],
    ids=["term", "int", "hup"],
)
def test_commands_leave_by_a_signal_with_one_line(
    number: signal.Signals,
    status: int,
    decoder_spec: Path,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """row 7: eval, predict, attend and bench; the handlers that were there are put back."""
    assert cli("pretrain", decoder_spec, "--out", "run", "--set", "train.steps=1").status == 0
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)]
    before = sorted(Path().rglob("*"))
    for command, (place, words) in COMMANDS.items():
        with monkeypatch.context() as patch:
            patch.setattr(place, came(number))
            result = cli(command, *words)
        assert (result.status, result.out) == (status, ""), command
        assert result.err.splitlines()[-1] == f"bigmodel: stopped by {number.name}"
        assert "Traceback" not in result.err
        assert "Aborted" not in result.err
    assert sorted(Path().rglob("*")) == before
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)] == handlers


def test_a_plan_is_stopped_while_it_prepares_its_data(
    decoder_spec: Path, zygote: Zygote, tmp_path: Path
) -> None:
    """row 7: `--dry-run` writes nothing, and so there is nothing to go on with."""
    env = {"BIGMODEL_FAILPOINT": "tokenizing:SIGTERM", "XDG_CACHE_HOME": str(tmp_path / "own")}
    ended = zygote.run("pretrain", decoder_spec, "--dry-run", env=env)
    assert ended.status == 143, ended.err
    assert ended.err.splitlines()[-1].startswith("bigmodel: stopped")
    assert "Traceback" not in ended.err
    assert not Path("runs").exists()


def test_an_evaluation_is_stopped_while_it_prepares_its_data(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """rows 7 and 66: nothing half done is left in the cache, and the same command then gives its
    figures.
    """
    assert cli("pretrain", decoder_spec, "--out", "run", "--set", "train.steps=1").status == 0
    write_text(Path("other.txt"), 3000)
    words = ["eval", "run", "--set", "data.test_files=[other.txt]", "--json"]
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "own"))
    monkeypatch.setattr("bigmodel_cli.failpoints._reached", {})
    monkeypatch.setenv("BIGMODEL_FAILPOINT", "tokenizing:SIGTERM")
    stopped = cli(*words)
    assert stopped.status == 143, stopped.err
    monkeypatch.delenv("BIGMODEL_FAILPOINT")
    assert [
        p.name
        for p in (tmp_path / "own" / "bigmodel" / "tokens").iterdir()
        if not p.name.endswith(".lock")
    ] == []
    assert json.loads(cli(*words).out)["metrics"]["loss"]["count"] > 2000


def test_a_signal_does_not_wait_for_the_first_step_to_be_compiled(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """row 7: a compilation takes minutes and has nothing to save; later steps are finished and
    saved, and resume to the bit.
    """
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self: None)
    compiled = ["--set", 'train.compile="on"']
    whole = cli("pretrain", decoder_spec, "--out", "whole", *compiled)
    words = ["pretrain", decoder_spec, "--out", "run", *compiled]
    monkeypatch.setattr("bigmodel_cli.failpoints._reached", {})
    monkeypatch.setenv("BIGMODEL_FAILPOINT", "train.step:SIGTERM:1")
    first = cli(*words)
    assert first.status == 143, first.err
    assert not list(Path("run").glob("checkpoints/step-*"))
    assert json.loads(Path("run/status.json").read_text())["state"] == "stopped"
    for turn, step in ((3, 3), (1, 3)):  # the second is in the first step after the resume
        monkeypatch.setattr("bigmodel_cli.failpoints._reached", {})
        monkeypatch.setenv("BIGMODEL_FAILPOINT", f"train.step:SIGTERM:{turn}")
        again = cli(*words, "--resume")
        assert again.status == 143, again.err
        assert sorted(p.name for p in Path("run/checkpoints").glob("step-*")) == [
            f"step-{step:08d}"
        ]
    monkeypatch.delenv("BIGMODEL_FAILPOINT")
    resumed = cli(*words, "--resume")
    assert digests(Path(resumed.out.strip())) == digests(Path(whole.out.strip()))


def test_a_signal_that_a_library_wraps_in_its_own_error_stops_the_command() -> None:
    """pydantic's core does so where the signal comes while it builds the validator of a spec."""

    def build() -> None:
        try:
            signal.raise_signal(signal.SIGTERM)
        except Interrupted as stop:
            raise RuntimeError("Error building a validator") from stop

    with pytest.raises(Interrupted) as raised, main._stoppable(last=False):
        build()
    assert raised.value.number == signal.SIGTERM
    with pytest.raises(RuntimeError, match="of its own"), main._stoppable(last=False):
        raise RuntimeError("of its own")
