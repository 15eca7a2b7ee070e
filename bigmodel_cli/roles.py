"""Roles of a model's weights for an optimizer: hidden matrix or not, decayed or not.

The defaults go by the module that holds a weight. A module (a part, a model, a plugin's) that knows
better declares so by a method `weight_roles`. The outer module wins: a model knows which of its
layers are the first and the last.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Protocol, runtime_checkable

from bigmodel_cli.lazy import Module, Tensor, nn, torch


@dataclass(frozen=True)
class Role:
    """One weight's role.

    `matrix`: a hidden matrix (M, N), whose kernel axes after the first count as N; what Muon
    orthogonalises (Jordan et al. 2024: embeddings, the first and the last layer, gains and biases
    are not). `decayed`: weight decay applies. `rows`: of each matrix, where several stand in one
    tensor, one below the other, such as a fused query, key and value; empty for one. `names`: what
    those matrices are called, in that order; empty: by their number. `stacked`: the tensor
    (E, M, N) holds E matrices.
    """

    matrix: bool = False
    decayed: bool = False
    rows: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    stacked: bool = False

    def matrices(self, tensor: Tensor) -> list[Tensor]:
        """The tensor's matrices, (M, N) each, or (n, M, N) where n of one size can be computed at
        once.
        """
        if self.stacked:
            return [tensor]
        flat = tensor.flatten(1)
        if len(set(self.rows)) == 1:
            return [flat.unflatten(0, (len(self.rows), self.rows[0]))]
        return list(flat.split(list(self.rows))) if self.rows else [flat]

    def joined(self, matrices: list[Tensor], like: Tensor) -> Tensor:
        """The inverse of `matrices`: one tensor of the shape of `like`."""
        rows = [m.flatten(0, -2) for m in matrices]
        return (rows[0] if len(rows) == 1 else torch.cat(rows)).reshape(like.shape)


MATRIX = Role(matrix=True, decayed=True)
"""A hidden matrix or kernel."""
OUTER = Role(decayed=True)
"""Decayed, and not a hidden matrix: embeddings, the first and the last layer, routers, filters of
single channels.
"""
GAIN = Role()
"""Neither decayed nor a matrix: norms, biases, class and mask tokens, registers, positions, decay
rates; what no module declares.
"""
EXPERTS = Role(matrix=True, decayed=True, stacked=True)
"""(E, M, N): a hidden matrix for each expert."""


def fused(*rows: int, names: tuple[str, ...] = ()) -> Role:
    """Several hidden matrices in one tensor: each is orthogonalised by itself, as its author
    recommends for q, k and v, and adapted by itself.
    """
    return Role(matrix=True, decayed=True, rows=rows, names=names)


class Parts(Protocol):
    """How a weight is divided among processes, each of which keeps some of its rows."""

    def whole(self, local: Tensor) -> Tensor:
        """All of a tensor of which each process has a part as of the weight; all call it."""

    def own(self, tensor: Tensor) -> Tensor:
        """This process's part of a whole tensor of the weight's shape."""


@dataclass(frozen=True)
class Weight:
    """A parameter with its name in the model, and its role.

    `rate` is its multiple of the run's learning rate, `start` the number of updates before its
    first one. With `parts` the tensor is the part that this process keeps.
    """

    name: str
    tensor: nn.Parameter
    role: Role
    rate: float = 1.0
    start: int = 0
    parts: Parts | None = None

    def whole(self, tensor: Tensor) -> Tensor:
        """A tensor like the weight's, such as its gradient, in whole; all processes call it."""
        return tensor if self.parts is None else self.parts.whole(tensor)

    def own(self, tensor: Tensor) -> Tensor:
        """What of a whole tensor belongs to the weight's."""
        return tensor if self.parts is None else self.parts.own(tensor)


@runtime_checkable
class DeclaresRoles(Protocol):
    """A module that knows the roles of some of its weights."""

    def weight_roles(self) -> dict[str, Role]:
        """Roles of weights below this module, by their names within it; the others keep their
        defaults.
        """


