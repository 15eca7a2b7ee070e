"""Logits in pieces: loss, score and every gradient are those of whole logits, for every task."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from bigmodel_cli.adapters import ADAPTERS, attach
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.draw import KEY
from bigmodel_cli.logits import cross_entropy, is_late, late, logits_of, token_nll
from bigmodel_cli.models import MODELS
from bigmodel_cli.tasks import TASKS
from bigmodel_cli.teacher_options import DistillOptions
from bigmodel_cli.train.distillation import Distillation
from bigmodel_cli.train.objective import Consistency, Objective

VOCAB, INFO = 23, DatasetInfo(vocab_size=23, context=9)
ATTENTION = {"type": "attention", "num_heads": 2}
BLOCK = {"repeat": 2, "mixer": ATTENTION, "ffn": "gelu"}
MODELS_OF: dict[str, dict[str, Any]] = {
    "plain": {"type": "decoder"},
    "own": {"type": "decoder", "tie_embeddings": False},
    "gemma": {"type": "decoder", "logit_scale": 0.4, "logit_softcap": 3.0},
    "bert": {"type": "encoder"},
    "pairs": {"type": "seq2seq", "logit_bias": True},
}
TASK = {"bert": "masked_lm", "pairs": "seq2seq"}


def built(name: str, seed: int = 3) -> Any:
    options = {"dim": 10, "blocks": [BLOCK], **MODELS_OF[name]}
    if name == "pairs":
        del options["blocks"]
        cross = {"mixer": ATTENTION, "cross": {"num_heads": 5}, "ffn": "relu"}
        options |= {"encoder": [BLOCK], "decoder": [cross]}
    torch.manual_seed(seed)
    model = MODELS[options["type"]].model_validate(options).build(INFO)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.train()


def task_of(name: str, **more: Any) -> Any:
    kind = TASK.get(name, "causal_lm")
    return TASKS[kind].model_validate({"type": kind, **more}).build(INFO)


def batch_of(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    tokens = torch.randint(VOCAB, (5, 9))
    tokens[1, 6:] = tokens[4, 3:] = -1
    own = {"source": tokens[:, :7], "target": tokens} if name == "pairs" else {"tokens": tokens}
    return {**own, KEY: torch.arange(5) * 77}


def gradients(total: torch.Tensor, model: Any) -> list[torch.Tensor]:
    wanted = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(1.5 * total, wanted, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(wanted, found, strict=True)]


def assert_same(objectives: Any, model: Any, batch: dict[str, torch.Tensor]) -> None:
    """Two objectives give the same loss, count and gradients."""
    found = []
    for objective in objectives:
        torch.manual_seed(4)
        total, count = objective(model, batch)
        found.append((total.detach(), float(count), gradients(total, model)))
    (a, n, one), (b, m, other) = found
    assert n == m > 0
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-6)
    for x, y in zip(one, other, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", sorted(MODELS_OF))
@pytest.mark.parametrize("rows", [1, 7])
def test_every_task_learns_the_same(name: str, rows: int) -> None:
    model, batch = built(name).double(), batch_of(name)
    more = {"mask_prob": 0.5} if name == "bert" else {"label_smoothing": 0.1}
    task = task_of(name, **more)
    with late(rows, task.takes_late):
        outputs = task.forward(model, batch)
    assert is_late(outputs[0] if name == "bert" else outputs)
    assert_same([Objective(task, "off"), Objective(task, rows)], model, batch)


def test_tokens_that_are_no_targets_are_not_computed() -> None:
    model, batch, task = built("own"), batch_of("own"), task_of("own")
    batch["loss_mask"] = torch.rand(5, 9) < 0.3
    assert_same([Objective(task, "off"), Objective(task, 4)], model, batch)
    rows: list[int] = []
    model.head.register_forward_hook(lambda m, i, o: rows.append(len(o)))
    _, count = Objective(task, 4)(model, batch)
    assert sum(rows) == int(count) < 20


@pytest.mark.parametrize("targets", ["head|embedding", "qkv"])
def test_an_adapted_head(targets: str) -> None:
    model, batch, task = built("own"), batch_of("own"), task_of("own")
    chosen = [f"*{name}*" for name in targets.split("|")]
    options: Any = ADAPTERS["lora"].model_validate({"rank": 3, "targets": chosen})
    attach(model, options, fill=True)
    for parameter in model.parameters():
        if parameter.requires_grad:
            torch.nn.init.normal_(parameter, std=0.3)
    assert_same([Objective(task, "off"), Objective(task, 5)], model, batch)


@pytest.mark.parametrize("name", ["gemma", "bert"])
def test_a_teacher_and_a_second_pass(name: str) -> None:
    student, teacher, task = built(name), built(name, 8), task_of(name)
    options = DistillOptions(teacher="", weight=0.3, temperature=1.7, hidden=0.2)
    loaded: Any = SimpleNamespace(model=teacher)
    chunks: list[Any] = ["off", 3]
    objectives = [Distillation(task, loaded, options, student, chunk) for chunk in chunks]
    assert_same(objectives, student, batch_of(name))
    for block in student.blocks:
        block.options = block.options.model_copy(update={"dropout": 0.3})
    assert_same([Consistency(task, 1.3, c) for c in chunks], student, batch_of(name))


def test_answers_are_preferred_alike() -> None:
    task, model, batch = TASKS["dpo"].model_validate({"type": "dpo"}).build(), built("own"), {}
    task.reference = built("own", 9)
    for name in ("tokens", "rejected"):
        batch[name] = torch.randint(VOCAB, (4, 8 if name == "tokens" else 6))
        batch["loss_mask" if name == "tokens" else "rejected_mask"] = (
            torch.rand(batch[name].shape) < 0.6
        )
    assert_same([Objective(task, "off"), Objective(task, 3)], model, batch)


def test_scores_are_the_same() -> None:
    model, batch, task = built("gemma").eval(), batch_of("gemma"), task_of("gemma")
    with torch.no_grad():
        want = task.score(task.forward(model, batch), batch)[0]
        with late(4):
            got = task.score(task.forward(model, batch), batch)[0]
    for name, (sums, counts) in want.items():
        torch.testing.assert_close(got[name][0], sums, rtol=1e-6, atol=1e-6)
        assert torch.equal(got[name][1], counts)


def test_bf16_is_no_less_exact() -> None:
    torch.manual_seed(1)
    head, x = torch.nn.Linear(64, 301), torch.randn(190, 64, requires_grad=True)
    targets = torch.randint(301, (190,))
    exact = F.cross_entropy(
        F.linear(x.double(), head.weight.double(), head.bias.double()), targets, reduction="sum"
    )
    inputs = [x, head.weight, head.bias]
    wanted = torch.autograd.grad(exact, inputs)
    errors = []
    for chunk in ("off", 17):
        with torch.autocast("cpu", torch.bfloat16), late(chunk):
            total = cross_entropy(logits_of(x, head, 301), targets)
            found = torch.autograd.grad(total, inputs)
        errors.append([float((a - b).norm()) for a, b in zip(found, wanted, strict=True)])
    assert all(b <= 1.05 * a for a, b in zip(*errors, strict=True)), errors


def test_small_logits_and_plugins_that_say_nothing_get_tensors() -> None:
    model, batch, task = built("own"), batch_of("own"), task_of("own")

    class Mine(type(task)):  # type: ignore[misc]
        """A task of a plugin, which reads tensors."""

    assert task.takes_late
    assert not Mine.takes_late
    with late("auto"):
        assert torch.is_tensor(model(batch["tokens"]))
    head = torch.nn.Linear(4, 1 << 18)
    with late("auto"):
        assert is_late(logits_of(torch.zeros(256, 4), head, 1 << 18))
    with torch.autocast("cpu", torch.float16), late(2):
        assert torch.is_tensor(logits_of(torch.zeros(4, 4), torch.nn.Linear(4, 5), 5))


def test_judging_no_rows() -> None:
    head = torch.nn.Linear(4, 5)
    with late(1), torch.no_grad():
        logits = logits_of(torch.zeros(1, 2, 4), head, 5)
        nats, right = token_nll(logits, torch.full((1, 2), -1))
        assert float(cross_entropy(logits, torch.full((1, 2), -1))) == 0
    assert not nats.any()
    assert not right.any()
