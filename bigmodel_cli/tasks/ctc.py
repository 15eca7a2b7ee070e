"""Speech to text without an alignment: connectionist temporal classification."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import Field

from bigmodel_cli.config import NO_DATASET, PADDING, DatasetInfo
from bigmodel_cli.errors import DataError
from bigmodel_cli.lazy import F, Tensor, torch
from bigmodel_cli.metrics import LOSS
from bigmodel_cli.metrics.text import ERROR_RATE, normalised
from bigmodel_cli.tasks.base import Answers, AnyTaskOptions, Batch, Scores, Task
from bigmodel_cli.tasks.shown import Learnt, Spell, of_input, real, shortened


class CTCOptions(AnyTaskOptions):
    """Transcribe recordings (Graves et al. 2006); scored by word and character error rate."""

    type: Literal["ctc"] = "ctc"
    output: ClassVar[str] = "transcript"
    metric: Literal["wer", "cer"] = Field(
        "wer", description="what decides which checkpoint is best"
    )

    def build(self, info: DatasetInfo = NO_DATASET) -> CTC:
        return CTC(self, info)


class CTC(Task):
    """batch {"frames": (B, T, width), "lengths": (B,), "target": (B, L)}; logits (B, T', V).

    Units are numbered 0 to V - 2, and the blank is V - 1. The model's `out_lengths` gives the real
    vectors of each row; `info` has the units' names and whether they are words or characters.
    """

    name = "ctc"
    needs = "labels"
    reads = ("frames", "lengths", "target")
    metrics: ClassVar = {"wer": ERROR_RATE, "cer": ERROR_RATE, "loss": LOSS}

    def __init__(self, options: CTCOptions, info: DatasetInfo = NO_DATASET) -> None:
        self.options, self.units, self.spelling = options, info.classes, info.spelling
        self.metric = options.metric

    def forward(self, model: Any, batch: Batch, training: bool = True) -> tuple[Tensor, Tensor]:
        """(logits (B, T', V) in fp32, number of real vectors (B,))."""
        return read(model, batch)

    def answered(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> Batch:
        """With the units of the transcripts that greedy decoding gives."""
        rows = [torch.tensor(row, dtype=torch.int64) for row in units_of(*outputs)]
        target = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PADDING)
        return {**batch, "target": target.to(batch["lengths"].device)}

    def shown(self, batch: Batch, spell: Spell) -> Learnt:
        """The first recording and its transcript; the units of all are counted."""
        text = spell_units(real(batch["target"][0]), self.units, self.spelling)
        count = int((batch["target"] != PADDING).sum())
        return Learnt(f"{of_input(batch, spell)} -> {shortened(text)}", count)

    def loss(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> tuple[Tensor, Tensor]:
        """Summed negative log-likelihood of all transcripts in nats, and their number of units."""
        nats = negative_log_likelihood(*outputs, batch["target"])
        return nats.sum(), (batch["target"] != PADDING).sum()

    def score(self, outputs: tuple[Tensor, Tensor], batch: Batch) -> tuple[Scores, Answers]:
        """Per recording, by greedy decoding: edits and words ("wer"), edits and characters ("cer").

        Also nats and units ("loss").

        Edits are counted as jiwer does, of texts in lower case without punctuation
        (metrics/text.py). The answers are references and hypotheses.
        """
        units, spelling = self.units, self.spelling
        nats = negative_log_likelihood(*outputs, batch["target"])
        hypotheses = text_of(*outputs, units, spelling)
        references = [
            spell_units([n for n in row if n != PADDING], units, spelling)
            for row in batch["target"].tolist()
        ]
        count = (batch["target"] != PADDING).sum(1)
        wanted, found = ([normalised(text) for text in texts] for texts in (references, hypotheses))
        scores = {
            "wer": _edits(
                [text.split() for text in wanted], [text.split() for text in found], nats.device
            ),
            "cer": _edits(wanted, found, nats.device),
            "loss": (nats.double(), count),
        }
        return scores, {"reference": references, "prediction": hypotheses}


def transcribe(model: Any, batch: Batch, info: DatasetInfo) -> list[str]:
    """The transcript of each recording of a batch."""
    return text_of(*read(model, batch), info.classes, info.spelling)


def read(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """(logits (B, T', V) in fp32, number of real vectors (B,))."""
    logits: Tensor = model(batch["frames"], batch["lengths"])
    return logits.float(), model.out_lengths(batch["lengths"])


def negative_log_likelihood(logits: Tensor, lengths: Tensor, target: Tensor) -> Tensor:
    """logits (B, T', V), lengths (B,), units (B, L) padded with -1 -> (B,) nats of all alignments.

    Raises `DataError` where a transcript needs more vectors than there are: one per unit, and a
    blank between equal ones.
    """
    real = target != PADDING
    counts = real.sum(1)
    needed = counts + ((target[:, 1:] == target[:, :-1]) & real[:, 1:]).sum(1)
    if bool((needed > lengths).any()):
        row = int((needed > lengths).nonzero()[0])
        raise DataError(
            f"a transcript of {int(counts[row])} units needs {int(needed[row])} vectors, and its"
            f" recording gives {int(lengths[row])}; lower model.frontend.stride or data.hop, or"
            " leave the recording out"
        )
    logs = logits.log_softmax(-1).transpose(0, 1)  # (T', B, V)
    return F.ctc_loss(
        logs, target.clamp(min=0), lengths, counts, blank=logits.shape[-1] - 1, reduction="none"
    )


def text_of(logits: Tensor, lengths: Tensor, units: Sequence[str], spelling: str) -> list[str]:
    """Greedy decoding of logits (B, T', V), as text."""
    return [spell_units(row, units, spelling) for row in units_of(logits, lengths)]


def units_of(logits: Tensor, lengths: Tensor) -> list[list[int]]:
    """Greedy decoding of logits (B, T', V): argmax, repetitions merged, blanks removed."""
    best = logits.argmax(-1)  # (B, T')
    place = torch.arange(best.shape[1], device=best.device)
    kept = (best != logits.shape[-1] - 1) & (place < lengths[:, None])
    kept[:, 1:] &= best[:, 1:] != best[:, :-1]
    rows = zip(best.tolist(), kept.tolist(), strict=True)
    return [[n for n, keeps in zip(row, keep, strict=True) if keeps] for row, keep in rows]


def spell_units(numbers: Sequence[int], units: Sequence[str], spelling: str) -> str:
    """Units as text: words joined by spaces, or characters with white space collapsed."""
    text = (" " if spelling == "words" else "").join(units[n] for n in numbers)
    return " ".join(text.split())


def _edits(
    reference: Sequence[Sequence[str]], hypothesis: Sequence[Sequence[str]], device: torch.device
) -> tuple[Tensor, Tensor]:
    """(edits (B,), lengths of the references (B,))."""
    edits = [edit_distance(a, b) for a, b in zip(reference, hypothesis, strict=True)]
    return (
        torch.tensor(edits, dtype=torch.float64).to(device),
        torch.tensor([len(text) for text in reference]).to(device),
    )


def edit_distance(reference: Sequence[str], hypothesis: Sequence[str]) -> int:
    """The edit distance: insertions, deletions and substitutions (Levenshtein 1966)."""
    numbers = {unit: i for i, unit in enumerate({*reference, *hypothesis})}
    row = np.array([numbers[unit] for unit in hypothesis], np.int64)
    steps = np.arange(len(row) + 1)
    best = steps
    for number, unit in enumerate(reference, 1):
        change = np.minimum(best[1:] + 1, best[:-1] + (row != numbers[unit]))
        # an insertion follows on the left neighbour's own best: a running minimum of (cost - place)
        best = np.minimum.accumulate(np.concatenate(([number], change)) - steps) + steps
    return int(best[-1])
