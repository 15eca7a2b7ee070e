"""Text metrics by the field's libraries: sacrebleu, rouge-score, jiwer (`bigmodel[metrics]`)."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Sequence
from typing import Any

from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.metrics import SHARE, Measure, MetricInfo, mean
from bigmodel_cli.packages import need

Texts = Sequence[str]
LEAD = "_lead"
"""Suffix of the metrics of the lead baseline."""


def bleu(predictions: Texts, references: Texts, lowercase: bool = False) -> Measure:
    """BLEU (Papineni et al. 2002), 0 to 100, by sacrebleu (Post 2018) with tokenizer 13a."""
    return _sacrebleu(_library("sacrebleu").BLEU(lowercase=lowercase), predictions, references)


def chrf(predictions: Texts, references: Texts) -> Measure:
    """chrF2 (Popovic 2015) from 0 to 100 by sacrebleu."""
    return _sacrebleu(_library("sacrebleu").CHRF(), predictions, references)


def _sacrebleu(metric: Any, predictions: Texts, references: Texts) -> Measure:
    # Its counts of each sentence.
    rows = metric._extract_corpus_statistics(list(predictions), [list(references)])

    def value(sums: Tensor) -> Tensor:
        flat = sums.flatten(0, -2).round().long().tolist()
        scores = [metric._compute_score_from_stats(row).score for row in flat]
        return torch.tensor(scores, dtype=torch.float64).view(sums.shape[:-1])

    # Its signature names the number of references once it has scored.
    metric.corpus_score(["a"], [["a"]])
    signature = str(metric.get_signature())
    return Measure(
        torch.tensor(rows, dtype=torch.float64),
        value,
        len(rows),
        *SCORE._replace(signature=signature),
    )


def rouge(kind: str) -> Callable[[Texts, Texts], Measure]:
    """ROUGE (Lin 2004), the mean F-measure by rouge-score; ASCII words by Porter's stemmer."""

    def measure(predictions: Texts, references: Texts) -> Measure:
        scorer = _library("rouge_score.rouge_scorer").RougeScorer([kind], tokenizer=RougeWords())
        pairs = zip(references, predictions, strict=True)
        values = [
            scorer.score(reference, prediction)[kind].fmeasure for reference, prediction in pairs
        ]
        return mean(torch.tensor(values, dtype=torch.float64), torch.ones(len(values)), ROUGE)

    return measure


SCORE = MetricInfo(limits=(0.0, 100.0))
ROUGE = SHARE._replace(
    signature="F-measure, words of letters, marks and digits (NFC), ASCII words stemmed"
)
NORMALISED = (
    "NFC, lower case, letters, marks and digits, apostrophes within words, white space joined"
)
ERROR_RATE = MetricInfo(False, NORMALISED, percent=True)
"""Error rates may be above 1, since a hypothesis may be longer than its reference."""


class RougeWords:
    """The words of a text for ROUGE: those of rouge-score where the text is ASCII.

    rouge-score itself drops all other letters, so that texts in Greek or Hindi would be empty.
    """

    def __init__(self) -> None:
        self.ascii = _library("rouge_score.tokenizers").DefaultTokenizer(use_stemmer=True)

    def tokenize(self, text: str) -> list[str]:
        """The words in order."""
        if text.isascii():
            return list(self.ascii.tokenize(text))
        words = normalised(text).replace("'", " ").split()
        return [
            stem
            for word in words
            for stem in (self.ascii.tokenize(word) if word.isascii() else [word])
        ]


APOSTROPHES = dict.fromkeys(map(ord, "\u2019\u2018\u05f3\u02bc\u02bb\uff07\u2032\u00b4\u0060"), "'")
"""Characters used as apostrophes."""


def wer(predictions: Texts, references: Texts) -> Measure:
    """Word error rate by jiwer, after `NORMALISED`: edits over the references' words."""
    return _errors("process_words", predictions, references)


def cer(predictions: Texts, references: Texts) -> Measure:
    """Character error rate by jiwer, after `NORMALISED`."""
    return _errors("process_characters", predictions, references)


