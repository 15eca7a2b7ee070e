"""Micro-batches that do not fit are divided: the batch and its loss stay, and a resumed run divides
where the first one did.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Result, digests, losses
from torch import Tensor

from bigmodel_cli.errors import ResourceError, is_out_of_memory
from bigmodel_cli.optim import muon
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.tasks.causal_lm import CausalLM
from bigmodel_cli.tasks.classification import Classification
from bigmodel_cli.tasks.seq2seq import Seq2SeqTask
from bigmodel_cli.train import autotune as choose
from bigmodel_cli.train.smaller import Division, divided, more_pieces, rows_of

Cli = Callable[..., Result]
TEXTS: list[str] = [
    " ".join(["ab", "cd", "e", "fgh"][(i + j) % 4] for j in range(1 + i % 5)) for i in range(60)
]
PAIRS = """\
model:
  type: seq2seq
  dim: 16
  encoder: [{mixer: {type: attention, num_heads: 2}, ffn: {type: relu}}]
  decoder: [{mixer: {type: attention, num_heads: 2}, cross: {num_heads: 2}, ffn: {type: relu}}]
data: {type: pairs, source: [a.txt], target: [b.txt], val_fraction: 0,
  tokenizer: {type: characters}}
task: {type: seq2seq}
train: {steps: 6, batch_tokens: 200, precision: fp32, compile: "off", log_every: 1,
  checkpoint_every: 3}
"""


class Killed(BaseException):
    """As a kill: nothing is written after it."""


def sets(*changes: str) -> list[str]:
    return [w for c in changes for w in ("--set", c)]


def records(run: str, name: str) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (Path(run) / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if name in line]


def small_memory(
    monkeypatch: pytest.MonkeyPatch,
    task: type,
    most: int,
    since: int,
    error: Callable[[], Exception],
    killed_at: int = 0,
) -> None:
    """From call `since` of the loss on, the passes have room for so many rows; call `killed_at` is
    the end of the process.
    """
    honest: Any = task.loss  # type: ignore[attr-defined]
    calls: list[int] = []

    def loss(self: Any, outputs: Any, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        calls.append(1)
        if len(calls) == killed_at:
            raise Killed
        # random numbers and statistics have moved
        result: tuple[Tensor, Tensor] = honest(self, outputs, batch)
        if len(calls) >= since and len(next(iter(batch.values()))) > most:
            raise error()
        return result

    monkeypatch.setattr(task, "loss", loss)


def no_dropout(spec: Path) -> list[str]:
    if "cnn" in spec.name:
        return sets("model.layers.0.norm=none", "model.layers.3.p=0.0", "train.ema=null")
    return sets(
        "model.dropout=0.0",
        "model.blocks.0.mixer.dropout=0.0",
        "train.micro_batch_size=4",
        "train.batch_size=8",
    )


@pytest.mark.parametrize(
    ("family", "task", "most", "error", "micro_batch_size"),
    [
        ("decoder_spec", CausalLM, 1, MemoryError, 1),
        ("cnn_spec", Classification, 70, lambda: torch.OutOfMemoryError("CUDA out of memory."), 64),
    ],
)
def test_out_of_memory_divides_the_micro_batch_and_leaves_the_loss_as_it_is(
    family: str, task: type, most: int, error: Any, micro_batch_size: int,
    request: pytest.FixtureRequest, cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """Row 41: the global batch and the loss are unchanged, and it is logged."""
    spec = request.getfixturevalue(family)
    words = [
        "pretrain",
        spec,
        *no_dropout(spec),
        *sets("train.steps=6", "train.validate_every=null"),
    ]
    assert cli(*words, "--out", "whole").status == 0
    small_memory(monkeypatch, task, most, 5, error)
    result = cli(*words, "--out", "run")
    assert result.status == 0, result.err
    whole, run = losses(Path("whole")), losses(Path("run"))
    assert run.keys() == whole.keys()
    assert run == pytest.approx(whole, rel=1e-4)
    (change,) = records("run", "micro_batch_size")
    assert change["micro_batch_size"] == micro_batch_size
    assert result.err.count("the batch and its loss stay") == 2
    assert f"step {change['step']}: out of memory with a micro-batch of" in result.err


def test_micro_batches_counted_in_tokens_are_divided_too(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 41, with train.batch_tokens."""
    Path("a.txt").write_text("\n".join(TEXTS) + "\n")
    Path("b.txt").write_text("\n".join(text[::-1] for text in TEXTS) + "\n")
    Path("pairs.yaml").write_text(PAIRS)
    words = ["pretrain", "pairs.yaml", "--set", "task.max_tokens=2"]
    assert cli(*words, "--out", "whole").status == 0
    small_memory(
        monkeypatch,
        Seq2SeqTask,
        6,
        3,
        lambda: RuntimeError("DefaultCPUAllocator: can't allocate memory: you ..."),
    )
    result = cli(*words, "--out", "run")
    assert result.status == 0, result.err
    assert losses(Path("run")) == pytest.approx(losses(Path("whole")), rel=1e-4)
    assert records("run", "micro_batch_size")
    assert "in pieces of 100" in result.err


