"""The model that training starts with: drawn or of a checkpoint, frozen, adapted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bigmodel_cli import checkpoints
from bigmodel_cli.adapters import Hollow, moved
from bigmodel_cli.adapting import adapt, check_files, without_adapter
from bigmodel_cli.assemble.building import (
    build_for,
    build_model,
    without_download,
)
from bigmodel_cli.assemble.later import Later, noting
from bigmodel_cli.assemble.loading import from_checkpoint
from bigmodel_cli.assemble.outlines import check_memory
from bigmodel_cli.assemble.sizes import numbers_per_weight, state_bytes
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import listed
from bigmodel_cli.convert import opening
from bigmodel_cli.data.files import expand
from bigmodel_cli.device import total_memory
from bigmodel_cli.errors import SpecError
from bigmodel_cli.frozen import freeze
from bigmodel_cli.lazy import Tensor, nn, torch
from bigmodel_cli.models import Model
from bigmodel_cli.models.sizing import Oversize, watched
from bigmodel_cli.roles import named_weights
from bigmodel_cli.spec import Spec

SHOWN = 3
ABSURD = 1 << 17
"""A number in a model's options from which on its weights are counted before any is allocated."""


def assemble(
    spec: Spec,
    info: DatasetInfo,
    device: torch.device,
    source: Path | None = None,
    *,
    saved: checkpoints.Tensors | None = None,
    later: Later | None = None,
) -> Model:
    """The model that training starts with, on its device: seeded, initialised, and frozen as
    `spec.init` says, or adapted as `spec.adapter` does.

    Its weights are drawn, or those of the checkpoint `source`, with a new head where the classes
    differ. A run that is resumed has `saved` weights, which replace all of them later, up to
    matrices in 4 bits, which are read here. Pretrained weights are not downloaded where a
    checkpoint's replace them. With `later` large weights may have no numbers yet: it makes them, in
    processes that are to divide them. Raises `SpecError` where the model does not fit the data or
    the device, and `CheckpointError` where the checkpoint's weights do not fit the model.
    """
    torch.manual_seed(spec.train.seed)
    fresh: Sequence[str] = ()
    measured: Mapping[str, Tensor] = {}
    if spec.adapter is not None:
        later = None
    if saved is not None and spec.adapter is not None and spec.adapter.base is not None:
        model = _read_in_four_bits(spec, info, device, saved)
    elif source is None:
        model = _drawn(spec if saved is None else without_download(spec), info, device, later)
    else:
        model, fresh, measured = from_checkpoint(spec, info, device, source, later)
    if saved is not None and later is not None:
        later.forget(model.parameters())
    _choose_trained(spec, info, model, fresh, measured, fill=saved is None)
    moved(model, device)
    return model


def check_start(spec: Spec, info: DatasetInfo, source: Path) -> Model:
    """The same without storage, of the checkpoint `source`: raises what `assemble` would, by the
    names and shapes of the weights, which are not read.
    """
    model, fresh, measured = from_checkpoint(spec, info, None, source, None)
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
    learned = every.keys() | {
        f"{place}.{name}"
        for place, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and not any(p.requires_grad for p in module.parameters())  # nor are its statistics taken
        for name, _ in module.named_buffers()
    }
    trained = {name for name, p in every.items() if p.requires_grad}
    if left := [name for name in fresh if name in learned - trained]:
        raise SpecError(
            f"init.leave_out: {listed(left, SHOWN)} would stay as drawn, since init.freeze or"
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


def _drawn(spec: Spec, info: DatasetInfo, device: torch.device, later: Later | None) -> Model:
    """The model with drawn weights, abandoned before they exceed the device's memory (`SpecError`).

    Weights are counted as memory is requested, since building twice, once on the meta device, would
    cost more start-up time than half of torch: operations there import the compiler. Only a model
    that seems too large is counted there, exactly.
    """
    # initialising what fits until the rest does not would take minutes
    shared = None if later is None else later.room
    if _largest(spec.model.model_dump()) > ABSURD:
        check_memory(spec, info, device, shared)
    bare = without_adapter(spec)
    refused: Exception | None = None
    try:
        room = total_memory(device) if shared is None else shared
        with watched(room // numbers_per_weight(spec)), noting(later):
            return build_model(bare, info)
    except Oversize:
        pass
    except (RuntimeError, MemoryError) as error:  # the allocator's refusal
        refused = error
    check_memory(spec, info, device, shared)
    if refused is not None:
        raise refused
    torch.manual_seed(spec.train.seed)
    with noting(later):
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
