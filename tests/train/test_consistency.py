"""Two passes of a batch that are to agree (R-Drop): the formula, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.draw import KEY
from bigmodel_cli.errors import SpecError
from bigmodel_cli.models import MODELS
from bigmodel_cli.tasks import TASKS
from bigmodel_cli.train.objective import Consistency

Cli = Callable[..., Any]
VOCAB = 19
MODEL = {"causal_lm": "decoder", "masked_lm": "encoder", "classification": "encoder"}


def built(kind: str, dropout: float) -> tuple[Any, Any, dict[str, torch.Tensor]]:
    classes = {"classes": ("a", "b", "c")} if kind == "classification" else {}
    info = DatasetInfo(vocab_size=VOCAB, context=11, **classes)
    block = {"repeat": 2, "mixer": {"type": "attention", "num_heads": 3}, "ffn": "gelu"}
    options = {"type": MODEL[kind], "dim": 12, "blocks": [block], "dropout": dropout}
    torch.manual_seed(3)
    model = MODELS[MODEL[kind]].model_validate(options).build(info)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    tokens = torch.randint(VOCAB, (5, 12 if kind == "causal_lm" else 11))
    tokens[0, 3:] = tokens[4, 8:] = -1
    label = {"label": torch.tensor([2, 0, 1, 1, 0])} if classes else {}
    batch = {"tokens": tokens, KEY: torch.arange(5) * 31, **label}
    return model.train(), TASKS[kind].model_validate({"type": kind}).build(info), batch


@pytest.mark.parametrize("kind", sorted(MODEL))
def test_the_loss_is_that_of_the_formula(kind: str) -> None:
    model, task, batch = built(kind, 0.3)
    torch.manual_seed(8)
    total, count = Consistency(task, 1.7)(model, batch)
    torch.manual_seed(8)
    first, second = task.forward(model, batch), task.forward(model, batch)
    (a, n), (b, _) = task.loss(first, batch), task.loss(second, batch)
    if kind == "causal_lm":
        real = batch["tokens"][:, 1:] >= 0
        first, second = first[real], second[real]
    elif kind == "masked_lm":
        first, second = first[0], second[0]
    p, q = first.softmax(-1), second.softmax(-1)
    apart = (p * (p / q).log()).sum() / 2 + (q * (q / p).log()).sum() / 2
    assert count == n
    assert float(apart.detach()) > 0.05
    torch.testing.assert_close(total, (a + b) / 2 + 1.7 * apart, rtol=1e-5, atol=1e-5)


def test_without_dropout_nothing_could_differ() -> None:
    model, task, batch = built("classification", 0.0)
    with pytest.raises(SpecError, match="two passes of a batch give the same answers"):
        Consistency(task, 1.0)(model, batch)


@pytest.mark.parametrize(
    ("task", "said"),
    [
        ("{type: regression}", "has no probabilities that two passes could differ in"),
        ("{type: classification}\ndistill: {teacher: nowhere}", "no effect beside distill"),
    ],
)
def test_what_cannot_agree_is_refused(cli: Cli, tmp_path: Path, task: str, said: str) -> None:
    rows = "".join(f"some words,{i % 3}\n" for i in range(400))
    (tmp_path / "rows.csv").write_text(f"text,value\n{rows}")
    answer = "targets: [value]" if "regression" in task else "label: value"
    (tmp_path / "spec.yaml").write_text(
        "model: {type: encoder, dim: 8, blocks: [{mixer: {type: attention, num_heads: 2}}]}\n"
        f"data: {{type: table, train: [rows.csv], text: [text], {answer}, context: 8,"
        " tokenizer: characters}\n"
        f"task: {task}\ntrain: {{steps: 2, consistency: 1}}\n"
    )
    done = cli("pretrain", tmp_path / "spec.yaml", "--out", tmp_path / "run")
    assert done.status == 2
    assert said in done.err
