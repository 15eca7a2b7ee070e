"""The operations of a training step, found without doing it: shapes alone pass through it.

They are those that this step has on a CPU: PyTorch's fake tensors (torch._subclasses) go the same
ways as real ones, autocast included, and hold nothing. What a network decides by its numbers is
answered here: experts are chosen evenly, rows are whole, and every place of a mask counts.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bigmodel_cli.assemble import outline
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
from bigmodel_cli.parts.contract import counting_steps
from bigmodel_cli.roles import named_weights
from bigmodel_cli.spec import Spec
from bigmodel_cli.tasks import build_task
from bigmodel_cli.train.autotune import in_format
from bigmodel_cli.train.objective import Objective

CPU = "cpu"
BEGUN = 16
"""The backward pass has begun in this part of it: the loss and the head are through."""
PARTS = ("forward", "backward", "update")


@dataclass
class Paper:
    """How often a step has each operation, by the part of the step: of one micro-batch's passes,
    and of the update. Calls have no time.

    `dispatched` are all calls of PyTorch's operations, views among them; `weights` how
    many tensors are trained. `peaks` are bytes that a micro-batch's passes hold beside the weights:
    where the backward pass begins, up to its middle, and after it, gradients included.
    """

    parts: dict[str, Counter[Call]] = field(default_factory=dict)
    dispatched: dict[str, float] = field(default_factory=dict)
    peaks: tuple[float, float, float] = (0.0, 0.0, 0.0)
    weights: float = 0.0

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
        first, middle, last = (a + times * b for a, b in zip(self.peaks, other.peaks, strict=True))
        weights = self.weights + times * other.weights
        return Paper(found, counts, (first, middle, last), weights)


def on_paper(
    spec: Spec,
    info: DatasetInfo,
    precision: str,
    memory_format: str,
    rows: int,
    kind: str = CPU,
) -> Paper:
    """A step of a spec on micro-batches of so many rows, for a `kind` of device.

    Raises `Unfit` for a network whose operations depend on its numbers in other ways, and
    `SpecError` for one that cannot be built.
    """
    outlined = outline(spec, info)
    with pieces_as_on(kind):
        papers = [_of(spec, info, m, precision, memory_format, rows) for m in outlined.measured]
    whole, *more = papers
    found = whole
    for stack, longer in zip([s for s in outlined.stacks if s.count > s.kept], more, strict=True):
        times = stack.count - stack.kept
        found = found.plus(longer, times).plus(whole, -times)
    return found


def _of(
    spec: Spec, info: DatasetInfo, model: Model, precision: str, memory_format: str, rows: int
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
    even = _Even()
    with FakeTensorMode() as mode:
        even.mode = mode
        try:
            return _step(spec, info, _filled(model), precision, memory_format, rows, even)
        except depends as error:
            raise Unfit(
                f"--plan: what this network computes depends on its numbers ({error}), which are"
                " not there on paper; time it with bigmodel bench"
            ) from None


def _step(
    spec: Spec,
    info: DatasetInfo,
    model: Model,
    precision: str,
    memory_format: str,
    rows: int,
    even: _Even,
) -> Paper:
    """A step, in fake mode."""
    device, task = torch.device(CPU), build_task(spec.task, info)
    if task.needs_reference:
        task.reference = model
    batch = in_format(random_batch(info, task.reads, rows, device), memory_format)
    if memory_format == "channels_last":
        for weight in [p for p in model.parameters() if p.dim() == 4]:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last)
    model.train()
    if spec.train.checkpointing == "blocks":
        model.recompute()
    optimizer = spec.train.optimizer.build(named_weights(model))
    found = Paper(weights=sum(p.requires_grad for p in model.parameters()))
    kept = [*model.parameters(), *model.buffers(), *batch.values()]
    with following(kept) as alive:
        with _noted(found, "forward", even):
            with autocast(device, precision):
                loss, count = Objective(task, spec.train.loss_chunk)(model, batch)
            total = loss
            for part in counting_steps(model, frozenset()):
                if part.auxiliary is not None:
                    total = total + part.auxiliary * count
        start = len(alive.course)
        with _noted(found, "backward", even):
            total.backward()
            total_norm(optimizer.gradients())
    rest = len(alive.course) - start
    begun, middle = start + rest // BEGUN, start + rest // 2
    course = [*alive.course, 0.0]
    found.peaks = (max(course[: begun + 1]), max(course[: middle + 1]), max(course[middle:]))
    optimizer.step(0.0, 1.0)  # whose state is made in the first step
    with _noted(found, "update", even):
        for buffer in model.buffers():  # as they are kept until a step is known to be finite
            buffer.clone()
        optimizer.step(0.0, 1.0)
        if spec.train.ema is not None:
            weights: list[Tensor] = list(model.parameters())
            torch._foreach_lerp_([torch.empty_like(p) for p in weights], weights, 0.1)
    return found


@contextlib.contextmanager
def _noted(found: Paper, part: str, even: _Even) -> Iterator[None]:
    """Inside, operations belong to this part."""
    watching = watch(_Nothing, even.answers(), even.changes())
    with watching:
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


class _Nothing:
    """Takes no time."""

    def end(self) -> None:
        """Nothing was begun."""

    def seconds(self) -> float:
        """None."""
        return 0.0


class _Even:
    """Answers to what a network asks of its numbers."""

    mode: Any = None

    def answers(self) -> Mapping[str, Any]:
        """By the operations' names."""
        return {
            "bincount": self.counts,
            "nonzero": self.places,
            "_local_scalar_dense": self.number,
            "equal": self.differ,
        }

    def places(self, mask: Tensor) -> Tensor:
        """Every one."""
        return torch.empty(mask.numel(), mask.dim(), dtype=torch.long, device=mask.device)

    def changes(self) -> Mapping[str, Any]:
        """Other arguments, by the operations' names."""
        return {"index": self.every}

    def every(self, x: Tensor, chosen: Sequence[Tensor | None]) -> Sequence[Any]:
        """The same with every place of a mask."""
        found: list[Tensor | None] = []
        for mask in chosen:
            if mask is None or mask.dtype != torch.bool:
                found.append(mask)
                continue
            place = torch.empty(mask.numel(), dtype=torch.long, device=mask.device)
            found += [place] * mask.dim()
        return x, found

    def counts(self, chosen: Tensor, weights: object = None, minlength: int = 0) -> Tensor:
        """As many rows for each expert, as real numbers."""
        each, more = divmod(chosen.numel(), minlength)
        with self._real():
            return torch.tensor([each + (n < more) for n in range(minlength)])

    def number(self, tensor: Tensor) -> float | bool:
        """True, or 1."""
        return True if tensor.dtype == torch.bool else 1

    def differ(self, *tensors: Tensor) -> bool:
        """Drawn numbers differ."""
        return False

    def _real(self) -> contextlib.AbstractContextManager[object]:
        from torch._subclasses.fake_tensor import unset_fake_temporarily

        return unset_fake_temporarily()


def calls_of(paper: Paper, accumulate: int, parts: Sequence[str] = PARTS) -> Counter[Call]:
    """The calls of a whole step of so many micro-batches."""
    found: Counter[Call] = Counter()
    for part in parts:
        times = 1 if part == "update" else accumulate
        for call, count in paper.parts[part].items():
            found[call] += times * count
    return found
