"""Schedule-free AdamW: the paper's recursion, what it is without momentum, and an average that
every command takes.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path

import pydantic
import pytest
import torch
from conftest import Result, digests
from safetensors.torch import load_file
from zygote import Zygote

from bigmodel_cli.optim.schedule_free import ScheduleFreeAdamW, ScheduleFreeAdamWOptions
from bigmodel_cli.recipe import TrainOptions
from bigmodel_cli.roles import GAIN, MATRIX, Weight

Cli = Callable[..., Result]
NAME = "schedule_free_adamw"


def built(
    options: ScheduleFreeAdamWOptions,
) -> tuple[ScheduleFreeAdamW, dict[str, torch.nn.Parameter]]:
    """The optimizer of a matrix, which decays, and a gain and a scalar, which do not."""
    draw = torch.Generator().manual_seed(5)
    weights = {
        n: torch.nn.Parameter(torch.randn(s, generator=draw))
        for n, s in (("m", (3, 5)), ("g", (4,)), ("s", ()))
    }
    return (
        options.build([Weight(n, p, MATRIX if n == "m" else GAIN) for n, p in weights.items()]),
        weights,
    )


def test_a_learning_rate_whose_square_underflows_changes_no_weight() -> None:
    optimizer, weights = built(ScheduleFreeAdamWOptions())
    before = {n: p.detach().clone() for n, p in weights.items()}
    for p in weights.values():
        p.grad = torch.ones_like(p)
    optimizer.step(1e-200, 1.0)
    for n, p in weights.items():
        assert torch.equal(p, before[n])


def test_the_recursion_of_the_paper() -> None:
    """Defazio et al. 2024, algorithm 1, in float64 and for one number at a time."""
    options = ScheduleFreeAdamWOptions(betas=[0.8, 0.95], weight_decay=0.3)
    optimizer, weights = built(options)
    x = {n: p.detach().double().flatten().tolist() for n, p in weights.items()}
    z, v = {n: list(xs) for n, xs in x.items()}, {n: [0.0] * len(xs) for n, xs in x.items()}
    squares = 0.0
    for t in range(1, 31):
        lr = 0.02 * min(1.0, t / 7)  # warm-up, then constant
        squares += lr**2
        for n, p in weights.items():
            gradient = torch.randn(
                p.shape, generator=torch.Generator().manual_seed(100 * t + len(x[n]))
            )
            p.grad = 8 * gradient
            for i, g in enumerate(gradient.double().flatten().tolist()):
                y = 0.2 * z[n][i] + 0.8 * x[n][i]
                v[n][i] = 0.95 * v[n][i] + 0.05 * g * g
                size = (v[n][i] / (1 - 0.95**t)) ** 0.5 + 1e-8
                z[n][i] -= lr * (g / size + (0.3 * y if n == "m" else 0.0))
                x[n][i] += lr**2 / squares * (z[n][i] - x[n][i])
        optimizer.step(lr, 8.0)
    for n, p in weights.items():
        assert optimizer.averaged[n].flatten().tolist() == pytest.approx(x[n], rel=1e-5, abs=1e-6)
        y = [0.2 * a + 0.8 * b for a, b in zip(z[n], x[n], strict=True)]
        assert p.flatten().tolist() == pytest.approx(y, rel=1e-5, abs=1e-6)


def test_without_momentum_and_scaling_it_is_the_mean_of_the_places_of_gradient_descent() -> None:
    """Polyak's and Ruppert's average. A large eps takes the scaling away."""
    optimizer, weights = built(ScheduleFreeAdamWOptions(betas=[0.0, 0.9], eps=1e6))
    plain = {n: p.detach().clone() for n, p in weights.items()}
    places: dict[str, list[torch.Tensor]] = {n: [] for n in weights}
    for _ in range(12):
        for n, p in weights.items():
            p.grad = 4 * (p.detach() - 1) ** 3
            plain[n] = plain[n] - 0.05 * 4 * (plain[n] - 1) ** 3
            places[n].append(plain[n])
        optimizer.step(0.05e6, 1.0)
    for n, p in weights.items():
        torch.testing.assert_close(p.data, plain[n], rtol=1e-3, atol=1e-4)  # y is z
        torch.testing.assert_close(
            optimizer.averaged[n], torch.stack(places[n]).mean(0), rtol=1e-3, atol=1e-4
        )


def test_a_stopped_run_goes_on_exactly_and_its_checkpoint_is_the_average(
    decoder_spec: Path, cli: Cli, zygote: Zygote
) -> None:
    changes = [
        f"train.optimizer={NAME}",
        "train.steps=6",
        "train.schedule.warmup=3",
        "init.freeze=['blocks.0.ffn.*']",
    ]
    words = ["pretrain", decoder_spec, *(w for c in changes for w in ("--set", c)), "--out"]
    whole = cli(*words, "whole")
    assert whole.status == 0, whole.err
    assert f"optimizer: {NAME}" in whole.err
    assert "train.schedule:" not in whole.err
    stopped = zygote.run(*words, "run", env={"BIGMODEL_FAILPOINT": "train.step:SIGTERM:4"})
    resumed = cli(*shlex.split(stopped.err.rpartition("to go on: bigmodel ")[2]))
    assert resumed.status == 0, resumed.err
    path = Path(whole.out.strip())
    assert digests(Path(resumed.out.strip())) == digests(path)
    x, kept = load_file(path / "model.safetensors"), load_file(path / "train_state.safetensors")
    raw = {
        name.removeprefix("raw."): tensor
        for name, tensor in kept.items()
        if name.startswith("raw.")
    }
    assert raw
    assert not any(name.startswith("blocks.0.ffn.") for name in raw)
    for name, y in raw.items():
        z = kept[f"optimizer.z.{name}"]
        torch.testing.assert_close(y, z + 0.9 * (x[name] - z))
        assert not torch.equal(y, x[name])
    records = [json.loads(line) for line in Path("whole/metrics.jsonl").read_text().splitlines()]
    judged = cli("eval", "whole", "--json")
    assert json.loads(judged.out)["loss"] == pytest.approx(
        [r for r in records if "val" in r][-1]["val"]["loss"], rel=1e-6
    )


def test_a_second_average_is_refused_and_a_falling_schedule_is_remarked() -> None:
    with pytest.raises(
        pydantic.ValidationError, match=f"ema: {NAME} averages the weights itself; leave ema out"
    ):
        TrainOptions.model_validate({"steps": 9, "optimizer": NAME, "ema": 0.99})
    falling = TrainOptions.model_validate(
        {"steps": 9, "optimizer": NAME, "schedule": {"type": "linear", "final": 0.25}}
    )
    (remark,) = falling.remarks(9)
    assert remark.startswith(
        f"train.schedule: the learning rate ends at 25 % of its peak, and {NAME} is made to do"
        " without"
    )
    assert (
        TrainOptions.model_validate(
            {"steps": 9, "optimizer": NAME, "schedule": {"warmup": 4}}
        ).remarks(9)
        == []
    )
