"""Stopping by signals, at any moment and of the whole group: saved, resumable, no traceback; loader
workers and their end.
"""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import pty
import signal
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, digests, losses
from zygote import Zygote, resume_command, until

from bigmodel_cli import checkpoints
from bigmodel_cli.errors import DataError, NumericsError
from bigmodel_cli.train.signals import Interrupted, Signals, received
from bigmodel_cli.train.workers import Workers

Cli = Callable[..., Result]
WORKERS = ["--set", "data.workers=2", "--set", "train.batch_size=64"]


def status(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(run, "status.json").read_text())
    return found


def alive_in_session(session: int) -> list[int]:
    """Living processes of a session: the command is the leader of its own."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == session and fields[0] not in "ZX":
            found.append(int(path.parent.name))
    return found


@pytest.fixture(scope="module")
def wholes() -> dict[str, dict[str, str]]:
    """What the uninterrupted run with workers gave, made once."""
    return {}


@pytest.mark.parametrize(
    ("point", "step", "code"),
    [
        ("train.step:group=SIGTERM:1", 1, 143),
        ("checkpoint.synced:group=SIGHUP:3", 4, 129),
    ],
)
def test_a_signal_to_the_whole_group_with_loader_workers(
    point: str,
    step: int,
    code: int,
    cnn_spec: Path,
    cli: Cli,
    zygote: Zygote,
    wholes: dict[str, dict[str, str]],
) -> None:
    """Rows 4, 5, 61 and 67: in a step and in the save itself; no orphans, no traceback, resumed to
    the bit.
    """
    if not wholes:
        whole = cli("pretrain", cnn_spec, "--out", "whole", *WORKERS)
        wholes.update(digests(Path(whole.out.strip())))
    child = zygote.start(
        "pretrain", cnn_spec, "--out", "run", *WORKERS, env={"BIGMODEL_FAILPOINT": point}
    )
    stopped = child.wait()
    assert stopped.status == code, stopped.err
    assert (
        f"stopped at step {step} of 12; checkpoint run/checkpoints/step-{step:08d}" in stopped.err
    )
    for word in ("Traceback", "DataLoader", "Exception"):
        assert word not in stopped.err
    assert (status("run")["state"], status("run")["code"]) == ("stopped", code)
    until(lambda: not alive_in_session(child.pid), 10)
    resumed = zygote.run(*resume_command(stopped.err))
    assert resumed.status == 0, resumed.err
    assert digests(Path(resumed.out.strip())) == wholes


def test_loader_workers_die_with_a_killed_run(cnn_spec: Path, zygote: Zygote) -> None:
    """Rows 5 and 61: kill -9 of the main process alone."""
    child = zygote.start(
        "pretrain",
        cnn_spec,
        "--out",
        "run",
        *WORKERS,
        env={"BIGMODEL_FAILPOINT": "train.step:kill:2"},
    )
    assert child.wait().status == -signal.SIGKILL
    until(lambda: not alive_in_session(child.pid), 10)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
def test_a_loader_worker_that_dies_or_hangs(
    number: int, cnn_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 39: status 3 within the time limit, a good checkpoint, no process left."""
    from bigmodel_cli.train import loop

    honest, calls = loop.train_step, []

    def step(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            os.kill(max(p.pid or 0 for p in multiprocessing.active_children()), number)
        return honest(*arguments)

    monkeypatch.setattr(loop, "train_step", step)
    monkeypatch.setattr("bigmodel_cli.train.workers.TIMEOUT", 1.5)
    result = cli("pretrain", cnn_spec, "--out", "run", *WORKERS, "--set", "train.steps=40")
    assert result.status == 3, result.err
    assert "a loader worker died or hung" in result.err
    assert "try data.workers: 0" in result.err
    assert "Traceback" not in result.err
    assert (status("run")["state"], status("run")["code"]) == ("failed", 3)
    assert checkpoints.newest(Path("run/checkpoints"), lambda text: pytest.fail(text)) is not None
    assert not multiprocessing.active_children()


def test_a_signal_does_not_wait_for_a_loader_worker_that_hangs(
    cnn_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 4 and 39: saved and left long before the worker's time is over."""
    from bigmodel_cli.train import loop

    honest, calls = loop.train_step, []

    def step(*arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 5:
            for process in multiprocessing.active_children():
                os.kill(process.pid or 0, signal.SIGSTOP)
            threading.Timer(1.0, os.kill, (os.getpid(), signal.SIGTERM)).start()
        return honest(*arguments)

    monkeypatch.setattr(loop, "train_step", step)
    started = time.monotonic()
    result = cli("pretrain", cnn_spec, "--out", "run", *WORKERS, "--set", "train.steps=400")
    assert result.status == 143, result.err
    assert time.monotonic() - started < 60
    assert not multiprocessing.active_children()
    told = json.loads(Path("run/status.json").read_text())
    assert (told["state"], told["code"]) == ("stopped", 143)
    assert Path("run", told["last_checkpoint"], "manifest.json").exists()


def test_data_errors_are_reported_as_without_workers() -> None:
    """Row 39: a worker's expected fault has no traceback of the worker's."""

    class Broken:
        def __getitem__(self, number: int) -> Any:
            raise DataError(f"image {number}: cut short")

    workers = Workers(Broken(), range(3, 9), 1, pinned=False)
    with pytest.raises(DataError, match=r"\Aimage 3: cut short\Z"):
        workers.next()
    workers.close()
    assert not multiprocessing.active_children()


def test_a_worker_that_dies_while_a_batch_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 39: whatever the main process is just doing, one fault; it names the signal."""
    asks = torch.utils.data.dataloader._MultiProcessingDataLoaderIter._try_get_data
    monkeypatch.setattr(asks, "__defaults__", (0.5,))  # torch looks after its workers every 5 s

    class Large:
        def __getitem__(self, number: int) -> dict[str, torch.Tensor]:
            return {"x": torch.zeros(100_000)}

    before = signal.getsignal(signal.SIGCHLD)
    for k in range(3):
        workers = Workers(Large(), range(10**6), 2, pinned=False)
        workers.next()
        number = workers.processes[k % 2].pid or 0
        threading.Timer(0.003 * k, os.kill, (number, signal.SIGKILL)).start()
        with pytest.raises(DataError, match=f"process {number} ended by signal 9, Killed"):
            list(iter(workers.next, None))
        assert not multiprocessing.active_children()
    assert signal.getsignal(signal.SIGCHLD) is before


def test_a_defect_in_a_worker_is_not_called_its_death() -> None:
    """An exception that nobody foresaw is shown as it is."""

    class Defect:
        def __getitem__(self, number: int) -> Any:
            raise RuntimeError("the dataset's own")

    workers = Workers(Defect(), range(4), 1, pinned=False)
    with pytest.raises(RuntimeError, match="the dataset's own"):
        workers.next()
    workers.close()


@pytest.mark.parametrize(
    "point", ["status.done:SIGTERM", "status.done:SIGHUP", "train.showing:SIGINT"]
)
def test_a_signal_after_the_end_of_training_changes_nothing(
    point: str, decoder_spec: Path, zygote: Zygote
) -> None:
    """Row 67: while the curve is drawn, and while the last status is written."""
    env = {"BIGMODEL_FAILPOINT": point}
    done = zygote.run("pretrain", decoder_spec, "--out", "run", env=env, curve=True)
    assert (done.status, done.out) == (0, "run/checkpoints/step-00000012\n")
    assert "Traceback" not in done.err
    assert (status("run")["state"], status("run")["code"]) == ("done", 0)


def test_a_signal_while_the_run_begins(decoder_spec: Path, cli: Cli, zygote: Zygote) -> None:
    """Rows 4 and 67: while the first status is written."""
    stopped = zygote.run(
        "pretrain",
        decoder_spec,
        "--out",
        "run",
        env={"BIGMODEL_FAILPOINT": "status.running:SIGTERM"},
    )
    assert stopped.status == 143
    assert "Traceback" not in stopped.err
    assert status("run")["state"] == "stopped"
    assert cli(*resume_command(stopped.err)).status == 0


def test_a_terminal_that_goes_away_stops_the_run_in_good_order(
    decoder_spec: Path, zygote: Zygote
) -> None:
    """Row 67: SIGHUP, and every write to the terminal fails."""
    main, side = pty.openpty()
    name = os.ttyname(side)
    words = ("--set", "train.steps=100000", "--set", "train.validate_every=20")
    child = zygote.start(
        *("pretrain", decoder_spec, "--out", "run", *words),
        env={"TERM": "xterm"},
        stdin=name,
        stderr=name,
    )
    os.set_blocking(main, False)

    def begun() -> bool:
        with contextlib.suppress(BlockingIOError):
            os.read(main, 65536)
        return Path("run/checkpoints/last").exists()

    until(begun, 120)
    os.close(side)
    os.close(main)
    assert child.wait().status == 129
    found = status("run")
    assert (found["state"], found["code"]) == ("stopped", 129)
    assert checkpoints.find(Path("run")).name == f"step-{found['last_step']:08d}"


def test_a_signal_that_python_swallows_is_raised_again_and_nothing_is_printed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Row 67: a finalizer met it, whose exceptions Python prints with a traceback and forgets."""

    class Finalized:
        def __del__(self) -> None:
            os.kill(os.getpid(), signal.SIGTERM)
            for _ in range(1000):
                pass

    printed: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", printed.append)
    with Signals() as signals:
        signals.start()
        finalized = Finalized()
        del finalized
        assert signals.pending == signal.SIGTERM
        with pytest.raises(Interrupted), signals.deferred():
            pass
    assert printed == []
    assert sys.unraisablehook == printed.append


def test_the_first_signal_is_raised_later_ones_are_not_and_nohup_is_respected() -> None:
    """Rows 6 and 67: the first is raised until it is heeded, later ones are not, `nohup` is
    respected, an end stands.
    """
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            signals.start()
            os.kill(os.getpid(), signal.SIGHUP)  # as under nohup
            with pytest.raises(Interrupted) as raised, signals.deferred():
                os.kill(os.getpid(), signal.SIGTERM)
            assert raised.value.number == signal.SIGTERM
            with pytest.raises(Interrupted), signals.deferred():
                pass  # swallowed somewhere, it is raised again
            signals.stopping()
            os.kill(os.getpid(), signal.SIGTERM)
            with signals.deferred():
                pass
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        with Signals() as signals:
            signals.start()
            with pytest.raises(Interrupted), signals.deferred(), signals.let():
                os.kill(os.getpid(), signal.SIGINT)
            assert signals.depth == 0
        with Signals() as signals:
            signals.start()
            signals.end()
            os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGHUP, before)


def compiled(work: Callable[[], None]) -> None:
    """As compiled code that makes an error of its own of whatever is raised in it."""
    try:
        work()
    except BaseException as error:
        raise RuntimeError(f"Error building a validator: {type(error).__name__}") from None


def test_an_error_that_a_library_makes_of_a_signal_is_a_signal_again() -> None:
    def terminated() -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    def wrong() -> None:
        raise KeyError("a bug")

    def told() -> None:
        """A fault with a message of its own is told, also after a signal."""
        with contextlib.suppress(Interrupted):
            terminated()
        raise NumericsError("the loss is nan")

    with Signals() as signals:
        signals.start()
        with pytest.raises(Interrupted) as raised, signals.deferred(), signals.let():
            compiled(terminated)
        assert raised.value.number == signal.SIGTERM
        assert signals.depth == 0
    with Signals() as signals:
        signals.start()
        with pytest.raises(RuntimeError, match="KeyError"), signals.deferred(), signals.let():
            compiled(wrong)  # without a signal it stays what it is
    with Signals() as signals:
        signals.start()
        with pytest.raises(NumericsError), signals.deferred(), signals.let():
            told()


def test_a_run_ends_in_good_order_by_such_an_error(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def building(*given: object) -> None:
        compiled(lambda: os.kill(os.getpid(), signal.SIGHUP))

    monkeypatch.setattr("bigmodel_cli.train.session.set_up", building)
    found = cli("pretrain", decoder_spec, "--out", "run")
    assert (found.status, "Traceback" in found.err) == (129, False), found.err
    assert found.err.splitlines()[-1].startswith("bigmodel: stopped")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_before_anything_is_written_a_signal_leaves_at_once(
    number: signal.Signals, capfd: pytest.CaptureFixture[str]
) -> None:
    """Row 67: while torch is imported there is nothing to save."""
    pid = os.fork()
    if pid == 0:
        with Signals():
            os.kill(os.getpid(), number)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 128 + number
    assert capfd.readouterr().err == "bigmodel: stopped before anything was written\n"


@pytest.mark.parametrize(
    "point",
    ["train.validating:SIGTERM:4", "checkpoint.write:SIGTERM:25", "checkpoint.marked:SIGTERM:7"],
)
def test_a_signal_in_the_final_average(
    point: str, decoder_spec: Path, cli: Cli, zygote: Zygote
) -> None:
    """Rows 62 and 63: in its validation, in its save, and when it has become the result."""
    sets = [w for c in ("train.average_last=2", "train.ema=0.5") for w in ("--set", c)]
    whole = Path(cli("pretrain", decoder_spec, "--out", "whole", *sets).out.strip())
    stopped = zygote.run(
        "pretrain", decoder_spec, "--out", "run", *sets, env={"BIGMODEL_FAILPOINT": point}
    )
    assert stopped.status == 143, stopped.err
    resumed = cli(*resume_command(stopped.err))
    assert resumed.status == 0, resumed.err
    assert Path(resumed.out.strip()).name == whole.name == "average"
    assert digests(Path(resumed.out.strip())) == digests(whole)
    assert digests(Path("run/checkpoints/step-00000012")) == digests(
        Path("whole/checkpoints/step-00000012")
    )
    assert losses(Path("run")) == losses(Path("whole"))
    validations = [
        [
            r
            for r in map(json.loads, Path(run, "metrics.jsonl").read_text().splitlines())
            if "val" in r
        ]
        for run in ("run", "whole")
    ]
    assert validations[0] == validations[1]
    assert [(r["step"], r.get("averaged")) for r in validations[1]] == [
        (4, None),
        (8, None),
        (12, None),
        (12, 2),
    ]


def test_a_signal_that_python_swallowed_before_the_run_stops_it() -> None:
    """Row 67: raised where a module is imported or an object dies, it is ignored with a line; the
    run does not begin.
    """
    received.append(signal.SIGHUP)
    try:
        with pytest.raises(Interrupted) as raised, Signals():
            pytest.fail("it began")
    finally:
        received.clear()
    assert raised.value.number == signal.SIGHUP
