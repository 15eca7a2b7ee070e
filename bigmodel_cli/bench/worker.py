"""Each target in a process of its own, driven through pipes by lines of JSON.

What one target leaves behind (compiled kernels, fragments of memory, threads) does not touch the
others, and the peak memory of its process is its own. While one works the others sleep, so that
they can take turns. The worker's own stdout goes to stderr: only answers go through the pipe.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from bigmodel_cli.bench.doing import WARMUP, Doing, Opened, block, warm
from bigmodel_cli.bench.energy import Meter
from bigmodel_cli.bench.kinds import KINDS
from bigmodel_cli.bench.losses import Operation
from bigmodel_cli.bench.own_memory import OwnMemory, limit_memory, load_tools
from bigmodel_cli.bench.pipes import Fault, Piped, answering, faulty
from bigmodel_cli.bench.reference import Reference
from bigmodel_cli.bench.result import Block, Facts, Work
from bigmodel_cli.bench.targets import built_in, opened
from bigmodel_cli.console import say, speak_for
from bigmodel_cli.device import is_cuda, pick_device
from bigmodel_cli.errors import BigmodelError, ResourceError, Unfit, memory_remedy
from bigmodel_cli.lazy import load_torch, torch
from bigmodel_cli.overrides import Change, from_plain, to_plain
from bigmodel_cli.plugin_faults import VARIABLE
from bigmodel_cli.train.step import batch_norm_explained

REMEDY = "give a smaller --batch"
LACKING = ("not implemented for", "does not support", "not supported")
"""What the message of a `RuntimeError` has where PyTorch lacks an operation."""
PATIENCE = 5.0
"""Seconds that a worker has to end by itself."""


@dataclass(frozen=True)
class Asked:
    """What a worker is to time."""

    target: str  # a spec, a checkpoint, or "cnn" or "decoder" of the built-in set
    doing: str = "training"
    device: str = "auto"
    built_in: bool = False
    changes: Sequence[Change] = ()
    quiet: bool = False  # it says nothing on stderr: another process of the same target does
    speaker: str = ""  # before each of its lines on stderr, where several targets have some
    number: int = 0  # the target's place among those named
    title: str = ""  # what is added to its name: what it has that others of the target have not
    plugins: str | None = None  # of its process, where they are not this one's
    room: int | None = None  # bytes that it may take on the CPU; above, memory lacks

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {**vars(self), "changes": [to_plain(change) for change in self.changes]}

    def of_batch(self, size: int) -> Asked:
        """The same with so many samples at once."""
        return replace(self, changes=[*self.changes, *KINDS[self.doing].of_batch(size)])

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Asked:
        """The inverse."""
        return cls(**{**values, "changes": [from_plain(c) for c in values["changes"]]})


@dataclass(frozen=True)
class Peaks:
    """Peak bytes: of a step's tensors; of the process, above what it had before the model was
    built; and of the device, as its allocator keeps them (None without one).
    """

    tensors: int
    process: int
    device: int | None


class Subject(Protocol):
    """A target that can be timed, here or in another process."""

    places: Sequence[str]

    def facts(self) -> Facts:
        """What is known of it."""

    def block(self, seconds: float, least: int) -> Block:
        """Steps for about so many seconds, and at least so many."""

    def work(self) -> Work | None:
        """What a step asks of the machine, and the machine's peaks, measured now; None for what
        computes nothing.
        """

    def peaks(self) -> Peaks:
        """The most memory so far."""

    def close(self) -> None:
        """End it."""


class Here:
    """A target in this process."""

    def __init__(self, asked: Asked) -> None:
        load_torch()
        device = pick_device(asked.device, say)
        found = (built_in if asked.built_in else opened)(asked.target, asked.changes)
        self.places = found.places
        self.reference, self.meter = Reference(device), Meter(device)
        load_tools()
        self.memory = OwnMemory()
        self.most: tuple[int, int | None] | None = None
        if asked.room is not None and not is_cuda(device):
            limit_memory(asked.room)
        with memory_remedy(REMEDY), batch_norm_explained(), _supported(found, device):
            self.doing: Doing = KINDS[asked.doing].begin(found, device)
            warm(self.doing, WARMUP if asked.room is None else 1)

    def facts(self) -> Facts:
        return self.doing.facts()

    def block(self, seconds: float, least: int) -> Block:
        before = self.meter.read()
        with memory_remedy(REMEDY):
            found = block(self.doing, seconds, least)
        joules = self.meter.joules(before, self.meter.read())
        return replace(found, reference=self.reference.seconds(), joules=joules)

    def work(self) -> Work | None:
        self.most = self.most or self._most()
        with memory_remedy(REMEDY):
            return self.doing.work()

    def peaks(self) -> Peaks:
        self.most = self.most or self._most()
        with memory_remedy(REMEDY):
            return Peaks(self.doing.peak_tensors(), *self.most)

    def _most(self) -> tuple[int, int | None]:
        """Of the process and the device so far: before the machine's peaks are measured."""
        device, process = self.doing.device, self.memory.peak()
        if not is_cuda(device):
            return process, None
        return process, int(torch.cuda.max_memory_reserved(device))

    def close(self) -> None:
        self.doing.close()


