"""One number for each item, or several."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from bigmodel_cli.config import NO_DATASET, DatasetInfo
from bigmodel_cli.device import constant
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import F, Tensor, torch
from bigmodel_cli.metrics import LOSS, Measure, MetricInfo, ratio
from bigmodel_cli.tasks.base import Answers, AnyTaskOptions, Batch, Scores, Task
from bigmodel_cli.tasks.classification import inputs_of
from bigmodel_cli.tasks.shown import Learnt, Spell, of_input

ERROR = MetricInfo(higher_is_better=False)
R2 = MetricInfo(limits=(-math.inf, 1.0))
OF_MEAN = "_of_mean"
"""Suffix of metrics of the baseline that always predicts the training split's mean."""
CONSTANT = 1e-12
"""Numbers count as constant below this fraction of their sum of squares: the rest is rounding."""


class RegressionOptions(AnyTaskOptions):
    """Predict an item's numbers; scored by MAE and RMSE in the data's units, and by R2.

    The model learns numbers scaled to mean 0 and deviation 1 over the training split.
    """

    type: Literal["regression"] = "regression"
    output: ClassVar[str] = "labels"
    loss: Literal["mse", "huber", "mae"] = Field(
        "mse",
        description=(
            "the error of scaled numbers: squared, absolute, or squared up to 1 deviation and"
            " absolute beyond"
        ),
    )
    metric: Literal["loss", "mae", "rmse", "r2"] = Field(
        "loss",
        description="what decides which checkpoint is best; of several numbers the mean over them",
    )

    def notes(self, info: DatasetInfo) -> list[str]:
        """How the numbers are scaled, and the RMSE of predicting the mean."""
        three = zip(info.targets, info.target_mean, info.target_std, strict=True)
        shown = "; ".join(
            f"{name}: mean {mean:.6g}, deviation {std:.6g}" for name, mean, std in three
        )
        return [
            f"numbers to learn: {shown}; they are scaled by both, and an RMSE of the deviation is"
            " no better than the mean"
        ]

    def build(self, info: DatasetInfo = NO_DATASET) -> Regression:
        return Regression(self, info)


