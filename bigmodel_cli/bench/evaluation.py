"""Batches of a validation, as `eval` scores them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bigmodel_cli.bench.doing import Opened
from bigmodel_cli.bench.using import Batch, Passes
from bigmodel_cli.evaluation.evaluator import score_batch


class Evaluation(Passes):
    """The sums, counts and answers of batches: wait for data, score (the forward pass with it)."""

    parts = ("wait", "score")
    doing = "evaluation"

    def rows_of(self, opened: Opened) -> int:
        return opened.spec.train.validation_rows(opened.info.context)

    def passed(self, batch: Batch, laps: Callable[[str], None]) -> Any:
        laps("wait")
        used = self.used
        found = score_batch(used.model, used.task, batch, self.device, used.precision)
        laps("score")
        return found
