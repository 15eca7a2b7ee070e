"""The model that training starts with: drawn or of a checkpoint, frozen, adapted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigmodel_cli import checkpoints
from bigmodel_cli.adapters import Hollow, is_quantized, moved
from bigmodel_cli.adapting import adapt, check_files, without_adapter
from bigmodel_cli.assemble.building import (
    build_for,
    build_model,
    build_on_meta,
    without_download,
)
from bigmodel_cli.assemble.misfits import of_another_model, why_new_head
from bigmodel_cli.assemble.outlines import check_memory
from bigmodel_cli.assemble.sizes import numbers_per_weight, state_bytes
from bigmodel_cli.checkpoints.weights import below
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import counted, listed, say, say_once
from bigmodel_cli.convert import opening
from bigmodel_cli.data.files import expand
from bigmodel_cli.device import total_memory
from bigmodel_cli.errors import CheckpointError, SpecError
from bigmodel_cli.frozen import freeze
from bigmodel_cli.labels import kept_rows
from bigmodel_cli.lazy import Tensor, nn, torch
from bigmodel_cli.models import Model
from bigmodel_cli.models.sizing import Oversize, watched
from bigmodel_cli.numbers import kept_numbers
from bigmodel_cli.roles import named_weights
from bigmodel_cli.spec import Spec, of_checkpoint
from bigmodel_cli.taken_layers import left_out, take

SHOWN = 8
ABSURD = 1 << 17
"""A number in a model's options from which on its weights are counted before any is allocated."""


def assemble(
    spec: Spec,
    info: DatasetInfo,
    device: torch.device,
    source: Path | None = None,
    *,
    saved: checkpoints.Tensors | None = None,
) -> Model:
    """The model that training starts with, on its device: seeded, initialised, and frozen as
    `spec.init` says, or adapted as `spec.adapter` does.

    Its weights are drawn, or those of the checkpoint `source`, with a new head where the classes
    differ. A run that is resumed has `saved` weights, which replace all of them later, up to
    matrices in 4 bits, which are read here. Pretrained weights are not downloaded where a
    checkpoint's replace them. Raises `SpecError` where the model does not fit the data or the
    device, and `CheckpointError` where the checkpoint's weights do not fit the model.
    """
    torch.manual_seed(spec.train.seed)
    fresh: Sequence[str] = ()
    measured: Mapping[str, Tensor] = {}
    if saved is not None and spec.adapter is not None and spec.adapter.base is not None:
        model = _read_in_four_bits(spec, info, device, saved)
    elif source is None:
        model = _drawn(spec if saved is None else without_download(spec), info, device)
    else:
        model, fresh, measured = _from_checkpoint(spec, info, device, source)
    _choose_trained(spec, info, model, fresh, measured, fill=saved is None)
    moved(model, device)
    return model


def check_start(spec: Spec, info: DatasetInfo, source: Path) -> Model:
    """The same without storage, of the checkpoint `source`: raises what `assemble` would, by the
    names and shapes of the weights, which are not read.
    """
    model, fresh, measured = _from_checkpoint(spec, info, None, source)
    _choose_trained(spec, info, model, fresh, measured, fill=False)
    check_files(spec, info, model)
    return model


def _choose_trained(
    spec: Spec,
    info: DatasetInfo,
    model: Model,
    fresh: Sequence[str],
    measured: Mapping[str, Tensor],
    *,
    fill: bool,
) -> None:
    """Freeze or adapt. Raises `SpecError` where what is drawn anew would stay so."""
    if spec.adapter is not None:
        adapt(spec, info, model, fresh, measured, fill=fill)
        return
    freeze(model, spec.init)
    if not spec.init.leave_out:
        return
    every = dict(model.named_parameters(remove_duplicate=False))
    learned = {*every}
    learned |= {
        f"{place}.{name}"
        for place, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and not any(p.requires_grad for p in module.parameters())  # nor are its statistics taken
        for name, _ in module.named_buffers()
    }
    trained = {name for name, p in every.items() if p.requires_grad}
    if left := [name for name in fresh if name in learned - trained]:
        raise SpecError(
            f"init.leave_out: {listed(left, 3)} would stay as drawn, since init.freeze or"
            " init.train: head freezes them; train them, or take them from the checkpoint"
        )


