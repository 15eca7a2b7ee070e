"""A checkpoint loaded for use by `eval`, `predict`, `attend` and `bench`."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bigmodel_cli import checkpoints
from bigmodel_cli.adapters import Hollow, is_quantized, moved, quantize
from bigmodel_cli.adapting import adapt, with_files_read, without_adapter
from bigmodel_cli.assemble import build_for, build_on_meta
from bigmodel_cli.checkpoints.weights import below
from bigmodel_cli.config import DatasetInfo
from bigmodel_cli.console import say, say_once
from bigmodel_cli.convert import opening
from bigmodel_cli.data import (
    FACTS,
    SOURCE_TOKENIZER,
    SPECIAL_TOKENS,
    TOKENIZER,
    TOKENIZERS,
    read_tokenizer,
)
from bigmodel_cli.device import pick_device
from bigmodel_cli.errors import CheckpointError, SpecError
from bigmodel_cli.lazy import load_torch, torch
from bigmodel_cli.models import Model
from bigmodel_cli.overrides import Change, key_of
from bigmodel_cli.spec import Spec, of_checkpoint
from bigmodel_cli.tasks import Task, build_task

PREPARATION = (
    *TOKENIZERS,
    *("normalize", "size", "channels"),
    *("units", "seconds", "rate", "window", "hop", "mels", "low", "high", "features", "pad_to"),
)
"""Options that a checkpoint fixes for all that use it as it is."""
TRAINING = ("train", "init")
READ_HERE = ("precision", "batch_size", "batch_tokens", "micro_batch_size", "validation_batch")
"""Sections of a spec that training alone reads, up to these options."""


@dataclass(frozen=True)
class Loaded:
    """A model on its device, with what its checkpoint (or, in training, the run) knows."""

    path: Path
    spec: Spec
    info: DatasetInfo
    task: Task
    model: Model
    device: torch.device
    assets: dict[str, bytes]
    headless: bool = False
    """Whether the output layers have no content: see `load_checkpoint`."""

    @property
    def name(self) -> str:
        """The run's name, or, outside a run, the checkpoint's."""
        return opening.title(self.path)

    def files(self, info: DatasetInfo | None = None) -> dict[str, bytes]:
        """The files that data continues from: see `open_data`; with other facts than its own."""
        return {**self.assets, FACTS: json.dumps((info or self.info).to_json()).encode()}

    @property
    def precision(self) -> str:
        """The precision of the run; 'fp32' where it was not recorded."""
        recorded = self.spec.train.precision
        return (
            "fp32"
            if recorded == "auto" or (recorded == "fp16" and self.device.type == "cpu")
            else recorded
        )


def load_checkpoint(
    path: Path,
    device: str = "auto",
    overrides: Sequence[Change] = (),
    *,
    tell: Callable[[str], None] = say_once,
    body: bool = False,
    read: bool = True,
) -> Loaded:
    """Read and verify a checkpoint and build its model, in evaluation mode; `tell` receives the
    device.

    `path` may name a run: its last checkpoint is taken. With `body` the output layers are not
    needed: where there are none, they have no content. Without `read` the model has no storage, and
    names and shapes of its weights alone are checked.
    """
    load_torch()
    chosen = pick_device(device, tell)
    path = opening.find(path)
    contents = _contents(path, body)
    spec = of_checkpoint(contents.spec, path, overrides)
    if overrides:
        _say_unused(spec, contents.spec, overrides, tell)
    info = DatasetInfo.from_json(contents.info)
    _check_tokenizers(path, contents.assets, info)
    added = spec.adapter is not None and contents.spec.get("adapter") is None
    if overrides and not added and spec.adapter != of_checkpoint(contents.spec, path).adapter:
        raise SpecError(
            f"adapter: {path} has one of its own; merge it first: bigmodel merge {path}"
        )
    try:
        own = without_adapter(spec) if added else spec
        model, task = _built(own, info, contents, read=read), build_task(spec.task, info)
    except (SpecError, ValueError, ArithmeticError) as error:
        if overrides and isinstance(error, SpecError):
            raise
        raise CheckpointError(
            f"{path}: its spec and its info do not fit one another: {error}"
        ) from None
    absent = model.output_layers() if contents.headless else ()
    spare = contents.model.spare
    if not read:
        checkpoints.check_weights(model, contents.model, fresh=absent, spare=spare)
        return Loaded(path, spec, info, task, model.eval(), torch.device("meta"), contents.assets)
    if _used_as_stored(spec, chosen):
        contents.model.hold_as_stored(model)
    if added:
        spec = with_files_read(spec, info, build_on_meta)
    hollow = Hollow(model, spec.adapter, [n for n in model.state_dict() if below(n, absent)])
    names = checkpoints.load_weights(
        model, contents.model, fresh=absent, spare=spare, complete=hollow.keep
    ).loaded
    if added:
        adapt(spec, info, model, measured=hollow.measured)
        names = list(model.state_dict())
    _warn_of_not_finite(path, model, names)
    moved(model, chosen).eval()
    if spec.adapter is not None and spec.adapter.base is not None:
        quantize(model)
    return Loaded(path, spec, info, task, model, chosen, contents.assets, contents.headless)


def _warn_of_not_finite(path: Path, model: Model, names: Sequence[str]) -> None:
    held = model.state_dict()
    exact = ((name, held[name]) for name in names if not is_quantized(held[name]))
    if note := checkpoints.not_finite(exact):
        say(f"warning: {path}: {note}; what is computed with them is not to be trusted")


def _built(spec: Spec, info: DatasetInfo, contents: checkpoints.Checkpoint, *, read: bool) -> Model:
    """The model for the checkpoint's weights; without `read` it has no storage."""
    if read:
        return build_for(spec, info, contents.model, draw=False)
    return build_on_meta(spec.model_copy(update={"model": spec.model.without_download()}), info)


