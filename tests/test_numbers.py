"""A regression goes on with other numbers, and is exported in the data's units."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.errors import SpecError
from bigmodel_cli.numbers import kept_numbers, last_layer, put_in_units

Cli = Callable[..., Any]
SPEC = """
model: {type: encoder, dim: 8, vocab_size: 300, token_types: 2, position: learned,
  pooler: true, norm: null, embedding_norm: layernorm,
  blocks: [{mixer: {type: attention, num_heads: 2}, ffn: {type: gelu, hidden: 8},
    norm: layernorm, placement: post}]}
data: {type: table, train: [a.csv], text: [text], targets: [price, area],
  tokenizer: {type: bytes}, context: 16}
task: regression
train: {steps: 4, batch_size: 8, precision: fp32, optimizer: {type: sgd, lr: 1.0e-2}}
"""
STILL = ["--set", "train.steps=1", "--set", "train.optimizer.lr=1e-12", "--set", "train.ema=null"]
TEXTS = [f"w{n % 7} {'x' * (n % 3 + 1)}" for n in range(40)]


class Head(nn.Module):
    """A head with a dense layer before the numbers."""

    def __init__(self, outputs: int, bias: bool = True) -> None:
        super().__init__()
        self.dense, self.head = nn.Linear(3, 4), nn.Linear(4, outputs, bias=bias)

    def output_layers(self) -> tuple[str, ...]:
        return ("dense", "head")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.dense(x).tanh())
        return y


def infos(before: dict[str, tuple[float, float]], now: dict[str, tuple[float, float]]) -> Any:
    return [
        DatasetInfo(
            targets=tuple(one),
            target_mean=tuple(m for m, _ in one.values()),
            target_std=tuple(s for _, s in one.values()),
        )
        for one in (now, before)
    ]


def carried(before: Any, now: Any) -> tuple[Any, Any, Any]:
    """What the old head says, and what the new one does, in units; and the changes."""
    torch.manual_seed(0)
    old: Any = Head(len(before)).double()
    new: Any = Head(len(now)).double()
    own, past = infos(before, now)
    changes = kept_numbers(new, own, past, old.state_dict())
    new.load_state_dict(
        {n: changes.get(n, lambda t: t)(t) for n, t in old.state_dict().items()}  # type: ignore[arg-type]
    )
    x = torch.randn(9, 3, dtype=torch.float64)
    said = []
    for model, info in ((old, past), (new, own)):
        mean, std = (
            torch.tensor(v, dtype=torch.float64) for v in (info.target_mean, info.target_std)
        )
        said.append((model(x) * std + mean).detach())
    return said[0], said[1], changes


def test_the_numbers_are_the_same_by_name_in_another_order(capsys: Any) -> None:
    before = {"a": (3.0, 0.5), "b": (100.0, 40.0), "c": (0.0, 1.0)}
    now = {"c": (0.25, 0.001), "new": (1.0, 2.0), "a": (5.0, 2.0)}
    old, new, _ = carried(before, now)
    torch.testing.assert_close(new[:, [0, 2]], old[:, [2, 0]], rtol=1e-12, atol=1e-12)
    err = capsys.readouterr().err
    assert "rows of c, a are the checkpoint's, by name; newly initialised: new" in err
    assert "a: mean 3 -> 5, deviation 0.5 -> 2: its row of the head is scaled" in err


@pytest.mark.parametrize("times", [1000.0, 0.001])
def test_in_another_unit_deviations_are_kept(times: float, capsys: Any) -> None:
    old, new, _ = carried({"a": (3.0, 0.5)}, {"a": (3.0 * times, 0.5 * times)})
    torch.testing.assert_close(new, old * times, rtol=1e-12, atol=0)
    assert "another unit than the checkpoint's?" in capsys.readouterr().err


def test_numbers_without_names_are_taken_in_order(capsys: Any) -> None:
    before = {"LABEL_0": (0.0, 1.0), "LABEL_1": (0.0, 1.0)}
    old, new, _ = carried(before, {"x": (50.0, 20.0), "y": (-1.0, 0.01)})
    torch.testing.assert_close(new, old, rtol=1e-12, atol=1e-12)
    assert "have no names; they are taken to be, in order: LABEL_0: x, LABEL_1: y" in (
        capsys.readouterr().err
    )


def test_a_head_of_another_form_begins_anew() -> None:
    own, past = infos({"a": (0.0, 2.0)}, {"a": (0.0, 1.0)})
    assert last_layer(Head(1, bias=False), 1) is None  # type: ignore[arg-type]
    assert kept_numbers(Head(1, bias=False), own, past, Head(1).state_dict()) == {}  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="not linear with a bias"):
        put_in_units(Head(1, bias=False), past)  # type: ignore[arg-type]


def numbers(cli: Cli, checkpoint: object, texts: list[str]) -> Any:
    found = cli("predict", checkpoint, *texts)
    assert found.status == 0, found.err
    rows = [list(json.loads(line)["numbers"].values()) for line in found.out.splitlines()]
    return torch.tensor(rows, dtype=torch.float64)


def write(times: float, plus: float) -> None:
    rows = [f"{t},{(n % 7) * times + plus},{n % 3},q{n % 5}" for n, t in enumerate(TEXTS)]
    Path("a.csv").write_text("\n".join(["text,price,area,more", *rows]) + "\n")


def test_finetuning_on_other_numbers_begins_with_the_same_ones(cli: Cli) -> None:
    Path("a.yaml").write_text(SPEC)
    write(2.0, 30.0)
    assert cli("pretrain", "a.yaml", "--out", "a").status == 0
    before = numbers(cli, "a", TEXTS[:9])
    write(5.0, 40.0)
    went = cli("finetune", "--from", "a", "a.yaml", "--out", "b", *STILL)
    assert went.status == 0, went.err
    assert "data.targets: price: mean" in went.err
    torch.testing.assert_close(numbers(cli, "b", TEXTS[:9]), before, rtol=1e-5, atol=1e-5)
    again = cli("finetune", "--from", "b", "a.yaml", "--out", "c", *STILL)
    assert "its row of the head" not in again.err  # the same numbers
    write(2000.0, 30000.0)
    far = cli("finetune", "--from", "a", "a.yaml", "--out", "d", *STILL)
    assert "price: mean" in far.err
    assert "another unit" in far.err
    loss = json.loads(Path("d/metrics.jsonl").read_text().splitlines()[-1])
    assert json.dumps(loss).count("nan") == 0
    lora = ["--set", "adapter={type: lora, rank: 2, targets: ['*.qkv']}"]
    refused = cli("finetune", "--from", "a", "a.yaml", "--out", "e", *lora)
    assert (refused.status, "modules_to_save: [head]" in refused.err) == (2, True)
    lora = ["--set", "adapter={type: lora, rank: 2, targets: ['*.qkv'], modules_to_save: [head]}"]
    assert cli("finetune", "--from", "a", "a.yaml", "--out", "f", *lora).status == 0


@pytest.mark.parametrize("pairs", [False, True])
def test_an_export_gives_numbers_in_the_datas_units(pairs: bool, cli: Cli) -> None:
    transformers = pytest.importorskip("transformers")
    Path("a.yaml").write_text(SPEC.replace("text: [text]", "text: [0, 3]") if pairs else SPEC)
    write(2.0, 3000.0)
    assert cli("pretrain", "a.yaml", "--out", "a").status == 0
    found = cli("export", "a", "hf")
    assert found.status == 0, found.err
    assert "gives the numbers in the data's units" in found.err
    model = transformers.AutoModelForSequenceClassification.from_pretrained("hf").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained("hf")
    assert model.config.problem_type == "regression"
    assert model.config.id2label == {0: "price", 1: "area"}
    items = [f"{text}\tq{n}" if pairs else text for n, text in enumerate(TEXTS[:5])]
    want = numbers(cli, "a", items)
    torch.testing.assert_close(numbers(cli, "hf", items), want, rtol=1e-6, atol=1e-4)
    with torch.no_grad():
        for text, row in zip(items, want, strict=True):
            logits = model(**tokenizer(*text.split("\t"), return_tensors="pt")).logits[0].double()
            torch.testing.assert_close(logits, row, rtol=1e-6, atol=1e-4)
