"""Learning from a teacher: its probabilities and residual streams beside the data's targets."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import F, Module, Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.models import Model
from bigmodel_cli.recipe import DistillOptions
from bigmodel_cli.tasks import Task
from bigmodel_cli.train.answers import LOGITS, POSITIONS, STREAMS
from bigmodel_cli.train.held import hold_in_precision
from bigmodel_cli.train.objective import Batch, Objective

Stream = tuple[Tensor, Tensor | None]
"""A residual stream (B, T, C), and which of its positions are not padding (B, T); None: all."""


class Streams:
    """The residual streams of a model after some of its layers, in each forward pass that is
    watched: validations pass through the same blocks.
    """

    def __init__(self, model: Model, count: int) -> None:
        """Of `count` layers that are spread evenly, the last one among them (see `compared`)."""
        self.kept: list[Stream] = []
        self.watching = False
        layers = model.stream_layers()
        for i in compared(len(layers), count):
            layers[i].register_forward_hook(self._keep)

    def _keep(self, module: Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if self.watching:
            self.kept.append((output, inputs[1].real))

    def __enter__(self) -> list[Stream]:
        self.watching = True
        return self.kept

    def __exit__(self, *raised: object) -> None:
        self.watching = False
        self.kept.clear()


class Taught(Objective):
    """(1 - w) loss + w T^2 KL(teacher || student) at temperature T (Hinton et al. 2015), and
    `hidden` times the mean squared difference of their residual streams (Romero et al. 2015).

    Each target counts in both as much as in the loss. The streams are compared after blocks that
    are spread evenly over the teacher's, the last with the last; the mean is over a row's positions
    that are not padding, and over rows, each as often as it has targets: so all terms are sums over
    rows, and no micro-batch changes them. The teacher sees what the student sees: the same hidden
    tokens, the same augmentation, but no dropout.
    """

    def __init__(self, task: Task, options: DistillOptions, student: Model) -> None:
        super().__init__(task)
        self.options = options
        count = len(student.stream_layers()) if options.hidden else 0
        self.own = Streams(student, count)

    @abstractmethod
    def answers(self, outputs: Any, batch: Batch, own: list[Stream]) -> tuple[Tensor, list[Tensor]]:
        """The teacher's logits of the targets (N, K), and its streams, each (B, T, C), where the
        student has given `outputs` and has streams of its `own`.
        """

    def __call__(self, model: Module, batch: Batch) -> tuple[Tensor, Tensor]:
        task = self.task
        with self.own as own:
            outputs = task.forward(model, batch)
            loss, count = task.loss(outputs, batch)
            logits, streams = self.answers(outputs, batch, own)
            weight, temperature = self.options.weight, self.options.temperature
            ours, theirs = (
                F.log_softmax(y.float() / temperature, -1)
                for y in (task.target_logits(outputs, batch), logits)
            )
            weights = task.target_weights(batch)
            if weights is None:
                apart = F.kl_div(ours, theirs, reduction="sum", log_target=True)
            else:
                each = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)  # (N,)
                apart = (each * weights).sum()
            total = (1 - weight) * loss + weight * apart * temperature**2
            if self.options.hidden:
                rows = task.target_rows(outputs, batch)  # (N,)
                weights = ours.new_ones(len(ours)) if weights is None else weights.to(ours.dtype)
                errors = _errors(own, streams)
                total = total + self.options.hidden * (errors[rows] * weights).sum()
        return total, count


class Distillation(Taught):
    """With a teacher that answers each batch."""

    def __init__(
        self, task: Task, teacher: Loaded, options: DistillOptions, student: Model
    ) -> None:
        super().__init__(task, options, student)
        self.teacher = teacher.model.requires_grad_(False)
        count = len(student.stream_layers()) if options.hidden else 0
        self.theirs = Streams(self.teacher, count)

    def hold(self, precision: str) -> None:
        hold_in_precision(self.teacher, self.teacher.state_dict().keys(), precision)

    def answers(self, outputs: Any, batch: Batch, own: list[Stream]) -> tuple[Tensor, list[Tensor]]:
        """Those of a forward pass."""
        self.teacher.eval()
        with torch.no_grad(), self.theirs as theirs:
            taught = self.task.forward(self.teacher, batch)
            return self.task.target_logits(taught, batch), [y for y, _ in theirs]


class Recalled(Taught):
    """With answers that a teacher gave before the first step, and that come with the batch."""

    def answers(self, outputs: Any, batch: Batch, own: list[Stream]) -> tuple[Tensor, list[Tensor]]:
        """Those of the batch, without padding where the student has none."""
        rows = self.task.target_rows(outputs, batch)  # (N,)
        given = batch[LOGITS]  # (B, M, K)
        logits = given[_first(torch.bincount(rows, minlength=len(given)), given.shape[1])]
        if not own:
            return logits, []
        x, there = own[0]
        count, positions = x.shape[1], batch[POSITIONS]  # (B,)
        counts = torch.full_like(positions, count) if there is None else there.sum(1)
        if not torch.equal(counts, positions):
            row = int((counts != positions).nonzero()[0, 0])
            raise _other_length(int(counts[row]), int(positions[row]))
        streams = batch[STREAMS].unflatten(2, (len(own), -1))  # (B, M, layers, C)
        if there is not None:
            placed = streams.new_zeros((*there.shape, *streams.shape[2:]))
            placed[there] = streams[_first(counts, streams.shape[1])]
            streams = placed
        return logits, [*streams[:, :count].unbind(2)]


def _first(counts: Tensor, most: int) -> Tensor:
    """(B,) -> (B, most) bool   True in the first `counts` places of each row."""
    return torch.arange(most, device=counts.device) < counts[:, None]


def _errors(own: list[Stream], theirs: list[Tensor]) -> Tensor:
    """(B,)   the mean squared difference of the streams in each row."""
    errors = []
    for (x, real), y in zip(own, theirs, strict=True):
        if x.shape != y.shape:
            raise _other_length(x.shape[1], y.shape[1])
        error = (x.float() - y.float()).square().mean(-1)  # (B, T)
        there = torch.ones_like(error) if real is None else real.to(error.dtype)
        errors.append((error * there).sum(1) / there.sum(1).clamp(min=1))
    return torch.stack(errors).mean(0)


def _other_length(own: int, theirs: int) -> SpecError:
    return SpecError(
        f"distill.hidden: the student's stream has {own:,} positions, and the teacher's"
        f" {theirs:,} for the same input; set it to 0"
    )


def compared(layers: int, count: int) -> list[int]:
    """The numbers of the teacher's layers after which its stream is compared with that after each
    of the student's `count`: every k-th, the last one with the last (Sun et al. 2019, PKD-skip).
    """
    return [(i + 1) * layers // count - 1 for i in range(count)]
