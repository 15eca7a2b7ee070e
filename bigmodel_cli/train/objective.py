"""What a step minimises: the task's loss, also with a teacher or with two draws of dropout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import listed, say
from bigmodel_cli.data import TOKENIZER
from bigmodel_cli.data.files import expand
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import F, Module, Tensor, torch
from bigmodel_cli.loaded import Loaded, load_checkpoint
from bigmodel_cli.models import Model
from bigmodel_cli.recipe import DistillOptions
from bigmodel_cli.spec import Spec
from bigmodel_cli.tasks import Task
from bigmodel_cli.train.held import hold_in_precision

MOST = 12
"""Most layers that are listed."""
Batch = dict[str, Tensor]


class Objective:
    """The task's loss of a batch."""

    def __init__(self, task: Task) -> None:
        self.task = task

    def __call__(self, model: Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The summed loss to differentiate, and the number of targets in it."""
        task = self.task
        loss, n = task.loss(task.forward(model, batch), batch)  # named in messages about plugins
        return loss, n

    def hold(self, precision: str) -> None:
        """Hold what is not trained as it is computed with; the results are the same to the bit."""


class Consistency(Objective):
    """The mean loss of two passes, and `weight` times the mean of KL(p || q) and KL(q || p) between
    their answers p and q, which differ by the draws of dropout (Liang et al. 2021, R-Drop).

    Each target counts in all terms as much as in the loss. Masks and augmentation are drawn by row,
    and are the same in both passes. Raises `SpecError` where nothing differs.
    """

    def __init__(self, task: Task, weight: float) -> None:
        super().__init__(task)
        self.weight = weight
        self.drawn = False  # whether two passes have differed

    def __call__(self, model: Module, batch: Batch) -> tuple[Tensor, Tensor]:
        task = self.task
        passes = [task.forward(model, batch) for _ in range(2)]
        losses = [task.loss(outputs, batch) for outputs in passes]
        p, q = (F.log_softmax(task.target_logits(y, batch).float(), -1) for y in passes)
        if not self.drawn:
            self.drawn = not torch.equal(p, q)
            if not self.drawn and len(p):
                raise SpecError(
                    "train.consistency: two passes of a batch give the same answers, since nothing"
                    " is drawn in the network; give it dropout (model.dropout), or leave it out"
                )
        each = ((p.exp() - q.exp()) * (p - q)).sum(-1) / 2  # (N,)
        weights = task.target_weights(batch)
        apart = each.sum() if weights is None else (each * weights).sum()
        return (losses[0][0] + losses[1][0]) / 2 + self.weight * apart, losses[0][1]


class Distillation(Objective):
    """(1 - w) loss + w T^2 KL(teacher || student) at temperature T (Hinton et al. 2015), and
    `hidden` times the mean squared difference of their residual streams (Romero et al. 2015).

    Each target counts in both as much as in the loss. The streams are compared after blocks that
    are spread evenly over the teacher's, the last with the last; the mean is over a row's positions
    that are not padding, and over rows, each as often as it has targets: so all terms are sums over
    rows, and no micro-batch changes them. The teacher sees what the student sees: the same hidden
    tokens, the same augmentation, but no dropout.
    """

    def __init__(
        self, task: Task, teacher: Loaded, options: DistillOptions, student: Model
    ) -> None:
        super().__init__(task)
        self.teacher, self.options = teacher.model.requires_grad_(False), options
        self.streams: dict[int, list[tuple[Tensor, Tensor | None]]] = {}
        self.watching = False  # validations pass through the same blocks
        if options.hidden:
            for model in (student, self.teacher):
                self._watch(model, len(student.stream_layers()))

    def hold(self, precision: str) -> None:
        hold_in_precision(self.teacher, self.teacher.state_dict().keys(), precision)

    def _watch(self, model: Model, count: int) -> None:
        """Keep the outputs of `count` blocks of each forward pass, and what is not padding."""
        layers = model.stream_layers()
        chosen = [layers[i] for i in compared(len(layers), count)]
        kept = self.streams.setdefault(id(model), [])

        def keep(module: Module, inputs: tuple[Any, ...], output: Tensor) -> None:
            if self.watching:
                kept.append((output, inputs[1].real))

        for layer in chosen:
            layer.register_forward_hook(keep)

    def __call__(self, model: Module, batch: Batch) -> tuple[Tensor, Tensor]:
        self.watching = True
        try:
            return self._loss(model, batch)
        finally:
            self.watching = False
            for kept in self.streams.values():
                kept.clear()

    def _loss(self, model: Module, batch: Batch) -> tuple[Tensor, Tensor]:
        task = self.task
        outputs = task.forward(model, batch)
        loss, count = task.loss(outputs, batch)
        self.teacher.eval()
        with torch.no_grad():
            taught = task.forward(self.teacher, batch)
        weight, temperature = self.options.weight, self.options.temperature
        own, theirs = (
            F.log_softmax(task.target_logits(y, batch).float() / temperature, -1)
            for y in (outputs, taught)
        )
        weights = task.target_weights(batch)
        if weights is None:
            apart = F.kl_div(own, theirs, reduction="sum", log_target=True)
        else:
            each = F.kl_div(own, theirs, reduction="none", log_target=True).sum(-1)  # (N,)
            apart = (each * weights).sum()
        total = (1 - weight) * loss + weight * apart * temperature**2
        if self.options.hidden:
            rows = task.target_rows(outputs, batch)  # (N,)
            weights = own.new_ones(len(own)) if weights is None else weights.to(own.dtype)
            total = total + self.options.hidden * self._hidden(rows, weights)
        return total, count

    def _hidden(self, rows: Tensor, weights: Tensor) -> Tensor:
        """The sum over targets of the mean squared difference of the streams in their rows."""
        errors = []
        for (x, real), (y, _) in zip(*self.streams.values(), strict=True):
            if x.shape != y.shape:
                raise SpecError(
                    f"distill.hidden: the student's stream has {x.shape[1]:,} positions, and the"
                    f" teacher's {y.shape[1]:,} for the same input; set it to 0"
                )
            error = (x.float() - y.float()).square().mean(-1)  # (B, T)
            there = torch.ones_like(error) if real is None else real.to(error.dtype)
            errors.append((error * there).sum(1) / there.sum(1).clamp(min=1))  # (B,)
        error = torch.stack(errors).mean(0)
        return (error[rows] * weights).sum()


def compared(layers: int, count: int) -> list[int]:
    """The numbers of the teacher's layers after which its stream is compared with that after each
    of the student's `count`: every k-th, the last one with the last (Sun et al. 2019, PKD-skip).
    """
    return [(i + 1) * layers // count - 1 for i in range(count)]


def objective_of(
    spec: Spec,
    task: Task,
    info: DatasetInfo,
    assets: dict[str, bytes],
    model: Model,
    device: torch.device,
    *,
    read: bool = True,
) -> Objective:
    """What the run minimises; without `read` the teacher has no storage, as the model has none.

    Raises `SpecError` where the teacher cannot teach this student.
    """
    options, consistency = spec.distill, spec.train.consistency
    if consistency is not None and options is not None:
        raise SpecError("train.consistency has no effect beside distill; leave one of them out")
    if consistency is not None and not task.teachable:
        raise SpecError(
            f"train.consistency: task.type: {task.name} has no probabilities that two passes could"
            " differ in; leave it out"
        )
    if options is None:
        return Objective(task) if consistency is None else Consistency(task, consistency)
    if not task.teachable:
        raise SpecError(
            f"distill: task.type: {task.name} has no probabilities to learn from a teacher"
        )
    teacher = load_checkpoint(
        expand(options.teacher, Path(), "distill.teacher"),
        str(device) if read else "cpu",
        tell=lambda _: None,
        read=read,
    )
    _check(teacher, task, info, assets)
    parameters = sum(p.numel() for p in teacher.model.parameters())
    said = f"teacher: {teacher.path}, {parameters:,} parameters"
    if options.hidden:
        _check_streams(teacher, spec, model)
        deep = len(teacher.model.stream_layers())
        layers = compared(deep, len(model.stream_layers()))
        said += (
            f"; the streams after its layers {listed([str(i) for i in layers], MOST)} of {deep} are"
            " compared with those after the model's"
        )
    say(said)
    return Distillation(task, teacher, options, model)


def _check(teacher: Loaded, task: Task, info: DatasetInfo, assets: dict[str, bytes]) -> None:
    """Raise `SpecError` where teacher and student do not answer the same question."""
    place = f"distill.teacher: {teacher.path}"
    if teacher.spec.task.head() != task.name:
        raise SpecError(f"{place} was trained for {teacher.task.name}, and the task is {task.name}")
    theirs = teacher.info
    if theirs.classes != info.classes:
        raise SpecError(
            f"{place} tells {', '.join(theirs.classes[:5])} apart, in this order, and the data has"
            f" {', '.join(info.classes[:5])}; classes must be the same"
        )
    if teacher.assets.get(TOKENIZER) != assets.get(TOKENIZER):
        raise SpecError(
            f"{place} has another tokenizer, so that its probabilities are of other tokens; train"
            f" with its own: data.tokenizer: {{type: file, path: {teacher.path / TOKENIZER}}}"
        )
    if (theirs.image_shape, theirs.mean, theirs.std) != (info.image_shape, info.mean, info.std):
        raise SpecError(
            f"{place} reads images of {theirs.image_shape} with mean {theirs.mean} and deviation"
            f" {theirs.std}, and the data has {info.image_shape}, {info.mean}, {info.std}; give"
            " data.size and data.normalize"
        )


def _check_streams(teacher: Loaded, spec: Spec, student: Model) -> None:
    """Raise `SpecError` where residual streams cannot be compared."""
    counts = [len(model.stream_layers()) for model in (teacher.model, student)]
    if not all(counts):
        raise SpecError("distill.hidden compares residual streams, and a model has no blocks")
    if counts[0] < counts[1]:
        raise SpecError(
            f"distill.hidden: the teacher has {counts[0]} blocks, fewer than the student's"
            f" {counts[1]}"
        )
    widths = [options.width() for options in (teacher.spec.model, spec.model)]
    if widths[0] != widths[1]:
        raise SpecError(
            f"distill.hidden: the teacher's stream is {widths[0]} wide and the student's"
            f" {widths[1]}; set it to 0, or model.dim to {widths[0]}"
        )
