"""Problems made by rule: every sample is right, none stands in two splits, and the loss is that of
the answer.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result
from pydantic import ValidationError

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data import DataSet, open_data
from bigmodel_cli.data.synthetic import SyntheticOptions
from bigmodel_cli.data.text.tokenizer_files import load_tokenizer
from bigmodel_cli.errors import SpecError
from bigmodel_cli.tasks import CausalLMOptions

PARITY = {
    "parity": lambda x: [sum(x) % 2],
    "running_parity": lambda x: [sum(x[: i + 1]) % 2 for i in range(len(x))],
}
FEW = {"val_samples": 1, "test_samples": 1}
ANSWERS: dict[str, Any] = {"copy": list, "reverse": lambda x: x[::-1], "sort": sorted, **PARITY}


def opened(said: list[str] | None = None, **options: Any) -> DataSet:
    say = (lambda _: None) if said is None else said.append
    return open_data(SyntheticOptions(**options), base=Path(), say=say)


def texts(data: DataSet, split: str, name: str = "tokens") -> list[str]:
    """Every row of a split as text."""
    tokenizer = load_tokenizer(data.assets())
    rows = data.split(split).batch(np.arange(len(data.split(split))), 0, 0, False)[name]
    return [tokenizer.decode(row.tolist()) for row in rows]


@pytest.mark.parametrize("problem", sorted(ANSWERS))
def test_synthetic_tasks_have_the_target_of_their_rule(problem: str) -> None:
    symbols = {} if "parity" in problem else {"symbols": 13}
    for text in texts(
        opened(problem=problem, length=7, min_length=4, samples=80, **symbols), "train"
    ):
        given, answer = ([int(n) for n in side.split()] for side in text.split("="))
        assert 4 <= len(given) <= 7
        assert answer == ANSWERS[problem](given), text


def test_modular_sums_of_two_are_all_there_once_and_each_in_one_split() -> None:
    said: list[str] = []
    data = opened(said, problem="modular_sum", length=2, symbols=7)
    found = [text for split in data.splits for text in texts(data, split)]
    assert sorted(found) == sorted(f"{a} + {b} = {(a + b) % 7}" for a in range(7) for b in range(7))
    assert [len(data.split(s)) for s in data.splits] == [41, 4, 4]
    assert said == [
        "there are 41 of 10,000 train samples, 4 of 1,000 val samples, 4 of 1,000 test samples:"
        " modular_sum has no more different samples of that length, and splits share none"
    ]


@pytest.mark.parametrize(("length", "symbols"), [(3, 9), (1, 4), (11, 64)])
def test_recall_asks_for_each_key_once_and_only_its_value_is_learnt(
    length: int, symbols: int
) -> None:
    data = opened(
        problem="recall", length=length, symbols=symbols, samples=2 if symbols == 4 else 50, **FEW
    )
    split, tokenizer = data.split("train"), load_tokenizer(data.assets())
    batch = split.batch(np.arange(len(split)), 0, 0, False)
    for row, mask in zip(batch["tokens"].tolist(), batch["loss_mask"].tolist(), strict=True):
        words = tokenizer.decode(row).split()
        pairs, asked = (
            list(zip(w[::2], w[1::2], strict=True))
            for w in (words[: 2 * length], words[2 * length :])
        )
        assert sorted(pairs) == sorted(asked)
        assert len({key for key, _ in pairs}) == length
        assert all(key[0] == "k" and value[0] == "v" for key, value in pairs)
        assert mask == [place > 2 * length and place % 2 == 1 for place in range(4 * length)]


@pytest.mark.parametrize(
    "options",
    [
        {"problem": "copy", "length": 4, "min_length": 2, "symbols": 4},
        {"problem": "recall", "length": 30, "symbols": 60},
        {"problem": "parity", "length": 70, "form": "labels"},
    ],
    ids=lambda o: o["problem"],
)
def test_a_sample_is_a_function_of_seed_split_and_number_and_stands_in_one_split(
    options: dict[str, Any],
) -> None:
    data, again = opened(**options, samples=300), opened(**options, samples=300)
    split = data.split("train")
    whole = split.batch(np.arange(len(split)), 0, 0, False)["tokens"]
    some = again.split("train").batch(np.array([5, 2]), 3, 9, True)["tokens"]
    for row, number in zip(some, (5, 2), strict=True):
        assert row[row >= 0].tolist() == whole[number][whole[number] >= 0].tolist()
    items = [data.items(name) for name in data.splits]
    assert (
        len(np.unique(np.concatenate(items)))
        == sum(map(len, items))
        > 300 * ("min_length" not in options)
    )
    assert opened(**options, samples=300, seed=1).items("train").tolist() != items[0].tolist()


def test_test_samples_may_be_longer_and_the_model_is_made_for_them() -> None:
    data = opened(problem="reverse", length=5, val_length=6, test_length=11, samples=20)
    assert {split: {len(text.split()) for text in texts(data, split)} for split in data.splits} == {
        "train": {11},
        "val": {13},
        "test": {23},
    }
    assert data.info.context == 23
    # (): all as long as the context
    assert [data.split(s).longest_rows() for s in data.splits] == [
        (11,),
        (13,),
        (),
    ]


def test_the_loss_and_the_metrics_are_those_of_the_answer() -> None:
    data = opened(problem="sort", length=4, min_length=2, symbols=5, samples=30, **FEW)
    batch = data.split("train").batch(np.array([0, 14, 25]), 0, 0, False)
    torch.manual_seed(0)
    logits = torch.randn(
        3, batch["tokens"].shape[1] - 1, data.info.vocab_size or 0, dtype=torch.float64
    )
    task = CausalLMOptions().build(DatasetInfo())
    loss, count = task.loss(logits, batch)
    nats, hits, total = 0.0, [], 0
    for row, scores in zip(batch["tokens"].tolist(), logits, strict=True):
        begins, end = row.index(5) + 1, row.index(6)  # "=", and the mark of the end
        places = range(begins, end + 1)
        nats -= sum(float(scores[p - 1].log_softmax(0)[row[p]]) for p in places)
        hits.append([int(scores[p - 1].argmax()) == row[p] for p in places])
        total += len(places)
    assert (float(loss), int(count)) == (pytest.approx(nats, rel=1e-6), total)
    found = task.score(logits, batch)[0]
    assert found["accuracy"][0].tolist() == [sum(own) for own in hits]
    right = torch.nn.functional.one_hot(batch["tokens"][:, 1:].clamp(min=0), 7).double()
    right[1, 0] = right[1, 0].roll(1)  # what is not of the answer does not count
    right[2, -1 - int((batch["tokens"][2] < 0).sum())] = 0.0
    assert task.score(right, batch)[0]["exact"][0].tolist() == [1.0, 1.0, 0.0]
    assert int(task.size(batch)) == int((batch["tokens"][:, 1:] >= 0).sum())


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        (
            {"problem": "recall", "length": 9, "symbols": 16},
            "half of them are keys, fewer than 9 pairs",
        ),
        ({"problem": "parity", "length": 9, "symbols": 3}, "parity is of bits"),
        ({"problem": "copy", "length": 3, "min_length": 4}, "min_length 4 is more than length 3"),
        ({"problem": "sort", "length": 3, "form": "labels"}, "answers of one symbol"),
    ],
)
def test_synthetic_options_that_cannot_be_met_are_refused(
    options: dict[str, Any], fault: str
) -> None:
    with pytest.raises(ValidationError, match=fault):
        SyntheticOptions(**options)


def test_too_few_samples_for_every_split_are_refused() -> None:
    with pytest.raises(
        SpecError,
        match=r"parity has 2 different samples of length 1, and splits share none; make",
    ):
        opened(problem="parity", length=5, min_length=1)


BLOCK = "{mixer: {type: attention, num_heads: 2}, ffn: gelu}"
TRAIN = (
    "train: {steps: 2, batch_size: 8, precision: fp32, memory_format: contiguous, compile: 'off'}"
)
SPECS = {
    "causal_lm": (
        f"model: {{type: decoder, dim: 16, position: learned, blocks: [{BLOCK}]}}\ndata: {{type:"
        " synthetic, problem: sort, length: 3, test_length: 5, samples: 64, val_samples: 8,"
        " test_samples: 8}\ntask: {type: causal_lm, sample_prompt: '3 1 2 =', sample_tokens: 2}"
    ),
    "seq2seq": (
        f"model: {{type: seq2seq, dim: 16, encoder: [{BLOCK}], decoder: [{BLOCK[:-1]}, cross:"
        " {num_heads: 2}}]}\ndata: {type: synthetic, form: pairs, problem: reverse, length:"
        " 3, samples: 64, val_samples: 8, test_samples: 8}\ntask: {type: seq2seq, metrics:"
        " [wer], max_tokens: 4}"
    ),
    "classification": (
        f"model: {{type: encoder, dim: 16, blocks: [{BLOCK}]}}\ndata: {{type: synthetic, form:"
        " labels, problem: parity, length: 6, samples: 40, val_samples: 8, test_samples:"
        " 8}\ntask: classification"
    ),
}
GIVEN = {"causal_lm": "3 1 2 =", "seq2seq": "3 1 2 =", "classification": "1 0 1 ="}


@pytest.mark.parametrize("task", sorted(SPECS))
def test_a_task_learns_from_it_and_reads_its_symbols_as_text(
    task: str, cli: Callable[..., Result]
) -> None:
    if task == "seq2seq":
        pytest.importorskip("jiwer")
    Path("spec.yaml").write_text(f"{SPECS[task]}\n{TRAIN}\n")
    result = cli("pretrain", "spec.yaml", "--out", "run")
    assert result.status == 0, result.err
    found = json.loads(cli("eval", "run", "--json").out)
    assert found["split"] == "test"
    assert ("exact" in found) == (task != "classification")
    result = cli("predict", "run", GIVEN[task], "1 x =")
    assert result.status == 3, result.err
    good, bad = map(json.loads, result.out.splitlines())
    assert "error" not in good
    assert "'x' is not one of the symbols that the model was trained on" in bad["error"]
