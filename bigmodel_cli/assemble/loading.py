"""A model with the weights of a checkpoint, up to what is to be drawn anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from bigmodel_cli import checkpoints
from bigmodel_cli.adapters import Hollow, is_quantized
from bigmodel_cli.adapting import without_adapter
from bigmodel_cli.assemble.building import build_for, build_on_meta, without_download
from bigmodel_cli.assemble.later import Later, noting
from bigmodel_cli.assemble.misfits import of_another_model, why_new_head
from bigmodel_cli.assemble.outlines import check_memory
from bigmodel_cli.assemble.sizes import state_bytes
from bigmodel_cli.checkpoints.weights import below
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import counted, listed, say, say_once
from bigmodel_cli.convert import opening
from bigmodel_cli.device import total_memory
from bigmodel_cli.errors import CheckpointError, SpecError
from bigmodel_cli.labels import kept_rows
from bigmodel_cli.lazy import Module, Tensor, torch
from bigmodel_cli.models import Model
from bigmodel_cli.numbers import kept_numbers
from bigmodel_cli.roles import named_weights
from bigmodel_cli.spec import Spec, of_checkpoint
from bigmodel_cli.taken_layers import left_out, take

SHOWN = 8


def from_checkpoint(
    spec: Spec,
    info: DatasetInfo,
    device: torch.device | None,
    source: Path,
    later: Later | None,
) -> tuple[Model, list[str], Mapping[str, Tensor]]:
    """The model with the checkpoint's weights, the names of those that are not its own: newly
    drawn, or changed; and what its adapter needs of matrices that are in 4 bits. Without a device
    it has no storage, and no weight is read; with `later` they are read when it loads them.
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
        with noting(later):
            model = build_for(spec, info, contents.model, info.outputs, draw=drawn, alone=alone)
        shared = None if later is None else later.room
        room = total_memory(device) if shared is None else shared
        if state_bytes(spec, named_weights(model)) > room:
            check_memory(given, info, device, shared)  # of which an adapter trains a part
    before = DatasetInfo.from_json(contents.info)
    weights = _resized(model, before, info, taken)
    rows = _rows_kept(model, info, before, weights, other, later) if same_task else {}
    if rows:
        weights, other = checkpoints.ChangedTensors(weights, rows), ""
    without = left_out(spec, model, weights)
    try:
        spare = contents.model.spare
        fresh = [name for name in model.output_layers() if other and name not in spare]
        newly = [*fresh, *without]
        hollow = Hollow(model, adapter, [n for n in model.state_dict() if below(n, newly)])
        if device is None or later is not None:
            report = checkpoints.check_weights(model, weights, fresh=newly, spare=spare)
        else:
            report = checkpoints.load_weights(
                model, weights, fresh=newly, spare=spare, complete=hollow.keep
            )
    except CheckpointError as error:
        fault = of_another_model(spec, stored, str(error))
        raise CheckpointError(f"{source}: {fault}") from None
    own = model.state_dict()
    if later is not None:
        later.forget(own[name] for name in report.loaded)
        later.load = _loading(weights, newly, spare, source)
    elif device is not None:
        check_finite(((name, own[name]) for name in report.loaded), source)
    _say_loaded(report, source, other, without)
    return model, [*report.fresh, *rows], hollow.measured


def _rows_kept(
    model: Model,
    info: DatasetInfo,
    before: DatasetInfo,
    weights: checkpoints.Tensors,
    other: str,
    later: Later | None,
) -> Mapping[str, Callable[[Tensor], Tensor]]:
    """How tensors of a head of `other` outputs become this model's, of which some rows are drawn;
    {} where none do.
    """
    if later is not None and other:
        heads = model.output_layers()
        later.fill(t for name, t in model.state_dict().items() if below(name, heads))
    if other == "classes differ":
        return kept_rows(model, info, before, weights)
    return kept_numbers(model, info, before, weights) if info.targets and other else {}


def _loading(
    weights: checkpoints.Tensors, fresh: Sequence[str], spare: Sequence[str], source: Path
) -> Callable[[Module, Mapping[str, Tensor]], None]:
    """What loads these weights of `source` into a model of which processes have parts."""

    def load(model: Module, parts: Mapping[str, Tensor]) -> None:
        report = checkpoints.load_weights(model, weights, fresh=fresh, spare=spare)
        check_finite(((n, parts[n]) for n in report.loaded if n in parts), source)

    return load


def check_finite(weights: Iterable[tuple[str, Tensor]], source: Path) -> None:
    """Raise `CheckpointError` where weights of the checkpoint `source` are not numbers."""
    note = checkpoints.not_finite((n, t) for n, t in weights if not is_quantized(t))
    if note:
        raise CheckpointError(
            f"{source}: {note}; nothing can be learnt from there: start from another checkpoint"
        )


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
