"""What a step minimises: the task's loss, also with two draws of dropout that are to agree."""

from __future__ import annotations

from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import F, Module, Tensor, torch
from bigmodel_cli.tasks import Task

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
