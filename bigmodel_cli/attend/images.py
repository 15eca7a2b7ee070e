"""What a network looks at in an image, or in a recording's spectrogram: its heads, and the region
that decides the class.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from bigmodel_cli.attend.capture import watch
from bigmodel_cli.attend.deletion import with_trial
from bigmodel_cli.attend.gradcam import METHODS, class_of, grad_cam
from bigmodel_cli.attend.heat import BASELINES, Heat, heat_over, picture_of
from bigmodel_cli.attend.look import Layer, Look, Side
from bigmodel_cli.attend.patches import in_patches, patches, position_of
from bigmodel_cli.attend.rollout import ROLLOUT, rolled
from bigmodel_cli.attend.stream import Stream
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import one_line
from bigmodel_cli.data import input_of
from bigmodel_cli.device import full_precision
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.loaded import Loaded
from bigmodel_cli.models import Model
from bigmodel_cli.parts.contract import Attends, attending
from bigmodel_cli.parts.watched import AttentionCall
from bigmodel_cli.tasks import Task

Describe = Callable[[str, Attends, AttentionCall, Side, int], Layer | None]
"""Makes a layer of its name, part and call, where it is wanted; the side is that of queries and
keys, and the query a position.
"""


@dataclass(frozen=True)
class ImageOptions:
    """`cam` is a method of `gradcam.METHODS` and `layer` the module it is of; `target` names the
    class, by default the foremost one.

    `query` is a position ("0") or a patch ("ROW,COLUMN"), `baseline`, one of `BASELINES`, what
    pixels are replaced by in the test of a map, by default the mean colour. None leaves each to the
    model.
    """

    cam: str | None = None
    layer: str | None = None
    target: str | None = None
    query: str | None = None
    baseline: str | None = None


def look_at_image(
    loaded: Loaded, given: str | Path, options: ImageOptions, describe: Describe | None = None
) -> Look:
    """What the model sees in an image's or a recording's file.

    With `describe` the layers whose heads look at patches are a part of it. Raises `DataError` for
    a file that cannot be read, and `SpecError` for options that do not fit the model.
    """
    reader = input_of(loaded.info).reader(loaded.spec.data, loaded.assets)
    batch = reader.batch([reader.read(str(given), "the image")[0]])
    image, model = batch["image"].to(loaded.device), loaded.model
    notes = _refusals(model, options)
    calls, logits = calls_of(model, model.unmasked({"image": image}))
    heat = _heat(loaded, image, logits, calls, options)
    layers = [] if describe is None else _layers(model, calls, options, describe)
    notes += [*heat.remarks, *_read_by_all(model, layers, options)]
    named, title = f"{loaded.name} ({loaded.spec.model.type})", one_line(Path(given).name)
    look = Look(named, layers, one_line(heat.caption), notes, heat=heat, title=title)
    return replace(look, checkpoint=str(loaded.path))


def _refusals(model: Model, options: ImageOptions) -> list[str]:
    """Why a network's attention is not shown. Raises `SpecError` for a query where none look."""
    if model.grid is not None:
        return []
    if options.query is not None:
        raise SpecError(
            "--query: this network has no patches that look; leave it out, or choose the class that"
            " is looked for: --class NAME"
        )
    why = model.unseen_attention()
    return (
        [
            f"{why}, so that no head has a map of the whole image: what decides the class is shown"
            " by Grad-CAM"
        ]
        if why
        else []
    )


def _layers(
    model: Model, calls: Mapping[str, AttentionCall], options: ImageOptions, describe: Describe
) -> list[Layer]:
    """What each layer's heads read, where they look at patches."""
    if model.grid is None:
        return []
    parts, found = attending(model), []
    for name, call in calls.items():
        side = patches(call.q.shape[2], model.first, model.grid)
        query = position_of(options.query, side)
        with torch.no_grad(), full_precision(call.q.device):
            layer = describe(name, parts[name], call, side, query)
            if layer is not None:
                found.append(in_patches(layer, Stream(call)))
    return found


def _read_by_all(model: Model, layers: list[Layer], options: ImageOptions) -> list[str]:
    """What is said of the query that is shown."""
    if not layers or options.query is not None or model.first:
        return []
    side = layers[-1].queries
    return [
        "the label is read from the mean of all patches: what one patch reads is shown, that in the"
        f" middle ({side.labels[layers[-1].query]}); choose one: --query ROW,COLUMN"
    ]


def calls_of(
    model: Model, arguments: tuple[Tensor, ...]
) -> tuple[dict[str, AttentionCall], Tensor]:
    """Each part's call of attention by name, in the order of the forward pass, and the output.

    An image's queries, keys and values are small enough to be kept for all layers.
    """
    calls: dict[str, AttentionCall] = {}

    def keep(name: str, part: Attends, call: AttentionCall) -> None:
        calls[name] = call

    with watch(model, keep), torch.no_grad():
        output: Tensor = model(*arguments)
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
        if options.cam or options.layer or options.target or options.baseline:
            raise SpecError(
                "--cam, --cam-layer, --class and --baseline need a network with classes or numbers,"
                " and this one rebuilds hidden patches"
            )
        return picture_of(image, info, "this network rebuilds hidden patches: none was hidden here")
    baseline = options.baseline or "mean"
    if baseline not in BASELINES:
        raise SpecError(f"--baseline {baseline!r} is not one of {', '.join(BASELINES)}")
    if options.baseline and not task.of_probability:
        raise SpecError(
            "--baseline belongs to the test of the map, which follows a class's probability; this"
            " network gives numbers, so there is no test: leave --baseline out"
        )
    chosen = class_of(options.target, info)
    if options.cam is None and options.layer is None and model.grid is not None and calls:
        heat = rollout(model, image, logits, calls, info, task, chosen)
    else:
        method = options.cam or "gradcam"
        if method not in METHODS:
            raise SpecError(f"--cam {method!r} is not one of {', '.join(METHODS)}")
        heat = grad_cam(model, image, info, task, method=method, layer=options.layer, chosen=chosen)
    return with_trial(heat, model, image, info, task, chosen, baseline=baseline)


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
    start = torch.zeros(length)
    start[0 if model.first else inside] = 1.0
    with full_precision(image.device), torch.no_grad():
        shares = rolled([Stream(call) for call in calls.values()], start / start.sum())[inside]
    heat = (shares - shares.min()).view(1, 1, rows, columns).float()
    return heat_over(image, heat, logits, info, task, ROLLOUT, chosen=chosen)
