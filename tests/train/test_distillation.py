"""Learning from a teacher: the loss by its formula, its gradient, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from conftest import losses

from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.draw import KEY
from bigmodel_cli.errors import SpecError
from bigmodel_cli.models import MODELS
from bigmodel_cli.tasks import TASKS
from bigmodel_cli.teacher_options import DistillOptions
from bigmodel_cli.train.distillation import Distillation

Cli = Callable[..., Any]
VOCAB = 23
INFO = {
    "causal_lm": DatasetInfo(vocab_size=VOCAB, context=9),
    "masked_lm": DatasetInfo(vocab_size=VOCAB, context=9),
    "classification": DatasetInfo(vocab_size=VOCAB, context=9, classes=("a", "b", "c")),
}
MODEL = {"causal_lm": "decoder", "masked_lm": "encoder", "classification": "encoder"}


def sets(*changes: str) -> list[str]:
    return [w for c in changes for w in ("--set", c)]


def built(task: str, layers: int, seed: int) -> Any:
    torch.manual_seed(seed)
    block = {"repeat": layers, "mixer": {"type": "attention", "num_heads": 3}, "ffn": "gelu"}
    options = {"type": MODEL[task], "dim": 12, "blocks": [block]}
    model = MODELS[MODEL[task]].model_validate(options).build(INFO[task])
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def batch_of(task: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(5)
    tokens = torch.randint(VOCAB, (4, 10))
    tokens[1, 6:] = tokens[3, 4:] = -1
    label = {"label": torch.tensor([0, 2, 1, 2])} if task == "classification" else {}
    return {"tokens": tokens, KEY: torch.arange(4) * 77, **label}


@pytest.mark.parametrize("hidden", [0.0, 0.7])
@pytest.mark.parametrize("kind", sorted(MODEL))
def test_the_loss_is_that_of_the_formula(kind: str, hidden: float) -> None:
    student, teacher = built(kind, 2, 1), built(kind, 5, 2)
    task = TASKS[kind].model_validate({"type": kind}).build(INFO[kind])
    options = DistillOptions(teacher="", weight=0.3, temperature=1.7, hidden=hidden)
    loaded: Any = SimpleNamespace(model=teacher)
    batch = batch_of(kind)
    objective = Distillation(task, loaded, options, student)
    total, count = objective(student, batch)
    total.backward()
    gradient = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}
    assert all(p.grad is None for p in teacher.parameters())

    student.zero_grad()
    streams: list[list[torch.Tensor]] = [[], []]
    for model, kept, chosen in ((student, streams[0], (0, 1)), (teacher, streams[1], (1, 4))):
        for index in chosen:
            model.blocks[index].register_forward_hook(
                lambda m, i, o, kept=kept: kept.append(o)  # type: ignore[misc]
            )
    outputs, taught = task.forward(student, batch), task.forward(teacher, batch)
    plain, n = task.loss(outputs, batch)
    if kind == "causal_lm":
        real = batch["tokens"][:, 1:] >= 0
        own, theirs = outputs[real], taught[real]
    else:
        own, theirs = (y[0] if kind == "masked_lm" else y for y in (outputs, taught))
    p, q = (theirs / 1.7).softmax(-1), (own / 1.7).softmax(-1)
    apart = (p * (p / q).log()).sum() * 1.7**2
    wanted = 0.7 * plain + 0.3 * apart
    if hidden:
        length = streams[0][0].shape[1]
        real = batch["tokens"][:, :length] >= 0
        if kind == "causal_lm":  # a row's last token foretells nothing, and is no input
            real = batch["tokens"][:, 1:] >= 0
        counts = [int((row[1:] >= 0).sum()) for row in batch["tokens"]]
        if kind == "masked_lm":
            counts = outputs[1].sum(1).tolist()
        elif kind == "classification":
            counts = [1] * 4
        for x, y in zip(*streams, strict=True):
            means = [((a - b)[r] ** 2).mean() for a, b, r in zip(x, y, real, strict=True)]
            wanted = wanted + hidden * sum(m * c for m, c in zip(means, counts, strict=True)) / 2
    assert float(total) == pytest.approx(float(wanted), rel=1e-5)
    assert int(count) == int(n)
    wanted.backward()
    for name, parameter in student.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("causal_lm", {}),
        ("masked_lm", {"mask_prob": 0.4}),
        ("classification", {}),
        ("classification", {"class_weights": {"a": 4.0, "c": 0.3}}),
    ],
)
def test_micro_batches_change_neither_loss_nor_gradient(kind: str, more: dict[str, Any]) -> None:
    student, teacher = built(kind, 2, 1), built(kind, 4, 2)
    task = TASKS[kind].model_validate({"type": kind, **more}).build(INFO[kind])
    options = DistillOptions(teacher="", weight=0.6, temperature=1.3, hidden=0.9)
    loaded: Any = SimpleNamespace(model=teacher)
    objective = Distillation(task, loaded, options, student)
    batch = batch_of(kind)
    if kind == "causal_lm":
        torch.manual_seed(8)
        batch["loss_mask"] = torch.rand(4, 10) < 0.5
    found = []
    for cuts in ((0, 4), (0, 1, 3, 4)):
        student.zero_grad()
        sums = torch.zeros(2)
        for a, b in pairwise(cuts):
            total, count = objective(student, {n: t[a:b] for n, t in batch.items()})
            total.backward()
            sums += torch.stack([total.detach(), count.float()])
        gradient = [p.grad.flatten() for p in student.parameters() if p.grad is not None]
        found.append((float(sums[0] / sums[1]), torch.cat(gradient) / sums[1]))
    assert found[0][0] == pytest.approx(found[1][0], rel=1e-5)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-5)


def test_validations_keep_no_streams() -> None:
    student, teacher = built("causal_lm", 2, 1), built("causal_lm", 3, 2)
    task = TASKS["causal_lm"].model_validate({"type": "causal_lm"}).build(INFO["causal_lm"])
    loaded: Any = SimpleNamespace(model=teacher)
    objective = Distillation(task, loaded, DistillOptions(teacher="", hidden=1.0), student)
    batch = batch_of("causal_lm")
    objective(student, batch)
    assert objective.own.tell is None
    assert objective.theirs.tell is None
    task.forward(student, batch, training=False)


def test_streams_of_other_lengths_are_refused() -> None:
    info = DatasetInfo(image_shape=(1, 8, 8), classes=("a", "b"))
    block = {"mixer": {"type": "attention", "num_heads": 2}, "ffn": "gelu"}
    student, teacher = (
        MODELS["vit"]
        .model_validate({"type": "vit", "dim": 8, "patch": patch, "blocks": [block]})
        .build(info)
        for patch in (4, 2)
    )
    task = TASKS["classification"].model_validate({"type": "classification"}).build(info)
    loaded: Any = SimpleNamespace(model=teacher)
    objective = Distillation(task, loaded, DistillOptions(teacher="", hidden=1.0), student)
    batch = {"image": torch.randn(2, 1, 8, 8), "label": torch.tensor([0, 1])}
    with pytest.raises(SpecError, match=r"has 5 positions, and the teacher's 17"):
        objective(student, batch)


def test_a_student_learns_from_a_teacher_and_resumes(decoder_spec: Path, cli: Cli) -> None:
    teacher = cli("pretrain", decoder_spec, "--out", "teacher", *sets("train.steps=30")).out.strip()
    changes = sets(
        f"distill={{teacher: {teacher}, weight: 0.9, hidden: 0.1}}",
        f"data.tokenizer={{type: file, path: {teacher}/tokenizer.json}}",
    )
    whole = cli("pretrain", decoder_spec, "--out", "whole", *changes, *sets("train.steps=4"))
    assert whole.status == 0, whole.err
    assert f"teacher: {teacher}" in whole.err
    cli("pretrain", decoder_spec, "--out", "half", *changes, *sets("train.steps=2"))
    resumed = cli("pretrain", "--resume", "--out", "half", *sets("train.steps=4"))
    assert resumed.status == 0, resumed.err
    assert losses(Path("half")) == losses(Path("whole"))
    plain = cli("pretrain", decoder_spec, "--out", "plain", *sets("train.steps=4"))
    assert plain.status == 0
    assert losses(Path("plain"))[4] != losses(Path("whole"))[4]


def test_teachers_that_cannot_teach_are_refused(
    decoder_spec: Path, cnn_spec: Path, cli: Cli
) -> None:
    teacher = cli("pretrain", decoder_spec, "--out", "teacher", *sets("train.steps=1")).out.strip()
    for spec, change, message in (
        (cnn_spec, "", "was trained for causal_lm, and the task is classification"),
        (decoder_spec, "data.tokenizer=bytes", "has another tokenizer"),
        (decoder_spec, "model.dim=24", "the teacher's stream is"),
    ):
        words = sets(f"distill={{teacher: {teacher}, hidden: 1.0}}", *filter(None, [change]))
        result = cli("pretrain", spec, *words)
        assert result.status == 2, result.err
        assert message in result.err
    assert json.loads(Path("teacher/status.json").read_text())["state"] == "done"


def test_what_dpo_made_teaches_a_language_model(cli: Cli) -> None:
    """It has the head of one; what it is taught to prefer has no probabilities of its own."""
    rows = [{"prompt": f"a {i}", "chosen": "no", "rejected": "yes"} for i in range(8)]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    chats = [{"prompt": f"a {i}", "completion": "no"} for i in range(8)]
    Path("chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    train = "train: {steps: 2, batch_size: 4, precision: fp32, compile: 'off'}\n"
    chat = "data: {type: chat, train: [chats.jsonl], context: 48, tokenizer: bytes}\n"
    pairs = "data: {type: preferences, train: [pairs.jsonl], context: 48, tokenizer: bytes}\n"
    model = (
        "model: {type: decoder, dim: 8, blocks: [{repeat: 2, mixer: {type: attention,"
        " num_heads: 2}, ffn: swiglu}]}\n"
    )
    Path("a.yaml").write_text(f"{model}{chat}task: causal_lm\n{train}")
    Path("b.yaml").write_text(f"{pairs}task: dpo\n{train}")
    assert cli("pretrain", "a.yaml", "--out", "a").status == 0
    assert cli("finetune", "--from", "a", "b.yaml", "--out", "b").status == 0
    taught = sets("distill={teacher: b, hidden: 0.5}", "model.blocks.0.repeat=1")
    result = cli("pretrain", "a.yaml", "--out", "c", *taught)
    assert result.status == 0, result.err
    assert "teacher: b" in result.err
    for extra in ((), ("--dry-run",)):
        result = cli("finetune", "--from", "a", "b.yaml", *sets("distill={teacher: a}"), *extra)
        assert result.status == 2
        assert "task.type: dpo has no probabilities to learn from a teacher" in result.err


def test_a_teacher_is_held_as_it_is_computed_with() -> None:
    """In bf16 half of its bytes, and the same steps to the bit."""
    student, teacher = built("classification", 2, 1), built("classification", 5, 2)
    task = (
        TASKS["classification"]
        .model_validate({"type": "classification"})
        .build(INFO["classification"])
    )
    options = DistillOptions(teacher="", weight=0.8, temperature=1.3, hidden=0.5)
    loaded: Any = SimpleNamespace(model=teacher)
    objective = Distillation(task, loaded, options, student)
    totals = []
    for _ in range(2):
        with torch.autocast("cpu", torch.bfloat16):
            totals.append(objective(student, batch_of("classification"))[0].item())
        objective.hold("bf16")
    assert totals[0] == totals[1]
    kinds = [p.dtype for p in teacher.parameters() if p.dim() > 1]
    assert kinds.count(torch.bfloat16) == 5 * 4 + 1  # all but the tables