class Regression(Task):
    """batch {an input, "numbers": (B, K)}; the model maps the input to scaled numbers (B, K)."""

    name = "regression"
    chooses = False
    needs = "numbers"
    reads = ("numbers",)
    metrics: ClassVar = {"loss": LOSS, "mae": ERROR, "rmse": ERROR, "r2": R2}
    measured = ("mae", "rmse", "r2")
    labels = True
    of_probability = False

    def __init__(self, options: RegressionOptions, info: DatasetInfo = NO_DATASET) -> None:
        self.options, self.dataset, self.metric = options, info, options.metric
        if len(info.targets) > 1 and OF_MEAN[1:] in info.targets:
            raise SpecError(
                f"data.targets: a target called {OF_MEAN[1:]} would have metrics of the same names"
                f" as the baseline's (mae{OF_MEAN}); rename its column"
            )

    def remedy(self, missing: list[str]) -> str:
        """Suggest the options that name columns of numbers."""
        return "; name their columns: data.targets, of parquet_images data.target_columns"

    def info(self, metric: str) -> MetricInfo:
        """Metrics of one number, and of the baseline, are described as the whole's."""
        return self.metrics.get(metric.partition("_")[0], MetricInfo())

    def forward(self, model: Any, batch: Batch, training: bool = True) -> Tensor:
        """(B, K)   scaled numbers in fp32."""
        y: Tensor = model(*inputs_of(batch)).float()
        return y

    def answered(self, outputs: Tensor, batch: Batch) -> Batch:
        """With the predicted numbers."""
        return {**batch, "numbers": self.unscaled(outputs).to(outputs.device)}

    def shown(self, batch: Batch, spell: Spell) -> Learnt:
        """The first item and its numbers, in the data's units."""
        first = self.named(batch["numbers"][:1])[0]
        numbers = ", ".join(f"{name} {value:g}" for name, value in first.items())
        return Learnt(f"{of_input(batch, spell)} -> {numbers}", batch["numbers"].numel())

    def errors(self, outputs: Tensor, batch: Batch) -> Tensor:
        """(B, K)   the losses of the scaled numbers."""
        mean, std = (
            constant(tuple(x), batch["numbers"].device, batch["numbers"].dtype)
            for x in (self.dataset.target_mean, self.dataset.target_std)
        )
        scaled = ((batch["numbers"] - mean) / std).to(outputs.dtype)
        functions: dict[str, Any] = {"mse": F.mse_loss, "huber": F.huber_loss, "mae": F.l1_loss}
        y: Tensor = functions[self.options.loss](outputs, scaled, reduction="none")
        return y

    def loss(self, outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """The loss summed over items and numbers, and their number."""
        errors = self.errors(outputs, batch)
        return errors.sum(), torch.full((), errors.numel(), device=errors.device)

    def loss_unit(self) -> object:
        """The deviations that errors are divided by, and how they are counted."""
        return self.options.loss, self.dataset.target_std

    def score(self, outputs: Tensor, batch: Batch) -> tuple[Scores, Answers]:
        """Per item: the mean loss of its scaled numbers ("loss").

        The answers are the numbers in the data's units, by name; "baseline" are the training
        split's means, where numbers are scaled by them.
        """
        errors = self.errors(outputs, batch).double()
        ones = torch.ones_like(errors[:, 0], dtype=torch.int64)
        average = dict(zip(self.dataset.targets, self.dataset.target_mean, strict=True))
        answers: Answers = {
            "reference": self.named(batch["numbers"]),
            "prediction": self.named(self.unscaled(outputs)),
        }
        if {*self.dataset.target_mean} != {0.0} or {*self.dataset.target_std} != {1.0}:
            answers["baseline"] = [average] * len(errors)
        return {"loss": (errors.mean(1), ones)}, answers

    def unscaled(self, outputs: Tensor) -> Tensor:
        """(B, K) -> (B, K) float64   in the data's units, on the CPU."""
        mean, std = (
            torch.tensor(x, dtype=torch.float64)
            for x in (self.dataset.target_mean, self.dataset.target_std)
        )
        return mean + std * outputs.cpu().double()

    def named(self, numbers: Tensor) -> list[dict[str, float]]:
        """(B, K) -> each row by name."""
        return [dict(zip(self.dataset.targets, row, strict=True)) for row in numbers.tolist()]

    def predictions(self, outputs: Tensor, top: int) -> list[dict[str, Any]]:
        """{"numbers": {name: number}} of each item, rounded to a millionth of the deviation."""
        digits = {
            n: 6 - math.floor(math.log10(std))
            for n, std in zip(self.dataset.targets, self.dataset.target_std, strict=True)
        }
        rows = self.named(self.unscaled(outputs))
        return [
            {"numbers": {name: round(v, digits[name]) for name, v in row.items()}} for row in rows
        ]

    def foremost(self, outputs: Tensor, chosen: int | None = None) -> tuple[int, str, float]:
        """The number that is most deviations from its mean, or the one chosen."""
        best = int(outputs.float().abs().argmax(1)) if chosen is None else chosen
        return best, self.dataset.targets[best], float(self.unscaled(outputs)[0, best])

    def measures(self, answers: Answers, texts: Sequence[str] = ()) -> dict[str, Measure]:
        """MAE, RMSE and R2 of each number, and their means over the numbers."""
        names = [*answers["reference"][0]]
        truth, said = (_matrix(answers[side], names) for side in ("reference", "prediction"))
        found = _measures(truth, said)
        for i, name in enumerate(names if len(names) > 1 else ()):
            own = _measures(truth[:, i : i + 1], said[:, i : i + 1])
            found |= {f"{metric}_{name}": measure for metric, measure in own.items()}
        return found

    def baselines(self, answers: Answers, texts: Sequence[str]) -> dict[str, Measure]:
        """MAE and RMSE of always predicting the training split's mean, where it is known.

        An imported model comes without it: its numbers are not scaled.
        """
        if "baseline" not in answers:
            return {}
        names = [*answers["reference"][0]]
        found = _measures(*(_matrix(answers[side], names) for side in ("reference", "baseline")))
        return {metric + OF_MEAN: measure for metric, measure in found.items() if metric != "r2"}


def _matrix(rows: Sequence[dict[str, float]], names: Sequence[str]) -> Tensor:
    """(N, K) float64."""
    return torch.tensor([[float(row[name]) for name in names] for row in rows], dtype=torch.float64)


def _measures(truth: Tensor, said: Tensor) -> dict[str, Measure]:
    """MAE, RMSE, R2 of numbers (N, K), averaged over K.

    As scikit-learn's of `multioutput="uniform_average"`. R2 is 1 - (sum of squared errors) / (sum
    of squares about the items' own mean); for numbers that are constant over the items it is not
    defined, and left out of the mean.
    """
    ones = torch.ones(len(truth), 1, dtype=torch.float64)
    errors, count = said - truth, truth.shape[1]
    centred = truth - truth.mean(0)
    spread = centred.square().mean(0).sqrt()
    flat = spread <= CONSTANT * truth.abs().amax(0)
    # R2 does not depend on shift and scale; sums of squares of large numbers would lose digits.
    scale = torch.where(flat, 1.0, spread)
    z, e = centred.masked_fill(flat, 0.0) / scale, errors / scale

    def rmse(sums: Tensor) -> Tensor:
        return (sums[..., :-1] / sums[..., -1:]).sqrt().mean(-1)

    def r2(sums: Tensor) -> Tensor:
        wrong, linear, square = sums[..., :-1].unflatten(-1, (3, count)).unbind(-2)
        about = square - linear.square() / sums[..., -1:]
        y: Tensor = (1 - wrong / torch.where(about > CONSTANT * square, about, torch.nan)).nanmean(
            -1
        )
        return y

    rows = {
        "mae": (errors.abs().mean(1, keepdim=True), ratio, ERROR),
        "rmse": (errors.square(), rmse, ERROR),
        "r2": (torch.cat((e.square(), z, z.square()), 1), r2, R2),
    }
    return {
        name: Measure(torch.cat((own, ones), 1), value, len(truth), *about)
        for name, (own, value, about) in rows.items()
    }
