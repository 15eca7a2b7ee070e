"""A teacher that answers once teaches as one that answers each batch: the loss, runs, refusals."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result, digests, losses

from bigmodel_cli.data import Split
from bigmodel_cli.errors import ResourceError
from bigmodel_cli.loaded import load_checkpoint
from bigmodel_cli.spec import load
from bigmodel_cli.train.answering import answered
from bigmodel_cli.train.answers import LOGITS, STREAMS, Answers
from bigmodel_cli.train.distillation import Recalled, row_errors
from bigmodel_cli.train.foreseeing import check_weights
from bigmodel_cli.train.setup import open_run, open_task

Cli = Callable[..., Result]
BLOCK = "{mixer: {type: attention, num_heads: 3, dropout: 0.2}, ffn: gelu}"
ENCODER = f"{{type: encoder, dim: 12, dropout: 0.3, blocks: [{{repeat: 3, {BLOCK[1:]}]}}"
TRAIN = (
    "train: {steps: 7, batch_size: 6, micro_batch_size: 3, precision: fp32, compile: 'off',"
    " memory_format: contiguous, log_every: 1}\n"
)
ROWS = {
    "table": (
        "data: {type: table, train: [rows.tsv], text: [0], label: 1, context: 30, val_fraction: 0,"
        " tokenizer: bytes}\ntask: {type: classification, class_weights: {a: 2.0, c: 0.5}}\n"
    ),
    "tags": (
        "data: {type: conll, train: [rows.conll], context: 40, val_fraction: 0,"
        " tokenizer: bytes}\ntask: tagging\n"
    ),
    "chat": (
        "data: {type: chat, train: [chats.jsonl], context: 64, val_fraction: 0, tokenizer: bytes}\n"
        "task: causal_lm\n"
    ),
    "pairs": (
        "data: {type: pairs, source: [a.txt], target: [b.txt], val_fraction: 0, context: 40,"
        " tokenizer: bytes}\ntask: seq2seq\n"
    ),
}
MODEL = {
    "table": f"model: {ENCODER}\n",
    "tags": f"model: {ENCODER}\n",
    "chat": f"model: {ENCODER.replace('encoder', 'decoder')}\n",
    "pairs": f"model: {{type: seq2seq, dim: 12, encoder: [{BLOCK}], decoder: [{BLOCK[:-1]}, cross:"
    " {num_heads: 3}}]}\n",
}  # fmt: skip
COMPARED = {"table": 0.6, "tags": 0.6, "chat": 0.6, "pairs": 0.0}  # a translator has two streams


def sets(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def write_rows() -> None:
    """Thirteen ragged rows of each kind, an odd number, so that batches reach over epochs."""
    texts = [
        "".join(chr(97 + (7 * i + j) % 26) for j in range(1 + (5 * i) % 17)) for i in range(13)
    ]
    Path("rows.tsv").write_text("\n".join(f"{t}\t{'abc'[i % 3]}" for i, t in enumerate(texts)))
    sentences = [[f"{w} {'OX'[(i + j) % 2]}" for j, w in enumerate(t)] for i, t in enumerate(texts)]
    Path("rows.conll").write_text("\n\n".join("\n".join(s) for s in sentences) + "\n")
    chats = [{"prompt": t, "completion": t[::-1]} for t in texts]
    Path("chats.jsonl").write_text("\n".join(map(json.dumps, chats)))
    Path("a.txt").write_text("\n".join(texts))
    Path("b.txt").write_text("\n".join(t[::-1] for t in texts))


def taught_by(cli: Cli, kind: str) -> tuple[Path, str]:
    """The spec of a student of that kind of data, and a deeper teacher of the same."""
    write_rows()
    spec = Path("spec.yaml")
    spec.write_text(MODEL[kind] + ROWS[kind] + TRAIN)
    result = cli("pretrain", spec, "--out", "teacher", *sets("train.optimizer.lr=0.05"))
    assert result.status == 0, result.err
    if kind != "pairs":
        spec.write_text(spec.read_text().replace("repeat: 3", "repeat: 1"))
    return spec, result.out.strip()


@pytest.mark.parametrize("kind", sorted(ROWS))
def test_runs_are_those_of_a_teacher_that_answers_each_batch(kind: str, cli: Cli) -> None:
    """Over three epochs, in accumulated micro-batches of other rows, the student with dropout."""
    spec, teacher = taught_by(cli, kind)
    found = {}
    for hidden in {0.0, COMPARED[kind]}:
        options = f"teacher: {teacher}, weight: 0.8, temperature: 1.6, hidden: {hidden}"
        for name, more in (("live", ""), ("once", ", once: true")):
            run = f"{name}-{hidden}"
            result = cli("pretrain", spec, "--out", run, *sets(f"distill={{{options}{more}}}"))
            assert result.status == 0, result.err
            found[run] = losses(Path(run))
        assert "the teacher has answered the 13 training rows" in result.err
        once, live = found[f"once-{hidden}"], found[f"live-{hidden}"]
        assert len(live) == 7
        for step, loss in live.items():
            assert once[step] == pytest.approx(loss, rel=2e-3 if hidden else 2e-5), step
        if kind == "chat":
            break
    assert {p.name for p in Path(run).iterdir()} == {p.name for p in Path("live-0.0").iterdir()}


def test_a_resumed_run_asks_again_and_ends_alike(cli: Cli) -> None:
    spec, teacher = taught_by(cli, "table")
    taught = sets(f"distill={{teacher: {teacher}, weight: 0.7, hidden: 0.3, once: true}}")
    whole = cli("pretrain", spec, "--out", "whole", *taught)
    half = cli("pretrain", spec, "--out", "half", *taught, *sets("train.steps=3"))
    assert (whole.status, half.status) == (0, 0)
    resumed = cli("pretrain", "--resume", "--out", "half", *sets("train.steps=7"))
    assert resumed.status == 0, resumed.err
    assert "the teacher has answered" in resumed.err
    assert losses(Path("half")) == losses(Path("whole"))
    assert digests(Path(resumed.out.strip())) == digests(Path(whole.out.strip()))
    again = cli("pretrain", "--resume", "--out", "half")
    assert again.status == 0
    assert "the teacher has answered" not in again.err


def loss_of_one(model: Any, batch: Any, label: int) -> Any:
    """(logits of a row alone, its stream after each block), by hooks of this test's own."""
    streams: list[torch.Tensor] = []
    handles = [b.register_forward_hook(lambda m, i, o: streams.append(o[0])) for b in model.blocks]
    logits = model(
        batch["tokens"][label : label + 1][:, : int((batch["tokens"][label] >= 0).sum())]
    )
    for handle in handles:
        handle.remove()
    return logits[0].float(), streams


