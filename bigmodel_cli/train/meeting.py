"""A run of several processes: they meet, one of them keeps the run's directory, all end as one."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from bigmodel_cli import distributed
from bigmodel_cli.console import say
from bigmodel_cli.distributed import voice
from bigmodel_cli.distributed.names import log_name
from bigmodel_cli.distributed.peers import Fault, Peers
from bigmodel_cli.errors import ProcessError, Stopped, status_of
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.rundir import STATUS, RunDirectory, has_begun, read_status
from bigmodel_cli.train.request import Request, how_to_go_on
from bigmodel_cli.train.resume import begun_runs, latest_directory
from bigmodel_cli.train.signals import Interrupted, Signals

RUNS = Path("runs")
NUMBER = "processes"
"""The name in status.json of how many there are, where it is more than one."""


class Joined(RunDirectory):
    """The run's directory in a process that is not the first: it reads, and writes nothing."""

    def __init__(self, path: Path) -> None:
        self.recall(path)
        self.in_place_of_first = False

    def close(self) -> None:
        """There is no lock."""

    def begin(self, spec: str, step: int) -> None:
        self.begun = self.recording = True
        self.last_step = step

    def keep(self, name: str, text: str) -> None:
        """The first process does."""

    def stand_in(self) -> None:
        self.in_place_of_first = True

    def put_status(self, state: str, text: str) -> None:
        if self.in_place_of_first:
            super().put_status(state, text)


@contextlib.contextmanager
def together(signals: Signals, limit: float | None) -> Iterator[None]:
    """Inside, the processes of the run know one another; they leave together.

    Raises `ProcessError` where another one is lost or fails.
    """
    peers = distributed.meet(limit or TrainOptions.model_fields["timeout"].default)
    if peers is None:
        yield
        return
    signals.shared = peers
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, Interrupted | Stopped)
        fault = peers.end(status_of(error), str(error), stopped)
        if fault is not None and fault.status not in (0, status_of(error)):
            raise ProcessError(fault.message, fault.status) from None
        raise
    else:
        fault = peers.end(0, "")
        if fault is not None and fault.status:
            raise ProcessError(fault.message, fault.status)
        distributed.end()
    finally:
        signals.shared = None


@contextlib.contextmanager
def settled(request: Request, directory: RunDirectory) -> Iterator[None]:
    """Inside, an error is what the run ends by in all its processes."""
    peers = distributed.peers()
    if peers is None:
        yield
        return
    peers.on_end = lambda fault: _ended(fault, peers, request, directory)
    try:
        yield
    except BaseException as error:
        stopped = isinstance(error, Interrupted | Stopped)
        found = peers.settle(error, status_of(error), stopped)
        fault = peers.fault
        if found is error:
            raise
        more = ""
        if fault is not None and (peers.first or peers.speaks_for_first(fault)):
            more = _more(fault, request, directory)
            voice.speak()
            directory.stand_in()
        raise ProcessError(f"{found}{more}", status_of(found)) from None


def _ended(fault: Fault, peers: Peers, request: Request, directory: RunDirectory) -> None:
    """Say and record how the run ended: its main thread does not."""
    voice.speak()
    signal_number = fault.status - 128
    state = "stopped" if signal_number > 0 else "failed"
    message = f"{fault.message}{_more(fault, request, directory)}"
    directory.stand_in()
    directory.failed(state, fault.status, message)
    say(f"bigmodel: {message}")


def _more(fault: Fault | None, request: Request, directory: RunDirectory) -> str:
    """What is to be read, and done."""
    log = directory.path / log_name(fault.rank) if fault is not None and fault.rank else None
    read = f"; what it said is in {log}" if log is not None and os.path.isfile(log) else ""
    return f"{read}{how_to_go_on(request, directory)}"


def open_directory(request: Request) -> tuple[RunDirectory, Request]:
    """The run's directory, which the first process chooses and keeps; and what was asked of it.

    Where torchrun or `--restarts` starts the processes again, that is to go on with the run that
    they began.
    """
    peers = distributed.peers()
    if peers is None:
        return _opened(request), request
    if not peers.first:
        path, resume, name = distributed.told(None)
        voice.write_to(Path(path), peers.rank)
        joined = Joined(Path(path))
        joined.about["launch"] = name  # which it writes where the first is gone
        return joined, replace(request, resume=resume)
    request = _started_again(request)
    directory = _opened(request)
    directory.about["launch"] = launch()
    if not directory.begun:  # a restart knows its run by it, whenever this process is killed
        directory.write_status("running", 0, "")
    distributed.told([str(directory.path), request.resume, launch()])
    return directory, request


def note_number(directory: RunDirectory) -> None:
    """Record how many processes train, and say where a run that goes on had another number."""
    before, now = directory.previous.get(NUMBER, 1), distributed.world().size
    if directory.begun and before != now:
        say(f"processes: {now}, and {before} before; the order of the samples is the same")
    directory.about.pop(NUMBER, None)
    if now > 1:
        directory.about[NUMBER] = now


def _opened(request: Request) -> RunDirectory:
    if request.resume:
        return RunDirectory.open(request.out or latest_directory(RUNS, request.name), resume=True)
    if request.out is not None:
        return RunDirectory.open(request.out, resume=False)
    return RunDirectory.fresh(RUNS, request.name)


def _started_again(request: Request) -> Request:
    """The request, or to resume the run that this launch began."""
    if request.resume or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0":
        return request
    if request.out is not None:
        runs = [request.out] if has_begun(request.out) else []
    else:
        begun = begun_runs(RUNS, request.name)
        runs = [begun[number] for number in sorted(begun, reverse=True)]
    for path in runs:
        if read_status(path / STATUS).get("launch") == launch():
            say(f"started again: going on with {path}")
            return replace(request, resume=True, out=path)
    return request


def launch() -> str:
    """Which start of processes this is: the same after a restart."""
    name = os.environ.get("TORCHELASTIC_RUN_ID", "none")
    return name if name != "none" else f"{socket.gethostname()} {os.getppid()}"
