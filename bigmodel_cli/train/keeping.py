"""Which of a run's checkpoints are kept, averaged, and gone back to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from bigmodel_cli import checkpoints
from bigmodel_cli.recipe import TrainOptions


@dataclass(frozen=True)
class Keeping:
    """The rules of one run of `total` steps, saved every `saving` steps (None: only at
    validations).
    """

    options: TrainOptions
    total: int
    saving: int | None
    higher_is_better: bool

    def due(self, step: int, scores: Mapping[str, float | None]) -> bool:
        """Whether an uninterrupted run has a checkpoint of this step: scheduled, last, or best so
        far.

        Checkpoints saved for a signal are only for resuming, and not part of a result.
        """
        if step == 0:  # initial weights, saved to go back to (train.rewind)
            return False
        if step == self.total or (self.saving is not None and step % self.saving == 0):
            return True
        score = scores.get(str(step))
        before = [value for at, value in scores.items() if value is not None and int(at) < step]
        if score is None:
            return False
        return all(score > value if self.higher_is_better else score < value for value in before)

    def averaged(self, folder: Path, scores: Mapping[str, float | None]) -> list[Path]:
        """The newest checkpoints whose mean is the result, oldest first; [] if it is not a mean."""
        count = self.options.average_last
        return (
            [p for p in checkpoints.steps(folder) if self.due(number(p), scores)][-count:]
            if count
            else []
        )

    def bases(self, folder: Path, scores: Mapping[str, float | None]) -> list[Path]:
        """The checkpoints that a run may go back to (train.rewind), oldest first.

        None that was saved only for a signal, so that an interrupted run goes back to where an
        uninterrupted one does. Where the saving schedule has changed and names none of those that
        are there, they are all of them.
        """
        present = checkpoints.steps(folder)
        return [p for p in present if number(p) == 0 or self.due(number(p), scores)] or present

    def prune(self, folder: Path, scores: Mapping[str, float | None]) -> None:
        """Remove the checkpoints that the spec does not keep, and those half removed by a dead
        process.
        """
        present = checkpoints.steps(folder)
        finite = [
            (score, path)
            for path in present
            if (score := scores.get(str(number(path)))) is not None
        ]
        ranked = sorted(finite, key=lambda pair: pair[0], reverse=self.higher_is_better)
        best = (path for _, path in ranked[: self.options.keep_best])
        base = self.bases(folder, scores)[-1:] if self.options.rewind is not None else []
        kept = {*present[-self.options.keep_last :], *self.averaged(folder, scores), *best, *base}
        checkpoints.prune(folder, kept)


def number(checkpoint: Path) -> int:
    """The step in a checkpoint's name."""
    return int(checkpoint.name.removeprefix("step-"))
