"""Loader processes: immune to the run's signals, checked for death, and never outliving the run."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import multiprocessing
import os
import signal
import sys
import threading
from typing import Any

from bigmodel_cli.errors import BigmodelError, DataError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.train.signals import HEEDED

TIMEOUT = 120.0
"""Seconds without a batch after which the loader workers count as hung."""
_PR_SET_PDEATHSIG = 1


class Workers:
    """Batches of a dataset by their indices, in order, loaded by `count` processes.

    A terminal and many schedulers signal the whole process group. Stopping is the main process's
    business: workers ignore SIGINT, SIGTERM and SIGHUP from their first moment on, and die with it.
    torch's handler of SIGCHLD raises wherever the main process happens to be when a worker dies, be
    it inside a save; it is taken back. A death is found where a batch is due, within the 5 seconds
    after which torch looks again whether its workers are alive.
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
            worker_init_fn=functools.partial(_start, os.getpid()),
            # the workers' seed is not drawn from the stream that dropout uses
            generator=torch.Generator(),
        )
        others = {process.pid for process in multiprocessing.active_children()}
        # Inherited until a worker ignores them; SIGCHLD waits until torch's handler of it is gone.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, {*HEEDED, signal.SIGCHLD})
        on_death = signal.getsignal(signal.SIGCHLD) or signal.SIG_DFL
        self.waiting = self.hung = False
        try:
            self.batches = iter(loader)
        finally:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGCHLD, on_death)
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self.processes = [p for p in multiprocessing.active_children() if p.pid not in others]
        self.asked = 0  # batches
        self.closed = threading.Event()
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        """Kill the workers when a batch is overdue, so that waiting for them fails.

        Seconds are counted one by one, so that a stopped process has not waited.
        """
        # they are the main thread's
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
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
        """The next batch. Raises `DataError` where a worker died, hung, or raised one."""
        fault = ""
        self.asked += 1
        self.waiting = True
        try:
            if not self._are_alive():
                raise EOFError
            batch = next(self.batches)
        except Exception:
            fault = self._fault()
            if not fault:
                raise
        finally:
            self.waiting = False
        # raised here: an exception keeps the frames that it went through, and with them torch's
        # iterator
        if fault:
            self.close(at_once=True)
            raise DataError(f"a loader worker died or hung ({fault}); try data.workers: 0")
        if isinstance(batch, BigmodelError):
            raise batch
        return batch  # type: ignore[no-any-return]

    def _fault(self) -> str:
        """What happened to the workers, or ""."""
        if self.hung:
            return f"no batch came within {TIMEOUT:g} seconds"
        for process in self.processes:
            process.join(1.0 / len(self.processes) if self._are_alive() else 0)
            code = process.exitcode
            if code is not None:
                end = (
                    f"by signal {-code}, {signal.strsignal(-code)}"
                    if code < 0
                    else f"with status {code}"
                )
                return f"process {process.pid} ended {end}"
        return ""

    def _are_alive(self) -> bool:
        return all(process.is_alive() for process in self.processes)

    def close(self, at_once: bool = False) -> None:
        """End the workers; kill those that do not exit, and with `at_once` all of them."""
        self.closed.set()
        if at_once:
            self._kill()
        if self.batches is not None:
            self.batches = None  # torch tells its workers to end, and waits for them
        self._kill()

    def _kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


class _Guarded:
    """A dataset whose expected errors reach the main process without the worker's traceback."""

    def __init__(self, dataset: Any) -> None:
        self.dataset = dataset

    def __getitem__(self, number: int) -> Any:
        try:
            return self.dataset[number]
        except BigmodelError as error:
            return error


def _start(parent: int, worker: int) -> None:
    """What a worker of the process `parent` does first."""
    for number in HEEDED:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {*HEEDED, signal.SIGCHLD})
    if sys.platform == "linux":  # elsewhere torch's watchdog ends a worker within seconds
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
    torch.set_num_threads(1)
