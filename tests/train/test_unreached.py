"""Options whose moment never comes in a run are said before its first step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.teacher_options import DistillOptions
from bigmodel_cli.train.unreached import idle_teacher, unreached

Cli = Callable[..., Any]


@pytest.mark.parametrize(
    ("changes", "validating", "said"),
    [
        ({"validate_every": 13}, 13, "train.validate_every: the run has 12 steps"),
        ({"validate_epochs": 2}, 13, "train.validate_epochs: the run has 12 steps"),
        ({"validate_every": 12}, 12, None),
        ({"checkpoint_every": 40}, None, "train.checkpoint_every: 40, and the run has 12 steps"),
        ({"checkpoint_every": 12}, None, None),
        ({"average_last": 3, "checkpoint_every": 7}, None, "the run has 2 checkpoints"),
        ({"average_last": 3, "checkpoint_every": 5}, None, None),
        ({"average_last": 4, "validate_every": 4}, 4, "the run has 3 checkpoints"),
        ({"patience": 2, "validate_every": 4}, 4, "train.patience: 2, and the run has 3 valid"),
        ({"patience": 1, "validate_every": 4}, 4, None),
        ({"patience": 2, "validate_every": 3}, 3, None),
        ({"rewind": {"window": 12}}, None, "train.rewind.window: 12 steps come before"),
        ({"rewind": {"window": 11}}, None, None),
    ],
)
def test_what_a_run_of_twelve_steps_does_not_come_to(
    changes: dict[str, Any], validating: int | None, said: str | None
) -> None:
    options = TrainOptions.model_validate({"steps": 12, **changes})
    found = list(unreached(options, 12, validating))
    assert len(found) == (said is not None)
    assert said is None or said in found[0]


def test_a_teacher_without_weight_is_said() -> None:
    of_nothing = DistillOptions(teacher="t", weight=0.0)
    assert "nothing is learnt of the teacher" in next(idle_teacher(of_nothing))
    for learnt in (None, DistillOptions(teacher="t"), of_nothing.model_copy(update={"hidden": 1})):
        assert not list(idle_teacher(learnt))


def test_parts_that_are_never_unfrozen_are_named(decoder_spec: Path, cli: Cli) -> None:
    def words(every: int) -> list[str]:
        changes = (f"train.unfreeze_every={every}", "train.steps=6", "model.tie_embeddings=false")
        return [word for change in changes for word in ("--set", change)]

    result = cli("pretrain", decoder_spec, "--dry-run", *words(4))
    assert result.status == 0, result.err
    assert "train.unfreeze_every: 4, and the run has 6 steps" in result.out
    assert "never trained (" in result.out
    never = result.out.partition("never trained (")[2].partition(")")[0]
    assert never.split(", ") == ["embedding", "position", "blocks.0"]
    most = int(result.out.split(" at most lets all begin")[0].split()[-1])
    for every, late in ((most, False), (most + 1, True)):
        shown = cli("pretrain", decoder_spec, "--dry-run", *words(every))
        assert ("never trained" in " ".join(shown.out.split())) == late
    trained = cli("pretrain", decoder_spec, "--out", "run", *words(4))
    assert "never trained" in trained.err