@pytest.mark.parametrize(
    "most", [2, 1], ids=["and training fits", "and the first step has less room"]
)
def test_the_first_measurement_of_how_to_compute_divides_too(
    most: int, decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 41: memory does not suffice where precision is chosen; training begins with what fits,
    and remembers what did.
    """
    honest: Any = choose._one_pass

    def one_pass(*arguments: Any) -> float:
        if rows_of(arguments[2]) > 2:
            raise MemoryError
        return float(honest(*arguments))

    monkeypatch.setattr(choose, "_one_pass", one_pass)
    small_memory(monkeypatch, CausalLM, most, 1, MemoryError)
    result = cli(
        "pretrain", decoder_spec, "--out", "run", *sets("train.precision=auto", "train.steps=2")
    )
    assert result.status == 0, result.err
    assert [r["micro_batch_size"] for r in records("run", "micro_batch_size")] == [most]
    assert result.err.count("out of memory with a micro-batch of 4 samples") == 1
    assert json.loads(Path("run/micro_batches.json").read_text())["pieces"] == {"0": 4 // most}


@pytest.mark.parametrize("family", ["decoder_spec", "cnn_spec"])
@pytest.mark.parametrize(
    "again", [True, False], ids=["memory stays small", "memory is there again"]
)
def test_a_run_killed_after_the_change_resumes_to_the_same_bits(
    family: str,
    again: bool,
    request: pytest.FixtureRequest,
    cli: Cli,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Row 41: dropout, statistics and averages too are those of the run that nobody killed,
    whatever memory there is later.
    """
    spec = request.getfixturevalue(family)
    task, most = (Classification, 128) if "cnn" in family else (CausalLM, 2)
    words = ["pretrain", spec, *sets("train.steps=8")]
    with monkeypatch.context() as patch:
        small_memory(patch, task, most, 6, MemoryError)
        whole = cli(*words, "--out", "whole")
    assert whole.status == 0, whole.err
    # one call a step, but two in step 6, and two pieces from there on
    with monkeypatch.context() as patch:
        small_memory(patch, task, most, 6, MemoryError, killed_at=11)
        with pytest.raises(Killed):
            cli(*words, "--out", "run")
    # the checkpoint is of step 4: call 2 is the first of step 6
    with monkeypatch.context() as patch:
        small_memory(patch, task, most if again else 10**6, 2, MemoryError)
        resumed = cli(*words, "--out", "run", "--resume")
    assert resumed.status == 0, resumed.err
    assert digests(Path(resumed.out.strip())) == digests(Path(whole.out.strip()))
    assert losses(Path("run")) == losses(Path("whole"))
    assert (
        records("run", "micro_batch_size")
        == records("whole", "micro_batch_size")
        == [{"step": 6, "micro_batch_size": most}]
    )


def test_an_out_of_memory_update_is_not_applied_twice(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 40 and 41: no smaller micro-batch mends it, and it is half done: status 5, and the
    checkpoint before it is good.
    """
    honest, calls = muon.orthogonal, []

    def orthogonal(*arguments: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 50:  # the second of eight matrices, in step 7
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return honest(*arguments)

    monkeypatch.setattr(muon, "orthogonal", orthogonal)
    result = cli("pretrain", decoder_spec, "--out", "run", *sets("train.optimizer={type: muon}"))
    assert result.status == 5, result.err
    assert "out of memory (CUDA out of memory.); it was the update of the weights" in result.err
    assert "done again" not in result.err
    status = json.loads(Path("run/status.json").read_text())
    assert (status["state"], status["last_checkpoint"]) == ("failed", "checkpoints/step-00000004")


def test_one_sample_that_does_not_fit_ends_the_run_with_a_remedy(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 40 and 69: status 5 with a remedy, in status.json too; the last checkpoint resumes."""
    whole = cli("pretrain", decoder_spec, "--out", "whole")
    with monkeypatch.context() as patch:
        small_memory(patch, CausalLM, 0, 7, MemoryError)
        result = cli("pretrain", decoder_spec, "--out", "run")
    assert result.status == 5
    assert (
        "out of memory with one sample at once; make the model, its context or its images smaller"
        in result.err
    )
    status = json.loads(Path("run/status.json").read_text())
    assert (status["state"], status["code"], status["last_step"]) == ("failed", 5, 4)
    # torn, as by a kill: it has nothing
    Path("run/micro_batches.json").write_text('{"pieces": {"0": ')
    resumed = cli("pretrain", decoder_spec, "--out", "run", "--resume")
    assert (
        digests(Path(resumed.out.strip()))["model.safetensors"]
        == digests(Path(whole.out.strip()))["model.safetensors"]
    )


def test_a_validation_that_does_not_fit_takes_fewer_items_at_once(
    cnn_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 41: in a validation while training, and in `eval`: the figures are the same."""
    words = ["pretrain", cnn_spec, *sets("train.steps=4", "train.validate_every=2")]
    assert cli(*words, "--out", "whole").status == 0
    whole = json.loads(cli("eval", "whole", "--json").out)
    honest = Classification.score

    def score(self: Any, outputs: Any, batch: dict[str, Tensor]) -> Any:
        if len(batch["label"]) > 50:
            raise MemoryError
        return honest(self, outputs, batch)

    monkeypatch.setattr(Classification, "score", score)
    result = cli(*words, "--out", "run")
    assert result.status == 0, result.err
    assert "out of memory in a validation of" in result.err
    for ours, theirs in zip(records("run", "val"), records("whole", "val"), strict=True):
        assert ours["val"] == pytest.approx(theirs["val"], rel=1e-5)
    assert [r["step"] for r in records("run", "validation_batch")] == [2]
    evaluated = cli("eval", "run", "--json")
    assert evaluated.status == 0, evaluated.err
    assert json.loads(evaluated.out)["accuracy"] == pytest.approx(whole["accuracy"])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (np.exceptions.AxisError("axis"), False),
        (OSError(12, "Cannot allocate memory"), True),
        (OSError(28, "No space left on device"), False),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: can't allocate"
                " memory"
            ),
            True,
        ),
        (RuntimeError("std::bad_alloc"), True),
        (RuntimeError("unable to mmap 80 bytes from file <x>: Cannot allocate memory (12)"), True),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate"), True),
        (RuntimeError("shapes differ"), False),
        (ValueError("out of memory"), False),
    ],
    ids=str,
)
def test_errors_that_count_as_out_of_memory(error: Exception, expected: bool) -> None:
    """Row 69."""
    assert is_out_of_memory(error) is expected


def test_an_array_that_numpy_cannot_make_is_out_of_memory() -> None:
    """Row 69."""
    with pytest.raises(MemoryError) as found:
        np.empty(1 << 57)
    assert is_out_of_memory(found.value)


def test_pieces_are_of_one_size_where_samples_are_counted() -> None:
    """Row 41: 12 samples pass as 12, 6, 3, 1."""
    options = TrainOptions(steps=1, batch_size=12)
    found, pieces = [], 1
    while pieces < 12:
        pieces = more_pieces(pieces, options, 12)
        found.append([len(part["x"]) for part in divided([{"x": torch.zeros(12, 2)}], pieces)])
    assert found == [[6] * 2, [3] * 4, [1] * 12]
    with pytest.raises(ResourceError, match="one sample at once"):
        more_pieces(pieces, options, 12)
    many = [{"x": torch.arange(5)}, {"x": torch.arange(2)}]  # as by tokens
    assert [part["x"].tolist() for part in divided(many, 3)] == [[0, 1], [2, 3], [4], [0], [1]]


def test_a_division_is_a_function_of_the_batchs_number() -> None:
    """Row 41."""
    division = Division({5: 2, 9: 4}, {6: 32})
    assert [division.at(batch) for batch in (0, 4, 5, 8, 9, 99)] == [1, 1, 2, 2, 4, 4]
    assert [division.validation_at(batch) for batch in (5, 6)] == [None, 32]
    other = Division()
    other.add(json.loads(json.dumps(division.to_json())))
    assert other == division
    with pytest.raises(ValueError, match="pieces: 0"):
        other.add({"pieces": {"1": 0}})
