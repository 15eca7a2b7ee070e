"""The only place where a model is built, from a spec and the data's info, initialised, frozen, and
adapted.

Its size is computed without allocating it, on the meta device.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from bigmodel_cli import checkpoints
from bigmodel_cli.adapters import attach
from bigmodel_cli.adapting import adapt, without_adapter
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import quantity, say
from bigmodel_cli.convert import opening
from bigmodel_cli.data.files import expand
from bigmodel_cli.device import total_memory
from bigmodel_cli.errors import CheckpointError, SpecError
from bigmodel_cli.frozen import freeze
from bigmodel_cli.labels import kept_rows
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.models import Model, build, within
from bigmodel_cli.models.sizing import Oversize, watched
from bigmodel_cli.models.stacks import Stack, in_whole, shortened
from bigmodel_cli.plugin_faults import plugin_faults
from bigmodel_cli.recipe import InitOptions
from bigmodel_cli.roles import Weight, named_weights
from bigmodel_cli.spec import Spec, of_checkpoint

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
        model = _drawn(spec if download else _without_download(spec), info, device)
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


def build_model(spec: Spec, info: DatasetInfo) -> Model:
    """The model for data as `info` describes it, with freshly drawn weights, and the adapter, if
    any, without first values.

    Raises `SpecError` where they do not fit.
    """
    with spec.placing():
        model = build(spec.model, info)
        if spec.adapter is not None:
            attach(model, spec.adapter.low_rank(), fill=False)
        return model


def build_for(
    spec: Spec,
    info: DatasetInfo,
    weights: Mapping[str, Tensor],
    new_outputs: int = 0,
    *,
    draw: bool = True,
) -> Model:
    """The model that these weights belong to, up to a new head.

    Without `draw` its own weights are undefined, for these to replace all of them. Raises
    `CheckpointError` before it becomes far larger than they are.
    """
    # not on the meta device: position tables are not among the weights
    with within(weights, new_outputs, draw=draw):
        return build_model(_without_download(spec), info)


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
    try:
        with watched(total_memory(device) // _copies(spec)):
            return build_model(bare, info)
    except (RuntimeError, MemoryError, Oversize) as error:  # the allocator's refusal, or ours
        refused = error
    check_memory(spec, info, device)
    if not isinstance(refused, Oversize):
        raise refused
    return build_model(bare, info)  # what was counted beside the weights is not part of them


def _from_checkpoint(
    spec: Spec, info: DatasetInfo, device: torch.device, source: Path
) -> tuple[Model, list[str]]:
    """The model with the checkpoint's weights, and the names of those that are newly drawn."""
    contents = opening.read(source)
    for note in contents.notes:
        say(note)
    adapted = contents.spec.get("adapter")
    if adapted is None:
        spec = without_adapter(spec)
    elif spec.to_dict()["adapter"] != adapted:
        raise SpecError(
            f"adapter: {source} was trained with another ({adapted.get('type')}); leave the section"
            f" out to go on with it, or merge it first: bigmodel merge {source} --out FOLDER"
        )
    # the kinds of outputs, not the tasks: one that finetunes another's has its head
    same_task = of_checkpoint(contents.spec, source).task.head() == spec.task.head()
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
    by_name = same_task and other == "classes differ"
    if rows := kept_rows(model, info, before, weights) if by_name else {}:
        weights, other = checkpoints.ChangedTensors(weights, rows), ""
    try:
        spare = contents.model.spare
        fresh = [name for name in model.output_layers() if other and name not in spare]
        report = checkpoints.load_weights(model, weights, fresh=fresh, spare=spare)
    except CheckpointError as error:
        raise CheckpointError(
            f"{source}: {_of_another_model(spec, contents.spec)}{error}"
        ) from None
    own = model.state_dict()
    if note := checkpoints.not_finite((name, own[name]) for name in report.loaded):
        raise CheckpointError(
            f"{source}: {note}; nothing can be learnt from there: start from another checkpoint"
        )
    say(f"weights: {len(report.loaded)} tensors from {source}")
    if report.fresh:
        say(f"newly initialised, since the {other}: {', '.join(report.fresh)}")
    if report.ignored:
        say(f"ignored of the checkpoint: {', '.join(report.ignored)}")
    return model, report.fresh


def _why_new_head(info: DatasetInfo, contents: checkpoints.Checkpoint, *, same_task: bool) -> str:
    """Why the output layers are not taken from the checkpoint; '' where they are."""
    before = DatasetInfo.from_json(contents.info)
    if contents.headless:
        return "checkpoint has no head"
    if before.classes != info.classes:
        return "classes differ"
    if before.targets != info.targets:
        return "targets differ"
    return "" if same_task else "task differs"


def _of_another_model(spec: Spec, before: Mapping[str, Any]) -> str:
    """A sentence about a spec whose model is not the checkpoint's, or ''."""
    options = spec.to_dict()["model"]
    old = before["model"]
    changed = [name for name in options if name != "classes" and options[name] != old.get(name)]
    if options["type"] != old.get("type"):
        return f"a model of type {old.get('type')}, and the spec's is {options['type']}; "
    length, known = spec.model.longest() or spec.data.longest(), before["data"].get("context")
    if length and known and length > (old.get("max_len") or known):
        return f"its texts have {known} tokens at most, and the spec's {length} (data.context); "
    if not changed:
        return ""
    names = ", ".join(f"model.{name}" for name in changed[:3])
    return f"the spec's model differs in {names}; leave it out to take the checkpoint's; "


