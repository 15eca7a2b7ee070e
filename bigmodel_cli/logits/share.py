"""Logits of a vocabulary that is divided among processes, and their cross-entropy as it is."""

from __future__ import annotations

from bigmodel_cli.config import PADDING
from bigmodel_cli.lazy import F, Module, Tensor, nn, torch
from bigmodel_cli.shares import Run, Team

TOKENS = "tokens of the vocabulary"


def tokens(vocab: int) -> Run:
    """The tokens of a vocabulary; shares of them may differ by one."""
    return Run(TOKENS, vocab, uneven=True)


class LogitsShare(Module):
    """(..., C) -> (..., V)   the last layer, of whose V rows this process has some.

    Called, it gives all logits; a loss takes its own alone (`share_entropy`).
    """

    weight: Tensor
    bias: Tensor | None
    in_features: int

    def __init__(self, layer: nn.Linear | LogitsShare, vocab: int, team: Team) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        self.out_features, self.in_features, self.team = vocab, layer.in_features, team
        self.first = tokens(vocab).share(team.rank, team.size).start

    def forward(self, x: Tensor) -> Tensor:
        """The logits of all processes side by side."""
        y = F.linear(self.team.enter(x), self.weight, self.bias)
        return self.team.beside(y, self.first)


def share_entropy(
    x: Tensor, slope: Tensor | float | None, targets: Tensor, smoothing: float, head: LogitsShare
) -> tuple[Tensor, Tensor]:
    """finished logits (N, v) of this process, in fp32 or better, targets (N) of all V.

    Returns the summed cross-entropy () over the whole vocabulary and the gradient of the logits
    (N, v), in the memory of x, times their derivative `slope`. Three numbers a row are exchanged.
    """
    team, (real, own) = head.team, ((targets != PADDING)[:, None], targets - head.first)
    inside = ((own >= 0) & (own < x.shape[-1]))[:, None] & real
    index = own.clamp(0, x.shape[-1] - 1)[:, None]
    x -= team.largest(x.amax(-1, keepdim=True))
    picked = torch.where(inside, x.gather(1, index), 0.0)
    total = x.sum(-1, keepdim=True) if smoothing else torch.zeros_like(picked)
    x.exp_()
    sums, picked, total = team.sum(torch.cat((x.sum(-1, keepdim=True), picked, total), 1)).split(
        1, 1
    )
    mean = total / head.out_features
    loss = sums.log() - (1 - smoothing) * picked - smoothing * mean
    x *= real / sums
    if smoothing:
        x -= real.to(x.dtype) * (smoothing / head.out_features)
    x.scatter_add_(1, index, inside.to(x.dtype) * (smoothing - 1))
    return loss.masked_fill(~real, 0.0).sum(), x if slope is None else x.mul_(slope)
