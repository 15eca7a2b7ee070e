"""Where runs begin, end and go on: what a failed start leaves, what status.json says, what --resume
takes and refuses.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import Result, digests
from zygote import Zygote, resume_command

Cli = Callable[..., Result]


def sets(*changes: str) -> list[str]:
    return [w for c in changes for w in ("--set", c)]


def status(run: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path(run, "status.json").read_text())
    return found


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (ValueError("a bug"), 1),
        (OSError(5, "Input/output error"), 1),
        (MemoryError("no room"), 5),
        (KeyboardInterrupt(), 130),
    ],
    ids=["bug", "disk", "memory", "interrupt"],
)
def test_status_json_records_every_end(
    fault: BaseException, code: int, decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 70: it does not stay at `running`."""

    def broken(*arguments: Any) -> None:
        raise fault

    monkeypatch.setattr("bigmodel_cli.train.loop.train_step", broken)
    try:
        assert cli("pretrain", decoder_spec, "--out", "run").status == code
    except type(fault):
        pass
    assert (status("run")["state"], status("run")["code"]) == ("failed", code)


def test_a_run_that_recorded_former_names_goes_on_before_its_first_checkpoint(
    decoder_spec: Path, cli: Cli
) -> None:
    assert cli("pretrain", decoder_spec, "--out", "run", *sets("train.steps=1")).status == 0
    shutil.rmtree("run/checkpoints")
    recorded = Path("run/spec.yaml")
    recorded.write_text(recorded.read_text().replace("max_grad_norm: null", "clip: 0.5"))
    assert cli("pretrain", "--resume", "--out", "run").status == 0
    assert "max_grad_norm: 0.5" in recorded.read_text()


def test_a_start_that_fails_leaves_nothing_and_resume_takes_what_began(
    decoder_spec: Path, cli: Cli
) -> None:
    """Row 72: with status 2, 3 and 5; and no run that began is status 2."""
    for words, code in (
        (sets("train.patience=2", "train.validate_every=null"), 2),
        (sets("data.files=[nothing.txt]"), 3),
        (["--device", "cuda:99"], 5),
    ):
        for out in ([], ["--out", "new/place"]):
            assert cli("pretrain", decoder_spec, *words, *out).status == code
            assert not Path("runs").exists()
            assert not Path("new").exists()
    result = cli("pretrain", decoder_spec, "--resume")
    assert (result.status, "there is no run runs/decoder to go on with" in result.err) == (2, True)
    assert cli("pretrain", decoder_spec).out == "runs/decoder/checkpoints/step-00000012\n"
    never = Path("runs/decoder-2")  # as an earlier version left it
    never.mkdir()
    (never / "run.lock").write_text("process 1 on here")
    Path("runs/decoder-x").mkdir()
    resumed = cli("pretrain", decoder_spec, "--resume", *sets("train.steps=13"))
    assert (resumed.status, resumed.out) == (0, "runs/decoder/checkpoints/step-00000013\n")
    assert "--resume: going on with runs/decoder, the newest run of this name" in resumed.err
    assert cli("pretrain", decoder_spec, *sets("train.steps=2")).out.startswith("runs/decoder-2/")


def test_a_start_refused_beside_a_run_leaves_the_run(decoder_spec: Path, cli: Cli) -> None:
    """Rows 55 and 72: a resume that is refused changes nothing of a finished run; the message names
    the ways on.
    """
    assert cli("pretrain", decoder_spec, "--out", "run").status == 0
    before = status("run")
    refused = cli("pretrain", "--resume", "--out", "run", *sets("train.optimizer.lr=0.5"))
    assert refused.status == 2
    assert "train.optimizer.lr: 0.001 -> 0.5" in refused.err
    assert (
        "`bigmodel finetune --from run --set train.optimizer.lr=0.5`, from its weights"
        in refused.err
    )
    assert "with another --out" in refused.err
    assert status("run") == before
    assert cli("pretrain", decoder_spec, "--out", "run").status == 2
    assert status("run") == before
    for words in (["pretrain"], ["finetune"], ["pretrain", "--resume"], ["finetune", "--resume"]):
        assert cli(*words).status == 2


