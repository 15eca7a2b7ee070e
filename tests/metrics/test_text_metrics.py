"""Metrics of texts equal those of the field's libraries, whole and item by item; intervals and differences behave."""

from __future__ import annotations

import math
import random

import jiwer
import pytest
import sacrebleu
import torch
from rouge_score.rouge_scorer import RougeScorer

from bigmodel_cli.metrics import mean
from bigmodel_cli.metrics.intervals import RESAMPLES, bootstrap, compare, estimate, resamples
from bigmodel_cli.metrics.text import normalised, text_measures

SENTENCE = "a man in the red hat rides his old bicycle down one long street near two dogs ."
WORDS = SENTENCE.split()


def texts(seed: int, count: int = 60, kept: float = 0.8) -> tuple[list[str], list[str]]:
    """References, and predictions in which words are missing, changed or added."""
    rng = random.Random(seed)
    references = [" ".join(rng.choices(WORDS, k=rng.randint(1, 14))) for _ in range(count)]
    predictions = []
    for reference in references:
        words = [w if rng.random() < kept else rng.choice(WORDS) for w in reference.split() if rng.random() < 0.95]
        predictions.append(" ".join([*words, *rng.choices(WORDS, k=rng.randint(0, 2))]))
    return predictions, references


def test_bleu_and_chrf_are_sacrebleus() -> None:
    predictions, references = texts(0)
    measures = text_measures(["bleu", "chrf"], predictions, references)
    assert measures["bleu"].total() == sacrebleu.corpus_bleu(predictions, [references]).score
    lowercased = sacrebleu.corpus_bleu(predictions, [references], lowercase=True)
    assert measures["bleu_lowercased"].total() == lowercased.score
    assert measures["chrf"].total() == pytest.approx(sacrebleu.corpus_chrf(predictions, [references]).score)
    assert measures["bleu"].signature.startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert measures["bleu"].count == 60
    for i, score in enumerate(measures["chrf"].each()):
        assert score == pytest.approx(sacrebleu.corpus_chrf(predictions[i : i + 1], [references[i : i + 1]]).score)


def test_rouge_is_rouge_scores_and_error_rates_are_jiwers() -> None:
    predictions, references = texts(1)
    measures = text_measures(["rouge", "wer", "cer"], predictions, references)
    for kind in ("rouge1", "rouge2", "rougeL"):
        scorer = RougeScorer([kind], use_stemmer=True)
        values = [scorer.score(r, p)[kind].fmeasure for p, r in zip(predictions, references, strict=True)]
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


def test_resamples_are_always_the_same_and_as_large_as_the_set() -> None:
    weights = torch.cat(list(resamples(50)))
    assert weights.shape == (RESAMPLES, 50)
    assert bool((weights.sum(1) == 50).all())
    assert torch.equal(weights, torch.cat(list(resamples(50))))
    assert abs(float(weights.var()) - 0.98) < 0.05  # multinomial: n p (1 - p)


def test_the_interval_of_a_corpus_metric_is_sacrebleus_bootstrap() -> None:
    predictions, references = texts(2, 200)
    measure = text_measures(["bleu"], predictions, references)["bleu"]
    found = estimate(measure, bootstrap({"bleu": measure})["bleu"])
    theirs = sacrebleu.BLEU().corpus_score(predictions, [references], n_bootstrap=1000)
    assert found.method == "bootstrap"
    assert found.low < found.value < found.high
    assert (found.high - found.low) / 2 == pytest.approx(theirs._ci, rel=0.12)


def test_a_difference_is_found_where_there_is_one_and_not_where_there_is_none() -> None:
    good, references = texts(3, 300, kept=0.85)
    bad, _ = texts(3, 300, kept=0.6)
    rng = random.Random(1)
    first = text_measures(["bleu"], bad, references)
    better = text_measures(["bleu"], good, references)
    # Two systems of one quality: each sentence goes to one or the other by chance.
    swaps = [rng.random() < 0.5 for _ in good]
    other, _ = texts(4, 300, kept=0.85)
    mixed = [b if s else a for a, b, s in zip(good, good[::-1], swaps, strict=True)]
    assert mixed != other
    sampled = bootstrap(first)["bleu"]
    found = compare(sampled, bootstrap(better)["bleu"], (first["bleu"].total(), better["bleu"].total()))
    assert found.p < 0.01
    assert 0 < found.low < found.difference < found.high
    same = compare(sampled, sampled, (first["bleu"].total(), first["bleu"].total()))
    assert (same.difference, same.low, same.high, same.p) == (0, 0, 0, 1)


def test_under_no_difference_p_is_rarely_small() -> None:
    small = 0
    for seed in range(60):
        generator = torch.Generator().manual_seed(seed)
        ones = torch.ones(80)
        a, b = (mean((torch.rand(80, generator=generator) < 0.7).double(), ones, True) for _ in range(2))
        found = compare(bootstrap({"m": a})["m"], bootstrap({"m": b})["m"], (a.total(), b.total()))
        small += found.p < 0.05
    assert small <= 8  # of 60; 3 expected


def test_sparse_statistics_add_up_as_dense_ones() -> None:
    dense = torch.randint(0, 2, (40, 9)).double()
    weights = torch.cat(list(resamples(40)))[:7]
    kinds = [mean(dense[:, 0], dense[:, 1], True)]
    for measure in kinds:
        sparse = type(measure)(measure.statistics.to_sparse(), measure.value, measure.count)
        torch.testing.assert_close(sparse.sums(weights), measure.sums(weights))
        assert sparse.each() == pytest.approx(measure.each(), nan_ok=True)
