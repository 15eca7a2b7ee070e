"""The passes of a step that several processes take together, each with some of its samples.

Gradients are summed over all of them once, beside the last backward pass or after it (summing.py),
and so are losses, counts and what parts count: from there on all processes compute the same with
the same numbers. With train.deterministic each micro-batch's gradient is a leaf of one tree of
sums, whoever computed it, so that the number of processes changes no bit.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

from bigmodel_cli.console import say
from bigmodel_cli.distributed import World, samples, sum_, world
from bigmodel_cli.draw import key_of
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.parts.contract import counting_together
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.train.idle import Idle
from bigmodel_cli.train.normalised import Normalised, batch_norms
from bigmodel_cli.train.objective import Objective
from bigmodel_cli.train.passes import Mark, as_one, auxiliary, forward, power_above
from bigmodel_cli.train.state import Before, TrainState
from bigmodel_cli.train.summing import Short, Summing


class Tree:
    """A pairwise sum of lists of tensors, which are added to in place.

    Neighbours are added first, then neighbours of those, so that a process with 2^k of them in a
    row has one node of the tree.
    """

    def __init__(self) -> None:
        self.nodes: list[tuple[int, list[Tensor]]] = []  # (height, sum), the oldest first

    def add(self, tensors: list[Tensor]) -> None:
        """One leaf."""
        height = 0
        while self.nodes and self.nodes[-1][0] == height:
            tensors, height = self._joined(tensors), height + 1
        self.nodes.append((height, tensors))

    def total(self) -> list[Tensor]:
        """The sum of all leaves, of which there are some."""
        tensors = self.nodes.pop()[1]
        while self.nodes:
            tensors = self._joined(tensors)
        return tensors

    def _joined(self, tensors: list[Tensor]) -> list[Tensor]:
        """The last node with these, which come after it."""
        _, before = self.nodes.pop()
        torch._foreach_add_(before, tensors)
        return before


def as_tree(tensors: list[Tensor]) -> Tensor:
    """The pairwise sum of tensors."""
    tree = Tree()
    for tensor in tensors:
        tree.add([tensor])
    return tree.total()[0]


def check_division(options: TrainOptions, among: World) -> None:
    """Raise `SpecError` where the processes cannot divide a step as train.deterministic says."""
    count, size = options.accumulate, among.size
    each = count // size
    if options.deterministic and size > 1 and (count % size or each & (each - 1)):
        raise SpecError(
            f"train.deterministic: {count:,} micro-batches a step over {size:,} processes: each of"
            " them needs as many, and 1, 2, 4 or 8 ... of them; set train.micro_batch_size to"
            f" {max(1, options.batch // size):,}, or take another number of processes"
        )


def begin_step(state: TrainState, options: TrainOptions) -> None:
    """Let what is drawn from torch's generator, if anything, be other draws in each process."""
    if not world().alone:
        torch.manual_seed(int(key_of(options.seed, state.batch, samples().rank)) >> 1)


def passes_together(
    state: TrainState,
    objective: Objective,
    options: TrainOptions,
    micro_batches: list[dict[str, Tensor]],
    device: torch.device,
    before: Before,
    mark: Mark,
) -> tuple[Tensor, float]:
    """As `passes`, over the micro-batches of all processes; this one's may be none.

    Raises `OutOfMemory` in all processes where one of them has not enough, and `SpecError` where
    what a part does cannot be joined.
    """
    parts = counting_together(state.balanced)
    if len(parts) < len(state.balanced) and not world().alone:
        raise SpecError(
            "model: a part counts within a step (after_step), and does not say how the counts of"
            " several processes are joined (counts, count_all); train it in one process"
        )
    idle = Idle(state.kept.begin(len(micro_batches)), state, objective, options, device)
    whole = _counted(state, objective, options, micro_batches, device, before, idle)
    norms = Normalised(batch_norms(state.model, state.still))
    summing = None
    if state.sharding is None and not options.deterministic and not world().alone:
        summing = Summing(state.optimizer.moving(), device)
    short, own = Short(state), _nothing(options, micro_batches, device)
    with short.noted():
        own = _own(
            state, objective, options, micro_batches, device, whole, norms, mark, idle, summing
        )
    every = short.joined(own, summing)  # (micro-batches or processes, 4)
    if summing is None and (state.sharding is None or not state.sharding.sums_itself):
        gradients = state.optimizer.moving_gradients()
        sum_(gradients, as_tree if options.deterministic else None)
    totals = [part.counts() for part in parts]
    sum_(totals)
    for part, total in zip(parts, totals, strict=True):
        part.count_all(total)
    norms.join()
    if not state.compared:
        state.compared = True
        _compare(state, options, before, norms)
    loss, count, size = every[:, :3].sum(0).unbind()
    norm = state.kept.norm(state.optimizer.gradients())
    numbers = as_one((loss, count, norm, size, every[:, 3].min()), device)
    return numbers, state.loss_scale.value


