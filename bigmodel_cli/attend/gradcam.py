"""Which region of an image decides its class: Grad-CAM and its kin, at any layer with a map.

A layer's map is what its module gave, as the next one reads it: what is changed in place before
that (an activation, a sum with a shortcut) belongs to it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from bigmodel_cli.attend.heat import Heat, heat_over, likeliest
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import listed, one_line
from bigmodel_cli.errors import SpecError, did_you_mean
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.models import Model
from bigmodel_cli.tasks import Task

MOST_NAMED = 12
"""Layers that a message names."""
COARSE, FINE = 5, 7
"""Places to a side below which a map hardly says where, and from which on one is proposed."""


def by_channel(maps: Tensor, slopes: Tensor) -> Tensor:
    """Grad-CAM (Selvaraju et al. 2017): maps (1, K, h, w) weighted by their mean slopes."""
    return (slopes.mean(dim=(2, 3), keepdim=True) * maps).sum(1, keepdim=True)


def by_pixel(maps: Tensor, slopes: Tensor) -> Tensor:
    """Grad-CAM++ (Chattopadhay et al. 2018), for the exponential of the score.

    A map's weight is the sum of its slopes above zero, each times a = g^2 / (2 g^2 + S g^3) where g
    is the slope of the score, and S the map's sum (equations 10 and 19). The exponential's own
    slope is a factor of all of them, and left out.
    """
    below = 2 + maps.sum((2, 3), keepdim=True) * slopes
    parts = torch.where((slopes != 0) & (below != 0), 1 / below, 0.0)
    weights = (parts * slopes.clamp(min=0)).sum((2, 3), keepdim=True)
    return (weights * maps).sum(1, keepdim=True)


def by_place(maps: Tensor, slopes: Tensor) -> Tensor:
    """HiResCAM (Draelos and Carin 2020): each place of each map times its own slope."""
    return (slopes * maps).sum(1, keepdim=True)


Weighting = Callable[[Tensor, Tensor], Tensor]
METHODS: dict[str, tuple[str, Weighting]] = {
    "gradcam": ("Grad-CAM", by_channel),
    "gradcam++": ("Grad-CAM++", by_pixel),
    "hirescam": ("HiResCAM", by_place),
}
"""Option -> the method's name, and what it makes of maps and slopes: (1, 1, h, w)."""


def grad_cam(
    model: Model,
    image: Tensor,
    info: DatasetInfo,
    task: Task | None = None,
    *,
    method: str = "gradcam",
    layer: str | None = None,
    chosen: int | None = None,
) -> Heat:
    """The map of one normalised image (1, C, H, W), for the task's foremost output or one chosen.

    It is of the module named `layer`, by default the last with a map. Maps are weighted by the
    slopes of the class's logit, summed, clamped at zero and resized to the image. Raises
    `SpecError` for a layer that has no map.
    """
    title, weighting = METHODS[method]
    name = model.last_feature_layer() if layer is None else layer
    sizes = check_layer(model, name, image)
    with torch.enable_grad(), outputs_of(model, name) as kept:
        logits = model(image.detach().requires_grad_())
        best = (task or likeliest(info)).foremost(logits.detach(), chosen)[0]
        (slopes,) = torch.autograd.grad(logits[0, best], kept[-1], allow_unused=True)
    maps = _map(model, name, kept[-1].detach()).double()  # (1, K, h, w)
    if slopes is None:
        raise SpecError(f"--cam-layer {name}: the class is not read from it")
    slopes = _map(model, name, slopes).double()
    heat = weighting(maps, slopes)  # (1, 1, h, w)
    note = ""
    if not bool(slopes.any()):
        note = f"the class does not depend on the map of {name}: the heat is 0 everywhere"
    elif weighting is by_pixel and bool((maps < 0).any()):
        note = (
            f"Grad-CAM++ is derived for maps that are not below zero, and that of {name} is in"
            " places"
        )
    accounts = None
    if weighting is by_place and len(kept) == 1:
        rest = logits.detach()[0, best] - _without(model, name, image)[0, best]
        accounts = (float(heat.sum()), float(rest))
    found = heat_over(
        image.detach(),
        heat.clamp(min=0).float(),
        logits.detach(),
        info,
        task,
        title,
        name,
        chosen,
        accounts,
        note,
    )
    coarse = _coarse(name, sizes) if layer is None else ""
    return replace(found, note="; ".join(filter(None, (found.note, coarse))))


