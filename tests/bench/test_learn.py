"""`bench --learn`: budgets, ladders of rates, turns, verdicts, and the course of a call, with runs
that are played.
"""

from __future__ import annotations

import io
import json
import math
import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from conftest import Result

from bigmodel_cli import checkpoints
from bigmodel_cli.assemble import build_on_meta
from bigmodel_cli.bench.learn import Request, Tools, learn, ranking, to_text
from bigmodel_cli.bench.learn.budget import Cost, budgets_of, changes_of
from bigmodel_cli.bench.learn.gate import Gate
from bigmodel_cli.bench.learn.ladder import Ladder
from bigmodel_cli.bench.learn.picture import draw
from bigmodel_cli.bench.learn.ranking import Spread
from bigmodel_cli.bench.learn.runner import Reached, RunAsked, Turns
from bigmodel_cli.bench.learn.saved import write_csv
from bigmodel_cli.bench.learn.structures import Probe, bytes_of, sized
from bigmodel_cli.commands.learning import seeds_of
from bigmodel_cli.errors import SpecError, Stopped
from bigmodel_cli.spec import load
from bigmodel_cli.train.request import Request as TrainRequest
from bigmodel_cli.train.session import train
from bigmodel_cli.train.setup import open_run
from bigmodel_cli.train.signals import Interrupted, Signals

Cli = Callable[..., Result]
COST = Cost(seconds=0.5, flops=2e9, bytes=4000.0, samples=8)


@pytest.mark.parametrize(
    ("text", "kind", "amount"),
    [
        ("90s", "time", 90.0),
        ("3min", "time", 180.0),
        ("1.5 h", "time", 5400.0),
        ("2e15flop", "flops", 2e15),
        ("2PFLOP", "flops", 2e15),
        ("10MB", "bytes", 1e7),
        ("7 bytes", "bytes", 7.0),
        ("50ksamples", "samples", 5e4),
        ("500steps", "steps", 500.0),
        ("1M", "parameters", 1e6),
        ("800k", "parameters", 8e5),
        ("1e6 parameters", "parameters", 1e6),
        ("2Mparams", "parameters", 2e6),
    ],
)
def test_a_budget_is_an_amount_with_its_unit(text: str, kind: str, amount: float) -> None:
    length, size = budgets_of(text)
    found = size if kind == "parameters" else length
    assert (length is None) == (kind == "parameters")
    assert found is not None
    assert (found.kind, found.amount) == (kind, pytest.approx(amount))


@pytest.mark.parametrize(
    "text", ["", "3", "0min", "-1s", "3m", "3 fortnights", "nan s", "1e999s", "3min,2h", "1M,2M"]
)
def test_a_bad_budget_is_refused(text: str) -> None:
    with pytest.raises(SpecError, match="--budget"):
        budgets_of(text)


def changes(text: str, cost: Cost = COST) -> dict[str, Any]:
    length, _ = budgets_of(text)
    return {change.key: change.value for change in changes_of(length, cost, "a")}


@pytest.mark.parametrize(
    ("text", "steps"),
    [("2e10flop", 10), ("1e11flop", 50), ("41kB", 10), ("100samples", 12), ("7steps", 7)],
)
def test_a_budget_is_as_many_steps_as_it_pays_for(text: str, steps: int) -> None:
    found = changes(text)
    assert found["train.steps"] == steps
    assert found["train.validate_every"] == math.ceil(steps / 10)
    assert found["train.patience"] is None


def test_a_budget_of_time_is_left_to_the_clock() -> None:
    found = changes("3min")
    assert found["train.minutes"] == 3
    assert "train.steps" not in found
    assert found["train.validate_every"] == 36


def test_a_budget_below_one_step_or_of_unknown_bytes_is_refused() -> None:
    with pytest.raises(SpecError, match="one step takes 2e"):
        changes("1e9flop")
    with pytest.raises(SpecError, match="give samples"):
        changes("1MB", Cost(1.0, 1.0, None, 4))


