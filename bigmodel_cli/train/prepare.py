"""From a model with its first weights to the state that training moves: what is frozen, how to compute, the optimizer."""

from __future__ import annotations

from collections.abc import Callable

from bigmodel_cli.console import say
from bigmodel_cli.lazy import Tensor
from bigmodel_cli.models import Model
from bigmodel_cli.modes import training_mode
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.roles import named_weights
from bigmodel_cli.spec import Spec
from bigmodel_cli.tasks import Task
from bigmodel_cli.train.choose import apply, choose
from bigmodel_cli.train.frozen import still_modules
from bigmodel_cli.train.smaller import Division, fitted
from bigmodel_cli.train.state import LossScale, TrainState


def prepare(
    model: Model, task: Task, first: Callable[[], dict[str, Tensor]], spec: Spec
) -> tuple[TrainOptions, TrainState]:
    """The options without any auto, and the state at step 0; `first` gives a micro-batch to measure with.

    The model is on its device, and what is frozen has no gradient. Training and `bench` begin so.
    """
    still = still_modules(model, spec.init)
    training_mode(model, still)
    options, division = spec.train, Division()
    if "auto" in (options.precision, options.memory_format, options.compile):
        options = fitted(
            division, 0, options, [first()], lambda parts: choose(model, task, parts[0], spec.train, say), say
        )
    apply(model, options)
    optimizer = options.optimizer.build(named_weights(model))
    scale = LossScale.of(options.precision)
    return options, TrainState(model, optimizer, options.ema, still=still, loss_scale=scale, division=division)
