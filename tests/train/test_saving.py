"""Checkpoints that are written while training goes on are those that it waits for, whatever comes
in between: a kill, a signal, a full disk, the next save, the end.
"""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Result, digests, losses
from zygote import Zygote, resume_command

from bigmodel_cli import checkpoints
from bigmodel_cli.checkpoints import saving
from bigmodel_cli.tasks.causal_lm import CausalLM
from bigmodel_cli.train import saving as policy
from bigmodel_cli.train.state import TrainState

Cli = Callable[..., Result]
ON = ["--set", "train.save_async=on"]


def sets(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


def listing(run: Path) -> dict[str, str]:
    """The names among a run's checkpoints, and where links point."""
    found = (run / "checkpoints").iterdir()
    return {p.name: str(p.readlink()) if p.is_symlink() else "" for p in found}


def status(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "status.json").read_text())
    return found


def verified(run: Path) -> int:
    """The step of the newest checkpoint, which verifies without falling back."""
    found = checkpoints.newest(run / "checkpoints", lambda text: pytest.fail(text))
    assert found is not None
    return found.step


def test_training_goes_on_and_nothing_is_said_to_be_there_before_it_is(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The save of step 4 is held up until step 6 is over, when neither a folder, a link nor
    status.json tells of it.
    """
    whole = cli("pretrain", decoder_spec, "--out", "whole", *sets("train.save_async=off"))
    goes_on, seen = threading.Event(), list[tuple[set[str], Any]]()
    write, after = saving.write_file, TrainState.after_step

    def held_up(path: Path, content: Iterable[bytes]) -> dict[str, Any]:
        assert goes_on.wait(60), "training waits for the save"
        return write(path, content)

    def after_step(state: TrainState) -> None:
        after(state)
        if state.step == 6 and not goes_on.is_set():
            names = {n for n in listing(Path("run")) if not n.startswith(".draft-step-4-")}
            seen.append((names, status(Path("run"))["last_checkpoint"]))
            goes_on.set()

    monkeypatch.setattr(saving, "write_file", held_up)
    monkeypatch.setattr(TrainState, "after_step", after_step)
    result = cli("pretrain", decoder_spec, "--out", "run", *ON)
    assert (result.status, seen) == (0, [(set(), None)]), result.err
    assert digests(Path(result.out.strip())) == digests(Path(whole.out.strip()))
    assert listing(Path("run")) == listing(Path("whole"))
    assert losses(Path("run")) == losses(Path("whole"))
    assert status(Path("run"))["last_checkpoint"] == "checkpoints/step-00000012"
    assert result.err.count("written while training goes on (train.save_async)") == 1


@pytest.mark.parametrize(
    "changes",
    [
        ["train.checkpoint_every=1", "train.keep_last=1", "train.keep_best=2"],
        ["train.average_last=3", "train.checkpoint_every=2"],
        ["train.patience=1", "train.validate_every=1", "train.optimizer.lr=3.0"],
    ],
    ids=["close together", "an average", "patience"],
)
def test_a_slow_save_changes_no_file(
    changes: list[str], decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["pretrain", decoder_spec, *sets(*changes)]
    whole = cli(*words, "--out", "whole", *sets("train.save_async=off"))
    monkeypatch.setattr("bigmodel_cli.failpoints._reached", {})
    monkeypatch.setenv("BIGMODEL_FAILPOINT", "checkpoint.wrote:sleep=0.2:3")
    result = cli(*words, "--out", "run", *ON)
    assert (result.status, whole.status) == (0, 0), result.err
    assert listing(Path("run")) == listing(Path("whole"))
    for path in checkpoints.steps(Path("whole/checkpoints")):
        assert digests(Path("run/checkpoints") / path.name) == digests(path)
    last = Path("checkpoints/last")
    assert digests("run" / last) == digests("whole" / last)


def test_going_back_waits_for_the_checkpoint(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A spike in the step after a save that is slow: the run goes back to that checkpoint."""
    honest = CausalLM.loss

    def run(name: str, option: str) -> Path:
        calls = list[int]()

        def loss(self: Any, outputs: Any, batch: Any) -> Any:
            calls.append(1)
            total, count = honest(self, outputs, batch)
            return (total * 50.0 if len(calls) == 9 else total), count

        monkeypatch.setattr(CausalLM, "loss", loss)
        monkeypatch.setattr("bigmodel_cli.failpoints._reached", {})
        more = sets("train.rewind={spike: 2.0, window: 3, most: 1}", "train.validate_every=null")
        more += sets("train.checkpoint_every=4", f"train.save_async={option}")
        result = cli("pretrain", decoder_spec, "--out", name, *more)
        assert "going back to step 8, and past 1 batches" in result.err, result.err
        return Path(result.out.strip())

    whole = run("whole", "off")
    monkeypatch.setenv("BIGMODEL_FAILPOINT", "checkpoint.wrote:sleep=0.3:20")
    assert digests(run("run", "on")) == digests(whole)
    assert listing(Path("run")) == listing(Path("whole"))


@pytest.mark.parametrize(
    "point",
    [
        "writing:140",
        "rename:2",
        *(pytest.param(p, marks=pytest.mark.slow) for p in ("write:9", "wrote:12", "synced:16")),
        *(pytest.param(p, marks=pytest.mark.slow) for p in ("renamed:2", "marked:3", "prune:1")),
    ],
)
def test_killed_in_a_save_while_training_goes_on(
    point: str, decoder_spec: Path, cli: Cli, zygote: Zygote
) -> None:
    """The one before is there, and the resumed run is the undisturbed one."""
    words = ["pretrain", decoder_spec, *sets("train.keep_last=1"), *ON]
    whole = Path(cli(*words, "--out", "whole").out.strip())
    place, _, count = point.partition(":")
    env = {"BIGMODEL_FAILPOINT": f"checkpoint.{place}:kill:{count}"}
    killed = zygote.run(*words, "--out", "run", env=env)
    assert killed.status == -signal.SIGKILL
    assert verified(Path("run")) in (4, 8, 12)
    resumed = cli(*words, "--out", "run", "--resume")
    assert resumed.status == 0, resumed.err
    assert digests(Path(resumed.out.strip())) == digests(whole)
    assert listing(Path("run")) == listing(Path("whole"))


@pytest.mark.parametrize(
    ("name", "code"), [("SIGTERM", 143), pytest.param("SIGINT", 130, marks=pytest.mark.slow)]
)
def test_a_signal_in_a_save_ends_with_two_checkpoints(
    name: str, code: int, decoder_spec: Path, cli: Cli, zygote: Zygote
) -> None:
    """That of the save under way, and that of the step in which the run stopped."""
    words = ["pretrain", decoder_spec, *sets("train.keep_last=9", "train.steps=40"), *ON]
    whole = Path(cli(*words, "--out", "whole").out.strip())
    env = {"BIGMODEL_FAILPOINT": f"checkpoint.wrote:{name}:10"}  # of step 8
    stopped = zygote.run(*words, "--out", "run", env=env)
    assert stopped.status == code
    steps = [int(p.name[5:]) for p in checkpoints.steps(Path("run/checkpoints"))]
    assert steps[:2] == [4, 8]
    assert f"stopped at step {verified(Path('run'))} of 40" in stopped.err
    assert status(Path("run"))["last_step"] == steps[-1]
    resumed = cli(*resume_command(stopped.err))
    assert resumed.status == 0, resumed.err
    assert digests(Path(resumed.out.strip())) == digests(whole)
    assert losses(Path("run")) == losses(Path("whole"))


@pytest.mark.parametrize("point", ["wrote:EIO:9", "writing:ENOSPC:140"])
def test_a_disk_that_fails_meanwhile_ends_the_run(
    point: str, decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 8, 11 and 12: as where training waits, and the checkpoints before it stay."""
    monkeypatch.setattr("bigmodel_cli.failpoints._reached", {})
    monkeypatch.setenv("BIGMODEL_FAILPOINT", f"checkpoint.{point}")
    result = cli("pretrain", decoder_spec, "--out", "run", *ON)
    assert (result.status, result.out) == (5, "")
    assert result.err.count("a checkpoint was not saved") == 1
    assert ("free. Make room, then go on with --resume" in result.err) == ("ENOSPC" in point)
    assert listing(Path("run")).keys() == {"best", "last", "step-00000004"}
    assert verified(Path("run")) == 4
    found = status(Path("run"))
    assert (found["state"], found["code"]) == ("failed", 5)
    assert found["last_checkpoint"] == "checkpoints/step-00000004"


def test_a_disk_that_is_full_meanwhile(decoder_spec: Path, zygote: Zygote) -> None:
    """Row 8: the system itself stops the thread."""
    words = ["pretrain", decoder_spec, "--out", "run", *ON]
    full = zygote.run(*words, limit=20_000)  # the weights are larger
    assert full.status == 5
    assert "a checkpoint was not saved: File too large; it needs" in full.err
    assert listing(Path("run")) == {}
    assert status(Path("run"))["last_checkpoint"] is None


def test_another_error_waits_for_the_checkpoint_that_it_names(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, calls = CausalLM.loss, list[int]()

    def loss(self: Any, outputs: Any, batch: Any) -> Any:
        calls.append(1)
        total, count = honest(self, outputs, batch)
        return total * (float("nan") if len(calls) == 6 else 1.0), count

    monkeypatch.setattr(CausalLM, "loss", loss)
    monkeypatch.setattr("bigmodel_cli.failpoints._reached", {})
    monkeypatch.setenv("BIGMODEL_FAILPOINT", "checkpoint.wrote:sleep=0.3:2")
    result = cli("pretrain", decoder_spec, "--out", "run", *sets("train.validate_every=5"), *ON)
    assert result.status == 6
    assert "the last checkpoint is run/checkpoints/step-00000005" in result.err
    assert verified(Path("run")) == 5
    assert status(Path("run"))["last_checkpoint"] == "checkpoints/step-00000005"


@pytest.mark.parametrize(("free", "waits"), [(1000, True), (1 << 40, False)])
def test_auto_looks_for_room_and_says_what_it_does(
    free: int | None, waits: bool, decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = cli("pretrain", decoder_spec, "--out", "small")
    assert "train.save_async" not in small.err
    monkeypatch.setattr(policy, "LARGE", 1000)
    monkeypatch.setattr(policy, "free_memory", lambda: free)
    large = cli("pretrain", decoder_spec, "--out", "large")
    said = "for which training waits" if waits else "written while training goes on"
    assert large.err.count("(train.save_async)") == large.err.count(said) == 1
    one, two = (Path(result.out.strip()) for result in (small, large))
    assert digests(one) == digests(two)
    files = sorted(p.name for p in one.iterdir())
    assert files == sorted(p.name for p in two.iterdir())
    same = [n for n in files if n not in ("state.json", "manifest.json")]  # they have the time
    assert all((one / n).read_bytes() == (two / n).read_bytes() for n in same)


def test_a_frozen_block_is_saved_as_it_is(decoder_spec: Path, cli: Cli) -> None:
    words = ["pretrain", decoder_spec, *sets("init.freeze=['blocks.0.*', embedding]")]
    whole = cli(*words, "--out", "whole", *sets("train.save_async=off"))
    result = cli(*words, "--out", "run", *ON)
    assert digests(Path(result.out.strip())) == digests(Path(whole.out.strip()))
    assert torch.equal(*(
        checkpoints.read(Path(name, f"checkpoints/step-{step:08}"), train_state=False)
        .model.load()["blocks.0.ffn.up.weight"]
        for name, step in (("run", 8), ("whole", 12))
    ))  # fmt: skip
