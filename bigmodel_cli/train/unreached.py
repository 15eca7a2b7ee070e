"""Options whose moment never comes in a run: they have no effect, which nobody would see."""

from __future__ import annotations

from collections.abc import Iterator

from bigmodel_cli.console import counted
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.teacher_options import DistillOptions


def unreached(options: TrainOptions, total: int, validating: int | None) -> Iterator[str]:
    """A sentence for each option that a run of `total` steps with validations every `validating`
    steps (None: at its end alone) does not come to.

    Warm-up and milestones are the schedule's remarks, unfreezing is said with the depths.
    """
    if validating is not None and validating > total:
        name = "validate_every" if options.validate_every is not None else "validate_epochs"
        yield (
            f"train.{name}: the run has {counted(total, 'step')}, and a validation every"
            f" {validating:,}: there is one at its end alone"
        )
    saving = options.checkpoint_every
    if saving is not None and saving > total:
        yield (
            f"train.checkpoint_every: {saving:,}, and the run has {counted(total, 'step')}: nothing"
            " is saved before its end"
        )
    every = saving or validating or total
    kept, wanted = -(-total // every), options.average_last
    if wanted is not None and wanted > kept:
        yield (
            f"train.average_last: {wanted:,}, and the run has {counted(kept, 'checkpoint')}: the"
            " mean is of these; lower train.checkpoint_every for more"
        )
    validations = -(-total // (validating or total))
    if options.patience is not None and options.patience + 1 >= validations > 1:
        yield (
            f"train.patience: {options.patience:,}, and the run has"
            f" {counted(validations, 'validation')}: it never stops early; its result is still the"
            " best checkpoint"
        )
    if options.rewind is not None and options.rewind.window >= total:
        yield (
            f"train.rewind.window: {options.rewind.window:,} steps come before the first that is"
            f" judged, and the run has {total:,}: it never goes back"
        )


def idle_teacher(options: DistillOptions | None) -> Iterator[str]:
    """A sentence where a teacher has no weight in the loss."""
    if options is not None and not options.weight and not options.hidden:
        yield (
            "distill: weight and hidden are 0: nothing is learnt of the teacher, which costs a"
            " forward pass each step; give one of them, or leave distill out"
        )
