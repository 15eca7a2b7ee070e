"""Chosen layers of a checkpoint's network as the blocks of another one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from bigmodel_cli.checkpoints.places import Complete, is_same, refused
from bigmodel_cli.checkpoints.stored import Tensors
from bigmodel_cli.lazy import Tensor, torch

Taken = Mapping[str, Sequence[int]]
"""Stack -> the numbers of its layers that become the blocks of that stack, in order."""


class TakenLayers(Tensors):
    """The tensors of the layers that are taken, by the names of the blocks that they become.

    A layer may be taken several times. What is in no stack of `taken` stays as it is; `left_out`
    are the names of what is not taken.
    """

    def __init__(self, tensors: Tensors, taken: Taken) -> None:
        self.tensors, self.taken, self.spare = tensors, taken, tensors.spare
        self.names = {ours: name for name in tensors for ours in _renamed(name, taken)}
        used = set(self.names.values())
        self.left_out = [name for name in tensors if name not in used]
        # one of several names of a tensor may be left out, and another one kept
        self.stored = {ours: tensors.tied.get(name, name) for ours, name in self.names.items()}
        self.described = {ours: tensors[name] for ours, name in self.names.items()}
        first: dict[str, str] = {}
        tied = {ours: first.setdefault(name, ours) for ours, name in self.stored.items()}
        known = set(tensors.tied.values())
        self.tied = {
            ours: of for ours, of in tied.items() if ours != of and self.stored[ours] in known
        }

    def copy_to(self, targets: Mapping[str, Tensor], complete: Complete = refused) -> None:
        wanted: dict[str, list[str]] = {}
        for ours in targets:
            wanted.setdefault(self.stored[ours], []).append(ours)

        def completed(name: str, tensor: Tensor) -> None:
            for ours in wanted[name]:
                complete(ours, tensor)

        self.tensors.copy_to({n: targets[ours[0]] for n, ours in wanted.items()}, completed)
        with torch.no_grad():
            for first, *others in wanted.values():
                known = targets[first]
                for target in (targets[ours] for ours in others):
                    if not known.is_meta and not is_same(target, known):
                        target.copy_(known)

    def stream(self) -> Iterator[tuple[str, Tensor]]:
        wanted: dict[str, list[str]] = {}
        for ours, name in self.stored.items():
            wanted.setdefault(name, []).append(ours)
        for name, tensor in self.tensors.stream():
            yield from ((ours, tensor) for ours in wanted.get(name, ()))

    def glance(self, name: str) -> Tensor:
        return self.tensors.glance(self.stored[name])


def _renamed(name: str, taken: Taken) -> list[str]:
    """The names that a tensor has among the layers taken."""
    stack, _, rest = name.partition(".")
    number, _, within = rest.partition(".")
    if stack not in taken or not number.isdecimal():
        return [name]
    return [f"{stack}.{i}.{within}" for i, n in enumerate(taken[stack]) if n == int(number)]