def climb(ladder: Ladder, quality: Callable[[float], float | None]) -> list[int]:
    tried = []
    while due := ladder.due():
        for power in due:
            ladder.found[power] = quality(ladder.at(power))
            tried.append(power)
    return tried


def test_a_ladder_goes_on_while_its_end_is_the_best() -> None:
    best = 0.016
    ladder = Ladder(0.001, False)
    tried = climb(ladder, lambda rate: 2 + abs(math.log2(rate / best)) / 51)
    assert tried == [0, -1, 1, 2, 3, 4, 5]
    assert ladder.best() == 4
    window = ladder.window()
    assert window is not None
    assert (window.low, window.high) == (0.004, 0.032)  # two steps are 0.0392, and 2 % of 2 is 0.04
    assert window.width == 8
    assert (window.open_below, window.open_above) == (False, True)


def test_a_ladder_leaves_rates_at_which_nothing_is_finite() -> None:
    ladder = Ladder(1.0, True)
    tried = climb(ladder, lambda rate: None if rate > 0.2 else rate)
    assert tried == [0, -1, 1, -2, -3, -4]
    assert ladder.best() == -3
    assert climb(Ladder(1.0, True, 1), lambda rate: rate) == [0]
    nothing = Ladder(1.0, False)
    assert climb(nothing, lambda rate: None)[-1] == -6
    assert nothing.best() is None
    assert nothing.window() is None


@dataclass
class Played:
    """A run of so many turns that writes down what is asked of it."""

    name: str
    turns: int
    told: list[str]
    fault: BaseException | None = None

    def go(self, seconds: float) -> Reached:
        self.told.append(self.name)
        self.turns -= 1
        if self.fault is not None and self.turns == 0:
            raise self.fault
        return Reached(done=self.turns == 0)

    def stop(self) -> None:
        self.told.append(f"stop {self.name}")

    def close(self) -> None:
        self.told.append(f"close {self.name}")


def asked(name: str) -> RunAsked:
    return RunAsked(name, {}, (), Path(name), "cpu")


def played(told: list[str], counts: dict[str, int], fault: BaseException | None = None) -> Turns:
    turns = Turns(lambda one: Played(one.name, counts[one.name], told, fault))
    turns.take([asked(name) for name in counts])
    return turns


def test_runs_take_turns_forwards_and_backwards() -> None:
    told: list[str] = []
    played(told, {"a": 3, "b": 2, "c": 4})
    assert [word for word in told if len(word) == 1] == list("abccbaaccc"[:3] + "cba" + "ac" + "c")


def test_runs_have_all_saved_and_ended_whatever_is_raised() -> None:
    told: list[str] = []
    with pytest.raises(Interrupted):
        played(told, {"a": 2, "b": 9}, Interrupted(signal.SIGINT))
    assert told[-4:] == ["stop a", "stop b", "close a", "close b"]


def test_waiting_between_steps_changes_nothing_and_is_not_counted(
    decoder_spec: Path, tmp_path: Path
) -> None:
    spec = load(decoder_spec)
    times = iter(range(10**6))
    gate = Gate(io.StringIO("3\n" * 100), io.StringIO(), lambda: float(next(times)), lambda: None)
    paths = []
    for name, watching in (("alone", ()), ("waiting", (gate,))):
        request = TrainRequest(name=name, out=tmp_path / name, device="cpu", watching=watching)
        with Signals() as signals:
            paths.append(train(spec, request, signals))
    answers = gate.answers
    assert isinstance(answers, io.StringIO)
    steps = [json.loads(line)["step"] for line in answers.getvalue().splitlines()]
    assert steps == [0, 3, 6, 9]
    alone, waiting = ((path / "model.safetensors").read_bytes() for path in paths)
    assert alone == waiting


