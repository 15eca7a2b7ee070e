"""What a run does when something goes wrong: one message, the right status, and nothing lost."""

from __future__ import annotations

import json
import os
import signal
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import DECODER, Result, digests, losses, write_text
from torch import Tensor
from zygote import Zygote, until

from bigmodel_cli import checkpoints
from bigmodel_cli.roles import named_weights
from bigmodel_cli.rundir import RunDirectory
from bigmodel_cli.tasks import Task
from bigmodel_cli.tasks.causal_lm import CausalLM
from bigmodel_cli.train.observers.log import Log

Cli = Callable[..., Result]


def sets(*changes: str) -> list[str]:
    return [w for c in changes for w in ("--set", c)]


def test_a_full_disk_at_a_save(decoder_spec: Path, cli: Cli, zygote: Zygote) -> None:
    words = ["pretrain", decoder_spec, "--out", "run", *sets("train.checkpoint_every=4")]
    whole = Path(
        cli(
            "pretrain", decoder_spec, "--out", "whole", *sets("train.checkpoint_every=4")
        ).out.strip()
    )
    first = zygote.run(*words, env={"BIGMODEL_FAILPOINT": "train.step:SIGTERM:5"})
    assert first.status == 143
    full = zygote.run(*words, "--resume", limit=20_000)  # the weights are larger
    assert full.status == 5
    assert "a checkpoint was not saved: File too large; it needs" in full.err
    assert "are free. Make room, then go on with --resume" in full.err
    assert not list(Path("run/checkpoints").glob(".draft*"))
    assert checkpoints.newest(Path("run/checkpoints"), lambda text: pytest.fail(text)) is not None
    assert json.loads(Path("run/status.json").read_text())["code"] == 5
    resumed = cli(*words, "--resume")
    assert digests(Path(resumed.out.strip())) == digests(whole)


