"""Processes that load batches: no signal to the run ends them, their death is said where a batch is due, none outlives the run."""

from __future__ import annotations

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from bigmodel_cli.errors import BigmodelError, DataError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.train.signals import HEEDED

TIMEOUT = 120.0
"""Seconds without a batch after which the loader workers are given up."""
_PR_SET_PDEATHSIG = 1


class Workers:
    """Batches of a dataset by their numbers, in order, made by `count` processes.

    A terminal and many schedulers signal the whole process group. Stopping is the main process's business: workers ignore SIGINT,
    SIGTERM and SIGHUP from their first moment on, and die with it. torch learns of a worker's death by SIGCHLD and raises wherever
    the main process happens to be, be it inside a save; here it is raised in `next` alone.
    """

    def __init__(self, dataset: Any, numbers: range, count: int, pinned: bool) -> None:
        from torch.utils.data import DataLoader

        guarded: Any = _Guarded(dataset)
        loader: Any = DataLoader(
            guarded,
            batch_size=None,
            sampler=numbers,
            num_workers=count,
            pin_memory=pinned,
            worker_init_fn=_Start(os.getpid()),
            generator=torch.Generator(),  # the workers' seed is not drawn from the stream that dropout uses
        )
        others = {process.pid for process in multiprocessing.active_children()}
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, HEEDED)  # inherited, until a worker ignores them
        try:
            self.batches = iter(loader)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self.processes = [p for p in multiprocessing.active_children() if p.pid not in others]
        self.waiting = self.hung = False
        self.asked = 0  # batches
        self.closed = threading.Event()
        threading.Thread(target=self.watch, daemon=True).start()
        self.on_death: Any = None
        if threading.current_thread() is threading.main_thread():
            self.on_death = signal.signal(signal.SIGCHLD, self.on_child)

    def on_child(self, number: int, frame: FrameType | None) -> None:
        """The handler of SIGCHLD: torch's, which raises for a dead worker, where a batch is waited for."""
        if self.waiting and callable(self.on_death):
            self.on_death(number, frame)

    def watch(self) -> None:
        """Kill the workers when a batch is overdue; what waits for them, perhaps without end, then fails.

        Seconds are counted one by one: a process that was stopped meanwhile has not waited.
        """
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # they are the main thread's
        tick = min(1.0, TIMEOUT / 4)
        asked, waited = 0, 0.0
        while not self.closed.wait(tick):
            waited = waited + tick if self.waiting and self.asked == asked else 0.0
            asked = self.asked
            if waited >= TIMEOUT:
                self.hung = True
                self._kill()
                return

    def next(self) -> dict[str, Tensor]:
        """The next batch. Raises `DataError` where a worker died, hung, or met one."""
        fault = ""
        self.asked += 1
        self.waiting = True
        try:
            dead = [process.pid for process in self.processes if not process.is_alive()]
            if dead:
                raise RuntimeError(f"DataLoader worker (pid {dead[0]}) has died")
            batch = next(self.batches)
        except Exception as error:
            fault = self._fault(error)
            if not fault:
                raise
        finally:
            self.waiting = False
        if fault:
            self.close(at_once=True)
            raise DataError(f"a loader worker died or hung ({fault}); try data.workers: 0")
        if isinstance(batch, BigmodelError):
            raise batch
        return batch  # type: ignore[no-any-return]

    def _fault(self, error: Exception) -> str:
        """What has become of the workers, where that is the error's cause."""
        if self.hung:
            return f"no batch came within {TIMEOUT:g} seconds"
        said = isinstance(error, RuntimeError) and "DataLoader" in str(error)
        broken = isinstance(error, OSError | EOFError) and self._is_one_dead()
        return (str(error).splitlines() or [type(error).__name__])[0] if said or broken else ""

    def _is_one_dead(self) -> bool:
        """Whether a worker is gone; one that is just dying has closed its connections already."""
        for process in self.processes:
            process.join(1.0 / len(self.processes))
        return not all(process.is_alive() for process in self.processes)

    def close(self, at_once: bool = False) -> None:
        """End the workers: those that do not end by themselves, and with `at_once` all of them, by force."""
        self.closed.set()
        if at_once:
            self._kill()
        if self.batches is not None:
            self.batches = None  # torch tells its workers to end, and waits for them
        self._kill()
        if self.on_death is not None:
            signal.signal(signal.SIGCHLD, self.on_death)
            self.on_death = None

    def _kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


class _Guarded:
    """A dataset whose expected faults travel to the main process as they are, without the worker's traceback."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, number: int) -> Any:
        try:
            return self.dataset[number]
        except BigmodelError as error:
            return error


class _Start:
    """What a worker does first."""

    def __init__(self, parent: int) -> None:
        self.parent = parent

    def __call__(self, worker: int) -> None:
        for number in HEEDED:
            signal.signal(number, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HEEDED)
        if sys.platform == "linux":  # elsewhere torch's watchdog ends a worker within seconds
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != self.parent:
                os._exit(1)
        torch.set_num_threads(1)
