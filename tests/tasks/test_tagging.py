"""Tags of words: entities are counted as conlleval does, words by accuracy, and a line of text gets
its entities.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from conftest import Result, loss_of, scores_of
from torch import Tensor, nn

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import SpecError
from bigmodel_cli.tasks import CausalLMOptions
from bigmodel_cli.tasks.tagging import TaggingOptions, spans

Cli = Callable[..., Result]


def plain_spans(tags: Sequence[str]) -> list[tuple[str, int, int]]:
    """Entities another way: which words begin one, then each runs up to the next beginning or
    outside word.
    """
    letters = ["O" if t == "O" else {"L": "E", "U": "S"}.get(t[0], t[0]) for t in tags]
    types = [t.partition("-")[2] or "_" for t in tags]

    def begins(i: int) -> bool:
        if letters[i] in ("B", "S") or i == 0 or letters[i - 1] in ("O", "E", "S"):
            return True
        return types[i] != types[i - 1]

    found, i = [], 0
    while i < len(tags):
        j = i + 1
        if letters[i] != "O":
            while j < len(tags) and letters[j] != "O" and not begins(j):
                j += 1
            found.append((types[i], i, j))
        i = j
    return found


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ("B-PER I-PER O B-LOC", [("PER", 0, 2), ("LOC", 3, 4)]),
        ("I-PER I-PER B-PER O I-LOC", [("PER", 0, 2), ("PER", 2, 3), ("LOC", 4, 5)]),  # IOB1
        ("B-PER I-LOC I-LOC", [("PER", 0, 1), ("LOC", 1, 3)]),  # the type changes
        ("S-PER B-LOC E-LOC I-LOC E-LOC", [("PER", 0, 1), ("LOC", 1, 3), ("LOC", 3, 5)]),
        ("U-PER B-LOC L-LOC", [("PER", 0, 1), ("LOC", 1, 3)]),  # BILOU
        ("B I O B-a-b", [("_", 0, 2), ("a-b", 3, 4)]),
        ("O", []),
        ("", []),
    ],
)
def test_entities(tags: str, expected: list[tuple[str, int, int]]) -> None:
    assert spans(tags.split()) == plain_spans(tags.split()) == expected


TAGS = ["O", *(f"{letter}-{kind}" for letter in "BIES" for kind in ("A", "B-C"))]


def drawn(count: int, seed: int) -> list[list[str]]:
    rng = random.Random(seed)
    return [rng.choices(TAGS, [6] + [1] * 8, k=1 + i % 9) for i in range(count)]


def test_precision_recall_and_f1_are_those_of_seqeval() -> None:
    true, said = drawn(300, 1), drawn(300, 2)
    said = [a if i % 3 else b for i, (a, b) in enumerate(zip(true, said, strict=True))]
    found = [[{*plain_spans(tags)} for tags in side] for side in (true, said)]
    hits = sum(len(a & b) for a, b in zip(*found, strict=True))
    there, predicted = (sum(map(len, side)) for side in found)
    measures = (
        TaggingOptions()
        .build(DatasetInfo(classes=tuple(TAGS)))
        .measures({"reference": true, "prediction": said})
    )
    values = {name: measure.total() for name, measure in measures.items()}
    assert values == pytest.approx(
        {
            "precision": hits / predicted,
            "recall": hits / there,
            "f1": 2 * hits / (predicted + there),
        },
        rel=1e-12,
    )
    assert {name: m.count for name, m in measures.items()} == {
        "precision": predicted,
        "recall": there,
        "f1": there,
    }


def test_without_an_entity_all_is_0_as_with_seqeval() -> None:
    task = TaggingOptions().build(DatasetInfo(classes=("B-A", "O")))
    for true, said in ((["O"], ["O"]), (["B-A"], ["O"]), (["O"], ["B-A"])):
        found = task.measures({"reference": [true], "prediction": [said]})
        assert [measure.total() for measure in found.values()] == [0.0, 0.0, 0.0]


def test_a_table_of_types_and_for_other_tags_of_each_tag() -> None:
    answers = {
        "reference": [["B-A", "O", "S-Z"], ["I-A"]],
        "prediction": [["B-A", "B-A", "O"], ["I-A"]],
    }
    (table,) = (
        TaggingOptions()
        .build(DatasetInfo(classes=("B-A", "I-A", "O", "S-Z")))
        .tables(answers)
        .values()
    )
    assert [list(row.values()) for row in table] == [
        ["A", pytest.approx(2 / 3), 1.0, pytest.approx(0.8), 2, 3, 2],
        ["Z", 0.0, 0.0, 0.0, 1, 0, 0],
    ]
    plain = TaggingOptions().build(DatasetInfo(classes=("NOUN", "VERB")))
    assert plain.metric == "accuracy"
    answers = {"reference": [["NOUN", "NOUN", "VERB"]], "prediction": [["NOUN", "VERB", "VERB"]]}
    assert plain.measures(answers) == {}
    assert [(row["tag"], row["f1"]) for row in plain.tables(answers)["tags"]] == [
        ("NOUN", pytest.approx(2 / 3)),
        ("VERB", pytest.approx(2 / 3)),
    ]


class Fixed(nn.Module):
    """Gives these logits for any tokens."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = logits

    def arguments(self, batch: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return (batch["tokens"],)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.logits


def test_loss_and_accuracy_count_words_and_not_their_other_pieces() -> None:
    torch.manual_seed(0)
    logits = torch.randn(3, 6, 4)
    tags = torch.tensor([[-1, 2, -1, 0, 3, -1], [-1, 1, -1, -1, -1, -1], [-1, -1, -1, -1, -1, -1]])
    batch = {"tokens": torch.where(tags < 0, 5, tags), "tags": tags}
    task = TaggingOptions(label_smoothing=0.1).build(
        DatasetInfo(classes=("a", "b", "c", "d"), class_counts=(1, 7, 2, 3))
    )
    loss, count = loss_of(task, Fixed(logits), batch)
    places = [(0, 1, 2), (0, 3, 0), (0, 4, 3), (1, 1, 1)]
    logs = logits.log_softmax(-1)
    expected = -sum(
        0.9 * float(logs[b, t, n]) + 0.1 * float(logs[b, t].mean()) for b, t, n in places
    )
    assert (float(loss), int(count)) == (pytest.approx(expected, rel=1e-5), 4)
    scores = scores_of(task, Fixed(logits), batch)
    right = [int(logits[b, t].argmax()) == n for b, t, n in places]
    assert scores["accuracy"][0].tolist() == [sum(right[:3]), sum(right[3:]), 0]
    assert scores["accuracy"][1].tolist() == [3, 1, 0]
    assert float(scores["loss"][0][1]) == pytest.approx(-float(logs[1, 1, 1]), rel=1e-5)
    answers = task.score(task.forward(Fixed(logits), batch), batch)[1]
    assert answers["reference"] == [["c", "a", "d"], ["b"], []]
    assert task.baselines(answers, ())["accuracy_majority"].total() == 0.25


SPEC = """\
model:
  type: {model}
  dim: 32
  position: learned
  blocks:
    - {{mixer: {{type: attention, num_heads: 2}}, ffn: gelu}}
data:
  {{type: conll, train: [train.conll], test: [test.conll], context: 40, piece: {piece},
    tokenizer: {{type: bpe, vocab_size: 320}}}}
task: tagging
train:
  {{steps: 40, batch_size: 16, precision: fp32, memory_format: contiguous, compile: 'off',
    optimizer: {{type: adamw, lr: 1e-2}}}}
"""
PARTS = {
    "PER": ["Ann Lee", "Bob", "Cy van Dyk"],
    "LOC": ["Oslo", "New York"],
    "": ["lives in", "met", ".", "and", "saw"],
}


def write_sentences(path: str, count: int, seed: int) -> None:
    rng, rows = random.Random(seed), list[str]()
    for _ in range(count):
        for kind in rng.choices(["PER", "LOC", ""], k=rng.randint(2, 6)):
            words = rng.choice(PARTS[kind]).split()
            rows += [f"{w} {'BI'[i > 0]}-{kind}" if kind else f"{w} O" for i, w in enumerate(words)]
        rows.append("")
    Path(path).write_text("\n".join(rows))


@pytest.mark.parametrize(("model", "piece"), [("encoder", "first"), ("decoder", "last")])
def test_a_tagger_learns_and_finds_the_entities_of_a_line(model: str, piece: str, cli: Cli) -> None:
    write_sentences("train.conll", 300, 0)
    write_sentences("test.conll", 40, 1)
    Path("spec.yaml").write_text(SPEC.format(model=model, piece=piece))
    result = cli("pretrain", "spec.yaml", "--out", "run")
    assert result.status == 0, result.err
    found = json.loads(cli("eval", "run", "--predictions", "samples.jsonl", "--json").out)
    assert found["f1"] > 0.9 > found["accuracy_majority"]
    assert found["precision"] == found["metrics"]["precision"]["value"] > 0.9
    assert found["computed_in"] == "fp32"
    assert {row["type"] for row in found["types"]} == {"PER", "LOC"}
    again = json.loads(cli("eval", "--rescore", "samples.jsonl", "--json").out)
    assert {n: again[n] for n in ("f1", "accuracy")} == {n: found[n] for n in ("f1", "accuracy")}
    said = cli("predict", "run", "Ann Lee lives in  New York", "  ")
    assert said.status == 3
    good, bad = map(json.loads, said.out.splitlines())
    assert good["words"] == ["Ann", "Lee", "lives", "in", "New", "York"]
    assert good["entities"] == [
        {"type": "PER", "start": 0, "end": 2, "text": "Ann Lee"},
        {"type": "LOC", "start": 4, "end": 6, "text": "New York"},
    ]
    assert len(good["tags"]) == len(good["probabilities"]) == 6
    assert bad["error"] == "input 2 is empty: there is no word to tag"


def test_an_encoder_that_found_hidden_tokens_gets_a_new_head(cli: Cli) -> None:
    write_sentences("train.conll", 60, 0)
    write_sentences("test.conll", 5, 1)
    Path("lines.txt").write_text("Ann Lee lives in New York .\n" * 40)
    few = SPEC.replace("steps: 40", "steps: 2").format(model="encoder", piece="first")
    Path("tags.yaml").write_text(few)
    head, rest = few.split("data:")[0], few.split("task: tagging\n")[1]
    data = (
        "data: {type: table, train: [lines.txt], text: [0], header: false, context: 20, tokenizer:"
        " {type: bpe, vocab_size: 300}}"
    )
    Path("hidden.yaml").write_text(f"{head}{data}\ntask: masked_lm\n{rest}")
    assert cli("pretrain", "hidden.yaml", "--out", "hidden").status == 0
    result = cli(
        "finetune", "--from", "hidden", "tags.yaml", "--set", "data.context=20", "--out", "tagger2"
    )
    assert result.status == 0, result.err
    assert "newly initialised, since the classes differ: head.weight, head.bias" in result.err


def test_tasks_of_text_refuse_data_with_tags() -> None:
    info = DatasetInfo(vocab_size=9, context=8, classes=("a", "b"), tagged=True)
    with pytest.raises(
        SpecError,
        match=r"causal_lm learns texts, and data.type: conll has tags: task.type: tagging",
    ):
        CausalLMOptions().build(info).check(None, info, frozenset({"tokens", "tags"}), "conll")
