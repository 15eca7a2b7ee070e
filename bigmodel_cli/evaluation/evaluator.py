"""A model over a whole split: every item's sums, counts and answers, and the metrics from them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from bigmodel_cli.console import say
from bigmodel_cli.data import Reader, Split, input_of
from bigmodel_cli.data.order import Ints
from bigmodel_cli.device import autocast
from bigmodel_cli.errors import forget_frames, is_out_of_memory
from bigmodel_cli.evaluation.joined import joined, own_items
from bigmodel_cli.generation.conditioned import rows_at_once, source_reader
from bigmodel_cli.generation.text import Decoding, generate_from_source
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.logits import late, wide
from bigmodel_cli.metrics import Measure, mean
from bigmodel_cli.metrics.intervals import Estimate, estimate
from bigmodel_cli.modes import evaluating
from bigmodel_cli.tasks import Answers, Scores, Task


@dataclass(frozen=True)
class SplitResult:
    """A split's metrics as measures, and each item's columns.

    `rows` is the batch size, smaller than asked for where memory was short (`halved`).
    """

    measures: dict[str, Measure]
    columns: Answers
    rows: int
    halved: bool


def score_split(
    model: Module,
    task: Task,
    split: Split,
    batch_size: int,
    device: torch.device,
    precision: str,
    told: Callable[[str], None] = say,
) -> tuple[Scores, Answers, int]:
    """Sums and counts (N,) of each metric, and answers, in the order of the split.

    Items of similar length are batched together. The batch is halved where memory does not suffice;
    its last size is returned. Of several processes each scores some batches, and all get them all.
    """
    if split.resident:
        split.to(device)
    scores: dict[str, list[tuple[Tensor, Tensor]]] = {}
    answers: Answers = {}
    order, rows = similar(split), batch_size
    own = own_items(len(order), rows)
    first = own.start
    with evaluating(model), torch.inference_mode():
        while first < own.stop:
            try:
                samples = order[first : min(first + rows, own.stop)]
                batch = split.batch(samples, 0, 0, False)
                found, said = score_batch(model, task, batch, device, precision)
            except Exception as error:
                if not is_out_of_memory(error) or rows == 1:
                    raise
                forget_frames(error)
                rows = -(-min(rows, len(order)) // 2)
                told(
                    f"out of memory in a validation of {len(split):,} items; {rows:,} pass at once"
                    " from here on"
                )
                continue
            first += rows
            for name, pair in found.items():
                scores.setdefault(name, []).append(pair)
            for name, values in said.items():
                answers.setdefault(name, []).extend(values)
    whole = {
        name: (torch.cat(sums), torch.cat(counts))
        for name, pairs in scores.items()
        for sums, counts in [zip(*pairs, strict=True)]
    }
    whole, answers, rows = joined(whole, answers, rows)
    back = np.argsort(order)
    sorted_scores = {name: (sums[back], counts[back]) for name, (sums, counts) in whole.items()}
    return sorted_scores, {n: [values[i] for i in back] for n, values in answers.items()}, rows


def score_batch(
    model: Module, task: Task, batch: dict[str, Tensor], device: torch.device, precision: str
) -> tuple[Scores, Answers]:
    """One batch: sums and counts on the CPU, and answers."""
    batch = {k: v.to(device) for k, v in batch.items()}
    # of few outputs exact ones cost nothing; of a vocabulary the scores are means over many tokens
    exact = contextlib.nullcontext() if task.takes_late else wide()
    with autocast(device, precision), late(able=task.takes_late), exact:
        found, said = task.score(task.forward(model, batch, training=False), batch)
    _check_scores(task, found, said, len(next(iter(batch.values()))))
    return {name: (sums.cpu(), counts.cpu()) for name, (sums, counts) in found.items()}, said


def _check_scores(task: Task, scores: Scores, answers: Answers, items: int) -> None:
    """Raise `ValueError` unless there is one of each for every item: a plugin's task may err."""
    for name, (sums, counts) in scores.items():
        if not sums.shape == counts.shape == (items,):
            raise ValueError(
                f"score: {name}: {list(sums.shape)} sums and {list(counts.shape)} counts, and the"
                f" batch has {items} items"
            )
    for name, values in answers.items():
        if len(values) != items:
            raise ValueError(
                f"score: {name}: {len(values)} answers, and the batch has {items} items"
            )


