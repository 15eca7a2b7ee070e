"""Experts: feed-forward networks of which each token passes through a few."""

from __future__ import annotations

from bigmodel_cli.lazy import F, Tensor, nn, torch
from bigmodel_cli.parts.context import recorded
from bigmodel_cli.parts.ffn import ClampOptions
from bigmodel_cli.parts.matrices import OwnMatrices
from bigmodel_cli.parts.recomputed import recomputed
from bigmodel_cli.shares import ALONE, Cut, Exchange, Run, Shares, Team


class Experts(OwnMatrices):
    """The experts of a mixture, without what chooses among them.

    Weights are stacked: gate and up (E, hidden, C), down (E, C, hidden). A process of a team has
    the `count` experts from number `first` on, and adds nothing for tokens that chose others. With
    an `exchange`, other processes have other experts, and other tokens.
    """

    gate: nn.Parameter
    up: nn.Parameter
    down: nn.Parameter
    gate_bias: nn.Parameter | None
    up_bias: nn.Parameter | None
    down_bias: nn.Parameter | None
    clamp: ClampOptions | None
    top_k: int
    first: int
    count: int
    team: Team = ALONE
    exchange: Exchange | None = None

    def shares_of_experts(self) -> Shares:
        """Each has experts of its own."""
        by_experts = Cut(0, (Run("experts", self.count),))
        names = "gate", "up", "down", "gate_bias", "up_bias", "down_bias"
        return dict.fromkeys(names, by_experts)

    def narrow(self, team: Team) -> None:
        """Go on with this process's experts."""
        self.count, self.team = self.count // team.size, team
        self.first = self.count * team.rank

    def activated(self, gate: Tensor, up: Tensor) -> Tensor:
        """The hidden layer from its two projections."""
        clamp = self.clamp
        if clamp is None:
            return F.silu(gate) * up
        gate, up = gate.clamp(max=clamp.limit), up.clamp(-clamp.limit, clamp.limit)
        return (up + 1) * (gate * (clamp.alpha * gate).sigmoid())

    def compute(self, tokens: Tensor, scores: Tensor, chosen: Tensor) -> Tensor:
        """(N, C): each token's experts, weighted.

        Tokens are sorted by expert, so that each expert is one matrix product.
        """
        if recorded():
            return self.all_of_them(tokens, scores, chosen)
        if self.exchange is not None:
            return self.elsewhere(tokens, scores, chosen, self.exchange)
        order = chosen.flatten().argsort(stable=True)  # (N * k): into `chosen`, expert by expert
        if tokens.is_meta:  # only shapes and FLOPs, the same for any expert
            counts = torch.tensor([len(order)] + [0] * (self.count - 1), device="cpu")
        else:
            counts = torch.bincount(chosen.flatten(), minlength=self.count * self.team.size)
        if self.team.size > 1 and not tokens.is_meta:
            counts = counts[self.first : self.first + self.count]
            expert = chosen.flatten()[order] - self.first
            order = order[(expert >= 0) & (expert < self.count)]
        y = self.in_turn(tokens[order // self.top_k], counts)
        y = y * scores.flatten()[order, None].to(y.dtype)
        return torch.zeros_like(tokens, dtype=y.dtype).index_add_(0, order // self.top_k, y)

    def elsewhere(
        self, tokens: Tensor, scores: Tensor, chosen: Tensor, exchange: Exchange
    ) -> Tensor:
        """The same, where each token goes to the processes that keep its experts, and comes back.

        How many go where is told first. An expert's rows are in the order of one process that has
        the samples of all, by rank.
        """
        order = chosen.flatten().argsort(stable=True)
        counts = torch.bincount(chosen.flatten(), minlength=self.count)
        given = exchange.counts(counts)  # (processes, experts here)
        to, of = counts.view(exchange.size, -1).sum(1).tolist(), given.sum(1).tolist()
        rows = exchange.sent(tokens[order // self.top_k], to, of)
        own = torch.arange(given.shape[1], device=rows.device).repeat(exchange.size)
        by_expert = own.repeat_interleave(given.flatten()).argsort(stable=True)
        y = self.in_turn(rows[by_expert], given.sum(0))
        y = exchange.sent(y[by_expert.argsort()], of, to)
        y = y * scores.flatten()[order, None].to(y.dtype)
        return torch.zeros_like(tokens, dtype=y.dtype).index_add_(0, order // self.top_k, y)

    def in_turn(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(R, C) -> (R, C): the next `counts[e]` rows through expert e of those here."""
        return self.grouped(rows, counts) if rows.is_cuda else self.one_by_one(rows, counts)

    def all_of_them(self, tokens: Tensor, scores: Tensor, chosen: Tensor) -> Tensor:
        """(N, C): every expert for every token, those not chosen times 0: for recorded graphs."""
        every = self.count * self.team.size
        share = scores.new_zeros(scores.shape[0], every).scatter(1, chosen, scores)
        share = share[:, self.first : self.first + self.count]
        y = self.experts(tokens.expand(self.count, -1, -1))
        return (y * share.T[..., None]).sum(0)

    def experts(self, rows: Tensor) -> Tensor:
        """(E, R, C) -> (E, R, C): each expert on its rows, as one batched product."""

        def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
            y = torch.bmm(x, weight.transpose(1, 2))
            return y if bias is None else y + bias[:, None].to(y.dtype)

        gate = linear(rows, self.gate, self.gate_bias)
        hidden = recomputed(self.activated, gate, linear(rows, self.up, self.up_bias))
        return linear(hidden, self.down, self.down_bias)

    def one_by_one(self, rows: Tensor, counts: Tensor) -> Tensor:
        """(N * k, C): expert after expert; best where one product fills the machine."""

        def linear(x: Tensor, weight: Tensor, bias: Tensor | None, e: int) -> Tensor:
            return F.linear(x, weight[e], None if bias is None else bias[e])

        parts = []
        gate, up, down = self.gate, self.up, self.down  # once: an adapted weight is computed
        for e, part in enumerate(rows.split(counts.tolist())):
            opened = linear(part, gate, self.gate_bias, e)
            hidden = recomputed(self.activated, opened, linear(part, up, self.up_bias, e))
            parts.append(linear(hidden, down, self.down_bias, e))
        return torch.cat(parts)

    def grouped(self, rows: Tensor, counts: Tensor) -> Tensor:
        """The same as one batched product: each expert's rows are padded to the longest."""
        expert = torch.repeat_interleave(torch.arange(len(counts), device=rows.device), counts)
        within = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[expert]
        padded = rows.new_zeros(len(counts), int(counts.max()), rows.shape[1])
        padded[expert, within] = rows
        return self.experts(padded)[expert, within]