@pytest.mark.parametrize(
    "point", ["checkpoint.wrote:EIO:9", "checkpoint.rename:ENOSPC:2", "checkpoint.synced:EIO:10"]
)
def test_a_failing_disk_at_a_save(
    point: str, decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bigmodel_cli.failpoints._reached", {})
    monkeypatch.setenv("BIGMODEL_FAILPOINT", point)
    result = cli("pretrain", decoder_spec, "--out", "run")
    assert result.status == 5
    assert "a checkpoint was not saved" in result.err
    assert sorted(p.name for p in Path("run/checkpoints").iterdir()) == [
        "best",
        "last",
        "step-00000004",
    ]
    assert checkpoints.newest(Path("run/checkpoints"), lambda text: pytest.fail(text)) is not None


@pytest.fixture
def someone_else() -> Iterator[Path]:
    """A folder where this process has not root's rights, with a folder `locked` that it may not
    write to.
    """
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        place.chmod(0o777)
        (place / "locked").mkdir()
        (place / "locked").chmod(0o555)
        write_text(place / "text.txt")
        was_root = os.geteuid() == 0
        if was_root:
            os.seteuid(65534)
        try:
            yield place
        finally:
            if was_root:
                os.seteuid(0)


def test_an_output_directory_that_cannot_be_written(
    someone_else: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(someone_else)
    monkeypatch.setenv("XDG_CACHE_HOME", str(someone_else / "cache"))
    Path("decoder.yaml").write_text(DECODER)
    result = cli("pretrain", "decoder.yaml", "--out", "locked/run")
    assert result.status == 5
    assert (
        "locked/run: cannot be written: Permission denied; choose another place with --out"
        in result.err
    )
    assert list(Path("locked").iterdir()) == []
    assert not Path("cache").exists()
    result = cli("pretrain", "decoder.yaml", "--out", "locked")
    assert result.status == 5
    assert stat.S_IMODE(Path("locked").stat().st_mode) == 0o555


def test_an_output_directory_that_holds_something(decoder_spec: Path, cli: Cli) -> None:
    Path("full").mkdir()
    Path("full/mine.txt").write_text("mine")
    result = cli("pretrain", decoder_spec, "--out", "full")
    assert result.status == 2
    assert "holds a run (or other files) already" in result.err
    assert Path("full/mine.txt").read_text() == "mine"


def test_two_runs_into_one_directory(decoder_spec: Path, cli: Cli, zygote: Zygote) -> None:
    first = zygote.start(
        "pretrain",
        decoder_spec,
        "--out",
        "run",
        *sets("train.steps=100000", "train.checkpoint_every=5"),
    )
    until(lambda: Path("run/checkpoints/last").exists())
    second = cli(
        "pretrain",
        decoder_spec,
        "--out",
        "run",
        "--resume",
        *sets("train.steps=100000", "train.checkpoint_every=5"),
    )
    assert second.status == 5
    assert f"run: in use by process {first.pid} on " in second.err
    first.send(signal.SIGKILL)
    first.wait()
    with RunDirectory.open(Path("run"), resume=True) as directory:  # the lock died with its owner
        assert directory.path == Path("run")
    assert checkpoints.newest(Path("run/checkpoints"), lambda text: pytest.fail(text)) is not None


def test_runs_without_a_name_get_directories_of_their_own(decoder_spec: Path, cli: Cli) -> None:
    outs = [cli("pretrain", decoder_spec, *sets("train.steps=2")).out for _ in range(3)]
    assert [o.split("/")[1] for o in outs] == ["decoder", "decoder-2", "decoder-3"]


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_training_ends_at_a_loss_that_is_not_finite(
    poison: float, decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = Path(cli("pretrain", decoder_spec, "--out", "whole").out.strip())
    honest, calls = CausalLM.loss, []

    def poisoned(self: Any, outputs: Any, batch: Any) -> tuple[Tensor, Tensor]:
        calls.append(1)
        loss, count = honest(self, outputs, batch)
        return (loss * poison if len(calls) == 7 else loss), count

    monkeypatch.setattr(CausalLM, "loss", poisoned)
    result = cli("pretrain", decoder_spec, "--out", "run")
    assert result.status == 6
    assert "step 7: the loss is " in result.err
    assert (
        "this step changed nothing, and the last checkpoint is run/checkpoints/step-00000004"
        in result.err
    )
    assert "Lower train.optimizer.lr" in result.err
    assert [p.name for p in Path("run/checkpoints").glob("step-*")] == ["step-00000004"]
    assert max(losses(Path("run"))) == 6
    assert json.loads(Path("run/status.json").read_text())["state"] == "failed"
    monkeypatch.undo()
    os.chdir(decoder_spec.parent)
    resumed = cli("pretrain", decoder_spec, "--out", "run", "--resume")
    assert digests(Path(resumed.out.strip())) == digests(whole)


def test_a_step_that_is_not_finite_touches_neither_weights_nor_optimizer() -> None:
    from bigmodel_cli.optim import AdamWOptions
    from bigmodel_cli.recipe import TrainOptions
    from bigmodel_cli.train.objective import Objective
    from bigmodel_cli.train.state import LossScale, TrainState
    from bigmodel_cli.train.step import train_step

    model = torch.nn.Linear(3, 2)

    class Squares(Task):
        def forward(self, model: Any, batch: Any, training: bool = True) -> Tensor:
            return model(batch["x"])

        def loss(self, outputs: Tensor, batch: Any) -> tuple[Tensor, Tensor]:
            return outputs.square().sum(), torch.tensor(len(batch["x"]))

    task = Objective(Squares())
    state = TrainState(model, AdamWOptions().build(named_weights(model)), ema_decay=0.9)
    options, device = TrainOptions(steps=3, precision="fp32"), torch.device("cpu")
    train_step(state, task, options, [{"x": torch.ones(2, 3)}], device, 0.1)
    before = [
        t.clone()
        for t in (*model.parameters(), *state.optimizer.state_dict().values(), *state.ema.values())
    ]
    result = train_step(
        state,
        task,
        options,
        [{"x": torch.ones(2, 3)}, {"x": torch.full((1, 3), torch.inf)}],
        device,
        0.1,
    )
    assert not result.finite
    after = [*model.parameters(), *state.optimizer.state_dict().values(), *state.ema.values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert state.optimizer.steps == 1
    state.loss_scale = LossScale(8.0, dynamic=True)  # as under fp16
    train_step(state, task, options, [{"x": torch.full((1, 3), torch.inf)}], device, 0.1)
    assert state.loss_scale.value == 4.0
    assert state.optimizer.steps == 1


def test_a_log_that_cannot_be_written_costs_a_warning(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Log.write

    def write(self: Log, record: dict[str, Any]) -> None:
        self.path = Path("/dev/full")
        honest(self, record)

    monkeypatch.setattr(Log, "write", write)
    result = cli("pretrain", decoder_spec, "--out", "run")
    assert result.status == 0, result.err
    assert (
        result.err.count("/dev/full: cannot be written: No space left on device; training goes on")
        == 1
    )
    assert Path(result.out.strip(), "manifest.json").exists()


def test_a_reader_that_closes_stdout_early_is_no_error(decoder_spec: Path, zygote: Zygote) -> None:
    """Row 46: a reader that leaves before the result, and one that takes the first of many."""
    os.mkfifo("pipe")
    child = zygote.start("pretrain", decoder_spec, "--out", "run", stdout="pipe")
    open("pipe").close()
    done = child.wait()
    assert done.status == 0, done.err
    assert "Traceback" not in done.err
    assert "BrokenPipe" not in done.err
    assert checkpoints.find(Path("run")).name == "step-00000012"
    words = ("predict", "run", *["an"] * 50, "--max-tokens", 1)
    child = zygote.start(*words, stdout="pipe")
    with open("pipe") as pipe:
        assert json.loads(pipe.readline())["input"] == "an"
    assert "Traceback" not in child.wait().err


def test_no_escape_codes_where_there_is_no_terminal_or_a_dumb_one(
    decoder_spec: Path, cli: Cli, zygote: Zygote
) -> None:
    result = cli("pretrain", decoder_spec, "--out", "run", "--json")
    assert result.status == 0
    assert "\x1b" not in result.err + result.out
    assert "\r" not in result.err + result.out
    assert json.loads(result.out)["checkpoint"] == "run/checkpoints/step-00000012"
    for line in Path("run/metrics.jsonl").read_text().splitlines():
        json.loads(line)

    def shown(out: str, **env: str) -> str:
        """What is on a terminal of these variables."""
        words = ("pretrain", decoder_spec, "--out", out)
        ended, text = zygote.on_a_terminal(*words, env={"COLUMNS": "100", **env})
        assert ended.status == 0, text
        return text

    dumb = shown("dumb", TERM="dumb")
    assert "\x1b" not in dumb
    assert "\r" not in dumb.replace("\r\n", "")
    bar = shown("bar", TERM="xterm-256color")
    assert "\x1b[" in bar
    assert "step " in bar
    plain = shown("plain", TERM="xterm-256color", NO_COLOR="1")
    assert "\x1b[3" not in plain  # no colour


def test_a_device_that_is_not_there(decoder_spec: Path, cli: Cli) -> None:
    if torch.cuda.is_available():
        result = cli("pretrain", decoder_spec, "--device", "cuda:99")
    else:
        result = cli("pretrain", decoder_spec, "--device", "cuda")
    assert result.status == 5
    assert "CUDA device" in result.err
    assert not list(Path("runs").rglob("checkpoints"))
    result = cli("pretrain", decoder_spec, "--device", "cuba")
    assert result.status == 2
    assert "did you mean cuda?" in result.err


def test_out_of_memory_gets_a_remedy(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhausted(*arguments: Any) -> None:
        raise RuntimeError(
            "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"
        )

    monkeypatch.setattr("bigmodel_cli.train.loop.train_step", exhausted)
    result = cli("pretrain", decoder_spec, "--out", "run")
    assert result.status == 5
    assert (
        "out of memory with one sample at once; make the model, its context or its images smaller"
        in result.err
    )


def test_a_bug_has_a_traceback_and_status_1(
    decoder_spec: Path, zygote: Zygote, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*arguments: Any) -> None:
        raise ValueError("a bug")

    monkeypatch.setattr("bigmodel_cli.train.loop.train_step", broken)
    with pytest.raises(ValueError, match="a bug"):
        cli("pretrain", decoder_spec, "--out", "run")
    with pytest.raises(Exception, match="no such file"):
        cli("--debug", "pretrain", "nothing.yaml")
