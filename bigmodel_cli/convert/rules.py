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
from itertools import groupby

from bigmodel_cli.errors import CheckpointError
from bigmodel_cli.lazy import Tensor, torch

View = Callable[[Tensor], Tensor]


def whole(ours: Tensor) -> Tensor:
    """All of it, as it is."""
    return ours


def transposed(ours: Tensor) -> Tensor:
    """(M, N) -> (N, M), for matrices that are stored inputs first (GPT-2's Conv1D)."""
    return ours.T


def transposed_each(ours: Tensor) -> Tensor:
    """(E, M, N) -> (E, N, M), for stacks of such matrices."""
    return ours.mT


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
class Half:
    """One of two equal parts of a tensor of theirs along an axis after the first.

    Two rules share the tensor: one part after the other, or by turns (`mixed`).
    """

    axis: int
    second: bool
    mixed: bool = False

    def of(self, theirs: Tensor) -> Tensor:
        """The view of theirs."""
        if self.mixed:
            pairs: Tensor = theirs.unflatten(self.axis, (-1, 2))
            return pairs.select(self.axis + 1, int(self.second))
        return theirs.chunk(2, self.axis)[int(self.second)]


@dataclass(frozen=True)
class Rule:
    """A tensor of theirs is this view of a parameter (or buffer) of ours.

    `order` lists, for each row of theirs, the row of the view; in the view's order when left out.
    Other rules give the rows that it does not list.
    `skip` counts the rows that theirs has before the first of ours: those of the rules before this
    one where several share a tensor of theirs, or else unused (zeros on export). With `half` the
    view is one half of theirs. Rules that share a tensor of theirs follow one another.
    """

    theirs: str
    ours: str
    view: View = whole
    order: list[int] | None = None
    skip: int = 0
    half: Half | None = None

    def own(self, ours: Tensor) -> torch.Size:
        """The shape of what theirs has of ours."""
        place = self.view(ours).shape
        return place if self.order is None else torch.Size((len(self.order), *place[1:]))

    def shape(self, ours: Tensor) -> torch.Size:
        """The shape of theirs, up to the last row of ours."""
        size = list(self.own(ours))
        if self.skip:
            size[0] += self.skip
        if self.half is not None:
            size[self.half.axis] *= 2
        return torch.Size(size)

    def within(self, theirs: Tensor, own: torch.Size) -> Tensor:
        """What theirs has of ours, of this shape, as a view."""
        theirs = theirs[self.skip : self.skip + own[0]] if own else theirs
        return theirs if self.half is None else self.half.of(theirs)

    def load(self, ours: Tensor, theirs: Tensor, first: int = 0) -> None:
        """Copy theirs into ours, in the dtype of ours; the shapes are known to fit.

        `theirs` may be some of its rows, of which the first is row `first`.
        """
        place, own = self.view(ours), self.own(ours)
        if not own:
            place.copy_(theirs)
            return
        start, at = self.skip - first, max(first - self.skip, 0)
        theirs = theirs[max(start, 0) : max(start + own[0], 0)]
        theirs = theirs if self.half is None else self.half.of(theirs)
        if self.order is None:
            place[at : at + len(theirs)].copy_(theirs)
        else:
            rows = torch.tensor(self.order[at : at + len(theirs)], dtype=torch.int64)
            place.index_copy_(0, rows, theirs.to(place.dtype))

    def memory(self, ours: Tensor, dtype: torch.dtype) -> Tensor | None:
        """The view where it lies in memory as its rows of this dtype do in a file, else None."""
        place = self.view(ours)
        plain = self.order is None and self.half is None and place.is_contiguous()
        return place if plain and place.dtype == dtype and place.device.type == "cpu" else None

    def save(self, ours: Tensor) -> Tensor:
        """What theirs has of ours, contiguous."""
        place = self.view(ours)
        if self.order is not None:
            place = place.index_select(0, torch.tensor(self.order))
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
        given[rule.ours] += rule.own(ours[rule.ours]).numel()
    for name in {*parameters, *given}:
        numbers = ours[name].numel()
        assert given[name] == numbers, f"{name}: {given[name]} of {numbers} numbers"


def check_fit(rules: list[Rule], ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` listing each tensor of theirs that is missing or of another shape."""
    faults = []
    for rule in {rule.theirs: rule for rule in rules}.values():  # of those that share it, the last
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
    for name, shared in groupby(rules, lambda rule: rule.theirs):
        of = list(shared)
        last, tensor = of[-1], ours[of[-1].ours].detach()
        if len(of) == 1 and not last.skip:
            yield name, last.save(tensor)
            continue
        theirs = tensor.new_zeros(last.shape(tensor))
        for rule in of:
            piece = rule.save(ours[rule.ours].detach())
            rule.within(theirs, piece.shape).copy_(piece)
        yield name, theirs
