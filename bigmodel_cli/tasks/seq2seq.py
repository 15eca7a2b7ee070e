"""Generating a text from another, or from sound: translation, summarization, transcription."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from pydantic import Field

from bigmodel_cli.config import NO_DATASET, Beams, Count, DatasetInfo, NonNegative, Probability
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.metrics import Measure
from bigmodel_cli.metrics.text import INFO, group_of, lead_measures, text_measures
from bigmodel_cli.tasks.base import Answers, AnyTaskOptions, Batch, Search
from bigmodel_cli.tasks.tokens import TokenTask


class Seq2SeqTaskOptions(AnyTaskOptions):
    """Generate a target from a source (Sutskever et al. 2014): a text from another one, or from a
    recording; scored in nats per target token.
    """

    type: Literal["seq2seq"] = "seq2seq"
    output: ClassVar[str] = "target"
    label_smoothing: Probability = Field(
        0.0, description="probability mass spread evenly over the vocabulary"
    )
    metrics: list[Literal["bleu", "chrf", "rouge", "wer", "cer"]] = Field(
        ["bleu", "chrf"],
        description="how `eval` judges what the model writes, by sacrebleu, rouge-score and jiwer",
    )
    baseline: Literal["none", "lead"] = Field(
        "none",
        description=(
            "lead: judge the source's first words too, as many as a reference has on average"
        ),
    )
    metric: Literal[
        "loss", "accuracy", "bleu", "chrf", "rouge1", "rouge2", "rougeL", "wer", "cer"
    ] = Field(
        "loss",
        description=(
            "what decides which checkpoint is best, and when patience ends; for what is judged by"
            " text, each validation lets the model write"
        ),
    )
    beams: Beams = Field(
        5, description="hypotheses that the search keeps when the model writes; 1 is greedy"
    )
    max_tokens: Count | None = Field(
        None,
        description=(
            "longest text that the model writes, in tokens with the end; left out: what its context"
            " holds"
        ),
    )
    length_penalty: NonNegative = Field(
        1.0, description="how far a longer text is preferred (Wu et al. 2016); 0: not"
    )

    def build(self, info: DatasetInfo = NO_DATASET) -> Seq2SeqTask:
        return Seq2SeqTask(self, info)

    def search(self) -> Search:
        """Beam search with the options."""
        return Search(self.beams, self.length_penalty, self.max_tokens)

    def example(self, model: Any, info: DatasetInfo, x: Tensor, second: int) -> tuple[Tensor, ...]:
        """A source and a target."""
        return x, torch.zeros(len(x), second, dtype=torch.int64, device=x.device)


class Seq2SeqTask(TokenTask):
    """batch {"source": (B, S), "target": (B, T + 1)}; the model gives logits (B, T, V).

    It maps the source and the target (B, T) to them. Of recordings there are "frames" (B, S, width)
    and "lengths" (B,) instead of a source.
    """

    name = "seq2seq"
    takes_late = True
    reads: tuple[str, ...] = ("source", "target")
    sequence = "target"
    metrics: ClassVar = {**TokenTask.metrics, **INFO}
    generates = True

    def __init__(self, options: Seq2SeqTaskOptions, info: DatasetInfo = NO_DATASET) -> None:
        if info.frame_width is not None:
            self.reads = ("frames", "lengths", "target")
        self.options, self.label_smoothing, self.metric = (
            options,
            options.label_smoothing,
            options.metric,
        )
        self.validation_text_metrics = group_of(options.metric)
        self.text_metrics = list(dict.fromkeys([*options.metrics, *self.validation_text_metrics]))

    def forward(self, model: Any, batch: Batch, training: bool = True) -> Tensor:
        """(B, T, V)   the model's logits."""
        first, *more = model.source(batch)
        y: Tensor = model(first, self.shift(batch)[0], *more)
        return y

    def remedy(self, missing: list[str]) -> str:
        """What makes recordings, or texts, pairs."""
        if "source" in missing:
            return (
                "; pairs of texts are data.type: pairs or pair_table, of files in folders: shards"
                " hold running text or images alone"
            )
        return "; of recordings, give data.tokenizer, which makes tokens of their transcripts"

    def measures(self, answers: Answers, texts: Sequence[str] = ()) -> dict[str, Measure]:
        """The text metrics of predictions against references."""
        return text_measures(texts, answers["prediction"], answers["reference"]) if texts else {}

    def baselines(self, answers: Answers, texts: Sequence[str]) -> dict[str, Measure]:
        """The same of the sources' first words, where `baseline` asks for it."""
        return (
            lead_measures(texts, answers["source"], answers["reference"])
            if self.options.baseline == "lead"
            else {}
        )
