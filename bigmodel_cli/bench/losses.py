"""Where the time of a step goes: what it has to take at the machine's peaks, and what is lost."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from bigmodel_cli.bench.named import OPTIMIZER

WAIT, HOST, OTHERS = "data wait", "host", "other operations"
MOST = 5
"""Operations that are listed by name."""


@dataclass(frozen=True)
class Operation:
    """One kind of operation of a step: how often, what it computes and moves, and its time.

    `least` are the seconds that it takes at the machine's peaks: the larger of FLOPs over the
    matrix rate and bytes over the copy rate, summed over its calls.
    """

    name: str
    calls: int
    flops: float
    bytes: float
    least: float
    seconds: float
    held: int = 0
    """Calls that were faster than memory, by a cache: their time is what counts as the least."""


@dataclass(frozen=True)
class Machine:
    """How a step was computed."""

    precision: str
    compiled: bool
    cpu: bool


@dataclass(frozen=True)
class Loss:
    """Seconds of a step beyond what a row's work has to take."""

    name: str
    seconds: float


@dataclass(frozen=True)
class Roofline:
    """A step of `seconds`: `least` at the machine's peaks, and all `losses`, which together are it.

    `pressed` is what the operations' times were multiplied by, so that they are not longer than the
    step: 1 but for noise. `held` of `calls` were faster than the peaks say.
    """

    seconds: float
    least: float
    losses: Sequence[Loss]
    operations: Sequence[Operation]
    pressed: float = 1.0

    @property
    def share(self) -> float:
        """The least time as a part of the step's; at most 1."""
        return self.least / self.seconds if self.seconds else 0.0

    @property
    def held(self) -> float:
        """The part of the least time that is of operations with calls which caches made faster
        than the peaks.
        """
        own = sum(o.least * o.held / o.calls for o in self.operations if o.calls)
        return own / self.least if self.least else 0.0

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "share": self.share,
            "least_s": self.least,
            "losses_s": {loss.name: loss.seconds for loss in self.losses},
            "pressed": self.pressed,
            "held": self.held,
        }


def roofline(operations: Sequence[Operation], step: float, wait: float, scale: float) -> Roofline:
    """Of a step of `step` seconds, `wait` of them for data; the operations' times are multiplied by
    `scale`, and pressed into the step where they are longer.
    """
    total = scale * sum(o.seconds for o in operations)
    pressed = min(1.0, (step - wait) / total) if total else 1.0
    found = []
    for o in operations:
        seconds = o.seconds * scale * pressed
        found.append(replace(o, seconds=seconds, least=min(o.least, seconds)))
    found.sort(key=lambda o: o.least - o.seconds)
    least = sum(o.least for o in found)
    host = max(0.0, step - wait - sum(o.seconds for o in found))
    losses = [Loss(o.name, o.seconds - o.least) for o in found[:MOST]]
    losses.append(Loss(OTHERS, sum(o.seconds - o.least for o in found[MOST:])))
    losses += [Loss(HOST, host), Loss(WAIT, wait)]
    assert least <= step * (1 + 1e-9), "operations take at least longer than the step"
    return Roofline(step, least, losses, found, pressed)


def advice(found: Roofline, facts: Machine) -> str:
    """What to change, by the row that loses most."""
    worst = max((loss for loss in found.losses if loss.name != OTHERS), key=lambda x: x.seconds)
    percent = f"{100 * worst.seconds / found.seconds:.0f} % of a step"
    by_name = {o.name: o for o in found.operations}
    for fits, says in CAUSES:
        if fits(worst.name, by_name.get(worst.name), facts):
            return f"{percent} {says.format(name=worst.name)}"
    return f"{percent} goes to {worst.name} beyond what it needs"


Fits = Callable[[str, Operation | None, Machine], bool]


def _moving(operation: Operation | None) -> bool:
    """Whether it moves numbers, and multiplies no matrices."""
    return operation is not None and not operation.flops


def _slow(facts: Machine) -> bool:
    return facts.precision == "fp32" and not facts.cpu


CAUSES: Sequence[tuple[Fits, str]] = (
    (
        lambda name, o, facts: name == WAIT,
        "is waiting for data: let more processes prepare it (data.workers), or prepare less",
    ),
    (
        lambda name, o, facts: name == HOST and not facts.compiled,
        "passes between operations, in Python and PyTorch: let more samples pass at once"
        " (train.batch_size), or compile the network (train.compile=on)",
    ),
    (
        lambda name, o, facts: name == HOST,
        "passes between operations, in Python and PyTorch: let more samples pass at once"
        " (train.batch_size)",
    ),
    (
        lambda name, o, facts: name == OPTIMIZER,
        "is lost in updating the weights, which takes as long for any batch: let more samples pass"
        " in a step (train.batch_size)",
    ),
    (
        lambda name, o, facts: _moving(o) and not facts.compiled,
        "is lost in moving numbers ({name}): compile the network, which joins such operations"
        " (train.compile=on)",
    ),
    (
        lambda name, o, facts: _moving(o) and _slow(facts),
        "is lost in moving numbers ({name}): compute in half as many bytes (train.precision=bf16)",
    ),
    (
        lambda name, o, facts: o is not None and o.flops > 0 and _slow(facts),
        "is lost in products ({name}): compute them in bf16 (train.precision=bf16)",
    ),
    (
        lambda name, o, facts: o is not None and o.flops > 0,
        "is lost in products ({name}) that are slower than the machine's best: let more samples"
        " pass at once (train.batch_size), or make the layers wider and fewer",
    ),
)
"""What may be the cause of the largest loss, the first that fits, and what to do."""
