"""The operations of a training step, found without doing it: shapes alone pass through it.

They are those that this step has on a CPU: PyTorch's fake tensors (torch._subclasses) go the same
ways as real ones, autocast included, and hold nothing. What a network decides by its numbers is
answered here: experts are chosen evenly, rows are whole, and every place of a mask counts.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from bigmodel_cli.assemble import Outline, kept_parts, outline
from bigmodel_cli.bench.even import Even, Untimed
from bigmodel_cli.bench.mesh.axes import ALONE, Axes
from bigmodel_cli.bench.mesh.rank import Rank
from bigmodel_cli.bench.mesh.traffic import Traffic
from bigmodel_cli.bench.watching import Call, watch
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data import random_batch
from bigmodel_cli.device import autocast
from bigmodel_cli.errors import Unfit
from bigmodel_cli.lazy import Tensor, nn, torch
from bigmodel_cli.logits.elsewhere import pieces_as_on
from bigmodel_cli.models import Model
from bigmodel_cli.models.footprint import following
from bigmodel_cli.optim import total_norm
from bigmodel_cli.parts.contract import counting_ahead, counting_steps
from bigmodel_cli.spec import Spec
from bigmodel_cli.tasks import build_task
from bigmodel_cli.train.autotune import in_format
from bigmodel_cli.train.objective import Objective

CPU = "cpu"
BEGUN = 16
"""The backward pass has begun in this part of it: the loss and the head are through."""
PARTS = ("forward", "backward", "update")
WEIGHTS, GRADIENTS, OPTIMIZER, AVERAGES = "weights", "gradients", "optimizer state", "averages"
Bytes = dict[str, float]
"""By kind."""


@dataclass
class Paper:
    """How often a step has each operation, by the part of the step: of one micro-batch's passes,
    and of the update. Calls have no time.

    `dispatched` are all calls of PyTorch's operations, views among them; `weights` how
    many tensors are trained. `kept` are bytes that stay. `moments` are bytes by kind that a
    micro-batch's passes hold beside the weights at their most: up to where the backward pass
    begins, up to its middle, and after it, gradients included; `most` is each kind's own. Beside
    all that stays, sums of whole gradients hold `summing` and the update `update`. `traffic` is
    what one process of several sends. With `ahead`, parts count a whole step before its passes, in
    forward passes of their own. `largest` are bytes of the largest weight that is in parts.
    """

    parts: dict[str, Counter[Call]] = field(default_factory=dict)
    dispatched: dict[str, float] = field(default_factory=dict)
    weights: float = 0.0
    kept: Bytes = field(default_factory=dict)
    moments: tuple[Bytes, Bytes, Bytes] = field(default_factory=lambda: ({}, {}, {}))
    most: Bytes = field(default_factory=dict)
    update: float = 0.0
    summing: float = 0.0
    traffic: Traffic = field(default_factory=Traffic)
    ahead: bool = False
    largest: float = 0.0

    @property
    def peaks(self) -> tuple[float, float, float]:
        """Bytes of the moments."""
        begun, middle, last = (sum(moment.values()) for moment in self.moments)
        return begun, middle, last

    def calls(self, accumulate: int) -> float:
        """Those of a step of so many micro-batches."""
        passes = self.dispatched["forward"] + self.dispatched["backward"]
        return accumulate * passes + self.dispatched["update"]

    def plus(self, other: Paper, times: float) -> Paper:
        """With another's, each so many times."""
        found: dict[str, Counter[Call]] = {}
        for part in PARTS:
            found[part] = Counter(self.parts[part])
            for call, count in other.parts[part].items():
                found[part][call] += times * count  # type: ignore[assignment]
        counts = {p: self.dispatched[p] + times * other.dispatched[p] for p in PARTS}
        pairs = zip(self.moments, other.moments, strict=True)
        begun, middle, last = (_plus(own, theirs, times) for own, theirs in pairs)
        return Paper(
            found,
            counts,
            self.weights + times * other.weights,
            _plus(self.kept, other.kept, times),
            (begun, middle, last),
            _plus(self.most, other.most, times),
            self.update + times * other.update,
            max(self.summing, other.summing),
            self.traffic.plus(other.traffic, times),
            self.ahead,
            max(self.largest, other.largest),
        )


def _plus(own: Bytes, theirs: Bytes, times: float) -> Bytes:
    names = dict.fromkeys([*own, *theirs])
    return {name: own.get(name, 0.0) + times * theirs.get(name, 0.0) for name in names}


def on_paper(
    spec: Spec,
    info: DatasetInfo,
    precision: str,
    memory_format: str,
    rows: int,
    kind: str = CPU,
    axes: Axes = ALONE,
    outlined: Outline | None = None,
) -> Paper:
    """A step of a spec on micro-batches of so many rows, for a `kind` of device; that of one
    process of a mesh with these axes. The outline, where it is there, is used up.

    Raises `Unfit` for a network whose operations depend on its numbers in other ways, and
    `SpecError` for one that cannot be built, or divided so.
    """
    outlined = outlined or outline(spec, info)
    with pieces_as_on(kind):
        papers = [
            _of(spec, info, m, precision, memory_format, rows, axes) for m in outlined.measured
        ]
    whole, *more = papers
    found = whole
    for stack, longer in zip([s for s in outlined.stacks if s.count > s.kept], more, strict=True):
        times = stack.count - stack.kept
        found = found.plus(longer, times).plus(whole, -times)
    found.kept[WEIGHTS] -= outlined.saved
    return found


