"""A resumed run is the uninterrupted run, to the bit: killed, stopped, moved or made longer."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, digests, finish, losses, shell
from zygote import Zygote, resume_command, until

from bigmodel_cli import checkpoints
from bigmodel_cli.rundir import RunDirectory

Cli = Callable[..., Result]
FAMILIES = ("decoder_spec", "cnn_spec")


@pytest.fixture(params=FAMILIES)
def spec(request: pytest.FixtureRequest) -> Path:
    """A spec of each family."""
    path: Path = request.getfixturevalue(request.param)
    return path


TRAINED: dict[tuple[str, ...], tuple[Path, Path]] = {}


def uninterrupted(cli: Cli, spec: Path, *changes: str) -> Path:
    """The last checkpoint of a run in `whole`: trained once, and copied where it is asked for
    again.
    """
    if kept := TRAINED.get((spec.name, *changes)):
        shutil.copytree(kept[0], "whole", symlinks=True)
        return kept[1]
    result = cli("pretrain", spec, "--out", "whole", *(w for c in changes for w in ("--set", c)))
    assert result.status == 0, result.err
    last, safe = Path(result.out.strip()), spec.parent.parent / f"whole-{len(TRAINED)}"
    shutil.copytree("whole", safe, symlinks=True)  # the tests change theirs
    TRAINED[spec.name, *changes] = safe, last
    return last


def good(run: Path) -> bool:
    """Whether the newest checkpoint of the run verifies whole."""
    return checkpoints.newest(run / "checkpoints", lambda text: pytest.fail(text)) is not None


# A save writes eight files for a decoder (with its tokenizer) and seven for a CNN; the ninth write
# belongs to the second save.
POINTS = [f"checkpoint.{p}:kill:{n}" for p in ("write", "wrote", "synced") for n in (9, 12, 16)]
POINTS += [f"checkpoint.{p}:kill:{n}" for p in ("rename", "renamed") for n in (1, 2)]
POINTS += [f"checkpoint.marked:kill:{n}" for n in (1, 2, 3)] + [
    f"checkpoint.prune:kill:{n}" for n in (1, 2, 4)
]


@pytest.mark.parametrize("point", POINTS)
def test_killed_while_a_checkpoint_is_written_or_pruned(
    point: str, decoder_spec: Path, cli: Cli, zygote: Zygote
) -> None:
    settings = ["train.checkpoint_every=2", "train.keep_last=1"]
    whole = uninterrupted(cli, decoder_spec, *settings)
    changes = [w for c in settings for w in ("--set", c)]
    killed = zygote.run(
        "pretrain", decoder_spec, "--out", "run", *changes, env={"BIGMODEL_FAILPOINT": point}
    )
    assert killed.status == -signal.SIGKILL
    if "checkpoint.rename:kill:1" not in point:
        assert good(Path("run"))
    resumed = cli("pretrain", decoder_spec, "--out", "run", *changes, "--resume")
    assert resumed.status == 0, resumed.err
    assert digests(Path(resumed.out.strip())) == digests(whole)
    left = sorted(p.name for p in Path("run/checkpoints").iterdir())
    assert not [name for name in left if name.startswith(".")]
    assert left == sorted(p.name for p in Path("whole/checkpoints").iterdir())


@pytest.mark.parametrize(
    "point",
    ["renamed:kill:3", "marked:kill:5", "prune:kill:1"],
    ids=["before last", "between last and best", "in pruning"],
)
def test_killed_after_the_last_commit_the_resume_does_what_was_to_follow(
    point: str, decoder_spec: Path, cli: Cli, zygote: Zygote
) -> None:
    """Rows 2 and 3: nothing is left to train, but `last`, `best` and the pruning are still due."""
    uninterrupted(cli, decoder_spec)
    words = ["pretrain", decoder_spec, "--out", "run"]
    killed = zygote.run(*words, env={"BIGMODEL_FAILPOINT": f"checkpoint.{point}"})
    assert killed.status == -signal.SIGKILL
    assert checkpoints.steps(Path("run/checkpoints"))[-1].name == "step-00000012"
    resumed = cli(*words, "--resume")
    assert (resumed.status, resumed.out) == (0, "run/checkpoints/step-00000012\n"), resumed.err
    found, expected = (
        {
            p.name: os.readlink(p) if p.is_symlink() else ""
            for p in Path(run, "checkpoints").iterdir()
        }
        for run in ("run", "whole")
    )
    assert found == expected


def test_the_checkpoint_of_a_stop_is_no_part_of_the_average(
    decoder_spec: Path, cli: Cli, zygote: Zygote
) -> None:
    """Rows 4 and 62: a run that was stopped between two of its checkpoints ends with the mean of
    those of its schedule.
    """
    changes = ["train.average_last=3", "train.checkpoint_every=2"]
    whole = uninterrupted(cli, decoder_spec, *changes)
    words = ["pretrain", decoder_spec, "--out", "run", *(w for c in changes for w in ("--set", c))]
    stopped = zygote.run(*words, env={"BIGMODEL_FAILPOINT": "train.step:SIGTERM:11"})
    assert (stopped.status, checkpoints.find(Path("run")).name) == (143, "step-00000011")
    resumed = cli(*resume_command(stopped.err))
    assert (resumed.status, Path(resumed.out.strip()).name) == (0, "average"), resumed.err
    assert digests(Path(resumed.out.strip())) == digests(whole)
    assert validations(Path("run")) == validations(Path("whole"))


def test_a_loaders_worker_does_not_keep_the_lock_of_its_dead_parent() -> None:
    """Row 45: the lock dies with its owner.

    A worker is a fork, and takes seconds to see that its parent is gone.
    """
    with RunDirectory.open(Path("run"), resume=False):
        worker = os.fork()
        if worker == 0:
            time.sleep(60)
            os._exit(0)
    try:
        with RunDirectory.open(Path("run"), resume=False) as directory:
            assert directory.path == Path("run")
    finally:
        os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_a_signal_finishes_the_step_saves_and_prints_how_to_go_on(
    name: str, status: int, spec: Path, cli: Cli, zygote: Zygote
) -> None:
    whole = uninterrupted(cli, spec)
    stopped = zygote.run(
        "pretrain", spec, "--out", "run", env={"BIGMODEL_FAILPOINT": f"train.step:{name}:6"}
    )
    assert stopped.status == status
    assert stopped.out == ""
    assert (
        "stopped at step 6 of 12; checkpoint run/checkpoints/step-00000006; to go on: bigmodel"
        " pretrain" in stopped.err
    )
    assert "Traceback" not in stopped.err
    told = json.loads(Path("run/status.json").read_text())
    assert (told["state"], told["code"], told["last_step"]) == ("stopped", status, 6)
    assert told["last_checkpoint"] == "checkpoints/step-00000006"
    resumed = cli(*resume_command(stopped.err))
    assert resumed.status == 0, resumed.err
    assert digests(Path(resumed.out.strip())) == digests(whole)
    assert losses(Path("run")) == losses(Path("whole"))
    assert json.loads(Path("run/status.json").read_text())["state"] == "done"


@pytest.mark.parametrize("place", ["train.validating", "cache.built"])
def test_a_signal_in_a_validation_or_while_data_is_prepared(
    place: str,
    decoder_spec: Path,
    cli: Cli,
    zygote: Zygote,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    whole = uninterrupted(cli, decoder_spec)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    stopped = zygote.run(
        "pretrain", decoder_spec, "--out", "run", env={"BIGMODEL_FAILPOINT": f"{place}:SIGTERM"}
    )
    assert stopped.status == 143
    # nothing had begun, and nothing is left
    assert Path("run").exists() == (place == "train.validating")
    resumed = cli(*resume_command(stopped.err))
    assert resumed.status == 0, resumed.err
    weights = "model.safetensors"
    assert digests(Path(resumed.out.strip()))[weights] == digests(whole)[weights]


def test_a_second_interrupt_in_a_save_leaves_at_once(
    decoder_spec: Path, cli: Cli, zygote: Zygote
) -> None:
    child = zygote.start(
        "pretrain", decoder_spec, "--out", "run", "--set", "train.checkpoint_every=3", "--set",
        "train.validate_every=null",
        env={"BIGMODEL_FAILPOINT": "checkpoint.wrote:sleep=30:10"},
    )  # fmt: skip
    until(lambda: list(Path("run/checkpoints").glob(".draft-step-6-*/train_state.safetensors")))
    start = time.monotonic()
    child.send(signal.SIGINT)
    time.sleep(0.1)
    child.send(signal.SIGINT)
    assert child.wait().status == 130
    assert time.monotonic() - start < 20
    status = json.loads(Path("run/status.json").read_text())
    assert (status["state"], status["code"]) == ("stopped", 130)
    assert checkpoints.find(Path("run")).name == "step-00000003"
    assert good(Path("run"))


def test_resumed_twice_in_mid_epoch_with_dropout_and_augmentation(
    cnn_spec: Path, cli: Cli, zygote: Zygote
) -> None:
    """To the bit; loader workers may come and go from one resume to the next."""
    changes = ["train.batch_size=200"]  # an epoch has 7.2 batches
    whole = uninterrupted(cli, cnn_spec, *changes)
    words = [w for c in (*changes, "data.workers=2") for w in ("--set", c)]
    first = zygote.run(
        "pretrain",
        cnn_spec,
        "--out",
        "run",
        *words,
        env={"BIGMODEL_FAILPOINT": "train.step:SIGTERM:5"},
    )
    assert first.status == 143
    without = ["--set", "data.workers=0"]
    again = zygote.run(
        *resume_command(first.err), *without, env={"BIGMODEL_FAILPOINT": "train.step:SIGTERM:4"}
    )
    assert again.status == 143
    assert "stopped at step 9 of 12" in again.err
    last = zygote.run(*resume_command(again.err), "--set", "data.workers=2")
    assert last.status == 0, last.err
    assert losses(Path("run")) == losses(Path("whole"))
    found, expected = digests(Path(last.out.strip())), digests(whole)
    assert [name for name in found if found[name] != expected[name]] in ([], ["spec.yaml"])


def test_the_order_and_the_augmentation_do_not_depend_on_the_workers(
    cnn_spec: Path, cli: Cli
) -> None:
    uninterrupted(cli, cnn_spec)
    assert cli("pretrain", cnn_spec, "--out", "two", "--set", "data.workers=2").status == 0
    assert losses(Path("two")) == losses(Path("whole"))


def test_a_finished_run_is_made_longer_with_the_optimizers_state(spec: Path, cli: Cli) -> None:
    longer = uninterrupted(cli, spec, "train.steps=18")
    assert cli("pretrain", spec, "--out", "run").status == 0
    resumed = cli("pretrain", spec, "--out", "run", "--set", "train.steps=18", "--resume")
    assert resumed.status == 0, resumed.err
    found, expected = digests(Path(resumed.out.strip())), digests(longer)
    assert found["model.safetensors"] == expected["model.safetensors"]
    assert found["train_state.safetensors"] == expected["train_state.safetensors"]


def test_a_finished_run_resumed_as_it_is_gives_its_checkpoint_again(
    decoder_spec: Path, cli: Cli
) -> None:
    whole = uninterrupted(cli, decoder_spec)
    before = digests(whole)
    result = cli("pretrain", decoder_spec, "--out", "whole", "--resume")
    assert (result.status, Path(result.out.strip())) == (0, whole)
    assert digests(whole) == before


def test_a_copied_run_verifies_resumes_and_holds_no_absolute_path(
    decoder_spec: Path, cli: Cli, zygote: Zygote, tmp_path: Path
) -> None:
    whole = uninterrupted(cli, decoder_spec)
    zygote.run(
        "pretrain",
        decoder_spec.name,
        "--out",
        "run",
        env={"BIGMODEL_FAILPOINT": "train.step:SIGTERM:6"},
    )
    shutil.copytree("run", "elsewhere", symlinks=True)
    shutil.rmtree("run")
    for file in Path("elsewhere").rglob("*"):
        if file.is_file():
            assert str(tmp_path).encode() not in file.read_bytes(), file
    resumed = cli("pretrain", decoder_spec, "--out", "elsewhere", "--resume")
    assert resumed.status == 0, resumed.err
    assert digests(Path(resumed.out.strip())) == digests(whole)
    shutil.copytree(resumed.out.strip(), "alone")  # one checkpoint by itself
    assert cli("eval", "alone").status == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("train.optimizer.lr=0.5", "train.optimizer.lr: 0.001 -> 0.5"),
        ("model.dim=32", "model.dim: 16 -> 32"),
        ("data.context=8", "data.context: 16 -> 8"),
    ],
)
def test_a_changed_spec_is_not_resumed(
    change: str, message: str, decoder_spec: Path, cli: Cli
) -> None:
    whole = uninterrupted(cli, decoder_spec)
    before = digests(whole)
    result = cli("pretrain", decoder_spec, "--out", "whole", "--resume", "--set", change)
    assert result.status == 2
    assert message in result.err
    assert digests(whole) == before


def test_changed_data_is_not_resumed(decoder_spec: Path, cli: Cli) -> None:
    uninterrupted(cli, decoder_spec)
    text = Path("text.txt")
    text.write_text(text.read_text()[:-10] + " a model is")
    result = cli("pretrain", decoder_spec, "--out", "whole", "--resume", "--set", "train.steps=14")
    assert result.status == 4
    assert "the data is not what this run was trained on" in result.err  # row 38


def test_without_a_run_there_is_nothing_to_resume(decoder_spec: Path, cli: Cli) -> None:
    for words in (["--out", "nowhere"], []):
        result = cli("pretrain", decoder_spec, "--resume", *words)
        assert result.status == 2
        assert "start it without --resume" in result.err
    assert not Path("nowhere").exists()


def test_a_broken_checkpoint_is_reported_and_the_previous_one_used(
    decoder_spec: Path, cli: Cli
) -> None:
    whole = uninterrupted(cli, decoder_spec)
    expected = digests(whole)
    (whole / "model.safetensors").write_bytes(b"")
    result = cli("pretrain", decoder_spec, "--out", "whole", "--resume")
    assert result.status == 0, result.err
    assert "falling back to the checkpoint before step-00000012" in result.err
    assert digests(Path(result.out.strip())) == expected


def test_killed_at_a_few_moments(spec: Path, cli: Cli, zygote: Zygote) -> None:
    whole = uninterrupted(cli, spec, "train.checkpoint_every=1")
    rng = random.Random(spec.name)
    words = ["--set", "train.checkpoint_every=1"]
    for number in range(2):
        child = zygote.start("pretrain", spec, "--out", f"run{number}", *words)
        time.sleep(rng.uniform(0.05, 0.6))
        child.send(signal.SIGKILL)
        child.wait()
        resume = ["--resume"] if Path(f"run{number}").exists() else []
        result = zygote.run("pretrain", spec, "--out", f"run{number}", *words, *resume)
        assert result.status == 0, result.err
        assert digests(Path(result.out.strip())) == digests(whole)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_killed_ten_times_at_random_moments_on_real_data(
    family: str, request: pytest.FixtureRequest, data_root: Path, cli: Cli
) -> None:
    spec: Path = request.getfixturevalue(family)
    changes: list[Any] = ["train.steps=60", "train.checkpoint_every=5", "train.validate_every=20"]
    if family == "decoder_spec":
        text = data_root / "tinyshakespeare" / "input.txt"
        changes += [
            f"data.files=['{text}']",
            "data.context=64",
            "model.dim=64",
            "train.batch_size=12",
        ]
    else:
        changes += ["data.type=mnist", f"data.root='{data_root / 'mnist'}'", "train.batch_size=64"]
    words = [w for c in changes for w in ("--set", c)]
    start = time.monotonic()
    done = finish(shell("pretrain", spec, "--out", "whole", *words), 300)
    taken = time.monotonic() - start
    assert done.status == 0, done.err
    expected = digests(Path(done.out.strip()))
    rng = random.Random(family)
    for number in range(10):
        out = Path(f"run{number}")
        process = shell("pretrain", spec, "--out", out, *words)
        time.sleep(rng.uniform(0.3, 1.0) * taken)
        process.kill()
        finish(process)
        resume = ["--resume"] if out.exists() else []
        result = finish(shell("pretrain", spec, "--out", out, *words, *resume), 300)
        assert result.status == 0, result.err
        assert digests(Path(result.out.strip())) == expected, f"kill number {number}"


def validations(run: Path) -> list[dict[str, Any]]:
    """What metrics.jsonl says of them."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [record for record in records if "val" in record]


