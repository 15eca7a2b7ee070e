"""How weights are cut and put together again, and which modules are divided."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from local_teams import divided, one_of
from torch import Tensor, nn

from bigmodel_cli.parts.ffn import FeedForward
from bigmodel_cli.shares import Cut, Run, Team, says_so


@given(
    size=st.sampled_from([1, 2, 3, 4, 6]), axis=st.sampled_from([0, 1]), width=st.integers(1, 4),
    each=st.integers(1, 3), few=st.sampled_from([1, 2, 3]), more=st.integers(0, 5),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_shares_together_are_the_whole(
    size: int, axis: int, width: int, each: int, few: int, more: int
) -> None:
    runs = (
        Run("heads", size * each, width),
        Run("groups", few, width, repeated=True),
        Run("tokens", size + more, uneven=True),
    )
    cut = Cut(axis, runs)
    if few % size and size % few:
        assert cut.fault(size).startswith(f"{few} groups cannot be shared evenly by {size}")
        return
    shape = [5, 5]
    shape[axis] = sum(run.length for run in runs)
    whole = torch.arange(shape[0] * shape[1]).view(shape)
    shares = [cut.taken(whole, rank, size) for rank in range(size)]
    assert [s.shape[axis] for s in shares] == [sum(cut.lengths(r, size)) for r in range(size)]
    assert torch.equal(cut.joined(shares), whole)
    told = Told([share.movedim(axis, -1) for share in shares])
    assert torch.equal(cut.gathered(shares[0], told), whole)


class Told(Team):
    """Processes of which each has such a tensor."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.tensors = tensors

    def all_of(self, x: Tensor) -> list[Tensor]:
        assert torch.equal(x, self.tensors[0])
        return self.tensors


def test_a_weight_of_another_length_is_not_cut() -> None:
    with pytest.raises(ValueError, match="along axis 0"):
        Cut(0, (Run("heads", 4, 2),)).taken(torch.zeros(9, 2), 0, 2)


class Doubled(FeedForward):
    """A plugin's part, which computes otherwise and does not say how it is divided."""

    def forward(self, x: Tensor, *more: object) -> Tensor:
        return self.down(self.activation(self.up(2 * x)))  # type: ignore[no-any-return]


class Two(nn.Module):
    """Both kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.own = Doubled(6, 8, True, 0.0, "relu")
        self.known = FeedForward(6, 8, True, 0.0, "relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.known(self.own(x))  # type: ignore[no-any-return]


def test_a_part_without_a_plan_is_kept_whole() -> None:
    torch.manual_seed(0)
    model, x = Two().double(), torch.randn(3, 6, dtype=torch.float64)
    assert says_so(model.known)
    assert not says_so(model.own)
    whole = copy.deepcopy(model)
    want = whole(x)
    want.sum().backward()

    with divided(model, 2) as (own, division):
        assert {name.partition(".")[0] for name in division.shares} == {"known"}
        y = own(x)
        y.sum().backward()
        division.settle()
        named = own.named_parameters()
        gradients = {n: one_of(division.whole(n, p.grad)) for n, p in named}
    assert torch.allclose(one_of(y), want)
    for name, p in whole.named_parameters():
        assert torch.allclose(gradients[name], p.grad), name
