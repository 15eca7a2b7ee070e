"""A model as one process of a mesh has it, and how its passes and its update are followed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from bigmodel_cli.bench.mesh.axes import Axes
from bigmodel_cli.bench.mesh.gathering import SUMS, Gathering, PaperPiece
from bigmodel_cli.bench.mesh.traffic import (
    GRADIENTS,
    PaperTeam,
    Traffic,
    bytes_of,
    ring_gather,
    ring_sum,
)
from bigmodel_cli.distributed import in_buckets
from bigmodel_cli.lazy import Tensor
from bigmodel_cli.models import Model
from bigmodel_cli.models.footprint import ACTIVATIONS
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.roles import Weight, named_weights
from bigmodel_cli.shares import Cut, Division, divide
from bigmodel_cli.train.passes import holds_rounded

LOSS = "logits and loss"
"""What is made after the model's forward pass, and before the backward pass."""


class Rank:
    """The process whose parts are never the smallest.

    Raises `SpecError` for what cannot be divided so, as training does.
    """

    def __init__(self, model: Model, axes: Axes, options: TrainOptions) -> None:
        self.model, self.axes, self.options = model, axes, options
        self.traffic = Traffic()
        self.weights = named_weights(model)
        self.division: Division | None = None
        self.gathering: Gathering | None = None
        if axes.tensor > 1:
            self.weights = self._cut()
        if axes.shard > 1:
            self.gathering = Gathering(model, axes, self.traffic, options.parallel.reshard)
            self.gathering.build(model.groups())
            self.weights = self.gathering.weights(self.weights)

    def _cut(self) -> list[Weight]:
        """Divide the parts; the weights as this process's shares."""
        team = PaperTeam(self.axes.tensor, self.traffic)
        whole = {w.name: tuple(w.tensor.shape) for w in self.weights}
        self.division = divide(self.model, team)
        now = dict(self.model.named_parameters())
        found = []
        for weight in self.weights:
            share, tensor = self.division.shares.get(weight.name), now[weight.name]
            piece = None
            if isinstance(share, Cut):
                length = tensor.shape[share.axis]
                shape = whole[weight.name]
                piece = PaperPiece(shape, share.axis, length, team.size, "tensor", self.traffic)
            found.append(replace(weight, tensor=tensor, parts=piece))
        return found

    @property
    def holds_rounded(self) -> bool:
        """Whether its passes hold all weights once more, rounded."""
        return holds_rounded(self.options, self.axes.shard > 1 or self.axes.tensor > 1)

    @property
    def tensors(self) -> list[Tensor]:
        """What this process keeps."""
        return [w.tensor for w in self.weights]

    def begin(self, alive: Any) -> None:
        """Before the passes, whose memory is followed there."""
        if self.gathering is not None:
            self.gathering.begin(alive)
        else:
            for weight in self.weights:
                if weight.tensor.requires_grad:
                    weight.tensor.register_post_accumulate_grad_hook(
                        lambda p: alive.move(p.grad, SUMS)
                    )

        def entered(*_: Any) -> None:
            alive.kind = ACTIVATIONS

        def left(*_: Any) -> None:
            alive.kind = LOSS

        self.model.register_forward_pre_hook(entered)
        self.model.register_forward_hook(left)

    def turn(self, alive: Any) -> None:
        """The forward pass is over."""
        alive.kind = ACTIVATIONS
        if self.gathering is not None:
            self.gathering.turn()

    def end(self) -> None:
        """After the backward pass: gradients of which this process knows a part are summed."""
        if self.gathering is not None:
            self.gathering.end()
        if self.division is not None:
            with self.traffic.within(self.traffic.part, GRADIENTS):
                self.division.settle()

    def sum_over_samples(self) -> int:
        """Sum whole gradients over the processes that take other samples, once a step. The bytes
        that this holds beside them.
        """
        count = self.axes.replicate
        if self.gathering is not None or count == 1:
            return 0
        trained: Sequence[Tensor] = [t for t in self.tensors if t.requires_grad]
        sizes = [sum(map(bytes_of, bucket)) for bucket in in_buckets(trained)]
        one_by_one = self.options.deterministic
        for size in sizes:
            sent = ring_gather(count * size, count) if one_by_one else ring_sum(size, count)
            self.traffic.note(GRADIENTS, "replicate", sent)
        both = [a + b for a, b in zip(sizes, [*sizes[1:], 0], strict=True)]  # one is freed late
        return max(both, default=0) * (1 + count * one_by_one)

    def largest(self) -> int:
        """Bytes of the largest weight of which this process keeps a part."""
        parts = [w for w in self.weights if w.parts is not None]
        return max((bytes_of(w.whole(w.tensor)) for w in parts), default=0)
