"""What a finetuning bought: the checkpoint that it started from and its result, on the same items.

On the new data, and on the data of the start, which the result may have forgotten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bigmodel_cli.checkpoints import step_name
from bigmodel_cli.console import counted, sentence, table
from bigmodel_cli.convert import opening
from bigmodel_cli.data import TOKENIZERS
from bigmodel_cli.data.base import info_of
from bigmodel_cli.errors import BigmodelError
from bigmodel_cli.evaluation.comparing import Evaluation, differences
from bigmodel_cli.evaluation.evaluator import estimates
from bigmodel_cli.evaluation.report import evaluate_items
from bigmodel_cli.evaluation.shared import SharedClasses
from bigmodel_cli.metrics import shown
from bigmodel_cli.metrics.intervals import Difference, Estimate
from bigmodel_cli.overrides import Override
from bigmodel_cli.runs.record import RunRecord, read_run
from bigmodel_cli.spec import of_checkpoint

TASK, OLD = "task", "old domain"
PAIRED = ["", "metric", "before", "after", "difference", "95 % from", "to", "p", ""]
ALONE = ["", "metric", "after", "95 % from", "to"]


@dataclass(frozen=True)
class Domain:
    """The result on the validation split of one data source, against the start where it can be."""

    name: str
    estimates: dict[str, Estimate] = field(default_factory=dict)
    differences: dict[str, Difference] = field(default_factory=dict)
    count: int = 0
    note: str = ""  # why there is nothing, or no difference
    lower: frozenset[str] = frozenset()  # metrics that are better when lower

    def paired(self) -> list[list[str]]:
        """The lines of the table of differences."""
        rows = []
        for name, d in self.differences.items():
            cells = d.cells(self.estimates[name].percent)
            rows.append([self.name, name, *cells, self.verdict(name)])
        return rows

    def alone(self) -> list[list[str]]:
        """The lines of the table of what has no difference, each with its own interval."""
        return [
            [self.name, name, *(shown(x, e.percent) for x in (e.value, e.low, e.high))]
            for name, e in self.estimates.items()
            if name not in self.differences
        ]

    def verdict(self, name: str) -> str:
        """The word better, or worse, where the interval of the metric's difference excludes 0."""
        d = self.differences.get(name)
        if d is None or not (d.low > 0 or d.high < 0):
            return ""
        return "better" if (d.difference < 0) == (name in self.lower) else "worse"

    def to_json(self) -> dict[str, Any]:
        """By metric: the result's value, and the difference to the start where there is one."""
        metrics = {
            name: {"after": e.to_json(), "higher_is_better": name not in self.lower}
            | ({"gain": d.to_json(), "verdict": self.verdict(name)} if d is not None else {})
            for name, e in self.estimates.items()
            for d in [self.differences.get(name)]
        }
        return {
            "items": self.count,
            "metrics": metrics,
            **({"note": self.note} if self.note else {}),
        }


@dataclass(frozen=True)
class Gains:
    """What a finetuning bought, domain by domain, by the `result` of its `run`."""

    source: Path
    domains: list[Domain]
    result: Path
    run: RunRecord

    def to_text(self) -> str:
        """Tables for people: of what can be compared, and of the result alone."""
        counts = [f"{counted(d.count, 'item')} of the {d.name}" for d in self.domains if d.count]
        of = f" (validation data: {', '.join(counts)})" if counts else ""
        lines = [sentence(f"what the finetuning bought, since {self.source}{of}")]
        paired = [row for domain in self.domains for row in domain.paired()]
        alone = [row for domain in self.domains for row in domain.alone()]
        if paired or alone:
            lines.append(sentence(self._after()))
        if paired:
            lines += [table(PAIRED, paired), "(paired over the items; p by swapping the two)"]
        if alone:
            lines.append(table(ALONE, alone))
        return "\n".join(
            [*lines, *(sentence(f"{d.name}: {d.note}") for d in self.domains if d.note)]
        )

    def _after(self) -> str:
        """Which checkpoint is measured, and whether another one is the run's best."""
        after = f"after: {self.result}"
        metric, best = self.run.metric, self.run.best()
        values = {step_name(v.step): v.values.get(metric.name) for v in self.run.validations}
        if best is None or self.result.name not in values:
            return after
        step, value = best
        if values[self.result.name] == value:
            return f"{after}, the best by {metric.name}"
        other = self.result.parent / step_name(step)
        kept = f" ({other})" if other.is_dir() else ""
        return (
            f"{after}; by {metric.name} step {step:,} was better, with"
            f" {metric.shown(metric.name, value)}{kept}; with train.patience a run's result is its"
            " best checkpoint"
        )

    def to_json(self) -> dict[str, Any]:
        """The same for programs."""
        best = self.run.best()
        return {
            "since": str(self.source),
            "after": str(self.result),
            "best_step": None if best is None else best[0],
            **{d.name.replace(" ", "_"): d.to_json() for d in self.domains},
        }


