"""The adapter of a spec, put onto the model that a run starts with."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

from bigmodel_cli.adapters import adapters, attach, count_trained
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import listed, say
from bigmodel_cli.convert.peft_layout import Layout
from bigmodel_cli.convert.peft_reading import described, load_adapter
from bigmodel_cli.errors import SpecError
from bigmodel_cli.lazy import Tensor
from bigmodel_cli.models import Model
from bigmodel_cli.spec import Spec


def without_adapter(spec: Spec) -> Spec:
    """The same spec for the weights alone."""
    return spec.model_copy(update={"adapter": None})


def with_files_read(
    spec: Spec, info: DatasetInfo, build: Callable[[Spec, DatasetInfo], Model]
) -> Spec:
    """The spec with the options of an adapter in PEFT's files, which `build`'s model is for.

    Raises `CheckpointError` where it is not, and `SpecError` for a model of no published family.
    """
    folder = spec.adapter.folder() if spec.adapter is not None else None
    if spec.adapter is None or folder is None:
        return spec
    model = build(without_adapter(spec), info)
    layout = Layout(model, spec.model, info, spec.task.head())
    options = described(Path(folder).expanduser(), layout, model)
    options = options.model_copy(update={"path": folder, "base": spec.adapter.base})
    return spec.model_copy(update={"adapter": options})


def check_files(spec: Spec, info: DatasetInfo, model: Model) -> None:
    """Raise `CheckpointError` where the tensors of PEFT's files do not fit an adapted model without
    storage.
    """
    options = spec.adapter.low_rank() if spec.adapter is not None else None
    if options is not None and options.path is not None:
        layout = Layout(model, spec.model, info, spec.task.head())
        load_adapter(Path(options.path).expanduser(), model, layout)


def adapt(
    spec: Spec,
    info: DatasetInfo,
    model: Model,
    fresh: Sequence[str] = (),
    measured: Mapping[str, Tensor] = MappingProxyType({}),
    *,
    fill: bool = True,
) -> None:
    """Attach the spec's adapter, unless the weights came with it, and report what is trained.

    With `fill` its factors get their first values, drawn or from PEFT's files; `measured` is what
    they need of matrices that were made 4 bits. Raises `SpecError`
    where one of the `fresh` weights, which are not those of a checkpoint, would not be trained.
    """
    assert spec.adapter is not None
    options, came = spec.adapter.low_rank(), bool(adapters(model))
    if not came:
        with spec.placing():
            small = attach(model, options, fill=fill and options.path is None, measured=measured)
        if small:
            say(f"adapter.rank: more than these have, which are not adapted: {listed(small, 8)}")
        if fill and options.path is not None:
            layout = Layout(model, spec.model, info, spec.task.head())
            load_adapter(Path(options.path).expanduser(), model, layout)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    taken = {name for name, _ in model.named_buffers()}  # in training, or of the first batch
    left = [name for name in fresh if name not in trained and name not in taken]
    if left:
        modules = sorted({name.rpartition(".")[0] for name in left})
        if came:
            source = shlex.quote(str(spec.init.checkpoint))
            raise SpecError(
                f"adapter: {', '.join(left)} would stay as drawn or scaled for this data, since the"
                f" checkpoint's adapter freezes them; merge it first: bigmodel merge {source} --out"
                " FOLDER"
            )
        raise SpecError(
            f"adapter: {', '.join(left)} would stay as drawn or scaled for this data, since an"
            " adapter freezes them; train them whole: adapter.modules_to_save:"
            f" [{', '.join(modules)}]"
        )
    for line in count_trained(model, options.type):
        say(f"adapter: {line}")
