"""One look at a model and an input: the result that all views are drawn from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from bigmodel_cli.attend.images import ImageOptions, look_at_image
from bigmodel_cli.attend.layers import Found, Wanted, found_in, layer_of
from bigmodel_cli.attend.lens import lens_of
from bigmodel_cli.attend.look import Layer, Look, Side
from bigmodel_cli.attend.mixing import NOTE
from bigmodel_cli.attend.rollout import rollout_of
from bigmodel_cli.attend.runs import Prepared, prepare
from bigmodel_cli.console import one_line
from bigmodel_cli.data import input_of
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import torch
from bigmodel_cli.loaded import Loaded, without_head
from bigmodel_cli.parts.contract import Attends, attending, mixing
from bigmodel_cli.parts.watched import AttentionCall
from bigmodel_cli.progress import progress

NO_PATCHES = (
    "--layers, --heads, --key, --rows and --top are of heads that look at patches, and this network"
    " has none; leave them out (--cam-layer NAME takes a layer's map)"
)


def look_at(
    loaded: Loaded,
    given: str,
    wanted: Wanted | None = None,
    place: str = "the input",
    target: str | None = None,
    image: ImageOptions | None = None,
) -> Look:
    """What the model attends to in an input: a text, or the path of an image or a recording.

    `image` are options of images alone, whose query is theirs; of an encoder-decoder, `target` is
    the text that it is to have written, its own when None.

    Raises `DataError` for an input that cannot be read, and `SpecError` for a layer, head or
    position that is not there, or a model without attention.
    """
    wanted, image = wanted or Wanted(), image or ImageOptions()
    alone = not input_of(loaded.info).one_size and loaded.model.stacks == ("blocks",)
    if loaded.headless and (wanted.lens or loaded.model.can_generate or not alone):
        raise without_head(loaded.path)
    if input_of(loaded.info).one_size:
        if target is not None:
            raise SpecError("--target is for models that write a text; leave it out")
        return _look_at_image(loaded, given, wanted, image)
    if image.cam or image.layer or image.target or image.baseline:
        raise SpecError("--cam, --cam-layer, --class and --baseline are for images; leave them out")
    if not attending(loaded.model) and not mixing(loaded.model):
        raise SpecError("this model has no attention to look at, and no mixer in its place")
    return look_through(loaded, prepare(loaded, given, place, target), wanted)


def _look_at_image(loaded: Loaded, path: str, wanted: Wanted, options: ImageOptions) -> Look:
    """The region that decides the class, and the heads of a network of patches.

    Raises `SpecError` also where heads are chosen of a network in which none has a map.
    """
    if wanted.rollout:
        raise SpecError(
            "--rollout is of texts; of an image it is the map that is shown where nothing else is"
            " asked for: leave it out"
        )
    of_heads = wanted.layers or wanted.heads or wanted.rows or wanted.key is not None
    if loaded.model.grid is None and of_heads:
        raise SpecError(NO_PATCHES)
    counts: list[tuple[str, int]] = []

    def describe(name: str, part: Attends, call: AttentionCall, side: Side, query: int) -> Layer:
        number = len(counts)
        counts.append((name, call.q.shape[1] // (1 if call.minus is None else 2)))
        own = replace(wanted, query=query)
        with torch.no_grad():
            return layer_of(name, number, part, call, (side, side), own)[0]

    look = look_at_image(loaded, path, options, describe)
    check_choice(counts, wanted)
    layers = _chosen([la for la in look.layers if wanted.has(la.number or 0)], wanted)
    check_positions(layers, replace(wanted, query=-1))
    notes, title = [*look.notes, *_sampled(layers)], one_line(Path(path).name)
    extra = dict(look.extra)
    if wanted.lens:
        extra["lens"] = _lens_of_image(loaded, path)
    return replace(look, layers=layers, notes=notes, title=title, extra=extra)


def _lens_of_image(loaded: Loaded, path: str) -> dict[str, Any]:
    """What the label would be after each block."""
    reader = input_of(loaded.info).reader(loaded.spec.data, loaded.assets)
    batch = reader.batch([reader.read(path, "the image")[0]])
    arguments = [x.to(loaded.device) for x in loaded.model.arguments(batch)]
    return lens_of(loaded, lambda: loaded.model(*arguments), [one_line(Path(path).name)], -1)


def look_through(loaded: Loaded, prepared: Prepared, wanted: Wanted) -> Look:
    """The same of an input that is prepared."""
    found: Found | None = None
    with progress("windows of the text", len(prepared.windows), "") as seen:
        for number, window in enumerate(prepared.windows):
            seen.to(number)
            if window is prepared.windows[-1]:
                shown = wanted
            else:
                shown = replace(wanted, query=-1, key=None, top=0, resolution=1, rollout=False)
            new = found_in(loaded.model, window.run, window.sides, shown)
            check_choice(new.calls, wanted)
            found = new if found is None else found.join(new)
    assert found is not None
    layers = _chosen([layer for layer, _ in found.layers], wanted)
    name = f"{loaded.name} ({loaded.spec.model.type})"
    windows = len(prepared.windows)
    notes = [*prepared.notes, *prepared.remarks(found.output), *_sampled(layers, windows)]
    notes += [NOTE] if any(layer.kind == "mixing" for layer in layers) else []
    check_positions(layers, wanted)
    told = prepared.told(found.output)
    extra = {**told.tables(), **found.extra}
    if "routing" in extra and windows > 1:
        notes.append("the load of experts is of the last window")
    if wanted.lens:
        last = prepared.windows[-1]
        side = last.answered or layers[-1].queries
        extra["lens"] = lens_of(loaded, last.run, side.labels, wanted.query)
        notes += [extra["lens"]["remark"]] if "remark" in extra["lens"] else []
        notes += ["the logit lens is of the last window"] if len(prepared.windows) > 1 else []
    if wanted.rollout:
        extra["rollout"] = rollout_of(found.stack, len(found.calls), layers[-1].query)
        notes += ["the rollout is of the last window"] if len(prepared.windows) > 1 else []
    answer = prepared.answer(found.output)
    look = Look(name, layers, answer, notes, extra=extra, told=told, title=prepared.title)
    return replace(look, part=prepared.part, checkpoint=str(loaded.path))


def _chosen(layers: Sequence[Layer], wanted: Wanted) -> list[Layer]:
    """The layers with the heads that are asked for."""
    return [
        replace(la, chosen=tuple(h for layer, h in wanted.heads if layer == la.number))
        for la in layers
    ]


def check_choice(calls: Sequence[tuple[str, int]], wanted: Wanted) -> None:
    """Raise `SpecError` for a layer that the model does not have; `calls` are its parts that look,
    with the number of their heads.
    """
    count = len(calls)
    chosen = [*(wanted.layers or ()), *(layer for layer, _ in wanted.heads)]
    option = "--layers" if wanted.layers else "--heads"
    for layer in chosen:
        if not 0 <= layer < count:
            raise SpecError(f"{option}: {layer}: the layers with attention are 0 to {count - 1}")


def check_positions(layers: Sequence[Layer], wanted: Wanted) -> None:
    """Raise `SpecError` for a query or a key that no layer has."""
    for option, place, sides in (
        ("--query", wanted.query, [layer.queries for layer in layers]),
        ("--key", wanted.key, [layer.keys for layer in layers]),
    ):
        longest = max(map(len, sides), default=0)
        if place is not None and longest and not -longest <= place < longest:
            raise SpecError(f"{option} {place}: the positions are 0 to {longest - 1}")


def _sampled(layers: Sequence[Layer], windows: int = 1) -> list[str]:
    """What is said where statistics are of some of the queries, in each of so many windows."""
    some = [layer for layer in layers if layer.sampled is not None]
    if not some or some[0].sampled is None:
        return []
    count, whole = len(some[0].sampled), len(some[0].queries)
    each = "" if windows == 1 else " in each window"
    return [
        f"statistics and maps are of {count:,} queries drawn of {whole:,}{each}; figures come with"
        " half their 95 % intervals"
    ]
