"""What PEFT's files hold beside factors: modules saved whole, and frozen weights."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

from bigmodel_cli.checkpoints.files import clipped
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.peft_layout import PREFIX, WEIGHTS, Layout
from bigmodel_cli.convert.rules import Rule, exported
from bigmodel_cli.convert.weights import FolderTensors
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import torch

BASE = ".base_layer"
"""What the name of a module ends with whose frozen weights are saved."""


def fill_whole(folder: Path, layout: Layout, theirs: FolderTensors) -> set[str]:
    """Copy the weights that are saved whole; the names of their tensors.

    Raises `CheckpointError` for one of another shape, such as an embedding with further rows.
    """
    found: dict[str, list[Rule]] = {}
    for rule in layout.rules:
        if PREFIX + rule.theirs in theirs:
            found.setdefault(PREFIX + rule.theirs, []).append(rule)
    for name, rules in found.items():
        expected, there = rules[-1].shape(layout.weights[rules[-1].ours]), theirs[name].shape
        if there != expected or not theirs[name].is_floating_point():
            raise CheckpointError(
                f"{folder / WEIGHTS}: {clipped(name)}: {list(there)} in {theirs[name].dtype}, where"
                f" the model has {list(expected)}: it is of another model, or of one whose"
                " vocabulary was changed; use the adapter's own base"
            )
        with torch.no_grad():
            for rule in rules:
                rule.load(layout.weights[rule.ours], theirs.read(name))
    return set(found)


def check_base(
    folder: Path, layout: Layout, theirs: FolderTensors, trained: Collection[str]
) -> set[str]:
    """The names of frozen weights that PEFT saves beside the factors, as it does an embedding's;
    `trained` ones are not among them.

    Raises `CheckpointError` where they are not those of the model.
    """
    found = {rule.theirs: _saved_base(rule.theirs) for rule in layout.rules}
    found = {name: saved for name, saved in found.items() if saved in theirs}
    found = {name: saved for name, saved in found.items() if saved not in trained}
    rules = [rule for rule in layout.rules if rule.theirs in found]
    for name, ours in exported(rules, layout.weights):
        saved = found[name]
        same = theirs[saved].shape == ours.shape
        if not (same and torch.equal(theirs.read(saved).to(ours.dtype), ours.cpu())):
            raise CheckpointError(
                f"{folder / WEIGHTS}: {clipped(saved)}: other weights than the model's, which"
                " the adapter stands on; use the adapter's own base"
            )
    return set(found.values())


def _saved_base(name: str) -> str:
    """What PEFT calls a frozen weight of a module with factors."""
    module, _, kind = f"{PREFIX}{name}".rpartition(".")
    return f"{module}{BASE}.{kind}"


def check_saved(config: Config, layout: Layout, whole: Sequence[str]) -> None:
    """Raise `CheckpointError` where a module is said to be saved whole, and nothing of it is."""
    for name in config.maybe("modules_to_save", list) or ():
        of_it = [rule.ours for rule in layout.rules if f".{name}." in f".{rule.theirs}."]
        if of_it and not set(of_it) & set(whole):
            raise CheckpointError(
                f"{config.file}: modules_to_save: {clipped(str(name))}: {WEIGHTS} has nothing of"
                " it: incomplete; use another adapter"
            )