@contextlib.contextmanager
def outputs_of(model: Model, name: str) -> Iterator[list[Tensor]]:
    """Inside, what the module `name` gives is kept: the tensors themselves, not copies."""
    kept: list[Tensor] = []
    hook = model.get_submodule(name).register_forward_hook(
        lambda module, inputs, output: kept.append(output)
    )
    try:
        yield kept
    finally:
        hook.remove()


def _map(model: Model, name: str, output: Tensor) -> Tensor:
    found = model.feature_map(name, output)
    assert found is not None
    return found


def _without(model: Model, name: str, image: Tensor) -> Tensor:
    """The logits (1, K) where what the module `name` gives is zero everywhere."""
    hook = model.get_submodule(name).register_forward_hook(
        lambda module, inputs, output: torch.zeros_like(output)
    )
    try:
        with torch.inference_mode():
            logits: Tensor = model(image)
    finally:
        hook.remove()
    return logits


def maps_of(model: Model, image: Tensor) -> dict[str, tuple[int, int]]:
    """The modules that give a map of the image, in the order of the forward pass: their sizes."""
    found: dict[str, tuple[int, int]] = {}

    def keep(name: str, output: Any) -> None:
        y = model.feature_map(name, output) if torch.is_tensor(output) else None
        if y is not None:
            found[name] = (y.shape[2], y.shape[3])

    hooks: list[Any] = []

    def watch(name: str, module: Module) -> None:
        hooks.append(module.register_forward_hook(lambda m, inputs, output: keep(name, output)))

    try:
        for name, module in model.named_modules():
            if name:
                watch(name, module)
        with torch.inference_mode():
            model(image)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _coarse(name: str, sizes: dict[str, tuple[int, int]]) -> str:
    """What to say of a map of few places, where an earlier layer has one of more."""
    before = [n for n in list(sizes)[: list(sizes).index(name)] if min(sizes[n]) >= FINE]
    if min(sizes[name]) >= COARSE or sizes[name] == (1, 1) or not before:
        return ""
    outer = min(n.count(".") for n in before)
    finer = next(n for n in reversed(before) if n.count(".") == outer)
    here, there = (" x ".join(map(str, sizes[n])) for n in (name, finer))
    return (
        f"the map of {name} has {here} places, too few to say much of where; that of an earlier"
        f" layer has {there}: --cam-layer {finer}"
    )


def check_layer(model: Model, name: str, image: Tensor) -> dict[str, tuple[int, int]]:
    """The sizes of all maps, by name. Raises `SpecError` where there is none of that name, with the
    names of those that are.
    """
    found = maps_of(model, image)
    if name in found:
        return found
    larger = [n for n, size in found.items() if size != (1, 1)]
    if not larger:
        raise SpecError(f"--cam: nothing in this network gives a map of the image, {name} neither")
    known = any(name == other for other, _ in model.named_modules())
    fault = "gives no map of the image" if known else f"is not in it{did_you_mean(name, larger)}"
    outer = sorted(larger, key=lambda n: (n.count("."), -larger.index(n)))[:MOST_NAMED]
    shown = ", ".join(f"{n} ({found[n][0]} x {found[n][1]})" for n in outer)
    more = f" ... ({len(larger)} in all)" if len(larger) > len(outer) else ""
    raise SpecError(f"--cam-layer {name} {fault}; layers with a map of the image: {shown}{more}")


def class_of(given: str | None, info: DatasetInfo) -> int | None:
    """The index of the output that `--class` names; None where it is left to the model.

    Raises `SpecError` for a name that is not one.
    """
    if given is None:
        return None
    names = info.classes or info.targets
    if given not in names:
        raise SpecError(
            f"--class {given!r} is not one of the model's outputs{did_you_mean(given, names)}; they"
            f" are {listed([one_line(name) for name in names], 10)}"
        )
    return names.index(given)
