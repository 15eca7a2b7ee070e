"""`--batch auto`: the largest batch that fits, tried in processes of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

from bigmodel_cli.bench.worker import Asked, Process, Subject
from bigmodel_cli.console import say
from bigmodel_cli.device import free_memory
from bigmodel_cli.errors import DataError, ResourceError, SpecError, Unfit
from bigmodel_cli.progress import progress

SHARE = 0.95
"""Of the free memory of a CPU, what a trial may take."""
CLOSE = 16
"""A batch is near enough to the largest where a larger one by this part of it does not fit."""
MOST = 1 << 20
"""Samples at once, at most."""
SECOND = 16
"""The size of the second trial: with the first it foresees what others need."""
ENDLESS = 1 << 62


@dataclass
class Trials:
    """Whether batches of what is asked for fit, each tried in a process: bytes by size."""

    asked: Asked
    start: Callable[[Asked], Subject] = Process
    room: int = ENDLESS
    needed: dict[int, int] = field(default_factory=dict)
    tell: Callable[[], None] = lambda: None

    def take(self, size: int) -> None:
        """Take a step with so many samples. Raises what that raises."""
        self.tell()
        wanted = replace(self.asked.of_batch(size), room=self.room, quiet=size > 1)
        subject = self.start(wanted)
        try:
            # as the plan of training foresees it, or measured
            foreseen = subject.facts().foreseen.get("peak")
            self.needed[size] = foreseen or subject.peaks().tensors
        finally:
            subject.close()

    def fits(self, size: int) -> bool:
        """Whether a step with so many samples fits; also the data has to have them."""
        try:
            self.take(size)
        except (ResourceError, Unfit, DataError):
            return False
        return True

    def guess(self) -> int | None:
        """The size that would take all the room, by those tried so far."""
        if len(self.needed) < 2 or self.room == ENDLESS:
            return None
        (a, low), *_, (b, high) = sorted(self.needed.items())
        each = (high - low) / (b - a)
        return int((self.room - low) / each) + a if each > 0 else None


def largest(asked: Asked, start: Callable[[Asked], Subject] = Process) -> int:
    """The largest number of samples at once with which a step of what is asked for fits.

    Each trial is a process, in which a step is taken; one that lacks memory ends by itself. On the
    CPU its memory is limited to what is free, so that the system kills nothing. Raises what the
    smallest batch raises.
    """
    free = free_memory()
    room = ENDLESS if free is None else int(SHARE * free)
    with progress(f"largest batch of {asked.target}{asked.title}", None, "trials") as shown:
        found = _largest(Trials(asked, start, room, tell=lambda: shown.add(1)))
    say(f"--batch auto: {asked.target}{asked.title}: {found:,} samples at once fit")
    return found


def _largest(trials: Trials) -> int:
    smallest = 1
    try:
        trials.take(1)
    except (Unfit, DataError):
        raise
    except SpecError:  # batch normalisation may need more
        smallest = 2
        trials.take(2)
    if trials.fits(SECOND):
        smallest = SECOND
    return search(trials.fits, MOST, smallest, trials.guess())


def search(fits: Callable[[int], bool], most: int, low: int = 1, guess: int | None = None) -> int:
    """The largest size up to `most` that fits, or one near it (`CLOSE`), where `low` does.

    It is looked for from the `guess` upwards, or by doubling; then by halving the gap.
    """
    high, size = most + 1, guess or 2 * low
    while low < most:
        size = min(max(size, low + 1), most)
        if not fits(size):
            high = size
            break
        low, size = size, (2 * size if guess is None else size + max(1, size // 4))
    while high - low > max(1, low // CLOSE):
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
