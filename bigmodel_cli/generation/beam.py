"""Beam search over the same caches as `generate`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from bigmodel_cli.generation.sampling import Stop, last_tokens, own_lengths, slide, stops_at
from bigmodel_cli.lazy import Tensor, torch
from bigmodel_cli.logits import wide
from bigmodel_cli.models.base import Generator


@dataclass(frozen=True)
class Beam:
    """`width` hypotheses at a time; `length_penalty` 0 compares plain sums of log-probabilities."""

    width: int = 5
    length_penalty: float = 1.0

    def normaliser(self, length: int) -> float:
        """Length normalisation: ((5 + length) / 6) ^ penalty (Wu et al. 2016)."""
        return float(((5 + length) / 6) ** self.length_penalty)


@dataclass(frozen=True)
class Hypothesis:
    """Tokens without the end token, their summed log-probability (with it), and the ranking score.

    `ended` is False where the maximum length came before the end token.
    """

    tokens: list[int]
    log_probability: float
    score: float
    ended: bool = True


@dataclass
class _Row:
    """The ended hypotheses of one row of the prompt: at most `width`, the best first."""

    width: int
    found: list[Hypothesis] = field(default_factory=list)

    def add(self, hypothesis: Hypothesis) -> None:
        """Keep the hypothesis if it is among the best."""
        self.found.append(hypothesis)
        self.found.sort(key=lambda h: -h.score)
        del self.found[self.width :]

    def finished(self, best_open: float) -> bool:
        """Whether no open hypothesis, the best of this score, would rank at its present length."""
        enough = len(self.found) == self.width and best_open <= self.found[-1].score
        return enough or best_open == float("-inf")


def beam_search(
    model: Generator,
    prompt: Tensor,
    beam: Beam,
    *,
    max_new_tokens: int,
    stop: Stop,
    real: Tensor | None = None,
) -> list[list[Hypothesis]]:
    """Up to `beam.width` continuations of each row of `prompt` (B, T), the best first.

    Each step considers the 2 x width likeliest extensions of a row's hypotheses: those that end and
    are among the first `width` are kept as ended, the first `width` that go on stay open (Graves
    2012; Sutskever et al. 2014). A row is done when no open hypothesis could better the ended ones;
    it then leaves the batch. Width 1 is greedy. `real` (B, T) is False where a shorter prompt is
    padded, on its left. Where a row reaches the model's maximum length, the later half of its
    hypotheses is read again, as in `generate`. A row's result does not depend on the other rows, up
    to how products in bf16 are rounded; logits, and sums of log-probabilities, are in fp32.
    """
    model.eval()
    # not inference mode, in which autocast casts every weight again at each step
    with torch.no_grad(), wide():
        return _search(model, prompt, beam, max_new_tokens, stop, real)


def _search(
    model: Generator,
    prompt: Tensor,
    beam: Beam,
    max_new_tokens: int,
    stop: Stop,
    real: Tensor | None,
) -> list[list[Hypothesis]]:
    width, device = beam.width, prompt.device
    # (B,): the last tokens of each row that are looked at
    own = own_lengths(prompt, real).clamp(max=model.limit)
    prompt, segments = last_tokens(prompt, own)
    filled = prompt.shape[1]
    rows = [_Row(width) for _ in range(len(prompt))]
    live = list(range(len(prompt)))  # rows that are still open
    cache = model.new_cache(len(prompt), min(model.limit, filled + max_new_tokens))
    logits = model(prompt, cache, segments, last=True)[:, -1]
    cache.select(torch.arange(len(prompt), device=device).repeat_interleave(width))
    # At first all hypotheses of a row are equal: only one of them may be extended.
    sums = torch.full((len(prompt), width), float("-inf"), device=device)
    sums[:, 0] = 0.0
    logits = logits.repeat_interleave(width, 0)
    written = torch.zeros(len(prompt), width, 0, dtype=torch.int64, device=device)
    for length in range(1, max_new_tokens + 1):
        values, origin, token = _extensions(sums, logits)
        ends = stops_at(token, stop)
        norm = beam.normaliser(length)
        for r, k in (ends[:, :width] & values[:, :width].isfinite()).nonzero().tolist():
            tokens, total = written[r, origin[r, k]].tolist(), float(values[r, k])
            rows[live[r]].add(Hypothesis(tokens, total, total / norm))
        sums, kept = values.masked_fill(ends, float("-inf")).topk(width, dim=1)  # (R, K) that go on
        origin, token = origin.gather(1, kept), token.gather(1, kept)
        last = length == max_new_tokens
        best = (sums[:, 0] / norm).tolist()
        going = [r for r, row in enumerate(live) if not last and not rows[row].finished(best[r])]
        earlier = written.gather(1, origin[..., None].expand(-1, -1, length - 1))
        written = torch.cat((earlier, token[..., None]), 2)
        if last:
            _add_open(rows, live, written, sums, norm)
        if not going:
            break
        chosen = torch.tensor(going, device=device)
        searched, live = len(live), [live[r] for r in going]
        sums, written = sums[chosen], written[chosen]
        own, prompt = own[chosen] + 1, prompt[chosen]
        if filled == model.limit:
            own = slide(own, model.limit)
            whole = torch.cat((prompt.repeat_interleave(width, 0), written.flatten(0, 1)), 1)
            again, segments = last_tokens(whole, own.repeat_interleave(width))
            filled = again.shape[1]
            cache = model.new_cache(len(again), min(model.limit, filled + max_new_tokens - length))
            logits = model(again, cache, segments, last=True)[:, -1]
            continue
        flat = (chosen[:, None] * width + origin[chosen]).flatten()
        cache.select(flat, None if len(going) == searched else chosen)
        filled += 1
        logits = model(token[chosen].view(-1, 1), cache, last=True)[:, -1]
    nothing = Hypothesis([], math.nan, math.nan, ended=False)  # no logit was finite
    return [row.found or [nothing] for row in rows]


def _extensions(sums: Tensor, logits: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """sums (R, K), logits (R * K, V) -> the sums, hypotheses and tokens (R, 2K) of the likeliest
    extensions, the best first.
    """
    (rows, width), vocab = sums.shape, logits.shape[-1]
    extended = sums[..., None] + logits.float().log_softmax(-1).view(rows, width, vocab)
    values, index = extended.flatten(1).topk(min(2 * width, width * vocab), dim=1)
    return values, index // vocab, index % vocab


def _add_open(
    rows: list[_Row], live: list[int], written: Tensor, sums: Tensor, norm: float
) -> None:
    """At the maximum length, open hypotheses count as they are."""
    for r, (row, totals) in enumerate(zip(live, sums.tolist(), strict=True)):
        for k, total in enumerate(totals):
            if total > float("-inf"):
                rows[row].add(Hypothesis(written[r, k].tolist(), total, total / norm, ended=False))