def _without_download(spec: Spec) -> Spec:
    return spec.model_copy(update={"model": spec.model.without_download()})


@dataclass(frozen=True)
class Outline:
    """A model on the meta device, frozen as the spec says, with long stacks of equal blocks
    shortened.

    `short` is the model with shortened stacks, `more` are those with one more block of each long
    stack; `weights` are the whole model's. Nothing is shortened where weights are frozen by the
    names of their blocks, or adapted.
    """

    stacks: list[Stack]
    short: Model
    more: list[Model]
    weights: list[Weight]

    @property
    def measured(self) -> list[Model]:
        """The models that are run to measure the cost of the whole."""
        return [self.short, *self.more]

    @property
    def tensors(self) -> list[Tensor]:
        """The weights themselves, without storage; equal blocks have the same ones."""
        return [weight.tensor for weight in self.weights]


def build_on_meta(spec: Spec, info: DatasetInfo) -> Model:
    """The model without storage. Raises `SpecError` where it does not fit the data."""
    with watched(math.inf) as watch:
        try:
            with torch.device("meta"), plugin_faults():
                return build_model(spec, info)
        except RuntimeError as error:  # sizes whose product does not fit an integer
            needed = 4 * math.prod(watch.shape) * _copies(spec)
            shape, text = " x ".join(f"{n:,}" for n in watch.shape), str(error).splitlines()[0]
    raise SpecError(
        f"model: too large for any machine: one tensor of {shape} numbers needs"
        f" {quantity(needed, 'B')} with its gradient and the optimizer's state ({text}); make the"
        " model smaller"
    )


def _largest(values: Any) -> int:
    """The largest integer in plain values."""
    if isinstance(values, dict | list):
        return max(
            (_largest(v) for v in (values.values() if isinstance(values, dict) else values)),
            default=0,
        )
    return values if isinstance(values, int) else 0


def state_bytes(spec: Spec, weights: Iterable[Weight]) -> int:
    """Bytes that weights, gradients, optimizer state and the moving average take."""
    return sum(kept_bytes(spec, weights))


def kept_bytes(spec: Spec, weights: Iterable[Weight]) -> tuple[int, int, int]:
    """(weights, gradients, optimizer state and average) in bytes: frozen weights have neither
    gradient nor optimizer state.
    """
    sizes = [(w.tensor.numel() * w.tensor.element_size(), w) for w in weights]
    trained = [(size, w.role) for size, w in sizes if w.tensor.requires_grad]
    every, copies = sum(size for size, _ in sizes), spec.train.optimizer.state_copies
    state = sum(size * copies(role) for size, role in trained)
    moved = sum(size for size, _ in trained)
    averaged = moved if spec.adapter is not None else every
    return every, moved, state + averaged * (spec.train.ema is not None)


def _copies(spec: Spec) -> int:
    """How many numbers are kept per weight: itself, its gradient, the optimizer's, the average."""
    return 2 + spec.train.optimizer.state_per_param + (spec.train.ema is not None)


def outline(spec: Spec, info: DatasetInfo) -> Outline:
    """The model without storage.

    Raises `SpecError` where it does not fit the data, or one of its tensors any machine.
    """
    short, stacks, more = shortened(spec.model)
    cut = bool(more) and not spec.init.freeze and spec.adapter is None
    try:
        built = [
            build_on_meta(spec.model_copy(update={"model": options}), info)
            for options in ([short, *more] if cut else [spec.model])
        ]
    except SpecError:
        build_on_meta(spec, info)  # whose blocks have the numbers that the file gives them
        raise
    if cut and any(name.startswith(f"{s.name}.") for s in stacks for name in aliases(built[0])):
        built, cut = [build_on_meta(spec, info)], False  # blocks that share weights
    for model in built if spec.adapter is None else ():
        freeze(model, spec.init)
    weights = named_weights(built[0])
    if not cut:
        return Outline([], built[0], [], weights)
    whole = in_whole(
        stacks, weights, lambda weight: weight.name, lambda weight, name: replace(weight, name=name)
    )
    return Outline(stacks, built[0], built[1:], whole)


def aliases(model: Model) -> set[str]:
    """Further names of weights that have one already."""
    every = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return every - {name for name, _ in model.named_parameters()}


def check_memory(spec: Spec, info: DatasetInfo, device: torch.device) -> Outline:
    """The model's outline.

    Raises `SpecError` for a model that cannot fit the device.
    """
    outlined = outline(spec, info)
    needed, available = state_bytes(spec, outlined.weights), total_memory(device)
    if needed > available:
        count = sum(p.numel() for p in outlined.tensors)
        raise SpecError(
            f"model: {count:,} parameters need {quantity(needed, 'B')} for weights, gradients and"
            f" optimizer, and {device} has {quantity(available, 'B')}; make the model smaller"
        )
    return outlined
