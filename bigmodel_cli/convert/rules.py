"""Rules between our weights and a published layout's: one list serves both directions.

A rule says where a tensor of theirs lies within a parameter of ours: a *view* of it (all of it, its
transpose, some of its rows, one expert), and where needed another order of the view's rows.
Importing copies their tensor into the view and exporting copies the view out, so each is the
inverse of the other to the bit, and no third copy of a weight is made.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import Tensor, torch

View = Callable[[Tensor], Tensor]


def whole(ours: Tensor) -> Tensor:
    """All of it, as it is."""
    return ours


def transposed(ours: Tensor) -> Tensor:
    """(M, N) -> (N, M), for matrices that are stored inputs first (GPT-2's Conv1D)."""
    return ours.T


def rows(start: int, count: int, then: View = whole) -> View:
    """`count` rows from `start`: one of several matrices that ours holds below one another."""
    return lambda ours: then(ours[start : start + count])


def nth(index: int, then: View = whole) -> View:
    """One of a stack, such as an expert's matrix."""
    return lambda ours: then(ours[index])


def shaped(*shape: int) -> View:
    """The same numbers with other axes, such as a filter with an axis of one channel."""
    return lambda ours: ours.view(shape)


def neighbours(heads: int, width: int, turned: int) -> list[int]:
    """The order of a projection's rows where rotary pairs are neighbours, (2i, 2i + 1).

    Ours are (i, i + R/2) within the last `turned` (R) of each head's `width` rows. For use as
    `Rule.order`: the row of ours at each row of theirs.
    """
    plain, half = width - turned, turned // 2
    head = [*range(plain), *(plain + i + j * half for i in range(half) for j in (0, 1))]
    return [width * h + row for h in range(heads) for row in head]


@dataclass(frozen=True)
class Rule:
    """A tensor of theirs is this view of a parameter (or buffer) of ours.

    `order` lists, for each row of theirs, the row of the view; in the view's order when left out.
    Other rules give the rows that it does not list.
    `skip` counts the rows that theirs has before the first of ours, unused (zeros on export).
    """

    theirs: str
    ours: str
    view: View = whole
    order: list[int] | None = None
    skip: int = 0

    def shape(self, ours: Tensor) -> torch.Size:
        """The shape of theirs."""
        place = self.view(ours).shape
        if self.order is not None:
            place = torch.Size((len(self.order), *place[1:]))
        return torch.Size((place[0] + self.skip, *place[1:])) if self.skip else place

    def numbers(self, ours: Tensor) -> int:
        """How many numbers of ours it gives."""
        return self.shape(ours).numel() - self.skip * self.view(ours).shape[1:].numel()

    def load(self, ours: Tensor, theirs: Tensor) -> None:
        """Copy theirs into ours, in the dtype of ours; the shapes are known to fit."""
        place, theirs = self.view(ours), theirs[self.skip :] if self.skip else theirs
        if self.order is None:
            place.copy_(theirs)
        else:
            place.index_copy_(0, torch.tensor(self.order), theirs.to(place.dtype))

    def save(self, ours: Tensor) -> Tensor:
        """Theirs, contiguous."""
        place = self.view(ours)
        if self.order is not None:
            place = place.index_select(0, torch.tensor(self.order))
        if self.skip:
            place = torch.cat((place.new_zeros(self.skip, *place.shape[1:]), place))
        return place.contiguous()


def check_complete(
    rules: Iterable[Rule], ours: Mapping[str, Tensor], parameters: Iterable[str]
) -> None:
    """Raise `AssertionError` unless the rules give every number of each parameter exactly once.

    A family whose rules miss a weight would leave it as it was drawn, without a word.
    """
    given: Counter[str] = Counter()
    for rule in rules:
        assert rule.ours in ours, f"{rule.theirs}: the model has no {rule.ours}"
        given[rule.ours] += rule.numbers(ours[rule.ours])
    for name in {*parameters, *given}:
        numbers = ours[name].numel()
        assert given[name] == numbers, f"{name}: {given[name]} of {numbers} numbers"


def check_fit(rules: list[Rule], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` listing each tensor of theirs that is missing or of another shape."""
    faults = []
    for rule in rules:
        wanted, found = list(rule.shape(ours[rule.ours])), theirs.get(rule.theirs)
        if found is None:
            faults.append(f"{rule.theirs}: missing; expected {wanted}")
        elif list(found.shape) != wanted:
            faults.append(f"{rule.theirs}: expected {wanted}, found {list(found.shape)}")
    if faults:
        more = [f"and {len(faults) - 5} more"] if len(faults) > 5 else []
        raise CheckpointError("\n  ".join(["the weights do not fit:", *faults[:5], *more]))


def exported(rules: Iterable[Rule], ours: Mapping[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Each tensor of theirs, made when it is asked for."""
    for rule in rules:
        yield rule.theirs, rule.save(ours[rule.ours].detach())