def _own(
    state: TrainState,
    objective: Objective,
    options: TrainOptions,
    micro_batches: Sequence[dict[str, Tensor]],
    device: torch.device,
    whole: Tensor | None,
    norms: Normalised,
    mark: Mark,
    idle: Idle,
    summing: Summing | None,
) -> Tensor:
    """This process's (rows, 4) sums of losses, counts, sizes, and least counts. A row is of a
    micro-batch where sums are a tree, else of all.

    The weights have the sums of its gradients, times the loss scale, or `summing` has them.
    """
    scale, unit, tree = state.loss_scale, 1.0, Tree() if options.deterministic else None
    count = options.accumulate if tree is not None else samples().size * len(micro_batches)
    rows = list[Tensor]()
    norms.begin()
    for number, batch in enumerate(micro_batches, 1):
        loss, n = forward(state, objective, options, batch, device)
        total = loss + auxiliary(state, n, whole)
        if scale.dynamic and (tree is not None or not rows):
            unit = state.kept.agreed(power_above(float(n) * count))
        mark("forward")
        last = number == len(micro_batches)
        with summing.beside(unit, last) if summing is not None else contextlib.nullcontext():
            (total * (scale.value / unit) if scale.dynamic else total).backward()
        mark("backward")
        rows.append(as_one((loss, n, objective.task.size(batch), n), device))
        if tree is not None:
            tree.add(_taken(state, unit))
            norms.note()
            norms.begin()
    if tree is not None:
        state.optimizer.set_gradients(tree.total())
        return torch.stack(rows)
    unit = idle.take(unit, first=not rows)
    norms.note()
    if summing is None:
        state.optimizer.set_gradients(_taken(state, unit))
    else:
        _check_moved(state)
        summing.begin_all()
    least = as_one((0.0, 0.0, 0.0, float("inf")), device)
    found = torch.stack([*rows, least])
    row = torch.cat((found[:, :3].sum(0), found[:, 3:].min(0).values))
    return row[None]


def _taken(state: TrainState, unit: float) -> list[Tensor]:
    """The gradients of what this step moves, times `unit`; the optimizer has none of them then."""
    state.kept.end()
    state.optimizer.gradients()
    found = state.optimizer.moving_gradients()
    _check_moved(state)
    state.optimizer.clear()
    if unit != 1.0:
        torch._foreach_mul_(found, unit)
    return found


def _check_moved(state: TrainState) -> None:
    """Raise `SpecError` where a first step's gradients are not all of what the optimizer moves."""
    if state.compared:
        return
    moving = {id(p) for p in state.optimizer.moving()}
    given = (p for p in state.model.parameters() if p.requires_grad and p.grad is not None)
    if others := sum(id(p) not in moving for p in given):
        raise SpecError(
            f"train.optimizer: {len(moving) + others:,} weights have a gradient, and it says to"
            f" move {len(moving):,} (Optimizer.moving): the others' would not be summed"
        )


def _counted(
    state: TrainState,
    objective: Objective,
    options: TrainOptions,
    micro_batches: Sequence[dict[str, Tensor]],
    device: torch.device,
    before: Before,
    idle: Idle,
) -> Tensor | None:
    """As `passes.counted`, for the micro-batches of all processes."""
    if not state.ahead or (world().alone and len(micro_batches) == 1):
        return None
    short, own = Short(state), _nothing(options, micro_batches, device)[:, 0]
    with short.noted(), torch.no_grad():
        targets = [forward(state, objective, options, b, device)[1] for b in micro_batches]
        idle.take(first=not targets)
        if targets:
            own = as_one(targets, device)
            own = own if options.deterministic else own.sum()[None]
    every = short.joined(own)
    counts = [part.counts() for part in state.ahead]
    sum_(counts)
    state.undo(before, random=True)
    for part, found in zip(state.ahead, counts, strict=True):
        part.foresee(found)
    return every.sum().to(torch.float32)


def _nothing(
    options: TrainOptions, micro_batches: Sequence[dict[str, Tensor]], device: torch.device
) -> Tensor:
    """(rows, 4)   zeros in the form of what a process gives of its passes."""
    return as_one((0.0,) * 4, device).expand(len(micro_batches) if options.deterministic else 1, 4)


def _compare(state: TrainState, options: TrainOptions, before: Before, norms: Normalised) -> None:
    """Look at what a first step's passes changed beside what is joined."""
    joined = {id(b) for module in [*norms.norms, *state.balanced] for b in _buffers(module)}
    names = {id(buffer): name for name, buffer in state.model.named_buffers()}
    for now, then in zip(state.buffers, before.buffers, strict=True):
        if id(now) not in joined and not torch.equal(now, then):
            raise SpecError(
                f"model: {names[id(now)]} is changed by each micro-batch, and it is not known how"
                " those of several processes are joined; train it in one process, without"
                " train.deterministic"
            )
    pairs = zip(state.random(), (before.cpu, before.cuda), strict=True)
    if all(torch.equal(a, b) for a, b in pairs if a is not None and b is not None):
        return
    what = (
        "a layer draws from torch's own generator (a compiled one, an adapter's dropout before"
        " experts or a head, a plugin's), so that what it draws depends on how samples are divided"
    )
    if options.deterministic:
        raise SpecError(f"train.deterministic: {what}; leave that out")
    say(f"{what}: results depend on the number of processes")


def _buffers(module: object) -> Iterator[Tensor]:
    """The buffers of a part."""
    assert isinstance(module, torch.nn.Module)
    yield from module.buffers()
