"""Runs that take turns, each in a process of its own: one works while the others wait."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from bigmodel_cli.bench.learn import gate
from bigmodel_cli.bench.pipes import Fault, Piped
from bigmodel_cli.errors import NumericsError, ResourceError
from bigmodel_cli.overrides import Change, to_plain

TURN = 5.0
"""Seconds of a turn."""
PATIENCE = 60.0
"""Seconds that a run has to save its checkpoint when it is stopped."""


@dataclass(frozen=True)
class RunAsked:
    """A run: the recorded spec with changes, its folder, the device."""

    name: str
    spec: dict[str, Any]
    changes: Sequence[Change]
    out: Path
    device: str

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        changes = [to_plain(change) for change in self.changes]
        return {**vars(self), "changes": changes, "out": str(self.out)}


@dataclass(frozen=True)
class Reached:
    """How far a run is: `done` where it has ended, by a loss that is not finite too."""

    step: int = 0
    total: int = 0
    seconds: float = 0.0
    done: bool = False

    @property
    def share(self) -> float:
        """Of the run, from 0 to 1."""
        return 1.0 if self.done else min(1.0, self.step / max(1, self.total))


class Turning(Protocol):
    """A run that works only in its turns."""

    def go(self, seconds: float) -> Reached:
        """Train for about so many seconds, then wait. Raises what the training raised."""

    def stop(self) -> None:
        """Ask it to save and end, without waiting for that."""

    def close(self) -> None:
        """Wait until it has ended."""


class RunProcess:
    """A run in a process of its own, that has been set up and waits for its first turn."""

    def __init__(self, asked: RunAsked) -> None:
        asked.out.parent.mkdir(parents=True, exist_ok=True)
        self.out, self.reached = asked.out, Reached()
        # beside the run's folder, which has to be empty at first
        self.log: IO[bytes] = open(log_of(asked.out), "ab")  # noqa: SIM115
        self.piped = Piped(gate.__name__, PATIENCE, self.log)
        try:
            self.reached = self._ask(asked.to_json())
        except BaseException:
            self.stop()
            self.close()
            raise

    def go(self, seconds: float) -> Reached:
        if not self.reached.done:
            self.reached = self._ask(seconds)
        return self.reached

    def stop(self) -> None:
        if not self.reached.done:
            self.piped.terminate()

    def close(self) -> None:
        self.piped.close()
        self.log.close()

    def _ask(self, request: Any) -> Reached:
        try:
            answer = self.piped.ask(request)
        except Fault as fault:
            if fault.kind == NumericsError.__name__:
                return Reached(done=True)
            raise fault.again(f"{self.out}: ") from None
        except ResourceError as ended:
            where = f"its messages are in {log_of(self.out)}"
            raise ResourceError(f"{self.out}: {ended}; {where}") from None
        if "done" in answer:
            return Reached(done=True)
        return Reached(answer["step"], answer["total"], answer["seconds"])


def log_of(out: Path) -> Path:
    """The file of a run's messages."""
    return out.with_name(f"{out.name}.log")


@dataclass
class Turns:
    """Runs side by side, in turns: forwards, backwards, forwards, ... until each has ended."""

    start: Callable[[RunAsked], Turning]
    tell: Callable[[float], None] = lambda share: None
    seconds: float = TURN
    runs: list[Turning] = field(default_factory=list)

    def take(self, asked: Sequence[RunAsked]) -> None:
        """Set them up one after the other (some measure what is fastest), then train them all.

        Whatever is raised, by a signal too: every run has saved and ended before.
        """
        self.runs = []
        try:
            for one in asked:
                self.runs.append(self.start(one))
            self._turns()
        finally:
            for run in self.runs:
                run.stop()
            for run in self.runs:
                run.close()

    def _turns(self) -> None:
        order, shares = list(range(len(self.runs))), [0.0] * len(self.runs)
        while order:
            going = []
            for number in order:
                reached = self.runs[number].go(self.seconds)
                shares[number] = reached.share
                self.tell(sum(shares))
                if reached.done:
                    self.runs[number].close()
                else:
                    going.append(number)
            order = going[::-1]
