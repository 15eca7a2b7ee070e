"""Which frozen matrices of an adapted model are held in 4 bits."""

from __future__ import annotations

from dataclasses import dataclass

from bigmodel_cli.adapters.four_bits import BLOCK, bytes_of, in_four_bits
from bigmodel_cli.adapters.owners import owners, with_roles
from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import Module, Tensor, nn
from bigmodel_cli.roles import plain_name


@dataclass(frozen=True)
class Quantized:
    """The names of the matrices that are held in 4 bits, their number of weights, and the bytes
    that they take; `whole`: names of frozen matrices that are not.
    """

    names: frozenset[str]
    numbers: int
    bytes: int
    whole: list[str]

    def to_text(self) -> str:
        """For people, in one line."""
        more = (
            f"; {len(self.whole)} more as they were (experts, convolutions, sizes that are not a"
            f" multiple of {BLOCK}, zeros): {', '.join(map(plain_name, self.whole[:3]))}"
            if self.whole
            else ""
        )
        return (
            f"{len(self.names)} frozen matrices of {self.numbers:,} numbers are held in"
            f" {self.bytes:,} bytes ({8 * self.bytes / max(1, self.numbers):.2f} bits each){more}"
        )


def quantize(model: Module) -> Quantized:
    """Hold the frozen hidden matrices of the model's linear layers in 4 bits.

    Output layers, embeddings, routers, norms and stacked experts stay as they are. Raises
    `CheckpointError` where numbers are not finite, and `MissingPackage` without torchao.
    """
    held, whole, numbers, size = set(), [], 0, 0
    of_weights = owners(model)
    for weight, role in with_roles(model):
        tensor = weight.tensor
        if tensor.requires_grad or not role.matrix or tensor.dim() < 2:
            continue
        places = of_weights[id(tensor)]
        linear = tensor.dim() == 2 and all(isinstance(at.layer, nn.Linear) for at in places)
        if not linear or tensor.numel() % BLOCK or _has_empty_block(tensor, weight.name):
            whole.append(weight.name)
            continue
        stored = nn.Parameter(in_four_bits(tensor.detach()), False)
        numbers, size = numbers + tensor.numel(), size + bytes_of(stored)
        held.add(weight.name)
        for at in places:
            at.module._parameters[at.name] = stored
    return Quantized(frozenset(held), numbers, size, whole)


def _has_empty_block(tensor: Tensor, name: str) -> bool:
    """Whether all numbers of a block are 0: it has no scale."""
    largest = tensor.detach().reshape(-1, BLOCK).abs().amax(1)
    if not bool(largest.isfinite().all()):
        raise CheckpointError(
            f"adapter.base: {name} has numbers that are not finite: start from another checkpoint"
        )
    return bool((largest == 0).any())