PARAMETRIZED, ORIGINAL = ".parametrizations.", ".original"
"""What `torch.nn.utils.parametrize` puts into the name of a weight that it computes anew."""


def adapted_name(name: str) -> str:
    """The name of a weight once it is adapted: `qkv.weight` is then what is computed from it."""
    module, _, own = name.rpartition(".")
    return f"{module}.parametrizations.{own}{ORIGINAL}".removeprefix(".")


def plain_name(name: str) -> str:
    """The inverse: the name that a weight has where it is not adapted."""
    if name.endswith(ORIGINAL):
        return f".{name.removesuffix(ORIGINAL)}".replace(PARAMETRIZED, ".")[1:]
    return name


def named_weights(model: Module) -> list[Weight]:
    """Every parameter of the model once, with its role.

    Raises `ValueError` where a module names a weight that does not exist.

    A weight with two names (a tied embedding) is a matrix where it is one under both, and decays
    where it does under either.
    """
    roles: dict[str, Role] = {}
    # inner modules first
    for path, module in reversed(list(model.named_modules(remove_duplicate=False))):
        prefix = f"{path}." if path else ""
        for name, p in module.named_parameters(recurse=False, remove_duplicate=False):
            roles[prefix + name] = _default(module, name, p)
        if isinstance(module, DeclaresRoles):
            for name, role in module.weight_roles().items():
                # an adapted weight has moved
                if prefix + name not in roles and adapted_name(prefix + name) in roles:
                    continue
                if prefix + name not in roles:
                    raise ValueError(
                        f"{type(module).__name__}.weight_roles names {name!r}, which is not a"
                        " weight of it"
                    )
                roles[prefix + name] = role
    uses: dict[int, list[Role]] = {}
    for name, p in model.named_parameters(remove_duplicate=False):
        uses.setdefault(id(p), []).append(roles[name])
    return [Weight(name, p, _common(uses[id(p)])) for name, p in model.named_parameters()]


def _default(module: Module, name: str, p: Tensor) -> Role:
    """The default role of a weight that `module` itself holds, by the module's class."""
    # torchvision's: three matrices without a module of their own
    if isinstance(module, nn.MultiheadAttention):
        size = module.embed_dim
        return (
            fused(size, size, size)
            if name == "in_proj_weight"
            else MATRIX
            if name.endswith("_weight")
            else GAIN
        )
    if isinstance(module, nn.RNNBase):
        return OUTER if name.startswith("weight") else GAIN
    if name != "weight":
        return GAIN
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        if module.groups == 1:
            return MATRIX
        if module.groups == module.in_channels:  # depthwise
            return OUTER
        return fused(*[p.shape[0] // module.groups] * module.groups)
    if isinstance(module, nn.Linear):
        return MATRIX
    return OUTER if isinstance(module, nn.Embedding) else GAIN


def _common(roles: Iterable[Role]) -> Role:
    """The role of a weight that is used in several ways."""
    every = list(roles)
    if len(every) == 1 or all(role.matrix for role in every):
        return every[0]
    return Role(decayed=any(role.decayed for role in every))


def in_several(model: Module, groups: Iterable[Module]) -> set[int]:
    """The weights that are in more than one of the groups, or in one of them and outside."""
    inside = {module: group for group in groups for module in group.modules()}
    places: dict[int, set[Module | None]] = {}
    for module in model.modules():
        for p in module.parameters(recurse=False):
            places.setdefault(id(p), set()).add(inside.get(module))
    return {p for p, at in places.items() if len(at) > 1}


def without_numbers(weight: Weight) -> Weight:
    """The same without storage, but for single numbers."""
    own = weight.tensor
    if not own.dim():
        return weight
    bare = torch.empty(own.shape, dtype=own.dtype, device="meta")
    return replace(weight, tensor=nn.Parameter(bare, requires_grad=own.requires_grad))