def test_the_loss_is_that_of_the_formula_row_by_row(cli: Cli) -> None:
    """Each row alone, unpadded, the teacher in evaluation; batches of another epoch and order."""
    spec, teacher = taught_by(cli, "table")
    distill = (
        f"distill={{teacher: {teacher}, weight: 0.8, temperature: 3.1, hidden: 0.4, once: true}}"
    )
    opened = open_run(load(spec, [distill]))
    task, cpu = open_task(opened.spec, opened.data), torch.device("cpu")
    shapes = check_weights(opened, task, Path())
    assert shapes is not None
    split = answered(opened, task, shapes, cpu, Path()).data.split("train")
    theirs = load_checkpoint(Path(teacher), "cpu", tell=lambda _: None).model
    torch.manual_seed(4)
    student = opened.spec.model.build(opened.data.info).eval()
    for p in student.parameters():
        torch.nn.init.normal_(p, std=0.3)
    options = opened.spec.distill
    assert options is not None
    objective = Recalled(task, options, student)
    batch = split.batch(np.array([11, 0, 12, 5, 3]), 9, 1, True)
    total, count = objective(student, batch)
    total.backward()
    gradient = {n: p.grad.clone() for n, p in student.named_parameters() if p.grad is not None}

    student.zero_grad()
    wanted: Any = 0.0
    factor = {0: 2.0, 1: 1.0, 2: 0.5}
    for row, label in enumerate(batch["label"].tolist()):
        own, streams = loss_of_one(student, batch, row)
        with torch.no_grad():
            taught, deep = loss_of_one(theirs, batch, row)
        q, p = (own / 3.1).softmax(0), (taught / 3.1).softmax(0)
        plain, apart = -own.log_softmax(0)[label], (p * (p / q).log()).sum() * 3.1**2
        error = ((streams[0] - deep[2].bfloat16().float()) ** 2).mean()
        wanted = wanted + factor[label] * (0.2 * plain + 0.8 * apart + 0.4 * error)
    assert float(total.detach()) == pytest.approx(float(wanted.detach()), rel=1e-4)
    assert float(count) == sum(factor[label] for label in batch["label"].tolist())
    wanted.backward()
    for name, p in student.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(gradient[name], p.grad, rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("ragged", [False, True])
def test_errors_of_rows_and_their_gradient(ragged: bool) -> None:
    torch.manual_seed(0)
    x, y = torch.randn(3, 5, 7, requires_grad=True), torch.randn(3, 5, 7)
    real = torch.tensor([[1, 1, 1, 0, 0], [1] * 5, [0] * 5]).bool() if ragged else None
    weights = torch.tensor([0.3, -2.0, 5.0])
    found = row_errors(x, y, real)
    (gradient,) = torch.autograd.grad((found * weights).sum(), x)
    kept = torch.ones(3, 5, dtype=torch.bool) if real is None else real
    wanted = torch.stack(
        [
            ((a - b)[k] ** 2).mean() if k.any() else a.sum() * 0
            for a, b, k in zip(x, y, kept, strict=True)
        ]
    )
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(gradient, torch.autograd.grad((wanted * weights).sum(), x)[0])
    with torch.autocast("cpu", torch.bfloat16):
        (rounded,) = torch.autograd.grad((row_errors(x, y, real) * weights).sum(), x)
    torch.testing.assert_close(rounded, gradient, rtol=1e-2, atol=1e-3)


IMAGES = """\
model: {type: vit, dim: 12, patch: 4, blocks: [{repeat: 2, mixer: {type: attention, num_heads: 2},
  ffn: gelu}]}
data: {type: digits, workers: 1, val_fraction: 0.9}
task: classification
train: {steps: 5, batch_size: 48, precision: fp32, compile: "off", memory_format: channels_last,
  log_every: 1}
"""


def test_images_by_loader_workers_have_their_answers(cli: Cli) -> None:
    Path("a.yaml").write_text(IMAGES)
    teacher = cli("pretrain", "a.yaml", "--out", "teacher").out.strip()
    found = []
    for name, more in (("live", ""), ("once", ", once: true")):
        changes = sets(
            f"distill={{teacher: {teacher}, hidden: 0.5{more}}}", "model.blocks.0.repeat=1"
        )
        result = cli("pretrain", "a.yaml", "--out", name, *changes)
        assert result.status == 0, result.err
        found.append(losses(Path(name)))
    assert list(found[0].values()) == pytest.approx(list(found[1].values()), rel=1e-3)
    patches = sets(f"distill={{teacher: {teacher}, hidden: 0.5, once: true}}", "model.patch=2")
    result = cli("pretrain", "a.yaml", "--out", "finer", *patches)
    assert result.status == 2
    assert "the student's stream has 17 positions, and the teacher's 5" in result.err


MASKED = "task=masked_lm"
REFUSED: dict[str, tuple[str, tuple[str, ...], str]] = {
    "hidden tokens": (
        "table", ("data.label=null", MASKED), "task.type: masked_lm draws anew in each epoch",
    ),
    "tokens left out": (
        "table", ("data.token_dropout=0.1",), "data.token_dropout leaves out other tokens",
    ),
    "windows": (
        "chat", ("data={type: text, files: [a.txt], context: 8, tokenizer: bytes}",),
        "windows of a text begin elsewhere in each epoch",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_rows_that_change_are_refused_before_the_run(name: str, cli: Cli) -> None:
    kind, changes, message = REFUSED[name]
    write_rows()
    Path("spec.yaml").write_text(MODEL[kind] + ROWS[kind] + TRAIN)
    teacher = cli("pretrain", "spec.yaml", "--out", "teacher", *sets(*changes)).out.strip()
    text = Path("spec.yaml").read_text()
    Path("spec.yaml").write_text(f"{text}distill:\n  teacher: {teacher}\n  once: true\n")
    for more in (("--dry-run",), ("--out", "run")):
        result = cli("pretrain", "spec.yaml", *sets(*changes), *more)
        assert result.status == 2, result.err
        assert "spec.yaml:7:9: distill.once: " in result.err
        assert message in result.err
    assert not Path("run").exists()


def test_changed_images_and_replayed_ones_are_refused(cnn_spec: Path, cli: Cli) -> None:
    teacher = cli("pretrain", cnn_spec, "--out", "teacher", *sets("train.steps=1")).out.strip()
    once = f"distill={{teacher: {teacher}, once: true}}"
    result = cli("pretrain", cnn_spec, "--dry-run", *sets(once))
    assert (result.status, "data.augment changes images anew" in result.err) == (2, True)
    plain = sets(once, "data.augment=[]")
    assert cli("pretrain", cnn_spec, "--dry-run", *plain).status == 0
    replay = sets(f"data.replay={{spec: {cnn_spec}, share: 0.3}}")
    result = cli("pretrain", cnn_spec, "--dry-run", *plain, *replay)
    assert (result.status, "data.replay takes other items" in result.err) == (2, True)


def test_data_that_promises_too_much_is_found_out(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plugin's split may say that its rows stay the same: some of them are looked at."""
    spec, teacher = taught_by(cli, "table")
    monkeypatch.setattr("bigmodel_cli.data.text.split.Table.redrawn", lambda self: None)
    once = sets(f"distill={{teacher: {teacher}, once: true}}", "data.token_dropout=0.5")
    result = cli("pretrain", spec, "--dry-run", *once)
    assert result.status == 2
    assert "rows have other tokens in each epoch" in result.err
    assert "does not say" in str(Split().redrawn())


def test_answers_that_do_not_fit_the_disk_are_refused(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, teacher = taught_by(cli, "table")
    Usage = namedtuple("Usage", "free")
    found = {}
    for free in (10, 300, 10**6):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: Usage(free))
        once = sets(f"distill={{teacher: {teacher}, hidden: 0.1, once: true}}")
        found[free] = cli("pretrain", spec, "--dry-run", *once)
    assert [result.status for result in found.values()] == [2, 2, 0]
    tokens = sum(3 + (5 * i) % 17 for i in range(13))  # between two marks
    size = (13 * 3 * 4 + tokens * 12 * 2) / 1000
    assert f"answers to 13 training rows take about {size:.1f} kB" in found[10].err
    assert "has 10 B free; leave distill.once out" in found[10].err
    assert "has 300 B free; set distill.hidden to 0, or leave" in found[300].err


@pytest.mark.parametrize(
    ("point", "status", "message"),
    [
        ("teacher.writing:ENOSPC", 5, "could not be written: No space left on device"),
        ("rows that the teacher answers:SIGTERM", 143, "stopped"),
    ],
)
def test_a_fault_while_the_teacher_answers_leaves_nothing(
    point: str, status: int, message: str, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec, teacher = taught_by(cli, "table")
    once = sets(f"distill={{teacher: {teacher}, once: true}}")
    monkeypatch.setenv("BIGMODEL_FAILPOINT", point)
    result = cli("pretrain", spec, "--out", "run", *once)
    assert result.status == status, result.err
    assert message in result.err
    assert not Path("run").exists()


def test_the_file_has_no_name_and_a_cut_one_is_noticed(tmp_path: Path) -> None:
    answers = Answers(tmp_path, 4)
    logits = [torch.randn(2, 3), torch.randn(0, 3)]
    answers.write(np.array([3, 1]), logits, [torch.randn(5, 8), torch.randn(2, 8)])
    assert not list(tmp_path.iterdir())
    found = answers.read(np.array([1, 3]))
    assert torch.equal(found[LOGITS], torch.stack([torch.zeros(2, 3), logits[0]]))
    assert found[STREAMS].shape == (2, 5, 8)
    assert not found[STREAMS][0, 2:].any()
    with pytest.raises(ValueError, match="has not answered row 2"):
        answers.read(np.array([3, 2]))
    answers.file.truncate(20)
    with pytest.raises(ResourceError, match="cut"):
        answers.read(np.array([3]))