def source_of(spec: Spec) -> Path | None:
    """The checkpoint that `spec.init` names. Raises `CheckpointError` where it is not there."""
    named = spec.init.checkpoint
    return opening.find(expand(named, Path(), "init.checkpoint")) if named else None


def reference_source(spec: Spec) -> Path:
    """The checkpoint that this spec's model is compared with.

    Raises `SpecError` where there is none.
    """
    source = source_of(spec)
    if source is None:
        raise SpecError(
            f"task.type: {spec.task.type} compares the model with the checkpoint that it starts"
            " from, and there is none: bigmodel finetune --from CKPT SPEC"
        )
    return source


def reference_of(spec: Spec, info: DatasetInfo, device: torch.device) -> Model:
    """The model of `spec.init.checkpoint`, which this spec's is compared with, not to be trained.

    Raises `SpecError` where there is none.
    """
    source = reference_source(spec)
    taken = spec.init.model_copy(update={"train": "all", "freeze": []})
    plain = spec.model_copy(update={"init": taken})
    return assemble(plain, info, device, source).requires_grad_(False).eval()


def _drawn(spec: Spec, info: DatasetInfo, device: torch.device) -> Model:
    """The model with drawn weights, abandoned before they exceed the device's memory (`SpecError`).

    Weights are counted as memory is requested, since building twice, once on the meta device, would
    cost more start-up time than half of torch: operations there import the compiler. Only a model
    that seems too large is counted there, exactly.
    """
    # initialising what fits until the rest does not would take minutes
    if _largest(spec.model.model_dump()) > ABSURD:
        check_memory(spec, info, device)
    bare = without_adapter(spec)
    refused: Exception | None = None
    try:
        with watched(total_memory(device) // numbers_per_weight(spec)):
            return build_model(bare, info)
    except Oversize:
        pass
    except (RuntimeError, MemoryError) as error:  # the allocator's refusal
        refused = error
    check_memory(spec, info, device)
    if refused is not None:
        raise refused
    return build_model(bare, info)  # what was counted beside the weights is not part of them


def _read_in_four_bits(
    spec: Spec, info: DatasetInfo, device: torch.device, saved: checkpoints.Tensors
) -> Model:
    """The adapted model with a run's own weights, no more than one exact matrix at once."""
    model = build_for(spec, info, saved, draw=False)
    if state_bytes(spec, named_weights(model)) > total_memory(device):
        check_memory(spec, info, device)
    checkpoints.load_weights(model, saved, complete=Hollow(model, spec.adapter).keep)
    return model


def _largest(values: Any) -> int:
    """The largest integer in plain values."""
    if isinstance(values, dict | list):
        return max(
            (_largest(v) for v in (values.values() if isinstance(values, dict) else values)),
            default=0,
        )
    return values if isinstance(values, int) else 0


def _from_checkpoint(
    spec: Spec, info: DatasetInfo, device: torch.device | None, source: Path
) -> tuple[Model, list[str], Mapping[str, Tensor]]:
    """The model with the checkpoint's weights, the names of those that are not its own: newly
    drawn, or changed; and what its adapter needs of matrices that are in 4 bits. Without a device
    it has no storage, and no weight is read.
    """
    contents = opening.read(source)
    for note in contents.notes:
        say_once(note)
    stored = of_checkpoint(contents.spec, source)
    given, adapter, spec = spec, spec.adapter, _adapted_as(stored, spec, source)
    # the kinds of outputs, not the tasks: one that finetunes another's has its head
    same_task = stored.task.head() == spec.task.head()
    other = why_new_head(info, contents, same_task=same_task)
    taken = take(spec, stored, contents.model, source)
    four = adapter is not None and adapter.base is not None
    if device is None:
        model = build_on_meta(without_download(spec), info)
    else:
        drawn = bool(other or spec.init.leave_out)
        alone = _head_shapes(spec, info) if four and other and not spec.init.leave_out else None
        model = build_for(spec, info, contents.model, info.outputs, draw=drawn, alone=alone)
        if state_bytes(spec, named_weights(model)) > total_memory(device):
            check_memory(given, info, device)  # of which an adapter trains a part
    before = DatasetInfo.from_json(contents.info)
    weights = _resized(model, before, info, taken)
    rows: Mapping[str, Callable[[Tensor], Tensor]] = {}
    if same_task and other == "classes differ":
        rows = kept_rows(model, info, before, weights)
    elif same_task and info.targets and other:
        rows = kept_numbers(model, info, before, weights)
    if rows:
        weights, other = checkpoints.ChangedTensors(weights, rows), ""
    without = left_out(spec, model, weights)
    try:
        spare = contents.model.spare
        fresh = [name for name in model.output_layers() if other and name not in spare]
        newly = [*fresh, *without]
        hollow = Hollow(model, adapter, [n for n in model.state_dict() if below(n, newly)])
        if device is None:
            report = checkpoints.check_weights(model, weights, fresh=newly, spare=spare)
        else:
            report = checkpoints.load_weights(
                model, weights, fresh=newly, spare=spare, complete=hollow.keep
            )
    except CheckpointError as error:
        fault = of_another_model(spec, stored, str(error))
        raise CheckpointError(f"{source}: {fault}") from None
    own = model.state_dict()
    exact = ((name, own[name]) for name in report.loaded if not is_quantized(own[name]))
    if device is not None and (note := checkpoints.not_finite(exact)):
        raise CheckpointError(
            f"{source}: {note}; nothing can be learnt from there: start from another checkpoint"
        )
    _say_loaded(report, source, other, without)
    return model, [*report.fresh, *rows], hollow.measured


def _head_shapes(spec: Spec, info: DatasetInfo) -> set[torch.Size]:
    """Those of a new head's weights: all that is to be drawn where the rest is to be loaded."""
    outline = build_on_meta(without_download(spec), info)
    heads = outline.output_layers()
    return {p.shape for name, p in outline.named_parameters() if below(name, heads)}


def _resized(
    model: Model, before: DatasetInfo, info: DatasetInfo, weights: checkpoints.Tensors
) -> checkpoints.Tensors:
    """The weights, of which some follow the images' size; which ones is said."""
    changes = model.resizing(before)
    if not changes:
        return weights
    sizes = ("{1} x {2}".format(*shape or ()) for shape in (before.image_shape, info.image_shape))
    say(
        f"positions interpolated (bicubic), from images of {' to '.join(sizes)}:"
        f" {', '.join(changes)}"
    )
    return checkpoints.ChangedTensors(weights, changes)


def _say_loaded(
    report: checkpoints.LoadReport, source: Path, other: str, without: Sequence[str]
) -> None:
    """What came from where, and what did not."""
    say_once(f"weights: {counted(len(report.loaded), 'tensor')} from {source}")
    drawn = [name for name in report.fresh if name not in without]
    if drawn:
        say(f"newly initialised, since the {other}: {', '.join(drawn)}")
    if without:
        say(f"init.leave_out: not the checkpoint's: {listed(without, SHOWN)}")
    if ignored := [name for name in report.ignored if name not in without]:
        say(f"ignored of the checkpoint: {', '.join(ignored)}")


def _adapted_as(stored: Spec, spec: Spec, source: Path) -> Spec:
    """The spec with the adapter that the checkpoint has, none where it has none.

    Raises `SpecError` for another one.
    """
    if stored.adapter is None:
        return without_adapter(spec)
    if spec.adapter != stored.adapter:
        raise SpecError(
            f"adapter: {source} was trained with another ({stored.adapter.type}); leave the section"
            f" out to go on with it, or merge it first: bigmodel merge {source} --out FOLDER"
        )
    return spec
