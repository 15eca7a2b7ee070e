"""What a network looks at in an image, or in a recording's spectrogram: its heads, and the region
that decides the class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from bigmodel_cli.attend.deletion import with_trial
from bigmodel_cli.attend.gradcam import METHODS, class_of, grad_cam
from bigmodel_cli.attend.heat import Heat, heat_over, picture_of
from bigmodel_cli.attend.look import Layer, Look, Side
from bigmodel_cli.attend.rollout import ROLLOUT, rolled
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.data import input_of
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.models import Model
from bigmodel_cli.parts.contract import Attends, attending
from bigmodel_cli.parts.watched import AttentionCall
from bigmodel_cli.tasks import Task

Describe = Callable[[str, Attends, AttentionCall, Side, int], Layer]
"""Makes a layer of its name, part and call; the side is both axes', and the query a position."""


@dataclass(frozen=True)
class ImageOptions:
    """`cam` is a method of `gradcam.METHODS` and `layer` the module it is of; `target` names the
    class, by default the foremost one.

    `query` is a position ("0") or a patch ("ROW,COLUMN"). None leaves each to the model.
    """

    cam: str | None = None
    layer: str | None = None
    target: str | None = None
    query: str | None = None


def look_at_image(
    loaded: Loaded, path: str | Path, options: ImageOptions, describe: Describe | None = None
) -> Look:
    """What the model sees in an image's or a recording's file.

    With `describe` its attention's layers are a part of it. Raises `DataError` for a file that
    cannot be read, and `SpecError` for options that do not fit the model.
    """
    reader = input_of(loaded.info).reader(loaded.spec.data, loaded.assets)
    batch = reader.batch([reader.read(str(path), "the image")[0]])
    image, model = batch["image"].to(loaded.device), loaded.model
    calls, logits = calls_of(model, model.unmasked({"image": image}))
    notes, layers = [], []
    if model.grid is None:
        if options.query is not None:
            raise SpecError(
                "--query: this network has no patches that look; leave it out, or name a class:"
                " --class NAME"
            )
        if why := model.unseen_attention():
            notes.append(
                f"{why}, so that no head has a map of the whole image: what decides the class is"
                " shown by Grad-CAM"
            )
    heat = _heat(loaded, image, logits, calls, options)
    if model.grid is not None and describe is not None:
        found = attending(model)
        for name, call in calls.items():
            side = patches(call.q.shape[2], model.first, model.grid)
            query = position_of(options.query, side)
            layers.append(describe(name, found[name], call, side, query))
    named = f"{loaded.name} ({loaded.spec.model.type})"
    return Look(named, layers, heat.caption, [*notes, *heat.remarks], heat=heat)


def calls_of(
    model: Model, arguments: tuple[Tensor, ...]
) -> tuple[dict[str, AttentionCall], Tensor]:
    """Each part's call of attention by name, in the order of the forward pass, and the output."""
    parts, calls = attending(model), dict[str, AttentionCall]()
    try:
        for name, part in parts.items():
            part.watcher = lambda call, name=name: calls.__setitem__(name, call)
        with torch.inference_mode():
            output: Tensor = model(*arguments)
    finally:
        for part in parts.values():
            part.watcher = None
    return calls, output


def _heat(
    loaded: Loaded,
    image: Tensor,
    logits: Tensor,
    calls: Mapping[str, AttentionCall],
    options: ImageOptions,
) -> Heat:
    """The map over the image: rollout of patches, Grad-CAM of other networks or where asked for."""
    model, info, task = loaded.model, loaded.info, loaded.task
    if not info.outputs or not task.labels:
        if options.cam or options.layer or options.target:
            raise SpecError(
                "--cam, --cam-layer and --class need a network with classes or numbers, and this"
                " one rebuilds hidden patches"
            )
        return picture_of(image, info, "this network rebuilds hidden patches: none was hidden here")
    chosen = class_of(options.target, info)
    if options.cam is None and options.layer is None and model.grid is not None and calls:
        heat = rollout(model, image, logits, calls, info, task, chosen)
    else:
        method = options.cam or "gradcam"
        if method not in METHODS:
            raise SpecError(f"--cam {method!r} is not one of {', '.join(METHODS)}")
        heat = grad_cam(model, image, info, task, method=method, layer=options.layer, chosen=chosen)
    return with_trial(heat, model, image, info, task, chosen)


def rollout(
    model: Model,
    image: Tensor,
    logits: Tensor,
    calls: Mapping[str, AttentionCall],
    info: DatasetInfo,
    task: Task | None,
    chosen: int | None = None,
) -> Heat:
    """Attention rollout over the patches of a normalised image (1, C, H, W).

    It starts at the class token, or, without one, at the mean of the patches. It is the same for
    all classes.
    """
    assert model.grid is not None
    rows, columns = model.grid
    length = next(iter(calls.values())).q.shape[2]
    inside = slice(model.first, model.first + rows * columns)
    start = torch.zeros(length, dtype=torch.float64, device=image.device)
    start[0 if model.first else inside] = 1.0
    shares = rolled(list(calls.values()), start / start.sum())[inside]
    heat = (shares - shares.min()).view(1, 1, rows, columns).float()
    return heat_over(image, heat, logits, info, task, ROLLOUT, chosen=chosen)


def patches(length: int, first: int, grid: tuple[int, int]) -> Side:
    """The positions of a Vision Transformer: class token, patches by row and column, registers."""
    rows, columns = grid
    places = [f"{row},{column}" for row in range(rows) for column in range(columns)]
    registers = length - first - len(places)
    return Side(
        "image",
        [*["class token"] * first, *places, *[f"register {i + 1}" for i in range(registers)]],
        first=first,
        grid=grid,
    )


def position_of(given: str | None, side: Side) -> int:
    """The position of `--query`: a number, or ROW,COLUMN of a patch (from 0).

    Left out, it is the class token, else the patch in the middle. Raises `SpecError`.
    """
    assert side.grid is not None
    rows, columns = side.grid
    if given is None:
        return 0 if side.first else (rows // 2) * columns + columns // 2
    numbers = given.split(",")
    if not all(n.strip().isdecimal() and n.isascii() for n in numbers) or len(numbers) > 2:
        raise SpecError(
            f"--query {given!r} is neither a position nor the ROW,COLUMN of a patch, such as 3,4"
        )
    if len(numbers) == 1:
        place = int(numbers[0])
        if place >= len(side):
            raise SpecError(f"--query {given}: the positions are 0 to {len(side) - 1}")
        return place
    row, column = map(int, numbers)
    if row >= rows or column >= columns:
        raise SpecError(
            f"--query {given}: the patches' rows are 0 to {rows - 1}, their columns 0 to"
            f" {columns - 1}"
        )
    return side.first + row * columns + column