def _errors(name: str, predictions: Texts, references: Texts) -> Measure:
    process = getattr(_library("jiwer"), name)
    errors, counts = [], []
    for prediction, reference in zip(
        map(normalised, predictions), map(normalised, references), strict=True
    ):
        if not reference:  # jiwer refuses it: all of the hypothesis is insertions
            errors.append(len(prediction.split() if name == "process_words" else prediction))
            counts.append(0)
            continue
        found = process(reference, prediction)
        errors.append(found.substitutions + found.deletions + found.insertions)
        counts.append(found.hits + found.substitutions + found.deletions)
    return mean(torch.tensor(errors), torch.tensor(counts), ERROR_RATE)


def normalised(text: str) -> str:
    """A transcript normalised: lower case, letters, marks, digits, apostrophes, single spaces.

    Characters are judged by their Unicode category after composition (NFC), so that vowel signs
    (Devanagari, Thai) stay and it does not matter how a text is encoded. Format characters
    (zero-width joiners, soft hyphens, directions) are left out.
    """
    composed = unicodedata.normalize(
        "NFC", unicodedata.normalize("NFC", text).lower().translate(APOSTROPHES)
    )
    kept = []
    for place, character in enumerate(composed):
        kind = unicodedata.category(character)
        if kind[0] in "LMN" or (character == "'" and _within_a_word(composed, place)):
            kept.append(character)
        elif kind != "Cf":
            kept.append(" ")
    return " ".join("".join(kept).split())


def _within_a_word(text: str, place: int) -> bool:
    """Whether letters stand on both sides."""
    sides = text[place - 1 : place] + text[place + 1 : place + 2] if place else ""
    return len(sides) == 2 and all(unicodedata.category(c)[0] in "LMN" for c in sides)


MEASURES: dict[str, dict[str, Callable[[Texts, Texts], Measure]]] = {
    "bleu": {"bleu": bleu, "bleu_lowercased": lambda p, r: bleu(p, r, lowercase=True)},
    "chrf": {"chrf": chrf},
    "rouge": {kind: rouge(kind) for kind in ("rouge1", "rouge2", "rougeL")},
    "wer": {"wer": wer},
    "cer": {"cer": cer},
}
"""An option's name -> its metrics."""
INFO = {
    "bleu": SCORE,
    "bleu_lowercased": SCORE,
    "chrf": SCORE,
    "wer": ERROR_RATE,
    "cer": ERROR_RATE,
    **dict.fromkeys(MEASURES["rouge"], ROUGE),
}
"""Their descriptions."""


def group_of(metric: str) -> list[str]:
    """The name in `MEASURES` that includes this metric; [] for one that is not a text metric."""
    return [group for group, members in MEASURES.items() if metric in members]


def text_measures(
    names: Sequence[str], predictions: Texts, references: Texts
) -> dict[str, Measure]:
    """The metrics of texts that these names stand for.

    Raises `MissingPackage` where a library is missing.
    """
    chosen = {name: measure for group in names for name, measure in MEASURES[group].items()}
    return {name: measure(predictions, references) for name, measure in chosen.items()}


def lead_measures(names: Sequence[str], sources: Texts, references: Texts) -> dict[str, Measure]:
    """The metrics of the sources' first words, as many as references have on average."""
    count = max(1, round(sum(len(r.split()) for r in references) / max(1, len(references))))
    first = [" ".join(source.split()[:count]) for source in sources]
    return {
        name + LEAD: measure for name, measure in text_measures(names, first, references).items()
    }


def need_libraries(names: Sequence[str]) -> None:
    """Raise `MissingPackage` for a missing library of these metrics before they are computed."""
    libraries = {
        "bleu": "sacrebleu",
        "chrf": "sacrebleu",
        "rouge": "rouge_score",
        "wer": "jiwer",
        "cer": "jiwer",
    }
    for name in names:
        _library(libraries[name])


def _library(name: str) -> Any:
    return need(name, "metrics", "comparing texts")
