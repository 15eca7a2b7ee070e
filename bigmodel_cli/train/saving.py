"""How a run saves its checkpoints: which process writes what, and whether training waits for it.

The one place that decides. A save of which training does not wait is a copy of the state in memory,
and a thread that writes and commits it; there is one at a time, and whoever needs the folder of the
checkpoints as it will be waits for it (`wait`).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from bigmodel_cli import distributed
from bigmodel_cli.checkpoints import Contents, Copies, Save
from bigmodel_cli.console import quantity
from bigmodel_cli.device import free_memory
from bigmodel_cli.disk import remove
from bigmodel_cli.parted import is_part

LARGE = 64_000_000
"""Bytes of a checkpoint from which on `auto` lets training go on: a smaller one is written in less
than a second."""
DIVIDED = 16_000_000
"""Bytes from which on several processes divide the files."""
SHARE = 0.8
"""Of the free memory, what copies of all processes of a machine may take."""
SEEN = ".draft-seen"


@dataclass
class Saving:
    """A save in progress, in a thread of its own."""

    step: int
    thread: threading.Thread | None = None
    path: Path | None = None  # where it is committed; only in the first process
    error: BaseException | None = None

    def work(self, save: Save, commit: Callable[[Path], None]) -> None:
        """What the thread does."""
        try:
            path = save.write(partial(exchanged, save, aside=True))
            if distributed.world().first:
                commit(path)
                self.path = path
        except BaseException as error:
            self.error = error


def exchanged(save: Save, value: object, *, aside: bool = False) -> list[object]:
    """The values of those that save together."""
    return [value] if save.among.alone else distributed.gathered_values(value, aside=aside)


class Saver:
    """Saves a run's checkpoints into its folder."""

    def __init__(
        self, option: Literal["auto", "on", "off"], folder: Path, say: Callable[[str], None]
    ) -> None:
        self.option, self.folder, self.say = option, folder, say
        self.saving: Saving | None = None
        self.copies = Copies()
        self.seen: bool | None = None  # whether all processes see the first one's files
        self.said = ""

    def save(
        self,
        contents: Contents,
        commit: Callable[[Path], None],
        name: str | None = None,
        *,
        now: bool = False,
        unchanging: frozenset[str] = frozenset(),
    ) -> bool:
        """Save, and then call `commit` in the first process; all processes of the run call it.

        Returns whether that is still going on; with `now` it is not. Weights of `unchanging` names
        are the same at every save. Raises `ResourceError`.
        """
        world, size = distributed.world(), contents.size()
        tensors = (*contents.model.values(), *contents.train.values())
        goes_on = not now and (self.option == "on" or (self.option == "auto" and size >= LARGE))
        divided = not world.alone and size >= DIVIDED and self._all_see()
        # so that every process knows when it is over
        together = not world.alone and (divided or goes_on or any(map(is_part, tensors)))
        if not (world.first or together):
            return False
        save = Save(self.folder, contents, name, together=together, divided=divided)
        if goes_on and self._has_room(save, size):
            save.copy(self.copies, unchanging)
            found = self.saving = Saving(contents.step)
            found.thread = threading.Thread(
                target=found.work, args=(save, commit), name="checkpoint", daemon=True
            )
            found.thread.start()
            return True
        path = save.write(partial(exchanged, save))
        if world.first:
            commit(path)
        return False

    def wait(self) -> Saving | None:
        """The save in progress, now that it is over; None where there is none. Raises its error."""
        found = self.saving
        if found is None:
            return None
        assert found.thread is not None
        found.thread.join()
        self.saving = None
        if found.error is not None:
            raise found.error
        return found

    @property
    def is_over(self) -> bool:
        """Whether a save was in progress, and is over."""
        thread = None if self.saving is None else self.saving.thread
        return thread is not None and not thread.is_alive()

    def _has_room(self, save: Save, size: int) -> bool:
        """Whether every process has memory for the copy of what it writes; that is said."""
        has = True
        if self.option == "auto":
            count = distributed.neighbours() if len(set(save.writers)) > 1 else 1
            free = free_memory()
            has = free is None or count * self.copies.lacks(save.own) <= SHARE * free
        has = all(exchanged(save, has))
        how = (
            "written while training goes on"
            if has
            else "for which training waits: there is no memory to copy them into"
        )
        if how != self.said:
            self.say(f"checkpoints of {quantity(size, 'B')}, {how} (train.save_async)")
            self.said = how
        return has

    def _all_see(self) -> bool:
        """Whether all processes see the files that the first one writes; tried once."""
        if self.seen is None:
            sign = self.folder / f"{SEEN}-{os.getpid()}"
            if distributed.world().first:
                with contextlib.suppress(OSError):
                    sign.mkdir(parents=True)
            sign = Path(distributed.told(str(sign)))
            self.seen = all(distributed.gathered_values(_appears(sign)))
            if distributed.world().first:
                remove(sign, ignore_errors=True)
            if not self.seen:
                self.say(
                    f"checkpoints: process 0 writes all of them: {self.folder} is not one folder"
                    " that all processes can write to"
                )
        return self.seen


def _appears(folder: Path) -> bool:
    """Whether a folder is there and can be written to; on a network it may take a moment."""
    for _ in range(20):
        if os.access(folder, os.W_OK):
            return True
        time.sleep(0.1)
    return False
