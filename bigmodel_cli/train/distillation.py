"""Learning from a teacher: its probabilities and residual streams beside the data's targets."""

from __future__ import annotations

import contextlib
import functools
from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import F, Module, Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.logits import Chunk, is_late, summed_in_pieces, whole
from bigmodel_cli.models import Model
from bigmodel_cli.tasks import Task
from bigmodel_cli.teacher_options import DistillOptions
from bigmodel_cli.train.answers import LOGITS, POSITIONS, STREAMS
from bigmodel_cli.train.held import hold_in_precision
from bigmodel_cli.train.objective import Batch, Objective


@dataclass(frozen=True)
class Answer:
    """What a teacher says of a batch: the logits (N, K) of its targets, late or not, and its
    residual streams (B, T, C), which are let go one after the other.
    """

    given: Any
    streams: list[Tensor]

    def logits(self, rows: Tensor) -> Any:
        """(N, K)   of the targets, where `rows` (N,) says which row each is in."""
        return self.given

    def stream(self, x: Tensor, real: Tensor | None) -> Tensor:
        """(B, T, C)   the next one, beside the student's x, of which the positions `real` (B, T;
        None: all) are not padding.
        """
        y = self.streams.pop(0)
        if x.shape != y.shape:
            raise _other_length(x.shape[1], y.shape[1])
        return y


@dataclass(frozen=True)
class Stored(Answer):
    """What it has said before, padded by rows: `given` (B, M, K), each stream (B, M', C), of which
    `positions` (B,) are no padding.
    """

    positions: Tensor | None

    def logits(self, rows: Tensor) -> Tensor:
        counts = torch.bincount(rows, minlength=len(self.given))
        given: Tensor = self.given[_first(counts, self.given.shape[1])]
        return given

    def stream(self, x: Tensor, real: Tensor | None) -> Tensor:
        positions, y = self.positions, self.streams.pop(0)
        assert positions is not None
        count = x.shape[1]
        counts = torch.full_like(positions, count) if real is None else real.sum(1)
        if not torch.equal(counts, positions):
            row = int((counts != positions).nonzero()[0, 0])
            raise _other_length(int(counts[row]), int(positions[row]))
        if real is None:
            return y[:, :count]  # in a larger batch rows were padded
        placed = y.new_zeros((*real.shape, y.shape[2]))
        placed[real] = y[_first(counts, y.shape[1])]
        return placed


def _first(counts: Tensor, most: int) -> Tensor:
    """(B,) -> (B, most) bool   True in the first `counts` places of each row."""
    return torch.arange(most, device=counts.device) < counts[:, None]


