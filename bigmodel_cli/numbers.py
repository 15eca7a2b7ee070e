"""Numbers that travel by name: the rows of a head for the targets that a checkpoint has learnt.

A head gives numbers scaled by the mean and deviation of the training items. Other items have
others: the rows are then scaled so that the head's numbers, in the data's units, are the same.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bigmodel_cli.checkpoints.weights import below
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import listed, say
from bigmodel_cli.errors import SpecError
from bigmodel_cli.labels import UNNAMED
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.models import Model

FAR = 10.0
"""Deviations differ by this factor, or means by as many deviations, where units do."""
Scale = tuple[float, float]
"""(deviation, mean) of a target."""
AS_THEY_ARE: Scale = (1.0, 0.0)
"""Of numbers that come from the network unscaled, such as an imported one's."""


@dataclass(frozen=True)
class ScaledRows:
    """A tensor with a row for each target: `times` the checkpoint's rows `plus` a number, the
    others as drawn.
    """

    drawn: Tensor
    before: list[int]
    now: list[int]
    times: list[float]
    plus: list[float]

    def __call__(self, stored: Tensor) -> Tensor:
        """The checkpoint's tensor -> this model's; computed in float64 and rounded once."""
        new = self.drawn.to(stored.device, stored.dtype, copy=True)
        new[self.now] = affine(stored[self.before], self.times, self.plus)
        return new


def affine(rows: Tensor, times: list[float], plus: list[float]) -> Tensor:
    """Each row times a number and plus another, in the rows' dtype."""
    shape = (-1, *[1] * (rows.dim() - 1))
    a, b = (torch.tensor(x, dtype=torch.float64, device=rows.device) for x in (times, plus))
    y: Tensor = (rows.double() * a.view(shape) + b.view(shape)).to(rows.dtype)
    return y


def scales(info: DatasetInfo) -> list[Scale]:
    """Of each target."""
    return list(zip(info.target_std, info.target_mean, strict=True))


def last_layer(model: Model, outputs: int) -> tuple[str, str] | None:
    """The names of the matrix and the bias that give the outputs; None where there is another
    form of head.
    """
    own = {n: t for n, t in model.state_dict().items() if below(n, model.output_layers())}
    module = next(reversed(own), "").rpartition(".")[0]
    names = (f"{module}.weight", f"{module}.bias")
    shapes = [tuple(own[name].shape) for name in names if name in own]
    if len(shapes) < 2 or len(shapes[0]) != 2 or shapes[0][0] != outputs:
        return None
    return names


def put_in_units(model: Model, info: DatasetInfo) -> bool:
    """Scale the last layer so that the model gives numbers in the data's units; whether it changed.

    A last layer that an adapter keeps frozen stays: it is scaled where its own model is written.
    Raises `SpecError` where the last layer is not linear with a bias.
    """
    if not info.targets or all(scale == AS_THEY_ARE for scale in scales(info)):
        return False
    names = last_layer(model, len(info.targets))
    if names is None:
        raise SpecError(
            "task.type: regression: the last layer is not linear with a bias alone, so that the"
            " mean and deviation of the numbers have no place in its weights"
        )
    times, none = list(info.target_std), [0.0] * len(info.targets)
    for name, plus in zip(names, (none, list(info.target_mean)), strict=True):
        weight = model.get_parameter(name)
        weight.data = affine(weight.detach(), times, plus)
    return True


def kept_numbers(
    model: Model, info: DatasetInfo, before: DatasetInfo, stored: Mapping[str, Tensor]
) -> dict[str, ScaledRows]:
    """How the tensors of the head become this model's, where some targets have the same names, or
    the checkpoint's have none and are as many.

    {} where none has, or the head is of another form: all of it is then drawn.
    """
    then, now = _matched(info.targets, before.targets)
    own, names = model.state_dict(), last_layer(model, len(info.targets))
    others = [n for n in own if below(n, model.output_layers()) and n not in (names or ())]
    if not now or names is None or any(name not in stored for name in (*names, *others)):
        return {}
    if any(stored[name].shape != own[name].shape for name in others) or (
        stored[names[0]].shape != (len(before.targets), *own[names[0]].shape[1:])
    ):
        return {}
    times, plus = [], []
    for i, j in zip(then, now, strict=True):
        factor, added = _change(info.targets[j], scales(before)[i], scales(info)[j])
        times.append(factor)
        plus.append(added)
    if len(now) != len(before.targets) or len(now) != len(info.targets):
        new = [name for j, name in enumerate(info.targets) if j not in now]
        say(
            f"the head's rows of {listed([info.targets[j] for j in now], 5)} are the checkpoint's,"
            f" by name{f'; newly initialised: {listed(new, 5)}' if new else ''}"
        )
    drawn = [own[name].detach().clone() for name in names]
    return {
        names[0]: ScaledRows(drawn[0], then, now, times, [0.0] * len(times)),
        names[1]: ScaledRows(drawn[1], then, now, times, plus),
    }


def _matched(now: tuple[str, ...], before: tuple[str, ...]) -> tuple[list[int], list[int]]:
    """The places of the targets in both that are the same."""
    if all(map(UNNAMED.fullmatch, before)) and len(now) == len(before):
        if now != before:
            pairs = ", ".join(f"{b}: {a}" for a, b in zip(now, before, strict=True))
            say(f"the checkpoint's numbers have no names; they are taken to be, in order: {pairs}")
        return list(range(len(now))), list(range(len(now)))
    shared = [name for name in now if name in before]
    return [before.index(name) for name in shared], [now.index(name) for name in shared]


def _change(name: str, before: Scale, now: Scale) -> Scale:
    """(times, plus) that a row and its bias are changed by; it is said."""
    (old, centre), (new, mean) = before, now
    if before == now:
        return (1.0, 0.0)
    said = f"{name}: mean {centre:.6g} -> {mean:.6g}, deviation {old:.6g} -> {new:.6g}"
    apart = max(old / new, new / old, abs(mean - centre) / max(old, new))
    if apart > FAR and before != AS_THEY_ARE:
        say(
            f"warning: data.targets: {said}: another unit than the checkpoint's? Its row of the"
            " head is kept as it is: what was so many deviations from the mean still is"
        )
        return (1.0, 0.0)
    say(f"data.targets: {said}: its row of the head is scaled, so that it says the same numbers")
    return (old / new, (centre - mean) / new)
