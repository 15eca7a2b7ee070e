"""Every table is written once, and a plugin may add to each of them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, ClassVar, Literal

import pydantic
import pytest
from conftest import ROOT, Result
from pydantic import Field
from zygote import Zygote

from bigmodel_cli import plugins
from bigmodel_cli.catalog import catalog
from bigmodel_cli.config import Options, Table, typed
from bigmodel_cli.errors import SpecError
from bigmodel_cli.models.cnn import CNNOptions
from bigmodel_cli.optim import OPTIMIZERS
from bigmodel_cli.optim.base import AnyOptimizerOptions, Optimizer
from bigmodel_cli.promises import check_other, check_plugins
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.roles import Weight
from bigmodel_cli.schedules import SCHEDULES
from bigmodel_cli.schedules.base import AnyScheduleOptions
from bigmodel_cli.tables import TABLES
from bigmodel_cli.tasks import TASKS
from bigmodel_cli.tasks.base import AnyTaskOptions

SPEC = """
model: count
data: bits
task: majority
train: {steps: 8, batch_size: 8, optimizer: sign, schedule: halves, validate_every: 4,
  log_every: 1, precision: fp32}
"""


@pytest.mark.parametrize("table", TABLES, ids=lambda table: table.kind)
def test_a_table_has_each_class_under_its_type_and_the_catalog_lists_it(
    table: Table[Options],
) -> None:
    assert len(table) >= 2
    for name, options in table.items():
        assert issubclass(options, table.base)
        assert options.model_fields["type"].default == name
        assert not options.__abstractmethods__
    assert catalog()[table.kind].keys() == table.keys()


class Shape(Options):
    """Of a drawing."""


class Round(Shape):
    """Without corners."""

    type: Literal["round"] = "round"


class Square(Shape):
    """With four."""

    type: Literal["square"] = "square"
    side: int = 1


SHAPES = Table("shape", Shape, Round)


class Drawing(Options):
    """Of shapes."""

    one: Annotated[Shape, SHAPES] | None = None
    several: list[Annotated[Shape, SHAPES]] = Field([])


def test_options_are_chosen_by_type_and_a_class_that_joins_before_the_first_use_is_among_them() -> (
    None
):
    SHAPES["square"] = Square  # as a plugin does
    found = Drawing.model_validate({"one": "round", "several": [{"type": "square", "side": 3}]})
    assert dict(found) == {"one": Round(), "several": [Square(side=3)]}
    assert typed(Drawing.model_fields["several"].annotation) == {"round": Round, "square": Square}
    with pytest.raises(pydantic.ValidationError, match="union_tag_invalid"):
        Drawing.model_validate({"one": {"type": "oval"}})


SEVERAL = """
import sys
from bigmodel_cli.__main__ import run

for line in sys.argv[1:]:
    status = run(line.split())
    for stream in (sys.stdout, sys.stderr):
        print(f"[{status}]", file=stream, flush=True)