def test_a_run_whose_parent_is_gone_saves_and_ends(decoder_spec: Path, tmp_path: Path) -> None:
    times = iter(range(10**6))
    gate = Gate(io.StringIO("2\n"), io.StringIO(), lambda: float(next(times)))
    request = TrainRequest(name="a", out=tmp_path / "a", device="cpu", watching=(gate,))
    with Signals() as signals, pytest.raises(Stopped):
        train(load(decoder_spec), request, signals)
    assert checkpoints.find(tmp_path / "a").name == "step-00000002"


def table(shape: tuple[int, int], seed: int) -> dict[str, list[float]]:
    noise = np.random.default_rng(seed).normal(size=shape)
    return {f"s{i}": list(row) for i, row in enumerate(noise)}


def test_the_residual_is_that_of_a_least_squares_fit_of_structures_and_seeds() -> None:
    values = table((4, 3), 1)
    y = np.array(list(values.values())).ravel()
    design = np.hstack([np.kron(np.eye(4), np.ones((3, 1))), np.kron(np.ones((4, 1)), np.eye(3))])
    fit = design @ np.linalg.lstsq(design, y, rcond=None)[0]
    found = ranking.residual(values)
    assert found is not None
    assert found.degrees == 6
    assert found.deviation == pytest.approx(math.sqrt(float(((y - fit) ** 2).sum()) / 6))


def none(one: str, other: str) -> Spread:
    return Spread(0.0, 400)


def test_structures_that_learn_alike_are_rarely_told_apart() -> None:
    shift = random.Random(3)
    false = 0
    for seed in range(200):
        values = table((5, 3), seed)
        common = [shift.gauss(0, 5) for _ in range(3)]  # what a seed does to all of them
        alike = {n: [v + c for v, c in zip(row, common, strict=True)] for n, row in values.items()}
        false += any(p.says != ranking.UNDECIDED for p in ranking.pairs(alike, none, True))
    assert false <= 16  # 5 % of 200, and three deviations


def test_a_clear_difference_has_a_verdict_unless_the_items_hide_it() -> None:
    values = {"a": [2.0, 2.1, 2.05], "b": [1.0, 1.12, 1.04], "c": [2.01, 2.1, 2.04]}
    found = {(p.first, p.second): p for p in ranking.pairs(values, none, False)}
    assert found["a", "b"].says == ranking.BETTER
    assert found["b", "c"].says == ranking.WORSE
    assert found["a", "c"].says == ranking.UNDECIDED
    assert found["a", "b"].change == pytest.approx(-0.9967, abs=1e-3)
    hidden = ranking.pairs(values, lambda one, other: Spread(0.5, 400), False)
    assert {p.says for p in hidden} == {ranking.UNDECIDED}
    one_seed = ranking.pairs({"a": [2.0], "b": [1.0]}, none, False)
    assert one_seed[0].says == ranking.UNDECIDED
    assert one_seed[0].low is None


BEST = {"decoder": 0.008, "other": 0.002}
"""The best rates of the played structures, whose losses there are 1 and 2."""


