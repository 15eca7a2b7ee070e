"""Metrics of texts equal those of the field's libraries, whole and item by item; intervals and
differences behave.
"""

from __future__ import annotations

import math
import random
import unicodedata

import jiwer
import pytest
import sacrebleu
import torch
from rouge_score.rouge_scorer import RougeScorer

from bigmodel_cli.metrics import MetricInfo, mean
from bigmodel_cli.metrics.text import normalised, text_measures

SENTENCE = "a man in the red hat rides his old bicycle down one long street near two dogs ."
WORDS = SENTENCE.split()


def texts(seed: int, count: int = 60, kept: float = 0.8) -> tuple[list[str], list[str]]:
    """References, and predictions in which words are missing, changed or added."""
    rng = random.Random(seed)
    references = [" ".join(rng.choices(WORDS, k=rng.randint(1, 14))) for _ in range(count)]
    predictions = []
    for reference in references:
        words = [
            w if rng.random() < kept else rng.choice(WORDS)
            for w in reference.split()
            if rng.random() < 0.95
        ]
        predictions.append(" ".join([*words, *rng.choices(WORDS, k=rng.randint(0, 2))]))
    return predictions, references


def test_bleu_and_chrf_are_sacrebleus() -> None:
    predictions, references = texts(0)
    measures = text_measures(["bleu", "chrf"], predictions, references)
    assert measures["bleu"].total() == sacrebleu.corpus_bleu(predictions, [references]).score
    lowercased = sacrebleu.corpus_bleu(predictions, [references], lowercase=True)
    assert measures["bleu_lowercased"].total() == lowercased.score
    assert measures["chrf"].total() == pytest.approx(
        sacrebleu.corpus_chrf(predictions, [references]).score
    )
    assert measures["bleu"].signature.startswith(
        "nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:"
    )
    assert measures["bleu"].count == 60
    for i, score in enumerate(measures["chrf"].each()):
        assert score == pytest.approx(
            sacrebleu.corpus_chrf(predictions[i : i + 1], [references[i : i + 1]]).score
        )


def test_rouge_is_rouge_scores_and_error_rates_are_jiwers() -> None:
    predictions, references = texts(1)
    measures = text_measures(["rouge", "wer", "cer"], predictions, references)
    for kind in ("rouge1", "rouge2", "rougeL"):
        scorer = RougeScorer([kind], use_stemmer=True)
        values = [
            scorer.score(r, p)[kind].fmeasure for p, r in zip(predictions, references, strict=True)
        ]
        assert measures[kind].total() == pytest.approx(sum(values) / 60)
    clean = [normalised(t) for t in predictions], [normalised(t) for t in references]
    keep = [i for i, r in enumerate(clean[1]) if r]
    assert len(keep) >= 58
    extra = sum(len(clean[0][i].split()) for i in range(60) if not clean[1][i])
    rate = jiwer.wer([clean[1][i] for i in keep], [clean[0][i] for i in keep])
    words = sum(len(r.split()) for r in clean[1])
    assert measures["wer"].count == words
    assert measures["wer"].total() == pytest.approx(rate + extra / words)
    assert measures["wer"].higher_is_better is False


def test_texts_are_normalised_for_error_rates() -> None:
    assert normalised("  Don't stop, ME now!\tÄ-b ") == "don't stop me now ä b"
    measures = text_measures(["wer", "cer"], ["Two,  SIX", "noise", ""], ["two six", "", "one two"])
    assert measures["wer"].statistics.tolist() == [[0, 2], [1, 0], [2, 2]]
    assert measures["wer"].total() == pytest.approx(3 / 4)
    assert math.isnan(measures["wer"].each()[1])
    assert measures["cer"].statistics[2].tolist() == [7, 7]


HINDI = "\u0928\u092e\u0938\u094d\u0924\u0947 \u0926\u0941\u0928\u093f\u092f\u093e"
BARE = "".join(c for c in HINDI if unicodedata.category(c)[0] != "M")


@pytest.mark.parametrize(
    ("prediction", "reference", "words", "characters"),
    [
        (BARE, HINDI, 2 / 2, 5 / 13),  # vowel signs are letters' own, not punctuation
        ("\u0e01\u0e32", "\u0e01\u0e35", 1 / 1, 1 / 2),  # Thai
        (
            "re\u0301sume\u0301 \u212b",
            "r\u00e9sum\u00e9 \u00c5",
            0,
            0,
        ),  # the same text, otherwise encoded
        ("don\u2019t", "don't", 0, 0),
        (
            "\u2018hello\u2019 she said",
            "hello 'she' said",
            0,
            0,
        ),  # quotation marks, not apostrophes
        ("\u0915\u094d\u200d\u0937", "\u0915\u094d\u0937", 0, 0),  # a joiner has no sound
        ("co\u00adoperate", "cooperate", 0, 0),
        ("x\u0302", "x", 1 / 1, 1 / 1),  # no composed form, still a mark
    ],
)
def test_error_rates_in_every_script(
    prediction: str, reference: str, words: float, characters: float
) -> None:
    measures = text_measures(["wer", "cer"], [prediction], [reference])
    assert (measures["wer"].total(), measures["cer"].total()) == (words, pytest.approx(characters))
    assert measures["cer"].signature.startswith("NFC, lower case")


def test_error_rates_of_hindi_are_jiwers_of_the_raw_text() -> None:
    """Where a text has neither upper case nor punctuation, nothing is normalised away."""
    rng = random.Random(5)
    syllables = [
        a + b
        for a in "\u0915\u0916\u0917\u0918\u091a"
        for b in ("", "\u093e", "\u093f", "\u0940", "\u0941", "\u094d\u0930")
    ]
    references = [
        " ".join("".join(rng.choices(syllables, k=rng.randint(1, 3))) for _ in range(7))
        for _ in range(11)
    ]
    predictions = ["".join(c for c in r if rng.random() < 0.9) for r in references]
    predictions = [" ".join(p.split()) for p in predictions]
    measures = text_measures(["wer", "cer"], predictions, references)
    assert measures["wer"].total() == pytest.approx(jiwer.wer(references, predictions))
    assert measures["cer"].total() == pytest.approx(jiwer.cer(references, predictions))


def test_rouge_sees_letters_of_every_script() -> None:
    greek = "\u03b7 \u03b3\u03ac\u03c4\u03b1 \u03ba\u03bf\u03b9\u03bc\u03ac\u03c4\u03b1\u03b9"
    other = "\u03bf \u03c3\u03ba\u03cd\u03bb\u03bf\u03c2 \u03c4\u03c1\u03ce\u03b5\u03b9"
    measures = text_measures(
        ["rouge"], [greek, other, "f\u00fcr die", HINDI], [greek, greek, "f r die", HINDI]
    )
    # {f\u00fcr, die} and {f, r, die}
    assert measures["rouge1"].each() == pytest.approx([1, 0, 2 / 5, 1])
    # ASCII words are stemmed beside others
    mixed = text_measures(["rouge"], ["caf\u00e9s running"], ["caf\u00e9s runs"])
    assert mixed["rougeL"].total() == 1


def test_sparse_statistics_add_up_as_dense_ones() -> None:
    dense = torch.randint(0, 2, (40, 9)).double()
    weights = torch.randint(0, 4, (7, 40)).double()
    kinds = [mean(dense[:, 0], dense[:, 1], MetricInfo())]
    for measure in kinds:
        sparse = type(measure)(measure.statistics.to_sparse(), measure.value, measure.count)
        torch.testing.assert_close(sparse.sums(weights), measure.sums(weights))
        assert sparse.each() == pytest.approx(measure.each(), nan_ok=True)