class Streams:
    """Calls back with the residual stream of a model after each of some layers, and with what of it
    is not padding, in the forward passes inside `with`: validations pass through the same blocks.
    """

    def __init__(self, model: Model, count: int) -> None:
        """After `count` layers that are spread evenly, the last one among them (see `compared`)."""
        self.tell: Callable[[Tensor, Tensor | None], None] | None = None
        layers = model.stream_layers()
        for i in compared(len(layers), count):
            layers[i].register_forward_hook(self._seen)

    def _seen(self, module: Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if self.tell is not None:
            self.tell(output, inputs[1].real)

    @contextlib.contextmanager
    def to(self, tell: Callable[[Tensor, Tensor | None], None]) -> Iterator[None]:
        """Inside, `tell` is called."""
        self.tell = tell
        try:
            yield
        finally:
            self.tell = None


class Taught(Objective):
    """(1 - w) loss + w T^2 KL(teacher || student) at temperature T (Hinton et al. 2015), and
    `hidden` times the mean squared difference of their residual streams (Romero et al. 2015).

    Each target counts in both as much as in the loss. The streams are compared after blocks that
    are spread evenly over the teacher's, the last with the last; the mean is over a row's positions
    that are not padding, and over rows, each as often as it has targets: so all terms are sums over
    rows, and no micro-batch changes them. The teacher sees what the student sees: the same hidden
    tokens, the same augmentation, but no dropout. It is asked first, while the student keeps
    nothing for its backward pass.
    """

    def __init__(
        self, task: Task, options: DistillOptions, student: Model, chunk: Chunk = "auto"
    ) -> None:
        super().__init__(task, chunk)
        self.options = options
        self.compared = len(student.stream_layers()) if options.hidden else 0
        self.own = Streams(student, self.compared)

    @abstractmethod
    def ask(self, batch: Batch) -> Answer:
        """What the teacher says of the batch."""

    def __call__(self, model: Module, batch: Batch) -> tuple[Tensor, Tensor]:
        task, answer = self.task, self.ask(batch)
        errors: list[Tensor] = []

        def compare(x: Tensor, real: Tensor | None) -> None:
            errors.append(row_errors(x, answer.stream(x, real), real))

        with self.own.to(compare):
            outputs = self.outputs(model, batch)
        rows = task.target_rows(outputs, batch)  # (N,)
        ours, theirs = task.target_logits(outputs, batch), answer.logits(rows)
        weights = task.target_weights(batch)
        if is_late(ours):
            total, count = self.in_pieces(outputs, batch, ours, theirs, weights)
        else:
            loss, count = task.loss(outputs, batch)
            total = self.mixed(loss, ours, whole(theirs), weights)
        if self.options.hidden:
            error = torch.stack(errors).mean(0)  # (B,)
            each = error[rows] if weights is None else error[rows] * weights.to(error.dtype)
            total = total + self.options.hidden * each.sum()
        return total, count

    def in_pieces(
        self, outputs: Any, batch: Batch, ours: Any, theirs: Any, weights: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Loss and divergence of late logits (N, V), and N."""
        loss_of = self.task.targets_loss(outputs, batch)

        def piece(at: slice, own: Tensor, other: Tensor) -> Tensor:
            counts = None if weights is None else weights[at]
            return self.mixed(loss_of(at, own), own, other, counts)

        count = torch.full((), ours.hidden.shape[0], device=ours.device)
        return summed_in_pieces(piece, ours, theirs), count

    def mixed(self, loss: Tensor, ours: Tensor, theirs: Tensor, weights: Tensor | None) -> Tensor:
        """(1 - w) loss + w T^2 KL(theirs || ours) of logits (N, K)."""
        weight, temperature = self.options.weight, self.options.temperature
        own, other = (F.log_softmax(y.float() / temperature, -1) for y in (ours, theirs))
        if weights is None:
            apart = F.kl_div(own, other, reduction="sum", log_target=True)
        else:
            each = F.kl_div(own, other, reduction="none", log_target=True).sum(-1)  # (N,)
            apart = (each * weights).sum()
        return (1 - weight) * loss + weight * apart * temperature**2


class Distillation(Taught):
    """With a teacher that answers each batch."""

    def __init__(
        self,
        task: Task,
        teacher: Loaded,
        options: DistillOptions,
        student: Model,
        chunk: Chunk = "auto",
    ) -> None:
        super().__init__(task, options, student, chunk)
        self.teacher = teacher.model.requires_grad_(False)
        self.theirs = Streams(self.teacher, self.compared)

    def hold(self, precision: str) -> None:
        hold_in_precision(self.teacher, self.teacher.state_dict().keys(), precision)

    def ask(self, batch: Batch) -> Answer:
        """What a forward pass says."""
        self.teacher.eval()
        streams: list[Tensor] = []
        with torch.no_grad(), self.theirs.to(lambda y, real: streams.append(y)):
            taught = self.outputs(self.teacher, batch)
            return Answer(self.task.target_logits(taught, batch), streams)


class Recalled(Taught):
    """With answers that a teacher gave before the first step, and that come with the batch."""

    def ask(self, batch: Batch) -> Answer:
        """What the batch has."""
        if not self.compared:
            return Stored(batch[LOGITS], [], None)
        streams = batch[STREAMS].unflatten(2, (self.compared, -1))  # (B, M, layers, C)
        return Stored(batch[LOGITS], [*streams.unbind(2)], batch[POSITIONS])


def row_errors(x: Tensor, y: Tensor, real: Tensor | None) -> Tensor:
    """(B, T, C), (B, T, C), (B, T) -> (B,)   the mean squared difference at each row's `real`
    positions (None: all); of y there is no gradient.

    Of both, the difference alone is kept for the backward pass, in the precision of the products.
    """
    there = x.new_ones(x.shape[:2]) if real is None else real
    there = there.to(torch.float32)
    share = there / there.sum(1, keepdim=True).clamp(min=1) / x.shape[2]  # (B, T)
    error: Tensor = _row_errors().apply(x, y, share)
    return error


@functools.cache
def _row_errors() -> Any:
    class RowErrors(torch.autograd.Function):
        """sum over positions of `share` times the sum of squared differences."""

        @staticmethod
        def forward(ctx: Any, x: Tensor, y: Tensor, share: Tensor) -> Tensor:
            difference, kind = x.float() - y.float(), x.device.type
            kept = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
            ctx.save_for_backward(difference.to(kept), share)
            ctx.kind = x.dtype
            return (difference.square().sum(2) * share).sum(1)

        @staticmethod
        def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
            difference, share = ctx.saved_tensors
            scale = 2 * share * gradients[0][:, None]  # (B, T)
            return (difference * scale[:, :, None]).to(ctx.kind), None, None

    return RowErrors


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
