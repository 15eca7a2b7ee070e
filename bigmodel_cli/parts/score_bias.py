"""Positions as biases of attention scores: ALiBi's and T5's."""

from __future__ import annotations

import math

from bigmodel_cli.lazy import Module, Tensor, nn, torch
from bigmodel_cli.parts.kernels import distances
from bigmodel_cli.roles import GAIN, Role
from bigmodel_cli.shares import ALONE, Cut, Run, Shares, Team


class Alibi(Module):
    """(H, T, S)   -slope_h * |i - j|, slopes 2^(-8/H), 2^(-16/H), ... (Press et al. 2022)."""

    team: Team = ALONE
    context_fault = ""

    def __init__(self, heads: int) -> None:
        super().__init__()
        self.register_buffer("slopes", torch.tensor(alibi_slopes(heads)), persistent=False)

    def shares(self) -> Shares:
        """By heads."""
        return {"slopes": Cut(0, (Run("heads", len(self.get_buffer("slopes"))),))}

    def narrow(self, team: Team) -> None:
        self.team = team

    def forward(self, queries: int, keys: int, ahead: int = 0) -> Tensor:
        """The bias of the scores; `ahead` keys follow that of the last query."""
        slopes = self.get_buffer("slopes")
        return -slopes[:, None, None] * distances(queries, keys, slopes.device, ahead).abs()


def alibi_slopes(heads: int) -> list[float]:
    """The paper's slopes.

    Where the number of heads is not a power of two, the rest is every second slope of the next
    power.
    """
    power = 2 ** math.floor(math.log2(heads))
    slopes = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return slopes + [2 ** (-4 * (i + 1) / power) for i in range(0, 2 * (heads - power), 2)]


class T5Bias(Module):
    """(H, T, S)   a learned score for the bucket of j - i (Raffel et al. 2020).

    Half of the buckets are exact, the rest logarithmic.
    """

    team: Team = ALONE
    context_fault = ""

    def __init__(self, buckets: int, max_distance: int, heads: int, causal: bool) -> None:
        super().__init__()
        self.buckets, self.max_distance, self.causal = buckets, max_distance, causal
        self.table = nn.Embedding(buckets, heads)

    def weight_roles(self) -> dict[str, Role]:
        """The scores count as biases."""
        return {"table.weight": GAIN}

    def shares(self) -> Shares:
        """By heads."""
        return {"table.weight": Cut(1, (Run("heads", self.table.embedding_dim),))}

    def narrow(self, team: Team) -> None:
        self.team = team

    def forward(self, queries: int, keys: int, ahead: int = 0) -> Tensor:
        """The bias of the scores; `ahead` keys follow that of the last query."""
        back = distances(queries, keys, self.table.weight.device, ahead)
        bias: Tensor = self.table(self.bucket(back))  # (T, S, H)
        return bias.permute(2, 0, 1)

    def bucket(self, back: Tensor) -> Tensor:
        """The bucket of a key that is `back` positions before the query."""
        buckets, offset = self.buckets, torch.zeros_like(back)
        if not self.causal:  # the upper half is for later keys
            buckets //= 2
            offset, back = (back < 0) * buckets, back.abs()
        back = back.clamp(min=0)
        exact = buckets // 2
        spread = math.log(self.max_distance / exact)
        far = exact + ((back.clamp(min=1) / exact).log() / spread * (buckets - exact)).long()
        return offset + torch.where(back < exact, back, far.clamp(max=buckets - 1))
