"""Runs of each family that the first versions wrote: evaluated, resumed, saved anew and finetuned.

Their specs call some options as those versions did, which bigmodel_cli/old_names.py tells.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import ROOT, Result

from bigmodel_cli import checkpoints
from bigmodel_cli.checkpoints import Contents

# other tests run these lines; coverage would take half of the time again
pytestmark = pytest.mark.no_cover

Cli = Callable[..., Result]
FIXTURES = ROOT / "tests" / "checkpoints" / "fixtures" / "format1"

RECORDED = {
    "vit": (
        6,
        {"accuracy": 0.0989010989010989, "loss": 2.3253217182316623, "macro_f1": 0.018},
        {"accuracy": 0.0989010989010989, "loss": 2.3218647926063327, "macro_f1": 0.018},
    ),
    "sentiment": (
        8,
        {"accuracy": 0.4583333333333333, "loss": 0.7031637753049532},
        {"accuracy": 0.4583333333333333, "loss": 0.6827704434593519},
    ),
    "mamba": (
        8,
        {"accuracy": 0.48577680525164113, "loss": 2.7424234686586475},
        {"accuracy": 0.5142231947483589, "loss": 2.574891960594795},
    ),
    "ctc": (
        8,
        {"wer": 1.0, "cer": 1.0, "loss": 4.007580757141113},
        {"wer": 1.0, "cer": 1.0, "loss": 2.6095624923706056},
    ),
    "masked": (8, {}, {}),
    "mae": (8, {}, {}),
}
"""Steps to go on to, and what the version that wrote them measured before and after.

Of tasks that hide tokens or patches nothing: since then what is hidden depends on the sample alone.
"""


@pytest.mark.parametrize("family", RECORDED)
def test_a_run_of_the_first_versions_is_evaluated_resumed_and_saved_anew(
    family: str, cli: Cli
) -> None:
    steps, before, after = RECORDED[family]
    for file in (FIXTURES / family).iterdir():
        if file.is_file():
            shutil.copy(file, file.name)
        else:
            shutil.copytree(file, Path("run/checkpoints") / file.name)
    (first,) = Path("run/checkpoints").iterdir()

    def measured(checkpoint: Path) -> dict[str, float]:
        result = cli("eval", checkpoint, "--json", "--device", "cpu")
        assert result.status == 0, result.err
        values = json.loads(result.out)
        return {name: value for name, value in values.items() if isinstance(value, float)}

    found = measured(first)
    assert {name: found[name] for name in before} == pytest.approx(before, rel=1e-5)
    old = checkpoints.read(first, train_state=True)
    parts = (old.model.load(), old.train.load(), old.state, old.spec, old.info, old.assets)
    again = checkpoints.save(Path("again/checkpoints"), Contents(old.step, *parts))
    assert measured(again) == found
    changes = ("--set", f"train.steps={steps}", "--device", "cpu")
    refused = cli("pretrain", "--resume", "--out", "run", *changes)
    assert refused.status == 4, "their fingerprint of the data did not see the labels"
    resumed = cli("pretrain", "--resume", "--out", "run", *changes, "--accept-data")
    assert resumed.status == 0, resumed.err
    last = Path(resumed.out.strip())
    found = measured(last)
    assert {name: found[name] for name in after} == pytest.approx(after, rel=1e-5)
    spec = checkpoints.read_spec(last)
    assert {"clip", "micro_batch"}.isdisjoint(spec["train"])
    assert {"max_grad_norm", "micro_batch_size"} <= spec["train"].keys()
    tuned = cli("finetune", "--from", last, "--set", "train.steps=1", "--out", "tuned")
    assert tuned.status == 0, tuned.err


def test_old_names_of_masking_are_read(cli: Cli) -> None:
    (path,) = (FIXTURES / "masked").glob("step-*")
    assert checkpoints.read_spec(path)["task"]["fraction"] == 0.2
    shutil.copytree(path, "run/checkpoints/step-00000006")
    for file in (FIXTURES / "masked").glob("*.tsv"):
        shutil.copy(file, file.name)
    result = cli("finetune", "--from", "run", "--set", "train.steps=1", "--out", "tuned")
    assert result.status == 0, result.err
    task = checkpoints.read_spec(Path(result.out.strip()))["task"]
    masking = (task["mask_prob"], task["replace_mask"], task["replace_random"])
    assert masking == (0.2, 0.7, 0.1)
