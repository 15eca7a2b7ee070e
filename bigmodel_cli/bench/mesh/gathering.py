"""FSDP2's gathers and sums of one pass, followed as it makes them: their memory, and what is sent.

In the forward pass a block's weights come into one buffer, which stays until the next block's are
there, and from it into the weights, which are freed after the block where they are gathered again.
In the backward pass the next block's buffer is filled while one computes; its whole gradients are
copied into a buffer that is summed into parts, and stays until the next one. The outermost weights
stay from the beginning to the end, and so do their gradients from when they are there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from bigmodel_cli.bench.mesh.axes import Axes
from bigmodel_cli.bench.mesh.traffic import (
    GRADIENTS,
    OUTER,
    UPDATES,
    WEIGHTS,
    Traffic,
    bytes_of,
    ring_gather,
    ring_sum,
)
from bigmodel_cli.lazy import Module, Tensor, nn, torch
from bigmodel_cli.roles import Parts, Weight
from bigmodel_cli.shares.groups import axis_of, gathered_apart

GATHERED, WAITING, SUMS = "gathered weights", "whole gradients", "gradients"
"""Kinds of memory: weights of all processes and the buffers that they come through; gradients that
are not summed yet and theirs; the sums that are kept.
"""


@dataclass(frozen=True)
class PaperPiece:
    """The part of a weight that one process keeps, for an optimizer that works on whole ones."""

    shape: tuple[int, ...]  # of the whole
    axis: int
    length: int  # along that axis
    count: int
    name: str  # of the mesh's axis
    traffic: Traffic
    more: Parts | None = None  # how the whole is a part itself

    def whole(self, local: Tensor) -> Tensor:
        """A tensor of the whole's shape."""
        size = math.prod(self.shape) * local.element_size()
        self.traffic.note(UPDATES, self.name, ring_gather(size, self.count))
        found = torch.empty(self.shape, dtype=local.dtype, device=local.device)
        return found if self.more is None else self.more.whole(found)

    def own(self, tensor: Tensor) -> Tensor:
        """A part of it as large as this process's."""
        given = tensor if self.more is None else self.more.own(tensor)
        return given.narrow(self.axis, 0, self.length)


@dataclass(frozen=True)
class Shard:
    """A whole weight, and the part of it that the first process keeps, the largest."""

    parameter: nn.Parameter
    local: nn.Parameter
    axis: int
    count: int

    @classmethod
    def of(cls, parameter: nn.Parameter, count: int) -> Shard:
        """As FSDP2 divides it: rows of the last processes are filled up."""
        axis, shape = axis_of(parameter.shape, count), list(parameter.shape)
        shape[axis] = math.ceil(shape[axis] / count)
        made = torch.empty(shape, dtype=parameter.dtype, device=parameter.device)
        local = nn.Parameter(made, requires_grad=parameter.requires_grad)
        return cls(parameter, local, axis, count)

    @property
    def gathered(self) -> int:
        """Bytes of all parts, filled up."""
        return self.count * bytes_of(self.local)


@dataclass
class Group:
    """Weights that come together at once."""

    shards: list[Shard]
    outer: bool
    index: int = 0
    here: bool = False  # its weights are whole
    coming: bool = False  # the buffer of its weights is filled
    passed: bool = False  # its gradients are summed
    left: int = 0  # weights whose gradients are still to come

    @property
    def gathered(self) -> int:
        """Bytes of its weights."""
        return sum(s.gathered for s in self.shards)

    @property
    def odd(self) -> int:
        """Of those that are divided along a later axis: they are copied once more."""
        return sum(s.gathered for s in self.shards if s.axis)

    @property
    def trained(self) -> list[Shard]:
        """Those that have gradients."""
        return [s for s in self.shards if s.parameter.requires_grad]


