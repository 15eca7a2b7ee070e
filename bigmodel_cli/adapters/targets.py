"""Which weights of a model can be adapted, by what names, and which of them a spec means."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from bigmodel_cli.adapters.base import LowRankOptions
from bigmodel_cli.errors import did_you_mean
from bigmodel_cli.lazy import Module, Tensor, nn, torch
from bigmodel_cli.names import generally, matches
from bigmodel_cli.roles import Role, named_weights

WHOLE = "whole"
"""The part of a weight that is one matrix."""


@dataclass
class Target:
    """A weight that can be adapted, under its first name; where it is tied, all its owners.

    `parts`: the first row and the number of rows of each of its matrices, by name.
    """

    name: str
    tensor: Tensor
    role: Role
    parts: dict[str, tuple[int, int]]
    owners: list[tuple[Module, str]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    lookup: bool = False

    def called(self, part: str) -> list[str]:
        """The names of a part that patterns are compared with."""
        stems = [name.removesuffix(".weight") for name in self.names]
        own = [] if part == WHOLE else [f"{stem}.{part}" for stem in stems]
        return [*own, *stems, *self.names]

    def matrix(self, part: str) -> Tensor:
        """(M, N), or of a stack (E, M, N): the rows of a part, a kernel's axes after the first as
        one.
        """
        tensor = self.tensor.detach()
        if self.role.stacked:
            return tensor
        first, count = self.parts[part]
        return tensor[first : first + count].flatten(1)

    def shape(self, part: str) -> torch.Size:
        """The shape of that matrix."""
        whole = self.tensor.shape
        if self.role.stacked:
            return whole
        return torch.Size((self.parts[part][1], math.prod(whole[1:])))

    def rank(self, part: str) -> int:
        """The most that a part can have."""
        return min(self.shape(part)[-2:])


def targets(model: Module) -> list[Target]:
    """The weights that can be adapted: of linear layers, embeddings, convolutions that are not
    grouped, and hidden matrices of parts' own, such as experts'.
    """
    roles = {id(w.tensor): w for w in named_weights(model)}
    found: dict[int, Target] = {}
    for path, module in model.named_modules():
        for name, tensor in module.named_parameters(recurse=False):
            weight = roles[id(tensor)]
            if id(tensor) not in found:
                if not _adaptable(module, name, weight.role):
                    continue
                found[id(tensor)] = Target(
                    weight.name, tensor, weight.role, _parts(weight.role, tensor)
                )
            target = found[id(tensor)]
            target.owners.append((module, name))
            target.names.append(f"{path}.{name}" if path else name)
            target.lookup |= isinstance(module, nn.Embedding)
    return list(found.values())


def _adaptable(module: Module, name: str, role: Role) -> bool:
    if isinstance(module, nn.modules.conv._ConvNd):
        # the others' weights are (in, out, ...)
        return name == "weight" and module.groups == 1 and not module.transposed
    if isinstance(module, nn.RNNBase):  # its kernel reads a list of its own
        return False
    return role.matrix or (name == "weight" and isinstance(module, nn.Linear | nn.Embedding))


def _parts(role: Role, tensor: Tensor) -> dict[str, tuple[int, int]]:
    """First row and number of rows of each matrix, by its name."""
    if role.stacked or len(role.rows) < 2:
        return {WHOLE: (0, tensor.shape[0])}
    starts = [sum(role.rows[:i]) for i in range(len(role.rows))]
    names = role.names or tuple(map(str, range(len(role.rows))))
    return {name: (s, n) for name, s, n in zip(names, starts, role.rows, strict=True)}


def chosen(
    all_of_them: Sequence[Target], options: LowRankOptions
) -> tuple[dict[str, list[str]], list[str]]:
    """Name -> parts of the weights that are meant, and what is meant beside these that has less
    than its rank.

    Raises `ValueError` for a pattern that means none.
    """
    found: dict[str, list[str]] = {}
    small: dict[str, None] = {}
    for pattern in options.targets:
        meant = [
            (target, part)
            for target in all_of_them
            for part in target.parts
            if any(matches(name, pattern) for name in target.called(part))
        ]
        if not meant:
            raise ValueError(f"targets: {unmatched(pattern, _names(all_of_them))}")
        ranks = [0 if options.path else options.of(t.called(p)).rank for t, p in meant]
        fits = [t.rank(p) >= rank for (t, p), rank in zip(meant, ranks, strict=True)]
        if not any(fits):
            target, part = meant[0]
            raise ValueError(
                f"rank: {ranks[0]} is more than {target.called(part)[0]} has, {target.rank(part)};"
                " take a smaller rank, or train a small weight whole (adapter.modules_to_save)"
            )
        small |= {t.called(p)[0]: None for (t, p), fit in zip(meant, fits, strict=True) if not fit}
        fitting = [own for own, fit in zip(meant, fits, strict=True) if fit]
        for target, part in fitting:
            if part not in found.setdefault(target.name, []):
                found[target.name].append(part)
    order = {t.name: list(t.parts) for t in all_of_them}
    wanted = {
        name: sorted(found[name], key=parts.index) for name, parts in order.items() if name in found
    }
    adapted = [t.called(p) for t in all_of_them for p in wanted.get(t.name, ())]
    for key, given in (
        ("rank_pattern", options.rank_pattern), ("alpha_pattern", options.alpha_pattern),
    ):  # fmt: skip
        for pattern in given:
            if not any(matches(name, pattern) for names in adapted for name in names):
                raise ValueError(f"{key}: {unmatched(pattern, [names[0] for names in adapted])}")
    return wanted, list(small)


def _names(all_of_them: Sequence[Target]) -> list[str]:
    return [target.called(part)[0] for target in all_of_them for part in target.parts]


def unmatched(pattern: str, names: Sequence[str]) -> str:
    """What is wrong with a pattern, with the names that it may have meant."""
    general = list(dict.fromkeys(generally(name) for name in names))
    last = pattern.rpartition(".")[2].removesuffix("_proj").lower()
    near = [name for name in general if name.rpartition(".")[2].lower() == last][:3]
    hint = f"; did you mean {' or '.join(near)}?" if near else did_you_mean(pattern, general)
    known = ", ".join(general[:8]) + (" ..." if len(general) > 8 else "")
    return f"{pattern!r} matches no weight that can be adapted{hint or ''}; such are {known}"


def grouped(names: Sequence[str]) -> dict[str, list[str]]:
    """Names by what they are called with * for the numbers of blocks."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(generally(name), []).append(name)
    return found
