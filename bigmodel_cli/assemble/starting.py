"""The model that training starts with: drawn or of a checkpoint, frozen, adapted."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from bigmodel_cli import checkpoints
from bigmodel_cli.adapting import adapt, without_adapter
from bigmodel_cli.assemble.building import build_for, build_model, without_download
from bigmodel_cli.assemble.outlines import check_memory
from bigmodel_cli.assemble.sizes import numbers_per_weight, state_bytes
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import counted, say, say_once
from bigmodel_cli.convert import opening
from bigmodel_cli.data.files import expand
from bigmodel_cli.device import total_memory
from bigmodel_cli.errors import CheckpointError, SpecError
from bigmodel_cli.frozen import freeze
from bigmodel_cli.labels import kept_rows
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.models import Model
from bigmodel_cli.models.sizing import Oversize, watched
from bigmodel_cli.numbers import kept_numbers
from bigmodel_cli.recipe import InitOptions
from bigmodel_cli.roles import named_weights
from bigmodel_cli.spec import Spec, of_checkpoint

LEAVE = "leave it out, or --set model=null, to take the checkpoint's"
ABSURD = 1 << 17
"""A number in a model's options from which on its weights are counted before any is allocated."""


def assemble(
    spec: Spec,
    info: DatasetInfo,
    device: torch.device,
    source: Path | None = None,
    *,
    download: bool = True,
) -> Model:
    """The model that training starts with, on its device: seeded, initialised, and frozen as
    `spec.init` says, or adapted as `spec.adapter` does.

    Its weights are drawn, or those of the checkpoint `source`, with a new head where the classes
    differ. Pretrained weights are not downloaded where a checkpoint's weights replace them, at once
    or (without `download`) later. Raises `SpecError` where the model does not fit the data or the
    device, and `CheckpointError` where the checkpoint's weights do not fit the model.
    """
    torch.manual_seed(spec.train.seed)
    fresh: Sequence[str] = ()
    if source is None:
        model = _drawn(spec if download else without_download(spec), info, device)
    else:
        model, fresh = _from_checkpoint(spec, info, device, source)
    if spec.adapter is None:
        freeze(model, spec.init)
    else:
        adapt(spec, info, model, fresh, fill=download)
    return model.to(device)


def source_of(spec: Spec) -> Path | None:
    """The checkpoint that `spec.init` names. Raises `CheckpointError` where it is not there."""
    named = spec.init.checkpoint
    return opening.find(expand(named, Path(), "init.checkpoint")) if named else None


def reference_of(spec: Spec, info: DatasetInfo, device: torch.device) -> Model:
    """The model of `spec.init.checkpoint`, which this spec's is compared with, not to be trained.

    Raises `SpecError` where there is none.
    """
    source = source_of(spec)
    if source is None:
        raise SpecError(
            f"task.type: {spec.task.type} compares the model with the checkpoint that it starts"
            " from, and there is none: bigmodel finetune --from CKPT SPEC"
        )
    plain = spec.model_copy(update={"init": InitOptions()})
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


def _largest(values: Any) -> int:
    """The largest integer in plain values."""
    if isinstance(values, dict | list):
        return max(
            (_largest(v) for v in (values.values() if isinstance(values, dict) else values)),
            default=0,
        )
    return values if isinstance(values, int) else 0


def _from_checkpoint(
    spec: Spec, info: DatasetInfo, device: torch.device, source: Path
) -> tuple[Model, list[str]]:
    """The model with the checkpoint's weights, and the names of those that are not its own: newly
    drawn, or changed.
    """
    contents = opening.read(source)
    for note in contents.notes:
        say_once(note)
    stored = of_checkpoint(contents.spec, source)
    spec = _adapted_as(stored, spec, source)
    # the kinds of outputs, not the tasks: one that finetunes another's has its head
    same_task = stored.task.head() == spec.task.head()
    other = _why_new_head(info, contents, same_task=same_task)
    model = build_for(spec, info, contents.model, info.outputs, draw=bool(other))
    if state_bytes(spec, named_weights(model)) > total_memory(device):
        check_memory(spec, info, device)
    weights: checkpoints.Tensors = contents.model
    before = DatasetInfo.from_json(contents.info)
    if changes := model.resizing(before):
        weights = checkpoints.ChangedTensors(weights, changes)
        sizes = (
            "{1} x {2}".format(*shape or ()) for shape in (before.image_shape, info.image_shape)
        )
        say(
            f"positions interpolated (bicubic), from images of {' to '.join(sizes)}:"
            f" {', '.join(changes)}"
        )
    rows: Mapping[str, Callable[[Tensor], Tensor]] = {}
    if same_task and other == "classes differ":
        rows = kept_rows(model, info, before, weights)
    elif same_task and info.targets and other:
        rows = kept_numbers(model, info, before, weights)
    if rows:
        weights, other = checkpoints.ChangedTensors(weights, rows), ""
    try:
        spare = contents.model.spare
        fresh = [name for name in model.output_layers() if other and name not in spare]
        report = checkpoints.load_weights(model, weights, fresh=fresh, spare=spare)
    except CheckpointError as error:
        fault = _of_another_model(spec, contents.spec, str(error))
        raise CheckpointError(f"{source}: {fault}") from None
    own = model.state_dict()
    if note := checkpoints.not_finite((name, own[name]) for name in report.loaded):
        raise CheckpointError(
            f"{source}: {note}; nothing can be learnt from there: start from another checkpoint"
        )
    say_once(f"weights: {counted(len(report.loaded), 'tensor')} from {source}")
    if report.fresh:
        say(f"newly initialised, since the {other}: {', '.join(report.fresh)}")
    if report.ignored:
        say(f"ignored of the checkpoint: {', '.join(report.ignored)}")
    return model, [*report.fresh, *rows]


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


def _why_new_head(info: DatasetInfo, contents: checkpoints.Checkpoint, *, same_task: bool) -> str:
    """Why the output layers are not taken from the checkpoint; '' where they are."""
    before = DatasetInfo.from_json(contents.info)
    if contents.headless:
        return "checkpoint has no head"
    if before.classes != info.classes:
        return "classes differ"
    if before.targets != info.targets:
        return "targets differ"
    if (before.target_mean, before.target_std) != (info.target_mean, info.target_std):
        return "numbers are scaled otherwise"
    return "" if same_task else "task differs"


def _of_another_model(spec: Spec, before: Mapping[str, Any], misfit: str) -> str:
    """What is said where weights are a `misfit`: in what the spec's model is not the checkpoint's,
    where that can be told, and the tensors.
    """
    tensors = misfit.partition("\n")[2]
    if not tensors:  # a file is damaged
        return misfit
    options = spec.to_dict()["model"]
    old = before["model"]
    changed = [name for name in options if name != "classes" and options[name] != old.get(name)]
    if options["type"] != old.get("type"):
        return f"a model of type {old.get('type')}, and the spec's is {options['type']}; {LEAVE}"
    length, known = spec.model.longest() or spec.data.longest(), before["data"].get("context")
    if length and known and length > (old.get("max_len") or known):
        lengths = f"its texts have {known} tokens at most, and the spec's {length} (data.context)"
        return f"{lengths}\n{tensors}"
    if not changed:
        return misfit
    names = ", ".join(f"model.{name}" for name in changed[:3])
    return f"the spec's model differs in {names}; {LEAVE}\n{tensors}"