"""


def several(*lines: str) -> list[tuple[int, str, str]]:
    """Commands one after the other in one process that joins its plugins once: of each (status,
    stdout, stderr).
    """
    done = subprocess.run([sys.executable, "-c", SEVERAL, *lines], capture_output=True, text=True)
    outs, errs = (re.split(r"\[(\d+)\]\n", stream) for stream in (done.stdout, done.stderr))
    assert len(outs) == 2 * len(lines) + 1, done.stderr
    return [(int(outs[i + 1]), outs[i], errs[i]) for i in range(0, 2 * len(lines), 2)]


def test_a_plugins_task_model_data_optimizer_and_schedule_train_resume_and_are_evaluated(
    cli: Callable[..., Result],
) -> None:
    shutil.copy(ROOT / "tests" / "bits.py", "bits.py")
    Path("spec.yaml").write_text(SPEC)
    whole, parted, refused, resumed, found, checked = several(
        "pretrain spec.yaml --out whole --plugin bits.py",
        "pretrain spec.yaml --out parted --plugin bits.py --set train.steps=4 --set"
        " train.schedule=constant",
        "pretrain spec.yaml --out parted --plugin bits.py --resume",
        "pretrain --out parted --plugin bits.py --resume --set train.steps=8",
        "eval whole --json --plugin bits.py",
        "check bits.py",
    )
    assert [status for status, _, _ in (whole, parted, refused, resumed, found, checked)] == [
        0,
        0,
        2,
        0,
        0,
        0,
    ]
    records = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()]
    assert [r["lr"] for r in records if "lr" in r] == [0.05] * 4 + [0.025] * 4
    assert "optimizer: sign 2 tensors" in whole[2]
    assert "train.schedule.type" in refused[2]
    last = next(r["val"] for r in reversed(records) if "val" in r)
    assert {name: json.loads(found[1])[name] for name in last} == pytest.approx(last)
    rows = [tuple(re.split("  +", line.rstrip())) for line in checked[1].splitlines()]
    told = "it has what AnyTaskOptions asks for; what it does is tried with a spec"
    (joined,) = [row for row in rows if row[:3] == ("task majority", "joins", "kept")]
    assert joined[3].startswith(told)
    for row in (
        ("optimizer sign", "saved"),
        ("optimizer sign", "sums"),
        ("schedule halves", "factors"),
    ):
        assert (*row, "kept") in rows
    without = cli("eval", "whole")
    assert without.status == 2
    for kind in ("bits", "count", "majority", "sign", "halves"):
        assert f"unknown type '{kind}'" in without.err
    assert without.err.count("this spec was made with --plugin bits.py: give it") == 5


def test_what_a_plugins_code_raises_is_one_message_with_its_line(plain_zygote: Zygote) -> None:
    bits = (ROOT / "tests" / "bits.py").read_text()
    Path("build.py").write_text(bits.replace("return Count()", 'raise RuntimeError("no")'))
    Path("loss.py").write_text(bits.replace('batch["label"].float()', 'batch["labels"]'))
    Path("spec.yaml").write_text(SPEC)
    for name, fault in (("build", "RuntimeError: no"), ("loss", "KeyError: 'labels'")):
        done = plain_zygote.run("pretrain", "spec.yaml", "--out", name, "--plugin", f"{name}.py")
        assert (done.status, done.out) == (2, "")
        assert re.search(rf"^{name}\.py:\d+: {fault} \(in a plugin", done.err, re.MULTILINE)
        assert "Traceback" not in done.err
    status = json.loads(Path("loss/status.json").read_text())
    assert (status["state"], status["code"]) == ("failed", 2)


LOSS = "return loss, torch.tensor(float(len(outputs)))"
SCORES = 'return {"loss": (loss, ones), "right": (right, ones)}, {}'


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        (LOSS, "return None", ":106: Majority: in `loss, n = task.loss("),
        (LOSS, "return loss, torch.tensor(-3.0)", "loss: a negative number of targets: -3"),
        (
            SCORES,
            'return {"loss": (loss.repeat(2), ones)}, {}',
            "score: loss: [192] sums and [96] counts, and the batch has 96 items",
        ),
    ],
    ids=["loss-none", "loss-negative", "score-long"],
)
def test_what_cannot_be_used_of_a_plugin_is_one_message_with_its_file(
    before: str, after: str, message: str, plain_zygote: Zygote
) -> None:
    bits = (ROOT / "tests" / "bits.py").read_text()
    assert before in bits
    Path("bits.py").write_text(bits.replace(before, after))
    Path("spec.yaml").write_text(SPEC)
    done = plain_zygote.run("pretrain", "spec.yaml", "--out", "run", "--plugin", "bits.py")
    assert (done.status, done.out) == (2, "")
    assert re.search(r"^(bigmodel: )?bits\.py:", done.err, re.MULTILINE)
    assert message in done.err
    assert "Traceback" not in done.err


class Forgetful(Optimizer):
    """Keeps a number that no checkpoint has, and does not divide."""

    last = 0.0

    def step(self, lr: float, divisor: float) -> None:
        for p, gradient in zip(self.parameters, self.gradients(), strict=True):
            self.last = 0.5 * self.last + float(gradient.sum())
            p.data.sub_(lr * self.last * gradient)


class ForgetfulOptions(AnyOptimizerOptions):
    """Its options."""

    type: Literal["forgetful"] = "forgetful"
    state_per_param: ClassVar[int] = 0
    lr: float = 0.1

    def build(self, weights: Iterable[Weight]) -> Optimizer:
        return Forgetful(0.0, weights)


class EndlessOptions(AnyScheduleOptions):
    """Below zero in most steps."""

    type: Literal["endless"] = "endless"

    def after_warmup(self, step: int, total: int) -> float:
        return 1 / (total - 2 - step)


def test_broken_promises_of_optimizers_and_schedules_are_reported() -> None:
    lines = "\n".join(f.line() for f in check_other("optimizer", ForgetfulOptions()))
    assert "sums: NOT KEPT (sums move otherwise than means" in lines
    assert "saved: NOT KEPT (a resumed run moves the weights otherwise" in lines
    (finding,) = check_other("schedule", EndlessOptions())
    assert finding.line().startswith(
        "factors: NOT KEPT (step 0 of 1 has the factor -1.0; return a finite number"
    )


@pytest.mark.parametrize(
    ("kind", "type"), [(t.kind, type) for t in (OPTIMIZERS, SCHEDULES) for type in t]
)
def test_every_optimizer_and_schedule_of_the_package_keeps_its_promises(
    kind: str, type: str
) -> None:
    table = {"optimizer": OPTIMIZERS, "schedule": SCHEDULES}[kind]
    assert all(
        finding.kept for finding in check_other(kind, table[type].model_validate({"type": type}))
    )


def test_training_refuses_a_plugins_optimizer_that_does_not_keep_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plugins, "_ORIGINS", {ForgetfulOptions: ("optimizer", Path("own.py"))})
    train = TrainOptions.model_construct(steps=1, optimizer=ForgetfulOptions())
    spec = SimpleNamespace(model=CNNOptions.model_construct(layers=[]), train=train)
    with pytest.raises(
        SpecError,
        match=r"^train\.optimizer: forgetful \(own\.py\) does not keep what an optimizer promises",
    ):
        check_plugins(spec)


def test_missing_methods_of_a_plugins_class_are_reported_with_the_line(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("half.py").write_text(
        "from typing import Literal\nfrom bigmodel_cli.tasks.base import AnyTaskOptions\n\nclass"
        " HalfOptions(AnyTaskOptions):\n    type: Literal['half'] = 'half'\n\nPARTS = {'task':"
        " [HalfOptions]}\n"
    )
    monkeypatch.setenv(plugins.VARIABLE, json.dumps([["half.py", str(Path("half.py").resolve())]]))
    with pytest.raises(
        SpecError,
        match=r"^half\.py:4: PARTS: HalfOptions lacks build, output, as bigmodel_cli\.tasks\.base",
    ):
        plugins.join(TABLES)
    assert "half" not in TASKS

    class Loose(Options):
        type: Literal["loose"] = "loose"

    with pytest.raises(
        SpecError,
        match=(
            r"Loose is not a subclass of bigmodel_cli\.tasks\.base\.AnyTaskOptions:"
            r" it lacks .*build"
        ),
    ):
        plugins._name("loose.py", Loose, AnyTaskOptions)


def test_schedules_of_older_checkpoints_are_read() -> None:
    for type in ("constant", "linear", "cosine", "inverse_sqrt", "wsd"):
        old = {"type": type, "warmup": 3, "final": 0.1, "decay": 0.4}
        found = TrainOptions.model_validate({"steps": 10, "schedule": old}).schedule
        assert dict(found).items() <= old.items()
        assert found.type == type
    with pytest.raises(pydantic.ValidationError, match="decay"):
        TrainOptions.model_validate({"steps": 10, "schedule": {"type": "cosine", "decay": 0.4}})