def gains(result: Path, device: str) -> Gains | None:
    """The result of a finetuning against the checkpoint that it started from; None where it has no
    such start, or no validation data.
    """
    spec = opening.read_spec(result)
    named = spec.get("init", {}).get("checkpoint")
    if named is None or "val" not in of_checkpoint(spec, result).data.splits(Path()):
        return None
    source = opening.find(Path(named))
    before = opening.read_spec(source)
    precision = Override("train.precision", spec["train"]["precision"], "the run's precision")

    def on(asked: Mapping[str, Any], path: Path, shared: SharedClasses | None = None) -> Evaluation:
        changes = [Override(name, asked[name], "the run's spec") for name in ("data", "task")]
        # what the old task compared with is where the start itself began
        began = asked.get("init", {}).get("checkpoint") or str(source)
        changes += [precision, Override("init.checkpoint", began, "--from")]
        if path == source:  # which is compared with itself, not with layers of it
            changes += [Override("init.layers", None, "--from")]
            changes += [Override("init.leave_out", [], "--from")]
        return evaluate_items(
            path, changes, "val", device, _nothing, _nothing, generate=False, shared=shared
        )

    domains = [_domain(TASK, lambda path: on(spec, path), source, result)]
    if opening.is_published(source):
        domains.append(Domain(OLD, note="not measured: a published model comes without its data"))
    elif _asked(before) != _asked(spec):
        left = _left(source, result)
        found = _domain(OLD, lambda path: on(before, path, left), source, result)
        if left is not None and found.count:
            found = replace(found, note="; ".join(filter(None, (left.note(), found.note))))
        domains.append(found)
    return Gains(source, domains, result, read_run(result.parent.parent))


def _left(source: Path, result: Path) -> SharedClasses | None:
    """What is left of the classes that the start knew, where some are gone."""
    infos = [info_of(opening.read_assets(path)) for path in (source, result)]
    if infos[0] is None or infos[1] is None:
        return None
    return SharedClasses.of(infos[0], infos[1])


def _asked(spec: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """What a spec evaluates; the tokenizer is the checkpoint's own."""
    data = {name: value for name, value in spec["data"].items() if name not in TOKENIZERS}
    return spec["task"]["type"], data


def _domain(name: str, on: Callable[[Path], Evaluation], source: Path, result: Path) -> Domain:
    """Both on one data source; the result alone where the start cannot answer its questions."""
    try:
        after = on(result)
    except BigmodelError as error:
        return Domain(name, note=f"not measured: {error}")
    task, measures = after.loaded.task, after.measures
    found = estimates(task, measures)
    lower = frozenset(n for n in found if not measures.get(n, task.info(n)).higher_is_better)
    compared, note = {}, ""
    try:
        compared = differences(on(source), after)
        of_no_model = task.baselines(after.columns, task.text_metrics)
        compared = {name: d for name, d in compared.items() if name not in of_no_model}
    except BigmodelError as error:
        why = str(error).partition("; ")[0]  # without the remedy, which has just been done
        note = f"nothing to compare with: {why}"
    return Domain(name, found, compared, len(after.items), note, lower)


def _nothing(text: str) -> None:
    """What there is to say about the data was said in training."""