@pytest.mark.parametrize(
    ("point", "step"),
    [
        ("train.validating:SIGTERM:2", 6),  # in a validation
        ("train.step:SIGTERM:6", 6),  # in the step before it
        ("train.exchanging:SIGTERM:3", 3),  # while the averaged weights take their place
        ("train.exchanging:SIGTERM:20", 3),  # while they leave it, or in the save
        ("train.validating:SIGTERM:4", 12),  # in the last one
    ],
)
def test_a_validation_that_a_signal_interrupted_is_repeated_on_resume(
    point: str, step: int, decoder_spec: Path, cli: Cli, zygote: Zygote
) -> None:
    """It counts for patience and for the best checkpoint as if nobody had stopped the run."""
    changes = ["train.validate_every=3", "train.ema=0.5", "train.patience=3", "train.keep_best=2"]
    whole = uninterrupted(cli, decoder_spec, *changes)
    words = [w for c in changes for w in ("--set", c)]
    stopped = zygote.run(
        "pretrain", decoder_spec, "--out", "run", *words, env={"BIGMODEL_FAILPOINT": point}
    )
    assert stopped.status == 143
    assert f"stopped at step {step} of 12" in stopped.err
    resumed = cli(*resume_command(stopped.err))
    assert resumed.status == 0, resumed.err
    assert digests(Path(resumed.out.strip())) == digests(whole)
    assert [r["step"] for r in validations(Path("whole"))] == [3, 6, 9, 12]
    assert validations(Path("run")) == validations(Path("whole"))
    best = [Path(run, "checkpoints", "best").resolve().name for run in ("run", "whole")]
    assert best[0] == best[1]
    scores = [
        checkpoints.read(Path(run, "checkpoints", best[0]), train_state=True).state["scores"]
        for run in ("run", "whole")
    ]
    assert scores[0] == scores[1]
