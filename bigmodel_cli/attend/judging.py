"""A user's inputs with targets, so that the task's own loss says how well a model does on them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from bigmodel_cli.attend.pairs import read_pair
from bigmodel_cli.attend.repeated import repeats_of
from bigmodel_cli.console import counted, say
from bigmodel_cli.data import LongReader, Prompts, Reader, input_of, load_tokenizer
from bigmodel_cli.device import autocast
from bigmodel_cli.errors import DataError
from bigmodel_cli.generation.conditioned import source_reader
from bigmodel_cli.generation.text import Decoding
from bigmodel_cli.lazy import F, Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.predict import as_published
from bigmodel_cli.tasks import TASKS, Batch, Task, build_task


@dataclass(frozen=True)
class Judged:
    """An input as the rows of a batch with targets, on the model's device.

    `answer` is the model's own in words, where that is the target. `repeats` (rows, T) are the
    tokens of a text that follow the one before them as they did earlier; None where none does, and
    for models that do not continue texts.
    """

    given: str
    batch: Batch
    answer: str = ""
    repeats: Tensor | None = None

    @property
    def rows(self) -> int:
        """Several where the task draws what it hides."""
        return len(next(iter(self.batch.values())))


def judge_of(loaded: Loaded) -> Task:
    """The task whose loss is measured: the model's own, or, where that compares it with another
    model, the one that its head was made for.
    """
    if not loaded.task.needs_reference:
        return loaded.task.of_one_pass()
    return build_task(TASKS[loaded.spec.task.head()].for_predictions(), loaded.info)


def judged(
    loaded: Loaded, task: Task, inputs: Sequence[str], target: str | None = None
) -> list[Judged]:
    """Each input with its targets: of a decoder or a masked model the text itself, else the
    model's own answer.

    An encoder-decoder is given `target`, or what it writes itself. Raises `DataError` for an input
    that cannot be read.
    """
    if loaded.model.is_encoder_decoder:
        return _with_targets(loaded, inputs, target)
    found, reader, cuts = [], _reader(loaded), 0
    for given, place in _placed(inputs):
        content, truncated = reader.read(given, place)
        cuts += truncated
        batch = reader.batch([content])
        check_foretold(loaded, batch, place)
        found.append(_judged(loaded, task, given, batch))
    _tell_of(cuts, reader)
    return found


def judged_whole(loaded: Loaded, task: Task, given: str, place: str = "the input") -> list[Judged]:
    """As `judged`; a text that is longer than the context in several windows, each from its own
    beginning. `place` is what messages call it.
    """
    if loaded.model.is_encoder_decoder:
        return judged(loaded, task, [given])
    reader = _long_reader(loaded)
    windows = [reader.batch([content]) for content in reader.windows(given, place)]
    return [_judged(loaded, task, given, each) for each in windows if not _alone(loaded, each)]


def in_windows(
    loaded: Loaded, task: Task, inputs: Sequence[str], target: str | None = None
) -> list[list[Judged]]:
    """As `judged`, each in its windows. Where the target is a label it is the one that the model
    gives the text as it reads it, cut to the context: one window. Raises `DataError` for an input
    of which nothing is foretold.
    """
    if task.labels or loaded.model.is_encoder_decoder:
        return [[item] for item in judged(loaded, task, inputs, target)]
    found = []
    for given, place in _placed(inputs):
        found.append(judged_whole(loaded, task, given, place))
        if not found[-1]:
            raise _unforetold(place)
    longest = max(map(len, found), default=0)
    if longest > 1:
        which = "the text is" if len(found) == 1 else "texts are"
        say(
            f"{which} longer than the context: read in up to {longest} windows, each from its own"
            " beginning; losses are over all"
        )
    return found


def of_tokens(tokens: Tensor) -> Judged:
    """Tokens (1, T) as what a model that continues texts is judged on."""
    return Judged("", {"tokens": tokens}, repeats=_repeats(tokens))


def losses_of(loaded: Loaded, task: Task, items: Sequence[Judged]) -> tuple[float, float]:
    """The mean loss over the targets of all items, and over what repeats in them; NaN: none."""
    sums, counts = torch.zeros(2, dtype=torch.float64), torch.zeros(2)
    for item in items:
        with torch.inference_mode(), autocast(loaded.device, loaded.precision):
            outputs = task.forward(loaded.model, item.batch, training=False)
            masks = [{}] if item.repeats is None else [{}, {"loss_mask": item.repeats}]
            for place, mask in enumerate(masks):
                (mean,), (count,) = nats_of(task, outputs, {**item.batch, **mask})
                sums[place] += mean * count
                counts[place] += count
    means = sums / counts  # 0 / 0: NaN
    return float(means[0]), float(means[1])


def _placed(inputs: Sequence[str]) -> list[tuple[str, str]]:
    """The inputs, and what messages call each."""
    alone = len(inputs) == 1
    return [(x, "the input" if alone else f"input {number}") for number, x in enumerate(inputs, 1)]


def _tell_of(cuts: int, reader: Reader) -> None:
    if cuts:
        say(f"{counted(cuts, 'input is', 'inputs are')} cut: the model reads {reader.most}")


def read_alone(loaded: Loaded, given: str, place: str = "the input") -> Batch:
    """An input as a batch of one row, without targets. Raises `DataError`; `place` names it."""
    reader = _reader(loaded)
    return dict(reader.batch([reader.read(given, place)[0]]))


def check_foretold(loaded: Loaded, batch: Batch, place: str) -> None:
    """Raise `DataError` for an input of a decoder that is one token, which nothing foretells."""
    if _alone(loaded, batch):
        raise _unforetold(place)


def _unforetold(place: str) -> DataError:
    return DataError(f"{place} is one token, and nothing in it is foretold; give a longer input")


def _alone(loaded: Loaded, batch: Batch) -> bool:
    model = loaded.model
    return model.can_generate and not model.is_encoder_decoder and batch["tokens"].shape[1] < 2


def nats_of(task: Task, outputs: Any, batch: Batch, items: int = 1) -> tuple[Tensor, Tensor]:
    """(items,) float64 twice: the mean loss of each of several inputs, of as many rows each, and
    over how many targets it is.
    """
    sums, counts = task.score(outputs, batch)[0]["loss"]
    sums, counts = (x.double().view(items, -1).sum(1).cpu() for x in (sums, counts))
    return sums / counts.clamp(min=1), counts


def _reader(loaded: Loaded) -> Reader:
    """What reads the inputs of this model, as `predict` does."""
    return source_reader(loaded) if loaded.model.is_encoder_decoder else _long_reader(loaded)


def _long_reader(loaded: Loaded) -> LongReader:
    if loaded.model.can_generate:
        return Prompts(load_tokenizer(loaded.assets), loaded.model.limit, loaded.spec.data)
    return input_of(loaded.info).reader(loaded.spec.data, loaded.assets)


def _judged(loaded: Loaded, task: Task, given: str, batch: Batch) -> Judged:
    batch = {name: values.to(loaded.device) for name, values in batch.items()}
    with torch.inference_mode(), autocast(loaded.device, loaded.precision):
        return _with_answer(loaded, task, given, batch)


def _with_answer(loaded: Loaded, task: Task, given: str, batch: Batch) -> Judged:
    batch = task.asked(batch)
    outputs = task.forward(loaded.model, batch, training=False)
    _, answer, value = task.foremost(outputs) if task.labels else (0, "", 0.0)
    if task.labels and not task.of_probability:
        answer = f"{answer} {value:.6g}"
    repeats = _repeats(batch["tokens"]) if loaded.model.can_generate else None
    return Judged(given, task.answered(outputs, batch), answer, repeats)


def _repeats(tokens: Tensor) -> Tensor | None:
    """Which of tokens (rows, T) a model that copies could foretell; None where none."""
    found = torch.stack([F.pad(repeats_of(row.cpu()), (1, 0)) for row in tokens])
    return found.to(tokens.device) if bool(found.any()) else None


def _with_targets(loaded: Loaded, inputs: Sequence[str], target: str | None) -> list[Judged]:
    """With `target`, or the text that the model writes; what it begins with is no target."""
    how = as_published(loaded, Decoding())
    found, cuts = [], 0
    for given, place in _placed(inputs):
        pair = read_pair(loaded, given, place, how, target)
        cuts += bool(pair.cut)
        row = pair.batch["target"]
        learnt = torch.arange(row.shape[1], device=loaded.device)[None] >= pair.begins
        answer = pair.text if target is None else ""
        found.append(Judged(given, {**pair.batch, "loss_mask": learnt}, answer))
    _tell_of(cuts, source_reader(loaded))
    return found
