"""A tag for each word: named entities, parts of speech."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from bigmodel_cli.config import NO_DATASET, PADDING, DatasetInfo, Probability
from bigmodel_cli.lazy import F, Tensor, torch
from bigmodel_cli.metrics import LOSS, SHARE, Measure, mean
from bigmodel_cli.tasks.base import Answers, AnyTaskOptions, Batch, Scores, Task
from bigmodel_cli.tasks.shown import Learnt, Spell, in_one_line, real, shortened
from bigmodel_cli.tasks.tokens import row_sums

ENTITY = re.compile(r"O|[BIESLU](-.*)?", re.DOTALL)
"""A tag of IOB1, IOB2, BIOES or BILOU."""
SAME = {"L": "E", "U": "S"}  # BILOU's letters
Span = tuple[str, int, int]
"""The type of an entity, its first word, and its end (exclusive)."""
MAJORITY = "_majority"


class TaggingOptions(AnyTaskOptions):
    """Predict a tag for each word; scored by entity F1 (as conlleval and seqeval) and accuracy."""

    type: Literal["tagging"] = "tagging"
    output: ClassVar[str] = "tags"
    label_smoothing: Probability = Field(
        0.0, description="probability mass spread evenly over the tags"
    )
    metric: Literal["f1", "accuracy", "loss"] = Field(
        "f1",
        description=(
            "what decides which checkpoint is best: f1 of entities (of tags that are not of"
            " entities, accuracy)"
        ),
    )

    def build(self, info: DatasetInfo = NO_DATASET) -> Tagging:
        return Tagging(self, info)

    def notes(self, info: DatasetInfo) -> list[str]:
        """That tags are not of entities, where so, and how many words the most frequent tag has."""
        plain = [tag for tag in info.classes if not ENTITY.fullmatch(tag)]
        notes = [
            f"the tags are of words and not of entities (B-, I-, O ...), as {tag!r} is: judged by"
            " accuracy"
            for tag in plain[:1]
        ]
        if words := sum(info.class_counts):
            notes.append(
                f"{max(info.class_counts):,} of {words:,} training words have one tag:"
                f" {majority(info)!r}"
            )
        return notes


class Tagging(Task):
    """batch {"tokens", "tags": (B, T), -1 for none}; the model gives logits (B, T, tags)."""

    name = "tagging"
    teachable = True
    needs = "labels"
    unit = "tokens"
    reads = ("tokens", "tags")
    metrics: ClassVar = {
        **{
            name + end: SHARE
            for name in ("f1", "precision", "recall", "accuracy")
            for end in ("", MAJORITY)
        },
        "loss": LOSS,
    }
    measured = ("f1", "precision", "recall")

    def __init__(self, options: TaggingOptions, info: DatasetInfo = NO_DATASET) -> None:
        self.options, self.dataset = options, info
        judged = options.metric != "f1" or of_entities(info.classes)
        self.metric = options.metric if judged else "accuracy"

    def forward(self, model: Any, batch: Batch, training: bool = True) -> tuple[Tensor, Tensor]:
        """(N, tags) logits of the words in fp32, and their mask (B, T)."""
        at = batch["tags"] != PADDING
        return model(*model.arguments(batch))[at].float(), at

    def loss(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed cross-entropy over the words, and their number."""
        logits, at = outputs
        smoothing = self.options.label_smoothing
        return (
            F.cross_entropy(logits, batch["tags"][at], reduction="sum", label_smoothing=smoothing),
            at.sum(),
        )

    def answered(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> Batch:
        """With the likeliest tag of each word."""
        logits, at = outputs
        tags = batch["tags"].clone()
        tags[at] = logits.argmax(-1).to(tags.dtype)
        return {**batch, "tags": tags}

    def shown(self, batch: Batch, spell: Spell) -> Learnt:
        """The first sentence, each word's tag after its token that has it."""
        tokens, tags = batch["tokens"][0], batch["tags"][0].tolist()
        parts = [
            spell("tokens", [token]) + (f"[{self.dataset.classes[tag]}]" if tag != PADDING else "")
            for token, tag in zip(real(tokens), tags, strict=False)
        ]
        count, of = int((batch["tags"] != PADDING).sum()), int((batch["tokens"] != PADDING).sum())
        return Learnt(in_one_line(shortened(" ".join(parts))), count, of, "have a tag")

    def target_logits(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        """(N, K) of the words."""
        return outputs[0]

    def target_rows(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> Tensor:
        """(N,) of the words."""
        return outputs[1].nonzero()[:, 0]

    def size(self, batch: Batch) -> Tensor:
        """The number of tokens read."""
        return (batch["tokens"] != PADDING).sum()

    def score(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> tuple[Scores, Answers]:
        """Per sentence: correct tags ("accuracy") and nats ("loss").

        The answers are the tags of its words.
        """
        logits, at = outputs
        tags, best = batch["tags"][at], logits.argmax(-1)  # (N,) each
        nats = F.cross_entropy(logits, tags, reduction="none")
        pairs = {"accuracy": best == tags, "loss": nats}
        scores = {name: (row_sums(values, at), at.sum(1)) for name, values in pairs.items()}
        return scores, {"reference": self.named(tags, at), "prediction": self.named(best, at)}

    def named(self, numbers: Tensor, at: Tensor) -> list[list[str]]:
        """Each sentence's tags by name, from numbers (N,) of the words `at` (B, T)."""
        sentences = numbers.cpu().split(at.sum(1).tolist())
        return [[self.dataset.classes[n] for n in numbers.tolist()] for numbers in sentences]

    def predictions(self, outputs: tuple[Tensor, Tensor], top: int) -> list[dict[str, Any]]:
        """{"tags", "probabilities"} of each sentence, and where tags are of entities "entities".

        An entity is {"type", "start", "end"}: words counted from 0, end exclusive.
        """
        logits, at = outputs
        probability, best = logits.softmax(-1).max(-1)  # (N,) each
        shares = [
            [round(p, 6) for p in own.tolist()]
            for own in probability.cpu().split(at.sum(1).tolist())
        ]
        told: list[dict[str, Any]] = []
        for names, own in zip(self.named(best, at), shares, strict=True):
            found = [
                {"type": kind, "start": first, "end": end} for kind, first, end in spans(names)
            ]
            entities = {"entities": found} if of_entities(self.dataset.classes) else {}
            told.append({"tags": names, "probabilities": own, **entities})
        return told

    def measures(self, answers: Answers, texts: Sequence[str] = ()) -> dict[str, Measure]:
        """Precision, recall and F1 of entities over all types; {} where tags are of words."""
        true, said = answers["reference"], answers["prediction"]
        if not of_entities(self.dataset.classes or (tag for tags in true + said for tag in tags)):
            return {}
        counts = [_counted(spans(a), spans(b)) for a, b in zip(true, said, strict=True)]
        rows = torch.tensor(counts, dtype=torch.float64).view(-1, 3)
        predicted, there = (int(rows[:, i].sum()) for i in (1, 2))
        values = {"precision": (precision, predicted), "recall": (recall, there), "f1": (f1, there)}
        return {
            name: Measure(rows, value, count, *SHARE) for name, (value, count) in values.items()
        }

    def baselines(self, answers: Answers, texts: Sequence[str]) -> dict[str, Measure]:
        """The accuracy of the most frequent tag of the training words."""
        if not self.dataset.class_counts:
            return {}
        often, true = majority(self.dataset), answers["reference"]
        right = torch.tensor([tags.count(often) for tags in true])
        return {
            f"accuracy{MAJORITY}": mean(right, torch.tensor([len(tags) for tags in true]), SHARE)
        }

    def tables(self, answers: Answers) -> dict[str, list[dict[str, Any]]]:
        """Per entity type (or tag): precision, recall, F1, and how many are there and predicted."""
        true, said = answers["reference"], answers["prediction"]
        entities = of_entities(self.dataset.classes)
        find, name = (spans, "type") if entities else (each, "tag")
        counts = [Counter[str]() for _ in range(3)]  # correct, predicted, true
        for a, b in zip(map(find, true), map(find, said), strict=True):
            for counter, own in zip(counts, ({*a} & {*b}, {*b}, {*a}), strict=True):
                counter.update(span[0] for span in own)
        rows = []
        for kind in sorted({*counts[1], *counts[2]}):
            numbers = [counter[kind] for counter in counts]
            sums = torch.tensor(numbers, dtype=torch.float64)
            shares = {"precision": precision(sums), "recall": recall(sums), "f1": f1(sums)}
            there = {"support": numbers[2], "predicted": numbers[1], "correct": numbers[0]}
            rows.append({name: kind, **{n: float(v) for n, v in shares.items()}, **there})
        return {f"{name}s": rows}


def majority(info: DatasetInfo) -> str:
    """The most frequent tag of the training words."""
    return info.classes[info.class_counts.index(max(info.class_counts))]


def of_entities(tags: Iterable[str]) -> bool:
    """Whether these are tags of entities."""
    return all(ENTITY.fullmatch(tag) for tag in tags)


def spans(tags: Sequence[str]) -> list[Span]:
    """The entities in the tags of a sentence, as conlleval and seqeval find them.

    Conlleval's rules (Tjong Kim Sang and De Meulder 2003) take inconsistent tags too: an entity
    begins at B or S, after O, E or S, and where the type changes.
    """
    found: list[Span] = []
    last, kind, first = "O", "", 0
    for place, tag in enumerate([*tags, "O"]):
        letter, own = SAME.get(tag[0], tag[0]), tag[2:] or "_"
        if last != "O" and (last in "ES" or letter in "BSO" or own != kind):
            found.append((kind, first, place))
        if letter != "O" and (letter in "BS" or last in "OES" or own != kind):
            first = place
        last, kind = letter, own
    return found


def each(tags: Sequence[str]) -> list[Span]:
    """Each word as an entity of its own."""
    return [(tag, place, place + 1) for place, tag in enumerate(tags)]


def _counted(true: Sequence[Span], said: Sequence[Span]) -> tuple[int, int, int]:
    """The numbers of (correct, predicted, true) entities."""
    return len({*true} & {*said}), len({*said}), len({*true})


def precision(sums: Tensor) -> Tensor:
    """(..., 3) correct, predicted and true entities -> (...)   0 where nothing is predicted."""
    return sums[..., 0] / sums[..., 1].clamp(min=1)


def recall(sums: Tensor) -> Tensor:
    """(..., 3) -> (...)   0 where there are no true entities."""
    return sums[..., 0] / sums[..., 2].clamp(min=1)


def f1(sums: Tensor) -> Tensor:
    """(..., 3) -> (...)   the harmonic mean of precision and recall."""
    return 2 * sums[..., 0] / (sums[..., 1] + sums[..., 2]).clamp(min=1)