def _of(
    spec: Spec,
    info: DatasetInfo,
    model: Model,
    precision: str,
    memory_format: str,
    rows: int,
    axes: Axes,
) -> Paper:
    from torch._subclasses.fake_tensor import (
        DataDependentOutputException,
        DynamicOutputShapeException,
        FakeTensorMode,
        UnsupportedFakeTensorException,
    )

    depends = (
        DataDependentOutputException,
        DynamicOutputShapeException,
        UnsupportedFakeTensorException,
    )
    even = Even()
    with FakeTensorMode() as mode:
        even.mode = mode
        try:
            rank = Rank(_filled(model), axes, spec.train)
            return _step(spec, info, rank, precision, memory_format, rows, even)
        except depends as error:
            raise Unfit(
                f"on paper: what this network computes depends on its numbers ({error}), which are"
                " not there on paper; time it with bigmodel bench"
            ) from None


def _step(
    spec: Spec,
    info: DatasetInfo,
    rank: Rank,
    precision: str,
    memory_format: str,
    rows: int,
    even: Even,
) -> Paper:
    """A step, in fake mode."""
    device, task, model = torch.device(CPU), build_task(spec.task, info), rank.model
    if task.needs_reference:
        task.reference = model
    batch = in_format(random_batch(info, task.reads, rows, device), memory_format)
    if memory_format == "channels_last":
        for weight in [p for p in model.parameters() if p.dim() == 4]:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    model.train()
    if spec.train.checkpointing == "blocks":
        model.recompute()
    optimizer = spec.train.optimizer.build(rank.weights)
    found = Paper(weights=sum(t.requires_grad for t in rank.tensors), traffic=rank.traffic)
    names = WEIGHTS, GRADIENTS, OPTIMIZER, AVERAGES
    found.kept = dict(zip(names, map(float, kept_parts(spec, rank.weights)), strict=True))
    kept = [*model.parameters(), *rank.tensors, *model.buffers(), *batch.values()]
    with following(kept) as alive:
        rank.begin(alive)
        with _noted(found, "forward", even):
            with autocast(device, precision, rank.holds_rounded):
                loss, count = Objective(task, spec.train.loss_chunk)(model, batch)
            total, counting = loss, counting_steps(model, frozenset())
            found.ahead = bool(counting_ahead(counting))
            for part in counting:
                if part.auxiliary is not None:
                    total = total + part.auxiliary * count
        start = len(alive.course)
        rank.turn(alive)
        with _noted(found, "backward", even):
            total.backward()
            rank.end()
            total_norm(optimizer.gradients())
    _moments(found, alive, start)
    optimizer.step(0.0, 1.0)  # whose state is made in the first step
    averages = [torch.empty_like(t) for t in rank.tensors if spec.train.ema is not None]
    kept += [*optimizer.gradients(), *optimizer.state_dict().values(), *averages]
    with following(kept) as updating, _noted(found, "update", even):
        for buffer in model.buffers():  # as they are kept until a step is known to be finite
            buffer.clone()
        optimizer.step(0.0, 1.0)
        if averages:
            torch._foreach_lerp_(averages, rank.tensors, 0.1)
    found.update = max(updating.course, default=0)
    with rank.traffic.within("update"):
        found.summing = rank.sum_over_samples()
    found.largest = rank.largest()
    return found


def _moments(found: Paper, alive: Any, start: int) -> None:
    """The most that passes hold, of which the backward one begins at `start`."""
    rest = len(alive.course) - start
    begun, middle = start + rest // BEGUN, start + rest // 2

    def most(first: int, end: int) -> Bytes:
        places = range(first, min(end, len(alive.course)))
        place = max(places, key=alive.course.__getitem__, default=None)
        return {} if place is None else dict(alive.kinds[place])

    found.moments = most(0, begun + 1), most(0, middle + 1), most(middle, len(alive.course))
    for kinds in alive.kinds:
        for name, size in kinds.items():
            found.most[name] = max(size, found.most.get(name, 0.0))


@contextlib.contextmanager
def _noted(found: Paper, part: str, even: Even) -> Iterator[None]:
    """Inside, operations belong to this part, and so does what is sent."""
    watching = watch(Untimed, even.answers(), even.changes(), even.really)
    with watching, found.traffic.within(part, found.traffic.kind):
        yield
    found.parts[part] = Counter(watching.done())
    found.dispatched[part] = watching.dispatched


def _filled(model: Model) -> Model:
    """The model with fake tensors on the CPU in the place of those on the meta device."""
    known: dict[int, Tensor] = {}

    def filled(tensor: Tensor) -> Tensor:
        if id(tensor) not in known:
            made = torch.empty(tensor.shape, dtype=tensor.dtype, device=CPU)
            weight = isinstance(tensor, nn.Parameter)
            known[id(tensor)] = (
                nn.Parameter(made, requires_grad=tensor.requires_grad) if weight else made
            )
        return known[id(tensor)]

    for module in model.modules():
        every: list[Any] = [module._parameters, module._buffers]
        for tensors in every:
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = filled(tensor)
    return model


def calls_of(paper: Paper, accumulate: int, parts: Sequence[str] = PARTS) -> Counter[Call]:
    """The calls of a whole step of so many micro-batches."""
    found: Counter[Call] = Counter()
    for part in parts:
        times = 1 if part == "update" else accumulate
        for call, count in paper.parts[part].items():
            found[call] += times * count
    return found