@dataclass
class Gathering:
    """A model whose weights are divided among `axes.shard` processes, `axes.replicate` times."""

    model: Module
    axes: Axes
    traffic: Traffic
    reshard: bool
    groups: list[Group] = field(default_factory=list)
    shards: dict[int, Shard] = field(default_factory=dict)
    alive: Any = None
    buffer: int = 0  # of weights that have come last in the forward pass
    summed: int = 0  # of gradients that were summed last
    backward: bool = False

    def build(self, groups: Sequence[Module]) -> None:
        """Divide the weights and follow the passes."""
        inner = gathered_apart(self.model, groups)
        taken: set[int] = set()
        for module in [*inner, self.model]:
            own = [p for p in module.parameters() if p.dim() and id(p) not in taken]
            taken |= {id(p) for p in own}
            shards = [Shard.of(p, self.axes.shard) for p in own]
            self.shards |= {id(s.parameter): s for s in shards}
            group = Group(shards, module is self.model, len(self.groups))
            self.groups.append(group)
            module.register_forward_pre_hook(self._before(group))
            module.register_forward_hook(self._after(group))
            for shard in group.trained:
                shard.parameter.register_post_accumulate_grad_hook(self._given(group))

    def weights(self, weights: Sequence[Weight]) -> list[Weight]:
        """The same weights as the parts that this process keeps."""
        return [self._own(w) for w in weights]

    def _own(self, weight: Weight) -> Weight:
        shard = self.shards.get(id(weight.tensor))
        if shard is None:
            return weight
        piece = PaperPiece(
            tuple(shard.parameter.shape),
            shard.axis,
            shard.local.shape[shard.axis],
            self.axes.shard,
            "shard",
            self.traffic,
            weight.parts,
        )
        return replace(weight, tensor=shard.local, parts=piece)

    def begin(self, alive: Any) -> None:
        """Before the passes; memory is followed there."""
        self.alive = alive
        for group in self.groups:
            group.left = len(group.trained)

    def turn(self) -> None:
        """The forward pass is over: what passes from here on is computed again."""
        self.backward = True

    def end(self) -> None:
        """After the backward pass: what is not summed yet is, the outermost last."""
        for group in self.groups:
            if group.trained and not group.passed:
                self.sum_up(group)
        self.alive.hold(WAITING, -self.summed)
        self.summed = 0

    def _before(self, group: Group) -> Callable[..., None]:
        def before(*_: Any) -> None:
            if self.backward or group.here:
                return
            self._ask(group)
            self.alive.hold(GATHERED, -self.buffer)
            self._take(group)
            self.buffer = group.gathered

        return before

    def _after(self, group: Group) -> Callable[..., None]:
        def after(module: Module, given: Any, output: Any) -> None:
            if self.backward:
                return
            if group.outer:
                self.alive.hold(GATHERED, -self.buffer)
                self.buffer = 0
                return
            if self.reshard:
                self._leave(group)
            from torch.utils._pytree import tree_leaves

            for tensor in tree_leaves(output):
                if isinstance(tensor, torch.Tensor) and tensor.requires_grad:
                    tensor.register_hook(lambda _: self._again(group))

        return after

    def _again(self, group: Group) -> None:
        """Before a group's backward pass."""
        for other in self.groups:  # those that are frozen have nothing to sum
            if other is not group and not other.outer and not other.trained:
                self._leave(other)
        if not group.here:
            self._ask(group)
            self._take(group)
            self._sent_away(group)
        earlier = self.groups[group.index - 1] if group.index else None
        if earlier is not None and not earlier.here:
            self._ask(earlier)

    def _given(self, group: Group) -> Callable[[Tensor], None]:
        def given(parameter: Tensor) -> None:
            assert parameter.grad is not None
            self.alive.move(parameter.grad, WAITING)
            group.left -= 1
            if not group.left and not group.outer:
                self.sum_up(group)

        return given

    def _ask(self, group: Group) -> None:
        """Let a group's weights come into a buffer."""
        if group.coming:
            return
        group.coming = True
        self.alive.hold(GATHERED, group.gathered)
        size = ring_gather(group.gathered, self.axes.shard)
        with self.traffic.within(OUTER if group.outer else self.traffic.part):
            self.traffic.note(WEIGHTS, "shard", size)

    def _take(self, group: Group) -> None:
        """Copy them from there."""
        self.alive.hold(GATHERED, group.gathered + group.odd)
        if group.odd:
            self.alive.hold(GATHERED, -group.odd)
        group.here, group.coming = True, False

    def _sent_away(self, group: Group) -> None:
        """The buffer is free."""
        self.alive.hold(GATHERED, -group.gathered)

    def _leave(self, group: Group) -> None:
        """The weights are free."""
        if group.here:
            self.alive.hold(GATHERED, -group.gathered)
            group.here = False

    def sum_up(self, group: Group) -> None:
        """Sum a group's gradients over the processes into the parts."""
        self._leave(group)
        self.alive.hold(WAITING, -self.summed)
        trained = group.trained
        self.summed = sum(s.gathered for s in trained)
        self.alive.hold(WAITING, self.summed)
        for shard in trained:
            shard.local.grad = torch.empty_like(shard.local)
            self.alive.move(shard.local.grad, SUMS)
        self.alive.write(self.alive.now)
        for shard in trained:  # which lived until the sums were there
            shard.parameter.grad = None
        self.traffic.note(GRADIENTS, "shard", ring_gather(self.summed, self.axes.shard))
        if self.axes.replicate > 1:
            own = self.summed / self.axes.shard
            self.traffic.note(GRADIENTS, "replicate", ring_sum(own, self.axes.replicate))
        group.passed = True