def _contents(path: Path, body: bool) -> checkpoints.Checkpoint:
    """A checkpoint's contents; raises `CheckpointError` where it lacks a head that is needed."""
    contents = opening.read(path)
    for note in contents.notes:
        say_once(note)
    if contents.headless and not body:
        raise without_head(path)
    return contents


def without_head(path: Path) -> CheckpointError:
    """What is wrong where a head is needed and there is none."""
    return CheckpointError(
        f"{path}: the body of a network, without a head that answers; finetune it first:"
        f" bigmodel finetune --from {shlex.quote(str(path))} SPEC"
    )


def _say_unused(
    spec: Spec, before: dict[str, Any], overrides: Sequence[Change], tell: Callable[[str], None]
) -> None:
    """Report which overrides change nothing."""
    say_carried(spec, before, PREPARATION, set(map(key_of, overrides)), tell)
    given = (key_of(change).split(".") for change in overrides)
    if idle := [".".join(p) for p in given if p[0] in TRAINING and {*p[1:2]}.isdisjoint(READ_HERE)]:
        tell(f"{', '.join(idle)}: not used: nothing is trained here")


def _used_as_stored(spec: Spec, device: torch.device) -> bool:
    """Whether weights stored in bf16 or fp16 stay so: fp16 is not computed with on a CPU."""
    precision = spec.train.precision
    return precision == "bf16" or (precision == "fp16" and device.type != "cpu")


def _check_tokenizers(path: Path, assets: Mapping[str, bytes], info: DatasetInfo) -> None:
    """Raise `CheckpointError` where a tokenizer cannot be used, or has tokens that the model does
    not have.
    """
    for name, most in ((TOKENIZER, info.vocab_size), (SOURCE_TOKENIZER, info.source_vocab_size)):
        if name not in assets:
            continue
        special = assets.get(SPECIAL_TOKENS) if name == TOKENIZER else None
        tokenizer = read_tokenizer(assets[name], str(path / name), CheckpointError, special)
        marks = (tokenizer.start_of_text or 0, tokenizer.end_of_text or 0)
        last = max(tokenizer.vocab_size - 1, *marks)
        if most is None or last >= most:
            raise CheckpointError(
                f"{path / name}: it gives tokens up to {last:,}, and facts.json has"
                f" {'no number of tokens' if most is None else f'{most:,} of them'}; use"
                " another checkpoint"
            )


def say_carried(
    spec: Spec,
    before: dict[str, Any],
    names: Sequence[str],
    given: Collection[str] = (),
    tell: Callable[[str], None] = say_once,
) -> None:
    """Report which options of the data are not used, since a checkpoint with the spec `before` has
    its own.

    A default asks for nothing, unless its path is among those `given`.
    """
    old, new = before.get("data", {}), spec.to_dict()["data"]
    for name in names:
        if name not in old or name not in new or (name in TOKENIZERS and old[name] is None):
            continue
        default = getattr(spec.data, name) == type(spec.data).model_fields[name].default
        if new[name] != old[name] and (not default or f"data.{name}" in given):
            tell(
                f"data.{name}: {_shown(new[name])} is not used: the checkpoint has its own"
                f" ({_shown(old[name])})"
            )


def _shown(value: Any) -> str:
    return (
        "left out"
        if value is None
        else " ".join(map(str, value.values()))
        if isinstance(value, dict)
        else str(value)
    )