@pytest.mark.parametrize(
    "content", [b"", bytes(300), b"model: {type: deco"], ids=["empty", "zeros", "torn"]
)
def test_a_run_whose_spec_is_incomplete_starts_again(
    content: bytes, decoder_spec: Path, cli: Cli, zygote: Zygote
) -> None:
    """Row 71: with the spec that is given; without one it is status 4."""
    zygote.run(
        "pretrain", decoder_spec, "--out", "run", env={"BIGMODEL_FAILPOINT": "train.step:kill"}
    )
    assert status("run")["state"] == "running"
    Path("run/spec.yaml").write_bytes(content)
    alone = cli("pretrain", "--resume", "--out", "run")
    assert alone.status == 4
    assert "give the spec: bigmodel pretrain SPEC --resume --out run" in alone.err
    assert status("run")["state"] == "failed"
    again = cli("pretrain", decoder_spec, "--resume", "--out", "run")
    assert again.status == 0, again.err
    assert "starting from the first step with the spec that is given" in again.err


def test_run_files_reach_the_disk_and_the_clock_decides_nothing(
    decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows 44 and 71: fsync of spec, status and log; order is by step, durations do not run
    backwards.
    """
    synced: set[str] = set()
    honest = os.fsync

    def fsync(descriptor: int) -> None:
        synced.add(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.lstrip("."))
        honest(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    clock = itertools.count(2_000_000_000, -1000)
    monkeypatch.setattr("time.time", lambda: float(next(clock)))
    assert cli("pretrain", decoder_spec, "--out", "run").status == 0
    pid = os.getpid()
    assert {"run", f"spec.yaml.{pid}", f"status.json.{pid}", "metrics.jsonl"} <= synced
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    elapsed = [r["elapsed"] for r in records if "elapsed" in r]
    assert elapsed == sorted(elapsed)
    assert min(r["per_second"] for r in records if "per_second" in r) > 0
    for age, path in enumerate(sorted(Path("run/checkpoints").glob("step-*"))):
        os.utime(path, (1_000_000_000 - age, 1_000_000_000 - age))
    longer = cli("pretrain", "--resume", "--out", "run", *sets("train.steps=13"))
    assert "resuming run after step 12" in longer.err


def test_changed_data_is_accepted_by_name_and_recorded(decoder_spec: Path, cli: Cli) -> None:
    """Row 38."""
    assert cli("pretrain", decoder_spec, "--out", "run").status == 0
    text = Path("text.txt")
    text.write_text(text.read_text()[:-10] + " a model is")
    words = ["pretrain", "--resume", "--out", "run", *sets("train.steps=14")]
    refused = cli(*words)
    assert refused.status == 4
    assert "go on all the same with --accept-data" in refused.err
    went = cli(*words, "--accept-data")
    assert went.status == 0, went.err
    assert "the data has changed since step 12: accepted" in went.err
    state = json.loads(Path(went.out.strip(), "state.json").read_text())
    assert state["data_changes"] == [[12, state["fingerprint"]]]
    records = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert {"step": 12, "data_changed": state["fingerprint"]} in records
    later = cli("pretrain", "--resume", "--out", "run", *sets("train.steps=15"))
    assert (
        json.loads(Path(later.out.strip(), "state.json").read_text())["data_changes"]
        == state["data_changes"]
    )


def test_options_left_out_on_resume_are_the_recorded_ones(
    decoder_spec: Path, cli: Cli, zygote: Zygote
) -> None:
    """Rows 38 and 55: as where a default has changed since the run began."""
    old = sets("model.init_std=0.02", "train.max_grad_norm=0.5", "data.val_fraction=0.2")
    whole = Path(cli("pretrain", decoder_spec, "--out", "whole", *old).out.strip())
    zygote.run(
        "pretrain",
        decoder_spec,
        "--out",
        "run",
        *old,
        env={"BIGMODEL_FAILPOINT": "train.step:SIGTERM:6"},
    )
    resumed = cli("pretrain", decoder_spec, "--resume", "--out", "run")
    assert resumed.status == 0, resumed.err
    assert "left out of the spec, and so as the run recorded it: " in resumed.err
    assert "model.init_std: 0.02" in resumed.err
    assert digests(Path(resumed.out.strip())) == digests(whole)
    named = cli("pretrain", decoder_spec, "--resume", "--out", "run", *sets("model.init_std=0.5"))
    assert (named.status, "model.init_std: 0.02 -> 0.5" in named.err) == (2, True)


@pytest.mark.parametrize(
    "option", ["train.max_grad_norm=1.0", "train.average_last=2", "train.patience=1"]
)
def test_a_finished_run_has_nothing_left_to_do(
    option: str, decoder_spec: Path, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 58: nor has one past train.steps; neither is trained nor validated again."""
    words = sets(option, *(["train.optimizer.lr=1.0"] if "patience" in option else []))
    done = cli("pretrain", decoder_spec, "--out", "run", *words)
    before = status("run")

    def never(*arguments: Any) -> None:
        pytest.fail("it trains")

    monkeypatch.setattr("bigmodel_cli.train.setup.open_data", never)
    again = cli("pretrain", "--resume", "--out", "run")
    assert (again.status, again.out) == (0, done.out), again.err
    assert "there is nothing to do; --set train.steps=" in again.err
    past = cli("pretrain", "--resume", "--out", "run", *sets("train.steps=3"))
    assert (past.status, past.out) == (0, done.out), past.err
    assert "past train.steps 3" in past.err
    assert status("run") == before


def test_a_run_past_its_epochs_has_nothing_left_to_do(decoder_spec: Path, cli: Cli) -> None:
    """Row 58: how many steps they are the data says; no average is made anew of what is no part of
    one.
    """
    words = sets(
        "train.epochs=2", "train.batch_size=64", "train.average_last=1", "train.validate_every=null"
    )
    done = cli(
        "pretrain",
        decoder_spec,
        "--out",
        "run",
        *words,
        *sets("data.val_fraction=0", "train.checkpoint_every=5"),
    )
    assert done.status == 0, done.err
    before = status("run")
    past = cli(
        "pretrain",
        "--resume",
        "--out",
        "run",
        *sets("train.epochs=1", "train.checkpoint_every=100"),
    )
    assert (past.status, past.out) == (0, done.out), past.err
    assert "run is at step 8, past train.epochs 1 (4 steps): there is nothing to do" in past.err
    assert status("run") == before


def test_a_finetuning_goes_on_without_its_start(
    decoder_spec: Path, cli: Cli, zygote: Zygote
) -> None:
    """Rows 1 and 72: it needs neither spec, nor --set, nor the checkpoint that it started from."""
    assert cli("pretrain", decoder_spec, "--out", "base", *sets("train.steps=4")).status == 0
    words = [
        "finetune",
        "--from",
        "base",
        *sets("train.steps=10", "init.freeze=['blocks.0.*']"),
        "--out",
    ]
    whole = Path(cli(*words, "whole").out.strip())
    stopped = zygote.run(*words, "run", env={"BIGMODEL_FAILPOINT": "train.step:SIGTERM:5"})
    assert resume_command(stopped.err) == ["finetune", "--resume", "--out", "run"]
    shutil.rmtree("base")
    resumed = cli("finetune", "--resume", "--out", "run")
    assert resumed.status == 0, resumed.err
    assert digests(Path(resumed.out.strip())) == digests(whole)


def test_data_that_has_moved_is_the_same_data(decoder_spec: Path, cli: Cli) -> None:
    """Row 38: what is in the files decides, not where they are; other content at the new place is
    refused.
    """
    assert cli("pretrain", decoder_spec, "--out", "whole").status == 0
    assert cli("pretrain", decoder_spec, "--out", "run", "--set", "train.steps=6").status == 0
    Path("elsewhere").mkdir()
    Path("text.txt").rename("elsewhere/words.txt")
    words = ["pretrain", "--resume", "--out", "run", "--set", "train.steps=12"]
    Path("elsewhere/other.txt").write_text(Path("elsewhere/words.txt").read_text()[::-1])
    refused = cli(*words, "--set", "data.files=[elsewhere/other.txt]")
    assert refused.status == 4
    assert "the data is not what this run was trained on" in refused.err
    moved = cli(*words, "--set", "data.files=['elsewhere/w*.txt']")
    assert moved.status == 0, moved.err
    assert "data.files.0: text.txt -> elsewhere/w*.txt: data in another place" in moved.err
    found, expected = digests(Path(moved.out.strip())), digests(Path("whole/checkpoints/last"))
    # the validation at step 6 is one more in state.json
    for name in (
        "model.safetensors",
        "train_state.safetensors",
    ):
        assert found[name] == expected[name]
