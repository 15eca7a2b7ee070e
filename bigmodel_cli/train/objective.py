"""What a step minimises: the task's loss, also with two draws of dropout that are to agree."""

from __future__ import annotations

from typing import Any

from bigmodel_cli.device import is_cuda
from bigmodel_cli.draw import draws_so_far
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import F, Module, Tensor, torch
from bigmodel_cli.logits import Chunk, is_late, late, summed_in_pieces
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.tasks import Task

Batch = dict[str, Tensor]


class Objective:
    """The task's loss of a batch; `chunk` rows of logits are computed at once, where these are
    large, and their loss by a compiled kernel where it is `fused`.
    """

    def __init__(self, task: Task, chunk: Chunk = "auto", fused: bool = False) -> None:
        self.task, self.chunk, self.fused = task, chunk, fused

    def __call__(self, model: Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The summed loss to differentiate, and the number of targets in it."""
        task = self.task
        loss, n = task.loss(self.outputs(model, batch), batch)  # named in messages about plugins
        return loss, n

    def outputs(self, model: Module, batch: Batch) -> Any:
        """The model's, whose logits may be late where the task takes them."""
        with late(self.chunk, self.task.takes_late, self.fused):
            return self.task.forward(model, batch)

    def hold(self, precision: str) -> None:
        """Hold what is not trained as it is computed with; the results are the same to the bit."""


class Consistency(Objective):
    """The mean loss of two passes, and `weight` times the mean of KL(p || q) and KL(q || p) between
    their answers p and q, which differ by the draws of dropout (Liang et al. 2021, R-Drop).

    Each target counts in all terms as much as in the loss. Masks and augmentation are drawn by row,
    and are the same in both passes. Raises `SpecError` where nothing differs.
    """

    def __init__(self, task: Task, weight: float, chunk: Chunk = "auto") -> None:
        super().__init__(task, chunk)
        self.weight = weight
        self.drawn = False  # whether a layer drew something, or two passes have differed

    def __call__(self, model: Module, batch: Batch) -> tuple[Tensor, Tensor]:
        task, before = self.task, draws_so_far()
        passes = [self.outputs(model, batch) for _ in range(2)]
        # what is drawn may be the same for a few rows, such as those of one process
        self.drawn = self.drawn or draws_so_far() > before
        p, q = (self.targets(y, batch) for y in passes)
        weights = task.target_weights(batch)
        if is_late(p):
            self.check(p.hidden, q.hidden)
            loss_of = [task.targets_loss(y, batch) for y in passes]

            def piece(at: slice, p: Tensor, q: Tensor) -> Tensor:
                losses = (loss_of[0](at, p) + loss_of[1](at, q)) / 2
                return losses + self.apart(p, q, None if weights is None else weights[at])

            return summed_in_pieces(piece, p, q), torch.full((), len(p.hidden), device=p.device)
        self.check(p, q)
        losses = [task.loss(outputs, batch) for outputs in passes]
        return (losses[0][0] + losses[1][0]) / 2 + self.apart(p, q, weights), losses[0][1]

    def targets(self, outputs: Any, batch: Batch) -> Any:
        """(N, K)   the targets' logits, late or not."""
        return self.task.target_logits(outputs, batch)

    def check(self, p: Tensor, q: Tensor) -> None:
        """Raise `SpecError` where two passes gave the same; once they did not, they will not."""
        if not self.drawn:
            self.drawn = not torch.equal(p, q)
            if not self.drawn and len(p):
                raise SpecError(
                    "train.consistency: two passes of a batch give the same answers, since nothing"
                    " is drawn in the network; give it dropout (model.dropout), or leave it out"
                )

    def apart(self, p: Tensor, q: Tensor, weights: Tensor | None) -> Tensor:
        """()   `weight` times the mean of both divergences of logits (N, K)."""
        p, q = (F.log_softmax(y.float(), -1) for y in (p, q))
        each = ((p.exp() - q.exp()) * (p - q)).sum(-1) / 2  # (N,)
        return self.weight * (each.sum() if weights is None else (each * weights).sum())


def fuses(options: TrainOptions, device: torch.device) -> bool:
    """Whether a compiled kernel takes the loss of large logits: on a GPU, whose memory it passes
    over four times instead of twenty, where the network is compiled too.
    """
    return is_cuda(device) and options.compile == "on"
