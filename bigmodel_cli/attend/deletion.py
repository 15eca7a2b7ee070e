"""Maps put to the test: what the network still says without, or with only, what they point at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from bigmodel_cli.attend.heat import Heat, Trial, area, likeliest, resized
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.models import Model
from bigmodel_cli.tasks import Task

STEPS = 8
"""Steps from the whole image to none of it."""
RANDOM_MAPS = 5
"""Maps of random numbers that a map is compared with."""
LEAST = 0.05
"""Least probability of a class whose map is tested."""
BLUR = 0.1
"""The deviation of a blur, in parts of the image's side."""
AT_ONCE = 16
"""Images of a forward pass."""


def with_trial(
    heat: Heat,
    model: Model,
    image: Tensor,
    info: DatasetInfo,
    task: Task | None = None,
    chosen: int | None = None,
    seed: int = 0,
    baseline: str = "mean",
) -> Heat:
    """The heat of a normalised image (1, C, H, W), with its trial on a baseline of `BASELINES`.

    As it is where there is none: where the task gives no probability, or the heat is flat; with a
    note where the class has next to no probability, which could not fall.
    """
    task = task or likeliest(info)
    if heat.heat is None or heat.value is not None or not bool(heat.heat.max() > 0):
        return heat
    with torch.inference_mode():
        best, _, whole = task.foremost(model(image), chosen)
    if not whole >= LEAST:
        note = f"not put to the test: the class has {100 * whole:.2g} % of probability to lose"
        return replace(heat, note="; ".join(filter(None, (heat.note, note))))
    generator = torch.Generator().manual_seed(seed)
    size = (image.shape[2], image.shape[3])
    rivals = [
        resized(torch.randn(1, 1, *heat.size, generator=generator), size)
        for _ in range(RANDOM_MAPS)
    ]
    blank = mean_of(image) if baseline == "mean" else blurred(image)
    curves = []
    for one in (heat.heat, *rivals):
        order = ranks(one, generator).to(image.device)
        images = torch.cat([*_without(image, order, blank), *_alone(image, order, blank)])
        shares = [said / whole for said in _probabilities(model, images, task, best)]
        curves.append((tuple(shares[:STEPS]), tuple(shares[STEPS:])))
    steps = tuple((i + 1) / STEPS for i in range(STEPS))
    at_random = tuple(
        (area(gone, 1.0), area(alone[:-1], gone[-1], 1.0)) for gone, alone in curves[1:]
    )
    return replace(heat, trial=Trial(steps, *curves[0], at_random, baseline))


def ranks(heat: Tensor, generator: torch.Generator) -> Tensor:
    """(H, W)   the place of each pixel from 0, the largest first; ties in a random order."""
    flat = heat.flatten()
    mixed = torch.randperm(len(flat), generator=generator)
    order = mixed[flat[mixed].argsort(descending=True, stable=True)]
    found = torch.empty_like(order)
    found[order] = torch.arange(len(order))
    return found.view(heat.shape)


def mean_of(image: Tensor) -> Tensor:
    """(1, C, 1, 1)   the mean colour of an image (1, C, H, W)."""
    return image.mean((2, 3), keepdim=True)


def blurred(image: Tensor) -> Tensor:
    """The image (1, C, H, W) under a Gaussian whose deviation is a part of each side (`BLUR`).

    Beyond the borders it is mirrored. Unlike one colour, a blur has no edges that the network never
    saw, so that what is lost is detail (Fong and Vedaldi 2017).
    """
    for side in (2, 3):
        length = image.shape[side]
        place = torch.arange(length, dtype=torch.float64)
        again = torch.cat((-1 - place.flip(0), place, 2 * length - 1 - place.flip(0)))  # mirrored
        source = torch.cat((place.flip(0), place, place.flip(0))).long()
        near = torch.exp(-((place[:, None] - again) ** 2) / (2 * (BLUR * length) ** 2))
        weights = torch.zeros(length, length, dtype=torch.float64).index_add_(1, source, near)
        weights = (weights / weights.sum(1, keepdim=True)).to(image)  # (length, length)
        image = (weights @ image) if side == 2 else (image @ weights.T)
    return image


def _without(image: Tensor, order: Tensor, blank: Tensor) -> list[Tensor]:
    """The image without its first 1 / STEPS, 2 / STEPS ... pixels: they have the baseline's."""
    return [torch.where(order < count, blank, image) for count in _counts(order)]


def _alone(image: Tensor, order: Tensor, blank: Tensor) -> list[Tensor]:
    """Those pixels alone, on the baseline."""
    return [torch.where(order < count, image, blank) for count in _counts(order)]


def _counts(order: Tensor) -> list[int]:
    return [round(order.numel() * (i + 1) / STEPS) for i in range(STEPS)]


def _probabilities(model: Model, images: Tensor, task: Task, best: int) -> Sequence[float]:
    """The probability of the output `best` for each image."""
    with torch.inference_mode():
        rows = [row for few in images.split(AT_ONCE) for row in model(few).split(1)]
    return [task.foremost(row, best)[2] for row in rows]
