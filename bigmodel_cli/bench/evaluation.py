"""Batches of a validation, as `eval` scores them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bigmodel_cli.bench.doing import Opened
from bigmodel_cli.bench.using import Batch, Passes, split_of
from bigmodel_cli.evaluation.evaluator import score_batch


class Evaluation(Passes):
    """The sums, counts and answers of batches: wait for data, score (the forward pass with it)."""

    parts = ("wait", "score")
    doing = "evaluation"

    def rows_of(self, opened: Opened) -> int:
        rows, split = opened.spec.train.validation_rows(opened.info.context), split_of(opened)
        if split is None or opened.spec.train.validation_batch is not None:
            return rows
        return min(rows, len(split))  # as `eval` has them

    def passed(self, batch: Batch, laps: Callable[[str], None]) -> Any:
        laps("wait")
        used = self.used
        found = score_batch(used.model, used.task, batch, self.device, used.precision)
        laps("score")
        return found
