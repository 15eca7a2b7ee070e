"""What is said about a run before its first step: sizes, length, learning rate."""

from __future__ import annotations

import math
from fractions import Fraction

from bigmodel_cli.console import counted, say
from bigmodel_cli.data import Split
from bigmodel_cli.depths import rated, said
from bigmodel_cli.distributed import loading
from bigmodel_cli.models import Model
from bigmodel_cli.optim import describe_weights, summary
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.roles import named_weights
from bigmodel_cli.spec import Spec
from bigmodel_cli.train.passes import GENERATOR, ROWS
from bigmodel_cli.train.state import TrainState
from bigmodel_cli.train.unreached import idle_teacher, unreached


def say_start(spec: Spec, model: Model, train: Split, total: int | None) -> None:
    """Report the sizes of model and data, and the optimizer of a run of `total` steps."""
    trainable = sum(p.numel() for p in model.parameters() if p.requires_grad)
    count = sum(p.numel() for p in model.parameters())
    frozen = f", {count - trainable:,} of them frozen" if trainable < count else ""
    say(f"model: {count:,} parameters{frozen}; data: {counted(len(train), 'training sample')}")
    with spec.placing():
        weights = rated(model, named_weights(model), spec.train)
    described = describe_weights(spec.train.optimizer, weights)
    say(f"optimizer: {summary(described)}")
    for line in said(described, spec.train, total):
        say(line)


def say_length(spec: Spec, total: int | None, per_epoch: Fraction | None) -> None:
    """Report what is worth knowing about a run of `total` steps (None: by the clock), with so many
    micro-batches an epoch (None: not known).
    """
    options = spec.train
    if options.minutes is not None:
        say(
            f"train.minutes: {options.minutes:g} minutes of training, without validations and"
            " saving; how many steps that is the machine decides, so that the run is not exactly"
            " repeatable"
        )
    for remark in idle_teacher(spec.distill):
        say(remark)
    if total is None:
        return
    validating = options.validate_every
    if per_epoch is not None:
        validating = options.validation_interval(per_epoch)
    for remark in (*options.remarks(total), *unreached(options, total, validating)):
        say(remark)


def foreseen(options: TrainOptions, total: int | None, state: TrainState) -> int:
    """The steps of the whole run; by the clock, at its present rate."""
    return total if total is not None else state.steps_in(options.minutes or 0.0)


def say_draws(before: str, now: str) -> None:
    """Report that a resumed run's layers draw in another way than they did."""
    if before != now:
        ways = {ROWS: "by the samples' keys", GENERATOR: "by PyTorch's generator"}
        say(
            f"dropout and stochastic depth are drawn {ways[now]}, before this resume in another way"
            " (by an earlier version, or on another device): a network that has them goes on with"
            " other draws than without the stop"
        )


def say_bend(options: TrainOptions, before: int, total: int, step: int) -> None:
    """Report what a resumed run's new length does to the learning rate's schedule."""
    if before == total or step >= total:
        return
    factors = [
        options.schedule.factor(*place)
        for place in ((step, before), (step, total), (max(0, step - 1), before))
    ]
    was, now, last = (f"{100 * factor:.3g} %" for factor in factors)
    if not math.isclose(factors[0], factors[1]):
        ended = f"had ended at {last}" if step >= before else f"would go on at {was}"
        say(
            f"the run has {total:,} steps instead of {before:,}: its schedule is bent, and the"
            f" learning rate goes on at {now} of its peak, where it {ended}"
        )


def say_norms(options: TrainOptions, whole: bool) -> None:
    """Report that batch normalisation has other statistics than in one process, where the processes
    divide a micro-batch: not the `whole` of it passes at once.
    """
    if whole:
        return
    count, batch = loading().size, options.batch
    unit = "samples" if options.batch_tokens is None else "tokens"
    own = (
        f"set train.micro_batch_size={batch // count}"
        if batch % count == 0
        else (f"take a batch of a multiple of {count:,} {unit}, in as many micro-batches")
    )
    say(
        f"batch normalisation: each of the {count:,} processes normalises its part of a micro-batch"
        f" of {options.micro:,} {unit} by itself, so that the result is not that of one process;"
        f" for one that is, {own}, in both"
    )