class Process:
    """A target in a process of its own.

    Raises what opening it raised there, with the same status. The process ends with this one.
    """

    def __init__(self, asked: Asked) -> None:
        self.target = asked.target
        errors = subprocess.DEVNULL if asked.quiet else None
        more = None if asked.plugins is None else {VARIABLE: asked.plugins}
        self.piped = Piped(__name__, PATIENCE, errors, more)
        try:
            self.places = self._ask("open", asked.to_json())
        except BaseException:
            self.close()
            raise

    def facts(self) -> Facts:
        return Facts(**self._ask("facts"))

    def block(self, seconds: float, least: int) -> Block:
        found = self._ask("block", {"seconds": seconds, "least": least})
        parts = {name: tuple(values) for name, values in found["parts"].items()}
        times, processor = tuple(found["seconds"]), found["processor"]
        return Block(times, parts, processor, found["reference"], joules=found["joules"])

    def work(self) -> Work | None:
        found = self._ask("work")
        if found is None:
            return None
        operations = [Operation(**values) for values in found["operations"]]
        return Work(**{**found, "operations": operations})

    def peaks(self) -> Peaks:
        return Peaks(**self._ask("peaks"))

    def close(self) -> None:
        self.piped.close()

    def _ask(self, what: str, given: Mapping[str, Any] | None = None) -> Any:
        try:
            return self.piped.ask([what, given or {}])["answer"]
        except Fault as fault:
            raise fault.again() from None
        except ResourceError as ended:
            raise ResourceError(f"{self.target}: {ended}") from None


def _plain(work: Work | None) -> dict[str, Any] | None:
    return None if work is None else asdict(work)


@contextlib.contextmanager
def _supported(found: Opened, device: torch.device) -> Iterator[None]:
    """Inside, what PyTorch does not compute in a precision or on a device is `Unfit`."""
    try:
        yield
    except RuntimeError as error:
        first = str(error).partition("\n")[0]
        if not isinstance(error, NotImplementedError) and not any(w in first for w in LACKING):
            raise
        precision = found.spec.train.precision
        raise Unfit(f"train.precision: {precision} on {device}: {first}") from None


def serve() -> None:
    """Answer requests from stdin until it is closed."""
    answers = answering()
    subject: Subject | None = None
    for line in sys.stdin:
        what, given = json.loads(line)
        try:
            if subject is None:
                asked = Asked.from_json(given)
                speak_for(asked.speaker)
                subject = Here(asked)
            answer: dict[str, Any] = {"answer": ANSWERS[what](subject, given)}
        except BigmodelError as error:
            answer = faulty(error)
        print(json.dumps(answer), file=answers, flush=True)
    if subject is not None:
        subject.close()


ANSWERS: dict[str, Callable[[Subject, dict[str, Any]], Any]] = {
    "open": lambda subject, given: list(subject.places),
    "facts": lambda subject, given: asdict(subject.facts()),
    "block": lambda subject, given: asdict(subject.block(given["seconds"], given["least"])),
    "work": lambda subject, given: _plain(subject.work()),
    "peaks": lambda subject, given: asdict(subject.peaks()),
}
"""What a worker is asked, by name; the first request opens the target."""
