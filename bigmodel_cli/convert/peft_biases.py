"""Biases in PEFT's files: the model's, trained beside the factors (`bias`), or a B's (`lora_bias`).

Here both are biases of the model that are trained whole: that of a B, times the factors' scale, is
added to the layer's own when it is read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bigmodel_cli.checkpoints.files import clipped
from bigmodel_cli.convert.config import Config
from bigmodel_cli.convert.peft_layout import CONFIG, PREFIX, WEIGHTS, Layout
from bigmodel_cli.convert.peft_ranks import Ranks
from bigmodel_cli.convert.rules import Rule, exported
from bigmodel_cli.convert.weights import FolderTensors
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import Tensor, torch

BIAS, OF_B, FACTOR = ".bias", ".lora_B.bias", ".lora_A.weight"
BASE = ".base_layer"
COPIES = (".original_module.bias", ".modules_to_save.bias")
"""What PEFT puts into the names of a layer with factors; and ends of what it saves once more of a
layer that is saved whole."""


@dataclass(frozen=True)
class Biases:
    """The biases in a folder, each tensor's name with the rules of the model's: those that are
    `trained`, and those that are `added`, of a B; `unused`: copies.
    """

    trained: dict[str, list[Rule]]
    added: dict[str, list[Rule]]
    unused: set[str]

    @property
    def names(self) -> set[str]:
        """Of all their tensors."""
        return {*self.trained, *self.added, *self.unused}

    @property
    def ours(self) -> list[str]:
        """The biases of the model that are trained."""
        every = [*self.trained.values(), *self.added.values()]
        return [rule.ours for rules in every for rule in rules]

    def fill(self, folder: Path, layout: Layout, theirs: FolderTensors, ranks: Ranks) -> set[str]:
        """Copy them into the model; the names of their tensors.

        Raises `CheckpointError` for one of another shape.
        """
        for name, rules in {**self.trained, **self.added}.items():
            (ours,) = (tensor for _, tensor in exported(rules, layout.weights))
            found = theirs.read(name).to(ours.dtype)
            if found.shape != ours.shape:
                raise CheckpointError(
                    f"{folder / WEIGHTS}: {clipped(name)}: {list(found.shape)}, where the model has"
                    f" {list(ours.shape)}; it is of another model"
                )
            if name in self.added:
                rank, alpha = ranks.of(_module(name, OF_B))
                found = ours.cpu() + alpha / rank**ranks.power * found
            with torch.no_grad():
                for rule in rules:
                    rule.load(layout.weights[rule.ours], found)
        return self.names


def _module(name: str, ending: str) -> str:
    return name.removeprefix(PREFIX).removesuffix(ending)


def find(config: Config, folder: Path, layout: Layout, theirs: FolderTensors) -> Biases:
    """The biases that config.json of PEFT says are there.

    Raises `CheckpointError` where one is missing, or the model has no such bias.
    """
    config.only("bias", "none", "all", "lora_only")
    mode, of_b = config.get("bias", str, "none"), config.get("lora_bias", bool, False)
    own = {m: r for m, rules in modules_of(layout.rules).items() if (r := _biases(rules))}
    found = Biases({}, {}, set())
    for name in theirs:
        if of_b and name.endswith(OF_B):
            module = _module(name, OF_B)
            if module not in own:
                raise CheckpointError(
                    f"{folder / WEIGHTS}: {clipped(name)}: lora_bias, and this layer of the model"
                    " has no bias that it could be added to; use another adapter"
                )
            found.added[name] = own[module]
        elif mode != "none" and name.endswith(COPIES):
            found.unused.add(name)
        elif mode != "none" and name.endswith(BIAS):
            module = _module(name, BIAS).removesuffix(BASE)
            if module in own:
                found.trained[name] = own[module]
    there = {_module(name, BIAS).removesuffix(BASE) for name in found.trained}
    meant = {m for m in own if mode == "all" or f"{PREFIX}{m}{FACTOR}" in theirs}
    if mode != "none" and (missing := sorted(meant - there)):
        raise CheckpointError(
            f"{folder / WEIGHTS}: {missing[0]}{BIAS}: missing, and {CONFIG} says bias: {mode}; use"
            " another adapter"
        )
    return found


def modules_of(rules: Sequence[Rule]) -> dict[str, list[Rule]]:
    """The rules of each module of theirs."""
    found: dict[str, list[Rule]] = {}
    for rule in rules:
        found.setdefault(rule.theirs.rpartition(".")[0], []).append(rule)
    return found


def _biases(rules: Sequence[Rule]) -> list[Rule]:
    return [rule for rule in rules if rule.theirs.endswith(BIAS)]


def alone(layout: Layout, rules: Sequence[Rule]) -> bool:
    """Whether a module's bias is trained, and its weight is not."""
    trained = [rule for rule in rules if layout.is_trained(rule.ours)]
    biases = _biases(rules)
    return bool(trained) and len(biases) < len(rules) and all(rule in biases for rule in trained)


def write(
    layout: Layout,
    tensors: dict[str, Tensor],
    adapted: Collection[str],
    saved: Mapping[str, Sequence[Rule]],
) -> str:
    """What adapter_config.json says of `bias`; adds the tensors, but of modules `saved` whole.

    Where others are trained than those of the adapted layers, all are written, as PEFT then trains
    all; the frozen ones are the base's.
    """
    whole = {rule.theirs for rules in saved.values() for rule in rules}
    every = {
        module: biases
        for module, rules in modules_of(layout.rules).items()
        if (biases := _biases(rules)) and biases[0].theirs not in whole
    }
    modules = modules_of(layout.rules)
    trained = {module for module in every if alone(layout, modules[module])}
    if not trained:
        return "none"
    only = trained == {module for module in adapted if module in every}
    for module in trained if only else every:
        (tensor,) = (tensor for _, tensor in exported(every[module], layout.weights))
        called = module + BASE if module in adapted else module
        tensors[f"{PREFIX}{called}{BIAS}"] = tensor.detach()
    return "lora_only" if only else "all"