@dataclass
class Runs:
    """Starts played runs, whose folders say what a run's would."""

    started: list[str] = field(default_factory=list)
    most: int = 10**6
    metric: ClassVar = {"name": "loss", "higher_is_better": False, "percent": []}

    def __call__(self, one: RunAsked) -> Played:
        if len(self.started) == self.most:
            raise Interrupted(signal.SIGTERM)
        self.started.append(one.out.name)
        values = {c.key: c.value for c in one.changes if not isinstance(c, str)}
        rate, seed = values["train.optimizer.lr"], values["train.seed"]
        base = 1.0 + list(BEST).index(one.name)
        loss = base + 0.3 * math.log2(rate / BEST[one.name]) ** 2 + 0.001 * seed
        one.out.mkdir(parents=True)
        diverged = rate > 0.05
        status = {"state": "failed" if diverged else "done", "code": 6 if diverged else 0}
        (one.out / "status.json").write_text(json.dumps({**status, "metric": self.metric}))
        lines = [
            {"step": 2, "loss": 3.0, "elapsed": 1.0},
            {"step": 4, "loss": 2.0, "elapsed": 3.0},
            {"step": 3, "val": {"loss": loss + 1}},
            {"step": 4, "val": {"loss": loss}},
        ]
        (one.out / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
        return Played(one.name, 1, [])


def tools(start: Runs) -> Tools:
    return Tools(
        look=lambda target, changes, device: Probe(1000, 0.5, 2e9, 4, 128.0, "tokens"),
        start=start,
        judge=lambda folders, metric, device: none,
    )


@pytest.fixture
def two(decoder_spec: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    text = decoder_spec.read_text()
    (tmp_path / "other.yaml").write_text(text.replace("dim: 16", "dim: 24"))
    return ["decoder.yaml", "other.yaml"]


def request(targets: Sequence[str], **more: Any) -> Request:
    given = {"changes": ["train.optimizer.lr=0.004"], "out": Path("all"), **more}
    return Request(targets, "8e9flop", **given)


def test_each_structure_has_its_own_rate_and_the_same_seeds(two: list[str], tmp_path: Path) -> None:
    runs = Runs()
    found = learn(request(two, seeds=(5, 7)), tools(runs))
    assert [s.name for s in found.ranked] == ["decoder", "other"]
    assert [s.rate for s in found.ranked] == [0.008, 0.002]
    assert found.ranked[0].values == pytest.approx([1.005, 1.007])
    assert sorted(runs.started[:6]) == sorted(
        2 * [f"rate-{rate}-seed-5" for rate in ("0.002", "0.004", "0.008")]
    )
    assert runs.started[6:] == [
        *("rate-0.016-seed-5", "rate-0.001-seed-5", "rate-0.008-seed-7", "rate-0.002-seed-7")
    ]
    assert [p.seconds for p in found.ranked[0].best[0].curve] == [2.0, 3.0]
    assert [p.says for p in found.pairs] == [ranking.WORSE]
    text = to_text(found)
    assert "decoder: better than other" in text
    assert "0.008 to 0.008 (1 x)" in text
    saved = json.loads((tmp_path / "all" / "result.json").read_text())
    assert saved["finished"]
    assert saved["ranking"] == ["decoder", "other"]
    point = saved["structures"][0]["runs"][0]["curve"][-1]
    assert (point["step"], point["flops"], point["samples"]) == (4, 8e9, 16)
    write_csv(found, tmp_path / "c.csv")
    assert len((tmp_path / "c.csv").read_text().splitlines()) == 1 + 2 * 10
    draw(found, tmp_path / "c.png")
    assert (tmp_path / "c.png").stat().st_size > 10_000


def test_the_same_command_goes_on_and_another_is_refused(two: list[str]) -> None:
    first = Runs(most=6)
    with pytest.raises(Stopped, match="to go on: bigmodel bench") as stop:
        learn(request(two, command=("bench", "--learn")), tools(first))
    assert stop.value.status == 143
    second, third = Runs(), Runs()
    found = learn(request(two), tools(second))
    assert len(second.started) == 4
    assert len(first.started) == 6
    again = learn(request(two), tools(third))
    assert not third.started
    assert [s.values for s in again.structures] == [s.values for s in found.structures]
    with pytest.raises(SpecError, match="other changes and specs; choose another"):
        learn(request(two, changes=["train.optimizer.lr=0.002"]), tools(third))
    Path("full").mkdir()
    Path("full/x").write_text("x")
    with pytest.raises(SpecError, match="holds other files"):
        learn(request(two, out=Path("full")), tools(third))


def test_a_structure_that_is_nowhere_finite_is_said_and_has_no_verdict(two: list[str]) -> None:
    found = learn(request(two, changes=["train.optimizer.lr=1e5"]), tools(Runs()))
    assert [s.mean for s in found.structures] == [None, None]
    assert "no verdict: its loss was not finite" in to_text(found)


def test_one_seed_has_no_verdict(two: list[str]) -> None:
    found = learn(request(two, seeds=(0,)), tools(Runs()))
    assert not found.pairs
    assert "one seed tells no difference" in to_text(found)


def test_what_cannot_be_compared_is_refused(two: list[str]) -> None:
    for change, message in (
        ("data.val_fraction=0", "no validation data"),
        ("init.checkpoint=runs/a", "from initial weights"),
    ):
        with pytest.raises(SpecError, match=message):
            learn(request(two, changes=[change]), tools(Runs()))
    Path("third.yaml").write_text("base: decoder.yaml\ntask: {label_smoothing: 0.1}\n")
    with pytest.raises(SpecError, match=r"differ in task\.label_smoothing"):
        learn(request(["decoder.yaml", "third.yaml"]), tools(Runs()))
    with pytest.raises(SpecError, match="takes specs"):
        learn(request(["runs/none"]), tools(Runs()))


def test_the_width_is_scaled_to_a_number_of_parameters(two: list[str]) -> None:
    spec = load(Path(two[0]))
    _, size = budgets_of("40k")
    assert size is not None
    (change,) = sized(spec, "a", size)
    wide = load(Path(two[0]), [change])
    built = build_on_meta(wide, open_run(wide).data.info)
    assert sum(p.numel() for p in built.parameters()) == pytest.approx(40_000, rel=0.05)
    _, tiny = budgets_of("10parameters")
    assert tiny is not None
    with pytest.raises(SpecError, match="no width"):
        sized(spec, "a", tiny)


def test_a_model_without_a_width_is_not_scaled(cnn_spec: Path) -> None:
    _, size = budgets_of("40k")
    assert size is not None
    with pytest.raises(SpecError, match="has no width"):
        sized(load(cnn_spec), "a", size)


def test_the_bytes_of_a_sample_are_those_of_its_text_or_pixels(
    decoder_spec: Path, cnn_spec: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(decoder_spec.parent)
    spec = load(decoder_spec)
    assert bytes_of(spec) == pytest.approx((spec.data.longest() or 0) + 1, rel=0.1)
    assert bytes_of(load(cnn_spec)) == 64


@pytest.mark.parametrize(
    ("text", "seeds"), [(None, [0, 1]), ("3", [0, 1, 2]), ("4,9", [4, 9]), ("1", [0]), ("6,", [6])]
)
def test_seeds_are_a_number_of_them_or_a_list(text: str | None, seeds: list[int]) -> None:
    assert seeds_of(text) == seeds


def test_options_that_have_no_effect_are_refused(two: list[str], cli: Cli) -> None:
    for words, message in (
        (["--budget", "3s"], "--budget has no effect on bench without --learn"),
        (["--learn"], "--learn needs --budget"),
        (["--learn", "--budget", "3s", "--seconds", "2"], "--seconds has no effect on --learn"),
        (["--learn", "--budget", "3s", "--seeds", "1,1"], "given twice"),
        (["--learn", "--budget", "3s", "--set", "train.seed=1"], "--set train.seed"),
    ):
        found = cli("bench", *two, *words)
        assert found.status == 2
        assert message in found.err


@pytest.mark.slow
def test_real_runs_in_turns_are_those_of_pretrain(two: list[str], cli: Cli) -> None:
    """The same weights as training alone, in processes of their own; and nothing is done twice."""
    words = ["bench", "--learn", *two, "--budget", "12steps", "--rates", "1", "--device", "cpu"]
    found = cli(*words, "--out", "all", "--json")
    assert found.status == 0, found.err
    result = json.loads(found.out)
    assert result["finished"]
    run = next(r for r in result["structures"][0]["runs"] if r["seed"] == 1)
    spec = two[[s.removesuffix(".yaml") for s in two].index(result["ranking"][0])]
    alone = cli("pretrain", spec, "--seed", "1", "--out", "alone", "--device", "cpu")
    weights = [
        (checkpoints.find(Path(folder)) / "model.safetensors").read_bytes()
        for folder in (run["folder"], alone.out.strip())
    ]
    assert weights[0] == weights[1]
    assert json.loads(cli(*words, "--out", "all", "--json").out)["ranking"] == result["ranking"]