def similar(split: Split) -> Ints:
    """Every sample once, sorted by length, so that little is computed on padding."""
    return (
        np.arange(len(split)) if split.lengths is None else np.argsort(split.lengths, kind="stable")
    )


def evaluate_split(
    loaded: Loaded,
    split: Split,
    texts: Sequence[str] | None = None,
    rows: int | None = None,
    told: Callable[[str], None] = say,
) -> SplitResult:
    """Score a split; unless `texts` is None, also generate and score by these text metrics.

    `rows` is the batch size (None: the spec's). `told` gets the message where memory does not
    suffice for it.
    """
    size = rows or loaded.spec.train.validation_rows(loaded.info.context)
    scores, answers, passing = score_split(
        loaded.model, loaded.task, split, size, loaded.device, loaded.precision, told
    )
    columns = answers if texts is None else written(loaded, split)
    measures = means(loaded.task, scores) | loaded.task.measures(columns, texts or ())
    return SplitResult(measures, columns, passing, passing < size)


def written(loaded: Loaded, split: Split) -> Answers:
    """The texts of every pair of a split, and the model's text for each source.

    "unfinished" says which texts reached the maximum length without an end, "truncated" which
    sources were cut.
    """
    sources, references = split.texts()
    reader: Reader = source_reader(loaded, empty=True)
    order = sorted(range(len(sources)), key=lambda i: len(sources[i]))
    ordered = [sources[i] for i in order]
    if input_of(loaded.info).in_files:
        reader, order = Numbered(split), similar(split).tolist()
        ordered = [str(i) for i in order]
    own = own_items(len(ordered), rows_at_once(loaded))
    with evaluating(loaded.model):
        some = ordered[own.start : own.stop]
        found = list(generate_from_source(loaded, some, Decoding(), "source", reader))
    numbered = dict(zip(order, joined({}, {"all": found}, 1)[1]["all"], strict=True))
    records = [numbered[i] for i in range(len(sources))]
    said = {name: [name in record for record in records] for name in ("unfinished", "truncated")}
    texts = [record["text"] for record in records]
    return {"source": sources, "reference": references, "prediction": texts, **said}


class Numbered:
    """Reads the samples of a split by their numbers, for sources that are not texts."""

    most = ""

    def __init__(self, split: Split) -> None:
        self.split = split

    def read(self, given: str, place: str) -> tuple[int, bool]:
        """The number; nothing is cut."""
        return int(given), False

    def batch(self, contents: Sequence[int]) -> dict[str, Tensor]:
        """The samples as they are evaluated."""
        return self.split.batch(np.array(contents, np.int64), 0, 0, False)


def values_of(task: Task, measures: dict[str, Measure]) -> dict[str, float]:
    """Each metric's value, derived ones included. NaN where nothing was counted."""
    values = {name: measure.total() for name, measure in measures.items()}
    return {**values, **task.derived(values)}


def means(task: Task, scores: Scores) -> dict[str, Measure]:
    """The metrics that are sums over counts, as measures."""
    return {name: mean(sums, counts, task.info(name)) for name, (sums, counts) in scores.items()}


def derived_measures(task: Task, measures: dict[str, Measure]) -> dict[str, Measure]:
    """The metrics that are functions of `task.derived_from`, as measures of the same items."""
    source = measures[task.derived_from]

    def function(name: str) -> Callable[[Tensor], Tensor]:
        def value(sums: Tensor) -> Tensor:
            flat = source.value(sums).flatten().tolist()
            found = [task.derived({task.derived_from: number})[name] for number in flat]
            return torch.tensor(found, dtype=torch.float64).view(sums.shape[:-1])

        return value

    names = task.derived({task.derived_from: source.total()})
    return {
        name: replace(source, value=function(name), limits=task.info(name).limits) for name in names
    }


def estimates(task: Task, measures: dict[str, Measure]) -> dict[str, Estimate]:
    """Each metric with its interval; a derived metric's comes from the ends of its source's."""
    result = {name: estimate(measure) for name, measure in measures.items()}
    main = result[task.derived_from]
    three = (main.value, main.low, main.high)
    value, low, high = (task.derived({task.derived_from: end}) for end in three)
    for name in value:  # monotonic in its source
        first, last = sorted((low[name], high[name]))
        percent = task.info(name).percent
        result[name] = Estimate(value[name], main.count, first, last, main.method, percent=percent)
    return result
