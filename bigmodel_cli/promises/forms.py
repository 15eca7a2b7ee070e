"""Promises of every part: shapes, meta device, repeatability, saving, gradients, rows."""

from __future__ import annotations

from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.promises.trial import LENGTH, ROWS, Broken, Trial, expect_equal


def shape(trial: Trial) -> None:
    """(B, T, C) comes out as it goes in, finite, at odd sizes and at T = 1."""
    for rows, length in ((ROWS, LENGTH), (1, 1), (2, 1), (1, 7), (2, trial.layer.max_len)):
        x = trial.input(rows, length)
        y = trial.run(x)
        if y.shape != x.shape:
            raise Broken(f"{list(x.shape)} goes in and {list(y.shape)} comes out")
        if not bool(torch.isfinite(y).all()):
            raise Broken(f"numbers that are not finite come out at the shape {list(x.shape)}")


def meta(trial: Trial) -> None:
    """`--dry-run` builds it and runs it where tensors have shapes and no values."""
    with torch.device("meta"):
        trial.part = trial.build()
        trial.part.eval()
        x = torch.empty(ROWS, LENGTH, trial.dim)
    y = trial.run(x)
    if y.device.type != "meta" or y.shape != x.shape:
        raise Broken(
            f"{list(y.shape)} on {y.device.type} comes out for {list(x.shape)} on the meta device"
        )


def repeatable(trial: Trial) -> None:
    """Evaluating twice gives the same."""
    x = trial.input()
    expect_equal(trial.run(x), trial.run(x), "evaluating twice gives two outputs")


def saved(trial: Trial) -> None:
    """Another part with the same weights and buffers computes the same."""
    x = trial.input()
    want = trial.run(x)
    state = {name: tensor.clone() for name, tensor in trial.part.state_dict().items()}
    torch.manual_seed(7)
    trial.part = trial.build()
    trial.part.eval()
    names = trial.part.state_dict().keys()
    if names != state.keys():
        raise Broken(
            f"the names of its weights change: {', '.join(sorted(names ^ state.keys()))[:100]}"
        )
    trial.part.load_state_dict(state)
    expect_equal(trial.run(x), want, "a copy with the saved weights gives another output")


def gradients(trial: Trial) -> None:
    """Every trained weight has a gradient."""
    trial.part.train()
    y = trial.call(trial.input(4 * ROWS).requires_grad_())
    if y.requires_grad:
        y.backward(torch.randn(y.shape, generator=torch.Generator().manual_seed(3)))
    weights = {name: p for name, p in trial.part.named_parameters() if p.requires_grad}
    without = [
        name for name, p in weights.items() if p.grad is None or not bool((p.grad != 0).any())
    ]
    if without:
        raise Broken(f"no gradient reaches {', '.join(without)}")
    wrong = [
        name
        for name, p in weights.items()
        if p.grad is not None and not bool(torch.isfinite(p.grad).all())
    ]
    if wrong:
        raise Broken(f"the gradient of {', '.join(wrong)} is not finite")


def rows(trial: Trial) -> None:
    """A row gives the same alone and in a batch; no gradient flows between rows."""
    x = trial.input()
    want = trial.run(x)
    expect_equal(
        trial.run(x[1:2]), want[1:2], "a row alone gives another output than with its neighbours"
    )
    other = torch.cat((5 * trial.input(1, seed=4), x[1:]))
    expect_equal(
        trial.run(other)[1:], want[1:], "another first row changes the outputs of the others"
    )
    if bool((slope(trial, x, 1)[[0, 2]] != 0).any()):
        raise Broken("in training a row's output depends on other rows")


def slope(trial: Trial, x: Tensor, row: int, end: int = LENGTH) -> Tensor:
    """(B, T, C)   gradient of a row's first `end` outputs by each input, in training."""
    trial.part.train()
    x = x.clone().requires_grad_()
    y = trial.call(x)[row, :end]
    trial.part.eval()
    if not y.requires_grad:
        return torch.zeros_like(x)
    ways = torch.randn(y.shape, generator=torch.Generator().manual_seed(3))
    (found,) = torch.autograd.grad(y, x, ways, allow_unused=True)
    return torch.zeros_like(x) if found is None else found


def positions(trial: Trial) -> None:
    """A position gives the same alone."""
    x = trial.input()
    alone = torch.cat([trial.run(x[:, t : t + 1]) for t in range(LENGTH)], 1)
    expect_equal(alone, trial.run(x), "positions one by one give another output than together")
